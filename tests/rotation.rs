//! Rotations against a scalar copy of their definition, bit for bit, on every instruction set, in every layout and on
//! several numbers of threads; against dense matrices; and against known answers, which no later version may change.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::{Add, Mul, Sub};

use half::{bf16, f16};
use tensorslim::fwht::Order;
use tensorslim::rotation::{Rotation, Scheme};
use tensorslim::simd::{Isa, latest_isa, with_isa};
use tensorslim::{Element, Error, TensorMut, Threads};

const BLOCKS: Scheme = Scheme::Blocks { len: None };
const SCHEMES: [Scheme; 4] = [Scheme::Order, BLOCKS, Scheme::Kac, Scheme::Padded];

/// The signs of a rotation, as numbers.
fn signs(rotation: &Rotation, count: usize) -> Vec<f64> {
    let bytes = rotation.sign_bytes();
    (0..count).map(|i| if bytes[i / 8] >> (i % 8) & 1 == 1 { -1.0 } else { 1.0 }).collect()
}

/// The arithmetic of a storage type.
trait Arithmetic: Element {
    type T: Element + Add<Output = Self::T> + Sub<Output = Self::T> + Mul<Output = Self::T>;
}
impl Arithmetic for f16 {
    type T = f32;
}
impl Arithmetic for bf16 {
    type T = f32;
}
impl Arithmetic for f32 {
    type T = f32;
}
impl Arithmetic for f64 {
    type T = f64;
}

/// `x <- H x` or `Hᵀ x`: stages from the top bit of the index down, then sums with the rows of the base from the left, of
/// the larger bases four by four.
fn transform<T>(x: &mut [T], transposed: bool)
where
    T: Element + Add<Output = T> + Sub<Output = T> + Mul<Output = T>,
{
    let order = Order::new(x.len()).unwrap();
    let (b, h) = (order.base(), 1usize << order.log2());
    for part in x.chunks_mut(h) {
        let mut d = h / 2;
        while d > 0 {
            for i in (0..h).filter(|i| i & d == 0) {
                (part[i], part[i + d]) = (part[i] + part[i + d], part[i] - part[i + d]);
            }
            d /= 2;
        }
    }
    if b > 1 {
        let (m, y) = (order.base_matrix(), x.to_vec());
        for i in 0..b {
            for j in 0..h {
                let entry = |l: usize| T::from_f64(if transposed { m.row(l)[i] } else { m.row(i)[l] });
                let term = |l: usize| entry(l) * y[l * h + j];
                let four = |l: usize| (term(l) + term(l + 1)) + (term(l + 2) + term(l + 3));
                let zero = T::from_f64(0.0);
                x[i * h + j] = match b {
                    12 | 20 | 28 | 36 | 44 | 52 | 60 | 108 | 140 => (0..b).fold(zero, |sum, l| sum + term(l)),
                    _ => (0..b).step_by(4).fold(zero, |sum, l| sum + four(l)),
                };
            }
        }
    }
}

