//! Products of a matrix as it is stored with a panel: `Y = [Y +] scale · A X`, A m × n by rows or by columns, X n × l.
//!
//! ```text
//!   A by rows, m × n                              A by columns: the same picture for Yᵀ = Xᵀ Aᵀ
//!
//!            depth                 X block, packed           Aᵀ block, packed: depth × group
//!          ┌───────┬─────        ┌───┬───┬───┐                 ┌───┬───┬───┐
//!    strip │░░░░░░░│        ×    │   │   │   │ depth     Xᵀ    │   │   │   │  next block: packed and
//!          ├───────┤             └───┴───┴───┘        l × depth└───┴───┴───┘  prefetched meanwhile
//!          │ next  │ packed and     panels, L2
//!          │       │ prefetched meanwhile, L1
//! ```
//!
//! **Cost.** `2 m n l` flops; A is read from memory once, in its own type. A core of 16 multiply-adds in a cycle takes
//! l / 16 cycles for an element: in f32 it asks memory for a byte in a cycle at l = 64, which is less than memory
//! gives, and for 4 at l = 16, which is about as much.
//!
//! **Source.** K. Goto, R. van de Geijn, Anatomy of high-performance matrix multiplication, 2008.
//!
//! **Why this way.** A thin product has no time in which to pack A and wait for memory: the lines of the next block are
//! prefetched between the multiply-adds of this one (`simd/tile.rs`), and packed, which widens them, between its tiles,
//! some at a time. A block that is fetched at once falls into few sets of the caches where lines are pages apart.
//! `Aᵀ Y` is the product with the transposed view. Figures: `benches/NOTES.md`.

use std::ops::{DerefMut, Range};

use faer::prelude::ReborrowMut as _;
use faer::{Accum, ColRef, MatMut, MatRef, Par};

use super::blocks::threads;
use crate::parallel::{self, row_blocks};
use crate::simd::load::{load_in_panels, load_scaled, write};
use crate::simd::tile::{Ahead, MAX_DEPTH, MAX_DIRECT_ROWS, STEP, Shape, WIDTH, max_rows, multiply_tile};
use crate::simd::transpose::{MAX_SIDE, transpose_square};
use crate::simd::{Kernel, Lanes, Scalar, dispatch, isa};
use crate::tensor::{DType, Element};

/// Sizes of the blocks, and where they win.
struct Params {
    /// The most bytes of a packed strip of rows: half of L1.
    strip_bytes: usize,
    /// The bytes of a row of a block of a matrix by columns. With `group_bytes` it makes a block of 128 KiB in f32, and
    /// two of them stay in L2 with the panel.
    depth_bytes: usize,
    /// The bytes of a column of such a block, which are read in one run.
    group_bytes: usize,
    /// The columns of a panel for which the kernel is meant.
    columns: Range<usize>,
    /// The bytes of a matrix by columns, of the type of the arithmetic, from which on this is faster than the GEMM that
    /// packs all of it first. A smaller one stays in L2 and L3.
    least_bytes: usize,
    /// The least rows and columns of such a matrix: the panels of a smaller one take less memory than the scratch.
    least_side: usize,
}

/// The sizes that the bench `products` found fastest.
const PARAMS: Params = Params {
    strip_bytes: 16 << 10,
    depth_bytes: 1024,
    group_bytes: 512,
    columns: 8..257,
    least_bytes: 6 << 20,
    least_side: 512,
};

/// Returns the most columns of a block of a matrix by rows, for strips of `rows` rows.
const fn strip_depth<T>(rows: usize) -> usize {
    let depth = PARAMS.strip_bytes / size_of::<T>() / rows / 64 * 64;
    if depth < MAX_DEPTH { depth } else { MAX_DEPTH }
}

/// Returns the columns and rows of a block of a matrix by columns.
const fn block_shape<T>() -> (usize, usize) {
    (PARAMS.depth_bytes / size_of::<T>(), PARAMS.group_bytes / size_of::<T>())
}

