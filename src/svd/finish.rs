//! Turns a plan into factors: solves, brings the panels home in the order that takes least memory, fixes signs and
//! units, certifies.

use std::time::Instant;

#[cfg(feature = "cuda")]
use faer::Mat;
use faer::{MatMut, MatRef, Par};

use super::certificate::{self, Certificate, Left};
use super::methods::gram;
use super::plan::Plan;
use super::rank_target::RankTarget;
use super::solution::{Solution, beyond_numerical_rank, unscale};
use super::triplets::{Triplets, Vectors};
use crate::error::Result;
use crate::factors::{Factors, Slices};
use crate::linalg::{column_mut, fix_signs, fix_signs_by, peak};
use crate::operator::LinearOperator;
use crate::report::{Method, Report};
use crate::simd::Scalar;
use crate::sketch::Sketch;
#[cfg(feature = "cuda")]
use crate::space::{Access, Layout};
use crate::space::{Panel, Space};
use crate::tensor::{Element, Matrix};

/// Solves, brings the factors home and certifies them. `op` is `scale · A`, or `scale · Aᵀ` when A is wide.
pub(super) fn run<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    plan: Plan,
    par: Par,
    start: Instant,
) -> Result<Factors<T>> {
    run_with(op, plan, par, start, |plan, op, target| plan.solve(op, target, par))
}

/// Does [`run`] with another way to solve.
pub(super) fn run_with<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    plan: Plan,
    par: Par,
    start: Instant,
    solve: impl FnOnce(&Plan, &mut dyn LinearOperator<T, Space = S>, &RankTarget) -> Result<Solution<T, S>>,
) -> Result<Factors<T>> {
    let facts = op.facts();
    let target = plan.target(facts.norm_squared, facts.scale);
    let solution = solve(&plan, op, &target)?;
    finish(op, plan, solution, Some(&target), par, start)
}

/// Brings the factors home and certifies them, against `target` if it is one for `op`.
pub(super) fn finish<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    plan: Plan,
    solution: Solution<T, S>,
    target: Option<&RankTarget>,
    par: Par,
    start: Instant,
) -> Result<Factors<T>> {
    let (m, n) = plan.shape;
    let wide = m < n;
    let space = op.space().clone();
    let Solution { triplets, rank: k, width, method, sketch, certificate, mut slices, notes } = solution;

    // The short side comes first, and its panel is freed before the long side comes: memory is fullest there. Where the
    // long side is spread over several processes, this one brings home its own rows alone.
    let shared = space.shared();
    let long = shared.map_or(m.max(n), |shared| shared.own().len());
    let Triplets { mut left, s: spectrum, captured, right, .. } = triplets;
    let (mut u, mut vt, spread);
    // Most matrices never see an image of all l columns on this route.
    let reduce = plan.method == Method::Gram && !gram::is_imaged_early::<T>((m.max(n), m.min(n)), width);
    if wide {
        u = Matrix::zeros(m, k);
        right.bring_home(&space, k, u.as_mut())?;
        drop(right);
        left = if reduce { left.reduced(&space, k)? } else { left };
        vt = Matrix::zeros(k, long);
        spread = bring_long_home(&space, left, k, vt.as_mut().transpose_mut())?;
    } else {
        vt = Matrix::zeros(k, n);
        right.bring_home(&space, k, vt.as_mut().transpose_mut())?;
        drop(right);
        left = if reduce { left.reduced(&space, k)? } else { left };
        u = Matrix::zeros(long, k);
        spread = bring_long_home(&space, left, k, u.as_mut())?;
    }
    let signs = match shared {
        Some(shared) if wide => {
            let own: Vec<T> = (0..k).map(|i| peak(vt.row(i))).collect();
            let peaks = shared.peaks(&own)?;
            fix_signs_by(&mut u, &mut vt, par, |i, _| peaks[i] < T::zeroed())
        }
        _ => fix_signs(&mut u, &mut vt, par),
    };
    if let Slices::Weighted(weighted) = &mut slices {
        for (j, &sign) in signs.iter().enumerate() {
            column_mut(weighted.turn.as_mut(), j).iter_mut().for_each(|x| *x *= sign);
            if let Some(oblique) = &mut weighted.oblique {
                oblique.across.row_mut(j).iter_mut().for_each(|x| *x *= sign);
            }
        }
    }
    let is_projection = !matches!(&slices, Slices::Weighted(weighted) if weighted.oblique.is_some());
    let (left, right) =
        if wide { (vt.as_ref().transpose(), u.as_ref()) } else { (u.as_ref(), vt.as_ref().transpose()) };
    let certificate = match certificate {
        Some(certificate) => certificate,
        None => {
            let (captured, seed) = ((captured, is_projection), plan.task.seed);
            let left = match &spread {
                Some(panel) => Left::Spread(panel, &signs),
                None => Left::Home(left),
            };
            let project = |_: &S, probes: MatRef<'_, T>| Ok(right.transpose() * probes);
            certificate::certify(op, left, spectrum.split_at(k), project, captured, seed)?
        }
    };
    let ending = Ending { plan, rank: k, width, method, sketch, certificate, spectrum, notes };
    let (s, report) = ending.conclude(op, target, start)?;
    Ok(Factors::new(u, s, vt, report, slices))
}

