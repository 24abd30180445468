//! GEMM and SYRK of a row-major matrix with tall panels, cut into blocks of rows by shape.
//!
//! ```text
//!   Y = A X     ┌────────┐   Y_i = A_i X       into a row-major block that stays in L2,
//!    m × l      │  A_i   │                     then transposed into Y if that is column-major
//!               ├────────┤
//!               │  ...   │   G_g += A_iᵀ A_i   SYRK, blocks i of group g, groups added up in order
//!               └────────┘
//! ```
//!
//! `2 m n l` and `m n²` flops, `A` read once. One GEMM for all of it is what this replaces: writing a column-major Y from
//! a row-major A, it packs A in short runs (4096×4096, l = 64, f32, 2 Zen 5 cores: 7.9 ms against 5.4 ms here; 11008×4096:
//! 28.2 against 14.3 ms; 4096×1024, l = 266: 5.7 against 5.2), and SYRK over all rows streams G through the caches once per
//! packing (1536×384: 0.84 against 0.60 ms; 4096×1024: 13.9 against 10.8 ms).
//!
//! A block of a Gram matrix is formed in strips of rows of G, one GEMM each (gigaflops by faer's triangular product and here, two threads:
//! 1536×384 242 and 270, 3072×768 305 and 325, 4096×1024 308 and 328, 30522×384 210 and 276; strips of 48 and 192 rows and of columns
//! are behind on one of them or the other):
//!
//! ```text
//!   G  [ x . . .           ]   what a strip writes above the diagonal is never read
//!      [ x x x x . .       ]
//!      [ x x x x x x . .   ]
//! ```
//!
//! Every block is done by one thread, whatever their number: the same bits, and no thread waits for another inside a GEMM
//! (where one of two cores is busy with something else, GEMMs that share their packed operands take ten times as long).

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::host::{Buffer, HostContext, HostPanel};
use crate::linalg::{column_mut, mirror};
use crate::simd::Scalar;

/// Sizes of the blocks.
struct Params {
    /// Rows of a block of a product, at most: 256 to 1024 are alike.
    rows: usize,
    /// Rows of a block of a product, at least: each packs X again.
    min_rows: usize,
    /// Rows of a block of a Gram matrix: 128 is 4 to 14 % faster than 512.
    gram_rows: usize,
    /// Gram matrices of more columns do not fit in L2 with their block, and are formed by one SYRK.
    max_gram_columns: usize,
    /// Partial Gram matrices, at most.
    max_groups: usize,
    /// Bytes of a row of G's strip, one tile of the GEMM: 96 rows of f32.
    strip_bytes: usize,
    /// A product of fewer multiplications, some 30 µs, is left to one thread.
    min_parallel: usize,
}

const PARAMS: Params = Params {
    rows: 512,
    min_rows: 96,
    gram_rows: 128,
    max_gram_columns: 1536,
    max_groups: 8,
    strip_bytes: 384,
    min_parallel: 1 << 22,
};

/// The threads for a product of so many multiplications; the blocks, and so the bits, are the same.
pub(super) fn threads(multiplications: usize, par: Par) -> Par {
    if multiplications < PARAMS.min_parallel { Par::Seq } else { par }
}

/// Whether the elements of a row are closer to each other than those of a column.
pub(super) fn is_by_rows<E>(a: MatRef<'_, E>) -> bool {
    a.col_stride().unsigned_abs() <= a.row_stride().unsigned_abs()
}

/// Rows of the blocks of a product with m rows.
fn block_rows(m: usize) -> usize {
    (m / 8).next_multiple_of(32).clamp(PARAMS.min_rows, PARAMS.rows)
}

/// Bytes that [`product`] allocates while it runs, into a column-major panel, on two threads.
pub(super) fn product_bytes<T>(m: usize, l: usize) -> usize {
    2 * block_rows(m).min(m) * l * size_of::<T>()
}

