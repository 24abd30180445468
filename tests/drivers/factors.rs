//! Factors, ranks, quality: what comes out and how it is used.

use crate::common::*;
use faer::Mat;
use tensorslim::rank::{rank_for_loss, rank_for_ratio};
use tensorslim::{DType, Factors, Method, Rank, Split, TensorRef, TruncatedSvd, quality, rank_saves_memory};

fn sample() -> (Mat<f64>, Factors<f64>) {
    let spectrum: Vec<f64> = (0..40).map(|i| 1.0 / (f64::from(i) + 1.0)).collect();
    let a = with_spectrum(90, 40, &spectrum, 3);
    let w = rounded::<f64>(a.as_ref());
    let f = TruncatedSvd::new(Rank::Fixed(12)).factor::<f64>(w.as_tensor().unwrap()).unwrap();
    (a, f)
}

#[test]
fn split_multiplies_to_the_same_matrix() {
    let (_, f) = sample();
    let w = exact(&f.reconstruct());
    for split in [Split::Left, Split::Right, Split::Balanced] {
        let (up, down) = f.split(split);
        assert_eq!((up.nrows(), up.ncols(), down.nrows(), down.ncols()), (90, 12, 12, 40));
        assert!((exact(&up) * exact(&down) - &w).norm_l2() < 1e-14, "{split:?}");
        // Column j of `up` carries σ_j, √σ_j or 1; row j of `down` the rest.
        for (j, s) in f.s().iter().enumerate() {
            let share = match split {
                Split::Left => (*s, 1.0),
                Split::Right => (1.0, *s),
                Split::Balanced => (s.sqrt(), s.sqrt()),
                _ => unreachable!("a way to split without a test"),
            };
            assert!((exact(&up).col(j).norm_l2() - share.0).abs() < 1e-13, "{split:?}");
            assert!((exact(&down).row(j).norm_l2() - share.1).abs() < 1e-13, "{split:?}");
        }
    }
}

#[test]
fn apply_is_the_product_with_the_reconstruction() {
    let (_, f) = sample();
    let w = exact(&f.reconstruct());
    let x = gaussian(17, 40, 8);
    let dense = &x * w.transpose();
    let y = f.apply(&rounded::<f64>(x.as_ref()).as_tensor().unwrap()).unwrap();
    assert!((exact(&y) - &dense).norm_l2() < 1e-13);
    // Columns in memory, halves: any layout and type.
    let y =
        f.apply(&TensorRef::strided(rounded::<f64>(x.transpose()).as_slice(), &[17, 40], &[1, 17]).unwrap()).unwrap();
    assert!((exact(&y) - &dense).norm_l2() < 1e-13);
    let x16 = rounded::<half::f16>(x.as_ref());
    let y = f.apply(&x16.as_tensor().unwrap()).unwrap();
    assert!((exact(&y) - exact(&x16) * w.transpose()).norm_l2() < 1e-13);
}

#[test]
fn a_slice_is_the_factorization_of_that_rank() {
    let (a, f) = sample();
    for k in [1, 5, 11, 12] {
        let slice = f.truncate(k).unwrap();
        assert_eq!((slice.rank(), slice.u().ncols(), slice.vt().nrows(), slice.report().rank), (k, k, k, k));
        let truth = true_error(a.as_ref(), &slice);
        assert!(
            (slice.report().relative_error - truth).abs() < 1e-12,
            "{k}: {} {truth}",
            slice.report().relative_error
        );
    }
}

#[test]
fn a_report_counts_numbers_and_values() {
    let (_, f) = sample();
    let r = f.report();
    assert_eq!((r.params_before(), r.params_after()), (90 * 40, 12 * 131));
    assert!((r.ratio() - 3600.0 / 1572.0).abs() < 1e-12);
    assert!(r.spectrum.len() >= 12 && (r.spectrum[3] - 0.25).abs() < 1e-3);
    assert_eq!((r.dtype, r.precision, r.shape), (DType::F64, DType::F64, (90, 40)));
}

