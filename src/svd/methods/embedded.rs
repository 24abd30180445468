//! Solves least-squares problems through a random embedding, which the one-pass methods have in place of a second
//! product with the matrix.

use faer::dyn_stack::MemStack;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::Result;
use crate::qr;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, SketchOperator};
use crate::tensor::Element;

/// Computes `(ΩᵀQ)⁺ B` for an orthonormal Q: least squares with a matrix whose condition is that of the embedding, a
/// small constant, so that its QR is as good as a pseudo-inverse. If Q is made of unit vectors, as it is for a matrix
/// with few live rows, a sampled Hadamard matrix may not see some of their combinations: a column that adds nothing to
/// those before it gets coefficient 0.
pub(super) fn solve_embedded<T: Scalar>(
    q: &Mat<T>,
    omega: &AnySketch,
    b: MatRef<'_, T>,
    par: Par,
    stack: &mut MemStack,
) -> Result<Mat<T>> {
    /// The least ratio of a pivot to the largest with which a column counts as seen. A sound embedding has at least
    /// `(√s − √l) / (√s + √l)`, 0.17 for s = 2 l, 0.1 for 1.5 l.
    const SEEN: f64 = 1.0 / 64.0;
    let l = q.ncols();
    let mut embedded = Mat::zeros(omega.ncols(), l);
    omega.apply(q.transpose(), embedded.as_mut().transpose_mut(), par)?;
    let mut r = Mat::zeros(l, l);
    qr::orthonormalize(embedded.as_mut(), Some(r.as_mut()), par, stack)?;
    let pivot = |r: &Mat<T>, j: usize| Element::to_f64(r[(j, j)]).abs();
    let largest = (0..l).map(|j| pivot(&r, j)).fold(0.0, f64::max);
    for j in 0..l {
        if pivot(&r, j) <= SEEN * largest {
            // The pivot is as good as infinite, and makes nothing else infinite.
            r[(j, j)] = <T as Element>::from_f64(largest / T::EPSILON.powi(2));
        }
    }
    let mut x = Mat::zeros(l, b.ncols());
    matmul(x.as_mut(), Accum::Replace, embedded.transpose(), b, T::one(), par);
    back_substitute(r.as_ref(), x.as_mut());
    Ok(x)
}

/// Solves `x <- R⁻¹ x` on one thread, because the bits must not depend on how many there are.
fn back_substitute<T: Scalar>(r: MatRef<'_, T>, x: MatMut<'_, T>) {
    solve_upper_triangular_in_place(r, x, Par::Seq);
}
