//! The sparse sign embedding: each row of `Ω` has ζ entries `±1/√ζ`.
//!
//! ```text
//!   tile: A[W rows, depth columns]ᵀ, in L1      sums: l × W
//!     j   [a a a a ...]  ──┐
//!     j'  [a a a a ...]     ├─ × ±1, + ──► row c   for each column c of Y: the nonzeros of column c of these rows of Ω
//!     …                  ──┘
//! ```
//! `y(i, c) += ± a(i, j)` along a row of `Y` is a scatter, which vector units do badly; along a column it is a vector
//! addition. So `A` goes through cache in tiles of a few rows, transposed on the way, and a nonzero of `Ω` costs one
//! vector multiply-add by ±1 for each register of rows. The nonzeros are taken by columns of `Ω`, so that a sum stays
//! in registers, and columns by their number of nonzeros, so that branches are foreseen. Columns of `Y` get their sums
//! during the last tile. Meanwhile the next tile is prefetched.
//!
//! The nonzeros of a block of rows of `Ω` are regenerated once per call, sorted, and shared by all threads. Their
//! positions are drawn by Floyd's algorithm (SASO): ζ words give a uniform ζ-subset of the columns, off by at most `l
//! 2^-32`.
//!
//! Cost: `m n ζ` additions, `A` read once; state O(1). Figures and lost experiments: `benches/NOTES.md`.
//!
//! Sources: SASO: J. A. Tropp, A. Yurtsever, M. Udell, V. Cevher, Streaming low-rank matrix approximation, 2019.
//! SparseStack, ζ CountSketches side by side: C. Camaño, E. N. Epperly, R. A. Meyer, J. A. Tropp, arXiv 2508.21189.

use std::ops::Range;

use faer::prelude::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};

use super::{
    Layout, Lines, Product, ROW_BITS, SketchOperator, Source, check_size, check_stream, for_row_chunks, store,
};
use crate::error::{Error, Result};
use crate::parallel;
use crate::rng::{Philox, stream};
use crate::simd::load::{add_lines, write};
use crate::simd::transpose::{MAX_SIDE, transpose_square};
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::Element;

/// An n×l matrix with ζ entries `±1/√ζ` in each row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseSign {
    n: usize,
    l: usize,
    zeta: usize,
    stacked: bool,
    seed: u64,
    stream: u64,
}

/// Tuning constants, chosen by the bench `sketch`.
struct Params {
    /// Rows of `Ω` whose nonzeros are held at a time.
    rows: usize,
    /// Columns of `A` in a tile.
    depth: usize,
    /// Bytes of a line of a tile.
    width_bytes: usize,
}
const PARAMS: Params = Params { rows: 4096, depth: 128, width_bytes: 256 };

impl SparseSign {
    /// Makes an n×l embedding whose rows have `zeta` distinct columns each, uniformly drawn, with independent signs
    /// (SASO). For a rank `k`, `zeta = 8` and `l >= 2k` do well.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) if `n` or `l` is 0; [`Option`](Error::Option) unless `1 <= zeta <= l`;
    /// [`TooLarge`](Error::TooLarge) if `n >= 2^40` or `l >= 2^24`.
    pub fn new(n: usize, l: usize, zeta: usize, seed: u64) -> Result<Self> {
        check_size(n, l)?;
        if zeta == 0 || zeta > l {
            return Err(Error::option("zeta", zeta, "a number of nonzeros from 1 to l"));
        }
        Ok(SparseSign { n, l, zeta, stacked: false, seed, stream: 0 })
    }

    /// Makes an n×l embedding whose rows have one column in each of `zeta` groups of `l/zeta` columns, drawn
    /// independently (SparseStack). `zeta = 4` does well. The groups differ by one column if `zeta` does not divide
    /// `l`.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) if `n` or `l` is 0; [`Option`](Error::Option) unless `1 <= zeta <= l`;
    /// [`TooLarge`](Error::TooLarge) if `n >= 2^40` or `l >= 2^24`.
    #[doc(hidden)]
    pub fn stacked(n: usize, l: usize, zeta: usize, seed: u64) -> Result<Self> {
        Ok(SparseSign { stacked: true, ..SparseSign::new(n, l, zeta, seed)? })
    }

