//! Factors that know the activations: calibration statistics, whitened factorization, quality, blend, pivoted form.
#![allow(clippy::print_stdout)] // the tables of figures, with `--nocapture`

use crate::common::*;
use faer::{Mat, MatRef};
use half::f16;
use proptest::prelude::*;
use tensorslim::calibration::{Accumulation, CalibrationOptions, Form, NonFinite};
use tensorslim::quality::Comparison;
use tensorslim::{
    Calibration, Element, Error, Factors, Matrix, Method, Rank, Scalar, TensorRef, TruncatedSvd, Whitening, quality,
};

fn calibrated<E: Element>(x: &Matrix<E>) -> Calibration {
    with_options(x, CalibrationOptions::default())
}

fn with_options<E: Element>(x: &Matrix<E>, options: CalibrationOptions) -> Calibration {
    let mut c = Calibration::with(x.ncols(), options).unwrap();
    c.update(&x.as_tensor().unwrap()).unwrap();
    c
}

fn first_rows<E: Element>(x: &Matrix<E>, rows: usize) -> Matrix<E> {
    Matrix::from_vec(x.as_slice()[..rows * x.ncols()].to_vec(), rows, x.ncols()).unwrap()
}

struct Real {
    w: Matrix<f16>,
    calibration: Matrix<f16>,
    heldout: Matrix<f16>,
}

fn up() -> Real {
    Real {
        w: real("ffn_up", 1536, 384),
        calibration: real("ffn_up_calibration", 1024, 384),
        heldout: real("ffn_up_heldout", 512, 384),
    }
}

fn down() -> Real {
    Real {
        w: real("ffn_down", 384, 1536),
        calibration: real("ffn_down_calibration", 2048, 1536),
        heldout: real("ffn_down_heldout", 512, 1536),
    }
}

/// Ratio 3.2 (k = 95). The exact loss is that of `tests/data/README.md`, from NumPy in f64.
fn reaches(real: &Real, loss: f64, error: f64, cosine: f64) {
    let c = calibrated(&real.calibration);
    let w = real.w.as_tensor().unwrap();
    for (method, margin) in [(Method::Auto, 1e-2), (Method::Full, 1e-3)] {
        let f = TruncatedSvd::new(Rank::Ratio(3.2)).method(method).calibration(&c).factor::<f32>(w.clone()).unwrap();
        assert_eq!(f.rank(), 95);
        let report = f.report().activation.as_ref().unwrap();
        let off = report.relative_error / loss - 1.0;
        assert!(off.abs() < margin, "{method}: calibration loss {}", report.relative_error);
        let held = quality::activation(&w, &f, &real.heldout.as_tensor().unwrap()).unwrap();
        assert!(held.relative_error <= error && held.cosine >= cosine, "{method}: heldout {held:?}");

        // The certificate, the expectation from statistics, and the samples themselves: f32 products of a few hundred terms round
        // by some 1e-6 of the output norm, of which the error is a sixth.
        let measured = quality::activation(&w, &f, &real.calibration.as_tensor().unwrap()).unwrap();
        let expected = quality::expected(&w, &f, &c).unwrap();
        for (what, x) in [("certificate", report.relative_error), ("expected", expected.relative_error)] {
            assert!((x - measured.relative_error).abs() < 1e-5, "{method}, {what}: {x} for {measured:?}");
        }
        assert!((expected.cosine - measured.cosine).abs() < 1e-5 && (report.cosine() - measured.cosine).abs() < 1e-5);
        // The factors are a proper SVD, and know the error of the weight.
        let a = exact(&real.w);
        assert!((true_error(a.as_ref(), &f) - f.report().relative_error).abs() < 1e-5);
        assert!(orthonormality(exact(f.u()).as_ref()) < 1e-5 && orthonormality(exact(f.vt()).transpose()) < 1e-5);
        assert!(f.s().is_sorted_by(|a, b| a >= b));
    }
}

#[test]
fn the_real_up_projection_reaches_its_optimum_on_unseen_inputs() {
    reaches(&up(), 0.17475, 0.196, 0.9806);
}

#[test]
fn the_real_down_projection_reaches_its_optimum_on_unseen_inputs() {
    reaches(&down(), 0.12267, 0.149, 0.9887);
}

/// The least loss that rank k allows, relative, from the singular values of `W Xᵀ` in f64.
fn oracle(w: MatRef<'_, f64>, x: MatRef<'_, f64>, k: usize) -> f64 {
    let spectrum = (w * x.transpose()).singular_values().unwrap();
    if k < spectrum.len() && spectrum[0] > 0.0 { best_error(&spectrum, k) } else { 0.0 }
}

/// The loss of factors, in f64.
fn loss<T: Scalar>(w: MatRef<'_, f64>, x: MatRef<'_, f64>, f: &Factors<T>) -> f64 {
    let (mut u, vt) = (exact(f.u()), exact(f.vt()));
    for (j, &s) in f.s().iter().enumerate() {
        u.col_mut(j).iter_mut().for_each(|x| *x *= s.to_f64());
    }
    let y = w * x.transpose();
    let norm = y.norm_l2();
    if norm == 0.0 { 0.0 } else { (y - u * (vt * x.transpose())).norm_l2() / norm }
}

/// Every method, form and arithmetic on one weight and its inputs: no more than `slack` above the optimum.
///
/// `floor` is what arithmetic adds in units of its eps: the moments round by 1e-16 of the largest (1e-8 of an output) with a Gram matrix, and
/// f32 products by `√n` eps of the output norm.
fn near_the_optimum(what: &str, w: &Mat<f64>, x: &Mat<f64>, k: usize, slack: f64) {
    fn run<T: Scalar>(what: &str, w: &Mat<f64>, x: &Mat<f64>, k: usize, slack: f64, form: Form, floor: f64) {
        let (stored, samples) = (rounded::<T>(w.as_ref()), rounded::<f64>(x.as_ref()));
        let w = exact(&stored);
        let best = oracle(w.as_ref(), x.as_ref(), k);
        let c = with_options(&samples, CalibrationOptions { form, ..Default::default() });
        for method in [Method::Auto, Method::Full, Method::Gram, Method::Randomized] {
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).calibration(&c);
            let f = svd.factor::<T>(stored.as_tensor().unwrap()).unwrap();
            let what = format!("{what}, {}×{} {} {form:?} {method}", w.nrows(), w.ncols(), T::DTYPE);
            assert!(
                f.u().as_slice().iter().chain(f.vt().as_slice()).all(|&x| Element::to_f64(x).is_finite()),
                "{what}"
            );
            let lost = loss(w.as_ref(), x.as_ref(), &f);
            assert!(lost <= best * (1.0 + slack) + floor, "{what}: {lost:e} for {best:e}");
            let said = f.report().activation.as_ref().unwrap().relative_error;
            assert!((said - lost).abs() <= 0.05 * lost + floor, "{what}: {said:e} reported, {lost:e} measured");
        }
    }
    for form in [Form::Gram, Form::Factor] {
        run::<f32>(what, w, x, k, slack, form, 3e-5);
        run::<f64>(what, w, x, k, slack, form, 3e-6);
    }
}

/// Normals, mixed with their neighbours.
fn mixed(rows: usize, n: usize, memory: f64, random: &mut Random) -> Mat<f64> {
    let mut x = Mat::from_fn(rows, n, |_, _| random.normal());
    for j in 1..n {
        (0..rows).for_each(|i| x[(i, j)] += memory * x[(i, j - 1)]);
    }
    x
}

