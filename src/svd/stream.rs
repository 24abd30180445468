//! Streams of the random numbers of one factorization: operators that share a seed stay independent.

/// The range finder's Ω.
pub(super) const RANGE: u64 = 0;
/// The certificate's probes.
pub(super) const PROBES: u64 = 1;
/// The probes that end the search for a rank.
pub(super) const STOP: u64 = 2;
/// The Υ of one pass.
pub(super) const CORANGE: u64 = 3;
/// Its Φ.
pub(super) const CORE_LEFT: u64 = 4;
/// Its Ψ.
pub(super) const CORE_RIGHT: u64 = 5;
/// What leads an exhausted block out of the span of the others.
pub(super) const NOISE: u64 = 6;
/// The Ω of the first block of that search; the next ones follow.
pub(super) const BLOCKS: u64 = 1 << 32;
