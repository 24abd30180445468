//! Every public kernel that has no bench of its own, against a floor of the same access pattern in the same run.
//!
//! ```text
//! cargo bench --features npy --bench kernels                the table, worst ratio last, and benches/record/kernels.csv
//! cargo bench --features npy --bench kernels -- --test      one round of each line on small shapes, with its check
//! ```
//! A line checks its result, then runs kernel and floor by turns and prints the ratio of the medians. The floor is what
//! nobody can do without: the products of those shapes by faer's GEMM, or a copy of those bytes, into new memory where
//! the kernel returns new memory. Transforms, rotations, sketches, bases and drivers have tables of their own: `fwht`,
//! `sketch`, `qr`, `svd`, `whiten`.

#![allow(clippy::print_stdout, reason = "the ratios are what it is for")]

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::hint::black_box;
use std::io::Write;

use common::{Random, asked, medians};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};
use half::bf16;
use tensorslim::qr::{householder, tsqr};
use tensorslim::rank::{Budget, Layer, allocate};
use tensorslim::{Calibration, DType, Factors, Matrix, Rank, Split, TensorRef, TruncatedSvd, npy, quality};

/// A kernel and its floor, by turns.
struct Line {
    kernel: String,
    floor: &'static str,
    seconds: [f64; 2],
}

/// The table that is being made.
struct Table {
    rounds: usize,
    lines: Vec<Line>,
}

impl Table {
    /// Measures `ours` against `floor`.
    fn line(&mut self, kernel: String, floor: &'static str, mut ours: impl FnMut(), mut least: impl FnMut()) {
        if self.rounds > 1 {
            ours();
            least();
        }
        let times = medians(self.rounds, &mut [&mut ours, &mut least]);
        self.lines.push(Line { kernel, floor, seconds: [times[0], times[1]] });
    }
}

fn noise(m: usize, n: usize) -> Matrix<f32> {
    let mut random = Random(7);
    Matrix::from_fn(m, n, |_, _| random.centred())
}

/// Computes `a b` into new memory, row-major.
fn product(a: MatRef<'_, f32>, b: MatRef<'_, f32>, par: Par) -> Matrix<f32> {
    let mut c = Matrix::zeros(a.nrows(), b.ncols());
    matmul(c.as_mut(), Accum::Replace, a, b, 1.0, par);
    c
}

/// The largest difference of two matrices, over the largest entry of the second.
fn difference(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let largest = b.norm_max();
    (a - b).norm_max() / largest
}

fn factors(m: usize, n: usize, k: usize) -> (Matrix<f32>, Factors<f32>) {
    let w = noise(m, n);
    let f = TruncatedSvd::new(Rank::Fixed(k)).factor::<f32>(w.as_tensor().expect("not empty")).expect("a matrix");
    (w, f)
}

