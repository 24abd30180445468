//! The subsampled randomized Hadamard transform, in blocks.
//!
//! ```text
//!   Ω = [ Ω_0 ; Ω_1 ; … ],   Ω_b = (1/√l) · D_b H_r Rᵀ D̃_b          r×l, r = 2^t
//!
//!   D_b  r input signs, D̃_b  l output signs: drawn for every block    R  a sample of l of r rows: one for all blocks
//!   Ω(b·r + p, t) = ± (−1)^popcount(p & R_t) / √l
//!
//!      A row-major                 A column-major:  panel s × width
//!   i [---- s ----][- s' -]           [####]  p     one line of each of s columns
//!        |signs, H, gather            [####]        H on all `width` columns at once
//!        v                            [####]
//!   Y(i, 0..l) += …                   gather l rows  ->  Y(i..i+width, 0..l) += …
//! ```
//! `n` is any number. A last block of fewer than `r` rows, and the ends of a range of rows, are *pieces*
//! ([`Srht::pieces`]). `R` is stratified ([`Srht::build`]). `r` is at least `2l`, and chosen by a model of the time
//! ([`block_length`]).
//!
//! A row-major `A` is transformed row by row in L1. A column-major `A` goes by panels whose lines have 512 bytes,
//! because memory gives shorter ones slowly; a panel of 128 such lines fits L2, and sums over the pieces of a block
//! take the place of the last stages.
//!
//! Cost: `m n log2(r)` additions, `m l ⌈n/r⌉` gathers, `A` read once, `Y` written once. State: the `l` indices of `R`.
//! Figures and lost experiments: `benches/NOTES.md`. Sources: N. Ailon, B. Chazelle, 2006; J. A. Tropp, 2011; blocks:
//! O. Balabanov, M. Beaupère, L. Grigori, V. Lederer, arXiv 2210.11295.

use std::ops::Range;

use faer::MatRef;

use super::{
    Layout, Lines, Product, ROW_BITS, SketchOperator, Source, check_size, check_stream, for_row_chunks, store,
};
use crate::error::{Error, Result};
use crate::fwht::{transform_panel, transform_rows};
use crate::rng::{Philox, stream};
use crate::simd::load::{add_times, load_scaled};
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::Element;

/// An n×l subsampled randomized Hadamard transform, in blocks of [`block`](Self::block) rows.
///
/// One block is the classic SRHT. `E[Ω Ωᵀ] = I`: every entry is `±1/√l`, and the signs make different rows
/// uncorrelated.
#[derive(Debug, Clone, PartialEq)]
pub struct Srht {
    n: usize,
    l: usize,
    seed: u64,
    stream: u64,
    sample: Sample,
    log2_r: u8,
}

/// The rows of `H_r` that are sampled, ascending.
#[derive(Debug, Clone, PartialEq)]
enum Sample {
    Short(Box<[u16]>),
    Long(Box<[u32]>),
}

impl Sample {
    /// Returns the row of `H_r` that column `t` of a block samples.
    fn get(&self, t: usize) -> usize {
        match self {
            Sample::Short(s) => s[t].into(),
            Sample::Long(s) => s[t] as usize,
        }
    }
}

/// Tuning constants, chosen by the bench `sketch`.
struct Params {
    /// Length of the longest block, unless `2l` is longer.
    block: usize,
    /// Rows of `Y` that a thread accumulates at a time.
    rows: usize,
    /// The least number of such rows where `Y` has few. Signs are drawn again for each chunk, so it is not one.
    least_rows: usize,
    /// Bytes of the rows that one call transforms together, if a row is shorter.
    rows_bytes: usize,
    /// Bytes of a line of a panel, if the panel and its sums then take at most `panel_bytes`.
    wide_bytes: usize,
    /// Bytes of a line of any other panel.
    narrow_bytes: usize,
    /// The most bytes of a panel with wide lines: half of L2.
    panel_bytes: usize,
    /// Length of the longest piece of a panel, unless `l` is longer.
    panel: usize,
    /// Bytes of lines of a panel between the line that is loaded and the line that is prefetched.
    ahead_bytes: usize,
    /// Time of a gathered value, in units of an addition of a transform.
    gather: usize,
    /// Time to begin a transform, in the same unit.
    call: usize,
}
const PARAMS: Params = Params {
    block: 4096,
    rows: 128,
    least_rows: 32,
    rows_bytes: 16384,
    wide_bytes: 512,
    narrow_bytes: 128,
    panel_bytes: 1 << 19,
    panel: 128,
    ahead_bytes: 4096,
    gather: 28,
    call: 4000,
};

