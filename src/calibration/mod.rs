//! Calibration: statistics of the inputs of a layer, in `O(n²)` memory whatever the number of samples.
//!
//! The loss of a compressed layer on samples `X` (rows) depends on them through their second moments alone:
//!
//! ```text
//!   ‖(W − W') Xᵀ‖_F² = ‖(W − W') L‖_F²         for any L with  L Lᵀ = G = XᵀX
//!
//!   update   x ──check, per-feature sums──> rows wait (f64) ──block full──> Gram    G += Xᵢᵀ Xᵢ    SYRK, n² per row
//!                                                                           Factor  R <- qr([R; Xᵢ])    2 n² and more
//!   merge    sums and G add up;  R <- qr([R₁; R₂])
//! ```
//!
//! * [`Form::Gram`] holds the lower triangle of G, in f64. Blocks are multiplied in f64, or, with
//!   [`Accumulation::F32`], in f32, where columns are scaled by powers of two if f32 has no room for the products, and
//!   added up in f64. The error of an entry is then a few `√block · 2^-25` of `√(G_ii G_jj)`, and below 1e-6 of `‖G‖_F`
//!   (tests).
//! * [`Form::Factor`] holds the triangular factor of X itself (Householder, `RᵀR = G`) at some four times the work: the
//!   condition number is not squared, and directions a millionth of the largest keep their digits.
//!
//! Rows wait until a block is full, so that the bits do not depend on how the rows were cut into updates, nor on
//! threads. Merging rounds, in whatever order.
//!
//! **Range.** Everything but the largest moduli is held of `2^-e x` in place of x, so that neither squares nor their
//! sums leave the range of f64. The exponent e is 0 for largest moduli from `2^-300` to `2^490` and otherwise a
//! multiple of 64 near the logarithm of the largest modulus: a function of that alone. Where larger samples arrive,
//! what is held is multiplied by a power of two; what then falls to zero is negligible beside them.

mod bytes;
mod whitening;

#[doc(hidden)]
pub use whitening::BLENDS;
pub use whitening::Whitening;
pub(crate) use whitening::{Moments, UnsampledWeight, cholesky_bytes, equivalent_samples};

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard};

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::{Error, Result};
use crate::linalg::{mirror, symmetric_product};
use crate::operator::Triangle;
use crate::parallel::{self, lock};
use crate::qr::householder;
use crate::simd::convert::convert;
use crate::tensor::{DType, Element, MatView, Matrix, TensorRef, with_view};

/// The matrix that is kept of the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Form {
    /// The Gram matrix `G = XᵀX`.
    #[default]
    Gram,
    /// The factor R of `X = Q R`: twice the digits for small directions, at some four times the work.
    Factor,
}

/// The arithmetic of a block of the Gram matrix; blocks are added up in f64 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Accumulation {
    /// Blocks are multiplied in f64. The sums are correct to a few `2^-53`.
    #[default]
    F64,
    /// Blocks are multiplied in f32, about twice as fast. The sums are correct to 1e-6 of the norm.
    F32,
}

/// The treatment of a sample with a NaN or an infinity in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NonFinite {
    /// The whole update is refused with [`Error::NotFinite`] and changes nothing.
    #[default]
    Refuse,
    /// The sample is left out and counted as skipped.
    Skip,
}

/// The way in which a [`Calibration`] accumulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CalibrationOptions {
    /// The matrix that is kept.
    pub form: Form,
    /// The arithmetic of a block; the factor is always computed in f64.
    pub accumulation: Accumulation,
    /// The treatment of samples that are not finite.
    pub non_finite: NonFinite,
}

/// Sizes of blocks and tasks.
struct Params {
    /// Elements of a block of rows that wait, in f64.
    block_elements: usize,
    /// Elements of a block of rows in f32, whose sum into G in f64 costs memory traffic.
    fast_block_elements: usize,
    /// The fewest rows of a block: fewer would read and write all of G for too little work.
    least_rows: usize,
    /// The most rows of a block: the error of an f32 block grows with their square root.
    most_rows: usize,
    /// Rows of a block of the factor, in multiples of n: more cost memory, fewer repeat the elimination of R.
    factor_rows: usize,
    /// Columns of G that an f32 product fills at a time.
    panel: usize,
    /// Samples that a task converts.
    rows: usize,
    /// The exponent e of the range `2^-e..2^e` of largest moduli within which columns are multiplied in f32 as they
    /// are.
    safe_exponent: i32,
    /// Elements that a task checks.
    check: usize,
}

