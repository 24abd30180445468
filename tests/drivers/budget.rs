//! One budget for many layers: the allocation against brute force, its bounds, and what it gains over a uniform ratio.
#![allow(clippy::print_stdout)] // the tables of figures, with `--nocapture`

use crate::common::*;
use faer::Mat;
use proptest::prelude::*;
use tensorslim::rank::{Allocation, Budget, Cost, Layer, Share, allocate, rank_for_ratio, uniform};
use tensorslim::{DType, Error, Rank, TruncatedSvd, rank_saves_memory};

/// A matrix of the sharing, by what matters of it.
struct Spectrum {
    shape: (usize, usize),
    values: Vec<f64>,
}

impl Spectrum {
    fn of(a: &Mat<f64>) -> Self {
        Spectrum { shape: (a.nrows(), a.ncols()), values: a.singular_values().unwrap() }
    }

    fn layer(&self) -> Layer<'_> {
        Layer::new(self.shape, DType::F16, &self.values, self.values.iter().map(|s| s * s).sum())
    }
}

/// Twelve: each real matrix cut into four blocks, and four made ones.
fn twelve() -> Vec<Spectrum> {
    let (up, down) = (exact(&real("ffn_up", 1536, 384)), exact(&real("ffn_down", 384, 1536)));
    let mut all: Vec<Spectrum> = (0..4).map(|i| Spectrum::of(&up.as_ref().subrows(384 * i, 384).to_owned())).collect();
    all.extend((0..4).map(|i| Spectrum::of(&down.as_ref().subcols(384 * i, 384).to_owned())));
    for (i, (m, n)) in [(300, 200), (256, 256), (100, 400), (64, 48)].into_iter().enumerate() {
        let decay = [0.9f64, 0.97, 0.8, 0.5][i];
        all.push(Spectrum { shape: (m, n), values: (0..m.min(n)).map(|j| 12.0 * decay.powi(j as i32)).collect() });
    }
    all
}

