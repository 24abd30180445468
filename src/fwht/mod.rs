//! Fast Walsh-Hadamard transforms, in place, unnormalized, natural order.
//!
//! `y = (H_b ⊗ H_{2^k}) x` for every length `n = b·2^k` of an [`Order`]; for `b = 1` that is
//! `y_i = Σ_j (−1)^{popcount(i & j)} x_j`. `n k` additions and `n b` multiply-adds by ±1.
//!
//! Storage may be f16, bf16, f32 or f64; halves are widened to f32 in the first pass over a vector and rounded once,
//! in the last.
//!
//! ```text
//!   one vector as a 2^u × 2^{k−u} matrix
//!     outer  panels of columns:  memory -> radix -> scratch (L2) -> radix -> ... -> radix -> memory
//!     inner  rows:               memory -> radix -> L1 -> ... -> leaf (radix and lanes in registers) -> memory
//! ```
//!
//! The passes of a length are a [`Plan`], plain data.

mod hadamard;
mod passes;
mod plan;
mod run;

use faer::{MatMut, Par};

use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::{DType, Element};
pub use plan::{Order, Plan, Radices};
use run::Batch;

/// `x <- H x`.
///
/// # Errors
/// [`Error::Order`] unless the length is that of an [`Order`]. An empty `x` stays as it is.
pub fn fwht<E: Element>(x: &mut [E], par: Par) -> Result<()> {
    let n = x.len();
    transform(Batch { ptr: x.as_mut_ptr(), n, n_stride: 1, count: 1, stride: n as isize }, par)
}

/// Each row `x_i <- H x_i` of an `m × n` matrix of any strides.
///
/// # Errors
/// [`Error::Order`] unless `n` is the length of an [`Order`]. An empty matrix stays as it is.
pub fn fwht_rows<E: Element>(x: MatMut<'_, E>, par: Par) -> Result<()> {
    transform(batch(x), par)
}

/// Each column of an `m × n` matrix of any strides: `X <- H X`.
///
/// # Errors
/// [`Error::Order`] unless `m` is the length of an [`Order`]. An empty matrix stays as it is.
pub fn fwht_columns<E: Element>(x: MatMut<'_, E>, par: Par) -> Result<()> {
    transform(batch(x.transpose_mut()), par)
}

/// The rows of `x`.
fn batch<E: Element>(x: MatMut<'_, E>) -> Batch<E> {
    let (n, n_stride, count, stride) = (x.ncols(), x.col_stride(), x.nrows(), x.row_stride());
    Batch { ptr: x.as_ptr_mut(), n, n_stride, count, stride }
}

fn transform<E: Element>(x: Batch<E>, par: Par) -> Result<()> {
    if x.n == 0 || x.count == 0 {
        return Ok(());
    }
    let order = Order::new(x.n).ok_or(Error::Order { n: x.n })?;
    // SAFETY: a `MatMut` or a slice, borrowed mutably by the caller: its elements are valid and distinct.
    unsafe {
        match E::DTYPE {
            DType::F64 => run::batch::<f64, E>(x, order, par),
            _ => run::batch::<f32, E>(x, order, par),
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

/// `x <- H x` for a contiguous vector whose length is that of an [`Order`], on this thread.
pub(crate) fn transform_row<T: Scalar>(x: &mut [T]) {
    let done = fwht(x, Par::Seq);
    debug_assert_eq!(done, Ok(()));
}

/// Transforms each of the `width` columns of the row-major `r × width` panel `x`, `r` the length of an [`Order`], on
/// this thread.
pub(crate) fn transform_panel<T: Scalar>(x: &mut [T], width: usize) {
    debug_assert_eq!(x.len() % width, 0);
    let r = x.len() / width;
    let done = fwht_columns(MatMut::from_row_major_slice_mut(x, r, width), Par::Seq);
    debug_assert_eq!(done, Ok(()));
}
