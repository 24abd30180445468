//! Factors behind a handle: copies of their parts in the caller's buffers, and the report.

use std::ffi::{CString, c_char};

use super::kinds::{method_code, sketch_code};
use super::matrix::{Matrix, MatrixMut, check_target, dtype_code, store};
use super::status::{Failure, Status, c_text, decode, free, get, guard, make, put_all};
use crate::error::Error;
use crate::factors::{Factors as Product, Split as Splits};
use crate::report::{ErrorKind, Report as Facts};

/// The factors U (m × k), s (k) and Vᵀ (k × n) of a matrix, with their report.
pub struct Factors {
    of: Of,
    reason: CString,
    notes: Vec<CString>,
}

/// Factors in either arithmetic.
pub(super) enum Of {
    F32(Product<f32>),
    F64(Product<f64>),
}

/// Runs `$body` with `$f` as the factors, in either arithmetic.
macro_rules! with_factors {
    ($factors:expr, $f:ident => $body:expr) => {
        match &$factors.of {
            Of::F32($f) => $body,
            Of::F64($f) => $body,
        }
    };
}

/// A part of the factors.
#[repr(C)]
pub enum Part {
    /// The left singular vectors, m × k, orthonormal columns.
    U = 0,
    /// The singular values, k × 1, nonincreasing.
    S = 1,
    /// The right singular vectors, k × n, orthonormal rows.
    Vt = 2,
}

/// The place of the singular values when the factors become two layers, up (m × k) and down (k × n).
#[repr(C)]
pub enum Split {
    /// up = U diag(s), down = Vᵀ.
    Left = 0,
    /// up = U, down = diag(s) Vᵀ.
    Right = 1,
    /// up = U diag(√s), down = diag(√s) Vᵀ.
    Balanced = 2,
}

/// The numbers of a report. Later versions may append fields; see tensorslim_factors_report.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Report {
    /// The rows of the matrix, m.
    pub rows: usize,
    /// The columns of the matrix, n.
    pub cols: usize,
    /// The rank of the factors, k.
    pub rank: usize,
    /// The columns beyond the rank that the panels had.
    pub oversample: usize,
    /// The power iterations that were asked for.
    pub power_iterations: usize,
    /// How often the matrix was read.
    pub passes: usize,
    /// The most bytes that were allocated.
    pub peak_bytes: usize,
    /// The numbers in the matrix, m n.
    pub params_before: usize,
    /// The numbers in the factors, k (m + n + 1).
    pub params_after: usize,
    /// The number of notes; see tensorslim_factors_note.
    pub notes: usize,
    /// The seed.
    pub seed: u64,
    /// The norm of the matrix (Frobenius).
    pub norm: f64,
    /// The norm of the error over that of the matrix.
    pub relative_error: f64,
    /// The standard deviation of relative_error, 0 if it is exact.
    pub error_std_dev: f64,
    /// The probes that relative_error is an estimate from, 0 if it is exact.
    pub error_probes: usize,
    /// The wall time of the call, in seconds.
    pub seconds: f64,
    /// The samples of the input statistics; 0 without them.
    pub samples: u64,
    /// The samples of the output statistics; 0 without them.
    pub output_samples: u64,
    /// The relative error as the statistics see it; NaN without them.
    pub weighted_error: f64,
    /// The norm of the matrix as the statistics see it; NaN without them.
    pub weighted_norm: f64,
    /// The cosine between outputs before and after, all samples together; NaN without statistics.
    pub cosine: f64,
    /// The element type of the matrix, a tensorslim_dtype.
    pub dtype: i32,
    /// The arithmetic, a tensorslim_dtype.
    pub precision: i32,
    /// The method that gave the factors, a tensorslim_method.
    pub method: i32,
    /// The random matrix, a tensorslim_sketch; -1 for none.
    pub sketch: i32,
}

impl Report {
    fn new(r: &Facts) -> Self {
        let (error_probes, error_std_dev) = match r.error_kind {
            ErrorKind::Exact => (0, 0.0),
            ErrorKind::Estimate { probes, std_dev } => (probes, std_dev),
        };
        let weighted = r.activation.as_ref();
        Report {
            rows: r.shape.0,
            cols: r.shape.1,
            rank: r.rank,
            oversample: r.oversample,
            power_iterations: r.power_iterations,
            passes: r.passes,
            peak_bytes: r.peak_bytes,
            params_before: r.params_before(),
            params_after: r.params_after(),
            notes: r.notes.len(),
            seed: r.seed,
            norm: r.norm,
            relative_error: r.relative_error,
            error_std_dev,
            error_probes,
            seconds: r.elapsed.as_secs_f64(),
            samples: weighted.map_or(0, |w| w.samples),
            output_samples: weighted.and_then(|w| w.output_samples).unwrap_or(0),
            weighted_error: weighted.map_or(f64::NAN, |w| w.relative_error),
            weighted_norm: weighted.map_or(f64::NAN, |w| w.norm),
            cosine: weighted.map_or(f64::NAN, |w| w.cosine()),
            dtype: dtype_code(r.dtype),
            precision: dtype_code(r.precision),
            method: method_code(r.method),
            sketch: sketch_code(r.sketch),
        }
    }
}

