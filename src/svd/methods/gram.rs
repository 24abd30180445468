//! The Gram route for tall matrices: `G = AᵀA` once, all else on panels of n rows, and one more pass for U.
//!
//! ```text
//!   dense      G = V Λ Vᵀ by faer,  A ≈ (A V) Vᵀ                    the optimum
//!
//!   iterated   V = p(G) Ω, conditioned,  W = G V                    degree q,  G only
//!              H = VᵀW = (A V)ᵀ(A V) = RᵀR                          Q = A V R⁻¹  never formed, orthonormal whatever V
//!              F = W R⁻¹ = AᵀQ = V̂ Σ Ŵᵀ                             A ≈ Q QᵀA = (Q Ŵ) Σ V̂ᵀ
//!              U = A (V R⁻¹ Ŵ_k)                                    2 m n k,  the second pass
//!                = (A V) (R⁻¹ Ŵ_k)                                  2 m n l + 2 m l k,  beside the eigensolver
//! ```
//!
//! **Cost.** `m n²` flops of SYRK; then `2 n² l` for each [filtered product](crate::range) with G and no pass over A,
//! where the randomized method pays `4 m n l`. For small n all eigenvectors are computed. Only the k columns that are
//! kept meet A again.
//!
//! **A threshold** has its rank before any eigenvector: by the [inertia](crate::small::count_above) of `G − t² I`, `n³/3`
//! flops. Few values are then iterated for, and counted again; many, or those that the iteration does not tell apart, come
//! from all eigenvectors.
//!
//! **Why the left side.** The projection on the range of `A V` costs less than the one on the right and is better by
//! one power of the singular values: `W = G V` has all of it (the Nyström approximation of G: Gittens and Mahoney 2016;
//! Tropp, Yurtsever, Udell, Cevher 2017). q steps make it `σ^(2q+1)` to `σ^(2q+3)`.
//!
//! **Loss of digits.** H is off by eps σ_1² and the columns of U from orthogonal by `eps σ_1² / (σ_i σ_j)` at worst.
//! While σ_l is above [`MIN_DECAY`]` · σ_1` that is no more than what other steps do; it is [measured](is_orthonormal) all
//! the same. If U is not orthonormal, or the spectrum steeper, W becomes the basis V, and the factors come from the
//! image `A V`, computed from A itself. Eigenvectors whose `σ_i` is under about `√eps σ_1` are then still noise:
//! [`reaches_floor`] says so, and the caller takes another method.

use std::ops::ControlFlow;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use super::randomized;
use crate::error::Result;
use crate::linalg::{column, column_mut, points_down};
use crate::operator::{Dense, LinearOperator, Pass, Symmetric};
use crate::range::{FILTERED_ANEW, Factor, Filter, filtered_iteration, filtered_iteration_bytes, shift};
use crate::rank::Rank;
use crate::report::Method;
use crate::simd::Scalar;
use crate::sketch::Sketch;
use crate::small;
use crate::space::{Access, Effort, HostPanel, Layout, Panel, Space};
use crate::svd::cost::Work;
use crate::svd::footprint::Footprint;
use crate::svd::rank_target::RankTarget;
use crate::svd::solution::Solution;
use crate::svd::stream;
use crate::svd::task::Task;
use crate::svd::triplets::{Decomposition, Triplets, Vectors, decompose_bytes, decompose_clear, decompose_clear_bytes};
use crate::tensor::Element;

/// The part of σ_1 above which σ_l has to be for the factors to come from G alone.
const MIN_DECAY: f64 = 1.0 / 32.0;
/// The part of σ_1 above which σ_l needs no check of U: `σ_1² / σ_l²` is 36 then, of the 50 that are allowed.
const DECAY_WITHOUT_CHECK: f64 = 1.0 / 6.0;
/// The part of n up to which panels are narrow enough for the iteration to be faster than all eigenvectors, where a
/// threshold leaves the choice (`benches/operands.rs`).
const COUNTED: usize = 4;
/// How many random combinations of columns a check looks at.
const ORTHOGONALITY_PROBES: usize = 8;
/// The largest defect of these combinations, in units of `eps √k`, with which U counts as orthonormal. Entries of UᵀU −
/// I are below that then; they are allowed 50 of it.
const MAX_ORTHOGONALITY_LOSS: f64 = 32.0;

