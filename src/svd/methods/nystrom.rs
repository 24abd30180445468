//! Generalized Nyström (Nakatsukasa 2020, arXiv:2009.11392): `A ≈ A Ω (ΥᵀA Ω)⁺ ΥᵀA` from two sketches of one pass.
//!
//! ```text
//!   Y = A Ω   m × l,  l = k + p        X = AᵀΥ   n × c,  c = ⌈3l/2⌉        Q = orth(Y),   A ≈ Q (ΥᵀQ)⁺ Xᵀ
//! ```
//!
//! The pseudo-inverse of `ΥᵀAΩ` is what makes the textbook form unstable: its small singular values are those of A, and
//! the paper cuts them off. With `Y = Q R` it is, in exact arithmetic, `A Ω (ΥᵀA Ω)⁺ = Q R (ΥᵀQ R)⁺ = Q (ΥᵀQ)⁺`, and
//! `ΥᵀQ` is a random embedding of an orthonormal basis: all its singular values lie within `1 ± √(l/c)` of each other
//! whatever the spectrum, so there is nothing to cut off. The QR of Y that the paper saves is needed for the factors
//! anyway. (This is the form of Clarkson and Woodruff, and of Tropp et al. 2017.)
//!
//! Error: `E‖A − Â‖² <= (1 + l/(c−l−1)) E‖A − QQᵀA‖²`, about 1.7 times that of the randomized SVD with q = 0 in the
//! norm. The co-range is oversampled 1.5 times as the paper says.
//!
//! `W = (ΥᵀQ)⁺ Xᵀ` is l × n; `Wᵀ = P Cᵀ` by QR, and the SVD of C gives the factors.

use faer::dyn_stack::MemStack;
use faer::{Mat, Par};

use super::embedded::solve_embedded;
use crate::error::Result;
use crate::qr;
use crate::simd::Scalar;
use crate::sketch::AnySketch;

/// Returns the columns of the co-range for a range of `l` columns.
pub(super) fn corange(l: usize) -> usize {
    l + l.div_ceil(2)
}

/// Computes `Q`, `P` and `C` with `A ≈ Q C Pᵀ` from the range and the co-range.
pub(super) fn two_sketches<T: Scalar>(
    mut q: Mat<T>,
    corange: Mat<T>,
    upsilon: &AnySketch,
    par: Par,
    stack: &mut MemStack,
) -> Result<(Mat<T>, Mat<T>, Mat<T>)> {
    let l = q.ncols();
    qr::orthonormalize(q.as_mut(), None, par, stack)?;
    let w = solve_embedded(&q, upsilon, corange.transpose(), par, stack)?; // l × n
    drop(corange);
    let mut p = w.transpose().to_owned();
    drop(w);
    let mut r = Mat::zeros(l, l);
    qr::orthonormalize(p.as_mut(), Some(r.as_mut()), par, stack)?;
    Ok((q, p, r.transpose().to_owned()))
}
