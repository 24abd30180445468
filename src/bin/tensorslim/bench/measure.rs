//! Times and errors of one shape.
//!
//! All that is compared is run in rounds, one call (or one batch of calls, if they are short) of each, every round starting
//! with another one; a ratio is taken within a round and the median over rounds is reported, so that a machine that
//! changes its pace changes all sides of a ratio. Rounds go on until a budget of time is spent.
//!
//! Nothing is timed before it was found right: sketches against their matrix `Ω` in f64 on a few rows, factorizations
//! by not being better than the optimum.

use std::hint::black_box;
use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;
use tensorslim::operator::{HostContext, HostPanel};
use tensorslim::svd::ErrorKind;
use tensorslim::tensor::MatView;
use tensorslim::{AnySketch, DType, Element, Method, Rank, Sketch, SketchOperator, TensorRef, TruncatedSvd};

use super::results::{Case, Errors, Factored, Input, OperatorState, POWERS, SKETCHES, Sketched, Stat, State};
use crate::Failure;

/// How long to measure.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    pub(super) seeds: usize,
    /// Seconds of rounds of the sketches of one shape.
    pub(super) sketch_seconds: f64,
    /// Seconds of rounds of the factorizations of one shape, if every seed and input was had by then.
    pub(super) factor_seconds: f64,
}

/// Fewest and most rounds of sketches.
const SKETCH_ROUNDS: (usize, usize) = (15, 500);
/// Most rounds of factorizations.
const FACTOR_ROUNDS: usize = 60;
/// A batch of calls lasts at least so many seconds.
const BATCH_SECONDS: f64 = 1e-3;

/// A matrix to measure, with the least error of any approximation of the rank.
pub(super) struct Weight<'a> {
    pub(super) name: String,
    pub(super) tensor: TensorRef<'a>,
    pub(super) bytes: &'a [u8],
    pub(super) optimum: f64,
    pub(super) optimum_from: &'static str,
}

/// `k` and `l`: a quarter of the short side, at most 256, and 10 columns more.
pub(super) fn rank(m: usize, n: usize) -> (usize, usize) {
    let k = (m.min(n) / 4).min(256);
    (k, k + 10.min(m.min(n) - k))
}

/// Measures one shape. `weights` share shape and type.
pub(super) fn case(
    name: &str,
    weights: &[Weight<'_>],
    effort: Effort,
    par: Par,
    step: &mut dyn FnMut(&str),
) -> Result<Case, Failure> {
    let first = &weights[0];
    let (m, n) = (first.tensor.shape()[0], first.tensor.shape()[1]);
    let (k, l) = rank(m, n);
    step(&format!("{name}: sketches"));
    let (read, gemm, sketches) = sketches(weights, (n, l), effort, par)?;
    step(&format!("{name}: factorizations"));
    let (factorizations, inputs) = factorizations(weights, k, l - k, effort)?;
    let dtype = first.tensor.dtype().to_string();
    Ok(Case { name: name.to_owned(), m, n, dtype, rank: k, l, read, gemm, sketches, factorizations, inputs })
}

/// One set of operands. Where they lie in memory can make a product a fifth faster or slower for as long as the process
/// lives, so rounds alternate between several sets.
struct Operands<'a> {
    a: MatView<'a>,
    bytes: &'a [u8],
    /// `A` in f32 for the bare product, unless it is that.
    wide: Option<Mat<f32>>,
    omega: Mat<f32>,
    y: HostPanel<f32>,
}

impl<'a> Operands<'a> {
    fn new(weight: &'a Weight<'_>, omega: &Mat<f32>, par: Par) -> Result<Self, Failure> {
        let a = weight.tensor.view()?;
        let widened = || Mat::from_fn(a.nrows(), a.ncols(), |i, j| element(a, i, j) as f32);
        let wide = (a.dtype() != DType::F32).then(widened);
        let y = HostPanel::zeros(a.nrows(), omega.ncols(), HostContext::new(par));
        Ok(Operands { a, bytes: weight.bytes, wide, omega: omega.clone(), y })
    }

