//! Panels in host memory: column-major, or by rows for what a product with a row-major matrix writes.
//!
//! The leading dimension is padded when it is a multiple of 4 KiB: the columns of a GEMM tile would otherwise fall
//! into one set of every cache.

use faer::dyn_stack::StackReq;
use faer::linalg::matmul::matmul;
use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::memory::{Buffer, Host};
use crate::linalg::{threads, wide_gram_scratch};
use crate::parallel::{self, row_blocks};
use crate::qr;
use crate::simd::{self, Scalar};

/// A `nrows × ncols` panel in host memory, column-major unless it was asked for [by rows](HostPanel::by_rows).
#[derive(Debug)]
pub struct HostPanel<T> {
    data: Buffer<T>,
    nrows: usize,
    ncols: usize,
    stride: usize,
    /// Lines are rows: `stride` is from one row to the next.
    by_rows: bool,
}

/// Returns the number of elements from one column to the next.
pub(crate) fn leading_dimension<T>(nrows: usize) -> usize {
    padded::<T>(nrows, 64)
}

/// Returns the number of elements from one row to the next where lines are rows. They are not padded to cache lines:
/// rows are short, and the padding of rows of 50 elements would take a quarter more memory.
fn row_stride<T>(ncols: usize) -> usize {
    padded::<T>(ncols, 16)
}

/// Pads a length to a multiple of `bytes` bytes that is not a multiple of a page.
fn padded<T>(length: usize, bytes: usize) -> usize {
    let unit = bytes / size_of::<T>();
    let padded = length.next_multiple_of(unit);
    if (padded * size_of::<T>()).is_multiple_of(4096) { padded + unit } else { padded }
}

impl<T: Scalar> HostPanel<T> {
    /// Makes a panel of zeros in the memory of `space`.
    pub fn zeros(nrows: usize, ncols: usize, space: &Host) -> Self {
        let stride = leading_dimension::<T>(nrows);
        HostPanel { data: space.buffer(stride * ncols), nrows, ncols, stride, by_rows: false }
    }

    /// Makes a row-major panel of zeros, which a product with a row-major matrix writes fastest.
    #[doc(hidden)]
    pub fn by_rows(nrows: usize, ncols: usize, space: &Host) -> Self {
        let stride = row_stride::<T>(ncols);
        HostPanel { data: space.buffer(stride * nrows), nrows, ncols, stride, by_rows: true }
    }

    /// Returns the bytes of a column-major panel of this shape.
    #[doc(hidden)]
    pub fn bytes(nrows: usize, ncols: usize) -> usize {
        leading_dimension::<T>(nrows) * ncols * size_of::<T>()
    }

    /// Returns the bytes of a row-major panel of this shape.
    #[doc(hidden)]
    pub fn bytes_by_rows(nrows: usize, ncols: usize) -> usize {
        row_stride::<T>(ncols) * nrows * size_of::<T>()
    }

    /// Returns the number of rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// Returns the number of columns.
    pub fn ncols(&self) -> usize {
        self.ncols
    }

    /// Returns the panel as a faer view.
    pub fn as_ref(&self) -> MatRef<'_, T> {
        let (length, lines) = self.lines();
        let a = MatRef::from_column_major_slice_with_stride(&self.data, length, lines, self.stride);
        if self.by_rows { a.transpose() } else { a }
    }

    /// Returns the panel as a mutable faer view.
    pub fn as_mut(&mut self) -> MatMut<'_, T> {
        let (length, lines) = self.lines();
        let a = MatMut::from_column_major_slice_with_stride_mut(&mut self.data, length, lines, self.stride);
        if self.by_rows { a.transpose_mut() } else { a }
    }

    /// Returns the length and the number of the lines of the storage.
    fn lines(&self) -> (usize, usize) {
        if self.by_rows { (self.ncols, self.nrows) } else { (self.nrows, self.ncols) }
    }

    /// How many rows [`multiply_in_place`](Self::multiply_in_place) takes at a time.
    const ROWS_AT_ONCE: usize = 256;

    /// Returns the bytes that [`multiply_in_place`](super::super::Space::multiply_in_place) by k columns allocates
    /// while it runs on two threads.
    pub(crate) fn multiply_in_place_bytes(nrows: usize, ncols: usize, k: usize) -> usize {
        let at_once = if matches!(threads(nrows * ncols * k, Par::rayon(2)), Par::Seq) { 1 } else { 2 };
        (at_once * Self::bytes(Self::ROWS_AT_ONCE, k)).min(Self::bytes(nrows, k))
    }

    /// Returns the scratch that an orthonormalization takes from the space.
    pub(crate) fn orthonormalize_scratch(nrows: usize, ncols: usize, par: Par) -> StackReq {
        qr::orthonormalize_scratch::<T>(nrows, ncols, par)
    }

    /// Returns the scratch that an orthonormalization in [little memory](super::super::Effort::LittleMemory) takes from
    /// the space.
    pub(crate) fn orthonormalize_sparingly_scratch(nrows: usize, ncols: usize, with_r: bool, par: Par) -> StackReq {
        qr::orthonormalize_sparingly_scratch::<T>(nrows, ncols, with_r, par)
    }

    /// Returns the scratch that [`gram`](super::super::Space::gram) takes from the space.
    pub(crate) fn gram_scratch(nrows: usize, ncols: usize) -> StackReq {
        StackReq::new::<f64>(wide_gram_scratch(nrows, ncols))
    }

    /// Computes `self <- self · c`, block by block of rows, and gives back the memory that is left over.
    pub(super) fn multiply_in_place(&mut self, c: MatRef<'_, T>, par: Par) {
        let (k, rows) = (c.ncols(), self.nrows);
        let (par, by_rows) = (threads(rows * self.ncols * k, par), self.by_rows);
        let blocks = row_blocks(self.as_mut(), Self::ROWS_AT_ONCE);
        let run = |(_, block): (usize, MatMut<'_, T>)| {
            // The product is laid out as the panel is.
            let (height, width) = if by_rows { (k, block.nrows()) } else { (block.nrows(), k) };
            let mut product = Mat::zeros(height, width);
            let mut product = if by_rows { product.as_mut().transpose_mut() } else { product.as_mut() };
            matmul(product.rb_mut(), Accum::Replace, block.rb(), c, T::one(), Par::Seq);
            block.subcols_mut(0, k).copy_from(product);
        };
        parallel::for_each_of(par, blocks, run);
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
    }

    /// Computes `‖self‖_F²`.
    pub(crate) fn norm_squared(&self) -> f64 {
        let (length, lines) = self.lines();
        simd::reduce::statistics_of_lines((0..lines).map(|j| &self.data[j * self.stride..][..length])).sum_squares
    }

    /// Computes `Σ self_ij other_ij`.
    pub(super) fn dot(&self, other: &Self) -> f64 {
        if self.by_rows != other.by_rows {
            let (a, b) = (self.as_ref(), other.as_ref());
            let column = |j| a.col(j).iter().zip(b.col(j).iter()).map(|(&x, &y)| x.to_f64() * y.to_f64()).sum::<f64>();
            return (0..self.ncols).map(column).sum();
        }
        let (length, lines) = self.lines();
        let line = |j: usize| {
            simd::reduce::dot(&self.data[j * self.stride..][..length], &other.data[j * other.stride..][..length])
        };
        (0..lines).map(line).sum()
    }
}
