//! A matrix on the device, or streamed through it.
//!
//! ```text
//!   resident   A  m × n  in its storage type (f16, bf16 for f32 arithmetic), else in T    one upload
//!   borrowed   the caller's memory, in either order, where resident would keep its type    none
//!   streamed   two tiles of rows: one is multiplied while the other comes in              one upload for each product
//! ```
//! A matrix stays on the host when it would take more than three quarters of what [`Device::memory_limit`] leaves. Wide
//! matrices come in as transposed views and are transposed on the way, tile by tile, so that rows lie together on the
//! device whatever the strides on the host.
//!
//! **Halves.** cuBLAS multiplies f16 by f16. A panel of f32 is split into three panels of halves that hold its 24 bits
//! (`split_f32_*`), and `A X` is the sum of three products on tensor cores: exact before the sums, which are in f32.
//! Tensor cores have more than ten times the rate of f32, so that three products cost less than one.
//!
//! The first sweep on the device finds NaN, infinities, `max |a|` and `‖A‖_F²`. Values whose squares would leave the
//! range of T are scaled by a power of two as [`Dense`](crate::operator::Dense) does.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use faer::{Mat, MatRef};

use super::convert::convert;
use super::device::{Buffer, Device, Event, Pinned};
use super::panel::{DevicePanel, Statistics, statistics};
use super::product::{Factor, Precision, product};
use super::sketch;
use super::tensor::DeviceTensor;
use super::tile::{Lines, Tile};
use crate::error::{DeviceFault, Error, Result};
use crate::linalg::for_each_line;
use crate::operator::{Entries, Facts, LinearOperator, Symmetric, Watch, first_not_finite};
use crate::parallel;
use crate::simd::Scalar;
use crate::sketch::AnySketch;
use crate::space::Layout;
use crate::tensor::{DType, Element, MatView, with_view};

/// Rows in device memory whose beginnings are `ld` elements apart.
#[derive(Debug)]
struct Rows {
    data: Buffer<u8>,
    dtype: DType,
    ld: usize,
}

impl Rows {
    fn new(device: &Arc<Device>, rows: usize, n: usize, dtype: DType) -> Result<Self> {
        let ld = Rows::leading_dimension(n, dtype);
        let bytes = rows.checked_mul(ld * dtype.size()).ok_or_else(|| Error::TooLarge { shape: vec![rows, n] })?;
        Ok(Rows { data: device.alloc(bytes)?, dtype, ld })
    }

    /// Returns the elements from one row to the next: rows begin at multiples of 16 bytes.
    fn leading_dimension(n: usize, dtype: DType) -> usize {
        n.next_multiple_of(16 / dtype.size())
    }

    fn tile(&self) -> Tile {
        Tile { at: self.data.address(0), dtype: self.dtype, ld: self.ld, lines: Lines::Rows }
    }
}

enum Data<'a> {
    Resident(Arc<Rows>),
    /// Memory that outlives `'a`.
    Borrowed(Tile),
    /// The matrix is tall, of any strides; `rows` rows of it make a tile of type `dtype`.
    Streamed {
        view: MatView<'a>,
        tile_rows: usize,
        dtype: DType,
    },
}

/// An `m × n` matrix, `m >= n`, multiplied on the device.
pub struct DeviceMatrix<'a, T> {
    device: Arc<Device>,
    data: Data<'a>,
    nrows: usize,
    ncols: usize,
    scale: f64,
    norm_squared: f64,
    passes: usize,
    precision: Precision,
    watch: Watch<'a>,
    arithmetic: PhantomData<T>,
}

/// Returns the exponent e of the range `2^-e..2^e` of `max |a|` within which squares and their sums stay clear of over-
/// and underflow.
const fn safe_exponent<T: Scalar>() -> i32 {
    if size_of::<T>() == 4 { 40 } else { 400 }
}

/// Tells whether cuBLAS multiplies elements of a type with panels of `T`.
fn is_multiplied<T: Scalar>(storage: DType) -> bool {
    storage == T::DTYPE || (matches!(storage, DType::F16 | DType::BF16) && T::DTYPE == DType::F32)
}

