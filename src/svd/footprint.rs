//! The sizes that memory depends on, and the parts of memory that all methods have in common.
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

/// The scratch of the sketch of a small matrix on two threads. It is freed before what is alive later, which exceeds it
/// where that is sixteen times as much.
const SKETCH_BYTES: usize = 40 << 10;

/// The sizes that memory depends on.
pub(super) struct Footprint {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) width: usize,
    pub(super) rank: usize,
    pub(super) power_iterations: usize,
    /// Whether the power iterations have a second left panel.
    pub(super) shifted: bool,
    /// Whether the matrix lies by rows once it stands tall.
    by_rows: bool,
    /// Whether the spectrum decides the rank.
    pub(super) searched: bool,
    /// The element type that is converted on the way in; `None` if that is counted elsewhere.
    pub(super) storage: Option<DType>,
}

impl Footprint {
    /// Makes the footprint of `task` with panels of `width` columns and factors of `rank`.
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

    /// Returns the bytes of U, s and Vᵀ.
    pub(super) fn factors<T: Scalar>(&self) -> usize {
        (self.m + self.n) * self.rank * size_of::<T>()
    }

    /// Returns the bytes of bringing the factors home, beside the panel of the long side: the panel of the short one,
    /// or the long factor.
    pub(super) fn home<T: Scalar>(&self, right: usize) -> usize {
        self.n * self.rank * size_of::<T>() + right.max(self.m * self.rank * size_of::<T>())
    }

    /// Returns the bytes of an image of `l` columns, which lies as the matrix does.
    pub(super) fn image<T: Scalar>(&self, l: usize) -> usize {
        if self.by_rows { HostPanel::<T>::bytes_by_rows(self.m, l) } else { HostPanel::<T>::bytes(self.m, l) }
    }

    /// Returns the bytes of a conversion buffer, or of the scratch of an image, or those that a product takes beside
    /// tiles that bring their own.
    pub(super) fn tile<T: Scalar>(&self, pass: Pass) -> usize {
        match (self.storage, pass) {
            (Some(storage), Pass::Product(l)) => {
                // An image is written across the lines of a matrix by rows.
                self.converted::<T>(storage, l).max(if self.by_rows { 0 } else { self.direct::<T>(l) })
            }
            (Some(storage), pass) => Dense::<T>::tile_bytes(pass, (self.m, self.n), storage),
            (None, Pass::Product(l)) => Dense::<T>::product_bytes(self.m, l),
            (None, _) => 0,
        }
    }

    /// Returns the bytes of the conversion buffer of a product with `l` columns.
    fn converted<T: Scalar>(&self, storage: DType, l: usize) -> usize {
        Dense::<T>::tile_bytes(Pass::Product(l), (self.m, self.n), storage)
    }

    /// Returns the bytes of a product with `l` columns along the lines of a matrix that is not converted.
    fn direct<T: Scalar>(&self, l: usize) -> usize {
        let rows = if self.by_rows { self.n } else { self.m };
        self.storage.map_or(0, |storage| Dense::<T>::direct_bytes((self.m, self.n), rows, storage, l))
    }

    /// Returns the bytes of products with panels of `l` columns between orthonormalizations. A conversion buffer takes
    /// the place of their scratch, while other memory of a product is beside it.
    pub(super) fn pass<T: Scalar>(&self, scratch: usize, l: usize) -> usize {
        // The product writes across the lines of the matrix.
        let product = Dense::<T>::product_bytes(if self.by_rows { self.m } else { self.n }, l);
        let tile = match self.storage {
            Some(storage) => self.converted::<T>(storage, l),
            None => self.tile::<T>(Pass::Product(l)),
        };
        let direct = self.storage.is_none_or(|storage| storage == T::DTYPE);
        let across = scratch.max(tile + product) + if direct { product.min(scratch) } else { 0 };
        across.max(self.direct::<T>(l))
    }

    /// Returns the peak of a method that needs `solve` until its factors are home, and certifies them by probes. Where
    /// `small_sketches` may take more than is counted they are counted, too.
    pub(super) fn certified<T: Scalar>(&self, solve: usize, small_sketches: bool) -> usize {
        let small = |rows: usize, cols: usize| rows * cols * size_of::<T>();
        // The residual and the probes come after the panels are gone.
        let probes = HostPanel::<T>::bytes(self.m, PROBES) + small(self.n + self.rank, PROBES);
        let counted = solve.max(self.factors::<T>() + probes);
        let sketches = if small_sketches { SKETCH_BYTES.saturating_sub(counted / 16) } else { 0 };
        counted + rest(counted) + sketches
    }
}

/// Returns a bound for what is not counted, for this many counted bytes: columns padded to cache lines, the report, and
/// what sketches take of small matrices where no later moment is fuller (`tests/memory.rs`).
pub(super) fn rest(counted: usize) -> usize {
    counted / 256 + (16 << 10)
}
