//! The SVD drivers: what the machine does of each kind of work, and whether `Method::Auto` picks the fastest method for
//! its promise.
//!
//! `cargo bench --bench svd` prints the rates that `svd::Rates::default()` holds for the machine it was tuned on, then for each
//! matrix the interleaved medians of the methods, their errors over that of `Method::Randomized` (p = 10, q = 2), and the
//! time of `Method::Auto` over the fastest of those whose error is not larger by more than 0.1 %: the promise is 1.15. The
//! floor is the plan's products alone at the measured rates. `-- --test` runs two small matrices once.

#![allow(clippy::print_stdout)] // the table is the output

use std::hint::black_box;
use std::time::Instant;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use tensorslim::sketch::{AnySketch, SketchOperator};
use tensorslim::{Matrix, Method, Rank, Sketch, TruncatedSvd, qr};

/// Uniform in (-1/2, 1/2): SplitMix64 of the index.
fn noise(index: u64) -> f32 {
    let mut z = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
}

/// Noise whose columns decay as `(1 + j)^-decay`, mixed by Hadamard-like signs of the rows: a flat or a decaying spectrum.
fn matrix(m: usize, n: usize, decay: f32) -> Matrix<f32> {
    Matrix::from_fn(m, n, |i, j| noise((i * n + j) as u64) * (1.0 + j as f32).powf(-decay))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Median seconds of `f` after one call to warm up.
fn time(rounds: usize, mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    median(&mut times)
}

/// GEMM and SYRK in flops per second.
fn rates(par: Par, rounds: usize, scale: usize) -> (f64, f64) {
    let (m, n, l) = (4096 / scale, 1024 / scale, 256 / scale);
    let a = matrix(m, n, 0.0);
    let a = MatRef::from_row_major_slice(a.as_slice(), m, n);
    let x = Mat::from_fn(n, l, |i, j| noise((i + j * n) as u64));
    let mut y = vec![0f32; m * l];
    let seconds = time(rounds, || {
        let y = MatMut::from_row_major_slice_mut(&mut y, m, l);
        matmul(y, Accum::Replace, a, x.as_ref(), 1.0, par);
    });
    let gemm = 2.0 * (m * n * l) as f64 / seconds;
    let mut g = Mat::<f32>::zeros(n, n);
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    let seconds = time(rounds, || {
        triangular::matmul(g.as_mut(), lower, Accum::Replace, a.transpose(), full, a, full, 1.0, par);
    });
    let syrk = (m * n * n) as f64 / seconds;
    let mut q = Mat::from_fn(n, l, |i, j| noise((i + j * n) as u64));
    let mut buffer = MemBuffer::new(qr::orthonormalize_scratch::<f32>(n, l, par));
    let start = q.clone();
    let seconds = time(rounds, || {
        q.copy_from(&start);
        qr::orthonormalize(q.as_mut(), None, par, MemStack::new(&mut buffer)).expect("a finite panel");
    });
    let orthonormalize = 4.0 * (n * l * l) as f64 / seconds;
    let omega = AnySketch::new(Sketch::Srht, n, l, 0, 0).expect("a valid shape");
    let mut y = Mat::<f32>::zeros(m, l);
    let sketch = (m * n) as f64 / time(rounds, || omega.apply(a, y.as_mut(), par).expect("matching shapes"));
    println!(
        "rates: gemm {:.0}e9, syrk {:.0}e9, orthonormalize {:.0}e9 flops/s, sketch {:.1}e9 elements/s",
        gemm * 1e-9,
        syrk * 1e-9,
        orthonormalize * 1e-9,
        sketch * 1e-9
    );
    (gemm, syrk)
}

/// Returns the time of Auto over that of the best method that keeps its promise.
fn compare(m: usize, n: usize, k: usize, decay: f32, rounds: usize, (gemm, syrk): (f64, f64)) -> f64 {
    let a = matrix(m, n, decay);
    let svd = |method| TruncatedSvd::new(Rank::Fixed(k)).method(method);
    let mut methods = vec![Method::Auto, Method::Randomized, Method::Krylov];
    // The others take seconds.
    if m.min(n) <= 1024 {
        methods.push(Method::Gram);
    }
    if m.min(n) <= 512 {
        methods.push(Method::Full);
    }
    let run = |method| svd(method).factor::<f32>(a.as_tensor().expect("a matrix")).expect("a finite matrix");
    let reports: Vec<_> = methods.iter().map(|&method| run(method).report().clone()).collect();
    let mut times = vec![Vec::new(); methods.len()];
    for _ in 0..rounds {
        for (times, &method) in times.iter_mut().zip(&methods) {
            let start = Instant::now();
            black_box(run(method));
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let medians: Vec<f64> = times.iter_mut().map(|t| median(t)).collect();
    let baseline = reports[1].relative_error;
    let kept = |i: &usize| reports[*i].relative_error <= 1.001 * baseline;
    let best = (1..methods.len()).filter(kept).map(|i| medians[i]).fold(f64::INFINITY, f64::min);
    let (mf, nf, l) = (m.max(n) as f64, m.min(n) as f64, (k + 10) as f64);
    let floor = match reports[0].method {
        Method::Gram => mf * nf * nf / syrk + (2.0 * nf * nf * l * 2.0 + 2.0 * mf * nf * k as f64) / gemm,
        Method::Krylov => 2.0 * mf * nf * (l / 2.0) * 7.0 / gemm,
        _ => 2.0 * mf * nf * l * 5.0 / gemm,
    };
    println!("\n{m}×{n}, k = {k}, column decay {decay}: auto takes {}", reports[0].method);
    for ((method, ms), report) in methods.iter().zip(&medians).zip(&reports) {
        println!(
            "  {method:<11} {:8.2} ms   error {:+.3} %",
            1e3 * ms,
            100.0 * (report.relative_error / baseline - 1.0)
        );
    }
    println!("  auto / best {:.2}; auto / floor of its products {:.2}", medians[0] / best, medians[0] / floor);
    assert!(kept(&0), "{m}×{n} k = {k}: Auto's error is above that of the randomized method");
    medians[0] / best
}

fn main() {
    let test = std::env::args().any(|a| a == "--test");
    let threads = rayon::current_num_threads();
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    let rounds = if test { 1 } else { 9 };
    let rates = rates(par, rounds, if test { 8 } else { 1 });
    let shapes: &[(usize, usize, usize)] = if test {
        &[(192, 96, 16), (128, 128, 8)]
    } else {
        &[
            (1536, 384, 96),
            (384, 1536, 32),
            (512, 512, 64),
            (1024, 1024, 16),
            (1024, 1024, 256),
            (2048, 1024, 64),
            (3072, 768, 192),
            (4096, 1024, 256),
            (8192, 512, 64),
            (2048, 2048, 128),
            (4096, 4096, 128),
        ]
    };
    let mut worst = 0f64;
    for &(m, n, k) in shapes {
        for decay in [0.0, 0.5] {
            worst = worst.max(compare(m, n, k, decay, if m * n > 4_000_000 { rounds.min(5) } else { rounds }, rates));
        }
    }
    println!("\nworst auto / best {worst:.2}, promised 1.15");
}
