//! `qr`: every path against the definition, in f64.
//!
//! Orthogonality is `max |QᵀQ − I|`, formed in f64. The bound is the one promised, `1e-6 sqrt(l)` in f32, which is
//! 8.4 eps sqrt(l), and the same multiple of eps in f64.
//!
//! Residual: column j of `Y − Q R` against `‖y_j‖`. A triangular solve errs by `γ_l |q| |R|` per entry, a sum of l
//! products; with rounding errors of random sign `sqrt(l) eps |q|ᵀ|r_j|`, and `‖ |Q| |r_j| ‖ <= sqrt(l) ‖r_j‖`.
//! That is `l eps ‖y_j‖` per pass; up to four passes, and a Householder sweep of l reflectors errs by no more than
//! that: `4 l eps`, and 16 eps for what does not depend on l (storing Q and R).
#![cfg(feature = "linalg")]

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::prelude::*;
use faer::{Mat, MatMut, MatRef, Par};
use tensorslim::Scalar;
use tensorslim::qr::{self, Algorithm, Orthonormalization};

/// SplitMix64 and Box-Muller: test data only.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn gaussian(m: usize, n: usize, seed: u64) -> Mat<f64> {
    let mut random = Random(seed);
    Mat::from_fn(m, n, |_, _| random.normal())
}

/// `U diag(σ) Vᵀ` with random U and V.
fn with_spectrum(m: usize, l: usize, seed: u64, sigma: impl Fn(usize) -> f64) -> Mat<f64> {
    let u = gaussian(m, l, seed).qr().compute_thin_Q();
    let v = gaussian(l, l, seed + 1).qr().compute_thin_Q();
    let us = Mat::from_fn(m, l, |i, j| u[(i, j)] * sigma(j));
    us * v.transpose()
}

/// σ from 1 to 1/condition, geometrically.
fn conditioned(m: usize, l: usize, condition: f64, seed: u64) -> Mat<f64> {
    with_spectrum(m, l, seed, |j| condition.powf(-(j as f64) / (l.max(2) - 1) as f64))
}

fn kahan(m: usize, l: usize) -> Mat<f64> {
    let (s, c) = 1.2f64.sin_cos();
    Mat::from_fn(m, l, |i, j| match i.cmp(&j) {
        std::cmp::Ordering::Less => -c * s.powi(i as i32),
        std::cmp::Ordering::Equal => s.powi(i as i32),
        std::cmp::Ordering::Greater => 0.0,
    })
}

