//! CholeskyQR: `G = YᵀY = RᵀR`, `Q = Y R⁻¹`, repeated until Q is orthonormal.
//!
//! ```text
//!   rows of Y, in groups (one task each) of blocks that stay in cache:
//!
//!     group 0 | block 0   Y_b <- Y_b R⁻¹  (TRSM), then  G_0 += Y_bᵀ Y_b  (syrk) while the block is hot
//!             | block 1   ...
//!     group 1 | ...                                    G_1 += ...
//!                         G = G_0 + G_1 + ...  in order, in f64; Cholesky of the l×l G in f64
//! ```
//!
//! One pass costs `m l²` flops of syrk and `m l²` of TRSM and reads and writes the panel once; everything l×l is done
//! in f64 by one thread (`l³/3` for the factor, `l³/3` for its inverse, which gives the condition).
//!
//! What decides how to go on is the factor of the scaled Gram matrix `D G D` (unit diagonal, D powers of two):
//!
//! * A Gram matrix with relative error `u` gives a Q with `‖QᵀQ − I‖ ≈ u ‖R⁻¹‖_F²`. Where that is below 1/4 the pass
//!   leaves a panel of condition < 2 and the next one finishes (CholeskyQR2: Yamamoto, Nakatsukasa, Yanagisawa,
//!   Fukaya 2015).
//! * Otherwise, for f32, the Gram matrix is formed again in f64: blocks are widened in cache, products are exact.
//!   This carries to condition 1/u of f32, where the panel itself stops having that rank.
//! * Otherwise `G + s I` is factored (shifted CholeskyQR: Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa,
//!   1809.11085), which lifts the smallest singular values by `s^{-1/2}` per pass.
//! * Pass p is the last one if the variance inflation factors `g_jj ‖R⁻¹ e_j‖²` are small, since the elementwise
//!   error of `QᵀQ` is `u` times them. Well-conditioned panels therefore take one pass.
//!
//! The panel is divided by R with a triangular solve, not multiplied by R⁻¹: a solve is backward stable row by row
//! (`Q R = Y` to rounding whatever the condition), a product with the inverse is not, and here it is slower too
//! (3072×202, f32, one thread, blocks of 256 rows: TRSM 0.75 ms, GEMM with R⁻¹ 1.04 ms, TRSM with inverted diagonal
//! blocks of 32 0.76 ms).

use faer::Accum;
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed, triangular_inverse, triangular_solve};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{MatMut, MatRef, Par};

use super::{Algorithm, Orthonormalization, exponent, for_row_groups};
use crate::simd::Scalar;
use crate::tensor::DType;

/// Constants of the CholeskyQR passes.
pub(crate) struct CholeskyParams {
    /// Rows of a block: it is solved and multiplied while it sits in L2. Chosen by `benches/qr.rs` (128..2048 within 5 %).
    pub(crate) block_rows: usize,
    /// Largest number of row groups, which bounds the partial Gram matrices.
    pub(crate) max_groups: usize,
    /// A pass may leave `‖QᵀQ − I‖` at about this.
    pub(crate) max_defect: f64,
    /// A pass is the last one up to this variance inflation factor.
    pub(crate) max_inflation: f64,
    /// Passes before giving up.
    pub(crate) max_passes: usize,
}

pub(crate) const PARAMS: CholeskyParams =
    CholeskyParams { block_rows: 256, max_groups: 16, max_defect: 0.25, max_inflation: 4.0, max_passes: 6 };

/// How [`iterate`] ended.
pub(crate) enum Outcome {
    /// The panel is orthonormal.
    Done(Orthonormalization),
    /// Nothing was changed: the columns' squared lengths do not fit the arithmetic (or are zero, or not numbers).
    Range,
    /// The panel still satisfies `Y_in = Y acc` but is not orthonormal.
    Breakdown {
        /// Passes done.
        passes: usize,
    },
}

/// Which arithmetic a Gram matrix is accumulated in.
#[derive(Clone, Copy, PartialEq)]
enum Width {
    Own,
    Wide,
}

/// Row groups: a pure function of the shape.
struct Groups {
    count: usize,
    rows: usize,
}

fn groups(m: usize, l: usize) -> Groups {
    let blocks = m.div_ceil(PARAMS.block_rows);
    // All partial Gram matrices together are at most half of the panel.
    let most = (m / (2 * l)).min(blocks).clamp(1, PARAMS.max_groups);
    let power = 1 << most.ilog2();
    let rows = blocks.div_ceil(power) * PARAMS.block_rows;
    Groups { count: m.div_ceil(rows), rows }
}

