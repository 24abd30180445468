//! Shares one parameter budget among the layers of a model: each gets the rank at which it does the most good.
#![allow(clippy::print_stdout)] // an example says what it found

use tensorslim::rank::{self, Budget, Cost, Layer, Share};
use tensorslim::rng::{Philox, stream};
use tensorslim::{DType, Matrix, Method, Rank, TruncatedSvd};

fn main() -> tensorslim::Result<()> {
    // Three layers whose columns fade slowly, fast, and not at all.
    let shapes = [(512, 128, 0.5), (256, 256, 2.0), (128, 384, 0.0)];
    let weights: Vec<_> = shapes.iter().map(|&(m, n, decay)| weight(m, n, decay)).collect();

    // The budget needs the singular values. `Method::Full` gives all of them; a partial list is good enough for ranks within it.
    let mut spectra = Vec::new();
    for w in &weights {
        let all = Rank::Fixed(w.nrows().min(w.ncols()));
        let f = TruncatedSvd::new(all).method(Method::Full).factor::<f32>(w.as_tensor()?)?;
        spectra.push((f.report().spectrum.clone(), f.report().norm.powi(2)));
    }
    let layers: Vec<_> = (weights.iter().zip(&spectra))
        .map(|(w, (spectrum, norm_squared))| {
            let layer = Layer::new((w.nrows(), w.ncols()), DType::F32, spectrum, *norm_squared);
            Layer { weight: 1.0 / norm_squared, ..layer } // errors count relative to each layer
        })
        .collect();

    let numbers: u64 = layers.iter().map(|layer| layer.cost(Share::Whole, Cost::Parameters)).sum();
    let allocation = rank::allocate(&layers, Budget::parameters(numbers / 3))?;
    assert!(allocation.total <= numbers / 3);

    let mut uniform = 0.0;
    for (layer, share) in layers.iter().zip(&allocation.shares) {
        let k = rank::rank_for_ratio(layer.shape.0, layer.shape.1, 3.0);
        uniform += layer.loss(Share::Rank(k));
        println!("{:?}: {share:?}, by a ratio of 3 for each rank {k}", layer.shape);
    }
    println!("loss {:.3}, by a ratio of 3 for each {uniform:.3}", allocation.loss);
    assert!(allocation.loss < uniform);

    // Nothing within the budget loses less than the bound: here the search was complete, and the two are equal.
    assert_eq!(allocation.bound, allocation.loss);
    Ok(())
}

/// Random columns, the j-th divided by `(1 + j)^decay`.
fn weight(m: usize, n: usize, decay: f32) -> Matrix<f32> {
    let mut z = vec![0f32; m * n];
    Philox::new(3, stream::DATA).normals(0, &mut z);
    Matrix::from_fn(m, n, |i, j| z[i * n + j] * (1.0 + j as f32).powf(-decay))
}
