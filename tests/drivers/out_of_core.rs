//! Tiled and mapped runs against the same matrix in memory; passes, limits, errors.
#![cfg(feature = "npy")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common;
use faer::{Mat, MatRef};
use half::f16;
use tensorslim::calibration::Calibration;
use tensorslim::npy::{self, Array, Mapped, Stream};
use tensorslim::operator::{self, Cancel, LinearOperator, RowSource, Tiled, Watch};
use tensorslim::space::{HostPanel, Space};
use tensorslim::svd::Checkpoint;
use tensorslim::{
    DType, Element, Error, Factors, Matrix, Method, Par, Rank, Scalar, Sketch, TensorRef, TruncatedSvd, Whitening,
};

/// A directory of its own for each test, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tensorslim-ooc-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `σ_i = decay^i` on random directions, plus noise.
fn matrix(m: usize, n: usize, decay: f64, seed: u64) -> Matrix<f32> {
    let r = m.min(n).min(40);
    let mut random = common::Random(seed);
    let mut gauss = |rows: usize| Mat::<f64>::from_fn(rows, r, |_, _| random.normal() / (rows as f64).sqrt());
    let (u, v) = (gauss(m), gauss(n));
    let us = Mat::<f64>::from_fn(m, r, |i, j| u[(i, j)] * decay.powi(j as i32));
    let a = &us * v.transpose();
    Matrix::from_fn(m, n, |i, j| (a[(i, j)] + 1e-3 * random.normal() / ((m * n) as f64).sqrt()) as f32)
}

fn widen<T: Scalar>(a: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].to_f64())
}

/// Writes the elements column by column, as NumPy does in Fortran order.
fn write_fortran(path: &Path, a: &Matrix<f32>, dtype: DType) {
    let t = Matrix::<f32>::from_fn(a.ncols(), a.nrows(), |i, j| a.row(j)[i]);
    npy::write_matrix(path, &t, dtype).unwrap();
    let (mut bytes, (m, n)) = (fs::read(path).unwrap(), (a.nrows(), a.ncols()));
    let text = format!("'fortran_order': True, 'shape': ({m}, {n}), }}");
    let start = bytes.windows(16).position(|w| w == b"'fortran_order':").unwrap();
    let end = bytes.iter().position(|&b| b == b'\n').unwrap();
    bytes[start..end].fill(b' ');
    bytes[start..start + text.len()].copy_from_slice(text.as_bytes());
    fs::write(path, bytes).unwrap();
}

/// `‖P − P'‖_F` of the projectors on the spans of the orthonormal columns, through f64.
fn projector_distance<T: Scalar>(a: &Matrix<T>, b: &Matrix<T>) -> f64 {
    let (a, b) = (widen(a.as_ref()), widen(b.as_ref()));
    // ‖AAᵀ − BBᵀ‖² = ‖(I − BBᵀ)A‖² + ‖(I − AAᵀ)B‖²; the difference of norms would lose the digits.
    let rest = |a: &Mat<f64>, b: &Mat<f64>| (a - b * (b.transpose() * a)).norm_l2();
    rest(&a, &b).hypot(rest(&b, &a))
}

fn assert_agree<T: Scalar>(what: &str, a: &Factors<T>, b: &Factors<T>, tolerance: f64) {
    assert_eq!(a.rank(), b.rank(), "{what}");
    for (i, (&x, &y)) in a.s().iter().zip(b.s()).enumerate() {
        let (x, y) = (Element::to_f64(x), Element::to_f64(y));
        assert!((x - y).abs() <= tolerance * y, "{what}: σ_{i} {x} against {y}");
    }
    let transposed = |f: &Factors<T>| Matrix::<T>::from_fn(f.vt().ncols(), f.rank(), |i, j| f.vt().row(j)[i]);
    let (left, right) = (projector_distance(a.u(), b.u()), projector_distance(&transposed(a), &transposed(b)));
    assert!(left <= tolerance && right <= tolerance, "{what}: projectors differ by {left:e}, {right:e}");
}

