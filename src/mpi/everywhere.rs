//! An operator of the host that every rank has whole: the root of the moments of calibration.
//!
//! Its panels come whole, or are put together for the product; the result has rows where the operand had.

use faer::MatRef;

use super::panel::RankPanel;
use super::space::Ranks;
use crate::error::Result;
use crate::operator::{Facts, LinearOperator, Symmetric};
use crate::simd::Scalar;
use crate::sketch::AnySketch;
use crate::space::{Access, Host, Space};

/// A square operator that each rank holds whole.
pub(crate) struct Everywhere<'c, T: Scalar> {
    inner: Box<dyn LinearOperator<T, Space = Host>>,
    space: Ranks<'c>,
}

impl<'c, T: Scalar> Everywhere<'c, T> {
    /// Makes the operator, boxed.
    pub(crate) fn boxed(
        inner: Box<dyn LinearOperator<T, Space = Host>>,
        space: &Ranks<'c>,
    ) -> Box<dyn LinearOperator<T, Space = Ranks<'c>> + 'c> {
        Box::new(Everywhere { inner, space: space.clone() })
    }

    fn multiply(&mut self, adjoint: bool, x: &RankPanel<T>, y: &mut RankPanel<T>) -> Result<()> {
        let rows = x.is_rows();
        let x = self.space.whole(x)?;
        let whole = self.space.to_whole(y, false)?;
        if adjoint {
            self.inner.apply_adjoint(&x, whole)?
        } else {
            self.inner.apply(&x, whole)?
        }
        if rows {
            self.space.to_rows(y, true);
        }
        Ok(())
    }
}

impl<'c, T: Scalar> LinearOperator<T> for Everywhere<'c, T> {
    type Space = Ranks<'c>;

    fn space(&self) -> &Ranks<'c> {
        &self.space
    }

    fn facts(&self) -> Facts {
        self.inner.facts()
    }

    fn apply(&mut self, x: &RankPanel<T>, y: &mut RankPanel<T>) -> Result<()> {
        self.multiply(false, x, y)
    }

    fn apply_adjoint(&mut self, y: &RankPanel<T>, x: &mut RankPanel<T>) -> Result<()> {
        self.multiply(true, y, x)
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut RankPanel<T>) -> Result<()> {
        self.inner.sketch(omega, self.space.to_whole(y, false)?)
    }

    fn gram(&mut self) -> Result<Symmetric<T, Ranks<'c>>> {
        let gram = self.inner.gram()?;
        let n = gram.order();
        let mut g = self.space.panel(n, n, crate::space::Layout::Columns)?;
        self.space.visit(&mut g, Access::Write, &mut |mut g| g.copy_from(gram.panel().as_ref()))?;
        Symmetric::new(&self.space, g)
    }

    fn congruence(&mut self, s: &RankPanel<T>, g: &mut RankPanel<T>) -> Result<()> {
        let s = self.space.whole(s)?;
        self.inner.congruence(&s, self.space.to_whole(g, false)?)
    }

    fn materialize(&mut self, y: &mut RankPanel<T>) -> Result<()> {
        self.inner.materialize(self.space.to_whole(y, false)?)
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        self.inner.for_each_row_block(f)
    }
}
