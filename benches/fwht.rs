//! The transforms against the floor: an in-place scaling of the same array, in the same run.
//!
//! `cargo bench --bench fwht` prints medians of interleaved rounds, writes `benches/record/fwht.csv`, then runs
//! criterion on a few lengths. Against `fht-cpu`: `benches/peers/fwht.py`.

#![allow(clippy::print_stdout)] // a report is its purpose

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::hint::black_box;
use std::io::Write;

use common::{asked, medians};
use criterion::{Criterion, Throughput};
use half::{bf16, f16};
use rayon::prelude::*;
use tensorslim::{Element, MatMut, Par, fwht, simd};

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
