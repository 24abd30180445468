//! The transforms behind C names, for `fwht.py` and `conformance.py` to call through ctypes.

use half::{bf16, f16};
use tensorslim::{MatMut, Par, fwht};

/// Rows of an `m × n` row-major matrix. Returns 0, or 1 for an unsupported length.
///
/// # Safety
/// `x` points to `m·n` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_fwht_rows_f32(x: *mut f32, m: usize, n: usize) -> i32 {
    // SAFETY: the caller's.
    fwht::fwht_rows(unsafe { MatMut::from_raw_parts_mut(x, m, n, n as isize, 1) }, Par::Seq).is_err() as i32
}

/// As `tensorslim_fwht_rows_f32`.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_fwht_rows_f64(x: *mut f64, m: usize, n: usize) -> i32 {
    // SAFETY: the caller's.
    fwht::fwht_rows(unsafe { MatMut::from_raw_parts_mut(x, m, n, n as isize, 1) }, Par::Seq).is_err() as i32
}

/// As `tensorslim_fwht_rows_f32`.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_fwht_rows_f16(x: *mut f16, m: usize, n: usize) -> i32 {
    // SAFETY: the caller's.
    fwht::fwht_rows(unsafe { MatMut::from_raw_parts_mut(x, m, n, n as isize, 1) }, Par::Seq).is_err() as i32
}

/// As `tensorslim_fwht_rows_f32`.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_fwht_rows_bf16(x: *mut bf16, m: usize, n: usize) -> i32 {
    // SAFETY: the caller's.
    fwht::fwht_rows(unsafe { MatMut::from_raw_parts_mut(x, m, n, n as isize, 1) }, Par::Seq).is_err() as i32
}
