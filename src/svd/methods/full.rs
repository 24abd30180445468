//! The optimum: `A = Q R`, then a dense SVD of R. It takes `2 m n² + O(n³)` flops and one full copy of `A` in the
//! arithmetic type.

use faer::Par;

use crate::error::Result;
use crate::operator::{LinearOperator, Pass};
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::{HostPanel, Space};
use crate::svd::cost::Work;
use crate::svd::footprint::Footprint;
use crate::svd::rank_target::RankTarget;
use crate::svd::solution::Solution;
use crate::svd::task::Task;
use crate::svd::triplets::{Triplets, decompose_bytes};

pub(super) fn cost(work: &Work<'_>) -> (f64, usize) {
    (work.copy(work.m * work.n) + work.finish(work.m, work.n) + work.begin(), 1)
}

pub(super) fn peak<T: Scalar>(f: &Footprint) -> usize {
    let &Footprint { m, n, .. } = f;
    let square = n * n * size_of::<T>();
    let decomposing = decompose_bytes::<T>(m, n, false, 0).max(square + f.home::<T>(square));
    f.certified::<T>(HostPanel::<T>::bytes(m, n) + f.tile::<T>(Pass::Whole).max(decomposing), false)
}

pub(super) fn solve<T: Scalar, S: Space<T>>(
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let width = op.ncols();
    let mut image = op.left(width)?;
    op.materialize(&mut image)?;
    // For the smallest triplets all of them have to be good.
    let choose = |s: &[T], captured: f64| if task.smallest { s.len() } else { target.rank(s, captured) };
    let mut found = Triplets::from_right(op.space(), None, image, false, choose, par)?;
    if task.smallest {
        let (triplets, rank, _) = &mut found;
        *rank = target.rank(&triplets.s, triplets.captured);
        triplets.bring_last_first(*rank);
    }
    Ok(Solution::of_triplets(found, width, Method::Full, None))
}
