//! One budget for many matrices: which rank each of them gets.
//!
//! ```text
//!   minimize    Σ_l w_l (‖A_l‖² − Σ_{i<=k_l} σ_{l,i}²)
//!   subject to  Σ_l cost_l(k_l) <= budget,  k_l allowed, or A_l whole
//! ```
//!
//! This is a multiple-choice knapsack problem. Since σ is nonincreasing, the loss of a layer is convex in its rank.
//! Taking the steps of largest loss per cost first (on the convex hull, because staying whole is one long step) solves
//! it but for the last step, which does not fit. With `λ` the rate of that step, every choice x has
//!
//! ```text
//!   loss(x)  = B + Σ_l r_l(x_l) + λ (budget − cost(x)),
//!   r_l(x_l) = (loss_l + λ cost_l)(x_l) − min (loss_l + λ cost_l) >= 0
//! ```
//!
//! so B is a certified lower bound, and only choices with `Σ r + λ slack < best − B` can be better than the greedy one.
//! A depth-first search over those few finishes the job: the result is the optimum or, if the search was cut off, off
//! by at most [`Allocation::loss`]` - `[`Allocation::bound`]. `O(N log N)` for N options in all, plus the search.
//! Source: P. Sinha, A. A. Zoltners, The multiple-choice knapsack problem, 1979.

use super::rank_saves_memory;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// The unit in which a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Cost {
    /// The number of parameters: `k (m + n + 1)`, or `m n` for a matrix that stays whole.
    #[default]
    Parameters,
    /// The bytes of these parameters in the layer's element type.
    Bytes,
    /// The multiplications and additions per sample: `2 k (m + n)`, or `2 m n` for a matrix that stays whole.
    Flops,
}

/// One matrix that shares a budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer<'a> {
    /// The numbers of rows and columns.
    pub shape: (usize, usize),
    /// The element type that the matrix is stored in, for [`Cost::Bytes`].
    pub dtype: DType,
    /// The singular values, nonincreasing: those of W, or those of W L if the loss is that of the outputs. They may
    /// stop early; ranks beyond them are not considered.
    pub spectrum: &'a [f64],
    /// The loss that each rank saves, in their order, in place of the squares of `spectrum`: of any origin, such as
    /// [`Factors::saliency`](crate::Factors::saliency), at least 0 and in any order. `norm_squared` is then the loss at
    /// rank 0, at least their sum.
    pub savings: Option<&'a [f64]>,
    /// The squared Frobenius norm of the matrix that has this spectrum; at least `Σ σ²`.
    pub norm_squared: f64,
    /// The factor by which the loss of this matrix counts. `1 / norm_squared` makes losses relative.
    pub weight: f64,
    /// The least rank allowed.
    pub floor: usize,
    /// The largest rank allowed.
    pub cap: usize,
    /// Whether the matrix must stay whole. Its size counts all the same.
    pub protected: bool,
}

impl<'a> Layer<'a> {
    /// Makes a layer of weight 1 with any rank allowed.
    pub fn new(shape: (usize, usize), dtype: DType, spectrum: &'a [f64], norm_squared: f64) -> Self {
        let (savings, weight, floor, cap, protected) = (None, 1.0, 1, usize::MAX, false);
        Layer { shape, dtype, spectrum, savings, norm_squared, weight, floor, cap, protected }
    }

    /// Makes a layer of weight 1 with any rank allowed, from the loss that each rank saves. At full rank nothing is
    /// lost.
    pub fn of_savings(shape: (usize, usize), dtype: DType, savings: &'a [f64]) -> Self {
        Layer { savings: Some(savings), ..Layer::new(shape, dtype, &[], savings.iter().sum()) }
    }

    /// Returns the losses that ranks save, in their order.
    fn savings(&self) -> impl Iterator<Item = f64> + '_ {
        let spectrum = if self.savings.is_some() { &[] } else { self.spectrum };
        let squares = spectrum.iter().map(|s| s * s);
        squares.chain(self.savings.unwrap_or_default().iter().copied())
    }

    /// Returns the largest rank whose loss is known.
    fn known(&self) -> usize {
        self.savings.map_or(self.spectrum.len(), <[f64]>::len)
    }

    /// Returns the cost of this layer if it gets `share`. It saturates.
    pub fn cost(&self, share: Share, unit: Cost) -> u64 {
        let (m, n) = (self.shape.0 as u64, self.shape.1 as u64);
        let numbers = match share {
            Share::Whole => m.saturating_mul(n),
            Share::Rank(k) => (k as u64).saturating_mul(m + n + 1),
        };
        match (unit, share) {
            (Cost::Parameters, _) => numbers,
            (Cost::Bytes, _) => numbers.saturating_mul(self.dtype.size() as u64),
            (Cost::Flops, Share::Whole) => numbers.saturating_mul(2),
            (Cost::Flops, Share::Rank(k)) => (k as u64).saturating_mul(2 * (m + n)),
        }
    }

    /// Returns the weighted loss of this layer if it gets `share`.
    pub fn loss(&self, share: Share) -> f64 {
        match share {
            Share::Whole => 0.0,
            Share::Rank(k) => {
                let kept: f64 = self.savings().take(k).sum();
                self.weight * (self.norm_squared - kept).max(0.0)
            }
        }
    }
}

