//! Finds the rank for a tolerance: randQB_EI (Yu, Gu, Li, SIAM J. Matrix Anal. Appl. 2018, algorithm 2), then one half
//! step of subspace iteration on everything that it found.
//!
//! ```text
//!   E = ‖A‖²                                       f64
//!   repeat   Y = A Ω_i,  Q_i = orth(Y − Q (QᵀY))   new columns, orthogonal to those before
//!            q−1 times:  Q_i = orth(A orth(AᵀQ_i)), orthogonal to Q again
//!            X_i = AᵀQ_i,   E −= ‖X_i‖²            E = ‖A − Q QᵀA‖², without forming it
//!   until E <= ε² ‖A‖²
//!   V = orth([X_1 X_2 ...]),  A V = Q R,  SVD of R
//! ```
//!
//! A is never deflated or copied; the blocks are. The closing half step is not in the paper: the row space of `QᵀA`
//! lies in V, so that `‖A − A V Vᵀ‖ <= ‖A − Q QᵀA‖`. Hence q−1 iterations inside, `2q + 1` products per column in all
//! (HMT has 2q + 2), and a rank from the better of the two spectra. The Q_i are dropped before `A V` is formed, so that
//! peak memory is that of the randomized method.
//!
//! Blocks grow: the first has [`BlockParams::first`] columns, later ones a quarter of the columns there are, so that at
//! most a fifth is beyond what was needed. The rank comes from the spectrum and does not depend on the blocks.
//!
//! **A threshold.** The rule [`Rank::Above`](crate::Rank::Above) ends the loop at a block whose `X_i` has no value above
//! it: power iterations have turned the block to the largest that are left. Where many values lie near the threshold, a
//! block shows less than there is, so that `Auto` does not come here for that rule, and whoever does is told.
//!
//! **Below the floor.** E loses its digits at `√eps ‖A‖`. For a smaller ε the loop watches `P = A G` with a Gaussian
//! `G` of 16 columns: `P −= Q_i (Q_iᵀP)` keeps `P = (I − QQᵀ) A G`, and `E‖P‖² = 16 ‖A − QQᵀA‖²` at full relative
//! precision, for one more pass in all. The loop stops two standard deviations on the safe side; the certificate has
//! probes of its own.

use faer::{Accum, Mat, Par};

use crate::error::Result;
use crate::operator::LinearOperator;
use crate::report::Method;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Sketch, SketchOperator};
use crate::small;
use crate::space::{Access, Effort, Panel, Space};
use crate::svd::certificate::{PROBES, Spread};
use crate::svd::cost::Work;
use crate::svd::rank_target::RankTarget;
use crate::svd::solution::Solution;
use crate::svd::stream;
use crate::svd::task::Task;
use crate::svd::triplets::Triplets;

/// Column counts of the blocks.
#[derive(Debug, Clone, Copy)]
struct BlockParams {
    /// Columns of the first block: a GEMM panel that keeps both cores busy, and what most low-rank matrices need.
    first: usize,
    /// The inverse growth: a later block has this part of the columns before it, if that is more.
    growth: usize,
}

const PARAMS: BlockParams = BlockParams { first: 32, growth: 4 };

impl BlockParams {
    /// Returns the columns of the block that follows `width` columns, at most `room`.
    fn next(&self, width: usize, room: usize) -> usize {
        (width / self.growth).max(self.first).min(room)
    }
}

/// Returns the passes over A until there are `width` columns.
fn passes(width: usize, power_iterations: usize) -> usize {
    let (mut columns, mut blocks) = (0, 0);
    while columns < width {
        columns += PARAMS.next(columns, width - columns);
        blocks += 1;
    }
    2 * power_iterations.max(1) * blocks + 1
}

