//! The options of a factorization behind a handle, the memory that it takes, and the factorization.

use std::ffi::c_void;

use super::calibration::{Calibration, whitening};
use super::factors::{Factors, Of};
use super::kinds;
use super::matrix::{Matrix, dtype};
use super::status::{Failure, Status, decode, get, get_mut, guard, make};
use crate::error::Error;
use crate::operator::{Cancel, Watch};
use crate::rank::Rank;
use crate::svd::{Device, TruncatedSvd};
use crate::tensor::DType;

/// The options of a factorization.
pub struct Svd(pub(super) TruncatedSvd);

/// The rule for the rank k of a matrix A of m × n elements, and what its value means.
#[repr(C)]
pub enum RankRule {
    /// This rank, a whole number from 1 to the smaller side.
    Fixed = 0,
    /// The largest rank whose k (m + n + 1) numbers are at least this many times fewer than m n.
    Ratio = 1,
    /// The smallest rank that keeps this share of the squared norm, above 0 and at most 1.
    Energy = 2,
    /// The smallest rank with a relative error of at most this, above 0 and below 1.
    Tolerance = 3,
    /// The smallest rank whose outputs on calibration inputs have at least this cosine with the true ones, above 0 and
    /// below 1.
    Quality = 4,
    /// The number of singular values above this one, 0 or more, or 1 if there is none.
    Above = 5,
}

/// A function that hears how many bytes of the matrix were read since its last call, and returns 0 to go on or anything
/// else to stop. It may be called from another thread, from one at a time. It must not throw, jump, or call this
/// library with a handle that is in use.
pub type Progress = Option<unsafe extern "C" fn(bytes: u64, context: *mut c_void) -> i32>;

/// Whole numbers up to this are exact in a double.
const EXACT: f64 = 9007199254740992.0;

fn rank(rule: i32, value: f64) -> Result<Rank, Failure> {
    let fixed = |value: f64| Rank::Fixed(value as usize);
    let table: [(i32, &dyn Fn(f64) -> Rank); 6] = [
        (RankRule::Fixed as i32, &fixed),
        (RankRule::Ratio as i32, &Rank::Ratio),
        (RankRule::Energy as i32, &Rank::Energy),
        (RankRule::Tolerance as i32, &Rank::Tolerance),
        (RankRule::Quality as i32, &Rank::Quality),
        (RankRule::Above as i32, &Rank::Above),
    ];
    let rule = decode(&table, rule, "rule", "TENSORSLIM_RANK_FIXED, .. or _ABOVE (0 to 5)")?;
    match rule(value) {
        Rank::Fixed(_) if !(0.0..=EXACT).contains(&value) || value.fract() != 0.0 => {
            Err(Error::option("rank", value, "a whole number, 1 or more").into())
        }
        rank => Ok(rank),
    }
}

/// Whether arithmetic in `code` is f64.
pub(super) fn is_double(code: i32) -> Result<bool, Failure> {
    match dtype(code)? {
        DType::F32 => Ok(false),
        DType::F64 => Ok(true),
        _ => Err(Error::option("precision", code, "TENSORSLIM_DTYPE_F32 or _F64 (2 or 3)").into()),
    }
}

/// Changes options by one step of the builder.
///
/// # Safety
/// `svd` is null, or a valid handle that nothing else uses during the call.
unsafe fn set(svd: *mut Svd, step: impl FnOnce(TruncatedSvd) -> Result<TruncatedSvd, Failure>) -> Status {
    guard(|| {
        // SAFETY: the handle is null, or valid and not used elsewhere, by the contract of this function.
        let svd = unsafe { get_mut(svd, "svd") }?;
        svd.0 = step(svd.0.clone())?;
        Ok(())
    })
}

/// Makes the options of a factorization with defaults: METHOD_AUTO, SKETCH_SRHT, 10 columns of oversampling, 2 power
/// iterations, seed 0, no calibration, no memory limit, the CPU. `rule` is a tensorslim_rank, `value` what it needs.
/// The handle written to `out` is the caller's, to be freed by tensorslim_svd_free; it is NULL after a failure.
///
/// Whether the value suits a matrix is checked with the matrix. Errors: NULL_POINTER, OPTION for an unknown rule or a
/// fixed rank that is no whole number.
///
/// # Safety
/// `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_new(rule: i32, value: f64, out: *mut *mut Svd) -> Status {
    // SAFETY: `out` is null or valid for a write, as this function's caller promises.
    guard(|| unsafe { make(out, || Ok(Svd(TruncatedSvd::new(rank(rule, value)?)))) })
}

/// Frees options; NULL is allowed.
///
/// # Safety
/// `svd` is NULL, or a handle that has not been freed and that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_free(svd: *mut Svd) {
    // SAFETY: the handle is null or came from `make` and is given back once, as this function's caller promises.
    unsafe { super::status::free(svd) }
}

