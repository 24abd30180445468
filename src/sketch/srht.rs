//! Subsampled randomized Hadamard transform, in blocks (Ailon, Chazelle 2006; Tropp 2011; blocks: Balabanov,
//! Beaupère, Grigori, Lederer, arXiv 2210.11295).
//!
//! ```text
//!   Ω = [ Ω_0 ; Ω_1 ; … ],   Ω_b = (1/√l) · D_b H_r Rᵀ D̃_b          r×l, r = 2^t
//!
//!   D_b  r input signs, D̃_b  l output signs: drawn for every block      R  a sample of l of r rows: one for all blocks
//!   Ω(b·r + p, t) = ± (−1)^popcount(p & R_t) / √l
//! ```
//! One block is the classic SRHT. `E[Ω Ωᵀ] = I`: every entry is `±1/√l`, and the signs make different rows
//! uncorrelated. `n` is any number: a last block of fewer than `r` rows is a piece, see below.
//!
//! **The sample is stratified.** With a plain random sample, inputs that live on an aligned run of coordinates defeat the transform:
//! on `2^b` neighbours `H_r` restricted to the sample shows only the low b bits of R, and l draws out of `2^b` classes miss
//! many of them (l = 30, b = 5: 12 of 32), whatever the signs. Kahan's matrix has such singular vectors; an SVD of rank 20
//! with l = 30 and q = 2 came out 16 % over the optimum. [`Philox::stratified_subset`] draws R so that the low b bits
//! take all values equally often for every b, and the excess is gone.
//!
//! **Pieces, not padding.** If the only nonzeros of `x` lie in an aligned subcube `q·s .. (q+1)·s`, `s = 2^u`, then
//! `(H_r x)_k = (−1)^popcount(q·s & k) (H_s x_sub)_{k mod s}`. So the last block and the ends of a range of rows (a file tile, an MPI rank)
//! cost a transform of the smallest subcube that holds them, and nothing longer is ever zero-filled.
//!
//! **Rows** (row-major `A`): a row's piece is read once, converted and given signs into an L1 scratch, transformed
//! there, and `l` values are gathered into the accumulators of a chunk of rows of `Y`.
//! **Columns** (column-major `A`, the transpose of a row-major one): a panel of one cache line's width goes through
//! vertical transforms in L2; each gathered row of it is `width` values of one column of `Y`.
//!
//! ```text
//!      A row-major                 A column-major:  panel s × width
//!   i [---- s ----][- s' -]           [####]  p     one line of each of s columns
//!        |signs, H, gather            [####]        H on all `width` columns at once
//!        v                            [####]
//!   Y(i, 0..l) += …                   gather l rows  ->  Y(i..i+width, 0..l) += …
//! ```
//! Cost: `m n log2(r)` additions, `m l ⌈n/r⌉` gathers, `A` read once, `Y` written once. State: the `l` indices of `R`.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par};

use super::{
    Layout, ROW_BITS, SketchOperator, check_apply, check_size, check_stream, for_row_chunks, load_column, load_row,
    store,
};
use crate::error::{Error, Result};
use crate::fwht::{transform_panel, transform_row};
use crate::rng::{Philox, stream};
use crate::simd::Scalar;
use crate::tensor::Element;

/// An n×l subsampled randomized Hadamard transform, in blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Srht {
    n: usize,
    l: usize,
    seed: u64,
    stream: u64,
    sample: Sample,
    log2_r: u8,
}

/// The rows of `H_r` that are kept, ascending.
#[derive(Debug, Clone, PartialEq)]
enum Sample {
    Short(Box<[u16]>),
    Long(Box<[u32]>),
}

impl Sample {
    fn get(&self, t: usize) -> usize {
        match self {
            Sample::Short(s) => s[t].into(),
            Sample::Long(s) => s[t] as usize,
        }
    }
}

/// Tuning, chosen by `benches/sketch.rs` on a Zen 5 server.
struct Params {
    /// Longest block, unless `2l` is longer.
    block: usize,
    /// Rows of `Y` that a thread accumulates at a time.
    rows: usize,
    /// Bytes of a panel's row.
    panel_bytes: usize,
}
const PARAMS: Params = Params { block: 4096, rows: 64, panel_bytes: 64 };

