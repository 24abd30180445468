//! Checks before any work starts that nothing of the user's will be lost: no output is an input, no two outputs are one
//! file, and only results of this program are replaced.
//!
//! Files are compared by what they are (device and inode), whatever paths, links and hard links lead to them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::writer::{directory_of, target};

/// The identity of a file that exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

/// Returns the identity of the file that a path leads to, if there is one.
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).ok().map(|meta| Identity((meta.dev(), meta.ino())))
    }
    #[cfg(not(unix))]
    {
        fs::canonicalize(path).ok().map(Identity)
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
    Some(fs::canonicalize(directory_of(&target)).ok()?.join(target.file_name()?))
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
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(_) if start.is_empty() || is_ours(&start) => return Ok(()),
        _ if overwrite => return Ok(()),
        _ => {}
    }
    Err(Failure(format!(
        "{}: is there and is not {what}; give another name, or --overwrite to replace it",
        path.display()
    )))
}
