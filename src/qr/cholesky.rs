//! CholeskyQR: `G = YᵀY = RᵀR`, `Q = Y R⁻¹`, repeated until Q is orthonormal.
//!
//! ```text
//!   rows of Y, in groups (one task each) of blocks that stay in cache:
//!
//!     group 0 | block 0   Y_b <- Y_b R⁻¹  (TRSM), then  G_0 += Y_bᵀ Y_b  (syrk) while the block is hot
//!             | block 1   ...
//!     group 1 | ...                                    G_1 += ...
//!                         G = (G_0 + G_1) + ...  in a tree; Cholesky of the l×l G in f64
//! ```
//!
//! **Cost.** A pass takes `m l²` flops of syrk and `m l²` of TRSM and moves the panel once; what is l×l is done in f64
//! by one thread. A panel that starts from a sketch takes `3 m l² + 2 l³`, where CholeskyQR2 takes `4 m l²`. The last
//! division does not wait for the inverse of the factor, which is formed beside it and may still ask for another pass.
//!
//! **First factor.** It is the R of a sketch `S Y` of 2l rows (Balabanov 2022; Melnichenko et al. 2311.08316): `Y R⁻¹`
//! has a condition of about 6 whatever that of Y. The sketch is fixed. Where it fails, the Gram matrix of the quotient
//! shows it, and the pass was an ordinary one.
//!
//! **Every other factor.** With `D G D` of unit diagonal and relative error `u`, the Q of a pass has
//! `‖QᵀQ − I‖ ≈ u ‖R⁻¹‖_F²`. Where that is below 1/4 the next pass finishes (CholeskyQR2: Yamamoto, Nakatsukasa,
//! Yanagisawa, Fukaya 2015). Else G is formed again in f64 for f32 panels, else `G + s I` is factored (Fukaya et al.,
//! 1809.11085), which lifts the smallest singular values by `s^{-1/2}`. A pass is the last if the inflation factors
//! `‖R⁻¹ e_j‖²` are small.
//!
//! **Why a solve.** It is backward stable row by row, a product with `R⁻¹` is not, and is slower. Figures:
//! `benches/NOTES.md`.

use faer::Accum;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::matmul::matmul;
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed, triangular_inverse, triangular_solve};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{ColMut, ColRef, MatMut, MatRef, Par};
use pulp::NullaryFnOnce;
use std::mem::MaybeUninit;

use super::householder::dot_of;
use super::outcome::{Algorithm, Orthonormalization};
use super::shared::{check_shapes, for_row_groups, identity, keeping_awake, write_r};
use super::steps::{GramOf, Step, Steps};
use crate::error::{Error, Result};
use crate::linalg::{column, column_mut};
use crate::parallel::join;
use crate::simd::Scalar;
use crate::tensor::DType;

/// Constants of the CholeskyQR passes. Block, sum and strip sizes were chosen by timing single kernels
/// (`benches/NOTES.md`); `benches/qr.rs` times the whole. The thresholds are error bounds.
pub(crate) struct CholeskyParams {
    /// Rows of a block, which is solved and multiplied while it is in L2.
    pub(crate) block_rows: usize,
    /// Columns of the strips in which a block is solved. A block with fewer columns than `few_columns` is solved in
    /// narrow strips; the rest of a strip is one long product.
    pub(crate) wide_strip: usize,
    pub(crate) narrow_strip: usize,
    pub(crate) few_columns: usize,
    /// Rows whose products are summed in one accumulation, which bounds the rounding error.
    pub(crate) sum_rows: usize,
    /// Bytes of a row of the strips in which a Gram matrix is formed: 48 elements of f32.
    pub(crate) strip_bytes: usize,
    /// The largest number of row groups, which bounds the number of partial Gram matrices.
    pub(crate) max_groups: usize,
    /// The largest estimate of `‖QᵀQ − I‖` that a pass may leave.
    pub(crate) max_defect: f64,
    /// The largest variance inflation factor with which a pass is the last one.
    pub(crate) max_inflation: f64,
    /// The most passes before the iteration gives up.
    pub(crate) max_passes: usize,
    /// Rows of the sketch per column of the panel.
    pub(crate) sketch_rows: usize,
    /// Panels with fewer columns are not sketched: their Gram matrix is cheap.
    pub(crate) min_sketched_columns: usize,
    /// The largest variance inflation factor of a sketch that still sends the panel to plain CholeskyQR. A sketch of
    /// two rows per column about doubles these factors.
    pub(crate) max_sketched_inflation: f64,
    /// How many tasks the sketch is split into.
    pub(crate) sketch_tasks: usize,
}

pub(crate) const PARAMS: CholeskyParams = CholeskyParams {
    block_rows: 256,
    wide_strip: 96,
    narrow_strip: 48,
    few_columns: 128,
    sum_rows: 64,
    strip_bytes: 192,
    max_groups: 16,
    max_defect: 0.25,
    max_inflation: 4.0,
    max_passes: 6,
    sketch_rows: 2,
    min_sketched_columns: 16,
    max_sketched_inflation: 6.0,
    sketch_tasks: 8,
};

/// The ways in which [`iterate`] ends.
pub(crate) enum Outcome {
    /// The panel is orthonormal.
    Done(Orthonormalization),
    /// Nothing was changed: the columns' squared lengths do not fit the arithmetic (or are zero, or not numbers).
    Range,
    /// The panel still satisfies `Y_in = Y acc` but is not orthonormal.
    Breakdown(Orthonormalization),
}