/// The sizes that the bench `whiten` found fastest (`benches/NOTES.md`).
const PARAMS: Params = Params {
    block_elements: 1 << 21,
    fast_block_elements: 1 << 22,
    least_rows: 64,
    most_rows: 4096,
    factor_rows: 2,
    panel: 512,
    rows: 32,
    safe_exponent: 30,
    check: 1 << 16,
};

/// The logarithms (base 2) of largest moduli that need no exponent: squares are normal numbers, and [`MOST_SAMPLES`] of
/// them have a finite sum.
const REGULAR: std::ops::Range<i32> = -300..490;

/// The step of exponents, which is more than the digits of f64. What a change of the exponent rounds, as a subnormal
/// number, the next change takes to zero, so that no sample is rounded twice.
const EXPONENT_STEP: i32 = 64;

/// The largest exponent, up to which `2^±e` is a normal number.
const MOST_EXPONENT: i32 = 960;

/// The most samples of statistics, so that a sum of squares below `2^980` is finite.
const MOST_SAMPLES: u64 = 1 << 43;

/// Returns the exponent of samples with this largest modulus.
fn exponent_of(largest: f64) -> i32 {
    let exponent = if largest > 0.0 { largest.log2().floor() as i32 } else { 0 };
    if REGULAR.contains(&exponent) {
        return 0;
    }
    (exponent.div_euclid(EXPONENT_STEP) * EXPONENT_STEP).clamp(-MOST_EXPONENT, MOST_EXPONENT)
}

/// Multiplies numbers by `2^exponent`. A product in the range of normal numbers is exact.
fn shift<'a>(numbers: impl IntoIterator<Item = &'a mut f64>, exponent: i32) {
    let first = exponent.clamp(-MOST_EXPONENT, MOST_EXPONENT);
    let (first, second) = (2f64.powi(first), 2f64.powi(exponent - first));
    numbers.into_iter().for_each(|x| *x = *x * first * second);
}

/// Statistics of a layer's inputs: fed in blocks of samples, merged in any grouping, written and read as bytes.
///
/// ```
/// use tensorslim::{Calibration, Rank, TensorRef, TruncatedSvd};
///
/// let x: Vec<f32> = (0..200 * 48).map(|i| (i as f32 * 0.71).sin()).collect();
/// let mut c = Calibration::new(48)?;
/// for block in x.chunks(50 * 48) {
///     c.update(&TensorRef::new(block, &[50, 48])?)?;
/// }
/// assert_eq!((c.samples(), c.dead().count()), (200, 0));
/// assert_eq!(Calibration::from_bytes(&c.to_bytes())?, c);
///
/// let w: Vec<f32> = (0..64 * 48).map(|i| (i as f32 * 0.37).cos()).collect();
/// let f = TruncatedSvd::new(Rank::Fixed(4)).calibration(&c).factor::<f32>(TensorRef::new(&w, &[64, 48])?)?;
/// assert!(f.report().activation.is_some());
/// # Ok::<(), tensorslim::Error>(())
/// ```
///
/// Cloning is cheap: the matrix is shared until one of the two is updated. The root that a factorization needs (n³/3
/// operations in f64) is kept, so that the next weight with the same inputs (query, key and value; gate and up) does
/// not compute it again.
#[derive(Debug, Clone)]
pub struct Calibration {
    options: CalibrationOptions,
    samples: u64,
    skipped: u64,
    /// The exponent of the statistics, which are held of `2^-exponent x`; see [`exponent_of`].
    exponent: i32,
    /// The sums `Σ x` and `Σ x²` of each feature.
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// The largest modulus, `max |x|`, of each feature, without the exponent.
    largest: Vec<f64>,
    /// The lower triangle of G, or R, of all samples but the waiting ones; zeros in the other triangle.
    matrix: Arc<Mat<f64>>,
    /// Rows of samples, one after the other; shared with clones, which every factorization takes.
    waiting: Arc<Vec<f64>>,
    /// The matrices that were made of the samples, shared with clones.
    derived: Arc<Mutex<Derived>>,
}

/// The matrices that factorizations ask for, kept until the next sample.
#[derive(Debug, Default)]
struct Derived {
    /// The matrix with the waiting rows in it.
    settled: Option<Arc<Mat<f64>>>,
    /// The latest root that was made of it.
    root: Option<CachedRoot>,
}

/// A root `L`, with the trust in the samples and the shift that it was made for.
#[derive(Debug, Clone)]
pub(crate) struct CachedRoot {
    pub(crate) trust: f64,
    pub(crate) shift: f64,
    pub(crate) l: Arc<Triangle>,
    pub(crate) notes: Vec<String>,
}

