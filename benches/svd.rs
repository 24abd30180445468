//! The SVD drivers: what the machine does of each kind of work, and whether `Method::Auto` picks the fastest method for
//! its promise.
//!
//! `cargo bench --bench svd` prints the rates that `svd::Rates::default()` holds for the machine it was tuned on, then for each
//! matrix the interleaved medians of the methods, the plan's estimates over them, their errors over that of `Method::Randomized`
//! (p = 10, q = 2), and the time of `Method::Auto` over the fastest of those whose error is not larger by more than 0.1 %: the promise is 1.15. The
//! floor is the plan's products alone at the measured rates. `-- rates` prints only the rates, `-- --test` runs two small matrices once.

#![allow(clippy::print_stdout)] // the table is the output

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::hint::black_box;
use std::time::Instant;

use common::{Random, asked, median, medians};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use tensorslim::sketch::{AnySketch, SketchOperator};
use tensorslim::{Matrix, Method, Rank, Scalar, Sketch, TruncatedSvd, qr};

fn noise(index: u64) -> f32 {
    Random::at(index).centred()
}

/// Noise whose columns decay as `(1 + j)^-decay`, mixed by Hadamard-like signs of the rows: a flat or a decaying spectrum.
fn matrix(m: usize, n: usize, decay: f32) -> Matrix<f32> {
    Matrix::from_fn(m, n, |i, j| noise((i * n + j) as u64) * (1.0 + j as f32).powf(-decay))
}

