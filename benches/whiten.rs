//! Calibration and whitened factorization against what they cannot do without, in one run.
//!
//! `cargo bench --bench whiten` prints
//!
//! * the update of statistics with 4096 samples of 4096 features in f16, as a share of the SYRK rate measured here (f64 and f32 by
//!   faer, on operands that lie ready in that type);
//! * the default factorization of 3072 × 768 at k = 192 with statistics given, against the plain one, and their parts;
//! * `Rank::Quality` on the real `ffn_up` against one factorization at the rank that it finds;
//!
//! all as interleaved medians. `-- factor`, `-- quality` or `-- update` takes one of the three; `-- --test` a small round of
//! each.

#![allow(clippy::print_stdout)] // the table is the output

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::hint::black_box;

use common::{Random, asked, median, medians, seconds};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};
use half::f16;
use tensorslim::calibration::Accumulation;
use tensorslim::{Calibration, CalibrationOptions, Element, Matrix, Rank, Scalar, TruncatedSvd, quality};

/// Normals, mixed with their neighbours to `memory` so that the moments have a spectrum.
fn samples<E: Element>(rows: usize, n: usize, memory: f64, seed: u64) -> Matrix<E> {
    let mut random = Random(seed);
    let mut before = 0.0;
    Matrix::from_fn(rows, n, |_, j| {
        let normal = random.normal();
        before = if j == 0 { normal } else { memory * before + normal };
        E::from_f64(before)
    })
}

fn syrk<T: Scalar>(x: MatRef<'_, T>, g: &mut Mat<T>, par: Par) {
    let full = BlockStructure::Rectangular;
    let lower = BlockStructure::TriangularLower;
    triangular::matmul(g.as_mut(), lower, Accum::Replace, x.transpose(), full, x, full, T::one(), par);
}

fn update(rows: usize, n: usize, rounds: usize, par: Par) {
    let x = samples::<f16>(rows, n, 0.9, 1);
    let wide = Matrix::<f64>::from_fn(rows, n, |i, j| x.row(i)[j].to_f64());
    let single = Matrix::<f32>::from_fn(rows, n, |i, j| x.row(i)[j].to_f32());
    let (mut g64, mut g32) = (Mat::<f64>::zeros(n, n), Mat::<f32>::zeros(n, n));
    let run = |accumulation| {
        let options = CalibrationOptions { accumulation, ..Default::default() };
        let mut c = Calibration::with(n, options).expect("a small size");
        c.update(&x.as_tensor().expect("not empty")).expect("finite samples");
        c
    };
    syrk(wide.as_ref(), &mut g64, par);
    for (accumulation, bound) in [(Accumulation::F64, 1e-12), (Accumulation::F32, 1e-6)] {
        let g = run(accumulation).gram();
        let error = (0..n).flat_map(|j| (j..n).map(move |i| (i, j)));
        let error = error.map(|(i, j)| (g.row(i)[j] - g64[(i, j)]).abs() / (g64[(i, i)] * g64[(j, j)]).sqrt());
        let error = error.fold(0.0, f64::max);
        assert!(error < bound, "{accumulation:?}: {error}");
    }
    // The second update and later ones: the memory is there.
    let (mut double, mut fast) = (run(Accumulation::F64), run(Accumulation::F32));
    let x = x.as_tensor().expect("not empty");
    let times = medians(
        rounds,
        &mut [
            &mut || syrk(wide.as_ref(), &mut g64, par),
            &mut || double.update(&x).expect("finite samples"),
            &mut || syrk(single.as_ref(), &mut g32, par),
            &mut || fast.update(&x).expect("finite samples"),
        ],
    );
    let flops = rows as f64 * (n as f64).powi(2);
    let rate = |seconds: f64| flops / seconds / 1e9;
    println!("update of {rows} samples × {n} features, f16; rates in GFLOP/s of the nominal N n²");
    println!("  f64 syrk {:7.1}   update {:7.1} = {:.2} of it", rate(times[0]), rate(times[1]), times[0] / times[1]);
    println!("  f32 syrk {:7.1}   update {:7.1} = {:.2} of it", rate(times[2]), rate(times[3]), times[2] / times[3]);
}

