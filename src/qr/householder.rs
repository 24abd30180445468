//! Householder QR in blocked compact WY form: `A = (I − V_1 T_1 V_1ᵀ) (I − V_2 T_2 V_2ᵀ) ⋯ [R; 0]`.
//!
//! LAPACK's GEQRT ([`factor`]), ORGQR ([`form_q`]) and ORMQR ([`apply_q`], [`apply_qt`]). V is unit lower trapezoidal
//! and stays below the diagonal of A; the upper triangular `T_i` of each block of `b` columns stand side by side in
//! one b×n matrix.
//!
//! ```text
//!    R R R R R R        panel i is copied into contiguous scratch, factored there by recursion on its columns
//!    v R R R R R          [A1 A2]: QR of A1; A2 <- Q1ᵀ A2; QR of A2; T12 = −T1 (V1ᵀ V2) T2
//!    v v r a a a        (Elmroth, Gustavson 2000), down to 8 columns that are done one reflector at a time; then
//!    v v v a a a          trailing a <- a − V (Tᵀ (Vᵀ a))
//!    v v v a a a        in three GEMMs.
//! ```
//!
//! `2 n² (m − n/3)` flops to factor and as many to form Q, nearly all of them in GEMM; the panel copy makes V a plain
//! matrix with explicit ones and zeros, so no triangular product is needed, and any strides of A are served.
//!
//! **No rank test.** A column that is nearly dependent on the ones before it gets its reflector like every other
//! (LAPACK's behaviour). faer's QR drops it when what is left is below `16 eps m` of its length: in f32 and m = 11008
//! that is 2 %, and the basis loses directions that are well determined. Norms are accumulated in f64, so that f32
//! columns of any size neither overflow nor underflow; f64 columns are rescaled when they would.

use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{Accum, MatMut, MatRef, Par};

use super::shared::{exponent, for_row_groups};
use crate::linalg::{column, column_mut};
use crate::simd::Scalar;

/// Columns that are factored one reflector at a time.
const BASE: usize = 8;

/// Columns of a slice, to which one task applies a block.
const SLICE: usize = 32;

/// Returns the columns of a block for an m×n matrix, which is the height of `t` in [`factor`].
#[doc(hidden)]
pub fn block_size(m: usize, n: usize) -> usize {
    // This is a usual panel width; it was not tuned.
    48.min(m.min(n)).max(1)
}

/// Factors `a` (m×n) by Householder reflections. On exit R is on and above the diagonal, V below, and the block factors
/// are in `t` (`t.nrows()` × min(m, n); its height is the block size).
///
/// # Panics
/// If `t` does not have `min(m, n)` columns, or has no rows.
pub fn factor<T: Scalar>(mut a: MatMut<'_, T>, mut t: MatMut<'_, T>, par: Par, stack: &mut MemStack) {
    let (m, n) = a.shape();
    let k = m.min(n);
    let nb = t.nrows();
    assert!(t.ncols() == k && (nb > 0 || k == 0), "block factors of a {m}×{n} matrix need {k} columns");
    for j in (0..k).step_by(nb.max(1)) {
        let w = nb.min(k - j);
        let mut tj = t.rb_mut().submatrix_mut(0, j, w, w);
        let (mut v, stack) = temp_mat_zeroed::<T, _, _>(m - j, w, stack);
        let mut v = v.as_mat_mut();
        let (left, right) = a.rb_mut().subrows_mut(j, m - j).split_at_col_mut(j + w);
        let mut panel = left.subcols_mut(j, w);
        v.copy_from(panel.rb());
        {
            let (mut work, stack) = temp_mat_zeroed::<T, _, _>(w, w, stack);
            factor_panel(v.rb_mut(), tj.rb_mut(), work.as_mat_mut());
            let _ = stack;
        }
        panel.copy_from(v.rb());
        if right.ncols() > 0 {
            explicit_v(v.rb_mut());
            apply_block(v.rb(), tj.rb(), true, right, par, stack);
        }
    }
}

