//! A matrix whose rows are spread over ranks: each reads the rows of its blocks and no others.
//!
//! ```text
//!   Y_b = A_b X, A_b Ω       on the owner of block b, nothing is sent
//!   X = Σ A_bᵀ Y_b           one sum of n l numbers           G = Σ A_bᵀ A_b     one sum of n (n + 1) / 2
//! ```
//!
//! A block is a [`Dense`] operator of its own, so that its products are those of a matrix in memory. Rows are held as
//! they are stored, or read again in every pass, one block ahead, where memory is short.
//!
//! **Wide matrices** are spread by their columns, which are the rows of the transpose that is factored: the long side
//! is the one that has to be cut. A source in row-major order is then read in parts of lines, and its blocks are
//! transposed as they come.
//!
//! **Normals** are drawn once for all blocks of a rank, because a block is too short to pay for drawing them again.
//!
//! **Rows for everybody** are what [`for_each_row_block`](LinearOperator::for_each_row_block) promises: they are
//! broadcast, m n numbers in all. Only a single pass under calibration takes them; without, its sketches are sums like
//! the others.

use std::ops::Range;
use std::sync::Mutex;

use faer::prelude::ReborrowMut as _;
use faer::{Mat, MatMut, MatRef};

use super::panel::{RankPanel, host_panel};
use super::space::Ranks;
use super::sums::{Merge, Sum};
use crate::error::{Error, Result};
use crate::linalg::{column_mut, mirror};
use crate::operator::{
    Dense, Facts, LinearOperator, RowSource, Symmetric, Watch, scale_for, scaled_norm_squared, stream,
};
use crate::parallel;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, SketchOperator};
use crate::space::{Host, HostPanel, Layout, Space};
use crate::tensor::{DType, MatView, TensorRef};

/// How many blocks are done at a time, one to a thread.
const AT_ONCE: usize = 8;

/// The largest part of a sum, in numbers, of which several are held at a time.
const LARGE_PART: usize = 1 << 22;

/// The rows of the tall one of a matrix and its transpose that one rank reads.
struct Part<'s> {
    source: &'s mut dyn RowSource,
    rows: Range<usize>,
    ncols: usize,
    /// The rows are lines of the source; otherwise they are parts across its lines.
    by_lines: bool,
}

impl RowSource for Part<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.rows.len(), self.ncols)
    }

    fn dtype(&self) -> DType {
        self.source.dtype()
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()> {
        let (size, first) = (self.source.dtype().size(), self.rows.start + first);
        if self.by_lines {
            return self.source.read_rows(first, dst);
        }
        let count = dst.len() / (self.ncols * size);
        let mut lines = vec![0; dst.len()];
        self.source.read_block(first..first + count, &mut lines)?;
        for (i, row) in dst.chunks_exact_mut(self.ncols * size).enumerate() {
            for (j, to) in row.chunks_exact_mut(size).enumerate() {
                let at = (j * count + i) * size;
                to.copy_from_slice(&lines[at..at + size]);
            }
        }
        Ok(())
    }
}

/// The place of the rows of a rank.
enum Data<'s> {
    /// In memory, block by block, in row-major order and aligned for any type.
    Held(Vec<Vec<u64>>),
    /// In the source.
    Read(Part<'s>),
}

/// The operator of a matrix, tall or square, whose rows are spread over ranks.
pub(crate) struct RowBlocks<'s, 'c, T: Scalar> {
    space: Ranks<'c>,
    data: Data<'s>,
    dtype: DType,
    ncols: usize,
    scale: f64,
    norm_squared: f64,
    passes: usize,
    watch: Watch<'s>,
    arithmetic: std::marker::PhantomData<T>,
}

impl<'s, 'c, T: Scalar> RowBlocks<'s, 'c, T> {
    /// Reads the rows of this rank once and checks them. With `hold` they stay in memory.
    ///
    /// # Errors
    /// What a rank found: an error of its source, a NaN or an infinity with its place in the whole matrix.
    pub(crate) fn new(source: &'s mut dyn RowSource, space: Ranks<'c>, hold: bool, watch: Watch<'s>) -> Result<Self> {
        let ((m, n), by_columns, dtype) = (source.shape(), source.is_column_major(), source.dtype());
        let wide = m < n;
        let part = Part { source, rows: space.blocks().own_rows(), ncols: m.min(n), by_lines: by_columns == wide };
        let mut op = RowBlocks {
            space,
            data: Data::Read(part),
            dtype,
            ncols: m.min(n),
            scale: 1.0,
            norm_squared: f64::NAN,
            passes: 0,
            watch,
            arithmetic: std::marker::PhantomData,
        };
        if hold {
            op.hold();
        }
        op.check(wide)?;
        op.passes = 0;
        Ok(op)
    }

