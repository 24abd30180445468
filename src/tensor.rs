//! Tensors: element types, borrowed strided tensors of any of them, and the owned row-major matrix.
//!
//! A [`TensorRef`] is a slice, a shape and strides; it owns nothing and copies nothing. The axes of an n-d tensor are
//! grouped into the two of a matrix by [`TensorRef::matricize`], which succeeds exactly when that needs no copy:
//!
//! ```text
//!   conv weight [out, in, kh, kw], strides [in·kh·kw, kh·kw, kw, 1]
//!      matricize(1)  ->  m = out, n = in·kh·kw, strides [in·kh·kw, 1]
//! ```
//!
//! A [`TensorMut`] is a matrix that is worked on in place: a typed slice and two strides. Products and decompositions
//! take faer's views, which `view.rs` makes of these (feature `linalg`): a [`MatView`] is a `faer::MatRef` of one of
//! the four element types.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::dtype::with_dtype;
use crate::error::{Error, Result};

pub use crate::dtype::DType;

#[cfg(feature = "linalg")]
mod view;

#[cfg(feature = "linalg")]
pub use view::MatView;
#[cfg(feature = "linalg")]
pub(crate) use view::{ArithmeticMut, arithmetic_mut, with_view};

impl std::str::FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f16" => Ok(DType::F16),
            "bf16" => Ok(DType::BF16),
            "f32" => Ok(DType::F32),
            "f64" => Ok(DType::F64),
            _ => Err(Error::option("dtype", s, "f16, bf16, f32 or f64")),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A type that a tensor can be stored in: `f16`, `bf16`, `f32` or `f64`. The trait is sealed.
pub trait Element: sealed::Sealed + Pod + Send + Sync + std::fmt::Debug + 'static {
    /// The name of this type.
    const DTYPE: DType;
    /// Returns the value, exactly.
    fn to_f64(self) -> f64;
    /// Returns the value of this type that is nearest to `x`, ties to even; out of range it is an infinity.
    fn from_f64(x: f64) -> Self;
    /// Returns `a` as a view whose element type is not part of its Rust type.
    #[cfg(feature = "linalg")]
    fn view(a: faer::MatRef<'_, Self>) -> MatView<'_>;
    #[doc(hidden)]
    fn slice(a: &[Self]) -> Slice<'_>;
}

macro_rules! element {
    ($($t:ident $v:ident)*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$v;
            #[inline(always)]
            fn to_f64(self) -> f64 { self.into() }
            #[inline(always)]
            fn from_f64(x: f64) -> Self { round_from_f64::$t(x) }
            #[cfg(feature = "linalg")]
            fn view(a: faer::MatRef<'_, Self>) -> MatView<'_> { MatView::$v(a) }
            fn slice(a: &[Self]) -> Slice<'_> { Slice::$v(a) }
        }
    )*};
}
element!(f16 F16 bf16 BF16 f32 F32 f64 F64);

/// Rounds `x` to odd: toward zero, with the last bit set if that was inexact. It is free of branches.
///
/// What is rounded to a half after that is rounded as it would be at once, because f32 has more than two bits more
/// (S. Boldo, G. Melquiond, Emulation of FMA and correctly rounded sums, 2008).
#[inline(always)]
pub(crate) fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = near as f64;
    let bits = near.to_bits() - (back.abs() > x.abs()) as u32;
    f32::from_bits(bits | (back != x) as u32)
}

/// The conversions of [`Element::from_f64`], by the name of the type. Those of the crate `half` from f64 take a number
/// just above the middle of two halves for the middle.
mod round_from_f64 {
    use crate::tensor::round_to_odd;

    pub(super) fn f16(x: f64) -> half::f16 {
        half::f16::from_f32(round_to_odd(x))
    }
    pub(super) fn bf16(x: f64) -> half::bf16 {
        half::bf16::from_f32(round_to_odd(x))
    }
    pub(super) fn f32(x: f64) -> f32 {
        x as f32
    }
    pub(super) fn f64(x: f64) -> f64 {
        x
    }
}

