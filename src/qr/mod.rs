//! Orthonormal bases of tall panels: `Y = Q R`, Q m×l with orthonormal columns, R l×l upper triangular.
//!
//! [`orthonormalize`] is the one call that the SVD drivers make. It runs CholeskyQR at GEMM speed as far as the
//! condition of Y allows and never returns a basis that it has not measured: every pass but the last ends with the
//! Gram matrix of what it produced, and the last one is only taken when that Gram matrix is close to the identity.
//! What CholeskyQR cannot do (zero columns, breakdown) goes to Householder reflections.
//!
//! * [`cholesky`]: CholeskyQR, CholeskyQR2, with a Gram matrix in f64 for f32 panels, shifted for the rest.
//! * [`householder`]: blocked compact WY, like LAPACK's GEQRT, ORGQR, ORMQR. Always works; no rank test.
//! * [`tsqr`]: QR of row blocks and a tree over their R's; the R-only form is a streaming accumulator.
//!
//! All of them work on views with any strides, take their scratch from the caller, and give the same bits for any
//! number of threads: rows are partitioned by shape alone, and partial sums are added in a fixed order.

pub mod cholesky;
mod driver;
pub mod householder;
mod in_memory;
mod outcome;
mod shared;
mod steps;
pub mod tsqr;

#[doc(hidden)]
pub use driver::orthonormalize_by;
pub use in_memory::{orthonormalize, orthonormalize_scratch};
#[doc(hidden)]
pub use in_memory::{orthonormalize_sparingly, orthonormalize_sparingly_scratch};
pub use outcome::{Algorithm, Orthonormalization};
pub(crate) use shared::exponent;
#[doc(hidden)]
pub use steps::{GramOf, Step, Steps};