/// Returns the elements of scratch that a product of `rows` rows takes on one thread.
pub(crate) fn panel_scratch<T: Scalar>(rows: usize, l: usize) -> usize {
    let ((depth, group), padded) = (block_shape::<T>(), |n: usize| n.next_multiple_of(MAX_SIDE));
    let by_rows = padded(l) * (rows + strip_depth::<T>(MAX_DIRECT_ROWS)) + 2 * MAX_SIDE * STEP;
    let by_columns = l * (padded(rows) + MAX_SIDE + STEP) + 2 * depth * group;
    by_rows.max(by_columns) + LINE / size_of::<T>()
}

/// The bytes of a cache line.
const LINE: usize = 64;

/// Tells whether the kernel multiplies such a matrix: its lines are contiguous, its type is that of the arithmetic or
/// widens to it in a register, and the scale is a number of that arithmetic.
pub(crate) fn takes<E: Element, T: Scalar>(a: MatRef<'_, E>, scale: f64) -> bool {
    let scale = scale.abs();
    widens::<E, T>() && (T::MIN_POSITIVE..=T::MAX).contains(&scale) && (a.col_stride() == 1 || a.row_stride() == 1)
}

/// Tells whether `E` is `T`, or widens to it in a register.
const fn widens<E: Element, T: Scalar>() -> bool {
    E::DTYPE as u8 == T::DTYPE as u8 || (T::DTYPE.size() == 4 && E::DTYPE.size() == 2)
}

/// Tells whether the kernel takes the product and is the fastest way that there is. Halves win everywhere, because
/// their way round is a converted copy.
pub(crate) fn wins<E: Element, T: Scalar>(a: MatRef<'_, E>, scale: f64, l: usize) -> bool {
    let by_columns = a.col_stride() != 1;
    takes::<E, T>(a, scale) && may_win::<T>(a.shape(), E::DTYPE, l) && (by_columns || E::DTYPE != T::DTYPE)
}

/// Tells whether the kernel may [win](wins) the product of an m × n matrix, or its transpose, with l columns.
pub(crate) fn may_win<T: Scalar>((m, n): (usize, usize), storage: DType, l: usize) -> bool {
    let is_large = m * n * size_of::<T>() >= PARAMS.least_bytes && m.min(n) >= PARAMS.least_side;
    PARAMS.columns.contains(&l) && (storage != T::DTYPE || is_large)
}

/// Computes `y <- [y +] scale · a x` in blocks of `rows` rows, each by one thread with a scratch of its own, of
/// [`panel_scratch`] elements of any value.
///
/// # Panics
/// If the kernel does not [take](takes) the matrix.
pub(crate) fn panel_product_in_blocks<E: Element, T: Scalar, B: DerefMut<Target = [T]>>(
    accum: Accum,
    a: MatRef<'_, E>,
    scale: f64,
    x: MatRef<'_, T>,
    y: MatMut<'_, T>,
    (rows, par): (usize, Par),
    scratch: impl Fn(usize) -> B + Sync,
) {
    let (m, l) = y.shape();
    let par = threads(m * l * a.ncols(), par);
    let run = |scratch: &mut B, (first, y): (usize, MatMut<'_, T>)| {
        panel_product(accum, a.subrows(first, y.nrows()), scale, x, y, scratch);
    };
    parallel::for_each_with(par, row_blocks(y, rows), || scratch(panel_scratch::<T>(rows.min(m), l)), run);
}

/// Computes `y <- [y +] scale · a x` on this thread, with a scratch of [`panel_scratch`] elements of any value.
///
/// # Panics
/// If the kernel does not [take](takes) the matrix, shapes do not match, or the scratch is too short.
pub(crate) fn panel_product<E: Element, T: Scalar>(
    accum: Accum,
    a: MatRef<'_, E>,
    scale: f64,
    x: MatRef<'_, T>,
    mut y: MatMut<'_, T>,
    scratch: &mut [T],
) {
    let ((m, n), l) = (a.shape(), x.ncols());
    assert!(takes::<E, T>(a, scale) && x.nrows() == n && y.shape() == (m, l), "a product that the kernel takes");
    let (factor, add) = (T::from_f64(scale), accum == Accum::Add);
    if m == 0 || l == 0 {
        return;
    }
    if n == 0 {
        if !add {
            y.fill(T::zeroed());
        }
        return;
    }
    // No kernel is compiled for other types, because the assertion is known when this is.
    if const { !widens::<E, T>() } {
        return;
    }
    // Registers that straddle two cache lines take two loads.
    let skip = (scratch.as_ptr() as usize).wrapping_neg() % LINE / size_of::<T>();
    let product = Product { a, factor, x, y, add, scratch: &mut scratch[skip..] };
    if a.col_stride() == 1 {
        dispatch(isa(), ByRows(product));
    } else {
        dispatch(isa(), ByColumns(product));
    }
}

