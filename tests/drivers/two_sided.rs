//! Factors under statistics of inputs and outputs. The oracle knows no moments and no roots: with inputs in the rows of
//! X and output gradients in those of Y the norm is `‖Y (W − W') Xᵀ‖_F`, and the optimum is the tail of the singular
//! values of `Y W Xᵀ`, all in f64.
#![allow(clippy::print_stdout)] // the figures, with `--nocapture`

use crate::common::*;
use faer::{Mat, MatRef};
use tensorslim::calibration::{CalibrationOptions, Form};
use tensorslim::{
    Calibration, Element, Error, Factors, Matrix, Method, Rank, Scalar, TruncatedSvd, Whitening, quality,
};

/// Samples whose principal scales fall to `1 / condition`.
fn samples(count: usize, features: usize, condition: f64, seed: u64) -> Mat<f64> {
    let decay = |j: usize| condition.powf(-(j as f64) / (features.max(2) - 1) as f64);
    let gauss = gaussian(count, features, seed);
    let scaled = Mat::from_fn(count, features, |i, j| gauss[(i, j)] * decay(j));
    &scaled * orthonormal(features, features, seed + 1).transpose()
}

fn statistics(x: MatRef<'_, f64>, form: Form) -> Calibration {
    let x = Matrix::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)]);
    let mut c = Calibration::with(x.ncols(), CalibrationOptions { form, ..Default::default() }).unwrap();
    c.update(&x.as_tensor().unwrap()).unwrap();
    c
}

fn product<T: Scalar>(f: &Factors<T>) -> Mat<f64> {
    let wide = |x: &Matrix<T>| Mat::from_fn(x.nrows(), x.ncols(), |i, j| Element::to_f64(x.row(i)[j]));
    let (mut u, vt) = (wide(f.u()), wide(f.vt()));
    for (j, s) in f.s().iter().enumerate() {
        u.col_mut(j).iter_mut().for_each(|x| *x *= Element::to_f64(*s));
    }
    &u * &vt
}

struct Case {
    w: Mat<f64>,
    x: Mat<f64>,
    y: Mat<f64>,
    /// The singular values of `Y W Xᵀ`.
    values: Vec<f64>,
}

impl Case {
    fn new((m, n): (usize, usize), (inputs, outputs): (usize, usize), condition: f64, seed: u64) -> Self {
        let spectrum: Vec<f64> = (0..m.min(n)).map(|i| 1.0 / (1.0 + i as f64)).collect();
        let w = with_spectrum(m, n, &spectrum, seed);
        let (x, y) = (samples(inputs, n, condition, seed + 10), samples(outputs, m, condition, seed + 20));
        let values = (&y * &w * x.transpose()).singular_values().unwrap();
        Case { w, x, y, values }
    }

    /// Returns the loss of factors over the norm, and that of the optimum of their rank.
    fn losses<T: Scalar>(&self, f: &Factors<T>) -> (f64, f64) {
        let off = &self.y * (&self.w - product(f)) * self.x.transpose();
        let norm = self.values.iter().map(|s| s * s).sum::<f64>().sqrt();
        (off.norm_l2() / norm, best_error(&self.values, f.rank().min(self.values.len())))
    }

    fn factor<T: Scalar>(&self, svd: &TruncatedSvd, form: Form) -> Factors<T> {
        let (c, g) = (statistics(self.x.as_ref(), form), statistics(self.y.as_ref(), form));
        let w: Matrix<T> = rounded(self.w.as_ref());
        svd.clone().calibration(&c).output_calibration(&g).factor(w.as_tensor().unwrap()).unwrap()
    }
}

/// Tall, wide and square; more and fewer samples than features on either side, so that both moments are singular in
/// half of the cases; conditions of the data up to 1e9.
fn cases() -> Vec<Case> {
    let shapes = [(60, 40), (40, 60), (48, 48), (90, 24), (24, 90)];
    let counts = [(200, 200), (20, 200), (200, 20), (25, 30)];
    let conditions = [1e2, 1e9];
    let all = shapes.into_iter().flat_map(|s| counts.into_iter().flat_map(move |c| conditions.map(|k| (s, c, k))));
    all.enumerate()
        .map(|(seed, (shape, counts, condition))| Case::new(shape, counts, condition, 100 * seed as u64))
        .collect()
}

