//! A factorization from one look at a matrix: a state that is fed blocks of rows, merged with others, saved and
//! restored, and gives factors.

mod bytes;

use std::ops::Range;
use std::time::{Duration, Instant};

use super::methods::single_pass::State;
use super::plan::Plan;
use super::solution::{beyond_numerical_rank, unscale};
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::linalg::fix_signs;
use crate::operator::{Dense, LinearOperator};
use crate::report::Report;
use crate::simd::Scalar;
use crate::tensor::{Element, Matrix, TensorRef};

/// Sketches of an `m × n` matrix whose rows come in blocks, each exactly once; made by
/// [`TruncatedSvd::accumulator`](crate::TruncatedSvd::accumulator).
///
/// ```
/// use tensorslim::{Method, Rank, TensorRef, TruncatedSvd};
///
/// let a: Vec<f32> = (0..90 * 40).map(|i| (i as f32 * 0.37).sin()).collect();
/// let svd = TruncatedSvd::new(Rank::Fixed(2)).method(Method::SinglePass).seed(1);
/// let (mut here, mut there) = (svd.accumulator::<f32>((90, 40))?, svd.accumulator::<f32>((90, 40))?);
/// here.update(0, &TensorRef::new(&a[..50 * 40], &[50, 40])?)?;
/// there.update(50, &TensorRef::new(&a[50 * 40..], &[40, 40])?)?;
/// here.merge(&there)?;
/// let f = here.finish()?;
/// assert_eq!((f.u().nrows(), f.rank(), f.report().passes), (90, 2, 1));
/// assert!(f.report().relative_error < 1e-4); // sin(a + b) has rank 2
/// # Ok::<(), tensorslim::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SinglePass<T: Scalar> {
    plan: Plan,
    state: State<T>,
    largest: f64,
    /// The rows that were given, as disjoint ranges in order.
    given: Vec<Range<usize>>,
    elapsed: Duration,
}

/// Returns the largest exponent of two of the modulus that sketches in `T` take without a risk of overflow.
const fn largest_exponent<T: Scalar>() -> i32 {
    if size_of::<T>() == 4 { 100 } else { 400 }
}

impl<T: Scalar> SinglePass<T> {
    /// Makes an empty state.
    pub(super) fn new(plan: Plan) -> Result<Self> {
        let state = State::new(&plan.task, plan.method, plan.shape)?;
        Ok(SinglePass { plan, state, largest: 0.0, given: Vec::new(), elapsed: Duration::ZERO })
    }

    /// Returns the rows and columns of the matrix.
    pub fn shape(&self) -> (usize, usize) {
        self.state.shape()
    }

    /// Adds the rows that another state of the same options has seen.
    ///
    /// # Errors
    /// [`Error::Shape`] if both have seen a row, [`Error::Option`] if the options or the shapes are not the same.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.plan.task != other.plan.task {
            return Err(Error::unsuited(
                "options",
                "differ from those of the other state; give all states the same options and shape",
            ));
        }
        let mut given = self.given.clone();
        for rows in &other.given {
            insert(&mut given, rows.clone())
                .map_err(|rows| Error::shape("SinglePass::merge", "each row once", format_args!("{rows:?} again")))?;
        }
        self.given = given;
        self.state.range += &other.state.range;
        self.state.corange += &other.state.corange;
        self.state.core += &other.state.core;
        self.state.error += &other.state.error;
        self.state.norm_squared += other.state.norm_squared;
        self.largest = self.largest.max(other.largest);
        self.elapsed += other.elapsed;
        Ok(())
    }
}