impl Factors {
    /// Takes factors, with the texts of their report as C reads them.
    pub(super) fn new(of: Of) -> Self {
        let mut factors = Factors { of, reason: CString::default(), notes: Vec::new() };
        let report = factors.report();
        let (reason, notes) = (c_text(&report.reason), report.notes.iter().map(|note| c_text(note)).collect());
        (factors.reason, factors.notes) = (reason, notes);
        factors
    }

    fn report(&self) -> &Facts {
        with_factors!(self, f => f.report())
    }
}

/// Frees factors; NULL is allowed. Their texts go with them.
///
/// # Safety
/// `factors` is NULL, or a handle that has not been freed and that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_free(factors: *mut Factors) {
    // SAFETY: the handle is null or came from `make` and is given back once, as this function's caller promises.
    unsafe { free(factors) }
}

/// Copies a part of the factors, a tensorslim_part, to the caller's matrix, rounded to nearest in its element type. The
/// sizes are in the report: U is rows × rank, S is rank × 1, VT is rank × cols.
///
/// Errors: NULL_POINTER, OPTION for an unknown part, SHAPE, and those of a matrix: EMPTY, OVERLAP, MISALIGNED,
/// TOO_LARGE.
///
/// # Safety
/// `factors` is NULL or a handle; `to` is NULL or a matrix whose elements are writable and used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_get(factors: *const Factors, part: i32, to: *const MatrixMut) -> Status {
    guard(|| {
        // SAFETY: the handle and the description of the matrix are null or valid, as this function's caller promises.
        let (factors, to) = unsafe { (get(factors, "factors")?, get(to, "to")?) };
        let table =
            [(Part::U as i32, Part::U as u8), (Part::S as i32, Part::S as u8), (Part::Vt as i32, Part::Vt as u8)];
        let part = decode(&table, part, "part", "TENSORSLIM_PART_U, _S or _VT (0 to 2)")?;
        with_factors!(factors, f => {
            let (m, n, k) = (f.u().nrows(), f.vt().ncols(), f.rank());
            let (values, (rows, cols)) = match part {
                0 => (f.u().as_slice(), (m, k)),
                1 => (f.s(), (k, 1)),
                _ => (f.vt().as_slice(), (k, n)),
            };
            check_target(to, rows, cols, "tensorslim_factors_get", "to")?;
            // SAFETY: the matrix has passed the check, and its elements are writable and ours, as the caller promises.
            unsafe { store(values, to) }
        })
    })
}

/// Copies the weights of two layers, whose product is U diag(s) Vᵀ: `up` is rows × rank, `down` is rank × cols, each
/// rounded to nearest in its element type. `split` is a tensorslim_split. A sample goes through y = (x downᵀ) upᵀ.
///
/// Errors: NULL_POINTER, OPTION for an unknown split, SHAPE, OVERLAP if the two share memory, and those of a matrix:
/// EMPTY, MISALIGNED, TOO_LARGE.
///
/// # Safety
/// `factors` is NULL or a handle; `up` and `down` are NULL or matrices whose elements are writable and used by this
/// call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_split(
    factors: *const Factors,
    split: i32,
    up: *const MatrixMut,
    down: *const MatrixMut,
) -> Status {
    guard(|| {
        // SAFETY: the handle and the descriptions of the matrices are null or valid, as this function's caller
        // promises.
        let (factors, up, down) = unsafe { (get(factors, "factors")?, get(up, "up")?, get(down, "down")?) };
        let table = [
            (Split::Left as i32, Splits::Left),
            (Split::Right as i32, Splits::Right),
            (Split::Balanced as i32, Splits::Balanced),
        ];
        let split = decode(&table, split, "split", "TENSORSLIM_SPLIT_LEFT, _RIGHT or _BALANCED (0 to 2)")?;
        with_factors!(factors, f => {
            let op = "tensorslim_factors_split";
            check_target(up, f.u().nrows(), f.rank(), op, "up")?;
            check_target(down, f.rank(), f.vt().ncols(), op, "down")?;
            if up.span("up")?.meets(&down.span("down")?) {
                return Err(Failure::Shared("the other one"));
            }
            let (left, right) = f.split(split);
            // SAFETY: both have passed the check and share no memory; their elements are writable and ours, as the
            // caller promises.
            unsafe {
                store(left.as_slice(), up)?;
                store(right.as_slice(), down)
            }
        })
    })
}

