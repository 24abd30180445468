//! The factors `A ≈ U diag(s) Vᵀ` with their report, and the forms in which they are used.
//!
//! ```text
//!   U  m × k,  s  k (nonincreasing),  Vᵀ  k × n, all row-major         parameters: k (m + n + 1)
//!   y = x Wᵀ   becomes   y = ((x V) s) Uᵀ                              flops per row of x: 2 k (m + n)
//! ```
//!
//! A factorization of rank k holds all of smaller rank, and [`Factors::truncate`] takes one out with its own
//! certificate. Factors whose parts are orthogonal are cut off; those from one look were measured at each rank; those
//! that are best for some inputs are cut in the order of directions that these inputs give, and then made an SVD again:
//!
//! ```text
//!   W' = U_k U_kᵀ W = U_k B,   U_k by calibrated gain,  B = Û S Vᵀ:   U = U_k Û  is kept with Û
//!   the first j rows of B      Û_j S = b S' zᵀ                        W'_j = (U Û_jᵀ b) S' (V z)ᵀ
//! ```
//!
//! Under statistics of the outputs the directions are not orthonormal, and a second small SVD makes them so.

mod pivot;

use faer::prelude::ReborrowMut as _;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::{Error, Result};
use crate::linalg::{fix_signs, gemm};
use crate::parallel::{self, current_par};
use crate::report::{ErrorKind, Report};
use crate::simd::Scalar;
use crate::simd::convert::{convert_back, convert_row};
use crate::small::{self, SmallSvd};
use crate::tensor::{Element, Matrix, TensorRef, with_view};

pub use pivot::Pivoted;

/// The rows of a residual that are formed at a time: their product and the factors of a weight stay in L2.
const RESIDUAL_ROWS: usize = 32;

/// The place of the singular values when the factors become two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Split {
    /// The two layers are `U diag(s)` and `Vᵀ`.
    Left,
    /// The two layers are `U` and `diag(s) Vᵀ`.
    Right,
    /// The two layers are `U diag(√s)` and `diag(√s) Vᵀ`. Both have the same norm, which suits half precision and
    /// training.
    #[default]
    Balanced,
}

impl Split {
    /// Returns what the singular vectors of a side, `Left` or `Right`, are multiplied by; `None` stands for ones.
    pub(crate) fn weights<T: Scalar>(self, side: Split, s: &[T]) -> Option<Vec<T>> {
        match self {
            Split::Balanced => Some(s.iter().map(|&s| T::from_f64(Element::to_f64(s).sqrt())).collect()),
            own => (own == side).then(|| s.to_vec()),
        }
    }
}

/// The facts that [`Factors::truncate`] needs about the factors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Slices<T> {
    /// The factors are a projection of the matrix, and its singular vectors are in order: what is cut off is orthogonal
    /// to the residual.
    Orthogonal,
    /// The relative error was measured at each rank from 1 on, with its standard deviation.
    Measured(Vec<(f64, f64)>),
    /// The factors are a projection on directions that other inputs have put in order.
    Weighted(Weighted<T>),
}

/// Directions of the outputs, the most important first, in terms of U: direction i is column i of `U turnᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weighted<T> {
    /// The orthogonal `k × k` rotation.
    pub(crate) turn: Mat<T>,
    /// The part of `‖W Xᵀ‖²` over the calibration samples X that each direction holds; empty without calibration.
    pub(crate) gains: Vec<f64>,
    /// Set if the factors are an oblique projection, because outputs were weighted, too. Direction i is then column i of
    /// `U across`, and `turn` has the rows of what it multiplies, in terms of `diag(s) Vᵀ`.
    pub(crate) oblique: Option<Oblique<T>>,
}

/// Directions that are not orthonormal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Oblique<T> {
    /// The directions in terms of U, `k × k`.
    pub(crate) across: Mat<T>,
    /// The inner product of each direction's part with the matrix, `⟨W, y_i z_iᵀ⟩ / ‖W‖²`.
    pub(crate) held: Vec<f64>,
}

