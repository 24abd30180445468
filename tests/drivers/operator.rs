//! The seam between algorithms and data: a second, deliberately odd space whose panels are split in two halves runs
//! every algorithm unchanged, and counts what crosses its border.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::*;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::ReborrowMut as _;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use tensorslim::dyn_stack::{MemBuffer, MemStack};
use tensorslim::operator::{Dense, Facts, LinearOperator, Symmetric, Whitened};
use tensorslim::qr::{self, Algorithm, GramOf, Orthonormalization, Step};
use tensorslim::sketch::{AnySketch, SketchOperator};
use tensorslim::space::{Access, Effort, Host, HostPanel, Layout, Shared, Side, Space};
use tensorslim::{Method, Rank, Result, Sketch, TruncatedSvd};

/// A panel whose first rows and last rows live apart.
#[derive(Clone)]
struct Halves {
    top: Mat<f64>,
    bottom: Mat<f64>,
}

impl Halves {
    fn zeros(rows: usize, l: usize) -> Self {
        let cut = rows / 3;
        Halves { top: Mat::zeros(cut, l), bottom: Mat::zeros(rows - cut, l) }
    }

    fn nrows(&self) -> usize {
        self.top.nrows() + self.bottom.nrows()
    }

    fn ncols(&self) -> usize {
        self.top.ncols()
    }

    fn whole(&self) -> Mat<f64> {
        let cut = self.top.nrows();
        Mat::from_fn(
            self.nrows(),
            self.ncols(),
            |i, j| if i < cut { self.top[(i, j)] } else { self.bottom[(i - cut, j)] },
        )
    }

    fn set(&mut self, a: MatRef<'_, f64>) {
        let cut = self.top.nrows();
        self.top.copy_from(a.subrows(0, cut));
        self.bottom.copy_from(a.subrows(cut, a.nrows() - cut));
    }

    fn step(&mut self, step: Step<'_, f64>) -> Result<bool> {
        match step {
            Step::Gram { of: GramOf::Sketch | GramOf::NarrowSketch, .. } => return Ok(false),
            Step::Gram { divisor, mut gram, .. } => {
                if let Some(divisor) = divisor {
                    self.divide(divisor);
                }
                gram.copy_from(self.top.transpose() * &self.top + self.bottom.transpose() * &self.bottom);
            }
            Step::Divide { divisor, beside } => {
                self.divide(divisor);
                beside();
            }
            Step::Equilibrate { exponents } => {
                let mut whole = self.whole();
                for (j, e) in exponents.iter_mut().enumerate() {
                    let largest = whole.col(j).norm_max();
                    if largest > 0.0 {
                        *e = largest.log2().floor() as i32;
                        whole.col_mut(j).iter_mut().for_each(|x| *x *= 2f64.powi(-*e));
                    }
                }
                self.set(whole.as_ref());
                return Ok((0..whole.ncols()).all(|j| whole.col(j).norm_max() > 0.0));
            }
            Step::Reflect { r, algorithm } => {
                let mut whole = self.whole();
                let (m, l) = whole.shape();
                let mut buffer = MemBuffer::new(qr::orthonormalize_scratch::<f64>(m, l, Par::Seq));
                qr::orthonormalize(whole.as_mut(), Some(r), Par::Seq, MemStack::new(&mut buffer))?;
                self.set(whole.as_ref());
                *algorithm = Algorithm::Householder;
            }
        }
        Ok(true)
    }

    fn divide(&mut self, divisor: MatRef<'_, f64>) {
        solve_lower_triangular_in_place(divisor, self.top.as_mut().transpose_mut(), Par::Seq);
        solve_lower_triangular_in_place(divisor, self.bottom.as_mut().transpose_mut(), Par::Seq);
    }
}

/// The space of such panels. It counts the numbers that leave it.
#[derive(Clone, Default)]
struct Apart {
    home: Arc<AtomicUsize>,
}

impl Apart {
    fn count(&self, shape: (usize, usize)) {
        self.home.fetch_add(shape.0 * shape.1, Ordering::Relaxed);
    }

    /// What has come home since this was last asked.
    fn take_home(&self) -> usize {
        self.home.swap(0, Ordering::Relaxed)
    }
}

impl Space<f64> for Apart {
    type Panel = Halves;

