//! Random embeddings `Y = A Ω`. `Ω` of shape n×l is regenerated from a seed and never stored.
//!
//! | operator | `Ω` | flops of `A Ω` | state |
//! |---|---|---|---|
//! | [`Gaussian`] | i.i.d. normals | `2 m n l` | O(1) |
//! | [`Srht`] | signed, sampled Hadamard blocks | `m n log2(r)` | `l` indices |
//! | [`SparseSign`] | ζ entries ±1 in each row | `m n ζ` | O(1) |
//!
//! All of them are scaled so that `E[Ω Ωᵀ] = I`: lengths are kept in the mean (`E‖Ωᵀx‖² = ‖x‖²`). `√l · Ω` of the
//! Gaussian has standard normal entries.
//!
//! A sketch is linear in the rows of `Ω`, so [`apply_rows`](SketchOperator::apply_rows) takes any range of them with
//! the columns of `A` that they meet: tiles of a file and ranks of MPI add up their shares.
//!
//! `A` may have any storage type and any strides; half precision is widened in cache, a tile at a time. Work is split
//! by rows of `Y`, never along the sum, in chunks that depend on shapes alone: the bits of `Y` do not depend on
//! threads.

mod gaussian;
mod sparse_sign;
mod srht;

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par, unzip, zip};

pub use gaussian::Gaussian;
pub use sparse_sign::SparseSign;
pub use srht::Srht;

use crate::error::{Error, Result};
use crate::parallel;
use crate::simd::convert::convert;
use crate::simd::load::{load_scaled, load_times, write};
use crate::simd::transpose::{MAX_SIDE, transpose_square};
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::{ArithmeticMut, Element, MatView, arithmetic_mut, with_view};

/// The kinds of random embeddings.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Sketch {
    /// Independent normals: the strongest guarantees, the cost of a matrix product.
    Gaussian,
    /// Subsampled randomized Hadamard transform: the cost of reading `A`.
    #[default]
    Srht,
    /// Eight entries ±1/√8 in each row, fewer if `l < 8`: the fewest operations.
    SparseSign,
}

impl Sketch {
    /// Returns the name of the kind: `"gaussian"`, `"srht"` or `"sparse-sign"`.
    pub const fn name(self) -> &'static str {
        match self {
            Sketch::Gaussian => "gaussian",
            Sketch::Srht => "srht",
            Sketch::SparseSign => "sparse-sign",
        }
    }
}

impl std::fmt::Display for Sketch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Sketch {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "gaussian" => Ok(Sketch::Gaussian),
            "srht" => Ok(Sketch::Srht),
            "sparse-sign" => Ok(Sketch::SparseSign),
            _ => Err(Error::option("sketch", s, "gaussian, srht or sparse-sign")),
        }
    }
}

/// An n×l random embedding that is applied without being formed.
///
/// Four methods define an embedding: its shape, the size of its state, and [`entry`](Self::entry). By default a product
/// forms blocks of `Ω` from `entry` and multiplies. The kinds of this crate have faster kernels, and a type of yours
/// can have one if it implements [`apply_rows`](Self::apply_rows).
///
/// ```
/// use tensorslim::{MatRef, Par, SketchOperator};
///
/// /// Keeps every other column of `A`.
/// struct EveryOther(usize);
///
/// impl SketchOperator for EveryOther {
///     fn nrows(&self) -> usize {
///         self.0
///     }
///     fn ncols(&self) -> usize {
///         self.0 / 2
///     }
///     fn state_bytes(&self) -> usize {
///         size_of::<Self>()
///     }
///     fn entry(&self, i: usize, j: usize) -> f64 {
///         f64::from(i == 2 * j)
///     }
/// }
///
/// let a = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
/// let mut y = faer::Mat::<f64>::zeros(2, 2);
/// EveryOther(4).apply(MatRef::from_row_major_slice(&a, 2, 4), y.as_mut(), Par::Seq)?;
/// assert_eq!(y, faer::mat![[1.0, 3.0], [5.0, 7.0]]);
/// # Ok::<(), tensorslim::Error>(())
/// ```
pub trait SketchOperator: Sync {
    /// The number of rows of `Ω`, `n`.
    fn nrows(&self) -> usize;

    /// The number of columns of `Ω`, `l`.
    fn ncols(&self) -> usize;