fn whole(layers: &[Layer<'_>]) -> u64 {
    layers.iter().map(|l| l.cost(Share::Whole, Cost::Parameters)).sum()
}

/// What a layer may become, by the rules as the documentation states them.
fn options(layer: &Layer<'_>, budget: &Budget) -> Vec<Share> {
    let (m, n) = layer.shape;
    let allowed = |&k: &usize| {
        !layer.protected
            && k >= layer.floor
            && k <= layer.cap
            && k <= layer.spectrum.len()
            && k % budget.align == 0
            && rank_saves_memory(m, n, k)
    };
    (1..=m.min(n)).filter(allowed).map(Share::Rank).chain([Share::Whole]).collect()
}

/// The least loss of all combinations.
fn brute_force(layers: &[Layer<'_>], budget: &Budget) -> Option<f64> {
    fn least(layers: &[Layer<'_>], budget: &Budget, left: u64) -> Option<f64> {
        let Some((first, rest)) = layers.split_first() else { return Some(0.0) };
        let mut best: Option<f64> = None;
        for share in options(first, budget) {
            let cost = first.cost(share, budget.unit);
            if cost > left {
                continue;
            }
            if let Some(tail) = least(rest, budget, left - cost) {
                let loss = first.loss(share) + tail;
                best = Some(best.map_or(loss, |b| b.min(loss)));
            }
        }
        best
    }
    least(layers, budget, budget.limit)
}

fn check(layers: &[Layer<'_>], budget: &Budget, a: &Allocation) {
    assert_eq!(a.shares.len(), layers.len());
    for (layer, share) in layers.iter().zip(&a.shares) {
        assert!(options(layer, budget).contains(share), "{layer:?} got {share:?}");
    }
    let total: u64 = layers.iter().zip(&a.shares).map(|(l, s)| l.cost(*s, budget.unit)).sum();
    let loss: f64 = layers.iter().zip(&a.shares).map(|(l, s)| l.loss(*s)).sum();
    assert!(total == a.total && total <= budget.limit, "{a:?}");
    assert!((loss - a.loss).abs() <= 1e-9 * (1.0 + loss) && a.bound <= a.loss * (1.0 + 1e-12), "{a:?}");
}

/// Ranks on a grid of 128: two or three choices for each of the twelve, a few hundred thousand combinations.
#[test]
fn an_allocation_on_a_small_grid_is_the_best_of_all() {
    let spectra = twelve();
    let layers: Vec<Layer<'_>> = spectra.iter().map(Spectrum::layer).collect();
    for ratio in [1.2, 1.6, 2.0] {
        for align in [64, 128] {
            let budget = Budget { limit: (whole(&layers) as f64 / ratio) as u64, unit: Cost::Parameters, align };
            let a = allocate(&layers, budget);
            let Ok(a) = a else {
                assert_eq!(brute_force(&layers, &budget), None, "ratio {ratio}, grid {align}: {a:?}");
                continue;
            };
            check(&layers, &budget, &a);
            let best = brute_force(&layers, &budget).unwrap();
            assert!((a.loss - best).abs() <= 1e-9 * best, "ratio {ratio}, grid {align}: {} for {best}", a.loss);
            assert_eq!(a.bound, a.loss, "the search was complete");
        }
    }
}

/// All ranks: the budget is used to 0.5 %, and the loss is no more than that of one ratio for all.
#[test]
fn an_allocation_beats_a_uniform_ratio() {
    let spectra = twelve();
    let layers: Vec<Layer<'_>> = spectra.iter().map(Spectrum::layer).collect();
    for ratio in [1.5, 2.0, 3.2, 6.0] {
        let uniform: Vec<Share> =
            (layers.iter()).map(|l| Share::Rank(rank_for_ratio(l.shape.0, l.shape.1, ratio))).collect();
        let spent: u64 = layers.iter().zip(&uniform).map(|(l, s)| l.cost(*s, Cost::Parameters)).sum();
        let before: f64 = layers.iter().zip(&uniform).map(|(l, s)| l.loss(*s)).sum();
        let budget = Budget::parameters(spent);
        let a = allocate(&layers, budget).unwrap();
        check(&layers, &budget, &a);
        let (used, kept) = (a.total as f64 / spent as f64, a.kept().count());
        println!(
            "ratio {ratio}: uniform loss {before:.2}, shared {:.2} = {:.3} of it, bound {:.2}; {used:.4} of the budget, {kept} whole",
            a.loss,
            a.loss / before,
            a.bound
        );
        assert!(used >= 0.995, "{used}");
        assert!(a.loss <= before);
        assert!(a.loss - a.bound <= 1e-3 * a.loss, "{} against a bound of {}", a.loss, a.bound);
    }
}

#[test]
fn protection_floors_caps_and_alignment_are_kept() {
    let spectra = twelve();
    let mut layers: Vec<Layer<'_>> = spectra.iter().map(Spectrum::layer).collect();
    layers[0].protected = true;
    layers[1].floor = 100;
    layers[2].cap = 20;
    layers[11].floor = 30; // 30 (64 + 48 + 1) > 64 · 48: cannot gain
    let budget = Budget { limit: whole(&layers) / 2, unit: Cost::Parameters, align: 8 };
    let a = allocate(&layers, budget).unwrap();
    check(&layers, &budget, &a);
    assert_eq!((a.shares[0], a.shares[11]), (Share::Whole, Share::Whole));
    assert!(a.kept().any(|i| i == 0) && a.kept().any(|i| i == 11));
    // Everything fits: everything stays whole, and loses nothing.
    let a = allocate(&layers, Budget::parameters(whole(&layers))).unwrap();
    assert_eq!((a.kept().count(), a.loss, a.total), (12, 0.0, whole(&layers)));
    // A layer that is of low rank needs no more.
    let values: Vec<f64> = (0..40).map(|i| if i < 5 { 1.0 } else { 0.0 }).collect();
    let low = Layer::new((60, 40), DType::F32, &values, 5.0);
    let a = allocate(std::slice::from_ref(&low), Budget::parameters(2400)).unwrap();
    assert_eq!((a.shares[0], a.loss), (Share::Rank(5), 0.0));
    // Bytes and operations.
    assert_eq!((low.cost(Share::Whole, Cost::Bytes), low.cost(Share::Rank(5), Cost::Bytes)), (9600, 2020));
    assert_eq!((low.cost(Share::Whole, Cost::Flops), low.cost(Share::Rank(5), Cost::Flops)), (4800, 1000));
    for (unit, limit) in [(Cost::Bytes, 2019), (Cost::Flops, 999)] {
        let a = allocate(std::slice::from_ref(&low), Budget { limit, unit, align: 1 }).unwrap();
        assert_eq!((a.shares[0], a.loss), (Share::Rank(4), 1.0));
    }
}

#[test]
fn impossible_budgets_and_layers_are_refused() {
    let values = [3.0, 2.0, 1.0];
    let layer = || Layer::new((30, 20), DType::F16, &values, 14.0);
    assert!(matches!(allocate(&[], Budget::parameters(10)), Err(Error::Empty { .. })));
    assert!(matches!(allocate(&[layer()], Budget::parameters(50)), Err(Error::Option { name: "budget", .. })));
    let unaligned = Budget { align: 0, ..Budget::parameters(1000) };
    assert!(matches!(allocate(&[layer()], unaligned), Err(Error::Option { name: "align", .. })));
    let refused = |layer: Layer<'_>| matches!(allocate(&[layer], Budget::parameters(1000)), Err(Error::Option { .. }));
    assert!(refused(Layer { weight: f64::NAN, ..layer() }));
    assert!(refused(Layer { norm_squared: -1.0, ..layer() }));
    assert!(refused(Layer { spectrum: &[1.0, 2.0], ..layer() }));
    assert!(refused(Layer { spectrum: &[f64::INFINITY], ..layer() }));
    assert!(matches!(
        allocate(&[Layer { shape: (0, 5), ..layer() }], Budget::parameters(1000)),
        Err(Error::Empty { .. })
    ));
}

/// Two hundred layers of 4096 ranks: the search is cut off, and the bound says how far it can be off.
#[test]
fn two_hundred_layers_are_shared_within_the_bound_that_is_said() {
    let spectra: Vec<Spectrum> = (0..200)
        .map(|i| {
            let rank = 1.0 + f64::from(i % 17);
            let values = (0..4096).map(|j| (1.0 + f64::from(j) / (20.0 * rank)).powf(-0.5 - rank / 20.0)).collect();
            Spectrum { shape: ([4096, 11008][i as usize % 2], 4096), values }
        })
        .collect();
    let layers: Vec<Layer<'_>> = spectra.iter().map(Spectrum::layer).collect();
    for align in [1, 128] {
        let budget = Budget { limit: whole(&layers) / 3, unit: Cost::Parameters, align };
        let a = allocate(&layers, budget).unwrap();
        check(&layers, &budget, &a);
        assert!(a.total as f64 >= 0.995 * budget.limit as f64, "{align}");
        assert!(a.loss - a.bound <= 1e-3 * a.loss, "{align}: {} against a bound of {}", a.loss, a.bound);
    }
}

/// The spectrum that a factorization reports is what it is shared by.
#[test]
fn the_spectrum_of_a_report_says_what_a_layer_loses() {
    let f = TruncatedSvd::new(Rank::Ratio(2.0)).factor::<f32>(real("ffn_up", 1536, 384).as_tensor().unwrap()).unwrap();
    let r = f.report();
    let layer = Layer::new(r.shape, r.dtype, &r.spectrum, r.norm * r.norm);
    let error = (layer.loss(Share::Rank(f.rank())) / layer.norm_squared).sqrt();
    assert!((error - r.relative_error).abs() < 1e-4, "{error} {}", r.relative_error);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn an_allocation_equals_brute_force(
        shapes in prop::collection::vec((2usize..12, 2usize..12, 0.2f64..1.0, 0.1f64..10.0), 1..5),
        share in 0.05f64..1.1,
        align in 1usize..4,
        floor in 0usize..3,
        unit in prop::sample::select(vec![Cost::Parameters, Cost::Bytes, Cost::Flops]),
    ) {
        let spectra: Vec<Spectrum> = shapes.iter().map(|&(m, n, decay, size)| Spectrum {
            shape: (m, n),
            values: (0..m.min(n)).map(|j| size * decay.powi(j as i32)).collect(),
        }).collect();
        let layers: Vec<Layer<'_>> = spectra.iter().map(|s| Layer { floor, ..s.layer() }).collect();
        let all: u64 = layers.iter().map(|l| l.cost(Share::Whole, unit)).sum();
        let budget = Budget { limit: (share * all as f64) as u64, unit, align };
        match (allocate(&layers, budget), brute_force(&layers, &budget)) {
            (Ok(a), Some(best)) => {
                check(&layers, &budget, &a);
                prop_assert!((a.loss - best).abs() <= 1e-9 * (best + 1e-9), "{} for {best}: {a:?}", a.loss);
            }
            (Err(Error::Option { name: "budget", .. }), None) => {}
            (a, best) => prop_assert!(false, "{a:?} for {best:?}"),
        }
    }
}

/// Savings of any origin and order: what each rank saves need not fall, so that the best shares are not found step by
/// step.
#[test]
fn savings_of_any_order_are_shared_as_brute_force_shares_them() {
    let mut random = Random(41);
    for case in 0..60 {
        let savings: Vec<Vec<f64>> = (0..3).map(|_| (0..12).map(|_| random.uniform().powi(3)).collect()).collect();
        let layers: Vec<Layer<'_>> =
            savings.iter().map(|s| Layer { floor: 1, ..Layer::of_savings((30, 20), DType::F32, s) }).collect();
        let limit = (whole(&layers) as f64 * (0.3 + 0.5 * random.uniform())) as u64;
        let budget = Budget::parameters(limit);
        let found = allocate(&layers, budget).unwrap();
        let mut best = f64::INFINITY;
        let ranks = |_: usize| (1..=11).map(Share::Rank).chain([Share::Whole]);
        for a in ranks(0) {
            for b in ranks(1) {
                for c in ranks(2) {
                    let shares = [a, b, c];
                    let total: u64 = shares.iter().zip(&layers).map(|(&s, l)| l.cost(s, budget.unit)).sum();
                    if total <= limit {
                        best = f64::min(best, shares.iter().zip(&layers).map(|(&s, l)| l.loss(s)).sum());
                    }
                }
            }
        }
        assert!((found.loss - best).abs() < 1e-12 && found.bound <= best + 1e-12, "{case}: {} {best}", found.loss);
        assert!(found.total <= limit);
    }
    let refused = Layer::of_savings((30, 20), DType::F32, &[1.0, -1.0]);
    assert!(allocate(&[refused], Budget::parameters(1000)).is_err());
}

#[test]
fn uniform_ranks_reduce_all_layers_alike() {
    let spectra = twelve();
    let layers: Vec<Layer<'_>> = spectra.iter().map(Spectrum::layer).collect();
    for ratio in [1.5, 2.0, 3.2, 6.0] {
        let limit = (whole(&layers) as f64 / ratio) as u64;
        let found = uniform(&layers, Budget::parameters(limit)).unwrap();
        assert!(found.total <= limit);
        let parts = || {
            found.shares.iter().zip(&layers).map(|(&share, layer)| {
                let (now, whole) = (layer.cost(share, Cost::Parameters), layer.cost(Share::Whole, Cost::Parameters));
                let step = (layer.shape.0 + layer.shape.1 + 1) as f64;
                (now as f64 / whole as f64, (now as f64 + step) / whole as f64)
            })
        };
        // One part lies between what each layer has and what one rank more would be.
        let (most, next) =
            (parts().map(|p| p.0).fold(0.0, f64::max), parts().map(|p| p.1).fold(f64::INFINITY, f64::min));
        assert!(most <= next, "{ratio}: {most} {next}");
        // No larger part fits: the layers whose next rank costs the least part would all get it.
        let more: u64 = parts()
            .zip(&layers)
            .filter(|(p, _)| p.1 <= next * (1.0 + 1e-12))
            .map(|(_, l)| (l.shape.0 + l.shape.1 + 1) as u64)
            .sum();
        assert!(found.total + more > limit, "{ratio}");
        let best = allocate(&layers, Budget::parameters(limit)).unwrap();
        assert!(best.loss <= found.loss);
    }
    let all = uniform(&layers, Budget::parameters(whole(&layers))).unwrap();
    assert!(all.shares.iter().all(|&share| share == Share::Whole) && all.loss == 0.0);
    assert!(uniform(&layers, Budget::parameters(10)).is_err());
}