/// Takes the factorization of a smaller rank out of this one, with a report of its own. The handle written to `out` is
/// the caller's, to be freed by tensorslim_factors_free; it is NULL after a failure.
///
/// Errors: NULL_POINTER, RANK unless 1 <= rank <= that of the factors.
///
/// # Safety
/// `factors` is NULL or a handle; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_truncate(
    factors: *const Factors,
    rank: usize,
    out: *mut *mut Factors,
) -> Status {
    let cut = || {
        // SAFETY: the handle is null or valid, as this function's caller promises.
        Ok(Factors::new(match &unsafe { get(factors, "factors") }?.of {
            Of::F32(f) => Of::F32(f.truncate(rank)?),
            Of::F64(f) => Of::F64(f.truncate(rank)?),
        }))
    };
    // SAFETY: `out` is null or valid for a write, as this function's caller promises.
    guard(|| unsafe { make(out, cut) })
}

/// Takes the directions `first` .. `first + count` - 1 out of the factors, in their order: a part of the spectrum, such
/// as the minor ones. The report is that of their product as an approximation of the matrix. The handle written to `out`
/// is the caller's, to be freed by tensorslim_factors_free; it is NULL after a failure.
///
/// Errors: NULL_POINTER, RANK for no directions or some beyond the rank, OPTION for factors under output statistics,
/// whose parts are not orthogonal.
///
/// # Safety
/// `factors` is NULL or a handle; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_range(
    factors: *const Factors,
    first: usize,
    count: usize,
    out: *mut *mut Factors,
) -> Status {
    let cut = || {
        let range = first..first.saturating_add(count);
        // SAFETY: the handle is null or valid, as this function's caller promises.
        Ok(Factors::new(match &unsafe { get(factors, "factors") }?.of {
            Of::F32(f) => Of::F32(f.range(range)?),
            Of::F64(f) => Of::F64(f.range(range)?),
        }))
    };
    // SAFETY: `out` is null or valid for a write, as this function's caller promises.
    guard(|| unsafe { make(out, cut) })
}

/// Computes W - U diag(s) Vᵀ, what the factors leave of the matrix `w`, rows × cols, in the arithmetic of the factors:
/// `to` has the same shape, and is rounded to nearest in its element type. The two may not share memory.
///
/// Errors: NULL_POINTER, SHAPE, OVERLAP if they share memory, and those of a matrix: EMPTY, MISALIGNED, TOO_LARGE.
///
/// # Safety
/// `factors` is NULL or a handle; `w` is NULL or a matrix whose elements are readable; `to` is NULL or a matrix whose
/// elements are writable and used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_residual(
    factors: *const Factors,
    w: *const Matrix,
    to: *const MatrixMut,
) -> Status {
    guard(|| {
        // SAFETY: the handle and the descriptions of the matrices are null or valid, as this function's caller
        // promises.
        let (factors, w, to) = unsafe { (get(factors, "factors")?, get(w, "w")?, get(to, "to")?) };
        // SAFETY: the elements of `w` are readable and nobody writes to them, as this function's caller promises; `to`
        // is written after the last look at them, and a `to` that meets them is refused.
        let (matrix, span) = unsafe { w.tensor("w.data") }?;
        with_factors!(factors, f => {
            check_target(to, f.u().nrows(), f.vt().ncols(), "tensorslim_factors_residual", "to")?;
            if to.span("to")?.meets(&span) {
                return Err(Failure::Shared("w"));
            }
            crate::dtype::with_dtype!(to.dtype()?, E => {
                let residual = f.residual::<E>(&matrix)?;
                // SAFETY: `to` has passed the check; its elements are writable and ours, as the caller promises.
                unsafe { store(residual.as_slice(), to) }
            })
        })
    })
}

