//! Factors that several matrices share: one `Vᵀ` for matrices of the same inputs, one `U` for those of the same outputs.
//!
//! ```text
//!   [ W_1 ]   [ U_1 ]
//!   [ W_2 ] ≈ [ U_2 ] diag(s) Vᵀ          W_i ≈ (U_i diag(s)) Vᵀ          Along::Rows
//!
//!   [ W_1  W_2 ] ≈ U diag(s) [ V_1ᵀ  V_2ᵀ ]    W_i ≈ U (diag(s) V_iᵀ)     Along::Columns
//! ```
//!
//! The stack is never formed: it is a source of rows (`operator/stack.rs`), so that the limits, methods and certificates
//! are those of any matrix that is read in blocks. The error is that of all matrices together.

use super::TruncatedSvd;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::operator::{Along, RowSource, Stack, Watch};
use crate::report::Report;
use crate::simd::Scalar;
use crate::tensor::{Matrix, TensorRef};

/// The factors of several matrices, of which they share one.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared<T> {
    /// The factor that all matrices share: `Vᵀ`, `k × n`, or `U`, `m × k`; orthonormal.
    pub shared: Matrix<T>,
    /// The factor of each matrix: `U_i diag(s)`, `m_i × k`, or `diag(s) V_iᵀ`, `k × n_i`. A matrix is its own factor
    /// times the shared one, or the other way round.
    pub own: Vec<Matrix<T>>,
    /// The singular values of the stack.
    pub s: Vec<T>,
    /// The report on the stack.
    pub report: Report,
}

impl TruncatedSvd {
    /// Factors several matrices at once so that they share one factor: of matrices one above the other
    /// ([`Along::Rows`]) `Vᵀ`, of matrices side by side `U`. Neither is copied into a whole. The rank, the rules for it
    /// and the error are those of the stack; a calibration is that of its inputs.
    ///
    /// ```
    /// use tensorslim::operator::Along;
    /// use tensorslim::{Rank, TensorRef, TruncatedSvd};
    ///
    /// let weights: Vec<f32> = (0..3 * 64 * 48).map(|i| (i as f32 * 0.37).sin()).collect();
    /// let qkv = weights.chunks(64 * 48).map(|w| TensorRef::new(w, &[64, 48])).collect::<Result<Vec<_>, _>>()?;
    /// let f = TruncatedSvd::new(Rank::Fixed(2)).factor_shared::<f32>(&qkv, Along::Rows)?;
    /// assert_eq!((f.shared.nrows(), f.own.len(), f.own[1].nrows()), (2, 3, 64));
    /// assert!(f.report.relative_error < 1e-3);
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Stack::new`] and of [`factor_rows`](Self::factor_rows); [`Error::Shape`] for a tensor that is no
    /// matrix.
    pub fn factor_shared<T: Scalar>(&self, matrices: &[TensorRef<'_>], along: Along) -> Result<Shared<T>> {
        if let Some(w) = matrices.iter().find(|w| w.shape().len() != 2) {
            let got = format_args!("{:?}", w.shape());
            return Err(Error::shape("factor_shared", "matrices, of two axes", got));
        }
        let lengths: Vec<usize> =
            matrices.iter().map(|w| if along == Along::Rows { w.shape()[0] } else { w.shape()[1] }).collect();
        let mut stack = Stack::new(matrices.to_vec(), along)?;
        debug_assert_eq!(
            lengths.iter().sum::<usize>(),
            if along == Along::Rows { stack.shape().0 } else { stack.shape().1 }
        );
        let factors = self.factor_rows::<T>(&mut stack, &Watch::default())?;
        shared(factors, &lengths, along)
    }
}

/// Cuts the factors of a stack into those of matrices of these lengths.
fn shared<T: Scalar>(factors: Factors<T>, lengths: &[usize], along: Along) -> Result<Shared<T>> {
    let (mut u, s, mut vt, report) = factors.into_parts();
    let (k, n) = (s.len(), vt.ncols());
    let mut own = Vec::with_capacity(lengths.len());
    let mut first = 0;
    match along {
        Along::Rows => {
            for row in u.as_mut_slice().chunks_exact_mut(k) {
                row.iter_mut().zip(&s).for_each(|(x, &s)| *x *= s);
            }
            for &length in lengths {
                own.push(Matrix::from_vec(u.as_slice()[first * k..(first + length) * k].to_vec(), length, k)?);
                first += length;
            }
            Ok(Shared { shared: vt, own, s, report })
        }
        Along::Columns => {
            for (row, &s) in vt.as_mut_slice().chunks_exact_mut(n).zip(&s) {
                row.iter_mut().for_each(|x| *x *= s);
            }
            for &length in lengths {
                own.push(Matrix::from_fn(k, length, |i, j| vt.row(i)[first + j]));
                first += length;
            }
            Ok(Shared { shared: u, own, s, report })
        }
    }
}
