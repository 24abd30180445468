//! Factorization under calibration: the left singular vectors of `W L` (`whiten.rs`), and W projected on them.
//!
//! ```text
//!   W L  = U Σ Zᵀ   (any method of the planner, on the operator product)          loss² = ‖W L‖² − ‖U_kᵀ W L‖²
//!   W'   = U_k U_kᵀ W = U_k B,      B = U_kᵀ W  (one more product)
//!   B    = Û S Vᵀ  (QR and a k × k SVD)      ->      W' = (U_k Û) S Vᵀ, a proper SVD
//! ```
//!
//! The loss `‖(W − W') L‖` is the least that rank k allows, for any L with `L Lᵀ = G`; no inverse appears. Since `Y' = Y U_k U_kᵀ` is a
//! projection of the outputs for *any* inputs, `cos² + error² = 1` for any data, both are monotone in k, and
//!
//! ```text
//!   cos²(k) = Σ_{i<=k} ‖u_iᵀ W L_h‖² / ‖W L_h‖²
//! ```
//!
//! gives the whole curve for the data that a quality is asked on (`L_h L_hᵀ` its moments) from one factorization:
//! [`Rank::Quality`](crate::Rank::Quality) reads off the smallest rank. When the quality is asked on the calibration itself, the curve is
//! the energy of `W L`, and `Quality(q)` is `Energy(q²)` of that operator.
//!
//! Costs beside the plain factorization: `n³/3` in f64 for L, two products of L with n × n (tall) or n × m (wide) for its Gram
//! matrix, `2 m n k` for B, one k × k SVD. On 3072 × 768 at k = 192: bench `whiten`.

use std::time::Instant;

use faer::Mat;

use super::triplets::Triplets;
use super::{Plan, Solution, TruncatedSvd, certificate};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::factors::{ActivationReport, Factors};
use crate::operator::{Entries, FromPanel, GramBy, LinearOperator, Panel, Product};
use crate::quality;
use crate::rank::Rank;
use crate::simd::Scalar;
use crate::tensor::{Element, MatView};
use crate::whiten::{self, Fill, Moments, Whitening};

/// What calibration adds to a factorization to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Weighting {
    pub(super) calibration: Option<Calibration>,
    pub(super) whitening: Whitening,
    pub(super) blend: f64,
    /// What [`Rank::Quality`] is measured on; the calibration if none.
    pub(super) quality_on: Option<Calibration>,
}

impl Default for Weighting {
    fn default() -> Self {
        Weighting { calibration: None, whitening: Whitening::Full, blend: 1.0, quality_on: None }
    }
}

/// With [`Rank::Quality`] on other data than the calibration: how much of the loss that is allowed there may be seen on the
/// calibration, for the first attempt and again for each next one. Data that was not seen loses more: on `ffn_up` 1.23 times
/// the square.
const QUALITY_MARGIN: f64 = 0.7;

/// Attempts before all singular vectors are computed.
const QUALITY_ATTEMPTS: i32 = 4;

impl Weighting {
    /// Whether the factorization goes through this file.
    pub(super) fn is_active(&self, rank: Rank) -> bool {
        self.calibration.is_some() || matches!(rank, Rank::Quality(_))
    }

    fn check(&self, n: usize, rank: Rank) -> Result<()> {
        for c in self.calibration.iter().chain(&self.quality_on) {
            if c.features() != n {
                let want = format_args!("statistics of the {n} inputs of the weight");
                return Err(Error::shape("calibration", want, format_args!("{} features", c.features())));
            }
        }
        if matches!(rank, Rank::Quality(_)) && self.calibration.is_none() && self.quality_on.is_none() {
            return Err(Error::option("quality", "no samples", "calibration, or samples to measure it on"));
        }
        Ok(())
    }
}

/// W on the left of its root, `A = W L`.
enum Tall {}
/// Wᵀ on the right of it, `Aᵀ = Lᵀ Wᵀ`.
enum Wide {}

/// A weight, and the triplets of its projection.
type Projected<T, W> = (W, Triplets<T, W>);

/// A weight with its root, whichever way round, on panels of one kind.
trait Weighted<T: Scalar, Side>: LinearOperator<T> + Sized {
    type Panel: Panel<T>;
    type Weight: LinearOperator<T, Left = Self::Panel, Right = Self::Panel>;

    /// `U_k` (m × k) from the solution, and `Bᵀ = Wᵀ U_k` (n × k).
    fn project(&mut self, solution: &Triplets<T, Self>, k: usize) -> Result<(Self::Panel, Self::Panel)>;

    /// `‖Lᵀ x‖_F²` of an n × k panel.
    fn weighted_norm_squared(&mut self, x: &Self::Panel) -> Result<f64>;

