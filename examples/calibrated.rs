//! Lets samples of a layer's inputs decide which part of its weight is worth keeping.
#![allow(clippy::print_stdout)] // an example says what it found

use tensorslim::rng::{Philox, stream};
use tensorslim::{Calibration, Matrix, Rank, TruncatedSvd, quality};

fn main() -> tensorslim::Result<()> {
    let (m, n) = (512, 256);
    let w = normals(m, n, 1);
    // Inputs use some features far more than others, as activations of language models do.
    let inputs = |samples, seed| {
        let z = normals(samples, n, seed);
        Matrix::from_fn(samples, n, |i, j| z.row(i)[j] / (1.0 + (j * 37 % n) as f32))
    };

    // Samples come in batches; statistics of several machines would be merged.
    let mut statistics = Calibration::new(n)?;
    for batch in 0..4 {
        statistics.update(&inputs(100, 10 + batch).as_tensor()?)?;
    }

    let svd = TruncatedSvd::new(Rank::Ratio(4.0));
    let plain = svd.clone().factor::<f32>(w.as_tensor()?)?;
    let calibrated = svd.calibration(&statistics).factor::<f32>(w.as_tensor()?)?;
    assert_eq!(plain.rank(), calibrated.rank());

    // What the layer gives for inputs that the statistics have not seen.
    let unseen = inputs(200, 99);
    let plain = quality::activation(&w.as_tensor()?, &plain, &unseen.as_tensor()?)?;
    let calibrated = quality::activation(&w.as_tensor()?, &calibrated, &unseen.as_tensor()?)?;
    println!("error of the outputs: {:.3}, calibrated {:.3}", plain.relative_error, calibrated.relative_error);
    assert!(calibrated.relative_error < 0.5 * plain.relative_error);
    Ok(())
}

fn normals(rows: usize, columns: usize, seed: u64) -> Matrix<f32> {
    let mut z = vec![0f32; rows * columns];
    Philox::new(seed, stream::DATA).normals(0, &mut z);
    Matrix::from_fn(rows, columns, |i, j| z[i * columns + j])
}
