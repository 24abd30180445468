//! The planner: what each method would cost, and which one `Method::Auto` takes.
//!
//! Estimates are work over measured rates ([`Rates`]); only their ratios decide. With `l = k + p`, `m >= n`, and Krylov blocks of `b = l/2` columns:
//!
//! | method | products | orthonormalizations | small problem (f32) | passes |
//! |---|---|---|---|---|
//! | full | | | EVD n³ | 1 |
//! | gram, dense | syrk m n², A V 2mnl | n × l | EVD n³, EVD l³ | 2 |
//! | gram, iterated | syrk m n², G V 2n²l, q + 1 times, A T 2mnk | n × l, q + 1 times, half | EVD l³ | 2 |
//! | randomized | 2mnl, 2q + 1 times, and a sketch | m × l, q + 1 times, n × l, q times | EVD l³ | 2q + 2 |
//! | krylov | 2mnb, 2q + 3 times, and a sketch | m × b, 2q + 3 times, against blocks | EVD (qb + 2b)³ | 2q + 4 |
//!
//! `Auto` never takes a method that is less accurate than randomized with the same p and q: full and gram (dense) are the
//! optimum, gram (iterated) has the same exponent and a filter. The loss of digits that a Gram matrix can bring is not visible
//! before the spectrum is: it is detected afterwards, and the factorization falls back (see [`gram`](super::gram)).
//!
//! [`Plan::peak_bytes`] is what is alive at the fullest moment of the method, counted by the functions that size the buffers. It holds whatever the values
//! are: every way out that only they can decide (QR of an image, the Gram route's image and its fallback, a conversion buffer for values out of range)
//! is made to take about the memory of the usual way, so that the promise is near what most matrices need, too.

use std::fmt;
use std::time::Duration;

use faer::Par;

use super::certificate::Certificate;
use super::goal::Goal;
use super::gram::{self, Eigenvectors};
use super::single_pass::Sizes;
use super::triplets::{Triplets, decompose_bytes};
use super::{Device, Solution, TruncatedSvd, blocked, certificate, full, krylov, randomized, single_pass, whitened};
use crate::error::{Error, Result};
use crate::operator::{Dense, LinearOperator, Pass};
use crate::rank::Rank;
use crate::report::Method;
use crate::report::Report;
use crate::simd::Scalar;
use crate::sketch::Sketch;
use crate::space::{HostPanel, Space};
use crate::tensor::DType;

/// What the machine does of each kind of work, in f32; products, sketches and copies in f64 are taken at half of it. The defaults are a fit to the times of
/// the bench `svd` on two Zen 5 cores (14 shapes × 3 spectra, f32 and f64, every method): off by 8 % in the median, 17 % at nine of ten. Another
/// machine shifts all of them by much the same factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// GEMM, flops per second.
    pub gemm: f64,
    /// Reading and packing the matrix for it, elements of `A` per second: what decides a product with few columns.
    pub pack: f64,
    /// Elements that stay in a cache from one product to the next.
    pub cache: f64,
    /// Elements of a larger matrix that are read per second: all that counts where panels are narrow.
    pub memory: f64,
    /// SYRK, flops per second (`m n²` for the Gram matrix of `m × n`).
    pub syrk: f64,
    /// SYRK of an f32 panel in f64.
    pub wide: f64,
    /// The part of an orthonormalization with explicit Q that grows with the panel, flops per second of the nominal `4 m l²`.
    pub orthonormalize: f64,
    /// What it does on `l × l` matrices, by one thread, seconds per `l³`.
    pub cholesky: f64,
    /// Dense SVD of an `l × l` triangle in f64, seconds per `l³`.
    pub svd: f64,
    /// Dense symmetric eigenvectors, seconds per `n³`.
    pub eigen: f64,
    /// And seconds per `n²`: what weighs up to a thousand.
    pub tridiagonal: f64,
    /// A sketch from an operator in memory, elements of `A` per second.
    pub sketch: f64,
    /// The check of the input, elements per second.
    pub scan: f64,
    /// Elements per second that are copied into fresh memory.
    pub copy: f64,
    /// Seconds that an orthonormalization or a product takes besides: threads that wake, buffers.
    pub call: f64,
    /// Reading a matrix that is not in memory, bytes per second: a file in the page cache, or a good disk.
    pub read: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates {
            gemm: 444e9,
            pack: 50e9,
            cache: 8e6,
            memory: 6e9,
            syrk: 394e9,
            wide: 309e9,
            orthonormalize: 393e9,
            cholesky: 2.24e-11,
            svd: 5.35e-10,
            eigen: 2.71e-11,
            tridiagonal: 7.85e-8,
            sketch: 3e9,
            scan: 3.35e9,
            copy: 0.95e9,
            call: 2.26e-5,
            read: 2e9,
        }
    }
}

