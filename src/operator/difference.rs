//! The difference of two matrices, taken line by line while they are read and never formed.
//!
//! ```text
//!   A  lines i..   ──read──>  bytes of A ── widened ──>  dst          A and B: any element types, rows or columns,
//!   B  lines i..   ──read──>  bytes of B ── widened ──>  dst −= B      in memory or in files
//! ```
//!
//! Its elements are f32, or f64 if either matrix has f64: `a − b` of two halves is rounded to f32 once, and is exact
//! where the two are within a factor of two of each other, as fine-tuned and base weights are (P. H. Sterbenz, 1974).
//!
//! **Cost.** A pass reads both matrices once. Scratch is three runs of [`SCRATCH`] bytes, whatever the matrices are.
//!
//! **Why a source of rows.** Methods, memory limits, calibration and certificates of a [`RowSource`] then are those of
//! the difference, too; no algorithm knows of it. LoRA extraction is the factorization of `finetuned − base`, QERA that
//! of `W − Q` under calibration (C. Zhang et al., 2024).

use std::ops::Range;

use super::RowSource;
use crate::dtype::with_dtype;
use crate::error::{Error, Result};
use crate::simd::convert::convert;
use crate::simd::load::load_scaled;
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::{DType, Element};

/// The bytes of each matrix that are read at a time, or one line where that is longer.
const SCRATCH: usize = 256 << 10;

/// The matrix `A − B` of two sources of the same shape.
///
/// ```
/// use tensorslim::operator::{Difference, Watch};
/// use tensorslim::{Rank, TensorRef, TruncatedSvd};
///
/// let base = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let tuned = [2.0f32, 3.0, 4.0, 5.0, 6.0, 7.0];
/// let (base, tuned) = (TensorRef::new(&base, &[3, 2])?, TensorRef::new(&tuned, &[3, 2])?);
/// let mut update = Difference::new(tuned, base)?;
/// let factors = TruncatedSvd::new(Rank::Fixed(1)).factor_rows::<f32>(&mut update, &Watch::default())?;
/// assert!((factors.s()[0] - 6f32.sqrt()).abs() < 1e-6 && factors.report().relative_error < 1e-6);
/// # Ok::<(), tensorslim::Error>(())
/// ```
#[derive(Debug)]
pub struct Difference<A, B> {
    a: A,
    b: B,
    dtype: DType,
    /// What was read of each matrix, in words, so that it is aligned for every element type.
    read: [Vec<u64>; 2],
}

impl<A: RowSource, B: RowSource> Difference<A, B> {
    /// Makes the difference `A − B`. Nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both matrices have the same shape.
    pub fn new(a: A, b: B) -> Result<Self> {
        let (shape, other) = (a.shape(), b.shape());
        if shape != other {
            let want = format_args!("a matrix of {}×{}, as the first one is", shape.0, shape.1);
            return Err(Error::shape("Difference", want, format_args!("{}×{}", other.0, other.1)));
        }
        let dtype = if [a.dtype(), b.dtype()].contains(&DType::F64) { DType::F64 } else { DType::F32 };
        Ok(Difference { a, b, dtype, read: Default::default() })
    }

    /// Returns the length of a line.
    fn width(&self) -> usize {
        let (m, n) = self.shape();
        if self.a.is_column_major() { m } else { n }
    }

    /// Returns how many runs of `width` elements are read at a time.
    fn runs(&self, width: usize) -> usize {
        (SCRATCH / (width * self.dtype.size()).max(1)).max(1)
    }

    /// Overwrites `dst` with elements `part` of the `count` lines from `first` on.
    fn fill(&mut self, first: usize, count: usize, part: Range<usize>, dst: &mut [u8]) -> Result<()> {
        match self.dtype {
            DType::F64 => self.fill_bytes::<f64>(first, count, part, dst),
            _ => self.fill_bytes::<f32>(first, count, part, dst),
        }
    }

    /// Does [`fill`](Self::fill) with elements of type `T`, for bytes of any alignment.
    fn fill_bytes<T: Scalar>(&mut self, first: usize, count: usize, part: Range<usize>, dst: &mut [u8]) -> Result<()> {
        if let Ok(dst) = bytemuck::try_cast_slice_mut(dst) {
            return self.fill_as::<T>(first, count, part, dst);
        }
        let mut aligned = vec![T::zeroed(); dst.len() / size_of::<T>()];
        self.fill_as(first, count, part, &mut aligned)?;
        dst.copy_from_slice(bytemuck::cast_slice(&aligned));
        Ok(())
    }

