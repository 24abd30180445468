//! Gives results to Python as NumPy arrays, without a copy.

use bytemuck::Pod;
use half::{bf16, f16};
use numpy::ndarray::Array;
use numpy::{IntoPyArray, PyArrayMethods};
use pyo3::prelude::*;
use tensorslim::{Element, Matrix};

/// An element type that results have, and the type of the array that carries it: halves travel as the 16 bits that they
/// are, because NumPy has no bfloat16 of its own. The package views them as what they are.
pub(crate) trait Carried: Element {
    type Carrier: Pod + numpy::Element;
}
impl Carried for f16 {
    type Carrier = u16;
}
impl Carried for bf16 {
    type Carrier = u16;
}
impl Carried for f32 {
    type Carrier = f32;
}
impl Carried for f64 {
    type Carrier = f64;
}

/// Makes a NumPy array of this shape over row-major elements, which it owns from now on.
pub(crate) fn array<'py, E: Carried>(py: Python<'py>, data: Vec<E>, shape: &[usize]) -> PyResult<Bound<'py, PyAny>> {
    let carried: Vec<E::Carrier> = bytemuck::allocation::cast_vec(data);
    Ok(carried.into_pyarray(py).reshape(shape)?.into_any())
}

/// Makes a NumPy array of a matrix, which it owns from now on.
pub(crate) fn matrix<T: Carried>(py: Python<'_>, matrix: Matrix<T>) -> PyResult<Bound<'_, PyAny>> {
    let shape = [matrix.nrows(), matrix.ncols()];
    array(py, matrix.into_vec(), &shape)
}

/// Makes a read-only NumPy array over numbers that `owner` keeps.
///
/// # Safety
/// `data` lives, in its place and unchanged, as long as `owner`.
pub(crate) unsafe fn view<'py, T: numpy::Element>(
    data: &[T],
    shape: &[usize],
    owner: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let borrowed = numpy::ndarray::ArrayView1::from(data);
    // SAFETY: the caller promises that the numbers live as long as `owner`, which the array keeps. Nothing writes
    // through the array, because it is made read-only before anybody sees it.
    let array = unsafe { numpy::PyArray1::borrow_from_array(&borrowed, owner) };
    let array = array.reshape(shape)?;
    array.readwrite().make_nonwriteable();
    Ok(array.into_any())
}

/// Makes a NumPy vector.
pub(crate) fn vector<'py>(py: Python<'py>, data: &[f64]) -> Bound<'py, PyAny> {
    Array::from(data.to_vec()).into_pyarray(py).into_any()
}
