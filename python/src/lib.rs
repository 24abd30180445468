//! The extension module `tensorslim._core`: the crate's functions for Python, without an algorithm of their own.
//!
//! ```text
//!   input, dlpack     arrays from Python, borrowed         arrays    results to Python, without a copy
//!   run               threads, Python's lock, Ctrl-C       error     exceptions
//!   memory            where large blocks come from
//!   svd, factors, calibration, rank, transforms            the functions and classes
//! ```
//!
//! The package around it (`tensorslim/*.py`) has the names, the defaults and the documentation that users see.

mod arrays;
mod calibration;
mod dlpack;
mod error;
mod factors;
mod input;
mod memory;
mod rank;
mod run;
mod svd;
mod transforms;

use pyo3::prelude::*;

/// Sets the number of threads of all calls from now on; 0 means one per core.
#[pyfunction]
fn set_num_threads(count: usize) -> PyResult<()> {
    run::set_threads(count).map_err(error::raise)
}

/// Returns the number of threads.
#[pyfunction]
fn get_num_threads() -> usize {
    run::threads()
}

#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    run::start();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<factors::PyFactors>()?;
    module.add_class::<calibration::Statistics>()?;
    module.add_class::<transforms::PyRotation>()?;
    module.add_function(wrap_pyfunction!(svd::factor, module)?)?;
    module.add_function(wrap_pyfunction!(svd::basis, module)?)?;
    module.add_function(wrap_pyfunction!(svd::factor_many, module)?)?;
    module.add_function(wrap_pyfunction!(svd::plan, module)?)?;
    module.add_function(wrap_pyfunction!(svd::seconds_in_rust, module)?)?;
    module.add_function(wrap_pyfunction!(rank::allocate, module)?)?;
    module.add_function(wrap_pyfunction!(rank::rank_for_ratio, module)?)?;
    module.add_function(wrap_pyfunction!(rank::rank_saves_memory, module)?)?;
    module.add_function(wrap_pyfunction!(transforms::hadamard, module)?)?;
    module.add_function(wrap_pyfunction!(transforms::hadamard_in_place, module)?)?;
    module.add_function(wrap_pyfunction!(transforms::hadamard_nearest, module)?)?;
    module.add_function(wrap_pyfunction!(transforms::orthonormalize, module)?)?;
    module.add_function(wrap_pyfunction!(set_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(get_num_threads, module)?)?;
    Ok(())
}
