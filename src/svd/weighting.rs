//! The part of a factorization that calibration adds, and the memory that it takes.

use crate::calibration::Calibration;
use crate::calibration::{Moments, UnsampledWeight, Whitening, cholesky_bytes};
use crate::error::{Error, Result};
use crate::operator::{Dense, STREAMED_ROWS, Triangle};
use crate::rank::Rank;
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::HostPanel;

/// The statistics of one side of the weight, and the way in which they weight the error.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Side {
    pub(super) calibration: Option<Calibration>,
    pub(super) whitening: Whitening,
    pub(super) blend: f64,
}

impl Default for Side {
    fn default() -> Self {
        Side { calibration: None, whitening: Whitening::Full, blend: 1.0 }
    }
}

impl Side {
    /// Tells whether the error is weighted by the samples as they are.
    pub(super) fn is_exact(&self) -> bool {
        self.whitening == Whitening::Full && self.blend == 1.0
    }

    /// Returns the moments of the `n` features of this side for arithmetic in `T`; the identity without statistics.
    ///
    /// # Errors
    /// [`Error::Option`] for a blend out of range or statistics without samples.
    pub(super) fn moments<T: Scalar>(&self, n: usize) -> Result<Moments<'_>> {
        match &self.calibration {
            Some(c) => Moments::blended::<T>(c, self.whitening, self.blend, UnsampledWeight::Least),
            None => Ok(Moments::identity(n)),
        }
    }
}

/// The statistics that weight the error, and the data that the quality is measured on.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Weighting {
    pub(super) inputs: Side,
    pub(super) outputs: Side,
    /// The data that [`Rank::Quality`] is measured on; `None` for the calibration.
    pub(super) quality_on: Option<Calibration>,
}

impl Weighting {
    /// Tells whether calibration or a quality has a part in the factorization.
    pub(super) fn is_active(&self, rank: Rank) -> bool {
        self.inputs.calibration.is_some() || self.is_two_sided() || matches!(rank, Rank::Quality(_))
    }

    /// Tells whether statistics of the outputs weight the error.
    pub(super) fn is_two_sided(&self) -> bool {
        self.outputs.calibration.is_some()
    }

    /// Returns the bytes that measuring the outputs takes, unless the loss is that of the calibration itself: their
    /// moments and the Gram matrix of the weight.
    pub(super) fn measuring_bytes<T: Scalar>(&self, n: usize, rank: Rank) -> usize {
        let itself = self.quality_on.is_none() && self.inputs.is_exact() || self.is_two_sided();
        if itself || !self.is_active(rank) { 0 } else { n * n * (size_of::<f64>() + 3 * size_of::<T>()) }
    }

    /// Checks that the statistics are those of an `m × n` weight and that the rule for the rank has what it needs.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Option`].
    pub(super) fn check(&self, (m, n): (usize, usize), rank: Rank) -> Result<()> {
        let inputs = self.inputs.calibration.iter().chain(&self.quality_on).map(|c| ("calibration", "inputs", n, c));
        let outputs = self.outputs.calibration.iter().map(|c| ("output_calibration", "outputs", m, c));
        for (option, side, features, c) in inputs.chain(outputs) {
            if c.features() != features {
                let want = format_args!("statistics of the {features} {side} of the weight");
                return Err(Error::shape(option, want, format_args!("{} features", c.features())));
            }
        }
        if !matches!(rank, Rank::Quality(_)) {
            return Ok(());
        }
        if self.inputs.calibration.is_none() && self.quality_on.is_none() && !self.is_two_sided() {
            return Err(Error::unsuited(
                "quality",
                "has nothing to be measured on; give a calibration, or samples by quality_on",
            ));
        }
        if self.is_two_sided() && self.quality_on.is_some() {
            return Err(Error::unsuited(
                "quality_on",
                "has no outputs to be measured in; under output statistics the quality is that of the weighted outputs",
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

/// Counts the bytes of a factorization that is weighted on both sides: the moments of the long side, the root of the
/// short one, and that of the long side, which only some methods make. A method that falls back may be one of them.
pub(super) fn two_sided_bytes<T: Scalar>((m, n): (usize, usize), method: Method, width: usize, rank: usize) -> Bytes {
    let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
    let (long, short) = (m.max(n), m.min(n));
    let root = |n: usize| Triangle::bytes::<T>(n);
    let product = Dense::<T>::product_bytes(long, short);
    let by_moments = panel(long, long) + panel(long, short);
    let by_image = root(long) + cholesky_bytes(long) + 2 * panel(long, short);
    let of_long = by_moments.max(by_image) + panel(short, short) + product;
    let of_short = root(long) + root(short) + cholesky_bytes(short) + 4 * panel(short, short);
    let streamed = match method {
        Method::SinglePass | Method::Nystrom => 2 * panel(long, short),
        _ => 0,
    };
    let (roots, panels) = (root(long) + cholesky_bytes(long) + root(short), 2 * panel(long, width));
    let ending = 2 * panel(long, rank) + 4 * panel(short, rank) + 4 * panel(rank, rank);
    Bytes {
        before: {
            let counted = of_long.max(of_short);
            counted + counted / 64 + (64 << 10)
        },
        beside: streamed + roots + 2 * panel(short, short) + 3 * panel(short, width) + panels.max(ending),
    }
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
