//! Rows in memory, as the kernels of the transforms see them.

/// Rows that a pass reads or writes: element `(row, column)` is at `ptr + row·stride + column`.
#[derive(Debug)]
pub(super) struct Rows<E> {
    pub(super) ptr: *mut E,
    pub(super) stride: isize,
}

impl<E> Clone for Rows<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Rows<E> {}

impl<E> Rows<E> {
    /// Returns the rows from row `i` on.
    ///
    /// # Safety
    /// Row `i` exists.
    #[inline(always)]
    pub(super) unsafe fn at(self, i: usize) -> Self {
        // SAFETY: guaranteed by this function's contract: row `i` exists, so its address is within the same allocation.
        Rows { ptr: unsafe { self.ptr.offset(i as isize * self.stride) }, ..self }
    }

    /// Returns the same rows from column `j` on.
    ///
    /// # Safety
    /// Column `j` exists.
    #[inline(always)]
    pub(super) unsafe fn column(self, j: usize) -> Self {
        // SAFETY: guaranteed by this function's contract: column `j` exists, so its address is within the same
        // allocation.
        Rows { ptr: unsafe { self.ptr.add(j) }, ..self }
    }

    /// Returns every `h`-th row, from the first on.
    #[inline(always)]
    pub(super) fn every(self, h: usize) -> Self {
        Rows { stride: self.stride * h as isize, ..self }
    }
}
