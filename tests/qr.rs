//! `qr`: every path against the definition, in f64.
//!
//! Orthogonality is `max |QᵀQ − I|`, formed in f64. The bound is the one promised, `1e-6 sqrt(l)` in f32, which is
//! 8.4 eps sqrt(l), and the same multiple of eps in f64.
//!
//! Residual: column j of `Y − Q R` against `‖y_j‖`. A triangular solve errs by `γ_l |q| |R|` per entry, a sum of l
//! products; with rounding errors of random sign `sqrt(l) eps |q|ᵀ|r_j|`, and `‖ |Q| |r_j| ‖ <= sqrt(l) ‖r_j‖`.
//! That is `l eps ‖y_j‖` per pass; up to four passes, and a Householder sweep of l reflectors errs by no more than
//! that: `4 l eps`, and 16 eps for what does not depend on l (storing Q and R).

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::prelude::*;
use faer::reborrow::*;
use faer::{Accum, Mat, MatMut, MatRef, Par};
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

fn orthogonality<T: Scalar>(q: MatRef<'_, T>) -> f64 {
    let q = widened(q);
    let mut g = q.transpose() * &q;
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
    (0..y.ncols()).fold(0.0, |worst: f64, j| {
        let (d, y) = (d.col(j).norm_l2(), y.col(j).norm_l2());
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
    if std::env::var_os("QR_SHOW").is_some() {
        println!("{context}: orthogonality {:.2} eps, residual {:.2} eps", o / eps, e / eps);
    }
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