/// Returns the scratch for [`factor`] of an m×n matrix with the block size of [`block_size`].
pub fn factor_scratch<T: Scalar>(m: usize, n: usize, _par: Par) -> StackReq {
    blocked_scratch::<T>(m, n, block_size(m, n))
}

/// Returns the scratch for [`factor`] and [`form_q`] with blocks of nb columns.
pub(crate) fn blocked_scratch<T: Scalar>(m: usize, n: usize, nb: usize) -> StackReq {
    temp_mat_scratch::<T>(m, nb).and(temp_mat_scratch::<T>(nb, nb).or(apply_block_scratch::<T>(nb, n)))
}

/// Computes `a <- Q`, its first n columns, from what [`factor`] left in `a` (m×n, m >= n) and `t`.
///
/// # Panics
/// If `m < n` or the shape of `t` is not that of [`factor`].
pub fn form_q<T: Scalar>(mut a: MatMut<'_, T>, t: MatRef<'_, T>, par: Par, stack: &mut MemStack) {
    let (m, n) = a.shape();
    let nb = t.nrows();
    assert!(m >= n && t.ncols() == n, "Q of a {m}×{n} factorization");
    let blocks = n.div_ceil(nb.max(1));
    for j in (0..blocks).rev().map(|b| b * nb) {
        let w = nb.min(n - j);
        let tj = t.submatrix(0, j, w, w);
        let (mut v, stack) = temp_mat_zeroed::<T, _, _>(m - j, w, stack);
        let mut v = v.as_mat_mut();
        let (left, mut right) = a.rb_mut().split_at_col_mut(j + w);
        let (mut above, mut panel) = left.subcols_mut(j, w).split_at_row_mut(j);
        v.copy_from(panel.rb());
        explicit_v(v.rb_mut());
        // Columns to the right already hold the product of the later blocks, except that R is still above them.
        right.rb_mut().subrows_mut(0, (j + w).min(m)).fill(T::from_f64(0.0));
        if right.ncols() > 0 {
            apply_block(v.rb(), tj, false, right.subrows_mut(j, m - j), par, stack);
        }
        // The columns of this block become [I; 0] − V (T V_topᵀ).
        let (mut x, _) = temp_mat_zeroed::<T, _, _>(w, w, stack);
        let mut x = x.as_mat_mut();
        let top = v.rb().subrows(0, w);
        for c in 0..w {
            for r in 0..w {
                // T is upper triangular, V_topᵀ too: V_top[c, k] with k <= c, T[r, k] with k >= r.
                let mut s = T::from_f64(0.0);
                for k in r..=c {
                    s += tj[(r, k)] * top[(c, k)];
                }
                x[(r, c)] = s;
            }
        }
        for_row_groups(panel.rb_mut().transpose_mut(), x.rb_mut(), SLICE, SLICE, par, &|panel, x| {
            matmul(panel.transpose_mut(), Accum::Replace, v.rb(), x.rb(), T::from_f64(-1.0), Par::Seq);
        });
        for c in 0..w {
            panel[(c, c)] += T::from_f64(1.0);
        }
        above.fill(T::from_f64(0.0));
    }
}

/// Returns the scratch for [`form_q`] of an m×n matrix.
pub fn form_q_scratch<T: Scalar>(m: usize, n: usize, par: Par) -> StackReq {
    factor_scratch::<T>(m, n, par)
}

/// Computes `c <- Q c`, with Q as [`factor`] left it in `v` (m×n) and `t`; `c` is m×p.
///
/// # Panics
/// Panics if the numbers of rows of `c` and `v`, or of columns of `t` and reflectors, do not agree.
pub fn apply_q<T: Scalar>(v: MatRef<'_, T>, t: MatRef<'_, T>, c: MatMut<'_, T>, par: Par, stack: &mut MemStack) {
    apply(v, t, false, c, par, stack);
}

