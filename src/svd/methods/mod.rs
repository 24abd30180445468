//! The methods of factorization: one file and one line of the table each.
//!
//! | method | products | orthonormalizations | small problem (f32) | passes |
//! |---|---|---|---|---|
//! | full | | | EVD n³ | 1 |
//! | gram, dense | syrk m n², A V 2mnl | n × l | EVD n³, EVD l³ | 2 |
//! | gram, iterated | syrk m n², G V 2n²l, q + 1 times, A T 2mnk | n × l, q + 1 times, half | EVD l³ | 2 |
//! | randomized | 2mnl, 2q + 1 times, and a sketch | m × l, q + 1 times, n × l, q times | EVD l³ | 2q + 2 |
//! | krylov | 2mnb, 2q + 3 times, and a sketch | m × b, 2q + 3 times, against blocks | EVD (qb + 2b)³ | 2q + 4 |
//!
//! The symbols are `l = k + p`, `m >= n`, and `b = l/2` for Krylov blocks. A file has `solve` and what the planner asks
//! of it: whether the method is possible and allowed, its cost, its peak memory. To add one: the file, a variant of
//! [`Route`], a line of [`ROUTES`] and an arm of [`solve`]; a method that callers name is a variant of [`Method`], too.

mod adaptive;
mod embedded;
mod full;
pub(super) mod gram;
mod krylov;
mod nystrom;
pub(super) mod randomized;
pub(super) mod single_pass;

use faer::Par;

use super::cost::Work;
use super::footprint::Footprint;
use super::rank_target::RankTarget;
use super::solution::Solution;
use super::task::{Task, looks_once};
use crate::error::Result;
use crate::operator::LinearOperator;
use crate::report::Method;
use crate::simd::Scalar;
use crate::space::Space;
use crate::tensor::DType;

/// A method, and which way it takes where there are two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Full,
    /// All eigenvectors of the Gram matrix by a dense solver.
    GramDense,
    /// The dominant eigenvectors of the Gram matrix, by filtered subspace iteration.
    GramIterated,
    Randomized,
    Krylov,
    SinglePass,
    Nystrom,
}

/// The facts of a route that the planner asks for.
pub(super) struct Entry {
    pub(super) route: Route,
    pub(super) method: Method,
    /// The method in words.
    pub(super) what: &'static str,
    /// Tells whether the route can do the task at all.
    pub(super) possible: fn(&Task) -> bool,
    /// Tells whether [`Method::Auto`] may take it: whether it is never less accurate than the randomized method.
    pub(super) allowed: fn(&Task) -> bool,
    /// Estimates the seconds, and counts the passes over the matrix.
    pub(super) cost: fn(&Work<'_>) -> (f64, usize),
    /// Computes the peak bytes, in f32 and in f64.
    peak: [fn(&Footprint) -> usize; 2],
}

impl Entry {
    /// Returns the columns of its panels.
    pub(super) fn width(&self, task: &Task) -> usize {
        match looks_once(self.method) {
            true => single_pass::Sizes::new(self.method, task.tall(), task.largest_rank(), task.oversample).range,
            false => task.width,
        }
    }

