//! Factorization under statistics of both sides of a weight: its inputs, and the gradients of a loss in its outputs.
//!
//! ```text
//!   X  N × s   the tall one of W and Wᵀ       E = K Kᵀ  moments of its long side,   L Lᵀ  those of its short side
//!
//!   A  = Kᵀ X L = U Σ Vᵀ      any method of the planner, on `Whitened` over `Whitened`
//!   Y  = X L V_k              N × k
//!   Z  = L⁻ᵀ V_k              s × k        X' = Y Zᵀ        ‖Kᵀ (X − X') L‖² = ‖A‖² − ‖A V_k‖² = Σ_{i>k} σ_i²
//! ```
//!
//! **One solve, on the short side.** `X' = K⁻ᵀ U_k U_kᵀ Kᵀ X` is the same matrix, and so is `Y Yᵀ E X` with scaled
//! columns, which needs no inverse of a root; but they divide by the squares of singular values that are kept, and
//! leave noise of `eps (σ_1 / σ_k)²` of the weight where one is small. Here V_k is orthonormal whatever the spectrum, so
//! that `X' L = X L V_k V_kᵀ` is never larger than `X L`, and what a solve with L loses is `eps cond L`; the least
//! weight that moments have (`calibration/whitening.rs`) bounds it. Ranks beyond that of A go to what is left of X.
//!
//! **An SVD again.** Y is not orthonormal: `Y = Q R`, and `X' = Q (Z Rᵀ)ᵀ` is finished as the image of any method is.
//! X' is an oblique projection of X; the plain error follows from `⟨X, X'⟩`, one product more.
//!
//! **Cost.** On the Gram route `Xᵀ E X` (`N² s + 2 N s²` flops) takes the place of `XᵀX`, and K is never made. The other
//! methods make K (`N³/3` flops in f64) and multiply by it beside X.
//!
//! Source: IO-SVD (arXiv 2605.15626), GFWSVD (2505.17974).

use std::time::Instant;

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Accum, Mat, Par};

use super::calibrated::{
    LazyPanel, LeftVectors, MakeOperator, Setting, Weight, output_error, times_power_of_two, whitened,
};
use super::finish::finish;
use super::options::Options;
use super::solution::Solution;
use super::task::Residency;
use super::triplets::{Decomposition, Triplets, Vectors, decompose};
use super::weighting::Weighting;
use crate::calibration::Moments;
use crate::error::Result;
use crate::factors::{Factors, Oblique, Slices, Weighted};
use crate::operator::{Entries, LinearOperator, Whitened};
use crate::quality;
use crate::report::ActivationReport;
use crate::simd::Scalar;
use crate::space::{Access, Effort, Layout, Panel, Space};
use crate::tensor::{Element, MatView};

