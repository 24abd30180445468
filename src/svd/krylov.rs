//! Block Krylov iteration (Musco, Musco, NeurIPS 2015; RBKI in Tropp, Webber, arXiv 2306.12418): the randomized method
//! that keeps every panel it has multiplied.
//!
//! ```text
//!   Q_1 = orth(A Ω),    X_i = AᵀQ_i,    Q_{i+1} = orth(A X_i − [Q_1 .. Q_i] C)        b columns each, t blocks
//!
//!   K = [Q_1 .. Q_t],   KᵀA = [X_1 .. X_t]ᵀ is there already,   Rayleigh-Ritz on it
//! ```
//!
//! K holds `p(AAᵀ) A Ω` for every polynomial of degree t − 1, so that nothing has to choose one. `(2t − 1) · 2 m n b` flops in
//! `2t` passes. A small block with more steps reaches further for the same products (Tropp and Webber), until the GEMM is too narrow;
//! with [`blocks`]`(q) = q + 2` and `b = l / 2` the products are those of `q + 3/2` panels of l columns, against `2q + 1` of
//! the randomized method with q power iterations, and the error is smaller. Excess over the optimum and products in units of l
//! columns for a diagonal matrix with σ_i = i^-0.5, n = 4096, k = 128, by simulation (t = 2, 3 and b = 0.4 l interpolated):
//!
//! ```text
//!   randomized q = 2    5.0    0.72 %            t = 4, b = l/2    3.5    0.45 %
//!   t = 2, b = l        3.0    1.7  %            t = 5, b = l/3    3.0    0.9  %
//!   t = 3, b = 0.7 l    3.5    0.8  %            t = 5, b = 0.4 l  3.6    0.3  %
//! ```
//!
//! A block of b columns finds b copies of a singular value at most, whatever the number of steps, and nothing in the space tells of the others. As many
//! tied values as a block has columns are therefore [taken for more](may_lack_copies), and the randomized method, which finds l, takes over.
//!
//! Every block is made orthogonal to all before it, not to the last two as exact arithmetic would have it: `m l²`
//! flops in all, and no basis that has lost its orthogonality without notice.

use faer::{Mat, Par};

use super::blocked::{orthonormalize_against, side_by_side};
use super::goal::Goal;
use super::triplets::Triplets;
use super::{Solution, TruncatedSvd, stream};
use crate::error::Result;
use crate::factors::Slices;
use crate::operator::LinearOperator;
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::Space;

/// Steps and columns of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) count: usize,
    pub(super) width: usize,
}

impl Blocks {
    /// For panels of `l` columns and `q` power iterations of an operator with `n` columns; `None` if the basis would be wider than
    /// that: there is nothing left for a polynomial to choose then.
    pub(super) fn new(l: usize, power_iterations: usize, n: usize) -> Option<Self> {
        let count = power_iterations.saturating_add(2);
        let half = l.div_ceil(2);
        // GEMM likes multiples of 16: b = 64 against 72 takes 12 % less. A few columns less than half cost nothing where the spectrum decays; on i.i.d. entries,
        // against the randomized method, 0.07 % of the error at n = 4096 and k = 128 (72 columns: -0.06 %), and 0.13 % at n = 2048.
        let down = half / 16 * 16;
        let loses_little = 13 * down >= 12 * half && n >= 28 * l;
        let width = if loses_little { down } else { half.next_multiple_of(8).min(n) };
        // A panel of all n columns holds the range whatever it is; a flat spectrum has no Krylov space beyond the first block.
        (l < n && width.saturating_mul(count) <= n).then_some(Blocks { count, width })
    }

    /// Columns of the basis.
    pub(super) fn columns(&self) -> usize {
        self.count * self.width
    }
}

/// Values that lie this close are copies to so few steps.
const TIED: f64 = 1e-3;

/// Whether some of the first `rank` singular values have as many copies as a block has columns, so that there may be more.
pub(super) fn may_lack_copies<T: Scalar>(blocks: Blocks, s: &[T], rank: usize) -> bool {
    let value = |i: usize| s[i].to_f64();
    let ends = s.len().saturating_sub(blocks.width - 1).min(rank);
    let noise = 32.0 * T::EPSILON * value(0);
    (0..ends).any(|i| value(i) > noise && value(i + blocks.width - 1) >= (1.0 - TIED) * value(i))
}

pub(super) fn solve<T: Scalar, S: Space<T>>(
    options: &TruncatedSvd,
    op: &mut dyn LinearOperator<T, Space = S>,
    blocks: Blocks,
    width: usize,
    goal: &Goal,
    par: Par,
) -> Result<Solution<T, S>> {
    let b = blocks.width;
    let omega = options.omega(op.ncols(), b, stream::RANGE)?;
    let space = op.space().clone();
    let (mut basis, mut images) = (Vec::new(), Vec::new());
    let mut overlap = Mat::zeros(b, b);
    let mut y = op.left(b)?;
    op.sketch(&omega, &mut y)?;
    orthonormalize_against(&space, &basis, &mut y, &mut overlap)?;
    loop {
        let mut x = op.right(b)?;
        op.apply_adjoint(&y, &mut x)?;
        basis.push(y);
        images.push(x);
        if images.len() == blocks.count {
            break;
        }
        y = op.left(b)?;
        op.apply(&images[images.len() - 1], &mut y)?;
        orthonormalize_against(&space, &basis, &mut y, &mut overlap)?;
    }
    space.trim();
    let basis = side_by_side(&space, basis, op.left(blocks.columns())?)?;
    let image = side_by_side(&space, images, op.right(blocks.columns())?)?;
    let (triplets, rank, notes) = Triplets::from_left(&space, basis, image, false, |s, captured| goal.rank(s, captured), par)?;
    Ok(Solution {
        triplets,
        rank,
        width,
        method: Method::Krylov,
        sketch: Some(options.sketch),
        certificate: None,
        slices: Slices::Orthogonal,
        notes,
    })
}
