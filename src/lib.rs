//! tensorslim
pub mod error;
pub mod fwht;
pub mod rng;
pub mod simd;
pub mod sketch;
pub mod tensor;

pub use error::{Error, Result};
pub use faer::{MatMut, MatRef, Par};
pub use simd::Scalar;
pub use sketch::{AnySketch, Sketch, SketchOperator};
pub use tensor::{DType, Element, MatView, Matrix, TensorRef};