/// Tells whether the Gram matrix resolves what is asked for. It shows σ down to `√eps σ_1`, so that it cannot show a
/// loss near that.
pub(super) fn allowed(task: &Task) -> bool {
    !task.is_below_floor()
}

/// Tells whether there is a panel width for subspace iteration before the spectrum has been seen.
pub(super) fn may_iterate(task: &Task) -> bool {
    task.rank.is_some()
}

pub(super) fn cost_dense(work: &Work<'_>) -> (f64, usize) {
    let &Work { m, n, l, .. } = work;
    if matches!(work.task.rule, Rank::Above(_)) {
        let (seconds, passes) = cost_iterated(work);
        return (seconds + work.flops(n.powi(3) / 3.0), passes);
    }
    let solving = work.syrk() + work.eigen(n) + work.product(m, n, l) + work.orthonormalize(n, l);
    (solving + work.finish(m, l) + work.begin(), 2)
}

pub(super) fn cost_iterated(work: &Work<'_>) -> (f64, usize) {
    let &Work { m, n, l, k, rates, .. } = work;
    let q = work.task.power_iterations;
    let cholesky = rates.cholesky * l.powi(3);
    // A step is one pass of CholeskyQR by a product with the inverse, and the product with G.
    let step = work.flops(3.0 * n * l * l) + cholesky + work.product(n, n, l) + 2.0 * rates.call;
    // The sketch is a step of the filter if the spectrum allows it, which is not known yet.
    let after = if q > 1 { q as f64 } else { q as f64 + 1.0 };
    let iterations = work.sketch(n, n) + after * step;
    // These are H, F and its decomposition, the directions, and U.
    let projection = work.flops(4.0 * n * l * l + 4.0 * n * l * k)
        + work.product(m, n, k)
        + cholesky
        + work.decompose(n, l)
        + work.copy((m + n) * k)
        + 4.0 * rates.call;
    // Panels of more than half of the columns are often filtered anew.
    (work.crowding() * work.crowding() * (work.syrk() + iterations + projection) + work.begin(), 2)
}

/// Solves the task by all eigenvectors of G.
pub(super) fn by_dense<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let mut g = op.gram()?;
    if let Some(known) = counted(task, op, &g, target, par)? {
        let found = iteration(&known, op, g, target, par)?;
        // Values that crowd around the threshold are not told apart by a subspace.
        if Some(found.rank) == known.rank {
            return unless_at_the_floor(task, op, found, target, par);
        }
        drop(found);
        g = op.gram()?;
    }
    let Dominant { basis, remedy, .. } = dense(op, g, |squares| width_for(task, target, squares))?;
    let mut solution = from_basis(op, basis, None, target, par)?;
    solution.notes.extend(remedy.map(str::to_owned));
    unless_at_the_floor(task, op, solution, target, par)
}

/// Solves the task by filtered iteration.
pub(super) fn by_iteration<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let g = op.gram()?;
    let solution = iteration(task, op, g, target, par)?;
    unless_at_the_floor(task, op, solution, target, par)
}