/// Returns the power of two that a matrix is multiplied by, 1 unless its squares would leave the range of `T`.
fn scale_for<T: Scalar>(found: &Statistics) -> f64 {
    let exponent = if found.largest > 0.0 { found.largest.log2().floor() as i32 } else { 0 };
    if exponent.abs() > safe_exponent::<T>() { 2f64.powi(-exponent) } else { 1.0 }
}

impl<'a, T: Scalar> DeviceMatrix<'a, T> {
    /// Checks the matrix and copies it to the device if it fits. `view` must be tall or square.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is wide, [`Error::Empty`], [`Error::NotFinite`], [`Error::Device`].
    pub fn new(device: &Arc<Device>, view: MatView<'a>) -> Result<Self> {
        let (m, n) = (view.nrows(), view.ncols());
        if m == 0 || n == 0 {
            return Err(Error::Empty { shape: vec![m, n] });
        }
        if m < n {
            return Err(Error::shape(
                "DeviceMatrix",
                "a tall matrix (hand over the transpose)",
                format_args!("{m}×{n}"),
            ));
        }
        let storage = view.dtype();
        let direct = is_multiplied::<T>(storage);
        let budget = device.free_memory();
        let fits = |dtype: DType| {
            let row = Rows::leading_dimension(n, dtype) * dtype.size();
            m.checked_mul(row).is_some_and(|bytes| bytes <= budget / 4 * 3)
        };
        let tile_rows = |dtype: DType| {
            let row = Rows::leading_dimension(n, dtype) * dtype.size();
            (budget / 8 / row).clamp(1, m)
        };
        let mut this = DeviceMatrix {
            device: device.clone(),
            data: Data::Streamed { view, tile_rows: tile_rows(storage), dtype: storage },
            nrows: m,
            ncols: n,
            scale: 1.0,
            norm_squared: 0.0,
            passes: 0,
            precision: Precision::Full,
            watch: Watch::default(),
            arithmetic: PhantomData,
        };
        // What fits in its storage type is swept where it will stay.
        let mut found = if direct && fits(storage) {
            let rows = Rows::new(device, m, n, storage)?;
            Loader::new(device)?.load(view, &rows, 1.0)?;
            let found = statistics(device, rows.tile(), (m, n))?;
            this.data = Data::Resident(Arc::new(rows));
            found
        } else {
            this.sweep()?
        };
        if !found.finite {
            return Err(first_not_finite(view));
        }
        this.scale = scale_for::<T>(&found);
        if !direct || this.scale != 1.0 {
            this.data = Data::Streamed { view, tile_rows: tile_rows(T::DTYPE), dtype: T::DTYPE };
            if fits(T::DTYPE) {
                let rows = Rows::new(device, m, n, T::DTYPE)?;
                Loader::new(device)?.load(view, &rows, this.scale)?;
                this.data = Data::Resident(Arc::new(rows));
            }
            if this.scale != 1.0 {
                found = this.sweep()?;
            }
        }
        this.norm_squared = found.sum_squares;
        this.passes = 0;
        Ok(this)
    }

    /// Checks a matrix in the caller's memory, and multiplies it, or its transpose if it is wide, where it is. A copy is
    /// made only of one that cuBLAS cannot multiply with panels of `T`, because it has another type than `T` (halves go
    /// with f32), or because its squares would leave the range of `T`.
    ///
    /// All work is enqueued on the stream of the device, behind which the caller has to order what writes `a`.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::Device`].
    pub(crate) fn borrowed(a: &DeviceTensor<'a>) -> Result<Self> {
        let (rows, columns) = a.shape();
        let (tile, m, n) = if rows < columns { (a.tile().t(), columns, rows) } else { (a.tile(), rows, columns) };
        let device = a.device();
        let mut found = statistics(device, tile, (m, n))?;
        if !found.finite {
            return Err(a.first_not_finite()?);
        }
        let scale = scale_for::<T>(&found);
        let data = if is_multiplied::<T>(tile.dtype) && scale == 1.0 {
            Data::Borrowed(tile)
        } else {
            let rows = Rows::new(device, m, n, T::DTYPE)?;
            convert(device, tile, rows.tile(), (m, n), scale)?;
            if scale != 1.0 {
                found = statistics(device, rows.tile(), (m, n))?;
            }
            Data::Resident(Arc::new(rows))
        };
        Ok(DeviceMatrix {
            device: device.clone(),
            data,
            nrows: m,
            ncols: n,
            scale,
            norm_squared: found.sum_squares,
            passes: 0,
            precision: Precision::Full,
            watch: Watch::default(),
            arithmetic: PhantomData,
        })
    }

