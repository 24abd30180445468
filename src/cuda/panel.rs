//! Panels in device memory, column-major. The leading dimension is padded to 8 elements, so that columns begin at 16
//! bytes, and the padding holds zeros.
//!
//! Orthonormalization is the driver of [`qr`](crate::qr), which decides on l × l matrices on the host; the device forms
//! Gram matrices (SYRK in f32, or in f64 of a widened block of rows) and divides by triangles (TRSM). What CholeskyQR
//! cannot do goes to cuSOLVER's reflections.

use std::sync::Arc;

use faer::{Mat, MatMut, MatRef};

use super::blas::{self, Operand, Strided, axpy, gemm, syrk};
use super::convert::convert;
use super::device::{Arguments, Buffer, Device, GRID_Y, Launch, Pinned};
use super::tile::{Lines, Tile};
use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::space::copy;
use crate::tensor::DType;

/// Rows that are widened to f64 at a time for a Gram matrix: 2^15 × 266 take 70 MB.
const WIDE_ROWS: usize = 1 << 15;

/// Columns up to which a Gram matrix is formed by a GEMM. SYRK does not cut the sum, so that its tiles of 128 × 128
/// keep few multiprocessors busy.
const GEMM_COLUMNS: usize = 1024;

/// An `m × l` panel in device memory.
#[derive(Debug)]
pub struct DevicePanel<T> {
    data: Buffer<T>,
    nrows: usize,
    ncols: usize,
    ld: usize,
}

