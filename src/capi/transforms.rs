//! Kernels on the caller's memory: Walsh-Hadamard transforms, rotations, orthonormal bases.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::{MatMut, Par};

use super::matrix::{Matrix, MatrixMut, check_target, store};
use super::status::{Failure, Status, decode, free, get, guard, make, put};
use crate::dtype::with_dtype;
use crate::error::Error;
use crate::fwht;
use crate::parallel::{Threads as Pools, current_par};
use crate::qr;
use crate::rotation::{Rotation as Turns, Scheme as Schemes};
use crate::simd::Scalar;
use crate::tensor::DType;

/// The threads that a transform runs on. Results have the same bits on any number of them.
#[repr(C)]
pub enum Threads {
    /// Those of the pool, as many as RAYON_NUM_THREADS says or the machine has.
    Pool = 0,
    /// The calling thread alone.
    One = 1,
}

/// How a transform is scaled.
#[repr(C)]
pub enum Scale {
    /// The entries of H are +1 and -1.
    Plain = 0,
    /// H is divided by the square root of its order, and so orthogonal.
    Orthonormal = 1,
}

/// How a rotation is made of transforms, and which lengths n it takes.
#[repr(C)]
pub enum Scheme {
    /// One transform of the whole vector, for the lengths that have one: b 2^t.
    Order = 0,
    /// A transform of each block, of a length that divides n.
    Blocks = 1,
    /// Four rounds that mix all elements, for even lengths and 1.
    Kac = 2,
    /// One transform of the vector and zeros behind it, for every length; it has more outputs than inputs unless n is a
    /// power of two.
    Padded = 3,
}

/// A seeded orthogonal rotation of vectors. Its bits are the same on every machine and in every version.
pub struct Rotation(Turns);

fn threads(code: i32) -> Result<Pools, Failure> {
    let table = [(Threads::Pool as i32, Pools::Pool), (Threads::One as i32, Pools::One)];
    decode(&table, code, "threads", "TENSORSLIM_THREADS_POOL or _ONE (0 or 1)")
}

fn is_orthonormal(code: i32) -> Result<bool, Failure> {
    let table = [(Scale::Plain as i32, false), (Scale::Orthonormal as i32, true)];
    decode(&table, code, "scale", "TENSORSLIM_SCALE_PLAIN or _ORTHONORMAL (0 or 1)")
}

fn is_inverse(code: i32) -> Result<bool, Failure> {
    decode(&[(0, false), (1, true)], code, "inverse", "0 for the rotation, 1 for its inverse")
}

fn scheme(code: i32, block: usize) -> Result<Schemes, Failure> {
    let table = [
        (Scheme::Order as i32, Schemes::Order),
        (Scheme::Blocks as i32, Schemes::Blocks { len: (block > 0).then_some(block) }),
        (Scheme::Kac as i32, Schemes::Kac),
        (Scheme::Padded as i32, Schemes::Padded),
    ];
    decode(&table, code, "scheme", "TENSORSLIM_SCHEME_ORDER, _BLOCKS, _KAC or _PADDED (0 to 3)")
}

/// Transforms each row of `x` in place by the Walsh-Hadamard matrix H of its length: x_i <- H x_i, in natural order.
/// `scale` is a tensorslim_scale, `threads` a tensorslim_threads. Halves are widened to float inside and rounded once.
///
/// Errors: NULL_POINTER, ORDER for a length without such a matrix, OPTION, and those of a matrix: EMPTY, OVERLAP,
/// MISALIGNED, TOO_LARGE.
///
/// # Safety
/// `x` is NULL or a matrix whose elements are readable, writable and used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_fwht_rows(x: *const MatrixMut, scale: i32, threads: i32) -> Status {
    guard(|| {
        // SAFETY: the description of the matrix is null or valid, as this function's caller promises.
        let x = unsafe { get(x, "x") }?;
        let (orthonormal, threads) = (is_orthonormal(scale)?, self::threads(threads)?);
        with_dtype!(x.dtype()?, E => {
            // SAFETY: `E` is the type that the matrix names; its elements are ours, as this function's caller promises.
            let x = unsafe { x.tensor_mut::<E>("x.data") }?;
            Ok(if orthonormal { fwht::orthonormal_rows(x, threads) } else { fwht::fwht_rows(x, threads) }?)
        })
    })
}

