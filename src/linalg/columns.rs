//! Helpers for dense matrices: columns as slices, changes of the order of elements, and the two triangles of a
//! symmetric matrix.

use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{MatMut, MatRef};

use crate::simd::Scalar;

/// Returns column j of a column-major matrix as a slice.
pub(crate) fn column<W>(a: MatRef<'_, W>, j: usize) -> &[W] {
    a.col(j).try_as_col_major().expect("a column-major matrix").as_slice()
}

/// Returns column j of a column-major matrix as a mutable slice.
pub(crate) fn column_mut<W>(a: MatMut<'_, W>, j: usize) -> &mut [W] {
    a.col_mut(j).try_as_col_major_mut().expect("a column-major matrix").as_slice_mut()
}

/// Tells whether the elements of a row are closer to each other than those of a column.
pub(crate) fn is_by_rows<E>(a: MatRef<'_, E>) -> bool {
    a.col_stride().unsigned_abs() <= a.row_stride().unsigned_abs()
}

/// The side of the squares in which elements change their order. With it, both the lines that are read and those that
/// are written stay in L1.
const SQUARE: usize = 16;

/// Writes a column-major `y` from its elements by rows.
pub(crate) fn transpose<T: Scalar>(by_rows: &[T], mut y: MatMut<'_, T>) {
    let (m, l) = y.shape();
    for i in (0..m).step_by(SQUARE) {
        let rows = SQUARE.min(m - i);
        for j in 0..l {
            let column = y.rb_mut().col_mut(j).try_as_col_major_mut().expect("unit row stride").as_slice_mut();
            for (r, y) in column[i..i + rows].iter_mut().enumerate() {
                *y = by_rows[(i + r) * l + j];
            }
        }
    }
}

/// Copies the lower triangle to the upper one, square by square.
pub(crate) fn mirror<T: Scalar>(mut g: MatMut<'_, T>) {
    let n = g.ncols();
    let mut square = [[T::zeroed(); SQUARE]; SQUARE];
    for j in (0..n).step_by(SQUARE) {
        let cols = SQUARE.min(n - j);
        for i in (j..n).step_by(SQUARE) {
            let rows = SQUARE.min(n - i);
            for (c, x) in square[..cols].iter_mut().enumerate() {
                x[..rows].copy_from_slice(&column(g.rb(), j + c)[i..i + rows]);
            }
            for r in 0..rows {
                let column = column_mut(g.rb_mut(), i + r);
                // On the diagonal, only the elements above it are written.
                let above = cols.min(i + r - j);
                for (x, from) in column[j..j + above].iter_mut().zip(&square) {
                    *x = from[r];
                }
            }
        }
    }
}
