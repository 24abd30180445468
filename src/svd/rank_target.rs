//! What the factors must reach: a rank that follows from the shape, or a loss that the spectrum has to meet.
//!
//! With `B` the matrix as a method sees it (its projection on a subspace) the error of rank k is, all norms in f64,
//!
//! ```text
//!   ‖A − A_k‖²  =  missing + Σ_{i>k} σ_i²,       missing = ‖A‖² − ‖B‖²
//! ```
//!
//! and the rank is the smallest k that brings it to the share of `‖A‖²` that may be lost. It is the formula of the
//! certificate, so a rank that meets the target here has a certificate that meets it. `missing` is a difference of two
//! sums that carry a few eps each: for a target under [`FLOOR_IN_EPS`] it says nothing and is taken for 0, unless the
//! method has measured it by probes.
//!
//! A threshold asks for the values above it and for no loss. Then a subspace is large enough if it holds a value that
//! is not above the threshold, or if `missing` is so small that nothing above it can be left. The numerical rank is that
//! of a threshold that follows from σ_1.

use super::certificate::FLOOR_IN_EPS;
use super::solution::noise;
use crate::rank::{Rank, rank_for_loss};
use crate::simd::Scalar;
use crate::tensor::Element;

/// A factorization in `T` is at rounding when its relative error is at this many eps: the entries of U and V alone are
/// off by half an eps, the products behind them by a small multiple. Less cannot be asked for.
const ROUNDING_IN_EPS: f64 = 32.0;

/// The rank, or the rule to find it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankTarget {
    /// The rank, where the shape decides it.
    fixed: Option<usize>,
    rule: Rank,
    /// The largest rank to return.
    max_rank: usize,
    norm_squared: f64,
    /// The value that those of the operator must be above, where that is the rule.
    threshold: Option<f64>,
    /// The rows and columns of the operator.
    shape: (usize, usize),
}

impl RankTarget {
    /// Makes the target for an operator of this shape and squared norm that stands for `scale · A`.
    pub(super) fn new(
        (fixed, rule): (Option<usize>, Rank),
        max_rank: usize,
        shape: (usize, usize),
        norm_squared: f64,
        scale: f64,
    ) -> Self {
        let threshold = if let Rank::Above(s) = rule { Some(s * scale) } else { None };
        RankTarget { fixed, rule, max_rank, norm_squared, threshold, shape }
    }

    /// Returns the value that those of the operator must be above, where that is the rule.
    pub(super) fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    /// Returns the share of `‖A‖²` that may be lost; not less than rounding takes in any case.
    pub(super) fn allowed_share<T: Scalar>(&self) -> f64 {
        let asked = match self.threshold {
            Some(threshold) if self.norm_squared > 0.0 => threshold * threshold / self.norm_squared,
            _ => self.rule.allowed_loss().unwrap_or(0.0),
        };
        asked.max((ROUNDING_IN_EPS * T::EPSILON).powi(2))
    }

    /// Tells whether `missing` cannot be had by subtraction where it matters.
    pub(super) fn is_below_floor<T: Scalar>(&self) -> bool {
        self.threshold.is_none() && self.allowed_share::<T>() <= FLOOR_IN_EPS * T::EPSILON
    }

    /// Returns `‖A‖² − captured`, or 0 where the target is so close that this would be rounding.
    fn missing<T: Scalar>(&self, captured: f64) -> f64 {
        if self.is_below_floor::<T>() { 0.0 } else { self.norm_squared - captured }
    }

    /// Tells whether the shape decides the rank.
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// Returns the largest rank that can be the answer, of `l` triplets.
    pub(super) fn most_of(&self, l: usize) -> usize {
        self.fixed.unwrap_or(self.max_rank).min(l)
    }

    /// Returns how many of the singular values `s` of a projection with `‖B‖² = captured` are the answer.
    pub(super) fn rank<T: Scalar>(&self, s: &[T], captured: f64) -> usize {
        self.rank_given::<T>(s, self.missing::<T>(captured))
    }

    /// Returns how many of the singular values `s` are the answer, for a measured `missing`.
    pub(super) fn rank_given<T: Scalar>(&self, s: &[T], missing: f64) -> usize {
        self.fixed.unwrap_or_else(|| {
            let numerical = (self.rule == Rank::Numerical).then(|| noise::<T>(s[0].to_f64(), self.shape));
            if let Some(threshold) = self.threshold.or(numerical) {
                let above = s.iter().take_while(|&&s| Element::to_f64(s) > threshold).count();
                return above.max(1).min(self.max_rank);
            }
            let spectrum: Vec<f64> = s.iter().map(|&s| s.to_f64()).collect();
            rank_for_loss(&spectrum, missing, self.allowed_share::<T>() * self.norm_squared).min(self.max_rank)
        })
    }

    /// Tells whether `missing` leaves room for any rank at all.
    pub(super) fn is_within_reach<T: Scalar>(&self, missing: f64) -> bool {
        // A threshold below the floor of the subtraction is not reached by it.
        let is_seen = self.threshold.is_none_or(|t| t * t > FLOOR_IN_EPS * T::EPSILON * self.norm_squared);
        self.fixed.is_some() || is_seen && missing <= self.allowed_share::<T>() * self.norm_squared
    }

    /// Tells whether a projection with `‖B‖² = captured` leaves room for any rank at all.
    pub(super) fn is_reached_by<T: Scalar>(&self, captured: f64) -> bool {
        self.is_within_reach::<T>(self.missing::<T>(captured))
    }

    /// Tells whether a larger subspace than one with the singular values `s` and `‖B‖² = captured` may hold more of the
    /// answer.
    pub(super) fn may_lack<T: Scalar>(&self, s: &[T], captured: f64) -> bool {
        match (self.threshold, s.last()) {
            (Some(threshold), Some(least)) => Element::to_f64(*least) > threshold,
            _ => !self.is_reached_by::<T>(captured),
        }
    }

    /// Returns the note for the report where the error is above what was asked for, or no value above the threshold;
    /// `least` is the smallest one that is kept.
    pub(super) fn shortfall(&self, rank: usize, relative_error: f64, least: f64) -> Option<String> {
        if self.rule == Rank::Numerical {
            let why = "the largest rank that was allowed is below the numerical rank, or equal to it";
            return (rank == self.max_rank && rank < self.shape.0.min(self.shape.1)).then(|| why.to_owned());
        }
        if self.threshold.is_some_and(|threshold| least <= threshold) {
            return Some(format!("no singular value was found {}; kept the largest one", self.rule));
        }
        let asked = self.rule.allowed_loss()?.sqrt();
        let why = match () {
            // The two are equal but for the rounding of the square root.
            () if relative_error <= asked * (1.0 + 1e-12) => return None,
            () if rank >= self.max_rank => "the largest rank that was allowed",
            () => "below what this arithmetic resolves",
        };
        Some(format!("relative error {relative_error:.3e} is above the {asked:.3e} of {}: {why}", self.rule))
    }
}
