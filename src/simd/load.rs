//! Loads fused with a product: storage to arithmetic inside a kernel, one pass.

use super::{Lanes, Scalar};
use crate::tensor::Element;

/// `dst[i] = factors[i] · src[i]`, widened to `T` (or rounded to it) before the product.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub(crate) fn load_times<S: Lanes, E: Element, T: Scalar>(s: S, src: &[E], factors: &[T], dst: &mut [T]) {
    let len = dst.len();
    assert!(src.len() == len && factors.len() == len);
    let lanes = T::lanes::<S>();
    let mut i = 0;
    while i + lanes <= len {
        // SAFETY: `lanes` elements from `i` on lie inside all three slices.
        unsafe {
            let x = T::vload::<S, E>(s, src.as_ptr().add(i));
            let f = T::vload::<S, T>(s, factors.as_ptr().add(i));
            T::vstore::<S, T>(s, dst.as_mut_ptr().add(i), T::vmul(s, x, f));
        }
        i += lanes;
    }
    for ((d, x), &f) in dst[i..].iter_mut().zip(&src[i..]).zip(&factors[i..]) {
        *d = T::from_f64(x.to_f64()) * f;
    }
}

/// `dst[i] = factor · src[i]`, widened to `T` (or rounded to it) before the product.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub(crate) fn load_scaled<S: Lanes, E: Element, T: Scalar>(s: S, src: &[E], factor: T, dst: &mut [T]) {
    let len = dst.len();
    assert_eq!(src.len(), len);
    let lanes = T::lanes::<S>();
    let f = T::vsplat(s, factor);
    let mut i = 0;
    while i + lanes <= len {
        // SAFETY: `lanes` elements from `i` on lie inside both slices.
        unsafe {
            let x = T::vload::<S, E>(s, src.as_ptr().add(i));
            T::vstore::<S, T>(s, dst.as_mut_ptr().add(i), T::vmul(s, x, f));
        }
        i += lanes;
    }
    for (d, x) in dst[i..].iter_mut().zip(&src[i..]) {
        *d = T::from_f64(x.to_f64()) * factor;
    }
}

/// `dst[i] += factors[i] · src[i]`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub(crate) fn add_times<S: Lanes, T: Scalar>(s: S, src: &[T], factors: &[T], dst: &mut [T]) {
    let len = dst.len();
    assert!(src.len() == len && factors.len() == len);
    let lanes = T::lanes::<S>();
    let mut i = 0;
    while i + lanes <= len {
        // SAFETY: `lanes` elements from `i` on lie inside all three slices.
        unsafe {
            let x = T::vload::<S, T>(s, src.as_ptr().add(i));
            let f = T::vload::<S, T>(s, factors.as_ptr().add(i));
            let sum = T::vload::<S, T>(s, dst.as_ptr().add(i));
            T::vstore::<S, T>(s, dst.as_mut_ptr().add(i), T::vfma(s, x, f, sum));
        }
        i += lanes;
    }
    for ((d, x), &f) in dst[i..].iter_mut().zip(&src[i..]).zip(&factors[i..]) {
        *d += *x * f;
    }
}

/// `dst[i] = src[i]`, or `dst[i] += src[i]`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub(crate) fn write<S: Lanes, T: Scalar>(s: S, src: &[T], dst: &mut [T], add: bool) {
    let len = dst.len();
    assert_eq!(src.len(), len);
    let lanes = T::lanes::<S>();
    let mut i = 0;
    while i + lanes <= len {
        // SAFETY: `lanes` elements from `i` on lie inside both slices.
        unsafe {
            let mut x = T::vload::<S, T>(s, src.as_ptr().add(i));
            if add {
                x = T::vadd(s, x, T::vload::<S, T>(s, dst.as_ptr().add(i)));
            }
            T::vstore::<S, T>(s, dst.as_mut_ptr().add(i), x);
        }
        i += lanes;
    }
    for (d, &x) in dst[i..].iter_mut().zip(&src[i..]) {
        *d = if add { *d + x } else { x };
    }
}