    /// The product with Ω given.
    fn multiply(&mut self, par: Par) {
        let a = match (&self.wide, self.a) {
            (Some(wide), _) => wide.as_ref(),
            (None, MatView::F32(a)) => a,
            (None, _) => unreachable!("every other type was widened"),
        };
        matmul(self.y.as_mut(), Accum::Replace, a, self.omega.as_ref(), 1.0, par);
    }
}

/// Seconds of reading A, of the GEMM, and the sketches.
fn sketches(
    weights: &[Weight<'_>],
    (n, l): (usize, usize),
    effort: Effort,
    par: Par,
) -> Result<(Stat, Stat, Vec<Sketched>), Failure> {
    let draw = |sketch, seed| AnySketch::new(sketch, n, l, seed, 0);
    let omega = draw(Sketch::Gaussian, 0)?.to_dense::<f32>();
    let sets = weights.iter().cycle().take(weights.len().max(2));
    let mut sets: Vec<Operands<'_>> = sets.map(|w| Operands::new(w, &omega, par)).collect::<Result<_, _>>()?;
    for sketch in SKETCHES {
        let (operator, set) = (draw(sketch, 0)?, &mut sets[0]);
        apply(&operator, set.a, set.y.as_mut(), par)?;
        check(&operator, set.a, set.y.as_ref())?;
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

    const JOBS: usize = 2 + SKETCHES.len();
    let mut calls = [1; JOBS];
    for (job, calls) in calls.iter_mut().enumerate() {
        call(job, 0, 0)?;
        let once = seconds(|| call(job, 0, 0))?;
        *calls = (BATCH_SECONDS / once).ceil().clamp(1.0, 1000.0) as usize;
    }
    let seeds = effort.seeds;
    let mut times = vec![Vec::new(); JOBS];
    let start = Instant::now();
    for round in 0..SKETCH_ROUNDS.1.max(seeds) {
        if round >= SKETCH_ROUNDS.0.max(seeds) && start.elapsed().as_secs_f64() > effort.sketch_seconds {
            break;
        }
        for job in (0..JOBS).map(|i| (i + round) % JOBS) {
            let (seed, set) = ((round % seeds) as u64, round / seeds % weights.len().max(2));
            let batch = seconds(|| (0..calls[job]).try_for_each(|_| call(job, set, seed)))?;
            times[job].push(batch / calls[job] as f64);
        }
    }
    let ratio = |a: usize, b: usize| stat(seeds, times[a].iter().zip(&times[b]).map(|(a, b)| a / b));
    let sketched = |(i, &sketch): (usize, &Sketch)| {
        let job = i + 2;
        Ok(Sketched {
            sketch,
            seconds: stat(seeds, times[job].iter().copied())?,
            speedup: ratio(2, job)?, // SKETCHES begins with the Gaussian
            over_read: ratio(job, 0)?,
            over_gemm: ratio(job, 1)?,
        })
    };
    let sketches = SKETCHES.iter().enumerate().map(sketched).collect::<Result<_, Failure>>()?;
    Ok((stat(seeds, times[0].iter().copied())?, stat(seeds, times[1].iter().copied())?, sketches))
}

/// `Method::Randomized` at every power, with every sketch, on every weight and seed.
fn factorizations(
    weights: &[Weight<'_>],
    k: usize,
    p: usize,
    effort: Effort,
) -> Result<(Vec<Factored>, Vec<Input>), Failure> {
    let run = |weight: &Weight<'_>, sketch, q, seed| {
        TruncatedSvd::new(Rank::Fixed(k))
            .method(Method::Randomized)
            .sketch(sketch)
            .oversample(p)
            .power_iterations(q)
            .seed(seed)
            .factor::<f32>(weight.tensor.clone())
    };
    for sketch in SKETCHES {
        run(&weights[0], sketch, 0, 0)?;
    }
    let (powers, kinds, seeds) = (POWERS.len(), SKETCHES.len(), effort.seeds);
    let mut times = vec![Vec::new(); powers * kinds];
    let mut errors = vec![Vec::new(); weights.len() * powers * kinds];
    let mut resolved = vec![true; weights.len() * powers * kinds];
    let needed = weights.len() * seeds;
    let start = Instant::now();
    for round in 0..FACTOR_ROUNDS.max(needed) {
        if round >= needed && start.elapsed().as_secs_f64() > effort.factor_seconds {
            break;
        }
        let (seed, input) = (round % seeds, round / seeds % weights.len());
        let weight = &weights[input];
        for power in 0..powers {
            for kind in (0..kinds).map(|i| (i + round) % kinds) {
                let at = power * kinds + kind;
                let start = Instant::now();
                let factors = run(weight, SKETCHES[kind], POWERS[power], seed as u64)?;
                times[at].push(start.elapsed().as_secs_f64());
                if round < needed {
                    let at = input * powers * kinds + at;
                    let (error, exact) =
                        (factors.report().relative_error, factors.report().error_kind == ErrorKind::Exact);
                    // A thousandth: what rounding of A and of the certificate can hide.
                    if exact && error < weight.optimum * (1.0 - 1e-3) {
                        let (name, best) = (&weight.name, weight.optimum);
                        return Err(Failure(format!(
                            "{name}: a relative error of {error} where the optimum is {best}; one of them is wrong"
                        )));
                    }
                    errors[at].push(error);
                    resolved[at] &= exact && weight.optimum > 0.0;
                }
            }
        }
    }

    let mut factored = Vec::new();
    let mut inputs: Vec<Input> = (weights.iter())
        .map(|w| Input { name: w.name.clone(), optimum: w.optimum, optimum_from: w.optimum_from, errors: Vec::new() })
        .collect();
    for (power, &q) in POWERS.iter().enumerate() {
        for (kind, &sketch) in SKETCHES.iter().enumerate() {
            let at = power * kinds + kind;
            let gaussian = &times[power * kinds];
            factored.push(Factored {
                sketch,
                power_iterations: q,
                seconds: stat(seeds, times[at].iter().copied())?,
                speedup: stat(seeds, gaussian.iter().zip(&times[at]).map(|(g, t)| g / t))?,
            });
            for (i, input) in inputs.iter_mut().enumerate() {
                let at = i * powers * kinds + at;
                let over = errors[at].iter().map(|e| e / input.optimum - 1.0);
                input.errors.push(Errors {
                    sketch,
                    power_iterations: q,
                    relative_error: stat(seeds, errors[at].iter().copied())?,
                    over_optimum: if resolved[at] { Stat::of(seeds, over) } else { None },
                });
            }
        }
    }
    Ok((factored, inputs))
}

/// The least relative error at rank `k`, by a full SVD.
pub(super) fn optimum(tensor: &TensorRef<'_>, k: usize) -> Result<f64, Failure> {
    let full = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Full);
    Ok(full.factor::<f64>(tensor.clone())?.report().relative_error)
}

/// Bytes of the operators at these sizes.
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

/// Takes in every byte once, at the speed of the memory that holds them.
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

/// Three rows of `Y` against `A · Ω` in f64. A sum of n products in any order is within `λ √n u Σ|a||ω|` but for a
/// probability of `2 exp(−λ²/2)` (Higham, Mary 2019); λ = 8. The transform's and the entries' own roundings are fewer
/// than n, and doubled for the entries of Ω.
fn check(operator: &AnySketch, a: MatView<'_>, y: MatRef<'_, f32>) -> Result<(), Failure> {
    let (m, n, l) = (a.nrows(), a.ncols(), y.ncols());
    let omega = operator.to_dense::<f64>();
    let lambda = 2.0 * 8.0 * (n as f64).sqrt() * f64::from(f32::EPSILON) / 2.0;
    for i in [0, m / 2, m - 1] {
        let row: Vec<f64> = (0..n).map(|j| element(a, i, j)).collect();
        for t in 0..l {
            let products = || row.iter().enumerate().map(|(j, a)| a * omega[(j, t)]);
            let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
            // Sparse columns of Ω may be empty, transforms add up what then cancels: at least the size of a typical column.
            let norm = row.iter().map(|a| a.abs()).sum::<f64>() / (l as f64).sqrt();
            let got = f64::from(y[(i, t)]);
            if (got - want).abs() > lambda * size.max(norm) {
                return Err(Failure(format!("{operator:?}: Y({i}, {t}) is {got}, by definition {want}; not timed")));
            }
        }
    }
    Ok(())
}