    /// Returns the sketch of the same shape and seed whose random numbers come from another stream.
    ///
    /// # Errors
    /// [`Option`](Error::Option) if `stream >= 2^56`.
    #[doc(hidden)]
    pub fn with_stream(self, stream: u64) -> Result<Self> {
        check_stream(stream)?;
        Ok(SparseSign { stream, ..self })
    }

    /// The number of nonzeros in a row of `Ω`, ζ.
    #[doc(hidden)]
    pub fn zeta(&self) -> usize {
        self.zeta
    }

    /// Returns the column of nonzero `t` of a row, from its random word and the columns of nonzeros `0..t`, in
    /// `before`.
    fn column(&self, t: usize, word: u32, before: impl Iterator<Item = u32>) -> u32 {
        let scaled = |bound: usize| ((u64::from(word) * bound as u64) >> 32) as u32;
        if self.stacked {
            let (lo, hi) = (t * self.l / self.zeta, (t + 1) * self.l / self.zeta);
            return lo as u32 + scaled(hi - lo);
        }
        let top = self.l - self.zeta + t;
        let c = scaled(top + 1);
        let mut taken = false;
        before.for_each(|b| taken |= b == c);
        if taken { top as u32 } else { c }
    }

    /// Returns all nonzeros, for the kernels of a device: ζ for each row of `Ω`, as `column << 1 | minus`.
    #[cfg(feature = "cuda")]
    pub(crate) fn table(&self) -> Vec<u32> {
        let mut table = vec![0; self.n * self.zeta];
        for (i, block) in table.chunks_mut(PARAMS.depth * self.zeta).enumerate() {
            self.nonzeros(i * PARAMS.depth, block);
        }
        table
    }

    /// Returns the generators of the positions and of the signs.
    fn generators(&self) -> (Philox, Philox) {
        (
            Philox::new(self.seed, stream::SPARSE_POSITIONS | self.stream),
            Philox::new(self.seed, stream::SPARSE_SIGNS | self.stream),
        )
    }

    /// Fills `table` with the nonzeros of the rows of `Ω` from `first` on, at most `depth` of them: ζ for each row, as
    /// `column << 1 | minus`.
    fn nonzeros(&self, first: usize, table: &mut [u32]) {
        let (positions, signs) = self.generators();
        let rows = table.len() / self.zeta;
        let mut words = [[0u32; PARAMS.depth]; 4];
        let mut draw = |rng: Philox, block: usize| {
            let [a, b, c, d] = &mut words;
            let index = (block as u64) << ROW_BITS | first as u64;
            rng.planes(index, [&mut a[..rows], &mut b[..rows], &mut c[..rows], &mut d[..rows]]);
            words
        };
        for t4 in 0..self.zeta.div_ceil(4) {
            let words = draw(positions, t4);
            for (j, row) in table.chunks_exact_mut(self.zeta).enumerate() {
                for t in 4 * t4..self.zeta.min(4 * t4 + 4) {
                    row[t] = self.column(t, words[t % 4][j], row[..t].iter().copied());
                }
            }
        }
        for t128 in 0..self.zeta.div_ceil(128) {
            let words = draw(signs, t128);
            for (j, row) in table.chunks_exact_mut(self.zeta).enumerate() {
                for t in 128 * t128..self.zeta.min(128 * t128 + 128) {
                    row[t] = row[t] << 1 | words[t % 128 / 32][j] >> (t % 32) & 1;
                }
            }
        }
    }
}

impl SketchOperator for SparseSign {
    fn nrows(&self) -> usize {
        self.n
    }

    fn ncols(&self) -> usize {
        self.l
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>()
    }

