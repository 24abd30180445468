//! One look at the matrix: bounds from the papers, the certificate from the error sketch, streams that add up.
#![expect(clippy::print_stdout, reason = "the figures that the documentation quotes, with --nocapture")]

use crate::common::*;
use faer::{Mat, MatRef};
use half::f16;
use tensorslim::operator::{Dense, Facts, LinearOperator, Symmetric};
use tensorslim::space::{Host, HostPanel};
use tensorslim::svd::SinglePass;
use tensorslim::{
    AnySketch, Error, ErrorKind, Factors, MatView, Matrix, Method, Par, Rank, Result, Scalar, Sketch, TensorRef,
    TruncatedSvd,
};

const ONCE: [Method; 2] = [Method::SinglePass, Method::Nystrom];
const SKETCHES: [Sketch; 3] = [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign];

/// Orthonormal factors and an estimate within six of its standard deviations of the truth. (Sixteen probes of a residual of
/// one dimension have a χ² of 16 degrees of freedom: a factor of 4 either way is beyond 1e-6.)
fn check<T: Scalar>(what: &str, a: MatRef<'_, f64>, f: &Factors<T>) {
    let k = f.rank();
    for q in [exact(f.u()), exact(f.vt()).transpose().to_owned()] {
        let worst = orthonormality(q.as_ref());
        assert!(worst <= 50.0 * T::EPSILON * (k as f64).sqrt(), "{what}: orthonormal to {worst:e}");
    }
    assert!(f.s().windows(2).all(|s| s[0] >= s[1]), "{what}");
    let (reported, truth) = (f.report().relative_error, true_error(a, f));
    let ErrorKind::Estimate { probes, std_dev } = f.report().error_kind else { panic!("{what}: not an estimate") };
    let rounding = 16.0 * T::EPSILON * (k as f64).sqrt();
    assert!(
        probes == 16 && (reported - truth).abs() <= 6.0 * std_dev.max(0.1 * truth) + rounding,
        "{what}: {reported:e} ± {std_dev:e}, truth {truth:e}"
    );
    assert_eq!(f.report().passes, 1, "{what}");
}

#[test]
fn errors_are_those_of_the_papers() {
    let k = 16;
    let mut worst = [0f64; 2];
    for (m, n) in [(400, 150), (150, 400), (200, 200)] {
        for (name, spectrum) in spectra(m.min(n)) {
            let a = with_spectrum(m, n, &spectrum, 7);
            let best = best_error(&spectrum, k);
            let (single, double) = (rounded::<f32>(a.as_ref()), rounded::<f64>(a.as_ref()));
            for (which, method) in ONCE.into_iter().enumerate() {
                for sketch in SKETCHES {
                    let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch).seed(11);
                    let what = format!("{name} {m}×{n} {method} {sketch}");
                    let f = svd.factor::<f32>(single.as_tensor().unwrap()).unwrap();
                    check(&format!("{what} f32"), exact(&single).as_ref(), &f);
                    let f = svd.factor::<f64>(double.as_tensor().unwrap()).unwrap();
                    check(&format!("{what} f64"), a.as_ref(), &f);
                    let error = true_error(a.as_ref(), &f);
                    if best > 1e-12 {
                        worst[which] = worst[which].max(error / best);
                    }
                    // Truncating an approximation Â: ‖A − [Â]_k‖ <= τ_k + 2 ‖A − Â‖ (Tropp et al. 2019, prop. 6.1).
                    // ‖A − Â‖² is in the mean at most a = (1 + l/(c−l−1)) (1 + j/(l−j−1)) τ_j² for any j < l − 1, for two
                    // sketches; for three, ((s−1)/(s−l−1)) (l+j−1)/(l−j−1) τ_j² (theorem 5.1). A factor of 2 in the norm covers the scatter.
                    let tail = |j: usize| spectrum[j.min(spectrum.len())..].iter().map(|s| s * s).sum::<f64>();
                    let total: f64 = spectrum.iter().map(|s| s * s).sum();
                    let bound = |j: usize| {
                        let j = j as f64;
                        match method {
                            Method::Nystrom => (1.0 + 26.0 / 12.0) * (1.0 + j / (25.0 - j)),
                            _ => (130.0 / 65.0) * (64.0 + j) / (64.0 - j),
                        }
                    };
                    let l = if method == Method::Nystrom { 26 } else { 65 };
                    let projection = (0..l - 1).map(|j| bound(j) * tail(j)).fold(f64::INFINITY, f64::min) / total;
                    let limit = best + 2.0 * 2.0 * projection.sqrt() + 1e-12;
                    assert!(error <= limit, "{what}: {error:e}, best {best:e}, limit {limit:e}");
                }
            }
        }
    }
    println!("error over the optimum at worst: single-pass {:.2}, nystrom {:.2}", worst[0], worst[1]);
}

