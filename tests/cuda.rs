//! The device modules against the CPU's: on a GPU where there is one, else against the driver of `tests/cuda` if it is in
//! `LD_LIBRARY_PATH` (`.ci/cuda`), else skipped. `REQUIRE_GPU=1` makes a skip a failure.
//!
//! Under that driver kernels run in the emulator, and a race, an access out of bounds or a wrong parameter list fails the test
//! that launched them. Faults and leaks are tested there only.
#![cfg(feature = "cuda")]
#![allow(clippy::print_stdout)] // says why it was skipped

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};
use faer::{Accum, Mat, MatRef, Par};
use half::{bf16, f16};
use tensorslim::calibration::Calibration;
use tensorslim::cuda::{
    self, Device, DeviceArray, DeviceMatrix, DevicePanel, DeviceTensor, DeviceTensorMut, fwht as device_fwht, solver,
};
use tensorslim::error::DeviceFault;
use tensorslim::fwht::{fwht_columns, fwht_rows};
use tensorslim::operator::{Dense, LinearOperator};
use tensorslim::rng::Philox;
use tensorslim::sketch::{AnySketch, SketchOperator};
use tensorslim::space::{Access, Effort, HostPanel, Layout, Panel, Side, Space};
use tensorslim::svd::Rates;
use tensorslim::{Element, Matrix};
use tensorslim::{
    Error, ErrorKind, Factors, MatMut, MatView, Method, Rank, Scalar, Sketch, Split, TensorRef, TruncatedSvd,
};

/// One test at a time: some break the device.
static ONE: Mutex<()> = Mutex::new(());

fn one() -> MutexGuard<'static, ()> {
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    Device::close_shared(); // left open by a test that failed
    guard
}

fn device() -> Option<Arc<Device>> {
    match Device::try_new(0) {
        Ok(device) => Some(device),
        Err(e) if std::env::var_os("REQUIRE_GPU").is_none() => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("REQUIRE_GPU: {e}"),
    }
}

/// Functions that only the tests' driver has.
struct Mock {
    fail: unsafe extern "C" fn(i32, i64),
    calls: unsafe extern "C" fn(i32) -> i64,
    live: unsafe extern "C" fn() -> i64,
    home: unsafe extern "C" fn() -> i64,
}

#[derive(Debug, Clone, Copy)]
enum Fail {
    Allocation = 0,
    Launch = 1,
    Driver = 2,
}

impl Mock {
    /// None on a GPU. The driver must have been found before.
    fn get() -> Option<Mock> {
        // SAFETY: the symbols have these types in tests/cuda/mock.cpp, and no other driver has them.
        unsafe {
            let library = cudarc::driver::sys::culib();
            Some(Mock {
                fail: *library.get::<unsafe extern "C" fn(i32, i64)>(b"mock_fail").ok()?,
                calls: *library.get::<unsafe extern "C" fn(i32) -> i64>(b"mock_calls").ok()?,
                live: *library.get::<unsafe extern "C" fn() -> i64>(b"mock_live").ok()?,
                home: *library.get::<unsafe extern "C" fn() -> i64>(b"mock_home").ok()?,
            })
        }
    }

    fn fail_after(&self, what: Fail, calls: i64) {
        // SAFETY: takes a lock and sets a number.
        unsafe { (self.fail)(what as i32, calls) }
    }

    /// How many calls there have been that could fail.
    fn calls(&self, what: Fail) -> i64 {
        // SAFETY: takes a lock and reads a number.
        unsafe { (self.calls)(what as i32) }
    }

    /// Bytes that were copied to the host, since the driver was loaded.
    fn home(&self) -> i64 {
        // SAFETY: takes a lock and reads a number.
        unsafe { (self.home)() }
    }

    fn live(&self) -> i64 {
        // SAFETY: takes a lock and counts.
        unsafe { (self.live)() }
    }
}

/// Numbers between -1 and 1.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let rng = Philox::new(seed, tensorslim::rng::stream::DATA);
    (0..len as u64).map(|i| (rng.block(i / 4)[i as usize % 4] >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Elements between -1 and 1.
fn elements<E: Element>(len: usize, seed: u64) -> Vec<E> {
    noise(len, seed).into_iter().map(|x| E::from_f64(f64::from(x))).collect()
}

fn relative<E: Element>(got: &[E], want: &[E]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        difference += (g.to_f64() - w.to_f64()).powi(2);
        norm += w.to_f64().powi(2);
    }
    (difference / f64::max(norm, f64::MIN_POSITIVE)).sqrt()
}

/// Device and host transforms of rows and columns of one matrix. Integer input makes every sum exact in f32.
fn check_fwht<E: Element>(device: &Arc<Device>, m: usize, n: usize, along_rows: bool, tolerance: f64) {
    for integers in [true, false] {
        let seed = (m * 31 + n) as u64;
        let mut x: Vec<E> = elements(m * n, seed);
        if integers {
            x.iter_mut().for_each(|x| *x = E::from_f64((x.to_f64() * 2.0).round()));
        }
        let mut on_device = DeviceArray::new(device, &x, m, n).unwrap();
        let host = MatMut::from_row_major_slice_mut(&mut x, m, n);
        if along_rows {
            device_fwht::fwht_rows(&mut on_device).unwrap();
            fwht_rows(host, Par::Seq).unwrap();
        } else {
            device_fwht::fwht_columns(&mut on_device).unwrap();
            fwht_columns(host, Par::Seq).unwrap();
        }
        let error = relative(&on_device.to_vec().unwrap(), &x);
        // Sums of halves below 2^11 (2^8) are exact too, longer ones are rounded once on both sides.
        let bound = if integers { 0.0 } else { tolerance };
        assert!(error <= bound, "{} {m}×{n}, rows: {along_rows}, integers: {integers}: {error:e}", E::DTYPE);
    }
}

#[test]
fn fwht_rows_of_every_length() {
    let _one = one();
    let Some(device) = device() else { return };
    // A vector is a row of sums of k roundings of either side; 1e-6 is 8 eps of f32. Halves are rounded once, the f32 sums
    // before that may fall on the other side of a tie: well under one ulp in norm.
    for k in 1..=15 {
        let n = 1 << k;
        let m = if k < 12 { 5 } else { 1 };
        check_fwht::<f32>(&device, m, n, true, 1e-6);
        check_fwht::<f64>(&device, m, n, true, 1e-14);
        check_fwht::<f16>(&device, m, n, true, 1e-4);
        check_fwht::<bf16>(&device, m, n, true, 1e-3);
    }
    check_fwht::<f32>(&device, 131, 32, true, 1e-6);
}

#[test]
fn fwht_of_other_orders_and_long_rows() {
    let _one = one();
    let Some(device) = device() else { return };
    // Pieces that a block holds, of less than a warp's columns (2^5) up to 2^10, and orders that take two sweeps or three.
    for (m, n) in
        [(3, 12), (5, 20 * 2), (3, 20 * 32), (2, 28 * 64), (2, 28 * 512), (1, 12 * 1024), (3, 140), (1, 60 * 1024)]
    {
        check_fwht::<f32>(&device, m, n, true, 1e-6);
        check_fwht::<bf16>(&device, m, n, true, 1e-3);
    }
    for n in [36 * 16, 36 * 32, 12 * 512] {
        check_fwht::<f64>(&device, 2, n, true, 1e-14);
    }
    check_fwht::<f32>(&device, 2, 1 << 16, true, 1e-6);
    check_fwht::<f64>(&device, 1, 1 << 15, true, 1e-14);
    check_fwht::<f16>(&device, 1, 1 << 16, true, 1e-4);
}

#[test]
fn fwht_columns_of_matrices() {
    let _one = one();
    let Some(device) = device() else { return };
    for (m, n) in [(1, 4), (2, 7), (8, 33), (64, 257), (128, 5), (1024, 3), (12, 5), (40, 300), (108, 2)] {
        check_fwht::<f32>(&device, m, n, false, 1e-6);
        check_fwht::<f64>(&device, m, n, false, 1e-14);
        check_fwht::<f16>(&device, m, n, false, 1e-4);
        check_fwht::<bf16>(&device, m, n, false, 1e-3);
    }
}

/// The sizes that the mutation run compiles: one warp, several warps in one round and in two, f64.
#[test]
fn few_rows() {
    let _one = one();
    let Some(device) = device() else { return };
    check_fwht::<f32>(&device, 1, 1 << 13, true, 1e-6);
    check_fwht::<f32>(&device, 3, 1 << 11, true, 1e-6);
    check_fwht::<f64>(&device, 3, 1 << 11, true, 1e-14);
    check_fwht::<bf16>(&device, 2, 1 << 11, true, 1e-3);
    check_fwht::<f32>(&device, 3, 12 * 128, true, 1e-6);
    check_fwht::<f32>(&device, 3, 108, true, 1e-6);
}

/// And those of the fused SRHT.
#[test]
fn few_sketches() {
    let _one = one();
    let Some(device) = device() else { return };
    check_sketches::<f32, f32>(&device, &[(257, 256, 100), (33, 33, 3)], 2e-6);
    // Two blocks of 2^10, two warps each.
    check_sketches::<f64, f64>(&device, &[(1101, 1100, 30)], 1e-14);
    check_sketches::<bf16, f32>(&device, &[(2000, 2000, 30)], 2e-6);
    // Two tiles of sparse signs.
    check_sketches_of::<bf16, f32>(&device, &[Sketch::SparseSign], (2100, 2100, 20), 2e-6);
}

#[test]
fn orthonormal_transforms_are_their_own_inverse() {
    let _one = one();
    let Some(device) = device() else { return };
    let x: Vec<f32> = elements(7 * 12 * 64, 5);
    let mut on_device = DeviceArray::new(&device, &x, 7, 12 * 64).unwrap();
    let before = on_device.to_vec().unwrap();
    assert_eq!(before, x);
    // H_12 is not symmetric: rows of 2^k only. 7 columns of 768 = 12·64 have H Hᵀ = I by their norms.
    device_fwht::orthonormal_rows(&mut on_device).unwrap();
    let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for (after, before) in on_device.to_vec().unwrap().chunks(768).zip(x.chunks(768)) {
        assert!((norm(after) / norm(before) - 1.0).abs() < 1e-6);
    }
    let x: Vec<f64> = elements(256 * 3, 6);
    let mut on_device = DeviceArray::new(&device, &x, 256, 3).unwrap();
    device_fwht::orthonormal_columns(&mut on_device).unwrap();
    device_fwht::orthonormal_columns(&mut on_device).unwrap();
    assert!(relative(&on_device.to_vec().unwrap(), &x) < 1e-14);
    let mut wrong = DeviceArray::new(&device, &x, 3, 256).unwrap();
    assert_eq!(device_fwht::fwht_columns(&mut wrong), Err(Error::Order { n: 3 }));
}

#[test]
fn philox_words_are_those_of_the_cpu() {
    let _one = one();
    let Some(device) = device() else { return };
    // 2^32 − 5: the counter's low word carries on the way.
    for (seed, stream, first, count) in [(0, 0, 0, 1), (42, 7 << 40, (1 << 32) - 5, 300), (u64::MAX, 5, 1 << 60, 257)] {
        let words = cuda::philox_words(&device, seed, stream, first, count).unwrap();
        let rng = Philox::new(seed, stream);
        let want: Vec<u32> = (first..).take(count).flat_map(|i| rng.block(i)).collect();
        assert_eq!(words, want, "seed {seed}");
    }
}

/// The operator of a matrix of `E` on the device and on the CPU.
fn both<'a, T: Scalar>(device: &Arc<Device>, view: MatView<'a>) -> (DeviceMatrix<'a, T>, Dense<'a, T>) {
    (DeviceMatrix::new(device, view).unwrap(), Dense::new(view, Par::Seq).unwrap())
}

