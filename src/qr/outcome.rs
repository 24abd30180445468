//! The report of an orthonormalization.

/// The algorithm that orthonormalized a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// CholeskyQR in one pass: the columns were nearly orthogonal already (up to their lengths).
    CholeskyQr,
    /// CholeskyQR in two passes, with Gram matrices in the panel's own arithmetic.
    CholeskyQr2,
    /// CholeskyQR with the first factor from a sketch of the panel.
    SketchedCholeskyQr,
    /// CholeskyQR with the first Gram matrix of an f32 panel in f64.
    WideCholeskyQr2,
    /// CholeskyQR with the first Gram matrix (or the first two) shifted by a multiple of the identity.
    ShiftedCholeskyQr,
    /// Blocked Householder reflections.
    Householder,
    /// Householder reflections on blocks of rows, and on a tree over their R's.
    Tsqr,
}

/// The report of [`orthonormalize`](super::orthonormalize).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Orthonormalization {
    /// The algorithm that produced Q.
    pub algorithm: Algorithm,
    /// An estimate of the 2-norm condition number of Y with its columns scaled to equal length. It is a lower bound up
    /// to rounding, usually within 20 %; it is infinite when Y was found to be singular in the arithmetic used.
    pub condition_estimate: f64,
    /// How often the panel was divided by a triangular factor; 0 if only Householder reflections were used.
    pub passes: usize,
}
