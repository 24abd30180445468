//! What the small dense problems give.

use faer::Mat;

/// `a = U diag(s) Vᵀ`, all `l × l`, `s` nonincreasing.
pub(crate) struct SmallSvd<T> {
    pub(crate) u: Mat<T>,
    pub(crate) s: Vec<T>,
    pub(crate) v: Mat<T>,
    /// What the report should say of how it was found, if that was not routine.
    pub(crate) remedy: Option<&'static str>,
}

/// `g = V diag(values) Vᵀ`, `values` nondecreasing.
pub(crate) struct Eigen<T> {
    pub(crate) values: Vec<T>,
    pub(crate) vectors: Mat<T>,
    /// As in [`SmallSvd`].
    pub(crate) remedy: Option<&'static str>,
}
