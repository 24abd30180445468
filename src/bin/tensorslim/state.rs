//! Keeps the state of work that is not finished, in a file that a later run resumes from.
//!
//! ```text
//!   "TSLIMST1" │ what the state is of: 8 bytes │ the state │ CRC-32 of everything before
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tensorslim::svd::Checkpoint;

use crate::failure::{Failure, complain};
use crate::guard;
use crate::hash::hash;
use crate::writer::{self, directory_of, unwritable};

const MAGIC: [u8; 8] = *b"TSLIMST1";

/// A file that keeps a state. A state that cannot be saved is reported once, and the work goes on without.
pub(crate) struct StateFile {
    path: PathBuf,
    key: [u8; 8],
    /// The directory that it is written through, for a place of the program's own. It is made when there is something
    /// to save, and removed with its last state.
    stage: Option<PathBuf>,
    is_said: AtomicBool,
    _lock: Option<Lock>,
}

impl StateFile {
    /// Opens a file that the user has named. `of` says what the state is of; a state of anything else is ignored.
    ///
    /// # Errors
    /// The failure says that a file is there that is no state, or that another run uses it.
    pub(crate) fn named(path: &Path, of: &str, overwrite: bool) -> Result<Self, Failure> {
        guard::replaceable(path, "a checkpoint of this program", |start| start.starts_with(&MAGIC), overwrite)?;
        let lock = Some(Lock::take(path)?);
        Ok(StateFile { _lock: lock, ..StateFile::at(path.to_path_buf(), of, None) })
    }

    /// Takes a place of the program's own, which no other run uses, written through `stage`.
    pub(crate) fn hidden(path: PathBuf, of: &str, stage: &Path) -> Self {
        StateFile::at(path, of, Some(stage.to_path_buf()))
    }

    fn at(path: PathBuf, of: &str, stage: Option<PathBuf>) -> Self {
        let key = hash(of.as_bytes()).to_le_bytes();
        StateFile { path, key, stage, is_said: AtomicBool::new(false), _lock: None }
    }

    /// Returns what was saved, if it is whole and of the same thing.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = fs::read(&self.path).ok()?;
        let (rest, sum) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(rest) != u32::from_le_bytes(*sum) {
            return None;
        }
        let state = rest.strip_prefix(&MAGIC)?.strip_prefix(&self.key)?.len();
        bytes.truncate(bytes.len() - 4);
        bytes.drain(..bytes.len() - state);
        Some(bytes)
    }

    /// Replaces the state file by these parts. A failure is a warning: the work goes on without a checkpoint.
    pub(crate) fn write(&self, parts: &[&[u8]]) {
        let mut all: Vec<&[u8]> = vec![&MAGIC, &self.key];
        all.extend(parts);
        let mut hasher = crc32fast::Hasher::new();
        all.iter().for_each(|part| hasher.update(part));
        let sum = hasher.finalize().to_le_bytes();
        all.push(&sum);
        let made = match self.stage.is_some() {
            true => fs::create_dir_all(directory_of(&self.path)).map_err(|e| unwritable(&self.path, &e)),
            false => Ok(()),
        };
        if let Err(e) = made.and_then(|()| writer::put_through(self.stage.as_deref(), &self.path, &all))
            && !self.is_said.swap(true, Ordering::Relaxed)
        {
            complain(&format!("{e}; the work goes on, and if it is stopped it starts anew"));
        }
    }

    /// Removes the state, because the work is finished.
    pub(crate) fn remove(&self) {
        // A short pass has saved no state, and a file that is no state must not be removed.
        let mut start = [0; MAGIC.len()];
        if File::open(&self.path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC {
            let _ = fs::remove_file(&self.path);
        }
        if self.stage.is_some() {
            // A directory with other states stays.
            let _ = fs::remove_dir(directory_of(&self.path));
        }
    }
}

impl Checkpoint for StateFile {
    fn load(&self) -> Option<Vec<u8>> {
        self.read()
    }

    fn save(&self, state: &[u8]) -> tensorslim::Result<()> {
        self.write(&[state]);
        Ok(())
    }
}

/// An empty file beside a state that only one run has open.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(of: &Path) -> Result<Self, Failure> {
        let mut path = of.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let shown = path.display();
        loop {
            if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file() || meta.len() > 0) {
                return Err(Failure(format!("{shown}: is there and is no lock of a checkpoint; give another name")));
            }
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(|e| unwritable(&path, &e))?;
            // A file system that cannot lock can still be written to.
            if matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) {
                let of = of.display();
                return Err(Failure(format!("{of}: is in use by another run; wait for it, or give another name")));
            }
            // The run that had the lock may have removed the file in the meantime; then the lock is on nothing.
            if is_at(&file, &path) {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Tells whether the open file is still the one of this name.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (open, named) = (file.metadata(), fs::metadata(path));
        open.is_ok_and(|open| named.is_ok_and(|named| (open.dev(), open.ino()) == (named.dev(), named.ino())))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state with one bit changed, cut short or with more behind it is not taken; nor is one of something else.
    #[test]
    fn every_bit_of_a_state_counts() {
        let dir = std::env::temp_dir().join(format!("tensorslim-state-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("state");
        let file = StateFile::named(&path, "these files", false).unwrap();
        file.write(&[b"files ", b"rows"]);
        assert_eq!(file.read().unwrap(), b"files rows");
        let whole = fs::read(&path).unwrap();
        for bit in 0..8 * whole.len() {
            let mut other = whole.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &other).unwrap();
            assert_eq!(file.read(), None, "bit {bit}");
        }
        for other in [&whole[..whole.len() - 1], &[&whole[..], b"x"].concat(), b""] {
            fs::write(&path, other).unwrap();
            assert_eq!(file.read(), None);
        }
        fs::write(&path, &whole).unwrap();
        assert!(StateFile::named(&path, "these files", false).err().unwrap().0.contains("is in use by another run"));
        drop(file);
        assert_eq!(StateFile::named(&path, "other files", false).unwrap().read(), None);
        fs::write(&path, "notes").unwrap();
        let refused = StateFile::named(&path, "these files", false).err().unwrap().0;
        assert!(refused.contains("state: is there and is not a checkpoint"), "{refused}");
        // A file that was not written as a state is not removed as one.
        StateFile::named(&path, "these files", true).unwrap().remove();
        assert_eq!(fs::read(&path).unwrap(), b"notes");
        // A state that cannot be saved is no error.
        let file = StateFile::at(dir.join("gone/state"), "these files", None);
        file.save(b"rows").unwrap();
        assert!(file.is_said.load(Ordering::Relaxed) && file.read().is_none());
        fs::remove_dir_all(&dir).unwrap();
    }
}
