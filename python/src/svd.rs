//! The functions that factor.

use std::time::Instant;

use half::{bf16, f16};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyDict, PyList};
use tensorslim::operator::{Difference, Watch};
use tensorslim::{DType, Element, Factors, Matrix, Rank, Result, Scalar, TensorRef, TruncatedSvd, Whitening};

use crate::arrays::{Carried, array, matrix};
use crate::calibration::Statistics;
use crate::error::raise;
use crate::factors::{PyFactors, Typed};
use crate::input::Input;
use crate::run::{run, run_watched};

/// The options of a factorization, as Python gives them.
struct Options<'py> {
    /// The name of the rule for the rank, and its number.
    rule: String,
    value: f64,
    method: Option<String>,
    sketch: Option<String>,
    oversample: Option<usize>,
    power_iterations: Option<usize>,
    seed: u64,
    dynamic_shift: bool,
    smallest: bool,
    max_rank: Option<usize>,
    calibration: Option<Bound<'py, Statistics>>,
    output_calibration: Option<Bound<'py, Statistics>>,
    quality_on: Option<Bound<'py, Statistics>>,
    blend: Option<f64>,
    output_blend: Option<f64>,
    whitening: Option<String>,
    memory_limit: Option<usize>,
    /// The arithmetic: f32, f64, or that of the elements.
    precision: Option<String>,
}

impl<'py> Options<'py> {
    /// Reads the rule, and the options that were given. The others have their defaults: reading all of them would take
    /// longer than all else that a call does here.
    fn new(rule: String, value: f64, given: &Bound<'py, PyDict>) -> PyResult<Self> {
        let mut options = Options {
            rule,
            value,
            method: None,
            sketch: None,
            oversample: None,
            power_iterations: None,
            seed: 0,
            dynamic_shift: false,
            smallest: false,
            max_rank: None,
            calibration: None,
            output_calibration: None,
            quality_on: None,
            blend: None,
            output_blend: None,
            whitening: None,
            memory_limit: None,
            precision: None,
        };
        for (name, value) in given {
            match name.extract::<PyBackedStr>()?.as_ref() {
                "method" => options.method = value.extract()?,
                "sketch" => options.sketch = value.extract()?,
                "oversample" => options.oversample = value.extract()?,
                "power_iterations" => options.power_iterations = value.extract()?,
                "seed" => options.seed = value.extract()?,
                "dynamic_shift" => options.dynamic_shift = value.extract()?,
                "smallest" => options.smallest = value.extract()?,
                "max_rank" => options.max_rank = value.extract()?,
                "calibration" => options.calibration = value.extract()?,
                "output_calibration" => options.output_calibration = value.extract()?,
                "quality_on" => options.quality_on = value.extract()?,
                "blend" => options.blend = value.extract()?,
                "output_blend" => options.output_blend = value.extract()?,
                "whitening" => options.whitening = value.extract()?,
                "memory_limit" => options.memory_limit = value.extract()?,
                "precision" => options.precision = value.extract()?,
                other => return Err(PyTypeError::new_err(format!("there is no option {other}"))),
            }
        }
        Ok(options)
    }

