//! Measures the times and errors of one shape.
//!
//! All that is compared runs in rounds, one call (or one batch of calls, if they are short) of each, and every round
//! starts with another one. A ratio is taken within a round and the median over rounds is reported, so that a machine
//! that changes its pace changes all sides of a ratio.
//!
//! A round cannot cancel effects that last: another process on one of two cores slows a product on both of them and not
//! a read, and the places of operands in memory can make a product a fifth faster for as long as they lie there. So the
//! rounds of a shape are spread over [`SWEEPS`] sweeps over all shapes, each with matrices made anew.
//!
//! Nothing is timed before it was found right: sketches against their matrix `Ω` in f64 on a few rows, factorizations
//! by not being better than the optimum.

use std::hint::black_box;
use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;
use tensorslim::ErrorKind;
use tensorslim::space::{Host, HostPanel};
use tensorslim::tensor::MatView;
use tensorslim::{AnySketch, DType, Element, Method, Rank, Report, Sketch, SketchOperator, TensorRef, TruncatedSvd};

use super::results::{Case, Errors, Factored, Input, OperatorState, POWERS, SKETCHES, Sketched, Stat, State};
use crate::failure::Failure;

/// The time that measuring may take.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// The seconds of rounds of the sketches of one shape in one sweep.
    pub(super) sketch_seconds: f64,
    /// The seconds of rounds of the factorizations of one shape in one sweep.
    pub(super) factor_seconds: f64,
}

/// The number of sweeps over all shapes.
pub(super) const SWEEPS: usize = 8;
/// The fewest and the most rounds of sketches in a sweep.
const SKETCH_ROUNDS: (usize, usize) = (4, 120);
/// The most rounds of factorizations in a sweep.
const FACTOR_ROUNDS: usize = 15;
/// The least seconds that a batch of calls lasts.
const BATCH_SECONDS: f64 = 1e-3;
/// The number of things timed in a round of sketches: reading A, the GEMM, and the sketches.
const JOBS: usize = 2 + SKETCHES.len();

/// A matrix to measure, with the least error of any approximation of the rank.
pub(super) struct Weight<'a> {
    pub(super) name: String,
    pub(super) tensor: TensorRef<'a>,
    pub(super) bytes: &'a [u8],
    pub(super) optimum: f64,
    pub(super) optimum_from: &'static str,
}

/// Returns `k` and `l`: a quarter of the short side, at most 256, and 10 columns more.
pub(super) fn rank(m: usize, n: usize) -> (usize, usize) {
    let k = (m.min(n) / 4).min(256);
    (k, k + 10.min(m.min(n) - k))
}

/// One shape while it is measured.
pub(super) struct Measured {
    name: String,
    shape: [usize; 2],
    dtype: DType,
    seeds: usize,
    /// The times of each job, one for each round; round `i` is of seed `i % seeds`.
    sketches: Vec<Vec<f64>>,
    /// The times of each power and sketch, one for each round.
    factorizations: Vec<Vec<f64>>,
    inputs: Vec<Measurements>,
}

/// The errors of one matrix.
struct Measurements {
    name: String,
    optimum: f64,
    optimum_from: &'static str,
    /// The errors of each power and sketch, one for each seed.
    errors: Vec<Vec<f64>>,
    /// Whether each error is more than rounding.
    resolved: Vec<bool>,
}

impl Measured {
    /// Starts without measurements, for these matrices of one shape and type.
    pub(super) fn new(name: &str, weights: &[Weight<'_>], seeds: usize) -> Self {
        let runs = POWERS.len() * SKETCHES.len();
        let input = |w: &Weight<'_>| Measurements {
            name: w.name.clone(),
            optimum: w.optimum,
            optimum_from: w.optimum_from,
            errors: vec![Vec::new(); runs],
            resolved: vec![w.optimum > 0.0; runs],
        };
        let tensor = &weights[0].tensor;
        Measured {
            name: name.to_owned(),
            shape: [tensor.shape()[0], tensor.shape()[1]],
            dtype: tensor.dtype(),
            seeds,
            sketches: vec![Vec::new(); JOBS],
            factorizations: vec![Vec::new(); runs],
            inputs: weights.iter().map(input).collect(),
        }
    }

