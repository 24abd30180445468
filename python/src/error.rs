//! Turns errors of the crate into exceptions of Python, whose classes are in `tensorslim/_errors.py`.

use pyo3::prelude::*;
use tensorslim::Error;

/// Makes the exception of an error. Its numbers become attributes of the exception.
pub(crate) fn raise(error: Error) -> PyErr {
    Python::attach(|py| exception(py, &error).unwrap_or_else(|failure| failure))
}

fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let name = match error {
        Error::Shape { .. } => "ShapeError",
        Error::Empty { .. } => "EmptyError",
        Error::TooLarge { .. } => "TooLargeError",
        Error::Overlap { .. } | Error::Layout { .. } | Error::Misaligned { .. } => "LayoutError",
        Error::NotFinite { .. } => "NotFiniteError",
        Error::Rank { .. } => "RankError",
        Error::Option { .. } => "OptionError",
        Error::Range { .. } => "RangeError",
        Error::Order { .. } | Error::Rotation { .. } => "LengthError",
        Error::NoConvergence { .. } => "ConvergenceError",
        Error::Memory { .. } => "MemoryLimitError",
        Error::Cancelled => "CancelledError",
        Error::Device { .. } => "DeviceError",
        Error::File { .. } => "FileError",
        Error::Format { .. } => "FormatError",
        Error::Internal { .. } => "InternalError",
        _ => "Error",
    };
    let raised = py.import("tensorslim._errors")?.getattr(name)?.call1((error.to_string(),))?;
    match error {
        Error::NotFinite { row, col, value } => {
            raised.setattr("row", row)?;
            raised.setattr("col", col)?;
            raised.setattr("value", value)?;
        }
        Error::Rank { rank, max } => {
            raised.setattr("rank", rank)?;
            raised.setattr("max", max)?;
        }
        Error::Memory { limit, least } => {
            raised.setattr("limit", limit)?;
            raised.setattr("least", least)?;
        }
        Error::Option { name, .. } => raised.setattr("option", name)?,
        Error::Rotation { below, above, .. } => {
            raised.setattr("below", below)?;
            raised.setattr("above", above)?;
        }
        _ => {}
    }
    Ok(PyErr::from_value(raised))
}
