//! Every bad input of the public edge is one typed error with its numbers in it; never a panic, never a silent clamp.

use crate::common::*;
use tensorslim::{DType, Error, ErrorKind, Matrix, Method, Rank, Sketch, TensorRef, TruncatedSvd, quality};

fn factor(data: &[f32], shape: &[usize], rank: Rank) -> Result<tensorslim::Factors<f32>, Error> {
    TruncatedSvd::new(rank).factor::<f32>(TensorRef::new(data, shape)?)
}

#[test]
fn values_that_are_not_finite_are_named_by_row_and_column() {
    for method in Method::ALL {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // Every position of a vector register, and both ends.
            for at in (0..70).chain([40 * 30 - 1]) {
                let mut data = vec![1f32; 40 * 30];
                data[at] = bad;
                let w = TensorRef::new(&data, &[40, 30]).unwrap();
                match TruncatedSvd::new(Rank::Fixed(3)).method(method).factor::<f32>(w) {
                    Err(Error::NotFinite { row, col, value }) => {
                        assert_eq!((row, col), (at / 30, at % 30));
                        assert_eq!(value.is_nan(), bad.is_nan());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    // The position is that of the caller's matrix, also when it is wide or comes as columns.
    let mut data = vec![half::f16::ONE; 6 * 50];
    data[2 * 50 + 44] = half::f16::NAN;
    let error = TruncatedSvd::new(Rank::Fixed(3)).factor::<f32>(TensorRef::new(&data, &[6, 50]).unwrap()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 2, col: 44, .. }), "{error}");
    let t = TensorRef::strided(&data, &[50, 6], &[1, 50]).unwrap();
    let error = TruncatedSvd::new(Rank::Fixed(3)).factor::<f64>(t).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 44, col: 2, .. }), "{error}");
    let mut data = vec![1f64; 12];
    data[7] = f64::INFINITY;
    let error = TruncatedSvd::new(Rank::Fixed(1)).factor::<f32>(TensorRef::new(&data, &[4, 3]).unwrap()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 2, col: 1, .. }), "{error}");
}

#[test]
fn shapes_and_strides_that_cannot_be_are_typed_errors() {
    for shape in [&[][..], &[0], &[0, 5], &[5, 0], &[2, 0, 3]] {
        assert!(matches!(TensorRef::new::<f32>(&[], shape), Err(Error::Empty { .. })), "{shape:?}");
    }
    for shape in [&[usize::MAX, 2][..], &[1 << 40, 1 << 40], &[usize::MAX], &[1 << 62, 1]] {
        assert!(matches!(TensorRef::new::<f32>(&[1.0], shape), Err(Error::TooLarge { .. })), "{shape:?}");
        assert!(TensorRef::from_bytes(DType::F64, shape, &[0; 8]).is_err(), "{shape:?}");
    }
    assert!(matches!(TensorRef::new(&[1f32; 5], &[2, 3]), Err(Error::Shape { .. })));
    assert!(matches!(TensorRef::new(&[1f32; 7], &[2, 3]), Err(Error::Shape { .. })));
    assert!(matches!(TensorRef::strided(&[1f32; 6], &[2, 3], &[3]), Err(Error::Shape { .. })));
    assert!(matches!(TensorRef::strided(&[1f32; 6], &[2, 3], &[0, 1]), Err(Error::Overlap { .. })));
    assert!(matches!(TensorRef::strided(&[1f32; 6], &[2, 3], &[2, 1]), Err(Error::Overlap { .. })));
    assert!(TensorRef::strided(&[1f32; 6], &[2, 3], &[isize::MAX, isize::MIN]).is_err());
    assert!(TensorRef::strided(&[1f32; 6], &[3, 3], &[isize::MAX, 1]).is_err());
    for shape in [&[6][..], &[1, 2, 3]] {
        let error = factor(&[1.0; 6], shape, Rank::Fixed(1)).unwrap_err();
        assert!(error.to_string().contains("matricize"), "{error}");
    }
    assert!(Matrix::from_vec(vec![0f32; 5], 2, 3).is_err());
}

#[test]
fn ranks_and_options_out_of_range_are_typed_errors() {
    let data = vec![1f32; 12];
    for k in [0, 4, usize::MAX] {
        match factor(&data, &[4, 3], Rank::Fixed(k)) {
            Err(Error::Rank { rank, max }) => assert_eq!((rank, max), (k, 3)),
            other => panic!("{other:?}"),
        }
    }
    for r in [0.0, -1.0, f64::NAN, f64::INFINITY, 12.0] {
        let error = factor(&data, &[4, 3], Rank::Ratio(r)).unwrap_err();
        assert!(matches!(error, Error::Option { name: "ratio", .. }), "{r}: {error}");
    }
    for e in [0.0, -0.5, 1.0 + 1e-9, f64::NAN, f64::INFINITY] {
        let error = factor(&data, &[4, 3], Rank::Energy(e)).unwrap_err();
        assert!(matches!(error, Error::Option { name: "energy", .. }), "{e}: {error}");
    }
    for text in ["", "SVD", "Full", "full "] {
        assert!(text.parse::<Method>().is_err() && text.parse::<Sketch>().is_err() && text.parse::<DType>().is_err());
    }
    // Oversampling past the shape is not an error: the report says what was used.
    let f = TruncatedSvd::new(Rank::Fixed(2)).oversample(usize::MAX).method(Method::Randomized);
    let f = f.factor::<f32>(TensorRef::new(&data, &[4, 3]).unwrap()).unwrap();
    assert_eq!(f.report().oversample, 1);
}