/// The design's list. Each is m×l.
fn kinds(m: usize, l: usize) -> Vec<(&'static str, Mat<f64>)> {
    let g = gaussian(m, l, 1);
    let shared = gaussian(m, 1, 2);
    let low = gaussian(m, l.div_ceil(3), 3) * gaussian(l.div_ceil(3), l, 4);
    let zero_columns = Mat::from_fn(m, l, |i, j| if j % 3 == 1 { 0.0 } else { g[(i, j)] });
    let zero_rows = Mat::from_fn(m, l, |i, j| if i % 2 == 0 && m >= 2 * l { 0.0 } else { g[(i, j)] });
    let duplicates = Mat::from_fn(m, l, |i, j| g[(i, j / 2)]);
    vec![
        ("polynomial", with_spectrum(m, l, 5, |j| 1.0 / (j + 1) as f64)),
        ("exponential", with_spectrum(m, l, 6, |j| 0.7f64.powi(j as i32))),
        ("step", with_spectrum(m, l, 7, |j| if 2 * j < l { 1.0 } else { 1e-5 })),
        ("spiked", with_spectrum(m, l, 8, |j| if j == 0 { 1e4 } else { 1.0 })),
        ("kahan", kahan(m, l)),
        // Läuchli: the Gram matrix rounds to all ones.
        (
            "lauchli",
            Mat::from_fn(m, l, |i, j| {
                if i == 0 {
                    1.0
                } else if i == j + 1 {
                    1e-9
                } else {
                    0.0
                }
            }),
        ),
        ("vandermonde", Mat::from_fn(m, l, |i, j| ((i + 1) as f64 / m as f64).powi(j as i32))),
        ("hilbert", Mat::from_fn(m, l, |i, j| 1.0 / (i + j + 1) as f64)),
        ("rank deficient", low),
        ("zero columns", zero_columns),
        ("zero rows", zero_rows),
        ("first column zero", Mat::from_fn(m, l, |i, j| if j == 0 { 0.0 } else { g[(i, j)] })),
        ("zero", Mat::zeros(m, l)),
        ("one entry", Mat::from_fn(m, l, |i, j| if i == m - 1 && j == l - 1 { 3.0 } else { 0.0 })),
        ("ones", Mat::from_fn(m, l, |_, _| 1.0)),
        ("constant column", Mat::from_fn(m, l, |i, j| if j == 0 { 0.3 } else { g[(i, j)] })),
        ("signs", Mat::from_fn(m, l, |i, j| if (i * (2 * j + 1) / 7) % 2 == 0 { 0.7 } else { -0.7 })),
        ("duplicates", duplicates),
        ("identity", Mat::from_fn(m, l, |i, j| f64::from(i == j))),
        ("graded columns", Mat::from_fn(m, l, |i, j| g[(i, j)] * 10f64.powf(-25.0 * j as f64 / l as f64))),
        ("graded rows", Mat::from_fn(m, l, |i, j| g[(i, j)] * 10f64.powf(-25.0 * i as f64 / m as f64))),
        ("shared direction", Mat::from_fn(m, l, |i, j| shared[(i, 0)] + 0.01 * g[(i, j)])),
        ("condition 1e3", conditioned(m, l, 1e3, 9)),
        ("condition 1e7", conditioned(m, l, 1e7, 10)),
        ("condition 1e15", conditioned(m, l, 1e15, 11)),
        ("gaussian", g),
    ]
}

fn narrowed<T: Scalar>(a: &Mat<f64>, scale: f64) -> Mat<T> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| T::from_f64(a[(i, j)] * scale))
}

fn widened<T: Scalar>(a: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].to_f64())
}

/// `QᵀQ` by halves: the error of a sum over m rows is log2(m) eps, also where all rounding errors have one sign.
fn gram(q: MatRef<'_, f64>) -> Mat<f64> {
    if q.nrows() <= 8 {
        return q.transpose() * q;
    }
    let (top, bottom) = q.split_at_row(q.nrows() / 2);
    gram(top) + gram(bottom)
}

fn orthogonality<T: Scalar>(q: MatRef<'_, T>) -> f64 {
    let mut g = gram(widened(q).as_ref());
    for j in 0..g.ncols() {
        g[(j, j)] -= 1.0;
    }
    g.norm_max()
}

/// Largest `‖(Y − QR) e_j‖ / ‖y_j‖`; infinite where a zero column has a residual.
fn residual<T: Scalar>(y: MatRef<'_, T>, q: MatRef<'_, T>, r: MatRef<'_, T>, scale: f64) -> f64 {
    // Scaled on the way to f64, so that nothing here over- or underflows.
    let up = |a: MatRef<'_, T>, s: f64| Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].to_f64() / s);
    let (y, q, r) = (up(y, scale), up(q, 1.0), up(r, scale));
    let d = &y - &q * &r;
    let l = y.ncols() as f64;
    let tiny =
        if T::DTYPE == tensorslim::DType::F32 { f64::from(f32::from_bits(1)) } else { f64::from_bits(1) } / scale;
    (0..y.ncols()).fold(0.0, |worst: f64, j| {
        let (d, y) = (d.col(j).norm_l2(), y.col(j).norm_l2());
        // The l entries of a column of R are multiples of the smallest subnormal number.
        let d = (d - l * tiny).max(0.0);
        worst.max(if d == 0.0 { 0.0 } else { d / y })
    })
}

