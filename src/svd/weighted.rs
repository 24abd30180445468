//! The door to factorizations of a weight in one memory under statistics: of its inputs alone (`calibrated.rs`), or of
//! its outputs, too (`two_sided.rs`).

use std::time::Instant;

use faer::Par;

use super::calibrated::{self, MakeOperator, Weight};
use super::options::Options;
use super::task::Residency;
use super::two_sided;
use crate::error::Result;
use crate::factors::Factors;
use crate::operator::LinearOperator;
use crate::simd::Scalar;
use crate::space::Space;

/// Factors `op`, the tall one of W and Wᵀ, where `weight` is W. `root` makes the operator of a root on the same kind of
/// panels.
pub(super) fn factor<T: Scalar, S: Space<T>>(
    options: &Options,
    op: &mut dyn LinearOperator<T, Space = S>,
    root: &MakeOperator<'_, T, S>,
    weight: Weight<'_>,
    par: Par,
    start: Instant,
) -> Result<Factors<T>> {
    let residency = Residency::InMemory;
    if options.weighting.is_two_sided() {
        return two_sided::factor(options, residency, op, root, weight, par, start);
    }
    calibrated::factor(options, residency, op, root, weight, par, start)
}
