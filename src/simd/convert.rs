//! Conversion between storage and arithmetic: `dst[i] = scale · src[i]`, widening or narrowing, for any two element
//! types.
//!
//! One load, one multiplication and one store per register; the floor is memory. f16 and bf16 go through f32 registers.
//! f64 to a half must round once: it is rounded to f32 **to odd** first (toward zero, with the last bit set if that was
//! inexact), after which rounding to 11 or 8 bits gives what direct rounding would, because f32 has more than two bits
//! more (S. Boldo, G. Melquiond, Emulation of FMA and correctly rounded sums, 2008).

use super::lanes::{Kernel, Lanes};
use super::{Scalar, dispatch, isa};
use crate::dtype::with_dtype;
use crate::tensor::{DType, Element, Matrix, round_to_odd};

/// Converts storage to arithmetic: `dst[i] = scale · src[i]`.
///
/// `scale` is a power of two, so that the product is exact but for under- and overflow. It is applied before any
/// narrowing, which rounds to nearest, ties to even. A NaN stays a NaN.
///
/// # Panics
/// If the lengths differ.
pub fn convert<E: Element, T: Scalar>(src: &[E], dst: &mut [T], scale: f64) {
    convert_any(src, &[], dst, scale);
}

/// Prefetches `next`, which is to be converted soon, and converts `src` as [`convert`] does.
#[cfg(feature = "linalg")]
pub(crate) fn convert_before<E: Element, T: Scalar>(src: &[E], next: &[E], dst: &mut [T], scale: f64) {
    convert_any(src, next, dst, scale);
}

/// Converts arithmetic to storage: `dst[i] = scale · src[i]`, with `scale` and rounding as in [`convert`].
///
/// # Panics
/// If the lengths differ.
pub fn convert_back<T: Scalar, E: Element>(src: &[T], dst: &mut [E], scale: f64) {
    convert_any(src, &[], dst, scale);
}

/// Converts a row of a matrix of any strides as [`convert`] does, through `line` where the row is not contiguous.
#[cfg(feature = "linalg")]
pub(crate) fn convert_row<E: Element, T: Scalar>(
    row: faer::RowRef<'_, E>,
    line: &mut Vec<E>,
    dst: &mut [T],
    scale: f64,
) {
    match row.try_as_row_major() {
        Some(row) => convert(row.as_slice(), dst, scale),
        None => {
            line.clear();
            line.extend(row.iter().copied());
            convert(line, dst, scale);
        }
    }
}

impl<T: Element> Matrix<T> {
    /// Returns the bytes of the elements, rounded to `dtype` (to nearest, ties to even), row by row, in native byte
    /// order.
    pub fn to_bytes(&self, dtype: DType) -> Vec<u8> {
        fn bytes<T: Element, E: Element>(data: &[T]) -> Vec<u8> {
            if T::DTYPE == E::DTYPE {
                return bytemuck::cast_slice(data).to_vec();
            }
            let mut bytes = Vec::with_capacity(size_of_val(data) / size_of::<T>() * size_of::<E>());
            let mut rounded = [E::zeroed(); 4 * CHUNK];
            for x in data.chunks(rounded.len()) {
                let rounded = &mut rounded[..x.len()];
                convert_any(x, &[], rounded, 1.0);
                bytes.extend_from_slice(bytemuck::cast_slice(rounded));
            }
            bytes
        }
        with_dtype!(dtype, E => bytes::<T, E>(self.as_slice()))
    }
}

/// Converts between any two types.
fn convert_any<A: Element, B: Element>(src: &[A], next: &[A], dst: &mut [B], scale: f64) {
    assert_eq!(src.len(), dst.len(), "convert: lengths differ");
    dispatch(isa(), Convert { src, next, dst, scale });
}

/// The arguments of [`convert_any`], as a kernel.
struct Convert<'a, A, B> {
    src: &'a [A],
    next: &'a [A],
    dst: &'a mut [B],
    scale: f64,
}

impl<A: Element, B: Element> Kernel for Convert<'_, A, B> {
    type Output = ();
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Convert { src, next, dst, scale } = self;
        for line in next.chunks(64 / size_of::<A>()) {
            s.prefetch(line.as_ptr().cast());
        }
        match (A::DTYPE, B::DTYPE) {
            (DType::F64, DType::F64) => by_registers::<S, f64, A, B>(s, src, dst, scale),
            (DType::F64, _) => from_f64::<S, A, B>(s, src, dst, scale),
            (_, DType::F64) => to_f64::<S, A, B>(s, src, dst, scale),
            // The product is exact in f32 only if the power of two itself is a normal f32.
            _ if scale as f32 as f64 == scale && (scale as f32).is_normal() => {
                by_registers::<S, f32, A, B>(s, src, dst, scale)
            }
            _ => {
                for (d, x) in dst.iter_mut().zip(src) {
                    *d = B::from_f64(scale * x.to_f64());
                }
            }
        }
    }
}

/// Converts `src` to `dst` through registers of `T`, a type that holds every value of `A`, times `scale`, which `T`
/// holds.
#[inline(always)]
fn by_registers<S: Lanes, T: Scalar, A: Element, B: Element>(s: S, src: &[A], dst: &mut [B], scale: f64) {
    let lanes = T::lanes::<S>();
    let factor = T::vsplat(s, <T as Element>::from_f64(scale));
    let (whole, rest) = src.split_at(src.len() - src.len() % lanes);
    let (dst, dst_rest) = dst.split_at_mut(whole.len());
    for (x, d) in whole.chunks_exact(lanes).zip(dst.chunks_exact_mut(lanes)) {
        // SAFETY: both chunks have `lanes` elements.
        unsafe { T::vstore::<S, B>(s, d.as_mut_ptr(), T::vmul(s, T::vload::<S, A>(s, x.as_ptr()), factor)) };
    }
    for (x, d) in rest.iter().zip(dst_rest) {
        *d = B::from_f64(scale * x.to_f64());
    }
}

/// The number of elements that are converted at a time through a buffer on the stack.
const CHUNK: usize = 256;

/// Converts f32 and halves to f64: to f32 in L1, then to f64, then scaled. `B` is f64.
#[inline(always)]
fn to_f64<S: Lanes, A: Element, B: Element>(s: S, src: &[A], dst: &mut [B], scale: f64) {
    let mut single = [0f32; CHUNK];
    let dst: &mut [f64] = bytemuck::cast_slice_mut(dst);
    for (x, d) in src.chunks(CHUNK).zip(dst.chunks_mut(CHUNK)) {
        let single = &mut single[..x.len()];
        by_registers::<S, f32, A, f32>(s, x, single, 1.0);
        for (d, &x) in d.iter_mut().zip(&*single) {
            *d = scale * x as f64;
        }
    }
}

/// Converts f64 to f32 or a half: scaled, rounded to f32 in L1 (to odd before a half), then to `B`. `A` is f64.
#[inline(always)]
fn from_f64<S: Lanes, A: Element, B: Element>(s: S, src: &[A], dst: &mut [B], scale: f64) {
    let mut single = [0f32; CHUNK];
    let src: &[f64] = bytemuck::cast_slice(src);
    for (x, d) in src.chunks(CHUNK).zip(dst.chunks_mut(CHUNK)) {
        let single = &mut single[..x.len()];
        for (t, &x) in single.iter_mut().zip(x) {
            let x = scale * x;
            *t = if B::DTYPE == DType::F32 { x as f32 } else { round_to_odd(x) };
        }
        by_registers::<S, f32, f32, B>(s, single, d, 1.0);
    }
}