/// The report for a panel whose condition is not known.
pub(crate) const SINGULAR: Orthonormalization =
    Orthonormalization { algorithm: Algorithm::CholeskyQr, condition_estimate: f64::INFINITY, passes: 0 };

/// Returns how many rows of an f32 panel are widened at a time: fewer where scratch is to be saved.
fn wide_rows(most_groups: usize) -> usize {
    if most_groups > 1 { PARAMS.block_rows } else { PARAMS.sum_rows }
}

/// The row groups of a panel: a pure function of its shape.
struct Groups {
    count: usize,
    rows: usize,
}

/// Cuts an m×l panel into at most `most` row groups.
fn groups(m: usize, l: usize, most: usize) -> Groups {
    let blocks = m.div_ceil(PARAMS.block_rows);
    // All partial Gram matrices together are at most as large as the panel.
    let most = (m / l).min(blocks).clamp(1, most);
    let power = 1 << most.ilog2();
    let rows = m.div_ceil(power).next_multiple_of(16);
    Groups { count: m.div_ceil(rows), rows }
}

/// Returns where m rows are cut in two: at a multiple of `rows`.
fn half(m: usize, rows: usize) -> usize {
    m.div_ceil(rows) / 2 * rows
}

/// The matrix that [`cholesky_qr`] takes its first factor from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(hidden)]
pub enum Start {
    /// The Gram matrix of the panel.
    Panel,
    /// A sketch of the panel, if it is tall enough for one (about 4l rows) and not too narrow.
    Sketch,
}

/// Orthonormalizes by CholeskyQR alone: `Y <- Q`, `Y = Q R`, or an error. [`orthonormalize`](super::orthonormalize)
/// does the same from [`Start::Sketch`], but scales columns before and goes to reflections where this fails.
///
/// `y` is m×l, `m >= l >= 1`; `r` is l×l and entirely overwritten.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Empty`] for the shapes, [`Error::NoConvergence`] if the panel has columns that are
/// zero, not finite, too long or too short to be squared, or that depend on each other exactly; Y is then of no use.
/// [`Error::Range`] if an entry of R is too large for `T`.
pub fn cholesky_qr<T: Scalar>(
    y: MatMut<'_, T>,
    r: Option<MatMut<'_, T>>,
    start: Start,
    par: Par,
    stack: &mut MemStack,
) -> Result<Orthonormalization> {
    let l = y.ncols();
    check_shapes("cholesky_qr", y.rb(), r.as_ref().map(|r| r.rb()))?;
    let (mut acc, stack) = identity(l, r.is_some(), stack);
    let mut acc = r.is_some().then(|| acc.as_mat_mut());
    let acc_mut = acc.as_mut().map(|acc| acc.rb_mut());
    let mut panel = InMemory { y, par, most_groups: PARAMS.max_groups };
    let mut steps = |step: Step<'_, T>, stack: &mut MemStack| panel.step(step, stack);
    match iterate(&mut steps, l, acc_mut, start == Start::Sketch, par, stack)? {
        Outcome::Done(report) => {
            if let (Some(r), Some(acc)) = (r, acc) {
                write_r(r, acc.rb(), None)?;
            }
            Ok(report)
        }
        Outcome::Range | Outcome::Breakdown(_) => Err(Error::NoConvergence { op: "cholesky_qr" }),
    }
}

/// Returns the scratch for [`cholesky_qr`] of an m×l panel.
pub fn cholesky_qr_scratch<T: Scalar>(m: usize, l: usize, _par: Par) -> StackReq {
    temp_mat_scratch::<f64>(l, l).and(iterate_scratch::<T>(m, l, PARAMS.max_groups, true))
}

/// A panel in memory, with the kernels of CholeskyQR.
pub(super) struct InMemory<'a, T> {
    pub(super) y: MatMut<'a, T>,
    pub(super) par: Par,
    /// The most groups of rows. Each has a Gram matrix of its own.
    pub(super) most_groups: usize,
}

impl<T: Scalar> InMemory<'_, T> {
    /// Does what the driver asks for, except for reflections and scaling, which are not part of CholeskyQR.
    pub(super) fn step(&mut self, step: Step<'_, T>, stack: &mut MemStack) -> Result<bool> {
        let (y, par, most_groups) = (self.y.rb_mut(), self.par, self.most_groups);
        match step {
            Step::Gram { divisor, of: GramOf::Panel, gram } => gram_of(y, divisor, gram, most_groups, par, stack),
            Step::Gram { of: GramOf::WidePanel, gram, .. } => wide_gram(y, gram, most_groups, par, stack),
            Step::Gram { of: GramOf::Sketch, gram, .. } => return Ok(sketch_gram::<T, f64>(y, gram, par, stack)),
            Step::Gram { of: GramOf::NarrowSketch, gram, .. } => {
                return Ok(T::DTYPE == DType::F32 && sketch_gram::<T, T>(y, gram, par, stack));
            }
            Step::Divide { divisor, beside } => {
                // The thread that summed the upper half has it in its cache.
                let cut = half(y.nrows(), PARAMS.block_rows);
                let (upper, lower) = y.split_at_row_mut(cut);
                let first = || {
                    beside();
                    divide(upper, divisor, par);
                };
                join(par, first, || divide(lower, divisor, par));
            }
            Step::Equilibrate { .. } | Step::Reflect { .. } => unreachable!("CholeskyQR asks for neither"),
        }
        Ok(true)
    }
}

