//! Matrices in device memory: those of the caller, and those that this crate hands out.
//!
//! ```text
//!   DeviceTensor<'a>       borrowed: an address, a shape, strides, an element type, a stream     nothing is copied
//!   DeviceTensorMut<'a>    the same, to be written
//!   DeviceArray<E>         owned, row-major, of one element type
//! ```
//!
//! **Streams.** This crate has a stream of its own. The caller names the stream on which its other work with the memory is
//! enqueued, and every call is ordered by two events: what the caller has enqueued before comes before, what it enqueues
//! afterwards comes after, also where the call ends with an error. The host waits for neither.
//!
//! ```text
//!   caller     ... write W ... | event                      waits | ... read W or the factors ...
//!   compute                      waits | kernels, GEMM | event
//! ```

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys;
use faer::Mat;

use super::convert::convert;
use super::device::{Buffer, Device};
use super::panel::DevicePanel;
use super::tile::{Lines, Tile};
use crate::error::{Error, Result};
use crate::operator::first_not_finite;
use crate::tensor::{DType, Element};

/// A borrowed matrix in device memory, of which the elements of a row or those of a column are adjacent.
#[derive(Debug, Clone)]
pub struct DeviceTensor<'a> {
    device: Arc<Device>,
    tile: Tile,
    shape: (usize, usize),
    /// The handle of the caller's stream as a number, because handles are not `Send`.
    stream: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> DeviceTensor<'a> {
    /// Makes a matrix of elements that the caller owns: element `(i, j)` is at `address` plus `i strides.0 + j strides.1`
    /// elements. One stride must be 1, and the other at least as long as that line. `stream` is the handle of the stream
    /// on which the caller works with the memory, as `torch.cuda.current_stream().cuda_stream` has it; 0 is the default
    /// stream.
    ///
    /// # Safety
    /// The address must be that of memory of `device`, in its primary context (which is that of the runtime, hence of
    /// torch and CuPy), aligned for the type, with room for all elements. Whoever holds the result (for `'a`) must not
    /// free or write it, but for work that is ordered behind on `stream`, which must live as long.
    ///
    /// # Errors
    /// [`Error::Empty`] for a shape without elements, and [`Error::Shape`] for other strides.
    pub unsafe fn from_raw(
        device: &Arc<Device>,
        address: u64,
        shape: (usize, usize),
        strides: (usize, usize),
        dtype: DType,
        stream: usize,
    ) -> Result<Self> {
        let (m, n) = shape;
        if m == 0 || n == 0 {
            return Err(Error::Empty { shape: vec![m, n] });
        }
        // A stride along an axis of one element means nothing.
        let (ld, lines) = match strides {
            (ld, column) if (column == 1 || n == 1) && (ld >= n || m == 1) => (ld.max(n), Lines::Rows),
            (row, ld) if (row == 1 || m == 1) && (ld >= m || n == 1) => (ld.max(m), Lines::Columns),
            _ => {
                let want = "rows or columns of adjacent elements, which do not overlap (make the tensor contiguous)";
                return Err(Error::shape("DeviceTensor", want, format_args!("{m}×{n} with strides {strides:?}")));
            }
        };
        let tile = Tile { at: address, dtype, ld, lines };
        Ok(DeviceTensor { device: device.clone(), tile, shape, stream, memory: PhantomData })
    }

    /// Makes a matrix of memory that this crate owns.
    pub(super) fn of_tile(device: &Arc<Device>, tile: Tile, shape: (usize, usize), stream: usize) -> Self {
        DeviceTensor { device: device.clone(), tile, shape, stream, memory: PhantomData }
    }

    /// Returns the device that has the memory.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Returns the address of element (0, 0).
    pub fn address(&self) -> u64 {
        self.tile.at
    }

    /// Returns rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Returns the distances from a row to the next and from a column to the next, in elements.
    pub fn strides(&self) -> (usize, usize) {
        match self.tile.lines {
            Lines::Rows => (self.tile.ld, 1),
            Lines::Columns => (1, self.tile.ld),
        }
    }

    /// Returns the type of the elements.
    pub fn dtype(&self) -> DType {
        self.tile.dtype
    }

    /// Returns the transpose, in the same memory.
    #[must_use]
    pub fn transpose(&self) -> Self {
        DeviceTensor { tile: self.tile.t(), shape: (self.shape.1, self.shape.0), ..self.clone() }
    }

    /// Returns a part of the matrix, in the same memory.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows or columns that the matrix does not have, or none.
    pub fn submatrix(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Self> {
        let (m, n) = self.shape;
        if rows.start >= rows.end || columns.start >= columns.end || rows.end > m || columns.end > n {
            let want = format_args!("rows and columns of {m}×{n}");
            return Err(Error::shape("submatrix", want, format_args!("{rows:?} and {columns:?}")));
        }
        let shape = (rows.len(), columns.len());
        Ok(DeviceTensor { tile: self.tile.from(rows.start, columns.start), shape, ..self.clone() })
    }

    pub(super) fn tile(&self) -> Tile {
        self.tile
    }

    /// Puts this crate's stream behind what the caller has enqueued, and the caller's behind this crate's when the result
    /// is dropped.
    pub(crate) fn turn(&self) -> Result<Turn> {
        Turn::new(&self.device, self.stream)
    }

    /// Returns the handle of the caller's stream.
    pub(crate) fn stream(&self) -> usize {
        self.stream
    }

    /// Finds the first NaN or infinity. It must only be called when there is one.
    #[cold]
    pub(crate) fn first_not_finite(&self) -> Result<Error> {
        /// The most elements of a block of rows.
        const ELEMENTS: usize = 1 << 20;
        let (m, n) = self.shape;
        let step = (ELEMENTS / n).clamp(1, m);
        for first in (0..m).step_by(step) {
            let count = step.min(m - first);
            let block = DevicePanel::<f64>::zeros(&self.device, count, n)?;
            convert(&self.device, self.tile.from(first, 0), block.tile(0), (count, n), 1.0)?;
            let mut host = Mat::<f64>::zeros(count, n);
            block.copy_to_host(host.as_mut())?;
            if host.col_iter().any(|column| column.iter().any(|x| !x.is_finite())) {
                return Ok(match first_not_finite(f64::view(host.as_ref())) {
                    Error::NotFinite { row, col, value } => Error::NotFinite { row: first + row, col, value },
                    error => error,
                });
            }
        }
        unreachable!("called after a scan that found a value that is not finite")
    }
}