    /// Makes the operator ask `watch` before every product, or tile of one, whether to go on.
    #[must_use]
    #[doc(hidden)]
    pub fn watched(mut self, watch: Watch<'a>) -> Self {
        self.watch = watch;
        self
    }

    /// Returns the device that the matrix lives on.
    #[doc(hidden)]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Makes the operator that finds the range at less precision, and tells whether the matrix itself is rounded for it:
    /// panels are rounded to halves, and a matrix of f32 to bf16, once. `None` stands for other arithmetic than f32, a
    /// matrix that is streamed, and one that leaves no memory for its rounded copy.
    pub(crate) fn coarse(&self) -> Result<Option<(Self, bool)>> {
        let tile = match &self.data {
            Data::Resident(rows) => rows.tile(),
            Data::Borrowed(tile) => *tile,
            Data::Streamed { .. } => return Ok(None),
        };
        let data = match (T::DTYPE, tile.dtype) {
            (DType::F32, DType::F16 | DType::BF16) => match &self.data {
                Data::Resident(rows) => Data::Resident(rows.clone()),
                _ => Data::Borrowed(tile),
            },
            (DType::F32, DType::F32) => {
                let shape = (self.nrows, self.ncols);
                let bytes = shape.0 * Rows::leading_dimension(shape.1, DType::BF16) * DType::BF16.size();
                // Panels have to find room, too.
                if bytes > self.device.free_memory() / 2 {
                    return Ok(None);
                }
                let rows = match Rows::new(&self.device, shape.0, shape.1, DType::BF16) {
                    Err(Error::Device { fault: DeviceFault::OutOfMemory, .. }) => return Ok(None),
                    rows => rows?,
                };
                convert(&self.device, tile, rows.tile(), shape, 1.0)?;
                Data::Resident(Arc::new(rows))
            }
            _ => return Ok(None),
        };
        let is_rounded = tile.dtype == DType::F32;
        let watch = self.watch.clone();
        Ok(Some((
            DeviceMatrix { data, precision: Precision::Coarse, passes: 0, watch, device: self.device.clone(), ..*self },
            is_rounded,
        )))
    }

    /// Counts the passes of another operator of the matrix as this one's.
    pub(crate) fn count_passes_of(&mut self, other: &Self) {
        self.passes += other.passes;
    }

    /// Tells whether the matrix is on the device, and not streamed through it.
    #[doc(hidden)]
    pub fn is_resident(&self) -> bool {
        !matches!(self.data, Data::Streamed { .. })
    }

    /// Computes the statistics of the matrix as it is multiplied.
    fn sweep(&mut self) -> Result<Statistics> {
        let (device, n) = (self.device.clone(), self.ncols);
        let mut total = Statistics { finite: true, ..Statistics::default() };
        self.for_each_tile(|_, count, tile| {
            let part = statistics(&device, tile, (count, n))?;
            total.largest = total.largest.max(part.largest);
            total.sum_squares += part.sum_squares;
            total.finite &= part.finite;
            Ok(())
        })?;
        Ok(total)
    }

