//! Rotates inputs and weight of a layer by the same random orthogonal matrix, so that no feature sticks out and both can be
//! stored in few bits. The layer's outputs stay what they are.
#![allow(clippy::print_stdout)] // an example says what it found

use tensorslim::rng::{Philox, stream};
use tensorslim::rotation::{Rotation, Scheme};
use tensorslim::{TensorMut, Threads};

const FEATURES: usize = 768; // 12·2^6, the order of a Hadamard matrix; `Scheme::nearest` says which lengths are

fn main() -> tensorslim::Result<()> {
    let (samples, outputs, n) = (64, 32, FEATURES);
    // A few features of the inputs are a hundred times as large as the others.
    let mut x = normals(samples * n, 1);
    x.iter_mut().enumerate().filter(|(i, _)| i % n % 200 == 7).for_each(|(_, x)| *x *= 100.0);
    let mut w = normals(outputs * n, 2);

    let before = (product(&x, &w), peak(&x));
    let rotation = Rotation::new(n, 7, Scheme::Order)?;
    rotation.apply_rows(TensorMut::new(&mut x, samples, n)?, Threads::Pool)?;
    rotation.apply_rows(TensorMut::new(&mut w, outputs, n)?, Threads::Pool)?;
    let after = (product(&x, &w), peak(&x));

    println!("largest number over the root mean square of a row: {:.1}, rotated {:.1}", before.1, after.1);
    assert!(before.1 > 10.0 && after.1 < 5.0);
    let scale = before.0.iter().fold(0.0, |top: f64, y| top.max(y.abs()));
    assert!(before.0.iter().zip(&after.0).all(|(y, z)| (y - z).abs() < 1e-5 * scale));
    Ok(())
}

/// `x wᵀ`.
fn product(x: &[f32], w: &[f32]) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    x.chunks(FEATURES).flat_map(|x| w.chunks(FEATURES).map(move |w| dot(x, w))).collect()
}

/// The largest `max |x| / rms x` of all rows: what a quantizer with one step for a row suffers from.
fn peak(x: &[f32]) -> f32 {
    let of_row = |x: &[f32]| {
        let rms = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
        x.iter().fold(0.0, |top: f32, x| top.max(x.abs())) / rms
    };
    x.chunks(FEATURES).map(of_row).fold(0.0, f32::max)
}

fn normals(count: usize, seed: u64) -> Vec<f32> {
    let mut z = vec![0f32; count];
    Philox::new(seed, stream::DATA).normals(0, &mut z);
    z
}
