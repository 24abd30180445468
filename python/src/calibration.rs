//! The class `Calibration`: statistics of the inputs of a layer.

use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tensorslim::calibration::{Accumulation, Calibration, CalibrationOptions, Form, NonFinite};

use crate::arrays;
use crate::error::raise;
use crate::input::Input;
use crate::run::{on_pool, run};

/// Statistics that several threads of Python may feed.
#[pyclass(frozen, subclass, name = "Statistics", module = "tensorslim._core")]
pub(crate) struct Statistics {
    held: Mutex<Calibration>,
}

fn choose<T: Copy>(name: &'static str, value: &str, choices: &[(&str, T)], want: &'static str) -> PyResult<T> {
    let found = choices.iter().find(|(known, _)| *known == value).map(|&(_, choice)| choice);
    found.ok_or_else(|| raise(tensorslim::Error::Option { name, value: Some(value.to_string()), want }))
}

impl Statistics {
    fn lock(&self) -> MutexGuard<'_, Calibration> {
        // A panic leaves statistics as they were before the update or after it, and is a bug in any case.
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns a clone, which shares the matrix. It waits without Python's lock for a thread that feeds the statistics.
    pub(crate) fn snapshot(&self, py: Python<'_>) -> Calibration {
        py.detach(|| self.lock().clone())
    }
}

#[pymethods]
impl Statistics {
    #[new]
    #[pyo3(signature = (features, form="gram", accumulation="f64", non_finite="refuse"))]
    fn new(features: usize, form: &str, accumulation: &str, non_finite: &str) -> PyResult<Self> {
        let options = CalibrationOptions {
            form: choose("form", form, &[("gram", Form::Gram), ("factor", Form::Factor)], "gram or factor")?,
            accumulation: choose(
                "accumulation",
                accumulation,
                &[("f64", Accumulation::F64), ("f32", Accumulation::F32)],
                "f64 or f32",
            )?,
            non_finite: choose(
                "non_finite",
                non_finite,
                &[("refuse", NonFinite::Refuse), ("skip", NonFinite::Skip)],
                "refuse or skip",
            )?,
        };
        Ok(Statistics { held: Mutex::new(Calibration::with(features, options).map_err(raise)?) })
    }

    #[staticmethod]
    fn read(py: Python<'_>, bytes: &[u8]) -> PyResult<Self> {
        Ok(Statistics { held: Mutex::new(run(py, || Calibration::from_bytes(bytes))?) })
    }

    fn write<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let c = self.snapshot(py);
        Ok(PyBytes::new(py, &run(py, || Ok(c.to_bytes()))?))
    }

    fn update(&self, py: Python<'_>, x: &Bound<'_, PyAny>) -> PyResult<()> {
        let x = Input::new(x)?;
        let x = x.matrix(None)?;
        // The lock is taken before the pool's threads come in, which never wait for it.
        py.detach(|| {
            let mut held = self.lock();
            let held = &mut *held;
            on_pool(|| held.update(&x))
        })
        .map_err(raise)
    }

    fn merge(&self, py: Python<'_>, other: &Bound<'_, Statistics>) -> PyResult<()> {
        let other = other.get().snapshot(py);
        py.detach(|| {
            let mut held = self.lock();
            let held = &mut *held;
            on_pool(|| held.merge(&other))
        })
        .map_err(raise)
    }

    fn copy(&self, py: Python<'_>) -> Self {
        Statistics { held: Mutex::new(self.snapshot(py)) }
    }

    fn equals(&self, py: Python<'_>, other: &Bound<'_, Statistics>) -> PyResult<bool> {
        let (a, b) = (self.snapshot(py), other.get().snapshot(py));
        run(py, || Ok(a == b))
    }

    #[getter]
    fn features(&self, py: Python<'_>) -> usize {
        self.snapshot(py).features()
    }

    #[getter]
    fn samples(&self, py: Python<'_>) -> u64 {
        self.snapshot(py).samples()
    }

    #[getter]
    fn skipped(&self, py: Python<'_>) -> u64 {
        self.snapshot(py).skipped()
    }

    #[getter]
    fn means<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        arrays::vector(py, &self.snapshot(py).means())
    }

    #[getter]
    fn dead(&self, py: Python<'_>) -> Vec<usize> {
        self.snapshot(py).dead().collect()
    }

    fn gram<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let c = self.snapshot(py);
        arrays::matrix(py, run(py, || Ok(c.gram()))?)
    }
}