impl Rates {
    /// Of an H100 and its host, once the matrix is on the card: tall panels are the card's, `l × l` matrices and the way home the
    /// host's, and what counts most is how often one waits for the other.
    pub fn cuda() -> Self {
        Rates {
            gemm: 45e12,
            pack: 1e15,
            cache: 8e6,
            memory: 7e11,
            syrk: 25e12,
            wide: 3e12,
            orthonormalize: 9e12,
            cholesky: 4.5e-11,
            svd: 1e-9,
            eigen: 2e-11,
            tridiagonal: 3.1e-8,
            sketch: 4e11,
            scan: 6e11,
            copy: 1.3e9,
            call: 1.2e-4,
            read: 2e9,
        }
    }
}

/// A method with its estimates.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The method.
    pub method: Method,
    /// How its eigenvectors are found, for the Gram route.
    detail: Option<Eigenvectors>,
    /// Estimated seconds.
    pub seconds: f64,
    /// Passes over the matrix, the input check not counted.
    pub passes: usize,
    /// Peak bytes.
    pub peak_bytes: usize,
}

/// What a factorization will do. Plain data; `Display` explains it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Rows and columns.
    pub shape: (usize, usize),
    /// The method that was chosen.
    pub method: Method,
    /// Why, in one line.
    pub reason: String,
    /// The rank, where the shape decides it.
    pub rank: Option<usize>,
    /// Columns of the panels, `l = min(k + p, min(m, n))`; the most there can be where the spectrum decides the rank.
    pub width: usize,
    /// All methods that would do, cheapest first.
    pub candidates: Vec<Candidate>,
    /// Peak bytes allocated, the result included.
    pub peak_bytes: usize,
    detail: Option<Eigenvectors>,
    /// The element type of the matrix.
    pub dtype: DType,
    /// The arithmetic.
    pub precision: DType,
    power_iterations: usize,
    /// Power iterations have a shift, and a panel for it.
    shifted: bool,
    rank_rule: Rank,
    /// The largest rank to return.
    max_rank: usize,
    /// Calibration weighs the error.
    weighted: bool,
    /// Bytes of measuring the outputs, where that is not of the weighed operator itself.
    measuring: usize,
    /// A matrix of another type goes through a buffer that is counted here.
    converts: bool,
}

/// Scratch of the sketch of a small matrix on two threads. It goes before what is alive later, which exceeds it where that is sixteen times as much.
const SKETCH_BYTES: usize = 40 << 10;

