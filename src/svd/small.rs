//! The small dense problems, from faer: SVD of an `l × l` triangle, eigenvectors of an `n × n` Gram matrix.
//!
//! Both run on one thread: faer's bidiagonal and tridiagonal reductions split sums by thread, so their last bits depend
//! on how many there are. (Its products do not; those use all threads.)
//!
//! faer's singular vectors are orthonormal to 10 to 50 eps and its large σ off by as much. One Newton-Schulz step, `V <- V (3 I − VᵀV) / 2`, squares the
//! first defect, and the Rayleigh quotient `σ_i = u_iᵀ A v_i` with the corrected vectors the second: three products of
//! `2 l³` flops at GEMM speed, against some `20 l³` at a tenth of it for the SVD.
//!
//! [`svd`] and [`symmetric_eigen`] choose between two instances that this crate compiles once: left generic to the end,
//! faer's solvers would be compiled again in every crate that factors a matrix, for half a minute each.

use std::any::Any;

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::linalg::{evd, svd};
use faer::{Accum, Mat, MatRef, Par};

use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::MatView;

/// `a = U diag(s) Vᵀ`, all `l × l`, `s` nonincreasing.
pub(super) struct SmallSvd<T> {
    pub(super) u: Mat<T>,
    pub(super) s: Vec<T>,
    pub(super) v: Mat<T>,
}

/// The SVD of the square matrix `a`.
pub(super) fn svd<T: Scalar>(a: MatRef<'_, T>, par: Par) -> Result<SmallSvd<T>> {
    Ok(match T::view(a) {
        MatView::F64(a) => same(svd_f64(a, par)?),
        MatView::F32(a) => same(svd_f32(a, par)?),
        MatView::F16(_) | MatView::BF16(_) => unreachable!("arithmetic is in f32 or f64"),
    })
}

#[inline(never)]
fn svd_f32(a: MatRef<'_, f32>, par: Par) -> Result<SmallSvd<f32>> {
    svd_in(a, par)
}

#[inline(never)]
fn svd_f64(a: MatRef<'_, f64>, par: Par) -> Result<SmallSvd<f64>> {
    svd_in(a, par)
}

/// `x` itself, known by another name of its type.
fn same<A: 'static, B: 'static>(x: A) -> B {
    let boxed: Box<dyn Any> = Box::new(x);
    *boxed.downcast().expect("one type under two names")
}

fn svd_in<T: Scalar>(a: MatRef<'_, T>, par: Par) -> Result<SmallSvd<T>> {
    let l = a.nrows();
    let (mut u, mut v) = (Mat::zeros(l, l), Mat::zeros(l, l));
    let mut s = vec![T::zeroed(); l];
    {
        let mut buffer = MemBuffer::new(svd_scratch::<T>(l));
        let stack = MemStack::new(&mut buffer);
        let s = DiagMut::from_slice_mut(&mut s);
        svd::svd(a, s, Some(u.as_mut()), Some(v.as_mut()), Par::Seq, stack, Default::default())
            .map_err(|_| Error::NoConvergence { op: "svd of the projected matrix" })?;
    }
    let mut work = Mat::zeros(l, l);
    for basis in [&mut u, &mut v] {
        matmul(work.as_mut(), Accum::Replace, basis.transpose(), basis.as_ref(), T::from_f64(-0.5), par);
        for i in 0..l {
            work[(i, i)] += T::from_f64(1.5);
        }
        let mut corrected = Mat::zeros(l, l);
        matmul(corrected.as_mut(), Accum::Replace, basis.as_ref(), work.as_ref(), T::from_f64(1.0), par);
        *basis = corrected;
    }
    matmul(work.as_mut(), Accum::Replace, a, v.as_ref(), T::from_f64(1.0), par);
    for (i, s) in s.iter_mut().enumerate() {
        let dot: f64 = u.col(i).iter().zip(work.col(i).iter()).map(|(&x, &y)| x.to_f64() * y.to_f64()).sum();
        *s = T::from_f64(dot.max(0.0));
    }
    // Values that tie to rounding may have changed places.
    s.sort_by(|&x, &y| y.to_f64().total_cmp(&x.to_f64()));
    Ok(SmallSvd { u, s, v })
}

/// Scratch of [`svd`], beside its three results and one more `l × l` matrix.
pub(super) fn svd_scratch<T: Scalar>(l: usize) -> StackReq {
    let thin = svd::ComputeSvdVectors::Thin;
    svd::svd_scratch::<T>(l, l, thin, thin, Par::Seq, Default::default())
}

/// Eigenvalues and eigenvectors of the symmetric matrix whose lower triangle is in `g`, both nondecreasing in the
/// eigenvalue.
pub(super) fn symmetric_eigen<T: Scalar>(g: MatRef<'_, T>) -> Result<(Vec<T>, Mat<T>)> {
    Ok(match T::view(g) {
        MatView::F64(g) => same(symmetric_eigen_f64(g)?),
        MatView::F32(g) => same(symmetric_eigen_f32(g)?),
        MatView::F16(_) | MatView::BF16(_) => unreachable!("arithmetic is in f32 or f64"),
    })
}

#[inline(never)]
fn symmetric_eigen_f32(g: MatRef<'_, f32>) -> Result<(Vec<f32>, Mat<f32>)> {
    symmetric_eigen_in(g)
}

#[inline(never)]
fn symmetric_eigen_f64(g: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    symmetric_eigen_in(g)
}

fn symmetric_eigen_in<T: Scalar>(g: MatRef<'_, T>) -> Result<(Vec<T>, Mat<T>)> {
    let n = g.nrows();
    let mut vectors = Mat::zeros(n, n);
    let mut values = vec![T::zeroed(); n];
    let mut buffer = MemBuffer::new(symmetric_eigen_scratch::<T>(n));
    evd::self_adjoint_evd(
        g,
        DiagMut::from_slice_mut(&mut values),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut buffer),
        Default::default(),
    )
    .map_err(|_| Error::NoConvergence { op: "eigenvalues of the Gram matrix" })?;
    Ok((values, vectors))
}

pub(super) fn symmetric_eigen_scratch<T: Scalar>(n: usize) -> StackReq {
    evd::self_adjoint_evd_scratch::<T>(n, evd::ComputeEigenvectors::Yes, Par::Seq, Default::default())
}
