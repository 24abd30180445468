//! Factors from one look at the matrix: sketches that are fed rows in any blocks and order, and the factors from them.
//!
//! ```text
//!              n
//!        ┌───────────┐        range     Y = A Ω     m × l        Ω  n × l
//!   rows │  fed once │ ->     co-range  X = AᵀΥ     n × c        Υ  m × c
//!        │           │        core      Z = ΦᵀA Ψ   s × s        Φ  m × s,  Ψ  n × s
//!        └───────────┘        error     E = AᵀΘ     n × 16       Θ  m × 16, Gaussian, for the certificate alone
//! ```
//!
//! All four are linear in the rows of A, so that blocks add up and states merge. There are two ways from the sketches
//! to `A ≈ Q C Pᵀ` with orthonormal Q and P and a small C, whose SVD then gives all:
//!
//! * [`Method::SinglePass`], three sketches (Tropp, Yurtsever, Udell, Cevher, SIAM J. Sci. Comput. 2019):
//!   `Q = orth(Y)`, `P = orth(X)`, `C = (ΦᵀQ)⁺ Z (PᵀΨ)⁺`, with the sizes of the paper, `l = c = 4k + 1` and
//!   `s = 2l + 1`. The two least-squares problems are over-determined by a factor of two, so that little is lost to
//!   them.
//! * [`Method::Nystrom`], two sketches (`nystrom.rs`): a third of the memory or less, and a larger error.
//!
//! **Certificate.** With independent Gaussian Θ, `‖Θᵀ(A − Â)‖²` has the mean `‖A − Â‖²` over 16 rows whose scatter
//! gives the standard deviation, and costs no second look. Where the noise of the sketches makes the factors of a flat
//! spectrum too large, the same probes tell by how much ([`shrinkage`]).
//!
//! **Cost.** A block of b rows takes `O(b n log)` flops with SRHT or `2 b n (l + c + s + 16)` with Gaussians. The state
//! has `(m + n) l + s² + 16 n` numbers; the end takes `O((m + n) l²)`. Errors over the optimum: `benches/NOTES.md`.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::prelude::Reborrow as _;
use faer::{Accum, Mat, MatRef, Par};

use super::embedded::solve_embedded;
use super::nystrom;
use crate::error::Result;
use crate::factors::Slices;
use crate::operator::{LinearOperator, Pass};
use crate::qr;
use crate::report::Method;
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Sketch, SketchOperator};
use crate::small::{self, SmallSvd};
use crate::space::Space;
use crate::svd::certificate::{Certificate, PROBES, Spread};
use crate::svd::cost::Work;
use crate::svd::footprint::{Footprint, rest};
use crate::svd::rank_target::RankTarget;
use crate::svd::solution::Solution;
use crate::svd::stream;
use crate::svd::task::Task;
use crate::svd::triplets::{Triplets, Vectors};
use crate::tensor::Element;

/// Rows whose share of the core is formed at a time, so that `A Ψ` of a block is never larger.
const CORE_ROWS: usize = 512;

/// The column counts of the sketches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Columns of the range, `l`.
    pub(super) range: usize,
    /// Columns of the co-range, `c`.
    pub(super) corange: usize,
    /// The size `s` of the core; 0 without a core.
    pub(super) core: usize,
}

impl Sizes {
    /// Chooses sizes for factors of this rank. They are those of the paper as long as the core is no larger than A, and
    /// beyond that as much as leaves room for the rank. They are not less than for a rank of `oversample`, because the
    /// few largest directions of a small sketch of a flat spectrum are those of its noise.
    pub(super) fn new(method: Method, (m, n): (usize, usize), rank: usize, oversample: usize) -> Self {
        let small = m.min(n);
        let least = rank.saturating_add(oversample);
        let range = match method {
            Method::Nystrom => least.max(oversample.saturating_mul(3)),
            _ => rank.max(oversample).saturating_mul(4).saturating_add(1).min(least.max((small - 1) / 2)),
        };
        Sizes::with_range(method, range.min(small))
    }

    /// Chooses sizes for a range of `l` columns.
    pub(super) fn with_range(method: Method, l: usize) -> Self {
        match method {
            Method::Nystrom => Sizes { range: l, corange: nystrom::corange(l), core: 0 },
            _ => Sizes { range: l, corange: l, core: 2 * l + 1 },
        }
    }
}

