//! Status codes, the message of the last failure on each thread, and the guard that every entry runs in.
//!
//! A failure is a null pointer, a buffer that is too small, or an error of the crate, whose kind gives the code and
//! whose text gives the message. Messages are kept per thread, so that threads do not overwrite each other's.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Error;

/// What a function returns. Anything but TENSORSLIM_STATUS_OK is a failure; tensorslim_last_error() has its text.
#[derive(Clone, Copy)]
#[repr(C)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A pointer that must not be NULL is.
    NullPointer = 1,
    /// Two sizes that must agree do not.
    Shape = 2,
    /// A dimension is zero.
    Empty = 3,
    /// A shape, or its bytes, does not fit the address space.
    TooLarge = 4,
    /// Strides place two elements at one address, or two matrices share memory that must not.
    Overlap = 5,
    /// The axes of a tensor cannot be merged without a copy.
    Layout = 6,
    /// An address is not a multiple of the size of its elements.
    Misaligned = 7,
    /// A matrix has a NaN or an infinity.
    NotFinite = 8,
    /// A rank is below 1 or above the smaller side of the matrix.
    Rank = 9,
    /// An option is outside its range, or does not go with the others.
    Option = 10,
    /// A value does not fit the arithmetic.
    Range = 11,
    /// No Hadamard matrix of this library has that order.
    Order = 12,
    /// The scheme of a rotation does not take vectors of that length.
    Rotation = 13,
    /// An iteration did not converge.
    NoConvergence = 14,
    /// The memory limit is below what the most frugal way needs.
    Memory = 15,
    /// A bug of this library. Handles that the call could change may be freed, and nothing else.
    Internal = 16,
    /// The progress function said to stop.
    Cancelled = 17,
    /// A device cannot be used, or failed.
    Device = 18,
    /// A file, or what a function of the caller reads, cannot be read or written.
    File = 19,
    /// Bytes do not have the format that they should have.
    Format = 20,
    /// A buffer is too small; the size that it needs has been written.
    Buffer = 21,
    /// A rank of a distributed factorization failed.
    Remote = 22,
}

/// The reason of a failure.
pub(super) enum Failure {
    /// The argument of this name is null.
    Null(&'static str),
    /// A buffer for this holds less than it must.
    Buffer { what: &'static str, needs: usize, has: usize },
    /// A matrix that is written shares memory with the one of this name.
    Shared(&'static str),
    /// An error of the crate.
    Crate(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Crate(e)
    }
}

impl Failure {
    fn status(&self) -> Status {
        match self {
            Failure::Null(_) => Status::NullPointer,
            Failure::Buffer { .. } => Status::Buffer,
            Failure::Shared(_) => Status::Overlap,
            Failure::Crate(error) => match error {
                Error::Shape { .. } => Status::Shape,
                Error::Empty { .. } => Status::Empty,
                Error::TooLarge { .. } => Status::TooLarge,
                Error::Overlap { .. } => Status::Overlap,
                Error::Layout { .. } => Status::Layout,
                Error::Misaligned { .. } => Status::Misaligned,
                Error::NotFinite { .. } => Status::NotFinite,
                Error::Rank { .. } => Status::Rank,
                Error::Option { .. } => Status::Option,
                Error::Range { .. } => Status::Range,
                Error::Order { .. } => Status::Order,
                Error::Rotation { .. } => Status::Rotation,
                Error::NoConvergence { .. } => Status::NoConvergence,
                Error::Memory { .. } => Status::Memory,
                Error::Internal { .. } => Status::Internal,
                Error::Cancelled => Status::Cancelled,
                Error::Remote { .. } => Status::Remote,
                Error::Device { .. } => Status::Device,
                Error::File { .. } => Status::File,
                Error::Format { .. } => Status::Format,
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Failure::Null(name) => format!("{name} is NULL; give a valid pointer"),
            Failure::Buffer { what, needs, has } => {
                format!("the buffer for {what} holds {has}, and {needs} are needed; give a larger one")
            }
            Failure::Shared(name) => format!("the matrix that is written shares memory with {name}; give another one"),
            Failure::Crate(error) => error.to_string(),
        }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs the body of an entry: nothing unwinds out of it, and a failure becomes a code and this thread's message.
pub(super) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    // A handle that the body was changing may be half changed after a panic. The documentation of the code says that it
    // may only be freed, and a drop needs no more than its fields, which are whole values at any time.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::Crate(Error::Internal { what: what(&*panic) }),
    };
    let text = c_text(&failure.text());
    // At the very end of a thread its message is gone already, and there is nobody to read it.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
    failure.status()
}

/// The message of a panic.
fn what(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

/// Returns `text` for C. No text of this crate has a zero byte, unless a panic's has; it is then cut there.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Borrows what an argument points to.
///
/// # Safety
/// `pointer` is null, or valid for reads of a `T` that nobody changes during `'a`.
pub(super) unsafe fn get<'a, T>(pointer: *const T, name: &'static str) -> Result<&'a T, Failure> {
    // SAFETY: a null pointer gives `None`; any other is valid for `'a` by the contract of this function.
    unsafe { pointer.as_ref() }.ok_or(Failure::Null(name))
}

/// Borrows what an argument points to, to change it.
///
/// # Safety
/// `pointer` is null, or valid for reads and writes of a `T` that nothing else reaches during `'a`.
pub(super) unsafe fn get_mut<'a, T>(pointer: *mut T, name: &'static str) -> Result<&'a mut T, Failure> {
    // SAFETY: a null pointer gives `None`; any other is valid and not aliased for `'a` by the contract of this
    // function.
    unsafe { pointer.as_mut() }.ok_or(Failure::Null(name))
}

/// Runs `make` and writes the address of a box of its result to `out`, or null on a failure.
///
/// # Safety
/// `out` is null, or valid for a write of a pointer; what was there is not read.
pub(super) unsafe fn make<T>(out: *mut *mut T, make: impl FnOnce() -> Result<T, Failure>) -> Result<(), Failure> {
    if out.is_null() {
        return Err(Failure::Null("out"));
    }
    // SAFETY: `out` is not null, and so valid for a write by the contract of this function.
    unsafe { out.write(std::ptr::null_mut()) };
    let made = Box::new(make()?);
    // SAFETY: as a moment ago: `make` got no access to `out`, and its contract holds for the whole call.
    unsafe { out.write(Box::into_raw(made)) };
    Ok(())
}

/// Takes back a box that [`make`] gave away, and drops it. A null pointer is nothing to drop.
///
/// # Safety
/// `handle` is null, or came from [`make`] of the same `T` and has not been given to this function before.
pub(super) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the pointer is of a box of this `T` that nobody has taken back, by the contract of this function.
        let boxed = unsafe { Box::from_raw(handle) };
        guard(|| {
            drop(boxed);
            Ok(())
        });
    }
}

