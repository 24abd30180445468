//! Seeded orthogonal rotations of vectors of any length, by random signs and fast transforms.
//!
//! ```text
//!   Order    y = H D x / √n           n = b·2^k, the true Hadamard order (QuaRot, QuIP#)
//!   Blocks   y = diag(H_l, ..) D x / √l    blocks of l elements, by default the largest power of two that divides n
//!   Kac      four rounds of signs, H/√W on the first or last W = 2^⌊log2 n⌋, and (a ± b)/√2 between halves (RaBitQ)
//!   Padded   y = H D [x; 0] / √W      W = 2^⌈log2 n⌉ outputs
//! ```
//!
//! A rotation spreads what sticks out: rotated features are alike, and few bits hold them. Inner products and norms
//! stay. `D` are random signs; they and the scale are in the passes of the transform. The inverse is the transpose, `D
//! Hᵀ / √n`.
//!
//! **Bits.** Sign `i` is bit `i % 8` of byte `i / 8`, and a set bit is −1. The bytes are those of the blocks 0, 1, 2,
//! ... of [`Philox`] with the stream [`stream::ROTATION`], words in little-endian order, as many as there are signs:
//! `n`, for `Kac` `4n`, round after round. The bits of a seed stay what they are in all later versions, and results
//! have the same bits on every instruction set and any number of threads: sums are always in one order, no product but
//! that by the scale is rounded, and a half is rounded once. NaNs stay NaNs, of unspecified bits.
//!
//! **Cost.** `Order` and `Blocks`: as [`fwht`]. `Kac`: four transforms and four sweeps in cache. One read
//! and one write of memory in each scheme. No allocation once a thread has its scratch, for vectors of up to 4 MiB.
//!
//! Source: N. Ailon, B. Chazelle, The fast Johnson-Lindenstrauss transform, 2009; S. Ashkboos et al., QuaRot, 2024;
//! J. Gao et al., RaBitQ, 2024.

use crate::error::{Error, Result};
use crate::fwht::{self, How, Order, ROUNDS, Rounds, SLACK, Turn};
use crate::parallel::Threads;
use crate::rng::{Philox, stream};
use crate::tensor::{Element, TensorMut};

/// How a rotation is made of transforms, and which lengths it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// One transform of the whole vector. It takes the lengths of an [`Order`].
    Order,
    /// A transform of each block of `len` elements, which is the length of an [`Order`], at least 2, and divides the
    /// length of the vector. Without `len` it is the largest power of two that does, and every even length works.
    Blocks {
        /// The length of a block.
        len: Option<usize>,
    },
    /// Four rounds that mix all elements. It takes even lengths, and 1.
    Kac,
    /// One transform of the vector and zeros behind it. It takes every length and returns `2^⌈log2 n⌉` elements.
    Padded,
}

/// The longest transform of a power of two.
const LONGEST: usize = 1 << Order::MAX_LOG2;

impl Scheme {
    /// The name: `"order"`, `"blocks"`, `"kac"` or `"padded"`.
    pub const fn name(self) -> &'static str {
        match self {
            Scheme::Order => "order",
            Scheme::Blocks { .. } => "blocks",
            Scheme::Kac => "kac",
            Scheme::Padded => "padded",
        }
    }

    /// Returns whether vectors of `dim` elements can be rotated.
    pub fn accepts(self, dim: usize) -> bool {
        self.order(dim).is_some()
    }

    /// The longest length of at most `dim` and the shortest of at least `dim` that work; both are `dim` if it does.
    pub fn nearest(self, dim: usize) -> (Option<usize>, Option<usize>) {
        if self.accepts(dim) {
            return (Some(dim), Some(dim));
        }
        let (below, above) = match self {
            Scheme::Order => {
                let (below, above) = Order::nearest(dim);
                return (below.map(Order::len), above.map(Order::len));
            }
            Scheme::Blocks { len: Some(0) } => return (None, None),
            Scheme::Blocks { len: Some(len) } => (Some(dim / len * len), (dim / len + 1).checked_mul(len)),
            Scheme::Blocks { len: None } => (dim.checked_sub(1), dim.max(1).checked_add(1)),
            Scheme::Kac => (Some(dim.saturating_sub(1).min(2 * LONGEST - 2)), dim.checked_add(1)),
            Scheme::Padded => (Some(dim.min(LONGEST)), dim.checked_add(1)),
        };
        (below.filter(|&n| self.accepts(n)), above.filter(|&n| self.accepts(n)))
    }

    /// Returns the order of each transform, or nothing if the scheme does not take vectors of `dim` elements.
    fn order(self, dim: usize) -> Option<Order> {
        if dim == 0 {
            return None;
        }
        match self {
            Scheme::Order => Order::new(dim),
            Scheme::Blocks { len } => {
                let len = len.unwrap_or(1 << dim.trailing_zeros().min(Order::MAX_LOG2));
                (len > 1 && dim.is_multiple_of(len)).then(|| Order::new(len))?
            }
            Scheme::Kac => (dim == 1 || dim.is_multiple_of(2)).then(|| Order::new(1 << dim.ilog2()))?,
            Scheme::Padded => Order::new(dim.checked_next_power_of_two()?),
        }
    }
}

