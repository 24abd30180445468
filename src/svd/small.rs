//! The small dense problems, from faer: SVD of an `l × l` triangle, eigenvectors of an `n × n` Gram matrix.
//!
//! Both run on one thread: faer's bidiagonal and tridiagonal reductions split sums by thread, so their last bits depend
//! on how many there are. (Its products do not; those use all threads.)
//!
//! faer's singular vectors are orthonormal to 10 to 50 eps and its large σ off by as much. One Newton-Schulz step, `V <- V (3 I − VᵀV) / 2`, squares the
//! first defect, and the Rayleigh quotient `σ_i = u_iᵀ A v_i` with the corrected vectors the second: three products of
//! `2 l³` flops at GEMM speed, against some `20 l³` at a tenth of it for the SVD.

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::linalg::{evd, svd};
use faer::{Accum, Mat, MatRef, Par};

use crate::error::{Error, Result};
use crate::simd::Scalar;

/// `a = U diag(s) Vᵀ`, all `l × l`, `s` nonincreasing.
pub(super) struct SmallSvd<T> {
    pub(super) u: Mat<T>,
    pub(super) s: Vec<T>,
    pub(super) v: Mat<T>,
}

pub(super) fn svd<T: Scalar>(a: MatRef<'_, T>, par: Par) -> Result<SmallSvd<T>> {
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