fn home<T: Scalar>(panel: &DevicePanel<T>) -> Vec<T> {
    let mut host = Mat::zeros(panel.nrows(), panel.ncols());
    panel.copy_to_host(host.as_mut()).unwrap();
    host.col_iter().flat_map(|c| c.iter().copied().collect::<Vec<_>>()).collect()
}

fn at_home<T: Scalar>(panel: &HostPanel<T>) -> Vec<T> {
    panel.as_ref().col_iter().flat_map(|c| c.iter().copied().collect::<Vec<_>>()).collect()
}

fn view_of<E: Element>(data: &[E], m: usize, n: usize) -> MatView<'_> {
    E::view(MatRef::from_row_major_slice(data, m, n))
}

#[test]
fn gaussian_entries_have_the_bits_of_the_cpu() {
    let _one = one();
    let Some(device) = device() else { return };
    let n = 37;
    let eye = |i: usize| if i / n == i % n { 1.0 } else { 0.0 };
    let single: Vec<f32> = (0..n * n).map(|i| eye(i) as f32).collect();
    let double: Vec<f64> = (0..n * n).map(eye).collect();
    for l in [1, 6, 37] {
        let omega = AnySketch::new(Sketch::Gaussian, n, l, 9, 3).unwrap();
        let want = omega.to_dense::<f64>();
        let (mut op, _) = both::<f32>(&device, view_of(&single, n, n));
        let mut y = DevicePanel::zeros(&device, n, l).unwrap();
        op.sketch(&omega, &mut y).unwrap();
        let got = home(&y);
        for j in 0..l {
            for i in 0..n {
                assert_eq!(got[j * n + i].to_bits(), (want[(i, j)] as f32).to_bits(), "({i}, {j})");
            }
        }
        let (mut op, _) = both::<f64>(&device, view_of(&double, n, n));
        let mut y = DevicePanel::zeros(&device, n, l).unwrap();
        op.sketch(&omega, &mut y).unwrap();
        assert_eq!(home(&y), home_of(want.as_ref()));
    }
}

fn home_of(a: MatRef<'_, f64>) -> Vec<f64> {
    a.col_iter().flat_map(|c| c.iter().copied().collect::<Vec<_>>()).collect()
}

fn check_sketches<E: Element, T: Scalar>(device: &Arc<Device>, shapes: &[(usize, usize, usize)], tolerance: f64) {
    let kinds = [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign];
    shapes.iter().for_each(|&shape| check_sketches_of::<E, T>(device, &kinds, shape, tolerance));
}

fn check_sketches_of<E: Element, T: Scalar>(
    device: &Arc<Device>,
    kinds: &[Sketch],
    (m, n, l): (usize, usize, usize),
    tolerance: f64,
) {
    let data: Vec<E> = elements(m * n, (m + n) as u64);
    let (mut on_device, mut on_host) = both::<T>(device, view_of(&data, m, n));
    for &kind in kinds {
        let omega = AnySketch::new(kind, n, l, 1234, 1).unwrap();
        let (mut y, mut want) = (panel(&on_device, m, l), panel(&on_host, m, l));
        on_device.sketch(&omega, &mut y).unwrap();
        on_host.sketch(&omega, &mut want).unwrap();
        let error = relative(&home(&y), &at_home(&want));
        assert!(error <= tolerance, "{kind} of {}, {m}×{n}, l = {l}: {error:e}", E::DTYPE);
    }
}

#[test]
fn sketches_are_those_of_the_cpu() {
    let _one = one();
    let Some(device) = device() else { return };
    // SRHT instances 2^8 to 2^11, a last piece, blocks below 2^8 by panels, odd rows. Sums of n products in f32: √n eps.
    let shapes = [(301, 300, 10), (131, 70, 9), (257, 256, 100), (1101, 1100, 30), (33, 5, 3)];
    check_sketches::<f32, f32>(&device, &shapes, 2e-6);
    // Several blocks of columns of the sparse signs.
    check_sketches::<f32, f32>(&device, &[(701, 700, 600)], 2e-6);
    check_sketches::<f64, f64>(&device, &shapes[..3], 1e-14);
    check_sketches::<f16, f32>(&device, &shapes[..3], 2e-6);
    check_sketches::<bf16, f32>(&device, &shapes[..2], 2e-6);
    check_sketches::<bf16, f64>(&device, &shapes[1..2], 1e-14);
    check_sketches::<f64, f32>(&device, &shapes[1..2], 2e-6);
}

/// A panel of zeros where those of an operator live.
fn panel<T: Scalar, S: Space<T>>(op: &dyn LinearOperator<T, Space = S>, nrows: usize, ncols: usize) -> Panel<T, S> {
    op.space().panel(nrows, ncols, Layout::Columns).unwrap()
}

/// Every product of an operator against the CPU's.
fn check_operator<T: Scalar>(device: &Arc<Device>, view: MatView<'_>, tolerance: f64) {
    let (mut on_device, mut on_host) = both::<T>(device, view);
    let (m, n, l) = (view.nrows(), view.ncols(), 7);
    let what = format!("{} {m}×{n} in {}, resident: {}", view.dtype(), T::DTYPE, on_device.is_resident());
    let close = |got: &[T], want: &[T], op: &str| {
        let error = relative(got, want);
        assert!(error <= tolerance, "{what}: {op}: {error:e}");
    };
    let facts = [on_device.facts(), on_host.facts()];
    assert_eq!(facts[0].scale, facts[1].scale, "{what}");
    let norm = facts[0].norm_squared / facts[1].norm_squared - 1.0;
    assert!(norm.abs() <= tolerance, "{what}: norm {norm:e}");

    let x = Mat::<T>::from_fn(n, l, |i, j| T::from_f64(((i * 7 + j * 3) % 23) as f64 / 11.0 - 1.0));
    let (mut dx, mut hx) = (panel(&on_device, n, l), panel(&on_host, n, l));
    dx.copy_from_host(x.as_ref()).unwrap();
    hx.as_mut().copy_from(&x);
    let (mut dy, mut hy) = (panel(&on_device, m, l), panel(&on_host, m, l));
    on_device.apply(&dx, &mut dy).unwrap();
    on_host.apply(&hx, &mut hy).unwrap();
    close(&home(&dy), &at_home(&hy), "A X");
    dy.copy_from_host(hy.as_ref()).unwrap();
    on_device.apply_adjoint(&dy, &mut dx).unwrap();
    on_host.apply_adjoint(&hy, &mut hx).unwrap();
    close(&home(&dx), &at_home(&hx), "Aᵀ Y");
    let resident = on_device.is_resident();
    assert_eq!(resident, device.memory_limit() == usize::MAX, "{what}");
    if resident {
        let (mut da, mut ha) = (panel(&on_device, m, n), panel(&on_host, m, n));
        on_device.materialize(&mut da).unwrap();
        on_host.materialize(&mut ha).unwrap();
        assert_eq!(home(&da), at_home(&ha), "{what}: A");
    }
    drop((dx, dy));
    let mut rows = Mat::<T>::zeros(m, n);
    let mut given = 0;
    on_device
        .for_each_row_block(&mut |first, block| {
            assert_eq!(first, given, "{what}: rows in order");
            given += block.nrows();
            rows.subrows_mut(first, block.nrows()).copy_from(block);
            Ok(())
        })
        .unwrap();
    let mut ha = panel(&on_host, m, n);
    on_host.materialize(&mut ha).unwrap();
    let rows: Vec<T> = rows.col_iter().flat_map(|c| c.iter().copied().collect::<Vec<_>>()).collect();
    assert_eq!((given, rows), (m, at_home(&ha)), "{what}: rows of A");
    let (mut dg, mut hg) = (on_device.gram().unwrap(), on_host.gram().unwrap());
    close(&home(dg.panel()), &at_home(hg.panel()), "AᵀA");
    let trace = |g: f64, want: f64| assert!((g / want - 1.0).abs() <= tolerance, "{what}: a sum: {g} for {want}");
    trace(device.trace(dg.panel()).unwrap(), on_host.space().trace(hg.panel()).unwrap());
    trace(dg.norm_squared(), hg.norm_squared());
    // A shift, and the matrix as it was; the lower triangle of a symmetric matrix that meets A from both sides.
    let before = home(dg.panel());
    let omega = AnySketch::new(Sketch::SparseSign, n, l, 3, 0).unwrap();
    let (mut dv, mut hv) = (panel(&on_device, n, l), panel(&on_host, n, l));
    let shift = 0.25 * on_host.space().trace(hg.panel()).unwrap() / n as f64;
    for shift in [0.0, shift] {
        dg.sketch(shift, &omega, &mut dv).unwrap();
        hg.sketch(shift, &omega, &mut hv).unwrap();
        close(&home(&dv), &at_home(&hv), "(G − c) Ω");
    }
    assert_eq!(home(dg.panel()), before, "{what}: G after a shift");
    let (mut dw, mut hw) = (panel(&on_device, n, l), panel(&on_host, n, l));
    dg.apply(&dv, &mut dw).unwrap();
    hg.apply(&hv, &mut hw).unwrap();
    close(&home(&dw), &at_home(&hw), "G X");
    drop((dv, dw, dg));
    if resident {
        let s = |i: usize, j: usize| T::from_f64(((i * 13 + j * 5) % 17) as f64 / 8.0 - 1.0);
        let s = Mat::from_fn(m, m, |i, j| if i >= j { s(i, j) } else { T::from_f64(f64::NAN) });
        let mut hs = panel(&on_host, m, m);
        hs.as_mut().copy_from(&s);
        let (mut dg, mut hg) = (panel(&on_device, n, n), panel(&on_host, n, n));
        on_device.congruence(&DevicePanel::from_host(device, s.as_ref()).unwrap(), &mut dg).unwrap();
        on_host.congruence(&hs, &mut hg).unwrap();
        close(&home(&dg), &at_home(&hg), "Aᵀ S A");
    }
    assert_eq!(on_device.facts().passes, if resident { 7 } else { 4 });
}

