//! Factorization under calibration: the left singular vectors of `W L` (`calibration/whitening.rs`), and W projected on
//! them.
//!
//! ```text
//!   W L  = U Σ Zᵀ   (any method of the planner, on the operator `Whitened`)       loss² = ‖W L‖² − ‖U_kᵀ W L‖²
//!   W'   = U_k U_kᵀ W = U_k B,      B = U_kᵀ W  (one more product)
//!   B    = Û S Vᵀ  (as the image of any method: `triplets.rs`)    ->      W' = (U_k Û) S Vᵀ, a proper SVD
//! ```
//!
//! **The loss** `‖(W − W') L‖` is the least that rank k allows, for any L with `L Lᵀ = M`; no inverse appears.
//! `Y' = Y U_k U_kᵀ` is a projection of the outputs for any inputs, so that `cos² + error² = 1`, and both are monotone
//! in k. For data of moments `M_h` one factorization gives the whole curve,
//! `cos²(k) = Σ_{i<=k} u_iᵀ W M_h Wᵀ u_i / tr(W M_h Wᵀ)`: [`Rank::Quality`](crate::Rank::Quality) reads off the
//! smallest rank. On the calibration itself the curve is the energy of `W L`.
//!
//! **U_k is never formed.** It is `P C`, a panel of l columns times a small matrix, and so is `Bᵀ = (Wᵀ P) C`. On the
//! Gram route a tall weight has the accuracy of the last step from the image:
//!
//! ```text
//!   tall   P = W L V, V from Lᵀ(WᵀW)L        Wᵀ P = (WᵀW)(L V)       q filtered steps
//!   wide   P = V itself, from W M Wᵀ         Wᵀ P = Wᵀ V             q + 1, and L is not needed
//! ```
//!
//! **Order.** A tall W is multiplied last: the eigensolver of F has `Wᵀ P` beside it on the other thread, and that of B
//! has P, which only U and a look at its columns need. Figures: `benches/NOTES.md`.

use std::ops::ControlFlow;
use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use super::certificate;
use super::finish::finish;
use super::methods::gram::{self, Projection, Subspace, roots};
use super::methods::{self, Route, randomized};
use super::options::Options;
use super::plan::Plan;
use super::rank_target::RankTarget;
use super::solution::Solution;
use super::stream;
use super::task::{Residency, Task};
use super::triplets::{Decomposition, Triplets, Vectors, decompose, symmetric_eigen_beside};
use super::weighting::Weighting;
use crate::calibration::Calibration;
use crate::calibration::Moments;
use crate::error::Result;
use crate::factors::{Factors, Slices, Weighted};
use crate::operator::{Entries, Given, LinearOperator, Whitened};
use crate::quality;
use crate::range::{FILTERED_ANEW, Filter, filtered_iteration};
use crate::rank::Rank;
use crate::report::{ActivationReport, Method};
use crate::simd::Scalar;
use crate::sketch::Sketch;
use crate::small;
use crate::space::{Panel, Space};
use crate::tensor::{DType, Element, MatView};

/// The part of all ranks that [`Rank::Quality`] looks at first, and doubles: ratios of 2 to 4 lie at a quarter.
const QUALITY_FIRST: usize = 4;

/// The [`LeftVectors`] of an operator with panels in the space S.
type LeftVectorsIn<T, S> = LeftVectors<T, Panel<T, S>>;

/// The left singular vectors of `W L`, as a panel times coefficients. Where W is itself seen through moments of its other
/// side, the panel holds the right singular vectors V instead, and `back` is `Wᵀ W L V`.
pub(super) struct LeftVectors<T, P> {
    pub(super) panel: LazyPanel<P>,
    /// The panel `Wᵀ panel`, of n rows.
    pub(super) back: P,
    /// The subspace to continue with if the vectors turn out not to be orthonormal; `None` where no check is needed.
    recheck: Option<Subspace<P>>,
    pub(super) spectrum: Spectrum<T>,
}

