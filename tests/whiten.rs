//! Factors that know the activations: calibration statistics, whitened factorization, quality.

mod common;

use common::*;
use half::f16;
use tensorslim::{Calibration, Matrix, Method, Rank, TruncatedSvd, quality};

fn calibrated(x: &Matrix<f16>) -> Calibration {
    let mut c = Calibration::new(x.ncols()).unwrap();
    c.update(&x.as_tensor().unwrap()).unwrap();
    c
}

struct Real {
    w: Matrix<f16>,
    calibration: Matrix<f16>,
    heldout: Matrix<f16>,
}

fn up() -> Real {
    Real {
        w: real("ffn_up", 1536, 384),
        calibration: real("ffn_up_calibration", 1024, 384),
        heldout: real("ffn_up_heldout", 512, 384),
    }
}

fn down() -> Real {
    Real {
        w: real("ffn_down", 384, 1536),
        calibration: real("ffn_down_calibration", 2048, 1536),
        heldout: real("ffn_down_heldout", 512, 1536),
    }
}

/// Ratio 3.2 (k = 95). The exact figures are those of `tests/data/README.md`, from NumPy in f64.
fn reaches(real: &Real, loss: f64, error: f64, cosine: f64) {
    let c = calibrated(&real.calibration);
    for (method, margin) in [(Method::Auto, 1e-2), (Method::Full, 1e-3)] {
        let w = real.w.as_tensor().unwrap();
        let f = TruncatedSvd::new(Rank::Ratio(3.2)).method(method).calibration(&c).factor::<f32>(w.clone()).unwrap();
        assert_eq!(f.rank(), 95);
        let report = f.report().activation.as_ref().unwrap();
        let held = quality::activation(&w, &f, &real.heldout.as_tensor().unwrap()).unwrap();
        println!(
            "{method}: {:.5} {:.5} {:.5} weight {} {:?}",
            report.relative_error,
            held.relative_error,
            held.cosine,
            f.report().relative_error,
            f.report().elapsed
        );
        assert!(
            (report.relative_error / loss - 1.0).abs() < margin,
            "{method}: calibration loss {}",
            report.relative_error
        );
        assert!(held.relative_error <= error, "{method}: heldout error {}", held.relative_error);
        assert!(held.cosine >= cosine, "{method}: heldout cosine {}", held.cosine);
        let measured = quality::activation(&w, &f, &real.calibration.as_tensor().unwrap()).unwrap();
        assert!((report.relative_error - measured.relative_error).abs() < 1e-5, "{report:?} {measured:?}");
        let expected = quality::expected(&w, &f, &c).unwrap();
        assert!((expected.relative_error - measured.relative_error).abs() < 1e-5, "{expected:?} {measured:?}");
    }
}

#[test]
fn up_projection() {
    reaches(&up(), 0.17475, 0.196, 0.9806);
}

#[test]
fn down_projection() {
    reaches(&down(), 0.12267, 0.149, 0.9887);
}