    /// Calls `f(first row, rows, tile)` for the whole matrix at once, or tile by tile in order. While `f`'s work on one
    /// tile runs on the device, the next one comes in.
    fn for_each_tile(&mut self, mut f: impl FnMut(usize, usize, Tile) -> Result<()>) -> Result<()> {
        self.passes += 1;
        let mut whole = |tile: Tile| {
            self.watch.check()?;
            f(0, self.nrows, tile)?;
            self.watch.read((self.nrows * self.ncols * tile.dtype.size()) as u64);
            Ok(())
        };
        match &self.data {
            Data::Resident(rows) => whole(rows.tile()),
            Data::Borrowed(tile) => whole(*tile),
            Data::Streamed { view, tile_rows, dtype } => {
                let tiles = [
                    Rows::new(&self.device, *tile_rows, self.ncols, *dtype)?,
                    Rows::new(&self.device, *tile_rows, self.ncols, *dtype)?,
                ];
                let mut loader = Loader::new(&self.device)?;
                // Once the device is done with a tile, the next tile but one may take its place.
                let multiplied = [Event::new(&self.device)?, Event::new(&self.device)?];
                for (i, first) in (0..self.nrows).step_by(*tile_rows).enumerate() {
                    self.watch.check()?;
                    if i >= 2 {
                        multiplied[i % 2].holds(self.device.transfer_stream())?;
                    }
                    let count = (*tile_rows).min(self.nrows - first);
                    loader.load(view.subrows(first, count), &tiles[i % 2], self.scale)?;
                    f(first, count, tiles[i % 2].tile())?;
                    multiplied[i % 2].record(self.device.compute_stream())?;
                    self.watch.read((count * self.ncols * view.dtype().size()) as u64);
                }
                Ok(())
            }
        }
    }
}

impl<T: Scalar> LinearOperator<T> for DeviceMatrix<'_, T> {
    type Space = Arc<Device>;

    fn space(&self) -> &Arc<Device> {
        &self.device
    }

    fn facts(&self) -> Facts {
        Facts {
            shape: (self.nrows, self.ncols),
            norm_squared: self.norm_squared,
            scale: self.scale,
            passes: self.passes,
            image: Layout::Columns,
        }
    }

    fn apply(&mut self, x: &DevicePanel<T>, y: &mut DevicePanel<T>) -> Result<()> {
        let (device, factor) = (self.device.clone(), Factor::new(x, self.dtype(), self.precision)?);
        let (n, l) = (self.ncols, x.ncols());
        self.for_each_tile(|first, count, tile| {
            product(&device, (count, l, n), tile.operand(0, 0), &factor, 0, T::zeroed(), y.operand(first))
        })
    }

    fn apply_adjoint(&mut self, y: &DevicePanel<T>, x: &mut DevicePanel<T>) -> Result<()> {
        let (device, factor) = (self.device.clone(), Factor::new(y, self.dtype(), self.precision)?);
        let (n, l) = (self.ncols, y.ncols());
        self.for_each_tile(|first, count, tile| {
            let beta = if first == 0 { T::zeroed() } else { T::one() };
            product(&device, (n, l, count), tile.operand(0, 0).t(), &factor, first, beta, x.operand(0))
        })
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut DevicePanel<T>) -> Result<()> {
        let prepared = sketch::Prepared::new(&self.device, omega)?;
        self.for_each_tile(|first, count, tile| prepared.apply(tile, (first, count), y))
    }

    fn gram(&mut self) -> Result<Symmetric<T, Arc<Device>>> {
        let mut g = DevicePanel::zeros(&self.device, self.ncols, self.ncols)?;
        self.for_each_tile(|first, count, tile| {
            g.gram_of(tile.operand(0, 0), count, if first == 0 { T::zeroed() } else { T::one() })
        })?;
        g.mirror()?;
        Ok(Symmetric::new(&self.device, g)?.watched(&self.watch))
    }

    /// Computes `Eᵀ = Aᵀ S`, its transpose, and `Aᵀ E`: two products with A, as with any panel.
    fn congruence(&mut self, s: &DevicePanel<T>, g: &mut DevicePanel<T>) -> Result<()> {
        let (m, n) = (self.nrows, self.ncols);
        let mut turned = DevicePanel::zeros(&self.device, n, m)?;
        {
            let mut whole = s.duplicate()?;
            whole.mirror()?;
            self.apply_adjoint(&whole, &mut turned)?;
        }
        let e = DevicePanel::zeros(&self.device, m, n)?;
        convert(&self.device, turned.tile(0).t(), e.tile(0), (m, n), 1.0)?;
        drop(turned);
        self.apply_adjoint(&e, g)?;
        g.mirror()
    }

    fn materialize(&mut self, y: &mut DevicePanel<T>) -> Result<()> {
        let (device, n) = (self.device.clone(), self.ncols);
        self.for_each_tile(|first, count, tile| convert(&device, tile, y.tile(first), (count, n), 1.0))
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        let (device, n) = (self.device.clone(), self.ncols);
        let step = (Pinned::capacity::<T>() / n).clamp(1, self.nrows);
        let mut host = Mat::zeros(step, n);
        self.for_each_tile(|first, count, tile| {
            for row in (0..count).step_by(step) {
                let rows = step.min(count - row);
                let block = DevicePanel::<T>::zeros(&device, rows, n)?;
                convert(&device, tile.from(row, 0), block.tile(0), (rows, n), 1.0)?;
                block.copy_to_host(host.subrows_mut(0, rows))?;
                f(first + row, host.subrows(0, rows))?;
            }
            Ok(())
        })
    }
}