/// What is known of the left singular vectors besides the panels.
pub(super) struct Spectrum<T> {
    coefficients: Mat<T>,
    /// The singular values of `W L`.
    pub(super) s: Vec<T>,
    pub(super) rank: usize,
    pub(super) width: usize,
    /// The end of the interval that a filter has damped, 0 without one.
    damped: f64,
    /// The value of `‖U_kᵀ W L‖²`, where the method knows it better than `Lᵀ` times the projected weight would.
    kept: Option<f64>,
    pub(super) method: Method,
    pub(super) sketch: Option<Sketch>,
    pub(super) notes: Vec<String>,
}

impl<T> Spectrum<T> {
    /// Returns the coefficients of the vectors that are kept.
    fn coefficients(&self) -> MatRef<'_, T> {
        self.coefficients.as_ref().subcols(0, self.rank)
    }
}

/// The loss of the outputs on the calibration samples, in parts of `‖W Xᵀ‖²`.
struct Loss {
    /// The part that all directions together lose.
    share: f64,
    /// The part that each kept direction holds.
    gains: Vec<f64>,
}

/// A panel of m rows, formed or to be formed.
pub(super) enum LazyPanel<P> {
    Computed(P),
    /// The panel is W times this one, which is computed when there is time for it.
    Deferred(P),
}

/// Where the entries of W are, besides its operator.
#[derive(Clone, Copy)]
pub(super) enum Weight<'a> {
    /// The entries are in memory.
    Whole(MatView<'a>),
    /// W is read in tiles. The fields are rows and columns, and the element type.
    Tiles((usize, usize), DType),
}

impl Weight<'_> {
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Weight::Whole(w) => (w.nrows(), w.ncols()),
            Weight::Tiles(shape, _) => *shape,
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Weight::Whole(w) => w.dtype(),
            Weight::Tiles(_, dtype) => *dtype,
        }
    }
}

/// Factors `op`, the tall one of W and Wᵀ, where `w` is W. `root` makes the operator of L on the same kind of panels.
pub(super) fn factor<T: Scalar, S: Space<T>>(
    options: &Options,
    residency: Residency,
    op: &mut dyn LinearOperator<T, Space = S>,
    root: &MakeOperator<'_, T, S>,
    w: Weight<'_>,
    par: Par,
    start: Instant,
) -> Result<Factors<T>> {
    let (m, n) = w.shape();
    let weighting = &options.weighting;
    weighting.check((m, n), options.rank)?;
    let moments = weighting.inputs.moments::<T>(n)?;
    let weight_scale = op.facts().scale;
    let op = whitened(op, m < n, &moments, root, par)?;
    let notes = moments.note(weighting.inputs.calibration.is_some()).into_iter().collect();
    let setting = Setting { w, residency, weight_scale, root_exponent: moments.exponent(), notes, par, start };
    project(options, op, setting)
}

/// Makes the operator of a weight under moments: `W L`, or `Lᵀ Wᵀ` where it is `wide`. `op` is the tall one of W and
/// Wᵀ.
pub(super) fn whitened<'a, T: Scalar, S: Space<T>>(
    op: &'a mut (dyn LinearOperator<T, Space = S> + 'a),
    wide: bool,
    moments: &'a Moments<'_>,
    root: &'a MakeOperator<'_, T, S>,
    par: Par,
) -> Result<Whitened<'a, T, S>> {
    let make = move || {
        let (entries, notes) = moments.root::<T>(par)?;
        Ok((root(entries)?, notes))
    };
    let mut write = |dst: faer::MatMut<'_, T>| moments.write_lower(dst, par);
    let diagonal = moments.diagonal();
    let matrix: Option<Given<'_, T>> = if moments.are_a_matrix() { Some((&mut write, &diagonal)) } else { None };
    Whitened::new(op, wide, make, matrix)
}

/// A function that makes the operator of a root on the panels of a space.
pub(super) type MakeOperator<'a, T, S> = dyn Fn(Entries<T>) -> Result<Box<dyn LinearOperator<T, Space = S> + 'a>> + 'a;

