//! Range finders: an orthonormal panel that captures the dominant left or right space of an operator.
//!
//! ```text
//!   power_iteration      Y = orth(A Ω);  q times:  X = orth(Aᵀ Y),  Y = orth(A X)        2q+1 products
//!   shifted_power_iteration      the same,  Y = orth(A X − Y (α R⁻¹))  with  Aᵀ Y = X R     2q+1 products
//!   filtered_iteration   V = orth(G Ω);  s times:  V = orth(G V − c_i V);  W = G V       s+2 products, G = AᵀA
//!      from the sketch   V = orth((G − c_1) Ω);  s−1 times as above;  W = G V             s+1 products
//! ```
//!
//! `E‖A − QQᵀA‖_F <= (1 + k/(p−1))^{1/2} τ_{k+1}` at q = 0 (Halko, Martinsson, Tropp, SIAM Rev. 2011); each power
//! iteration raises the power of the singular values by two. The panel is orthonormalized after every product, or all
//! below `u^{1/(2q+1)} ‖A‖` would be lost to rounding.
//!
//! **The filter.** Of all polynomials of degree s in λ = σ² that are at most 1 on `[0, b]`, the Chebyshev polynomial is
//! the largest above (Zhou, Saad, Tiago, Chelikowsky 2006). With its roots `c_i` it is one shift in each product, at
//! the cost of an axpy, and a basis may be orthonormalized between any two. `b` has to lie below the wanted
//! eigenvalues, about at λ_l: it is 3/4 of `Σ_{i>l} λ_i² / Σ_{i>l} λ_i ≈ (‖G‖² − ‖G V‖²) / (‖A‖² − tr VᵀG V)`, two
//! inner products. `Q QᵀA` needs only V and `W = G V`; see [`gram`](crate::svd).
//!
//! **A filter that damps what is wanted.** Copies of one value that V has no room for, and panels of more than half of
//! the columns, leave a mean above λ_k. Then the Ritz value θ_k comes out below the end of the interval, and the
//! iteration begins anew with twice the steps and an end that θ_l bounds.
//!
//! **From the sketch.** The first root is a tenth of b and may be off by as much, so that a guess does before there is
//! any V: the sketch of `G − c_1` is a step already. The guess is made where trace and norm of G say that no few
//! eigenvalues tower above the rest. Simulations and figures: `benches/NOTES.md`.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::triangular_inverse;
use faer::{Accum, Mat, MatRef, Par, unzip, zip};

use crate::error::Result;
use crate::linalg::{column, column_mut};
use crate::operator::{Dense, LinearOperator, Symmetric};
use crate::simd::Scalar;
use crate::sketch::{AnySketch, SketchOperator};
use crate::space::{Effort, HostPanel, Panel, Space};

/// Computes an orthonormal `m × l` basis of the dominant left space of `op` in `y`, by `q` power iterations. `x` is a
/// right panel of `l` columns; when `q > 0` its contents are overwritten.
///
/// # Errors
/// Those of the operator's products and of its space ([`LinearOperator`]).
pub fn power_iteration<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
) -> Result<()> {
    iterate_with(op, omega, power_iterations, y, x, Effort::Fast)
}

/// Computes the basis of [`power_iteration`] in [little memory](Effort::LittleMemory).
///
/// # Errors
/// Those of [`power_iteration`].
pub fn sparing_power_iteration<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
) -> Result<()> {
    iterate_with(op, omega, power_iterations, y, x, Effort::LittleMemory)
}

/// Iterates `q` times on the sketch of `op`, in `y`; each product is orthonormalized with this effort.
fn iterate_with<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
    effort: Effort,
) -> Result<()> {
    op.sketch(omega, y)?;
    op.space().clone().orthonormalize(y, None, effort)?;
    iterate(op, power_iterations, y, x, effort)
}

/// Iterates `q` times on the left panel `y`: `x = orth(Aᵀ y)`, `y = orth(A x)`.
pub(crate) fn iterate<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    q: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
    effort: Effort,
) -> Result<()> {
    let space = op.space().clone();
    for _ in 0..q {
        op.apply_adjoint(y, x)?;
        space.orthonormalize(x, None, effort)?;
        op.apply(x, y)?;
        space.orthonormalize(y, None, effort)?;
    }
    Ok(())
}