/// A slice of one of the four element types.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub enum Slice<'a> {
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    F32(&'a [f32]),
    F64(&'a [f64]),
}

/// A borrowed tensor: any of the four element types, any number of axes, any strides that do not overlap.
#[derive(Debug, Clone)]
pub struct TensorRef<'a> {
    data: Slice<'a>,
    shape: Vec<usize>,
    strides: Vec<isize>,
}

impl<'a> TensorRef<'a> {
    /// Makes a contiguous row-major tensor over all of `data`.
    ///
    /// # Errors
    /// [`Error::Empty`] for a zero dimension or no axes, [`Error::Shape`] if the length is not the product of
    /// `shape`, [`Error::TooLarge`] if that product overflows.
    pub fn new<E: Element>(data: &'a [E], shape: &[usize]) -> Result<Self> {
        let want = element_count(shape)?;
        if data.len() != want {
            return Err(Error::shape(
                "TensorRef::new",
                format_args!("{want} elements for shape {shape:?}"),
                data.len(),
            ));
        }
        let mut strides = vec![1isize; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i] as isize;
        }
        Ok(TensorRef { data: E::slice(data), shape: shape.to_vec(), strides })
    }

    /// Makes a tensor over part of `data` with the given strides, in elements. The element of lowest address is
    /// `data[0]`, so an axis of negative stride runs from the end of its extent backwards.
    ///
    /// # Errors
    /// [`Error::Empty`] for a zero dimension or no axes, [`Error::TooLarge`] if the product of `shape` overflows,
    /// [`Error::Overlap`] if two indices may share an address, [`Error::Shape`] if `data` is too short or the number of
    /// strides is not the number of axes.
    pub fn strided<E: Element>(data: &'a [E], shape: &[usize], strides: &[isize]) -> Result<Self> {
        element_count(shape)?;
        TensorRef { data: E::slice(data), shape: shape.to_vec(), strides: Vec::new() }.with_strides(strides)
    }

    /// Makes a contiguous row-major tensor over raw bytes in native byte order.
    ///
    /// # Errors
    /// [`Error::Empty`] for a zero dimension or no axes, [`Error::Shape`] if the number of bytes is not that of
    /// `shape`, [`Error::TooLarge`] if that overflows, [`Error::Misaligned`] if the first byte is not aligned for
    /// `dtype`.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &'a [u8]) -> Result<Self> {
        fn cast<'a, E: Element>(shape: &[usize], bytes: &'a [u8]) -> Result<TensorRef<'a>> {
            let want = element_count(shape)?
                .checked_mul(size_of::<E>())
                .ok_or_else(|| Error::TooLarge { shape: shape.to_vec() })?;
            if bytes.len() != want {
                return Err(Error::shape(
                    "TensorRef::from_bytes",
                    format_args!("{want} bytes for shape {shape:?} of {}", E::DTYPE),
                    bytes.len(),
                ));
            }
            let data = bytemuck::try_cast_slice(bytes).map_err(|_| Error::Misaligned {
                dtype: E::DTYPE.name(),
                align: align_of::<E>(),
                remainder: bytes.as_ptr() as usize % align_of::<E>(),
            })?;
            TensorRef::new::<E>(data, shape)
        }
        with_dtype!(dtype, E => cast::<E>(shape, bytes))
    }

    /// Returns a tensor of the same data and shape with other strides, in elements: for Fortran order, padded rows, or
    /// reversed axes. The element of lowest address stays `data[0]`.
    ///
    /// # Errors
    /// [`Error::Overlap`] if two indices may share an address, [`Error::Shape`] if the data is too short or the
    /// number of strides is not the number of axes.
    pub fn with_strides(mut self, strides: &[isize]) -> Result<Self> {
        check_strides("TensorRef::with_strides", &self.shape, strides, self.data.len())?;
        self.strides = strides.to_vec();
        Ok(self)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stride of each axis, in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Groups the first `row_axes` axes into rows and the others into columns. A conv weight `[out, in, kh, kw]`
    /// becomes `out × (in·kh·kw)` by `matricize(1)`.
    ///
    /// # Errors
    /// [`Error::Option`] unless `1 <= row_axes < axes`; [`Error::Layout`] if the strides would need a copy.
    pub fn matricize(&self, row_axes: usize) -> Result<TensorRef<'a>> {
        if row_axes == 0 || row_axes >= self.shape.len() {
            return Err(Error::option("row_axes", row_axes, "a number of axes that leaves at least one on each side"));
        }
        let merge = |axes: std::ops::Range<usize>| -> Option<(usize, isize)> {
            let (mut dim, mut stride) = (1usize, 1isize);
            for i in axes.rev().filter(|&i| self.shape[i] > 1) {
                if dim == 1 {
                    stride = self.strides[i];
                } else if self.strides[i] != stride * dim as isize {
                    return None;
                }
                dim *= self.shape[i];
            }
            Some((dim, stride))
        };
        match (merge(0..row_axes), merge(row_axes..self.shape.len())) {
            (Some((m, rs)), Some((n, cs))) => {
                Ok(TensorRef { data: self.data, shape: vec![m, n], strides: vec![rs, cs] })
            }
            _ => Err(Error::Layout { shape: self.shape.clone(), strides: self.strides.clone() }),
        }
    }
}

