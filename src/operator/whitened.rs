//! Products of operators: a weight seen through the inputs it will meet.
//!
//! With `L Lᵀ` the second moments of the inputs, the matrix to factor is `A = W L`, or `Aᵀ = Lᵀ Wᵀ` where W is wide (operators
//! are tall). Both are a [`Product`] of two operators that share the panel between them; [`Root`] is L or Lᵀ on host panels.
//!
//! ```text
//!   tall   A  = W  · L     apply  W (L X)       adjoint  Lᵀ (Wᵀ Y)      panels: W's left, W's right
//!   wide   Aᵀ = Lᵀ · Wᵀ    apply  Lᵀ (Wᵀ X)     adjoint  W (L Y)        panels: n rows,   m rows
//!
//!   Gram   tall   Lᵀ (WᵀW) L      from W's own Gram matrix: one pass over W, then two triangular products of n³ flops
//!          wide   (LᵀWᵀ)ᵀ(LᵀWᵀ)   one triangular product of m n² flops and a SYRK of m² n
//! ```
//!
//! `‖A‖_F²` is the trace of that Gram matrix, which is therefore formed at construction and kept for the first
//! [`gram`](LinearOperator::gram). (Nothing cheaper is exact: `tr(W G Wᵀ)` needs WᵀW or W G.) Another backend brings its own operator for
//! L and [`FromPanel`] for its Gram matrices; the product is the same.

use std::sync::Arc;

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef};

use super::host::{HostContext, HostPanel, symmetric_product};
use super::product::mirror;
use super::{Dense, LinearOperator, Panel};
use crate::error::Result;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, SketchOperator};
use crate::tensor::Element;

/// A symmetric operator held as a panel of as many columns as rows, where panels live.
pub trait FromPanel<T: Scalar, P: Panel<T>>: LinearOperator<T, Left = P, Right = P> + Sized {
    /// The operator `x -> g x`.
    ///
    /// # Errors
    /// What the backend reports.
    fn from_panel(g: P) -> Result<Self>;
}

/// Which way to the Gram matrix of a product is the short one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GramBy {
    /// `Bᵀ (AᵀA) B`, for tall A and square B.
    First,
    /// `(A B)ᵀ (A B)`, for square A.
    Image,
}

/// `A · B`, for operators that share the panel between them.
pub struct Product<T: Scalar, A: LinearOperator<T>, B: LinearOperator<T, Left = A::Right>> {
    first: A,
    second: B,
    by: GramBy,
    between: Option<A::Right>,
    gram: Option<B::Gram>,
    norm_squared: f64,
}

impl<T: Scalar, A: LinearOperator<T>, B: LinearOperator<T, Left = A::Right>> Product<T, A, B>
where
    B::Gram: FromPanel<T, B::Right>,
{
    /// `first · second`. Forms the Gram matrix, for the norm.
    ///
    /// # Errors
    /// What the operators report.
    pub fn new(first: A, second: B, by: GramBy) -> Result<Self> {
        debug_assert_eq!(first.ncols(), second.nrows());
        let mut product = Product { first, second, by, between: None, gram: None, norm_squared: 0.0 };
        let (g, host) = product.form_gram()?;
        product.norm_squared = (0..host.nrows()).map(|i| Element::to_f64(host[(i, i)])).sum();
        drop(host);
        product.gram = Some(B::Gram::from_panel(g)?);
        Ok(product)
    }

    /// The two operators.
    pub fn parts_mut(&mut self) -> (&mut A, &mut B) {
        (&mut self.first, &mut self.second)
    }

    /// The two operators.
    pub fn into_parts(self) -> (A, B) {
        (self.first, self.second)
    }

    /// The Gram matrix, where panels live and on the host.
    fn form_gram(&mut self) -> Result<(B::Right, Mat<T>)> {
        let b = self.second.ncols();
        let mut g = self.second.right(b)?;
        let mut host = Mat::zeros(b, b);
        match self.by {
            GramBy::First => {
                let mut inner = self.second.left(b)?;
                self.first.gram()?.materialize(&mut inner)?;
                // E = Bᵀ (AᵀA), then Bᵀ Eᵀ: the triangular operator twice, no full product.
                self.second.apply_adjoint(&inner, &mut g)?;
                g.copy_to_host(host.as_mut())?;
                transpose_in_place(host.as_mut());
                inner.copy_from_host(host.as_ref())?;
                self.second.apply_adjoint(&inner, &mut g)?;
                g.copy_to_host(host.as_mut())?;
            }
            GramBy::Image => {
                let mut image = self.first.left(b)?;
                {
                    let mut second = self.second.left(b)?;
                    self.second.materialize(&mut second)?;
                    self.first.apply(&second, &mut image)?;
                }
                image.inner(&image, host.as_mut())?;
                g.copy_from_host(host.as_ref())?;
            }
        }
        Ok((g, host))
    }

    /// The panel between, with `l` columns.
    fn between(&mut self, l: usize) -> Result<A::Right> {
        match self.between.take() {
            Some(panel) if panel.ncols() == l => Ok(panel),
            _ => self.first.right(l),
        }
    }
}