/// The power of two `r` that makes a row's transforms and gathers cheapest, at least `2l` (or all of `n`).
fn block_length(n: usize, l: usize) -> usize {
    let whole = n.next_power_of_two();
    let shortest = (2 * l).next_power_of_two().min(whole);
    let longest = whole.min(PARAMS.block).max(shortest);
    // A transform's point and stage costs about 1/16 of a gather.
    let transform = |s: usize| s * s.trailing_zeros() as usize;
    let cost = |r: usize| {
        let (full, rest) = (n / r, n % r);
        full * transform(r) + transform(rest.next_power_of_two()) + 16 * l * n.div_ceil(r)
    };
    let lengths = (shortest.trailing_zeros()..=longest.trailing_zeros()).map(|t| 1usize << t);
    lengths.min_by_key(|&r| cost(r)).unwrap_or(shortest)
}

impl Srht {
    /// An n×l SRHT.
    ///
    /// # Errors
    /// [`Empty`](Error::Empty) if `n` or `l` is 0; [`Option`](Error::Option) if `l > n`;
    /// [`TooLarge`](Error::TooLarge) if `n >= 2^40` or `l >= 2^24`.
    pub fn new(n: usize, l: usize, seed: u64) -> Result<Self> {
        Srht::build(n, l, seed, 0)
    }

    /// The operator of the same seed in another stream.
    ///
    /// # Errors
    /// [`Option`](Error::Option) if `stream >= 2^56`.
    pub fn with_stream(self, stream: u64) -> Result<Self> {
        check_stream(stream)?;
        Srht::build(self.n, self.l, self.seed, stream)
    }

    fn build(n: usize, l: usize, seed: u64, stream: u64) -> Result<Self> {
        check_size(n, l)?;
        if l > n {
            return Err(Error::option("l", l, "at most n columns for an SRHT"));
        }
        let r = block_length(n, l);
        let sample = Philox::new(seed, stream::SRHT_SAMPLE | stream).stratified_subset(r.trailing_zeros(), l);
        let sample = if r <= 1 << 16 {
            Sample::Short(sample.iter().map(|&k| k as u16).collect())
        } else {
            Sample::Long(sample.iter().map(|&k| k as u32).collect())
        };
        Ok(Srht { n, l, seed, stream, sample, log2_r: r.trailing_zeros() as u8 })
    }

    /// The length `r` of a block.
    pub fn block(&self) -> usize {
        1 << self.log2_r
    }

    /// Whether input sign `j` is −1.
    fn input_signs(&self) -> Philox {
        Philox::new(self.seed, stream::SRHT_SIGNS | self.stream)
    }

    fn output_sign_index(&self, block: usize, t: usize) -> u64 {
        ((t as u64 / 128) << ROW_BITS | block as u64) * 128 + t as u64 % 128
    }

    /// The pieces of a range of rows of `Ω`.
    fn pieces(&self, rows: Range<usize>) -> impl Iterator<Item = Piece> {
        let r = self.block();
        (rows.start / r..rows.end.div_ceil(r)).map(move |block| {
            let base = block * r;
            let (p0, p1) = (rows.start.max(base) - base, rows.end.min(base + r) - base);
            // The smallest s = 2^u with p0 and p1 - 1 in one aligned subcube.
            let differ = (p0 ^ (p1 - 1)) as u64;
            let s = 1usize << (64 - differ.leading_zeros());
            let corner = p0 & !(s - 1);
            Piece { block, corner, s, lead: p0 - corner, count: p1 - p0, column: base + p0 - rows.start }
        })
    }
}

/// Part of a block: rows `p0..p0 + count` of it, inside the subcube `corner..corner + s`.
struct Piece {
    block: usize,
    corner: usize,
    s: usize,
    /// `p0 - corner`.
    lead: usize,
    count: usize,
    /// Column of `A` that meets `p0`.
    column: usize,
}

/// What a thread needs to apply pieces: signs, gathers, and cache-resident data.
struct Scratch<T> {
    signs: Vec<T>,
    gather: Vec<(u32, T)>,
    x: Vec<T>,
    out: Vec<T>,
}

impl<T: Scalar> Scratch<T> {
    fn new(s: usize, width: usize, l: usize, rows: usize) -> Self {
        Scratch {
            signs: vec![T::zeroed(); s],
            gather: vec![(0, T::zeroed()); l],
            x: vec![T::zeroed(); s * width],
            out: vec![T::zeroed(); rows * l],
        }
    }

