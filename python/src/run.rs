//! Runs work of the crate without Python's lock: on which threads, and how Ctrl-C and progress get through.

use std::panic;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tensorslim::operator::{Cancel, Watch};
use tensorslim::{Error, Result};

use crate::error::raise;
use crate::memory::OwnPages;

/// Elements of a matrix from which on a call looks for Ctrl-C: it then takes some milliseconds or more, and the thread
/// that this needs costs some twenty microseconds.
const LONG: usize = 1 << 20;

/// The time between two looks at signals.
const LOOK: Duration = Duration::from_millis(50);

/// The pool in use, with the process that made it and the number of threads that was asked for (0: one per core).
/// Without one it is rayon's own.
static POOL: RwLock<Option<(u32, usize, Arc<ThreadPool>)>> = RwLock::new(None);
/// The process in which the module was imported.
static HOME: AtomicU64 = AtomicU64::new(0);

/// Notes the process, whose pool a fork of it does not have.
pub(crate) fn start() {
    HOME.store(process::id().into(), Ordering::Relaxed);
}

/// Sets the number of threads; 0 means one per core.
pub(crate) fn set_threads(count: usize) -> Result<()> {
    let built = ThreadPoolBuilder::new().num_threads(count).build();
    let pool = built.map_err(|error| Error::Internal { what: error.to_string() })?;
    *POOL.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some((process::id(), count, Arc::new(pool)));
    Ok(())
}

/// Returns the number of threads that work of the crate is spread over.
pub(crate) fn threads() -> usize {
    pool().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
}

/// Returns the pool to run in, or `None` for rayon's own. After a fork it is a new one: the threads of a pool stay in
/// the process that made it, and whoever waits for them in another waits for ever.
fn pool() -> Option<Arc<ThreadPool>> {
    let me = process::id();
    let count = match POOL.read().unwrap_or_else(|poisoned| poisoned.into_inner()).as_ref() {
        Some((owner, _, pool)) if *owner == me => return Some(pool.clone()),
        Some((_, count, _)) => *count,
        None if HOME.load(Ordering::Relaxed) == u64::from(me) => return None,
        None => 0,
    };
    set_threads(count).ok()?;
    pool()
}

/// Runs `work` on the pool.
pub(crate) fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match pool() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// Runs work that cannot be cancelled, without Python's lock.
pub(crate) fn run<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| on_pool(work)).map_err(raise)
}

/// Runs work on a matrix of `size` elements, without Python's lock. Long work is cancelled by Ctrl-C and by an
/// exception of `progress`, which is called with the bytes that were read so far.
pub(crate) fn run_watched<T: Send>(
    py: Python<'_>,
    size: usize,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&Watch<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    if size < LONG && progress.is_none() {
        return run(py, || work(&Watch::default()));
    }
    let _pages = OwnPages::of(size);
    let (cancel, read) = (Cancel::new(), AtomicU64::new(0));
    let look = || {
        Python::attach(|py| {
            py.check_signals()?;
            let call = |progress: &Py<PyAny>| progress.call1(py, (read.load(Ordering::Relaxed),)).map(drop);
            progress.as_ref().map_or(Ok(()), call)
        })
    };
    let (result, mut stopped) = py.detach(|| {
        thread::scope(|scope| {
            let (running, wait) = mpsc::channel::<()>();
            let cancel = &cancel;
            let count = |bytes| {
                read.fetch_add(bytes, Ordering::Relaxed);
            };
            let worker = scope.spawn(move || {
                // The sender goes with the thread: its end is what the loop below waits for.
                let _running = running;
                // Inside of the pool from the start: the GEMM keeps buffers for each thread, and those of this one would
                // go with it.
                on_pool(|| rayon::scope(|_| work(&Watch::new(cancel.clone()).on_read(&count))))
            });
            let mut stopped = None;
            while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(LOOK) {
                if stopped.is_none() {
                    stopped = look().err();
                    stopped.iter().for_each(|_| cancel.cancel());
                }
            }
            let result = worker.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked));
            (result, stopped)
        })
    });
    if stopped.is_none() {
        stopped = look().err();
    }
    match stopped {
        Some(error) => Err(error),
        None => result.map_err(raise),
    }
}