/// Runs CholeskyQR passes until the panel is orthonormal, with `acc <- R acc` for each. With `sketch`, the first factor
/// comes from a sketch if the panel is tall enough for one.
pub(super) fn iterate<T: Scalar>(
    y: Steps<'_, T>,
    l: usize,
    mut acc: Option<MatMut<'_, f64>>,
    sketch: bool,
    par: Par,
    stack: &mut MemStack,
) -> Result<Outcome> {
    let (mut gram, stack) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
    let mut gram = gram.as_mat_mut();
    let (mut factor, stack) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
    let mut factor = factor.as_mat_mut();
    let (mut divisor, stack) = temp_mat_zeroed::<T, _, _>(l, l, stack);
    let mut divisor = divisor.as_mat_mut();

    let mut report = SINGULAR;
    let mut source = GramOf::Panel;
    if sketch && form(y, GramOf::NarrowSketch, gram.rb_mut(), stack)? {
        source = GramOf::NarrowSketch;
    } else if sketch && form(y, GramOf::Sketch, gram.rb_mut(), stack)? {
        source = GramOf::Sketch;
    } else {
        form(y, GramOf::Panel, gram.rb_mut(), stack)?;
    }
    loop {
        if !in_range::<T>(gram.rb()) {
            return Ok(if report.passes == 0 { Outcome::Range } else { Outcome::Breakdown(report) });
        }
        let first = report.passes == 0;
        let mut state = keeping_awake(par, || look(gram.rb(), source, first, factor.rb_mut(), par, stack));
        if source == GramOf::NarrowSketch {
            source = GramOf::Sketch;
            if !state.accepts(<T as Scalar>::EPSILON) && form(y, GramOf::Sketch, gram.rb_mut(), stack)? {
                state = keeping_awake(par, || look(gram.rb(), source, first, factor.rb_mut(), par, stack));
            }
        }
        if source == GramOf::Sketch && state.inflation <= PARAMS.max_sketched_inflation {
            // One pass will do: look at the panel itself.
            source = GramOf::Panel;
            form(y, GramOf::Panel, gram.rb_mut(), stack)?;
            continue;
        }
        let unit = if source == GramOf::Panel { <T as Scalar>::EPSILON } else { f64::EPSILON };
        let mut good = state.accepts(unit);
        if !good && source == GramOf::Panel && T::DTYPE == DType::F32 {
            source = GramOf::WidePanel;
            form(y, GramOf::WidePanel, gram.rb_mut(), stack)?;
            state = keeping_awake(par, || look(gram.rb(), source, first, factor.rb_mut(), par, stack));
            good = state.accepts(f64::EPSILON);
        }
        let mut algorithm = match source {
            GramOf::NarrowSketch | GramOf::Sketch => Algorithm::SketchedCholeskyQr,
            GramOf::WidePanel => Algorithm::WideCholeskyQr2,
            GramOf::Panel => Algorithm::CholeskyQr2,
        };
        if first {
            report.condition_estimate = state.condition;
        }
        if !good {
            // The largest eigenvalue of the scaled Gram matrix is at most l, and the errors of its entries and of
            // its Cholesky factorization are a small multiple of l u.
            if !factorize(gram.rb(), 8.0 * l as f64 * f64::EPSILON, factor.rb_mut(), stack) {
                return Ok(Outcome::Breakdown(report));
            }
            algorithm = Algorithm::ShiftedCholeskyQr;
        }
        report.passes += 1;
        if first || algorithm == Algorithm::ShiftedCholeskyQr {
            report.algorithm = algorithm;
        }
        if !state.presumed && report.passes >= PARAMS.max_passes {
            return Ok(Outcome::Breakdown(report));
        }
        round_factor(divisor.rb_mut(), factor.rb(), gram.rb(), stack);
        if !state.presumed {
            if let Some(acc) = &mut acc {
                accumulate(acc.rb_mut(), divisor.rb(), factor.rb_mut());
            }
            source = GramOf::Panel;
            let divisor = Some(divisor.rb());
            y(Step::Gram { divisor, of: GramOf::Panel, gram: gram.rb_mut() }, stack)?;
            continue;
        }
        // The diagonal says that this is the last pass. The division starts before the inverse is known. If the inverse
        // says otherwise, this was a pass with a poor factor, and the next Gram matrix shows it.
        let mut beside = || {
            state = State::of(factor.rb(), state.condition, stack);
            if let Some(acc) = &mut acc {
                accumulate(acc.rb_mut(), divisor.rb(), factor.rb_mut());
            }
        };
        y(Step::Divide { divisor: divisor.rb(), beside: &mut beside }, MemStack::new(&mut []))?;
        if state.accepts(unit) && state.inflation <= PARAMS.max_inflation {
            if first {
                report.algorithm = Algorithm::CholeskyQr;
            }
            return Ok(Outcome::Done(report));
        }
        if report.passes >= PARAMS.max_passes {
            return Ok(Outcome::Breakdown(report));
        }
        form(y, GramOf::Panel, gram.rb_mut(), stack)?;
    }
}

