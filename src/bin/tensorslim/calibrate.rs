//! The command `tensorslim calibrate`: gathers inputs of a layer, and statistics of other inputs, into one file of
//! statistics.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use tensorslim::calibration::{Accumulation, Form, NonFinite};
use tensorslim::{Calibration, CalibrationOptions};

use crate::args::CalibrateArgs;
use crate::failure::{Failure, about, emit};
use crate::gather::{Keep, Room, gather};
use crate::memory::{self, Gathering, Limit, Space};
use crate::pool::on_threads;
use crate::process::peak_rss;
use crate::report::{bytes, table};
use crate::samples::Source;
use crate::{guard, writer};

/// The report of what was done. The names of the fields are those of the JSON object.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    files: Vec<String>,
    features: usize,
    samples: u64,
    skipped: u64,
    /// The number of features that are zero in all samples.
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

/// Runs `calibrate`: adds up the samples of all files, with checkpoints, and writes the statistics.
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
    if let Some(keep) = keep {
        keep.remove();
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