    /// Measures some more rounds. In the `last` sweep there are as many as every seed of every input still needs.
    pub(super) fn sweep(
        &mut self,
        weights: &[Weight<'_>],
        effort: Effort,
        par: Par,
        last: bool,
    ) -> Result<(), Failure> {
        self.time_sketches(weights, effort.sketch_seconds, par)?;
        self.time_factorizations(weights, effort.factor_seconds, last)
    }

    /// Times each kind of sketch on each weight, for `budget` seconds in all.
    fn time_sketches(&mut self, weights: &[Weight<'_>], budget: f64, par: Par) -> Result<(), Failure> {
        let [m, n] = self.shape;
        let (_, l) = rank(m, n);
        let draw = |sketch, seed| AnySketch::new(sketch, n, l, seed, 0);
        let omega = draw(Sketch::Gaussian, 0)?.to_dense::<f32>();
        let mut sets: Vec<Operands<'_>> =
            weights.iter().map(|w| Operands::new(w, &omega, par)).collect::<Result<_, _>>()?;
        if self.sketches[0].is_empty() {
            for sketch in SKETCHES {
                let (operator, set) = (draw(sketch, 0)?, &mut sets[0]);
                apply(&operator, set.a, set.y.as_mut(), par)?;
                check(&operator, set.a, set.y.as_ref())?;
            }
        }
        let mut call = |job: usize, set: usize, seed: u64| -> Result<(), Failure> {
            let set = &mut sets[set];
            match job {
                0 => _ = black_box(read(set.bytes, par)),
                1 => set.multiply(par),
                _ => apply(&draw(SKETCHES[job - 2], seed)?, set.a, set.y.as_mut(), par)?,
            }
            Ok(())
        };

        let mut calls = [1; JOBS];
        for (job, calls) in calls.iter_mut().enumerate() {
            call(job, 0, 0)?;
            let once = seconds(|| call(job, 0, 0))?;
            *calls = (BATCH_SECONDS / once).ceil().clamp(1.0, 1000.0) as usize;
        }
        let start = Instant::now();
        for done in 0..SKETCH_ROUNDS.1 {
            if done >= SKETCH_ROUNDS.0 && start.elapsed().as_secs_f64() > budget {
                break;
            }
            let round = self.sketches[0].len();
            let (seed, set) = ((round % self.seeds) as u64, round / self.seeds % weights.len());
            for job in (0..JOBS).map(|i| (i + round) % JOBS) {
                let batch = seconds(|| (0..calls[job]).try_for_each(|_| call(job, set, seed)))?;
                self.sketches[job].push(batch / calls[job] as f64);
            }
        }
        Ok(())
    }

    /// Times `Method::Randomized` at every power, with every sketch, on every weight and seed.
    fn time_factorizations(&mut self, weights: &[Weight<'_>], budget: f64, last: bool) -> Result<(), Failure> {
        let (k, l) = rank(self.shape[0], self.shape[1]);
        let run = |weight: &Weight<'_>, sketch, q, seed| {
            TruncatedSvd::new(Rank::Fixed(k))
                .method(Method::Randomized)
                .sketch(sketch)
                .oversample(l - k)
                .power_iterations(q)
                .seed(seed)
                .factor::<f32>(weight.tensor.clone())
        };
        for sketch in SKETCHES {
            run(&weights[0], sketch, 0, 0)?;
        }
        let (kinds, needed) = (SKETCHES.len(), weights.len() * self.seeds);
        let (start, before) = (Instant::now(), self.factorizations[0].len());
        loop {
            let round = self.factorizations[0].len();
            let spent = round >= before + FACTOR_ROUNDS || start.elapsed().as_secs_f64() > budget;
            if round > before && spent && !(last && round < needed) {
                return Ok(());
            }
            let (seed, input) = (round % self.seeds, round / self.seeds % weights.len());
            for (power, &q) in POWERS.iter().enumerate() {
                for kind in (0..kinds).map(|i| (i + round) % kinds) {
                    let at = power * kinds + kind;
                    let start = Instant::now();
                    let factors = run(&weights[input], SKETCHES[kind], q, seed as u64)?;
                    self.factorizations[at].push(start.elapsed().as_secs_f64());
                    if round < needed {
                        self.inputs[input].note(at, factors.report())?;
                    }
                }
            }
        }
    }

    /// Returns the case of all that was measured.
    pub(super) fn finish(self) -> Result<Case, Failure> {
        let seeds = self.seeds;
        let seconds = |times: &[f64]| stat(seeds, times.iter().copied());
        let ratio = |a: &[f64], b: &[f64]| stat(seeds, a.iter().zip(b).map(|(a, b)| a / b));
        let (read, gemm, times) = (&self.sketches[0], &self.sketches[1], &self.sketches[2..]);
        let sketched = |(&sketch, time): (&Sketch, &Vec<f64>)| {
            Ok(Sketched {
                sketch,
                seconds: seconds(time)?,
                speedup: ratio(&times[0], time)?, // SKETCHES begins with the Gaussian
                over_read: ratio(time, read)?,
                over_gemm: ratio(time, gemm)?,
            })
        };
        let sketches = SKETCHES.iter().zip(times).map(sketched).collect::<Result<_, Failure>>()?;
        let runs = || POWERS.iter().flat_map(|&q| SKETCHES.map(|sketch| (q, sketch))).enumerate();
        let factored = |(at, (q, sketch)): (usize, (usize, Sketch))| {
            let (gaussian, time) = (&self.factorizations[at - at % SKETCHES.len()], &self.factorizations[at]);
            Ok(Factored { sketch, power_iterations: q, seconds: seconds(time)?, speedup: ratio(gaussian, time)? })
        };
        let factorizations = runs().map(factored).collect::<Result<_, Failure>>()?;
        let input = |input: &Measurements| {
            let errors = |(at, (q, sketch)): (usize, (usize, Sketch))| {
                let over = input.errors[at].iter().map(|e| e / input.optimum - 1.0);
                Ok(Errors {
                    sketch,
                    power_iterations: q,
                    relative_error: seconds(&input.errors[at])?,
                    over_optimum: if input.resolved[at] { Stat::of(seeds, over) } else { None },
                })
            };
            Ok(Input {
                name: input.name.clone(),
                optimum: input.optimum,
                optimum_from: input.optimum_from,
                errors: runs().map(errors).collect::<Result<_, Failure>>()?,
            })
        };
        let inputs = self.inputs.iter().map(input).collect::<Result<_, Failure>>()?;
        let [m, n] = self.shape;
        let (k, l) = rank(m, n);
        let (read, gemm, dtype) = (seconds(read)?, seconds(gemm)?, self.dtype.to_string());
        Ok(Case { name: self.name.clone(), m, n, dtype, rank: k, l, read, gemm, sketches, factorizations, inputs })
    }
}

impl Measurements {
    /// Records the error of one run, or fails if it cannot be right.
    fn note(&mut self, at: usize, report: &Report) -> Result<(), Failure> {
        let (error, exact) = (report.relative_error, report.error_kind == ErrorKind::Exact);
        // The margin of a thousandth is for the rounding of A and of the certificate.
        if exact && error < self.optimum * (1.0 - 1e-3) {
            let (name, best) = (&self.name, self.optimum);
            return Err(Failure(format!(
                "{name}: a relative error of {error} where the optimum is {best}; one of them is wrong"
            )));
        }
        self.errors[at].push(error);
        self.resolved[at] &= exact;
        Ok(())
    }
}

/// The operands of the rounds of one matrix.
struct Operands<'a> {
    a: MatView<'a>,
    bytes: &'a [u8],
    /// The matrix `A` in f32 for the bare product, unless it has that type.
    wide: Option<Mat<f32>>,
    omega: Mat<f32>,
    y: HostPanel<f32>,
}

impl<'a> Operands<'a> {
    fn new(weight: &'a Weight<'_>, omega: &Mat<f32>, par: Par) -> Result<Self, Failure> {
        let a = weight.tensor.view()?;
        let widened = || Mat::from_fn(a.nrows(), a.ncols(), |i, j| element(a, i, j) as f32);
        let wide = (a.dtype() != DType::F32).then(widened);
        let y = HostPanel::zeros(a.nrows(), omega.ncols(), &Host::new(par));
        Ok(Operands { a, bytes: weight.bytes, wide, omega: omega.clone(), y })
    }