/// `y = Q x` or `x = Qᵀ y` by the definition, rounded once from the arithmetic type.
fn reference<E: Arithmetic>(rotation: &Rotation, x: &[E], inverse: bool) -> Vec<E> {
    let (n, out) = (rotation.dim(), rotation.output_dim());
    let mut v: Vec<E::T> = x.iter().map(|x| E::T::from_f64(x.to_f64())).collect();
    let number = E::T::from_f64;
    let flip = |v: &mut [E::T], signs: &[f64]| v.iter_mut().zip(signs).for_each(|(x, &s)| *x = *x * number(s));
    let scale = |v: &mut [E::T], c: f64| v.iter_mut().for_each(|x| *x = *x * number(c));
    match rotation.scheme() {
        Scheme::Kac => {
            let (len, all) = (1usize << n.ilog2(), signs(rotation, 4 * n));
            let step = |v: &mut [E::T]| {
                for i in (0..n / 2).filter(|_| n > len) {
                    (v[i], v[i + n / 2]) = (v[i] + v[i + n / 2], v[i] - v[i + n / 2]);
                }
            };
            // It is exact where nothing underflows.
            if n > len {
                scale(&mut v, 0.25);
            }
            for i in 0..4 {
                let round = if inverse { 3 - i } else { i };
                let first = if round % 2 == 1 { n - len } else { 0 };
                let signs = &all[round * n..][..n];
                if inverse {
                    step(&mut v);
                } else {
                    flip(&mut v, signs);
                }
                scale(&mut v[first..first + len], 1.0 / (len as f64).sqrt());
                transform(&mut v[first..first + len], false);
                if inverse {
                    flip(&mut v, signs);
                } else {
                    step(&mut v);
                }
            }
        }
        scheme => {
            let signs = signs(rotation, n);
            let len = match scheme {
                Scheme::Blocks { len } => len.unwrap_or(1 << n.trailing_zeros()),
                _ => out,
            };
            if !inverse {
                v.resize(out, number(0.0));
                flip(&mut v, &signs);
            }
            scale(&mut v, 1.0 / (len as f64).sqrt());
            v.chunks_mut(len).for_each(|part| transform(part, inverse));
            if inverse {
                flip(&mut v, &signs);
                v.truncate(n);
            }
        }
    }
    v.into_iter().map(|x| E::from_f64(x.to_f64())).collect()
}

/// These answers come from a program in another language. They may not change: databases hold vectors that were
/// rotated.
#[test]
fn known_answers_hold_on_every_isa() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let bytes = |n: usize, seed: u64| hex(Rotation::new(n, seed, Scheme::Padded).unwrap().sign_bytes());
    assert_eq!(bytes(160, 42), "be8be159cda4905c38e0b7e980e9055b5d67f89b");
    assert_eq!(bytes(100, (1 << 63) + 5), "74c199161c2052dfc8a133fe09");
    let input = |i: usize| (((i * i * 7 + 3 * i) % 251) as f64 - 125.0) / 16.0 + (i % 13) as f64 * 0.3;
    // The length, the scheme, the hash of all bytes of the result (FNV-1a, 64 bits), and the bits of its first two
    // numbers.
    for (n, scheme, hash, first) in [
        (16, Scheme::Order, 0x784e_e87c_0e8c_e46b, [0xbf2d_999a, 0xc032_999a]),
        (1024, Scheme::Order, 0x3121_f811_662c_8511, [0xc0a7_d666, 0xbe4f_9970]),
        (768, Scheme::Order, 0x09a9_18bc_64bb_df00, [0xbf8b_156e, 0xc084_f308]),
        (5120, Scheme::Order, 0x97c6_45ad_1df9_49ac, [0xc09f_cfd0, 0x40b4_9895]),
        (32768, Scheme::Order, 0x643b_e6ec_ff59_4193, [0xc0a4_1347, 0xbf5c_67b8]),
        (1920, BLOCKS, 0x6a36_eed1_f2c6_e22a, [0xbdcd_e8f8, 0xbfe6_601c]),
        (1536, Scheme::Kac, 0x7e9e_dcff_83a2_5341, [0x3fe8_fd0e, 0x4092_2a02]),
        (1024, Scheme::Kac, 0x54f3_32f2_1d32_4d47, [0x40ab_f750, 0x4058_b130]),
        (1000, Scheme::Padded, 0xee33_d175_95f0_b649u64, [0xc0b0_4666, 0x3d03_3340u32]),
    ] {
        let rotation = Rotation::new(n, 42, scheme).unwrap();
        on_every_isa(|isa| {
            let x: Vec<f32> = (0..n).map(|i| input(i) as f32).collect();
            let mut y = vec![0f32; rotation.output_dim()];
            rotation.apply_to(&x, &mut y, Threads::One).unwrap();
            let got = (y.iter().flat_map(|y| y.to_le_bytes()))
                .fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
            assert_eq!([y[0].to_bits(), y[1].to_bits()], first, "{isa} {scheme:?} {n}");
            assert_eq!(got, hash, "{isa} {scheme:?} {n}");
        });
    }
}

