//! Truncated singular value decomposition: the builder, and one file per method.
//!
//! ```text
//!   check, ‖A‖²  ->  plan  ->  basis P and image A P or Aᵀ P  ->  image = Q R,  SVD of R  ->  U, s, Vᵀ  ->  certificate
//!                              [full]  P = I
//!                              [gram]  P = V, from G = AᵀA
//!                        [randomized]  P = Q, from power iterations on A Ω
//!                            [krylov]  P = K, all panels of such an iteration
//! ```
//!
//! Every method ends in the same Rayleigh-Ritz step (`triplets.rs`): once a panel `P` is orthonormal and its image is
//! known, the best approximation of `A` in that subspace is an SVD of the image, and its error is known exactly by a
//! subtraction of norms (`certificate.rs`). Wide matrices are factored as their transpose; U and V then change places.

mod blend;
mod blocked;
mod certificate;
mod full;
mod goal;
mod gram;
mod jacobi;
mod krylov;
mod many;
mod nystrom;
mod plan;
mod randomized;
mod rows;
mod single_pass;
pub(crate) mod small;
mod triplets;
mod whitened;

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicBool};
use std::time::Instant;

use faer::Par;

pub use blend::BlendChoice;
pub use certificate::ErrorKind;
pub use plan::{Candidate, Plan, Rates};
pub use rows::{Checkpoint, READ_PER_STATE, RowsPlan};
pub use single_pass::SinglePass;

use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::factors::{Factors, Report, Slices};
use crate::operator::{
    Dense, HostContext, LinearOperator, Panel, Root, Watch, Workspace, first_not_finite, for_each_line,
};
use crate::qr::{Algorithm, Orthonormalization, column_mut};
use crate::rank::Rank;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Sketch};
use crate::tensor::{DType, Element, Matrix, TensorRef};
use crate::whiten::Whitening;
use certificate::Certificate;
use goal::Goal;
use triplets::Triplets;

/// How the factorization is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Method {
    /// The cheapest of the others that is never less accurate than [`Randomized`](Method::Randomized), by the cost model of [`Plan`].
    #[default]
    Auto,
    /// QR, then a dense SVD of R: the optimum, whatever the spectrum.
    Full,
    /// `G = AᵀA` on the short side, then its dominant eigenvectors, exactly or by subspace iteration. One pass for `G`,
    /// one for `A V`. Singular values under `√eps · σ_1` are out of its reach; when the rank reaches down there, the
    /// factorization falls back to [`Randomized`](Method::Randomized) and the report says so.
    Gram,
    /// Randomized range finder with power iterations (Halko, Martinsson, Tropp 2011), orthonormalized at every product.
    Randomized,
    /// Block Krylov iteration (Musco, Musco 2015): the randomized method with every panel kept, in fewer products. A rank
    /// that the spectrum decides is found by [`Randomized`](Method::Randomized), and so is a basis where as many singular values tie as a block has
    /// columns, which holds no more copies than that.
    Krylov,
    /// Three sketches of one pass (Tropp, Yurtsever, Udell, Cevher 2019), for matrices that can be seen once; see [`SinglePass`].
    /// The rank is fixed or bounded by [`TruncatedSvd::max_rank`]. The sketches are those of the rank, or of the oversampling if that is more; power
    /// iterations have no effect.
    SinglePass,
    /// Generalized Nyström (Nakatsukasa 2020): two sketches of one pass, a third of the memory of [`SinglePass`](Method::SinglePass) or less and a larger
    /// error. The rank is fixed or bounded by [`TruncatedSvd::max_rank`]; power iterations have no effect.
    Nystrom,
}

impl Method {
    /// All methods, in the order of their names in the documentation.
    pub const ALL: [Method; 7] = [
        Method::Auto,
        Method::Full,
        Method::Gram,
        Method::Randomized,
        Method::Krylov,
        Method::SinglePass,
        Method::Nystrom,
    ];

    /// `"auto"`, `"full"`, `"gram"`, `"randomized"`, `"krylov"`, `"single-pass"` or `"nystrom"`.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Auto => "auto",
            Method::Full => "full",
            Method::Gram => "gram",
            Method::Randomized => "randomized",
            Method::Krylov => "krylov",
            Method::SinglePass => "single-pass",
            Method::Nystrom => "nystrom",
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Method {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        (Method::ALL.into_iter().find(|m| m.name() == s))
            .ok_or_else(|| Error::option("method", s, "auto, full, gram, randomized, krylov, single-pass or nystrom"))
    }
}