/// The spectrum is geometric with ratio 0.85 and σ_1 = 1, so the squares of σ_6 and σ_7 are 0.055 apart: an error of eps = 1.2e-7 in the
/// Gram matrix, or in a product, turns the subspace of the first six by at most 1.2e-7 / 0.055 = 2.2e-6. What iteration leaves undone is
/// the same in both runs.
#[test]
fn tiled_mapped_and_in_memory_agree() {
    let dir = Dir::new("agree");
    for (m, n) in [(700, 130), (130, 700), (300, 300)] {
        let a = matrix(m, n, 0.85, 3);
        for (dtype, fortran) in
            [(DType::F32, false), (DType::F32, true), (DType::F16, false), (DType::F16, true), (DType::F64, true)]
        {
            let path = dir.path("w.npy");
            if fortran {
                write_fortran(&path, &a, dtype)
            } else {
                npy::write_matrix(&path, &a, dtype).unwrap()
            }
            let (array, mapped) = (Array::read(&path).unwrap(), Mapped::open(&path, None).unwrap());
            assert_eq!(array.is_fortran(), fortran);
            for method in [Method::Full, Method::Gram, Method::Randomized] {
                for sketch in [Sketch::Srht, Sketch::Gaussian, Sketch::SparseSign] {
                    if method == Method::Full && sketch != Sketch::Srht {
                        continue;
                    }
                    let svd = TruncatedSvd::new(Rank::Fixed(6)).method(method).sketch(sketch).seed(7);
                    let what = format!("{m}×{n} {dtype} fortran {fortran} {method} {sketch}");
                    let memory = svd.factor::<f32>(array.tensor().unwrap()).unwrap();
                    let map = svd.factor::<f32>(mapped.tensor().unwrap()).unwrap();
                    assert_eq!(memory.u().as_slice(), map.u().as_slice(), "{what}: mapped is the same arithmetic");
                    let mut stream = Stream::open(&path, None).unwrap();
                    let tiled = svd.factor_rows::<f32>(&mut stream, &Watch::default()).unwrap();
                    assert_agree(&what, &tiled, &memory, 1e-5);
                    assert_eq!(tiled.report().shape, (m, n));
                    let (e, f) = (tiled.report().relative_error, memory.report().relative_error);
                    assert!((e - f).abs() <= 1e-3 * f + 1e-5, "{what}: {e} {f}");
                    // In 33 lines at a time; the operator is the tall one of the matrix and its transpose.
                    let mut op = Tiled::<f32>::new(&mut stream, 33, Par::Seq, Watch::default()).unwrap();
                    let tall = svd.factor_operator(&mut op).unwrap();
                    for (i, (x, y)) in tall.s().iter().zip(memory.s()).enumerate() {
                        assert!((x - y).abs() <= 1e-5 * y, "{what}: σ_{i} {x} against {y} in tiles");
                    }
                }
            }
        }
    }
}

/// The size at which a tile is a small part, within the least memory that is accepted.
#[test]
fn many_tiles_of_a_file_agree_with_memory() {
    let dir = Dir::new("many");
    let a = matrix(4096, 1024, 0.85, 3);
    let path = dir.path("w.npy");
    npy::write_matrix(&path, &a, DType::F32).unwrap();
    let mapped = Mapped::open(&path, None).unwrap();
    for method in [Method::Auto, Method::Gram, Method::Randomized] {
        let svd = TruncatedSvd::new(Rank::Fixed(6)).method(method);
        // A limit may leave another method than the fastest: the same one is compared.
        let limited = |svd: &TruncatedSvd, source: &mut Stream| {
            let least = match svd.clone().memory_limit(0).plan_rows::<f32>(source) {
                Err(Error::Memory { least, .. }) => least,
                other => panic!("{other:?}"),
            };
            let limited = svd.clone().memory_limit(least);
            assert!(limited.plan_rows::<f32>(source).unwrap().tile_lines <= 300);
            limited.factor_rows::<f32>(source, &Watch::default()).unwrap()
        };
        let mut stream = Stream::open(&path, None).unwrap();
        let tiled = limited(&svd, &mut stream);
        let svd = svd.method(tiled.report().method);
        let memory = svd.factor::<f32>(a.as_tensor().unwrap()).unwrap();
        let map = svd.factor::<f32>(mapped.tensor().unwrap()).unwrap();
        assert_eq!((map.u().as_slice(), map.s()), (memory.u().as_slice(), memory.s()), "mapped is the same arithmetic");
        assert_agree(&format!("{method} in tiles"), &tiled, &memory, 1e-5);
    }
}

