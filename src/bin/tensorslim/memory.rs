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

use std::env;
use std::path::Path;
use std::process::Command;

use tensorslim::quality::{self, Comparison};
use tensorslim::{Calibration, CalibrationOptions, DType, Error, Scalar, TruncatedSvd};

use crate::Failure;
use crate::args::Form;
use crate::calibrate::FOLDS;
use crate::samples::{Samples, Source};

/// What the program itself takes on [`THREADS`] threads, beside its data: code, stacks, buffers of the GEMM. A batch of small weights has 10 to 15 MiB
/// resident.
const PROGRAM: usize = 24 << 20;

/// Threads that are counted in [`PROGRAM`].
const THREADS: usize = 4;

/// What a thread more takes: the part of its stack that is used, its arena, and its buffers of the GEMM.
const THREAD: usize = 64 << 10;

/// Bytes of a read buffer where memory allows.
const BUFFER: usize = 32 << 20;

/// Fewest bytes of a read buffer, but for one line.
const LEAST_BUFFER: usize = 256 << 10;

/// The environment variable that fixes from which size on the system's allocator (glibc) gives memory back at once, and that size.
const GIVE_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "262144");

/// Starts the program anew, in the same process, with an allocator that gives memory back when it is freed. By itself glibc raises the size from
/// which it does that up to 32 MiB, and keeps up to 64 MiB of what is smaller: enough to break the limit where moments with other sizes follow each
/// other. It reads the setting before the program starts, and takes it later from unsafe code alone. Without the setting the limit is kept less well.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_memory_back() {
    use std::os::unix::process::CommandExt;

    let (name, value) = GIVE_BACK;
    if env::var_os(name).is_some() {
        return;
    }
    let mut arguments = env::args_os();
    if let (Ok(program), Some(called)) = (env::current_exe(), arguments.next()) {
        // It returns only if it has failed.
        let _ = Command::new(program).arg0(called).args(arguments).env(name, value).exec();
    }
}

/// Allocators of other systems are as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_memory_back() {}

/// The limit that was given, if one was, and what of it is left for data.
pub(crate) struct Limit {
    given: Option<usize>,
    program: usize,
}

impl Limit {
    /// For a program of so many threads, those that only wait counted too.
    pub(crate) fn new(given: Option<usize>, threads: usize) -> Result<Self, Failure> {
        let limit = Limit { given, program: PROGRAM + threads.saturating_sub(THREADS) * THREAD };
        limit.check(1 << 20)?;
        Ok(limit)
    }

    /// No limit.
    pub(crate) fn none() -> Self {
        Limit { given: None, program: 0 }
    }

    pub(crate) fn is_given(&self) -> bool {
        self.given.is_some()
    }

    /// Bytes for data.
    pub(crate) fn data(&self) -> usize {
        self.given.map_or(usize::MAX, |given| given.saturating_sub(self.program))
    }

    /// Refuses data of more bytes.
    pub(crate) fn check(&self, bytes: usize) -> tensorslim::Result<()> {
        match self.given {
            Some(given) if bytes > self.data() => {
                Err(Error::Memory { limit: given, least: bytes.saturating_add(self.program) })
            }
            _ => Ok(()),
        }
    }

    /// The error of a part that had what `beside` left, as one of the limit that was given.
    pub(crate) fn restated(&self, beside: usize) -> impl Fn(Error) -> Error {
        let (given, more) = (self.given, self.program.saturating_add(beside));
        move |e| match (e, given) {
            (Error::Memory { least, .. }, Some(limit)) => Error::Memory { limit, least: least.saturating_add(more) },
            (e, _) => e,
        }
    }

    /// The bytes of a read buffer, of which there are two, for lines of `line` bytes beside `beside` bytes.
    pub(crate) fn buffer(&self, beside: usize, line: usize) -> usize {
        let most = self.given.map_or(BUFFER, |given| BUFFER.min(given / 16));
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
    /// Of all sources, in `parts` parts of each, beside `beside` bytes.
    pub(crate) fn new(sources: &[Source], parts: usize, beside: usize) -> Result<Self, Failure> {
        let mut total = Gathering { work: 0, least: 0 };
        for (i, source) in sources.iter().enumerate() {
            let n = source.features();
            let fed = Calibration::bytes_for(n, CalibrationOptions::default());
            let fed = fed.ok_or_else(|| too_large(source.path(), n))?;
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
