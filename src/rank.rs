//! How many singular triplets to keep: of one matrix, and of many that share a budget.
//!
//! A rank `k` factorization of an `m × n` matrix has `k (m + n + 1)` numbers (U, s, V), so it saves memory only while
//! `k (m + n + 1) < m n`.
//!
//! Energy and tolerance are one rule: the share of `‖A‖_F²` that may be lost. [`rank_for_loss`] finds the smallest rank
//! for it from the singular values that a method shows, and randQB finds the subspace that shows them
//! (`svd/methods/adaptive.rs`).

mod budget;

pub use budget::{Allocation, Budget, Cost, Layer, Share, allocate, uniform};

use crate::error::{Error, Result};

/// The rule by which the rank of a factorization is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Rank {
    /// This rank, `1 <= k <= min(m, n)`.
    Fixed(usize),
    /// The largest rank whose factors are at least `r` times smaller than the matrix: `m n / (k (m+n+1)) >= r`.
    Ratio(f64),
    /// The smallest rank for which the method can show that `Σ_{i<=k} σ_i² >= e ‖A‖_F²`, `0 < e <= 1`.
    ///
    /// The energy is that of the whole matrix, not of the part that was computed. [`Method::Full`](crate::Method::Full)
    /// and [`Method::Gram`](crate::Method::Gram) see every σ and take the smallest rank there is. The other methods see
    /// the values of their subspace, which are a little smaller, and may take a larger rank (by up to an eighth on the
    /// weights of `tests/data`).
    Energy(f64),
    /// The smallest rank for which the method can show that the outputs on given inputs have a cosine of at least `q`
    /// with the true outputs, `0 < q < 1`. The inputs come from [`quality_on`](crate::TruncatedSvd::quality_on) or from
    /// the calibration.
    Quality(f64),
    /// The smallest rank for which the method can show that `‖A − U diag(s) Vᵀ‖_F <= ε ‖A‖_F`, `0 < ε < 1`. It is the
    /// rule [`Energy(1 − ε²)`](Rank::Energy) without the digits that `1 − ε²` would lose.
    Tolerance(f64),
    /// The number of singular values above `σ`, `σ >= 0`, or 1 if there is none.
    ///
    /// [`Method::Full`](crate::Method::Full) sees every σ, [`Method::Gram`](crate::Method::Gram) counts those above by the
    /// inertia of `AᵀA − σ² I` and has the values of a fixed rank of that number, and
    /// [`Method::Auto`](crate::Method::Auto) takes one of them. [`Method::Randomized`](crate::Method::Randomized) is
    /// faster where few values are above `σ` and the others well below; it enlarges a subspace until a block of it shows
    /// none, may miss some just above `σ` where many are near, and says so in a note. There is no such rule under a
    /// calibration, which changes what the values measure.
    Above(f64),
    /// The numerical rank: the number of singular values that are not rounding, those above `4 √max(m, n) eps σ_1` with
    /// the eps of the arithmetic, or 1 if all are 0.
    ///
    /// [`Method::Full`](crate::Method::Full) alone resolves values that small, and
    /// [`Method::Auto`](crate::Method::Auto) takes it. There is no such rule under a calibration.
    Numerical,
}

impl std::fmt::Display for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rank::Fixed(k) => write!(f, "rank {k}"),
            Rank::Ratio(r) => write!(f, "ratio {r}"),
            Rank::Energy(e) => write!(f, "energy {e}"),
            Rank::Quality(q) => write!(f, "quality {q}"),
            Rank::Tolerance(t) => write!(f, "tolerance {t}"),
            Rank::Above(s) => write!(f, "above {s}"),
            Rank::Numerical => f.write_str("numerical rank"),
        }
    }
}

impl Rank {
    /// Tells whether the rule counts singular values of the weight itself, which weights of the error would change.
    #[cfg(feature = "linalg")]
    pub(crate) fn counts_values(self) -> bool {
        matches!(self, Rank::Above(_) | Rank::Numerical)
    }

    /// Returns whether the spectrum decides, of the matrix or of its outputs, and not the shape.
    #[cfg(feature = "linalg")]
    pub(crate) fn looks_at_spectrum(self) -> bool {
        !matches!(self, Rank::Fixed(_) | Rank::Ratio(_))
    }

