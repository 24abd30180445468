//! The command `tensorslim bench`: compares SRHT, Gaussian and sparse sign sketches.
//!
//! ```text
//!   matrices.rs   made matrices, optimum known        results.rs   what was measured, as plain data
//!   measure.rs    rounds, checks, ratios              words.rs     what the numbers say
//!   tables.rs     tables for terminal and page, CSV   plots.rs  page.rs   SVG, HTML
//!   record.rs     our methods and their peers in other languages, as recorded
//! ```
//!
//! Files that cannot be measured are refused before the first minute is spent.

mod matrices;
mod measure;
mod page;
mod plots;
mod record;
mod results;
mod tables;
mod words;

pub(crate) use tables::escape;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use faer::Par;
use indicatif::{ProgressBar, ProgressStyle};
use tensorslim::npy::Array;
use tensorslim::operator::Dense;
use tensorslim::simd;

use crate::args::{BenchArgs, LEAST_SIDE};
use crate::arrays::{matrix, read};
use crate::failure::{Failure, about, emit};
use crate::pool::on_threads;
use crate::{guard, output};
use matrices::Spectrum;
use measure::{Effort, Measured, SWEEPS, Weight};
use results::{Case, Machine, STATE_SIZES, Settings, Suite};

/// The shapes of layers of language models, and a matrix that is too small for anything to matter.
const QUICK_SHAPES: [[usize; 2]; 5] = [[256, 256], [768, 3072], [3072, 768], [1024, 4096], [4096, 4096]];
const LARGE_SHAPES: [[usize; 2]; 2] = [[11008, 4096], [4096, 11008]];

/// Runs `bench`: reads the weights, or makes some, and measures them.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let files: Vec<(&Path, Array)> =
        args.weights.iter().map(|path| Ok((path.as_path(), read(path, args.bf16)?))).collect::<Result<_, Failure>>()?;
    for (path, file) in &files {
        let tensor = file.tensor().map_err(about(path))?;
        let a = matrix(path, &tensor, 1)?.view().map_err(about(path))?;
        if a.nrows().min(a.ncols()) < LEAST_SIDE {
            let (path, m, n) = (path.display(), a.nrows(), a.ncols());
            return Err(Failure(format!(
                "{path}: {m} × {n} is too small to compare; give at least {LEAST_SIDE} each way"
            )));
        }
        Dense::<f32>::new(a, Par::Seq).map_err(about(path))?; // no NaN, no infinity
    }
    output::prepare(&args.out)?;
    let outputs = ["index.html", "results.csv", "results.json"].map(|name| args.out.join(name));
    guard::apart(&outputs, &args.weights.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    for (path, start) in outputs.iter().zip([page::START, tables::COLUMNS, "{\n  \"version\": "]) {
        let is_ours = |bytes: &[u8]| bytes.starts_with(start.as_bytes());
        guard::replaceable(path, "a file of a bench", is_ours, args.overwrite)?;
    }
    on_threads(args.threads, || measured(args, &files))
}

/// Measures the weights in the files and writes tables, page and record.
fn measured(args: &BenchArgs, files: &[(&Path, Array)]) -> Result<(), Failure> {
    let start = Instant::now();
    let seeds = args.seeds.unwrap_or(if args.quick { 3 } else { 5 }) as usize;
    let effort = if args.quick {
        Effort { sketch_seconds: 0.6, factor_seconds: 1.2 }
    } else {
        Effort { sketch_seconds: 0.8, factor_seconds: 2.0 }
    };
    let shapes = args.shapes.clone().unwrap_or_else(|| {
        let large = if args.quick { &[][..] } else { &LARGE_SHAPES };
        QUICK_SHAPES.iter().chain(large).copied().collect()
    });
    let threads = rayon::current_num_threads();
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };

    let mut progress = Progress::new(files.len() + SWEEPS * (shapes.len() + files.len()));
    let mut sources: Vec<Source<'_>> = shapes.into_iter().map(Source::Made).collect();
    for (path, file) in files {
        progress.step(&format!("full SVD of {}", path.display()));
        sources.push(Source::given(path, file)?);
    }
    let mut measured: Vec<Measured> = Vec::new();
    for sweep in 0..SWEEPS {
        for (i, source) in sources.iter().enumerate() {
            progress.step(&format!("sweep {} of {SWEEPS}: {}", sweep + 1, source.name()));
            source.with_weights(par, |weights| {
                if sweep == 0 {
                    measured.push(Measured::new(&source.name(), weights, seeds));
                }
                measured[i].sweep(weights, effort, par, sweep + 1 == SWEEPS)
            })?;
        }
    }
    let cases = measured.into_iter().map(Measured::finish).collect::<Result<Vec<Case>, Failure>>()?;
    progress.end();

    let mut sizes: Vec<(usize, usize)> = STATE_SIZES.into_iter().chain(cases.iter().map(|c| (c.n, c.l))).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut suite = Suite {
        version: env!("CARGO_PKG_VERSION"),
        command: command(),
        date: utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
        machine: machine(threads),
        settings: Settings { quick: args.quick, seeds, precision: "f32" },
        seconds: start.elapsed().as_secs_f64(),
        cases,
        state: measure::state(&sizes)?,
        conclusions: Vec::new(),
    };
    suite.conclusions = words::conclusions(&suite);

    let tables = tables::all(&suite);
    let html = page::html(&suite, &tables)?;
    let json =
        serde_json::to_string_pretty(&suite).map_err(|e| Failure(format!("the results do not serialize: {e}")))?;
    let texts = [("index.html", html.as_str()), ("results.csv", &tables::csv(&suite))];
    output::write_texts(&args.out, &texts, "results.json", &(json + "\n"))?;
    let mut text = String::new();
    tables.iter().for_each(|t| text += &t.text());
    for line in &suite.conclusions {
        text += &tables::wrapped(line);
    }
    emit(&format!("{text}\nwritten: {}: index.html, results.csv, results.json\n", args.out.display()))
}

