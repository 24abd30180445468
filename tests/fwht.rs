//! The transforms against the definition `y_i = Σ_j (−1)^{popcount(i & j)} x_j`, on integers, so that every sum is
//! exact in f32 (|x| <= 8, n <= 2^16: below 2^24) and results must be equal bit for bit, whatever the order of the
//! additions. Halves are f32 inside and rounded once, so they must equal the rounded exact sum.

use half::{bf16, f16};
use tensorslim::fwht::{self, Order};
use tensorslim::simd::{Isa, isa, latest_isa, with_isa};
use tensorslim::{DType, Element, Error, TensorMut, Threads};

/// Every order of a Hadamard matrix of this crate that is not an even multiple of a smaller one: 1, and 4 times each
/// odd number from 3 to 63, then 71, 107, 171, 231.
fn bases() -> Vec<usize> {
    [1].into_iter().chain((12..=252).step_by(8)).chain([284, 428, 684, 924]).collect()
}

/// A small integer that is a function of its index.
fn value(i: usize) -> i64 {
    let h = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((h >> 40) % 17) as i64 - 8
}

/// `(H_b ⊗ H_{2^k}) x`: butterflies on integers, then `H_b` as a dense product. Checked against the definition below.
fn exact(x: &[i64]) -> Vec<i64> {
    let order = Order::new(x.len()).unwrap();
    let (b, h) = (order.base(), 1 << order.log2());
    let mut y = x.to_vec();
    let mut d = 1;
    while d < h {
        for i in 0..y.len() {
            if i & d == 0 && i % h + d < h {
                (y[i], y[i + d]) = (y[i] + y[i + d], y[i] - y[i + d]);
            }
        }
        d *= 2;
    }
    // Index bits above 2^k belong to the base.
    if b == 1 {
        return y;
    }
    let m = order.base_matrix();
    let mut z = vec![0; y.len()];
    for i in 0..b {
        for l in 0..b {
            for j in 0..h {
                z[i * h + j] += m.row(i)[l] as i64 * y[l * h + j];
            }
        }
    }
    z
}