impl PartialEq for Calibration {
    /// Compares the bits of the statistics, whatever part of the samples is still waiting.
    fn eq(&self, other: &Self) -> bool {
        self.options == other.options
            && (self.samples, self.skipped, self.exponent) == (other.samples, other.skipped, other.exponent)
            && (&self.sums, &self.squares, &self.largest) == (&other.sums, &other.squares, &other.largest)
            && self.matrix() == other.matrix()
    }
}

impl Calibration {
    /// Makes statistics for a layer of `n` inputs: Gram matrix in f64, samples that are not finite refused.
    ///
    /// # Errors
    /// [`Error::Empty`] if `n = 0`, [`Error::TooLarge`] if the system does not give [`bytes_for`](Self::bytes_for)
    /// bytes.
    pub fn new(n: usize) -> Result<Self> {
        Calibration::with(n, CalibrationOptions::default())
    }

    /// Makes statistics for a layer of `n` inputs, with options.
    ///
    /// # Errors
    /// [`Error::Empty`] if `n = 0`, [`Error::TooLarge`] if the system does not give [`bytes_for`](Self::bytes_for)
    /// bytes, [`Error::Option`] for a factor accumulated in f32.
    pub fn with(n: usize, options: CalibrationOptions) -> Result<Self> {
        if n == 0 {
            return Err(Error::Empty { shape: vec![n, n] });
        }
        if options.form == Form::Factor && options.accumulation == Accumulation::F32 {
            return Err(Error::option("accumulation", "f32", "f64 for a factor, or the Gram form"));
        }
        Calibration::empty(n, options, Calibration::bytes_for(n, options))
    }

    /// Makes statistics of no samples, if the system has that many bytes.
    fn empty(n: usize, options: CalibrationOptions, bytes: Option<usize>) -> Result<Self> {
        // The bytes are asked for in one piece and given back, because an allocation that fails later would end the
        // program.
        if bytes.is_none_or(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
            return Err(Error::TooLarge { shape: vec![n, n] });
        }
        Ok(Calibration {
            options,
            samples: 0,
            skipped: 0,
            exponent: 0,
            sums: vec![0.0; n],
            squares: vec![0.0; n],
            largest: vec![0.0; n],
            matrix: Arc::new(Mat::zeros(n, n)),
            waiting: Arc::default(),
            derived: Arc::default(),
        })
    }

    /// Returns the bytes that statistics of `n` features take at most while they are fed: the matrix, the rows that
    /// wait, and the work on a block of them. `None` if that does not fit the address space. [`settled`](Self::settle)
    /// statistics hold `8 (n² + 3 n)` bytes.
    #[doc(hidden)]
    pub fn bytes_for(n: usize, options: CalibrationOptions) -> Option<usize> {
        let rows = block_rows(n, options)?;
        let (matrix, waiting) = (n.checked_mul(n)?.checked_mul(8)?, n.checked_mul(rows)?.checked_mul(8)?);
        let block = match (options.form, options.accumulation) {
            (Form::Gram, Accumulation::F64) => 0,
            // These are the samples in f32, and a panel of their Gram matrix.
            (Form::Gram, Accumulation::F32) => (waiting / 2).checked_add(n.checked_mul(4 * PARAMS.panel.min(n))?)?,
            // These are R and the rows, with what a QR takes beside them.
            (Form::Factor, _) => matrix.checked_add(waiting)?.checked_add(matrix / 2)?,
        };
        let totals = n.checked_mul(8 * 3 * (CHECKS_AT_ONCE + 3))?;
        let all = matrix.checked_add(waiting)?.checked_add(block)?.checked_add(totals)?;
        Some(all).filter(|&all| isize::try_from(all).is_ok())
    }

    /// Divides the rows of `x` into `count` parts of consecutive samples, for
    /// [`choose_blend`](crate::TruncatedSvd::choose_blend): parts differ by one sample at most, and none is empty.
    ///
    /// # Errors
    /// [`Error::Option`] for fewer than two parts, [`Error::Shape`] for fewer than two samples, and those of
    /// [`with`](Self::with) and [`update`](Self::update).
    #[doc(hidden)]
    pub fn folds(x: &TensorRef<'_>, count: usize, options: CalibrationOptions) -> Result<Vec<Self>> {
        let view = x.view()?;
        let (rows, n) = (view.nrows(), view.ncols());
        if count < 2 {
            return Err(Error::option("count", count, "two parts at least"));
        }
        if rows < 2 {
            return Err(Error::shape("Calibration::folds", "two samples at least", rows));
        }
        let count = count.min(rows);
        (0..count)
            .map(|i| {
                let (first, end) = (i * rows / count, (i + 1) * rows / count);
                let mut fold = Calibration::with(n, options)?;
                fold.take(view.subrows(first, end - first)).map_err(|error| match error {
                    Error::NotFinite { row, col, value } => Error::NotFinite { row: first + row, col, value },
                    error => error,
                })?;
                Ok(fold)
            })
            .collect()
    }

