//! Measures how well factors serve the data they will see: the outputs `y = x Wᵀ` against `y' = x W'ᵀ`.
//!
//! ```text
//!   cosine          ⟨Y, Y'⟩ / (‖Y‖ ‖Y'‖)        over all samples and outputs
//!   relative error  ‖Y − Y'‖_F / ‖Y‖_F
//!   score           (cosine + 1) / 2
//! ```
//!
//! Samples go through in blocks; `W' = U diag(s) Vᵀ` is never formed, `W` never copied, and all sums are in f64.
//!
//! All samples together are known from their second moments, `Σ ⟨W x, W' x⟩ = tr(W G W'ᵀ)`: [`expected`] takes those
//! that [`Calibration`] has, at the price of n samples, whatever their count was. It works in f64 throughout, also on
//! factors in f32, and on `W − W'` itself: an error below the rounding of f32 products is seen as it is. (Single
//! samples, and quantiles over them, need the samples.)

use std::sync::Arc;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use crate::calibration::Calibration;
use crate::calibration::Moments;
use crate::compiled::same_ref;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::linalg::{column, column_mut, mirror};
use crate::operator::{Dense, LinearOperator, Pass};
use crate::parallel::{self, current_par};
use crate::simd::Scalar;
use crate::simd::convert::convert_row;
use crate::simd::reduce::agreement;
use crate::space::HostPanel;
use crate::tensor::{DType, Element, MatView, TensorRef, with_view};

/// The agreement of the outputs of a layer before and after.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// The cosine between all outputs before and all outputs after; 1 if both are zero.
    pub cosine: f64,
    /// The relative error, `‖Y − Y'‖_F / ‖Y‖_F`; 0 if both are zero.
    pub relative_error: f64,
}

impl Activation {
    /// Returns `(cosine + 1) / 2`, from 0 to 1.
    pub fn score(&self) -> f64 {
        (self.cosine + 1.0) / 2.0
    }
}

/// The samples of a block: outputs of a 11008-wide layer in f32 take 11 MiB. Blocks of samples that are a multiple of
/// this give the same bits as all samples at once.
#[doc(hidden)]
pub const BLOCK: usize = 256;

/// The elements of a block of rows of a weight in [`expected`].
const EXPECTED_ELEMENTS: usize = 1 << 18;

/// Compares `x Wᵀ` with `x W'ᵀ`; rows of `x` are samples.
///
/// # Errors
/// [`Error::Shape`] unless `w` is the shape that `f` was made from and `x` has as many columns;
/// [`Error::NotFinite`] for NaN or infinities in either.
pub fn activation<T: Scalar>(w: &TensorRef<'_>, f: &Factors<T>, x: &TensorRef<'_>) -> Result<Activation> {
    match T::DTYPE {
        DType::F64 => activation_f64(w, same_ref(f), x),
        _ => activation_f32(w, same_ref(f), x),
    }
}

#[inline(never)]
fn activation_f64(w: &TensorRef<'_>, f: &Factors<f64>, x: &TensorRef<'_>) -> Result<Activation> {
    activation_in(w, f, x)
}

#[inline(never)]
fn activation_f32(w: &TensorRef<'_>, f: &Factors<f32>, x: &TensorRef<'_>) -> Result<Activation> {
    activation_in(w, f, x)
}

fn activation_in<T: Scalar>(w: &TensorRef<'_>, f: &Factors<T>, x: &TensorRef<'_>) -> Result<Activation> {
    let mut total = Sums::default();
    let mut weight = weight(w.view()?, f)?;
    let x = x.view()?;
    let scale = sample_scale::<T>(x, f)?;
    compare(&mut weight, f, x, scale, |sample| total = total + sample)?;
    Ok(total.activation())
}

/// Compares `x Wᵀ` with `x W'ᵀ` for each sample, and for all of them together; rows of `x` are samples.
///
/// # Errors
/// [`Error::Shape`] and [`Error::NotFinite`], in the cases of [`activation`].
pub fn distribution<T: Scalar>(w: &TensorRef<'_>, f: &Factors<T>, x: &TensorRef<'_>) -> Result<Distribution> {
    match T::DTYPE {
        DType::F64 => distribution_f64(w, same_ref(f), x),
        _ => distribution_f32(w, same_ref(f), x),
    }
}