/// All supported lengths up to `max`, ascending.
fn lengths(max: usize) -> Vec<usize> {
    let mut all: Vec<usize> =
        bases().into_iter().flat_map(|b| (0..=16).map(move |k| b << k)).filter(|&n| n <= max).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn the_integer_oracle_is_the_definition() {
    for n in lengths(1 << 14) {
        let x: Vec<i64> = (0..n).map(value).collect();
        let y = exact(&x);
        let order = Order::new(n).unwrap();
        let (h, m) = (1usize << order.log2(), order.base_matrix());
        for t in 0..8 {
            let i = (value(t * 977 + n).unsigned_abs() as usize * 7919 + t * 104_729) % n;
            let want: i64 = (0..n)
                .map(|j| {
                    let sign = if ((i % h) & (j % h)).count_ones().is_multiple_of(2) { 1 } else { -1 };
                    sign * m.row(i / h)[j / h] as i64 * x[j]
                })
                .sum();
            assert_eq!(y[i], want, "n = {n}, i = {i}");
        }
    }
}

#[test]
fn base_matrices_are_hadamard() {
    // Every order there is, and with `H_2` and `H_4` every multiple of 4 up to 256.
    for b in bases().into_iter().chain((4..=256).step_by(4)) {
        let order = Order::new(b).unwrap();
        let (m, b) = (order.base_matrix(), order.base());
        let h: Vec<i32> = (0..b).flat_map(|i| m.row(i).iter().map(|&x| x as i32).collect::<Vec<_>>()).collect();
        assert!(h.iter().all(|x| x.abs() == 1));
        for i in 0..b {
            for j in 0..=i {
                let dot: i32 = h[i * b..][..b].iter().zip(&h[j * b..][..b]).map(|(x, y)| x * y).sum();
                assert_eq!(dot, if i == j { b as i32 } else { 0 }, "H_{b}, rows {i}, {j}");
            }
        }
    }
}

#[test]
fn orders_are_the_lengths_that_have_a_matrix() {
    let all = lengths(1 << 14);
    for n in 0..=1 << 14 {
        let order = Order::new(n);
        assert_eq!(order.is_some(), all.contains(&n), "{n}");
        if let Some(order) = order {
            assert_eq!(order.len(), n);
            assert_eq!(order.base() << order.log2(), n);
        }
    }
    assert_eq!(Order::new(40).unwrap().base(), 20);
    // Dimensions of models, with the base that each has.
    let known = [(768, 12), (1536, 12), (3072, 12), (3584, 28), (5120, 20), (14336, 28), (140 << 27, 140)];
    let large =
        [(1600, 100), (3200, 100), (4864, 76), (9728, 76), (10944, 684), (11008, 172), (13696, 428), (17408, 68)];
    let larger = [(18944, 148), (19968, 156), (25600, 100), (29568, 924)];
    for (n, b) in known.into_iter().chain(large).chain(larger) {
        assert_eq!(Order::new(n).map(Order::base), Some(b), "{n}");
    }
    assert_eq!(Order::new(1 << 28), None);
    assert_eq!(Order::new(usize::MAX), None);
}

#[test]
fn nearest_orders_are_the_neighbours_in_the_list() {
    let all = lengths(1 << 13);
    for n in 0..=1 << 13 {
        let (below, above) = Order::nearest(n);
        assert_eq!(below.map(Order::len), all.iter().copied().rfind(|&m| m <= n), "{n}");
        assert_eq!(above.map(Order::len), all.iter().copied().find(|&m| m >= n), "{n}");
    }
    // A remainder just below and above, at the ends of the range, and beyond it.
    assert_eq!(Order::nearest((1 << 27) + 1).0, Order::new(1 << 27));
    let longest = Order::new(924 << 27);
    assert_eq!(Order::nearest(924 << 27), (longest, longest));
    assert_eq!(Order::nearest((924 << 27) + 1), (longest, None));
    assert_eq!(Order::nearest(usize::MAX), (longest, None));
}

/// Runs `f` once per instruction set and checks that the kernels of that one ran.
fn on_every_isa(f: impl Fn(Isa)) {
    for forced in Isa::available() {
        with_isa(forced, || {
            assert_eq!(isa(), forced);
            f(forced);
            assert_eq!(latest_isa(), Some(forced));
        });
    }
}

/// A vector in the middle of a guarded buffer, at an odd offset: in place, nothing else written.
fn check_vector<E: Element>(x: &[i64], y: &[i64], threads: Threads, what: &str) {
    let guard = E::from_f64(77.0);
    let mut buffer = vec![guard; x.len() + 6];
    for (b, &x) in buffer[3..].iter_mut().zip(x) {
        *b = E::from_f64(x as f64);
    }
    fwht::fwht(&mut buffer[3..3 + x.len()], threads).unwrap();
    for (i, &y) in y.iter().enumerate() {
        let (got, want) = (buffer[3 + i].to_f64(), E::from_f64(y as f64).to_f64());
        assert_eq!(got, want, "{what} {} n = {}, i = {i}", E::DTYPE, x.len());
    }
    for i in [0, 1, 2, x.len() + 3, x.len() + 4, x.len() + 5] {
        assert_eq!(buffer[i].to_f64(), 77.0, "{what}: wrote outside");
    }
}

#[test]
fn vectors_equal_the_definition_on_every_isa() {
    let mut all = lengths(1 << 14);
    all.extend([1 << 15, 1 << 16]);
    for n in all {
        let x: Vec<i64> = (0..n).map(value).collect();
        let y = exact(&x);
        on_every_isa(|isa| {
            check_vector::<f32>(&x, &y, Threads::One, isa.name());
            check_vector::<f64>(&x, &y, Threads::One, isa.name());
            check_vector::<f16>(&x, &y, Threads::One, isa.name());
            check_vector::<bf16>(&x, &y, Threads::One, isa.name());
        });
    }
}

/// An `m × n` integer matrix stored with strides, signs of strides included.
struct Strided<E> {
    data: Vec<E>,
    m: usize,
    n: usize,
    rs: isize,
    cs: isize,
}

impl<E: Element> Strided<E> {
    fn new(m: usize, n: usize, rs: isize, cs: isize) -> Self {
        let span = (m.max(1) - 1) * rs.unsigned_abs() + (n.max(1) - 1) * cs.unsigned_abs() + 1;
        let mut a = Strided { data: vec![E::from_f64(77.0); span], m, n, rs, cs };
        for i in 0..m {
            for j in 0..n {
                let at = a.at(i, j);
                a.data[at] = E::from_f64(value(i * n + j) as f64);
            }
        }
        a
    }

    fn first(&self) -> usize {
        let back = |dim: usize, s: isize| if s < 0 { (dim - 1) * s.unsigned_abs() } else { 0 };
        back(self.m, self.rs) + back(self.n, self.cs)
    }

    fn at(&self, i: usize, j: usize) -> usize {
        (self.first() as isize + i as isize * self.rs + j as isize * self.cs) as usize
    }

    fn view(&mut self) -> TensorMut<'_, E> {
        TensorMut::strided(&mut self.data, self.m, self.n, self.rs, self.cs).unwrap()
    }
}