    /// The bytes that the operator occupies, heap included. The scratch of a call is not counted.
    fn state_bytes(&self) -> usize;

    /// The entry `Ω(i, j)`, from the definition.
    ///
    /// # Panics
    /// If `i >= n` or `j >= l`.
    fn entry(&self, i: usize, j: usize) -> f64;

    /// Computes `Y = scale · A Ω[rows, :]`, or adds it to `Y`, as `accumulate` says.
    ///
    /// `A` is `m × rows.len()`, `Y` is `m × l`. `scale`, a power of two, multiplies the elements of `A` before they
    /// are narrowed to `T`. With empty `rows` the product is zero.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not agree or `rows` leaves `0..n`; [`Error::Option`] if `scale` is not a
    /// positive power of two.
    fn apply_rows<E: Element, T: Scalar>(
        &self,
        rows: Range<usize>,
        a: MatRef<'_, E>,
        scale: f64,
        accumulate: Accum,
        mut y: MatMut<'_, T>,
        par: Par,
    ) -> Result<()> {
        if check_apply(self, &rows, a, scale, accumulate, y.as_mut())? {
            self.product(a, Product { rows, scale, accumulate, y, par });
        }
        Ok(())
    }

    /// Does the work of [`apply_rows`](Self::apply_rows) after its checks, for at least one row of `Ω` and of `Y`. The
    /// kinds of this crate have their kernels here; the default multiplies by blocks of entries.
    #[doc(hidden)]
    fn product<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, product: Product<'_, T>) {
        let Product { rows, scale, accumulate, y, par } = product;
        let omega = Entries { columns: self.ncols(), entry: &|i, j| self.entry(i, j) };
        match arithmetic_mut(y) {
            ArithmeticMut::F32(y) => omega.multiply(E::view(a), Product { rows, scale, accumulate, y, par }),
            ArithmeticMut::F64(y) => omega.multiply(E::view(a), Product { rows, scale, accumulate, y, par }),
        }
    }

    /// Computes `Y = A Ω`. `A` is `m × n`, `Y` is `m × l`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes do not agree.
    fn apply<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, y: MatMut<'_, T>, par: Par) -> Result<()> {
        self.apply_rows(0..self.nrows(), a, 1.0, Accum::Replace, y, par)
    }

    /// Forms the n×l matrix `Ω` entry by entry, for tests and small problems.
    fn to_dense<T: Scalar>(&self) -> Mat<T> {
        Mat::from_fn(self.nrows(), self.ncols(), |i, j| T::from_f64(self.entry(i, j)))
    }
}

/// The arguments of [`SketchOperator::apply_rows`] besides `A`.
#[doc(hidden)]
#[derive(Debug)]
pub struct Product<'y, T> {
    rows: Range<usize>,
    scale: f64,
    accumulate: Accum,
    y: MatMut<'y, T>,
    par: Par,
}

/// An `Ω` that is known by its entries alone.
struct Entries<'a> {
    columns: usize,
    entry: &'a (dyn Fn(usize, usize) -> f64 + Sync),
}

/// The number of rows of `Ω` that are formed at a time, and of rows of `A` that are converted at a time.
const ENTRY_ROWS: usize = 256;

impl Entries<'_> {
    /// Computes `Y (+)= scale · A Ω[rows, :]`, one block of rows of `Ω` at a time. The blocks have the same size and
    /// come in the same order for any number of threads.
    fn multiply<T: Scalar>(&self, a: MatView<'_>, product: Product<'_, T>) {
        let Product { rows, scale, mut accumulate, mut y, par } = product;
        let depth = ENTRY_ROWS.min(rows.len());
        let mut omega = Mat::<T>::zeros(depth, self.columns);
        for first in rows.clone().step_by(depth) {
            let (k, depth) = (first - rows.start, depth.min(rows.end - first));
            let mut omega = omega.as_mut().subrows_mut(0, depth);
            let columns = parallel::row_blocks(omega.as_mut().transpose_mut(), 1);
            parallel::for_each_of(par, columns, |(j, mut column)| {
                (0..depth).for_each(|i| column[(0, i)] = T::from_f64((self.entry)(first + i, j)));
            });
            let (omega, chunk) = (omega.as_ref(), ENTRY_ROWS.min(y.nrows()));
            let scratch = || Mat::<T>::zeros(chunk, depth);
            for_row_chunks(y.as_mut(), chunk, par, scratch, |i, y, tile| {
                let mut tile = tile.as_mut().submatrix_mut(0, 0, y.nrows(), depth);
                load_part(a, (i, k), scale, tile.as_mut());
                matmul(y, accumulate, tile.as_ref(), omega, T::one(), Par::Seq);
            });
            accumulate = Accum::Add;
        }
    }
}

