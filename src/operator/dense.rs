//! A matrix in memory, of any storage type and strides, seen in arithmetic `T`.
//!
//! When storage is `T` itself, products are one GEMM. Otherwise (f16, bf16, the other float, or values so large or
//! small that squares would leave the range of `T`) the matrix is taken in row tiles that are converted and scaled
//! into one buffer:
//!
//! ```text
//!   A  m × n   ┌─────────┐
//!              │ tile i  │ -> convert · 2^e -> buffer (tile_rows × n, T)      Y_i  = buffer X
//!              ├─────────┤                                                    X   += bufferᵀ Y_i   (tile order)
//!              │   ...   │                                                    G   += bufferᵀ buffer
//! ```
//!
//! **Memory.** No full-size copy is made. The buffer holds [`TileParams::elements`] elements during the pass and takes
//! the place of the scratch of the panels, which are not orthonormalized meanwhile. Where storage is `T` and only the
//! values ask for a tile, it is no larger than that scratch, because nobody knows of it before the call. The power of
//! two `2^e` is exact; the operator then stands for `2^e A` and the driver multiplies the singular values by `2^-e`.
//!
//! Construction reads `A` once. It refuses NaN and infinities with their position, and computes `max |a|` and `‖A‖_F²`
//! in f64, in fixed chunks that are summed in order, so that the result is the same for any number of threads.

use std::borrow::Cow;
use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par};

use super::{Facts, LinearOperator, Symmetric, Watch};
use crate::error::{Error, Result};
use crate::linalg::{
    add_gram, add_gram_of_block, add_up, for_each_line, gram_groups, is_by_rows, may_win, mirror, wins,
};
use crate::parallel;
use crate::simd::Scalar;
use crate::simd::convert::{convert, convert_before};
use crate::simd::reduce::{Statistics, statistics, statistics_of_lines};
use crate::sketch::{AnySketch, SketchOperator};
use crate::space::{
    Host, HostPanel, Layout, congruence, product, product_as_stored, product_as_stored_bytes, product_bytes,
};
use crate::tensor::{Element, MatView, with_view};

/// Sizes of the conversion buffer.
#[derive(Debug, Clone, Copy)]
pub struct TileParams {
    /// The elements of one tile; the default is 2^20, which stays in L3 (4 MiB of f32).
    pub elements: usize,
    /// The fewest rows of a tile. Below it each GEMM repacks the panel for too little work.
    pub min_rows: usize,
}

impl Default for TileParams {
    fn default() -> Self {
        TileParams { elements: 1 << 20, min_rows: 64 }
    }
}

impl TileParams {
    /// Returns the rows of a tile of an `m × n` matrix.
    pub fn rows(&self, m: usize, n: usize) -> usize {
        (self.elements / n.max(1)).max(self.min_rows).min(m)
    }
}

/// A matrix in memory: checked once, read in place or through converted tiles.
pub struct Dense<'a, T: Scalar> {
    data: Data<'a, T>,
    /// The power of two that the elements are multiplied by on the way in.
    scale: f64,
    largest: f64,
    norm_squared: f64,
    space: Host,
    passes: usize,
    watch: Watch<'a>,
}

