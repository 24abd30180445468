use std::time::Instant;
use tensorslim::{Element, MatMut, Par, fwht};
unsafe extern "C" {
    fn madvise(p: *mut u8, n: usize, a: i32) -> i32;
}
fn med<F: FnMut()>(mut f: F, work: f64) -> f64 {
    let reps = ((1e7 / work) as usize).max(1);
    let mut t: Vec<f64> = (0..9)
        .map(|_| {
            let s = Instant::now();
            for _ in 0..reps {
                f()
            }
            s.elapsed().as_secs_f64() / reps as f64
        })
        .collect();
    t.sort_by(f64::total_cmp);
    t[4]
}
fn one<E: Element>(k: u32, off: usize) {
    let n = 1usize << k;
    let rows = ((1usize << 12) / n).max(1);
    let mut buf = Vec::<E>::with_capacity(n * rows + (4 << 20));
    let a = (buf.as_ptr() as usize).next_multiple_of(2 << 20);
    if n * rows * size_of::<E>() >= 4 << 20 {
        unsafe {
            madvise(a as *mut u8, n * rows * size_of::<E>(), 14);
        }
    }
    buf.resize(n * rows + (4 << 20) - 1, E::from_f64(0.0));
    let skip = (a - buf.as_ptr() as usize + off) / size_of::<E>();
    let x = &mut buf[skip..skip + n * rows];
    let w = (n * rows) as f64 * k as f64;
    if k == 24 {
        for l in std::fs::read_to_string("/proc/self/smaps_rollup").unwrap().lines() {
            if l.contains("AnonHuge") {
                println!("{l}");
            }
        }
    }
    let t = med(|| fwht::fwht_rows(MatMut::from_row_major_slice_mut(x, rows, n), Par::Seq).unwrap(), w);
    print!("{:5.1} ", w / t / 1e9);
}
fn main() {
    println!("  k   f32 +16   f64 +16   f16  bf16  plan");
    let ks: Vec<u32> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let ks = if ks.is_empty() { (6..=24).collect() } else { ks };
    for k in ks {
        print!("{k:3} ");
        one::<f32>(k, 0);
        one::<f32>(k, 16);
        one::<f64>(k, 0);
        one::<f64>(k, 16);
        one::<half::f16>(k, 0);
        one::<half::bf16>(k, 0);
        println!(" {} / {}", fwht::plan::<f32>(1 << k).unwrap(), fwht::plan::<f64>(1 << k).unwrap());
    }
}