#[inline(never)]
fn distribution_f64(w: &TensorRef<'_>, f: &Factors<f64>, x: &TensorRef<'_>) -> Result<Distribution> {
    distribution_in(w, f, x)
}

#[inline(never)]
fn distribution_f32(w: &TensorRef<'_>, f: &Factors<f32>, x: &TensorRef<'_>) -> Result<Distribution> {
    distribution_in(w, f, x)
}

fn distribution_in<T: Scalar>(w: &TensorRef<'_>, f: &Factors<T>, x: &TensorRef<'_>) -> Result<Distribution> {
    let mut comparison = Comparison::new(w, f)?;
    comparison.update(x)?;
    Ok(comparison.distribution())
}

/// A comparison like [`distribution`] of samples that come in blocks.
pub struct Comparison<'a, T: Scalar> {
    weight: Dense<'a, T>,
    factors: &'a Factors<T>,
    total: Sums,
    /// The scale of the outputs in the total: the least power of two that a block so far has needed.
    scale: f64,
    samples: Vec<Activation>,
}

impl<'a, T: Scalar> Comparison<'a, T> {
    /// Starts a comparison without samples.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `w` is the shape that `f` was made from; [`Error::NotFinite`] for NaN or infinities in
    /// it.
    pub fn new(w: &TensorRef<'a>, f: &'a Factors<T>) -> Result<Self> {
        let weight = weight(w.view()?, f)?;
        Ok(Comparison { weight, factors: f, total: Sums::default(), scale: f64::INFINITY, samples: Vec::new() })
    }

    /// Adds samples, the rows of `x`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has as many columns as the weight; [`Error::NotFinite`] for NaN or infinities in it.
    pub fn update(&mut self, x: &TensorRef<'_>) -> Result<()> {
        let x = x.view()?;
        let scale = sample_scale::<T>(x, self.factors)?;
        let least = self.scale.min(scale);
        if self.scale.is_finite() && least < self.scale {
            self.total = self.total.times(least / self.scale);
        }
        self.scale = least;
        let Comparison { weight, factors, total, samples, .. } = self;
        samples.reserve(x.nrows());
        compare(weight, factors, x, scale, |sample| {
            *total = *total + sample.times(least / scale);
            samples.push(sample.activation());
        })
    }

    /// Returns the agreement on all samples that were added.
    pub fn distribution(self) -> Distribution {
        let samples = self.samples;
        let sorted = |of: fn(&Activation) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (cosines, relative_errors) = (sorted(|a| a.cosine), sorted(|a| a.relative_error));
        Distribution { total: self.total.activation(), samples, cosines, relative_errors }
    }

    /// Returns the bytes that the comparison of factors of rank k takes for `samples` samples, besides the weight, the
    /// factors and the samples.
    #[doc(hidden)]
    pub fn bytes((m, n): (usize, usize), storage: DType, k: usize, samples: usize) -> usize {
        let rows = BLOCK.min(samples);
        let panels = HostPanel::<T>::bytes(n, rows) + HostPanel::<T>::bytes(m, rows) + (m + k) * rows * size_of::<T>();
        let tile = Dense::<T>::tile_bytes(Pass::Product(rows), (m, n), storage);
        let product =
            (Dense::<T>::product_bytes(m, rows) + tile).max(Dense::<T>::direct_bytes((m, n), m, storage, rows));
        // The growth of a list may hold it twice; then each number is sorted.
        panels + product + samples * (2 * size_of::<Activation>() + 2 * size_of::<f64>())
    }
}

/// Compares the outputs on all samples that `c` has seen, from its statistics alone. The result is exact to some 1e-8
/// of what the outputs of independent features would be with a Gram matrix, and to the rounding of f64 with a factor.
///
/// # Errors
/// [`Error::Shape`] unless `w` is the shape that `f` was made from and `c` has as many features; [`Error::Option`] if
/// it has seen no samples; [`Error::NotFinite`] for NaN or infinities in `w`.
pub fn expected<T: Scalar>(w: &TensorRef<'_>, f: &Factors<T>, c: &Calibration) -> Result<Activation> {
    match T::DTYPE {
        DType::F64 => expected_f64(w, same_ref(f), c),
        _ => expected_f32(w, same_ref(f), c),
    }
}

