//! The space of panels in device memory: cuBLAS, cuSOLVER and the kernels of `norms.cu` and `whiten.cu`.

use std::sync::Arc;

use faer::{Accum, Mat, MatMut, MatRef};

use super::blas::gemm;
use super::panel::DevicePanel;
use super::sketch::Prepared;
use super::tile::{Lines, Tile};
use super::{Device, solver};
use crate::error::{Error, Result};
use crate::qr::{self, Orthonormalization};
use crate::simd::Scalar;
use crate::sketch::AnySketch;
use crate::space::{Access, Effort, Layout, Shared, Side, Space};

/// Rows from which on the device has eigenvectors sooner than a thread of the host.
const EIGEN_ROWS: usize = 128;

impl<T: Scalar> Space<T> for Arc<Device> {
    type Panel = DevicePanel<T>;

    fn panel(&self, nrows: usize, ncols: usize, _: Layout) -> Result<DevicePanel<T>> {
        DevicePanel::zeros(self, nrows, ncols)
    }

    fn shape(&self, y: &DevicePanel<T>) -> (usize, usize) {
        (y.nrows(), y.ncols())
    }

    fn visit(&self, y: &mut DevicePanel<T>, access: Access, f: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()> {
        let mut host = Mat::zeros(y.nrows(), y.ncols());
        if access == Access::Read {
            y.copy_to_host(host.as_mut())?;
            f(host.as_mut());
            return Ok(());
        }
        f(host.as_mut());
        y.copy_from_host(host.as_ref())
    }

    fn download(&self, y: &DevicePanel<T>, dst: MatMut<'_, T>) -> Result<()> {
        y.copy_to_host(dst)
    }

    /// Does nothing: scratch is a buffer of each call, and the driver's pool keeps it.
    fn trim(&self) {}

    fn multiply(
        &self,
        y: &mut DevicePanel<T>,
        accum: Accum,
        a: &DevicePanel<T>,
        c: MatRef<'_, T>,
        alpha: T,
    ) -> Result<()> {
        let c = DevicePanel::from_host(self, c)?;
        let beta = if accum == Accum::Add { T::one() } else { T::zeroed() };
        let shape = (y.nrows(), y.ncols(), a.ncols());
        gemm(self, shape, alpha, a.operand(0), c.operand(0), beta, y.operand(0))
    }

    fn multiply_in_place(&self, y: &mut DevicePanel<T>, c: MatRef<'_, T>) -> Result<()> {
        let mut product = DevicePanel::zeros(self, y.nrows(), c.ncols())?;
        self.multiply(&mut product, Accum::Replace, y, c, T::one())?;
        *y = product;
        Ok(())
    }

    fn multiply_to_host(&self, a: &DevicePanel<T>, c: MatRef<'_, T>, dst: MatMut<'_, T>) -> Result<()> {
        let mut product = DevicePanel::zeros(self, a.nrows(), c.ncols())?;
        self.multiply(&mut product, Accum::Replace, a, c, T::one())?;
        product.copy_to_host(dst)
    }

    fn multiply_panels(
        &self,
        side: Side,
        a: &DevicePanel<T>,
        b: &DevicePanel<T>,
        y: &mut DevicePanel<T>,
    ) -> Result<()> {
        let (a_op, terms) = match side {
            Side::Plain => (a.operand(0), a.ncols()),
            Side::Adjoint if std::ptr::eq(a, b) => {
                y.gram_of(a.operand(0), a.nrows(), T::zeroed())?;
                return y.mirror();
            }
            Side::Adjoint => (a.operand(0).t(), a.nrows()),
        };
        let shape = (y.nrows(), y.ncols(), terms);
        gemm(self, shape, T::one(), a_op, b.operand(0), T::zeroed(), y.operand(0))
    }

    fn inner(&self, a: &DevicePanel<T>, b: &DevicePanel<T>, c: MatMut<'_, T>) -> Result<()> {
        let mut product = DevicePanel::zeros(self, a.ncols(), b.ncols())?;
        self.multiply_panels(Side::Adjoint, a, b, &mut product)?;
        product.copy_to_host(c)
    }

    fn gram(&self, y: &DevicePanel<T>, c: MatMut<'_, f64>) -> Result<()> {
        y.gram_in_f64(c)
    }

    fn orthonormalize(
        &self,
        y: &mut DevicePanel<T>,
        r: Option<MatMut<'_, T>>,
        _: Effort,
    ) -> Result<Orthonormalization> {
        let shape = (y.nrows(), y.ncols());
        qr::orthonormalize_by(shape, &mut |step, _| y.step(step), r, crate::parallel::current_par())
    }

    fn symmetric_eigen(&self, g: MatRef<'_, f64>) -> Result<Option<(Vec<f64>, Mat<f64>)>> {
        if g.nrows() < EIGEN_ROWS {
            return Ok(None);
        }
        let mut vectors = DevicePanel::from_host(self, g)?;
        let values = match solver::syevd(&mut vectors) {
            Err(Error::NoConvergence { .. }) => return Ok(None),
            values => values?,
        };
        let mut host = Mat::zeros(g.nrows(), g.nrows());
        vectors.copy_to_host(host.as_mut())?;
        Ok(Some((values, host)))
    }

    fn copy_columns(&self, y: &mut DevicePanel<T>, first: usize, x: &DevicePanel<T>) -> Result<()> {
        y.copy_columns_of(x, first)
    }

    fn axpy(&self, y: &mut DevicePanel<T>, alpha: T, x: &DevicePanel<T>) -> Result<()> {
        y.add(alpha, x)
    }

    fn dot(&self, x: &DevicePanel<T>, y: &DevicePanel<T>) -> Result<f64> {
        if std::ptr::eq(x, y) { x.norm_squared() } else { x.dot(y) }
    }

    fn trace(&self, y: &DevicePanel<T>) -> Result<f64> {
        y.trace()
    }

    fn sketch(&self, g: &mut DevicePanel<T>, shift: f64, omega: &AnySketch, y: &mut DevicePanel<T>) -> Result<()> {
        let prepared = Prepared::new(self, omega)?;
        let n = g.ncols();
        // The columns are the rows of a symmetric matrix.
        let mut apply = |g: &DevicePanel<T>| {
            let tile = Tile { at: g.address(0), dtype: T::DTYPE, ld: g.ld(), lines: Lines::Rows };
            prepared.apply(tile, (0, n), y)
        };
        if shift == 0.0 { apply(g) } else { g.while_shifted(T::from_f64(-shift), apply) }
    }

    fn shared(&self) -> Option<&dyn Shared<T, DevicePanel<T>>> {
        None
    }
}