/// The facts of the weight that its operator does not have.
pub(super) struct Setting<'a> {
    pub(super) w: Weight<'a>,
    pub(super) residency: Residency,
    /// The factor of the operator: it stands for this times W.
    pub(super) weight_scale: f64,
    /// The exponent of the root: L is `2^-root_exponent` times a root of the moments.
    pub(super) root_exponent: i32,
    pub(super) notes: Vec<String>,
    pub(super) par: Par,
    pub(super) start: Instant,
}

impl Setting<'_> {
    fn plan<T: Scalar>(&self, options: &Options, rule: Rank) -> Result<Plan> {
        Plan::new(Task::of_rank::<T>(options, rule, self.w.shape(), self.w.dtype(), self.residency)?)
    }
}

/// Computes the left singular vectors of `W L`, projects W on them, and finishes factors and report.
fn project<T: Scalar, S: Space<T>>(
    options: &Options,
    mut op: Whitened<'_, T, S>,
    setting: Setting<'_>,
) -> Result<Factors<T>> {
    let space = op.space().clone();
    let weighting = &options.weighting;
    let (plan, mut left) = op.by_rule(options, &setting)?;
    let norm_squared = op.norm_squared();
    let (panel, spectrum, lost, decomposition) = loop {
        let LeftVectors { mut panel, back, recheck, spectrum } = left;
        let mut bt = op.inputs(spectrum.rank)?;
        space.multiply(&mut bt, Accum::Replace, &back, spectrum.coefficients(), T::one())?;
        drop(back);
        let lost = op.lost(weighting, &bt, &spectrum, setting.par)?;
        // The image takes the time in which the eigensolver has one thread.
        let early = gram::is_imaged_early::<T>((op.nrows(), op.ncols()), spectrum.width);
        let meanwhile = || if early { op.form(&mut panel).map(drop) } else { Ok(()) };
        let decomposition = decompose(&space, bt, false, |s, _| s.len(), setting.par, meanwhile)?;
        op.form(&mut panel)?;
        let (LazyPanel::Computed(panel) | LazyPanel::Deferred(panel)) = panel;
        match recheck {
            Some(subspace) if !gram::is_orthonormal(&space, &panel, Some(spectrum.coefficients()))? => {
                drop((panel, spectrum, decomposition));
                left = op.by_basis(&plan.task, subspace.into_basis(&space)?, setting.par)?;
            }
            _ => break (panel, spectrum, lost, decomposition),
        }
    };
    let Decomposition { image, s: values, captured, basis, by_qr, notes: small, .. } = decomposition;
    let Spectrum { coefficients, s, rank: k, width, method, sketch, notes: mut more, .. } = spectrum;
    let coefficients = coefficients.as_ref().subcols(0, k);
    let mut turned = Mat::zeros(coefficients.nrows(), k);
    matmul(turned.as_mut(), Accum::Replace, coefficients, basis.as_ref(), T::one(), setting.par);
    let u = Vectors::Combined(panel, turned);
    let (left, right) = if op.is_wide() { (image, u) } else { (u, image) };
    let rooted = op.has_root();
    let (weight, root_notes) = op.into_parts();
    let mut notes = setting.notes;
    notes.extend(root_notes);
    notes.append(&mut more);
    notes.extend(small);
    let triplets = Triplets { left, s: values, captured, right, by_qr };
    let (share_lost, gains) = lost.map_or((None, Vec::new()), |Loss { share, gains }| (Some(share), gains));
    let slices = Slices::Weighted(Weighted { turn: basis, gains, oblique: None });
    let solution = Solution { triplets, rank: k, width, method, sketch, certificate: None, slices, notes };
    let mut factors = finish(weight, plan.clone(), solution, None, setting.par, setting.start)?;
    if !rooted {
        factors.report_mut().peak_bytes = plan.peak_bytes_of(method, width, k, rooted);
    }
    let (Some(c), Some(share_lost)) = (&weighting.inputs.calibration, share_lost) else {
        return Ok(factors);
    };

    let measure = |w: MatView<'_>, factors: &Factors<T>| Ok(quality::expected_view(w, factors, c)?.relative_error);
    let relative_error = output_error(share_lost, setting.w, &mut factors, measure)?;
    // This is the exponent of one output vector, in the units of W and the inputs.
    let exponent = setting.root_exponent - setting.weight_scale.log2().round() as i32;
    let in_units = |x: f64| times_power_of_two(x, exponent);
    let report = factors.report_mut();
    report.elapsed = setting.start.elapsed();
    report.activation = Some(ActivationReport {
        samples: c.samples(),
        skipped: c.skipped(),
        whitening: weighting.inputs.whitening,
        blend: weighting.inputs.blend,
        output_samples: None,
        relative_error,
        norm: in_units(norm_squared.sqrt()),
        spectrum: s.into_iter().map(|s| in_units(Element::to_f64(s))).collect(),
    });
    Ok(factors)
}