/// Sets the rule for the rank and its value, as tensorslim_svd_new does.
///
/// Errors: NULL_POINTER, OPTION.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_rank(svd: *mut Svd, rule: i32, value: f64) -> Status {
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, |options| Ok(options.with_rank(rank(rule, value)?))) }
}

/// Sets the method, a tensorslim_method.
///
/// Errors: NULL_POINTER, OPTION.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_method(svd: *mut Svd, method: i32) -> Status {
    let step = |options: TruncatedSvd| Ok(options.method(kinds::method(method)?));
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, step) }
}

/// Sets the random matrix: `kind` is a tensorslim_sketch, `oversample` the columns beyond the rank, and one seed gives
/// the same bits on any number of threads.
///
/// Errors: NULL_POINTER, OPTION.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_sketch(svd: *mut Svd, kind: i32, oversample: usize, seed: u64) -> Status {
    let step = |options: TruncatedSvd| Ok(options.sketch(kinds::sketch(kind)?).oversample(oversample).seed(seed));
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, step) }
}

/// Sets the number of power iterations. Each costs two products with the matrix.
///
/// Errors: NULL_POINTER.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_power_iterations(svd: *mut Svd, count: usize) -> Status {
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, |options| Ok(options.power_iterations(count))) }
}

/// Sets the largest rank that a rule which looks at the singular values may return.
///
/// Errors: NULL_POINTER. A largest rank of 0 is an error of tensorslim_factor.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_max_rank(svd: *mut Svd, rank: usize) -> Status {
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, |options| Ok(options.max_rank(rank))) }
}

/// Sets the most bytes that a factorization may allocate, beside the matrix of the caller.
///
/// Errors: NULL_POINTER. A limit that is too low is an error of tensorslim_factor, with the least that would do.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_memory_limit(svd: *mut Svd, bytes: usize) -> Status {
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, |options| Ok(options.memory_limit(bytes))) }
}

/// Sets where to compute: -1 for the CPU, otherwise the number of a CUDA device.
///
/// Errors: NULL_POINTER, OPTION for a number below -1. A device that cannot be used is an error of tensorslim_factor.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_device(svd: *mut Svd, device: i32) -> Status {
    let step = |options: TruncatedSvd| match device {
        -1 => Ok(options.device(Device::Cpu)),
        _ => {
            let number = usize::try_from(device);
            let number =
                number.map_err(|_| Error::option("device", device, "-1 for the CPU, or a number from 0 on"))?;
            Ok(options.device(Device::Cuda(number)))
        }
    };
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, step) }
}

/// Weights the error by the inputs that the layer will meet: `inputs` has the statistics of its n inputs. `part` is a
/// tensorslim_calibration_part; `blend` says how much they are trusted, from 0 (not at all) to 1 (entirely). The
/// options share the statistics; the handle may be freed or fed afterwards, which does not change them.
///
/// Errors: NULL_POINTER, OPTION for an unknown part. What does not suit a matrix is an error of tensorslim_factor.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses; `inputs` is NULL or a handle that no other call changes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_calibration(
    svd: *mut Svd,
    inputs: *const Calibration,
    part: i32,
    blend: f64,
) -> Status {
    let step = |options: TruncatedSvd| {
        // SAFETY: the handle is null, or valid and not changed meanwhile, as this function's caller promises.
        let inputs = unsafe { get(inputs, "inputs") }?;
        Ok(options.calibration(&inputs.0).whitening(whitening(part)?).blend(blend))
    };
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, step) }
}

/// Weights the error by the outputs as well: `gradients` has the statistics of the gradients of a loss with respect to
/// the m outputs of the layer, one sample per row. The other arguments and the errors are those of
/// tensorslim_svd_set_calibration.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses; `gradients` is NULL or a handle that no other call changes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_output_calibration(
    svd: *mut Svd,
    gradients: *const Calibration,
    part: i32,
    blend: f64,
) -> Status {
    let step = |options: TruncatedSvd| {
        // SAFETY: the handle is null, or valid and not changed meanwhile, as this function's caller promises.
        let gradients = unsafe { get(gradients, "gradients") }?;
        Ok(options.output_calibration(&gradients.0).output_whitening(whitening(part)?).output_blend(blend))
    };
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, step) }
}

/// Sets the statistics of inputs that RANK_QUALITY is measured on. By default it is measured on those that weight the
/// error, which flatters.
///
/// Errors: NULL_POINTER.
///
/// # Safety
/// `svd` is NULL or a handle that no other call uses; `inputs` is NULL or a handle that no other call changes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_svd_set_quality_on(svd: *mut Svd, inputs: *const Calibration) -> Status {
    let step = |options: TruncatedSvd| {
        // SAFETY: the handle is null, or valid and not changed meanwhile, as this function's caller promises.
        let inputs = unsafe { get(inputs, "inputs") }?;
        Ok(options.quality_on(&inputs.0))
    };
    // SAFETY: the handle is null, or valid and used by this call alone, as this function's caller promises.
    unsafe { set(svd, step) }
}

