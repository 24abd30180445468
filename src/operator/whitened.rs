//! A weight seen through the inputs that it will meet: `A = W L`, with `L Lᵀ = M` the second moments of the inputs.
//!
//! ```text
//!                                             A = W L        W  m × n,  L  n × n lower triangular
//!   outputs   y = W (L x)      through  n     panels of m rows: outputs,  of n rows: inputs
//!   inputs    x = Lᵀ (Wᵀ y)                   operators are tall, so that a wide weight is handed over as Aᵀ
//!
//!   Gram      tall   Lᵀ (WᵀW) L     n × n     W's own Gram matrix in one pass, then a congruence with L: n³ flops
//!             wide   W M Wᵀ         m × m     a congruence with M itself, L is not needed:               m n² + 2 m² n
//! ```
//!
//! **Congruence.** `Bᵀ S B` for a symmetric S of which the lower half T is read, `S = T + Tᵀ` (its diagonal halved):
//! `E = T B`, then `Bᵀ E + Eᵀ B`, both by tiles of products, only those that are not zero (LAPACK's SYGST does the same
//! for a triangular B, row by row).
//!
//! **Without a root.** L costs `n³/3` flops in f64 and `m n²` to apply to all of a wide W. `W M Wᵀ` needs neither, but
//! its rounding errors are those of `Σ_j ‖w_j‖² M_jj`, the outputs as they would be if features were independent. Where
//! those are more than 64 times the true ones, the Gram matrix is that of `W L`. The root is made when something first
//! asks for it.
//!
//! `‖A‖_F²` is the trace of the Gram matrix, which is therefore formed at construction and kept for the first
//! [`gram`](LinearOperator::gram); nothing cheaper is exact. Another space brings its own operator for L; the rest is
//! the same.

use std::sync::Arc;

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::{Facts, LinearOperator, Symmetric};
use crate::error::Result;
use crate::linalg::{mirror, symmetric_product};
use crate::rng::philox4x32;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, SketchOperator};
use crate::space::{Access, Host, HostPanel, Layout, Panel, Side, Space, congruence, leading_dimension, zeros};
use crate::tensor::{DType, Element};

/// The largest ratio of outputs of independent features to true ones, both squared, with which `W M Wᵀ` is formed
/// without a root: a loss of six bits of the 24 of f32.
const MOST_CANCELLATION: f64 = 64.0;

/// The rows of `W L` that [`Whitened`] makes at a time for [`for_each_row_block`](LinearOperator::for_each_row_block).
pub(crate) const STREAMED_ROWS: usize = 256;

/// The number of random sign vectors that look for that cancellation.
const SIGNS: usize = 4;

/// The operator of a root.
type RootOperator<'a, T, S> = Box<dyn LinearOperator<T, Space = S> + 'a>;

/// Makes a root, and returns it with notes on what had to be done for it.
type MakeRoot<'a, T, S> = Box<dyn FnOnce() -> Result<(RootOperator<'a, T, S>, Vec<String>)> + 'a>;

/// A function that writes the lower triangle of a symmetric matrix, and its diagonal.
pub type Given<'a, T> = (&'a mut dyn FnMut(MatMut<'_, T>), &'a [f64]);

/// The operator `W L`, or its transpose where W is wide.
pub struct Whitened<'a, T: Scalar, S: Space<T>> {
    /// The tall one of W and Wᵀ.
    weight: &'a mut (dyn LinearOperator<T, Space = S> + 'a),
    space: S,
    wide: bool,
    /// Whether the weight is itself seen through the moments of its other side.
    oblique: bool,
    root: Option<RootOperator<'a, T, S>>,
    make: Option<MakeRoot<'a, T, S>>,
    notes: Vec<String>,
    /// A panel of n rows between W and L, kept for the next product.
    between: Option<Panel<T, S>>,
    /// The Gram matrix WᵀW of a tall W.
    weight_gram: Option<Symmetric<T, S>>,
    gram: Option<Symmetric<T, S>>,
    norm_squared: f64,
}