/// The factors of `A ≈ U diag(s) Vᵀ`, with their report.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors<T> {
    u: Matrix<T>,
    s: Vec<T>,
    vt: Matrix<T>,
    report: Report,
    slices: Slices<T>,
}

impl<T: Scalar> Factors<T> {
    pub(crate) fn new(u: Matrix<T>, s: Vec<T>, vt: Matrix<T>, report: Report, slices: Slices<T>) -> Self {
        debug_assert!(u.ncols() == s.len() && vt.nrows() == s.len());
        Factors { u, s, vt, report, slices }
    }

    /// Returns the left singular vectors, `m × k`, with orthonormal columns.
    pub fn u(&self) -> &Matrix<T> {
        &self.u
    }

    /// Returns the k singular values, nonincreasing.
    pub fn s(&self) -> &[T] {
        &self.s
    }

    /// Returns the right singular vectors, `k × n`, with orthonormal rows.
    pub fn vt(&self) -> &Matrix<T> {
        &self.vt
    }

    /// Returns the report: what was done and how good it is.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Returns what [`truncate`](Self::truncate) needs to know.
    #[cfg(feature = "npy")]
    pub(crate) fn slices(&self) -> &Slices<T> {
        &self.slices
    }

    /// Returns the same factors with what [`truncate`](Self::truncate) needs to know.
    #[cfg(feature = "npy")]
    pub(crate) fn with_slices(self, slices: Slices<T>) -> Self {
        Factors { slices, ..self }
    }

    pub(crate) fn report_mut(&mut self) -> &mut Report {
        &mut self.report
    }

    /// Returns the same factors with another long side: Vᵀ of a wide matrix, else U.
    pub(crate) fn with_long(self, long: Matrix<T>) -> Self {
        match self.is_wide() {
            true => Factors { vt: long, ..self },
            false => Factors { u: long, ..self },
        }
    }

    /// Tells whether the matrix has more columns than rows.
    pub(crate) fn is_wide(&self) -> bool {
        self.report.shape.0 < self.report.shape.1
    }

    /// Refuses the part of the factors that one rank has.
    fn check_whole(&self, what: &'static str) -> Result<()> {
        if (self.u.nrows(), self.vt.ncols()) == self.report.shape {
            return Ok(());
        }
        Err(Error::unsuited(what, "needs whole factors, and these are the part of one rank; gather them first"))
    }

    /// Returns the rank, `k`.
    pub fn rank(&self) -> usize {
        self.s.len()
    }

    /// Returns the factorization of rank `k` that is in this one, with its own certificate. To the accuracy of the
    /// method it is what factoring the matrix at that rank gives. Calibrated factors are cut where the calibration
    /// loses least, and remain the best of their rank for it.
    ///
    /// The certificate is exact where that of the whole is. Single passes have measured each rank, and give the
    /// estimate of that one.
    ///
    /// # Errors
    /// [`Error::Rank`] unless `1 <= k <= rank`.
    pub fn truncate(&self, k: usize) -> Result<Self> {
        if k == 0 || k > self.rank() {
            return Err(Error::Rank { rank: k, max: self.rank() });
        }
        if k == self.rank() {
            return Ok(self.clone());
        }
        let mut report = self.report.clone();
        report.rank = k;
        report.oversample += self.rank() - k;
        if let Slices::Weighted(weighted) = &self.slices {
            self.check_whole("truncate")?;
            return self.cut_by_weight(k, weighted, report);
        }
        let u = Matrix::from_fn(self.u.nrows(), k, |i, j| self.u.row(i)[j]);
        let vt = Matrix::from_vec(self.vt.as_slice()[..k * self.vt.ncols()].to_vec(), k, self.vt.ncols())?;
        let slices = match &self.slices {
            Slices::Measured(errors) => {
                let (error, deviation) = errors[k - 1];
                report.relative_error = error;
                if let ErrorKind::Estimate { std_dev, .. } = &mut report.error_kind {
                    *std_dev = deviation;
                }
                Slices::Measured(errors[..k].to_vec())
            }
            _ => {
                report.lose(self.s[k..].iter().map(|&s| (s.to_f64() / self.report.norm).powi(2)).sum());
                Slices::Orthogonal
            }
        };
        Ok(Factors { u, s: self.s[..k].to_vec(), vt, report, slices })
    }

