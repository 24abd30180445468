//! Parts of a spectrum (the smallest triplets, the numerical rank, one side from a start), and factors beside a quantized
//! weight.

use crate::common::*;
use faer::Mat;
use tensorslim::{Calibration, Element, Error, Factors, Matrix, Method, Rank, Scalar, TruncatedSvd};

fn check_smallest<T: Scalar>((m, n): (usize, usize), condition: f64, r: usize) {
    let l = m.min(n);
    let spectrum: Vec<f64> = (0..l).map(|i| 3.0 * condition.powf(-(i as f64) / (l - 1) as f64)).collect();
    let w = rounded::<T>(with_spectrum(m, n, &spectrum, 5).as_ref());
    // The oracle sees the same rounded elements in f64.
    let values = exact(&w).svd().unwrap();
    let svd = TruncatedSvd::new(Rank::Fixed(r)).smallest(true);
    let f: Factors<T> = svd.factor(w.as_tensor().unwrap()).unwrap();
    let what = format!("{m}×{n} condition {condition:e} {}", T::DTYPE);
    let (eps, largest) = (T::EPSILON, values.S()[0]);
    assert_eq!((f.rank(), f.report().method), (r, Method::Full), "{what}");
    for (i, s) in f.s().iter().enumerate() {
        let want = values.S()[l - r + i];
        assert!((Element::to_f64(*s) - want).abs() <= 16.0 * eps * largest, "{what}: {s:?} {want}");
    }
    assert!(
        orthonormality(exact(f.u()).as_ref()) < 64.0 * eps,
        "{what}: U off by {:e}",
        orthonormality(exact(f.u()).as_ref())
    );
    let vt = exact(f.vt());
    // Each is a singular pair: A v = s u to rounding of the whole.
    let (image, u) = (&exact(&w) * vt.transpose(), exact(f.u()));
    for (i, s) in f.s().iter().enumerate() {
        let off = (0..m).map(|j| (image[(j, i)] - Element::to_f64(*s) * u[(j, i)]).powi(2)).sum::<f64>().sqrt();
        assert!(off <= 64.0 * eps * largest, "{what}: pair {i} off by {off:e}");
    }
    let error = true_error(exact(&w).as_ref(), &f);
    assert!((f.report().relative_error - error).abs() < 1e-5, "{what}");
    assert!(f.report().spectrum.is_sorted_by(|a, b| a >= b) && f.report().spectrum.len() == l, "{what}");
}

#[test]
fn the_smallest_triplets_are_those_of_a_dense_svd() {
    for shape in [(200, 60), (60, 200), (90, 90), (500, 24)] {
        for condition in [10.0, 1e3, 1e6] {
            for r in [1, 7, 24] {
                check_smallest::<f64>(shape, condition, r);
            }
        }
        check_smallest::<f32>(shape, 10.0, 5);
        check_smallest::<f32>(shape, 1e3, 5);
    }
    // All of them are all of them.
    let w = random::<f64>(30, 20, 3);
    let all: Factors<f64> = TruncatedSvd::new(Rank::Fixed(20)).smallest(true).factor(w.as_tensor().unwrap()).unwrap();
    let largest: Factors<f64> =
        TruncatedSvd::new(Rank::Fixed(20)).method(Method::Full).factor(w.as_tensor().unwrap()).unwrap();
    assert_eq!(all.s(), largest.s());
}

#[test]
fn the_smallest_are_asked_for_by_number_and_of_what_resolves_them() {
    let w = random::<f32>(30, 20, 3);
    let svd = |rank| TruncatedSvd::new(rank).smallest(true);
    let refused = |svd: TruncatedSvd| matches!(svd.factor::<f32>(w.as_tensor().unwrap()), Err(Error::Option { .. }));
    assert!(refused(svd(Rank::Energy(0.5))) && refused(svd(Rank::Above(0.5))) && refused(svd(Rank::Numerical)));
    for method in [Method::Gram, Method::Randomized, Method::Krylov, Method::SinglePass] {
        assert!(refused(svd(Rank::Fixed(3)).method(method)), "{method}");
    }
    let mut inputs = Calibration::new(20).unwrap();
    inputs.update(&random::<f32>(50, 20, 4).as_tensor().unwrap()).unwrap();
    assert!(refused(svd(Rank::Fixed(3)).calibration(&inputs)));
    // What is rounding is told.
    let steep: Vec<f64> = (0..20).map(|i| 0.1f64.powi(i)).collect();
    let w = rounded::<f32>(with_spectrum(30, 20, &steep, 3).as_ref());
    let f: Factors<f32> = svd(Rank::Fixed(3)).factor(w.as_tensor().unwrap()).unwrap();
    assert!(f.report().notes.iter().any(|note| note.contains("3 of the smallest")), "{:?}", f.report().notes);
}

