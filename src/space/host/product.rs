//! GEMM of a matrix in memory with tall panels, cut into blocks of rows by shape, and congruences.
//!
//! ```text
//!   Y = A X     ┌────────┐   Y_i = A_i X       into a row-major block that stays in L2,
//!    m × l      │  A_i   │                     then transposed into Y if that is column-major
//!               ├────────┤
//!               │  ...   │
//!               └────────┘
//! ```
//!
//! **Cost.** `2 m n l` flops, `A` read once.
//!
//! **Why this way.** One GEMM for all of it would pack a row-major A in short runs to write a column-major Y (0.5 to
//! 0.9 of the time is left: `benches/NOTES.md`). Every block is done by one thread, whatever their number: the bits are
//! the same, and no thread waits for another inside a GEMM.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use faer::linalg::matmul::matmul;
use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::memory::{Buffer, Host};
use super::panel::HostPanel;
use crate::linalg::{is_by_rows, mirror, panel_product_in_blocks, panel_scratch, threads, transpose};
use crate::parallel::{self, lock, row_blocks};
use crate::simd::Scalar;
use crate::tensor::Element;

/// Sizes of the blocks.
struct Params {
    /// The most rows of a block.
    rows: usize,
    /// The fewest rows of a block, because each packs X again.
    min_rows: usize,
}

const PARAMS: Params = Params { rows: 512, min_rows: 96 };

/// Returns the rows of the blocks of a product with m rows.
fn block_rows(m: usize) -> usize {
    (m / 8).next_multiple_of(32).clamp(PARAMS.min_rows, PARAMS.rows)
}

/// Returns the bytes that [`product`] into a column-major panel allocates while it runs on two threads.
pub(crate) fn product_bytes<T>(m: usize, l: usize) -> usize {
    2 * block_rows(m).min(m) * l * size_of::<T>()
}

/// Computes `y <- [y +] a x`.
pub(crate) fn product<T: Scalar>(accum: Accum, a: MatRef<'_, T>, x: MatRef<'_, T>, y: MatMut<'_, T>, space: &Host) {
    let (m, l) = y.shape();
    let par = threads(m * l * a.ncols(), space.par());
    let rows = block_rows(m);
    if m <= rows {
        return matmul(y, accum, a, x, T::one(), Par::Seq);
    }
    let transposed = accum == Accum::Replace && is_by_rows(a) && y.row_stride() == 1 && l > 1;
    let scratch = || space.buffer::<T>(if transposed { rows * l } else { 0 });
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
    parallel::for_each_with(par, row_blocks(y, rows), scratch, run);
}

/// Returns the bytes that [`product_as_stored`] with a result of m rows takes on two threads.
pub(crate) fn product_as_stored_bytes<T: Scalar>(m: usize, l: usize) -> usize {
    2 * panel_scratch::<T>(block_rows(m).min(m), l) * size_of::<T>()
}

/// Computes `y <- scale · a x` by the kernel that widens `a` in registers, for a product that it wins
/// ([`wins`](crate::linalg::wins)). The scratch of the threads is cut from `buffer` as long as that lasts.
pub(crate) fn product_as_stored<E: Element, T: Scalar>(
    a: MatRef<'_, E>,
    scale: f64,
    x: MatRef<'_, T>,
    y: MatMut<'_, T>,
    space: &Host,
    buffer: &mut [T],
) {
    let rows = block_rows(a.nrows());
    let each = panel_scratch::<T>(rows.min(a.nrows()), x.ncols());
    let free = Mutex::new(buffer.chunks_exact_mut(each).collect::<Vec<_>>());
    let scratch = |len| {
        let part = lock(&free).pop();
        let own = if part.is_none() { Some(space.buffer(len)) } else { None };
        Scratch { part, own, free: &free }
    };
    panel_product_in_blocks(Accum::Replace, a, scale, x, y, (rows, space.par()), scratch);
}

/// The scratch of a thread: a part of a buffer, which goes back to the free ones, or a buffer of its own.
struct Scratch<'a, 'b, T> {
    part: Option<&'b mut [T]>,
    own: Option<Buffer<T>>,
    free: &'a Mutex<Vec<&'b mut [T]>>,
}

impl<T: Scalar> Deref for Scratch<'_, '_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match (&self.part, &self.own) {
            (Some(part), _) => part,
            (None, Some(own)) => own,
            (None, None) => &[],
        }
    }
}

impl<T: Scalar> DerefMut for Scratch<'_, '_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match (&mut self.part, &mut self.own) {
            (Some(part), _) => part,
            (None, Some(own)) => own,
            (None, None) => &mut [],
        }
    }
}

impl<T> Drop for Scratch<'_, '_, T> {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            lock(self.free).push(part);
        }
    }
}