/// Returns the relative output error: the root of the share that is lost where a subtraction of norms shows it, else what
/// `measure` finds with a weight in memory, or the least that can be seen out of core.
pub(super) fn output_error<T: Scalar>(
    share_lost: f64,
    w: Weight<'_>,
    factors: &mut Factors<T>,
    measure: impl FnOnce(MatView<'_>, &Factors<T>) -> Result<f64>,
) -> Result<f64> {
    match w {
        _ if share_lost == 0.0 || share_lost > certificate::FLOOR_IN_EPS * T::EPSILON => Ok(share_lost.sqrt()),
        Weight::Whole(w) => measure(w, factors),
        Weight::Tiles(..) => {
            let floor = (certificate::FLOOR_IN_EPS * T::EPSILON).sqrt();
            let note = format!("the output error is at most {floor:.1e}, which is what is seen out of core");
            factors.report_mut().notes.push(note);
            Ok(floor)
        }
    }
}

/// Computes `x 2^exponent` for any exponent. Outside of the range of f64 the result is zero or infinite.
pub(super) fn times_power_of_two(x: f64, exponent: i32) -> f64 {
    let part = exponent.clamp(-1000, 1000);
    if part == exponent { x * 2f64.powi(part) } else { times_power_of_two(x * 2f64.powi(part), exponent - part) }
}

impl<T: Scalar, S: Space<T>> Whitened<'_, T, S> {
    /// Returns the panel, and forms it if it is not yet formed.
    fn form<'p>(&mut self, long: &'p mut LazyPanel<Panel<T, S>>) -> Result<&'p Panel<T, S>> {
        if let LazyPanel::Deferred(x) = long {
            let mut panel = self.image(self.space().shape(x).1)?;
            self.forward(x, &mut panel)?;
            *long = LazyPanel::Computed(panel);
        }
        let (LazyPanel::Computed(panel) | LazyPanel::Deferred(panel)) = long;
        Ok(panel)
    }

    /// Computes the left singular vectors of `W L` by the rule for the rank, and returns the plan of it.
    pub(super) fn by_rule(&mut self, options: &Options, setting: &Setting<'_>) -> Result<(Plan, LeftVectorsIn<T, S>)> {
        if let Rank::Quality(q) = options.rank {
            return self.by_quality(options, setting, q);
        }
        let plan = setting.plan::<T>(options, options.rank)?;
        let left = self.left_vectors(&plan, setting.par)?;
        Ok((plan, left))
    }

    /// Computes the left singular vectors of `W L`, as planned.
    fn left_vectors(&mut self, plan: &Plan, par: Par) -> Result<LeftVectorsIn<T, S>> {
        // The projection on the image of the basis is half a step on each side of it.
        let saved = if self.is_wide() { 0 } else { 1 };
        let mut filter = Filter::new(plan.task.power_iterations.saturating_sub(saved));
        loop {
            let mut left = self.left_vectors_by(plan, filter, par)?;
            let Spectrum { damped, s, rank, .. } = &left.spectrum;
            match filter.corrected(*damped, s, *rank) {
                Some(next) => filter = next,
                None => {
                    if filter.most.is_finite() {
                        left.spectrum.notes.push(FILTERED_ANEW.to_owned());
                    }
                    return Ok(left);
                }
            }
        }
    }

    /// Computes the left singular vectors of `W L` with this filter, if the plan has one.
    fn left_vectors_by(&mut self, plan: &Plan, filter: Filter, par: Par) -> Result<LeftVectorsIn<T, S>> {
        let (task, target) = (&plan.task, plan.target(self.norm_squared(), 1.0));
        let solution = if self.is_wide() && plan.method == Method::Gram {
            match self.wide_by_gram(plan.route, task, filter, &target, par)? {
                Ok(left) => return Ok(left),
                Err(note) => {
                    let mut solution = randomized::solve(task, self, &target, false, par)?;
                    solution.notes.push(format!("{note}; fell back to {}", solution.method));
                    solution
                }
            }
        } else if plan.route == Route::GramIterated {
            return self.tall_by_gram(task, filter, &target, par);
        } else if plan.method == Method::Gram {
            let steps = task.with_power_iterations(filter.steps);
            methods::solve(plan.route, &steps, self, &target, par)?
        } else {
            plan.solve(self, &target, par)?
        };
        self.of_solution(solution)
    }

    /// Takes the left vectors of a solution.
    fn of_solution(&mut self, solution: Solution<T, S>) -> Result<LeftVectorsIn<T, S>> {
        if self.is_oblique() {
            return self.by_right_vectors(solution);
        }
        let Solution { triplets, rank, width, method, sketch, notes, .. } = solution;
        let Triplets { left, s, right, by_qr, .. } = triplets;
        let vectors = if self.is_wide() { right } else { left };
        let (panel, coefficients) = vectors.into_panel(self.space(), |k| self.outputs(k))?;
        // The panel is the image of the other basis, which was the last product, unless it went through a QR.
        let is_image = method == Method::Gram && !self.is_wide() && !by_qr;
        let from_image = if is_image { self.back_from_last_image()? } else { None };
        let back = match from_image {
            Some(back) => back,
            None => {
                let mut back = self.inputs(self.space().shape(&panel).1)?;
                self.back(&panel, &mut back)?;
                back
            }
        };
        let spectrum = Spectrum { coefficients, s, rank, width, damped: 0.0, kept: None, method, sketch, notes };
        Ok(LeftVectors { panel: LazyPanel::Computed(panel), back, recheck: None, spectrum })
    }

    /// Takes the Gram route of a tall weight: the factors of `Q QᵀA` from G alone, where G tells them, without their
    /// right side and with the product with W last.
    fn tall_by_gram(
        &mut self,
        task: &Task,
        filter: Filter,
        target: &RankTarget,
        par: Par,
    ) -> Result<LeftVectorsIn<T, S>> {
        let width = task.width;
        let early = gram::is_imaged_early::<T>((self.nrows(), self.ncols()), width) && !self.is_oblique();
        let g = self.gram()?;
        let (subspace, damped) = Subspace::find(task, self, g, filter, early)?;
        let mut to_be = None;
        let space = self.space().clone();
        let projection = subspace.project(
            &space,
            |s, captured| target.rank(s, captured),
            par,
            |v| {
                if early {
                    to_be = Some(self.image_to_be(v)?);
                }
                Ok(())
            },
        )?;
        let Projection { mut subspace, factor, divided, basis, s, captured, rank, notes, .. } = match projection {
            ControlFlow::Break(projection) => projection,
            ControlFlow::Continue(subspace) => {
                drop(to_be);
                let mut left = self.by_basis(task, subspace.into_basis(&space)?, par)?;
                left.spectrum.damped = damped;
                return Ok(left);
            }
        };
        if self.is_oblique() {
            let f = subspace.f.as_ref().expect("what was projected");
            let mut v = self.right(rank)?;
            space.multiply(&mut v, Accum::Replace, f, divided.as_ref().subcols(0, rank), T::one())?;
            drop((subspace, divided, to_be));
            let (_, back) = self.image_to_be(&v)?;
            let (coefficients, method, sketch) = (Mat::identity(rank, rank), Method::Gram, Some(task.sketch));
            let spectrum = Spectrum { coefficients, s, rank, width, damped, kept: None, method, sketch, notes };
            return Ok(LeftVectors { panel: LazyPanel::Deferred(v), back, recheck: None, spectrum });
        }
        drop(divided);
        subspace.keep_one();
        let mut coefficients = gram::combination(factor, &basis, &vec![1.0; rank]);
        let (between, back) = match to_be {
            Some(to_be) => to_be,
            None => {
                let mut directions = self.right(rank)?;
                space.multiply(&mut directions, Accum::Replace, &subspace.v, coefficients.as_ref(), T::one())?;
                coefficients = Mat::identity(rank, rank);
                self.image_to_be(&directions)?
            }
        };
        // This is the part of what was captured that `Q QᵀA` keeps.
        let kept = Some(captured - s[rank..].iter().map(|&s| Element::to_f64(s).powi(2)).sum::<f64>());
        let recheck = gram::needs_orthogonality_check(&s).then_some(subspace);
        let (method, sketch) = (Method::Gram, Some(task.sketch));
        let spectrum = Spectrum { coefficients, s, rank, width, damped, kept, method, sketch, notes };
        Ok(LeftVectors { panel: LazyPanel::Deferred(between), back, recheck, spectrum })
    }

    /// Takes the right singular vectors of a solution, in which the weight on the long side has no part.
    fn by_right_vectors(&mut self, solution: Solution<T, S>) -> Result<LeftVectorsIn<T, S>> {
        let Solution { triplets: Triplets { s, right, .. }, rank, width, method, sketch, notes, .. } = solution;
        let (panel, coefficients) = right.into_panel(self.space(), |k| self.right(k))?;
        let mut v = self.right(rank)?;
        let kept = coefficients.as_ref().subcols(0, rank);
        self.space().multiply(&mut v, Accum::Replace, &panel, kept, T::one())?;
        drop(panel);
        let (_, back) = self.image_and_back(&v)?;
        let coefficients = Mat::identity(rank, rank);
        let spectrum = Spectrum { coefficients, s, rank, width, damped: 0.0, kept: None, method, sketch, notes };
        Ok(LeftVectors { panel: LazyPanel::Deferred(v), back, recheck: None, spectrum })
    }

    /// Takes the image of a basis, where G did not tell the factors.
    fn by_basis(&mut self, task: &Task, basis: Panel<T, S>, par: Par) -> Result<LeftVectorsIn<T, S>> {
        let target = task.target(self.norm_squared(), 1.0);
        let solution = gram::from_basis(self, basis, Some(task.sketch), &target, par)?;
        let solution = gram::unless_at_the_floor(task, self, solution, &target, par)?;
        self.of_solution(solution)
    }

    /// Takes the Gram route of a wide weight, where the eigenvectors of `W M Wᵀ` are the answer and need no image.
    /// Returns the reason if it does not work.
    fn wide_by_gram(
        &mut self,
        route: Route,
        task: &Task,
        filter: Filter,
        target: &RankTarget,
        par: Par,
    ) -> Result<std::result::Result<LeftVectorsIn<T, S>, String>> {
        let space = self.space().clone();
        let mut damped = 0.0;
        let (panel, coefficients, s, captured, sketch, back, remedy) = if route == Route::GramDense {
            let g = self.gram()?;
            let gram::Dominant { basis, values: squares, remedy } =
                gram::dense(self, g, |squares| gram::width_for(task, target, squares))?;
            let l = space.shape(&basis).1;
            let captured = squares[..l].iter().map(|&x| Element::to_f64(x)).sum();
            let mut back = self.inputs(l)?;
            self.back(&basis, &mut back)?;
            (basis, Mat::identity(l, l), roots(&squares[..l]), captured, None, back, remedy)
        } else {
            let l = task.width;
            let mut g = self.gram()?;
            let omega = task.omega(self.ncols(), l, stream::RANGE)?;
            let (mut v, mut image) = (self.right(l)?, self.right(l)?);
            damped = filtered_iteration(&space, &mut g, self.norm_squared(), &omega, filter, &mut v, &mut image)?;
            g.apply(&v, &mut image)?;
            drop(g);
            let mut h = Mat::<T>::zeros(l, l);
            space.inner(&v, &image, h.as_mut())?;
            drop(image);
            let mut h = Mat::from_fn(l, l, |i, j| Element::to_f64(h[(i.max(j), i.min(j))]));
            let captured = (0..l).map(|i| h[(i, i)]).sum();
            let unit = small::normalize(h.as_mut());
            let mut back = self.inputs(l)?;
            let small::Eigen { values, vectors, remedy } =
                symmetric_eigen_beside(&space, h.as_ref(), par, || self.back(&v, &mut back))?;
            let squares: Vec<T> = values.iter().rev().map(|x| <T as Element>::from_f64(x * unit)).collect();
            let coefficients = Mat::from_fn(l, l, |i, j| <T as Element>::from_f64(vectors[(i, l - 1 - j)]));
            (v, coefficients, roots(&squares), captured, Some(task.sketch), back, remedy)
        };
        let width = space.shape(&panel).1;
        let rank = target.rank(&s, captured);
        let short = width < task.width && target.may_lack::<T>(&s, captured);
        if short || gram::reaches_floor(&s, rank) && self.norm_squared() > 0.0 {
            return Ok(Err(format!("σ_{rank} is near the rounding of the Gram matrix (√eps σ_1)")));
        }
        let kept = s[..rank].iter().map(|&s| Element::to_f64(s).powi(2)).sum();
        let (method, notes) = (Method::Gram, remedy.map(str::to_owned).into_iter().collect());
        let spectrum = Spectrum { coefficients, s, rank, width, damped, kept: Some(kept), method, sketch, notes };
        Ok(Ok(LeftVectors { panel: LazyPanel::Computed(panel), back, recheck: None, spectrum }))
    }

    /// Computes how much of the outputs is lost on the calibration, by subtraction from the norm that weighed the error
    /// where that is what is asked, or from that of the samples. `None` without calibration; zero if the outputs are
    /// zero, and only then.
    fn lost(
        &mut self,
        weighting: &Weighting,
        bt: &Panel<T, S>,
        spectrum: &Spectrum<T>,
        par: Par,
    ) -> Result<Option<Loss>> {
        let norm_squared = self.norm_squared();
        let exact = weighting.inputs.is_exact();
        Ok(match &weighting.inputs.calibration {
            None => None,
            Some(c) if norm_squared == 0.0 || c.dead().count() == c.features() => {
                Some(Loss { share: 0.0, gains: vec![0.0; spectrum.rank] })
            }
            Some(_) if exact => {
                let (kept, gains) = match spectrum.kept {
                    // The kept singular values are the eigenvalues of the moments of the outputs.
                    Some(kept) => {
                        (kept, spectrum.s[..spectrum.rank].iter().map(|&s| Element::to_f64(s).powi(2)).collect())
                    }
                    None => self.weighted_norms_squared(bt)?,
                };
                let share = (1.0 - kept / norm_squared).max(f64::MIN_POSITIVE);
                Some(Loss { share, gains: gains.into_iter().map(|gain| gain / norm_squared).collect() })
            }
            Some(c) => {
                let data = Data::new(self, c, par)?;
                let gains: Vec<f64> = data.gains(self.space(), bt)?.into_iter().map(|gain| gain / data.whole).collect();
                Some(Loss { share: (1.0 - gains.iter().sum::<f64>()).max(f64::MIN_POSITIVE), gains })
            }
        })
    }

    /// Finds the smallest rank whose outputs have a cosine of at least `q` with the true ones.
    fn by_quality(&mut self, options: &Options, setting: &Setting<'_>, q: f64) -> Result<(Plan, LeftVectorsIn<T, S>)> {
        let weighting = &options.weighting;
        let shape = setting.w.shape();
        let par = setting.par;
        let short = shape.0.min(shape.1);
        let most = options.max_rank.unwrap_or(usize::MAX).clamp(1, short);
        // The operator itself has the curve of the calibration, where outputs are measured on that.
        let itself = weighting.quality_on.is_none() && weighting.inputs.is_exact() || self.is_oblique();
        let data = weighting.quality_on.as_ref().or(weighting.inputs.calibration.as_ref()).filter(|_| !itself);
        let data = data.map(|data| Data::new(self, data, par)).transpose()?;
        let whole = data.as_ref().map_or(self.norm_squared(), |data| data.whole);
        let mut tried = short.div_ceil(QUALITY_FIRST).min(most);
        loop {
            let plan = setting.plan::<T>(options, Rank::Fixed(tried))?;
            let mut left = self.left_vectors(&plan, par)?;
            if let Some(subspace) = left.recheck.take() {
                let panel = self.form(&mut left.panel)?;
                if !gram::is_orthonormal(self.space(), panel, Some(left.spectrum.coefficients()))? {
                    left = self.by_basis(&plan.task, subspace.into_basis(&self.space().clone())?, par)?;
                }
            }
            let gains: Vec<f64> = match &data {
                Some(data) => {
                    let mut bt = self.inputs(tried)?;
                    let coefficients = left.spectrum.coefficients();
                    self.space().multiply(&mut bt, Accum::Replace, &left.back, coefficients, T::one())?;
                    data.gains(self.space(), &bt)?
                }
                None => left.spectrum.s.iter().take(tried).map(|&s| Element::to_f64(s).powi(2)).collect(),
            };
            let mut kept = 0.0;
            let reached = gains.iter().position(|gain| {
                kept += gain;
                kept >= q * q * whole
            });
            if let Some(i) = reached {
                left.spectrum.rank = i + 1;
                left.spectrum.kept =
                    left.spectrum.kept.map(|_| left.spectrum.s[..=i].iter().map(|&s| Element::to_f64(s).powi(2)).sum());
                return Ok((plan, left));
            }
            if tried == most {
                let cosine = (kept / whole).sqrt();
                left.spectrum
                    .notes
                    .push(format!("cosine {cosine:.6} is below the {q} that was asked for: the largest rank"));
                return Ok((plan, left));
            }
            tried = (2 * tried).min(most);
        }
    }
}