/// `y <- [y +] a x`.
pub(super) fn product<T: Scalar>(
    accum: Accum,
    a: MatRef<'_, T>,
    x: MatRef<'_, T>,
    mut y: MatMut<'_, T>,
    context: &HostContext,
) {
    let (m, l) = y.shape();
    let par = threads(m * l * a.ncols(), context.par());
    let rows = block_rows(m);
    if m <= rows {
        return matmul(y, accum, a, x, T::one(), Par::Seq);
    }
    let transposed = accum == Accum::Replace && is_by_rows(a) && y.row_stride() == 1 && l > 1;
    let mut blocks = Vec::with_capacity(m.div_ceil(rows));
    for first in (0..m).step_by(rows) {
        let (block, rest) = y.split_at_row_mut(rows.min(m - first));
        blocks.push((first, block));
        y = rest;
    }
    let scratch = || context.buffer::<T>(if transposed { rows * l } else { 0 });
    let run = |scratch: &mut Buffer<T>, (first, y): (usize, MatMut<'_, T>)| {
        let a = a.subrows(first, y.nrows());
        if transposed {
            let block = &mut scratch[..y.nrows() * l];
            let by_rows = MatMut::from_row_major_slice_mut(block, y.nrows(), l);
            matmul(by_rows, Accum::Replace, a, x, T::one(), Par::Seq);
            transpose(block, y);
        } else {
            matmul(y, accum, a, x, T::one(), Par::Seq);
        }
    };
    match par {
        Par::Seq => {
            let mut scratch = scratch();
            blocks.into_iter().for_each(|block| run(&mut scratch, block));
        }
        Par::Rayon(_) => blocks.into_par_iter().for_each_init(scratch, run),
    }
}

/// Side of the squares of a transposition: a cache line of f32.
const SQUARE: usize = 16;

/// Column-major `y` from its elements by rows.
fn transpose<T: Scalar>(by_rows: &[T], mut y: MatMut<'_, T>) {
    let (m, l) = y.shape();
    for i in (0..m).step_by(SQUARE) {
        let rows = SQUARE.min(m - i);
        for j in 0..l {
            let column = y.rb_mut().col_mut(j).try_as_col_major_mut().expect("unit row stride").as_slice_mut();
            for (r, y) in column[i..i + rows].iter_mut().enumerate() {
                *y = by_rows[(i + r) * l + j];
            }
        }
    }
}

/// Partial Gram matrices of an `m × n` matrix: a pure function of the shape.
pub(super) fn gram_groups(m: usize, n: usize) -> usize {
    if n > PARAMS.max_gram_columns || m < 2 * PARAMS.gram_rows {
        return 1;
    }
    1 << (m / (4 * n)).clamp(2, PARAMS.max_groups).ilog2()
}

/// The lower triangle of `g + Σ parts` grows by that of `aᵀa`; `parts` has [`gram_groups`]` - 1` column-major `n × n` matrices.
pub(super) fn add_gram<T: Scalar>(a: MatRef<'_, T>, g: MatMut<'_, T>, parts: &mut [T], par: Par) {
    let (m, n) = a.shape();
    let groups = 1 + parts.len() / (n * n);
    if groups == 1 {
        return syrk(a, g, par);
    }
    let rows = m.div_ceil(groups).next_multiple_of(32);
    let sums =
        std::iter::once(g).chain(parts.chunks_exact_mut(n * n).map(|g| MatMut::from_column_major_slice_mut(g, n, n)));
    let work: Vec<_> = sums.enumerate().take_while(|(i, _)| i * rows < m).collect();
    let run = |(i, mut g): (usize, MatMut<'_, T>)| {
        let a = a.subrows(i * rows, rows.min(m - i * rows));
        for first in (0..a.nrows()).step_by(PARAMS.gram_rows) {
            strips(a.subrows(first, PARAMS.gram_rows.min(a.nrows() - first)), g.rb_mut());
        }
    };
    match threads(m * n * n / 2, par) {
        Par::Seq => work.into_iter().for_each(run),
        Par::Rayon(_) => work.into_par_iter().for_each(run),
    }
}

