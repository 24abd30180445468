//! Where tall panels live, and who computes on them.
//!
//! ```text
//!   panel   m × l, l small        in host memory, on a device, or anywhere else
//!   small   l × l, k × l          always on the host
//!
//!   Y += α A C      multiply          C  = YᵀZ       inner          Y = Q R      orthonormalize
//!   Y  = A B        multiply_panels   G  = YᵀY       gram           Y = (G − α) Ω    sketch
//! ```
//!
//! A [`Space`] owns the memory of its panels and has a kernel for everything that the algorithms of
//! [`range`](crate::range) and [`svd`](crate::svd) do with one, so that only `l × l` matrices and the factors cross its
//! border. Nothing in it is optional: a default made of other methods would work on every space and hide that one of
//! them brings whole matrices home.
//!
//! [`Host`] is the reference. The others are tested against it, and a space that counts what crosses the border runs
//! all algorithms in `tests/drivers/operator.rs`.
//!
//! Panels are handed over with the space that made them. Shapes are the caller's invariant: a method may panic where
//! they do not fit.

mod host;

#[cfg(feature = "cuda")]
pub(crate) use host::copy;
pub use host::{Host, HostPanel, Workspace};
pub(crate) use host::{congruence, leading_dimension, product, product_bytes, zeros};

use faer::{Accum, Mat, MatMut, MatRef};

use crate::error::Result;
use crate::qr::Orthonormalization;
use crate::simd::Scalar;
use crate::sketch::AnySketch;

/// What the lines of a new panel are, where the space has a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Columns: what everything but a product with a row-major matrix does best with.
    Columns,
    /// Rows: what a product with a row-major matrix writes best.
    Rows,
}

/// How much scratch an orthonormalization may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// As much as is fastest.
    Fast,
    /// A few `l × l` matrices: for a way out that is rarely taken and must not be what a factorization needs memory
    /// for.
    LittleMemory,
}

/// Whether a product takes a matrix as it is or its transpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The matrix itself.
    Plain,
    /// Its transpose.
    Adjoint,
}

/// The panels of a space.
pub type Panel<T, S> = <S as Space<T>>::Panel;

/// A place where tall panels live: it owns their memory and computes on them.
///
/// A clone is another handle on the same place. The errors of all methods are those of the place, such as a device that
/// has no memory left or that was lost ([`Error::Device`](crate::Error::Device)); [`Host`] has none but where a method
/// says so.
pub trait Space<T: Scalar>: Clone {
    /// An `m × l` matrix of `T` in this space.
    type Panel;

    /// Allocates a panel of zeros. `layout` is a wish.
    ///
    /// # Errors
    /// Those of the space.
    fn panel(&self, nrows: usize, ncols: usize, layout: Layout) -> Result<Self::Panel>;

    /// Rows and columns of a panel.
    fn shape(&self, y: &Self::Panel) -> (usize, usize);

