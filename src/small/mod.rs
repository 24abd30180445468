//! The small dense problems: SVD of an `l × l` triangle, eigenvectors of an `n × n` Gram matrix.
//!
//! ```text
//!   eigenvectors   faer's divide and conquer, of the rows that have anything beside the diagonal
//!   SVD in f32     G = AᵀA in f64 (exact products),  G = V Λ Vᵀ,  A V = U Σ
//!   SVD in f64     faer's bidiagonal SVD, one Newton-Schulz step, Rayleigh quotients
//!   then           is A (V x) = U (Σ x), are Uᵀ(U x) and Vᵀ(V x) = x, for a vector x of signs?
//!                  If not, or if faer gave up: Jacobi rotations (`jacobi.rs`), and a note
//! ```
//!
//! **Nothing here fails on finite numbers.** faer's eigensolver gives up on most matrices `x xᵀ` with few nonzeros in
//! x, and its f64 singular values may come back unordered. Orthonormal vectors turn the signs x into a vector whose
//! length no cancellation can hide, so that one x shows every value that is not that of its vector, for `4 l²`
//! multiplications beside the `9 l³` of the solver.
//!
//! **f32.** The condition number is squared in f64, which costs nothing: V is that of the SVD down to `σ = 1e-8 σ_1`,
//! and the columns of `A V` are orthogonal to `eps64 (σ_1/σ_i)(σ_1/σ_j)`. Where that is not small one QR in f64 makes
//! them so; it leaves couplings below `1e-8 σ_1` out of Σ.
//!
//! **f64.** faer's vectors are orthonormal to 10 to 50 eps and its large σ off by as much. `V <- V (3 I − VᵀV) / 2`
//! squares the first defect, `σ_i = u_iᵀ A v_i` with the corrected vectors the second.
//!
//! Solvers run on one thread, because faer's split sums by thread; its products do not, and use all. [`svd`] and
//! [`symmetric_eigen`] choose between two instances that this crate compiles once: generic to the end, they would be
//! compiled again in every crate that factors a matrix. Figures: `benches/NOTES.md`.

mod inertia;
mod jacobi;
mod results;

pub(crate) use inertia::count_above;
pub(crate) use results::{Eigen, SmallSvd};

use faer::diag::DiagMut;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::linalg::{evd, svd};
use faer::prelude::*;
use faer::{Accum, Mat, MatMut, MatRef, Par, unzip, zip};

use crate::compiled::same;
use crate::error::Result;
use crate::linalg::{column, symmetric_product};
use crate::qr::{self, householder};
use crate::simd::Scalar;
use crate::tensor::{DType, Element, MatView};

/// Constants of the small problems.
struct Params {
    /// The length relative to the longest down to which columns of `A V` are used as they are. They are orthogonal to
    /// `eps64 / this²`, 1e-9.
    clear_of_noise: f64,
    /// The bound of what counts as right: of the residual in units of `eps ‖A‖_F √l`, and of the defect of the vectors
    /// in units of `eps l`. Those of faer are below 50.
    right: f64,
}

const PARAMS: Params = Params { clear_of_noise: 1.0 / 2048.0, right: 512.0 };

/// The note in the report where the library's solver failed.
const REMEDY: &str = "the library's solver failed on the small dense problem; Jacobi rotations solved it";

/// Computes the SVD of the square matrix `a` of finite numbers.
pub(crate) fn svd<T: Scalar>(a: MatRef<'_, T>, par: Par) -> SmallSvd<T> {
    match T::view(a) {
        MatView::F64(a) => same(svd_f64(a, par)),
        MatView::F32(a) => same(svd_f32(a, par)),
        MatView::F16(_) | MatView::BF16(_) => unreachable!("arithmetic is in f32 or f64"),
    }
}

