//! Tensors in: element types, borrowed strided tensors of any of them, and the owned row-major matrix.
//!
//! A [`TensorRef`] is a slice, a shape and strides; it owns nothing and copies nothing. The axes of an n-d tensor
//! are grouped into the two of a matrix by [`TensorRef::matricize`], which succeeds exactly when that needs no
//! copy:
//!
//! ```text
//!   conv weight [out, in, kh, kw], strides [in·kh·kw, kh·kw, kw, 1]
//!      matricize(1)  ->  m = out, n = in·kh·kw, strides [in·kh·kw, 1]
//! ```
//!
//! Everything below this file works on [`MatView`]: a `faer::MatRef` of one of the four element types.

use bytemuck::Pod;
use faer::{Mat, MatMut, MatRef};
use half::{bf16, f16};

use crate::error::{Error, Result};

/// The element types that tensors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::BF16 => 2,
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }

    /// `"f16"`, `"bf16"`, `"f32"` or `"f64"`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

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

/// A type that a tensor can be stored in: `f16`, `bf16`, `f32`, `f64`. Sealed.
pub trait Element: sealed::Sealed + Pod + Send + Sync + std::fmt::Debug + 'static {
    /// Its tag.
    const DTYPE: DType;
    /// Its value, exactly.
    fn to_f64(self) -> f64;
    /// The nearest value of this type, ties to even; out of range becomes an infinity.
    fn from_f64(x: f64) -> Self;
    /// A view of a matrix of this type.
    fn view(a: MatRef<'_, Self>) -> MatView<'_>;
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
            fn view(a: MatRef<'_, Self>) -> MatView<'_> { MatView::$v(a) }
            fn slice(a: &[Self]) -> Slice<'_> { Slice::$v(a) }
        }
    )*};
}
element!(f16 F16 bf16 BF16 f32 F32 f64 F64);

mod round_from_f64 {
    pub(super) fn f16(x: f64) -> half::f16 {
        half::f16::from_f64(x)
    }
    pub(super) fn bf16(x: f64) -> half::bf16 {
        half::bf16::from_f64(x)
    }
    pub(super) fn f32(x: f64) -> f32 {
        x as f32
    }
    pub(super) fn f64(x: f64) -> f64 {
        x
    }
}

#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub enum Slice<'a> {
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    F32(&'a [f32]),
    F64(&'a [f64]),
}

/// Runs `$body` with `$a` bound to the `MatRef` inside a [`MatView`], once per element type.
macro_rules! with_view {
    ($view:expr, $a:ident => $body:expr) => {
        match $view {
            $crate::tensor::MatView::F16($a) => $body,
            $crate::tensor::MatView::BF16($a) => $body,
            $crate::tensor::MatView::F32($a) => $body,
            $crate::tensor::MatView::F64($a) => $body,
        }
    };
}
pub(crate) use with_view;

/// A strided `m × n` matrix of any element type.
#[derive(Debug, Clone, Copy)]
pub enum MatView<'a> {
    /// Binary16.
    F16(MatRef<'a, f16>),
    /// Bfloat16.
    BF16(MatRef<'a, bf16>),
    /// Binary32.
    F32(MatRef<'a, f32>),
    /// Binary64.
    F64(MatRef<'a, f64>),
}

impl<'a> MatView<'a> {
    /// Rows, `m`.
    pub fn nrows(&self) -> usize {
        with_view!(self, a => a.nrows())
    }

    /// Columns, `n`.
    pub fn ncols(&self) -> usize {
        with_view!(self, a => a.ncols())
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            MatView::F16(_) => DType::F16,
            MatView::BF16(_) => DType::BF16,
            MatView::F32(_) => DType::F32,
            MatView::F64(_) => DType::F64,
        }
    }

    /// The view as a matrix of `E`, if that is what it stores.
    pub fn typed<E: Element>(self) -> Option<MatRef<'a, E>> {
        if self.dtype() != E::DTYPE {
            return None;
        }
        with_view!(self, a => {
            let (m, n, rs, cs) = (a.nrows(), a.ncols(), a.row_stride(), a.col_stride());
            // SAFETY: `E` is the element type of `a`, by the test above (`DTYPE` is one to one over the sealed
            // types); pointer, shape, strides and lifetime are those of `a`.
            Some(unsafe { MatRef::from_raw_parts(a.as_ptr().cast::<E>(), m, n, rs, cs) })
        })
    }

    /// The same elements as an `n × m` matrix.
    pub fn transpose(self) -> MatView<'a> {
        with_view!(self, a => Element::view(a.transpose()))
    }

    /// Rows `first..first + count`.
    pub fn subrows(self, first: usize, count: usize) -> MatView<'a> {
        with_view!(self, a => Element::view(a.subrows(first, count)))
    }
}

