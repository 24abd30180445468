//! Writes factors as rows of the product itself: the row interpolative form (PIFA, arXiv 2501.19090).
//!
//! ```text
//!   W' = U diag(s) Vᵀ  of rank r            W' = P [ I ] C       C  r × n        r of the rows of W', the pivots
//!                                                  [ T ]         T  (m − r) × r  the others as combinations of those
//!
//!   numbers   r (m + n + 1)                 r (m + n) − r²  and r row numbers
//! ```
//!
//! The pivots come from a QR with column pivoting of Uᵀ (LAPACK's GEQP3), in f64; with the same pivots
//! `T = U_rest U_piv⁻¹ = (R_1⁻¹ R_2)ᵀ` by a triangular solve, `2 m r²` flops and more. Entries of T stay small in
//! practice (below 2 on real weights), so that the form is exact to rounding; how exact, [`Pivoted::error`] says.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::qr::col_pivoting::factor as qr;
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Accum, Mat, MatRef, Par};

use super::{Factors, Samples};
use crate::error::{Error, Result};
use crate::linalg::gemm;
use crate::parallel::{self, current_par};
use crate::simd::Scalar;
use crate::tensor::{Element, Matrix, TensorRef};

/// The samples that [`Pivoted::apply`] takes at a time.
const SAMPLES: usize = 256;

/// The product as `P [I; T] C`: some of its rows, and the others as combinations of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Pivoted<T> {
    rows: Matrix<T>,
    coefficients: Matrix<T>,
    pivots: Vec<usize>,
    others: Vec<usize>,
    error: f64,
}

impl<T: Scalar> Pivoted<T> {
    /// Returns C, `r × n`: row i is row `pivots()[i]` of the product.
    pub fn rows(&self) -> &Matrix<T> {
        &self.rows
    }

    /// Returns T, `(m − r) × r`: row i makes row `others()[i]` of the product out of C.
    pub fn coefficients(&self) -> &Matrix<T> {
        &self.coefficients
    }

    /// Returns the numbers of the rows of the product that C holds, in increasing order.
    pub fn pivots(&self) -> &[usize] {
        &self.pivots
    }

    /// Returns the numbers of the other rows, in increasing order.
    pub fn others(&self) -> &[usize] {
        &self.others
    }

    /// Returns the count of numbers in C and T: `r (m + n) − r²`.
    pub fn params(&self) -> usize {
        self.rows.as_slice().len() + self.coefficients.as_slice().len()
    }

    /// Returns `‖U diag(s) Vᵀ − P [I; T] C‖_F / ‖U diag(s) Vᵀ‖_F`, measured with T as it was rounded.
    pub fn error(&self) -> f64 {
        self.error
    }

    /// Computes `P [I; T] C`, `m × n`.
    pub fn reconstruct(&self) -> Matrix<T> {
        let (m, n) = (self.pivots.len() + self.others.len(), self.rows.ncols());
        let mut combined = Matrix::zeros(self.others.len(), n);
        multiply(&mut combined, self.coefficients.as_ref(), self.rows.as_ref());
        let mut whole = Matrix::zeros(m, n);
        let sources = [(&self.pivots, &self.rows), (&self.others, &combined)];
        for (numbers, rows) in sources {
            for (i, &at) in numbers.iter().enumerate() {
                whole.as_mut_slice()[at * n..][..n].copy_from_slice(rows.row(i));
            }
        }
        whole
    }

    /// Computes `y = x W'ᵀ`: `x` is `samples × n`, `y` is `samples × m`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has two axes and `n` columns.
    pub fn apply(&self, x: &TensorRef<'_>) -> Result<Matrix<T>> {
        let samples = Samples::<T>::new("Pivoted::apply", x, self.rows.ncols())?;
        let (samples, r, others) = (samples.as_ref(), self.pivots.len(), self.others.len());
        let count = samples.nrows();
        let mut y = Matrix::zeros(count, r + others);
        // A block of samples stays in the cache from its products until its outputs are in their order.
        let block = SAMPLES.min(count);
        let (mut kept, mut combined) = (Matrix::zeros(block, r), Matrix::zeros(block, others));
        let runs = self.runs();
        for first in (0..count).step_by(SAMPLES) {
            let rows = SAMPLES.min(count - first);
            let samples = samples.subrows(first, rows);
            let par = current_par();
            gemm(kept.as_mut().subrows_mut(0, rows), Accum::Replace, samples, self.rows.as_ref().transpose(), 1.0, par);
            let coefficients = self.coefficients.as_ref().transpose();
            let from = kept.as_ref().subrows(0, rows);
            gemm(combined.as_mut().subrows_mut(0, rows), Accum::Replace, from, coefficients, 1.0, par);
            let outputs = &mut y.as_mut_slice()[first * (r + others)..][..rows * (r + others)];
            let outputs = outputs.chunks_exact_mut(r + others).enumerate().collect();
            parallel::for_each_with(
                par,
                outputs,
                || (),
                |(), (i, y): (usize, &mut [T])| {
                    let (mut kept, mut combined) = (kept.row(i), combined.row(i));
                    let mut y = y;
                    for &(one, other) in &runs {
                        for (source, length) in [(&mut kept, one), (&mut combined, other)] {
                            let (now, later) = source.split_at(length);
                            let (dst, rest) = y.split_at_mut(length);
                            dst.iter_mut().zip(now).for_each(|(dst, &x)| *dst = x);
                            (*source, y) = (later, rest);
                        }
                    }
                },
            );
        }
        Ok(y)
    }