/// Computes the SVD of a tall matrix of finite numbers: U as tall as it, V square.
pub(crate) fn thin_svd(mut a: Mat<f64>, par: Par) -> Result<SmallSvd<f64>> {
    let k = a.ncols();
    let mut r = Mat::zeros(k, k);
    let mut buffer = MemBuffer::new(qr::orthonormalize_scratch::<f64>(a.nrows(), k, par));
    qr::orthonormalize(a.as_mut(), Some(r.as_mut()), par, MemStack::new(&mut buffer))?;
    let SmallSvd { u, s, v, remedy } = svd_f64(r.as_ref(), par);
    Ok(SmallSvd { u: a * u, s, v, remedy })
}

/// Computes the SVD by `G = AᵀA` in f64, its eigenvectors `V`, and `A V = U Σ`.
#[inline(never)]
fn svd_f32(a: MatRef<'_, f32>, par: Par) -> SmallSvd<f32> {
    let l = a.nrows();
    let widened = |a: MatRef<'_, f32>, mut to: MatMut<'_, f64>| {
        zip!(to.rb_mut(), a).for_each(|unzip!(to, from)| *to = f64::from(*from));
    };
    let mut gram = Mat::<f64>::zeros(l, l);
    {
        // The matrix is widened twice: a copy beside the eigensolver would decide how much memory a factorization
        // takes.
        let mut wide = Mat::zeros(l, l);
        widened(a, wide.as_mut());
        symmetric_product(wide.as_ref().transpose(), gram.as_mut(), Accum::Replace, par);
    }
    normalize(gram.as_mut());
    let Eigen { values: mut lengths, vectors, remedy } = symmetric_eigen_f64(gram.as_ref());
    let mut wide = gram;
    widened(a, wide.as_mut());
    let mut image = Mat::zeros(l, l);
    matmul(image.as_mut(), Accum::Replace, wide.as_ref(), vectors.as_ref().reverse_cols(), 1.0, par);

    for (j, length) in lengths.iter_mut().enumerate() {
        *length = image.col(j).norm_l2();
    }
    let largest = lengths.iter().fold(0.0_f64, |a, x| a.max(*x));
    // Columns are orthogonal up to eps σ_1² / (σ_i σ_j). That is nothing in f32 while it is small; where it is not, one
    // more QR repairs it. What the columns beyond eps σ_1 then become does not matter, but they must be orthonormal.
    if lengths.iter().any(|x| *x <= PARAMS.clear_of_noise * largest) {
        for (j, length) in lengths.iter_mut().enumerate() {
            if *length > 0.0 {
                let scale = 1.0 / *length;
                image.col_mut(j).iter_mut().for_each(|x| *x *= scale);
            }
        }
        orthonormalize_in_place(image.as_mut(), &mut lengths);
    } else {
        for (j, length) in lengths.iter().enumerate() {
            let scale = 1.0 / length;
            image.col_mut(j).iter_mut().for_each(|x| *x *= scale);
        }
    }
    drop(wide);
    // Values that tie to rounding may have changed places.
    let mut order: Vec<usize> = (0..l).collect();
    order.sort_by(|&i, &j| lengths[j].total_cmp(&lengths[i]));
    let sorted = |from: MatRef<'_, f64>| Mat::from_fn(l, l, |i, j| from[(i, order[j])] as f32);
    let u = sorted(image.as_ref());
    drop(image);
    let v = sorted(vectors.as_ref().reverse_cols());
    let s = order.iter().map(|&i| lengths[i] as f32).collect();
    SmallSvd { u, s, v, remedy }
}

/// Replaces `a` by the Q of its reflections, with signs that make the diagonal of R positive, and multiplies `lengths`
/// by that diagonal: what is left of a column after those before it.
fn orthonormalize_in_place(mut a: MatMut<'_, f64>, lengths: &mut [f64]) {
    let l = a.ncols();
    let block = householder::block_size(l, l);
    let mut t = Mat::zeros(block, l);
    let mut buffer = MemBuffer::new(householder::factor_scratch::<f64>(l, l, Par::Seq));
    let stack = MemStack::new(&mut buffer);
    householder::factor(a.rb_mut(), t.as_mut(), Par::Seq, stack);
    let diagonal: Vec<f64> = (0..l).map(|j| a[(j, j)]).collect();
    householder::form_q(a.rb_mut(), t.as_ref(), Par::Seq, stack);
    for (j, (length, r)) in lengths.iter_mut().zip(diagonal).enumerate() {
        *length *= r.abs();
        if r < 0.0 {
            a.rb_mut().col_mut(j).iter_mut().for_each(|x| *x = -*x);
        }
    }
}