/// Where the factorization is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// On the threads of the current rayon pool.
    #[default]
    Cpu,
    /// On the CUDA device of this number (feature `cuda`). It is opened once for the process, and closed never.
    Cuda(usize),
}

/// A truncated SVD to be: what rank, by which method, with which random numbers.
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
    rank: Rank,
    method: Method,
    sketch: Sketch,
    oversample: usize,
    power_iterations: usize,
    dynamic_shift: bool,
    seed: u64,
    max_rank: Option<usize>,
    /// None are those of the device.
    rates: Option<Rates>,
    memory_limit: Option<usize>,
    /// What reading the matrix once takes, out of core; 0 in memory.
    pass_seconds: f64,
    weighting: whitened::Weighting,
    device: Device,
    /// The matrix goes through a buffer of converted elements if it must: not where it is read in tiles, which bring their own.
    converts: bool,
}

impl TruncatedSvd {
    /// Defaults: `Method::Auto`, `Sketch::Srht`, 10 columns of oversampling, 2 power iterations, seed 0.
    pub fn new(rank: Rank) -> Self {
        TruncatedSvd {
            rank,
            method: Method::Auto,
            sketch: Sketch::default(),
            oversample: 10,
            power_iterations: 2,
            dynamic_shift: false,
            seed: 0,
            max_rank: None,
            rates: None,
            memory_limit: None,
            pass_seconds: 0.0,
            weighting: whitened::Weighting::default(),
            device: Device::Cpu,
            converts: true,
        }
    }

    /// The same factorization with another rank.
    #[must_use]
    pub fn with_rank(mut self, rank: Rank) -> Self {
        self.rank = rank;
        self
    }

    /// Extra columns `p` of the sketch, `l = k + p` (at most `min(m, n)`).
    #[must_use]
    pub fn oversample(mut self, p: usize) -> Self {
        self.oversample = p;
        self
    }

    /// Power iterations `q`: each costs two products and takes the singular values to a power higher by two.
    #[must_use]
    pub fn power_iterations(mut self, q: usize) -> Self {
        self.power_iterations = q;
        self
    }

    /// Shifts the power iterations of [`Method::Randomized`] (Feng, Yu, Xie 2022): the same products, a better subspace where the spectrum
    /// decays slowly, one more panel of memory. Off by default. Rules that look at the spectrum are not affected.
    #[must_use]
    pub fn dynamic_shift(mut self, on: bool) -> Self {
        self.dynamic_shift = on;
        self
    }

    /// The random matrix Ω.
    #[must_use]
    pub fn sketch(mut self, sketch: Sketch) -> Self {
        self.sketch = sketch;
        self
    }

    /// The seed. One seed, one answer: the same bits for any number of threads.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The largest rank that a rule which looks at the spectrum ([`Rank::Energy`], [`Rank::Tolerance`]) may return. When it
    /// ends the search, the report has a note and the error of what is returned.
    #[must_use]
    pub fn max_rank(mut self, k: usize) -> Self {
        self.max_rank = Some(k);
        self
    }

    /// How to compute it.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Weighs the error by the inputs that the layer will meet: the factors are then the best of their rank for
    /// `‖(W − W') Xᵀ‖_F` over the calibration samples, whatever their number and rank. [`Rank::Energy`] is then the energy of the outputs.
    #[must_use]
    pub fn calibration(mut self, c: &Calibration) -> Self {
        self.weighting.calibration = Some(c.clone());
        self
    }

    /// How much the calibration is trusted, from 0 (not at all: the plain SVD) to 1 (the default): the moments are taken as
    /// `b G + (1 − b) μ I`. See [`choose_blend`](Self::choose_blend).
    #[must_use]
    pub fn blend(mut self, b: f64) -> Self {
        self.weighting.blend = b;
        self
    }

    /// What of the calibration is used.
    #[must_use]
    pub fn whitening(mut self, whitening: Whitening) -> Self {
        self.weighting.whitening = whitening;
        self
    }

    /// The data that [`Rank::Quality`] is measured on; by default the calibration itself, which flatters.
    #[must_use]
    pub fn quality_on(mut self, c: &Calibration) -> Self {
        self.weighting.quality_on = Some(c.clone());
        self
    }

