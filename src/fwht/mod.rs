//! Fast Walsh-Hadamard transforms, in place, unnormalized, natural order.

use crate::simd::Scalar;

/// `x <- H x` for a contiguous vector of power-of-two length.
pub(crate) fn transform_row<T: Scalar>(x: &mut [T]) {
    transform_panel(x, 1);
}

/// Transforms each of the `width` columns of the row-major `r × width` panel `x`, `r` a power of two.
pub(crate) fn transform_panel<T: Scalar>(x: &mut [T], width: usize) {
    let r = x.len() / width;
    debug_assert!(r.is_power_of_two() && r * width == x.len());
    let mut h = width;
    while h < x.len() {
        for block in x.chunks_exact_mut(2 * h) {
            let (a, b) = block.split_at_mut(h);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        h *= 2;
    }
}