#[inline(never)]
fn svd_f64(a: MatRef<'_, f64>, par: Par) -> SmallSvd<f64> {
    match faer_svd(a).map(|svd| repaired(a, svd, par)).filter(|svd| is_svd(a, svd)) {
        Some(svd) => svd,
        None => repaired(a, SmallSvd { remedy: Some(REMEDY), ..jacobi::svd(a) }, par),
    }
}

/// Computes the SVD by faer; the result is `None` if that gave up.
fn faer_svd(a: MatRef<'_, f64>) -> Option<SmallSvd<f64>> {
    let l = a.nrows();
    let (mut u, mut v) = (Mat::zeros(l, l), Mat::zeros(l, l));
    let mut s = vec![0.0; l];
    let mut buffer = MemBuffer::new(svd_scratch(l));
    let (stack, diagonal) = (MemStack::new(&mut buffer), DiagMut::from_slice_mut(&mut s));
    svd::svd(a, diagonal, Some(u.as_mut()), Some(v.as_mut()), Par::Seq, stack, Default::default()).ok()?;
    Some(SmallSvd { u, s, v, remedy: None })
}

/// Repairs an SVD: returns it with orthonormal vectors, the values that these have, and both in order.
fn repaired(a: MatRef<'_, f64>, found: SmallSvd<f64>, par: Par) -> SmallSvd<f64> {
    let l = a.nrows();
    let SmallSvd { mut u, mut s, mut v, remedy } = found;
    let mut work = Mat::zeros(l, l);
    for basis in [&mut u, &mut v] {
        matmul(work.as_mut(), Accum::Replace, basis.transpose(), basis.as_ref(), -0.5, par);
        for i in 0..l {
            work[(i, i)] += 1.5;
        }
        let mut corrected = Mat::zeros(l, l);
        matmul(corrected.as_mut(), Accum::Replace, basis.as_ref(), work.as_ref(), 1.0, par);
        *basis = corrected;
    }
    matmul(work.as_mut(), Accum::Replace, a, v.as_ref(), 1.0, par);
    for (i, s) in s.iter_mut().enumerate() {
        *s = u.col(i).iter().zip(work.col(i).iter()).map(|(x, y)| x * y).sum::<f64>().max(0.0);
    }
    drop(work);
    if !s.is_sorted_by(|x, y| x >= y) {
        // Values that tie to rounding may have changed places, and faer does not always order them. Vectors go with
        // their values.
        let mut order: Vec<usize> = (0..l).collect();
        order.sort_by(|&i, &j| s[j].total_cmp(&s[i]));
        for basis in [&mut u, &mut v] {
            *basis = Mat::from_fn(l, l, |i, j| basis[(i, order[j])]);
        }
        s.sort_by(|x, y| y.total_cmp(x));
    }
    SmallSvd { u, s, v, remedy }
}

/// Tells whether `a V = U Σ` and the vectors are orthonormal.
fn is_svd(a: MatRef<'_, f64>, SmallSvd { u, s, v, .. }: &SmallSvd<f64>) -> bool {
    let x = signs(s.len());
    let weighted: Vec<f64> = s.iter().zip(&x).map(|(s, x)| s * x).collect();
    let (right, left) = (times(v.as_ref(), &x), times(u.as_ref(), &weighted));
    are_close::<f64>(&times(a, &right), &left, a.norm_l2())
        && is_orthonormal(v.as_ref(), &x, &right)
        && is_orthonormal(u.as_ref(), &x, &times(u.as_ref(), &x))
}

