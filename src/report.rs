//! The report of a factorization: the method that gave it, its error and how that is known, what was clamped or fell
//! back.

mod text;

use std::time::Duration;

use crate::calibration::Whitening;
use crate::error::{Error, Result};
use crate::sketch::Sketch;
use crate::tensor::DType;

/// The method by which the factorization is computed.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Method {
    /// The cheapest of the other methods that is never less accurate than [`Randomized`](Method::Randomized), by the
    /// cost model of [`Plan`](crate::Plan).
    #[default]
    Auto,
    /// A QR, then a dense SVD of R: the optimum, whatever the spectrum.
    Full,
    /// The dominant eigenvectors of `G = AᵀA` on the short side, exactly or by subspace iteration. It takes one pass
    /// for `G` and one for `A V`. Singular values under `√eps · σ_1` are out of its reach; when the rank reaches down
    /// there, the factorization falls back to [`Randomized`](Method::Randomized) and the report says so.
    Gram,
    /// A randomized range finder with power iterations (Halko, Martinsson, Tropp 2011), orthonormalized at every
    /// product.
    Randomized,
    /// Block Krylov iteration (Musco, Musco 2015): the randomized method with every panel kept, in fewer products. A
    /// rank that the spectrum decides is found by [`Randomized`](Method::Randomized), and so is a basis where as many
    /// singular values tie as a block has columns, which holds no more copies than that.
    Krylov,
    /// Three sketches of one pass (Tropp, Yurtsever, Udell, Cevher 2019), for matrices that can be seen once; see
    /// [`SinglePass`](crate::svd::SinglePass). The rank is fixed or bounded by
    /// [`max_rank`](crate::TruncatedSvd::max_rank). The sketches are those of the rank, or of the oversampling if that
    /// is more; power iterations have no effect.
    SinglePass,
    /// Generalized Nyström (Nakatsukasa 2020): two sketches of one pass, a third of the memory of
    /// [`SinglePass`](Method::SinglePass) or less and a larger error. The rank is fixed or bounded by
    /// [`max_rank`](crate::TruncatedSvd::max_rank); power iterations have no effect.
    Nystrom,
}

impl Method {
    /// All methods, in the order of their names in the documentation.
    pub const ALL: [Method; 7] = [
        Method::Auto,
        Method::Full,
        Method::Gram,
        Method::Randomized,
        Method::Krylov,
        Method::SinglePass,
        Method::Nystrom,
    ];

    /// Returns the name: `"auto"`, `"full"`, `"gram"`, `"randomized"`, `"krylov"`, `"single-pass"` or `"nystrom"`.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Auto => "auto",
            Method::Full => "full",
            Method::Gram => "gram",
            Method::Randomized => "randomized",
            Method::Krylov => "krylov",
            Method::SinglePass => "single-pass",
            Method::Nystrom => "nystrom",
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Method {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        (Method::ALL.into_iter().find(|m| m.name() == s))
            .ok_or_else(|| Error::option("method", s, "auto, full, gram, randomized, krylov, single-pass or nystrom"))
    }
}

/// The way in which the error was obtained.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The error was computed by subtraction in f64.
    Exact,
    /// The error was estimated from random probes; the standard deviation is that of the relative error.
    Estimate {
        /// The number of probes.
        probes: usize,
        /// The standard deviation of the estimate.
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

/// A record of what was done and how good the result is.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Rows and columns of the matrix.
    pub shape: (usize, usize),
    /// The element type of the matrix.
    pub dtype: DType,
    /// The arithmetic.
    pub precision: DType,
    /// The rank of the factors, `k`.
    pub rank: usize,
    /// The method that gave the result, after any fallback.
    pub method: Method,
    /// The reason why the method was taken.
    pub reason: String,
    /// The random matrix, if the method used one.
    pub sketch: Option<Sketch>,
    /// The seed.
    pub seed: u64,
    /// The columns beyond the rank that the panels really had.
    pub oversample: usize,
    /// The power iterations that were asked for.
    pub power_iterations: usize,
    /// The norm of the matrix, `‖A‖_F`.
    pub norm: f64,
    /// All singular values that were computed (at least `rank` of them), nonincreasing.
    pub spectrum: Vec<f64>,
    /// The relative error, `‖A − U diag(s) Vᵀ‖_F / ‖A‖_F`; 0 for a zero matrix.
    pub relative_error: f64,
    /// Whether the error is exact or an estimate.
    pub error_kind: ErrorKind,
    /// How often the matrix was read, without the input check.
    pub passes: usize,
    /// The peak bytes allocated, the factors included. They are known before the call from
    /// [`workspace`](crate::TruncatedSvd::workspace).
    pub peak_bytes: usize,
    /// The wall time of the call.
    pub elapsed: Duration,
    /// The error as the calibration samples see it; `None` without calibration.
    pub activation: Option<ActivationReport>,
    /// Notes on what was clamped, fell back or was not routine. The list is empty when nothing was.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns the count of numbers in the matrix, `m n`.
    pub fn params_before(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Returns the count of numbers in the factors, `k (m + n + 1)`.
    pub fn params_after(&self) -> usize {
        self.rank * (self.shape.0 + self.shape.1 + 1)
    }

    /// Returns `params_before / params_after`.
    pub fn ratio(&self) -> f64 {
        self.params_before() as f64 / self.params_after() as f64
    }

    /// Adds a lost part of the matrix, orthogonal to what was lost before, as a share of its squared norm.
    pub(crate) fn lose(&mut self, share: f64) {
        if share > 0.0 {
            let before = self.relative_error;
            self.relative_error = before.hypot(share.sqrt());
            if let ErrorKind::Estimate { std_dev, .. } = &mut self.error_kind {
                *std_dev *= before / self.relative_error;
            }
        }
    }
}

/// The error of the factorization as the calibration samples see it.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ActivationReport {
    /// The number of samples of the calibration.
    pub samples: u64,
    /// The number of samples that were left out because they were not finite.
    pub skipped: u64,
    /// The part of the moments that was used.
    pub whitening: Whitening,
    /// How much the samples were trusted, 0 to 1.
    pub blend: f64,
    /// The number of samples of the statistics that weighted the outputs; `None` without them.
    pub output_samples: Option<u64>,
    /// The relative error, `‖(W − W') Xᵀ‖_F / ‖W Xᵀ‖_F`, over the calibration samples; 0 if their outputs are zero.
    /// Where outputs were weighted it is `‖Rᵀ (W − W') L‖_F / ‖Rᵀ W L‖_F` for the moments that did so.
    pub relative_error: f64,
    /// The norm `‖W L‖_F`, where `L Lᵀ` are the moments that weighted the error. Without blend it is the root mean
    /// square norm of an output vector. It is infinite if it is beyond f64, as for outputs of huge weights on huge
    /// samples.
    pub norm: f64,
    /// All singular values of `W L` that were computed, nonincreasing. [`allocate`](crate::rank::allocate) shares a
    /// budget by them.
    pub spectrum: Vec<f64>,
}

impl ActivationReport {
    /// Returns the cosine between the outputs before and after, all calibration samples together: `√(1 − e²)`, because
    /// the outputs are projected.
    pub fn cosine(&self) -> f64 {
        (1.0 - self.relative_error * self.relative_error).max(0.0).sqrt()
    }
}