/// Returns the task with the rank that a threshold gives, counted by the inertia of G, where it is so small that the
/// iteration is faster than all eigenvectors.
fn counted<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &dyn LinearOperator<T, Space = S>,
    g: &Symmetric<T, S>,
    target: &RankTarget,
    par: Par,
) -> Result<Option<Task>> {
    let Some(threshold) = target.threshold() else { return Ok(None) };
    let n = op.ncols();
    let mut host = Mat::<T>::zeros(n, n);
    op.space().download(g.panel(), host.as_mut())?;
    let unit = small::normalize(host.as_mut()).to_f64();
    let mut wide = Mat::from_fn(n, n, |i, j| host[(i, j)].to_f64());
    drop(host);
    let Some(count) = small::count_above(&mut wide, threshold * threshold / unit, T::EPSILON, par) else {
        return Ok(None);
    };
    let rank = count.min(task.max_rank);
    let width = rank.saturating_add(task.oversample);
    Ok((rank > 0 && width <= n / COUNTED).then(|| Task { rank: Some(rank), width, ..task.clone() }))
}

/// Iterates on G, which is formed anew where the spectrum asks for another filter.
fn iteration<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    g: Symmetric<T, S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let mut filter = Filter::new(task.power_iterations);
    let mut g = Some(g);
    loop {
        let g = g.take().map_or_else(|| op.gram(), Ok)?;
        let (mut solution, end) = match iterated(task, op, g, filter, target, par)? {
            ControlFlow::Break(found) => found,
            ControlFlow::Continue((basis, end)) => (from_basis(op, basis, Some(task.sketch), target, par)?, end),
        };
        if let Some(next) = filter.corrected(end, &solution.triplets.s, solution.rank) {
            filter = next;
            continue;
        }
        if filter.most.is_finite() {
            solution.notes.push(FILTERED_ANEW.to_owned());
        }
        return Ok(solution);
    }
}

/// Returns the columns of the panels for these squared singular values, nonincreasing. All of σ² is there, so that
/// nothing is missing.
pub(in crate::svd) fn width_for<T: Scalar>(task: &Task, target: &RankTarget, squares: &[T]) -> usize {
    match task.rank {
        Some(_) => task.width,
        None => (target.rank_given(&roots(squares), 0.0) + task.oversample).min(task.width),
    }
}

/// Returns singular values from their squares, of which rounding may have made some negative.
pub(in crate::svd) fn roots<T: Scalar>(squares: &[T]) -> Vec<T> {
    squares.iter().map(|&x| <T as Element>::from_f64(Element::to_f64(x).max(0.0).sqrt())).collect()
}

/// Returns what the Gram route found, or, where the Gram matrix could not see enough, what the randomized method finds
/// within the memory of this route.
pub(in crate::svd) fn unless_at_the_floor<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    solution: Solution<T, S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let Triplets { s, captured, .. } = &solution.triplets;
    let short = solution.width < task.width && target.may_lack::<T>(s, *captured);
    if short || reaches_floor(s, solution.rank) && op.norm_squared() > 0.0 {
        let rank = solution.rank;
        drop(solution);
        let mut next = randomized::solve(task, op, target, true, par)?;
        next.notes
            .push(format!("σ_{rank} is near the rounding of the Gram matrix (√eps σ_1); fell back to {}", next.method));
        return Ok(next);
    }
    Ok(solution)
}

/// Computes the factors by the image of an orthonormal basis of the dominant eigenvectors.
pub(in crate::svd) fn from_basis<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    basis: Panel<T, S>,
    sketch: Option<Sketch>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let width = op.space().shape(&basis).1;
    let mut image = op.image(width)?;
    op.apply(&basis, &mut image)?;
    let found =
        Triplets::from_right(op.space(), Some(basis), image, true, |s, captured| target.rank(s, captured), par)?;
    Ok(Solution::of_triplets(found, width, Method::Gram, sketch))
}

/// The eigenvectors and eigenvalues of G from a dense solver.
pub(in crate::svd) struct Dominant<T, P> {
    /// The eigenvectors of the largest eigenvalues.
    pub(in crate::svd) basis: P,
    /// All eigenvalues, nonincreasing.
    pub(in crate::svd) values: Vec<T>,
    /// The note for the report if they were not found in the routine way.
    pub(in crate::svd) remedy: Option<&'static str>,
}

