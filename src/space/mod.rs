//! Spaces: where tall panels live, and who computes on them.
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
//! border. Every method is required: a default made of other methods would work on every space and hide that one of
//! them copies whole matrices to the host.
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
pub(crate) use host::{
    congruence, leading_dimension, product, product_as_stored, product_as_stored_bytes, product_bytes, zeros,
};

use std::ops::Range;

use faer::{Accum, Mat, MatMut, MatRef};

use crate::error::Result;
use crate::qr::Orthonormalization;
use crate::simd::Scalar;
use crate::sketch::AnySketch;

/// The lines of a new panel, where the space has a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Columns are contiguous, which is best for everything but a product with a row-major matrix.
    Columns,
    /// Rows are contiguous, which a product with a row-major matrix writes best.
    Rows,
}

/// How much scratch an orthonormalization may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// As much scratch as is fastest.
    Fast,
    /// Scratch of a few `l × l` matrices, for a fallback that is rarely taken and must not decide how much memory a
    /// factorization needs.
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

/// What is done with a panel on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its contents are looked at.
    Read,
    /// All of it is overwritten.
    Write,
}

/// The panel type of a space.
pub type Panel<T, S> = <S as Space<T>>::Panel;

/// A place where tall panels live: it owns their memory and computes on them.
///
/// A clone is another handle on the same place. The errors of all methods are those of the place:
/// [`Error::Device`](crate::Error::Device) for a device that has no memory left or that was lost. [`Host`] has none
/// except where a method says so.
pub trait Space<T: Scalar>: Clone {
    /// An `m × l` matrix of `T` in this space.
    type Panel;

    /// Allocates a panel of `nrows × ncols` zeros. A space may ignore `layout`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn panel(&self, nrows: usize, ncols: usize, layout: Layout) -> Result<Self::Panel>;

    /// Returns the numbers of rows and columns of a panel.
    fn shape(&self, y: &Self::Panel) -> (usize, usize);

    /// Lets `f` work on `y` on the host, a panel in host memory in its place. With [`Access::Write`] it overwrites all of
    /// it, and gets unspecified contents; with [`Access::Read`] it gets those of `y`, which are unspecified afterwards.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn visit(&self, y: &mut Self::Panel, access: Access, f: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()>;

    /// Copies `y` to the host, in any layout: `dst <- y`, both `m × l`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn download(&self, y: &Self::Panel, dst: MatMut<'_, T>) -> Result<()>;

    /// Frees the scratch that is kept for the next call, unless it is kept for the next factorization.
    fn trim(&self);

    /// Computes `y <- [y +] alpha · a · c` for panels `a` of `m × r` and `y` of `m × l`, and `c` of `r × l` on the
    /// host.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn multiply(&self, y: &mut Self::Panel, accum: Accum, a: &Self::Panel, c: MatRef<'_, T>, alpha: T) -> Result<()>;

    /// Computes `y <- y · c` for a panel of `m × l` and `c` of `l × k` on the host, `k <= l`. The panel then has k
    /// columns, and memory for no more where the space can give it back.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn multiply_in_place(&self, y: &mut Self::Panel, c: MatRef<'_, T>) -> Result<()>;

    /// Computes `dst <- a · c` on the host, in any layout, for a panel of `m × l` and `c` of `l × k`. Factors come to
    /// the host in this way.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn multiply_to_host(&self, a: &Self::Panel, c: MatRef<'_, T>, dst: MatMut<'_, T>) -> Result<()>;

    /// Computes `y <- a · b` or `y <- aᵀ · b`, where all three are panels. `aᵀ · a` costs half, and is symmetric to the
    /// last bit.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn multiply_panels(&self, side: Side, a: &Self::Panel, b: &Self::Panel, y: &mut Self::Panel) -> Result<()>;

    /// Computes `c <- aᵀ · b`, `r × l` on the host, for panels of `m × r` and `m × l`. Sums are in `T`; `aᵀ · a` costs
    /// half.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn inner(&self, a: &Self::Panel, b: &Self::Panel, c: MatMut<'_, T>) -> Result<()>;

    /// Computes the lower triangle of `c <- yᵀ · y`, `l × l` on the host, with products and sums in f64. Elements of
    /// `c` above the diagonal are unspecified.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn gram(&self, y: &Self::Panel, c: MatMut<'_, f64>) -> Result<()>;

    /// Overwrites an `m × l` panel, `m >= l`, by an orthonormal basis Q whose span contains its own. If `r` is given,
    /// it gets the upper triangular R, `l × l`, with `y = Q R`. The decisions are those of
    /// [`qr::orthonormalize`](crate::qr::orthonormalize) in every space.
    ///
    /// # Errors
    /// Those of [`qr::orthonormalize`](crate::qr::orthonormalize) and of the space.
    fn orthonormalize(
        &self,
        y: &mut Self::Panel,
        r: Option<MatMut<'_, T>>,
        effort: Effort,
    ) -> Result<Orthonormalization>;

    /// Computes the eigenvalues, nondecreasing, and orthonormal eigenvectors of the symmetric l × l matrix whose lower
    /// triangle is in `g`, if this space does so sooner than a thread of the host. The result is `None` if the host is
    /// to do it, beside other work.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn symmetric_eigen(&self, g: MatRef<'_, f64>) -> Result<Option<(Vec<f64>, Mat<f64>)>>;

    /// Copies a panel `x` of l columns to columns `first..first + l` of `y`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn copy_columns(&self, y: &mut Self::Panel, first: usize, x: &Self::Panel) -> Result<()>;

    /// Computes `y <- y + alpha · x` for panels of one shape.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn axpy(&self, y: &mut Self::Panel, alpha: T, x: &Self::Panel) -> Result<()>;

    /// Computes `Σ x_ij y_ij` for panels of one shape, with sums in f64. `dot(x, x)` is `‖x‖_F²`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn dot(&self, x: &Self::Panel, y: &Self::Panel) -> Result<f64>;

    /// Computes the trace of a square panel, in f64.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn trace(&self, y: &Self::Panel) -> Result<f64>;

    /// Computes `y <- (g − shift I) Ω` for a square panel g of order n and Ω of `n × l`, at the cost of a sketch.
    /// Afterwards g is as before, to the last bit.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where panels live on a device, none on the [`Host`].
    fn sketch(&self, g: &mut Self::Panel, shift: f64, omega: &AnySketch, y: &mut Self::Panel) -> Result<()>;

    /// Returns how the long factor is shared with other processes, of which each brings home its own rows alone. `None`
    /// stands for a space of one process, which brings home all of them.
    fn shared(&self) -> Option<&dyn Shared<T, Self::Panel>>;
}

/// The part of a process in a space whose long panels are spread over several.
#[doc(hidden)]
pub trait Shared<T: Scalar, P> {
    /// Returns the rows of the long side that this process brings home.
    fn own(&self) -> Range<usize>;

    /// Copies these rows of a panel to the host, in any layout.
    ///
    /// # Errors
    /// Those of the space.
    fn download_own(&self, y: &P, dst: MatMut<'_, T>) -> Result<()>;

    /// Returns the entries of largest modulus over all processes, of several the first one, from those that each has
    /// found in its rows, one for each column.
    ///
    /// # Errors
    /// Those of the space.
    fn peaks(&self, own: &[T]) -> Result<Vec<T>>;
}