/// Products of an operator cut into tiles of every awkward size, against f64.
#[test]
fn products_over_any_tiles_are_those_of_the_matrix() {
    let par = Par::Seq;
    for (m, n) in [(97, 31), (31, 97), (40, 40), (5, 1), (1, 5)] {
        let a = matrix(m, n, 0.9, 5);
        for column_major in [false, true] {
            let stored = if column_major { Matrix::from_fn(n, m, |i, j| a.row(j)[i]) } else { a.clone() };
            for lines in [1, 2, 13, 64, 1000] {
                let what = format!("{m}×{n}, columns {column_major}, {lines} lines");
                let mut source = Lines { data: stored.as_tensor().unwrap(), column_major };
                let mut op = Tiled::<f32>::new(&mut source, lines, par, Watch::default()).unwrap();
                let tall = if m >= n { widen(a.as_ref()) } else { widen(a.as_ref().transpose()) };
                let (rows, cols) = (m.max(n), m.min(n));
                assert_eq!(op.facts().shape, (rows, cols));
                assert!(op.facts().norm_squared.is_nan());
                let g = {
                    let gram = op.gram().unwrap();
                    widen(gram.panel().as_ref())
                };
                // Each entry is a sum of at most 97 products: n eps Σ|a||b| <= 97 eps ‖a_i‖‖a_j‖ <= 97 eps σ_1², σ_1 about 1.
                let near = |a: &Mat<f64>, b: &Mat<f64>, what: &str| {
                    let scale = b.norm_l2().max(1e-30);
                    assert!((a - b).norm_l2() <= 97.0 * f64::from(f32::EPSILON) * scale, "{what}");
                };
                near(&g, &(tall.transpose() * &tall), &format!("{what}: gram"));
                let norm = tall.squared_norm_l2();
                assert!((op.facts().norm_squared - norm).abs() <= 1e-12 * norm, "{what}: norm");
                let mut y = panel(&op, rows, cols);
                op.materialize(&mut y).unwrap();
                assert_eq!(widen(y.as_ref()), tall, "{what}: materialize");
                let mut x = panel(&op, cols, 3);
                x.as_mut().copy_from(Mat::<f32>::from_fn(cols, 3, |i, j| ((i * 3 + j) as f32).sin()).as_ref());
                let mut y = panel(&op, rows, 3);
                op.apply(&x, &mut y).unwrap();
                let (xf, yf) = (widen(x.as_ref()), widen(y.as_ref()));
                near(&yf, &(&tall * &xf), &format!("{what}: apply"));
                op.apply_adjoint(&y, &mut x).unwrap();
                near(&widen(x.as_ref()), &(tall.transpose() * &yf), &format!("{what}: adjoint"));
                assert_eq!(op.facts().passes, 4);
            }
        }
    }
}

/// A panel of zeros where those of the operator live.
fn panel(op: &Tiled<'_, f32>, nrows: usize, ncols: usize) -> HostPanel<f32> {
    HostPanel::zeros(nrows, ncols, op.space())
}

/// The same of halves, which are converted block by block: shapes that straddle the blocks, against f64.
#[test]
fn products_of_halves_over_any_tiles_are_those_of_the_matrix() {
    for (m, n) in [(1100, 530), (530, 1100), (1030, 2), (3, 700)] {
        let wide = matrix(m, n, 0.9, 5);
        let a = Matrix::<f16>::from_fn(m, n, |i, j| f16::from_f32(wide.row(i)[j]));
        for column_major in [false, true] {
            let stored = if column_major { Matrix::from_fn(n, m, |i, j| a.row(j)[i]) } else { a.clone() };
            for lines in [1, 130, 2000] {
                let what = format!("{m}×{n}, columns {column_major}, {lines} lines");
                let mut source = Lines { data: stored.as_tensor().unwrap(), column_major };
                let mut op = Tiled::<f32>::new(&mut source, lines, Par::rayon(0), Watch::default()).unwrap();
                let tall = Mat::<f64>::from_fn(m.max(n), m.min(n), |i, j| {
                    if m >= n { a.row(i)[j].to_f64() } else { a.row(j)[i].to_f64() }
                });
                let (mut x, mut y) = (panel(&op, m.min(n), 7), panel(&op, m.max(n), 7));
                x.as_mut().copy_from(Mat::<f32>::from_fn(m.min(n), 7, |i, j| ((i * 7 + j) as f32).sin()).as_ref());
                // What is there before is not to show.
                y.as_mut().fill(f32::NAN);
                op.apply(&x, &mut y).unwrap();
                // Sums of at most 1100 products: each within 1100 eps ‖a_i‖ ‖x_j‖.
                let near = |a: &Mat<f64>, b: &Mat<f64>, scale: f64, what: &str| {
                    assert!((a - b).norm_l2() <= 1100.0 * f64::from(f32::EPSILON) * scale, "{what}");
                };
                let (xf, yf) = (widen(x.as_ref()), widen(y.as_ref()));
                near(&yf, &(&tall * &xf), tall.norm_l2() * xf.norm_l2(), &format!("{what}: apply"));
                x.as_mut().fill(f32::NAN);
                op.apply_adjoint(&y, &mut x).unwrap();
                let scale = tall.norm_l2() * yf.norm_l2();
                near(&widen(x.as_ref()), &(tall.transpose() * &yf), scale, &format!("{what}: adjoint"));
                // By rows, as images are.
                let mut by_rows = op.space().panel(m.max(n), 7, op.facts().image).unwrap();
                op.apply_adjoint(&y, &mut x).unwrap();
                op.apply(&x, &mut by_rows).unwrap();
                op.apply(&x, &mut y).unwrap();
                let (a, b) = (widen(by_rows.as_ref()), widen(y.as_ref()));
                near(&a, &b, tall.norm_l2() * widen(x.as_ref()).norm_l2(), &format!("{what}: image"));
            }
        }
    }
}

