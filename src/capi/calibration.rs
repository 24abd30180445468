//! Statistics of the inputs of a layer, or of the gradients of its outputs, behind a handle.

use super::matrix::Matrix;
use super::status::{Failure, Status, decode, free, get, get_mut, guard, make, put, put_all};
use crate::calibration::{Accumulation, Calibration as Statistics, CalibrationOptions, Form, NonFinite, Whitening};

/// Statistics of the samples that a layer meets: it is fed with blocks of them and weights a factorization.
pub struct Calibration(pub(super) Statistics);

/// What is kept of the samples X, one per row.
#[repr(C)]
pub enum CalibrationForm {
    /// The Gram matrix of X, summed in double.
    Gram = 0,
    /// The Gram matrix of X, whose blocks are multiplied in float: twice as fast, correct to 1e-6 of the norm.
    GramF32 = 1,
    /// The triangular factor of X: twice the digits for small directions, at four times the work.
    Factor = 2,
}

/// What is done with a sample that has a NaN or an infinity.
#[repr(C)]
pub enum CalibrationNonFinite {
    /// The whole block is refused and changes nothing.
    Refuse = 0,
    /// The sample is left out and counted.
    Skip = 1,
}

/// Which part of the statistics weights the error.
#[repr(C)]
pub enum CalibrationPart {
    /// All second moments: the optimum for the samples.
    Full = 0,
    /// The mean square of each feature, as if features were independent.
    Diagonal = 1,
}

/// Returns the part of the statistics of this number.
pub(super) fn whitening(code: i32) -> Result<Whitening, Failure> {
    let table =
        [(CalibrationPart::Full as i32, Whitening::Full), (CalibrationPart::Diagonal as i32, Whitening::Diagonal)];
    decode(&table, code, "part", "TENSORSLIM_CALIBRATION_PART_FULL or _DIAGONAL (0 or 1)")
}

fn options(form: i32, non_finite: i32) -> Result<CalibrationOptions, Failure> {
    let forms = [
        (CalibrationForm::Gram as i32, (Form::Gram, Accumulation::F64)),
        (CalibrationForm::GramF32 as i32, (Form::Gram, Accumulation::F32)),
        (CalibrationForm::Factor as i32, (Form::Factor, Accumulation::F64)),
    ];
    let (form, accumulation) =
        decode(&forms, form, "form", "TENSORSLIM_CALIBRATION_FORM_GRAM, _GRAM_F32 or _FACTOR (0 to 2)")?;
    let treatments = [
        (CalibrationNonFinite::Refuse as i32, NonFinite::Refuse),
        (CalibrationNonFinite::Skip as i32, NonFinite::Skip),
    ];
    let want = "TENSORSLIM_CALIBRATION_NON_FINITE_REFUSE or _SKIP (0 or 1)";
    let non_finite = decode(&treatments, non_finite, "non_finite", want)?;
    Ok(CalibrationOptions { form, accumulation, non_finite })
}

/// Makes statistics of no samples for a layer of `features` inputs, about 8 features² bytes. `form` is a
/// tensorslim_calibration_form, `non_finite` a tensorslim_calibration_non_finite. The handle written to `out` is the
/// caller's, to be freed by tensorslim_calibration_free; it is NULL after a failure.
///
/// Errors: NULL_POINTER, EMPTY for no features, OPTION for an unknown number, TOO_LARGE.
///
/// # Safety
/// `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_calibration_new(
    features: usize,
    form: i32,
    non_finite: i32,
    out: *mut *mut Calibration,
) -> Status {
    let new = || Ok(Calibration(Statistics::with(features, options(form, non_finite)?)?));
    // SAFETY: `out` is what this function's caller promises: null or valid for a write.
    guard(|| unsafe { make(out, new) })
}

/// Frees statistics; NULL is allowed. Options that were set with them keep what they need.
///
/// # Safety
/// `calibration` is NULL, or a handle that has not been freed and that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_calibration_free(calibration: *mut Calibration) {
    // SAFETY: the handle is null or came from `make` and is given back once, as this function's caller promises.
    unsafe { free(calibration) }
}

