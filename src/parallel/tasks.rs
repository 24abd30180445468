//! Work in pieces that are more than numbers: items split among threads, two functions at a time, and locks.
//!
//! The functions are generic over the items that they hand on, and call functions that are not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use faer::{MatMut, Par};

use super::{Threads, for_ranges};
use crate::error::Result;

impl From<Par> for Threads {
    fn from(par: Par) -> Self {
        match par {
            Par::Seq => Threads::One,
            Par::Rayon(_) => Threads::Pool,
        }
    }
}

/// Returns the threads of the current pool, as faer's algorithms take them.
pub(crate) fn current_par() -> Par {
    match super::count() {
        1 => Par::Seq,
        threads => Par::rayon(threads),
    }
}

/// Calls `task` with each item, each as a piece of work of its own, in any order. On one thread it is the order of the
/// items.
pub(crate) fn for_each_of<I: Send>(threads: impl Into<Threads>, items: Vec<I>, task: impl Fn(I) + Sync) {
    split(threads.into(), items, 1, || (), |(), item| task(item));
}

/// Calls `task` with each of many small items, in any order. They are handed out in ranges, and each range makes one
/// `scratch`, which is given to the calls for its items one after the other.
pub(crate) fn for_each_with<I: Send, S>(
    threads: impl Into<Threads>,
    items: Vec<I>,
    scratch: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, I) + Sync,
) {
    split(threads.into(), items, usize::MAX, scratch, task);
}

/// Calls `task` with each item, in ranges of at most `longest` items that share a scratch.
fn split<I: Send, S>(
    threads: Threads,
    items: Vec<I>,
    longest: usize,
    scratch: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, I) + Sync,
) {
    if threads == Threads::One || items.len() < 2 {
        let mut scratch = scratch();
        return items.into_iter().for_each(|item| task(&mut scratch, item));
    }
    // Whoever has a number takes the next item. A lock for each item would keep those of a thread together, and be as
    // much code again for every caller.
    let (count, items) = (items.len(), Mutex::new(items.into_iter()));
    for_ranges(threads, count, longest, &|range| {
        let mut scratch = scratch();
        for _ in range {
            let item = lock(&items).next();
            task(&mut scratch, item.expect("an item for each number"));
        }
    });
}

/// Splits a matrix into blocks of `rows` rows, the last one shorter, each with the number of its first row.
pub(crate) fn row_blocks<T>(mut a: MatMut<'_, T>, rows: usize) -> Vec<(usize, MatMut<'_, T>)> {
    let mut blocks = Vec::with_capacity(a.nrows().div_ceil(rows));
    let mut first = 0;
    while a.nrows() > 0 {
        let count = rows.min(a.nrows());
        let (block, below) = a.split_at_row_mut(count);
        blocks.push((first, block));
        (a, first) = (below, first + count);
    }
    blocks
}

/// Returns the results of `task` for each of `0..count`, in this order. The calls come in any order.
pub(crate) fn map<R: Send>(threads: impl Into<Threads>, count: usize, task: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let threads = threads.into();
    if threads == Threads::One || count < 2 {
        return (0..count).map(task).collect();
    }
    let results: Vec<_> = (0..count).map(|_| Mutex::new(None)).collect();
    for_ranges(threads, count, 1, &|range| {
        for i in range {
            let result = task(i);
            *lock(&results[i]) = Some(result);
        }
    });
    let result = |result: Mutex<Option<R>>| result.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|r| result(r).expect("each index has its turn")).collect()
}

/// Calls `a` and `b`, at the same time if a thread is free, and returns both results.
pub(crate) fn join<A: Send, B: Send>(
    threads: impl Into<Threads>,
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    if threads.into() == Threads::One {
        return (a(), b());
    }
    let (mut a, mut b) = (Pending::Work(a), Pending::Work(b));
    fork(&mut || a.call(), &mut || b.call());
    (a.result(), b.result())
}

/// Calls `a` and `b` as tasks of the pool. It is not generic, and compiled once.
fn fork(a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
    rayon::join(a, b);
}

/// Calls `f` on a thread of the current pool, if it may run on threads. Called from outside of the pool, every parallel
/// step of it would wake the pool anew and put the caller to sleep.
pub(crate) fn in_pool<R: Send>(threads: impl Into<Threads>, f: impl FnOnce() -> R + Send) -> R {
    if threads.into() == Threads::One || rayon::current_thread_index().is_some() {
        return f();
    }
    let mut f = Pending::Work(f);
    enter(&mut || f.call());
    f.result()
}