/// Computes the eigenvectors of G by a dense solver on the host, as many as `width` makes of the eigenvalues.
pub(in crate::svd) fn dense<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    g: Symmetric<T, S>,
    width: impl FnOnce(&[T]) -> usize,
) -> Result<Dominant<T, Panel<T, S>>> {
    let (n, space) = (op.ncols(), op.space().clone());
    let mut host = Mat::zeros(n, n);
    space.download(g.panel(), host.as_mut())?;
    drop(g);
    let unit = small::normalize(host.as_mut());
    let small::Eigen { mut values, vectors, remedy } = small::symmetric_eigen(host.as_ref());
    drop(host);
    values.iter_mut().for_each(|x| *x *= unit);
    values.reverse();
    let width = width(&values);
    let mut basis = op.right(width)?;
    let dominant = vectors.as_ref().subcols(n - width, width).reverse_cols();
    space.visit(&mut basis, Access::Write, &mut |mut basis| basis.copy_from(dominant))?;
    drop(vectors);
    // The dense solver's vectors are orthonormal to some 50 eps; the certificate and V deserve better.
    space.orthonormalize(&mut basis, None, Effort::Fast)?;
    space.trim();
    Ok(Dominant { basis, values, remedy })
}

/// Iterates on a subspace where G lives. The result is either the factors, or an orthonormal basis of the dominant
/// eigenvectors to continue with; either comes with the end of the interval that was damped.
#[expect(clippy::type_complexity, reason = "the two ways that it ends")]
fn iterated<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    g: Symmetric<T, S>,
    filter: Filter,
    target: &RankTarget,
    par: Par,
) -> Result<ControlFlow<(Solution<T, S>, f64), (Panel<T, S>, f64)>> {
    let space = op.space().clone();
    let width = task.width;
    let early = is_imaged_early::<T>((op.nrows(), op.ncols()), width);
    let (subspace, end) = Subspace::find(task, op, g, filter, early)?;
    let mut imaged = None;
    let projection = subspace.project(
        &space,
        |s, captured| target.rank(s, captured),
        par,
        |v| {
            if early {
                let mut panel = op.image(width)?;
                op.apply(v, &mut panel)?;
                imaged = Some(panel);
            }
            Ok(())
        },
    )?;
    let Projection { mut subspace, factor, divided, basis, s, captured, rank, by_qr, notes } = match projection {
        ControlFlow::Break(projection) => projection,
        ControlFlow::Continue(subspace) => {
            drop(imaged);
            return Ok(ControlFlow::Continue((subspace.into_basis(&space)?, end)));
        }
    };
    let mut right = Mat::<T>::zeros(op.ncols(), rank);
    let f = subspace.f.as_ref().expect("what was projected");
    space.multiply_to_host(f, divided.as_ref().subcols(0, rank), right.as_mut())?;
    drop(divided);
    subspace.keep_one();
    // The sign that an SVD leaves open is settled before the long side is formed.
    let signs: Vec<f64> = (0..rank).map(|j| if points_down(column(right.as_ref(), j)) { -1.0 } else { 1.0 }).collect();
    for (j, _) in signs.iter().enumerate().filter(|(_, sign)| **sign < 0.0) {
        column_mut(right.as_mut(), j).iter_mut().for_each(|x| *x = -*x);
    }
    let combination = combination(factor, &basis, &signs);
    drop(basis);
    let u = match imaged {
        Some(panel) => Vectors::Combined(panel, combination),
        None => {
            let mut directions = op.right(rank)?;
            space.multiply(&mut directions, Accum::Replace, &subspace.v, combination.as_ref(), T::one())?;
            drop(combination);
            let mut u = op.image(rank)?;
            op.apply(&directions, &mut u)?;
            Vectors::Panel(u)
        }
    };
    if needs_orthogonality_check(&s) {
        let (panel, c) = match &u {
            Vectors::Combined(panel, c) => (panel, Some(c.as_ref())),
            Vectors::Panel(panel) => (panel, None),
            Vectors::Small(_) => unreachable!("the long side is a panel"),
        };
        if !is_orthonormal(&space, panel, c)? {
            drop((u, right));
            return Ok(ControlFlow::Continue((subspace.into_basis(&space)?, end)));
        }
    }
    let triplets = Triplets { left: u, s, captured, right: Vectors::Small(right), by_qr };
    let solution = Solution::of_triplets((triplets, rank, notes), width, Method::Gram, Some(task.sketch));
    Ok(ControlFlow::Break((solution, end)))
}

