//! Sketches against two floors of the same run: reading `A` once, and the bare GEMM with `Ω` given.
//!
//! ```text
//! cargo bench --bench sketch                 the table (interleaved medians), benches/record/sketch.csv, criterion
//! cargo bench --bench sketch -- table        the table alone
//! cargo bench --bench sketch -- --test       one run of each line, with its check
//! ```
//! Every line checks its product against `A · to_dense()` in f64 before it is timed.

#![allow(clippy::print_stdout, reason = "the ratios are what it is for")]

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::hint::black_box;
use std::io::Write;

use common::{asked, median, medians, seconds};
use criterion::{BenchmarkId, Criterion, Throughput};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use half::{bf16, f16};
use rayon::prelude::*;
use tensorslim::rng::{Philox, stream};
use tensorslim::sketch::{AnySketch, Sketch, SketchOperator, SparseSign};
use tensorslim::{Element, Scalar};

/// `(m, n, l)` of the shows.
const SHAPES: [(usize, usize, usize); 3] = [(4096, 4096, 266), (11008, 4096, 266), (3072, 768, 202)];

fn data<E: Element>(m: usize, n: usize) -> Vec<E> {
    let mut z = vec![0f32; m * n];
    Philox::new(1, stream::DATA).normals(0, &mut z);
    z.into_iter().map(|z| E::from_f64(f64::from(z))).collect()
}

/// The sum of all elements by threads over chunks: what reading `A` once costs.
fn read(a: &[f32]) -> f32 {
    a.par_chunks(1 << 18)
        .map(|a| {
            let mut sums = [0f32; 64];
            for x in a.chunks_exact(64) {
                sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
            }
            sums.iter().sum::<f32>()
        })
        .sum()
}

/// A few rows of `Y` against the definition.
fn check<E: Element, T: Scalar>(s: &AnySketch, a: MatRef<'_, E>, y: MatRef<'_, T>) {
    let omega = s.to_dense::<f64>();
    let (m, n, l) = (a.nrows(), a.ncols(), y.ncols());
    for i in [0, m / 2, m - 1] {
        let row = Mat::from_fn(1, n, |_, j| a[(i, j)].to_f64());
        let exact = &row * &omega;
        let bound = (n as f64 + 12.0) * T::EPSILON * row.norm_l1() * 4.0;
        for j in 0..l {
            let error = (y[(i, j)].to_f64() - exact[(0, j)]).abs();
            assert!(error <= bound, "{s:?} row {i}: error {error:e} > {bound:e}");
        }
    }
}

type Case<'a> = (String, Box<dyn FnMut() + 'a>);

/// Medians of interleaved runs after one to warm up, in milliseconds.
fn milliseconds(cases: &mut [Case<'_>], runs: usize) -> Vec<f64> {
    if runs > 1 {
        cases.iter_mut().for_each(|(_, f)| f());
    }
    let mut jobs: Vec<&mut dyn FnMut()> = cases.iter_mut().map(|(_, f)| &mut **f as &mut dyn FnMut()).collect();
    medians(runs, &mut jobs).into_iter().map(|seconds| seconds * 1e3).collect()
}

fn sketch_case<'a, E: Element>(
    name: &str,
    s: &'a AnySketch,
    a: MatRef<'a, E>,
    y: &'a mut Vec<f32>,
    columns: bool,
) -> Case<'a> {
    let (m, l) = (a.nrows(), s.ncols());
    *y = vec![f32::NAN; m * l];
    let mut y =
        if columns { MatMut::from_column_major_slice_mut(y, m, l) } else { MatMut::from_row_major_slice_mut(y, m, l) };
    s.apply(a, y.as_mut(), Par::rayon(0)).expect("shapes agree");
    check(s, a, y.as_ref());
    (name.to_string(), Box::new(move || s.apply(a, y.as_mut(), Par::rayon(0)).expect("shapes agree")))
}

