//! The front door for devices: opens one, loads the matrix or borrows it, and runs the same methods there.
//!
//! ```text
//!   one matrix on the host           copy in | factor | U, Vᵀ home
//!   one matrix on the device         borrow  | factor | U, Vᵀ stay        what comes home: l × l matrices, k values
//!   many matrices, loader thread     gather 1 | copy 1 | gather 2 | copy 2 | ...     pinned buffers, transfer stream
//!                  this thread                 factor 1            | factor 2 | ...   compute stream
//! ```

#[cfg(feature = "cuda")]
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::mpsc::sync_channel;
use std::time::Instant;

#[cfg(feature = "cuda")]
use faer::Par;

#[cfg(feature = "cuda")]
use super::calibrated::Weight;
#[cfg(feature = "cuda")]
use super::finish::{self, InSpace};
#[cfg(feature = "cuda")]
use super::methods::randomized;
#[cfg(feature = "cuda")]
use super::options;
use super::options::Options;
#[cfg(feature = "cuda")]
use super::plan::Plan;
#[cfg(feature = "cuda")]
use super::rank_target::RankTarget;
#[cfg(feature = "cuda")]
use super::solution::Solution;
#[cfg(feature = "cuda")]
use super::task::{Residency, Task};
#[cfg(feature = "cuda")]
use super::weighted;
#[cfg(feature = "cuda")]
use crate::cuda::{self, Device, DeviceFactors, DeviceMatrix, DeviceTensor};
#[cfg(not(feature = "cuda"))]
use crate::error::DeviceFault;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::operator::Watch;
#[cfg(feature = "cuda")]
use crate::operator::{LinearOperator as _, first_not_finite};
#[cfg(feature = "cuda")]
use crate::report::Method;
use crate::simd::Scalar;
use crate::tensor::TensorRef;

/// Refuses to factor `w` on a CUDA device, because this build has none.
#[cfg(not(feature = "cuda"))]
pub(super) fn factor<T: Scalar>(
    _: &Options,
    _: &TensorRef<'_>,
    ordinal: usize,
    _: &Watch<'_>,
    _: Instant,
) -> Result<Factors<T>> {
    let detail = format_args!("device {ordinal}: this build has no support for CUDA");
    Err(Error::device(DeviceFault::NotBuilt, detail))
}

/// Factors `w` on the CUDA device of this number; `start` is when that began.
#[cfg(feature = "cuda")]
pub(super) fn factor<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    ordinal: usize,
    watch: &Watch<'_>,
    start: Instant,
) -> Result<Factors<T>> {
    let device = Device::shared(ordinal)?;
    let view = w.view()?;
    let tall = if view.nrows() < view.ncols() { view.transpose() } else { view };
    // A plan that is refused is refused before anything is copied.
    plan::<T>(options, w)?;
    let loaded = DeviceMatrix::new(&device, tall).map(|op| op.watched(watch.clone()));
    factor_loaded(options, w, loaded, start)
}

#[cfg(feature = "cuda")]
fn plan<T: Scalar>(options: &Options, w: &TensorRef<'_>) -> Result<Plan> {
    let view = w.view()?;
    Plan::new(Task::new::<T>(options, (view.nrows(), view.ncols()), view.dtype(), Residency::InMemory)?)
}

/// Factors `w`, which is on a device (its transpose, if it is wide) or failed to get there.
#[cfg(feature = "cuda")]
fn factor_loaded<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    loaded: Result<DeviceMatrix<'_, T>>,
    start: Instant,
) -> Result<Factors<T>> {
    let view = w.view()?;
    let plan = plan::<T>(options, w)?;
    let mut op = loaded.map_err(|error| match error {
        // The position is in the caller's rows and columns, not in those of the transpose.
        Error::NotFinite { .. } => first_not_finite(view),
        error => error,
    })?;
    let par = crate::parallel::current_par();
    if options.is_weighted() {
        return factor_weighted(options, &mut op, Weight::Whole(view), start);
    }
    let (solution, target) = solve(options, &plan, &mut op, par)?;
    finish::finish(&mut op, plan, solution, Some(&target), par, start)
}

