//! The command line `tensorslim`: .npy files in, factors and a report out.
//!
//! ```text
//!   args.rs     what may be typed             factor.rs   read, factor, evaluate, report
//!   batch.rs    many weights                  inputs.rs   files and directories into named weights
//!   results.rs  what a batch leaves behind    progress.rs bar, lines, JSON      merge.rs   shards into one summary
//!   report.rs   one report, two renderings    output.rs   the files of factors
//!   writer.rs   files that appear whole or not at all         guard.rs   what must not be replaced
//!   state.rs    states to go on from          calibrate.rs  inputs of a layer into statistics
//!   memory.rs   what --memory-limit counts   samples.rs  files of samples, in blocks
//!   info.rs     what this machine offers      bench/      SRHT against Gaussian against sparse sign
//! ```
//!
//! Exit codes: 0; 1 the work failed; 2 bad usage. Either failure is one line on stderr, `tensorslim: what, where,
//! what to do`. A reader that closes its end of stdout early (`| head -1`) is no failure: the files of `--out` are
//! still written.

mod args;
mod batch;
mod bench;
mod calibrate;
mod factor;
mod guard;
mod info;
mod inputs;
mod memory;
mod merge;
mod output;
mod progress;
mod report;
mod results;
mod samples;
mod state;
mod writer;

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as Clap;
use rayon::ThreadPoolBuilder;
use tensorslim::{DType, Error};

use args::{Cli, Command};

/// Why the work failed: the line for stderr.
#[derive(Debug)]
struct Failure(String);

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        // What the arithmetic does not hold, a wider one may.
        let hint = match &e {
            Error::Range { dtype, .. } if *dtype != DType::F64 => " (--precision f64)",
            Error::Memory { limit, .. } if memory::address_space() == Some(*limit) => {
                " (ulimit -v, in KiB; fewer --threads take less)"
            }
            _ => "",
        };
        Failure(format!("{e}{hint}"))
    }
}

/// Puts `path` in front of an error that does not name a file itself.
fn about(path: &Path) -> impl Fn(Error) -> Failure {
    move |e| match e {
        Error::File { .. } => e.into(),
        _ => Failure(format!("{}: {}", path.display(), Failure::from(e).0)),
    }
}

/// The most threads of a run, by option or environment.
const MAX_THREADS: usize = 1024;

/// Runs `work` on a pool of so many threads. Without a number they are as many as `RAYON_NUM_THREADS` says, or as the affinity mask and the cgroup's quota
/// allow.
fn on_threads<R: Send>(threads: Option<u16>, work: impl FnOnce() -> Result<R, Failure> + Send) -> Result<R, Failure> {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse::<usize>().ok());
    let threads = match (threads, asked) {
        (Some(n), _) => n.into(),
        (None, Some(n)) if n > MAX_THREADS => {
            return Err(Failure(format!(
                "RAYON_NUM_THREADS = {n} is more than {MAX_THREADS}; give fewer, or --threads"
            )));
        }
        (None, Some(n)) => n,
        _ => memory::threads().unwrap_or(0),
    };
    let count = if threads > 0 { threads.to_string() } else { "the default number of".to_owned() };
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Failure(format!("cannot start {count} threads: {e}; give fewer with --threads")))?.install(work)
}

/// Starts a thread that waits for signals.
fn beside(wait: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = std::thread::Builder::new().name("tensorslim-signals".into()).spawn(wait);
    started.map(drop).map_err(|e| Failure(format!("cannot start a thread for signals: {e}; raise the limit (ulimit)")))
}

/// Writes to stdout; nobody reading it is no error.
fn emit(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure(format!("stdout: {e}"))),
        _ => Ok(()),
    }
}

/// One line on stderr, whatever is in `text` (file names may hold line breaks and what a terminal obeys).
fn complain(text: &str) {
    // Nowhere is left to report that stderr is closed.
    let _ = writeln!(io::stderr(), "tensorslim: {}", report::printable(text));
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return not_parsed(&e),
    };
    let limit = match &cli.command {
        Command::Factor(args) => args.memory_limit,
        Command::Batch(args) => args.memory_limit,
        Command::Calibrate(args) => args.memory_limit,
        _ => None,
    };
    memory::give_memory_back(limit.is_some());
    let done = match &cli.command {
        Command::Factor(args) => factor::run(args),
        Command::Batch(args) => batch::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Info(args) => info::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(line)) => {
            complain(&line);
            ExitCode::from(1)
        }
    }
}

/// Help and version that were asked for go to stdout; help because nothing was asked for, and errors, to stderr.
fn not_parsed(e: &clap::Error) -> ExitCode {
    match e.kind() {
        Clap::DisplayHelp | Clap::DisplayVersion => match emit(&e.render().to_string()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Failure(line)) => {
                complain(&line);
                ExitCode::from(1)
            }
        },
        Clap::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = e.print();
            ExitCode::from(2)
        }
        _ => {
            complain(&one_line(&e.render().to_string()));
            ExitCode::from(2)
        }
    }
}

/// clap's message without its usage block, on one line.
fn one_line(rendered: &str) -> String {
    let mut line = String::new();
    for part in rendered.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        let part = part.strip_prefix("error: ").unwrap_or(part);
        let (glue, part) = match part.strip_prefix("tip: ") {
            Some(tip) => ("; ", tip),
            None => (" ", part),
        };
        if !line.is_empty() && !part.is_empty() {
            line.push_str(glue);
        }
        line.push_str(part);
    }
    line + "; see --help"
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn usage_errors_become_one_line() {
        let clap = "error: unexpected argument '--rnk' found\n\n  tip: a similar argument exists: '--rank'\n\n\
                    Usage: tensorslim factor <W.npy>\n\nFor more information, try '--help'.\n";
        let line = "unexpected argument '--rnk' found; a similar argument exists: '--rank'; see --help";
        assert_eq!(one_line(clap), line);
    }
}
