//! Writes every file of the command line whole or not at all.
//!
//! ```text
//!   temporary name in the directory of the file ─> data ─> sync ─> rename ─> sync of the directory
//! ```
//!
//! The temporary name ([`TEMPORARY`] and 16 random digits) is made by nobody else on any machine. It is never opened if
//! it exists, as a file or as a link. An output that is a link is written through, beside the file that it leads to. An
//! existing output that is no regular file (a device, a pipe, a socket, a directory) is refused. A run that is killed
//! while it writes leaves the temporary file behind, which nothing reads.
//!
//! Several processes write one file together where one of them makes it ([`Staged::begun`]), each opens the temporary name
//! and writes its own pieces ([`write_pieces`]), and the first one ends it ([`Staged::complete`]).

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tensorslim::batch::manifest::Checksum;
use tensorslim::{DType, Element, Error, npy};

/// The start of the names of files that are being written.
pub(crate) const TEMPORARY: &str = ".tensorslim-";
/// The most links that may lead to a file, one to the next.
const MAX_LINKS: usize = 40;

/// Returns the file that a path stands for: the file itself, or the one that its links lead to. It need not exist; if
/// it does, it is a regular file.
pub(crate) fn target(path: &Path) -> tensorslim::Result<PathBuf> {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let meta = match fs::symlink_metadata(&at) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(at),
            meta => meta.map_err(|e| unwritable(path, &e))?,
        };
        if meta.is_symlink() {
            let to = fs::read_link(&at).map_err(|e| unwritable(path, &e))?;
            at = at.parent().unwrap_or(Path::new("")).join(to);
        } else if meta.is_file() {
            return Ok(at);
        } else {
            let what = if meta.is_dir() { "a directory" } else { "a device, a pipe or a socket" };
            return Err(Error::file(path, format_args!("is {what} and is not replaced; give the name of a file")));
        }
    }
    Err(Error::file(path, "is a link that leads to no file; remove it"))
}

/// Writes one file.
pub(crate) fn put(path: &Path, parts: &[&[u8]]) -> tensorslim::Result<()> {
    put_through(None, path, parts)
}

/// Writes one file as [`put`] does, with the temporary name in `stage`, a directory of the same file system that
/// somebody clears after a run that was killed.
pub(crate) fn put_through(stage: Option<&Path>, path: &Path, parts: &[&[u8]]) -> tensorslim::Result<()> {
    let write = |w: &mut Sink| parts.iter().try_for_each(|bytes| w.write_all(bytes));
    publish(vec![Staged::through(stage, path, write)?])
}

/// Makes files appear in this order, and waits until the disk has them.
pub(crate) fn publish(files: Vec<Staged>) -> tensorslim::Result<()> {
    let mut dirs = BTreeSet::new();
    for file in files {
        fs::rename(&file.temporary, &file.target).map_err(|e| unwritable(&file.target, &e))?;
        dirs.insert(directory_of(&file.target).to_path_buf());
    }
    dirs.iter().try_for_each(|dir| sync_directory(dir))
}

/// Waits until the disk has the names in a directory.
pub(crate) fn sync_directory(dir: &Path) -> tensorslim::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        // Some file systems cannot sync a directory, and a directory need not be readable.
        Err(e)
            if !matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied) =>
        {
            Err(unwritable(dir, &e))
        }
        _ => Ok(()),
    }
}

/// Returns the directory that holds a file.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A complete file under a temporary name, which is removed unless it is published.
pub(crate) struct Staged {
    /// The name that was asked for; behind a link that of the target is another one.
    name: String,
    temporary: PathBuf,
    target: PathBuf,
    sum: Checksum,
}

impl Staged {
    /// Writes the file that is to be at `path`.
    pub(crate) fn new(path: &Path, write: impl FnOnce(&mut Sink) -> io::Result<()>) -> tensorslim::Result<Self> {
        Staged::through(None, path, write)
    }

    /// Writes the file as [`Staged::new`] does, with the temporary name in `stage`, unless `path` is a link, which may
    /// lead to another file system.
    pub(crate) fn through(
        stage: Option<&Path>,
        path: &Path,
        write: impl FnOnce(&mut Sink) -> io::Result<()>,
    ) -> tensorslim::Result<Self> {
        let (mut staged, file) = Staged::create(stage, path)?;
        staged.sum = staged.fill(file, write).map_err(|e| unwritable(path, &e))?;
        Ok(staged)
    }

    /// Makes the temporary file of `path`, which is removed with the result.
    fn create(stage: Option<&Path>, path: &Path) -> tensorslim::Result<(Self, File)> {
        let target = target(path)?;
        let (Some(name), Some(_)) = (path.file_name(), target.file_name()) else {
            return Err(Error::file(path, "is no name of a file; give one"));
        };
        let name = name.to_string_lossy().into_owned();
        let (temporary, file) = create(stage.filter(|_| target == path).unwrap_or(directory_of(&target)))
            .map_err(|e| unwritable(path, &e))?;
        Ok((Staged { name, temporary, target, sum: Checksum { bytes: 0, crc32: 0 } }, file))
    }

    /// Makes a file of so many bytes that begins with `start`; several processes write the rest.
    pub(crate) fn begun(path: &Path, start: &[u8], bytes: u64) -> tensorslim::Result<Self> {
        let (mut staged, mut file) = Staged::create(None, path)?;
        file.write_all(start).and_then(|()| file.set_len(bytes)).map_err(|e| unwritable(path, &e))?;
        staged.sum.bytes = bytes;
        Ok(staged)
    }

