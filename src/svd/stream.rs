//! The streams of the random numbers of one factorization, which keep operators that share a seed independent.

/// The stream of the range finder's Ω.
pub(super) const RANGE: u64 = 0;
/// The stream of the certificate's probes.
pub(super) const PROBES: u64 = 1;
/// The stream of the probes that end the search for a rank.
pub(super) const STOP: u64 = 2;
/// The stream of the Υ of one pass.
pub(super) const CORANGE: u64 = 3;
/// The stream of the Φ of one pass.
pub(super) const CORE_LEFT: u64 = 4;
/// The stream of the Ψ of one pass.
pub(super) const CORE_RIGHT: u64 = 5;
/// The stream of the noise that leads an exhausted block out of the span of the others.
pub(super) const NOISE: u64 = 6;
/// The stream of the columns beside a basis to start from.
pub(super) const START: u64 = 7;
/// The stream of the Ω of the first block of the search for a rank; the next blocks follow.
pub(super) const BLOCKS: u64 = 1 << 32;
