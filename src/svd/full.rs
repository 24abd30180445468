//! The optimum: `A = Q R`, then a dense SVD of R. `2 m n² + O(n³)` flops, one full copy of `A` in the arithmetic type.

use super::Solution;
use super::goal::Goal;
use super::triplets::Triplets;
use crate::error::Result;
use crate::factors::Slices;
use crate::operator::LinearOperator;
use crate::report::Method;
use crate::simd::Scalar;

pub(super) fn solve<T: Scalar, O: LinearOperator<T>>(
    op: &mut O,
    goal: &Goal,
    par: faer::Par,
) -> Result<Solution<T, O>> {
    let width = op.ncols();
    let mut image = op.left(width)?;
    op.materialize(&mut image)?;
    let (triplets, rank, notes) = Triplets::from_right(None, image, false, |s, captured| goal.rank(s, captured), par)?;
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