#[test]
fn ratio_takes_the_largest_rank_that_reaches_it() {
    assert_eq!(rank_for_ratio(1536, 384, 3.2), 95);
    assert_eq!(rank_for_ratio(3072, 768, 3.2), 191);
    assert_eq!(rank_for_ratio(4096, 1024, 3.2), 255);
    for (m, n) in [(1, 1), (2, 2), (10, 7), (64, 64), (1536, 384), (11008, 4096)] {
        for r in [0.1, 0.5, 1.0, 1.5, 2.0, 3.2, 10.0, 1e6] {
            let reaches = |k: usize| (m * n) as f64 / (k * (m + n + 1)) as f64 >= r;
            let brute = (1..=m.min(n)).rev().find(|&k| reaches(k)).unwrap_or(0);
            assert_eq!(rank_for_ratio(m, n, r), brute, "{m}×{n} at {r}");
        }
    }
}

#[test]
fn memory_is_saved_below_a_rank() {
    assert!(rank_saves_memory(1536, 384, 95) && !rank_saves_memory(4, 4, 2) && rank_saves_memory(4, 4, 1));
    assert!(!rank_saves_memory(usize::MAX, usize::MAX, usize::MAX));
    for (m, n) in [(10, 7), (64, 64), (3, 100)] {
        for k in 1..=m.min(n) {
            assert_eq!(rank_saves_memory(m, n, k), k * (m + n + 1) < m * n);
        }
    }
}

#[test]
fn energy_is_that_of_the_whole_matrix() {
    let s = [2.0, 1.0, 1.0];
    assert_eq!(rank_for_loss(&s, 0.0, 0.5 * 6.0), 1);
    assert_eq!(rank_for_loss(&s, 0.0, 0.33 * 6.0), 2);
    assert_eq!(rank_for_loss(&s, 0.0, 0.0), 3);
    // Half of ‖A‖² lies outside of what was computed: no rank reaches 0.9, all of it is the answer.
    assert_eq!(rank_for_loss(&s, 6.0, 0.1 * 12.0), 3);
    assert_eq!(rank_for_loss(&s, 6.0, 0.6 * 12.0), 2);
    // The factors of a zero matrix have a rank, too.
    assert_eq!(rank_for_loss(&[0.0, 0.0], 0.0, 0.0), 1);
    // Small values are not lost in the sum of the large ones.
    assert_eq!(rank_for_loss(&[1e8, 1e-4, 1e-4], 0.0, 1.5e-8), 2);
}

#[test]
fn quality_is_its_definition() {
    let (a, x) = (gaussian(30, 20, 5), gaussian(700, 20, 6));
    let w = rounded::<f64>(a.as_ref());
    for k in [1, 7, 20] {
        let f = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Full).factor::<f64>(w.as_tensor().unwrap()).unwrap();
        let (y, z) = (&x * a.transpose(), &x * exact(&f.reconstruct()).transpose());
        let mut dot = 0.0;
        for j in 0..y.ncols() {
            dot += (0..y.nrows()).map(|i| y[(i, j)] * z[(i, j)]).sum::<f64>();
        }
        let cosine = dot / (y.norm_l2() * z.norm_l2());
        let error = (&y - &z).norm_l2() / y.norm_l2();
        let x = rounded::<f64>(x.as_ref());
        let q = quality::activation(&w.as_tensor().unwrap(), &f, &x.as_tensor().unwrap()).unwrap();
        assert!(
            (q.cosine - cosine).abs() < 1e-13 && (q.relative_error - error).abs() < 1e-13,
            "{q:?} {cosine} {error}"
        );
        assert!((q.score() - (1.0 + cosine) / 2.0).abs() < 1e-13);
    }
    // A zero layer is served perfectly by zero factors.
    let zero = tensorslim::Matrix::<f32>::zeros(4, 4);
    let f = TruncatedSvd::new(Rank::Fixed(1)).factor::<f32>(zero.as_tensor().unwrap()).unwrap();
    let q = quality::activation(&zero.as_tensor().unwrap(), &f, &zero.as_tensor().unwrap()).unwrap();
    assert_eq!((q.cosine, q.relative_error), (1.0, 0.0));
}