impl<T: Scalar> DeviceMatrix<'static, T> {
    /// Makes the operator of a small matrix of any shape, copied to the device as it is: nothing is checked or scaled.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn from_host(device: &Arc<Device>, a: MatRef<'_, T>) -> Result<Self> {
        // The columns of Aᵀ are the rows of A.
        let transposed = DevicePanel::from_host(device, a.transpose())?;
        let norm_squared = transposed.norm_squared()?;
        let (data, ld) = transposed.into_bytes();
        Ok(DeviceMatrix {
            device: device.clone(),
            data: Data::Resident(Arc::new(Rows { data, dtype: T::DTYPE, ld })),
            nrows: a.nrows(),
            ncols: a.ncols(),
            scale: 1.0,
            norm_squared,
            passes: 0,
            precision: Precision::Full,
            watch: Watch::default(),
            arithmetic: PhantomData,
        })
    }

    /// Makes the operator of a root of moments.
    pub(crate) fn boxed_root(
        device: &Arc<Device>,
        root: Entries<T>,
    ) -> Result<Box<dyn LinearOperator<T, Space = Arc<Device>>>> {
        Ok(Box::new(DeviceMatrix::from_host(device, root.dense().as_ref())?))
    }
}

impl<T: Scalar> DeviceMatrix<'_, T> {
    /// Returns the type of the elements on the device.
    fn dtype(&self) -> DType {
        match &self.data {
            Data::Resident(rows) => rows.dtype,
            Data::Borrowed(tile) => tile.dtype,
            Data::Streamed { dtype, .. } => *dtype,
        }
    }
}

/// Copies rows of a host matrix to the device through two pinned buffers. While the transfer stream copies one, the
/// host's threads fill the other.
struct Loader<'d> {
    device: &'d Arc<Device>,
    lanes: [Lane<'d>; 2],
    turn: usize,
}

struct Lane<'d> {
    pinned: Pinned,
    /// The end of the copy from the pinned buffer.
    copied: Event<'d>,
    in_use: bool,
    /// The buffer of elements that are to be transposed or converted, and the event of its end.
    buffer: Option<Buffer<u8>>,
    converted: Event<'d>,
}

impl<'d> Loader<'d> {
    /// Makes a loader. Its copies wait for what the compute stream has so far, which includes the allocation of
    /// buffers.
    fn new(device: &'d Arc<Device>) -> Result<Self> {
        device.order(device.compute_stream(), device.transfer_stream())?;
        let lane = || {
            let (copied, converted) = (Event::new(device)?, Event::new(device)?);
            Ok::<_, Error>(Lane { pinned: device.pinned()?, copied, in_use: false, buffer: None, converted })
        };
        Ok(Loader { device, lanes: [lane()?, lane()?], turn: 0 })
    }

    /// Computes `dst <- scale · view`, ordered before whatever the compute stream gets next. The caller must make the
    /// transfer stream wait for all that still reads `dst`.
    fn load(&mut self, view: MatView<'_>, dst: &Rows, scale: f64) -> Result<()> {
        let device = self.device;
        with_view!(view, a => self.load_elements(a, dst, scale))?;
        device.order(device.transfer_stream(), device.compute_stream())
    }