/// The source of matrices.
enum Source<'a> {
    /// The rows and columns of matrices to make.
    Made([usize; 2]),
    /// The matrix of a file, and the error of its best approximation.
    Given { path: &'a Path, file: &'a Array, optimum: f64 },
}

impl<'a> Source<'a> {
    fn given(path: &'a Path, file: &'a Array) -> Result<Self, Failure> {
        let tensor = file.tensor().map_err(about(path))?;
        let tensor = matrix(path, &tensor, 1)?;
        let (k, _) = measure::rank(tensor.shape()[0], tensor.shape()[1]);
        let optimum = measure::optimum(&tensor, k).map_err(about(path))?;
        Ok(Source::Given { path, file, optimum })
    }

    /// Returns the shape, and the file if there is one.
    fn name(&self) -> String {
        match self {
            Source::Made([m, n]) => format!("{m}×{n}"),
            Source::Given { path, file, .. } => {
                let (m, n) = (file.shape()[0], file.shape()[1..].iter().product::<usize>());
                format!("{m}×{n} {}", file_name(path))
            }
        }
    }

    /// Runs `f` on the matrices of the source, which are of one shape and type.
    fn with_weights(&self, par: Par, f: impl FnOnce(&[Weight<'_>]) -> Result<(), Failure>) -> Result<(), Failure> {
        match *self {
            Source::Made([m, n]) => {
                let (k, _) = measure::rank(m, n);
                let make = |(i, spectrum): (usize, Spectrum)| {
                    let values = spectrum.values(m, n);
                    let a = matrices::make(m, n, &values, i as u64, par)?;
                    Ok((spectrum, matrices::optimum(&values, k), a))
                };
                let made = Spectrum::ALL.into_iter().enumerate().map(make).collect::<Result<Vec<_>, Failure>>()?;
                let weights: Vec<Weight<'_>> = (made.iter())
                    .map(|(spectrum, optimum, a)| {
                        Ok(Weight {
                            name: spectrum.name().to_owned(),
                            tensor: a.as_tensor()?,
                            bytes: bytemuck::cast_slice(a.as_slice()),
                            optimum: *optimum,
                            optimum_from: "construction",
                        })
                    })
                    .collect::<Result<_, Failure>>()?;
                f(&weights)
            }
            Source::Given { path, file, optimum } => {
                let tensor = file.tensor().map_err(about(path))?;
                let tensor = matrix(path, &tensor, 1)?;
                let (name, bytes) = (file_name(path), file.bytes());
                f(&[Weight { name, tensor, bytes, optimum, optimum_from: "full-svd" }])
            }
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Shows the progress on stderr: a bar on a terminal, lines elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    done: usize,
    of: usize,
}

impl Progress {
    fn new(of: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(of as u64);
            if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        Progress { bar, done: 0, of }
    }

    fn step(&mut self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.done as u64);
                bar.set_message(what.to_owned());
            }
            // If nobody reads stderr, the run still goes on.
            None => _ = writeln!(std::io::stderr(), "[{}/{}] {what}", self.done + 1, self.of),
        }
        self.done += 1;
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Returns the command line as it was typed.
fn command() -> String {
    let args = std::env::args_os().skip(1).map(|arg| {
        let arg = arg.to_string_lossy().into_owned();
        if arg.contains(' ') { format!("'{arg}'") } else { arg }
    });
    std::iter::once("tensorslim".to_owned()).chain(args).collect::<Vec<_>>().join(" ")
}

fn machine(threads: usize) -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    Machine {
        cpu: model.map_or_else(|| "unknown CPU".to_owned(), |(_, name)| name.trim().to_owned()),
        target,
        isa: simd::isa().name(),
        threads,
    }
}

/// Formats a time as `2026-03-01 12:34 UTC`, by the proleptic Gregorian calendar in eras of 400 years that begin in
/// March (Hinnant).
fn utc(seconds: u64) -> String {
    let (days, minutes) = (seconds / 86400 + 719_468, seconds / 60 % 1440);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::utc;

    /// The expected values are those of `date -u -d @…`.
    #[test]
    fn calendar() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_827_696, "2000-02-29 12:34 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_735_689_600, "2025-01-01 00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }
}