    /// Computes the product with Ω given.
    fn multiply(&mut self, par: Par) {
        let a = match (&self.wide, self.a) {
            (Some(wide), _) => wide.as_ref(),
            (None, MatView::F32(a)) => a,
            (None, _) => unreachable!("every other type was widened"),
        };
        matmul(self.y.as_mut(), Accum::Replace, a, self.omega.as_ref(), 1.0, par);
    }
}

/// Computes the least relative error at rank `k`, by a full SVD.
pub(super) fn optimum(tensor: &TensorRef<'_>, k: usize) -> tensorslim::Result<f64> {
    let full = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Full);
    Ok(full.factor::<f64>(tensor.clone())?.report().relative_error)
}

/// Returns the bytes of the operators at these sizes.
pub(super) fn state(sizes: &[(usize, usize)]) -> Result<Vec<State>, Failure> {
    let at = |&(n, l): &(usize, usize)| {
        let stored = n * l * size_of::<f32>();
        let operator = |&sketch: &Sketch| {
            let bytes = AnySketch::new(sketch, n, l, 0, 0)?.state_bytes();
            Ok(OperatorState { sketch, bytes, factor: stored as f64 / bytes as f64 })
        };
        Ok(State { n, l, stored, operators: SKETCHES.iter().map(operator).collect::<Result<_, Failure>>()? })
    };
    sizes.iter().map(at).collect()
}

