//! Randomized SVD (Halko, Martinsson, Tropp, SIAM Rev. 2011, algorithms 4.4 and 5.1): power iterations on `A Ω`, then
//! the image `AᵀQ`. `2q + 2` passes of `2 m n l` flops, the first one cheaper with a fast sketch.

use faer::Par;

use super::adaptive;
use crate::error::Result;
use crate::operator::LinearOperator;
use crate::range::{power_iteration, shifted_power_iteration, sparing_power_iteration};
use crate::rank::Rank;
use crate::report::Method;
use crate::simd::Scalar;
#[cfg(feature = "cuda")]
use crate::space::Effort;
use crate::space::{HostPanel, Panel, Space};
use crate::svd::cost::Work;
use crate::svd::footprint::Footprint;
use crate::svd::rank_target::RankTarget;
use crate::svd::solution::Solution;
use crate::svd::stream;
use crate::svd::task::Task;
use crate::svd::triplets::{Triplets, decompose_bytes};

/// Tells whether a subspace can show what is asked for. It cannot count the values above a threshold.
pub(super) fn allowed(task: &Task) -> bool {
    !matches!(task.rule, Rank::Above(_))
}

pub(super) fn cost(work: &Work<'_>) -> (f64, usize) {
    if work.task.rule.looks_at_spectrum() {
        return adaptive::cost(work);
    }
    let &Work { m, n, l, .. } = work;
    let (q, call) = (work.task.power_iterations, work.rates.call);
    let steps = q as f64;
    let products = work.sketch(m, n) + (2.0 * steps + 1.0) * work.product(m, n, l) + (2.0 * steps + 2.0) * call;
    let orths = (steps + 1.0) * work.orthonormalize(m, l) + steps * work.orthonormalize(n, l);
    (work.crowding() * (products + orths + work.finish(n, l)) + work.begin(), 2 * q + 2)
}

pub(super) fn peak<T: Scalar>(f: &Footprint) -> usize {
    f.certified::<T>(by_products::<T>(f, false), true)
}

/// Returns the bytes alive at the fullest moment of [`solve`] in memory, and of bringing the factors home.
pub(super) fn by_products<T: Scalar>(f: &Footprint, sparing: bool) -> usize {
    let &Footprint { m, n, width: l, .. } = f;
    let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
    let (small, wide) = (l * l * size_of::<T>(), l * l * size_of::<f64>());
    let scratch = |rows: usize| match sparing {
        true => HostPanel::<T>::orthonormalize_sparingly_scratch(rows, l, false, Par::Seq).unaligned_bytes_required(),
        false => HostPanel::<T>::orthonormalize_scratch(rows, l, Par::Seq).unaligned_bytes_required(),
    };
    let scratch = scratch(m).max(scratch(n));
    // The second panel comes with R in two types.
    let second = if f.shifted && !sparing { panel(m, l) + 2 * small + wide } else { 0 };
    // A rank that is searched for ends with an image of the long side.
    let searched = if f.searched { decompose_bytes::<T>(m, l, sparing, scratch) } else { 0 };
    let after = decompose_bytes::<T>(n, l, sparing, scratch).max(searched);
    let solved = panel(m, l) + panel(n, l) + (second + f.pass::<T>(scratch, l)).max(after);
    let home = panel(m, l) + small;
    match sparing {
        // The long side is combined in its own memory.
        true => {
            let right = home + f.n * f.rank * size_of::<T>() + panel(n, l) + small;
            solved.max(right).max(panel(m, f.rank) + f.factors::<T>())
        }
        false => solved.max(home + f.home::<T>(panel(n, l) + small)),
    }
}

/// Solves the task, by blocks where the spectrum decides the rank. `sparing` keeps to little scratch, where another
/// method that took less has failed; it leaves out the shift, which has a panel of its own.
pub(in crate::svd) fn solve<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    sparing: bool,
    par: Par,
) -> Result<Solution<T, S>> {
    if task.rank.is_none() {
        return adaptive::solve(task, op, target, par);
    }
    let (y, mut x) = range(task, op, sparing)?;
    op.apply_adjoint(&y, &mut x)?;
    let found = Triplets::from_left(op.space(), y, x, sparing, |s, captured| target.rank(s, captured), par)?;
    Ok(Solution::of_triplets(found, task.width, Method::Randomized, Some(task.sketch)))
}

/// Computes an orthonormal basis of the range, and makes the panel of its image.
fn range<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    sparing: bool,
) -> Result<(Panel<T, S>, Panel<T, S>)> {
    let (width, q) = (task.width, task.power_iterations);
    let omega = task.omega(op.ncols(), width, stream::RANGE)?;
    let (mut y, mut x) = (op.left(width)?, op.right(width)?);
    if sparing {
        sparing_power_iteration(op, &omega, q, &mut y, &mut x)?;
    } else if task.is_shifted() {
        let mut z = op.left(width)?;
        shifted_power_iteration(op, &omega, q, &mut y, &mut x, &mut z)?;
    } else {
        power_iteration(op, &omega, q, &mut y, &mut x)?;
    }
    Ok((y, x))
}

/// The part of `σ_1` above which `σ_k` has to be for the range of a matrix rounded to bf16. Rounding, of relative size
/// `2^-9` in each element, is noise of about `2^-9 ‖A‖_F / √min(m, n)` in the spectral norm, which is well below such a
/// `σ_k` unless the spectrum has a heavy head.
#[cfg(feature = "cuda")]
const COARSE_DECAY: f64 = 1.0 / 64.0;

/// Does [`solve`] for a fixed rank, with the range of `coarse`: the same matrix in arithmetic that rounds panels. If it
/// rounds the matrix, too, the subspace is improved by one step with `op` where the spectrum asks for that.
///
/// For a panel X̃ that was rounded, `A X̃` is in the range of A as is `A X`: only a matrix that was rounded has another range.
#[cfg(feature = "cuda")]
pub(in crate::svd) fn solve_coarsely<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    (coarse, is_rounded): (&mut dyn LinearOperator<T, Space = S>, bool),
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let choose = |s: &[T], captured: f64| target.rank(s, captured);
    let (y, mut x) = range(task, coarse, false)?;
    op.apply_adjoint(&y, &mut x)?;
    let (triplets, rank, notes) = Triplets::from_left(op.space(), y, x, false, choose, par)?;
    let (largest, least) = (triplets.s[0].to_f64(), triplets.s[rank - 1].to_f64());
    let mut found = (triplets, rank, notes);
    if is_rounded && least < COARSE_DECAY * largest {
        let space = op.space().clone();
        let y = found.0.left.formed(&space, task.width)?;
        let (mut x, mut z) = (op.right(task.width)?, op.left(task.width)?);
        op.apply_adjoint(&y, &mut x)?;
        drop(y);
        space.orthonormalize(&mut x, None, Effort::Fast)?;
        op.apply(&x, &mut z)?;
        space.orthonormalize(&mut z, None, Effort::Fast)?;
        op.apply_adjoint(&z, &mut x)?;
        found = Triplets::from_left(&space, z, x, false, choose, par)?;
        found.2.push("the range of the rounded matrix was improved by a step with the matrix itself".to_owned());
    }
    Ok(Solution::of_triplets(found, task.width, Method::Randomized, Some(task.sketch)))
}
