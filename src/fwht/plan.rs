//! Which lengths can be transformed, and in which passes, as plain data.

use std::fmt;

use super::hadamard::{self, BASES};
use crate::simd::Isa;
use crate::tensor::Matrix;

/// A length that can be transformed: `n = b·2^k`, `k <= 27`, where `b` is 1, or 4 times an odd number from 3 to 63, or
/// one of 284, 428, 684 and 924.
///
/// So every multiple of 4 up to 256 is such a length, and so are its products with powers of two. `x` seen as a `b ×
/// 2^k` row-major matrix becomes `(H_b ⊗ H_{2^k}) x`. `b` is unique, because it is 1 or 4 times an odd number: 40·2^k
/// is 20·2^{k+1}.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Order {
    base: usize,
    log2: u32,
}

impl Order {
    /// The largest `k` of a length.
    pub const MAX_LOG2: u32 = 27;

    /// The order of length `n`, or `None` if no matrix of that order is known here. [`nearest`](Self::nearest) then
    /// finds those that are.
    pub fn new(n: usize) -> Option<Order> {
        let twos = n.checked_ilog2().map(|_| n.trailing_zeros())?;
        let (base, log2) = match n >> twos {
            1 => (1, twos),
            odd => (odd.checked_mul(4)?, twos.checked_sub(2)?),
        };
        let known = log2 <= Order::MAX_LOG2 && BASES.binary_search(&base).is_ok();
        known.then_some(Order { base, log2 })
    }

    /// The longest length of at most `n` and the shortest of at least `n`; both are `n` if `n` is a length that can be
    /// transformed.
    ///
    /// ```
    /// use tensorslim::fwht::Order;
    ///
    /// let lengths = |n: usize| (Order::nearest(n).0.map(Order::len), Order::nearest(n).1.map(Order::len));
    /// assert_eq!(lengths(11008), (Some(11008), Some(11008)));
    /// assert_eq!(lengths(11007), (Some(10944), Some(11008)));
    /// assert_eq!(lengths(0), (None, Some(1)));
    /// ```
    pub fn nearest(n: usize) -> (Option<Order>, Option<Order>) {
        let below = |base: usize| {
            let log2 = (n / base).checked_ilog2()?.min(Order::MAX_LOG2);
            Some(Order { base, log2 })
        };
        let above = |base: usize| {
            let log2 = n.div_ceil(base).checked_next_power_of_two()?.ilog2();
            (log2 <= Order::MAX_LOG2).then_some(())?;
            base.checked_mul(1 << log2).map(|_| Order { base, log2 })
        };
        let below = BASES.into_iter().filter_map(below).max_by_key(|order| order.len());
        let above = BASES.into_iter().filter_map(above).min_by_key(|order| order.len());
        (below, above)
    }

    /// The order `b` of the base matrix.
    pub fn base(self) -> usize {
        self.base
    }

    /// The exponent `k` of the power of two.
    pub fn log2(self) -> u32 {
        self.log2
    }

    /// The length `n = b·2^k`.
    pub fn len(self) -> usize {
        self.base << self.log2
    }

    /// The `b × b` matrix `H_b` with entries ±1; `[1]` for `b = 1`.
    pub fn base_matrix(self) -> Matrix<f64> {
        let b = self.base;
        let h = hadamard::signs(b);
        Matrix::from_fn(b, b, |i, j| f64::from(h[i * b + j]))
    }