    /// Input signs of a piece; where to gather and with which factor.
    fn prepare(&mut self, sketch: &Srht, piece: &Piece) {
        let first = (piece.block << sketch.log2_r) + piece.corner + piece.lead;
        let rng = sketch.input_signs();
        let mut index = first as u64;
        let mut rest = &mut self.signs[..piece.count];
        while !rest.is_empty() {
            let word = rng.block(index / 128)[(index % 128 / 32) as usize] >> (index % 32);
            let (now, later) = rest.split_at_mut(rest.len().min(32 - (index % 32) as usize));
            for (bit, x) in now.iter_mut().enumerate() {
                *x = T::from_f64(1.0 - 2.0 * f64::from(word >> bit & 1));
            }
            index += now.len() as u64;
            rest = later;
        }
        let rng = Philox::new(sketch.seed, stream::SRHT_OUTPUT_SIGNS | sketch.stream);
        let c = 1.0 / (sketch.l as f64).sqrt();
        let mut words = [0; 4];
        for (t, g) in self.gather.iter_mut().enumerate() {
            if t % 128 == 0 {
                words = rng.block(sketch.output_sign_index(piece.block, t) / 128);
            }
            let k = sketch.sample.get(t);
            let minus = words[t % 128 / 32] >> (t % 32) & 1 ^ (piece.corner & k).count_ones() & 1;
            *g = ((k & (piece.s - 1)) as u32, T::from_f64(if minus == 1 { -c } else { c }));
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

    fn apply_rows<E: Element, T: Scalar>(
        &self,
        rows: Range<usize>,
        a: MatRef<'_, E>,
        scale: f64,
        accumulate: Accum,
        mut y: MatMut<'_, T>,
        par: Par,
    ) -> Result<()> {
        if !check_apply("Srht::apply", self, &rows, a, scale, accumulate, y.as_mut())? {
            return Ok(());
        }
        let l = self.l;
        let longest = self.pieces(rows.clone()).map(|p| p.s).max().unwrap_or(0);
        if Layout::of(a) == Layout::Columns {
            let width = PARAMS.panel_bytes / size_of::<T>();
            for_row_chunks(
                y,
                width,
                par,
                || Scratch::new(longest, width, l, width),
                |i, y, scratch| {
                    scratch.out.fill(T::zeroed());
                    let filled = y.nrows();
                    for piece in self.pieces(rows.clone()) {
                        scratch.prepare(self, &piece);
                        let x = &mut scratch.x[..piece.s * width];
                        x.fill(T::zeroed());
                        let lines = x[piece.lead * width..].chunks_exact_mut(width);
                        for ((p, line), &sign) in lines.take(piece.count).enumerate().zip(&scratch.signs) {
                            load_column(a, piece.column + p, i, &mut line[..filled], scale);
                            line.iter_mut().for_each(|x| *x *= sign);
                        }
                        transform_panel(x, width);
                        for (out, &(k, c)) in scratch.out.chunks_exact_mut(width).zip(&scratch.gather) {
                            let line = &x[k as usize * width..][..width];
                            out.iter_mut().zip(line).for_each(|(out, &x)| *out += c * x);
                        }
                    }
                    let out = MatRef::from_column_major_slice(&scratch.out, width, l);
                    store(y, out.subrows(0, filled), accumulate);
                },
            );
        } else {
            let count = PARAMS.rows.min(y.nrows());
            for_row_chunks(
                y,
                count,
                par,
                || Scratch::new(longest, 1, l, count),
                |first, y, scratch| {
                    scratch.out.fill(T::zeroed());
                    for piece in self.pieces(rows.clone()) {
                        scratch.prepare(self, &piece);
                        let x = &mut scratch.x[..piece.s];
                        for (i, out) in scratch.out.chunks_exact_mut(l).take(y.nrows()).enumerate() {
                            let (before, rest) = x.split_at_mut(piece.lead);
                            let (now, after) = rest.split_at_mut(piece.count);
                            before.fill(T::zeroed());
                            after.fill(T::zeroed());
                            load_row(a, first + i, piece.column, now, scale);
                            now.iter_mut().zip(&scratch.signs).for_each(|(x, &sign)| *x *= sign);
                            transform_row(x);
                            for (out, &(k, c)) in out.iter_mut().zip(&scratch.gather) {
                                *out += c * x[k as usize];
                            }
                        }
                    }
                    let out = MatRef::from_row_major_slice(&scratch.out, count, l).subrows(0, y.nrows());
                    store(y, out, accumulate);
                },
            );
        }
        Ok(())
    }
}
