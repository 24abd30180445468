//! The weight that calibration puts on errors: a root L of second moments, which exists for any statistics.
//!
//! ```text
//!   M  =  b · G / N  +  (1 − b) · μ I             μ = tr G / (N n), the mean square of an input; b the blend
//!   L Lᵀ  =  M  +  τ μ I  +  ρ diag M                Cholesky in f64, n³/3 flops       (Gram)
//!   L  =  Rᵀ of qr([√(b/N) R; √(1 − b + τ) √μ I])    4/3 n³ and more, no squaring      (factor)
//!   L  =  √diag(M + τ μ I)                           O(n)                              (diagonal)
//! ```
//!
//! The optimum for `‖(W − W') L‖` is `W' = U_k U_kᵀ W`, `U` the left singular vectors of `W L` (`svd/calibrated.rs`). L
//! is never inverted, so that it may be singular; the two shifts have other reasons. `ρ = 8 n 2^-53` is what Cholesky's
//! rounding can take from a diagonal (Demmel 1989, Higham 10.7: success if the scaled matrix is definite by that much),
//! proportional to each feature's own moment, so that features of any scale keep their weight. `τ = n (32 eps)²`, eps
//! of the arithmetic, is the least weight that a direction needs to be seen beside the largest: where the samples say
//! nothing (fewer samples than features, dead features), the ranks that are left go to the largest part of W itself
//! (`benches/NOTES.md`).
//!
//! **Blend.** With few samples G is an estimate, and full trust in it (b = 1) is not the best choice; [`BLENDS`] are
//! the candidates of [`TruncatedSvd::choose_blend`](crate::TruncatedSvd::choose_blend), which measures them on the
//! samples.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve;
use faer::prelude::ReborrowMut as _;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::calibration::{CachedRoot, Calibration};
use crate::error::{Error, Result};
use crate::linalg::{column, column_mut};
use crate::operator::{Entries, Triangle};
use crate::parallel::{self, row_blocks};
use crate::qr::householder;
use crate::simd::Scalar;
use crate::tensor::Element;

/// The part of the second moments that weights the error.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Whitening {
    /// The whole matrix: the optimum for the calibration samples.
    #[default]
    Full,
    /// The mean square of each feature, as if features were independent (in the manner of ASVD). It takes O(n), and
    /// hardly overfits.
    Diagonal,
}

impl Whitening {
    /// Returns the name: `"full"` or `"diagonal"`.
    pub const fn name(self) -> &'static str {
        match self {
            Whitening::Full => "full",
            Whitening::Diagonal => "diagonal",
        }
    }
}

impl std::fmt::Display for Whitening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Whitening {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Whitening::Full, Whitening::Diagonal]
            .into_iter()
            .find(|w| w.name() == s)
            .ok_or_else(|| Error::option("whitening", s, "full or diagonal"))
    }
}

/// The candidates of [`TruncatedSvd::choose_blend`](crate::TruncatedSvd::choose_blend): from the plain SVD to full
/// trust in the samples.
pub const BLENDS: [f64; 9] = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0];

/// The relative shift of the diagonal for Cholesky, per feature and unit roundoff.
const CHOLESKY_SHIFT: f64 = 8.0;

/// The least weight of a direction, in eps of the arithmetic against the largest that n features can have.
const LEAST_WEIGHT_IN_EPS: f64 = 32.0;

/// How often the shift is taken 1000 times larger before Cholesky gives up.
const ATTEMPTS: i32 = 4;

/// The weight of directions without samples: the least that the arithmetic sees, `τ`, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnsampledWeight {
    Least,
    None,
}

/// Second moments of inputs that are not formed yet: `M = trust · G + shift · I`, as a whole or its diagonal.
#[derive(Debug, Clone)]
pub(crate) struct Moments<'c> {
    /// The statistics. Without them, or with statistics of zeros only, `M = I`.
    calibration: Option<&'c Calibration>,
    n: usize,
    whitening: Whitening,
    trust: f64,
    shift: f64,
    mean: f64,
    /// The exponent e: M is the mean of `x xᵀ` times `4^-e`, and the root mean square of an input is `2^e` or up to
    /// twice that.
    exponent: i32,
}