    /// Does [`fill`](Self::fill) for elements of type `T`.
    fn fill_as<T: Scalar>(&mut self, first: usize, count: usize, part: Range<usize>, dst: &mut [T]) -> Result<()> {
        let whole = part.len() == self.width();
        let alike = self.a.is_column_major() == self.b.is_column_major();
        let [read_a, read_b] = &mut self.read;
        let bytes = room(read_a, dst.len() * self.a.dtype().size());
        match whole {
            true => self.a.read_rows(first, bytes)?,
            false => self.a.read_block(part.clone(), bytes)?,
        }
        with_dtype!(self.a.dtype(), E => convert::<E, T>(bytemuck::cast_slice(bytes), dst, 1.0));
        let bytes = room(read_b, dst.len() * self.b.dtype().size());
        match (alike, whole) {
            (true, true) => self.b.read_rows(first, bytes)?,
            (true, false) => self.b.read_block(part, bytes)?,
            // Lines of one are parts of all lines of the other.
            (false, true) => self.b.read_block(first..first + count, bytes)?,
            (false, false) => self.b.read_rows(part.start, bytes)?,
        }
        with_dtype!(self.b.dtype(), E => match alike {
            true => subtract::<E, T>(bytemuck::cast_slice(bytes), dst),
            false => subtract_transposed::<E, T>(bytemuck::cast_slice(bytes), count, dst),
        });
        Ok(())
    }
}

impl<A: RowSource, B: RowSource> RowSource for Difference<A, B> {
    fn shape(&self) -> (usize, usize) {
        self.a.shape()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn is_column_major(&self) -> bool {
        self.a.is_column_major()
    }

    fn scratch_bytes(&self) -> usize {
        let (m, n) = self.shape();
        let buffers = [self.a.dtype(), self.b.dtype(), self.dtype].map(|x| SCRATCH.max(m.max(n) * x.size()));
        buffers.iter().sum::<usize>() + self.a.scratch_bytes() + self.b.scratch_bytes()
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()> {
        let width = self.width();
        let (line, lines) = (width * self.dtype.size(), self.runs(width));
        for (i, dst) in dst.chunks_mut((lines * line).max(1)).enumerate() {
            self.fill(first + i * lines, dst.len() / line, 0..width, dst)?;
        }
        Ok(())
    }

    fn read_block(&mut self, part: Range<usize>, dst: &mut [u8]) -> Result<()> {
        let (m, n) = self.shape();
        let (size, lines) = (self.dtype.size(), m * n / self.width().max(1));
        let columns = self.runs(lines);
        if columns >= part.len() {
            return self.fill(0, lines, part, dst);
        }
        // Some elements of every line at a time, each run to its place.
        let mut some = vec![0u64; (lines * columns * size).div_ceil(8)];
        for start in part.clone().step_by(columns) {
            let here = start..part.end.min(start + columns);
            let (run, at) = (here.len() * size, (start - part.start) * size);
            let some = &mut bytemuck::cast_slice_mut(&mut some)[..lines * run];
            self.fill(0, lines, here, some)?;
            for (dst, some) in dst.chunks_exact_mut(part.len() * size).zip(some.chunks_exact(run)) {
                dst[at..at + run].copy_from_slice(some);
            }
        }
        Ok(())
    }
}

/// Returns the first `bytes` bytes of a buffer, which grows if it has fewer.
fn room(buffer: &mut Vec<u64>, bytes: usize) -> &mut [u8] {
    let words = bytes.div_ceil(8);
    if buffer.len() < words {
        buffer.resize(words, 0);
    }
    &mut bytemuck::cast_slice_mut(buffer)[..bytes]
}

/// Computes `dst[i] −= src[i]`.
fn subtract<E: Element, T: Scalar>(src: &[E], dst: &mut [T]) {
    simd::dispatch(simd::isa(), Subtract { src, dst });
}

/// The arguments of [`subtract`], as a kernel.
struct Subtract<'a, E, T> {
    src: &'a [E],
    dst: &'a mut [T],
}

impl<E: Element, T: Scalar> Kernel for Subtract<'_, E, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        load_scaled(s, self.src, T::from_f64(-1.0), self.dst, true);
    }
}

/// Computes `dst(i, j) −= src(j, i)`; both lie row by row, `dst` has `count` rows.
fn subtract_transposed<E: Element, T: Scalar>(src: &[E], count: usize, dst: &mut [T]) {
    /// The side of the squares in which both matrices are walked through.
    const SIDE: usize = 16;
    let width = dst.len() / count;
    for top in (0..count).step_by(SIDE) {
        for left in (0..width).step_by(SIDE) {
            for i in top..count.min(top + SIDE) {
                for j in left..width.min(left + SIDE) {
                    dst[i * width + j] -= T::from_f64(src[j * count + i].to_f64());
                }
            }
        }
    }
}