/// Overwrites `tile` with the part of `scale · A` that begins at element `first`. It is scaled in f64, before anything
/// is lost to the range of `T`.
fn load_part<T: Scalar>(a: MatView<'_>, first: (usize, usize), scale: f64, tile: MatMut<'_, T>) {
    with_view!(a, a => {
        let a = a.submatrix(first.0, first.1, tile.nrows(), tile.ncols());
        zip!(tile, a).for_each(|unzip!(to, from)| *to = T::from_f64(scale * from.to_f64()));
    });
}

/// A sketch of one of the kinds of this crate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AnySketch {
    /// Independent normals.
    Gaussian(Gaussian),
    /// Subsampled randomized Hadamard transform.
    Srht(Srht),
    /// Signs at a few places of each row.
    SparseSign(SparseSign),
}

impl AnySketch {
    /// Makes an n×l sketch of the given kind, a sparse sign with `min(8, l)` entries in a row. Sketches that share a
    /// `seed` are independent if their `stream` differs.
    ///
    /// # Errors
    /// [`Error::Empty`] if `n` or `l` is 0; [`Error::TooLarge`] if `n >= 2^40` or `l >= 2^24`; [`Error::Option`] if
    /// `stream >= 2^56`, or if `l > n` for an SRHT.
    pub fn new(kind: Sketch, n: usize, l: usize, seed: u64, stream: u64) -> Result<Self> {
        Ok(match kind {
            Sketch::Gaussian => AnySketch::Gaussian(Gaussian::new(n, l, seed)?.with_stream(stream)?),
            Sketch::Srht => AnySketch::Srht(Srht::new(n, l, seed)?.with_stream(stream)?),
            Sketch::SparseSign => {
                AnySketch::SparseSign(SparseSign::new(n, l, l.clamp(1, 8), seed)?.with_stream(stream)?)
            }
        })
    }
}

impl SketchOperator for AnySketch {
    fn nrows(&self) -> usize {
        match self {
            AnySketch::Gaussian(s) => s.nrows(),
            AnySketch::Srht(s) => s.nrows(),
            AnySketch::SparseSign(s) => s.nrows(),
        }
    }

    fn ncols(&self) -> usize {
        match self {
            AnySketch::Gaussian(s) => s.ncols(),
            AnySketch::Srht(s) => s.ncols(),
            AnySketch::SparseSign(s) => s.ncols(),
        }
    }

    fn state_bytes(&self) -> usize {
        match self {
            AnySketch::Gaussian(s) => s.state_bytes(),
            AnySketch::Srht(s) => s.state_bytes(),
            AnySketch::SparseSign(s) => s.state_bytes(),
        }
    }

    fn entry(&self, i: usize, j: usize) -> f64 {
        match self {
            AnySketch::Gaussian(s) => s.entry(i, j),
            AnySketch::Srht(s) => s.entry(i, j),
            AnySketch::SparseSign(s) => s.entry(i, j),
        }
    }

    fn product<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, product: Product<'_, T>) {
        let Product { rows, scale, accumulate, y, par } = product;
        match arithmetic_mut(y) {
            ArithmeticMut::F32(y) => self.product_f32(E::view(a), Product { rows, scale, accumulate, y, par }),
            ArithmeticMut::F64(y) => self.product_f64(E::view(a), Product { rows, scale, accumulate, y, par }),
        }
    }
}

/// The kernels of the arithmetic types, compiled once.
impl AnySketch {
    #[inline(never)]
    fn product_f32(&self, a: MatView<'_>, product: Product<'_, f32>) {
        with_view!(a, a => self.product_in(a, product))
    }

    #[inline(never)]
    fn product_f64(&self, a: MatView<'_>, product: Product<'_, f64>) {
        with_view!(a, a => self.product_in(a, product))
    }

