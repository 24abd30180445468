//! The seam between algorithms and data: a second, deliberately odd operator whose panels are split in two halves runs
//! every algorithm unchanged.

use crate::common::*;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use tensorslim::dyn_stack::{MemBuffer, MemStack};
use tensorslim::operator::{Dense, LinearOperator, Panel};
use tensorslim::qr::{self, Orthonormalization};
use tensorslim::sketch::{AnySketch, SketchOperator};
use tensorslim::{Method, Rank, Result, Sketch, TruncatedSvd};

/// A panel whose first rows and last rows live apart.
struct Halves {
    top: Mat<f64>,
    bottom: Mat<f64>,
}

impl Halves {
    fn zeros(rows: usize, l: usize) -> Self {
        let cut = rows / 3;
        Halves { top: Mat::zeros(cut, l), bottom: Mat::zeros(rows - cut, l) }
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
}

impl Panel<f64> for Halves {
    fn nrows(&self) -> usize {
        self.top.nrows() + self.bottom.nrows()
    }

    fn ncols(&self) -> usize {
        self.top.ncols()
    }

    fn multiply(&mut self, accum: Accum, a: &Self, c: MatRef<'_, f64>, alpha: f64) -> Result<()> {
        matmul(self.top.as_mut(), accum, a.top.as_ref(), c, alpha, Par::Seq);
        matmul(self.bottom.as_mut(), accum, a.bottom.as_ref(), c, alpha, Par::Seq);
        Ok(())
    }

    fn inner(&self, other: &Self, mut c: MatMut<'_, f64>) -> Result<()> {
        c.copy_from(self.top.transpose() * &other.top + self.bottom.transpose() * &other.bottom);
        Ok(())
    }

    fn orthonormalize(&mut self, r: Option<MatMut<'_, f64>>) -> Result<Orthonormalization> {
        let mut whole = self.whole();
        let (m, l) = (whole.nrows(), whole.ncols());
        let mut buffer = MemBuffer::new(qr::orthonormalize_scratch::<f64>(m, l, Par::Seq));
        let how = qr::orthonormalize(whole.as_mut(), r, Par::Seq, MemStack::new(&mut buffer))?;
        self.set(whole.as_ref());
        Ok(how)
    }

    fn norm_squared(&self) -> Result<f64> {
        Ok(self.top.squared_norm_l2() + self.bottom.squared_norm_l2())
    }

    fn product_to_host(&self, c: MatRef<'_, f64>, mut dst: MatMut<'_, f64>) -> Result<()> {
        dst.copy_from(self.whole() * c);
        Ok(())
    }

    fn copy_to_host(&self, mut dst: MatMut<'_, f64>) -> Result<()> {
        dst.copy_from(self.whole());
        Ok(())
    }

    fn copy_from_host(&mut self, src: MatRef<'_, f64>) -> Result<()> {
        self.set(src);
        Ok(())
    }
}

/// A matrix whose panels are [`Halves`].
struct Odd {
    a: Mat<f64>,
    passes: usize,
}

impl LinearOperator<f64> for Odd {
    type Left = Halves;
    type Right = Halves;
    type Gram = Odd;

    fn nrows(&self) -> usize {
        self.a.nrows()
    }

    fn ncols(&self) -> usize {
        self.a.ncols()
    }

    fn norm_squared(&self) -> f64 {
        self.a.squared_norm_l2()
    }

    fn left(&self, l: usize) -> Result<Halves> {
        Ok(Halves::zeros(self.a.nrows(), l))
    }

    fn right(&self, l: usize) -> Result<Halves> {
        Ok(Halves::zeros(self.a.ncols(), l))
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

    fn materialize(&mut self, y: &mut Halves) -> Result<()> {
        self.passes += 1;
        y.set(self.a.as_ref());
        Ok(())
    }

    fn gram(&mut self) -> Result<Odd> {
        self.passes += 1;
        Ok(Odd { a: self.a.transpose() * &self.a, passes: 0 })
    }

    fn passes(&self) -> usize {
        self.passes
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
                let f = svd.factor_operator(&mut Odd { a: a.clone(), passes: 0 }).unwrap();
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

#[test]
fn wide_operators_are_refused_with_advice() {
    let error =
        TruncatedSvd::new(Rank::Fixed(2)).factor_operator(&mut Odd { a: Mat::zeros(3, 5), passes: 0 }).unwrap_err();
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
        assert!((op.norm_squared() / truth.squared_norm_l2() - 1.0).abs() < 1e-13, "{name}");
        let (x0, y0) = (gaussian(n, l, 1), gaussian(m, l, 2));
        let (mut x, mut y) = (op.right(l).unwrap(), op.left(l).unwrap());
        x.copy_from_host(x0.as_ref()).unwrap();
        op.apply(&x, &mut y).unwrap();
        let scale = truth.norm_l2() * 1e-14;
        assert!((y.as_ref() - &truth * &x0).norm_l2() <= scale * x0.norm_l2(), "{name} apply");
        y.copy_from_host(y0.as_ref()).unwrap();
        op.apply_adjoint(&y, &mut x).unwrap();
        assert!((x.as_ref() - truth.transpose() * &y0).norm_l2() <= scale * y0.norm_l2(), "{name} adjoint");
        let mut g = op.gram().unwrap();
        let mut panel = g.left(n).unwrap();
        g.materialize(&mut panel).unwrap();
        assert!((panel.as_ref() - truth.transpose() * &truth).norm_l2() <= scale * truth.norm_l2(), "{name} gram");
        let mut all = op.left(n).unwrap();
        op.materialize(&mut all).unwrap();
        assert_eq!(all.as_ref(), truth.as_ref(), "{name} materialize");
        assert_eq!(op.passes(), 4, "{name}");
    }
}

#[test]
fn panels() {
    let a = gaussian(1024, 8, 1);
    let op = Dense::<f64>::new(tensorslim::MatView::F64(a.as_ref()), Par::Seq).unwrap();
    let (a0, b0) = (gaussian(1024, 5, 2), gaussian(1024, 3, 3));
    let (mut a, mut b) = (op.left(5).unwrap(), op.left(3).unwrap());
    a.copy_from_host(a0.as_ref()).unwrap();
    b.copy_from_host(b0.as_ref()).unwrap();
    let mut c = Mat::zeros(5, 3);
    a.inner(&b, c.as_mut()).unwrap();
    assert!((&c - a0.transpose() * &b0).norm_l2() < 1e-11);
    let mut g = Mat::zeros(5, 5);
    a.inner(&a, g.as_mut()).unwrap();
    assert!((&g - a0.transpose() * &a0).norm_l2() < 1e-11);
    b.multiply(Accum::Add, &a, c.as_ref(), -2.0).unwrap();
    assert!((b.as_ref() - (&b0 - &a0 * &c * faer::Scale(2.0))).norm_l2() < 1e-10);
    assert!((a.norm_squared().unwrap() / a0.squared_norm_l2() - 1.0).abs() < 1e-14);
}
