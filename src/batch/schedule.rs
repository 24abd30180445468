//! The order of a batch: large tensors alone on all threads, small ones side by side, all within one memory limit.
//!
//! ```text
//!   threads  ┌────────┬────────┬─── c ──┬── e ─┬ g ┐    alone: while a tensor would take longer on one worker than all
//!            │ a: all │ b: all │        └──────┴───┤           smaller ones on all of them, it takes all threads
//!            │        │        ├── d ──┬─ f ─┬─ h ─┤    side by side: the largest that fits into the memory left
//!            └────────┴────────┴───────┴─────┴─────┘           goes to the next worker that is free
//!                                                 time
//! ```
//!
//! Longest-first lists end within 4/3 − 1/(3w) of the best schedule for w workers (R. L. Graham, Bounds on
//! multiprocessing timing anomalies, 1969). With many tensors of similar size the last ones are short against the
//! whole, and it is a few percent. One tensor on each worker beats all workers on one tensor because small matrices do
//! not fill the threads: the small dense problems and the orthonormalizations are sequential or nearly so.

/// The time and the memory that a tensor is expected to take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// The seconds that it takes on one worker.
    pub seconds: f64,
    /// The bytes that it takes, the tensor itself included.
    pub bytes: usize,
}

/// The order of a batch, as indices of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The tensors that run first, one after the other, each on all threads.
    pub alone: Vec<usize>,
    /// The tensors that run side by side, in this order as far as memory allows.
    pub side_by_side: Vec<usize>,
}

impl Schedule {
    /// Makes the schedule for `workers` workers and `limit` bytes. Tensors of equal time stay in their order.
    pub fn new(demands: &[Demand], workers: usize, limit: usize) -> Self {
        let mut order = largest_first(demands.iter().map(|d| d.seconds));
        let mut alone: Vec<usize> = Vec::new();
        // A tensor that does not fit beside as many equal ones as there are workers would only make the others wait.
        let large = |i: &usize| demands[*i].bytes > limit / workers.max(1);
        alone.extend(order.iter().filter(|i| large(i)));
        order.retain(|i| !large(i));
        let mut rest: f64 = order.iter().map(|&i| demands[i].seconds).sum();
        let mut leading = 0;
        for &i in &order {
            // For the last tensor `rest` is its own time, so that it runs alone.
            if workers < 2 || demands[i].seconds * workers as f64 <= rest {
                break;
            }
            rest -= demands[i].seconds;
            leading += 1;
        }
        alone.extend(order.drain(..leading));
        Schedule { alone, side_by_side: order }
    }
}

/// Returns the indices of `costs` in the order of falling cost; equal ones stay in their order.
fn largest_first(costs: impl Iterator<Item = f64>) -> Vec<usize> {
    let costs: Vec<f64> = costs.collect();
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by(|&i, &j| costs[j].total_cmp(&costs[i]));
    order
}

/// Returns the tensors of shard `index` (from 0) of `count` shards. Each tensor goes, largest first, to the shard that
/// has least to do; all shards see the same list and come to the same division.
pub fn shard(costs: &[f64], index: usize, count: usize) -> Vec<usize> {
    // By load, then by number of tensors, so that tensors of unknown cost spread too.
    let mut loads = vec![(0f64, 0usize); count];
    let mut mine = Vec::new();
    for i in largest_first(costs.iter().copied()) {
        let least = (0..count)
            .min_by(|&a, &b| loads[a].0.total_cmp(&loads[b].0).then(loads[a].1.cmp(&loads[b].1)))
            .unwrap_or(0);
        loads[least] = (loads[least].0 + costs[i], loads[least].1 + 1);
        if least == index {
            mine.push(i);
        }
    }
    mine.sort_unstable();
    mine
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(seconds: &[f64]) -> Vec<Demand> {
        seconds.iter().map(|&seconds| Demand { seconds, bytes: 1 }).collect()
    }

    #[test]
    fn a_tensor_that_outlasts_all_others_runs_alone() {
        let s = Schedule::new(&costs(&[1.0, 9.0, 1.0, 2.0, 1.0]), 2, 100);
        assert_eq!(s, Schedule { alone: vec![1], side_by_side: vec![3, 0, 2, 4] });
        // One worker has nothing to choose.
        let s = Schedule::new(&costs(&[1.0, 9.0, 1.0]), 1, 100);
        assert_eq!(s, Schedule { alone: vec![], side_by_side: vec![1, 0, 2] });
        // Two equal tensors have a worker each.
        assert_eq!(Schedule::new(&costs(&[3.0, 3.0]), 2, 100).alone, Vec::<usize>::new());
        // One tensor gets all threads.
        assert_eq!(Schedule::new(&costs(&[3.0]), 2, 100).alone, vec![0]);
    }

    #[test]
    fn a_tensor_that_fills_the_memory_runs_alone() {
        let mut list = costs(&[1.0; 6]);
        list[4].bytes = 60;
        assert_eq!(Schedule::new(&list, 2, 100).alone, vec![4]);
        assert_eq!(Schedule::new(&list, 2, 200).alone, Vec::<usize>::new());
    }

    #[test]
    fn shards_are_a_partition_of_balanced_parts() {
        let costs: Vec<f64> = (0..101).map(|i| f64::from((i * 37) % 50)).collect();
        for count in [1, 2, 3, 7, 200] {
            let mut all: Vec<usize> = (0..count).flat_map(|i| shard(&costs, i, count)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..101).collect::<Vec<_>>());
            let load = |i| shard(&costs, i, count).iter().map(|&i| costs[i]).sum::<f64>();
            let (least, most) = (0..count).map(load).fold((f64::MAX, 0f64), |(a, b), load| (a.min(load), b.max(load)));
            assert!(most - least <= 49.0, "{count} shards: {least} to {most}");
        }
        // Tensors of unknown cost are spread by number.
        assert_eq!(shard(&[0.0; 5], 1, 2), vec![1, 3]);
    }
}
