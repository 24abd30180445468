//! A view's element type made concrete: generic code that finds `E` and `T` to be the same type can use the view as is.

use std::any::TypeId;

use faer::MatRef;

use crate::tensor::Element;

/// `a` itself as a matrix of `T`, if `E` is `T`.
pub(crate) fn same_type<'a, E: Element, T: Element>(a: MatRef<'a, E>) -> Option<MatRef<'a, T>> {
    (TypeId::of::<E>() == TypeId::of::<T>()).then(|| {
        // SAFETY: `E` and `T` are one type; pointer, shape, strides and lifetime are those of `a`.
        unsafe { MatRef::from_raw_parts(a.as_ptr().cast(), a.nrows(), a.ncols(), a.row_stride(), a.col_stride()) }
    })
}