fn check_matrix<E: Element>(m: usize, n: usize, layout: usize, rows: bool, threads: Threads, what: &str) {
    let wants = |y: i64, got: f64| got == E::from_f64(y as f64).to_f64();
    let plain = |view: TensorMut<'_, E>| match rows {
        true => fwht::fwht_rows(view, threads).unwrap(),
        false => fwht::fwht_columns(view, threads).unwrap(),
    };
    check_any::<E>(m, n, layout, rows, plain, wants, what);
}

/// The same for orthonormal transforms. Where `√n` is a power of two the scale is exact, and so is all the rest.
/// Otherwise the scale rounds each input, at most 8, by `u`, every stage and every sum of a base by `u` of what is at
/// most `8 √n`, and a half once more.
fn check_orthonormal<E: Element>(m: usize, n: usize, layout: usize, rows: bool, threads: Threads, what: &str) {
    let len = if rows { n } else { m };
    let (root, order) = ((len as f64).sqrt(), Order::new(len).unwrap());
    let (arithmetic, own) = match E::DTYPE {
        DType::F64 => (f64::EPSILON / 2.0, 0.0),
        DType::F32 => (f64::from(f32::EPSILON) / 2.0, 0.0),
        DType::F16 => (f64::from(f32::EPSILON) / 2.0, 2f64.powi(-11)),
        DType::BF16 => (f64::from(f32::EPSILON) / 2.0, 2f64.powi(-8)),
        _ => unreachable!("a storage type without a bound"),
    };
    let roundings = f64::from(order.log2() + 2) + order.base() as f64;
    let wants = |y: i64, got: f64| {
        let want = y as f64 / root;
        if len.is_power_of_two() && len.ilog2().is_multiple_of(2) {
            return got == E::from_f64(want).to_f64();
        }
        (got - want).abs() <= own * want.abs() + roundings * arithmetic * 8.0 * root
    };
    let scaled = |view: TensorMut<'_, E>| match rows {
        true => fwht::orthonormal_rows(view, threads).unwrap(),
        false => fwht::orthonormal_columns(view, threads).unwrap(),
    };
    check_any::<E>(m, n, layout, rows, scaled, wants, what);
}

