//! The peak memory that is promised before the call is what a counting allocator sees.
//!
//! One test, so that nothing else allocates while it counts.
#![cfg(feature = "linalg")]
#![expect(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]

#[expect(dead_code, reason = "a part of it is used")]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use half::f16;
use tensorslim::{Calibration, Matrix, Method, Rank, Scalar, Sketch, TensorRef, TruncatedSvd, Workspace};

struct Counting;

/// Sizes of allocations, while they are recorded.
static RECORDING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static SIZES: [AtomicUsize; 4096] = [const { AtomicUsize::new(0) }; 4096];

fn count(size: usize) {
    PEAK.fetch_max(NOW.fetch_add(size, Relaxed) + size, Relaxed);
    if RECORDING.load(Relaxed) {
        let at = COUNT.fetch_add(1, Relaxed);
        SIZES[at.min(SIZES.len() - 1)].store(size, Relaxed);
    }
}

/// The sizes of what `f` allocates, the largest first.
fn allocations<R>(f: impl FnOnce() -> R) -> (R, Vec<usize>) {
    COUNT.store(0, Relaxed);
    RECORDING.store(true, Relaxed);
    let result = f();
    RECORDING.store(false, Relaxed);
    let mut sizes: Vec<usize> = SIZES[..COUNT.load(Relaxed).min(SIZES.len())].iter().map(|s| s.load(Relaxed)).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    (result, sizes)
}

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` unchanged; the counters are only written beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.dealloc(ptr, layout) }
    }

    // What shrinks stays where it is; what grows may be there twice for a moment.
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() {
            count(size);
            NOW.fetch_sub(layout.size(), Relaxed);
        } else {
            NOW.fetch_sub(layout.size() - size, Relaxed);
        }
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Fills what the GEMM keeps for each thread: a buffer of its own, once.
fn warm_up() {
    rayon::broadcast(|_| {
        let a = faer::Mat::<f32>::from_fn(300, 300, |i, j| (i + j) as f32);
        (&a * &a)[(0, 0)]
    });
}

/// Peak bytes of a factorization as measured, as promised before the call, and as told after it.
fn measure<T: Scalar>(svd: &TruncatedSvd, w: TensorRef<'_>) -> (usize, usize, usize) {
    let promised = svd.workspace::<T>((w.shape()[0], w.shape()[1]), w.dtype()).unwrap();
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let f = svd.factor::<T>(w).unwrap();
    (PEAK.load(Relaxed) - before, promised, f.report().peak_bytes)
}

#[test]
fn the_promise_is_what_is_measured() {
    let mut random = common::Random(1);
    let block: Vec<f64> = (0..4096).map(|_| random.normal()).collect();
    warm_up();
    // With a workspace, a repeated call allocates its result and the small problem.
    let (m, n, k) = (6000, 1500, 40);
    let wide = Matrix::<f32>::from_fn(m, n, |i, j| (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32);
    let half = Matrix::<f16>::from_fn(m, n, |i, j| f16::from_f32(wide.row(i)[j]));
    for method in [Method::Auto, Method::Randomized, Method::Krylov, Method::Gram] {
        for w in [wide.as_tensor().unwrap(), half.as_tensor().unwrap()] {
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method);
            let mut workspace = Workspace::new();
            let reference = svd.factor::<f32>(w.clone()).unwrap();
            // The pool settles in a few calls: buffers go to the smallest request that they fit.
            for _ in 0..4 {
                svd.factor_with::<f32>(w.clone(), &mut workspace).unwrap();
            }
            let held = workspace.bytes();
            let (f, sizes) = allocations(|| svd.factor_with::<f32>(w.clone(), &mut workspace).unwrap());
            assert_eq!((f.u(), f.s(), f.vt()), (reference.u(), reference.s(), reference.vt()), "{method}");
            assert_eq!(workspace.bytes(), held, "{method}");
            // U (m k) is the result's; all else but Vᵀ is of l × l matrices and of the sketch's scratch: nothing as large as the
            // smallest panel, n × l.
            // (Krylov's l is all of its blocks, twice as many columns as are reported.)
            let l = (f.rank() + f.report().oversample) * if f.report().method == Method::Krylov { 2 } else { 1 };
            let panels: Vec<_> = sizes.iter().filter(|&&size| size >= 4 * n * l).collect();
            assert_eq!(panels, [&(4 * m * k)], "{method}: {:?}", &sizes[..8]);
        }
    }

    let mut broken: Vec<String> = Vec::new();
    let shapes = [
        (2048, 2048, 64),
        (3000, 500, 100),
        (500, 3000, 20),
        (4096, 4096, 32),
        (1536, 384, 96),
        (1000, 1000, 50),
        (12000, 200, 40),
        (200, 12000, 10),
        (1500, 900, 200),
        (700, 1100, 300),
    ];
    for (which, (m, n, k)) in shapes.into_iter().enumerate() {
        for method in Method::ALL {
            // A dense SVD of the large squares takes seconds: corners of them.
            let (m, n) = if method == Method::Full && m.min(n) > 600 { (m / 4, n / 4) } else { (m, n) };
            let k = k.min(m / 2).min(n / 2);
            let sketch = [Sketch::Srht, Sketch::Gaussian, Sketch::SparseSign][which % 3];
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch).dynamic_shift(which % 2 == 1);
            let product = |i: usize, j: usize| block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096];
            let mut check = |name: &str, (measured, promised, told): (usize, usize, usize)| {
                let (promised, told) = (promised as f64 / measured as f64, told as f64 / measured as f64);
                let tight = 1.0..=1.10;
                if !(tight.contains(&promised) && tight.contains(&told)) {
                    let what = format!("{m}×{n} k = {k} {method} {sketch}, {name}");
                    broken.push(format!(
                        "{what}: measured {measured}, promised {promised:.4}, told {told:.4} times that"
                    ));
                }
                // A full copy in f32 would be 4 m n; only the full method needs one.
                if method == Method::Randomized && m == n && m > 2000 && name != "f64" {
                    assert!(measured < 2 * m * n, "{m}×{n} {name} {sketch}: {measured} bytes hold a copy");
                }
            };
            let single = |f: &dyn Fn(usize, usize) -> f64| Matrix::<f32>::from_fn(m, n, |i, j| f(i, j) as f32);
            let generic = single(&product);
            // Once to fill the pools of threads and of the GEMM.
            svd.factor::<f32>(generic.as_tensor().unwrap()).unwrap();
            check("f32", measure::<f32>(&svd, generic.as_tensor().unwrap()));
            let half = Matrix::<f16>::from_fn(m, n, |i, j| f16::from_f64(product(i, j)));
            check("f16", measure::<f32>(&svd, half.as_tensor().unwrap()));
            let double = Matrix::<f64>::from_fn(m, n, product);
            check("f64", measure::<f64>(&svd, double.as_tensor().unwrap()));
            // What leaves the usual way: σ_k = σ_1 / 300, where a small problem in f32 goes by QR and the Gram route still resolves σ_k; dependent
            // columns, from which it falls back; zero; values whose squares do not fit f32.
            let steep = single(&|i, j| match i {
                _ if i != j => 0.0,
                0 => 1.0,
                _ if i < k => 3.3e-3,
                _ => 1e-3,
            });
            check("steep", measure::<f32>(&svd, steep.as_tensor().unwrap()));
            if m * n > 1 << 23 {
                continue;
            }
            let dependent = single(&|i, j| ((i % 7) * (j % 5)) as f64);
            check("dependent columns", measure::<f32>(&svd, dependent.as_tensor().unwrap()));
            let zero = Matrix::<f32>::zeros(m, n);
            check("zero", measure::<f32>(&svd, zero.as_tensor().unwrap()));
            let large = single(&|i, j| 1e20 * product(i, j));
            check("large", measure::<f32>(&svd, large.as_tensor().unwrap()));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));

    // Small and odd shapes, and ranks that the spectrum decides: never more than was promised.
    for case in 0..240 {
        let (m, n) = (1 + (random.bits() % 300) as usize, 1 + (random.bits() % 300) as usize);
        let k = 1 + random.bits() as usize % m.min(n);
        let method = Method::ALL[case % Method::ALL.len()];
        let once = matches!(method, Method::SinglePass | Method::Nystrom);
        let rank = match random.bits() % 6 {
            0 if !once => Rank::Tolerance(0.3),
            1 if !once => Rank::Energy(0.999),
            // Few values, which are counted and iterated for, or many, or none.
            2 if !once => Rank::Above([0.5, 20.0, 300.0][case % 3]),
            3 if matches!(method, Method::Auto | Method::Full) => Rank::Numerical,
            _ => Rank::Fixed(k),
        };
        let smallest = matches!(method, Method::Auto | Method::Full) && matches!(rank, Rank::Fixed(_)) && case % 2 == 0;
        let svd = TruncatedSvd::new(rank).smallest(smallest).method(method).oversample(random.bits() as usize % 20);
        let decay = [0.0, 0.1, 3.0][random.bits() as usize % 3];
        let w = Matrix::<f32>::from_fn(m, n, |i, j| {
            (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096] * (1.0 + j as f64).powf(-decay)) as f32
        });
        let (measured, promised, told) = measure::<f32>(&svd, w.as_tensor().unwrap());
        assert!(measured <= promised && measured <= told, "{m}×{n} {rank} {method}: {measured}, {promised}, {told}");
    }

    // A threshold is counted, and few values iterated for; none is found by the eigensolver.
    for (m, n) in [(800, 800), (1600, 800), (3000, 300)] {
        let single =
            |i: usize, j: usize| block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096] + f64::from(j == 3) * 5.0;
        let w = Matrix::<f32>::from_fn(m, n, |i, j| single(i, j) as f32);
        for threshold in [100.0, 1e9] {
            let svd = TruncatedSvd::new(Rank::Above(threshold)).method(Method::Gram);
            let (measured, promised, told) = measure::<f32>(&svd, w.as_tensor().unwrap());
            assert!(measured <= told && told <= promised, "{m}×{n} above {threshold}: {measured}, {told}, {promised}");
        }
    }

    // With calibration, the root of the statistics and what is made of it; they keep a root for the next weight. Inputs that repeat, and inputs of which the
    // Gram matrix alone tells the factors, with W beside the second eigensolver.
    for (m, n, k, memory) in [(3000, 500, 100, None), (500, 1500, 20, None), (3000, 500, 100, Some(0.9))] {
        let w = Matrix::<f32>::from_fn(m, n, |i, j| match memory {
            None => (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32,
            Some(_) => random.normal() as f32,
        });
        let mut before = 0.0;
        let x = Matrix::<f32>::from_fn(2 * n, n, |i, j| match memory {
            None => block[(i * 31 + j * 3) % 4096] as f32,
            Some(memory) => {
                before = random.normal() + if j == 0 { 0.0 } else { memory * before };
                before as f32
            }
        });
        let mut c = Calibration::new(n).unwrap();
        c.update(&x.as_tensor().unwrap()).unwrap();
        let bytes = c.to_bytes();
        drop(c);
        for method in [Method::Gram, Method::Randomized, Method::Full] {
            // Fresh ones, without a root from the last weight.
            let c = Calibration::from_bytes(&bytes).unwrap();
            let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).calibration(&c);
            let before = NOW.load(Relaxed);
            PEAK.store(before, Relaxed);
            let f = svd.factor::<f32>(w.as_tensor().unwrap()).unwrap();
            let measured = PEAK.load(Relaxed) - before;
            let ratio = f.report().peak_bytes as f64 / measured as f64;
            assert!(
                (1.0..2.0).contains(&ratio),
                "{m}×{n} {method}: promised {}, measured {measured}",
                f.report().peak_bytes
            );
        }
    }

    // Three matrices that share a factor take less than half of what their stack would, beside them.
    let (m, n, k) = (2048, 1024, 64);
    let stack =
        Matrix::<f32>::from_fn(3 * m, n, |i, j| (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32);
    let parts: Vec<_> = stack.as_slice().chunks(m * n).map(|w| TensorRef::new(w, &[m, n]).unwrap()).collect();
    for method in [Method::Auto, Method::Randomized] {
        let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method);
        // The buffers of a source of rows are within a limit.
        let (half, before) = (4 * 3 * m * n / 2, NOW.load(Relaxed));
        let svd = svd.memory_limit(half);
        PEAK.store(before, Relaxed);
        let f = svd.factor_shared::<f32>(&parts, tensorslim::operator::Along::Rows).unwrap();
        let measured = PEAK.load(Relaxed) - before;
        assert!(measured <= half && f.report.peak_bytes <= half, "{method}: {measured} of {half}");
    }

    // With statistics on both sides: the root of the long side is promised, which only some methods make.
    for (m, n, k) in [(1200, 400, 100), (400, 1200, 20), (700, 700, 40)] {
        let w = Matrix::<f32>::from_fn(m, n, |i, j| (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32);
        let statistics = |features: usize, repeats: bool, random: &mut common::Random| {
            let x = Matrix::<f32>::from_fn(2 * features, features, |i, j| match repeats {
                true => block[(i * 31 + j * 3) % 4096] as f32,
                false => random.normal() as f32,
            });
            let mut c = Calibration::new(features).unwrap();
            c.update(&x.as_tensor().unwrap()).unwrap();
            c.to_bytes()
        };
        for repeats in [false, true] {
            let bytes = [n, m].map(|features| statistics(features, repeats, &mut random));
            for method in [Method::Gram, Method::Randomized, Method::Krylov, Method::Full, Method::SinglePass] {
                let [c, g] = [0, 1].map(|i| Calibration::from_bytes(&bytes[i]).unwrap());
                let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).calibration(&c).output_calibration(&g);
                let (measured, promised, told) = measure::<f32>(&svd, w.as_tensor().unwrap());
                let what =
                    format!("{m}×{n} {method} both sides: promised {promised}, told {told}, measured {measured}");
                assert!(measured <= promised && measured <= told && told < 3 * measured, "{what}");
            }
        }
    }

    // The largest: 128 MiB of halves, whose copy in f32 would be 256 MiB.
    let n = 8192;
    let half =
        Matrix::<f16>::from_fn(n, n, |i, j| f16::from_f64(block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]));
    let svd = TruncatedSvd::new(Rank::Fixed(64));
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let f = svd.factor::<f32>(half.as_tensor().unwrap()).unwrap();
    let measured = PEAK.load(Relaxed) - before;
    let ratio = f.report().peak_bytes as f64 / measured as f64;
    assert!((1.0..=1.10).contains(&ratio), "8192×8192: promised {}, measured {measured}", f.report().peak_bytes);
    assert!(measured < n * n, "8192×8192: {measured} bytes hold a copy");
}
