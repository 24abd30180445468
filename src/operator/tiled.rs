//! A matrix that is read, not held: products in one pass over blocks of rows that come from a [`RowSource`].
//!
//! ```text
//!   source    line 0..b │ line b..2b │ ...        lines: rows, or the columns of a matrix in column-major order
//!                │ reader thread: tile i + 1 into one buffer
//!                ▼            meanwhile: tile i from the other ─> convert, block by block ─> GEMM
//!
//!   lines are rows of A      Y_i = A_i X            X  += A_iᵀ Y_i         G += A_iᵀ A_i        Y_i  = A_i Ω
//!   lines are columns of A   Y  += A_j X_j          X_j = A_jᵀ Y           (blocks across)      Y   += A_j Ω_j
//! ```
//!
//! **Cost.** Memory is two read buffers in the element type of the source and one conversion buffer ([`Tiled::bytes`]).
//! Time is the larger of reading and computing: reading runs one tile ahead on a thread of its own, and threads that
//! multiply go from tile to tile without waiting (`flow.rs`). Sums go in tile order, so that the bits depend on the
//! tile size and on nothing else.
//!
//! **The input check** (finite? `max |a|`, `‖A‖_F²`) rides on the first product, because a pass is expensive. Only when
//! `max |a|` turns out to be outside of what squares in `T` can hold is that pass repeated with a scale.
//! [`Tiled::check`] takes a pass for the check alone. Later passes compare a sum of the bytes with that of the first: a
//! source that changes meanwhile is an error.
//!
//! **Across the lines.** The Gram matrix of a matrix whose lines are its columns would need every pair of lines. It is
//! read in blocks across all lines instead ([`RowSource::read_block`]): one pass, in shorter reads.
//!
//! **Why not `mmap`.** Pages of a mapped file count as resident memory, and a file that is cut short ends the process
//! by SIGBUS where a read returns an error.

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;

use faer::prelude::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par, unzip, zip};

use super::dense::{Scan, TileParams, convert_tile, gram_of, scale_for, scaled_norm_squared, scan};
use super::flow::{Flow, Read, Tiles};
use super::stored::{Bands, Chunks, block_elements, split_rows, stored_product, submatrix};
use super::{Facts, LinearOperator, Symmetric, Watch};
use crate::error::{Error, Result};
use crate::linalg::{add_gram, add_up, gram_groups};
use crate::parallel::{self, lock};
use crate::simd::Scalar;
use crate::sketch::{AnySketch, SketchOperator};
use crate::space::{Host, HostPanel, Layout as PanelLayout, congruence};
use crate::tensor::{DType, MatView, TensorRef, with_view};

/// A matrix that can be read a few lines at a time, as often as it is asked for: a file, a store of tensors, a
/// generator.
///
/// A line is a row; in a matrix stored in column-major order ([`is_column_major`](Self::is_column_major)) it is a
/// column.
pub trait RowSource: Send {
    /// Returns the rows and columns of the matrix, `(m, n)`.
    fn shape(&self) -> (usize, usize);

    /// Returns the element type.
    fn dtype(&self) -> DType;

    /// Tells whether lines are columns. The default is rows.
    fn is_column_major(&self) -> bool {
        false
    }

    /// Fills `dst` with the lines that start at `first`, one after another, in native byte order. `dst` has the bytes
    /// of a whole number of lines.
    ///
    /// # Errors
    /// Any error that the source returns; the factorization ends with it.
    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()>;

    /// Returns the bytes that the source itself takes while it is read, beside what it fills. The default is none.
    fn scratch_bytes(&self) -> usize {
        0
    }

    /// Fills `dst` with elements `part` of every line, line after line. The default reads whole lines and drops the
    /// rest.
    ///
    /// # Errors
    /// Any error that the source returns, as in [`read_rows`](Self::read_rows).
    fn read_block(&mut self, part: Range<usize>, dst: &mut [u8]) -> Result<()> {
        let (m, n) = self.shape();
        let width = if self.is_column_major() { m } else { n };
        let size = self.dtype().size();
        let mut line = vec![0; width * size];
        for (i, dst) in dst.chunks_exact_mut(part.len() * size).enumerate() {
            self.read_rows(i, &mut line)?;
            dst.copy_from_slice(&line[part.start * size..part.end * size]);
        }
        Ok(())
    }
}

