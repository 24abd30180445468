//! Operators: what the algorithms see of a matrix, which is products with tall panels.
//!
//! ```text
//!   A  m × n        left panel  m × l        right panel  n × l        small  l × l (host)
//!
//!   apply          Y = A X                   sketch       Y = A Ω
//!   apply_adjoint  X = Aᵀ Y                  gram         G = AᵀA, a symmetric matrix where panels live
//!   for_each_row_block    rows of A, once    congruence   G = Aᵀ S A
//! ```
//!
//! Panels live in the [`Space`] of the operator and only l × l matrices come home, so that the algorithms of
//! [`range`](crate::range) and [`svd`](crate::svd) are written once, over `dyn LinearOperator`. The operators differ in
//! this:
//!
//! | operator | space | product | Gram matrix |
//! |---|---|---|---|
//! | [`Dense`], in memory | host | GEMM, row tiles widened if A is stored in another type | syrk |
//! | [`Tiled`], out of core | host | one pass over the tiles, `X += A_iᵀ Y_i` in tile order | syrk |
//! | [`Whitened`], `A = W L` | W's | `W (L X)`, `Lᵀ (Wᵀ Y)` | a congruence |
//! | CUDA | device | cuBLAS | cuBLAS |
//!
//! [`Difference`] is no operator of its own: it is a source of rows, and so [`Tiled`] multiplies by `A − B`.
//!
//! Operators take `&mut self` because they own their scratch (tile buffers, device workspaces) and count their passes
//! over the data. Panels are allocated once per factorization and reused. Wide matrices are handed over transposed
//! (`m >= n` by construction), and have no code path of their own.

mod dense;
mod difference;
mod flow;
mod stack;
mod stored;
mod symmetric;
mod tiled;
mod watch;
mod whitened;

pub use dense::Dense;
#[doc(hidden)]
pub use dense::{Pass, TileParams};
pub(crate) use dense::{first_not_finite, scale_for, scaled_norm_squared};
pub use difference::Difference;
pub use stack::{Along, Stack};
pub use symmetric::Symmetric;
#[doc(hidden)]
pub use tiled::{ReadParams, stream};
pub use tiled::{RowSource, Tiled};
pub use watch::{Cancel, Watch};
pub(crate) use whitened::STREAMED_ROWS;
pub(crate) use whitened::{Entries, Triangle};
#[doc(hidden)]
pub use whitened::{Given, Root, Whitened};

use faer::MatRef;

use crate::error::Result;
use crate::simd::Scalar;
use crate::sketch::AnySketch;
use crate::space::{Layout, Panel, Space};

/// The facts that are known of an operator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Rows and columns, `(m, n)`.
    pub shape: (usize, usize),
    /// The value of `‖A‖_F²` in f64 of the operator as it stands, `scale` included. It is known once the input was
    /// checked; out of core that is after the first product, and the value is NaN before.
    pub norm_squared: f64,
    /// The power of two of the operator, which stands for `scale · A`. It is final once a product was formed.
    pub scale: f64,
    /// The number of times that the elements of `A` have been read so far, without the input check.
    pub passes: usize,
    /// The best layout of an image `A X` that is read once more, by rows.
    pub image: Layout,
}

/// An `m × n` matrix known by its products.
///
/// The errors of all methods are [`Error::Device`](crate::Error::Device) of a space on a device,
/// [`Error::Cancelled`](crate::Error::Cancelled) where the operator is watched, and what a source of rows reports: its
/// own errors, [`Error::NotFinite`](crate::Error::NotFinite) and [`Error::Range`](crate::Error::Range). A panel that is
/// written is overwritten, whatever it held.
pub trait LinearOperator<T: Scalar> {
    /// The space where the panels live.
    type Space: Space<T>;

    /// Returns the space in which panels for the products are made.
    fn space(&self) -> &Self::Space;

    /// Returns what is known of the matrix.
    fn facts(&self) -> Facts;

    /// Computes `y <- A x`, for `x` of `n × l` and `y` of `m × l`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    fn apply(&mut self, x: &Panel<T, Self::Space>, y: &mut Panel<T, Self::Space>) -> Result<()>;

    /// Computes `x <- Aᵀ y`, for `y` of `m × l` and `x` of `n × l`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    fn apply_adjoint(&mut self, y: &Panel<T, Self::Space>, x: &mut Panel<T, Self::Space>) -> Result<()>;

    /// Computes `y <- A Ω`, for Ω of `n × l` and `y` of `m × l`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    fn sketch(&mut self, omega: &AnySketch, y: &mut Panel<T, Self::Space>) -> Result<()>;

    /// Computes the Gram matrix `AᵀA`, of order n.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    fn gram(&mut self) -> Result<Symmetric<T, Self::Space>>;

    /// Computes `g <- Aᵀ S A`, `n × n`, both triangles, for a symmetric S of order m of which the lower triangle is
    /// read.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    fn congruence(&mut self, s: &Panel<T, Self::Space>, g: &mut Panel<T, Self::Space>) -> Result<()>;

    /// Copies `A` itself to `y`, a panel of `m × n`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    fn materialize(&mut self, y: &mut Panel<T, Self::Space>) -> Result<()>;

    /// Passes the rows of `A` to `f` once, in blocks on the host that come in order: `f(first, rows)`, with `rows` of n
    /// columns.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows, and the first error that `f` returns.
    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()>;
}

impl<T: Scalar, S: Space<T>> dyn LinearOperator<T, Space = S> + '_ {
    /// Returns the number of rows, `m`.
    pub fn nrows(&self) -> usize {
        self.facts().shape.0
    }

    /// Returns the number of columns, `n`.
    pub fn ncols(&self) -> usize {
        self.facts().shape.1
    }

    /// Returns `‖A‖_F²`; see [`Facts`].
    pub fn norm_squared(&self) -> f64 {
        self.facts().norm_squared
    }

    /// Makes a panel of m rows and `l` columns.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn left(&self, l: usize) -> Result<Panel<T, S>> {
        self.space().panel(self.nrows(), l, Layout::Columns)
    }

    /// Makes a panel of m rows and `l` columns for an image `A X` that is read once more, by rows. It is laid out as
    /// the product writes it best.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn image(&self, l: usize) -> Result<Panel<T, S>> {
        self.space().panel(self.nrows(), l, self.facts().image)
    }

    /// Makes a panel of n rows and `l` columns.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn right(&self, l: usize) -> Result<Panel<T, S>> {
        self.space().panel(self.ncols(), l, Layout::Columns)
    }
}
