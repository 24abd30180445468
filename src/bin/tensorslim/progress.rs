//! Shows how far a batch is: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tensorslim::batch::{Observer, Progress, Stage};

use crate::args::ShowProgress;
use crate::failure::emit;

/// The number of steps of the bar.
const STEPS: u64 = 10_000;
/// The least time between plain lines.
const QUIET: Duration = Duration::from_secs(5);
/// The least time between JSON lines about tensors at work.
const BRIEF: Duration = Duration::from_millis(200);

/// The way in which progress is shown.
pub(crate) enum Show {
    Bar(ProgressBar),
    Plain(Mutex<Option<Instant>>),
    Json(Mutex<Option<Instant>>),
    Nothing,
}

impl Show {
    pub(crate) fn new(how: ShowProgress) -> Self {
        let bar = || {
            let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {msg}") {
                bar.set_style(style);
            }
            Show::Bar(bar)
        };
        match how {
            ShowProgress::Auto if std::io::stderr().is_terminal() => bar(),
            ShowProgress::Bar => bar(),
            ShowProgress::Auto | ShowProgress::Plain => Show::Plain(Mutex::new(None)),
            ShowProgress::Json => Show::Json(Mutex::new(None)),
            ShowProgress::None => Show::Nothing,
        }
    }

    /// Removes the bar, so that what follows stands alone.
    pub(crate) fn end(&self) {
        if let Show::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Show {
    fn progress(&self, p: &Progress<'_>) {
        match self {
            Show::Nothing => {}
            Show::Bar(bar) => {
                bar.set_position((p.fraction * STEPS as f64) as u64);
                bar.set_message(counts(p));
            }
            Show::Plain(last) => {
                let through = p.done + p.failed == p.total;
                if p.stage != Stage::Started && (due(last, QUIET) || through) {
                    // There is nowhere to report that stderr is closed.
                    let _ = writeln!(std::io::stderr(), "{:3.0} % {}", 100.0 * p.fraction, counts(p));
                }
            }
            Show::Json(last) => {
                if p.stage == Stage::Working && !due(last, BRIEF) {
                    return;
                }
                let line = json!({
                    "tensor": p.tensor, "stage": p.stage.name(), "tensor_fraction": p.tensor_fraction,
                    "fraction": p.fraction, "done": p.done, "failed": p.failed, "total": p.total, "bytes": p.bytes,
                    "elapsed_s": p.elapsed.as_secs_f64(), "eta_s": p.eta.map(|eta| eta.as_secs_f64()),
                });
                // If the reader has gone, the run still goes on.
                let _ = emit(&format!("{line}\n"));
            }
        }
    }
}

/// Tells whether `every` has passed since the last time, and if so makes this the last time.
fn due(last: &Mutex<Option<Instant>>, every: Duration) -> bool {
    let Ok(mut last) = last.lock() else { return false };
    let due = last.is_none_or(|last| last.elapsed() >= every);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// Formats the counts as `17 of 224, 1 failed, 3.2 GiB read, 1:05 left`.
fn counts(p: &Progress<'_>) -> String {
    let failed = if p.failed > 0 { format!(", {} failed", p.failed) } else { String::new() };
    let left = p.eta.map_or(String::new(), |eta| format!(", {} left", clock(eta)));
    let read = crate::report::bytes(p.bytes as usize);
    format!("{} of {}{failed}, {read} read{left}", p.done, p.total)
}

/// Formats a time as `4:07` or `1:02:09`.
pub(crate) fn clock(t: Duration) -> String {
    let s = t.as_secs_f64().round() as u64;
    if s < 3600 {
        format!("{}:{:02}", s / 60, s % 60)
    } else {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::clock;
    use std::time::Duration;

    #[test]
    fn time_reads_as_on_a_clock() {
        let of = |s| clock(Duration::from_secs_f64(s));
        assert_eq!([of(0.2), of(65.0), of(3599.0), of(3729.0)], ["0:00", "1:05", "59:59", "1:02:09"]);
    }
}
