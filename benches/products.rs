//! Products of a matrix with a panel, `A X` and `Aᵀ Y`, in f32 and from bf16, by rows and by columns.
//!
//! `cargo bench --bench products` prints medians of runs by turns (`-- --test` runs one small round): our speed, that
//! of one call of faer's GEMM of the same shape, their ratio, and what is left of the speed of a square GEMM of
//! 2048, which reads little for what it multiplies. For bf16 the GEMM gets a copy in f32 that was made before.

#![allow(clippy::print_stdout)] // the table is the output

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use common::{Random, asked, medians};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use half::bf16;
use tensorslim::operator::{Dense, LinearOperator};
use tensorslim::space::{Host, HostPanel};
use tensorslim::{Element, MatView};

fn random(m: usize, n: usize, seed: u64) -> Mat<f32> {
    let mut random = Random(seed);
    Mat::from_fn(m, n, |_, _| bf16::from_f32(random.centred()).to_f32())
}

/// A panel of the layout in which a product with the matrix reads or writes it.
fn panel(nrows: usize, ncols: usize, by_rows: bool, space: &Host) -> HostPanel<f32> {
    if by_rows { HostPanel::by_rows(nrows, ncols, space) } else { HostPanel::zeros(nrows, ncols, space) }
}

/// The largest difference of two matrices.
fn distance(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> f32 {
    (0..a.ncols()).flat_map(|j| (0..a.nrows()).map(move |i| (a[(i, j)] - b[(i, j)]).abs())).fold(0.0, f32::max)
}

fn compare<E: Element>((m, n): (usize, usize), by_rows: bool, widths: &[usize], rounds: usize, square: usize) {
    let par = Par::rayon(rayon::current_num_threads());
    let space = Host::new(par);
    let wide = random(m, n, 1);
    let flat = |i: usize| if by_rows { wide[(i / n, i % n)] } else { wide[(i % m, i / m)] };
    let single: Vec<f32> = (0..m * n).map(flat).collect();
    let stored: Vec<E> = single.iter().map(|&x| E::from_f64(f64::from(x))).collect();
    fn lay<E>(data: &[E], m: usize, n: usize, by_rows: bool) -> MatRef<'_, E> {
        if by_rows { MatRef::from_row_major_slice(data, m, n) } else { MatRef::from_column_major_slice(data, m, n) }
    }
    let view: MatView<'_> = E::view(lay(&stored, m, n, by_rows));
    let a = lay(&single, m, n, by_rows);
    let mut op = Dense::<f32>::new(view, par).expect("a finite matrix");
    let (p, q) = (random(square, square, 2), random(square, square, 3));
    let mut product = Mat::<f32>::zeros(square, square);
    for &l in widths {
        for adjoint in [false, true] {
            let (to, from) = if adjoint { (n, m) } else { (m, n) };
            // The long panel lies as the matrix does, the short one by columns.
            let mut x = panel(from, l, adjoint && by_rows, &space);
            x.as_mut().copy_from(random(from, l, 4));
            let mut y = panel(to, l, !adjoint && by_rows, &space);
            let mut theirs = panel(to, l, !adjoint && by_rows, &space);
            let a = if adjoint { a.transpose() } else { a };
            let mut ours = || match adjoint {
                true => op.apply_adjoint(&x, &mut y).expect("a product"),
                false => op.apply(&x, &mut y).expect("a product"),
            };
            let mut gemm = || matmul(theirs.as_mut(), Accum::Replace, a, x.as_ref(), 1.0, par);
            ours();
            gemm();
            let mut whole = || matmul(product.as_mut(), Accum::Replace, p.as_ref(), q.as_ref(), 1.0, par);
            let times = medians(rounds, &mut [&mut ours, &mut gemm, &mut whole]);
            // Both err by some n roundings of sums below n / 4.
            let off = distance(y.as_ref(), theirs.as_ref());
            assert!(off <= (from * from) as f32 * f32::EPSILON / 4.0, "{m}×{n} l = {l}: off by {off}");
            let speed = |flops: f64, time: f64| flops / time * 1e-9;
            let flops = 2.0 * (m * n * l) as f64;
            let (ours, gemm) = (speed(flops, times[0]), speed(flops, times[1]));
            let top = speed(2.0 * (square as f64).powi(3), times[2]);
            println!(
                "{} {m:4}×{n:<4} by {} l {l:3} {}  ours {ours:6.1} GF/s  GEMM {gemm:6.1}  ours/GEMM {:4.2}  \
                 of {square}³ {:4.2}",
                E::DTYPE,
                if by_rows { "rows   " } else { "columns" },
                if adjoint { "Aᵀ Y" } else { "A X " },
                ours / gemm,
                ours / top,
            );
        }
    }
}

fn main() {
    let test = asked("--test");
    let shapes: &[_] = if test { &[(300, 200)] } else { &[(4096, 4096), (3072, 768), (768, 3072)] };
    let widths: &[_] = if test { &[16, 33] } else { &[16, 32, 64, 74, 138, 202] };
    let (rounds, square) = if test { (1, 256) } else { (9, 2048) };
    for &shape in shapes {
        for by_rows in [true, false] {
            compare::<f32>(shape, by_rows, widths, rounds, square);
            compare::<bf16>(shape, by_rows, widths, rounds, square);
        }
    }
}