impl<'c> Moments<'c> {
    /// Makes the identity, the moments of inputs about which nothing is known.
    pub(crate) fn identity(n: usize) -> Self {
        let whitening = Whitening::Diagonal;
        Moments { calibration: None, n, whitening, trust: 0.0, shift: 1.0, mean: 1.0, exponent: 0 }
    }

    /// Makes the blended moments of `c` for arithmetic in `T`.
    pub(crate) fn blended<T: Scalar>(
        c: &'c Calibration,
        whitening: Whitening,
        blend: f64,
        fill: UnsampledWeight,
    ) -> Result<Self> {
        let n = c.features();
        check_blend(blend)?;
        if c.samples() == 0 {
            return Err(Error::unsuited(
                "calibration",
                "has seen no sample that is finite; give statistics of at least one",
            ));
        }
        let per_sample = 1.0 / c.samples() as f64;
        let mean: f64 = c.squares().iter().map(|s| s * per_sample / n as f64).sum();
        if mean == 0.0 {
            return Ok(Moments::identity(n));
        }
        // A power of four brings μ into [1, 4), so that L keeps its range in any T.
        let exponent = (mean.log2() / 2.0).floor() as i32;
        let scale = 4f64.powi(-exponent);
        let (trust, mean) = (blend * per_sample * scale, mean * scale);
        let least = match fill {
            UnsampledWeight::Least => n as f64 * (LEAST_WEIGHT_IN_EPS * T::EPSILON).powi(2),
            UnsampledWeight::None => 0.0,
        };
        let shift = (1.0 - blend + least) * mean;
        Ok(Moments { calibration: Some(c), n, whitening, trust, shift, mean, exponent: exponent + c.exponent() })
    }

    /// Makes the mean of `x xᵀ` over the samples of `c`, unblended.
    pub(crate) fn of<T: Scalar>(c: &'c Calibration) -> Result<Self> {
        Moments::blended::<T>(c, Whitening::Full, 1.0, UnsampledWeight::None)
    }

    /// Returns the exponent e: L is `2^-e` times a root of the mean of `x xᵀ`, as far as the samples are trusted.
    pub(crate) fn exponent(&self) -> i32 {
        self.exponent
    }

    /// Returns the note for the report on the moments.
    pub(crate) fn note(&self, calibrated: bool) -> Option<String> {
        let of_zeros = calibrated && self.calibration.is_none();
        of_zeros.then(|| "all calibration inputs are zero; factored as without calibration".to_owned())
    }

    /// Tells whether M exists as a matrix, so that L is not needed.
    pub(crate) fn are_a_matrix(&self) -> bool {
        self.whitening == Whitening::Full
            && self.calibration.is_some_and(|c| c.options().form == crate::calibration::Form::Gram)
    }

    /// Returns the diagonal of M.
    pub(crate) fn diagonal(&self) -> Vec<f64> {
        match self.calibration {
            Some(c) => c.squares().iter().map(|s| self.trust * s + self.shift).collect(),
            None => vec![self.shift; self.n],
        }
    }

    /// Writes the lower triangle of M into that of `dst`, with zeros above.
    pub(crate) fn write_lower<T: Scalar>(&self, dst: MatMut<'_, T>, par: Par) {
        let g = match self.calibration {
            Some(c) if self.whitening == Whitening::Full => c.gram_lower(par),
            _ => Arc::new(Mat::zeros(0, 0)),
        };
        let diagonal = self.diagonal();
        let whole = g.ncols() > 0;
        let columns: Vec<_> = dst.col_iter_mut().enumerate().collect();
        parallel::for_each_of(par, columns, |(j, dst)| {
            let dst = dst.try_as_col_major_mut().expect("panels are column-major").as_slice_mut();
            if whole {
                let src = &column(Mat::as_ref(&g), j)[j..];
                dst[j..].iter_mut().zip(src).for_each(|(d, s)| *d = <T as Element>::from_f64(self.trust * s));
                dst[j] = <T as Element>::from_f64(self.trust * src[0] + self.shift);
            } else {
                dst[j..].fill(T::zeroed());
                dst[j] = <T as Element>::from_f64(diagonal[j]);
            }
            dst[..j].fill(T::zeroed());
        });
    }

