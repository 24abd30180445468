//! Hadamard transforms, rotations and orthonormal bases.

use half::{bf16, f16};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tensorslim::dyn_stack::{MemBuffer, MemStack};
use tensorslim::rotation::{Rotation, Scheme};
use tensorslim::{DType, Error, MatMut, Matrix, Par, Result, Scalar, TensorMut, Threads, fwht, qr};

use crate::arrays::{self, Carried};
use crate::error::raise;
use crate::input::{Input, with_dtype};
use crate::run::run;

/// Transforms the rows of a matrix: `x_i <- scale · H x_i`.
fn transform<E: Carried>(x: TensorMut<'_, E>, scale: f64) -> Result<()> {
    if scale == 1.0 { fwht::fwht_rows(x, Threads::Pool) } else { fwht::scaled_rows(x, scale, Threads::Pool) }
}

/// Pads each row of `n` elements with zeros to `width`, transforms it, and keeps the first `n` elements.
fn transform_padded<E: Carried>(x: Vec<E>, n: usize, width: usize, scale: f64) -> Result<Vec<E>> {
    let rows = x.len() / n;
    let mut wide = vec![E::zeroed(); rows * width];
    wide.chunks_exact_mut(width).zip(x.chunks_exact(n)).for_each(|(to, from)| to[..n].copy_from_slice(from));
    transform(TensorMut::new(&mut wide, rows, width)?, scale)?;
    let mut out = x;
    out.chunks_exact_mut(n).zip(wide.chunks_exact(width)).for_each(|(to, from)| to.copy_from_slice(&from[..n]));
    Ok(out)
}

/// Transforms vectors along the last axis, and returns a new array.
#[pyfunction]
pub(crate) fn hadamard<'py>(x: &Bound<'py, PyAny>, scale: f64, pad: bool) -> PyResult<Bound<'py, PyAny>> {
    let py = x.py();
    let x = Input::new(x)?;
    let shape = x.shape().to_vec();
    let n = shape.last().copied().unwrap_or(1);
    with_dtype!(x.dtype(), E => {
        let out = run(py, || {
            let mut out = x.to_vec::<E>();
            if out.is_empty() {
                return Ok(out);
            }
            if pad && !n.is_power_of_two() {
                let width = n.checked_next_power_of_two().ok_or_else(|| Error::TooLarge { shape: shape.clone() })?;
                return transform_padded(out, n, width, scale);
            }
            let rows = out.len() / n;
            transform(TensorMut::new(&mut out, rows, n)?, scale)?;
            Ok(out)
        })?;
        arrays::array(py, out, &shape)
    })
}

/// Transforms vectors along the last axis in place.
#[pyfunction]
pub(crate) fn hadamard_in_place(x: &Bound<'_, PyAny>, scale: f64) -> PyResult<()> {
    let py = x.py();
    let mut x = Input::new(x)?;
    if x.len() == 0 {
        return Ok(());
    }
    with_dtype!(x.dtype(), E => {
        let matrix = x.matrix_mut::<E>()?;
        run(py, || transform(matrix, scale))
    })
}

/// Returns the nearest lengths of a transform, at most and at least `n`.
#[pyfunction]
pub(crate) fn hadamard_nearest(n: usize) -> (Option<usize>, Option<usize>) {
    let (below, above) = fwht::Order::nearest(n);
    (below.map(fwht::Order::len), above.map(fwht::Order::len))
}

/// A seeded rotation of vectors.
#[pyclass(frozen, name = "Rotation", module = "tensorslim._core")]
pub(crate) struct PyRotation {
    held: Rotation,
}

fn scheme_of(name: &str, block: Option<usize>) -> PyResult<Scheme> {
    match name {
        "order" => Ok(Scheme::Order),
        "blocks" => Ok(Scheme::Blocks { len: block }),
        "kac" => Ok(Scheme::Kac),
        "padded" => Ok(Scheme::Padded),
        other => {
            let (value, want) = (Some(other.to_string()), "order, blocks, kac or padded");
            Err(raise(Error::Option { name: "scheme", value, want }))
        }
    }
}

#[pymethods]
impl PyRotation {
    #[new]
    fn new(dim: usize, seed: u64, scheme: &str, block: Option<usize>) -> PyResult<Self> {
        Ok(PyRotation { held: Rotation::new(dim, seed, scheme_of(scheme, block)?).map_err(raise)? })
    }

