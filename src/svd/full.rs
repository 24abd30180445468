//! The optimum: `A = Q R`, then a dense SVD of R. `2 m n² + O(n³)` flops, one full copy of `A` in the arithmetic type.

use super::Solution;
use super::goal::Goal;
use super::triplets::Triplets;
use crate::error::Result;
use crate::factors::Slices;
use crate::operator::LinearOperator;
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::Space;

pub(super) fn solve<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    goal: &Goal,
    par: faer::Par,
) -> Result<Solution<T, S>> {
    let width = op.ncols();
    let mut image = op.left(width)?;
    op.materialize(&mut image)?;
    let (triplets, rank, notes) = Triplets::from_right(op.space(), None, image, false, |s, captured| goal.rank(s, captured), par)?;
    Ok(Solution {
        triplets,
        rank,
        width,
        method: Method::Full,
        sketch: None,
        certificate: None,
        slices: Slices::Orthogonal,
        notes,
    })
}
