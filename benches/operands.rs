//! What compressors hand over, against what they do by hand today and against the plain factorization, in one run.
//!
//! `cargo bench --bench operands` prints a line for each, with its time and its ratio to the factorization of the same
//! shape and rank, or to the floor that is named:
//!
//! * the update `A − B` of two bf16 weights, at a rank and above a threshold, and the full SVD of the difference in f64;
//! * statistics of outputs beside those of inputs, over those of inputs alone; Cholesky, a full SVD in f64 and a solve;
//! * one factor for q, k and v, over the factorization of the stack that lies in memory;
//! * the residual, over the product of the factors; one side from a start; a round of a quantizer.
//!
//! Medians by turns. `-- --test` is a small round of everything.

#![allow(clippy::print_stdout)] // the table is the output

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use common::{Random, asked, medians, seconds};
use faer::{Mat, Side};
use half::bf16;
use tensorslim::operator::{Along, Difference, Watch};
use tensorslim::{Calibration, Element, Factors, Matrix, Method, Rank, TensorRef, TruncatedSvd, quality};

fn normals<E: Element>(m: usize, n: usize, size: f64, seed: u64) -> Matrix<E> {
    let mut random = Random(seed);
    Matrix::from_fn(m, n, |_, _| E::from_f64(size * random.normal()))
}

/// Normals of which each is mixed with its neighbour, so that their moments have a spectrum.
fn samples(rows: usize, n: usize, seed: u64) -> Matrix<f32> {
    let (mut random, mut before) = (Random(seed), 0.0);
    Matrix::from_fn(rows, n, |_, _| {
        before = 0.9 * before + random.normal();
        before as f32
    })
}

fn tensor<E: Element>(a: &Matrix<E>) -> TensorRef<'_> {
    a.as_tensor().expect("not empty")
}

fn exact<E: Element>(a: &Matrix<E>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a.row(i)[j].to_f64())
}

fn line(what: &str, time: f64, floor: f64, of: &str) {
    println!("{what:<58} {:9.2} ms {:8.2} of {of} ({:.2} ms)", 1e3 * time, time / floor, 1e3 * floor);
}

/// The update of rank `r` in two weights of bf16.
fn difference(m: usize, n: usize, r: usize, rounds: usize) {
    let base = normals::<bf16>(m, n, 0.02, 1);
    let (b, a) = (normals::<f32>(m, r, 1.0, 2), normals::<f32>(r, n, 1.0, 3));
    let add = |i: usize, j: usize| (0..r).map(|t| 2e-3 * b.row(i)[t] * a.row(t)[j]).sum::<f32>();
    let tuned = Matrix::from_fn(m, n, |i, j| bf16::from_f32(base.row(i)[j].to_f32() + add(i, j)));
    let whole = Matrix::<f32>::from_fn(m, n, |i, j| tuned.row(i)[j].to_f32() - base.row(i)[j].to_f32());
    let threshold = 2e-3 * 0.2 * ((m * n) as f64).sqrt();
    let run = |rule| -> Factors<f32> {
        let mut pair = Difference::new(tensor(&tuned), tensor(&base)).expect("of one shape");
        TruncatedSvd::new(rule).factor_rows(&mut pair, &Watch::default()).expect("finite weights")
    };
    assert_eq!(run(Rank::Above(threshold)).rank(), r, "{m} × {n}");
    let plain = TruncatedSvd::new(Rank::Fixed(r));
    let times = medians(
        rounds,
        &mut [
            &mut || drop(plain.factor::<f32>(tensor(&whole)).expect("finite")),
            &mut || drop(run(Rank::Fixed(r))),
            &mut || drop(run(Rank::Above(threshold))),
        ],
    );
    let by_hand = seconds(|| drop((exact(&tuned) - exact(&base)).thin_svd().expect("converges")));
    let what = format!("{m} × {n} bf16, A − B");
    line(&format!("{what}, rank {r}"), times[1], times[0], "f32 in memory");
    line(&format!("{what}, values above a threshold"), times[2], times[0], "f32 in memory");
    line(&format!("{what}, by hand: f64, full SVD"), by_hand, times[2], "the line above");
}