/// Tall weights under inputs with a spectrum that decays by little, where the Gram matrix alone tells the left vectors: with W beside the second
/// eigensolver and after it, without a doubt in them (`σ_l` above `σ_1 / 6`) and with one.
#[test]
fn tall_weights_by_the_gram_matrix_alone() {
    fn run<T: Scalar>(w: &Mat<f64>, x: &Mat<f64>, k: usize) {
        let stored = rounded::<T>(w.as_ref());
        let samples = rounded::<f64>(x.as_ref());
        let a = exact(&stored);
        let svd = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Gram).calibration(&calibrated(&samples));
        let f = svd.factor::<T>(stored.as_tensor().unwrap()).unwrap();
        let what = format!("{}×{} k = {k} {}", w.nrows(), w.ncols(), T::DTYPE);
        assert_eq!(f.report().method, Method::Gram, "{what}");
        let spectrum = (&a * x.transpose()).singular_values().unwrap();
        let (best, got) = (best_error(&spectrum, k), loss(a.as_ref(), x.as_ref(), &f));
        println!("{what}: σ_k/σ_1 = {:.3}, loss {got:.5}, best {best:.5}", spectrum[k - 1] / spectrum[0]);
        assert!(got < 1.01 * best, "{what}: {got}, best {best}");
        // A norm that is the trace of a Gram matrix rounds by the eps of what the outputs would be if the inputs were independent.
        let (samples, norm) = (x.nrows() as f64, spectrum.iter().map(|s| s * s).sum::<f64>().sqrt());
        let apart: f64 = (0..w.ncols()).map(|j| a.col(j).squared_norm_l2() * x.col(j).squared_norm_l2()).sum();
        let rounding = 1e-5 + apart / norm.powi(2) * T::EPSILON;
        let report = f.report().activation.as_ref().unwrap();
        let off = (report.relative_error - got).abs();
        assert!(off < rounding / got, "{what}: certified {}, is {got}", report.relative_error);
        let off = (report.norm * samples.sqrt() / norm - 1.0).abs();
        assert!(off < rounding, "{what}: norm {}, off by {off}", report.norm);
        let off = report.spectrum[..k].iter().zip(&spectrum).map(|(a, b)| (a * samples.sqrt() / b - 1.0).abs());
        assert!(off.fold(0.0, f64::max) < 0.05, "{what}: {:?}", report.spectrum);
        assert!((true_error(a.as_ref(), &f) - f.report().relative_error).abs() < 1e-5, "{what}");
        let (u, v) = (orthonormality(exact(f.u()).as_ref()), orthonormality(exact(f.vt()).transpose()));
        assert!(u.max(v) < 50.0 * T::EPSILON, "{what}: {u:e}, {v:e}");
        let alone = on_threads(1, || svd.factor::<T>(stored.as_tensor().unwrap()).unwrap());
        assert_eq!((f.u(), f.s(), f.vt()), (alone.u(), alone.s(), alone.vt()), "{what}: one thread");

        // By a cosine that this rank reaches: no larger one.
        let cosine = (1.0 - got * got).sqrt() - rounding / got;
        let by_cosine = svd.clone().with_rank(Rank::Quality(cosine)).factor::<T>(stored.as_tensor().unwrap()).unwrap();
        assert!(by_cosine.rank() <= k, "{what}: rank {} for {cosine}", by_cosine.rank());
        let lost = loss(a.as_ref(), x.as_ref(), &by_cosine);
        assert!((1.0 - lost * lost).sqrt() > cosine - rounding / got, "{what}: {lost} for {cosine}");
        let u = orthonormality(exact(by_cosine.u()).as_ref());
        assert!(u < 50.0 * T::EPSILON, "{what}, by its cosine: {u:e}");
    }
    const LOUD: f64 = 1000.0;
    let mut random = Random(5);
    for (m, n, k) in [(1536, 384, 96), (600, 300, 40)] {
        let w = mixed(m, n, 0.3, &mut random);
        for memory in [0.3, 0.9] {
            let x = mixed(2 * n, n, memory, &mut random);
            run::<f32>(&w, &x, k);
            run::<f64>(&w, &x, k);
        }
        // Two inputs that say the same, loudly, to weights that cancel it: the Gram matrix of f32 does not see the outputs as they are, and the
        // vectors that come of it alone are refuted.
        let (mut w, mut x) = (w, mixed(2 * n, n, 0.9, &mut random));
        for i in 0..2 * n {
            let loud = LOUD * random.normal();
            (x[(i, 0)], x[(i, 1)]) = (x[(i, 0)] + loud, x[(i, 1)] + loud);
        }
        (0..m).for_each(|i| w[(i, 1)] = -w[(i, 0)]);
        run::<f32>(&w, &x, k);
        run::<f64>(&w, &x, k);
    }
}

fn shapes() -> [(usize, usize); 2] {
    [(60, 40), (40, 60)]
}

#[test]
fn degenerate_inputs_stay_near_the_optimum() {
    for (m, n) in shapes() {
        let w = with_spectrum(m, n, &(0..40).map(|i| 0.93f64.powi(i)).collect::<Vec<_>>(), 1);
        let scaled = |by: &dyn Fn(usize) -> f64, rows: usize| {
            let mut x = gaussian(rows, n, 2);
            for j in 0..n {
                let factor = by(j);
                x.col_mut(j).iter_mut().for_each(|x| *x *= factor);
            }
            x
        };
        let plain = scaled(&|_| 1.0, 100);
        near_the_optimum("well conditioned", &w, &plain, 10, 0.02);
        near_the_optimum("condition 1e9", &w, &scaled(&|j| 10f64.powf(-4.5 * j as f64 / n as f64), 100), 10, 0.02);
        near_the_optimum("fewer samples than features", &w, &scaled(&|_| 1.0, 7), 5, 0.02);
        near_the_optimum("fewer samples than the rank", &w, &scaled(&|_| 1.0, 7), 10, 0.02);
        near_the_optimum("one sample", &w, &scaled(&|_| 1.0, 1), 3, 0.02);
        near_the_optimum("rank-1 activations", &w, &(gaussian(100, 1, 3) * gaussian(1, n, 4)), 4, 0.02);
        near_the_optimum("zero features", &w, &scaled(&|j| f64::from(u8::from(j % 3 > 0)), 100), 10, 0.02);
        near_the_optimum("all zero", &w, &scaled(&|_| 0.0, 10), 4, 0.02);
        let duplicated = Mat::from_fn(100, n, |i, j| plain[(i, j / 3)]);
        near_the_optimum("duplicated features", &w, &duplicated, 10, 0.02);
        let spread = |j: usize| [1e-12, 1.0, 1e12][j % 3];
        near_the_optimum("scales 1e±12 apart", &w, &scaled(&spread, 100), 10, 0.02);
        near_the_optimum("scales 1e±12 apart, high rank", &w, &scaled(&spread, 100), 30, 0.02);
        near_the_optimum("huge", &w, &scaled(&|_| 1e100, 100), 10, 0.02);
        near_the_optimum("tiny", &w, &scaled(&|_| 1e-100, 100), 10, 0.02);
    }
}

/// The inputs are dominated by a direction that the weight does not see: `W M Wᵀ` cancels, in f32 to a tenth of what is left. Features by
/// themselves, without their correlation, would make a thousand times the outputs that there are.
#[test]
fn dominant_inputs_without_outputs() {
    for (m, n) in shapes() {
        let direction = gaussian(1, n, 21);
        let length = direction.norm_l2();
        let mut w = with_spectrum(m, n, &(0..40).map(|i| 0.93f64.powi(i)).collect::<Vec<_>>(), 22);
        let seen = &w * direction.transpose() * (1.0 / (length * length));
        w -= seen * &direction;
        let x = gaussian(100, n, 23) + gaussian(100, 1, 24) * &direction * (3e3 / length);
        near_the_optimum("dominant inputs without outputs", &w, &x, 10, 0.02);
    }
}