/// Tells whether `g V = V Λ` and the vectors are orthonormal, for the symmetric matrix whose lower triangle is in `g`.
pub(crate) fn is_eigen<T: Scalar>(g: MatRef<'_, T>, values: &[T], vectors: MatRef<'_, T>) -> bool {
    let x = signs(values.len());
    let weighted: Vec<f64> = values.iter().zip(&x).map(|(&value, x)| Element::to_f64(value) * x).collect();
    let mixed = times(vectors, &x);
    let mut image = vec![0.0; values.len()];
    let mut squares = 0.0;
    for j in 0..values.len() {
        let (diagonal, below) = column(g, j)[j..].split_first().expect("a square matrix");
        let across = mixed[j];
        let diagonal = Element::to_f64(*diagonal);
        let mut sum = diagonal * across;
        squares += diagonal * diagonal;
        for ((entry, image), mixed) in below.iter().zip(&mut image[j + 1..]).zip(&mixed[j + 1..]) {
            let entry = Element::to_f64(*entry);
            *image += entry * across;
            sum += entry * mixed;
            squares += 2.0 * entry * entry;
        }
        image[j] += sum;
    }
    are_close::<T>(&image, &times(vectors, &weighted), squares.sqrt()) && is_orthonormal(vectors, &x, &mixed)
}

/// Tells whether `Qᵀ mixed = x`, where `mixed` is `Q x`.
fn is_orthonormal<T: Scalar>(q: MatRef<'_, T>, x: &[f64], mixed: &[f64]) -> bool {
    let back: Vec<f64> =
        (0..x.len()).map(|j| column(q, j).iter().zip(mixed).map(|(&q, y)| Element::to_f64(q) * y).sum()).collect();
    are_close::<T>(&back, x, (x.len() as f64).sqrt())
}

/// Tells whether two images of a vector of signs differ by no more than a good solver's error for a matrix of this
/// norm.
fn are_close<T: Scalar>(x: &[f64], y: &[f64], norm: f64) -> bool {
    let squares: f64 = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum();
    squares.sqrt() <= PARAMS.right * T::EPSILON * (x.len() as f64).sqrt() * norm
}

/// Computes `q x`.
fn times<T: Scalar>(q: MatRef<'_, T>, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; q.nrows()];
    for (j, x) in x.iter().enumerate() {
        column(q, j).iter().zip(&mut y).for_each(|(&q, y)| *y += Element::to_f64(q) * x);
    }
    y
}

/// Returns l signs without a pattern.
fn signs(l: usize) -> Vec<f64> {
    let bits = |i: usize| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..l).map(|i| if (bits(i) ^ (bits(i) >> 29)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }).collect()
}

fn svd_scratch(l: usize) -> StackReq {
    let thin = svd::ComputeSvdVectors::Thin;
    svd::svd_scratch::<f64>(l, l, thin, thin, Par::Seq, Default::default())
}

/// Returns the bytes of an l × l matrix, whose columns begin at cache lines.
pub(crate) fn square_bytes<T>(l: usize) -> usize {
    l.next_multiple_of(64 / size_of::<T>()) * l * size_of::<T>()
}

/// Returns the bytes alive at the fullest moment of [`svd`], its results included.
pub(crate) fn svd_bytes<T: Scalar>(l: usize) -> usize {
    let square = square_bytes::<f64>(l);
    let most = if T::DTYPE == DType::F32 {
        let block = householder::block_size(l, l) * l * size_of::<f64>();
        let reflections = block + householder::factor_scratch::<f64>(l, l, Par::Seq).unaligned_bytes_required();
        // First the Gram matrix and its eigenvectors are alive; then these and two more matrices, which the results of
        // half the size replace.
        square + symmetric_eigen_bytes::<f64>(l).max(2 * square + reflections)
    } else {
        // The results are alive, and what repairs them.
        2 * square + (2 * square).max(svd_scratch(l).unaligned_bytes_required())
    };
    most + 3 * l * size_of::<f64>()
}