    /// The measured rates that the planner weighs methods by: [`Rates::default`] on the CPU, [`Rates::cuda`] on a GPU, unless they are given.
    #[must_use]
    pub fn rates(mut self, rates: Rates) -> Self {
        self.rates = Some(rates);
        self
    }

    /// Where to compute it: the same algorithms on the CPU or a GPU, whose results agree to rounding. [`Method::Auto`] chooses by the rates of
    /// the device, so that it may choose another one there.
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// What [`factor`](Self::factor) would do with an `m × n` matrix stored as `dtype`, in arithmetic `T`.
    ///
    /// # Errors
    /// Those of the options and the shape.
    pub fn plan<T: Scalar>(&self, shape: (usize, usize), dtype: DType) -> Result<Plan> {
        Plan::new::<T>(&self.clone().power_iterations(self.steps()), shape, dtype)
    }

    /// Power iterations, with the one more that calibration takes: of a loss that is a tenth of the norm, an error in the directions is ten times the
    /// part that it is of the norm.
    pub(crate) fn steps(&self) -> usize {
        self.power_iterations.saturating_add(usize::from(self.weighting.is_active(self.rank)))
    }

    /// Peak bytes that [`factor`](Self::factor) allocates for such a matrix, its result included: never less than what is
    /// used, whatever the values are. A rank that the spectrum decides is taken for the largest possible one; [`Report::peak_bytes`] tells
    /// what it came to. The buffers that the GEMM keeps for each thread, once and for all, are not counted.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
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

    /// As [`factor`](Self::factor), asking `watch` before every product whether to go on.
    ///
    /// # Errors
    /// As [`factor`](Self::factor), and [`Error::Cancelled`].
    pub fn factor_watched<T: Scalar>(&self, w: TensorRef<'_>, watch: &Watch<'_>) -> Result<Factors<T>> {
        self.factor_in_pool(&w, watch, HostContext::new(crate::current_par()))
    }

    /// As [`factor`](Self::factor), with memory that is kept in `workspace` from call to call: a repeated call allocates its result and the
    /// `l × l` matrices of the small problem, and nothing that grows with the matrix. (The one-pass methods hold their
    /// sketches themselves; see [`accumulator`](Self::accumulator).)
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
    /// As [`factor`](Self::factor).
    pub fn factor_with<T: Scalar>(&self, w: TensorRef<'_>, workspace: &mut Workspace) -> Result<Factors<T>> {
        self.factor_in_pool(&w, &Watch::default(), HostContext::within(workspace, crate::current_par()))
    }

    /// Both.
    pub(crate) fn factor_watched_with<T: Scalar>(
        &self,
        w: TensorRef<'_>,
        watch: &Watch<'_>,
        workspace: &mut Workspace,
    ) -> Result<Factors<T>> {
        self.factor_in_pool(&w, watch, HostContext::within(workspace, crate::current_par()))
    }

    fn factor_in_pool<T: Scalar>(
        &self,
        w: &TensorRef<'_>,
        watch: &Watch<'_>,
        context: Arc<HostContext>,
    ) -> Result<Factors<T>> {
        // 1536×384 after a pause, 2 threads: 3.8 ms against 5.2 from outside.
        let par = context.par();
        crate::in_pool(par, || self.factor_in(w, watch, context))
    }

    fn factor_in<T: Scalar>(
        &self,
        w: &TensorRef<'_>,
        watch: &Watch<'_>,
        context: Arc<HostContext>,
    ) -> Result<Factors<T>> {
        let start = Instant::now();
        let view = w.view()?;
        let wide = view.nrows() < view.ncols();
        if let Device::Cuda(ordinal) = self.device {
            return self.factor_on_cuda(w, ordinal, watch, start);
        }
        let plan = self.plan::<T>((view.nrows(), view.ncols()), view.dtype())?;
        let tall = if wide { view.transpose() } else { view };
        let par = context.par();
        let op = Dense::<T>::within(tall, context).map_err(|error| match error {
            // In the caller's rows and columns, not in those of the transpose.
            Error::NotFinite { .. } if wide => first_not_finite(view),
            error => error,
        })?;
        let mut op = op.watched(watch.clone());
        if self.weighting.is_active(self.rank) {
            let context = op.context().clone();
            let root = |l| Ok(Root::new(l, context));
            return whitened::factor(self, op, root, whitened::Weight::Whole(view), par, start);
        }
        self.run(&mut op, plan, par, start)
    }