/// The factors as panels of a space.
#[cfg(feature = "cuda")]
pub(super) struct InSpace<T: Scalar, S: Space<T>> {
    /// The left singular vectors of A, one column each.
    pub(super) u: Panel<T, S>,
    pub(super) s: Vec<T>,
    /// The right singular vectors of A, one column each.
    pub(super) v: Panel<T, S>,
    pub(super) report: Report,
    pub(super) slices: Slices<T>,
}

/// Does [`finish`] but for the way home: the factors stay in the space. `fix_signs` turns the columns of U and V.
#[cfg(feature = "cuda")]
pub(super) fn finish_in_space<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    plan: Plan,
    solution: Solution<T, S>,
    target: &RankTarget,
    fix_signs: impl FnOnce(&mut Panel<T, S>, &mut Panel<T, S>) -> Result<()>,
    start: Instant,
) -> Result<InSpace<T, S>> {
    let wide = plan.shape.0 < plan.shape.1;
    let space = op.space().clone();
    let Solution { triplets, rank: k, width, method, sketch, certificate, slices, notes } = solution;
    let Triplets { left, s: spectrum, captured, right, .. } = triplets;
    let (mut left, mut right) = (left.formed(&space, k)?, right.formed(&space, k)?);
    if wide {
        fix_signs(&mut right, &mut left)?
    } else {
        fix_signs(&mut left, &mut right)?
    }
    let certificate = match certificate {
        Some(certificate) => certificate,
        None => {
            let signs = vec![T::one(); k];
            let project = |space: &S, probes: MatRef<'_, T>| {
                let mut panel = space.panel(probes.nrows(), probes.ncols(), Layout::Columns)?;
                space.visit(&mut panel, Access::Write, &mut |mut panel| panel.copy_from(probes))?;
                let mut c = Mat::zeros(k, probes.ncols());
                space.inner(&right, &panel, c.as_mut())?;
                Ok(c)
            };
            let (left, captured) = (Left::Spread(&left, &signs), (captured, true));
            certificate::certify(op, left, spectrum.split_at(k), project, captured, plan.task.seed)?
        }
    };
    let ending = Ending { plan, rank: k, width, method, sketch, certificate, spectrum, notes };
    let (s, report) = ending.conclude(op, Some(target), start)?;
    let (u, v) = if wide { (right, left) } else { (left, right) };
    Ok(InSpace { u, s, v, report, slices })
}

/// The facts of a factorization that are left when its vectors are done.
struct Ending<T> {
    plan: Plan,
    rank: usize,
    width: usize,
    method: Method,
    sketch: Option<Sketch>,
    certificate: Certificate,
    spectrum: Vec<T>,
    notes: Vec<String>,
}

impl<T: Scalar> Ending<T> {
    /// Puts the singular values into the units of A and writes the report.
    fn conclude<S: Space<T>>(
        self,
        op: &dyn LinearOperator<T, Space = S>,
        target: Option<&RankTarget>,
        start: Instant,
    ) -> Result<(Vec<T>, Report)> {
        let Ending { plan, rank: k, width, method, sketch, certificate, mut spectrum, mut notes } = self;
        let (scale, shape) = (op.facts().scale, plan.shape);
        if certificate.scale != 1.0 {
            let scale = T::from_f64(certificate.scale);
            spectrum.iter_mut().for_each(|s| *s *= scale);
        }
        let least = spectrum[..k].last().map_or(0.0, |&s| Element::to_f64(s));
        notes.extend(target.and_then(|target| target.shortfall(k, certificate.relative_error, least)));
        notes.extend(beyond_numerical_rank(&spectrum, k, shape));
        let s = unscale(&spectrum, k, scale)?;
        // Where the smallest were asked for they come first.
        let larger = spectrum[k..].iter().take_while(|&&next| next > spectrum[0]).count();
        spectrum[..k + larger].rotate_left(k);
        let spectrum = spectrum.iter().map(|&s| s.to_f64() / scale).collect();
        let norm = op.norm_squared().sqrt() / scale;
        let report = Report {
            method,
            reason: plan.reason_of(method),
            peak_bytes: plan.peak_bytes_of(method, width, k, true),
            sketch,
            passes: op.facts().passes,
            notes,
            ..plan.report((k, width), spectrum, norm, &certificate, start.elapsed())
        };
        Ok((s, report))
    }
}

/// Brings home the first `k` vectors of the long side, or the rows that are this process's own. Those are also returned
/// as a panel, for the certificate; the panels of vectors that come whole are freed, so that its probes take their place.
fn bring_long_home<T: Scalar, S: Space<T>>(
    space: &S,
    vectors: Vectors<T, Panel<T, S>>,
    k: usize,
    mut dst: MatMut<'_, T>,
) -> Result<Option<Panel<T, S>>> {
    let Some(shared) = space.shared() else {
        vectors.bring_home(space, k, dst)?;
        return Ok(None);
    };
    // One look at the matrix leaves all rows with every process, and has a certificate of its own.
    if let Vectors::Small(c) = vectors {
        dst.copy_from(c.as_ref().get(shared.own(), 0..k));
        return Ok(None);
    }
    let panel = vectors.formed(space, k)?;
    shared.download_own(&panel, dst)?;
    Ok(Some(panel))
}
