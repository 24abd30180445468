//! Many tensors: scheduled by predicted cost, isolated from each other's failures, watched, stopped, gone on with.
//!
//! ```text
//!   items ──plan──> costs ──schedule──> alone, all threads │ side by side        load(item) ─> factor ─> sink(result)
//!                                            memory limit over all in flight          a failure ends one tensor
//! ```
//!
//! A batch takes its tensors from a callback and gives its results to another, both called from the workers:
//!
//! ```
//! use std::sync::Mutex;
//! use tensorslim::batch::{Batch, Input, Item};
//! use tensorslim::{DType, Matrix, Rank, TruncatedSvd};
//!
//! let weights: Vec<Matrix<f32>> = (1..=4).map(|i| Matrix::from_fn(64, 16 * i, |r, c| ((r * c) as f32).sin())).collect();
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
//! Each worker keeps the memory of a factorization for its next one, unless there is a limit: pages that go back to the system and are mapped
//! again are what small tensors on several threads wait for each other in the kernel for (224 weights of 0.5 to 1.4 MB on two threads, bench `batch`,
//! stack: half the page faults, and wall time over half of one thread's CPU time from 1.16 down to 1.04).
//!
//! The bits of a result depend neither on the schedule nor on the threads. What depends on the memory limit is whether a tensor is
//! read whole or in tiles, which changes it by rounding.
//!
//! [`schedule`] has the order and the division into shards, [`progress`] the estimate of what is left. With feature `cli`,
//! `config` and `manifest` are the files around a batch: patterns in TOML, and the record of what is done.

#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "cli")]
pub mod manifest;
pub mod progress;
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
use schedule::{Cost, Schedule};

/// A tensor to be factored.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its name, for reports.
    pub name: String,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// The element type.
    pub dtype: DType,
    /// What to do with it.
    pub svd: TruncatedSvd,
}

impl Item {
    /// A tensor of this shape.
    pub fn new(name: impl Into<String>, shape: (usize, usize), dtype: DType, svd: TruncatedSvd) -> Self {
        Item { name: name.into(), shape, dtype, svd }
    }
}

/// How a tensor comes in.
pub enum Input<'a> {
    /// In memory, or mapped.
    Tensor(TensorRef<'a>),
    /// To be read in tiles.
    Rows(&'a mut dyn RowSource),
    /// The same, with a place for the state of a single pass.
    Resumable(&'a mut dyn RowSource, &'a dyn Checkpoint),
}

/// How a tensor is to come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It fits the memory limit whole.
    Whole,
    /// It does not: [`Input::Rows`] will do, [`Input::Tensor`] is over the limit.
    Tiles,
}

/// A tensor that is through.
#[derive(Debug)]
pub struct Finished<'a, T> {
    /// Its place in the list.
    pub index: usize,
    /// What was asked for.
    pub item: &'a Item,
    /// The factors, or why there are none.
    pub result: Result<Factors<T>>,
    /// Wall time from loading on.
    pub elapsed: Duration,
}

/// How each tensor of a batch ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// In the order of the items: done, or why not. Those that a stopped batch did not come to are [`Error::Cancelled`].
    pub outcomes: Vec<Result<()>>,
    /// Wall time.
    pub elapsed: Duration,
}

impl Summary {
    /// Tensors whose results the sink has taken.
    pub fn done(&self) -> usize {
        self.outcomes.iter().filter(|o| o.is_ok()).count()
    }

    /// Tensors that failed for a reason of their own.
    pub fn failed(&self) -> usize {
        self.outcomes.iter().filter(|o| o.as_ref().is_err_and(|e| *e != Error::Cancelled)).count()
    }

    /// Tensors that were not done because the batch was stopped.
    pub fn cancelled(&self) -> usize {
        self.outcomes.len() - self.done() - self.failed()
    }
}