/// Computes `c <- Qᵀ c`; the arguments are those of [`apply_q`].
///
/// # Panics
/// Panics if the shapes do not agree, as in [`apply_q`].
#[doc(hidden)]
pub fn apply_qt<T: Scalar>(v: MatRef<'_, T>, t: MatRef<'_, T>, c: MatMut<'_, T>, par: Par, stack: &mut MemStack) {
    apply(v, t, true, c, par, stack);
}

/// Returns the scratch for [`apply_q`] and [`apply_qt`] of an m×n factorization to p columns.
pub fn apply_scratch<T: Scalar>(m: usize, n: usize, p: usize, _par: Par) -> StackReq {
    let nb = block_size(m, n);
    temp_mat_scratch::<T>(m, nb).and(apply_block_scratch::<T>(nb, p))
}

/// Applies the reflectors of a factored panel, or their transposes, to `y` in place.
fn apply<T: Scalar>(
    v: MatRef<'_, T>,
    t: MatRef<'_, T>,
    transpose: bool,
    mut c: MatMut<'_, T>,
    par: Par,
    stack: &mut MemStack,
) {
    let (m, n) = v.shape();
    let k = m.min(n);
    let nb = t.nrows();
    assert!(t.ncols() == k && c.nrows() == m, "Q of a {m}×{n} factorization cannot be applied to {} rows", c.nrows());
    let blocks = k.div_ceil(nb.max(1));
    for b in 0..blocks {
        // Qᵀ = ⋯ Q_2ᵀ Q_1ᵀ starts with the first block, Q = Q_1 Q_2 ⋯ with the last.
        let j = nb * if transpose { b } else { blocks - 1 - b };
        let w = nb.min(k - j);
        let (mut panel, stack) = temp_mat_zeroed::<T, _, _>(m - j, w, stack);
        let mut panel = panel.as_mat_mut();
        panel.copy_from(v.submatrix(j, j, m - j, w));
        explicit_v(panel.rb_mut());
        apply_block(panel.rb(), t.submatrix(0, j, w, w), transpose, c.rb_mut().subrows_mut(j, m - j), par, stack);
    }
}

/// Writes ones on the diagonal and zeros above it.
fn explicit_v<T: Scalar>(mut v: MatMut<'_, T>) {
    for j in 0..v.ncols() {
        for i in 0..j {
            v[(i, j)] = T::from_f64(0.0);
        }
        v[(j, j)] = T::from_f64(1.0);
    }
}

/// Computes `c <- (I − V T Vᵀ) c`, or with `Tᵀ`. Columns are independent and done in slices of fixed width, each by one
/// thread: matmul of faer with `Par::Rayon` rounds differently from `Par::Seq` where the product is one column wide.
fn apply_block<T: Scalar>(
    v: MatRef<'_, T>,
    t: MatRef<'_, T>,
    transpose: bool,
    c: MatMut<'_, T>,
    par: Par,
    stack: &mut MemStack,
) {
    let (w, p) = (v.ncols(), c.ncols());
    let (mut work, _) = temp_mat_zeroed::<T, _, _>(2 * w, p, stack);
    let t = if transpose { t.transpose() } else { t };
    let one = T::from_f64(1.0);
    for_row_groups(c.transpose_mut(), work.as_mat_mut(), SLICE, SLICE, par, &|c, work| {
        let mut c = c.transpose_mut();
        let (mut x, mut z) = work.split_at_row_mut(w);
        matmul(x.rb_mut(), Accum::Replace, v.transpose(), c.rb(), one, Par::Seq);
        matmul(z.rb_mut(), Accum::Replace, t, x.rb(), one, Par::Seq);
        matmul(c.rb_mut(), Accum::Add, v, z.rb(), -one, Par::Seq);
    });
}

fn apply_block_scratch<T: Scalar>(nb: usize, p: usize) -> StackReq {
    temp_mat_scratch::<T>(2 * nb, p)
}