#[test]
fn two_sided_factors_reach_the_optimum() {
    let mut worst = (1.0f64, 1.0f64);
    for (i, case) in cases().iter().enumerate() {
        for k in [3, 10] {
            let svd = TruncatedSvd::new(Rank::Fixed(k));
            let (loss, best) = case.losses(&case.factor::<f32>(&svd, Form::Gram));
            // What the rounding of the factors to f32 costs is some hundred eps of the norm.
            assert!(
                loss <= 1.01 * best + 256.0 * f64::from(f32::EPSILON),
                "case {i}, rank {k}: {loss:e}, least {best:e}"
            );
            let (loss, best) = case.losses(&case.factor::<f64>(&svd, Form::Gram));
            assert!(loss <= 1.01 * best + 1e-12, "case {i}, rank {k}: {loss:e} where {best:e} is the least");
            worst.0 = worst.0.max(if best > 1e-12 { loss / best } else { 1.0 });
            let f = case.factor::<f64>(&svd.method(Method::Full), Form::Factor);
            let (loss, best) = case.losses(&f);
            assert!(loss <= (1.0 + 1e-6) * best + 1e-12, "case {i}, rank {k}, full: {loss:e}, least {best:e}");
            worst.1 = worst.1.max(if best > 1e-12 { loss / best } else { 1.0 });
            let told = f.report().activation.as_ref().unwrap().relative_error;
            assert!((told - loss).abs() <= 1e-6 * loss + 1e-9, "case {i}, rank {k}: told {told:e}, is {loss:e}");
            assert!(orthonormality(Mat::from_fn(f.u().nrows(), k, |i, j| f.u().row(i)[j]).as_ref()) < 1e-12);
            let off = true_error(case.w.as_ref(), &f);
            assert!((off - f.report().relative_error).abs() < 1e-7, "{off} {}", f.report().relative_error);
        }
    }
    println!("worst over the optimum: default {:.2e}, full {:.2e}", worst.0 - 1.0, worst.1 - 1.0);
}

#[test]
fn every_method_takes_output_statistics() {
    for shape in [(150, 70), (70, 150)] {
        let case = Case::new(shape, (400, 400), 30.0, 5);
        for method in Method::ALL.into_iter().filter(|&method| method != Method::Nystrom) {
            let svd = TruncatedSvd::new(Rank::Fixed(12)).method(method);
            let f = case.factor::<f32>(&svd, Form::Gram);
            let (loss, best) = case.losses(&f);
            let bound = if method == Method::SinglePass { 1.6 } else { 1.01 };
            assert!(loss <= bound * best, "{method} {shape:?}: {loss} where {best} is the least");
            let told = f.report().activation.as_ref().unwrap().relative_error;
            assert!((told / loss - 1.0).abs() < 1e-3, "{method}: told {told}, is {loss}");
            let off = true_error(case.w.as_ref(), &f);
            assert!(
                (off / f.report().relative_error - 1.0).abs() < 1e-3,
                "{method}: {off} {}",
                f.report().relative_error
            );
        }
    }
}

#[test]
fn one_side_alone_is_the_calibrated_transpose() {
    let case = Case::new((64, 40), (300, 300), 30.0, 9);
    let (w, t): (Matrix<f64>, Matrix<f64>) = (rounded(case.w.as_ref()), rounded(case.w.transpose()));
    let g = statistics(case.y.as_ref(), Form::Gram);
    let svd = TruncatedSvd::new(Rank::Fixed(8)).method(Method::Full);
    let one = svd.clone().output_calibration(&g).factor::<f64>(w.as_tensor().unwrap()).unwrap();
    let other = svd.calibration(&g).factor::<f64>(t.as_tensor().unwrap()).unwrap();
    let off = product(&one) - product(&other).transpose();
    assert!(off.norm_l2() < 1e-9, "{:e}", off.norm_l2());
}

#[test]
fn truncated_factors_are_those_of_the_smaller_rank() {
    for shape in [(64, 40), (40, 64)] {
        let case = Case::new(shape, (300, 300), 30.0, 13);
        let svd = |k| TruncatedSvd::new(Rank::Fixed(k)).method(Method::Full);
        let whole = case.factor::<f64>(&svd(12), Form::Gram);
        for k in [1, 5, 11] {
            let (cut, direct) = (whole.truncate(k).unwrap(), case.factor::<f64>(&svd(k), Form::Gram));
            let off = (product(&cut) - product(&direct)).norm_l2() / direct.report().norm;
            assert!(off < 1e-9, "{shape:?}, {k}: {off:e}");
            let (a, b) = (cut.report(), direct.report());
            assert!((a.relative_error - b.relative_error).abs() < 1e-8, "{} {}", a.relative_error, b.relative_error);
            let error = |r: &tensorslim::Report| r.activation.as_ref().unwrap().relative_error;
            assert!((error(a) - error(b)).abs() < 1e-8);
            let again = whole.truncate(11).unwrap().truncate(k.min(4)).unwrap();
            let (loss, best) = case.losses(&again);
            assert!(loss <= best * (1.0 + 1e-6), "{shape:?}: {loss} {best}");
        }
    }
}

