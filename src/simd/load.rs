//! Loads fused with a product: storage to arithmetic inside a kernel, in one pass.

use super::{Lanes, Scalar};
use crate::tensor::Element;

/// Computes `dst[i] = factors[i] · src[i]`, with `src[i]` widened to `T` (or rounded to it) before the product.
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

/// Packs a line into panels of `W` registers: element j of the line goes to `dst[j / w · step + j % w]`, where w is the
/// number of elements in W registers, widened to `T` and multiplied by `factor`. What is left of the last register
/// becomes zero.
///
/// # Panics
/// If `dst` is too short.
#[inline(always)]
pub(crate) fn load_in_panels<const W: usize, S: Lanes, E: Element, T: Scalar>(
    s: S,
    src: &[E],
    factor: T,
    dst: &mut [T],
    step: usize,
) {
    let lanes = T::lanes::<S>();
    let (whole, f) = (src.len() / lanes, T::vsplat(s, factor));
    let rest = &src[whole * lanes..];
    let registers = src.len().div_ceil(lanes);
    if registers == 0 {
        return;
    }
    // The last element of the last register.
    assert!(dst.len() >= (registers - 1) / W * step + ((registers - 1) % W + 1) * lanes && step >= W * lanes);
    let (mut from, mut to) = (src.as_ptr(), dst.as_mut_ptr());
    for _ in 0..whole / W {
        for w in 0..W {
            // SAFETY: the register is one of the `whole` ones, which are within `src`, and its place in panel
            // `r / W` is within `dst` by the assertion.
            unsafe { T::vstore::<S, T>(s, to.add(w * lanes), T::vmul(s, T::vload::<S, E>(s, from.add(w * lanes)), f)) };
        }
        from = from.wrapping_add(W * lanes);
        to = to.wrapping_add(step);
    }
    for w in 0..whole % W {
        // SAFETY: the register is one of the `whole` ones, which are within `src`, and its place in the last panel is
        // within `dst` by the assertion.
        unsafe { T::vstore::<S, T>(s, to.add(w * lanes), T::vmul(s, T::vload::<S, E>(s, from.add(w * lanes)), f)) };
    }
    if !rest.is_empty() {
        let last = &mut dst[whole / W * step + whole % W * lanes..][..lanes];
        last.fill(T::zeroed());
        for (d, x) in last.iter_mut().zip(rest) {
            *d = T::from_f64(x.to_f64()) * factor;
        }
    }
}

/// Computes `dst[i] = factor · src[i]`, or adds it if `add`, with `src[i]` widened to `T` (or rounded to it) before the
/// product. Product and sum are rounded one after the other, so that every instruction set gives the same bits.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub(crate) fn load_scaled<S: Lanes, E: Element, T: Scalar>(s: S, src: &[E], factor: T, dst: &mut [T], add: bool) {
    let len = dst.len();
    assert_eq!(src.len(), len);
    let lanes = T::lanes::<S>();
    let f = T::vsplat(s, factor);
    let mut i = 0;
    while i + lanes <= len {
        // SAFETY: `lanes` elements from `i` on lie inside both slices.
        unsafe {
            let mut x = T::vmul(s, T::vload::<S, E>(s, src.as_ptr().add(i)), f);
            if add {
                x = T::vadd(s, x, T::vload::<S, T>(s, dst.as_ptr().add(i)));
            }
            T::vstore::<S, T>(s, dst.as_mut_ptr().add(i), x);
        }
        i += lanes;
    }
    for (d, x) in dst[i..].iter_mut().zip(&src[i..]) {
        let x = T::from_f64(x.to_f64()) * factor;
        *d = if add { *d + x } else { x };
    }
}

/// Computes `dst[i] += factors[i] · src[i]`.
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

/// Computes `dst[i] = src[i]`, or `dst[i] += src[i]` if `add`.
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

/// Computes `sum += Σ ±lines[k]` over the members `2k + minus` of `which`, in their order; `minus` is 1 for −.
///
/// # Panics
/// If there is no line `k`.
#[inline(always)]
pub(crate) fn add_lines<S: Lanes, T: Scalar, const W: usize>(s: S, lines: &[[T; W]], which: &[u32], sum: &mut [T; W]) {
    let lanes = T::lanes::<S>();
    // Up to four registers of sums at once. Loops, because closures are not compiled for the instruction set.
    let mut first = 0;
    while first < W {
        if W.is_multiple_of(4 * lanes) {
            add_registers::<4, S, T, W>(s, lines, which, sum, first);
            first += 4 * lanes;
        } else if W.is_multiple_of(2 * lanes) {
            add_registers::<2, S, T, W>(s, lines, which, sum, first);
            first += 2 * lanes;
        } else {
            add_registers::<1, S, T, W>(s, lines, which, sum, first);
            first += lanes;
        }
    }
}

/// Does [`add_lines`] for the `R` registers from element `first` on.
#[inline(always)]
fn add_registers<const R: usize, S: Lanes, T: Scalar, const W: usize>(
    s: S,
    lines: &[[T; W]],
    which: &[u32],
    sum: &mut [T; W],
    first: usize,
) {
    let lanes = T::lanes::<S>();
    assert!(first + R * lanes <= W);
    let signs = [T::from_f64(1.0), T::from_f64(-1.0)];
    let mut sums = [T::vsplat(s, T::zeroed()); R];
    for (i, v) in sums.iter_mut().enumerate() {
        // SAFETY: the register ends at most at `first + R * lanes`, which is within `sum` by the assertion.
        *v = unsafe { T::vload::<S, T>(s, sum.as_ptr().add(first + i * lanes)) };
    }
    for &k in which {
        let (line, sign) = (&lines[(k >> 1) as usize], T::vsplat(s, signs[(k & 1) as usize]));
        for (i, v) in sums.iter_mut().enumerate() {
            // SAFETY: the register ends at most at `first + R * lanes`, which is within a line by the assertion.
            let x = unsafe { T::vload::<S, T>(s, line.as_ptr().add(first + i * lanes)) };
            *v = T::vfma(s, x, sign, *v);
        }
    }
    for (i, &v) in sums.iter().enumerate() {
        // SAFETY: the register ends at most at `first + R * lanes`, which is within `sum` by the assertion.
        unsafe { T::vstore::<S, T>(s, sum.as_mut_ptr().add(first + i * lanes), v) };
    }
}