    /// Cuts to the first `k` weighted directions, and makes them an SVD again.
    fn cut_by_weight(&self, k: usize, weighted: &Weighted<T>, mut report: Report) -> Result<Self> {
        let (m, n, whole) = (self.u.nrows(), self.vt.ncols(), self.rank());
        if let Some(oblique) = &weighted.oblique {
            return self.cut_obliquely(k, weighted, oblique, report);
        }
        let turn = &weighted.turn;
        // The columns are rows of B in terms of Vᵀ. They are relative to the norm, so that no square leaves the range.
        let norm = if self.report.norm > 0.0 { self.report.norm } else { 1.0 };
        let entry = |i: usize, j: usize| turn[(i, j)].to_f64() * (self.s[j].to_f64() / norm);
        let lost = (k..whole).map(|i| (0..whole).map(|j| entry(i, j).powi(2)).sum::<f64>()).sum();
        let SmallSvd { u: z, s, v: b, .. } = small::thin_svd(Mat::from_fn(whole, k, |j, i| entry(i, j)), Par::Seq)?;
        let kept = Mat::from_fn(whole, k, |j, i| turn[(i, j)].to_f64());
        let narrow = |c: Mat<f64>| Mat::<T>::from_fn(whole, k, |i, j| <T as Element>::from_f64(c[(i, j)]));
        let (left, right) = (narrow(&kept * &b), narrow(z));
        let (mut u, mut vt) = (Matrix::zeros(m, k), Matrix::zeros(k, n));
        let par = current_par();
        gemm(u.as_mut(), Accum::Replace, self.u.as_ref(), left.as_ref(), 1.0, par);
        gemm(vt.as_mut(), Accum::Replace, right.transpose(), self.vt.as_ref(), 1.0, par);
        let signs = fix_signs(&mut u, &mut vt, par);
        let spectrum: Vec<f64> = s.iter().map(|s| s * norm).collect();
        let turn = Mat::from_fn(k, k, |i, j| <T as Element>::from_f64(b[(i, j)]) * signs[j]);
        report.lose(lost);
        if let Some(activation) = &mut report.activation {
            let gains: f64 = weighted.gains[k..].iter().sum();
            activation.relative_error = (activation.relative_error.powi(2) + gains).sqrt();
        }
        let s = spectrum.iter().map(|&s| <T as Element>::from_f64(s)).collect();
        report.spectrum = spectrum;
        let gains = weighted.gains.iter().take(k).copied().collect();
        Ok(Factors { u, s, vt, report, slices: Slices::Weighted(Weighted { turn, gains, oblique: None }) })
    }

