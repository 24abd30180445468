//! Forms Gram matrices of dense matrices, `AᵀA` and `A Aᵀ`, in the arithmetic of A or in f64.
//!
//! ```text
//!   A_i  blocks of rows      G_g += A_iᵀ A_i      SYRK, blocks i of group g, groups added up in order
//!
//!   G  [ x . . .           ]   a block is formed in strips of rows of G, one GEMM each;
//!      [ x x x x . .       ]   what a strip writes above the diagonal is never read
//!      [ x x x x x x . .   ]
//! ```
//!
//! **Cost.** `m n²` flops, `A` read once.
//!
//! **Why this way.** One SYRK for all rows streams G through the caches once per packing; blocks of rows do not. Within
//! a block, strips of rows are faster than the triangular product of faer, because each is one GEMM. Every block is
//! done by one thread, whatever their number, so the bits are the same. Figures: `benches/NOTES.md`.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::prelude::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};

use super::blocks::threads;
use super::columns::{column_mut, is_by_rows};
use crate::parallel;
use crate::simd::Scalar;

/// Block sizes of [`add_gram`] and [`symmetric_product`].
struct Params {
    /// Rows of a block.
    gram_rows: usize,
    /// The most columns of a Gram matrix that fits in L2 with its block. A larger one is formed by one SYRK.
    max_gram_columns: usize,
    /// The most partial Gram matrices.
    max_groups: usize,
    /// Bytes of a row of a strip of G, one tile of the GEMM: 96 elements of f32.
    strip_bytes: usize,
}

const PARAMS: Params = Params { gram_rows: 128, max_gram_columns: 1536, max_groups: 8, strip_bytes: 384 };

/// Returns how many partial Gram matrices an `m × n` matrix has: a pure function of the shape.
pub(crate) fn gram_groups(m: usize, n: usize) -> usize {
    if n > PARAMS.max_gram_columns || m < 2 * PARAMS.gram_rows {
        return 1;
    }
    1 << (m / (4 * n)).clamp(2, PARAMS.max_groups).ilog2()
}

/// Adds the lower triangle of `aᵀa` to `g + Σ parts`; `parts` has [`gram_groups`]` - 1` column-major `n × n` matrices.
/// What is above the diagonals may be overwritten.
pub(crate) fn add_gram<T: Scalar>(a: MatRef<'_, T>, g: MatMut<'_, T>, parts: &mut [T], par: Par) {
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
    parallel::for_each_of(threads(m * n * n / 2, par), work, run);
}

/// Adds the lower triangle of `aᵀa` to `g` without partial sums, for few rows beside which others are done meanwhile.
/// What is above the diagonal may be overwritten.
pub(crate) fn add_gram_of_block<T: Scalar>(a: MatRef<'_, T>, mut g: MatMut<'_, T>, par: Par) {
    if a.ncols() > PARAMS.max_gram_columns {
        return syrk(a, g, par);
    }
    for first in (0..a.nrows()).step_by(PARAMS.gram_rows) {
        strips(a.subrows(first, PARAMS.gram_rows.min(a.nrows() - first)), g.rb_mut());
    }
}

/// Adds the lower triangle of `aᵀa` to `g` on one thread, strip by strip. Elements above the diagonal are overwritten.
fn strips<T: Scalar>(a: MatRef<'_, T>, mut g: MatMut<'_, T>) {
    let (n, strip) = (a.ncols(), PARAMS.strip_bytes / size_of::<T>());
    let mut first = 0;
    while first < n {
        // The first strip is the shortest and takes the remainder.
        let end = if first == 0 { (n - 1) % strip + 1 } else { first + strip };
        let to = g.rb_mut().submatrix_mut(first, 0, end - first, end);
        matmul(to, Accum::Add, a.subcols(first, end - first).transpose(), a.subcols(0, end), T::one(), Par::Seq);
        first = end;
    }
}

/// Adds the lower triangle of `aᵀa` to `g` with one triangular product.
fn syrk<T: Scalar>(a: MatRef<'_, T>, g: MatMut<'_, T>, par: Par) {
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(g, lower, Accum::Add, a.transpose(), full, a, full, T::one(), par);
}

/// Computes `g <- g + Σ parts`: lower triangles only, added in order.
pub(crate) fn add_up<T: Scalar>(mut g: MatMut<'_, T>, parts: &[T]) {
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

/// Computes the lower triangle of `g <- [g +] a aᵀ` (SYRK).
pub(crate) fn symmetric_product<T: Scalar>(a: MatRef<'_, T>, g: MatMut<'_, T>, accum: Accum, par: Par) {
    triangular::matmul(
        g,
        BlockStructure::TriangularLower,
        accum,
        a,
        BlockStructure::Rectangular,
        a.transpose(),
        BlockStructure::Rectangular,
        T::one(),
        par,
    );
}

/// How many rows [`wide_gram`] widens at a time.
const WIDE_ROWS: usize = 128;

/// Returns how many partial Gram matrices [`wide_gram`] forms.
fn wide_groups(m: usize, l: usize) -> usize {
    let least = if m >= 2 * WIDE_ROWS { 2 } else { 1 };
    1 << (m / (8 * l.max(WIDE_ROWS))).clamp(least, PARAMS.max_groups).ilog2()
}

/// Returns how many elements of f64 [`wide_gram`] needs as `work`.
pub(crate) fn wide_gram_scratch(m: usize, l: usize) -> usize {
    wide_groups(m, l) * (l + WIDE_ROWS) * l
}

/// Computes the lower triangle of `h <- yᵀy` in f64, for `y` of any layout. It widens [`WIDE_ROWS`] rows at a time, in
/// the order in which they are stored.
pub(crate) fn wide_gram<T: Scalar>(y: MatRef<'_, T>, mut h: MatMut<'_, f64>, work: &mut [f64], par: Par) {
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
    let parts = work.chunks_exact_mut(each).take(groups).enumerate().collect();
    parallel::for_each_of(threads(m * l * l / 2, par), parts, run);
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

/// Copies `y` to f64 in the layout that it has, and returns the copy.
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
