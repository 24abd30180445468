//! Factorizations of matrices that are read in blocks by a function of the caller.

use std::ffi::c_void;

use super::factors::{Factors, Of};
use super::matrix::dtype;
use super::status::{Failure, Status, get, guard, make};
use super::svd::{Context, Progress, Svd, is_double, with_watch};
use crate::error::{self, Error};
use crate::operator::{RowSource, Watch};
use crate::tensor::DType;

/// A function that fills `to` with `count` lines from line `first` on, one after another without gaps, and returns 0,
/// or anything else if it cannot. A line is a row, or a column of a matrix that is stored by columns. It may be called
/// from another thread, from one at a time, for any lines and for the same ones again. `to` is aligned for its elements.
/// It must not throw, jump, or call this library with a handle that is in use.
pub type ReadLines =
    Option<unsafe extern "C" fn(first: usize, count: usize, to: *mut c_void, context: *mut c_void) -> i32>;

/// A matrix that is read in blocks, as often as a method needs.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Source {
    /// Reads lines.
    pub read: ReadLines,
    /// What `read` is called with.
    pub context: *mut c_void,
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
    /// A tensorslim_dtype.
    pub dtype: i32,
    /// 0 if lines are rows, anything else if they are columns.
    pub by_columns: i32,
}

/// A source of the caller, checked.
struct Lines {
    read: unsafe extern "C" fn(usize, usize, *mut c_void, *mut c_void) -> i32,
    context: Context,
    shape: (usize, usize),
    dtype: DType,
    by_columns: bool,
}

impl Lines {
    fn new(source: &Source) -> Result<Self, Failure> {
        let (rows, cols, dtype) = (source.rows, source.cols, dtype(source.dtype)?);
        if rows == 0 || cols == 0 {
            return Err(Error::Empty { shape: vec![rows, cols] }.into());
        }
        let bytes = rows.checked_mul(cols).and_then(|count| count.checked_mul(dtype.size()));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::TooLarge { shape: vec![rows, cols] }.into());
        }
        Ok(Lines {
            read: source.read.ok_or(Failure::Null("source.read"))?,
            context: Context::new(source.context),
            shape: (rows, cols),
            dtype,
            by_columns: source.by_columns != 0,
        })
    }
}

impl RowSource for Lines {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn is_column_major(&self) -> bool {
        self.by_columns
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> error::Result<()> {
        let width = if self.by_columns { self.shape.0 } else { self.shape.1 } * self.dtype.size();
        let count = dst.len() / width;
        // The buffers of a factorization are aligned to 8 bytes; a line of bytes alone need not be.
        let mut aligned = Vec::<u64>::new();
        let is_aligned = (dst.as_ptr() as usize).is_multiple_of(self.dtype.size());
        if !is_aligned {
            aligned.resize(dst.len().div_ceil(8), 0);
        }
        let to = if is_aligned { dst.as_mut_ptr() } else { aligned.as_mut_ptr().cast() };
        // SAFETY: the function and its context are the caller's, who promises that they may be called so; `to` has
        // room for `count` lines, and nothing else uses it.
        let code = unsafe { (self.read)(first, count, to.cast(), self.context.get()) };
        if code != 0 {
            let why = format!("the function that reads returned {code}; make it return 0");
            return Err(Error::File { path: format!("lines {first} to {}", first + count - 1), why });
        }
        if !is_aligned {
            dst.copy_from_slice(&bytemuck::cast_slice(&aligned)[..dst.len()]);
        }
        Ok(())
    }
}

/// Factors as tensorslim_factor does, and reads the matrix in blocks of lines. Every pass counts in the report. The
/// memory is that of the report, the buffers for blocks included.
///
/// Errors: NULL_POINTER, also for a source that has no function; FILE if `read` returns anything but 0; EMPTY,
/// TOO_LARGE; OPTION also for the GPU; the others of tensorslim_factor.
///
/// # Safety
/// `svd` is NULL or a handle that no other call changes; `source` is NULL or valid, and its function may be called with
/// its context, as is said there; `context` is what `progress` needs, on any thread; `out` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_factor_rows(
    svd: *const Svd,
    source: *const Source,
    precision: i32,
    progress: Progress,
    context: *mut c_void,
    out: *mut *mut Factors,
) -> Status {
    let factor = || {
        // SAFETY: the handle and the source are null, or valid and not changed meanwhile, as this function's caller
        // promises.
        let (svd, source) = unsafe { (&get(svd, "svd")?.0, get(source, "source")?) };
        let (mut lines, double) = (Lines::new(source)?, is_double(precision)?);
        // SAFETY: the function and its context are the caller's, who promises that they may be called so.
        let of = unsafe {
            with_watch(progress, context, |watch: &Watch<'_>| match double {
                false => Ok(Of::F32(svd.factor_rows(&mut lines, watch)?)),
                true => Ok(Of::F64(svd.factor_rows(&mut lines, watch)?)),
            })
        };
        Ok(Factors::new(of?))
    };
    // SAFETY: `out` is null or valid for a write, as this function's caller promises.
    guard(|| unsafe { make(out, factor) })
}