impl<T: Scalar, A: LinearOperator<T>, B: LinearOperator<T, Left = A::Right>> LinearOperator<T> for Product<T, A, B>
where
    B::Gram: FromPanel<T, B::Right>,
{
    type Left = A::Left;
    type Right = B::Right;
    type Gram = B::Gram;

    fn nrows(&self) -> usize {
        self.first.nrows()
    }

    fn ncols(&self) -> usize {
        self.second.ncols()
    }

    fn norm_squared(&self) -> f64 {
        self.norm_squared
    }

    fn left(&self, l: usize) -> Result<A::Left> {
        self.first.left(l)
    }

    fn image(&self, l: usize) -> Result<A::Left> {
        self.first.image(l)
    }

    fn right(&self, l: usize) -> Result<B::Right> {
        self.second.right(l)
    }

    fn apply(&mut self, x: &B::Right, y: &mut A::Left) -> Result<()> {
        let mut between = self.between(x.ncols())?;
        self.second.apply(x, &mut between)?;
        self.first.apply(&between, y)?;
        self.between = Some(between);
        Ok(())
    }

    fn apply_adjoint(&mut self, y: &A::Left, x: &mut B::Right) -> Result<()> {
        let mut between = self.between(y.ncols())?;
        self.first.apply_adjoint(y, &mut between)?;
        self.second.apply_adjoint(&between, x)?;
        self.between = Some(between);
        Ok(())
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut A::Left) -> Result<()> {
        let mut between = self.between(y.ncols())?;
        self.second.sketch(omega, &mut between)?;
        self.first.apply(&between, y)?;
        self.between = Some(between);
        Ok(())
    }

    fn materialize(&mut self, y: &mut A::Left) -> Result<()> {
        let mut between = self.first.right(self.second.ncols())?;
        self.second.materialize(&mut between)?;
        self.first.apply(&between, y)
    }

    fn gram(&mut self) -> Result<B::Gram> {
        match self.gram.take() {
            Some(gram) => Ok(gram),
            None => B::Gram::from_panel(self.form_gram()?.0),
        }
    }

    fn passes(&self) -> usize {
        self.first.passes() + self.second.passes()
    }
}

/// A square lower triangular or diagonal matrix, or its transpose, on host panels.
pub struct Root<T: Scalar> {
    entries: Entries<T>,
    transposed: bool,
    norm_squared: f64,
    context: Arc<HostContext>,
}

/// By square tiles that stay in L1.
fn transpose_in_place<T: Scalar>(mut a: MatMut<'_, T>) {
    const TILE: usize = 32;
    let n = a.ncols();
    for first in (0..n).step_by(TILE) {
        for top in (0..=first).step_by(TILE) {
            for j in first..(first + TILE).min(n) {
                for i in top..(top + TILE).min(j) {
                    let (above, below) = (a[(i, j)], a[(j, i)]);
                    (a[(i, j)], a[(j, i)]) = (below, above);
                }
            }
        }
    }
}

fn square<T: Element>(x: T) -> f64 {
    x.to_f64() * x.to_f64()
}

/// What [`Root`] holds.
pub(crate) enum Entries<T> {
    /// The lower triangle; what is above is not read.
    Lower(Mat<T>),
    /// The diagonal.
    Diagonal(Vec<T>),
}

