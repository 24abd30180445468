//! Differences of two matrices, residuals, and thresholds: what LoRA extraction and its kin ask for.

use faer::Mat;
use half::{bf16, f16};
use tensorslim::operator::{Difference, RowSource, Watch};
use tensorslim::{
    Calibration, DType, Element, Error, Factors, Matrix, Method, Rank, Result, Sketch, TensorRef, TruncatedSvd,
};

use crate::common::{Random, exact, orthonormal, random, rounded, true_error, with_spectrum};

/// A tensor in memory, read by rows or by columns.
struct Lines<'a> {
    rows: TensorRef<'a>,
    by_columns: bool,
}

impl RowSource for Lines<'_> {
    fn shape(&self) -> (usize, usize) {
        RowSource::shape(&self.rows)
    }
    fn dtype(&self) -> DType {
        self.rows.dtype()
    }
    fn is_column_major(&self) -> bool {
        self.by_columns
    }
    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()> {
        if !self.by_columns {
            return self.rows.read_rows(first, dst);
        }
        let ((m, n), size) = (self.shape(), self.dtype().size());
        let mut all = vec![0; m * n * size];
        self.rows.read_rows(0, &mut all)?;
        for (j, column) in dst.chunks_exact_mut(m * size).enumerate() {
            for (i, x) in column.chunks_exact_mut(size).enumerate() {
                x.copy_from_slice(&all[(i * n + first + j) * size..][..size]);
            }
        }
        Ok(())
    }
}

/// Reads all of a source, by lines or by parts of all lines, into an f64 matrix, from bytes that begin `skew` bytes
/// behind an aligned address.
fn read(source: &mut dyn RowSource, parts: Option<usize>, skew: usize) -> Mat<f64> {
    let ((m, n), size, by_columns) = (source.shape(), source.dtype().size(), source.is_column_major());
    let (lines, width) = if by_columns { (n, m) } else { (m, n) };
    let mut out = Mat::zeros(m, n);
    let mut put = |line: usize, place: usize, bytes: &[u8]| {
        let x = match bytes.len() {
            4 => f64::from(f32::from_ne_bytes(bytes.try_into().unwrap())),
            _ => f64::from_ne_bytes(bytes.try_into().unwrap()),
        };
        let (i, j) = if by_columns { (place, line) } else { (line, place) };
        out[(i, j)] = x;
    };
    let step = parts.unwrap_or(width);
    for part in (0..width).step_by(step).map(|i| i..width.min(i + step)) {
        let run = part.len() * size;
        let mut words = vec![0u64; lines * run / 8 + 2];
        let bytes = &mut bytemuck::cast_slice_mut::<_, u8>(&mut words)[skew..][..lines * run];
        match part.len() == width {
            true => source.read_rows(0, bytes).unwrap(),
            false => source.read_block(part.clone(), bytes).unwrap(),
        }
        for (line, run) in bytes.chunks_exact(run).enumerate() {
            run.chunks_exact(size).enumerate().for_each(|(k, x)| put(line, part.start + k, x));
        }
    }
    out
}

fn check_pair<A: Element, B: Element>(m: usize, n: usize) {
    let (a, b) = (random::<A>(m, n, 1), random::<B>(m, n, 2));
    let wide = [A::DTYPE, B::DTYPE].contains(&DType::F64);
    let want = Mat::from_fn(m, n, |i, j| {
        let (a, b) = (a.row(i)[j].to_f64(), b.row(i)[j].to_f64());
        if wide { a - b } else { f64::from(a as f32 - b as f32) }
    });
    for layouts in [[false, false], [false, true], [true, false], [true, true]] {
        let lines = |rows, by_columns| Lines { rows, by_columns };
        let (a, b) = (lines(a.as_tensor().unwrap(), layouts[0]), lines(b.as_tensor().unwrap(), layouts[1]));
        let mut difference = Difference::new(a, b).unwrap();
        assert_eq!(difference.dtype(), if wide { DType::F64 } else { DType::F32 });
        for (parts, skew) in [(None, 0), (None, 1), (Some(7), 0), (Some(1), 3)] {
            let found = read(&mut difference, parts, skew);
            assert!(found == want, "{m}×{n} {} − {} {layouts:?} {parts:?}", A::DTYPE, B::DTYPE);
        }
    }
}

