//! What the algorithms see of a matrix: products with tall panels.
//!
//! ```text
//!   A  m × n        left panel  m × l        right panel  n × l        small  l × l (host)
//!
//!   apply          Y = A X                   sketch       Y = A Ω
//!   apply_adjoint  X = Aᵀ Y                  gram         G = AᵀA, a symmetric matrix where panels live
//!   for_each_row_block    rows of A, once    congruence   G = Aᵀ S A
//! ```
//!
//! Panels live in the [`Space`] of the operator and only l × l matrices come home, so the algorithms of
//! [`range`](crate::range) and [`svd`](crate::svd) are written once, over `dyn LinearOperator`. How each operator fills
//! it:
//!
//! | operator | space | product | Gram matrix |
//! |---|---|---|---|
//! | [`Dense`], in memory | host | GEMM, row tiles widened if A is stored in another type | syrk |
//! | [`Tiled`], out of core | host | one pass over the tiles, `X += A_iᵀ Y_i` in tile order | syrk |
//! | [`Whitened`], `A = W L` | W's | `W (L X)`, `Lᵀ (Wᵀ Y)` | a congruence |
//! | CUDA | device | cuBLAS | cuBLAS |
//!
//! Operators take `&mut self` because they own their scratch (tile buffers, device workspaces) and count their
//! passes over the data. Panels are allocated once per factorization and reused.
//! Wide matrices are handed over transposed (`m >= n` by construction), never by a second code path.

mod dense;
mod flow;
mod stored;
mod symmetric;
mod tiled;
mod watch;
mod whitened;

pub(crate) use dense::first_not_finite;
pub use dense::{Dense, Pass, TileParams};
pub use symmetric::Symmetric;
pub use tiled::{ReadParams, RowSource, Tiled, stream};
pub use watch::{Cancel, Watch};
pub(crate) use whitened::STREAMED_ROWS;
pub(crate) use whitened::{Entries, Triangle};
pub use whitened::{Given, Root, Whitened};

use faer::MatRef;

use crate::error::Result;
use crate::simd::Scalar;
use crate::sketch::AnySketch;
use crate::space::{Layout, Panel, Space};

/// What is known of an operator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Rows and columns, `(m, n)`.
    pub shape: (usize, usize),
    /// `‖A‖_F²` in f64 of the operator as it stands, `scale` included. Known since the input was checked; out of core
    /// that is at the first product, and NaN before.
    pub norm_squared: f64,
    /// The operator stands for `scale · A`, a power of two; final once a product was formed.
    pub scale: f64,
    /// How often the elements of `A` have been read so far, the input check not counted.
    pub passes: usize,
    /// How an image `A X` that is read once more, by rows, is laid out best.
    pub image: Layout,
}

/// An `m × n` matrix known by its products.
///
/// The errors of all methods are those of the space, [`Error::Cancelled`](crate::Error::Cancelled) where the operator
/// is watched, and what a source of rows reports. A panel that is written is overwritten whatever it held.
pub trait LinearOperator<T: Scalar> {
    /// Where its panels live.
    type Space: Space<T>;

    /// The space that panels for the products are made in.
    fn space(&self) -> &Self::Space;

    /// What is known of the matrix.
    fn facts(&self) -> Facts;

    /// `y <- A x`, for `x` of `n × l` and `y` of `m × l`.
    ///
    /// # Errors
    /// Those of the operator.
    fn apply(&mut self, x: &Panel<T, Self::Space>, y: &mut Panel<T, Self::Space>) -> Result<()>;

    /// `x <- Aᵀ y`, for `y` of `m × l` and `x` of `n × l`.
    ///
    /// # Errors
    /// Those of the operator.
    fn apply_adjoint(&mut self, y: &Panel<T, Self::Space>, x: &mut Panel<T, Self::Space>) -> Result<()>;

    /// `y <- A Ω`, for Ω of `n × l` and `y` of `m × l`.
    ///
    /// # Errors
    /// Those of the operator.
    fn sketch(&mut self, omega: &AnySketch, y: &mut Panel<T, Self::Space>) -> Result<()>;

    /// The Gram matrix `AᵀA`, of order n.
    ///
    /// # Errors
    /// Those of the operator.
    fn gram(&mut self) -> Result<Symmetric<T, Self::Space>>;

    /// `g <- Aᵀ S A`, `n × n`, both triangles, for a symmetric S of order m of which the lower triangle is read.
    ///
    /// # Errors
    /// Those of the operator.
    fn congruence(&mut self, s: &Panel<T, Self::Space>, g: &mut Panel<T, Self::Space>) -> Result<()>;

    /// `y <- A` itself, a panel of `m × n`.
    ///
    /// # Errors
    /// Those of the operator.
    fn materialize(&mut self, y: &mut Panel<T, Self::Space>) -> Result<()>;

    /// Hands the rows of `A` to `f` once, in blocks on the host that come in order: `f(first, rows)`, `rows` of n
    /// columns.
    ///
    /// # Errors
    /// Those of the operator, and the first that `f` returns.
    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()>;
}

impl<T: Scalar, S: Space<T>> dyn LinearOperator<T, Space = S> + '_ {
    /// Rows, `m`.
    pub fn nrows(&self) -> usize {
        self.facts().shape.0
    }

    /// Columns, `n`.
    pub fn ncols(&self) -> usize {
        self.facts().shape.1
    }

    /// `‖A‖_F²`; see [`Facts`].
    pub fn norm_squared(&self) -> f64 {
        self.facts().norm_squared
    }

    /// A panel of m rows and `l` columns.
    ///
    /// # Errors
    /// Those of the space.
    pub fn left(&self, l: usize) -> Result<Panel<T, S>> {
        self.space().panel(self.nrows(), l, Layout::Columns)
    }

    /// As [`left`](Self::left), for an image `A X` that is read once more, by rows: laid out as the product writes it
    /// best.
    ///
    /// # Errors
    /// Those of the space.
    pub fn image(&self, l: usize) -> Result<Panel<T, S>> {
        self.space().panel(self.nrows(), l, self.facts().image)
    }

    /// A panel of n rows and `l` columns.
    ///
    /// # Errors
    /// Those of the space.
    pub fn right(&self, l: usize) -> Result<Panel<T, S>> {
        self.space().panel(self.ncols(), l, Layout::Columns)
    }
}
