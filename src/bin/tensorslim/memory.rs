//! What `--memory-limit` counts. It is decided here, from headers, before anything of that size is there: what does not fit is refused with the least
//! limit that would do.
//!
//! ```text
//!   limit  =  program   code, stacks and GEMM buffers of threads
//!          +  data      the fullest of these moments:
//!
//!   gather     the statistics so far, those of one more file with its waiting rows, two read buffers
//!   blend      the folds, the statistics of all but one, a fold as samples, a factorization     + the weight
//!   factor     the statistics and the plan of the factorization                                 + the weight, or its tiles
//!   evaluate   the factors, a block of samples with its outputs, or the plain factorization     + the weight
//!   write      the factors in their form
//! ```
//!
//! What one moment has freed must be gone in the next one: see [`give_memory_back`].
//!
//! A limit on the address space (`ulimit -v`) is kept in the same way: of it, threads take much that never becomes resident ([`Space`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{env, process::Command};

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use tensorslim::calibration::Form as Kept;
use tensorslim::quality::{self, Comparison};
use tensorslim::{Calibration, CalibrationOptions, DType, Error, Scalar, TruncatedSvd};

use crate::Failure;
use crate::args::Form;
use crate::calibrate::FOLDS;
use crate::report::{count, status};
use crate::samples::{Samples, Source};

/// What the program itself takes on [`THREADS`] threads, beside its data: code, stacks, buffers of the GEMM. A batch of small weights has 10 to 15 MiB
/// resident.
const PROGRAM: usize = 24 << 20;

/// Threads that are counted in [`PROGRAM`].
const THREADS: usize = 4;

/// What a thread more takes that multiplies: its buffers of the GEMM, of which few products fill so much.
const MULTIPLIES: usize = 2 << 20;

/// What a thread more takes that waits: the part of its stack that is used, and its arena.
const WAITS: usize = 64 << 10;

/// Bytes of a read buffer where memory allows.
const BUFFER: usize = 32 << 20;

/// Fewest bytes of a read buffer, but for one line.
const LEAST_BUFFER: usize = 256 << 10;

/// The environment variables by which the system's allocator (glibc) is set: from which size on it gives memory back at once, and how many heaps it
/// keeps, each of which takes 64 MiB of addresses.
const GIVE_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "262144");
const ONE_HEAP: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Addresses of a thread's stack.
const STACK: usize = (2 << 20) + (64 << 10);

/// Addresses that are left for what nobody counts: the thread of signals, small heaps, directories that are read.
const UNCOUNTED: usize = 12 << 20;

/// Starts the program anew, in the same process, with an allocator that gives memory back when it is freed, where memory is limited. By itself glibc
/// raises the size from which it does that up to 32 MiB, and keeps up to 64 MiB of what is smaller: enough to break the limit where moments with other
/// sizes follow each other. It reads the setting before the program starts, and takes it later from unsafe code alone. Without the setting the limit
/// is kept less well.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_memory_back(is_limited: bool) {
    use std::os::unix::process::CommandExt;

    let addresses = address_space().is_some();
    let wanted = [(is_limited || addresses, GIVE_BACK), (addresses, ONE_HEAP)];
    let missing = |&(is_wanted, (name, _)): &(bool, (&str, &str))| is_wanted && env::var_os(name).is_none();
    let settings: Vec<(&str, &str)> = wanted.into_iter().filter(missing).map(|(_, setting)| setting).collect();
    if settings.is_empty() {
        return;
    }
    let mut arguments = env::args_os();
    if let (Ok(program), Some(called)) = (env::current_exe(), arguments.next()) {
        // It returns only if it has failed.
        let _ = Command::new(program).arg0(called).args(arguments).envs(settings).exec();
    }
}

/// Allocators of other systems are as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_memory_back(_: bool) {}

/// The most addresses that the process may use (`ulimit -v`), in bytes, if the system sets a limit and tells.
pub(crate) fn address_space() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Addresses in use, in bytes.
fn addresses() -> usize {
    status("VmSize:").unwrap_or(0)
}

/// Addresses that faer's GEMM takes on each thread that multiplies, about: two buffers as large as the last-level caches of the machine together. They
/// fill as far as they are used, and one that cannot be had ends the program.
fn buffers() -> usize {
    let cpus = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let caches = cpus.filter_map(|cpu| {
        let cache = cpu.path().join("cache/index3");
        let text = |name: &str| fs::read_to_string(cache.join(name)).ok();
        let kib: usize = text("size")?.trim().strip_suffix('K')?.parse().ok()?;
        Some((text("shared_cpu_list")?, kib << 10))
    });
    let all: BTreeMap<String, usize> = caches.collect();
    2 * if all.is_empty() { 64 << 20 } else { all.values().sum() }
}