/// What the samples say nothing about goes to the weight itself: with one sample, rank 10 is that sample's output and nearly the best rank
/// 9 of the rest.
#[test]
fn spare_rank_goes_to_the_weight() {
    for (m, n) in shapes() {
        let spectrum: Vec<f64> = (0..40).map(|i| 0.8f64.powi(i)).collect();
        let w = with_spectrum(m, n, &spectrum, 5);
        let c = calibrated(&rounded::<f64>(gaussian(1, n, 6).as_ref()));
        let svd = TruncatedSvd::new(Rank::Fixed(10)).calibration(&c);
        let f = svd.factor::<f32>(rounded::<f32>(w.as_ref()).as_tensor().unwrap()).unwrap();
        let (got, best) = (f.report().relative_error, best_error(&spectrum, 9));
        assert!(got <= 1.02 * best, "{m}×{n}: {got} for {best}");
    }
}

#[test]
fn samples_that_are_not_finite() {
    let n = 9;
    let mut x = rounded::<f32>(gaussian(50, n, 7).as_ref());
    let good = x.clone();
    x.as_mut_slice()[17 * n + 4] = f32::NAN;
    x.as_mut_slice()[30 * n] = f32::NEG_INFINITY;
    let mut refused = Calibration::new(n).unwrap();
    refused.update(&good.as_tensor().unwrap()).unwrap();
    let before = refused.clone();
    let Err(Error::NotFinite { row: 17, col: 4, value }) = refused.update(&x.as_tensor().unwrap()) else { panic!() };
    assert!(value.is_nan() && refused == before, "a refused update leaves traces");

    let skipped = with_options(&x, CalibrationOptions { non_finite: NonFinite::Skip, ..Default::default() });
    assert_eq!((skipped.samples(), skipped.skipped()), (48, 2));
    let kept: Vec<f32> = (0..50).filter(|i| ![17, 30].contains(i)).flat_map(|i| good.row(i).to_vec()).collect();
    assert_eq!(skipped.gram(), calibrated(&Matrix::from_vec(kept, 48, n).unwrap()).gram());

    let all = Matrix::from_vec(vec![f16::NAN; 2 * n], 2, n).unwrap();
    let none = with_options(&all, CalibrationOptions { non_finite: NonFinite::Skip, ..Default::default() });
    assert_eq!((none.samples(), none.skipped()), (0, 2));
    let w = rounded::<f32>(gaussian(20, n, 8).as_ref());
    let svd = TruncatedSvd::new(Rank::Fixed(2)).calibration(&none);
    assert!(matches!(svd.factor::<f32>(w.as_tensor().unwrap()), Err(Error::Option { name: "calibration", .. })));
}

#[test]
fn wrong_use_is_a_typed_error() {
    let w = rounded::<f32>(gaussian(20, 9, 8).as_ref());
    let w = w.as_tensor().unwrap();
    let c = calibrated(&rounded::<f32>(gaussian(30, 8, 9).as_ref()));
    assert!(matches!(
        TruncatedSvd::new(Rank::Fixed(2)).calibration(&c).factor::<f32>(w.clone()),
        Err(Error::Shape { .. })
    ));
    let c = calibrated(&rounded::<f32>(gaussian(30, 9, 9).as_ref()));
    let svd = TruncatedSvd::new(Rank::Fixed(2)).calibration(&c);
    for blend in [-0.1, 1.1, f64::NAN] {
        let failed = svd.clone().blend(blend).factor::<f32>(w.clone());
        assert!(matches!(failed, Err(Error::Option { name: "blend", .. })), "{blend}");
    }
    assert!(matches!(TruncatedSvd::new(Rank::Quality(0.9)).factor::<f32>(w.clone()), Err(Error::Option { .. })));
    assert!(matches!(
        TruncatedSvd::new(Rank::Quality(1.0)).calibration(&c).factor::<f32>(w.clone()),
        Err(Error::Option { .. })
    ));
    assert!(matches!(svd.choose_blend::<f32>(&w, std::slice::from_ref(&c)), Err(Error::Option { .. })));
    assert!(matches!(Calibration::new(0), Err(Error::Empty { .. })));
    // 8 TB, as of a file of samples that lies the other way round.
    for n in [1_000_000, usize::MAX / 2] {
        assert!(matches!(Calibration::new(n), Err(Error::TooLarge { .. })), "{n}");
        assert!(matches!(
            Calibration::with(n, CalibrationOptions { form: Form::Factor, ..Default::default() }),
            Err(Error::TooLarge { .. })
        ));
    }
    let options = CalibrationOptions { form: Form::Factor, accumulation: Accumulation::F32, ..Default::default() };
    assert!(matches!(Calibration::with(3, options), Err(Error::Option { .. })));
    let factor = Calibration::with(9, CalibrationOptions { form: Form::Factor, ..Default::default() }).unwrap();
    assert!(matches!(c.clone().merge(&factor), Err(Error::Option { .. })));
    assert!(matches!(c.clone().merge(&Calibration::new(8).unwrap()), Err(Error::Shape { .. })));
}

/// `max_ij |A_ij − B_ij| / √(A_ii A_jj)`.
fn distance(a: &Matrix<f64>, b: &Matrix<f64>) -> f64 {
    let n = a.nrows();
    let mut worst = 0f64;
    for i in 0..n {
        for j in 0..n {
            let unit = (a.row(i)[i] * a.row(j)[j]).sqrt();
            let off = (a.row(i)[j] - b.row(i)[j]).abs();
            worst = worst.max(if unit > 0.0 { off / unit } else { off });
        }
    }
    worst
}

/// `‖A − B‖_F / ‖A‖_F`.
fn relative(a: &Matrix<f64>, b: &Matrix<f64>) -> f64 {
    (exact(a) - exact(b)).norm_l2() / exact(a).norm_l2()
}

/// Sums of 1024 products in f64, in any order: `1024 · 2^-53 = 1.1e-13` of `√(G_ii G_jj)` each, at worst. In f32 blocks rounding errors of random
/// sign add up to some `√1024 · 2^-25 = 1e-6` of it, a few times that at the worst of 384² entries, and less in the norm.
#[test]
fn any_grouping_and_any_number_of_threads_give_the_same_statistics() {
    let x = up().calibration;
    let (rows, n) = (x.nrows(), x.ncols());
    let reference = {
        let x = exact(&x);
        Matrix::<f64>::from((x.transpose() * &x).as_ref())
    };
    let cases = [
        (Form::Gram, Accumulation::F64, 1e-12, 1e-12),
        (Form::Gram, Accumulation::F32, 1e-6, 4e-6),
        (Form::Factor, Accumulation::F64, 1e-12, 1e-12),
    ];
    for (form, accumulation, bound, worst) in cases {
        let options = CalibrationOptions { form, accumulation, ..Default::default() };
        let part = |first: usize, end: usize| {
            let rows = Matrix::from_vec(x.as_slice()[first * n..end * n].to_vec(), end - first, n).unwrap();
            with_options(&rows, options)
        };
        let whole = on_threads(1, || part(0, rows));
        let (off, entry) = (relative(&reference, &whole.gram()), distance(&reference, &whole.gram()));
        assert!(off < bound && entry < worst, "{form:?} {accumulation:?}: {off:e}, entries {entry:e}");
        let two = on_threads(2, || part(0, rows));
        assert_eq!(whole, two, "{form:?} {accumulation:?}: two threads give other bits");
        // 1024 updates of one row: they wait and give the same bits.
        let mut single = Calibration::with(n, options).unwrap();
        for i in 0..rows {
            single.update(&TensorRef::new(x.row(i), &[1, n]).unwrap()).unwrap();
        }
        assert!(single.gram() == whole.gram(), "{form:?} {accumulation:?}: rows one by one give other bits");
        // 7 parts, merged from the left, from the right, and as a tree.
        let parts: Vec<Calibration> = (0..7).map(|i| part(i * rows / 7, (i + 1) * rows / 7)).collect();
        let merged = |order: &[usize]| {
            let mut total = Calibration::with(n, options).unwrap();
            order.iter().for_each(|&i| total.merge(&parts[i]).unwrap());
            total
        };
        let mut tree = parts.clone();
        while tree.len() > 1 {
            let other = tree.remove(0);
            tree.last_mut().unwrap().merge(&other).unwrap();
        }
        let w = up().w;
        let factor = |c: &Calibration| {
            TruncatedSvd::new(Rank::Fixed(40))
                .method(Method::Full)
                .calibration(c)
                .factor::<f64>(w.as_tensor().unwrap())
                .unwrap()
        };
        let before = factor(&whole);
        for (what, c) in [
            ("left", merged(&[0, 1, 2, 3, 4, 5, 6])),
            ("any", merged(&[5, 0, 6, 3, 1, 4, 2])),
            ("tree", tree.remove(0)),
        ] {
            assert_eq!((c.samples(), c.skipped()), (rows as u64, 0), "{what}");
            let off = relative(&reference, &c.gram());
            assert!(off < bound, "{form:?} {accumulation:?} {what}: {off:e}");
            if what == "any" {
                let after = factor(&c);
                let off = (exact(&before.reconstruct()) - exact(&after.reconstruct())).norm_l2();
                let off = off / exact(&before.reconstruct()).norm_l2();
                // Perturbations of G, over the gap at rank 40: some 1e4.
                assert!(off < 1e4 * bound, "{form:?} {accumulation:?}: factors differ by {off:e}");
            }
        }
    }
}