/// CholeskyQR passes until the panel is orthonormal; `acc <- R acc` for each.
pub(crate) fn iterate<T: Scalar>(
    mut y: MatMut<'_, T>,
    mut acc: Option<MatMut<'_, f64>>,
    par: Par,
    stack: &mut MemStack,
) -> Outcome {
    let (_, l) = y.shape();
    let (mut gram, stack) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
    let mut gram = gram.as_mat_mut();
    let (mut factor, stack) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
    let mut factor = factor.as_mat_mut();
    let (mut divisor, stack) = temp_mat_zeroed::<T, _, _>(l, l, stack);
    let mut divisor = divisor.as_mat_mut();

    gram_of(y.rb_mut(), None, gram.rb_mut(), Width::Own, par, stack);
    let mut report =
        Orthonormalization { algorithm: Algorithm::CholeskyQr, condition_estimate: f64::INFINITY, passes: 0 };
    loop {
        if !in_range::<T>(gram.rb()) {
            return if report.passes == 0 { Outcome::Range } else { Outcome::Breakdown { passes: report.passes } };
        }
        let mut width = Width::Own;
        let mut state = factorize(gram.rb(), 0.0, factor.rb_mut(), stack);
        if !state.accepts(<T as Scalar>::EPSILON) {
            if T::DTYPE == DType::F32 {
                width = Width::Wide;
                gram_of(y.rb_mut(), None, gram.rb_mut(), width, par, stack);
                state = factorize(gram.rb(), 0.0, factor.rb_mut(), stack);
            }
            if !state.accepts(f64::EPSILON) {
                if report.passes >= 3 {
                    return Outcome::Breakdown { passes: report.passes };
                }
                // The largest eigenvalue of the scaled Gram matrix is at most 2l, and the errors of its entries and
                // of its Cholesky factorization are a small multiple of l u.
                let condition = state.condition;
                state = factorize(gram.rb(), 16.0 * l as f64 * f64::EPSILON, factor.rb_mut(), stack);
                if !state.positive {
                    return Outcome::Breakdown { passes: report.passes };
                }
                state.condition = condition;
                state.inflation = f64::INFINITY;
                report.algorithm = Algorithm::ShiftedCholeskyQr;
            } else if report.algorithm != Algorithm::ShiftedCholeskyQr {
                report.algorithm = Algorithm::WideCholeskyQr2;
            }
        }
        if report.passes == 0 {
            report.condition_estimate = state.condition;
        }
        // A wide Gram matrix says nothing about the rounding of the panel itself, so it never ends the iteration.
        let last = width == Width::Own && state.inflation <= PARAMS.max_inflation;
        if !last && report.passes + 1 >= PARAMS.max_passes {
            return Outcome::Breakdown { passes: report.passes };
        }
        if !last && report.algorithm == Algorithm::CholeskyQr {
            report.algorithm = Algorithm::CholeskyQr2;
        }
        for j in 0..l {
            for i in 0..l {
                divisor[(i, j)] = T::from_f64(if i >= j { factor[(i, j)] } else { 0.0 });
            }
        }
        if let Some(acc) = &mut acc {
            // The rounded factor is the one that the panel is divided by.
            for j in 0..l {
                for i in 0..l {
                    factor[(i, j)] = if i <= j { divisor[(j, i)].to_f64() } else { 0.0 };
                }
            }
            premultiply(acc.rb_mut(), factor.rb());
        }
        report.passes += 1;
        if last {
            divide(y.rb_mut(), divisor.rb(), par);
            return Outcome::Done(report);
        }
        gram_of(y.rb_mut(), Some(divisor.rb()), gram.rb_mut(), Width::Own, par, stack);
    }
}

/// Scratch for [`iterate`].
pub(crate) fn iterate_scratch<T: Scalar>(m: usize, l: usize) -> StackReq {
    let wide = if T::DTYPE == DType::F32 { gram_scratch::<f64>(m, l, PARAMS.block_rows) } else { StackReq::EMPTY };
    StackReq::all_of(&[
        temp_mat_scratch::<f64>(l, l),
        temp_mat_scratch::<f64>(l, l),
        temp_mat_scratch::<T>(l, l),
        StackReq::any_of(&[gram_scratch::<T>(m, l, 0), wide, factorize_scratch(l)]),
    ])
}

fn gram_scratch<W: Scalar>(m: usize, l: usize, buffer_rows: usize) -> StackReq {
    temp_mat_scratch::<W>(l + buffer_rows, l * groups(m, l).count)
}

/// Whether squares of the entries neither overflowed nor lost digits to underflow.
fn in_range<T: Scalar>(gram: MatRef<'_, f64>) -> bool {
    // Products of entries below 2^(-62) of f32's range lose digits; a column this long does not notice.
    let (low, high) = match T::DTYPE {
        DType::F32 => (2f64.powi(-60), 2f64.powi(100)),
        _ => (2f64.powi(-700), 2f64.powi(900)),
    };
    (0..gram.nrows()).all(|j| (low..=high).contains(&gram[(j, j)]))
}

