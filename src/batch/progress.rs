//! The progress of a batch, and when it will end.
//!
//! ```text
//!   remaining = Σ over tensors not done of  t · (1 − fraction done)
//!   t         = mean seconds of its class, if one of it is done;  else predicted · c
//!   c         = Σ measured / Σ predicted over what is done        a class: equal shape, element type and options
//!   eta       = remaining / workers
//! ```
//!
//! The cost model knows ratios of shapes, not this machine; `c` corrects it for the machine, and one finished tensor of
//! a class replaces the model for all of the class. Large tensors go first, so the model soon counts for the small ones
//! only.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::parallel::lock;

/// The states that a tensor of a batch goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A worker has taken the tensor.
    Started,
    /// Some of the tensor was read: for a tile, or for a product in memory.
    Working,
    /// The sink has the result.
    Done,
    /// The tensor has no result.
    Failed,
}

impl Stage {
    /// Returns the name: `"started"`, `"working"`, `"done"` or `"failed"`.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Started => "started",
            Stage::Working => "working",
            Stage::Done => "done",
            Stage::Failed => "failed",
        }
    }
}

/// One report on the progress of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress<'a> {
    /// The name of the tensor that the report is about.
    pub tensor: &'a str,
    /// The state that this tensor has come to.
    pub stage: Stage,
    /// The part of this tensor that is done, 0 to 1, by the passes that its plan foresees.
    pub tensor_fraction: f64,
    /// The part of the batch that is done, 0 to 1, by predicted time.
    pub fraction: f64,
    /// The number of tensors that are done.
    pub done: usize,
    /// The number of tensors that have failed.
    pub failed: usize,
    /// The number of tensors of the batch.
    pub total: usize,
    /// The bytes of matrices read so far, in all passes together.
    pub bytes: u64,
    /// The time since the batch started.
    pub elapsed: Duration,
    /// The time until the batch ends, by estimate; `None` until something is done.
    pub eta: Option<Duration>,
}

/// A receiver of the reports of a batch. It is called from the threads that compute, and they wait for it.
pub trait Observer: Sync {
    /// Takes one report.
    fn progress(&self, progress: &Progress<'_>);
}

/// The observer that ignores all reports.
impl Observer for () {
    fn progress(&self, _: &Progress<'_>) {}
}

/// The predictions for one tensor.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) name: String,
    /// The name of its class: tensors that take equal time have equal names.
    pub(super) class: String,
    /// The seconds that it takes on the threads of one worker.
    pub(super) seconds: f64,
    /// The bytes that its passes will read.
    pub(super) bytes: u64,
    /// Whether it runs alone, on all threads.
    pub(super) alone: bool,
}

/// Collects the events of the workers and reports to the observer. A report takes time in the number of classes, not of
/// tensors.
pub(super) struct Tracker<'a> {
    observer: &'a dyn Observer,
    expected: Vec<Expected>,
    /// For each tensor, the index of its class.
    class: Vec<usize>,
    start: Instant,
    state: Mutex<State>,
}

/// The events so far, in numbers.
#[derive(Default)]
struct State {
    /// For each tensor, the bytes that were read, and whether it is done or has failed.
    tensors: Vec<(u64, bool)>,
    classes: Vec<Class>,
    done: usize,
    failed: usize,
    bytes: u64,
    /// The seconds that the tensors done have taken.
    measured: f64,
    /// The seconds that were predicted for them.
    predicted: f64,
}

/// A class of tensors that take equal time.
#[derive(Default, Clone)]
struct Class {
    /// The number of tensors.
    tensors: usize,
    /// The seconds that one tensor takes, by the model.
    predicted: f64,
    /// The number of workers that do such tensors at the same time.
    workers: f64,
    /// The sum of the fractions that are done: a tensor that is done or has failed counts one.
    finished: f64,
    /// The seconds of all tensors that are done, and their number.
    measured: (f64, usize),
}

impl<'a> Tracker<'a> {
    /// Starts the clock of a batch of these tensors.
    pub(super) fn new(expected: Vec<Expected>, workers: usize, observer: &'a dyn Observer) -> Self {
        let workers = workers as f64;
        let (mut ids, mut classes) = (HashMap::new(), Vec::<Class>::new());
        let class = (expected.iter())
            .map(|e| {
                let id = *ids.entry((e.class.clone(), e.alone)).or_insert(classes.len());
                if id == classes.len() {
                    let workers = if e.alone { 1.0 } else { workers };
                    classes.push(Class { predicted: e.seconds, workers, ..Class::default() });
                }
                classes[id].tensors += 1;
                id
            })
            .collect();
        let state = State { tensors: vec![(0, false); expected.len()], classes, ..State::default() };
        Tracker { observer, expected, class, start: Instant::now(), state: Mutex::new(state) }
    }

