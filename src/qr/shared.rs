//! Helpers that the algorithms of this module share: checks of shapes, R from its factors, exponents, and groups of
//! rows on threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use faer::dyn_stack::MemStack;
use faer::linalg::temp_mat_zeroed;
use faer::mat::AsMatMut;
use faer::{MatMut, MatRef, Par};

use crate::error::{Error, Result};
use crate::parallel::{self, join};
use crate::simd::Scalar;

/// How long a thread waits for work that is about to come: about as long as the Cholesky factorization of 300 columns
/// takes.
const WAIT: Duration = Duration::from_micros(200);

pub(super) fn check_shapes<T: Scalar>(op: &'static str, y: MatRef<'_, T>, r: Option<MatRef<'_, T>>) -> Result<()> {
    check_size(op, y.shape(), r.map(|r| r.shape()))
}

pub(super) fn check_size(op: &'static str, (m, l): (usize, usize), r: Option<(usize, usize)>) -> Result<()> {
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

/// Makes the l×l identity that the factors of R are multiplied onto; it is 0×l if R is not wanted.
pub(super) fn identity(
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

/// Computes `r <- acc` with column j multiplied by `2^exponents[j]`.
pub(super) fn write_r<T: Scalar>(mut r: MatMut<'_, T>, acc: MatRef<'_, f64>, exponents: Option<&[i32]>) -> Result<()> {
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

/// Computes `2^e x` without intermediate overflow.
pub(super) fn scale_by_exponent(x: f64, e: i32) -> f64 {
    let half = e / 2;
    x * 2f64.powi(half) * 2f64.powi(e - half)
}

/// Computes `floor(log2 x)` of a positive finite x.
pub(crate) fn exponent(x: f64) -> i32 {
    let bits = |x: f64| ((x.to_bits() >> 52) & 0x7ff) as i32;
    match bits(x) {
        0 => bits(x * 2f64.powi(64)) - 64 - 1023,
        e => e - 1023,
    }
}

/// Runs the sequential `f` while a second thread waits, at most [`WAIT`], for the parallel work that follows. A thread
/// that has gone to sleep would take longer to wake than it waits here.
pub(super) fn keeping_awake<R: Send>(par: Par, f: impl FnOnce() -> R + Send) -> R {
    let done = AtomicBool::new(false);
    let work = || {
        let result = f();
        done.store(true, Ordering::Release);
        result
    };
    let wait = || {
        let start = Instant::now();
        while !done.load(Ordering::Acquire) && start.elapsed() < WAIT {
            parallel::yield_now();
        }
    };
    join(par, work, wait).0
}

/// Runs `f` on consecutive groups of `rows` rows of `y`, each with its own `width` columns of `work`, in parallel
/// unless `par` is sequential. The partition depends on the arguments' shapes alone.
pub(super) fn for_row_groups<T: Scalar, W: Send>(
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
    join(par, || for_row_groups(y0, work0, rows, width, par, f), || for_row_groups(y1, work1, rows, width, par, f));
}