impl<'a, T: Scalar, S: Space<T>> Whitened<'a, T, S> {
    /// Makes the operator of `weight`, the tall one of W and Wᵀ, and forms the Gram matrix, for the norm. `make` makes
    /// the root. `moments` are `n × n`: a function that writes their lower triangle, with zeros above, if it can, and
    /// their diagonal.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn new(
        weight: &'a mut (dyn LinearOperator<T, Space = S> + 'a),
        wide: bool,
        make: impl FnOnce() -> Result<(Box<dyn LinearOperator<T, Space = S> + 'a>, Vec<String>)> + 'a,
        moments: Option<Given<'_, T>>,
    ) -> Result<Self> {
        let space = weight.space().clone();
        let mut whitened = Whitened {
            weight,
            space,
            wide,
            oblique: false,
            root: None,
            make: Some(Box::new(make)),
            notes: Vec::new(),
            between: None,
            weight_gram: None,
            gram: None,
            norm_squared: 0.0,
        };
        let g = match moments.filter(|_| wide) {
            Some((write, diagonal)) => whitened.form_gram_of_moments(write, diagonal)?,
            None => whitened.form_gram()?,
        };
        whitened.norm_squared = whitened.space.trace(&g)?;
        whitened.gram = Some(Symmetric::new(&whitened.space, g)?);
        Ok(whitened)
    }

    /// Makes the operator of a tall weight that is itself such an operator, `Kᵀ X` (made with `wide`): `Kᵀ X L`, the
    /// weight X seen through the moments of both sides. Its left singular vectors stand for images of X.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn of_whitened(
        weight: &'a mut Whitened<'_, T, S>,
        make: impl FnOnce() -> Result<(Box<dyn LinearOperator<T, Space = S> + 'a>, Vec<String>)> + 'a,
    ) -> Result<Self> {
        Ok(Whitened { oblique: true, ..Whitened::new(weight, false, make, None)? })
    }

    /// Tells whether the weight is itself seen through the moments of its other side.
    pub fn is_oblique(&self) -> bool {
        self.oblique
    }

    /// Tells whether the operator is `(W L)ᵀ`.
    pub fn is_wide(&self) -> bool {
        self.wide
    }

    /// Tells whether L was made.
    pub fn has_root(&self) -> bool {
        self.root.is_some()
    }

    /// Returns the tall one of W and Wᵀ, and the notes on the root, if it was made.
    pub fn into_parts(self) -> (&'a mut (dyn LinearOperator<T, Space = S> + 'a), Vec<String>) {
        (self.weight, self.notes)
    }

    /// Returns the rows of the tall one of A and Aᵀ.
    pub fn nrows(&self) -> usize {
        self.weight.nrows()
    }

    /// Returns the columns of the tall one of A and Aᵀ.
    pub fn ncols(&self) -> usize {
        self.weight.ncols()
    }

    /// Returns `‖A‖_F²`, in f64.
    pub fn norm_squared(&self) -> f64 {
        self.norm_squared
    }

    /// Makes a panel of as many rows as the operator has columns.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn right(&self, l: usize) -> Result<Panel<T, S>> {
        self.weight.right(l)
    }

    /// Makes a panel for an image of the operator, laid out as the product writes it best.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn image(&self, l: usize) -> Result<Panel<T, S>> {
        self.space.panel(self.nrows(), l, self.facts().image)
    }

    /// Makes a panel of n rows.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn inputs(&self, l: usize) -> Result<Panel<T, S>> {
        if self.wide { self.weight.left(l) } else { self.weight.right(l) }
    }

    /// Makes a panel of m rows.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn outputs(&self, l: usize) -> Result<Panel<T, S>> {
        if self.wide { self.weight.right(l) } else { self.weight.left(l) }
    }

    /// Computes `x = Wᵀ y`, without L, for `y` of m rows and `x` of n rows.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn back(&mut self, y: &Panel<T, S>, x: &mut Panel<T, S>) -> Result<()> {
        if self.wide { self.weight.apply(y, x) } else { self.weight.apply_adjoint(y, x) }
    }

    /// Computes `x = Wᵀ (W L z)` of the image that was the last product by the Gram matrix of a tall W, if there is
    /// one: `2 n² l` flops instead of `2 m n l`. Its error is that of the image, `eps |W| |L z|`, multiplied by Wᵀ.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn back_from_last_image(&mut self) -> Result<Option<Panel<T, S>>> {
        let (Some(gram), Some(between)) = (&self.weight_gram, self.between.take()) else { return Ok(None) };
        let mut x = self.inputs(self.space.shape(&between).1)?;
        gram.apply(&between, &mut x)?;
        Ok(Some(x))
    }

    /// Computes `L z` and `Wᵀ W L z` of a tall W by its Gram matrix: what the image `W (L z)` and its way back need of
    /// L.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn image_to_be(&mut self, z: &Panel<T, S>) -> Result<(Panel<T, S>, Panel<T, S>)> {
        let l = self.space.shape(z).1;
        let mut between = self.inputs(l)?;
        self.root()?.apply(z, &mut between)?;
        let gram = match self.weight_gram.take() {
            Some(gram) => gram,
            None => self.weight.gram()?,
        };
        let mut back = self.inputs(l)?;
        gram.apply(&between, &mut back)?;
        self.weight_gram = Some(gram);
        Ok((between, back))
    }

    /// Computes `L z`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn weigh(&mut self, z: &Panel<T, S>) -> Result<Panel<T, S>> {
        let mut weighed = self.inputs(self.space.shape(z).1)?;
        self.root()?.apply(z, &mut weighed)?;
        Ok(weighed)
    }

    /// Computes `L z` and `Wᵀ W L z` of a tall W by two products with W, which lose no digits to its Gram matrix.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn image_and_back(&mut self, z: &Panel<T, S>) -> Result<(Panel<T, S>, Panel<T, S>)> {
        let l = self.space.shape(z).1;
        let (mut between, mut back) = (self.inputs(l)?, self.inputs(l)?);
        self.root()?.apply(z, &mut between)?;
        let mut image = self.image(l)?;
        self.weight.apply(&between, &mut image)?;
        self.weight.apply_adjoint(&image, &mut back)?;
        Ok((between, back))
    }

    /// Computes `y = W x`, for `x` of n rows and `y` of m rows.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn forward(&mut self, x: &Panel<T, S>, y: &mut Panel<T, S>) -> Result<()> {
        if self.wide { self.weight.apply_adjoint(x, y) } else { self.weight.apply(x, y) }
    }

    /// Computes `‖Lᵀ X‖_F²` for a panel of n rows, in f64, and the squared lengths of the columns of `Lᵀ X`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn weighted_norms_squared(&mut self, x: &Panel<T, S>) -> Result<(f64, Vec<f64>)> {
        let l = self.space.shape(x).1;
        let mut weighted = self.inputs(l)?;
        self.root()?.apply_adjoint(x, &mut weighted)?;
        let mut products = Mat::<T>::zeros(l, l);
        self.space.inner(&weighted, &weighted, products.as_mut())?;
        let columns = (0..l).map(|j| products[(j, j)].to_f64()).collect();
        Ok((self.space.dot(&weighted, &weighted)?, columns))
    }

    /// Computes `tr(W S Wᵀ)` for another symmetric S, whose lower triangle `write` writes, with zeros above.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), [`Error::Cancelled`](crate::Error::Cancelled), those of a source of
    /// rows.
    pub fn weighted_trace(&mut self, write: &mut dyn FnMut(MatMut<'_, T>)) -> Result<f64> {
        let n = if self.wide { self.weight.nrows() } else { self.weight.ncols() };
        let mut s = self.inputs(n)?;
        if self.wide {
            self.space.visit(&mut s, Access::Write, write)?;
            let mut g = self.weight.right(self.weight.ncols())?;
            self.weight.congruence(&s, &mut g)?;
            return self.space.trace(&g);
        }
        // ⟨WᵀW, S⟩ = 2 ⟨WᵀW, T⟩ for the half T of S.
        self.space.visit(&mut s, Access::Write, &mut |mut s| {
            write(s.as_mut());
            (0..n).for_each(|j| s[(j, j)] *= T::from_f64(0.5));
        })?;
        let gram = match self.weight_gram.take() {
            Some(gram) => gram,
            None => self.weight.gram()?,
        };
        let dot = self.space.dot(gram.panel(), &s)?;
        self.weight_gram = Some(gram);
        Ok(2.0 * dot)
    }

    /// Returns L, which is made if it was not.
    fn root(&mut self) -> Result<&mut (dyn LinearOperator<T, Space = S> + 'a)> {
        if let Some(make) = self.make.take() {
            let (root, notes) = make()?;
            self.root = Some(root);
            self.notes = notes;
        }
        Ok(self.root.as_deref_mut().expect("a root that could not be made ended the factorization"))
    }

    /// Returns the panel between W and L, with `l` columns.
    fn between(&mut self, l: usize) -> Result<Panel<T, S>> {
        match self.between.take() {
            Some(panel) if self.space.shape(&panel).1 == l => Ok(panel),
            _ => self.inputs(l),
        }
    }

    /// Computes `Lᵀ (WᵀW) L`, or the Gram matrix of `Lᵀ Wᵀ`.
    fn form_gram(&mut self) -> Result<Panel<T, S>> {
        let b = self.weight.ncols();
        let mut g = self.weight.right(b)?;
        if self.wide {
            let mut image = self.weight.left(b)?;
            self.materialize(&mut image)?;
            self.space.multiply_panels(Side::Adjoint, &image, &image, &mut g)?;
        } else {
            let gram = self.weight.gram()?;
            self.root()?.congruence(gram.panel(), &mut g)?;
            self.weight_gram = Some(gram);
        }
        Ok(g)
    }

    /// Computes `W M Wᵀ` of a wide W from M, unless that would lose digits.
    fn form_gram_of_moments(&mut self, write: &mut dyn FnMut(MatMut<'_, T>), diagonal: &[f64]) -> Result<Panel<T, S>> {
        let mut g = self.weight.right(self.weight.ncols())?;
        {
            let mut s = self.weight.left(self.weight.nrows())?;
            self.space.visit(&mut s, Access::Write, write)?;
            self.weight.congruence(&s, &mut g)?;
        }
        // The squared norms of W D z for random signs z, with D the scales of the features.
        let mut z = self.weight.left(SIGNS)?;
        self.space.visit(&mut z, Access::Write, &mut |mut z| {
            for (i, d) in diagonal.iter().enumerate() {
                let [bits, ..] = philox4x32([0; 2], [i as u32, 0, 0, 0]);
                for j in 0..SIGNS {
                    z[(i, j)] = T::from_f64(if bits >> j & 1 == 0 { d.sqrt() } else { -d.sqrt() });
                }
            }
        })?;
        let mut y = self.weight.right(SIGNS)?;
        self.weight.apply_adjoint(&z, &mut y)?;
        if self.space.dot(&y, &y)? / SIGNS as f64 > MOST_CANCELLATION * self.space.trace(&g)? {
            drop(g);
            return self.form_gram();
        }
        Ok(g)
    }
}

impl<T: Scalar, S: Space<T>> LinearOperator<T> for Whitened<'_, T, S> {
    type Space = S;

    fn space(&self) -> &S {
        &self.space
    }

    fn facts(&self) -> Facts {
        let Facts { shape, passes, image, .. } = self.weight.facts();
        let image = if self.wide { Layout::Columns } else { image };
        Facts { shape, norm_squared: self.norm_squared, scale: 1.0, passes, image }
    }

    fn apply(&mut self, x: &Panel<T, S>, y: &mut Panel<T, S>) -> Result<()> {
        let mut between = self.between(self.space.shape(x).1)?;
        if self.wide {
            self.back(x, &mut between)?;
            self.root()?.apply_adjoint(&between, y)?;
        } else {
            self.root()?.apply(x, &mut between)?;
            self.forward(&between, y)?;
        }
        self.between = Some(between);
        Ok(())
    }

    fn apply_adjoint(&mut self, y: &Panel<T, S>, x: &mut Panel<T, S>) -> Result<()> {
        let mut between = self.between(self.space.shape(y).1)?;
        if self.wide {
            self.root()?.apply(y, &mut between)?;
            self.forward(&between, x)?;
        } else {
            self.back(y, &mut between)?;
            self.root()?.apply_adjoint(&between, x)?;
        }
        self.between = Some(between);
        Ok(())
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut Panel<T, S>) -> Result<()> {
        let mut between = self.between(self.space.shape(y).1)?;
        if self.wide {
            self.weight.sketch(omega, &mut between)?;
            self.root()?.apply_adjoint(&between, y)?;
        } else {
            self.root()?.sketch(omega, &mut between)?;
            self.forward(&between, y)?;
        }
        self.between = Some(between);
        Ok(())
    }

    fn materialize(&mut self, y: &mut Panel<T, S>) -> Result<()> {
        let mut between = self.inputs(self.space.shape(y).1)?;
        if self.wide {
            self.weight.materialize(&mut between)?;
            self.root()?.apply_adjoint(&between, y)
        } else {
            self.root()?.materialize(&mut between)?;
            self.forward(&between, y)
        }
    }

    fn gram(&mut self) -> Result<Symmetric<T, S>> {
        match self.gram.take() {
            Some(gram) => Ok(gram),
            None => {
                let g = self.form_gram()?;
                Symmetric::new(&self.space, g)
            }
        }
    }

    /// Applies the congruence of W and then that of L for a tall W. For a wide one S goes through the host, to have
    /// both of its triangles.
    fn congruence(&mut self, s: &Panel<T, S>, g: &mut Panel<T, S>) -> Result<()> {
        let (m, n) = self.facts().shape;
        if !self.wide {
            let mut of_weight = self.inputs(n)?;
            self.weight.congruence(s, &mut of_weight)?;
            return self.root()?.congruence(&of_weight, g);
        }
        let mut both = self.inputs(m)?;
        {
            let mut host = Mat::zeros(m, m);
            self.space.download(s, host.as_mut())?;
            mirror(host.as_mut());
            self.space.visit(&mut both, Access::Write, &mut |mut both| both.copy_from(host.as_ref()))?;
        }
        let (mut whole, mut e) = (self.inputs(n)?, self.inputs(n)?);
        self.materialize(&mut whole)?;
        self.space.multiply_panels(Side::Plain, &both, &whole, &mut e)?;
        self.space.multiply_panels(Side::Adjoint, &whole, &e, g)
    }

    /// Takes a tall W row by row, as `Lᵀ` times some of its rows as columns. For a wide one the whole matrix comes
    /// home.
    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        let (m, n) = self.facts().shape;
        if self.wide {
            let mut host = Mat::zeros(m, n);
            {
                let mut panel = self.weight.left(n)?;
                self.materialize(&mut panel)?;
                self.space.download(&panel, host.as_mut())?;
            }
            return f(0, host.as_ref());
        }
        self.root()?;
        let Whitened { weight, root, space, .. } = self;
        let root = root.as_mut().expect("just made");
        weight.for_each_row_block(&mut |first, rows| {
            for from in (0..rows.nrows()).step_by(STREAMED_ROWS) {
                let count = STREAMED_ROWS.min(rows.nrows() - from);
                let panel = || space.panel(n, count, Layout::Columns);
                let (mut x, mut y, mut host) = (panel()?, panel()?, Mat::zeros(n, count));
                space.visit(&mut x, Access::Write, &mut |mut x| x.copy_from(rows.subrows(from, count).transpose()))?;
                root.apply_adjoint(&x, &mut y)?;
                space.download(&y, host.as_mut())?;
                f(first + from, host.as_ref().transpose())?;
            }
            Ok(())
        })
    }
}