/// Transforms each column of `x` in place: X <- H X. The arguments and the errors are those of tensorslim_fwht_rows.
///
/// # Safety
/// `x` is NULL or a matrix whose elements are readable, writable and used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_fwht_columns(x: *const MatrixMut, scale: i32, threads: i32) -> Status {
    guard(|| {
        // SAFETY: the description of the matrix is null or valid, as this function's caller promises.
        let x = unsafe { get(x, "x") }?;
        let (orthonormal, threads) = (is_orthonormal(scale)?, self::threads(threads)?);
        with_dtype!(x.dtype()?, E => {
            // SAFETY: `E` is the type that the matrix names; its elements are ours, as this function's caller promises.
            let x = unsafe { x.tensor_mut::<E>("x.data") }?;
            Ok(if orthonormal { fwht::orthonormal_columns(x, threads) } else { fwht::fwht_columns(x, threads) }?)
        })
    })
}

/// Makes the rotation of vectors of `length` elements with the random signs of `seed`. `scheme` is a tensorslim_scheme;
/// `block` is the length of a block of SCHEME_BLOCKS, or 0 for the largest power of two that divides the length, and
/// means nothing to the others. The handle written to `out` is the caller's, to be freed by tensorslim_rotation_free;
/// it is NULL after a failure.
///
/// Errors: NULL_POINTER, ROTATION, with the nearest lengths, if the scheme does not take this one, OPTION, TOO_LARGE.
///
/// # Safety
/// `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_rotation_new(
    length: usize,
    scheme: i32,
    block: usize,
    seed: u64,
    out: *mut *mut Rotation,
) -> Status {
    let new = || Ok(Rotation(Turns::new(length, seed, self::scheme(scheme, block)?)?));
    // SAFETY: `out` is null or valid for a write, as this function's caller promises.
    guard(|| unsafe { make(out, new) })
}

/// Frees a rotation; NULL is allowed.
///
/// # Safety
/// `rotation` is NULL, or a handle that has not been freed and that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_rotation_free(rotation: *mut Rotation) {
    // SAFETY: the handle is null or came from `make` and is given back once, as this function's caller promises.
    unsafe { free(rotation) }
}

/// Writes the length of a rotated vector: that of the vector, or the next power of two for SCHEME_PADDED.
///
/// Errors: NULL_POINTER.
///
/// # Safety
/// `rotation` is NULL or a handle; `length` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_rotation_output_length(rotation: *const Rotation, length: *mut usize) -> Status {
    guard(|| {
        // SAFETY: the handle is null or valid, as this function's caller promises.
        let rotation = unsafe { get(rotation, "rotation") }?;
        if length.is_null() {
            return Err(Failure::Null("length"));
        }
        // SAFETY: the pointer is not null, and so valid for a write, as this function's caller promises.
        unsafe { put(length, rotation.0.output_dim()) };
        Ok(())
    })
}