/// A weight that is read in tiles loses as much of its outputs as one in memory: every whitening, rank rule and order.
#[test]
fn calibrated_in_tiles_is_calibrated_in_memory() {
    let (m, n) = (900, 120);
    let a = matrix(m, n, 0.9, 5);
    let mut random = common::Random(9);
    let scales: Vec<f64> = (0..n).map(|j| 0.97f64.powi(j as i32)).collect();
    let mut samples = |count: usize| Matrix::<f32>::from_fn(count, n, |_, j| (scales[j] * random.normal()) as f32);
    let statistics = |x: &Matrix<f32>| {
        let mut c = Calibration::new(n).unwrap();
        c.update(&x.as_tensor().unwrap()).unwrap();
        c
    };
    let (c, held) = (statistics(&samples(400)), statistics(&samples(300)));
    let base = |rank: Rank| TruncatedSvd::new(rank).calibration(&c).seed(4);
    let cases = [
        ("full", base(Rank::Fixed(9))),
        ("energy", base(Rank::Energy(0.9))),
        ("randomized", base(Rank::Fixed(9)).method(Method::Randomized)),
        ("blend", base(Rank::Fixed(9)).blend(0.7)),
        ("diagonal", base(Rank::Fixed(9)).whitening(Whitening::Diagonal)),
        ("quality", base(Rank::Quality(0.9))),
        ("quality elsewhere", base(Rank::Quality(0.9)).quality_on(&held)),
        ("plain quality", TruncatedSvd::new(Rank::Quality(0.9)).quality_on(&held)),
        // What the subtraction does not see.
        ("nothing lost", base(Rank::Fixed(119)).blend(0.9)),
    ];
    for column_major in [false, true] {
        let stored = if column_major { Matrix::from_fn(n, m, |i, j| a.row(j)[i]) } else { a.clone() };
        for (what, svd) in &cases {
            let what = format!("{what}, columns {column_major}");
            let mut source = Lines { data: stored.as_tensor().unwrap(), column_major };
            let least = match svd.clone().memory_limit(1).plan_rows::<f32>(&source) {
                Err(Error::Memory { least, .. }) => least,
                other => panic!("{what}: {other:?}"),
            };
            let limited = svd.clone().memory_limit(least);
            let tiled = limited.factor_rows::<f32>(&mut source, &Watch::default()).unwrap();
            // A limit may leave another method than the fastest: the same one is compared.
            let svd = svd.clone().method(tiled.report().method);
            let memory = svd.factor::<f32>(a.as_tensor().unwrap()).unwrap();
            assert_eq!((tiled.rank(), tiled.report().method), (memory.rank(), memory.report().method), "{what}");
            assert!(tiled.report().reason.ends_with("read in tiles"), "{what}");
            let (e, f) = (tiled.report().relative_error, memory.report().relative_error);
            assert!((e - f).abs() <= 1e-3 * f + 1e-5, "{what}: {e} {f}");
            if let Some(there) = &memory.report().activation {
                let here = tiled.report().activation.as_ref().unwrap();
                // Within the floor of a subtraction in f32, √(256 eps), where next to nothing is lost.
                let slack = if what.starts_with("nothing") { 5.6e-3 } else { 2e-3 * there.relative_error };
                let (e, f) = (here.relative_error, there.relative_error);
                assert!((e - f).abs() <= slack, "{what}: output error {e} against {f}");
                assert!((here.norm - there.norm).abs() <= 1e-5 * there.norm, "{what}");
                assert!(
                    !what.starts_with("nothing") || tiled.report().notes.iter().any(|n| n.contains("at most 5.5e-3"))
                );
            }
        }
        // The statistics of its inputs are larger than itself: it is read whole, or refused where that is too much.
        let wide = Matrix::<f32>::from_fn(20, n, |i, j| ((i * 7 + j * 3) % 11) as f32 - 5.0);
        let svd = base(Rank::Fixed(9));
        let read = svd.factor_rows::<f32>(&mut wide.as_tensor().unwrap(), &Watch::default()).unwrap();
        let memory = svd.factor::<f32>(wide.as_tensor().unwrap()).unwrap();
        assert_eq!((read.u(), read.s(), read.vt()), (memory.u(), memory.s(), memory.vt()));
        assert!(read.report().peak_bytes >= memory.report().peak_bytes + 4 * 20 * n);
        let least = read.report().peak_bytes;
        let refused = svd.memory_limit(least / 8).factor_rows::<f32>(&mut wide.as_tensor().unwrap(), &Watch::default());
        assert!(matches!(refused, Err(Error::Memory { .. })), "{refused:?}");
    }
}