#[test]
fn differences_are_those_of_the_elements_whatever_the_types_and_layouts() {
    for (m, n) in [(1, 1), (5, 3), (17, 40), (33, 16)] {
        check_pair::<f32, f32>(m, n);
        check_pair::<bf16, bf16>(m, n);
        check_pair::<f16, bf16>(m, n);
        check_pair::<f16, f32>(m, n);
        check_pair::<f64, bf16>(m, n);
        check_pair::<f32, f64>(m, n);
    }
    // More than one run of scratch, in each direction.
    check_pair::<f32, bf16>(300, 700);
    let (a, b) = (random::<f32>(4, 3, 1), random::<f32>(3, 4, 1));
    let refused = Difference::new(a.as_tensor().unwrap(), b.as_tensor().unwrap());
    assert!(matches!(refused, Err(Error::Shape { .. })));
}

/// `W0` in bf16 and `W0 + BA` rounded to bf16, with the update of rank `r`.
struct Tuned {
    base: Matrix<bf16>,
    tuned: Matrix<bf16>,
    update: Mat<f64>,
}

impl Tuned {
    /// The entries of the weight have deviation 0.02, and those of the update a tenth of that.
    fn new(m: usize, n: usize, r: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let base = Matrix::from_fn(m, n, |_, _| bf16::from_f64(0.02 * random.normal()));
        let scale = 0.002 * ((m * n) as f64 / r as f64).sqrt();
        let update = with_spectrum(m, n, &vec![scale; r], seed + 1);
        let tuned = Matrix::from_fn(m, n, |i, j| bf16::from_f64(base.row(i)[j].to_f64() + update[(i, j)]));
        Tuned { base, tuned, update }
    }

    /// The noise that rounding to bf16 leaves in the difference: its largest singular value, by the deviation of a
    /// rounding error that is uniform between neighbours, and the edge of Marchenko and Pastur.
    fn noise(&self) -> f64 {
        let (m, n) = (self.tuned.nrows(), self.tuned.ncols());
        let ulp = |x: f64| if x == 0.0 { 0.0 } else { 2f64.powi(x.abs().log2().floor() as i32 - 7) };
        let square: f64 = self.tuned.as_slice().iter().map(|x| ulp(x.to_f64()).powi(2) / 12.0).sum();
        (square / (m * n) as f64).sqrt() * ((m as f64).sqrt() + (n as f64).sqrt())
    }

    fn difference(&self) -> Difference<TensorRef<'_>, TensorRef<'_>> {
        Difference::new(self.tuned.as_tensor().unwrap(), self.base.as_tensor().unwrap()).unwrap()
    }
}

#[test]
fn an_update_is_found_in_the_difference_of_two_rounded_weights() {
    for (i, (m, n, r)) in
        [(256, 128, 4), (128, 256, 8), (300, 200, 16), (512, 96, 32), (400, 400, 64)].into_iter().enumerate()
    {
        let t = Tuned::new(m, n, r, 10 * i as u64);
        // Half as much again as the edge, which is one of a limit of large matrices.
        let rule = Rank::Above(1.5 * t.noise());
        for method in [Method::Auto, Method::Full, Method::Gram, Method::Randomized] {
            let svd = TruncatedSvd::new(rule).method(method).seed(3);
            let f: Factors<f32> = svd.factor_rows(&mut t.difference(), &Watch::default()).unwrap();
            assert_eq!(f.rank(), r, "{m}×{n} {method}: {:?}", f.s());
            // The noise inside of the two spaces of rank r, which is a small part of it.
            let noise = t.noise() * (2.0 * r as f64).sqrt();
            let off = true_error(t.update.as_ref(), &f) * t.update.norm_l2();
            assert!(off < noise, "{m}×{n} {method}: off by {off:e}, noise {noise:e}");
        }
    }
}

