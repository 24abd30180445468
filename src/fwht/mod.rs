//! Fast Walsh-Hadamard transforms, in place, unnormalized or orthonormal, in natural order.
//!
//! `y = (H_b ⊗ H_{2^k}) x` for every length `n = b·2^k` of an [`Order`]; for `b = 1` that is
//! `y_i = Σ_j (−1)^{popcount(i & j)} x_j`.
//!
//! ```text
//!   rows      passes over one vector: 8 rows × 2 registers, then the same within each eighth, and so on,
//!             until a block fits L1: there radix 16, then leaves (radix 16 and the stages between lanes, in registers)
//!   columns   panels of 1 KiB, in place, radix 8, depth first; each pass prefetches the next row of its streams;
//!             halves go through scratch:  memory -> radix 8 -> scratch -> ... -> radix 8 -> memory
//! ```
//!
//! **Cost.** `n k` additions, and `n b` multiply-adds by ±1 or, for most of the large `b`, `n b / 4` additions. At least
//! one read and one write of the vector; a pass over blocks beyond L2 sweeps memory, a pass below is depth first, so
//! that 2^24 points sweep memory twice. f16 and bf16 are widened to f32 in the first pass over a vector and rounded
//! once, in the last.
//!
//! **Why this way.** Where adders and multiply-adders are different units, half of the subtractions run as `a − 1·b` on
//! the latter. 16 rows whose distance is a multiple of 4 KiB share one L1 set, which has fewer ways; 8 rows × 2
//! registers do the same stages without that. Columns are a power of two apart and share few sets of every cache, so
//! a panel starts at a cache line and is transformed in place.
//!
//! The passes of a length are a [`Plan`], plain data. The algorithm is that of B. J. Fino and V. R. Algazi, Unified
//! matrix treatment of the fast Walsh-Hadamard transform, 1976. Figures and lost experiments: `benches/NOTES.md`.

mod hadamard;
mod passes;
mod plan;
mod rows;
mod run;
mod sums;

use crate::error::{Error, Result};
use crate::parallel::Threads;
#[cfg(feature = "linalg")]
use crate::simd::{Lanes, Scalar};
use crate::tensor::{DType, Element, TensorMut};
pub use plan::Order;
#[doc(hidden)]
pub use plan::{Plan, Radices, Radix};
use run::Batch;

/// Transforms one vector in place: `x <- H x`, unnormalized. An empty `x` stays as it is.
///
/// # Errors
/// [`Error::Order`] unless the length of `x` is that of an [`Order`].
pub fn fwht<E: Element>(x: &mut [E], threads: impl Into<Threads>) -> Result<()> {
    let n = x.len();
    transform(TensorMut::new(x, 1, n)?, threads.into())
}

/// Transforms each row of an `m × n` matrix of any strides in place: `x_i <- H x_i`, unnormalized. An empty matrix
/// stays as it is.
///
/// # Errors
/// [`Error::Order`] unless `n` is the length of an [`Order`].
pub fn fwht_rows<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    transform(x.into(), threads.into())
}

/// Transforms each column of an `m × n` matrix of any strides in place: `X <- H X`, unnormalized. An empty matrix stays
/// as it is.
///
/// # Errors
/// [`Error::Order`] unless `m` is the length of an [`Order`].
pub fn fwht_columns<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    transform(x.into().transpose(), threads.into())
}

/// Multiplies each row of an `m × n` matrix by the orthogonal `H / √n`, in place: `x_i <- H x_i / √n`. Strides may be
/// any; an empty matrix stays as it is.
///
/// # Errors
/// [`Error::Order`] unless `n` is the length of an [`Order`].
pub fn orthonormal_rows<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    orthonormal(x.into(), threads.into())
}

/// Multiplies each column of an `m × n` matrix by the orthogonal `H / √m`, in place: `X <- H X / √m`. Strides may be
/// any; an empty matrix stays as it is.
///
/// # Errors
/// [`Error::Order`] unless `m` is the length of an [`Order`].
pub fn orthonormal_columns<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    orthonormal(x.into().transpose(), threads.into())
}

