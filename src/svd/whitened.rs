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
//! [`Rank::Quality`](crate::Rank::Quality) reads off the smallest rank, without factoring again unless the first width was too small. On
//! the calibration itself the curve is the energy of `W L`.
//!
//! Costs beside the plain factorization: `n³/3` in f64 for L, two products of L with n × n (tall) or n × m (wide) for its Gram
//! matrix, `2 m n k` for B, one k × k SVD. On 3072 × 768 at k = 192, statistics used for the first time, that came to 1.9 to 2.1 times the
//! plain factorization (28 to 30 ms on two Zen 5 cores, bench `whiten`): of some 25 ms more, L took 9, its two products 5, `U_k` and B 4,
//! the second SVD with its QR 7. The statistics keep L for the next weight with the same inputs.

use std::time::Instant;

use faer::{Mat, MatRef, Par};

use super::triplets::Triplets;
use super::{Plan, Solution, TruncatedSvd, certificate};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::factors::{ActivationReport, Factors};
use crate::operator::{Dense, Entries, FromPanel, GramBy, HostPanel, LinearOperator, Panel, Product};
use crate::quality;
use crate::rank::Rank;
use crate::simd::Scalar;
use crate::tensor::{DType, Element, MatView};
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

/// [`Rank::Quality`] first looks at this part of all ranks, and doubles: a quarter is where ratios of 2 to 4 lie.
const QUALITY_FIRST: usize = 4;

impl Weighting {
    /// Whether the factorization goes through this file.
    pub(super) fn is_active(&self, rank: Rank) -> bool {
        self.calibration.is_some() || matches!(rank, Rank::Quality(_))
    }