/// Factors `op`, the tall one of W and Wᵀ, where `w` is W. `root` makes the operator of a root on the same kind of
/// panels.
pub(super) fn factor<T: Scalar, S: Space<T>>(
    options: &Options,
    residency: Residency,
    op: &mut dyn LinearOperator<T, Space = S>,
    root: &MakeOperator<'_, T, S>,
    w: Weight<'_>,
    par: Par,
    start: Instant,
) -> Result<Factors<T>> {
    let (m, n) = w.shape();
    let wide = m < n;
    options.weighting.check((m, n), options.rank)?;
    let Weighting { inputs, outputs, .. } = &options.weighting;
    let (of_inputs, of_outputs) = (inputs.moments::<T>(n)?, outputs.moments::<T>(m)?);
    let (long, short) = if wide { (&of_inputs, &of_outputs) } else { (&of_outputs, &of_inputs) };
    let weight_scale = op.facts().scale;
    let root_exponent = of_inputs.exponent() + of_outputs.exponent();
    let setting = Setting { w, residency, weight_scale, root_exponent, notes: Vec::new(), par, start };

    let mut seen = whitened(op, true, long, root, par)?;
    let space = seen.space().clone();
    let make = || {
        let (entries, notes) = short.root::<T>(par)?;
        Ok((root(entries)?, notes))
    };
    let mut both = Whitened::of_whitened(&mut seen, make)?;
    let (plan, left) = both.by_rule(options, &setting)?;
    let LeftVectors { panel, back, spectrum, .. } = left;
    let (LazyPanel::Deferred(v) | LazyPanel::Computed(v)) = panel;
    let k = spectrum.rank;
    let v = if space.shape(&v).1 == k { v } else { first_columns(&space, &v, k)? };
    let directions = both.weigh(&v)?;
    // The columns of `A V` have these squared lengths.
    let mut products = Mat::<T>::zeros(k, space.shape(&back).1);
    space.inner(&directions, &back, products.as_mut())?;
    drop(back);
    let norm_squared = both.norm_squared();
    let part = |gain: f64| if norm_squared > 0.0 { gain / norm_squared } else { 0.0 };
    let gains: Vec<f64> = (0..k).map(|j| part(Element::to_f64(products[(j, j)]).max(0.0))).collect();
    let share_lost = if norm_squared > 0.0 { (1.0 - gains.iter().sum::<f64>()).max(f64::MIN_POSITIVE) } else { 0.0 };
    let mut z = unweighed(&space, short, &v, par)?;
    drop(v);
    let (_, mut notes) = both.into_parts();
    let (op, more) = seen.into_parts();
    notes.extend(more);
    let of_zeros = [(&of_inputs, inputs, "calibration inputs"), (&of_outputs, outputs, "output statistics")];
    for (moments, side, what) in of_zeros {
        let note = moments.note(side.calibration.is_some());
        notes.extend(note.map(|_| format!("all {what} are zero; factored as without them")));
    }
    notes.extend(spectrum.notes);

    let mut image = op.image(k)?;
    op.apply(&directions, &mut image)?;
    drop(directions);
    let mut r = Mat::<T>::zeros(k, k);
    space.orthonormalize(&mut image, Some(r.as_mut()), Effort::LittleMemory)?;
    space.trim();
    let mut projected = op.right(k)?;
    op.apply_adjoint(&image, &mut projected)?;
    let mut products = Mat::<T>::zeros(k, k);
    space.inner(&projected, &z, products.as_mut())?;
    drop(projected);
    let wide_entry = |a: &Mat<T>, i: usize, j: usize| Element::to_f64(a[(i, j)]);
    // These are ⟨X, y_i z_iᵀ⟩.
    let held: Vec<f64> =
        (0..k).map(|i| (0..=i).map(|j| wide_entry(&r, j, i) * wide_entry(&products, j, i)).sum()).collect();
    space.multiply_in_place(&mut z, r.transpose())?;
    let whole = space.dot(&z, &z)?;
    let captured = 2.0 * held.iter().sum::<f64>() - whole;
    let Decomposition { image: short, s, basis, by_qr, notes: small, .. } =
        decompose(&space, z, false, |s, _| s.len(), par, || Ok(()))?;
    notes.extend(small);
    let plain = op.norm_squared().max(f64::MIN_POSITIVE);
    let oblique = Oblique::new(&r, &basis, &s, wide, held.iter().map(|x| x / plain).collect());
    let slices = Slices::Weighted(Weighted { turn: oblique.1, gains, oblique: Some(oblique.0) });
    let triplets = Triplets { left: Vectors::Combined(image, basis), s, captured, right: short, by_qr };
    let (width, method, sketch) = (spectrum.width, spectrum.method, spectrum.sketch);
    let solution = Solution { triplets, rank: k, width, method, sketch, certificate: None, slices, notes };
    let mut factors = finish(op, plan, solution, None, par, start)?;

    let measure = |w: MatView<'_>, factors: &Factors<T>| {
        let (c, g) = (inputs.calibration.as_ref(), outputs.calibration.as_ref());
        Ok(quality::weighted_view(w, factors, c, g)?.relative_error)
    };
    let relative_error = output_error(share_lost, w, &mut factors, measure)?;
    if factors.report().relative_error > 1.0 {
        let note =
            "the plain error is above 1: the factors are made for what the statistics weigh, and for nothing else";
        factors.report_mut().notes.push(note.to_owned());
    }
    let exponent = setting.root_exponent - setting.weight_scale.log2().round() as i32;
    let in_units = |x: f64| times_power_of_two(x, exponent);
    let report = factors.report_mut();
    report.elapsed = start.elapsed();
    report.activation = Some(ActivationReport {
        samples: inputs.calibration.as_ref().map_or(0, |c| c.samples()),
        skipped: inputs.calibration.as_ref().map_or(0, |c| c.skipped()),
        whitening: inputs.whitening,
        blend: inputs.blend,
        output_samples: outputs.calibration.as_ref().map(|c| c.samples()),
        relative_error,
        norm: in_units(norm_squared.sqrt()),
        spectrum: spectrum.s.into_iter().map(|s| in_units(Element::to_f64(s))).collect(),
    });
    Ok(factors)
}

