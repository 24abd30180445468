//! `tensorslim calibrate`: inputs of a layer, and statistics of other inputs, into one file of statistics.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::ThreadPoolBuilder;
use serde::Serialize;
use tensorslim::calibration::{Accumulation, Form, NonFinite};
use tensorslim::{Calibration, CalibrationOptions, Error};

use crate::args::CalibrateArgs;
use crate::report::{bytes, table};
use crate::{Failure, about, emit, factor, output};

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
    let total = read(&args.inputs, args.bf16, options)?;
    let contents = total.to_bytes();
    output::replace_bytes(&args.out, &contents)?;
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

/// The statistics of all files together, each of samples (.npy) or of statistics.
pub(crate) fn read(paths: &[PathBuf], bf16: bool, options: CalibrationOptions) -> Result<Calibration, Failure> {
    let mut total: Option<Calibration> = None;
    for path in paths {
        let next = match statistics(path)? {
            Some(statistics) => statistics,
            None => folds(path, bf16, options, 1)?.remove(0),
        };
        match &mut total {
            None => total = Some(next),
            Some(total) => total.merge(&next).map_err(about(path))?,
        }
    }
    Ok(total.expect("the command line asks for a file at least"))
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
    Calibration::folds(&x, count, options).map_err(about(path))
}