/// Forms the lower triangle of a Gram matrix of the panel, or of a sketch of it. Returns false if the panel is not
/// sketched.
fn form<T: Scalar>(y: Steps<'_, T>, of: GramOf, gram: MatMut<'_, f64>, stack: &mut MemStack) -> Result<bool> {
    y(Step::Gram { divisor: None, of, gram }, stack)
}

/// Returns the scratch for [`iterate`] with `most_groups` groups, with a sketch or without.
pub(crate) fn iterate_scratch<T: Scalar>(m: usize, l: usize, most_groups: usize, sketch: bool) -> StackReq {
    let gram = |m: usize| groups(m, l, most_groups).count;
    let wide = match T::DTYPE {
        DType::F32 => gram_scratch::<f64>(l, gram(m), wide_rows(most_groups)),
        _ => StackReq::EMPTY,
    };
    let sketch = match sketch_rows(m, l) {
        p if sketch && p > 0 => StackReq::all_of(&[
            StackReq::new::<T>(m),
            temp_mat_scratch::<f64>(p, 2 * l),
            gram_scratch::<f64>(l, gram(p), 0),
        ]),
        _ => StackReq::EMPTY,
    };
    let panel = StackReq::any_of(&[gram_scratch::<T>(l, gram(m), 0), wide, sketch]);
    decide_scratch::<T>(l).or(matrices_scratch::<T>(l).and(panel))
}

/// Returns the part of the scratch of [`iterate`] that serves the decisions. It is all that is needed where panels live
/// elsewhere.
pub(super) fn decide_scratch<T: Scalar>(l: usize) -> StackReq {
    matrices_scratch::<T>(l).and(factorize_scratch(l))
}

fn matrices_scratch<T: Scalar>(l: usize) -> StackReq {
    StackReq::all_of(&[temp_mat_scratch::<f64>(l, l), temp_mat_scratch::<f64>(l, l), temp_mat_scratch::<T>(l, l)])
}

fn gram_scratch<W: Scalar>(l: usize, groups: usize, buffer_rows: usize) -> StackReq {
    temp_mat_scratch::<W>(l, l).and(StackReq::new::<u8>(node_bytes::<W>(l, groups, buffer_rows)))
}

/// Tells whether the squares of the entries neither overflowed nor lost digits to underflow.
fn in_range<T: Scalar>(gram: MatRef<'_, f64>) -> bool {
    // Products of entries below 2^(-62) of the range of f32 lose digits; in a column this long that does not show.
    let (low, high) = match T::DTYPE {
        DType::F32 => (2f64.powi(-60), 2f64.powi(100)),
        _ => (2f64.powi(-700), 2f64.powi(900)),
    };
    (0..gram.nrows()).all(|j| (low..=high).contains(&gram[(j, j)]))
}

/// Computes `Y <- Y L⁻ᵀ`, with L in the lower triangle of `divisor`.
pub(crate) fn divide<T: Scalar>(mut y: MatMut<'_, T>, divisor: MatRef<'_, T>, par: Par) {
    let mut none: [T; 0] = [];
    let none = MatMut::from_column_major_slice_mut(&mut none, 0, 0);
    for_row_groups(y.rb_mut(), none, PARAMS.block_rows, 0, par, &|rows, _| divide_block(rows, divisor));
}

/// Computes [`divide`] for one block of rows, strip by strip of columns from left to right.
///
/// ```text
///   Y_j <- (Y_j − Y_0..j L_j,0..jᵀ) L_jjᵀ⁻¹      one product and one small solve per strip of columns
/// ```
fn divide_block<T: Scalar>(mut y: MatMut<'_, T>, divisor: MatRef<'_, T>) {
    let l = y.ncols();
    let strip = match T::DTYPE {
        DType::F32 if l < PARAMS.few_columns => PARAMS.narrow_strip,
        DType::F32 => PARAMS.wide_strip,
        _ => l,
    };
    let mut end = (l - 1) % strip + 1;
    let mut first = 0;
    while first < l {
        let (done, rest) = y.rb_mut().split_at_col_mut(first);
        let mut y_j = rest.subcols_mut(0, end - first);
        if first > 0 {
            let l_j = divisor.submatrix(first, 0, end - first, first).transpose();
            matmul(y_j.rb_mut(), Accum::Add, done.rb(), l_j, T::from_f64(-1.0), Par::Seq);
        }
        let l_jj = divisor.submatrix(first, first, end - first, end - first);
        triangular_solve::solve_lower_triangular_in_place(l_jj, y_j.transpose_mut(), Par::Seq);
        (first, end) = (end, end + strip);
    }
}

/// Computes the lower triangle of `YᵀY`, after `Y <- Y L⁻ᵀ` if there is a divisor.
fn gram_of<T: Scalar>(
    y: MatMut<'_, T>,
    divisor: Option<MatRef<'_, T>>,
    gram: MatMut<'_, f64>,
    most_groups: usize,
    par: Par,
    stack: &mut MemStack,
) {
    sum_groups::<T, T>(y, gram, (most_groups, 0), par, stack, &|mut y, mut g, _| {
        let m = y.nrows();
        for i in (0..m).step_by(PARAMS.block_rows) {
            let mut block = y.rb_mut().subrows_mut(i, PARAMS.block_rows.min(m - i));
            if let Some(divisor) = divisor {
                divide_block(block.rb_mut(), divisor);
            }
            syrk(g.rb_mut(), block.rb());
        }
    });
}