/// The result of the iteration: V, conditioned, with `W = G V`, or F in its place, or both.
pub(in crate::svd) struct Subspace<P> {
    pub(in crate::svd) v: P,
    w: Option<P>,
    pub(in crate::svd) f: Option<P>,
    /// The factor R, where H is definite enough for F.
    factor: Option<Factor>,
    /// The sums tr G and `‖G‖_F²`.
    sums: (f64, f64),
}

impl<P> Subspace<P> {
    /// Finds the subspace from a sketch of G and a filter, and returns the end of the interval that was damped. With
    /// `in_place` F takes the memory of W, where an image is to come beside.
    pub(in crate::svd) fn find<T: Scalar, S: Space<T, Panel = P>>(
        task: &Task,
        op: &mut dyn LinearOperator<T, Space = S>,
        mut g: Symmetric<T, S>,
        filter: Filter,
        in_place: bool,
    ) -> Result<(Self, f64)> {
        let space = op.space().clone();
        let width = task.width;
        let sums = (op.norm_squared(), g.norm_squared());
        let omega = task.omega(op.ncols(), width, stream::RANGE)?;
        let (mut v, mut w) = (op.right(width)?, op.right(width)?);
        let end = filtered_iteration(&space, &mut g, sums.0, &omega, filter, &mut v, &mut w)?;
        drop(g);
        // V is orthonormal enough for the pivots of H to tell that σ_l is too small.
        let Some(factor) = factor(&space, &v, &w)?.filter(|factor| factor.least >= MIN_DECAY * MIN_DECAY) else {
            return Ok((Subspace { v, w: Some(w), f: None, factor: None, sums }, end));
        };
        let inverse = factor.inverse::<T>();
        let (w, f) = if in_place {
            space.multiply_in_place(&mut w, inverse.as_ref())?;
            (None, w)
        } else {
            let mut f = op.right(width)?;
            space.multiply(&mut f, Accum::Replace, &w, inverse.as_ref(), T::one())?;
            (Some(w), f)
        };
        Ok((Subspace { v, w, f: Some(f), factor: Some(factor), sums }, end))
    }

    /// Decomposes F, or returns what there is to continue with where G alone does not tell. `meanwhile` gets V while
    /// the eigensolver has one thread, if there is an eigensolver.
    pub(in crate::svd) fn project<T: Scalar, S: Space<T, Panel = P>>(
        mut self,
        space: &S,
        choose: impl Fn(&[T], f64) -> usize,
        par: Par,
        meanwhile: impl FnOnce(&P) -> Result<()>,
    ) -> Result<ControlFlow<Projection<T, P>, Self>> {
        let (Some(f), Some(factor)) = (self.f.take(), self.factor.take()) else {
            return Ok(ControlFlow::Continue(self));
        };
        let found = match decompose_clear(space, f, choose, par, || meanwhile(&self.v))? {
            ControlFlow::Break(found) => found,
            ControlFlow::Continue(f) => {
                self.f = Some(f);
                return Ok(ControlFlow::Continue(self));
            }
        };
        let Decomposition { image: Vectors::Combined(f, divided), s, captured, basis, rank, by_qr, notes } = found
        else {
            unreachable!("an image is combined")
        };
        self.f = Some(f);
        let decay = decay(&s);
        if decay.is_nan() || decay < MIN_DECAY {
            return Ok(ControlFlow::Continue(self));
        }
        Ok(ControlFlow::Break(Projection { subspace: self, factor, divided, basis, s, captured, rank, by_qr, notes }))
    }