    /// Returns false: the least length is 1.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// Tuning constants, chosen by the bench `fwht` for 48 KiB of L1 and 1 MiB of L2 per core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Params {
    /// Distance between rows, in bytes, from which 16 rows share too few sets of L1.
    pub(crate) alias_bytes: usize,
    /// Bytes of the largest block that stays in L1 from one pass to the next.
    pub(crate) l1_bytes: usize,
    /// Bytes of a panel above which a pass prefetches the next row, and of a vector up to which it prefetches the next
    /// vector.
    pub(crate) ahead_bytes: usize,
    /// Bytes from which a vector or a batch does not stay in the caches.
    pub(crate) long_bytes: usize,
    /// Distance, in bytes, at which the passes of a vector that does not stay in the caches prefetch.
    pub(crate) long_ahead_bytes: usize,
    /// Least distance between rows, in bytes, for a pass that prefetches at `long_ahead_bytes`.
    pub(crate) far_bytes: usize,
    /// Bytes of one row of a panel of columns in the arithmetic type: whole cache lines.
    pub(crate) panel_row_bytes: usize,
    /// The smallest `panel_row_bytes` of a panel that goes through scratch.
    pub(crate) scratch_row_bytes: usize,
    /// Most bytes of scratch for as many vectors as a register has lanes; longer vectors go through scratch one by one.
    pub(crate) scratch_bytes: usize,
    /// Bytes of the longest vector that is multiplied by numbers that are ±c, and not by c and bits; half of L1 at
    /// most.
    pub(crate) factor_bytes: usize,
    /// Least number of such vectors.
    pub(crate) factor_vectors: usize,
    /// Elements of a task when rows or panels are shared among threads.
    pub(crate) task_len: usize,
    /// Elements from which one vector is shared among threads.
    pub(crate) long_len: usize,
    /// Whether a pass may do the stage of the lowest bit above the lanes together with those of the highest. Sums are
    /// the same on every instruction set only where stages go strictly down.
    pub(crate) beside: bool,
    /// Least `k` of a vector that is shared among threads: its first radix must leave blocks of at least 256 elements.
    pub(crate) long_bits: u32,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            alias_bytes: 4 << 10,
            l1_bytes: 32 << 10,
            ahead_bytes: 256 << 10,
            long_bytes: 32 << 20,
            long_ahead_bytes: 2 << 10,
            far_bytes: 16 << 10,
            panel_row_bytes: 1024,
            scratch_row_bytes: 256,
            scratch_bytes: 2 << 20,
            factor_bytes: 8 << 10,
            factor_vectors: 4,
            task_len: 1 << 16,
            long_len: 1 << 18,
            beside: true,
            long_bits: 14,
        }
    }
}

/// The registers that one step of a pass holds: `2^beside` of each of `2^rows` rows, one from each of `2^beside`
/// neighbouring runs of columns.
///
/// ```text
///   rows at distance h     | a . | A . | b . | B . |        8 × 2: stages between a of all rows, A of all rows, and
///                          | a . | A . | b . | B . |        between a and A; runs here of 2 registers
///                            ...
/// ```
/// The stages of `H` commute, so a pass may do the stage of the lowest bit above the lanes together with those of the
/// highest bits. That makes 16 registers out of 8 rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Radix {
    /// log2 of the number of rows.
    pub rows: u8,
    /// log2 of the number of registers of each row.
    pub beside: u8,
}

impl Radix {
    /// One register of one row, and no stage.
    pub(crate) const NONE: Radix = Radix { rows: 0, beside: 0 };
}

impl fmt::Display for Radix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.beside {
            0 => write!(f, "{}", 1 << self.rows),
            beside => write!(f, "{}×{}", 1 << self.rows, 1 << beside),
        }
    }
}

/// The radices of successive passes, from the top bit of the index down; it derefs to a slice of [`Radix`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Radices {
    of: [Radix; 14],
    passes: u8,
}

impl Radices {
    const NONE: Radices = Radices { of: [Radix::NONE; 14], passes: 0 };

    /// Splits `bits` stages between rows into the fewest passes of at most `top` stages each, the smaller ones first.
    pub(crate) fn new(bits: u32, top: u32) -> Radices {
        let mut radices = Radices::NONE;
        let passes = bits.div_ceil(top);
        (0..passes).for_each(|i| radices.push(((bits + i) / passes) as u8, 0));
        radices
    }

    /// Adds a pass after all others.
    fn push(&mut self, rows: u8, beside: u8) {
        self.of[self.passes as usize] = Radix { rows, beside };
        self.passes += 1;
    }

    /// Chooses the passes that take blocks of `2^bits` elements down to blocks of `2^lanes`, of `2^top` registers each.
    /// 16 rows at a distance that is `crowded` would need more lines of one L1 set than it has ways: there a pass takes
    /// 8 rows, and `2^beside` registers of each.
    fn staged(bits: u32, lanes: u32, top: u32, beside: u32, crowded: impl Fn(usize) -> bool) -> Radices {
        let mut radices = Radices::NONE;
        let (mut block, mut left) = (bits, bits - lanes);
        let rows = top.min(3);
        while left > top && crowded(1 << (block - top)) {
            radices.push(rows as u8, beside as u8);
            block -= rows;
            left -= rows + beside;
        }
        Radices::new(left, top).iter().for_each(|r| radices.push(r.rows, 0));
        radices
    }

