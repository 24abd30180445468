//! Fixes the signs of singular vectors, which an SVD leaves open.

use std::cmp::Ordering;
use std::sync::atomic::{self, AtomicBool};

use faer::Par;

use super::blocks::for_each_line;
use crate::simd::Scalar;
use crate::tensor::Matrix;

/// Makes the entry of largest modulus in each right singular vector positive. The sign that an SVD leaves open is then
/// the same on every machine.
///
/// Returns the factor, 1 or −1, that each pair of vectors was multiplied by.
pub(crate) fn fix_signs<T: Scalar>(u: &mut Matrix<T>, vt: &mut Matrix<T>, par: Par) -> Vec<T> {
    fix_signs_by(u, vt, par, |_, row| points_down(row))
}

/// Does [`fix_signs`] for rows of Vᵀ of which `is_down` tells, of each by its number, whether to turn it.
pub(crate) fn fix_signs_by<T: Scalar>(
    u: &mut Matrix<T>,
    vt: &mut Matrix<T>,
    par: Par,
    is_down: impl Fn(usize, &[T]) -> bool + Sync,
) -> Vec<T> {
    let (k, n) = (vt.nrows(), vt.ncols());
    let down: Vec<AtomicBool> = (0..k).map(|_| AtomicBool::new(false)).collect();
    if n == 0 {
        // A process may have no part of the rows, and turns what it has of U all the same.
        down.iter().enumerate().for_each(|(i, down)| down.store(is_down(i, &[]), atomic::Ordering::Relaxed));
    }
    for_each_line(vt.as_mut_slice(), n.max(1), par, |i, row| {
        if is_down(i, row) {
            row.iter_mut().for_each(|x| *x = -*x);
            down[i].store(true, atomic::Ordering::Relaxed);
        }
    });
    let signs: Vec<T> = down.into_iter().map(|down| if down.into_inner() { -T::one() } else { T::one() }).collect();
    if signs.iter().any(|&sign| sign != T::one()) {
        for_each_line(u.as_mut_slice(), k, par, |_, row| {
            row.iter_mut().zip(&signs).for_each(|(x, &sign)| *x *= sign);
        });
    }
    signs
}

/// Tells whether the entry of largest modulus is negative; of several, the first one counts.
pub(crate) fn points_down<T: Scalar>(line: &[T]) -> bool {
    peak(line) < T::zeroed()
}

/// Returns the entry of largest modulus, of several the first one, and 0 for an empty line.
pub(crate) fn peak<T: Scalar>(line: &[T]) -> T {
    const LANES: usize = 16;
    let (mut most, mut least) = ([T::zeroed(); LANES], [T::zeroed(); LANES]);
    let (body, tail) = line.as_chunks::<LANES>();
    for chunk in body {
        for lane in 0..LANES {
            let x = chunk[lane];
            most[lane] = if x > most[lane] { x } else { most[lane] };
            least[lane] = if x < least[lane] { x } else { least[lane] };
        }
    }
    let most = most.iter().chain(tail).copied().fold(T::zeroed(), |a, x| if x > a { x } else { a });
    let least = least.iter().chain(tail).copied().fold(T::zeroed(), |a, x| if x < a { x } else { a });
    match most.partial_cmp(&-least) {
        Some(Ordering::Greater) => most,
        Some(Ordering::Less) => least,
        _ => line.iter().copied().find(|x| x.abs() == most).unwrap_or(T::zeroed()),
    }
}

#[cfg(test)]
mod tests {
    use super::points_down;

    /// Compares with a search for the first entry of largest modulus, one by one: ties, zeros, and lines that lanes do
    /// not fill.
    #[test]
    fn sign_of_the_largest_entry() {
        let by_one = |line: &[f32]| {
            let largest = line.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
            line.iter().find(|x| x.abs() == largest).is_some_and(|x| *x < 0.0)
        };
        for n in [1, 2, 15, 16, 17, 100] {
            for seed in 0..50 {
                // The line has few different values, so that most lines have ties.
                let line: Vec<f32> = (0..n).map(|i| ((i * 7 + seed * 13 + i * i * seed) % 5) as f32 - 2.0).collect();
                assert_eq!(points_down(&line), by_one(&line), "{line:?}");
            }
        }
        assert!(!points_down(&[0.0_f32; 20]));
        assert!(points_down(&[-1.0_f64]));
    }
}
