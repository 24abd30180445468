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
//! An orthonormal or a signed transform is the same passes, with scale and signs at their edges (`edges`).
//!
//! **Why this way.** Where adders and multiply-adders are different units, half of the subtractions run as `a − 1·b` on
//! the latter. 16 rows whose distance is a multiple of 4 KiB share one L1 set, which has fewer ways; 8 rows × 2
//! registers do the same stages without that. Columns are a power of two apart and share few sets of every cache, so
//! a panel starts at a cache line and is transformed in place.
//!
//! The passes of a length are a [`Plan`], plain data. The algorithm is that of B. J. Fino and V. R. Algazi, Unified
//! matrix treatment of the fast Walsh-Hadamard transform, 1976. Figures and lost experiments: `benches/NOTES.md`.

mod edges;
mod hadamard;
mod passes;
mod plan;
mod registers;
mod rounds;
mod rows;
mod run;
mod sums;

use crate::error::{Error, Result};
use crate::parallel::Threads;
#[cfg(feature = "linalg")]
use crate::simd::{Lanes, Scalar};
use crate::tensor::{DType, Element, TensorMut};
pub(crate) use edges::{Edges, SLACK, Signs};
pub use plan::Order;
#[doc(hidden)]
pub use plan::{Plan, Radices, Radix};
use rounds::{Job, Vectors};
pub(crate) use rounds::{ROUNDS, Rounds};
use rows::Raw;
use run::{Batch, Form};

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

/// Multiplies each row of an `m × n` matrix by `scale · H`, in place: `x_i <- scale · H x_i`, in one pass and, for f16
/// and bf16, with one rounding. Strides may be any; an empty matrix stays as it is.
///
/// # Errors
/// [`Error::Order`] unless `n` is the length of an [`Order`]; [`Error::Option`] for a scale that is not finite.
pub fn scaled_rows<'a, E: Element>(
    x: impl Into<TensorMut<'a, E>>,
    scale: f64,
    threads: impl Into<Threads>,
) -> Result<()> {
    if !scale.is_finite() {
        return Err(Error::option("scale", scale, "a finite number"));
    }
    // SAFETY: the view borrows its elements mutably: they are valid, distinct, and of the type that `E` names.
    unsafe { transform_vectors(Batch::rows(x.into()), Some(scale), threads.into()) }
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
    unsafe { transform_vectors(Batch::rows(x), None, threads) }
}

/// Transforms the rows of `x` and divides them by the square root of their length.
fn orthonormal<E: Element>(x: TensorMut<'_, E>, threads: Threads) -> Result<()> {
    // SAFETY: the view borrows its elements mutably: they are valid, distinct, and of the type that `E` names.
    unsafe {
        let x = Batch::rows(x);
        transform_vectors(x, Some(1.0 / (x.n as f64).sqrt()), threads)
    }
}

/// Transforms every vector of a batch and multiplies it by the scale, if there is one. It is not generic, so that the
/// kernels are compiled in this crate and not in each crate that calls them.
///
/// # Safety
/// The elements of the batch are valid for reads and writes, and distinct.
unsafe fn transform_vectors(x: Batch, scale: Option<f64>, threads: Threads) -> Result<()> {
    if x.n == 0 || x.count == 0 {
        return Ok(());
    }
    let order = Order::new(x.n).ok_or(Error::Order { n: x.n })?;
    let edges = scale.map(|scale| Edges { scale, input: None, output: None });
    // SAFETY: guaranteed by this function's contract: the elements are valid and distinct, and the transform is in
    // place; `order` is the order of their length, as `Order::new` found.
    unsafe { run_batch(x, Form { order, transposed: false, edges, same_bits: false }, threads) };
    Ok(())
}

/// Transforms every vector of a batch.
///
/// # Safety
/// As for [`run::batch`].
unsafe fn run_batch(x: Batch, form: Form<'_>, threads: Threads) {
    // SAFETY: guaranteed by this function's contract.
    unsafe {
        match x.at.dtype {
            DType::F64 => run::batch::<f64>(x, form, threads),
            _ => run::batch::<f32>(x, form, threads),
        }
    }
}

/// A rotation of vectors of `n` elements, as the kernels take it. Results have the same bits on every instruction set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'a> {
    /// The length of the vectors that the rotation takes; its inverse returns them.
    pub(crate) n: usize,
    /// The order of each transform.
    pub(crate) order: Order,
    /// Whether the transpose is meant.
    pub(crate) inverse: bool,
    /// What is done with the transforms.
    pub(crate) how: How,
    /// The signs, and [`SLACK`] bytes behind those that [`Turn::sign_bits`] counts.
    pub(crate) signs: &'a [u8],
}

/// What a rotation does with its transforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// One transform of each of the adjacent parts of `order.len()` elements.
    Parts,
    /// Several rounds, or zeros behind the vector.
    Rounds(Rounds),
}

