//! Views of tensors: which element an index means, and which layouts are refused.

use tensorslim::{Element, Error, Matrix, TensorMut, Threads, fwht};

/// `H_2` of each row tells which elements the rows have: `(a + b, a − b)`.
fn transformed(mut data: Vec<f32>, m: usize, strides: (isize, isize)) -> Vec<f32> {
    let x = TensorMut::strided(&mut data, m, 2, strides.0, strides.1).unwrap();
    assert_eq!((x.nrows(), x.ncols(), x.row_stride(), x.col_stride()), (m, 2, strides.0, strides.1));
    fwht::fwht_rows(x, Threads::One).unwrap();
    data
}

#[test]
fn strides_say_where_elements_are() {
    let data = || vec![1.0, 10.0, 100.0, 1000.0, 7.0];
    // Rows (1, 10) and (100, 1000); the fifth element belongs to none.
    assert_eq!(transformed(data(), 2, (2, 1)), [11.0, -9.0, 1100.0, -900.0, 7.0]);
    // Columns: rows (1, 100) and (10, 1000).
    assert_eq!(transformed(data(), 2, (1, 2)), [101.0, 1010.0, -99.0, -990.0, 7.0]);
    // Backwards along a row: (10, 1) and (1000, 100).
    assert_eq!(transformed(data(), 2, (2, -1)), [9.0, 11.0, 900.0, 1100.0, 7.0]);
    // From the last row to the first: the same rows.
    assert_eq!(transformed(data(), 2, (-2, 1)), [11.0, -9.0, 1100.0, -900.0, 7.0]);
    // Every second element of one row.
    assert_eq!(transformed(data(), 1, (0, 3)), [1001.0, 10.0, 100.0, -999.0, 7.0]);
}

#[test]
fn a_transpose_has_the_same_elements() {
    let mut data = [1.0f32, 10.0, 100.0, 1000.0];
    let mut x = TensorMut::new(&mut data, 2, 2).unwrap();
    fwht::fwht_rows(x.reborrow().transpose(), Threads::One).unwrap();
    fwht::fwht_columns(x, Threads::One).unwrap();
    assert_eq!(data, [2.0, 20.0, 200.0, 2000.0]);
}

#[test]
fn layouts_with_shared_or_missing_elements_are_refused() {
    let mut data = [0f64; 12];
    let mut strided = |m, n, rs, cs| TensorMut::strided(&mut data, m, n, rs, cs).map(|_| ());
    assert_eq!(strided(3, 4, 4, 1), Ok(()));
    assert_eq!(strided(3, 4, -1, 3), Ok(()));
    assert_eq!(strided(3, 4, 3, 1), Err(Error::Overlap { shape: vec![3, 4], strides: vec![3, 1] }));
    assert_eq!(strided(3, 4, 0, 1), Err(Error::Overlap { shape: vec![3, 4], strides: vec![0, 1] }));
    assert!(matches!(strided(3, 4, 5, 1), Err(Error::Shape { .. })));
    assert!(matches!(strided(3, 4, isize::MAX, 1), Err(Error::TooLarge { .. })));
    assert_eq!(strided(0, 4, 0, 0), Ok(()));
    for (m, n) in [(3, 3), (5, 3), (usize::MAX, 2)] {
        assert!(matches!(TensorMut::new(&mut data, m, n), Err(Error::Shape { .. })), "{m}×{n}");
    }
}

#[test]
fn a_matrix_is_transformed_in_place() {
    fn check<E: Element>() {
        let mut a = Matrix::<E>::from_fn(3, 4, |i, j| E::from_f64((i + j) as f64));
        fwht::fwht_rows(&mut a, Threads::One).unwrap();
        for i in 0..3 {
            let row: Vec<f64> = a.row(i).iter().map(|x| x.to_f64()).collect();
            assert_eq!(row, [4.0 * i as f64 + 6.0, -2.0, -4.0, 0.0], "{}", E::DTYPE);
        }
    }
    check::<half::f16>();
    check::<half::bf16>();
    check::<f32>();
    check::<f64>();
}

#[cfg(feature = "linalg")]
#[test]
fn views_and_threads_of_faer_are_taken() {
    use tensorslim::{MatMut, Par};
    for par in [Par::Seq, Par::rayon(2)] {
        let mut data = [1.0f32, 10.0, 100.0, 1000.0];
        let x = MatMut::from_row_major_slice_mut(&mut data, 2, 2).reverse_rows_mut();
        fwht::fwht_columns(x, par).unwrap();
        assert_eq!(data, [99.0, 990.0, 101.0, 1010.0]);
    }
}

/// A number just above the middle of two halves goes up, however little it is above.
#[test]
fn halves_of_f64_are_rounded_once() {
    use half::{bf16, f16};
    fn check<E: Element>(last: f64) {
        let above = 1.0 + last / 2.0 + 2f64.powi(-50);
        assert_eq!(E::from_f64(above).to_f64(), 1.0 + last, "{}", E::DTYPE);
        assert_eq!(E::from_f64(-above).to_f64(), -1.0 - last, "{}", E::DTYPE);
        assert_eq!(E::from_f64(1.0 + last / 2.0).to_f64(), 1.0, "{}: ties go to even", E::DTYPE);
        assert_eq!(E::from_f64(1e300).to_f64(), f64::INFINITY);
        assert_eq!(E::from_f64(-1e-300).to_f64().to_bits(), (-0f64).to_bits());
        assert!(E::from_f64(f64::NAN).to_f64().is_nan());
    }
    check::<f16>(2f64.powi(-10));
    check::<bf16>(2f64.powi(-7));
}