    /// Cuts to the first `k` of directions that are not orthonormal: `U (across_k turn_k) S Vᵀ`, made an SVD again.
    fn cut_obliquely(
        &self,
        k: usize,
        weighted: &Weighted<T>,
        oblique: &Oblique<T>,
        mut report: Report,
    ) -> Result<Self> {
        let (m, n, whole) = (self.u.nrows(), self.vt.ncols(), self.rank());
        let norm = if self.report.norm > 0.0 { self.report.norm } else { 1.0 };
        let across = Mat::<f64>::from_fn(whole, k, |i, j| oblique.across[(i, j)].to_f64());
        let rows = Mat::<f64>::from_fn(k, whole, |i, j| weighted.turn[(i, j)].to_f64() * (self.s[j].to_f64() / norm));
        // rows = b σ zᵀ, and across b σ = x s yᵀ.
        let SmallSvd { u: z, s: sigma, v: b, .. } = small::thin_svd(rows.transpose().to_owned(), Par::Seq)?;
        let scaled = Mat::<f64>::from_fn(k, k, |i, j| b[(i, j)] * sigma[j]);
        let SmallSvd { u: x, s, v: y, .. } = small::thin_svd(&across * &scaled, Par::Seq)?;
        let narrow = |a: Mat<f64>| Mat::<T>::from_fn(a.nrows(), a.ncols(), |i, j| <T as Element>::from_f64(a[(i, j)]));
        let (mut u, mut vt) = (Matrix::zeros(m, k), Matrix::zeros(k, n));
        let par = current_par();
        gemm(u.as_mut(), Accum::Replace, self.u.as_ref(), narrow(x.clone()).as_ref(), 1.0, par);
        gemm(vt.as_mut(), Accum::Replace, narrow(&z * &y).transpose(), self.vt.as_ref(), 1.0, par);
        let signs = fix_signs(&mut u, &mut vt, par);
        let sign = |j: usize| signs[j].to_f64();
        let left = x.transpose() * &across;
        let right = &scaled * &y;
        let inverse = |j: usize| if s[j] > 0.0 { 1.0 / s[j] } else { 0.0 };
        let across = Mat::from_fn(k, k, |i, j| <T as Element>::from_f64(left[(i, j)] * sign(i)));
        let turn = Mat::from_fn(k, k, |i, j| <T as Element>::from_f64(right[(i, j)] * inverse(j) * sign(j)));
        let held: Vec<f64> = oblique.held[..k].to_vec();
        let share = 1.0 - 2.0 * held.iter().sum::<f64>() + s.iter().map(|s| s * s).sum::<f64>();
        report.relative_error = share.max(0.0).sqrt();
        if let Some(activation) = &mut report.activation {
            let gains: f64 = weighted.gains[k..].iter().sum();
            activation.relative_error = (activation.relative_error.powi(2) + gains).sqrt();
        }
        report.spectrum = s.iter().map(|s| s * norm).collect();
        let s = report.spectrum.iter().map(|&s| <T as Element>::from_f64(s)).collect();
        let gains = weighted.gains[..k].to_vec();
        let slices = Slices::Weighted(Weighted { turn, gains, oblique: Some(Oblique { across, held }) });
        Ok(Factors { u, s, vt, report, slices })
    }

    /// Returns the weights of the two small layers, `up` (`m × k`) and `down` (`k × n`), with
    /// `up · down = U diag(s) Vᵀ`: a sample goes through `y = (x downᵀ) upᵀ`.
    pub fn split(&self, split: Split) -> (Matrix<T>, Matrix<T>) {
        let (mut up, mut down) = (self.u.clone(), self.vt.clone());
        if let Some(left) = split.weights(Split::Left, &self.s) {
            for row in up.as_mut_slice().chunks_exact_mut(self.rank()) {
                row.iter_mut().zip(&left).for_each(|(x, &weight)| *x *= weight);
            }
        }
        if let Some(right) = split.weights(Split::Right, &self.s) {
            let n = down.ncols();
            for (row, &weight) in down.as_mut_slice().chunks_exact_mut(n).zip(&right) {
                row.iter_mut().for_each(|x| *x *= weight);
            }
        }
        (up, down)
    }

    /// Computes `y = x Wᵀ` through the factors: `x` is `samples × n`, `y` is `samples × m`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has two axes and `n` columns.
    pub fn apply(&self, x: &TensorRef<'_>) -> Result<Matrix<T>> {
        let samples = Samples::<T>::new("Factors::apply", x, self.vt.ncols())?;
        let samples = samples.as_ref();
        let mut y = Matrix::zeros(samples.nrows(), self.u.nrows());
        let mut c = Mat::<T>::zeros(samples.nrows(), self.rank());
        self.apply_into(samples, 1.0, c.as_mut(), y.as_mut(), current_par());
        Ok(y)
    }

