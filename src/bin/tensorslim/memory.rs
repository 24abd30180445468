//! Counts the memory for `--memory-limit`. It decides from headers, before anything of that size is there: what does
//! not fit is refused with the least limit that would do.
//!
//! ```text
//!   limit  =  program   code, stacks and GEMM buffers of threads
//!          +  data      the fullest of these moments:
//!
//!   gather     the statistics so far, those of one more file with its waiting rows, two read buffers
//!   blend      the folds, the statistics of all but one, a fold as samples, a factorization     + the weight
//!   factor     the statistics and the plan of the factorization                       + the weight, or its tiles
//!   evaluate   the factors, a block of samples with its outputs, or the plain factorization     + the weight
//!   write      the factors in their form
//! ```
//!
//! Memory that one moment has freed must be given back before the next one: see
//! [`give_memory_back`](crate::process::give_memory_back).
//!
//! A limit on the address space (`ulimit -v`) is kept in the same way. Threads take much of the address space that
//! never becomes resident ([`Space`]).

use std::path::Path;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use tensorslim::calibration::Form as Kept;
use tensorslim::quality::{self, Comparison};
use tensorslim::{Calibration, CalibrationOptions, DType, Error, Factors, Scalar, TruncatedSvd};

use crate::args::Form;
use crate::failure::Failure;
use crate::process::{STACK, UNCOUNTED, address_space, addresses, buffers};
use crate::report::count;
use crate::samples::{FOLDS, Samples, Source};

/// The bytes of the program itself on [`THREADS`] threads, beside its data: code, stacks, buffers of the GEMM. A batch
/// of small weights has 10 to 15 MiB resident.
const PROGRAM: usize = 24 << 20;

/// The number of threads that are counted in [`PROGRAM`].
const THREADS: usize = 4;

/// The bytes of one more thread that multiplies: its buffers of the GEMM, of which few products fill so much.
const MULTIPLIES: usize = 2 << 20;

/// The bytes of one more thread that waits: the part of its stack that is used, and its arena.
const WAITS: usize = 64 << 10;

/// The bytes of a read buffer, where memory allows.
const BUFFER: usize = 32 << 20;

/// The fewest bytes of a read buffer, unless one line is longer.
const LEAST_BUFFER: usize = 256 << 10;

/// The limit of addresses, where they are limited.
#[derive(Clone, Copy)]
pub(crate) struct Space(Option<Bound>);

impl Space {
    /// Computes what is left by the threads of the pool, with their buffers, and by `pools` and `waiting` threads that
    /// will be started: those of other pools, which multiply too, and those that only wait.
    ///
    /// The threads of the pool get their buffers here, so that what they take is known.
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

/// The least bytes for data with which anything is begun.
const LEAST: usize = 1 << 20;

/// A limit, and the part of it that is not for data.
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

/// The tighter of the limits that were given: on resident memory, and on addresses.
pub(crate) struct Limit(Option<Bound>);

impl Limit {
    /// Makes the limit for a program of so many threads that multiply at a time, and so many that wait then.
    pub(crate) fn new(given: Option<usize>, (threads, waiting): (usize, usize), space: Space) -> Self {
        let more = threads.saturating_sub(THREADS);
        let other = PROGRAM + more * MULTIPLIES + (threads - more + waiting).saturating_sub(THREADS) * WAITS;
        let resident = given.map(|limit| Bound { limit, other });
        Limit(resident.into_iter().chain(space.0).min_by_key(Bound::data))
    }

    /// Refuses a limit that is too small for the program itself, on so many threads. Where the data are known, their
    /// refusal names the limit that would do.
    pub(crate) fn check_program(&self, threads: usize) -> Result<(), Failure> {
        let program = |e| Failure(format!("the program on {}: {}", count(threads, "thread"), Failure::from(e).0));
        self.check(LEAST).map_err(program)
    }