#[test]
fn exact_where_the_rank_is() {
    let spectrum: Vec<f64> = (0..12).map(|i| 1.0 / (f64::from(i) + 1.0)).collect();
    let a = with_spectrum(300, 90, &spectrum, 3);
    for method in ONCE {
        let svd = TruncatedSvd::new(Rank::Fixed(12)).method(method);
        let f = svd.factor::<f64>(rounded::<f64>(a.as_ref()).as_tensor().unwrap()).unwrap();
        assert!(true_error(a.as_ref(), &f) < 1e-13, "{method}");
        for (s, t) in f.s().iter().zip(&spectrum) {
            assert!((s - t).abs() < 1e-13, "{method}: {s} {t}");
        }
        let zero = Matrix::<f32>::zeros(40, 30);
        let f = svd.factor::<f32>(zero.as_tensor().unwrap()).unwrap();
        assert_eq!((f.report().relative_error, f.s()[0]), (0.0, 0.0), "{method}");
    }
}

/// Blocks of rows in any order and type, in states that are merged.
#[test]
fn streams_add_up() {
    let (m, n, k) = (700, 130, 10);
    let spectrum: Vec<f64> = (0..n).map(|i| (i as f64 + 1.0).powi(-2)).collect();
    let w = rounded::<f16>(with_spectrum(m, n, &spectrum, 1).as_ref());
    let a = exact(&w);
    let part = |rows: std::ops::Range<usize>| w.as_slice()[rows.start * n..rows.end * n].to_vec();
    for method in ONCE {
        for sketch in SKETCHES {
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch).seed(2);
            let whole = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
            let mut states = [(); 3].map(|()| svd.accumulator::<f64>((m, n)).unwrap());
            for (i, (first, last)) in [(512, 700), (0, 1), (100, 512), (1, 100)].into_iter().enumerate() {
                let rows = part(first..last);
                if i == 2 {
                    // Columns in memory.
                    let turned: Vec<f16> =
                        (0..n * (last - first)).map(|x| rows[x % (last - first) * n + x / (last - first)]).collect();
                    let block = TensorRef::strided(&turned, &[last - first, n], &[1, (last - first) as isize]).unwrap();
                    states[i % 3].update(first, &block).unwrap();
                } else {
                    states[i % 3].update(first, &TensorRef::new(&rows, &[last - first, n]).unwrap()).unwrap();
                }
            }
            let [mut sum, second, third] = states;
            sum.merge(&third).unwrap();
            sum.merge(&second).unwrap();
            let f = sum.finish().unwrap();
            let what = format!("{method} {sketch}");
            check(&what, a.as_ref(), &f);
            let apart = (exact(&f.reconstruct()) - exact(&whole.reconstruct())).norm_l2() / a.norm_l2();
            assert!(apart < 1e-12, "{what}: {apart:e}");
            let (x, y) = (f.report().relative_error, whole.report().relative_error);
            assert!((x / y - 1.0).abs() < 1e-9 && (f.report().norm / a.norm_l2() - 1.0).abs() < 1e-12, "{what}");
        }
    }
}