    fn product_in<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, product: Product<'_, T>) {
        match self {
            AnySketch::Gaussian(s) => s.product(a, product),
            AnySketch::Srht(s) => s.product(a, product),
            AnySketch::SparseSign(s) => s.product(a, product),
        }
    }
}

/// The bits of a row in a block index of a generator, which is `(column block) << ROW_BITS | row`.
const ROW_BITS: u32 = 40;

/// Refuses an `Ω` that is empty or too large for the indices of its random numbers.
fn check_size(n: usize, l: usize) -> Result<()> {
    if n == 0 || l == 0 {
        return Err(Error::Empty { shape: vec![n, l] });
    }
    if n as u64 >= 1 << ROW_BITS || l as u64 >= 1 << 24 {
        return Err(Error::TooLarge { shape: vec![n, l] });
    }
    Ok(())
}

/// Refuses a stream that would reach into the byte that names the use of the random numbers.
fn check_stream(stream: u64) -> Result<()> {
    if stream >= crate::rng::stream::LIMIT {
        return Err(Error::option("stream", stream, "a number below 2^56"));
    }
    Ok(())
}

/// Checks the arguments of `apply_rows`. Returns false if nothing is left to do, because `Y` has no rows or the sum no
/// terms; in the latter case it zeroes a `Y` that is to be replaced.
fn check_apply<E: Element, T: Scalar>(
    sketch: &(impl SketchOperator + ?Sized),
    rows: &Range<usize>,
    a: MatRef<'_, E>,
    scale: f64,
    accumulate: Accum,
    mut y: MatMut<'_, T>,
) -> Result<bool> {
    let (op, n, l) = ("SketchOperator::apply", sketch.nrows(), sketch.ncols());
    if rows.start > rows.end || rows.end > n {
        return Err(Error::shape(op, format_args!("a range within 0..{n}"), format_args!("{rows:?}")));
    }
    if a.ncols() != rows.len() {
        return Err(Error::shape(
            op,
            format_args!("{} columns of A, one per row of Ω", rows.len()),
            format_args!("{}×{}", a.nrows(), a.ncols()),
        ));
    }
    if (y.nrows(), y.ncols()) != (a.nrows(), l) {
        return Err(Error::shape(
            op,
            format_args!("Y of {}×{l}", a.nrows()),
            format_args!("{}×{}", y.nrows(), y.ncols()),
        ));
    }
    // A power of two is a mantissa of zeros, or a single bit below the normal range.
    let mantissa = scale.to_bits() & ((1 << 52) - 1);
    if !(scale > 0.0 && scale.is_finite() && (mantissa == 0 || !scale.is_normal() && mantissa.is_power_of_two())) {
        return Err(Error::option("scale", scale, "a positive power of two"));
    }
    if y.nrows() > 0 && rows.is_empty() && accumulate == Accum::Replace {
        y.fill(T::zeroed());
    }
    Ok(y.nrows() > 0 && !rows.is_empty())
}

