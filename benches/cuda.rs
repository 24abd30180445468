//! Device kernels against the roofline: time, bytes moved, the ratio to a copy of as many bytes on the same card, and what that was
//! predicted to be.
//!
//! Prints "no GPU" and why where there is none. Results are compared with the CPU's before anything is timed.

#![allow(clippy::print_stdout)] // the table is the output

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::sync::Arc;

use tensorslim::cuda::fwht::{fwht_columns, fwht_rows};
use tensorslim::cuda::{Device, DeviceArray, DeviceMatrix};
use tensorslim::operator::LinearOperator;
use tensorslim::sketch::{AnySketch, SketchOperator};
use tensorslim::space::{Layout, Space};
use tensorslim::{DType, Element, Matrix, Method, Par, Rank, Sketch, TensorRef, TruncatedSvd};

/// Bytes per second of an H100's memory.
const H100: f64 = 3.35e12;

fn main() {
    let device = match Device::shared(0) {
        Ok(device) => device,
        Err(e) => return println!("no GPU: {e}"),
    };
    let test = common::asked("--test");
    let side = if test { 256 } else { 4096 };
    println!("{device:?}; a ratio of 1 is the speed of a copy; the last column is the time at an H100's 3.35 TB/s");
    println!("{:44} {:>9} {:>9} {:>7} {:>7} {:>9}", "", "ms", "GB/s", "copy", "paper", "H100 ms");
    rows::<f32>(&device, side, test);
    rows::<half::bf16>(&device, side, test);
    sketches(&device, side, test);
    factor(side, test);
    factor_there(&device, test);
}

/// Device to device: the rows of `benches/record/cuda_peers.csv`, whose `ms_on_card` is torch's time of the same.
fn factor_there(device: &Arc<Device>, test: bool) {
    let rows: &[(usize, usize, DType, usize)] = match test {
        true => &[(256, 128, DType::F32, 8), (128, 256, DType::BF16, 8)],
        false => &[
            (4096, 4096, DType::F32, 256),
            (4096, 4096, DType::BF16, 256),
            (11008, 4096, DType::F16, 256),
            (4096, 1024, DType::F32, 64),
            (1536, 384, DType::F32, 96),
        ],
    };
    for &(m, n, dtype, k) in rows {
        match dtype {
            DType::F16 => there::<half::f16>(device, (m, n), k, test),
            DType::BF16 => there::<half::bf16>(device, (m, n), k, test),
            _ => there::<f32>(device, (m, n), k, test),
        }
    }
}

/// Wall time until the host knows that the factors are there, in which nothing crosses but small matrices.
fn there<E: Element>(device: &Arc<Device>, (m, n): (usize, usize), k: usize, test: bool) {
    let omega = AnySketch::new(Sketch::Gaussian, m, n, 3, 0).expect("a matrix of normals").to_dense::<f32>();
    let w = Matrix::<E>::from_fn(m, n, |i, j| E::from_f64(f64::from(omega[(i, j)]) / ((j + 1) as f64).sqrt()));
    let there = DeviceArray::new(device, w.as_slice(), m, n).expect("a weight fits");
    for method in [Method::Randomized, Method::Gram] {
        let svd = TruncatedSvd::new(Rank::Fixed(k)).method(method);
        let mut error = 0.0;
        let mut ms: Vec<f64> = (0..if test { 1 } else { 10 })
            .map(|_| {
                let start = std::time::Instant::now();
                let factors = svd.factor_device::<f32>(&there.as_tensor()).expect("finite");
                device.synchronize().expect("worked");
                error = factors.report().relative_error;
                start.elapsed().as_secs_f64() * 1e3
            })
            .skip(usize::from(!test))
            .collect();
        let ms = common::median(&mut ms);
        println!("factor_device {m}×{n} {} rank {k} {method}: {ms:.2} ms, error {error:.6}", E::DTYPE);
    }
}

/// Median milliseconds of `work`, the first run not counted.
fn median(device: &Device, test: bool, mut work: impl FnMut()) -> f64 {
    let runs = if test { 1 } else { 21 };
    work();
    let mut ms: Vec<f64> = (0..runs)
        .map(|_| {
            let time = device.time(|| {
                work();
                Ok(())
            });
            f64::from(time.expect("the kernels ran before"))
        })
        .collect();
    common::median(&mut ms)
}

fn line(what: &str, ms: f64, bytes: f64, copy_ms: f64, paper: &str) {
    println!("{what:44} {ms:9.4} {:9.1} {:7.2} {paper:>7} {:9.4}", bytes / ms / 1e6, ms / copy_ms, 1e3 * bytes / H100);
}