/// A lower triangle that is made in f64 and kept in the arithmetic of its products. Pages above the diagonal are never
/// written, because fresh pages take as long as what is done with them.
#[derive(Debug)]
pub(crate) struct Triangle {
    words: Vec<f64>,
    n: usize,
    dtype: DType,
}

impl Triangle {
    /// Makes a triangle of zeros, kept in `T`.
    pub(crate) fn zeros<T: Scalar>(n: usize, par: Par) -> Self {
        Triangle { words: zeros(Self::bytes::<T>(n) / size_of::<f64>(), par), n, dtype: T::DTYPE }
    }

    /// Returns the bytes of a triangle of this order.
    pub(crate) fn bytes<T: Scalar>(n: usize) -> usize {
        (leading_dimension::<T>(n) * n * size_of::<T>()).next_multiple_of(size_of::<f64>())
    }

    /// Returns the type that the entries are kept in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the matrix, kept in `T`, to be written; what is above the diagonal must stay zero.
    pub(crate) fn as_mut<T: Scalar>(&mut self) -> MatMut<'_, T> {
        assert_eq!(self.dtype, T::DTYPE, "a root is written as what it is kept in");
        let entries = bytemuck::cast_slice_mut::<f64, T>(&mut self.words);
        MatMut::from_column_major_slice_with_stride_mut(entries, self.n, self.n, leading_dimension::<T>(self.n))
    }

    /// Returns the matrix, kept in `T`, to be read.
    pub(crate) fn entries<T: Scalar>(&self) -> MatRef<'_, T> {
        assert_eq!(self.dtype, T::DTYPE, "a root is read as what it is kept in");
        let entries = bytemuck::cast_slice::<f64, T>(&self.words);
        MatRef::from_column_major_slice_with_stride(entries, self.n, self.n, leading_dimension::<T>(self.n))
    }
}