/// Solves the task of a plan, at less precision where that costs no accuracy.
#[cfg(feature = "cuda")]
fn solve<T: Scalar>(
    options: &Options,
    plan: &Plan,
    op: &mut DeviceMatrix<'_, T>,
    par: Par,
) -> Result<(Solution<T, Arc<Device>>, RankTarget)> {
    let facts = op.facts();
    let target = plan.target(facts.norm_squared, facts.scale);
    let may_be_coarse = plan.method == Method::Randomized && plan.rank.is_some() && !options.precise;
    let coarse = if may_be_coarse { op.coarse()? } else { None };
    let solution = match coarse {
        Some((mut coarse, is_rounded)) => {
            let solution = randomized::solve_coarsely(&plan.task, op, (&mut coarse, is_rounded), &target, par)?;
            op.count_passes_of(&coarse);
            solution
        }
        None => plan.solve(op, &target, par)?,
    };
    Ok((solution, target))
}

/// Returns the options for a factorization on this device, whose rates are not those of the CPU.
#[cfg(feature = "cuda")]
fn on(device: &Device, options: &Options) -> Options {
    Options { device: options::Device::Cuda(device.ordinal()), ..options.clone() }
}

#[cfg(feature = "cuda")]
fn factor_weighted<T: Scalar>(
    options: &Options,
    op: &mut DeviceMatrix<'_, T>,
    weight: Weight<'_>,
    start: Instant,
) -> Result<Factors<T>> {
    let device = op.device().clone();
    let root = |l| DeviceMatrix::boxed_root(&device, l);
    weighted::factor(options, op, &root, weight, crate::parallel::current_par(), start)
}

/// Factors `w` where it is, and leaves the factors there.
#[cfg(feature = "cuda")]
pub(super) fn factor_device<T: Scalar>(options: &Options, w: &DeviceTensor<'_>) -> Result<DeviceFactors<T>> {
    let start = Instant::now();
    let (device, (m, n)) = (w.device(), w.shape());
    let options = &on(device, options);
    let plan = Plan::new(Task::new::<T>(options, (m, n), w.dtype(), Residency::InMemory)?)?;
    // What the caller has enqueued comes first, and what it enqueues afterwards comes behind all of this.
    let _turn = w.turn()?;
    let mut op = DeviceMatrix::borrowed(w)?;
    if options.is_weighted() {
        let factors = factor_weighted(options, &mut op, Weight::Tiles((m, n), w.dtype()), start)?;
        return DeviceFactors::upload(device, factors, w.stream());
    }
    let par = crate::parallel::current_par();
    let (solution, target) = solve(options, &plan, &mut op, par)?;
    let InSpace { u, s, v, report, slices } =
        finish::finish_in_space(&mut op, plan, solution, &target, |u, v| cuda::fix_signs(u, v), start)?;
    Ok(DeviceFactors::new((u, s, v), report, slices, w.stream()))
}

/// Factors each of `tensors` on `device`, in order; a failure concerns its own matrix alone. Two of them are on the
/// device at a time.
#[cfg(feature = "cuda")]
pub(super) fn factor_many<T: Scalar>(
    options: &Options,
    device: &Arc<Device>,
    tensors: &[TensorRef<'_>],
) -> Vec<Result<Factors<T>>> {
    let options = &on(device, options);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(0);
        scope.spawn(move || {
            for tensor in tensors {
                let loaded = tensor.view().and_then(|view| {
                    let tall = if view.nrows() < view.ncols() { view.transpose() } else { view };
                    DeviceMatrix::<T>::new(device, tall)
                });
                if send.send(loaded).is_err() {
                    return;
                }
            }
        });
        let mut loaded = receive.into_iter();
        let next = |tensor| {
            let start = Instant::now(); // what it has to wait for is its time
            Some(factor_loaded(options, tensor, loaded.next()?, start))
        };
        tensors.iter().map_while(next).collect()
    })
}
