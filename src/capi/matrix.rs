//! Matrices of the caller: an address, a shape, strides and an element type, checked before anything is touched.
//!
//! ```text
//!   element (i, j)   at   data + i·row_stride + j·col_stride   elements;   data is that of (0, 0)
//! ```
//!
//! What is read becomes a [`TensorRef`], whose slice begins at the element of lowest address. What is written may be
//! memory that nobody has written before, so it is never a Rust slice: [`store`] writes each element through a pointer.

use std::ffi::c_void;

use super::status::{Failure, decode};
use crate::error::Error;
use crate::tensor::{DType, Element, TensorMut, TensorRef};

/// The element types of matrices. f16 is IEEE binary16, bf16 the upper half of a binary32; both are 16-bit words in C.
#[repr(C)]
pub enum Dtype {
    /// IEEE binary16.
    F16 = 0,
    /// bfloat16.
    Bf16 = 1,
    /// float.
    F32 = 2,
    /// double.
    F64 = 3,
}

/// A matrix that is only read. Element (i, j) is at data + i * row_stride + j * col_stride, counted in elements.
/// Strides may be negative. All memory from the element of lowest address to that of the highest must be readable, and
/// nobody may write to it during a call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Matrix {
    /// The address of element (0, 0), a multiple of the size of an element.
    pub data: *const c_void,
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
    /// The distance from a row to the next one, in elements: cols for a C array, 1 for a Fortran one.
    pub row_stride: isize,
    /// The distance from a column to the next one, in elements: 1 for a C array, rows for a Fortran one.
    pub col_stride: isize,
    /// A tensorslim_dtype.
    pub dtype: i32,
}

/// A matrix that is written, with the fields of tensorslim_matrix. The memory between its elements is left alone.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MatrixMut {
    /// The address of element (0, 0), a multiple of the size of an element.
    pub data: *mut c_void,
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
    /// The distance from a row to the next one, in elements.
    pub row_stride: isize,
    /// The distance from a column to the next one, in elements.
    pub col_stride: isize,
    /// A tensorslim_dtype.
    pub dtype: i32,
}

/// Returns the element type of this number.
pub(super) fn dtype(code: i32) -> Result<DType, Failure> {
    let table = [
        (Dtype::F16 as i32, DType::F16),
        (Dtype::Bf16 as i32, DType::BF16),
        (Dtype::F32 as i32, DType::F32),
        (Dtype::F64 as i32, DType::F64),
    ];
    decode(&table, code, "dtype", "TENSORSLIM_DTYPE_F16, _BF16, _F32 or _F64 (0 to 3)")
}

/// Returns the number of this element type.
pub(super) fn dtype_code(dtype: DType) -> i32 {
    match dtype {
        DType::F16 => Dtype::F16 as i32,
        DType::BF16 => Dtype::Bf16 as i32,
        DType::F32 => Dtype::F32 as i32,
        DType::F64 => Dtype::F64 as i32,
    }
}

/// The memory that a matrix spans.
pub(super) struct Span {
    /// How many elements (0, 0) is behind the element of lowest address.
    first: usize,
    /// The elements from the lowest to the highest, both included.
    length: usize,
    /// The address of the element of lowest address.
    start: usize,
    /// The number of bytes.
    bytes: usize,
}

impl Span {
    /// Returns whether the two have memory in common.
    pub(super) fn meets(&self, other: &Span) -> bool {
        self.start < other.start + other.bytes && other.start < self.start + self.bytes
    }
}