impl<T: Scalar> DevicePanel<T> {
    /// Allocates a panel of zeros.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn zeros(device: &Arc<Device>, nrows: usize, ncols: usize) -> Result<Self> {
        let ld = nrows.next_multiple_of(8);
        let len = ld.checked_mul(ncols).ok_or_else(|| Error::TooLarge { shape: vec![nrows, ncols] })?;
        Ok(DevicePanel { data: device.zeros(len)?, nrows, ncols, ld })
    }

    /// Copies `src` to a new panel.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn from_host(device: &Arc<Device>, src: MatRef<'_, T>) -> Result<Self> {
        let mut panel = DevicePanel::zeros(device, src.nrows(), src.ncols())?;
        panel.copy_from_host(src)?;
        Ok(panel)
    }

    /// Returns the bytes of a panel of this shape.
    pub fn bytes(nrows: usize, ncols: usize) -> usize {
        nrows.next_multiple_of(8) * ncols * size_of::<T>()
    }

    /// Returns the device that the panel lives on.
    pub fn device(&self) -> &Arc<Device> {
        self.data.device()
    }

    /// Returns the memory itself, and the leading dimension.
    pub(super) fn into_bytes(self) -> (Buffer<u8>, usize) {
        (self.data.into_bytes(), self.ld)
    }

    pub(super) fn ld(&self) -> usize {
        self.ld
    }

    /// Returns the address of element `(row, 0)`.
    pub(super) fn address(&self, row: usize) -> u64 {
        self.data.address(row)
    }

    /// Returns the panel from a row on as a matrix in memory.
    pub(super) fn tile(&self, first_row: usize) -> Tile {
        Tile { at: self.address(first_row), dtype: T::DTYPE, ld: self.ld, lines: Lines::Columns }
    }

    pub(super) fn operand(&self, first_row: usize) -> Operand {
        Operand { at: self.address(first_row), dtype: T::DTYPE, ld: self.ld, transposed: false }
    }

    /// Computes the largest modulus and the sum of squares.
    pub(super) fn statistics(&self) -> Result<Statistics> {
        statistics(self.device(), self.tile(0), (self.nrows, self.ncols))
    }

    /// Returns the entry of largest modulus of each column, of several the first one.
    ///
    /// # Errors
    /// [`Error::Device`].
    #[doc(hidden)]
    pub fn peaks(&self) -> Result<Vec<T>> {
        let (device, mut host) = (self.device(), vec![T::zeroed(); self.ncols]);
        let peaks = device.alloc::<T>(self.ncols)?;
        let shape = Launch { grid: (self.ncols, 1), block: (256, 1), shared: 24 * 8 };
        let arguments = Arguments::default().pointer(self.address(0)).pointer(peaks.address(0));
        device.launch(&format!("peaks_{}", T::DTYPE), shape, &mut arguments.size(self.nrows).size(self.ld))?;
        device.download(&peaks, 0, &mut host)?;
        Ok(host)
    }

    /// Multiplies row i by `rows[i]` and column j by `columns[j]`; either may be absent.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of factors is not that of the rows or columns; [`Error::Device`].
    pub fn scale(&mut self, rows: Option<&[T]>, columns: Option<&[T]>) -> Result<()> {
        let wrong = |have: Option<&[T]>, want| have.is_some_and(|x| x.len() != want);
        if wrong(rows, self.nrows) || wrong(columns, self.ncols) {
            let got = (rows.map(<[T]>::len), columns.map(<[T]>::len));
            let want = format_args!("{} factors of rows or {} of columns", self.nrows, self.ncols);
            return Err(Error::shape("scale", want, format_args!("{got:?}")));
        }
        let device = self.device().clone();
        let upload = |x: Option<&[T]>| x.map(|x| device.upload(x)).transpose();
        let (rows, columns) = (upload(rows)?, upload(columns)?);
        let at = |x: &Option<Buffer<T>>| x.as_ref().map_or(0, |x| x.address(0));
        let shape = Launch { grid: (self.nrows.div_ceil(256), self.ncols.min(GRID_Y)), block: (256, 1), shared: 0 };
        let mut arguments = Arguments::default()
            .pointer(self.address(0))
            .pointer(at(&rows))
            .pointer(at(&columns))
            .size(self.nrows)
            .size(self.ncols)
            .size(self.ld);
        device.launch(&format!("scale_{}", T::DTYPE), shape, &mut arguments)
    }

    /// Adds `delta` to the diagonal elements.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn shift_diagonal(&mut self, delta: T) -> Result<()> {
        let n = self.nrows.min(self.ncols);
        let mut arguments = Arguments::default().pointer(self.address(0)).scalar(delta).size(n).size(self.ld);
        self.device().launch(&format!("shift_{}", T::DTYPE), Launch::elements(n), &mut arguments)
    }

    /// Computes at least the lower triangle of `self <- aᵀ a + beta · self`, where `a` has `k` rows.
    pub(super) fn gram_of(&mut self, a: Operand, k: usize, beta: T) -> Result<()> {
        let (device, n) = (self.device().clone(), self.ncols);
        // Halves are multiplied on tensor cores, with sums in T.
        if a.dtype != T::DTYPE || n <= GEMM_COLUMNS {
            return gemm(&device, (n, n, k), T::one(), a.t(), a, beta, self.operand(0));
        }
        syrk(&device, (n, k), a.t(), beta, self.operand(0))
    }

    /// Computes the lower triangle of `selfᵀ self` with products and sums in f64. An f32 panel is widened by blocks of
    /// rows.
    pub(super) fn gram_in_f64(&self, gram: MatMut<'_, f64>) -> Result<()> {
        let (device, l) = (self.device(), self.ncols);
        let mut product = DevicePanel::<f64>::zeros(device, l, l)?;
        if T::DTYPE == DType::F64 {
            product.gram_of(self.operand(0), self.nrows, 0.0)?;
        } else {
            let rows = WIDE_ROWS.min(self.nrows);
            let wide = DevicePanel::<f64>::zeros(device, rows, l)?;
            for first in (0..self.nrows).step_by(rows) {
                let count = rows.min(self.nrows - first);
                convert(device, self.tile(first), wide.tile(0), (count, l), 1.0)?;
                product.gram_of(wide.operand(0), count, if first == 0 { 0.0 } else { 1.0 })?;
            }
        }
        let mut host = Mat::<f64>::zeros(l, l);
        product.copy_to_host(host.as_mut())?;
        write_lower(host.as_ref(), gram);
        Ok(())
    }

    /// Copies the lower triangle to the upper one.
    pub(super) fn mirror(&mut self) -> Result<()> {
        let tiles = self.nrows.div_ceil(32);
        let shape = Launch { grid: (tiles, tiles), block: (32, 8), shared: 32 * 33 * size_of::<T>() };
        let mut arguments = Arguments::default().pointer(self.address(0)).size(self.nrows).size(self.ld);
        self.device().launch(&format!("mirror_{}", T::DTYPE), shape, &mut arguments)
    }
}

