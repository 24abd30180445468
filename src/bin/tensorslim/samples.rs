//! Reads files of samples, in blocks of rows where they are stored by rows, and files of statistics, whose header is
//! enough to know what they will take.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tensorslim::npy::Stream;
use tensorslim::operator::{self, RowSource, Watch};
use tensorslim::{Calibration, DType, Error, TensorRef};

use crate::failure::{Failure, about};
use crate::{arrays, inputs};

/// The number of parts of the samples that `--blend auto` holds out, one after the other.
pub(crate) const FOLDS: usize = 4;

/// A file of samples or of statistics, of which only the header has been read.
pub(crate) enum Source {
    Samples(Samples),
    Statistics {
        path: PathBuf,
        features: usize,
        /// The bytes of the file.
        bytes: usize,
        /// Whether the statistics are a factor rather than a Gram matrix.
        factor: bool,
    },
}

impl Source {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path, bf16: bool) -> Result<Self, Failure> {
        match statistics(path)? {
            Some(source) => Ok(source),
            None => Samples::open(path, bf16).map(Source::Samples),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Source::Samples(samples) => &samples.path,
            Source::Statistics { path, .. } => path,
        }
    }

    /// Returns the samples, if it is a file of samples.
    pub(crate) fn samples(&self) -> Option<&Samples> {
        match self {
            Source::Samples(samples) => Some(samples),
            Source::Statistics { .. } => None,
        }
    }

    pub(crate) fn features(&self) -> usize {
        match self {
            Source::Samples(samples) => samples.features,
            Source::Statistics { features, .. } => *features,
        }
    }

    /// Refuses a source that does not have the inputs of this weight.
    pub(crate) fn check_inputs(&self, weight: &Path, n: usize) -> Result<(), Failure> {
        self.check(weight, n, "takes", "inputs")
    }

    /// Refuses a source that does not have the outputs of this weight.
    pub(crate) fn check_outputs(&self, weight: &Path, m: usize) -> Result<(), Failure> {
        self.check(weight, m, "makes", "outputs")
    }

    fn check(&self, weight: &Path, n: usize, has: &str, side: &str) -> Result<(), Failure> {
        let (path, weight, features) = (self.path().display(), weight.display(), self.features());
        match self {
            _ if features == n => Ok(()),
            Source::Samples(_) => {
                let want = format!("rows of {features} values, but {weight} {has} {n} {side}; give samples × {n}");
                Err(Failure(format!("{path}: {want}")))
            }
            Source::Statistics { .. } => Err(Failure(format!(
                "{path}: statistics of {features} features, but {weight} {has} {n} {side}; give those of its own {side}"
            ))),
        }
    }
}

/// Reads the header of a file of statistics, if it is one.
fn statistics(path: &Path) -> Result<Option<Source>, Failure> {
    let unreadable = |e| Failure::from(Error::file(path, format_args!("cannot be read: {e}; check the path")));
    if !path.is_file() {
        return Ok(None); // the reader of .npy files says what is wrong
    }
    let file = File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let mut header = Vec::new();
    file.take(24).read_to_end(&mut header).map_err(unreadable)?;
    let Some(rest) = header.strip_prefix(&Calibration::MAGIC) else { return Ok(None) };
    let features = rest.get(8..16).map_or(0, |n| u64::from_le_bytes(n.try_into().expect("8 bytes")));
    // The bytes are believed of a file that has so many numbers; the reader says what is wrong with others.
    let features = match usize::try_from(features) {
        Ok(n) if (n as u128) * (n as u128) / 2 <= u128::from(bytes) / 8 => n,
        _ => load(path)?.features(),
    };
    Ok(Some(Source::Statistics {
        path: path.to_path_buf(),
        features,
        bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        factor: rest.get(4) == Some(&1),
    }))
}

/// Loads the statistics of a file.
pub(crate) fn load(path: &Path) -> Result<Calibration, Failure> {
    let contents = std::fs::read(path)
        .map_err(|e| Failure::from(Error::file(path, format_args!("cannot be read: {e}; check the path"))))?;
    Calibration::from_bytes(&contents).map_err(about(path))
}

/// A .npy file of samples; all axes but the last are rows.
pub(crate) struct Samples {
    path: PathBuf,
    bf16: bool,
    rows: usize,
    features: usize,
    dtype: DType,
    /// Whether rows are stored one after the other; otherwise the file is read whole.
    by_rows: bool,
}

impl Samples {
    pub(crate) fn open(path: &Path, bf16: bool) -> Result<Self, Failure> {
        let header = inputs::Header::read(path, bf16)?;
        let (&features, rows) = match header.dims().split_last() {
            Some((last, rows)) if !rows.is_empty() => (last, rows),
            _ => return Err(arrays::no_matrix(path, header.dims())),
        };
        let (rows, dtype, by_rows) = (rows.iter().product(), header.dtype, !header.is_fortran());
        let samples = Samples { path: path.to_path_buf(), bf16, rows, features, dtype, by_rows };
        if rows == 0 || features == 0 {
            // The reader reports that there are no samples.
            samples.read(|_| Ok(()))?;
        }
        Ok(samples)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn features(&self) -> usize {
        self.features
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the bytes of a row.
    pub(crate) fn line(&self) -> usize {
        self.features * self.dtype.size()
    }

    /// Returns the bytes of the file where it is read whole, 0 where it is read in blocks.
    pub(crate) fn whole(&self) -> usize {
        if self.by_rows { 0 } else { self.rows * self.line() }
    }

    /// Tells whether reading can start at any row.
    pub(crate) fn is_in_blocks(&self) -> bool {
        self.by_rows
    }

    /// Calls `f(first, rows)` for some rows in blocks, in two buffers of `buffer` bytes, or for all at once where they
    /// are read whole.
    pub(crate) fn for_each(
        &self,
        range: Range<usize>,
        buffer: usize,
        mut f: impl FnMut(usize, TensorRef<'_>) -> tensorslim::Result<()>,
    ) -> Result<(), Failure> {
        let mut f = |first: usize, rows: TensorRef<'_>| {
            f(first, rows).map_err(|e| match e {
                Error::NotFinite { row, col, value } => Error::NotFinite { row: first + row, col, value },
                e => e,
            })
        };
        if !self.by_rows {
            return self.read(|x| f(0, x.clone()));
        }
        if range.is_empty() {
            return Ok(());
        }
        let stream = inputs::stream(&self.path, self.bf16)?;
        let axes = stream.dims().len() - 1;
        let mut part = Part { stream: stream.with_row_axes(axes)?, range: range.clone() };
        let done =
            operator::stream(&mut part, 0, buffer, &Watch::default(), |first, rows| f(range.start + first, rows));
        done.map_err(about(&self.path))
    }

    /// Reads the file whole.
    pub(crate) fn read(&self, f: impl FnOnce(&TensorRef<'_>) -> tensorslim::Result<()>) -> Result<(), Failure> {
        let file = arrays::read(&self.path, self.bf16)?;
        let tensor = file.tensor().map_err(about(&self.path))?;
        let x = arrays::matrix(&self.path, &tensor, tensor.shape().len() - 1)?;
        f(&x).map_err(about(&self.path))
    }
}

/// Some rows of a file.
struct Part {
    stream: Stream,
    range: Range<usize>,
}

impl RowSource for Part {
    fn shape(&self) -> (usize, usize) {
        (self.range.len(), self.stream.shape().1)
    }

    fn dtype(&self) -> DType {
        self.stream.dtype()
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> tensorslim::Result<()> {
        self.stream.read_rows(self.range.start + first, dst)
    }
}