#[test]
fn the_numerical_rank_is_what_is_not_rounding() {
    for (m, n, k) in [(120, 80, 11), (80, 120, 40), (64, 64, 64), (50, 9, 1)] {
        let spectrum: Vec<f64> = (0..k).map(|i| 10f64.powf(-3.0 * i as f64 / k as f64)).collect();
        for scale in [1.0, 1e-30, 1e30] {
            let w = rounded::<f32>((with_spectrum(m, n, &spectrum, 9) * faer::Scale(scale)).as_ref());
            let tensor = w.as_tensor().unwrap();
            let svd = TruncatedSvd::new(Rank::Numerical);
            let f: Factors<f32> = svd.factor(tensor.clone()).unwrap();
            assert_eq!((f.rank(), f.report().notes.len()), (k, 0), "{m}×{n}: {:?}", f.report().notes);
            // The elements are rounded to f32, and f64 sees that.
            let all: Factors<f64> = svd.factor(tensor.clone()).unwrap();
            assert_eq!(all.rank(), m.min(n), "{m}×{n}");
            let few: Factors<f32> = svd.max_rank(k.div_ceil(2)).factor(tensor).unwrap();
            assert_eq!(few.rank(), k.div_ceil(2));
            assert!(few.rank() == k || few.report().notes.iter().any(|note| note.contains("largest rank")));
        }
    }
    let zero: Factors<f32> =
        TruncatedSvd::new(Rank::Numerical).factor(Matrix::<f32>::zeros(5, 4).as_tensor().unwrap()).unwrap();
    assert_eq!((zero.rank(), zero.s()[0]), (1, 0.0));
    let w = random::<f32>(30, 20, 3);
    let by_gram = TruncatedSvd::new(Rank::Numerical).method(Method::Gram).factor::<f32>(w.as_tensor().unwrap());
    assert!(matches!(by_gram, Err(Error::Option { .. })));
}

/// Ten gradients of which each is the one before, turned a little on both sides, with noise.
fn drifting(m: usize, n: usize, k: usize) -> Vec<Matrix<f32>> {
    let spectrum: Vec<f64> = (0..m.min(n)).map(|i| if i < k { 1.0 / (1 + i) as f64 } else { 0.02 }).collect();
    let mut a = with_spectrum(m, n, &spectrum, 1);
    (0..10)
        .map(|step| {
            let turn = |length: usize, seed: u64| {
                let x = exact(&random::<f64>(length, length, seed));
                let skew = (&x - x.transpose()) * faer::Scale(0.02 / (length as f64).sqrt());
                Mat::<f64>::identity(length, length) + skew
            };
            a = turn(m, 100 + step) * &a * turn(n, 200 + step);
            rounded::<f32>(a.as_ref())
        })
        .collect()
}

#[test]
fn a_start_halves_the_products_at_equal_error() {
    let k = 16;
    for (m, n, products) in [(96, 240, 2), (240, 96, 3)] {
        let svd = TruncatedSvd::new(Rank::Fixed(k)).seed(2).method(Method::Randomized);
        let mut last: Option<Matrix<f32>> = None;
        for (step, gradient) in drifting(m, n, k).iter().enumerate() {
            let w = gradient.as_tensor().unwrap();
            let cold = svd.basis::<f32>(&w, None).unwrap();
            assert_eq!(cold.report.passes, 6);
            let warm = svd.basis::<f32>(&w, last.as_ref()).unwrap();
            // The error is that of the projection, and within one part in a thousand of the error from six products.
            let (a, u) = (exact(gradient), exact(&warm.vectors));
            let rest = &a - &u * (u.transpose() * &a);
            let error = rest.norm_l2() / a.norm_l2();
            assert!((error - warm.report.relative_error).abs() < 1e-4 * error, "{m}×{n}, step {step}");
            assert!(orthonormality(exact(&warm.vectors).as_ref()) < 1e-5);
            if last.is_some() {
                assert_eq!(warm.report.passes, products);
                let (warm, cold) = (warm.report.relative_error, cold.report.relative_error);
                assert!(warm < 1.001 * cold, "{m}×{n}, step {step}: {warm} {cold}");
            }
            last = Some(warm.vectors);
        }
    }
}

#[test]
fn a_start_is_a_help_and_never_a_limit() {
    // A start that knows nothing of the matrix ends in a good basis with the power iterations of a sketch.
    let spectrum: Vec<f64> = (0..60).map(|i| 0.7f64.powi(i)).collect();
    let w = rounded::<f64>(with_spectrum(150, 60, &spectrum, 4).as_ref());
    let strange = random::<f64>(150, 3, 8);
    let svd = TruncatedSvd::new(Rank::Fixed(8)).power_iterations(4);
    let found = svd.basis(&w.as_tensor().unwrap(), Some(&strange)).unwrap();
    let best = (spectrum[8..].iter().map(|s| s * s).sum::<f64>() / spectrum.iter().map(|s| s * s).sum::<f64>()).sqrt();
    assert!(found.report.relative_error < 1.001 * best, "{} {best}", found.report.relative_error);
    // Columns that depend on each other, a start wider than the panels, and one of zeros.
    for start in [Matrix::from_fn(150, 9, |i, _| i as f64), random(150, 40, 2), Matrix::zeros(150, 5)] {
        let found = svd.basis(&w.as_tensor().unwrap(), Some(&start)).unwrap();
        assert!(found.report.relative_error < 1.01 * best, "{}", found.report.relative_error);
    }
    let refused = |svd: &TruncatedSvd, start: &Matrix<f64>| svd.basis(&w.as_tensor().unwrap(), Some(start)).is_err();
    assert!(refused(&svd, &random(60, 3, 1)), "of the other side");
    let mut broken = random::<f64>(150, 3, 1);
    broken.as_mut_slice()[7] = f64::NAN;
    assert!(refused(&svd, &broken), "not finite");
    assert!(refused(&svd.clone().method(Method::Gram), &strange));
    assert!(refused(&TruncatedSvd::new(Rank::Energy(0.5)), &strange));
}

