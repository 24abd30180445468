//! The driver of orthonormalization, for panels in memory and elsewhere.
//!
//! ```text
//!   CholeskyQR (cholesky.rs)                                        decides on l × l matrices on the host
//!     columns too long or too short to be squared:  Equilibrate,    then CholeskyQR again
//!     columns that depend on each other:            Reflect,        then one more pass
//! ```

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{MatMut, Par};

use super::cholesky::{self, Outcome};
use super::outcome::{Algorithm, Orthonormalization};
use super::shared::{check_size, identity, write_r};
use super::steps::{Step, Steps};
use crate::error::Result;
use crate::simd::Scalar;

/// Orthonormalizes an m × l panel that is known by its steps, as [`orthonormalize`](super::orthonormalize) does one in
/// memory.
///
/// # Errors
/// Those of [`orthonormalize`](super::orthonormalize), and the first error that a step returns.
pub fn orthonormalize_by<T: Scalar>(
    shape: (usize, usize),
    y: Steps<'_, T>,
    r: Option<MatMut<'_, T>>,
    par: Par,
) -> Result<Orthonormalization> {
    let mut buffer = MemBuffer::new(orthonormalize_by_scratch::<T>(shape.1));
    check_size("orthonormalize", shape, r.as_ref().map(|r| r.shape()))?;
    drive(shape.1, y, r, true, par, MemStack::new(&mut buffer))
}

/// Returns the scratch that the driver needs besides that of the steps.
fn orthonormalize_by_scratch<T: Scalar>(l: usize) -> StackReq {
    let reflected = temp_mat_scratch::<T>(l, l).and(temp_mat_scratch::<f64>(l, l));
    temp_mat_scratch::<f64>(l, l).and(StackReq::new::<i32>(l)).and(cholesky::decide_scratch::<T>(l).or(reflected))
}

/// Drives the steps for a panel of l columns. With `sketch`, the first factor may come from a sketch.
pub(super) fn drive<T: Scalar>(
    l: usize,
    y: Steps<'_, T>,
    r: Option<MatMut<'_, T>>,
    sketch: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    let (mut acc, stack) = identity(l, r.is_some(), stack);
    let mut acc = r.is_some().then(|| acc.as_mat_mut());
    let (mut exponents, stack) = stack.make_with(l, |_| 0_i32);

    let mut outcome = cholesky::iterate(y, l, acc.as_mut().map(|a| a.rb_mut()), sketch, par, stack)?;
    if let Outcome::Range = outcome {
        let nonzero = y(Step::Equilibrate { exponents: &mut exponents }, stack)?;
        outcome = if nonzero {
            cholesky::iterate(y, l, acc.as_mut().map(|a| a.rb_mut()), false, par, stack)?
        } else {
            Outcome::Breakdown(cholesky::SINGULAR)
        };
    }
    let report = match outcome {
        Outcome::Done(report) => report,
        Outcome::Range | Outcome::Breakdown(_) => {
            let algorithm = reflect(y, l, acc.as_mut().map(|a| a.rb_mut()), stack)?;
            // Reflections round by up to m eps where all errors have one sign, as for a panel of ones. One more pass,
            // on a panel that is orthonormal but for that, brings the error to the level of the others.
            cholesky::iterate(y, l, acc.as_mut().map(|a| a.rb_mut()), false, par, stack)?;
            let report = if let Outcome::Breakdown(report) = outcome { report } else { cholesky::SINGULAR };
            Orthonormalization { algorithm, ..report }
        }
    };
    if let (Some(r), Some(acc)) = (r, acc) {
        write_r(r, acc.rb(), Some(&exponents))?;
    }
    Ok(report)
}

/// Reflects the panel as it is: `Y <- Q`, `acc <- R acc`.
fn reflect<T: Scalar>(
    y: Steps<'_, T>,
    l: usize,
    acc: Option<MatMut<'_, f64>>,
    stack: &mut MemStack,
) -> Result<Algorithm> {
    let (mut r, stack) = temp_mat_zeroed::<T, _, _>(l, l, stack);
    let mut r = r.as_mat_mut();
    let mut algorithm = Algorithm::Householder;
    y(Step::Reflect { r: r.rb_mut(), algorithm: &mut algorithm }, stack)?;
    if let Some(acc) = acc {
        let (mut factor, _) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
        let mut factor = factor.as_mat_mut();
        for j in 0..l {
            for i in 0..=j {
                factor[(i, j)] = r[(i, j)].to_f64();
            }
        }
        cholesky::premultiply(acc, factor.rb());
    }
    Ok(algorithm)
}