    fn load_elements<E: Element>(&mut self, a: MatRef<'_, E>, dst: &Rows, scale: f64) -> Result<()> {
        // Lines are contiguous in storage: rows, or columns of a transposed view.
        let by_rows = a.col_stride().unsigned_abs() <= a.row_stride().unsigned_abs() || a.nrows() == 1;
        let lines = if by_rows { a } else { a.transpose() };
        let direct = by_rows && E::DTYPE == dst.dtype && scale == 1.0;
        let capacity = Pinned::capacity::<E>();
        // A piece is a number of whole lines, padded as rows of the device are, or a part of a line that is longer than
        // a buffer.
        let piece = lines.ncols().min(capacity);
        let stride =
            if piece == lines.ncols() { Rows::leading_dimension(piece, E::DTYPE).min(capacity) } else { piece };
        let step = (capacity / stride).max(1);
        for first in (0..lines.nrows()).step_by(step) {
            let count = step.min(lines.nrows() - first);
            for left in (0..lines.ncols()).step_by(piece) {
                let width = piece.min(lines.ncols() - left);
                let block = lines.submatrix(first, left, count, width);
                if direct && width == lines.ncols() && stride == dst.ld {
                    self.copy(block, stride, dst.tile().from(first, 0), None)?;
                } else if by_rows {
                    self.copy(block, stride, dst.tile().from(first, left), Some(scale))?;
                } else {
                    self.copy(block, stride, dst.tile().from(left, first).t(), Some(scale))?;
                }
            }
        }
        Ok(())
    }

    /// Copies lines to the rows of `to`, directly or through a buffer that is then converted to `to`.
    fn copy<E: Element>(&mut self, lines: MatRef<'_, E>, stride: usize, to: Tile, scale: Option<f64>) -> Result<()> {
        let (device, lane) = (self.device, &mut self.lanes[self.turn]);
        self.turn = 1 - self.turn;
        if lane.in_use {
            lane.copied.wait()?;
        }
        let (count, width) = (lines.nrows(), lines.ncols());
        let data = lane.pinned.as_slice_mut::<E>(stride * count);
        gather(lines, stride, data);
        let target = match scale {
            None => to.at,
            Some(_) => {
                let bytes = size_of_val(data);
                let buffer = match lane.buffer.take() {
                    Some(buffer) if buffer.len() >= bytes => {
                        lane.converted.holds(device.transfer_stream())?;
                        buffer
                    }
                    _ => {
                        let buffer = device.alloc::<u8>(bytes)?;
                        device.order(device.compute_stream(), device.transfer_stream())?;
                        buffer
                    }
                };
                lane.buffer.insert(buffer).address(0)
            }
        };
        device.transfer(target, data)?;
        lane.copied.record(device.transfer_stream())?;
        lane.in_use = true;
        let Some(scale) = scale else { return Ok(()) };
        device.order(device.transfer_stream(), device.compute_stream())?;
        let from = Tile { at: target, dtype: E::DTYPE, ld: stride, lines: Lines::Rows };
        convert(device, from, to, (count, width), scale)?;
        lane.converted.record(device.compute_stream())
    }
}

impl Drop for Loader<'_> {
    /// Waits for the copies, so that the pinned buffers go back to the stock unused.
    fn drop(&mut self) {
        for lane in self.lanes.iter().filter(|lane| lane.in_use) {
            // An error here has been or will be reported by the stream.
            let _ = lane.copied.wait();
        }
    }
}

/// Gathers lines at a distance of `stride` elements, with padding zeroed.
fn gather<E: Element + Pod>(lines: MatRef<'_, E>, stride: usize, to: &mut [E]) {
    for_each_line(to, stride, parallel::current_par(), |i, to| {
        let row = lines.row(i);
        match row.try_as_row_major() {
            Some(row) => to[..row.ncols()].copy_from_slice(row.as_slice()),
            None => (0..row.ncols()).for_each(|j| to[j] = row[j]),
        }
        to[lines.ncols()..].fill(E::zeroed());
    });
}
