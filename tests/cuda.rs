//! The device modules against the CPU's: on a GPU where there is one, else against the driver of `tests/cuda` if it is in
//! `LD_LIBRARY_PATH` (`.ci/cuda`), else skipped. `REQUIRE_GPU=1` makes a skip a failure.
//!
//! Under that driver kernels run in the emulator, and a race, an access out of bounds or a wrong parameter list fails the test
//! that launched them. Faults and leaks are tested there only.
#![cfg(feature = "cuda")]
#![allow(clippy::print_stdout)] // says why it was skipped

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use faer::{Accum, Mat, MatRef, Par};
use half::{bf16, f16};
use tensorslim::calibration::Calibration;
use tensorslim::cuda::{self, Device, DeviceMatrix, DevicePanel, fwht as device_fwht, solver};
use tensorslim::error::DeviceFault;
use tensorslim::fwht::{fwht_columns, fwht_rows};
use tensorslim::operator::{Dense, LinearOperator};
use tensorslim::rng::Philox;
use tensorslim::sketch::{AnySketch, SketchOperator};
use tensorslim::space::{Access, Effort, HostPanel, Layout, Panel, Side, Space};
use tensorslim::svd::Rates;
use tensorslim::{Element, Matrix};
use tensorslim::{Error, MatMut, MatView, Method, Rank, Scalar, Sketch, TensorRef, TruncatedSvd};

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
        let mut on_device = cuda::fwht::DeviceArray::new(device, &x, m, n).unwrap();
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
    let mut on_device = cuda::fwht::DeviceArray::new(&device, &x, 7, 12 * 64).unwrap();
    let before = on_device.to_vec().unwrap();
    assert_eq!(before, x);
    // H_12 is not symmetric: rows of 2^k only. 7 columns of 768 = 12·64 have H Hᵀ = I by their norms.
    device_fwht::orthonormal_rows(&mut on_device).unwrap();
    let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for (after, before) in on_device.to_vec().unwrap().chunks(768).zip(x.chunks(768)) {
        assert!((norm(after) / norm(before) - 1.0).abs() < 1e-6);
    }
    let x: Vec<f64> = elements(256 * 3, 6);
    let mut on_device = cuda::fwht::DeviceArray::new(&device, &x, 256, 3).unwrap();
    device_fwht::orthonormal_columns(&mut on_device).unwrap();
    device_fwht::orthonormal_columns(&mut on_device).unwrap();
    assert!(relative(&on_device.to_vec().unwrap(), &x) < 1e-14);
    let mut wrong = cuda::fwht::DeviceArray::new(&device, &x, 3, 256).unwrap();
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
    let svd = TruncatedSvd::new(Rank::Fixed(5)).method(Method::Randomized).device(tensorslim::Device::Cuda(0));
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
    let svd = TruncatedSvd::new(Rank::Fixed(4)).method(Method::Randomized).seed(3);
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