impl Plan {
    pub(super) fn new<T: Scalar>(options: &TruncatedSvd, shape: (usize, usize), dtype: DType) -> Result<Self> {
        let (rows, cols) = shape;
        if rows == 0 || cols == 0 {
            return Err(Error::Empty { shape: vec![rows, cols] });
        }
        let (m, n) = (rows.max(cols), rows.min(cols));
        let rank = options.rank.from_shape(m, n)?;
        let max_rank = match options.max_rank {
            Some(0) => return Err(Error::Rank { rank: 0, max: n }),
            Some(k) => k.min(n),
            None => n,
        };
        let once = matches!(options.method, Method::SinglePass | Method::Nystrom);
        if once && rank.is_none() && options.max_rank.is_none() {
            let why = "is not given, and a single pass that is to reach an energy or a tolerance has to know how much to keep \
                       at most; give one";
            return Err(Error::unsuited("max_rank", why));
        }
        let width = rank.unwrap_or(max_rank).saturating_add(options.oversample).min(n);
        let mut plan = Plan {
            shape,
            method: options.method,
            reason: String::new(),
            rank,
            width,
            candidates: Vec::new(),
            peak_bytes: 0,
            detail: None,
            dtype,
            precision: T::DTYPE,
            power_iterations: options.power_iterations,
            shifted: options.dynamic_shift && options.power_iterations > 0 && rank.is_some(),
            rank_rule: options.rank,
            max_rank,
            weighted: options.weighting.is_active(options.rank),
            measuring: options.weighting.measuring_bytes::<T>(cols, options.rank),
            converts: options.converts,
        };
        let all = [
            (Method::Full, None),
            (Method::Gram, Some(Eigenvectors::Dense)),
            (Method::Gram, Some(Eigenvectors::Iterated)),
            (Method::Randomized, None),
            (Method::Krylov, None),
            // Less accurate than the others: only where one pass is all there is.
            (Method::SinglePass, None),
            (Method::Nystrom, None),
        ];
        let mut candidates = Vec::with_capacity(all.len());
        for (method, detail) in all {
            // Without a rank there is no panel width for subspace iteration; the spectrum has to be seen first.
            if rank.is_none() && detail == Some(Eigenvectors::Iterated) {
                continue;
            }
            let looks_once = matches!(method, Method::SinglePass | Method::Nystrom);
            if looks_once && method != options.method {
                continue;
            }
            if looks_once {
                plan.width = Sizes::new(method, (m, n), rank.unwrap_or(max_rank), options.oversample).range;
            }
            // A rank that the spectrum decides is taken for a quarter of what it can be.
            let width = if looks_once { plan.width } else { width };
            let expected = if rank.is_some() || looks_once { width } else { width.div_ceil(4).max(32).min(width) };
            let (arithmetic, passes) = estimate::<T>(options, m, n, expected, method, detail);
            let seconds = arithmetic.max(passes as f64 * options.pass_seconds);
            let peak_bytes = plan.bytes(method, detail, width, rank.unwrap_or(max_rank), true);
            candidates.push((arithmetic, Candidate { method, detail, seconds, passes, peak_bytes }));
        }
        // Where reading decides and they tie, arithmetic does.
        candidates.sort_by(|(x, a), (y, b)| a.seconds.total_cmp(&b.seconds).then(x.total_cmp(y)));
        plan.candidates = candidates.into_iter().map(|(_, candidate)| candidate).collect();
        // The Gram matrix resolves σ down to √eps σ_1, so that it cannot show a loss near that.
        let out_of_depth = rank.is_none() && plan.goal(1.0).is_below_floor::<T>();
        let allowed = |c: &&Candidate| match options.method {
            Method::Auto if c.method == Method::Gram => !out_of_depth,
            Method::Auto if c.method == Method::Krylov => {
                rank.is_some() && krylov::Blocks::new(width, options.power_iterations, n).is_some()
            }
            Method::Auto => true,
            method => c.method == method,
        };
        if let Some(limit) = options.memory_limit {
            let least = plan.candidates.iter().filter(allowed).map(|c| c.peak_bytes).min().unwrap_or(0);
            if least > limit {
                return Err(Error::Memory { limit, least });
            }
            plan.candidates.retain(|c| c.peak_bytes <= limit);
        }
        let chosen = plan.candidates.iter().find(allowed).expect("each method has a candidate").clone();
        plan.reason = match options.method {
            Method::Auto => {
                let next = plan.candidates.iter().filter(|c| c.method != chosen.method).map(|c| c.seconds).next();
                let margin = next.map_or(1.0, |next| next / chosen.seconds);
                format!("{}; estimated {margin:.1}× faster than the next method", chosen.what())
            }
            _ => format!("{}; as asked", chosen.what()),
        };
        (plan.method, plan.detail, plan.peak_bytes) = (chosen.method, chosen.detail, chosen.peak_bytes);
        Ok(plan)
    }

