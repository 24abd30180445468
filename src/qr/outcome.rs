//! What an orthonormalization says of itself.

/// How a panel was orthonormalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// One pass: the columns were nearly orthogonal already (up to their lengths).
    CholeskyQr,
    /// Two passes, Gram matrices in the panel's own arithmetic.
    CholeskyQr2,
    /// The first factor from a sketch of the panel.
    SketchedCholeskyQr,
    /// The first Gram matrix of an f32 panel in f64.
    WideCholeskyQr2,
    /// The first Gram matrix (or the first two) shifted by a multiple of the identity.
    ShiftedCholeskyQr,
    /// Blocked Householder reflections.
    Householder,
    /// Householder reflections on blocks of rows, and a tree over their R's.
    Tsqr,
}

/// What [`orthonormalize`](super::orthonormalize) did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Orthonormalization {
    /// The algorithm that produced Q.
    pub algorithm: Algorithm,
    /// Estimate of the 2-norm condition number of Y with its columns scaled to equal length. It is a lower bound up
    /// to rounding, usually within 20 %; infinite when Y was found to be singular in the arithmetic used.
    pub condition_estimate: f64,
    /// How often the panel was divided by a triangular factor; 0 if it was Householder from the start.
    pub passes: usize,
}
