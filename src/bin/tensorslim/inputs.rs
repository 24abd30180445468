//! Turns files and directories into named weights, and decides how a file is read.
//!
//! Only headers are read here, and no file stays open: ten thousand inputs are ten thousand short reads. The error of
//! an input is kept with its name, so that it fails alone and in its turn. [`judge`] alone decides what a file is (a
//! weight, something to leave alone, damaged).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use tensorslim::batch::manifest::{Inputs, directory, tensor_name};
use tensorslim::npy::{Array, Description, Elements, Stream, member_path};
use tensorslim::operator::{Difference, RowSource};
use tensorslim::{DType, Error, npz};
use walkdir::{DirEntry, WalkDir};

use crate::failure::Failure;
use crate::guard::{self, may_pass};
use crate::hash::hash;
use crate::{output, results};

/// An input, by its name.
pub(crate) struct Weight {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The path below the directory or archive that was given, or the name of the file.
    below: PathBuf,
    /// The weight that is subtracted from it.
    pub(crate) base: Option<PathBuf>,
    /// The identity that [`stamp`] gives; zeros for an input that was not asked for.
    pub(crate) stamp: (u64, u64),
    pub(crate) kind: Kind,
}

/// What the header says the file is.
pub(crate) enum Kind {
    Matrix {
        shape: (usize, usize),
        dtype: DType,
    },
    /// The file is not to be factored, for this reason.
    Kept(String),
    /// The file cannot be read, for this reason.
    Bad(Error),
}

/// The inputs that were found.
pub(crate) struct Found {
    /// The weights, by name.
    pub(crate) weights: Vec<Weight>,
    /// The files below an input that are no inputs: factors of this program, each with what it is.
    pub(crate) left_out: Vec<String>,
}

