//! Extracts a low-rank update from two weights: the factors of `tuned − base`, which is never formed.
#![allow(clippy::print_stdout)] // an example says what it found

use half::bf16;
use tensorslim::operator::{Difference, Watch};
use tensorslim::rng::{Philox, stream};
use tensorslim::{Matrix, Rank, TensorRef, TruncatedSvd};

fn main() -> tensorslim::Result<()> {
    // A weight in bf16, and the same after training with an update of rank 8.
    let (m, n, r) = (1024, 512, 8);
    let normals = |index, len| {
        let mut x = vec![0f32; len];
        Philox::new(7, stream::DATA).normals(index, &mut x);
        x
    };
    let (w, b, a) = (normals(0, m * n), normals(1 << 32, m * r), normals(2 << 32, r * n));
    let base: Vec<bf16> = w.iter().map(|w| bf16::from_f32(0.02 * w)).collect();
    let update = Matrix::<f32>::from_fn(m, n, |i, j| (0..r).map(|t| 1e-3 * b[i * r + t] * a[t * n + j]).sum());
    let add = |(base, update): (&bf16, &f32)| bf16::from_f32(base.to_f32() + update);
    let tuned: Vec<bf16> = base.iter().zip(update.as_slice()).map(add).collect();

    let mut difference = Difference::new(TensorRef::new(&tuned, &[m, n])?, TensorRef::new(&base, &[m, n])?)?;
    // Values above what rounding to bf16 leaves, here about 0.006: those of the update.
    let lora = TruncatedSvd::new(Rank::Above(0.02)).factor_rows::<f32>(&mut difference, &Watch::default())?;
    let off = lora.residual::<f32>(&update.as_tensor()?)?;
    let norm = |x: &Matrix<f32>| x.as_slice().iter().map(|x| x * x).sum::<f32>().sqrt();
    println!("rank {}, off by {:.4} of the update", lora.rank(), norm(&off) / norm(&update));
    assert!(lora.rank() == r && norm(&off) < 0.02 * norm(&update));

    // Two matrices for the adapter: W + up · down.
    let (up, down) = lora.split(tensorslim::Split::Balanced);
    assert_eq!((up.ncols(), down.nrows()), (r, r));
    Ok(())
}