    /// Chooses the radices for columns of `2^bits` rows that are `stride` bytes apart, in place.
    pub(crate) fn columns(bits: u32, stride: usize, registers: usize, params: &Params) -> Radices {
        let crowded = |h: usize| (h * stride).is_multiple_of(params.alias_bytes);
        Radices::staged(bits, 0, max_radix(registers), 0, crowded)
    }

    /// log2 of the number of elements or rows that the passes transform together.
    pub fn bits(&self) -> u32 {
        self.iter().map(|r| u32::from(r.rows + r.beside)).sum()
    }

    /// Returns all radices but the last, and log2 of the rows of the last (0 if there is none).
    fn split_last(mut self) -> (Radices, u32) {
        let last = self.last().map_or(0, |r| u32::from(r.rows));
        self.passes = self.passes.saturating_sub(1);
        (self, last)
    }
}

impl std::ops::Deref for Radices {
    type Target = [Radix];
    #[inline(always)]
    fn deref(&self) -> &[Radix] {
        &self.of[..self.passes as usize]
    }
}

impl fmt::Debug for Radices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(Radix::to_string)).finish()
    }
}

/// The passes of one length on one instruction set, from the top bit of the index down.
///
/// ```text
///   inner    radices between rows; depth first while a block is larger than `l1`
///   leaf     the last radix between registers, and all stages between lanes
///   base     H_b over rows at distance 2^k
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The length that is transformed.
    pub order: Order,
    /// The instruction set of the kernels.
    pub isa: Isa,
    /// The radices of the passes above the leaf.
    pub inner: Radices,
    /// log2 of the registers that a leaf combines.
    pub leaf: u32,
    /// log2 of the lanes that a leaf combines.
    pub lanes: u32,
    /// Elements of a block above which passes go depth first.
    pub l1: usize,
    /// Least distance between the rows of a pass, in elements, for the pass to prefetch.
    pub far: usize,
    /// How many bytes behind what it reads a pass prefetches; 0 where the caches hold the vector.
    pub ahead: usize,
}

impl Plan {
    /// Plans the passes of one vector of adjacent elements. In arithmetic an element has `size` bytes; the machine has
    /// `registers` registers of `lanes` elements.
    pub(crate) fn rows(order: Order, isa: Isa, size: usize, lanes: usize, registers: usize, params: &Params) -> Plan {
        let (k, top) = (order.log2(), max_radix(registers));
        let lane_bits = lanes.ilog2().min(k);
        let crowded = |h: usize| h * size >= params.alias_bytes;
        let beside = if params.beside { top.saturating_sub(3) } else { 0 };
        let (inner, leaf) = Radices::staged(k, lane_bits, top, beside, crowded).split_last();
        let ahead = if order.len() * size < params.long_bytes { 0 } else { params.long_ahead_bytes };
        let (l1, far) = (params.l1_bytes / size, params.far_bytes / size);
        Plan { order, isa, inner, leaf, lanes: lane_bits, l1, far, ahead }
    }

    /// The exponent `k` of the length: log2 of the elements that the inner passes and the leaf transform.
    pub fn bits(&self) -> u32 {
        self.inner.bits() + self.leaf + self.lanes
    }
}

/// Returns log2 of the largest radix that leaves registers for temporaries.
pub(crate) const fn max_radix(registers: usize) -> u32 {
    match registers {
        32.. => 4,
        16.. => 3,
        _ => 2,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n = {}·2^{} on {}:", self.order.base(), self.order.log2(), self.isa)?;
        for r in self.inner.iter() {
            write!(f, " inner {r}")?;
        }
        write!(f, " leaf {}×{}", 1 << self.leaf, 1 << self.lanes)?;
        match self.order.base() {
            1 => Ok(()),
            b => write!(f, " base {b}"),
        }
    }
}