    /// Returns the number of features, `n`.
    pub fn features(&self) -> usize {
        self.sums.len()
    }

    /// Returns the options.
    pub fn options(&self) -> CalibrationOptions {
        self.options
    }

    /// Returns the number of samples seen, without those skipped.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Returns the number of samples that were left out because they were not finite.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Returns the mean of each feature; zeros before the first sample.
    pub fn means(&self) -> Vec<f64> {
        self.in_units(self.per_sample(&self.sums))
    }

    /// Returns the scale of each feature, `√mean x²`; zeros before the first sample.
    #[doc(hidden)]
    pub fn scales(&self) -> Vec<f64> {
        self.in_units(self.per_sample(&self.squares).into_iter().map(f64::sqrt).collect())
    }

    /// Returns the largest modulus of each feature.
    #[doc(hidden)]
    pub fn largest(&self) -> &[f64] {
        &self.largest
    }

    /// Returns the features that were zero in every sample.
    pub fn dead(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.features()).filter(|&j| self.largest[j] == 0.0)
    }

    fn per_sample(&self, totals: &[f64]) -> Vec<f64> {
        totals.iter().map(|total| total / (self.samples.max(1) as f64)).collect()
    }

    /// Converts what is held of `2^-exponent x` to what it is of x.
    fn in_units(&self, mut held: Vec<f64>) -> Vec<f64> {
        shift(&mut held, self.exponent);
        held
    }

    /// Returns the exponent of two that the samples are divided by, so that their squares have room. It is 0 where the
    /// largest modulus is between `2^-300` and `2^490`. [`gram`](Self::gram) is `4^-exponent` times the Gram matrix.
    #[doc(hidden)]
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// Returns `Σ x²` of each feature, times `4^-exponent`: the diagonal of [`gram`](Self::gram).
    pub(crate) fn squares(&self) -> &[f64] {
        &self.squares
    }

    /// Adds samples, the rows of `x` (any number × n), of any element type, strides and finite values, on the threads
    /// of the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has two axes and n columns, [`Error::NotFinite`] with the position in `x` if samples
    /// that are not finite are refused, [`Error::Option`] for more than `2^43` samples in all. After an error nothing
    /// has changed.
    pub fn update(&mut self, x: &TensorRef<'_>) -> Result<()> {
        self.take(x.view()?)
    }

    /// Checks the samples in the rows of `x` and adds them, and updates what is known of each column.
    fn take(&mut self, x: MatView<'_>) -> Result<()> {
        let (n, par) = (self.features(), crate::parallel::current_par());
        if x.ncols() != n {
            return Err(Error::shape("Calibration::update", format_args!("samples of {n} features"), x.ncols()));
        }
        let mut found = with_view!(x, a => check(a, self.exponent, par));
        if let (NonFinite::Refuse, Some(&row)) = (self.options.non_finite, found.bad.first()) {
            let (col, value) = with_view!(x, a => {
                let bad = (0..n).map(|j| (j, a[(row, j)].to_f64())).find(|(_, value)| !value.is_finite());
                bad.expect("the check found one in this row")
            });
            return Err(Error::NotFinite { row, col, value });
        }
        (self.samples, self.skipped) =
            self.counts_with((x.nrows() - found.bad.len()) as u64, found.bad.len() as u64)?;
        self.derived = Arc::default();
        let exponent = exponent_of(maximum(&self.largest).max(maximum(&found.largest)));
        if exponent != self.exponent {
            self.rescale(exponent);
            found = with_view!(x, a => check(a, exponent, par));
        }
        add(&mut self.sums, &found.sums);
        add(&mut self.squares, &found.squares);
        self.largest.iter_mut().zip(&found.largest).for_each(|(a, b)| *a = a.max(*b));

        let good: Cow<'_, [usize]> = {
            let mut bad = found.bad.iter().peekable();
            (0..x.nrows()).filter(|i| bad.next_if(|b| *b == i).is_none()).collect::<Vec<_>>().into()
        };
        let mut good = &good[..];
        let mut fast = Fast::default();
        let scale = 2f64.powi(-exponent);
        while !good.is_empty() {
            let (now, later) = good.split_at(good.len().min(self.block_rows() - self.waiting.len() / n));
            if now.len() == self.block_rows() && self.is_fast() && x.dtype() != DType::F64 && exponent == 0 {
                // This is a whole block of samples that f32 holds, which need not wait in f64.
                with_view!(x, a => fast.add_gram(Arc::make_mut(&mut self.matrix), a, now, par));
                good = later;
                continue;
            }
            let old = self.waiting.len();
            let waiting = Arc::make_mut(&mut self.waiting);
            waiting.resize(old + now.len() * n, 0.0);
            let rows = waiting[old..].chunks_mut(n).zip(now).collect::<Vec<_>>();
            with_view!(x, a => parallel::for_each_of(par, rows, |(dst, &i)| copy_row(a, i, dst, scale)));
            if self.waiting.len() == self.block_rows() * n {
                self.flush(par);
            }
            good = later;
        }
        Ok(())
    }

    /// Returns the numbers of samples and skipped samples with these added to those that were seen.
    fn counts_with(&self, samples: u64, skipped: u64) -> Result<(u64, u64)> {
        let total = |a: u64, b: u64| a.checked_add(b).filter(|&total| total <= MOST_SAMPLES);
        let counts = total(self.samples, samples).zip(total(self.skipped, skipped));
        counts.ok_or_else(|| {
            let count = u128::from(self.samples.max(self.skipped)) + u128::from(samples.max(skipped));
            Error::option("samples", count, "at most 2^43 samples to one set of statistics")
        })
    }

    /// Changes the exponent: everything is held of `2^-exponent x` from now on.
    fn rescale(&mut self, exponent: i32) {
        let by = self.exponent - exponent;
        self.exponent = exponent;
        if by == 0 || maximum(&self.largest) == 0.0 {
            return;
        }
        shift(&mut self.sums, by);
        shift(&mut self.squares, 2 * by);
        let by_matrix = if self.options.form == Form::Gram { 2 * by } else { by };
        for column in Arc::make_mut(&mut self.matrix).col_iter_mut() {
            shift(column.try_as_col_major_mut().expect("an owned matrix").as_slice_mut(), by_matrix);
        }
        if !self.waiting.is_empty() {
            shift(Arc::make_mut(&mut self.waiting).iter_mut(), by);
        }
    }

    /// Tells whether blocks are multiplied in f32.
    fn is_fast(&self) -> bool {
        (self.options.form, self.options.accumulation) == (Form::Gram, Accumulation::F32)
    }

    /// Adds the samples that another one has seen.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has another number of features, [`Error::Option`] if it has another form or if there are
    /// more than `2^43` samples in all. After an error nothing has changed. (Accumulations may differ; the result is as
    /// good as the worse, and says so.)
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let (n, par) = (self.features(), crate::parallel::current_par());
        if other.features() != n {
            return Err(Error::shape("Calibration::merge", format_args!("{n} features"), other.features()));
        }
        if other.options.form != self.options.form {
            let name = |form| if form == Form::Gram { "gram" } else { "factor" };
            let want = "statistics of one form: all Gram matrices, or all factors";
            return Err(Error::option("form", name(other.options.form), want));
        }
        (self.samples, self.skipped) = self.counts_with(other.samples, other.skipped)?;
        self.derived = Arc::default();
        let exponent = exponent_of(maximum(&self.largest).max(maximum(&other.largest)));
        self.rescale(exponent);
        let mut other = other.settled();
        if other.exponent != exponent {
            other.to_mut().rescale(exponent);
        }
        if other.options.accumulation == Accumulation::F32 {
            self.options.accumulation = Accumulation::F32;
        }
        add(&mut self.sums, &other.sums);
        add(&mut self.squares, &other.squares);
        self.largest.iter_mut().zip(&other.largest).for_each(|(a, b)| *a = a.max(*b));
        self.flush(par);
        match self.options.form {
            Form::Gram => {
                let mine = Arc::make_mut(&mut self.matrix);
                for j in 0..n {
                    mine.col_mut(j).iter_mut().zip(other.matrix.col(j).iter()).for_each(|(a, b)| *a += b);
                }
            }
            Form::Factor => absorb_rows(Arc::make_mut(&mut self.matrix), Mat::as_ref(&other.matrix), par),
        }
        Ok(())
    }

    /// Returns `G = XᵀX`, `n × n`, both triangles, times `4^-e`, where e is the [`exponent`](Self::exponent), which is
    /// 0 but for extreme samples.
    pub fn gram(&self) -> Matrix<f64> {
        let mut g = Mat::clone(&self.gram_lower(crate::parallel::current_par()));
        mirror(g.as_mut());
        Matrix::from(g.as_ref())
    }

    /// Returns the lower triangle of [`gram`](Self::gram); what is above it is unspecified.
    pub(crate) fn gram_lower(&self, par: Par) -> Arc<Mat<f64>> {
        let matrix = self.matrix();
        match self.options.form {
            Form::Gram => matrix,
            Form::Factor => {
                let r = Mat::as_ref(&matrix);
                let mut g = Mat::zeros(r.ncols(), r.ncols());
                symmetric_product(r.transpose(), g.as_mut(), Accum::Replace, par);
                Arc::new(g)
            }
        }
    }

    /// Returns R, where `RᵀR` is the matrix of [`gram`](Self::gram), if R is what is kept.
    pub(crate) fn factor(&self) -> Option<Arc<Mat<f64>>> {
        (self.options.form == Form::Factor).then(|| self.matrix())
    }

    /// Returns the latest root, if it was made for this trust and shift and is kept in that type.
    pub(crate) fn cached_root(&self, trust: f64, shift: f64, dtype: DType) -> Option<CachedRoot> {
        let of_these = |root: &CachedRoot| (root.trust, root.shift, root.l.dtype()) == (trust, shift, dtype);
        self.derived().root.clone().filter(of_these)
    }

    /// Keeps a root for the next weight with these inputs.
    pub(crate) fn cache_root(&self, root: CachedRoot) {
        self.derived().root = Some(root);
    }

    fn derived(&self) -> MutexGuard<'_, Derived> {
        lock(&self.derived)
    }

    /// Returns the matrix of all samples, those that wait included.
    fn matrix(&self) -> Arc<Mat<f64>> {
        if self.waiting.is_empty() {
            return self.matrix.clone();
        }
        if let Some(matrix) = &self.derived().settled {
            return matrix.clone();
        }
        let mut settled = self.clone();
        settled.flush(crate::parallel::current_par());
        self.derived().settled = Some(settled.matrix.clone());
        settled.matrix
    }

    /// Returns the statistics with no rows waiting.
    fn settled(&self) -> Cow<'_, Self> {
        if self.waiting.is_empty() {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Calibration { matrix: self.matrix(), waiting: Arc::default(), ..self.clone() })
    }

    /// Takes the waiting rows into the matrix now, so that no look at the statistics has to do it on a copy. Rows that
    /// follow start a block of their own, which rounds differently.
    #[doc(hidden)]
    pub fn settle(&mut self) {
        let matrix = self.derived().settled.take();
        match matrix {
            Some(matrix) => self.matrix = matrix,
            None => self.flush(crate::parallel::current_par()),
        }
        // The memory of a block is freed, too.
        self.waiting = Arc::default();
    }

    /// Returns the rows of a block.
    fn block_rows(&self) -> usize {
        block_rows(self.features(), self.options).expect("there are such statistics")
    }

    /// Takes the waiting rows into the matrix.
    fn flush(&mut self, par: Par) {
        if self.waiting.is_empty() {
            return;
        }
        let n = self.features();
        let x = MatRef::from_row_major_slice(&self.waiting, self.waiting.len() / n, n);
        let matrix = Arc::make_mut(&mut self.matrix);
        match (self.options.form, self.options.accumulation) {
            (Form::Gram, Accumulation::F64) => symmetric_product(x.transpose(), matrix.as_mut(), Accum::Add, par),
            (Form::Gram, Accumulation::F32) => {
                let rows: Vec<usize> = (0..x.nrows()).collect();
                Fast::default().add_gram(matrix, x, &rows, par);
            }
            (Form::Factor, _) => absorb_rows(matrix, x, par),
        }
        match Arc::get_mut(&mut self.waiting) {
            Some(waiting) => waiting.clear(),
            None => self.waiting = Arc::default(),
        }
    }
}