/// The arguments of [`panel_product`].
struct Product<'a, E, T> {
    a: MatRef<'a, E>,
    factor: T,
    x: MatRef<'a, T>,
    y: MatMut<'a, T>,
    add: bool,
    scratch: &'a mut [T],
}

/// The product of a matrix whose rows are contiguous: tiles are of rows of A and columns of X.
struct ByRows<'a, E, T>(Product<'a, E, T>);

impl<E: Element, T: Scalar> Kernel for ByRows<'_, E, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Product { a, factor, x, y, add, scratch } = self.0;
        let (lanes, most) = (T::lanes::<S>(), max_rows::<S>());
        let ((m, n), l) = (a.shape(), x.ncols());
        let (padded, wide) = (l.next_multiple_of(lanes), WIDTH * lanes);
        // Few rows are multiplied where they lie; many of them would share one set of L1.
        let direct = E::view(a).typed::<T>().filter(|_| most <= MAX_DIRECT_ROWS && factor == T::from_f64(1.0));
        // Strips of much the same height: a tile of few rows waits for its own sums.
        let (height, depth) = (m.div_ceil(m.div_ceil(most)), strip_depth::<T>(most));
        let (sums, scratch) = scratch.split_at_mut(m * padded);
        let (panels, scratch) = scratch.split_at_mut(depth * padded);
        let (mut now, scratch) = scratch.split_at_mut(most * STEP);
        let mut next = &mut scratch[..most * STEP];
        let mut at = Blocks { shape: (m, n), height, depth, by_rows: true, top: 0, first: 0, line: 0 };
        let mut stream = Stream { a, factor, at, each: height.div_ceil(padded.div_ceil(wide)) };
        if direct.is_none() {
            stream.pack(s, 0..at.lines(), now);
        }
        stream.at.next_block();
        while !at.is_at_end() {
            let (rows, depth) = (at.rows(), at.columns());
            if at.top == 0 {
                for left in (0..padded).step_by(wide) {
                    let width = wide.min(padded - left);
                    let x = x.submatrix(at.first, left, depth, width.min(l - left));
                    pack(s, x, &mut panels[left * depth..], width, width);
                }
            }
            let strip = match direct {
                Some(a) => a.submatrix(at.top, at.first, rows, depth),
                None => MatRef::from_row_major_slice_with_stride(now, rows, depth, STEP),
            };
            for left in (0..padded).step_by(wide) {
                let ahead = stream.step(s, if direct.is_some() { None } else { Some(&mut *next) });
                let shape = Shape { rows, width: wide.min(padded - left) / lanes, depth };
                let y = (&mut sums[at.top * padded + left..], padded);
                multiply_tile(s, shape, strip, &panels[left * depth..], y, at.first > 0, ahead);
            }
            at.next_block();
            stream.at.next_block();
            std::mem::swap(&mut now, &mut next);
        }
        write_out(s, MatRef::from_row_major_slice_with_stride(sums, m, l, padded), y, add);
    }
}

/// The product of a matrix whose columns are contiguous: tiles are of columns of X and rows of A.
struct ByColumns<'a, E, T>(Product<'a, E, T>);