/// Transforms the rows of `x`, unnormalized.
fn transform<E: Element>(x: TensorMut<'_, E>, threads: Threads) -> Result<()> {
    // SAFETY: the view borrows its elements mutably: they are valid, distinct, and of the type that `E` names.
    unsafe { transform_vectors(Batch::rows(x), E::DTYPE, threads) }
}

/// Transforms every vector of a batch of elements of type `dtype`. It is not generic, so that the kernels are compiled
/// in this crate and not in each crate that calls them.
///
/// # Safety
/// The elements of the batch are of the type `dtype`, valid for reads and writes, and distinct.
unsafe fn transform_vectors(x: Batch<()>, dtype: DType, threads: Threads) -> Result<()> {
    if x.n == 0 || x.count == 0 {
        return Ok(());
    }
    let order = Order::new(x.n).ok_or(Error::Order { n: x.n })?;
    // SAFETY: guaranteed by this function's contract: the elements are of the type that `dtype` names, which is the
    // type that each arm casts to, valid and distinct; `order` is the order of their length, as `Order::new` found.
    unsafe {
        match dtype {
            DType::F16 => run::batch::<f32, half::f16>(x.cast(), order, threads),
            DType::BF16 => run::batch::<f32, half::bf16>(x.cast(), order, threads),
            DType::F32 => run::batch::<f32, f32>(x.cast(), order, threads),
            DType::F64 => run::batch::<f64, f64>(x.cast(), order, threads),
        }
    }
    Ok(())
}

/// Transforms the rows of `x` and divides them by the square root of their length.
fn orthonormal<E: Element>(x: TensorMut<'_, E>, threads: Threads) -> Result<()> {
    // SAFETY: the view borrows its elements mutably: they are valid, distinct, and of the type that `E` names.
    unsafe { orthonormal_vectors(Batch::rows(x), E::DTYPE, threads) }
}

/// Transforms every vector of a batch of elements of type `dtype` and divides it by the square root of its length.
///
/// # Safety
/// The elements of the batch are of the type `dtype`, valid for reads and writes, and distinct.
unsafe fn orthonormal_vectors(x: Batch<()>, dtype: DType, threads: Threads) -> Result<()> {
    if x.n == 0 || x.count == 0 {
        return Ok(());
    }
    let order = Order::new(x.n).ok_or(Error::Order { n: x.n })?;
    // SAFETY: guaranteed by this function's contract: the elements are of the type that `dtype` names, which is the
    // type that each arm casts to, valid and distinct; `order` is the order of their length, as `Order::new` found.
    unsafe {
        match dtype {
            DType::F16 => run::scaled_halves::<half::f16>(x.cast(), order, threads),
            DType::BF16 => run::scaled_halves::<half::bf16>(x.cast(), order, threads),
            DType::F32 => run::scaled::<f32>(x.cast(), order, threads),
            DType::F64 => run::scaled::<f64>(x.cast(), order, threads),
        }
    }
    Ok(())
}

/// Returns the passes that vectors of `n` adjacent elements of type `E` go through on this machine.
///
/// # Errors
/// [`Error::Order`] unless `n` is the length of an [`Order`].
#[doc(hidden)]
pub fn plan<E: Element>(n: usize) -> Result<Plan> {
    let order = Order::new(n).ok_or(Error::Order { n })?;
    Ok(match E::DTYPE {
        DType::F64 => run::plan::<f64>(order),
        _ => run::plan::<f32>(order),
    })
}

/// Transforms each of the adjacent vectors of `n` elements in `x` on this thread, `n` a power of two, and meanwhile
/// prefetches the `size_of_val(x)` bytes that begin at `ahead`, which need not be a valid address.
#[cfg(feature = "linalg")]
pub(crate) fn transform_rows<S: Lanes, T: Scalar>(s: S, x: &mut [T], n: usize, ahead: *const u8) {
    if let Some(order) = Order::new(n) {
        run::rows_ahead(s, x, order, ahead);
    }
}

/// Transforms each of the `width` columns of the row-major `r × width` panel `x` on this thread; `r` is the length of
/// an [`Order`].
#[cfg(feature = "linalg")]
pub(crate) fn transform_panel<T: Scalar>(x: &mut [T], width: usize) {
    let r = x.len() / width;
    let done = TensorMut::new(x, r, width).and_then(|x| fwht_columns(x, Threads::One));
    debug_assert_eq!(done, Ok(()));
}