    fn panel(&self, nrows: usize, ncols: usize, _: Layout) -> Result<Halves> {
        Ok(Halves::zeros(nrows, ncols))
    }

    fn shape(&self, y: &Halves) -> (usize, usize) {
        (y.nrows(), y.ncols())
    }

    fn visit(&self, y: &mut Halves, access: Access, f: &mut dyn FnMut(MatMut<'_, f64>)) -> Result<()> {
        let nothing = |y: &Halves| Mat::from_fn(y.nrows(), y.ncols(), |_, _| f64::NAN);
        if access == Access::Read {
            self.count((y.nrows(), y.ncols()));
            let mut whole = y.whole();
            f(whole.as_mut());
            y.set(nothing(y).as_ref());
            return Ok(());
        }
        let mut whole = nothing(y);
        f(whole.as_mut());
        y.set(whole.as_ref());
        Ok(())
    }

    fn download(&self, y: &Halves, mut dst: MatMut<'_, f64>) -> Result<()> {
        self.count(dst.shape());
        dst.copy_from(y.whole());
        Ok(())
    }

    fn trim(&self) {}

    fn multiply(&self, y: &mut Halves, accum: Accum, a: &Halves, c: MatRef<'_, f64>, alpha: f64) -> Result<()> {
        matmul(y.top.as_mut(), accum, a.top.as_ref(), c, alpha, Par::Seq);
        matmul(y.bottom.as_mut(), accum, a.bottom.as_ref(), c, alpha, Par::Seq);
        Ok(())
    }

    fn multiply_in_place(&self, y: &mut Halves, c: MatRef<'_, f64>) -> Result<()> {
        *y = Halves { top: &y.top * c, bottom: &y.bottom * c };
        Ok(())
    }

    fn multiply_to_host(&self, a: &Halves, c: MatRef<'_, f64>, mut dst: MatMut<'_, f64>) -> Result<()> {
        self.count(dst.shape());
        dst.copy_from(a.whole() * c);
        Ok(())
    }

    fn multiply_panels(&self, side: Side, a: &Halves, b: &Halves, y: &mut Halves) -> Result<()> {
        let product = match side {
            Side::Plain => a.whole() * b.whole(),
            Side::Adjoint => a.top.transpose() * &b.top + a.bottom.transpose() * &b.bottom,
        };
        y.set(product.as_ref());
        Ok(())
    }

    fn inner(&self, a: &Halves, b: &Halves, mut c: MatMut<'_, f64>) -> Result<()> {
        self.count(c.shape());
        c.copy_from(a.top.transpose() * &b.top + a.bottom.transpose() * &b.bottom);
        Ok(())
    }

    fn gram(&self, y: &Halves, c: MatMut<'_, f64>) -> Result<()> {
        self.inner(y, y, c)
    }

    fn orthonormalize(&self, y: &mut Halves, r: Option<MatMut<'_, f64>>, _: Effort) -> Result<Orthonormalization> {
        let (m, l) = (y.nrows(), y.ncols());
        let mut steps = |step: Step<'_, f64>, _: &mut MemStack| {
            if let Step::Gram { .. } | Step::Reflect { .. } = step {
                self.count((l, l));
            }
            y.step(step)
        };
        qr::orthonormalize_by((m, l), &mut steps, r, Par::Seq)
    }

    fn symmetric_eigen(&self, _: MatRef<'_, f64>) -> Result<Option<(Vec<f64>, Mat<f64>)>> {
        Ok(None)
    }

    fn copy_columns(&self, y: &mut Halves, first: usize, x: &Halves) -> Result<()> {
        y.top.as_mut().subcols_mut(first, x.ncols()).copy_from(&x.top);
        y.bottom.as_mut().subcols_mut(first, x.ncols()).copy_from(&x.bottom);
        Ok(())
    }

    fn axpy(&self, y: &mut Halves, alpha: f64, x: &Halves) -> Result<()> {
        y.top += &x.top * faer::Scale(alpha);
        y.bottom += &x.bottom * faer::Scale(alpha);
        Ok(())
    }

    fn dot(&self, x: &Halves, y: &Halves) -> Result<f64> {
        let products = |x: &Mat<f64>, y: &Mat<f64>| {
            (0..x.ncols()).map(|j| x.col(j).iter().zip(y.col(j).iter()).map(|(x, y)| x * y).sum::<f64>()).sum::<f64>()
        };
        Ok(products(&x.top, &y.top) + products(&x.bottom, &y.bottom))
    }

