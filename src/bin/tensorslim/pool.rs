//! Starts the threads of a run.

use rayon::ThreadPoolBuilder;

use crate::failure::Failure;
use crate::process;

/// The most threads of a run, by option or environment.
const MAX_THREADS: usize = 1024;

/// Runs `work` on a pool of so many threads. Without a number there are as many as `RAYON_NUM_THREADS` says, or as the
/// affinity mask and the cgroup's quota allow.
pub(crate) fn on_threads<R: Send>(
    threads: Option<u16>,
    work: impl FnOnce() -> Result<R, Failure> + Send,
) -> Result<R, Failure> {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse::<usize>().ok());
    let threads = match (threads, asked) {
        (Some(n), _) => n.into(),
        (None, Some(n)) if n > MAX_THREADS => {
            return Err(Failure(format!(
                "RAYON_NUM_THREADS = {n} is more than {MAX_THREADS}; give fewer, or --threads"
            )));
        }
        (None, Some(n)) => n,
        _ => process::threads().unwrap_or(0),
    };
    let count = if threads > 0 { threads.to_string() } else { "the default number of".to_owned() };
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Failure(format!("cannot start {count} threads: {e}; give fewer with --threads")))?.install(work)
}

/// Starts a thread that waits for signals.
pub(crate) fn beside(wait: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = std::thread::Builder::new().name("tensorslim-signals".into()).spawn(wait);
    started.map(drop).map_err(|e| Failure(format!("cannot start a thread for signals: {e}; raise the limit (ulimit)")))
}
