//! Sketches against their definition: the entry formula, the dense product in f64, the embedding property.
#![cfg(feature = "linalg")]

use faer::{Accum, Mat, MatMut, MatRef, Par};
use half::{bf16, f16};
use tensorslim::rng::{Philox, stream};
use tensorslim::sketch::{AnySketch, Gaussian, Sketch, SketchOperator, SparseSign, Srht};
use tensorslim::{Element, Error, Scalar};

/// Deterministic test data of a few bits, so that every storage type holds it exactly: multiples of 1/8 in [-4, 4).
fn data(m: usize, n: usize, seed: u64) -> Mat<f64> {
    let rng = Philox::new(seed, stream::DATA);
    Mat::from_fn(m, n, |i, j| f64::from(rng.block((i * n + j) as u64)[0] >> 26) / 8.0 - 4.0)
}

/// A buffer holding `a` with the given strides (in units that leave gaps), gaps filled with NaN.
struct Strided<T> {
    data: Vec<T>,
    first: usize,
    shape: (usize, usize),
    strides: (isize, isize),
}

impl<T: Element> Strided<T> {
    fn new(a: MatRef<'_, f64>, order: &str) -> Self {
        let (m, n) = (a.nrows() as isize, a.ncols() as isize);
        let strides = match order {
            "rows" => (n, 1),
            "rows+gap" => (n + 3, 1),
            "columns" => (1, m),
            "columns+gap" => (1, m + 5),
            "reversed rows" => (-n, -1),
            "strided" => (2, 2 * m + 1),
            _ => unreachable!(),
        };
        let extent = |d: isize, s: isize| ((d - 1).max(0) * s.abs()) as usize;
        let back = |d: isize, s: isize| if s < 0 { extent(d, s) } else { 0 };
        let mut data = vec![T::from_f64(f64::NAN); extent(m, strides.0) + extent(n, strides.1) + 1];
        let first = back(m, strides.0) + back(n, strides.1);
        for i in 0..a.nrows() {
            for j in 0..a.ncols() {
                let at = first as isize + i as isize * strides.0 + j as isize * strides.1;
                data[at as usize] = T::from_f64(a[(i, j)]);
            }
        }
        Strided { data, first, shape: (a.nrows(), a.ncols()), strides }
    }

    fn view(&self) -> MatRef<'_, T> {
        // SAFETY: `new` sized `data` for this shape and these strides around `first`.
        unsafe {
            let p = self.data.as_ptr().add(self.first);
            MatRef::from_raw_parts(p, self.shape.0, self.shape.1, self.strides.0, self.strides.1)
        }
    }

    fn view_mut(&mut self) -> MatMut<'_, T> {
        // SAFETY: as in `view`; the strides do not overlap.
        unsafe {
            let p = self.data.as_mut_ptr().add(self.first);
            MatMut::from_raw_parts_mut(p, self.shape.0, self.shape.1, self.strides.0, self.strides.1)
        }
    }
}

const ORDERS: [&str; 6] = ["rows", "rows+gap", "columns", "columns+gap", "reversed rows", "strided"];