    /// Lets `write` overwrite `y`, which it gets with contents unspecified: in place where the panel is in host memory.
    ///
    /// # Errors
    /// Those of the space.
    fn fill(&self, y: &mut Self::Panel, write: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()>;

    /// Copies `y` to the host, in any layout: `dst <- y`, both `m × l`.
    ///
    /// # Errors
    /// Those of the space.
    fn download(&self, y: &Self::Panel, dst: MatMut<'_, T>) -> Result<()>;

    /// Gives up a panel for one in host memory of the same contents: the panel itself where it is there.
    ///
    /// # Errors
    /// Those of the space.
    fn into_host(&self, y: Self::Panel) -> Result<HostPanel<T>>;

    /// Frees what is kept as scratch for the next call, unless it is kept for the next factorization.
    fn trim(&self);

    /// `y <- [y +] alpha · a · c` for panels `a` of `m × r` and `y` of `m × l`, and `c` of `r × l` on the host.
    ///
    /// # Errors
    /// Those of the space.
    fn multiply(&self, y: &mut Self::Panel, accum: Accum, a: &Self::Panel, c: MatRef<'_, T>, alpha: T) -> Result<()>;

    /// `y <- y · c` for a panel of `m × l` and `c` of `l × k`, `k <= l`. The panel has k columns then, and memory for
    /// no more where that can be.
    ///
    /// # Errors
    /// Those of the space.
    fn multiply_in_place(&self, y: &mut Self::Panel, c: MatRef<'_, T>) -> Result<()>;

    /// `dst <- a · c` on the host, in any layout, for a panel of `m × l` and `c` of `l × k`: how factors come home.
    ///
    /// # Errors
    /// Those of the space.
    fn multiply_to_host(&self, a: &Self::Panel, c: MatRef<'_, T>, dst: MatMut<'_, T>) -> Result<()>;

    /// `y <- a · b`, or `y <- aᵀ · b`, all of them panels. `aᵀ · a` costs half, and is symmetric to the last bit.
    ///
    /// # Errors
    /// Those of the space.
    fn multiply_panels(&self, side: Side, a: &Self::Panel, b: &Self::Panel, y: &mut Self::Panel) -> Result<()>;

    /// `c <- aᵀ · b`, `r × l` on the host, for panels of `m × r` and `m × l`; sums are in `T`. `aᵀ · a` costs half.
    ///
    /// # Errors
    /// Those of the space.
    fn inner(&self, a: &Self::Panel, b: &Self::Panel, c: MatMut<'_, T>) -> Result<()>;

    /// The lower triangle of `yᵀ · y` on the host, products and sums in f64. What is above the diagonal of `c`,
    /// `l × l`, is of no use.
    ///
    /// # Errors
    /// Those of the space.
    fn gram(&self, y: &Self::Panel, c: MatMut<'_, f64>) -> Result<()>;

    /// Overwrites an `m × l` panel, `m >= l`, by an orthonormal basis Q whose span contains its own; `r` gets the upper
    /// triangular R, `l × l`, with `y = Q R`. See [`qr::orthonormalize`](crate::qr::orthonormalize), whose decisions
    /// are the same everywhere.
    ///
    /// # Errors
    /// Those of [`qr::orthonormalize`](crate::qr::orthonormalize) and of the space.
    fn orthonormalize(
        &self,
        y: &mut Self::Panel,
        r: Option<MatMut<'_, T>>,
        effort: Effort,
    ) -> Result<Orthonormalization>;

    /// Eigenvalues, nondecreasing, and orthonormal eigenvectors of the symmetric matrix whose lower triangle is in `g`,
    /// if this place finds them sooner than a thread of the host does; none if the host is to do it, beside whatever
    /// else there is to do.
    ///
    /// # Errors
    /// Those of the space.
    fn symmetric_eigen(&self, g: MatRef<'_, f64>) -> Result<Option<(Vec<f64>, Mat<f64>)>>;

    /// Columns `first..first + l` of `y <- x`, for a panel `x` of l columns.
    ///
    /// # Errors
    /// Those of the space.
    fn copy_columns(&self, y: &mut Self::Panel, first: usize, x: &Self::Panel) -> Result<()>;

    /// `y <- y + alpha · x`, both of one shape.
    ///
    /// # Errors
    /// Those of the space.
    fn axpy(&self, y: &mut Self::Panel, alpha: T, x: &Self::Panel) -> Result<()>;

    /// `Σ x_ij y_ij` for panels of one shape, sums in f64. `‖x‖_F²` is that of a panel and itself.
    ///
    /// # Errors
    /// Those of the space.
    fn dot(&self, x: &Self::Panel, y: &Self::Panel) -> Result<f64>;

    /// The trace of a square panel, in f64.
    ///
    /// # Errors
    /// Those of the space.
    fn trace(&self, y: &Self::Panel) -> Result<f64>;

    /// `y <- (g − shift I) Ω` for a square panel g of order n and Ω of `n × l`, for the price of a sketch; g is as
    /// before, to the last bit.
    ///
    /// # Errors
    /// Those of the space.
    fn sketch(&self, g: &mut Self::Panel, shift: f64, omega: &AnySketch, y: &mut Self::Panel) -> Result<()>;
}