    /// Returns the rank for an `m × n` matrix if its shape decides it, or `None` if the spectrum does, of the matrix or
    /// of its outputs ([`allowed_loss`](Self::allowed_loss)).
    ///
    /// # Errors
    /// [`Error::Rank`] for a fixed rank outside `1..=min(m, n)`; [`Error::Option`] for a ratio, an energy, a quality, a
    /// tolerance or a threshold outside its range, or a ratio that no rank reaches.
    pub fn from_shape(self, m: usize, n: usize) -> Result<Option<usize>> {
        let max = m.min(n);
        match self {
            Rank::Fixed(k) if (1..=max).contains(&k) => Ok(Some(k)),
            Rank::Fixed(rank) => Err(Error::Rank { rank, max }),
            Rank::Ratio(r) if !(r.is_finite() && r > 0.0) => {
                Err(Error::option("ratio", r, "a finite number greater than 0"))
            }
            Rank::Ratio(r) => match rank_for_ratio(m, n, r) {
                0 => Err(Error::option("ratio", r, "less: at this shape even rank 1 does not reach it")),
                k => Ok(Some(k)),
            },
            Rank::Energy(e) if e > 0.0 && e <= 1.0 => Ok(None),
            Rank::Energy(e) => Err(Error::option("energy", e, "a number in (0, 1]")),
            Rank::Quality(q) if q > 0.0 && q < 1.0 => Ok(None),
            Rank::Quality(q) => Err(Error::option("quality", q, "a cosine above 0 and below 1")),
            Rank::Tolerance(t) if t > 0.0 && t < 1.0 => Ok(None),
            Rank::Tolerance(t) => Err(Error::option("tolerance", t, "a number above 0 and below 1")),
            Rank::Numerical => Ok(None),
            Rank::Above(s) if s.is_finite() && s >= 0.0 => Ok(None),
            Rank::Above(s) => Err(Error::option("threshold", s, "a finite number, 0 or more")),
        }
    }

    /// Returns the share of `‖A‖_F²` that the factors may lose, for the rules that name one: `1 − e` or `ε²`, and
    /// `1 − q²`, which is a share of the outputs' energy.
    pub fn allowed_loss(self) -> Option<f64> {
        match self {
            Rank::Fixed(_) | Rank::Ratio(_) | Rank::Above(_) | Rank::Numerical => None,
            Rank::Energy(e) => Some(1.0 - e),
            Rank::Tolerance(t) => Some(t * t),
            Rank::Quality(q) => Some(1.0 - q * q),
        }
    }
}

/// Returns the largest `k <= min(m, n)` with `m n / (k (m+n+1)) >= ratio`, or 0 if there is none.
pub fn rank_for_ratio(m: usize, n: usize, ratio: f64) -> usize {
    let (before, per_rank) = (m as f64 * n as f64, (m + n + 1) as f64);
    let reaches = |k: usize| before / (k as f64 * per_rank) >= ratio;
    // The quotient rounds; one step either way settles it.
    let guess = (before / (ratio * per_rank)).floor().min(m.min(n) as f64) as usize;
    (guess.saturating_sub(1)..=(guess + 1).min(m.min(n))).rev().find(|&k| k > 0 && reaches(k)).unwrap_or(0)
}

/// Returns whether factors of rank `k` have fewer numbers than the `m × n` matrix: `k (m + n + 1) < m n`.
pub fn rank_saves_memory(m: usize, n: usize, k: usize) -> bool {
    (k as u128).checked_mul(m as u128 + n as u128 + 1).is_some_and(|after| after < m as u128 * n as u128)
}

/// Returns the smallest `k >= 1` with `missing + Σ_{i>k} σ_i² <= allowed`, for a nonincreasing `spectrum`, or its
/// length if even all values are not enough. `missing` is the part of `‖A‖_F²` that the spectrum does not show.
///
/// The sum runs from the small end, so that it is right to rounding even where it is far below `σ_1²`. An empty
/// spectrum gives 0.
pub fn rank_for_loss(spectrum: &[f64], missing: f64, allowed: f64) -> usize {
    let mut lost = missing;
    for (k, s) in spectrum.iter().enumerate().rev() {
        lost += s * s;
        if lost > allowed {
            return k + 1;
        }
    }
    spectrum.len().min(1)
}
