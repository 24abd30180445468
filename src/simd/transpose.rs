//! Transposition of squares in registers: `log2(L)` rounds of exchanges between rows and lanes at distance `D`.
//!
//! ```text
//!   rows i and i + D, bit D of i clear:    a0 a1        a0 b0        lanes with bit D clear | set
//!                                          b0 b1   ->   a1 b1
//! ```
//! Two lane exchanges and two blends for each pair: half an operation per element for L = 16.

use faer::MatRef;

use super::{Lanes, Scalar};
use crate::tensor::Element;

/// Largest side of a square.
pub(crate) const MAX_SIDE: usize = 16;

/// `dst[j·dst_step + i] = factor · src(i, j)`, widened to `T` (or rounded to it) before the product, for `i, j` below the
/// number of lanes of `T`.
///
/// # Panics
/// If there are fewer rows or columns, those rows are not contiguous, or `dst` is too short.
#[inline(always)]
pub(crate) fn transpose_square<S: Lanes, E: Element, T: Scalar>(
    s: S,
    src: MatRef<'_, E>,
    factor: T,
    dst: &mut [T],
    dst_step: usize,
) {
    let lanes = T::lanes::<S>();
    assert!(lanes <= MAX_SIDE);
    assert!(src.nrows() >= lanes && src.ncols() >= lanes && (src.col_stride() == 1 || lanes == 1));
    assert!(dst.len() >= (lanes - 1) * dst_step + lanes);
    let factor = T::vsplat(s, factor);
    let mut rows = [factor; MAX_SIDE];
    for (i, row) in rows[..lanes].iter_mut().enumerate() {
        // SAFETY: the assertions: `lanes` contiguous elements of row `i < nrows` of the view.
        let x = unsafe { T::vload::<S, E>(s, src.as_ptr().offset(i as isize * src.row_stride())) };
        *row = T::vmul(s, x, factor);
    }
    if lanes > 1 {
        exchange::<1, S, T>(s, &mut rows, lanes);
    }
    if lanes > 2 {
        exchange::<2, S, T>(s, &mut rows, lanes);
    }
    if lanes > 4 {
        exchange::<4, S, T>(s, &mut rows, lanes);
    }
    if lanes > 8 {
        exchange::<8, S, T>(s, &mut rows, lanes);
    }
    for (i, &row) in rows[..lanes].iter().enumerate() {
        // SAFETY: the assertion: `lanes` elements from `i · dst_step` on lie inside `dst`.
        unsafe { T::vstore::<S, T>(s, dst.as_mut_ptr().add(i * dst_step), row) };
    }
}

/// One round.
#[inline(always)]
fn exchange<const D: usize, S: Lanes, T: Scalar>(s: S, rows: &mut [T::V<S>; MAX_SIDE], lanes: usize) {
    for i in 0..MAX_SIDE {
        if i & D == 0 && i + D < lanes {
            let (a, b) = (rows[i], rows[i + D]);
            rows[i] = blend::<D, S, T>(a, T::vxor::<D, S>(s, b));
            rows[i + D] = blend::<D, S, T>(T::vxor::<D, S>(s, a), b);
        }
    }
}

/// Lanes with bit `D` clear from `a`, the others from `b`.
#[inline(always)]
fn blend<const D: usize, S: Lanes, T: Scalar>(a: T::V<S>, b: T::V<S>) -> T::V<S> {
    let lanes = T::lanes::<S>();
    let (mut out, b) = (a, [b]);
    let from: &[T] = bytemuck::cast_slice(&b);
    let to: &mut [T] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut out));
    for lane in 0..lanes {
        if lane & D != 0 {
            to[lane] = from[lane];
        }
    }
    out
}
