//! Makes matrices of any shape whose singular values are known without an SVD.
//!
//! ```text
//!   A = L Σ Rᵀ        L, R orthogonal, each H D H: a Walsh-Hadamard transform, random signs, the transform again
//! ```
//! Σ is given; `L` and `R` cost `O(m n log)` additions and are never formed. One transform would give vectors with all
//! entries of the same modulus; after the second they look like those of a random rotation. Where no transform of
//! order `n` is known, the longest one acts on the first coordinates, then on the last, then on the first again: it
//! is longer than `n/2`, so the two overlap and everything mixes.
//!
//! There are two spectra: `σ_i = i^{-1/2}`, the slow decay of trained weights; and that of a matrix of independent
//! normals (the quantiles of the Marchenko-Pastur law), which has next to nothing to compress and is the hardest for a
//! range finder.

use std::ops::Range;

use faer::Par;
use rayon::prelude::*;
use tensorslim::fwht::{Order, fwht_columns, fwht_rows};
use tensorslim::rng::{Philox, stream};
use tensorslim::{Error, Matrix, Result};

/// The spectrum of a made matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Spectrum {
    PowerLaw,
    Noise,
}

impl Spectrum {
    pub(super) const ALL: [Spectrum; 2] = [Spectrum::PowerLaw, Spectrum::Noise];

    pub(super) fn name(self) -> &'static str {
        match self {
            Spectrum::PowerLaw => "power-law spectrum",
            Spectrum::Noise => "noise spectrum",
        }
    }

    /// Returns the singular values of an `m × n` matrix, nonincreasing, of sum of squares 1.
    pub(super) fn values(self, m: usize, n: usize) -> Vec<f64> {
        let r = m.min(n);
        let mut s: Vec<f64> = match self {
            Spectrum::PowerLaw => (1..=r).map(|i| (i as f64).powf(-0.5)).collect(),
            Spectrum::Noise => marchenko_pastur(r, m.max(n)),
        };
        let norm = s.iter().map(|s| s * s).sum::<f64>().sqrt();
        s.iter_mut().for_each(|s| *s /= norm);
        s
    }
}

/// Computes the quantiles `(i + ½)/r` of the singular values of an `r × big` matrix of normals of variance `1/big`,
/// descending: density `√((b² − s²)(s² − a²)) / s` on `a..b`, `a, b = 1 ∓ √(r/big)`.
fn marchenko_pastur(r: usize, big: usize) -> Vec<f64> {
    let ratio = (r as f64 / big as f64).sqrt();
    let (a, b) = (1.0 - ratio, 1.0 + ratio);
    let steps = 32 * r;
    let at = |i: usize| a + (b - a) * (i as f64 + 0.5) / steps as f64;
    let density = |s: f64| ((b * b - s * s) * (s * s - a * a)).max(0.0).sqrt() / s;
    let total: f64 = (0..steps).map(|i| density(at(i))).sum();
    let (mut sum, mut next, mut s) = (0.0, 0, vec![b; r]);
    for i in 0..steps {
        sum += density(at(i)) / total;
        while next < r && sum >= (next as f64 + 0.5) / r as f64 {
            s[r - 1 - next] = at(i);
            next += 1;
        }
    }
    s
}

/// Computes `τ_k / ‖A‖`, the least relative error at rank k.
pub(super) fn optimum(values: &[f64], k: usize) -> f64 {
    let energy = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>();
    (energy(&values[k..]) / energy(values)).sqrt()
}

/// Makes an `m × n` matrix with these `min(m, n)` singular values.
pub(super) fn make(m: usize, n: usize, values: &[f64], seed: u64, par: Par) -> Result<Matrix<f32>> {
    let mut a = Matrix::zeros(m, n);
    for (i, &s) in values.iter().enumerate() {
        a.as_mut_slice()[i * n + i] = s as f32;
    }
    for (pass, window) in windows(n)?.into_iter().enumerate() {
        let d = diagonal(seed, 2 * pass as u64, n, &window);
        let rows = a.as_mut_slice().par_chunks_exact_mut(n);
        rows.for_each(|row| row.iter_mut().zip(&d).for_each(|(x, d)| *x *= d));
        fwht_rows(a.as_mut().subcols_mut(window.start, window.len()), par)?;
    }
    for (pass, window) in windows(m)?.into_iter().enumerate() {
        let d = diagonal(seed, 2 * pass as u64 + 1, m, &window);
        let rows = a.as_mut_slice().par_chunks_exact_mut(n);
        rows.zip(&d).for_each(|(row, d)| row.iter_mut().for_each(|x| *x *= d));
        fwht_columns(a.as_mut().subrows_mut(window.start, window.len()), par)?;
    }
    Ok(a)
}