/// Computes the lower triangle of `YᵀY` in f64.
fn wide_gram<T: Scalar>(y: MatMut<'_, T>, gram: MatMut<'_, f64>, most_groups: usize, par: Par, stack: &mut MemStack) {
    let rows = wide_rows(most_groups);
    sum_groups::<T, f64>(y, gram, (most_groups, rows), par, stack, &|y, mut g, stack| {
        let (m, l) = y.shape();
        let (mut wide, _) = temp_mat_zeroed::<f64, _, _>(rows, l, stack);
        let mut wide = wide.as_mat_mut();
        for i in (0..m).step_by(rows) {
            let block = y.rb().subrows(i, rows.min(m - i));
            let mut wide = wide.rb_mut().subrows_mut(0, block.nrows());
            widen(wide.rb_mut(), block);
            syrk(g.rb_mut(), wide.rb());
        }
    });
}

/// Sets `gram` to the sum of what `add` adds to its second argument for each group of rows. The groups form a tree,
/// whose nodes are zeroed and added by the threads that need them.
fn sum_groups<T: Scalar, W: Scalar>(
    y: MatMut<'_, T>,
    mut gram: MatMut<'_, f64>,
    (most_groups, buffer_rows): (usize, usize),
    par: Par,
    stack: &mut MemStack,
    add: &(impl Fn(MatMut<'_, T>, MatMut<'_, W>, &mut MemStack) + Sync),
) {
    let (m, l) = y.shape();
    let Groups { count, rows } = groups(m, l, most_groups);
    let (mut sum, stack) = temp_mat_zeroed::<W, _, _>(l, l, stack);
    let mut sum = sum.as_mat_mut();
    let tree = Sum { rows, buffer_rows, par, add };
    let (bytes, _) = stack.make_uninit::<u8>(node_bytes::<W>(l, count, buffer_rows));
    tree.node(y, sum.rb_mut(), count, bytes);
    for j in 0..l {
        let to = &mut column_mut(gram.rb_mut(), j)[j..];
        to.iter_mut().zip(&column(sum.rb(), j)[j..]).for_each(|(to, x)| *to = (*x).to_f64());
    }
}

/// Returns the bytes of scratch of a node over `count` groups.
fn node_bytes<W: Scalar>(l: usize, count: usize, buffer_rows: usize) -> usize {
    if count == 1 {
        return temp_mat_scratch::<W>(buffer_rows, l).unaligned_bytes_required();
    }
    let other = temp_mat_scratch::<W>(l, l).unaligned_bytes_required();
    other + node_bytes::<W>(l, count / 2, buffer_rows) + node_bytes::<W>(l, count - count / 2, buffer_rows)
}

struct Sum<'a, F> {
    rows: usize,
    buffer_rows: usize,
    par: Par,
    add: &'a F,
}

impl<F> Sum<'_, F> {
    /// Adds the Gram matrices of `count` groups to `sum`.
    fn node<T: Scalar, W: Scalar>(
        &self,
        y: MatMut<'_, T>,
        mut sum: MatMut<'_, W>,
        count: usize,
        bytes: &mut [MaybeUninit<u8>],
    ) where
        F: Fn(MatMut<'_, T>, MatMut<'_, W>, &mut MemStack) + Sync,
    {
        if count == 1 {
            return (self.add)(y, sum, MemStack::new(bytes));
        }
        let (l, half) = (sum.ncols(), count / 2);
        let (upper, lower) = y.split_at_row_mut(half * self.rows);
        let (mut other, stack) = temp_mat_zeroed::<W, _, _>(l, l, MemStack::new(bytes));
        let mut other = other.as_mat_mut();
        let (bytes, stack) = stack.make_uninit::<u8>(node_bytes::<W>(l, half, self.buffer_rows));
        let (other_bytes, _) = stack.make_uninit::<u8>(node_bytes::<W>(l, count - half, self.buffer_rows));
        join(
            self.par,
            || self.node(upper, sum.rb_mut(), half, bytes),
            || self.node(lower, other.rb_mut(), count - half, other_bytes),
        );
        for j in 0..l {
            let to = &mut column_mut(sum.rb_mut(), j)[j..];
            to.iter_mut().zip(&column(other.rb(), j)[j..]).for_each(|(to, x)| *to += *x);
        }
    }
}

/// Returns the rows of the sketch of an m×l panel, 0 if it is not sketched.
fn sketch_rows(m: usize, l: usize) -> usize {
    let p = (PARAMS.sketch_rows * l).next_multiple_of(32);
    if l >= PARAMS.min_sketched_columns && m >= 2 * p { p } else { 0 }
}

