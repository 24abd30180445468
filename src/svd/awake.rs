//! The pool is kept awake while one factorization runs in it.
//!
//! ```text
//!   caller   | check | syrk | Cholesky, EVD: one thread | U | ...
//!   others   | work  | work | look for work ............ | work
//! ```
//!
//! A small factorization is a dozen parallel steps of 50 µs to a millisecond with sequential ones between them, in which the other
//! threads would fall asleep. On a virtual machine an idle core is given back to the host, and each waking costs some 0.1 ms: 1536×384 on
//! two cores that were at rest took 4.3 ms, and 3.4 while another program's threads kept the second core busy. OpenMP
//! and the BLAS libraries spin for the same reason.
//!
//! A thread that spins takes whatever work comes up in the pool. It ends with the factorization, after [`IDLE`] without work, and as
//! soon as a second factorization is under way, whose work is none of this one's.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longer than the sequential steps of a small factorization. Also the most that a thread can be held up that comes upon the spinning
/// task while it waits for something else.
const IDLE: Duration = Duration::from_millis(2);
/// Between two looks: about a microsecond.
const PAUSES: usize = 32;

/// Factorizations that were called from outside of any pool.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// One of [`CALLS`], as long as it lives.
struct Call;

impl Call {
    fn begin() -> Self {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Call
    }

    fn is_alone() -> bool {
        CALLS.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends the spinning, by panic too.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `f` in the current pool, to be called from outside of it.
pub(super) fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let _call = Call::begin();
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let caller = rayon::current_thread_index();
        for _ in 1..rayon::current_num_threads() {
            // The caller's own thread may come upon the task while it waits, and must not.
            scope.spawn(|_| {
                if rayon::current_thread_index() != caller {
                    spin(&done);
                }
            });
        }
        let _done = Done(&done);
        f()
    })
}

fn spin(done: &AtomicBool) {
    let mut last = Instant::now();
    while !done.load(Ordering::Relaxed) && Call::is_alone() {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            last = Instant::now();
        } else if last.elapsed() > IDLE {
            return;
        } else {
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }
}