#[test]
fn a_stream_refuses_rows_that_do_not_fit() {
    let svd = TruncatedSvd::new(Rank::Fixed(3)).method(Method::SinglePass);
    let rows = |count: usize| Matrix::<f32>::from_fn(count, 8, |i, j| (i * 8 + j) as f32);
    let mut state = svd.accumulator::<f32>((20, 8)).unwrap();
    state.update(4, &rows(6).as_tensor().unwrap()).unwrap();
    for (first, count) in [(0, 5), (9, 1), (4, 6), (0, 20), (19, 2), (usize::MAX, 1)] {
        let error = state.update(first, &rows(count).as_tensor().unwrap()).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{first}, {count}: {error}");
    }
    let narrow = Matrix::<f32>::zeros(2, 7);
    assert!(matches!(state.update(0, &narrow.as_tensor().unwrap()), Err(Error::Shape { .. })));
    let bad = Matrix::<f32>::from_fn(2, 8, |i, j| if (i, j) == (1, 5) { f32::NAN } else { 1.0 });
    assert!(matches!(state.update(10, &bad.as_tensor().unwrap()), Err(Error::NotFinite { row: 11, col: 5, .. })));
    let huge = Matrix::<f32>::from_fn(1, 8, |_, _| 1e38);
    assert!(matches!(state.update(10, &huge.as_tensor().unwrap()), Err(Error::Range { .. })));
    assert!(matches!(state.merge(&state.clone()), Err(Error::Shape { .. })));
    let other = svd.clone().seed(9).accumulator::<f32>((20, 8)).unwrap();
    assert!(matches!(state.merge(&other), Err(Error::Option { .. })));
    assert!(matches!(state.clone().finish(), Err(Error::Shape { .. })));
    // None of the refusals left a trace.
    state.update(0, &rows(4).as_tensor().unwrap()).unwrap();
    state.update(10, &rows(10).as_tensor().unwrap()).unwrap();
    let f = state.finish().unwrap();
    let a = Mat::from_fn(20, 8, |i, j| {
        let first = if i < 4 {
            0
        } else if i < 10 {
            4
        } else {
            10
        };
        ((i - first) * 8 + j) as f64
    });
    check("after refusals", a.as_ref(), &f);

    let fixed = TruncatedSvd::new(Rank::Fixed(3));
    assert!(matches!(fixed.accumulator::<f32>((20, 8)), Err(Error::Option { name: "method", .. })));
    let open = TruncatedSvd::new(Rank::Tolerance(0.1)).method(Method::Nystrom);
    assert!(matches!(open.accumulator::<f32>((20, 8)), Err(Error::Option { name: "max_rank", .. })));
}

#[test]
fn scale_does_not_matter_to_a_stream() {
    let spectrum: Vec<f64> = (0..40).map(|i| (f64::from(i) + 1.0).powi(-1)).collect();
    let a = with_spectrum(60, 40, &spectrum, 1);
    for method in ONCE {
        let svd = TruncatedSvd::new(Rank::Fixed(5)).method(method);
        let errors = [1.0, 1e28, 1e-28].map(|scale| {
            let w = rounded::<f32>((&a * faer::Scale(scale)).as_ref());
            let mut state: SinglePass<f32> = svd.accumulator((60, 40)).unwrap();
            state.update(0, &w.as_tensor().unwrap()).unwrap();
            let f = state.finish().unwrap();
            assert!((f.report().norm / scale / a.norm_l2() - 1.0).abs() < 1e-6, "{method} {scale:e}");
            f.report().relative_error
        });
        assert!(errors.iter().all(|e| (e / errors[0] - 1.0).abs() < 1e-3), "{method}: {errors:?}");
    }
}

#[test]
fn a_tolerance_within_the_largest_rank() {
    let spectrum: Vec<f64> = (0..100).map(|i| 0.9f64.powi(i)).collect();
    let a = with_spectrum(300, 100, &spectrum, 5);
    let w = rounded::<f64>(a.as_ref());
    for method in ONCE {
        let svd = TruncatedSvd::new(Rank::Tolerance(0.2)).method(method).max_rank(40).oversample(20);
        let f = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
        check(&format!("{method}"), a.as_ref(), &f);
        let least = spectrum.iter().enumerate().position(|(k, _)| k > 0 && best_error(&spectrum, k) <= 0.2).unwrap();
        assert!((least..least + 8).contains(&f.rank()), "{method}: {} {least}", f.rank());
        assert!(true_error(a.as_ref(), &f) <= 0.2, "{method}");
        let f = svd.max_rank(5).factor::<f64>(w.as_tensor().unwrap()).unwrap();
        assert_eq!((f.rank(), f.report().notes.len()), (5, 1), "{method}");
    }
}

/// An operator that has rows and nothing else: any second look, and any row out of turn, fails the test.
struct RowsOnly {
    rows: Dense<'static, f64>,
    a: &'static Mat<f64>,
    next: usize,
}

impl LinearOperator<f64> for RowsOnly {
    type Space = Host;

    fn space(&self) -> &Host {
        self.rows.space()
    }

