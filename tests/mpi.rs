//! Factorizations on ranks, here the threads of one process: the same bytes for any number of them, whatever the
//! method, and one error for all when one of them fails.
#![cfg(feature = "linalg")]

#[expect(dead_code, reason = "a part of it is used")]
#[path = "common/mod.rs"]
mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use tensorslim::calibration::Calibration;
use tensorslim::mpi::{Alone, Communicator, Threads};
use tensorslim::operator::{RowSource, Watch};
use tensorslim::svd::RankFactors;
use tensorslim::{DType, Element, Error, Matrix, Method, Rank, Result, Scalar, Sketch, TensorRef, TruncatedSvd};

const SIZES: [usize; 4] = [2, 3, 4, 7];

fn part<T: Scalar>(svd: &TruncatedSvd, comm: &dyn Communicator, w: TensorRef<'_>) -> Result<RankFactors<T>> {
    svd.factor_distributed::<T>(comm, &mut { w }, &Watch::default())
}

/// Factors on every number of ranks, and compares all that came out with what one rank gives.
fn same_on_all<T: Scalar>(what: &str, svd: &TruncatedSvd, w: TensorRef<'_>) -> RankFactors<T> {
    let want = part::<T>(svd, &Alone, w.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
    for size in SIZES {
        let parts = Threads::run(size, |comm| part::<T>(svd, comm, w.clone()));
        let mut next = 0;
        for (rank, got) in parts.into_iter().enumerate() {
            let got = got.unwrap_or_else(|e| panic!("{what}, rank {rank} of {size}: {e}"));
            assert_eq!(got.own.start, next);
            next = got.own.end;
            let (own, got, want) = (got.own, &got.factors, &want.factors);
            let (m, n) = (want.u().nrows(), want.vt().ncols());
            let (rows, columns) = if m < n { (0..m, own) } else { (own, 0..n) };
            let equal = got.s() == want.s()
                && *got.u() == Matrix::from_fn(rows.len(), got.rank(), |i, j| want.u().row(rows.start + i)[j])
                && *got.vt() == Matrix::from_fn(got.rank(), columns.len(), |i, j| want.vt().row(i)[columns.start + j]);
            assert!(equal, "{what}: other bytes on rank {rank} of {size}");
            let numbers = |f: &tensorslim::Factors<T>| {
                let report = f.report();
                (report.relative_error, report.norm, report.method, report.passes, report.spectrum.clone())
            };
            assert_eq!(numbers(got), numbers(want), "{what}: rank {rank} of {size}");
            assert_eq!(got.report().activation, want.report().activation, "{what}: rank {rank} of {size}");
        }
        assert_eq!(next, w.shape().iter().copied().max().unwrap());
    }
    want
}

/// A decaying spectrum in a matrix of this shape.
fn decaying(m: usize, n: usize) -> faer::Mat<f64> {
    let spectrum: Vec<f64> = (0..m.min(n)).map(|i| 1.0 / (1.0 + i as f64)).collect();
    with_spectrum(m, n, &spectrum, 3)
}

fn every_method<T: Scalar>(sketches: &[Sketch]) {
    for (m, n) in [(700, 60), (60, 700), (300, 300), (20, 15), (1537, 300)] {
        let a = decaying(m, n);
        let w = rounded::<T>(a.as_ref());
        for method in Method::ALL {
            for &sketch in sketches {
                let svd = TruncatedSvd::new(Rank::Fixed(9)).method(method).sketch(sketch).seed(5);
                let what = format!("{m}×{n} {} {method} {sketch}", T::DTYPE);
                let got = same_on_all::<T>(&what, &svd, w.as_tensor().unwrap());
                let here = svd.factor::<T>(w.as_tensor().unwrap()).unwrap();
                let (error, want) = (true_error(a.as_ref(), &got.factors), true_error(a.as_ref(), &here));
                assert!(error <= 1.02 * want + 64.0 * T::EPSILON, "{what}: {error}, in memory {want}");
            }
        }
    }
}

#[test]
fn the_same_bytes_in_f32() {
    every_method::<f32>(&[Sketch::Srht, Sketch::Gaussian, Sketch::SparseSign]);
}

#[test]
fn the_same_bytes_in_f64() {
    every_method::<f64>(&[Sketch::Srht]);
}

#[test]
fn the_same_bytes_for_ranks_from_the_spectrum_and_for_odd_panels() {
    let a = decaying(900, 130);
    let w = rounded::<f32>(a.as_ref());
    let rules = [Rank::Energy(0.9), Rank::Tolerance(0.1), Rank::Ratio(3.0), Rank::Above(0.2)];
    for rule in rules {
        for method in [Method::Auto, Method::Gram, Method::Randomized] {
            same_on_all::<f32>(
                &format!("{rule} {method}"),
                &TruncatedSvd::new(rule).method(method),
                w.as_tensor().unwrap(),
            );
        }
    }
    let shifted = TruncatedSvd::new(Rank::Fixed(12)).method(Method::Randomized).dynamic_shift(true);
    same_on_all::<f32>("shifted", &shifted, w.as_tensor().unwrap());
    // Columns that depend on each other, so that panels are reflected.
    let low = with_spectrum(500, 80, &[3.0, 2.0, 1.0], 4);
    let w = rounded::<f32>(low.as_ref());
    for method in [Method::Full, Method::Randomized, Method::Krylov, Method::Gram] {
        same_on_all::<f32>(
            &format!("rank 3, {method}"),
            &TruncatedSvd::new(Rank::Fixed(8)).method(method),
            w.as_tensor().unwrap(),
        );
    }
    let zeros = Matrix::<f32>::zeros(300, 20);
    same_on_all::<f32>("zeros", &TruncatedSvd::new(Rank::Fixed(3)), zeros.as_tensor().unwrap());
    let tiny = Matrix::<f32>::from_fn(300, 20, |i, j| 1e-30 * (((i * 7 + j * 13) % 11) as f32 - 5.0));
    same_on_all::<f32>("tiny", &TruncatedSvd::new(Rank::Fixed(3)), tiny.as_tensor().unwrap());
}

#[test]
fn the_same_bytes_of_real_weights_plain_and_calibrated() {
    for (name, m, n, samples) in [("ffn_up", 1536, 384, 1024), ("ffn_down", 384, 1536, 2048)] {
        let (w, x) = (real(name, m, n), real(&format!("{name}_calibration"), samples, n));
        let mut c = Calibration::new(n).unwrap();
        c.update(&x.as_tensor().unwrap()).unwrap();
        for method in [Method::Auto, Method::Randomized, Method::Krylov, Method::SinglePass] {
            let svd = TruncatedSvd::new(Rank::Fixed(48)).method(method);
            same_on_all::<f32>(&format!("{name} {method}"), &svd, w.as_tensor().unwrap());
        }
        let svd = TruncatedSvd::new(Rank::Fixed(48)).calibration(&c);
        let got = same_on_all::<f32>(&format!("{name} calibrated"), &svd, w.as_tensor().unwrap());
        let (loss, here) = (&got.factors, svd.factor::<f32>(w.as_tensor().unwrap()).unwrap());
        let loss_of = |f: &tensorslim::Factors<f32>| f.report().activation.as_ref().unwrap().relative_error;
        assert!((loss_of(loss) / loss_of(&here) - 1.0).abs() < 1e-3, "{name}: {} {}", loss_of(loss), loss_of(&here));
    }
}

#[test]
fn the_same_bytes_under_calibration_by_every_method() {
    for (m, n) in [(700, 60), (60, 400)] {
        let (a, x) = (decaying(m, n), gaussian(3 * n, n, 9));
        let w = rounded::<f32>(a.as_ref());
        let mut c = Calibration::new(n).unwrap();
        c.update(&rounded::<f32>(x.as_ref()).as_tensor().unwrap()).unwrap();
        for method in Method::ALL {
            let svd = TruncatedSvd::new(Rank::Fixed(7)).method(method).calibration(&c);
            same_on_all::<f32>(&format!("{m}×{n} {method} calibrated"), &svd, w.as_tensor().unwrap());
        }
        let svd = TruncatedSvd::new(Rank::Quality(0.9)).calibration(&c);
        same_on_all::<f32>(&format!("{m}×{n} by quality"), &svd, w.as_tensor().unwrap());
        same_on_all::<f32>(
            &format!("{m}×{n} blended"),
            &svd.with_rank(Rank::Energy(0.9)).blend(0.5),
            w.as_tensor().unwrap(),
        );
    }
}

#[test]
fn a_rank_that_reads_again_has_the_same_bytes() {
    let a = rounded::<f32>(decaying(1537, 300).as_ref());
    for method in [Method::Gram, Method::Randomized, Method::SinglePass] {
        let svd = TruncatedSvd::new(Rank::Fixed(9)).method(method);
        let held = same_on_all::<f32>("held", &svd, a.as_tensor().unwrap());
        let limit = least(&svd, a.as_tensor().unwrap());
        let read = same_on_all::<f32>("read", &svd.memory_limit(limit), a.as_tensor().unwrap());
        assert_eq!(held.factors.u(), read.factors.u());
    }
}

/// The least limit with which one rank factors `w`, by reading it again in every pass.
fn least(svd: &TruncatedSvd, w: TensorRef<'_>) -> usize {
    match part::<f32>(&svd.clone().memory_limit(1), &Alone, w) {
        Err(Error::Memory { limit: 1, least }) => least,
        other => panic!("a limit of one byte: {:?}", other.map(|_| ())),
    }
}

/// A matrix of which some lines cannot be read, and some hold a NaN. It knows what it was asked for.
struct Faulty<'a> {
    inner: TensorRef<'a>,
    unreadable: usize,
    reads: AtomicUsize,
    last: usize,
}

