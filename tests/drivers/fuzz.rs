//! Oracle fuzzing: shapes × strides × storage × arithmetic × spectra × ranks × methods × sketches × options, against the SVD of
//! faer in f64. Every factorization must be within its error bound, and its certificate true.
//!
//! The 2000 cases take seconds; `PROPTEST_CASES` sets another number.

use crate::common::*;
use faer::{Mat, MatRef};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use tensorslim::{DType, Element, Error, ErrorKind, Factors, Method, Rank, Scalar, Sketch, TensorRef, TruncatedSvd};

#[derive(Debug, Clone)]
struct Case {
    m: usize,
    n: usize,
    spectrum: Spectrum,
    /// Exponent of a power of ten that the matrix is multiplied by.
    scale: i32,
    layout: Layout,
    storage: DType,
    double: bool,
    rank: Rule,
    method: Method,
    sketch: Sketch,
    oversample: usize,
    power_iterations: usize,
    seed: u64,
}

#[derive(Debug, Clone)]
enum Spectrum {
    Power(f64),
    Exponential(f64),
    Flat,
    Step(f64, f64),
    Spikes(f64),
    LowRank(f64),
    /// Whole numbers, many of them zero: ties, zero rows, dependent columns.
    Integers,
}

/// Shares of `min(m, n)`, or what the spectrum must show.
#[derive(Debug, Clone)]
enum Rule {
    Fixed(f64),
    Ratio(f64),
    Energy(f64),
    Tolerance(f64),
}

#[derive(Debug, Clone)]
struct Layout {
    step: usize,
    pad: usize,
    fortran: bool,
    up: bool,
    left: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let spectrum = prop_oneof![
        (0.1..3.0).prop_map(Spectrum::Power),
        (0.3..0.99).prop_map(Spectrum::Exponential),
        Just(Spectrum::Flat),
        ((0.0..1.0), (-8.0..-0.1)).prop_map(|(at, to)| Spectrum::Step(at, to)),
        (1.0..1e4).prop_map(Spectrum::Spikes),
        (0.0..0.5).prop_map(Spectrum::LowRank),
        Just(Spectrum::Integers),
    ];
    let layout = (1usize..3, 0usize..4, any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(step, pad, fortran, up, left)| Layout { step, pad, fortran, up, left });
    let rank = prop_oneof![
        3 => (0.0..1.0).prop_map(Rule::Fixed),
        1 => (1.0..8.0).prop_map(Rule::Ratio),
        1 => (0.05..1.0).prop_map(Rule::Energy),
        2 => (-6.0..-0.05).prop_map(|e: f64| Rule::Tolerance(10f64.powf(e))),
    ];
    let storage = prop::sample::select(vec![DType::F16, DType::BF16, DType::F32, DType::F64]);
    let method = prop::sample::select(Method::ALL.to_vec());
    let sketch = prop::sample::select(vec![Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign]);
    let options = (0usize..16, 0usize..4, any::<u64>());
    (
        (1usize..120, 1usize..120),
        spectrum,
        -25i32..26,
        layout,
        (storage, any::<bool>()),
        rank,
        (method, sketch),
        options,
    )
        .prop_map(
            |((m, n), spectrum, scale, layout, (storage, double), rank, (method, sketch), (oversample, q, seed))| {
                // Halves have no room for a scale; what does not fit is refused elsewhere (`hostile.rs`).
                let scale = if storage.size() == 2 { scale.clamp(-1, 1) } else { scale };
                Case {
                    m,
                    n,
                    spectrum,
                    scale,
                    layout,
                    storage,
                    double,
                    rank,
                    method,
                    sketch,
                    oversample,
                    power_iterations: q,
                    seed,
                }
            },
        )
}

fn matrix(case: &Case) -> Mat<f64> {
    let (m, n) = (case.m, case.n);
    let count = m.min(n);
    let by = |f: &dyn Fn(f64) -> f64| (0..count).map(|i| f(i as f64)).collect::<Vec<f64>>();
    let spectrum = match case.spectrum {
        Spectrum::Power(p) => by(&|i| (i + 1.0).powf(-p)),
        Spectrum::Exponential(r) => by(&|i| r.powf(i)),
        Spectrum::Flat => vec![1.0; count],
        Spectrum::Step(at, to) => by(&|i| if i <= at * count as f64 { 1.0 } else { 10f64.powf(to) }),
        Spectrum::Spikes(high) => by(&|i| if i < 3.0 { high } else { 1.0 }),
        Spectrum::LowRank(part) => by(&|i| if i <= part * count as f64 { 1.0 / (i + 1.0) } else { 0.0 }),
        Spectrum::Integers => {
            let mut random = Random(case.seed);
            return Mat::from_fn(m, n, |_, _| (random.normal() * 0.7).trunc());
        }
    };
    with_spectrum(m, n, &spectrum, case.seed % 1_000_003) * faer::Scale(10f64.powi(case.scale))
}

