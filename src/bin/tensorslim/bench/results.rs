//! The results of a run: plain data, serialized as `results.json`.

use serde::{Serialize, Serializer};
use tensorslim::Sketch;

/// The sizes for which the bytes of operators are told, besides those of the shapes.
pub(super) const STATE_SIZES: [(usize, usize); 3] = [(512, 64), (3072, 64), (4096, 64)];

/// The sketches in the order of tables and plots, the reference first.
pub(super) const SKETCHES: [Sketch; 3] = [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign];

/// The numbers of power iterations that are compared.
pub(super) const POWERS: [usize; 3] = [0, 1, 2];

/// Returns the name of a sketch for readers.
pub(super) fn title(sketch: Sketch) -> &'static str {
    match sketch {
        Sketch::Gaussian => "Gaussian",
        Sketch::Srht => "SRHT",
        Sketch::SparseSign => "sparse sign",
        other => other.name(),
    }
}

fn name<S: Serializer>(sketch: &Sketch, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(sketch.name())
}

/// A statistic of a sample over rounds and seeds. The ends are those of the medians of single seeds: they show what a
/// seed changes, not what another process did to one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Stat {
    pub(super) median: f64,
    /// The least median of a seed.
    pub(super) min: f64,
    /// The greatest median of a seed.
    pub(super) max: f64,
    /// The number of rounds of all seeds.
    pub(super) samples: usize,
}

impl Stat {
    /// Computes the statistic, where sample `i` is of seed `i % seeds`. `None` if there are no samples.
    pub(super) fn of(seeds: usize, samples: impl IntoIterator<Item = f64>) -> Option<Stat> {
        let all: Vec<f64> = samples.into_iter().collect();
        let of_seed = |seed: usize| median(all.iter().copied().skip(seed).step_by(seeds));
        let medians: Vec<f64> = (0..seeds).filter_map(of_seed).collect();
        Some(Stat {
            median: median(all.iter().copied())?,
            min: medians.iter().copied().min_by(f64::total_cmp)?,
            max: medians.iter().copied().max_by(f64::total_cmp)?,
            samples: all.len(),
        })
    }
}

/// Returns the middle value, or the mean of the middle two.
fn median(x: impl Iterator<Item = f64>) -> Option<f64> {
    let mut x: Vec<f64> = x.collect();
    x.sort_unstable_by(f64::total_cmp);
    let half = x.len() / 2;
    match x.len() {
        0 => None,
        n if n % 2 == 1 => Some(x[half]),
        _ => Some((x[half - 1] + x[half]) / 2.0),
    }
}

#[derive(Serialize)]
pub(super) struct Suite {
    pub(super) version: &'static str,
    pub(super) command: String,
    /// The date, in UTC.
    pub(super) date: String,
    pub(super) machine: Machine,
    pub(super) settings: Settings,
    /// The wall time of the run.
    pub(super) seconds: f64,
    pub(super) cases: Vec<Case>,
    pub(super) state: Vec<State>,
    pub(super) conclusions: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) target: String,
    pub(super) isa: &'static str,
    pub(super) threads: usize,
}

#[derive(Serialize)]
pub(super) struct Settings {
    pub(super) quick: bool,
    pub(super) seeds: usize,
    /// The arithmetic of sketches and factorizations.
    pub(super) precision: &'static str,
}

/// The measurements of the matrices of one shape.
#[derive(Serialize)]
pub(super) struct Case {
    /// The shape, and the file if there is one.
    pub(super) name: String,
    pub(super) m: usize,
    pub(super) n: usize,
    /// The element type in storage.
    pub(super) dtype: String,
    pub(super) rank: usize,
    /// The number of columns of Ω.
    pub(super) l: usize,
    /// The seconds of reading A once.
    pub(super) read: Stat,
    /// The seconds of `A Ω` by GEMM, with Ω given as a matrix.
    pub(super) gemm: Stat,
    pub(super) sketches: Vec<Sketched>,
    pub(super) factorizations: Vec<Factored>,
    pub(super) inputs: Vec<Input>,
}

