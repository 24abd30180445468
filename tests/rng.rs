//! The random numbers: published vectors, one function whatever the vector length, distribution.

use tensorslim::rng::{Philox, philox4x32, stream};

/// Random123's `kat_vectors`, philox4x32 10.
#[test]
fn philox_known_answers() {
    assert_eq!(philox4x32([0; 2], [0; 4]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(philox4x32([!0; 2], [!0; 4]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    assert_eq!(
        philox4x32([0xa4093822, 0x299f31d0], [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]),
        [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
    );
    // the same through seed, stream and index
    let rng = Philox::new(0x299f31d0_a4093822, 0x03707344_13198a2e);
    assert_eq!(rng.block(0x85a308d3_243f6a88), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
}

fn planes<T: Copy>(fill: T, len: usize, f: impl FnOnce([&mut [T]; 4])) -> [Vec<T>; 4] {
    let mut p: [Vec<T>; 4] = std::array::from_fn(|_| vec![fill; len]);
    let [a, b, c, d] = &mut p;
    f([a, b, c, d]);
    p
}

/// Vectors, tails and single blocks are the same bits, also where the low counter word overflows inside a vector.
#[test]
fn planes_are_blocks() {
    let rng = Philox::new(0x0123_4567_89ab_cdef, stream::DATA | 5);
    for first in [0, 1, 12345, (1 << 32) - 1, (1 << 32) - 9, (7 << 40) + 3, u64::MAX - 40] {
        for len in [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40] {
            let words = planes(0, len, |p| rng.planes(first, p));
            let normals = planes(f32::NAN, len, |p| rng.normal_planes(first, 1.0, p));
            for i in 0..len {
                let (w, z) = (rng.block(first + i as u64), rng.normal_block(first + i as u64));
                for k in 0..4 {
                    assert_eq!(words[k][i], w[k]);
                    assert_eq!(normals[k][i].to_bits(), z[k].to_bits());
                }
            }
        }
    }
}

/// A normal against f64 from the same words. In units of the radius r: sqrt halves the 1.5 ulp of ln and adds 1/2,
/// sine or cosine 1.5 (of at most 1; the 25 bit angle is part of the definition), the product 1/2: 3.25 ulp, and an
/// ulp is at most 2^-23 r.
#[test]
fn normals_match_f64() {
    let rng = Philox::new(3, stream::DATA);
    for index in 0..200_000 {
        let (w, z) = (rng.block(index), rng.normal_block(index));
        for pair in 0..2 {
            let u = (f64::from(w[2 * pair]) + 0.5) as f32 as f64 * 2f64.powi(-32);
            let r = (-2.0 * u.ln()).sqrt();
            let turn = (f64::from(w[2 * pair + 1] >> 7) + 0.5) * 2f64.powi(-25);
            let (s, c) = (turn * std::f64::consts::TAU).sin_cos();
            for (z, exact) in [(z[2 * pair], r * c), (z[2 * pair + 1], r * s)] {
                assert!((f64::from(z) - exact).abs() <= 4.0 * 2f64.powi(-23) * r, "{z} {exact}");
            }
        }
    }
}

/// Kolmogorov-Smirnov against the normal distribution: P(sqrt(N) D > 2.2) < 2 exp(-2·2.2²) = 1.3e-4 for each of the
/// two series (all normals; words 0 and 3 alone would hide a bad pairing, so also the product of a pair's signs).
#[test]
fn normals_are_normal() {
    let mut z = vec![f32::NAN; 1 << 20];
    Philox::new(42, stream::DATA).normals(0, &mut z);
    assert!(z.iter().all(|z| z.is_finite()));
    let n = z.len() as f64;
    let (mean, var) = (sum(&z, |z| z) / n, sum(&z, |z| z * z) / n);
    // 5 sigma: 1/sqrt(n) and sqrt(2/n)
    assert!(mean.abs() < 5.0 / n.sqrt() && (var - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{mean} {var}");
    let pairs: f64 = z.chunks(2).map(|p| f64::from(p[0]) * f64::from(p[1])).sum::<f64>() / (n / 2.0);
    assert!(pairs.abs() < 5.0 / (n / 2.0).sqrt());
    z.sort_by(f32::total_cmp);
    let d = z.iter().enumerate().fold(0f64, |d, (i, &z)| {
        let cdf = normal_cdf(f64::from(z));
        d.max((cdf - i as f64 / n).abs()).max((cdf - (i + 1) as f64 / n).abs())
    });
    assert!(d * n.sqrt() < 2.2, "KS {}", d * n.sqrt());
    // The largest of 2^20: P(|z| < 4.2) = (1 - 2.67e-5)^(2^20) < 1e-12.
    assert!(z[z.len() - 1].max(-z[0]) > 4.2);
}

fn sum(z: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    z.iter().map(|&z| f(f64::from(z))).sum()
}

/// By Taylor's series of the integral (all terms positive): relative error a few eps for |z| < 7.
fn normal_cdf(z: f64) -> f64 {
    let (mut term, mut total, mut k) = (z, z, 1.0);
    while term.abs() > 1e-18 * total.abs() {
        k += 2.0;
        term *= z * z / k;
        total += term;
    }
    0.5 + total * (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

/// The extreme words: u = 2^-33 and u = 1.
#[test]
fn normals_use_the_whole_range() {
    let mut z = vec![0f32; 1 << 22];
    Philox::new(1, stream::DATA).normals(0, &mut z);
    assert!(z.iter().all(|z| z.abs() <= 6.77));
}

#[test]
fn signs_and_indices_are_fair() {
    let rng = Philox::new(9, stream::DATA);
    let n = 1u64 << 16;
    let minus = (0..n).filter(|&i| rng.sign(i)).count() as f64;
    assert!((minus - n as f64 / 2.0).abs() < 5.0 * (n as f64).sqrt() / 2.0);
    for i in 0..300 {
        assert_eq!(rng.sign(i), rng.block(i / 128)[(i % 128 / 32) as usize] >> (i % 32) & 1 == 1);
    }
    // Chi square with 9 degrees of freedom: P(> 40) < 1e-5.
    let mut count = [0f64; 10];
    (0..10_000).for_each(|i| count[rng.below(i, 10) as usize] += 1.0);
    assert!(count.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum::<f64>() < 40.0);
}

#[test]
fn subsets_are_sorted_and_equally_likely() {
    for (n, l) in [(1, 1), (7, 0), (7, 7), (1000, 10), (4096, 266)] {
        let s = Philox::new(4, stream::DATA).subset(n, l);
        assert!(s.len() == l && s.windows(2).all(|w| w[0] < w[1]) && s.iter().all(|&i| i < n));
    }
    // Each of the 10 pairs of 0..5 about equally often: chi square, 9 degrees of freedom, P(> 40) < 1e-5.
    let mut count = std::collections::BTreeMap::new();
    (0..10_000).for_each(|seed| *count.entry(Philox::new(seed, stream::DATA).subset(5, 2)).or_insert(0f64) += 1.0);
    assert_eq!(count.len(), 10);
    assert!(count.values().map(|c| (c - 1000.0).powi(2) / 1000.0).sum::<f64>() < 40.0);
}

/// Members are distinct and in range, and the digits at both ends are as even as `l` draws can be.
/// Two inputs of an SRHT whose digits differ in d are told apart by the sample unless `d · R_t` is the same for all t. Of 30 of 2^10 that would be a chance of
/// 2^-19; of 15 of 2^7, 1 in 130.
#[test]
fn no_sum_of_digits_is_the_same_for_a_whole_subset() {
    for (bits, low, l) in [(10, 5, 30), (8, 5, 30), (7, 4, 15), (10, 6, 45), (6, 4, 9), (12, 6, 20), (5, 5, 20)] {
        for seed in 0..200 {
            let set = Philox::new(seed, 3).stratified_subset(bits, low, l);
            assert!(set.is_sorted() && set.windows(2).all(|pair| pair[0] < pair[1]) && set.len() == l);
            for d in 1u64..1 << bits {
                let first = (set[0] & d).count_ones() & 1;
                let same = set.iter().all(|x| (x & d).count_ones() & 1 == first);
                assert!(!same, "{l} of 2^{bits}, seed {seed}: {d:#b}");
            }
        }
    }
}

#[test]
fn stratified_subsets_are_even_at_both_ends() {
    for seed in 0..8 {
        for bits in 0..=12u32 {
            for low in [0, bits / 2, bits.div_ceil(2), bits] {
                for l in [0, 1, 3, 30, 128, 130, 266, 1 << bits] {
                    let l = l.min(1 << bits);
                    let set = Philox::new(seed, 3).stratified_subset(bits, low, l);
                    assert_eq!(set.len(), l);
                    assert!(set.windows(2).all(|w| w[0] < w[1]) && set.iter().all(|&x| x < 1 << bits));
                    let even = |b: u32, class: &dyn Fn(u64) -> u64| {
                        let mut count = vec![0usize; 1 << b];
                        set.iter().for_each(|&x| count[class(x) as usize] += 1);
                        let (least, most) = (l >> b, l.div_ceil(1 << b));
                        assert!(count.iter().all(|c| (least..=most).contains(c)), "{bits} {low} {l} {b}: {count:?}");
                    };
                    (0..=low).for_each(|b| even(b, &|x| x & ((1 << b) - 1)));
                    (0..=bits - low).for_each(|b| even(b, &|x| x >> (bits - b)));
                }
            }
        }
    }
    // Not one fixed set: another seed or stream is another subset.
    let of = |seed, stream| Philox::new(seed, stream).stratified_subset(12, 6, 64);
    assert!(of(1, 3) != of(2, 3) && of(1, 3) != of(1, 4));
}