    fn facts(&self) -> Facts {
        Facts { passes: usize::from(self.next > 0), ..self.rows.facts() }
    }

    fn apply(&mut self, _: &HostPanel<f64>, _: &mut HostPanel<f64>) -> Result<()> {
        panic!("a second look")
    }

    fn apply_adjoint(&mut self, _: &HostPanel<f64>, _: &mut HostPanel<f64>) -> Result<()> {
        panic!("a second look")
    }

    fn sketch(&mut self, _: &AnySketch, _: &mut HostPanel<f64>) -> Result<()> {
        panic!("a second look")
    }

    fn materialize(&mut self, _: &mut HostPanel<f64>) -> Result<()> {
        panic!("a second look")
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, f64>) -> Result<()>) -> Result<()> {
        for count in [1, 30, 69, 100].into_iter().cycle() {
            let count = count.min(self.a.nrows() - self.next);
            if count == 0 {
                return Ok(());
            }
            f(self.next, self.a.subrows(self.next, count))?;
            self.next += count;
        }
        Ok(())
    }

    fn gram(&mut self) -> Result<Symmetric<f64, Host>> {
        panic!("a second look")
    }

    fn congruence(&mut self, _: &HostPanel<f64>, _: &mut HostPanel<f64>) -> Result<()> {
        panic!("a second look")
    }
}

#[test]
fn each_row_is_read_once() {
    let spectrum: Vec<f64> = (0..50).map(|i| 0.8f64.powi(i)).collect();
    let a: &'static Mat<f64> = Box::leak(Box::new(with_spectrum(333, 50, &spectrum, 5)));
    for method in ONCE {
        let rows = Dense::<f64>::new(MatView::F64(a.as_ref()), Par::Seq).unwrap();
        let mut op = RowsOnly { rows, a, next: 0 };
        let f = TruncatedSvd::new(Rank::Fixed(8)).method(method).factor_operator(&mut op).unwrap();
        assert_eq!(op.next, a.nrows());
        check(&format!("{method}"), a.as_ref(), &f);
    }
}

/// The estimate from the error sketch is unbiased, and its standard deviation is what it says.
#[test]
fn the_error_sketch_is_calibrated() {
    let spectrum: Vec<f64> = (0..60).map(|i| (f64::from(i) + 1.0).powf(-0.7)).collect();
    let a = with_spectrum(80, 60, &spectrum, 5);
    let w = rounded::<f64>(a.as_ref());
    let (mut sum, mut squares) = (0.0, 0.0);
    let runs = 200;
    for seed in 0..runs {
        let svd = TruncatedSvd::new(Rank::Fixed(6)).method(Method::Nystrom).seed(seed);
        let f = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
        let truth = true_error(a.as_ref(), &f);
        let ErrorKind::Estimate { std_dev, .. } = f.report().error_kind else { unreachable!() };
        // In the squares, where the estimate is unbiased.
        let deviation =
            (f.report().relative_error.powi(2) - truth * truth) / (2.0 * f.report().relative_error * std_dev);
        sum += deviation;
        squares += deviation * deviation;
    }
    let (mean, spread) = (sum / runs as f64, (squares / runs as f64).sqrt());
    // A Student t of 15 degrees of freedom has a variance of 15/13, and a small skew from χ²: the mean of 200 within 4/√200, the
    // root mean square within 1.07 ± 0.3 (both beyond 4 standard deviations; the seeds are fixed).
    assert!(mean.abs() < 0.35 && (0.8..1.4).contains(&spread), "mean {mean}, spread {spread}");
}

/// Spectra that end, between 1 and all columns of the panel and at n: what a filter guesses of a tail must not be felt where there is none.
#[test]
fn the_gram_route_is_exact_where_the_spectrum_ends() {
    let (n, k) = (46, 23);
    for (kept, low, oversample) in [(31, 0.0, 10), (31, 1e-8, 10), (12, 0.0, 10), (46, 0.3, 23), (44, 0.0, 22)] {
        let spectrum: Vec<f64> = (0..n).map(|i| if i < kept { 1.0 } else { low }).collect();
        for (m, sketch, seed) in [(n, Sketch::Gaussian, 0), (70, Sketch::Gaussian, 1), (70, Sketch::Srht, 2)] {
            let a = with_spectrum(m, n, &spectrum, seed);
            let a = rounded::<f32>(a.as_ref());
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Gram).sketch(sketch).oversample(oversample);
            let f = svd.seed(seed).factor::<f32>(a.as_tensor().unwrap()).unwrap();
            let (error, best) = (true_error(exact(&a).as_ref(), &f), best_error(&spectrum, k));
            assert!((error - best).abs() < 4e-6, "{m}×{n}, {kept} and then {low:e}, {sketch}: {error:e} for {best:e}");
        }
    }
}