/// What is done with factors: apply, reconstruct, split, truncate, pivot, compare.
fn uses(table: &mut Table, (m, n, k): (usize, usize, usize), samples: usize, par: Par) {
    let (w, f) = factors(m, n, k);
    let x = noise(samples, n);
    let tensor = x.as_tensor().expect("not empty");
    let shape = format!("{m}×{n}, k = {k}");
    let (up, down) = f.split(Split::Left);
    let through = |x: MatRef<'_, f32>| {
        let c = product(x, down.as_ref().transpose(), par);
        product(c.as_ref(), up.as_ref().transpose(), par)
    };
    let exact = through(x.as_ref());
    let y = f.apply(&tensor).expect("shapes agree");
    assert!(difference(y.as_ref(), exact.as_ref()) < 1e-4);
    let name = |what: &str| format!("{what}, {shape}");
    table.line(
        name(&format!("Factors::apply, {samples} samples")),
        "its two products",
        || _ = black_box(f.apply(&tensor)),
        || _ = black_box(through(x.as_ref())),
    );
    let half: Vec<bf16> = x.as_slice().iter().map(|&x| bf16::from_f32(x)).collect();
    let half_tensor = TensorRef::new(&half, &[samples, n]).expect("not empty");
    table.line(
        name(&format!("Factors::apply, {samples} samples of bf16")),
        "its two products",
        || _ = black_box(f.apply(&half_tensor)),
        || _ = black_box(through(x.as_ref())),
    );

    let p = f.pivot().expect("orthonormal factors");
    let again = p.apply(&tensor).expect("shapes agree");
    assert!(difference(again.as_ref(), exact.as_ref()) < 1e-3);
    let pivoted = |x: MatRef<'_, f32>| {
        let c = product(x, p.rows().as_ref().transpose(), par);
        product(c.as_ref(), p.coefficients().as_ref().transpose(), par)
    };
    table.line(
        name(&format!("Pivoted::apply, {samples} samples")),
        "its two products",
        || _ = black_box(p.apply(&tensor)),
        || _ = black_box(pivoted(x.as_ref())),
    );
    let whole = product(up.as_ref(), down.as_ref(), par);
    assert!(difference(f.reconstruct().as_ref(), whole.as_ref()) < 1e-4);
    assert!(difference(p.reconstruct().as_ref(), whole.as_ref()) < 1e-3);
    table.line(
        name("Factors::reconstruct"),
        "the product",
        || _ = black_box(f.reconstruct()),
        || _ = black_box(product(up.as_ref(), down.as_ref(), par)),
    );
    table.line(
        name("Pivoted::reconstruct"),
        "the product",
        || _ = black_box(p.reconstruct()),
        || _ = black_box(product(up.as_ref(), down.as_ref(), par)),
    );
    let copies = || (up.as_slice().to_vec(), down.as_slice().to_vec());
    table.line(
        name("Factors::split"),
        "a copy",
        || _ = black_box(f.split(Split::Balanced)),
        || _ = black_box(copies()),
    );
    let kept = k / 2;
    assert_eq!(f.truncate(kept).expect("a rank below").rank(), kept);
    let cut = || (f.u().as_ref().subcols(0, kept).to_owned(), f.vt().as_slice()[..kept * n].to_vec());
    table.line(
        name("Factors::truncate to half"),
        "a copy",
        || _ = black_box(f.truncate(kept)),
        || _ = black_box(cut()),
    );
    // LAPACK's GEQP3 does half of its flops in matrix-vector products, in f64.
    let ut = Mat::<f64>::from_fn(k, m, |i, j| f64::from(f.u().row(j)[i]));
    let mut g = Mat::zeros(k, k);
    table.line(
        name("Factors::pivot"),
        "4 products of those flops in f64",
        || _ = black_box(f.pivot()),
        || (0..4).for_each(|_| matmul(g.as_mut(), Accum::Replace, ut.as_ref(), ut.transpose(), 1.0, Par::Seq)),
    );

    // The bytes of the larger factor, in a type that halves them.
    let bytes = up.to_bytes(DType::BF16);
    let rounded = up.as_slice().iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes());
    assert!(rounded.eq(bytes.iter().copied()));
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let source = vec![1u8; up.as_slice().len() * 4usize.max(dtype.size())];
        table.line(
            name(&format!("Matrix::to_bytes of U, {}", dtype.name())),
            "a copy of the larger side",
            || _ = black_box(up.to_bytes(dtype)),
            || _ = black_box(source.clone()),
        );
    }

    let tensor_w = w.as_tensor().expect("not empty");
    let agreement = quality::activation(&tensor_w, &f, &tensor).expect("shapes agree");
    assert!(agreement.cosine > 0.0 && agreement.cosine < 1.0);
    table.line(
        name(&format!("quality::activation, {samples} samples")),
        "the products with W, V, U",
        || _ = black_box(quality::activation(&tensor_w, &f, &tensor)),
        || {
            black_box(product(x.as_ref(), w.as_ref().transpose(), par));
            black_box(through(x.as_ref()));
        },
    );
    table.line(
        name(&format!("quality::distribution, {samples} samples")),
        "the products with W, V, U",
        || _ = black_box(quality::distribution(&tensor_w, &f, &tensor)),
        || {
            black_box(product(x.as_ref(), w.as_ref().transpose(), par));
            black_box(through(x.as_ref()));
        },
    );
}

