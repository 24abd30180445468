//! Which lengths work, and in which passes: plain data.

use std::fmt;

use crate::simd::Isa;
use crate::tensor::Matrix;

/// Orders of the matrices that [`hadamard`](super::hadamard) makes and that are no even multiple of a smaller one.
pub(crate) const BASES: [usize; 10] = [1, 12, 20, 28, 36, 44, 52, 60, 108, 140];

/// A length that can be transformed: `n = b·2^k` with `b` in 1, 12, 20, 28, 36, 44, 52, 60, 108, 140.
///
/// `x` seen as a `b × 2^k` row-major matrix becomes `(H_b ⊗ H_{2^k}) x`. `b` is unique: 40·2^k is 20·2^{k+1}.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Order {
    base: usize,
    log2: u32,
}

impl Order {
    /// The largest `k`.
    pub const MAX_LOG2: u32 = 27;

    /// The order of length `n`, or `None` if no matrix of that order is known here.
    pub fn new(n: usize) -> Option<Order> {
        let base = |b: usize| {
            let power = n.is_multiple_of(b).then_some(n / b)?;
            (power.is_power_of_two() && power.ilog2() <= Order::MAX_LOG2)
                .then(|| Order { base: b, log2: power.ilog2() })
        };
        BASES.into_iter().find_map(base)
    }

    /// `b`.
    pub fn base(self) -> usize {
        self.base
    }

    /// `k`.
    pub fn log2(self) -> u32 {
        self.log2
    }

    /// `n = b·2^k`.
    pub fn len(self) -> usize {
        self.base << self.log2
    }

    /// `H_b`, of entries ±1: `b = 1` gives `[1]`.
    pub fn base_matrix(self) -> Matrix<f64> {
        let b = self.base;
        let h = super::hadamard::entries::<f64>(b);
        Matrix::from_fn(b, b, |i, j| h[i * b + j])
    }

    /// Never: the least order is 1.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// Tuning constants. Chosen by `benches/fwht.rs` on Zen 5 (48 KiB L1, 1 MiB L2 per core, AVX-512).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Params {
    /// Distance in bytes from which 16 rows share too few sets of L1.
    pub(crate) alias_bytes: usize,
    /// Bytes of a block whose passes, one after the other, find it in L1.
    pub(crate) l1_bytes: usize,
    /// Bytes of one row of a column panel that goes through scratch: whole cache lines.
    pub(crate) panel_row_bytes: usize,
    /// Bytes of scratch for one panel of columns; longer columns take more than one sweep over memory.
    pub(crate) panel_bytes: usize,
    /// Elements of a task when rows or panels are shared among threads.
    pub(crate) task_len: usize,
    /// Elements from which one vector is shared among threads.
    pub(crate) long_len: usize,
    /// And least `k` for that: its first radix must leave blocks of 256 elements and more.
    pub(crate) long_bits: u32,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            alias_bytes: 4 << 10,
            l1_bytes: 16 << 10,
            panel_row_bytes: 256,
            panel_bytes: 2 << 20,
            task_len: 1 << 16,
            long_len: 1 << 17,
            long_bits: 14,
        }
    }
}

/// Radices (log2) of successive passes, from the top bit of the index down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Radices {
    log2: [u8; 12],
    passes: u8,
}

impl Radices {
    /// `bits` stages in the fewest passes of at most `top` stages each, the larger ones first.
    pub(crate) fn new(bits: u32, top: u32) -> Radices {
        let passes = bits.div_ceil(top);
        let mut log2 = [0; 12];
        for i in 0..passes {
            log2[i as usize] = ((bits + i) / passes) as u8;
        }
        Radices { log2, passes: passes as u8 }
    }

    /// The stages of `2^k` adjacent elements above `lanes` (log2). A radix of 16 at a distance of `alias` elements or
    /// more would ask a set of the L1 cache for more lines than it has ways; there 8 is the most (2^14 to 2^18: 1.6×).
    fn staged(k: u32, lanes: u32, top: u32, alias: usize) -> Radices {
        let mut head = Radices { log2: [0; 12], passes: 0 };
        let mut left = k - lanes;
        while left > top && 1usize << (lanes + left - top.min(4)) >= alias {
            head.log2[head.passes as usize] = top.min(3) as u8;
            head.passes += 1;
            left -= top.min(3);
        }
        for &r in Radices::new(left, top).iter() {
            head.log2[head.passes as usize] = r;
            head.passes += 1;
        }
        head
    }

    /// log2 of the number of rows that they transform.
    pub fn bits(&self) -> u32 {
        self.iter().map(|&r| r as u32).sum()
    }

    /// Without the last one, and that one (0 if there is none).
    fn split_last(mut self) -> (Radices, u32) {
        let last = self.last().map_or(0, |&r| r as u32);
        self.passes = self.passes.saturating_sub(1);
        (self, last)
    }
}

impl std::ops::Deref for Radices {
    type Target = [u8];
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        &self.log2[..self.passes as usize]
    }
}

impl fmt::Debug for Radices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The passes of one length on one instruction set, from the top bit of the index down:
///
/// ```text
///   inner    vertical radices; depth first while a block is larger than `l1`
///   leaf     the last radix and all stages between lanes of one register
///   base     H_b over rows at distance 2^k
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The length.
    pub order: Order,
    /// The instruction set.
    pub isa: Isa,
    /// Radices of the vertical stages above the leaf.
    pub inner: Radices,
    /// Radix (log2) of the vertical stages in the leaf.
    pub leaf: u32,
    /// Stages (log2) between lanes in the leaf.
    pub lanes: u32,
    /// Elements of a block above which passes go depth first.
    pub l1: usize,
}

impl Plan {
    /// The plan of adjacent elements of `size` bytes in arithmetic, `lanes` of them in each of `registers` registers.
    pub(crate) fn rows(order: Order, isa: Isa, size: usize, lanes: usize, registers: usize, params: &Params) -> Plan {
        let (k, top) = (order.log2(), max_radix(registers));
        let lane_bits = lanes.ilog2().min(k);
        let (inner, leaf) = Radices::staged(k, lane_bits, top, params.alias_bytes / size).split_last();
        Plan { order, isa, inner, leaf, lanes: lane_bits, l1: params.l1_bytes / size }
    }

    /// log2 of the elements that its passes transform: `k`.
    pub fn bits(&self) -> u32 {
        self.inner.bits() + self.leaf + self.lanes
    }
}

/// Largest radix (log2) that leaves registers for temporaries.
pub(crate) fn max_radix(registers: usize) -> u32 {
    if registers >= 32 { 4 } else { 3 }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n = {}·2^{} on {}:", self.order.base(), self.order.log2(), self.isa)?;
        for r in self.inner.iter() {
            write!(f, " inner {}", 1 << r)?;
        }
        write!(f, " leaf {}×{}", 1 << self.leaf, 1 << self.lanes)?;
        match self.order.base() {
            1 => Ok(()),
            b => write!(f, " base {b}"),
        }
    }
}