/// The largest modulus and the sum of squares of a matrix.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Statistics {
    pub(super) largest: f64,
    pub(super) sum_squares: f64,
    pub(super) finite: bool,
}

impl Statistics {
    fn merge(self, other: Self) -> Self {
        Statistics {
            largest: self.largest.max(other.largest),
            sum_squares: self.sum_squares + other.sum_squares,
            finite: self.finite && other.finite,
        }
    }
}

/// The most blocks of a sweep.
const BLOCKS: usize = 1024;

/// Computes the statistics of an `m × n` matrix.
pub(super) fn statistics(device: &Arc<Device>, tile: Tile, (m, n): (usize, usize)) -> Result<Statistics> {
    let start = Statistics { finite: true, ..Statistics::default() };
    let (lines, width) = if tile.lines == Lines::Rows { (m, n) } else { (n, m) };
    Ok(sweep(device, tile, lines, width)?.into_iter().fold(start, Statistics::merge))
}

/// Computes the statistics of each column of a panel by itself.
pub(super) fn statistics_of_columns<T: Scalar>(panel: &DevicePanel<T>) -> Result<Vec<Statistics>> {
    let (device, columns) = (panel.device(), panel.ncols);
    let mut all = Vec::with_capacity(columns);
    for first in (0..columns).step_by(BLOCKS) {
        all.extend(sweep(device, panel.tile(0).from(0, first), BLOCKS.min(columns - first), panel.nrows)?);
    }
    Ok(all)
}

/// Sweeps over the first lines of a matrix, of `width` elements, and returns the statistics of those that each block
/// takes: one line each, if there are as many blocks.
fn sweep(
    device: &Arc<Device>,
    Tile { at, dtype, ld, .. }: Tile,
    lines: usize,
    width: usize,
) -> Result<Vec<Statistics>> {
    let blocks = lines.min(BLOCKS);
    let partial = device.alloc::<f64>(3 * blocks)?;
    let shape = Launch { grid: (blocks, 1), block: (256, 1), shared: 24 * 8 };
    let mut arguments = Arguments::default().pointer(at).pointer(partial.address(0)).size(lines).size(width).size(ld);
    device.launch(&format!("statistics_{dtype}"), shape, &mut arguments)?;
    let mut host = vec![0.0; 3 * blocks];
    device.download(&partial, 0, &mut host)?;
    let of_block = |x: &[f64]| Statistics { largest: x[0], sum_squares: x[1], finite: x[2] == 0.0 };
    Ok(host.chunks_exact(3).map(of_block).collect())
}

/// Calls `f(first column, how many)` for groups of columns that fit into a pinned buffer.
fn column_chunks<T>(nrows: usize, ncols: usize, mut f: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
    let step = (Pinned::capacity::<T>() / nrows.next_multiple_of(8).max(1)).max(1);
    (0..ncols).step_by(step).try_for_each(|first| f(first, step.min(ncols - first)))
}

impl<T: Scalar> DevicePanel<T> {
    /// Returns the number of rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// Returns the number of columns.
    pub fn ncols(&self) -> usize {
        self.ncols
    }