/// Returns the length `r` of a block: the power of two, at least `2l` (or all of `n`), for which the transforms and
/// gathers of a row are cheapest by a model of their time. For `n <= 4096` that is usually one block.
fn block_length(n: usize, l: usize) -> usize {
    let whole = n.next_power_of_two();
    let shortest = (2 * l).next_power_of_two().min(whole);
    let longest = whole.min(PARAMS.block).max(shortest);
    let transform = |s: usize| s * s.trailing_zeros() as usize;
    let cost = |r: usize| {
        let (full, rest) = (n / r, n % r);
        full * transform(r) + transform(rest.next_power_of_two()) + (PARAMS.gather * l + PARAMS.call) * n.div_ceil(r)
    };
    let lengths = (shortest.trailing_zeros()..=longest.trailing_zeros()).map(|t| 1usize << t);
    lengths.min_by_key(|&r| cost(r)).unwrap_or(shortest)
}

impl Srht {
    /// Makes an n×l SRHT with the random numbers of `seed`.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) if `n` or `l` is 0; [`Option`](Error::Option) if `l > n`;
    /// [`TooLarge`](Error::TooLarge) if `n >= 2^40` or `l >= 2^24`.
    pub fn new(n: usize, l: usize, seed: u64) -> Result<Self> {
        Srht::build(n, l, seed, 0)
    }

    /// Returns the sketch of the same shape and seed whose random numbers come from another stream.
    ///
    /// # Errors
    /// [`Option`](Error::Option) if `stream >= 2^56`.
    #[doc(hidden)]
    pub fn with_stream(self, stream: u64) -> Result<Self> {
        check_stream(stream)?;
        Srht::build(self.n, self.l, self.seed, stream)
    }

    /// Makes an SRHT, with a stratified sample `R`.
    ///
    /// A plain random sample is defeated by inputs that live on an aligned run of coordinates, or on a stride: on `2^b`
    /// neighbours, `H_r` restricted to the sample shows only the low `b` bits of `R` (on a stride `r / 2^b`, the high
    /// ones), and `l` draws out of `2^b` classes miss many of them (`l = 30`, `b = 5`: 12 of 32), whatever the signs.
    /// Kahan's matrix has such singular vectors. [`Philox::stratified_subset`] draws `R` evenly over the values of both
    /// its low and its high bits.
    fn build(n: usize, l: usize, seed: u64, stream: u64) -> Result<Self> {
        check_size(n, l)?;
        if l > n {
            return Err(Error::option("l", l, "at most n columns for an SRHT"));
        }
        let r = block_length(n, l);
        // Runs of coordinates are likelier than strides, so the low bits get log2(l) of them where both ends cannot.
        let bits = r.trailing_zeros();
        let low = bits.div_ceil(2).max(l.next_power_of_two().trailing_zeros()).min(bits);
        let sample = Philox::new(seed, stream::SRHT_SAMPLE | stream).stratified_subset(bits, low, l);
        let sample = if r <= 1 << 16 {
            Sample::Short(sample.iter().map(|&k| k as u16).collect())
        } else {
            Sample::Long(sample.iter().map(|&k| k as u32).collect())
        };
        Ok(Srht { n, l, seed, stream, sample, log2_r: r.trailing_zeros() as u8 })
    }

    /// The number of rows of a block, `r`, a power of two.
    #[doc(hidden)]
    pub fn block(&self) -> usize {
        1 << self.log2_r
    }

    /// Returns seed, stream and sample, for the kernels of a device.
    #[cfg(feature = "cuda")]
    pub(crate) fn parts(&self) -> (u64, u64, Vec<u32>) {
        (self.seed, self.stream, (0..self.l).map(|t| self.sample.get(t) as u32).collect())
    }

