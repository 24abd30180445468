//! Panels in host memory: column-major, with one scratch buffer shared by all panels of an operator.
//!
//! The leading dimension is padded when it is a multiple of 4 KiB: the columns of a GEMM tile would otherwise fall
//! into one set of every cache.

use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{Accum, Mat, MatMut, MatRef, Par, unzip, zip};
use rayon::prelude::*;

use super::Panel;
use super::product::{product, threads, wide_gram, wide_gram_scratch};
use crate::error::Result;
use crate::linalg::{mirror, symmetric_product};
use crate::qr::{self, Orthonormalization};
use crate::simd::{self, Scalar};

/// Memory that is kept from one factorization to the next: panels, tiles of converted elements, scratch of QR and products.
///
/// A second call of the same shape and options takes all of these from here
/// ([`TruncatedSvd::factor_with`](crate::TruncatedSvd::factor_with)). What is held never shrinks; drop the workspace to free it.
#[derive(Debug)]
pub struct Workspace {
    shared: Arc<Shared>,
}

impl Workspace {
    /// An empty one.
    pub fn new() -> Self {
        Workspace { shared: Shared::new(true) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        scratch.bytes + self.shared.free().iter().map(|b| size_of_val(b.as_slice())).sum::<usize>()
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Workspace::new()
    }
}

/// Threads, and memory that an operator shares with its panels.
#[derive(Debug)]
pub struct HostContext {
    par: Par,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Whether buffers are kept for the next call or freed at once.
    keep: bool,
    free: Mutex<Vec<Vec<f64>>>,
    scratch: Mutex<Scratch>,
}

struct Scratch {
    buffer: MemBuffer,
    bytes: usize,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scratch({} bytes)", self.bytes)
    }
}

impl Shared {
    fn new(keep: bool) -> Arc<Self> {
        let scratch = Mutex::new(Scratch { buffer: MemBuffer::new(StackReq::EMPTY), bytes: 0 });
        Arc::new(Shared { keep, free: Mutex::default(), scratch })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<f64>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many zeros: the smallest free buffer that holds them, or a new one in place of the largest that does not.
    fn take(&self, words: usize, par: Par) -> Vec<f64> {
        let mut free = self.free();
        let best = (0..free.len()).filter(|&i| free[i].len() >= words).min_by_key(|&i| free[i].len());
        if let Some(i) = best {
            let mut buffer = free.swap_remove(i);
            drop(free);
            buffer[..words].fill(0.0);
            return buffer;
        }
        let largest = (0..free.len()).max_by_key(|&i| free[i].len());
        largest.map(|i| free.swap_remove(i));
        drop(free);
        zeros(words, par)
    }
}

/// So many zeros, in pages that are there: a page that is fresh takes 1 to 2 µs where one thread writes on it, half of that where two do, each on its own
/// part, and 8 where they meet it within a GEMM (G of 768 × 768 on fresh pages: 13 ms instead of 4.8). On pages that are there this takes nothing.
pub(super) fn zeros(words: usize, par: Par) -> Vec<f64> {
    const PAGE: usize = 4096 / size_of::<f64>();
    const PART: usize = 32 * PAGE;
    // A zero that the compiler does not know of: the stores would go otherwise.
    let touch = |part: &mut [f64]| part.iter_mut().step_by(PAGE).for_each(|word| *word = black_box(0.0));
    let mut buffer = vec![0.0; words];
    match par {
        Par::Rayon(_) if words >= 2 * PART => buffer.par_chunks_mut(PART).for_each(touch),
        _ => touch(&mut buffer),
    }
    buffer
}

/// Elements of `T` that go back to where they came from.
pub(super) struct Buffer<T> {
    /// As 64-bit words, so that one pool serves both types; at least as many as are needed.
    words: Vec<f64>,
    len: usize,
    shared: Arc<Shared>,
    element: PhantomData<T>,
}

impl<T: Scalar> std::ops::Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

impl<T: Scalar> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

impl<T> Buffer<T> {
    /// Gives back what is beyond `len` elements, unless it is kept.
    fn shrink(&mut self, len: usize) {
        self.len = len;
        if !self.shared.keep {
            self.words.truncate((len * size_of::<T>()).div_ceil(size_of::<f64>()));
            self.words.shrink_to_fit();
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.shared.keep && !self.words.is_empty() {
            self.shared.free().push(std::mem::take(&mut self.words));
        }
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} elements)", self.len)
    }
}

