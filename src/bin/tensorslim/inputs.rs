//! Files and directories into named weights.
//!
//! Only headers are read here, and no file stays open: ten thousand inputs are ten thousand short reads. What is wrong with an input is kept with its name,
//! so that it fails alone and in its turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use tensorslim::batch::manifest::{Inputs, directory, tensor_name};
use tensorslim::npy::{Array, Stream};
use tensorslim::operator::RowSource;
use tensorslim::{DType, Error};
use walkdir::WalkDir;

use crate::Failure;

/// An input by name.
pub(crate) struct Weight {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// See [`stamp`].
    pub(crate) stamp: (u64, u64),
    pub(crate) kind: Kind,
}

/// What the header says.
pub(crate) enum Kind {
    Matrix {
        shape: (usize, usize),
        dtype: DType,
    },
    /// Not to be factored, for this reason.
    Kept(String),
    /// Not to be read, for this reason.
    Bad(Error),
}

/// All inputs, by name. Names are those of files without `.npy`, with the path below the directory that was given.
pub(crate) fn collect(paths: &[PathBuf], bf16: bool) -> Result<Vec<Weight>, Failure> {
    let mut found: BTreeMap<String, Weight> = BTreeMap::new();
    let mut directories: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut add = |name: String, path: PathBuf, kind: Option<Kind>| {
        if let Some(other) = directories.insert(directory(&name), path.clone()) {
            let (a, b) = (other.display(), path.display());
            return Err(Failure(format!("{a} and {b} would both be written as {name:?}; give their common directory")));
        }
        let stamp = stamp(&path);
        let kind = kind.unwrap_or_else(|| header(&path, bf16));
        found.insert(name.clone(), Weight { name, path, stamp, kind });
        Ok(())
    };
    for root in paths {
        if !root.is_dir() {
            let name = tensor_name(Path::new(root.file_name().unwrap_or(root.as_os_str())));
            add(name, root.clone(), None)?;
            continue;
        }
        for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
            match entry {
                Ok(entry) => {
                    let path = entry.path();
                    if entry.file_type().is_dir() || path.extension().is_none_or(|ext| ext != "npy") {
                        continue;
                    }
                    add(tensor_name(path.strip_prefix(root).unwrap_or(path)), path.to_path_buf(), None)?;
                }
                Err(e) => {
                    let path = e.path().unwrap_or(root).to_path_buf();
                    let why = match (e.loop_ancestor(), e.io_error()) {
                        (Some(above), _) => {
                            format!("is a link to the directory above it, {}; remove it", above.display())
                        }
                        (None, Some(e)) => format!("cannot be read: {e}; check the permissions"),
                        (None, None) => "cannot be read; check it".to_string(),
                    };
                    let error = Error::file(&path, why);
                    add(tensor_name(path.strip_prefix(root).unwrap_or(&path)), path, Some(Kind::Bad(error)))?;
                }
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Length and time of change of a file, in nanoseconds since 1970; zeros if they cannot be had.
pub(crate) fn stamp(path: &Path) -> (u64, u64) {
    let meta = fs::metadata(path).ok();
    let changed = meta.as_ref().and_then(|meta| meta.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    (meta.map_or(0, |meta| meta.len()), changed.map_or(0, |t| t.as_nanos() as u64))
}

fn header(path: &Path, bf16: bool) -> Kind {
    match stream(path, bf16) {
        Ok(stream) if stream.dims().len() < 2 => Kind::Kept("one axis: not a matrix".into()),
        Ok(stream) => Kind::Matrix { shape: RowSource::shape(&stream), dtype: stream.dtype() },
        Err(error) => Kind::Bad(error),
    }
}

/// Opens a file to be read in tiles; with `bf16`, two-byte elements without a type are bfloat16.
pub(crate) fn stream(path: &Path, bf16: bool) -> tensorslim::Result<Stream> {
    if bf16 && let Ok(stream) = Stream::open(path, Some(DType::BF16)) {
        return Ok(stream);
    }
    Stream::open(path, None)
}

/// Reads a file whole; with `bf16` as in [`stream`].
pub(crate) fn array(path: &Path, bf16: bool) -> tensorslim::Result<Array> {
    if bf16 && let Ok(array) = Array::read_as(path, DType::BF16) {
        return Ok(array);
    }
    Array::read(path)
}

/// What two runs must have in common of their inputs.
pub(crate) fn digest(weights: &[Weight]) -> Inputs {
    let mut hasher = crc32fast::Hasher::new();
    for weight in weights {
        hasher.update(weight.name.as_bytes());
        hasher.update(&[0]);
        hasher.update(&weight.stamp.0.to_le_bytes());
    }
    Inputs { count: weights.len(), crc32: hasher.finalize() }
}