/// Numbers with many digits, so that another order of additions would show.
fn data<E: Element>(len: usize) -> Vec<E> {
    let noise = |i: usize| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (0..len).map(|i| E::from_f64(noise(i) as f64 / (1u64 << 23) as f64 - 1.0 + 1e-3)).collect()
}

fn bits<E: Element>(x: &[E]) -> Vec<u64> {
    x.iter().map(|x| x.to_f64().to_bits()).collect()
}

/// Runs `f` once per instruction set and checks that the kernels of that one ran.
fn on_every_isa(f: impl Fn(Isa)) {
    for forced in Isa::available() {
        with_isa(forced, || {
            f(forced);
            assert_eq!(latest_isa(), Some(forced));
        });
    }
}

/// The lengths that are tried with a scheme: around lanes, leaves and blocks.
fn lengths(scheme: Scheme) -> Vec<usize> {
    let all = [
        1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 20, 24, 30, 32, 36, 48, 64, 96, 100, 128, 160, 200, 256, 320, 384, 432, 512,
        640, 768, 1000, 1024, 1100, 1536, 1920, 2048, 4096, 5120, 9728, 11008, 16384, 32768,
    ];
    all.into_iter().filter(|&n| scheme.accepts(n)).collect()
}

/// One vector, out of place and, where lengths allow it, in place.
fn check_vector<E: Arithmetic>(rotation: &Rotation, what: Isa) {
    for inverse in [false, true] {
        let (n, out) = match inverse {
            false => (rotation.dim(), rotation.output_dim()),
            true => (rotation.output_dim(), rotation.dim()),
        };
        let x = data::<E>(n);
        let want = bits(&reference(rotation, &x, inverse));
        let mut y = vec![E::from_f64(7.0); out];
        match inverse {
            false => rotation.apply_to(&x, &mut y, Threads::One).unwrap(),
            true => rotation.apply_inverse_to(&x, &mut y, Threads::One).unwrap(),
        }
        assert!(bits(&y) == want, "{what} {} {rotation:?} to another place, inverse {inverse}", E::DTYPE);
        let mut z = x.clone();
        let done = match inverse {
            false => rotation.apply(&mut z),
            true => rotation.apply_inverse(&mut z),
        };
        if n == out {
            done.unwrap();
            assert!(bits(&z) == want, "{what} {} {rotation:?} in place, inverse {inverse}", E::DTYPE);
        } else {
            assert!(matches!(done, Err(Error::Shape { .. })));
            assert!(bits(&z) == bits(&x));
        }
    }
}

#[test]
fn vectors_have_the_bits_of_the_definition_on_every_isa() {
    for scheme in SCHEMES {
        for n in lengths(scheme) {
            let rotation = Rotation::new(n, 5, scheme).unwrap();
            on_every_isa(|isa| {
                check_vector::<f32>(&rotation, isa);
                check_vector::<f64>(&rotation, isa);
                check_vector::<f16>(&rotation, isa);
                check_vector::<bf16>(&rotation, isa);
            });
        }
    }
    for (n, len) in [(1920, 128), (768, 12), (768, 96), (84, 28), (4096, 2), (1536, 768), (40960, 512)] {
        let rotation = Rotation::new(n, 6, Scheme::Blocks { len: Some(len) }).unwrap();
        on_every_isa(|isa| {
            check_vector::<f32>(&rotation, isa);
            check_vector::<f64>(&rotation, isa);
            check_vector::<bf16>(&rotation, isa);
        });
    }
}

