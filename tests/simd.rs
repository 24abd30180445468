//! Conversions against `half`, exhaustively where there are 65536 values, on every instruction set.

use half::{bf16, f16};
use tensorslim::simd::convert::{convert, convert_back};
use tensorslim::simd::{Isa, Scalar, isa, latest_isa, with_isa};
use tensorslim::{DType, Element};

fn on_every_isa(f: impl Fn(Isa)) {
    let all = Isa::available();
    assert_eq!(all.last(), Some(&isa()), "the best one is the default");
    for forced in all {
        with_isa(forced, || {
            f(forced);
            assert_eq!(latest_isa(), Some(forced), "another path ran");
        });
    }
    assert_eq!(isa(), *Isa::available().last().unwrap());
}

/// Equal bits, or both NaN.
fn same<E: Element>(a: E, b: E) -> bool {
    a.to_f64().to_bits() == b.to_f64().to_bits() || a.to_f64().is_nan() && b.to_f64().is_nan()
}

fn all_f16() -> Vec<f16> {
    (0..=u16::MAX).map(f16::from_bits).collect()
}

fn all_bf16() -> Vec<bf16> {
    (0..=u16::MAX).map(bf16::from_bits).collect()
}

fn check_widening<E: Element, T: Scalar>(src: &[E], isa: Isa) {
    for scale in [1.0, 2f64.powi(-7), 2f64.powi(11), 2f64.powi(-140), 2f64.powi(140)] {
        let mut dst = vec![<T as Element>::from_f64(f64::NAN); src.len()];
        convert(src, &mut dst, scale);
        for (x, y) in src.iter().zip(&dst) {
            let want = <T as Element>::from_f64(scale * x.to_f64());
            assert!(same(*y, want), "{isa} {x:?} · {scale:e} -> {y:?}, not {want:?}");
        }
    }
}

#[test]
fn every_half_widens_to_itself() {
    on_every_isa(|isa| {
        check_widening::<f16, f32>(&all_f16(), isa);
        check_widening::<f16, f64>(&all_f16(), isa);
        check_widening::<bf16, f32>(&all_bf16(), isa);
        check_widening::<bf16, f64>(&all_bf16(), isa);
    });
}

/// The values of `E`, the midpoints between neighbours, and the nearest f64 on either side of each.
fn hard_values<E: Element>(all: &[E]) -> Vec<f64> {
    let mut exact: Vec<f64> = all.iter().map(|x| x.to_f64()).filter(|x| x.is_finite()).collect();
    exact.sort_by(f64::total_cmp);
    let mut hard: Vec<f64> = exact.windows(2).map(|w| (w[0] + w[1]) / 2.0).collect();
    let max = exact[exact.len() - 1];
    let ulp = max - exact[exact.len() - 2];
    hard.extend([
        max + ulp / 2.0,
        -max - ulp / 2.0,
        max * 2.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e300,
        -1e-300,
        1e-45,
    ]);
    hard.extend(exact);
    let near: Vec<f64> = hard.iter().flat_map(|x| [x.next_up(), x.next_down()]).collect();
    hard.extend(near);
    hard.extend([0.0, -0.0, f64::NAN]);
    hard
}

/// The nearest `E`, ties to even, by search among all of them: independent of any conversion routine.
fn nearest(sorted: &[f64], even: &dyn Fn(f64) -> bool, x: f64) -> f64 {
    let max = sorted[sorted.len() - 1];
    let ulp = max - sorted[sorted.len() - 2];
    if x.is_nan() {
        return x;
    }
    if x.abs() >= max + ulp / 2.0 {
        return f64::INFINITY.copysign(x);
    }
    let i = sorted.partition_point(|&v| v < x);
    if i == 0 || i == sorted.len() {
        return max.copysign(x);
    }
    let (lo, hi) = (sorted[i - 1], sorted[i]);
    // Differences of neighbouring values and what lies between them are exact enough to compare in f64 only when they
    // are; the midpoint is exact.
    let mid = (lo + hi) / 2.0;
    match x.partial_cmp(&mid).unwrap() {
        std::cmp::Ordering::Less => lo,
        std::cmp::Ordering::Greater => hi,
        std::cmp::Ordering::Equal => {
            if even(lo) {
                lo
            } else {
                hi
            }
        }
    }
}