#[test]
fn operators_of_every_type_and_layout() {
    let _one = one();
    let Some(device) = device() else { return };
    let (m, n) = (211, 45);
    let (single, double): (Vec<f32>, Vec<f64>) = (elements(m * n, 1), elements(m * n, 1));
    let (half, brain): (Vec<f16>, Vec<bf16>) = (elements(m * n, 1), elements(m * n, 1));
    check_operator::<f32>(&device, view_of(&single, m, n), 1e-6);
    check_operator::<f32>(&device, view_of(&double, m, n), 1e-6);
    check_operator::<f64>(&device, view_of(&double, m, n), 1e-14);
    check_operator::<f64>(&device, view_of(&half, m, n), 1e-14);
    check_operator::<f32>(&device, view_of(&half, m, n), 1e-6);
    check_operator::<f32>(&device, view_of(&brain, m, n), 1e-6);
    // The transpose of a wide matrix, and strides of neither order.
    check_operator::<f32>(&device, f32::view(MatRef::from_column_major_slice(&single, m, n)), 1e-6);
    check_operator::<f32>(&device, f16::view(MatRef::from_column_major_slice(&half, m, n)), 1e-6);
    let strided = MatRef::from_row_major_slice(&single, m, n).submatrix(1, 2, 199, 40).reverse_rows();
    check_operator::<f32>(&device, f32::view(strided), 1e-6);
    // Values whose squares leave the range of f32.
    let large: Vec<f32> = single.iter().map(|x| x * 1e30).collect();
    check_operator::<f32>(&device, view_of(&large, m, n), 1e-6);
}

#[test]
fn operators_that_do_not_fit_are_streamed() {
    let _one = one();
    let Some(device) = device() else { return };
    let (m, n) = (1201, 44);
    let single: Vec<f32> = elements(m * n, 1);
    let half: Vec<f16> = elements(m * n, 1);
    let double: Vec<f64> = elements(m * n, 1);
    let check = |bytes: usize, check: &dyn Fn()| {
        // A resident matrix would take three quarters of this, and a little.
        device.set_memory_limit(m * n * bytes * 4 / 3 - 1);
        check();
        assert_eq!(device.used_memory(), 0);
    };
    check(4, &|| check_operator::<f32>(&device, view_of(&single, m, n), 1e-6));
    check(4, &|| check_operator::<f32>(&device, f32::view(MatRef::from_column_major_slice(&single, m, n)), 1e-6));
    check(8, &|| check_operator::<f64>(&device, view_of(&half, m, n), 1e-14));
    check(4, &|| check_operator::<f32>(&device, view_of(&double, m, n), 1e-6));
    check(2, &|| check_operator::<f32>(&device, view_of(&half, m, n), 1e-6));
}

#[test]
fn what_is_not_finite_is_named() {
    let _one = one();
    let Some(device) = device() else { return };
    let mut data: Vec<f32> = elements(60, 1);
    data[23] = f32::NAN;
    let refused = DeviceMatrix::<f32>::new(&device, view_of(&data, 12, 5)).err();
    assert!(matches!(refused, Some(Error::NotFinite { row: 4, col: 3, .. })), "{refused:?}");
    let wide = DeviceMatrix::<f32>::new(&device, view_of(&data, 5, 12)).err();
    assert!(matches!(wide, Some(Error::Shape { .. })), "{wide:?}");
}

#[test]
fn panels() {
    let _one = one();
    let Some(device) = device() else { return };
    let (m, l) = (203, 12);
    let a = Mat::<f64>::from_fn(m, l, |i, j| ((i * 13 + j * 29) % 31) as f64 / 15.0 - 1.0);
    let b = Mat::<f64>::from_fn(m, 5, |i, j| ((i * 17 + j * 11) % 37) as f64 / 18.0 - 1.0);
    let (mut da, mut db) =
        (DevicePanel::from_host(&device, a.as_ref()).unwrap(), DevicePanel::from_host(&device, b.as_ref()).unwrap());
    let close = |got: MatRef<'_, f64>, want: MatRef<'_, f64>| {
        let error = (got - want).norm_l2() / want.norm_l2();
        assert!(error < 1e-14, "{error:e}");
    };
    let mut c = Mat::zeros(l, 5);
    device.inner(&da, &db, c.as_mut()).unwrap();
    close(c.as_ref(), (a.transpose() * &b).as_ref());
    let mut g = Mat::zeros(l, l);
    device.inner(&da, &da, g.as_mut()).unwrap();
    close(g.as_ref(), (a.transpose() * &a).as_ref());
    assert!((device.dot(&da, &da).unwrap() / a.squared_norm_l2() - 1.0).abs() < 1e-14);
    let small = Mat::from_fn(l, 5, |i, j| (i as f64 - j as f64) / 7.0);
    let mut out = Mat::zeros(m, 5);
    device.multiply_to_host(&da, small.as_ref(), out.as_mut()).unwrap();
    close(out.as_ref(), (&a * &small).as_ref());
    device.multiply(&mut db, Accum::Add, &da, small.as_ref(), -2.0).unwrap();
    db.copy_to_host(out.as_mut()).unwrap();
    close(out.as_ref(), (&b - (&a * &small) * faer::Scale(2.0)).as_ref());

    let rows: Vec<f64> = (0..m).map(|i| i as f64 / 100.0 + 0.5).collect();
    let mut scaled = DevicePanel::from_host(&device, a.as_ref()).unwrap();
    scaled.scale(Some(&rows), Some(&rows[..l])).unwrap();
    let mut out = Mat::zeros(m, l);
    scaled.copy_to_host(out.as_mut()).unwrap();
    close(out.as_ref(), Mat::from_fn(m, l, |i, j| a[(i, j)] * rows[i] * rows[j]).as_ref());
    assert!(matches!(scaled.scale(Some(&rows[1..]), None), Err(Error::Shape { .. })));
    let mut square = DevicePanel::from_host(&device, g.as_ref()).unwrap();
    square.shift_diagonal(3.0).unwrap();
    let mut out = Mat::zeros(l, l);
    square.copy_to_host(out.as_mut()).unwrap();
    close(out.as_ref(), (&g + Mat::<f64>::identity(l, l) * faer::Scale(3.0)).as_ref());

    // Of entries of one modulus the first counts; a column of zeros has a 0.
    let mut signed = Mat::<f64>::from_fn(m, 3, |i, j| [((i * 7919) % 501) as f64 - 250.0, 0.0, -1.0][j]);
    signed[(190, 0)] = -777.0;
    signed[(170, 0)] = 777.0;
    signed[(202, 2)] = 1.0;
    assert_eq!(DevicePanel::from_host(&device, signed.as_ref()).unwrap().peaks().unwrap(), [777.0, 0.0, -1.0]);

    // What the algorithms ask of a space.
    assert_eq!(Space::<f64>::shape(&device, &da), (m, l));
    let mut in_space = device.panel(l, l, Layout::Columns).unwrap();
    device.multiply_panels(Side::Adjoint, &da, &da, &mut in_space).unwrap();
    device.download(&in_space, out.as_mut()).unwrap();
    close(out.as_ref(), g.as_ref());
    assert!((device.trace(&in_space).unwrap() / a.squared_norm_l2() - 1.0).abs() < 1e-14);
    let mut wide = Mat::zeros(l, l);
    device.gram(&da, wide.as_mut()).unwrap();
    assert!((0..l).all(|j| (j..l).all(|i| (wide[(i, j)] - g[(i, j)]).abs() < 1e-11)));
    let mut product = device.panel(m, l, Layout::Columns).unwrap();
    device.multiply_panels(Side::Plain, &da, &in_space, &mut product).unwrap();
    let mut out = Mat::zeros(m, l);
    device.download(&product, out.as_mut()).unwrap();
    close(out.as_ref(), (&a * &g).as_ref());
    assert!((device.dot(&da, &product).unwrap() / g.squared_norm_l2() - 1.0).abs() < 1e-13);
    device.axpy(&mut product, -0.5, &da).unwrap();
    device.download(&product, out.as_mut()).unwrap();
    close(out.as_ref(), (&a * &g - &a * faer::Scale(0.5)).as_ref());
    let mut both = device.panel(m, l + 5, Layout::Columns).unwrap();
    device.copy_columns(&mut both, 0, &da).unwrap();
    device.copy_columns(&mut both, l, &DevicePanel::from_host(&device, b.as_ref()).unwrap()).unwrap();
    let mut seen = false;
    let look = &mut |both: faer::MatMut<'_, f64>| {
        assert_eq!((both.as_ref().subcols(0, l), both.as_ref().subcols(l, 5)), (a.as_ref(), b.as_ref()));
        seen = true;
    };
    device.visit(&mut both, Access::Read, look).unwrap();
    assert!(seen);
    device.multiply_in_place(&mut da, small.as_ref()).unwrap();
    assert_eq!(Space::<f64>::shape(&device, &da), (m, 5));
    let mut out = Mat::zeros(m, 5);
    device.download(&da, out.as_mut()).unwrap();
    close(out.as_ref(), (&a * &small).as_ref());
    device.visit(&mut da, Access::Write, &mut |mut dst| dst.copy_from(&b)).unwrap();
    device.download(&da, out.as_mut()).unwrap();
    assert_eq!(out, b);
}

/// `y = q r` with orthonormal q, for a panel of the given columns.
fn check_orthonormal<T: Scalar>(device: &Arc<Device>, y: &Mat<T>, tolerance: f64) -> tensorslim::qr::Algorithm {
    let (m, l) = (y.nrows(), y.ncols());
    let mut panel = DevicePanel::from_host(device, y.as_ref()).unwrap();
    let mut r = Mat::<T>::zeros(l, l);
    let report = device.orthonormalize(&mut panel, Some(r.as_mut()), Effort::Fast).unwrap();
    let mut q = Mat::<T>::zeros(m, l);
    panel.copy_to_host(q.as_mut()).unwrap();
    let wide = |a: &Mat<T>| Mat::<f64>::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].to_f64());
    let (q, r, y) = (wide(&q), wide(&r), wide(y));
    let defect = (q.transpose() * &q - Mat::<f64>::identity(l, l)).norm_max();
    assert!(defect < tolerance, "{report:?}: ‖QᵀQ − I‖ = {defect:e}");
    // Columnwise, so that short columns count.
    let product = &q * &r;
    for j in 0..l {
        let (error, norm) = ((product.col(j) - y.col(j)).norm_l2(), y.col(j).norm_l2());
        assert!(error <= 10.0 * tolerance * norm, "{report:?}: column {j}: {error:e} of {norm:e}");
    }
    report.algorithm
}