    fn entry(&self, i: usize, j: usize) -> f64 {
        assert!(i < self.n && j < self.l, "entry ({i}, {j}) of {}×{}", self.n, self.l);
        let (positions, signs) = self.generators();
        let index = |block: usize| (block as u64) << ROW_BITS | i as u64;
        let mut columns = Vec::with_capacity(self.zeta);
        for t in 0..self.zeta {
            let c = self.column(t, positions.block(index(t / 4))[t % 4], columns.iter().copied());
            columns.push(c);
        }
        let Some(t) = columns.iter().position(|&c| c as usize == j) else { return 0.0 };
        let c = 1.0 / (self.zeta as f64).sqrt();
        if signs.block(index(t / 128))[t % 128 / 32] >> (t % 32) & 1 == 1 { -c } else { c }
    }

    fn product<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, product: Product<'_, T>) {
        // There are two parallel steps, and the pool is woken once for both.
        parallel::in_pool(product.par, || self.product_in_pool(a, product));
    }
}

impl SparseSign {
    /// Does the work of `product`, on a thread of the pool.
    fn product_in_pool<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, product: Product<'_, T>) {
        let Product { rows, scale, mut accumulate, mut y, par } = product;
        let (l, zeta, depth) = (self.l, self.zeta, PARAMS.depth);
        let held = PARAMS.rows.min(rows.len());
        let block = ColumnList::size(l, zeta);
        let mut lists = vec![0u32; held.div_ceil(depth) * block];
        for first in rows.clone().step_by(held) {
            let count = held.min(rows.end - first);
            let lists = &mut lists[..count.div_ceil(depth) * block];
            let table = || vec![0u32; depth * zeta];
            let make = |table: &mut Vec<u32>, (i, list): (usize, &mut [u32])| {
                let table = &mut table[..zeta * depth.min(count - i * depth)];
                self.nonzeros(first + i * depth, table);
                let every = (i + 1) * depth >= count;
                ColumnList::build(l, zeta, table, every, list);
            };
            parallel::for_each_with(par, lists.chunks_exact_mut(block).enumerate().collect(), table, make);
            let source = Source::new::<T>(a.subcols(first - rows.start, count), scale);
            let lists = ColumnLists { zeta, block, words: lists };
            // One generic kernel; its width is a compile-time constant for each arithmetic type.
            match size_of::<T>() {
                4 => multiply_by_lists::<E, T, { PARAMS.width_bytes / 4 }>(lists, source, accumulate, y.as_mut(), par),
                _ => multiply_by_lists::<E, T, { PARAMS.width_bytes / 8 }>(lists, source, accumulate, y.as_mut(), par),
            }
            accumulate = Accum::Add;
        }
    }
}

/// The nonzeros of `depth` rows of `Ω`, sorted by columns, as words.
///
/// A column is `[its number, its count, then 2·row + minus for each nonzero]`. Columns with fewer nonzeros come first;
/// columns without any are left out, except in the last list of a product. [`ColumnList::END`] ends a list.
struct ColumnList;

impl ColumnList {
    /// The mark at the end of a list, which is no column because `l < 2^24`.
    const END: u32 = u32::MAX;

    /// Returns the most words that a list takes.
    fn size(l: usize, zeta: usize) -> usize {
        PARAMS.depth * zeta + 2 * (l + 1)
    }