impl HostContext {
    /// A context without memory yet: it grows to the largest request, and goes when the last panel does.
    pub fn new(par: Par) -> Arc<Self> {
        Arc::new(HostContext { par, shared: Shared::new(false) })
    }

    /// A context whose memory is that of `workspace`.
    pub fn within(workspace: &Workspace, par: Par) -> Arc<Self> {
        Arc::new(HostContext { par, shared: workspace.shared.clone() })
    }

    /// The threads to use.
    pub fn par(&self) -> Par {
        self.par
    }

    /// `len` zeros.
    pub(super) fn buffer<T: Scalar>(&self, len: usize) -> Buffer<T> {
        let words = self.shared.take((len * size_of::<T>()).div_ceil(size_of::<f64>()), self.par);
        Buffer { words, len, shared: self.shared.clone(), element: PhantomData }
    }

    /// Frees the scratch, unless it is kept for the next call.
    pub fn release(&self) {
        if !self.shared.keep {
            let mut scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            *scratch = Scratch { buffer: MemBuffer::new(StackReq::EMPTY), bytes: 0 };
        }
    }

    /// Runs `f` on a stack of at least `req`. Calls do not nest.
    pub fn with_scratch<R>(&self, req: StackReq, f: impl FnOnce(&mut MemStack) -> R) -> R {
        let mut scratch = self.shared.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = req.unaligned_bytes_required();
        if scratch.bytes < bytes {
            // The old buffer goes first, so that the peak is the larger of the two and not their sum.
            scratch.buffer = MemBuffer::new(StackReq::EMPTY);
            scratch.buffer = MemBuffer::new(req);
            scratch.bytes = bytes;
        }
        f(MemStack::new(&mut scratch.buffer))
    }
}

/// A `nrows × ncols` panel in host memory, column-major unless it was asked for [by rows](HostPanel::by_rows).
#[derive(Debug)]
pub struct HostPanel<T> {
    data: Buffer<T>,
    nrows: usize,
    ncols: usize,
    stride: usize,
    /// Lines are rows: `stride` is from one row to the next.
    by_rows: bool,
    context: Arc<HostContext>,
}

/// Elements from one column to the next.
pub(super) fn leading_dimension<T>(nrows: usize) -> usize {
    padded::<T>(nrows, 64)
}

/// Elements from one row to the next where lines are rows: they are short, and to pad 50 of them to whole cache lines would take a quarter more memory.
fn row_stride<T>(ncols: usize) -> usize {
    padded::<T>(ncols, 16)
}

/// A multiple of so many bytes, but not of a page.
fn padded<T>(length: usize, bytes: usize) -> usize {
    let unit = bytes / size_of::<T>();
    let padded = length.next_multiple_of(unit);
    if (padded * size_of::<T>()).is_multiple_of(4096) { padded + unit } else { padded }
}

impl<T: Scalar> HostPanel<T> {
    /// A panel of zeros.
    pub fn zeros(nrows: usize, ncols: usize, context: Arc<HostContext>) -> Self {
        let stride = leading_dimension::<T>(nrows);
        HostPanel { data: context.buffer(stride * ncols), nrows, ncols, stride, by_rows: false, context }
    }

    /// A row-major panel of zeros: what a product with a row-major matrix writes fastest.
    pub fn by_rows(nrows: usize, ncols: usize, context: Arc<HostContext>) -> Self {
        let stride = row_stride::<T>(ncols);
        HostPanel { data: context.buffer(stride * nrows), nrows, ncols, stride, by_rows: true, context }
    }

    /// Bytes of a panel of this shape.
    pub fn bytes(nrows: usize, ncols: usize) -> usize {
        leading_dimension::<T>(nrows) * ncols * size_of::<T>()
    }

    /// Bytes of one by rows.
    pub fn bytes_by_rows(nrows: usize, ncols: usize) -> usize {
        row_stride::<T>(ncols) * nrows * size_of::<T>()
    }