#[test]
fn panels_are_orthonormalized_whatever_they_hold() {
    use tensorslim::qr::Algorithm;
    let _one = one();
    let Some(device) = device() else { return };
    let (m, l) = (300, 8);
    let random: Vec<f64> = elements(m * l, 3);
    // Columns that share a direction up to `eps`: condition about 1 / eps.
    let panel = |eps: f64| Mat::<f64>::from_fn(m, l, |i, j| random[i * l] + eps * random[i * l + j]);
    let single = |eps: f64| Mat::<f32>::from_fn(m, l, |i, j| panel(eps)[(i, j)] as f32);
    assert_eq!(check_orthonormal(&device, &panel(1e6), 1e-13), Algorithm::CholeskyQr);
    assert_eq!(check_orthonormal(&device, &panel(1e-2), 1e-13), Algorithm::CholeskyQr2);
    check_orthonormal(&device, &panel(1e-5), 1e-13);
    check_orthonormal(&device, &single(1.0), 1e-5);
    assert_eq!(check_orthonormal(&device, &single(1e-4), 1e-5), Algorithm::WideCholeskyQr2);
    // Dependent columns, zero columns, columns that cannot be squared.
    let mut dependent = panel(1.0);
    for i in 0..m {
        dependent[(i, 3)] = dependent[(i, 1)];
        dependent[(i, 6)] = dependent[(i, 1)] - dependent[(i, 2)];
    }
    check_orthonormal(&device, &dependent, 1e-12);
    let zero_column = Mat::from_fn(m, l, |i, j| if j == 2 { 0.0 } else { random[i * l + j] });
    assert_eq!(check_orthonormal(&device, &zero_column, 1e-12), Algorithm::Householder);
    let tiny = Mat::<f32>::from_fn(m, l, |i, j| random[i * l + j] as f32 * 1e-30);
    check_orthonormal(&device, &tiny, 1e-5);
}

#[test]
fn factorizations_of_the_solver_library() {
    let _one = one();
    let Some(device) = device() else { return };
    let (m, n) = (40, 11);
    let data: Vec<f64> = elements(m * n, 8);
    let a = Mat::from_fn(m, n, |i, j| data[i * n + j]);
    let back = |p: &DevicePanel<f64>| {
        let mut host = Mat::zeros(p.nrows(), p.ncols());
        p.copy_to_host(host.as_mut()).unwrap();
        host
    };
    let up = |a: &Mat<f64>| DevicePanel::from_host(&device, a.as_ref()).unwrap();
    let lower = |a: &Mat<f64>| Mat::from_fn(n, n, |i, j| if i >= j { a[(i, j)] } else { 0.0 });
    let gram = a.transpose() * &a;

    // Small ones are left to the host; of others the lower triangle counts.
    let eigen = |g: MatRef<'_, f64>| Space::<f64>::symmetric_eigen(&device, g).unwrap();
    assert!(eigen(gram.as_ref()).is_none());
    let n_large = 130;
    let noise: Vec<f64> = elements(n_large * n_large, 3);
    let symmetric = Mat::from_fn(n_large, n_large, |i, j| noise[i.max(j) * n_large + i.min(j)]);
    let triangle = Mat::from_fn(n_large, n_large, |i, j| if i >= j { symmetric[(i, j)] } else { f64::NAN });
    let (values, vectors) = eigen(triangle.as_ref()).unwrap();
    assert!(values.is_sorted());
    let scaled = Mat::from_fn(n_large, n_large, |i, j| vectors[(i, j)] * values[j]);
    assert!((&symmetric * &vectors - scaled).norm_max() < 1e-12);
    assert!((vectors.transpose() * &vectors - Mat::<f64>::identity(n_large, n_large)).norm_max() < 1e-12);

    let mut g = up(&gram);
    solver::potrf(&mut g).unwrap();
    let l = lower(&back(&g));
    assert!((&l * l.transpose() - &gram).norm_max() < 1e-12);
    let mut indefinite = up(&Mat::from_fn(3, 3, |i, j| if i == j { -1.0 } else { 0.0 }));
    assert_eq!(solver::potrf(&mut indefinite), Err(Error::NoConvergence { op: "potrf" }));

    let mut q = up(&a);
    let tau = solver::geqrf(&mut q).unwrap();
    let r = lower(&back(&q).transpose().subcols(0, n).to_owned()).transpose().to_owned();
    solver::orgqr(&mut q, &tau).unwrap();
    let q = back(&q);
    assert!((q.transpose() * &q - Mat::<f64>::identity(n, n)).norm_max() < 1e-13);
    assert!((&q * &r - &a).norm_max() < 1e-12);

    let mut g = up(&gram);
    let values = solver::syevd(&mut g).unwrap();
    let v = back(&g);
    assert!(values.is_sorted());
    let rebuilt = Mat::from_fn(n, n, |i, j| (0..n).map(|k| v[(i, k)] * values[k] * v[(j, k)]).sum::<f64>());
    assert!((rebuilt - &gram).norm_max() < 1e-10);

    let (u, s, v) = solver::gesvdj(up(&a)).unwrap();
    let (u, v) = (back(&u), back(&v));
    assert!(s.is_sorted_by(|x, y| x >= y));
    let rebuilt = Mat::from_fn(m, n, |i, j| (0..n).map(|k| u[(i, k)] * s[k] * v[(j, k)]).sum::<f64>());
    assert!((rebuilt - &a).norm_max() < 1e-12);
    assert!(matches!(solver::gesvdj(up(&a.transpose().to_owned())), Err(Error::Shape { .. })));
}

/// A matrix of decaying spectrum, so that singular values are well determined.
fn weight(m: usize, n: usize, seed: u64) -> Vec<f32> {
    let (left, right) = (noise(m * 40, seed), noise(40 * n, seed + 1));
    let mut w = Matrix::<f32>::zeros(m, n);
    for i in 0..m {
        for j in 0..n {
            let sum: f32 = (0..40).map(|k| left[i * 40 + k] * right[k * n + j] * 0.8f32.powi(k as i32)).sum();
            w.as_mut_slice()[i * n + j] = sum;
        }
    }
    w.as_slice().to_vec()
}

fn worst(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs() / want[0])).fold(0.0, f64::max)
}

const SHAPES: [(usize, usize); 5] = [(96, 64), (64, 96), (200, 48), (131, 131), (300, 257)];

#[test]
fn singular_values_are_those_of_the_cpu() {
    let _one = one();
    if device().is_none() {
        return;
    }
    for (i, (m, n)) in SHAPES.into_iter().enumerate() {
        let w = weight(m, n, 100 + i as u64);
        let tensor = || TensorRef::new(&w, &[m, n]).unwrap();
        for method in [Method::Randomized, Method::Gram, Method::Full] {
            let svd = TruncatedSvd::new(Rank::Fixed(12)).method(method).seed(5);
            let cpu = svd.factor::<f32>(tensor()).unwrap();
            let gpu = svd.clone().device(tensorslim::Device::Cuda(0)).factor::<f32>(tensor()).unwrap();
            let error = worst(gpu.s(), cpu.s());
            assert!(error <= 1e-5, "{method} {m}×{n}: σ differ by {error:e} of σ_1");
            assert_eq!(gpu.report().method, cpu.report().method);
            let certificates = (gpu.report().relative_error, cpu.report().relative_error);
            assert!((certificates.0 / certificates.1 - 1.0).abs() < 1e-3, "{certificates:?}");
        }
    }
    // Halves, and arithmetic in f64.
    let half: Vec<f16> = weight(150, 60, 7).into_iter().map(f16::from_f32).collect();
    let tensor = || TensorRef::new(&half, &[150, 60]).unwrap();
    let svd = TruncatedSvd::new(Rank::Fixed(10)).method(Method::Randomized);
    let on_gpu = svd.clone().device(tensorslim::Device::Cuda(0));
    let error = worst(on_gpu.factor::<f32>(tensor()).unwrap().s(), svd.factor::<f32>(tensor()).unwrap().s());
    assert!(error <= 1e-5, "f16: {error:e}");
    let (gpu, cpu) = (on_gpu.factor::<f64>(tensor()).unwrap(), svd.factor::<f64>(tensor()).unwrap());
    assert!(gpu.s().iter().zip(cpu.s()).all(|(g, c)| (g - c).abs() <= 1e-12 * cpu.s()[0]));
    Device::close_shared();
}

/// What the planner can choose runs on the device, and so do all policies of the rank.
#[test]
fn methods_and_ranks_are_those_of_the_cpu() {
    let _one = one();
    if device().is_none() {
        return;
    }
    let (m, n) = (140, 90);
    let w: Vec<bf16> = weight(m, n, 17).into_iter().map(bf16::from_f32).collect();
    let tensor = || TensorRef::new(&w, &[m, n]).unwrap();
    let methods = [Method::Krylov, Method::SinglePass, Method::Nystrom, Method::Auto];
    let fixed = methods.map(|method| TruncatedSvd::new(Rank::Fixed(8)).method(method));
    let found = [Rank::Energy(0.95), Rank::Tolerance(0.1), Rank::Ratio(2.0)].map(TruncatedSvd::new);
    for svd in fixed.into_iter().chain(found) {
        let svd = svd.seed(11).rates(Rates::default()); // one plan for both
        let cpu = svd.factor::<f32>(tensor()).unwrap();
        let gpu = svd.clone().device(tensorslim::Device::Cuda(0)).factor::<f32>(tensor()).unwrap();
        assert_eq!(gpu.report().method, cpu.report().method);
        assert_eq!(gpu.rank(), cpu.rank(), "{svd:?}");
        let error = worst(gpu.s(), cpu.s());
        assert!(error <= 1e-5, "{svd:?}: σ differ by {error:e} of σ_1");
        let certificates = (gpu.report().relative_error, cpu.report().relative_error);
        assert!((certificates.0 / certificates.1 - 1.0).abs() < 1e-3, "{svd:?}: {certificates:?}");
    }
    Device::close_shared();
}