/// The lower triangle of `g += aᵀa` by one thread; leaves something above the diagonal.
fn strips<T: Scalar>(a: MatRef<'_, T>, mut g: MatMut<'_, T>) {
    let (n, strip) = (a.ncols(), PARAMS.strip_bytes / size_of::<T>());
    let mut first = 0;
    while first < n {
        // The first strip, which is the shortest, takes the remainder.
        let end = if first == 0 { (n - 1) % strip + 1 } else { first + strip };
        let to = g.rb_mut().submatrix_mut(first, 0, end - first, end);
        matmul(to, Accum::Add, a.subcols(first, end - first).transpose(), a.subcols(0, end), T::one(), Par::Seq);
        first = end;
    }
}

/// The lower triangle of `g += aᵀa`.
fn syrk<T: Scalar>(a: MatRef<'_, T>, g: MatMut<'_, T>, par: Par) {
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(g, lower, Accum::Add, a.transpose(), full, a, full, T::one(), par);
}

/// `g <- g + Σ parts` (lower triangles, in order).
pub(super) fn add_up<T: Scalar>(mut g: MatMut<'_, T>, parts: &[T]) {
    let n = g.ncols();
    for j in 0..n {
        let sum = &mut column_mut(g.rb_mut(), j)[j..];
        for part in parts.chunks_exact(n * n) {
            for (s, x) in sum.iter_mut().zip(&part[j * n + j..(j + 1) * n]) {
                *s += *x;
            }
        }
    }
}

/// Sizes of [`congruence`].
struct CongruenceParams {
    /// Rows of a strip of E.
    rows: usize,
    /// Rows of a strip of g.
    gram_rows: usize,
    /// Of a triangle, where strips of g waste what is beyond the diagonal on both sides.
    triangle_rows: usize,
    /// Columns of a triangle that are multiplied at a time.
    columns: usize,
}

/// Bench `whiten`.
const CONGRUENCE: CongruenceParams = CongruenceParams { rows: 96, gram_rows: 96, triangle_rows: 48, columns: 96 };

