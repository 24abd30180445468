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

/// Gathers what the workers do and tells the observer.
pub(super) struct Tracker<'a> {
    observer: &'a dyn Observer,
    expected: Vec<Expected>,
    workers: f64,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    read: Vec<u64>,
    over: Vec<bool>,
    done: usize,
    failed: usize,
    bytes: u64,
    measured: f64,
    predicted: f64,
    /// Seconds and number of what is done, by class.
    classes: HashMap<String, (f64, usize)>,
}

impl<'a> Tracker<'a> {
    pub(super) fn new(expected: Vec<Expected>, workers: usize, observer: &'a dyn Observer) -> Self {
        let state = State { read: vec![0; expected.len()], over: vec![false; expected.len()], ..State::default() };
        Tracker { observer, expected, workers: workers as f64, start: Instant::now(), state: Mutex::new(state) }
    }

    pub(super) fn started(&self, index: usize) {
        self.tell(index, Stage::Started, |_| {});
    }

    pub(super) fn read(&self, index: usize, bytes: u64) {
        self.tell(index, Stage::Working, |state| {
            state.read[index] += bytes;
            state.bytes += bytes;
        });
    }

    pub(super) fn over(&self, index: usize, stage: Stage, seconds: f64) {
        self.tell(index, stage, |state| {
            state.over[index] = true;
            if stage == Stage::Failed {
                state.failed += 1;
                return;
            }
            state.done += 1;
            let expected = &self.expected[index];
            state.measured += seconds;
            state.predicted += expected.seconds;
            let class = state.classes.entry(expected.class.clone()).or_default();
            *class = (class.0 + seconds, class.1 + 1);
        });
    }

    fn tell(&self, index: usize, stage: Stage, change: impl FnOnce(&mut State)) {
        // A panic under this lock is a bug in an observer; the numbers are still whole.
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut state);
        let share = |i: usize| match state.over[i] {
            true => 1.0,
            false => (state.read[i] as f64 / self.expected[i].bytes.max(1) as f64).min(0.95),
        };
        let (mut all, mut behind, mut remaining) = (0.0, 0.0, 0.0);
        let correction = if state.predicted > 0.0 { state.measured / state.predicted } else { 1.0 };
        for (i, expected) in self.expected.iter().enumerate() {
            let seconds = match state.classes.get(&expected.class) {
                Some(&(sum, count)) => sum / count as f64,
                None => expected.seconds * correction,
            };
            let workers = if expected.alone { 1.0 } else { self.workers };
            all += seconds / workers;
            behind += seconds / workers * share(i);
            remaining += seconds / workers * (1.0 - share(i));
        }
        let progress = Progress {
            tensor: &self.expected[index].name,
            stage,
            tensor_fraction: share(index),
            fraction: if all > 0.0 { behind / all } else { 1.0 },
            done: state.done,
            failed: state.failed,
            total: self.expected.len(),
            bytes: state.bytes,
            elapsed: self.start.elapsed(),
            eta: (state.done > 0).then(|| Duration::from_secs_f64(remaining.max(0.0))),
        };
        self.observer.progress(&progress);
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