#[test]
fn whitened_singular_values_are_those_of_the_cpu() {
    let _one = one();
    if device().is_none() {
        return;
    }
    for (i, (m, n)) in SHAPES.into_iter().enumerate() {
        let w = weight(m, n, 200 + i as u64);
        let tensor = || TensorRef::new(&w, &[m, n]).unwrap();
        // Inputs of very different lengths, fewer samples than features, one feature dead.
        let mut x = noise(n / 2 * n, 300 + i as u64);
        x.chunks_mut(n).for_each(|row| row.iter_mut().enumerate().for_each(|(j, x)| *x *= (j % 7) as f32));
        let mut calibration = Calibration::new(n).unwrap();
        calibration.update(&TensorRef::new(&x, &[n / 2, n]).unwrap()).unwrap();
        for rank in [Rank::Fixed(10), Rank::Quality(0.95)] {
            let svd = TruncatedSvd::new(rank).method(Method::Randomized).calibration(&calibration);
            let cpu = svd.factor::<f32>(tensor()).unwrap();
            let gpu = svd.clone().device(tensorslim::Device::Cuda(0)).factor::<f32>(tensor()).unwrap();
            assert_eq!(gpu.rank(), cpu.rank(), "{rank:?} {m}×{n}");
            let error = worst(gpu.s(), cpu.s());
            assert!(error <= 1e-5, "{rank:?} {m}×{n}: σ differ by {error:e} of σ_1");
            let (got, want) = (gpu.report().activation.as_ref().unwrap(), cpu.report().activation.as_ref().unwrap());
            assert!((got.relative_error / want.relative_error - 1.0).abs() < 1e-3, "{got:?} {want:?}");
        }
    }
    Device::close_shared();
}

/// Statistics of inputs and outputs: the operator is weighted from both sides, on the device as in memory.
#[test]
fn two_sided_factors_are_those_of_the_cpu() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    for (i, (m, n)) in SHAPES.into_iter().enumerate() {
        let w = weight(m, n, 400 + i as u64);
        let statistics = |features: usize, seed: u64| {
            let mut x = noise(2 * features * features, seed);
            x.chunks_mut(features)
                .for_each(|row| row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + (j % 5) as f32));
            let mut c = Calibration::new(features).unwrap();
            c.update(&TensorRef::new(&x, &[2 * features, features]).unwrap()).unwrap();
            c
        };
        let svd = TruncatedSvd::new(Rank::Fixed(10))
            .method(Method::Randomized)
            .calibration(&statistics(n, 500 + i as u64))
            .output_calibration(&statistics(m, 600 + i as u64));
        let tensor = || TensorRef::new(&w, &[m, n]).unwrap();
        let cpu = svd.factor::<f32>(tensor()).unwrap();
        let gpu = svd.clone().device(tensorslim::Device::Cuda(0)).factor::<f32>(tensor()).unwrap();
        let at = caller.upload(&w);
        let there = svd.factor_device::<f32>(&caller.tensor::<f32>(at, (m, n), (n, 1))).unwrap().download().unwrap();
        caller.free(at);
        let loss = |f: &Factors<f32>| f.report().activation.as_ref().unwrap().relative_error;
        let near = |f: &Factors<f32>, what: &str| {
            let error = worst(f.s(), cpu.s());
            assert!(error <= 1e-5, "{what}, {m}×{n}: σ differ by {error:e} of σ_1");
            assert!((loss(f) / loss(&cpu) - 1.0).abs() < 1e-3, "{what}, {m}×{n}: {} for {}", loss(f), loss(&cpu));
        };
        near(&gpu, "from the host");
        near(&there, "where it is");
    }
    drop(caller);
    Device::close_shared();
}

/// What comes home is the factors, and small matrices of which neither the size nor the number depends on how long the
/// matrix is. The error is one that a subtraction of norms shows, as that of real weights is: the probes that measure a
/// smaller one, 16 columns, come home as well.
#[test]
fn only_small_matrices_and_the_factors_come_home() {
    let _one = one();
    let Some(device) = device() else { return };
    let Some(mock) = Mock::get() else { return };
    let (n, k) = (512, 32);
    let mut x = noise(n * n, 9);
    x.chunks_mut(n).for_each(|row| row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + (j % 7) as f32));
    let mut calibration = Calibration::new(n).unwrap();
    calibration.update(&TensorRef::new(&x, &[n, n]).unwrap()).unwrap();
    let svd = TruncatedSvd::new(Rank::Fixed(k)).device(tensorslim::Device::Cuda(0)).seed(5);
    drop(device);
    for (svd, calibrated) in [(svd.clone(), false), (svd.calibration(&calibration), true)] {
        let besides = [1024, 2048].map(|m| {
            let w = noise(m * n, 3);
            let before = mock.home();
            let f = svd.factor::<f32>(TensorRef::new(&w, &[m, n]).unwrap()).unwrap();
            let besides = (mock.home() - before) as usize - size_of::<f32>() * k * (m + n);
            let (l, method) = (f.rank() + f.report().oversample, f.report().method);
            println!("{m}×{n}, calibrated: {calibrated}, {method}, l = {l}: {besides} bytes besides the factors");
            // Three numbers of each line that a norm is taken of, of at most 1024 lines.
            let most = 40 * size_of::<f64>() * l * l + 3 * 24 * 1024;
            assert!(besides <= most, "{m}×{n}, calibrated: {calibrated}, {method}, l = {l}: {besides} bytes");
            besides
        });
        assert_eq!(besides[0], besides[1], "calibrated: {calibrated}: more of a longer matrix comes home");
    }
    Device::close_shared();
}

/// Somebody else's stream on the same device, and its memory.
struct Caller {
    device: Arc<Device>,
    stream: sys::CUstream,
}

impl Caller {
    fn new(device: &Arc<Device>) -> Self {
        device.synchronize().unwrap(); // makes the context current
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
        Caller { device: device.clone(), stream }
    }

    fn upload<E: Element>(&self, data: &[E]) -> u64 {
        // SAFETY: the memory is as long as the data, and freed by `free`.
        unsafe {
            let at = result::malloc_async(self.stream, size_of_val(data)).unwrap();
            result::memcpy_htod_async(at, data, self.stream).unwrap();
            at
        }
    }

    fn read<E: Element>(&self, at: u64, len: usize) -> Vec<E> {
        let mut data = vec![E::zeroed(); len];
        // SAFETY: the callers pass memory of as many elements; the stream is waited for.
        unsafe {
            result::memcpy_dtoh_async(&mut data, at, self.stream).unwrap();
            result::stream::synchronize(self.stream).unwrap();
        }
        data
    }

    /// Frees memory behind what this stream has so far, and nothing else.
    fn free(&self, at: u64) {
        // SAFETY: the callers pass what `upload` returned, once.
        unsafe { result::free_async(at, self.stream).unwrap() }
    }

    /// A matrix in memory that `upload` returned.
    fn tensor<E: Element>(&self, at: u64, shape: (usize, usize), strides: (usize, usize)) -> DeviceTensor<'static> {
        // SAFETY: the tests free the memory when they are done with the matrix, behind this stream.
        unsafe { DeviceTensor::from_raw(&self.device, at, shape, strides, E::DTYPE, self.stream as usize) }.unwrap()
    }

    fn tensor_mut<E: Element>(
        &self,
        at: u64,
        shape: (usize, usize),
        strides: (usize, usize),
    ) -> DeviceTensorMut<'static> {
        // SAFETY: as for `tensor`, and nothing else reads it meanwhile.
        unsafe { DeviceTensorMut::new(self.tensor::<E>(at, shape, strides)) }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // SAFETY: the stream was created by `new`, and this is its only owner.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::destroy(self.stream);
        }
    }
}

/// The elements of a row-major matrix with these strides, and NaN between them.
fn laid_out<E: Element>(w: &[E], (m, n): (usize, usize), strides: (usize, usize)) -> Vec<E> {
    let mut data = vec![E::from_f64(f64::NAN); (m - 1) * strides.0 + (n - 1) * strides.1 + 1];
    for i in 0..m {
        for j in 0..n {
            data[i * strides.0 + j * strides.1] = w[i * n + j];
        }
    }
    data
}

/// Factors where the matrix is, in `T`, against what comes of the same matrix on the host.
fn check_borrowed<E: Element, T: Scalar>(
    caller: &Caller,
    shape: (usize, usize),
    strides: (usize, usize),
    method: Method,
    tolerance: f64,
) {
    let (m, n) = shape;
    let w: Vec<E> = weight(m, n, (m + n) as u64).iter().map(|&x| E::from_f64(f64::from(x))).collect();
    let svd = TruncatedSvd::new(Rank::Fixed(6)).method(method).seed(5).precise(true);
    let what = format!("{} in {}, {m}×{n}, strides {strides:?}, {method}", E::DTYPE, T::DTYPE);
    let want = svd.factor::<T>(TensorRef::new(&w, &[m, n]).unwrap()).unwrap();
    let data = laid_out(&w, shape, strides);
    let at = caller.upload(&data);
    let got = svd.factor_device::<T>(&caller.tensor::<E>(at, shape, strides)).unwrap();
    // At once, on the caller's stream: nothing but its order says that these are finished.
    let (u, vt) = (got.u(), got.vt());
    assert_eq!((u.shape(), vt.shape()), ((m, 6), (6, n)), "{what}");
    let (u, vt) =
        (caller.read::<T>(u.address(), u.strides().1 * 6), caller.read::<T>(vt.address(), vt.strides().0 * 6));
    assert_eq!(
        caller.read::<E>(at, data.len()).iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>(),
        data.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>(),
        "{what}: the matrix was written"
    );
    caller.free(at);
    let host = got.download().unwrap();
    assert_eq!((host.u().as_slice()[6], host.vt().as_slice()[n]), (u[1], vt[vt.len() / 6]), "{what}");
    assert!(relative(host.s(), want.s()) <= tolerance, "{what}: {:?} {:?}", host.s(), want.s());
    // Signs are fixed, so that vectors can be compared.
    let vectors =
        [relative(host.u().as_slice(), want.u().as_slice()), relative(host.vt().as_slice(), want.vt().as_slice())];
    assert!(vectors.iter().all(|&e| e <= 30.0 * tolerance), "{what}: {vectors:?}");
    let (error, expected) = (host.report().relative_error, want.report().relative_error);
    assert!((error / expected - 1.0).abs() <= 1e-3, "{what}: {error} for {expected}");
    assert_eq!((host.report().passes, host.report().method), (want.report().passes, want.report().method), "{what}");
    // Factors that are dropped while the caller's stream still has to read them.
    let copy = caller.upload(&u);
    // SAFETY: both have as many elements, and the checker of streams ends the test if the factors are freed before.
    unsafe { result::memcpy_dtod_async(copy, got.u().address(), size_of_val(&u[..]), caller.stream).unwrap() };
    drop(got);
    assert!(caller.read::<T>(copy, u.len()) == u, "{what}: U after the factors");
    caller.free(copy);
    let shorter = host.truncate(3).unwrap();
    assert!((shorter.report().relative_error / want.truncate(3).unwrap().report().relative_error - 1.0).abs() <= 1e-3);
}