/// The bases of the transforms that make a matrix.
const BASES: [usize; 10] = [1, 12, 20, 28, 36, 44, 52, 60, 108, 140];

/// Returns the coordinates that successive transforms of a vector of `n` act on.
fn windows(n: usize) -> Result<Vec<Range<usize>>> {
    // The matrices of a record do not change with the lengths that `Order` knows.
    let known = |s: &usize| Order::new(*s).is_some_and(|order| BASES.contains(&order.base()));
    let longest = (1..=n).rev().find(known).ok_or(Error::Order { n })?;
    Ok(if longest == n { vec![0..n; 2] } else { vec![0..longest, n - longest..n, 0..longest] })
}

/// Draws random signs, with the factor that makes the transform orthogonal in the window.
fn diagonal(seed: u64, number: u64, n: usize, window: &Range<usize>) -> Vec<f32> {
    let rng = Philox::new(seed, stream::DATA | number);
    let inside = 1.0 / (window.len() as f32).sqrt();
    let entry = |i: usize| {
        let d = if window.contains(&i) { inside } else { 1.0 };
        if rng.sign(i as u64) { -d } else { d }
    };
    (0..n).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::{Spectrum, make, marchenko_pastur, optimum};
    use faer::{Mat, Par};

    /// Compares with faer's SVD in f64. Each of at most 6 passes has at most 6 levels of additions, a factor and a
    /// product with H_b of at most 20 terms, all orthogonal up to scale: an error of at most 6 · 28 u of the norm,
    /// which is 1, and no singular value moves by more (Weyl).
    #[test]
    fn singular_values_are_those_asked_for() {
        for (m, n) in [(64, 32), (40, 96), (50, 33), (17, 61), (16, 16)] {
            for spectrum in Spectrum::ALL {
                let s = spectrum.values(m, n);
                let a = make(m, n, &s, 5, Par::Seq).unwrap();
                let wide = Mat::from_fn(m, n, |i, j| f64::from(a.row(i)[j]));
                let got = wide.singular_values().unwrap();
                for (i, (got, want)) in got.iter().zip(&s).enumerate() {
                    assert!((got - want).abs() <= 168.0 * 2f64.powi(-24), "{m}×{n} σ_{i}: {got} is not {want}");
                }
                // No entry stands out, as it would if a rotation had left a diagonal in place.
                let largest = a.as_slice().iter().fold(0f32, |top, x| top.max(x.abs()));
                assert!(f64::from(largest) < 0.7 * s[0], "{m}×{n}: {largest} beside σ_1 = {}", s[0]);
            }
        }
    }

    /// `Σ s²` of an `r × big` matrix of normals of variance `1/big` is `r` in the mean; the quantiles of a semicircle
    /// are symmetric.
    #[test]
    fn noise_spectrum_follows_the_law() {
        for (r, big) in [(100, 400), (256, 256), (30, 3000)] {
            let s = marchenko_pastur(r, big);
            let energy = s.iter().map(|s| s * s).sum::<f64>() / r as f64;
            assert!((energy - 1.0).abs() < 0.01, "{r} of {big}: {energy}");
            let edge = (r as f64 / big as f64).sqrt();
            assert!(s.is_sorted_by(|a, b| a >= b) && s[0] < 1.0 + edge && s[r - 1] > 1.0 - edge);
        }
    }

    #[test]
    fn optimum_is_the_tail() {
        assert_eq!(optimum(&[4.0, 2.0, 2.0, 1.0], 1), 0.6);
        assert_eq!(optimum(&[4.0, 3.0], 2), 0.0);
    }
}