    /// The SVD of `U_k B`, as triplets of the weight; and the weight.
    fn into_weight(self, u: Self::Panel, bt: Self::Panel) -> Result<Projected<T, Self::Weight>>;
}

impl<T, P, W, L> Weighted<T, Tall> for Product<T, W, L>
where
    T: Scalar,
    P: Panel<T>,
    W: LinearOperator<T, Left = P, Right = P>,
    L: LinearOperator<T, Left = P, Right = P>,
    L::Gram: FromPanel<T, P>,
{
    type Panel = P;
    type Weight = W;

    fn project(&mut self, solution: &Triplets<T, Self>, k: usize) -> Result<(P, P)> {
        let (w, _) = self.parts_mut();
        let (mut u, mut bt) = (w.left(k)?, w.right(k)?);
        solution.left.form(k, &mut u)?;
        w.apply_adjoint(&u, &mut bt)?;
        Ok((u, bt))
    }

    fn weighted_norm_squared(&mut self, x: &P) -> Result<f64> {
        let (_, root) = self.parts_mut();
        let mut weighted = root.right(x.ncols())?;
        root.apply_adjoint(x, &mut weighted)?;
        weighted.norm_squared()
    }

    fn into_weight(self, u: P, bt: P) -> Result<Projected<T, W>> {
        Ok((self.into_parts().0, Triplets::from_left(u, bt, crate::current_par())?.0))
    }
}

impl<T, P, W, L> Weighted<T, Wide> for Product<T, L, W>
where
    T: Scalar,
    P: Panel<T>,
    W: LinearOperator<T, Left = P, Right = P>,
    L: LinearOperator<T, Left = P, Right = P>,
    W::Gram: FromPanel<T, P>,
{
    type Panel = P;
    type Weight = W;

    fn project(&mut self, solution: &Triplets<T, Self>, k: usize) -> Result<(P, P)> {
        let (_, w) = self.parts_mut();
        let (mut u, mut bt) = (w.right(k)?, w.left(k)?);
        solution.right.form(k, &mut u)?;
        w.apply(&u, &mut bt)?;
        Ok((u, bt))
    }

    fn weighted_norm_squared(&mut self, x: &P) -> Result<f64> {
        let (root, _) = self.parts_mut();
        let mut weighted = root.left(x.ncols())?;
        root.apply(x, &mut weighted)?;
        weighted.norm_squared()
    }

    fn into_weight(self, u: P, bt: P) -> Result<Projected<T, W>> {
        Ok((self.into_parts().1, Triplets::from_right(Some(u), bt, crate::current_par())?.0))
    }
}

/// `svd.factor` for `op`, the tall one of W and Wᵀ; `w` is W. `root` makes the operator of L, or of Lᵀ if told so, on the same kind of
/// panels.
pub(super) fn factor<T, P, W, L>(
    svd: &TruncatedSvd,
    op: W,
    root: impl FnOnce(Entries<T>, bool) -> Result<L>,
    w: MatView<'_>,
    start: Instant,
) -> Result<Factors<T>>
where
    T: Scalar,
    P: Panel<T>,
    W: LinearOperator<T, Left = P, Right = P>,
    L: LinearOperator<T, Left = P, Right = P>,
    W::Gram: FromPanel<T, P>,
    L::Gram: FromPanel<T, P>,
{
    let (m, n) = (w.nrows(), w.ncols());
    let (weighting, par) = (&svd.weighting, crate::current_par());
    weighting.check(n, svd.rank)?;
    let moments = match &weighting.calibration {
        Some(c) => whiten::moments::<T>(c, weighting.whitening, weighting.blend, Fill::Visible, par)?,
        None => Moments::identity(n),
    };
    let about = About { w, weight_scale: op.scale(), root_scale: moments.scale, notes: moments.notes, start };
    let root = root(moments.root, m < n)?;
    if m < n {
        project::<T, Wide, _>(svd, Product::new(root, op, GramBy::Image)?, about)
    } else {
        project::<T, Tall, _>(svd, Product::new(op, root, GramBy::First)?, about)
    }
}

/// What is known of the weight besides its operator.
struct About<'a> {
    w: MatView<'a>,
    /// The operator is this times W.
    weight_scale: f64,
    /// `L Lᵀ` is this times the moments.
    root_scale: f64,
    notes: Vec<String>,
    start: Instant,
}