/// A mutable matrix of one of the two arithmetic types, known by name. Where generic code ends in one of these, the
/// kernels behind it are compiled once, here, and not in every crate that calls them.
pub(crate) enum ArithmeticMut<'a> {
    F32(MatMut<'a, f32>),
    F64(MatMut<'a, f64>),
}

/// `y` by the name of its element type.
///
/// # Panics
/// If that is f16 or bf16, in which no arithmetic is done.
pub(crate) fn arithmetic_mut<T: Element>(y: MatMut<'_, T>) -> ArithmeticMut<'_> {
    let (m, n, rs, cs, at) = (y.nrows(), y.ncols(), y.row_stride(), y.col_stride(), y.as_ptr_mut());
    match T::DTYPE {
        // SAFETY: `T` is f32 (`DTYPE` is one to one over the sealed types); pointer, shape, strides and lifetime are
        // those of `y`, which is consumed.
        DType::F32 => ArithmeticMut::F32(unsafe { MatMut::from_raw_parts_mut(at.cast(), m, n, rs, cs) }),
        // SAFETY: `T` is f64, and as above.
        DType::F64 => ArithmeticMut::F64(unsafe { MatMut::from_raw_parts_mut(at.cast(), m, n, rs, cs) }),
        DType::F16 | DType::BF16 => unreachable!("arithmetic is in f32 or f64"),
    }
}

/// A borrowed tensor: any of the four element types, any number of axes, any strides that do not overlap.
#[derive(Debug, Clone)]
pub struct TensorRef<'a> {
    data: Slice<'a>,
    shape: Vec<usize>,
    strides: Vec<isize>,
}

impl<'a> TensorRef<'a> {
    /// A contiguous row-major tensor over all of `data`.
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

    /// A tensor over part of `data` with the given strides (in elements). The element of lowest address is
    /// `data[0]`, so an axis of negative stride runs from the end of its extent backwards.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::Overlap`] if two indices may share an address, [`Error::Shape`] if `data`
    /// is too short.
    pub fn strided<E: Element>(data: &'a [E], shape: &[usize], strides: &[isize]) -> Result<Self> {
        element_count(shape)?;
        TensorRef { data: E::slice(data), shape: shape.to_vec(), strides: Vec::new() }.with_strides(strides)
    }

    /// A contiguous row-major tensor over raw native-endian bytes.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::Misaligned`] if the first byte is not aligned for `dtype`.
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
        match dtype {
            DType::F16 => cast::<f16>(shape, bytes),
            DType::BF16 => cast::<bf16>(shape, bytes),
            DType::F32 => cast::<f32>(shape, bytes),
            DType::F64 => cast::<f64>(shape, bytes),
        }
    }

    /// The same data and shape with other strides (in elements): Fortran order, padded rows, reversed axes. The
    /// element of lowest address stays `data[0]`.
    ///
    /// # Errors
    /// [`Error::Overlap`] if two indices may share an address, [`Error::Shape`] if the data is too short or the
    /// number of strides is not the number of axes.
    pub fn with_strides(mut self, strides: &[isize]) -> Result<Self> {
        let op = "TensorRef::with_strides";
        if strides.len() != self.shape.len() {
            return Err(Error::shape(op, format_args!("{} strides", self.shape.len()), strides.len()));
        }
        let too_large = || Error::TooLarge { shape: self.shape.clone() };
        let mut axes: Vec<(usize, usize)> = (self.shape.iter())
            .zip(strides)
            .filter(|&(&dim, _)| dim > 1)
            .map(|(&dim, &stride)| (stride.unsigned_abs(), dim))
            .collect();
        axes.sort_unstable();
        // Each stride must step over everything the smaller ones span. Sufficient, and exact for every layout
        // that slicing, transposing and reversing can make.
        let mut span = 0usize;
        for &(stride, dim) in &axes {
            if stride <= span {
                return Err(Error::Overlap { shape: self.shape.clone(), strides: strides.to_vec() });
            }
            span = (dim - 1).checked_mul(stride).and_then(|s| span.checked_add(s)).ok_or_else(too_large)?;
        }
        if span >= self.data.len() {
            return Err(Error::shape(op, format_args!("at least {} elements", span + 1), self.data.len()));
        }
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

    /// Groups the first `row_axes` axes into rows and the others into columns: a conv weight
    /// `[out, in, kh, kw]` becomes `out × (in·kh·kw)` by `matricize(1)`.
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

    /// The tensor as a matrix view.
    ///
    /// # Errors
    /// [`Error::Shape`] unless it has two axes (see [`matricize`](Self::matricize)).
    pub fn view(&self) -> Result<MatView<'a>> {
        let (&[m, n], &[rs, cs]) = (&self.shape[..], &self.strides[..]) else {
            return Err(Error::shape(
                "matrix view",
                "a tensor of 2 axes (group them with matricize)",
                format_args!("shape {:?}", self.shape),
            ));
        };
        fn view<E: Element>(data: &[E], m: usize, n: usize, rs: isize, cs: isize) -> MatView<'_> {
            let back = |dim: usize, stride: isize| if stride < 0 { (dim - 1) * stride.unsigned_abs() } else { 0 };
            let first = &data[back(m, rs) + back(n, cs)..];
            // SAFETY: `with_strides` and `new` proved that every index lands inside `data` when the element of
            // lowest address is `data[0]`; `first` is the element of index (0, 0) under that rule.
            E::view(unsafe { MatRef::from_raw_parts(first.as_ptr(), m, n, rs, cs) })
        }
        Ok(match self.data {
            Slice::F16(d) => view(d, m, n, rs, cs),
            Slice::BF16(d) => view(d, m, n, rs, cs),
            Slice::F32(d) => view(d, m, n, rs, cs),
            Slice::F64(d) => view(d, m, n, rs, cs),
        })
    }
}