enum Data<'a, T: Scalar> {
    /// Storage is `T`, unscaled, and products read it in place.
    Direct(MatRef<'a, T>),
    /// Storage is another type or needs scaling, and products go through tiles.
    Tiled(MatView<'a>),
}

impl<'a, T: Scalar> Data<'a, T> {
    fn new(view: MatView<'a>, scale: f64) -> Self {
        match view.typed::<T>() {
            Some(a) if scale == 1.0 => Data::Direct(a),
            _ => Data::Tiled(view),
        }
    }
}

/// Returns the exponent e of the range `2^-e..2^e` of `max |a|` within which squares and their sums stay clear of over-
/// and underflow.
const fn safe_exponent<T: Scalar>() -> i32 {
    if size_of::<T>() == 4 { 40 } else { 400 }
}

/// Returns the power of two that brings a matrix with this `max |a|` into the safe range, or as close to it as a power
/// of two can, for subnormal numbers. It is 1 if the matrix is in the range.
pub(crate) fn scale_for<T: Scalar>(largest: f64) -> f64 {
    let exponent = if largest > 0.0 { largest.log2().floor() as i32 } else { 0 };
    if exponent.abs() > safe_exponent::<T>() { 2f64.powi((-exponent).min(f64::MAX_EXP - 1)) } else { 1.0 }
}

impl<'a, T: Scalar> Dense<'a, T> {
    /// Checks the matrix and prepares it. `view` has at least as many rows as columns in a factorization; products
    /// work for any shape.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the position of the first NaN or infinity in row-major order,
    /// [`Error::Empty`] for an empty matrix.
    pub fn new(view: MatView<'a>, par: Par) -> Result<Self> {
        Self::within(view, Host::new(par))
    }

    /// Checks the matrix and prepares it as [`new`](Self::new) does, with panels in `space`, and its threads.
    ///
    /// # Errors
    /// [`Error::NotFinite`] and [`Error::Empty`], as [`new`](Self::new).
    #[doc(hidden)]
    pub fn within(view: MatView<'a>, space: Host) -> Result<Self> {
        let (m, n) = (view.nrows(), view.ncols());
        if m == 0 || n == 0 {
            return Err(Error::Empty { shape: vec![m, n] });
        }
        let scan = scan(view, space.par())?;
        let scale = scale_for::<T>(scan.largest);
        Ok(Self::scaled(view, scan, scale, space))
    }

    /// Takes the matrix unscaled, for what is linear in it and can bear its range.
    pub(crate) fn unscaled(view: MatView<'a>, par: Par) -> Result<Self> {
        if view.nrows() == 0 || view.ncols() == 0 {
            return Err(Error::Empty { shape: vec![view.nrows(), view.ncols()] });
        }
        Ok(Self::scaled(view, scan(view, par)?, 1.0, Host::new(par)))
    }

    /// Takes a block of a larger matrix that was checked and has this scale. The block does not know its norm.
    pub(crate) fn of_block(view: MatView<'a>, scale: f64, space: Host) -> Self {
        let (largest, norm_squared, watch) = (f64::NAN, f64::NAN, Watch::default());
        Dense { data: Data::new(view, scale), scale, largest, norm_squared, space, passes: 0, watch }
    }

    fn scaled(view: MatView<'a>, Scan { largest, norm_squared }: Scan, scale: f64, space: Host) -> Self {
        // 2^-e · (2^-e · ‖A‖²) would overflow at its first factor when ‖A‖² itself does: scan again, scaled.
        let norm_squared = if scale == 1.0 { norm_squared } else { scaled_norm_squared(view, scale, space.par()) };
        Dense {
            data: Data::new(view, scale),
            scale,
            largest: largest * scale,
            norm_squared,
            space,
            passes: 0,
            watch: Watch::default(),
        }
    }

    /// Returns `max |a|` of the matrix that the operator stands for.
    pub(crate) fn largest(&self) -> f64 {
        self.largest
    }

    /// Makes the operator ask `watch` before every product whether to go on.
    #[must_use]
    #[doc(hidden)]
    pub fn watched(mut self, watch: Watch<'a>) -> Self {
        self.watch = watch;
        self
    }

    /// Asks the watch whether to go on before a product, and counts the pass.
    fn begin_pass(&mut self) -> Result<()> {
        self.watch.check()?;
        self.passes += 1;
        let (m, n) = self.shape();
        let elements = (m * n) as u64;
        let size = match &self.data {
            Data::Tiled(view) => view.dtype().size(),
            Data::Direct(_) => size_of::<T>(),
        };
        self.watch.read(elements * size as u64);
        Ok(())
    }

    /// Computes the lower triangle of `AᵀA`.
    pub(crate) fn gram_lower(&mut self) -> Result<HostPanel<T>> {
        let (m, n) = self.shape();
        let mut g = HostPanel::zeros(n, n, &self.space);
        let mut parts = self.space.buffer((gram_groups(m, n) - 1) * n * n);
        self.for_each_tile(Pass::Whole, |_, a, par| add_gram(a, g.as_mut(), &mut parts, par))?;
        add_up(g.as_mut(), &parts);
        Ok(g)
    }

    /// Computes the lower triangle of the Gram matrix of a block of rows in `g`, which may hold anything.
    pub(crate) fn gram_of_block(&mut self, g: &mut HostPanel<T>) -> Result<()> {
        g.as_mut().fill(T::zeroed());
        self.for_each_tile(Pass::Whole, |_, a, par| add_gram_of_block(a, g.as_mut(), par))
    }

    fn shape(&self) -> (usize, usize) {
        match &self.data {
            Data::Direct(a) => a.shape(),
            Data::Tiled(a) => (a.nrows(), a.ncols()),
        }
    }

    /// Returns the bytes that the Gram matrix of an `m × n` matrix takes while it is formed.
    #[doc(hidden)]
    pub fn gram_bytes(m: usize, n: usize) -> usize {
        HostPanel::<T>::bytes(n, n) + (gram_groups(m, n) - 1) * n * n * size_of::<T>()
    }

    /// Returns the bytes that a product with a panel of `l` columns takes while it runs.
    #[doc(hidden)]
    pub fn product_bytes(m: usize, l: usize) -> usize {
        product_bytes::<T>(m, l)
    }

    /// Returns the most bytes of the conversion buffer for an `m × n` matrix of element type `storage` in arithmetic
    /// `T`. Values that have to be scaled may need one even where the types are the same.
    #[doc(hidden)]
    pub fn tile_bytes(pass: Pass, (m, n): (usize, usize), storage: crate::DType) -> usize {
        tile_rows(pass, (m, n), storage == T::DTYPE) * n * size_of::<T>()
    }

    /// Returns the bytes of a product with `l` columns that takes the matrix as it is stored, in the type of the
    /// arithmetic, if there may be one with a result of `rows` rows. They take the place of the scratch of the panels.
    pub(crate) fn direct_bytes(shape: (usize, usize), rows: usize, storage: crate::DType, l: usize) -> usize {
        let may = storage == T::DTYPE && may_win::<T>(shape, storage, l);
        if may { product_as_stored_bytes::<T>(rows, l) } else { 0 }
    }

    /// Computes `y <- A x`, or `Aᵀ x`, from the elements as they are stored, and returns true; or returns false if
    /// another way is faster. What is converted elsewhere has a buffer, which is the scratch here.
    fn multiply_as_stored(&mut self, adjoint: bool, x: MatRef<'_, T>, y: MatMut<'_, T>) -> Result<bool> {
        let (view, buffer) = match &self.data {
            Data::Direct(a) => (T::view(*a), 0),
            // Nobody counted on a buffer for values that are scaled.
            Data::Tiled(view) if view.dtype() == T::DTYPE => return Ok(false),
            Data::Tiled(view) => {
                let (m, n) = (view.nrows(), view.ncols());
                (*view, n * tile_rows(Pass::Product(x.ncols()), (m, n), false))
            }
        };
        let (view, scale, space) = (if adjoint { view.transpose() } else { view }, self.scale, self.space.clone());
        with_view!(view, a => {
            // A small matrix has a small buffer, and little to gain.
            let counted = buffer == 0 || buffer * size_of::<T>() >= product_as_stored_bytes::<T>(y.nrows(), x.ncols());
            if !counted || !wins::<_, T>(a, scale, x.ncols()) {
                return Ok(false);
            }
            self.begin_pass()?;
            space.free_scratch();
            product_as_stored(a, scale, x, y, &space, &mut space.buffer::<T>(buffer));
        });
        Ok(true)
    }

    /// Calls `f(first_row, rows of A as T)` for the whole matrix at once, or tile by tile in order.
    fn for_each_tile(&mut self, pass: Pass, mut f: impl FnMut(usize, MatRef<'_, T>, Par)) -> Result<()> {
        self.begin_pass()?;
        let par = self.space.par();
        match &self.data {
            Data::Direct(a) => f(0, *a, par),
            Data::Tiled(view) => {
                let (m, n) = (view.nrows(), view.ncols());
                let tile_rows = tile_rows(pass, (m, n), view.dtype() == T::DTYPE);
                self.space.free_scratch();
                let mut tile = self.space.buffer::<T>(tile_rows * n);
                for first in (0..m).step_by(tile_rows) {
                    let rows = tile_rows.min(m - first);
                    let buffer = &mut tile[..rows * n];
                    f(first, convert_tile(view.subrows(first, rows), buffer, self.scale, par), par);
                }
            }
        }
        Ok(())
    }
}

/// What the tiles of a pass are used for.
#[derive(Debug, Clone, Copy)]
pub enum Pass {
    /// A product with a panel of this many columns.
    Product(usize),
    /// The Gram matrix, or a copy.
    Whole,
    /// Blocks of rows that are passed to a function.
    Rows,
}

/// Returns the rows of a tile of an `m × n` matrix. `scaled_only` bounds the tile to a quarter of what a panel of the
/// pass takes, which is the room that there is.
fn tile_rows(pass: Pass, (m, n): (usize, usize), scaled_only: bool) -> usize {
    let most = TileParams::default().rows(m, n);
    match pass {
        Pass::Rows if !scaled_only => most.div_ceil(2),
        _ if !scaled_only => most,
        Pass::Product(l) => (m * l / (4 * n)).clamp(32.min(most), most),
        Pass::Whole => (n / 16).clamp(64.min(most), most),
        Pass::Rows => most.min(64),
    }
}

/// Makes the symmetric Gram matrix of which `g` has the lower triangle.
pub(super) fn gram_of<T: Scalar>(mut g: HostPanel<T>, space: &Host, watch: &Watch<'_>) -> Result<Symmetric<T, Host>> {
    mirror(g.as_mut());
    Ok(Symmetric::new(space, g)?.watched(watch))
}

/// Converts a tile into `buffer`, in the orientation of the storage, and returns it as a matrix.
pub(super) fn convert_tile<'b, T: Scalar>(
    view: MatView<'_>,
    buffer: &'b mut [T],
    scale: f64,
    par: Par,
) -> MatRef<'b, T> {
    let (m, n) = (view.nrows(), view.ncols());
    with_view!(view, a => {
        // Lines are contiguous in storage: rows, or columns of a transposed view.
        let by_rows = is_by_rows(a);
        let lines = if by_rows { a } else { a.transpose() };
        let width = lines.ncols();
        for_each_line(buffer, width, par, |i, dst| convert_line(lines, i, dst, scale));
        if by_rows {
            MatRef::from_row_major_slice(buffer, m, n)
        } else {
            MatRef::from_column_major_slice(buffer, m, n)
        }
    })
}