#[test]
fn rules_for_the_rank_see_the_weighted_values() {
    let case = Case::new((64, 40), (300, 300), 10.0, 17);
    let energy = |k: usize| 1.0 - best_error(&case.values, k).powi(2);
    let least = |enough: f64| (1..=40).find(|&k| energy(k) >= enough).unwrap();
    let f = case.factor::<f64>(&TruncatedSvd::new(Rank::Energy(0.9)), Form::Gram);
    assert_eq!(f.rank(), least(0.9));
    let f = case.factor::<f64>(&TruncatedSvd::new(Rank::Quality(0.95)), Form::Gram);
    assert_eq!(f.rank(), least(0.95 * 0.95));
    let spectrum = &f.report().activation.as_ref().unwrap().spectrum;
    let scale = (300.0f64 * 300.0).sqrt();
    assert!((spectrum[0] * scale / case.values[0] - 1.0).abs() < 1e-6, "{} {}", spectrum[0] * scale, case.values[0]);
}

#[test]
fn blends_and_diagonals_weight_each_side() {
    let case = Case::new((50, 30), (300, 300), 30.0, 21);
    let (c, g) = (statistics(case.x.as_ref(), Form::Gram), statistics(case.y.as_ref(), Form::Gram));
    let w: Matrix<f64> = rounded(case.w.as_ref());
    let moments = |x: &Mat<f64>, whitening: Whitening, blend: f64| {
        let (count, n) = x.shape();
        let mean = x.squared_norm_l2() / (count * n) as f64;
        let full = x.transpose() * x;
        Mat::<f64>::from_fn(n, n, |i, j| {
            let part =
                if whitening == Whitening::Diagonal && i != j { 0.0 } else { blend * full[(i, j)] / count as f64 };
            part + if i == j { (1.0 - blend) * mean } else { 0.0 }
        })
    };
    let root = |a: Mat<f64>| a.llt(faer::Side::Lower).unwrap().L().to_owned();
    for (inputs, outputs) in [
        ((Whitening::Full, 0.7), (Whitening::Full, 0.4)),
        ((Whitening::Diagonal, 1.0), (Whitening::Full, 0.9)),
        ((Whitening::Full, 1.0), (Whitening::Diagonal, 0.5)),
    ] {
        let svd = TruncatedSvd::new(Rank::Fixed(6)).method(Method::Full).calibration(&c).output_calibration(&g);
        let svd = svd.whitening(inputs.0).blend(inputs.1).output_whitening(outputs.0).output_blend(outputs.1);
        let f = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
        let (l, r) = (root(moments(&case.x, inputs.0, inputs.1)), root(moments(&case.y, outputs.0, outputs.1)));
        let values = (r.transpose() * &case.w * &l).singular_values().unwrap();
        let loss = (r.transpose() * (&case.w - product(&f)) * &l).norm_l2();
        let norm = values.iter().map(|s| s * s).sum::<f64>().sqrt();
        let (loss, best) = (loss / norm, best_error(&values, 6));
        assert!((loss / best - 1.0).abs() < 1e-7, "{inputs:?} {outputs:?}: {loss} {best}");
        let told = f.report().activation.as_ref().unwrap().relative_error;
        assert!((told / loss - 1.0).abs() < 1e-7);
    }
}

#[test]
fn quality_is_measured_in_the_weighted_norm() {
    let case = Case::new((50, 30), (300, 300), 30.0, 25);
    for form in [Form::Gram, Form::Factor] {
        let (c, g) = (statistics(case.x.as_ref(), form), statistics(case.y.as_ref(), form));
        let w: Matrix<f64> = rounded(case.w.as_ref());
        let f = TruncatedSvd::new(Rank::Fixed(4)).factor::<f64>(w.as_tensor().unwrap()).unwrap();
        let told = quality::weighted(&w.as_tensor().unwrap(), &f, Some(&c), Some(&g)).unwrap();
        let (loss, _) = case.losses(&f);
        assert!((told.relative_error / loss - 1.0).abs() < 1e-9, "{} {loss}", told.relative_error);
        let (before, after) = (&case.y * &case.w * case.x.transpose(), &case.y * product(&f) * case.x.transpose());
        let dot: f64 = (0..300).flat_map(|j| (0..300).map(move |i| (i, j))).map(|at| before[at] * after[at]).sum();
        let cosine = dot / (before.norm_l2() * after.norm_l2());
        assert!((told.cosine - cosine).abs() < 1e-9);
    }
}

