//! The class `Factors`: the result of a factorization, in either arithmetic.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tensorslim::{ErrorKind, Factors, Report, Split, quality};

use crate::arrays;
use crate::calibration::Statistics;
use crate::error::raise;
use crate::input::Input;
use crate::run::run;

/// Factors in the arithmetic that gave them.
pub(crate) enum Typed {
    F32(Factors<f32>),
    F64(Factors<f64>),
}

/// Runs `$body` with `$f` bound to the factors, once per arithmetic.
macro_rules! with_factors {
    ($typed:expr, $f:ident => $body:expr) => {
        match $typed {
            Typed::F32($f) => $body,
            Typed::F64($f) => $body,
        }
    };
}

/// The factors `U diag(s) Vᵀ` with their report.
#[pyclass(frozen, name = "Factors", module = "tensorslim._core")]
pub(crate) struct PyFactors {
    typed: Typed,
}

impl PyFactors {
    pub(crate) fn new(typed: Typed) -> Self {
        PyFactors { typed }
    }

    fn made_of(&self) -> &Report {
        with_factors!(&self.typed, f => f.report())
    }
}

fn split_of(name: &str) -> PyResult<Split> {
    match name {
        "balanced" => Ok(Split::Balanced),
        "left" => Ok(Split::Left),
        "right" => Ok(Split::Right),
        _ => Err(raise(tensorslim::Error::Option {
            name: "split",
            value: Some(name.to_string()),
            want: "balanced, left or right",
        })),
    }
}

#[pymethods]
impl PyFactors {
    #[getter]
    fn u<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let owner = slf.clone().into_any();
        with_factors!(&slf.get().typed, f => {
            let u = f.u();
            // SAFETY: the class is frozen, so that the matrix stays in its place and unchanged while the object lives.
            unsafe { arrays::view(u.as_slice(), &[u.nrows(), u.ncols()], owner) }
        })
    }

    #[getter]
    fn s<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let owner = slf.clone().into_any();
        with_factors!(&slf.get().typed, f => {
            // SAFETY: the class is frozen, so that the values stay in their place and unchanged while the object lives.
            unsafe { arrays::view(f.s(), &[f.rank()], owner) }
        })
    }

    #[getter]
    fn vt<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let owner = slf.clone().into_any();
        with_factors!(&slf.get().typed, f => {
            let vt = f.vt();
            // SAFETY: the class is frozen, so that the matrix stays in its place and unchanged while the object lives.
            unsafe { arrays::view(vt.as_slice(), &[vt.nrows(), vt.ncols()], owner) }
        })
    }

    #[getter]
    fn rank(&self) -> usize {
        self.made_of().rank
    }

    #[getter]
    fn shape(&self) -> (usize, usize) {
        self.made_of().shape
    }

    #[getter]
    fn relative_error(&self) -> f64 {
        self.made_of().relative_error
    }

    #[getter]
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = self.made_of();
        let out = PyDict::new(py);
        out.set_item("shape", report.shape)?;
        out.set_item("dtype", report.dtype.name())?;
        out.set_item("precision", report.precision.name())?;
        out.set_item("rank", report.rank)?;
        out.set_item("method", report.method.name())?;
        out.set_item("reason", &report.reason)?;
        out.set_item("sketch", report.sketch.map(|sketch| sketch.name()))?;
        out.set_item("seed", report.seed)?;
        out.set_item("oversample", report.oversample)?;
        out.set_item("power_iterations", report.power_iterations)?;
        out.set_item("norm", report.norm)?;
        out.set_item("spectrum", arrays::vector(py, &report.spectrum))?;
        out.set_item("relative_error", report.relative_error)?;
        match report.error_kind {
            ErrorKind::Estimate { probes, std_dev } => {
                out.set_item("error_kind", "estimate")?;
                out.set_item("error_std_dev", std_dev)?;
                out.set_item("error_probes", probes)?;
            }
            _ => out.set_item("error_kind", "exact")?,
        }
        out.set_item("passes", report.passes)?;
        out.set_item("elapsed_ms", report.elapsed.as_secs_f64() * 1e3)?;
        out.set_item("peak_bytes", report.peak_bytes)?;
        out.set_item("params_before", report.params_before())?;
        out.set_item("params_after", report.params_after())?;
        out.set_item("ratio", report.ratio())?;
        out.set_item("notes", &report.notes)?;
        let Some(activation) = &report.activation else {
            out.set_item("activation", py.None())?;
            return Ok(out);
        };
        let seen = PyDict::new(py);
        seen.set_item("samples", activation.samples)?;
        seen.set_item("skipped", activation.skipped)?;
        seen.set_item("whitening", activation.whitening.name())?;
        seen.set_item("blend", activation.blend)?;
        seen.set_item("output_samples", activation.output_samples)?;
        seen.set_item("relative_error", activation.relative_error)?;
        seen.set_item("cosine", activation.cosine())?;
        seen.set_item("norm", activation.norm)?;
        seen.set_item("spectrum", arrays::vector(py, &activation.spectrum))?;
        out.set_item("activation", seen)?;
        Ok(out)
    }

    fn truncate(&self, py: Python<'_>, rank: usize) -> PyResult<Self> {
        let typed = match &self.typed {
            Typed::F32(f) => Typed::F32(run(py, || f.truncate(rank))?),
            Typed::F64(f) => Typed::F64(run(py, || f.truncate(rank))?),
        };
        Ok(PyFactors { typed })
    }

    fn split<'py>(&self, py: Python<'py>, mode: &str) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let mode = split_of(mode)?;
        with_factors!(&self.typed, f => {
            let (up, down) = run(py, || Ok(f.split(mode)))?;
            Ok((arrays::matrix(py, up)?, arrays::matrix(py, down)?))
        })
    }

    fn apply<'py>(&self, py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let x = Input::new(x)?;
        let samples = x.matrix(None)?;
        let mut shape = x.shape().to_vec();
        with_factors!(&self.typed, f => {
            let y = run(py, || f.apply(&samples))?;
            shape.last_mut().into_iter().for_each(|last| *last = y.ncols());
            arrays::array(py, y.into_vec(), &shape)
        })
    }

    fn reconstruct<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        with_factors!(&self.typed, f => arrays::matrix(py, run(py, || Ok(f.reconstruct()))?))
    }

    fn residual<'py>(&self, py: Python<'py>, w: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let w = Input::new(w)?;
        let w = w.matrix(None)?;
        match &self.typed {
            Typed::F32(f) => arrays::matrix(py, run(py, || f.residual::<f32>(&w))?),
            Typed::F64(f) => arrays::matrix(py, run(py, || f.residual::<f64>(&w))?),
        }
    }

    /// Compares the outputs on samples, or on the samples that statistics have seen: the cosine and the relative error.
    fn agreement(&self, py: Python<'_>, w: &Bound<'_, PyAny>, on: &Bound<'_, PyAny>) -> PyResult<(f64, f64)> {
        let w = Input::new(w)?;
        let (rows, _) = self.made_of().shape;
        // A convolution has its rows in the first axis, whatever the number of axes.
        let axes = (w.shape().len() > 2 && w.shape()[0] == rows).then_some(1);
        let w = w.matrix(axes)?;
        let found = if let Ok(statistics) = on.cast::<Statistics>() {
            let c = statistics.get().snapshot(py);
            with_factors!(&self.typed, f => run(py, || quality::expected(&w, f, &c))?)
        } else {
            let x = Input::new(on)?;
            let x = x.matrix(None)?;
            with_factors!(&self.typed, f => run(py, || quality::activation(&w, f, &x))?)
        };
        Ok((found.cosine, found.relative_error))
    }
}
