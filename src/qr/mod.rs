use crate::*;
use faer::Mat;
use faer::dyn_stack::{MemStack, StackReq};
pub struct Orthonormalization;
impl Orthonormalization {
    pub fn remark(&self) -> Option<String> {
        None
    }
}
pub fn orthonormalize_scratch<T: Scalar>(_m: usize, _l: usize, _p: Par) -> StackReq {
    StackReq::EMPTY
}
pub fn orthonormalize<T: Scalar>(
    mut y: MatMut<T>,
    r: Option<MatMut<T>>,
    _par: Par,
    _s: &mut MemStack,
) -> Result<Orthonormalization> {
    let a = Mat::<f64>::from_fn(y.nrows(), y.ncols(), |i, j| y[(i, j)].as_f64());
    let qr = a.qr();
    let q = qr.compute_thin_Q();
    let rr = qr.thin_R();
    for j in 0..y.ncols() {
        for i in 0..y.nrows() {
            y[(i, j)] = T::from_f64(q[(i, j)]);
        }
    }
    if let Some(mut r) = r {
        for j in 0..y.ncols() {
            for i in 0..y.ncols() {
                r[(i, j)] = if i <= j { T::from_f64(rr[(i, j)]) } else { T::zeroed() };
            }
        }
    }
    Ok(Orthonormalization)
}
