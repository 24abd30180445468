//! faer's GEMM, compiled once for each arithmetic.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::simd::Scalar;
use crate::tensor::{ArithmeticMut, Element, MatView, arithmetic_mut};

/// Computes `dst <- [dst +] alpha a b`.
pub(crate) fn gemm<T: Scalar>(
    dst: MatMut<'_, T>,
    accum: Accum,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    alpha: f64,
    par: Par,
) {
    match (arithmetic_mut(dst), T::view(a), T::view(b)) {
        (ArithmeticMut::F64(dst), MatView::F64(a), MatView::F64(b)) => gemm_f64(dst, accum, a, b, alpha, par),
        (ArithmeticMut::F32(dst), MatView::F32(a), MatView::F32(b)) => gemm_f32(dst, accum, a, b, alpha, par),
        _ => unreachable!("three matrices of one arithmetic"),
    }
}

#[inline(never)]
fn gemm_f64(dst: MatMut<'_, f64>, accum: Accum, a: MatRef<'_, f64>, b: MatRef<'_, f64>, alpha: f64, par: Par) {
    matmul(dst, accum, a, b, alpha, par);
}

#[inline(never)]
fn gemm_f32(dst: MatMut<'_, f32>, accum: Accum, a: MatRef<'_, f32>, b: MatRef<'_, f32>, alpha: f64, par: Par) {
    matmul(dst, accum, a, b, <f32 as Element>::from_f64(alpha), par);
}