/// Returns the first k columns of a panel.
fn first_columns<T: Scalar, S: Space<T>>(space: &S, panel: &Panel<T, S>, k: usize) -> Result<Panel<T, S>> {
    let (rows, l) = space.shape(panel);
    let mut first = space.panel(rows, k, Layout::Columns)?;
    space.multiply(&mut first, Accum::Replace, panel, Mat::identity(l, k).as_ref(), T::one())?;
    Ok(first)
}

/// Computes `L⁻ᵀ v` on the host, for the root L of these moments.
fn unweighed<T: Scalar, S: Space<T>>(
    space: &S,
    moments: &Moments<'_>,
    v: &Panel<T, S>,
    par: Par,
) -> Result<Panel<T, S>> {
    let (rows, k) = space.shape(v);
    let mut host = Mat::<T>::zeros(rows, k);
    space.download(v, host.as_mut())?;
    // The statistics keep the root.
    let (entries, _) = moments.root::<T>(par)?;
    match &entries {
        Entries::Lower(l) => solve_upper_triangular_in_place(l.entries::<T>().transpose(), host.as_mut(), par),
        Entries::Diagonal(d) => {
            for column in host.as_mut().col_iter_mut() {
                column.iter_mut().zip(d).for_each(|(x, &d)| *x /= d);
            }
        }
    }
    let mut z = space.panel(rows, k, Layout::Columns)?;
    space.visit(&mut z, Access::Write, &mut |mut z| z.copy_from(host.as_ref()))?;
    Ok(z)
}

impl<T: Scalar> Oblique<T> {
    /// Makes the description of directions for factors of `X' = Q R Zᵀ`, where `Z Rᵀ` has the singular values `s` and
    /// `basis` as vectors on the side of Q: in terms of `Q basis`, direction i is column i of `basisᵀ R`. Returns the
    /// rows in terms of the other vectors, too. For a `wide` W the sides change places.
    fn new(r: &Mat<T>, basis: &Mat<T>, s: &[T], wide: bool, held: Vec<f64>) -> (Self, Mat<T>) {
        let k = s.len();
        let to_wide = |a: &Mat<T>| Mat::<f64>::from_fn(k, k, |i, j| Element::to_f64(a[(i, j)]));
        let (mut r, basis) = (to_wide(r), to_wide(basis));
        let across = basis.transpose() * &r;
        // A direction that X takes to zero has a zero column in R and takes no part.
        let empty: Vec<bool> = (0..k).map(|j| (0..=j).all(|i| r[(i, j)] == 0.0) || r[(j, j)] == 0.0).collect();
        for j in (0..k).filter(|&j| empty[j]) {
            r[(j, j)] = 1.0;
        }
        let mut rows = basis;
        solve_upper_triangular_in_place(r.as_ref(), rows.as_mut(), Par::Seq);
        for j in (0..k).filter(|&j| empty[j]) {
            (0..k).for_each(|i| rows[(j, i)] = 0.0);
        }
        let narrow =
            |entry: &dyn Fn(usize, usize) -> f64| Mat::<T>::from_fn(k, k, |i, j| <T as Element>::from_f64(entry(i, j)));
        if !wide {
            return (Oblique { across: narrow(&|i, j| across[(i, j)]), held }, narrow(&|i, j| rows[(i, j)]));
        }
        let value = |i: usize| Element::to_f64(s[i]);
        let inverse = |i: usize| if value(i) > 0.0 { 1.0 / value(i) } else { 0.0 };
        let oblique = Oblique { across: narrow(&|i, j| value(i) * rows[(j, i)]), held };
        (oblique, narrow(&|i, j| across[(j, i)] * inverse(j)))
    }
}