/// Statistics: the SYRK of the samples in f64.
fn statistics(table: &mut Table, samples: usize, n: usize, par: Par) {
    let x = noise(samples, n);
    let tensor = x.as_tensor().expect("not empty");
    let wide = Mat::<f64>::from_fn(samples, n, |i, j| f64::from(x.row(i)[j]));
    let mut g = Mat::<f64>::zeros(n, n);
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    let mut c = Calibration::new(n).expect("features");
    c.update(&tensor).expect("finite samples");
    assert_eq!(c.samples(), samples as u64);
    table.line(
        format!("Calibration::update, {samples}×{n}"),
        "its SYRK in f64",
        || c.update(&tensor).expect("finite samples"),
        || triangular::matmul(g.as_mut(), lower, Accum::Add, wide.transpose(), full, wide.as_ref(), full, 1.0, par),
    );
    let bytes = c.to_bytes();
    assert_eq!(Calibration::from_bytes(&bytes).expect("its own bytes").samples(), c.samples());
    // A checksum and a copy each way.
    table.line(
        format!("Calibration::to_bytes, n = {n}"),
        "two copies",
        || _ = black_box(c.to_bytes()),
        || _ = black_box((bytes.clone(), bytes.clone())),
    );
}

/// Bases without a table of their own, against GEMM of as many flops.
fn bases(table: &mut Table, m: usize, l: usize, par: Par) {
    let start = noise(l, m);
    let start = MatRef::from_column_major_slice(start.as_slice(), m, l);
    let (mut y, mut r) = (start.to_owned(), Mat::<f32>::zeros(l, l));
    let mut c = Mat::<f32>::zeros(m, l);
    let small = start.subrows(0, l).to_owned();
    // Factor and form: 2 m l² flops each, which is two products with an l × l matrix.
    let mut two = || {
        for _ in 0..2 {
            matmul(c.as_mut(), Accum::Replace, start, small.as_ref(), 1.0, par);
        }
    };
    let mut buffer = MemBuffer::new(tsqr::tsqr_scratch::<f32>(m, l, par));
    tsqr::tsqr(y.as_mut(), r.as_mut(), par, MemStack::new(&mut buffer)).expect("tall");
    assert!(difference((&y * &r).as_ref(), start) < 1e-4);
    table.line(
        format!("qr::tsqr, {m}×{l}"),
        "GEMM of 4 m l² flops",
        || {
            y.copy_from(start);
            tsqr::tsqr(y.as_mut(), r.as_mut(), par, MemStack::new(&mut buffer)).expect("tall");
        },
        &mut two,
    );
    let block = 48.min(l);
    let mut t = Mat::<f32>::zeros(block, l);
    let scratch = householder::factor_scratch::<f32>(m, l, par).or(householder::form_q_scratch::<f32>(m, l, par));
    let mut buffer = MemBuffer::new(scratch);
    table.line(
        format!("qr::householder, {m}×{l}"),
        "GEMM of 4 m l² flops",
        || {
            y.copy_from(start);
            householder::factor(y.as_mut(), t.as_mut(), par, MemStack::new(&mut buffer));
            householder::form_q(y.as_mut(), t.as_ref(), par, MemStack::new(&mut buffer));
        },
        &mut two,
    );
    let gram = y.transpose() * &y;
    assert!((gram - Mat::<f32>::identity(l, l)).norm_max() < 1e-5);
}