    /// Returns the configuration of the crate.
    fn svd(&self, py: Python<'_>) -> PyResult<TruncatedSvd> {
        let rank = match self.rule.as_str() {
            "rank" => Rank::Fixed(self.value as usize),
            "ratio" => Rank::Ratio(self.value),
            "energy" => Rank::Energy(self.value),
            "tolerance" => Rank::Tolerance(self.value),
            "quality" => Rank::Quality(self.value),
            "numerical" => Rank::Numerical,
            _ => Rank::Above(self.value),
        };
        let mut svd = TruncatedSvd::new(rank).seed(self.seed).dynamic_shift(self.dynamic_shift).smallest(self.smallest);
        if let Some(method) = &self.method {
            svd = svd.method(method.parse().map_err(raise)?);
        }
        if let Some(sketch) = &self.sketch {
            svd = svd.sketch(sketch.parse().map_err(raise)?);
        }
        if let Some(p) = self.oversample {
            svd = svd.oversample(p);
        }
        if let Some(q) = self.power_iterations {
            svd = svd.power_iterations(q);
        }
        if let Some(k) = self.max_rank {
            svd = svd.max_rank(k);
        }
        if let Some(c) = &self.calibration {
            svd = svd.calibration(&c.get().snapshot(py));
        }
        if let Some(c) = &self.output_calibration {
            svd = svd.output_calibration(&c.get().snapshot(py));
        }
        if let Some(b) = self.output_blend {
            svd = svd.output_blend(b);
        }
        if let Some(c) = &self.quality_on {
            svd = svd.quality_on(&c.get().snapshot(py));
        }
        if let Some(b) = self.blend {
            svd = svd.blend(b);
        }
        match self.whitening.as_deref() {
            None | Some("full") => {}
            Some("diagonal") => svd = svd.whitening(Whitening::Diagonal),
            Some(other) => {
                let (value, want) = (Some(other.to_string()), "full or diagonal");
                return Err(raise(tensorslim::Error::Option { name: "whitening", value, want }));
            }
        }
        if let Some(bytes) = self.memory_limit {
            svd = svd.memory_limit(bytes);
        }
        Ok(svd)
    }

    /// Returns whether to compute in f64 with elements of these types.
    fn is_double(&self, dtypes: &[DType]) -> PyResult<bool> {
        match self.precision.as_deref() {
            None => Ok(dtypes.contains(&DType::F64)),
            Some("f32") => Ok(false),
            Some("f64") => Ok(true),
            Some(other) => {
                let (value, want) = (Some(other.to_string()), "f32 or f64");
                Err(raise(tensorslim::Error::Option { name: "precision", value, want }))
            }
        }
    }
}

/// Factors a matrix, or the difference of two.
fn solve<T: Scalar>(
    svd: &TruncatedSvd,
    w: TensorRef<'_>,
    minus: Option<TensorRef<'_>>,
    watch: &Watch<'_>,
) -> Result<Factors<T>> {
    match minus {
        Some(base) => svd.factor_rows(&mut Difference::new(w, base)?, watch),
        None => svd.factor_watched(w, watch),
    }
}

#[pyfunction]
pub(crate) fn factor(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    minus: Option<&Bound<'_, PyAny>>,
    row_axes: Option<usize>,
    rule: String,
    value: f64,
    options: &Bound<'_, PyDict>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PyFactors> {
    let options = Options::new(rule, value, options)?;
    let svd = options.svd(py)?;
    let w = Input::new(w)?;
    let minus = minus.map(Input::new).transpose()?;
    let base = minus.as_ref().map(|base| base.matrix(row_axes)).transpose()?;
    let dtypes = [w.dtype(), minus.as_ref().map_or(w.dtype(), Input::dtype)];
    let double = options.is_double(&dtypes)?;
    let (size, w) = (w.len(), w.matrix(row_axes)?);
    let typed = if double {
        Typed::F64(run_watched(py, size, progress, |watch| solve(&svd, w, base, watch))?)
    } else {
        Typed::F32(run_watched(py, size, progress, |watch| solve(&svd, w, base, watch))?)
    };
    Ok(PyFactors::new(typed))
}

#[pyfunction]
pub(crate) fn factor_many<'py>(
    py: Python<'py>,
    weights: Vec<Bound<'py, PyAny>>,
    rule: String,
    value: f64,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyList>> {
    let options = Options::new(rule, value, options)?;
    let svd = options.svd(py)?;
    let inputs = weights.iter().map(Input::new).collect::<PyResult<Vec<_>>>()?;
    let dtypes: Vec<DType> = inputs.iter().map(Input::dtype).collect();
    let double = options.is_double(&dtypes)?;
    let matrices = inputs.iter().map(|w| w.matrix(None)).collect::<PyResult<Vec<_>>>()?;
    let results: Vec<Result<Typed>> = if double {
        let all = run(py, || Ok(svd.factor_many::<f64>(&matrices)))?;
        all.into_iter().map(|f| f.map(Typed::F64)).collect()
    } else {
        let all = run(py, || Ok(svd.factor_many::<f32>(&matrices)))?;
        all.into_iter().map(|f| f.map(Typed::F32)).collect()
    };
    let out = PyList::empty(py);
    for result in results {
        match result {
            Ok(typed) => out.append(PyFactors::new(typed))?,
            // A failure concerns its own matrix alone.
            Err(error) => out.append(raise(error).value(py))?,
        }
    }
    Ok(out)
}

