//! Range finders: an orthonormal panel that captures the dominant left or right space of an operator.
//!
//! ```text
//!   power_iteration      Y = orth(A Ω);  q times:  X = orth(Aᵀ Y),  Y = orth(A X)        2q+1 products
//!   symmetric_iteration  V = orth(G Ω);  s-1 times:  V = orth(G V)                       s products
//! ```
//!
//! `E‖A − QQᵀA‖_F <= (1 + k/(p−1))^{1/2} τ_{k+1}` at q = 0 (Halko, Martinsson, Tropp, SIAM Rev. 2011); each iteration
//! takes the singular values to the power 2q+1. The panel is orthonormalized after every product: without it all that is
//! below `u^{1/(2q+1)} ‖A‖` is lost to rounding. On `G = AᵀA` one product does the work of two, so `s` products reach the
//! right space with exponent `2s`: `s = q + 1` is never worse than q power iterations.

use crate::error::Result;
use crate::operator::{LinearOperator, Panel};
use crate::simd::Scalar;
use crate::sketch::AnySketch;

/// An orthonormal `m × l` basis of the dominant left space of `op` in `y`. `x` is a right panel of `l` columns, used
/// and left dirty when `q > 0`.
///
/// # Errors
/// What the operator reports.
pub fn power_iteration<T: Scalar, O: LinearOperator<T>>(
    op: &mut O,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut O::Left,
    x: &mut O::Right,
) -> Result<()> {
    op.sketch(omega, y)?;
    y.orthonormalize(None)?;
    for _ in 0..power_iterations {
        op.apply_adjoint(y, x)?;
        x.orthonormalize(None)?;
        op.apply(x, y)?;
        y.orthonormalize(None)?;
    }
    Ok(())
}

/// An orthonormal basis of the dominant space of the symmetric operator `g` in `v`, by `steps >= 1` products. `w` is
/// a second panel of the same shape, left dirty.
///
/// # Errors
/// What the operator reports.
pub fn symmetric_iteration<T: Scalar, P: Panel<T>, G: LinearOperator<T, Left = P, Right = P>>(
    g: &mut G,
    omega: &AnySketch,
    steps: usize,
    v: &mut P,
    w: &mut P,
) -> Result<()> {
    g.sketch(omega, v)?;
    v.orthonormalize(None)?;
    for _ in 1..steps {
        g.apply(v, w)?;
        std::mem::swap(v, w);
        v.orthonormalize(None)?;
    }
    Ok(())
}
