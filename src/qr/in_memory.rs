//! Orthonormalizes a panel in memory: the driver over the kernels of this module, and their scratch.

use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{MatMut, Par};

use super::outcome::{Algorithm, Orthonormalization};
use super::shared::{check_shapes, exponent, scale_by_exponent};
use super::steps::Step;
use super::{cholesky, driver, householder, tsqr};
use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::{ArithmeticMut, arithmetic_mut};

/// Columns of a block of reflections where scratch is to be saved, since a block is copied.
const SPARING_BLOCK: usize = 8;

/// A panel of at least this many leaves that CholeskyQR could not do goes to TSQR, a smaller one to plain Householder.
const TSQR_LEAVES: usize = 4;

/// Panels with a smaller `m l²` are done by one thread: waking another one takes a quarter of their time.
const MIN_SHARED: usize = 1 << 22;

/// Orthonormalizes a panel: `Y <- Q` with `QᵀQ = I` to rounding and `Y = Q R`; R is upper triangular with a diagonal
/// that is not negative.
///
/// `y` is m×l with `m >= l >= 1`, of any strides (unit row stride is the fast one); `r` is l×l and entirely
/// overwritten. Whatever the rank of Y, Q has l orthonormal columns whose span contains that of Y; dependent
/// columns show as a small or zero diagonal of R.
///
/// # Errors
/// [`Error::Shape`] if `m < l` or `r` is not l×l, [`Error::Empty`] if `l = 0`, [`Error::NotFinite`] if Y holds a NaN
/// or an infinity, [`Error::Range`] if an entry of R is too large for `T`. On error the panel may have been scaled.
pub fn orthonormalize<T: Scalar>(
    y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    orthonormalize_with(y, r, false, par, stack)
}

/// Orthonormalizes as [`orthonormalize`] does, in a scratch of a few l×l matrices and slices of the panel. It is for
/// what is rarely needed and must not decide how much memory a whole factorization needs. Gram matrices are summed by
/// one thread, without a sketch, and reflections are in narrow blocks.
///
/// # Errors
/// [`Error::Shape`], [`Error::Empty`], [`Error::NotFinite`] and [`Error::Range`], in the cases of [`orthonormalize`].
pub fn orthonormalize_sparingly<T: Scalar>(
    y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    orthonormalize_with(y, r, true, par, stack)
}

fn orthonormalize_with<T: Scalar>(
    y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    sparing: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    match (arithmetic_mut(y), r.map(arithmetic_mut)) {
        (ArithmeticMut::F32(y), None) => orthonormalize_f32(y, None, sparing, par, stack),
        (ArithmeticMut::F64(y), None) => orthonormalize_f64(y, None, sparing, par, stack),
        (ArithmeticMut::F32(y), Some(ArithmeticMut::F32(r))) => orthonormalize_f32(y, Some(r), sparing, par, stack),
        (ArithmeticMut::F64(y), Some(ArithmeticMut::F64(r))) => orthonormalize_f64(y, Some(r), sparing, par, stack),
        _ => unreachable!("Y and R are of one type"),
    }
}

/// Instantiates [`orthonormalize_in`] for f32, so that other crates do not compile it again.
#[inline(never)]
fn orthonormalize_f32(
    y: MatMut<'_, f32>,
    r: Option<MatMut<'_, f32>>,
    sparing: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    orthonormalize_in(y, r, sparing, par, stack)
}

/// Instantiates [`orthonormalize_in`] for f64, so that other crates do not compile it again.
#[inline(never)]
fn orthonormalize_f64(
    y: MatMut<'_, f64>,
    r: Option<MatMut<'_, f64>>,
    sparing: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    orthonormalize_in(y, r, sparing, par, stack)
}

fn orthonormalize_in<T: Scalar>(
    y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    sparing: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    check_shapes("orthonormalize", y.rb(), r.as_ref().map(|r| r.rb()))?;
    let (m, l) = y.shape();
    if let (Par::Rayon(_), true) = (par, m * l * l < MIN_SHARED) {
        return orthonormalize_in(y, r, sparing, Par::Seq, stack);
    }
    // Called from outside of the pool, each `join` would have to wake two more threads.
    crate::parallel::in_pool(par, || orthonormalize_checked(y, r, sparing, par, stack))
}