/// How a batch runs.
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
    /// One worker for each thread of the current rayon pool, no limit, nobody watching.
    pub fn new() -> Self {
        Batch::default()
    }

    /// So many tensors side by side; the threads of the pool are divided among them.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// The most bytes that all tensors in flight and their factorizations take together.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Stops when the token says so: running tensors at their next product or tile, the others never start.
    #[must_use]
    pub fn cancel(mut self, cancel: &'a Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Tells `observer` how far it is.
    #[must_use]
    pub fn observer(mut self, observer: &'a dyn Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Factors all items. `load(index, fit, with)` hands tensor `index` to `with`, which factors it before it returns; `sink` takes the
    /// result. An error, or a panic, of either ends that tensor alone, and so does a tensor of another shape than the item's. A panic of the
    /// observer ends nothing. All run on several threads at once.
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
        let schedule = Schedule::new(&jobs.iter().map(|job| job.cost).collect::<Vec<_>>(), workers, self.memory_limit);
        let mut alone = vec![false; items.len()];
        schedule.alone.iter().for_each(|&i| alone[i] = true);
        let expected = (items.iter().zip(&jobs).zip(alone))
            .map(|((item, job), alone)| Expected {
                name: item.name.clone(),
                class: format!("{:?} {} {:?}", item.shape, item.dtype, item.svd),
                seconds: job.cost.seconds,
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
            // A limit counts what a tensor takes, and not what the last one took.
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

    /// One tensor, its failures and panics caught.
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
                // With nothing in flight the first goes in any case: the schedule has put what is over the limit elsewhere.
                let fits = queue.iter().position(|&i| jobs[i].cost.bytes <= room).or((*in_flight == 0).then_some(0));
                if let Some(at) = fits {
                    let index = queue.remove(at);
                    *in_flight += jobs[index].cost.bytes;
                    return Some(index);
                }
                guard = freed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let work = || {
            let mut workspace = Workspace::new();
            while let Some(index) = next() {
                one(index, &mut workspace);
                lock(&state).1 -= jobs[index].cost.bytes;
                freed.notify_all();
            }
        };
        if workers == 1 {
            return work();
        }
        let worker = || parallel::in_new_pool(threads, &work);
        thread::scope(|scope| {
            let start = || thread::Builder::new().spawn_scoped(scope, worker).is_ok();
            // With fewer threads than were asked for it takes longer; with none this one does all.
            if (0..workers).filter(|_| start()).count() == 0 {
                work();
            }
        });
    }
}

/// Refuses another tensor than the item says: plan, cost and limit are of its shape.
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

/// What the planner says of an item.
struct Planned {
    cost: Cost,
    fit: Fit,
    /// Bytes that the passes will read.
    read: u64,
}

impl Planned {
    /// An item that has no plan (its options do not suit its shape) costs nothing; the factorization will say why.
    fn new<T: Scalar>(item: &Item, limit: usize) -> Self {
        let Ok(plan) = item.svd.plan::<T>(item.shape, item.dtype) else {
            return Planned { cost: Cost { seconds: 0.0, bytes: 0 }, fit: Fit::Whole, read: 1 };
        };
        let size = item.shape.0.saturating_mul(item.shape.1).saturating_mul(item.dtype.size());
        let chosen = plan.candidates.iter().find(|c| c.method == plan.method);
        let (seconds, passes) = chosen.map_or((0.0, 1), |c| (c.seconds, c.passes));
        let bytes = plan.peak_bytes.saturating_add(size);
        let fit = if bytes <= limit { Fit::Whole } else { Fit::Tiles };
        Planned { cost: Cost { seconds, bytes: bytes.min(limit) }, fit, read: passes as u64 * size as u64 }
    }
}

/// A panic as an error, so that it ends one tensor and not the batch.
fn caught<R>(f: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let what = (panic.downcast_ref::<&str>().map(|s| (*s).to_string()))
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic".into());
        Err(Error::Internal { what })
    })
}