    /// As a faer view.
    pub fn as_ref(&self) -> MatRef<'_, T> {
        let (length, lines) = self.lines();
        let a = MatRef::from_column_major_slice_with_stride(&self.data, length, lines, self.stride);
        if self.by_rows { a.transpose() } else { a }
    }

    /// As a mutable faer view.
    pub fn as_mut(&mut self) -> MatMut<'_, T> {
        let (length, lines) = self.lines();
        let a = MatMut::from_column_major_slice_with_stride_mut(&mut self.data, length, lines, self.stride);
        if self.by_rows { a.transpose_mut() } else { a }
    }

    /// Length and number of the lines of the storage.
    fn lines(&self) -> (usize, usize) {
        if self.by_rows { (self.ncols, self.nrows) } else { (self.nrows, self.ncols) }
    }

    /// The context shared with its operator.
    pub fn context(&self) -> &Arc<HostContext> {
        &self.context
    }

    /// Rows that [`Panel::turn`] takes at a time.
    const TURNED_ROWS: usize = 256;

    /// Bytes that [`Panel::turn`] to k columns allocates while it runs, on two threads.
    pub(crate) fn turn_bytes(nrows: usize, ncols: usize, k: usize) -> usize {
        let at_once = if matches!(threads(nrows * ncols * k, Par::rayon(2)), Par::Seq) { 1 } else { 2 };
        (at_once * Self::bytes(Self::TURNED_ROWS, k)).min(Self::bytes(nrows, k))
    }

    /// Scratch that [`Panel::orthonormalize`] takes from the context.
    pub fn orthonormalize_scratch(nrows: usize, ncols: usize, par: Par) -> StackReq {
        qr::orthonormalize_scratch::<T>(nrows, ncols, par)
    }

    /// Scratch that [`Panel::orthonormalize_sparingly`] takes from the context.
    pub fn orthonormalize_sparingly_scratch(nrows: usize, ncols: usize, with_r: bool, par: Par) -> StackReq {
        qr::orthonormalize_sparingly_scratch::<T>(nrows, ncols, with_r, par)
    }

    /// Scratch that [`Panel::gram`] takes from the context.
    pub fn gram_scratch(nrows: usize, ncols: usize) -> StackReq {
        StackReq::new::<f64>(wide_gram_scratch(nrows, ncols))
    }
}

impl<T: Scalar> Panel<T> for HostPanel<T> {
    fn nrows(&self) -> usize {
        self.nrows
    }

    fn ncols(&self) -> usize {
        self.ncols
    }

    fn multiply(&mut self, accum: Accum, a: &Self, c: MatRef<'_, T>, alpha: T) -> Result<()> {
        let par = threads(self.nrows * self.ncols * a.ncols, self.context.par);
        matmul(self.as_mut(), accum, a.as_ref(), c, alpha, par);
        Ok(())
    }

    fn inner(&self, other: &Self, mut c: MatMut<'_, T>) -> Result<()> {
        let (a, b) = (self.as_ref(), other.as_ref());
        if std::ptr::eq(self, other) {
            symmetric_product(a.transpose(), c.as_mut(), Accum::Replace, self.context.par);
            mirror(c);
        } else {
            let par = threads(self.nrows * self.ncols * other.ncols, self.context.par);
            matmul(c, Accum::Replace, a.transpose(), b, T::one(), par);
        }
        Ok(())
    }

    fn orthonormalize(&mut self, r: Option<MatMut<'_, T>>) -> Result<Orthonormalization> {
        let context = self.context.clone();
        let par = threads(self.nrows * self.ncols * self.ncols, context.par);
        let req = Self::orthonormalize_scratch(self.nrows, self.ncols, par);
        context.with_scratch(req, |stack| qr::orthonormalize(self.as_mut(), r, par, stack))
    }

    fn orthonormalize_sparingly(&mut self, r: Option<MatMut<'_, T>>) -> Result<Orthonormalization> {
        let context = self.context.clone();
        let par = threads(self.nrows * self.ncols * self.ncols, context.par);
        let req = Self::orthonormalize_sparingly_scratch(self.nrows, self.ncols, r.is_some(), par);
        context.with_scratch(req, |stack| qr::orthonormalize_sparingly(self.as_mut(), r, par, stack))
    }

    fn release(&self) {
        self.context.release();
    }