    /// Peak bytes, the same whatever the values are. `rooted` says that calibration takes the root of its moments.
    fn bytes(&self, method: Method, detail: Option<Eigenvectors>, width: usize, rank: usize, rooted: bool) -> usize {
        let (m, n) = (self.shape.0.max(self.shape.1), self.shape.0.min(self.shape.1));
        let by_rows = self.shape.0 >= self.shape.1;
        let power_iterations = self.power_iterations;
        let (shifted, searched, storage) = (self.shifted, self.rank.is_none(), self.converts.then_some(self.dtype));
        let footprint = Footprint { m, n, width, rank, power_iterations, shifted, by_rows, searched, storage };
        let counted = match self.precision {
            DType::F64 => footprint.peak::<f64>(method, detail),
            _ => footprint.peak::<f32>(method, detail),
        };
        // Columns padded to cache lines, the report, and what sketches take of small matrices, where no later moment is fuller: at most
        // this (`tests/memory.rs`).
        let rest = counted / 256 + (16 << 10);
        let peak = counted
            + match method {
                Method::Full => rest,
                Method::SinglePass | Method::Nystrom => 4 * rest,
                _ => rest + SKETCH_BYTES.saturating_sub(counted / 16),
            };
        if !self.weighted {
            return peak;
        }
        let whitened::Bytes { before, beside } = match self.precision {
            DType::F64 => whitened::bytes::<f64>(self.shape, method, width, rank, rooted),
            _ => whitened::bytes::<f32>(self.shape, method, width, rank, rooted),
        };
        before.max(peak + beside) + self.measuring
    }

    /// Peak bytes of a factorization that ended with this method, panel width and rank.
    pub(super) fn peak_bytes_of(&self, method: Method, width: usize, rank: usize, rooted: bool) -> usize {
        // A fallback is within what its method may take.
        if method != self.method && self.rank.is_some() {
            return self.peak_bytes;
        }
        let after_fallback = if method == self.method { 0 } else { self.peak_bytes };
        self.bytes(method, self.detail, width, rank, rooted).max(after_fallback)
    }

    /// How the Gram route finds its eigenvectors.
    pub(super) fn eigenvectors(&self) -> Option<Eigenvectors> {
        self.detail
    }

    /// What the factors must reach, for an operator of this squared norm.
    pub(super) fn goal(&self, norm_squared: f64) -> Goal {
        Goal::new(self.rank, self.rank_rule, self.max_rank, norm_squared)
    }

    /// Columns of the sketches of one pass over an operator of this shape, which is the plan's or its transpose.
    pub(super) fn sizes(&self, options: &TruncatedSvd, shape: (usize, usize)) -> Sizes {
        Sizes::new(self.method, shape, self.rank.unwrap_or(self.max_rank), options.oversample)
    }