    /// Copies the panel to `dst` on the host, in any layout.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn copy_to_host(&self, mut dst: MatMut<'_, T>) -> Result<()> {
        let device = self.device();
        let mut host = Host::new(device, self.ld)?;
        column_chunks::<T>(self.nrows, self.ncols, |first, count| {
            let data = host.as_slice_mut(self.ld * count);
            device.download(&self.data, first * self.ld, data)?;
            let data = MatRef::from_column_major_slice_with_stride(data, self.nrows, count, self.ld);
            copy(data, dst.as_mut().subcols_mut(first, count), crate::parallel::current_par());
            Ok(())
        })
    }

    /// Copies `src` from the host, in any layout, to the panel.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn copy_from_host(&mut self, src: MatRef<'_, T>) -> Result<()> {
        let device = self.device().clone();
        let mut host = Host::new(&device, self.ld)?;
        column_chunks::<T>(self.nrows, self.ncols, |first, count| {
            let data = host.as_slice_mut(self.ld * count);
            data.fill(T::zeroed());
            MatMut::from_column_major_slice_with_stride_mut(data, self.nrows, count, self.ld)
                .copy_from(src.subcols(first, count));
            device.write(&self.data, first * self.ld, data)?;
            device.synchronize()
        })
    }

    /// Computes `‖self‖_F²`, in f64.
    pub(super) fn norm_squared(&self) -> Result<f64> {
        Ok(self.statistics()?.sum_squares)
    }

    /// Copies the panel on the device.
    pub(super) fn duplicate(&self) -> Result<Self> {
        let mut copy = DevicePanel::zeros(self.device(), self.nrows, self.ncols)?;
        copy.copy_columns_of(self, 0)?;
        Ok(copy)
    }

    /// Copies `other`, a panel of as many rows, to columns `first..` of `self`.
    pub(super) fn copy_columns_of(&mut self, other: &Self, first: usize) -> Result<()> {
        self.device().copy(&other.data, &self.data, first * self.ld)
    }

    /// Computes `self <- self + alpha · other` for panels of one shape, padding included.
    pub(super) fn add(&mut self, alpha: T, other: &Self) -> Result<()> {
        let at = |panel: &Self| Strided { at: panel.address(0), stride: 1 };
        axpy(self.device(), self.ld * self.ncols, alpha, at(other), at(self))
    }

    /// Computes `Σ self_ij other_ij`, in f64, for panels of one shape.
    pub(super) fn dot(&self, other: &Self) -> Result<f64> {
        let (device, blocks) = (self.device(), self.ncols.min(BLOCKS));
        let partial = device.alloc::<f64>(blocks)?;
        let shape = Launch { grid: (blocks, 1), block: (256, 1), shared: 8 * 8 };
        let mut arguments = Arguments::default()
            .pointer(self.address(0))
            .pointer(other.address(0))
            .pointer(partial.address(0))
            .size(self.ncols)
            .size(self.nrows)
            .size(self.ld)
            .size(other.ld);
        device.launch(&format!("dot_{}", T::DTYPE), shape, &mut arguments)?;
        let mut host = vec![0.0; blocks];
        device.download(&partial, 0, &mut host)?;
        Ok(host.into_iter().sum())
    }

    /// Computes the trace of a square panel, in f64.
    pub(super) fn trace(&self) -> Result<f64> {
        let (device, sum) = (self.device(), self.device().alloc::<f64>(1)?);
        let shape = Launch { grid: (1, 1), block: (256, 1), shared: 8 * 8 };
        let mut arguments =
            Arguments::default().pointer(self.address(0)).pointer(sum.address(0)).size(self.nrows).size(self.ld);
        device.launch(&format!("trace_{}", T::DTYPE), shape, &mut arguments)?;
        let mut host = [0.0];
        device.download(&sum, 0, &mut host)?;
        Ok(host[0])
    }

    /// Calls `f` on the panel with `delta` added to its diagonal. Afterwards the panel is as before, to the last bit.
    pub(super) fn while_shifted(&mut self, delta: T, f: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let (device, n) = (self.device().clone(), self.ncols);
        let kept = device.alloc::<T>(n)?;
        let (aside, diagonal) =
            (Strided { at: kept.address(0), stride: 1 }, Strided { at: self.address(0), stride: self.ld + 1 });
        blas::copy::<T>(&device, n, diagonal, aside)?;
        self.shift_diagonal(delta)?;
        let done = f(self);
        blas::copy::<T>(&device, n, aside, diagonal)?;
        done
    }
}

/// The buffer of columns between host and device: pinned memory, unless a single column is too long for it.
enum Host<T> {
    Pinned(Pinned),
    Pageable(Vec<T>),
}

impl<T: Scalar> Host<T> {
    fn new(device: &Arc<Device>, column: usize) -> Result<Self> {
        Ok(if column <= Pinned::capacity::<T>() { Host::Pinned(device.pinned()?) } else { Host::Pageable(Vec::new()) })
    }

    fn as_slice_mut(&mut self, len: usize) -> &mut [T] {
        match self {
            Host::Pinned(pinned) => pinned.as_slice_mut(len),
            Host::Pageable(data) => {
                data.resize(len, T::zeroed());
                data
            }
        }
    }
}

/// Writes the lower triangle of `to <- from`.
pub(super) fn write_lower<T: Scalar>(from: MatRef<'_, T>, mut to: MatMut<'_, f64>) {
    for j in 0..to.ncols() {
        for i in j..to.nrows() {
            to[(i, j)] = from[(i, j)].to_f64();
        }
    }
}
