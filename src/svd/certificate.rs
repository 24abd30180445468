//! Certifies the error of a factorization.
//!
//! The methods end with `U Σ Vᵀ`, the leading part of the operator projected on a subspace `P`. The two parts that are
//! missing are orthogonal, so with all norms in f64
//!
//! ```text
//!   ‖A − U_k Σ_k V_kᵀ‖²  =  ‖A‖² − ‖image‖²  +  Σ_{i>k} σ_i²          image = A P or AᵀP
//! ```
//!
//! (`‖A‖² − Σ_{i<=k} σ_i²` is the same number, but would add the rounding of the large σ from QR and a small SVD, some
//! 30 eps; the image's own is a few.) Once the difference is not well above eps of the arithmetic type, the subtraction
//! says nothing, and the residual is measured by fresh probes instead:
//!
//! ```text
//!   ‖R‖_F² = E ‖R g‖²,  g standard normal, independent of everything before       R g = A g − U (Σ (Vᵀ g))
//! ```
//!
//! with the standard deviation over the probes beside it. The probes are taken in f64 sums and cost one pass over A.
//!
//! Where they find next to nothing missing, `Σ_{i<=k} σ_i² = (1 − e²) ‖A‖²` says what the singular values must add up
//! to, in f64. A product of many equal terms rounds them all one way (σ_1 of 512² ones comes out 5e-6 too small in f32,
//! by any method that multiplies), so that they fall short of that sum. They are then [scaled](Certificate::scale) by
//! the difference, and the residual is that of the scaled ones.

use faer::linalg::matmul::matmul;
use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{Accum, Mat, MatRef, Par};

use super::stream;
use crate::error::Result;
use crate::operator::LinearOperator;
use crate::report::ErrorKind;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Sketch, SketchOperator};
use crate::space::{Access, Panel, Space};

pub(super) struct Certificate {
    pub(super) relative_error: f64,
    pub(super) kind: ErrorKind,
    /// The factor for the singular values; 1 unless their sum of squares is known to be off.
    pub(super) scale: f64,
}

impl Certificate {
    /// Makes the certificate of a zero matrix, which its factors reproduce.
    pub(super) fn of_zero() -> Self {
        Certificate { relative_error: 0.0, kind: ErrorKind::Exact, scale: 1.0 }
    }

    /// Returns the error and its standard deviation, which is 0 for an exact error.
    pub(super) fn error_and_deviation(&self) -> (f64, f64) {
        match self.kind {
            ErrorKind::Exact => (self.relative_error, 0.0),
            ErrorKind::Estimate { std_dev, .. } => (self.relative_error, std_dev),
        }
    }
}

/// How many columns the residual probe has.
pub(super) const PROBES: usize = 16;

/// The smallest relative difference, in eps of `‖A‖²`, for which the subtraction is trusted. The image carries a
/// relative error of a few eps (the orthonormality of the basis, one GEMM), so that at 2^8 eps the relative error of
/// the certificate is a few percent at worst.
pub(super) const FLOOR_IN_EPS: f64 = 256.0;

/// Computes `‖op − u diag(s) vᵀ‖_F / ‖op‖_F`, 0 for a zero operator: by subtraction where that is resolved, else by
/// probes drawn from `seed`, which cost a pass. `captured` is `‖image‖²`, and whether the factors are an orthogonal
/// projection of the operator: without that it is what takes its place in the subtraction, and the singular values have
/// no sum that is known. `dropped` has the singular values of the image beyond those in `s`, and `project` computes `vᵀ Ω`.
pub(super) fn certify<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    left: Left<'_, T, Panel<T, S>>,
    (s, dropped): (&[T], &[T]),
    project: impl FnOnce(&S, MatRef<'_, T>) -> Result<Mat<T>>,
    (captured, is_projection): (f64, bool),
    seed: u64,
) -> Result<Certificate> {
    let norm_squared = op.norm_squared();
    if norm_squared == 0.0 {
        return Ok(Certificate::of_zero());
    }
    let tail: f64 = dropped.iter().map(|&s| s.to_f64() * s.to_f64()).sum();
    let rest = (norm_squared - captured + tail) / norm_squared;
    if rest > FLOOR_IN_EPS * T::EPSILON {
        return Ok(Certificate { relative_error: rest.sqrt(), kind: ErrorKind::Exact, scale: 1.0 });
    }

    let omega = AnySketch::new(Sketch::Gaussian, op.ncols(), PROBES, seed, stream::PROBES)?;
    let mut y = op.left(PROBES)?;
    op.sketch(&omega, &mut y)?;
    let omega = omega.to_dense::<T>();
    let mut c = project(op.space(), omega.as_ref())?;
    for (i, s) in s.iter().enumerate() {
        c.row_mut(i).iter_mut().for_each(|x| *x *= *s);
    }
    let kept: f64 = s.iter().map(|&s| s.to_f64() * s.to_f64()).sum();
    let scale_of = |spread: &Spread| scale_to_norm::<T>(kept / norm_squared, spread.mean).filter(|_| is_projection);
    match left {
        Left::Home(u) => {
            let mut certificate = None;
            op.space().clone().visit(&mut y, Access::Read, &mut |mut residual| {
                let mut subtract = |share: T| {
                    matmul(residual.rb_mut(), Accum::Add, u, c.as_ref(), -share, Par::Seq);
                    Ok(Spread::of_columns(residual.rb(), norm_squared))
                };
                let found = subtract(T::one()).and_then(|spread| certificate_of(scale_of(&spread), spread, subtract));
                certificate = Some(found);
            })?;
            certificate.expect("a visit calls its function")
        }
        Left::Spread(panel, signs) => {
            for (i, &sign) in signs.iter().enumerate() {
                c.row_mut(i).iter_mut().for_each(|x| *x *= sign);
            }
            let space = op.space().clone();
            let mut subtract = |share: T| {
                space.multiply(&mut y, Accum::Add, panel, c.as_ref(), -share)?;
                let mut squares = Mat::zeros(PROBES, PROBES);
                space.gram(&y, squares.as_mut())?;
                Ok(Spread::of_squares((0..PROBES).map(|j| squares[(j, j)]).collect(), norm_squared))
            };
            let spread = subtract(T::one())?;
            certificate_of(scale_of(&spread), spread, subtract)
        }
    }
}