/// Collects all inputs, by name. Names are those of files without `.npy`, with the path below the directory that was
/// given. Files that are not `asked` for are not looked at. Directories that this program writes factors to are left
/// out: `out`, and those of other batches.
pub(crate) fn collect(
    paths: &[PathBuf],
    bf16: bool,
    out: &Path,
    asked: impl Fn(&str) -> bool,
) -> Result<Found, Failure> {
    let mut found: BTreeMap<String, Weight> = BTreeMap::new();
    let mut directories: BTreeMap<String, (String, PathBuf)> = BTreeMap::new();
    let mut left_out = Vec::new();
    let out = fs::canonicalize(out).ok();
    let is_out = |dir: &Path| out.is_some() && fs::canonicalize(dir).ok() == out;
    let mut add = |name: String, (path, below): (PathBuf, PathBuf), kind: Option<Kind>| -> Result<(), Failure> {
        let place = directory(&name);
        if let Some((of, other)) = directories.get(&place).cloned() {
            let path = path.display();
            let why = format!("and {path} would both be written as {name:?}, so none is; give their common directory");
            for name in [name, of].into_iter().filter(|name| asked(name)) {
                let kind = Kind::Bad(Error::file(&other, &why));
                let (path, below) = (other.clone(), below.clone());
                found.insert(name.clone(), Weight { name, path, below, base: None, stamp: (0, 0), kind });
            }
            return Ok(());
        }
        directories.insert(place, (name.clone(), path.clone()));
        let (stamp, kind) = match (asked(&name), kind) {
            (false, _) => ((0, 0), Kind::Kept("not asked for".into())),
            (true, Some(kind)) => ((0, 0), kind),
            (true, None) if results::is_reserved(&directory(&name)) => {
                let why = "has a name that the batch itself uses in --out; rename it";
                ((0, 0), Kind::Bad(Error::file(&path, why)))
            }
            (true, None) => match look(&path) {
                Ok(stamp) => (stamp, judge(&path, bf16)),
                Err(e) => ((0, 0), Kind::Bad(lasting(&path, &e)?)),
            },
        };
        found.insert(name.clone(), Weight { name, path, below, base: None, stamp, kind });
        Ok(())
    };
    for root in paths {
        if !is_dir(root, fs::metadata(root))? {
            if root.extension().is_some_and(|ext| ext == "npz") && root.is_file() {
                let stem = root.file_stem().unwrap_or_default().to_string_lossy();
                for member in npz::Archive::open(root)?.arrays() {
                    // Names are not paths: the first `/` of an absolute one must not lead out of the archive.
                    let name = tensor_name(Path::new(&format!("{stem}/{member}.npy")));
                    add(name, (member_path(root, member), format!("{member}.npy").into()), None)?;
                }
                continue;
            }
            let below = Path::new(root.file_name().unwrap_or(root.as_os_str()));
            add(tensor_name(below), (root.clone(), below.to_path_buf()), None)?;
            continue;
        }
        if is_out(root) {
            let (root, below) = (root.display(), root.join("factors"));
            return Err(Failure(format!(
                "{root}: is the output directory, too, where results take the place of what has their names; give \
                 another --out, such as {}",
                below.display()
            )));
        }
        let mut factors: HashSet<PathBuf> = HashSet::new();
        let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
        let mut unknown = None;
        let mut is_input = |entry: &DirEntry| -> tensorslim::Result<bool> {
            let path = entry.path();
            if !entry.file_type().is_dir() {
                return Ok(!factors.contains(path));
            }
            let what = match entry.depth() {
                0 => None,
                _ if is_out(path) => Some("the output directory"),
                _ if results::is_of_a_batch(path)? => Some("what another batch has written"),
                _ => None,
            };
            if let Some(what) = what {
                left_out.push(format!("{} ({what})", path.display()));
                return Ok(false);
            }
            let listed = output::listed(path)?;
            if !listed.is_empty() {
                left_out.push(format!("{} ({}: what its report lists)", path.display(), listed.join(", ")));
                factors.extend(listed.iter().map(|name| path.join(name)));
            }
            Ok(true)
        };
        let walk = walk.filter_entry(|entry| {
            is_input(entry).unwrap_or_else(|e| {
                unknown.get_or_insert(e);
                false
            })
        });
        for entry in walk {
            match entry {
                Ok(entry) => {
                    let path = entry.path();
                    if entry.file_type().is_dir() || path.extension().is_none_or(|ext| ext != "npy") {
                        continue;
                    }
                    let below = path.strip_prefix(root).unwrap_or(path);
                    add(tensor_name(below), (path.to_path_buf(), below.to_path_buf()), None)?;
                }
                Err(e) => {
                    let path = e.path().unwrap_or(root).to_path_buf();
                    if let Some(e) = e.io_error() {
                        lasting(&path, e)?;
                    }
                    let why = match (e.loop_ancestor(), e.io_error()) {
                        (Some(above), _) => {
                            format!("is a link to the directory above it, {}; remove it", above.display())
                        }
                        (None, Some(e)) => format!("cannot be read: {e}; check the permissions"),
                        (None, None) => "cannot be read; check it".to_string(),
                    };
                    let error = Error::file(&path, why);
                    let mut name = tensor_name(path.strip_prefix(root).unwrap_or(&path));
                    let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
                    let mut beside = path.clone().into_os_string();
                    beside.push(".npy");
                    if is_dir || Path::new(&beside).exists() {
                        // A file beside it may have its name.
                        name.push('/');
                    }
                    add(name, (path.clone(), path), Some(Kind::Bad(error)))?;
                }
            }
        }
        if let Some(e) = unknown {
            return Err(e.into());
        }
    }
    Ok(Found { weights: found.into_values().collect(), left_out })
}

/// Returns numbers that tell whether a file is still the same: its length, and a number made of its times of change (of
/// the contents and of the rest, also before 1970) and its place on the disk. The device is left out, because a network
/// file system has another number on each machine.
pub(crate) fn stamp(path: &Path) -> tensorslim::Result<(u64, u64)> {
    look(path).map_err(|e| unreadable(path, &e))
}

/// Gives each matrix the weight of its path below `dir` as its base, to be subtracted. One that has none, or one of
/// another shape, cannot be factored.
pub(crate) fn subtract(weights: &mut [Weight], dir: &Path, bf16: bool) {
    for weight in weights {
        let Kind::Matrix { shape, dtype } = &mut weight.kind else { continue };
        // A member is looked for in an archive, or as a file of its name below a folder, and never beside it.
        let leads_out = weight.below.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
        let path = match weight.below.to_str() {
            Some(name) if dir.is_file() => member_path(dir, name),
            _ if leads_out => {
                let why = format_args!("has a name that leads out of {}; rename it", dir.display());
                weight.kind = Kind::Bad(Error::file(&weight.path, why));
                continue;
            }
            _ => dir.join(&weight.below),
        };
        let base = stamp(&path).and_then(|stamp| Header::read(&path, bf16).map(|header| (stamp, header)));
        match base {
            Ok((stamp, base)) if base.matrix() == *shape => {
                weight.stamp.1 ^= stamp.1.rotate_left(1);
                *dtype = if [*dtype, base.dtype].contains(&DType::F64) { DType::F64 } else { DType::F32 };
                weight.base = Some(path);
            }
            Ok((_, base)) => {
                let ((m, n), (k, l)) = (*shape, base.matrix());
                let why = format_args!(
                    "is {k} × {l}, and {} is {m} × {n}; --minus takes weights of the same shapes",
                    weight.name
                );
                weight.kind = Kind::Bad(Error::file(&path, why));
            }
            Err(error) => weight.kind = Kind::Bad(error),
        }
    }
}

