//! Rules of ranks: a budget shared among layers, and the rank of a ratio.

use pyo3::prelude::*;
use tensorslim::DType;
use tensorslim::rank::{self, Budget, Cost, Layer, Share};

use crate::error::raise;
use crate::run::run;

/// A layer as Python gives it.
#[derive(FromPyObject)]
pub(crate) struct GivenLayer {
    shape: (usize, usize),
    spectrum: Vec<f64>,
    norm_squared: f64,
    dtype: String,
    weight: f64,
    floor: usize,
    cap: Option<usize>,
    protected: bool,
}

/// Shares a budget by losses, or (`alike`) so that all layers are reduced alike. Returns the rank of each layer (`None` for one that stays whole), the cost, the loss and its bound.
#[pyfunction]
pub(crate) fn allocate(
    py: Python<'_>,
    layers: Vec<GivenLayer>,
    limit: u64,
    unit: &str,
    align: usize,
    alike: bool,
) -> PyResult<(Vec<Option<usize>>, u64, f64, f64)> {
    let unit = match unit {
        "parameters" => Cost::Parameters,
        "bytes" => Cost::Bytes,
        "flops" => Cost::Flops,
        other => {
            let (value, want) = (Some(other.to_string()), "parameters, bytes or flops");
            return Err(raise(tensorslim::Error::Option { name: "unit", value, want }));
        }
    };
    let layers: Vec<Layer<'_>> = layers
        .iter()
        .map(|given| {
            let dtype: DType = given.dtype.parse().map_err(raise)?;
            let mut layer = Layer::new(given.shape, dtype, &given.spectrum, given.norm_squared);
            layer.weight = given.weight;
            layer.floor = given.floor;
            layer.cap = given.cap.unwrap_or(usize::MAX);
            layer.protected = given.protected;
            Ok(layer)
        })
        .collect::<PyResult<_>>()?;
    let budget = Budget { limit, unit, align };
    let found = run(py, || if alike { rank::uniform(&layers, budget) } else { rank::allocate(&layers, budget) })?;
    let rank = |share: &Share| if let Share::Rank(k) = share { Some(*k) } else { None };
    Ok((found.shares.iter().map(rank).collect(), found.total, found.loss, found.bound))
}

/// Returns the largest rank whose factors are at least `ratio` times smaller than an `m × n` matrix, or 0.
#[pyfunction]
pub(crate) fn rank_for_ratio(m: usize, n: usize, ratio: f64) -> usize {
    rank::rank_for_ratio(m, n, ratio)
}

/// Returns whether factors of rank `k` have fewer numbers than an `m × n` matrix.
#[pyfunction]
pub(crate) fn rank_saves_memory(m: usize, n: usize, k: usize) -> bool {
    rank::rank_saves_memory(m, n, k)
}
