//! Randomized SVD (Halko, Martinsson, Tropp, SIAM Rev. 2011, algorithms 4.4 and 5.1): power iterations on `A Ω`, then
//! the image `AᵀQ`. `2q + 2` passes of `2 m n l` flops, the first one cheaper with a fast sketch.

use faer::Par;

use super::goal::Goal;
use super::triplets::Triplets;
use super::{Solution, TruncatedSvd, stream};
use crate::error::Result;
use crate::factors::Slices;
use crate::operator::LinearOperator;
use crate::range::{power_iteration, shifted_power_iteration, sparing_power_iteration};
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::Space;

/// `sparing` keeps to little scratch, where another method that took less has failed; without a shift, which has a panel of its own.
pub(super) fn solve<T: Scalar, S: Space<T>>(
    options: &TruncatedSvd,
    op: &mut dyn LinearOperator<T, Space = S>,
    width: usize,
    goal: &Goal,
    sparing: bool,
    par: Par,
) -> Result<Solution<T, S>> {
    let omega = options.omega(op.ncols(), width, stream::RANGE)?;
    let (mut y, mut x) = (op.left(width)?, op.right(width)?);
    if sparing {
        sparing_power_iteration(op, &omega, options.power_iterations, &mut y, &mut x)?;
    } else if options.dynamic_shift && options.power_iterations > 0 {
        let mut z = op.left(width)?;
        shifted_power_iteration(op, &omega, options.power_iterations, &mut y, &mut x, &mut z)?;
    } else {
        power_iteration(op, &omega, options.power_iterations, &mut y, &mut x)?;
    }
    op.apply_adjoint(&y, &mut x)?;
    let (triplets, rank, notes) = Triplets::from_left(op.space(), y, x, sparing, |s, captured| goal.rank(s, captured), par)?;
    Ok(Solution {
        triplets,
        rank,
        width,
        method: Method::Randomized,
        sketch: Some(options.sketch),
        certificate: None,
        slices: Slices::Orthogonal,
        notes,
    })
}
