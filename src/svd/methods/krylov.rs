//! Block Krylov iteration (Musco, Musco, NeurIPS 2015; RBKI in Tropp, Webber, arXiv 2306.12418): the randomized method
//! that keeps every panel it has multiplied.
//!
//! ```text
//!   Q_1 = orth(A Ω),    X_i = AᵀQ_i,    Q_{i+1} = orth(A X_i − [Q_1 .. Q_i] C)        b columns each, t blocks
//!
//!   K = [Q_1 .. Q_t],   KᵀA = [X_1 .. X_t]ᵀ is there already,   Rayleigh-Ritz on it
//! ```
//!
//! **Cost.** K holds `p(AAᵀ) A Ω` for every polynomial of degree t − 1, so that nothing has to choose one, for
//! `(2t − 1) · 2 m n b` flops in `2t` passes. A small block with more steps reaches further for the same products
//! (Tropp and Webber), until the GEMM is too narrow. With [`blocks`](Blocks)`(q) = q + 2` and `b = l / 2` the products
//! are those of `q + 3/2` panels of l columns, against `2q + 1` of the randomized method with q power iterations, and
//! the error is smaller (`benches/NOTES.md`).
//!
//! **Copies.** A block of b columns finds at most b copies of a singular value, whatever the number of steps, and
//! nothing in the space tells of the others. As many tied values as a block has columns are therefore [taken for
//! more](may_lack_copies), and the randomized method, which finds l, takes over.
//!
//! **Orthogonality.** Every block is made orthogonal to all before it, not to the last two as exact arithmetic would
//! have it: that takes `m l²` flops in all, and no basis loses its orthogonality without notice.

use faer::{Mat, Par};

use super::adaptive::{orthonormalize_against, side_by_side};
use super::randomized;
use crate::error::Result;
use crate::operator::LinearOperator;
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::{HostPanel, Space};
use crate::svd::cost::Work;
use crate::svd::footprint::Footprint;
use crate::svd::rank_target::RankTarget;
use crate::svd::solution::Solution;
use crate::svd::stream;
use crate::svd::task::Task;
use crate::svd::triplets::{Triplets, decompose_bytes};

/// The number of steps and the columns of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    count: usize,
    width: usize,
}

impl Blocks {
    /// Chooses blocks for panels of `l` columns and `q` power iterations of an operator with `n` columns. The result is
    /// `None` if the basis would be wider than n, because nothing is left for a polynomial to choose then.
    fn new(l: usize, power_iterations: usize, n: usize) -> Option<Self> {
        let count = power_iterations.saturating_add(2);
        let half = l.div_ceil(2);
        // GEMM is faster with multiples of 16. A few columns less than half cost nothing where the spectrum decays, and
        // little on i.i.d. entries (`benches/NOTES.md`).
        let down = half / 16 * 16;
        let loses_little = 13 * down >= 12 * half && n >= 28 * l;
        let width = if loses_little { down } else { half.next_multiple_of(8).min(n) };
        // A panel of all n columns holds the range whatever it is, and a flat spectrum has no Krylov space beyond the
        // first block.
        (l < n && width.saturating_mul(count) <= n).then_some(Blocks { count, width })
    }

    /// Returns the columns of the basis.
    fn columns(&self) -> usize {
        self.count * self.width
    }
}

/// The relative distance below which values count as copies, after so few steps.
const TIED: f64 = 1e-3;

/// Tells whether some of the first `rank` singular values have as many copies as a block has columns, so that there may
/// be more.
fn may_lack_copies<T: Scalar>(blocks: Blocks, s: &[T], rank: usize) -> bool {
    let value = |i: usize| s[i].to_f64();
    let ends = s.len().saturating_sub(blocks.width - 1).min(rank);
    let noise = 32.0 * T::EPSILON * value(0);
    (0..ends).any(|i| value(i) > noise && value(i + blocks.width - 1) >= (1.0 - TIED) * value(i))
}

pub(super) fn allowed(task: &Task) -> bool {
    task.rank.is_some() && Blocks::new(task.width, task.power_iterations, task.tall().1).is_some()
}

pub(super) fn cost(work: &Work<'_>) -> (f64, usize) {
    let &Work { m, n, .. } = work;
    let blocks = match work.task.rule.looks_at_spectrum() {
        false => Blocks::new(work.width, work.task.power_iterations, n as usize),
        true => None,
    };
    let Some(blocks) = blocks else { return randomized::cost(work) };
    let (count, width, columns) = (blocks.count as f64, blocks.width as f64, blocks.columns() as f64);
    let products = work.sketch(m, n) + (2.0 * count - 1.0) * work.product(m, n, width);
    // Each block is made orthogonal to those before it, twice.
    let against = work.flops(2.0 * m * width * width * count * (count - 1.0)) + work.copy(2.0 * (m + n) * columns);
    let calls = 0.5 * count * (count - 1.0) * work.rates.call;
    let orths = (2.0 * count - 1.0) * work.orthonormalize(m, width) + calls;
    let seconds = work.crowding() * (products + against + orths + work.finish(n, columns));
    (seconds + work.begin(), 2 * blocks.count)
}

pub(super) fn peak<T: Scalar>(f: &Footprint) -> usize {
    let &Footprint { m, n, .. } = f;
    let Some(Blocks { count, width: b }) = Blocks::new(f.width, f.power_iterations, n) else {
        return randomized::peak::<T>(f);
    };
    let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
    let small = |rows: usize, cols: usize| rows * cols * size_of::<T>();
    let scratch = HostPanel::<T>::orthonormalize_scratch(m, b, Par::Seq).unaligned_bytes_required();
    // Each side is put together while the blocks of the other are still apart.
    let (left, right) = (panel(m, count * b), panel(n, count * b));
    let after = left.max(right).max(decompose_bytes::<T>(n, count * b, false, 0));
    let home = small(count * b, count * b) + f.home::<T>(right + small(count * b, count * b));
    // The overlap of two blocks counts, too.
    let kept = (left + right + small(b, b) + f.pass::<T>(scratch, b).max(after)).max(left + home);
    // The randomized method takes over where there are ties that a block cannot hold.
    f.certified::<T>(kept.max(randomized::by_products::<T>(f, !f.searched)), true)
}

/// Solves the task, by the randomized method where blocks cannot.
pub(super) fn solve<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    if task.rank.is_none() {
        return randomized::solve(task, op, target, false, par);
    }
    let Some(blocks) = Blocks::new(task.width, task.power_iterations, op.ncols()) else {
        let mut next = randomized::solve(task, op, target, false, par)?;
        next.notes.push("block Krylov would span the whole space; took randomized".to_owned());
        return Ok(next);
    };
    let solution = by_blocks(task, op, blocks, target, par)?;
    if !may_lack_copies(blocks, &solution.triplets.s, solution.rank) {
        return Ok(solution);
    }
    drop(solution);
    let mut next = randomized::solve(task, op, target, true, par)?;
    let width = blocks.width;
    next.notes.push(format!("{width} or more tied values, of which a block holds {width}; took randomized"));
    Ok(next)
}

/// Computes the factors by these blocks.
fn by_blocks<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    blocks: Blocks,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let (b, width) = (blocks.width, task.width);
    let omega = task.omega(op.ncols(), b, stream::RANGE)?;
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
    let found = Triplets::from_left(&space, basis, image, false, |s, captured| target.rank(s, captured), par)?;
    Ok(Solution::of_triplets(found, width, Method::Krylov, Some(task.sketch)))
}