/// The random matrices of the sketches.
#[derive(Debug, Clone)]
struct Sketches {
    omega: AnySketch,
    upsilon: AnySketch,
    /// The matrices Φ and Ψ.
    core: Option<(AnySketch, AnySketch)>,
    theta: AnySketch,
}

/// Makes the random matrix of a stream that a basis is embedded with. The basis may be made of unit vectors, and a
/// sampled Hadamard matrix of few columns may be blind to some of their combinations, so that normals are taken there,
/// which cost little.
fn embedding(task: &Task, length: usize, columns: usize, stream: u64) -> Result<AnySketch> {
    /// Fewer columns are never sampled from a Hadamard matrix, and fewer than twice as many not from a short one.
    const FEW: usize = 64;
    /// A Hadamard matrix is short if it has fewer rows than this many times the columns.
    const SHORT: usize = 16;
    if columns < FEW || columns < 2 * FEW && length < SHORT * columns {
        return AnySketch::new(Sketch::Gaussian, length, columns, task.seed, stream);
    }
    task.omega(length, columns, stream)
}

/// The sketches of the rows that were added so far.
#[derive(Debug, Clone)]
pub(in crate::svd) struct State<T> {
    sketches: Sketches,
    pub(in crate::svd) range: Mat<T>,
    pub(in crate::svd) corange: Mat<T>,
    /// The transposed core, `Zᵀ`.
    pub(in crate::svd) core: Mat<T>,
    pub(in crate::svd) error: Mat<T>,
    /// Scratch for `A Ψ` of a few rows.
    work: Mat<T>,
    pub(in crate::svd) norm_squared: f64,
}

impl<T: Scalar> State<T> {
    /// Makes an empty state for rows of a matrix of this shape, which is the task's or its transpose.
    pub(in crate::svd) fn new(task: &Task, method: Method, (m, n): (usize, usize)) -> Result<Self> {
        let sizes = Sizes::new(method, (m, n), task.largest_rank(), task.oversample);
        let s = sizes.core;
        let core = match s {
            0 => None,
            _ => Some((embedding(task, m, s, stream::CORE_LEFT)?, embedding(task, n, s, stream::CORE_RIGHT)?)),
        };
        Ok(State {
            sketches: Sketches {
                omega: task.omega(n, sizes.range, stream::RANGE)?,
                upsilon: embedding(task, m, sizes.corange, stream::CORANGE)?,
                core,
                theta: AnySketch::new(Sketch::Gaussian, m, PROBES, task.seed, stream::PROBES)?,
            },
            range: Mat::zeros(m, sizes.range),
            corange: Mat::zeros(n, sizes.corange),
            core: Mat::zeros(s, s),
            error: Mat::zeros(n, PROBES),
            work: Mat::zeros(if s > 0 { CORE_ROWS.min(m) } else { 0 }, s),
            norm_squared: 0.0,
        })
    }

    /// Returns the rows and columns of the matrix.
    pub(in crate::svd) fn shape(&self) -> (usize, usize) {
        (self.range.nrows(), self.corange.nrows())
    }

    /// Adds `rows`, which begin at row `first` of the matrix.
    pub(in crate::svd) fn add(&mut self, first: usize, rows: MatRef<'_, T>, par: Par) -> Result<()> {
        let (count, range) = (rows.nrows(), first..first + rows.nrows());
        let Sketches { omega, upsilon, core, theta } = &self.sketches;
        omega.apply(rows, self.range.as_mut().subrows_mut(first, count), par)?;
        upsilon.apply_rows(range.clone(), rows.transpose(), 1.0, Accum::Add, self.corange.as_mut(), par)?;
        theta.apply_rows(range, rows.transpose(), 1.0, Accum::Add, self.error.as_mut(), par)?;
        let Some((phi, psi)) = core else { return Ok(()) };
        for start in (0..count).step_by(CORE_ROWS) {
            let size = CORE_ROWS.min(count - start);
            let mut work = self.work.as_mut().subrows_mut(0, size);
            psi.apply(rows.subrows(start, size), work.as_mut(), par)?;
            let range = first + start..first + start + size;
            phi.apply_rows(range, work.as_ref().transpose(), 1.0, Accum::Add, self.core.as_mut(), par)?;
        }
        Ok(())
    }

