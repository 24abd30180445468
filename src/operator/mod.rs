//! What the algorithms see of a matrix: products with tall panels.
//!
//! ```text
//!   A  m × n        Left panel  m × l        Right panel  n × l        small  l × l (host)
//!
//!   apply          Y = A X                   sketch     Y = A Ω
//!   apply_adjoint  X = Aᵀ Y                  gram       G = AᵀA, itself an operator on right panels
//!   stream_rows    rows of A, once
//! ```
//!
//! Panels live where the data lives and only l × l matrices come home, so the algorithms of [`range`](crate::range)
//! and [`svd`](crate::svd) are written once. How each operator fills the seam:
//!
//! | operator | left panel (m × l) | right panel (n × l) | product | Gram and inner products of panels |
//! |---|---|---|---|---|
//! | [`Dense`], in memory | host | host | GEMM, row tiles widened if A is stored in another type | syrk |
//! | [`Tiled`], out of core | host | host | one pass over the tiles, `X += A_iᵀ Y_i` in tile order | syrk |
//! | [`Whitened`], `A = W L` | W's left | W's right | `W (L X)`, `Lᵀ (Wᵀ Y)` | W's |
//! | distributed rows | the rank's rows | replicated | local GEMM, `X` all-reduced | local, all-reduced |
//! | CUDA | device | device | cuBLAS | cuBLAS, l × l copied to the host |
//!
//! Operators take `&mut self` because they own their scratch (tile buffers, device workspaces) and count their
//! passes over the data. Panels are allocated by the operator once per factorization and reused.
//! Wide matrices are handed over transposed (`m >= n` by construction), never by a second code path.

mod dense;
mod flow;
mod host;
mod product;
mod stored;
mod tiled;
mod watch;
mod whitened;

pub use dense::{Dense, Pass, TileParams};
pub(crate) use dense::{first_not_finite, for_each_line};
#[cfg(feature = "cuda")]
pub(crate) use host::copy;
pub use host::{HostContext, HostPanel, Workspace};
pub(crate) use product::{for_each, strips_of_rows};
pub use tiled::{ReadParams, RowSource, Tiled, stream};
pub use watch::{Cancel, Watch};
pub(crate) use whitened::STREAMED_ROWS;
pub(crate) use whitened::{Entries, Triangle};
pub use whitened::{FromPanel, Given, Root, Whitened};

use faer::prelude::ReborrowMut as _;
use faer::{Accum, Mat, MatMut, MatRef, unzip, zip};

use crate::error::Result;
use crate::linalg::mirror;
use crate::qr::Orthonormalization;
use crate::simd::Scalar;
use crate::sketch::AnySketch;

/// A tall matrix of few columns that lives where its operator's data lives.
pub trait Panel<T: Scalar>: Sized {
    /// Rows (of all parts, if it is distributed).
    fn nrows(&self) -> usize;

    /// Columns, `l`.
    fn ncols(&self) -> usize;