/// The distance, in lines, between the line that is converted and the one that is prefetched. Parts of lines, some KiB
/// each, lie in pages far apart, which no hardware prefetcher foresees (`benches/NOTES.md`).
const LINES_AHEAD: usize = 4;

/// Converts row `i` of `lines` into `dst`, multiplied by `scale`.
fn convert_line<E: Element, T: Scalar>(lines: MatRef<'_, E>, i: usize, dst: &mut [T], scale: f64) {
    match Cow::from(Line(lines, i)) {
        Cow::Borrowed(src) => {
            let next = i + LINES_AHEAD;
            let next = if next < lines.nrows() { lines.row(next).try_as_row_major() } else { None };
            convert_before(src, next.map_or(&[], |row| row.as_slice()), dst, scale);
        }
        Cow::Owned(src) => convert(&src, dst, scale),
    }
}

/// A row of a matrix: the matrix, and the number of the row.
struct Line<'a, E>(MatRef<'a, E>, usize);

impl<'a, E: Element> From<Line<'a, E>> for Cow<'a, [E]> {
    /// Borrows a contiguous row, and gathers any other.
    fn from(Line(a, i): Line<'a, E>) -> Self {
        match a.row(i).try_as_row_major() {
            Some(row) => Cow::Borrowed(row.as_slice()),
            None => Cow::Owned((0..a.ncols()).map(|j| a[(i, j)]).collect()),
        }
    }
}

