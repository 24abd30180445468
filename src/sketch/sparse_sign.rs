//! Sparse sign embedding: each row of `Ω` has ζ entries `±1/√ζ` (SASO: Tropp, Yurtsever, Udell, Cevher 2019; as
//! SparseStack, Camaño, Epperly, Meyer, Tropp, arXiv 2508.21189: ζ CountSketches side by side).
//!
//! ```text
//!   at: kb × width of Aᵀ, in L1              y: l × width, in L1
//!     j [a a a a ...]  ── ± ──►  row c of y      for each of the ζ nonzeros (j, c) of row j
//! ```
//! `y(i, c) += ± a(i, j)` is a scatter along a row, which no vector unit likes; along a column it is a vector
//! addition. So `A` goes through cache in tiles of a few lines of rows, transposed, and one nonzero of `Ω` costs one vector
//! addition for `width` rows. The tile holds `a` and `−a`, so the sign is part of an address.
//!
//! The nonzeros of a block of rows of `Ω` are regenerated once per call and shared by all threads; state O(1).
//! Positions by Floyd's algorithm (SASO): ζ words give a uniform ζ-subset of the columns, off by at most `l 2^-32`.
//!
//! Cost: `m n ζ` additions, `A` read once.
//!
//! Tried, as multiples of the time of this: lines of 64 bytes 1.2 to 1.6; sums and tiles that do not begin at cache
//! lines 1.7; tiles transposed by loops that the compiler was to turn into shuffles 1.3; the addition written over
//! references, which the compiler cannot prove distinct and leaves scalar, 4.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::{
    Layout, Lines, ROW_BITS, SketchOperator, Source, check_apply, check_size, check_stream, for_row_chunks, store,
};
use crate::error::{Error, Result};
use crate::rng::{Philox, stream};
use crate::simd::transpose::transpose_square;
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::Element;

/// An n×l matrix with ζ entries ±1/√ζ in each row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseSign {
    n: usize,
    l: usize,
    zeta: usize,
    stacked: bool,
    seed: u64,
    stream: u64,
}

/// Tuning, chosen by `benches/sketch.rs` on a Zen 5 server.
struct Params {
    /// Rows of `Ω` whose nonzeros are held at a time.
    table_rows: usize,
    /// Columns of `A` in a tile.
    depth: usize,
    /// Bytes of a row of a tile.
    width_bytes: usize,
}
const PARAMS: Params = Params { table_rows: 4096, depth: 64, width_bytes: 128 };

impl SparseSign {
    /// ζ distinct columns in each row, uniformly drawn, with independent signs (SASO). ζ = 8 and `l >= 2k` do well.
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