/// Statistics on both sides.
fn weights(m: usize, n: usize, k: usize, rounds: usize) {
    let w = normals::<f32>(m, n, 1.0, 4);
    let statistics = |features: usize, seed: u64| {
        let mut c = Calibration::new(features).expect("a small size");
        c.update(&tensor(&samples(2 * features, features, seed))).expect("finite samples");
        c
    };
    let (inputs, outputs) = (statistics(n, 5), statistics(m, 6));
    let plain = TruncatedSvd::new(Rank::Fixed(k));
    let one = plain.clone().calibration(&inputs);
    let two = one.clone().output_calibration(&outputs);
    let factor = |svd: &TruncatedSvd| svd.factor::<f32>(tensor(&w)).expect("a finite weight");
    let loss = |f| quality::weighted(&tensor(&w), f, Some(&inputs), Some(&outputs)).expect("shapes agree");
    assert!(loss(&factor(&two)).relative_error < loss(&factor(&one)).relative_error, "{m} × {n}");
    let times =
        medians(rounds, &mut [&mut || drop(factor(&plain)), &mut || drop(factor(&one)), &mut || drop(factor(&two))]);
    // What is written by hand: L Lᵀ = G, an SVD of W L, and V L⁻¹ by a solve.
    let by_hand = seconds(|| {
        let moments = exact(&inputs.gram());
        let root = moments.llt(Side::Lower).expect("definite");
        let svd = (exact(&w) * root.L()).thin_svd().expect("converges");
        let mut right = svd.V().subcols(0, k).to_owned();
        faer::linalg::triangular_solve::solve_upper_triangular_in_place(
            root.L().transpose(),
            right.as_mut(),
            faer::get_global_parallelism(),
        );
    });
    let what = format!("{m} × {n}, k = {k}");
    line(&format!("{what}, inputs weighted"), times[1], times[0], "plain");
    line(&format!("{what}, inputs and outputs weighted"), times[2], times[1], "inputs alone");
    line(&format!("{what}, inputs by hand: f64, full SVD, solve"), by_hand, times[1], "inputs weighted");
}

/// Three matrices with one Vᵀ.
fn shared(m: usize, n: usize, k: usize, rounds: usize) {
    let stack = normals::<f32>(3 * m, n, 1.0, 7);
    let parts: Vec<_> =
        stack.as_slice().chunks(m * n).map(|w| TensorRef::new(w, &[m, n]).expect("not empty")).collect();
    let svd = TruncatedSvd::new(Rank::Fixed(k));
    let times = medians(
        rounds,
        &mut [&mut || drop(svd.factor::<f32>(tensor(&stack)).expect("finite")), &mut || {
            drop(svd.factor_shared::<f32>(&parts, Along::Rows).expect("finite"))
        }],
    );
    line(&format!("3 × ({m} × {n}), k = {k}, one Vᵀ"), times[1], times[0], "the stack in memory");
}

/// What comes after and beside a factorization.
fn beside(m: usize, n: usize, k: usize, rounds: usize) {
    let w = normals::<f32>(m, n, 1.0, 8);
    let svd = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Randomized);
    let f: Factors<f32> = svd.factor(tensor(&w)).expect("finite");
    let start = svd.basis::<f32>(&tensor(&w), None).expect("finite").vectors;
    let mut quantize = |a: &mut Matrix<f32>| {
        a.as_mut_slice().iter_mut().for_each(|x| *x = (8.0 * *x).round() / 8.0);
        Ok(())
    };
    let times = medians(
        rounds,
        &mut [
            &mut || drop(f.reconstruct()),
            &mut || drop(f.residual::<f32>(&tensor(&w)).expect("of one shape")),
            &mut || drop(svd.basis::<f32>(&tensor(&w), None).expect("finite")),
            &mut || drop(svd.basis::<f32>(&tensor(&w), Some(&start)).expect("finite")),
            &mut || drop(svd.factor::<f32>(tensor(&w)).expect("finite")),
            &mut || drop(svd.factor_quantized::<f32>(&tensor(&w), 1, &mut quantize).expect("finite")),
        ],
    );
    let what = format!("{m} × {n}, k = {k}");
    line(&format!("{what}, residual"), times[1], times[0], "U diag(s) Vᵀ");
    line(&format!("{what}, one side from a start"), times[3], times[2], "one side from a sketch");
    line(&format!("{what}, one round of a quantizer"), times[5], times[4], "plain");
}

fn main() {
    if asked("--test") {
        difference(200, 120, 4, 1);
        weights(120, 80, 8, 1);
        shared(64, 48, 8, 1);
        beside(160, 96, 8, 1);
        return;
    }
    difference(4096, 1024, 32, 15);
    difference(3072, 768, 64, 15);
    weights(3072, 768, 192, 9);
    weights(768, 3072, 192, 5);
    shared(768, 768, 96, 15);
    beside(3072, 768, 64, 15);
}