/// Threads that a limited address space has room for, of those there would be by default; `None` without a limit.
pub(crate) fn threads() -> Option<usize> {
    // As much again for data, and for a batch's workers.
    let room = address_space()?.saturating_sub(addresses()) / 2;
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    Some((room / (STACK + buffers())).clamp(1, most))
}

/// Addresses, where they are limited.
#[derive(Clone, Copy)]
pub(crate) struct Space(Option<Bound>);

impl Space {
    /// What is left by the threads of the pool, with their buffers, and `pools` and `waiting` threads that will be started: those of other pools, which
    /// multiply too, and those that only wait.
    ///
    /// The threads of the pool get their buffers here, one knows then what they take.
    pub(crate) fn new(pools: usize, waiting: usize) -> Result<Self, Failure> {
        let Some(limit) = address_space() else { return Ok(Space(None)) };
        let (before, here) = (addresses(), rayon::current_num_threads());
        let more = |each: usize| pools * (each + STACK) + waiting * STACK + UNCOUNTED;
        let estimate = buffers();
        let least = before + here * estimate + more(estimate) + LEAST;
        if least > limit {
            return Err(Failure(format!(
                "{}, and {} of buffers for each, do not fit the limit of {limit} bytes on the address space; the least that would do is \
                 {least}; raise it (ulimit -v {}), or give fewer --threads",
                count(here + pools, "thread"),
                crate::report::bytes(estimate),
                least.div_ceil(1 << 10)
            )));
        }
        rayon::broadcast(|_| {
            let a = Mat::<f64>::full(256, 256, 1.0);
            let mut product = Mat::<f64>::zeros(256, 256);
            matmul(product.as_mut(), Accum::Replace, a.as_ref(), a.as_ref(), 1.0, Par::Seq);
        });
        let after = addresses();
        let each = after.saturating_sub(before).div_ceil(here);
        Ok(Space(Some(Bound { limit, other: after + more(each) })))
    }
}

/// Least bytes for data with which anything is begun.
const LEAST: usize = 1 << 20;

/// A limit, and what of it is not for data.
#[derive(Clone, Copy)]
struct Bound {
    limit: usize,
    other: usize,
}

impl Bound {
    fn data(&self) -> usize {
        self.limit.saturating_sub(self.other)
    }
}

/// The tighter of the limits that were given: on what is resident, and on addresses.
pub(crate) struct Limit(Option<Bound>);

impl Limit {
    /// For a program of so many threads that multiply at a time, and so many that wait then.
    pub(crate) fn new(given: Option<usize>, (threads, waiting): (usize, usize), space: Space) -> Self {
        let more = threads.saturating_sub(THREADS);
        let other = PROGRAM + more * MULTIPLIES + (threads - more + waiting).saturating_sub(THREADS) * WAITS;
        let resident = given.map(|limit| Bound { limit, other });
        Limit(resident.into_iter().chain(space.0).min_by_key(Bound::data))
    }

    /// Refuses a limit that is too small for the program itself, on so many threads; where data is known, the refusal of that has the limit that does.
    pub(crate) fn check_program(&self, threads: usize) -> Result<(), Failure> {
        let program = |e| Failure(format!("the program on {}: {}", count(threads, "thread"), Failure::from(e).0));
        self.check(LEAST).map_err(program)
    }

    pub(crate) fn is_given(&self) -> bool {
        self.0.is_some()
    }

    /// Bytes for data.
    pub(crate) fn data(&self) -> usize {
        self.0.map_or(usize::MAX, |bound| bound.data())
    }

    /// Refuses data of more bytes.
    pub(crate) fn check(&self, bytes: usize) -> tensorslim::Result<()> {
        match self.0 {
            Some(Bound { limit, other }) if bytes > self.data() => {
                Err(Error::Memory { limit, least: bytes.saturating_add(other) })
            }
            _ => Ok(()),
        }
    }

    /// The error of a part that had what `beside` left, as one of the limit that was given.
    pub(crate) fn restated(&self, beside: usize) -> impl Fn(Error) -> Error {
        let bound = self.0;
        move |e| match (e, bound) {
            (Error::Memory { least, .. }, Some(Bound { limit, other })) => {
                Error::Memory { limit, least: least.saturating_add(other).saturating_add(beside) }
            }
            (e, _) => e,
        }
    }

    /// The bytes of a read buffer, of which there are two, for lines of `line` bytes beside `beside` bytes.
    pub(crate) fn buffer(&self, beside: usize, line: usize) -> usize {
        let most = self.0.map_or(BUFFER, |bound| BUFFER.min(bound.limit / 16));
        most.min(self.data().saturating_sub(beside) / 2).max(LEAST_BUFFER).max(line)
    }
}