    /// Writes `list` from the nonzeros by rows: `table` has ζ of them for each row, as `column << 1 | minus`. With
    /// `every`, columns without nonzeros are in the list, too.
    fn build(l: usize, zeta: usize, table: &[u32], every: bool, list: &mut [u32]) {
        let mut counts = vec![0u32; l];
        table.iter().for_each(|&nz| counts[(nz >> 1) as usize] += 1);
        // A counting sort of the columns by their counts.
        let most = counts.iter().copied().max().unwrap_or(0) as usize;
        let mut before = vec![0u32; most + 2];
        counts.iter().for_each(|&count| before[count as usize + 1] += 1);
        for count in 0..=most {
            before[count + 1] += before[count];
        }
        let mut order = vec![0u32; l];
        for (c, &count) in counts.iter().enumerate() {
            let at = &mut before[count as usize];
            order[*at as usize] = c as u32;
            *at += 1;
        }
        // `counts[c]` becomes the place of the next nonzero of column c.
        let mut at = 0;
        for &c in &order {
            let count = std::mem::replace(&mut counts[c as usize], at as u32 + 2);
            if count > 0 || every {
                list[at..at + 2].copy_from_slice(&[c, count]);
                at += 2 + count as usize;
            }
        }
        list[at..at + 2].copy_from_slice(&[Self::END, 0]);
        for (j, row) in table.chunks_exact(zeta).enumerate() {
            for &nz in row {
                let at = &mut counts[(nz >> 1) as usize];
                list[*at as usize] = 2 * j as u32 + (nz & 1);
                *at += 1;
            }
        }
    }

    /// Returns the first column of a list, its nonzeros, and the rest of the list.
    #[inline(always)]
    fn split(list: &[u32]) -> Option<(usize, &[u32], &[u32])> {
        let &[c, count, ref rest @ ..] = list else { return None };
        let (nonzeros, rest) = rest.split_at_checked(count as usize)?;
        (c != Self::END).then_some((c as usize, nonzeros, rest))
    }
}

/// The column lists of successive blocks of `depth` rows of `Ω`.
#[derive(Clone, Copy)]
struct ColumnLists<'a> {
    zeta: usize,
    /// Words that each list is given.
    block: usize,
    words: &'a [u32],
}

/// Computes `Y (+)= scale/√ζ · A · N`, where `N` has the signs of the lists' nonzeros.
fn multiply_by_lists<E: Element, T: Scalar, const W: usize>(
    lists: ColumnLists<'_>,
    source: Source<'_, E>,
    accumulate: Accum,
    y: MatMut<'_, T>,
    par: Par,
) {
    let (l, isa) = (y.ncols(), simd::isa());
    let scratch = || Scratch::<T, W> { sums: Lines::new(l), tile: Lines::new(PARAMS.depth) };
    for_row_chunks(y, W, par, scratch, |first, mut y, scratch| {
        let count = y.nrows();
        // Columns of Y take their sums as soon as these are complete; rows of Y take them all at once.
        let columns = if y.row_stride() == 1 { Some((y.rb_mut(), accumulate)) } else { None };
        let stored = columns.is_some();
        simd::dispatch(isa, MultiplyRows { lists, source, first, count, columns, scratch });
        if !stored {
            let sums = MatRef::from_column_major_slice(scratch.sums.as_flattened(), W, l);
            store(y, sums.subrows(0, count), accumulate);
        }
    });
}

/// The scratch of a thread for `W` rows of `Y`.
struct Scratch<T, const W: usize> {
    /// Line `c` is column `c` of these rows of `Y`.
    sums: Lines<T, W>,
    /// Line `j` is column `j` of a tile of these rows of `A`.
    tile: Lines<T, W>,
}

/// The product of `count <= W` rows of `A`, from row `first` on, as a kernel. The result is in the `sums` of the
/// scratch and, if there are `columns`, in these.
struct MultiplyRows<'a, E, T, const W: usize> {
    lists: ColumnLists<'a>,
    source: Source<'a, E>,
    first: usize,
    count: usize,
    /// The same rows of `Y`, if its columns are contiguous, and whether to add to them.
    columns: Option<(MatMut<'a, T>, Accum)>,
    scratch: &'a mut Scratch<T, W>,
}