    /// Returns the generator of the input signs: row `i` of `Ω` has sign `i` of it.
    fn input_signs(&self) -> Philox {
        Philox::new(self.seed, stream::SRHT_SIGNS | self.stream)
    }

    /// Returns the index of the output sign of column `t` of a block, in the stream of output signs.
    fn output_sign_index(&self, block: usize, t: usize) -> u64 {
        ((t as u64 / 128) << ROW_BITS | block as u64) * 128 + t as u64 % 128
    }

    /// Cuts a range of rows of `Ω` into pieces of at most `longest` rows, a power of two.
    ///
    /// If the only nonzeros of `x` lie in an aligned subcube `q·s .. (q+1)·s`, `s = 2^u`, then `(H_r x)_k =
    /// (−1)^popcount(q·s & k) (H_s x_sub)_{k mod s}`. So the last block and the ends of a range (a tile of a file, a
    /// rank of MPI) cost a transform of the smallest subcube that holds them, and nothing longer is filled with zeros.
    fn pieces(&self, rows: Range<usize>, longest: usize) -> impl Iterator<Item = Piece> {
        let r = self.block();
        let cell = r.min(longest);
        (rows.start / cell..rows.end.div_ceil(cell)).map(move |i| {
            let (block, base) = (i * cell / r, i * cell / r * r);
            let (p0, p1) = (rows.start.max(i * cell) - base, rows.end.min((i + 1) * cell) - base);
            // The smallest s = 2^u with p0 and p1 - 1 in one aligned subcube.
            let differ = (p0 ^ (p1 - 1)) as u64;
            let s = 1usize << (64 - differ.leading_zeros());
            let corner = p0 & !(s - 1);
            Piece { block, corner, s, lead: p0 - corner, count: p1 - p0, column: base + p0 - rows.start }
        })
    }
}

/// Part of a block of `Ω`: its rows `p0..p0 + count`, inside the subcube `corner..corner + s`.
struct Piece {
    /// Number of the block.
    block: usize,
    /// First row of the subcube, within the block.
    corner: usize,
    /// Number of rows of the subcube, a power of two.
    s: usize,
    /// `p0 - corner`.
    lead: usize,
    count: usize,
    /// Column of `A` that meets `p0`.
    column: usize,
}

/// The scratch of a thread that applies pieces to `W` rows of `Y` at once: factors, and data that stay in cache.
struct Scratch<T, const W: usize> {
    /// The input signs of the piece, times the scale of the input.
    signs: Vec<T>,
    /// For each column of `Y`, which value of the transformed piece it takes.
    index: Vec<u32>,
    /// For each column of `Y`, the factor of that value.
    factor: Vec<T>,
    /// The gathered values of one row of `Y`, before they are multiplied.
    sample: Vec<T>,
    /// The piece of `W` rows of `A`, transposed.
    x: Lines<T, W>,
    /// Sums of `rows × l` values: row-major if `W` is 1, else column-major.
    out: Lines<T, W>,
}

impl<T: Scalar, const W: usize> Scratch<T, W> {
    /// Makes scratch for pieces in subcubes of at most `s` rows, with `outputs` lines of sums, for `l` columns of `Y`.
    fn new(s: usize, outputs: usize, l: usize) -> Self {
        let zero = T::zeroed();
        Scratch {
            signs: vec![zero; s],
            index: vec![0; l],
            factor: vec![zero; l],
            sample: vec![zero; l],
            x: Lines::new(s),
            out: Lines::new(outputs),
        }
    }

