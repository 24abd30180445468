//! The public generic functions of this module, as fronts over two compiled instances; see
//! [`compiled`](crate::compiled).

use std::marker::PhantomData;

use super::accumulator::{self, SinglePass};
use super::basis;
use super::blend::{self, BlendChoice};
use super::distributed::{self, RankFactors};
use super::options::Options;
use super::rows::{self, Checkpoint};
use super::{in_memory, many};
use crate::calibration::Calibration;
use crate::compiled::{same, same_mut, same_ref};
use crate::error::Result;
use crate::factors::Factors;
use crate::mpi::Communicator;
use crate::operator::{RowSource, Watch};
use crate::simd::Scalar;
use crate::space::Host;
use crate::tensor::{DType, Matrix, TensorRef};

/// The instances for one arithmetic. None of these functions is generic, so that they are compiled here.
struct Instance<T>(PhantomData<T>);

macro_rules! instances {
    ($t:ty) => {
        impl Instance<$t> {
            #[inline(never)]
            fn factor(options: &Options, w: &TensorRef<'_>, watch: &Watch<'_>, context: Host) -> Result<Factors<$t>> {
                in_memory::factor_in_pool(options, w, watch, context)
            }

            #[inline(never)]
            fn factor_from(
                options: &Options,
                w: &TensorRef<'_>,
                start: &Matrix<$t>,
                space: Host,
            ) -> Result<Factors<$t>> {
                crate::parallel::in_pool(space.par(), || basis::factor(options, w, start, space.clone()))
            }

            #[inline(never)]
            fn factor_many(options: &Options, matrices: &[TensorRef<'_>]) -> Vec<Result<Factors<$t>>> {
                many::factor_many(options, matrices)
            }

            #[inline(never)]
            fn factor_rows(options: &Options, source: &mut dyn RowSource, watch: &Watch<'_>) -> Result<Factors<$t>> {
                rows::factor(options, source, watch)
            }

            #[inline(never)]
            fn factor_resumable(
                options: &Options,
                source: &mut dyn RowSource,
                watch: &Watch<'_>,
                checkpoint: &dyn Checkpoint,
            ) -> Result<Factors<$t>> {
                rows::factor_resumable(options, source, watch, checkpoint)
            }

            #[inline(never)]
            fn factor_distributed(
                options: &Options,
                comm: &dyn Communicator,
                source: &mut dyn RowSource,
                watch: &Watch<'_>,
            ) -> Result<RankFactors<$t>> {
                distributed::factor(options, comm, source, watch)
            }

            #[inline(never)]
            fn choose_blend(options: &Options, w: &TensorRef<'_>, folds: &[Calibration]) -> Result<BlendChoice> {
                blend::choose::<$t>(options, w, folds)
            }

            #[inline(never)]
            fn update(state: &mut SinglePass<$t>, first_row: usize, block: &TensorRef<'_>) -> Result<()> {
                accumulator::update(state, first_row, block)
            }

            #[inline(never)]
            fn finish(state: SinglePass<$t>) -> Result<Factors<$t>> {
                accumulator::finish(state)
            }
        }
    };
}
instances!(f32);
instances!(f64);

pub(super) fn factor<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    watch: &Watch<'_>,
    context: Host,
) -> Result<Factors<T>> {
    match T::DTYPE {
        DType::F64 => same(Instance::<f64>::factor(options, w, watch, context)),
        _ => same(Instance::<f32>::factor(options, w, watch, context)),
    }
}

pub(super) fn factor_from<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    start: &Matrix<T>,
    space: Host,
) -> Result<Factors<T>> {
    match T::DTYPE {
        DType::F64 => same(Instance::<f64>::factor_from(options, w, same_ref(start), space)),
        _ => same(Instance::<f32>::factor_from(options, w, same_ref(start), space)),
    }
}

pub(super) fn factor_many<T: Scalar>(options: &Options, matrices: &[TensorRef<'_>]) -> Vec<Result<Factors<T>>> {
    match T::DTYPE {
        DType::F64 => same(Instance::<f64>::factor_many(options, matrices)),
        _ => same(Instance::<f32>::factor_many(options, matrices)),
    }
}

pub(super) fn factor_rows<T: Scalar>(
    options: &Options,
    source: &mut dyn RowSource,
    watch: &Watch<'_>,
) -> Result<Factors<T>> {
    match T::DTYPE {
        DType::F64 => same(Instance::<f64>::factor_rows(options, source, watch)),
        _ => same(Instance::<f32>::factor_rows(options, source, watch)),
    }
}

pub(super) fn factor_resumable<T: Scalar>(
    options: &Options,
    source: &mut dyn RowSource,
    watch: &Watch<'_>,
    checkpoint: &dyn Checkpoint,
) -> Result<Factors<T>> {
    match T::DTYPE {
        DType::F64 => same(Instance::<f64>::factor_resumable(options, source, watch, checkpoint)),
        _ => same(Instance::<f32>::factor_resumable(options, source, watch, checkpoint)),
    }
}

pub(super) fn factor_distributed<T: Scalar>(
    options: &Options,
    comm: &dyn Communicator,
    source: &mut dyn RowSource,
    watch: &Watch<'_>,
) -> Result<RankFactors<T>> {
    match T::DTYPE {
        DType::F64 => same(Instance::<f64>::factor_distributed(options, comm, source, watch)),
        _ => same(Instance::<f32>::factor_distributed(options, comm, source, watch)),
    }
}

pub(super) fn choose_blend<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    folds: &[Calibration],
) -> Result<BlendChoice> {
    match T::DTYPE {
        DType::F64 => Instance::<f64>::choose_blend(options, w, folds),
        _ => Instance::<f32>::choose_blend(options, w, folds),
    }
}

impl<T: Scalar> SinglePass<T> {
    /// Adds the rows `first_row ..` of the matrix. On an error the state is as before.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) unless the block is a matrix of `n` columns whose rows lie within the
    /// matrix and were not given before; [`Error::NotFinite`](crate::Error::NotFinite) with the position in the whole
    /// matrix; [`Error::Range`](crate::Error::Range) for values near the largest of `T`.
    pub fn update(&mut self, first_row: usize, block: &TensorRef<'_>) -> Result<()> {
        match T::DTYPE {
            DType::F64 => Instance::<f64>::update(same_mut(self), first_row, block),
            _ => Instance::<f32>::update(same_mut(self), first_row, block),
        }
    }

    /// Computes the factors.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) unless every row was given; [`Error::Range`](crate::Error::Range) if all
    /// values are too small for norms in f64.
    pub fn finish(self) -> Result<Factors<T>> {
        match T::DTYPE {
            DType::F64 => same(Instance::<f64>::finish(same(self))),
            _ => same(Instance::<f32>::finish(same(self))),
        }
    }
}