    /// Returns the peak bytes of the task with panels of `width` columns and factors of `rank`, whatever the values
    /// are.
    pub(super) fn peak_bytes(&self, task: &Task, width: usize, rank: usize) -> usize {
        let [single, double] = self.peak;
        let peak = if task.precision == DType::F64 { double } else { single };
        peak(&Footprint::new(task, width, rank))
    }
}

fn always(_: &Task) -> bool {
    true
}

fn never(_: &Task) -> bool {
    false
}

/// All routes. `Auto` never takes a method that is less accurate than the randomized one with the same p and q: full
/// and gram (dense) are the optimum, gram (iterated) has the same exponent and a filter, and those of a single pass are
/// only for where one pass is all there is.
static ROUTES: [Entry; 7] = [
    Entry {
        route: Route::Full,
        method: Method::Full,
        what: "QR and a dense SVD",
        possible: always,
        allowed: always,
        cost: full::cost,
        peak: [full::peak::<f32>, full::peak::<f64>],
    },
    Entry {
        route: Route::GramDense,
        method: Method::Gram,
        what: "Gram matrix of the short side, all eigenvectors",
        possible: always,
        allowed: gram::allowed,
        cost: gram::cost_dense,
        peak: [gram::peak_dense::<f32>, gram::peak_dense::<f64>],
    },
    Entry {
        route: Route::GramIterated,
        method: Method::Gram,
        what: "Gram matrix of the short side, filtered subspace iteration",
        possible: gram::may_iterate,
        allowed: gram::allowed,
        cost: gram::cost_iterated,
        peak: [gram::peak_iterated::<f32>, gram::peak_iterated::<f64>],
    },
    Entry {
        route: Route::Randomized,
        method: Method::Randomized,
        what: "randomized range finder",
        possible: always,
        allowed: randomized::allowed,
        cost: randomized::cost,
        peak: [randomized::peak::<f32>, randomized::peak::<f64>],
    },
    Entry {
        route: Route::Krylov,
        method: Method::Krylov,
        what: "block Krylov iteration",
        possible: always,
        allowed: krylov::allowed,
        cost: krylov::cost,
        peak: [krylov::peak::<f32>, krylov::peak::<f64>],
    },
    Entry {
        route: Route::SinglePass,
        method: Method::SinglePass,
        what: "three sketches of one pass",
        possible: |task| task.method == Method::SinglePass,
        allowed: never,
        cost: |work| single_pass::cost(Method::SinglePass, work),
        peak: [
            |f| single_pass::peak::<f32>(Method::SinglePass, f),
            |f| single_pass::peak::<f64>(Method::SinglePass, f),
        ],
    },
    Entry {
        route: Route::Nystrom,
        method: Method::Nystrom,
        what: "generalized Nyström, two sketches of one pass",
        possible: |task| task.method == Method::Nystrom,
        allowed: never,
        cost: |work| single_pass::cost(Method::Nystrom, work),
        peak: [|f| single_pass::peak::<f32>(Method::Nystrom, f), |f| single_pass::peak::<f64>(Method::Nystrom, f)],
    },
];

/// Returns the entries of the table that can do the task.
pub(super) fn possible(task: &Task) -> impl Iterator<Item = &'static Entry> {
    ROUTES.iter().filter(|entry| (entry.possible)(task))
}

impl Route {
    /// Returns the entry of this route.
    pub(super) fn entry(self) -> &'static Entry {
        ROUTES.iter().find(|entry| entry.route == self).expect("the table has all routes")
    }
}

/// Returns the entry that tells what a method takes: where it has two ways, that of `route` if this is one of them.
pub(super) fn entry_of(method: Method, route: Route) -> &'static Entry {
    let entry = route.entry();
    match entry.method == method {
        true => entry,
        false => ROUTES.iter().find(|entry| entry.method == method).expect("a result names its method"),
    }
}

/// Solves the task by a route, and falls back where the result shows that the method did not suit the matrix.
pub(super) fn solve<T: Scalar, S: Space<T>>(
    route: Route,
    task: &Task,
    op: &mut dyn LinearOperator<T, Space = S>,
    target: &RankTarget,
    par: Par,
) -> Result<Solution<T, S>> {
    match route {
        Route::Full => full::solve(task, op, target, par),
        Route::GramDense => gram::by_dense(task, op, target, par),
        Route::GramIterated => gram::by_iteration(task, op, target, par),
        Route::Randomized => randomized::solve(task, op, target, false, par),
        Route::Krylov => krylov::solve(task, op, target, par),
        Route::SinglePass => single_pass::solve(task, Method::SinglePass, op, target, par),
        Route::Nystrom => single_pass::solve(task, Method::Nystrom, op, target, par),
    }
}
