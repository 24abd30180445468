//! Elements in memory, as the kernels of the transforms see them: their type is known when the program runs.
//!
//! A pass reads one type and writes another only at the edges of a transform, and asks for it once in 8 or 16
//! registers. Were the types part of the kernels' types, each kernel would be compiled for every pair of them.

use crate::dtype::with_dtype;
use crate::simd::Scalar;
use crate::tensor::{DType, Element};

/// A pointer to elements of type `dtype`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw {
    pub(super) ptr: *mut u8,
    pub(super) dtype: DType,
}

impl Raw {
    /// Makes a pointer to elements of type `E`.
    #[inline(always)]
    pub(super) fn new<E: Element>(ptr: *mut E) -> Self {
        Raw { ptr: ptr.cast(), dtype: E::DTYPE }
    }

    /// Returns whether the elements are of type `T`.
    #[inline(always)]
    pub(super) fn is<T: Element>(self) -> bool {
        self.dtype == T::DTYPE
    }

    /// Returns the pointer to the element that is `by` elements away. It need not exist.
    #[inline(always)]
    pub(super) fn offset(self, by: isize) -> Self {
        Raw { ptr: self.ptr.wrapping_offset(by * self.dtype.size() as isize), ..self }
    }

    /// Returns the pointer to the element that is `by` elements behind. It need not exist.
    #[inline(always)]
    pub(super) fn add(self, by: usize) -> Self {
        self.offset(by as isize)
    }

    /// Reads a matrix of elements, `count` in a row, and rounds them to type `T`. Neighbouring rows are `strides[0]`
    /// elements apart, neighbouring columns `strides[1]`. Row `i` goes to the beginning of row `i` of `dst`, whose rows
    /// have `width` elements.
    ///
    /// # Safety
    /// All these elements are readable.
    pub(super) unsafe fn read<T: Scalar>(self, strides: [isize; 2], count: usize, dst: &mut [T], width: usize) {
        // SAFETY: guaranteed by this function's contract; `E` is the type that `dtype` names.
        with_dtype!(self.dtype, E => unsafe { read::<T, E>(self.ptr.cast(), strides, count, dst, width) });
    }

    /// Rounds elements to this type and writes them to the places from which [`read`](Self::read) reads them.
    ///
    /// # Safety
    /// All these elements are writable.
    pub(super) unsafe fn write<T: Scalar>(self, strides: [isize; 2], count: usize, src: &[T], width: usize) {
        // SAFETY: guaranteed by this function's contract; `E` is the type that `dtype` names.
        with_dtype!(self.dtype, E => unsafe { write::<T, E>(self.ptr.cast(), strides, count, src, width) });
    }
}

/// Does [`Raw::read`] for elements of type `E`.
///
/// # Safety
/// As for [`Raw::read`].
unsafe fn read<T: Scalar, E: Element>(
    src: *const E,
    [down, right]: [isize; 2],
    count: usize,
    dst: &mut [T],
    width: usize,
) {
    for (i, row) in dst.chunks_mut(width).enumerate() {
        for (j, value) in row[..count].iter_mut().enumerate() {
            // SAFETY: guaranteed by this function's contract.
            *value = T::from_f64(unsafe { *src.offset(i as isize * down + j as isize * right) }.to_f64());
        }
    }
}

/// Does [`Raw::write`] for elements of type `E`.
///
/// # Safety
/// As for [`Raw::write`].
unsafe fn write<T: Scalar, E: Element>(dst: *mut E, [down, right]: [isize; 2], count: usize, src: &[T], width: usize) {
    for (i, row) in src.chunks(width).enumerate() {
        for (j, value) in row[..count].iter().enumerate() {
            // SAFETY: guaranteed by this function's contract.
            unsafe { *dst.offset(i as isize * down + j as isize * right) = E::from_f64(Element::to_f64(*value)) };
        }
    }
}

/// Rows that a pass reads or writes: element `(row, column)` is at `at + row·stride + column`, counted in elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) at: Raw,
    pub(super) stride: isize,
}

impl Rows {
    /// Returns the rows from row `i` on.
    #[inline(always)]
    pub(super) fn row(self, i: usize) -> Self {
        Rows { at: self.at.offset(i as isize * self.stride), ..self }
    }

    /// Returns the same rows from column `j` on.
    #[inline(always)]
    pub(super) fn column(self, j: usize) -> Self {
        Rows { at: self.at.add(j), ..self }
    }

    /// Returns every `h`-th row, from the first on.
    #[inline(always)]
    pub(super) fn every(self, h: usize) -> Self {
        Rows { stride: self.stride * h as isize, ..self }
    }

    /// Returns the same rows for a kernel that is compiled for their type.
    #[inline(always)]
    pub(super) fn typed<E: Element>(self) -> Typed<E> {
        debug_assert!(self.at.is::<E>());
        Typed { ptr: self.at.ptr.cast(), stride: self.stride }
    }
}

/// [`Rows`] of elements of type `E`.
#[derive(Debug)]
pub(super) struct Typed<E> {
    pub(super) ptr: *mut E,
    pub(super) stride: isize,
}

impl<E> Clone for Typed<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Typed<E> {}

impl<E> Typed<E> {
    /// Returns every `h`-th row from row `i` on.
    #[inline(always)]
    pub(super) fn from(self, i: usize, h: usize) -> Self {
        Typed { ptr: self.ptr.wrapping_offset(i as isize * self.stride), stride: self.stride * h as isize }
    }
}