/// A stack whose bytes are all ones: NaN in both types.
fn dirty(req: faer::dyn_stack::StackReq) -> MemBuffer {
    let mut buffer = MemBuffer::new(req);
    for byte in buffer.iter_mut() {
        byte.write(0xff);
    }
    buffer
}

fn orthonormalize<T: Scalar>(y: MatMut<'_, T>, par: Par) -> (Mat<T>, Orthonormalization) {
    let (m, l) = y.shape();
    let mut r = Mat::from_fn(l, l, |_, _| T::from_f64(f64::NAN));
    let mut buffer = dirty(qr::orthonormalize_scratch::<T>(m, l, par));
    let report = qr::orthonormalize(y, Some(r.as_mut()), par, MemStack::new(&mut buffer)).unwrap();
    (r, report)
}

fn check<T: Scalar>(name: &str, y: &Mat<T>, scale: f64) -> Orthonormalization {
    let (m, l) = y.shape();
    let eps = <T as Scalar>::EPSILON;
    let mut q = y.clone();
    let (r, report) = orthonormalize(q.as_mut(), Par::rayon(0));
    let context = format!("{name} {m}×{l} {} scale {scale:e}: {report:?}", T::DTYPE);
    let o = orthogonality(q.as_ref());
    assert!(o <= 8.4 * eps * (l as f64).sqrt(), "{context}: orthogonality {:.1} eps", o / eps);
    for j in 0..l {
        assert!(r[(j, j)].to_f64() >= 0.0, "{context}: R[{j}, {j}] = {}", r[(j, j)].to_f64());
        for i in j + 1..l {
            assert!(r[(i, j)].to_f64() == 0.0, "{context}: R[{i}, {j}] is not zero");
        }
    }
    let e = residual(y.as_ref(), q.as_ref(), r.as_ref(), scale);
    assert!(e <= (4 * l + 16) as f64 * eps, "{context}: residual {:.1} eps", e / eps);
    report
}

const SHAPES: [(usize, usize); 14] = [
    (1, 1),
    (2, 1),
    (2, 2),
    (5, 3),
    (9, 9),
    (33, 8),
    (64, 64),
    (257, 1),
    (255, 31),
    (256, 49),
    (513, 97),
    (700, 202),
    (202, 202),
    (2049, 64),
];

#[test]
fn every_kind_and_shape_f32() {
    for (m, l) in SHAPES {
        for (name, a) in kinds(m, l) {
            check::<f32>(name, &narrowed(&a, 1.0), 1.0);
        }
    }
}

#[test]
fn every_kind_and_shape_f64() {
    for (m, l) in SHAPES {
        for (name, a) in kinds(m, l) {
            check::<f64>(name, &narrowed(&a, 1.0), 1.0);
        }
    }
}

#[test]
fn scaled_inputs() {
    for (name, a) in kinds(300, 37) {
        // A power of ten is not a power of two: the bits differ, the bounds do not. Entries of "graded" kinds that
        // fall off f32's range make columns that are partly or entirely zero.
        for scale in [1e-30, 1e-20, 1e20, 1e30] {
            check::<f32>(name, &narrowed(&a, scale), scale);
        }
        for scale in [1e-300, 1e-150, 1e150, 1e300] {
            check::<f64>(name, &narrowed(&a, scale), scale);
        }
    }
}

#[test]
fn panels_of_the_benchmark_and_of_the_notes() {
    // 11008×64 f32, one shared direction plus 1 % independent noise: 62 of 64 columns are dropped elsewhere.
    let (shared, noise) = (gaussian(11008, 1, 1), gaussian(11008, 64, 2));
    let y = Mat::from_fn(11008, 64, |i, j| (shared[(i, 0)] + 0.01 * noise[(i, j)]) as f32);
    let report = check("notes", &y, 1.0);
    assert!((3e2..3e4).contains(&report.condition_estimate), "{report:?}");

    for condition in [1e1, 1e3, 1e6, 1e7] {
        let a = conditioned(3072, 202, condition, 3);
        let report = check::<f32>("benchmark", &narrowed(&a, 1.0), 1.0);
        assert_eq!((report.algorithm, report.passes), (Algorithm::SketchedCholeskyQr, 2), "condition {condition}");
        let ratio = report.condition_estimate / condition;
        assert!((0.1..10.0).contains(&ratio), "condition {condition}: {report:?}");
    }
    for condition in [1e6, 1e15] {
        check::<f64>("benchmark", &conditioned(1024, 100, condition, 4), 1.0);
    }
    let report = check::<f32>("gaussian", &narrowed(&gaussian(4096, 64, 5), 1.0), 1.0);
    assert_eq!((report.algorithm, report.passes), (Algorithm::CholeskyQr, 1));
}