/// A borrowed mutable `m × n` matrix of any strides that do not overlap, to be transformed in place.
///
/// A batch of vectors is the rows of such a matrix. Unlike a [`TensorRef`], it knows its element type and may be empty.
pub struct TensorMut<'a, T> {
    /// The pointer to element (0, 0). With the strides it reaches `nrows · ncols` distinct elements, borrowed for `'a`.
    first: *mut T,
    nrows: usize,
    ncols: usize,
    row_stride: isize,
    col_stride: isize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a `TensorMut` is a mutable borrow of elements that nothing else reaches, as `&mut [T]` is, which is Send for
// such T.
unsafe impl<T: Send> Send for TensorMut<'_, T> {}
// SAFETY: a shared reference to a `TensorMut` gives access to its shape and strides, and to no element.
unsafe impl<T: Sync> Sync for TensorMut<'_, T> {}

impl<'a, T> TensorMut<'a, T> {
    /// Makes a row-major `nrows × ncols` matrix over all of `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the length is not `nrows · ncols`.
    pub fn new(data: &'a mut [T], nrows: usize, ncols: usize) -> Result<Self> {
        if Some(data.len()) != nrows.checked_mul(ncols) {
            return Err(Error::shape("TensorMut::new", format_args!("{nrows}×{ncols} elements"), data.len()));
        }
        let (first, row_stride) = (data.as_mut_ptr(), ncols as isize);
        Ok(TensorMut { first, nrows, ncols, row_stride, col_stride: 1, borrowed: PhantomData })
    }

    /// Makes an `nrows × ncols` matrix over part of `data` with the given strides, in elements. The element of lowest
    /// address is `data[0]`, so an axis of negative stride runs from the end of its extent backwards.
    ///
    /// # Errors
    /// [`Error::Overlap`] if two indices may share an address, [`Error::Shape`] if `data` is too short.
    pub fn strided(
        data: &'a mut [T],
        nrows: usize,
        ncols: usize,
        row_stride: isize,
        col_stride: isize,
    ) -> Result<Self> {
        let mut first = data.as_mut_ptr();
        if nrows > 0 && ncols > 0 {
            check_strides("TensorMut::strided", &[nrows, ncols], &[row_stride, col_stride], data.len())?;
            // The pointer does not come from a subslice: negative strides go back to elements that it would not borrow.
            first = first.wrapping_add(first_element(nrows, row_stride) + first_element(ncols, col_stride));
        }
        // SAFETY: `check_strides` proved that every index lands inside `data`, on an element of its own, when the
        // element of lowest address is `data[0]`, as it is with element (0, 0) at `first`.
        Ok(unsafe { Self::from_raw_parts(first, nrows, ncols, row_stride, col_stride) })
    }