impl<E: Element, T: Scalar, const W: usize> Kernel for MultiplyRows<'_, E, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let MultiplyRows { lists, source, first, count, mut columns, scratch: Scratch { sums, tile } } = self;
        let (sums, tile) = (&mut sums[..], &mut tile[..]);
        let (m, n) = (source.a.nrows(), source.a.ncols());
        let by_columns = Layout::of(source.a) == Layout::Columns;
        let by_rows = source.transpose();
        let factor = source.factor::<T>() * T::from_f64(1.0 / (lists.zeta as f64).sqrt());
        sums.fill([T::zeroed(); W]);
        for (k, mut list) in (0..n).step_by(PARAMS.depth).zip(lists.words.chunks_exact(lists.block)) {
            let end = n.min(k + PARAMS.depth);
            let depth = end - k;
            if by_columns {
                for (j, line) in tile[..depth].iter_mut().enumerate() {
                    source.column(s, k + j, first, factor, &mut line[..count]);
                }
            } else if let Some(a) = source.rows(first..first + W, k..k + PARAMS.depth) {
                transpose(s, a, factor, tile);
            } else {
                convert_transposed(s, &by_rows, (first..first + count, k..end), factor, tile);
            }
            // The next tile is prefetched meanwhile, spread evenly over the columns of Y. It is the next one of these
            // rows, or the first one of the next rows.
            let last = end == n;
            let (down, across) = if last {
                (first + W..m.min(first + 2 * W), 0..n.min(PARAMS.depth))
            } else {
                (first..first + count, end..n.min(end + PARAMS.depth))
            };
            let (lines, along, next) = if by_columns { (across, down, &by_rows) } else { (down, across, &source) };
            let (share, whole) = (lines.len(), sums.len().min(depth * lists.zeta));
            let (mut due, mut line) = (0, lines.start);
            let mut columns = if last { columns.as_mut() } else { None };
            while let Some((c, nonzeros, rest)) = ColumnList::split(list) {
                due += share;
                while due >= whole {
                    next.prefetch_row(s, line, along.clone());
                    line += 1;
                    due -= whole;
                }
                add_lines(s, tile, nonzeros, &mut sums[c]);
                if let Some((y, accumulate)) = &mut columns
                    && let Some(y) = y.rb_mut().col_mut(c).try_as_col_major_mut()
                {
                    write(s, &sums[c][..count], y.as_slice_mut(), *accumulate == Accum::Add);
                }
                list = rest;
            }
        }
    }
}

/// Transposes `W` rows into a tile, `tile[j][w] = factor · rows(w, j)`, in squares whose side divides `W` and `depth`.
#[inline(always)]
fn transpose<S: Lanes, E: Element, T: Scalar, const W: usize>(
    s: S,
    rows: MatRef<'_, E>,
    factor: T,
    tile: &mut [[T; W]],
) {
    let side = T::lanes::<S>();
    let tile = tile.as_flattened_mut();
    for w in (0..W).step_by(side) {
        for j in (0..PARAMS.depth).step_by(side) {
            transpose_square(s, rows.submatrix(w, j, side, side), factor, &mut tile[W * j + w..], W);
        }
    }
}

/// Transposes rows and columns that are at an edge of `A`, or whose elements must be scaled before they are rounded:
/// `tile[j][w] = factor / factor() · (scale · A)(rows.start + w, columns.start + j)`. `source` is the transpose of `A`.
#[inline(always)]
fn convert_transposed<S: Lanes, E: Element, T: Scalar, const W: usize>(
    s: S,
    source: &Source<'_, E>,
    (rows, columns): (Range<usize>, Range<usize>),
    factor: T,
    tile: &mut [[T; W]],
) {
    let side = T::lanes::<S>();
    let tile = tile.as_flattened_mut();
    let mut square = [T::zeroed(); MAX_SIDE * MAX_SIDE];
    for (w, first) in rows.clone().step_by(side).enumerate() {
        for (j, from) in columns.clone().step_by(side).enumerate() {
            let (height, width) = (side.min(rows.end - first), side.min(columns.end - from));
            for (i, row) in square.chunks_exact_mut(side).take(height).enumerate() {
                source.column(s, first + i, from, factor, &mut row[..width]);
            }
            let square = MatRef::from_row_major_slice(&square[..side * side], side, side);
            transpose_square(s, square, T::one(), &mut tile[side * (W * j + w)..], W);
        }
    }
}