/// Files in both orders, against reading their bytes.
fn files(table: &mut Table, m: usize, n: usize) {
    let w = noise(m, n);
    let folder = std::env::temp_dir().join(format!("tensorslim-kernels-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let (by_rows, by_columns) = (folder.join("rows.npy"), folder.join("columns.npy"));
    npy::write_matrix(&by_rows, &w, DType::F32).expect("a writable folder");
    let mut bytes = std::fs::read(&by_rows).expect("the file");
    let text = b"'fortran_order': False";
    let at = bytes.windows(text.len()).position(|x| x == text).expect("a header of NumPy's");
    bytes[at..at + text.len()].copy_from_slice(b"'fortran_order': True ");
    std::fs::write(&by_columns, &bytes).expect("a writable folder");
    assert_eq!(
        npy::Array::read(&by_rows).expect("its own file").bytes(),
        bytemuck::cast_slice::<f32, u8>(w.as_slice())
    );
    for (name, path) in [("C order", &by_rows), ("Fortran order", &by_columns)] {
        table.line(
            format!("npy::Array::read, {m}×{n}, {name}"),
            "reading the bytes",
            || _ = black_box(npy::Array::read(path).expect("the file")),
            || _ = black_box(std::fs::read(path).expect("the file")),
        );
    }
    table.line(
        format!("npy::Array::read_c_order, {m}×{n}, Fortran order"),
        "reading the bytes",
        || _ = black_box(npy::Array::read_c_order(&by_columns, None).expect("the file")),
        || _ = black_box(std::fs::read(&by_columns).expect("the file")),
    );
    std::fs::remove_dir_all(&folder).expect("its own folder");
}

/// The budget over the layers of a model, against sorting all of its singular values.
fn budget(table: &mut Table, layers: usize, order: usize) {
    let spectra: Vec<Vec<f64>> = (0..layers)
        .map(|i| (0..order).map(|j| (1.0 + j as f64).powf(-0.3 - i as f64 / layers as f64)).collect())
        .collect();
    let all = || -> Vec<Layer<'_>> {
        let layer = |s: &'_ Vec<f64>| s.iter().map(|s| s * s).sum::<f64>();
        spectra.iter().map(|s| Layer::new((4 * order, order), DType::F32, s, layer(s))).collect()
    };
    let limit = (layers * 4 * order * order / 3) as u64;
    let shares = allocate(&all(), Budget::parameters(limit)).expect("a budget");
    assert_eq!(shares.shares.len(), layers);
    table.line(
        format!("rank::allocate, {layers} layers of order {order}"),
        "sorting the singular values",
        || _ = black_box(allocate(&all(), Budget::parameters(limit))),
        || {
            let mut values: Vec<f64> = spectra.iter().flatten().copied().collect();
            values.sort_by(f64::total_cmp);
            black_box(values);
        },
    );
}

fn main() {
    let quick = asked("--test");
    let par = Par::rayon(0);
    let mut table = Table { rounds: if quick { 1 } else { 15 }, lines: Vec::new() };
    if quick {
        uses(&mut table, (96, 64, 8), 40, par);
        statistics(&mut table, 100, 48, par);
        bases(&mut table, 300, 20, par);
        files(&mut table, 40, 30);
        budget(&mut table, 4, 20);
    } else {
        uses(&mut table, (3072, 768, 192), 2048, par);
        uses(&mut table, (768, 3072, 96), 64, par);
        statistics(&mut table, 2048, 768, par);
        bases(&mut table, 4096, 266, par);
        files(&mut table, 4096, 1024);
        budget(&mut table, 72, 768);
    }
    table.lines.sort_by(|a, b| f64::total_cmp(&(a.seconds[0] / a.seconds[1]), &(b.seconds[0] / b.seconds[1])));
    println!("{:>9} {:>9} {:>6}  kernel; floor", "ms", "floor", "ratio");
    let mut csv = String::from("kernel;floor;ms;floor_ms;ratio\n");
    for Line { kernel, floor, seconds: [ours, least] } in &table.lines {
        let (ours, least) = (ours * 1e3, least * 1e3);
        println!("{ours:9.3} {least:9.3} {:6.2}  {kernel}; {floor}", ours / least);
        csv += &format!("{kernel};{floor};{ours:.4};{least:.4};{:.3}\n", ours / least);
    }
    if !quick {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/record/kernels.csv");
        std::fs::File::create(path).and_then(|mut file| file.write_all(csv.as_bytes())).expect("a writable record");
    }
}