    /// Computes L with `L Lᵀ = M` (with the shifts that the head of this module lists), and notes on what had to be
    /// done for it.
    pub(crate) fn root<T: Scalar>(&self, par: Par) -> Result<(Entries<T>, Vec<String>)> {
        let c = match self.calibration {
            Some(c) if self.whitening == Whitening::Full => c,
            _ => {
                let root = self.diagonal().into_iter().map(|d| <T as Element>::from_f64(d.sqrt())).collect();
                return Ok((Entries::Diagonal(root), Vec::new()));
            }
        };
        let (trust, shift) = (self.trust, self.shift);
        let CachedRoot { l, notes, .. } = match c.cached_root(trust, shift, T::DTYPE) {
            Some(root) => root,
            None => {
                let (l, notes) = triangular_root::<T>(c, (trust, shift, self.mean), par)?;
                let root = CachedRoot { trust, shift, l: Arc::new(l), notes };
                c.cache_root(root.clone());
                root
            }
        };
        Ok((Entries::Lower(l), notes))
    }
}

/// Computes L with `L Lᵀ = trust · G + shift · I`, kept in T, and notes on what had to be done for it.
fn triangular_root<T: Scalar>(
    c: &Calibration,
    (trust, shift, mean): (f64, f64, f64),
    par: Par,
) -> Result<(Triangle, Vec<String>)> {
    let n = c.features();
    if let Some(r) = c.factor() {
        let mut stacked = Mat::zeros(2 * n, n);
        for j in 0..n {
            for i in 0..=j {
                stacked[(i, j)] = trust.sqrt() * r[(i, j)];
            }
            stacked[(n + j, j)] = shift.sqrt();
        }
        let mut t = Mat::zeros(householder::block_size(2 * n, n), n);
        let mut scratch = MemBuffer::new(householder::factor_scratch::<f64>(2 * n, n, par));
        householder::factor(stacked.as_mut(), t.as_mut(), par, MemStack::new(&mut scratch));
        let mut l = Triangle::zeros::<T>(n, par);
        for (j, to) in l.as_mut::<T>().col_iter_mut().enumerate() {
            let from = stacked.row(j).subcols(j, n - j).iter();
            to.subrows_mut(j, n - j).iter_mut().zip(from).for_each(|(to, x)| *to = <T as Element>::from_f64(*x));
        }
        return Ok((l, Vec::new()));
    }
    let own = CHOLESKY_SHIFT * n as f64 * f64::EPSILON / 2.0;
    let g = c.gram_lower(par);
    let mut l = Triangle::zeros::<T>(n, par);
    let mut attempt = |attempt: i32| {
        let more = 1000f64.powi(attempt) * own;
        let gained = shift + if attempt == 0 { 0.0 } else { more * mean };
        let moments = |i: usize, j: usize, to: &mut [f64]| {
            to.iter_mut().zip(&column(Mat::as_ref(&g), j)[i..]).for_each(|(to, g)| *to = trust * g);
            if i == j {
                to[0] += gained + more * to[0];
            }
        };
        cholesky(moments, l.as_mut::<T>(), par).then_some(attempt)
    };
    let attempt = (0..ATTEMPTS).find_map(&mut attempt).ok_or_else(|| Error::Format {
        what: "calibration statistics",
        why: "no samples have a Gram matrix with such negative eigenvalues; gather the statistics again".to_owned(),
    })?;
    let mut notes = Vec::new();
    if attempt > 0 {
        notes.push(format!(
            "the calibration statistics are not semidefinite to rounding; shifted by {:.1e} of their diagonal",
            1000f64.powi(attempt) * own
        ));
    }
    Ok((l, notes))
}