/// A matrix in memory, read as if it were not: for tests, and for tensors that are made of parts.
impl RowSource for TensorRef<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.shape()[0], self.shape()[1..].iter().product())
    }

    fn dtype(&self) -> DType {
        self.dtype()
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()> {
        let view = self.view()?;
        let size = view.dtype().size();
        with_view!(view, a => {
            for (i, line) in dst.chunks_exact_mut(a.ncols() * size).enumerate() {
                if let Some(row) = a.row(first + i).try_as_row_major() {
                    line.copy_from_slice(bytemuck::cast_slice(row.as_slice()));
                    continue;
                }
                for (x, dst) in a.row(first + i).iter().zip(line.chunks_exact_mut(size)) {
                    dst.copy_from_slice(bytemuck::bytes_of(x));
                }
            }
        });
        Ok(())
    }
}

/// Sizes of the read buffers.
#[derive(Debug, Clone, Copy)]
pub struct ReadParams {
    /// The bytes of one buffer, where memory allows, for what is fed rows: sums as long as the matrix is wide grow once
    /// per block.
    pub bytes: usize,
    /// The bytes of one buffer for products with panels. Two such buffers stay in L3 and save a write and a read of
    /// memory for every byte read, which is more than the cost of the panel that grows once per tile
    /// (`benches/NOTES.md`).
    pub product_bytes: usize,
    /// The bytes of one buffer below which a memory limit is refused rather than met.
    pub least_bytes: usize,
}

impl Default for ReadParams {
    fn default() -> Self {
        ReadParams { bytes: 32 << 20, product_bytes: 4 << 20, least_bytes: 1 << 20 }
    }
}

/// The position of the stored lines in the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// The number of stored lines, and of elements in each.
    lines: usize,
    width: usize,
    dtype: DType,
    /// Line `i` is row `i` of the operator, which is tall; otherwise it is column `i`.
    lines_are_rows: bool,
    /// The bytes that the source takes for itself.
    beside: usize,
}

impl Layout {
    /// Makes the layout: the operator is the matrix if that is tall or square, and its transpose if it is wide.
    fn new(source: &(impl RowSource + ?Sized)) -> Self {
        let (m, n) = source.shape();
        let (lines, width) = if source.is_column_major() { (n, m) } else { (m, n) };
        let (lines_are_rows, beside) = (source.is_column_major() == (m < n), source.scratch_bytes());
        Layout { lines, width, dtype: source.dtype(), lines_are_rows, beside }
    }

    fn line_bytes(&self) -> usize {
        self.width * self.dtype.size()
    }

    /// Returns the lines of a buffer of at most `bytes`, at least one.
    fn lines_in(&self, bytes: usize) -> usize {
        (bytes / self.line_bytes().max(1)).clamp(1, self.lines)
    }

    /// Returns the elements of the conversion buffer beside tiles of `lines` lines.
    fn converted(&self, lines: usize) -> usize {
        let whole = TileParams::default().rows(self.lines, self.width).min(lines) * self.width;
        whole.max(block_elements(lines, self.width))
    }

    fn bytes<T: Scalar>(&self, lines: usize) -> usize {
        2 * lines * self.line_bytes() + self.converted(lines) * size_of::<T>() + self.beside
    }
}

/// The direction in which a pass cuts the stored matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Whole lines.
    Lines,
    /// The same part of all lines.
    Across,
}

/// A block of the operator, converted.
enum Slab<'a, T> {
    /// Rows, from the first on.
    Rows(usize, MatRef<'a, T>),
    /// Columns, from the first on.
    Columns(usize, MatRef<'a, T>),
}

/// A matrix out of core, tall or square; a wide one is represented by its transpose.
pub struct Tiled<'s, T: Scalar> {
    source: &'s mut dyn RowSource,
    layout: Layout,
    /// Two tiles as they were read, aligned for every element type. There are fewer after a pass that failed.
    buffers: Vec<Vec<u64>>,
    /// The length of each buffer, in words.
    words: usize,
    converted: Vec<T>,
    /// The scale; `None` until `max |a|` is known.
    scale: Option<f64>,
    /// The squared norm; `None` until all elements were seen with that scale.
    norm_squared: Option<f64>,
    /// The sum of the bytes that were seen in that pass.
    sum: u64,
    /// The largest modulus of the matrix, from the same pass.
    largest: f64,
    space: Host,
    passes: usize,
    watch: Watch<'s>,
}