fn check_any<E: Element>(
    m: usize,
    n: usize,
    layout: usize,
    rows: bool,
    transform: impl Fn(TensorMut<'_, E>),
    wants: impl Fn(i64, f64) -> bool,
    what: &str,
) {
    let (mi, ni) = (m as isize, n as isize);
    let (rs, cs) = [
        (ni, 1),
        (ni + 3, 1),
        (1, mi),
        (1, mi + 5),
        (-ni, 1),
        (ni, -1),
        (-1, mi),
        (1, -mi - 2),
        (2 * ni, 2),
        (-3 * ni, -3),
        (2, 2 * mi + 1),
    ][layout];
    let mut a = Strided::<E>::new(m, n, rs, cs);
    let before = a.data.clone();
    transform(a.view());
    let mut touched = vec![false; before.len()];
    let (count, len) = if rows { (m, n) } else { (n, m) };
    for v in 0..count {
        let index = |t: usize| if rows { (v, t) } else { (t, v) };
        let x: Vec<i64> = (0..len).map(|t| value(index(t).0 * n + index(t).1)).collect();
        for (t, y) in exact(&x).into_iter().enumerate() {
            let (i, j) = index(t);
            touched[a.at(i, j)] = true;
            let got = a.data[a.at(i, j)].to_f64();
            let place = format_args!("strides ({rs}, {cs}) rows {rows} at ({i}, {j})");
            assert!(wants(y, got), "{what} {} {m}×{n} {place}: {got}, unscaled {y}", E::DTYPE);
        }
    }
    for (at, touched) in touched.iter().enumerate() {
        assert!(*touched || a.data[at].to_f64() == 77.0, "{what}: wrote between the elements");
    }
}

#[test]
fn matrices_of_any_strides_equal_the_definition() {
    on_every_isa(|isa| {
        for len in [1, 2, 4, 8, 12, 16, 24, 32, 64, 96, 128, 160, 256, 512, 1024, 432, 76, 188 * 2, 116 * 8] {
            for count in [1, 3, 16, 37] {
                for layout in 0..11 {
                    check_matrix::<f32>(count, len, layout, true, Threads::One, isa.name());
                    check_matrix::<f32>(len, count, layout, false, Threads::One, isa.name());
                }
                for layout in [0, 2, 5] {
                    check_matrix::<f16>(count, len, layout, true, Threads::One, isa.name());
                    check_matrix::<f16>(len, count, layout, false, Threads::One, isa.name());
                    check_matrix::<bf16>(len, count, layout, false, Threads::One, isa.name());
                    check_matrix::<f64>(count, len, layout, true, Threads::One, isa.name());
                    check_matrix::<f64>(len, count, layout, false, Threads::One, isa.name());
                }
            }
        }
    });
}

#[test]
fn orthonormal_matrices_of_any_strides_are_scaled() {
    on_every_isa(|isa| {
        for len in [1, 2, 4, 8, 12, 16, 20, 24, 32, 64, 96, 128, 256, 512, 1024, 432, 4096] {
            for count in [1, 3, 37] {
                for layout in 0..11 {
                    check_orthonormal::<f32>(count, len, layout, true, Threads::One, isa.name());
                    check_orthonormal::<f32>(len, count, layout, false, Threads::One, isa.name());
                }
                for layout in [0, 2, 5] {
                    check_orthonormal::<f16>(count, len, layout, true, Threads::One, isa.name());
                    check_orthonormal::<f16>(len, count, layout, false, Threads::One, isa.name());
                    check_orthonormal::<bf16>(count, len, layout, true, Threads::One, isa.name());
                    check_orthonormal::<bf16>(len, count, layout, false, Threads::One, isa.name());
                    check_orthonormal::<f64>(count, len, layout, true, Threads::One, isa.name());
                    check_orthonormal::<f64>(len, count, layout, false, Threads::One, isa.name());
                }
            }
        }
        // Panels of several sweeps, and remainders one at a time.
        for (m, n) in [(1 << 13, 35), (1 << 16, 19), (28 << 11, 33)] {
            check_orthonormal::<f32>(m, n, 0, false, Threads::One, isa.name());
            check_orthonormal::<f16>(m, n, 0, false, Threads::One, isa.name());
        }
    });
}

/// 8192 numbers of 1e36 have a sum that is no f32, and over √8192 it is one: the scale comes before the sums.
#[test]
fn no_sum_overflows_before_the_scale() {
    on_every_isa(|isa| {
        for (m, n) in [(3, 8192), (1, 1 << 18), (5, 12 << 8), (33, 1024)] {
            for threads in [Threads::One, Threads::Pool] {
                let (want, each) = (9e37, (9e37 / (n as f64).sqrt()) as f32);
                let mut x = vec![each; m * n];
                fwht::orthonormal_rows(TensorMut::new(&mut x, m, n).unwrap(), threads).unwrap();
                let rows: Vec<f32> = x.iter().copied().step_by(n).collect();
                let mut x = vec![each; m * n];
                fwht::orthonormal_columns(TensorMut::new(&mut x, n, m).unwrap(), threads).unwrap();
                for &y in rows.iter().chain(&x[..m]) {
                    assert!((f64::from(y) - want).abs() < 1e-5 * want, "{isa} {m}×{n}: {y}");
                }
                assert!(x.iter().all(|x| x.is_finite()), "{isa} {m}×{n}");
            }
        }
        let mut x = vec![f16::MAX; 4096];
        x[2048..].fill(-f16::MAX);
        fwht::orthonormal_rows(TensorMut::new(&mut x, 1, 4096).unwrap(), Threads::One).unwrap();
        assert_eq!((x[0].to_f64(), x[2048]), (0.0, f16::INFINITY), "{isa}");
    });
}

/// Columns longer than the scratch of a panel: several sweeps, remainders one at a time.
#[test]
fn long_columns_equal_the_definition() {
    on_every_isa(|isa| {
        // Panels of up to 2 MiB: one sweep, several, a remainder one at a time, several with a base, few columns.
        for (m, n) in [(1 << 13, 35), (1 << 15, 35), (1 << 16, 19), (28 << 11, 33), (12 << 10, 3)] {
            check_matrix::<f32>(m, n, 0, false, Threads::One, isa.name());
            check_matrix::<f16>(m, n, 0, false, Threads::One, isa.name());
        }
        check_matrix::<f64>(1 << 15, 17, 1, false, Threads::One, isa.name());
        check_matrix::<f32>(17, 1 << 14, 8, true, Threads::One, isa.name());
    });
}

/// Threads share vectors, panels, and the parts of one long vector. Non-integer data, so that another order of
/// additions would show.
#[cfg(feature = "rayon")]
#[test]
fn threads_do_not_change_a_bit() {
    fn matrix<E: Element>(m: usize, n: usize) -> Vec<E> {
        (0..m * n).map(|i| E::from_f64((value(i) as f64 + 0.3) / 7.0 + i as f64 * 1e-6)).collect()
    }
    fn check<E: Element>(m: usize, n: usize) {
        let bits = |x: &[E]| x.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
        for (rows, scaled) in [(true, false), (false, false), (true, true), (false, true)] {
            let run = |threads: Threads| {
                let mut a = matrix::<E>(m, n);
                let view = TensorMut::new(&mut a, m, n).unwrap();
                match (rows, scaled) {
                    (true, false) => fwht::fwht_rows(view, threads).unwrap(),
                    (false, false) => fwht::fwht_columns(view, threads).unwrap(),
                    (true, true) => fwht::orthonormal_rows(view, threads).unwrap(),
                    (false, true) => fwht::orthonormal_columns(view, threads).unwrap(),
                }
                bits(&a)
            };
            if Order::new(if rows { n } else { m }).is_none() {
                continue;
            }
            let one = run(Threads::One);
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let many = pool.install(|| run(Threads::Pool));
                assert!(one == many, "{} {m}×{n} rows {rows}, {threads} threads", E::DTYPE);
            }
        }
    }
    check::<f32>(300, 1024);
    check::<f32>(1024, 301);
    check::<f16>(768, 513);
    check::<f64>(1, 1 << 18);
    check::<f32>(1, 1 << 19);
    check::<bf16>(2, 1 << 18);
    check::<f32>(1, 12 << 15);
    check::<f16>(1, 28 << 14);
    check::<f32>(40, 18944);
    check::<f32>(1, 76 << 14);
    check::<f16>(1, 148 << 14);
    check::<f64>(684, 131);
}

