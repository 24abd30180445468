//! Eigenvalues and eigenvectors of a symmetric tridiagonal matrix by divide and conquer, in f64 (LAPACK's STEDC: Cuppen
//! 1981; Gu, Eisenstat, SIMAX 1995).
//!
//! ```text
//!   T = [ T₁    ]  +  ρ v vᵀ   =  [ Q₁    ] ( D + ρ z zᵀ ) [ Q₁ᵀ     ]         v = e_{n₁} ± e_{n₁+1},  z = Qᵀ v
//!       [    T₂ ]                 [    Q₂ ]                [     Q₂ᵀ ]
//! ```
//!
//! The eigenvalues of `D + ρ z zᵀ` are the roots of `f(λ) = 1/ρ + Σ z_i² / (d_i − λ)`, one between each two poles; its
//! eigenvectors are `ẑ_i / (d_i − λ_j)`, where ẑ is the vector for which the computed roots are exact (Gu and Eisenstat),
//! so that they are orthogonal to rounding however close the roots. Entries of z that are negligible, and pairs of poles
//! that coincide, are deflated: their eigenvectors are columns of Q already.
//!
//! ```text
//!   columns of Q:   top    mixed  bottom | deflated              rows of S in the same order
//!                 [  *       *      0    |          ]
//!                 [  0       *      *    |          ]            two GEMMs: the zero blocks are left out
//! ```
//!
//! `4/3 n³` multiply-adds of GEMM at most, and `n²` divisions per round of the root finder at each of the `log₂(n / 24)`
//! levels, a whole vector of poles at a time; about four rounds per root. Order 202, one core of Zen 5: 0.6 ms (by profile)
//! against 1.35 for faer's solver, which recurses to 128 and divides one pole at a time (table in `small.rs`). As closures
//! of `Arch::dispatch` the loops stayed scalar, too large to be inlined into the vector code, and the whole eigenproblem
//! took 4.4 ms instead of 1.4: hence the structs. One thread: the same bits for any number of them.

use faer::diag::{DiagMut, DiagRef};
use faer::dyn_stack::{MemStack, StackReq};
use faer::linalg::matmul::matmul;
use faer::linalg::{evd, temp_mat_scratch, temp_mat_zeroed};
use faer::mat::AsMatMut;
use faer::prelude::*;
use faer::{Accum, MatMut, Par};
use pulp::{Simd, WithSimd};

use crate::error::{Error, Result};

/// Constants of the divide and conquer.
struct Params {
    /// Up to this order the QR algorithm is used: rounds of the root finder on a few poles are all latency. By estimate,
    /// not by a sweep.
    leaf: usize,
    /// Steps of the root finder before the last iterate is taken; about five are usual.
    max_steps: usize,
    /// A step this small against the distance to the poles leaves its square, which is rounding.
    last_step: f64,
}

const PARAMS: Params = Params { leaf: 24, max_steps: 60, last_step: 1e-9 };

/// Poles are padded to a multiple of this, the widest vector of f64.
const LANES: usize = 8;

/// `values <- eigenvalues, nondecreasing`, `vectors <- eigenvectors` of the matrix with this diagonal and off-diagonal
/// (`off.len() = diagonal.len() - 1`). All entries finite, and their squares in range.
///
/// # Errors
/// [`Error::NoConvergence`] from the leaves.
pub(super) fn eigen(
    diagonal: &[f64],
    off: &[f64],
    values: &mut [f64],
    vectors: MatMut<'_, f64>,
    stack: &mut MemStack,
) -> Result<()> {
    let n = diagonal.len();
    debug_assert_eq!((off.len() + 1, values.len(), vectors.shape()), (n, n, (n, n)));
    let mut vectors = vectors;
    let (mut q, stack) = temp_mat_zeroed::<f64, _, _>(n, n, stack);
    let mut q = q.as_mat_mut();
    // Deflation compares eigenvalues with entries of unit vectors.
    let largest = diagonal.iter().chain(off).fold(0.0_f64, |a, x| a.max(x.abs()));
    let scale = if largest > 0.0 { largest } else { 1.0 };
    let (mut d, stack) = stack.make_with(n, |i| diagonal[i] / scale);
    let (off, stack) = stack.make_with(n - 1, |i| off[i] / scale);
    divide(&mut d, &off, q.rb_mut(), vectors.rb_mut(), stack)?;
    let (mut order, _) = stack.make_with(n, |i| i);
    order.sort_by(|&i, &j| d[i].total_cmp(&d[j]));
    for (j, &from) in order.iter().enumerate() {
        values[j] = d[from] * scale;
        vectors.rb_mut().col_mut(j).copy_from(q.rb().col(from));
    }
    Ok(())
}

