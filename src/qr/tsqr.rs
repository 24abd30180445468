//! TSQR: QR of row blocks, then of their R's in pairs (Demmel, Grigori, Hoemmen, Langou 2012).
//!
//! ```text
//!   X_0 = Q_0 R_0 ─┐
//!   X_1 = Q_1 R_1 ─┴─ [R_0; R_1] = P_01 R_01 ─┐
//!   X_2 = Q_2 R_2 ─┐                          ├─ [R_01; R_23] = P R        Q = diag(Q_i) diag(P_01, P_23) P
//!   X_3 = Q_3 R_3 ─┴─ [R_2; R_3] = P_23 R_23 ─┘
//! ```
//!
//! Blocks stay in cache and are independent tasks; the tree depends on the shape alone, so the bits do not depend on
//! the number of threads. `2 l² m` flops for the leaves and `4/3 l³` for each of the joins; forming Q costs the same
//! again. The condition number is never squared: this is what ill-conditioned and rank-deficient panels want.
//!
//! [`tsqr_r`] and [`RAccumulator`] keep R alone: re-QR of `[R; X_i]` as rows arrive, in any number of blocks.
//! `RᵀR = XᵀX` without forming the Gram matrix, hence without squaring its condition number; two accumulators merge.

use std::mem::MaybeUninit;

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::linalg::{temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::householder;
use super::shared::check_shapes;
use crate::error::{Error, Result};
use crate::parallel;
use crate::simd::Scalar;

/// Constants of the tree.
struct TsqrParams {
    /// Rows of a leaf per column: joins cost 4/3 l³ against 2 l³ times this for a leaf.
    rows_per_column: usize,
    /// The fewest rows of a leaf, for narrow panels.
    min_rows: usize,
    /// Rows that are multiplied at a time by the coefficients of their node.
    block_rows: usize,
    /// The largest number of independent folds in [`tsqr_r`].
    max_folds: usize,
}

/// The constants follow from operation counts and cache sizes; they were not tuned.
const PARAMS: TsqrParams = TsqrParams { rows_per_column: 4, min_rows: 256, block_rows: 128, max_folds: 16 };

fn leaf_rows(l: usize) -> usize {
    (PARAMS.rows_per_column * l).max(PARAMS.min_rows)
}

/// Returns the number of leaves of the tree for an m×l panel. Each has at least l rows.
pub(crate) fn leaves(m: usize, l: usize) -> usize {
    (m / leaf_rows(l)).max(1)
}

/// A panel cut into `count` leaves of nearly equal length, the longer ones first.
#[derive(Clone, Copy)]
struct Cut {
    m: usize,
    count: usize,
}

impl Cut {
    /// Returns the first row of leaf `i`.
    fn start(self, i: usize) -> usize {
        i * (self.m / self.count) + i.min(self.m % self.count)
    }

    fn longest(self) -> usize {
        self.m.div_ceil(self.count)
    }
}

/// The use of a leaf's l columns of the work matrix. A join is kept with the first leaf of its right half.
///
/// ```text
///   node    l × l     R of the tree node that starts with this leaf; on the way down its coefficients
///   leaf    b × l     block factors of the leaf
///   stack  2l × l     [R; R] of the join, then its V
///   join    b × l     block factors of the join
///   pair   2l × l     coefficients of the join's two halves; rows of the leaf being multiplied
/// ```
struct Layout {
    leaf: usize,
    stack: usize,
    join: usize,
    pair: usize,
    rows: usize,
}

fn layout(l: usize) -> Layout {
    let b = householder::block_size(2 * l, l);
    let pair = l + b + 2 * l + b;
    Layout { leaf: l, stack: l + b, join: l + b + 2 * l, pair, rows: pair + (2 * l).max(PARAMS.block_rows) }
}

/// Returns the bytes of Householder scratch of one task.
fn task_bytes<T: Scalar>(cut: Cut, l: usize) -> usize {
    StackReq::any_of(&[
        householder::factor_scratch::<T>(cut.longest(), l, Par::Seq),
        householder::form_q_scratch::<T>(cut.longest(), l, Par::Seq),
        householder::factor_scratch::<T>(2 * l, l, Par::Seq),
        householder::apply_scratch::<T>(2 * l, l, l, Par::Seq),
    ])
    .unaligned_bytes_required()
}

/// Factors an m×l panel, m >= l >= 1: `Y <- Q`, and `r <- R` (l×l, upper triangular with a diagonal that is not
/// negative).
///
/// Like LAPACK's LATSQR followed by ORGTSQR. There is no test for NaN or infinities: they spread.
///
/// # Errors
/// [`Error::Empty`] if `l = 0`, [`Error::Shape`] if `m < l` or `r` is not l×l.
pub fn tsqr<T: Scalar>(y: MatMut<'_, T>, mut r: MatMut<'_, T>, par: Par, stack: &mut MemStack) -> Result<()> {
    let (m, l) = y.shape();
    check_shapes("tsqr", y.rb(), Some(r.rb()))?;
    let cut = Cut { m, count: leaves(m, l) };
    let tree = Tree { cut, l, par };
    let mut y = y;
    let (mut work, stack) = temp_mat_zeroed::<T, _, _>(layout(l).rows, l * cut.count, stack);
    let mut work = work.as_mat_mut();
    let (bytes, _) = stack.make_uninit::<u8>(task_bytes::<T>(cut, l) * cut.count);
    tree.up(y.rb_mut(), work.rb_mut(), bytes, 0, cut.count);
    // The R of the root lies in the node of the first leaf; its coefficients are the identity, but for signs.
    let mut root = work.rb_mut().submatrix_mut(0, 0, l, l);
    r.copy_from(root.rb());
    root.fill(T::from_f64(0.0));
    for i in 0..l {
        let sign = T::from_f64(if r[(i, i)] < T::from_f64(0.0) { -1.0 } else { 1.0 });
        root[(i, i)] = sign;
        for j in i..l {
            r[(i, j)] *= sign;
        }
    }
    tree.down(y, work.rb_mut(), bytes, 0, cut.count);
    Ok(())
}

/// Returns the scratch for [`tsqr`] of an m×l panel.
pub fn tsqr_scratch<T: Scalar>(m: usize, l: usize, _par: Par) -> StackReq {
    if m < l || l == 0 {
        return StackReq::EMPTY;
    }
    let cut = Cut { m, count: leaves(m, l) };
    temp_mat_scratch::<T>(layout(l).rows, l * cut.count).and(StackReq::new::<u8>(task_bytes::<T>(cut, l) * cut.count))
}

#[derive(Clone, Copy)]
struct Tree {
    cut: Cut,
    l: usize,
    par: Par,
}

impl Tree {
    /// Runs `f` on both halves of the leaves `first..first + count`.
    fn halves<T: Scalar>(
        self,
        y: MatMut<'_, T>,
        work: MatMut<'_, T>,
        bytes: &mut [MaybeUninit<u8>],
        first: usize,
        count: usize,
        f: impl Fn(Self, MatMut<'_, T>, MatMut<'_, T>, &mut [MaybeUninit<u8>], usize, usize) + Sync,
    ) {
        let half = count / 2;
        let (y0, y1) = y.split_at_row_mut(self.cut.start(first + half) - self.cut.start(first));
        let (work0, work1) = work.split_at_col_mut(half * self.l);
        let (bytes0, bytes1) = bytes.split_at_mut(half * (bytes.len() / count));
        parallel::join(
            self.par,
            || f(self, y0, work0, bytes0, first, half),
            || f(self, y1, work1, bytes1, first + half, count - half),
        );
    }

    /// Factors the leaves and joins. The R of each node ends in the work columns of its first leaf.
    fn up<T: Scalar>(
        self,
        mut y: MatMut<'_, T>,
        mut work: MatMut<'_, T>,
        bytes: &mut [MaybeUninit<u8>],
        first: usize,
        count: usize,
    ) {
        let (l, at) = (self.l, layout(self.l));
        if count == 1 {
            let b = householder::block_size(y.nrows(), l);
            let (mut node, rest) = work.split_at_row_mut(at.leaf);
            householder::factor(y.rb_mut(), rest.subrows_mut(0, b), Par::Seq, MemStack::new(bytes));
            copy_upper(node.rb_mut(), y.rb());
            return;
        }
        self.halves(y, work.rb_mut(), bytes, first, count, |tree, y, work, bytes, first, count| {
            tree.up(y, work, bytes, first, count);
        });
        let (mut left, right) = work.split_at_col_mut(count / 2 * l);
        let (right_r, rest) = right.subcols_mut(0, l).split_at_row_mut(at.stack);
        let (mut v, rest) = rest.split_at_row_mut(at.join - at.stack);
        v.rb_mut().subrows_mut(0, l).copy_from(left.rb().submatrix(0, 0, l, l));
        v.rb_mut().subrows_mut(l, l).copy_from(right_r.rb().subrows(0, l));
        let b = householder::block_size(2 * l, l);
        householder::factor(v.rb_mut(), rest.subrows_mut(0, b), Par::Seq, MemStack::new(bytes));
        copy_upper(left.rb_mut().submatrix_mut(0, 0, l, l), v.rb());
    }

    /// Spreads the coefficients in the node of the first leaf over the leaves, and forms their rows of Q.
    fn down<T: Scalar>(
        self,
        mut y: MatMut<'_, T>,
        mut work: MatMut<'_, T>,
        bytes: &mut [MaybeUninit<u8>],
        first: usize,
        count: usize,
    ) {
        let (l, at) = (self.l, layout(self.l));
        let (zero, one) = (T::from_f64(0.0), T::from_f64(1.0));
        if count == 1 {
            let b = householder::block_size(y.nrows(), l);
            let t = work.rb().submatrix(at.leaf, 0, b, l);
            householder::form_q(y.rb_mut(), t, Par::Seq, MemStack::new(bytes));
            let (node, rest) = work.split_at_row_mut(at.pair);
            let node = node.rb().subrows(0, l);
            let mut rows = rest;
            for i in (0..y.nrows()).step_by(PARAMS.block_rows) {
                let h = PARAMS.block_rows.min(y.nrows() - i);
                let mut block = y.rb_mut().subrows_mut(i, h);
                let mut rows = rows.rb_mut().subrows_mut(0, h);
                rows.copy_from(block.rb());
                matmul(block.rb_mut(), Accum::Replace, rows.rb(), node, one, Par::Seq);
            }
            return;
        }
        {
            let (mut left, right) = work.rb_mut().split_at_col_mut(count / 2 * l);
            let (stored, pair) = right.subcols_mut(0, l).split_at_row_mut(at.pair);
            let mut pair = pair.subrows_mut(0, 2 * l);
            pair.rb_mut().subrows_mut(0, l).copy_from(left.rb().submatrix(0, 0, l, l));
            pair.rb_mut().subrows_mut(l, l).fill(zero);
            let b = householder::block_size(2 * l, l);
            let (mut right_node, stored) = stored.split_at_row_mut(l);
            let v = stored.rb().subrows(at.stack - l, 2 * l);
            let t = stored.rb().subrows(at.join - l, b);
            householder::apply_q(v, t, pair.rb_mut(), Par::Seq, MemStack::new(bytes));
            left.rb_mut().submatrix_mut(0, 0, l, l).copy_from(pair.rb().subrows(0, l));
            right_node.copy_from(pair.rb().subrows(l, l));
        }
        self.halves(y, work, bytes, first, count, |tree, y, work, bytes, first, count| {
            tree.down(y, work, bytes, first, count);
        });
    }
}

/// Copies the upper triangle of the first rows of `src`, with zeros below.
fn copy_upper<T: Scalar>(mut dst: MatMut<'_, T>, src: MatRef<'_, T>) {
    for j in 0..dst.ncols() {
        for i in 0..dst.nrows() {
            dst[(i, j)] = if i <= j { src[(i, j)] } else { T::from_f64(0.0) };
        }
    }
}

/// Computes R alone (l×l, upper triangular, zeros below, diagonal not negative) of an m×l matrix of any m: `RᵀR = XᵀX`
/// without squaring the condition number. It takes one pass over X, which is only read.
///
/// # Errors
/// [`Error::Empty`] if `l = 0`, [`Error::Shape`] if `r` is not l×l.
#[doc(hidden)]
pub fn tsqr_r<T: Scalar>(x: MatRef<'_, T>, mut r: MatMut<'_, T>, par: Par, stack: &mut MemStack) -> Result<()> {
    let (m, l) = x.shape();
    if l == 0 {
        return Err(Error::Empty { shape: vec![m, l] });
    }
    if r.shape() != (l, l) {
        return Err(Error::shape("tsqr_r: R", format_args!("{l}×{l}"), format_args!("{:?}", r.shape())));
    }
    let folds = folds(m, l);
    let (mut work, stack) = temp_mat_zeroed::<T, _, _>(fold_rows(l), l * folds.count, stack);
    let mut work = work.as_mat_mut();
    let (bytes, _) = stack.make_uninit::<u8>(fold_bytes::<T>(l) * folds.count);
    fold_all(x, work.rb_mut(), bytes, 0, folds, par);
    // The R's of the folds are absorbed into the first, one after the other.
    let (mut first, mut others) = work.split_at_col_mut(l);
    let b = householder::block_size(2 * l, l);
    for i in 1..folds.count {
        let other = others.rb_mut().submatrix_mut(0, (i - 1) * l, l, l);
        let (mut stacked, t) = first.rb_mut().split_at_row_mut(fold_rows(l) - b);
        stacked.rb_mut().subrows_mut(l, l).copy_from(other.rb());
        householder::factor(stacked.rb_mut().subrows_mut(0, 2 * l), t, Par::Seq, MemStack::new(bytes));
        clear_below(stacked.subrows_mut(0, l));
    }
    copy_upper(r.rb_mut(), first.rb());
    nonnegative(r);
    Ok(())
}

/// Returns the scratch for [`tsqr_r`] of an m×l matrix.
#[doc(hidden)]
pub fn tsqr_r_scratch<T: Scalar>(m: usize, l: usize, _par: Par) -> StackReq {
    if l == 0 {
        return StackReq::EMPTY;
    }
    let count = folds(m, l).count;
    temp_mat_scratch::<T>(fold_rows(l), l * count).and(StackReq::new::<u8>(fold_bytes::<T>(l) * count))
}

/// Cuts an m×l matrix into independent folds of a few leaves each.
fn folds(m: usize, l: usize) -> Cut {
    Cut { m, count: (m / (4 * leaf_rows(l))).clamp(1, PARAMS.max_folds) }
}

/// Returns the rows of a fold's work matrix: R, a leaf of new rows (at least l), and the block factors.
fn fold_rows(l: usize) -> usize {
    l + leaf_rows(l) + householder::block_size(2 * l, l)
}

fn fold_bytes<T: Scalar>(l: usize) -> usize {
    householder::factor_scratch::<T>(l + leaf_rows(l), l, Par::Seq).unaligned_bytes_required()
}

/// Folds the blocks of rows into one triangle each, and the triangles in pairs into one.
fn fold_all<T: Scalar>(
    x: MatRef<'_, T>,
    mut work: MatMut<'_, T>,
    bytes: &mut [MaybeUninit<u8>],
    first: usize,
    folds: Cut,
    par: Par,
) {
    let l = x.ncols();
    let count = work.ncols() / l;
    if count > 1 {
        let half = count / 2;
        let (x0, x1) = x.split_at_row(folds.start(first + half) - folds.start(first));
        let (work0, work1) = work.split_at_col_mut(half * l);
        let (bytes0, bytes1) = bytes.split_at_mut(half * (bytes.len() / count));
        parallel::join(
            par,
            || fold_all(x0, work0, bytes0, first, folds, par),
            || fold_all(x1, work1, bytes1, first + half, folds, par),
        );
        return;
    }
    let h = leaf_rows(l);
    for i in (0..x.nrows()).step_by(h) {
        let rows = x.subrows(i, h.min(x.nrows() - i));
        work.rb_mut().submatrix_mut(l, 0, rows.nrows(), l).copy_from(rows);
        absorb(work.rb_mut(), rows.nrows(), MemStack::new(bytes));
    }
}

/// Factors `[R; rows]` again. Both stand on top of each other in `work`, with the block factors at its end.
fn absorb<T: Scalar>(work: MatMut<'_, T>, rows: usize, stack: &mut MemStack) {
    let l = work.ncols();
    let b = householder::block_size(2 * l, l);
    let end = work.nrows() - b;
    let (mut stacked, t) = work.split_at_row_mut(end);
    householder::factor(stacked.rb_mut().subrows_mut(0, l + rows), t, Par::Seq, stack);
    clear_below(stacked.subrows_mut(0, l));
}

fn clear_below<T: Scalar>(mut r: MatMut<'_, T>) {
    for j in 0..r.ncols() {
        for i in j + 1..r.nrows() {
            r[(i, j)] = T::from_f64(0.0);
        }
    }
}

/// Flips rows so that the diagonal is not negative.
fn nonnegative<T: Scalar>(mut r: MatMut<'_, T>) {
    for i in 0..r.nrows() {
        if r[(i, i)] < T::from_f64(0.0) {
            for j in i..r.ncols() {
                r[(i, j)] = -r[(i, j)];
            }
        }
    }
}

/// Accumulates the R of all rows seen so far in O(l²) memory: [`tsqr_r`] as a stream.
///
/// Rows are collected into leaves, so the bits of R depend on the rows and their order alone, not on how they were
/// cut into [`update`](Self::update)s.
#[doc(hidden)]
pub struct RAccumulator<T: Scalar> {
    /// R, the rows that wait, and the block factors.
    work: Mat<T>,
    waiting: usize,
    rows: u64,
    scratch: MemBuffer,
}

impl<T: Scalar> RAccumulator<T> {
    /// Makes an empty accumulator for rows of length l.
    ///
    /// # Errors
    /// [`Error::Empty`] if `l = 0`.
    pub fn new(l: usize) -> Result<Self> {
        if l == 0 {
            return Err(Error::Empty { shape: vec![0, l] });
        }
        let scratch = MemBuffer::new(StackReq::new::<u8>(fold_bytes::<T>(l)));
        Ok(Self { work: Mat::zeros(fold_rows(l), l), waiting: 0, rows: 0, scratch })
    }

    /// Adds the rows of `x` (any number × l).
    ///
    /// # Errors
    /// [`Error::Shape`] if they have another length.
    pub fn update(&mut self, x: MatRef<'_, T>) -> Result<()> {
        let l = self.work.ncols();
        if x.ncols() != l {
            return Err(Error::shape("RAccumulator::update", format_args!("rows of length {l}"), x.ncols()));
        }
        self.rows += x.nrows() as u64;
        let mut x = x;
        while x.nrows() > 0 {
            let take = x.nrows().min(leaf_rows(l) - self.waiting);
            let (head, tail) = x.split_at_row(take);
            self.work.rb_mut().submatrix_mut(l + self.waiting, 0, take, l).copy_from(head);
            self.waiting += take;
            x = tail;
            if self.waiting == leaf_rows(l) {
                self.flush();
            }
        }
        Ok(())
    }

    /// Adds the rows that another accumulator has seen.
    ///
    /// # Errors
    /// [`Error::Shape`] if its rows have another length.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let l = self.work.ncols();
        if other.work.ncols() != l {
            return Err(Error::shape("RAccumulator::merge", format_args!("rows of length {l}"), other.work.ncols()));
        }
        let rows = self.rows + other.rows;
        self.update(other.work.rb().subrows(0, l + other.waiting))?;
        self.rows = rows;
        Ok(())
    }

    /// Returns the number of rows seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes R: l×l, upper triangular, zeros below, diagonal not negative.
    ///
    /// # Errors
    /// [`Error::Shape`] if `r` is not l×l.
    pub fn write_r(&mut self, mut r: MatMut<'_, T>) -> Result<()> {
        let l = self.work.ncols();
        if r.shape() != (l, l) {
            return Err(Error::shape(
                "RAccumulator::write_r",
                format_args!("{l}×{l}"),
                format_args!("{:?}", r.shape()),
            ));
        }
        self.flush();
        copy_upper(r.rb_mut(), self.work.rb());
        nonnegative(r);
        Ok(())
    }

    fn flush(&mut self) {
        if self.waiting > 0 {
            absorb(self.work.rb_mut(), self.waiting, MemStack::new(&mut self.scratch));
            self.waiting = 0;
        }
    }
}