    /// Returns the lengths of the runs of rows that make up the product: so many pivots, then so many others, and so on.
    fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs = Vec::new();
        let mut next = 0;
        let mut pivots = self.pivots.as_slice();
        let m = self.pivots.len() + self.others.len();
        while next < m {
            let ours = pivots.iter().zip(next..).take_while(|(at, row)| **at == *row).count();
            pivots = &pivots[ours..];
            let end = pivots.first().copied().unwrap_or(m);
            runs.push((ours, end - next - ours));
            next = end;
        }
        runs
    }
}

impl<T: Scalar> Factors<T> {
    /// Writes the product as rows of itself, in `r (m + n) − r²` numbers instead of `r (m + n + 1)`.
    ///
    /// # Errors
    /// [`Error::Range`] if a coefficient does not fit `T`, which happens when the factors are not orthonormal.
    pub fn pivot(&self) -> Result<Pivoted<T>> {
        self.check_whole("pivot")?;
        let (m, n, r) = (self.u.nrows(), self.vt.ncols(), self.rank());
        let mut ut = Mat::<f64>::from_fn(r, m, |i, j| Element::to_f64(self.u.row(j)[i]));
        let order = pivoted_qr(&mut ut);
        let (r1, mut r2) = ut.as_mut().split_at_col_mut(r);
        solve_upper_triangular_in_place(r1.as_ref(), r2.as_mut(), Par::Seq);

        // The row numbers increase on both sides.
        let mut pivots: Vec<(usize, usize)> = order[..r].iter().copied().zip(0..).collect();
        let mut others: Vec<(usize, usize)> = order[r..].iter().copied().zip(0..).collect();
        pivots.sort_unstable();
        others.sort_unstable();
        let coefficients = Matrix::from_fn(m - r, r, |i, j| <T as Element>::from_f64(r2[(pivots[j].1, others[i].1)]));
        if let Some(&x) = coefficients.as_slice().iter().find(|x| !Element::to_f64(**x).is_finite()) {
            return Err(Error::Range {
                what: "a coefficient of the pivoted form",
                value: Element::to_f64(x),
                dtype: T::DTYPE,
            });
        }

        let scaled = |row: usize, j: usize| Element::to_f64(self.u.row(row)[j]) * Element::to_f64(self.s[j]);
        let left = Mat::<f64>::from_fn(r, r, |i, j| scaled(pivots[i].0, j));
        let vt = Mat::<f64>::from_fn(r, n, |i, j| Element::to_f64(self.vt.row(i)[j]));
        let mut product = Matrix::zeros(r, n);
        multiply(&mut product, left.as_ref(), vt.as_ref());
        let rows = Matrix::from_fn(r, n, |i, j| <T as Element>::from_f64(product.row(i)[j]));

        // V is orthonormal, so that the norms are those of U diag(s).
        let t = Mat::<f64>::from_fn(m - r, r, |i, j| Element::to_f64(coefficients.row(i)[j]));
        let mut combined = Matrix::zeros(m - r, r);
        multiply(&mut combined, t.as_ref(), left.as_ref());
        let off: f64 = (0..m - r)
            .map(|i| (0..r).map(|j| (combined.row(i)[j] - scaled(others[i].0, j)).powi(2)).sum::<f64>())
            .sum();
        let norm: f64 = self.s.iter().map(|&s| Element::to_f64(s).powi(2)).sum();
        Ok(Pivoted {
            rows,
            coefficients,
            pivots: pivots.into_iter().map(|(row, _)| row).collect(),
            others: others.into_iter().map(|(row, _)| row).collect(),
            error: if norm > 0.0 { (off / norm).sqrt() } else { 0.0 },
        })
    }
}

/// Computes `c <- a b` on the threads of the current pool.
fn multiply<T: Scalar>(c: &mut Matrix<T>, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    gemm(c.as_mut(), Accum::Replace, a, b, 1.0, current_par());
}

/// Computes `a <- R` of the QR with column pivoting of a wide matrix, and returns the order of its columns. What is
/// below the diagonal of `a` is not R.
fn pivoted_qr(a: &mut Mat<f64>) -> Vec<usize> {
    let (r, m) = a.shape();
    let block = qr::recommended_block_size::<f64>(r, m);
    let mut coefficients = Mat::<f64>::zeros(block, r.min(m));
    let (mut order, mut inverse) = (vec![0usize; m], vec![0usize; m]);
    let mut scratch = MemBuffer::new(qr::qr_in_place_scratch::<usize, f64>(r, m, block, Par::Seq, Default::default()));
    qr::qr_in_place(
        a.as_mut(),
        coefficients.as_mut(),
        &mut order,
        &mut inverse,
        Par::Seq,
        MemStack::new(&mut scratch),
        Default::default(),
    );
    order
}