/// Each algorithm is reached, and by the panels that it is meant for.
#[test]
fn algorithms_are_chosen_by_condition() {
    let (m, l) = (300, 100);
    for (condition, want) in
        [(1.5, Algorithm::CholeskyQr), (1e2, Algorithm::CholeskyQr2), (1e5, Algorithm::WideCholeskyQr2)]
    {
        let report = check::<f32>("narrow", &narrowed(&conditioned(m, l, condition, 6), 1.0), 1.0);
        assert_eq!(report.algorithm, want, "{report:?}");
        assert!((0.5..2.0).contains(&(report.condition_estimate / condition)), "{report:?}");
    }
    let report = check::<f64>("wide", &conditioned(m, l, 1e12, 7), 1.0);
    assert_eq!(report.algorithm, Algorithm::ShiftedCholeskyQr);
    let zeros = |m| Mat::<f32>::from_fn(m, 8, |i, j| if j == 3 { 0.0 } else { ((i * j * j + i) % 17) as f32 });
    assert_eq!(check("zero column", &zeros(100), 1.0).algorithm, Algorithm::Householder);
    assert_eq!(check("zero column", &zeros(5000), 1.0).algorithm, Algorithm::Tsqr);
}

/// The same bits for no pool, and pools of 1, 2, 3 and 8 threads; and without R.
#[test]
fn threads_do_not_change_bits() {
    fn bits<T: Scalar>(a: &Mat<T>) -> Vec<u64> {
        (0..a.ncols()).flat_map(|j| (0..a.nrows()).map(move |i| (i, j))).map(|at| a[at].to_f64().to_bits()).collect()
    }
    fn compare<T: Scalar>(y: &Mat<T>) {
        let (m, l) = y.shape();
        let run = |par| {
            let mut q = y.clone();
            let (r, report) = orthonormalize(q.as_mut(), par);
            let (mut v, mut t) = (y.clone(), Mat::zeros(qr::householder::block_size(m, l), l));
            let mut buffer = dirty(qr::householder::factor_scratch::<T>(m, l, par));
            qr::householder::factor(v.as_mut(), t.as_mut(), par, MemStack::new(&mut buffer));
            let (mut x, mut rx) = (y.clone(), Mat::zeros(l, l));
            let mut buffer = dirty(qr::tsqr::tsqr_scratch::<T>(m, l, par));
            qr::tsqr::tsqr(x.as_mut(), rx.as_mut(), par, MemStack::new(&mut buffer)).unwrap();
            let mut ry = Mat::zeros(l, l);
            let mut buffer = dirty(qr::tsqr::tsqr_r_scratch::<T>(m, l, par));
            qr::tsqr::tsqr_r(y.as_ref(), ry.as_mut(), par, MemStack::new(&mut buffer)).unwrap();
            (report, [&q, &r, &v, &t, &x, &rx, &ry].map(bits))
        };
        let want = run(Par::Seq);
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| run(Par::rayon(0)));
            let report = got.0;
            assert_eq!(report, want.0);
            for (what, (got, want)) in
                ["Q", "R", "V", "T", "TSQR's Q", "TSQR's R", "streamed R"].iter().zip(got.1.iter().zip(&want.1))
            {
                assert!(got == want, "{m}×{l}, {:?}: {threads} threads change the bits of {what}", report.algorithm);
            }
        }
        let mut q = y.clone();
        let mut buffer = dirty(qr::orthonormalize_scratch::<T>(m, l, Par::Seq));
        qr::orthonormalize(q.as_mut(), None, Par::Seq, MemStack::new(&mut buffer)).unwrap();
        assert!(bits(&q) == want.1[0], "{m}×{l}: R changes Q");
    }
    for condition in [2.0, 1e5, 1e14] {
        compare::<f32>(&narrowed(&conditioned(3000, 70, condition, 1), 1.0));
        compare::<f64>(&conditioned(1500, 97, condition, 2));
    }
    compare::<f32>(&narrowed(&gaussian(20000, 33, 3), 1.0));
    compare::<f32>(&Mat::from_fn(3000, 40, |i, j| if j == 7 { 0.0 } else { (i * j % 31) as f32 }));
}