impl Turn<'_> {
    /// Returns the number of bits that the kernels read.
    pub(crate) fn sign_bits(&self) -> usize {
        match self.how {
            How::Parts => self.n,
            How::Rounds(rounds) => rounds::sign_bits(rounds, self.n, self.order),
        }
    }

    /// Returns the lengths of the vectors that are read and written.
    fn lengths(&self) -> (usize, usize) {
        let long = if self.how == How::Rounds(Rounds::Padded) { self.order.len() } else { self.n };
        if self.inverse { (long, self.n) } else { (self.n, long) }
    }

    /// Returns the form of the transform of parts.
    fn form(&self) -> Form<'_> {
        let (scale, signs) = (1.0 / (self.order.len() as f64).sqrt(), Some(Signs::new(self.signs, 0)));
        let (input, output) = if self.inverse { (None, signs) } else { (signs, None) };
        let edges = Some(Edges { scale, input, output });
        Form { order: self.order, transposed: self.inverse, edges, same_bits: true }
    }

    /// Returns the job of the rounds.
    fn job(&self, rounds: Rounds) -> Job<'_> {
        Job { rounds, inverse: self.inverse, n: self.n, order: self.order, signs: self.signs }
    }

    /// Panics if there are not enough signs, or transforms do not fit the vectors. A rotation is made so that this does
    /// not occur; the kernels rely on it.
    fn check(&self) {
        let bits = self.sign_bits().div_ceil(8) + SLACK;
        assert!(self.signs.len() >= bits, "{} bytes of signs of {bits}", self.signs.len());
        let fits = match self.how {
            How::Parts => self.n.is_multiple_of(self.order.len()),
            How::Rounds(Rounds::Kac) => {
                self.order.len() == self.n || self.n.is_multiple_of(2) && self.order.len() < self.n
            }
            How::Rounds(Rounds::Padded) => self.order.len() >= self.n,
        };
        let power = self.how == How::Parts || self.order.base() == 1;
        assert!(fits && power && self.n > 0, "{self:?}");
    }
}

/// Rotates each row of a matrix of any strides in place. An empty matrix stays as it is.
///
/// # Errors
/// [`Error::Shape`] unless the rows have the length of the rotation, and those that it makes, too.
pub(crate) fn rotate_rows<E: Element>(x: TensorMut<'_, E>, turn: Turn<'_>, threads: Threads) -> Result<()> {
    turn.check();
    let (x, lengths) = (Batch::rows(x), turn.lengths());
    if lengths.0 != lengths.1 {
        return Err(Error::shape(
            "a rotation in place",
            "equal lengths of input and output",
            format_args!("{lengths:?}"),
        ));
    }
    if x.count == 0 || x.n == 0 {
        return Ok(());
    }
    if x.n != turn.n {
        return Err(Error::shape("a rotation", format_args!("rows of {} elements", turn.n), x.n));
    }
    // SAFETY: the view borrows its elements mutably: they are valid, distinct, and of the type that `E` names. The
    // rotation is in place, of rows of its length, and `check` has seen that there are signs and that transforms fit.
    unsafe { rotate(x, turn, x.stride, x.stride, threads) };
    Ok(())
}

/// Rotates adjacent vectors from `from` to `to`.
///
/// # Errors
/// [`Error::Shape`] unless both hold whole vectors, and equally many.
pub(crate) fn rotate_into<E: Element>(from: &[E], to: &mut [E], turn: Turn<'_>, threads: Threads) -> Result<()> {
    turn.check();
    let (n, out) = turn.lengths();
    let count = from.len() / n;
    if from.len() != count * n || Some(to.len()) != count.checked_mul(out) {
        return Err(Error::shape(
            "a rotation from one place to another",
            format_args!("whole vectors of {n} elements and as many of {out}"),
            format_args!("{} and {} elements", from.len(), to.len()),
        ));
    }
    if count == 0 {
        return Ok(());
    }
    let (from, at) = (Raw::new(from.as_ptr().cast_mut()), Raw::new(to.as_mut_ptr()));
    let x = Batch { at, from, n: turn.n, n_stride: 1, count, stride: turn.n as isize };
    // SAFETY: both slices hold `count` vectors of the lengths of the rotation, of the type that `E` names. They are
    // disjoint, because one is borrowed mutably; `from` is only read. `check` has seen that there are signs and that
    // transforms fit.
    unsafe { rotate(x, turn, n as isize, out as isize, threads) };
    Ok(())
}

/// Rotates every vector of a batch; the strides of the vectors are those given. It is not generic, so that the kernels
/// are compiled in this crate.
///
/// # Safety
/// The vectors that are read exist and are readable, those that are written exist, are writable and distinct, all of
/// the lengths of `turn`. What is read is what is written, or disjoint from it; then elements of a vector are adjacent.
/// [`Turn::check`] holds.
unsafe fn rotate(x: Batch, turn: Turn<'_>, from_stride: isize, to_stride: isize, threads: Threads) {
    let How::Rounds(rounds) = turn.how else {
        // SAFETY: guaranteed by this function's contract: lengths of input and output are equal.
        return unsafe { run_batch(x, turn.form(), threads) };
    };
    let Batch { at: to, from, n_stride, count, .. } = x;
    let (x, job) = (Vectors { from, from_stride, to, to_stride, n_stride, count }, turn.job(rounds));
    // SAFETY: guaranteed by this function's contract. Where lengths change, what is read is disjoint from what is
    // written.
    unsafe {
        match to.dtype {
            DType::F64 => rounds::batch::<f64>(x, job, threads),
            _ => rounds::batch::<f32>(x, job, threads),
        }
    }
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
