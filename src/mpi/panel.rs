//! Panels on ranks: whole on each of them, or the rows of each rank's blocks.
//!
//! Which of the two a panel is follows from what was written to it and not from its shape, so that a square matrix is
//! no special case: a product with the rows of A gives rows, a sum over rows is whole everywhere. Each block of rows is
//! a panel in memory of its own. Its kernels then see the same lengths and strides on any number of ranks.

use crate::simd::Scalar;
use crate::space::{Host, HostPanel, Layout};

/// A panel of `nrows × ncols` that all ranks share.
pub(crate) struct RankPanel<T> {
    pub(super) nrows: usize,
    pub(super) ncols: usize,
    pub(super) layout: Layout,
    pub(super) data: Data<T>,
}

/// The place of the elements.
pub(super) enum Data<T> {
    /// Nothing was written yet: zeros, which take no memory.
    Zeros,
    /// All rows, the same on each rank.
    Whole(HostPanel<T>),
    /// The blocks of rows that this rank owns.
    Rows(Vec<HostPanel<T>>),
}

impl<T: Scalar> RankPanel<T> {
    /// Tells whether each rank has rows of its own.
    pub(super) fn is_rows(&self) -> bool {
        matches!(self.data, Data::Rows(_))
    }
}

/// Makes a panel of zeros on the host.
pub(super) fn host_panel<T: Scalar>(nrows: usize, ncols: usize, layout: Layout, host: &Host) -> HostPanel<T> {
    match layout {
        Layout::Columns => HostPanel::zeros(nrows, ncols, host),
        Layout::Rows => HostPanel::by_rows(nrows, ncols, host),
    }
}