    fn turn(&mut self, c: MatRef<'_, T>) -> Result<bool> {
        let (k, rows) = (c.ncols(), self.nrows);
        let (par, by_rows) = (threads(rows * self.ncols * k, self.context.par), self.by_rows);
        let mut blocks = Vec::with_capacity(rows.div_ceil(Self::TURNED_ROWS));
        let mut rest = self.as_mut();
        while rest.nrows() > 0 {
            let (block, below) = {
                let cut = Self::TURNED_ROWS.min(rest.nrows());
                rest.split_at_row_mut(cut)
            };
            blocks.push(block);
            rest = below;
        }
        let run = |block: MatMut<'_, T>| {
            // Laid out as the panel is.
            let (height, width) = if by_rows { (k, block.nrows()) } else { (block.nrows(), k) };
            let mut turned = Mat::zeros(height, width);
            let mut turned = if by_rows { turned.as_mut().transpose_mut() } else { turned.as_mut() };
            matmul(turned.rb_mut(), Accum::Replace, block.rb(), c, T::one(), Par::Seq);
            block.subcols_mut(0, k).copy_from(turned);
        };
        match par {
            Par::Seq => blocks.into_iter().for_each(run),
            Par::Rayon(_) => blocks.into_par_iter().for_each(run),
        }
        if self.by_rows {
            let stride = row_stride::<T>(k).min(self.stride);
            for i in 1..rows {
                let from = i * self.stride;
                self.data.copy_within(from..from + k, i * stride);
            }
            self.stride = stride;
        }
        self.ncols = k;
        let (_, lines) = self.lines();
        self.data.shrink(self.stride * lines);
        Ok(true)
    }

    fn norm_squared(&self) -> Result<f64> {
        let (length, lines) = self.lines();
        Ok(simd::reduce::statistics_of_lines((0..lines).map(|j| &self.data[j * self.stride..][..length])).sum_squares)
    }

    fn gram(&self, c: MatMut<'_, f64>) -> Result<f64> {
        let req = Self::gram_scratch(self.nrows, self.ncols);
        self.context.with_scratch(req, |stack| {
            let (mut work, _) = stack.make_with(wide_gram_scratch(self.nrows, self.ncols), |_| 0.0_f64);
            wide_gram(self.as_ref(), c, &mut work, self.context.par);
        });
        Ok(f64::EPSILON)
    }

    fn set_columns(&mut self, first: usize, src: &Self) -> Result<()> {
        self.as_mut().subcols_mut(first, src.ncols).copy_from(src.as_ref());
        Ok(())
    }

    fn add_scaled(&mut self, a: &Self, alpha: T) -> Result<()> {
        zip!(self.as_mut(), a.as_ref()).for_each(|unzip!(to, x)| *to += alpha * *x);
        Ok(())
    }

    fn dot(&self, other: &Self) -> Result<f64> {
        if self.by_rows != other.by_rows {
            let (a, b) = (self.as_ref(), other.as_ref());
            let column = |j| a.col(j).iter().zip(b.col(j).iter()).map(|(&x, &y)| x.to_f64() * y.to_f64()).sum::<f64>();
            return Ok((0..self.ncols).map(column).sum());
        }
        let (length, lines) = self.lines();
        let line = |j: usize| {
            simd::reduce::dot(&self.data[j * self.stride..][..length], &other.data[j * other.stride..][..length])
        };
        Ok((0..lines).map(line).sum())
    }

    fn product_to_host(&self, c: MatRef<'_, T>, dst: MatMut<'_, T>) -> Result<()> {
        product(Accum::Replace, self.as_ref(), c, dst, &self.context);
        Ok(())
    }

    fn copy_to_host(&self, dst: MatMut<'_, T>) -> Result<()> {
        copy(self.as_ref(), dst, self.context.par);
        Ok(())
    }

    fn copy_from_host(&mut self, src: MatRef<'_, T>) -> Result<()> {
        self.as_mut().copy_from(src);
        Ok(())
    }

    fn write_on_host(&mut self, write: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()> {
        write(self.as_mut());
        Ok(())
    }

    fn use_up_on_host(mut self, use_up: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()> {
        use_up(self.as_mut());
        Ok(())
    }

    fn trace(&self) -> Result<f64> {
        let a = self.as_ref();
        Ok((0..self.ncols).map(|i| a[(i, i)].to_f64()).sum())
    }
}

/// `dst <- src`, in blocks of rows: fresh memory is slower to touch than to copy, and each thread touches its own.
pub(crate) fn copy<T: Scalar>(src: MatRef<'_, T>, mut dst: MatMut<'_, T>, par: Par) {
    const ELEMENTS: usize = 1 << 16;
    let (m, n) = src.shape();
    if matches!(par, Par::Seq) || m * n <= 2 * ELEMENTS {
        return dst.copy_from(src);
    }
    let rows = (ELEMENTS / n).max(1);
    let mut blocks = Vec::with_capacity(m.div_ceil(rows));
    for first in (0..m).step_by(rows) {
        let (block, rest) = dst.split_at_row_mut(rows.min(m - first));
        blocks.push((first, block));
        dst = rest;
    }
    blocks.into_par_iter().for_each(|(first, mut block)| block.copy_from(src.subrows(first, block.nrows())));
}