impl<E: Element, T: Scalar> Kernel for ByColumns<'_, E, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Product { a, factor, x, y, add, scratch } = self.0;
        let (lanes, most) = (T::lanes::<S>(), max_rows::<S>());
        let ((m, n), l) = (a.shape(), x.ncols());
        let (tiles, wide) = (l.div_ceil(most), WIDTH * lanes);
        let (whole_depth, group) = block_shape::<T>();
        // Rows of the sums at a multiple of a page would share few sets of the caches.
        let step = m.next_multiple_of(lanes) + MAX_SIDE;
        let (sums, scratch) = scratch.split_at_mut(l * step);
        let (x_rows, scratch) = scratch.split_at_mut(l * STEP);
        let (mut now, scratch) = scratch.split_at_mut(whole_depth * group);
        let mut next = &mut scratch[..whole_depth * group];
        let mut at =
            Blocks { shape: (m, n), height: group, depth: whole_depth, by_rows: false, top: 0, first: 0, line: 0 };
        let mut stream = Stream { a, factor, at, each: 0 };
        stream.pack(s, 0..at.lines(), now);
        stream.at.next_block();
        while !at.is_at_end() {
            let (rows, depth) = (at.rows().next_multiple_of(lanes), at.columns());
            if at.top == 0 {
                pack(s, x.subrows(at.first, depth).transpose(), x_rows, STEP, depth);
            }
            stream.each = whole_depth.div_ceil(rows.div_ceil(wide) * tiles);
            for left in (0..rows).step_by(wide) {
                for tile in 0..tiles {
                    let ahead = stream.step(s, Some(&mut *next));
                    let (from, to) = (tile * l / tiles, (tile + 1) * l / tiles);
                    let x = MatRef::from_row_major_slice_with_stride(&x_rows[from * STEP..], to - from, depth, STEP);
                    let shape = Shape { rows: to - from, width: wide.min(rows - left) / lanes, depth };
                    let y = (&mut sums[from * step + at.top + left..], step);
                    multiply_tile(s, shape, x, &now[left * depth..], y, at.first > 0, ahead);
                }
            }
            at.next_block();
            stream.at.next_block();
            std::mem::swap(&mut now, &mut next);
        }
        write_out(s, MatRef::from_row_major_slice_with_stride(sums, l, m, step), y.transpose_mut(), add);
    }
}

/// The blocks of a matrix in the order in which they are multiplied: down the rows, then along the depth.
#[derive(Clone, Copy)]
struct Blocks {
    /// The rows and columns of the matrix.
    shape: (usize, usize),
    /// The rows and columns of a whole block.
    height: usize,
    depth: usize,
    /// Whether its contiguous lines are rows.
    by_rows: bool,
    /// The first row and column of this block.
    top: usize,
    first: usize,
    /// The number of a line within the block.
    line: usize,
}

impl Blocks {
    #[inline(always)]
    fn rows(&self) -> usize {
        self.height.min(self.shape.0 - self.top)
    }

    #[inline(always)]
    fn columns(&self) -> usize {
        self.depth.min(self.shape.1 - self.first)
    }

    /// Returns the number of contiguous lines of the block.
    #[inline(always)]
    fn lines(&self) -> usize {
        if self.by_rows { self.rows() } else { self.columns() }
    }

    #[inline(always)]
    fn is_at_end(&self) -> bool {
        self.first >= self.shape.1
    }

    #[inline(always)]
    fn next_block(&mut self) {
        self.line = 0;
        self.top += self.height;
        if self.top >= self.shape.0 {
            (self.top, self.first) = (0, self.first + self.depth);
        }
    }
}

/// A matrix that is packed block by block, some lines in each step.
struct Stream<'a, E, T> {
    a: MatRef<'a, E>,
    factor: T,
    /// The line that is packed next.
    at: Blocks,
    /// The number of lines of a step.
    each: usize,
}

