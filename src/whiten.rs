//! The weight that calibration puts on errors: a root L of second moments, which any statistics have.
//!
//! ```text
//!   M  =  b · G / N  +  (1 − b) · μ I             μ = tr G / (N n), the mean square of an input; b the blend
//!   L Lᵀ  =  M  +  τ μ I  +  ρ diag M                Cholesky in f64, n³/3 flops       (Gram)
//!   L  =  Rᵀ of qr([√(b/N) R; √(1 − b + τ) √μ I])    4/3 n³ and more, no squaring      (factor)
//!   L  =  √diag(M + τ μ I)                           O(n)                              (diagonal)
//! ```
//!
//! The optimum for `‖(W − W') L‖` is `W' = U_k U_kᵀ W`, `U` the left singular vectors of `W L` (`svd/whitened.rs`): L is never inverted, so
//! it may be singular, and the two shifts are there for other reasons. `ρ = 8 n 2^-53` is what Cholesky's rounding can take from
//! a diagonal (Demmel 1989, Higham 10.7: success if the scaled matrix is definite by that much), proportional to each feature's own
//! moment, so that features of any scale keep their weight. `τ = n (32 eps)²`, eps of the arithmetic, is the least weight that a
//! direction needs to be seen beside the largest: where the samples say nothing (fewer samples than features, dead features),
//! the ranks that are left go to the largest part of W itself. On `ffn_down` with 64 samples at rank 95 that takes the heldout error from
//! 0.2214 to 0.2038; where the samples say enough it changes the loss by less than rounding does.
//!
//! **Blend.** With few samples G is an estimate, and full trust in it (b = 1) is not the best choice; [`BLENDS`] are the candidates
//! of [`TruncatedSvd::choose_blend`](crate::TruncatedSvd::choose_blend), which asks the samples themselves.

use std::sync::Arc;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve;
use faer::prelude::ReborrowMut as _;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::calibration::{CachedRoot, Calibration, for_each};
use crate::error::{Error, Result};
use crate::operator::{Entries, Triangle};
use crate::qr::{column, householder};
use crate::simd::Scalar;
use crate::tensor::Element;

/// What of the second moments weighs the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Whitening {
    /// All of them: the optimum for the calibration samples.
    #[default]
    Full,
    /// The mean square of each feature, as if they were independent (in the manner of ASVD): O(n), and hardly anything to overfit.
    Diagonal,
}

impl Whitening {
    /// `"full"` or `"diagonal"`.
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

/// What [`TruncatedSvd::choose_blend`](crate::TruncatedSvd::choose_blend) tries: plain, and ever closer to all trust in the samples.
pub const BLENDS: [f64; 9] = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0];

/// Relative shift of the diagonal per feature and unit roundoff that Cholesky is given.
const CHOLESKY_SHIFT: f64 = 8.0;

/// The least weight of a direction, in eps of the arithmetic against the largest that n features can have.
const LEAST_WEIGHT_IN_EPS: f64 = 32.0;

/// How often the shift is taken 1000 times larger before Cholesky is given up.
const ATTEMPTS: i32 = 4;

/// Whether directions without samples get the least weight that arithmetic sees, `τ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    Visible,
    None,
}

/// Second moments of inputs, not formed yet: `M = trust · G + shift · I`, as a whole or its diagonal.
#[derive(Debug, Clone)]
pub(crate) struct Moments<'c> {
    /// Without one, or with one that has seen zeros only, `M = I`.
    calibration: Option<&'c Calibration>,
    n: usize,
    whitening: Whitening,
    trust: f64,
    shift: f64,
    mean: f64,
    /// M is the mean of `x xᵀ` times this, a power of four.
    scale: f64,
}

impl<'c> Moments<'c> {
    /// Of inputs that say nothing.
    pub(crate) fn identity(n: usize) -> Self {
        let whitening = Whitening::Diagonal;
        Moments { calibration: None, n, whitening, trust: 0.0, shift: 1.0, mean: 1.0, scale: 1.0 }
    }

