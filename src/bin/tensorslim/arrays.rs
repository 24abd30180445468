//! Turns files of weights and samples into matrices.

use std::path::Path;

use tensorslim::TensorRef;
use tensorslim::npy::Array;

use crate::failure::{Failure, about};
use crate::inputs;

/// Reads a whole file; `bf16` has the meaning that it has in [`inputs::Header::read`].
pub(crate) fn read(path: &Path, bf16: bool) -> Result<Array, Failure> {
    Ok(inputs::array(path, bf16)?)
}

/// Returns the tensor as a matrix: the first `row_axes` axes as rows, the others as columns.
pub(crate) fn matrix<'a>(path: &Path, t: &TensorRef<'a>, row_axes: usize) -> Result<TensorRef<'a>, Failure> {
    match t.shape().len() {
        0 | 1 => Err(no_matrix(path, t.shape())),
        2 => Ok(t.clone()),
        _ => t.matricize(row_axes).map_err(about(path)),
    }
}

pub(crate) fn no_matrix(path: &Path, shape: &[usize]) -> Failure {
    Failure(format!("{}: shape {shape:?} is no matrix; give two axes or more", path.display()))
}
