//! Rayleigh-Ritz: singular triplets from an orthonormal panel and its image.
//!
//! ```text
//!   right basis  V (n × l):  B = A V,   B = Q R,  R = Û Σ V̂ᵀ   ->   A ≈ (Q Û) Σ (V V̂)ᵀ  = A V Vᵀ
//!   left basis   P (m × l):  B = AᵀP,   B = Q R,  R = Û Σ V̂ᵀ   ->   A ≈ (P V̂) Σ (Q Û)ᵀ  = P PᵀA
//!
//!   or, for f32:             BᵀB = V̂ Σ² V̂ᵀ in f64,  Q Û = B (V̂ Σ⁻¹)
//! ```
//!
//! The panels stay where they are, uncombined; [`Triplets::bring_home`] forms only the columns that are kept.
//!
//! **Why the Gram matrix.** In twice the precision it has all that a QR of B would tell: its eigenvalues are exact to
//! `eps64 σ_1²`, so that σ down to `1e-6 σ_1` are as good as those of R. The product `B (V̂ Σ⁻¹)` is rounded in f32,
//! and column j of U is off by `eps σ_1 / σ_j`, in random directions. Down to [`MIN_DECAY`]` · σ_1` that is no more than
//! what other steps do to U; a smaller σ_k sends B to QR and an SVD of R, which keep U orthonormal to rounding whatever
//! the spectrum. `m l²` flops in f64 and an eigendecomposition stand against `4 m l²` in f32 and an SVD.
//!
//! **Memory.** Only the values tell which way it goes, and the peak is promised before they are seen. So the way by QR
//! takes what the other one takes: scratch is freed before the eigensolver asks for its own, QR is [in little
//! memory](Effort::LittleMemory), and the SVD of R keeps no copy of R beside its solver. Only R itself comes on top
//! (`benches/NOTES.md`).

use std::ops::ControlFlow;

use faer::dyn_stack::StackReq;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::Result;
use crate::linalg::{column, column_mut};
use crate::qr::{Algorithm, Orthonormalization};
use crate::simd::Scalar;
use crate::small::{self, SmallSvd};
use crate::space::{Access, Effort, HostPanel, Layout, Panel, Space};

/// The part of `σ_1` above which `σ_k` has to be for singular vectors to come from the Gram matrix of the image.
pub(super) const MIN_DECAY: f64 = 1.0 / 256.0;

/// Singular vectors, one column each.
pub(super) enum Vectors<T, P> {
    /// The vectors themselves, as a panel.
    Panel(P),
    /// The vectors on the host, because the basis was the identity.
    Small(Mat<T>),
    /// An orthonormal panel times a small orthogonal matrix, or the panel of an image times what makes it orthonormal.
    Combined(P, Mat<T>),
}

impl<T: Scalar, P> Vectors<T, P> {
    /// Forms the first `k` vectors in the memory of the panel, the rest of which is given back where that can be.
    pub(super) fn reduced<S: Space<T, Panel = P>>(self, space: &S, k: usize) -> Result<Self> {
        Ok(match self {
            Vectors::Combined(mut panel, c) => {
                space.multiply_in_place(&mut panel, c.as_ref().subcols(0, k))?;
                Vectors::Panel(panel)
            }
            vectors => vectors,
        })
    }

    /// Returns the vectors as a panel times coefficients. `make` makes a panel of so many columns for those on the host.
    pub(super) fn into_panel<S: Space<T, Panel = P>>(
        self,
        space: &S,
        make: impl FnOnce(usize) -> Result<P>,
    ) -> Result<(P, Mat<T>)> {
        let panel = match self {
            Vectors::Combined(panel, coefficients) => return Ok((panel, coefficients)),
            Vectors::Panel(panel) => panel,
            Vectors::Small(vectors) => {
                let mut panel = make(vectors.ncols())?;
                space.visit(&mut panel, Access::Write, &mut |mut panel| panel.copy_from(vectors.as_ref()))?;
                panel
            }
        };
        let k = space.shape(&panel).1;
        Ok((panel, Mat::identity(k, k)))
    }

