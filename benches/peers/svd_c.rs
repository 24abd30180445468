//! The factorization behind C names, for `compare.py` and `conformance.py` to call through ctypes.

use tensorslim::{DType, Method, Rank, Scalar, TensorRef, TruncatedSvd};

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
    let options = Options { rank: k, oversample: 10, power_iterations: q, seed: 0, method };
    // SAFETY: the caller's.
    unsafe { factor(a, [m, n], [n as isize, 1], &options, u, s, vt, report) }
}

/// What [`TruncatedSvd`] is told; `method` is an index into [`Method::ALL`].
#[repr(C)]
pub struct Options {
    rank: usize,
    oversample: usize,
    power_iterations: usize,
    seed: u64,
    method: usize,
}

/// As `tensorslim_svd_f32` for a matrix whose rows and columns are `strides` elements apart and whose first element in memory is
/// at `a`: where a stride is negative, that is not the first of the matrix.
///
/// # Safety
/// `shape` and `strides` are valid for two elements each, `a` for all that they span, the others as there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_with_f32(
    a: *const f32,
    shape: &[usize; 2],
    strides: &[isize; 2],
    options: &Options,
    u: *mut f32,
    s: *mut f32,
    vt: *mut f32,
    report: *mut f64,
) -> i32 {
    // SAFETY: the caller's.
    unsafe { factor(a, *shape, *strides, options, u, s, vt, report) }
}

/// As `tensorslim_svd_with_f32`, of f64 in f64.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_with_f64(
    a: *const f64,
    shape: &[usize; 2],
    strides: &[isize; 2],
    options: &Options,
    u: *mut f64,
    s: *mut f64,
    vt: *mut f64,
    report: *mut f64,
) -> i32 {
    // SAFETY: the caller's.
    unsafe { factor(a, *shape, *strides, options, u, s, vt, report) }
}

/// # Safety
/// That of `tensorslim_svd_with_f32`.
unsafe fn factor<T: Scalar>(
    a: *const T,
    shape: [usize; 2],
    strides: [isize; 2],
    options: &Options,
    u: *mut T,
    s: *mut T,
    vt: *mut T,
    report: *mut f64,
) -> i32 {
    let length = 1 + (0..2).map(|axis| shape[axis].saturating_sub(1) * strides[axis].unsigned_abs()).sum::<usize>();
    // SAFETY: the caller's.
    let (a, report) = unsafe { (std::slice::from_raw_parts(a, length), std::slice::from_raw_parts_mut(report, 2)) };
    let Ok(w) = TensorRef::strided(a, &shape, &strides) else { return 1 };
    let svd = TruncatedSvd::new(Rank::Fixed(options.rank))
        .method(Method::ALL[options.method])
        .oversample(options.oversample)
        .power_iterations(options.power_iterations)
        .seed(options.seed);
    let Ok(f) = svd.factor::<T>(w) else { return 1 };
    report[0] = f.report().relative_error;
    report[1] = Method::ALL.iter().position(|x| *x == f.report().method).unwrap_or(0) as f64;
    if !u.is_null() {
        let ([m, n], k) = (shape, options.rank);
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