fn whitened(m: usize, n: usize, k: usize, rounds: usize) {
    let w = samples::<f32>(m, n, 0.3, 2);
    let x = samples::<f32>(2 * n, n, 0.9, 3);
    let mut c = Calibration::new(n).expect("a small size");
    c.update(&x.as_tensor().expect("not empty")).expect("finite samples");
    let w = w.as_tensor().expect("not empty");
    let plain = TruncatedSvd::new(Rank::Fixed(k));
    let weighed = plain.clone().calibration(&c);
    let factor = |svd: &TruncatedSvd| svd.factor::<f32>(w.clone()).expect("a finite weight");
    let loss = |f| quality::expected(&w, f, &c).expect("shapes agree").relative_error;
    let (first, after) = (factor(&plain), factor(&weighed));
    let (before, loss_after) = (loss(&first), loss(&after));
    assert!(loss_after <= before, "whitening lost: {before} -> {loss_after}");
    // Statistics that no weight has used yet have no root; made beforehand, and kept, so that neither is timed.
    let bytes = c.to_bytes();
    let unused = |_| plain.clone().calibration(&Calibration::from_bytes(&bytes).expect("what was written"));
    let fresh: Vec<_> = (0..rounds).map(unused).collect();
    let mut times = [const { Vec::new() }; 3];
    for fresh in &fresh {
        for (svd, times) in [&plain, &weighed, fresh].into_iter().zip(&mut times) {
            times.push(seconds(|| drop(black_box(factor(svd)))));
        }
    }
    let times = times.map(|mut times| median(&mut times));
    println!(
        "{m} × {n}, k = {k}: plain {:6.2} ms, whitened {:6.2} ms = {:.2}×, {:.2}× with statistics used for the first time; output error \
         {before:.4} -> {loss_after:.4} ({})",
        times[0] * 1e3,
        times[1] * 1e3,
        times[1] / times[0],
        times[2] / times[0],
        after.report().notes.first().unwrap_or(&after.report().reason),
    );
}

/// A matrix of `tests/data`.
fn real(name: &str, m: usize, n: usize) -> Matrix<f16> {
    let path = format!("{}/tests/data/{name}.npy", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).expect("the file is part of the repository");
    let body = &bytes[bytes.len() - 2 * m * n..];
    let values = body.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
    Matrix::from_vec(values, m, n).expect("the shape is that of the file")
}

fn by_quality(rounds: usize) {
    let (w, x, held) =
        (real("ffn_up", 1536, 384), real("ffn_up_calibration", 1024, 384), real("ffn_up_heldout", 512, 384));
    let statistics = |x: &Matrix<f16>| {
        let mut c = Calibration::new(x.ncols()).expect("a small size");
        c.update(&x.as_tensor().expect("not empty")).expect("finite samples");
        c
    };
    let (c, h) = (statistics(&x), statistics(&held));
    let w = w.as_tensor().expect("not empty");
    let searched = TruncatedSvd::new(Rank::Quality(0.98)).calibration(&c).quality_on(&h);
    let factor = |svd: &TruncatedSvd| svd.factor::<f32>(w.clone()).expect("a finite weight");
    let k = factor(&searched).rank();
    let known = TruncatedSvd::new(Rank::Fixed(k)).calibration(&c);
    let times = medians(rounds, &mut [&mut || drop(factor(&known)), &mut || drop(factor(&searched))]);
    println!(
        "ffn_up, quality 0.98 on heldout: rank {k} in {:.2} ms, {:.2}× the factorization at that rank ({:.2} ms)",
        times[1] * 1e3,
        times[1] / times[0],
        times[0] * 1e3
    );
}

fn main() {
    let threads = rayon::current_num_threads();
    let par = if threads == 1 { Par::Seq } else { Par::rayon(threads) };
    if asked("--test") {
        update(300, 700, 1, par);
        whitened(384, 96, 24, 1);
        by_quality(1);
        return;
    }
    let all = !["factor", "quality", "update"].into_iter().any(asked);
    if all || asked("factor") {
        whitened(3072, 768, 192, 15);
        whitened(768, 3072, 192, 7);
    }
    if all || asked("quality") {
        by_quality(15);
    }
    if all || asked("update") {
        update(4096, 4096, 3, par);
    }
}
