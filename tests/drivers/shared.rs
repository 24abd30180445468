//! Factors that several matrices share, parts of a spectrum, and what a loss gains from each direction.

use crate::common::*;
use faer::{Mat, MatRef};
use half::f16;
use tensorslim::operator::{Along, RowSource, Stack};
use tensorslim::{Calibration, DType, Element, Error, Factors, Matrix, Method, Rank, Scalar, TensorRef, TruncatedSvd};

fn wide<T: Element>(x: &Matrix<T>) -> Mat<f64> {
    Mat::from_fn(x.nrows(), x.ncols(), |i, j| x.row(i)[j].to_f64())
}

fn product<T: Scalar>(f: &Factors<T>) -> Mat<f64> {
    let (mut u, vt) = (wide(f.u()), wide(f.vt()));
    for (j, s) in f.s().iter().enumerate() {
        u.col_mut(j).iter_mut().for_each(|x| *x *= Element::to_f64(*s));
    }
    &u * &vt
}

fn joined(parts: &[Mat<f64>], along: Along) -> Mat<f64> {
    let (m, n) = parts[0].shape();
    let at = |sizes: &mut dyn Iterator<Item = usize>, i: usize| {
        let mut first = 0;
        for (p, size) in sizes.enumerate() {
            if i < first + size {
                return (p, i - first);
            }
            first += size;
        }
        unreachable!()
    };
    match along {
        Along::Rows => Mat::from_fn(parts.iter().map(|p| p.nrows()).sum(), n, |i, j| {
            let (p, i) = at(&mut parts.iter().map(|p| p.nrows()), i);
            parts[p][(i, j)]
        }),
        Along::Columns => Mat::from_fn(m, parts.iter().map(|p| p.ncols()).sum(), |i, j| {
            let (p, j) = at(&mut parts.iter().map(|p| p.ncols()), j);
            parts[p][(i, j)]
        }),
    }
}

/// A matrix in memory whose lines are rows or columns.
struct Stored {
    lines: Matrix<f32>,
    by_columns: bool,
}

impl RowSource for Stored {
    fn shape(&self) -> (usize, usize) {
        let (lines, width) = (self.lines.nrows(), self.lines.ncols());
        if self.by_columns { (width, lines) } else { (lines, width) }
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn is_column_major(&self) -> bool {
        self.by_columns
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> tensorslim::Result<()> {
        let at = 4 * first * self.lines.ncols();
        dst.copy_from_slice(&bytemuck::cast_slice(self.lines.as_slice())[at..at + dst.len()]);
        Ok(())
    }
}

#[test]
fn a_stack_reads_as_the_whole_matrix() {
    let mut random = Random(3);
    for along in [Along::Rows, Along::Columns] {
        for by_columns in [false, true] {
            let sizes = match along {
                Along::Rows => [(7, 11), (1, 11), (20, 11)],
                Along::Columns => [(11, 7), (11, 1), (11, 20)],
            };
            let parts = sizes.map(|(m, n)| gaussian(m, n, random.bits()));
            let stored = |a: MatRef<'_, f64>| {
                let a = if by_columns { a.transpose() } else { a };
                rounded::<f32>(a)
            };
            let held = parts.each_ref().map(|p| Stored { lines: stored(p.as_ref()), by_columns });
            let whole = stored(joined(&parts, along).as_ref());
            let mut stack = Stack::new(held.into(), along).unwrap();
            assert_eq!(stack.is_column_major(), by_columns);
            let (lines, width) = (whole.nrows(), whole.ncols());
            for _ in 0..40 {
                let first = random.bits() as usize % lines;
                let count = 1 + random.bits() as usize % (lines - first);
                let mut read = vec![f32::NAN; count * width];
                stack.read_rows(first, bytemuck::cast_slice_mut(&mut read)).unwrap();
                assert_eq!(read, whole.as_slice()[first * width..(first + count) * width]);
                let start = random.bits() as usize % width;
                let end = start + 1 + random.bits() as usize % (width - start);
                let mut read = vec![f32::NAN; lines * (end - start)];
                stack.read_block(start..end, bytemuck::cast_slice_mut(&mut read)).unwrap();
                let want: Vec<f32> = (0..lines).flat_map(|i| whole.row(i)[start..end].to_vec()).collect();
                assert_eq!(read, want, "{along:?} {by_columns} {start}..{end}");
            }
        }
    }
}

#[test]
fn shared_factors_are_those_of_the_stack() {
    for along in [Along::Rows, Along::Columns] {
        let sizes = match along {
            Along::Rows => [(60, 50), (20, 50), (90, 50)],
            Along::Columns => [(50, 60), (50, 20), (50, 90)],
        };
        let parts: Vec<Mat<f64>> = sizes.iter().zip(5..).map(|(&(m, n), seed)| gaussian(m, n, seed)).collect();
        let whole = joined(&parts, along);
        let held: Vec<Matrix<f64>> = parts.iter().map(|p| rounded(p.as_ref())).collect();
        let tensors: Vec<TensorRef<'_>> = held.iter().map(|m| m.as_tensor().unwrap()).collect();
        let svd = TruncatedSvd::new(Rank::Fixed(9)).method(Method::Full);
        let f = svd.factor_shared::<f64>(&tensors, along).unwrap();
        let values = whole.singular_values().unwrap();
        assert!((f.report.relative_error - best_error(&values, 9)).abs() < 1e-12);
        assert!(f.s.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-12 * values[0]));
        let alone = svd.factor::<f64>(rounded::<f64>(whole.as_ref()).as_tensor().unwrap()).unwrap();
        let products: Vec<Mat<f64>> = (f.own.iter())
            .map(|own| match along {
                Along::Rows => wide(own) * wide(&f.shared),
                Along::Columns => wide(&f.shared) * wide(own),
            })
            .collect();
        assert!((joined(&products, along) - product(&alone)).norm_l2() < 1e-11 * values[0], "{along:?}");
    }
}