    fn trace(&self, y: &Halves) -> Result<f64> {
        let whole = y.whole();
        Ok((0..y.ncols()).map(|i| whole[(i, i)]).sum())
    }

    fn sketch(&self, g: &mut Halves, shift: f64, omega: &AnySketch, y: &mut Halves) -> Result<()> {
        let omega = omega.to_dense::<f64>();
        y.set((g.whole() * &omega - &omega * faer::Scale(shift)).as_ref());
        Ok(())
    }

    fn shared(&self) -> Option<&dyn Shared<f64, Halves>> {
        None
    }
}

/// A matrix whose panels are [`Halves`].
struct Odd {
    a: Mat<f64>,
    space: Apart,
    passes: usize,
}

impl Odd {
    fn new(a: Mat<f64>) -> Self {
        Odd { a, space: Apart::default(), passes: 0 }
    }
}

impl LinearOperator<f64> for Odd {
    type Space = Apart;

    fn space(&self) -> &Apart {
        &self.space
    }

    fn facts(&self) -> Facts {
        let norm_squared = self.a.squared_norm_l2();
        Facts { shape: self.a.shape(), norm_squared, scale: 1.0, passes: self.passes, image: Layout::Rows }
    }

    fn apply(&mut self, x: &Halves, y: &mut Halves) -> Result<()> {
        self.passes += 1;
        y.set((&self.a * x.whole()).as_ref());
        Ok(())
    }

    fn apply_adjoint(&mut self, y: &Halves, x: &mut Halves) -> Result<()> {
        self.passes += 1;
        x.set((self.a.transpose() * y.whole()).as_ref());
        Ok(())
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut Halves) -> Result<()> {
        self.passes += 1;
        y.set((&self.a * omega.to_dense::<f64>()).as_ref());
        Ok(())
    }

    fn gram(&mut self) -> Result<Symmetric<f64, Apart>> {
        self.passes += 1;
        let mut g = Halves::zeros(self.a.ncols(), self.a.ncols());
        g.set((self.a.transpose() * &self.a).as_ref());
        Symmetric::new(&self.space, g)
    }

    fn congruence(&mut self, s: &Halves, g: &mut Halves) -> Result<()> {
        self.passes += 1;
        let (s, n) = (s.whole(), s.ncols());
        let s = Mat::from_fn(n, n, |i, j| s[(i.max(j), i.min(j))]);
        g.set((self.a.transpose() * s * &self.a).as_ref());
        Ok(())
    }

    fn materialize(&mut self, y: &mut Halves) -> Result<()> {
        self.passes += 1;
        y.set(self.a.as_ref());
        Ok(())
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, f64>) -> Result<()>) -> Result<()> {
        self.passes += 1;
        f(0, self.a.as_ref())
    }
}

#[test]
fn every_algorithm_runs_on_the_odd_operator() {
    let spectrum: Vec<f64> = (0..60).map(|i| 1.0 / (f64::from(i) + 1.0)).collect();
    let a = with_spectrum(170, 60, &spectrum, 13);
    let w = rounded::<f64>(a.as_ref());
    for rank in [Rank::Fixed(12), Rank::Ratio(3.0), Rank::Energy(0.9), Rank::Tolerance(0.2)] {
        for method in Method::ALL {
            for sketch in [Sketch::Gaussian, Sketch::Srht, Sketch::SparseSign] {
                let svd = TruncatedSvd::new(rank).method(method).sketch(sketch).seed(5).max_rank(40);
                let f = svd.factor_operator(&mut Odd::new(a.clone())).unwrap();
                let g = svd.factor::<f64>(w.as_tensor().unwrap()).unwrap();
                let what = format!("{rank}, {method}, {sketch}");
                assert_eq!(
                    (f.rank(), f.report().method, f.report().passes),
                    (g.rank(), g.report().method, g.report().passes),
                    "{what}"
                );
                for (s, t) in f.s().iter().zip(g.s()) {
                    assert!((s - t).abs() <= 1e-13, "{what}: {s} {t}");
                }
                // The same subspaces, whatever the storage of the panels: U Σ Vᵀ agrees.
                let apart = (exact(&f.reconstruct()) - exact(&g.reconstruct())).norm_l2();
                assert!(apart <= 1e-11, "{what}: {apart:e}");
                assert!((f.report().relative_error - g.report().relative_error).abs() <= 1e-12, "{what}");
            }
        }
    }
}

