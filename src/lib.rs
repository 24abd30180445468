//! tensorslim
pub mod error;
pub mod fwht;
#[cfg(feature = "npy")]
pub mod npy;
pub mod simd;
pub mod tensor;

pub use error::{Error, Result};
pub use faer::{MatMut, MatRef, Par};
pub use simd::Scalar;
pub use tensor::{DType, Element, MatView, Matrix, TensorRef};
