//! One-sided Jacobi: the solver of last resort, for small problems on which a library's solver gave up or went wrong.
//!
//! ```text
//!   X J = W Σ      plane rotations from the right, until every pair of columns of X is orthogonal     (Hestenes 1958)
//!
//!   eigenvalues of G >= 0     PᵀG P = L Lᵀ,  X = L     G = (P W) Σ² (P W)ᵀ          (Veselić, Hari 1989)
//!   singular values of A      A P = Q R,     X = Rᵀ    A = (Q J) Σ (P W)ᵀ           (Drmač, Veselić 2008)
//! ```
//!
//! Both factorizations pivot, which shows the numerical rank r: X has r columns of decreasing length, nearly orthogonal
//! already. What lies below `n eps` of the largest eigenvalue or singular value is taken for zero. Matrices with many
//! zero or dependent rows, on which the libraries fail, have a small r. A sweep costs `3 n r²` multiplications, and
//! five to eight sweeps are usual; it is not tuned.
//!
//! It ends for every input: a rotation is skipped once its pair is orthogonal to rounding, and the number of sweeps is
//! bounded. Vectors of the null space come from Householder reflections, so that U and V are square and orthonormal.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as reflections_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply_reflections,
};
use faer::linalg::qr::col_pivoting::factor as pivoted_qr;
use faer::{Conj, Mat, MatMut, MatRef, Par};

use super::results::SmallSvd;
use crate::linalg::{column, column_mut};
use crate::qr::householder;
use crate::simd::Scalar;
use crate::tensor::Element;

/// The most sweeps over all pairs. Ten were never needed.
const SWEEPS: usize = 40;

/// Computes the eigenvalues, nondecreasing, and orthonormal eigenvectors of the positive semidefinite matrix whose
/// lower triangle is in `g`.
pub(super) fn symmetric_eigen<T: Scalar>(g: MatRef<'_, T>) -> (Vec<T>, Mat<T>) {
    let n = g.nrows();
    let (mut x, order) = pivoted_cholesky(g);
    let lengths = orthogonalize(&mut x, None);
    let rank = x.ncols();
    let mut by_length: Vec<usize> = (0..rank).collect();
    by_length.sort_by(|&i, &j| lengths[j].total_cmp(&lengths[i]));

    let mut vectors = Mat::<T>::zeros(n, n);
    let mut values = vec![T::zeroed(); n];
    for (j, &from) in by_length.iter().enumerate() {
        values[n - 1 - j] = T::from_f64(lengths[from] * lengths[from]);
        let to = column_mut(vectors.as_mut(), j);
        for (x, &row) in column(x.as_ref(), from).iter().zip(&order) {
            to[row] = T::from_f64(Element::to_f64(*x) / lengths[from]);
        }
    }
    drop(x);
    complete(vectors.as_mut(), rank);
    // The order is reversed, because eigenvalues are returned nondecreasing.
    for j in 0..n / 2 {
        let (mut left, mut right) = vectors.as_mut().split_at_col_mut(n - 1 - j);
        column_mut(left.as_mut(), j).swap_with_slice(column_mut(right.as_mut(), 0));
    }
    (values, vectors)
}

/// Computes the SVD of the square matrix `a`, with all singular vectors.
pub(super) fn svd(a: MatRef<'_, f64>) -> SmallSvd<f64> {
    let l = a.nrows();
    let block = pivoted_qr::recommended_block_size::<f64>(l, l);
    let mut reflections = Mat::<f64>::zeros(block, l);
    let mut factor = a.to_owned();
    let (mut order, mut inverse) = (vec![0usize; l], vec![0usize; l]);
    {
        let scratch = pivoted_qr::qr_in_place_scratch::<usize, f64>(l, l, block, Par::Seq, Default::default());
        pivoted_qr::qr_in_place(
            factor.as_mut(),
            reflections.as_mut(),
            &mut order,
            &mut inverse,
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        );
    }
    let pivot = |j: usize| factor[(j, j)].abs();
    let negligible = l as f64 * f64::EPSILON * pivot(0);
    let rank = (0..l).take_while(|&j| pivot(j) > negligible).count();
    let mut x = Mat::from_fn(l, rank, |i, j| if j <= i { factor[(j, i)] } else { 0.0 });
    let mut rotations = Mat::identity(rank, rank);
    let lengths = orthogonalize(&mut x, Some(&mut rotations));
    let mut by_length: Vec<usize> = (0..rank).collect();
    by_length.sort_by(|&i, &j| lengths[j].total_cmp(&lengths[i]));

    let mut v = Mat::zeros(l, l);
    for (j, &from) in by_length.iter().enumerate() {
        let to = column_mut(v.as_mut(), j);
        column(x.as_ref(), from).iter().zip(&order).for_each(|(x, &row)| to[row] = x / lengths[from]);
    }
    drop(x);
    complete(v.as_mut(), rank);

    let mut u = Mat::zeros(l, l);
    for (j, &from) in by_length.iter().enumerate() {
        column_mut(u.as_mut(), j)[..rank].copy_from_slice(column(rotations.as_ref(), from));
    }
    (rank..l).for_each(|j| u[(j, j)] = 1.0);
    drop(rotations);
    if rank > 0 {
        // Reflections beyond the rank are not used, and may hold values that are not numbers.
        let (factor, reflections) = (factor.subcols(0, rank), reflections.subcols(0, rank));
        let mut buffer = MemBuffer::new(reflections_scratch::<f64>(l, block, l));
        apply_reflections(factor, reflections, Conj::No, u.as_mut(), Par::Seq, MemStack::new(&mut buffer));
    }
    let s = (0..l).map(|j| by_length.get(j).map_or(0.0, |&from| lengths[from])).collect();
    SmallSvd { u, s, v, remedy: None }
}

