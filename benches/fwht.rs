//! The transforms against the floor: an in-place scaling of the same array, in the same run. Orthonormal transforms and
//! rotations against their floor, the plain transforms of the same array, and against a dense rotation by GEMM.
//!
//! `cargo bench --bench fwht` prints medians of interleaved rounds, writes `benches/record/fwht.csv`, then runs
//! criterion on a few lengths; `-- edges` stops after orthonormal transforms and rotations. Against `fht-cpu`:
//! `benches/peers/fwht.py`.

#![allow(clippy::print_stdout)] // a report is its purpose

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::hint::black_box;
use std::io::Write;

use common::{asked, medians};
use criterion::{Criterion, Throughput};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat};
use half::{bf16, f16};
use rayon::prelude::*;
use tensorslim::rotation::{Rotation, Scheme};
use tensorslim::{Element, MatMut, Par, TensorMut, Threads, fwht, simd};

/// `x <- x` on all threads: reads and writes every element once.
fn scale<E: Element + std::ops::Mul<Output = E>>(x: &mut [E], one: E) {
    x.par_chunks_mut(1 << 16).for_each(|x| x.iter_mut().for_each(|x| *x = *x * one));
}

/// Before timing: the unit vector `e_1` of row 0 transforms to column 1 of `H`, in rows and then, as the outer product
/// with column 0, in columns.
fn check<E: Element>(m: usize, n: usize) {
    let column = |n: usize, j: usize, i: usize| {
        let order = fwht::Order::new(n).unwrap();
        let h = 1 << order.log2();
        if order.base() == 1 {
            return if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        }
        let base = order.base_matrix();
        base.row(i / h)[j / h] * if ((i % h) & (j % h)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
    };
    let mut x = vec![E::from_f64(0.0); m * n];
    x[1] = E::from_f64(1.0);
    let want: Vec<f64> = (0..n).map(|i| column(n, 1, i)).collect();
    fwht::fwht_rows(MatMut::from_row_major_slice_mut(&mut x, m, n), Par::rayon(0)).unwrap();
    assert!((0..m * n).all(|i| x[i].to_f64() == if i < n { want[i] } else { 0.0 }), "rows of {n}");
    fwht::fwht_columns(MatMut::from_row_major_slice_mut(&mut x, m, n), Par::rayon(0)).unwrap();
    let first: Vec<f64> = (0..m).map(|i| column(m, 0, i)).collect();
    assert!((0..m * n).all(|i| x[i].to_f64() == first[i / n] * want[i % n]), "columns of {m}");
}

/// Rows and columns of a square matrix on all threads, over a scaling of the same f32 matrix.
fn matrices(n: usize, rounds: usize, csv: &mut impl Write) {
    check::<f32>(n, n);
    check::<f16>(n, n);
    let mut floor = vec![0f32; n * n];
    let (mut a, mut h, mut b) = (vec![0f32; n * n], vec![f16::ZERO; n * n], vec![bf16::ZERO; n * n]);
    fn rows<E: Element>(x: &mut [E], n: usize) {
        fwht::fwht_rows(MatMut::from_row_major_slice_mut(x, n, n), Par::rayon(0)).unwrap();
    }
    let mut columns_of = vec![0f32; n * n];
    let one = black_box(1.0);
    let t = medians(
        rounds,
        &mut [
            &mut || scale(&mut floor, one),
            &mut || rows(&mut a, n),
            &mut || fwht::fwht_columns(MatMut::from_row_major_slice_mut(&mut columns_of, n, n), Par::rayon(0)).unwrap(),
            &mut || rows(&mut h, n),
            &mut || rows(&mut b, n),
        ],
    );
    println!("{n}×{n} in place, {} threads", rayon::current_num_threads());
    for (name, t_i) in ["f32 scale", "f32 rows", "f32 columns", "f16 rows", "bf16 rows"].iter().zip(&t) {
        println!("  {name:12} {:8.3} ms  {:5.2} × scale", t_i * 1e3, t_i / t[0]);
        writeln!(csv, "{name},{n}x{n},{:.4},{:.3}", t_i * 1e3, t_i / t[0]).unwrap();
    }
}

/// One vector on one thread, over a scaling of the same vector.
fn vectors<E: Element + std::ops::Mul<Output = E>>(orders: &[usize], rounds: usize, csv: &mut impl Write) {
    println!("{} on {}: one thread, G additions/s (the base is not counted)", E::DTYPE, simd::isa());
    for &n in orders {
        let order = fwht::Order::new(n).unwrap();
        check::<E>(1, n);
        let (mut x, mut y) = (vec![E::from_f64(0.0); n], vec![E::from_f64(0.0); n]);
        let (one, reps) = (black_box(E::from_f64(1.0)), (1 << 20) / n + 1);
        let t = medians(
            rounds,
            &mut [&mut || (0..reps).for_each(|_| y.iter_mut().for_each(|y| *y = *y * one)), &mut || {
                (0..reps).for_each(|_| fwht::fwht(&mut x, Par::Seq).unwrap())
            }],
        );
        let additions = (reps * n) as f64 * order.log2() as f64;
        println!(
            "  {n:>9} {:7.1}  {:6.2} × scale  {}",
            additions / t[1] / 1e9,
            t[1] / t[0],
            fwht::plan::<E>(n).unwrap()
        );
        writeln!(csv, "{} vector,{n},{:.6},{:.3}", E::DTYPE, t[1] * 1e3 / reps as f64, t[1] / t[0]).unwrap();
    }
}

/// Before timing: the orthonormal transforms and the rotation of unit vector 1 are column 1 of `H` over `√n`, with
/// signs.
fn check_edges<E: Element>(m: usize, n: usize) {
    let unit = || {
        let mut x = vec![E::from_f64(0.0); m * n];
        x[1] = E::from_f64(1.0);
        x
    };
    let sized = |x: &[E], len: usize, what: &str| {
        let want = E::from_f64(1.0 / (len as f64).sqrt()).to_f64();
        let off = |x: &E| (x.to_f64().abs() - want).abs();
        assert!(x.iter().filter(|x| x.to_f64() != 0.0).all(|x| off(x) <= 1e-2 * want), "{what} {m}×{n}");
        assert_eq!(x.iter().filter(|x| x.to_f64() != 0.0).count(), len, "{what} {m}×{n}");
    };
    let (mut x, rotation) = (unit(), Rotation::new(n, 1, Scheme::Order).unwrap());
    fwht::orthonormal_rows(TensorMut::new(&mut x, m, n).unwrap(), Threads::Pool).unwrap();
    sized(&x, n, "orthonormal rows");
    let mut x = unit();
    fwht::orthonormal_columns(TensorMut::new(&mut x, m, n).unwrap(), Threads::Pool).unwrap();
    sized(&x, m, "orthonormal columns");
    let mut x = unit();
    rotation.apply_rows(TensorMut::new(&mut x, m, n).unwrap(), Threads::Pool).unwrap();
    sized(&x, n, "rotated rows");
    rotation.apply_rows_inverse(TensorMut::new(&mut x, m, n).unwrap(), Threads::Pool).unwrap();
    assert!((x[1].to_f64() - 1.0).abs() < 2e-2, "rotated back");
}

/// Orthonormal transforms and rotations of an `m × n` matrix, over the plain transforms of the same matrix.
fn edges<E: Element>(m: usize, n: usize, threads: Threads, rounds: usize, csv: &mut impl Write) {
    check_edges::<E>(m, n);
    let mut arrays: [Vec<E>; 6] = std::array::from_fn(|_| vec![E::from_f64(0.0); m * n]);
    let [a, b, c, d, e, f] = &mut arrays;
    let rotation = Rotation::new(n, 1, Scheme::Order).unwrap();
    fn view<E: Element>(x: &mut [E], m: usize, n: usize) -> TensorMut<'_, E> {
        TensorMut::new(x, m, n).unwrap()
    }
    let t = medians(
        rounds,
        &mut [
            &mut || fwht::fwht_rows(view(a, m, n), threads).unwrap(),
            &mut || fwht::orthonormal_rows(view(b, m, n), threads).unwrap(),
            &mut || rotation.apply_rows(view(c, m, n), threads).unwrap(),
            &mut || rotation.apply_rows_inverse(view(d, m, n), threads).unwrap(),
            &mut || fwht::fwht_columns(view(e, m, n), threads).unwrap(),
            &mut || fwht::orthonormal_columns(view(f, m, n), threads).unwrap(),
        ],
    );
    let (rows, columns) = (t[1] / t[0], t[5] / t[4]);
    let (there, back) = (t[2] / t[0], t[3] / t[0]);
    println!(
        "  {:4} {m}×{n} {threads:?}: orthonormal rows {rows:5.2}, columns {columns:5.2}; \
         rotation {there:5.2}, back {back:5.2} × plain",
        E::DTYPE
    );
    for (name, ms, ratio) in [
        ("orthonormal rows", t[1], rows),
        ("orthonormal columns", t[5], columns),
        ("rotation", t[2], there),
        ("rotation back", t[3], back),
    ] {
        writeln!(csv, "{} {name} {threads:?} over plain,{m}x{n},{:.4},{ratio:.3}", E::DTYPE, ms * 1e3).unwrap();
    }
}