#[test]
fn a_difference_takes_every_method_limit_and_calibration_of_a_matrix() {
    let (m, n, k) = (320, 96, 12);
    let spectrum: Vec<f64> = (0..n).map(|i| 0.8f64.powi(i as i32)).collect();
    let (base, delta) = (orthonormal(m, n, 5), with_spectrum(m, n, &spectrum, 7));
    let (a, b) = (rounded::<f32>((&base + &delta).as_ref()), rounded::<f32>(base.as_ref()));
    let whole = exact(&a) - exact(&b);
    let whole = rounded::<f32>(whole.as_ref());
    let inputs = random::<f32>(400, n, 9);
    let mut statistics = Calibration::new(n).unwrap();
    statistics.update(&inputs.as_tensor().unwrap()).unwrap();
    for method in [Method::Full, Method::Gram, Method::Randomized, Method::Krylov, Method::SinglePass] {
        for sketch in [Sketch::Srht, Sketch::Gaussian, Sketch::SparseSign] {
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch).seed(1);
            let mut limits = vec![svd.clone(), svd.clone().memory_limit(8 << 20)];
            if method != Method::SinglePass {
                limits.push(svd.clone().calibration(&statistics));
            }
            for svd in limits {
                let mut difference = Difference::new(a.as_tensor().unwrap(), b.as_tensor().unwrap()).unwrap();
                let f: Factors<f32> = svd.factor_rows(&mut difference, &Watch::default()).unwrap();
                let mut source = whole.as_tensor().unwrap();
                let same: Factors<f32> = svd.factor_rows(&mut source, &Watch::default()).unwrap();
                // The same bytes are read, in tiles that the scratch of the difference may make shorter.
                for (x, y) in f.s().iter().zip(same.s()) {
                    assert!((x - y).abs() <= 1e-5 * y, "{method} {sketch}: {x} {y}");
                }
            }
        }
    }
}

#[test]
fn thresholds_count_the_values_above_them() {
    let spectrum: Vec<f64> = (0..60).map(|i| 3.0 * 0.9f64.powi(i)).collect();
    for scale in [1.0, 1e-30, 1e30] {
        let spectrum: Vec<f64> = spectrum.iter().map(|s| s * scale).collect();
        let a = rounded::<f32>(with_spectrum(200, 90, &spectrum, 3).as_ref());
        let w = a.as_tensor().unwrap();
        for k in [1, 7, 30, 45] {
            // Between two values.
            let svd = TruncatedSvd::new(Rank::Above((spectrum[k - 1] * spectrum[k]).sqrt()));
            for method in [Method::Auto, Method::Full, Method::Gram, Method::Randomized, Method::Krylov] {
                let f: Factors<f32> = svd.clone().method(method).factor(w.clone()).unwrap();
                assert_eq!(f.rank(), k, "{method} at {scale:e}: {:?}", f.s());
                assert!(f.report().notes.iter().all(|note| !note.contains("no singular value")), "{method}");
            }
            let once = svd.clone().method(Method::SinglePass).max_rank(50).factor::<f32>(w.clone()).unwrap();
            assert!((k - k / 8..=k + k / 8).contains(&once.rank()), "one look: {} for {k}", once.rank());
            let few: Factors<f32> = svd.max_rank(5).factor(w.clone()).unwrap();
            assert_eq!(few.rank(), k.min(5));
        }
        let none: Factors<f32> = TruncatedSvd::new(Rank::Above(4.0 * scale)).factor(w.clone()).unwrap();
        assert_eq!(none.rank(), 1);
        assert!(none.report().notes.iter().any(|note| note.contains("no singular value")), "{:?}", none.report().notes);
    }
    // Values that crowd around the threshold, where a subspace shows less than there is.
    let mut steps = vec![1.0; 50];
    steps.resize(120, 0.9);
    let flat = rounded::<f32>(with_spectrum(160, 120, &steps, 8).as_ref());
    for (a, few, threshold) in [(&flat, 50, 0.95), (&random::<f32>(220, 160, 6), 0, 24.5)] {
        let values = exact(a).svd().unwrap();
        let want = (0..a.ncols()).filter(|&i| values.S()[i] > threshold).count();
        assert!(want > 5 && (few == 0 || want == few), "{want} above {threshold}");
        for method in [Method::Auto, Method::Full, Method::Gram] {
            let svd = TruncatedSvd::new(Rank::Above(threshold)).method(method);
            let f: Factors<f32> = svd.factor(a.as_tensor().unwrap()).unwrap();
            assert_eq!((f.rank(), f.report().notes.len()), (want, 0), "{method}: {:?}", f.report().notes);
        }
        let svd = TruncatedSvd::new(Rank::Above(threshold)).method(Method::Randomized);
        let f: Factors<f32> = svd.factor(a.as_tensor().unwrap()).unwrap();
        assert!(f.rank() == want || f.report().notes.iter().any(|note| note.contains("of a subspace")));
    }
    // Below what a difference of norms can see, the subspace still grows until it holds the threshold.
    let decay: Vec<f64> = (0..120).map(|i| 0.85f64.powi(i)).collect();
    let a = rounded::<f64>(with_spectrum(200, 120, &decay, 3).as_ref());
    let svd = TruncatedSvd::new(Rank::Above((decay[100] * decay[101]).sqrt())).method(Method::Randomized);
    assert_eq!(svd.factor::<f64>(a.as_tensor().unwrap()).unwrap().rank(), 101);
    let a = random::<f32>(20, 10, 1);
    let all: Factors<f64> = TruncatedSvd::new(Rank::Above(0.0)).factor(a.as_tensor().unwrap()).unwrap();
    assert_eq!(all.rank(), 10);
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let refused = TruncatedSvd::new(Rank::Above(bad)).factor::<f32>(a.as_tensor().unwrap());
        assert!(matches!(refused, Err(Error::Option { .. })), "{bad}");
    }
    let statistics = Calibration::new(10).unwrap();
    let svd = TruncatedSvd::new(Rank::Above(0.1)).calibration(&statistics);
    assert!(svd.factor::<f32>(a.as_tensor().unwrap()).is_err());
}