/// With the shift, the same number of products is at least as accurate where singular values decay slowly, and better on
/// the whole; in f32 as well, down to `√eps σ_1` and below.
#[test]
fn the_dynamic_shift_is_at_least_as_accurate() {
    let n = 240;
    let by = |f: &dyn Fn(f64) -> f64| (0..n).map(|i| f(f64::from(i))).collect::<Vec<f64>>();
    let slow = [
        ("i^-0.3", by(&|i| (i + 1.0).powf(-0.3))),
        ("i^-0.5", by(&|i| (i + 1.0).powf(-0.5))),
        ("linear", by(&|i| 1.2 - i / 240.0)),
        ("spikes on a slope", by(&|i| if i < 4.0 { 30.0 } else { 1.2 - i / 240.0 })),
        ("one large, the rest below √eps of f32", by(&|i| if i < 1.0 { 1.0 } else { 1e-4 * (i + 1.0).powf(-0.4) })),
    ];
    fn errors<T: Scalar>(a: &Mat<f64>, best: f64, q: usize, seed: u64) -> [f64; 2] {
        let w = rounded::<T>(a.as_ref());
        [false, true].map(|shift| {
            let svd = TruncatedSvd::new(Rank::Fixed(40)).method(Method::Randomized).power_iterations(q).seed(seed);
            let f = svd.dynamic_shift(shift).factor::<T>(w.as_tensor().unwrap()).unwrap();
            // One more where the certificate needs probes.
            let probed = matches!(f.report().error_kind, ErrorKind::Estimate { .. });
            assert_eq!(f.report().passes, 2 * q + 2 + usize::from(probed));
            true_error(exact(&w).as_ref(), &f) / best - 1.0
        })
    }
    for (name, spectrum) in slow {
        let a = with_spectrum(500, n as usize, &spectrum, 17);
        let best = best_error(&spectrum, 40);
        for q in [1, 2, 3] {
            let (mut plain, mut shifted) = (0.0, 0.0);
            for seed in 0..3 {
                let double = errors::<f64>(&a, best, q, seed);
                let single = errors::<f32>(&a, best, q, seed);
                for [without, with] in [double, single] {
                    // Rounding of f32 in the last case: the tail is 1e-4 of the norm, and eps 1e-3 of the tail.
                    assert!(
                        with <= without + 1e-5 + 2e-3 * f64::from(u8::from(best < 0.1)),
                        "{name} q = {q}: {with:e} against {without:e}"
                    );
                    plain += without;
                    shifted += with;
                }
            }
            println!("{name}, q = {q}: excess {:.2e} without, {:.2e} with the shift", plain / 6.0, shifted / 6.0);
            assert!(shifted <= 0.9 * plain, "{name} q = {q}: {shifted:e} against {plain:e}");
        }
    }
    // The first iteration has nothing to shift by yet: with none there is no difference.
    let w = rounded::<f64>(gaussian(60, 30, 1).as_ref());
    let svd = TruncatedSvd::new(Rank::Fixed(4)).method(Method::Randomized).power_iterations(0);
    let [f, g] = [false, true].map(|on| svd.clone().dynamic_shift(on).factor::<f64>(w.as_tensor().unwrap()).unwrap());
    assert_eq!(f.u(), g.u());
    // Nothing to divide by: dependent columns, a zero matrix.
    for a in [Mat::from_fn(70, 50, |i, j| (i + j) as f64), Mat::zeros(70, 50)] {
        let svd = TruncatedSvd::new(Rank::Fixed(6)).method(Method::Randomized).dynamic_shift(true);
        let f = svd.factor::<f32>(rounded::<f32>(a.as_ref()).as_tensor().unwrap()).unwrap();
        assert!(f.report().relative_error < 1e-6 && orthonormality(exact(f.u()).as_ref()) < 1e-5);
    }
}
