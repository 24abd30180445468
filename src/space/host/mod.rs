//! Panels in host memory, and the kernels that the others are tested against.

mod memory;
mod panel;
mod product;

pub(crate) use memory::zeros;
pub use memory::{Host, Workspace};
pub use panel::HostPanel;
pub(crate) use panel::leading_dimension;
pub(crate) use product::{congruence, product, product_as_stored, product_as_stored_bytes, product_bytes};

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par, unzip, zip};

use super::{Access, Effort, Layout, Shared, Side, Space};
use crate::error::Result;
use crate::linalg::{mirror, symmetric_product, threads, wide_gram, wide_gram_scratch};
use crate::parallel;
use crate::qr::{self, Orthonormalization};
use crate::simd::Scalar;
use crate::sketch::{AnySketch, SketchOperator};

impl<T: Scalar> Space<T> for Host {
    type Panel = HostPanel<T>;

    fn panel(&self, nrows: usize, ncols: usize, layout: Layout) -> Result<HostPanel<T>> {
        Ok(match layout {
            Layout::Columns => HostPanel::zeros(nrows, ncols, self),
            Layout::Rows => HostPanel::by_rows(nrows, ncols, self),
        })
    }

    fn shape(&self, y: &HostPanel<T>) -> (usize, usize) {
        (y.nrows(), y.ncols())
    }

    fn visit(&self, y: &mut HostPanel<T>, _: Access, f: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()> {
        f(y.as_mut());
        Ok(())
    }

    fn download(&self, y: &HostPanel<T>, dst: MatMut<'_, T>) -> Result<()> {
        copy(y.as_ref(), dst, self.par());
        Ok(())
    }

    fn trim(&self) {
        self.free_scratch();
    }

    fn multiply(&self, y: &mut HostPanel<T>, accum: Accum, a: &HostPanel<T>, c: MatRef<'_, T>, alpha: T) -> Result<()> {
        let par = threads(y.nrows() * y.ncols() * a.ncols(), self.par());
        matmul(y.as_mut(), accum, a.as_ref(), c, alpha, par);
        Ok(())
    }

    fn multiply_in_place(&self, y: &mut HostPanel<T>, c: MatRef<'_, T>) -> Result<()> {
        y.multiply_in_place(c, self.par());
        Ok(())
    }

    fn multiply_to_host(&self, a: &HostPanel<T>, c: MatRef<'_, T>, dst: MatMut<'_, T>) -> Result<()> {
        product(Accum::Replace, a.as_ref(), c, dst, self);
        Ok(())
    }

    fn multiply_panels(&self, side: Side, a: &HostPanel<T>, b: &HostPanel<T>, y: &mut HostPanel<T>) -> Result<()> {
        match side {
            Side::Plain => product(Accum::Replace, a.as_ref(), b.as_ref(), y.as_mut(), self),
            Side::Adjoint => multiply_adjoint(a, b, y.as_mut(), self.par()),
        }
        Ok(())
    }

    fn inner(&self, a: &HostPanel<T>, b: &HostPanel<T>, c: MatMut<'_, T>) -> Result<()> {
        multiply_adjoint(a, b, c, self.par());
        Ok(())
    }

    fn gram(&self, y: &HostPanel<T>, c: MatMut<'_, f64>) -> Result<()> {
        self.with_scratch(HostPanel::<T>::gram_scratch(y.nrows(), y.ncols()), |stack| {
            let (mut work, _) = stack.make_with(wide_gram_scratch(y.nrows(), y.ncols()), |_| 0.0_f64);
            wide_gram(y.as_ref(), c, &mut work, self.par());
        });
        Ok(())
    }

    fn orthonormalize(
        &self,
        y: &mut HostPanel<T>,
        r: Option<MatMut<'_, T>>,
        effort: Effort,
    ) -> Result<Orthonormalization> {
        let (m, l) = (y.nrows(), y.ncols());
        let par = threads(m * l * l, self.par());
        match effort {
            Effort::Fast => {
                let req = HostPanel::<T>::orthonormalize_scratch(m, l, par);
                self.with_scratch(req, |stack| qr::orthonormalize(y.as_mut(), r, par, stack))
            }
            Effort::LittleMemory => {
                let req = HostPanel::<T>::orthonormalize_sparingly_scratch(m, l, r.is_some(), par);
                self.with_scratch(req, |stack| qr::orthonormalize_sparingly(y.as_mut(), r, par, stack))
            }
        }
    }

    fn symmetric_eigen(&self, _: MatRef<'_, f64>) -> Result<Option<(Vec<f64>, Mat<f64>)>> {
        Ok(None)
    }

    fn copy_columns(&self, y: &mut HostPanel<T>, first: usize, x: &HostPanel<T>) -> Result<()> {
        y.as_mut().subcols_mut(first, x.ncols()).copy_from(x.as_ref());
        Ok(())
    }

    fn axpy(&self, y: &mut HostPanel<T>, alpha: T, x: &HostPanel<T>) -> Result<()> {
        zip!(y.as_mut(), x.as_ref()).for_each(|unzip!(to, x)| *to += alpha * *x);
        Ok(())
    }

    fn dot(&self, x: &HostPanel<T>, y: &HostPanel<T>) -> Result<f64> {
        Ok(if std::ptr::eq(x, y) { x.norm_squared() } else { x.dot(y) })
    }

    fn trace(&self, y: &HostPanel<T>) -> Result<f64> {
        let a = y.as_ref();
        Ok((0..a.ncols()).map(|i| a[(i, i)].to_f64()).sum())
    }

    fn sketch(&self, g: &mut HostPanel<T>, shift: f64, omega: &AnySketch, y: &mut HostPanel<T>) -> Result<()> {
        if shift == 0.0 {
            return omega.apply(g.as_ref(), y.as_mut(), self.par());
        }
        let mut a = g.as_mut();
        let kept: Vec<T> = (0..a.ncols()).map(|j| a[(j, j)]).collect();
        kept.iter().enumerate().for_each(|(j, x)| a[(j, j)] = T::from_f64((*x).to_f64() - shift));
        let done = omega.apply(g.as_ref(), y.as_mut(), self.par());
        let mut a = g.as_mut();
        kept.into_iter().enumerate().for_each(|(j, x)| a[(j, j)] = x);
        done
    }

    fn shared(&self) -> Option<&dyn Shared<T, HostPanel<T>>> {
        None
    }
}

/// Computes `c <- aᵀ b`.
fn multiply_adjoint<T: Scalar>(a: &HostPanel<T>, b: &HostPanel<T>, mut c: MatMut<'_, T>, par: Par) {
    if std::ptr::eq(a, b) {
        symmetric_product(a.as_ref().transpose(), c.as_mut(), Accum::Replace, par);
        mirror(c);
    } else {
        let par = threads(a.nrows() * a.ncols() * b.ncols(), par);
        matmul(c, Accum::Replace, a.as_ref().transpose(), b.as_ref(), T::one(), par);
    }
}

/// Copies `dst <- src` in blocks of rows. Fresh memory is slower to touch than to copy, and each thread touches its
/// own.
pub(crate) fn copy<T: Scalar>(src: MatRef<'_, T>, mut dst: MatMut<'_, T>, par: Par) {
    const ELEMENTS: usize = 1 << 16;
    let (m, n) = src.shape();
    if matches!(par, Par::Seq) || m * n <= 2 * ELEMENTS {
        return dst.copy_from(src);
    }
    parallel::for_each_of(par, parallel::row_blocks(dst, (ELEMENTS / n).max(1)), |(first, mut block)| {
        block.copy_from(src.subrows(first, block.nrows()));
    });
}
