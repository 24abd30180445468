//! Many small matrices: `TruncatedSvd::factor_many` on one thread and on all, and a single call beside it.
//!
//! `cargo bench --bench many` prints interleaved medians per matrix (`-- --test` runs one small round). The floor is the
//! products of the randomized method alone, `6 · 2 n² l` flops at the GEMM rate measured here on one thread, shared by all.
//! `-- --serve` answers `benches/peers/many.py`, which compares with PyTorch in the same run.

#![allow(clippy::print_stdout)] // the table is the output

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::io::BufRead;

use common::{Random, asked, median, seconds};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tensorslim::{Rank, TensorRef, TruncatedSvd};

/// Uniform entries in ±1/2: a flat spectrum, the hardest one for power iterations.
fn matrices(n: usize, count: usize) -> Vec<Vec<f32>> {
    let mut random = Random(1);
    (0..count).map(|_| (0..n * n).map(|_| random.centred()).collect()).collect()
}

fn tensors(data: &[Vec<f32>], n: usize) -> Vec<TensorRef<'_>> {
    data.iter().map(|w| TensorRef::new(w, &[n, n]).expect("n² elements")).collect()
}

/// The certificates must agree with the product of the factors.
fn check(svd: &TruncatedSvd, list: &[TensorRef<'_>], data: &[Vec<f32>], n: usize) {
    for (factors, w) in svd.factor_many::<f32>(list).into_iter().zip(data) {
        let factors = factors.expect("a finite matrix");
        let product = factors.reconstruct();
        let norm = w.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let error = w.iter().zip(product.as_slice()).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt() / norm;
        let certified = factors.report().relative_error;
        assert!((error - certified).abs() <= 1e-4, "{n}×{n}: error {error}, certified {certified}");
    }
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool")
}

fn compare(n: usize, k: usize, count: usize, rounds: usize) {
    let data = matrices(n, count);
    let list = tensors(&data, n);
    let svd = TruncatedSvd::new(Rank::Fixed(k));
    check(&svd, &list[..count.min(20)], &data, n);

    let l = k + 10;
    let a = Mat::<f32>::from_fn(n, n, |i, j| data[0][i * n + j]);
    let x = Mat::<f32>::from_fn(n, l, |i, j| data[0][i * l + j]);
    let mut y = Mat::<f32>::zeros(n, l);
    let threads = rayon::current_num_threads();
    let (one, all) = (pool(1), pool(threads));
    let [mut single, mut many, mut parallel, mut floor] = [(); 4].map(|()| vec![]);
    for _ in 0..rounds {
        single.push(seconds(|| one.install(|| list.iter().for_each(|w| drop(svd.factor::<f32>(w.clone()))))));
        many.push(seconds(|| one.install(|| drop(svd.factor_many::<f32>(&list)))));
        parallel.push(seconds(|| all.install(|| drop(svd.factor_many::<f32>(&list)))));
        floor.push(seconds(|| (0..6 * count).for_each(|_| matmul(&mut y, Accum::Replace, &a, &x, 1.0, Par::Seq))));
    }
    let [single, many, parallel, floor] =
        [&mut single, &mut many, &mut parallel, &mut floor].map(|t| median(t) / count as f64 * 1e6);
    println!(
        "{n:4}×{n:<4} k {k:3}  single {single:7.1} µs  many {many:7.1} µs  on {threads} threads {parallel:7.1} µs = {:4.2}×  \
         {:4.2}× the products",
        many / parallel,
        many / floor,
    );
}

/// `n k count` on a line: one batch on the threads of the global pool, its seconds on a line.
fn serve() {
    let mut held: Option<(usize, usize, Vec<Vec<f32>>)> = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let numbers: Vec<usize> = line.split_whitespace().map(|x| x.parse().expect("a number")).collect();
        let &[n, k, count] = &numbers[..] else { panic!("n k count") };
        if held.as_ref().is_none_or(|(n0, count0, _)| (*n0, *count0) != (n, count)) {
            held = Some((n, count, matrices(n, count)));
        }
        let data = &held.as_ref().expect("just made").2;
        let list = tensors(data, n);
        let svd = TruncatedSvd::new(Rank::Fixed(k));
        let mut error = 0.0;
        let time = seconds(|| {
            let done = svd.factor_many::<f32>(&list);
            error = done[0].as_ref().expect("a finite matrix").report().relative_error;
        });
        println!("{time} {error}");
    }
}

fn main() {
    if asked("--serve") {
        return serve();
    }
    let (count, rounds) = if asked("--test") { (4, 1) } else { (400, 5) };
    for (n, k) in [(64, 8), (128, 16), (256, 32), (256, 64)] {
        compare(n, k, count, rounds);
    }
}
