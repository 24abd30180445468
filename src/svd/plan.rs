//! The planner: estimates what each method would cost, and chooses which one `Method::Auto` takes.
//!
//! Estimates are work over measured rates ([`Rates`](super::Rates)); only their ratios decide. The methods say what
//! they take (`methods/`); the planner weighs them, keeps a memory limit, and explains its choice.
//!
//! `Auto` never takes a method that is less accurate than randomized with the same p and q. The loss of digits that a
//! Gram matrix can bring is not visible before the spectrum is: it is detected afterwards, and the factorization falls
//! back.
//!
//! [`Plan::peak_bytes`] is what is alive at the fullest moment of the method, whatever the values are.

use std::fmt;
use std::time::Duration;

use faer::Par;

use super::certificate::Certificate;
use super::cost::Work;
use super::methods::{self, Entry, Route};
use super::rank_target::RankTarget;
use super::solution::Solution;
use super::task::{Residency, Task, looks_once};
use super::weighting;
use crate::error::{Error, Result};
use crate::operator::LinearOperator;
use crate::report::{Method, Report};
use crate::simd::Scalar;
use crate::space::Space;
use crate::tensor::DType;

/// A method with its estimates.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The method.
    pub method: Method,
    /// The way that the method takes.
    route: Route,
    /// The estimated seconds.
    pub seconds: f64,
    /// The passes over the matrix, without the input check.
    pub passes: usize,
    /// The peak bytes.
    pub peak_bytes: usize,
}

/// A plan of a factorization, as plain data; `Display` explains it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The rows and columns of the matrix.
    pub shape: (usize, usize),
    /// The method that was chosen.
    pub method: Method,
    /// The reason of the choice, in one line.
    pub reason: String,
    /// The rank, where the shape decides it.
    pub rank: Option<usize>,
    /// Columns of the panels, `l = min(k + p, min(m, n))`; the most there can be where the spectrum decides the rank.
    pub width: usize,
    /// All methods that would do, cheapest first.
    pub candidates: Vec<Candidate>,
    /// Peak bytes allocated, the result included.
    pub peak_bytes: usize,
    /// The element type of the matrix.
    pub dtype: DType,
    /// The arithmetic.
    pub precision: DType,
    pub(super) route: Route,
    pub(super) task: Task,
}

impl Plan {
    /// Weighs the methods for `task`.
    ///
    /// # Errors
    /// [`Error::Memory`] with the least limit that would do, if no method that may be taken keeps the limit.
    pub(super) fn new(task: Task) -> Result<Self> {
        let mut candidates: Vec<_> = methods::possible(&task).map(|entry| Candidate::of(entry, &task)).collect();
        // Where reading decides and the methods tie, arithmetic decides.
        candidates.sort_by(|(x, a), (y, b)| a.seconds.total_cmp(&b.seconds).then(x.total_cmp(y)));
        let mut candidates: Vec<_> = candidates.into_iter().map(|(_, candidate)| candidate).collect();
        let allowed = |c: &&Candidate| match task.method {
            Method::Auto => (c.route.entry().allowed)(&task),
            method => c.method == method,
        };
        if let Some(limit) = task.memory_limit {
            let least = candidates.iter().filter(allowed).map(|c| c.peak_bytes).min().unwrap_or(0);
            if least > limit {
                return Err(Error::Memory { limit, least });
            }
            candidates.retain(|c| c.peak_bytes <= limit);
        }
        let Candidate { method, route, seconds, peak_bytes, .. } =
            *candidates.iter().find(allowed).expect("each method has a candidate");
        let what = route.entry().what;
        let reason = match task.method {
            Method::Auto => {
                let next = candidates.iter().filter(|c| c.method != method).map(|c| c.seconds).next();
                let margin = next.map_or(1.0, |next| next / seconds);
                format!("{what}; estimated {margin:.1}× faster than the next method")
            }
            _ => format!("{what}; as asked"),
        };
        let &Task { shape, rank, dtype, precision, .. } = &task;
        let width = route.entry().width(&task);
        Ok(Plan { shape, method, reason, rank, width, candidates, peak_bytes, dtype, precision, route, task })
    }

    /// Returns the peak bytes of a factorization that ended with this method, panel width and rank. `rooted` says that
    /// calibration took the root of its moments.
    pub(super) fn peak_bytes_of(&self, method: Method, width: usize, rank: usize, rooted: bool) -> usize {
        // A fallback is within what its method may take.
        if method != self.method && self.rank.is_some() {
            return self.peak_bytes;
        }
        let after_fallback = if method == self.method { 0 } else { self.peak_bytes };
        let entry = methods::entry_of(method, self.route);
        peak_bytes(entry, &self.task, width, rank, rooted).max(after_fallback)
    }