/// Block sizes of [`congruence`].
struct CongruenceParams {
    /// Rows of a strip of E.
    rows: usize,
    /// Rows of a strip of g for a general b.
    gram_rows: usize,
    /// Rows of a strip of g for a triangular b, where strips waste what is beyond the diagonal on both sides.
    triangle_rows: usize,
    /// Columns of a triangle that are multiplied at a time.
    columns: usize,
}

/// The sizes that the bench `whiten` found fastest.
const CONGRUENCE: CongruenceParams = CongruenceParams { rows: 96, gram_rows: 96, triangle_rows: 48, columns: 96 };

/// Computes `g <- bᵀ s b` (b is n × c, g is c × c, both triangles written) for a symmetric `s` of which the lower
/// triangle is read. `lower` says that b is a lower triangle with zeros above.
///
/// ```text
///   s = T + Tᵀ      E = T b           E_I = Σ_{K <= I} T_IK b_K           only below the diagonal for a triangle
///                   g = bᵀE + Eᵀb     g_I = Σ_K b_KIᵀ E_K + E_KIᵀ b_K  up to the diagonal, only K >= I for a triangle
/// ```
///
/// It takes `c n² + 2 c² n` flops, `n³` for a triangle, and what strips do beyond the diagonal. A strip of rows is one
/// GEMM by one thread, so that the bits are the same for any number of them.
pub(crate) fn congruence<T: Scalar>(s: MatRef<'_, T>, b: MatRef<'_, T>, lower: bool, g: MatMut<'_, T>, space: &Host) {
    let (n, c) = b.shape();
    let par = space.par();
    let half = T::from_f64(0.5);
    let mut e = HostPanel::zeros(n, c, space);
    // The longest strip is paired with the shortest, so that the halves take as long.
    let mut strips = VecDeque::from(row_blocks(e.as_mut(), CONGRUENCE.rows));
    let mut ends = || strips.pop_back().into_iter().chain(strips.pop_front()).collect::<Vec<_>>();
    let work = std::iter::repeat_with(&mut ends).take_while(|ends| !ends.is_empty()).flatten().collect();
    parallel::for_each_of(par, work, |(top, mut e): (usize, MatMut<'_, T>)| {
        let rows = e.nrows();
        let end = top + rows;
        // The last tile of the strip of T is on the diagonal and differs from that of s.
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
    // A strip reaches to the diagonal, and some elements beyond.
    let rows = if lower { CONGRUENCE.triangle_rows } else { CONGRUENCE.gram_rows };
    let (mut lefts, mut rights): (Vec<_>, Vec<_>) = row_blocks(g, rows)
        .into_iter()
        .map(|(top, g)| {
            let end = top + g.nrows();
            let (left, right) = g.split_at_col_mut(end);
            ((top, left), (end, right))
        })
        .unzip();
    parallel::for_each_of(par, lefts.iter_mut().collect(), |(top, g): &mut (usize, MatMut<'_, T>)| {
        let (rows, end) = g.shape();
        let first = if lower { *top } else { 0 };
        let (b, e) = (b.subrows(first, n - first), e.subrows(first, n - first));
        let (b_i, e_i) = (b.subcols(*top, rows).transpose(), e.subcols(*top, rows).transpose());
        matmul(g.rb_mut(), Accum::Replace, b_i, e.subcols(0, end), T::one(), Par::Seq);
        matmul(g.rb_mut(), Accum::Add, e_i, b.subcols(0, end), T::one(), Par::Seq);
        mirror(g.rb_mut().subcols_mut(*top, rows));
    });
    let lefts = &lefts;
    parallel::for_each_of(
        par,
        rights.iter_mut().enumerate().collect(),
        |(i, (end, g)): (usize, &mut (usize, MatMut<'_, T>))| {
            for (top, below) in &lefts[i + 1..] {
                let (rows, left) = (g.nrows(), *end - g.nrows());
                let mut to = g.rb_mut().subcols_mut(top - *end, below.nrows());
                to.copy_from(below.rb().subcols(left, rows).transpose());
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Space as _;

    /// Checks tiles, parts of tiles, and one element against the definition in f64, which is two times `n` products.
    #[test]
    fn congruence_is_a_congruence() {
        let entry =
            |seed: usize, i: usize, j: usize| ((i * 7919 + j * 104_729 + seed * 31) % 1009) as f64 / 504.0 - 1.0;
        let space = Host::new(Par::rayon(2));
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
                let mut g = HostPanel::zeros(c, c, &space);
                g.as_mut().fill(f64::NAN);
                congruence(s.as_ref(), b.as_ref(), lower, g.as_mut(), &space);
                let want = b.transpose() * &whole * &b;
                let off = (g.as_ref() - &want).norm_max();
                assert!(off <= 4.0 * (n * n) as f64 * f64::EPSILON, "{n}×{c} {lower}: {off:e}");
                assert!(
                    (space.trace(&g).unwrap() - (0..c).map(|i| want[(i, i)]).sum::<f64>()).abs() <= c as f64 * 1e-10
                );
            }
        }
    }
}
