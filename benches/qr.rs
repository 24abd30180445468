//! Panels: `qr::orthonormalize` against its GEMM floor and faer's QR, in one run.
//!
//! `cargo bench --bench qr` prints a table of interleaved medians, then criterion's figures (`-- --quick` leaves them
//! out, `-- --test` runs one round of each; `RAYON_NUM_THREADS=1` for one thread). The floor of a panel is one pass over
//! it at the GEMM rate measured here on the same shape: `m l²` flops of Gram matrix and `m l²` of triangular solve, the
//! time of one product `Y·R⁻¹`. A panel that is not well conditioned takes `3 m l²`, 1.5 floors, and the work on l×l.
//! `-- --serve` answers `benches/peers/qr.py`, which alternates with PyTorch.

#![allow(clippy::print_stdout)] // the table is the output

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use common::{Random, asked, median, seconds};
use criterion::{BenchmarkId, Criterion};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use std::hint::black_box;
use std::io::BufRead;
use tensorslim::Scalar;
use tensorslim::qr;

fn gaussian(m: usize, l: usize, seed: u64) -> Mat<f64> {
    let mut random = Random(seed);
    Mat::from_fn(m, l, |_, _| random.normal())
}

/// Singular values from 1 to 1/condition, geometrically; condition 0 stands for a Gaussian panel.
fn panel<T: Scalar>(m: usize, l: usize, condition: f64) -> Mat<T> {
    let mut a = gaussian(m, l, 1);
    if condition > 0.0 {
        a = a.qr().compute_thin_Q();
        let v = gaussian(l, l, 2).qr().compute_thin_Q();
        for j in 0..l {
            let s = condition.powf(-(j as f64) / (l - 1) as f64);
            for i in 0..m {
                a[(i, j)] *= s;
            }
        }
        a = &a * v.transpose();
    }
    Mat::from_fn(m, l, |i, j| T::from_f64(a[(i, j)]))
}

fn orthogonality<T: Scalar>(q: &Mat<T>) -> f64 {
    let q = Mat::from_fn(q.nrows(), q.ncols(), |i, j| q[(i, j)].to_f64());
    let mut g = q.transpose() * &q;
    for j in 0..g.ncols() {
        g[(j, j)] -= 1.0;
    }
    g.norm_max()
}

fn compare<T: Scalar>(m: usize, l: usize, condition: f64, par: Par, rounds: usize) {
    let y = panel::<T>(m, l, condition);
    let mut q = y.clone();
    let mut product = y.clone();
    let r = Mat::<T>::identity(l, l);
    let mut buffer = MemBuffer::new(qr::orthonormalize_scratch::<T>(m, l, par));
    let stack = MemStack::new(&mut buffer);

    let report = qr::orthonormalize(q.as_mut(), None, par, stack).expect("a finite panel");
    let error = orthogonality(&q) / <T as Scalar>::EPSILON;
    assert!(error <= 8.4 * (l as f64).sqrt(), "{m}×{l}: orthogonality {error} eps");

    let (mut ours, mut floor, mut faer) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        q.copy_from(&y);
        ours.push(seconds(|| {
            qr::orthonormalize(q.as_mut(), None, par, stack).expect("a finite panel");
        }));
        floor.push(seconds(|| matmul(&mut product, Accum::Replace, &y, &r, T::from_f64(1.0), par)));
        black_box(&product);
        faer.push(seconds(|| drop(black_box(y.qr().compute_thin_Q()))));
    }
    let (ours, floor, faer) = (median(&mut ours), median(&mut floor), median(&mut faer));
    println!(
        "{:4} {m:6}×{l:<4} cond {condition:7.0e} {:17} {:7.3} ms  {:5.2}× floor {:6.3} ms  faer {:7.3} ms = {:5.2}×  {error:5.1} eps",
        T::DTYPE.name(),
        format!("{:?}", report.algorithm),
        ours * 1e3,
        ours / floor,
        floor * 1e3,
        faer * 1e3,
        faer / ours,
    );
}

/// A panel, a place for its basis, and scratch.
struct Held {
    key: [String; 3],
    y: Mat<f32>,
    q: Mat<f32>,
    buffer: MemBuffer,
}

/// `m l condition count` on a line: that many orthonormalizations of such a panel, their seconds on a line.
fn serve(par: Par) {
    let mut held: Option<Held> = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut words: Vec<String> = line.split_whitespace().map(String::from).collect();
        let count: usize = words.pop().and_then(|x| x.parse().ok()).expect("a count");
        let key = <[String; 3]>::try_from(words).expect("m l condition count");
        if held.as_ref().is_none_or(|held| held.key != key) {
            let (m, l) = (key[0].parse().expect("rows"), key[1].parse().expect("columns"));
            let y = panel::<f32>(m, l, key[2].parse().expect("a condition"));
            let buffer = MemBuffer::new(qr::orthonormalize_scratch::<f32>(m, l, par));
            held = Some(Held { key, q: y.clone(), y, buffer });
        }
        let Held { y, q, buffer, .. } = held.as_mut().expect("just made");
        for _ in 0..count {
            q.copy_from(&*y);
            let took = seconds(|| {
                qr::orthonormalize(q.as_mut(), None, par, MemStack::new(buffer)).expect("a finite panel");
            });
            print!("{took} ");
        }
        println!();
    }
}

fn main() {
    let test = asked("--test");
    let threads = rayon::current_num_threads();
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    faer::set_global_parallelism(par);
    if asked("--serve") {
        return serve(par);
    }
    let rounds = if test { 1 } else { 15 };
    for (m, l) in [(3072, 202), (4096, 266), (30522, 106)] {
        for condition in [0.0, 1e1, 1e3, 1e6, 1e9] {
            compare::<f32>(m, l, condition, par, rounds);
        }
    }
    for condition in [0.0, 1e6, 1e12] {
        compare::<f64>(3072, 202, condition, par, rounds);
    }

    if test || asked("--quick") {
        return;
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    let mut group = criterion.benchmark_group("orthonormalize f32");
    for (m, l) in [(3072, 202), (30522, 106)] {
        let y = panel::<f32>(m, l, 1e3);
        let mut q = y.clone();
        let mut buffer = MemBuffer::new(qr::orthonormalize_scratch::<f32>(m, l, par));
        group.bench_function(BenchmarkId::from_parameter(format!("{m}x{l}")), |b| {
            b.iter(|| {
                q.copy_from(&y);
                qr::orthonormalize(q.as_mut(), None, par, MemStack::new(&mut buffer))
            });
        });
    }
    group.finish();
}
