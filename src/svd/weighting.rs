//! The part of a factorization that calibration adds, and the memory that it takes.

use crate::calibration::Calibration;
use crate::calibration::{Whitening, cholesky_bytes};
use crate::error::{Error, Result};
use crate::operator::{Dense, STREAMED_ROWS, Triangle};
use crate::rank::Rank;
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::HostPanel;

/// The statistics that weight the error, and the way in which they do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Weighting {
    pub(super) calibration: Option<Calibration>,
    pub(super) whitening: Whitening,
    pub(super) blend: f64,
    /// The data that [`Rank::Quality`] is measured on; `None` for the calibration.
    pub(super) quality_on: Option<Calibration>,
}

impl Default for Weighting {
    fn default() -> Self {
        Weighting { calibration: None, whitening: Whitening::Full, blend: 1.0, quality_on: None }
    }
}

impl Weighting {
    /// Tells whether calibration or a quality has a part in the factorization.
    pub(super) fn is_active(&self, rank: Rank) -> bool {
        self.calibration.is_some() || matches!(rank, Rank::Quality(_))
    }

    /// Returns the bytes that measuring the outputs takes, unless the loss is that of the calibration itself: their
    /// moments and the Gram matrix of the weight.
    pub(super) fn measuring_bytes<T: Scalar>(&self, n: usize, rank: Rank) -> usize {
        let itself = self.quality_on.is_none() && self.whitening == Whitening::Full && self.blend == 1.0;
        if itself || !self.is_active(rank) { 0 } else { n * n * (size_of::<f64>() + 3 * size_of::<T>()) }
    }

    pub(super) fn check(&self, n: usize, rank: Rank) -> Result<()> {
        for c in self.calibration.iter().chain(&self.quality_on) {
            if c.features() != n {
                let want = format_args!("statistics of the {n} inputs of the weight");
                return Err(Error::shape("calibration", want, format_args!("{} features", c.features())));
            }
        }
        if matches!(rank, Rank::Quality(_)) && self.calibration.is_none() && self.quality_on.is_none() {
            return Err(Error::unsuited(
                "quality",
                "has nothing to be measured on; give a calibration, or samples by quality_on",
            ));
        }
        Ok(())
    }
}

/// The bytes that calibration takes, for a weight and statistics that the caller holds.
pub(super) struct Bytes {
    /// The bytes at the fullest moment before the factorization of `W L` starts.
    pub(super) before: usize,
    /// The bytes beside what that factorization takes.
    pub(super) beside: usize,
}

/// Counts the bytes of the root (which the statistics keep for the next weight), the Gram matrices of W and of `W L`,
/// with what a congruence takes, the panel between W and L, and `Wᵀ P` and B.
pub(super) fn bytes<T: Scalar>(
    (m, n): (usize, usize),
    method: Method,
    width: usize,
    rank: usize,
    rooted: bool,
) -> Bytes {
    let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
    let (roots, making) = if rooted { (Triangle::bytes::<T>(n), cholesky_bytes(n)) } else { (0, 0) };
    let short = m.min(n);
    let (forming, later, of_weight) = if m < n {
        // Moments are freed before a root is made, if one is, which may be when something first asks for it.
        let roots = roots + making;
        ((panel(n, m) + panel(n, n)).max(roots + 2 * panel(n, m)), roots, 0)
    } else {
        // A congruence comes after the root.
        (roots + 2 * panel(n, n) + making.saturating_sub(panel(n, n)), roots, panel(n, n))
    };
    let streamed = match method {
        Method::SinglePass | Method::Nystrom if m < n => 2 * panel(n, m),
        Method::SinglePass | Method::Nystrom => 3 * panel(n, STREAMED_ROWS.min(m)),
        _ => 0,
    };
    Bytes {
        before: {
            let counted = forming + panel(short, short) + Dense::<T>::product_bytes(n, m.min(n));
            counted + counted / 64 + (64 << 10)
        },
        // The rotation of the outputs stays with the factors.
        beside: streamed
            + later
            + panel(short, short)
            + of_weight
            + 2 * panel(n, width)
            + panel(n, rank)
            + panel(rank, rank),
    }
}
