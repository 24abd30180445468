//! Many matrices at once: the small ones one per thread, the large ones one after the other on all threads.
//!
//! A factorization of 256×256 takes about a millisecond on one thread, too little for its products to be worth
//! splitting: the l×l problem in the middle of it is sequential, and each split costs a few microseconds. One matrix per
//! thread has neither cost. The answers are those of single calls bit for bit, since no result depends on the number of threads.

use faer::Par;
use rayon::prelude::*;

use super::TruncatedSvd;
use crate::error::Result;
use crate::factors::Factors;
use crate::operator::Watch;
use crate::simd::Scalar;
use crate::space::Host;
use crate::tensor::TensorRef;

/// Matrices of more elements than this are factored one after the other, each on all threads.
const SMALL: usize = 1 << 19;

impl TruncatedSvd {
    /// [`factor`](Self::factor) of each matrix, in their order: the same bits as from single calls, on any number of
    /// threads. Shapes and element types may differ; what is wrong with one is its own error, and the others are factored.
    ///
    /// Small matrices (up to 2^19 elements) are factored one per thread of the current rayon pool.
    /// [`Report::elapsed`](crate::Report) is then the time on that thread.
    ///
    /// ```
    /// use tensorslim::{Rank, TensorRef, TruncatedSvd};
    ///
    /// let heads: Vec<f32> = (0..8 * 64 * 48).map(|i| (i as f32 * 0.61).sin()).collect();
    /// let heads = heads.chunks(64 * 48).map(|w| TensorRef::new(w, &[64, 48])).collect::<Result<Vec<_>, _>>()?;
    /// for factors in TruncatedSvd::new(Rank::Fixed(2)).factor_many::<f32>(&heads) {
    ///     assert!(factors?.report().relative_error < 1e-3);
    /// }
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    pub fn factor_many<T: Scalar>(&self, matrices: &[TensorRef<'_>]) -> Vec<Result<Factors<T>>> {
        let (par, watch) = (crate::current_par(), Watch::default());
        let small = |w: &TensorRef<'_>| w.shape().iter().product::<usize>() <= SMALL;
        let mut large: Vec<_> =
            (matrices.iter()).filter(|w| !small(w)).map(|w| self.factor_in(w, &watch, Host::new(par))).collect();
        large.reverse();
        let small: Vec<_> = matrices
            .par_iter()
            .with_max_len(1)
            .map(|w| small(w).then(|| self.factor_in(w, &Watch::default(), Host::new(Par::Seq))))
            .collect();
        small.into_iter().map(|done| done.unwrap_or_else(|| large.pop().expect("one result each"))).collect()
    }
}
