//! Prices the steps that methods are made of, in seconds: work over the measured rates.

use super::rates::Rates;
use super::task::Task;
use crate::tensor::DType;

/// The steps of a factorization with panels of `l` columns, of which k are kept. Sizes are in floating point; the rates
/// of products, sketches and copies are halved in f64.
pub(super) struct Work<'a> {
    pub(super) task: &'a Task,
    pub(super) rates: Rates,
    pub(super) m: f64,
    pub(super) n: f64,
    /// Columns of the panels, as a float and as an integer.
    pub(super) l: f64,
    pub(super) width: usize,
    pub(super) k: f64,
    /// The factor for slower arithmetic: 2 in f64, 1 in f32.
    slow: f64,
}

impl<'a> Work<'a> {
    /// Makes the work of `task` with panels of `width` columns.
    pub(super) fn new(task: &'a Task, width: usize) -> Self {
        let (m, n) = task.tall();
        let k = width.saturating_sub(task.oversample).max(1) as f64;
        let slow = if task.precision == DType::F64 { 2.0 } else { 1.0 };
        Work { task, rates: task.rates, m: m as f64, n: n as f64, l: width as f64, width, k, slow }
    }

    /// Prices `flops` flops of GEMM.
    pub(super) fn flops(&self, flops: f64) -> f64 {
        self.slow * flops / self.rates.gemm
    }

    /// Prices copying `elements` elements into fresh memory.
    pub(super) fn copy(&self, elements: f64) -> f64 {
        self.slow * elements / self.rates.copy
    }

    /// Prices a `rows × cols` matrix times a panel of `l` columns.
    pub(super) fn product(&self, rows: f64, cols: f64, l: f64) -> f64 {
        let elements = self.slow * rows * cols;
        let from_memory = if elements > self.rates.cache { elements / self.rates.memory } else { 0.0 };
        // The root of the long side stands beside the weight in each product with it.
        let root = if self.task.two_sided && rows == self.m { self.flops(rows * rows * l) } else { 0.0 };
        self.flops(2.0 * rows * cols * l).max(from_memory) + elements / self.rates.pack + root
    }

    /// Prices a `rows × cols` matrix times Ω.
    pub(super) fn sketch(&self, rows: f64, cols: f64) -> f64 {
        self.slow * rows * cols / self.rates.sketch
    }

    /// Prices an orthonormal basis of a panel.
    pub(super) fn orthonormalize(&self, rows: f64, cols: f64) -> f64 {
        let rates = &self.rates;
        self.slow * 4.0 * rows * cols * cols / rates.orthonormalize + rates.cholesky * cols.powi(3) + rates.call
    }

    /// Prices all eigenvectors of a symmetric matrix.
    pub(super) fn eigen(&self, cols: f64) -> f64 {
        self.rates.eigen * cols.powi(3) + self.rates.tridiagonal * cols * cols
    }

    /// Prices the singular values and vectors of an image of `rows` rows.
    pub(super) fn decompose(&self, rows: f64, cols: f64) -> f64 {
        let rates = &self.rates;
        match self.task.precision {
            DType::F64 => self.orthonormalize(rows, cols) + rates.svd * cols.powi(3) + rates.tridiagonal * cols * cols,
            _ => rows * cols * cols / rates.wide + self.eigen(cols) + rates.call,
        }
    }

    /// Prices the way from a basis of `cols` columns to the factors.
    fn home(&self, cols: f64) -> f64 {
        self.copy((self.m + self.n) * self.k) + self.flops(2.0 * (self.m + self.n) * cols * self.k)
    }

    /// Prices the decomposition of an image of `rows` rows, and the factors from it.
    pub(super) fn finish(&self, rows: f64, cols: f64) -> f64 {
        self.decompose(rows, cols) + self.home(cols)
    }

    /// Prices the Gram matrix of the short side.
    pub(super) fn syrk(&self) -> f64 {
        self.slow * self.m * self.n * self.n / self.rates.syrk + self.copy(self.n * self.n)
    }

    /// Prices the check of the input, and the call itself.
    pub(super) fn begin(&self) -> f64 {
        self.slow * self.m * self.n / self.rates.scan + self.rates.call
    }

    /// Returns the factor by which products take longer where panels are wide for the matrix. They are small then, and
    /// the rates of large ones promise too much.
    pub(super) fn crowding(&self) -> f64 {
        if 2 * self.width > self.n as usize { 1.5 } else { 1.0 }
    }
}