/// Reads the stamp of a file: its size, and a hash of its times and its place.
fn look(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(guard::file_of(path))?;
    #[cfg(unix)]
    let when = {
        use std::os::unix::fs::MetadataExt;
        [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.ino() as i64]
    };
    #[cfg(not(unix))]
    let when = {
        let changed = meta.modified()?;
        let (sign, apart) = match changed.duration_since(std::time::UNIX_EPOCH) {
            Ok(apart) => (1, apart),
            Err(before) => (-1, before.duration()),
        };
        [sign, apart.as_secs() as i64, i64::from(apart.subsec_nanos())]
    };
    Ok((meta.len(), hash(&when.map(i64::to_le_bytes).concat())))
}

/// Returns the error of an input if it is permanent, which fails the input alone. An error that may pass fails the run,
/// before its list of inputs is on record.
fn lasting(path: &Path, e: &io::Error) -> Result<Error, Failure> {
    if may_pass(e) { Err(unreadable(path, e).into()) } else { Ok(unreadable(path, e)) }
}

/// Tells whether an input is a directory. One that cannot be looked at is none, unless the error may pass: the run would
/// go on without the files below it.
fn is_dir(path: &Path, looked: io::Result<fs::Metadata>) -> Result<bool, Failure> {
    looked.map_or_else(|e| lasting(path, &e).map(|_| false), |meta| Ok(meta.is_dir()))
}

fn unreadable(path: &Path, e: &io::Error) -> Error {
    let what_to_do = if may_pass(e) { "try again" } else { "check the path" };
    Error::file(path, format_args!("cannot be read: {e}; {what_to_do}"))
}

/// Decides what becomes of a file in a folder of weights. A file that is no matrix of real numbers is normal there
/// (biases, counters, indices, masks) and is left alone; one that may be a weight and cannot be read is an error.
fn judge(path: &Path, bf16: bool) -> Kind {
    let description = match Description::read(path) {
        Ok(description) => description,
        Err(error) => return Kind::Bad(error),
    };
    match description.shape() {
        [] => return Kind::Kept("a scalar: not a matrix".into()),
        [_] => return Kind::Kept("one axis: not a matrix".into()),
        shape if shape.contains(&0) => return Kind::Kept("no elements: nothing to factor".into()),
        _ => {}
    }
    let name = description.type_name().trim_start_matches(['<', '>', '|', '=']).to_string();
    let kept = |more: &str| Kind::Kept(format!("elements of type {name} are no weights{more}"));
    match (description.elements(), Header::new(description, bf16)) {
        (_, Ok(header)) => Kind::Matrix { shape: header.matrix(), dtype: header.dtype },
        (Elements::Integers(2), Err(_)) => kept("; if they are bits of bfloat16, add --bf16"),
        (Elements::Integers(_) | Elements::Other, Err(_)) => kept(""),
        (Elements::Untyped(size), Err(_)) if size > 2 => kept(""),
        (_, Err(error)) => Kind::Bad(error),
    }
}

/// The header of a file of numbers that can be read.
pub(crate) struct Header {
    description: Description,
    /// The type that the elements are read as.
    pub(crate) dtype: DType,
    /// The type that the elements are read as, where the file does not say so.
    bits_of: Option<DType>,
    /// The number of axes that become rows.
    row_axes: usize,
}

impl Header {
    /// Reads the header of a file. With `bf16`, two-byte elements without a type, or of an integer type, are bfloat16;
    /// files that name a type keep theirs.
    pub(crate) fn read(path: &Path, bf16: bool) -> tensorslim::Result<Self> {
        Header::new(Description::read(path)?, bf16)
    }