#[test]
fn long_vectors_equal_the_definition() {
    for k in [18, 20, 21] {
        // |x| <= 4 keeps sums below 2^24.
        let x: Vec<i64> = (0..1 << k).map(|i| value(i) / 2).collect();
        let y = exact(&x);
        on_every_isa(|isa| check_vector::<f32>(&x, &y, Threads::One, isa.name()));
        check_vector::<f32>(&x, &y, Threads::Pool, "threads");
        check_vector::<f64>(&x, &y, Threads::One, "f64");
        check_vector::<bf16>(&x, &y, Threads::Pool, "threads");
    }
    let x: Vec<i64> = (0..20 << 14).map(|i| value(i) / 2).collect();
    let y = exact(&x);
    check_vector::<f32>(&x, &y, Threads::One, "base");
    check_vector::<f16>(&x, &y, Threads::Pool, "base");
    // One table of sums and several, in the stages that threads share.
    for b in [68, 172] {
        let x: Vec<i64> = (0..b << 14).map(|i| value(i) / 2).collect();
        let y = exact(&x);
        check_vector::<f32>(&x, &y, Threads::Pool, "sums");
        check_vector::<bf16>(&x, &y, Threads::Pool, "sums");
    }
}

/// The dimensions that only a large base reaches, rows and columns, on every instruction set.
#[test]
fn large_bases_equal_the_definition() {
    on_every_isa(|isa| {
        for n in [1600, 3200, 4864, 9728, 10944, 11008, 13696, 17408, 18944, 19968, 25600, 29568] {
            check_matrix::<f32>(2, n, 0, true, Threads::One, isa.name());
            check_matrix::<bf16>(2, n, 0, true, Threads::One, isa.name());
        }
        for n in [1600, 10944, 18944] {
            check_matrix::<f16>(n, 18, 0, false, Threads::One, isa.name());
            check_matrix::<f64>(n, 9, 0, false, Threads::One, isa.name());
        }
    });
}

