//! One side of a truncated SVD, from a basis that was good before: what GaLore and its kin take of each gradient.
//!
//! ```text
//!   start S of m rows:    rows are the long side       X = orth(Aᵀ [S G])   Y = orth(A X)   B = AᵀY     3 products
//!                         rows are the short side      Y = orth(Aᵀ [S G])                   B = A Y     2 products
//!   B = V̂ Σ Ŵᵀ,  U = Y Ŵ  or  V̂                       against 2q + 2 = 6 from a sketch
//! ```
//!
//! G has the p columns of oversampling, standard normal, without which a direction that grows is not found. The start
//! takes the place of the sketch and of two power iterations; more of them are done as usual. Where the matrix has
//! drifted by less than its spectrum falls from σ_k to σ_{l+1}, the error is that of six products (`tests/drivers`).

use std::time::Instant;

use super::finish::run_with;
use super::in_memory::tall;
use super::options::{Device, Options};
use super::plan::Plan;
use super::solution::Solution;
use super::stream;
use super::task::{Residency, Task};
use super::triplets::Triplets;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::range::iterate;
use crate::report::{Method, Report};
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Sketch, SketchOperator};
use crate::space::{Access, Effort, Host, Space};
use crate::tensor::{Element, Matrix, TensorRef};

/// The power iterations that a start stands for.
const REPLACED: usize = 2;

/// An orthonormal basis of the leading left singular vectors of a matrix.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Basis<T> {
    /// The singular vectors, `m × k`, the most important first.
    pub vectors: Matrix<T>,
    /// The k singular values, nonincreasing.
    pub s: Vec<T>,
    /// The report on the projection `U UᵀA`, whose error it has.
    pub report: Report,
}

impl<T: Scalar> Basis<T> {
    /// Takes the left side of factors.
    pub(super) fn of(factors: Factors<T>) -> Self {
        let (vectors, s, _, report) = factors.into_parts();
        Basis { vectors, s, report }
    }
}

/// Factors `w` on the threads of `space`, from a basis of its left side.
pub(super) fn factor<T: Scalar>(
    options: &Options,
    w: &TensorRef<'_>,
    start: &Matrix<T>,
    space: Host,
) -> Result<Factors<T>> {
    let (begin, par) = (Instant::now(), space.par());
    let view = w.view()?;
    check(options, view.nrows(), start)?;
    let options = &Options { method: Method::Randomized, ..options.clone() };
    let task = Task::new::<T>(options, (view.nrows(), view.ncols()), view.dtype(), Residency::InMemory)?;
    let mut plan = Plan::new(task)?;
    let j = start.ncols().min(plan.width);
    plan.reason = format!("power iterations from a basis of {j} columns");
    let is_short = view.nrows() < view.ncols();
    let mut op = tall::<T>(view, space)?;
    run_with(&mut op, plan, par, begin, |plan, op, target| {
        let (width, q) = (plan.width, plan.task.power_iterations.saturating_sub(REPLACED));
        let space = op.space().clone();
        let (mut y, mut x) = (op.left(width)?, op.right(width)?);
        // The rows of a wide matrix are the columns of the operator.
        let given = if is_short { &mut x } else { &mut y };
        let fresh = AnySketch::new(Sketch::Gaussian, start.nrows(), (width - j).max(1), plan.task.seed, stream::START)?;
        let fresh = fresh.to_dense::<T>();
        space.visit(given, Access::Write, &mut |mut panel| {
            for c in 0..width {
                let entry = |i: usize| if c < j { start.row(i)[c] } else { fresh[(i, c - j)] };
                panel.as_mut().col_mut(c).iter_mut().enumerate().for_each(|(i, x)| *x = entry(i));
            }
        })?;
        if !is_short {
            op.apply_adjoint(&y, &mut x)?;
            space.orthonormalize(&mut x, None, Effort::Fast)?;
        }
        op.apply(&x, &mut y)?;
        space.orthonormalize(&mut y, None, Effort::Fast)?;
        iterate(op, q, &mut y, &mut x, Effort::Fast)?;
        op.apply_adjoint(&y, &mut x)?;
        let found = Triplets::from_left(&space, y, x, false, |s, captured| target.rank(s, captured), par)?;
        Ok(Solution::of_triplets(found, width, Method::Randomized, None))
    })
}

/// Refuses what a start is not for.
fn check<T: Scalar>(options: &Options, m: usize, start: &Matrix<T>) -> Result<()> {
    if start.nrows() != m || start.ncols() == 0 {
        let got = format_args!("{}×{}", start.nrows(), start.ncols());
        return Err(Error::shape("basis", format_args!("a start of {m} rows and a column at least"), got));
    }
    if !start.as_slice().iter().all(|&x| Element::to_f64(x).is_finite()) {
        return Err(Error::unsuited("start", "has values that are not finite; start without one"));
    }
    let why = match () {
        () if options.rank.looks_at_spectrum() => "is for a rank that the shape decides; give a rank or a ratio",
        () if options.is_weighted() => "is for plain factors; leave the calibration out",
        () if options.smallest => "is for the largest triplets; start without one",
        () if options.device != Device::Cpu => "is for the CPU; start without one",
        () if !matches!(options.method, Method::Auto | Method::Randomized) => {
            "is for power iterations, method randomized or auto; start without one"
        }
        () => return Ok(()),
    };
    Err(Error::unsuited("start", why))
}
