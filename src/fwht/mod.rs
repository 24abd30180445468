//! Fast Walsh-Hadamard transforms, in place, unnormalized, natural order.
//!
//! `y = (H_b ⊗ H_{2^k}) x` for every length `n = b·2^k` of an [`Order`]; for `b = 1` that is
//! `y_i = Σ_j (−1)^{popcount(i & j)} x_j`. `n k` additions and `n b` multiply-adds by ±1.
//!
//! Storage may be f16, bf16, f32 or f64; halves are widened to f32 in the first pass over a vector and rounded once,
//! in the last.
//!
//! ```text
//!   rows      8 rows × 2 registers over the whole, in 8 streams
//!               each eighth: 8 × 2
//!                 ... until a block fits L1: radix 16, leaf (radix 16 and the stages between lanes in registers)
//!   columns   panels of 1 KiB in place, radix 8, depth first, the next row of each stream asked for ahead;
//!             halves through scratch: memory -> radix 8 -> scratch -> ... -> radix 8 -> memory
//! ```
//!
//! The passes of a length are a [`Plan`], plain data.
//!
//! # Cost
//!
//! The fewest operations are `n k` additions; the fewest bytes one read and one write of the vector. A core of Zen 5
//! adds 2 registers in a cycle and, since multiply-adds have units of their own, subtracts 2 more as `a − 1·b`; it
//! stores one. Measured at 3.75 GHz, for a register: a pass of 16 in L1 or L2 1.6 cycles, in L3 2.3 (a scaling in place
//! takes 2.2), a leaf of 16 3.6. 2^20 points are 3 passes and a leaf, 2.5 ns a register, 118 G additions/s of f32. Beyond
//! L2 a pass is a sweep; below it blocks are depth first, so 2^24 points sweep memory twice and L3 and L2 about once per
//! further factor 8.
//!
//! Columns of a power of two of rows whose distance is one too share few sets of every cache: 4096 × 4096 of f32 leave
//! nothing of a panel in L3, whatever its width, and each second pass is a sweep over memory. In one run, in times of a
//! scaling of the matrix in place: first pass 1.0, second 0.9, third 0.3, fourth 0.25. The other way, one sweep through
//! scratch in L3 with streaming stores, costs 1.3 for the strided reads and 0.7 for the stores before anything is added.
//! What is left is that registers lie within cache lines: panels begin at lines, wherever the matrix does, and so come to 1.8
//! to 1.9, where they took 2.3 to 2.7 on the addresses that an allocator gives.
//!
//! # Tried and lost
//!
//! - 16 rows at a distance of a multiple of 4 KiB: 16 lines share the 12 ways of one L1 set, such a pass takes 3.7 times
//!   as long. 8 rows × 2 registers took a pass away from most lengths from 2^16 on: 1.07 to 1.25 times as fast.
//! - Long vectors as `2^u × 2^{k−u}` with panels of columns through scratch in L1 or L2 (the six-step way): fewer
//!   sweeps, 0.4 to 0.95× at 2^18 to 2^24. Copying strided panels of 2^20 points to scratch and back alone takes 3.5 times
//!   as long as a scaling.
//! - Huge pages for columns: no difference.
//! - A leaf with its subtractions in the adders, 1.12 times as long; with the widest lane stage as two broadcasting
//!   loads, 1.17.
//! - Software prefetch 6 or 16 registers ahead in each stream: 0.85 to 0.98×. Prefetch of the next block while the
//!   leaves of this one are computed is kept: 4096 × 4096 rows 1.6× faster. What a caller works on next is asked for in
//!   the first pass and the leaves, half of it each: all in the leaves, requests waited for each other (an SRHT of 4096 × 4096
//!   in f32 1.25 times as long).
//! - Prefetch of the next block of up to 512 KiB in the last radix, to have it in L2: 0.87 to 0.95× from 2^18 on.
//! - Columns through scratch in L2, panels of 64, 128, 256 bytes: 0.4, 0.55, 0.75× of 1 KiB in place; with streaming
//!   stores and panels of 1 KiB 0.9 to 1.05×. In place 512 bytes and 2 KiB: 0.9×; without prefetch 0.8×.
//! - One fully inlined function per transform: no gain, minutes of compile time.

mod hadamard;
mod passes;
mod plan;
mod run;

use crate::error::{Error, Result};
use crate::parallel::Threads;
#[cfg(feature = "linalg")]
use crate::simd::{Lanes, Scalar};
use crate::tensor::{DType, Element, TensorMut};
pub use plan::{Order, Plan, Radices, Radix};
use run::Batch;

