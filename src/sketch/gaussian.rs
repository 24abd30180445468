//! The Gaussian sketch: `Ω(i, j) = z(i, j) / √l`, with independent standard normals `z`.
//!
//! ```text
//!   for each block of `depth` rows of Ω:            A: m × n      Ω: n × l
//!     generate the block, column by column           [   |###|   ]   [     ]
//!     Y += A[:, block] · block                       [   |###|   ] · [#####]  -> Y
//! ```
//! `z(i, j)` is normal `j % 4` of Philox block `(j / 4) << 40 | i`: any part of `Ω` is regenerated from its indices,
//! and a wider sketch of the same seed has the narrower one as its first columns (up to the factor `1/√l`). Four
//! columns of a block of rows are the four planes of consecutive counters, so that generating them writes whole
//! vectors.
//!
//! Entries are f32 normals times the f32 nearest to `1/√l`, rounded to f32, also in f64 arithmetic: `Ω` is the same
//! matrix in both.
//!
//! Cost: `2 m n l` flops plus `n l` normals. Scratch: `depth · l` elements, and for storage types other than the
//! arithmetic type a tile of `A` per thread. Figures: `benches/NOTES.md`.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatRef, Par};

use super::{Layout, Product, ROW_BITS, SketchOperator, Source, check_size, check_stream, for_row_chunks};
use crate::error::Result;
use crate::parallel;
use crate::rng::{Philox, stream};
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::{DType, Element};

/// An n×l matrix of independent normals of variance `1/l`, whose parts are generated where they are used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gaussian {
    n: usize,
    l: usize,
    rng: Philox,
    seed: u64,
}

/// Tuning constants, chosen by the bench `sketch`.
struct Params {
    /// Rows of `Ω` generated at a time.
    depth: usize,
    /// Rows of `A` converted at a time.
    tile_rows: usize,
}
const PARAMS: Params = Params { depth: 512, tile_rows: 128 };

impl Gaussian {
    /// Makes an n×l Gaussian sketch with the random numbers of `seed`.
    ///
    /// # Errors
    /// [`Empty`](crate::Error::Empty) if `n` or `l` is 0; [`TooLarge`](crate::Error::TooLarge) if `n >= 2^40` or
    /// `l >= 2^24`.
    pub fn new(n: usize, l: usize, seed: u64) -> Result<Self> {
        check_size(n, l)?;
        Ok(Gaussian { n, l, rng: Philox::new(seed, stream::GAUSSIAN), seed })
    }

    /// Returns the sketch of the same shape and seed whose random numbers come from another stream.
    ///
    /// # Errors
    /// [`Option`](crate::Error::Option) if `stream >= 2^56`.
    #[doc(hidden)]
    pub fn with_stream(self, stream: u64) -> Result<Self> {
        check_stream(stream)?;
        Ok(Gaussian { rng: Philox::new(self.seed, stream::GAUSSIAN | stream), ..self })
    }

    /// Returns the generator and `1/√l`, for the kernels of a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn parts(&self) -> (Philox, f32) {
        (self.rng, self.normalization())
    }

    /// Returns `1/√l` rounded to f32.
    fn normalization(&self) -> f32 {
        (1.0 / (self.l as f64).sqrt()) as f32
    }

    /// Overwrites `panel` with `scale · Ω[first..first + depth, :]`, column-major with leading dimension `depth`; the
    /// number of columns is padded to a multiple of four.
    fn generate<T: Scalar>(&self, first: usize, depth: usize, scale: f64, panel: &mut [T], par: Par) {
        let columns = |j4: usize, columns: &mut [T], narrow: &mut Vec<f32>| {
            let index = (j4 as u64) << ROW_BITS | first as u64;
            if T::DTYPE == DType::F32 {
                let scale = (f64::from(self.normalization()) * scale) as f32;
                self.rng.normal_planes(index, scale, planes(bytemuck::cast_slice_mut(columns), depth));
            } else {
                narrow.resize(4 * depth, 0.0);
                self.rng.normal_planes(index, self.normalization(), planes(narrow, depth));
                for (x, &z) in columns.iter_mut().zip(&*narrow) {
                    *x = T::from_f64(f64::from(z) * scale);
                }
            }
        };
        let panel = &mut panel[..depth * self.l.next_multiple_of(4)];
        let chunks = panel.chunks_exact_mut(4 * depth).enumerate().collect();
        parallel::for_each_with(par, chunks, Vec::new, |narrow, (j4, x)| columns(j4, x, narrow));
    }
}

/// Splits `x` into four columns of `depth` elements.
fn planes(x: &mut [f32], depth: usize) -> [&mut [f32]; 4] {
    let (ab, cd) = x.split_at_mut(2 * depth);
    let (a, b) = ab.split_at_mut(depth);
    let (c, d) = cd.split_at_mut(depth);
    [a, b, c, d]
}

impl SketchOperator for Gaussian {
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
        let z = self.rng.normal_block((j as u64 / 4) << ROW_BITS | i as u64)[j % 4];
        f64::from(z * self.normalization())
    }

    fn product<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, product: Product<'_, T>) {
        let Product { rows, scale, mut accumulate, mut y, par } = product;
        // A power of two may multiply Ω instead of A if that stays far from under- and overflow.
        let direct = if (1e-30..1e30).contains(&scale) { E::view(a).typed::<T>() } else { None };
        let depth = PARAMS.depth.min(rows.len());
        let mut panel = vec![T::zeroed(); depth * self.l.next_multiple_of(4)];
        let isa = simd::isa();
        for first in rows.clone().step_by(depth) {
            let depth = depth.min(rows.end - first);
            let k = first - rows.start;
            self.generate(first, depth, if direct.is_some() { scale } else { 1.0 }, &mut panel, par);
            let omega = MatRef::from_column_major_slice(&panel[..depth * self.l], depth, self.l);
            let one = T::from_f64(1.0);
            if let Some(a) = direct {
                matmul(y.as_mut(), accumulate, a.subcols(k, depth), omega, one, par);
            } else {
                let scratch = || vec![T::zeroed(); PARAMS.tile_rows * depth];
                for_row_chunks(y.as_mut(), PARAMS.tile_rows, par, scratch, |i, y, tile| {
                    let tile = &mut tile[..y.nrows() * depth];
                    let a = a.submatrix(i, k, y.nrows(), depth);
                    let tile = simd::dispatch(isa, LoadTile { source: Source::new::<T>(a, scale), tile });
                    matmul(y, accumulate, tile, omega, one, Par::Seq);
                });
            }
            accumulate = Accum::Add;
        }
    }
}

/// Loads `scale · A` into `tile`, in the order in which `A` is stored, and returns it as a matrix.
struct LoadTile<'a, 't, E, T> {
    source: Source<'a, E>,
    tile: &'t mut [T],
}

impl<'t, E: Element, T: Scalar> Kernel for LoadTile<'_, 't, E, T> {
    type Output = MatRef<'t, T>;

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) -> MatRef<'t, T> {
        let LoadTile { source, tile } = self;
        let by_columns = Layout::of(source.a) == Layout::Columns;
        // Each contiguous line of A is a column of `source`.
        let source = if by_columns { source } else { source.transpose() };
        let length = source.a.nrows();
        for (j, line) in tile.chunks_exact_mut(length).enumerate() {
            source.column(s, j, 0, source.factor(), line);
        }
        let tile = MatRef::from_column_major_slice(tile, length, source.a.ncols());
        if by_columns { tile } else { tile.transpose() }
    }
}