    pub(crate) fn is_given(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the bytes for data.
    pub(crate) fn data(&self) -> usize {
        self.0.map_or(usize::MAX, |bound| bound.data())
    }

    /// Refuses data of more bytes than the limit leaves.
    pub(crate) fn check(&self, bytes: usize) -> tensorslim::Result<()> {
        match self.0 {
            Some(Bound { limit, other }) if bytes > self.data() => {
                Err(Error::Memory { limit, least: bytes.saturating_add(other) })
            }
            _ => Ok(()),
        }
    }

    /// Turns the error of a part that had what `beside` left into one of the limit that was given.
    pub(crate) fn restated(&self, beside: usize) -> impl Fn(Error) -> Error {
        let bound = self.0;
        move |e| match (e, bound) {
            (Error::Memory { least, .. }, Some(Bound { limit, other })) => {
                Error::Memory { limit, least: least.saturating_add(other).saturating_add(beside) }
            }
            (e, _) => e,
        }
    }

    /// Returns the bytes of a read buffer, of which there are two, for lines of `line` bytes beside `beside` bytes.
    pub(crate) fn buffer(&self, beside: usize, line: usize) -> usize {
        let most = self.0.map_or(BUFFER, |bound| BUFFER.min(bound.limit / 16));
        most.min(self.data().saturating_sub(beside) / 2).max(LEAST_BUFFER).max(line)
    }
}

/// Returns the bytes of the two smallest read buffers for lines of `line` bytes.
fn least_buffers(line: usize) -> usize {
    2 * LEAST_BUFFER.max(line)
}

/// Returns the bytes of statistics of n features that have no rows waiting.
pub(crate) fn settled(n: usize) -> usize {
    n.saturating_add(3).saturating_mul(n).saturating_mul(size_of::<f64>())
}

/// Returns the refusal of statistics that the system has no memory for.
pub(crate) fn too_large(path: &Path, n: usize) -> Failure {
    let (path, bytes) = (path.display(), crate::report::bytes(settled(n)));
    Failure(format!(
        "{path}: statistics of {n} features take {bytes}, more than there is memory; rows must be samples: transpose the file if it \
         lies the other way round"
    ))
}

/// The most bytes that gathering statistics takes.
pub(crate) struct Gathering {
    /// The bytes without read buffers.
    pub(crate) work: usize,
    /// The bytes with the smallest read buffers.
    pub(crate) least: usize,
}

impl Gathering {
    /// Counts the bytes for all sources, gathered with these options in `parts` parts of each, beside `beside` bytes.
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
                // These are the bytes that are read, what is made of them, and two factors in one QR.
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

/// Returns the bytes of a state of a pass over samples of n features while it is saved or resumed: both statistics as
/// bytes, and one of them as numbers once more.
pub(crate) fn saving(n: usize) -> usize {
    settled(n).saturating_mul(2).saturating_add(1 << 20)
}

/// Returns the bytes of the choice of a blend, with the parts of the samples: those held during the factorizations, and
/// those that it takes at other times.
pub(crate) fn blending<T: Scalar>(shape: (usize, usize), storage: DType, k: usize) -> (usize, usize) {
    let (held, work) = TruncatedSvd::blend_bytes::<T>(shape, storage, k);
    (FOLDS.saturating_mul(settled(shape.1)).saturating_add(held), work)
}

/// Returns the bytes of factors of rank k.
pub(crate) fn factors<T: Scalar>((m, n): (usize, usize), k: usize) -> usize {
    (m + n + 1) * k * size_of::<T>()
}

/// Returns the bytes of a comparison of factors of rank k on samples, beside the weight and the factors: without read
/// buffers and with the smallest.
pub(crate) fn comparing<T: Scalar>(shape: (usize, usize), storage: DType, k: usize, x: &Samples) -> (usize, usize) {
    let work = Comparison::<T>::bytes(shape, storage, k, x.rows()) + x.whole();
    (work, work + least_buffers(x.line()))
}

/// Returns the bytes of a read buffer for a comparison: whole blocks of samples where there is room, so that the sums
/// are those of all samples at once.
pub(crate) fn comparing_buffer(limit: &Limit, beside: usize, line: usize) -> usize {
    let buffer = limit.buffer(beside, line);
    let block = quality::BLOCK * line;
    if buffer >= block { buffer / block * block } else { buffer }
}

/// Returns the bytes that factors of rank k take in their form while it is made and written.
pub(crate) fn writing<T: Scalar>((m, n): (usize, usize), k: usize, form: Form) -> usize {
    let plain = factors::<T>((m, n), k);
    plain
        + (1 << 20)
        + match form {
            Form::Svd => 0,
            Form::Split => plain,
            // These are Uᵀ, the combinations of its rows twice, and Vᵀ with its combinations, in f64.
            Form::Pivot => plain + (3 * m + 2 * n + 2 * k) * k * size_of::<f64>(),
        }
}

/// Returns the bytes of forming a residual beside the weight and the residual: the factors, and blocks of rows.
pub(crate) fn residual<T: Scalar>((m, n): (usize, usize), k: usize) -> usize {
    factors::<T>((m, n), k) + Factors::<T>::residual_bytes(n, k, rayon::current_num_threads())
}

/// Returns the refusal of a weight that would do in tiles, but for an option that needs it whole.
pub(crate) fn needed_whole(path: &Path, option: &str) -> impl Fn(Error) -> Failure {
    move |e| Failure(format!("{}: {e}, as {option} needs the weight whole", path.display()))
}