/// Scales a Gram matrix by a power of two to a largest entry between 1 and 4, and returns the factor that undoes that
/// in its eigenvalues. At scales like 1e24, faer's divide and conquer gives vectors far from orthogonal.
pub(crate) fn normalize<T: Scalar>(mut g: MatMut<'_, T>) -> T {
    let largest = (0..g.ncols()).map(|i| g[(i, i)].to_f64()).fold(0.0, f64::max);
    if !largest.is_normal() {
        return T::one();
    }
    let exponent = largest.log2().floor() as i32;
    let scale = T::from_f64(2f64.powi(-exponent));
    zip!(g.rb_mut()).for_each(|unzip!(x)| *x *= scale);
    T::from_f64(2f64.powi(exponent))
}

/// Computes the eigenvalues and eigenvectors of the positive semidefinite matrix of finite numbers whose lower triangle
/// is in `g`. Both are nondecreasing in the eigenvalue.
pub(crate) fn symmetric_eigen<T: Scalar>(g: MatRef<'_, T>) -> Eigen<T> {
    match T::view(g) {
        MatView::F64(g) => same(symmetric_eigen_f64(g)),
        MatView::F32(g) => same(symmetric_eigen_f32(g)),
        MatView::F16(_) | MatView::BF16(_) => unreachable!("arithmetic is in f32 or f64"),
    }
}

#[inline(never)]
fn symmetric_eigen_f32(g: MatRef<'_, f32>) -> Eigen<f32> {
    symmetric_eigen_in(g)
}

#[inline(never)]
fn symmetric_eigen_f64(g: MatRef<'_, f64>) -> Eigen<f64> {
    symmetric_eigen_in(g)
}

fn symmetric_eigen_in<T: Scalar>(g: MatRef<'_, T>) -> Eigen<T> {
    let live = live_rows(g);
    // Where most rows are live, a copy of them would be more memory than the solver takes.
    if 2 * live.len() <= g.nrows() && g.nrows() > 1 {
        return embedded(g, &live);
    }
    match faer_eigen(g).filter(|(values, vectors)| is_eigen(g, values, vectors.as_ref())) {
        Some((values, vectors)) => Eigen { values, vectors, remedy: None },
        None => {
            let (values, vectors) = jacobi::symmetric_eigen(g);
            Eigen { values, vectors, remedy: Some(REMEDY) }
        }
    }
}

/// Computes eigenvalues and eigenvectors by faer; the result is `None` if that gave up.
fn faer_eigen<T: Scalar>(g: MatRef<'_, T>) -> Option<(Vec<T>, Mat<T>)> {
    let n = g.nrows();
    let mut vectors = Mat::zeros(n, n);
    let mut values = vec![T::zeroed(); n];
    let mut buffer = MemBuffer::new(symmetric_eigen_scratch::<T>(n));
    let (stack, diagonal) = (MemStack::new(&mut buffer), DiagMut::from_slice_mut(&mut values));
    evd::self_adjoint_evd(g, diagonal, Some(vectors.as_mut()), Par::Seq, stack, Default::default()).ok()?;
    Some((values, vectors))
}

/// Returns the rows that have a nonzero beside the diagonal.
fn live_rows<T: Scalar>(g: MatRef<'_, T>) -> Vec<usize> {
    let n = g.nrows();
    let mut live = vec![false; n];
    for j in 0..n {
        for (i, x) in (j + 1..n).zip(&column(g, j)[j + 1..]) {
            if *x != T::zeroed() {
                (live[i], live[j]) = (true, true);
            }
        }
    }
    (0..n).filter(|&i| live[i]).collect()
}

