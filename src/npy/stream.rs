//! A `.npy` file as the rows of a factorization out of core.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

#[cfg(doc)]
use super::Array;
use super::{Header, Seen, Tuple, lost_its_end, open, swap_bytes};
use crate::error::{Error, Result};
use crate::operator::RowSource;
use crate::tensor::DType;
#[cfg(doc)]
use crate::tensor::TensorRef;

/// A file that is read in pieces: the [`RowSource`] of a factorization out of core.
///
/// Nothing of the size of the file is held. A file that is cut short while it is read is an error, and so is one that was written to
/// since it was opened: its length and time of change are compared at the end of each pass. The first axis becomes rows, all
/// others columns.
#[derive(Debug)]
pub struct Stream {
    path: PathBuf,
    file: File,
    header: Header,
    /// So many axes become rows.
    row_axes: usize,
    seen: Seen,
}

impl Stream {
    /// Opens a `.npy` file and reads its header. `bits_of` is what elements without a type are, as in [`Array::read_as`]. An array
    /// of one axis is a column.
    ///
    /// # Errors
    /// As [`Array::read`] but for memory; also an array of more than two axes in Fortran order.
    pub fn open(path: impl AsRef<Path>, bits_of: Option<DType>) -> Result<Self> {
        let path = path.as_ref();
        let (file, header) = open(path, bits_of)?;
        if header.shape.len() > 2 && header.fortran {
            let why =
                format!("has shape {} in Fortran order, which has no rows to be read in parts", Tuple(&header.shape));
            return Err(Error::file(path, format_args!("{why}; save it in C order, or read it whole")));
        }
        let seen = Seen::new(&file);
        Ok(Stream { path: path.to_path_buf(), file, header, row_axes: 1, seen })
    }

    /// The same file with its first `axes` axes as rows and the others as columns, as [`TensorRef::matricize`] has them.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `axes` is at least 1 and at most the number of axes; for an array in Fortran order it has to be 1.
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

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.header.bytes
    }

    /// The elements from byte `at` on.
    fn read_at(&mut self, at: usize, dst: &mut [u8]) -> Result<()> {
        let (start, want) = (self.header.start as u64, self.header.bytes as u64);
        let done = self.file.seek(SeekFrom::Start(start + at as u64)).and_then(|_| self.file.read_exact(dst));
        done.map_err(|e| {
            let have = self.file.metadata().map_or(0, |meta| meta.len().saturating_sub(start));
            let cut = e.kind() == std::io::ErrorKind::UnexpectedEof;
            let why = if cut { lost_its_end(have, want) } else { format!("cannot be read: {e}; try again") };
            Error::file(&self.path, why)
        })?;
        if self.header.swap {
            swap_bytes(dst, self.header.dtype);
        }
        Ok(())
    }

    /// At the end of a pass: what was read must be one state of the file.
    fn check_end(&self, is_end: bool) -> Result<()> {
        let seen = if is_end { self.seen.check(&self.file) } else { Ok(()) };
        seen.map_err(|why| Error::file(&self.path, why))
    }

    /// Bytes of a line.
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
