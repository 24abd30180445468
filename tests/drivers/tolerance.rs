//! Ranks from the spectrum: the smallest that meets the tolerance, with a certificate that is true.
#![expect(clippy::print_stdout, reason = "the figures that the documentation quotes, with --nocapture")]

use crate::common::*;
use faer::Mat;
use tensorslim::{Error, ErrorKind, Factors, Matrix, Method, Rank, Scalar, Sketch, TruncatedSvd};

/// A spectrum of one of eight kinds with random parameters.
fn random_spectrum(random: &mut Random, count: usize) -> (&'static str, Vec<f64>) {
    let (rate, cut) = (random.uniform(), 1 + (random.uniform() * count as f64) as usize);
    let by = |f: &dyn Fn(f64) -> f64| (0..count).map(|i| f(i as f64)).collect::<Vec<f64>>();
    match random.bits() % 8 {
        0 => ("power", by(&|i| (i + 1.0).powf(-0.3 - 2.0 * rate))),
        1 => ("exponential", by(&|i| (0.5 + 0.49 * rate).powf(i))),
        2 => ("step", by(&|i| if (i as usize) < cut { 1.0 } else { 1e-3 + 0.3 * rate })),
        3 => ("flat", vec![1.0; count]),
        4 => ("spiked", by(&|i| if i < 4.0 { 50.0 } else { 1.0 - rate * i / count as f64 })),
        5 => ("low rank", by(&|i| if (i as usize) < cut { 1.0 / (i + 1.0) } else { 0.0 })),
        6 => ("low rank and noise", by(&|i| if (i as usize) < cut.min(20) { 1.0 } else { 1e-4 * rate })),
        _ => ("weights", by(&|i| (1.0 - i / count as f64).powf(1.5) + 0.1)),
    }
}

/// The smallest rank whose best approximation has a relative error of at most `tolerance`.
fn minimal(spectrum: &[f64], tolerance: f64) -> usize {
    let total: f64 = spectrum.iter().rev().map(|s| s * s).sum();
    let mut lost = 0.0;
    let dropped = spectrum.iter().rev().take_while(|&&s| {
        lost += s * s;
        lost <= tolerance * tolerance * total
    });
    (spectrum.len() - dropped.count()).max(1)
}

/// Orthonormality is `svd.rs`'s; here the certificate and the promise.
fn check<T: Scalar>(what: &str, a: &Mat<f64>, f: &Factors<T>, tolerance: f64) {
    let (reported, truth) = (f.report().relative_error, true_error(a.as_ref(), f));
    let k = f.rank() as f64;
    // The rounding of factors and σ, some eps √k each; in a square it is divided by 2e. Estimates: six standard deviations.
    let rounding = 8.0 * T::EPSILON * k.sqrt();
    let slack = match f.report().error_kind {
        ErrorKind::Exact => 16.0 * T::EPSILON / (2.0 * reported),
        ErrorKind::Estimate { std_dev, .. } => 6.0 * std_dev,
        _ => unreachable!("a kind of error without a bound"),
    };
    assert!((reported - truth).abs() <= slack + rounding, "{what}: certificate {reported:e}, truth {truth:e}");
    match f.report().error_kind {
        ErrorKind::Exact => assert!(reported <= tolerance * (1.0 + 1e-12), "{what}: {reported:e}"),
        ErrorKind::Estimate { .. } => assert!(truth <= 1.5 * tolerance + rounding, "{what}: {truth:e} {tolerance:e}"),
        _ => unreachable!("a kind of error without a bound"),
    }
}

#[test]
fn tolerances_are_kept_by_nearly_the_fewest_columns() {
    let mut random = Random(20);
    let (mut above, mut exact_ones, mut worst) = (0, 0, (0, String::new()));
    for case in 0..200 {
        let mut side = || 2 + (random.uniform() * random.uniform() * 600.0) as usize;
        let (m, n) = (side(), side());
        let (name, spectrum) = random_spectrum(&mut random, m.min(n));
        let a = with_spectrum(m, n, &spectrum, case);
        let single = random.bits().is_multiple_of(2);
        let least: f64 = if single { 1e-5 } else { 1e-12 };
        let tolerance = (least.ln() * random.uniform().powi(3)).exp() * 0.95;
        let method = [Method::Randomized, Method::Randomized, Method::Auto, Method::Full, Method::Gram]
            [random.bits() as usize % 5];
        let sketch = [Sketch::Srht, Sketch::Gaussian, Sketch::SparseSign][random.bits() as usize % 3];
        let rank = if random.bits().is_multiple_of(4) && tolerance > 1e-3 {
            Rank::Energy(1.0 - tolerance * tolerance)
        } else {
            Rank::Tolerance(tolerance)
        };
        let svd = TruncatedSvd::new(rank).method(method).sketch(sketch).seed(case);
        let what = format!("case {case}: {name} {m}×{n} f{}, {rank}, {method}, {sketch}", if single { 32 } else { 64 });
        let (k, truth, kind) = if single {
            let w = rounded::<f32>(a.as_ref());
            let f = svd.factor::<f32>(w.as_tensor().unwrap()).unwrap();
            check(&what, &exact(&w), &f, tolerance);
            (f.rank(), exact(&w), f.report().error_kind)
        } else {
            let w = rounded::<f64>(a.as_ref());
            let f = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
            check(&what, &exact(&w), &f, tolerance);
            (f.rank(), exact(&w), f.report().error_kind)
        };
        let best = minimal(&truth.singular_values().unwrap(), tolerance);
        exact_ones += usize::from(kind == ErrorKind::Exact);
        above += usize::from(k > best);
        if k.saturating_sub(best) > worst.0 {
            worst = (k - best, what.clone());
        }
        assert!(k >= best || kind != ErrorKind::Exact, "{what}: rank {k} cannot reach it, {best} is the least");
        // Exact: far within the one block (32 columns or a quarter) that the search may overshoot by, because the rank is the
        // spectrum's. From probes: on the safe side of an estimate by two standard deviations, which is many ranks of a flat tail.
        let slack = if kind == ErrorKind::Exact { best.div_ceil(50) } else { best.div_ceil(4).max(32) };
        assert!(k <= best + slack, "{what}: rank {k}, the least is {best}");
    }
    println!("{exact_ones} of 200 exact, {above} above the minimum, at worst {worst:?}");
}