#[inline(never)]
fn expected_f64(w: &TensorRef<'_>, f: &Factors<f64>, c: &Calibration) -> Result<Activation> {
    expected_view(w.view()?, f, c)
}

#[inline(never)]
fn expected_f32(w: &TensorRef<'_>, f: &Factors<f32>, c: &Calibration) -> Result<Activation> {
    expected_view(w.view()?, f, c)
}

/// Computes what [`expected`] does for a weight whose entries are in memory.
pub(crate) fn expected_view<T: Scalar>(w: MatView<'_>, f: &Factors<T>, c: &Calibration) -> Result<Activation> {
    let (m, n, k) = (f.u().nrows(), f.vt().ncols(), f.rank());
    // These powers of two keep both in range.
    let scale = weight(w, f)?.facts().scale;
    if c.features() != n {
        return Err(Error::shape("quality::expected", format_args!("statistics of {n} features"), c.features()));
    }
    let par = current_par();
    let of_samples = 2f64.powi(c.exponent() - Moments::of::<f64>(c)?.exponent());
    let squares = Squares::new(c, par);
    let v = Mat::from_fn(n, k, |j, i| Element::to_f64(f.vt().row(i)[j]));
    let weights = |j: usize| scale * of_samples * Element::to_f64(f.s()[j]);
    let mut total = Sums::default();
    let block = (EXPECTED_ELEMENTS / n).clamp(16, BLOCK);
    for first in (0..m).step_by(block) {
        let rows = block.min(m - first);
        // Rows of W, W' and their difference are columns here.
        let mut before: Mat<f64> = Mat::zeros(n, rows);
        with_view!(w, a => {
            let mut line = Vec::new();
            for i in 0..rows {
                let column = column_mut(before.as_mut(), i);
                convert_row(a.row(first + i), &mut line, column, scale);
                column.iter_mut().for_each(|x| *x *= of_samples);
            }
        });
        let us = Mat::from_fn(k, rows, |j, i| weights(j) * Element::to_f64(f.u().row(first + i)[j]));
        let mut after = Mat::zeros(n, rows);
        matmul(after.as_mut(), Accum::Replace, v.as_ref(), us.as_ref(), 1.0, par);
        total.before += squares.sum(before.as_ref());
        total.after += squares.sum(after.as_ref());
        before -= &after;
        total.difference += squares.sum(before.as_ref());
    }
    // ‖y − y'‖² = ‖y‖² + ‖y'‖² − 2 ⟨y, y'⟩
    total.dot = (total.before + total.after - total.difference) / 2.0;
    Ok(total.activation())
}

/// Compares the weight with its factors in the norm of [`output_calibration`](crate::TruncatedSvd::output_calibration):
/// with moments `G = L Lᵀ` of the inputs and `F = R Rᵀ` of the outputs, `Rᵀ W L` with `Rᵀ W' L`, in f64, from `W − W'`
/// itself. Without statistics a side counts as the identity. It takes three m×n matrices and `2 m n (m + n)` flops for
/// each of three norms.
///
/// # Errors
/// [`Error::Shape`] unless `w` is the shape that `f` was made from, `inputs` has as many features as `w` columns, and
/// `outputs` as many as `w` rows; [`Error::Option`] if one has seen no samples; [`Error::NotFinite`] for NaN or
/// infinities in `w`.
pub fn weighted<T: Scalar>(
    w: &TensorRef<'_>,
    f: &Factors<T>,
    inputs: Option<&Calibration>,
    outputs: Option<&Calibration>,
) -> Result<Activation> {
    match T::DTYPE {
        DType::F64 => weighted_f64(w, same_ref(f), inputs, outputs),
        _ => weighted_f32(w, same_ref(f), inputs, outputs),
    }
}