/// Orthonormalizes the columns of `y`, whose shape and scratch have been checked.
fn orthonormalize_checked<T: Scalar>(
    y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    sparing: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    let l = y.ncols();
    let mut panel = cholesky::InMemory { y, par, most_groups: most_groups(sparing) };
    let mut steps = |step: Step<'_, T>, stack: &mut MemStack| match step {
        Step::Equilibrate { exponents } => equilibrate(panel.y.rb_mut(), exponents),
        Step::Reflect { r, algorithm } => {
            *algorithm = reflect(panel.y.rb_mut(), r, sparing, par, stack)?;
            Ok(true)
        }
        step => panel.step(step, stack),
    };
    driver::drive(l, &mut steps, r, !sparing, par, stack)
}

/// Returns the scratch for [`orthonormalize`] of an m×l panel.
pub fn orthonormalize_scratch<T: Scalar>(m: usize, l: usize, par: Par) -> StackReq {
    temp_mat_scratch::<f64>(l, l).and(scratch_with::<T>(m, l, false, par))
}

/// Returns the scratch for [`orthonormalize_sparingly`] of an m×l panel, with R or without.
pub fn orthonormalize_sparingly_scratch<T: Scalar>(m: usize, l: usize, with_r: bool, par: Par) -> StackReq {
    temp_mat_scratch::<f64>(if with_r { l } else { 0 }, l).and(scratch_with::<T>(m, l, true, par))
}

/// Returns the most groups of rows that have a Gram matrix of their own.
fn most_groups(sparing: bool) -> usize {
    if sparing { 1 } else { cholesky::PARAMS.max_groups }
}

fn scratch_with<T: Scalar>(m: usize, l: usize, sparing: bool, par: Par) -> StackReq {
    let exponents = StackReq::new::<i32>(l);
    let work = StackReq::any_of(&[
        cholesky::iterate_scratch::<T>(m, l, most_groups(sparing), !sparing),
        reflect_scratch::<T>(m, l, sparing, par),
    ]);
    exponents.and(work)
}

/// Scales each column by a power of two so that its largest entry lies in [1, 2); `exponents` undo it. Returns whether
/// every column has a nonzero entry.
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

/// Reflects the panel as it is: `Y <- Q`, the upper triangle of `r <- R`, with a diagonal of R that is not negative.
fn reflect<T: Scalar>(
    mut y: MatMut<'_, T>,
    mut r: MatMut<'_, T>,
    sparing: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Algorithm> {
    let (m, l) = y.shape();
    if goes_to_tsqr(m, l, sparing) {
        tsqr::tsqr(y, r, par, stack)?;
        return Ok(Algorithm::Tsqr);
    }
    let (mut t, stack) = temp_mat_zeroed::<T, _, _>(reflector_block(m, l, sparing), l, stack);
    let mut t = t.as_mat_mut();
    householder::factor(y.rb_mut(), t.rb_mut(), par, stack);
    for j in 0..l {
        for i in 0..=j {
            r[(i, j)] = y[(i, j)];
        }
    }
    householder::form_q(y.rb_mut(), t.rb(), par, stack);
    for i in 0..l {
        if r[(i, i)] < T::from_f64(0.0) {
            for j in i..l {
                r[(i, j)] = -r[(i, j)];
            }
            for k in 0..m {
                y[(k, i)] = -y[(k, i)];
            }
        }
    }
    Ok(Algorithm::Householder)
}

/// Tells whether the panel is reflected by TSQR, which takes a copy.
fn goes_to_tsqr(m: usize, l: usize, sparing: bool) -> bool {
    !sparing && tsqr::leaves(m, l) >= TSQR_LEAVES
}

/// Returns the columns of a block of reflections.
fn reflector_block(m: usize, l: usize, sparing: bool) -> usize {
    let block = householder::block_size(m, l);
    if sparing { block.min(SPARING_BLOCK) } else { block }
}

fn reflect_scratch<T: Scalar>(m: usize, l: usize, sparing: bool, par: Par) -> StackReq {
    let work = if goes_to_tsqr(m, l, sparing) {
        tsqr::tsqr_scratch::<T>(m, l, par)
    } else {
        let block = reflector_block(m, l, sparing);
        temp_mat_scratch::<T>(block, l).and(householder::blocked_scratch::<T>(m, l, block))
    };
    temp_mat_scratch::<T>(l, l).and(work.or(temp_mat_scratch::<f64>(l, l)))
}