    #[cfg(feature = "cuda")]
    fn factor_on_cuda<T: Scalar>(
        &self,
        w: &TensorRef<'_>,
        ordinal: usize,
        watch: &Watch<'_>,
        start: Instant,
    ) -> Result<Factors<T>> {
        let device = crate::cuda::Device::shared(ordinal)?;
        let view = w.view()?;
        let tall = if view.nrows() < view.ncols() { view.transpose() } else { view };
        // A plan that is refused is refused before anything is copied.
        self.plan::<T>((view.nrows(), view.ncols()), view.dtype())?;
        let loaded = crate::cuda::DeviceMatrix::new(&device, tall).map(|op| op.watched(watch.clone()));
        self.factor_loaded(w, loaded, start)
    }

    #[cfg(not(feature = "cuda"))]
    fn factor_on_cuda<T: Scalar>(
        &self,
        _: &TensorRef<'_>,
        ordinal: usize,
        _: &Watch<'_>,
        _: Instant,
    ) -> Result<Factors<T>> {
        let detail = format_args!("device {ordinal}: this build has no support for CUDA");
        Err(Error::device(crate::error::DeviceFault::NotBuilt, detail))
    }

    /// The rest of [`factor`](Self::factor), once the matrix (its transpose, if it is wide) is on a device or failed to get there;
    /// `start` is when that began.
    #[cfg(feature = "cuda")]
    pub(crate) fn factor_loaded<T: Scalar>(
        &self,
        w: &TensorRef<'_>,
        loaded: Result<crate::cuda::DeviceMatrix<'_, T>>,
        start: Instant,
    ) -> Result<Factors<T>> {
        let view = w.view()?;
        let plan = self.plan::<T>((view.nrows(), view.ncols()), view.dtype())?;
        let mut op = loaded.map_err(|error| match error {
            // In the caller's rows and columns, not in those of the transpose.
            Error::NotFinite { .. } => first_not_finite(view),
            error => error,
        })?;
        let par = crate::current_par();
        if self.weighting.is_active(self.rank) {
            let device = op.device().clone();
            let root =
                |l: crate::operator::Entries<T>| crate::cuda::DeviceMatrix::from_host(&device, l.dense().as_ref());
            return whitened::factor(self, op, root, whitened::Weight::Whole(view), par, start);
        }
        self.run(&mut op, plan, par, start)
    }

    /// Factors whatever can be multiplied: a tiled, whitened, distributed or device matrix. `op` is tall or square;
    /// [`Report::peak_bytes`] counts panels as if they were in host memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if `op` is wide (hand over its transpose), and as [`factor`](Self::factor).
    pub fn factor_operator<T: Scalar, O: LinearOperator<T>>(&self, op: &mut O) -> Result<Factors<T>> {
        let start = Instant::now();
        let (m, n) = (op.nrows(), op.ncols());
        if m < n {
            let got = format_args!("{m}×{n}; hand over its transpose");
            return Err(Error::shape("factor_operator", "at least as many rows as columns", got));
        }
        if self.weighting.is_active(self.rank) {
            let why = "weighs the columns of a matrix, not an operator; give the operator as a Whitened one";
            return Err(Error::unsuited("calibration", why));
        }
        let plan = self.plan::<T>((m, n), T::DTYPE)?;
        self.run(op, plan, crate::current_par(), start)
    }

    /// Solves, brings the factors home and certifies them. `op` is `scale · A`, or `scale · Aᵀ` when A is wide.
    fn run<T: Scalar, O: LinearOperator<T>>(
        &self,
        op: &mut O,
        plan: Plan,
        par: Par,
        start: Instant,
    ) -> Result<Factors<T>> {
        let goal = plan.goal(op.norm_squared());
        let solution = plan.solve(self, op, &goal, par)?;
        self.finish(op, plan, solution, Some(&goal), par, start)
    }