#[test]
fn a_stack_of_unlike_matrices_is_refused() {
    let (a, b) = (Matrix::<f32>::zeros(4, 3), Matrix::<f32>::zeros(4, 5));
    let tensors = [a.as_tensor().unwrap(), b.as_tensor().unwrap()];
    assert!(matches!(Stack::new(tensors.to_vec(), Along::Rows), Err(Error::Shape { .. })));
    assert_eq!(Stack::new(tensors.to_vec(), Along::Columns).unwrap().shape(), (4, 8));
    assert!(matches!(Stack::<TensorRef<'_>>::new(Vec::new(), Along::Rows), Err(Error::Empty { .. })));
    let half = Matrix::<f16>::zeros(4, 3);
    let mixed = vec![a.as_tensor().unwrap(), half.as_tensor().unwrap()];
    assert!(matches!(Stack::new(mixed, Along::Rows), Err(Error::Option { .. })));
}

#[test]
fn a_range_of_triplets_is_a_part_of_the_spectrum() {
    let spectrum: Vec<f64> = (0..30).map(|i| 0.8f64.powi(i)).collect();
    let a = with_spectrum(50, 30, &spectrum, 3);
    let w: Matrix<f64> = rounded(a.as_ref());
    let f = TruncatedSvd::new(Rank::Fixed(30)).method(Method::Full).factor::<f64>(w.as_tensor().unwrap()).unwrap();
    for (from, to) in [(0, 4), (3, 9), (26, 30)] {
        let part = f.range(from..to).unwrap();
        assert_eq!(part.rank(), to - from);
        assert!(part.s().iter().zip(&spectrum[from..to]).all(|(a, b)| (a - b).abs() < 1e-13));
        assert!((true_error(a.as_ref(), &part) - part.report().relative_error).abs() < 1e-12);
    }
    assert!(f.range(4..4).is_err() && f.range(20..31).is_err());
}

/// Saliency is the derivative of a loss in the weight of each direction: compared with central differences of a loss
/// that is not linear.
#[test]
fn saliency_is_a_finite_difference() {
    let (m, n, k) = (40, 30, 6);
    let a = gaussian(m, n, 11);
    let w: Matrix<f64> = rounded(a.as_ref());
    let loss = |p: &Mat<f64>| {
        p.col_iter().flat_map(|c| c.iter()).enumerate().map(|(i, x)| (x * (1.0 + i as f64 % 7.0)).sin()).sum::<f64>()
    };
    let mut samples = [Calibration::new(n).unwrap(), Calibration::new(m).unwrap()];
    for (c, seed) in samples.iter_mut().zip(7..) {
        let x: Matrix<f64> = rounded(gaussian(200, c.features(), seed).as_ref());
        c.update(&x.as_tensor().unwrap()).unwrap();
    }
    let plain = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Full);
    let one = plain.clone().calibration(&samples[0]);
    let two = one.clone().output_calibration(&samples[1]);
    for (name, svd) in [("plain", plain), ("one-sided", one), ("two-sided", two)] {
        let f = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
        let whole = product(&f);
        let gradient = Matrix::<f64>::from_fn(m, n, |i, j| {
            let weight = 1.0 + (i + j * m) as f64 % 7.0;
            weight * (whole[(i, j)] * weight).cos()
        });
        let saliency = f.saliency(&gradient.as_tensor().unwrap()).unwrap();
        let up_to = |j: usize| if j == 0 { Mat::zeros(m, n) } else { product(&f.truncate(j).unwrap()) };
        for i in 0..k {
            let part = up_to(i + 1) - up_to(i);
            let h = 1e-5;
            let step = |h: f64| loss(&(&whole + faer::Scale(h) * &part));
            let difference = (step(h) - step(-h)) / (2.0 * h);
            let scale = part.norm_l2() * wide(&gradient).norm_l2();
            assert!((difference - saliency[i]).abs() < 1e-6 * scale, "{name} {i}: {difference} {}", saliency[i]);
        }
    }
    let f = TruncatedSvd::new(Rank::Fixed(k)).factor::<f64>(w.as_tensor().unwrap()).unwrap();
    assert!(matches!(f.saliency(&Matrix::<f64>::zeros(n, m).as_tensor().unwrap()), Err(Error::Shape { .. })));
}
