//! Takes arrays from Python without a copy: NumPy arrays, and everything that speaks DLPack.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods, npyffi};
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use rayon::prelude::*;
use tensorslim::{DType, Element, TensorMut, TensorRef};

use crate::dlpack;
use crate::error::raise;

/// The fewest elements that a thread copies.
const COPIED: usize = 1 << 18;

/// A borrowed array of Python, of any strides. It keeps its owner alive.
pub(crate) struct Input {
    /// The element of lowest address, and how many elements there are from it to that of the highest.
    lowest: *mut u8,
    elements: usize,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<isize>,
    writable: bool,
    /// The array or the capsule, which keeps the memory.
    _owner: Py<PyAny>,
}

// SAFETY: the pointer is read (and, by `matrix_mut`, written) through borrows of this struct alone; the owner is a
// reference that pyo3 lets any thread hold. As with every extension that releases the lock, the caller promises that
// nothing else writes to an array while a function works on it.
unsafe impl Send for Input {}
// SAFETY: as for `Send`; a shared borrow only reads.
unsafe impl Sync for Input {}

/// Runs `$body` with `$e` as the Rust type that `$dtype` names.
macro_rules! with_dtype {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            tensorslim::DType::F16 => {
                type $e = half::f16;
                $body
            }
            tensorslim::DType::BF16 => {
                type $e = half::bf16;
                $body
            }
            tensorslim::DType::F32 => {
                type $e = f32;
                $body
            }
            _ => {
                type $e = f64;
                $body
            }
        }
    };
}
pub(crate) use with_dtype;

impl Input {
    /// Borrows an array.
    ///
    /// # Errors
    /// `TypeError` for what is no array of f16, bf16, f32 or f64 in the memory of the CPU; `ValueError` for elements
    /// that are not aligned.
    pub(crate) fn new(x: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(array) = x.cast::<PyUntypedArray>() {
            return Input::from_numpy(array);
        }
        if x.is_instance_of::<PyCapsule>() {
            return Input::from_capsule(x.clone());
        }
        if !x.hasattr("__dlpack__")? {
            let kind = x.get_type().qualname()?;
            return Err(PyTypeError::new_err(format!(
                "{kind} is no array: give a NumPy array or a tensor with __dlpack__ (PyTorch, JAX, CuPy on the CPU)"
            )));
        }
        Input::from_capsule(dlpack::capsule(x)?)
    }

    /// Borrows the tensor that a capsule of DLPack holds.
    fn from_capsule(capsule: Bound<'_, PyAny>) -> PyResult<Self> {
        let found = dlpack::describe(&capsule)?;
        Input::make(found.first, found.dtype, found.shape, found.strides, found.writable, capsule.unbind())
    }

    fn from_numpy(array: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let descr = array.dtype();
        let unsupported = || {
            let found = format!("elements of type {} are not supported", array.dtype());
            PyTypeError::new_err(format!("{found}; give float16, bfloat16, float32 or float64 in native byte order"))
        };
        if descr.is_native_byteorder() == Some(false) {
            return Err(unsupported());
        }
        let dtype = match (descr.kind(), descr.itemsize()) {
            (b'f', 2) => DType::F16,
            (b'f', 4) => DType::F32,
            (b'f', 8) => DType::F64,
            // The type of the package ml_dtypes, which NumPy knows as a kind of its own.
            (_, 2) if descr.to_string() == "bfloat16" => DType::BF16,
            _ => return Err(unsupported()),
        };
        let size = dtype.size() as isize;
        if array.strides().iter().zip(array.shape()).any(|(stride, &dim)| dim > 1 && stride % size != 0) {
            return Err(PyValueError::new_err("strides are no multiple of the element size; copy the array first"));
        }
        let strides = array.strides().iter().map(|stride| stride / size).collect();
        // SAFETY: the object is an array, and alive; its data pointer and flags are plain fields.
        let fields = unsafe { &(*array.as_array_ptr()).fields };
        let (first, flags) = (fields.data.cast::<u8>(), fields.flags);
        let writable = flags & npyffi::NPY_ARRAY_WRITEABLE != 0;
        Input::make(first, dtype, array.shape().to_vec(), strides, writable, array.clone().into_any().unbind())
    }

