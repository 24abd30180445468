//! One seed, one answer: the same bits for any number of threads and over repeated runs, for every sketch and method.

use crate::common::*;
use faer::MatRef;
use half::{bf16, f16};
use tensorslim::{DType, Element, Error, Factors, Method, Rank, Scalar, Sketch, TruncatedSvd, quality};

fn bytes<T: Scalar>(f: &Factors<T>) -> Vec<u8> {
    let mut bytes = f.u().to_bytes(DType::F64);
    bytes.extend_from_slice(bytemuck::cast_slice(f.s()));
    bytes.extend(f.vt().to_bytes(DType::F64));
    bytes.extend(f.report().relative_error.to_le_bytes());
    bytes
}

fn same_on_any_number_of_threads<E: Element, T: Scalar>(a: MatRef<'_, f64>, k: usize) {
    let w = rounded::<E>(a);
    let (m, n) = (a.nrows(), a.ncols());
    for method in Method::ALL {
        for sketch in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
            let run = |threads, seed| {
                let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch).seed(seed);
                on_threads(threads, || bytes(&svd.factor::<T>(w.as_tensor().unwrap()).unwrap()))
            };
            let what = format!("{m}×{n} {} in {}, {method}, {sketch}", E::DTYPE, T::DTYPE);
            let reference = run(1, 7);
            for threads in [1, 2, 3] {
                assert!(run(threads, 7) == reference, "{what}: {threads} threads give other bits than one");
            }
            if matches!(method, Method::Randomized) {
                assert!(run(2, 8) != reference, "{what}: another seed gives the same bits");
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit_of_tall_f32() {
    // Large enough that GEMM, syrk, QR and the sketches all split their work.
    same_on_any_number_of_threads::<f32, f32>(gaussian(1531, 389, 1).as_ref(), 48);
}

#[test]
fn threads_do_not_change_a_bit_of_wide_and_half_precision() {
    same_on_any_number_of_threads::<f16, f32>(gaussian(311, 1203, 2).as_ref(), 33);
    same_on_any_number_of_threads::<bf16, f32>(gaussian(1203, 311, 2).as_ref(), 33);
}

#[test]
fn threads_do_not_change_a_bit_of_f64() {
    same_on_any_number_of_threads::<f64, f64>(gaussian(700, 257, 3).as_ref(), 40);
}

#[test]
fn threads_do_not_change_a_bit_of_ill_conditioned_matrices() {
    // Takes the repairs of orthonormalization and the probes of the certificate.
    let spectrum: Vec<f64> = (0..150).map(|i| 10f64.powf(-f64::from(i) / 10.0)).collect();
    same_on_any_number_of_threads::<f32, f32>(with_spectrum(900, 150, &spectrum, 4).as_ref(), 100);
}

#[test]
fn threads_do_not_change_a_bit_of_quality() {
    let w = real("ffn_up", 1536, 384);
    let x = real("ffn_up_heldout", 512, 384);
    let run = |threads| {
        on_threads(threads, || {
            let f = TruncatedSvd::new(Rank::Ratio(3.2)).factor::<f32>(w.as_tensor().unwrap()).unwrap();
            quality::activation(&w.as_tensor().unwrap(), &f, &x.as_tensor().unwrap()).unwrap()
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn many_at_once_are_single_calls() {
    let f32s = |m, n, seed| rounded::<f32>(gaussian(m, n, seed).as_ref());
    let mut bad = f32s(80, 60, 9);
    bad.as_mut_slice()[17 * 60 + 5] = f32::NAN;
    let half = rounded::<f16>(gaussian(120, 90, 5).as_ref());
    // Square, tall, wide, one too small for the rank, one with a NaN, and two that are large.
    let owned =
        [f32s(64, 64, 1), f32s(801, 700, 2), f32s(256, 40, 3), bad, f32s(40, 300, 4), f32s(5, 5, 6), f32s(700, 801, 7)];
    let mut list: Vec<_> = owned.iter().map(|w| w.as_tensor().unwrap()).collect();
    list.insert(1, half.as_tensor().unwrap());
    let svd = TruncatedSvd::new(Rank::Fixed(8)).seed(3);
    let text = |result: Result<Factors<f32>, Error>| match result {
        Ok(factors) => Ok(bytes(&factors)),
        Err(error) => Err(error.to_string()),
    };
    let single: Vec<_> = list.iter().map(|w| text(svd.factor::<f32>(w.clone()))).collect();
    assert!(single[4].as_ref().is_err_and(|e| e.contains("(17, 5)")), "{:?}", single[4].as_ref().err());
    assert_eq!(single.iter().filter(|r| r.is_err()).count(), 2);
    for threads in [1, 2, 3] {
        let many = on_threads(threads, || svd.factor_many::<f32>(&list));
        assert_eq!(many.len(), single.len());
        for (i, (many, single)) in many.into_iter().zip(&single).enumerate() {
            assert!(text(many) == *single, "matrix {i} on {threads} threads");
        }
    }
    assert!(svd.factor_many::<f32>(&[]).is_empty());
}
