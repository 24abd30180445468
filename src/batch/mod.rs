//! Many tensors: scheduled by predicted cost, isolated from each other's failures, observed, cancelled, resumed.
//!
//! ```text
//!   items ──plan──> costs ──schedule──> alone, all threads │ side by side     load(item) ─> factor ─> sink(result)
//!                                            memory limit over all in flight       a failure ends one tensor
//! ```
//!
//! A batch takes its tensors from a callback and gives its results to another, both called from the workers:
//!
//! ```
//! use std::sync::Mutex;
//! use tensorslim::batch::{Batch, Input, Item};
//! use tensorslim::{DType, Matrix, Rank, TruncatedSvd};
//!
//! let weight = |n| Matrix::from_fn(64, n, |r, c| ((r * c) as f32).sin());
//! let weights: Vec<Matrix<f32>> = (1..=4).map(|i| weight(16 * i)).collect();
//! let svd = TruncatedSvd::new(Rank::Fixed(4));
//! let items: Vec<Item> = (weights.iter().enumerate())
//!     .map(|(i, w)| Item::new(format!("layer.{i}"), (w.nrows(), w.ncols()), DType::F32, svd.clone()))
//!     .collect();
//! let ranks = Mutex::new(vec![0; items.len()]);
//! let summary = Batch::new().factor::<f32>(
//!     &items,
//!     |index, _, with| with(Input::Tensor(weights[index].as_tensor()?)),
//!     |finished| {
//!         ranks.lock().unwrap()[finished.index] = finished.result.map(|f| f.rank())?;
//!         Ok(())
//!     },
//! );
//! assert_eq!((summary.done(), summary.failed()), (4, 0));
//! assert_eq!(*ranks.lock().unwrap(), [4; 4]);
//! ```
//!
//! Each worker keeps the memory of a factorization for its next one, unless there is a limit. Pages that go back to the
//! system are mapped again for every small tensor, and threads wait for each other in the kernel for that.
//!
//! The bits of a result depend neither on the schedule nor on the threads. The memory limit decides whether a tensor is
//! read whole or in tiles, which changes the result by rounding.
//!
//! [`schedule`] has the order and the division into shards, [`progress`] the estimate of the time that is left. With
//! the feature `cli`, `config` and `manifest` are the files around a batch: patterns in TOML, and the record of what is
//! done.

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod config;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod manifest;
pub mod progress;
#[doc(hidden)]
pub mod schedule;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use progress::{Observer, Progress, Stage};

use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::operator::{Cancel, RowSource, Watch};
use crate::parallel::{self, lock};
use crate::simd::Scalar;
use crate::space::Workspace;
use crate::svd::{Checkpoint, TruncatedSvd};
use crate::tensor::{DType, TensorRef};
use progress::{Expected, Tracker};
use schedule::{Demand, Schedule};

/// A tensor to be factored.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The name of the tensor, for reports.
    pub name: String,
    /// The numbers of rows and columns.
    pub shape: (usize, usize),
    /// The element type.
    pub dtype: DType,
    /// The factorization to be done.
    pub svd: TruncatedSvd,
}

impl Item {
    /// Makes an item of a tensor of this name, shape and element type.
    pub fn new(name: impl Into<String>, shape: (usize, usize), dtype: DType, svd: TruncatedSvd) -> Self {
        Item { name: name.into(), shape, dtype, svd }
    }
}

/// The source of the elements of a tensor.
pub enum Input<'a> {
    /// A tensor in memory, or mapped.
    Tensor(TensorRef<'a>),
    /// Rows that are read in tiles.
    Rows(&'a mut dyn RowSource),
    /// Rows that are read in tiles, with a place for the state of a single pass, so that it can be resumed.
    Resumable(&'a mut dyn RowSource, &'a dyn Checkpoint),
}

/// Whether a tensor fits the memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The tensor and its factorization fit the limit, so that any [`Input`] will do.
    Whole,
    /// They do not: [`Input::Rows`] keeps the limit, [`Input::Tensor`] exceeds it.
    Tiles,
}

/// The result for one tensor.
#[derive(Debug)]
pub struct Finished<'a, T> {
    /// The index of its item.
    pub index: usize,
    /// The item.
    pub item: &'a Item,
    /// The factors, or why there are none.
    pub result: Result<Factors<T>>,
    /// The wall time, from loading on.
    pub elapsed: Duration,
}

/// The outcomes of all tensors of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The outcome of each item, in their order: done, or why not. Items that a cancelled batch did not finish have
    /// [`Error::Cancelled`].
    pub outcomes: Vec<Result<()>>,
    /// The wall time of the batch.
    pub elapsed: Duration,
}

impl Summary {
    /// The number of tensors whose results the sink has taken.
    pub fn done(&self) -> usize {
        self.outcomes.iter().filter(|o| o.is_ok()).count()
    }