/// `|computed − A Ω| <= (n + 12) eps Σ_k |a_ik ω_kj|` for any order of summation; the SRHT sums `|a_ik| / √l` over
/// the rows of its blocks in a tree, with at most one rounding for each of n additions, which the same bound covers,
/// as it covers the roundings of `1/√l`, of ω itself and of the products.
fn check<E: Element, T: Scalar>(s: &AnySketch, m: usize, orders: &[&str], y_orders: &[&str]) {
    let (n, l) = (s.nrows(), s.ncols());
    let a = data(m, n, 17);
    let omega = s.to_dense::<f64>();
    let exact = &a * &omega;
    let abs = |x: &Mat<f64>| Mat::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, j)].abs());
    let magnitude = match s {
        // every intermediate of a transform is at most Σ |a| / √l
        AnySketch::Srht(_) => {
            Mat::from_fn(m, l, |i, _| (0..n).map(|k| a[(i, k)].abs()).sum::<f64>() / (l as f64).sqrt())
        }
        _ => abs(&a) * abs(&omega),
    };
    for order in orders {
        let stored = Strided::<E>::new(a.as_ref(), order);
        for y_order in y_orders {
            let mut y = Strided::<T>::new(Mat::from_fn(m, l, |_, _| f64::NAN).as_ref(), y_order);
            s.apply(stored.view(), y.view_mut(), Par::Seq).unwrap();
            for i in 0..m {
                for j in 0..l {
                    let (got, want) = (y.view()[(i, j)].to_f64(), exact[(i, j)]);
                    let bound = (n as f64 + 12.0) * T::EPSILON * magnitude[(i, j)];
                    assert!(
                        (got - want).abs() <= bound,
                        "{s:?} {m} {order} {y_order} ({i},{j}): {got} {want} {bound:e}"
                    );
                }
            }
            // another thread count: the same bits
            let mut again = Strided::<T>::new(Mat::from_fn(m, l, |_, _| f64::NAN).as_ref(), y_order);
            pool(3).install(|| s.apply(stored.view(), again.view_mut(), Par::rayon(0))).unwrap();
            assert!((0..m).all(|i| (0..l).all(|j| y.view()[(i, j)] == again.view()[(i, j)])), "{s:?} {m} {order}");
        }
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn all(n: usize, l: usize) -> Vec<AnySketch> {
    let mut s: Vec<AnySketch> = [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign]
        .into_iter()
        .map(|kind| AnySketch::new(kind, n, l, 5, 9).unwrap())
        .collect();
    s.push(AnySketch::SparseSign(SparseSign::stacked(n, l, l.min(4), 5).unwrap()));
    s
}

#[test]
fn products_match_the_definition() {
    let shapes =
        [(1, 1, 1), (3, 5, 5), (17, 31, 8), (65, 64, 9), (33, 65, 33), (40, 100, 13), (5, 1000, 70), (130, 768, 21)];
    // And a last tile of one row of Ω, in which most columns have no nonzero.
    for (m, n, l) in shapes.into_iter().chain([(70, 129, 40)]) {
        for s in all(n, l) {
            check::<f32, f32>(&s, m, &["rows", "columns"], &["rows", "columns+gap"]);
        }
    }
}

#[test]
fn every_stride() {
    for s in all(100, 13) {
        check::<f32, f32>(&s, 35, &ORDERS, &ORDERS);
    }
}

#[test]
fn every_storage_and_arithmetic() {
    for s in all(300, 20) {
        let y = ["rows", "columns"];
        check::<f16, f32>(&s, 37, &ORDERS, &y);
        check::<bf16, f32>(&s, 37, &ORDERS, &y);
        check::<f64, f32>(&s, 37, &ORDERS, &y);
        check::<f16, f64>(&s, 37, &ORDERS, &y);
        check::<bf16, f64>(&s, 37, &ORDERS, &y);
        check::<f32, f64>(&s, 37, &ORDERS, &y);
        check::<f64, f64>(&s, 37, &ORDERS, &y);
    }
}

/// More rows of Ω than one Gaussian panel, one table of nonzeros, one SRHT block.
#[test]
fn long_sums() {
    for (n, l) in [(513, 5), (4096, 33), (4097, 40), (9001, 12)] {
        for s in all(n, l) {
            check::<f32, f32>(&s, 3, &["rows", "columns"], &["rows"]);
        }
    }
}

/// Any split of the rows of Ω adds up to the whole, with scaling.
#[test]
fn shares_add_up() {
    let (m, n, l) = (19, 1500, 24);
    let a = data(m, n, 3);
    let sums: f64 = (0..m).map(|i| (0..n).map(|k| a[(i, k)].abs()).sum::<f64>()).fold(0.0, f64::max);
    for s in all(n, l) {
        let mut whole = Mat::<f64>::zeros(m, l);
        s.apply(a.as_ref(), whole.as_mut(), Par::Seq).unwrap();
        for cuts in [vec![0, 1500], vec![0, 0, 1, 700, 701, 1500], vec![0, 511, 513, 1024, 1024, 1499, 1500]] {
            for columns in [false, true] {
                let mut y = Mat::<f64>::from_fn(m, l, |_, _| f64::NAN);
                for (i, cut) in cuts.windows(2).enumerate() {
                    let order = if columns { "columns" } else { "rows" };
                    let share = Strided::<f32>::new(a.subcols(cut[0], cut[1] - cut[0]), order);
                    let accumulate = if i == 0 { Accum::Replace } else { Accum::Add };
                    s.apply_rows(cut[0]..cut[1], share.view(), 0.25, accumulate, y.as_mut(), Par::Seq).unwrap();
                }
                let bound = 2.0 * (n as f64 + 12.0) * f64::EPSILON * sums;
                for i in 0..m {
                    for j in 0..l {
                        assert!((4.0 * y[(i, j)] - whole[(i, j)]).abs() <= bound, "{s:?} {cuts:?}");
                    }
                }
            }
        }
    }
}

/// The scale comes before narrowing: f64 data beyond f32 go through f32 arithmetic.
#[test]
fn scale_reaches_beyond_f32() {
    let (m, n, l) = (9, 40, 7);
    let a = data(m, n, 3);
    for s in all(n, l) {
        let mut plain = Mat::<f32>::zeros(m, l);
        s.apply(a.as_ref(), plain.as_mut(), Par::Seq).unwrap();
        for e in [300, -300, 120, -120] {
            let big = Mat::from_fn(m, n, |i, j| a[(i, j)] * 2f64.powi(e));
            let mut y = Mat::<f32>::zeros(m, l);
            s.apply_rows(0..n, big.as_ref(), 2f64.powi(-e), Accum::Replace, y.as_mut(), Par::Seq).unwrap();
            assert_eq!(y, plain, "{s:?} 2^{e}");
            if e.abs() < 200 {
                let big = Mat::from_fn(m, n, |i, j| big[(i, j)] as f32);
                s.apply_rows(0..n, big.as_ref(), 2f64.powi(-e), Accum::Replace, y.as_mut(), Par::Seq).unwrap();
                assert_eq!(y, plain, "{s:?} f32 2^{e}");
            }
        }
    }
}

/// One matrix for both arithmetic types, and Ω as the algebra says: entries, nonzeros, block structure.
#[test]
fn omega_is_what_it_says() {
    let (n, l) = (300, 24);
    let g = Gaussian::new(n, l, 1).unwrap();
    let (single, double) = (g.to_dense::<f32>(), g.to_dense::<f64>());
    assert!((0..n).all(|i| (0..l).all(|j| f64::from(single[(i, j)]) == double[(i, j)])));
    for (s, zeta) in [(SparseSign::new(n, l, 5, 1).unwrap(), 5), (SparseSign::stacked(n, l, 5, 1).unwrap(), 5)] {
        let d = s.to_dense::<f64>();
        for i in 0..n {
            assert_eq!((0..l).filter(|&j| d[(i, j)] != 0.0).count(), zeta);
            assert!((0..l).all(|j| d[(i, j)] == 0.0 || d[(i, j)].abs() == 1.0 / 5f64.sqrt()));
        }
    }
    // Columns of one full block of an SRHT are orthogonal: (r/l) I.
    let s = Srht::new(256, 24, 1).unwrap();
    assert_eq!(s.block(), 256);
    let d = s.to_dense::<f64>();
    let g = d.transpose() * &d;
    for i in 0..l {
        for j in 0..l {
            let want = if i == j { 256.0 / 24.0 } else { 0.0 };
            assert!((g[(i, j)] - want).abs() < 256.0 * f64::EPSILON * 256.0 / 24.0);
        }
    }
    // Seeds and streams give different matrices.
    for kind in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
        let d = |seed, stream| AnySketch::new(kind, n, l, seed, stream).unwrap().to_dense::<f64>();
        assert!(d(1, 0) == d(1, 0) && d(1, 0) != d(2, 0) && d(1, 0) != d(1, 1));
    }
}

