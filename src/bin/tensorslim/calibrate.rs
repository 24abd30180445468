//! `tensorslim calibrate`: inputs of a layer, and statistics of other inputs, into one file of statistics.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use tensorslim::calibration::{Accumulation, Form, NonFinite};
use tensorslim::svd::READ_PER_STATE;
use tensorslim::{Calibration, CalibrationOptions, Error};

use crate::args::CalibrateArgs;
use crate::memory::{self, Gathering, Limit, Space};
use crate::report::{bytes, peak_rss, table};
use crate::samples::{Samples, Source};
use crate::state::StateFile;
use crate::{Failure, about, emit, guard, inputs, on_threads, writer};

/// Parts of the samples that `--blend auto` keeps aside, one after the other.
pub(crate) const FOLDS: usize = 4;

/// What was done. The names of the fields are those of the JSON object.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    files: Vec<String>,
    features: usize,
    samples: u64,
    skipped: u64,
    /// Features that are zero in all samples.
    dead: usize,
    form: &'static str,
    accumulation: &'static str,
    elapsed_ms: f64,
    written: String,
    bytes: usize,
    peak_rss_bytes: Option<usize>,
}

pub(crate) fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    on_threads(args.threads, || calibrate(args))
}

fn calibrate(args: &CalibrateArgs) -> Result<(), Failure> {
    let start = Instant::now();
    let limit = Limit::new(args.memory_limit, (rayon::current_num_threads(), 0), Space::new(0, 0)?);
    let options = CalibrationOptions {
        form: if args.factor { Form::Factor } else { Form::Gram },
        accumulation: if args.fast { Accumulation::F32 } else { Accumulation::F64 },
        non_finite: if args.skip_non_finite { NonFinite::Skip } else { NonFinite::Refuse },
    };
    let outputs: Vec<PathBuf> = args.checkpoint.iter().chain([&args.out]).cloned().collect();
    guard::apart(&outputs, &args.inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let is_ours = |start: &[u8]| start.starts_with(&Calibration::MAGIC);
    guard::replaceable(&args.out, "a file of statistics", is_ours, args.overwrite)?;
    let keep = args.checkpoint.as_deref().map(|path| Keep::new(args, path, options)).transpose()?;
    let sources = args.inputs.iter().map(|path| Source::open(path, args.bf16)).collect::<Result<Vec<_>, _>>()?;
    let widest =
        sources.iter().max_by_key(|source| source.features()).expect("the command line asks for a file at least");
    let most = widest.features();
    let saving = if keep.is_some() { memory::saving(most) } else { 0 };
    let gathering = Gathering::new(&sources, options, 1, saving)?;
    // Whatever was read, in the end there are the statistics and their bytes.
    limit.check(gathering.least.max(memory::saving(most))).map_err(about(widest.path()))?;
    let total = gather(&sources, options, &Room { limit: &limit, beside: gathering.work }, keep.as_ref())?;
    let contents = total.to_bytes();
    writer::put(&args.out, &[&contents])?;
    if let Some(Keep(state)) = keep {
        state.remove();
    }
    let options = total.options();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        files: args.inputs.iter().map(|path| path.display().to_string()).collect(),
        features: total.features(),
        samples: total.samples(),
        skipped: total.skipped(),
        dead: total.dead().count(),
        form: if options.form == Form::Gram { "gram" } else { "factor" },
        accumulation: if options.accumulation == Accumulation::F64 { "f64" } else { "f32" },
        elapsed_ms: start.elapsed().as_secs_f64() * 1e3,
        written: args.out.display().to_string(),
        bytes: contents.len(),
        peak_rss_bytes: peak_rss(),
    };
    if args.json {
        let text =
            serde_json::to_string(&report).map_err(|e| Failure(format!("the report does not serialize: {e}")))?;
        return emit(&(text + "\n"));
    }
    let skipped =
        if report.skipped > 0 { format!(" ({} not finite, left out)", report.skipped) } else { String::new() };
    emit(&table(&[
        ("inputs", report.files.join(", ")),
        ("samples", format!("{}{skipped}", report.samples)),
        ("features", format!("{}, {} of them always zero", report.features, report.dead)),
        ("statistics", format!("{}, accumulated in {}", report.form, report.accumulation)),
        ("time", format!("{:.1} ms", report.elapsed_ms)),
        ("written", format!("{}, {}", report.written, bytes(report.bytes))),
    ]))
}

/// The statistics of all sources together.
pub(crate) fn read(sources: &[Source], options: CalibrationOptions, room: &Room<'_>) -> Result<Calibration, Failure> {
    gather(sources, options, room, None)
}

/// How far a run is: the statistics of the files that are through, and of the first rows of the next one.
#[derive(Default)]
struct State {
    files: usize,
    total: Option<Calibration>,
    rows: usize,
    part: Option<Calibration>,
}

/// Where that is kept.
struct Keep(StateFile);

impl Keep {
    /// Of the inputs as they are now, and the options.
    fn new(args: &CalibrateArgs, path: &Path, options: CalibrationOptions) -> Result<Self, Failure> {
        let stamps =
            args.inputs.iter().map(|path| Ok((path, inputs::stamp(path)?))).collect::<Result<Vec<_>, Error>>()?;
        let of = format!("statistics {} {options:?} {stamps:?}", env!("CARGO_PKG_VERSION"));
        StateFile::named(path, &of, args.overwrite).map(Keep)
    }