/// The matrix in storage `E`, laid out as the case says, and what its elements really are.
fn stored<E: Element>(a: MatRef<'_, f64>, layout: &Layout) -> (Vec<E>, [isize; 2], Mat<f64>) {
    let (m, n) = a.shape();
    let &Layout { step, pad, fortran, up, left } = layout;
    let (inner, outer) = if fortran { (m, n) } else { (n, m) };
    let ld = (inner - 1) * step + 1 + pad;
    let mut data = vec![E::from_f64(f64::NAN); (outer - 1) * ld + (inner - 1) * step + 1];
    let (rs, cs) = if fortran { (step, ld) } else { (ld, step) };
    let mut exact = Mat::zeros(m, n);
    for i in 0..m {
        for j in 0..n {
            let x = E::from_f64(a[(i, j)]);
            let (i_at, j_at) = (if up { m - 1 - i } else { i }, if left { n - 1 - j } else { j });
            data[i_at * rs + j_at * cs] = x;
            exact[(i, j)] = x.to_f64();
        }
    }
    let sign = |back: bool, stride: usize| if back { -(stride as isize) } else { stride as isize };
    (data, [sign(up, rs), sign(left, cs)], exact)
}

fn run(case: &Case) -> Result<(), TestCaseError> {
    match case.storage {
        DType::F16 => run_stored::<f16>(case),
        DType::BF16 => run_stored::<bf16>(case),
        DType::F32 => run_stored::<f32>(case),
        DType::F64 => run_stored::<f64>(case),
        _ => unreachable!("a storage type without tests"),
    }
}

fn run_stored<E: Element>(case: &Case) -> Result<(), TestCaseError> {
    let (data, strides, truth) = stored::<E>(matrix(case).as_ref(), &case.layout);
    let w = TensorRef::strided(&data, &[case.m, case.n], &strides).unwrap();
    if case.double { run_in::<f64>(case, w, &truth) } else { run_in::<f32>(case, w, &truth) }
}

fn run_in<T: Scalar>(case: &Case, w: TensorRef<'_>, truth: &Mat<f64>) -> Result<(), TestCaseError> {
    let count = case.m.min(case.n);
    let rank = match case.rank {
        Rule::Fixed(share) => Rank::Fixed(1 + (share * (count - 1) as f64) as usize),
        Rule::Ratio(r) => Rank::Ratio(r),
        Rule::Energy(e) => Rank::Energy(e),
        Rule::Tolerance(t) => Rank::Tolerance(t),
    };
    let mut svd = TruncatedSvd::new(rank)
        .method(case.method)
        .sketch(case.sketch)
        .oversample(case.oversample)
        .power_iterations(case.power_iterations)
        .dynamic_shift(case.seed % 2 == 1)
        .seed(case.seed);
    let once = matches!(case.method, Method::SinglePass | Method::Nystrom);
    if once {
        svd = svd.max_rank(count);
    }
    let f = match svd.factor::<T>(w) {
        Ok(f) => f,
        // At some shapes even rank 1 is not small enough.
        Err(Error::Option { name: "ratio", .. }) => return Ok(()),
        Err(error) => return Err(TestCaseError::fail(error.to_string())),
    };
    let spectrum = if truth.norm_l2() == 0.0 { vec![0.0; count] } else { truth.singular_values().unwrap() };
    check(case, &f, truth, &spectrum)?;
    // The factors of every smaller rank come with their own certificate.
    let k = 1 + case.seed as usize % f.rank();
    certificate(&f.truncate(k).unwrap(), truth)
}