    /// Overwrites `signs`, `index` and `factor` with those of a piece.
    fn prepare(&mut self, sketch: &Srht, piece: &Piece, scale: T) {
        let first = (piece.block << sketch.log2_r) + piece.corner + piece.lead;
        let rng = sketch.input_signs();
        let mut index = first as u64;
        let mut rest = &mut self.signs[..piece.count];
        while !rest.is_empty() {
            let word = rng.block(index / 128)[(index % 128 / 32) as usize] >> (index % 32);
            let (now, later) = rest.split_at_mut(rest.len().min(32 - (index % 32) as usize));
            for (bit, x) in now.iter_mut().enumerate() {
                *x = if word >> bit & 1 == 1 { -scale } else { scale };
            }
            index += now.len() as u64;
            rest = later;
        }
        let rng = Philox::new(sketch.seed, stream::SRHT_OUTPUT_SIGNS | sketch.stream);
        let c = 1.0 / (sketch.l as f64).sqrt();
        let mut words = [0; 4];
        for (t, (index, factor)) in self.index.iter_mut().zip(&mut self.factor).enumerate() {
            if t % 128 == 0 {
                words = rng.block(sketch.output_sign_index(piece.block, t) / 128);
            }
            let k = sketch.sample.get(t);
            let minus = words[t % 128 / 32] >> (t % 32) & 1 ^ (piece.corner & k).count_ones() & 1;
            *index = (k & (piece.s - 1)) as u32;
            *factor = T::from_f64(if minus == 1 { -c } else { c });
        }
    }
}

impl SketchOperator for Srht {
    fn nrows(&self) -> usize {
        self.n
    }

    fn ncols(&self) -> usize {
        self.l
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.sample {
                Sample::Short(s) => size_of_val(&**s),
                Sample::Long(s) => size_of_val(&**s),
            }
    }

    fn entry(&self, i: usize, j: usize) -> f64 {
        assert!(i < self.n && j < self.l, "entry ({i}, {j}) of {}×{}", self.n, self.l);
        let (block, p) = (i / self.block(), i % self.block());
        let output = Philox::new(self.seed, stream::SRHT_OUTPUT_SIGNS | self.stream);
        let minus = self.input_signs().sign(i as u64)
            ^ output.sign(self.output_sign_index(block, j))
            ^ ((p & self.sample.get(j)).count_ones() % 2 == 1);
        let c = 1.0 / (self.l as f64).sqrt();
        if minus { -c } else { c }
    }

    fn product<E: Element, T: Scalar>(&self, a: MatRef<'_, E>, product: Product<'_, T>) {
        let Product { rows, scale, accumulate, y, par } = product;
        let (source, l, isa) = (Source::new::<T>(a, scale), self.l, simd::isa());
        if Layout::of(a) == Layout::Columns {
            let longest = PARAMS.panel.max(l.next_power_of_two());
            // If there are few rows, narrow panels leave enough of them for all threads.
            let rows_bytes = y.nrows() * size_of::<T>();
            let wide = (longest + l) * PARAMS.wide_bytes <= PARAMS.panel_bytes && rows_bytes >= 4 * PARAMS.wide_bytes;
            let product = Product { rows, scale, accumulate, y, par };
            return match if wide { PARAMS.wide_bytes } else { PARAMS.narrow_bytes } / size_of::<T>() {
                128 => self.columns::<E, T, 128>(source, longest, product),
                64 => self.columns::<E, T, 64>(source, longest, product),
                32 => self.columns::<E, T, 32>(source, longest, product),
                _ => self.columns::<E, T, 16>(source, longest, product),
            };
        }
        let longest = self.pieces(rows.clone(), usize::MAX).map(|p| p.s).max().unwrap_or(0);
        // Few long rows, as tiles out of core have them, are shared among threads, too.
        let count = y.nrows().div_ceil(4).clamp(PARAMS.least_rows, PARAMS.rows).min(y.nrows());
        let together = (PARAMS.rows_bytes / size_of::<T>()).max(longest);
        let scratch = || Scratch::<T, 1>::new(together, count * l, l);
        for_row_chunks(y, count, par, scratch, |first, y, scratch| {
            scratch.out.fill([T::zeroed()]);
            for piece in self.pieces(rows.clone(), usize::MAX) {
                scratch.prepare(self, &piece, source.factor());
                simd::dispatch(isa, RowsOfPiece { source, first, count: y.nrows(), piece, scratch });
            }
            let out = MatRef::from_row_major_slice(scratch.out.as_flattened(), count, l);
            store(y, out.subrows(0, out.nrows().min(a.nrows() - first)), accumulate);
        });
    }
}