/// Returns as many samples as there are features, as rows. Their second moments are the mean ones of the samples that
/// `c` has seen, times `4^-e`, where e is the exponent of [`Moments::of`].
pub(crate) fn equivalent_samples(c: &Calibration, par: Par) -> Result<Mat<f64>> {
    if c.samples() > 0 && c.dead().count() == c.features() {
        return Ok(Mat::zeros(1, c.features()));
    }
    let Moments { trust, shift, mean, .. } = Moments::of::<f64>(c)?;
    // The root is not kept, because it is for one look at samples that are held out.
    let (root, _) = triangular_root::<f64>(c, (trust, shift, mean), par)?;
    Ok(root.entries::<f64>().transpose().to_owned())
}

pub(crate) fn check_blend(blend: f64) -> Result<()> {
    if (0.0..=1.0).contains(&blend) {
        return Ok(());
    }
    Err(Error::option("blend", blend, "a number from 0 (plain) to 1 (fully whitened)"))
}

/// Factors a matrix by blocks of columns: `l <- L`, rounded. `write(i, j, to)` writes column j of the matrix from row i
/// on, in f64. Returns false if a pivot was not positive.
///
/// ```text
///   [ x         ]      left-looking: the square on the diagonal and strips of rows below, each by one thread, so
///   [ x x       ]      that the bits do not depend on their number, are written and reduced by the products of the
///   [ x x x     ]      blocks to the left; faer factors the square beside the others, which then have their
///   [ 0   1   2 ]      triangular solve. What is done is rounded while it is in cache.
/// ```
fn cholesky<T: Scalar>(write: impl Fn(usize, usize, &mut [f64]) + Sync, mut l: MatMut<'_, T>, par: Par) -> bool {
    /// A part: its first row, its elements in f64, and the place where it is kept.
    type Part<'a, T> = (usize, MatMut<'a, f64>, MatMut<'a, T>);
    let n = l.nrows();
    let mut blocks: Vec<Mat<f64>> = Vec::new();
    for first in (0..n).step_by(CHOLESKY.block) {
        let (rows, width) = (n - first, CHOLESKY.block.min(n - first));
        let mut block = Mat::zeros(rows, width);
        let (square, below) = block.as_mut().split_at_row_mut(width);
        let (kept_square, kept_below) = l.rb_mut().submatrix_mut(first, first, rows, width).split_at_row_mut(width);
        let mut parts: Vec<Part<'_, T>> = vec![(0, square, kept_square)];
        let strips = row_blocks(below, CHOLESKY.rows).into_iter().zip(row_blocks(kept_below, CHOLESKY.rows));
        parts.extend(strips.map(|((top, x), (_, kept))| (width + top, x, kept)));
        let failed = AtomicBool::new(false);
        parallel::for_each_of(par, parts.iter_mut().collect(), |(top, x, kept): &mut Part<'_, T>| {
            for (j, x) in x.rb_mut().col_iter_mut().enumerate() {
                let above = if *top == 0 { j } else { 0 };
                let x = x.try_as_col_major_mut().expect("an owned matrix").as_slice_mut();
                write(first + *top + above, first + j, &mut x[above..]);
            }
            for block in &blocks {
                let left = block.subrows(block.nrows() - rows, rows);
                let (from, across) = (left.subrows(*top, x.nrows()), left.subrows(0, width).transpose());
                matmul(x.rb_mut(), Accum::Add, from, across, -1.0, Par::Seq);
            }
            if *top == 0 {
                match factor(x.rb_mut()) {
                    true => round(x.as_ref(), kept.rb_mut(), true),
                    false => failed.store(true, Ordering::Relaxed),
                }
            }
        });
        if failed.into_inner() {
            return false;
        }
        let (square, strips) = parts.split_first_mut().expect("the square");
        let diagonal = square.1.as_ref();
        parallel::for_each_of(par, strips.iter_mut().collect(), |(_, x, kept): &mut Part<'_, T>| {
            // X Lᵀ = A is the same as L Xᵀ = Aᵀ.
            triangular_solve::solve_lower_triangular_in_place(diagonal, x.rb_mut().transpose_mut(), Par::Seq);
            round(x.as_ref(), kept.rb_mut(), false);
        });
        blocks.push(block);
    }
    true
}