fn stat(seeds: usize, samples: impl IntoIterator<Item = f64>) -> Result<Stat, Failure> {
    Stat::of(seeds, samples).ok_or_else(|| Failure("no round was measured".to_owned()))
}

fn seconds<R>(f: impl FnOnce() -> Result<R, Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Reads every byte once, at the speed of the memory that holds them.
fn read(bytes: &[u8], par: Par) -> u64 {
    let fold = |x: &[u64]| {
        pulp::Arch::new().dispatch(|| {
            let mut sums = [0u64; 64];
            let (lines, rest) = x.as_chunks::<64>();
            for line in lines {
                sums.iter_mut().zip(line).for_each(|(s, x)| *s ^= x);
            }
            sums.iter().chain(rest).fold(0, |s, x| s ^ x)
        })
    };
    let (_, words, _) = bytemuck::pod_align_to::<u8, u64>(bytes);
    match par {
        Par::Seq => fold(words),
        _ => words.par_chunks(1 << 16).map(fold).reduce(|| 0, |a, b| a ^ b),
    }
}

fn apply(s: &AnySketch, a: MatView<'_>, y: MatMut<'_, f32>, par: Par) -> tensorslim::Result<()> {
    match a {
        MatView::F16(a) => s.apply(a, y, par),
        MatView::BF16(a) => s.apply(a, y, par),
        MatView::F32(a) => s.apply(a, y, par),
        MatView::F64(a) => s.apply(a, y, par),
    }
}

fn element(a: MatView<'_>, i: usize, j: usize) -> f64 {
    match a {
        MatView::F16(a) => a[(i, j)].to_f64(),
        MatView::BF16(a) => a[(i, j)].to_f64(),
        MatView::F32(a) => a[(i, j)].to_f64(),
        MatView::F64(a) => a[(i, j)],
    }
}

/// Compares three rows of `Y` with `A · Ω` in f64. A sum of n products in any order is within `λ √n u Σ|a||ω|` but for
/// a probability of `2 exp(−λ²/2)` (Higham, Mary 2019); λ = 8. The roundings of the transform and of the entries are
/// fewer than n, and are doubled for the entries of Ω.
fn check(operator: &AnySketch, a: MatView<'_>, y: MatRef<'_, f32>) -> Result<(), Failure> {
    let (m, n, l) = (a.nrows(), a.ncols(), y.ncols());
    let omega = operator.to_dense::<f64>();
    let lambda = 2.0 * 8.0 * (n as f64).sqrt() * f64::from(f32::EPSILON) / 2.0;
    for i in [0, m / 2, m - 1] {
        let row: Vec<f64> = (0..n).map(|j| element(a, i, j)).collect();
        for t in 0..l {
            let products = || row.iter().enumerate().map(|(j, a)| a * omega[(j, t)]);
            let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
            // Sparse columns of Ω may be empty, and transforms add up what then cancels: the norm is at least that of a
            // typical column.
            let norm = row.iter().map(|a| a.abs()).sum::<f64>() / (l as f64).sqrt();
            let got = f64::from(y[(i, t)]);
            if (got - want).abs() > lambda * size.max(norm) {
                return Err(Failure(format!("{operator:?}: Y({i}, {t}) is {got}, by definition {want}; not timed")));
            }
        }
    }
    Ok(())
}