    /// What measuring the outputs takes of a weight in tiles, unless the loss is that of the calibration itself: their root, three times in f64.
    pub(super) fn bytes_in_tiles(&self, n: usize) -> usize {
        let itself = self.quality_on.is_none() && self.whitening == Whitening::Full && self.blend == 1.0;
        if itself { 0 } else { 3 * n * n * size_of::<f64>() }
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

/// What calibration takes, for a weight and statistics that the caller holds.
pub(super) struct Bytes {
    /// At the fullest moment before the factorization of `W L` starts.
    pub(super) before: usize,
    /// Beside what that takes.
    pub(super) beside: usize,
}

/// The root in f64 (which the statistics keep for the next weight) and in T; the Gram matrix of `W L`; the panel between W and L; `U_k` and B.
pub(super) fn bytes<T: Scalar>((m, n): (usize, usize), width: usize, rank: usize) -> Bytes {
    let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
    let square = |n: usize| n * n * size_of::<T>();
    let roots = n * n * size_of::<f64>() + square(n);
    let short = m.min(n);
    let forming = if m < n { (2 * panel(n, m)).max(panel(n, m) + square(m)) } else { 2 * panel(n, n) + square(n) };
    Bytes {
        before: {
            let counted = roots + forming + panel(short, short) + Dense::<T>::product_bytes(n, m.min(n));
            counted + counted / 64 + (64 << 10)
        },
        beside: roots + panel(short, short) + panel(n, width) + panel(m, rank) + panel(n, rank),
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

    /// The operator of W, or of its transpose.
    fn weight(&mut self) -> &mut Self::Weight;

    /// `‖Lᵀ x‖_F²` of an n × k panel.
    fn weighted_norm_squared(&mut self, x: &Self::Panel) -> Result<f64>;

    /// The SVD of `U_k B`, as triplets of the weight; and the weight.
    fn into_weight(self, u: Self::Panel, bt: Self::Panel, par: Par) -> Result<Projected<T, Self::Weight>>;
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

    fn weight(&mut self) -> &mut W {
        self.parts_mut().0
    }

    fn weighted_norm_squared(&mut self, x: &P) -> Result<f64> {
        let (_, root) = self.parts_mut();
        let mut weighted = root.right(x.ncols())?;
        root.apply_adjoint(x, &mut weighted)?;
        weighted.norm_squared()
    }

    fn into_weight(self, u: P, bt: P, par: Par) -> Result<Projected<T, W>> {
        Ok((self.into_parts().0, Triplets::from_left(u, bt, |s, _| s.len(), par)?.0))
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

    fn weight(&mut self) -> &mut W {
        self.parts_mut().1
    }

    fn weighted_norm_squared(&mut self, x: &P) -> Result<f64> {
        let (root, _) = self.parts_mut();
        let mut weighted = root.left(x.ncols())?;
        root.apply(x, &mut weighted)?;
        weighted.norm_squared()
    }

    fn into_weight(self, u: P, bt: P, par: Par) -> Result<Projected<T, W>> {
        Ok((self.into_parts().1, Triplets::from_right(Some(u), bt, |s, _| s.len(), par)?.0))
    }
}

/// Where the entries of W can be had besides its operator.
#[derive(Clone, Copy)]
pub(super) enum Weight<'a> {
    /// In memory.
    Whole(MatView<'a>),
    /// Nowhere: W is read in tiles. Rows, columns and element type.
    Tiles((usize, usize), DType),
}

impl Weight<'_> {
    fn shape(&self) -> (usize, usize) {
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

/// `svd.factor` for `op`, the tall one of W and Wᵀ; `w` is W. `root` makes the operator of L, or of Lᵀ if told so, on the same kind of
/// panels.
pub(super) fn factor<T, P, W, L>(
    svd: &TruncatedSvd,
    op: W,
    root: impl FnOnce(Entries<T>, bool) -> Result<L>,
    w: Weight<'_>,
    par: Par,
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
    let (m, n) = w.shape();
    // Of a loss that is a tenth of the norm, an error in the directions is ten times the part that it is of the norm.
    let svd = &svd.clone().power_iterations(svd.power_iterations + 1);
    let weighting = &svd.weighting;
    weighting.check(n, svd.rank)?;
    let moments = match &weighting.calibration {
        Some(c) => whiten::moments::<T>(c, weighting.whitening, weighting.blend, Fill::Visible, par)?,
        None => Moments::identity(n),
    };
    let about = About { w, root_scale: moments.scale, notes: moments.notes, par, start };
    let root = root(moments.root, m < n)?;
    if m < n {
        project::<T, Wide, _>(svd, Product::new(root, op, GramBy::Image)?, about)
    } else {
        project::<T, Tall, _>(svd, Product::new(op, root, GramBy::First)?, about)
    }
}

/// What is known of the weight besides its operator.
struct About<'a> {
    w: Weight<'a>,
    /// `L Lᵀ` is this times the moments.
    root_scale: f64,
    notes: Vec<String>,
    par: Par,
    start: Instant,
}

fn project<T: Scalar, Side, P: Weighted<T, Side>>(
    svd: &TruncatedSvd,
    mut product: P,
    about: About<'_>,
) -> Result<Factors<T>> {
    let weighting = &svd.weighting;
    let shape = about.w.shape();
    let (plan, mut solution) = match svd.rank {
        Rank::Quality(q) => by_quality(svd, &mut product, &about, q)?,
        _ => {
            let plan = svd.plan::<T>(shape, about.w.dtype())?;
            let goal = plan.goal(product.norm_squared());
            let solution = plan.solve(svd, &mut product, &goal, about.par)?;
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

    let (mut op, triplets) = product.into_weight(u, bt, about.par)?;
    let solution = Solution { triplets, rank: k, width, method, sketch, certificate: None, notes };
    let mut factors = svd.finish(&mut op, plan, solution, None, about.start)?;
    let Some(c) = &weighting.calibration else {
        return Ok(factors);
    };

    // Of one output vector, in the units of W and the inputs.
    let unit = 1.0 / (op.scale() * about.root_scale.sqrt());
    let exact = weighting.whitening == Whitening::Full && weighting.blend == 1.0;
    let subtraction_says_something = lost > certificate::FLOOR_IN_EPS * T::EPSILON * norm_squared;
    let relative_error = if norm_squared == 0.0 || c.dead().count() == c.features() {
        0.0
    } else if exact && subtraction_says_something {
        (lost / norm_squared).sqrt()
    } else {
        match about.w {
            Weight::Whole(w) => quality::expected_view(w, &factors, c)?.relative_error,
            Weight::Tiles(..) => {
                let (samples, _) = whiten::equivalent_samples(c, about.par)?;
                let whole = output_norm_squared(&mut op, samples.as_ref())?;
                let kept = quality::kept_norm_squared(&factors, samples.as_ref(), about.par);
                let (rest, floor) = (1.0 - kept / whole, certificate::FLOOR_IN_EPS * T::EPSILON);
                if rest <= floor {
                    let note =
                        format!("the output error is at most {:.1e}, which is what is seen out of core", floor.sqrt());
                    factors.report_mut().notes.push(note);
                }
                rest.clamp(0.0, 1.0).sqrt()
            }
        }
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

/// `‖W Xᵀ‖_F²` of a tall W that is read in tiles, `tr X (WᵀW) Xᵀ`: one pass, rows of `x` as many as W has columns or fewer.
fn output_norm_squared<T: Scalar, P, W>(op: &mut W, x: MatRef<'_, f64>) -> Result<f64>
where
    P: Panel<T>,
    W: LinearOperator<T, Left = P, Right = P>,
{
    let host = Mat::from_fn(x.ncols(), x.nrows(), |i, j| <T as Element>::from_f64(x[(j, i)]));
    let (mut inputs, mut image) = (op.right(x.nrows())?, op.right(x.nrows())?);
    inputs.copy_from_host(host.as_ref())?;
    op.gram()?.apply(&inputs, &mut image)?;
    Ok(image.dot(&inputs)? / (op.scale() * op.scale()))
}

/// The smallest rank whose outputs have a cosine of at least `q` with the true ones.
fn by_quality<T: Scalar, Side, P: Weighted<T, Side>>(
    svd: &TruncatedSvd,
    product: &mut P,
    about: &About<'_>,
    q: f64,
) -> Result<(Plan, Solution<T, P>)> {
    let weighting = &svd.weighting;
    let shape = about.w.shape();
    let par = about.par;
    let short = shape.0.min(shape.1);
    let most = svd.max_rank.unwrap_or(usize::MAX).clamp(1, short);
    // What the outputs are measured on: the operator itself has the curve of the calibration.
    let itself = weighting.quality_on.is_none() && weighting.blend == 1.0 && weighting.whitening == Whitening::Full;
    let data = weighting.quality_on.as_ref().or(weighting.calibration.as_ref()).filter(|_| !itself);
    let samples = data.map(|data| whiten::equivalent_samples(data, par)).transpose()?;
    let whole = match &samples {
        Some((samples, _)) => match about.w {
            Weight::Whole(w) => quality::output_norm_squared::<T>(w, samples.as_ref())?,
            Weight::Tiles(..) => output_norm_squared(product.weight(), samples.as_ref())?,
        },
        None => product.norm_squared(),
    };
    let mut tried = short.div_ceil(QUALITY_FIRST).min(most);
    loop {
        let options = svd.clone().with_rank(Rank::Fixed(tried));
        let plan = options.plan::<T>(shape, about.w.dtype())?;
        let goal = plan.goal(product.norm_squared());
        let mut solution = plan.solve(&options, product, &goal, par)?;
        let gains: Vec<f64> = match &samples {
            Some((samples, _)) => {
                let (_, bt) = product.project(&solution.triplets, tried)?;
                let mut host = Mat::zeros(bt.nrows(), bt.ncols());
                bt.copy_to_host(host.as_mut())?;
                quality::output_gains(host.as_ref(), samples.as_ref(), product.weight().scale(), par)
            }
            None => solution.triplets.s.iter().take(tried).map(|&s| Element::to_f64(s).powi(2)).collect(),
        };
        let mut kept = 0.0;
        let reached = gains.iter().position(|gain| {
            kept += gain;
            kept >= q * q * whole
        });
        if let Some(i) = reached {
            solution.rank = i + 1;
            return Ok((plan, solution));
        }
        if tried == most {
            let cosine = (kept / whole).sqrt();
            solution.notes.push(format!("cosine {cosine:.6} is below the {q} that was asked for: the largest rank"));
            return Ok((plan, solution));
        }
        tried = (2 * tried).min(most);
    }
}
