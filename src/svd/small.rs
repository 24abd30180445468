//! The small dense problems, from faer: SVD of an `l × l` triangle, eigenvectors of an `n × n` Gram matrix.

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::{evd, svd};
use faer::{Mat, MatRef, Par};

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
    let mut buffer = MemBuffer::new(svd_scratch::<T>(l, par));
    svd::svd(
        a,
        DiagMut::from_slice_mut(&mut s),
        Some(u.as_mut()),
        Some(v.as_mut()),
        par,
        MemStack::new(&mut buffer),
        Default::default(),
    )
    .map_err(|_| Error::NoConvergence { op: "svd of the projected matrix" })?;
    Ok(SmallSvd { u, s, v })
}

pub(super) fn svd_scratch<T: Scalar>(l: usize, par: Par) -> StackReq {
    let thin = svd::ComputeSvdVectors::Thin;
    svd::svd_scratch::<T>(l, l, thin, thin, par, Default::default())
}

/// Eigenvalues and eigenvectors of the symmetric matrix whose lower triangle is in `g`, both nondecreasing in the
/// eigenvalue.
pub(super) fn symmetric_eigen<T: Scalar>(g: MatRef<'_, T>, par: Par) -> Result<(Vec<T>, Mat<T>)> {
    let n = g.nrows();
    let mut vectors = Mat::zeros(n, n);
    let mut values = vec![T::zeroed(); n];
    let mut buffer = MemBuffer::new(symmetric_eigen_scratch::<T>(n, par));
    evd::self_adjoint_evd(
        g,
        DiagMut::from_slice_mut(&mut values),
        Some(vectors.as_mut()),
        par,
        MemStack::new(&mut buffer),
        Default::default(),
    )
    .map_err(|_| Error::NoConvergence { op: "eigenvalues of the Gram matrix" })?;
    Ok((values, vectors))
}

pub(super) fn symmetric_eigen_scratch<T: Scalar>(n: usize, par: Par) -> StackReq {
    evd::self_adjoint_evd_scratch::<T>(n, evd::ComputeEigenvectors::Yes, par, Default::default())
}