/// Rotations of `m` rows by each scheme, over the plain transforms that they consist of, and against a dense rotation.
fn rotations(m: usize, n: usize, threads: Threads, rounds: usize, csv: &mut impl Write) {
    let w = 1 << n.ilog2();
    let [mut a, mut b, mut c, mut d, mut e]: [Vec<f32>; 5] = std::array::from_fn(|_| vec![0.0; m * n]);
    let order = Rotation::new(n, 1, Scheme::Order).unwrap();
    let blocks = Rotation::new(n, 1, Scheme::Blocks { len: None }).unwrap();
    let kac = Rotation::new(n, 1, Scheme::Kac).unwrap();
    let (x, q, mut y) = (Mat::<f32>::zeros(m, n), Mat::<f32>::zeros(n, n), Mat::<f32>::zeros(m, n));
    let par = if threads == Threads::One { Par::Seq } else { Par::rayon(0) };
    let t = medians(
        rounds,
        &mut [
            &mut || fwht::fwht_rows(TensorMut::new(&mut a, m, n).unwrap(), threads).unwrap(),
            &mut || order.apply_rows(TensorMut::new(&mut b, m, n).unwrap(), threads).unwrap(),
            &mut || blocks.apply_rows(TensorMut::new(&mut e, m, n).unwrap(), threads).unwrap(),
            &mut || {
                for first in [0, n - w, 0, n - w] {
                    let window = TensorMut::strided(&mut c[first..], m, w, n as isize, 1).unwrap();
                    fwht::fwht_rows(window, threads).unwrap();
                }
            },
            &mut || kac.apply_rows(TensorMut::new(&mut d, m, n).unwrap(), threads).unwrap(),
            &mut || matmul(&mut y, Accum::Replace, &x, &q, 1.0, par),
        ],
    );
    println!(
        "  f32  {m}×{n} {threads:?}: order {:5.2}, blocks {:5.2} × plain; Kac {:5.2} × its four; \
         dense {:6.1}, {:6.1} × order, Kac",
        t[1] / t[0],
        t[2] / t[0],
        t[4] / t[3],
        t[5] / t[1],
        t[5] / t[4]
    );
    for (name, i, floor) in [("order", 1, 0), ("blocks", 2, 0), ("kac", 4, 3), ("dense over order", 5, 1)] {
        writeln!(csv, "rotation {name} {threads:?},{m}x{n},{:.4},{:.3}", t[i] * 1e3, t[i] / t[floor]).unwrap();
    }
}