/// Factors a contiguous panel (m×w, m >= w). `t` receives the whole w×w factor (zeros below); `work` is w×w.
fn factor_panel<T: Scalar>(mut a: MatMut<'_, T>, mut t: MatMut<'_, T>, mut work: MatMut<'_, T>) {
    let (m, w) = a.shape();
    if w <= BASE {
        return factor_base(a, t);
    }
    let h = (w / 2).next_multiple_of(BASE).min(w - 1);
    let one = T::from_f64(1.0);
    let (mut a1, mut a2) = a.rb_mut().split_at_col_mut(h);
    let (mut t11, mut t12, mut t21, mut t22) = t.rb_mut().split_at_mut(h, h);
    t21.fill(T::from_f64(0.0));
    factor_panel(a1.rb_mut(), t11.rb_mut(), work.rb_mut());

    // V1 gets explicit ones and zeros while its corner of R waits in `work`.
    let mut corner = work.rb_mut().submatrix_mut(0, 0, h, h);
    corner.copy_from(a1.rb().subrows(0, h));
    explicit_v(a1.rb_mut());
    {
        // A2 <- A2 − V1 (T11ᵀ (V1ᵀ A2)); t12 and the columns of `work` behind the corner are the h×(w−h) scratch.
        let mut x = work.rb_mut().submatrix_mut(0, h, h, w - h);
        matmul(x.rb_mut(), Accum::Replace, a1.rb().transpose(), a2.rb(), one, Par::Seq);
        matmul(t12.rb_mut(), Accum::Replace, t11.rb().transpose(), x.rb(), one, Par::Seq);
        matmul(a2.rb_mut(), Accum::Add, a1.rb(), t12.rb(), -one, Par::Seq);
    }
    a1.rb_mut().subrows_mut(0, h).copy_from(work.rb().submatrix(0, 0, h, h));
    factor_panel(a2.rb_mut().subrows_mut(h, m - h), t22.rb_mut(), work.rb_mut().submatrix_mut(0, 0, w - h, w - h));

    // T12 = −T11 (V1ᵀ V2) T22: the rows of V2 start at h, where V1 needs no ones.
    let v1 = a1.rb().subrows(h, m - h);
    let (v2_top, v2_rest) = a2.rb().subrows(h, m - h).split_at_row(w - h);
    let (v1_top, v1_rest) = v1.split_at_row(w - h);
    let mut x = work.rb_mut().submatrix_mut(0, 0, h, w - h);
    for c in 0..w - h {
        for r in 0..h {
            let mut s = v1_top[(c, r)];
            for k in c + 1..w - h {
                s += v1_top[(k, r)] * v2_top[(k, c)];
            }
            x[(r, c)] = s;
        }
    }
    matmul(x.rb_mut(), Accum::Add, v1_rest.transpose(), v2_rest, one, Par::Seq);
    matmul(t12.rb_mut(), Accum::Replace, t11.rb(), x.rb(), -one, Par::Seq);
    x.copy_from(t12.rb());
    matmul(t12.rb_mut(), Accum::Replace, x.rb(), t22.rb(), one, Par::Seq);
}

/// Factors a panel of at most [`BASE`] columns, one reflector at a time (GEQRT2 of LAPACK).
fn factor_base<T: Scalar>(mut a: MatMut<'_, T>, mut t: MatMut<'_, T>) {
    let (_, w) = a.shape();
    t.fill(T::from_f64(0.0));
    for j in 0..w {
        let (done, mut rest) = a.rb_mut().split_at_col_mut(j);
        let (mut own, mut behind) = rest.rb_mut().split_at_col_mut(1);
        let x = &mut column_mut(own.rb_mut(), 0)[j..];
        let (beta, tau) = reflector(x);
        let v = &x[1..];
        for c in 0..w - j - 1 {
            let y = &mut column_mut(behind.rb_mut(), c)[j..];
            let s = (y[0] + dot(v, &y[1..])) * tau;
            y[0] -= s;
            subtract(&mut y[1..], s, v);
        }
        // T[..j, j] = −tau T[..j, ..j] (V[.., ..j]ᵀ v)
        let mut x = [T::from_f64(0.0); BASE];
        for (i, x) in x.iter_mut().enumerate().take(j) {
            let u = &column(done.rb(), i)[j..];
            *x = (u[0] + dot(v, &u[1..])) * -tau;
        }
        for i in 0..j {
            let mut s = T::from_f64(0.0);
            for k in i..j {
                s += t[(i, k)] * x[k];
            }
            t[(i, j)] = s;
        }
        t[(j, j)] = tau;
        column_mut(own, 0)[j] = beta;
    }
}