/// Rows of a matrix in layout number `layout`, every element beside them untouched.
fn check_rows<E: Arithmetic>(rotation: &Rotation, m: usize, layout: usize, threads: Threads, what: &str) {
    let n = rotation.dim();
    let (mi, ni) = (m as isize, n as isize);
    let (rs, cs) = [(ni, 1), (ni + 3, 1), (1, mi), (1, mi + 5), (-ni, 1), (ni, -1), (-1, mi), (2 * ni, 2)][layout];
    let back = |dim: usize, s: isize| if s < 0 { (dim - 1) * s.unsigned_abs() } else { 0 };
    let first = back(m, rs) + back(n, cs);
    let at = |i: usize, j: usize| (first as isize + i as isize * rs + j as isize * cs) as usize;
    let span = (m - 1) * rs.unsigned_abs() + (n - 1) * cs.unsigned_abs() + 1;
    for inverse in [false, true] {
        let x = data::<E>(m * n);
        let mut a = vec![E::from_f64(77.0); span];
        (0..m * n).for_each(|i| a[at(i / n, i % n)] = x[i]);
        let view = TensorMut::strided(&mut a, m, n, rs, cs).unwrap();
        match inverse {
            false => rotation.apply_rows(view, threads).unwrap(),
            true => rotation.apply_rows_inverse(view, threads).unwrap(),
        }
        let mut touched = vec![false; span];
        for i in 0..m {
            let want = reference(rotation, &x[i * n..][..n], inverse);
            let got: Vec<E> = (0..n).map(|j| a[at(i, j)]).collect();
            assert!(bits(&got) == bits(&want), "{what} {} {m}×{n} strides ({rs}, {cs}), row {i}", E::DTYPE);
            (0..n).for_each(|j| touched[at(i, j)] = true);
        }
        assert!((0..span).all(|i| touched[i] || a[i].to_f64() == 77.0), "{what}: wrote between the elements");
    }
}

#[test]
fn rows_of_any_strides_have_the_bits_of_the_definition() {
    on_every_isa(|isa| {
        for scheme in [Scheme::Order, BLOCKS, Scheme::Kac, Scheme::Blocks { len: Some(12) }] {
            for n in [2, 8, 12, 48, 60, 64, 96, 128, 432, 1024, 1536].into_iter().filter(|&n| scheme.accepts(n)) {
                let rotation = Rotation::new(n, 8, scheme).unwrap();
                for m in [1, 3, 37] {
                    for layout in 0..8 {
                        check_rows::<f32>(&rotation, m, layout, Threads::One, isa.name());
                    }
                    for layout in [0, 2, 7] {
                        check_rows::<f64>(&rotation, m, layout, Threads::One, isa.name());
                        check_rows::<f16>(&rotation, m, layout, Threads::One, isa.name());
                        check_rows::<bf16>(&rotation, m, layout, Threads::One, isa.name());
                    }
                }
            }
        }
    });
}

/// Adjacent vectors from one place to another, shared among threads or not.
#[cfg(feature = "rayon")]
fn check_batch<E: Arithmetic>(rotation: &Rotation, m: usize, threads: Threads) {
    let (n, out) = (rotation.dim(), rotation.output_dim());
    let (x, mut y, mut back) = (data::<E>(m * n), vec![E::from_f64(7.0); m * out], vec![E::from_f64(7.0); m * n]);
    rotation.apply_to(&x, &mut y, threads).unwrap();
    rotation.apply_inverse_to(&y, &mut back, threads).unwrap();
    for i in 0..m {
        let (x, y, back) = (&x[i * n..][..n], &y[i * out..][..out], &back[i * n..][..n]);
        assert!(bits(y) == bits(&reference(rotation, x, false)), "{} {rotation:?} vector {i}", E::DTYPE);
        assert!(bits(back) == bits(&reference(rotation, y, true)), "{} {rotation:?} vector {i} back", E::DTYPE);
    }
}