    /// `self <- [self +] alpha · a · c` with `a` a panel of the same height and `c` of `a.ncols() × self.ncols()`.
    ///
    /// # Errors
    /// What the backend reports; the shapes are the caller's invariant.
    fn multiply(&mut self, accum: Accum, a: &Self, c: MatRef<'_, T>, alpha: T) -> Result<()>;

    /// `c <- selfᵀ · other`, `self.ncols() × other.ncols()`.
    ///
    /// # Errors
    /// What the backend reports.
    fn inner(&self, other: &Self, c: MatMut<'_, T>) -> Result<()>;

    /// The lower triangle of `selfᵀ self` in f64, its sums in f64 if the backend can. Returns the unit in which they are
    /// exact: eps of f64, or of `T`.
    ///
    /// # Errors
    /// What the backend reports.
    fn gram(&self, mut c: MatMut<'_, f64>) -> Result<f64> {
        let mut g = Mat::<T>::zeros(self.ncols(), self.ncols());
        self.inner(self, g.as_mut())?;
        zip!(c.rb_mut(), g.as_ref()).for_each(|unzip!(to, from)| *to = (*from).to_f64());
        Ok(T::EPSILON)
    }

    /// `self <- self + alpha · a`.
    ///
    /// # Errors
    /// What the backend reports.
    fn add_scaled(&mut self, a: &Self, alpha: T) -> Result<()> {
        self.multiply(Accum::Add, a, Mat::<T>::identity(a.ncols(), a.ncols()).as_ref(), alpha)
    }

    /// `Σ self_ij other_ij`, accumulated in f64.
    ///
    /// # Errors
    /// What the backend reports.
    fn dot(&self, other: &Self) -> Result<f64> {
        let mut c = Mat::<T>::zeros(self.ncols(), self.ncols());
        self.inner(other, c.as_mut())?;
        Ok((0..self.ncols()).map(|j| c[(j, j)].to_f64()).sum())
    }

    /// Columns `first..` of `self <- src`, for panels that are filled from their first column on, block by block. The default
    /// multiplies by columns of the identity, which is exact.
    ///
    /// # Errors
    /// What the backend reports.
    fn set_columns(&mut self, first: usize, src: &Self) -> Result<()> {
        let mut select = Mat::<T>::zeros(src.ncols(), self.ncols());
        (0..src.ncols()).for_each(|j| select[(j, first + j)] = T::one());
        let accum = if first == 0 { Accum::Replace } else { Accum::Add };
        self.multiply(accum, src, select.as_ref(), T::one())
    }

    /// Overwrites the panel by an orthonormal basis `Q` whose span contains its own; `r` gets the upper triangular
    /// `R` with `self = Q R`.
    ///
    /// # Errors
    /// [`Shape`](crate::Error::Shape) if the panel is wider than tall.
    fn orthonormalize(&mut self, r: Option<MatMut<'_, T>>) -> Result<Orthonormalization>;

    /// As [`orthonormalize`](Self::orthonormalize), in little scratch, for a way out that is rarely taken and must not be what a factorization needs
    /// memory for.
    ///
    /// # Errors
    /// As [`orthonormalize`](Self::orthonormalize).
    fn orthonormalize_sparingly(&mut self, r: Option<MatMut<'_, T>>) -> Result<Orthonormalization> {
        self.orthonormalize(r)
    }

    /// `self <- self · c` in its own memory, of which what is over is given back; false, and nothing is done, if the backend cannot.
    ///
    /// # Errors
    /// What the backend reports.
    fn turn(&mut self, _c: MatRef<'_, T>) -> Result<bool> {
        Ok(false)
    }

    /// Frees what the backend keeps as scratch for its next call, unless it keeps that for the next factorization.
    fn release(&self) {}

    /// `‖self‖_F²`, accumulated in f64.
    ///
    /// # Errors
    /// What the backend reports.
    fn norm_squared(&self) -> Result<f64>;

    /// `dst <- self · c` on the host, in any layout: how factors come home.
    ///
    /// # Errors
    /// What the backend reports.
    fn product_to_host(&self, c: MatRef<'_, T>, dst: MatMut<'_, T>) -> Result<()>;

    /// `dst <- self` on the host.
    ///
    /// # Errors
    /// What the backend reports.
    fn copy_to_host(&self, dst: MatMut<'_, T>) -> Result<()>;

    /// `self <- src`.
    ///
    /// # Errors
    /// What the backend reports.
    fn copy_from_host(&mut self, src: MatRef<'_, T>) -> Result<()>;

    /// Lets `write` fill the panel, as a column-major matrix on the host: in place where it lives there.
    ///
    /// # Errors
    /// What the backend reports.
    fn write_on_host(&mut self, write: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()> {
        let mut host = Mat::zeros(self.nrows(), self.ncols());
        write(host.as_mut());
        self.copy_from_host(host.as_ref())
    }

    /// Lets `use_up` have the panel as a matrix on the host, in place where it lives there.
    ///
    /// # Errors
    /// What the backend reports.
    fn use_up_on_host(self, use_up: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()> {
        let mut host = Mat::zeros(self.nrows(), self.ncols());
        self.copy_to_host(host.as_mut())?;
        drop(self);
        use_up(host.as_mut());
        Ok(())
    }

    /// Eigenvalues, nondecreasing, and orthonormal eigenvectors of the symmetric matrix whose lower triangle is in `g`, where panels live
    /// beside something that finds them sooner than a thread of the host does.
    ///
    /// # Errors
    /// What the backend reports.
    fn symmetric_eigen(&self, _g: MatRef<'_, f64>) -> Result<Option<(Vec<f64>, Mat<f64>)>> {
        Ok(None)
    }

    /// The trace of a square panel, in f64.
    ///
    /// # Errors
    /// What the backend reports.
    fn trace(&self) -> Result<f64> {
        let mut host = Mat::zeros(self.nrows(), self.ncols());
        self.copy_to_host(host.as_mut())?;
        Ok((0..self.ncols()).map(|i| host[(i, i)].to_f64()).sum())
    }
}

/// An `m × n` matrix known by its products. See the [module](self) for how the backends fill it.
pub trait LinearOperator<T: Scalar> {
    /// Panels of `m` rows.
    type Left: Panel<T>;
    /// Panels of `n` rows.
    type Right: Panel<T>;
    /// `AᵀA`.
    type Gram: LinearOperator<T, Left = Self::Right, Right = Self::Right>;

    /// Rows, `m`.
    fn nrows(&self) -> usize;

    /// Columns, `n`.
    fn ncols(&self) -> usize;

    /// `‖A‖_F²` in f64 of the operator as it stands, [`scale`](Self::scale) included. Known since the input was checked;
    /// out of core that is at the first product, and NaN before.
    fn norm_squared(&self) -> f64;

    /// The operator stands for `scale · A`, a power of two; final once a product was formed.
    fn scale(&self) -> f64 {
        1.0
    }

    /// A left panel of `l` columns, contents unspecified.
    ///
    /// # Errors
    /// What the backend reports.
    fn left(&self, l: usize) -> Result<Self::Left>;

    /// As [`left`](Self::left), for an image `A X` that is read once more, by rows: laid out as the product writes it best.
    ///
    /// # Errors
    /// What the backend reports.
    fn image(&self, l: usize) -> Result<Self::Left> {
        self.left(l)
    }

    /// A right panel of `l` columns, contents unspecified.
    ///
    /// # Errors
    /// What the backend reports.
    fn right(&self, l: usize) -> Result<Self::Right>;

    /// `Y = A X`.
    ///
    /// # Errors
    /// What the backend reports.
    fn apply(&mut self, x: &Self::Right, y: &mut Self::Left) -> Result<()>;

    /// `X = Aᵀ Y`.
    ///
    /// # Errors
    /// What the backend reports.
    fn apply_adjoint(&mut self, y: &Self::Left, x: &mut Self::Right) -> Result<()>;

    /// `Y = A Ω`, Ω of `n × l`.
    ///
    /// # Errors
    /// What the backend reports.
    fn sketch(&mut self, omega: &AnySketch, y: &mut Self::Left) -> Result<()>;

    /// `Y = (A − shift I) Ω` of a square operator for the price of a sketch; false, and nothing is done, if the backend has no such way.
    ///
    /// # Errors
    /// What the backend reports.
    fn sketch_shifted(&mut self, _omega: &AnySketch, _shift: f64, _y: &mut Self::Left) -> Result<bool> {
        Ok(false)
    }

    /// `Y = A` itself as a panel of `n` columns.
    ///
    /// # Errors
    /// What the backend reports.
    fn materialize(&mut self, y: &mut Self::Left) -> Result<()>;

    /// One pass over the rows of `A`, in blocks that come in order: `f(first, rows)`, `rows` of n columns on the host. The
    /// default brings the whole matrix home at once; whoever holds rows in parts hands out the parts.
    ///
    /// # Errors
    /// What the backend reports, and the first that `f` returns.
    fn stream_rows(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        let mut host = Mat::zeros(self.nrows(), self.ncols());
        {
            let mut panel = self.left(self.ncols())?;
            self.materialize(&mut panel)?;
            panel.copy_to_host(host.as_mut())?;
        }
        f(0, host.as_ref())
    }

    /// `G = AᵀA`.
    ///
    /// # Errors
    /// What the backend reports.
    fn gram(&mut self) -> Result<Self::Gram>;

    /// `g <- Aᵀ S A`, `n × n`, for a symmetric S of which the lower triangle is read.
    ///
    /// # Errors
    /// What the backend reports.
    fn congruence(&mut self, s: &Self::Left, g: &mut Self::Right) -> Result<()> {
        let (m, n) = (self.nrows(), self.ncols());
        // E = Aᵀ S, then Aᵀ Eᵀ.
        let mut e = self.right(m)?;
        {
            let mut host = Mat::zeros(m, m);
            s.copy_to_host(host.as_mut())?;
            mirror(host.as_mut());
            let mut whole = self.left(m)?;
            whole.copy_from_host(host.as_ref())?;
            self.apply_adjoint(&whole, &mut e)?;
        }
        let mut host = Mat::zeros(n, m);
        e.copy_to_host(host.as_mut())?;
        drop(e);
        let mut e = self.left(n)?;
        e.copy_from_host(host.transpose().to_owned().as_ref())?;
        self.apply_adjoint(&e, g)
    }

    /// How often the elements of `A` have been read so far, the input check not counted.
    fn passes(&self) -> usize;
}