pub(super) fn cost(work: &Work<'_>) -> (f64, usize) {
    let &Work { m, n, l, .. } = work;
    let q = work.task.power_iterations;
    // Every round of every block is made orthogonal to the blocks before it, twice.
    let rounds = (q as f64).max(1.0);
    let products = (2.0 * rounds + 1.0) * work.product(m, n, l);
    let orths = rounds * (work.orthonormalize(m, l) + work.flops(4.0 * m * l * l)) + 2.0 * work.orthonormalize(n, l);
    (products + orths + work.finish(m, l) + work.begin(), passes(work.width, q))
}

/// Solves for `target`, with at most the columns of the task.
pub(super) fn solve<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let limit = task.width;
    let norm_squared = op.norm_squared();
    let mut probes = if target.is_below_floor::<T>() && norm_squared > 0.0 { Some(probe(task, op)?) } else { None };
    let space = op.space().clone();
    let (mut left, mut right) = (Vec::<Panel<T, S>>::new(), Vec::<Panel<T, S>>::new());
    let (mut width, mut captured) = (0, 0.0);
    let mut missing = norm_squared;
    let widest = PARAMS.next(limit, limit).max(PARAMS.first.min(limit));
    let mut overlap = Mat::zeros(widest, widest.max(PROBES));
    let mut fruitless = false;
    while width < limit && !fruitless && (width == 0 || !target.is_within_reach::<T>(missing)) {
        let block = PARAMS.next(width, limit - width);
        let stream = stream::BLOCKS + left.len() as u64;
        let omega = task.omega(op.ncols(), block, stream)?;
        let (mut y, mut x) = (op.left(block)?, op.right(block)?);
        op.sketch(&omega, &mut y)?;
        orthonormalize_against(&space, &left, &mut y, &mut overlap)?;
        for _ in 1..task.power_iterations {
            op.apply_adjoint(&y, &mut x)?;
            space.orthonormalize(&mut x, None, Effort::Fast)?;
            op.apply(&x, &mut y)?;
            orthonormalize_against(&space, &left, &mut y, &mut overlap)?;
        }
        op.apply_adjoint(&y, &mut x)?;
        captured += space.dot(&x, &x)?;
        if let Some(threshold) = target.threshold() {
            fruitless = largest(&space, &x, &mut overlap)? <= threshold;
        }
        missing = match &mut probes {
            None => norm_squared - captured,
            Some(p) => {
                remove_span(&space, &y, p, &mut overlap)?;
                Spread::of_panel(&space, p, norm_squared)?.upper() * norm_squared
            }
        };
        left.push(y);
        right.push(x);
        width += block;
    }
    drop((left, probes));

    let mut basis = side_by_side(&space, right, op.right(width)?)?;
    space.orthonormalize(&mut basis, None, Effort::Fast)?;
    let mut image = op.image(width)?;
    op.apply(&basis, &mut image)?;
    let choose = |s: &[T], captured| match target.is_below_floor::<T>() {
        true => target.rank_given(s, missing),
        false => target.rank(s, captured),
    };
    let found = Triplets::from_right(&space, Some(basis), image, false, choose, par)?;
    let mut solution = Solution::of_triplets(found, width, Method::Randomized, Some(task.sketch));
    if target.threshold().is_some() && width < op.ncols() {
        solution.notes.push(FROM_A_SUBSPACE.to_owned());
    }
    Ok(solution)
}

/// The note on a threshold that was not held against every singular value.
const FROM_A_SUBSPACE: &str = "the values above the threshold are those of a subspace, and may lack some just above it; methods full and gram see all";

/// Computes `panel <- [X_1 X_2 ...]`. Each block is dropped once it is in.
pub(super) fn side_by_side<T: Scalar, S: Space<T>>(
    space: &S,
    blocks: Vec<Panel<T, S>>,
    mut panel: Panel<T, S>,
) -> Result<Panel<T, S>> {
    let mut first = 0;
    for x in blocks {
        space.copy_columns(&mut panel, first, &x)?;
        first += space.shape(&x).1;
    }
    Ok(panel)
}