/// The part of the mean residual eigenvalue up to which the filter damps.
const CUTOFF: f64 = 0.75;
/// The largest spread of a spectrum, `n Σλ² / (Σλ)²`, with which a guess is made. Weights have 2 to 4, noise 1.3,
/// `σ_i = i^-0.5` 30.
const MOST_SPREAD: f64 = 6.0;
/// The part of the guessed tail that has to be left for the guess to be believed.
const CREDIBLE: f64 = 0.5;
/// The part of the trace that has to be left for the mean residual eigenvalue to be known to some 1e-4.
const RESOLVED: f64 = 1e-3;

/// The Chebyshev polynomial of a filtered iteration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filter {
    /// The degree: the number of shifted products with G.
    pub steps: usize,
    /// An upper bound of the end of the interval that is damped.
    pub most: f64,
}

/// The ratio of the end of the interval to the last wanted Ritz value from which on the filter is not trusted.
const MISTRUSTED: f64 = 1.25;

impl Filter {
    /// Makes the filter of this degree, with the interval that the sums of the eigenvalues suggest.
    pub fn new(steps: usize) -> Self {
        Filter { steps, most: f64::INFINITY }
    }

    /// Returns the filter to begin anew with if this one has damped what was wanted. `end` is the end of its interval,
    /// and `s` are the singular values that came out, of which `rank` are wanted.
    pub(crate) fn corrected<T: Scalar>(&self, end: f64, s: &[T], rank: usize) -> Option<Self> {
        let eigenvalue = |i: usize| s[i].to_f64() * s[i].to_f64();
        let anew = self.most == f64::INFINITY && end > MISTRUSTED * eigenvalue(rank - 1);
        anew.then(|| Filter { steps: self.steps.saturating_mul(2), most: CUTOFF * eigenvalue(s.len() - 1) })
    }
}

/// The note in the report on a filter that had to be corrected.
pub(crate) const FILTERED_ANEW: &str = "hardly any decay behind σ_k: the filter was run anew with a narrower band";

/// Computes a well-conditioned basis V of the dominant space of the positive semidefinite `g` in `v`, orthonormal to a
/// few percent, and `G V` in `w`. The Chebyshev filter begins with the sketch where that can be, or after it; the
/// product with G is last. `trace` is that of `g` (`‖A‖_F²` for `AᵀA`). Returns the end of the interval that was
/// damped, 0 if none was.
///
/// # Errors
/// [`Error::Cancelled`](crate::Error::Cancelled) if the watch of `g` says so, and those of the space ([`Space`]).
pub fn filtered_iteration<T: Scalar, S: Space<T>>(
    space: &S,
    g: &mut Symmetric<T, S>,
    trace: f64,
    omega: &AnySketch,
    filter: Filter,
    v: &mut Panel<T, S>,
    w: &mut Panel<T, S>,
) -> Result<f64> {
    let Filter { steps, most } = filter;
    let part = |step: usize| (step as f64 - 0.5) / steps as f64;
    let sums = (trace, g.norm_squared());
    let guessing = steps > 1 && most == f64::INFINITY;
    let guess = if guessing { tail_of_exponential(sums, g.order(), omega.ncols()) } else { None };
    let mut end = guess.as_ref().map_or(0.0, |tail| CUTOFF * tail.mean);
    let mut shifted = guess.is_some();
    g.sketch(if shifted { root(end, part(1)) } else { 0.0 }, omega, v)?;
    condition(space, v, w)?;
    g.apply(v, w)?;
    let advance = |v: &mut Panel<T, S>, w: &mut Panel<T, S>| {
        condition(space, w, v)?;
        std::mem::swap(v, w);
        g.apply(v, w)
    };
    if let Some(tail) = guess
        && trace - space.dot(w, v)? < CREDIBLE * tail.part * trace
    {
        // Less is left than was guessed, although V can only have missed more: the spectrum ends (exact low rank, a
        // step). A plain step removes directions without eigenvalues that the shift has brought in.
        advance(v, w)?;
        (shifted, end) = (false, 0.0);
    }
    for step in if shifted { 2 } else { 1 }..=steps {
        // The smallest root comes first: later estimates are better, and the large roots need them more.
        end = end.max(shift(space, sums, part(step), most, v, w)?);
        advance(v, w)?;
    }
    Ok(end)
}