    /// Computes `y <- scale · ((x V) s) Uᵀ` with `c` (`samples × k`) as scratch; `scale`, a power of two, is applied to
    /// `s`.
    pub(crate) fn apply_into(&self, x: MatRef<'_, T>, scale: f64, mut c: MatMut<'_, T>, y: MatMut<'_, T>, par: Par) {
        gemm(c.as_mut(), Accum::Replace, x, self.vt.as_ref().transpose(), 1.0, par);
        for (j, &s) in self.s.iter().enumerate() {
            let s = T::from_f64(s.to_f64() * scale);
            c.as_mut().col_mut(j).iter_mut().for_each(|x| *x *= s);
        }
        gemm(y, Accum::Replace, c.as_ref(), self.u.as_ref().transpose(), 1.0, par);
    }

    /// Computes `W − U diag(s) Vᵀ` in one pass, in elements of type `E`, without a copy of either term: what PiSSA and
    /// SVDQuant keep of a weight beside its factors. The product and the difference are formed in `T` and rounded to
    /// nearest, ties to even.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `w` is the `m × n` matrix of the factors' shape.
    pub fn residual<E: Element>(&self, w: &TensorRef<'_>) -> Result<Matrix<E>> {
        let (view, (m, n)) = (w.view()?, (self.u.nrows(), self.vt.ncols()));
        if (view.nrows(), view.ncols()) != (m, n) {
            let found = format_args!("{}×{}", view.nrows(), view.ncols());
            return Err(Error::shape("Factors::residual", format_args!("a matrix of {m}×{n}"), found));
        }
        let mut residual = Matrix::<E>::zeros(m, n);
        let blocks = residual.as_mut_slice().chunks_mut(RESIDUAL_ROWS * n).enumerate().collect();
        let scratch = || (Mat::<T>::zeros(RESIDUAL_ROWS, self.rank()), Matrix::<T>::zeros(RESIDUAL_ROWS, n));
        parallel::for_each_with(current_par(), blocks, scratch, |(left, product), (i, block): (usize, &mut [E])| {
            let (first, rows) = (i * RESIDUAL_ROWS, block.len() / n);
            for i in 0..rows {
                let weighted = self.u.row(first + i).iter().zip(&self.s).map(|(&u, &s)| u * s);
                weighted.enumerate().for_each(|(j, x)| left[(i, j)] = x);
            }
            let mut product = product.as_mut().subrows_mut(0, rows);
            gemm(product.rb_mut(), Accum::Replace, left.as_ref().subrows(0, rows), self.vt.as_ref(), 1.0, Par::Seq);
            let mut line = vec![T::zeroed(); n];
            with_view!(view, w => {
                let mut row = Vec::new();
                for (i, to) in block.chunks_exact_mut(n).enumerate() {
                convert_row(w.row(first + i), &mut row, &mut line, 1.0);
                line.iter_mut().zip(product.as_ref().row(i).iter()).for_each(|(x, &p)| *x -= p);
                convert_back(&line, to, 1.0);
                }
            });
        });
        Ok(residual)
    }

    /// Returns the bytes of the blocks of [`residual`](Self::residual) on so many threads, beside what it returns.
    #[doc(hidden)]
    pub fn residual_bytes(n: usize, k: usize, threads: usize) -> usize {
        let lines = n * (2 * size_of::<f64>() + size_of::<T>());
        threads * (RESIDUAL_ROWS * (k.next_multiple_of(16) + n) * size_of::<T>() + lines)
    }