    /// The blended moments of `c` for arithmetic in `T`.
    pub(crate) fn blended<T: Scalar>(c: &'c Calibration, whitening: Whitening, blend: f64, fill: Fill) -> Result<Self> {
        let n = c.features();
        check_blend(blend)?;
        if c.samples() == 0 {
            return Err(Error::option("calibration", "no samples", "statistics of at least one finite sample"));
        }
        let per_sample = 1.0 / c.samples() as f64;
        let mean: f64 = c.squares().iter().map(|s| s * per_sample / n as f64).sum();
        if mean == 0.0 {
            return Ok(Moments::identity(n));
        }
        // A power of four brings μ into [1, 4), so that L keeps its range in any T.
        let scale = 4f64.powi(-((mean.log2() / 2.0).floor() as i32));
        let (trust, mean) = (blend * per_sample * scale, mean * scale);
        let least = match fill {
            Fill::Visible => n as f64 * (LEAST_WEIGHT_IN_EPS * T::EPSILON).powi(2),
            Fill::None => 0.0,
        };
        let shift = (1.0 - blend + least) * mean;
        Ok(Moments { calibration: Some(c), n, whitening, trust, shift, mean, scale })
    }

    /// The mean of `x xᵀ` over the samples of `c`, as it is.
    pub(crate) fn of<T: Scalar>(c: &'c Calibration) -> Result<Self> {
        Moments::blended::<T>(c, Whitening::Full, 1.0, Fill::None)
    }

    /// M is the mean of `x xᵀ` times this, a power of four.
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// What the report should say of them.
    pub(crate) fn note(&self, calibrated: bool) -> Option<String> {
        let of_zeros = calibrated && self.calibration.is_none();
        of_zeros.then(|| "all calibration inputs are zero; factored as without calibration".to_owned())
    }

    /// Whether M is at hand as a matrix, so that L is a detour.
    pub(crate) fn are_a_matrix(&self) -> bool {
        self.whitening == Whitening::Full
            && self.calibration.is_some_and(|c| c.options().form == crate::calibration::Form::Gram)
    }

    /// The diagonal of M.
    pub(crate) fn diagonal(&self) -> Vec<f64> {
        match self.calibration {
            Some(c) => c.squares().iter().map(|s| self.trust * s + self.shift).collect(),
            None => vec![self.shift; self.n],
        }
    }

    /// The lower triangle of M into that of `dst`, zeros above.
    pub(crate) fn write_lower<T: Scalar>(&self, dst: MatMut<'_, T>, par: Par) {
        let g = match self.calibration {
            Some(c) if self.whitening == Whitening::Full => c.gram_lower(par),
            _ => Arc::new(Mat::zeros(0, 0)),
        };
        let diagonal = self.diagonal();
        let whole = g.ncols() > 0;
        let columns: Vec<_> = dst.col_iter_mut().enumerate().collect();
        for_each(columns, par, |(j, dst)| {
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

    /// L with `L Lᵀ = M` (and the shifts of the module's first lines), and notes on what had to be done for it.
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
                let (l, notes) = triangular_root(c, (trust, shift, self.mean), par)?;
                let root = CachedRoot { trust, shift, l: Arc::new(l.kept_in::<T>(par)), notes };
                c.cache_root(root.clone());
                root
            }
        };
        Ok((Entries::Lower(l), notes))
    }
}

