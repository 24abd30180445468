//! Columns of column-major matrices as slices, and the two triangles of a symmetric matrix.

use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{MatMut, MatRef};

use crate::simd::Scalar;

/// Side of the squares in which a triangle is copied: both the lines that are read and those that are written stay in the first cache.
const SQUARE: usize = 16;

/// Column j of a column-major matrix.
pub(crate) fn column<W>(a: MatRef<'_, W>, j: usize) -> &[W] {
    a.col(j).try_as_col_major().expect("a column-major matrix").as_slice()
}

/// Column j of a column-major matrix, to be written.
pub(crate) fn column_mut<W>(a: MatMut<'_, W>, j: usize) -> &mut [W] {
    a.col_mut(j).try_as_col_major_mut().expect("a column-major matrix").as_slice_mut()
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
                // On the diagonal only what is above it.
                let above = cols.min(i + r - j);
                for (x, from) in column[j..j + above].iter_mut().zip(&square) {
                    *x = from[r];
                }
            }
        }
    }
}
