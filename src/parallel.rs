//! Threads: the only door to them.
//!
//! Work is cut by its shape alone and never by the number of threads, so that results have the same bits on any number
//! of them. The threads are those of the current rayon pool; without the feature `rayon` everything runs on the calling
//! thread, through the same functions.
//!
//! What reaches rayon is `&dyn Fn`: its plumbing, a dozen functions for each kind of job, is compiled once and not for
//! every caller. A task is called through a pointer, so it should be worth a microsecond or more.

#[cfg(feature = "linalg")]
mod tasks;

use std::ops::Range;

#[cfg(feature = "linalg")]
pub(crate) use tasks::{
    beside, current_par, for_each_of, for_each_with, in_new_pool, in_pool, join, lock, map, row_blocks, yield_now,
};

/// The threads on which a function may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Threads {
    /// The calling thread alone.
    One,
    /// The threads of the current rayon pool. Without the feature `rayon` that is the calling thread.
    #[default]
    Pool,
}

impl Threads {
    /// Returns whether there is the calling thread alone.
    pub(crate) fn is_one(self) -> bool {
        self == Threads::One || cfg!(not(feature = "rayon"))
    }
}

/// Returns the number of threads of the current pool.
pub(crate) fn count() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// Calls `task` with each of `0..count`, in any order, and returns when all calls have.
pub(crate) fn for_each(threads: Threads, count: usize, task: &(dyn Fn(usize) + Sync)) {
    for_ranges(threads, count, usize::MAX, &|range| range.for_each(task));
}

/// Calls `task` with ranges of at most `longest` numbers that make up `0..count`, each on one thread, and returns when
/// all calls have. On a single thread the one range is all of `0..count`. A task that needs scratch makes it once for a
/// range.
pub(crate) fn for_ranges(threads: Threads, count: usize, longest: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
    match threads {
        _ if count == 0 => {}
        #[cfg(feature = "rayon")]
        Threads::Pool if count > 1 => {
            use rayon::prelude::*;
            // The numbers that a thread gets in one piece are folded into a range before any work is done.
            let range = |range: Range<usize>, i: usize| if range.is_empty() { i..i + 1 } else { range.start..i + 1 };
            (0..count).into_par_iter().with_max_len(longest).fold(|| 0..0, range).for_each(task);
        }
        _ => {
            let _ = longest;
            task(0..count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const BOTH: [Threads; 2] = [Threads::One, Threads::Pool];

    #[test]
    fn every_index_has_its_turn_once() {
        for threads in BOTH {
            for count in [0, 1, 2, 3, 64, 1000] {
                let turns: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                for_each(threads, count, &|i| {
                    turns[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(turns.iter().all(|turns| turns.load(Ordering::Relaxed) == 1), "{threads:?} {count}");
            }
        }
    }

    #[test]
    fn ranges_make_up_the_whole() {
        for threads in BOTH {
            for longest in [1, 7, usize::MAX] {
                let seen = Mutex::new(Vec::new());
                for_ranges(threads, 1000, longest, &|range| seen.lock().unwrap().push((range.start, range.end)));
                let mut seen = seen.into_inner().unwrap();
                seen.sort_unstable();
                assert!(seen.iter().all(|(start, end)| start < end), "{seen:?}");
                assert!(seen.windows(2).all(|pair| pair[0].1 == pair[1].0), "{seen:?}");
                assert_eq!((seen[0].0, seen[seen.len() - 1].1), (0, 1000));
                if cfg!(feature = "rayon") && threads == Threads::Pool {
                    assert!(seen.iter().all(|(start, end)| end - start <= longest), "{seen:?}");
                }
            }
        }
    }
}
