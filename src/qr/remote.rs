//! Orthonormalization of panels that live elsewhere: in device memory, or spread over machines.
//!
//! The iteration and all its decisions are those of [`cholesky`](super::cholesky), taken on l × l matrices on the host; the panel only forms
//! Gram matrices and divides by triangles. Panels that this cannot do are reflected where they are ([`Remote::reflect`]), or,
//! if their columns are too long or too short to be squared, brought to the host.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::prelude::*;
use faer::{Mat, MatMut, MatRef, Par};

use super::cholesky::{self, Outcome};
use super::{Algorithm, Orthonormalization, check_size, orthonormalize, orthonormalize_scratch, write_r};
use crate::error::Result;
use crate::simd::Scalar;

/// What CholeskyQR asks of a tall panel Y, wherever it is.
pub trait Tall<T: Scalar> {
    /// Rows and columns.
    fn shape(&self) -> (usize, usize);

    /// `Y <- Y L⁻ᵀ` if `divisor` is given (its lower triangle is L), then the lower triangle of `YᵀY`, formed in the panel's own arithmetic, into `gram`.
    ///
    /// # Errors
    /// What the backend reports.
    fn gram(&mut self, divisor: Option<MatRef<'_, T>>, gram: MatMut<'_, f64>, stack: &mut MemStack) -> Result<()>;

    /// The lower triangle of `YᵀY`, products and sums in f64.
    ///
    /// # Errors
    /// What the backend reports.
    fn wide_gram(&mut self, gram: MatMut<'_, f64>, stack: &mut MemStack) -> Result<()>;

    /// The lower triangle of the Gram matrix of a sketch of Y in f64; false, and `gram` as it was, if the panel is not sketched.
    ///
    /// # Errors
    /// What the backend reports.
    fn sketch_gram(&mut self, _gram: MatMut<'_, f64>, _stack: &mut MemStack) -> Result<bool> {
        Ok(false)
    }

    /// [`sketch_gram`](Self::sketch_gram) in the panel's own arithmetic where that is faster and not f64: enough up to a
    /// condition of some thousands.
    ///
    /// # Errors
    /// What the backend reports.
    fn narrow_sketch_gram(&mut self, _gram: MatMut<'_, f64>, _stack: &mut MemStack) -> Result<bool> {
        Ok(false)
    }

    /// The threads that work on the l × l matrices.
    fn par(&self) -> Par {
        Par::Seq
    }

    /// `Y <- Y L⁻ᵀ`, L the lower triangle of `divisor`.
    ///
    /// # Errors
    /// What the backend reports.
    fn divide(&mut self, divisor: MatRef<'_, T>) -> Result<()>;

    /// [`divide`](Self::divide), and `beside` once, on the host, at the same time if that is possible.
    ///
    /// # Errors
    /// What the backend reports.
    fn divide_beside(&mut self, divisor: MatRef<'_, T>, beside: &mut (dyn FnMut() + Send)) -> Result<()> {
        self.divide(divisor)?;
        beside();
        Ok(())
    }
}

/// What else is asked of a panel that is not in memory.
pub trait Remote<T: Scalar>: Tall<T> {
    /// `Y = Q R` by reflections: Q takes the place of Y, `r` is entirely overwritten and its diagonal not negative.
    ///
    /// # Errors
    /// What the backend reports.
    fn reflect(&mut self, r: MatMut<'_, T>) -> Result<Algorithm>;

    /// Applies `f` to a copy in memory, and takes that back.
    ///
    /// # Errors
    /// What the backend or `f` reports.
    fn on_host(&mut self, f: &mut dyn FnMut(MatMut<'_, T>) -> Result<Orthonormalization>)
    -> Result<Orthonormalization>;
}

/// [`orthonormalize`] for a panel that is not in memory.
///
/// # Errors
/// As [`orthonormalize`], and what the backend reports.
pub fn orthonormalize_remote<T: Scalar, Y: Remote<T>>(
    y: &mut Y,
    mut r: Option<MatMut<'_, T>>,
) -> Result<Orthonormalization> {
    let (m, l) = y.shape();
    check_size("orthonormalize", (m, l), r.as_ref().map(|r| r.shape()))?;
    let mut acc = r.is_some().then(|| Mat::<f64>::identity(l, l));
    let mut buffer = MemBuffer::new(cholesky::decide_scratch::<T>(l));
    let stack = MemStack::new(&mut buffer);
    let report = match cholesky::iterate(y, acc.as_mut().map(|a| a.as_mut()), true, stack)? {
        Outcome::Done(report) => report,
        Outcome::Range => {
            return y.on_host(&mut |host| {
                let mut buffer = MemBuffer::new(orthonormalize_scratch::<T>(m, l, Par::Seq));
                orthonormalize(host, r.as_mut().map(|r| r.rb_mut()), Par::Seq, MemStack::new(&mut buffer))
            });
        }
        Outcome::Breakdown(report) => {
            let mut factor = Mat::<T>::zeros(l, l);
            let algorithm = y.reflect(factor.as_mut())?;
            if let Some(acc) = &mut acc {
                let factor = Mat::from_fn(l, l, |i, j| factor[(i, j)].to_f64());
                cholesky::premultiply(acc.as_mut(), factor.as_ref());
            }
            // One more pass brings the reflections' rounding to the level of the others.
            cholesky::iterate(y, acc.as_mut().map(|a| a.as_mut()), false, stack)?;
            Orthonormalization { algorithm, ..report }
        }
    };
    if let (Some(r), Some(acc)) = (r, acc) {
        write_r(r, acc.as_ref(), None)?;
    }
    Ok(report)
}