/// Scratch of [`eigen`] for order `n`.
pub(super) fn eigen_scratch(n: usize) -> StackReq {
    let lengths = |count: usize| StackReq::new::<f64>(n).array(count);
    let padded = StackReq::new::<f64>(n.next_multiple_of(LANES)).array(2);
    let indices = |count: usize| StackReq::new::<usize>(n).array(count);
    let merge =
        StackReq::all_of(&[temp_mat_scratch::<f64>(n, n), lengths(5), padded, indices(3), StackReq::new::<Half>(n)]);
    let leaf = evd::self_adjoint_evd_scratch::<f64>(
        n.min(PARAMS.leaf),
        evd::ComputeEigenvectors::Yes,
        Par::Seq,
        Default::default(),
    );
    StackReq::all_of(&[temp_mat_scratch::<f64>(n, n), lengths(2), merge.or(leaf.and(lengths(2))).or(indices(1))])
}

/// `d <- eigenvalues` in no particular order and `q` their vectors. `d` comes in as the diagonal; `work` is as large as q.
fn divide(
    d: &mut [f64],
    off: &[f64],
    mut q: MatMut<'_, f64>,
    mut work: MatMut<'_, f64>,
    stack: &mut MemStack,
) -> Result<()> {
    let n = d.len();
    if n <= PARAMS.leaf {
        return leaf(d, off, q, stack);
    }
    let n1 = n / 2;
    let rho = off[n1 - 1];
    d[n1 - 1] -= rho.abs();
    d[n1] -= rho.abs();
    let (d1, d2) = d.split_at_mut(n1);
    {
        let (q1, _, _, q2) = q.rb_mut().split_at_mut(n1, n1);
        let (work1, _, _, work2) = work.rb_mut().split_at_mut(n1, n1);
        divide(d1, &off[..n1 - 1], q1, work1, stack)?;
        divide(d2, &off[n1..], q2, work2, stack)?;
    }
    merge(d, n1, rho, q, work, stack);
    Ok(())
}

/// The QR algorithm.
fn leaf(d: &mut [f64], off: &[f64], q: MatMut<'_, f64>, stack: &mut MemStack) -> Result<()> {
    let n = d.len();
    let (diagonal, stack) = stack.make_with(n, |i| d[i]);
    let (off, stack) = stack.make_with(n, |i| if i + 1 < n { off[i] } else { 0.0 });
    evd::tridiagonal_self_adjoint_evd(
        DiagRef::from_slice(&diagonal),
        DiagRef::from_slice(&off),
        DiagMut::from_slice_mut(d),
        Some(q),
        Par::Seq,
        stack,
        Default::default(),
    )
    .map_err(|_| Error::NoConvergence { op: "eigenvalues of a tridiagonal matrix" })
}

/// Where the entries of a column of `diag(Q₁, Q₂)` are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Half {
    Top,
    /// After a rotation of a top and a bottom column.
    Mixed,
    Bottom,
}