    /// Returns the number of elements of the sums over rows: all but the range, of which each row has its own.
    pub(in crate::svd) fn length_of_sums(&self) -> usize {
        let elements = |a: &Mat<T>| a.nrows() * a.ncols();
        elements(&self.corange) + elements(&self.core) + elements(&self.error)
    }

    /// Takes the sums over the rows that were added, one after the other, and begins them anew.
    pub(in crate::svd) fn take_sums(&mut self) -> Vec<T> {
        let mut sums = Vec::with_capacity(self.length_of_sums() + 1);
        for part in [&mut self.corange, &mut self.core, &mut self.error] {
            for column in part.as_mut().col_iter_mut() {
                sums.extend(column.rb().iter());
                column.iter_mut().for_each(|x| *x = T::zeroed());
            }
        }
        sums
    }

    /// Puts back sums that come as they were taken.
    pub(in crate::svd) fn put_sums(&mut self, sums: &[T]) {
        let mut next = sums.iter();
        for part in [&mut self.corange, &mut self.core, &mut self.error] {
            for column in part.as_mut().col_iter_mut() {
                column.iter_mut().zip(&mut next).for_each(|(to, x)| *to = *x);
            }
        }
    }

    /// Computes the factors that meet `target`.
    pub(in crate::svd) fn solve(self, target: &RankTarget, par: Par) -> Result<Answer<T>> {
        let (m, n) = self.shape();
        let l = self.range.ncols();
        let mut buffer = MemBuffer::new(solve_scratch::<T>((m, n), self.sizes()));
        let stack = MemStack::new(&mut buffer);
        let Sketches { upsilon, core, theta, .. } = self.sketches;
        let (q, p, c) = match &core {
            Some((phi, psi)) => three_sketches(self.range, self.corange, self.core, (phi, psi), par, stack)?,
            None => nystrom::two_sketches(self.range, self.corange, &upsilon, par, stack)?,
        };
        drop(buffer);
        let SmallSvd { u, mut s, v, remedy } = small::svd(c.as_ref(), par);
        drop(c);
        let kept = target.most_of(l);
        let (mut left, mut right) = (Mat::zeros(m, kept), Mat::zeros(n, kept));
        matmul(left.as_mut(), Accum::Replace, q.as_ref(), u.as_ref().subcols(0, kept), T::one(), par);
        drop((q, u));
        matmul(right.as_mut(), Accum::Replace, p.as_ref(), v.as_ref().subcols(0, kept), T::one(), par);
        drop((p, v));

        let mut weights = Mat::<T>::zeros(kept, PROBES);
        theta.apply(left.as_ref().transpose(), weights.as_mut(), par)?;
        for (i, s) in s[..kept].iter().enumerate() {
            weights.row_mut(i).iter_mut().for_each(|x| *x *= *s);
        }
        let mut notes: Vec<String> = remedy.map(str::to_owned).into_iter().collect();
        if let Some(part) = shrinkage(&self.error, &right, &weights, &s[..kept]) {
            notes.push(format!("a flat spectrum: the singular values are {part:.3} of what the sketches say"));
            let part = <T as Element>::from_f64(part);
            s[..kept].iter_mut().for_each(|s| *s *= part);
            weights *= faer::Scale(part);
        }

        // The residual is E − V Σ UᵀΘ, and then one triplet less at a time.
        let mut residual = self.error;
        matmul(residual.as_mut(), Accum::Add, right.as_ref(), weights.as_ref(), -T::one(), par);
        let measure = |residual: &Mat<T>| Spread::of_columns(residual.as_ref(), self.norm_squared);
        let mut spreads = vec![measure(&residual)];
        for i in (1..kept).rev() {
            let (v, w) = (right.as_ref().subcols(i, 1), weights.as_ref().subrows(i, 1));
            matmul(residual.as_mut(), Accum::Add, v, w, T::one(), Par::Seq);
            spreads.push(measure(&residual));
        }
        spreads.reverse();
        let reached = |rank: usize| match target.threshold() {
            Some(threshold) => Element::to_f64(s[rank]) <= threshold,
            None => target.is_within_reach::<T>(spreads[rank - 1].upper() * self.norm_squared),
        };
        let mut rank = kept;
        while rank > 1 && !target.is_fixed() && reached(rank - 1) {
            rank -= 1;
        }
        spreads.truncate(rank);
        let spread = &spreads[rank - 1];
        let slices = spreads.iter().map(|spread| spread.certificate().error_and_deviation()).collect();
        let (error, deviation) = spread.certificate().error_and_deviation();
        if error + deviation >= 1.0 {
            notes.push(
                "hardly better than zeros: the spectrum is too flat for one pass; oversample more, or look again"
                    .into(),
            );
        }
        let certificate = match self.norm_squared {
            0.0 => Certificate::of_zero(),
            _ => spread.certificate(),
        };
        if rank < kept {
            left = left.subcols(0, rank).to_owned();
            right = right.subcols(0, rank).to_owned();
        }
        s.truncate(rank);
        Ok(Answer { u: left, s, v: right, certificate, slices: Slices::Measured(slices), notes })
    }