/// Returns the largest singular value of `x`.
fn largest<T: Scalar, S: Space<T>>(space: &S, x: &Panel<T, S>, overlap: &mut Mat<T>) -> Result<f64> {
    let b = space.shape(x).1;
    let mut g = overlap.as_mut().submatrix_mut(0, 0, b, b);
    space.inner(x, x, g.as_mut())?;
    let mut g = Mat::from_fn(b, b, |i, j| g[(i.max(j), i.min(j))].to_f64());
    let unit = small::normalize(g.as_mut());
    let values = small::symmetric_eigen(g.as_ref()).values;
    Ok(values.iter().fold(0.0, |largest: f64, &x| largest.max(x)).sqrt() * unit.sqrt())
}

/// Computes `A G`, with G of independent normals.
fn probe<T: Scalar, S: Space<T>>(task: &Task, op: &mut dyn LinearOperator<T, Space = S>) -> Result<Panel<T, S>> {
    let omega = AnySketch::new(Sketch::Gaussian, op.ncols(), PROBES, task.seed, stream::STOP)?;
    let mut p = op.left(PROBES)?;
    op.sketch(&omega, &mut p)?;
    Ok(p)
}

/// Computes an orthonormal basis of what the columns of `y` have outside of the span of `blocks`, orthogonal to that
/// span to rounding.
///
/// Once removed, a component of relative size 1/eps' comes back as eps/eps' of what is left; the second round removes
/// that (Kahan and Parlett's "twice is enough"). A third is needed only where `y` was in the span to rounding, and what
/// is left is noise. Columns of which nothing at all is left are completed to a basis in the same way in every round,
/// in the span or not: a little [noise](add_noise) leads out of it.
pub(super) fn orthonormalize_against<T: Scalar, S: Space<T>>(
    space: &S,
    blocks: &[Panel<T, S>],
    y: &mut Panel<T, S>,
    overlap: &mut Mat<T>,
) -> Result<()> {
    const ROUNDS: usize = 6;
    for round in 0..ROUNDS {
        let mut removed = 0.0;
        for q in blocks {
            removed += remove_span(space, q, y, overlap)?;
        }
        space.orthonormalize(y, None, Effort::Fast)?;
        // From the second round on the columns have length 1.
        if blocks.is_empty() || round > 0 && removed < 1e-2 {
            break;
        }
        if round > 0 && removed > 0.5 {
            add_noise(space, y, round)?;
        }
    }
    Ok(())
}

/// Adds a random column of length [`NOISE`] to each of the orthonormal `y`. What there is of a range stays to that
/// accuracy.
fn add_noise<T: Scalar, S: Space<T>>(space: &S, y: &mut Panel<T, S>, round: usize) -> Result<()> {
    const NOISE: f64 = 1e-3;
    let (m, b) = space.shape(y);
    let noise = AnySketch::new(Sketch::Gaussian, m, b, round as u64, stream::NOISE)?;
    // The entries have variance 1/b.
    let scale = NOISE * (b as f64 / m as f64).sqrt();
    let mut host = Mat::<T>::zeros(m, b);
    space.download(y, host.as_mut())?;
    for j in 0..b {
        for i in 0..m {
            host[(i, j)] = T::from_f64(host[(i, j)].to_f64() + scale * noise.entry(i, j));
        }
    }
    space.visit(y, Access::Write, &mut |mut y| y.copy_from(host.as_ref()))
}

/// Computes `y −= q (qᵀy)`; returns `‖qᵀy‖²`.
fn remove_span<T: Scalar, S: Space<T>>(
    space: &S,
    q: &Panel<T, S>,
    y: &mut Panel<T, S>,
    overlap: &mut Mat<T>,
) -> Result<f64> {
    let mut c = overlap.as_mut().submatrix_mut(0, 0, space.shape(q).1, space.shape(y).1);
    space.inner(q, y, c.as_mut())?;
    space.multiply(y, Accum::Add, q, c.as_ref(), -T::one())?;
    let mut sum = 0.0;
    for j in 0..c.ncols() {
        sum += c.as_ref().col(j).iter().map(|&x| x.to_f64() * x.to_f64()).sum::<f64>();
    }
    Ok(sum)
}