/// From the eigenvalues and eigenvectors of the two halves to those of the whole.
fn merge(d: &mut [f64], n1: usize, rho: f64, mut q: MatMut<'_, f64>, mut work: MatMut<'_, f64>, stack: &mut MemStack) {
    let n = d.len();
    let (mut half, stack) = stack.make_with(n, |i| if i < n1 { Half::Top } else { Half::Bottom });
    // |v|² = 2 goes into ρ.
    let sign = 1f64.copysign(rho);
    let (mut z, stack) = stack
        .make_with(n, |i| std::f64::consts::FRAC_1_SQRT_2 * if i < n1 { q[(n1 - 1, i)] } else { sign * q[(n1, i)] });
    let rho = 2.0 * rho.abs();
    let (mut order, stack) = stack.make_with(n, |i| i);
    order.sort_by(|&i, &j| d[i].total_cmp(&d[j]));

    // Deflation. `order` ends as the kept columns, by their poles, then the deflated ones.
    let largest = |x: &[f64]| x.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
    let tolerance = 8.0 * f64::EPSILON * largest(d).max(largest(&z));
    let (mut deflated, stack) = stack.make_with(n, |_| 0_usize);
    let (mut k, mut dropped) = (0, 0);
    let mut last: Option<usize> = None;
    for i in 0..n {
        let j = order[i];
        if rho * z[j].abs() <= tolerance {
            deflated[dropped] = j;
            dropped += 1;
            continue;
        }
        if let Some(p) = last {
            let length = z[j].hypot(z[p]);
            let (c, s) = (z[j] / length, -z[p] / length);
            if ((d[j] - d[p]) * c * s).abs() <= tolerance {
                (z[j], z[p]) = (length, 0.0);
                if half[p] != half[j] {
                    for column in [p, j] {
                        fill_other_half(q.rb_mut().col_mut(column), n1, half[column]);
                        half[column] = Half::Mixed;
                    }
                }
                rotate(q.rb_mut(), p, j, rows_of(half[j], n1, n), c, s);
                (d[p], d[j]) = (d[p] * c * c + d[j] * s * s, d[p] * s * s + d[j] * c * c);
                deflated[dropped] = p;
                dropped += 1;
            } else {
                order[k] = p;
                k += 1;
            }
        }
        last = Some(j);
    }
    if let Some(p) = last {
        order[k] = p;
        k += 1;
    }
    order[k..].copy_from_slice(&deflated[..n - k]);

    // Kept columns by where they are nonzero: the order of the rows of S.
    let (kept, dropped) = order.split_at(k);
    let (mut grouped, stack) = stack.make_with(k, |i| i);
    grouped.sort_by_key(|&i| half[kept[i]]);
    let below_top = kept.iter().filter(|&&j| half[j] == Half::Top).count();
    let above_bottom = k - kept.iter().filter(|&&j| half[j] == Half::Bottom).count();

    // S, in grouped rows.
    let (mut s, stack) = temp_mat_zeroed::<f64, _, _>(k, k, stack);
    let mut s = s.as_mat_mut();
    let padded = k.next_multiple_of(LANES);
    let (poles, stack) = stack.make_with(padded, |i| if i < k { d[kept[i]] } else { f64::INFINITY });
    let (weights, stack) = stack.make_with(padded, |i| if i < k { z[kept[i]].abs() } else { 0.0 });
    let (signed, stack) = stack.make_with(k, |i| z[kept[grouped[i]]]);
    let (grouped_poles, stack) = stack.make_with(k, |i| poles[grouped[i]]);
    let (mut roots, stack) = stack.make_with(k, |_| 0.0_f64);
    let (mut zhat, _) = stack.make_with(k, |_| 1.0_f64);
    pulp::Arch::new().dispatch(RankOne {
        poles: &poles,
        weights: &weights,
        rho_inverse: 1.0 / rho,
        signed: &signed,
        grouped_poles: &grouped_poles,
        roots: &mut roots,
        zhat: &mut zhat,
        vectors: s.rb_mut(),
    });

    // Gather the factors of the two products, and what was deflated, then overwrite.
    for (to, &i) in grouped.iter().enumerate() {
        let column = q.rb().col(kept[i]);
        if to < above_bottom {
            work.rb_mut().col_mut(to).subrows_mut(0, n1).copy_from(column.subrows(0, n1));
        }
        if to >= below_top {
            work.rb_mut().col_mut(to - below_top).subrows_mut(n1, n - n1).copy_from(column.subrows(n1, n - n1));
        }
    }
    for (to, &j) in (k..).zip(dropped) {
        fill_other_half(q.rb_mut().col_mut(j), n1, half[j]);
        work.rb_mut().col_mut(to).copy_from(q.rb().col(j));
    }
    for (z, &j) in z.iter_mut().zip(dropped) {
        *z = d[j];
    }
    d[k..].copy_from_slice(&z[..n - k]);
    d[..k].copy_from_slice(&roots);
    let (top, bottom) = q.rb_mut().split_at_row_mut(n1);
    for (dst, rows, columns, first) in [(top, 0..n1, above_bottom, 0), (bottom, n1..n, k - below_top, below_top)] {
        let dst = dst.subcols_mut(0, k);
        let a = work.rb().submatrix(rows.start, 0, rows.len(), columns);
        matmul(dst, Accum::Replace, a, s.rb().subrows(first, columns), 1.0, Par::Seq);
    }
    q.subcols_mut(k, n - k).copy_from(work.rb().subcols(k, n - k));
}

/// The eigenproblem of `D + ρ z zᵀ`, poles increasing, no weight negligible.
struct RankOne<'a> {
    /// As in [`Secular`].
    poles: &'a [f64],
    weights: &'a [f64],
    rho_inverse: f64,
    /// The weights with their signs and the poles in the order of the rows of the vectors.
    signed: &'a [f64],
    grouped_poles: &'a [f64],
    roots: &'a mut [f64],
    /// Ones on entry.
    zhat: &'a mut [f64],
    vectors: MatMut<'a, f64>,
}

