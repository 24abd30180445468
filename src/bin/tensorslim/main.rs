//! The command line `tensorslim`: .npy files in, factors and a report out.
//!
//! ```text
//!   args.rs     what may be typed              factor.rs     read, factor, evaluate, report
//!   batch.rs    many weights                   inputs.rs     files and directories into named weights
//!   results.rs  what a batch leaves behind     progress.rs   bar, lines, JSON
//!   merge.rs    shards into one summary        report.rs     one report, two renderings
//!   output.rs   the files of factors           writer.rs     files that appear whole or not at all
//!   guard.rs    what must not be replaced      state.rs      states to resume from
//!   gather.rs   samples into statistics        calibrate.rs  inputs of a layer into statistics
//!   samples.rs  files of samples, in blocks    arrays.rs     files as matrices
//!   memory.rs   what --memory-limit counts     process.rs    what the system grants
//!   pool.rs     the threads of a run           failure.rs    why the work failed
//!   info.rs     what this machine offers       bench/        SRHT against Gaussian against sparse sign
//!   ranks.rs    the processes of `mpirun`
//! ```
//!
//! Exit codes: 0; 1 the work failed; 2 bad usage. Either failure is one line on stderr, `tensorslim: what, where,
//! what to do`. A reader that closes its end of stdout early (`| head -1`) is no failure: the files of `--out` are
//! still written.

mod args;
mod arrays;
mod batch;
mod bench;
mod calibrate;
mod factor;
mod failure;
mod gather;
mod guard;
mod hash;
mod info;
mod inputs;
mod memory;
mod merge;
mod output;
mod pool;
mod process;
mod progress;
mod ranks;
mod report;
mod results;
mod samples;
mod state;
mod writer;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as Clap;

use args::{Cli, Command};
use failure::{Failure, complain, emit};

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
    process::give_memory_back(limit.is_some());
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
            // Another rank says why.
            if !line.is_empty() {
                complain(&line);
            }
            ExitCode::from(1)
        }
    }
}

/// Writes help and version that were asked for to stdout; help because nothing was asked for, and errors, to stderr.
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

/// Returns clap's message without its usage block, on one line.
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