fn check_narrowing<E: Element>(all: &[E], even: &dyn Fn(f64) -> bool) {
    let mut sorted: Vec<f64> = all.iter().map(|x| x.to_f64()).filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let hard = hard_values(all);
    let want: Vec<f64> = hard.iter().map(|&x| nearest(&sorted, even, x)).collect();
    let single: Vec<f32> = hard.iter().map(|&x| x as f32).collect();
    let want_single: Vec<f64> = single.iter().map(|&x| nearest(&sorted, even, x as f64)).collect();
    on_every_isa(|isa| {
        let mut got = vec![E::from_f64(77.0); hard.len()];
        convert_back(&hard, &mut got, 1.0);
        for ((x, y), want) in hard.iter().zip(&got).zip(&want) {
            let y = y.to_f64();
            assert!(y == *want || y.is_nan() && want.is_nan(), "{isa} f64 {x:e} -> {y:e}, not {want:e}");
            assert!(y.is_nan() || y != 0.0 || y.is_sign_negative() == x.is_sign_negative(), "{isa} sign of {x:e}");
        }
        convert_back(&single, &mut got, 1.0);
        for ((x, y), want) in single.iter().zip(&got).zip(&want_single) {
            let y = y.to_f64();
            assert!(y == *want || y.is_nan() && want.is_nan(), "{isa} f32 {x:e} -> {y:e}, not {want:e}");
        }
    });
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    check_narrowing::<f16>(&all_f16(), &|x| f16::from_f64(x).to_bits().is_multiple_of(2));
    check_narrowing::<bf16>(&all_bf16(), &|x| bf16::from_f64(x).to_bits().is_multiple_of(2));
}

#[test]
fn narrowing_f32_agrees_with_half_on_many_values() {
    // Every 2^32 / 10^6-th f32, NaNs and infinities among them.
    let single: Vec<f32> = (0..1 << 20).map(|i: u32| f32::from_bits(i.wrapping_mul(4099))).collect();
    on_every_isa(|isa| {
        let mut h = vec![f16::ZERO; single.len()];
        convert_back(&single, &mut h, 1.0);
        let mut b = vec![bf16::ZERO; single.len()];
        convert_back(&single, &mut b, 1.0);
        for (i, &x) in single.iter().enumerate() {
            assert!(same(h[i], f16::from_f32(x)), "{isa} {x:e} -> {:?}", h[i]);
            assert!(same(b[i], bf16::from_f32(x)), "{isa} {x:e} -> {:?}", b[i]);
        }
    });
}

#[test]
fn lengths_around_registers_and_chunks() {
    fn check<A: Element, T: Scalar>() {
        for n in (0..40).chain([255, 256, 257, 511, 512, 513]) {
            let src: Vec<A> = (0..n).map(|i| A::from_f64((i % 100) as f64 - 20.0)).collect();
            // One more on either side must not be touched.
            let mut dst = vec![<T as Element>::from_f64(77.0); n + 2];
            convert(&src, &mut dst[1..=n], 0.5);
            let mut back = vec![A::from_f64(77.0); n + 2];
            convert_back(&dst[1..=n], &mut back[1..=n], 2.0);
            for i in 0..n {
                assert_eq!(Element::to_f64(dst[i + 1]), ((i % 100) as f64 - 20.0) / 2.0);
                assert_eq!(back[i + 1].to_f64(), (i % 100) as f64 - 20.0);
            }
            assert_eq!((Element::to_f64(dst[0]), Element::to_f64(dst[n + 1])), (77.0, 77.0));
            assert_eq!((back[0].to_f64(), back[n + 1].to_f64()), (77.0, 77.0));
        }
    }
    on_every_isa(|_| {
        check::<f16, f32>();
        check::<bf16, f32>();
        check::<f32, f32>();
        check::<f64, f32>();
        check::<f16, f64>();
        check::<bf16, f64>();
        check::<f32, f64>();
        check::<f64, f64>();
    });
}

#[test]
fn an_instruction_set_that_the_machine_lacks_runs_the_portable_kernels() {
    assert_eq!(Isa::Portable.name(), "portable");
    assert_eq!(isa().to_string(), isa().name());
    assert_eq!(DType::F16.size(), 2);
    // One that the machine lacks runs the portable kernels and says so.
    let foreign = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx512 };
    with_isa(foreign, || {
        convert(&[1f32], &mut [0f64], 1.0);
        assert_eq!(latest_isa(), Some(Isa::Portable));
    });
}