/// Solves for the live rows; every other row is an eigenvector by itself.
fn embedded<T: Scalar>(g: MatRef<'_, T>, live: &[usize]) -> Eigen<T> {
    let n = g.nrows();
    let Eigen { values: of_live, vectors: live_vectors, remedy } = match live.len() {
        0 => Eigen { values: Vec::new(), vectors: Mat::new(), remedy: None },
        m => symmetric_eigen_in(Mat::from_fn(m, m, |i, j| g[(live[i.max(j)], live[i.min(j)])]).as_ref()),
    };
    let isolated = (0..n).filter(|i| live.binary_search(i).is_err());
    enum From {
        Live(usize),
        Isolated(usize),
    }
    let mut found: Vec<(T, From)> = isolated.map(|row| (g[(row, row)], From::Isolated(row))).collect();
    found.extend(of_live.into_iter().zip((0..live.len()).map(From::Live)));
    found.sort_by(|(x, _), (y, _)| Element::to_f64(*x).total_cmp(&Element::to_f64(*y)));
    let mut vectors = Mat::zeros(n, n);
    for (j, (_, from)) in found.iter().enumerate() {
        match *from {
            From::Live(vector) => {
                live.iter().enumerate().for_each(|(i, &row)| vectors[(row, j)] = live_vectors[(i, vector)])
            }
            From::Isolated(row) => vectors[(row, j)] = T::one(),
        }
    }
    Eigen { values: found.into_iter().map(|(value, _)| value).collect(), vectors, remedy }
}

/// Returns the bytes alive in [`symmetric_eigen`], its results included.
pub(crate) fn symmetric_eigen_bytes<T: Scalar>(n: usize) -> usize {
    square_bytes::<T>(n) + n * size_of::<T>() + symmetric_eigen_scratch::<T>(n).unaligned_bytes_required()
}