impl<E: Element, T: Scalar> Stream<'_, E, T> {
    /// Packs the lines of a step into `dst`, if there is one, and returns those of the next step, to be prefetched.
    #[inline(always)]
    fn step<S: Lanes>(&mut self, s: S, dst: Option<&mut [T]>) -> Ahead {
        let mut to = self.at;
        if !to.is_at_end() {
            let end = (to.line + self.each).min(to.lines());
            if let Some(dst) = dst {
                self.pack(s, to.line..end, dst);
            }
            self.at.line = end;
            to.line = end;
            if end == to.lines() {
                to.next_block();
            }
        }
        if to.is_at_end() {
            return Ahead { at: self.a.as_ptr().cast(), step: 0, lines: 0, count: 0 };
        }
        let (i, j, length, step) = if to.by_rows {
            (to.top + to.line, to.first, to.columns(), self.a.row_stride())
        } else {
            (to.top, to.first + to.line, to.rows(), self.a.col_stride())
        };
        let offset = i as isize * self.a.row_stride() + j as isize * self.a.col_stride();
        let size = size_of::<E>();
        Ahead {
            at: self.a.as_ptr().wrapping_offset(offset).cast(),
            step: step * size as isize,
            lines: (length * size).div_ceil(LINE),
            count: self.each.min(to.lines() - to.line),
        }
    }

    /// Packs some lines of the block into `dst`.
    #[inline(always)]
    fn pack<S: Lanes>(&self, s: S, lines: Range<usize>, dst: &mut [T]) {
        let Blocks { top, first, by_rows, .. } = self.at;
        let (rows, columns, lanes) = (self.at.rows(), self.at.columns(), T::lanes::<S>());
        for i in lines {
            if by_rows {
                let row = line(self.a.row(top + i).transpose());
                load_scaled(s, &row[first..][..columns], self.factor, &mut dst[i * STEP..][..columns], false);
                continue;
            }
            let (column, wide) = (&line(self.a.col(first + i))[top..][..rows], WIDTH * lanes);
            let (whole, rest) = column.split_at(rows - rows % wide);
            load_in_panels::<WIDTH, S, E, T>(s, whole, self.factor, &mut dst[i * wide..], columns * wide);
            if !rest.is_empty() {
                // The last panel may be narrower.
                let at = whole.len() * columns + i * rest.len().next_multiple_of(lanes);
                load_in_panels::<WIDTH, S, E, T>(s, rest, self.factor, &mut dst[at..], wide);
            }
        }
    }
}

/// Returns a contiguous line as a slice.
#[inline(always)]
fn line<E>(a: ColRef<'_, E>) -> &[E] {
    a.try_as_col_major().expect("a contiguous line").as_slice()
}

/// Packs a part of a panel: `dst[k·step + j] = x(k, j)`, and zeros from its last column to `width`.
#[inline(always)]
fn pack<S: Lanes, T: Scalar>(s: S, x: MatRef<'_, T>, dst: &mut [T], step: usize, width: usize) {
    let ((depth, l), lanes) = (x.shape(), T::lanes::<S>());
    let (mut squares_down, mut squares_along) = (0, 0);
    if x.col_stride() == 1 {
        for k in 0..depth {
            dst[k * step..][..l].copy_from_slice(line(x.row(k).transpose()));
        }
        squares_down = depth;
        squares_along = l;
    } else if x.row_stride() == 1 {
        (squares_down, squares_along) = (depth - depth % lanes, l - l % lanes);
        for k in (0..squares_down).step_by(lanes) {
            for j in (0..squares_along).step_by(lanes) {
                let square = x.submatrix(k, j, lanes, lanes).transpose();
                transpose_square(s, square, T::from_f64(1.0), &mut dst[k * step + j..], step);
            }
        }
    }
    for k in 0..depth {
        let done = if k < squares_down { squares_along } else { 0 };
        for j in done..l {
            dst[k * step + j] = x[(k, j)];
        }
        dst[k * step + l..k * step + width].fill(T::zeroed());
    }
}