/// Writes `value` to `out`, unless that is null.
///
/// # Safety
/// `out` is null, or valid for a write of a `T`.
pub(super) unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: `out` is not null, and so valid for a write by the contract of this function.
        unsafe { out.write(value) };
    }
}

/// Copies `values` to a buffer of `capacity` elements, and their number to `count`. With null for the buffer only the
/// number is written.
///
/// # Safety
/// `buffer` is null or valid for writes of `capacity` elements, which are not those of `values`; `count` is null or
/// valid for a write.
pub(super) unsafe fn put_all<T: Copy>(
    values: &[T],
    what: &'static str,
    buffer: *mut T,
    capacity: usize,
    count: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: `count` is null or valid by the contract of this function.
    unsafe { put(count, values.len()) };
    if buffer.is_null() {
        return if count.is_null() { Err(Failure::Null("buffer")) } else { Ok(()) };
    }
    if capacity < values.len() {
        return Err(Failure::Buffer { what, needs: values.len(), has: capacity });
    }
    // SAFETY: the buffer is not null, holds at least `values.len()` elements, and is disjoint from the values, which
    // are this library's, by the contract of this function.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), buffer, values.len()) };
    Ok(())
}

/// Finds the value that a number of the C interface stands for.
pub(super) fn decode<T: Copy>(
    table: &[(i32, T)],
    code: i32,
    name: &'static str,
    want: &'static str,
) -> Result<T, Failure> {
    let found = table.iter().find(|(number, _)| *number == code);
    found.map(|&(_, value)| value).ok_or_else(|| Error::option(name, code, want).into())
}

/// Returns the version of the library, such as "0.1.0". The text lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn tensorslim_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no zero byte"),
    };
    VERSION.as_ptr()
}

/// Returns the text of the last failure on the calling thread, one line of UTF-8; empty if there was none. It lives
/// until the next failure on this thread, or the end of the thread.
#[unsafe(no_mangle)]
pub extern "C" fn tensorslim_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the last failure.
    fn last() -> String {
        // SAFETY: the pointer is of a text that lives until the next failure on this thread, and it is copied at once.
        unsafe { CStr::from_ptr(tensorslim_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_ends_at_the_guard() {
        assert!(matches!(guard(|| panic!("planted")), Status::Internal));
        assert_eq!(last(), "internal error: planted; please report it");
        assert!(matches!(guard(|| panic!("planted\0{}", 1)), Status::Internal));
        assert_eq!(last(), "internal error: planted; please report it");
    }

    #[test]
    fn a_message_belongs_to_its_thread() {
        assert!(matches!(guard(|| Err(Failure::Null("here"))), Status::NullPointer));
        std::thread::spawn(|| assert_eq!(last(), "")).join().unwrap();
        assert!(last().starts_with("here is NULL"));
    }
}
