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
//! iteration takes the singular values to a power higher by two. The panel is orthonormalized after every product:
//! without it all that is below `u^{1/(2q+1)} ‖A‖` is lost to rounding.
//!
//! **The filter.** s products with G apply a polynomial of degree s to its eigenvalues λ = σ², and `λ^s` is not the
//! best one. The Chebyshev polynomial of `[0, b]` is: of all that are at most 1 there, it is the largest above (Zhou,
//! Saad, Tiago, Chelikowsky 2006 use it so for eigenvectors). In factors `λ − c_i`, with c_i its roots, it is a shift
//! in each product, and a basis may be orthonormalized between any two. It costs an axpy. Excess of the error over the
//! optimum, l = k + 10, of the projections `A V Vᵀ` and, with `Q = orth(A V)`, `Q QᵀA`, by simulation in f64:
//!
//! ```text
//!                                        HMT, q = 2        A V Vᵀ, s =             Q QᵀA, s =
//!                                        (6 passes of A)   0       1       2       0       1       2
//!   1536 × 384, a weight, k = 96               2.2 %       8.7 %   1.9 %   0.9 %   5.0 %   1.4 %   0.7 %
//!   30522 × 384, an embedding, k = 96          2.3 %      10.4 %   2.0 %   0.7 %   5.9 %   1.4 %   0.5 %
//!   3072 × 768, i.i.d. normal, k = 192         3.0 %       7.5 %   2.9 %   1.3 %   5.4 %   2.2 %   1.1 %
//!   4096 × 1024, σ_i = i^-0.5, k = 256         2.1 %      11.2 %   1.7 %   0.8 %   5.6 %   1.1 %   0.6 %
//! ```
//!
//! `Q QᵀA` needs nothing but V and `W = G V`, which is the last product of the iteration: see [`gram`](crate::svd).
//!
//! The end of the interval has to lie below the eigenvalues that are wanted, about at λ_l. The mean of the eigenvalues
//! that V does not hold, each weighted by itself, is known for the price of two inner products:
//!
//! ```text
//!   b = Σ_{i>l} λ_i² / Σ_{i>l} λ_i  ≈  (‖G‖² − ‖G V‖²) / (‖A‖² − tr VᵀG V)
//! ```
//!
//! On the matrices above it comes out between 0.6 and 1.15 λ_l (the excess over 1 is what V has missed above λ_l), so
//! that three quarters of it are safe; the smallest Ritz value, which needs an eigensolver, is 0.6 λ_l.
//!
//! **Where that is too much.** Copies of one value that V has no room for, and panels of more than half of the columns,
//! leave a mean above λ_k: the filter then damps what is wanted. It shows afterwards, when the Ritz value θ_k comes out
//! below the end of the interval, and the iteration begins anew with twice the steps and an end that θ_l bounds. By
//! simulation, q = 2, excess over the optimum (1.25 is where it begins anew):
//!
//! ```text
//!                                                      end / θ_k     at first     anew     HMT
//!   160 × 130, 30 copies of 1, ½, ¼, ⅛, k = 32            2.0          0.9 %     0.0 %    0.2 %
//!   300 × 280, i.i.d. normal, k = 200                     2.3           14 %     0.1 %    2.2 %
//!   1536 × 384, a weight, k = 250                         1.8            7 %     0.6 %    4.6 %
//!   500 × 400, linear decay, k = 200                      1.5          3.4 %     0.3 %    3.6 %
//!   the table above                                  0.4 to 0.9
//! ```
//!
//! **From the sketch.** The first root is the smallest, a tenth of b, and may be off by as much: a guess will do,
//! before there is any V. So the sketch of `G − c_1` is a step already, and one product and one orthonormalization are
//! saved (of 2.5 ms 0.17 at 1536×384). The guess is that of a spectrum that decays exponentially, with the trace and
//! the norm that G has (`tail_of_exponential`), made only where these two say that no few eigenvalues tower above the
//! rest; `Q QᵀA`, s = 2:
//!
//! ```text
//!                                          n ‖G‖² / (tr G)²     guess / b     begun with the sketch     after it
//!   1536 × 384, a weight, k = 96                    4.1             0.75                1.0 %             0.7 %
//!   1536 × 384, another, k = 96                     2.6             0.93                1.0 %             0.7 %
//!   30522 × 384, an embedding, k = 96               1.9             1.10                0.8 %             0.5 %
//!   3072 × 768, i.i.d. normal, k = 192              1.25            0.98                1.6 %             1.1 %
//!   4096 × 1024, σ_i = i^-0.5, k = 256             30               0                  (1.9 %)            0.6 %
//! ```

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