fn rows<E: Element + PartialEq>(device: &Arc<Device>, side: usize, test: bool) {
    let lengths: &[usize] = if test { &[side] } else { &[256, 1024, 4096, 8192, 32768, 12 * 256, 28 * 512] };
    for &n in lengths {
        let m = side * side / n;
        let data: Vec<E> = (0..m * n).map(|i| E::from_f64(((i * 37) % 17) as f64 - 8.0)).collect();
        let mut x = DeviceArray::new(device, &data, m, n).expect("16 Mi elements fit");
        fwht_rows(&mut x).expect("a length that is known");
        let mut host = data.clone();
        tensorslim::fwht::fwht_rows(tensorslim::MatMut::from_row_major_slice_mut(&mut host, m, n), Par::rayon(0))
            .expect("a length that is known");
        // Small integers: sums are exact in f32 on both sides, and rounded once.
        assert!(x.to_vec().expect("16 Mi elements fit") == host, "rows of {n}");
        let mut y = DeviceArray::new(device, &data, m, n).expect("16 Mi elements fit");
        let copy = median(device, test, || y.copy_from(&x).expect("of one shape"));
        let bytes = (2 * m * n * size_of::<E>()) as f64;
        let zero = vec![E::zeroed(); m * n];
        let mut x = DeviceArray::new(device, &zero, m, n).expect("16 Mi elements fit");
        let ms = median(device, test, || fwht_rows(&mut x).expect("worked before"));
        // Dao's kernel takes 1.0 to 1.2 of a copy up to 8192 points, HadaCore 1.0 to 1.3 over that; with b > 1 there are b / 4 more
        // additions and reads of shared memory for each element.
        let paper = if n.is_power_of_two() { "1.0-1.2" } else { "1.0-1.5" };
        line(&format!("fwht_rows {} {m}×{n}", E::DTYPE), ms, bytes, copy, paper);
        if n == side {
            let ms = median(device, test, || fwht_columns(&mut x).expect("a length that is known"));
            line(
                &format!("fwht_columns {} {m}×{n}", E::DTYPE),
                ms,
                bytes,
                copy,
                if size_of::<E>() == 2 { "3.0" } else { "2.0" },
            );
        }
    }
}

fn sketches(device: &Arc<Device>, side: usize, test: bool) {
    let w =
        Matrix::<half::bf16>::from_fn(side, side, |i, j| half::bf16::from_f32(((i * 31 + j * 17) % 29) as f32 - 14.0));
    let view = half::bf16::view(w.as_ref());
    let l = side / 16 + 10;
    let mut op = DeviceMatrix::<f32>::new(device, view).expect("32 MiB fit");
    let mut y = device.panel(side, l, Layout::Columns).expect("a panel fits");
    let x = DeviceArray::new(device, w.as_slice(), side, side).expect("32 MiB fit");
    let mut z = DeviceArray::new(device, w.as_slice(), side, side).expect("32 MiB fit");
    let copy = median(device, test, || z.copy_from(&x).expect("of one shape")) / 2.0;
    for (kind, paper) in [(Sketch::Srht, "1.0-1.3"), (Sketch::SparseSign, "2-4"), (Sketch::Gaussian, "")] {
        let omega = AnySketch::new(kind, side, l, 1, 0).expect("l < n");
        // With the operator's state on its way to the card.
        let ms = median(device, test, || op.sketch(&omega, &mut y).expect("a panel fits"));
        let bytes = (side * side * DType::BF16.size() + side * l * 4) as f64;
        line(&format!("{kind} bf16 {side}×{side}, l = {l} (to one read)"), ms, bytes, copy, paper);
    }
    let ms = median(device, test, || {
        device.dot(&y, &y).expect("a panel fits");
    });
    line(&format!("norm of {side}×{l} f32 (to one read of A)"), ms, (side * l * 4) as f64, copy, "");
}

fn factor(side: usize, test: bool) {
    let w = Matrix::<f32>::from_fn(side, side, |i, j| ((i * 31 + j * 17) % 2900) as f32 / 1450.0 - 1.0);
    let tensor = || TensorRef::new(w.as_slice(), &[side, side]).expect("as many elements as that");
    let svd = TruncatedSvd::new(Rank::Fixed(side / 16)).method(Method::Randomized);
    for (name, device) in [("cpu", tensorslim::Device::Cpu), ("cuda", tensorslim::Device::Cuda(0))] {
        let svd = svd.clone().device(device);
        let mut ms: Vec<f64> = (0..if test { 1 } else { 5 })
            .map(|_| svd.factor::<f32>(tensor()).expect("finite").report().elapsed.as_secs_f64() * 1e3)
            .collect();
        println!("factor {side}×{side} f32 rank {} on {name}: {:.1} ms", side / 16, common::median(&mut ms));
    }
}