/// Returns the rows of a block of `n` features, or `None` if there are too many.
fn block_rows(n: usize, options: CalibrationOptions) -> Option<usize> {
    Some(match (options.form, options.accumulation) {
        (Form::Factor, _) => PARAMS.factor_rows.checked_mul(n)?.max(PARAMS.least_rows),
        (_, Accumulation::F64) => (PARAMS.block_elements / n.max(1)).clamp(PARAMS.least_rows, PARAMS.most_rows),
        (_, Accumulation::F32) => (PARAMS.fast_block_elements / n.max(1)).clamp(PARAMS.least_rows, PARAMS.most_rows),
    })
}

/// Returns the largest of moduli, 0 if there are none.
fn maximum(moduli: &[f64]) -> f64 {
    moduli.iter().fold(0.0, |a, &b| a.max(b))
}

fn add(total: &mut [f64], part: &[f64]) {
    total.iter_mut().zip(part).for_each(|(a, b)| *a += b);
}

/// Copies row `i` in f64, times a power of two.
fn copy_row<E: Element>(a: MatRef<'_, E>, i: usize, dst: &mut [f64], scale: f64) {
    match a.row(i).try_as_row_major() {
        Some(row) => convert(row.as_slice(), dst, scale),
        None => dst.iter_mut().zip(a.row(i).iter()).for_each(|(d, x)| *d = scale * x.to_f64()),
    }
}