#[test]
fn bad_input_is_an_error() {
    assert_eq!(Gaussian::new(0, 3, 0).unwrap_err(), Error::Empty { shape: vec![0, 3] });
    assert_eq!(Srht::new(3, 0, 0).unwrap_err(), Error::Empty { shape: vec![3, 0] });
    assert!(matches!(Srht::new(3, 4, 0), Err(Error::Option { name: "l", .. })));
    assert!(matches!(SparseSign::new(9, 4, 5, 0), Err(Error::Option { name: "zeta", .. })));
    assert!(matches!(SparseSign::new(9, 4, 0, 0), Err(Error::Option { name: "zeta", .. })));
    assert!(matches!(Gaussian::new(usize::MAX, 4, 0), Err(Error::TooLarge { .. })));
    assert!(matches!(AnySketch::new(Sketch::Srht, 9, 4, 0, 1 << 56), Err(Error::Option { name: "stream", .. })));
    assert!("srth".parse::<Sketch>().is_err());
    for kind in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
        assert_eq!(kind.to_string().parse::<Sketch>().unwrap(), kind);
        let s = AnySketch::new(kind, 10, 4, 0, 0).unwrap();
        let a = Mat::<f32>::zeros(6, 10);
        let mut y = Mat::<f32>::from_fn(6, 4, |_, _| 1.0);
        assert!(s.apply(a.subcols(0, 9), y.as_mut(), Par::Seq).is_err());
        assert!(s.apply(a.subrows(0, 5), y.as_mut(), Par::Seq).is_err());
        assert!(s.apply(a.as_ref(), y.as_mut().subcols_mut(0, 3), Par::Seq).is_err());
        assert!(s.apply_rows(5..15, a.as_ref(), 1.0, Accum::Add, y.as_mut(), Par::Seq).is_err());
        for scale in [0.0, -1.0, 3.0, f64::NAN, f64::INFINITY, 5e-324 * 3.0] {
            assert!(s.apply_rows(0..10, a.as_ref(), scale, Accum::Add, y.as_mut(), Par::Seq).is_err(), "{scale}");
        }
        // no terms, no rows
        s.apply_rows(7..7, a.subcols(7, 0), 1.0, Accum::Add, y.as_mut(), Par::Seq).unwrap();
        assert_eq!(y[(5, 3)], 1.0);
        s.apply_rows(7..7, a.subcols(7, 0), 1.0, Accum::Replace, y.as_mut(), Par::Seq).unwrap();
        assert_eq!(y[(5, 3)], 0.0);
        s.apply(a.subrows(0, 0), y.as_mut().subrows_mut(0, 0), Par::Seq).unwrap();
    }
}