impl Matrix {
    /// Checks all that can be checked: the address, the type, the shape, the strides.
    pub(super) fn span(&self, name: &'static str) -> Result<Span, Failure> {
        let dtype = dtype(self.dtype)?;
        let (shape, strides) = ([self.rows, self.cols], [self.row_stride, self.col_stride]);
        if shape.contains(&0) {
            return Err(Error::Empty { shape: shape.to_vec() }.into());
        }
        if self.data.is_null() {
            return Err(Failure::Null(name));
        }
        let remainder = self.data as usize % dtype.size();
        if remainder != 0 {
            return Err(Error::Misaligned { dtype: dtype.name(), align: dtype.size(), remainder }.into());
        }
        let too_large = || Failure::from(Error::TooLarge { shape: shape.to_vec() });
        // The larger stride steps over all that the smaller one spans, or two elements meet.
        let mut axes = [0, 1].map(|axis| (strides[axis].unsigned_abs(), shape[axis] - 1));
        axes.sort_unstable();
        let (mut first, mut reach) = (0usize, 0usize);
        for (stride, steps) in axes.into_iter().filter(|&(_, steps)| steps > 0) {
            if stride <= reach {
                return Err(Error::Overlap { shape: shape.to_vec(), strides: strides.to_vec() }.into());
            }
            reach = steps.checked_mul(stride).and_then(|more| reach.checked_add(more)).ok_or_else(too_large)?;
        }
        let length = reach.checked_add(1).ok_or_else(too_large)?;
        let bytes = length.checked_mul(dtype.size()).filter(|&bytes| bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(too_large)?;
        for axis in [0, 1] {
            if strides[axis] < 0 {
                first += (shape[axis] - 1) * strides[axis].unsigned_abs();
            }
        }
        let start = (self.data as usize).checked_sub(first * dtype.size());
        let start = start.filter(|start| start.checked_add(bytes).is_some()).ok_or_else(too_large)?;
        Ok(Span { first, length, start, bytes })
    }

    /// Returns the matrix as a tensor, and what it spans.
    ///
    /// # Safety
    /// All elements that the shape and the strides reach from `data`, and those between, are readable during `'a`, and
    /// nobody writes to them.
    pub(super) unsafe fn tensor<'a>(&self, name: &'static str) -> Result<(TensorRef<'a>, Span), Failure> {
        /// # Safety
        /// That of [`Matrix::tensor`], for elements of type `E` at an aligned address.
        unsafe fn tensor<'a, E: Element>(matrix: &Matrix, span: &Span) -> Result<TensorRef<'a>, Failure> {
            let lowest = matrix.data.cast::<E>().wrapping_sub(span.first);
            // SAFETY: `span` has checked that the address is aligned and not null, and that the `length` elements
            // behind the lowest one do not wrap or exceed isize::MAX bytes; that they are readable and nobody writes to
            // them is the contract of this function. Every pattern of bits is a value of these types.
            let elements = unsafe { std::slice::from_raw_parts(lowest, span.length) };
            let (shape, strides) = ([matrix.rows, matrix.cols], [matrix.row_stride, matrix.col_stride]);
            Ok(TensorRef::strided(elements, &shape, &strides)?)
        }
        let span = self.span(name)?;
        // SAFETY: the contract of this method, for the type that `dtype` names; `span` has checked its alignment.
        let tensor = crate::dtype::with_dtype!(dtype(self.dtype)?, E => unsafe { tensor::<E>(self, &span) })?;
        Ok((tensor, span))
    }
}

impl MatrixMut {
    /// The same matrix, to be read.
    fn as_const(&self) -> Matrix {
        let MatrixMut { data, rows, cols, row_stride, col_stride, dtype } = *self;
        Matrix { data: data.cast_const(), rows, cols, row_stride, col_stride, dtype }
    }

    /// Checks all that can be checked, and returns what the matrix spans.
    pub(super) fn span(&self, name: &'static str) -> Result<Span, Failure> {
        self.as_const().span(name)
    }

    /// Returns the element type.
    pub(super) fn dtype(&self) -> Result<DType, Failure> {
        dtype(self.dtype)
    }

    /// Returns the matrix as a tensor of elements `E`, to be changed in place.
    ///
    /// # Safety
    /// `E` is the type that `dtype` names. The elements that the shape and the strides reach have been written before,
    /// are valid for reads and writes during `'a`, and nothing else reads or writes them.
    pub(super) unsafe fn tensor_mut<'a, E: Element>(&self, name: &'static str) -> Result<TensorMut<'a, E>, Failure> {
        self.span(name)?;
        let first = self.data.cast::<E>();
        // SAFETY: `span` has checked that no two indices share an address, that the address is aligned and that the
        // offsets stay in the address space; the rest is the contract of this method.
        Ok(unsafe { TensorMut::from_raw_parts(first, self.rows, self.cols, self.row_stride, self.col_stride) })
    }
}

/// Refuses a matrix to be written that has another shape than `rows × cols`, or that cannot be written.
pub(super) fn check_target(
    to: &MatrixMut,
    rows: usize,
    cols: usize,
    op: &'static str,
    name: &'static str,
) -> Result<(), Failure> {
    if (to.rows, to.cols) != (rows, cols) {
        let got = format_args!("{}×{}", to.rows, to.cols);
        return Err(Error::shape(op, format_args!("{name} to be {rows}×{cols}"), got).into());
    }
    to.span(name).map(drop)
}

/// Writes row-major `values` to a matrix of the caller, rounded to nearest in its element type.
///
/// # Safety
/// [`check_target`] has passed for a matrix of `values.len()` elements. These are valid for writes, and nothing else
/// reaches them during the call.
pub(super) unsafe fn store<T: Element>(values: &[T], to: &MatrixMut) -> Result<(), Failure> {
    crate::dtype::with_dtype!(to.dtype()?, E => {
        let first = to.data.cast::<E>();
        for (i, row) in values.chunks_exact(to.cols).enumerate() {
            let start = first.wrapping_offset(i as isize * to.row_stride);
            for (j, &value) in row.iter().enumerate() {
                let at = start.wrapping_offset(j as isize * to.col_stride);
                // SAFETY: (i, j) is inside of the shape, so `check_target` has found its address aligned and inside of
                // the span; that it is valid for writes is the contract of this function.
                unsafe { at.write(E::from_f64(Element::to_f64(value))) };
            }
        }
    });
    Ok(())
}