    fn new(description: Description, bf16: bool) -> tensorslim::Result<Self> {
        let name = description.type_name();
        let refused = |why: String| Err(Error::file(description.path(), why));
        let bits_of = match description.elements() {
            Elements::Untyped(2) | Elements::Integers(2) if bf16 => Some(DType::BF16),
            Elements::Untyped(2) => {
                return refused(format!(
                    "holds two-byte elements without a type ('{name}'); if they are bfloat16, add --bf16"
                ));
            }
            Elements::Integers(2) => {
                return refused(format!(
                    "holds elements of type '{name}'; if they are bits of bfloat16, add --bf16, and if they are \
                     numbers, convert them first, e.g. a.astype('f4')"
                ));
            }
            _ => None,
        };
        let dtype = description.dtype(bits_of)?;
        Ok(Header { description, dtype, bits_of, row_axes: 1 })
    }

    /// Groups the first `axes` axes into rows.
    ///
    /// # Errors
    /// [`Error::File`] if nothing is left for columns.
    pub(crate) fn with_row_axes(self, axes: usize) -> tensorslim::Result<Self> {
        let count = self.dims().len();
        if axes >= count.max(2) {
            let why = format_args!("has {count} axes, and --rows-axes {axes} leaves none for columns; give less");
            return Err(Error::file(self.description.path(), why));
        }
        Ok(Header { row_axes: axes, ..self })
    }

    /// Returns the length of each axis.
    pub(crate) fn dims(&self) -> &[usize] {
        self.description.shape()
    }

    /// Returns the rows and columns: the first axis, or the first few, and all others.
    pub(crate) fn matrix(&self) -> (usize, usize) {
        let (rows, columns) = self.dims().split_at(self.row_axes.min(self.dims().len()));
        (rows.iter().product(), columns.iter().product())
    }

    /// Tells whether the matrix is stored by columns.
    pub(crate) fn is_fortran(&self) -> bool {
        self.description.is_fortran()
    }

    /// Returns the bytes of the elements.
    pub(crate) fn bytes(&self) -> usize {
        self.description.shape().iter().product::<usize>() * self.dtype.size()
    }
}

/// Opens a file to be read in tiles; `bf16` has the meaning that it has in [`Header::read`].
pub(crate) fn stream(path: &Path, bf16: bool) -> tensorslim::Result<Stream> {
    Stream::open(path, Header::read(path, bf16)?.bits_of)
}

/// Opens a weight to be read in tiles with its first `row_axes` axes as rows, or its difference from a base.
pub(crate) fn rows(
    path: &Path,
    base: Option<&Path>,
    row_axes: usize,
    bf16: bool,
) -> tensorslim::Result<Box<dyn RowSource>> {
    let open = |path: &Path| stream(path, bf16)?.with_row_axes(row_axes);
    Ok(match base {
        None => Box::new(open(path)?),
        Some(base) => Box::new(Difference::new(open(path)?, open(base)?)?),
    })
}

/// Reads a whole file, so that its axes can be merged; `bf16` has the meaning that it has in [`Header::read`].
pub(crate) fn array(path: &Path, bf16: bool) -> tensorslim::Result<Array> {
    let header = Header::read(path, bf16)?;
    match header.bits_of {
        bits_of if header.is_fortran() && header.description.shape().len() > 2 => Array::read_c_order(path, bits_of),
        None => Array::read(path),
        Some(dtype) => Array::read_as(path, dtype),
    }
}

/// Returns a summary of the inputs, which two runs must have in common.
pub(crate) fn digest(weights: &[Weight]) -> Inputs {
    let mut hasher = crc32fast::Hasher::new();
    for weight in weights {
        hasher.update(weight.name.as_bytes());
        hasher.update(&[0]);
        hasher.update(&weight.stamp.0.to_le_bytes());
    }
    Inputs { count: weights.len(), crc32: hasher.finalize() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that cannot be looked at has no stamp, because one of zeros would be that of any other such file. An
    /// error that may pass ends the run, and is not recorded for the file.
    #[test]
    fn a_file_that_cannot_be_looked_at_has_no_stamp() {
        let e = stamp(Path::new("no/such/file.npy")).unwrap_err().to_string();
        assert!(e.contains("no/such/file.npy: cannot be read") && e.ends_with("check the path"), "{e}");
        #[cfg(unix)]
        for (number, passes) in [(5, true), (23, true), (24, true), (116, true), (2, false), (13, false), (40, false)] {
            let e = io::Error::from_raw_os_error(number);
            let again = io::Error::from_raw_os_error(number);
            assert_eq!(is_dir(Path::new("in"), Err(again)).ok(), (!passes).then_some(false));
            match lasting(Path::new("w.npy"), &e) {
                Err(Failure(line)) => assert!(passes && line.ends_with("; try again"), "{line}"),
                Ok(error) => assert!(!passes && error.to_string().ends_with("; check the path"), "{error}"),
            }
        }
    }
}
