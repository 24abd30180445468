//! Work in pieces that are not numbers: what is split among threads, what is done at the same time, what is waited for.
//!
//! The functions are generic over what they hand on and call those beneath them, which are not.

use faer::Par;

use super::Threads;
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

#[cfg(test)]
mod tests {
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
}
