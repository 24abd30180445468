//! Truncated singular value decomposition: the builder, and one file per method.
//!
//! ```text
//!   check, ‖A‖²  ->  plan  ->  basis P and image A P or Aᵀ P  ->  image = Q R,  SVD of R  ->  U, s, Vᵀ -> certificate
//!                              [full]  P = I
//!                              [gram]  P = V, from G = AᵀA
//!                        [randomized]  P = Q, from power iterations on A Ω
//!                            [krylov]  P = K, all panels of such an iteration
//! ```
//!
//! Every method ends in the same Rayleigh-Ritz step (`triplets.rs`): once a panel `P` is orthonormal and its image is
//! known, the best approximation of `A` in that subspace is an SVD of the image, and its error is known exactly by a
//! subtraction of norms (`certificate.rs`). Wide matrices are factored as their transpose; U and V then change places.

mod accumulator;
mod basis;
mod blend;
mod calibrated;
mod certificate;
mod cost;
mod distributed;
mod finish;
mod footprint;
mod fronts;
mod in_memory;
mod many;
mod methods;
mod on_device;
mod options;
mod plan;
mod quantized;
mod rank_target;
mod rates;
mod rows;
mod shared;
mod solution;
mod stream;
mod task;
mod triplets;
mod two_sided;
mod weighted;
mod weighting;

#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::time::Instant;

pub use accumulator::SinglePass;
pub use basis::Basis;
pub use blend::BlendChoice;
pub use distributed::RankFactors;
pub use options::Device;
pub use plan::{Candidate, Plan};
pub use quantized::Quantized;
#[doc(hidden)]
pub use rates::Rates;
#[doc(hidden)]
pub use rows::READ_PER_STATE;
pub use rows::{Checkpoint, RowsPlan};
pub use shared::Shared;

use crate::calibration::Calibration;
use crate::calibration::Whitening;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::mpi::Communicator;
use crate::operator::{LinearOperator, RowSource, Watch};
use crate::rank::Rank;
use crate::report::Method;
use crate::simd::Scalar;
use crate::sketch::Sketch;
use crate::space::{Host, Space, Workspace};
use crate::tensor::{DType, Matrix, TensorRef};
use finish::run;
use options::Options;
use task::{Residency, Task, looks_once};

/// Configures a truncated SVD and runs it: the rule for the rank, the method, the random numbers, the memory, the
/// device.
///
/// ```
/// use tensorslim::{Rank, Sketch, TensorRef, TruncatedSvd};
///
/// let weights: Vec<f32> = (0..96 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
/// let w = TensorRef::new(&weights, &[96, 64])?;
/// let f = TruncatedSvd::new(Rank::Fixed(2)).sketch(Sketch::Srht).seed(42).factor::<f32>(w)?;
/// assert_eq!((f.u().nrows(), f.s().len(), f.vt().ncols()), (96, 2, 64));
/// assert!(f.report().relative_error < 1e-3); // sin(a + b) has rank 2
/// # Ok::<(), tensorslim::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TruncatedSvd {
    options: Options,
}

impl TruncatedSvd {
    /// Makes a configuration with defaults: `Method::Auto`, `Sketch::Srht`, 10 columns of oversampling, 2 power
    /// iterations, seed 0.
    pub fn new(rank: Rank) -> Self {
        TruncatedSvd { options: Options::new(rank) }
    }

    /// Sets the rule for the rank.
    #[must_use]
    #[doc(hidden)]
    pub fn with_rank(mut self, rank: Rank) -> Self {
        self.options.rank = rank;
        self
    }

    /// Sets the number of extra columns `p` of the sketch: `l = k + p`, at most `min(m, n)`.
    #[must_use]
    pub fn oversample(mut self, p: usize) -> Self {
        self.options.oversample = p;
        self
    }

    /// Sets the number of power iterations `q`. Each costs two products and raises the power of the singular values by
    /// two.
    #[must_use]
    pub fn power_iterations(mut self, q: usize) -> Self {
        self.options.power_iterations = q;
        self
    }