#[cfg(feature = "rayon")]
#[test]
fn threads_do_not_change_a_bit() {
    for count in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
        pool.install(|| {
            for (n, m, scheme) in [
                (1024, 301, Scheme::Order),
                (768, 300, Scheme::Order),
                (1920, 131, BLOCKS),
                (1536, 200, Scheme::Kac),
                (1000, 300, Scheme::Padded),
                (1 << 18, 1, Scheme::Order),
                (12 << 15, 1, Scheme::Order),
                (1 << 19, 1, Scheme::Padded),
                (3 << 17, 1, BLOCKS),
            ] {
                let rotation = Rotation::new(n, 9, scheme).unwrap();
                check_batch::<f32>(&rotation, m, Threads::Pool);
                check_batch::<bf16>(&rotation, m, Threads::Pool);
                if m > 1 && scheme != Scheme::Padded {
                    for layout in [0, 2, 6] {
                        check_rows::<f32>(&rotation, m, layout, Threads::Pool, "threads");
                        check_rows::<f16>(&rotation, m, layout, Threads::Pool, "threads");
                    }
                }
            }
        });
    }
}

/// The dense matrix `Q`, `output_dim × dim`, column by column.
fn dense(rotation: &Rotation) -> Vec<Vec<f64>> {
    let (n, out) = (rotation.dim(), rotation.output_dim());
    let column = |j: usize| {
        let (mut x, mut y) = (vec![0f64; n], vec![0f64; out]);
        x[j] = 1.0;
        rotation.apply_to(&x, &mut y, Threads::One).unwrap();
        y
    };
    (0..n).map(column).collect()
}

/// `QᵀQ = I`, and the inverse is `Qᵀ`. Errors are below a rounding for each stage, of entries below 1.
#[test]
fn rotations_are_orthogonal_and_the_inverse_is_the_transpose() {
    for (n, scheme) in [
        (64, Scheme::Order),
        (96, Scheme::Order),
        (60, Scheme::Order),
        (112, BLOCKS),
        (84, Scheme::Blocks { len: Some(28) }),
        (90, Scheme::Kac),
        (64, Scheme::Kac),
        (51, Scheme::Padded),
    ] {
        let rotation = Rotation::new(n, 11, scheme).unwrap();
        let (q, out) = (dense(&rotation), rotation.output_dim());
        for i in 0..n {
            for j in 0..n {
                let dot: f64 = q[i].iter().zip(&q[j]).map(|(a, b)| a * b).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-13, "{rotation:?} ({i}, {j}) {dot}");
            }
        }
        for i in 0..out {
            let (mut y, mut x) = (vec![0f64; out], vec![0f64; n]);
            y[i] = 1.0;
            rotation.apply_inverse_to(&y, &mut x, Threads::One).unwrap();
            assert!((0..n).all(|j| (x[j] - q[j][i]).abs() < 1e-14), "{rotation:?} row {i}");
        }
    }
}

/// The dense matrix of one transform is `H D / √n`, and every input reaches every output of `Kac`.
#[test]
fn the_matrix_is_what_the_scheme_says() {
    let n = 96;
    let rotation = Rotation::new(n, 3, Scheme::Order).unwrap();
    let (q, d, order) = (dense(&rotation), signs(&rotation, n), Order::new(n).unwrap());
    let (base, h) = (order.base_matrix(), 1usize << order.log2());
    for (j, column) in q.iter().enumerate() {
        for (i, &entry) in column.iter().enumerate() {
            let sign = if ((i % h) & (j % h)).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
            let want = base.row(i / h)[j / h] * sign * d[j] / (n as f64).sqrt();
            assert!((entry - want).abs() < 1e-15, "({i}, {j})");
        }
    }
    let kac = dense(&Rotation::new(n, 3, Scheme::Kac).unwrap());
    assert!(kac.iter().flatten().filter(|x| x.abs() < 1e-9).count() < n * n / 20);
}