    fn sizes(&self) -> Sizes {
        Sizes { range: self.range.ncols(), corange: self.corange.ncols(), core: self.core.ncols() }
    }
}

/// The factors of the wanted rank.
pub(in crate::svd) struct Answer<T> {
    pub(in crate::svd) u: Mat<T>,
    pub(in crate::svd) s: Vec<T>,
    pub(in crate::svd) v: Mat<T>,
    pub(in crate::svd) certificate: Certificate,
    pub(in crate::svd) slices: Slices<T>,
    pub(in crate::svd) notes: Vec<String>,
}

/// Returns the factor for the singular values of `Â` that makes the error least, where the probes leave no doubt that
/// it is less than 1:
///
/// ```text
///   c = ⟨A, Â⟩ / ‖Â‖²  =  1 + ⟨A − Â, Â⟩ / ‖Â‖²          ⟨A − Â, Â⟩  =  E Σ_j (AᵀΘ − ÂᵀΘ)_j · (ÂᵀΘ)_j
/// ```
///
/// The two least-squares problems add their noise to the values, about as much as the tail has. Where the spectrum is
/// flat that makes them too large, and the error larger than that of no factors at all; with c it would not be. The
/// probes know c to a standard deviation, and the factor is less than c by that much: too small a factor is better than
/// zeros, too large a one may be worse (`benches/NOTES.md`). `error` is `AᵀΘ`, `v · weights` is `ÂᵀΘ`.
fn shrinkage<T: Scalar>(error: &Mat<T>, v: &Mat<T>, weights: &Mat<T>, s: &[T]) -> Option<f64> {
    /// The least factor, because factors of zero would have no directions.
    const LEAST: f64 = 0.05;
    /// The largest factor that is used: one closer to 1 is noise of the probes, or gains less than a hundredth of what
    /// the factors hold.
    const MOST: f64 = 0.9;
    let squares: f64 = s.iter().map(|&s| Element::to_f64(s) * Element::to_f64(s)).sum();
    if squares == 0.0 {
        return None;
    }
    let along = v.transpose() * error;
    // The probes are normalized to E ΘΘᵀ = I.
    let probe = |j: usize| {
        let terms = along.col(j).iter().zip(weights.col(j).iter());
        let products = terms.map(|(&x, &w)| (Element::to_f64(x) - Element::to_f64(w)) * Element::to_f64(w));
        PROBES as f64 * products.sum::<f64>() / squares
    };
    let excess: Vec<f64> = (0..PROBES).map(probe).collect();
    let mean = excess.iter().sum::<f64>() / PROBES as f64;
    let variance = excess.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (PROBES - 1) as f64;
    let deviation = (variance / PROBES as f64).sqrt();
    let part = (1.0 + mean - deviation).max(LEAST);
    (mean < -deviation && part < MOST).then_some(part)
}

/// Runs one pass over `op`, which is the task's matrix or its transpose.
pub(super) fn solve<T: Scalar, S: Space<T>>(
    task: &Task,
    method: Method,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    let mut state = State::new(task, method, (op.nrows(), op.ncols()))?;
    op.for_each_row_block(&mut |first, rows| state.add(first, rows, par))?;
    state.norm_squared = op.norm_squared(); // out of core not known before
    of_state(task, method, state, target, par)
}

/// Solves the task from the sketches of all rows.
pub(in crate::svd) fn of_state<T: Scalar, S: Space<T>>(
    task: &Task,
    method: Method,
    mut state: State<T>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    state.work = Mat::new();
    let width = state.range.ncols();
    let Answer { u, s, v, certificate, slices, notes } = state.solve(target, par)?;
    let captured = s.iter().map(|&s| s.to_f64() * s.to_f64()).sum();
    Ok(Solution {
        rank: s.len(),
        triplets: Triplets { by_qr: false, left: Vectors::Small(u), s, captured, right: Vectors::Small(v) },
        width,
        method,
        sketch: Some(task.sketch),
        certificate: Some(certificate),
        slices,
        notes,
    })
}

