use crate::*;
use faer::{Accum, Mat};
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sketch {
    Gaussian,
    #[default]
    Srht,
    SparseSign,
}
pub struct AnySketch {
    n: usize,
    l: usize,
    seed: u64,
}
impl AnySketch {
    pub fn new(_k: Sketch, n: usize, l: usize, seed: u64, stream: u64) -> Result<Self> {
        Ok(Self { n, l, seed: seed ^ (stream << 32) })
    }
    pub fn to_dense<T: Scalar>(&self) -> Mat<T> {
        let mut s = self.seed.wrapping_add(0x9E3779B97F4A7C15);
        let mut u = || {
            let mut a = 0.0;
            for _ in 0..12 {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                a += (s >> 11) as f64 / (1u64 << 53) as f64;
            }
            a - 6.0
        };
        Mat::from_fn(self.n, self.l, |_, _| T::from_f64(u() / (self.l as f64).sqrt()))
    }
    pub fn apply<E: Element, T: Scalar>(&self, a: MatRef<E>, y: MatMut<T>, par: Par) -> Result<()> {
        self.apply_rows(0..self.n, a, 1.0, Accum::Replace, y, par)
    }
    pub fn apply_rows<E: Element, T: Scalar>(
        &self,
        r: std::ops::Range<usize>,
        a: MatRef<E>,
        scale: f64,
        acc: Accum,
        y: MatMut<T>,
        par: Par,
    ) -> Result<()> {
        let o = self.to_dense::<T>();
        let a = Mat::<T>::from_fn(a.nrows(), a.ncols(), |i, j| T::from_f64(scale * a[(i, j)].as_f64()));
        faer::linalg::matmul::matmul(y, acc, &a, o.subrows(r.start, r.len()), T::one(), par);
        Ok(())
    }
}