/// Strided views give what contiguous ones give, to rounding, and nothing outside them is touched.
#[test]
fn strides() {
    let (m, l) = (700, 43);
    for (name, a) in
        [("gaussian", gaussian(m, l, 1)), ("condition 1e6", conditioned(m, l, 1e6, 2)), ("zero", Mat::zeros(m, l))]
    {
        let y = narrowed::<f32>(&a, 1.0);
        // Both orders of storage, padded, forwards and with both strides negative.
        for (row_major, reversed) in [(false, false), (true, false), (true, true), (false, true)] {
            let mut buffer =
                Mat::from_fn(if row_major { 3 * l } else { 2 * m }, if row_major { 2 * m } else { 3 * l }, |_, _| {
                    7.0f32
                });
            {
                let view = buffer.as_mut();
                let mut view = if row_major { view.transpose_mut() } else { view };
                if reversed {
                    view = view.reverse_rows_and_cols_mut();
                }
                // Contiguous in one direction, padded in the other.
                let mut view = view.submatrix_mut(m / 2, l, m, l);
                view.copy_from(&y);
                let (r, _) = orthonormalize(view.rb_mut(), Par::rayon(0));
                let o = orthogonality(view.rb());
                assert!(o <= 8.4 * f64::from(f32::EPSILON) * (l as f64).sqrt(), "{name}: {o:e}");
                let e = residual(y.as_ref(), view.rb(), r.as_ref(), 1.0);
                assert!(e <= (4 * l + 16) as f64 * f64::from(f32::EPSILON), "{name}: {e:e}");
                view.fill(7.0);
            }
            assert!((0..buffer.ncols()).all(|j| (0..buffer.nrows()).all(|i| buffer[(i, j)] == 7.0)), "{name}");
        }
    }
}

#[test]
fn bad_input_is_an_error() {
    use tensorslim::Error;
    let mut buffer = MemBuffer::new(qr::orthonormalize_scratch::<f32>(64, 8, Par::Seq));
    let stack = MemStack::new(&mut buffer);
    let mut run = |y: &mut Mat<f32>, r: Option<&mut Mat<f32>>| {
        qr::orthonormalize(y.as_mut(), r.map(|r| r.as_mut()), Par::Seq, &mut *stack)
    };
    assert!(matches!(run(&mut Mat::zeros(3, 4), None), Err(Error::Shape { .. })));
    assert!(matches!(run(&mut Mat::zeros(3, 0), None), Err(Error::Empty { .. })));
    assert!(matches!(run(&mut Mat::zeros(0, 0), None), Err(Error::Empty { .. })));
    assert!(matches!(run(&mut Mat::zeros(6, 4), Some(&mut Mat::zeros(4, 5))), Err(Error::Shape { .. })));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut y = Mat::from_fn(64, 8, |i, j| (i * j % 5) as f32 + 1.0);
        y[(13, 2)] = bad;
        match run(&mut y, None) {
            Err(Error::NotFinite { row: 13, col: 2, .. }) => {}
            other => panic!("{bad}: {other:?}"),
        }
    }
    let mut y = Mat::from_fn(64, 8, |i, j| if (i + j) % 3 == 0 { f32::MAX } else { -f32::MAX / 2.0 });
    assert!(matches!(run(&mut y.clone(), Some(&mut Mat::zeros(8, 8))), Err(Error::Range { .. })));
    run(&mut y, None).unwrap();
    assert!(orthogonality(y.as_ref()) <= 24.0 * f64::from(f32::EPSILON));
}

