//! Factors a matrix that is known by its products alone: a weight and its adapter, `A = W + B C`, which is never formed where a
//! product will do.
#![allow(clippy::print_stdout)] // an example says what it found

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef};
use tensorslim::operator::{Facts, LinearOperator, Symmetric};
use tensorslim::rng::{Philox, stream};
use tensorslim::space::{Host, HostPanel, Layout, Side, Space};
use tensorslim::{AnySketch, Method, Par, Rank, Result, SketchOperator, TruncatedSvd};

/// `W + B C`, with `W` of `m × n`, `B` of `m × r` and `C` of `r × n`.
struct Adapted {
    w: Mat<f64>,
    b: Mat<f64>,
    c: Mat<f64>,
    space: Host,
    norm_squared: f64,
    passes: usize,
}

impl Adapted {
    fn new(w: Mat<f64>, b: Mat<f64>, c: Mat<f64>) -> Self {
        // ‖W + BC‖² = ‖W‖² + 2 tr(Cᵀ(BᵀW)) + ‖BC‖², r columns at a time.
        let (bw, bb, cc) = (b.transpose() * &w, b.transpose() * &b, &c * c.transpose());
        let dot = |x: &Mat<f64>, y: &Mat<f64>| (x.transpose() * y).diagonal().column_vector().iter().sum::<f64>();
        let norm_squared = w.squared_norm_l2() + 2.0 * dot(&c, &bw) + dot(&bb, &cc);
        Adapted { w, b, c, space: Host::new(Par::Seq), norm_squared, passes: 0 }
    }

    fn whole(&self) -> Mat<f64> {
        &self.w + &self.b * &self.c
    }
}

/// `y <- y + a x`.
fn add(mut y: MatMut<'_, f64>, a: MatRef<'_, f64>, x: MatRef<'_, f64>) {
    matmul(y.as_mut(), Accum::Add, a, x, 1.0, Par::Seq);
}

impl LinearOperator<f64> for Adapted {
    type Space = Host;

    fn space(&self) -> &Host {
        &self.space
    }

    fn facts(&self) -> Facts {
        Facts {
            shape: self.w.shape(),
            norm_squared: self.norm_squared,
            scale: 1.0,
            passes: self.passes,
            image: Layout::Columns,
        }
    }

    fn apply(&mut self, x: &HostPanel<f64>, y: &mut HostPanel<f64>) -> Result<()> {
        self.passes += 1;
        y.as_mut().copy_from(&self.w * x.as_ref());
        add(y.as_mut(), self.b.as_ref(), (&self.c * x.as_ref()).as_ref());
        Ok(())
    }

    fn apply_adjoint(&mut self, y: &HostPanel<f64>, x: &mut HostPanel<f64>) -> Result<()> {
        self.passes += 1;
        x.as_mut().copy_from(self.w.transpose() * y.as_ref());
        add(x.as_mut(), self.c.transpose(), (self.b.transpose() * y.as_ref()).as_ref());
        Ok(())
    }

    fn sketch(&mut self, omega: &AnySketch, y: &mut HostPanel<f64>) -> Result<()> {
        self.passes += 1;
        omega.apply(self.w.as_ref(), y.as_mut(), Par::Seq)?;
        let mut image = Mat::zeros(self.c.nrows(), omega.ncols());
        omega.apply(self.c.as_ref(), image.as_mut(), Par::Seq)?;
        add(y.as_mut(), self.b.as_ref(), image.as_ref());
        Ok(())
    }

    fn materialize(&mut self, y: &mut HostPanel<f64>) -> Result<()> {
        self.passes += 1;
        y.as_mut().copy_from(self.whole());
        Ok(())
    }

    fn gram(&mut self) -> Result<Symmetric<f64, Host>> {
        let (m, n) = self.w.shape();
        let mut a = self.space.panel(m, n, Layout::Columns)?;
        self.materialize(&mut a)?;
        let mut g = self.space.panel(n, n, Layout::Columns)?;
        self.space.multiply_panels(Side::Adjoint, &a, &a, &mut g)?;
        Symmetric::new(&self.space, g)
    }

    fn congruence(&mut self, s: &HostPanel<f64>, g: &mut HostPanel<f64>) -> Result<()> {
        self.passes += 1;
        let (a, s) = (self.whole(), s.as_ref());
        let s = Mat::from_fn(s.nrows(), s.ncols(), |i, j| s[(i.max(j), i.min(j))]);
        g.as_mut().copy_from(a.transpose() * (s * &a));
        Ok(())
    }

    fn for_each_row_block(&mut self, f: &mut dyn FnMut(usize, MatRef<'_, f64>) -> Result<()>) -> Result<()> {
        self.passes += 1;
        f(0, self.whole().as_ref())
    }
}

fn main() -> Result<()> {
    let (m, n, r, k) = (400, 150, 4, 20);
    let w = Mat::from_fn(m, n, |i, j| normals(i * n + j, 1) / (1.0 + j as f64));
    let b = Mat::from_fn(m, r, |i, j| normals(i * r + j, 2));
    let c = Mat::from_fn(r, n, |i, j| 0.2 * normals(i * n + j, 3));
    let mut op = Adapted::new(w, b, c);
    let whole = op.whole();

    let f = TruncatedSvd::new(Rank::Fixed(k)).method(Method::Randomized).factor_operator::<f64, _>(&mut op)?;
    let report = f.report();
    println!("relative error {:.4} ({}) in {} passes", report.relative_error, report.error_kind, report.passes);

    // The singular values of the matrix, had it been formed.
    let sigma = whole.singular_values().expect("a finite matrix");
    let best = (sigma[k..].iter().map(|s| s * s).sum::<f64>() / sigma.iter().map(|s| s * s).sum::<f64>()).sqrt();
    assert!((f.s()[0] / sigma[0] - 1.0).abs() < 1e-6);
    assert!(report.relative_error < 1.02 * best, "{} {best}", report.relative_error);
    Ok(())
}

/// The `index`-th normal of a seed.
fn normals(index: usize, seed: u64) -> f64 {
    f64::from(Philox::new(seed, stream::DATA).normal_block(index as u64 / 4)[index % 4])
}