    /// Makes an input of the pointer to element 0.
    fn make(
        first: *mut u8,
        dtype: DType,
        shape: Vec<usize>,
        strides: Vec<isize>,
        writable: bool,
        owner: Py<PyAny>,
    ) -> PyResult<Self> {
        let too_large = || PyBufferError::new_err(format!("shape {shape:?} does not fit the address space"));
        let (mut before, mut span) = (0usize, 0usize);
        for (&dim, &stride) in shape.iter().zip(&strides) {
            let reach = dim.saturating_sub(1).checked_mul(stride.unsigned_abs()).ok_or_else(too_large)?;
            span = span.checked_add(reach).ok_or_else(too_large)?;
            before += if stride < 0 { reach } else { 0 };
        }
        let elements = if shape.contains(&0) { 0 } else { span + 1 };
        elements.checked_mul(dtype.size()).filter(|&b| isize::try_from(b).is_ok()).ok_or_else(too_large)?;
        let lowest = first.wrapping_sub(before * dtype.size());
        if elements > 0 && !(lowest as usize).is_multiple_of(dtype.size()) {
            return Err(PyValueError::new_err("the elements are not aligned; copy the array first"));
        }
        Ok(Input { lowest, elements, dtype, shape, strides, writable, _owner: owner })
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns all elements from the lowest address to the highest, those between the strides included.
    fn slice<E: Element>(&self) -> &[E] {
        assert_eq!(E::DTYPE, self.dtype, "the element type of an array");
        if self.elements == 0 {
            return &[];
        }
        // SAFETY: the owner keeps the memory of the array, which reaches from `lowest` over `elements` elements, as
        // shape and strides say; `make` has checked the alignment and that the bytes fit `isize`. Every bit pattern is
        // a value.
        unsafe { std::slice::from_raw_parts(self.lowest.cast::<E>(), self.elements) }
    }

    /// Returns the array as a tensor of the crate.
    pub(crate) fn tensor(&self) -> PyResult<TensorRef<'_>> {
        let tensor = with_dtype!(self.dtype, E => TensorRef::strided(self.slice::<E>(), &self.shape, &self.strides));
        tensor.map_err(raise)
    }

    /// Returns the array as a matrix: two axes as they are, one axis as a row, and of more axes the first `row_axes`,
    /// or all but the last, as rows.
    pub(crate) fn matrix(&self, row_axes: Option<usize>) -> PyResult<TensorRef<'_>> {
        let tensor = self.tensor()?;
        match (self.shape.len(), row_axes) {
            (1, None) => {
                let (shape, strides) = ([1, self.shape[0]], [self.shape[0].max(1) as isize, self.strides[0]]);
                let row = with_dtype!(self.dtype, E => TensorRef::strided(self.slice::<E>(), &shape, &strides));
                row.map_err(raise)
            }
            (2, None) => Ok(tensor),
            (axes, rows) => tensor.matricize(rows.unwrap_or(axes.saturating_sub(1))).map_err(raise),
        }
    }

    /// Returns the array as a matrix to be changed in place, as [`matrix`](Self::matrix) cuts it.
    ///
    /// # Errors
    /// `ValueError` for an array that is read-only, and those of the tensor.
    pub(crate) fn matrix_mut<E: Element>(&mut self) -> PyResult<TensorMut<'_, E>> {
        if !self.writable {
            return Err(PyValueError::new_err("the array is read-only; give one that can be written"));
        }
        let matrix = self.matrix(None)?;
        let (shape, strides) = ([matrix.shape()[0], matrix.shape()[1]], [matrix.strides()[0], matrix.strides()[1]]);
        assert_eq!(E::DTYPE, self.dtype, "the element type of an array");
        // SAFETY: as in `slice`; the array can be written, and the mutable borrow of `self` is the only one here.
        let all = unsafe { std::slice::from_raw_parts_mut(self.lowest.cast::<E>(), self.elements) };
        TensorMut::strided(all, shape[0], shape[1], strides[0], strides[1]).map_err(raise)
    }

    /// Copies the elements, in row-major order, on the threads of the current pool.
    pub(crate) fn to_vec<E: Element>(&self) -> Vec<E> {
        let all = self.slice::<E>();
        let count = self.len();
        if count == 0 {
            return Vec::new();
        }
        let mut dense = 1;
        let is_dense = self.shape.iter().zip(&self.strides).rev().all(|(&dim, &stride)| {
            let fits = dim == 1 || stride == dense;
            dense *= dim as isize;
            fits
        });
        if is_dense {
            // In parallel, because most of the time goes to the system, which finds the memory.
            return all.par_iter().with_min_len(COPIED).copied().collect();
        }
        let axes = self.shape.len();
        let (width, step) = (self.shape[axes - 1], self.strides[axes - 1]);
        let lowest: isize = self.shape.iter().zip(&self.strides).map(|(&d, &s)| (d as isize - 1) * s.min(0)).sum();
        let mut out = Vec::with_capacity(count);
        for line in 0..count / width {
            let (mut rest, mut at) = (line, -lowest);
            for axis in (0..axes - 1).rev() {
                at += (rest % self.shape[axis]) as isize * self.strides[axis];
                rest /= self.shape[axis];
            }
            out.extend((0..width as isize).map(|i| all[(at + i * step) as usize]));
        }
        out
    }
}