    /// Turns the shift of the power iterations of [`Method::Randomized`] on or off (Feng, Yu, Xie 2022). It keeps the
    /// number of products and finds a better subspace where the spectrum decays slowly, for one more panel of memory.
    /// It is off by default. Rules that look at the spectrum are not affected.
    #[must_use]
    pub fn dynamic_shift(mut self, on: bool) -> Self {
        self.options.dynamic_shift = on;
        self
    }

    /// Asks for the k smallest singular triplets in place of the largest, in nonincreasing order: the minor components
    /// of a weight (MiCA, CorDA). They take [`Method::Full`] and a rank that the shape decides. Values are
    /// right to a few eps of the largest, in the arithmetic: f64 shows what f32 does not. The report's error is that of
    /// their product as an approximation, nearly 1.
    #[must_use]
    pub fn smallest(mut self, on: bool) -> Self {
        self.options.smallest = on;
        self
    }

    /// Sets the kind of the random matrix Ω.
    #[must_use]
    pub fn sketch(mut self, sketch: Sketch) -> Self {
        self.options.sketch = sketch;
        self
    }

    /// Sets whether a subspace is found in the arithmetic of the factors throughout. Without that a device multiplies by
    /// panels, and by a matrix of f32, that are rounded to bf16 (f16 for one of f16) while
    /// [`Method::Randomized`] looks for the subspace of a fixed rank in f32: once on tensor
    /// cores instead of three times, or instead of in f32. The last product, the values and the certificate are those of
    /// the matrix itself in any case. Where `σ_k` is too small beside `σ_1` for a rounded matrix, the subspace is improved
    /// by the matrix itself, and a note says so.
    #[must_use]
    pub fn precise(mut self, precise: bool) -> Self {
        self.options.precise = precise;
        self
    }

    /// Sets the seed. One seed gives the same bits for any number of threads.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Sets the largest rank that a rule which looks at the spectrum ([`Rank::Energy`], [`Rank::Tolerance`]) may
    /// return. When it ends the search, the report has a note and the error of what is returned.
    #[must_use]
    pub fn max_rank(mut self, k: usize) -> Self {
        self.options.max_rank = Some(k);
        self
    }