    /// Drops F where W is still there to continue with.
    pub(in crate::svd) fn keep_one(&mut self) {
        if self.w.is_some() {
            self.f = None;
        }
    }

    /// Makes an orthonormal basis of the dominant eigenvectors.
    pub(in crate::svd) fn into_basis<T: Scalar, S: Space<T, Panel = P>>(self, space: &S) -> Result<P> {
        let mut basis = match (self.w, self.f) {
            (Some(mut w), _) => {
                shift(space, self.sums, 0.5, f64::INFINITY, &self.v, &mut w)?;
                w
            }
            (None, Some(f)) => f,
            (None, None) => unreachable!("one of the two is kept"),
        };
        space.orthonormalize(&mut basis, None, Effort::Fast)?;
        space.trim();
        Ok(basis)
    }
}

/// The projection `A ≈ Q QᵀA` for `Q = A V R⁻¹`, by the decomposition of `F = AᵀQ = V̂ Σ Ŵᵀ`.
pub(in crate::svd) struct Projection<T, P> {
    pub(in crate::svd) subspace: Subspace<P>,
    pub(in crate::svd) factor: Factor,
    /// The matrix C in `V̂ = F C`: `Ŵ Σ⁻¹`, or, if F was replaced by the Q of its QR, the corresponding small matrix.
    pub(in crate::svd) divided: Mat<T>,
    /// The small singular vectors Ŵ.
    pub(in crate::svd) basis: Mat<T>,
    pub(in crate::svd) s: Vec<T>,
    pub(in crate::svd) captured: f64,
    pub(in crate::svd) rank: usize,
    by_qr: bool,
    pub(in crate::svd) notes: Vec<String>,
}

/// Returns σ_l over σ_1.
fn decay<T: Scalar>(s: &[T]) -> f64 {
    s[s.len() - 1].to_f64() / s[0].to_f64()
}

/// Tells whether the columns of U from G alone have to be checked.
pub(in crate::svd) fn needs_orthogonality_check<T: Scalar>(s: &[T]) -> bool {
    decay(s) < DECAY_WITHOUT_CHECK
}

/// Computes the Cholesky factor of the symmetric part of `VᵀW`, whose antisymmetric part is rounding error.
fn factor<T: Scalar, S: Space<T>>(space: &S, v: &Panel<T, S>, w: &Panel<T, S>) -> Result<Option<Factor>> {
    let l = space.shape(v).1;
    let mut h = Mat::<T>::zeros(l, l);
    space.inner(v, w, h.as_mut())?;
    for j in 0..l {
        for i in j + 1..l {
            h[(i, j)] = <T as Element>::from_f64(0.5) * (h[(i, j)] + h[(j, i)]);
        }
    }
    Ok(Factor::of(&h))
}

/// Computes `R⁻¹ Ŵ_k`, with signs.
pub(in crate::svd) fn combination<T: Scalar>(factor: Factor, basis: &Mat<T>, signs: &[f64]) -> Mat<T> {
    let (l, k) = (basis.nrows(), signs.len());
    let inverse = factor.inverse::<f64>();
    drop(factor);
    let mut wide = Mat::<f64>::zeros(l, k);
    for (j, sign) in signs.iter().enumerate() {
        let from = column(basis.as_ref(), j).iter();
        column_mut(wide.as_mut(), j).iter_mut().zip(from).for_each(|(to, x)| *to = sign * (*x).to_f64());
    }
    let mut product = Mat::<f64>::zeros(l, k);
    let (upper, full) = (BlockStructure::TriangularUpper, BlockStructure::Rectangular);
    let (dst, inverse, wide) = (product.as_mut(), inverse.as_ref(), wide.as_ref());
    triangular::matmul(dst, full, Accum::Replace, inverse, upper, wide, full, 1.0, Par::Seq);
    let mut combination = Mat::zeros(l, k);
    for j in 0..k {
        let from = column(product.as_ref(), j).iter();
        column_mut(combination.as_mut(), j).iter_mut().zip(from).for_each(|(to, x)| *to = <T as Element>::from_f64(*x));
    }
    combination
}

