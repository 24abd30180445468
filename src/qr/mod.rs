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
mod driver;
pub mod householder;
mod steps;
pub mod tsqr;

pub use driver::orthonormalize_by;
pub use steps::{GramOf, Step, Steps};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{MatMut, MatRef, Par};

use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::{ArithmeticMut, arithmetic_mut};

/// Columns of the blocks of reflections where scratch is to be saved: a block is copied.
const SPARING_BLOCK: usize = 8;

/// Leaves from which on a panel that CholeskyQR could not do goes to TSQR rather than to plain Householder.
const TSQR_LEAVES: usize = 4;

/// Panels with fewer `m l²` are done by one thread: a quarter of it, 20 µs, is what waking another one takes.
const MIN_SHARED: usize = 1 << 22;

/// How long a thread waits for work that is about to come: the Cholesky factorization of 300 columns takes that long.
const WAIT: Duration = Duration::from_micros(200);

/// How a panel was orthonormalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// One pass: the columns were nearly orthogonal already (up to their lengths).
    CholeskyQr,
    /// Two passes, Gram matrices in the panel's own arithmetic.
    CholeskyQr2,
    /// The first factor from a sketch of the panel.
    SketchedCholeskyQr,
    /// The first Gram matrix of an f32 panel in f64.
    WideCholeskyQr2,
    /// The first Gram matrix (or the first two) shifted by a multiple of the identity.
    ShiftedCholeskyQr,
    /// Blocked Householder reflections.
    Householder,
    /// Householder reflections on blocks of rows, and a tree over their R's.
    Tsqr,
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
    y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    orthonormalize_with(y, r, false, par, stack)
}

/// As [`orthonormalize`], in a scratch of a few l×l matrices and slices of the panel: for what is rarely needed and must not be what a whole
/// factorization needs memory for. Gram matrices are summed by one thread, without a sketch, and reflections are in narrow blocks.
///
/// # Errors
/// As [`orthonormalize`].
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

/// Compiled once, here.
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

/// Compiled once, here.
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
    // From outside each `join` takes two more threads to wake, 100 µs instead of 30.
    crate::parallel::in_pool(par, || orthonormalize_checked(y, r, sparing, par, stack))
}

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

/// Scratch for [`orthonormalize`] of an m×l panel.
pub fn orthonormalize_scratch<T: Scalar>(m: usize, l: usize, par: Par) -> StackReq {
    temp_mat_scratch::<f64>(l, l).and(scratch_with::<T>(m, l, false, par))
}

/// Scratch for [`orthonormalize_sparingly`] of an m×l panel, with R or without.
pub fn orthonormalize_sparingly_scratch<T: Scalar>(m: usize, l: usize, with_r: bool, par: Par) -> StackReq {
    temp_mat_scratch::<f64>(if with_r { l } else { 0 }, l).and(scratch_with::<T>(m, l, true, par))
}

/// Groups of rows that have a Gram matrix of their own.
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

fn check_shapes<T: Scalar>(op: &'static str, y: MatRef<'_, T>, r: Option<MatRef<'_, T>>) -> Result<()> {
    check_size(op, y.shape(), r.map(|r| r.shape()))
}

fn check_size(op: &'static str, (m, l): (usize, usize), r: Option<(usize, usize)>) -> Result<()> {
    if l == 0 {
        return Err(Error::Empty { shape: vec![m, l] });
    }
    if m < l {
        return Err(Error::shape(op, "at least as many rows as columns", format_args!("{m}×{l}")));
    }
    match r {
        Some((rows, columns)) if (rows, columns) != (l, l) => {
            Err(Error::shape(op, format_args!("R to be {l}×{l}"), format_args!("{rows}×{columns}")))
        }
        _ => Ok(()),
    }
}

/// The l×l identity that the factors of R are multiplied onto; 0×l if R is not wanted.
fn identity(
    l: usize,
    wanted: bool,
    stack: &mut MemStack,
) -> (impl AsMatMut<T = f64, Rows = usize, Cols = usize>, &mut MemStack) {
    let (mut acc, stack) = temp_mat_zeroed::<f64, _, _>(if wanted { l } else { 0 }, l, stack);
    if wanted {
        let mut acc = acc.as_mat_mut();
        for j in 0..l {
            acc[(j, j)] = 1.0;
        }
    }
    (acc, stack)
}

/// `r <- acc` with column j times `2^exponents[j]`.
fn write_r<T: Scalar>(mut r: MatMut<'_, T>, acc: MatRef<'_, f64>, exponents: Option<&[i32]>) -> Result<()> {
    for j in 0..acc.ncols() {
        let e = exponents.map_or(0, |e| e[j]);
        for i in 0..acc.nrows() {
            let x = if i <= j { scale_by_exponent(acc[(i, j)], e) } else { 0.0 };
            if x.abs() > <T as Scalar>::MAX {
                return Err(Error::Range { what: "an entry of R", value: x, dtype: T::DTYPE });
            }
            r[(i, j)] = T::from_f64(x);
        }
    }
    Ok(())
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
pub(crate) fn exponent(x: f64) -> i32 {
    let bits = |x: f64| ((x.to_bits() >> 52) & 0x7ff) as i32;
    match bits(x) {
        0 => bits(x * 2f64.powi(64)) - 64 - 1023,
        e => e - 1023,
    }
}

/// Reflections on the panel as it is: `Y <- Q`, the upper triangle of `r <- R`, R's diagonal not negative.
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

/// Whether the panel is reflected in parts, which takes a copy.
fn goes_to_tsqr(m: usize, l: usize, sparing: bool) -> bool {
    !sparing && tsqr::leaves(m, l) >= TSQR_LEAVES
}

/// Columns of a block of reflections.
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

/// Both, at the same time if `par` is parallel.
fn join<A: Send, B: Send>(par: Par, a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    match par {
        Par::Seq => (a(), b()),
        Par::Rayon(_) => rayon::join(a, b),
    }
}

/// Runs the sequential `f` while a second thread waits, at most [`WAIT`], for the parallel work behind it: one that has
/// gone to sleep takes 30 µs to wake.
fn keeping_awake<R: Send>(par: Par, f: impl FnOnce() -> R + Send) -> R {
    let done = AtomicBool::new(false);
    let work = || {
        let result = f();
        done.store(true, Ordering::Release);
        result
    };
    let wait = || {
        let start = Instant::now();
        while !done.load(Ordering::Acquire) && start.elapsed() < WAIT {
            rayon::yield_now();
        }
    };
    match par {
        Par::Seq => work(),
        Par::Rayon(_) => rayon::join(work, wait).0,
    }
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
