//! The error that comes with every factorization.
//!
//! The methods end with `U Σ Vᵀ` = the operator projected on a subspace, so `‖A − U Σ Vᵀ‖² = ‖A‖² − Σ σ_i²` exactly; in
//! f64 that is one subtraction. Its rounding is that of the σ_i, about `eps ‖A‖²` of the arithmetic type: once the
//! difference is not well above it, the subtraction says nothing, and the residual is measured by fresh probes instead:
//!
//! ```text
//!   ‖R‖_F² = E ‖R g‖²,  g standard normal, independent of everything before       R g = A g − U (Σ (Vᵀ g))
//! ```
//!
//! with the standard deviation over the probes beside it. The probes are taken in f64 sums and cost one pass over A.

use faer::{Accum, Mat, MatRef};

use super::stream;
use crate::error::Result;
use crate::operator::{LinearOperator, Panel};
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Sketch, SketchOperator};

/// How the error was obtained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ErrorKind {
    /// By subtraction in f64.
    Exact,
    /// From this many random probes; the standard deviation is that of the relative error.
    Estimate {
        /// Number of probes.
        probes: usize,
        /// Standard deviation of the estimate.
        std_dev: f64,
    },
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ErrorKind::Exact => f.pad("exact"),
            ErrorKind::Estimate { probes, std_dev } => write!(f, "estimate ± {std_dev:.1e} from {probes} probes"),
        }
    }
}

pub(super) struct Certificate {
    pub(super) relative_error: f64,
    pub(super) kind: ErrorKind,
}

/// Columns of the residual probe.
pub(super) const PROBES: usize = 16;

/// The subtraction is trusted down to this many eps of `‖A‖²`. The σ_i carry a relative error of a few eps (QR and SVD of
/// the image), so at 2^8 eps the relative error of the certificate is under a few percent at worst.
const FLOOR_IN_EPS: f64 = 256.0;

/// `‖op − u diag(s) vᵀ‖_F / ‖op‖_F`, 0 for a zero operator.
pub(super) fn certify<T: Scalar, O: LinearOperator<T>>(
    op: &mut O,
    u: MatRef<'_, T>,
    s: &[T],
    v: MatRef<'_, T>,
    seed: u64,
) -> Result<Certificate> {
    let norm_squared = op.norm_squared();
    if norm_squared == 0.0 {
        return Ok(Certificate { relative_error: 0.0, kind: ErrorKind::Exact });
    }
    let kept: f64 = s.iter().map(|&s| s.to_f64() * s.to_f64()).sum();
    let rest = (norm_squared - kept) / norm_squared;
    if rest > FLOOR_IN_EPS * T::EPSILON {
        return Ok(Certificate { relative_error: rest.sqrt(), kind: ErrorKind::Exact });
    }

    let omega = AnySketch::new(Sketch::Gaussian, op.ncols(), PROBES, seed, stream::PROBES)?;
    let mut y = op.left(PROBES)?;
    op.sketch(&omega, &mut y)?;
    let mut residual = Mat::<T>::zeros(op.nrows(), PROBES);
    y.copy_to_host(residual.as_mut())?;
    let omega = omega.to_dense::<T>();
    let mut c = v.transpose() * &omega;
    for (i, s) in s.iter().enumerate() {
        c.row_mut(i).iter_mut().for_each(|x| *x = *x * *s);
    }
    faer::linalg::matmul::matmul(residual.as_mut(), Accum::Add, u, c.as_ref(), -T::one(), faer::Par::Seq);
    // AnySketch is normalized to E ΩΩᵀ = I; a standard normal probe is √PROBES times its column.
    let squares: Vec<f64> = (0..PROBES)
        .map(|j| PROBES as f64 * residual.col(j).iter().map(|&x| x.to_f64() * x.to_f64()).sum::<f64>() / norm_squared)
        .collect();
    let mean = squares.iter().sum::<f64>() / PROBES as f64;
    let variance = squares.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (PROBES - 1) as f64;
    let relative_error = mean.sqrt();
    // d√x = dx / (2√x)
    let std_dev = if mean > 0.0 { (variance / PROBES as f64).sqrt() / (2.0 * relative_error) } else { 0.0 };
    Ok(Certificate { relative_error, kind: ErrorKind::Estimate { probes: PROBES, std_dev } })
}