/// Returns a fixed random bit string: SplitMix64 of the index.
fn hash(index: usize) -> u64 {
    let mut z = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Computes the Gram matrix of `S Y`, where S is p×m with one entry ±1 in each column. Slabs of p rows are added onto
/// the sketch, each rotated by a random amount, each row with a random sign. Returns false if the panel is not tall
/// enough.
fn sketch_gram<T: Scalar, W: Scalar>(y: MatMut<'_, T>, gram: MatMut<'_, f64>, par: Par, stack: &mut MemStack) -> bool {
    let (m, l) = y.shape();
    let p = sketch_rows(m, l);
    if p == 0 {
        return false;
    }
    let mut bits = 0;
    let (signs, stack) = stack.make_with(m, |i| {
        bits = if i % 64 == 0 { hash(i / 64) } else { bits >> 1 };
        T::from_f64(if bits & 1 == 0 { 1.0 } else { -1.0 })
    });
    let (mut folded, stack) = temp_mat_zeroed::<W, _, _>(p, 2 * l, stack);
    let (mut folded, mut other) = folded.as_mat_mut().split_at_col_mut(l);
    // Groups are halved as for the Gram matrix of the panel, so that its rows stay in the cache of their thread.
    let Groups { count, rows } = groups(m, l, PARAMS.max_groups);
    let cut = count / 2 * rows;
    let (upper, lower) = y.split_at_row_mut(cut);
    join(
        par,
        || fold_columns(upper, folded.rb_mut(), &signs[..cut], 0, par),
        || fold_columns(lower, other.rb_mut(), &signs[cut..], cut, par),
    );
    let columns = l.div_ceil(PARAMS.sketch_tasks);
    for_row_groups(folded.rb_mut().transpose_mut(), other, columns, columns, par, &|to, other| {
        let mut to = to.transpose_mut();
        for j in 0..to.ncols() {
            let to = column_mut(to.rb_mut(), j);
            to.iter_mut().zip(column(other.rb(), j)).for_each(|(to, x)| *to += *x);
        }
    });
    gram_of(folded, None, gram, PARAMS.max_groups, par, stack);
    true
}

/// Adds the rows of the panel from `from` on to the sketch. Columns are independent: they are the rows of the
/// transposed views.
fn fold_columns<T: Scalar, W: Scalar>(y: MatMut<'_, T>, folded: MatMut<'_, W>, signs: &[T], from: usize, par: Par) {
    let columns = y.ncols().div_ceil(PARAMS.sketch_tasks);
    for_row_groups(y.transpose_mut(), folded, columns, columns, par, &|y, mut folded| {
        for j in 0..y.nrows() {
            fold(folded.rb_mut().col_mut(j), y.rb().row(j).transpose(), signs, from);
        }
    });
}

fn fold<T: Scalar, W: Scalar>(folded: ColMut<'_, W>, x: ColRef<'_, T>, signs: &[T], first: usize) {
    let p = folded.nrows();
    let folded = folded.try_as_col_major_mut().expect("scratch is column-major").as_slice_mut();
    let mut add = |at: usize, from: usize, len: usize| {
        let (folded, signs) = (&mut folded[at..at + len], &signs[from..from + len]);
        let x = x.subrows(from, len);
        match x.try_as_col_major() {
            Some(x) => add_signed(folded, x.as_slice(), signs),
            None => {
                for ((f, s), x) in folded.iter_mut().zip(signs).zip(x.iter()) {
                    *f += W::from_f64((*x * *s).to_f64());
                }
            }
        }
    };
    for from in (0..signs.len()).step_by(p) {
        let len = p.min(signs.len() - from);
        let turn = (hash(first + from) % p as u64) as usize;
        let head = len.min(p - turn);
        add(turn, from, head);
        add(0, from + head, len - head);
    }
}

fn add_signed<T: Scalar, W: Scalar>(folded: &mut [W], x: &[T], signs: &[T]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for ((f, x), s) in folded.iter_mut().zip(x).zip(signs) {
                *f += W::from_f64((*x * *s).to_f64());
            }
        },
    );
}

/// Adds the lower triangle of `YᵀY` to `gram`, a few rows of Y at a time. A sum of n equal terms errs by up to n eps /
/// 4, all to one side, and columns of equal entries are common; short sums bound that.
///
/// ```text
///   gram  [ x . . .           ]   one product per strip of `strip` rows, the first one taking the remainder;
///         [ x x x x . .       ]   what it writes above the diagonal is never read
///         [ x x x x x x . .   ]
/// ```
fn syrk<W: Scalar>(mut gram: MatMut<'_, W>, y: MatRef<'_, W>) {
    let (l, one) = (y.ncols(), W::from_f64(1.0));
    let strip = PARAMS.strip_bytes / size_of::<W>();
    for i in (0..y.nrows()).step_by(PARAMS.sum_rows) {
        let y = y.subrows(i, PARAMS.sum_rows.min(y.nrows() - i));
        let mut end = (l - 1) % strip + 1;
        let mut first = 0;
        while first < l {
            let to = gram.rb_mut().submatrix_mut(first, 0, end - first, end);
            matmul(to, Accum::Add, y.subcols(first, end - first).transpose(), y.subcols(0, end), one, Par::Seq);
            (first, end) = (end, end + strip);
        }
    }
}

fn widen<T: Scalar>(mut dst: MatMut<'_, f64>, src: MatRef<'_, T>) {
    for j in 0..src.ncols() {
        let dst = column_mut(dst.rb_mut(), j);
        match src.col(j).try_as_col_major() {
            Some(src) => dst.iter_mut().zip(src.as_slice()).for_each(|(d, s)| *d = (*s).to_f64()),
            None => dst.iter_mut().zip(src.col(j).iter()).for_each(|(d, s)| *d = (*s).to_f64()),
        }
    }
}

