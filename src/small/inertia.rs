//! How many eigenvalues of a symmetric matrix lie above a number, by Sylvester's law of inertia.
//!
//! ```text
//!   G − t I = L D Lᵀ:       G has as many eigenvalues above t as D has entries above 0
//!   is that certain?        what rounding did to row i is a small multiple of eps times entry (i, i) of |L| |D| |Lᵀ|
//! ```
//!
//! **Cost.** `n³/3` flops in f64 by faer's blocked factorization, where all eigenvectors take some `9 n³`.
//!
//! **Why without pivots.** A factorization with Bunch and Kaufman's pivots is stable whatever t, and several times
//! slower. Without them `|L| |D| |Lᵀ|` may be larger than G; it is looked at afterwards, for `n²` flops (Higham, Accuracy
//! and Stability of Numerical Algorithms, section 11.1). It is too large where t is an eigenvalue of a leading block to
//! some three digits.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::ldlt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, Par};

/// How many times the largest entry `|L| |D| |Lᵀ|` may be in any case: rounding is then that of some thousand eps.
const GROWTH: f64 = 1024.0;

/// Counts the eigenvalues above `t` of the positive semidefinite matrix of finite numbers whose lower triangle is in
/// `g`, which is overwritten. `error` is that of its entries, as a part of the largest. The count is `None` where
/// rounding may have changed it by more.
pub(crate) fn count_above(g: &mut Mat<f64>, t: f64, error: f64, par: Par) -> Option<usize> {
    let n = g.nrows();
    let largest = (0..n).map(|i| g[(i, i)]).fold(t.abs(), f64::max);
    (0..n).for_each(|i| g[(i, i)] -= t);
    let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, Default::default()));
    cholesky_in_place(g.as_mut(), Default::default(), par, MemStack::new(&mut buffer), Default::default()).ok()?;
    let mut grown = vec![0.0; n];
    for j in 0..n {
        let d = g[(j, j)].abs();
        grown[j] += d;
        for (grown, l) in grown[j + 1..].iter_mut().zip(g.col(j).subrows(j + 1, n - j - 1).iter()) {
            *grown += l * l * d;
        }
    }
    // A NaN of an overflow is not within it.
    let most = GROWTH.max(error / (8.0 * f64::EPSILON)) * largest;
    let certain = grown.iter().all(|&grown| grown <= most);
    certain.then(|| (0..n).filter(|&i| g[(i, i)] > 0.0).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::{Gaussian, SketchOperator};

    #[test]
    fn the_count_is_that_of_the_eigenvalues() {
        let (mut asked, mut known) = (0, 0);
        for (case, n) in [1, 2, 3, 7, 40, 64, 65, 130, 257].into_iter().enumerate() {
            let x = Gaussian::new(n, n, case as u64).unwrap().to_dense::<f64>();
            for (rank, error) in [(0, 0.0), (n / 3, 6e-8), (n, 6e-8), (n, 0.0)] {
                let g = x.as_ref().subcols(0, rank) * x.as_ref().subcols(0, rank).transpose();
                let values = g.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
                let largest = values[n - 1].max(1e-300);
                // Between two values, clear of both; below all; above all.
                let clear = |pair: &&[f64]| pair[1] - pair[0] > 1e-4 * largest;
                let middle = |pair: &[f64]| 0.5 * (pair[0] + pair[1]);
                let mut thresholds: Vec<f64> = values.windows(2).filter(clear).map(middle).collect();
                thresholds.extend([-largest, 2.0 * largest]);
                for t in thresholds {
                    let want = values.iter().filter(|&&value| value > t).count();
                    let count = count_above(&mut g.clone(), t, error, Par::Seq);
                    assert!(count.is_none_or(|count| count == want), "n = {n}, rank {rank}, above {t}: {count:?}");
                    asked += usize::from(error > 0.0);
                    known += usize::from(error > 0.0 && count.is_some());
                }
            }
        }
        assert!(100 * known > 95 * asked, "known {known} of {asked}");
        // The first pivot is 0, and so small that nothing is left of the rest.
        for small in [0.0, 1e-300, 1e-9] {
            let mut g = Mat::from_fn(2, 2, |i, j| if i == j { small } else { 1.0 });
            assert_eq!(count_above(&mut g, 0.0, 6e-8, Par::Seq), None, "{small}");
        }
    }
}