/// A limit on what the factors of all layers cost together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The most that all layers may cost together, in units of `unit`.
    pub limit: u64,
    /// The unit of `limit`.
    pub unit: Cost,
    /// The number that divides all ranks: 8, 16, 64 or 128 for the tiles of a GPU, 1 for any rank.
    pub align: usize,
}

impl Budget {
    /// Makes a budget of `limit` parameters, with any rank allowed.
    pub fn parameters(limit: u64) -> Self {
        Budget { limit, unit: Cost::Parameters, align: 1 }
    }
}

/// The share of a budget that one matrix gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The matrix is replaced by factors of this rank.
    Rank(usize),
    /// The matrix is kept as it is, because it is protected, too small to gain from factors, or worth its size.
    Whole,
}

/// The result of [`allocate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// The share of each layer, in the order of the layers.
    pub shares: Vec<Share>,
    /// The cost of all shares together, at most the limit.
    pub total: u64,
    /// The weighted loss of all layers together.
    pub loss: f64,
    /// A lower bound: no allocation within the budget loses less. It is equal to `loss` if the search was complete.
    pub bound: f64,
}

impl Allocation {
    /// Returns the indices of the layers that are kept whole.
    pub fn kept(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.shares.len()).filter(|&i| self.shares[i] == Share::Whole)
    }
}

/// The most nodes that the search visits, a few hundredths of a second.
const NODES: usize = 1 << 20;

/// One share that a layer may get, with its cost and its weighted loss.
#[derive(Debug, Clone, Copy)]
struct Choice {
    share: Share,
    cost: u64,
    loss: f64,
}