#[test]
fn statistics_of_another_size_and_of_zeros_are_told() {
    let case = Case::new((50, 30), (100, 100), 3.0, 29);
    let w: Matrix<f32> = rounded(case.w.as_ref());
    let (c, g) = (statistics(case.x.as_ref(), Form::Gram), statistics(case.y.as_ref(), Form::Gram));
    let svd = TruncatedSvd::new(Rank::Fixed(4));
    let error = svd.clone().output_calibration(&c).factor::<f32>(w.as_tensor().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    assert!(error.to_string().contains("50 outputs"), "{error}");
    let empty = Calibration::new(50).unwrap();
    assert!(svd.clone().output_calibration(&empty).factor::<f32>(w.as_tensor().unwrap()).is_err());
    let mut zeros = Calibration::new(50).unwrap();
    zeros.update(&Matrix::<f32>::zeros(7, 50).as_tensor().unwrap()).unwrap();
    let f = svd.clone().calibration(&c).output_calibration(&zeros).factor::<f32>(w.as_tensor().unwrap()).unwrap();
    assert!(f.report().notes.iter().any(|note| note.contains("output statistics are zero")), "{:?}", f.report().notes);
    let one = svd.clone().calibration(&c).factor::<f32>(w.as_tensor().unwrap()).unwrap();
    assert!((product(&f) - product(&one)).norm_l2() < 1e-4);
    let with = svd.calibration(&c).output_calibration(&g);
    let folds = [c.clone(), c.clone()];
    assert!(matches!(with.choose_blend::<f32>(&w.as_tensor().unwrap(), &folds), Err(Error::Option { .. })));
}

/// Statistics of fewer directions than the rank: what is left of it goes to the weight, and nothing is far from it.
#[test]
fn ranks_beyond_that_of_the_weighted_matrix_go_to_the_weight() {
    let one_hot = Mat::from_fn(1, 80, |_, j| f64::from(u8::from(j == 3)));
    let mostly_dead = Mat::from_fn(300, 80, |i, j| if j < 10 { ((i * 7 + j * 13) as f64 * 0.37).sin() } else { 0.0 });
    let constant = Mat::from_fn(20, 80, |_, _| 1.0);
    let few = gaussian(12, 80, 41);
    let mut loud = gaussian(100, 80, 43);
    loud.col_mut(5).iter_mut().for_each(|x| *x *= 1e6);
    let w = gaussian(80, 50, 45);
    let x = samples(400, 50, 3.0, 47);
    for (name, y) in [("one", one_hot), ("dead", mostly_dead), ("constant", constant), ("few", few), ("loud", loud)] {
        let rank = y.nrows().min(if name == "dead" { 10 } else { y.nrows() });
        let values = (&y * &w * x.transpose()).singular_values().unwrap();
        let case = Case { w: w.clone(), x: x.clone(), y, values };
        for wide in [false, true] {
            let turned = || Case {
                w: case.w.transpose().to_owned(),
                x: case.y.clone(),
                y: case.x.clone(),
                values: case.values.clone(),
            };
            let case = if wide { &turned() } else { &case };
            for k in [2, 20] {
                for method in [Method::Auto, Method::Full, Method::Randomized] {
                    let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method);
                    let (f, g) = (case.factor::<f32>(&svd, Form::Gram), case.factor::<f64>(&svd, Form::Gram));
                    let what = format!("{name}, rank {k}, {method}, wide {wide}");
                    let (loss, best) = case.losses(&f);
                    let floor = if name == "loud" { 3e-5 } else { 2e-6 };
                    assert!(loss <= 1.02 * best + floor, "{what}: {loss:e}, least {best:e}");
                    let (loss, best) = case.losses(&g);
                    assert!(loss <= 1.02 * best + 1e-9, "{what} in f64: {loss:e}, least {best:e}");
                    for error in [f.report().relative_error, g.report().relative_error] {
                        assert!(error < 1.2, "{what}: a plain error of {error}");
                    }
                    if k == 20 && k > rank {
                        assert!(g.report().relative_error < 0.95, "{what}: {}", g.report().relative_error);
                    }
                }
            }
        }
    }
}

#[test]
fn one_seed_gives_the_same_bits_on_any_number_of_threads() {
    let case = Case::new((300, 120), (400, 500), 30.0, 33);
    for method in [Method::Auto, Method::Randomized, Method::Krylov] {
        let svd = TruncatedSvd::new(Rank::Fixed(20)).method(method);
        let one = on_threads(1, || case.factor::<f32>(&svd, Form::Gram));
        for threads in [2, 3] {
            let more = on_threads(threads, || case.factor::<f32>(&svd, Form::Gram));
            assert!(one.u() == more.u() && one.s() == more.s() && one.vt() == more.vt(), "{method}, {threads}");
        }
    }
}