/// `x <- H x`.
///
/// # Errors
/// [`Error::Order`] unless the length is that of an [`Order`]. An empty `x` stays as it is.
pub fn fwht<E: Element>(x: &mut [E], threads: impl Into<Threads>) -> Result<()> {
    let n = x.len();
    transform(TensorMut::new(x, 1, n)?, threads.into())
}

/// Each row `x_i <- H x_i` of an `m × n` matrix of any strides.
///
/// # Errors
/// [`Error::Order`] unless `n` is the length of an [`Order`]. An empty matrix stays as it is.
pub fn fwht_rows<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    transform(x.into(), threads.into())
}

/// Each column of an `m × n` matrix of any strides: `X <- H X`.
///
/// # Errors
/// [`Error::Order`] unless `m` is the length of an [`Order`]. An empty matrix stays as it is.
pub fn fwht_columns<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    transform(x.into().transpose(), threads.into())
}

/// Each row `x_i <- H x_i / √n`, an orthogonal matrix. As [`fwht_rows`] otherwise.
///
/// # Errors
/// As [`fwht_rows`].
pub fn orthonormal_rows<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    orthonormal(x.into(), threads.into())
}

/// Each column `x_j <- H x_j / √m`, an orthogonal matrix. As [`fwht_columns`] otherwise.
///
/// # Errors
/// As [`fwht_columns`].
pub fn orthonormal_columns<'a, E: Element>(x: impl Into<TensorMut<'a, E>>, threads: impl Into<Threads>) -> Result<()> {
    orthonormal(x.into().transpose(), threads.into())
}

/// The rows of `x`.
fn transform<E: Element>(x: TensorMut<'_, E>, threads: Threads) -> Result<()> {
    // SAFETY: the view borrows its elements mutably: they are valid, distinct, and of the type that `E` names.
    unsafe { transform_vectors(Batch::rows(x), E::DTYPE, threads) }
}

/// Not generic, so that the kernels are compiled in this crate and not in each that calls them.
///
/// # Safety
/// The elements of the batch are of the type `dtype`, valid for reads and writes, and distinct.
unsafe fn transform_vectors(x: Batch<()>, dtype: DType, threads: Threads) -> Result<()> {
    if x.n == 0 || x.count == 0 {
        return Ok(());
    }
    let order = Order::new(x.n).ok_or(Error::Order { n: x.n })?;
    // SAFETY: this function's contract, with the element type that `dtype` names.
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

/// The rows of `x`.
fn orthonormal<E: Element>(x: TensorMut<'_, E>, threads: Threads) -> Result<()> {
    // SAFETY: as in `transform`.
    unsafe { orthonormal_vectors(Batch::rows(x), E::DTYPE, threads) }
}

/// As [`transform_vectors`], scaled.
///
/// # Safety
/// As there.
unsafe fn orthonormal_vectors(x: Batch<()>, dtype: DType, threads: Threads) -> Result<()> {
    if x.n == 0 || x.count == 0 {
        return Ok(());
    }
    let order = Order::new(x.n).ok_or(Error::Order { n: x.n })?;
    // SAFETY: this function's contract, with the element type that `dtype` names.
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

/// The passes that vectors of `n` adjacent elements of type `E` go through on this machine.
///
/// # Errors
/// [`Error::Order`] unless `n` is the length of an [`Order`].
pub fn plan<E: Element>(n: usize) -> Result<Plan> {
    let order = Order::new(n).ok_or(Error::Order { n })?;
    Ok(match E::DTYPE {
        DType::F64 => run::plan::<f64>(order),
        _ => run::plan::<f32>(order),
    })
}

/// Transforms the rows of `x`, of the power of two `n` each, on this thread, and meanwhile asks for as many bytes from
/// `ahead` on, which need not be valid.
#[cfg(feature = "linalg")]
pub(crate) fn transform_rows<S: Lanes, T: Scalar>(s: S, x: &mut [T], n: usize, ahead: *const u8) {
    if let Some(order) = Order::new(n) {
        run::rows_ahead(s, x, order, ahead);
    }
}

/// Transforms each of the `width` columns of the row-major `r × width` panel `x`, `r` the length of an [`Order`], on
/// this thread.
#[cfg(feature = "linalg")]
pub(crate) fn transform_panel<T: Scalar>(x: &mut [T], width: usize) {
    let r = x.len() / width;
    let done = TensorMut::new(x, r, width).and_then(|x| fwht_columns(x, Threads::One));
    debug_assert_eq!(done, Ok(()));
}