impl RowSource for Faulty<'_> {
    fn shape(&self) -> (usize, usize) {
        RowSource::shape(&self.inner)
    }

    fn dtype(&self) -> DType {
        RowSource::dtype(&self.inner)
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()> {
        let rows = dst.len() / (self.shape().1 * self.dtype().size());
        // From the second pass on the last lines are gone.
        let pass = self.reads.fetch_add(rows, Ordering::Relaxed) / self.shape().0.max(1);
        if first + rows > self.unreadable || first + rows > self.last && pass > 0 {
            return Err(Error::File { path: "w.npy".into(), why: "input/output error".into() });
        }
        self.inner.read_rows(first, dst)
    }
}

#[test]
fn a_failure_on_one_rank_is_the_error_of_all() {
    let a = rounded::<f32>(decaying(1000, 40).as_ref());
    let mut holed = a.clone();
    holed.as_mut_slice()[640 * 40 + 7] = f32::NAN;
    for size in [1, 2, 3, 4, 7] {
        for method in [Method::Gram, Method::Randomized, Method::Krylov, Method::SinglePass, Method::Full] {
            let svd = TruncatedSvd::new(Rank::Fixed(5)).method(method);
            let ends = Threads::run(size, |comm| part::<f32>(&svd, comm, holed.as_tensor().unwrap()).map(|_| ()));
            let Err(Error::Remote { rank, what }) = &ends[0] else { panic!("{:?}", ends[0]) };
            assert!(what.contains("element (640, 7) is NaN"), "{what}");
            assert!(*rank < size && ends.iter().all(|end| *end == ends[0]), "{ends:?}");
            let unreadable = |comm: &Threads, limit: usize| {
                let inner = a.as_tensor().unwrap();
                let mut source = Faulty { inner, unreadable: 900, reads: AtomicUsize::new(0), last: 1000 };
                svd.clone()
                    .memory_limit(limit)
                    .factor_distributed::<f32>(comm, &mut source, &Watch::default())
                    .map(|_| ())
            };
            for limit in [1 << 40, least(&svd, a.as_tensor().unwrap())] {
                let ends = Threads::run(size, |comm| unreadable(comm, limit));
                let Err(Error::Remote { what, .. }) = &ends[0] else { panic!("{:?}", ends[0]) };
                assert!(what.contains("w.npy") && ends.iter().all(|end| *end == ends[0]), "{ends:?}");
            }
        }
    }
}

