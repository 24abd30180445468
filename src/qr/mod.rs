//! Orthonormal bases of tall panels: `Y = Q R`, Q m×l with orthonormal columns, R l×l upper triangular.
//!
//! [`orthonormalize`] is the one call that the SVD drivers make. It runs CholeskyQR at GEMM speed as far as the
//! condition of Y allows and never returns a basis that it has not measured: every pass but the last ends with the
//! Gram matrix of what it produced, and the last one is only taken when that Gram matrix is close to the identity.
//! What CholeskyQR cannot do (zero columns, breakdown) goes to Householder reflections.
//!
//! * [`cholesky`]: CholeskyQR, CholeskyQR2, with a Gram matrix in f64 for f32 panels, shifted for the rest.
//! * [`householder`]: blocked compact WY, like LAPACK's GEQRT, ORGQR, ORMQR. Always works; no rank test.
//! * [`tsqr`]: QR of row blocks and a tree over their R's; the R-only form is a streaming accumulator.
//!
//! All of them work on views with any strides, take their scratch from the caller, and give the same bits for any
//! number of threads: rows are partitioned by shape alone, and partial sums are added in a fixed order.

pub mod cholesky;
pub mod householder;

use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{MatMut, Par};

use crate::error::{Error, Result};
use crate::simd::Scalar;

/// How a panel was orthonormalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// One pass: the columns were nearly orthogonal already (up to their lengths).
    CholeskyQr,
    /// Two passes, Gram matrices in the panel's own arithmetic.
    CholeskyQr2,
    /// The first Gram matrix of an f32 panel in f64.
    WideCholeskyQr2,
    /// The first Gram matrix (or the first two) shifted by a multiple of the identity.
    ShiftedCholeskyQr,
    /// Blocked Householder reflections.
    Householder,
}

/// What [`orthonormalize`] did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Orthonormalization {
    /// The algorithm that produced Q.
    pub algorithm: Algorithm,
    /// Estimate of the 2-norm condition number of Y with its columns scaled to equal length. It is a lower bound up
    /// to rounding, usually within 20 %; infinite when Y was found to be singular in the arithmetic used.
    pub condition_estimate: f64,
    /// How often the panel was divided by a triangular factor; 0 if it was Householder from the start.
    pub passes: usize,
}

/// `Y <- Q` with `QᵀQ = I` to rounding and `Y = Q R`; R upper triangular with a diagonal that is not negative.
///
/// `y` is m×l with `m >= l >= 1`, of any strides (unit row stride is the fast one); `r` is l×l and entirely
/// overwritten. Whatever the rank of Y, Q has l orthonormal columns whose span contains that of Y; dependent
/// columns show as a small or zero diagonal of R.
///
/// # Errors
/// [`Error::Shape`] if `m < l` or `r` is not l×l, [`Error::Empty`] if `l = 0`, [`Error::NotFinite`] if Y holds a NaN
/// or an infinity, [`Error::Range`] if an entry of R is too large for `T`. On error the panel may have been scaled.
pub fn orthonormalize<T: Scalar>(
    mut y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    let (m, l) = y.shape();
    if l == 0 {
        return Err(Error::Empty { shape: vec![m, l] });
    }
    if m < l {
        return Err(Error::shape("orthonormalize", "at least as many rows as columns", format_args!("{m}×{l}")));
    }
    if let Some(r) = &r
        && r.shape() != (l, l)
    {
        return Err(Error::shape("orthonormalize: R", format_args!("{l}×{l}"), format_args!("{:?}", r.shape())));
    }

    let (mut acc, stack) = temp_mat_zeroed::<f64, _, _>(if r.is_some() { l } else { 0 }, l, stack);
    let mut acc = r.is_some().then(|| acc.as_mat_mut());
    if let Some(acc) = &mut acc {
        for j in 0..l {
            acc[(j, j)] = 1.0;
        }
    }
    let (mut exponents, stack) = stack.make_with(l, |_| 0_i32);

    let done = match cholesky::iterate(y.rb_mut(), acc.as_mut().map(|a| a.rb_mut()), par, stack) {
        cholesky::Outcome::Range => {
            let full = equilibrate(y.rb_mut(), &mut exponents)?;
            match full {
                true => cholesky::iterate(y.rb_mut(), acc.as_mut().map(|a| a.rb_mut()), par, stack),
                false => cholesky::Outcome::Breakdown { passes: 0 },
            }
        }
        other => other,
    };
    let report = match done {
        cholesky::Outcome::Done(report) => report,
        cholesky::Outcome::Range | cholesky::Outcome::Breakdown { .. } => {
            householder_in_place(y.rb_mut(), acc.as_mut().map(|a| a.rb_mut()), par, stack);
            let passes = if let cholesky::Outcome::Breakdown { passes } = done { passes } else { 0 };
            Orthonormalization { algorithm: Algorithm::Householder, condition_estimate: f64::INFINITY, passes }
        }
    };
    if let (Some(mut r), Some(acc)) = (r, acc) {
        for j in 0..l {
            for i in 0..l {
                let x = if i <= j { scale_by_exponent(acc[(i, j)], exponents[j]) } else { 0.0 };
                if x.abs() > <T as Scalar>::MAX {
                    return Err(Error::Range { what: "an entry of R", value: x });
                }
                r[(i, j)] = T::from_f64(x);
            }
        }
    }
    Ok(report)
}

