//! CUDA: a [`Space`](crate::space::Space) and an operator in device memory. The only place that names cudarc.
//!
//! It was run on an H100 (sm_90). It is compiled for sm_80 and sm_100, too, and was not run there. Where there is no
//! card the kernels' sources run under an emulator that finds races, and this module against a driver made for the
//! tests (`tests/cuda`).
//!
//! ```text
//!   device.rs   context, streams, kernels, memory      operator.rs  DeviceMatrix: LinearOperator, resident or streamed
//!   blas.rs     GEMM, SYRK, TRSM, AXPY, COPY           panel.rs     DevicePanel
//!   solver.rs   POTRF, GEQRF, ORGQR, SYEVD, GESVDJ     space.rs     Space: what is done with panels
//!   sketch.rs   A Ω, Philox                            fwht.rs      rows and columns
//!   tensor.rs   the caller's memory, arrays            factors.rs   factors that stay on the device
//!   convert.rs  types and orders of elements           product.rs   A X for halves, too
//!   tile.rs     matrices as kernels see them
//! ```
//!
//! No algorithm is written here: `range` and `svd` run on these types as on those in memory. Tall panels stay on the
//! device, l × l matrices come home. The plain way in is
//!
//! ```no_run
//! # fn main() -> tensorslim::Result<()> {
//! # let (w, m, n) = (vec![0f32; 12], 4, 3);
//! use tensorslim::{Device, Rank, TensorRef, TruncatedSvd};
//! let f = TruncatedSvd::new(Rank::Fixed(2)).device(Device::Cuda(0)).factor::<f32>(TensorRef::new(&w, &[m, n])?)?;
//! # Ok(())
//! # }
//! ```
//! A weight that is on the device already is factored where it is, and its factors stay there:
//!
//! ```no_run
//! # fn main() -> tensorslim::Result<()> {
//! # let (address, stream, m, n) = (0, 0, 4, 3);
//! use tensorslim::cuda::{Device, DeviceTensor};
//! use tensorslim::{DType, Rank, Split, TruncatedSvd};
//! // SAFETY: `address` has m·n halves, row by row, which nobody frees or writes meanwhile.
//! let w = unsafe { DeviceTensor::from_raw(&Device::shared(0)?, address, (m, n), (n, 1), DType::BF16, stream)? };
//! let f = TruncatedSvd::new(Rank::Fixed(2)).factor_device::<f32>(&w)?;
//! let (a, b) = f.split::<half::bf16>(Split::Balanced)?;
//! # Ok(())
//! # }
//! ```
//! The kernel layer is public, too: [`DeviceMatrix`], [`fwht`]. `benches/cuda.rs` measures
//! it; figures are in `benches/NOTES.md`.

mod blas;
mod convert;
mod device;
mod factors;
pub mod fwht;
mod operator;
mod orthonormalize;
mod panel;
mod product;
mod sketch;
#[doc(hidden)]
pub mod solver;
mod space;
mod tensor;
mod tile;

/// The table that build.rs writes. It is empty where there was no nvcc.
mod images {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

pub use device::Device;
pub use factors::DeviceFactors;
pub(crate) use factors::fix_signs;
pub use operator::DeviceMatrix;
#[doc(hidden)]
pub use panel::DevicePanel;
#[doc(hidden)]
pub use sketch::philox_words;
pub use tensor::{DeviceArray, DeviceTensor, DeviceTensorMut};

#[doc(hidden)]
/// Returns the names of the kernel sources that were compiled into this build, with the bytes of each image.
pub fn kernels() -> impl Iterator<Item = (&'static str, usize)> {
    images::IMAGES.iter().map(|(name, image)| (*name, image.len()))
}

#[doc(hidden)]
/// Returns the architectures that the kernels were compiled for. The lowest one is also there as PTX for later cards.
pub fn architectures() -> &'static [&'static str] {
    images::ARCHITECTURES
}