    /// Forms the first `k` vectors as a panel.
    pub(super) fn formed<S: Space<T, Panel = P>>(self, space: &S, k: usize) -> Result<P> {
        let product = |panel: &P, c: MatRef<'_, T>| {
            let mut product = space.panel(space.shape(panel).0, k, Layout::Rows)?;
            space.multiply(&mut product, Accum::Replace, panel, c, T::one())?;
            Ok(product)
        };
        match self {
            Vectors::Panel(panel) => match space.shape(&panel).1 {
                l if l == k => Ok(panel),
                l => product(&panel, Mat::identity(l, k).as_ref()),
            },
            Vectors::Combined(panel, c) => product(&panel, c.as_ref().subcols(0, k)),
            Vectors::Small(c) => {
                let mut panel = space.panel(c.nrows(), k, Layout::Rows)?;
                let columns = c.as_ref().subcols(0, k);
                space.visit(&mut panel, Access::Write, &mut |mut panel| panel.copy_from(columns))?;
                Ok(panel)
            }
        }
    }

    /// Copies the first `k` vectors into `dst`, of any layout.
    pub(super) fn bring_home<S: Space<T, Panel = P>>(&self, space: &S, k: usize, mut dst: MatMut<'_, T>) -> Result<()> {
        match self {
            Vectors::Panel(panel) => match space.shape(panel).1 {
                l if l == k => space.download(panel, dst),
                l => space.multiply_to_host(panel, Mat::identity(l, k).as_ref(), dst),
            },
            Vectors::Small(c) => {
                dst.copy_from(c.as_ref().subcols(0, k));
                Ok(())
            }
            Vectors::Combined(panel, c) => space.multiply_to_host(panel, c.as_ref().subcols(0, k), dst),
        }
    }
}

/// All `l` singular triplets of the projected operator.
pub(super) struct Triplets<T: Scalar, S: Space<T>> {
    pub(super) left: Vectors<T, Panel<T, S>>,
    pub(super) s: Vec<T>,
    /// The value of `‖image‖_F²` in f64: what the subspace captures of `‖A‖_F²`.
    pub(super) captured: f64,
    pub(super) right: Vectors<T, Panel<T, S>>,
    /// Whether the triplets took a QR of the image.
    pub(super) by_qr: bool,
}

impl<T: Scalar, S: Space<T>> Triplets<T, S> {
    /// Computes the triplets from `image = A · basis`; `None` as basis stands for the identity. Returns the rank that
    /// `choose` makes of the singular values and `‖image‖_F²`, too, and notes.
    pub(super) fn from_right(
        space: &S,
        basis: Option<Panel<T, S>>,
        image: Panel<T, S>,
        sparing: bool,
        choose: impl Fn(&[T], f64) -> usize,
        par: Par,
    ) -> Result<(Self, usize, Vec<String>)> {
        let Decomposition { image: left, s, captured, basis: v, rank, by_qr, notes } =
            decompose(space, image, sparing, choose, par, || Ok(()))?;
        let right = match basis {
            Some(basis) => Vectors::Combined(basis, v),
            None => Vectors::Small(v),
        };
        Ok((Triplets { left, s, captured, right, by_qr }, rank, notes))
    }

    /// Moves the last `k` triplets before the others.
    pub(super) fn bring_last_first(&mut self, k: usize) {
        let l = self.s.len();
        self.s.rotate_right(k);
        for vectors in [&mut self.left, &mut self.right] {
            if let Vectors::Small(c) | Vectors::Combined(_, c) = vectors {
                *c = Mat::from_fn(c.nrows(), l, |i, j| c[(i, (j + l - k) % l)]);
            }
        }
    }

    /// Computes the triplets from `image = Aᵀ · basis`.
    pub(super) fn from_left(
        space: &S,
        basis: Panel<T, S>,
        image: Panel<T, S>,
        sparing: bool,
        choose: impl Fn(&[T], f64) -> usize,
        par: Par,
    ) -> Result<(Self, usize, Vec<String>)> {
        let Decomposition { image: right, s, captured, basis: v, rank, by_qr, notes } =
            decompose(space, image, sparing, choose, par, || Ok(()))?;
        Ok((Triplets { left: Vectors::Combined(basis, v), s, captured, right, by_qr }, rank, notes))
    }
}