#[test]
fn borrowed_matrices_are_factored_where_they_are() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    let (tall, wide) = ((150, 64), (64, 150));
    for shape in [tall, wide, (96, 96)] {
        let (m, n) = shape;
        // Rows and columns of adjacent elements; distances that are no multiple of 16 bytes, and padding.
        for strides in [(n, 1), (1, m), (n + 3, 1), (1, m + 8)] {
            check_borrowed::<f32, f32>(&caller, shape, strides, Method::Randomized, 1e-6);
        }
    }
    for method in [Method::Gram, Method::Full, Method::Krylov, Method::SinglePass] {
        check_borrowed::<f32, f32>(&caller, tall, (1, 150), method, 2e-6);
        check_borrowed::<f32, f32>(&caller, wide, (151, 1), method, 2e-6);
    }
    check_borrowed::<bf16, f32>(&caller, tall, (65, 1), Method::Randomized, 1e-6);
    check_borrowed::<bf16, f32>(&caller, wide, (150, 1), Method::Gram, 1e-6);
    check_borrowed::<f16, f32>(&caller, tall, (1, 152), Method::Randomized, 1e-6);
    check_borrowed::<f64, f64>(&caller, tall, (1, 150), Method::Randomized, 1e-13);
    // These are copied, because cuBLAS multiplies no f64 by f32.
    check_borrowed::<f64, f32>(&caller, tall, (1, 150), Method::Randomized, 1e-6);
    check_borrowed::<f32, f64>(&caller, wide, (1, 65), Method::Randomized, 1e-12);
    // By filtered iterations, which end when the subspace is good enough for the error.
    check_borrowed::<f16, f64>(&caller, tall, (64, 1), Method::Gram, 1e-10);
    drop(caller);
    assert_eq!(device.used_memory(), 0);
    let Some(mock) = Mock::get() else { return };
    device.synchronize().unwrap();
    drop(device);
    assert_eq!(mock.live(), 0);
}

/// Of a matrix on the device nothing but small matrices and k numbers come home, and nothing as large as it is taken;
/// neither bytes nor launches grow with its length. Under a calibration the factors come home, too.
#[test]
fn a_borrowed_matrix_is_never_copied() {
    let _one = one();
    let Some(device) = device() else { return };
    let Some(mock) = Mock::get() else { return };
    let (n, k) = (512, 16);
    let mut x = noise(n * n, 9);
    x.chunks_mut(n).for_each(|row| row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + (j % 7) as f32));
    let mut calibration = Calibration::new(n).unwrap();
    calibration.update(&TensorRef::new(&x, &[n, n]).unwrap()).unwrap();
    let caller = Caller::new(&device);
    let plain = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Randomized).seed(5);
    // Kernels of this crate; products come on top. The bounds are a quarter above what was counted.
    let cases = [
        (plain.clone().precise(true), false, false, 8),
        (plain.clone().precise(true), false, true, 26),
        (plain.clone(), false, true, 14),
        (plain.clone().method(Method::Gram), false, false, 18),
        (plain.calibration(&calibration), true, false, 18),
    ];
    for (svd, calibrated, columns, most_launches) in cases {
        let counted = [1024, 2048].map(|m| {
            let w = noise(m * n, 3);
            let strides = if columns { (1, m) } else { (n, 1) };
            let data = laid_out(&w, (m, n), strides);
            let at = caller.upload(&data);
            device.synchronize().unwrap();
            device.take_peak_memory();
            let (home, launches) = (mock.home(), mock.calls(Fail::Launch));
            let f = svd.factor_device::<f32>(&caller.tensor::<f32>(at, (m, n), strides)).unwrap();
            let launches = mock.calls(Fail::Launch) - launches;
            let factors = if calibrated { size_of::<f32>() * k * (m + n) } else { 0 };
            let besides = (mock.home() - home) as usize - factors;
            let (l, method) = (k + f.report().oversample, f.report().method);
            let peak = device.take_peak_memory();
            println!("{m}×{n}, calibrated: {calibrated}, columns: {columns}, {method}, l = {l}: {besides} bytes, {launches} launches, peak {peak}");
            let most = 40 * size_of::<f64>() * l * l + 3 * 24 * 1024;
            assert!(besides <= most, "{m}×{n}, calibrated: {calibrated}, {method}, l = {l}: {besides} bytes");
            assert!(launches <= most_launches, "{m}×{n}, calibrated: {calibrated}, {method}: {launches} launches");
            // At less precision there is a copy in bf16, half as large.
            assert!(peak < size_of_val(&w[..]) || calibrated || method == Method::Gram, "{m}×{n}: {peak} bytes");
            drop(f);
            caller.free(at);
            (besides, launches)
        });
        assert_eq!(
            counted[0], counted[1],
            "calibrated: {calibrated}: more of a longer matrix comes home, or is launched"
        );
    }
}

#[test]
fn an_error_in_the_middle_leaves_the_callers_stream_in_order() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    let (m, n) = (40, 90);
    let svd = TruncatedSvd::new(Rank::Fixed(4)).method(Method::Randomized).precise(true);
    let mut w = weight(m, n, 3);
    w[7 * n + 61] = f32::NAN;
    for strides in [(n, 1), (1, m)] {
        let data = laid_out(&w, (m, n), strides);
        let at = caller.upload(&data);
        let refused = svd.factor_device::<f32>(&caller.tensor::<f32>(at, (m, n), strides)).err();
        caller.free(at); // what still reads it must come first
        assert!(matches!(refused, Some(Error::NotFinite { row: 7, col: 61, .. })), "{refused:?}");
    }
    // In a block of rows that is not the first one that is searched.
    let (rows, columns) = (1200, 1000);
    let mut long = vec![1.0f32; rows * columns];
    long[1100 * columns + 3] = f32::INFINITY;
    let at = caller.upload(&long);
    let refused = svd.factor_device::<f32>(&caller.tensor::<f32>(at, (rows, columns), (columns, 1))).err();
    caller.free(at);
    assert!(matches!(refused, Some(Error::NotFinite { row: 1100, col: 3, .. })), "{refused:?}");
    let Some(mock) = Mock::get() else { return };
    w[7 * n + 61] = 0.0;
    let at = caller.upload(&w);
    svd.factor_device::<f32>(&caller.tensor::<f32>(at, (m, n), (n, 1))).unwrap();
    for after in 0.. {
        mock.fail_after(Fail::Allocation, after);
        let answer = svd.factor_device::<f32>(&caller.tensor::<f32>(at, (m, n), (n, 1)));
        mock.fail_after(Fail::Allocation, -1);
        // The caller writes what is read; the checker of streams ends the test unless that comes first.
        // SAFETY: there are as many elements.
        unsafe { result::memcpy_htod_async(at, &w, caller.stream).unwrap() };
        match answer {
            Ok(_) => {
                assert!(after > 10, "{after} allocations");
                break;
            }
            Err(Error::Device { fault: DeviceFault::OutOfMemory, .. }) => {}
            Err(other) => panic!("after {after}: {other}"),
        }
    }
    caller.free(at);
    drop(caller);
    device.synchronize().unwrap();
    assert_eq!(device.used_memory(), 0);
}

/// `‖W − U diag(s) Vᵀ‖_F / ‖W‖_F` in f64.
fn error_of<E: Element>(w: &[E], (m, n): (usize, usize), f: &Factors<f32>) -> f64 {
    let wide = |a: &Matrix<f32>| Mat::<f64>::from_fn(a.nrows(), a.ncols(), |i, j| f64::from(a.row(i)[j]));
    let w = Mat::<f64>::from_fn(m, n, |i, j| w[i * n + j].to_f64());
    let mut u = wide(f.u());
    f.s().iter().enumerate().for_each(|(j, &s)| u.col_mut(j).iter_mut().for_each(|x| *x *= f64::from(s)));
    (&w - u * wide(f.vt())).norm_l2() / w.norm_l2()
}

/// The range at less precision against that in f32: the errors are the same to 1e-4 of themselves, whether the check says
/// that rounding the matrix does no harm or the subspace is improved. Returns whether it was.
fn check_coarse<E: Element>(caller: &Caller, w: &[E], (m, n): (usize, usize), k: usize, what: &str) -> bool {
    let at = caller.upload(w);
    let tensor = caller.tensor::<E>(at, (m, n), (n, 1));
    let svd = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Randomized).seed(9);
    let coarse = svd.factor_device::<f32>(&tensor).unwrap().download().unwrap();
    let precise = svd.precise(true).factor_device::<f32>(&tensor).unwrap().download().unwrap();
    caller.free(at);
    let errors = [&coarse, &precise].map(|f| error_of(w, (m, n), f));
    let improved = coarse.report().notes.iter().any(|note| note.contains("improved"));
    println!("{what} {} {m}×{n}, k = {k}: {:.6} {:.6}, improved: {improved}", E::DTYPE, errors[0], errors[1]);
    assert!(coarse.u() != precise.u(), "{what}: one and the same computation");
    assert!(errors[0] <= errors[1] * (1.0 + 1e-4) + 1e-7, "{what}: {errors:?}");
    let off = (coarse.report().relative_error / errors[0] - 1.0).abs();
    assert!(off < 1e-3 || errors[0] < 1e-2, "{what}: the certificate is off by {off:e}");
    assert_eq!(coarse.report().passes - precise.report().passes, if improved { 3 } else { 0 }, "{what}");
    assert!(precise.report().notes.iter().all(|note| !note.contains("improved")));
    improved
}

