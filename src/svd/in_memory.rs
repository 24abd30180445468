//! Factors a matrix in host memory.

use std::time::Instant;

use super::calibrated::Weight;
use super::finish::run;
use super::on_device;
use super::options::{Device, Options};
use super::plan::Plan;
use super::task::{Residency, Task};
use super::weighted;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::operator::{Dense, Root, Watch, first_not_finite};
use crate::simd::Scalar;
use crate::space::Host;
use crate::tensor::{MatView, TensorRef};

/// Factors `w` from inside of the thread pool of `space`.
pub(super) fn factor_in_pool<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    watch: &Watch<'_>,
    space: Host,
) -> Result<Factors<T>> {
    // A call from outside of the pool would have to wake its threads for every parallel step (`benches/NOTES.md`).
    let par = space.par();
    crate::parallel::in_pool(par, || factor(options, w, watch, space))
}

/// Makes the operator of a matrix, or of its transpose if it is wide.
pub(super) fn tall<T: Scalar>(view: MatView<'_>, space: Host) -> Result<Dense<'_, T>> {
    let wide = view.nrows() < view.ncols();
    Dense::<T>::within(if wide { view.transpose() } else { view }, space).map_err(|error| match error {
        // The position is in the caller's rows and columns, not in those of the transpose.
        Error::NotFinite { .. } if wide => first_not_finite(view),
        error => error,
    })
}

/// Factors `w` on the device of the options, with the memory and threads of `space`.
pub(super) fn factor<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    watch: &Watch<'_>,
    space: Host,
) -> Result<Factors<T>> {
    let start = Instant::now();
    let view = w.view()?;
    if let Device::Cuda(ordinal) = options.device {
        return on_device::factor(options, w, ordinal, watch, start);
    }
    let task = Task::new::<T>(options, (view.nrows(), view.ncols()), view.dtype(), Residency::InMemory)?;
    let plan = Plan::new(task)?;
    let par = space.par();
    let mut op = tall::<T>(view, space.clone())?.watched(watch.clone());
    if options.is_weighted() {
        let root = |l| Ok(Root::boxed(l, &space));
        return weighted::factor(options, &mut op, &root, Weight::Whole(view), par, start);
    }
    run(&mut op, plan, par, start)
}