    /// One column in each of ζ groups of `l/ζ` columns, independently (SparseStack). ζ = 4 does well. Groups differ
    /// by one column if ζ does not divide `l`.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn stacked(n: usize, l: usize, zeta: usize, seed: u64) -> Result<Self> {
        Ok(SparseSign { stacked: true, ..SparseSign::new(n, l, zeta, seed)? })
    }

    /// The operator of the same seed in another stream.
    ///
    /// # Errors
    /// [`Option`](Error::Option) if `stream >= 2^56`.
    pub fn with_stream(self, stream: u64) -> Result<Self> {
        check_stream(stream)?;
        Ok(SparseSign { stream, ..self })
    }

    /// Nonzeros in a row, ζ.
    pub fn zeta(&self) -> usize {
        self.zeta
    }

    /// Column of the nonzero that draw `t` of a row makes, given its word and the columns of draws `0..t`.
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

    /// The nonzeros by columns, for kernels elsewhere: column c has entries `row << 1 | minus` from `start[c]` to
    /// `start[c + 1]`, rows ascending.
    #[cfg(feature = "cuda")]
    pub(crate) fn by_columns(&self) -> (Vec<u32>, Vec<u32>) {
        let mut table = vec![0; self.n * self.zeta];
        self.nonzeros(0, &mut table, Par::Seq);
        let mut start = vec![0u32; self.l + 1];
        table.iter().for_each(|&nz| start[(nz >> 1) as usize + 1] += 1);
        for c in 0..self.l {
            start[c + 1] += start[c];
        }
        let (mut next, mut entries) = (start.clone(), vec![0; table.len()]);
        for (at, &nz) in table.iter().enumerate() {
            let place = &mut next[(nz >> 1) as usize];
            entries[*place as usize] = ((at / self.zeta) as u32) << 1 | (nz & 1);
            *place += 1;
        }
        (start, entries)
    }

    fn generators(&self) -> (Philox, Philox) {
        (
            Philox::new(self.seed, stream::SPARSE_POSITIONS | self.stream),
            Philox::new(self.seed, stream::SPARSE_SIGNS | self.stream),
        )
    }

    /// The nonzeros of rows `first..` of `Ω`, ζ for each: `column << 1 | minus`.
    fn nonzeros(&self, first: usize, table: &mut [u32], par: Par) {
        const ROWS: usize = 128;
        let fill = |chunk: usize, table: &mut [u32]| {
            let (positions, signs) = self.generators();
            let rows = table.len() / self.zeta;
            let mut words = [[0u32; ROWS]; 4];
            let mut draw = |rng: Philox, block: usize| {
                let [a, b, c, d] = &mut words;
                let index = (block as u64) << ROW_BITS | (first + chunk * ROWS) as u64;
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
        };
        let size = ROWS * self.zeta;
        if let Par::Seq = par {
            table.chunks_mut(size).enumerate().for_each(|(i, x)| fill(i, x));
        } else {
            table.par_chunks_mut(size).enumerate().for_each(|(i, x)| fill(i, x));
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

    fn apply_rows<E: Element, T: Scalar>(
        &self,
        rows: Range<usize>,
        a: MatRef<'_, E>,
        scale: f64,
        accumulate: Accum,
        mut y: MatMut<'_, T>,
        par: Par,
    ) -> Result<()> {
        if !check_apply("SparseSign::apply", self, &rows, a, scale, accumulate, y.as_mut())? {
            return Ok(());
        }
        let zeta = self.zeta;
        let table_rows = PARAMS.table_rows.min(rows.len());
        let mut table = vec![0u32; table_rows * zeta];
        let mut accumulate = accumulate;
        for first in rows.clone().step_by(table_rows) {
            let count = table_rows.min(rows.end - first);
            let table = &mut table[..count * zeta];
            self.nonzeros(first, table, par);
            let source = Source::new::<T>(a.subcols(first - rows.start, count), scale);
            // One generic kernel; its width is a compile-time constant for each arithmetic type.
            match size_of::<T>() {
                4 => scatter::<E, T, { PARAMS.width_bytes / 4 }>(zeta, table, source, accumulate, y.as_mut(), par),
                _ => scatter::<E, T, { PARAMS.width_bytes / 8 }>(zeta, table, source, accumulate, y.as_mut(), par),
            }
            accumulate = Accum::Add;
        }
        Ok(())
    }
}

/// `Y (+)= scale/√ζ · A · (the nonzeros of `table`)`.
fn scatter<E: Element, T: Scalar, const W: usize>(
    zeta: usize,
    table: &[u32],
    source: Source<'_, E>,
    accumulate: Accum,
    y: MatMut<'_, T>,
    par: Par,
) {
    let (l, isa) = (y.ncols(), simd::isa());
    let scratch = || Scratch::<T, W> {
        sums: Lines::new(l),
        rows: vec![T::zeroed(); W * PARAMS.depth],
        tile: Lines::new(2 * PARAMS.depth),
    };
    for_row_chunks(y, W, par, scratch, |first, y, scratch| {
        simd::dispatch(isa, Scatter { zeta, table, source, first, count: y.nrows(), scratch });
        let sums = MatRef::from_column_major_slice(scratch.sums.as_flattened(), W, l);
        store(y, sums.subrows(0, sums.nrows().min(source.a.nrows() - first)), accumulate);
    });
}

/// What a thread needs for `W` rows of `Y`.
struct Scratch<T, const W: usize> {
    /// Column `c` of `Y`.
    sums: Lines<T, W>,
    /// `W` rows of `A`, `depth` elements of each.
    rows: Vec<T>,
    /// Column `j` of `A`, and its negative.
    tile: Lines<T, W>,
}

/// The scatter for `count <= W` rows.
struct Scatter<'a, E, T, const W: usize> {
    zeta: usize,
    table: &'a [u32],
    source: Source<'a, E>,
    first: usize,
    count: usize,
    scratch: &'a mut Scratch<T, W>,
}

impl<E: Element, T: Scalar, const W: usize> Kernel for Scatter<'_, E, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Scatter { zeta, table, source, first, count, scratch: Scratch { sums, rows, tile } } = self;
        let (sums, tile) = (&mut sums[..], tile.as_chunks_mut::<2>().0);
        let by_columns = Layout::of(source.a) == Layout::Columns;
        let factor = source.factor();
        sums.fill([T::zeroed(); W]);
        for (k, table) in (0..source.a.ncols()).step_by(PARAMS.depth).zip(table.chunks(PARAMS.depth * zeta)) {
            let depth = table.len() / zeta;
            if by_columns {
                for (j, [plus, _]) in tile[..depth].iter_mut().enumerate() {
                    source.column(s, k + j, first, factor, &mut plus[..count]);
                }
            } else {
                let by_rows = source.transpose();
                for (i, row) in rows.chunks_exact_mut(PARAMS.depth).take(count).enumerate() {
                    by_rows.column(s, first + i, k, factor, &mut row[..depth]);
                }
                transpose(s, rows, tile);
            }
            for (j, (nonzeros, tile)) in table.chunks_exact(zeta).zip(&mut *tile).enumerate() {
                // The next tile comes from memory while this one is worked on.
                if by_columns {
                    source.transpose().prefetch_row(s, k + PARAMS.depth + j, first..first + count);
                } else {
                    let part = PARAMS.depth / PARAMS.depth.div_ceil(W);
                    let next = k + PARAMS.depth + j / W * part;
                    source.prefetch_row(s, first + j % W, next..(next + part).min(source.a.ncols()));
                }
                let [plus, minus] = &mut *tile;
                for w in 0..W {
                    minus[w] = -plus[w];
                }
                for &nz in nonzeros {
                    // By value: the compiler cannot know that the two do not overlap.
                    let (mut x, sum) = (tile[(nz & 1) as usize], &mut sums[(nz >> 1) as usize]);
                    let old = *sum;
                    for w in 0..W {
                        x[w] += old[w];
                    }
                    *sum = x;
                }
            }
        }
        let c = T::from_f64(1.0 / (zeta as f64).sqrt());
        sums.as_flattened_mut().iter_mut().for_each(|x| *x *= c);
    }
}

/// `tile[j].plus[w] = rows[w][j]`, in squares whose side divides `W` and `depth`.
#[inline(always)]
fn transpose<S: Lanes, T: Scalar, const W: usize>(s: S, rows: &[T], tile: &mut [[[T; W]; 2]]) {
    let (side, depth) = (T::lanes::<S>(), PARAMS.depth);
    let tile = tile.as_flattened_mut().as_flattened_mut();
    for w in (0..W).step_by(side) {
        for j in (0..depth).step_by(side) {
            transpose_square(s, &rows[w * depth + j..], depth, &mut tile[2 * W * j + w..], 2 * W);
        }
    }
}