/// Computes y = x Wᵀ through the factors of W: `x` is samples × cols, `y` is samples × rows, rounded to nearest in its
/// element type.
///
/// Errors: NULL_POINTER, SHAPE, OVERLAP if `x` and `y` share memory, and those of a matrix: EMPTY, MISALIGNED,
/// TOO_LARGE.
///
/// # Safety
/// `factors` is NULL or a handle; `x` is NULL or a matrix whose elements are readable; `y` is NULL or a matrix whose
/// elements are writable and used by this call alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_apply(
    factors: *const Factors,
    x: *const Matrix,
    y: *const MatrixMut,
) -> Status {
    guard(|| {
        // SAFETY: the handle and the descriptions of the matrices are null or valid, as this function's caller
        // promises.
        let (factors, x, y) = unsafe { (get(factors, "factors")?, get(x, "x")?, get(y, "y")?) };
        // SAFETY: the elements of `x` are readable and nobody writes to them, as this function's caller promises; `y`
        // is written after the last look at them, and a `y` that meets them is refused.
        let (samples, span) = unsafe { x.tensor("x.data") }?;
        with_factors!(factors, f => {
            check_target(y, x.rows, f.u().nrows(), "tensorslim_factors_apply", "y")?;
            if y.span("y")?.meets(&span) {
                return Err(Failure::Shared("x"));
            }
            let product = f.apply(&samples)?;
            // SAFETY: `y` has passed the check, and its elements are writable and ours, as the caller promises.
            unsafe { store(product.as_slice(), y) }
        })
    })
}

/// Copies the numbers of the report to `report`, of which the caller has `size` = sizeof(tensorslim_report) bytes.
/// Fields that this library does not know yet become 0 bytes.
///
/// Errors: NULL_POINTER.
///
/// # Safety
/// `factors` is NULL or a handle; `report` is NULL or valid for writes of `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_report(
    factors: *const Factors,
    report: *mut Report,
    size: usize,
) -> Status {
    guard(|| {
        // SAFETY: the handle is null or valid, as this function's caller promises.
        let facts = Report::new(unsafe { get(factors, "factors") }?.report());
        if report.is_null() {
            return Err(Failure::Null("report"));
        }
        let known = size.min(size_of::<Report>());
        let to = report.cast::<u8>();
        // SAFETY: the target is not null, so it is valid for writes of `size` bytes, as this function's caller
        // promises; `known` is no more than that and no more than our own report has.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const facts).cast::<u8>(), to, known);
            std::ptr::write_bytes(to.add(known), 0, size - known);
        }
        Ok(())
    })
}

/// Copies all singular values that were computed, at least rank of them, nonincreasing. `weighted` is 0 for those of
/// the matrix, 1 for those that the statistics see, which a budget is shared by. With NULL for `buffer` only their
/// number is written to `count`.
///
/// Errors: NULL_POINTER, OPTION for another `weighted`, or for 1 without statistics; BUFFER if `capacity` is less than
/// that number.
///
/// # Safety
/// `factors` is NULL or a handle; `buffer` is NULL or valid for writes of `capacity` elements; `count` is NULL or valid
/// for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_spectrum(
    factors: *const Factors,
    weighted: i32,
    buffer: *mut f64,
    capacity: usize,
    count: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: the handle is null or valid, as this function's caller promises.
        let report = unsafe { get(factors, "factors") }?.report();
        let spectrum = match (weighted, &report.activation) {
            (0, _) => &report.spectrum,
            (1, Some(activation)) => &activation.spectrum,
            _ => return Err(Error::option("weighted", weighted, "0, or 1 for factors under statistics").into()),
        };
        // SAFETY: the buffer and `count` are null or valid, as this function's caller promises; the values are our own.
        unsafe { put_all(spectrum, "the singular values", buffer, capacity, count) }
    })
}

/// Returns note `index` of the report, from 0 on: what was clamped, fell back or was not routine, in UTF-8. It is NULL
/// behind the last one, or for a NULL handle. The text belongs to the handle and lives as long.
///
/// # Safety
/// `factors` is NULL or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_note(factors: *const Factors, index: usize) -> *const c_char {
    // SAFETY: the handle is null or valid, as this function's caller promises.
    let factors = unsafe { factors.as_ref() };
    factors.and_then(|factors| factors.notes.get(index)).map_or(std::ptr::null(), |note| note.as_ptr())
}

/// Returns the reason why the method was taken, in UTF-8; NULL for a NULL handle. The text belongs to the handle and
/// lives as long.
///
/// # Safety
/// `factors` is NULL or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factors_reason(factors: *const Factors) -> *const c_char {
    // SAFETY: the handle is null or valid, as this function's caller promises.
    unsafe { factors.as_ref() }.map_or(std::ptr::null(), |factors| factors.reason.as_ptr())
}
