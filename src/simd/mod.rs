//! The only place that names instruction sets.
//!
//! [`Scalar`] is the arithmetic type (f32 or f64); storage types are [`Element`](crate::tensor::Element)s.
//! [`convert`] widens f16 and bf16 into it inside the kernels.

pub mod convert;
pub mod reduce;

use crate::tensor::Element;

/// Arithmetic types: `f32` and `f64`. Sealed through [`Element`].
pub trait Scalar: Element + faer::traits::RealField + faer::traits::num_traits::Float {
    /// Unit roundoff times two: the spacing at 1.
    const EPSILON: f64;
    /// Largest finite value.
    const MAX: f64;
}

impl Scalar for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    const MAX: f64 = f32::MAX as f64;
}

impl Scalar for f64 {
    const EPSILON: f64 = f64::EPSILON;
    const MAX: f64 = f64::MAX;
}