    /// The report of factors of rank k from panels of `width` columns, by the method as planned.
    pub(super) fn report(
        &self,
        options: &TruncatedSvd,
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
            sketch: Some(options.sketch),
            seed: options.seed,
            oversample: width - rank,
            power_iterations: options.power_iterations,
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

    /// Runs the plan, falling back where the result shows that the method was out of its depth.
    pub(super) fn solve<T: Scalar, S: Space<T>>(
        &self,
        options: &TruncatedSvd,
        op: &mut dyn LinearOperator<T, Space = S>,
        goal: &Goal,
        par: Par,
    ) -> Result<Solution<T, S>> {
        let randomized = |op: &mut dyn LinearOperator<T, Space = S>| self.randomized(options, op, goal, false, par);
        match self.method {
            Method::Full => full::solve(op, goal, par),
            Method::Gram => {
                let how = self.detail.expect("the Gram route has a detail");
                // All of σ² is there, so that nothing is missing.
                let width = |squares: &[T]| match self.rank {
                    Some(_) => self.width,
                    None => {
                        let s: Vec<T> = squares.iter().map(|&x| T::from_f64(x.to_f64().max(0.0).sqrt())).collect();
                        (goal.rank_given(&s, 0.0) + options.oversample).min(self.width)
                    }
                };
                let solution = gram::solve(options, op, how, width, goal, par)?;
                self.unless_at_the_floor(options, op, solution, goal, par)
            }
            Method::Krylov if self.rank.is_some() => {
                match krylov::Blocks::new(self.width, options.power_iterations, op.ncols()) {
                    Some(blocks) => {
                        let solution = krylov::solve(options, op, blocks, self.width, goal, par)?;
                        if !krylov::may_lack_copies(blocks, &solution.triplets.s, solution.rank) {
                            return Ok(solution);
                        }
                        drop(solution);
                        let mut next = self.randomized(options, op, goal, true, par)?;
                        let width = blocks.width;
                        next.notes.push(format!(
                            "{width} or more tied values, of which a block holds {width}; took randomized"
                        ));
                        Ok(next)
                    }
                    None => {
                        let mut next = randomized(op)?;
                        next.notes.push("block Krylov would span the whole space; took randomized".to_owned());
                        Ok(next)
                    }
                }
            }
            Method::Randomized | Method::Krylov => randomized(op),
            Method::SinglePass | Method::Nystrom => single_pass::solve(options, op, self, goal, par),
            Method::Auto => unreachable!("a plan names a method"),
        }
    }

    fn randomized<T: Scalar, S: Space<T>>(
        &self,
        options: &TruncatedSvd,
        op: &mut dyn LinearOperator<T, Space = S>,
        goal: &Goal,
        sparing: bool,
        par: Par,
    ) -> Result<Solution<T, S>> {
        match self.rank {
            Some(_) => randomized::solve(options, op, self.width, goal, sparing, par),
            None => blocked::solve(options, op, goal, self.width, par),
        }
    }

    /// What the Gram route found, or what another method does where it could not see enough.
    pub(super) fn unless_at_the_floor<T: Scalar, S: Space<T>>(
        &self,
        options: &TruncatedSvd,
        op: &mut dyn LinearOperator<T, Space = S>,
        solution: Solution<T, S>,
        goal: &Goal,
        par: Par,
    ) -> Result<Solution<T, S>> {
        let Triplets { s, captured, .. } = &solution.triplets;
        let short = solution.width < self.width && !goal.is_reached_by::<T>(*captured);
        if short || gram::reaches_floor(s, solution.rank) && op.norm_squared() > 0.0 {
            let rank = solution.rank;
            drop(solution);
            // Within the memory of this route.
            let mut next = self.randomized(options, op, goal, true, par)?;
            next.notes.push(format!(
                "σ_{rank} is near the rounding of the Gram matrix (√eps σ_1); fell back to {}",
                next.method
            ));
            return Ok(next);
        }
        Ok(solution)
    }
}

impl TruncatedSvd {
    /// The rates that were given, or those of the device.
    pub(super) fn rates_in_use(&self) -> Rates {
        match (self.rates, self.device) {
            (Some(rates), _) => rates,
            (None, Device::Cpu) => Rates::default(),
            (None, Device::Cuda(_)) => Rates::cuda(),
        }
    }
}

/// Seconds and passes of a method: what it does of each kind of work, over the rates.
fn estimate<T: Scalar>(
    options: &TruncatedSvd,
    m: usize,
    n: usize,
    l: usize,
    method: Method,
    detail: Option<Eigenvectors>,
) -> (f64, usize) {
    let rates = options.rates_in_use();
    let q = options.power_iterations;
    let double = size_of::<T>() == 8;
    let slow = if double { 2.0 } else { 1.0 };
    let (mf, nf, lf) = (m as f64, n as f64, l as f64);
    let k = l.saturating_sub(options.oversample).max(1) as f64;
    let flops = |flops: f64| slow * flops / rates.gemm;
    let copy = |elements: f64| slow * elements / rates.copy;
    let product = |rows: f64, cols: f64, l: f64| {
        let elements = slow * rows * cols;
        let from_memory = if elements > rates.cache { elements / rates.memory } else { 0.0 };
        flops(2.0 * rows * cols * l).max(from_memory) + elements / rates.pack
    };
    let sketch = |rows: f64, cols: f64| slow * rows * cols / rates.sketch;
    let orthonormalize = |rows: f64, cols: f64| {
        slow * 4.0 * rows * cols * cols / rates.orthonormalize + rates.cholesky * cols.powi(3) + rates.call
    };
    let eigen = |cols: f64| rates.eigen * cols.powi(3) + rates.tridiagonal * cols * cols;
    // The singular values and vectors of an image of so many rows.
    let decompose = |rows: f64, cols: f64| match double {
        true => orthonormalize(rows, cols) + rates.svd * cols.powi(3) + rates.tridiagonal * cols * cols,
        false => rows * cols * cols / rates.wide + eigen(cols) + rates.call,
    };
    // From a basis of so many columns to the factors.
    let home = |cols: f64| copy((mf + nf) * k) + flops(2.0 * (mf + nf) * cols * k);
    let finish = |rows: f64, cols: f64| decompose(rows, cols) + home(cols);
    let steps = q as f64;
    let blocks = (method == Method::Krylov && options.rank.allowed_loss().is_none())
        .then(|| krylov::Blocks::new(l, q, n))
        .flatten();
    let syrk = slow * mf * nf * nf / rates.syrk + copy(nf * nf);
    // Where panels are as wide as that they are small, and the rates of large ones promise too much: 300 × 280 at l = 210 takes 1.5 times the sum of its
    // parts by products, and `full` takes what is said.
    let crowded = if 2 * l > n { 1.5 } else { 1.0 };
    let (seconds, passes) = match (method, detail) {
        (Method::Full, _) => (copy(mf * nf) + finish(mf, nf), 1),
        (Method::Gram, Some(Eigenvectors::Dense)) => {
            (syrk + eigen(nf) + product(mf, nf, lf) + orthonormalize(nf, lf) + finish(mf, lf), 2)
        }
        (Method::Gram, _) => {
            // One pass of CholeskyQR by a product with the inverse, and the product with G.
            let step = flops(3.0 * nf * lf * lf) + rates.cholesky * lf.powi(3) + product(nf, nf, lf) + 2.0 * rates.call;
            // The sketch is a step of the filter, if the spectrum allows it, which is not known yet.
            let after = if q > 1 { steps } else { steps + 1.0 };
            let iterations = sketch(nf, nf) + after * step;
            // H, F and its decomposition, the directions, U.
            let projection = flops(4.0 * nf * lf * lf + 4.0 * nf * lf * k)
                + product(mf, nf, k)
                + rates.cholesky * lf.powi(3)
                + decompose(nf, lf)
                + copy((mf + nf) * k)
                + 4.0 * rates.call;
            // Panels of more than half of the columns are often filtered anew.
            (crowded * crowded * (syrk + iterations + projection), 2)
        }
        (Method::Krylov, _) if blocks.is_some() => {
            let blocks = blocks.expect("just seen");
            let (count, width, columns) = (blocks.count as f64, blocks.width as f64, blocks.columns() as f64);
            let products = sketch(mf, nf) + (2.0 * count - 1.0) * product(mf, nf, width);
            // Each block twice, and against those before it.
            let against = flops(2.0 * mf * width * width * count * (count - 1.0)) + copy(2.0 * (mf + nf) * columns);
            let orths = (2.0 * count - 1.0) * orthonormalize(mf, width) + 0.5 * count * (count - 1.0) * rates.call;
            (crowded * (products + against + orths + finish(nf, columns)), 2 * blocks.count)
        }
        (Method::SinglePass | Method::Nystrom, _) => {
            let Sizes { range, corange, core } = Sizes::with_range(method, l);
            let sketched = |columns: usize| match options.sketch {
                Sketch::Gaussian => flops(2.0 * mf * nf * columns as f64),
                _ => sketch(mf, nf),
            };
            let (rf, sf) = (range as f64, core.max(corange) as f64);
            let core = if core > 0 { sketched(core) + sketched(core) * core as f64 / nf } else { 0.0 };
            let orths = orthonormalize(mf, rf) + orthonormalize(nf, rf) + 2.0 * orthonormalize(sf, rf);
            (sketched(range) + sketched(corange) + core + orths + finish(rf, rf), 1)
        }
        _ if options.rank.allowed_loss().is_some() => {
            // Every round of every block is made orthogonal to the blocks before it, twice.
            let rounds = steps.max(1.0);
            let products = (2.0 * rounds + 1.0) * product(mf, nf, lf);
            let orths = rounds * (orthonormalize(mf, lf) + flops(4.0 * mf * lf * lf)) + 2.0 * orthonormalize(nf, lf);
            (products + orths + finish(mf, lf), blocked::passes(l, q))
        }
        _ => {
            let products =
                sketch(mf, nf) + (2.0 * steps + 1.0) * product(mf, nf, lf) + (2.0 * steps + 2.0) * rates.call;
            let orths = (steps + 1.0) * orthonormalize(mf, lf) + steps * orthonormalize(nf, lf);
            (crowded * (products + orths + finish(nf, lf)), 2 * q + 2)
        }
    };
    (seconds + slow * mf * nf / rates.scan + rates.call, passes)
}

/// The sizes that memory depends on.
pub(super) struct Footprint {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) width: usize,
    pub(super) rank: usize,
    power_iterations: usize,
    /// The power iterations have a second left panel.
    shifted: bool,
    /// The matrix lies by rows once it stands tall.
    by_rows: bool,
    /// The spectrum decides the rank.
    searched: bool,
    /// What is converted on the way in; none if that is counted elsewhere.
    pub(super) storage: Option<DType>,
}