/// Returns the root of the filter at a part of the half circle over `[0, end]`.
fn root(end: f64, part: f64) -> f64 {
    0.5 * end * (1.0 - (std::f64::consts::PI * part).cos())
}

/// Estimates the mean of the eigenvalues beyond the first l of n, each weighted by itself, as if all of them decayed
/// exponentially. It follows from their sum and that of their squares, with `t` from 0 to 1 across the spectrum:
///
/// ```text
///   λ(t) ~ exp(−a t)      r = n Σλ² / (Σλ)² = a/2 coth(a/2)      b = ∫ λ² / ∫ λ  from l/n to 1
/// ```
///
/// For weights, embeddings and noise the result is 0.75 to 1.1 of the true mean. The result is `None` where r is large,
/// because some eigenvalues then tower above the others and the two sums say nothing of what comes after; and where
/// nothing comes after.
fn tail_of_exponential((sum, squares): (f64, f64), n: usize, l: usize) -> Option<Tail> {
    let mean = sum / n as f64;
    let r = squares / (mean * sum);
    if r.is_nan() || r > MOST_SPREAD || l >= n {
        return None;
    }
    // The function a/2 coth(a/2) rises with a, and is more than a/2.
    let (mut low, mut high) = (0.0, 2.0 * MOST_SPREAD);
    for _ in 0..40 {
        let a: f64 = 0.5 * (low + high);
        if 0.5 * a / (0.5 * a).tanh() < r { low = a } else { high = a }
    }
    let a: f64 = 0.5 * (low + high);
    let first = mean * a / -(-a).exp_m1();
    // This is the integral of exp(−c t) over the rest, without a factor that both integrals have.
    let rest = |c: f64| (-c * l as f64 / n as f64).exp() - (-c).exp();
    Some(match a < 1e-3 {
        true => Tail { mean, part: 1.0 - l as f64 / n as f64 },
        false => Tail { mean: first * rest(2.0 * a) / (2.0 * rest(a)), part: rest(a) / -(-a).exp_m1() },
    })
}

/// A guess about the eigenvalues beyond the first l.
#[derive(Debug, PartialEq)]
struct Tail {
    /// The mean of these eigenvalues, each weighted by itself.
    mean: f64,
    /// The part of the trace that these eigenvalues hold.
    part: f64,
}

/// Makes the columns of `y` orthonormal to a few percent, with `spare` as a second panel of its shape. One pass of
/// CholeskyQR does it, half the cost of a basis that is right to rounding. A panel for which it fails is
/// orthonormalized.
fn condition<T: Scalar, S: Space<T>>(space: &S, y: &mut Panel<T, S>, spare: &mut Panel<T, S>) -> Result<()> {
    let l = space.shape(y).1;
    let mut gram = Mat::<T>::zeros(l, l);
    space.inner(y, y, gram.as_mut())?;
    // A pivot p² of the scaled matrix is off by l eps at worst, which leaves a defect of at most l eps / p².
    match Factor::of(&gram) {
        Some(factor) if factor.least_scaled > 4.0 * l as f64 * T::EPSILON => {
            space.multiply(spare, Accum::Replace, y, factor.inverse::<T>().as_ref(), T::one())?;
            std::mem::swap(y, spare);
        }
        _ => {
            space.orthonormalize(y, None, Effort::LittleMemory)?;
            space.trim();
        }
    }
    Ok(())
}