impl<'s, T: Scalar> Tiled<'s, T> {
    /// Makes an operator that reads tiles of `lines` lines (see [`lines_for`](Self::lines_for)). Nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Empty`] for an empty matrix, [`Error::TooLarge`] for one whose bytes are more than there are addresses,
    /// [`Error::Option`] for tiles without lines.
    pub fn new(source: &'s mut dyn RowSource, lines: usize, par: Par, watch: Watch<'s>) -> Result<Self> {
        let (m, n) = source.shape();
        if m == 0 || n == 0 {
            return Err(Error::Empty { shape: vec![m, n] });
        }
        if m.checked_mul(n).is_none_or(|elements| elements > isize::MAX as usize / 8) {
            return Err(Error::TooLarge { shape: vec![m, n] });
        }
        if lines == 0 {
            return Err(Error::option("lines", lines, "at least one line to a tile"));
        }
        let layout = Layout::new(source);
        let tile_lines = lines.min(layout.lines);
        let words = (tile_lines * layout.line_bytes()).div_ceil(8);
        Ok(Tiled {
            source,
            layout,
            buffers: Vec::new(),
            words,
            // Where lines are shorter than a word, a buffer holds more of them.
            converted: vec![T::zeroed(); layout.converted((8 * words / layout.line_bytes()).clamp(1, layout.lines))],
            scale: None,
            norm_squared: None,
            sum: 0,
            largest: f64::NAN,
            space: Host::new(par),
            passes: 0,
            watch,
        })
    }

    /// Returns the bytes of the buffers for tiles of `lines` lines.
    #[doc(hidden)]
    pub fn bytes(source: &dyn RowSource, lines: usize) -> usize {
        Layout::new(source).bytes::<T>(lines)
    }

    /// Returns the most lines of at most `most` bytes (see [`ReadParams`]) whose buffers take at most `bytes`. `Err`
    /// has the least bytes that would do.
    #[doc(hidden)]
    pub fn lines_for(source: &dyn RowSource, bytes: usize, most: usize) -> std::result::Result<usize, usize> {
        let layout = Layout::new(source);
        let least = layout.lines_in(ReadParams::default().least_bytes);
        let (mut fits, mut over) = (least, layout.lines_in(most).max(least) + 1);
        if layout.bytes::<T>(least) > bytes {
            return Err(layout.bytes::<T>(least));
        }
        while over - fits > 1 {
            let half = fits.midpoint(over);
            if layout.bytes::<T>(half) <= bytes { fits = half } else { over = half }
        }
        Ok(fits)
    }

    /// Checks the matrix in a pass of its own, unless that was done: NaN and infinities, `max |a|`, `‖A‖_F²`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the place of the first one in the order of the lines, [`Error::Cancelled`], and any
    /// error that the source returns.
    #[doc(hidden)]
    pub fn check(&mut self) -> Result<()> {
        if self.norm_squared.is_some() { Ok(()) } else { self.pass(Cut::Lines, |_, _, _, _, _| Ok(())) }
    }

