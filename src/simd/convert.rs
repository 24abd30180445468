//! Storage to arithmetic and back: `dst[i] = scale · src[i]`, widening or narrowing.

use super::Scalar;
use crate::tensor::Element;

/// `dst[i] = scale · src[i]`. `scale` is a power of two (so the product is exact but for under- and overflow) and
/// is applied before any narrowing.
///
/// # Panics
/// If the lengths differ.
pub fn convert<E: Element, T: Scalar>(src: &[E], dst: &mut [T], scale: f64) {
    assert_eq!(src.len(), dst.len());
    for (d, s) in dst.iter_mut().zip(src) {
        *d = T::from_f64(scale * s.to_f64());
    }
}