/// The entries of a [`Root`].
pub(crate) enum Entries<T> {
    /// The lower triangle, zeros above, kept in T.
    Lower(Arc<Triangle>),
    /// The diagonal.
    Diagonal(Vec<T>),
}

impl<T: Scalar> Entries<T> {
    /// Returns the whole matrix.
    pub(crate) fn dense(&self) -> Mat<T> {
        match self {
            Entries::Lower(l) => l.entries::<T>().to_owned(),
            Entries::Diagonal(d) => Mat::from_fn(d.len(), d.len(), |i, j| if i == j { d[i] } else { T::zeroed() }),
        }
    }
}

/// A square lower triangular or diagonal matrix on host panels.
pub struct Root<T: Scalar> {
    entries: Entries<T>,
    space: Host,
}

impl<T: Scalar> Root<T> {
    fn new(entries: Entries<T>, space: Host) -> Self {
        Root { entries, space }
    }

    /// Makes the operator of the entries, boxed.
    pub(crate) fn boxed(entries: Entries<T>, space: &Host) -> Box<dyn LinearOperator<T, Space = Host>> {
        Box::new(Root::new(entries, space.clone()))
    }

    fn order(&self) -> usize {
        match &self.entries {
            Entries::Lower(l) => l.n,
            Entries::Diagonal(d) => d.len(),
        }
    }