fn check<T: Scalar>(case: &Case, f: &Factors<T>, truth: &Mat<f64>, spectrum: &[f64]) -> Result<(), TestCaseError> {
    let (k, eps) = (f.rank(), T::EPSILON);
    let root = (k as f64).sqrt();
    for q in [exact(f.u()), exact(f.vt()).transpose().to_owned()] {
        let worst = orthonormality(q.as_ref());
        prop_assert!(worst <= 64.0 * eps * root, "orthonormal to {:e}", worst);
    }
    prop_assert!(f.s().windows(2).all(|s| s[0] >= s[1]), "σ out of order: {:?}", f.s());
    certificate(f, truth)?;
    if truth.norm_l2() == 0.0 {
        return Ok(());
    }

    let total: f64 = spectrum.iter().rev().map(|s| s * s).sum();
    let tail = |j: usize| spectrum[j.min(spectrum.len())..].iter().rev().map(|s| s * s).sum::<f64>() / total;
    let (best, error) = (tail(k).sqrt(), true_error(truth.as_ref(), f));
    // Backward error of the arithmetic: √k times a modest multiple of eps.
    let rounding = 16.0 * eps * root;
    prop_assert!(error >= best - rounding, "error {:e} below the optimum {:e}: the oracle is wrong", error, best);
    if let (Rule::Tolerance(t), ErrorKind::Exact) = (&case.rank, f.report().error_kind) {
        prop_assert!(f.report().relative_error <= t * (1.0 + 1e-12), "{} above {}", f.report().relative_error, t);
    }
    // ‖A − [Â]_k‖ <= τ_k + 2 ‖A − Â‖ for any Â from l columns, and in the mean ‖A − Â‖² <= c (1 + j/(l−j−1)) τ_j² for all
    // j < l − 1 (Halko, Martinsson, Tropp 2011), with c = 1, or what two-sided sketches add. Three times that in the norm: beyond
    // one case in a million (their theorem 10.8 at t = e, u = 5), for the sketches that are not Gaussian as well.
    // Of block Krylov without power iterations that is its first block, of half the columns: what that one has missed is found by one product with `A Aᵀ`,
    // whose rounding hides it where little of it is left in the block (LowRank, 79×36, k = 28 in f32: 1500 eps).
    let whole = k + f.report().oversample;
    let l = match f.report().method {
        Method::Krylov if case.power_iterations == 0 => whole.div_ceil(2) as f64,
        _ => whole as f64,
    };
    let two_sided = match case.method {
        Method::Nystrom => 1.0 + l / (0.5 * l - 1.0).max(0.5),
        Method::SinglePass => 4.0,
        _ => 1.0,
    };
    let whole = whole >= spectrum.len();
    let projection = if whole && case.method != Method::Nystrom {
        0.0
    } else {
        (0..)
            .take_while(|&j| (j as f64) < l - 1.0)
            .map(|j| (1.0 + j as f64 / (l - j as f64 - 1.0)) * tail(j))
            .fold(1.0, f64::min)
    };
    // Solving with an embedding of l dimensions in s = 2l + 1 (twice) or 3l/2 (once) multiplies rounding by its condition,
    // (1 + √(l/s)) / (1 − √(l/s)): 34 and 10.
    let amplified = match case.method {
        Method::SinglePass => 34.0,
        Method::Nystrom => 10.0,
        _ => 1.0,
    };
    let limit = best + 2.0 * 3.0 * (two_sided * projection).sqrt() + amplified * rounding;
    let limit = if case.method == Method::Full { best + rounding } else { limit };
    prop_assert!(error <= limit, "error {:e}, best {:e}, limit {:e}", error, best, limit);
    Ok(())
}

/// What is reported is true: exact to rounding, or within what its probes allow.
fn certificate<T: Scalar>(f: &Factors<T>, truth: &Mat<f64>) -> Result<(), TestCaseError> {
    if truth.norm_l2() == 0.0 {
        prop_assert_eq!(f.report().relative_error, 0.0);
        return Ok(());
    }
    let (reported, error) = (f.report().relative_error, true_error(truth.as_ref(), f));
    let rounding = 16.0 * T::EPSILON * (f.rank() as f64).sqrt();
    let slack = match f.report().error_kind {
        ErrorKind::Exact => 16.0 * T::EPSILON / (2.0 * reported.max(T::EPSILON)),
        // 16 probes: at worst (a residual of rank one) χ² of 16 degrees of freedom, within a factor of 4 but for 1e-6.
        ErrorKind::Estimate { std_dev, .. } => (6.0 * std_dev).max(3.0 * reported.min(error)),
        _ => unreachable!("a kind of error without a bound"),
    };
    prop_assert!((reported - error).abs() <= slack + rounding, "certificate {:e}, truth {:e}", reported, error);
    Ok(())
}

#[test]
fn no_case_violates_its_bound_or_its_certificate() {
    let cases_wanted = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let config = ProptestConfig { cases: cases_wanted, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    if let Err(failure) = runner.run(&cases(), |case| run(&case)) {
        panic!("{failure}");
    }
}