/// Any number of threads, the same bits: the tile is fixed, the sums go in its order.
#[test]
fn bits_do_not_depend_on_threads() {
    let wide = matrix(2000, 700, 0.8, 11);
    let a = Matrix::<f16>::from_fn(2000, 700, |i, j| f16::from_f32(wide.row(i)[j]));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut source = a.as_tensor().unwrap();
            let svd = TruncatedSvd::new(Rank::Fixed(9)).method(Method::Randomized).memory_limit(7 << 20);
            svd.factor_rows::<f32>(&mut source, &Watch::default()).unwrap()
        })
    };
    let one = run(1);
    for threads in [2, 3] {
        let many = run(threads);
        assert_eq!(one.u().as_slice(), many.u().as_slice());
        assert_eq!((one.s(), one.vt().as_slice()), (many.s(), many.vt().as_slice()));
    }
}

/// Lines of a tensor in memory, counted.
struct Lines<'a> {
    data: TensorRef<'a>,
    column_major: bool,
}

impl RowSource for Lines<'_> {
    fn shape(&self) -> (usize, usize) {
        let (lines, width) = RowSource::shape(&self.data);
        if self.column_major { (width, lines) } else { (lines, width) }
    }

    fn dtype(&self) -> DType {
        self.data.dtype()
    }

    fn is_column_major(&self) -> bool {
        self.column_major
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> tensorslim::Result<()> {
        self.data.read_rows(first, dst)
    }
}

/// Every read counts: randomized 2q+2, gram G and A V, full one. The check rides along; only a rank that the spectrum decides needs
/// the norm first.
#[test]
fn passes_are_those_that_the_method_needs() {
    let a = matrix(400, 90, 0.8, 2);
    let cases = [
        (Rank::Fixed(5), Method::Randomized, 0, 2),
        (Rank::Fixed(5), Method::Randomized, 2, 6),
        (Rank::Fixed(5), Method::Gram, 2, 2),
        (Rank::Fixed(5), Method::Full, 2, 1),
        (Rank::Energy(0.9), Method::Gram, 2, 3),
    ];
    for (rank, method, q, passes) in cases {
        let read = AtomicU64::new(0);
        let count = |bytes| {
            read.fetch_add(bytes, Ordering::Relaxed);
        };
        let watch = Watch::new(Cancel::new()).on_read(&count);
        let svd = TruncatedSvd::new(rank).method(method).power_iterations(q);
        let f = svd.factor_rows::<f32>(&mut a.as_tensor().unwrap(), &watch).unwrap();
        assert_eq!(f.report().passes, passes, "{method} q {q}");
        assert_eq!(read.load(Ordering::Relaxed), (passes * 400 * 90 * 4) as u64, "{method} q {q}");
    }
}