/// Rounds blocks of 64 elements to nearest, to `bits` bits with one scale for each.
fn round_to_nearest(bits: i32) -> impl FnMut(&mut Matrix<f32>) -> tensorslim::Result<()> {
    move |a| {
        for block in a.as_mut_slice().chunks_mut(64) {
            let largest = block.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let step = largest / ((1 << (bits - 1)) - 1) as f32;
            if step > 0.0 {
                block.iter_mut().for_each(|x| *x = (*x / step).round() * step);
            }
        }
        Ok(())
    }
}

#[test]
fn rounds_of_a_quantizer_end_where_the_error_does_not_fall() {
    let w = random::<f32>(192, 128, 5);
    let tensor = w.as_tensor().unwrap();
    for bits in [3, 4] {
        let svd = TruncatedSvd::new(Rank::Fixed(16));
        let one = svd.factor_quantized::<f32>(&tensor, 1, &mut round_to_nearest(bits)).unwrap();
        let more = svd.factor_quantized::<f32>(&tensor, 20, &mut round_to_nearest(bits)).unwrap();
        for q in [&one, &more] {
            // What is returned is the smallest error, and that error is what it says.
            let rest = exact(&w) - exact(&q.base) - exact(&q.factors.reconstruct());
            let least = q.errors.iter().copied().fold(f64::INFINITY, f64::min);
            assert!((rest.norm_l2() - least).abs() < 1e-4 * least, "{bits} bits: {} {least}", rest.norm_l2());
            let mut again = q.base.clone();
            round_to_nearest(bits)(&mut again).unwrap();
            assert!((exact(&again) - exact(&q.base)).norm_max() < 1e-5, "what is stored is quantized");
        }
        assert_eq!((one.errors.len(), one.errors[0]), (1, more.errors[0]));
        assert!(more.errors.len() > 2 && more.errors[1] < more.errors[0], "{:?}", more.errors);
        let falling = &more.errors[..more.errors.len() - 1];
        assert!(falling.is_sorted_by(|a, b| a > b), "{:?}", more.errors);
    }
}

#[test]
fn under_a_calibration_one_round_is_the_best_of_the_outputs() {
    let (w, samples) = (real("ffn_up", 1536, 384), real("ffn_up_calibration", 1024, 384));
    let w = w.as_tensor().unwrap();
    let mut inputs = Calibration::new(384).unwrap();
    inputs.update(&samples.as_tensor().unwrap()).unwrap();
    let (svd, quantizer) = (TruncatedSvd::new(Rank::Fixed(32)), &mut round_to_nearest(4));
    let plain = svd.factor_quantized::<f32>(&w, 1, quantizer).unwrap();
    let weighted = svd.calibration(&inputs).factor_quantized::<f32>(&w, 3, quantizer).unwrap();
    let outputs = |q: &tensorslim::svd::Quantized<f32>| {
        let rest = q.factors.residual::<f32>(&w).unwrap();
        let rest = exact(&rest) - exact(&q.base);
        (exact(&samples) * rest.transpose()).norm_l2() / (samples.nrows() as f64).sqrt()
    };
    let least = weighted.errors.iter().copied().fold(f64::INFINITY, f64::min);
    assert!((outputs(&weighted) - least).abs() < 1e-3 * least, "{} {least}", outputs(&weighted));
    assert!(outputs(&weighted) < 0.8 * outputs(&plain), "{} {}", outputs(&weighted), outputs(&plain));
}

#[test]
fn a_quantizer_that_fails_or_reshapes_is_told() {
    let w = random::<f32>(20, 10, 5);
    let (tensor, svd) = (w.as_tensor().unwrap(), TruncatedSvd::new(Rank::Fixed(2)));
    assert!(matches!(svd.factor_quantized::<f32>(&tensor, 0, &mut |_| Ok(())), Err(Error::Option { .. })));
    let reshaped = svd.factor_quantized::<f32>(&tensor, 2, &mut |a| {
        *a = Matrix::zeros(10, 20);
        Ok(())
    });
    assert!(matches!(reshaped, Err(Error::Shape { .. })));
    let failed = svd.factor_quantized::<f32>(&tensor, 2, &mut |_| Err(Error::Cancelled));
    assert!(matches!(failed, Err(Error::Cancelled)));
}