/// Returns the bytes alive in [`cholesky`], besides what is kept.
pub(crate) fn cholesky_bytes(n: usize) -> usize {
    (0..n).step_by(CHOLESKY.block).map(|first| (n - first) * CHOLESKY.block * size_of::<f64>()).sum()
}

/// Computes `to <- from`, for a triangle its lower half.
fn round<T: Scalar>(from: MatRef<'_, f64>, mut to: MatMut<'_, T>, lower: bool) {
    for j in 0..from.ncols() {
        let above = if lower { j } else { 0 };
        let to = column_mut(to.rb_mut(), j)[above..].iter_mut();
        to.zip(&column(from, j)[above..]).for_each(|(to, x)| *to = <T as Element>::from_f64(*x));
    }
}

/// Factors a square in its lower triangle; returns false if it is not positive definite.
fn factor(mut a: MatMut<'_, f64>) -> bool {
    let n = a.nrows();
    let mut scratch = MemBuffer::new(llt::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut scratch);
    llt::cholesky_in_place(a.rb_mut(), Default::default(), Par::Seq, stack, Default::default()).is_ok()
        && (0..n).all(|j| a[(j, j)].is_finite())
}

/// Block sizes of [`cholesky`].
struct CholeskyParams {
    /// Columns of a block.
    block: usize,
    /// Rows of a strip.
    rows: usize,
}

/// The sizes that the bench `whiten` found fastest.
const CHOLESKY: CholeskyParams = CholeskyParams { block: 96, rows: 48 };

#[cfg(test)]
mod tests {
    use super::*;

    fn root<T: Scalar>(a: &Mat<f64>, par: Par) -> Option<Mat<T>> {
        let n = a.nrows();
        let mut l = Mat::<T>::zeros(n, n);
        let write = |i: usize, j: usize, to: &mut [f64]| to.copy_from_slice(&column(a.as_ref(), j)[i..i + to.len()]);
        cholesky(write, l.as_mut(), par).then_some(l)
    }

    fn check<T: Scalar>(n: usize) {
        let entry = |i: usize, j: usize| 1.0 / (1.0 + ((i * 31 + j * 17) % 101) as f64);
        let factor = Mat::from_fn(n, n, |i, j| if i == j { 2.0 } else { entry(i, j) });
        let whole = &factor * factor.transpose();
        // Elements above the diagonal must not be read.
        let a = Mat::from_fn(n, n, |i, j| if i < j { f64::NAN } else { whole[(i, j)] });
        let l = root::<T>(&a, Par::Seq).expect("a definite matrix");
        assert!(l == root::<T>(&a, Par::rayon(2)).unwrap(), "{n}: the bits depend on the threads");
        let wide = Mat::from_fn(n, n, |i, j| Element::to_f64(l[(i, j)]));
        assert!((0..n).all(|j| (0..j).all(|i| wide[(i, j)] == 0.0)), "{n}: not a lower triangle");
        let off = &wide * wide.transpose() - &whole;
        let bound = 4.0 * n as f64 * f64::EPSILON + 4.0 * T::EPSILON;
        for (i, j) in (0..n).flat_map(|j| (0..n).map(move |i| (i, j))) {
            let size = (whole[(i, i)] * whole[(j, j)]).sqrt();
            assert!(off[(i, j)].abs() <= bound * size, "{n}: ({i}, {j}) is off by {:e}", off[(i, j)] / size);
        }
    }

    /// Compares with the definition, whose error is that of the rounding of L: parts of strips, strips, squares and
    /// blocks.
    #[test]
    fn cholesky_is_a_root() {
        for n in [1, 2, 47, 48, 49, 95, 96, 97, 145, 192, 300] {
            check::<f32>(n);
            check::<f64>(n);
        }
    }

    /// The matrix is not definite in the first block, or in a later one.
    #[test]
    fn cholesky_finds_what_is_not_definite() {
        for at in [0, 95, 96, 250] {
            let a = Mat::from_fn(300, 300, |i, j| match i == j {
                true if i == at => -1.0,
                same => f64::from(u8::from(same)),
            });
            assert!(root::<f32>(&a, Par::rayon(2)).is_none(), "{at}");
        }
    }
}