fn project<T: Scalar, Side, P: Weighted<T, Side>>(
    svd: &TruncatedSvd,
    mut product: P,
    about: About<'_>,
) -> Result<Factors<T>> {
    let weighting = &svd.weighting;
    let shape = (about.w.nrows(), about.w.ncols());
    let (plan, mut solution) = match svd.rank {
        Rank::Quality(q) => by_quality(svd, &mut product, &about, q)?,
        _ => {
            let plan = svd.plan::<T>(shape, about.w.dtype())?;
            let goal = plan.goal(product.norm_squared());
            let solution = plan.solve(svd, &mut product, &goal, crate::current_par())?;
            (plan, solution)
        }
    };
    let k = solution.rank;
    let (u, bt) = product.project(&solution.triplets, k)?;
    let norm_squared = product.norm_squared();
    let lost = norm_squared - product.weighted_norm_squared(&bt)?;
    let spectrum: Vec<f64> = solution.triplets.s.iter().map(|&s| Element::to_f64(s)).collect();
    let (width, method, sketch) = (solution.width, solution.method, solution.sketch);
    let mut notes = about.notes;
    notes.append(&mut solution.notes);
    drop(solution);

    let (mut op, triplets) = product.into_weight(u, bt)?;
    let solution = Solution { triplets, rank: k, width, method, sketch, certificate: None, notes };
    let mut factors = svd.finish(&mut op, plan, solution, None, about.start)?;
    let Some(c) = &weighting.calibration else {
        return Ok(factors);
    };

    // Of one output vector, in the units of W and the inputs.
    let unit = 1.0 / (about.weight_scale * about.root_scale.sqrt());
    let exact = weighting.whitening == Whitening::Full && weighting.blend == 1.0;
    let subtraction_says_something = lost > certificate::FLOOR_IN_EPS * T::EPSILON * norm_squared;
    let relative_error = if norm_squared == 0.0 || c.dead().count() == c.features() {
        0.0
    } else if exact && subtraction_says_something {
        (lost / norm_squared).sqrt()
    } else {
        quality::expected_view(about.w, &factors, c)?.relative_error
    };
    let report = factors.report_mut();
    report.elapsed = about.start.elapsed();
    report.activation = Some(ActivationReport {
        samples: c.samples(),
        skipped: c.skipped(),
        whitening: weighting.whitening,
        blend: weighting.blend,
        relative_error,
        norm: norm_squared.sqrt() * unit,
        spectrum: spectrum.into_iter().map(|s| s * unit).collect(),
    });
    Ok(factors)
}

/// The smallest rank whose outputs have a cosine of at least `q` with the true ones.
fn by_quality<T: Scalar, Side, P: Weighted<T, Side>>(
    svd: &TruncatedSvd,
    product: &mut P,
    about: &About<'_>,
    q: f64,
) -> Result<(Plan, Solution<T, P>)> {
    let weighting = &svd.weighting;
    let shape = (about.w.nrows(), about.w.ncols());
    let par = crate::current_par();
    let solve = |product: &mut P, allowed: f64| {
        let svd = TruncatedSvd { rank: Rank::Tolerance(allowed.sqrt()), ..svd.clone() };
        let plan = svd.plan::<T>(shape, about.w.dtype())?;
        let solution = plan.solve(&svd, product, &plan.goal(product.norm_squared()), par)?;
        Ok::<_, Error>((plan, solution))
    };
    let allowed = 1.0 - q * q;
    let most = svd.max_rank.unwrap_or(usize::MAX).min(shape.0.min(shape.1));
    if weighting.quality_on.is_none() && weighting.blend == 1.0 && weighting.whitening == Whitening::Full {
        return solve(product, allowed);
    }
    let data = weighting.quality_on.as_ref().or(weighting.calibration.as_ref()).expect("checked");
    let (samples, _) = whiten::equivalent_samples(data, par)?;
    let whole = quality::output_norm_squared::<T>(about.w, samples.as_ref())?;
    for attempt in 1.. {
        // The last one asks for all that arithmetic resolves.
        let allowed =
            if attempt > QUALITY_ATTEMPTS { f64::MIN_POSITIVE } else { allowed * QUALITY_MARGIN.powi(attempt) };
        let (plan, mut solution) = solve(product, allowed)?;
        let (_, bt) = product.project(&solution.triplets, solution.width)?;
        let mut host = Mat::zeros(bt.nrows(), bt.ncols());
        bt.copy_to_host(host.as_mut())?;
        let gains = quality::output_gains(host.as_ref(), samples.as_ref(), about.weight_scale, par);
        let mut kept = 0.0;
        let reached = gains.iter().take(most).position(|gain| {
            kept += gain;
            kept >= q * q * whole
        });
        if reached.is_none() && attempt <= QUALITY_ATTEMPTS && solution.width < most {
            continue;
        }
        solution.rank = reached.map_or(solution.width.min(most), |i| i + 1);
        if reached.is_none() {
            let cosine = (kept / whole).sqrt();
            solution.notes.push(format!("cosine {cosine:.6} is below the {q} that was asked for: the largest rank"));
        }
        return Ok((plan, solution));
    }
    unreachable!("the last attempt returns")
}