/// Returns the bytes alive at the fullest moment of [`filtered_iteration`] with panels in memory, besides the two
/// panels and G.
pub(crate) fn filtered_iteration_bytes<T: Scalar>(n: usize, l: usize) -> usize {
    let gram = l * l * size_of::<T>();
    let reflected = HostPanel::<T>::orthonormalize_sparingly_scratch(n, l, false, Par::Seq).unaligned_bytes_required();
    (gram + Factor::bytes(l).max(reflected)).max(Dense::<T>::product_bytes(n, l))
}

/// The inverted Cholesky factor of a positive definite matrix, `H = RᵀR`.
pub(crate) struct Factor {
    /// `L⁻ᵀ` of `D H D = L Lᵀ` with a unit diagonal, upper triangular.
    upper: Mat<f64>,
    /// D.
    scale: Vec<f64>,
    /// The smallest squared pivot of `D H D`.
    pub(crate) least_scaled: f64,
    /// The smallest squared pivot of H over its largest diagonal entry; the inverse of the condition of H is at most
    /// this.
    pub(crate) least: f64,
}

impl Factor {
    /// Factors the matrix whose lower triangle is in `h`; the result is `None` if it is not positive definite.
    pub(crate) fn of<T: Scalar>(h: &Mat<T>) -> Option<Self> {
        let l = h.nrows();
        let diagonal: Vec<f64> = (0..l).map(|j| h[(j, j)].to_f64()).collect();
        if !diagonal.iter().all(|&x| x.is_normal() && x > 0.0) {
            return None;
        }
        let scale: Vec<f64> = diagonal.iter().map(|x| 1.0 / x.sqrt()).collect();
        let mut factor = Mat::zeros(l, l);
        for j in 0..l {
            let from = column(h.as_ref(), j)[j..].iter().zip(&scale[j..]);
            let to = column_mut(factor.as_mut(), j)[j..].iter_mut();
            to.zip(from).for_each(|(to, (x, s))| *to = (*x).to_f64() * s * scale[j]);
        }
        let mut buffer = MemBuffer::new(llt::cholesky_in_place_scratch::<f64>(l, Par::Seq, Default::default()));
        let stack = MemStack::new(&mut buffer);
        llt::cholesky_in_place(factor.as_mut(), Default::default(), Par::Seq, stack, Default::default()).ok()?;
        let pivots = || (0..l).map(|j| factor[(j, j)] * factor[(j, j)]);
        let least_scaled = pivots().fold(f64::INFINITY, f64::min);
        let least = pivots().zip(&diagonal).map(|(p, x)| p * x).fold(f64::INFINITY, f64::min);
        let least = least / diagonal.iter().fold(0.0, |a: f64, &x| a.max(x));
        let mut upper = Mat::zeros(l, l);
        triangular_inverse::invert_lower_triangular(upper.as_mut().transpose_mut(), factor.as_ref(), Par::Seq);
        Some(Factor { upper, scale, least_scaled, least })
    }

    /// Returns the bytes alive in [`of`](Self::of) of an l × l matrix. One and a half matrices remain afterwards, with
    /// an [`inverse`](Self::inverse).
    pub(crate) fn bytes(l: usize) -> usize {
        let cholesky = llt::cholesky_in_place_scratch::<f64>(l, Par::Seq, Default::default());
        2 * l * l * size_of::<f64>() + cholesky.unaligned_bytes_required()
    }

    /// Returns `R⁻¹`, upper triangular.
    pub(crate) fn inverse<T: Scalar>(&self) -> Mat<T> {
        let l = self.scale.len();
        let mut inverse = Mat::zeros(l, l);
        for j in 0..l {
            let from = column(self.upper.as_ref(), j).iter().zip(&self.scale);
            let to = column_mut(inverse.as_mut(), j)[..=j].iter_mut();
            to.zip(from).for_each(|(to, (x, s))| *to = T::from_f64(x * s));
        }
        inverse
    }
}