/// Of a matrix much longer than its panels are wide, what comes home is the factors and a number of l × l matrices that does not depend on
/// its length. (The method that looks once is fed the matrix itself, and `full` has panels of all columns.)
#[test]
fn only_small_matrices_and_the_factors_come_home() {
    let spectrum: Vec<f64> = (0..160).map(|i| (1.0 + f64::from(i)).powf(-0.8)).collect();
    for method in [Method::Gram, Method::Randomized, Method::Krylov] {
        for rank in [Rank::Fixed(12), Rank::Energy(0.6)] {
            let small = [600, 2400].map(|m| {
                let mut op = Odd::new(with_spectrum(m, 160, &spectrum, 13));
                let f = TruncatedSvd::new(rank).method(method).seed(5).max_rank(20).factor_operator(&mut op).unwrap();
                let (k, l) = (f.rank(), f.rank() + f.report().oversample);
                // All vectors of the Gram matrix are looked for where the rank is not known.
                let dense = method == Method::Gram && rank != Rank::Fixed(12);
                let width = if method == Method::Krylov { 2 * l } else { l };
                let small = op.space.take_home() - k * (m + 160);
                let most = if dense { 160 * 160 + 24 * l * l } else { 24 * width * width };
                assert!(small <= most, "{method}, {rank}: {small} numbers besides the factors, l = {l}");
                (k, small)
            });
            assert_eq!(small[0], small[1], "{method}, {rank}: longer columns come home");
        }
    }
}

