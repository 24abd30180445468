//! tensorslim

pub mod error;
pub mod factors;
pub mod fwht;
#[cfg(feature = "npy")]
pub mod npy;
pub mod operator;
pub mod qr;
pub mod quality;
pub mod range;
pub mod rank;
pub mod rng;
pub mod simd;
pub mod sketch;
pub mod svd;
pub mod tensor;

pub use error::{Error, Result};
pub use factors::{Factors, Report, Split};
pub use faer::dyn_stack;
pub use faer::{MatMut, MatRef, Par};
pub use rank::{Rank, rank_saves_memory};
pub use simd::Scalar;
pub use sketch::{AnySketch, Sketch, SketchOperator};
pub use svd::{ErrorKind, Method, Plan, TruncatedSvd};
pub use tensor::{DType, Element, MatView, Matrix, TensorRef};

/// The threads of the current rayon pool.
pub(crate) fn current_par() -> Par {
    match rayon::current_num_threads() {
        1 => Par::Seq,
        threads => Par::rayon(threads),
    }
}
