//! The numbers of methods and sketches: options take them, and reports give them.

use super::status::{Failure, decode};
use crate::report::Method as Methods;
use crate::sketch::Sketch as Sketches;

/// The method of a factorization.
#[repr(C)]
pub enum Method {
    /// The cheapest method that is never less accurate than the randomized one.
    Auto = 0,
    /// The optimum, by a QR and a dense SVD.
    Full = 1,
    /// Eigenvectors of the Gram matrix on the short side.
    Gram = 2,
    /// A randomized range finder with power iterations.
    Randomized = 3,
    /// Block Krylov iteration.
    Krylov = 4,
    /// Three sketches of one pass.
    SinglePass = 5,
    /// Two sketches of one pass.
    Nystrom = 6,
}

/// The random matrix of a factorization.
#[repr(C)]
pub enum Sketch {
    /// Independent normals.
    Gaussian = 0,
    /// A subsampled randomized Hadamard transform, the default.
    Srht = 1,
    /// Eight entries in each row.
    SparseSign = 2,
}

const METHODS: [(i32, Methods); 7] = [
    (Method::Auto as i32, Methods::Auto),
    (Method::Full as i32, Methods::Full),
    (Method::Gram as i32, Methods::Gram),
    (Method::Randomized as i32, Methods::Randomized),
    (Method::Krylov as i32, Methods::Krylov),
    (Method::SinglePass as i32, Methods::SinglePass),
    (Method::Nystrom as i32, Methods::Nystrom),
];

const SKETCHES: [(i32, Sketches); 3] = [
    (Sketch::Gaussian as i32, Sketches::Gaussian),
    (Sketch::Srht as i32, Sketches::Srht),
    (Sketch::SparseSign as i32, Sketches::SparseSign),
];

/// Returns the method of this number.
pub(super) fn method(code: i32) -> Result<Methods, Failure> {
    decode(&METHODS, code, "method", "TENSORSLIM_METHOD_AUTO, .. or _NYSTROM (0 to 6)")
}

/// Returns the sketch of this number.
pub(super) fn sketch(code: i32) -> Result<Sketches, Failure> {
    decode(&SKETCHES, code, "sketch", "TENSORSLIM_SKETCH_GAUSSIAN, _SRHT or _SPARSE_SIGN (0 to 2)")
}

/// Returns the number of this method.
pub(super) fn method_code(method: Methods) -> i32 {
    METHODS.iter().find(|(_, known)| *known == method).map_or(-1, |(code, _)| *code)
}

/// Returns the number of this sketch, -1 for none.
pub(super) fn sketch_code(sketch: Option<Sketches>) -> i32 {
    SKETCHES.iter().find(|(_, known)| Some(*known) == sketch).map_or(-1, |(code, _)| *code)
}