/// There and back is the input, within 2 roundings for each stage of each way and, in a half, 2 roundings of its own.
#[test]
fn the_inverse_after_the_rotation_is_the_input() {
    fn check<E: Element>(rotation: &Rotation, u: f64, own: f64) {
        let (n, out) = (rotation.dim(), rotation.output_dim());
        let (x, mut y, mut z) = (data::<E>(n), vec![E::from_f64(0.0); out], vec![E::from_f64(0.0); n]);
        rotation.apply_to(&x, &mut y, Threads::One).unwrap();
        rotation.apply_inverse_to(&y, &mut z, Threads::One).unwrap();
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut x.iter().zip(&z).map(|(x, z)| x.to_f64() - z.to_f64()));
        let size = norm(&mut x.iter().map(|x| x.to_f64()));
        let order = (n as f64).log2() + 2.0 + 140.0 * f64::from(u8::from(!n.is_power_of_two()));
        let rounds = if rotation.scheme() == Scheme::Kac { 4.0 } else { 1.0 };
        assert!(error <= (2.0 * rounds * order * u + 2.0 * own) * size, "{} {rotation:?}: {}", E::DTYPE, error / size);
    }
    for scheme in SCHEMES {
        for n in [64, 768, 1024, 1536, 1920, 4096, 5120].into_iter().filter(|&n| scheme.accepts(n)) {
            let rotation = Rotation::new(n, 13, scheme).unwrap();
            check::<f32>(&rotation, f64::from(f32::EPSILON) / 2.0, 0.0);
            check::<f64>(&rotation, f64::EPSILON / 2.0, 0.0);
            check::<f16>(&rotation, f64::from(f32::EPSILON) / 2.0, 2f64.powi(-11));
            check::<bf16>(&rotation, f64::from(f32::EPSILON) / 2.0, 2f64.powi(-8));
        }
    }
}

#[test]
fn sign_bytes_make_the_same_rotation() {
    for scheme in SCHEMES {
        for n in [2, 20, 30, 64, 100, 1024].into_iter().filter(|&n| scheme.accepts(n)) {
            let rotation = Rotation::new(n, 21, scheme).unwrap();
            let bytes = rotation.sign_bytes().to_vec();
            assert_eq!(bytes.len(), (if scheme == Scheme::Kac { 4 * n } else { n }).div_ceil(8));
            assert_eq!(Rotation::from_sign_bytes(n, scheme, &bytes).unwrap(), rotation);
            let short = Rotation::from_sign_bytes(n, scheme, &bytes[1..]);
            assert!(matches!(short, Err(Error::Shape { .. })), "{short:?}");
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(matches!(Rotation::from_sign_bytes(n, scheme, &longer), Err(Error::Shape { .. })));
        }
    }
    let set = Rotation::from_sign_bytes(20, Scheme::Order, &[0, 0, 0b1_0000]);
    assert!(matches!(set, Err(Error::Format { .. })), "{set:?}");
    let all = Rotation::from_sign_bytes(20, Scheme::Order, &[0, 0, 0b1111]).unwrap();
    assert_eq!((all.dim(), all.output_dim(), all.scheme()), (20, 20, Scheme::Order));
}