/// Rotates each row of `x` in place, or back if `inverse` is 1. `threads` is a tensorslim_threads.
///
/// Errors: NULL_POINTER, SHAPE unless a row has the length of the rotation, and a rotated one too; OPTION, and those of
/// a matrix: EMPTY, OVERLAP, MISALIGNED, TOO_LARGE.
///
/// # Safety
/// `rotation` is NULL or a handle; `x` is NULL or a matrix whose elements are readable, writable and used by this call
/// alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_rotation_apply(
    rotation: *const Rotation,
    x: *const MatrixMut,
    inverse: i32,
    threads: i32,
) -> Status {
    guard(|| {
        // SAFETY: the handle and the description of the matrix are null or valid, as this function's caller promises.
        let (rotation, x) = unsafe { (&get(rotation, "rotation")?.0, get(x, "x")?) };
        let (inverse, threads) = (is_inverse(inverse)?, self::threads(threads)?);
        with_dtype!(x.dtype()?, E => {
            // SAFETY: `E` is the type that the matrix names; its elements are ours, as this function's caller promises.
            let x = unsafe { x.tensor_mut::<E>("x.data") }?;
            Ok(if inverse { rotation.apply_rows_inverse(x, threads) } else { rotation.apply_rows(x, threads) }?)
        })
    })
}

/// Rotates each row of `x` into the same row of `y`, or back if `inverse` is 1, as SCHEME_PADDED needs it. Both have
/// one element type and as many rows, adjacent ones of adjacent elements: col_stride 1, row_stride cols.
///
/// Errors: NULL_POINTER, SHAPE, OPTION for two element types or other strides, OVERLAP if `x` and `y` share memory, and
/// those of a matrix: EMPTY, MISALIGNED, TOO_LARGE.
///
/// # Safety
/// `rotation` is NULL or a handle; `x` is NULL or a matrix whose elements are readable; `y` is NULL or a matrix whose
/// elements are writable and used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_rotation_apply_to(
    rotation: *const Rotation,
    x: *const Matrix,
    y: *const MatrixMut,
    inverse: i32,
    threads: i32,
) -> Status {
    guard(|| {
        // SAFETY: the handle and the descriptions of the matrices are null or valid, as this function's caller
        // promises.
        let (rotation, x, y) = unsafe { (&get(rotation, "rotation")?.0, get(x, "x")?, get(y, "y")?) };
        let (inverse, threads) = (is_inverse(inverse)?, self::threads(threads)?);
        let (long, short) = (rotation.output_dim(), rotation.dim());
        let (from, to) = if inverse { (long, short) } else { (short, long) };
        let op = "tensorslim_rotation_apply_to";
        if x.cols != from {
            return Err(Error::shape(op, format_args!("x of {from} columns"), x.cols).into());
        }
        check_target(y, x.rows, to, op, "y")?;
        let span = x.span("x.data")?;
        if span.meets(&y.span("y.data")?) {
            return Err(Failure::Shared("x"));
        }
        let adjacent = |rows: usize, cols: usize, row_stride: isize, col_stride: isize| {
            (rows == 1 || row_stride == cols as isize) && (cols == 1 || col_stride == 1)
        };
        let source = adjacent(x.rows, x.cols, x.row_stride, x.col_stride);
        if !(source && adjacent(y.rows, y.cols, y.row_stride, y.col_stride)) {
            return Err(
                Error::unsuited("row_stride", "and col_stride have to be cols and 1 here; copy the matrix").into()
            );
        }
        if x.dtype != y.dtype {
            return Err(Error::unsuited("dtype", "of x and y differs; give both one element type").into());
        }
        with_dtype!(y.dtype()?, E => {
            let (first, count) = (y.data.cast::<E>(), y.rows * y.cols);
            // SAFETY: `span` has checked that the address of each matrix is aligned and that its elements are in the
            // address space; they are adjacent, as many as the slice has, and valid, as this function's caller
            // promises. The two do not meet. `y` may not have been written before, so zeros are, before it becomes a
            // slice.
            let (x, y) = unsafe {
                first.write_bytes(0, count);
                let x = std::slice::from_raw_parts(x.data.cast::<E>(), x.rows * x.cols);
                (x, std::slice::from_raw_parts_mut(first, count))
            };
            Ok(if inverse { rotation.apply_inverse_to(x, y, threads) } else { rotation.apply_to(x, y, threads) }?)
        })
    })
}

