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

/// Returns the value up to which singular values are rounding, `4 √max(m, n) eps σ_1`. (LAPACK's `max(m, n) eps` is a
/// bound; rounding errors do not all point one way.)
pub(super) fn noise<T: Scalar>(largest: f64, (m, n): (usize, usize)) -> f64 {
    4.0 * (m.max(n) as f64).sqrt() * T::EPSILON * largest
}

/// Returns a note on singular values that are rounding, if some were asked for. The answer is the first `k` of `s`. The
/// largest value of all is the first one, or the next after the answer where that has the smallest values.
pub(super) fn beyond_numerical_rank<T: Scalar>(s: &[T], k: usize, shape: (usize, usize)) -> Option<String> {
    let largest = s.get(k).map_or(s[0], |&next| if next > s[0] { next } else { s[0] });
    let noise = noise::<T>(Element::to_f64(largest), shape);
    let rank = s[..k].partition_point(|&s| Element::to_f64(s) > noise);
    let note = |rank: usize| match s[0] < largest {
        true => format!("{} of the smallest singular values are rounding: at most {noise:.1e}", k - rank),
        false => format!("the numerical rank is {rank}: what is beyond it is rounding"),
    };
    (rank < k).then(|| note(rank))
}

/// Computes singular values of `A` from the first `k` of those of `scale · A`. The largest of all must be a normal number
/// of `T`; smaller ones may round to zero.
pub(super) fn unscale<T: Scalar>(s: &[T], k: usize, scale: f64) -> Result<Vec<T>> {
    let largest = s.iter().map(|&s| Element::to_f64(s)).fold(0.0, f64::max) / scale;
    if largest > <T as Scalar>::MAX || (largest > 0.0 && largest < T::MIN_POSITIVE) {
        return Err(Error::Range { what: "the largest singular value", value: largest, dtype: T::DTYPE });
    }
    Ok(s[..k].iter().map(|&s| T::from_f64(s.to_f64() / scale)).collect())
}
