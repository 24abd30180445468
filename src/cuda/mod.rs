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
//! The kernel layer is public, too: [`DeviceMatrix`], [`fwht`]. `benches/cuda.rs` measures
//! it; figures are in `benches/NOTES.md`.

mod blas;
mod device;
pub mod fwht;
mod operator;
mod orthonormalize;
mod panel;
mod product;
mod sketch;
#[doc(hidden)]
pub mod solver;
mod space;

/// The table that build.rs writes. It is empty where there was no nvcc.
mod images {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

pub use device::Device;
pub use operator::DeviceMatrix;
#[doc(hidden)]
pub use panel::DevicePanel;
#[doc(hidden)]
pub use sketch::philox_words;

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