/// An orthonormal `m × l` basis of the dominant left space of `op` in `y`. `x` is a right panel of `l` columns, used
/// and left dirty when `q > 0`.
///
/// # Errors
/// Those of the operator.
pub fn power_iteration<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
) -> Result<()> {
    iterate_with(op, omega, power_iterations, y, x, Effort::Fast)
}

/// As [`power_iteration`], in [little memory](Effort::LittleMemory).
///
/// # Errors
/// Those of the operator.
pub fn sparing_power_iteration<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
) -> Result<()> {
    iterate_with(op, omega, power_iterations, y, x, Effort::LittleMemory)
}

fn iterate_with<T: Scalar, S: Space<T>>(
    op: &mut dyn LinearOperator<T, Space = S>,
    omega: &AnySketch,
    power_iterations: usize,
    y: &mut Panel<T, S>,
    x: &mut Panel<T, S>,
    effort: Effort,
) -> Result<()> {
    let space = op.space().clone();
    op.sketch(omega, y)?;
    space.orthonormalize(y, None, effort)?;
    for _ in 0..power_iterations {
        op.apply_adjoint(y, x)?;
        space.orthonormalize(x, None, effort)?;
        op.apply(x, y)?;
        space.orthonormalize(y, None, effort)?;
    }
    Ok(())
}

/// The part of the mean residual eigenvalue that the filter damps up to.
const CUTOFF: f64 = 0.75;
/// Of the spread of a spectrum, `n Σλ² / (Σλ)²`: weights have 2 to 4, noise 1.3, `σ_i = i^-0.5` 30.
const MOST_SPREAD: f64 = 6.0;
/// The part of the guessed tail that has to be left for the guess to be believed.
const CREDIBLE: f64 = 0.5;
/// The part of the trace that has to be left for that mean to be known to some 1e-4.
const RESOLVED: f64 = 1e-3;

/// The polynomial of a filtered iteration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filter {
    /// Its degree: products with G that are shifted.
    pub steps: usize,
    /// The interval that it damps ends here at most.
    pub most: f64,
}

/// The end of the interval over the last Ritz value that is wanted, from which on the filter is not trusted.
const MISTRUSTED: f64 = 1.25;

impl Filter {
    /// Of this degree, with the interval that the sums of the eigenvalues suggest.
    pub fn new(steps: usize) -> Self {
        Filter { steps, most: f64::INFINITY }
    }

    /// The filter to begin anew with, if this one has damped what was wanted: `end` is the end of its interval, and `s`
    /// are the singular values that came out, of which `rank` are wanted.
    pub(crate) fn corrected<T: Scalar>(&self, end: f64, s: &[T], rank: usize) -> Option<Self> {
        let eigenvalue = |i: usize| s[i].to_f64() * s[i].to_f64();
        let anew = self.most == f64::INFINITY && end > MISTRUSTED * eigenvalue(rank - 1);
        anew.then(|| Filter { steps: self.steps.saturating_mul(2), most: CUTOFF * eigenvalue(s.len() - 1) })
    }
}

/// What the report says of a filter that had to be corrected.
pub(crate) const FILTERED_ANEW: &str = "hardly any decay behind σ_k: the filter was run anew with a narrower band";

/// A well-conditioned basis V of the dominant space of the positive semidefinite `g` in `v`, orthonormal to a few
/// percent, and `G V` in `w`: the Chebyshev filter, which begins with the sketch where that can be, or after it; then
/// the product. `trace` is that of `g` (`‖A‖_F²` for `AᵀA`). Returns the end of the interval that was damped, 0 if none
/// was.
///
/// # Errors
/// Those of the space, and what the watch of `g` says.
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
        // Less is left than was guessed, where V can only have missed more: a spectrum that ends (exact low rank, a
        // step). What the shift has brought in of directions without eigenvalues goes by a plain step.
        advance(v, w)?;
        (shifted, end) = (false, 0.0);
    }
    for step in if shifted { 2 } else { 1 }..=steps {
        // Smallest root first: the later the estimate, the better, and the large roots need it more.
        end = end.max(shift(space, sums, part(step), most, v, w)?);
        advance(v, w)?;
    }
    Ok(end)
}