    /// What was saved, if it is of these inputs and options and whole.
    fn load(&self) -> Option<State> {
        let bytes = self.0.read()?;
        let mut rest = &bytes[..];
        let mut number = || {
            let (head, tail) = rest.split_first_chunk::<8>()?;
            rest = tail;
            usize::try_from(u64::from_le_bytes(*head)).ok()
        };
        let (files, rows, length) = (number()?, number()?, number()?);
        let (total, part) = rest.split_at_checked(length)?;
        let statistics = |bytes: &[u8]| match bytes {
            [] => Some(None),
            _ => Calibration::from_bytes(bytes).ok().map(Some),
        };
        Some(State { files, total: statistics(total)?, rows, part: statistics(part)? })
    }

    /// Saves a state, and takes the statistics of the file that is being read as they were written: a run that goes on from there ends in the same bits.
    fn save(&self, state: &mut State) -> tensorslim::Result<()> {
        let bytes = |c: &Option<Calibration>| c.as_ref().map_or(Vec::new(), Calibration::to_bytes);
        let (total, part) = (bytes(&state.total), bytes(&state.part));
        let numbers = [state.files, state.rows, total.len()].map(|x| (x as u64).to_le_bytes()).concat();
        self.0.write(&[&numbers, &total, &part]);
        if !part.is_empty() {
            state.part = Some(Calibration::from_bytes(&part)?);
        }
        Ok(())
    }
}

/// Where files are read.
pub(crate) struct Room<'a> {
    pub(crate) limit: &'a Limit,
    /// Bytes that are held meanwhile at most, but for read buffers: see [`Gathering`].
    pub(crate) beside: usize,
}

fn gather(
    sources: &[Source],
    options: CalibrationOptions,
    room: &Room<'_>,
    keep: Option<&Keep>,
) -> Result<Calibration, Failure> {
    let mut state = keep.and_then(Keep::load).unwrap_or_default();
    for source in sources.iter().skip(state.files) {
        let path = source.path();
        let mut next = match source {
            Source::Statistics { .. } => statistics(path)?,
            Source::Samples(samples) => {
                samples_of(samples, options, room, &mut state, keep)?;
                state.part.take().expect("what was read is there")
            }
        };
        // Rows that wait would be taken in on a copy.
        next.settle();
        match &mut state.total {
            None => state.total = Some(next),
            Some(total) => total.merge(&next).map_err(about(path))?,
        }
        (state.files, state.rows) = (state.files + 1, 0);
        if let Some(keep) = keep {
            keep.save(&mut state)?;
        }
    }
    Ok(state.total.expect("the command line asks for a file at least"))
}

/// Statistics of no samples yet.
fn none(path: &Path, features: usize, options: CalibrationOptions) -> Result<Calibration, Failure> {
    Calibration::with(features, options).map_err(|e| match e {
        Error::TooLarge { .. } => memory::too_large(path, features),
        e => about(path)(e),
    })
}

/// The rows of a file into `state.part`, from row `state.rows` on.
fn samples_of(
    samples: &Samples,
    options: CalibrationOptions,
    room: &Room<'_>,
    state: &mut State,
    keep: Option<&Keep>,
) -> Result<(), Failure> {
    let features = samples.features();
    if state.part.is_none() {
        state.part = Some(none(samples.path(), features, options)?);
    }
    let line = samples.line();
    // The bytes of a state are those of a triangle, nearly.
    let (mut unsaved, every) = (0, READ_PER_STATE * 4 * features * features);
    samples.for_each(state.rows..samples.rows(), room.limit.buffer(room.beside, line), |first, rows| {
        let count = rows.shape()[0];
        state.part.as_mut().expect("made above").update(&rows)?;
        state.rows = first + count;
        unsaved += count * line;
        if let Some(keep) = keep.filter(|_| unsaved >= every) {
            unsaved = 0;
            keep.save(state)?;
        }
        Ok(())
    })
}

/// The samples of all files in [`FOLDS`] parts, each with its share of every file.
pub(crate) fn read_folds(
    sources: &[Source],
    options: CalibrationOptions,
    room: &Room<'_>,
) -> Result<Vec<Calibration>, Failure> {
    let mut total: Vec<Calibration> = Vec::new();
    for source in sources {
        let path = source.path();
        let Source::Samples(samples) = source else {
            let why = "holds statistics, no samples to keep some of aside; --blend auto needs the .npy files";
            return Err(Failure(format!("{}: {why}", path.display())));
        };
        if samples.rows() < 2 {
            let why =
                "holds one sample; --blend auto keeps a part of the samples of each file aside, and needs two at least";
            return Err(Failure(format!("{}: {why}", path.display())));
        }
        // A file of fewer samples than parts gives to the first ones.
        let mut add = |i: usize, next: Calibration| match total.get_mut(i) {
            Some(fold) => fold.merge(&next),
            None => {
                total.push(next);
                Ok(())
            }
        };
        if !samples.is_in_blocks() {
            samples.read(|x| {
                let folds = Calibration::folds(x, FOLDS, options)?;
                folds.into_iter().enumerate().try_for_each(|(i, mut fold)| {
                    fold.settle();
                    add(i, fold)
                })
            })?;
            continue;
        }
        let (rows, count) = (samples.rows(), FOLDS.min(samples.rows()));
        let buffer = room.limit.buffer(room.beside, samples.line());
        for i in 0..count {
            let mut fold = none(path, samples.features(), options)?;
            samples.for_each(i * rows / count..(i + 1) * rows / count, buffer, |_, rows| fold.update(&rows))?;
            fold.settle();
            add(i, fold).map_err(about(path))?;
        }
    }
    Ok(total)
}

/// The statistics in a file of them.
pub(crate) fn statistics(path: &Path) -> Result<Calibration, Failure> {
    let contents = std::fs::read(path)
        .map_err(|e| Failure::from(Error::file(path, format_args!("cannot be read: {e}; check the path"))))?;
    Calibration::from_bytes(&contents).map_err(about(path))
}