    fn multiply(&self, transposed: bool, x: MatRef<'_, T>, mut y: MatMut<'_, T>) {
        let (lower, upper) = (BlockStructure::TriangularLower, BlockStructure::TriangularUpper);
        let full = BlockStructure::Rectangular;
        match &self.entries {
            Entries::Lower(l) => {
                let (l, structure) =
                    if transposed { (l.entries::<T>().transpose(), upper) } else { (l.entries::<T>(), lower) };
                triangular::matmul(y, full, Accum::Replace, l, structure, x, full, T::one(), self.space.par());
            }
            Entries::Diagonal(d) => {
                y.copy_from(x);
                for column in y.col_iter_mut() {
                    column.iter_mut().zip(d).for_each(|(y, d)| *y *= *d);
                }
            }
        }
    }
}

impl<T: Scalar> LinearOperator<T> for Root<T> {
    type Space = Host;

    fn space(&self) -> &Host {
        &self.space
    }

    /// Returns the facts of a root, which is no part of the data and has no passes.
    fn facts(&self) -> Facts {
        let square = |x: &T| Element::to_f64(*x) * Element::to_f64(*x);
        let norm_squared = match &self.entries {
            Entries::Lower(l) => l.entries::<T>().col_iter().map(|column| column.iter().map(square).sum::<f64>()).sum(),
            Entries::Diagonal(d) => d.iter().map(square).sum(),
        };
        let n = self.order();
        Facts { shape: (n, n), norm_squared, scale: 1.0, passes: 0, image: Layout::Columns }
    }