/// `factor`, `form_q`, `apply_q` and `apply_qt` against each other and the definition. Errors of n reflectors of length m
/// are bounded by `m n eps` and behave like its root.
#[test]
fn householder() {
    fn compare<T: Scalar>(m: usize, n: usize, b: usize) {
        let k = m.min(n);
        let eps = <T as Scalar>::EPSILON;
        let bound = 4.0 * eps * ((m * k) as f64).sqrt() + 16.0 * eps;
        let a = narrowed::<T>(&gaussian(m, n, (m * n) as u64), 1.0);
        let (mut v, mut t) = (a.clone(), Mat::from_fn(b, k, |_, _| T::from_f64(f64::NAN)));
        let mut buffer =
            dirty(qr::householder::factor_scratch::<T>(m, n, Par::Seq).or(qr::householder::apply_scratch::<T>(
                m,
                n,
                n.max(m),
                Par::Seq,
            )));
        let stack = MemStack::new(&mut buffer);
        qr::householder::factor(v.as_mut(), t.as_mut(), Par::Seq, stack);
        let context = format!("{m}×{n} blocks of {b} {}", T::DTYPE);
        let r = Mat::from_fn(m, n, |i, j| if i <= j { v[(i, j)] } else { T::from_f64(0.0) });
        // Q R = A
        let mut qr_product = r.clone();
        qr::householder::apply_q(v.as_ref(), t.as_ref(), qr_product.as_mut(), Par::Seq, stack);
        let e = (widened(qr_product.as_ref()) - widened(a.as_ref())).norm_max() / widened(a.as_ref()).norm_max();
        assert!(e <= bound, "{context}: QR − A = {e:e}");
        // Qᵀ A = R
        let mut qt_a = a.clone();
        qr::householder::apply_qt(v.as_ref(), t.as_ref(), qt_a.as_mut(), Par::Seq, stack);
        let e = (widened(qt_a.as_ref()) - widened(r.as_ref())).norm_max() / widened(a.as_ref()).norm_l2();
        assert!(e <= bound, "{context}: QᵀA − R = {e:e}");
        // |R| is that of an independent QR in f64 (unique up to signs).
        let oracle = widened(a.as_ref());
        let oracle = oracle.qr();
        let oracle = oracle.thin_R();
        let condition = oracle.singular_values().map(|s| s[0] / s[s.len() - 1]).unwrap();
        for j in 0..n {
            for i in 0..k {
                let d = (r[(i, j)].to_f64().abs() - oracle[(i, j)].abs()).abs() / oracle.norm_l2();
                assert!(d <= bound * condition, "{context}: R[{i}, {j}] off by {d:e}");
            }
        }
        if m >= n {
            let mut q = v.clone();
            qr::householder::form_q(q.as_mut(), t.as_ref(), Par::Seq, stack);
            let mut identity = Mat::from_fn(m, n, |i, j| T::from_f64(f64::from(i == j)));
            qr::householder::apply_q(v.as_ref(), t.as_ref(), identity.as_mut(), Par::Seq, stack);
            let e = (widened(q.as_ref()) - widened(identity.as_ref())).norm_max();
            assert!(e <= bound, "{context}: form_q against apply_q {e:e}");
            let o = orthogonality(q.as_ref());
            assert!(o <= bound, "{context}: orthogonality {o:e}");
        }
    }
    for (m, n) in [
        (1, 1),
        (4, 4),
        (8, 9),
        (9, 8),
        (17, 16),
        (47, 47),
        (48, 48),
        (49, 49),
        (97, 96),
        (200, 97),
        (60, 130),
        (1001, 50),
    ] {
        let b = qr::householder::block_size(m, n);
        compare::<f32>(m, n, b);
        compare::<f64>(m, n, b);
    }
    for b in [1, 2, 7, 8, 9, 16, 17] {
        compare::<f64>(150, 40, b);
    }
}