/// The result of one look at samples.
struct Check {
    /// The rows that are not finite, in order. They count in nothing else.
    bad: Vec<usize>,
    /// The sums of samples times the power of two that was asked for.
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// The largest moduli of samples as they are.
    largest: Vec<f64>,
}

impl Check {
    fn new(n: usize) -> Self {
        Check { bad: Vec::new(), sums: vec![0.0; n], squares: vec![0.0; n], largest: vec![0.0; n] }
    }
}

/// How many tasks of [`check`] have totals that are alive at the same time.
const CHECKS_AT_ONCE: usize = 32;

/// Checks the rows of `a` in tasks cut by shape, and adds the totals in order: sums are of rows times `2^-exponent`.
fn check<E: Element>(a: MatRef<'_, E>, exponent: i32, par: Par) -> Check {
    let n = a.ncols();
    let scale = 2f64.powi(-exponent);
    let rows = PARAMS.check.div_ceil(n);
    let arch = pulp::Arch::new();
    let task = |t: usize| {
        let mut part = Check::new(n);
        let mut line = vec![0.0; n];
        for i in t * rows..((t + 1) * rows).min(a.nrows()) {
            copy_row(a, i, &mut line, 1.0);
            if !arch.dispatch(|| count(&line, scale, &mut part.sums, &mut part.squares, &mut part.largest)) {
                part.bad.push(i);
            }
        }
        part
    };
    let tasks = a.nrows().div_ceil(rows);
    let mut total = Check::new(n);
    for first in (0..tasks).step_by(CHECKS_AT_ONCE) {
        let tasks = first..tasks.min(first + CHECKS_AT_ONCE);
        for part in parallel::map(par, tasks.len(), |t| task(tasks.start + t)) {
            total.bad.extend(part.bad);
            add(&mut total.sums, &part.sums);
            add(&mut total.squares, &part.squares);
            raise(&mut total.largest, &part.largest);
        }
    }
    total
}