impl<T: Scalar> Root<T> {
    pub(crate) fn new(entries: Entries<T>, transposed: bool, context: Arc<HostContext>) -> Self {
        let norm_squared = match &entries {
            Entries::Lower(l) => {
                let column =
                    |j: usize| (j..l.nrows()).map(move |i| l[(i, j)].to_f64() * l[(i, j)].to_f64()).sum::<f64>();
                (0..l.ncols()).map(column).sum()
            }
            Entries::Diagonal(d) => d.iter().map(|&x| square(x)).sum(),
        };
        Root { entries, transposed, norm_squared, context }
    }

    fn order(&self) -> usize {
        match &self.entries {
            Entries::Lower(l) => l.nrows(),
            Entries::Diagonal(d) => d.len(),
        }
    }

    fn multiply(&self, transposed: bool, x: MatRef<'_, T>, mut y: MatMut<'_, T>) {
        let (lower, upper) = (BlockStructure::TriangularLower, BlockStructure::TriangularUpper);
        let full = BlockStructure::Rectangular;
        match &self.entries {
            Entries::Lower(l) => {
                let (l, structure) = if transposed { (l.transpose(), upper) } else { (l.as_ref(), lower) };
                triangular::matmul(y, full, Accum::Replace, l, structure, x, full, T::one(), self.context.par());
            }
            Entries::Diagonal(d) => {
                y.copy_from(x);
                for column in y.col_iter_mut() {
                    column.iter_mut().zip(d).for_each(|(y, d)| *y *= *d);
                }
            }
        }
    }

    /// All of it, zeros included.
    fn dense(&self) -> Mat<T> {
        self.entries.dense(self.transposed)
    }
}

impl<T: Scalar> Entries<T> {
    /// The matrix or its transpose, zeros included.
    pub(crate) fn dense(&self, transposed: bool) -> Mat<T> {
        let n = match self {
            Entries::Lower(l) => l.nrows(),
            Entries::Diagonal(d) => d.len(),
        };
        Mat::from_fn(n, n, |i, j| {
            let (i, j) = if transposed { (j, i) } else { (i, j) };
            match self {
                Entries::Lower(l) if i >= j => l[(i, j)],
                Entries::Diagonal(d) if i == j => d[i],
                _ => T::zeroed(),
            }
        })
    }
}

impl<T: Scalar> LinearOperator<T> for Root<T> {
    type Left = HostPanel<T>;
    type Right = HostPanel<T>;
    type Gram = Dense<'static, T>;

    fn nrows(&self) -> usize {
        self.order()
    }

    fn ncols(&self) -> usize {
        self.order()
    }

    fn norm_squared(&self) -> f64 {
        self.norm_squared
    }

    fn left(&self, l: usize) -> Result<HostPanel<T>> {
        Ok(HostPanel::zeros(self.order(), l, self.context.clone()))
    }

    fn right(&self, l: usize) -> Result<HostPanel<T>> {
        self.left(l)
    }

    fn apply(&mut self, x: &HostPanel<T>, y: &mut HostPanel<T>) -> Result<()> {
        self.multiply(self.transposed, x.as_ref(), y.as_mut());
        Ok(())
    }

    fn apply_adjoint(&mut self, y: &HostPanel<T>, x: &mut HostPanel<T>) -> Result<()> {
        self.multiply(!self.transposed, y.as_ref(), x.as_mut());
        Ok(())
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut HostPanel<T>) -> Result<()> {
        omega.apply(self.dense().as_ref(), y.as_mut(), self.context.par())
    }

    fn materialize(&mut self, y: &mut HostPanel<T>) -> Result<()> {
        y.as_mut().copy_from(self.dense());
        Ok(())
    }

    fn gram(&mut self) -> Result<Dense<'static, T>> {
        let mut g = self.left(self.order())?;
        symmetric_product(self.dense().transpose(), g.as_mut(), Accum::Replace, self.context.par());
        mirror(g.as_mut());
        Dense::from_panel(g)
    }

    /// It is no part of the data.
    fn passes(&self) -> usize {
        0
    }
}
