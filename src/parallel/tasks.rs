//! Work in pieces that are not numbers: what is split among threads, what is done at the same time, what is waited for.
//!
//! The functions are generic over what they hand on and call those beneath them, which are not.

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

/// The threads of the current pool, as faer's algorithms take them.
pub(crate) fn current_par() -> Par {
    match super::count() {
        1 => Par::Seq,
        threads => Par::rayon(threads),
    }
}

/// `task` of each item, each a piece of work of its own, in any order; in theirs on one thread.
pub(crate) fn for_each_of<I: Send>(threads: impl Into<Threads>, items: Vec<I>, task: impl Fn(I) + Sync) {
    split(threads.into(), items, 1, || (), |(), item| task(item));
}

/// As [`for_each_of`], for many small items: they are handed out in ranges, each with a `scratch` of its own.
pub(crate) fn for_each_with<I: Send, S>(
    threads: impl Into<Threads>,
    items: Vec<I>,
    scratch: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, I) + Sync,
) {
    split(threads.into(), items, usize::MAX, scratch, task);
}

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
    // A lock that nobody else ever holds: each item is taken once.
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    for_ranges(threads, items.len(), longest, &|range| {
        let mut scratch = scratch();
        for item in &items[range] {
            let item = lock(item).take();
            task(&mut scratch, item.expect("it is taken once"));
        }
    });
}

/// The rows of a matrix, so many at a time, each block with the number of its first row.
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

/// The results of `task` for each of `0..count`, in this order.
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

/// Both, at the same time if there are threads for it.
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

fn fork(a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
    rayon::join(a, b);
}

/// `f` from inside of the current pool, if it is to run on threads: called from outside, every parallel step of it would
/// wake the pool anew and put the caller to sleep.
pub(crate) fn in_pool<R: Send>(threads: impl Into<Threads>, f: impl FnOnce() -> R + Send) -> R {
    if threads.into() == Threads::One || rayon::current_thread_index().is_some() {
        return f();
    }
    let mut f = Pending::Work(f);
    enter(&mut || f.call());
    f.result()
}

fn enter(f: &mut (dyn FnMut() + Send)) {
    rayon::scope(|_| f());
}

/// `f` in a pool of its own of so many threads; in the current one, which gives the same bits, where they cannot be had.
pub(crate) fn in_new_pool(threads: usize, f: &(dyn Fn() + Sync)) {
    match rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build() {
        Ok(pool) => pool.install(f),
        Err(_) => f(),
    }
}

/// `work` on another thread, if there is one, while this one does `here`, which need not be able to move between threads.
///
/// # Errors
/// What `here` returns, after `work` has ended.
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

fn spawn_beside(work: &mut (dyn FnMut() + Send), here: &mut dyn FnMut()) {
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| work());
        here();
    });
}

/// A function that is to be called once, or what it returned: what passes through `&mut dyn FnMut()`.
enum Pending<F, R> {
    Work(F),
    Called,
    Done(R),
}

impl<R, F: FnOnce() -> R> Pending<F, R> {
    fn call(&mut self) {
        if let Pending::Work(f) = std::mem::replace(self, Pending::Called) {
            *self = Pending::Done(f());
        }
    }

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

/// What the mutex guards. A thread that panicked while it held it does not take it along: whoever waits for that thread
/// learns of the panic.
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