/// Computes `Q`, `P` and `C = (ΦᵀQ)⁺ Z (PᵀΨ)⁺` from the range, the co-range and `Zᵀ`.
fn three_sketches<T: Scalar>(
    mut q: Mat<T>,
    mut p: Mat<T>,
    core: Mat<T>,
    (phi, psi): (&AnySketch, &AnySketch),
    par: Par,
    stack: &mut MemStack,
) -> Result<(Mat<T>, Mat<T>, Mat<T>)> {
    qr::orthonormalize(q.as_mut(), None, par, stack)?;
    qr::orthonormalize(p.as_mut(), None, par, stack)?;
    let half = solve_embedded(&q, phi, core.transpose(), par, stack)?; // l × s
    drop(core);
    let c = solve_embedded(&p, psi, half.transpose(), par, stack)?; // l × l, transposed
    Ok((q, p, c.transpose().to_owned()))
}

fn solve_scratch<T: Scalar>((m, n): (usize, usize), sizes: Sizes) -> StackReq {
    let Sizes { range, corange, core } = sizes;
    let orthonormalize = |rows: usize, cols: usize| qr::orthonormalize_scratch::<T>(rows, cols, Par::Seq);
    let embedded = if core > 0 { core } else { corange };
    StackReq::any_of(&[orthonormalize(m, range), orthonormalize(n, range), orthonormalize(embedded, range)])
}

pub(super) fn cost(method: Method, work: &Work<'_>) -> (f64, usize) {
    let &Work { m, n, width, .. } = work;
    let Sizes { range, corange, core } = Sizes::with_range(method, width);
    let sketched = |columns: usize| match work.task.sketch {
        Sketch::Gaussian => work.flops(2.0 * m * n * columns as f64),
        _ => work.sketch(m, n),
    };
    let (rf, sf) = (range as f64, core.max(corange) as f64);
    let core = if core > 0 { sketched(core) + sketched(core) * core as f64 / n } else { 0.0 };
    let orths = work.orthonormalize(m, rf) + work.orthonormalize(n, rf) + 2.0 * work.orthonormalize(sf, rf);
    (sketched(range) + sketched(corange) + core + orths + work.finish(rf, rf) + work.begin(), 1)
}

/// Returns the bytes alive at the fullest moment of [`solve`], the factors included.
pub(super) fn peak<T: Scalar>(method: Method, f: &Footprint) -> usize {
    let (m, n, k, tile) = (f.m, f.n, f.rank, f.tile::<T>(Pass::Rows));
    let sizes = Sizes::with_range(method, f.width);
    let Sizes { range: l, corange: c, core: s } = sizes;
    let mat = |rows: usize, cols: usize| rows * cols * size_of::<T>();
    let error = mat(n, PROBES);
    let state = mat(m, l) + mat(n, c) + mat(s, s) + error;
    // This is the panel that a Gaussian sketch generates.
    let panel = |l: usize| mat(512.min(m), l);
    let fed = tile + state + mat(CORE_ROWS.min(m), s) + panel(c.max(s));
    let scratch = solve_scratch::<T>((m, n), sizes).unaligned_bytes_required();
    let projected = if s > 0 {
        let first = state + mat(s, l) + (mat(l, l) + mat(l, s)).max(panel(s));
        let second = mat(m, l) + mat(n, l) + error + mat(l, s) + mat(s, l) + (2 * mat(l, l)).max(panel(s));
        first.max(second)
    } else {
        (state + mat(c, l) + (mat(l, l) + mat(l, n)).max(panel(c)))
            .max(mat(m, l) + error + 2 * mat(n, l) + 2 * mat(l, l))
    };
    let bases = mat(m, l) + mat(n, l) + error;
    let svd = bases + mat(l, l) + small::svd_bytes::<T>(l);
    let combined = bases + 2 * mat(l, l) + mat(m, k);
    let home = 2 * mat(m + n, k);
    let counted = fed.max(scratch + projected).max(svd).max(combined).max(home);
    counted + 4 * rest(counted)
}
