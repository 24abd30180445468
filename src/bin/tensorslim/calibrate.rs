//! `tensorslim calibrate`: inputs of a layer, and statistics of other inputs, into one file of statistics.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::ThreadPoolBuilder;
use serde::Serialize;
use tensorslim::calibration::{Accumulation, Form, NonFinite};
use tensorslim::npy::Stream;
use tensorslim::operator::{self, ReadParams, RowSource, Watch};
use tensorslim::svd::READ_PER_STATE;
use tensorslim::{Calibration, CalibrationOptions, Error};

use crate::args::CalibrateArgs;
use crate::report::{bytes, table};
use crate::state::StateFile;
use crate::{Failure, about, emit, factor, guard, inputs, writer};

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
}

pub(crate) fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let work = || calibrate(args);
    match args.threads {
        None => work(),
        Some(n) => ThreadPoolBuilder::new()
            .num_threads(n.into())
            .build()
            .map_err(|e| Failure(format!("cannot start {n} threads: {e}")))?
            .install(work),
    }
}

fn calibrate(args: &CalibrateArgs) -> Result<(), Failure> {
    let start = Instant::now();
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
    let total = gather(&args.inputs, args.bf16, options, ReadParams::default().bytes, keep.as_ref())?;
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

/// The statistics of all files together, each of samples (.npy) or of statistics; samples are read in two buffers of `buffer` bytes.
pub(crate) fn read(
    paths: &[PathBuf],
    bf16: bool,
    options: CalibrationOptions,
    buffer: usize,
) -> Result<Calibration, Failure> {
    gather(paths, bf16, options, buffer, None)
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

fn gather(
    paths: &[PathBuf],
    bf16: bool,
    options: CalibrationOptions,
    buffer: usize,
    keep: Option<&Keep>,
) -> Result<Calibration, Failure> {
    let mut state = keep.and_then(Keep::load).unwrap_or_default();
    for path in paths.iter().skip(state.files) {
        let next = match statistics(path)? {
            Some(statistics) => statistics,
            None => match lines(path, bf16) {
                Some(mut stream) => {
                    in_blocks(&mut stream, options, buffer, &mut state, keep).map_err(about(path))?;
                    state.part.take().expect("what was read is there")
                }
                None => folds(path, bf16, options, 1)?.remove(0),
            },
        };
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

/// The file as a source of rows, if it is one: samples of two axes, one after the other.
fn lines(path: &Path, bf16: bool) -> Option<Stream> {
    inputs::stream(path, bf16).ok().filter(|stream| stream.dims().len() == 2 && !stream.is_column_major())
}

/// The rows of a file of any size into `state.part`, from row `state.rows` on, in two buffers.
fn in_blocks(
    stream: &mut Stream,
    options: CalibrationOptions,
    buffer: usize,
    state: &mut State,
    keep: Option<&Keep>,
) -> tensorslim::Result<()> {
    let features = RowSource::shape(stream).1;
    if state.part.is_none() {
        state.part = Some(Calibration::with(features, options)?);
    }
    let line = features * stream.dtype().size();
    // The bytes of a state are those of a triangle, nearly.
    let (mut unsaved, every) = (0, READ_PER_STATE * 4 * features * features);
    operator::stream(stream, state.rows, buffer, &Watch::default(), |first, rows| {
        let count = rows.shape()[0];
        let part = state.part.as_mut().expect("made above");
        part.update(&rows).map_err(|e| match e {
            Error::NotFinite { row, col, value } => Error::NotFinite { row: first + row, col, value },
            e => e,
        })?;
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
    paths: &[PathBuf],
    bf16: bool,
    options: CalibrationOptions,
) -> Result<Vec<Calibration>, Failure> {
    let mut total: Vec<Calibration> = Vec::new();
    for path in paths {
        if statistics(path)?.is_some() {
            let why = "holds statistics, no samples to keep some of aside; --blend auto needs the .npy files";
            return Err(Failure(format!("{}: {why}", path.display())));
        }
        let next = folds(path, bf16, options, FOLDS)?;
        if total.is_empty() {
            total = next;
        } else {
            // A file of fewer samples than parts gives to the first ones.
            for (total, next) in total.iter_mut().zip(&next) {
                total.merge(next).map_err(about(path))?;
            }
        }
    }
    Ok(total)
}

/// The file's statistics, if that is what it holds.
fn statistics(path: &Path) -> Result<Option<Calibration>, Failure> {
    let unreadable =
        |e: std::io::Error| Failure::from(Error::file(path, format!("cannot be read: {e}; check the path")));
    if !path.is_file() {
        return Ok(None); // the reader of .npy files says what is wrong
    }
    let mut file = File::open(path).map_err(unreadable)?;
    let mut contents = Vec::new();
    file.by_ref().take(8).read_to_end(&mut contents).map_err(unreadable)?;
    if contents != Calibration::MAGIC {
        return Ok(None);
    }
    file.read_to_end(&mut contents).map_err(unreadable)?;
    Calibration::from_bytes(&contents).map(Some).map_err(about(path))
}

/// The samples of a .npy file, all axes but the last as rows.
fn folds(path: &Path, bf16: bool, options: CalibrationOptions, count: usize) -> Result<Vec<Calibration>, Failure> {
    let file = factor::read(path, bf16)?;
    let tensor = file.tensor().map_err(about(path))?;
    let x = factor::matrix(path, &tensor, tensor.shape().len().saturating_sub(1))?;
    if count == 1 {
        let mut c = Calibration::with(x.shape()[1], options).map_err(about(path))?;
        c.update(&x).map_err(about(path))?;
        return Ok(vec![c]);
    }
    if x.shape()[0] < 2 {
        let why =
            "holds one sample; --blend auto keeps a part of the samples of each file aside, and needs two at least";
        return Err(Failure(format!("{}: {why}", path.display())));
    }
    Calibration::folds(&x, count, options).map_err(about(path))
}
