//! Rayleigh-Ritz: singular triplets from an orthonormal panel and its image.
//!
//! ```text
//!   right basis  V (n × l):  A V  = Q R,  R = Û Σ V̂ᵀ   ->   A ≈ (Q Û) Σ (V V̂)ᵀ  = A V Vᵀ
//!   left basis   P (m × l):  AᵀP = Q R,  R = Û Σ V̂ᵀ   ->   A ≈ (P V̂) Σ (Q Û)ᵀ  = P PᵀA
//! ```
//!
//! The panels stay where they are, uncombined; [`Triplets::bring_home`] forms only the columns that are kept. Going
//! through R and not through the Gram matrix of the image keeps U and V orthonormal to rounding, and small σ accurate.

use faer::{Accum, Mat, MatMut, Par};

use super::small::{self, SmallSvd};
use super::{Orthonormalization, Panel};
use crate::error::Result;
use crate::operator::LinearOperator;
use crate::simd::Scalar;

/// Orthonormal panel times small orthogonal matrix; without a panel, the small matrix itself.
pub(super) struct Vectors<T, P> {
    pub(super) panel: Option<P>,
    pub(super) coefficients: Mat<T>,
}

impl<T: Scalar, P: Panel<T>> Vectors<T, P> {
    /// The first `k` vectors as a panel.
    pub(super) fn form(&self, k: usize, dst: &mut P) -> Result<()> {
        let c = self.coefficients.as_ref().subcols(0, k);
        match &self.panel {
            Some(panel) => dst.multiply(Accum::Replace, panel, c, T::one()),
            None => dst.copy_from_host(c),
        }
    }

    fn bring_home(&self, k: usize, mut dst: MatMut<'_, T>) -> Result<()> {
        let c = self.coefficients.as_ref().subcols(0, k);
        match &self.panel {
            Some(panel) => panel.product_to_host(c, dst),
            None => {
                dst.copy_from(c);
                Ok(())
            }
        }
    }
}

/// All `l` singular triplets of the projected operator.
pub(super) struct Triplets<T: Scalar, O: LinearOperator<T>> {
    pub(super) left: Vectors<T, O::Left>,
    pub(super) s: Vec<T>,
    /// `‖image‖_F²` in f64: what the subspace captures of `‖A‖_F²`.
    pub(super) captured: f64,
    pub(super) right: Vectors<T, O::Right>,
}

impl<T: Scalar, O: LinearOperator<T>> Triplets<T, O> {
    /// From `image = A · basis`; no `basis` stands for the identity.
    pub(super) fn from_right(basis: Option<O::Right>, image: O::Left, par: Par) -> Result<(Self, Orthonormalization)> {
        let captured = image.norm_squared()?;
        let (SmallSvd { u, s, v }, image, how) = decompose(image, par)?;
        let left = Vectors { panel: Some(image), coefficients: u };
        Ok((Triplets { left, s, captured, right: Vectors { panel: basis, coefficients: v } }, how))
    }

    /// From `image = Aᵀ · basis`.
    pub(super) fn from_left(basis: O::Left, image: O::Right, par: Par) -> Result<(Self, Orthonormalization)> {
        let captured = image.norm_squared()?;
        let (SmallSvd { u, s, v }, image, how) = decompose(image, par)?;
        let right = Vectors { panel: Some(image), coefficients: u };
        Ok((Triplets { left: Vectors { panel: Some(basis), coefficients: v }, s, captured, right }, how))
    }

    /// The first `k` singular vectors into `u` (`m × k`) and `v` (`n × k`), of any layout.
    pub(super) fn bring_home(&self, k: usize, u: MatMut<'_, T>, v: MatMut<'_, T>) -> Result<()> {
        self.left.bring_home(k, u)?;
        self.right.bring_home(k, v)
    }
}

fn decompose<T: Scalar, P: Panel<T>>(mut image: P, par: Par) -> Result<(SmallSvd<T>, P, Orthonormalization)> {
    let l = image.ncols();
    let mut r = Mat::zeros(l, l);
    let how = image.orthonormalize(Some(r.as_mut()))?;
    Ok((small::svd(r.as_ref(), par)?, image, how))
}
