//! Registers of elements whose type is known when the program runs: loads that widen and stores that round.
//!
//! A kernel that uses them asks for the type once in some registers. That costs nothing where much is done to them, as
//! in the base passes and the sweeps; the passes of the transforms are compiled for their types.

use bytemuck::Zeroable;

use super::edges::Ends;
use super::rows::{Rows, Typed};
use crate::simd::{Lanes, Scalar};
use crate::tensor::{DType, Element};

/// Returns `at`, hidden from the compiler. It would otherwise keep one pointer to each row, twice as many as there are
/// registers, on the stack, and advance all of them in each step.
#[inline(always)]
pub(super) fn hidden<E>(at: *mut E) -> *mut E {
    std::hint::black_box(at)
}

/// Loads `R` registers of elements of any type that is widened to `T`, as [`load_from`].
///
/// # Safety
/// As for [`load_from`].
#[inline(always)]
pub(super) unsafe fn load<const R: usize, const B: usize, S: Lanes, T: Scalar>(
    s: S,
    src: Rows,
    j: usize,
    run: usize,
) -> [T::V<S>; R] {
    // SAFETY: guaranteed by this function's contract; an arm is for the type that `dtype` names.
    unsafe {
        if const { T::DTYPE.size() == 4 } {
            match src.at.dtype {
                DType::F16 => return load_from::<R, B, S, T, half::f16>(s, src.typed(), j, run),
                DType::BF16 => return load_from::<R, B, S, T, half::bf16>(s, src.typed(), j, run),
                _ => {}
            }
        }
        load_from::<R, B, S, T, T>(s, src.typed(), j, run)
    }
}

/// Loads `R` registers of elements of type `E`: registers `i` with `i % B = c` are at column `j + c·run` of row `i / B`.
///
/// # Safety
/// These registers are readable.
#[inline(always)]
unsafe fn load_from<const R: usize, const B: usize, S: Lanes, T: Scalar, E: Element>(
    s: S,
    src: Typed<E>,
    j: usize,
    run: usize,
) -> [T::V<S>; R] {
    let x = hidden(src.ptr.wrapping_add(j));
    let mut v = [T::V::<S>::zeroed(); R];
    for (i, v) in v.iter_mut().enumerate() {
        // SAFETY: guaranteed by this function's contract.
        *v = unsafe { T::vload::<S, E>(s, x.offset((i / B) as isize * src.stride).add(i % B * run)) };
    }
    v
}

/// Stores `R` registers to the places from which [`load`] would load them, in the type that is there.
///
/// # Safety
/// These registers are writable.
#[inline(always)]
pub(super) unsafe fn store<const R: usize, const B: usize, S: Lanes, T: Scalar>(
    s: S,
    v: [T::V<S>; R],
    dst: Rows,
    j: usize,
    run: usize,
) {
    // SAFETY: guaranteed by this function's contract; an arm is for the type that `dtype` names.
    unsafe {
        if const { T::DTYPE.size() == 4 } {
            match dst.at.dtype {
                DType::F16 => return store_to::<R, B, S, T, half::f16>(s, v, dst.typed(), j, run),
                DType::BF16 => return store_to::<R, B, S, T, half::bf16>(s, v, dst.typed(), j, run),
                _ => {}
            }
        }
        store_to::<R, B, S, T, T>(s, v, dst.typed(), j, run);
    }
}

/// Does [`store`] for elements of type `E`.
///
/// # Safety
/// As for [`store`].
#[inline(always)]
unsafe fn store_to<const R: usize, const B: usize, S: Lanes, T: Scalar, E: Element>(
    s: S,
    v: [T::V<S>; R],
    dst: Typed<E>,
    j: usize,
    run: usize,
) {
    let y = hidden(dst.ptr.wrapping_add(j));
    for (i, v) in v.into_iter().enumerate() {
        // SAFETY: guaranteed by this function's contract.
        unsafe { T::vstore::<S, E>(s, y.offset((i / B) as isize * dst.stride).add(i % B * run), v) };
    }
}

/// Stores four rows of `W` registers of the result of a base pass, from row `place[0]` on, with what `ends` does to
/// them. For `ends`, they begin at column `place[1]`, and neighbouring rows are `place[2]` elements apart.
///
/// # Safety
/// `W` registers of these rows are writable in `dst`, and `ends` has signs for them.
#[inline(always)]
pub(super) unsafe fn finish_rows<const W: usize, S: Lanes, T: Scalar>(
    s: S,
    [a, b, c, d]: [[T::V<S>; W]; 4],
    dst: Rows,
    ends: Option<&Ends<T>>,
    [i, column, h]: [usize; 3],
) {
    // SAFETY: guaranteed by this function's contract. No loop, because the compiler would keep all registers in memory
    // for one that it does not unroll.
    unsafe {
        finish_row::<W, S, T>(s, a, dst.row(i), ends, [i, column, h]);
        finish_row::<W, S, T>(s, b, dst.row(i + 1), ends, [i + 1, column, h]);
        finish_row::<W, S, T>(s, c, dst.row(i + 2), ends, [i + 2, column, h]);
        finish_row::<W, S, T>(s, d, dst.row(i + 3), ends, [i + 3, column, h]);
    }
}

/// Does [`finish_rows`] for one row.
///
/// # Safety
/// As for [`finish_rows`].
#[inline(always)]
unsafe fn finish_row<const W: usize, S: Lanes, T: Scalar>(
    s: S,
    mut v: [T::V<S>; W],
    dst: Rows,
    ends: Option<&Ends<T>>,
    [row, column, h]: [usize; 3],
) {
    // SAFETY: guaranteed by this function's contract.
    unsafe {
        if let Some(ends) = ends {
            let at = [row * h + ends.index(0, column, 0), ends.index(0, T::lanes::<S>(), 0), 0];
            let factors = ends.row_factors::<W, 1>(at[0], 0);
            ends.store::<W, 1, S>(s, &mut v, &factors, at);
        }
        // Registers of one row lie as those of rows that are one register apart.
        store::<W, 1, S, T>(s, v, Rows { stride: T::lanes::<S>() as isize, ..dst }, 0, 0);
    }
}
