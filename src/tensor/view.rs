//! Views of tensors as faer's algorithms take them: a `faer::MatRef` of one of the four element types.

use faer::{Mat, MatMut, MatRef};
use half::{bf16, f16};

use super::{DType, Element, Matrix, Slice, TensorMut, TensorRef, first_element};
use crate::error::{Error, Result};

/// Runs `$body` with `$a` bound to the `MatRef` inside a [`MatView`], once per element type.
macro_rules! with_view {
    ($view:expr, $a:ident => $body:expr) => {
        match $view {
            $crate::tensor::MatView::F16($a) => $body,
            $crate::tensor::MatView::BF16($a) => $body,
            $crate::tensor::MatView::F32($a) => $body,
            $crate::tensor::MatView::F64($a) => $body,
        }
    };
}
pub(crate) use with_view;

/// A view of a strided `m × n` matrix of any of the element types.
#[derive(Debug, Clone, Copy)]
pub enum MatView<'a> {
    /// A matrix of f16.
    F16(MatRef<'a, f16>),
    /// A matrix of bf16.
    BF16(MatRef<'a, bf16>),
    /// A matrix of f32.
    F32(MatRef<'a, f32>),
    /// A matrix of f64.
    F64(MatRef<'a, f64>),
}

impl<'a> MatView<'a> {
    /// The number of rows, `m`.
    pub fn nrows(&self) -> usize {
        with_view!(self, a => a.nrows())
    }

    /// The number of columns, `n`.
    pub fn ncols(&self) -> usize {
        with_view!(self, a => a.ncols())
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            MatView::F16(_) => DType::F16,
            MatView::BF16(_) => DType::BF16,
            MatView::F32(_) => DType::F32,
            MatView::F64(_) => DType::F64,
        }
    }

    /// Returns the view as a matrix of `E`, or `None` if its elements are of another type.
    pub fn typed<E: Element>(self) -> Option<MatRef<'a, E>> {
        if self.dtype() != E::DTYPE {
            return None;
        }
        with_view!(self, a => {
            let (m, n, rs, cs) = (a.nrows(), a.ncols(), a.row_stride(), a.col_stride());
            // SAFETY: `E` is the element type of `a`, by the test above (`DTYPE` is one to one over the sealed
            // types); pointer, shape, strides and lifetime are those of `a`.
            Some(unsafe { MatRef::from_raw_parts(a.as_ptr().cast::<E>(), m, n, rs, cs) })
        })
    }

    /// Returns the transpose, an `n × m` matrix of the same elements.
    pub fn transpose(self) -> MatView<'a> {
        with_view!(self, a => Element::view(a.transpose()))
    }

    /// Returns rows `first..first + count`.
    ///
    /// # Panics
    /// If the matrix has fewer rows.
    pub fn subrows(self, first: usize, count: usize) -> MatView<'a> {
        with_view!(self, a => Element::view(a.subrows(first, count)))
    }
}

/// A mutable matrix of one of the two arithmetic types, told apart at run time. Where generic code ends in one of
/// these, the kernels behind it are compiled once, here, and not in every crate that calls them.
pub(crate) enum ArithmeticMut<'a> {
    F32(MatMut<'a, f32>),
    F64(MatMut<'a, f64>),
}

/// Returns `y` as the variant of its element type.
///
/// # Panics
/// If the type is f16 or bf16, in which no arithmetic is done.
pub(crate) fn arithmetic_mut<T: Element>(y: MatMut<'_, T>) -> ArithmeticMut<'_> {
    let (m, n, rs, cs, at) = (y.nrows(), y.ncols(), y.row_stride(), y.col_stride(), y.as_ptr_mut());
    match T::DTYPE {
        // SAFETY: `T` is f32 (`DTYPE` is one to one over the sealed types); pointer, shape, strides and lifetime are
        // those of `y`, which is consumed.
        DType::F32 => ArithmeticMut::F32(unsafe { MatMut::from_raw_parts_mut(at.cast(), m, n, rs, cs) }),
        // SAFETY: `T` is f64 (`DTYPE` is one to one over the sealed types); pointer, shape, strides and lifetime are
        // those of `y`, which is consumed.
        DType::F64 => ArithmeticMut::F64(unsafe { MatMut::from_raw_parts_mut(at.cast(), m, n, rs, cs) }),
        DType::F16 | DType::BF16 => unreachable!("arithmetic is in f32 or f64"),
    }
}

impl<'a> TensorRef<'a> {
    /// Returns the tensor as a matrix view.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the tensor has two axes (see [`matricize`](Self::matricize)).
    pub fn view(&self) -> Result<MatView<'a>> {
        let (&[m, n], &[rs, cs]) = (&self.shape[..], &self.strides[..]) else {
            return Err(Error::shape(
                "matrix view",
                "a tensor of 2 axes (group them with matricize)",
                format_args!("shape {:?}", self.shape),
            ));
        };
        fn view<E: Element>(data: &[E], m: usize, n: usize, rs: isize, cs: isize) -> MatView<'_> {
            // The pointer does not come from a subslice: negative strides go back to elements that it would not borrow.
            let first = data.as_ptr().wrapping_add(first_element(m, rs) + first_element(n, cs));
            // SAFETY: `with_strides` and `new` proved that every index lands inside `data` when the element of
            // lowest address is `data[0]`; `first` is the element of index (0, 0) under that rule.
            E::view(unsafe { MatRef::from_raw_parts(first, m, n, rs, cs) })
        }
        Ok(match self.data {
            Slice::F16(d) => view(d, m, n, rs, cs),
            Slice::BF16(d) => view(d, m, n, rs, cs),
            Slice::F32(d) => view(d, m, n, rs, cs),
            Slice::F64(d) => view(d, m, n, rs, cs),
        })
    }
}

impl<T: Element> Matrix<T> {
    /// Returns the matrix as a faer view.
    pub fn as_ref(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.data, self.nrows, self.ncols)
    }

    /// Returns the matrix as a mutable faer view.
    pub fn as_mut(&mut self) -> MatMut<'_, T> {
        MatMut::from_row_major_slice_mut(&mut self.data, self.nrows, self.ncols)
    }
}

impl<T: Element> From<MatRef<'_, T>> for Matrix<T> {
    fn from(a: MatRef<'_, T>) -> Self {
        Matrix::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)])
    }
}

impl<T: Element> From<&Matrix<T>> for Mat<T> {
    fn from(a: &Matrix<T>) -> Self {
        Mat::from_fn(a.nrows, a.ncols, |i, j| a.data[i * a.ncols + j])
    }
}

impl<'a, T> From<MatMut<'a, T>> for TensorMut<'a, T> {
    fn from(a: MatMut<'a, T>) -> Self {
        let (m, n, rs, cs) = (a.nrows(), a.ncols(), a.row_stride(), a.col_stride());
        // SAFETY: a `MatMut` borrows its elements mutably for `'a` and is consumed; they are valid and distinct, which
        // is what its own constructors ask for.
        unsafe { TensorMut::from_raw_parts(a.as_ptr_mut(), m, n, rs, cs) }
    }
}