fn main() {
    let test = asked("--test");
    let mut csv: Box<dyn Write> = if test {
        Box::new(std::io::sink())
    } else {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/record/fwht.csv");
        Box::new(std::fs::File::create(path).expect("benches/record exists"))
    };
    writeln!(csv, "what,size,ms,over_scale").unwrap();
    let (n, top, rounds) = if test { (256, 12, 1) } else { (4096, 24, 15) };
    matrices(n, rounds, &mut csv);
    println!("scale and signs in the passes, over the plain transform");
    let shapes = if test { vec![(64, 128)] } else { vec![(4096, 4096), (65536, 128)] };
    for threads in [Threads::One, Threads::Pool] {
        for &(m, n) in &shapes {
            edges::<f32>(m, n, threads, rounds, &mut csv);
            edges::<f16>(m, n, threads, rounds, &mut csv);
            edges::<bf16>(m, n, threads, rounds, &mut csv);
            edges::<f64>(m, n, threads, rounds, &mut csv);
        }
        let samples = if test { 16 } else { 4096 };
        for n in [1024, 1536] {
            rotations(samples, n, threads, rounds, &mut csv);
        }
    }
    if asked("edges") {
        return;
    }
    let powers: Vec<usize> = (6..=top).step_by(2).map(|k| 1 << k).collect();
    vectors::<f32>(&powers, rounds, &mut csv);
    vectors::<f64>(&powers, rounds, &mut csv);
    vectors::<f32>(&[768, 1536, 3072, 3584, 5120, 14336], rounds, &mut csv);
    vectors::<f32>(&[1600, 4864, 9728, 10944, 11008, 13696, 17408, 18944, 19968, 25600, 29568], rounds, &mut csv);

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("fwht");
    for n in [1 << 8, 1 << 12, 3072] {
        let mut x = vec![0f32; n];
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(format!("f32/{n}"), |b| b.iter(|| fwht::fwht(&mut x, Par::Seq).unwrap()));
    }
    group.finish();
    criterion.final_summary();
}
