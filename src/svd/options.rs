//! The options of a factorization: the plain data behind [`TruncatedSvd`](super::TruncatedSvd).

use super::rates::Rates;
use super::weighting::Weighting;
use crate::rank::Rank;
use crate::report::Method;
use crate::sketch::Sketch;

/// The device on which the factorization is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The threads of the current rayon pool.
    #[default]
    Cpu,
    /// The CUDA device of this number (feature `cuda`). The device is opened once per process and stays open.
    Cuda(usize),
}

/// The options of a truncated SVD, as they were given.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Options {
    pub(super) rank: Rank,
    pub(super) method: Method,
    pub(super) sketch: Sketch,
    pub(super) oversample: usize,
    pub(super) power_iterations: usize,
    pub(super) dynamic_shift: bool,
    pub(super) precise: bool,
    pub(super) smallest: bool,
    pub(super) seed: u64,
    pub(super) max_rank: Option<usize>,
    /// The rates that the planner weighs methods by; `None` for those of the device.
    pub(super) rates: Option<Rates>,
    pub(super) memory_limit: Option<usize>,
    pub(super) weighting: Weighting,
    pub(super) device: Device,
}

impl Options {
    pub(super) fn new(rank: Rank) -> Self {
        Options {
            rank,
            method: Method::Auto,
            sketch: Sketch::default(),
            oversample: 10,
            power_iterations: 2,
            dynamic_shift: false,
            precise: false,
            smallest: false,
            seed: 0,
            max_rank: None,
            rates: None,
            memory_limit: None,
            weighting: Weighting::default(),
            device: Device::Cpu,
        }
    }

    /// Tells whether calibration weights the error, or a quality decides the rank.
    pub(super) fn is_weighted(&self) -> bool {
        self.weighting.is_active(self.rank)
    }

    /// Returns the rates that were given, or those of the device.
    pub(super) fn rates_in_use(&self) -> Rates {
        match (self.rates, self.device) {
            (Some(rates), _) => rates,
            (None, Device::Cpu) => Rates::default(),
            (None, Device::Cuda(_)) => Rates::cuda(),
        }
    }
}