    /// Brings the factors home and certifies them, against `goal` if it is one for `op`.
    fn finish<T: Scalar, O: LinearOperator<T>>(
        &self,
        op: &mut O,
        plan: Plan,
        solution: Solution<T, O>,
        goal: Option<&Goal>,
        par: Par,
        start: Instant,
    ) -> Result<Factors<T>> {
        let (m, n) = plan.shape;
        let wide = m < n;
        let Solution { triplets, rank: k, width, method, sketch, certificate, mut slices, mut notes } = solution;

        // The short side first, and its panel goes before the long side comes: that is what most memory is needed for.
        let Triplets { mut left, s: mut spectrum, captured, right, .. } = triplets;
        let (mut u, mut vt);
        // Where most matrices never see an image of all l columns.
        let reduce = plan.method == Method::Gram && !gram::is_imaged_early::<T>((m.max(n), m.min(n)), width);
        if wide {
            u = Matrix::zeros(m, k);
            right.bring_home(k, u.as_mut())?;
            drop(right);
            left = if reduce { left.reduced(k)? } else { left };
            vt = Matrix::zeros(k, n);
            left.bring_home(k, vt.as_mut().transpose_mut())?;
        } else {
            vt = Matrix::zeros(k, n);
            right.bring_home(k, vt.as_mut().transpose_mut())?;
            drop(right);
            left = if reduce { left.reduced(k)? } else { left };
            u = Matrix::zeros(m, k);
            left.bring_home(k, u.as_mut())?;
        }
        drop(left); // the certificate's probes take the place of the panels
        let signs = fix_signs(&mut u, &mut vt, par);
        if let Slices::Weighted(weighted) = &mut slices {
            for (j, &sign) in signs.iter().enumerate() {
                column_mut(weighted.turn.as_mut(), j).iter_mut().for_each(|x| *x *= sign);
            }
        }
        let (left, right) =
            if wide { (vt.as_ref().transpose(), u.as_ref()) } else { (u.as_ref(), vt.as_ref().transpose()) };
        let scale = op.scale();
        let certificate = match certificate {
            Some(certificate) => certificate,
            None => certificate::certify(op, left, spectrum.split_at(k), right, captured, self.seed)?,
        };
        if certificate.scale != 1.0 {
            let scale = T::from_f64(certificate.scale);
            spectrum.iter_mut().for_each(|s| *s *= scale);
        }
        notes.extend(goal.and_then(|goal| goal.shortfall(k, certificate.relative_error)));
        notes.extend(beyond_numerical_rank(&spectrum[..k], (m, n)));
        let s = unscale(&spectrum[..k], scale)?;
        let spectrum = spectrum.iter().map(|&s| s.to_f64() / scale).collect();
        let norm = op.norm_squared().sqrt() / scale;
        let report = Report {
            method,
            peak_bytes: plan.peak_bytes_of(method, width, k, true),
            sketch,
            passes: op.passes(),
            notes,
            ..plan.report(self, (k, width), spectrum, norm, &certificate, start.elapsed())
        };
        Ok(Factors::new(u, s, vt, report, slices))
    }
}

impl TruncatedSvd {
    /// The random matrix of a stream. One as wide as it is long is a random square matrix, which may be singular, or nearly; one of normals is as well conditioned
    /// as any.
    fn omega(&self, length: usize, columns: usize, stream: u64) -> Result<AnySketch> {
        let kind = if columns < length { self.sketch } else { Sketch::Gaussian };
        AnySketch::new(kind, length, columns, self.seed, stream)
    }
}

/// Streams of the random numbers of one factorization: operators that share a seed stay independent.
mod stream {
    /// The range finder's Ω.
    pub(super) const RANGE: u64 = 0;
    /// The certificate's probes.
    pub(super) const PROBES: u64 = 1;
    /// The probes that end the search for a rank.
    pub(super) const STOP: u64 = 2;
    /// The Υ of one pass.
    pub(super) const CORANGE: u64 = 3;
    /// Its Φ.
    pub(super) const CORE_LEFT: u64 = 4;
    /// Its Ψ.
    pub(super) const CORE_RIGHT: u64 = 5;
    /// What leads an exhausted block out of the span of the others.
    pub(super) const NOISE: u64 = 6;
    /// The Ω of the first block of that search; the next ones follow.
    pub(super) const BLOCKS: u64 = 1 << 32;
}

/// What a method hands to the driver.
struct Solution<T: Scalar, O: LinearOperator<T>> {
    triplets: Triplets<T, O>,
    /// How many of the triplets are the answer.
    rank: usize,
    /// Columns of the panels.
    width: usize,
    /// The method that gave them, after any fallback.
    method: Method,
    sketch: Option<Sketch>,
    /// The error, if the method has measured it.
    certificate: Option<Certificate>,
    /// What the factors of smaller rank are.
    slices: Slices<T>,
    notes: Vec<String>,
}

/// A note on an orthonormalization that was not routine, for the report.
fn note_orthonormalization(notes: &mut Vec<String>, what: &str, o: &Orthonormalization) {
    if o.algorithm == Algorithm::Householder {
        notes.push(format!("{what}: dependent columns, Householder reflections"));
    }
}