    #[staticmethod]
    fn from_signs(dim: usize, scheme: &str, block: Option<usize>, signs: &[u8]) -> PyResult<Self> {
        let scheme = scheme_of(scheme, block)?;
        Ok(PyRotation { held: Rotation::from_sign_bytes(dim, scheme, signs).map_err(raise)? })
    }

    #[staticmethod]
    fn nearest(dim: usize, scheme: &str, block: Option<usize>) -> PyResult<(Option<usize>, Option<usize>)> {
        Ok(scheme_of(scheme, block)?.nearest(dim))
    }

    #[getter]
    fn dim(&self) -> usize {
        self.held.dim()
    }

    #[getter]
    fn output_dim(&self) -> usize {
        self.held.output_dim()
    }

    #[getter]
    fn signs<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.held.sign_bytes())
    }

    fn apply<'py>(&self, x: &Bound<'py, PyAny>, inverse: bool) -> PyResult<Bound<'py, PyAny>> {
        let py = x.py();
        let x = Input::new(x)?;
        let mut shape = x.shape().to_vec();
        let (from, to) = (self.held.dim(), self.held.output_dim());
        let (from, to) = if inverse { (to, from) } else { (from, to) };
        if shape.last() != Some(&from) {
            let (want, got) = (format!("vectors of {from} elements in the last axis"), format!("shape {shape:?}"));
            return Err(raise(Error::Shape { op: "Rotation.apply", want, got }));
        }
        with_dtype!(x.dtype(), E => {
            let out = run(py, || {
                let x = x.to_vec::<E>();
                let mut y = vec![<E as bytemuck::Zeroable>::zeroed(); x.len() / from * to];
                if inverse {
                    self.held.apply_inverse_to(&x, &mut y, Threads::Pool)?;
                } else {
                    self.held.apply_to(&x, &mut y, Threads::Pool)?;
                }
                Ok(y)
            })?;
            shape.last_mut().into_iter().for_each(|last| *last = to);
            arrays::array(py, out, &shape)
        })
    }
}

/// A basis Q of a panel, the factor R, the name of the algorithm, and the estimate of the panel's condition.
type Basis<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, String, f64);

fn basis<T: Scalar + Carried>(py: Python<'_>, columns: Vec<T>, m: usize, l: usize) -> PyResult<Basis<'_>> {
    let (q, r, report) = run(py, || {
        let (mut y, mut r) = (columns, vec![T::zeroed(); l * l]);
        let par = Par::rayon(0);
        let mut scratch = MemBuffer::new(qr::orthonormalize_scratch::<T>(m, l, par));
        let report = qr::orthonormalize(
            MatMut::from_column_major_slice_mut(&mut y, m, l),
            Some(MatMut::from_row_major_slice_mut(&mut r, l, l)),
            par,
            MemStack::new(&mut scratch),
        )?;
        Ok((Matrix::from_fn(m, l, |i, j| y[j * m + i]), Matrix::from_vec(r, l, l)?, report))
    })?;
    let algorithm = format!("{:?}", report.algorithm);
    Ok((arrays::matrix(py, q)?, arrays::matrix(py, r)?, algorithm, report.condition_estimate))
}

/// Orthonormalizes the columns of a matrix. Halves are widened to f32.
#[pyfunction]
pub(crate) fn orthonormalize<'py>(y: &Bound<'py, PyAny>) -> PyResult<Basis<'py>> {
    let py = y.py();
    let y = Input::new(y)?;
    let &[m, l] = y.shape() else {
        let (want, got) = ("a matrix of two axes".to_string(), format!("shape {:?}", y.shape()));
        return Err(raise(Error::Shape { op: "orthonormalize", want, got }));
    };
    let columns = || (0..l).flat_map(|j| (0..m).map(move |i| i * l + j));
    match y.dtype() {
        DType::F64 => {
            let panel = run(py, || {
                let all = y.to_vec::<f64>();
                Ok(columns().map(|at| all[at]).collect())
            })?;
            basis(py, panel, m, l)
        }
        DType::F32 => {
            let panel = run(py, || {
                let all = y.to_vec::<f32>();
                Ok(columns().map(|at| all[at]).collect())
            })?;
            basis(py, panel, m, l)
        }
        DType::F16 => {
            let panel = run(py, || {
                let all = y.to_vec::<f16>();
                Ok(columns().map(|at| all[at].to_f32()).collect())
            })?;
            basis(py, panel, m, l)
        }
        _ => {
            let panel = run(py, || {
                let all = y.to_vec::<bf16>();
                Ok(columns().map(|at| all[at].to_f32()).collect())
            })?;
            basis(py, panel, m, l)
        }
    }
}