/// A random orthogonal matrix `Q` that is applied in `O(n log n)`: `y = Q x`.
///
/// ```
/// use tensorslim::Threads;
/// use tensorslim::rotation::{Rotation, Scheme};
///
/// let rotation = Rotation::new(768, 42, Scheme::Order)?;
/// let mut x = vec![0.0f32; 2 * 768];
/// (x[0], x[768 + 5]) = (100.0, 3.0);
/// let mut y = x.clone();
/// rotation.apply_to(&x, &mut y, Threads::Pool)?; // both rows
/// assert!(y.iter().all(|y| y.abs() < 4.0));
/// rotation.apply_inverse(&mut y[..768])?;
/// assert!(y.iter().zip(&x).take(768).all(|(y, x)| (y - x).abs() < 1e-4));
/// # Ok::<(), tensorslim::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    dim: usize,
    scheme: Scheme,
    order: Order,
    /// The signs, zeros for those that the kernels read beside them, and slack.
    signs: Box<[u8]>,
}

impl Rotation {
    /// Makes the rotation of vectors of `dim` elements with the random signs of `seed`.
    ///
    /// # Errors
    /// [`Error::Rotation`], with the nearest lengths, unless the scheme [takes](Scheme::accepts) `dim`;
    /// [`Error::TooLarge`] if there is no memory for the signs.
    pub fn new(dim: usize, seed: u64, scheme: Scheme) -> Result<Self> {
        let mut rotation = Rotation::without_signs(dim, scheme)?;
        let (rng, count) = (Philox::new(seed, stream::ROTATION), rotation.sign_count());
        let bytes = &mut rotation.signs[..count.div_ceil(8)];
        for (chunk, index) in bytes.chunks_mut(16).zip(0..) {
            let words = rng.block(index).map(u32::to_le_bytes);
            chunk.copy_from_slice(&words.as_flattened()[..chunk.len()]);
        }
        if !count.is_multiple_of(8) {
            bytes[count / 8] &= (1 << (count % 8)) - 1;
        }
        Ok(rotation)
    }

    /// Makes the rotation with the signs that [`sign_bytes`](Self::sign_bytes) gave.
    ///
    /// # Errors
    /// [`Error::Rotation`] and [`Error::TooLarge`] as in [`new`](Self::new); [`Error::Shape`] unless there are as many
    /// bytes as `sign_bytes` gives; [`Error::Format`] if a bit behind the last sign is set.
    pub fn from_sign_bytes(dim: usize, scheme: Scheme, bytes: &[u8]) -> Result<Self> {
        let mut rotation = Rotation::without_signs(dim, scheme)?;
        let count = rotation.sign_count();
        if bytes.len() != count.div_ceil(8) {
            let want = format_args!("{} bytes for {count} signs", count.div_ceil(8));
            return Err(Error::shape("Rotation::from_sign_bytes", want, bytes.len()));
        }
        if !count.is_multiple_of(8) && bytes[count / 8] >> (count % 8) != 0 {
            return Err(Error::Format {
                what: "signs of a rotation",
                why: format!("bits behind sign {count} are set"),
            });
        }
        rotation.signs[..bytes.len()].copy_from_slice(bytes);
        Ok(rotation)
    }

    /// Makes the rotation whose signs are all 1.
    fn without_signs(dim: usize, scheme: Scheme) -> Result<Self> {
        let Some(order) = scheme.order(dim) else {
            let (below, above) = scheme.nearest(dim);
            return Err(Error::Rotation { scheme: scheme.name(), dim, below, above });
        };
        let mut rotation = Rotation { dim, scheme, order, signs: Box::default() };
        let bytes = rotation.turn(false).sign_bits().div_ceil(8) + SLACK;
        let mut signs = Vec::new();
        signs.try_reserve_exact(bytes).map_err(|_| Error::TooLarge { shape: vec![dim] })?;
        signs.resize(bytes, 0);
        rotation.signs = signs.into();
        Ok(rotation)
    }