/// A note on singular values that are rounding, if some were asked for: those below `4 √max(m, n) eps σ_1`. (LAPACK's `max(m, n) eps` is a bound; rounding
/// errors do not all point one way.)
fn beyond_numerical_rank<T: Scalar>(s: &[T], (m, n): (usize, usize)) -> Option<String> {
    let noise = 4.0 * (m.max(n) as f64).sqrt() * T::EPSILON * Element::to_f64(s[0]);
    let rank = s.partition_point(|&s| Element::to_f64(s) > noise);
    (rank < s.len()).then(|| format!("the numerical rank is {rank}: what is beyond it is rounding"))
}

/// Makes the entry of largest modulus in each right singular vector positive: the sign that an SVD leaves open is then
/// the same on every machine.
///
/// Returns what the vectors were multiplied by.
pub(crate) fn fix_signs<T: Scalar>(u: &mut Matrix<T>, vt: &mut Matrix<T>, par: Par) -> Vec<T> {
    let (k, n) = (vt.nrows(), vt.ncols());
    let down: Vec<AtomicBool> = (0..k).map(|_| AtomicBool::new(false)).collect();
    for_each_line(vt.as_mut_slice(), n, par, |i, row| {
        if points_down(row) {
            row.iter_mut().for_each(|x| *x = -*x);
            down[i].store(true, atomic::Ordering::Relaxed);
        }
    });
    let signs: Vec<T> = down.into_iter().map(|down| if down.into_inner() { -T::one() } else { T::one() }).collect();
    if signs.iter().any(|&sign| sign != T::one()) {
        for_each_line(u.as_mut_slice(), k, par, |_, row| {
            row.iter_mut().zip(&signs).for_each(|(x, &sign)| *x *= sign);
        });
    }
    signs
}

/// Whether the entry of largest modulus, the first of them, is negative.
fn points_down<T: Scalar>(line: &[T]) -> bool {
    const LANES: usize = 16;
    let (mut most, mut least) = ([T::zeroed(); LANES], [T::zeroed(); LANES]);
    let (body, tail) = line.as_chunks::<LANES>();
    for chunk in body {
        for lane in 0..LANES {
            let x = chunk[lane];
            most[lane] = if x > most[lane] { x } else { most[lane] };
            least[lane] = if x < least[lane] { x } else { least[lane] };
        }
    }
    let most = most.iter().chain(tail).copied().fold(T::zeroed(), |a, x| if x > a { x } else { a });
    let least = least.iter().chain(tail).copied().fold(T::zeroed(), |a, x| if x < a { x } else { a });
    match most.partial_cmp(&-least) {
        Some(Ordering::Greater) => false,
        Some(Ordering::Less) => true,
        _ => line.iter().find(|x| x.abs() == most).is_some_and(|x| *x < T::zeroed()),
    }
}

/// Singular values of `A` from those of `scale · A`. The largest must be a normal number of `T`; smaller ones may round to
/// zero.
fn unscale<T: Scalar>(s: &[T], scale: f64) -> Result<Vec<T>> {
    let largest = s[0].to_f64() / scale;
    if largest > <T as Scalar>::MAX || (largest > 0.0 && largest < T::MIN_POSITIVE) {
        return Err(Error::Range { what: "the largest singular value", value: largest, dtype: T::DTYPE });
    }
    Ok(s.iter().map(|&s| T::from_f64(s.to_f64() / scale)).collect())
}

#[cfg(test)]
mod tests {
    use super::points_down;

    /// Against the first entry of largest modulus, one by one; ties, zeros, and lines that lanes do not fill.
    #[test]
    fn sign_of_the_largest_entry() {
        let by_one = |line: &[f32]| {
            let largest = line.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
            line.iter().find(|x| x.abs() == largest).is_some_and(|x| *x < 0.0)
        };
        for n in [1, 2, 15, 16, 17, 100] {
            for seed in 0..50 {
                // Few values, so that most lines have ties.
                let line: Vec<f32> = (0..n).map(|i| ((i * 7 + seed * 13 + i * i * seed) % 5) as f32 - 2.0).collect();
                assert_eq!(points_down(&line), by_one(&line), "{line:?}");
            }
        }
        assert!(!points_down(&[0.0_f32; 20]));
        assert!(points_down(&[-1.0_f64]));
    }
}