/// Median seconds of `f` after one call to warm up.
fn time(rounds: usize, mut f: impl FnMut()) -> f64 {
    f();
    medians(rounds, &mut [&mut f])[0]
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

/// What one matrix shows of Auto.
struct Shown {
    /// Time of Auto over that of the best method that keeps its promise.
    over_best: f64,
    /// Its error over that of the randomized method, less 1.
    excess: f64,
    /// The plan's estimate over the time, of the methods that ran in rounds.
    estimates: Vec<f64>,
}

/// Times Auto and every method, in turn. One that takes [`HOPELESS`] times as long as the fastest is not looked at again: it is not the best.
fn compare<T: Scalar>(a: &Matrix<T>, k: usize, what: &str, budget: f64, (gemm, syrk): (f64, f64)) -> Shown {
    let (m, n) = (a.nrows(), a.ncols());
    let svd = |method| TruncatedSvd::new(Rank::Fixed(k)).method(method);
    let run = |method| svd(method).factor::<T>(a.as_tensor().expect("a matrix")).expect("a finite matrix");
    let timed = |method| {
        let start = Instant::now();
        let report = black_box(run(method)).report().clone();
        (start.elapsed().as_secs_f64(), report)
    };
    let estimate = |method| {
        let plan = svd(method).plan::<T>((m, n), T::DTYPE).expect("a plan");
        let mut candidates = plan.candidates.iter();
        candidates.find(|c| c.method == plan.method).expect("each method is a candidate").seconds
    };
    let all = [Method::Auto, Method::Randomized, Method::Krylov, Method::Gram, Method::Full];
    // What the plan holds for hopeless is not tried: a dense SVD of 4096 columns takes minutes.
    let expected = estimate(Method::Auto);
    let methods = all.into_iter().filter(|&method| estimate(method) <= 2.0 * HOPELESS * expected);
    run(Method::Auto);
    let first: Vec<_> = methods.map(|method| (method, timed(method))).collect();
    let fastest = first.iter().map(|(_, (seconds, _))| *seconds).fold(f64::INFINITY, f64::min);
    let baseline = first[1].1.1.relative_error;
    let (mut tried, out): (Vec<_>, Vec<_>) = (first.into_iter())
        .map(|(method, (seconds, report))| (method, vec![seconds], report))
        .partition(|(method, seconds, _)| *method == Method::Auto || seconds[0] <= HOPELESS * fastest);
    let each: f64 = tried.iter().map(|(_, seconds, _)| seconds[0]).sum();
    // Medians of fewer say nothing here.
    let least = if budget > 0.0 { 5 } else { 1 };
    let rounds = ((budget / each) as usize).clamp(least, 61);
    for _ in 0..rounds {
        for (method, times, _) in &mut tried {
            times.push(timed(*method).0);
        }
    }
    let medians: Vec<f64> = tried.iter_mut().map(|(_, times, _)| median(&mut times[1..])).collect();
    let kept = |error: f64| error <= 1.001 * baseline;
    let rows = || tried.iter().zip(&medians).map(|((method, _, report), seconds)| (*method, *seconds, report));
    let best = rows().skip(1).filter(|row| kept(row.2.relative_error)).map(|row| row.1).fold(f64::INFINITY, f64::min);
    let (mf, nf, l) = (m.max(n) as f64, m.min(n) as f64, (k + 10) as f64);
    let auto = &tried[0].2;
    let products = match auto.method {
        Method::Gram => mf * nf * nf / syrk + (2.0 * nf * nf * l * 2.0 + 2.0 * mf * nf * k as f64) / gemm,
        Method::Krylov => 2.0 * mf * nf * (l / 2.0) * 7.0 / gemm,
        _ => 2.0 * mf * nf * l * 5.0 / gemm,
    };
    let floor = if size_of::<T>() == 8 { 2.0 * products } else { products };
    println!("\n{m}×{n} {}, k = {k}, {what}: auto takes {}, {rounds} rounds", T::DTYPE, auto.method);
    for (method, seconds, report) in rows() {
        println!(
            "  {method:<11} {:8.2} ms   estimate {:4.2}   error {:+.3} % {}",
            1e3 * seconds,
            estimate(method) / seconds,
            100.0 * (report.relative_error / baseline - 1.0),
            if report.method != method && method != Method::Auto { report.method.name() } else { "" }
        );
    }
    for (method, seconds, _) in &out {
        println!("  {method:<11} {:8.2} ms   once", 1e3 * seconds[0]);
    }
    println!("  auto / best {:.2}; auto / floor of its products {:.2}", medians[0] / best, medians[0] / floor);
    let estimates = rows().map(|(method, seconds, _)| estimate(method) / seconds).collect();
    Shown { over_best: medians[0] / best, excess: auto.relative_error / baseline - 1.0, estimates }
}

/// How many times as long as the fastest method takes one that is timed once.
const HOPELESS: f64 = 1.6;

/// The grid of Auto's promise: shapes × spectra.
fn promise(test: bool, rates: (f64, f64)) {
    let shapes: &[(usize, usize, usize)] = if test {
        &[(192, 96, 16), (128, 128, 8)]
    } else {
        &[
            (256, 256, 32),
            (1536, 384, 96),
            (384, 1536, 32),
            (512, 512, 64),
            (1024, 1024, 16),
            (1024, 1024, 256),
            (2048, 1024, 64),
            (3072, 768, 192),
            (4096, 1024, 256),
            (8192, 512, 64),
            (30522, 384, 96),
            (2048, 2048, 128),
            (4096, 4096, 32),
            (4096, 4096, 128),
        ]
    };
    let budget = if test { 0.0 } else { 1.5 };
    let mut shown = Vec::new();
    for &(m, n, k) in shapes {
        for decay in [0.0, 0.5, 1.0] {
            let a = matrix(m, n, decay);
            shown.push(compare(&a, k, &format!("column decay {decay}"), budget, rates));
            if m * n < 1 << 20 || (m, n) == (3072, 768) {
                let a = Matrix::<f64>::from_fn(m, n, |i, j| f64::from(a.row(i)[j]));
                shown.push(compare(&a, k, &format!("column decay {decay}"), budget, rates));
            }
        }
    }
    let worst = shown.iter().map(|s| s.over_best).fold(0.0, f64::max);
    let mut off: Vec<f64> = shown.iter().flat_map(|s| &s.estimates).map(|x| x.max(1.0 / x)).collect();
    off.sort_by(f64::total_cmp);
    let at = |share: f64| off[((off.len() - 1) as f64 * share) as usize];
    println!("\nworst auto / best {worst:.2}, promised 1.15");
    let excess = shown.iter().map(|s| s.excess).fold(f64::NEG_INFINITY, f64::max);
    println!("largest error over that of randomized: {:+.3} %, promised 0.1", 100.0 * excess);
    println!("estimates off by {:.2} in the median, {:.2} at 90 %, {:.2} at worst", at(0.5), at(0.9), at(1.0));
    assert!(excess <= 1e-3, "Auto's error is above that of the randomized method");
}

fn main() {
    let test = asked("--test");
    let threads = rayon::current_num_threads();
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    let rates = rates(par, if test { 1 } else { 9 }, if test { 8 } else { 1 });
    if !asked("rates") {
        promise(test, rates);
    }
}