    /// Returns how many blocks are done before their parts of a sum, vectors of this length, are added.
    pub(crate) fn parts_at_once(length: usize) -> usize {
        if length > LARGE_PART { 1 } else { AT_ONCE }
    }

    /// Reads the rows of this rank into memory.
    fn hold(&mut self) {
        let Data::Read(part) = &mut self.data else { return };
        let blocks = self.space.blocks();
        let mut held = Vec::new();
        for block in blocks.own() {
            let (rows, line) = (blocks.rows_of(block), part.ncols * self.dtype.size());
            let mut words = vec![0_u64; (rows.len() * line).div_ceil(8)];
            let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..rows.len() * line];
            if let Err(e) = self.watch.check().and_then(|()| part.read_rows(rows.start - part.rows.start, bytes)) {
                return self.space.fail(e);
            }
            held.push(words);
        }
        self.data = Data::Held(held);
    }

    /// Computes `max |a|`, the scale, and `‖A‖_F²`, and refuses what is not finite.
    fn check(&mut self, wide: bool) -> Result<()> {
        let (space, blocks) = (self.space.clone(), *self.space.blocks());
        let mut largest = Sum::new(blocks, Merge::Max, 1);
        let mut squares = Sum::new(blocks, Merge::Add, 1);
        let first = blocks.own().start;
        let look = |i: usize, view: MatView<'_>, host: &Host| {
            let scan = Dense::<T>::unscaled(view, host.par()).map_err(|e| match e {
                Error::NotFinite { row, col, value } => {
                    let row = row + blocks.rows_of(first + i).start;
                    let (row, col) = if wide { (col, row) } else { (row, col) };
                    Error::NotFinite { row, col, value }
                }
                e => e,
            })?;
            Ok((scan.largest(), scan.facts().norm_squared))
        };
        self.run(false, look, &mut |_, (most, norm)| {
            largest.push(vec![most]);
            squares.push(vec![norm]);
            Ok(())
        })?;
        self.scale = scale_for::<T>(space.finish(largest)?[0]);
        if self.scale != 1.0 {
            squares = Sum::new(blocks, Merge::Add, 1);
            let scale = self.scale;
            self.run(
                false,
                |_, view, host: &Host| Ok(scaled_norm_squared(view, scale, host.par())),
                &mut |_, norm| {
                    squares.push(vec![norm]);
                    Ok(())
                },
            )?;
        }
        self.norm_squared = space.finish(squares)?[0];
        Ok(())
    }

    /// Calls `f(i, rows, host)` for the i-th block of this rank, several at a time unless results are `large`, and
    /// `done(i, result)` in order. A failure of `f` or of the source is kept for the next sum.
    ///
    /// # Errors
    /// Those of `done`.
    fn run<R: Send>(
        &mut self,
        large: bool,
        f: impl Fn(usize, MatView<'_>, &Host) -> Result<R> + Sync,
        done: &mut dyn FnMut(usize, R) -> Result<()>,
    ) -> Result<()> {
        self.passes += 1;
        if let Err(e) = self.watch.check() {
            self.space.fail(e);
        }
        let (blocks, host, own) = (*self.space.blocks(), self.space.host().clone(), self.space.blocks().own());
        if self.space.has_failed() || own.is_empty() {
            return Ok(());
        }
        let (n, dtype) = (self.ncols, self.dtype);
        match &mut self.data {
            Data::Held(held) => {
                let at_once = if large { 1 } else { AT_ONCE };
                let work = |i: usize| {
                    let rows = blocks.rows_of(own.start + i).len();
                    let bytes = &bytemuck::cast_slice(&held[i])[..rows * n * dtype.size()];
                    let view = TensorRef::from_bytes(dtype, &[rows, n], bytes)?.view()?;
                    // The bits are the same on one thread and on many.
                    if large { f(i, view, &host) } else { f(i, view, &super::space::alone()) }
                };
                for start in (0..own.len()).step_by(at_once) {
                    let count = at_once.min(own.len() - start);
                    for (i, result) in parallel::map(host.par(), count, |i| work(start + i)).into_iter().enumerate() {
                        match result {
                            Ok(result) => done(start + i, result)?,
                            Err(e) => {
                                self.space.fail(e);
                                return Ok(());
                            }
                        }
                    }
                }
                self.watch.read((blocks.own_rows().len() * n * dtype.size()) as u64);
            }
            Data::Read(part) => {
                let (mut ended, mut i) = (Ok(()), 0);
                let bytes = blocks.height() * n * dtype.size();
                let read = stream(part, 0, bytes, &self.watch, |_, rows| {
                    let result = f(i, rows.view()?, &host)?;
                    ended = done(i, result);
                    i += 1;
                    if ended.is_ok() { Ok(()) } else { Err(Error::Cancelled) }
                });
                ended?;
                if let Err(e) = read {
                    self.space.fail(e);
                }
            }
        }
        Ok(())
    }

    /// Runs products of the blocks, each with a result of `l` columns that becomes the rows of `y`.
    fn rows_from(
        &mut self,
        y: &mut RankPanel<T>,
        f: impl Fn(&mut Dense<'_, T>, &mut HostPanel<T>) -> Result<()> + Sync,
    ) -> Result<()> {
        let (scale, layout, l) = (self.scale, y.layout, y.ncols);
        let space = self.space.clone();
        let rows = space.to_rows(y, false);
        let work = |_, view: MatView<'_>, host: &Host| {
            let mut product = host_panel(view.nrows(), l, layout, host);
            f(&mut Dense::of_block(view, scale, host.clone()), &mut product)?;
            Ok(product)
        };
        self.run(false, work, &mut |i, product| {
            rows[i] = product;
            Ok(())
        })
    }

    /// Sums vectors of this length, of which `f` computes that of a block.
    fn sum_of(
        &mut self,
        length: usize,
        f: impl Fn(usize, &mut Dense<'_, T>, &Host) -> Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>> {
        let (space, scale) = (self.space.clone(), self.scale);
        let mut sum = Sum::new(*space.blocks(), Merge::Add, length);
        let work = |i, view: MatView<'_>, host: &Host| f(i, &mut Dense::of_block(view, scale, host.clone()), host);
        self.run(Self::parts_at_once(length) == 1, work, &mut |_, part| {
            sum.push(part);
            Ok(())
        })?;
        space.finish(sum)
    }

    /// Passes the rows of this rank to `f`, block by block in order, and sums over all blocks what it makes of them:
    /// vectors of this length. It is for what is linear in rows.
    ///
    /// # Errors
    /// What a rank found, and the first error that `f` returns.
    pub(crate) fn sum_of_rows(
        &mut self,
        length: usize,
        mut f: impl FnMut(usize, MatRef<'_, T>) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let (space, blocks, n, scale) = (self.space.clone(), *self.space.blocks(), self.ncols, self.scale);
        let (own, mut sum) = (blocks.own(), Sum::new(blocks, Merge::Add, length));
        let work = |_, view: MatView<'_>, host: &Host| {
            let mut rows = host_panel::<T>(view.nrows(), n, Layout::Rows, host);
            Dense::of_block(view, scale, host.clone()).materialize(&mut rows)?;
            Ok(rows)
        };
        self.run(true, work, &mut |i, rows| {
            sum.push(f(blocks.rows_of(own.start + i).start, rows.as_ref())?);
            Ok(())
        })?;
        space.finish(sum)
    }

    /// Copies a sum of `A_bᵀ Y_b` into a whole panel.
    fn adjoint_sum(&mut self, y: &[HostPanel<T>], x: &mut RankPanel<T>) -> Result<()> {
        let (n, l) = (x.nrows, x.ncols);
        let sum = self.sum_of(n * l, |i, block, host| {
            let mut product = HostPanel::zeros(n, l, host);
            block.apply_adjoint(&y[i], &mut product)?;
            let mut part = Vec::with_capacity(n * l + 1);
            product.as_ref().col_iter().for_each(|column| part.extend(column.iter()));
            Ok(part)
        })?;
        let whole = self.space.to_whole(x, false)?;
        whole.as_mut().copy_from(MatRef::from_column_major_slice(&sum, n, l));
        Ok(())
    }
}

impl<'c, T: Scalar> LinearOperator<T> for RowBlocks<'_, 'c, T> {
    type Space = Ranks<'c>;

    fn space(&self) -> &Ranks<'c> {
        &self.space
    }

    fn facts(&self) -> Facts {
        Facts {
            shape: (self.space.blocks().rows(), self.ncols),
            norm_squared: self.norm_squared,
            scale: self.scale,
            passes: self.passes,
            image: Layout::Rows,
        }
    }

    fn apply(&mut self, x: &RankPanel<T>, y: &mut RankPanel<T>) -> Result<()> {
        let space = self.space.clone();
        let x = space.whole(x)?;
        self.rows_from(y, |block, y| block.apply(&x, y))
    }

    fn apply_adjoint(&mut self, y: &RankPanel<T>, x: &mut RankPanel<T>) -> Result<()> {
        let space = self.space.clone();
        let y = space.rows(y);
        self.adjoint_sum(&y, x)
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut RankPanel<T>) -> Result<()> {
        if let AnySketch::Gaussian(_) = omega {
            let dense = omega.to_dense::<T>();
            let mut x = HostPanel::zeros(omega.nrows(), omega.ncols(), self.space.host());
            x.as_mut().copy_from(dense);
            return self.rows_from(y, |block, y| block.apply(&x, y));
        }
        self.rows_from(y, |block, y| block.sketch(omega, y))
    }

    fn gram(&mut self) -> Result<Symmetric<T, Ranks<'c>>> {
        let n = self.ncols;
        // The squares are used again: the system would clear memory anew for each block.
        let squares = Mutex::new(Vec::new());
        let sum = self.sum_of(n * (n + 1) / 2, |_, block, host| {
            let square = parallel::lock(&squares).pop();
            let mut square = square.unwrap_or_else(|| HostPanel::zeros(n, n, host));
            block.gram_of_block(&mut square)?;
            let mut part = Vec::with_capacity(n * (n + 1) / 2 + 1);
            let mut g = square.as_mut();
            (0..n).for_each(|j| part.extend_from_slice(&column_mut(g.rb_mut(), j)[j..]));
            parallel::lock(&squares).push(square);
            Ok(part)
        })?;
        drop(squares);
        let mut g = self.space.panel(n, n, Layout::Columns)?;
        let whole = self.space.to_whole(&mut g, false)?;
        let mut rest = &sum[..];
        for j in 0..n {
            let (column, after) = rest.split_at(n - j);
            whole.as_mut().col_mut(j).subrows_mut(j, n - j).iter_mut().zip(column).for_each(|(to, x)| *to = *x);
            rest = after;
        }
        mirror(whole.as_mut());
        Ok(Symmetric::new(&self.space, g)?.watched(&self.watch))
    }

    /// Forms `S A` block by block from the whole of A, which is smaller than S: the matrix is one whose rows are long.
    fn congruence(&mut self, s: &RankPanel<T>, g: &mut RankPanel<T>) -> Result<()> {
        let (space, n) = (self.space.clone(), self.ncols);
        let blocks = *space.blocks();
        let mut both = Mat::zeros(s.nrows, s.nrows);
        space.download(s, both.as_mut())?;
        mirror(both.as_mut());
        let mut a = space.panel(blocks.rows(), n, Layout::Columns)?;
        self.materialize(&mut a)?;
        let a = space.whole(&a)?;
        let first = blocks.own().start;
        let mut rows = Vec::new();
        for block in blocks.own() {
            let (range, host) = (blocks.rows_of(block), space.host());
            let (mut left, mut product) =
                (HostPanel::zeros(range.len(), s.nrows, host), HostPanel::zeros(range.len(), n, host));
            left.as_mut().copy_from(both.as_ref().subrows(range.start, range.len()));
            host.multiply_panels(crate::space::Side::Plain, &left, &a, &mut product)?;
            rows.push(product);
        }
        debug_assert_eq!(first + rows.len(), blocks.own().end);
        self.adjoint_sum(&rows, g)
    }

    fn materialize(&mut self, y: &mut RankPanel<T>) -> Result<()> {
        self.rows_from(y, |block, y| block.materialize(y))
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        let (space, blocks, n, scale) = (self.space.clone(), *self.space.blocks(), self.ncols, self.scale);
        let (comm, me) = (space.comm(), blocks.rank());
        for rank in 0..blocks.size() {
            if rank != me {
                for block in blocks.of_rank(rank) {
                    let rows = blocks.rows_of(block);
                    // One more number says whether that rank has failed.
                    let mut values = vec![T::zeroed(); rows.len() * n + 1];
                    comm.broadcast(rank, bytemuck::cast_slice_mut(&mut values))?;
                    if values[rows.len() * n] != T::zeroed() {
                        return Err(space.told(rank));
                    }
                    f(rows.start, MatRef::from_row_major_slice(&values[..rows.len() * n], rows.len(), n))?;
                }
                continue;
            }
            let (mut sent, own) = (0, blocks.own());
            let work = |_, view: MatView<'_>, host: &Host| {
                let mut values = vec![T::zeroed(); view.nrows() * n + 1];
                let mut rows = host_panel::<T>(view.nrows(), n, Layout::Rows, host);
                Dense::of_block(view, scale, host.clone()).materialize(&mut rows)?;
                let end = view.nrows() * n;
                MatMut::from_row_major_slice_mut(&mut values[..end], view.nrows(), n).copy_from(rows.as_ref());
                Ok(values)
            };
            self.run(false, work, &mut |i, mut values| {
                let rows = blocks.rows_of(own.start + i);
                if blocks.size() > 1 {
                    comm.broadcast(me, bytemuck::cast_slice_mut(&mut values))?;
                }
                sent += 1;
                f(rows.start, MatRef::from_row_major_slice(&values[..rows.len() * n], rows.len(), n))
            })?;
            if sent < own.len() {
                let mut values = vec![T::one(); blocks.rows_of(own.start + sent).len() * n + 1];
                comm.broadcast(me, bytemuck::cast_slice_mut(&mut values))?;
                return Err(space.told(me));
            }
        }
        Ok(())
    }
}