#[test]
fn less_precision_costs_no_accuracy() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    // Singular vectors of noise; the spectra of the design.
    let (m, n) = (160, 128);
    let vectors = |rows: usize, seed: u64| {
        let full = TruncatedSvd::new(Rank::Fixed(n)).method(Method::Full);
        let random = elements::<f64>(rows * n, seed);
        full.factor::<f64>(TensorRef::new(&random, &[rows, n]).unwrap()).unwrap().u().clone()
    };
    let (u, v) = (vectors(m, 1), vectors(n, 2));
    type Spectrum = fn(f64) -> f64;
    let spectra: [(&str, Spectrum, [bool; 2]); 4] = [
        ("i^-0.5", |i| i.powf(-0.5), [false, false]),
        ("i^-1", |i| 1.0 / i, [false, false]),
        ("i^-2", |i| i.powi(-2), [true, true]),
        ("exponential", |i| (-i / 10.0).exp(), [false, true]),
    ];
    for (name, sigma, improved) in spectra {
        let mut w = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                w[i * n + j] = (0..n).map(|k| u.row(i)[k] * sigma(k as f64 + 1.0) * v.row(j)[k]).sum::<f64>();
            }
        }
        let stored = |x: &f64| *x as f32;
        for (k, improved) in [16, 60].into_iter().zip(improved) {
            let got = check_coarse(&caller, &w.iter().map(stored).collect::<Vec<_>>(), (m, n), k, name);
            assert_eq!(got, improved, "{name}, k = {k}");
            // A matrix of halves is not rounded.
            assert!(!check_coarse(&caller, &w.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>(), (m, n), k, name));
        }
        assert!(!check_coarse(&caller, &w.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>(), (m, n), 16, name));
    }
    // Where a rounded copy would leave no room for panels there is none.
    let w = weight(300, 200, 5);
    let at = caller.upload(&w);
    let tensor = caller.tensor::<f32>(at, (300, 200), (200, 1));
    let svd = TruncatedSvd::new(Rank::Fixed(8)).method(Method::Randomized);
    let precise = svd.clone().precise(true).factor_device::<f32>(&tensor).unwrap().download().unwrap();
    let coarse = svd.factor_device::<f32>(&tensor).unwrap().download().unwrap();
    device.set_memory_limit(2 * 300 * 200 * 2 - 1);
    let limited = svd.factor_device::<f32>(&tensor).unwrap().download().unwrap();
    device.set_memory_limit(usize::MAX);
    caller.free(at);
    assert!(limited.u() == precise.u() && coarse.u() != precise.u());
    // Real weights, as they are stored and in f32. The elements are the last bytes of their files.
    for (file, m, n) in [("ffn_up", 1536, 384), ("ffn_down", 384, 1536)] {
        let bytes = std::fs::read(format!("{}/tests/data/{file}.npy", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let data = &bytes[bytes.len() - 2 * m * n..];
        let w: Vec<f16> = data.chunks(2).map(|x| f16::from_le_bytes([x[0], x[1]])).collect();
        assert!(!check_coarse(&caller, &w, (m, n), 96, file));
        let single: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        assert!(!check_coarse(&caller, &single, (m, n), 96, file));
    }
}

/// Layers of another type are rounded once; a residual is what the downloaded factors leave.
fn check_layers<E: Element + PartialEq, T: Scalar>(caller: &Caller, shape: (usize, usize), epsilon: f64) {
    let (m, n) = shape;
    let w: Vec<E> = weight(m, n, 31).iter().map(|&x| E::from_f64(f64::from(x))).collect();
    for strides in [(n + 1, 1), (1, m)] {
        let what = format!("{} in {}, strides {strides:?}", E::DTYPE, T::DTYPE);
        let data = laid_out(&w, shape, strides);
        let at = caller.upload(&data);
        let f = TruncatedSvd::new(Rank::Fixed(8)).factor_device::<T>(&caller.tensor::<E>(at, shape, strides)).unwrap();
        let host = f.download().unwrap();
        for split in [Split::Left, Split::Right, Split::Balanced] {
            let (a, b) = f.split::<E>(split).unwrap();
            let (want_a, want_b) = host.split(split);
            let rounded = |x: &[T]| x.iter().map(|x| E::from_f64(Element::to_f64(*x))).collect::<Vec<_>>();
            assert!(a.to_vec().unwrap() == rounded(want_a.as_slice()), "{what}: A, {split:?}");
            assert!(b.to_vec().unwrap() == rounded(want_b.as_slice()), "{what}: B, {split:?}");
            assert_eq!((a.as_tensor().shape(), b.as_tensor().strides()), ((m, 8), (n, 1)));
        }
        f.subtract_from(&mut caller.tensor_mut::<E>(at, shape, strides)).unwrap();
        let rest = caller.read::<E>(at, data.len());
        let approximation = host.reconstruct();
        let largest = w.iter().map(|x| x.to_f64().abs()).fold(0.0, f64::max);
        for i in 0..m {
            for j in 0..n {
                let want = w[i * n + j].to_f64() - approximation.as_slice()[i * n + j].to_f64();
                let got = rest[i * strides.0 + j * strides.1].to_f64();
                let bound = epsilon * want.abs().max(2f64.powi(-14)) + 16.0 * T::EPSILON * largest;
                assert!((got - want).abs() <= bound, "{what}: ({i}, {j}): {got} for {want}");
            }
        }
        let between = (0..rest.len()).filter(|i| data[*i].to_f64().is_nan());
        assert!(between.into_iter().all(|i| rest[i].to_f64().is_nan()), "{what}: between the lines");
        let mut other = caller.tensor_mut::<E>(at, (m - 1, n), strides);
        assert!(matches!(f.subtract_from(&mut other), Err(Error::Shape { .. })));
        drop(f);
        caller.free(at);
    }
}

#[test]
fn layers_and_residuals_of_every_type() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    check_layers::<f32, f32>(&caller, (70, 50), 2f64.powi(-24));
    check_layers::<f16, f32>(&caller, (50, 70), 2f64.powi(-11));
    check_layers::<bf16, f32>(&caller, (70, 50), 2f64.powi(-8));
    check_layers::<f64, f32>(&caller, (70, 50), 2f64.powi(-53));
    check_layers::<f32, f64>(&caller, (70, 50), 2f64.powi(-24));
    // Of 20000 doubles some lie so near to the middle of two halves that floats between would send them astray.
    check_layers::<f16, f64>(&caller, (60, 2500), 2f64.powi(-11));
    check_layers::<bf16, f64>(&caller, (70, 50), 2f64.powi(-8));
    // A product of several blocks, of lines of three kinds.
    let (m, n) = (2200, 1024);
    let lines: Vec<f16> = (0..m * n).map(|i| f16::from_f32([1.0, -2.0, 0.5][i / n % 3])).collect();
    for (shape, strides) in [((m, n), (n, 1)), ((n, m), (1, n))] {
        let at = caller.upload(&lines);
        let f =
            TruncatedSvd::new(Rank::Fixed(1)).factor_device::<f32>(&caller.tensor::<f16>(at, shape, strides)).unwrap();
        f.subtract_from(&mut caller.tensor_mut::<f16>(at, shape, strides)).unwrap();
        assert!(caller.read::<f16>(at, m * n).iter().all(|x| x.to_f32().abs() < 1e-3), "{shape:?}");
        caller.free(at);
    }
    let mut a = DeviceArray::new(&device, &weight(30, 20, 2), 30, 20).unwrap();
    let f = TruncatedSvd::new(Rank::Fixed(20)).factor_device::<f32>(&a.as_tensor()).unwrap();
    // Nothing is left that a subtraction of norms would show: it is measured by probes, on the device.
    let (error, kind) = (f.report().relative_error, f.report().error_kind);
    assert!(error < 1e-5 && matches!(kind, ErrorKind::Estimate { .. }), "{error} {kind:?}");
    f.subtract_from(&mut a.as_tensor_mut()).unwrap();
    assert!(a.to_vec().unwrap().iter().all(|x| x.abs() < 1e-4));
}

#[test]
fn borrowed_matrices_have_views_and_sound_strides() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    let w = weight(80, 60, 4);
    let at = caller.upload(&w);
    let whole = caller.tensor::<f32>(at, (80, 60), (60, 1));
    let part = whole.transpose().submatrix(10..50, 20..70).unwrap();
    assert_eq!((part.shape(), part.strides(), part.dtype()), ((40, 50), (1, 60), tensorslim::DType::F32));
    assert_eq!(part.address(), at + 4 * (20 * 60 + 10));
    let svd = TruncatedSvd::new(Rank::Fixed(5)).method(Method::Randomized);
    let got = svd.factor_device::<f32>(&part).unwrap().download().unwrap();
    let host: Vec<f32> =
        (0..40).flat_map(|i| (0..50).map(move |j| (i, j))).map(|(i, j)| w[(20 + j) * 60 + 10 + i]).collect();
    let want = svd.factor::<f32>(TensorRef::new(&host, &[40, 50]).unwrap()).unwrap();
    assert!(worst(got.s(), want.s()) <= 1e-5);
    for (rows, columns) in [(0..81, 0..60), (0..80, 5..61), (4..4, 0..1)] {
        assert!(matches!(whole.submatrix(rows, columns), Err(Error::Shape { .. })));
    }
    // SAFETY: none of them is used.
    let made =
        |shape, strides| unsafe { DeviceTensor::from_raw(&device, at, shape, strides, tensorslim::DType::F32, 0) };
    for (shape, strides) in [((8, 6), (12, 2)), ((8, 6), (5, 1)), ((8, 6), (1, 7)), ((8, 6), (0, 1)), ((8, 6), (1, 1))]
    {
        assert!(matches!(made(shape, strides), Err(Error::Shape { .. })), "{shape:?} {strides:?}");
    }
    assert!(matches!(made((0, 6), (6, 1)), Err(Error::Empty { .. })));
    for (shape, strides) in [((1, 6), (1, 1)), ((1, 6), (77, 3)), ((8, 1), (5, 1)), ((8, 1), (1, 0)), ((1, 1), (0, 0))]
    {
        assert!(made(shape, strides).is_ok(), "{shape:?} {strides:?}");
    }
    caller.free(at);
}

/// Rules that look at the spectrum, the smallest triplets, values whose squares overflow, and what has no elements.
#[test]
fn rules_and_parts_of_borrowed_matrices_are_those_of_the_host() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    let rules = [
        TruncatedSvd::new(Rank::Energy(0.95)),
        TruncatedSvd::new(Rank::Tolerance(0.1)).method(Method::Randomized),
        TruncatedSvd::new(Rank::Above(0.5)),
        TruncatedSvd::new(Rank::Numerical),
        TruncatedSvd::new(Rank::Fixed(5)).smallest(true),
        TruncatedSvd::new(Rank::Fixed(5)).method(Method::Nystrom),
    ];
    for (m, n) in [(90, 60), (60, 90)] {
        let w = weight(m, n, 12);
        let large: Vec<f32> = w.iter().map(|x| x * 1e30).collect();
        for (svd, w, unit) in rules.iter().map(|svd| (svd, &w, 1.0)).chain([(&rules[0], &large, 1e30)]) {
            let svd = svd.clone().rates(Rates::default()); // one plan for both
            let want = svd.factor::<f32>(TensorRef::new(w, &[m, n]).unwrap()).unwrap();
            let at = caller.upload(w);
            let got = svd.factor_device::<f32>(&caller.tensor::<f32>(at, (m, n), (n, 1))).unwrap().download().unwrap();
            caller.free(at);
            assert_eq!((got.rank(), got.report().method), (want.rank(), want.report().method), "{svd:?} {m}×{n}");
            let largest = f64::from(want.report().spectrum.iter().fold(0.0, |a: f64, &b| a.max(b)) as f32);
            let off = got.s().iter().zip(want.s()).map(|(g, w)| f64::from((g - w).abs())).fold(0.0, f64::max);
            assert!(off <= 1e-5 * largest, "{svd:?} {m}×{n}, unit {unit:e}: {off:e} of {largest:e}");
        }
    }
    let empty = DeviceArray::<f32>::new(&device, &[], 0, 5).unwrap();
    let refused = TruncatedSvd::new(Rank::Fixed(1)).factor_device::<f32>(&empty.as_tensor()).err();
    assert!(matches!(refused, Some(Error::Empty { .. })), "{refused:?}");
}