/// The SVD of an image.
pub(super) struct Decomposition<T, P> {
    /// The singular vectors on the side of the image.
    pub(super) image: Vectors<T, P>,
    pub(super) s: Vec<T>,
    /// The value of `‖image‖_F²`.
    pub(super) captured: f64,
    /// The singular vectors on the side of the basis, as combinations of its columns.
    pub(super) basis: Mat<T>,
    pub(super) rank: usize,
    pub(super) by_qr: bool,
    pub(super) notes: Vec<String>,
}

/// A decomposition, or the image if the way that was asked for is not good enough.
pub(super) type OrImage<T, S> = ControlFlow<Decomposition<T, Panel<T, S>>, Panel<T, S>>;

/// Computes the SVD of an image. `sparing` keeps to little scratch, where the route that asks has taken little.
/// `meanwhile` is called in the time in which the eigensolver has one thread, and not at all where there is no
/// eigensolver.
pub(super) fn decompose<T: Scalar, S: Space<T>>(
    space: &S,
    image: Panel<T, S>,
    sparing: bool,
    choose: impl Fn(&[T], f64) -> usize,
    par: Par,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Decomposition<T, Panel<T, S>>> {
    let by_gram_first = may_go_by_gram::<T>(space.shape(&image));
    let image = match by_gram_first {
        true => match by_gram(space, image, &choose, par, meanwhile)? {
            ControlFlow::Break(found) => return Ok(found),
            ControlFlow::Continue(image) => image,
        },
        false => image,
    };
    // What is rarely needed must not decide how much memory is needed.
    by_qr(space, image, sparing || by_gram_first, choose, par)
}

/// Computes the SVD of an image by its Gram matrix, or returns the image where that is not clear enough. It is for
/// callers who have another way then.
pub(super) fn decompose_clear<T: Scalar, S: Space<T>>(
    space: &S,
    image: Panel<T, S>,
    choose: impl Fn(&[T], f64) -> usize,
    par: Par,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<OrImage<T, S>> {
    if may_go_by_gram::<T>(space.shape(&image)) {
        return by_gram(space, image, choose, par, meanwhile);
    }
    by_qr(space, image, true, choose, par).map(ControlFlow::Break)
}

/// Decomposes an image by its QR and the SVD of R, which loses no digits.
fn by_qr<T: Scalar, S: Space<T>>(
    space: &S,
    mut image: Panel<T, S>,
    sparing: bool,
    choose: impl Fn(&[T], f64) -> usize,
    par: Par,
) -> Result<Decomposition<T, Panel<T, S>>> {
    let l = space.shape(&image).1;
    let captured = space.dot(&image, &image)?;
    let mut r = Mat::zeros(l, l);
    let effort = if sparing { Effort::LittleMemory } else { Effort::Fast };
    let how = space.orthonormalize(&mut image, Some(r.as_mut()), effort)?;
    space.trim();
    let SmallSvd { u, s, v, remedy } = small::svd(r.as_ref(), par);
    let mut notes: Vec<String> = remedy.map(str::to_owned).into_iter().collect();
    note_orthonormalization(&mut notes, "QR of the projected matrix", &how);
    let rank = choose(&s, captured);
    Ok(Decomposition { image: Vectors::Combined(image, u), s, captured, basis: v, rank, by_qr: true, notes })
}

/// Tells whether the Gram matrix of an image of this shape can be of a higher precision than the image.
fn may_go_by_gram<T: Scalar>((rows, l): (usize, usize)) -> bool {
    size_of::<T>() == size_of::<f32>() && l < rows
}

/// Returns the bytes alive at the fullest moment of [`decompose`] of a panel in memory, beside the image: the larger of
/// the usual way and of that by QR, after which R and what comes of it remain. Scratch that was kept may be used, and
/// is gone at the end.
pub(super) fn decompose_bytes<T: Scalar>(rows: usize, l: usize, sparing: bool, kept: usize) -> usize {
    let small = small::square_bytes::<T>(l);
    let bytes = |scratch: StackReq| scratch.unaligned_bytes_required().max(kept);
    let by_qr = |scratch: StackReq| (small + bytes(scratch)).max(small + small::svd_bytes::<T>(l));
    if !sparing && !may_go_by_gram::<T>((rows, l)) {
        return by_qr(HostPanel::<T>::orthonormalize_scratch(rows, l, Par::Seq));
    }
    let by_qr = by_qr(HostPanel::<T>::orthonormalize_sparingly_scratch(rows, l, true, Par::Seq));
    if !may_go_by_gram::<T>((rows, l)) {
        return by_qr;
    }
    let (before, eigen) = by_gram_bytes::<T>(rows, l, kept);
    before.max(eigen).max(by_qr)
}

/// Returns the bytes of the way by the Gram matrix alone: until the eigensolver has what it needs, and from then on.
fn by_gram_bytes<T: Scalar>(rows: usize, l: usize, kept: usize) -> (usize, usize) {
    let (small, wide) = (small::square_bytes::<T>(l), small::square_bytes::<f64>(l));
    let before = wide + HostPanel::<T>::gram_scratch(rows, l).unaligned_bytes_required().max(kept);
    (before, wide + small::symmetric_eigen_bytes::<f64>(l).max(wide + 2 * small))
}

/// Returns the bytes of [`decompose_clear`]: before it calls `meanwhile`, and from then on.
pub(super) fn decompose_clear_bytes<T: Scalar>(rows: usize, l: usize) -> (usize, usize) {
    match may_go_by_gram::<T>((rows, l)) {
        true => by_gram_bytes::<T>(rows, l, 0),
        false => (decompose_bytes::<T>(rows, l, true, 0), 0),
    }
}

/// Computes the SVD from the eigenvectors of the image's Gram matrix, unless they are not good enough.
fn by_gram<T: Scalar, S: Space<T>>(
    space: &S,
    image: Panel<T, S>,
    choose: impl Fn(&[T], f64) -> usize,
    par: Par,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<OrImage<T, S>> {
    let l = space.shape(&image).1;
    let mut h = Mat::<f64>::zeros(l, l);
    space.gram(&image, h.as_mut())?;
    space.trim();
    let captured = (0..l).map(|j| h[(j, j)]).sum::<f64>();
    let unit = small::normalize(h.as_mut());
    let small::Eigen { values: mut squares, vectors, remedy } =
        symmetric_eigen_beside(space, h.as_ref(), par, meanwhile)?;
    squares.iter_mut().for_each(|x| *x *= unit);
    // The order is nonincreasing from here on.
    squares.reverse();
    let s: Vec<T> = squares.iter().map(|&x| T::from_f64(x.max(0.0).sqrt())).collect();
    let rank = choose(&s, captured);
    if squares[rank - 1] <= MIN_DECAY * MIN_DECAY * squares[0] {
        return Ok(ControlFlow::Continue(image));
    }
    let (mut basis, mut divided) = (Mat::zeros(l, l), Mat::zeros(l, l));
    for j in 0..l {
        let vector = column(vectors.as_ref(), l - 1 - j);
        column_mut(basis.as_mut(), j).iter_mut().zip(vector).for_each(|(to, x)| *to = T::from_f64(*x));
        // Columns that are not kept are not used.
        if j < rank {
            let length = 1.0 / squares[j].sqrt();
            column_mut(divided.as_mut(), j).iter_mut().zip(vector).for_each(|(to, x)| *to = T::from_f64(*x * length));
        }
    }
    let (image, notes) = (Vectors::Combined(image, divided), remedy.map(str::to_owned).into_iter().collect());
    Ok(ControlFlow::Break(Decomposition { image, s, captured, basis, rank, by_qr: false, notes }))
}

/// Computes eigenvalues and eigenvectors of the symmetric `g`, by whatever is fastest in `space`. `meanwhile` runs
/// beside a thread of the host.
pub(super) fn symmetric_eigen_beside<T: Scalar, S: Space<T>>(
    space: &S,
    g: MatRef<'_, f64>,
    par: Par,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<small::Eigen<f64>> {
    let found = space.symmetric_eigen(g)?.filter(|(values, vectors)| small::is_eigen(g, values, vectors.as_ref()));
    match found {
        Some((values, vectors)) => {
            meanwhile()?;
            Ok(small::Eigen { values, vectors, remedy: None })
        }
        None => crate::parallel::beside(par, || small::symmetric_eigen(g), meanwhile),
    }
}

/// Adds a note for the report on an orthonormalization that was not routine.
fn note_orthonormalization(notes: &mut Vec<String>, what: &str, o: &Orthonormalization) {
    if o.algorithm == Algorithm::Householder {
        notes.push(format!("{what}: dependent columns, Householder reflections"));
    }
}
