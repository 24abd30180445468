//! Where a batch stands, and when it will be through.
//!
//! ```text
//!   remaining = Σ over tensors not done of  (mean seconds of its class, if one of it is done;  else predicted · c)  · (1 − fraction)
//!   c         = Σ measured / Σ predicted over what is done        a class: equal shape, element type and options
//!   eta       = remaining / workers
//! ```
//!
//! The cost model knows ratios of shapes, not this machine; `c` is what the machine says to it, and one finished tensor of a class
//! replaces the model for all of them. Large tensors go first, so the model soon speaks for the small ones only.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What happens to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It was taken up.
    Started,
    /// Some of it was read: a tile, or a product in memory.
    Working,
    /// Its result is with the sink.
    Done,
    /// It has no result.
    Failed,
}

impl Stage {
    /// `"started"`, `"working"`, `"done"` or `"failed"`.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Started => "started",
            Stage::Working => "working",
            Stage::Done => "done",
            Stage::Failed => "failed",
        }
    }
}

/// One report on a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress<'a> {
    /// The tensor that it is about.
    pub tensor: &'a str,
    /// What happened to it.
    pub stage: Stage,
    /// How much of this tensor is done, 0 to 1, by the passes that its plan foresees.
    pub tensor_fraction: f64,
    /// How much of the batch is done, 0 to 1, by predicted time.
    pub fraction: f64,
    /// Tensors done, failed, and in all.
    pub done: usize,
    /// See `done`.
    pub failed: usize,
    /// See `done`.
    pub total: usize,
    /// Bytes of matrices read so far, every pass counted.
    pub bytes: u64,
    /// Since the batch started.
    pub elapsed: Duration,
    /// Until it is through; `None` until something is done.
    pub eta: Option<Duration>,
}

/// Who wants to know. Called from the threads that compute; what it does is time that they lose.
pub trait Observer: Sync {
    /// Something happened.
    fn progress(&self, progress: &Progress<'_>);
}

/// Nobody.
impl Observer for () {
    fn progress(&self, _: &Progress<'_>) {}
}

/// What is expected of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) name: String,
    /// Equal for tensors that take equal time.
    pub(super) class: String,
    /// Seconds on the threads that one worker has.
    pub(super) seconds: f64,
    /// Bytes that its passes will read.
    pub(super) bytes: u64,
    /// Runs alone, on all threads.
    pub(super) alone: bool,
}

/// Gathers what the workers do and tells the observer, in time that grows with the number of classes and not of tensors.
pub(super) struct Tracker<'a> {
    observer: &'a dyn Observer,
    expected: Vec<Expected>,
    /// The class of each tensor.
    class: Vec<usize>,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes read of each tensor, and whether it is through.
    tensors: Vec<(u64, bool)>,
    classes: Vec<Class>,
    done: usize,
    failed: usize,
    bytes: u64,
    measured: f64,
    predicted: f64,
}

/// Tensors that take equal time.
#[derive(Default, Clone)]
struct Class {
    tensors: usize,
    /// Seconds of one of them, by the model.
    predicted: f64,
    /// Workers that do them at a time.
    workers: f64,
    /// How much of them is done: a tensor that is through counts one.
    behind: f64,
    /// Seconds and number of what is done.
    measured: (f64, usize),
}

impl<'a> Tracker<'a> {
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

    pub(super) fn started(&self, index: usize) {
        self.tell(index, Stage::Started, |_| {});
    }

    pub(super) fn read(&self, index: usize, bytes: u64) {
        self.tell(index, Stage::Working, |state| {
            state.tensors[index].0 += bytes;
            state.bytes += bytes;
        });
    }

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

    /// How much of a tensor is done.
    fn share(&self, index: usize, (read, over): (u64, bool)) -> f64 {
        // Of what was read at last, not all is computed.
        if over { 1.0 } else { (read as f64 / self.expected[index].bytes.max(1) as f64).min(0.95) }
    }

    fn tell(&self, index: usize, stage: Stage, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = self.share(index, state.tensors[index]);
        change(&mut state);
        let share = self.share(index, state.tensors[index]);
        state.classes[self.class[index]].behind += share - before;
        let correction = if state.predicted > 0.0 { state.measured / state.predicted } else { 1.0 };
        let (mut all, mut behind) = (0.0, 0.0);
        for class in &state.classes {
            let seconds = match class.measured {
                (_, 0) => class.predicted * correction,
                (sum, count) => sum / count as f64,
            };
            all += seconds / class.workers * class.tensors as f64;
            behind += seconds / class.workers * class.behind;
        }
        let through = state.done + state.failed == self.expected.len();
        let remaining = if through { 0.0 } else { (all - behind).max(0.0) };
        let progress = Progress {
            tensor: &self.expected[index].name,
            stage,
            tensor_fraction: share,
            fraction: if through || all == 0.0 { 1.0 } else { (behind / all).clamp(0.0, 1.0) },
            done: state.done,
            failed: state.failed,
            total: self.expected.len(),
            bytes: state.bytes,
            elapsed: self.start.elapsed(),
            eta: (state.done > 0).then(|| Duration::from_secs_f64(remaining)),
        };
        // Whoever watches ends nothing; the hook for panics has said what happened.
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

    /// Four tensors of two classes, the model wrong by a factor of ten: after one of each is done the estimate is exact.
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