/// A matrix in device memory that may be written; [`DeviceTensor`] otherwise.
#[derive(Debug)]
pub struct DeviceTensorMut<'a>(DeviceTensor<'a>);

impl<'a> DeviceTensorMut<'a> {
    /// Makes a matrix to be written of one to be read, or of a part of it.
    ///
    /// # Safety
    /// What [`DeviceTensor::from_raw`] asks for; and for `'a` nothing else may read the memory, either, but for work that
    /// is ordered behind on its stream.
    pub unsafe fn new(tensor: DeviceTensor<'a>) -> Self {
        DeviceTensorMut(tensor)
    }

    /// Returns the matrix to be read.
    pub fn as_tensor(&self) -> &DeviceTensor<'a> {
        &self.0
    }
}

/// The time in which this crate's stream has the caller's memory.
#[derive(Debug)]
pub(crate) struct Turn {
    device: Arc<Device>,
    stream: usize,
}

impl Turn {
    pub(super) fn new(device: &Arc<Device>, stream: usize) -> Result<Self> {
        device.enter()?;
        device.order(stream as sys::CUstream, device.compute_stream())?;
        Ok(Turn { device: device.clone(), stream })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // An error here is that of a kernel or of the device, and whoever waits for either stream meets it.
        let _ = self.device.order(self.device.compute_stream(), self.stream as sys::CUstream);
    }
}

/// An `m × n` matrix of any storage type in device memory, row-major.
#[derive(Debug)]
pub struct DeviceArray<E> {
    data: Buffer<E>,
    nrows: usize,
    ncols: usize,
}

impl<E: Element> DeviceArray<E> {
    /// Copies `m × n` elements, row by row, to the device.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are `m n` elements; [`Error::Device`].
    pub fn new(device: &Arc<Device>, data: &[E], nrows: usize, ncols: usize) -> Result<Self> {
        if nrows.checked_mul(ncols) != Some(data.len()) {
            return Err(Error::shape("DeviceArray", format_args!("{nrows}×{ncols} elements"), data.len()));
        }
        Ok(DeviceArray { data: device.upload(data)?, nrows, ncols })
    }

    /// Copies `self <- other` on the device.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both have one shape; [`Error::Device`].
    pub fn copy_from(&mut self, other: &Self) -> Result<()> {
        let (want, got) = ((self.nrows, self.ncols), (other.nrows, other.ncols));
        if want != got {
            return Err(Error::shape("copy_from", format_args!("{want:?}"), format_args!("{got:?}")));
        }
        self.data.device().copy(&other.data, &self.data, 0)
    }

    /// Copies the elements to the host, row by row.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn to_vec(&self) -> Result<Vec<E>> {
        let mut host = vec![E::zeroed(); self.nrows * self.ncols];
        self.data.device().download(&self.data, 0, &mut host)?;
        Ok(host)
    }

    /// Makes an array whose elements are to be written.
    pub(super) fn unwritten(device: &Arc<Device>, nrows: usize, ncols: usize) -> Result<Self> {
        let len = nrows.checked_mul(ncols).ok_or_else(|| Error::TooLarge { shape: vec![nrows, ncols] })?;
        Ok(DeviceArray { data: device.alloc(len)?, nrows, ncols })
    }

    /// Returns the matrix as others borrow it. Work on other streams than that of the [`Device`] has to be ordered with it.
    pub fn as_tensor(&self) -> DeviceTensor<'_> {
        DeviceTensor::of_tile(self.device(), self.tile(), (self.nrows, self.ncols), own_stream(self.device()))
    }

    /// Returns the matrix as others write it.
    pub fn as_tensor_mut(&mut self) -> DeviceTensorMut<'_> {
        DeviceTensorMut(self.as_tensor())
    }

    pub(super) fn tile(&self) -> Tile {
        Tile { at: self.address(), dtype: E::DTYPE, ld: self.ncols, lines: Lines::Rows }
    }

    pub(super) fn shape(&self) -> (usize, usize) {
        (self.nrows, self.ncols)
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        self.data.device()
    }

    pub(super) fn address(&self) -> u64 {
        self.data.address(0)
    }
}

/// Returns the handle of the stream of the device, on which what it does is in order without events.
fn own_stream(device: &Device) -> usize {
    device.compute_stream() as usize
}