/// Features of any scale, samples of any type and strides.
#[test]
fn fast_accumulation_is_good_to_1e_6() {
    let (rows, n) = (3000, 70);
    let x = Mat::from_fn(rows, n, |i, j| gaussian(1, 1, (i * n + j) as u64)[(0, 0)] * 10f64.powi([-12, 0, 12][j % 3]));
    let fast = CalibrationOptions { accumulation: Accumulation::F32, ..Default::default() };
    let stored = rounded::<f32>(x.as_ref());
    let reference = {
        let x = exact(&stored);
        Matrix::<f64>::from((x.transpose() * &x).as_ref())
    };
    for (options, bound) in [(fast, 4e-6), (CalibrationOptions::default(), 1e-12)] {
        let c = with_options(&stored, options);
        assert!(distance(&reference, &c.gram()) < bound, "{options:?}");
        let columns: Vec<f32> =
            (0..n).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| stored.row(i)[j]).collect();
        let mut strided = Calibration::with(n, options).unwrap();
        strided.update(&TensorRef::strided(&columns, &[rows, n], &[1, rows as isize]).unwrap()).unwrap();
        assert_eq!(c, strided, "{options:?}: strides change bits");
    }
    let c = with_options(&stored, fast);
    let x = exact(&stored);
    let mean = |j: usize| x.col(j).iter().sum::<f64>() / rows as f64;
    let scale = |j: usize| (x.col(j).iter().map(|x| x * x).sum::<f64>() / rows as f64).sqrt();
    for j in 0..n {
        assert!((c.means()[j] - mean(j)).abs() <= 1e-12 * scale(j) && (c.scales()[j] / scale(j) - 1.0).abs() < 1e-12);
        assert_eq!(c.largest()[j], x.col(j).iter().fold(0.0, |a: f64, b| a.max(b.abs())));
    }
    assert_eq!(c.dead().count(), 0);
    let mut dead = stored.clone();
    dead.as_mut_slice().chunks_exact_mut(n).for_each(|row| (row[3], row[11]) = (0.0, -0.0));
    assert_eq!(calibrated(&dead).dead().collect::<Vec<_>>(), [3, 11]);
}

/// Whole blocks of samples that f32 holds do not wait in f64: the bits are those of samples that did, at any scale, with some left out.
#[test]
fn whole_blocks_of_samples_have_the_bits_of_single_ones() {
    let (rows, n) = (4400, 37);
    let scaled = |spread: i32| {
        let scales: Vec<f64> = (0..n).map(|j| 2f64.powi(spread * (j as i32 % 3 - 1))).collect();
        let mut x = gaussian(rows, n, 31);
        (0..n).for_each(|j| x.col_mut(j).iter_mut().for_each(|x| *x *= scales[j]));
        x
    };
    fn check<E: Element>(x: &Matrix<E>, accumulation: Accumulation) {
        let (rows, n) = (x.nrows(), x.ncols());
        let options = CalibrationOptions { accumulation, non_finite: NonFinite::Skip, ..Default::default() };
        let whole = with_options(x, options);
        assert_eq!(whole.skipped(), 2);
        let mut parts = Calibration::with(n, options).unwrap();
        for first in (0..rows).step_by(100) {
            let part = Matrix::from_vec(x.as_slice()[first * n..(first + 100) * n].to_vec(), 100, n).unwrap();
            parts.update(&part.as_tensor().unwrap()).unwrap();
        }
        assert_eq!(whole.gram(), parts.gram(), "{} {accumulation:?}", E::DTYPE);
        let finite = |i: &usize| x.row(*i).iter().all(|x| x.to_f64().is_finite());
        let kept: Vec<usize> = (0..rows).filter(finite).collect();
        let kept = Mat::from_fn(kept.len(), n, |i, j| x.row(kept[i])[j].to_f64());
        let reference = Matrix::<f64>::from((kept.transpose() * &kept).as_ref());
        let bound = if accumulation == Accumulation::F32 { 4e-6 } else { 1e-12 };
        let off = distance(&reference, &whole.gram());
        assert!(off < bound, "{} {accumulation:?}: {off:e}", E::DTYPE);
    }
    for accumulation in [Accumulation::F32, Accumulation::F64] {
        for spread in [0, 60] {
            let mut x = rounded::<f32>(scaled(spread).as_ref());
            (x.as_mut_slice()[50 * n], x.as_mut_slice()[4200 * n + 5]) = (f32::NAN, f32::INFINITY);
            check(&x, accumulation);
        }
        let mut x = rounded::<f16>(scaled(0).as_ref());
        (x.as_mut_slice()[50 * n], x.as_mut_slice()[4200 * n + 5]) = (f16::NAN, f16::INFINITY);
        check(&x, accumulation);
    }
}

/// Settled statistics are the same, and hold no rows.
#[test]
fn settled_statistics_are_the_same_and_hold_no_rows() {
    for form in [Form::Gram, Form::Factor] {
        let options = CalibrationOptions { form, ..Default::default() };
        let c = with_options(&first_rows(&up().calibration, 100), options);
        for look_first in [false, true] {
            let mut settled = c.clone();
            if look_first {
                assert_eq!(settled.gram(), c.gram());
            }
            settled.settle();
            assert_eq!(settled, c);
            assert_eq!(settled.to_bytes(), c.to_bytes());
        }
        let held = Calibration::bytes_for(384, options).unwrap();
        assert!(held > 8 * 384 * 384 && held < 64 << 20, "{held}");
    }
    assert_eq!(Calibration::bytes_for(usize::MAX / 4, CalibrationOptions::default()), None);
}

/// Methods that look once are fed the rows of `W L` in blocks.
#[test]
fn methods_of_one_look_are_calibrated_too() {
    for (m, n) in [(700, 40), (40, 60)] {
        let spectrum: Vec<f64> = (0..40).map(|i| 0.7f64.powi(i)).collect();
        let w = rounded::<f32>(with_spectrum(m, n, &spectrum, 61).as_ref());
        let x = mixed(200, n, 0.5, &mut Random(62));
        let c = calibrated(&rounded::<f64>(x.as_ref()));
        let a = exact(&w);
        for method in [Method::SinglePass, Method::Nystrom] {
            let svd = TruncatedSvd::new(Rank::Fixed(8)).method(method).calibration(&c);
            let f = svd.factor::<f32>(w.as_tensor().unwrap()).unwrap();
            let (best, lost) = (oracle(a.as_ref(), x.as_ref(), 8), loss(a.as_ref(), x.as_ref(), &f));
            let said = f.report().activation.as_ref().unwrap().relative_error;
            assert!(lost < 3.0 * best && (said / lost - 1.0).abs() < 0.05, "{m}×{n} {method}: {lost}, {said}, {best}");
        }
    }
}