/// The long factor of a certificate.
pub(super) enum Left<'a, T, P> {
    /// All of its rows, on the host.
    Home(MatRef<'a, T>),
    /// A panel in the space, whose columns are to be multiplied by these signs.
    Spread(&'a P, &'a [T]),
}

/// Returns the certificate of factors whose residual has this spread; if their values are off by a known `scale`, the
/// residual is that of the scaled ones, from which `subtract` takes a share of the product.
fn certificate_of<T: Scalar>(
    scale: Option<f64>,
    spread: Spread,
    mut subtract: impl FnMut(T) -> Result<Spread>,
) -> Result<Certificate> {
    let Some(scale) = scale else { return Ok(spread.certificate()) };
    Ok(Certificate { scale, ..subtract(T::from_f64(scale - 1.0))?.certificate() })
}

/// Returns the factor from singular values that hold the share `kept` of `‖A‖²` to the share `1 − missing` that must be
/// there. The result is `None` where rounding alone explains the difference.
fn scale_to_norm<T: Scalar>(kept: f64, missing: f64) -> Option<f64> {
    /// The rounding of the sums of squares, in eps.
    const ROUNDING: f64 = 16.0;
    /// A multiple of what is missing, which the probes know to a third or so.
    const CERTAIN: f64 = 4.0;
    let off = (1.0 - missing) / kept - 1.0;
    (off.abs() > ROUNDING * T::EPSILON && off.abs() > CERTAIN * missing && off.abs() < 0.5).then(|| (1.0 + off).sqrt())
}

/// The probes of a residual: the mean of `‖R g‖² / ‖A‖²`, and the standard deviation of that mean.
pub(super) struct Spread {
    mean: f64,
    std_dev: f64,
}

impl Spread {
    /// Computes the spread from the columns of `R Ω`, with Ω a Gaussian sketch of as many columns.
    pub(super) fn of_columns<T: Scalar>(residual: MatRef<'_, T>, norm_squared: f64) -> Self {
        let squares = |j: usize| residual.col(j).iter().map(|&x| x.to_f64() * x.to_f64()).sum::<f64>();
        Self::of_squares((0..residual.ncols()).map(squares).collect(), norm_squared)
    }

    /// Computes the spread from a panel `R Ω`.
    pub(super) fn of_panel<T: Scalar, S: Space<T>>(
        space: &S,
        residual: &Panel<T, S>,
        norm_squared: f64,
    ) -> Result<Self> {
        let l = space.shape(residual).1;
        let mut g = Mat::<T>::zeros(l, l);
        space.inner(residual, residual, g.as_mut())?;
        Ok(Self::of_squares((0..l).map(|j| g[(j, j)].to_f64()).collect(), norm_squared))
    }

    fn of_squares(mut squares: Vec<f64>, norm_squared: f64) -> Self {
        let count = squares.len() as f64;
        // AnySketch is normalized to E ΩΩᵀ = I; a standard normal probe is √count times its column.
        squares.iter_mut().for_each(|x| *x *= count / norm_squared);
        let mean = squares.iter().sum::<f64>() / count;
        let variance = squares.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (count - 1.0);
        Spread { mean, std_dev: (variance / count).sqrt() }
    }

    /// Returns the value two standard deviations above the mean.
    pub(super) fn upper(&self) -> f64 {
        self.mean + 2.0 * self.std_dev
    }

    /// Returns the certificate with the mean as a relative error.
    pub(super) fn certificate(&self) -> Certificate {
        let relative_error = self.mean.sqrt();
        // The standard deviation of the root follows from d√x = dx / (2√x).
        let std_dev = if self.mean > 0.0 { self.std_dev / (2.0 * relative_error) } else { 0.0 };
        Certificate { relative_error, kind: ErrorKind::Estimate { probes: PROBES, std_dev }, scale: 1.0 }
    }
}