fn check_residual<W: Element, E: Element>(a: &Mat<f64>, f: &Factors<f32>) {
    let (m, n) = a.shape();
    let w = rounded::<W>(a.as_ref());
    let residual = f.residual::<E>(&w.as_tensor().unwrap()).unwrap();
    let transposed = Matrix::from_fn(n, m, |i, j| w.row(j)[i]);
    let by_columns = TensorRef::strided(transposed.as_slice(), &[m, n], &[1, m as isize]).unwrap();
    assert_eq!(f.residual::<E>(&by_columns).unwrap().to_bytes(E::DTYPE), residual.to_bytes(E::DTYPE));
    let (u, vt) = (exact(f.u()), exact(f.vt()));
    for i in 0..m {
        for j in 0..n {
            let (mut product, mut size) = (0.0, w.row(i)[j].to_f64().abs());
            for (t, &s) in f.s().iter().enumerate() {
                let term = u[(i, t)] * f64::from(s) * vt[(t, j)];
                (product, size) = (product + term, size + term.abs());
            }
            let (want, found) = (w.row(i)[j].to_f64() - product, residual.row(i)[j].to_f64());
            // k + 3 roundings in f32, and one to E.
            let unit = match E::DTYPE {
                DType::BF16 => 2f64.powi(-8),
                DType::F16 => 2f64.powi(-11),
                _ => 0.0,
            };
            let bound = (f.rank() + 3) as f64 * f64::from(f32::EPSILON) * size + unit * want.abs() + 2f64.powi(-24);
            assert!((want - found).abs() <= bound, "({i}, {j}) {want} {found}");
        }
    }
}

#[test]
fn residuals_are_what_the_factors_leave() {
    let spectrum: Vec<f64> = (0..40).map(|i| 0.9f64.powi(i)).collect();
    for (m, n) in [(100, 40), (40, 100), (33, 47), (1, 9)] {
        let a = with_spectrum(m, n, &spectrum[..m.min(n).min(40)], 4);
        let w = rounded::<f32>(a.as_ref());
        let f: Factors<f32> = TruncatedSvd::new(Rank::Fixed(m.min(8))).factor(w.as_tensor().unwrap()).unwrap();
        check_residual::<f32, f32>(&a, &f);
        check_residual::<bf16, bf16>(&a, &f);
        check_residual::<f16, f32>(&a, &f);
        check_residual::<f64, f16>(&a, &f);
        let residual = f.residual::<f32>(&w.as_tensor().unwrap()).unwrap();
        let share = exact(&residual).norm_l2() / exact(&w).norm_l2();
        assert!((share - f.report().relative_error).abs() < 1e-5, "{share} {}", f.report().relative_error);
        let other = random::<f32>(m, n + 1, 1);
        assert!(matches!(f.residual::<f32>(&other.as_tensor().unwrap()), Err(Error::Shape { .. })));
        let (u, s, vt, report) = f.clone().into_parts();
        assert!(u == *f.u() && s == f.s() && vt == *f.vt() && report == *f.report());
        assert_eq!(u.clone().into_vec(), u.as_slice());
    }
}
