//! The result of a method, and the notes and units that all methods end with.

use super::certificate::Certificate;
use super::triplets::Triplets;
use crate::error::{Error, Result};
use crate::factors::Slices;
use crate::report::Method;
use crate::simd::Scalar;
use crate::sketch::Sketch;
use crate::space::Space;
use crate::tensor::Element;

/// The result that a method returns to the driver.
pub(super) struct Solution<T: Scalar, S: Space<T>> {
    pub(super) triplets: Triplets<T, S>,
    /// The number of triplets that are the answer.
    pub(super) rank: usize,
    /// Columns of the panels.
    pub(super) width: usize,
    /// The method that gave the triplets, after any fallback.
    pub(super) method: Method,
    pub(super) sketch: Option<Sketch>,
    /// The error, if the method has measured it.
    pub(super) certificate: Option<Certificate>,
    /// The meaning of the factors of smaller rank.
    pub(super) slices: Slices<T>,
    pub(super) notes: Vec<String>,
}

impl<T: Scalar, S: Space<T>> Solution<T, S> {
    /// Makes a solution whose triplets are orthogonal parts of the matrix, from panels of `width` columns. The error is left to
    /// the certificate.
    pub(super) fn of_triplets(
        (triplets, rank, notes): (Triplets<T, S>, usize, Vec<String>),
        width: usize,
        method: Method,
        sketch: Option<Sketch>,
    ) -> Self {
        Solution { triplets, rank, width, method, sketch, certificate: None, slices: Slices::Orthogonal, notes }
    }
}

/// Returns a note on singular values that are rounding, if some were asked for: those below `4 √max(m, n) eps σ_1`.
/// (LAPACK's `max(m, n) eps` is a bound; rounding errors do not all point one way.)
pub(super) fn beyond_numerical_rank<T: Scalar>(s: &[T], (m, n): (usize, usize)) -> Option<String> {
    let noise = 4.0 * (m.max(n) as f64).sqrt() * T::EPSILON * Element::to_f64(s[0]);
    let rank = s.partition_point(|&s| Element::to_f64(s) > noise);
    (rank < s.len()).then(|| format!("the numerical rank is {rank}: what is beyond it is rounding"))
}

/// Computes singular values of `A` from those of `scale · A`. The largest must be a normal number of `T`; smaller ones
/// may round to zero.
pub(super) fn unscale<T: Scalar>(s: &[T], scale: f64) -> Result<Vec<T>> {
    let largest = s[0].to_f64() / scale;
    if largest > <T as Scalar>::MAX || (largest > 0.0 && largest < T::MIN_POSITIVE) {
        return Err(Error::Range { what: "the largest singular value", value: largest, dtype: T::DTYPE });
    }
    Ok(s.iter().map(|&s| T::from_f64(s.to_f64() / scale)).collect())
}
