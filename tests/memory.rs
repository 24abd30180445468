//! The peak memory that is promised before the call is what a counting allocator sees.
//!
//! One test, so that nothing else allocates while it counts.
#![expect(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use half::f16;
use tensorslim::{Calibration, DType, Matrix, Method, Rank, Sketch, TruncatedSvd, Workspace};

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

    let (mut worst, mut broken): (f64, Vec<String>) = (0.0, Vec::new());
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
        let wide = Matrix::<f32>::from_fn(m, n, |i, j| (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32);
        let half = Matrix::<f16>::from_fn(m, n, |i, j| f16::from_f32(wide.row(i)[j]));
        for method in Method::ALL {
            // A dense SVD of the large squares takes seconds: corners of them.
            let (m, n) = if method == Method::Full && m.min(n) > 600 { (m / 4, n / 4) } else { (m, n) };
            let k = k.min(m / 2).min(n / 2);
            // σ_k = σ_1 / 300: the worst case of the promise, where a small problem in f32 goes by QR, and the Gram route still
            // resolves σ_k.
            let steep = Matrix::<f32>::from_fn(m, n, |i, j| match i {
                _ if i != j => 0.0,
                0 => 1.0,
                _ if i < k => 3.3e-3,
                _ => 1e-3,
            });
            let wide = Matrix::<f32>::from_fn(m, n, |i, j| wide.row(i)[j]);
            let half = Matrix::<f16>::from_fn(m, n, |i, j| half.row(i)[j]);
            let storages = [
                (DType::F32, wide.as_tensor().unwrap()),
                (DType::F16, half.as_tensor().unwrap()),
                (DType::F32, steep.as_tensor().unwrap()),
            ];
            for (storage, (dtype, w)) in storages.into_iter().enumerate() {
                let sketch = [Sketch::Srht, Sketch::Gaussian, Sketch::SparseSign][(which + storage) % 3];
                let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch).dynamic_shift(which % 2 == 1);
                // Once to fill the pools of threads and of the GEMM.
                svd.factor::<f32>(w.clone()).unwrap();
                let before = NOW.load(Relaxed);
                PEAK.store(before, Relaxed);
                let f = svd.factor::<f32>(w.clone()).unwrap();
                let measured = PEAK.load(Relaxed) - before;
                let promised = svd.workspace::<f32>((m, n), dtype).unwrap();
                let told = f.report().peak_bytes as f64 / measured as f64;
                let ratio = promised as f64 / measured as f64;
                worst = worst.max((told - 1.0).abs());
                let what = format!("{m}×{n} k = {k} {dtype} {method} {sketch}");
                let tight = 1.0..=1.10;
                let kept = ratio >= 1.0 && tight.contains(&told) && (storage < 2 || tight.contains(&ratio));
                if !kept {
                    broken.push(format!("{what}: measured {measured}, told {told:.4}, promised {ratio:.4} times that"));
                }
                // A full copy in f32 would be 4 m n; only the full method needs one.
                if method == Method::Randomized && m == n && m > 2000 {
                    assert!(measured < 2 * m * n, "{m}×{n} {dtype} {sketch}: {measured} bytes hold a copy");
                }
            }
        }
    }

    assert!(broken.is_empty(), "{}", broken.join("\n"));

    // With calibration, the root of the statistics and what is made of it; they keep a root for the next weight.
    for (m, n, k) in [(3000, 500, 100), (500, 1500, 20)] {
        let w = Matrix::<f32>::from_fn(m, n, |i, j| (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32);
        let x = Matrix::<f32>::from_fn(2 * n, n, |i, j| block[(i * 31 + j * 3) % 4096] as f32);
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
    assert!(worst > 0.0, "two independent counts agree to the byte: the measurement is broken");
}