/// `Y <- Y L⁻ᵀ`.
pub(crate) fn divide<T: Scalar>(mut y: MatMut<'_, T>, divisor: MatRef<'_, T>, par: Par) {
    let mut none: [T; 0] = [];
    let none = MatMut::from_column_major_slice_mut(&mut none, 0, 0);
    for_row_groups(y.rb_mut(), none, PARAMS.block_rows, 0, par, &|rows, _| {
        triangular_solve::solve_lower_triangular_in_place(divisor, rows.transpose_mut(), Par::Seq);
    });
}

/// The lower triangle of `YᵀY`, of Y divided by `divisor` if there is one.
fn gram_of<T: Scalar>(
    y: MatMut<'_, T>,
    divisor: Option<MatRef<'_, T>>,
    gram: MatMut<'_, f64>,
    width: Width,
    par: Par,
    stack: &mut MemStack,
) {
    let (m, l) = y.shape();
    let Groups { count, rows } = groups(m, l);
    let solve = |block: MatMut<'_, T>| {
        if let Some(divisor) = divisor {
            triangular_solve::solve_lower_triangular_in_place(divisor, block.transpose_mut(), Par::Seq);
        }
    };
    match width {
        Width::Own => {
            let (mut work, _) = temp_mat_zeroed::<T, _, _>(l, l * count, stack);
            let mut work = work.as_mat_mut();
            for_row_groups(y, work.rb_mut(), rows, l, par, &|mut y, mut g| {
                let m = y.nrows();
                for i in (0..m).step_by(PARAMS.block_rows) {
                    let mut block = y.rb_mut().subrows_mut(i, PARAMS.block_rows.min(m - i));
                    solve(block.rb_mut());
                    syrk(g.rb_mut(), block.rb());
                }
            });
            add_up(gram, work.rb());
        }
        Width::Wide => {
            let (mut work, _) = temp_mat_zeroed::<f64, _, _>(l + PARAMS.block_rows, l * count, stack);
            let mut work = work.as_mat_mut();
            for_row_groups(y, work.rb_mut(), rows, l, par, &|mut y, g| {
                let m = y.nrows();
                let (mut g, mut wide) = g.split_at_row_mut(l);
                for i in (0..m).step_by(PARAMS.block_rows) {
                    let mut block = y.rb_mut().subrows_mut(i, PARAMS.block_rows.min(m - i));
                    solve(block.rb_mut());
                    let mut wide = wide.rb_mut().subrows_mut(0, block.nrows());
                    widen(wide.rb_mut(), block.rb());
                    syrk(g.rb_mut(), wide.rb());
                }
            });
            add_up(gram, work.rb());
        }
    }
}

fn syrk<W: Scalar>(gram: MatMut<'_, W>, y: MatRef<'_, W>) {
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(gram, lower, Accum::Add, y.transpose(), full, y, full, W::from_f64(1.0), Par::Seq);
}

fn widen<T: Scalar>(mut dst: MatMut<'_, f64>, src: MatRef<'_, T>) {
    for j in 0..src.ncols() {
        let dst = dst.rb_mut().col_mut(j);
        let src = src.col(j);
        match (dst.try_as_col_major_mut(), src.try_as_col_major()) {
            (Some(dst), Some(src)) => {
                for (d, s) in dst.as_slice_mut().iter_mut().zip(src.as_slice().iter()) {
                    *d = (*s).to_f64();
                }
            }
            (Some(dst), None) => {
                for (d, s) in dst.as_slice_mut().iter_mut().zip(src.iter()) {
                    *d = (*s).to_f64();
                }
            }
            (None, _) => unreachable!("scratch is column-major"),
        }
    }
}

/// Adds the groups' partial sums, the lower triangles of the l×l blocks of `parts`, in order.
fn add_up<W: Scalar>(mut gram: MatMut<'_, f64>, parts: MatRef<'_, W>) {
    let l = gram.ncols();
    for j in 0..l {
        for i in j..l {
            gram[(i, j)] = 0.0;
        }
        for c in (j..parts.ncols()).step_by(l) {
            for i in j..l {
                gram[(i, j)] += parts[(i, c)].to_f64();
            }
        }
    }
}

/// What the Cholesky factor of a Gram matrix says.
struct State {
    positive: bool,
    /// `‖R⁻¹‖_F²` of the scaled matrix.
    inverse_norm: f64,
    /// Largest variance inflation factor.
    inflation: f64,
    /// Condition estimate of the scaled panel.
    condition: f64,
}

impl State {
    /// Whether a Gram matrix with relative errors of `unit` is good enough for this condition.
    fn accepts(&self, unit: f64) -> bool {
        self.positive && unit * self.inverse_norm <= PARAMS.max_defect
    }
}