/// Q, R of the tree and R of the stream, for one leaf, two, odd numbers of them, against the definition.
#[test]
fn tsqr() {
    fn compare<T: Scalar>(m: usize, l: usize, condition: f64) {
        let eps = <T as Scalar>::EPSILON;
        let bound = eps * (4 * l + 16) as f64;
        let y = narrowed::<T>(&conditioned(m, l, condition, 5), 1.0);
        let context = format!("{m}×{l} {} condition {condition:e}", T::DTYPE);
        let nan = || Mat::from_fn(l, l, |_, _| T::from_f64(f64::NAN));
        let (mut q, mut r) = (y.clone(), nan());
        let mut buffer = dirty(qr::tsqr::tsqr_scratch::<T>(m, l, Par::rayon(0)));
        qr::tsqr::tsqr(q.as_mut(), r.as_mut(), Par::rayon(0), MemStack::new(&mut buffer)).unwrap();
        let o = orthogonality(q.as_ref());
        assert!(o <= bound, "{context}: orthogonality {o:e}");
        let e = residual(y.as_ref(), q.as_ref(), r.as_ref(), 1.0);
        assert!(e <= bound, "{context}: residual {e:e}");

        let mut streamed = nan();
        let mut buffer = dirty(qr::tsqr::tsqr_r_scratch::<T>(m, l, Par::rayon(0)));
        qr::tsqr::tsqr_r(y.as_ref(), streamed.as_mut(), Par::rayon(0), MemStack::new(&mut buffer)).unwrap();
        let mut accumulated = nan();
        let mut accumulator = qr::tsqr::RAccumulator::<T>::new(l).unwrap();
        accumulator.update(y.as_ref()).unwrap();
        accumulator.write_r(accumulated.as_mut()).unwrap();
        for (name, r) in [("tree", &r), ("stream", &streamed), ("accumulator", &accumulated)] {
            // RᵀR = YᵀY: a backward error of `bound ‖y_j‖` in each column.
            let (y, r) = (widened(y.as_ref()), widened(r.as_ref()));
            let d = gram(y.as_ref()) - gram(r.as_ref());
            for j in 0..l {
                assert!(r[(j, j)] >= 0.0 && (j + 1..l).all(|i| r[(i, j)] == 0.0), "{context}: {name}");
                for i in 0..l {
                    let e = d[(i, j)].abs() / (y.col(i).norm_l2() * y.col(j).norm_l2());
                    assert!(e <= 2.0 * bound, "{context}: {name} {e:e}");
                }
            }
        }
    }
    for (m, l) in
        [(1, 1), (255, 1), (1023, 1), (40, 40), (513, 7), (511, 64), (512, 64), (1290, 64), (5000, 33), (2500, 100)]
    {
        compare::<f32>(m, l, 1e3);
        compare::<f64>(m, l, 1e14);
    }
}

