//! The peak memory that is promised before the call is what a counting allocator sees.
//!
//! One test, so that nothing else allocates while it counts.
#![expect(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use half::f16;
use tensorslim::{Calibration, DType, Matrix, Method, Rank, Sketch, TruncatedSvd};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` unchanged; the counters are only written beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
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

#[test]
fn the_promise_is_what_is_measured() {
    let mut random = common::Random(1);
    let block: Vec<f64> = (0..4096).map(|_| random.normal()).collect();
    let mut worst: f64 = 0.0;
    for (m, n, k) in [(2048, 2048, 64), (3000, 500, 100), (500, 3000, 20), (4096, 4096, 32)] {
        let wide = Matrix::<f32>::from_fn(m, n, |i, j| (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32);
        let half = Matrix::<f16>::from_fn(m, n, |i, j| f16::from_f32(wide.row(i)[j]));
        for method in Method::ALL {
            // The full method on the large squares is a second of bidiagonalization each; two shapes show it.
            if method == Method::Full && m == n {
                continue;
            }
            for (dtype, w) in [(DType::F32, wide.as_tensor().unwrap()), (DType::F16, half.as_tensor().unwrap())] {
                for sketch in [Sketch::Srht, Sketch::Gaussian] {
                    let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method).sketch(sketch);
                    // Once to fill the pools of threads and of the GEMM.
                    svd.factor::<f32>(w.clone()).unwrap();
                    let before = NOW.load(Relaxed);
                    PEAK.store(before, Relaxed);
                    let f = svd.factor::<f32>(w.clone()).unwrap();
                    let measured = PEAK.load(Relaxed) - before;
                    let promised = svd.workspace::<f32>((m, n), dtype).unwrap();
                    assert_eq!(promised, f.report().peak_bytes, "no fallback here");
                    let ratio = promised as f64 / measured as f64;
                    worst = worst.max((ratio - 1.0).abs());
                    assert!(
                        (0.91..=1.10).contains(&ratio),
                        "{m}×{n} {dtype} {method} {sketch}: promised {promised}, measured {measured}"
                    );
                    // A full copy in f32 would be 4 m n; only the full method needs one.
                    if method == Method::Randomized && m == n {
                        assert!(measured < 2 * m * n, "{m}×{n} {dtype} {sketch}: {measured} bytes hold a copy");
                    }
                }
            }
        }
    }

    // With calibration, the root of the statistics and what is made of it; they keep a root for the next weight.
    for (m, n, k) in [(3000, 500, 100), (500, 1500, 20)] {
        let w = Matrix::<f32>::from_fn(m, n, |i, j| (block[(i * 7 + j) % 4096] * block[(i + 13 * j) % 4096]) as f32);
        let x = Matrix::<f32>::from_fn(2 * n, n, |i, j| block[(i * 31 + j * 3) % 4096] as f32);
        let mut c = Calibration::new(n).unwrap();
        c.update(&x.as_tensor().unwrap()).unwrap();
        let c = Calibration::from_bytes(&c.to_bytes()).unwrap();
        for method in [Method::Gram, Method::Randomized, Method::Full] {
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
    assert!((0.91..=1.10).contains(&ratio), "8192×8192: promised {}, measured {measured}", f.report().peak_bytes);
    assert!(measured < n * n, "8192×8192: {measured} bytes hold a copy");
    assert!(worst > 0.0, "two independent counts agree to the byte: the measurement is broken");
}