fn symmetric_eigen_scratch<T: Scalar>(n: usize) -> StackReq {
    evd::self_adjoint_evd_scratch::<T>(n, evd::ComputeEigenvectors::Yes, Par::Seq, Default::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sketch::{Gaussian, SketchOperator};

    fn gaussian(l: usize, seed: u64) -> Mat<f64> {
        let omega = Gaussian::new(l, l, seed).unwrap();
        omega.to_dense::<f64>() * faer::Scale((l as f64).sqrt())
    }

    fn defect(q: &Mat<f64>) -> f64 {
        let mut g = q.transpose() * q;
        for j in 0..g.ncols() {
            g[(j, j)] -= 1.0;
        }
        g.norm_max()
    }

    fn wide<T: Scalar>(a: &Mat<T>) -> Mat<f64> {
        Mat::from_fn(a.nrows(), a.ncols(), |i, j| Element::to_f64(a[(i, j)]))
    }

    /// Returns spectra that deflate all, some and none; graded, clustered, repeated, rank-deficient, zero.
    fn spectra(l: usize) -> Vec<(&'static str, Vec<f64>)> {
        let f = |f: &dyn Fn(f64) -> f64| (0..l).map(|i| f(i as f64 / l as f64)).collect::<Vec<_>>();
        vec![
            ("geometric 1e-2", f(&|x| 1e-2f64.powf(x))),
            ("geometric 1e-12", f(&|x| 1e-12f64.powf(x))),
            ("step", f(&|x| if x < 0.5 { 1.0 } else { 1e-3 })),
            ("equal", f(&|_| 3.0)),
            ("cluster", f(&|x| 1.0 - 1e-7 * x)),
            ("rank half", f(&|x| if x < 0.5 { 1.0 - x } else { 0.0 })),
            ("large", f(&|x| 1e12 * (2.0 - x))),
            ("tiny", f(&|x| 1e-12 * (2.0 - x))),
            ("zero", f(&|_| 0.0)),
        ]
    }

    fn check_svd<T: Scalar>(a: &Mat<f64>, sigma: &[f64], what: &str) {
        let l = sigma.len();
        let a = Mat::<T>::from_fn(l, l, |i, j| T::from_f64(a[(i, j)]));
        check_triplets(&a, svd(a.as_ref(), Par::Seq), sigma, 1.0, what);
    }

    /// Checks an SVD whose errors may be `times` those of a repaired SVD.
    fn check_triplets<T: Scalar>(a: &Mat<T>, found: SmallSvd<T>, sigma: &[f64], times: f64, what: &str) {
        let l = sigma.len();
        let eps = <T as Scalar>::EPSILON;
        let SmallSvd { u, s, v, .. } = found;
        let (a, u, v) = (wide(a), wide(&u), wide(&v));
        for (q, name) in [(&u, "U"), (&v, "V")] {
            let defect = defect(q) / eps;
            // f32 vectors are rounded f64 ones: |q_iᵀq_j| errs by at most eps. f64 vectors come out of products of l
            // terms.
            let bound = if T::DTYPE == DType::F32 { 1.0 } else { 1.0 + (l as f64).sqrt() };
            assert!(defect <= times * bound, "{what} {l}: {name} is orthonormal to {defect} eps");
        }
        let sf: Vec<f64> = s.iter().map(|s| Element::to_f64(*s)).collect();
        assert!(sf.is_sorted_by(|a, b| a >= b), "{what} {l}: {sf:?}");
        // Rounding A to T moves a singular value by up to eps/2 ‖A‖_F; the solvers add a few eps σ_1.
        let bound = times * eps * (4.0 * sigma[0] + sigma.iter().map(|s| s * s).sum::<f64>().sqrt());
        for (s, sigma) in sf.iter().zip(sigma) {
            assert!((s - sigma).abs() <= bound, "{what} {l}: {s} for {sigma}");
        }
        let mut r = &a * &v;
        for j in 0..l {
            for i in 0..l {
                r[(i, j)] -= u[(i, j)] * sf[j];
            }
        }
        let residual = r.norm_l2() / (eps * sigma[0].max(f64::MIN_POSITIVE) * (l as f64).sqrt());
        // f32: the rounding of U, Σ and V; f64: the backward error of faer's solver, a modest multiple of eps √l.
        let bound = if T::DTYPE == DType::F32 { 2.0 } else { 20.0 };
        assert!(residual <= times * bound, "{what} {l}: A V − U Σ is {residual} eps σ_1 √l");
    }

    #[test]
    fn svd_is_an_svd() {
        for l in [1, 2, 3, 23, 24, 25, 49, 50, 101, 138] {
            let (p, q) = (gaussian(l, 1).qr().compute_Q(), gaussian(l, 2).qr().compute_Q());
            for (what, sigma) in spectra(l) {
                let a = &p * Mat::from_fn(l, l, |i, j| if i == j { sigma[i] } else { 0.0 }) * q.transpose();
                check_svd::<f32>(&a, &sigma, what);
                check_svd::<f64>(&a, &sigma, what);
            }
        }
    }

    /// Checks Jacobi rotations on the same spectra.
    #[test]
    fn jacobi_is_an_svd_and_an_eigendecomposition() {
        for l in [1, 2, 3, 24, 50, 101] {
            let (p, q) = (gaussian(l, 1).qr().compute_Q(), gaussian(l, 2).qr().compute_Q());
            for (what, sigma) in spectra(l) {
                let diagonal = Mat::from_fn(l, l, |i, j| if i == j { sigma[i] } else { 0.0 });
                let a = &p * &diagonal * q.transpose();
                check_triplets(&a, repaired(a.as_ref(), jacobi::svd(a.as_ref()), Par::Seq), &sigma, 4.0, what);
                check_eigen::<f64>(&(&p * &diagonal * p.transpose()), &sigma, what);
                check_eigen::<f32>(&(&p * &diagonal * p.transpose()), &sigma, what);
            }
        }
    }

    fn check_eigen<T: Scalar>(g: &Mat<f64>, lambda: &[f64], what: &str) {
        let (l, eps) = (lambda.len(), <T as Scalar>::EPSILON);
        let g = Mat::<T>::from_fn(l, l, |i, j| T::from_f64(g[(i, j)]));
        let (values, vectors) = jacobi::symmetric_eigen(g.as_ref());
        let largest = lambda.iter().fold(0.0, |a: f64, x| a.max(*x));
        // Cholesky's backward error, and the rounding of G; what is dropped is under `l eps` of the largest.
        let bound = 8.0 * eps * (l as f64) * largest;
        for (value, lambda) in values.iter().zip(lambda.iter().rev()) {
            let value = Element::to_f64(*value);
            assert!((value - lambda).abs() <= bound, "{what} {l}: {value} for {lambda}");
        }
        let v = wide(&vectors);
        assert!(defect(&v) <= 16.0 * eps * (1.0 + (l as f64).sqrt()), "{what} {l}: {} eps", defect(&v) / eps);
        let mut r = wide(&g) * &v;
        for j in 0..l {
            for i in 0..l {
                r[(i, j)] -= v[(i, j)] * Element::to_f64(values[j]);
            }
        }
        assert!(r.norm_max() <= bound, "{what} {l}: {:e}", r.norm_max());
    }

    /// Takes grids of ones, squares of sparse vectors, and copies, on which libraries give up. None of them may fail
    /// here.
    #[test]
    fn sparse_rank_one_gram_matrices_are_solved() {
        let normal = Gaussian::new(310, 40, 7).unwrap();
        for l in [64, 130, 200, 310] {
            for (seed, density) in
                [(0, 0.02), (1, 0.05), (2, 0.1), (3, 0.6), (4, 1.0)].into_iter().cycle().take(15).enumerate()
            {
                let (keep, x) = (|i: usize| normal.entry(i, seed).abs(), |i: usize| normal.entry(i, seed + 20));
                let mut order: Vec<usize> = (0..l).collect();
                order.sort_by(|&i, &j| keep(j).total_cmp(&keep(i)));
                let mut entries = vec![0.0; l];
                order[..((density.1 * l as f64) as usize).max(1)].iter().for_each(|&i| entries[i] = x(i));
                let largest = entries.iter().fold(0.0, |a: f64, x| a.max(x.abs()));
                let g = Mat::from_fn(l, l, |i, j| entries[i] * entries[j] / largest / largest);
                let Eigen { values, vectors, .. } = symmetric_eigen(g.as_ref());
                assert!(is_eigen(g.as_ref(), &values, vectors.as_ref()), "{l}, {seed}");
                let trace: f64 = (0..l).map(|i| g[(i, i)]).sum();
                assert!((values[l - 1] / trace - 1.0).abs() < 1e-13, "{l}, {seed}: {} for {trace}", values[l - 1]);
                assert!(values[..l - 1].iter().all(|x| x.abs() < 1e-13 * trace), "{l}, {seed}");
            }
        }
    }

    /// Two values that have changed places are found, and so is a vector that has lost its length.
    #[test]
    fn values_that_are_not_those_of_their_vectors_are_seen() {
        let l = 60;
        let (p, q) = (gaussian(l, 1).qr().compute_Q(), gaussian(l, 2).qr().compute_Q());
        let sigma: Vec<f64> = (0..l).map(|i| 0.9f64.powi(i as i32)).collect();
        let a = &p * Mat::from_fn(l, l, |i, j| if i == j { sigma[i] } else { 0.0 }) * q.transpose();
        let right = svd(a.as_ref(), Par::Seq);
        assert!(right.remedy.is_none() && is_svd(a.as_ref(), &right));
        for (i, j) in [(0, 1), (30, 31), (20, 50)] {
            let mut wrong = SmallSvd { u: right.u.clone(), s: right.s.clone(), v: right.v.clone(), remedy: None };
            wrong.s.swap(i, j);
            assert!(!is_svd(a.as_ref(), &wrong), "{i} and {j}");
        }
        let mut wrong = right;
        wrong.u[(3, 59)] += 1e-6;
        assert!(!is_svd(a.as_ref(), &wrong));

        let g = &a * a.transpose();
        let Eigen { mut values, vectors, .. } = symmetric_eigen(g.as_ref());
        assert!(is_eigen(g.as_ref(), &values, vectors.as_ref()));
        values.swap(40, 41);
        assert!(!is_eigen(g.as_ref(), &values, vectors.as_ref()));
    }
}