/// Scratch for [`orthonormalize`] of an m×l panel.
pub fn orthonormalize_scratch<T: Scalar>(m: usize, l: usize, par: Par) -> StackReq {
    let acc = temp_mat_scratch::<f64>(l, l);
    let exponents = StackReq::new::<i32>(l);
    let work = StackReq::any_of(&[cholesky::iterate_scratch::<T>(m, l), householder_in_place_scratch::<T>(m, l, par)]);
    StackReq::all_of(&[acc, exponents, work])
}

/// `2^e x` without intermediate overflow.
fn scale_by_exponent(x: f64, e: i32) -> f64 {
    let half = e / 2;
    x * 2f64.powi(half) * 2f64.powi(e - half)
}

/// Scales each column by a power of two so that its largest entry lies in [1, 2); `exponents` undo it. Returns
/// whether every column has a nonzero entry.
fn equilibrate<T: Scalar>(mut y: MatMut<'_, T>, exponents: &mut [i32]) -> Result<bool> {
    let (m, l) = y.shape();
    let mut full = true;
    for j in 0..l {
        let mut max = 0.0_f64;
        for i in 0..m {
            let x = y[(i, j)].to_f64();
            if !x.is_finite() {
                return Err(Error::NotFinite { row: i, col: j, value: x });
            }
            max = max.max(x.abs());
        }
        if max == 0.0 {
            full = false;
            continue;
        }
        let e = exponent(max);
        exponents[j] = e;
        for i in 0..m {
            y[(i, j)] = T::from_f64(scale_by_exponent(y[(i, j)].to_f64(), -e));
        }
    }
    Ok(full)
}

/// `floor(log2 x)` of a positive finite x.
fn exponent(x: f64) -> i32 {
    let bits = |x: f64| ((x.to_bits() >> 52) & 0x7ff) as i32;
    match bits(x) {
        0 => bits(x * 2f64.powi(64)) - 64 - 1023,
        e => e - 1023,
    }
}

/// Householder from the panel as it is: `Y <- Q`, `acc <- R acc`, with the signs of R's diagonal made nonnegative.
fn householder_in_place<T: Scalar>(mut y: MatMut<'_, T>, acc: Option<MatMut<'_, f64>>, par: Par, stack: &mut MemStack) {
    let (m, l) = y.shape();
    let (mut t, stack) = temp_mat_zeroed::<T, _, _>(householder::block_size(m, l), l, stack);
    let mut t = t.as_mat_mut();
    let (mut negative, stack) = stack.make_with(l, |_| false);
    householder::factor(y.rb_mut(), t.rb_mut(), par, stack);
    for j in 0..l {
        negative[j] = y[(j, j)] < T::from_f64(0.0);
    }
    if let Some(acc) = acc {
        let (mut factor, _) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
        let mut factor = factor.as_mat_mut();
        for j in 0..l {
            for i in 0..=j {
                let x = y[(i, j)].to_f64();
                factor[(i, j)] = if negative[i] { -x } else { x };
            }
        }
        cholesky::premultiply(acc, factor.rb());
    }
    householder::form_q(y.rb_mut(), t.rb(), par, stack);
    for j in 0..l {
        if negative[j] {
            for i in 0..m {
                y[(i, j)] = -y[(i, j)];
            }
        }
    }
}

fn householder_in_place_scratch<T: Scalar>(m: usize, l: usize, par: Par) -> StackReq {
    StackReq::all_of(&[
        temp_mat_scratch::<T>(householder::block_size(m, l), l),
        StackReq::new::<bool>(l),
        StackReq::any_of(&[
            temp_mat_scratch::<f64>(l, l),
            householder::factor_scratch::<T>(m, l, par),
            householder::form_q_scratch::<T>(m, l, par),
        ]),
    ])
}

/// Runs `f` on consecutive groups of `rows` rows of `y`, each with its own `width` columns of `work`, in parallel
/// unless `par` is sequential. The partition depends on the arguments' shapes alone.
fn for_row_groups<T: Scalar, W: Send>(
    y: MatMut<'_, T>,
    work: MatMut<'_, W>,
    rows: usize,
    width: usize,
    par: Par,
    f: &(impl Fn(MatMut<'_, T>, MatMut<'_, W>) + Sync),
) {
    let groups = y.nrows().div_ceil(rows);
    if groups <= 1 {
        return f(y, work);
    }
    let half = groups / 2;
    let (y0, y1) = y.split_at_row_mut(half * rows);
    let (work0, work1) = work.split_at_col_mut(half * width);
    let first = || for_row_groups(y0, work0, rows, width, par, f);
    let second = || for_row_groups(y1, work1, rows, width, par, f);
    match par {
        Par::Seq => {
            first();
            second();
        }
        Par::Rayon(_) => {
            rayon::join(first, second);
        }
    }
}
