//! Chooses how far to trust calibration: the blend whose factors lose least on samples that they have not seen.
//!
//! ```text
//!   folds    X = [X_1; ...; X_F], consecutive samples (neighbours resemble each other: a random split would flatter)
//!   loss(b)  = Σ_f ‖(W − W'_{b,f}) X_fᵀ‖²,      W'_{b,f} from the moments of all folds but f, blended by b
//! ```
//!
//! Everything is done with statistics: one [`Calibration`] per fold, merged. Since `W'` is a projection, the loss on a
//! fold is `‖W X_fᵀ‖² − ‖diag(s) Vᵀ X_fᵀ‖²`: `k n²` flops for each candidate besides its factorization.

use super::in_memory::factor_in_pool;
use super::options::Options;
use super::weighting::{Side, Weighting};
use crate::calibration::Calibration;
use crate::calibration::{BLENDS, Moments, cholesky_bytes, equivalent_samples};
use crate::error::{Error, Result};
use crate::operator::{Dense, Pass, Watch};
use crate::quality;
use crate::rank::Rank;
use crate::simd::Scalar;
use crate::space::{Host, HostPanel};
use crate::tensor::{DType, TensorRef};

/// The choice of [`TruncatedSvd::choose_blend`](super::TruncatedSvd::choose_blend).
#[derive(Debug, Clone, PartialEq)]
pub struct BlendChoice {
    /// The best blend.
    pub blend: f64,
    /// All candidates, each with its relative output error on the samples that it had not seen.
    pub candidates: Vec<(f64, f64)>,
}

/// Returns the bytes that [`choose`] takes beside the factorizations: those held during each, and those at other times.
pub(super) fn bytes<T: Scalar>((m, n): (usize, usize), storage: DType, k: usize) -> (usize, usize) {
    let square = n * (n + 3) * size_of::<f64>();
    // These are the statistics of all folds but one, and the samples of that one.
    let held = 2 * square;
    let samples = quality::BLOCK.min(n);
    let outputs = HostPanel::<T>::bytes(n, samples)
        + HostPanel::<T>::bytes(m, samples)
        + (Dense::<T>::product_bytes(m, samples) + Dense::<T>::tile_bytes(Pass::Product(samples), (m, n), storage))
            .max(Dense::<T>::direct_bytes((m, n), m, storage, samples));
    let gains = (n * n + 2 * n * k + (m + n) * k) * size_of::<T>();
    (held, (square + cholesky_bytes(n)).max(outputs).max(gains))
}

/// Finds the blend whose factors lose least on the folds that they have not seen.
pub(super) fn choose<T: Scalar>(options: &Options, w: &TensorRef<'_>, folds: &[Calibration]) -> Result<BlendChoice> {
    if folds.len() < 2 {
        return Err(Error::option("folds", folds.len(), "two or more parts of the calibration samples"));
    }
    if let Rank::Quality(q) = options.rank {
        let want = "a rank, ratio, energy or tolerance where the blend is to be chosen";
        return Err(Error::option("quality", q, want));
    }
    if options.weighting.is_two_sided() {
        return Err(Error::unsuited(
            "output_calibration",
            "weights the outputs, and a blend is chosen by their plain error; choose it without",
        ));
    }
    let (view, par) = (w.view()?, crate::parallel::current_par());
    // Losses are in units of the loudest fold, so that none overflows.
    let loudness = |fold: &Calibration| Ok(Moments::of::<f64>(fold)?.exponent());
    let exponents = folds.iter().map(loudness).collect::<Result<Vec<_>>>()?;
    let is_heard = |fold: &Calibration| fold.dead().count() < fold.features();
    let heard = folds.iter().zip(&exponents).filter(|(fold, _)| is_heard(fold));
    let loudest = heard.map(|(_, &exponent)| exponent).max().unwrap_or(0);
    let mut lost = [0.0; BLENDS.len()];
    let mut whole = 0.0;
    for (held, fold) in folds.iter().enumerate() {
        let mut seen = Calibration::with(fold.features(), fold.options())?;
        for (i, other) in folds.iter().enumerate() {
            if i != held {
                seen.merge(other)?;
            }
        }
        let samples = equivalent_samples(fold, par)?;
        let scale = fold.samples() as f64 * 4f64.powi((exponents[held] - loudest).clamp(-500, 0));
        let (before, weight_scale) = quality::output_norm_squared::<T>(view, samples.as_ref())?;
        let whole_fold = scale * before;
        whole += whole_fold;
        for (lost, blend) in lost.iter_mut().zip(BLENDS) {
            let inputs = Side { calibration: Some(seen.clone()), blend, ..options.weighting.inputs.clone() };
            let weighting = Weighting { inputs, ..options.weighting.clone() };
            let options = Options { weighting, ..options.clone() };
            let f = factor_in_pool::<T>(&options, w, &Watch::default(), Host::new(par))?;
            let kept = quality::kept_norm_squared(&f, samples.as_ref(), weight_scale, par);
            *lost += (whole_fold - scale * kept).max(0.0);
        }
    }
    let error = |lost: f64| if whole > 0.0 { (lost / whole).sqrt() } else { 0.0 };
    let candidates: Vec<(f64, f64)> = BLENDS.into_iter().zip(lost.map(error)).collect();
    let best = candidates.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are candidates");
    Ok(BlendChoice { blend: best.0, candidates })
}