/// Values whose squares leave f32: the first pass finds out, and is taken again with a power of two.
#[test]
fn extreme_values_are_scaled_at_the_cost_of_one_pass() {
    let a = matrix(120, 60, 0.7, 9);
    for exponent in [-60, 60] {
        let scaled = Matrix::<f64>::from_fn(120, 60, |i, j| f64::from(a.row(i)[j]) * 2f64.powi(exponent));
        let svd = TruncatedSvd::new(Rank::Fixed(6)).method(Method::Randomized).power_iterations(1);
        let memory = svd.factor::<f32>(scaled.as_tensor().unwrap()).unwrap();
        let tiled = svd.factor_rows::<f32>(&mut scaled.as_tensor().unwrap(), &Watch::default()).unwrap();
        assert_eq!(tiled.report().passes, 5);
        assert_agree("scaled", &tiled, &memory, 1e-5);
        assert!((tiled.report().norm - memory.report().norm).abs() <= 1e-12 * memory.report().norm);
    }
}

#[test]
fn a_value_that_is_not_finite_is_named_in_the_callers_rows_and_columns() {
    for (m, n) in [(50, 20), (20, 50)] {
        let mut a = matrix(m, n, 0.7, 9);
        a.as_mut_slice()[7 * n + 3] = f32::NAN;
        for column_major in [false, true] {
            for method in [Method::Randomized, Method::Gram] {
                let stored = if column_major { Matrix::from_fn(n, m, |i, j| a.row(j)[i]) } else { a.clone() };
                let mut source = Lines { data: stored.as_tensor().unwrap(), column_major };
                let svd = TruncatedSvd::new(Rank::Fixed(3)).method(method);
                let e = svd.factor_rows::<f32>(&mut source, &Watch::default()).unwrap_err();
                assert!(matches!(e, Error::NotFinite { row: 7, col: 3, value } if value.is_nan()), "{e}");
            }
        }
    }
}

/// The least limit that the error names does, and one byte less does not.
#[test]
fn a_limit_is_met_or_refused_with_the_least_that_would_do() {
    let a = matrix(6000, 1500, 0.9, 4);
    for method in [Method::Auto, Method::Randomized, Method::Gram, Method::Full] {
        let svd = TruncatedSvd::new(Rank::Fixed(20)).method(method);
        let source = a.as_tensor().unwrap();
        let Err(Error::Memory { limit: 1000, least }) = svd.clone().memory_limit(1000).plan_rows::<f32>(&source) else {
            panic!("{method}: 1000 bytes are not enough");
        };
        let plan = svd.clone().memory_limit(least).plan_rows::<f32>(&source).unwrap();
        assert!(plan.peak_bytes <= least, "{method}: {} > {least}", plan.peak_bytes);
        let short = svd.clone().memory_limit(least - 1).plan_rows::<f32>(&source);
        assert_eq!(short, Err(Error::Memory { limit: least - 1, least }), "{method}");
        // More memory, larger tiles, up to what is useful.
        let roomy = svd.memory_limit(1 << 40).plan_rows::<f32>(&source).unwrap();
        assert!(roomy.tile_lines >= plan.tile_lines && roomy.tile_bytes <= 3 << 25, "{method}: {roomy:?}");
    }
}

#[test]
fn an_order_to_stop_is_obeyed_at_the_next_tile() {
    let a = matrix(3000, 600, 0.9, 4);
    let cancel = Cancel::new();
    let tiles = AtomicU64::new(0);
    let stop = |_| {
        if tiles.fetch_add(1, Ordering::Relaxed) == 3 {
            cancel.cancel();
        }
    };
    let watch = Watch::new(cancel.clone()).on_read(&stop);
    let svd = TruncatedSvd::new(Rank::Fixed(20)).method(Method::Randomized);
    let mut source = a.as_tensor().unwrap();
    let least = match svd.clone().memory_limit(1).plan_rows::<f32>(&source) {
        Err(Error::Memory { least, .. }) => least,
        other => panic!("{other:?}"),
    };
    assert_eq!(svd.clone().memory_limit(least).factor_rows::<f32>(&mut source, &watch), Err(Error::Cancelled));
    assert_eq!(tiles.load(Ordering::Relaxed), 4);
    // In memory, before the next product.
    assert_eq!(svd.factor_watched::<f32>(source, &watch), Err(Error::Cancelled));
}

#[test]
fn a_file_cut_short_while_it_is_read_is_an_error() {
    let dir = Dir::new("cut");
    let path = dir.path("w.npy");
    npy::write_matrix(&path, &matrix(4000, 500, 0.9, 4), DType::F32).unwrap();
    let cut = |_| fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100_000).unwrap();
    let watch = Watch::default().on_read(&cut);
    let mut stream = Stream::open(&path, None).unwrap();
    let e = TruncatedSvd::new(Rank::Fixed(8)).factor_rows::<f32>(&mut stream, &watch).unwrap_err();
    let text = e.to_string();
    assert!(text.contains("w.npy") && text.contains("lost its end"), "{text}");
}