#[test]
fn tiny_shapes_are_answered() {
    for method in Method::ALL {
        for sketch in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
            for (m, n) in [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (2, 2), (3, 2), (17, 16), (16, 17)] {
                let a = gaussian(m, n, (m * 100 + n) as u64);
                let w = rounded::<f64>(a.as_ref());
                for k in 1..=m.min(n) {
                    let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch);
                    let f = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
                    let truth = true_error(a.as_ref(), &f);
                    let slack = match f.report().error_kind {
                        ErrorKind::Exact => 0.0,
                        // Sixteen probes, at worst of a residual of rank one: a factor of 4 but for one case in a million.
                        ErrorKind::Estimate { .. } => 3.0 * truth,
                        _ => unreachable!("a kind of error without a bound"),
                    };
                    let apart = (f.report().relative_error - truth).abs();
                    assert!(apart < 1e-7 + slack, "{method} {sketch} {m}×{n} k={k}: off by {apart:e}");
                    if k == m.min(n) {
                        assert!(truth < 1e-13, "{method} {sketch} {m}×{n}: {truth:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn values_at_the_ends_of_the_range() {
    // f64 input beyond f32, f32 arithmetic: scaled inside; the singular values of the larger one cannot be said in f32.
    let data = [1e300, 2e300, -1e300, 4e300f64];
    let t = TensorRef::new(&data, &[2, 2]).unwrap();
    let error = TruncatedSvd::new(Rank::Fixed(1)).factor::<f32>(t.clone()).unwrap_err();
    assert!(matches!(error, Error::Range { .. }), "{error}");
    let f = TruncatedSvd::new(Rank::Fixed(2)).factor::<f64>(t).unwrap();
    assert!(f.report().relative_error < 1e-14 && f.s()[0] > 4e300);
    // Subnormal input is not zero input.
    let data: Vec<f64> = gaussian(20, 10, 1)
        .as_ref()
        .transpose()
        .row_iter()
        .flat_map(|r| r.iter().copied().collect::<Vec<_>>())
        .collect();
    let small: Vec<f32> = data.iter().map(|x| (x * 1e-40) as f32).collect();
    let error = factor(&small, &[10, 20], Rank::Fixed(10)).unwrap_err();
    assert!(matches!(error, Error::Range { .. }), "{error}");
    let f = TruncatedSvd::new(Rank::Fixed(10)).factor::<f64>(TensorRef::new(&small, &[10, 20]).unwrap()).unwrap();
    assert!(f.report().relative_error < 1e-14 && f.s()[0] > 1e-40);
    // f16 at its largest.
    let data = vec![half::f16::MAX; 64];
    let f = TruncatedSvd::new(Rank::Fixed(1)).factor::<f32>(TensorRef::new(&data, &[8, 8]).unwrap()).unwrap();
    assert!((f.s()[0] / (8.0 * 65504.0) - 1.0).abs() < 1e-5);
}

#[test]
fn quality_refuses_what_does_not_fit() {
    let w = rounded::<f32>(gaussian(12, 8, 1).as_ref());
    let f = TruncatedSvd::new(Rank::Fixed(2)).factor::<f32>(w.as_tensor().unwrap()).unwrap();
    let w = w.as_tensor().unwrap();
    let fits = [0.5f32; 16];
    let x = TensorRef::new(&fits, &[2, 8]).unwrap();
    assert!(quality::activation(&w, &f, &x).is_ok());
    assert!(matches!(quality::activation(&w, &f, &TensorRef::new(&fits, &[8, 2]).unwrap()), Err(Error::Shape { .. })));
    assert!(matches!(quality::activation(&x, &f, &x), Err(Error::Shape { .. })));
    let bad = [f32::NAN; 8];
    assert!(matches!(
        quality::activation(&w, &f, &TensorRef::new(&bad, &[1, 8]).unwrap()),
        Err(Error::NotFinite { .. })
    ));
    assert!(matches!(f.apply(&TensorRef::new(&fits, &[4, 4]).unwrap()), Err(Error::Shape { .. })));
    for k in [0, 3] {
        assert!(matches!(f.truncate(k), Err(Error::Rank { max: 2, .. })));
    }
}

#[test]
fn every_error_is_one_line_with_its_numbers() {
    let errors = [
        Error::Empty { shape: vec![0, 3] },
        Error::TooLarge { shape: vec![1 << 60, 64] },
        Error::Overlap { shape: vec![2, 3], strides: vec![0, 1] },
        Error::Layout { shape: vec![2, 3, 4], strides: vec![1, 2, 30] },
        Error::Misaligned { dtype: "f32", align: 4, remainder: 3 },
        Error::NotFinite { row: 3, col: 17, value: f64::NAN },
        Error::Rank { rank: 9, max: 3 },
        Error::Range { what: "σ", value: 1e300, dtype: DType::F32 },
        Error::Range { what: "σ", value: 1e300, dtype: DType::F64 },
        Error::Option { name: "rank", value: None, want: "is nothing that a test can know" },
        Error::Order { n: 17 },
        Error::NoConvergence { op: "svd" },
        TensorRef::new(&[0f32; 5], &[2, 3]).unwrap_err(),
        "x".parse::<DType>().unwrap_err(),
        Error::file(std::path::Path::new("w.npy"), "truncated"),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() > 10 && text.len() < 250, "{text}");
    }
}