/// Computes `w <- G V − c V` from `w = G V`: one factor of the filter. Its root c is at this part of the half circle
/// over the interval, which ends at `most` at most. The sums are the trace of G and `‖G‖_F²`. Returns the end of the
/// interval, 0 if nothing was shifted.
///
/// # Errors
/// Those of the space ([`Space`]).
pub fn shift<T: Scalar, S: Space<T>>(
    space: &S,
    (trace, squares): (f64, f64),
    part: f64,
    most: f64,
    v: &Panel<T, S>,
    w: &mut Panel<T, S>,
) -> Result<f64> {
    let residual_trace = trace - space.dot(w, v)?;
    let residual_squares = squares - space.dot(w, w)?;
    // Both are differences of sums that carry some eps of f32. Where less is left, powers converge anyway. f64 has the
    // same limits, so that it takes the same steps.
    if residual_trace > RESOLVED * trace && residual_squares > RESOLVED * squares {
        let end = (CUTOFF * residual_squares / residual_trace).min(most);
        space.axpy(w, T::from_f64(-root(end, part)), v)?;
        return Ok(end);
    }
    Ok(0.0)
}

/// Iterates as [`power_iteration`] does, with a shift that grows: `Y = orth(A Aᵀ Y − α Y)`. `z` is a second panel like
/// `y`, whose contents are overwritten.
///
/// `(σ_j² − α) / (σ_k² − α)` is less than `σ_j² / σ_k²`, so that each iteration separates more, at the price of one
/// panel. A shift up to `σ_l²/2` keeps the order of the leading directions. `AᵀY = X R` gives a lower bound of σ_l
/// without further work: `σ_min(R) = σ_min(YᵀA) <= σ_l(A)`, which rises from one iteration to the next (Feng, Yu, Xie
/// 2022; Feng, Yu 2024, dashSVD, who take it from the eigenvalues of a Gram matrix).
///
/// Their `AᵀA Q − α Q` squares the condition number and loses in f32 what is below `√eps σ_1`. Here the panel between
/// the two products is orthonormalized, and the shift is carried to the other side of its R: the span of `A Aᵀ Y − α Y`
/// is that of
///
/// ```text
///   A X − Y (α R⁻¹)          A X ~ σ_i,   α R⁻¹ ~ α/σ_i <= σ_i/2
/// ```
///
/// whose two terms are of one size in every direction, so that nothing cancels. The excess of the error over the
/// optimum falls by a quarter to a third at q = 1, and by more at q = 2 and 3 (`benches/NOTES.md`).
///
/// # Errors
/// Those of the operator's products and of its space ([`LinearOperator`]).
pub fn shifted_power_iteration<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
    z: &mut Panel<T, S>,
) -> Result<()> {
    let space = op.space().clone();
    let l = omega.ncols();
    let (mut r, mut wide, mut shift) = (Mat::<T>::zeros(l, l), Mat::<f64>::zeros(l, l), Mat::<T>::zeros(l, l));
    let mut column = vec![0.0; l];
    op.sketch(omega, y)?;
    space.orthonormalize(y, None, Effort::Fast)?;
    for _ in 0..power_iterations {
        op.apply_adjoint(y, x)?;
        space.orthonormalize(x, Some(r.as_mut()), Effort::Fast)?;
        zip!(wide.as_mut(), r.as_ref()).for_each(|unzip!(to, x)| *to = (*x).to_f64());
        op.apply(x, z)?;
        let smallest = smallest_singular_value(wide.as_ref());
        if smallest > T::EPSILON * wide[(0, 0)] {
            // α R⁻¹, column by column.
            let alpha = 0.5 * smallest * smallest;
            for j in 0..l {
                let column = &mut column[..=j];
                column.fill(0.0);
                column[j] = alpha;
                back_substitute(wide.as_ref(), column);
                column.iter().enumerate().for_each(|(i, &c)| shift[(i, j)] = T::from_f64(c));
            }
            space.multiply(z, Accum::Add, y, shift.as_ref(), -T::one())?;
        }
        std::mem::swap(y, z);
        space.orthonormalize(y, None, Effort::Fast)?;
    }
    Ok(())
}