    /// Makes a matrix from the pointer to its element (0, 0), its shape, and its strides in elements.
    ///
    /// # Safety
    /// For `i < nrows` and `j < ncols` the elements at `first + i·row_stride + j·col_stride` are distinct, and valid
    /// for reads and writes through this pointer; for `'a` nothing else reads or writes them.
    pub unsafe fn from_raw_parts(
        first: *mut T,
        nrows: usize,
        ncols: usize,
        row_stride: isize,
        col_stride: isize,
    ) -> Self {
        TensorMut { first, nrows, ncols, row_stride, col_stride, borrowed: PhantomData }
    }

    /// The number of rows, `m`.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// The number of columns, `n`.
    pub fn ncols(&self) -> usize {
        self.ncols
    }

    /// The distance between elements of a column, in elements.
    pub fn row_stride(&self) -> isize {
        self.row_stride
    }

    /// The distance between elements of a row, in elements.
    pub fn col_stride(&self) -> isize {
        self.col_stride
    }

    /// The pointer to element (0, 0).
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.first
    }

    /// Returns the transpose, an `n × m` matrix of the same elements.
    pub fn transpose(self) -> Self {
        TensorMut {
            nrows: self.ncols,
            ncols: self.nrows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Borrows the same matrix for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_, T> {
        TensorMut { borrowed: PhantomData, ..*self }
    }
}

impl<T> std::fmt::Debug for TensorMut<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TensorMut { nrows, ncols, row_stride, col_stride, .. } = self;
        write!(f, "TensorMut({nrows}×{ncols}, strides ({row_stride}, {col_stride}))")
    }
}

impl<'a, T: Element> From<&'a mut Matrix<T>> for TensorMut<'a, T> {
    fn from(a: &'a mut Matrix<T>) -> Self {
        let (nrows, ncols) = (a.nrows, a.ncols);
        let (first, row_stride) = (a.data.as_mut_ptr(), ncols as isize);
        TensorMut { first, nrows, ncols, row_stride, col_stride: 1, borrowed: PhantomData }
    }
}

/// Maps a file into memory as bytes, which the system reads when they are touched.
///
/// Whatever another process writes into the file meanwhile, its elements stay values of their type, because they are
/// plain numbers. If another process cuts the file short, a touch behind the new end is SIGBUS, and not an error.
#[cfg(feature = "npy")]
pub(crate) fn map(file: &std::fs::File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only and seen only as bytes and, through them, as numbers, for which every bit pattern is
    // a value, so that a file that changes while it is mapped gives other numbers. The callers document the loss of its
    // end.
    unsafe { memmap2::Mmap::map(file) }
}

impl Slice<'_> {
    fn len(&self) -> usize {
        match self {
            Slice::F16(d) => d.len(),
            Slice::BF16(d) => d.len(),
            Slice::F32(d) => d.len(),
            Slice::F64(d) => d.len(),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Slice::F16(_) => DType::F16,
            Slice::BF16(_) => DType::BF16,
            Slice::F32(_) => DType::F32,
            Slice::F64(_) => DType::F64,
        }
    }
}