    fn apply(&mut self, x: &HostPanel<T>, y: &mut HostPanel<T>) -> Result<()> {
        self.multiply(false, x.as_ref(), y.as_mut());
        Ok(())
    }

    fn apply_adjoint(&mut self, y: &HostPanel<T>, x: &mut HostPanel<T>) -> Result<()> {
        self.multiply(true, y.as_ref(), x.as_mut());
        Ok(())
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut HostPanel<T>) -> Result<()> {
        let par = self.space.par();
        match &self.entries {
            Entries::Lower(l) => omega.apply(l.entries::<T>(), y.as_mut(), par),
            Entries::Diagonal(_) => omega.apply(self.entries.dense().as_ref(), y.as_mut(), par),
        }
    }

    fn gram(&mut self) -> Result<Symmetric<T, Host>> {
        let mut g = HostPanel::zeros(self.order(), self.order(), &self.space);
        symmetric_product(self.entries.dense().transpose(), g.as_mut(), Accum::Replace, self.space.par());
        mirror(g.as_mut());
        Symmetric::new(&self.space, g)
    }

    fn congruence(&mut self, s: &HostPanel<T>, g: &mut HostPanel<T>) -> Result<()> {
        match &self.entries {
            Entries::Lower(l) => congruence(s.as_ref(), l.entries(), true, g.as_mut(), &self.space),
            Entries::Diagonal(d) => {
                let (mut g, s) = (g.as_mut(), s.as_ref());
                for j in 0..d.len() {
                    for i in j..d.len() {
                        g[(i, j)] = d[i] * s[(i, j)] * d[j];
                    }
                }
                mirror(g);
            }
        }
        Ok(())
    }

    fn materialize(&mut self, y: &mut HostPanel<T>) -> Result<()> {
        y.as_mut().copy_from(self.entries.dense());
        Ok(())
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, T>) -> Result<()>) -> Result<()> {
        f(0, self.entries.dense().as_ref())
    }
}