/// Runs `f(first row, block, scratch)` for each block of `chunk` rows of `y`. A scratch is used by one block at a time
/// and may be used again by the next.
fn for_row_chunks<T: Scalar, S>(
    y: MatMut<'_, T>,
    chunk: usize,
    par: Par,
    scratch: impl Fn() -> S + Sync + Send,
    f: impl Fn(usize, MatMut<'_, T>, &mut S) + Sync,
) {
    if let Par::Seq = par {
        let mut s = scratch();
        let (mut rest, mut first) = (y, 0);
        while rest.nrows() > 0 {
            let count = chunk.min(rest.nrows());
            let (head, tail) = rest.split_at_row_mut(count);
            f(first, head, &mut s);
            first += count;
            rest = tail;
        }
    } else {
        parallel::for_each_with(par, parallel::row_blocks(y, chunk), scratch, |s, (first, y)| f(first, y, s));
    }
}

/// Computes `Y = B` or `Y += B`, along the contiguous axis of `Y` if there is one.
fn store<T: Scalar>(y: MatMut<'_, T>, b: MatRef<'_, T>, accumulate: Accum) {
    let (y, b) = if y.col_stride() == 1 { (y, b) } else { (y.transpose_mut(), b.transpose()) };
    simd::dispatch(simd::isa(), Store { y, b, accumulate });
}

/// The number of elements of a line of `Y` that are collected before they are stored: a multiple of the side of a
/// square.
const STRIP: usize = 128;

/// The arguments of [`store`], as a kernel; the columns of `y` are adjacent if anything is.
struct Store<'y, 'b, T> {
    y: MatMut<'y, T>,
    b: MatRef<'b, T>,
    accumulate: Accum,
}

impl<T: Scalar> Kernel for Store<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Store { mut y, b, accumulate } = self;
        let add = accumulate == Accum::Add;
        if y.col_stride() == 1 && b.col_stride() != 1 && b.row_stride() == 1 {
            // B and Y are contiguous along different axes: squares are transposed into a strip, and from there go whole
            // lines of Y. These lie far apart, often in the same set of a cache, which would lose a line between two
            // squares.
            let side = T::lanes::<S>();
            let mut square = [T::zeroed(); MAX_SIDE * MAX_SIDE];
            let mut strip = [T::zeroed(); MAX_SIDE * STRIP];
            for i in (0..y.nrows()).step_by(side) {
                let height = side.min(y.nrows() - i);
                for first in (0..y.ncols()).step_by(STRIP) {
                    let length = STRIP.min(y.ncols() - first);
                    for j in (0..length).step_by(side) {
                        let width = side.min(length - j);
                        let mut part = b.submatrix(i, first + j, height, width).transpose();
                        if height < side || width < side {
                            for (k, line) in square.chunks_exact_mut(side).take(width).enumerate() {
                                if let Some(b) = part.row(k).try_as_row_major() {
                                    write(s, b.as_slice(), &mut line[..height], false);
                                }
                            }
                            part = MatRef::from_row_major_slice(&square[..side * side], side, side);
                        }
                        transpose_square(s, part, T::one(), &mut strip[j..], STRIP);
                    }
                    for (k, line) in strip.chunks_exact(STRIP).take(height).enumerate() {
                        if let Some(y) = y.as_mut().row_mut(i + k).subcols_mut(first, length).try_as_row_major_mut() {
                            write(s, &line[..length], y.as_slice_mut(), add);
                        }
                    }
                }
            }
            return;
        }
        for i in 0..y.nrows() {
            let (mut y, b) = (y.as_mut().row_mut(i), b.row(i));
            match (y.as_mut().try_as_row_major_mut(), b.try_as_row_major()) {
                (Some(y), Some(b)) => write(s, b.as_slice(), y.as_slice_mut(), add),
                _ => (0..b.ncols()).for_each(|j| y[j] = if add { y[j] + b[j] } else { b[j] }),
            }
        }
    }
}

/// Zeroed scratch of lines of `W` elements that begins at a cache line, because a register that straddles two cache
/// lines costs two accesses.
struct Lines<T, const W: usize> {
    data: Vec<T>,
    range: Range<usize>,
}

impl<T: Scalar, const W: usize> Lines<T, W> {
    /// Makes `count` lines of zeros.
    fn new(count: usize) -> Self {
        const LINE: usize = 64;
        let spare = LINE / size_of::<T>();
        let data = vec![T::zeroed(); count * W + spare];
        let start = data.as_ptr().align_offset(LINE).min(spare);
        Lines { data, range: start..start + count * W }
    }
}

impl<T, const W: usize> std::ops::Deref for Lines<T, W> {
    type Target = [[T; W]];
    fn deref(&self) -> &[[T; W]] {
        self.data[self.range.clone()].as_chunks().0
    }
}

impl<T, const W: usize> std::ops::DerefMut for Lines<T, W> {
    fn deref_mut(&mut self) -> &mut [[T; W]] {
        self.data[self.range.clone()].as_chunks_mut().0
    }
}

/// The axis along which the elements of a matrix are adjacent.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Rows,
    Columns,
    Strided,
}

impl Layout {
    /// Returns the axis along which the elements of `a` are adjacent.
    fn of<E>(a: MatRef<'_, E>) -> Self {
        if a.col_stride() == 1 || a.ncols() == 1 && a.row_stride() != 1 {
            Layout::Rows
        } else if a.row_stride() == 1 {
            Layout::Columns
        } else {
            Layout::Strided
        }
    }
}

/// The matrix `scale · A` as kernels load it, which multiply it by factors of their own.
///
/// `scale`, a power of two, is part of these factors, except where an element must be scaled in f64 before it is
/// narrowed, or where `scale` itself does not fit `T`.
struct Source<'a, E> {
    a: MatRef<'a, E>,
    scale: f64,
    /// Whether `scale` is part of the factors.
    fused: bool,
}