/// Adds samples: `x` is samples × features, one sample per row.
///
/// Errors: NULL_POINTER, SHAPE for another number of columns, NOT_FINITE unless such samples are skipped, OPTION for
/// more than 2^43 samples in all, and those of a matrix: EMPTY, OVERLAP, MISALIGNED, TOO_LARGE, OPTION. Nothing has
/// changed after an error.
///
/// # Safety
/// `calibration` is NULL or a handle that no other call uses; `x` is NULL or a matrix whose elements are readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_calibration_update(calibration: *mut Calibration, x: *const Matrix) -> Status {
    guard(|| {
        // SAFETY: the handle is null or valid, and this call alone uses it, as this function's caller promises.
        let statistics = unsafe { get_mut(calibration, "calibration") }?;
        // SAFETY: `x` is null or valid, and its elements are readable during the call, as the caller promises.
        let (x, _) = unsafe { get(x, "x")?.tensor("x") }?;
        Ok(statistics.0.update(&x)?)
    })
}

/// Adds the samples that `other` has seen, such as those of another thread. The two may be one.
///
/// Errors: NULL_POINTER, SHAPE for another number of features, OPTION for another form or more than 2^43 samples in
/// all. Nothing has changed after an error.
///
/// # Safety
/// Both are NULL or handles; no other call uses the first one, or changes the second one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_calibration_merge(
    calibration: *mut Calibration,
    other: *const Calibration,
) -> Status {
    guard(|| {
        // The copy shares the matrix and is made before anything is borrowed to be changed: the two may be one handle.
        // SAFETY: `other` is null or a valid handle that nobody changes, as this function's caller promises.
        let other = unsafe { get(other, "other") }?.0.clone();
        // SAFETY: the handle is null or valid, this call alone uses it, and the borrow of `other` has ended.
        let statistics = unsafe { get_mut(calibration, "calibration") }?;
        Ok(statistics.0.merge(&other)?)
    })
}

/// Writes the number of features, of samples that were added, and of those that were skipped. Each pointer may be NULL.
///
/// Errors: NULL_POINTER for the handle.
///
/// # Safety
/// `calibration` is NULL or a handle; the others are NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_calibration_counts(
    calibration: *const Calibration,
    features: *mut usize,
    samples: *mut u64,
    skipped: *mut u64,
) -> Status {
    guard(|| {
        // SAFETY: the handle is null or valid, as this function's caller promises.
        let statistics = &unsafe { get(calibration, "calibration") }?.0;
        // SAFETY: the three pointers are null or valid for a write, as this function's caller promises.
        unsafe {
            put(features, statistics.features());
            put(samples, statistics.samples());
            put(skipped, statistics.skipped());
        }
        Ok(())
    })
}

/// Copies the statistics as bytes, with a checksum, for a file or another machine. With NULL for `buffer` only the
/// number of bytes is written to `count`. Between two calls the number stays the same unless samples are added.
///
/// Errors: NULL_POINTER, BUFFER if `capacity` is less than that number.
///
/// # Safety
/// `calibration` is NULL or a handle; `buffer` is NULL or valid for writes of `capacity` bytes; `count` is NULL or
/// valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_calibration_to_bytes(
    calibration: *const Calibration,
    buffer: *mut u8,
    capacity: usize,
    count: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: the handle is null or valid, as this function's caller promises.
        let bytes = unsafe { get(calibration, "calibration") }?.0.to_bytes();
        // SAFETY: the buffer and `count` are null or valid, as this function's caller promises; the bytes are our own.
        unsafe { put_all(&bytes, "the bytes of a calibration", buffer, capacity, count) }
    })
}

/// Makes statistics from bytes that tensorslim_calibration_to_bytes has written. Bytes from a stranger do no harm. The
/// handle written to `out` is the caller's, to be freed by tensorslim_calibration_free; it is NULL after a failure.
///
/// Errors: NULL_POINTER, FORMAT with what is wrong with the bytes.
///
/// # Safety
/// `bytes` is NULL or valid for reads of `count` bytes; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_calibration_from_bytes(
    bytes: *const u8,
    count: usize,
    out: *mut *mut Calibration,
) -> Status {
    let new = || {
        if bytes.is_null() {
            return Err(Failure::Null("bytes"));
        }
        // A slice has no more than isize::MAX bytes; no object of a C program has more.
        let count = count.min(isize::MAX as usize);
        // SAFETY: the pointer is not null, and so valid for reads of `count` bytes, as this function's caller promises.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, count) };
        Ok(Calibration(Statistics::from_bytes(bytes)?))
    };
    // SAFETY: `out` is null or valid for a write, as this function's caller promises.
    guard(|| unsafe { make(out, new) })
}