#[test]
fn the_largest_rank_ends_the_search_and_says_so() {
    let spectrum: Vec<f64> = (0..80).map(|i| (f64::from(i) + 1.0).powf(-0.5)).collect();
    let w = rounded::<f32>(with_spectrum(200, 80, &spectrum, 3).as_ref());
    for method in [Method::Auto, Method::Full, Method::Gram, Method::Randomized] {
        let svd = TruncatedSvd::new(Rank::Tolerance(0.05)).method(method).max_rank(20);
        let f = svd.factor::<f32>(w.as_tensor().unwrap()).unwrap();
        assert_eq!(f.rank(), 20, "{method}");
        let best = best_error(&spectrum, 20);
        assert!(
            f.report().relative_error >= best * (1.0 - 1e-5) && f.report().relative_error < 1.02 * best,
            "{method}"
        );
        let notes = &f.report().notes;
        assert!(
            notes.iter().any(|n| n.contains("tolerance 0.05") && n.contains("largest rank")),
            "{method}: {notes:?}"
        );
        // A cap that is not needed changes nothing.
        let loose = TruncatedSvd::new(Rank::Tolerance(0.6)).method(method);
        let f = loose.factor::<f32>(w.as_tensor().unwrap()).unwrap();
        let g = loose.max_rank(79).factor::<f32>(w.as_tensor().unwrap()).unwrap();
        assert_eq!((f.rank(), f.report().notes.len()), (g.rank(), 0), "{method}");
    }
    assert_eq!(
        TruncatedSvd::new(Rank::Tolerance(0.1)).max_rank(0).factor::<f32>(w.as_tensor().unwrap()).unwrap_err(),
        Error::Rank { rank: 0, max: 80 }
    );
}

#[test]
fn less_than_rounding_is_not_promised() {
    // f32 and a tolerance of 1e-9: all that the arithmetic resolves, and a note that says so.
    let spectrum: Vec<f64> = (0..60).map(|i| 0.5f64.powi(i)).collect();
    let w = rounded::<f32>(with_spectrum(150, 60, &spectrum, 5).as_ref());
    for method in [Method::Auto, Method::Full, Method::Randomized] {
        let svd = TruncatedSvd::new(Rank::Tolerance(1e-9)).method(method);
        let f = svd.factor::<f32>(w.as_tensor().unwrap()).unwrap();
        assert!((16..40).contains(&f.rank()), "{method}: rank {}", f.rank());
        assert!(matches!(f.report().error_kind, ErrorKind::Estimate { .. }), "{method}");
        assert!(f.report().relative_error < 1e-5, "{method}: {}", f.report().relative_error);
        assert!(f.report().notes.iter().any(|n| n.contains("arithmetic")), "{method}: {:?}", f.report().notes);
    }
}

#[test]
fn zero_and_tiny_matrices_meet_any_tolerance() {
    for method in [Method::Auto, Method::Full, Method::Gram, Method::Randomized] {
        let svd = TruncatedSvd::new(Rank::Tolerance(0.1)).method(method);
        let zero = Matrix::<f32>::zeros(40, 70);
        let f = svd.factor::<f32>(zero.as_tensor().unwrap()).unwrap();
        assert_eq!((f.rank(), f.report().relative_error, f.s()[0]), (1, 0.0, 0.0), "{method}");
        for (m, n) in [(1, 1), (1, 5), (7, 1), (3, 2)] {
            let a = gaussian(m, n, 7);
            let f = svd.factor::<f64>(rounded::<f64>(a.as_ref()).as_tensor().unwrap()).unwrap();
            assert!(true_error(a.as_ref(), &f) <= 0.1, "{method} {m}×{n}");
        }
    }
}

#[test]
fn what_is_no_tolerance_is_refused() {
    let w = Matrix::<f32>::zeros(5, 5);
    for t in [0.0, 1.0, -0.1, 2.0, f64::NAN, f64::INFINITY] {
        let error = TruncatedSvd::new(Rank::Tolerance(t)).factor::<f32>(w.as_tensor().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("tolerance = "), "{error}");
    }
}