/// Writes the most bytes that tensorslim_factor allocates for a rows × cols matrix of elements `dtype` in arithmetic
/// `precision`, the factors included. The caller's matrix does not count.
///
/// Errors: NULL_POINTER, EMPTY, RANK, OPTION, and MEMORY under a limit that is too low.
///
/// # Safety
/// `svd` is NULL or a handle that no other call changes; `bytes` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_workspace(
    svd: *const Svd,
    rows: usize,
    cols: usize,
    dtype: i32,
    precision: i32,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: the handle is null, or valid and not changed meanwhile, as this function's caller promises.
        let svd = &unsafe { get(svd, "svd") }?.0;
        let (dtype, shape) = (super::matrix::dtype(dtype)?, (rows, cols));
        let needs = match is_double(precision)? {
            false => svd.workspace::<f32>(shape, dtype)?,
            true => svd.workspace::<f64>(shape, dtype)?,
        };
        // SAFETY: `bytes` is null or valid, as this function's caller promises.
        *unsafe { get_mut(bytes, "bytes") }? = needs;
        Ok(())
    })
}

/// What a function of the caller is called with. The pointer goes to the thread that computes or reads, and comes back
/// to no other code than the caller's function.
pub(super) struct Context(*mut c_void);

impl Context {
    pub(super) fn new(context: *mut c_void) -> Self {
        Context(context)
    }

    pub(super) fn get(&self) -> *mut c_void {
        self.0
    }
}

// SAFETY: this crate does not read through the pointer. It hands it to the caller's function, from one thread at a
// time, and the documentation of such functions says that this may be another thread.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

/// Runs `work` with a watch that calls `progress`, if there is one, and cancels if that says so.
///
/// # Safety
/// `progress` is null, or may be called with `context` on any thread, on one at a time.
pub(super) unsafe fn with_watch(
    progress: Progress,
    context: *mut c_void,
    work: impl FnOnce(&Watch<'_>) -> Result<Of, Error>,
) -> Result<Of, Failure> {
    let (cancel, context) = (Cancel::new(), Context(context));
    let heard = |bytes: u64| {
        // SAFETY: the contract of this function.
        if progress.is_some_and(|progress| unsafe { progress(bytes, context.get()) } != 0) {
            cancel.cancel();
        }
    };
    let mut watch = Watch::new(cancel.clone());
    if progress.is_some() {
        watch = watch.on_read(&heard);
    }
    let of = work(&watch)?;
    // Who said stop at the last product gets no factors, as at any other.
    cancel.check()?;
    Ok(of)
}

/// Factors the m × n matrix `a` as U diag(s) Vᵀ of rank k, in arithmetic `precision`: TENSORSLIM_DTYPE_F32 or _F64.
/// The threads are those of one pool for the process, as many as RAYON_NUM_THREADS says or the machine has. `progress`
/// may be NULL; `context` is handed to it. The handle written to `out` is the caller's, to be freed by
/// tensorslim_factors_free; it is NULL after a failure.
///
/// Errors: NULL_POINTER, NOT_FINITE, RANK, OPTION, MEMORY, CANCELLED, RANGE for values beyond the arithmetic, SHAPE for
/// statistics of another number of features, DEVICE, NO_CONVERGENCE, and those of a matrix: EMPTY, OVERLAP, MISALIGNED,
/// TOO_LARGE.
///
/// # Safety
/// `svd` is NULL or a handle that no other call changes; `a` is NULL or a matrix whose elements are readable; `context`
/// is what `progress` needs, on any thread; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factor(
    svd: *const Svd,
    a: *const Matrix,
    precision: i32,
    progress: Progress,
    context: *mut c_void,
    out: *mut *mut Factors,
) -> Status {
    let factor = || {
        // SAFETY: the handle is null, or valid and not changed meanwhile, as this function's caller promises.
        let svd = &unsafe { get(svd, "svd") }?.0;
        // SAFETY: `a` is null or valid, and its elements are readable during the call, as the caller promises.
        let (a, _) = unsafe { get(a, "a")?.tensor("a.data") }?;
        let double = is_double(precision)?;
        // SAFETY: the function and its context are the caller's, who promises that they may be called so.
        let of = unsafe {
            with_watch(progress, context, |watch: &Watch<'_>| match double {
                false => Ok(Of::F32(svd.factor_watched(a, watch)?)),
                true => Ok(Of::F64(svd.factor_watched(a, watch)?)),
            })
        };
        Ok(Factors::new(of?))
    };
    // SAFETY: `out` is null or valid for a write, as this function's caller promises.
    guard(|| unsafe { make(out, factor) })
}
