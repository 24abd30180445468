//! The results of the small dense problems.

use faer::Mat;

/// An SVD `a = U diag(s) Vᵀ`, all `l × l`, `s` nonincreasing.
pub(crate) struct SmallSvd<T> {
    pub(crate) u: Mat<T>,
    pub(crate) s: Vec<T>,
    pub(crate) v: Mat<T>,
    /// The note for the report if the SVD was not found in the routine way.
    pub(crate) remedy: Option<&'static str>,
}

/// An eigendecomposition `g = V diag(values) Vᵀ`, `values` nondecreasing.
pub(crate) struct Eigen<T> {
    pub(crate) values: Vec<T>,
    pub(crate) vectors: Mat<T>,
    /// The note for the report if the eigenvectors were not found in the routine way.
    pub(crate) remedy: Option<&'static str>,
}
