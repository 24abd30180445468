//! Low-rank factors beside a quantized weight: `W ≈ Q + U diag(s) Vᵀ` (LoftQ, QERA, SVDQuant).
//!
//! ```text
//!   Q_1 = quantize(W)                       L_1 = the best of rank k for W − Q_1
//!   Q_t = quantize(W − L_{t-1})             L_t = the best of rank k for W − Q_t          until the error rises
//! ```
//!
//! One round is QERA's: under a calibration L_1 is the closed form of its objective. More rounds are LoftQ's, which lower
//! the plain error as a rule and the output error sometimes; the best one is kept, so that they never harm.
//!
//! **Cost.** A factorization, a pass of the quantizer and a residual for each round. Memory: two matrices in T beside
//! the factorization of `W − Q`, which is a third. As a source of rows it would be subtracted anew in each pass, which
//! takes twice the time of the factorization (`benches/operands.rs`). A warm start from the last round's basis does not pay: what changes
//! between rounds is the noise of the quantizer, which is most of `W − Q`. Sources: LoftQ (arXiv 2310.08659), QERA
//! (arXiv 2410.06040).

use super::TruncatedSvd;
use crate::error::{Error, Result};
use crate::factors::{Factors, Samples};
use crate::report::Report;
use crate::simd::Scalar;
use crate::tensor::{Matrix, TensorRef};

/// A quantized weight with the factors of what it lost.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Quantized<T> {
    /// The quantized weight, as the caller's quantizer left it, `m × n`.
    pub base: Matrix<T>,
    /// The factors of `W − base`, with their certificate.
    pub factors: Factors<T>,
    /// The error of each round, `‖W − Q − U diag(s) Vᵀ‖_F` in the norm that the factors are best for. The last one is
    /// above the one before if the rounds ended for that reason; what is returned is the round of the smallest.
    pub errors: Vec<f64>,
}

impl TruncatedSvd {
    /// Quantizes a weight with the caller's quantizer, and factors what that loses, in at most `rounds` rounds of which
    /// the best is kept. `quantize` gets an `m × n` matrix and replaces it by the nearest one that can be stored.
    ///
    /// ```
    /// use tensorslim::{Matrix, Rank, TensorRef, TruncatedSvd};
    ///
    /// let weights: Vec<f32> = (0..96 * 64).map(|i| (i as f32 * 0.37).sin() + (i as f32 * 7.1).cos()).collect();
    /// let w = TensorRef::new(&weights, &[96, 64])?;
    /// let mut round = |a: &mut Matrix<f32>| {
    ///     a.as_mut_slice().iter_mut().for_each(|x| *x = (4.0 * *x).round() / 4.0);
    ///     Ok(())
    /// };
    /// let q = TruncatedSvd::new(Rank::Fixed(8)).factor_quantized::<f32>(&w, 3, &mut round)?;
    /// assert!(q.errors.len() > 1 && q.errors[1] < q.errors[0]);
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Option`] for no rounds, [`Error::Shape`] for a tensor that is no matrix, those of the quantizer, and those
    /// of [`factor`](Self::factor).
    pub fn factor_quantized<T: Scalar>(
        &self,
        w: &TensorRef<'_>,
        rounds: usize,
        quantize: &mut dyn FnMut(&mut Matrix<T>) -> Result<()>,
    ) -> Result<Quantized<T>> {
        let (view, mut errors) = (w.view()?, Vec::new());
        let shape = (view.nrows(), view.ncols());
        let mut best: Option<(Matrix<T>, Factors<T>)> = None;
        for _ in 0..rounds {
            let mut base = match &best {
                None => Samples::new("factor_quantized", w, shape.1)?.into_matrix(),
                Some((_, factors)) => factors.residual::<T>(w)?,
            };
            quantize(&mut base)?;
            let found = (base.nrows(), base.ncols());
            if found != shape {
                let want = format_args!("a quantized matrix of {}×{}", shape.0, shape.1);
                return Err(Error::shape("factor_quantized", want, format_args!("{}×{}", found.0, found.1)));
            }
            let factors = self.factor::<T>(lost(w, &base)?.as_tensor()?)?;
            let (error, before) = (error(factors.report()), errors.last().copied());
            errors.push(error);
            if before.is_some_and(|before| error >= before) {
                break;
            }
            best = Some((base, factors));
        }
        let Some((base, factors)) = best else {
            return Err(Error::option("rounds", rounds, "1 or more"));
        };
        Ok(Quantized { base, factors, errors })
    }
}

/// Computes `W − Q`, rounded once.
fn lost<T: Scalar>(w: &TensorRef<'_>, base: &Matrix<T>) -> Result<Matrix<T>> {
    let mut rest = Samples::<T>::new("factor_quantized", w, base.ncols())?.into_matrix();
    rest.as_mut_slice().iter_mut().zip(base.as_slice()).for_each(|(x, &q)| *x -= q);
    Ok(rest)
}

/// Returns the error in the norm that the factors are best for.
fn error(report: &Report) -> f64 {
    match &report.activation {
        Some(outputs) => outputs.relative_error * outputs.norm,
        None => report.relative_error * report.norm,
    }
}