/// Refuses strides under which two indices may share an address, or one lies behind `len` elements, where the element
/// of lowest address is the first of these.
fn check_strides(op: &'static str, shape: &[usize], strides: &[isize], len: usize) -> Result<()> {
    if strides.len() != shape.len() {
        return Err(Error::shape(op, format_args!("{} strides", shape.len()), strides.len()));
    }
    let too_large = || Error::TooLarge { shape: shape.to_vec() };
    let mut axes: Vec<(usize, usize)> = (shape.iter())
        .zip(strides)
        .filter(|&(&dim, _)| dim > 1)
        .map(|(&dim, &stride)| (stride.unsigned_abs(), dim))
        .collect();
    axes.sort_unstable();
    // Each stride must step over everything that the smaller ones span. This is sufficient, and it is exact for every
    // layout that slicing, transposing and reversing can make.
    let mut span = 0usize;
    for &(stride, dim) in &axes {
        if stride <= span {
            return Err(Error::Overlap { shape: shape.to_vec(), strides: strides.to_vec() });
        }
        span = (dim - 1).checked_mul(stride).and_then(|s| span.checked_add(s)).ok_or_else(too_large)?;
    }
    if span >= len {
        return Err(Error::shape(op, format_args!("at least {} elements", span + 1), len));
    }
    Ok(())
}

/// Returns how many elements behind the element of lowest address element 0 of an axis is.
fn first_element(dim: usize, stride: isize) -> usize {
    if stride < 0 { (dim - 1) * stride.unsigned_abs() } else { 0 }
}

/// Returns the number of elements of `shape`. It refuses shapes that are empty, have a zero, or overflow.
fn element_count(shape: &[usize]) -> Result<usize> {
    if shape.is_empty() || shape.contains(&0) {
        return Err(Error::Empty { shape: shape.to_vec() });
    }
    shape
        .iter()
        .try_fold(1usize, |p, &d| p.checked_mul(d))
        .filter(|&p| p <= isize::MAX as usize / 8)
        .ok_or_else(|| Error::TooLarge { shape: shape.to_vec() })
}

/// An owned row-major `m × n` matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix<T> {
    data: Vec<T>,
    nrows: usize,
    ncols: usize,
}

impl<T: Element> Matrix<T> {
    /// Makes a matrix of zeros. Unlike a [`TensorRef`], it may be empty.
    pub fn zeros(nrows: usize, ncols: usize) -> Self {
        Matrix { data: vec![T::zeroed(); nrows * ncols], nrows, ncols }
    }

    /// Makes an `nrows × ncols` matrix of row-major `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the length is not `nrows · ncols`.
    pub fn from_vec(data: Vec<T>, nrows: usize, ncols: usize) -> Result<Self> {
        if Some(data.len()) != nrows.checked_mul(ncols) {
            return Err(Error::shape("Matrix::from_vec", format_args!("{nrows}×{ncols} elements"), data.len()));
        }
        Ok(Matrix { data, nrows, ncols })
    }

    /// Makes an `nrows × ncols` matrix whose entry `(i, j)` is `f(i, j)`.
    pub fn from_fn(nrows: usize, ncols: usize, mut f: impl FnMut(usize, usize) -> T) -> Self {
        let mut data = Vec::with_capacity(nrows * ncols);
        for i in 0..nrows {
            data.extend((0..ncols).map(|j| f(i, j)));
        }
        Matrix { data, nrows, ncols }
    }

    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// The number of columns.
    pub fn ncols(&self) -> usize {
        self.ncols
    }

    /// Returns the elements, row by row, without a copy.
    pub fn into_vec(self) -> Vec<T> {
        self.data
    }

    /// The elements, row by row.
    pub fn as_slice(&self) -> &[T] {
        &self.data
    }

    /// The elements, row by row, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// Returns row `i`.
    ///
    /// # Panics
    /// If `i >= nrows`.
    pub fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.ncols..][..self.ncols]
    }

    /// Returns the matrix as a tensor of two axes.
    ///
    /// # Errors
    /// [`Error::Empty`] if a dimension is zero.
    pub fn as_tensor(&self) -> Result<TensorRef<'_>> {
        TensorRef::new(&self.data, &[self.nrows, self.ncols])
    }
}