impl<E> Clone for Source<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Source<'_, E> {}

impl<'a, E: Element> Source<'a, E> {
    /// Makes the source of `scale · A` for arithmetic in `T`.
    fn new<T: Scalar>(a: MatRef<'a, E>, scale: f64) -> Self {
        let narrows = E::DTYPE.size() > T::DTYPE.size();
        Source { a, scale, fused: scale == 1.0 || !narrows && T::from_f64(scale).is_normal() }
    }

    /// Returns the source of `scale · Aᵀ`.
    fn transpose(&self) -> Self {
        Source { a: self.a.transpose(), ..*self }
    }

    /// Returns the number by which factors are to be multiplied before they are given to [`row`](Self::row) or
    /// [`column`](Self::column).
    fn factor<T: Scalar>(&self) -> T {
        T::from_f64(if self.fused { self.scale } else { 1.0 })
    }

    /// Loads part of a row: `out[j] = factors[j] / factor() · scale · a(i, first + j)`.
    #[inline(always)]
    fn row<S: Lanes, T: Scalar>(&self, s: S, i: usize, first: usize, factors: &[T], out: &mut [T]) {
        let row = self.a.row(i).subcols(first, out.len());
        match row.try_as_row_major() {
            Some(row) if self.fused => load_times(s, row.as_slice(), factors, out),
            Some(row) => {
                convert(row.as_slice(), out, self.scale);
                out.iter_mut().zip(factors).for_each(|(x, &f)| *x *= f);
            }
            None => {
                let scale = if self.fused { 1.0 } else { self.scale };
                for (j, (x, &f)) in out.iter_mut().zip(factors).enumerate() {
                    *x = T::from_f64(scale * row[j].to_f64()) * f;
                }
            }
        }
    }

    /// Returns the address of element `(i, j)`, or where it would be if the matrix were larger.
    fn address(&self, i: usize, j: usize) -> *const u8 {
        let a = &self.a;
        let offset = (i as isize * a.row_stride()).wrapping_add(j as isize * a.col_stride());
        a.as_ptr().wrapping_offset(offset).cast()
    }

    /// Returns this part of `A` if it exists, its rows are contiguous, and `scale` is part of [`factor`](Self::factor).
    fn rows(&self, rows: Range<usize>, columns: Range<usize>) -> Option<MatRef<'a, E>> {
        let inside = rows.end <= self.a.nrows() && columns.end <= self.a.ncols();
        (self.fused && inside && self.a.col_stride() == 1)
            .then(|| self.a.submatrix(rows.start, columns.start, rows.len(), columns.len()))
    }

    /// Prefetches elements `range` of row `i`, if the matrix has them and they are adjacent.
    #[inline(always)]
    fn prefetch_row<S: Lanes>(&self, s: S, i: usize, range: Range<usize>) {
        const LINE: usize = 64;
        if i >= self.a.nrows() || range.start >= range.end || range.end > self.a.ncols() {
            return;
        }
        if let Some(row) = self.a.row(i).subcols(range.start, range.len()).try_as_row_major() {
            let Range { start, end } = row.as_slice().as_ptr_range();
            let (mut at, end) = (start.cast::<u8>(), end.cast::<u8>());
            while at < end {
                s.prefetch(at);
                at = at.wrapping_add(LINE);
            }
        }
    }

    /// Loads part of a column: `out[i] = factor / factor() · scale · a(first + i, j)`.
    #[inline(always)]
    fn column<S: Lanes, T: Scalar>(&self, s: S, j: usize, first: usize, factor: T, out: &mut [T]) {
        let column = self.a.col(j).subrows(first, out.len());
        match column.try_as_col_major() {
            Some(column) if self.fused => load_scaled(s, column.as_slice(), factor, out, false),
            Some(column) => {
                convert(column.as_slice(), out, self.scale);
                out.iter_mut().for_each(|x| *x *= factor);
            }
            None => {
                let scale = if self.fused { 1.0 } else { self.scale };
                for (i, x) in out.iter_mut().enumerate() {
                    *x = T::from_f64(scale * column[i].to_f64()) * factor;
                }
            }
        }
    }
}