/// The additions of a large base come in one order, four by four, so that its products have the same bits everywhere.
#[test]
fn large_bases_add_four_by_four_on_every_isa() {
    for n in [76, 92, 148, 428, 684, 924] {
        let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
        let m = Order::new(n).unwrap().base_matrix();
        let row = |i: usize| {
            let term = |j: usize| m.row(i)[j] as f32 * x[j];
            let four = |j: usize| (term(j) + term(j + 1)) + (term(j + 2) + term(j + 3));
            (0..n).step_by(4).fold(0.0, |sum, j| sum + four(j)).to_bits()
        };
        let want: Vec<u32> = (0..n).map(row).collect();
        on_every_isa(|isa| {
            let mut y = x.clone();
            fwht::fwht(&mut y, Threads::One).unwrap();
            let differ = y.iter().zip(&want).filter(|(y, want)| y.to_bits() != **want).count();
            assert_eq!(differ, 0, "{isa} n = {n}");
        });
    }
}

#[test]
fn lengths_without_a_matrix_are_refused_and_empty_ones_left_alone() {
    for n in [3, 5, 2 * 3, 65 << 8, 4 * 73] {
        let mut x = vec![1f32; n];
        assert_eq!(fwht::fwht(&mut x, Threads::One), Err(Error::Order { n }));
        assert!(x.iter().all(|&x| x == 1.0));
        assert!(fwht::plan::<f32>(n).is_err());
    }
    fwht::fwht::<f32>(&mut [], Threads::One).unwrap();
    for (m, n) in [(0, 0), (0, 8), (8, 0), (0, 7)] {
        let mut none: [f32; 0] = [];
        fwht::fwht_rows(TensorMut::new(&mut none, m, n).unwrap(), Threads::Pool).unwrap();
        fwht::fwht_columns(TensorMut::new(&mut none, m, n).unwrap(), Threads::Pool).unwrap();
    }
}

#[test]
fn plans_name_every_stage_once() {
    on_every_isa(|isa| {
        for n in lengths(1 << 14).into_iter().chain((15..=27).map(|k| 1 << k)) {
            for plan in [fwht::plan::<f32>(n).unwrap(), fwht::plan::<f64>(n).unwrap()] {
                assert_eq!(plan.isa, isa);
                assert_eq!(plan.bits(), plan.order.log2(), "{plan}");
                assert!(plan.to_string().contains(isa.name()));
            }
        }
    });
}

