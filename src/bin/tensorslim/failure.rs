//! Why the work failed, as the line that people read, and what is written to them.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use tensorslim::{DType, Error};

use crate::process::address_space;
use crate::report;

/// Why the work failed: the line for stderr.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        // What the arithmetic does not hold, a wider one may.
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

/// Puts `path` in front of an error that does not name a file itself.
pub(crate) fn about(path: &Path) -> impl Fn(Error) -> Failure {
    move |e| match e {
        Error::File { .. } => e.into(),
        _ => Failure(format!("{}: {}", path.display(), Failure::from(e).0)),
    }
}

/// Writes to stdout; nobody reading it is no error.
pub(crate) fn emit(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure(format!("stdout: {e}"))),
        _ => Ok(()),
    }
}

/// One line on stderr, whatever is in `text` (file names may hold line breaks and what a terminal obeys).
pub(crate) fn complain(text: &str) {
    // Nowhere is left to report that stderr is closed.
    let _ = writeln!(io::stderr(), "tensorslim: {}", report::printable(text));
}