#[inline(never)]
fn weighted_f64(
    w: &TensorRef<'_>,
    f: &Factors<f64>,
    inputs: Option<&Calibration>,
    outputs: Option<&Calibration>,
) -> Result<Activation> {
    weighted_view(w.view()?, f, inputs, outputs)
}

#[inline(never)]
fn weighted_f32(
    w: &TensorRef<'_>,
    f: &Factors<f32>,
    inputs: Option<&Calibration>,
    outputs: Option<&Calibration>,
) -> Result<Activation> {
    weighted_view(w.view()?, f, inputs, outputs)
}

/// Computes what [`weighted`] does for a weight whose entries are in memory.
pub(crate) fn weighted_view<T: Scalar>(
    w: MatView<'_>,
    f: &Factors<T>,
    inputs: Option<&Calibration>,
    outputs: Option<&Calibration>,
) -> Result<Activation> {
    let (m, n, k) = (f.u().nrows(), f.vt().ncols(), f.rank());
    let par = current_par();
    // The powers of two keep all in range.
    let mut scale = weight(w, f)?.facts().scale;
    let mut moments = |c: Option<&Calibration>, features: usize| {
        let Some(c) = c else { return Ok(None) };
        if c.features() != features {
            let want = format_args!("statistics of {features} features");
            return Err(Error::shape("quality::weighted", want, c.features()));
        }
        scale *= 2f64.powi(c.exponent() - Moments::of::<f64>(c)?.exponent());
        let mut whole = Mat::clone(&c.gram_lower(par));
        mirror(whole.as_mut());
        Ok(Some(whole))
    };
    let (g, f_) = (moments(inputs, n)?, moments(outputs, m)?);
    // ⟨F D, D G⟩
    let norm = |d: &Mat<f64>| {
        let product = |a: MatRef<'_, f64>, b: MatRef<'_, f64>| {
            let mut c = Mat::zeros(m, n);
            matmul(c.as_mut(), Accum::Replace, a, b, 1.0, par);
            c
        };
        let left = f_.as_ref().map(|f| product(f.as_ref(), d.as_ref()));
        let right = g.as_ref().map(|g| product(d.as_ref(), g.as_ref()));
        let (left, right) = (left.as_ref().unwrap_or(d), right.as_ref().unwrap_or(d));
        let column = |j: usize| left.col(j).iter().zip(right.col(j).iter()).map(|(x, y)| x * y).sum::<f64>();
        (0..n).map(column).sum::<f64>().max(0.0)
    };
    let mut before: Mat<f64> = Mat::zeros(m, n);
    with_view!(w, a => {
        let (mut line, mut row) = (Vec::new(), vec![0.0; n]);
        for i in 0..m {
            convert_row(a.row(i), &mut line, &mut row, scale);
            row.iter().enumerate().for_each(|(j, &x)| before[(i, j)] = x);
        }
    });
    let us = Mat::from_fn(m, k, |i, j| scale * Element::to_f64(f.s()[j]) * Element::to_f64(f.u().row(i)[j]));
    let vt = Mat::from_fn(k, n, |i, j| Element::to_f64(f.vt().row(i)[j]));
    let mut after = Mat::zeros(m, n);
    matmul(after.as_mut(), Accum::Replace, us.as_ref(), vt.as_ref(), 1.0, par);
    let mut total = Sums { before: norm(&before), after: norm(&after), ..Sums::default() };
    before -= &after;
    total.difference = norm(&before);
    total.dot = (total.before + total.after - total.difference) / 2.0;
    Ok(total.activation())
}

/// Computes `tr(Eᵀ G E)` of the statistics of samples: the squared norm of the outputs of the samples for the columns
/// of E.
struct Squares {
    /// The lower triangle of G, or R of `G = RᵀR`.
    matrix: Arc<Mat<f64>>,
    is_root: bool,
    par: Par,
}

impl Squares {
    fn new(c: &Calibration, par: Par) -> Self {
        match c.factor() {
            Some(r) => Squares { matrix: r, is_root: true, par },
            None => Squares { matrix: c.gram_lower(par), is_root: false, par },
        }
    }