/// Every instruction set of the machine: the same bits for the random numbers, the same product to rounding.
#[test]
fn every_instruction_set() {
    use tensorslim::simd::{Isa, latest_isa, with_isa};
    for isa in Isa::available() {
        with_isa(isa, || {
            for s in all(300, 20) {
                check::<f32, f32>(&s, 37, &["rows", "columns"], &["rows", "columns"]);
                check::<f16, f64>(&s, 19, &["rows", "columns"], &["columns"]);
                if !matches!(s, AnySketch::Gaussian(_)) {
                    assert_eq!(latest_isa(), Some(isa));
                }
            }
        });
    }
}

/// Subspace embedding, dim d = 32, l = 128: `| ‖ΩᵀUx‖² − 1 | <= ε` for all unit x, i.e. the eigenvalues of
/// `(ΩᵀU)ᵀ(ΩᵀU)` lie in `[1 − ε, 1 + ε]`.
///
/// Gaussian: `ΩᵀU` is l×d with entries N(0, 1/l); its singular values leave `1 ± (sqrt(d/l) + t/sqrt(l))` with
/// probability at most `2 exp(−t²/2)` (Davidson, Szarek). sqrt(d/l) = 1/2 and t = 4.5 (probability 8.0e-5) give
/// singular values in [0.102, 1.898], i.e. ε <= 2.7. The proofs for SRHT and sparse signs need l of the order
/// d log d, more than 128; for them the same interval is a regression bound with a fixed seed, not a theorem.
#[test]
fn subspaces_are_embedded() {
    let (n, d, l) = (4096, 32, 128);
    let rng = Philox::new(77, stream::DATA);
    let mut z = vec![0f32; n * d];
    rng.normals(0, &mut z);
    let random = Mat::from_fn(n, d, |i, j| f64::from(z[i * d + j])).qr().compute_thin_Q();
    // The most coherent ones: coordinate vectors, spread out or next to each other.
    let spread = Mat::from_fn(n, d, |i, j| f64::from(u8::from(i == 128 * j + 5)));
    let adjacent = Mat::from_fn(n, d, |i, j| f64::from(u8::from(i == 100 + j)));
    for (name, u) in [("random", random), ("spread", spread), ("adjacent", adjacent)] {
        for s in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
            let s = AnySketch::new(s, n, l, 11, 0).unwrap();
            let mut y = Mat::<f64>::zeros(d, l);
            s.apply(u.transpose(), y.as_mut(), Par::Seq).unwrap();
            let sigma = y.singular_values().unwrap();
            assert!(sigma[d - 1] >= 0.102 && sigma[0] <= 1.898, "{name} {s:?}: {} .. {}", sigma[d - 1], sigma[0]);
        }
    }
}

