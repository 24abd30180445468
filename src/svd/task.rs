//! The task: the options resolved once for one shape, element type and arithmetic. It is the only form of the options
//! that methods, planner and drivers read.

use super::options::Options;
use super::rank_target::RankTarget;
use super::rates::Rates;
use crate::error::{Error, Result};
use crate::rank::Rank;
use crate::report::Method;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Sketch};
use crate::tensor::DType;

/// The place of the matrix while it is factored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Residency {
    /// The matrix is in memory. Another element type than the arithmetic goes through a buffer of converted elements.
    InMemory,
    /// The matrix is read in tiles, which bring their buffers with them.
    InTiles {
        /// The seconds that reading the matrix once takes.
        pass_seconds: f64,
    },
}

/// One factorization: the options for a matrix of this shape, type and arithmetic.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Task {
    /// Rows and columns, as the caller has them.
    pub(super) shape: (usize, usize),
    /// The element type of the matrix.
    pub(super) dtype: DType,
    /// The arithmetic.
    pub(super) precision: DType,
    pub(super) residency: Residency,
    /// The method that was asked for, or that the task asks for.
    pub(super) method: Method,
    /// The rule that gives the rank.
    pub(super) rule: Rank,
    /// The rank, where the shape decides it.
    pub(super) rank: Option<usize>,
    /// The largest rank to return.
    pub(super) max_rank: usize,
    /// Columns of the panels, `l = min(k + p, min(m, n))`; the most there can be where the spectrum decides the rank.
    pub(super) width: usize,
    pub(super) oversample: usize,
    /// The power iterations that are done: those that were asked for, and one more under calibration. If a tenth of the
    /// norm is lost, an error in the directions is ten times the part of the loss that it is of the norm.
    pub(super) power_iterations: usize,
    /// The power iterations that were asked for.
    pub(super) asked_iterations: usize,
    pub(super) dynamic_shift: bool,
    /// Whether the smallest triplets are asked for.
    pub(super) smallest: bool,
    pub(super) sketch: Sketch,
    pub(super) seed: u64,
    pub(super) rates: Rates,
    pub(super) memory_limit: Option<usize>,
    /// Whether calibration weights the error.
    pub(super) weighted: bool,
    /// Whether statistics of the outputs are among the weights.
    pub(super) two_sided: bool,
    /// The bytes of measuring the outputs, where that is not done on the weighted operator itself.
    pub(super) measuring: usize,
}

impl Task {
    /// Resolves `options` for a matrix of this shape and element type.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Rank`], and [`Error::Option`] if a method of a single pass cannot know how much to
    /// keep.
    pub(super) fn new<T: Scalar>(
        options: &Options,
        shape: (usize, usize),
        dtype: DType,
        residency: Residency,
    ) -> Result<Self> {
        Task::of_rank::<T>(options, options.rank, shape, dtype, residency)
    }

    /// Resolves `options` with another rule for the rank, as the search for a rank by its quality tries them.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub(super) fn of_rank<T: Scalar>(
        options: &Options,
        rule: Rank,
        shape: (usize, usize),
        dtype: DType,
        residency: Residency,
    ) -> Result<Self> {
        let (rows, cols) = shape;
        if rows == 0 || cols == 0 {
            return Err(Error::Empty { shape: vec![rows, cols] });
        }
        if rule.counts_values() && options.weighting.is_active(rule) {
            let why = "counts values of the weight, and a calibration changes them; give another rule";
            return Err(Error::unsuited("rank", why));
        }
        let by_full = options.smallest || rule == Rank::Numerical;
        if by_full && !matches!(options.method, Method::Auto | Method::Full) {
            let want = "full or auto: the others do not resolve the smallest singular values";
            return Err(Error::option("method", options.method, want));
        }
        if options.smallest && (rule.looks_at_spectrum() || options.weighting.is_active(rule)) {
            let why = "asks for the smallest triplets: give their number, and no calibration";
            return Err(Error::unsuited("smallest", why));
        }
        let (m, n) = (rows.max(cols), rows.min(cols));
        let rank = rule.from_shape(m, n)?;
        let max_rank = match options.max_rank {
            Some(0) => return Err(Error::Rank { rank: 0, max: n }),
            Some(k) => k.min(n),
            None => n,
        };
        if looks_once(options.method) && rank.is_none() && options.max_rank.is_none() {
            let why = "is not given, and a single pass that is to reach an energy or a tolerance has to know how much to keep \
                       at most; give one";
            return Err(Error::unsuited("max_rank", why));
        }
        Ok(Task {
            shape,
            dtype,
            precision: T::DTYPE,
            residency,
            method: if by_full { Method::Full } else { options.method },
            rule,
            rank,
            max_rank,
            width: rank.unwrap_or(max_rank).saturating_add(options.oversample).min(n),
            oversample: options.oversample,
            power_iterations: options.power_iterations.saturating_add(usize::from(options.is_weighted())),
            asked_iterations: options.power_iterations,
            dynamic_shift: options.dynamic_shift,
            smallest: options.smallest,
            sketch: options.sketch,
            seed: options.seed,
            rates: options.rates_in_use(),
            memory_limit: options.memory_limit,
            weighted: options.weighting.is_active(rule),
            two_sided: options.weighting.is_two_sided(),
            measuring: options.weighting.measuring_bytes::<T>(cols, rule),
        })
    }

    /// Returns the same task with another number of power iterations.
    pub(super) fn with_power_iterations(&self, q: usize) -> Self {
        Task { power_iterations: q, ..self.clone() }
    }

    /// Returns the rows and columns of the matrix once it stands tall, `m >= n`.
    pub(super) fn tall(&self) -> (usize, usize) {
        (self.shape.0.max(self.shape.1), self.shape.0.min(self.shape.1))
    }

    /// Returns the rank, or the largest that the spectrum may ask for.
    pub(super) fn largest_rank(&self) -> usize {
        self.rank.unwrap_or(self.max_rank)
    }

    /// Returns what the factors must reach, for an operator that stands for `scale · A` and has this squared norm.
    pub(super) fn target(&self, norm_squared: f64, scale: f64) -> RankTarget {
        RankTarget::new((self.rank, self.rule), self.max_rank, self.shape, norm_squared, scale)
    }

    /// Tells whether power iterations have a shift, and a panel for it.
    pub(super) fn is_shifted(&self) -> bool {
        self.dynamic_shift && self.power_iterations > 0 && self.rank.is_some()
    }

    /// Tells whether the error that is asked for is so small that a subtraction of norms cannot show what a subspace
    /// misses.
    pub(super) fn is_below_floor(&self) -> bool {
        let target = self.target(1.0, 1.0);
        self.rank.is_none()
            && match self.precision {
                DType::F64 => target.is_below_floor::<f64>(),
                _ => target.is_below_floor::<f32>(),
            }
    }

    /// Makes the `length × columns` random matrix of a stream. One as wide as it is long is a random square matrix,
    /// which may be singular or nearly so, unless it is made of normals, which are as well conditioned as any.
    pub(super) fn omega(&self, length: usize, columns: usize, stream: u64) -> Result<AnySketch> {
        let kind = if columns < length { self.sketch } else { Sketch::Gaussian };
        AnySketch::new(kind, length, columns, self.seed, stream)
    }
}

/// Tells whether a method sees the matrix once.
pub(super) fn looks_once(method: Method) -> bool {
    matches!(method, Method::SinglePass | Method::Nystrom)
}