    fn sum(&self, e: MatRef<'_, f64>) -> f64 {
        let full = BlockStructure::Rectangular;
        let triangle = if self.is_root { BlockStructure::TriangularUpper } else { BlockStructure::TriangularLower };
        let g = Mat::as_ref(&self.matrix);
        let mut y = Mat::zeros(e.nrows(), e.ncols());
        triangular::matmul(y.as_mut(), full, Accum::Replace, g, triangle, e, full, 1.0, self.par);
        if self.is_root {
            return y.squared_norm_l2();
        }
        // This is twice the lower triangle with its diagonal, less the diagonal. A value that rounding leaves below
        // zero counts as zero.
        let column = |j: usize| {
            let terms = e.col(j).iter().zip(y.col(j).iter()).zip(g.diagonal().column_vector().iter());
            terms.map(|((e, y), d)| e * (2.0 * y - d * e)).sum::<f64>()
        };
        (0..e.ncols()).map(column).sum::<f64>().max(0.0)
    }
}

/// The distribution of the agreement over samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// The agreement of all samples together.
    pub total: Activation,
    /// The agreement of each sample, in their order.
    pub samples: Vec<Activation>,
    cosines: Vec<f64>,
    relative_errors: Vec<f64>,
}

impl Distribution {
    /// Returns the cosine that a share `p` of the samples stays below (nearest rank; `p` is clamped to `0..=1`).
    pub fn cosine(&self, p: f64) -> f64 {
        quantile(&self.cosines, p)
    }

    /// Returns the relative error that a share `p` of the samples stays below (nearest rank; `p` is clamped to
    /// `0..=1`).
    pub fn relative_error(&self, p: f64) -> f64 {
        quantile(&self.relative_errors, p)
    }
}

fn quantile(sorted: &[f64], p: f64) -> f64 {
    let rank = (p.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The sums that the measures of agreement are made of.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    before: f64,
    after: f64,
    dot: f64,
    difference: f64,
}

impl std::ops::Add for Sums {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Sums {
            before: self.before + other.before,
            after: self.after + other.after,
            dot: self.dot + other.dot,
            difference: self.difference + other.difference,
        }
    }
}

impl Sums {
    /// Returns the sums of outputs multiplied by `scale`.
    fn times(self, scale: f64) -> Self {
        let Sums { before, after, dot, difference } = self;
        let [before, after, dot, difference] = [before, after, dot, difference].map(|x| x * scale * scale);
        Sums { before, after, dot, difference }
    }

    fn activation(self) -> Activation {
        let ratio = |x: f64, y: f64| if y > 0.0 { x / y } else { x };
        let both_zero = self.before == 0.0 && self.after == 0.0;
        Activation {
            cosine: if both_zero { 1.0 } else { ratio(self.dot, (self.before * self.after).sqrt()) },
            relative_error: ratio(self.difference, self.before).sqrt(),
        }
    }
}

/// Returns the weight that `f` was made from, checked as matrices are.
fn weight<'a, T: Scalar>(w: MatView<'a>, f: &Factors<T>) -> Result<Dense<'a, T>> {
    let (m, n) = (f.u().nrows(), f.vt().ncols());
    if (w.nrows(), w.ncols()) != (m, n) {
        let got = format_args!("{}×{}", w.nrows(), w.ncols());
        return Err(Error::shape("quality", format_args!("the {m}×{n} weight"), got));
    }
    Dense::new(w, current_par())
}

/// Returns the power of two that keeps samples in range, and checks them as matrices are checked.
fn sample_scale<T: Scalar>(x: MatView<'_>, f: &Factors<T>) -> Result<f64> {
    let n = f.vt().ncols();
    if x.ncols() != n {
        return Err(Error::shape("quality", format_args!("samples of {n} features"), x.ncols()));
    }
    Ok(Dense::<T>::new(x, current_par())?.facts().scale)
}