#[test]
fn calibrated_factors_of_borrowed_matrices_are_those_of_the_host() {
    let _one = one();
    let Some(device) = device() else { return };
    let caller = Caller::new(&device);
    for (m, n) in [(96, 64), (64, 96)] {
        let w = weight(m, n, 8);
        let mut calibration = Calibration::new(n).unwrap();
        calibration.update(&TensorRef::new(&noise(2 * n * n, 6), &[2 * n, n]).unwrap()).unwrap();
        let svd = TruncatedSvd::new(Rank::Quality(0.95)).calibration(&calibration);
        let at = caller.upload(&w);
        let got = svd.factor_device::<f32>(&caller.tensor::<f32>(at, (m, n), (n, 1))).unwrap();
        assert_eq!(got.u().shape(), (m, got.s().len()));
        let (got, want) = (got.download().unwrap(), svd.factor::<f32>(TensorRef::new(&w, &[m, n]).unwrap()).unwrap());
        caller.free(at);
        assert_eq!(got.rank(), want.rank(), "{m}×{n}");
        assert!(worst(got.s(), want.s()) <= 1e-5, "{m}×{n}");
        let outputs = |f: &Factors<f32>| f.report().activation.as_ref().unwrap().relative_error;
        assert!((outputs(&got) / outputs(&want) - 1.0).abs() < 1e-3, "{m}×{n}");
    }
}

#[test]
fn a_batch_comes_out_in_order_and_leaves_nothing() {
    let _one = one();
    let Some(device) = device() else { return };
    let shapes: Vec<(usize, usize)> = (0..20).map(|i| (40 + 3 * i, 90 - 2 * i)).collect();
    let mut weights: Vec<Vec<f32>> = shapes.iter().enumerate().map(|(i, &(m, n))| weight(m, n, i as u64)).collect();
    weights[13][5] = f32::INFINITY;
    let tensors: Vec<TensorRef<'_>> =
        weights.iter().zip(&shapes).map(|(w, &(m, n))| TensorRef::new(w, &[m, n]).unwrap()).collect();
    let svd = TruncatedSvd::new(Rank::Fixed(6)).method(Method::Randomized).seed(3);
    let live = Mock::get().map(|mock| mock.live());
    let results = svd.factor_many_on::<f32>(&device, &tensors);
    assert_eq!(results.len(), 20);
    for (i, (result, tensor)) in results.iter().zip(&tensors).enumerate() {
        match result {
            Ok(f) => {
                let cpu = svd.factor::<f32>(tensor.clone()).unwrap();
                assert!(worst(f.s(), cpu.s()) <= 1e-5, "matrix {i}");
            }
            Err(e) => assert_eq!((i, matches!(e, Error::NotFinite { row: 0, col: 5, .. })), (13, true), "{e}"),
        }
    }
    assert_eq!(device.used_memory(), 0);
    // What was freed is freed when the stream gets there.
    device.synchronize().unwrap();
    if let (Some(mock), Some(before)) = (Mock::get(), live) {
        // Pinned buffers stay with the device: two for the loader, one for this thread.
        assert!(mock.live() <= before + 5, "{} objects were left", mock.live() - before);
        drop(device);
        assert_eq!(mock.live(), 0);
    }
}

#[test]
fn memory_is_limited_and_running_out_is_no_end() {
    let _one = one();
    let Some(device) = device() else { return };
    let w = weight(400, 120, 1);
    let view = view_of(&w, 400, 120);
    let svd = TruncatedSvd::new(Rank::Fixed(8)).method(Method::Randomized);
    let want = svd.factor_operator(&mut Dense::<f32>::new(view, Par::Seq).unwrap()).unwrap();
    // 192 000 bytes of matrix under a limit of 200 000: streamed, and the same singular values.
    device.set_memory_limit(200_000);
    let mut op = DeviceMatrix::<f32>::new(&device, view).unwrap();
    assert!(!op.is_resident());
    device.take_peak_memory();
    let got = svd.factor_operator(&mut op).unwrap();
    assert!(worst(got.s(), want.s()) <= 1e-5);
    assert!(device.take_peak_memory() <= 200_000);
    // Not even tiles and panels fit.
    device.set_memory_limit(20_000);
    let mut op = DeviceMatrix::<f32>::new(&device, view).unwrap();
    let refused = svd.factor_operator(&mut op).err();
    assert!(matches!(refused, Some(Error::Device { fault: DeviceFault::OutOfMemory, .. })), "{refused:?}");
    drop(op);
    assert_eq!(device.used_memory(), 0);
    device.set_memory_limit(usize::MAX);
    let mut op = DeviceMatrix::<f32>::new(&device, view).unwrap();
    assert!(op.is_resident());
    assert!(worst(svd.factor_operator(&mut op).unwrap().s(), want.s()) <= 1e-5);
}

/// Each fault, at moments spread over everything that could have failed: from opening the device to the factors.
const FAULTS: [(Fail, DeviceFault, i64); 3] = [
    (Fail::Allocation, DeviceFault::OutOfMemory, 9),
    (Fail::Launch, DeviceFault::Launch, 9),
    (Fail::Driver, DeviceFault::Lost, 17),
];

#[test]
fn faults_in_the_middle_are_errors_and_leave_nothing() {
    let _one = one();
    let Some(first) = device() else { return };
    let Some(mock) = Mock::get() else { return };
    drop(first);
    assert_eq!(mock.live(), 0);
    let w = weight(90, 40, 2);
    let tensor = || TensorRef::new(&w, &[90, 40]).unwrap();
    // Without a copy of less precision, which is done without where there is no memory for it.
    let svd =
        TruncatedSvd::new(Rank::Fixed(5)).method(Method::Randomized).precise(true).device(tensorslim::Device::Cuda(0));
    let want = svd.factor::<f32>(tensor()).unwrap();
    for (what, fault, moments) in FAULTS {
        Device::close_shared();
        let before = mock.calls(what);
        svd.factor::<f32>(tensor()).unwrap();
        let calls = mock.calls(what) - before;
        assert!(calls >= 3, "{what:?}: {calls} calls");
        let moments = moments.min(calls);
        for moment in 0..moments {
            let after = moment * (calls - 1) / (moments - 1);
            Device::close_shared();
            mock.fail_after(what, after);
            let answer = svd.factor::<f32>(tensor());
            mock.fail_after(what, -1);
            match answer {
                Err(Error::Device { fault: got, ref detail }) => {
                    assert_eq!(got, fault, "{what:?} {after} of {calls}: {detail}");
                }
                // Lost while buffers were freed, the factors at home.
                Ok(f) if matches!(what, Fail::Driver) && moment == moments - 1 => assert_eq!(f.s(), want.s()),
                other => panic!("{what:?} {after} of {calls}: {:?} instead of {fault:?}", other.err()),
            }
            // The same device goes on, or a new one takes its place.
            let device = Device::shared(0).unwrap();
            assert!(!device.is_broken());
            assert_eq!(device.used_memory(), 0, "{what:?} {after} of {calls}");
            drop(device);
            assert_eq!(svd.factor::<f32>(tensor()).unwrap().s(), want.s());
            Device::close_shared();
            assert_eq!(mock.live(), 0, "{what:?} {after} of {calls}");
        }
    }
}

#[test]
fn faults_in_a_batch_are_errors_and_leave_nothing() {
    let _one = one();
    let Some(first) = device() else { return };
    let Some(mock) = Mock::get() else { return };
    drop(first);
    let weights: Vec<Vec<f32>> = (0..20).map(|i| weight(60, 30, i)).collect();
    let tensors: Vec<TensorRef<'_>> = weights.iter().map(|w| TensorRef::new(w, &[60, 30]).unwrap()).collect();
    let svd = TruncatedSvd::new(Rank::Fixed(4)).method(Method::Randomized).precise(true).seed(3);
    for (what, fault, _) in FAULTS {
        let device = Device::try_new(0).unwrap();
        let before = mock.calls(what);
        let whole = svd.factor_many_on::<f32>(&device, &tensors);
        assert!(whole.iter().all(Result::is_ok));
        mock.fail_after(what, (mock.calls(what) - before) / 2);
        let results = svd.factor_many_on::<f32>(&device, &tensors);
        mock.fail_after(what, -1);
        let failed: Vec<usize> = (0..20).filter(|&i| results[i].is_err()).collect();
        for &i in &failed {
            let error = results[i].as_ref().unwrap_err();
            assert!(
                matches!(error, Error::Device { fault: got, .. } if *got == fault),
                "{what:?}, matrix {i}: {error}"
            );
        }
        for i in (0..20).filter(|i| !failed.contains(i)) {
            assert_eq!(results[i].as_ref().unwrap().s(), whole[i].as_ref().unwrap().s());
        }
        // One matrix that did not fit; but all that come after a context is gone.
        match fault {
            DeviceFault::OutOfMemory => assert_eq!(failed.len(), 1, "{failed:?}"),
            _ => assert_eq!(failed, (failed[0]..20).collect::<Vec<_>>()),
        }
        assert!((1..20).contains(&failed[0]), "{what:?}: {failed:?}");
        assert_eq!(device.is_broken(), fault != DeviceFault::OutOfMemory);
        assert_eq!(device.used_memory(), 0);
        drop(device);
        assert_eq!(mock.live(), 0, "{what:?}");
    }
}

#[test]
fn no_kernel_is_without_its_image() {
    assert_eq!(cuda::kernels().count() == 0, cuda::architectures().is_empty() || cuda::kernels().count() == 0);
    if cuda::kernels().count() == 0 {
        let refused = Device::try_new(0).unwrap_err();
        assert!(matches!(refused, Error::Device { fault: DeviceFault::NoKernels, .. }), "{refused}");
        return;
    }
    let names: Vec<&str> = cuda::kernels().map(|(name, _)| name).collect();
    assert_eq!(names, ["cast", "fwht", "norms", "sketch", "whiten"]);
}