/// Estimates the smallest singular value of an upper triangle from above, by inverse iteration on `RᵀR`. The result is
/// 0 for a singular triangle.
fn smallest_singular_value(r: MatRef<'_, f64>) -> f64 {
    const STEPS: usize = 12;
    let l = r.nrows();
    if (0..l).any(|i| r[(i, i)] == 0.0) {
        return 0.0;
    }
    // Any start with a part in the wanted direction will do; signs that alternate suit the triangles of a QR.
    let mut x: Vec<f64> = (0..l).map(|i| if i % 2 == 0 { 1.0 } else { -0.9 }).collect();
    let mut inverse = 0.0;
    for _ in 0..STEPS {
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter_mut().for_each(|x| *x /= length);
        // Rᵀ z = x, from the top, by columns of R.
        for j in 0..l {
            let dot: f64 = (0..j).map(|i| r[(i, j)] * x[i]).sum();
            x[j] = (x[j] - dot) / r[(j, j)];
        }
        inverse = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        back_substitute(r, &mut x);
    }
    // ‖R⁻ᵀ x‖ <= 1/σ_min for a unit x.
    1.0 / inverse
}

/// Solves `x <- R⁻¹ x` for the leading triangle of the length of x.
fn back_substitute(r: MatRef<'_, f64>, x: &mut [f64]) {
    for j in (0..x.len()).rev() {
        x[j] /= r[(j, j)];
        let top = x[j];
        for i in 0..j {
            x[i] -= r[(i, j)] * top;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{Host, Layout};

    /// Takes spectra of which the mean beyond l is known (exponential, flat), and those for which there is no guess.
    #[test]
    fn tail_of_an_exponential_spectrum() {
        let n = 4000;
        let tail = |values: &[f64], l: usize| {
            let squares: f64 = values.iter().map(|x| x * x).sum();
            tail_of_exponential((values.iter().sum(), squares), n, l)
        };
        for decay in [0.5_f64, 2.0, 8.0] {
            let values: Vec<f64> = (0..n).map(|i| 7.0 * (-decay * (i as f64 + 0.5) / n as f64).exp()).collect();
            for l in [1, 400, 3000] {
                let rest = &values[l..];
                let want = rest.iter().map(|x| x * x).sum::<f64>() / rest.iter().sum::<f64>();
                let got = tail(&values, l).expect("a mild decay");
                assert!((got.mean / want - 1.0).abs() < 1e-3, "decay {decay}, l = {l}: {got:?} for {want}");
                let part = rest.iter().sum::<f64>() / values.iter().sum::<f64>();
                assert!((got.part / part - 1.0).abs() < 1e-3, "decay {decay}, l = {l}: {got:?} for a part of {part}");
            }
        }
        let flat = tail(&vec![3.0; n], 100).expect("flat");
        assert!((flat.mean / 3.0 - 1.0).abs() < 1e-6 && (flat.part - 0.975).abs() < 1e-6, "{flat:?}");
        let mut spike = vec![1.0; n];
        spike[0] = 1e4;
        assert_eq!(tail(&spike, 100), None);
        assert_eq!(tail(&vec![0.0; n], 100), None);
        assert_eq!(tail(&vec![3.0; n], n), None, "nothing is beyond all of them");
    }

    /// Compares the sketch with `(G − c I) Ω`, and G with itself before.
    #[test]
    fn shifted_sketch() {
        let space = Host::new(Par::Seq);
        let (n, l, c) = (60, 7, 0.8125);
        let mut g: HostPanel<f64> = space.panel(n, n, Layout::Columns).unwrap();
        for j in 0..n {
            for i in 0..n {
                g.as_mut()[(i, j)] = ((i * j + i + j) % 17) as f64 / 16.0;
            }
        }
        let before = g.as_ref().to_owned();
        let mut g = Symmetric::new(&space, g).unwrap();
        let omega = AnySketch::new(crate::Sketch::Gaussian, n, l, 3, 0).unwrap();
        let mut y = space.panel(n, l, Layout::Columns).unwrap();
        g.sketch(c, &omega, &mut y).unwrap();
        let dense = omega.to_dense::<f64>();
        let want = &before * &dense - &dense * faer::Scale(c);
        assert!((y.as_ref() - want).norm_max() < 1e-13);
        assert_eq!(g.panel().as_ref(), before.as_ref());
    }
}
