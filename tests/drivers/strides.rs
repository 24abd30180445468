//! Any strides: the same matrix through padded rows, Fortran order, reversed axes, sub-blocks and n-d shapes gives the same
//! factors, and what cannot be a matrix is refused by name.

use crate::common::*;
use proptest::prelude::*;
use tensorslim::{Error, ErrorKind, Matrix, Method, Rank, TensorRef, TruncatedSvd};

/// The elements of a tensor of two axes, through its view.
fn elements(t: &TensorRef<'_>) -> Vec<f64> {
    let view = t.view().unwrap();
    let read = |i: usize, j: usize| match view {
        tensorslim::MatView::F16(a) => a[(i, j)].to_f64(),
        tensorslim::MatView::BF16(a) => a[(i, j)].to_f64(),
        tensorslim::MatView::F32(a) => f64::from(a[(i, j)]),
        tensorslim::MatView::F64(a) => a[(i, j)],
    };
    (0..view.nrows()).flat_map(|i| (0..view.ncols()).map(move |j| (i, j))).map(|(i, j)| read(i, j)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// A matrix laid out with random padding, order and direction of both axes is the matrix.
    #[test]
    fn any_layout_is_the_same_matrix(
        m in 1usize..40, n in 1usize..40, pad in 0usize..5, step in 1usize..4,
        fortran: bool, up: bool, left: bool, seed: u64,
    ) {
        let a = gaussian(m, n, seed);
        // Inner axis of stride `step`, outer axis past it and `pad` more.
        let (inner, outer) = if fortran { (m, n) } else { (n, m) };
        let ld = (inner - 1) * step + 1 + pad;
        let mut data = vec![f32::NAN; (outer - 1) * ld + (inner - 1) * step + 1];
        let (mut rs, mut cs) = if fortran { (step as isize, ld as isize) } else { (ld as isize, step as isize) };
        for i in 0..m {
            for j in 0..n {
                let (i_at, j_at) = (if up { m - 1 - i } else { i }, if left { n - 1 - j } else { j });
                data[i_at * rs as usize + j_at * cs as usize] = a[(i, j)] as f32;
            }
        }
        if up { rs = -rs; }
        if left { cs = -cs; }
        let t = TensorRef::strided(&data, &[m, n], &[rs, cs]).unwrap();
        let plain = rounded::<f32>(a.as_ref());
        prop_assert_eq!(elements(&t), elements(&plain.as_tensor().unwrap()));

        let k = 1 + seed as usize % m.min(n);
        for method in Method::ALL {
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).seed(seed);
            let f = svd.factor::<f64>(t.clone()).unwrap();
            let g = svd.factor::<f64>(plain.as_tensor().unwrap()).unwrap();
            let scale = g.s()[0];
            for (s, r) in f.s().iter().zip(g.s()) {
                // Blocking differs with the layout, so the last bits may; Gram squares, hence √eps of small ones.
                prop_assert!((s - r).abs() <= 1e-7 * scale, "{} {} {}", method, s, r);
            }
            let truth = exact(&plain);
            if truth.norm_l2() > 0.0 {
                let (reported, true_error) = (f.report().relative_error, true_error(truth.as_ref(), &f));
                let slack = match f.report().error_kind {
                    ErrorKind::Exact => 0.0,
                    // Sixteen probes, at worst of a residual of rank one: within a factor of 4 but for one case in a million.
                    ErrorKind::Estimate { .. } => 3.0 * true_error,
                    _ => unreachable!("a kind of error without a bound"),
                };
                prop_assert!((reported - true_error).abs() <= 1e-6 + slack, "{} {} {}", method, reported, true_error);
            }
        }
    }

    /// Strides are refused exactly when two indices meet or the data is too short.
    #[test]
    fn overlap_is_refused(m in 1usize..6, n in 1usize..6, rs in -8isize..9, cs in -8isize..9, len in 1usize..60) {
        let data = vec![0f32; len];
        let mut seen = std::collections::HashMap::new();
        let mut meets = false;
        for i in 0..m as isize {
            for j in 0..n as isize {
                meets |= seen.insert(i * rs + j * cs, ()).is_some();
            }
        }
        let (low, high) = (seen.keys().min().unwrap(), seen.keys().max().unwrap());
        let fits = ((high - low) as usize) < len;
        match TensorRef::strided(&data, &[m, n], &[rs, cs]) {
            Ok(t) => {
                prop_assert!(!meets && fits);
                prop_assert_eq!(elements(&t).len(), m * n);
            }
            // The test is by nesting of extents: it may refuse interleaved axes that never meet, never the reverse.
            Err(Error::Overlap { .. }) => {
                let span = |d: usize, s: isize| (d as isize - 1) * s.abs();
                let nested = m == 1 || n == 1 || span(m, rs) < cs.abs() || span(n, cs) < rs.abs();
                prop_assert!(meets || !nested);
            }
            Err(Error::Shape { .. }) => prop_assert!(!fits),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}

#[test]
fn conv_weights_become_matrices() {
    let (o, i, kh, kw) = (6, 4, 3, 2);
    let data: Vec<f32> = (0..o * i * kh * kw).map(|x| x as f32).collect();
    let t = TensorRef::new(&data, &[o, i, kh, kw]).unwrap();
    for (axes, shape) in [(1, [6, 24]), (2, [24, 6]), (3, [72, 2])] {
        let a = t.matricize(axes).unwrap();
        assert_eq!(a.shape(), shape);
        assert_eq!(elements(&a), data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    }
    // channels-last storage: [out, kh, kw, in] in memory. Columns (in, kh, kw) do not merge.
    let strides = [(kh * kw * i) as isize, 1, (kw * i) as isize, i as isize];
    let t = TensorRef::strided(&data, &[o, i, kh, kw], &strides).unwrap();
    assert!(matches!(t.matricize(1), Err(Error::Layout { .. })));
    for axes in [0, 4] {
        assert!(matches!(t.matricize(axes), Err(Error::Option { name: "row_axes", .. })));
    }
    // Axes of length one merge with anything.
    let t = TensorRef::strided(&data[..8], &[1, 4, 1, 2], &[99, 2, -7, 1]).unwrap();
    assert_eq!(t.matricize(2).unwrap().shape(), [4, 2]);
}

#[test]
fn raw_bytes_are_read_in_place_or_refused() {
    #[repr(align(8))]
    struct Aligned([u8; 33]);
    let mut buffer = Aligned([0; 33]);
    for (i, b) in buffer.0.iter_mut().enumerate() {
        *b = i as u8;
    }
    let shape = [2, 2];
    for (dtype, size) in [("f16", 2), ("bf16", 2), ("f32", 4), ("f64", 8)] {
        let dtype: tensorslim::DType = dtype.parse().unwrap();
        assert_eq!(dtype.size(), size);
        let t = TensorRef::from_bytes(dtype, &shape, &buffer.0[..4 * size]).unwrap();
        assert_eq!((t.dtype(), t.shape()), (dtype, &shape[..]));
        let error = TensorRef::from_bytes(dtype, &shape, &buffer.0[1..1 + 4 * size]).unwrap_err();
        assert!(matches!(error, Error::Misaligned { remainder: 1, .. }), "{error}");
        for len in [0, 4 * size - 1, 4 * size + 1] {
            let error = TensorRef::from_bytes(dtype, &shape, &buffer.0[..len.min(33)]).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}

#[test]
fn bytes_round_to_nearest_even() {
    let a = Matrix::from_vec(vec![1.0f64, 1.0 + 2f64.powi(-11), 1.0 + 3.0 * 2f64.powi(-11), 70000.0], 2, 2).unwrap();
    let halves: Vec<half::f16> =
        a.to_bytes(tensorslim::DType::F16).chunks_exact(2).map(bytemuck::pod_read_unaligned).collect();
    let expected = [1.0, 1.0, 1.0 + 2f32.powi(-9), f32::INFINITY].map(half::f16::from_f32);
    assert_eq!(halves, expected);
    let back: Vec<f64> = a.to_bytes(tensorslim::DType::F64).chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
    assert_eq!(back, a.as_slice());
}