#[test]
fn ranks_that_disagree_or_leave_end_all() {
    let a = rounded::<f32>(decaying(500, 40).as_ref());
    let ends = Threads::run(3, |comm| {
        let svd = TruncatedSvd::new(Rank::Fixed(5)).seed(u64::from(comm.rank() == 2));
        part::<f32>(&svd, comm, a.as_tensor().unwrap()).map(|_| ())
    });
    for end in &ends {
        assert!(matches!(end, Err(Error::Remote { rank: 2, what }) if what.contains("other options")), "{end:?}");
    }
    // A rank that goes away: the others learn of it at their next exchange with it.
    let ends = Threads::run(3, |comm| match comm.rank() {
        1 => Ok(()),
        _ => part::<f32>(&TruncatedSvd::new(Rank::Fixed(5)), comm, a.as_tensor().unwrap()).map(|_| ()),
    });
    assert!(ends[0].is_err() && ends[2].is_err(), "{ends:?}");
    let ends = Threads::run(3, |comm| {
        if comm.rank() == 1 {
            comm.abort("the disk is full");
            return Ok(());
        }
        part::<f32>(&TruncatedSvd::new(Rank::Fixed(5)), comm, a.as_tensor().unwrap()).map(|_| ())
    });
    assert_eq!(ends[0], Err(Error::Remote { rank: 1, what: "the disk is full".into() }));
}

