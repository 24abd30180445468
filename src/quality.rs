//! How well factors serve the data they will see: the outputs `y = x Wᵀ` against `y' = x W'ᵀ`.
//!
//! ```text
//!   cosine          ⟨Y, Y'⟩ / (‖Y‖ ‖Y'‖)        over all samples and outputs
//!   relative error  ‖Y − Y'‖_F / ‖Y‖_F
//!   score           (cosine + 1) / 2
//! ```
//!
//! Samples go through in blocks; `W' = U diag(s) Vᵀ` is never formed, `W` never copied, and all sums are in f64.

use faer::Mat;

use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::operator::{Dense, HostPanel, LinearOperator};
use crate::simd::Scalar;
use crate::simd::convert::convert;
use crate::tensor::{TensorRef, with_view};

/// Agreement of the outputs of a layer before and after.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// Cosine between all outputs before and all outputs after; 1 if both are zero.
    pub cosine: f64,
    /// `‖Y − Y'‖_F / ‖Y‖_F`; 0 if both are zero.
    pub relative_error: f64,
}

impl Activation {
    /// `(cosine + 1) / 2`, from 0 to 1.
    pub fn score(&self) -> f64 {
        (self.cosine + 1.0) / 2.0
    }
}

/// Samples per block: outputs of a 11008-wide layer in f32 take 11 MiB.
const BLOCK: usize = 256;

/// Compares `x Wᵀ` with `x W'ᵀ`; rows of `x` are samples.
///
/// # Errors
/// [`Error::Shape`] unless `w` is the shape that `f` was made from and `x` has as many columns;
/// [`Error::NotFinite`] for NaN or infinities in either.
pub fn activation<T: Scalar>(w: &TensorRef<'_>, f: &Factors<T>, x: &TensorRef<'_>) -> Result<Activation> {
    let (w, x) = (w.view()?, x.view()?);
    let (m, n, k) = (f.u().nrows(), f.vt().ncols(), f.rank());
    let op = "quality::activation";
    if (w.nrows(), w.ncols()) != (m, n) {
        return Err(Error::shape(op, format_args!("the {m}×{n} weight"), format_args!("{}×{}", w.nrows(), w.ncols())));
    }
    if x.ncols() != n {
        return Err(Error::shape(op, format_args!("samples of {n} features"), x.ncols()));
    }
    let par = crate::current_par();
    // Both are checked as matrices are, and both products carry the powers of two that keep them in range.
    let sample_scale = Dense::<T>::new(x, par)?.scale();
    let mut weight = Dense::<T>::new(w, par)?;

    let (mut before_sq, mut after_sq, mut dot, mut diff_sq) = (0.0, 0.0, 0.0, 0.0);
    for first in (0..x.nrows()).step_by(BLOCK) {
        let rows = BLOCK.min(x.nrows() - first);
        // Samples as columns, so that W X is a product with a right panel.
        let mut samples: HostPanel<T> = weight.right(rows)?;
        with_view!(x, a => {
            let mut line = Vec::with_capacity(n);
            for i in 0..rows {
                line.clear();
                line.extend(a.row(first + i).iter().copied());
                let mut column = samples.as_mut();
                let column = column.as_mut().col_mut(i).try_as_col_major_mut().expect("panels are column-major");
                convert(&line, column.as_slice_mut(), sample_scale);
            }
        });
        let mut before = weight.left(rows)?;
        weight.apply(&samples, &mut before)?;
        let mut c = Mat::zeros(rows, k);
        let mut after = Mat::zeros(m, rows);
        f.apply_into(samples.as_ref().transpose(), weight.scale(), c.as_mut(), after.as_mut().transpose_mut(), par);
        for j in 0..rows {
            for (&y, &z) in before.as_ref().col(j).iter().zip(after.col(j).iter()) {
                let (y, z) = (y.to_f64(), z.to_f64());
                before_sq += y * y;
                after_sq += z * z;
                dot += y * z;
                diff_sq += (y - z) * (y - z);
            }
        }
    }
    let ratio = |x: f64, y: f64| if y > 0.0 { x / y } else { x };
    let both_zero = before_sq == 0.0 && after_sq == 0.0;
    Ok(Activation {
        cosine: if both_zero { 1.0 } else { ratio(dot, (before_sq * after_sq).sqrt()) },
        relative_error: ratio(diff_sq, before_sq).sqrt(),
    })
}