/// The same operator goes on after a read that failed.
#[test]
fn a_failed_pass_leaves_the_operator_usable() {
    struct Flaky<'a>(TensorRef<'a>, usize);
    impl RowSource for Flaky<'_> {
        fn shape(&self) -> (usize, usize) {
            RowSource::shape(&self.0)
        }
        fn dtype(&self) -> DType {
            self.0.dtype()
        }
        fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> tensorslim::Result<()> {
            self.1 += 1;
            if self.1 == 3 { Err(Error::NoConvergence { op: "a disk" }) } else { self.0.read_rows(first, dst) }
        }
    }
    let a = matrix(64, 16, 0.9, 4);
    let mut source = Flaky(a.as_tensor().unwrap(), 0);
    let mut op = Tiled::<f32>::new(&mut source, 8, Par::Seq, Watch::default()).unwrap();
    let mut y = panel(&op, 64, 16);
    assert_eq!(op.materialize(&mut y), Err(Error::NoConvergence { op: "a disk" }));
    op.materialize(&mut y).unwrap();
    assert_eq!(widen(y.as_ref()), widen(a.as_ref()));
}

/// A source that gives other elements in a later pass, finite or not, ends with an error and not with factors of a mixture.
#[test]
fn a_source_that_changes_between_passes_is_refused() {
    struct Changing<'a>(TensorRef<'a>, usize, f32);
    impl RowSource for Changing<'_> {
        fn shape(&self) -> (usize, usize) {
            RowSource::shape(&self.0)
        }
        fn dtype(&self) -> DType {
            self.0.dtype()
        }
        fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> tensorslim::Result<()> {
            self.1 += usize::from(first == 0);
            self.0.read_rows(first, dst)?;
            if self.1 >= 2 && first == 0 {
                dst[..4].copy_from_slice(&self.2.to_ne_bytes());
            }
            Ok(())
        }
    }
    let a = matrix(400, 60, 0.9, 4);
    for method in [Method::Gram, Method::Randomized, Method::Krylov] {
        let svd = TruncatedSvd::new(Rank::Fixed(8)).method(method);
        let factored = |value| {
            let mut source = Changing(a.as_tensor().unwrap(), 0, value);
            svd.factor_rows::<f32>(&mut source, &Watch::default())
        };
        assert!(factored(a.as_slice()[0]).is_ok());
        let nan = factored(f32::NAN).unwrap_err();
        assert!(matches!(nan, Error::NotFinite { row: 0, col: 0, .. }), "{method}: {nan}");
        let other = factored(7.0).unwrap_err();
        assert!(other.to_string().contains("the same elements in every pass"), "{method}: {other}");
    }
}

#[test]
fn bytes_of_a_tile_are_those_of_its_buffers() {
    let a = Matrix::<f16>::zeros(1000, 300);
    let source = a.as_tensor().unwrap();
    // Two read buffers of 10 lines, and a conversion buffer of the same lines in f32.
    assert_eq!(Tiled::<f32>::bytes(&source, 10), 2 * 10 * 300 * 2 + 10 * 300 * 4);
    assert_eq!(Tiled::<f32>::lines_for(&source, 0, 1 << 20), Err(2 * 1000 * 300 * 2 + 1000 * 300 * 4));
}

