//! Low-rank factorization of neural-network weights: a tensor goes in, certified factors come out.
//!
//! A weight `W` of a linear layer `y = x Wᵀ` is replaced by `U diag(s) Vᵀ` of rank `k`, which has `k (m + n + 1)` numbers
//! instead of `m n`. This crate holds the kernels that make that fast and safe to trust, on faer's GEMM: fast
//! Walsh-Hadamard transforms, sketches, orthonormalization, range finders and SVD drivers. It knows no ML framework and
//! no model file format.
//!
#![cfg_attr(feature = "linalg", doc = "```")]
#![cfg_attr(not(feature = "linalg"), doc = "```ignore")]
//! use tensorslim::{DType, Rank, Sketch, Split, TensorRef, TruncatedSvd};
//!
//! let bytes = vec![0x3cu8; 2 * 256 * 96]; // bf16, 256 × 96, from wherever weights come
//! let w = TensorRef::new(bytemuck::cast_slice::<u8, half::bf16>(&bytes), &[256, 96])?;
//! let f = TruncatedSvd::new(Rank::Ratio(3.2)).sketch(Sketch::Srht).seed(42).factor::<f32>(w)?;
//! println!("rank {}, relative error {:.4} ({})", f.rank(), f.report().relative_error, f.report().error_kind);
//! let (up, down) = f.split(Split::Balanced); // m×k and k×n weights of the two small layers
//! assert_eq!(up.to_bytes(DType::BF16).len(), 2 * 256 * f.rank());
//! # assert_eq!(down.ncols(), 96);
//! # Ok::<(), tensorslim::Error>(())
//! ```
//!
//! # Legend
//!
//! | symbol | meaning |
//! |---|---|
//! | `A`, `W` | the matrix, `m × n` = outputs × inputs, row-major; the layer is `y = x Wᵀ` |
//! | `k` | rank of the factors |
//! | `p`, `l` | oversampling, columns of a panel: `l = k + p` |
//! | `q` | power iterations |
//! | `Ω` | random `n × l` matrix (sketch), `E ΩΩᵀ = I` |
//! | `H_n` | Hadamard matrix of order `n`: `±1`, `H Hᵀ = n I`, natural order for `n = 2^t` |
//! | `G` | Gram matrix `AᵀA` |
//! | `Q`, `R` | orthonormal basis and triangular factor; `orthonormalize` is `geqrt` + `orgqr` in LAPACK's terms |
//! | `U`, `σ` / `s`, `V` | singular triplets, `σ` nonincreasing |
//! | `u`, `eps` | unit roundoff, spacing at 1 (`eps = 2u`) |
//! | `‖·‖`, `τ_j` | Frobenius norm, `(Σ_{i>=j} σ_i²)^{1/2}` |
//!
//! # Map
//!
//! Each layer knows only those under it.
//!
//! ```text
//!   bin/tensorslim     the command line (feature `cli`)            npy   .npy files (feature `npy`)
//!   batch              many tensors: schedule, failures, progress, resume, shards
//!   svd                TruncatedSvd, Plan; full, gram, randomized  factors   U, s, Vᵀ, report
//!   rank  quality      how many, of one matrix or a budget's; how good for given inputs
//!   calibration        second moments of inputs: statistics, their square roots, the file format
//!   range              power and subspace iteration
//!   operator           LinearOperator: what algorithms see of a matrix          cuda   both on a GPU (feature `cuda`)
//!   space              Space: where tall panels live, and who computes on them  mpi    both on ranks
//!   sketch  qr         Gaussian, SRHT, sparse sign; Householder, CholeskyQR, TSQR
//!   rotation           seeded orthogonal rotations of vectors
//!   fwht  rng          transforms; Philox4x32-10
//!   simd               instruction sets, Lanes, conversions, reductions
//!   parallel           the only door to threads
//!   tensor  error      TensorRef, TensorMut, Matrix; Error
//! ```
//!
//! # Features
//!
//! | feature | gives | on by default |
//! |---|---|---|
//! | `linalg` | all but the rows `rotation`, `fwht`, `simd`, `parallel`, `tensor` of the map and the rules of [`rank`]; needs faer | yes |
//! | `rayon` | threads; without it the same functions run on the calling thread | with `linalg` |
//! | `npy` | `.npy` files | no |
//! | `cuda` | factorization on an NVIDIA GPU | no |
//! | `mpi` | factorization on the ranks of an MPI program; needs an MPI and libclang | no |
//! | `capi` | the C interface, `include/tensorslim.h`; `.ci/capi --install PREFIX` builds and installs it | no |
//! | `cli` | the command line | no |
//!
//! A crate that needs the transforms, the rotations and the random numbers alone takes `default-features = false`:
//!
//! ```
//! use tensorslim::{TensorMut, Threads, fwht};
//!
//! let mut vectors = vec![0.0f32; 3 * 768];
//! vectors[1] = 1.0;
//! fwht::orthonormal_rows(TensorMut::new(&mut vectors, 3, 768)?, Threads::Pool)?;
//! assert!(vectors[..768].iter().all(|x| (x.abs() - 768f32.sqrt().recip()).abs() < 1e-7));
//! # Ok::<(), tensorslim::Error>(())
//! ```
//!
//! Items that these pages do not show serve the tests, the benches and the command line of this crate. They are no part
//! of its interface, and may change in any release.
//!
//! # Promises
//!
//! * One seed, one answer: the same bits for any number of threads. Across instruction sets, agreement to rounding.
//! * Storage in f16, bf16, f32 or f64; arithmetic in f32 or f64. Half precision is widened inside the kernels, never by a copy
//!   of the matrix.
//! * Every factorization says how far it is from the matrix, exactly where the method allows it.
//! * Rotations ([`rotation`]) have the same bits everywhere, and in every later version.
//! * Peak memory is known before the call.
//! * Bad input is a typed [`Error`], never a panic; what was clamped or fell back is in the [`Report`].

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "linalg")]
pub mod batch;
#[cfg(feature = "linalg")]
pub mod calibration;
// C names are found by the linker, and not by paths of this crate: `pub` is for cbindgen, which lists what it says.
#[cfg(feature = "capi")]
#[allow(unreachable_pub)]
mod capi;
#[cfg(feature = "linalg")]
mod compiled;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
pub mod error;
#[cfg(feature = "linalg")]
pub mod factors;
pub mod fwht;
#[cfg(feature = "linalg")]
mod linalg;
#[cfg(feature = "linalg")]
pub mod mpi;
#[cfg(feature = "npy")]
pub mod npy;
#[cfg(feature = "npy")]
pub mod npz;
#[cfg(feature = "linalg")]
pub mod operator;
mod parallel;
#[cfg(feature = "linalg")]
pub mod qr;
#[cfg(feature = "linalg")]
pub mod quality;
#[cfg(feature = "linalg")]
#[doc(hidden)]
pub mod range;
pub mod rank;
#[cfg(feature = "linalg")]
pub mod report;
pub mod rng;
pub mod rotation;
pub mod simd;
#[cfg(feature = "linalg")]
pub mod sketch;
#[cfg(feature = "linalg")]
mod small;
#[cfg(feature = "linalg")]
pub mod space;
#[cfg(feature = "linalg")]
pub mod svd;
pub mod tensor;

pub use error::{Error, Result};
pub use parallel::Threads;
pub use rank::{Rank, rank_saves_memory};
pub use simd::Scalar;
pub use tensor::{DType, Element, Matrix, TensorMut, TensorRef};

#[cfg(feature = "linalg")]
pub use {
    calibration::{Calibration, CalibrationOptions, Whitening},
    factors::{Factors, Pivoted, Split},
    faer::{MatMut, MatRef, Par, dyn_stack},
    report::{ErrorKind, Method, Report},
    sketch::{AnySketch, Sketch, SketchOperator},
    space::Workspace,
    svd::{Device, Plan, TruncatedSvd},
    tensor::MatView,
};

/// Compiles the Rust code of the README.
#[cfg(all(doctest, feature = "linalg"))]
#[doc = include_str!("../README.md")]
struct Readme;