/// Under calibration the same, on both sides, with the seam between weight and root.
#[test]
fn weighted_operators_run_in_the_odd_space() {
    let spectrum: Vec<f64> = (0..60).map(|i| 1.0 / (f64::from(i) + 1.0)).collect();
    let w = with_spectrum(170, 60, &spectrum, 13);
    for wide in [false, true] {
        // W is 170 × 60, or its transpose with 170 inputs.
        let n = if wide { 170 } else { 60 };
        let root = Mat::from_fn(n, n, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 1.0 + (i % 5) as f64,
            std::cmp::Ordering::Greater => ((i * 31 + j * 17) % 13) as f64 / 130.0,
        });
        let moments = &root * root.transpose();
        let diagonal: Vec<f64> = (0..n).map(|i| moments[(i, i)]).collect();
        // The operator is W L of a tall W, and (W L)ᵀ = Lᵀ Wᵀ of a wide one.
        let whole = if wide { root.transpose() * &w } else { &w * &root };
        let norm = whole.squared_norm_l2();
        for given in [false, true] {
            for method in [Method::Full, Method::Gram, Method::Randomized, Method::Krylov, Method::SinglePass] {
                let mut weight = Odd::new(w.clone());
                let space = weight.space.clone();
                let odd_root = Odd { a: root.clone(), space: space.clone(), passes: 0 };
                let mut write = |mut dst: MatMut<'_, f64>| {
                    dst.rb_mut().copy_from(moments.as_ref());
                    (0..n).for_each(|j| dst.rb_mut().col_mut(j).subrows_mut(0, j).fill(0.0));
                };
                let make = || Ok((Box::new(odd_root) as Box<dyn LinearOperator<f64, Space = Apart>>, Vec::new()));
                let given = given.then_some((&mut write as &mut dyn FnMut(MatMut<'_, f64>), diagonal.as_slice()));
                let mut op = Whitened::new(&mut weight, wide, make, given).unwrap();
                assert!((op.norm_squared() / norm - 1.0).abs() < 1e-12, "{method}, wide: {wide}");
                let svd = TruncatedSvd::new(Rank::Fixed(12)).method(method).seed(5);
                let f = svd.factor_operator(&mut op).unwrap();
                let g = svd.factor_operator(&mut Odd::new(whole.to_owned())).unwrap();
                let apart = (exact(&f.reconstruct()) - exact(&g.reconstruct())).norm_l2() / norm.sqrt();
                assert!(apart <= 1e-10, "{method}, wide: {wide}: {apart:e}");
                // Aᵀ S A, of which nothing above asks of a weighted operator.
                let (m, n) = op.facts().shape;
                let s = Mat::from_fn(m, m, |i, j| ((i.max(j) * 7 + i.min(j) * 3) % 11) as f64 / 10.0);
                let (mut lower, mut got) = (Halves::zeros(m, m), Halves::zeros(n, n));
                lower.set(Mat::from_fn(m, m, |i, j| if i >= j { s[(i, j)] } else { f64::NAN }).as_ref());
                op.congruence(&lower, &mut got).unwrap();
                let want = whole.transpose() * &s * &whole;
                assert!((got.whole() - &want).norm_l2() <= 1e-12 * want.norm_l2(), "{method}, wide: {wide}");
            }
        }
    }
}

#[test]
fn wide_operators_are_refused_with_advice() {
    let error = TruncatedSvd::new(Rank::Fixed(2)).factor_operator(&mut Odd::new(Mat::zeros(3, 5))).unwrap_err();
    assert!(error.to_string().contains("transpose"), "{error}");
}

/// Every product of `Dense` against faer in f64, over storage types, orientations and strides that take each path.
#[test]
fn dense_products() {
    let (m, n, l) = (211, 67, 9);
    let a = gaussian(m, n, 17);
    let w16 = rounded::<half::f16>(a.as_ref());
    let truth = exact(&w16);
    let w64 = rounded::<f64>(truth.as_ref());
    let column_major = truth.clone();
    let views = [
        ("f16 rows", w16.as_tensor().unwrap().view().unwrap()),
        ("f64 rows", w64.as_tensor().unwrap().view().unwrap()),
        ("f64 columns", tensorslim::MatView::F64(column_major.as_ref())),
    ];
    for (name, view) in views {
        let mut op = Dense::<f64>::new(view, Par::Seq).unwrap();
        assert!((op.facts().norm_squared / truth.squared_norm_l2() - 1.0).abs() < 1e-13, "{name}");
        let (x0, y0) = (gaussian(n, l, 1), gaussian(m, l, 2));
        let space = op.space().clone();
        let panel = |nrows, ncols| HostPanel::<f64>::zeros(nrows, ncols, &space);
        let (mut x, mut y) = (panel(n, l), panel(m, l));
        x.as_mut().copy_from(&x0);
        op.apply(&x, &mut y).unwrap();
        let scale = truth.norm_l2() * 1e-14;
        assert!((y.as_ref() - &truth * &x0).norm_l2() <= scale * x0.norm_l2(), "{name} apply");
        y.as_mut().copy_from(&y0);
        op.apply_adjoint(&y, &mut x).unwrap();
        assert!((x.as_ref() - truth.transpose() * &y0).norm_l2() <= scale * y0.norm_l2(), "{name} adjoint");
        let g = op.gram().unwrap();
        assert!((g.panel().as_ref() - truth.transpose() * &truth).norm_l2() <= scale * truth.norm_l2(), "{name} gram");
        let mut all = panel(m, n);
        op.materialize(&mut all).unwrap();
        assert_eq!(all.as_ref(), truth.as_ref(), "{name} materialize");
        assert_eq!(op.facts().passes, 4, "{name}");
    }
}

/// Every method of the reference against its definition.
#[test]
fn panels_in_memory() {
    let space = Host::new(Par::Seq);
    let (m, l) = (1024, 5);
    let of = |a: &Mat<f64>, layout| {
        let mut panel: HostPanel<f64> = space.panel(a.nrows(), a.ncols(), layout).unwrap();
        space.visit(&mut panel, Access::Write, &mut |mut dst| dst.copy_from(a)).unwrap();
        panel
    };
    let (a0, b0, square0) = (gaussian(m, l, 2), gaussian(m, 3, 3), gaussian(l, l, 4));
    let symmetric = &square0 + square0.transpose();
    for layout in [Layout::Columns, Layout::Rows] {
        let (a, mut b) = (of(&a0, layout), of(&b0, layout));
        assert_eq!(space.shape(&a), (m, l));
        let mut c = Mat::zeros(l, 3);
        space.inner(&a, &b, c.as_mut()).unwrap();
        assert!((&c - a0.transpose() * &b0).norm_l2() < 1e-11);
        let mut g = Mat::zeros(l, l);
        space.inner(&a, &a, g.as_mut()).unwrap();
        assert!((&g - a0.transpose() * &a0).norm_l2() < 1e-11);
        let mut wide = Mat::<f64>::zeros(l, l);
        space.gram(&a, wide.as_mut()).unwrap();
        assert!((0..l).all(|j| (j..l).all(|i| (wide[(i, j)] - g[(i, j)]).abs() < 1e-11)));
        let mut in_space = of(&square0, Layout::Columns);
        space.multiply_panels(Side::Adjoint, &a, &a, &mut in_space).unwrap();
        assert_eq!(in_space.as_ref(), g.as_ref());
        space.multiply(&mut b, Accum::Add, &a, c.as_ref(), -2.0).unwrap();
        assert!((b.as_ref() - (&b0 - &a0 * &c * faer::Scale(2.0))).norm_l2() < 1e-10);
        let mut home = Mat::zeros(m, 3);
        space.multiply_to_host(&a, c.as_ref(), home.as_mut()).unwrap();
        assert!((&home - &a0 * &c).norm_l2() < 1e-10);
        let mut in_place = of(&a0, layout);
        space.multiply_in_place(&mut in_place, c.as_ref()).unwrap();
        assert_eq!(space.shape(&in_place), (m, 3));
        assert!((in_place.as_ref() - &home).norm_l2() < 1e-10);
        let s = of(&symmetric, Layout::Columns);
        let x = of(&gaussian(l, 2, 6), layout);
        let mut y = of(&gaussian(l, 2, 7), layout);
        space.multiply_panels(Side::Plain, &s, &x, &mut y).unwrap();
        assert!((y.as_ref() - &symmetric * x.as_ref()).norm_l2() < 1e-12);
        assert!((space.trace(&s).unwrap() - (0..l).map(|i| symmetric[(i, i)]).sum::<f64>()).abs() < 1e-12);
        let mut sum = of(&a0, layout);
        space.axpy(&mut sum, 0.5, &a).unwrap();
        assert!((sum.as_ref() - &a0 * faer::Scale(1.5)).norm_l2() < 1e-12);
        assert!((space.dot(&a, &sum).unwrap() / (1.5 * a0.squared_norm_l2()) - 1.0).abs() < 1e-13);
        assert!((space.dot(&a, &a).unwrap() / a0.squared_norm_l2() - 1.0).abs() < 1e-14);
        let mut both = of(&gaussian(m, 8, 8), layout);
        space.copy_columns(&mut both, 0, &a).unwrap();
        space.copy_columns(&mut both, l, &of(&b0, layout)).unwrap();
        assert_eq!((both.as_ref().subcols(0, l), both.as_ref().subcols(l, 3)), (a0.as_ref(), b0.as_ref()));
        let mut q = of(&a0, layout);
        let mut r = Mat::zeros(l, l);
        space.orthonormalize(&mut q, Some(r.as_mut()), Effort::LittleMemory).unwrap();
        assert!((q.as_ref() * &r - &a0).norm_l2() < 1e-12);
        let mut gram = Mat::<f64>::zeros(l, l);
        space.visit(&mut q, Access::Read, &mut |q| gram = q.as_ref().transpose() * q.as_ref()).unwrap();
        assert!((&gram - Mat::<f64>::identity(l, l)).norm_l2() < 1e-13);
    }
}

/// The two traits of the seam have 28 methods at most, none of them with a body that would hide that an implementation is missing.
#[test]
fn the_seam_is_narrow_and_nothing_in_it_is_optional() {
    let methods = |source: &str, name: &str| {
        let start = source.find(&format!("pub trait {name}<")).expect(name);
        let body = &source[start..][..source[start..].find("\n}\n").expect("the end of a trait")];
        let declared: Vec<&str> = body.split("\n    fn ").skip(1).collect();
        for method in &declared {
            let end = method.find([';', '{']).expect("a declaration");
            assert!(method[end..].starts_with(';'), "{name}::{} has a default", &method[..end]);
        }
        declared.len()
    };
    let space = methods(include_str!("../../src/space/mod.rs"), "Space");
    let operator = methods(include_str!("../../src/operator/mod.rs"), "LinearOperator");
    assert!(space > 0 && operator > 0 && space + operator <= 28, "{space} and {operator} methods");
}