/// One seed, one answer, for whitened factors too.
#[test]
fn whitened_factors_do_not_depend_on_threads() {
    for real in [up(), down()] {
        for form in [Form::Gram, Form::Factor] {
            let x = first_rows(&real.calibration, 300);
            for (method, blend) in [(Method::Auto, 0.9), (Method::Randomized, 1.0)] {
                let run = |threads| {
                    on_threads(threads, || {
                        let c = with_options(&x, CalibrationOptions { form, ..Default::default() });
                        let svd = TruncatedSvd::new(Rank::Fixed(40)).method(method).calibration(&c).blend(blend);
                        let f = svd.factor::<f32>(real.w.as_tensor().unwrap()).unwrap();
                        (f.u().clone(), f.s().to_vec(), f.vt().clone(), f.report().activation.clone())
                    })
                };
                assert!(run(1) == run(2), "{form:?} {method}: two threads give other bits");
            }
        }
    }
}

/// The root that statistics keep is of one type at a time: factors do not depend on what was factored before, nor on which clone was used.
#[test]
fn kept_roots_are_of_the_right_type() {
    let real = up();
    let x = first_rows(&real.calibration, 500);
    fn factors<T: Scalar>(w: &Matrix<f16>, c: &Calibration) -> (Matrix<T>, Vec<T>, Matrix<T>) {
        let svd = TruncatedSvd::new(Rank::Fixed(20)).calibration(c);
        let f = svd.factor::<T>(w.as_tensor().unwrap()).unwrap();
        (f.u().clone(), f.s().to_vec(), f.vt().clone())
    }
    let fresh = || calibrated(&x);
    let (single, double) = (factors::<f32>(&real.w, &fresh()), factors::<f64>(&real.w, &fresh()));
    let used = fresh();
    for _ in 0..2 {
        assert!(factors::<f32>(&real.w, &used) == single, "f32 after f64");
        assert!(factors::<f64>(&real.w, &used.clone()) == double, "f64 after f32");
    }
}

#[test]
fn bytes_survive_the_trip_and_nothing_else_does() {
    let mut x = rounded::<f32>(gaussian(40, 6, 10).as_ref());
    x.as_mut_slice()[7] = f32::NAN;
    for form in [Form::Gram, Form::Factor] {
        for accumulation in [Accumulation::F64, Accumulation::F32] {
            let options = CalibrationOptions { form, accumulation, non_finite: NonFinite::Skip };
            if form == Form::Factor && accumulation == Accumulation::F32 {
                continue;
            }
            let c = with_options(&x, options);
            let bytes = c.to_bytes();
            assert_eq!(bytes.len(), 40 + 8 * (3 * 6 + 21) + 4);
            let back = Calibration::from_bytes(&bytes).unwrap();
            assert_eq!(back, c);
            assert_eq!((back.samples(), back.skipped(), back.options()), (39, 1, options));
            // It goes on as the original does.
            let (mut a, mut b) = (c, back);
            a.merge(&b.clone()).unwrap();
            b.merge(&b.clone()).unwrap();
            assert_eq!(a, b);
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                assert!(matches!(Calibration::from_bytes(&damaged), Err(Error::Format { .. })), "byte {at}");
                assert!(Calibration::from_bytes(&bytes[..at]).is_err(), "{at} bytes");
            }
        }
    }
}

/// Calibration samples of 2^±1000: what the same samples near 1 give, to the bit if the scale is a power of two.
#[test]
fn samples_of_any_range_weigh_as_the_same_near_one() {
    fn factors<T: Scalar>(w: &Matrix<f64>, c: &Calibration, whitening: Whitening, blend: f64) -> Factors<T> {
        let svd = TruncatedSvd::new(Rank::Fixed(7)).calibration(c).whitening(whitening).blend(blend);
        svd.factor::<T>(w.as_tensor().unwrap()).unwrap()
    }
    fn check<T: Scalar>(w: &Matrix<f64>, c: &Calibration, base: &Calibration, shift: f64, exact: bool, what: &str) {
        for (whitening, blend) in [(Whitening::Full, 1.0), (Whitening::Full, 0.7), (Whitening::Diagonal, 1.0)] {
            let what = format!("{what} {whitening} {blend} {}", T::DTYPE);
            let (f, want) = (factors::<T>(w, c, whitening, blend), factors::<T>(w, base, whitening, blend));
            let (said, wanted) = (f.report().activation.as_ref().unwrap(), want.report().activation.as_ref().unwrap());
            assert!((said.relative_error / wanted.relative_error - 1.0).abs() < 1e-4, "{what}");
            assert!((said.norm / shift / wanted.norm - 1.0).abs() < 1e-4, "{what}: {:e}", said.norm);
            let (of, by) = (exact_of(&f), exact_of(&want));
            assert!((&of - &by).norm_l2() < 1e-3 * by.norm_l2(), "{what}");
            if exact {
                assert_eq!((f.u(), f.s(), f.vt()), (want.u(), want.s(), want.vt()), "{what}");
                assert_eq!(said.relative_error, wanted.relative_error, "{what}");
                let scaled = wanted.spectrum.iter().map(|s| s * shift);
                assert!(said.spectrum.iter().copied().eq(scaled) && said.norm == wanted.norm * shift, "{what}");
            }
        }
    }
    fn exact_of<T: Scalar>(f: &Factors<T>) -> Mat<f64> {
        exact(&f.reconstruct())
    }
    let n = 24;
    // Of few digits, so that no power of two rounds them.
    let x = exact(&rounded::<f16>(mixed(90, n, 0.5, &mut Random(41)).as_ref()));
    let powers = [-1010, -665, -600, -400, -310, 0, 300, 491, 500, 640, 1000, 1017].map(|e| (2f64.powi(e), true));
    let others = [1e-300, 1e-200, 1e-160, 1e145, 1e155, 1e200, 1e300].map(|scale| (scale, false));
    let forms = [
        (Form::Gram, Accumulation::F64, [40, 16]),
        (Form::Gram, Accumulation::F32, [40, 16]),
        (Form::Factor, Accumulation::F64, [40, 16]),
    ];
    for (form, accumulation, rows) in forms {
        let options = CalibrationOptions { form, accumulation, ..Default::default() };
        let base = with_options(&rounded::<f64>(x.as_ref()), options);
        assert_eq!(base.exponent(), 0);
        for (scale, exact) in powers.into_iter().chain(others) {
            let what = format!("{form:?} {accumulation:?} {scale:e}");
            let scaled = rounded::<f64>((&x * faer::Scale(scale)).as_ref());
            let c = with_options(&scaled, options);
            let near = |a: f64, b: f64| if exact { a == b } else { (a / b - 1.0).abs() < 1e-9 };
            for j in 0..n {
                assert!(near(c.means()[j], base.means()[j] * scale), "{what}: mean {j}");
                assert!(near(c.scales()[j], base.scales()[j] * scale), "{what}: scale {j}");
                assert!(near(c.largest()[j], base.largest()[j] * scale), "{what}: largest {j}");
            }
            let back = Calibration::from_bytes(&c.to_bytes()).unwrap();
            assert_eq!(back, c, "{what}");
            for m in rows {
                let w = rounded::<f64>(gaussian(m, n, 42).as_ref());
                let what = format!("{what} {m}×{n}");
                check::<f32>(&w, &c, &base, scale, exact, &what);
                check::<f64>(&w, &back, &base, scale, exact, &what);
                let f = factors::<f64>(&w, &base, Whitening::Full, 1.0);
                let expected = |c| quality::expected(&w.as_tensor().unwrap(), &f, c).unwrap();
                let off = expected(&c).relative_error / expected(&base).relative_error - 1.0;
                assert!(off.abs() < 1e-6, "{what}: expected off by {off:e}");
            }
        }
    }
    // Folds of their own ranges: a quiet one has no say beside a loud one, and one of zeros has none.
    let w = rounded::<f32>(gaussian(40, n, 43).as_ref());
    let choice = |scales: [f64; 3]| {
        let parts = scales.iter().enumerate().map(|(i, scale)| x.subrows(30 * i, 30) * faer::Scale(*scale));
        let folds: Vec<Calibration> = parts.map(|part| calibrated(&rounded::<f64>(part.as_ref()))).collect();
        TruncatedSvd::new(Rank::Fixed(7)).choose_blend::<f32>(&w.as_tensor().unwrap(), &folds).unwrap()
    };
    let base = choice([1.0; 3]);
    for scale in [2f64.powi(-1000), 2f64.powi(1000)] {
        assert_eq!(choice([scale; 3]), base, "{scale:e}");
        assert_eq!(choice([scale, 0.0, scale]), choice([1.0, 0.0, 1.0]), "{scale:e}");
    }
    let quiet = choice([1.0, 2f64.powi(-700), 1.0]);
    assert!(quiet.candidates.iter().all(|(_, error)| error.is_finite() && *error > 0.0), "{quiet:?}");
}