/// The volumes that the papers of communication-avoiding methods count, for P a power of two: a sum of s numbers costs
/// P − 1 messages up the tree and P − 1 back, less than the `P log₂ P` of an all-reduce by recursive doubling.
#[test]
fn the_volume_is_that_of_the_sums() {
    let (m, n, l, q) = (4096, 96, 20, 2);
    let a = rounded::<f32>(decaying(m, n).as_ref());
    let volume = |method: Method, size: usize| {
        let svd = TruncatedSvd::new(Rank::Fixed(10)).method(method).power_iterations(q);
        let parts = Threads::run(size, |comm| part::<f32>(&svd, comm, a.as_tensor().unwrap()).unwrap());
        parts.iter().map(|part| part.traffic.bytes as f64).sum::<f64>()
    };
    for size in [2_usize, 4, 8] {
        let doubling = |numbers: f64| 4.0 * numbers * (size * size.ilog2() as usize) as f64;
        // What benches/peers/mpi_model.py counts: as many messages up as down.
        let tree = |numbers: f64| 4.0 * numbers * (2 * (size - 1)) as f64;
        let gram = doubling((n * (n + 1) / 2) as f64);
        let small = 10.0 * doubling((l * l) as f64) + 40_000.0 * size as f64;
        let got = volume(Method::Gram, size);
        let sum = tree((n * (n + 1) / 2) as f64);
        assert!(
            got >= sum && got <= sum + small && got <= 1.3 * (gram + small),
            "gram on {size}: {got}, one sum is {gram}"
        );
        let panels = doubling(((q + 1) * n * l) as f64);
        // Up to three passes of CholeskyQR for each of the q + 1 panels, with sums in f64.
        let small = 3.0 * (q + 1) as f64 * 2.0 * doubling((l * l) as f64) + 40_000.0 * size as f64;
        let got = volume(Method::Randomized, size);
        let sums = tree(((q + 1) * n * l) as f64);
        assert!(
            got >= sums && got <= sums + small && got <= 1.3 * (panels + small),
            "randomized on {size}: {got}, panels {panels}"
        );
    }
}

#[test]
fn the_parts_of_all_ranks_are_the_factors() {
    for (m, n) in [(900, 130), (130, 900), (40, 20)] {
        let w = rounded::<f32>(decaying(m, n).as_ref());
        let svd = TruncatedSvd::new(Rank::Fixed(12));
        let want = part::<f32>(&svd, &Alone, w.as_tensor().unwrap()).unwrap().factors;
        for size in SIZES {
            let ends = Threads::run(size, |comm| part::<f32>(&svd, comm, w.as_tensor().unwrap()).unwrap().gather(comm));
            for (rank, end) in ends.into_iter().enumerate() {
                let whole = end.unwrap();
                assert_eq!(whole.is_some(), rank == 0);
                if let Some(whole) = whole {
                    assert!(whole.u() == want.u() && whole.s() == want.s() && whole.vt() == want.vt());
                    assert_eq!(whole.truncate(5).unwrap().u(), want.truncate(5).unwrap().u());
                }
            }
        }
    }
}

#[test]
fn what_needs_whole_factors_refuses_a_part() {
    let (a, x) = (rounded::<f32>(decaying(60, 400).as_ref()), gaussian(600, 400, 9));
    let mut c = Calibration::new(400).unwrap();
    c.update(&rounded::<f32>(x.as_ref()).as_tensor().unwrap()).unwrap();
    let svd = TruncatedSvd::new(Rank::Fixed(7)).calibration(&c);
    for got in Threads::run(2, |comm| part::<f32>(&svd, comm, a.as_tensor().unwrap()).unwrap()) {
        assert!(got.factors.truncate(3).unwrap_err().to_string().contains("gather"));
        assert!(got.factors.pivot().unwrap_err().to_string().contains("gather"));
    }
}

#[test]
fn elements_of_every_type_are_read() {
    fn check<E: Element>(a: &faer::Mat<f64>) {
        let w = rounded::<E>(a.as_ref());
        let svd = TruncatedSvd::new(Rank::Fixed(6));
        same_on_all::<f32>(&format!("{}", E::DTYPE), &svd, w.as_tensor().unwrap());
        same_on_all::<f64>(&format!("{}", E::DTYPE), &svd, w.as_tensor().unwrap());
    }
    let a = decaying(300, 50);
    check::<half::f16>(&a);
    check::<half::bf16>(&a);
    check::<f32>(&a);
    check::<f64>(&a);
}