/// What the Cholesky factor of a Gram matrix tells about the panel.
#[derive(Clone, Copy)]
struct State {
    positive: bool,
    /// The value of `‖R⁻¹‖_F²` for the scaled matrix.
    inverse_norm: f64,
    /// The largest variance inflation factor.
    inflation: f64,
    /// An estimate of the condition of the scaled panel; 0 where none was made.
    condition: f64,
    /// Whether `inverse_norm` and `inflation` come from the diagonal alone.
    presumed: bool,
}

impl State {
    const FAILED: Self = Self {
        positive: false,
        inverse_norm: f64::INFINITY,
        inflation: f64::INFINITY,
        condition: f64::INFINITY,
        presumed: false,
    };

    /// Makes the state from the inverse of the factor.
    fn of(factor: MatRef<'_, f64>, condition: f64, stack: &mut MemStack) -> Self {
        let l = factor.nrows();
        let (mut inverse, stack) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
        let mut inverse = inverse.as_mat_mut();
        triangular_inverse::invert_lower_triangular(inverse.rb_mut(), factor, Par::Seq);
        // R⁻¹ = L⁻ᵀ: column j of R⁻¹ is row j of L⁻¹.
        let (mut inflations, _) = stack.make_with(l, |_| 0.0);
        row_lengths(inverse.rb(), &mut inflations);
        let inverse_norm = inflations.iter().sum::<f64>();
        let inflation = inflations.iter().fold(0.0_f64, |largest, x| largest.max(*x));
        if !(inverse_norm.is_finite() && condition.is_finite()) {
            return Self::FAILED;
        }
        Self { positive: true, inverse_norm, inflation, condition, presumed: false }
    }

    /// Tells whether a Gram matrix with relative errors of `unit` is good enough for this condition.
    fn accepts(&self, unit: f64) -> bool {
        self.positive && unit * self.inverse_norm <= PARAMS.max_defect
    }
}

/// Factors a Gram matrix and examines the factor as far as is necessary. The condition is estimated for the first
/// factor. The inverse is formed only where something depends on it, because it takes as long as the factor; row j of
/// L⁻¹ is at least `1 / L_jj` long. For a sketch that bound and an estimate of the norm suffice, because the next Gram
/// matrix shows the rest. Where the bound says that this is the last pass, the inverse is formed beside the division.
fn look(
    gram: MatRef<'_, f64>,
    source: GramOf,
    first: bool,
    mut factor: MatMut<'_, f64>,
    par: Par,
    stack: &mut MemStack,
) -> State {
    let l = gram.nrows();
    if !factorize(gram, 0.0, factor.rb_mut(), stack) {
        return State::FAILED;
    }
    let inflation = (0..l).map(|j| factor[(j, j)].powi(-2)).fold(0.0, f64::max);
    if source == GramOf::NarrowSketch && f64::from(f32::EPSILON) * inflation > PARAMS.max_defect {
        return State::FAILED;
    }
    let mut condition = 0.0;
    let mut inverse_norm = 0.0;
    if first {
        let (mut vectors, _) = temp_mat_zeroed::<f64, _, _>(l, 4, stack);
        let (v, w) = vectors.as_mat_mut().split_at_col_mut(2);
        let norm = |of, vectors| pulp::Arch::new().dispatch(NormEstimate { a: factor.rb(), of, vectors });
        let (inverse, norm) = join(par, || norm(Of::Inverse, v), || norm(Of::Matrix, w));
        condition = norm * inverse;
        // The Frobenius norm is a little more than the 2-norm.
        inverse_norm = 4.0 * inverse * inverse;
    }
    let sketched = matches!(source, GramOf::NarrowSketch | GramOf::Sketch);
    let last = source == GramOf::Panel && inflation <= PARAMS.max_inflation;
    if !(condition.is_finite() && (sketched || last)) {
        return State::of(factor.rb(), condition, stack);
    }
    State { positive: true, inverse_norm, inflation, condition, presumed: last }
}

/// Computes `factor <- L` with `L Lᵀ = D gram D + shift I`, where `D gram D` has a unit diagonal. Returns whether that
/// matrix is positive definite.
fn factorize(gram: MatRef<'_, f64>, shift: f64, mut factor: MatMut<'_, f64>, stack: &mut MemStack) -> bool {
    let l = gram.nrows();
    let (scale, stack) = stack.make_with(l, |j| 1.0 / gram[(j, j)].sqrt());
    for j in 0..l {
        let (l_j, g_j) = (&mut column_mut(factor.rb_mut(), j)[j..], &column(gram, j)[j..]);
        for ((x, g), s) in l_j.iter_mut().zip(g_j).zip(&scale[j..]) {
            *x = g * (s * scale[j]);
        }
        l_j[0] += shift;
    }
    llt::cholesky_in_place(factor, Default::default(), Par::Seq, stack, Default::default()).is_ok()
}

/// Computes `divisor <- D⁻¹ L`, rounded to `T`.
fn round_factor<T: Scalar>(
    mut divisor: MatMut<'_, T>,
    factor: MatRef<'_, f64>,
    gram: MatRef<'_, f64>,
    stack: &mut MemStack,
) {
    let l = gram.nrows();
    let (lengths, _) = stack.make_with(l, |j| gram[(j, j)].sqrt());
    for j in 0..l {
        let to = &mut column_mut(divisor.rb_mut(), j)[j..];
        for ((d, x), length) in to.iter_mut().zip(&column(factor, j)[j..]).zip(&lengths[j..]) {
            *d = T::from_f64(x * length);
        }
    }
}