/// Samples that grow and shrink by hundreds of powers of two: the statistics are those of the largest, however the rows are cut and merged.
#[test]
fn statistics_of_mixed_range_do_not_depend_on_how_rows_are_cut() {
    let n = 5;
    let x = exact(&rounded::<f16>(gaussian(40, n, 44).as_ref()));
    for orders in [[-1000, -650, 0, 600, 1010], [1010, 600, 0, -650, -1000], [-340, -980, -1000, -700, -310]] {
        let mixed = Mat::from_fn(40, n, |i, j| x[(i, j)] * 2f64.powi(orders[i / 8]));
        let stored = rounded::<f64>(mixed.as_ref());
        let whole = calibrated(&stored);
        let mut single = Calibration::new(n).unwrap();
        for i in 0..40 {
            single.update(&TensorRef::new(stored.row(i), &[1, n]).unwrap()).unwrap();
        }
        assert_eq!(whole.gram(), single.gram(), "{orders:?}");
        assert_eq!((whole.exponent(), whole.largest()), (single.exponent(), single.largest()), "{orders:?}");
        let part = |first: usize, rows: usize| {
            let rows = Mat::from_fn(rows, n, |i, j| mixed[(first + i, j)]);
            calibrated(&rounded::<f64>(rows.as_ref()))
        };
        let zeros = calibrated(&Matrix::<f64>::zeros(3, n));
        for parts in [[part(0, 16), zeros.clone(), part(16, 24)], [zeros, part(16, 24), part(0, 16)]] {
            let mut merged = Calibration::new(n).unwrap();
            parts.iter().for_each(|part| merged.merge(part).unwrap());
            assert_eq!((merged.samples(), merged.exponent()), (43, whole.exponent()), "{orders:?}");
            assert!(distance(&whole.gram(), &merged.gram()) < 1e-14, "{orders:?}");
            assert_eq!(Calibration::from_bytes(&merged.to_bytes()).unwrap(), merged, "{orders:?}");
        }
        let loudest = *orders.iter().max().unwrap();
        let first = 8 * orders.iter().position(|&order| order == loudest).unwrap();
        let off = distance(&part(first, 8).gram(), &whole.gram());
        assert!(off < 1e-14, "{orders:?}: other samples than the loudest count, by {off:e}");
    }
}

/// Bytes of regular samples are those of version 1; an exponent makes them version 2; and version 1 may be of samples that now have an exponent.
#[test]
fn both_versions_of_the_bytes_are_read() {
    let body = |version: u8, exponent: u8, counts: [u64; 3], numbers: &[f64]| {
        let mut body = b"TSLIMCAL".to_vec();
        body.extend([version, 0, 0, 0, 0, 0, 0, exponent]);
        body.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        body.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        sealed(body)
    };
    let x = [1.0, 2.0, 3.0, -1.0];
    let numbers = [4.0, 1.0, 10.0, 5.0, 3.0, 2.0, 10.0, -1.0, 5.0];
    let of = |scale: f64| calibrated(&Matrix::from_vec(x.map(|x| x * scale).to_vec(), 2, 2).unwrap());
    assert_eq!(of(1.0).to_bytes(), body(1, 0, [2, 2, 0], &numbers));
    // log2(3 · 2^600) is above 9 · 64 = 576.
    let (up, square) = (2f64.powi(24), 2f64.powi(48));
    let [a, b, c, d, e, f, g, h, i] = numbers;
    let unit = 2f64.powi(600);
    let scaled = [a * up, b * up, c * square, d * square, e * unit, f * unit, g * square, h * square, i * square];
    assert_eq!(of(unit).to_bytes(), body(2, 9, [2, 2, 0], &scaled));
    assert_eq!(Calibration::from_bytes(&body(2, 9, [2, 2, 0], &scaled)).unwrap(), of(unit));
    for x in [1e150, 1e-100, 2f64.powi(495), 1.0] {
        let old = Calibration::from_bytes(&body(1, 0, [1, 1, 0], &[x, x * x, x, x * x])).unwrap();
        let new = calibrated(&Matrix::from_vec(vec![x], 1, 1).unwrap());
        assert_eq!((old.exponent(), old.means(), old.largest()), (new.exponent(), new.means(), new.largest()), "{x:e}");
        assert!((old.gram().row(0)[0] / new.gram().row(0)[0] - 1.0).abs() < 1e-15, "{x:e}");
    }

    // What no samples have.
    let with = |changes: &[(usize, f64)]| {
        let mut numbers = numbers;
        changes.iter().for_each(|&(at, x)| numbers[at] = x);
        body(1, 0, [2, 2, 0], &numbers)
    };
    let mut factor = body(1, 0, [2, 2, 0], &numbers);
    factor.truncate(factor.len() - 4);
    factor[12] = 1;
    let crafted = [
        ("more samples than can be", body(1, 0, [2, u64::MAX, 0], &numbers)),
        ("more skipped samples than can be", body(1, 0, [2, 2, u64::MAX], &numbers)),
        ("numbers without samples", body(1, 0, [2, 0, 3], &numbers)),
        ("a sum above the largest modulus", with(&[(0, 7.0)])),
        ("a square above the largest modulus", with(&[(2, 19.0), (6, 19.0)])),
        ("squares near the end of the range", with(&[(2, 1e308), (6, 1e308)])),
        ("a largest modulus above the square", with(&[(4, 4.0)])),
        ("a largest modulus that is infinite as a square", with(&[(4, 1e308)])),
        ("a negative largest modulus", with(&[(4, -3.0)])),
        ("a diagonal that is not the square", with(&[(6, 11.0)])),
        ("a negative diagonal", with(&[(6, -10.0)])),
        ("a product above its features", with(&[(7, 7.2)])),
        ("the other form", sealed(factor)),
        ("an exponent in version 1", body(1, 9, [2, 2, 0], &scaled)),
        ("version 2 without an exponent", body(2, 0, [2, 2, 0], &numbers)),
        ("version 2 with another exponent", body(2, 8, [2, 2, 0], &scaled)),
        ("squares lost to underflow", body(1, 0, [1, 1, 0], &[1e-200, 0.0, 1e-200, 0.0])),
    ];
    for (what, bytes) in crafted {
        let found = Calibration::from_bytes(&bytes);
        assert!(matches!(found, Err(Error::Format { .. })), "{what}: {found:?}");
    }
    assert!(Calibration::from_bytes(&with(&[(7, -7.0)])).is_ok());

    // Pairs that could be, all three together not: only the root tells.
    let numbers = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.9, 1.0, -0.9, 1.0];
    let c = Calibration::from_bytes(&body(1, 0, [3, 1, 0], &numbers)).unwrap();
    let w = rounded::<f32>(gaussian(9, 3, 45).as_ref());
    let failed = TruncatedSvd::new(Rank::Fixed(2)).calibration(&c).factor::<f32>(w.as_tensor().unwrap());
    let Err(Error::Format { why, .. }) = failed else { panic!("{failed:?}") };
    assert!(why.contains("gather"), "{why}");

    // As many samples as there can be take no more.
    let full = Calibration::from_bytes(&body(1, 0, [2, 1 << 43, 0], &[4.0, 1.0, 10.0, 5.0, 3.0, 2.0, 10.0, -1.0, 5.0]))
        .unwrap();
    for mut c in [full.clone(), of(1.0)] {
        let before = c.clone();
        let other = if c == full { of(1.0) } else { full.clone() };
        assert!(matches!(c.merge(&other), Err(Error::Option { name: "samples", .. })));
        assert_eq!(c, before);
    }
    let more = Matrix::from_vec(vec![1.0, 2.0], 1, 2).unwrap();
    let mut c = full.clone();
    assert!(matches!(c.update(&more.as_tensor().unwrap()), Err(Error::Option { name: "samples", .. })) && c == full);
}