/// The result of one look at all elements.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scan {
    pub(super) largest: f64,
    pub(super) norm_squared: f64,
}

impl Scan {
    pub(super) fn merge(self, other: Scan) -> Scan {
        Scan { largest: self.largest.max(other.largest), norm_squared: self.norm_squared + other.norm_squared }
    }
}

/// Scans `view` once: refuses what is not finite, and returns `max |a|` and `‖A‖_F²`.
pub(super) fn scan(view: MatView<'_>, par: Par) -> Result<Scan> {
    let total = with_view!(view, a => {
        let lines = if is_by_rows(a) { a } else { a.transpose() };
        reduce_chunks(lines, par, Statistics::default(), |rows| statistics_of_rows(lines, rows), Statistics::merge)
    });
    if !total.finite {
        return Err(first_not_finite(view));
    }
    Ok(Scan { largest: total.largest, norm_squared: total.sum_squares })
}

/// Computes `‖scale · A‖_F²`.
pub(crate) fn scaled_norm_squared(view: MatView<'_>, scale: f64, par: Par) -> f64 {
    let sum = |line: &[f64]| line.iter().map(|x| x * scale).map(|x| x * x).sum::<f64>();
    with_view!(view, a => {
        let lines = if is_by_rows(a) { a } else { a.transpose() };
        let part = |rows: Range<usize>| {
            let line = |i| lines.row(i).iter().map(|x| (*x).to_f64()).collect::<Vec<_>>();
            rows.map(|i| sum(&line(i))).sum::<f64>()
        };
        reduce_chunks(lines, par, 0.0, part, |a, b| a + b)
    })
}

/// Computes the statistics of some rows.
fn statistics_of_rows<E: Element>(a: MatRef<'_, E>, rows: Range<usize>) -> Statistics {
    if a.col_stride() == 1 {
        let row = |i| a.row(i).try_as_row_major().expect("unit stride").as_slice();
        return statistics_of_lines(rows.map(row));
    }
    rows.map(|i| statistics(&Cow::from(Line(a, i)))).fold(Statistics::default(), Statistics::merge)
}