impl Footprint {
    /// Bytes of U, s and Vᵀ.
    pub(super) fn factors<T: Scalar>(&self) -> usize {
        (self.m + self.n) * self.rank * size_of::<T>()
    }

    /// Bytes of bringing the factors home, beside the panel of the long side: the panel of the short one, or the long factor.
    pub(super) fn home<T: Scalar>(&self, right: usize) -> usize {
        self.n * self.rank * size_of::<T>() + right.max(self.m * self.rank * size_of::<T>())
    }

    /// Bytes of an image of `l` columns, which lies as the matrix does.
    pub(super) fn image<T: Scalar>(&self, l: usize) -> usize {
        if self.by_rows { HostPanel::<T>::bytes_by_rows(self.m, l) } else { HostPanel::<T>::bytes(self.m, l) }
    }

    /// Bytes of a conversion buffer; of what a product takes beside tiles that bring their own.
    pub(super) fn tile<T: Scalar>(&self, pass: Pass) -> usize {
        match (self.storage, pass) {
            (Some(storage), pass) => Dense::<T>::tile_bytes(pass, (self.m, self.n), storage),
            (None, Pass::Product(l)) => Dense::<T>::product_bytes(self.m, l),
            (None, _) => 0,
        }
    }

    /// Bytes alive at the fullest moment.
    fn peak<T: Scalar>(&self, method: Method, detail: Option<Eigenvectors>) -> usize {
        let &Footprint { m, n, width: l, rank: k, .. } = self;
        let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
        let small = |rows: usize, cols: usize| rows * cols * size_of::<T>();
        let out = self.factors::<T>();
        // After the panels are gone: the residual, the probes.
        let certify = out + panel(m, certificate::PROBES) + small(n + k, certificate::PROBES);
        let solve = match (method, krylov::Blocks::new(l, self.power_iterations, n)) {
            (Method::Full, _) => {
                panel(m, n)
                    + self
                        .tile::<T>(Pass::Whole)
                        .max(decompose_bytes::<T>(m, n, false, 0))
                        .max(small(n, n) + self.home::<T>(small(n, n)))
            }
            (Method::Gram, _) => {
                let gram = gram::peak_bytes::<T>(detail.expect("the Gram route has a detail"), self);
                gram.max(self.by_products::<T>(!self.searched))
            }
            (Method::Krylov, Some(krylov::Blocks { count, width: b })) => {
                let scratch = HostPanel::<T>::orthonormalize_scratch(m, b, Par::Seq).unaligned_bytes_required();
                // Each side is put together while the other's blocks are still apart.
                let (left, right) = (panel(m, count * b), panel(n, count * b));
                let after = left.max(right).max(decompose_bytes::<T>(n, count * b, false, 0));
                let home = small(count * b, count * b) + self.home::<T>(right + small(count * b, count * b));
                // With the overlap of two blocks.
                let kept = (left + right + small(b, b) + self.pass::<T>(scratch, b).max(after)).max(left + home);
                // Where it finds ties that a block cannot hold.
                kept.max(self.by_products::<T>(!self.searched))
            }
            (Method::SinglePass | Method::Nystrom, _) => {
                let tile = self.tile::<T>(Pass::Rows);
                return single_pass::peak_bytes::<T>((m, n), Sizes::with_range(method, l), k, tile);
            }
            _ => self.by_products::<T>(false),
        };
        solve.max(certify)
    }