/// A single pass that is stopped anywhere goes on where it was saved, to the bits of one that went through; what is damaged, or of
/// another seed, starts anew and ends there too.
#[test]
fn a_single_pass_goes_on_where_it_was_stopped() {
    struct Kept(Mutex<Option<Vec<u8>>>, AtomicU64);
    impl Checkpoint for Kept {
        fn load(&self) -> Option<Vec<u8>> {
            self.0.lock().unwrap().clone()
        }
        fn save(&self, state: &[u8]) -> tensorslim::Result<()> {
            *self.0.lock().unwrap() = Some(state.to_vec());
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
    let a = matrix(9000, 700, 0.7, 8);
    for method in [Method::SinglePass, Method::Nystrom] {
        let svd = TruncatedSvd::new(Rank::Fixed(5)).oversample(5).method(method).seed(3);
        let source = || a.as_tensor().unwrap();
        let least = match svd.clone().memory_limit(1).plan_rows::<f32>(&source()) {
            Err(Error::Memory { least, .. }) => least,
            other => panic!("{other:?}"),
        };
        let svd = svd.memory_limit(least);
        let kept = Kept(Mutex::new(None), AtomicU64::new(0));
        let whole = svd.factor_rows_resumable::<f32>(&mut source(), &Watch::default(), &kept).unwrap();
        assert_eq!(whole.report().passes, 1);
        assert!(kept.1.load(Ordering::Relaxed) >= 1, "{method}: nothing was saved");
        let through = svd.factor_rows::<f32>(&mut source(), &Watch::default()).unwrap();
        for (x, y) in whole.s().iter().zip(through.s()) {
            assert!((x - y).abs() <= 1e-4 * y, "{method}: {x} {y}");
        }
        for stop in [1, 9, 20] {
            let kept = Kept(Mutex::new(None), AtomicU64::new(0));
            let (cancel, tiles, read) = (Cancel::new(), AtomicU64::new(0), AtomicU64::new(0));
            let count = |bytes| {
                read.fetch_add(bytes, Ordering::Relaxed);
                if tiles.fetch_add(1, Ordering::Relaxed) + 1 == stop {
                    cancel.cancel();
                }
            };
            let watch = Watch::new(cancel.clone()).on_read(&count);
            assert_eq!(svd.factor_rows_resumable::<f32>(&mut source(), &watch, &kept), Err(Error::Cancelled));
            let (before, saved) = (read.swap(0, Ordering::Relaxed), kept.1.load(Ordering::Relaxed));
            let again = Watch::default().on_read(&count);
            let f = svd.factor_rows_resumable::<f32>(&mut source(), &again, &kept).unwrap();
            assert_eq!(
                (f.u().as_slice(), f.s(), f.vt().as_slice()),
                (whole.u().as_slice(), whole.s(), whole.vt().as_slice())
            );
            // What was saved is not read again.
            let (now, all) = (read.load(Ordering::Relaxed), 9000 * 700 * 4);
            assert!(if saved > 0 { now < all } else { now == all }, "{method}, stopped at {stop}: {before} then {now}");
        }
        let mut state = kept.load().unwrap();
        let other = svd.clone().seed(4).factor_rows_resumable::<f32>(&mut source(), &Watch::default(), &kept).unwrap();
        assert_ne!(other.u().as_slice(), whole.u().as_slice());
        for at in [0, 13, 40, state.len() / 2, state.len() - 1] {
            state[at] ^= 1;
            let damaged = Kept(Mutex::new(Some(state.clone())), AtomicU64::new(0));
            let f = svd.factor_rows_resumable::<f32>(&mut source(), &Watch::default(), &damaged).unwrap();
            assert_eq!(f.s(), whole.s());
            state[at] ^= 1;
        }
    }
}

/// Calibration statistics from a file that is read in blocks are those of the whole, and go on from their bytes.
#[test]
fn calibration_in_blocks_is_calibration() {
    let dir = Dir::new("calibration");
    let path = dir.path("x.npy");
    let x = matrix(3000, 40, 0.9, 6);
    npy::write_matrix(&path, &x, DType::F16).unwrap();
    let mut whole = Calibration::new(40).unwrap();
    whole.update(&Array::read(&path).unwrap().tensor().unwrap()).unwrap();
    let mut blocks = Calibration::new(40).unwrap();
    let mut source = Stream::open(&path, None).unwrap();
    let stopped = operator::stream(&mut source, 0, 10_000, &Watch::default(), |first, rows| {
        if first > 1000 { Err(Error::Cancelled) } else { blocks.update(&rows) }
    });
    assert_eq!(stopped, Err(Error::Cancelled));
    let mut blocks = Calibration::from_bytes(&blocks.to_bytes()).unwrap();
    let from = blocks.samples() as usize;
    assert!((1000..2000).contains(&from));
    operator::stream(&mut source, from, 10_000, &Watch::default(), |_, rows| blocks.update(&rows)).unwrap();
    assert_eq!(blocks.samples(), 3000);
    let (a, b) = (whole.gram(), blocks.gram());
    // Sums of 3000 products in f64, in another order.
    let most = a.as_slice().iter().fold(0f64, |m, x| m.max(x.abs()));
    assert!(a.as_slice().iter().zip(b.as_slice()).all(|(a, b)| (a - b).abs() <= 3000.0 * f64::EPSILON * most));
}