#[test]
fn lengths_that_do_not_work_are_refused_with_the_nearest_that_do() {
    let refused = |n: usize, scheme: Scheme| match Rotation::new(n, 0, scheme) {
        Err(Error::Rotation { dim, below, above, .. }) => {
            assert_eq!(dim, n);
            assert_eq!(scheme.nearest(n), (below, above));
            assert!(!scheme.accepts(n));
            assert!(below.into_iter().chain(above).all(|n| scheme.accepts(n)), "{scheme:?} {n}");
            (below, above)
        }
        other => panic!("{scheme:?} {n}: {other:?}"),
    };
    assert_eq!(refused(0, Scheme::Order), (None, Some(1)));
    assert_eq!(refused(23, Scheme::Order), (Some(20), Some(24)));
    assert_eq!(refused(usize::MAX, Scheme::Order).1, None);
    assert_eq!(refused(0, BLOCKS), (None, Some(2)));
    assert_eq!(refused(1, BLOCKS), (None, Some(2)));
    assert_eq!(refused(77, BLOCKS), (Some(76), Some(78)));
    assert_eq!(refused(1000, Scheme::Blocks { len: Some(128) }), (Some(896), Some(1024)));
    assert_eq!(refused(100, Scheme::Blocks { len: Some(128) }), (None, Some(128)));
    for len in [0, 1, 7, usize::MAX] {
        assert_eq!(refused(84, Scheme::Blocks { len: Some(len) }), (None, None));
    }
    assert_eq!(refused(0, Scheme::Kac), (None, Some(1)));
    assert_eq!(refused(77, Scheme::Kac), (Some(76), Some(78)));
    assert_eq!(refused(usize::MAX, Scheme::Kac), (Some((1 << 28) - 2), None));
    assert_eq!(refused(0, Scheme::Padded), (None, Some(1)));
    assert_eq!(refused(usize::MAX, Scheme::Padded), (Some(1 << 27), None));
    assert_eq!(Scheme::Padded.nearest(77), (Some(77), Some(77)));
    let text = Rotation::new(23, 0, Scheme::Order).unwrap_err().to_string();
    assert_eq!(text, "no rotation by order of 23 elements; the nearest lengths are 20 and 24");

    let rotation = Rotation::new(64, 0, Scheme::Order).unwrap();
    let mut x = vec![1f32; 63];
    assert!(matches!(rotation.apply(&mut x), Err(Error::Shape { .. })));
    assert!(matches!(rotation.apply(&mut x[..0]), Err(Error::Shape { .. })));
    let rows = TensorMut::new(&mut x, 1, 63).unwrap();
    assert!(matches!(rotation.apply_rows(rows, Threads::Pool), Err(Error::Shape { .. })));
    let mut y = vec![1f32; 128];
    assert!(matches!(rotation.apply_to(&x, &mut y, Threads::One), Err(Error::Shape { .. })));
    assert!(matches!(rotation.apply_to(&y[..64], &mut x, Threads::One), Err(Error::Shape { .. })));
    assert!(x.iter().chain(&y).all(|&x| x == 1.0));
    rotation.apply_to::<f32>(&[], &mut [], Threads::One).unwrap();
    rotation.apply_rows(TensorMut::new(&mut [0f32; 0], 0, 64).unwrap(), Threads::One).unwrap();
}

/// A system allocator that counts what this thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is what the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is what the system's allocator asks for.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn nothing_is_allocated_once_there_is_scratch() {
    fn check<E: Element>() {
        for (n, scheme) in [
            (4096, Scheme::Order),
            (768, Scheme::Order),
            (1920, BLOCKS),
            (1536, Scheme::Kac),
            (1024, Scheme::Kac),
            (1000, Scheme::Padded),
        ] {
            let rotation = Rotation::new(n, 1, scheme).unwrap();
            let (mut x, mut y) = (data::<E>(3 * n), vec![E::from_f64(0.0); 3 * rotation.output_dim()]);
            let mut all = || {
                rotation.apply_to(&x, &mut y, Threads::One).unwrap();
                rotation.apply_inverse_to(&y, &mut x, Threads::One).unwrap();
                if scheme != Scheme::Padded {
                    rotation.apply(&mut x[..n]).unwrap();
                    rotation.apply_rows_inverse(TensorMut::new(&mut x, 3, n).unwrap(), Threads::One).unwrap();
                    let columns = TensorMut::new(&mut x, n, 3).unwrap().transpose();
                    rotation.apply_rows(columns, Threads::One).unwrap();
                }
            };
            all();
            let before = ALLOCATIONS.get();
            all();
            assert_eq!(ALLOCATIONS.get(), before, "{} {rotation:?}", E::DTYPE);
        }
    }
    check::<f32>();
    check::<f64>();
    check::<f16>();
    check::<bf16>();
}