    /// Products with panels of `l` columns between orthonormalizations: a conversion buffer takes the place of their scratch, while other
    /// memory that a product takes is beside it.
    fn pass<T: Scalar>(&self, scratch: usize, l: usize) -> usize {
        // What is written across the lines of the matrix.
        let product = Dense::<T>::product_bytes(if self.by_rows { self.m } else { self.n }, l);
        let tile = self.tile::<T>(Pass::Product(l));
        let direct = self.storage.is_none_or(|storage| storage == T::DTYPE);
        scratch.max(tile + product) + if direct { product.min(scratch) } else { 0 }
    }

    /// The randomized method, in little scratch where the Gram route falls back to it.
    fn by_products<T: Scalar>(&self, sparing: bool) -> usize {
        let &Footprint { m, n, width: l, .. } = self;
        let panel = |rows: usize, cols: usize| HostPanel::<T>::bytes(rows, cols);
        let (small, wide) = (l * l * size_of::<T>(), l * l * size_of::<f64>());
        let scratch = |rows: usize| match sparing {
            true => {
                HostPanel::<T>::orthonormalize_sparingly_scratch(rows, l, false, Par::Seq).unaligned_bytes_required()
            }
            false => HostPanel::<T>::orthonormalize_scratch(rows, l, Par::Seq).unaligned_bytes_required(),
        };
        let scratch = scratch(m).max(scratch(n));
        // A panel, R in two types, and the shift.
        let second = if self.shifted && !sparing { panel(m, l) + 2 * small + wide } else { 0 };
        // A rank that is searched for ends with an image of the long side.
        let searched = if self.searched { decompose_bytes::<T>(m, l, sparing, scratch) } else { 0 };
        let after = decompose_bytes::<T>(n, l, sparing, scratch).max(searched);
        let solved = panel(m, l) + panel(n, l) + (second + self.pass::<T>(scratch, l)).max(after);
        let home = panel(m, l) + small;
        match sparing {
            // The long side is combined in its own memory.
            true => {
                let right = home + self.n * self.rank * size_of::<T>() + panel(n, l) + small;
                solved.max(right).max(panel(m, self.rank) + self.factors::<T>())
            }
            false => solved.max(home + self.home::<T>(panel(n, l) + small)),
        }
    }
}

