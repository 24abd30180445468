//! Weighs a layer's errors by its inputs and by what a loss makes of its outputs, and shares a budget among layers.
#![allow(clippy::print_stdout)] // an example says what it found

use tensorslim::rank::{Budget, Layer, Share, allocate};
use tensorslim::rng::{Philox, stream};
use tensorslim::{Calibration, DType, Matrix, Rank, TruncatedSvd, quality};

fn main() -> tensorslim::Result<()> {
    let (m, n) = (256, 128);
    let normals = |index: u64, rows: usize, cols: usize| {
        let mut x = vec![0f32; rows * cols];
        Philox::new(7, stream::DATA).normals(index << 32, &mut x);
        // Some features matter much more than others.
        Matrix::from_fn(rows, cols, |i, j| x[i * cols + j] / (1.0 + j as f32 / 8.0))
    };
    let mut values = Vec::new();
    for layer in 0..3 {
        let w = normals(3 * layer, m, n);
        let (mut inputs, mut gradients) = (Calibration::new(n)?, Calibration::new(m)?);
        inputs.update(&normals(3 * layer + 1, 1000, n).as_tensor()?)?;
        gradients.update(&normals(3 * layer + 2, 1000, m).as_tensor()?)?;

        let svd = TruncatedSvd::new(Rank::Ratio(2.0)).calibration(&inputs);
        let (one, two) =
            (svd.factor::<f32>(w.as_tensor()?)?, svd.output_calibration(&gradients).factor::<f32>(w.as_tensor()?)?);
        let loss = |f| quality::weighted(&w.as_tensor()?, f, Some(&inputs), Some(&gradients)).map(|a| a.relative_error);
        println!("layer {layer}: error in the loss's norm {:.4} one-sided, {:.4} two-sided", loss(&one)?, loss(&two)?);
        assert!(loss(&two)? < loss(&one)?);
        let weighted = two.report().activation.clone().expect("statistics were given");
        values.push((weighted.spectrum, weighted.norm.powi(2)));
    }

    // Losses of all layers have one unit, so that a budget may add them.
    let layers: Vec<_> = values.iter().map(|(s, norm)| Layer::new((m, n), DType::F32, s, *norm)).collect();
    let shares = allocate(&layers, Budget::parameters((3 * m * n / 4) as u64))?.shares;
    println!("ranks within a quarter of the parameters: {shares:?}");
    assert!(shares.iter().all(|share| matches!(share, Share::Rank(_))));
    Ok(())
}
