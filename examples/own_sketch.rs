//! Implements a sketch of one's own, random signs, and finds with it the range of a matrix.
#![allow(clippy::print_stdout)] // an example says what it found

use faer::Mat;
use tensorslim::dyn_stack::{MemBuffer, MemStack};
use tensorslim::rng::{Philox, stream};
use tensorslim::sketch::SketchOperator;
use tensorslim::{Par, qr};

/// `Ω(i, j) = ±1/√l`, independent fair signs.
struct Signs {
    n: usize,
    l: usize,
    rng: Philox,
}

impl SketchOperator for Signs {
    fn nrows(&self) -> usize {
        self.n
    }

    fn ncols(&self) -> usize {
        self.l
    }

    fn state_bytes(&self) -> usize {
        size_of::<Self>()
    }

    /// A pure function of the indices: any part of Ω can be made anew wherever it is needed.
    fn entry(&self, i: usize, j: usize) -> f64 {
        let index = i * self.l + j;
        let bit = self.rng.block((index / 128) as u64)[index / 32 % 4] >> (index % 32) & 1;
        (1.0 - 2.0 * f64::from(bit)) / (self.l as f64).sqrt()
    }
}

fn main() -> tensorslim::Result<()> {
    let (m, n, k) = (600, 300, 20);
    // A matrix of rank k, and noise of a thousandth.
    let a = normals(m, k, 1) * normals(k, n, 2) + 1e-3 * normals(m, n, 3);

    // Y = A Ω, Q = orth(Y): by theory almost all of A lies in the span of Q.
    let omega = Signs { n, l: k + 10, rng: Philox::new(42, 0) };
    let mut q = Mat::<f64>::zeros(m, omega.l);
    omega.apply(a.as_ref(), q.as_mut(), Par::Seq)?;
    let mut scratch = MemBuffer::new(qr::orthonormalize_scratch::<f64>(m, omega.l, Par::Seq));
    qr::orthonormalize(q.as_mut(), None, Par::Seq, MemStack::new(&mut scratch))?;

    let outside = (&a - &q * (q.transpose() * &a)).norm_l2() / a.norm_l2();
    let noise = 1e-3 * ((m * n) as f64).sqrt() / a.norm_l2();
    println!("outside of the span: {outside:.2e} of the norm; the noise is {noise:.2e}");
    assert!(outside < 2.0 * noise);
    Ok(())
}

fn normals(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
    let mut z = vec![0f32; rows * columns];
    Philox::new(seed, stream::DATA).normals(0, &mut z);
    Mat::from_fn(rows, columns, |i, j| f64::from(z[i * columns + j]))
}
