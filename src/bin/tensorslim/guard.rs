//! Checks before any work starts that nothing of the user's will be lost: no output is an input, no two outputs are one
//! file, and only results of this program are replaced.
//!
//! Files are compared by what they are (device and inode), whatever paths, links and hard links lead to them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use tensorslim::Error;
use tensorslim::npy::member_of;

use crate::failure::Failure;
use crate::writer::{directory_of, target};

/// The identity of a file that exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

/// Returns the file that a path leads to: the archive of a member.
pub(crate) fn file_of(path: &Path) -> &Path {
    member_of(path).map_or(path, |(archive, _)| archive)
}

/// Returns the identity of the file that a path leads to, if there is one.
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(file_of(path)).ok().map(|meta| Identity((meta.dev(), meta.ino())))
    }
    #[cfg(not(unix))]
    {
        fs::canonicalize(file_of(path)).ok().map(Identity)
    }
}

/// Refuses outputs that are inputs, and outputs that are one another.
pub(crate) fn apart(outputs: &[PathBuf], inputs: &[&Path]) -> Result<(), Failure> {
    let known: Vec<Option<Identity>> = inputs.iter().map(|path| identity(path)).collect();
    for (i, output) in outputs.iter().enumerate() {
        let it = identity(output);
        if let Some(at) = known.iter().position(|input| it.is_some() && *input == it) {
            let (output, input) = (output.display(), inputs[at].display());
            let same = if output.to_string() == input.to_string() { String::new() } else { format!(" {input}") };
            return Err(Failure(format!("{output}: is the input{same}, too, and would be lost; give another name")));
        }
        if let Some(other) = outputs[..i].iter().find(|other| place(other).is_some_and(|at| place(output) == Some(at)))
        {
            let (output, other) = (output.display(), other.display());
            return Err(Failure(format!("{output}: would be written twice (as {other}); give two names")));
        }
    }
    Ok(())
}

/// Returns the place where a file is or will be.
fn place(path: &Path) -> Option<PathBuf> {
    let target = target(path).ok()?;
    // A directory that is not there yet has no links.
    let dir = directory_of(&target);
    let dir = fs::canonicalize(dir).or_else(|_| std::path::absolute(dir)).ok()?;
    Some(dir.join(target.file_name()?))
}

/// Refuses to replace a file that does not start as `is_ours` says. An empty file holds nothing to be lost.
pub(crate) fn replaceable(
    path: &Path,
    what: &str,
    is_ours: impl Fn(&[u8]) -> bool,
    overwrite: bool,
) -> Result<(), Failure> {
    let target = target(path)?;
    let mut start = Vec::new();
    match File::open(&target).and_then(|file| file.take(512).read_to_end(&mut start)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(_) if start.is_empty() || is_ours(&start) => return Ok(()),
        _ if overwrite => return Ok(()),
        _ => {}
    }
    Err(Failure(format!(
        "{}: is there and is not {what}; give another name, or --overwrite to replace it",
        path.display()
    )))
}

/// Tells whether an operation may succeed a moment later. Such an error says nothing about the file.
pub(crate) fn may_pass(e: &io::Error) -> bool {
    // These are EIO, and too many open files in the process or the system.
    let is_of_the_system = cfg!(unix) && matches!(e.raw_os_error(), Some(5 | 23 | 24));
    is_of_the_system
        || matches!(
            e.kind(),
            ErrorKind::StaleNetworkFileHandle
                | ErrorKind::TimedOut
                | ErrorKind::Interrupted
                | ErrorKind::OutOfMemory
                | ErrorKind::NetworkDown
                | ErrorKind::NetworkUnreachable
                | ErrorKind::HostUnreachable
                | ErrorKind::NotConnected
                | ErrorKind::ConnectionReset
        )
}

/// Returns what was found at a path that may be of this program, `None` if nothing is there that can be read. An error
/// that may pass says neither.
pub(crate) fn if_there<T>(path: &Path, looked: io::Result<T>) -> tensorslim::Result<Option<T>> {
    match looked {
        Err(e) if may_pass(&e) => Err(Error::file(path, format_args!("cannot be read: {e}; try again"))),
        looked => Ok(looked.ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn an_error_that_may_pass_is_not_an_absence() {
        for (number, passes) in [(5, true), (24, true), (116, true), (2, false), (13, false), (20, false)] {
            let looked: io::Result<()> = Err(io::Error::from_raw_os_error(number));
            match if_there(Path::new("report.json"), looked) {
                Err(e) => assert!(passes && e.to_string().starts_with("report.json: cannot be read"), "{e}"),
                Ok(found) => assert!(!passes && found.is_none(), "{number}"),
            }
        }
        assert_eq!(if_there(Path::new("report.json"), Ok(1)).unwrap(), Some(1));
    }
}