fn table(runs: usize, shapes: &[(usize, usize, usize)]) -> Vec<String> {
    let mut csv = vec!["m,n,l,case,ms,over_read,over_gemm,gaussian_over".to_string()];
    for &(m, n, l) in shapes {
        let a: Vec<f32> = data(m, n);
        let (a16, ab16): (Vec<f16>, Vec<bf16>) = (data(m, n), data(m, n));
        let av = MatRef::from_row_major_slice(&a, m, n);
        let av16 = MatRef::from_row_major_slice(&a16, m, n);
        let avb16 = MatRef::from_row_major_slice(&ab16, m, n);
        // The transposed problem: a column-major n×m matrix is the transpose of a row-major one.
        let at = MatRef::from_column_major_slice(&a, m, n);
        let at16 = MatRef::from_column_major_slice(&a16, m, n);
        let make = |kind| AnySketch::new(kind, n, l, 1, 0).expect("valid sizes");
        let kinds = [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign];
        let sketches = kinds.map(make);
        let stack = AnySketch::SparseSign(SparseSign::stacked(n, l, 4, 1).expect("valid sizes"));
        let omega = sketches[0].to_dense::<f32>();
        let mut product = Mat::<f32>::zeros(m, l);
        let mut ys: Vec<Vec<f32>> = (0..24).map(|_| Vec::new()).collect();
        let mut ys = ys.iter_mut();
        let mut y = || ys.next().expect("enough outputs");
        let mut cases: Vec<Case<'_>> = vec![
            ("read A".into(), Box::new(|| _ = black_box(read(&a)))),
            (
                "gemm, Ω given".into(),
                Box::new(|| matmul(product.as_mut(), Accum::Replace, av, omega.as_ref(), 1.0, Par::rayon(0))),
            ),
        ];
        cases.push(sketch_case("gaussian", &sketches[0], av, y(), true));
        for (s, name) in sketches.iter().zip(kinds.map(Sketch::name)) {
            if name != "gaussian" {
                cases.push(sketch_case(name, s, av, y(), true));
            }
            cases.push(sketch_case(&format!("{name}, Y by rows"), s, av, y(), false));
            cases.push(sketch_case(&format!("{name} f16"), s, av16, y(), true));
            cases.push(sketch_case(&format!("{name} bf16"), s, avb16, y(), true));
            cases.push(sketch_case(&format!("{name}, A by columns"), s, at, y(), true));
            cases.push(sketch_case(&format!("{name} f16, A by columns"), s, at16, y(), true));
        }
        cases.push(sketch_case("sparse-stack (4)", &stack, av, y(), true));
        let ms = milliseconds(&mut cases, runs);
        println!(
            "\n{m}x{n}, l = {l}, {} threads            ms   /read   /gemm  gaussian/",
            rayon::current_num_threads()
        );
        for ((name, _), &t) in cases.iter().zip(&ms) {
            println!("{name:<32} {t:8.3} {:7.2} {:7.3} {:7.2}", t / ms[0], t / ms[1], ms[2] / t);
            csv.push(format!("{m},{n},{l},\"{name}\",{t:.4},{:.3},{:.4},{:.3}", t / ms[0], t / ms[1], ms[2] / t));
        }
        for s in &sketches {
            let full = 4 * n * l;
            println!("state: {} bytes, {}x smaller than {n}x{l} f32", s.state_bytes(), full / s.state_bytes());
        }
    }
    csv
}

/// Normals of one thread, in ns each.
fn normals() {
    let mut planes = [[0f32; 2048]; 4];
    let mut times = Vec::new();
    for first in 0..200u64 {
        let [a, b, c, d] = &mut planes;
        times.push(seconds(|| Philox::new(1, stream::DATA).normal_planes(first << 20, 1.0, [a, b, c, d])));
        black_box(&planes);
    }
    println!("normals, one thread: {:.3} ns each", median(&mut times) * 1e9 / (4.0 * 2048.0));
}

fn main() {
    let test = asked("--test");
    let only_table = asked("table");
    normals();
    if test {
        table(1, &[(300, 700, 40)]);
    } else {
        let csv = table(15, &SHAPES);
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record");
        std::fs::create_dir_all(&path).expect("the checkout is writable");
        let mut file = std::fs::File::create(path.join("sketch.csv")).expect("the checkout is writable");
        csv.iter().for_each(|line| writeln!(file, "{line}").expect("the checkout is writable"));
    }
    if only_table {
        return;
    }
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("sketch 1024x1024 l=138");
    let (m, n, l) = (1024, 1024, 138);
    let a: Vec<f32> = data(m, n);
    let a = MatRef::from_row_major_slice(&a, m, n);
    group.throughput(Throughput::Bytes(4 * (m * n) as u64));
    for kind in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
        let s = AnySketch::new(kind, n, l, 1, 0).expect("valid sizes");
        let mut y = Mat::<f32>::zeros(m, l);
        group.bench_function(BenchmarkId::from_parameter(kind), |b| {
            b.iter(|| s.apply(a, y.as_mut(), Par::rayon(0)).expect("shapes agree"));
        });
    }
    group.finish();
}