/// The time of `Y = A Ω` alone, with Ω drawn anew each time. Ratios are taken within a round.
#[derive(Serialize)]
pub(super) struct Sketched {
    #[serde(serialize_with = "name")]
    pub(super) sketch: Sketch,
    pub(super) seconds: Stat,
    /// The time of the Gaussian over the time of this sketch.
    pub(super) speedup: Stat,
    /// The time of this sketch over that of reading A once.
    pub(super) over_read: Stat,
    /// The time of this sketch over that of the GEMM with Ω given.
    pub(super) over_gemm: Stat,
}

/// The time of a whole factorization, over all inputs of the shape.
#[derive(Serialize)]
pub(super) struct Factored {
    #[serde(serialize_with = "name")]
    pub(super) sketch: Sketch,
    pub(super) power_iterations: usize,
    pub(super) seconds: Stat,
    /// The time with the Gaussian over the time with this sketch, at the same `power_iterations`.
    pub(super) speedup: Stat,
}

/// A matrix, and how near the factorizations came to its best approximation.
#[derive(Serialize)]
pub(super) struct Input {
    pub(super) name: String,
    /// The least relative error of any approximation of this rank, `τ_k / ‖A‖`.
    pub(super) optimum: f64,
    /// The source of the optimum: `construction` or `full-svd`.
    pub(super) optimum_from: &'static str,
    pub(super) errors: Vec<Errors>,
}

#[derive(Serialize)]
pub(super) struct Errors {
    #[serde(serialize_with = "name")]
    pub(super) sketch: Sketch,
    pub(super) power_iterations: usize,
    /// The relative error, `‖A − U diag(s) Vᵀ‖_F / ‖A‖_F`.
    pub(super) relative_error: Stat,
    /// The excess `relative_error / optimum − 1`; null where rounding hides it.
    pub(super) over_optimum: Option<Stat>,
}

/// The bytes of an n×l operator.
#[derive(Serialize)]
pub(super) struct State {
    pub(super) n: usize,
    pub(super) l: usize,
    /// The bytes of the n×l Gaussian matrix in f32.
    pub(super) stored: usize,
    pub(super) operators: Vec<OperatorState>,
}

#[derive(Serialize)]
pub(super) struct OperatorState {
    #[serde(serialize_with = "name")]
    pub(super) sketch: Sketch,
    pub(super) bytes: usize,
    /// The ratio `stored / bytes`.
    pub(super) factor: f64,
}

impl Case {
    pub(super) fn sketched(&self, sketch: Sketch) -> Option<&Sketched> {
        self.sketches.iter().find(|s| s.sketch == sketch)
    }

    pub(super) fn factored(&self, sketch: Sketch, q: usize) -> Option<&Factored> {
        self.factorizations.iter().find(|f| f.sketch == sketch && f.power_iterations == q)
    }
}

impl Input {
    pub(super) fn errors(&self, sketch: Sketch, q: usize) -> Option<&Errors> {
        self.errors.iter().find(|e| e.sketch == sketch && e.power_iterations == q)
    }
}

#[cfg(test)]
mod tests {
    use super::Stat;

    #[test]
    fn stat_over_rounds_and_seeds() {
        let of = |seeds, x: &[f64]| Stat::of(seeds, x.iter().copied());
        assert_eq!(of(3, &[3.0, 1.0, 2.0]), Some(Stat { median: 2.0, min: 1.0, max: 3.0, samples: 3 }));
        assert_eq!(of(1, &[4.0, 1.0]), Some(Stat { median: 2.5, min: 2.5, max: 2.5, samples: 2 }));
        // One bad round of the first seed is not a spread over seeds.
        let x = [1.0, 2.0, 1.1, 2.2, 9.0, 2.1];
        assert_eq!(of(2, &x), Some(Stat { median: 2.05, min: 1.1, max: 2.1, samples: 6 }));
        assert_eq!(of(5, &x[..2]), Some(Stat { median: 1.5, min: 1.0, max: 2.0, samples: 2 }));
        assert_eq!(of(2, &[]), None);
    }
}