    /// Reports that a worker has taken tensor `index`.
    pub(super) fn started(&self, index: usize) {
        self.tell(index, Stage::Started, |_| {});
    }

    /// Reports that `bytes` of tensor `index` were read.
    pub(super) fn read(&self, index: usize, bytes: u64) {
        self.tell(index, Stage::Working, |state| {
            state.tensors[index].0 += bytes;
            state.bytes += bytes;
        });
    }

    /// Reports that tensor `index` is done or has failed, after this many seconds.
    pub(super) fn over(&self, index: usize, stage: Stage, seconds: f64) {
        self.tell(index, stage, |state| {
            state.tensors[index].1 = true;
            if stage == Stage::Failed {
                state.failed += 1;
                return;
            }
            state.done += 1;
            state.measured += seconds;
            state.predicted += self.expected[index].seconds;
            let measured = &mut state.classes[self.class[index]].measured;
            *measured = (measured.0 + seconds, measured.1 + 1);
        });
    }

    /// Returns the part of a tensor that is done, 0 to 1.
    fn share(&self, index: usize, (read, over): (u64, bool)) -> f64 {
        // Until a tensor is over, something is left to compute with what was read last.
        if over { 1.0 } else { (read as f64 / self.expected[index].bytes.max(1) as f64).min(0.95) }
    }

    /// Makes a change to the state and reports it to the observer, with the new estimates.
    fn tell(&self, index: usize, stage: Stage, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        let before = self.share(index, state.tensors[index]);
        change(&mut state);
        let share = self.share(index, state.tensors[index]);
        state.classes[self.class[index]].finished += share - before;
        let correction = if state.predicted > 0.0 { state.measured / state.predicted } else { 1.0 };
        let (mut all, mut finished) = (0.0, 0.0);
        for class in &state.classes {
            let seconds = match class.measured {
                (_, 0) => class.predicted * correction,
                (sum, count) => sum / count as f64,
            };
            all += seconds / class.workers * class.tensors as f64;
            finished += seconds / class.workers * class.finished;
        }
        let through = state.done + state.failed == self.expected.len();
        let remaining = if through { 0.0 } else { (all - finished).max(0.0) };
        let progress = Progress {
            tensor: &self.expected[index].name,
            stage,
            tensor_fraction: share,
            fraction: if through || all == 0.0 { 1.0 } else { (finished / all).clamp(0.0, 1.0) },
            done: state.done,
            failed: state.failed,
            total: self.expected.len(),
            bytes: state.bytes,
            elapsed: self.start.elapsed(),
            eta: (state.done > 0).then(|| Duration::from_secs_f64(remaining)),
        };
        // A panic of the observer does not end the batch; the panic hook has reported it.
        let _ = catch_unwind(AssertUnwindSafe(|| self.observer.progress(&progress)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Last(Mutex<Option<(f64, Option<Duration>)>>);

    impl Observer for Last {
        fn progress(&self, p: &Progress<'_>) {
            *self.0.lock().unwrap() = Some((p.fraction, p.eta));
        }
    }

    /// Four tensors of two classes, the model wrong by a factor of ten: after one of each is done the estimate is
    /// exact.
    #[test]
    fn what_is_measured_replaces_what_was_predicted() {
        let last = Last(Mutex::new(None));
        let expected = |name: &str, class: &str, seconds: f64| Expected {
            name: name.into(),
            class: class.into(),
            seconds,
            bytes: 100,
            alone: false,
        };
        let list =
            vec![expected("a", "x", 1.0), expected("b", "x", 1.0), expected("c", "y", 0.5), expected("d", "y", 0.5)];
        let tracker = Tracker::new(list, 2, &last);
        tracker.started(0);
        assert_eq!(last.0.lock().unwrap().unwrap(), (0.0, None));
        tracker.over(0, Stage::Done, 10.0);
        // b takes 10, c and d 5 each by the corrected model; two workers.
        assert_eq!(last.0.lock().unwrap().unwrap(), (1.0 / 3.0, Some(Duration::from_secs(10))));
        tracker.over(2, Stage::Done, 2.0);
        // d is known to take 2 now.
        assert_eq!(last.0.lock().unwrap().unwrap(), (0.5, Some(Duration::from_secs(6))));
        tracker.read(1, 50);
        assert_eq!(last.0.lock().unwrap().unwrap().1, Some(Duration::from_secs_f64(3.5)));
        tracker.over(3, Stage::Failed, 0.0);
        tracker.over(1, Stage::Done, 10.0);
        assert_eq!(last.0.lock().unwrap().unwrap(), (1.0, Some(Duration::ZERO)));
    }
}
