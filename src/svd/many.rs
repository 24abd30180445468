//! Factors many matrices at once: small ones one per thread, large ones one after the other on all threads.
//!
//! A factorization of 256×256 is too little work for its products to be worth splitting: the l×l problem in the middle
//! of it is sequential, and each split costs a few microseconds. One matrix per thread has neither cost. The answers
//! are those of single calls bit for bit, because no result depends on the number of threads.

use faer::Par;

use super::in_memory::factor;
use super::options::Options;
use crate::error::Result;
use crate::factors::Factors;
use crate::operator::Watch;
use crate::parallel::{self, Threads};
use crate::simd::Scalar;
use crate::space::Host;
use crate::tensor::TensorRef;

/// The most elements of a small matrix. Larger ones are factored one after the other, each on all threads.
const SMALL: usize = 1 << 19;

/// Factors each of `matrices`, in their order.
pub(super) fn factor_many<T: Scalar>(options: &Options, matrices: &[TensorRef<'_>]) -> Vec<Result<Factors<T>>> {
    let (par, watch) = (parallel::current_par(), Watch::default());
    let small = |w: &TensorRef<'_>| w.shape().iter().product::<usize>() <= SMALL;
    let mut large: Vec<_> =
        (matrices.iter()).filter(|w| !small(w)).map(|w| factor(options, w, &watch, Host::new(par))).collect();
    large.reverse();
    let small = parallel::map(Threads::Pool, matrices.len(), |i| {
        let w = &matrices[i];
        small(w).then(|| factor(options, w, &Watch::default(), Host::new(Par::Seq)))
    });
    small.into_iter().map(|done| done.unwrap_or_else(|| large.pop().expect("one result each"))).collect()
}