    /// Returns the triplets `range.start..range.end`, in their order: a part of the spectrum, such as the principal or
    /// the minor ones (LoRA-GA, MiCA). The report is that of the product of these triplets as an approximation of the
    /// matrix. The calibrated factors of a weight are cut by their singular values, as plain ones are.
    ///
    /// # Errors
    /// [`Error::Rank`] for an empty range, or one beyond the rank; [`Error::Option`] for factors under output
    /// statistics, whose parts are not orthogonal to each other.
    pub fn range(&self, range: std::ops::Range<usize>) -> Result<Self> {
        if range.is_empty() || range.end > self.rank() {
            return Err(Error::Rank { rank: range.end.max(range.start), max: self.rank() });
        }
        if matches!(&self.slices, Slices::Weighted(weighted) if weighted.oblique.is_some()) {
            let why = "is of factors whose parts are not orthogonal, as output statistics weighted them; truncate them";
            return Err(Error::unsuited("range", why));
        }
        let (k, n) = (range.len(), self.vt.ncols());
        let u = Matrix::from_fn(self.u.nrows(), k, |i, j| self.u.row(i)[range.start + j]);
        let vt = Matrix::from_vec(self.vt.as_slice()[range.start * n..range.end * n].to_vec(), k, n)?;
        let mut report = self.report.clone();
        report.rank = k;
        report.activation = None;
        let outside = self.s[..range.start].iter().chain(&self.s[range.end..]);
        if self.report.norm > 0.0 {
            report.lose(outside.map(|&s| (s.to_f64() / self.report.norm).powi(2)).sum());
        }
        report.spectrum = self.s[range.clone()].iter().map(|&s| Element::to_f64(s)).collect();
        Ok(Factors { u, s: self.s[range].to_vec(), vt, report, slices: Slices::Orthogonal })
    }

    /// Computes what a loss gains to first order from each of the k directions, in the order in which
    /// [`truncate`](Self::truncate) keeps them: `⟨Γ, T_i⟩` for the gradient `Γ = ∂loss/∂W` and the part `T_i` of the
    /// product that direction i adds. That is `∂loss/∂t_i` at `t = 1` of the loss of `Σ t_i T_i`; for plain factors
    /// `T_i = σ_i u_i v_iᵀ`, and `saliency / σ_i` is `∂loss/∂σ_i = u_iᵀ Γ v_i`. It takes one product of Γ with k columns.
    ///
    /// Its negative is the first-order loss of leaving a direction out: give it, clipped at 0, to
    /// [`Layer::of_savings`](crate::rank::Layer::of_savings). Source: ZS-SVD (arXiv 2602.02848).
    ///
    /// # Errors
    /// [`Error::Shape`] unless `gradient` is a matrix of the factors' shape, `m × n`.
    pub fn saliency(&self, gradient: &TensorRef<'_>) -> Result<Vec<f64>> {
        let (m, n, k) = (self.u.nrows(), self.vt.ncols(), self.rank());
        let view = gradient.view()?;
        if (view.nrows(), view.ncols()) != (m, n) {
            let found = format_args!("{}×{}", view.nrows(), view.ncols());
            return Err(Error::shape("Factors::saliency", format_args!("a gradient of {m}×{n}"), found));
        }
        // C = Uᵀ Γ V, k × k.
        let gradient = Samples::<T>::new("Factors::saliency", gradient, n)?;
        let (mut right, mut c) = (Mat::<T>::zeros(m, k), Mat::<T>::zeros(k, k));
        let par = current_par();
        gemm(right.as_mut(), Accum::Replace, gradient.as_ref(), self.vt.as_ref().transpose(), 1.0, par);
        gemm(c.as_mut(), Accum::Replace, self.u.as_ref().transpose(), right.as_ref(), 1.0, par);
        let entry = |i: usize, j: usize| c[(i, j)].to_f64() * self.s[j].to_f64();
        let Slices::Weighted(weighted) = &self.slices else { return Ok((0..k).map(|i| entry(i, i)).collect()) };
        // Part i is U a_i b_iᵀ diag(s) Vᵀ, with a_i column i of `across` and b_i row i of `turn`.
        let across = |p: usize, i: usize| match &weighted.oblique {
            Some(oblique) => oblique.across[(p, i)].to_f64(),
            None => weighted.turn[(i, p)].to_f64(),
        };
        let part = |i: usize| {
            let row = |p: usize| (0..k).map(|q| entry(p, q) * weighted.turn[(i, q)].to_f64()).sum::<f64>();
            (0..k).map(|p| across(p, i) * row(p)).sum::<f64>()
        };
        Ok((0..k).map(part).collect())
    }

