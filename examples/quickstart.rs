//! Replaces the weight of a linear layer by the weights of two thin ones.
#![allow(clippy::print_stdout)] // an example says what it found

use tensorslim::rng::{Philox, stream};
use tensorslim::{Rank, Split, TensorRef, TruncatedSvd};

fn main() -> tensorslim::Result<()> {
    // 1536 outputs × 384 inputs: random columns that fade, as weights of trained layers do.
    let (m, n) = (1536, 384);
    let mut weight = vec![0f32; m * n];
    Philox::new(1, stream::DATA).normals(0, &mut weight);
    weight.iter_mut().enumerate().for_each(|(i, w)| *w /= 1.0 + (i % n) as f32 / 8.0);

    let w = TensorRef::new(&weight, &[m, n])?;
    let f = TruncatedSvd::new(Rank::Ratio(3.2)).factor::<f32>(w)?;

    let report = f.report();
    println!("rank {} by {}: {:.1} times fewer numbers", report.rank, report.method, report.ratio());
    println!("relative error {:.4} ({})", report.relative_error, report.error_kind);
    assert!(report.ratio() >= 3.2);

    // y = x Wᵀ becomes y = (x downᵀ) upᵀ.
    let (up, down) = f.split(Split::Balanced);
    assert_eq!((up.nrows(), up.ncols()), (m, report.rank));
    assert_eq!((down.nrows(), down.ncols()), (report.rank, n));

    // The certificate is true: the product of the factors is that far from the weight.
    let square = |x: f32| f64::from(x) * f64::from(x);
    let product = f.reconstruct();
    let missing: f64 = weight.iter().zip(product.as_slice()).map(|(w, p)| square(w - p)).sum();
    let error = (missing / weight.iter().map(|&w| square(w)).sum::<f64>()).sqrt();
    assert!((error - report.relative_error).abs() < 1e-5, "{error}");
    Ok(())
}