/// Adds one sample to the totals, times `scale` to the sums, unless it is not finite.
#[inline(always)]
fn count(line: &[f64], scale: f64, sums: &mut [f64], squares: &mut [f64], largest: &mut [f64]) -> bool {
    // The product 0 · x is 0 for finite x and NaN for the others.
    let mut lanes = [0f64; 16];
    let (body, tail) = line.as_chunks::<16>();
    for chunk in body {
        for lane in 0..16 {
            lanes[lane] += 0.0 * chunk[lane];
        }
    }
    let zero: f64 = lanes.iter().sum::<f64>() + tail.iter().map(|x| 0.0 * x).sum::<f64>();
    if zero != 0.0 {
        return false;
    }
    for (((x, sum), square), largest) in line.iter().zip(sums).zip(squares).zip(largest) {
        let scaled = scale * x;
        *sum += scaled;
        *square += scaled * scaled;
        *largest = if x.abs() > *largest { x.abs() } else { *largest };
    }
    true
}

/// Computes `R <- R of [R; x]`.
fn absorb_rows(r: &mut Mat<f64>, x: MatRef<'_, f64>, par: Par) {
    let (n, rows) = (r.ncols(), x.nrows());
    let mut stacked = Mat::zeros(n + rows, n);
    stacked.as_mut().subrows_mut(0, n).copy_from(r.as_ref());
    stacked.as_mut().subrows_mut(n, rows).copy_from(x);
    let mut t = Mat::zeros(householder::block_size(n + rows, n), n);
    let mut scratch = MemBuffer::new(householder::factor_scratch::<f64>(n + rows, n, par));
    householder::factor(stacked.as_mut(), t.as_mut(), par, MemStack::new(&mut scratch));
    for j in 0..n {
        for i in 0..=j {
            r[(i, j)] = stacked[(i, j)];
        }
    }
}

/// The buffers of a block in f32, kept from one to the next.
#[derive(Default)]
struct Fast {
    /// The samples, row-major.
    block: Vec<f32>,
    /// Some columns of the Gram matrix of the samples.
    product: Vec<f32>,
}