#[test]
fn orthonormal_transforms_refuse_other_lengths() {
    let mut x = [1f32; 7];
    let rows = fwht::orthonormal_rows(TensorMut::new(&mut x, 1, 7).unwrap(), Threads::One);
    assert_eq!(rows, Err(Error::Order { n: 7 }));
    let columns = fwht::orthonormal_columns(TensorMut::new(&mut x, 7, 1).unwrap(), Threads::One);
    assert_eq!(columns, Err(Error::Order { n: 7 }));
    assert!(x.iter().all(|&x| x == 1.0));
}

#[test]
fn nearest_lengths_are_the_neighbours() {
    let all = lengths(1 << 14);
    for n in 0..=1 << 13 {
        let (below, above) = Order::nearest(n);
        assert_eq!(below.map(Order::len), all.iter().copied().filter(|&len| len <= n).max(), "{n}");
        assert_eq!(above.map(Order::len), all.iter().copied().find(|&len| len >= n), "{n}");
    }
    assert_eq!(Order::nearest(usize::MAX).1, None);
}

/// Where a matrix begins in memory decides which columns are gathered before the first panel, and no bit of any of
/// them.
#[test]
fn addresses_do_not_change_a_bit() {
    fn check<E: Element>() {
        let (m, n, line) = (256, 1024, 64 / size_of::<E>());
        let from = |offset: usize, threads: Threads| {
            let mut buffer = vec![E::from_f64(0.0); m * n + 64 * line];
            let first = buffer.as_ptr().align_offset(32 * 64) + offset;
            let x = &mut buffer[first..][..m * n];
            x.iter_mut().enumerate().for_each(|(i, x)| *x = E::from_f64((i as f64 * 0.7).sin()));
            fwht::fwht_columns(TensorMut::new(x, m, n).unwrap(), threads).unwrap();
            x.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>()
        };
        let aligned = from(0, Threads::One);
        // Past a line, and past what a panel has of a row.
        for offset in (1..line).chain([line, 5 * line + 3, 15 * line, 16 * line - 1]) {
            for threads in [Threads::One, Threads::Pool] {
                assert!(
                    from(offset, threads) == aligned,
                    "{offset} elements of {} past a panel, {threads:?}",
                    E::DTYPE
                );
            }
        }
    }
    check::<f32>();
    check::<f64>();
    check::<f16>();
}

#[test]
fn a_scale_is_part_of_the_transform_and_has_to_be_finite() {
    let x: Vec<f32> = (0..3 * 96).map(|i| (i as f32 * 0.37).sin()).collect();
    let of = |scale: f64| {
        let mut y = x.clone();
        fwht::scaled_rows(TensorMut::new(&mut y, 3, 96).unwrap(), scale, Threads::One).map(|()| y)
    };
    let (mut plain, mut orthonormal) = (x.clone(), x.clone());
    fwht::fwht_rows(TensorMut::new(&mut plain, 3, 96).unwrap(), Threads::One).unwrap();
    fwht::orthonormal_rows(TensorMut::new(&mut orthonormal, 3, 96).unwrap(), Threads::One).unwrap();
    assert_eq!(of(0.25).unwrap(), plain.iter().map(|y| y / 4.0).collect::<Vec<_>>());
    assert_eq!(of(1.0 / 96f64.sqrt()).unwrap(), orthonormal);
    assert!(matches!(of(f64::NAN), Err(Error::Option { name: "scale", .. })));
    // Sums that overflow f16 do not where the scale comes first.
    let mut halves = vec![f16::from_f32(1000.0); 4096];
    fwht::scaled_rows(TensorMut::new(&mut halves, 1, 4096).unwrap(), 1.0 / 4096.0, Threads::One).unwrap();
    assert_eq!((halves[0].to_f32(), halves[1].to_f32()), (1000.0, 0.0));
}