/// The root of the filter at a part of the half circle over `[0, end]`.
fn root(end: f64, part: f64) -> f64 {
    0.5 * end * (1.0 - (std::f64::consts::PI * part).cos())
}

/// The mean of the eigenvalues beyond the first l of n, each weighted by itself, if all of them decay exponentially:
/// from their sum and that of their squares, with `t` from 0 to 1 across the spectrum,
///
/// ```text
///   λ(t) ~ exp(−a t)      r = n Σλ² / (Σλ)² = a/2 coth(a/2)      b = ∫ λ² / ∫ λ  from l/n to 1
/// ```
///
/// Of weights, embeddings and noise that is 0.75 to 1.1 of the true one. None where r is large: some eigenvalues tower
/// above the others then, and the two sums say nothing of what comes after; and where nothing comes after.
fn tail_of_exponential((sum, squares): (f64, f64), n: usize, l: usize) -> Option<Tail> {
    let mean = sum / n as f64;
    let r = squares / (mean * sum);
    if r.is_nan() || r > MOST_SPREAD || l >= n {
        return None;
    }
    // a/2 coth(a/2) rises with a, and is more than a/2.
    let (mut low, mut high) = (0.0, 2.0 * MOST_SPREAD);
    for _ in 0..40 {
        let a: f64 = 0.5 * (low + high);
        if 0.5 * a / (0.5 * a).tanh() < r { low = a } else { high = a }
    }
    let a: f64 = 0.5 * (low + high);
    let first = mean * a / -(-a).exp_m1();
    // ∫ exp(−c t) over the rest, but for a factor that both have.
    let rest = |c: f64| (-c * l as f64 / n as f64).exp() - (-c).exp();
    Some(match a < 1e-3 {
        true => Tail { mean, part: 1.0 - l as f64 / n as f64 },
        false => Tail { mean: first * rest(2.0 * a) / (2.0 * rest(a)), part: rest(a) / -(-a).exp_m1() },
    })
}

/// What a guess says of the eigenvalues beyond the first l.
#[derive(Debug, PartialEq)]
struct Tail {
    /// Their mean, each weighted by itself.
    mean: f64,
    /// Their part of the trace.
    part: f64,
}

