//! Low-rank factorization of neural-network weights: a tensor goes in, certified factors come out.
//!
//! A weight `W` of a linear layer `y = x Wᵀ` is replaced by `U diag(s) Vᵀ` of rank `k`, which has `k (m + n + 1)` numbers
//! instead of `m n`. This crate holds the kernels that make that fast and safe to trust, on faer's GEMM: fast
//! Walsh-Hadamard transforms, sketches, orthonormalization, range finders and SVD drivers. It knows no ML framework and
//! no model file format.
//!
//! ```
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
//!   whiten  calibration  the root of the second moments of inputs; statistics of them
//!   range              power and subspace iteration
//!   operator           LinearOperator: what algorithms see of a matrix          cuda   both on a GPU (feature `cuda`)
//!   space              Space: where tall panels live, and who computes on them
//!   sketch  qr         Gaussian, SRHT, sparse sign; Householder, CholeskyQR, TSQR
//!   fwht  rng          transforms; Philox4x32-10
//!   simd               instruction sets, Lanes, conversions, reductions
//!   tensor  error      TensorRef, Matrix; Error
//! ```
//!
//! # Promises
//!
//! * One seed, one answer: the same bits for any number of threads. Across instruction sets, agreement to rounding.
//! * Storage in f16, bf16, f32 or f64; arithmetic in f32 or f64. Half precision is widened inside the kernels, never by a copy
//!   of the matrix.
//! * Every factorization says how far it is from the matrix, exactly where the method allows it.
//! * Peak memory is known before the call.
//! * Bad input is a typed [`Error`], never a panic; what was clamped or fell back is in the [`Report`].

pub mod batch;
pub mod calibration;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod factors;
pub mod fwht;
mod linalg;
#[cfg(feature = "npy")]
pub mod npy;
pub mod operator;
pub mod qr;
pub mod quality;
pub mod range;
pub mod rank;
pub mod report;
pub mod rng;
pub mod simd;
pub mod sketch;
pub mod space;
mod small;
pub mod svd;
pub mod tensor;
pub mod whiten;

pub use calibration::{Calibration, CalibrationOptions};
pub use error::{Error, Result};
pub use factors::{Factors, Pivoted, Split};
pub use faer::dyn_stack;
pub use faer::{MatMut, MatRef, Par};
pub use space::Workspace;
pub use rank::{Rank, rank_saves_memory};
pub use report::{ErrorKind, Method, Report};
pub use simd::Scalar;
pub use sketch::{AnySketch, Sketch, SketchOperator};
pub use svd::{Device, Plan, TruncatedSvd};
pub use tensor::{DType, Element, MatView, Matrix, TensorRef};
pub use whiten::Whitening;

/// The threads of the current rayon pool.
pub(crate) fn current_par() -> Par {
    match rayon::current_num_threads() {
        1 => Par::Seq,
        threads => Par::rayon(threads),
    }
}

/// `f` from inside of the current rayon pool, if it is to run on threads: called from outside, every parallel step of it would
/// wake the pool anew and put the caller to sleep.
pub(crate) fn in_pool<R: Send>(par: Par, f: impl FnOnce() -> R + Send) -> R {
    match par {
        Par::Rayon(_) if rayon::current_thread_index().is_none() => rayon::scope(|_| f()),
        _ => f(),
    }
}

/// `work` on another thread, if there is one, while this one does `here`, which need not be able to move between threads.
pub(crate) fn beside<R: Send>(
    par: Par,
    work: impl FnOnce() -> R + Send,
    here: impl FnOnce() -> Result<()>,
) -> Result<R> {
    if matches!(par, Par::Seq) {
        here()?;
        return Ok(work());
    }
    let mut result = None;
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| result = Some(work()));
        here()
    })?;
    Ok(result.expect("the scope waits for it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_gives_both() {
        for par in [Par::Seq, Par::rayon(2)] {
            let mut here = 0;
            let there = beside(
                par,
                || 6 * 7,
                || {
                    here = 1;
                    Ok(())
                },
            );
            assert_eq!((there.unwrap(), here), (42, 1));
            let failed = beside(par, || 0, || Err(Error::Cancelled));
            assert!(matches!(failed, Err(Error::Cancelled)));
        }
    }
}