/// A file as bytes of memory that the system reads when they are touched.
///
/// Its elements are plain numbers: whatever another process writes into the file meanwhile, they stay values of their type. What
/// nobody can rule out is that it cuts the file short; a touch behind the new end is then SIGBUS, not an error.
#[cfg(feature = "npy")]
pub(crate) fn map(file: &std::fs::File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only and only ever seen as bytes and, through them, as numbers, for which every bit pattern is a
    // value. The caller documents what a file that is changed while it is mapped does.
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

/// The product of `shape`, refusing empty, zero and overflowing ones.
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
    /// A matrix of zeros. Unlike a [`TensorRef`], it may be empty.
    pub fn zeros(nrows: usize, ncols: usize) -> Self {
        Matrix { data: vec![T::zeroed(); nrows * ncols], nrows, ncols }
    }

    /// A matrix over row-major `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the length is not `nrows · ncols`.
    pub fn from_vec(data: Vec<T>, nrows: usize, ncols: usize) -> Result<Self> {
        if Some(data.len()) != nrows.checked_mul(ncols) {
            return Err(Error::shape("Matrix::from_vec", format_args!("{nrows}×{ncols} elements"), data.len()));
        }
        Ok(Matrix { data, nrows, ncols })
    }

    /// Entry `(i, j)` is `f(i, j)`.
    pub fn from_fn(nrows: usize, ncols: usize, mut f: impl FnMut(usize, usize) -> T) -> Self {
        let mut data = Vec::with_capacity(nrows * ncols);
        for i in 0..nrows {
            data.extend((0..ncols).map(|j| f(i, j)));
        }
        Matrix { data, nrows, ncols }
    }

    /// Rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// Columns.
    pub fn ncols(&self) -> usize {
        self.ncols
    }

    /// The elements, row by row.
    pub fn as_slice(&self) -> &[T] {
        &self.data
    }

    /// The elements, row by row.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If `i >= nrows`, as slices do.
    pub fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.ncols..][..self.ncols]
    }

    /// As a faer view.
    pub fn as_ref(&self) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&self.data, self.nrows, self.ncols)
    }

    /// As a mutable faer view.
    pub fn as_mut(&mut self) -> MatMut<'_, T> {
        MatMut::from_row_major_slice_mut(&mut self.data, self.nrows, self.ncols)
    }

    /// As a tensor of two axes.
    ///
    /// # Errors
    /// [`Error::Empty`] if a dimension is zero.
    pub fn as_tensor(&self) -> Result<TensorRef<'_>> {
        TensorRef::new(&self.data, &[self.nrows, self.ncols])
    }

    /// The elements rounded to `dtype` (nearest, ties to even), row by row, in native byte order.
    pub fn to_bytes(&self, dtype: DType) -> Vec<u8> {
        fn bytes<T: Element, E: Element>(data: &[T]) -> Vec<u8> {
            if T::DTYPE == E::DTYPE {
                return bytemuck::cast_slice(data).to_vec();
            }
            let rounded: Vec<E> = data.iter().map(|&x| E::from_f64(x.to_f64())).collect();
            bytemuck::cast_slice(&rounded).to_vec()
        }
        match dtype {
            DType::F16 => bytes::<T, f16>(&self.data),
            DType::BF16 => bytes::<T, bf16>(&self.data),
            DType::F32 => bytes::<T, f32>(&self.data),
            DType::F64 => bytes::<T, f64>(&self.data),
        }
    }
}

impl<T: Element> From<MatRef<'_, T>> for Matrix<T> {
    fn from(a: MatRef<'_, T>) -> Self {
        Matrix::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)])
    }
}

impl<T: Element> From<&Matrix<T>> for Mat<T> {
    fn from(a: &Matrix<T>) -> Self {
        Mat::from_fn(a.nrows, a.ncols, |i, j| a.data[i * a.ncols + j])
    }
}