/// Replaces the columns of `y` (m × l, m >= l) by an orthonormal basis Q of their span, in the element type of `y`, F32
/// or F64. If `r` is not NULL it gets the upper triangular l × l matrix R with y = Q R, in the same type, with a
/// diagonal that is not negative. `condition`, if not NULL, gets an estimate of the condition number of `y` with
/// columns of equal length. A column-major `y` is the fastest. `threads` is a tensorslim_threads.
///
/// Errors: NULL_POINTER, SHAPE, NOT_FINITE, RANGE if R does not fit the type, OPTION for a half type, two types or an
/// unknown number, OVERLAP if `y` and `r` share memory, and those of a matrix: EMPTY, MISALIGNED, TOO_LARGE. The panel
/// may have been scaled after NOT_FINITE and RANGE.
///
/// # Safety
/// `y` is NULL or a matrix whose elements are readable, writable and used by this call alone; `r` is NULL or a matrix
/// whose elements are writable and used by this call alone; `condition` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_orthonormalize(
    y: *const MatrixMut,
    r: *const MatrixMut,
    threads: i32,
    condition: *mut f64,
) -> Status {
    guard(|| {
        // SAFETY: the descriptions of the matrices are null or valid, as this function's caller promises.
        let (y, r) = unsafe { (get(y, "y")?, r.as_ref()) };
        let span = y.span("y.data")?;
        if let Some(r) = r {
            check_target(r, y.cols, y.cols, "tensorslim_orthonormalize", "r")?;
            if r.span("r.data")?.meets(&span) {
                return Err(Failure::Shared("y"));
            }
            if r.dtype != y.dtype {
                return Err(Error::unsuited("dtype", "of y and r differs; give both one element type").into());
            }
        }
        let par = if self::threads(threads)? == Pools::One { Par::Seq } else { current_par() };
        // SAFETY: both matrices have been checked, do not meet, and hold the type of the call; their elements are ours,
        // and those of `y` have been written, as this function's caller promises.
        let estimate = unsafe {
            match y.dtype()? {
                DType::F32 => orthonormalize::<f32>(y, r, par),
                DType::F64 => orthonormalize::<f64>(y, r, par),
                _ => Err(Error::option("dtype", y.dtype, "TENSORSLIM_DTYPE_F32 or _F64 (2 or 3)").into()),
            }
        }?;
        // SAFETY: `condition` is null or valid for a write, as this function's caller promises.
        unsafe { put(condition, estimate) };
        Ok(())
    })
}

/// Returns the estimate of the condition.
///
/// # Safety
/// The matrices hold elements of type `T`, have been checked, and share no memory; their elements are valid for reads
/// and writes and reached by nothing else, and those of `y` have been written.
unsafe fn orthonormalize<T: Scalar>(y: &MatrixMut, r: Option<&MatrixMut>, par: Par) -> Result<f64, Failure> {
    let (m, l) = (y.rows, y.cols);
    let too_large = |_| Error::TooLarge { shape: vec![m, l] };
    if m < l {
        return Err(Error::shape(
            "tensorslim_orthonormalize",
            "at least as many rows as columns",
            format_args!("{m}×{l}"),
        )
        .into());
    }
    let mut buffer = MemBuffer::try_new(qr::orthonormalize_scratch::<T>(m, l, par)).map_err(too_large)?;
    if let Some(r) = r {
        // What becomes a view has been written: by the caller, but for R.
        // SAFETY: the contract of this function: `r` has been checked, and is writable and ours.
        unsafe { store(&vec![T::zeroed(); l * l], r) }?;
    }
    // SAFETY: the contract of this function: checked strides of distinct elements of type `T`, valid and ours.
    let view = |a: &MatrixMut| unsafe {
        MatMut::from_raw_parts_mut(a.data.cast::<T>(), a.rows, a.cols, a.row_stride, a.col_stride)
    };
    let found = qr::orthonormalize(view(y), r.map(view), par, MemStack::new(&mut buffer))?;
    Ok(found.condition_estimate)
}