/// Sends the rows of `x`, times `scale`, through `weight` and `f` in blocks, and gives the outputs of each block to
/// `sink`, in order.
fn compare<T: Scalar>(
    weight: &mut Dense<'_, T>,
    f: &Factors<T>,
    x: MatView<'_>,
    scale: f64,
    mut sink: impl FnMut(Sums),
) -> Result<()> {
    let (m, k) = (f.u().nrows(), f.rank());
    let par = current_par();
    for_each_output(weight, x, scale, |weight, samples, before| {
        let rows = samples.as_ref().ncols();
        let mut c = Mat::zeros(rows, k);
        let mut after = Mat::zeros(m, rows);
        f.apply_into(
            samples.as_ref().transpose(),
            weight.facts().scale,
            c.as_mut(),
            after.as_mut().transpose_mut(),
            par,
        );
        let sums = parallel::map(par, rows, |j| {
            let [before, after, dot, difference] = agreement(column(before.as_ref(), j), column(after.as_ref(), j));
            Sums { before, after, dot, difference }
        });
        sums.into_iter().for_each(&mut sink);
    })
}

/// Calls `f(weight, xᵀ, weight xᵀ)` for blocks of the rows of `x`, times `scale`.
fn for_each_output<T: Scalar>(
    weight: &mut Dense<'_, T>,
    x: MatView<'_>,
    scale: f64,
    mut f: impl FnMut(&Dense<'_, T>, &HostPanel<T>, &HostPanel<T>),
) -> Result<()> {
    let (space, (m, n)) = (weight.space().clone(), weight.facts().shape);
    for first in (0..x.nrows()).step_by(BLOCK) {
        let rows = BLOCK.min(x.nrows() - first);
        // Samples are columns, so that W X is a product with a right panel.
        let mut samples = HostPanel::zeros(n, rows, &space);
        with_view!(x, a => {
            let mut line = Vec::new();
            for i in 0..rows {
                convert_row(a.row(first + i), &mut line, column_mut(samples.as_mut(), i), scale);
            }
        });
        let mut before = HostPanel::zeros(m, rows, &space);
        weight.apply(&samples, &mut before)?;
        f(weight, &samples, &before);
    }
    Ok(())
}

/// Computes `‖c W Xᵀ‖_F²` for rows of `x` of moderate size, and the power of two c that keeps W in range.
pub(crate) fn output_norm_squared<T: Scalar>(w: MatView<'_>, x: MatRef<'_, f64>) -> Result<(f64, f64)> {
    let mut weight = Dense::<T>::new(w, current_par())?;
    let mut total = 0.0;
    for_each_output(&mut weight, f64::view(x), 1.0, |_, _, y| {
        total += (0..y.as_ref().ncols()).map(|j| column_norm_squared(y.as_ref(), j)).sum::<f64>();
    })?;
    Ok((total, weight.facts().scale))
}

/// Computes `‖c W' Xᵀ‖_F² = ‖c diag(s) Vᵀ Xᵀ‖_F²`, with c a power of two.
pub(crate) fn kept_norm_squared<T: Scalar>(f: &Factors<T>, x: MatRef<'_, f64>, c: f64, par: Par) -> f64 {
    let gains = output_gains(f.vt().as_ref().transpose(), x, 1.0, par);
    gains.iter().zip(f.s().iter().map(|&s| c * Element::to_f64(s))).map(|(gain, s)| gain * s * s).sum()
}

/// Computes `‖X b_j‖²` for the columns of `b`, which are `scale` times what they should be.
pub(crate) fn output_gains<T: Scalar>(b: MatRef<'_, T>, x: MatRef<'_, f64>, scale: f64, par: Par) -> Vec<f64> {
    let x = Mat::from_fn(x.nrows(), x.ncols(), |i, j| <T as Element>::from_f64(x[(i, j)]));
    let mut y = Mat::zeros(x.nrows(), b.ncols());
    matmul(y.as_mut(), Accum::Replace, x.as_ref(), b, T::one(), par);
    (0..b.ncols()).map(|j| column_norm_squared(y.as_ref(), j) / (scale * scale)).collect()
}

fn column_norm_squared<T: Scalar>(y: MatRef<'_, T>, j: usize) -> f64 {
    y.col(j).iter().map(|&y| Element::to_f64(y) * Element::to_f64(y)).sum()
}