/// Calls `f` on a thread of the pool. It is not generic, and compiled once.
fn enter(f: &mut (dyn FnMut() + Send)) {
    rayon::scope(|_| f());
}

/// Calls `f` in a new pool of `threads` threads. If these cannot be started, `f` runs in the current pool, which gives
/// the same bits.
pub(crate) fn in_new_pool(threads: usize, f: &(dyn Fn() + Sync)) {
    match rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build() {
        Ok(pool) => pool.install(f),
        Err(_) => f(),
    }
}

/// Calls `work` on another thread, if one is free, while this thread calls `here`, which need not be `Send`. Returns
/// the result of `work`.
///
/// # Errors
/// The error of `here`, after `work` has ended.
pub(crate) fn beside<R: Send>(
    threads: impl Into<Threads>,
    work: impl FnOnce() -> R + Send,
    here: impl FnOnce() -> Result<()>,
) -> Result<R> {
    if threads.into() == Threads::One {
        here()?;
        return Ok(work());
    }
    let (mut work, mut here) = (Pending::Work(work), Pending::Work(here));
    spawn_beside(&mut || work.call(), &mut || here.call());
    here.result()?;
    Ok(work.result())
}

/// Calls `work` as a task of the pool and `here` on this thread. It is not generic, and compiled once.
fn spawn_beside(work: &mut (dyn FnMut() + Send), here: &mut dyn FnMut()) {
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| work());
        here();
    });
}

/// A function that is to be called once, or its result. It carries a typed result through `&mut dyn FnMut()`.
enum Pending<F, R> {
    Work(F),
    Called,
    Done(R),
}

impl<R, F: FnOnce() -> R> Pending<F, R> {
    /// Calls the function, at the first call only.
    fn call(&mut self) {
        if let Pending::Work(f) = std::mem::replace(self, Pending::Called) {
            *self = Pending::Done(f());
        }
    }

    /// Returns the result of the function.
    ///
    /// # Panics
    /// If it was not called.
    fn result(self) -> R {
        match self {
            Pending::Done(result) => result,
            _ => unreachable!("it was called"),
        }
    }
}

/// Lets this thread do another task of the pool, if one waits.
pub(crate) fn yield_now() {
    rayon::yield_now();
}

/// Locks a mutex, also after a thread panicked while it held it: whoever waits for that thread learns of the panic.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;

    const BOTH: [Threads; 2] = [Threads::One, Threads::Pool];

    #[test]
    fn beside_gives_both() {
        for threads in BOTH {
            let mut here = 0;
            let there = beside(
                threads,
                || 6 * 7,
                || {
                    here = 1;
                    Ok(())
                },
            );
            assert_eq!((there.unwrap(), here), (42, 1));
            let failed = beside(threads, || 0, || Err(Error::Cancelled));
            assert!(matches!(failed, Err(Error::Cancelled)));
        }
    }

    #[test]
    fn join_and_pools_give_what_the_functions_return() {
        for threads in BOTH {
            let mut left = vec![1];
            let (a, b) = in_pool(threads, || join(threads, || left.push(2), || "right"));
            assert_eq!((a, b, &left[..]), ((), "right", &[1, 2][..]));
        }
        let calls = AtomicUsize::new(0);
        in_new_pool(3, &|| {
            assert_eq!(super::super::count(), 3);
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 1);
    }

    #[test]
    fn results_are_in_order_and_items_taken_once() {
        for threads in BOTH {
            assert_eq!(map(threads, 100, |i| i * i), (0..100).map(|i| i * i).collect::<Vec<_>>());
            let mut data = [0u32; 100];
            for_each_with(
                threads,
                data.chunks_mut(7).enumerate().collect(),
                || (),
                |(), (i, chunk): (usize, &mut [u32])| {
                    chunk.iter_mut().for_each(|x| *x += i as u32);
                },
            );
            assert!(data.iter().enumerate().all(|(i, &x)| x as usize == i / 7), "{data:?}");
            let made = AtomicUsize::new(0);
            let scratch = || made.fetch_add(1, Ordering::Relaxed);
            for_each_with(threads, data.iter_mut().collect(), scratch, |_, x: &mut u32| *x = 1);
            assert_eq!(data, [1; 100]);
            assert!((1..=100).contains(&made.into_inner()));
        }
    }
}