    /// Returns why a factorization that ended with this method has it: it was planned, or another method fell back.
    pub(super) fn reason_of(&self, method: Method) -> String {
        match method == self.method {
            true => self.reason.clone(),
            false => format!("{}; {} fell back", methods::entry_of(method, self.route).what, self.method),
        }
    }

    /// Returns what the factors must reach, for an operator that stands for `scale · A` and has this squared norm.
    pub(super) fn target(&self, norm_squared: f64, scale: f64) -> RankTarget {
        self.task.target(norm_squared, scale)
    }

    /// Makes the report of factors of rank k from panels of `width` columns, by the method as planned.
    pub(super) fn report(
        &self,
        (rank, width): (usize, usize),
        spectrum: Vec<f64>,
        norm: f64,
        certificate: &Certificate,
        elapsed: Duration,
    ) -> Report {
        Report {
            shape: self.shape,
            dtype: self.dtype,
            precision: self.precision,
            rank,
            method: self.method,
            reason: self.reason.clone(),
            sketch: Some(self.task.sketch),
            seed: self.task.seed,
            oversample: width - rank,
            power_iterations: self.task.asked_iterations,
            norm,
            spectrum,
            relative_error: certificate.relative_error,
            error_kind: certificate.kind,
            passes: 0,
            peak_bytes: self.peak_bytes,
            elapsed,
            activation: None,
            notes: Vec::new(),
        }
    }

    /// Runs the plan.
    pub(super) fn solve<T: Scalar, S: Space<T>>(
        &self,
        op: &mut dyn LinearOperator<T, Space = S>,
        target: &RankTarget,
        par: Par,
    ) -> Result<Solution<T, S>> {
        methods::solve(self.route, &self.task, op, target, par)
    }
}

/// Returns the peak bytes of a task by a route, with what calibration takes beside it.
fn peak_bytes(entry: &Entry, task: &Task, width: usize, rank: usize, rooted: bool) -> usize {
    let peak = entry.peak_bytes(task, width, rank);
    if !task.weighted {
        return peak;
    }
    let weighting::Bytes { before, beside } = match (task.precision, task.two_sided) {
        (DType::F64, true) => weighting::two_sided_bytes::<f64>(task.shape, entry.method, width, rank),
        (_, true) => weighting::two_sided_bytes::<f32>(task.shape, entry.method, width, rank),
        (DType::F64, false) => weighting::bytes::<f64>(task.shape, entry.method, width, rank, rooted),
        (_, false) => weighting::bytes::<f32>(task.shape, entry.method, width, rank, rooted),
    };
    before.max(peak + beside) + task.measuring
}

impl Candidate {
    /// Estimates a route. The first value is the seconds of its arithmetic alone.
    fn of(entry: &Entry, task: &Task) -> (f64, Self) {
        let width = entry.width(task);
        // A rank that the spectrum decides is taken for a quarter of what it can be.
        let known = task.rank.is_some() || looks_once(entry.method);
        let expected = if known { width } else { width.div_ceil(4).max(32).min(width) };
        let (arithmetic, passes) = (entry.cost)(&Work::new(task, expected));
        let seconds = match task.residency {
            Residency::InMemory => arithmetic,
            Residency::InTiles { pass_seconds } => arithmetic.max(passes as f64 * pass_seconds),
        };
        let peak_bytes = peak_bytes(entry, task, width, task.largest_rank(), true);
        (arithmetic, Candidate { method: entry.method, route: entry.route, seconds, passes, peak_bytes })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, n) = self.shape;
        writeln!(f, "plan for {m} × {n} {}, {}: {}", self.dtype, self.task.rule, self.method)?;
        writeln!(f, "  {}", self.reason)?;
        match self.rank {
            Some(k) => writeln!(f, "  rank {k}, panels of {} columns", self.width)?,
            None => writeln!(f, "  the rank comes from the spectrum")?,
        }
        writeln!(f, "  {:<12} {:>12} {:>8} {:>12}  how", "candidate", "estimate", "passes", "peak memory")?;
        for c in &self.candidates {
            let mark = if c.route == self.route { '*' } else { ' ' };
            let (ms, mib) = (1e3 * c.seconds, c.peak_bytes as f64 / 1048576.0);
            writeln!(
                f,
                "{mark} {:<12} {ms:>9.2} ms {:>8} {mib:>8.1} MiB  {}",
                c.method,
                c.passes,
                c.route.entry().what
            )?;
        }
        Ok(())
    }
}