/// `g <- bᵀ s b`, n × n times n × c, both triangles, for a symmetric `s` of which the lower triangle is read. `lower` says that b is a lower
/// triangle with zeros above.
///
/// ```text
///   s = T + Tᵀ      E = T b                E_I = Σ_{K <= I} T_IK b_K               of a triangle only what is below the diagonal
///                   g = bᵀE + Eᵀb          g_I = Σ_K b_KIᵀ E_K + E_KIᵀ b_K         as far as the diagonal, only K >= I for a triangle
/// ```
///
/// `c n² + 2 c² n` flops, `n³` for a triangle, and what strips do beyond the diagonal. A strip of rows is one GEMM by one thread: the same
/// bits for any number of them.
pub(super) fn congruence<T: Scalar>(
    s: MatRef<'_, T>,
    b: MatRef<'_, T>,
    lower: bool,
    g: MatMut<'_, T>,
    context: &Arc<HostContext>,
) {
    let (n, c) = b.shape();
    let par = context.par();
    let half = T::from_f64(0.5);
    let mut e = HostPanel::zeros(n, c, context.clone());
    // The longest with the shortest, so that halves of them take as long.
    let mut strips = VecDeque::from(strips_of_rows(e.as_mut(), CONGRUENCE.rows));
    let mut ends = || strips.pop_back().into_iter().chain(strips.pop_front()).collect::<Vec<_>>();
    let work = std::iter::repeat_with(&mut ends).take_while(|ends| !ends.is_empty()).flatten().collect();
    for_each(work, par, |(top, mut e): (usize, MatMut<'_, T>)| {
        let rows = e.nrows();
        let end = top + rows;
        // Of the strip of T the last tile, on the diagonal, is not as it lies in s.
        let diagonal = s.submatrix(top, top, rows, rows);
        let diagonal = Mat::from_fn(rows, rows, |i, j| match i.cmp(&j) {
            Ordering::Less => T::zeroed(),
            Ordering::Equal => half * diagonal[(i, i)],
            Ordering::Greater => diagonal[(i, j)],
        });
        let mut part = |left: usize, cols: usize, first: usize| {
            let mut e = e.rb_mut().subcols_mut(left, cols);
            let b = b.subcols(left, cols);
            matmul(e.rb_mut(), Accum::Replace, diagonal.as_ref(), b.subrows(top, rows), T::one(), Par::Seq);
            if first < top {
                let before = s.submatrix(top, first, rows, top - first);
                matmul(e, Accum::Add, before, b.subrows(first, top - first), T::one(), Par::Seq);
            }
        };
        match lower {
            true => (0..end).step_by(CONGRUENCE.columns).for_each(|j| part(j, CONGRUENCE.columns.min(end - j), j)),
            false => part(0, c, 0),
        }
    });
    let e = e.as_ref();
    // As far as the diagonal, and what is beyond.
    let rows = if lower { CONGRUENCE.triangle_rows } else { CONGRUENCE.gram_rows };
    let (mut lefts, mut rights): (Vec<_>, Vec<_>) = strips_of_rows(g, rows)
        .into_iter()
        .map(|(top, g)| {
            let end = top + g.nrows();
            let (left, right) = g.split_at_col_mut(end);
            ((top, left), (end, right))
        })
        .unzip();
    for_each(lefts.iter_mut().collect(), par, |(top, g): &mut (usize, MatMut<'_, T>)| {
        let (rows, end) = g.shape();
        let first = if lower { *top } else { 0 };
        let (b, e) = (b.subrows(first, n - first), e.subrows(first, n - first));
        let (b_i, e_i) = (b.subcols(*top, rows).transpose(), e.subcols(*top, rows).transpose());
        matmul(g.rb_mut(), Accum::Replace, b_i, e.subcols(0, end), T::one(), Par::Seq);
        matmul(g.rb_mut(), Accum::Add, e_i, b.subcols(0, end), T::one(), Par::Seq);
        mirror(g.rb_mut().subcols_mut(*top, rows));
    });
    let lefts = &lefts;
    for_each(rights.iter_mut().enumerate().collect(), par, |(i, (end, g)): (usize, &mut (usize, MatMut<'_, T>))| {
        for (top, below) in &lefts[i + 1..] {
            let (rows, left) = (g.nrows(), *end - g.nrows());
            let mut to = g.rb_mut().subcols_mut(top - *end, below.nrows());
            to.copy_from(below.rb().subcols(left, rows).transpose());
        }
    });
}

/// `f` of each item, one task each where there are threads for them.
pub(crate) fn for_each<I: Send>(items: Vec<I>, par: Par, f: impl Fn(I) + Sync + Send) {
    match par {
        Par::Seq => items.into_iter().for_each(f),
        Par::Rayon(_) => items.into_par_iter().with_max_len(1).for_each(f),
    }
}

/// The rows of a matrix, so many at a time, each with the number of the first.
pub(crate) fn strips_of_rows<T>(mut a: MatMut<'_, T>, rows: usize) -> Vec<(usize, MatMut<'_, T>)> {
    let mut strips = Vec::new();
    let mut top = 0;
    while a.nrows() > 0 {
        let rows = rows.min(a.nrows());
        let (strip, below) = a.split_at_row_mut(rows);
        strips.push((top, strip));
        top += rows;
        a = below;
    }
    strips
}

/// Rows widened at a time.
const WIDE_ROWS: usize = 128;

/// Partial Gram matrices of [`wide_gram`].
fn wide_groups(m: usize, l: usize) -> usize {
    let least = if m >= 2 * WIDE_ROWS { 2 } else { 1 };
    1 << (m / (8 * l.max(WIDE_ROWS))).clamp(least, PARAMS.max_groups).ilog2()
}

/// Elements of f64 that [`wide_gram`] takes.
pub(super) fn wide_gram_scratch(m: usize, l: usize) -> usize {
    wide_groups(m, l) * (l + WIDE_ROWS) * l
}

/// The lower triangle of `h <- yᵀy` in f64, y of any layout: [`WIDE_ROWS`] rows at a time are widened, in the order in which
/// they are stored.
pub(super) fn wide_gram<T: Scalar>(y: MatRef<'_, T>, mut h: MatMut<'_, f64>, work: &mut [f64], par: Par) {
    let (m, l) = y.shape();
    let groups = wide_groups(m, l);
    let rows = m.div_ceil(groups);
    let each = (l + WIDE_ROWS) * l;
    let run = |(group, work): (usize, &mut [f64])| {
        let (sum, wide) = work.split_at_mut(l * l);
        sum.fill(0.0);
        let mut sum = MatMut::from_column_major_slice_mut(sum, l, l);
        let y = y.subrows((group * rows).min(m), rows.min(m.saturating_sub(group * rows)));
        for first in (0..y.nrows()).step_by(WIDE_ROWS) {
            let y = y.subrows(first, WIDE_ROWS.min(y.nrows() - first));
            strips(widen(y, wide), sum.rb_mut());
        }
    };
    match threads(m * l * l / 2, par) {
        Par::Seq => work.chunks_exact_mut(each).take(groups).enumerate().for_each(run),
        Par::Rayon(_) => work.par_chunks_exact_mut(each).take(groups).enumerate().for_each(run),
    }
    for j in 0..l {
        let column = column_mut(h.rb_mut(), j);
        column.fill(0.0);
        for work in work.chunks_exact(each).take(groups) {
            for (sum, x) in column[j..].iter_mut().zip(&work[j * l + j..(j + 1) * l]) {
                *sum += x;
            }
        }
    }
}

/// `y` in f64, laid out as it is.
fn widen<'a, T: Scalar>(y: MatRef<'_, T>, wide: &'a mut [f64]) -> MatRef<'a, f64> {
    let (m, l) = y.shape();
    let wide = &mut wide[..m * l];
    let by_rows = is_by_rows(y);
    let lines = if by_rows { y.transpose() } else { y };
    for (j, to) in wide.chunks_exact_mut(lines.nrows()).enumerate() {
        match lines.col(j).try_as_col_major() {
            Some(from) => to.iter_mut().zip(from.as_slice()).for_each(|(to, &x)| *to = x.to_f64()),
            None => to.iter_mut().zip(lines.col(j).iter()).for_each(|(to, &x)| *to = x.to_f64()),
        }
    }
    if by_rows { MatRef::from_row_major_slice(wide, m, l) } else { MatRef::from_column_major_slice(wide, m, l) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::Panel as _;

    /// Tiles, parts of tiles, and one element; against the definition, in f64: `n` products, twice.
    #[test]
    fn congruence_is_a_congruence() {
        let entry =
            |seed: usize, i: usize, j: usize| ((i * 7919 + j * 104_729 + seed * 31) % 1009) as f64 / 504.0 - 1.0;
        let context = HostContext::new(Par::rayon(2));
        for (n, c) in [
            (1, 1),
            (127, 127),
            (128, 128),
            (129, 129),
            (95, 95),
            (96, 96),
            (97, 97),
            (300, 300),
            (300, 7),
            (257, 200),
            (130, 129),
        ] {
            let s = Mat::from_fn(n, n, |i, j| if i >= j { entry(1, i, j) } else { f64::NAN });
            let whole = Mat::from_fn(n, n, |i, j| entry(1, i.max(j), i.min(j)));
            for lower in [false, true] {
                if lower && n != c {
                    continue;
                }
                let b = Mat::from_fn(n, c, |i, j| if lower && i < j { 0.0 } else { entry(2, i, j) });
                let mut g = HostPanel::zeros(c, c, context.clone());
                g.as_mut().fill(f64::NAN);
                congruence(s.as_ref(), b.as_ref(), lower, g.as_mut(), &context);
                let want = b.transpose() * &whole * &b;
                let off = (g.as_ref() - &want).norm_max();
                assert!(off <= 4.0 * (n * n) as f64 * f64::EPSILON, "{n}×{c} {lower}: {off:e}");
                assert!((g.trace().unwrap() - (0..c).map(|i| want[(i, i)]).sum::<f64>()).abs() <= c as f64 * 1e-10);
            }
        }
    }
}