/// Factors `PᵀG P ≈ L Lᵀ`, up to what is negligible beside the largest entry of the diagonal. Returns L, n × r, and the
/// order of its rows.
fn pivoted_cholesky<T: Scalar>(g: MatRef<'_, T>) -> (Mat<T>, Vec<usize>) {
    let n = g.nrows();
    let mut order: Vec<usize> = (0..n).collect();
    let mut left: Vec<f64> = (0..n).map(|i| g[(i, i)].to_f64()).collect();
    let largest = left.iter().fold(0.0, |a: f64, &x| a.max(x));
    let negligible = n as f64 * T::EPSILON * largest;
    let mut l = Mat::<T>::zeros(n, n);
    let mut rank = 0;
    while rank < n {
        let pivot = (rank..n).max_by(|&i, &j| left[order[i]].total_cmp(&left[order[j]])).expect("rows are left");
        if left[order[pivot]].is_nan() || left[order[pivot]] <= negligible {
            break;
        }
        order.swap(rank, pivot);
        (0..rank).for_each(|j| column_mut(l.as_mut(), j).swap(rank, pivot));
        let p = order[rank];
        let root = left[p].sqrt();
        let mut next: Vec<f64> = order[rank..].iter().map(|&i| g[(i.max(p), i.min(p))].to_f64()).collect();
        for j in 0..rank {
            let before = &column(l.as_ref(), j)[rank..];
            let across = before[0].to_f64();
            next.iter_mut().zip(before).for_each(|(x, y)| *x -= across * Element::to_f64(*y));
        }
        let to = &mut column_mut(l.as_mut(), rank)[rank..];
        to[0] = T::from_f64(root);
        for ((to, x), &i) in to.iter_mut().zip(&next).zip(&order[rank..]).skip(1) {
            let x = x / root;
            *to = T::from_f64(x);
            left[i] -= x * x;
        }
        rank += 1;
    }
    l.truncate(n, rank);
    (l, order)
}

/// Rotates the columns of `x` until they are orthogonal, and those of `rotations` with them; returns the lengths of the
/// columns of `x`.
fn orthogonalize<T: Scalar>(x: &mut Mat<T>, mut rotations: Option<&mut Mat<T>>) -> Vec<f64> {
    let (n, r) = (x.nrows(), x.ncols());
    // Dot products of n terms are off by this part of the lengths in any case.
    let orthogonal = T::EPSILON * (n as f64).sqrt();
    for _ in 0..SWEEPS {
        let mut squares: Vec<f64> = (0..r).map(|j| dot(column(x.as_ref(), j), column(x.as_ref(), j))).collect();
        let mut rotated = false;
        for p in 0..r {
            for q in p + 1..r {
                let (first, second) = pair(x.as_mut(), p, q);
                let product = dot(first, second);
                if product == 0.0 || product.abs() <= orthogonal * (squares[p] * squares[q]).sqrt() {
                    continue;
                }
                let zeta = (squares[q] - squares[p]) / (2.0 * product);
                let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                if tangent == 0.0 {
                    continue;
                }
                rotated = true;
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                let sine = cosine * tangent;
                rotate(first, second, cosine, sine);
                if let Some(rotations) = &mut rotations {
                    let (first, second) = pair(rotations.as_mut(), p, q);
                    rotate(first, second, cosine, sine);
                }
                squares[p] = (squares[p] - tangent * product).max(0.0);
                squares[q] += tangent * product;
            }
        }
        if !rotated {
            break;
        }
    }
    (0..r).map(|j| dot(column(x.as_ref(), j), column(x.as_ref(), j)).sqrt()).collect()
}

/// Returns columns `p < q` as two mutable slices.
fn pair<T>(a: MatMut<'_, T>, p: usize, q: usize) -> (&mut [T], &mut [T]) {
    let (left, right) = a.split_at_col_mut(q);
    (column_mut(left, p), column_mut(right, 0))
}

fn rotate<T: Scalar>(x: &mut [T], y: &mut [T], cosine: f64, sine: f64) {
    let (c, s) = (T::from_f64(cosine), T::from_f64(sine));
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// Computes the dot product in f64, in eight sums.
fn dot<T: Scalar>(x: &[T], y: &[T]) -> f64 {
    let mut sums = [0.0; 8];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    for (x, y) in x.iter().zip(y) {
        (0..8).for_each(|i| sums[i] += Element::to_f64(x[i]) * Element::to_f64(y[i]));
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(&x, &y)| Element::to_f64(x) * Element::to_f64(y)).sum();
    sums.iter().sum::<f64>() + rest
}

/// Fills the columns of a square matrix from `rank` on with an orthonormal basis of the complement of its first
/// columns, which are orthonormal.
fn complete<T: Scalar>(mut q: MatMut<'_, T>, rank: usize) {
    let n = q.nrows();
    if rank == n {
        return;
    }
    let kept = q.as_ref().subcols(0, rank).to_owned();
    q.as_mut().subcols_mut(rank, n - rank).fill(T::zeroed());
    let mut t = Mat::zeros(householder::block_size(n, n), n);
    let factor = householder::factor_scratch::<T>(n, n, Par::Seq);
    let scratch = factor.or(householder::form_q_scratch::<T>(n, n, Par::Seq));
    let mut buffer = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut buffer);
    householder::factor(q.as_mut(), t.as_mut(), Par::Seq, stack);
    householder::form_q(q.as_mut(), t.as_ref(), Par::Seq, stack);
    // The reflections give the first columns to rounding, except for signs; the kept ones replace them.
    q.subcols_mut(0, rank).copy_from(kept);
}