/// The two smallest read buffers for lines of `line` bytes.
fn least_buffers(line: usize) -> usize {
    2 * LEAST_BUFFER.max(line)
}

/// Statistics of n features that have no rows waiting.
pub(crate) fn settled(n: usize) -> usize {
    n.saturating_add(3).saturating_mul(n).saturating_mul(size_of::<f64>())
}

/// The refusal of statistics that the system has no memory for.
pub(crate) fn too_large(path: &Path, n: usize) -> Failure {
    let (path, bytes) = (path.display(), crate::report::bytes(settled(n)));
    Failure(format!(
        "{path}: statistics of {n} features take {bytes}, more than there is memory; rows must be samples: transpose the file if it \
         lies the other way round"
    ))
}

/// What gathering statistics takes at most.
pub(crate) struct Gathering {
    /// Without read buffers.
    pub(crate) work: usize,
    /// With the smallest ones.
    pub(crate) least: usize,
}

impl Gathering {
    /// Of all sources, gathered with these options in `parts` parts of each, beside `beside` bytes.
    pub(crate) fn new(
        sources: &[Source],
        options: CalibrationOptions,
        parts: usize,
        beside: usize,
    ) -> Result<Self, Failure> {
        let mut total = Gathering { work: 0, least: 0 };
        for (i, source) in sources.iter().enumerate() {
            let n = source.features();
            let fed = Calibration::bytes_for(n, options).ok_or_else(|| too_large(source.path(), n))?;
            // Two factors are merged by one QR.
            let fed = if options.form == Kept::Factor { fed.max(4 * settled(n)) } else { fed };
            let held = settled(n).saturating_mul(if i == 0 { parts - 1 } else { parts });
            let (work, buffers) = match source {
                // What is read, what is made of it, and two factors in one QR.
                Source::Statistics { bytes, factor, .. } => (bytes + settled(n) * if *factor { 4 } else { 1 }, 0),
                Source::Samples(samples) if samples.is_in_blocks() => (fed, least_buffers(samples.line())),
                Source::Samples(samples) => (fed.saturating_mul(parts).saturating_add(samples.whole()), 0),
            };
            let work = beside.saturating_add(held).saturating_add(work);
            total.work = total.work.max(work);
            total.least = total.least.max(work.saturating_add(buffers));
        }
        Ok(total)
    }
}

/// Bytes of a state of a pass over samples of n features while it is saved or taken up again: both statistics as bytes, and one of them as numbers once
/// more.
pub(crate) fn saving(n: usize) -> usize {
    settled(n).saturating_mul(2).saturating_add(1 << 20)
}

/// Bytes of the choice of a blend: with the parts of the samples, those that are held during the factorizations, and what it takes at other times.
pub(crate) fn blending<T: Scalar>(shape: (usize, usize), storage: DType, k: usize) -> (usize, usize) {
    let (held, work) = TruncatedSvd::blend_bytes::<T>(shape, storage, k);
    (FOLDS.saturating_mul(settled(shape.1)).saturating_add(held), work)
}

/// Bytes of factors of rank k.
pub(crate) fn factors<T: Scalar>((m, n): (usize, usize), k: usize) -> usize {
    (m + n + 1) * k * size_of::<T>()
}

/// Bytes of a comparison of factors of rank k on samples, beside the weight and the factors: without read buffers and with the smallest.
pub(crate) fn comparing<T: Scalar>(shape: (usize, usize), storage: DType, k: usize, x: &Samples) -> (usize, usize) {
    let work = Comparison::<T>::bytes(shape, storage, k, x.rows()) + x.whole();
    (work, work + least_buffers(x.line()))
}

/// Bytes of a read buffer for a comparison: whole blocks of samples where there is room, so that the sums are those of all samples at once.
pub(crate) fn comparing_buffer(limit: &Limit, beside: usize, line: usize) -> usize {
    let buffer = limit.buffer(beside, line);
    let block = quality::BLOCK * line;
    if buffer >= block { buffer / block * block } else { buffer }
}

/// Bytes that factors of rank k take in their form while it is made and written.
pub(crate) fn writing<T: Scalar>((m, n): (usize, usize), k: usize, form: Form) -> usize {
    let plain = factors::<T>((m, n), k);
    plain
        + (1 << 20)
        + match form {
            Form::Svd => 0,
            Form::Split => plain,
            // Uᵀ, the combinations of its rows twice and Vᵀ with its combinations, in f64.
            Form::Pivot => plain + (3 * m + 2 * n + 2 * k) * k * size_of::<f64>(),
        }
}

/// The refusal of a weight that would do in tiles, but for an option that needs it whole.
pub(crate) fn needed_whole(path: &Path, option: &str) -> impl Fn(Error) -> Failure {
    move |e| Failure(format!("{}: {e}, as {option} needs the weight whole", path.display()))
}