pub(super) fn peak_dense<T: Scalar>(f: &Footprint) -> usize {
    let &Footprint { n, width: l, .. } = f;
    let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
    let square = n * n * size_of::<T>();
    let orthonormalize = HostPanel::<T>::orthonormalize_scratch(n, l, Par::Seq).unaligned_bytes_required();
    let found = (panel(n, n) + square).max(square + small::symmetric_eigen_bytes::<T>(n));
    let solving = forming::<T>(f).max(found).max(square + panel(n, l)).max(panel(n, l) + orthonormalize);
    // Counting a threshold takes G in f64 beside itself, less than the eigensolver, and so does iterating for few values.
    with_ways_out::<T>(f, solving)
}

/// Returns the peak of the iteration, whichever way it ends.
pub(super) fn peak_iterated<T: Scalar>(f: &Footprint) -> usize {
    let &Footprint { m, n, width: l, rank: k, .. } = f;
    let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
    let (small, wide) = (l * l * size_of::<T>(), l * l * size_of::<f64>());
    let orthonormalize = HostPanel::<T>::orthonormalize_scratch(n, l, Par::Seq).unaligned_bytes_required();
    // V and W are kept throughout, with F beside them or in place of W.
    let pair = 2 * panel(n, l);
    let iterated = panel(n, n) + filtered_iteration_bytes::<T>(n, l);
    let factored = small + Factor::bytes(l);
    // The image of V comes while the eigensolver runs, or that of the kept columns at the end.
    let early = is_imaged_early::<T>((m, n), l);
    let image = if early { 0 } else { panel(n, l) };
    let turned = wide + small + if early { HostPanel::<T>::multiply_in_place_bytes(n, l, l) } else { image };
    let (before, after) = if early { (f.image::<T>(l), 0) } else { (0, f.image::<T>(k)) };
    // An image lies as the matrix does, and is written in place unless the matrix is converted.
    let converted = |l: usize| if f.storage.is_some() { f.tile::<T>(Pass::Product(l)) } else { 0 };
    let multiplying = if early { converted(l) } else { 0 };
    let (gathered, solved) = decompose_clear_bytes::<T>(n, l);
    let solved = solved.max(2 * small + panel(n, k)) + multiplying;
    let combined = panel(n, k) + small + l * k * (2 * size_of::<f64>() + size_of::<T>());
    let formed = 2 * panel(n, k) + after + converted(k).max(panel(m, ORTHOGONALITY_PROBES));
    let decomposed = image + wide + gathered.max(solved + before);
    let projected = decomposed.max(wide + combined + before).max(formed + before);
    let projected = [iterated, factored, turned, projected, orthonormalize].into_iter().fold(0, usize::max);
    let combination = if early { l * k * size_of::<T>() } else { 0 };
    let at_home = before + after + combination + f.home::<T>(panel(n, k));
    with_ways_out::<T>(f, forming::<T>(f).max(pair + projected).max(at_home))
}

/// Returns the bytes of forming G.
fn forming<T: Scalar>(f: &Footprint) -> usize {
    Dense::<T>::gram_bytes(f.m, f.n) + f.tile::<T>(Pass::Whole)
}

/// Returns the peak with the ways in which solving may end: by the image of a basis, or by the randomized method.
fn with_ways_out<T: Scalar>(f: &Footprint, solving: usize) -> usize {
    let &Footprint { m, n, width: l, rank: k, .. } = f;
    let (small, panel) = (l * l * size_of::<T>(), HostPanel::<T>::bytes(n, l));
    // These bytes are a basis and the image of A on it.
    let imaged = panel + f.tile::<T>(Pass::Product(l)).max(decompose_bytes::<T>(m, l, true, 0));
    let home = small + n * k * size_of::<T>() + panel + small;
    let by_image = (f.image::<T>(l) + imaged.max(home)).max(f.image::<T>(k) + f.factors::<T>());
    f.certified::<T>(solving.max(by_image).max(randomized::by_products::<T>(f, !f.searched)), true)
}

