//! What the test files share: reproducible matrices with known spectra, and f64 oracles. Independent of the crate's own
//! random numbers and kernels.
#![allow(missing_docs, unreachable_pub)]

use faer::{Mat, MatRef};
use tensorslim::{Element, Matrix, Scalar};

/// SplitMix64: a few lines, no relation to the generator under test.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, Box-Muller.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

pub fn gaussian(m: usize, n: usize, seed: u64) -> Mat<f64> {
    let mut random = Random(seed);
    Mat::from_fn(m, n, |_, _| random.normal())
}

/// `m × l` with orthonormal columns, in f64.
pub fn orthonormal(m: usize, l: usize, seed: u64) -> Mat<f64> {
    gaussian(m, l, seed).qr().compute_thin_Q()
}

/// `U diag(spectrum) Vᵀ` with random singular vectors.
pub fn with_spectrum(m: usize, n: usize, spectrum: &[f64], seed: u64) -> Mat<f64> {
    let k = spectrum.len();
    let (mut u, v) = (orthonormal(m, k, seed), orthonormal(n, k, seed + 1));
    for (j, s) in spectrum.iter().enumerate() {
        u.col_mut(j).iter_mut().for_each(|x| *x *= s);
    }
    &u * v.transpose()
}

/// `√(Σ_{i>=k} σ_i²) / √(Σ σ_i²)`: the error of the best rank-k approximation.
pub fn best_error(spectrum: &[f64], k: usize) -> f64 {
    let squares = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>();
    (squares(&spectrum[k..]) / squares(spectrum)).sqrt()
}

/// Row-major elements of type `E`, rounded.
pub fn rounded<E: Element>(a: MatRef<'_, f64>) -> Matrix<E> {
    Matrix::from_fn(a.nrows(), a.ncols(), |i, j| E::from_f64(a[(i, j)]))
}

/// The exact values of a stored matrix.
pub fn exact<E: Element>(a: &Matrix<E>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a.row(i)[j].to_f64())
}

/// `‖a − u diag(s) vt‖_F / ‖a‖_F` in f64.
pub fn true_error<T: Scalar>(a: MatRef<'_, f64>, f: &tensorslim::Factors<T>) -> f64 {
    let (mut u, vt) = (exact(f.u()), exact(f.vt()));
    for (j, &s) in f.s().iter().enumerate() {
        u.col_mut(j).iter_mut().for_each(|x| *x *= s.to_f64());
    }
    (a - &u * &vt).norm_l2() / a.norm_l2()
}

/// `max |QᵀQ − I|`, columns of `q`.
pub fn orthonormality(q: MatRef<'_, f64>) -> f64 {
    let g = q.transpose() * q;
    let mut worst = 0f64;
    for j in 0..g.ncols() {
        for i in 0..g.nrows() {
            worst = worst.max((g[(i, j)] - f64::from(u8::from(i == j))).abs());
        }
    }
    worst
}

/// The spectra of the test matrices, `count` values each.
pub fn spectra(count: usize) -> Vec<(&'static str, Vec<f64>)> {
    let by = |f: &dyn Fn(f64) -> f64| (0..count).map(|i| f(i as f64)).collect::<Vec<f64>>();
    let c = count as f64;
    vec![
        ("polynomial 1/i", by(&|i| 1.0 / (i + 1.0))),
        ("polynomial 1/√i", by(&|i| (i + 1.0).powf(-0.5))),
        ("polynomial 1/i²", by(&|i| (i + 1.0).powi(-2))),
        ("exponential", by(&|i| 0.9f64.powf(i))),
        ("fast exponential", by(&|i| 0.5f64.powf(i))),
        ("step", by(&|i| if i < c / 6.0 { 1.0 } else { 1e-2 })),
        ("spiked", by(&|i| if i < 5.0 { 100.0 / (i + 1.0) } else { 1.0 / (1.0 + i / c) })),
        ("rank-deficient", by(&|i| if i < c / 8.0 { 1.0 / (i + 1.0) } else { 0.0 })),
    ]
}

/// Runs `f` in a rayon pool of `threads`.
pub fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// The f16 values of one of the real matrices in `tests/data`, read without the crate's own reader.
pub fn real(name: &str, m: usize, n: usize) -> Matrix<half::f16> {
    let path = format!("{}/tests/data/{name}.npy", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let body = &bytes[bytes.len() - 2 * m * n..];
    let values = body.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]])).collect();
    Matrix::from_vec(values, m, n).unwrap()
}

/// Returns a matrix of standard normal elements.
pub fn random<E: Element>(m: usize, n: usize, seed: u64) -> Matrix<E> {
    let mut random = Random(seed);
    Matrix::from_fn(m, n, |_, _| E::from_f64(random.normal()))
}