/// Ranks that reproduce the outputs to rounding: what is reported is the error that there is, not the rounding of the look at it.
#[test]
fn errors_below_the_rounding_of_products() {
    for (m, n) in [(96, 64), (64, 96)] {
        let w = rounded::<f32>(gaussian(m, n, 51).as_ref());
        let a = exact(&w);
        let mut dead = gaussian(200, n, 52);
        (0..n).filter(|j| j * 7 % n > 9).for_each(|j| dead.col_mut(j).fill(0.0));
        let few = gaussian(8, n, 53);
        for (what, x) in [("dead features", dead), ("few samples", few)] {
            for form in [Form::Gram, Form::Factor] {
                let c = with_options(&rounded::<f64>(x.as_ref()), CalibrationOptions { form, ..Default::default() });
                for (whitening, blend) in [(Whitening::Full, 1.0), (Whitening::Full, 0.7), (Whitening::Diagonal, 1.0)] {
                    for (method, k) in [
                        (Method::Auto, 10),
                        (Method::Auto, 40),
                        (Method::Auto, 64),
                        (Method::Full, 20),
                        (Method::Gram, 20),
                        (Method::Randomized, 20),
                    ] {
                        let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).calibration(&c);
                        let svd = svd.whitening(whitening).blend(blend);
                        let f = svd.factor::<f32>(w.as_tensor().unwrap()).unwrap();
                        let lost = loss(a.as_ref(), x.as_ref(), &f);
                        let said = f.report().activation.as_ref().unwrap().relative_error;
                        let what = format!("{m}×{n} {what} {form:?} {whitening} {blend} {method} {k}");
                        assert!(said < 1.5 * lost && lost < 1.5 * said, "{what}: {said:e} reported, {lost:e} measured");
                        let expected = quality::expected(&w.as_tensor().unwrap(), &f, &c).unwrap();
                        let off = expected.relative_error / lost - 1.0;
                        assert!(off.abs() < 0.5, "{what}: {expected:?}, {lost:e} measured");
                        assert!((expected.cosine - (1.0 - lost * lost).sqrt()).abs() < 1e-6, "{what}: {expected:?}");
                    }
                }
            }
        }
    }
}

/// A file with a right checksum, over any contents.
fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let crc = body.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    body.extend((!crc).to_le_bytes());
    body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn any_bytes_parse_or_fail(noise in prop::collection::vec(any::<u8>(), 0..400), n in any::<u64>()) {
        let _ = Calibration::from_bytes(&noise);
        let mut claims = b"TSLIMCAL\x01\0\0\0\0\0\0\0".to_vec();
        claims.extend(n.to_le_bytes());
        claims.extend(&noise);
        prop_assert!(Calibration::from_bytes(&sealed(claims)).is_err());
        // A right header, length and checksum: parses, or says why not; what parses can be used or says why not.
        let mut body = b"TSLIMCAL\x01\0\0\0\0\0\0\0".to_vec();
        body.extend(3u64.to_le_bytes());
        body.extend(noise.iter().copied().chain(std::iter::repeat(0x3f)).take(16 + 8 * (9 + 6)));
        if let Ok(c) = Calibration::from_bytes(&sealed(body)) {
            let w = Matrix::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.5, 7.0, 8.0, 9.0, 1.5, 0.5, -1.0], 4, 3).unwrap();
            let _ = TruncatedSvd::new(Rank::Fixed(1)).calibration(&c).factor::<f32>(w.as_tensor().unwrap());
        }
    }
}

/// Independent features: the diagonal is all there is, and `W D` says what is best.
#[test]
fn diagonal_whitening_is_optimal_for_independent_features() {
    for (m, n) in shapes() {
        let w = gaussian(m, n, 11);
        let scales: Vec<f64> = (0..n).map(|j| 10f64.powf(-2.0 * j as f64 / n as f64)).collect();
        // n samples, one per feature: exactly independent.
        let x = Mat::from_fn(n, n, |i, j| if i == j { scales[j] } else { 0.0 });
        let c = calibrated(&rounded::<f64>(x.as_ref()));
        let stored = rounded::<f64>(w.as_ref());
        let best = oracle(w.as_ref(), x.as_ref(), 10);
        for whitening in [Whitening::Full, Whitening::Diagonal] {
            let svd = TruncatedSvd::new(Rank::Fixed(10)).method(Method::Full).calibration(&c).whitening(whitening);
            let f = svd.factor::<f64>(stored.as_tensor().unwrap()).unwrap();
            let lost = loss(w.as_ref(), x.as_ref(), &f);
            assert!((lost / best - 1.0).abs() < 1e-6, "{m}×{n} {whitening}: {lost} for {best}");
        }
    }
    // On real inputs it lies between.
    let real = up();
    let c = calibrated(&real.calibration);
    let w = real.w.as_tensor().unwrap();
    let error = |svd: TruncatedSvd| {
        quality::activation(&w, &svd.factor::<f32>(w.clone()).unwrap(), &real.heldout.as_tensor().unwrap())
            .unwrap()
            .relative_error
    };
    let plain = TruncatedSvd::new(Rank::Ratio(3.2));
    let full = plain.clone().calibration(&c);
    let (a, b, c) = (error(plain), error(full.clone().whitening(Whitening::Diagonal)), error(full));
    assert!(a > b && b > c, "{a} {b} {c}");
}

/// With few samples neither plain nor full trust is best; the choice must not be worse than either by more than 2 %.
#[test]
fn blend_is_chosen_by_the_samples() {
    let real = up();
    let w = real.w.as_tensor().unwrap();
    let svd = TruncatedSvd::new(Rank::Ratio(3.2));
    for rows in [64, 128, 256, 1024] {
        let x = first_rows(&real.calibration, rows);
        let folds = Calibration::folds(&x.as_tensor().unwrap(), 4, CalibrationOptions::default()).unwrap();
        let choice = svd.choose_blend::<f32>(&w, &folds).unwrap();
        let c = calibrated(&x);
        let held = |blend: f64| {
            let f = svd.clone().calibration(&c).blend(blend).factor::<f32>(w.clone()).unwrap();
            quality::activation(&w, &f, &real.heldout.as_tensor().unwrap()).unwrap().relative_error
        };
        let (plain, full, auto) = (held(0.0), held(1.0), held(choice.blend));
        println!("{rows:5} samples: plain {plain:.4}, whitened {full:.4}, blend {} {auto:.4}", choice.blend);
        assert!(auto <= 1.02 * plain.min(full), "{rows}: {auto} for {plain} and {full}; {choice:?}");
    }
}

