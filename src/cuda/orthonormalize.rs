//! The steps of orthonormalization for a panel on the device.

use faer::{Mat, MatMut, MatRef};

use super::blas::divide;
use super::convert::convert;
use super::panel::{DevicePanel, statistics_of_columns, write_lower};
use super::solver;
use crate::error::Result;
use crate::operator::first_not_finite;
use crate::qr::{self, Algorithm, GramOf, Step};
use crate::simd::Scalar;

impl<T: Scalar> DevicePanel<T> {
    /// Does a step that the driver of orthonormalization asks for.
    pub(super) fn step(&mut self, step: Step<'_, T>) -> Result<bool> {
        match step {
            Step::Gram { of: GramOf::Sketch | GramOf::NarrowSketch, .. } => return Ok(false),
            Step::Gram { of: GramOf::WidePanel, gram, .. } => self.gram_in_f64(gram)?,
            Step::Gram { divisor, of: GramOf::Panel, gram } => {
                if let Some(divisor) = divisor {
                    self.divide(divisor)?;
                }
                let l = self.ncols();
                let mut product = DevicePanel::<T>::zeros(self.device(), l, l)?;
                product.gram_of(self.operand(0), self.nrows(), T::zeroed())?;
                let mut host = Mat::<T>::zeros(l, l);
                product.copy_to_host(host.as_mut())?;
                write_lower(host.as_ref(), gram);
            }
            Step::Divide { divisor, beside } => {
                self.divide(divisor)?;
                beside();
            }
            Step::Equilibrate { exponents } => return self.equilibrate(exponents),
            Step::Reflect { r, algorithm } => {
                self.reflect(r)?;
                *algorithm = Algorithm::Householder;
            }
        }
        Ok(true)
    }

    /// Computes `self <- self L⁻ᵀ`.
    fn divide(&mut self, divisor: MatRef<'_, T>) -> Result<()> {
        let device = self.device().clone();
        let divisor = DevicePanel::from_host(&device, divisor)?;
        divide::<T>(&device, (self.nrows(), self.ncols()), divisor.operand(0), self.operand(0))
    }

    /// Scales columns by powers of two to a largest entry between 1 and 2.
    fn equilibrate(&mut self, exponents: &mut [i32]) -> Result<bool> {
        let columns = statistics_of_columns(self)?;
        if columns.iter().any(|column| !column.finite) {
            let mut host = Mat::<T>::zeros(self.nrows(), self.ncols());
            self.copy_to_host(host.as_mut())?;
            return Err(first_not_finite(T::view(host.as_ref())));
        }
        let mut full = true;
        for (e, column) in exponents.iter_mut().zip(&columns) {
            match column.largest {
                0.0 => full = false,
                largest => *e = qr::exponent(largest),
            }
        }
        // One power of two is not enough for a subnormal number, because `2^149` is no f32: the factor comes in two
        // parts.
        let part = |of: fn(i32) -> i32| exponents.iter().map(|&e| T::from_f64(2f64.powi(-of(e)))).collect::<Vec<_>>();
        self.scale(None, Some(&part(|e| e / 2)))?;
        self.scale(None, Some(&part(|e| e - e / 2)))?;
        Ok(full)
    }

    /// Factors by Householder's QR: Q in place of the panel, R with a diagonal that is not negative.
    fn reflect(&mut self, mut r: MatMut<'_, T>) -> Result<()> {
        let l = self.ncols();
        let tau = solver::geqrf(self)?;
        let mut top = Mat::zeros(l, l);
        let copy = DevicePanel::<T>::zeros(self.device(), l, l)?;
        convert(self.device(), self.tile(0), copy.tile(0), (l, l), 1.0)?;
        copy.copy_to_host(top.as_mut())?;
        solver::orgqr(self, &tau)?;
        let signs: Vec<T> = (0..l).map(|i| if top[(i, i)].to_f64() < 0.0 { -T::one() } else { T::one() }).collect();
        for j in 0..l {
            for i in 0..l {
                r[(i, j)] = if i <= j { signs[i] * top[(i, j)] } else { T::zeroed() };
            }
        }
        self.scale(None, Some(&signs))
    }
}
