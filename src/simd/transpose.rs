//! Transposition of squares in registers: `log2(L)` rounds of exchanges between rows and lanes at distance `D`.
//!
//! ```text
//!   rows i and i + D, bit D of i clear:    a0 a1        a0 b0        lanes with bit D clear | set
//!                                          b0 b1   ->   a1 b1
//! ```
//! A round is two lane exchanges and two blends for each pair of rows. The side L of a square is the number of lanes.

use faer::MatRef;

use super::{Lanes, Scalar};
use crate::tensor::Element;

/// The largest side of a square: the most lanes that a register has.
pub(crate) const MAX_SIDE: usize = 16;

/// Transposes a square: `dst[j·dst_step + i] = factor · src(i, j)` for `i` and `j` below the number of lanes of `T`.
/// Elements are widened to `T` (or rounded to it) before the product.
///
/// # Panics
/// If `src` has fewer rows or columns, its rows are not contiguous, or `dst` is too short.
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
        // SAFETY: by the assertions, row `i < lanes` exists and its first `lanes` elements are contiguous.
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
        // SAFETY: by the assertion, `lanes` elements from `i * dst_step` on lie inside `dst`.
        unsafe { T::vstore::<S, T>(s, dst.as_mut_ptr().add(i * dst_step), row) };
    }
}

/// Does one round: exchanges the off-diagonal `D × D` blocks of each `2D × 2D` block of the square.
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

/// Returns the lanes of `a` whose number has bit `D` clear, and the other lanes of `b`.
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