/// Tells whether A meets all of V while the eigensolver has one thread, so that the columns that are kept come from
/// that image. It costs `2 m l²` flops and the product with l − k columns more, for half of the time of the solver. The
/// answer is a pure function of the shape, so that the bits do not depend on the threads; it is not worth it for what
/// one thread would do at once anyway. Where m is not several times n, V and F beside the image would be more memory
/// than all else takes.
pub(in crate::svd) fn is_imaged_early<T: Scalar>((m, n): (usize, usize), l: usize) -> bool {
    let has_eigensolver = size_of::<T>() == size_of::<f32>();
    has_eigensolver && m <= EARLY.rows && m >= EARLY.tall * n && m * n * l >= EARLY.multiplications
}

/// The limits of [`is_imaged_early`].
struct EarlyParams {
    /// The most rows.
    rows: usize,
    /// The least ratio of rows to columns.
    tall: usize,
    /// The least number of multiplications of the product.
    multiplications: usize,
}

/// The limits that the bench `svd` found.
const EARLY: EarlyParams = EarlyParams { rows: 4096, tall: 3, multiplications: 1 << 24 };

/// Tells whether the columns of `U = panel C` (the panel itself without C) are orthonormal to rounding. For columns X
/// of random signs the largest entry of `(UᵀU − I) X` is about the length of the worst row of `UᵀU − I`.
pub(in crate::svd) fn is_orthonormal<T: Scalar, S: Space<T>>(
    space: &S,
    panel: &Panel<T, S>,
    c: Option<MatRef<'_, T>>,
) -> Result<bool> {
    let (m, l) = space.shape(panel);
    let k = c.map_or(l, |c| c.ncols());
    let sign = |i: usize, j: usize| {
        let bits = (i * ORTHOGONALITY_PROBES + j + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as usize);
        if (bits ^ (bits >> 29)).count_ones().is_multiple_of(2) { T::one() } else { -T::one() }
    };
    let x = Mat::<T>::from_fn(k, ORTHOGONALITY_PROBES, sign);
    let mut combined = space.panel(m, ORTHOGONALITY_PROBES, Layout::Columns)?;
    let mut back = Mat::<T>::zeros(k, ORTHOGONALITY_PROBES);
    match c {
        None => {
            space.multiply(&mut combined, Accum::Replace, panel, x.as_ref(), T::one())?;
            space.inner(panel, &combined, back.as_mut())?;
        }
        Some(c) => {
            let turned = c * &x;
            space.multiply(&mut combined, Accum::Replace, panel, turned.as_ref(), T::one())?;
            let mut inner = turned;
            space.inner(panel, &combined, inner.as_mut())?;
            matmul(back.as_mut(), Accum::Replace, c.transpose(), inner.as_ref(), T::one(), Par::Seq);
        }
    }
    let off = |(i, j): (usize, usize)| (back[(i, j)].to_f64() - x[(i, j)].to_f64()).abs();
    let defect = (0..ORTHOGONALITY_PROBES).flat_map(|j| (0..k).map(move |i| (i, j))).map(off).fold(0.0, f64::max);
    Ok(defect <= MAX_ORTHOGONALITY_LOSS * (k as f64).sqrt() * T::EPSILON)
}

/// Tells whether `σ_k` is so small against `σ_1` that the rounding of G, `eps σ_1²`, is felt in its eigenvector.
pub(in crate::svd) fn reaches_floor<T: Scalar>(s: &[T], k: usize) -> bool {
    s[k - 1].to_f64() < 8.0 * T::EPSILON.sqrt() * s[0].to_f64()
}
