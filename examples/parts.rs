//! Parts of a factorization: middle and minor triplets, one side from a start, factors beside a quantized weight, and one
//! factor for several matrices.
#![allow(clippy::print_stdout)] // an example says what it found

use tensorslim::operator::Along;
use tensorslim::{Matrix, Rank, TensorRef, TruncatedSvd};

fn main() -> tensorslim::Result<()> {
    let (m, n) = (96, 64);
    let wave = |i: usize, j: usize| ((i * 37 + j * 101 + i * j) as f32 * 0.71).sin() / (1 + i + j) as f32;
    let weights = Matrix::from_fn(m, n, wave);
    let (w, svd) = (weights.as_tensor()?, TruncatedSvd::new(Rank::Fixed(8)));

    // Triplets 4 to 7 of the largest (LoRA-GA), and the 8 smallest (MiCA).
    let f = svd.factor::<f32>(w.clone())?;
    let middle = f.range(4..8)?;
    let minor = svd.clone().smallest(true).factor::<f32>(w.clone())?;
    println!("middle {:?}, minor {:?}", middle.s(), minor.s());
    assert!(middle.s() == &f.s()[4..8] && minor.s()[0] <= f.s()[7]);

    // One side, and that of the next step from it (GaLore): 3 products with the matrix in place of 6.
    let basis = svd.basis::<f32>(&w, None)?;
    let drifted = Matrix::from_fn(m, n, |i, j| wave(i, j) * (1.0 + 0.01 * j as f32 / n as f32));
    let next = svd.basis(&drifted.as_tensor()?, Some(&basis.vectors))?;
    println!("{} products, relative error {:.4}", next.report.passes, next.report.relative_error);
    assert_eq!(next.report.passes, 3);

    // What a quantizer loses, as factors (LoftQ). The quantizer is the caller's.
    let quantized = svd.factor_quantized::<f32>(&w, 5, &mut |a: &mut Matrix<f32>| {
        a.as_mut_slice().iter_mut().for_each(|x| *x = (16.0 * *x).round() / 16.0);
        Ok(())
    })?;
    println!("errors of the rounds: {:?}", quantized.errors);

    // One Vᵀ for matrices of the same inputs.
    let heads =
        weights.as_slice().chunks(32 * n).map(|w| TensorRef::new(w, &[32, n])).collect::<Result<Vec<_>, _>>()?;
    let shared = svd.factor_shared::<f32>(&heads, Along::Rows)?;
    assert_eq!((shared.own.len(), shared.own[0].nrows()), (3, 32));
    Ok(())
}