/// `factor <- L` with `L Lᵀ = gram + shift D⁻²`, where D scales the diagonal into [1/2, 2).
fn factorize(gram: MatRef<'_, f64>, shift: f64, mut factor: MatMut<'_, f64>, stack: &mut MemStack) -> State {
    let l = gram.nrows();
    let (mut inverse, stack) = temp_mat_zeroed::<f64, _, _>(l, l, stack);
    let mut inverse = inverse.as_mat_mut();
    let (scale, stack) = stack.make_with(l, |j| 2f64.powi(-(exponent(gram[(j, j)]) >> 1)));
    for j in 0..l {
        for i in j..l {
            factor[(i, j)] = gram[(i, j)] * (scale[i] * scale[j]);
        }
        factor[(j, j)] += shift;
    }
    let failed =
        State { positive: false, inverse_norm: f64::INFINITY, inflation: f64::INFINITY, condition: f64::INFINITY };
    if llt::cholesky_in_place(factor.rb_mut(), Default::default(), Par::Seq, stack, Default::default()).is_err() {
        return failed;
    }
    triangular_inverse::invert_lower_triangular(inverse.rb_mut(), factor.rb(), Par::Seq);
    let (mut vectors, _) = temp_mat_zeroed::<f64, _, _>(l, 2, stack);
    let mut vectors = vectors.as_mat_mut();
    let condition = norm_estimate(factor.rb(), vectors.rb_mut()) * norm_estimate(inverse.rb(), vectors.rb_mut());
    // R⁻¹ = L⁻ᵀ: column j of R⁻¹ is row j of L⁻¹.
    let (mut rows, _) = vectors.split_at_col_mut(1);
    rows.fill(0.0);
    for j in 0..l {
        for i in j..l {
            rows[(i, 0)] += inverse[(i, j)] * inverse[(i, j)];
        }
    }
    let (mut inverse_norm, mut inflation) = (0.0, 0.0_f64);
    for i in 0..l {
        inverse_norm += rows[(i, 0)];
        inflation = inflation.max(rows[(i, 0)] * gram[(i, i)] * scale[i] * scale[i]);
    }
    if !(inverse_norm.is_finite() && condition.is_finite()) {
        return failed;
    }
    for j in 0..l {
        for i in j..l {
            factor[(i, j)] /= scale[i];
        }
    }
    State { positive: true, inverse_norm, inflation, condition }
}

fn factorize_scratch(l: usize) -> StackReq {
    StackReq::all_of(&[
        temp_mat_scratch::<f64>(l, l),
        StackReq::new::<f64>(l),
        StackReq::any_of(&[
            llt::cholesky_in_place_scratch::<f64>(l, Par::Seq, Default::default()),
            temp_mat_scratch::<f64>(l, 2),
        ]),
    ])
}

/// A lower bound on the 2-norm of a lower triangular matrix: two power steps from its longest row.
fn norm_estimate(a: MatRef<'_, f64>, vectors: MatMut<'_, f64>) -> f64 {
    let l = a.nrows();
    let (mut x, mut y) = vectors.split_at_col_mut(1);
    x.fill(0.0);
    for j in 0..l {
        for i in j..l {
            x[(i, 0)] += a[(i, j)] * a[(i, j)];
        }
    }
    let longest = (0..l).fold(0, |best, i| if x[(i, 0)] > x[(best, 0)] { i } else { best });
    for i in 0..l {
        x[(i, 0)] = if i <= longest { a[(longest, i)] } else { 0.0 };
    }
    let mut norm = 0.0;
    for _ in 0..2 {
        let length = x.norm_l2();
        if length == 0.0 || !length.is_finite() {
            return length;
        }
        // y = A x / |x|, then x = Aᵀ y.
        y.fill(0.0);
        for j in 0..l {
            let s = x[(j, 0)] / length;
            for i in j..l {
                y[(i, 0)] += s * a[(i, j)];
            }
        }
        norm = y.norm_l2();
        for j in 0..l {
            let mut s = 0.0;
            for i in j..l {
                s += a[(i, j)] * y[(i, 0)];
            }
            x[(j, 0)] = s;
        }
    }
    // |Aᵀ y| / |y| is the better of the two bounds.
    norm.max(x.norm_l2() / norm.max(f64::MIN_POSITIVE))
}

/// `acc <- R acc`, both upper triangular; `r` l×l in f64.
pub(crate) fn premultiply(mut acc: MatMut<'_, f64>, r: MatRef<'_, f64>) {
    let l = r.nrows();
    for j in 0..l {
        let mut column = acc.rb_mut().col_mut(j);
        // Entry k is read before anything is added to it: later columns of R only reach rows above it.
        for k in 0..=j {
            let x = column[k];
            column[k] = 0.0;
            for i in 0..=k {
                column[i] += r[(i, k)] * x;
            }
        }
    }
}