/// Makes the columns of `y` orthonormal to a few percent, with `spare` as a second panel of its shape: one pass of
/// CholeskyQR, half of what a basis takes that has to be right to rounding (384×106 0.19 ms of 0.3). Panels that it
/// cannot do are orthonormalized.
fn condition<T: Scalar, S: Space<T>>(space: &S, y: &mut Panel<T, S>, spare: &mut Panel<T, S>) -> Result<()> {
    let l = space.shape(y).1;
    let mut gram = Mat::<T>::zeros(l, l);
    space.inner(y, y, gram.as_mut())?;
    // A pivot p² of the scaled matrix is off by l eps at worst and leaves that part of p² as the defect.
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

/// Bytes alive at the fullest moment of [`filtered_iteration`] with panels in memory, beside the two panels and G.
pub(crate) fn filtered_iteration_bytes<T: Scalar>(n: usize, l: usize) -> usize {
    let gram = l * l * size_of::<T>();
    let reflected = HostPanel::<T>::orthonormalize_sparingly_scratch(n, l, false, Par::Seq).unaligned_bytes_required();
    (gram + Factor::bytes(l).max(reflected)).max(Dense::<T>::product_bytes(n, l))
}

/// The Cholesky factor of a positive definite matrix, `H = RᵀR`, inverted.
pub(crate) struct Factor {
    /// `L⁻ᵀ` of `D H D = L Lᵀ` with a unit diagonal, upper triangular.
    upper: Mat<f64>,
    /// D.
    scale: Vec<f64>,
    /// The smallest square of a pivot of `D H D`.
    pub(crate) least_scaled: f64,
    /// That of H over its largest diagonal entry, which the inverse of the condition of H does not exceed.
    pub(crate) least: f64,
}

impl Factor {
    /// Of the matrix whose lower triangle is in `h`; none if it is not positive definite.
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

    /// Bytes alive in [`of`](Self::of), of an l × l matrix; one matrix and a half remain, with an
    /// [`inverse`](Self::inverse).
    pub(crate) fn bytes(l: usize) -> usize {
        let cholesky = llt::cholesky_in_place_scratch::<f64>(l, Par::Seq, Default::default());
        2 * l * l * size_of::<f64>() + cholesky.unaligned_bytes_required()
    }

    /// `R⁻¹`, upper triangular.
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

/// `w <- G V − c V` from `w = G V`: a factor of the filter of which c is the root at this part of the half circle over
/// the interval, which ends at `most` at most. The sums are the trace of G and `‖G‖_F²`. Returns the end of the
/// interval, 0 if nothing was shifted.
///
/// # Errors
/// Those of the space.
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
    // Both are differences of sums that carry some eps of f32; where less is left, powers converge anyway. The same for
    // f64, so that it takes the same steps.
    if residual_trace > RESOLVED * trace && residual_squares > RESOLVED * squares {
        let end = (CUTOFF * residual_squares / residual_trace).min(most);
        space.axpy(w, T::from_f64(-root(end, part)), v)?;
        return Ok(end);
    }
    Ok(0.0)
}

/// As [`power_iteration`], with a shift that grows: `Y = orth(A Aᵀ Y − α Y)`, `z` a second panel like `y`, left dirty.
///
/// `(σ_j² − α) / (σ_k² − α)` is less than `σ_j² / σ_k²`, so that each iteration separates more, at the price of one
/// panel. A shift up to `σ_l²/2` keeps the order of the leading directions, and `AᵀY = X R` gives a lower bound of σ_l
/// for nothing: `σ_min(R) = σ_min(YᵀA) <= σ_l(A)`, which rises from one iteration to the next (Feng, Yu, Xie 2022;
/// Feng, Yu 2024, dashSVD, who have it from the eigenvalues of a Gram matrix).
///
/// Their `AᵀA Q − α Q` squares the condition number and loses in f32 what is below `√eps σ_1`. Here the panel between
/// the two products is orthonormalized as ever, and the shift is carried to the other side of its R: the span of
/// `A Aᵀ Y − α Y` is that of
///
/// ```text
///   A X − Y (α R⁻¹)          A X ~ σ_i,   α R⁻¹ ~ α/σ_i <= σ_i/2
/// ```
///
/// whose two terms are of one size in every direction: nothing cancels, nothing is lost. Excess of the error over the
/// optimum at 500×240, k = 40, p = 10, with f32 and f64 alike (`cargo test --test methods shift -- --nocapture`):
///
/// ```text
///                      q = 1              q = 2              q = 3
///   σ_i = i^-0.3       3.7 % -> 2.3 %     1.4 % -> 0.6 %     0.6 % -> 0.2 %
///   σ_i = i^-0.5       3.3 % -> 2.2 %     0.9 % -> 0.4 %     0.4 % -> 0.1 %
///   linear             3.6 % -> 2.7 %     1.9 % -> 1.1 %     1.2 % -> 0.5 %
/// ```
///
/// # Errors
/// Those of the operator.
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

/// The smallest singular value of an upper triangle, from above, by inverse iteration on `RᵀR`; 0 for a singular one.
fn smallest_singular_value(r: MatRef<'_, f64>) -> f64 {
    const STEPS: usize = 12;
    let l = r.nrows();
    if (0..l).any(|i| r[(i, i)] == 0.0) {
        return 0.0;
    }
    // Any start with a part in the direction that is looked for; signs that alternate suit the triangles of a QR.
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

/// `x <- R⁻¹ x` for the leading triangle of the length of x.
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

    /// Spectra of which the mean beyond l is known: exponential, flat; and those of which nothing is said.
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

    /// `(G − c I) Ω`, and G as it was.
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
