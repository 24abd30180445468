//! A `.npy` file as the source of rows of a factorization out of core.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

#[cfg(doc)]
use super::Array;
use super::{FileState, Header, Tuple, open, swap_bytes, truncated};
use crate::error::{Error, Result};
use crate::operator::RowSource;
use crate::tensor::DType;
#[cfg(doc)]
use crate::tensor::TensorRef;

/// A file that is read in pieces, as the [`RowSource`] of a factorization out of core.
///
/// Nothing of the size of the file is held in memory. A file that is cut short while it is read gives an error, and so
/// does a file that was written to since it was opened: its length and time of change are compared at the end of each
/// pass. The first axis becomes the rows, all others the columns.
#[derive(Debug)]
pub struct Stream {
    path: PathBuf,
    file: File,
    header: Header,
    /// The number of axes that become rows.
    row_axes: usize,
    seen: FileState,
}

impl Stream {
    /// Opens a `.npy` file and reads its header. The type of the elements is as in [`Array::read`] or, with `bits_of`,
    /// in [`Array::read_as`]. An array of one axis is a column.
    ///
    /// # Errors
    /// [`Error::File`] for the reasons of [`Array::read`] or [`Array::read_as`], and for an array of more than two axes
    /// in Fortran order.
    pub fn open(path: impl AsRef<Path>, bits_of: Option<DType>) -> Result<Self> {
        let path = path.as_ref();
        let (file, header) = open(path, bits_of)?;
        if header.shape.len() > 2 && header.fortran {
            let why =
                format!("has shape {} in Fortran order, which has no rows to be read in parts", Tuple(&header.shape));
            return Err(Error::file(path, format_args!("{why}; save it in C order, or read it whole")));
        }
        let seen = FileState::new(&file);
        Ok(Stream { path: path.to_path_buf(), file, header, row_axes: 1, seen })
    }

    /// Groups the first `axes` axes into rows and the others into columns, as [`TensorRef::matricize`] does.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `axes` is at least 1 and at most the number of axes; for an array in Fortran order it
    /// must be 1.
    pub fn with_row_axes(mut self, axes: usize) -> Result<Self> {
        let most = if self.header.fortran { 1 } else { self.header.shape.len() };
        if !(1..=most).contains(&axes) {
            return Err(Error::shape("Stream::with_row_axes", format_args!("1 to {most} axes"), axes));
        }
        self.row_axes = axes;
        Ok(self)
    }

    /// The length of each axis of the array.
    pub fn dims(&self) -> &[usize] {
        &self.header.shape
    }

    /// The bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.header.bytes
    }

    /// Reads the elements that begin `at` bytes behind the first one into `dst`, in native byte order.
    fn read_at(&mut self, at: usize, dst: &mut [u8]) -> Result<()> {
        let (start, want) = (self.header.start as u64, self.header.bytes as u64);
        let done = self.file.seek(SeekFrom::Start(start + at as u64)).and_then(|_| self.file.read_exact(dst));
        done.map_err(|e| {
            let have = self.file.metadata().map_or(0, |meta| meta.len().saturating_sub(start));
            let cut = e.kind() == std::io::ErrorKind::UnexpectedEof;
            let why = if cut { truncated(have, want) } else { format!("cannot be read: {e}; try again") };
            Error::file(&self.path, why)
        })?;
        if self.header.swap {
            swap_bytes(dst, self.header.dtype);
        }
        Ok(())
    }

    /// Refuses a file that has changed since it was opened, at the end of a pass.
    fn check_end(&self, is_end: bool) -> Result<()> {
        let seen = if is_end { self.seen.check(&self.file) } else { Ok(()) };
        seen.map_err(|why| Error::file(&self.path, why))
    }

    /// Returns the bytes of a line: of a row in C order, of a column in Fortran order.
    fn line(&self) -> usize {
        let (m, n) = self.shape();
        self.header.dtype.size() * if self.header.fortran { m } else { n }
    }
}

impl RowSource for Stream {
    fn shape(&self) -> (usize, usize) {
        let (rows, columns) = self.header.shape.split_at(self.row_axes);
        (rows.iter().product(), columns.iter().product())
    }

    fn dtype(&self) -> DType {
        self.header.dtype
    }

    fn is_column_major(&self) -> bool {
        self.header.fortran
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()> {
        let at = first * self.line();
        self.read_at(at, dst)?;
        self.check_end(at + dst.len() == self.header.bytes)
    }

    fn read_block(&mut self, part: Range<usize>, dst: &mut [u8]) -> Result<()> {
        let (line, size) = (self.line(), self.header.dtype.size());
        (dst.chunks_exact_mut(part.len() * size).enumerate())
            .try_for_each(|(i, dst)| self.read_at(i * line + part.start * size, dst))?;
        self.check_end(part.end * size == line)
    }
}
