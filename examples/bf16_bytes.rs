//! Factors a bf16 weight that is a run of bytes, as files of weights hold it, and gives the factors back as such bytes.
#![allow(clippy::print_stdout)] // an example says what it found

use half::bf16;
use tensorslim::rng::{Philox, stream};
use tensorslim::{DType, Rank, Split, TensorRef, TruncatedSvd};

fn main() -> tensorslim::Result<()> {
    let (m, n) = (512, 256);
    let bytes = weight(m, n);

    // Nothing is copied or widened here: the kernels widen in cache.
    let w = TensorRef::from_bytes(DType::BF16, &[m, n], &bytes)?;
    let f = TruncatedSvd::new(Rank::Tolerance(0.3)).factor::<f32>(w)?;
    let (up, down) = f.split(Split::Balanced);
    let (up, down) = (up.to_bytes(DType::BF16), down.to_bytes(DType::BF16));

    let k = f.rank();
    println!("rank {k}: {} bytes became {}", bytes.len(), up.len() + down.len());
    assert_eq!((up.len(), down.len()), (2 * m * k, 2 * k * n));
    assert!(up.len() + down.len() < bytes.len());

    // Rounding the factors to bf16 adds little: 8 bits are 0.004 of each number, against the 0.3 that were allowed.
    let (w, up, down) = (numbers(&bytes), numbers(&up), numbers(&down));
    let (mut missing, mut all) = (0.0, 0.0);
    for i in 0..m {
        for j in 0..n {
            let product: f64 = (0..k).map(|l| up[i * k + l] * down[l * n + j]).sum();
            missing += (w[i * n + j] - product).powi(2);
            all += w[i * n + j].powi(2);
        }
    }
    let error = (missing / all).sqrt();
    println!("relative error {:.4}, in bf16 {error:.4}", f.report().relative_error);
    assert!(f.report().relative_error <= 0.3 && error <= 0.301);
    Ok(())
}

/// Bytes of a bf16 matrix whose columns fade.
fn weight(m: usize, n: usize) -> Vec<u8> {
    let mut z = vec![0f32; m * n];
    Philox::new(2, stream::DATA).normals(0, &mut z);
    z.iter().enumerate().flat_map(|(i, z)| bf16::from_f32(z / (1.0 + (i % n) as f32)).to_le_bytes()).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
}
