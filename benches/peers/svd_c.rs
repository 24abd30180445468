//! The default factorization behind a C name, for `compare.py` to call through ctypes.

use tensorslim::{DType, Method, Rank, TensorRef, TruncatedSvd};

/// Factors an `m × n` row-major f32 matrix to rank `k` with the method of this index in [`Method::ALL`] and `q` power
/// iterations, and copies the factors out: `u` is `m × k`, `s` `k`, `vt` `k × n`, row-major. With null for `u` they are dropped.
/// `report` gets the certified relative error and the index of the method that was used. Returns 0, or 1 on an error.
///
/// # Safety
/// The pointers are valid for those sizes, `report` for two elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_f32(
    a: *const f32,
    m: usize,
    n: usize,
    k: usize,
    method: usize,
    q: usize,
    u: *mut f32,
    s: *mut f32,
    vt: *mut f32,
    report: *mut f64,
) -> i32 {
    // SAFETY: the caller's.
    let (a, report) = unsafe { (std::slice::from_raw_parts(a, m * n), std::slice::from_raw_parts_mut(report, 2)) };
    let Ok(w) = TensorRef::new(a, &[m, n]) else { return 1 };
    let svd = TruncatedSvd::new(Rank::Fixed(k)).method(Method::ALL[method]).power_iterations(q);
    let Ok(f) = svd.factor::<f32>(w) else { return 1 };
    report[0] = f.report().relative_error;
    report[1] = Method::ALL.iter().position(|x| *x == f.report().method).unwrap_or(0) as f64;
    if !u.is_null() {
        // SAFETY: the caller's.
        let (u, s, vt) = unsafe {
            (
                std::slice::from_raw_parts_mut(u, m * k),
                std::slice::from_raw_parts_mut(s, k),
                std::slice::from_raw_parts_mut(vt, k * n),
            )
        };
        u.copy_from_slice(f.u().as_slice());
        s.copy_from_slice(f.s());
        vt.copy_from_slice(f.vt().as_slice());
    }
    0
}

/// Writes what [`TruncatedSvd::plan`] says of this shape and rank: its explanation as UTF-8 (at most `capacity` bytes;
/// returns how many).
///
/// # Safety
/// `text` is valid for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_plan_f32(m: usize, n: usize, k: usize, text: *mut u8, capacity: usize) -> usize {
    let Ok(plan) = TruncatedSvd::new(Rank::Fixed(k)).plan::<f32>((m, n), DType::F32) else { return 0 };
    let plan = plan.to_string();
    let length = plan.len().min(capacity);
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts_mut(text, length) }.copy_from_slice(&plan.as_bytes()[..length]);
    length
}