/// The lower triangle of L with `L Lᵀ = trust · G + shift · I` (what is above it is not L), and what had to be done for it.
fn triangular_root(
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
        let mut l = Triangle::zeros(n);
        for (j, column) in l.columns().enumerate() {
            column[j..].iter_mut().zip(stacked.row(j).iter().skip(j)).for_each(|(l, r)| *l = *r);
        }
        return Ok((l, Vec::new()));
    }
    let own = CHOLESKY_SHIFT * n as f64 * f64::EPSILON / 2.0;
    let g = c.gram_lower(par);
    let attempt = |attempt: i32| {
        let mut l = Triangle::zeros(n);
        let more = 1000f64.powi(attempt) * own;
        let gained = shift + if attempt == 0 { 0.0 } else { more * mean };
        let columns: Vec<_> = l.columns().zip(g.col_iter()).enumerate().collect();
        for_each(columns, par, |(j, (l, g))| {
            let l = &mut l[j..];
            let g = &g.try_as_col_major().expect("an owned matrix").as_slice()[j..];
            l.iter_mut().zip(g).for_each(|(l, g)| *l = trust * g);
            l[0] += gained + more * l[0];
        });
        cholesky(l.as_mut(), par).then_some((l, attempt))
    };
    let (l, attempt) = (0..ATTEMPTS).find_map(attempt).ok_or(Error::NoConvergence {
        op: "Cholesky of the calibration statistics (they are not those of any samples)",
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

/// As many samples as there are features, as rows, and a power of four: their second moments are the mean ones of the
/// samples that `c` has seen, times that.
pub(crate) fn equivalent_samples(c: &Calibration, par: Par) -> Result<(Mat<f64>, f64)> {
    if c.samples() > 0 && c.dead().count() == c.features() {
        return Ok((Mat::zeros(1, c.features()), 1.0));
    }
    let moments = Moments::of::<f64>(c)?;
    match moments.root::<f64>(par)?.0 {
        Entries::Lower(l) => Ok((l.entries::<f64>().transpose().to_owned(), moments.scale())),
        Entries::Diagonal(_) => unreachable!("full moments have a triangular root"),
    }
}

pub(crate) fn check_blend(blend: f64) -> Result<()> {
    if (0.0..=1.0).contains(&blend) {
        return Ok(());
    }
    Err(Error::option("blend", blend, "a number from 0 (plain) to 1 (fully whitened)"))
}

/// `a <- L` in the lower triangle; false if a pivot was not positive. Right-looking by blocks of columns: faer's factorization for
/// the block on the diagonal, its triangular solve for groups of the rows below, SYRK for the rest, so that the bits do not depend on
/// the number of threads.
fn cholesky(mut a: MatMut<'_, f64>, par: Par) -> bool {
    let n = a.nrows();
    let scratch = llt::cholesky_in_place_scratch::<f64>(CHOLESKY.block.min(n), Par::Seq, Default::default());
    let mut scratch = MemBuffer::new(scratch);
    for first in (0..n).step_by(CHOLESKY.block) {
        let width = CHOLESKY.block.min(n - first);
        let (left, mut rest) = a.rb_mut().submatrix_mut(first, first, n - first, n - first).split_at_col_mut(width);
        let (mut diagonal, mut below) = left.split_at_row_mut(width);
        let stack = MemStack::new(&mut scratch);
        if llt::cholesky_in_place(diagonal.as_mut(), Default::default(), Par::Seq, stack, Default::default()).is_err() {
            return false;
        }
        let diagonal = diagonal.as_ref();
        // X Lᵀ = A  is  L Xᵀ = Aᵀ.
        let solve = |rows: MatMut<'_, f64>| {
            triangular_solve::solve_lower_triangular_in_place(diagonal, rows.transpose_mut(), Par::Seq);
        };
        let mut groups = Vec::new();
        let mut left = below.as_mut();
        while left.nrows() > 0 {
            let rows = CHOLESKY.rows.min(left.nrows());
            let (group, others) = left.split_at_row_mut(rows);
            groups.push(group);
            left = others;
        }
        match par {
            Par::Seq => groups.into_iter().for_each(solve),
            Par::Rayon(_) => groups.into_par_iter().for_each(solve),
        }
        let rest = rest.as_mut().subrows_mut(width, n - first - width);
        subtract_symmetric(below.as_ref(), rest, par);
    }
    (0..n).all(|j| a[(j, j)].is_finite())
}

/// The lower triangle of `c <- c − b bᵀ`.
fn subtract_symmetric(b: MatRef<'_, f64>, c: MatMut<'_, f64>, par: Par) {
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(c, lower, Accum::Add, b, full, b.transpose(), full, -1.0, par);
}

/// Block sizes of [`cholesky`].
struct CholeskyParams {
    /// Columns of a block.
    block: usize,
    /// Rows that one task solves for.
    rows: usize,
}

/// Bench `whiten`.
const CHOLESKY: CholeskyParams = CholeskyParams { block: 128, rows: 128 };