impl WithSimd for RankOne<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let RankOne { poles, weights, rho_inverse, signed, grouped_poles, roots, zhat, mut vectors } = self;
        let secular = Secular { simd, count: roots.len(), poles, weights, rho_inverse };
        for (j, to) in roots.iter_mut().enumerate() {
            let Root { origin, offset } = secular.root(j);
            *to = poles[origin] + offset;
            let column = column_mut(vectors.rb_mut(), j);
            // ẑ_i² = Π_j (λ_j − d_i) / Π_{j≠i} (d_j − d_i): the factor of j = i has no divisor.
            for ((x, zhat), &pole) in column.iter_mut().zip(&mut *zhat).zip(grouped_poles) {
                *x = (pole - poles[origin]) - offset;
                let gap = pole - poles[j];
                *zhat *= *x / if gap == 0.0 { 1.0 } else { gap };
            }
        }
        for (zhat, &sign) in zhat.iter_mut().zip(signed) {
            *zhat = zhat.abs().sqrt().copysign(sign);
        }
        for j in 0..roots.len() {
            let column = column_mut(vectors.rb_mut(), j);
            for (x, &zhat) in column.iter_mut().zip(&*zhat) {
                *x = zhat / *x;
            }
            let scale = 1.0 / sum_squares(column).sqrt();
            column.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

fn rows_of(half: Half, n1: usize, n: usize) -> std::ops::Range<usize> {
    match half {
        Half::Top => 0..n1,
        Half::Mixed => 0..n,
        Half::Bottom => n1..n,
    }
}

/// Writes the zeros that were only implied.
fn fill_other_half(column: faer::ColMut<'_, f64>, n1: usize, half: Half) {
    let (mut top, mut bottom) = column.split_at_row_mut(n1);
    match half {
        Half::Top => bottom.fill(0.0),
        Half::Mixed => {}
        Half::Bottom => top.fill(0.0),
    }
}

/// `(q_p, q_j) <- (c q_p + s q_j, c q_j − s q_p)`.
fn rotate(mut q: MatMut<'_, f64>, p: usize, j: usize, rows: std::ops::Range<usize>, c: f64, s: f64) {
    for i in rows {
        let (x, y) = (q[(i, p)], q[(i, j)]);
        q[(i, p)] = c * x + s * y;
        q[(i, j)] = c * y - s * x;
    }
}

/// A root `poles[origin] + offset` of the secular equation.
struct Root {
    /// The nearest pole.
    origin: usize,
    offset: f64,
}

/// The secular equation `1/ρ + Σ z_i² / (d_i − λ) = 0`.
struct Secular<'a, S> {
    simd: S,
    count: usize,
    /// Increasing, then infinite up to a multiple of [`LANES`].
    poles: &'a [f64],
    /// Not negative; zero behind the last pole.
    weights: &'a [f64],
    rho_inverse: f64,
}

/// `Σ z_i² / (d_i − λ)` and its derivative, over the poles on either side.
struct Sums {
    below: f64,
    slope_below: f64,
    above: f64,
    slope_above: f64,
}