/// `E[Ω Ωᵀ] = I`: the mean of `‖Ωᵀx‖²` over 400 seeds for a fixed unit x. Its variance for one seed is at most
/// `2/l` (Gaussian: exactly; signs: less), so five standard deviations of the mean are `5 sqrt(2 / (400 l))`
/// (probability 6e-7 each). `n` is not a multiple of the block, so the SRHT has a short piece.
#[test]
fn lengths_are_kept_in_the_mean() {
    let (n, l) = (77, 16);
    let x = Mat::<f64>::from_fn(1, n, |_, j| 1.0 + (j % 5) as f64);
    let norm = x.squared_norm_l2();
    for kind in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
        let mut mean = 0.0;
        for seed in 0..400 {
            let s = AnySketch::new(kind, n, l, seed, 0).unwrap();
            let mut y = Mat::<f64>::zeros(1, l);
            s.apply(x.as_ref(), y.as_mut(), Par::Seq).unwrap();
            mean += y.squared_norm_l2() / norm / 400.0;
        }
        assert!((mean - 1.0).abs() < 5.0 * (2.0 / (400.0 * l as f64)).sqrt(), "{kind}: {mean}");
    }
}

/// What `state_bytes` says, against what the allocator gave: the operator's own bytes and the live heap behind them.
#[test]
fn state_is_small() {
    for (n, factor) in [(512, 400), (3072, 2000), (4096, 2000)] {
        let before = counting::live();
        let s = Box::new(Srht::new(n, 64, 3).unwrap());
        let live = counting::live() - before;
        assert_eq!(live, s.state_bytes() as isize);
        assert!(factor * s.state_bytes() <= 4 * n * 64, "n = {n}: {} bytes", s.state_bytes());
    }
    for s in
        [AnySketch::new(Sketch::Gaussian, 1 << 30, 1000, 0, 0), AnySketch::new(Sketch::SparseSign, 1 << 30, 1000, 0, 0)]
    {
        assert!(s.unwrap().state_bytes() <= 64);
    }
    // A sample of a block too long for 16 bit indices.
    let s = Srht::new(1 << 18, 40_000, 3).unwrap();
    assert!(s.block() > 1 << 16 && s.state_bytes() <= 4 * 40_000 + 64);
}

/// Bytes that this thread holds.
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local!(static LIVE: Cell<isize> = const { Cell::new(0) });

    struct Counting;
    #[global_allocator]
    static COUNTING: Counting = Counting;

    // SAFETY: the system allocator, with a counter beside it.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            LIVE.set(LIVE.get() + layout.size() as isize);
            // SAFETY: the caller's.
            unsafe { System.alloc(layout) }
        }
        unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
            LIVE.set(LIVE.get() - layout.size() as isize);
            // SAFETY: the caller's.
            unsafe { System.dealloc(p, layout) }
        }
    }

    pub(crate) fn live() -> isize {
        LIVE.get()
    }
}