impl Candidate {
    /// The method in words.
    fn what(&self) -> &'static str {
        match (self.method, self.detail) {
            (Method::Full, _) => "QR and a dense SVD",
            (Method::Gram, Some(Eigenvectors::Dense)) => "Gram matrix of the short side, all eigenvectors",
            (Method::Gram, _) => "Gram matrix of the short side, filtered subspace iteration",
            (Method::Krylov, _) => "block Krylov iteration",
            (Method::SinglePass, _) => "three sketches of one pass",
            (Method::Nystrom, _) => "generalized Nyström, two sketches of one pass",
            _ => "randomized range finder",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, n) = self.shape;
        writeln!(f, "plan for {m} × {n} {}, {}: {}", self.dtype, self.rank_rule, self.method)?;
        writeln!(f, "  {}", self.reason)?;
        match self.rank {
            Some(k) => writeln!(f, "  rank {k}, panels of {} columns", self.width)?,
            None => writeln!(f, "  the rank comes from the spectrum")?,
        }
        writeln!(f, "  {:<12} {:>12} {:>8} {:>12}  how", "candidate", "estimate", "passes", "peak memory")?;
        for c in &self.candidates {
            let mark = if (c.method, c.detail) == (self.method, self.detail) { '*' } else { ' ' };
            let (ms, mib) = (1e3 * c.seconds, c.peak_bytes as f64 / 1048576.0);
            writeln!(f, "{mark} {:<12} {ms:>9.2} ms {:>8} {mib:>8.1} MiB  {}", c.method, c.passes, c.what())?;
        }
        Ok(())
    }
}
