//! The sizes that memory depends on, and what all methods have in common of it.
//!
//! A method's `peak` is what is alive at its fullest moment, counted by the functions that size the buffers. It holds
//! whatever the values are: every way out that only they can decide (QR of an image, the Gram route's image and its
//! fallback, a conversion buffer for values out of range) is made to take about the memory of the usual way, so that
//! the promise is near what most matrices need, too.

use super::certificate::PROBES;
use super::task::{Residency, Task};
use crate::operator::{Dense, Pass};
use crate::simd::Scalar;
use crate::space::HostPanel;
use crate::tensor::DType;

/// Scratch of the sketch of a small matrix on two threads. It goes before what is alive later, which exceeds it where
/// that is sixteen times as much.
const SKETCH_BYTES: usize = 40 << 10;

/// The sizes that memory depends on.
pub(super) struct Footprint {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) width: usize,
    pub(super) rank: usize,
    pub(super) power_iterations: usize,
    /// The power iterations have a second left panel.
    pub(super) shifted: bool,
    /// The matrix lies by rows once it stands tall.
    by_rows: bool,
    /// The spectrum decides the rank.
    pub(super) searched: bool,
    /// What is converted on the way in; none if that is counted elsewhere.
    pub(super) storage: Option<DType>,
}

impl Footprint {
    /// Of `task` with panels of `width` columns and factors of `rank`.
    pub(super) fn new(task: &Task, width: usize, rank: usize) -> Self {
        let (m, n) = task.tall();
        Footprint {
            m,
            n,
            width,
            rank,
            power_iterations: task.power_iterations,
            shifted: task.is_shifted(),
            by_rows: task.shape.0 >= task.shape.1,
            searched: task.rank.is_none(),
            storage: (task.residency == Residency::InMemory).then_some(task.dtype),
        }
    }

    /// Bytes of U, s and Vᵀ.
    pub(super) fn factors<T: Scalar>(&self) -> usize {
        (self.m + self.n) * self.rank * size_of::<T>()
    }

    /// Bytes of bringing the factors home, beside the panel of the long side: the panel of the short one, or the long
    /// factor.
    pub(super) fn home<T: Scalar>(&self, right: usize) -> usize {
        self.n * self.rank * size_of::<T>() + right.max(self.m * self.rank * size_of::<T>())
    }

    /// Bytes of an image of `l` columns, which lies as the matrix does.
    pub(super) fn image<T: Scalar>(&self, l: usize) -> usize {
        if self.by_rows { HostPanel::<T>::bytes_by_rows(self.m, l) } else { HostPanel::<T>::bytes(self.m, l) }
    }

    /// Bytes of a conversion buffer; of what a product takes beside tiles that bring their own.
    pub(super) fn tile<T: Scalar>(&self, pass: Pass) -> usize {
        match (self.storage, pass) {
            (Some(storage), pass) => Dense::<T>::tile_bytes(pass, (self.m, self.n), storage),
            (None, Pass::Product(l)) => Dense::<T>::product_bytes(self.m, l),
            (None, _) => 0,
        }
    }

    /// Products with panels of `l` columns between orthonormalizations: a conversion buffer takes the place of their
    /// scratch, while other memory that a product takes is beside it.
    pub(super) fn pass<T: Scalar>(&self, scratch: usize, l: usize) -> usize {
        // What is written across the lines of the matrix.
        let product = Dense::<T>::product_bytes(if self.by_rows { self.m } else { self.n }, l);
        let tile = self.tile::<T>(Pass::Product(l));
        let direct = self.storage.is_none_or(|storage| storage == T::DTYPE);
        scratch.max(tile + product) + if direct { product.min(scratch) } else { 0 }
    }

    /// The peak of a method that needs `solve` until its factors are home, and certifies them by probes. Where
    /// `small_sketches` may take more than is counted they are counted, too.
    pub(super) fn certified<T: Scalar>(&self, solve: usize, small_sketches: bool) -> usize {
        let small = |rows: usize, cols: usize| rows * cols * size_of::<T>();
        // After the panels are gone: the residual, the probes.
        let probes = HostPanel::<T>::bytes(self.m, PROBES) + small(self.n + self.rank, PROBES);
        let counted = solve.max(self.factors::<T>() + probes);
        let sketches = if small_sketches { SKETCH_BYTES.saturating_sub(counted / 16) } else { 0 };
        counted + rest(counted) + sketches
    }
}

/// Columns padded to cache lines, the report, and what sketches take of small matrices, where no later moment is
/// fuller: at most this for so many counted bytes (`tests/memory.rs`).
pub(super) fn rest(counted: usize) -> usize {
    counted / 256 + (16 << 10)
}