/// Adds rows to a state; see [`SinglePass::update`].
pub(super) fn update<T: Scalar>(pass: &mut SinglePass<T>, first_row: usize, block: &TensorRef<'_>) -> Result<()> {
    let start = Instant::now();
    let view = block.view()?;
    let (m, n) = pass.shape();
    let op = "SinglePass::update";
    if view.ncols() != n {
        return Err(Error::shape(op, format_args!("rows of {n} columns"), view.ncols()));
    }
    let rows = first_row..first_row.saturating_add(view.nrows());
    if rows.end > m {
        return Err(Error::shape(op, format_args!("rows within 0..{m}"), format_args!("{rows:?}")));
    }
    let mut given = pass.given.clone();
    insert(&mut given, rows).map_err(|rows| Error::shape(op, "each row once", format_args!("{rows:?} again")))?;
    let par = crate::parallel::current_par();
    let mut dense = Dense::<T>::unscaled(view, par).map_err(|error| match error {
        Error::NotFinite { row, col, value } => Error::NotFinite { row: row + first_row, col, value },
        error => error,
    })?;
    if dense.largest() > 2f64.powi(largest_exponent::<T>()) {
        return Err(Error::Range { what: "the largest element of the block", value: dense.largest(), dtype: T::DTYPE });
    }
    pass.state.norm_squared += dense.facts().norm_squared;
    pass.largest = pass.largest.max(dense.largest());
    pass.given = given;
    dense.for_each_row_block(&mut |first, rows| pass.state.add(first_row + first, rows, par))?;
    pass.elapsed += start.elapsed();
    Ok(())
}

/// Computes the factors of a state; see [`SinglePass::finish`].
pub(super) fn finish<T: Scalar>(pass: SinglePass<T>) -> Result<Factors<T>> {
    let start = Instant::now();
    let (m, n) = pass.shape();
    if pass.given.first() != Some(&(0..m)) {
        let given = format_args!("{:?}", pass.given).to_string();
        return Err(Error::shape("SinglePass::finish", format_args!("rows 0..{m}"), given));
    }
    if pass.largest > 0.0 && pass.largest < 2f64.powi(-largest_exponent::<T>()) {
        return Err(Error::Range { what: "the largest element", value: pass.largest, dtype: T::DTYPE });
    }
    // The scale is an exact power of two, after which no square leaves the range of T.
    let exponent = if pass.largest > 0.0 { -pass.largest.log2().floor() as i32 } else { 0 };
    let scale = 2f64.powi(exponent);
    let mut state = pass.state;
    for part in [&mut state.range, &mut state.corange, &mut state.core, &mut state.error] {
        *part *= faer::Scale(T::from_f64(scale));
    }
    state.norm_squared *= scale * scale;
    let (plan, norm_squared, width) = (pass.plan, state.norm_squared, state.range.ncols());
    let target = plan.target(norm_squared, scale);
    let answer = state.solve(&target, crate::parallel::current_par())?;
    let k = answer.s.len();
    let (mut u, mut vt) = (Matrix::zeros(m, k), Matrix::zeros(k, n));
    u.as_mut().copy_from(answer.u.as_ref());
    vt.as_mut().transpose_mut().copy_from(answer.v.as_ref());
    fix_signs(&mut u, &mut vt, crate::parallel::current_par());
    let mut notes = answer.notes;
    let least = answer.s.last().map_or(0.0, |&s| Element::to_f64(s));
    notes.extend(target.shortfall(k, answer.certificate.relative_error, least));
    notes.extend(beyond_numerical_rank(&answer.s, answer.s.len(), (m, n)));
    let s = unscale(&answer.s, answer.s.len(), scale)?;
    let spectrum = answer.s.iter().map(|&s| s.to_f64() / scale).collect();
    let norm = norm_squared.sqrt() / scale;
    let elapsed = pass.elapsed + start.elapsed();
    let base = plan.report((k, width), spectrum, norm, &answer.certificate, elapsed);
    let report = Report { passes: 1, notes, ..base };
    Ok(Factors::new(u, s, vt, report, answer.slices))
}

/// Adds a range to disjoint ranges in order, and joins neighbours. The error is the part of it that was there already.
fn insert(given: &mut Vec<Range<usize>>, rows: Range<usize>) -> std::result::Result<(), Range<usize>> {
    if rows.is_empty() {
        return Ok(());
    }
    let at = given.partition_point(|r| r.end <= rows.start);
    if let Some(next) = given.get(at).filter(|next| next.start < rows.end) {
        return Err(next.start.max(rows.start)..next.end.min(rows.end));
    }
    given.insert(at, rows);
    given.dedup_by(|next, last| {
        last.end == next.start && {
            last.end = next.end;
            true
        }
    });
    Ok(())
}