    /// The number of tensors that failed for a reason of their own.
    pub fn failed(&self) -> usize {
        self.outcomes.iter().filter(|o| o.as_ref().is_err_and(|e| *e != Error::Cancelled)).count()
    }

    /// The number of tensors that were not done because the batch was cancelled.
    pub fn cancelled(&self) -> usize {
        self.outcomes.len() - self.done() - self.failed()
    }
}

/// The settings of a batch: workers, memory, cancellation, observer.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    workers: Option<usize>,
    memory_limit: usize,
    cancel: Option<&'a Cancel>,
    observer: &'a dyn Observer,
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Batch { workers: None, memory_limit: usize::MAX, cancel: None, observer: &() }
    }
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch")
            .field("workers", &self.workers)
            .field("memory_limit", &self.memory_limit)
            .finish_non_exhaustive()
    }
}

impl<'a> Batch<'a> {
    /// Makes a batch with one worker for each thread of the current rayon pool, no memory limit, and no observer.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Sets the number of tensors that run side by side; the threads of the pool are divided among them.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets the most bytes that all tensors in flight and their factorizations take together.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Sets the token that cancels the batch: running tensors stop at their next product or tile, others never start.
    #[must_use]
    pub fn cancel(mut self, cancel: &'a Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Sets the observer that is told about the progress.
    #[must_use]
    pub fn observer(mut self, observer: &'a dyn Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Factors all items and returns how each of them ended.
    ///
    /// `load(index, fit, with)` hands tensor `index` to `with`, which factors it before it returns; `sink` takes the
    /// result. An error, or a panic, of either fails that tensor alone, and so does a tensor of another shape than the
    /// item's. A panic of the observer fails nothing. All of them are called on several threads at once.
    pub fn factor<T: Scalar>(
        &self,
        items: &[Item],
        load: impl Fn(usize, Fit, &mut dyn FnMut(Input<'_>) -> Result<()>) -> Result<()> + Sync,
        sink: impl Fn(Finished<'_, T>) -> Result<()> + Sync,
    ) -> Summary {
        let start = Instant::now();
        let threads = parallel::count();
        let workers = self.workers.unwrap_or(threads).clamp(1, threads.max(1));
        let jobs: Vec<Planned> = items.iter().map(|item| Planned::new::<T>(item, self.memory_limit)).collect();
        let schedule =
            Schedule::new(&jobs.iter().map(|job| job.demand).collect::<Vec<_>>(), workers, self.memory_limit);
        let mut alone = vec![false; items.len()];
        schedule.alone.iter().for_each(|&i| alone[i] = true);
        let expected = (items.iter().zip(&jobs).zip(alone))
            .map(|((item, job), alone)| Expected {
                name: item.name.clone(),
                class: format!("{:?} {} {:?}", item.shape, item.dtype, item.svd),
                seconds: job.demand.seconds,
                bytes: job.read,
                alone,
            })
            .collect();
        let tracker = Tracker::new(expected, workers, self.observer);
        let never = Cancel::new();
        let cancel = self.cancel.unwrap_or(&never);

        let outcomes: Vec<Mutex<Result<()>>> = items.iter().map(|_| Mutex::new(Err(Error::Cancelled))).collect();
        let one = |index: usize, workspace: &mut Workspace| {
            if cancel.is_cancelled() {
                return;
            }
            tracker.started(index);
            let begun = Instant::now();
            let done = self.one::<T>(items, index, jobs[index].fit, workspace, cancel, &tracker, &load, &sink);
            let stage = if done.is_ok() { Stage::Done } else { Stage::Failed };
            if done != Err(Error::Cancelled) {
                tracker.over(index, stage, begun.elapsed().as_secs_f64());
            }
            *lock(&outcomes[index]) = done;
            // With a limit, the memory of one tensor must not be held while the next one runs.
            if self.memory_limit < usize::MAX {
                *workspace = Workspace::new();
            }
        };
        let mut workspace = Workspace::new();
        schedule.alone.iter().for_each(|&index| one(index, &mut workspace));
        drop(workspace);
        self.side_by_side(&schedule.side_by_side, &jobs, workers, threads / workers, one);
        let outcomes = outcomes.into_iter().map(|o| o.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        Summary { outcomes, elapsed: start.elapsed() }
    }

    /// Loads and factors one tensor and gives the result to the sink. Panics become errors.
    fn one<T: Scalar>(
        &self,
        items: &[Item],
        index: usize,
        fit: Fit,
        workspace: &mut Workspace,
        cancel: &Cancel,
        tracker: &Tracker<'_>,
        load: &(impl Fn(usize, Fit, &mut dyn FnMut(Input<'_>) -> Result<()>) -> Result<()> + Sync),
        sink: &(impl Fn(Finished<'_, T>) -> Result<()> + Sync),
    ) -> Result<()> {
        let item = &items[index];
        let begun = Instant::now();
        let read = |bytes| tracker.read(index, bytes);
        let watch = Watch::new(cancel.clone()).on_read(&read);
        let limited = || item.svd.clone().memory_limit(self.memory_limit);
        let work = || -> Result<Factors<T>> {
            let mut factors = None;
            load(index, fit, &mut |input| {
                check_shape(item, &input)?;
                factors = Some(match input {
                    Input::Tensor(tensor) => item.svd.factor_watched_with::<T>(tensor, &watch, workspace)?,
                    Input::Rows(source) => limited().factor_rows::<T>(source, &watch)?,
                    Input::Resumable(source, checkpoint) => {
                        limited().factor_rows_resumable::<T>(source, &watch, checkpoint)?
                    }
                });
                Ok(())
            })?;
            factors.ok_or_else(|| Error::shape("Batch::factor", "load to call its argument once", "no call"))
        };
        let result = caught(work);
        if result == Err(Error::Cancelled) {
            return Err(Error::Cancelled);
        }
        let failure = result.as_ref().err().cloned();
        let taken = caught(|| sink(Finished { index, item, result, elapsed: begun.elapsed() }));
        failure.map_or(taken, Err)
    }

    /// Runs `one` for the tensors of `queue` on `workers` pools of `threads` threads, within the memory limit.
    fn side_by_side(
        &self,
        queue: &[usize],
        jobs: &[Planned],
        workers: usize,
        threads: usize,
        one: impl Fn(usize, &mut Workspace) + Sync,
    ) {
        let state = Mutex::new((queue.to_vec(), 0usize));
        let freed = Condvar::new();
        let next = || -> Option<usize> {
            let mut guard = lock(&state);
            loop {
                let (queue, in_flight) = &mut *guard;
                if queue.is_empty() {
                    return None;
                }
                let room = self.memory_limit.saturating_sub(*in_flight);
                // With nothing in flight the first one goes in any case: the schedule runs a tensor over the limit
                // alone.
                let fits = queue.iter().position(|&i| jobs[i].demand.bytes <= room).or((*in_flight == 0).then_some(0));
                if let Some(at) = fits {
                    let index = queue.remove(at);
                    *in_flight += jobs[index].demand.bytes;
                    return Some(index);
                }
                guard = freed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let work = || {
            let mut workspace = Workspace::new();
            while let Some(index) = next() {
                one(index, &mut workspace);
                lock(&state).1 -= jobs[index].demand.bytes;
                freed.notify_all();
            }
        };
        if workers == 1 {
            return work();
        }
        let worker = || parallel::in_new_pool(threads, &work);
        thread::scope(|scope| {
            let start = || thread::Builder::new().spawn_scoped(scope, worker).is_ok();
            // If fewer threads start than were asked for, the work takes longer; if none does, this thread does all.
            if (0..workers).filter(|_| start()).count() == 0 {
                work();
            }
        });
    }
}

/// Refuses a tensor of another shape than the item's, because plan, cost and limit are made for that shape.
fn check_shape(item: &Item, input: &Input<'_>) -> Result<()> {
    let (m, n) = item.shape;
    let got = match input {
        Input::Tensor(tensor) => tensor.shape().to_vec(),
        Input::Rows(source) | Input::Resumable(source, _) => vec![source.shape().0, source.shape().1],
    };
    if got == [m, n] {
        return Ok(());
    }
    Err(Error::shape("Batch::factor", format_args!("the {m} × {n} of item {:?}", item.name), format_args!("{got:?}")))
}

/// The predictions of the planner for an item.
struct Planned {
    demand: Demand,
    fit: Fit,
    /// The bytes that the passes will read.
    read: u64,
}

impl Planned {
    /// Plans an item. An item that has no plan (its options do not suit its shape) costs nothing, and the factorization
    /// will say why.
    fn new<T: Scalar>(item: &Item, limit: usize) -> Self {
        let Ok(plan) = item.svd.plan::<T>(item.shape, item.dtype) else {
            return Planned { demand: Demand { seconds: 0.0, bytes: 0 }, fit: Fit::Whole, read: 1 };
        };
        let size = item.shape.0.saturating_mul(item.shape.1).saturating_mul(item.dtype.size());
        let chosen = plan.candidates.iter().find(|c| c.method == plan.method);
        let (seconds, passes) = chosen.map_or((0.0, 1), |c| (c.seconds, c.passes));
        let bytes = plan.peak_bytes.saturating_add(size);
        let fit = if bytes <= limit { Fit::Whole } else { Fit::Tiles };
        Planned { demand: Demand { seconds, bytes: bytes.min(limit) }, fit, read: passes as u64 * size as u64 }
    }
}

/// Calls `f` and turns a panic into an error, so that it fails one tensor and not the batch.
fn caught<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let what = (panic.downcast_ref::<&str>().map(|s| (*s).to_string()))
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic".into());
        Err(Error::Internal { what })
    })
}