/// Computes `acc <- R acc`, with the rounded factor by which the panel is divided as R. Overwrites the upper triangle
/// of `work`.
fn accumulate<T: Scalar>(acc: MatMut<'_, f64>, divisor: MatRef<'_, T>, mut work: MatMut<'_, f64>) {
    for j in 0..work.ncols() {
        for i in 0..=j {
            work[(i, j)] = divisor[(j, i)].to_f64();
        }
    }
    premultiply(acc, work.rb());
}

/// Computes the squared lengths of the rows of a lower triangular matrix.
#[inline(always)]
fn row_lengths(a: MatRef<'_, f64>, lengths: &mut [f64]) {
    lengths.fill(0.0);
    for j in 0..a.ncols() {
        for (s, x) in lengths[j..].iter_mut().zip(&column(a, j)[j..]) {
            *s += x * x;
        }
    }
}

fn factorize_scratch(l: usize) -> StackReq {
    let vector = StackReq::new::<f64>(l);
    StackReq::any_of(&[
        vector.and(llt::cholesky_in_place_scratch::<f64>(l, Par::Seq, Default::default())),
        vector.and(temp_mat_scratch::<f64>(l, l)),
        temp_mat_scratch::<f64>(l, 4),
    ])
}

/// The matrix whose norm is estimated.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    Matrix,
    Inverse,
}

/// Estimates from below the 2-norm of a lower triangular matrix or of its inverse. It takes two power steps from a row:
/// the longest one, or that of the smallest pivot.
struct NormEstimate<'a> {
    a: MatRef<'a, f64>,
    of: Of,
    /// Scratch of two columns.
    vectors: MatMut<'a, f64>,
}

impl NullaryFnOnce for NormEstimate<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let NormEstimate { a, of, vectors } = self;
        let l = a.nrows();
        let (x, y) = vectors.split_at_col_mut(1);
        let (x, y) = (column_mut(x, 0), column_mut(y, 0));
        let norm = |x: &[f64]| dot_of(x, x).sqrt();
        match of {
            Of::Matrix => {
                row_lengths(a, x);
                let longest = (0..l).fold(0, |best, i| if x[i] > x[best] { i } else { best });
                for (j, x) in x.iter_mut().enumerate() {
                    *x = if j <= longest { a[(longest, j)] } else { 0.0 };
                }
            }
            Of::Inverse => {
                let smallest = (0..l).fold(0, |best, i| if a[(i, i)] < a[(best, best)] { i } else { best });
                x.fill(0.0);
                x[smallest] = 1.0;
                solve_transposed(a, x);
            }
        }
        let mut best = 0.0_f64;
        for _ in 0..2 {
            let length = norm(x);
            if length == 0.0 || !length.is_finite() {
                return length;
            }
            // y = A x / |x|, then x = Aᵀ y; |y| and |x| / |y| are both lower bounds.
            match of {
                Of::Matrix => {
                    y.fill(0.0);
                    for j in 0..l {
                        let s = x[j] / length;
                        add_multiple(&mut y[j..], s, &column(a, j)[j..]);
                    }
                    for (j, x) in x.iter_mut().enumerate() {
                        *x = dot_of(&column(a, j)[j..], &y[j..]);
                    }
                }
                Of::Inverse => {
                    y.iter_mut().zip(&*x).for_each(|(y, x)| *y = x / length);
                    solve(a, y);
                    x.copy_from_slice(y);
                    solve_transposed(a, x);
                }
            }
            let ny = norm(y);
            best = ny.max(norm(x) / ny.max(f64::MIN_POSITIVE));
        }
        best
    }
}

/// Solves `x <- L⁻¹ x`.
#[inline(always)]
fn solve(a: MatRef<'_, f64>, x: &mut [f64]) {
    for j in 0..x.len() {
        let a = &column(a, j)[j..];
        let (head, rest) = x[j..].split_at_mut(1);
        head[0] /= a[0];
        add_multiple(rest, -head[0], &a[1..]);
    }
}

/// Solves `x <- L⁻ᵀ x`.
#[inline(always)]
fn solve_transposed(a: MatRef<'_, f64>, x: &mut [f64]) {
    for j in (0..x.len()).rev() {
        let a = &column(a, j)[j..];
        x[j] = (x[j] - dot_of(&a[1..], &x[j + 1..])) / a[0];
    }
}

/// Computes `y <- y + s x`.
#[inline(always)]
fn add_multiple(y: &mut [f64], s: f64, x: &[f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += s * x;
    }
}

/// Computes `acc <- R acc`, both upper triangular.
pub(super) fn premultiply(acc: MatMut<'_, f64>, r: MatRef<'_, f64>) {
    pulp::Arch::new().dispatch(Premultiply { acc, r });
}

struct Premultiply<'a> {
    acc: MatMut<'a, f64>,
    r: MatRef<'a, f64>,
}

impl NullaryFnOnce for Premultiply<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Premultiply { mut acc, r } = self;
        for j in 0..r.ncols() {
            let x = column_mut(acc.rb_mut(), j);
            // Entry k is read before anything is added to it, because later columns of R only reach the rows above it.
            for k in 0..=j {
                let s = std::mem::take(&mut x[k]);
                // At first `acc` is the identity.
                if s != 0.0 {
                    add_multiple(&mut x[..=k], s, column(r, k));
                }
            }
        }
    }
}