    /// Runs one pass, or two if the first finds that the matrix needs a scale. `f` gets the first line (or element of
    /// each line) of the tile, the tile as stored, the scale, and the conversion buffer. What it accumulates starts
    /// anew at 0.
    fn pass(
        &mut self,
        cut: Cut,
        mut f: impl FnMut(usize, MatView<'_>, f64, &mut [T], Par) -> Result<()>,
    ) -> Result<()> {
        self.scaled(|op| op.read_all(cut, &mut f))
    }

    /// Runs a [`pass`](Self::pass) over lines, whose tiles are done in parts (see [`flow`](super::flow)). `work` gets
    /// the part's slot, the first line of the tile, the tile as stored, the scale and room to convert a block; `finish`
    /// gets the lines of a tile and the results of its parts.
    fn pass_in_parts<P: Send, R: Send>(
        &mut self,
        parts: Vec<P>,
        work: impl Fn(&mut P, usize, MatView<'_>, f64, &mut [T]) -> R + Sync,
        finish: impl Fn(Range<usize>, Vec<R>) + Sync,
    ) -> Result<()> {
        let slots: Vec<_> = parts.into_iter().map(Mutex::new).collect();
        self.scaled(|op| op.read_parts(&slots, &work, &finish))
    }

    /// Runs one pass, or two if the first finds that the matrix needs a scale.
    fn scaled(&mut self, mut pass: impl FnMut(&mut Self) -> Result<Seen>) -> Result<()> {
        loop {
            let total = pass(self)?;
            self.passes += 1;
            let Some(before) = self.norm_squared else {
                let known = self.scale.is_some();
                self.largest = self.largest.max(total.scan.largest); // NaN at first, which `max` passes over
                let scale = *self.scale.get_or_insert_with(|| scale_for::<T>(total.scan.largest));
                if !known && scale != 1.0 {
                    continue;
                }
                (self.norm_squared, self.sum) = (Some(total.scan.norm_squared), total.sum);
                return Ok(());
            };
            if total.sum != self.sum {
                // The bytes differ from those of the first pass. Another look says whether they are finite.
                self.norm_squared = None;
                let look = self.read_all(Cut::Lines, &mut |_, _, _, _, _| Ok(()));
                self.passes += 1;
                self.norm_squared = Some(before);
                look?;
                let want = "the same elements in every pass";
                return Err(Error::shape("RowSource", want, "others in a later one; read it when it is complete"));
            }
            return Ok(());
        }
    }

    /// Returns the lines of a tile. Where lines are shorter than a word, a buffer holds more of them.
    fn tile_lines(&self) -> usize {
        (8 * self.words / self.layout.line_bytes()).clamp(1, self.layout.lines)
    }

    fn read_parts<P: Send, R: Send>(
        &mut self,
        slots: &[Mutex<P>],
        work: &(impl Fn(&mut P, usize, MatView<'_>, f64, &mut [T]) -> R + Sync),
        finish: &(impl Fn(Range<usize>, Vec<R>) + Sync),
    ) -> Result<Seen> {
        let tile = self.tile_lines();
        let Tiled { source, layout, buffers, words, converted, watch, .. } = self;
        let (Layout { lines, width, dtype, .. }, line_bytes) = (*layout, layout.line_bytes());
        let (look, par) = ((self.scale, self.norm_squared.is_some()), self.space.par());
        let scale = self.scale.unwrap_or(1.0);
        let column_major = source.is_column_major();
        let scans = Mutex::new(vec![Seen::default(); lines.div_ceil(tile)]);

        buffers.resize_with(2, || vec![0; *words]);
        read_ahead(*source, Cut::Lines, (0..lines, tile), line_bytes, buffers, &mut |tiles| {
            let flow = Flow::new(tiles, slots, watch);
            let part_by_part = |scratch: &mut [T]| {
                let part = |slot: &mut P, part: usize, Read { first, count, buffer }: &Read| {
                    let bytes = &bytemuck::cast_slice(buffer)[..count * line_bytes];
                    let view = TensorRef::from_bytes(dtype, &[*count, width], bytes)?.view()?;
                    let share = part * count / slots.len()..(part + 1) * count / slots.len();
                    let rows = view.subrows(share.start, share.len());
                    // The error names the first element in the tile, whichever part has seen one.
                    let seen =
                        Seen::new(&bytes[share.start * line_bytes..share.end * line_bytes], rows, look, Par::Seq)
                            .or_else(|_| Seen::new(bytes, view, look, Par::Seq))
                            .map_err(|e| place(e, Cut::Lines, *first, column_major))?;
                    Ok((seen, work(slot, *first, view, scale, scratch)))
                };
                flow.run(part, &|index, read, results| {
                    let (seen, results): (Vec<_>, Vec<_>) = results.into_iter().unzip();
                    let total = seen.into_iter().fold(Seen::default(), Seen::merge);
                    lock(&scans)[index] = total;
                    finish(read.first..read.first + read.count, results);
                    watch.read((read.count * line_bytes) as u64);
                });
            };
            match par {
                Par::Seq => part_by_part(converted),
                Par::Rayon(_) => {
                    let workers = converted.chunks_exact_mut(block_elements(tile, width)).collect();
                    parallel::for_each_of(par, workers, part_by_part);
                }
            }
            flow.end()
        })?;
        let scans = scans.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(scans.into_iter().fold(Seen::default(), Seen::merge))
    }

    fn read_all(
        &mut self,
        cut: Cut,
        f: &mut impl FnMut(usize, MatView<'_>, f64, &mut [T], Par) -> Result<()>,
    ) -> Result<Seen> {
        let Tiled { source, layout, buffers, words, converted, watch, .. } = self;
        let Layout { lines, width, dtype, .. } = *layout;
        let (look, par) = ((self.scale, self.norm_squared.is_some()), self.space.par());
        let scale = self.scale.unwrap_or(1.0);
        // These are the bytes of one step of a tile, the number of steps, and the steps of a tile.
        let (step_bytes, steps) = match cut {
            Cut::Lines => (layout.line_bytes(), lines),
            Cut::Across => (lines * dtype.size(), width),
        };
        let tile = (8 * *words / step_bytes).clamp(1, steps);
        let column_major = source.is_column_major();
        let mut total = Seen::default();

        buffers.resize_with(2, || vec![0; *words]);
        let mut done = |first, bytes: &[u8]| {
            watch.check()?;
            let count = bytes.len() / step_bytes;
            let shape = match cut {
                Cut::Lines => [count, width],
                Cut::Across => [lines, count],
            };
            let view = TensorRef::from_bytes(dtype, &shape, bytes)?.view()?;
            let seen = Seen::new(bytes, view, look, par).map_err(|e| place(e, cut, first, column_major))?;
            total = total.merge(seen);
            f(first, view, scale, converted, par)?;
            watch.read(bytes.len() as u64);
            Ok(())
        };
        read_ahead(*source, cut, (0..steps, tile), step_bytes, buffers, &mut |tiles| {
            tiles.in_order(step_bytes, &mut done)
        })?;
        Ok(total)
    }

    /// Runs a pass in converted blocks of the operator, rows or columns as the cut gives them.
    fn for_each_slab(&mut self, cut: Cut, mut f: impl FnMut(Slab<'_, T>, Par)) -> Result<()> {
        let rows = (cut == Cut::Lines) == self.layout.lines_are_rows;
        self.pass(cut, |first, view, scale, converted, par| {
            // The view has the steps of the cut as rows.
            let view = if cut == Cut::Lines { view } else { view.transpose() };
            let mut slab = |first, a: MatRef<'_, T>| {
                f(if rows { Slab::Rows(first, a) } else { Slab::Columns(first, a.transpose()) }, par);
            };
            match view.typed::<T>() {
                Some(a) if scale == 1.0 => slab(first, a),
                _ => {
                    let (steps, width) = (view.nrows(), view.ncols());
                    let most = (converted.len() / width).max(1);
                    for start in (0..steps).step_by(most) {
                        let count = most.min(steps - start);
                        let buffer = &mut converted[..count * width];
                        slab(first + start, convert_tile(view.subrows(start, count), buffer, scale, par));
                    }
                }
            }
            Ok(())
        })
    }

    /// Computes `y <- A x`, or `Aᵀ x`.
    fn multiply(&mut self, adjoint: bool, x: MatRef<'_, T>, y: MatMut<'_, T>) -> Result<()> {
        // Lines of the tile are rows of what is multiplied, or its columns.
        if self.layout.lines_are_rows != adjoint { self.multiply_rows(x, y) } else { self.multiply_columns(x, y) }
    }

    /// Multiplies where each tile has its own rows of y.
    fn multiply_rows(&mut self, x: MatRef<'_, T>, y: MatMut<'_, T>) -> Result<()> {
        let (space, width, l) = (self.space.clone(), self.layout.width, x.ncols());
        let bands = Bands::new(self.tile_lines(), width);
        let by_rows = y.row_stride() != 1;
        let y = Mutex::new(y);
        let rows_of_y = |rows: Range<usize>, f: &mut dyn FnMut(MatMut<'_, T>)| {
            let mut y = lock(&y);
            f(y.rb_mut().subrows_mut(rows.start, rows.len()));
        };
        self.pass_in_parts(
            (0..bands.parts()).collect(),
            |part, first, view, scale, scratch| {
                let (rows, columns) = bands.part(*part, view.nrows(), width);
                let mut sum = space.buffer::<T>(rows.len() * l);
                let a = submatrix(view, rows.clone(), columns.clone());
                let mut to = panel_mut(&mut sum, rows.len(), l, by_rows);
                stored_product(Accum::Replace, a, scale, x.subrows(columns.start, columns.len()), to.rb_mut(), scratch);
                if bands.groups > 1 {
                    return sum;
                }
                rows_of_y(first + rows.start..first + rows.end, &mut |mut y| y.copy_from(to.as_ref()));
                space.buffer(0)
            },
            |lines, sums| {
                for (part, mut sum) in sums.into_iter().enumerate().filter(|_| bands.groups > 1) {
                    let (rows, columns) = bands.part(part, lines.len(), width);
                    let sum = panel_mut(&mut sum, rows.len(), l, by_rows);
                    rows_of_y(lines.start + rows.start..lines.start + rows.end, &mut |y| {
                        add(accum(columns.start), y, sum.as_ref());
                    });
                }
            },
        )
    }

    /// Multiplies where every tile adds to all rows of y.
    fn multiply_columns(&mut self, x: MatRef<'_, T>, mut y: MatMut<'_, T>) -> Result<()> {
        let (m, l) = y.shape();
        let chunks = Chunks::new(m, self.tile_lines());
        let by_rows = y.row_stride() != 1;
        let space = self.space.clone();
        let mut sums = space.buffer::<T>(if chunks.groups > 1 { chunks.groups * m * l } else { 0 });
        let slots: Vec<_> = if chunks.groups > 1 {
            (sums.chunks_exact_mut(m * l))
                .flat_map(|sum| split_rows(panel_mut(sum, m, l, by_rows), chunks.rows))
                .enumerate()
                .collect()
        } else {
            split_rows(y.rb_mut(), chunks.rows).into_iter().enumerate().collect()
        };
        self.pass_in_parts(
            slots,
            |(part, y), first, view, scale, scratch| {
                let (rows, lines) = chunks.part(*part, m, view.nrows());
                // Some groups have none of the last lines.
                if !lines.is_empty() {
                    let a = submatrix(view, lines.clone(), rows).transpose();
                    let x = x.subrows(first + lines.start, lines.len());
                    stored_product(accum(first), a, scale, x, y.rb_mut(), scratch);
                }
            },
            |_, _| {},
        )?;
        for (group, sum) in sums.chunks_exact_mut(m * l).enumerate() {
            add(accum(group), y.rb_mut(), panel_mut(sum, m, l, by_rows).as_ref());
        }
        Ok(())
    }

    /// Returns the cut whose tiles are rows of the operator.
    fn row_cut(&self) -> Cut {
        if self.layout.lines_are_rows { Cut::Lines } else { Cut::Across }
    }
}

/// Reads `steps` in tiles of `tile` of them, one tile ahead on a thread of its own, while `work` takes them. The two
/// buffers come back, except those that were under way when a read or `work` failed.
fn read_ahead(
    source: &mut dyn RowSource,
    cut: Cut,
    (steps, tile): (Range<usize>, usize),
    step_bytes: usize,
    buffers: &mut Vec<Vec<u64>>,
    work: &mut dyn FnMut(Tiles) -> Result<()>,
) -> Result<()> {
    let (free, to_fill) = sync_channel::<Vec<u64>>(2);
    let (filled, read) = sync_channel(1);
    for buffer in buffers.drain(..) {
        free.send(buffer).expect("the channel holds both buffers");
    }
    thread::scope(|scope| {
        let reader = move || {
            for first in steps.clone().step_by(tile) {
                // Either channel is closed when the other side has ended, with its own error or this one's.
                let Ok(mut buffer) = to_fill.recv() else { break };
                let count = tile.min(steps.end - first);
                let bytes = &mut bytemuck::cast_slice_mut(&mut buffer)[..count * step_bytes];
                let done = match cut {
                    Cut::Lines => source.read_rows(first, bytes),
                    Cut::Across => source.read_block(first..first + count, bytes),
                };
                if filled.send(done.map(|()| Read { first, count, buffer })).is_err() {
                    break;
                }
            }
            to_fill
        };
        let reader = (thread::Builder::new().name("tensorslim-read".into()).spawn_scoped(scope, reader))
            .map_err(|e| Error::Internal { what: format!("no thread that reads: {e}") })?;
        let done = work(Tiles { read, free });
        let rest = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        buffers.extend(rest.iter());
        done
    })
}

/// Reads the rows of a source from row `from` on once, in blocks of at most `bytes` bytes that come in order, and calls
/// `f(first, rows)` on each while the next one is read. It is for what is linear in rows: calibration statistics
/// ([`Calibration::update`](crate::calibration::Calibration::update)), the sketches of a single pass
/// ([`SinglePass::update`](crate::svd::SinglePass::update)).
///
/// # Errors
/// [`Error::Option`] for a column-major source, whose rows do not come in blocks; [`Error::Cancelled`] if the watch
/// says so; the first error that the source or `f` returns.
pub fn stream(
    source: &mut dyn RowSource,
    from: usize,
    bytes: usize,
    watch: &Watch<'_>,
    mut f: impl FnMut(usize, TensorRef<'_>) -> Result<()>,
) -> Result<()> {
    let (m, n) = source.shape();
    if source.is_column_major() && m > 1 && n > 1 {
        return Err(Error::unsuited(
            "source",
            "lies by columns; give one in row-major order, to see its rows in blocks",
        ));
    }
    let (dtype, line) = (source.dtype(), n * source.dtype().size());
    let tile = (bytes / line.max(1)).max(1);
    let mut buffers = vec![vec![0; (tile.min(m) * line).div_ceil(8)]; 2];
    let mut rows = |first, bytes: &[u8]| {
        watch.check()?;
        f(first, TensorRef::from_bytes(dtype, &[bytes.len() / line, n], bytes)?)?;
        watch.read(bytes.len() as u64);
        Ok(())
    };
    read_ahead(source, Cut::Lines, (from.min(m)..m, tile), line, &mut buffers, &mut |tiles| {
        tiles.in_order(line, &mut rows)
    })
}

/// What a pass has seen of the matrix, or of a part.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    scan: Scan,
    /// The sum of the elements' bytes as [`sum_of`] gives it: the same in every pass, however the tiles are cut.
    sum: u64,
}

impl Seen {
    /// Computes the sum, and, if the norm is not `known` yet, the finite check, `max |a|` and the squares with the
    /// scale.
    fn new(bytes: &[u8], view: MatView<'_>, (scale, known): (Option<f64>, bool), par: Par) -> Result<Self> {
        let parts: Vec<&[u8]> = bytes.chunks(1 << 20).collect();
        let sum = parallel::map(par, parts.len(), |i| sum_of(parts[i])).into_iter().sum();
        let mut seen = Scan::default();
        if !known {
            seen = scan(view, par)?;
            if let Some(s) = scale.filter(|&s| s != 1.0) {
                seen.norm_squared = scaled_norm_squared(view, s, par);
            }
        }
        Ok(Seen { scan: seen, sum })
    }

    fn merge(self, other: Seen) -> Seen {
        Seen { scan: self.scan.merge(other.scan), sum: self.sum + other.sum }
    }
}

/// Computes the sum of all pairs of bytes, at the speed of memory, for a whole number of elements of any type. It needs
/// `2^48` of them to overflow.
fn sum_of(bytes: &[u8]) -> u64 {
    // 2^14 pairs fit 32 bits. Wrapping addition needs no overflow check, which would keep the compiler from using
    // vector code.
    let pair = |b: &[u8]| u32::from(u16::from_ne_bytes([b[0], b[1]]));
    let pairs = |block: &[u8]| block.chunks_exact(2).map(pair).fold(0, u32::wrapping_add);
    bytes.chunks(1 << 15).map(|block| u64::from(pairs(block))).sum()
}

/// Moves the error of an element that is not finite from the rows and columns of a tile to those of the caller's
/// matrix.
fn place(error: Error, cut: Cut, first: usize, column_major: bool) -> Error {
    let Error::NotFinite { row, col, value } = error else { return error };
    let (line, at) = match cut {
        Cut::Lines => (first + row, col),
        Cut::Across => (row, first + col),
    };
    let (row, col) = if column_major { (at, line) } else { (line, at) };
    Error::NotFinite { row, col, value }
}

/// Returns how the first block and the later ones are added: sums start with the first.
fn accum(first: usize) -> Accum {
    if first == 0 { Accum::Replace } else { Accum::Add }
}

/// Makes a panel over a buffer.
fn panel_mut<T: Scalar>(buffer: &mut [T], m: usize, l: usize, by_rows: bool) -> MatMut<'_, T> {
    if by_rows {
        MatMut::from_row_major_slice_mut(buffer, m, l)
    } else {
        MatMut::from_column_major_slice_mut(buffer, m, l)
    }
}

/// Computes `y <- [y +] part`.
fn add<T: Scalar>(accum: Accum, mut y: MatMut<'_, T>, part: MatRef<'_, T>) {
    match accum {
        Accum::Replace => y.copy_from(part),
        Accum::Add => zip!(y, part).for_each(|unzip!(sum, x)| *sum += *x),
    }
}

impl<T: Scalar> LinearOperator<T> for Tiled<'_, T> {
    type Space = Host;

    fn space(&self) -> &Host {
        &self.space
    }

    fn facts(&self) -> Facts {
        let Layout { lines, width, lines_are_rows, .. } = self.layout;
        Facts {
            shape: (lines.max(width), lines.min(width)),
            norm_squared: self.norm_squared.unwrap_or(f64::NAN),
            scale: self.scale.unwrap_or(1.0),
            passes: self.passes,
            image: if lines_are_rows { PanelLayout::Rows } else { PanelLayout::Columns },
        }
    }

    fn apply(&mut self, x: &HostPanel<T>, y: &mut HostPanel<T>) -> Result<()> {
        self.multiply(false, x.as_ref(), y.as_mut())
    }

    fn apply_adjoint(&mut self, y: &HostPanel<T>, x: &mut HostPanel<T>) -> Result<()> {
        self.multiply(true, y.as_ref(), x.as_mut())
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut HostPanel<T>) -> Result<()> {
        let ((_, n), rows) = (self.facts().shape, self.layout.lines_are_rows);
        // The sketches widen by themselves.
        self.pass(Cut::Lines, |first, view, scale, _, par| {
            let count = view.nrows();
            if rows {
                let y = y.as_mut().subrows_mut(first, count);
                with_view!(view, a => omega.apply_rows(0..n, a, scale, Accum::Replace, y, par))
            } else {
                let share = first..first + count;
                with_view!(view.transpose(), a => omega.apply_rows(share, a, scale, accum(first), y.as_mut(), par))
            }
        })
    }

    fn materialize(&mut self, y: &mut HostPanel<T>) -> Result<()> {
        self.for_each_slab(Cut::Lines, |slab, _| match slab {
            Slab::Rows(first, a) => y.as_mut().subrows_mut(first, a.nrows()).copy_from(a),
            Slab::Columns(first, a) => y.as_mut().subcols_mut(first, a.ncols()).copy_from(a),
        })
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        // Rows that were passed on cannot be taken back, so that this pass is not repeated with a scale; what is linear
        // bears a wider range.
        self.scale.get_or_insert(1.0);
        let mut done = Ok(());
        self.for_each_slab(self.row_cut(), |slab, _| match slab {
            Slab::Rows(first, a) if done.is_ok() => done = f(first, a),
            Slab::Rows(..) => {}
            Slab::Columns(..) => unreachable!("the cut gives rows"),
        })?;
        // Beyond this limit, sums of products leave the range of f32.
        let most = if size_of::<T>() == 4 { 2f64.powi(100) } else { f64::MAX };
        if self.largest > most {
            return Err(Error::Range { what: "the largest element", value: self.largest, dtype: T::DTYPE });
        }
        done
    }

    fn gram(&mut self) -> Result<Symmetric<T, Host>> {
        let (m, n) = self.facts().shape;
        let mut g = HostPanel::zeros(n, n, &self.space);
        let mut parts = vec![T::zeroed(); (gram_groups(m, n) - 1) * n * n];
        self.for_each_slab(self.row_cut(), |slab, par| match slab {
            Slab::Rows(first, a) => {
                if first == 0 {
                    // The pass may be repeated with a scale, so that the sum starts anew.
                    g.as_mut().fill(T::zeroed());
                    parts.fill(T::zeroed());
                }
                add_gram(a, g.as_mut(), &mut parts, par);
            }
            Slab::Columns(..) => unreachable!("the cut gives rows"),
        })?;
        add_up(g.as_mut(), &parts);
        gram_of(g, &self.space, &self.watch)
    }

    fn congruence(&mut self, s: &HostPanel<T>, g: &mut HostPanel<T>) -> Result<()> {
        let (m, n) = self.facts().shape;
        let mut whole = HostPanel::zeros(m, n, &self.space);
        self.materialize(&mut whole)?;
        congruence(s.as_ref(), whole.as_ref(), false, g.as_mut(), &self.space);
        Ok(())
    }
}