impl<S: Simd> Secular<'_, S> {
    /// The j-th root: between poles j and j + 1, or above the last one.
    ///
    /// The sums over the poles up to p and beyond it are each interpolated by a pole at p and at p + 1, with their values
    /// and derivatives (the middle way of Li, LAPACK working note 89, 1993), within a bracket.
    #[inline(always)]
    fn root(&self, j: usize) -> Root {
        let &Secular { count: k, poles: d, weights: z, rho_inverse, .. } = self;
        if k == 1 {
            return Root { origin: 0, offset: z[0] * z[0] / rho_inverse };
        }
        let last = j + 1 == k;
        // The two poles of the interpolation.
        let p = j.min(k - 2);
        let (z0, z1) = (z[p] * z[p], z[p + 1] * z[p + 1]);
        let width = if last {
            (1.0 + 4.0 * f64::EPSILON * k as f64) * z.iter().map(|z| z * z).sum::<f64>() / rho_inverse
        } else {
            d[p + 1] - d[p]
        };

        // The middle decides the origin and gives the sum of the other poles for a first guess.
        let base = if last { k - 1 } else { j };
        let middle = 0.5 * width;
        let sums = self.sums(base, middle, last);
        let f = rho_inverse + sums.below + sums.above;
        let origin = if last || f >= 0.0 { base } else { j + 1 };
        let (mut low, mut high) = match (last, f >= 0.0) {
            (_, true) => (0.0, middle),
            (true, false) => (middle, width),
            (false, false) => (-middle, 0.0),
        };
        let (delta0, delta1) = (d[p] - d[origin], d[p + 1] - d[origin]);
        // c + z0 / (δ0 − x) + z1 / (δ1 − x) = 0, one of the δ being zero.
        let c = f - z0 / ((d[p] - d[base]) - middle) - z1 / ((d[p + 1] - d[base]) - middle);
        let b = c * delta0 * delta1 + z0 * delta1 + z1 * delta0;
        let mut x = quadratic(c, c * (delta0 + delta1) + z0 + z1, b, last);
        for _ in 0..PARAMS.max_steps {
            if !(low < x && x < high) {
                // Towards a pole by large factors, elsewhere by halves.
                x = if low == 0.0 {
                    high / 16.0
                } else if high == 0.0 {
                    low / 16.0
                } else {
                    0.5 * (low + high)
                };
            }
            let sums = self.sums(origin, x, last);
            let f = rho_inverse + sums.below + sums.above;
            let slope = sums.slope_below + sums.slope_above;
            let noise = 8.0 * (rho_inverse + sums.below.abs() + sums.above.abs()) + x.abs() * slope;
            if f.abs() <= f64::EPSILON * noise || high - low <= f64::EPSILON * x.abs() {
                break;
            }
            if f < 0.0 {
                low = x;
            } else {
                high = x;
            }
            let (r0, r1) = (delta0 - x, delta1 - x);
            let c = f - r0 * sums.slope_below - r1 * sums.slope_above;
            let step = quadratic(c, (r0 + r1) * f - r0 * r1 * slope, r0 * r1 * f, last);
            let next = x + step;
            // Convergence is quadratic on the scale of the distance to the poles.
            let small = step.abs() <= PARAMS.last_step * r0.abs().min(r1.abs());
            let done = next == x || (low < next && next < high && small);
            x = next;
            if done {
                break;
            }
        }
        Root { origin, offset: x }
    }

    /// At `λ = poles[origin] + offset`. Poles below λ have negative terms, those above positive ones; above the last
    /// pole, it is split off from the others.
    #[inline(always)]
    fn sums(&self, origin: usize, offset: f64, last: bool) -> Sums {
        let simd = self.simd;
        let base = self.poles[origin];
        let (base_lanes, offset_lanes, zero) = (simd.splat_f64s(base), simd.splat_f64s(offset), simd.splat_f64s(0.0));
        let [mut below, mut slope_below, mut above, mut slope_above] = [zero; 4];
        for (&d, &z) in S::as_simd_f64s(self.poles).0.iter().zip(S::as_simd_f64s(self.weights).0) {
            let t = simd.div_f64s(z, simd.sub_f64s(simd.sub_f64s(d, base_lanes), offset_lanes));
            let (negative, positive) = (simd.min_f64s(t, zero), simd.max_f64s(t, zero));
            below = simd.mul_add_e_f64s(z, negative, below);
            slope_below = simd.mul_add_e_f64s(negative, negative, slope_below);
            above = simd.mul_add_e_f64s(z, positive, above);
            slope_above = simd.mul_add_e_f64s(positive, positive, slope_above);
        }
        let [mut below, mut slope_below, mut above, mut slope_above] =
            [below, slope_below, above, slope_above].map(|x| simd.reduce_sum_f64s(x));
        if last {
            let (d, z) = (self.poles[self.count - 1], self.weights[self.count - 1]);
            let t = z / ((d - base) - offset);
            (above, slope_above) = (z * t, t * t);
            (below, slope_below) = (below - above, slope_below - slope_above);
        }
        Sums { below, slope_below, above, slope_above }
    }
}

/// The root of `c x² − a x + b` that belongs to the interval: the smaller one inside, the larger one beyond the last pole.
#[inline(always)]
fn quadratic(c: f64, a: f64, b: f64, last: bool) -> f64 {
    let root = (a * a - 4.0 * b * c).abs().sqrt();
    match (last, a > 0.0) {
        (false, true) => 2.0 * b / (a + root),
        (false, false) => (a - root) / (2.0 * c),
        (true, true) => (a + root) / (2.0 * c),
        (true, false) => 2.0 * b / (a - root),
    }
}

#[inline(always)]
fn sum_squares(x: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            sums[i] += x[i] * x[i];
        }
    }
    for (s, x) in sums.iter_mut().zip(rest) {
        *s += x * x;
    }
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
}

fn column_mut(a: MatMut<'_, f64>, j: usize) -> &mut [f64] {
    a.col_mut(j).try_as_col_major_mut().expect("scratch is column-major").as_slice_mut()
}
