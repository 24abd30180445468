//! What a factorization says about itself: the method that gave it, its error and how that is known, what was clamped
//! or fell back.

use std::time::Duration;

use crate::calibration::Whitening;
use crate::error::{Error, Result};
use crate::sketch::Sketch;
use crate::tensor::DType;

/// How the factorization is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Method {
    /// The cheapest of the others that is never less accurate than [`Randomized`](Method::Randomized), by the cost
    /// model of [`Plan`](crate::Plan).
    #[default]
    Auto,
    /// QR, then a dense SVD of R: the optimum, whatever the spectrum.
    Full,
    /// `G = AᵀA` on the short side, then its dominant eigenvectors, exactly or by subspace iteration. One pass for `G`,
    /// one for `A V`. Singular values under `√eps · σ_1` are out of its reach; when the rank reaches down there, the
    /// factorization falls back to [`Randomized`](Method::Randomized) and the report says so.
    Gram,
    /// Randomized range finder with power iterations (Halko, Martinsson, Tropp 2011), orthonormalized at every product.
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

    /// `"auto"`, `"full"`, `"gram"`, `"randomized"`, `"krylov"`, `"single-pass"` or `"nystrom"`.
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

/// What was done and how good it is.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Rows and columns of the matrix.
    pub shape: (usize, usize),
    /// Its element type.
    pub dtype: DType,
    /// The arithmetic.
    pub precision: DType,
    /// The rank of the factors, `k`.
    pub rank: usize,
    /// The method that gave the result, after any fallback.
    pub method: Method,
    /// Why that method.
    pub reason: String,
    /// The random matrix, if the method used one.
    pub sketch: Option<Sketch>,
    /// The seed.
    pub seed: u64,
    /// Columns beyond the rank that the panels really had.
    pub oversample: usize,
    /// Power iterations that were asked for.
    pub power_iterations: usize,
    /// `‖A‖_F`.
    pub norm: f64,
    /// All singular values that were computed (at least `rank` of them), nonincreasing.
    pub spectrum: Vec<f64>,
    /// `‖A − U diag(s) Vᵀ‖_F / ‖A‖_F`; 0 for a zero matrix.
    pub relative_error: f64,
    /// Whether that is exact or an estimate.
    pub error_kind: ErrorKind,
    /// How often the matrix was read, the input check not counted.
    pub passes: usize,
    /// Peak bytes allocated, the factors included; known before the call from
    /// [`workspace`](crate::TruncatedSvd::workspace).
    pub peak_bytes: usize,
    /// Wall time of the call.
    pub elapsed: Duration,
    /// What calibration brought; `None` without it.
    pub activation: Option<ActivationReport>,
    /// What was clamped, fell back or was not routine. Empty when nothing was.
    pub notes: Vec<String>,
}

impl Report {
    /// Numbers in the matrix, `m n`.
    pub fn params_before(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Numbers in the factors, `k (m + n + 1)`.
    pub fn params_after(&self) -> usize {
        self.rank * (self.shape.0 + self.shape.1 + 1)
    }

    /// `params_before / params_after`.
    pub fn ratio(&self) -> f64 {
        self.params_before() as f64 / self.params_after() as f64
    }

    /// Counts a part of the matrix that is lost as well, orthogonal to what was, as a share of its squared norm.
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

/// The factorization as the calibration samples see it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ActivationReport {
    /// Samples of the calibration.
    pub samples: u64,
    /// Samples that were left out of it because they were not finite.
    pub skipped: u64,
    /// What of their moments was used.
    pub whitening: Whitening,
    /// How much they were trusted.
    pub blend: f64,
    /// `‖(W − W') Xᵀ‖_F / ‖W Xᵀ‖_F` over the calibration samples; 0 if their outputs are.
    pub relative_error: f64,
    /// `‖W L‖_F`, with `L Lᵀ` the moments that weighed the error: without blend the root mean square norm of an output
    /// vector. Infinite if that is beyond f64, as outputs of huge weights on huge samples are.
    pub norm: f64,
    /// All singular values of `W L` that were computed, nonincreasing: what [`allocate`](crate::rank::allocate) shares
    /// a budget by.
    pub spectrum: Vec<f64>,
}

impl ActivationReport {
    /// Cosine between the outputs before and after, all calibration samples together: `√(1 − e²)`, because the outputs
    /// are projected.
    pub fn cosine(&self) -> f64 {
        (1.0 - self.relative_error * self.relative_error).max(0.0).sqrt()
    }
}