impl Srht {
    /// Does the product of a column-major `A`, `W` rows at a time.
    fn columns<E: Element, T: Scalar, const W: usize>(
        &self,
        source: Source<'_, E>,
        longest: usize,
        product: Product<'_, T>,
    ) {
        let Product { rows, accumulate, y, par, .. } = product;
        let (l, isa) = (self.l, simd::isa());
        let piece = self.pieces(rows.clone(), longest).map(|p| p.s).max().unwrap_or(0);
        let scratch = || Scratch::<T, W>::new(piece, l, l);
        for_row_chunks(y, W, par, scratch, |first, y, scratch| {
            scratch.out.fill([T::zeroed(); W]);
            for piece in self.pieces(rows.clone(), longest) {
                scratch.prepare(self, &piece, source.factor());
                simd::dispatch(isa, PanelOfPiece { source, first, count: y.nrows(), piece, scratch });
            }
            let out = MatRef::from_column_major_slice(scratch.out.as_flattened(), W, l);
            store(y, out.subrows(0, out.nrows().min(source.a.nrows() - first)), accumulate);
        });
    }
}

/// Adds one piece of each of `count` rows, from row `first` on, to the sums in `scratch`, one row after the other.
struct RowsOfPiece<'a, E, T> {
    source: Source<'a, E>,
    first: usize,
    count: usize,
    piece: Piece,
    scratch: &'a mut Scratch<T, 1>,
}

impl<E: Element, T: Scalar> Kernel for RowsOfPiece<'_, E, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Scratch { signs, index, factor, sample, x, out } = self.scratch;
        let Piece { s: size, lead, count, column, .. } = self.piece;
        let signs = &signs[..count];
        let out = out.as_flattened_mut().chunks_exact_mut(index.len()).take(self.count);
        // One call of the transform serves as many rows as stay in L1.
        let x = x.as_flattened_mut();
        let batch = x.len() / size;
        let mut first = self.first;
        let mut out = out.peekable();
        while out.peek().is_some() {
            let rows = batch.min(self.first + self.count - first);
            let x = &mut x[..rows * size];
            for (i, x) in x.chunks_exact_mut(size).enumerate() {
                x[..lead].fill(T::zeroed());
                x[lead + count..].fill(T::zeroed());
                self.source.row(s, first + i, column, signs, &mut x[lead..lead + count]);
            }
            // The transform of these rows prefetches the next ones.
            let next = first + rows;
            transform_rows(s, x, size, self.source.address(next, column));
            for (x, out) in x.chunks_exact(size).zip(&mut out) {
                for (value, &k) in sample.iter_mut().zip(&*index) {
                    *value = x[k as usize];
                }
                add_times(s, sample, factor, out);
            }
            first = next;
        }
    }
}

/// Adds one piece of each of `count <= W` rows, from row `first` on, to the sums in `scratch`, all rows at once.
struct PanelOfPiece<'a, E, T, const W: usize> {
    source: Source<'a, E>,
    first: usize,
    count: usize,
    piece: Piece,
    scratch: &'a mut Scratch<T, W>,
}

impl<E: Element, T: Scalar, const W: usize> Kernel for PanelOfPiece<'_, E, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Scratch { signs, index, factor, x, out, .. } = self.scratch;
        let Piece { s: size, lead, count, column, .. } = self.piece;
        let x = &mut x[..size];
        x[..lead].fill([T::zeroed(); W]);
        x[lead + count..].fill([T::zeroed(); W]);
        for (p, (line, &sign)) in x[lead..lead + count].iter_mut().zip(&*signs).enumerate() {
            // Each line is in another page, which the hardware's prefetcher does not foresee.
            let ahead = column + p + PARAMS.ahead_bytes / size_of_val(line);
            self.source.transpose().prefetch_row(s, ahead, self.first..self.first + self.count);
            self.source.column(s, column + p, self.first, sign, &mut line[..self.count]);
            line[self.count..].fill(T::zeroed());
        }
        transform_panel(x.as_flattened_mut(), W);
        for ((out, &k), &c) in out.iter_mut().zip(&*index).zip(&*factor) {
            load_scaled(s, &x[k as usize], c, out, true);
        }
    }
}