/// Computes `x <- [beta, v]` with `(I − tau [1; v][1; v]ᵀ) x = [beta; 0]`: LARFG of LAPACK, with norms in f64. Returns
/// (beta, tau); x[0] stays as it was.
fn reflector<T: Scalar>(x: &mut [T]) -> (T, T) {
    let mut up = 1.0;
    let mut tail = sum_of_squares(&x[1..], 1.0);
    if !(1e-280..=1e280).contains(&tail) {
        let max = x.iter().fold(0.0_f64, |max, x| max.max((*x).to_f64().abs()));
        if x[1..].iter().all(|x| *x == T::from_f64(0.0)) || !max.is_finite() {
            return (x[0], T::from_f64(0.0));
        }
        up = 2f64.powi((-exponent(max)).min(1000));
        tail = sum_of_squares(&x[1..], up);
    }
    let alpha = x[0].to_f64() * up;
    let norm = (alpha * alpha + tail).sqrt();
    let beta = if alpha < 0.0 { norm } else { -norm };
    let tau = (beta - alpha) / beta;
    divide(&mut x[1..], up, alpha - beta);
    (T::from_f64(beta / up), T::from_f64(tau))
}

/// Partial sums of the reductions below: enough independent chains to hide the latency of an addition at any vector
/// width.
const LANES: usize = 32;

fn sum_of_squares<T: Scalar>(x: &[T], scale: f64) -> f64 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let mut sums = [0.0_f64; LANES];
            let (chunks, rest) = x.as_chunks::<LANES>();
            for chunk in chunks {
                for (s, x) in sums.iter_mut().zip(chunk) {
                    let x = (*x).to_f64() * scale;
                    *s += x * x;
                }
            }
            for (s, x) in sums.iter_mut().zip(rest) {
                let x = (*x).to_f64() * scale;
                *s += x * x;
            }
            fold(sums)
        },
    )
}

/// Computes `x <- x scale / by`, through f64.
fn divide<T: Scalar>(x: &mut [T], scale: f64, by: f64) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for x in x.iter_mut() {
                *x = T::from_f64((*x).to_f64() * scale / by);
            }
        },
    );
}

pub(super) fn dot<T: Scalar>(x: &[T], y: &[T]) -> T {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || dot_of(x, y),
    )
}

/// Computes [`dot`] inside of a kernel that is dispatched as a whole.
#[inline(always)]
pub(super) fn dot_of<T: Scalar>(x: &[T], y: &[T]) -> T {
    debug_assert_eq!(x.len(), y.len());
    let mut sums = [T::from_f64(0.0); LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for ((s, x), y) in sums.iter_mut().zip(x).zip(y) {
            *s += *x * *y;
        }
    }
    for ((s, x), y) in sums.iter_mut().zip(x_rest).zip(y_rest) {
        *s += *x * *y;
    }
    fold(sums)
}

/// Computes `y <- y − s x`.
fn subtract<T: Scalar>(y: &mut [T], s: T, x: &[T]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y -= s * *x;
            }
        },
    );
}

#[inline(always)]
fn fold<T: Scalar>(mut sums: [T; LANES]) -> T {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            sums[i] += sums[i + n];
        }
    }
    sums[0]
}
