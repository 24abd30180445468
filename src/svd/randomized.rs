//! Randomized SVD (Halko, Martinsson, Tropp, SIAM Rev. 2011, algorithms 4.4 and 5.1): power iterations on `A Ω`, then
//! the image `AᵀQ`. `2q + 2` passes of `2 m n l` flops, the first one cheaper with a fast sketch.

use faer::Par;

use super::goal::Goal;
use super::triplets::Triplets;
use super::{Method, Solution, TruncatedSvd, note_orthonormalization, stream};
use crate::error::Result;
use crate::operator::LinearOperator;
use crate::range::power_iteration;
use crate::simd::Scalar;
use crate::sketch::AnySketch;

pub(super) fn solve<T: Scalar, O: LinearOperator<T>>(
    options: &TruncatedSvd,
    op: &mut O,
    width: usize,
    goal: &Goal,
    par: Par,
) -> Result<Solution<T, O>> {
    let omega = AnySketch::new(options.sketch, op.ncols(), width, options.seed, stream::RANGE)?;
    let (mut y, mut x) = (op.left(width)?, op.right(width)?);
    power_iteration(op, &omega, options.power_iterations, &mut y, &mut x)?;
    op.apply_adjoint(&y, &mut x)?;
    let (triplets, how) = Triplets::from_left(y, x, par)?;
    let mut notes = Vec::new();
    note_orthonormalization(&mut notes, "QR of the projected matrix", &how);
    let rank = goal.rank(&triplets.s, triplets.captured);
    Ok(Solution {
        triplets,
        rank,
        width,
        method: Method::Randomized,
        sketch: Some(options.sketch),
        certificate: None,
        notes,
    })
}