#[test]
fn accumulator_ignores_how_rows_are_cut_and_merges() {
    use qr::tsqr::RAccumulator;
    let l = 20;
    let y = narrowed::<f32>(&conditioned(3001, l, 1e4, 6), 1.0);
    let r_of = |a: &mut RAccumulator<f32>| {
        let mut r = Mat::zeros(l, l);
        a.write_r(r.as_mut()).unwrap();
        r
    };
    let mut whole = RAccumulator::new(l).unwrap();
    whole.update(y.as_ref()).unwrap();
    let mut pieces = RAccumulator::new(l).unwrap();
    let mut i = 0;
    for step in (1..).map(|s| s * 37 % 301) {
        let step = step.min(3001 - i);
        pieces.update(y.as_ref().subrows(i, step)).unwrap();
        i += step;
        if i == 3001 {
            break;
        }
    }
    assert_eq!((whole.rows(), pieces.rows()), (3001, 3001));
    let r = r_of(&mut whole);
    assert!(r == r_of(&mut pieces));

    let mut left = RAccumulator::new(l).unwrap();
    let mut right = RAccumulator::new(l).unwrap();
    left.update(y.as_ref().subrows(0, 1234)).unwrap();
    right.update(y.as_ref().subrows(1234, 1767)).unwrap();
    left.merge(&right).unwrap();
    assert_eq!(left.rows(), 3001);
    let merged = r_of(&mut left);
    let d = gram(widened(r.as_ref()).as_ref()) - gram(widened(merged.as_ref()).as_ref());
    // Both have a backward error of (4 l + 16) eps per column; the columns' lengths are those of R.
    let longest = (0..l).map(|j| widened(r.as_ref()).col(j).norm_l2()).fold(0.0, f64::max);
    assert!(d.norm_max() <= 4.0 * (4 * l + 16) as f64 * f64::from(f32::EPSILON) * longest * longest);

    assert!(left.update(Mat::<f32>::zeros(3, l + 1).as_ref()).is_err());
    assert!(left.merge(&RAccumulator::new(l + 1).unwrap()).is_err());
    assert!(left.write_r(Mat::zeros(l, l + 1).as_mut()).is_err());
    assert!(RAccumulator::<f32>::new(0).is_err());
    // Few rows, or none: R has zero rows.
    let mut few = RAccumulator::<f32>::new(l).unwrap();
    assert!(r_of(&mut few) == Mat::<f32>::zeros(l, l));
    few.update(y.as_ref().subrows(0, 3)).unwrap();
    let r = r_of(&mut few);
    assert!((3..l).all(|i| r[(i, i)] <= (4 * l + 16) as f32 * f32::EPSILON * longest as f32) && r[(2, 2)] > 0.0);
}

#[test]
fn cholesky_qr_alone() {
    use qr::cholesky::{Start, cholesky_qr, cholesky_qr_scratch};
    use tensorslim::Error;
    fn run<T: Scalar>(y: &Mat<T>, start: Start) -> tensorslim::Result<Orthonormalization> {
        let (m, l) = y.shape();
        let (mut q, mut r) = (y.clone(), Mat::zeros(l, l));
        let mut buffer = dirty(cholesky_qr_scratch::<T>(m, l, Par::rayon(0)));
        let report = cholesky_qr(q.as_mut(), Some(r.as_mut()), start, Par::rayon(0), MemStack::new(&mut buffer))?;
        let eps = <T as Scalar>::EPSILON;
        let (o, e) = (orthogonality(q.as_ref()), residual(y.as_ref(), q.as_ref(), r.as_ref(), 1.0));
        assert!(o <= 8.4 * eps * (l as f64).sqrt() && e <= (4 * l + 16) as f64 * eps, "{report:?}: {o:e}, {e:e}");
        Ok(report)
    }
    let y = conditioned(2000, 50, 1e6, 1);
    assert_eq!(run(&y, Start::Sketch).unwrap().algorithm, Algorithm::SketchedCholeskyQr);
    assert_eq!(run(&y, Start::Panel).unwrap().algorithm, Algorithm::CholeskyQr2);
    let y = narrowed::<f32>(&y, 1.0);
    assert_eq!(run(&y, Start::Sketch).unwrap().passes, 2);
    assert_eq!(run(&y, Start::Panel).unwrap().algorithm, Algorithm::WideCholeskyQr2);
    for start in [Start::Panel, Start::Sketch] {
        assert!(matches!(run(&Mat::<f32>::zeros(300, 20), start), Err(Error::NoConvergence { .. })));
        let mut y = y.clone();
        y[(3, 4)] = f32::NAN;
        assert!(matches!(run(&y, start), Err(Error::NoConvergence { .. })));
        assert!(matches!(run(&Mat::<f32>::zeros(3, 20), start), Err(Error::Shape { .. })));
    }
}
