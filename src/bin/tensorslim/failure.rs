//! Failures: why the work failed, as the line that people read, and how it is written to them.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use tensorslim::{DType, Error};

use crate::process::address_space;
use crate::report;

/// A reason why the work failed: the line for stderr.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        // A wider arithmetic may hold what this one does not.
        let hint = match &e {
            Error::Range { dtype, .. } if *dtype != DType::F64 => " (--precision f64)",
            Error::Memory { limit, .. } if address_space() == Some(*limit) => {
                " (ulimit -v, in KiB; fewer --threads take less)"
            }
            _ => "",
        };
        Failure(format!("{e}{hint}"))
    }
}

/// Returns a function that puts `path` in front of an error that does not name a file itself.
pub(crate) fn about(path: &Path) -> impl Fn(Error) -> Failure {
    move |e| match e {
        Error::File { .. } => e.into(),
        _ => Failure(format!("{}: {}", path.display(), Failure::from(e).0)),
    }
}

/// Writes to stdout. That nobody reads it is no error.
pub(crate) fn emit(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure(format!("stdout: {e}"))),
        _ => Ok(()),
    }
}

/// Writes one line to stderr, whatever is in `text` (file names may hold line breaks and control sequences of a
/// terminal).
pub(crate) fn complain(text: &str) {
    // One write, so that what other programs write there does not come into the middle of the line. There is nowhere to
    // report that stderr is closed.
    let line = format!("tensorslim: {}\n", report::printable(text));
    let _ = io::stderr().write_all(line.as_bytes());
}