/// Computes `y <- [y +] sums` for sums by rows.
#[inline(always)]
fn write_out<S: Lanes, T: Scalar>(s: S, sums: MatRef<'_, T>, mut y: MatMut<'_, T>, add: bool) {
    let (m, l) = sums.shape();
    if y.col_stride() == 1 {
        for i in 0..m {
            let to = y.rb_mut().row_mut(i).transpose_mut().try_as_col_major_mut().expect("a contiguous line");
            write(s, line(sums.row(i).transpose()), to.as_slice_mut(), add);
        }
        return;
    }
    // Both the lines that are read and those that are written stay in L1.
    for top in (0..m).step_by(MAX_SIDE) {
        let rows = MAX_SIDE.min(m - top);
        for j in 0..l {
            let from = sums.col(j).subrows(top, rows);
            let to = y.rb_mut().col_mut(j).subrows_mut(top, rows);
            for (to, &x) in to.iter_mut().zip(from.iter()) {
                *to = if add { *to + x } else { x };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::simd::{Isa, latest_isa, with_isa};

    /// A number between −1 and 1 of 8 bits, which every element type holds.
    fn entry(seed: usize, i: usize, j: usize) -> f64 {
        let mix = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (j + 7 * seed + 1).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mix ^ (mix >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 56) as f64 / 128.0 - 1.0
    }

    /// The ways in which a matrix lies in memory: lines apart, some of them backwards.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Lies {
        Rows,
        Columns,
        /// By rows, from the last to the first.
        RowsBackwards,
        /// By columns, from the last to the first.
        ColumnsBackwards,
        /// By rows, each of them backwards.
        Backwards,
        /// By columns, each of them backwards.
        Upwards,
    }
    use Lies::*;
    const ALL: [Lies; 6] = [Rows, Columns, RowsBackwards, ColumnsBackwards, Backwards, Upwards];

    fn view<E: Element>(data: &mut [E], m: usize, n: usize, lies: Lies) -> MatMut<'_, E> {
        let by_rows = |data| MatMut::from_column_major_slice_with_stride_mut(data, n, m, n + 3).transpose_mut();
        let by_columns = |data| MatMut::from_column_major_slice_with_stride_mut(data, m, n, m + 2);
        match lies {
            Rows => by_rows(data),
            Columns => by_columns(data),
            RowsBackwards => by_rows(data).reverse_rows_mut(),
            ColumnsBackwards => by_columns(data).reverse_cols_mut(),
            Backwards => by_rows(data).reverse_cols_mut(),
            Upwards => by_columns(data).reverse_rows_mut(),
        }
    }

    /// Makes the memory of a matrix, all NaN, and writes its elements.
    fn stored<E: Element>(m: usize, n: usize, lies: Lies, f: impl Fn(usize, usize) -> f64) -> Vec<E> {
        let mut data = vec![E::from_f64(f64::NAN); (m + 3) * (n + 3)];
        let mut a = view(&mut data, m, n, lies);
        for i in 0..m {
            for j in 0..n {
                a[(i, j)] = E::from_f64(f(i, j));
            }
        }
        data
    }

    /// Checks a product against its definition, which is exact in f64 but for the last rounding: entries are multiples
    /// of 2^-7, so that sums of up to 2^38 products are exact there. Here a sum of n products and the scale takes n + 3
    /// roundings at most, each of an amount that `Σ |a x|` and `|y|` bound.
    fn check<E: Element, T: Scalar>((m, n, l): (usize, usize, usize), lies: [Lies; 3], scale: f64, add: bool) {
        let what = format!("{m}×{n}×{l} {lies:?} {scale} {add} {} {}", E::DTYPE, isa());
        let mut a = stored::<E>(m, n, lies[0], |i, j| entry(1, i, j));
        let mut x = stored::<T>(n, l, lies[1], |i, j| entry(2, i, j));
        let start = |i, j| if add { entry(3, i, j) } else { f64::NAN };
        let mut y = stored::<T>(m, l, lies[2], start);
        let a = view(&mut a, m, n, lies[0]);
        let x = view(&mut x, n, l, lies[1]);
        let mut scratch = vec![T::from_f64(f64::NAN); panel_scratch::<T>(m, l)];
        let accum = if add { Accum::Add } else { Accum::Replace };
        panel_product(accum, a.as_ref(), scale, x.as_ref(), view(&mut y, m, l, lies[2]), &mut scratch);
        let written = y.iter().filter(|&&x| !Element::to_f64(x).is_nan()).count();
        assert_eq!(written, m * l, "{what}: something beside y");
        let y = view(&mut y, m, l, lies[2]);
        for i in 0..m {
            for j in 0..l {
                let before = if add { entry(3, i, j) } else { 0.0 };
                let (mut want, mut size) = (before, before.abs());
                for k in 0..n {
                    let product = scale * entry(1, i, k) * entry(2, k, j);
                    (want, size) = (want + product, size + product.abs());
                }
                let off = (Element::to_f64(y[(i, j)]) - want).abs();
                assert!(off <= (n + 3) as f64 * T::EPSILON / 2.0 * size, "{what}: ({i}, {j}) is off by {off:e}");
            }
        }
    }

    fn on_every_isa(f: impl Fn()) {
        for forced in Isa::available() {
            with_isa(forced, || {
                f();
                assert_eq!(latest_isa(), Some(forced), "another path ran");
            });
        }
    }

    fn check_types(shape: (usize, usize, usize), lies: [Lies; 3], scale: f64, add: bool) {
        check::<f16, f32>(shape, lies, scale, add);
        check::<bf16, f32>(shape, lies, scale, add);
        check::<f32, f32>(shape, lies, scale, add);
        check::<f64, f64>(shape, lies, scale, add);
    }

    #[test]
    fn products_are_those_of_the_definition() {
        // Rows and columns around registers, tiles of 6 and 14, panels and groups; depths around blocks.
        let sizes = [1, 2, 5, 6, 7, 13, 14, 15, 16, 17, 31, 32, 33, 47, 64, 65];
        on_every_isa(|| {
            for (i, &m) in sizes.iter().enumerate() {
                for (j, &l) in sizes.iter().enumerate() {
                    let lies = [ALL[(i + j) % 4], ALL[(i + 2 * j) % 6], ALL[(2 * i + j) % 6]];
                    check_types((m, 1 + (7 * i + 3 * j) % 23, l), lies, 1.0, (i + j) % 3 == 0);
                }
            }
            for (i, n) in [127, 128, 129, 255, 256, 257, 511, 512, 513, 1031].into_iter().enumerate() {
                let m = [127, 128, 129, 131, 97][i % 5];
                check_types((m, n, [8, 9, 23][i % 3]), [ALL[i % 4], Columns, ALL[(i + 3) % 6]], 1.0, i % 2 == 0);
            }
        });
    }

    #[test]
    fn every_layout_meets_every_other() {
        on_every_isa(|| {
            for a in &ALL[..4] {
                for x in ALL {
                    for y in ALL {
                        check_types((35, 19, 21), [*a, x, y], 1.0, y == Rows);
                    }
                }
            }
        });
    }

    #[test]
    fn a_scale_multiplies_every_element() {
        on_every_isa(|| {
            for scale in [0.5, -2.0, 2f64.powi(100), 2f64.powi(-100)] {
                check_types((19, 33, 17), [Rows, Columns, Rows], scale, false);
                check_types((19, 33, 17), [Columns, Rows, Columns], scale, true);
            }
        });
    }

    #[test]
    fn empty_products_are_zero_or_leave_the_sum() {
        for (m, n, l) in [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)] {
            for lies in [Rows, Columns] {
                for add in [false, true] {
                    check::<f32, f32>((m, n, l), [lies; 3], 1.0, add);
                }
            }
        }
    }

    #[test]
    fn other_layouts_types_and_scales_are_refused() {
        let mut data = vec![0f32; 100];
        for (lies, taken) in ALL.into_iter().zip([true, true, true, true, false, false]) {
            assert_eq!(takes::<f32, f32>(view(&mut data, 4, 5, lies).as_ref(), 1.0), taken, "{lies:?}");
        }
        let a = view(&mut data, 4, 5, Rows);
        for (scale, taken) in [(1e-300, false), (1e300, false), (0.0, false), (f64::NAN, false), (1e-30, true)] {
            assert_eq!(takes::<f32, f32>(a.as_ref(), scale), taken, "{scale}");
        }
        assert!(!takes::<f32, f64>(a.as_ref(), 1.0) && !wins::<f32, f32>(a.as_ref(), 1.0, 64));
        assert!(!takes::<f16, f64>(view(&mut [f16::ZERO; 100], 4, 5, Rows).as_ref(), 1.0));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (m, n, l) = (900, 300, 40);
        for lies in [Rows, Columns] {
            let mut a = stored::<bf16>(m, n, lies, |i, j| entry(1, i, j) / 3.0);
            let mut x = stored::<f32>(n, l, Columns, |i, j| entry(2, i, j) / 7.0);
            let (a, x) = (view(&mut a, m, n, lies), view(&mut x, n, l, Columns));
            let mut results = Vec::new();
            for threads in [0, 1, 2, 3] {
                let mut y = stored::<f32>(m, l, lies, |_, _| f64::NAN);
                let scratch = |len| vec![f32::NAN; len];
                {
                    let y = std::sync::Mutex::new(Some(view(&mut y, m, l, lies)));
                    let multiply = |par| {
                        let y = parallel::lock(&y).take().expect("one call");
                        panel_product_in_blocks(Accum::Replace, a.as_ref(), 1.0, x.as_ref(), y, (96, par), scratch);
                    };
                    match threads {
                        0 => multiply(Par::Seq),
                        _ => parallel::in_new_pool(threads, &|| multiply(Par::rayon(threads))),
                    }
                }
                results.push(y.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            }
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{lies:?}");
        }
    }
}
