//! Range finders: an orthonormal panel that captures the dominant left or right space of an operator.
//!
//! ```text
//!   power_iteration      Y = orth(A Ω);  q times:  X = orth(Aᵀ Y),  Y = orth(A X)        2q+1 products
//!   filtered_iteration   V = orth(G Ω);  q times:  V = orth(G V − c_i V)                 q+1 products, G = AᵀA
//! ```
//!
//! `E‖A − QQᵀA‖_F <= (1 + k/(p−1))^{1/2} τ_{k+1}` at q = 0 (Halko, Martinsson, Tropp, SIAM Rev. 2011); each power iteration
//! takes the singular values to a power higher by two. The panel is orthonormalized after every product: without it all that is
//! below `u^{1/(2q+1)} ‖A‖` is lost to rounding.
//!
//! **The filter.** q products with G apply a polynomial of degree q to its eigenvalues λ = σ², and `λ^q` is not the best one.
//! The Chebyshev polynomial of `[0, b]` is: of all that are at most 1 there, it is the largest above (Zhou, Saad, Tiago,
//! Chelikowsky 2006 use it so for eigenvectors). In factors `λ − c_i`, with c_i its roots, it is a shift in each product,
//! and a basis may be orthonormalized between any two. It costs an axpy. Excess of the error over the optimum, l = k + 10:
//!
//! ```text
//!                                        powers of A, q = 2      powers of G           filter on G
//!                                        (6 products with A)     3       6 products    2       3 products
//!   1536 × 384, a weight, k = 96               2.2 %             1.6 %   0.4 %         1.9 %   0.9 %
//!   3072 × 768, i.i.d. normal, k = 192         3.0 %             2.3 %   0.6 %         2.6 %   1.1 %
//!   4096 × 1024, σ_i = i^-0.5, k = 256         2.0 %             1.4 %   0.3 %         2.0 %   0.7 %
//! ```
//!
//! The end of the interval has to lie below the eigenvalues that are wanted, about at λ_l. The mean of the eigenvalues that
//! V does not hold, each weighted by itself, is known for the price of two inner products:
//!
//! ```text
//!   b = Σ_{i>l} λ_i² / Σ_{i>l} λ_i  ≈  (‖G‖² − ‖G V‖²) / (‖A‖² − tr VᵀG V)
//! ```
//!
//! On the matrices above it comes out between 0.6 and 1.15 λ_l (the excess over 1 is what V has missed above λ_l), so that three
//! quarters of it are safe; the smallest Ritz value, which needs an eigensolver, is 0.6 λ_l.

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

/// The part of the mean residual eigenvalue that the filter damps up to.
const CUTOFF: f64 = 0.75;

/// An orthonormal basis of the dominant space of the positive semidefinite operator `g` in `v`: a sketch, then the
/// Chebyshev filter of degree `steps`. `trace` is that of `g` (`‖A‖_F²` for `AᵀA`). `w` is a second panel of the same shape,
/// left dirty.
///
/// # Errors
/// What the operator reports.
pub fn filtered_iteration<T: Scalar, P: Panel<T>, G: LinearOperator<T, Left = P, Right = P>>(
    g: &mut G,
    trace: f64,
    omega: &AnySketch,
    steps: usize,
    v: &mut P,
    w: &mut P,
) -> Result<()> {
    g.sketch(omega, v)?;
    v.orthonormalize(None)?;
    for step in 1..=steps {
        g.apply(v, w)?;
        let residual_trace = trace - w.dot(v)?;
        let residual_squares = g.norm_squared() - w.norm_squared()?;
        // Both are differences of sums that carry some eps; where little is left, powers converge anyway.
        let resolved = 64.0 * T::EPSILON;
        if residual_trace > resolved * trace && residual_squares > resolved * g.norm_squared() {
            let end = CUTOFF * residual_squares / residual_trace;
            // Smallest root first: the later the estimate, the better, and the large roots need it more.
            let angle = std::f64::consts::PI * (step as f64 - 0.5) / steps as f64;
            w.add_scaled(v, T::from_f64(-0.5 * end * (1.0 - angle.cos())))?;
        }
        std::mem::swap(v, w);
        v.orthonormalize(None)?;
    }
    Ok(())
}