/// The vectors, the values, the relative error and the number of products.
type Side<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, f64, usize);

/// Computes one side of the factors, from a start if there is one.
#[pyfunction]
pub(crate) fn basis<'py>(
    py: Python<'py>,
    w: &Bound<'py, PyAny>,
    rank: f64,
    start: Option<&Bound<'py, PyAny>>,
    options: &Bound<'py, PyDict>,
) -> PyResult<Side<'py>> {
    fn side<'py, T: Carried + Scalar>(
        py: Python<'py>,
        svd: &TruncatedSvd,
        w: &TensorRef<'_>,
        start: Option<(Vec<T>, [usize; 2])>,
    ) -> PyResult<Side<'py>> {
        let start = start.map(|(data, [m, j])| Matrix::from_vec(data, m, j)).transpose().map_err(raise)?;
        let found = run(py, || svd.basis::<T>(w, start.as_ref()))?;
        let (error, products) = (found.report.relative_error, found.report.passes);
        let k = found.s.len();
        Ok((matrix(py, found.vectors)?, array(py, found.s, &[k])?, error, products))
    }
    let options = Options::new("rank".to_string(), rank, options)?;
    let svd = options.svd(py)?;
    let w = Input::new(w)?;
    let start = start.map(Input::new).transpose()?;
    let shape = match start.as_ref().map(Input::shape) {
        None => [0, 0],
        Some(&[m, j]) => [m, j],
        Some(shape) => {
            let (want, got) = ("a start of two axes".to_string(), format!("shape {shape:?}"));
            return Err(raise(tensorslim::Error::Shape { op: "basis", want, got }));
        }
    };
    let double = options.is_double(&[w.dtype()])?;
    let matrix = w.matrix(None)?;
    if double {
        side::<f64>(py, &svd, &matrix, start.as_ref().map(|start| (numbers::<f64>(start), shape)))
    } else {
        side::<f32>(py, &svd, &matrix, start.as_ref().map(|start| (numbers::<f32>(start), shape)))
    }
}

/// Copies elements of any type into those of the arithmetic.
fn numbers<T: Scalar>(x: &Input) -> Vec<T> {
    fn convert<E: Element, T: Element>(x: &Input) -> Vec<T> {
        x.to_vec::<E>().into_iter().map(|x| T::from_f64(x.to_f64())).collect()
    }
    match x.dtype() {
        DType::F64 => convert::<f64, T>(x),
        DType::F32 => convert::<f32, T>(x),
        DType::F16 => convert::<f16, T>(x),
        _ => convert::<bf16, T>(x),
    }
}

/// Returns the peak bytes of a factorization, and the plan in words.
#[pyfunction]
pub(crate) fn plan(
    py: Python<'_>,
    shape: (usize, usize),
    dtype: &str,
    rule: String,
    value: f64,
    options: &Bound<'_, PyDict>,
) -> PyResult<(usize, String)> {
    let options = Options::new(rule, value, options)?;
    let (svd, dtype) = (options.svd(py)?, dtype.parse::<DType>().map_err(raise)?);
    let plan = if options.is_double(&[dtype])? { svd.plan::<f64>(shape, dtype) } else { svd.plan::<f32>(shape, dtype) };
    let plan = plan.map_err(raise)?;
    Ok((plan.peak_bytes, plan.to_string()))
}

/// Returns the seconds that a program in Rust waits for the factors of rank `rank` of a matrix, their end included:
/// what `benches/overhead.py` holds `factor` against.
#[pyfunction]
pub(crate) fn seconds_in_rust(py: Python<'_>, w: &Bound<'_, PyAny>, rank: usize) -> PyResult<f64> {
    let w = Input::new(w)?;
    let w = w.matrix(None)?;
    let seconds = py.detach(|| {
        let start = Instant::now();
        drop(TruncatedSvd::new(Rank::Fixed(rank)).factor::<f32>(w)?);
        Ok(start.elapsed().as_secs_f64())
    });
    seconds.map_err(raise)
}