    /// Returns `U`, `s`, `Vᵀ` and the report, without a copy.
    pub fn into_parts(self) -> (Matrix<T>, Vec<T>, Matrix<T>, Report) {
        (self.u, self.s, self.vt, self.report)
    }

    /// Makes factors of their parts, as [`into_parts`](Self::into_parts) returned them: after they were stored, or were
    /// changed in ways that the report still describes.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `u` is `m × k`, `vt` is `k × n` and the report is of that shape and rank; [`Error::Option`]
    /// unless `s` is finite, nonnegative and nonincreasing.
    pub fn from_parts(u: Matrix<T>, s: Vec<T>, vt: Matrix<T>, report: Report) -> Result<Self> {
        let ((m, n), k) = (report.shape, report.rank);
        if (u.nrows(), u.ncols(), s.len(), vt.nrows(), vt.ncols()) != (m, k, k, k, n) {
            let (a, b) = ((u.nrows(), u.ncols()), (vt.nrows(), vt.ncols()));
            let got = format_args!("{}×{}, {} values, {}×{}", a.0, a.1, s.len(), b.0, b.1);
            return Err(Error::shape("Factors::from_parts", format_args!("{m}×{k}, {k} values, {k}×{n}"), got));
        }
        let sound = |s: &T| Element::to_f64(*s).is_finite() && Element::to_f64(*s) >= 0.0;
        if !s.iter().all(sound) || !s.is_sorted_by(|a, b| Element::to_f64(*a) >= Element::to_f64(*b)) {
            return Err(Error::unsuited(
                "s",
                "has values that are not finite, negative or increasing; give those of an SVD",
            ));
        }
        Ok(Factors { u, s, vt, report, slices: Slices::Orthogonal })
    }

    /// Computes `U diag(s) Vᵀ`, `m × n`.
    pub fn reconstruct(&self) -> Matrix<T> {
        let (up, _) = self.split(Split::Left);
        let mut w = Matrix::zeros(self.u.nrows(), self.vt.ncols());
        gemm(w.as_mut(), Accum::Replace, up.as_ref(), self.vt.as_ref(), 1.0, current_par());
        w
    }
}

/// Samples, or another matrix, in arithmetic `T`: as they are, or converted.
pub(crate) enum Samples<'a, T> {
    Given(MatRef<'a, T>),
    Converted(Matrix<T>),
}

impl<'a, T: Scalar> Samples<'a, T> {
    /// Takes samples of `n` features.
    pub(crate) fn new(op: &'static str, x: &TensorRef<'a>, n: usize) -> Result<Self> {
        let view = x.view()?;
        if view.ncols() != n {
            return Err(Error::shape(op, format_args!("samples of {n} features"), view.ncols()));
        }
        if let Some(given) = view.typed::<T>() {
            return Ok(Samples::Given(given));
        }
        let mut samples = Matrix::<T>::zeros(view.nrows(), n);
        with_view!(view, a => {
            let rows = samples.as_mut_slice().chunks_exact_mut(n).enumerate().collect();
            parallel::for_each_with(current_par(), rows, Vec::new, |line, (i, row): (usize, &mut [T])| {
                convert_row(a.row(i), line, row, 1.0);
            });
        });
        Ok(Samples::Converted(samples))
    }

    /// Returns the matrix, copied if it is the caller's.
    pub(crate) fn into_matrix(self) -> Matrix<T> {
        match self {
            Samples::Given(given) => Matrix::from_fn(given.nrows(), given.ncols(), |i, j| given[(i, j)]),
            Samples::Converted(samples) => samples,
        }
    }

    fn as_ref(&self) -> MatRef<'_, T> {
        match self {
            Samples::Given(given) => *given,
            Samples::Converted(samples) => samples.as_ref(),
        }
    }
}