#[test]
fn quality_finds_the_smallest_rank() {
    let real = up();
    let w = real.w.as_tensor().unwrap();
    let (c, held) = (calibrated(&real.calibration), calibrated(&real.heldout));
    for (q, precision) in [(0.98, 1e-5), (0.9, 1e-5), (0.995, 1e-5)] {
        let by = |method| TruncatedSvd::new(Rank::Quality(q)).method(method).calibration(&c).quality_on(&held);
        let k = by(Method::Full).factor::<f32>(w.clone()).unwrap().rank();
        let f = by(Method::Auto).factor::<f32>(w.clone()).unwrap();
        // An approximate subspace may need one more, where cosines of neighbouring ranks are 5e-5 apart.
        assert!(f.rank() == k || f.rank() == k + 1 && q > 0.99, "{q}: {} for {k}", f.rank());
        // By scanning: exact factors of each rank, measured on the samples.
        let cosine = |k: usize| {
            let f = TruncatedSvd::new(Rank::Fixed(k))
                .method(Method::Full)
                .calibration(&c)
                .factor::<f32>(w.clone())
                .unwrap();
            quality::activation(&w, &f, &real.heldout.as_tensor().unwrap()).unwrap().cosine
        };
        let (at, below) = (cosine(k), cosine(k - 1));
        assert!(at >= q - precision && below < q + precision, "{q}: rank {k} gives {at}, one less {below}");
        let measured = quality::activation(&w, &f, &real.heldout.as_tensor().unwrap()).unwrap().cosine;
        assert!(measured >= q - precision, "{q}: {measured}");
    }
    // On the calibration itself, and without calibration.
    let f = TruncatedSvd::new(Rank::Quality(0.98)).calibration(&c).factor::<f32>(w.clone()).unwrap();
    assert!(f.report().activation.as_ref().unwrap().cosine() >= 0.98 - 1e-5);
    let f = TruncatedSvd::new(Rank::Quality(0.98)).quality_on(&held).factor::<f32>(w.clone()).unwrap();
    let measured = quality::activation(&w, &f, &real.heldout.as_tensor().unwrap()).unwrap();
    assert!((0.98..0.985).contains(&measured.cosine), "{measured:?}");
}

#[test]
fn the_distribution_of_quality_is_that_of_the_samples() {
    let real = up();
    let w = real.w.as_tensor().unwrap();
    let x = real.heldout.as_tensor().unwrap();
    let f = TruncatedSvd::new(Rank::Fixed(60)).factor::<f32>(w.clone()).unwrap();
    let d = quality::distribution(&w, &f, &x).unwrap();
    assert_eq!(d.total, quality::activation(&w, &f, &x).unwrap());
    assert_eq!(d.samples.len(), 512);
    // In blocks, whole ones of those that it works in; and with loud samples in one of them.
    let mut blocks = Comparison::new(&w, &f).unwrap();
    let half = |i: usize| TensorRef::new(&real.heldout.as_slice()[i * 256 * 384..][..256 * 384], &[256, 384]).unwrap();
    (0..2).for_each(|i| blocks.update(&half(i)).unwrap());
    assert_eq!(blocks.distribution(), d);
    let loud = exact(&first_rows(&real.heldout, 9)) * faer::Scale(2f64.powi(200));
    let loud = rounded::<f64>(loud.as_ref());
    for loud_first in [true, false] {
        let mut mixed = Comparison::new(&w, &f).unwrap();
        if loud_first {
            mixed.update(&loud.as_tensor().unwrap()).unwrap();
        }
        mixed.update(&half(0)).unwrap();
        if !loud_first {
            mixed.update(&loud.as_tensor().unwrap()).unwrap();
        }
        let alone = quality::activation(&w, &f, &loud.as_tensor().unwrap()).unwrap();
        let total = mixed.distribution().total;
        assert!((total.relative_error / alone.relative_error - 1.0).abs() < 1e-12, "{total:?} {alone:?}");
    }
    for i in [0, 100, 511] {
        let row = TensorRef::new(real.heldout.row(i), &[1, 384]).unwrap();
        let one = quality::activation(&w, &f, &row).unwrap();
        assert!(
            (one.cosine - d.samples[i].cosine).abs() < 1e-6
                && (one.relative_error - d.samples[i].relative_error).abs() < 1e-6
        );
    }
    let below = |x: f64| d.samples.iter().filter(|s| s.relative_error <= x).count();
    for p in [0.0, 0.1, 0.5, 0.99, 1.0] {
        assert!(below(d.relative_error(p)) as f64 >= p * 512.0, "{p}");
    }
    assert!(d.cosine(0.01) <= d.cosine(0.5) && d.cosine(0.5) <= d.cosine(1.0));
}

/// The round trip `W' -> (pivots, T, C) -> W'`: entries of T below 2, so that each of the r terms of a row rounds by at most 2 eps of the largest row.
#[test]
fn the_pivoted_form_multiplies_to_the_same_matrix() {
    fn run<T: Scalar>(w: TensorRef<'_>, k: usize) {
        let f = TruncatedSvd::new(Rank::Fixed(k)).factor::<T>(w).unwrap();
        let (m, n) = f.report().shape;
        let p = f.pivot().unwrap();
        assert_eq!(p.params(), k * (m + n) - k * k);
        let mut all: Vec<usize> = p.pivots().iter().chain(p.others()).copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..m));
        let (want, got) = (exact(&f.reconstruct()), exact(&p.reconstruct()));
        let off = (&want - &got).norm_l2() / want.norm_l2();
        let bound = 2.0 * (k as f64) * <T as Scalar>::EPSILON;
        assert!(off <= bound && p.error() <= bound, "{m}×{n} rank {k} {}: {off:e}, says {:e}", T::DTYPE, p.error());
        let largest = p.coefficients().as_slice().iter().fold(0.0, |a: f64, &x| a.max(Element::to_f64(x).abs()));
        assert!(largest < 4.0, "{m}×{n} rank {k}: coefficients up to {largest}");
        let x = rounded::<T>(gaussian(5, n, 12).as_ref());
        let (y, z) =
            (exact(&f.apply(&x.as_tensor().unwrap()).unwrap()), exact(&p.apply(&x.as_tensor().unwrap()).unwrap()));
        assert!((&y - &z).norm_l2() <= 4.0 * bound * y.norm_l2());
    }
    let (up, down) = (up().w, real("ffn_down", 384, 1536));
    run::<f32>(up.as_tensor().unwrap(), 95);
    run::<f64>(up.as_tensor().unwrap(), 95);
    run::<f32>(down.as_tensor().unwrap(), 95);
    let square = rounded::<f64>(gaussian(12, 12, 13).as_ref());
    for k in [1, 11, 12] {
        run::<f64>(square.as_tensor().unwrap(), k);
    }
}

/// Calibration takes one power iteration more. The report has the number that was asked for, in memory and from a state that
/// looks at the weight once.
#[test]
fn reports_have_the_power_iterations_that_were_asked_for() {
    let (m, n) = (60, 40);
    let w: Vec<f32> = (0..m * n).map(|i| ((i * i) as f32 * 0.013).sin()).collect();
    let x: Vec<f32> = (0..50 * n).map(|i| ((i * 7) as f32 * 0.29).cos()).collect();
    let w = TensorRef::new(&w, &[m, n]).unwrap();
    let mut calibration = Calibration::new(n).unwrap();
    calibration.update(&TensorRef::new(&x, &[50, n]).unwrap()).unwrap();
    let svd = TruncatedSvd::new(Rank::Fixed(4)).power_iterations(3).calibration(&calibration);
    assert_eq!(svd.factor::<f32>(w.clone()).unwrap().report().power_iterations, 3);
    let quality = svd.clone().with_rank(Rank::Quality(0.5));
    assert_eq!(quality.factor::<f64>(w.clone()).unwrap().report().power_iterations, 3);
    let mut once = svd.method(Method::SinglePass).accumulator::<f32>((m, n)).unwrap();
    once.update(0, &w).unwrap();
    assert_eq!(once.finish().unwrap().report().power_iterations, 3);
}