    /// The number of signs.
    fn sign_count(&self) -> usize {
        if self.scheme == Scheme::Kac { ROUNDS * self.dim } else { self.dim }
    }

    /// The signs, packed: bit `i % 8` of byte `i / 8` is set if sign `i` is −1. There are `dim` signs, for `Kac` four
    /// times as many. Bits behind the last sign are clear.
    pub fn sign_bytes(&self) -> &[u8] {
        &self.signs[..self.sign_count().div_ceil(8)]
    }

    /// The length of a vector, `n`.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The length of a rotated vector: `n`, but for `Padded` `2^⌈log2 n⌉`.
    pub fn output_dim(&self) -> usize {
        if self.scheme == Scheme::Padded { self.order.len() } else { self.dim }
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the rotation or its inverse, as the kernels take it.
    fn turn(&self, inverse: bool) -> Turn<'_> {
        let how = match self.scheme {
            Scheme::Order | Scheme::Blocks { .. } => How::Parts,
            Scheme::Kac => How::Rounds(Rounds::Kac),
            // Without zeros it is one transform, which works in place.
            Scheme::Padded if self.order.len() == self.dim => How::Parts,
            Scheme::Padded => How::Rounds(Rounds::Padded),
        };
        Turn { n: self.dim, order: self.order, inverse, how, signs: &self.signs }
    }

    /// Rotates one vector in place, on the calling thread: `x <- Q x`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has [`dim`](Self::dim) elements and the rotated vector as many.
    pub fn apply<E: Element>(&self, x: &mut [E]) -> Result<()> {
        self.one(x, false)
    }

    /// Rotates one vector back in place, on the calling thread: `x <- Qᵀ x`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has [`dim`](Self::dim) elements and the rotated vector as many.
    pub fn apply_inverse<E: Element>(&self, x: &mut [E]) -> Result<()> {
        self.one(x, true)
    }

    /// Rotates each row of an `m × n` matrix of any strides in place: `x_i <- Q x_i`. An empty matrix stays as it is.
    ///
    /// # Errors
    /// [`Error::Shape`] unless a row has [`dim`](Self::dim) elements and a rotated row as many.
    pub fn apply_rows<'a, E: Element>(
        &self,
        x: impl Into<TensorMut<'a, E>>,
        threads: impl Into<Threads>,
    ) -> Result<()> {
        fwht::rotate_rows(x.into(), self.turn(false), threads.into())
    }

    /// Rotates each row of an `m × n` matrix of any strides back in place: `x_i <- Qᵀ x_i`. An empty matrix stays as it
    /// is.
    ///
    /// # Errors
    /// [`Error::Shape`] unless a row has [`dim`](Self::dim) elements and a rotated row as many.
    pub fn apply_rows_inverse<'a, E: Element>(
        &self,
        x: impl Into<TensorMut<'a, E>>,
        threads: impl Into<Threads>,
    ) -> Result<()> {
        fwht::rotate_rows(x.into(), self.turn(true), threads.into())
    }

    /// Rotates adjacent vectors of [`dim`](Self::dim) elements in `x`, one or many, to adjacent vectors of
    /// [`output_dim`](Self::output_dim) elements in `y`: `y_i <- Q x_i`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both hold whole vectors, and equally many.
    pub fn apply_to<E: Element>(&self, x: &[E], y: &mut [E], threads: impl Into<Threads>) -> Result<()> {
        fwht::rotate_into(x, y, self.turn(false), threads.into())
    }

    /// Rotates adjacent vectors of [`output_dim`](Self::output_dim) elements in `y`, one or many, back to adjacent
    /// vectors of [`dim`](Self::dim) elements in `x`: `x_i <- Qᵀ y_i`. For `Padded` that undoes the rotation, but not
    /// the other way round.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both hold whole vectors, and equally many.
    pub fn apply_inverse_to<E: Element>(&self, y: &[E], x: &mut [E], threads: impl Into<Threads>) -> Result<()> {
        fwht::rotate_into(y, x, self.turn(true), threads.into())
    }

    /// Rotates one vector in place. An empty one is an error here.
    fn one<E: Element>(&self, x: &mut [E], inverse: bool) -> Result<()> {
        if x.len() != self.dim {
            return Err(Error::shape("Rotation::apply", format_args!("{} elements", self.dim), x.len()));
        }
        let n = x.len();
        fwht::rotate_rows(TensorMut::new(x, 1, n)?, self.turn(inverse), Threads::One)
    }
}