    /// Sets the method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.options.method = method;
        self
    }

    /// Weights the error by the inputs that the layer will meet. The factors are then the best of their rank for
    /// `‖(W − W') Xᵀ‖_F` over the calibration samples, whatever their number and rank. [`Rank::Energy`] is then the
    /// energy of the outputs.
    #[must_use]
    pub fn calibration(mut self, c: &Calibration) -> Self {
        self.options.weighting.inputs.calibration = Some(c.clone());
        self
    }

    /// Sets how much the calibration is trusted, from 0 (not at all: the plain SVD) to 1 (the default): the moments are
    /// `b G + (1 − b) μ I`. See [`choose_blend`](Self::choose_blend).
    #[must_use]
    pub fn blend(mut self, b: f64) -> Self {
        self.options.weighting.inputs.blend = b;
        self
    }

    /// Sets which part of the calibration weights the error.
    #[must_use]
    pub fn whitening(mut self, whitening: Whitening) -> Self {
        self.options.weighting.inputs.whitening = whitening;
        self
    }

    /// Weights the error by the outputs as well: `c` has the statistics of the gradients of a loss with respect to the
    /// m outputs of the layer, one row per sample, fed to a [`Calibration`] of m features as inputs are. The factors
    /// are then the best of their rank for `‖Rᵀ (W − W') L‖_F`, where `R Rᵀ` are these moments and `L Lᵀ` those of
    /// [`calibration`](Self::calibration) (the identity without one). Neither has to be regular. The error, the energy
    /// and the quality that the report and the rules for the rank speak of are those of this norm.
    ///
    /// With gradients of `v·e` for the model's output e and random v, the moments are the Gauss-Newton metric of the
    /// output: the squared losses of all layers have one unit, and [`allocate`](crate::rank::allocate) may add them.
    /// Source: 2605.15626, 2505.17974.
    #[must_use]
    pub fn output_calibration(mut self, c: &Calibration) -> Self {
        self.options.weighting.outputs.calibration = Some(c.clone());
        self
    }

    /// Sets how much the statistics of the outputs are trusted, from 0 to 1 (the default), as [`blend`](Self::blend)
    /// does for the inputs.
    #[must_use]
    pub fn output_blend(mut self, b: f64) -> Self {
        self.options.weighting.outputs.blend = b;
        self
    }

    /// Sets which part of the statistics of the outputs weights the error, as [`whitening`](Self::whitening) does for
    /// the inputs.
    #[must_use]
    pub fn output_whitening(mut self, whitening: Whitening) -> Self {
        self.options.weighting.outputs.whitening = whitening;
        self
    }

    /// Sets the data that [`Rank::Quality`] is measured on; by default it is the calibration itself, which flatters.
    #[must_use]
    pub fn quality_on(mut self, c: &Calibration) -> Self {
        self.options.weighting.quality_on = Some(c.clone());
        self
    }

    /// Sets the measured rates that the planner weighs methods by. The default is [`Rates::default`] on the CPU,
    /// [`Rates::cuda`] on a GPU.
    #[must_use]
    #[doc(hidden)]
    pub fn rates(mut self, rates: Rates) -> Self {
        self.options.rates = Some(rates);
        self
    }

    /// Sets where to compute: the same algorithms run on the CPU or a GPU, and their results agree to rounding.
    /// [`Method::Auto`] chooses by the rates of the device, so that it may choose another one there.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.options.device = device;
        self
    }

    /// Plans what [`factor`](Self::factor) would do with an `m × n` matrix stored as `dtype`, in arithmetic `T`.
    ///
    /// # Errors
    /// [`Error::Empty`] for a shape without elements, [`Error::Rank`], [`Error::Option`], and [`Error::Memory`] with
    /// the least limit that would do.
    pub fn plan<T: Scalar>(&self, shape: (usize, usize), dtype: DType) -> Result<Plan> {
        Plan::new(Task::new::<T>(&self.options, shape, dtype, Residency::InMemory)?)
    }

    /// Returns the peak bytes that [`factor`](Self::factor) allocates for such a matrix, its result included: never
    /// less than what is used, whatever the values are. A rank that the spectrum decides is taken for the largest
    /// possible one; [`Report::peak_bytes`](crate::Report::peak_bytes) tells what it came to. The buffers that the GEMM
    /// keeps for each thread, once and for all, are not counted.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan).
    pub fn workspace<T: Scalar>(&self, shape: (usize, usize), dtype: DType) -> Result<usize> {
        Ok(self.plan::<T>(shape, dtype)?.peak_bytes)
    }

    /// Factors a matrix (two axes; see [`TensorRef::matricize`]) in arithmetic `T` (f32 or f64) on the threads of the
    /// current rayon pool.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the tensor has two axes, [`Error::NotFinite`], [`Error::Rank`], [`Error::Option`], and
    /// [`Error::Range`] if the largest singular value does not fit `T`; on a GPU also [`Error::Device`].
    pub fn factor<T: Scalar>(&self, w: TensorRef<'_>) -> Result<Factors<T>> {
        self.factor_watched(w, &Watch::default())
    }

    /// Factors as [`factor`](Self::factor) does, and asks `watch` before every product whether to go on.
    ///
    /// # Errors
    /// Those of [`factor`](Self::factor), and [`Error::Cancelled`].
    pub fn factor_watched<T: Scalar>(&self, w: TensorRef<'_>, watch: &Watch<'_>) -> Result<Factors<T>> {
        fronts::factor(&self.options, &w, watch, Host::new(crate::parallel::current_par()))
    }

    /// Factors as [`factor`](Self::factor) does, with memory that is kept in `workspace` from call to call. A repeated
    /// call allocates its result and the `l × l` matrices of the small problem, and nothing that grows with the matrix.
    /// (The one-pass methods hold their sketches themselves; see [`accumulator`](Self::accumulator).)
    ///
    /// ```
    /// use tensorslim::{Rank, TensorRef, TruncatedSvd, Workspace};
    ///
    /// let layers: Vec<Vec<f32>> = (0..3).map(|l| (0..96 * 64).map(|i| ((i + l) as f32 * 0.37).sin()).collect()).collect();
    /// let (svd, mut workspace) = (TruncatedSvd::new(Rank::Fixed(2)), Workspace::new());
    /// for layer in &layers {
    ///     let f = svd.factor_with::<f32>(TensorRef::new(layer, &[96, 64])?, &mut workspace)?;
    ///     assert!(f.report().relative_error < 1e-3);
    /// }
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`factor`](Self::factor).
    pub fn factor_with<T: Scalar>(&self, w: TensorRef<'_>, workspace: &mut Workspace) -> Result<Factors<T>> {
        in_memory::factor_in_pool(
            &self.options,
            &w,
            &Watch::default(),
            Host::within(workspace, crate::parallel::current_par()),
        )
    }

    /// Factors as [`factor_watched`](Self::factor_watched) does, in the memory of `workspace`.
    pub(crate) fn factor_watched_with<T: Scalar>(
        &self,
        w: TensorRef<'_>,
        watch: &Watch<'_>,
        workspace: &mut Workspace,
    ) -> Result<Factors<T>> {
        fronts::factor(&self.options, &w, watch, Host::within(workspace, crate::parallel::current_par()))
    }

    /// Computes the leading k left singular vectors alone: one side of the factors, for those who project (GaLore). For
    /// the right side give the transpose. With `start`, a basis that was good for a matrix near this one (its columns
    /// beyond `l = k + p` are not used), half of the products or fewer are enough; the start stands for two of the power
    /// iterations.
    ///
    /// ```
    /// use tensorslim::{Method, Rank, TensorRef, TruncatedSvd};
    ///
    /// let svd = TruncatedSvd::new(Rank::Fixed(2)).method(Method::Randomized);
    /// let mut gradient: Vec<f32> = (0..96 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    /// let first = svd.basis::<f32>(&TensorRef::new(&gradient, &[96, 64])?, None)?;
    /// gradient[0] += 0.01;
    /// let next = svd.basis(&TensorRef::new(&gradient, &[96, 64])?, Some(&first.vectors))?;
    /// assert!(next.report.passes < first.report.passes && next.report.relative_error < 1e-3);
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`factor`](Self::factor); with a start [`Error::Shape`] unless it has m rows, and [`Error::Option`] if it
    /// is not finite, for a rank that the spectrum decides, another method than the randomized one, a calibration, or a
    /// GPU.
    pub fn basis<T: Scalar>(&self, w: &TensorRef<'_>, start: Option<&Matrix<T>>) -> Result<Basis<T>> {
        let host = Host::new(crate::parallel::current_par());
        let factors = match start {
            None => fronts::factor(&self.options, w, &Watch::default(), host),
            Some(start) => fronts::factor_from(&self.options, w, start, host),
        };
        factors.map(Basis::of)
    }

    /// Factors an operator, which is anything that can be multiplied: a tiled, whitened, distributed or device matrix.
    /// `op` is tall or square; [`Report::peak_bytes`](crate::Report::peak_bytes) counts panels as if they were in host
    /// memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if `op` is wide (hand over its transpose), those of [`factor`](Self::factor), and those of the
    /// operator.
    pub fn factor_operator<T: Scalar, S: Space<T>>(
        &self,
        op: &mut dyn LinearOperator<T, Space = S>,
    ) -> Result<Factors<T>> {
        let start = Instant::now();
        let (m, n) = (op.nrows(), op.ncols());
        if m < n {
            let got = format_args!("{m}×{n}; hand over its transpose");
            return Err(Error::shape("factor_operator", "at least as many rows as columns", got));
        }
        if self.options.is_weighted() {
            let why = "weighs the columns of a matrix, not an operator; give the operator as a Whitened one";
            return Err(Error::unsuited("calibration", why));
        }
        let plan = self.plan::<T>((m, n), T::DTYPE)?;
        run(op, plan, crate::parallel::current_par(), start)
    }

    /// Factors each matrix, in their order, with the same bits as single calls of [`factor`](Self::factor) on any
    /// number of threads. Shapes and element types may differ. A failure is the error of its own matrix alone; the
    /// others are factored.
    ///
    /// Small matrices (up to 2^19 elements) are factored one per thread of the current rayon pool.
    /// [`Report::elapsed`](crate::Report) is then the time on that thread.
    ///
    /// ```
    /// use tensorslim::{Rank, TensorRef, TruncatedSvd};
    ///
    /// let heads: Vec<f32> = (0..8 * 64 * 48).map(|i| (i as f32 * 0.61).sin()).collect();
    /// let heads = heads.chunks(64 * 48).map(|w| TensorRef::new(w, &[64, 48])).collect::<Result<Vec<_>, _>>()?;
    /// for factors in TruncatedSvd::new(Rank::Fixed(2)).factor_many::<f32>(&heads) {
    ///     assert!(factors?.report().relative_error < 1e-3);
    /// }
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    pub fn factor_many<T: Scalar>(&self, matrices: &[TensorRef<'_>]) -> Vec<Result<Factors<T>>> {
        fronts::factor_many(&self.options, matrices)
    }

    /// Factors each of `tensors` on `device`, in order, as [`factor`](Self::factor) does; a failure concerns its own
    /// matrix alone. Two of them are on the device at a time: the next one comes in while this one is factored.
    #[cfg(feature = "cuda")]
    pub fn factor_many_on<T: Scalar>(
        &self,
        device: &Arc<crate::cuda::Device>,
        tensors: &[TensorRef<'_>],
    ) -> Vec<Result<Factors<T>>> {
        on_device::factor_many(&self.options, device, tensors)
    }

    /// Factors a matrix that is in device memory, where it is, and leaves the factors there. Nothing is copied to the
    /// device or from it but small matrices and the singular values; under a calibration the factors cross once each way.
    /// The matrix itself is copied only where it has another element type than `T` (halves go with f32), or where its
    /// squares would leave the range of `T`.
    ///
    /// All of it is enqueued behind what the caller's stream has so far, and that stream waits for it:
    /// [`DeviceTensor::from_raw`](crate::cuda::DeviceTensor::from_raw).
    ///
    /// # Errors
    /// Those of [`factor`](Self::factor).
    #[cfg(feature = "cuda")]
    pub fn factor_device<T: Scalar>(&self, w: &crate::cuda::DeviceTensor<'_>) -> Result<crate::cuda::DeviceFactors<T>> {
        on_device::factor_device(&self.options, w)
    }

    /// Sets the most bytes that a factorization may allocate. A method that needs more is not taken; if none is left,
    /// the error names the least limit that would do. In [`factor`](Self::factor) the matrix itself, which the caller
    /// holds, does not count; in [`factor_rows`](Self::factor_rows) the read buffers do.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.options.memory_limit = Some(bytes);
        self
    }

    /// Plans what [`factor_rows`](Self::factor_rows) would do.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan), and [`Error::Memory`] with the least limit that would do.
    pub fn plan_rows<T: Scalar>(&self, source: &dyn RowSource) -> Result<RowsPlan> {
        rows::plan::<T>(&self.options, source).map(|(plan, ..)| plan)
    }

    /// Factors a matrix that is read in blocks of rows, in arithmetic `T`, on the threads of the current rayon pool and
    /// one more that reads. Every read of the source counts in [`Report::passes`](crate::Report::passes).
    ///
    /// # Errors
    /// Those of [`factor`](Self::factor) and [`plan_rows`](Self::plan_rows); any error that the source returns;
    /// [`Error::Cancelled`] if `watch` says so.
    pub fn factor_rows<T: Scalar>(&self, source: &mut dyn RowSource, watch: &Watch<'_>) -> Result<Factors<T>> {
        fronts::factor_rows(&self.options, source, watch)
    }

    /// Factors as [`factor_rows`](Self::factor_rows) does; a method of a single pass keeps its state in `checkpoint` on
    /// the way and resumes from what is there. A state that is damaged, or of other options, is ignored and the pass
    /// starts anew. The other methods start anew in any case.
    ///
    /// States are saved between blocks, so that a run that resumes under the same memory limit is fed the same blocks
    /// and ends in the same bits as one that went through. They are saved after every [`READ_PER_STATE`] times their
    /// own size, and so cost a small share of the reading; and when `watch` says to stop.
    ///
    /// # Errors
    /// Those of [`factor_rows`](Self::factor_rows), and any error that [`Checkpoint::save`] returns.
    pub fn factor_rows_resumable<T: Scalar>(
        &self,
        source: &mut dyn RowSource,
        watch: &Watch<'_>,
        checkpoint: &dyn Checkpoint,
    ) -> Result<Factors<T>> {
        fronts::factor_resumable(&self.options, source, watch, checkpoint)
    }

    /// Factors a matrix on all ranks of `comm`, each of which reads its own rows of `source` (its columns, if the matrix
    /// is wide), and ends with these rows of U (these columns of Vᵀ) and with all of s and Vᵀ (of U). All ranks call it
    /// with the same options and the same matrix, in files or generators of their own. The factors have the same bits
    /// for any number of ranks of one kind of CPU.
    ///
    /// A [memory limit](Self::memory_limit) is that of a rank: its part of the matrix is held where that keeps the limit,
    /// and read again in every pass otherwise. A limit that is not enough for that is refused.
    ///
    /// ```
    /// use tensorslim::{Rank, TensorRef, TruncatedSvd, mpi::Alone, operator::Watch};
    ///
    /// let a: Vec<f32> = (0..300 * 40).map(|i| (i as f32 * 0.37).sin()).collect();
    /// let mut w = TensorRef::new(&a, &[300, 40])?; // a file that all ranks see, as a rule
    /// let svd = TruncatedSvd::new(Rank::Fixed(2));
    /// let part = svd.factor_distributed::<f32>(&Alone, &mut w, &Watch::default())?;
    /// assert_eq!(part.own, 0..300);
    /// assert_eq!(part.factors.u().nrows(), part.own.len());
    /// let whole = part.gather(&Alone)?.expect("this is rank 0");
    /// assert!(whole.report().relative_error < 1e-3);
    /// # Ok::<(), tensorslim::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`factor`](Self::factor) and of the source, as [`Error::Remote`] with the rank that met it: one error,
    /// the same on all ranks.
    pub fn factor_distributed<T: Scalar>(
        &self,
        comm: &dyn Communicator,
        source: &mut dyn RowSource,
        watch: &Watch<'_>,
    ) -> Result<RankFactors<T>> {
        fronts::factor_distributed(&self.options, comm, source, watch)
    }

    /// Makes an empty state for [`Method::SinglePass`] or [`Method::Nystrom`] that is fed the rows of an `m × n`
    /// matrix, in any blocks of any storage type, in any order, by any number of states that are merged.
    ///
    /// The rank must be known from the shape, or bounded by [`max_rank`](Self::max_rank).
    ///
    /// # Errors
    /// [`Error::Empty`] for a shape without elements, [`Error::Rank`], [`Error::Option`] for another method or a rank
    /// that is not bounded, and [`Error::Memory`].
    pub fn accumulator<T: Scalar>(&self, shape: (usize, usize)) -> Result<SinglePass<T>> {
        if !looks_once(self.options.method) {
            return Err(Error::option("method", self.options.method, "single-pass or nystrom: the others look again"));
        }
        SinglePass::new(self.plan::<T>(shape, T::DTYPE)?)
    }

    /// Returns the bytes that [`choose_blend`](Self::choose_blend) takes for an `m × n` weight, beside the weight, the
    /// folds and the factorizations (whose [`plan`](Self::plan) is that under a calibration), of which the largest rank
    /// is k: those that it holds during a factorization, and those that it takes at other times.
    #[doc(hidden)]
    pub fn blend_bytes<T: Scalar>(shape: (usize, usize), storage: DType, k: usize) -> (usize, usize) {
        blend::bytes::<T>(shape, storage, k)
    }

    /// Chooses, of [`BLENDS`](crate::calibration::BLENDS), the blend whose factors have the least output error on
    /// calibration that they have not seen: each of `folds` in turn is kept aside (see [`Calibration::folds`]). It
    /// costs a factorization for each fold and candidate.
    ///
    /// # Errors
    /// [`Error::Option`] for fewer than two folds or a rank that depends on the inputs, and those of
    /// [`factor`](Self::factor).
    pub fn choose_blend<T: Scalar>(&self, w: &TensorRef<'_>, folds: &[Calibration]) -> Result<BlendChoice> {
        fronts::choose_blend::<T>(&self.options, w, folds)
    }
}