/// Computes `f` of chunks of rows and merges the results in order. Chunks depend on the shape alone, so that the result
/// does not depend on the number of threads.
fn reduce_chunks<E: Element, R: Send>(
    a: MatRef<'_, E>,
    par: Par,
    zero: R,
    f: impl Fn(Range<usize>) -> R + Sync,
    merge: impl Fn(R, R) -> R,
) -> R {
    let rows = (1usize << 16).div_ceil(a.ncols());
    let part = |c: usize| f(c * rows..((c + 1) * rows).min(a.nrows()));
    let chunks = a.nrows().div_ceil(rows);
    parallel::map(par, chunks, part).into_iter().fold(zero, merge)
}

/// Finds the position of the first NaN or infinity in row-major order. It must only be called when there is one.
#[cold]
pub(crate) fn first_not_finite(view: MatView<'_>) -> Error {
    with_view!(view, a => {
        for row in 0..a.nrows() {
            for col in 0..a.ncols() {
                let value = a[(row, col)].to_f64();
                if !value.is_finite() {
                    return Error::NotFinite { row, col, value };
                }
            }
        }
    });
    unreachable!("called after a scan that found a value that is not finite")
}

impl<T: Scalar> LinearOperator<T> for Dense<'_, T> {
    type Space = Host;

    fn space(&self) -> &Host {
        &self.space
    }

    fn facts(&self) -> Facts {
        let by_rows = match &self.data {
            Data::Direct(a) => is_by_rows(*a),
            Data::Tiled(view) => with_view!(*view, a => is_by_rows(a)),
        };
        Facts {
            shape: self.shape(),
            norm_squared: self.norm_squared,
            scale: self.scale,
            passes: self.passes,
            image: if by_rows { Layout::Rows } else { Layout::Columns },
        }
    }

    fn apply(&mut self, x: &HostPanel<T>, y: &mut HostPanel<T>) -> Result<()> {
        if self.multiply_as_stored(false, x.as_ref(), y.as_mut())? {
            return Ok(());
        }
        let space = self.space.clone();
        self.for_each_tile(Pass::Product(x.ncols()), |first, a, _| {
            product(Accum::Replace, a, x.as_ref(), y.as_mut().subrows_mut(first, a.nrows()), &space);
        })
    }

    fn apply_adjoint(&mut self, y: &HostPanel<T>, x: &mut HostPanel<T>) -> Result<()> {
        if self.multiply_as_stored(true, y.as_ref(), x.as_mut())? {
            return Ok(());
        }
        let space = self.space.clone();
        self.for_each_tile(Pass::Product(y.ncols()), |first, a, _| {
            let accum = if first == 0 { Accum::Replace } else { Accum::Add };
            product(accum, a.transpose(), y.as_ref().subrows(first, a.nrows()), x.as_mut(), &space);
        })
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut HostPanel<T>) -> Result<()> {
        // The sketches widen by themselves, so that a tiled matrix is read once here, too.
        self.begin_pass()?;
        let par = self.space.par();
        match &self.data {
            Data::Direct(a) => omega.apply(*a, y.as_mut(), par),
            Data::Tiled(view) => {
                let n = view.ncols();
                with_view!(*view, a => omega.apply_rows(0..n, a, self.scale, Accum::Replace, y.as_mut(), par))
            }
        }
    }

    fn gram(&mut self) -> Result<Symmetric<T, Host>> {
        let g = self.gram_lower()?;
        gram_of(g, &self.space, &self.watch)
    }

    fn congruence(&mut self, s: &HostPanel<T>, g: &mut HostPanel<T>) -> Result<()> {
        let space = self.space.clone();
        if let Data::Tiled(_) = self.data {
            let (m, n) = self.shape();
            let mut whole = HostPanel::zeros(m, n, &space);
            self.materialize(&mut whole)?;
            congruence(s.as_ref(), whole.as_ref(), false, g.as_mut(), &space);
            return Ok(());
        }
        self.for_each_tile(Pass::Whole, |_, a, _| congruence(s.as_ref(), a, false, g.as_mut(), &space))
    }

    fn materialize(&mut self, y: &mut HostPanel<T>) -> Result<()> {
        self.for_each_tile(Pass::Whole, |first, a, _| y.as_mut().subrows_mut(first, a.nrows()).copy_from(a))
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        self.for_each_tile(Pass::Rows, |first, rows, _| {
            if result.is_ok() {
                result = f(first, rows);
            }
        })?;
        result
    }
}