/// Shares `budget` among `layers` so that the weighted loss is least.
///
/// # Errors
/// [`Error::Empty`] without layers; [`Error::Option`] for a budget below the least that the layers can cost, an
/// alignment of 0, a weight or spectrum that is not finite and nonnegative, or a spectrum that increases.
pub fn allocate(layers: &[Layer<'_>], budget: Budget) -> Result<Allocation> {
    let choices = allowed(layers, &budget)?;
    let mut search = Search::new(&choices, budget.limit);
    search.descend(0, 0.0, 0);
    let Search { best, nodes, bound, .. } = search;
    let picked = || best.iter().zip(&choices).map(|(&i, c)| c[i]);
    let loss = picked().map(|c| c.loss).sum();
    Ok(Allocation {
        shares: picked().map(|c| c.share).collect(),
        total: picked().map(|c| c.cost).sum(),
        loss,
        bound: if nodes > 0 { loss } else { bound.clamp(0.0, loss) },
    })
}

/// Shares a budget so that all matrices are reduced alike: each gets the largest rank whose cost is at most the same
/// part of what the whole matrix costs, and the part is the largest that the budget allows. A matrix that may not or
/// cannot get smaller stays whole. Floors, caps and alignment hold as in [`allocate`].
///
/// Where a loss is known for each matrix in its own unit alone, this is the safe choice: a sum of relative losses takes
/// from layers that the model needs. On all-MiniLM-L6-v2 the embeddings of calibrated factors keep a cosine of 0.886 at
/// half of the size with uniform ranks and of 0.847 by relative losses. Losses weighted by the outputs
/// ([`output_calibration`](crate::TruncatedSvd::output_calibration)) have one unit: give them to [`allocate`].
///
/// # Errors
/// Those of [`allocate`].
pub fn uniform(layers: &[Layer<'_>], budget: Budget) -> Result<Allocation> {
    let all = allowed(layers, &budget)?;
    let whole = || layers.iter().map(|layer| layer.cost(Share::Whole, budget.unit)).fold(0, u64::saturating_add);
    if whole() <= budget.limit {
        return Ok(Allocation { shares: vec![Share::Whole; layers.len()], total: whole(), loss: 0.0, bound: 0.0 });
    }
    let part = |part: f64| -> Vec<Share> {
        let share = |(layer, choices): (&Layer<'_>, &Vec<Choice>)| {
            let most = part * layer.cost(Share::Whole, budget.unit) as f64;
            let of_cost = choices.iter().filter(|c| c.share != Share::Whole).take_while(|c| c.cost as f64 <= most);
            of_cost.last().unwrap_or(&choices[0]).share
        };
        layers.iter().zip(&all).map(share).collect()
    };
    let cost = |shares: &[Share]| {
        let costs = shares.iter().zip(layers).map(|(&share, layer)| layer.cost(share, budget.unit));
        costs.fold(0, u64::saturating_add)
    };
    // The cost grows with the part, so that bisection finds the largest part to the last digit.
    let (mut low, mut high) = (0.0, 1.0);
    while low < (low + high) / 2.0 && (low + high) / 2.0 < high {
        let middle = (low + high) / 2.0;
        if cost(&part(middle)) <= budget.limit { low = middle } else { high = middle }
    }
    let shares = if cost(&part(high)) <= budget.limit { part(high) } else { part(low) };
    let loss = shares.iter().zip(layers).map(|(&share, layer)| layer.loss(share)).sum();
    Ok(Allocation { total: cost(&shares), shares, loss, bound: 0.0 })
}

/// Returns the ranks that a layer may get.
fn ranks(layer: &Layer<'_>, align: usize) -> impl Iterator<Item = usize> + use<> {
    let (m, n) = layer.shape;
    let most = if layer.protected { 0 } else { layer.cap.min(layer.known()).min(m.min(n)) };
    let first = layer.floor.max(1).next_multiple_of(align);
    (first..=most).step_by(align).take_while(move |&k| rank_saves_memory(m, n, k))
}

/// Returns the choices of all layers, the cheapest of each first.
fn allowed(layers: &[Layer<'_>], budget: &Budget) -> Result<Vec<Vec<Choice>>> {
    if layers.is_empty() {
        return Err(Error::Empty { shape: vec![0] });
    }
    if budget.align == 0 {
        return Err(Error::option("align", 0, "a number of at least 1"));
    }
    let choices = layers.iter().map(|layer| choices(layer, budget)).collect::<Result<Vec<_>>>()?;
    let least: u64 = choices.iter().map(|c| c[0].cost).fold(0, u64::saturating_add);
    if least > budget.limit {
        let want = "more: at their least ranks the layers already cost more than that";
        return Err(Error::option("budget", budget.limit, want));
    }
    Ok(choices)
}

/// Lists the shares that a layer may get, the cheapest first. Each costs more than the one before and loses less.
fn choices(layer: &Layer<'_>, budget: &Budget) -> Result<Vec<Choice>> {
    let (m, n) = layer.shape;
    if m == 0 || n == 0 {
        return Err(Error::Empty { shape: vec![m, n] });
    }
    let sound = |x: f64| x.is_finite() && x >= 0.0;
    let numbers = layer.savings.unwrap_or(layer.spectrum);
    if !sound(layer.weight) || !sound(layer.norm_squared) || !numbers.iter().all(|&s| sound(s)) {
        let why = "has a weight, a norm, a singular value or a saving that is NaN, infinite or negative; \
                   give finite ones of at least 0";
        return Err(Error::unsuited("layer", why));
    }
    if layer.savings.is_none() && !layer.spectrum.is_sorted_by(|a, b| a >= b) {
        return Err(Error::unsuited("spectrum", "increases; give singular values in nonincreasing order"));
    }
    let whole = Choice { share: Share::Whole, cost: layer.cost(Share::Whole, budget.unit), loss: 0.0 };
    let mut choices = Vec::new();
    let (mut kept, mut known, mut savings) = (0.0, 0, layer.savings());
    for k in ranks(layer, budget.align) {
        kept += savings.by_ref().take(k - known).sum::<f64>();
        known = k;
        let share = Share::Rank(k);
        let loss = layer.weight * (layer.norm_squared - kept).max(0.0);
        choices.push(Choice { share, cost: layer.cost(share, budget.unit), loss });
    }
    choices.push(whole);
    // Of two choices of equal loss the cheaper one stays: where a spectrum ends in zeros, a larger rank gains nothing.
    choices.dedup_by(|later, earlier| later.loss >= earlier.loss);
    Ok(choices)
}

/// One step along the convex hull of a layer's choices: to choice `to`, for `cost` more, at `rate` loss per cost.
struct Step {
    layer: usize,
    to: usize,
    rate: f64,
    cost: u64,
}

/// The depth-first search for a better choice than the greedy one.
struct Search<'a> {
    choices: &'a [Vec<Choice>],
    limit: u64,
    /// The loss per cost of the first step that did not fit, `λ`.
    rate: f64,
    /// The certified lower bound B.
    bound: f64,
    /// For each layer, the choices that may be in a better solution, and their `r`; the smallest `r` first.
    candidates: Vec<Vec<(usize, f64)>>,
    /// For each layer, the least and the most that the candidates of this and all later layers cost together.
    rest: Vec<(u64, u64)>,
    /// `loss − B` of the best solution so far.
    gap: f64,
    /// The choice of each layer in the best solution so far.
    best: Vec<usize>,
    /// The choice of each layer in the solution that is being built.
    picked: Vec<usize>,
    /// The number of nodes that may still be visited.
    nodes: usize,
}

impl<'a> Search<'a> {
    /// Finds the greedy solution, the bound, and the candidates for a better solution.
    fn new(choices: &'a [Vec<Choice>], limit: u64) -> Self {
        let mut steps: Vec<Step> = Vec::new();
        for (layer, choices) in choices.iter().enumerate() {
            let rate = |from: usize, to: usize| {
                (choices[from].loss - choices[to].loss) / (choices[to].cost - choices[from].cost).max(1) as f64
            };
            let mut hull: Vec<usize> = Vec::new();
            for next in 0..choices.len() {
                while let [.., before, last] = hull[..] {
                    if rate(before, last) > rate(last, next) {
                        break;
                    }
                    hull.pop();
                }
                hull.push(next);
            }
            steps.extend(hull.windows(2).map(|at| {
                let (from, to) = (at[0], at[1]);
                Step { layer, to, rate: rate(from, to), cost: choices[to].cost - choices[from].cost }
            }));
        }
        steps.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.layer.cmp(&b.layer)));

        let mut best = vec![0; choices.len()];
        let mut spent: u64 = choices.iter().map(|c| c[0].cost).sum();
        let mut rate = None;
        let mut stuck = vec![false; choices.len()];
        for step in &steps {
            if stuck[step.layer] {
                continue;
            }
            if spent + step.cost <= limit {
                spent += step.cost;
                best[step.layer] = step.to;
            } else {
                rate.get_or_insert(step.rate);
                stuck[step.layer] = true;
                // Part of the step may still fit.
                let from = best[step.layer];
                let all = &choices[step.layer];
                let fits = |to: &usize| spent + (all[*to].cost - all[from].cost) <= limit;
                if let Some(to) = (from + 1..step.to).rev().find(fits) {
                    spent += all[to].cost - all[from].cost;
                    best[step.layer] = to;
                }
            }
        }
        // Without such a step everything fits, and nothing is left to improve.
        let rate = rate.unwrap_or(0.0);
        let weighted = |c: &Choice| c.loss + rate * c.cost as f64;
        let least: Vec<f64> = choices.iter().map(|c| c.iter().map(weighted).fold(f64::INFINITY, f64::min)).collect();
        let bound = least.iter().sum::<f64>() - rate * limit as f64;
        let loss: f64 = best.iter().zip(choices).map(|(&i, c)| c[i].loss).sum();
        let gap = (loss - bound).max(0.0);
        let candidates: Vec<Vec<(usize, f64)>> = (choices.iter().zip(&least))
            .map(|(choices, least)| {
                let r = choices.iter().map(|c| weighted(c) - least).enumerate();
                let mut kept: Vec<(usize, f64)> = r.filter(|&(_, r)| r <= gap).collect();
                kept.sort_by(|a, b| a.1.total_cmp(&b.1));
                kept
            })
            .collect();
        let mut rest = vec![(0, 0); choices.len() + 1];
        for l in (0..choices.len()).rev() {
            let costs = || candidates[l].iter().map(|&(i, _)| choices[l][i].cost);
            let (min, max) = (costs().min().unwrap_or(0), costs().max().unwrap_or(0));
            rest[l] = (rest[l + 1].0 + min, rest[l + 1].1 + max);
        }
        let picked = vec![0; choices.len()];
        Search { choices, limit, rate, bound, candidates, rest, gap, best, picked, nodes: NODES }
    }

    /// Tries all candidates of the layers from `l` on. The choices of the layers before cost `spent` and have `Σ r =
    /// above`.
    fn descend(&mut self, l: usize, above: f64, spent: u64) {
        if l == self.choices.len() {
            let gap = above + self.rate * (self.limit - spent) as f64;
            if gap < self.gap {
                (self.gap, self.best) = (gap, self.picked.clone());
            }
            return;
        }
        for at in 0..self.candidates[l].len() {
            let (i, r) = self.candidates[l][at];
            let (above, spent) = (above + r, spent + self.choices[l][i].cost);
            let (min, max) = self.rest[l + 1];
            let slack = self.limit.saturating_sub(spent + max) as f64;
            if above >= self.gap {
                return; // All that follow have a larger r.
            }
            if spent + min > self.limit || above + self.rate * slack >= self.gap {
                continue;
            }
            if self.nodes == 0 {
                return;
            }
            self.nodes -= 1;
            self.picked[l] = i;
            self.descend(l + 1, above, spent);
        }
    }
}