    /// Returns the name that the others open.
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Ends a file that all have written to, and waits until the disk has it.
    pub(crate) fn complete(&mut self, crc32: u32) -> tensorslim::Result<()> {
        let end = || {
            let file = File::open(&self.temporary)?;
            if let Ok(old) = fs::metadata(&self.target) {
                let _ = file.set_permissions(old.permissions());
            }
            file.sync_all()?;
            self.check_length(self.sum.bytes)
        };
        end().map_err(|e| unwritable(&self.target, &e))?;
        self.sum.crc32 = crc32;
        Ok(())
    }

    /// Writes the data of one file, syncs it, and returns its size and checksum.
    fn fill(&self, file: File, write: impl FnOnce(&mut Sink) -> io::Result<()>) -> io::Result<Checksum> {
        if let Ok(old) = fs::metadata(&self.target) {
            // The permissions stay as they were. Where they cannot be set there are none to keep.
            let _ = file.set_permissions(old.permissions());
        }
        let mut sink = Sink { file: BufWriter::new(file), hasher: crc32fast::Hasher::new(), bytes: 0 };
        write(&mut sink)?;
        let sum = Checksum { bytes: sink.bytes, crc32: sink.hasher.finalize() };
        let file = sink.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        drop(file);
        self.check_length(sum.bytes)?;
        Ok(sum)
    }

    /// Looks at the closed file: a file system finds some errors only then, a quota, a server that is gone.
    fn check_length(&self, bytes: u64) -> io::Result<()> {
        match fs::metadata(&self.temporary)?.len() {
            len if len == bytes => Ok(()),
            len => Err(io::Error::other(format!("the disk has {len} of {bytes} bytes"))),
        }
    }

    /// Returns the name that the file will have.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the length and checksum of the file.
    pub(crate) fn sum(&self) -> Checksum {
        self.sum
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Once the file is published the temporary name is gone, and this finds nothing.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes pieces, each at its place, into a file that is there, and returns their checksums.
pub(crate) fn write_pieces<'a, T: Element>(
    temporary: &Path,
    dtype: DType,
    pieces: impl Iterator<Item = (u64, &'a [T])>,
) -> io::Result<Vec<u32>> {
    let mut file = BufWriter::new(OpenOptions::new().write(true).open(temporary)?);
    let mut sums = Vec::new();
    for (place, elements) in pieces {
        file.seek(SeekFrom::Start(place))?;
        let mut sink = Sink { file, hasher: crc32fast::Hasher::new(), bytes: 0 };
        npy::write_rounded_to(&mut sink, dtype, elements)?;
        sums.push(sink.hasher.finalize());
        file = sink.file;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(sums)
}

/// Creates a file of a name that does not exist.
fn create(dir: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let path = dir.join(format!("{TEMPORARY}{:016x}", random()));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            file => return Ok((path, file?)),
        }
    }
}

/// Returns a number that two processes have in common with probability 2^-64, whatever machine and container they are
/// in.
fn random() -> u64 {
    // The keys of these hashers come from the system's source of randomness.
    let mut hasher = RandomState::new().build_hasher();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    hasher.write_u128(now.as_nanos());
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// A sink that computes the checksum of a file as it is written.
pub(crate) struct Sink {
    file: BufWriter<File>,
    hasher: crc32fast::Hasher,
    bytes: u64,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.file.write(data)?;
        self.hasher.update(&data[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Returns the error of a file that cannot be written, with what to do.
pub(crate) fn unwritable(path: &Path, e: &io::Error) -> Error {
    Error::file(path, format_args!("cannot be written: {e}; check the permissions and the space"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `test` in a directory that is removed afterwards.
    fn within(name: &str, test: impl FnOnce(&Path)) {
        let dir = std::env::temp_dir().join(format!("tensorslim-writer-{name}-{:016x}", random()));
        fs::create_dir_all(&dir).unwrap();
        test(&dir);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        within("failed", |dir| {
            let path = dir.join("x");
            put(&path, &[b"old"]).unwrap();
            let error = Staged::new(&path, |w| {
                w.write_all(b"half")?;
                Err(io::Error::from(ErrorKind::StorageFull))
            });
            assert!(error.err().unwrap().to_string().contains("cannot be written"));
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
            let staged = Staged::new(&path, |w| w.write_all(b"new")).unwrap();
            assert_eq!((staged.name(), staged.sum()), ("x", Checksum { bytes: 3, crc32: crc32fast::hash(b"new") }));
            publish(vec![staged]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
        });
    }

    #[cfg(unix)]
    #[test]
    fn links_are_written_through_and_nothing_else_is_replaced() {
        use std::os::unix::fs::symlink;
        within("links", |dir| {
            fs::create_dir(dir.join("far")).unwrap();
            symlink("far/real", dir.join("link")).unwrap();
            for text in [b"one", b"two"] {
                put(&dir.join("link"), &[text]).unwrap();
                assert_eq!(fs::read(dir.join("far/real")).unwrap(), text);
            }
            assert!(fs::symlink_metadata(dir.join("link")).unwrap().is_symlink());
            symlink("round", dir.join("round")).unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
            for (name, why) in [("round", "link"), ("far", "directory"), ("socket", "socket"), ("", "directory")] {
                let error = put(&dir.join(name), &[b"x"]).unwrap_err().to_string();
                assert!(error.contains(why), "{error}");
            }
            assert!(put(Path::new("/dev/null"), &[b"x"]).unwrap_err().to_string().contains("/dev/null: is a device"));
        });
    }
}