impl Fast {
    /// Computes `g <- g + xᵀx` on the lower triangle, where x is some rows of `a`, multiplied in f32 panel by panel and
    /// added in f64.
    fn add_gram<E: Element>(&mut self, g: &mut Mat<f64>, a: MatRef<'_, E>, rows: &[usize], par: Par) {
        let n = a.ncols();
        let exponents = exponents(&largest(a, rows, par));
        // 2^-e takes a column to at most 2 in modulus; powers of two change no digits.
        let down: Vec<f64> = exponents.iter().map(|&e| 2f64.powi(-e)).collect();
        let up: Vec<f64> = exponents.iter().map(|&e| 2f64.powi(e)).collect();
        let as_they_are = exponents.iter().all(|&e| e == 0);
        self.block.resize(rows.len() * n, 0.0);
        let lines: Vec<_> = self.block.chunks_mut(PARAMS.rows * n).zip(rows.chunks(PARAMS.rows)).collect();
        parallel::for_each_of(par, lines, |(block, rows)| {
            let mut line = vec![0.0; if as_they_are { 0 } else { n }];
            for (dst, &i) in block.chunks_mut(n).zip(rows) {
                match a.row(i).try_as_row_major() {
                    Some(row) if as_they_are => convert(row.as_slice(), dst, 1.0),
                    _ if as_they_are => dst.iter_mut().zip(a.row(i).iter()).for_each(|(d, x)| *d = x.to_f64() as f32),
                    _ => {
                        copy_row(a, i, &mut line, 1.0);
                        dst.iter_mut().zip(&line).zip(&down).for_each(|((d, x), s)| *d = (x * s) as f32);
                    }
                }
            }
        });
        let x = MatRef::from_row_major_slice(&self.block, rows.len(), n);

        self.product.resize(n * PARAMS.panel.min(n), 0.0);
        let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
        for first in (0..n).step_by(PARAMS.panel) {
            let width = PARAMS.panel.min(n - first);
            let height = n - first;
            let mut product = MatMut::from_column_major_slice_mut(&mut self.product[..height * width], height, width);
            let (columns, below) = (x.subcols(first, width), x.subcols(first + width, height - width));
            let (square, rest) = product.as_mut().split_at_row_mut(width);
            let (replace, one) = (Accum::Replace, 1.0);
            triangular::matmul(square, lower, replace, columns.transpose(), full, columns, full, one, par);
            matmul(rest, replace, below.transpose(), columns, one, par);
            let arch = pulp::Arch::new();
            let columns = g.as_mut().subcols_mut(first, width).col_iter_mut().zip(product.as_ref().col_iter());
            parallel::for_each_of(par, columns.enumerate().collect(), |(j, (g, p))| {
                let at = first + j;
                let g = &mut g.try_as_col_major_mut().expect("an owned matrix").as_slice_mut()[at..];
                let p = &p.try_as_col_major().expect("column-major").as_slice()[j..];
                arch.dispatch(|| add_scaled(g, p, &up[at..], up[at]));
            });
        }
    }
}

/// Returns powers of two for columns with these largest moduli, which are all 0 where products in f32 stay in range.
fn exponents(largest: &[f64]) -> Vec<i32> {
    let exponents: Vec<i32> = largest.iter().map(|&l| if l > 0.0 { l.log2().floor() as i32 } else { 0 }).collect();
    if exponents.iter().all(|e| e.abs() <= PARAMS.safe_exponent) { vec![0; largest.len()] } else { exponents }
}

/// Computes `max |x|` of each column over some rows.
fn largest<E: Element>(a: MatRef<'_, E>, rows: &[usize], par: Par) -> Vec<f64> {
    let n = a.ncols();
    let arch = pulp::Arch::new();
    let task = |rows: &[usize]| {
        let (mut largest, mut line) = (vec![0.0; n], vec![0.0; n]);
        for &i in rows {
            copy_row(a, i, &mut line, 1.0);
            arch.dispatch(|| raise(&mut largest, &line));
        }
        largest
    };
    let chunks: Vec<&[usize]> = rows.chunks(PARAMS.rows).collect();
    let parts = parallel::map(par, chunks.len(), |chunk| task(chunks[chunk]));
    parts.into_iter().fold(vec![0.0; n], |mut largest, part| {
        raise(&mut largest, &part);
        largest
    })
}

/// Computes `largest[j] <- max(largest[j], |line[j]|)`.
#[inline(always)]
fn raise(largest: &mut [f64], line: &[f64]) {
    largest.iter_mut().zip(line).for_each(|(l, x)| *l = if x.abs() > *l { x.abs() } else { *l });
}

/// Computes `g[i] <- g[i] + p[i] · scales[i] · scale`.
#[inline(always)]
fn add_scaled(g: &mut [f64], p: &[f32], scales: &[f64], scale: f64) {
    for ((g, p), s) in g.iter_mut().zip(p).zip(scales) {
        *g += f64::from(*p) * (s * scale);
    }
}