/// The moments that outputs are measured on.
struct Data<T> {
    /// The lower triangular half T, with `T + Tᵀ` the moments.
    half: Mat<T>,
    /// The whole, `tr(W M Wᵀ)`.
    whole: f64,
    par: Par,
}

impl<T: Scalar> Data<T> {
    /// Makes the moments of the samples of `c`.
    fn new<S: Space<T>>(op: &mut Whitened<'_, T, S>, c: &Calibration, par: Par) -> Result<Self> {
        let n = c.features();
        let moments = Moments::of::<T>(c)?;
        let mut half = Mat::zeros(n, n);
        moments.write_lower(half.as_mut(), par);
        let whole = op.weighted_trace(&mut |mut dst| dst.copy_from(half.as_ref()))?;
        (0..n).for_each(|j| half[(j, j)] *= <T as Element>::from_f64(0.5));
        Ok(Data { half, whole, par })
    }

    /// Computes `b_iᵀ M b_i` for the columns b_i of a panel.
    fn gains<S: Space<T>>(&self, space: &S, b: &Panel<T, S>) -> Result<Vec<f64>> {
        let (n, k) = space.shape(b);
        let (mut host, mut y) = (Mat::zeros(n, k), Mat::zeros(n, k));
        space.download(b, host.as_mut())?;
        let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
        let (t, x) = (self.half.as_ref(), host.as_ref());
        triangular::matmul(y.as_mut(), full, Accum::Replace, t, lower, x, full, T::one(), self.par);
        let dot = |i: usize| {
            let terms = host.col(i).iter().zip(y.col(i).iter());
            terms.map(|(&x, &y)| Element::to_f64(x) * Element::to_f64(y)).sum::<f64>()
        };
        Ok((0..k).map(|i| 2.0 * dot(i)).collect())
    }
}
