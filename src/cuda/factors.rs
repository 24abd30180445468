//! Factors that stay on the device.
//!
//! ```text
//!   U   m × k  column-major        s  on the host        Vᵀ  k × n  row-major, its rows being the columns of a panel
//!
//!   split       U diag(√s), diag(√s) Vᵀ in any type        a copy, its scaling and a conversion for each
//!   residual    W <- W − U diag(s) Vᵀ where it is           one GEMM; by blocks of rows, where W is of another type
//! ```
//!
//! Only the k singular values are on the host. [`download`](DeviceFactors::download) brings the rest.

use std::sync::Arc;

use super::blas::{Operand, gemm};
use super::convert::convert;
use super::device::{Arguments, Device, GRID_Y, Launch};
use super::panel::DevicePanel;
use super::tensor::{DeviceArray, DeviceTensor, DeviceTensorMut, Turn};
use super::tile::Lines;
use crate::error::{Error, Result};
use crate::factors::{Factors, Slices, Split};
use crate::report::Report;
use crate::simd::Scalar;
use crate::tensor::{Element, Matrix};

/// Bytes of a product that is subtracted from a matrix of another type: few enough to stay in the second cache until then.
const PRODUCT_BYTES: usize = 8 << 20;

/// The factors of `A ≈ U diag(s) Vᵀ` in device memory, with their report.
#[derive(Debug)]
pub struct DeviceFactors<T: Scalar> {
    panels: Panels<T>,
    s: Vec<T>,
    report: Report,
    slices: Slices<T>,
}

/// The singular vectors, one column each. What the caller's stream reads of them comes before they are freed.
#[derive(Debug)]
struct Panels<T: Scalar> {
    u: DevicePanel<T>,
    v: DevicePanel<T>,
    stream: usize,
}

impl<T: Scalar> Drop for Panels<T> {
    fn drop(&mut self) {
        // An error here is that of a device that is lost, and its memory with it.
        drop(Turn::new(self.u.device(), self.stream));
    }
}

/// Turns singular vectors so that the entry of largest modulus of each column of V is positive.
pub(crate) fn fix_signs<T: Scalar>(u: &mut DevicePanel<T>, v: &mut DevicePanel<T>) -> Result<()> {
    let peaks = v.peaks()?;
    let signs: Vec<T> = peaks.iter().map(|&x| if x < T::zeroed() { -T::one() } else { T::one() }).collect();
    v.scale(None, Some(&signs))?;
    u.scale(None, Some(&signs))
}

impl<T: Scalar> DeviceFactors<T> {
    pub(crate) fn new(
        (u, s, v): (DevicePanel<T>, Vec<T>, DevicePanel<T>),
        report: Report,
        slices: Slices<T>,
        stream: usize,
    ) -> Self {
        debug_assert!(u.ncols() == s.len() && v.ncols() == s.len());
        DeviceFactors { panels: Panels { u, v, stream }, s, report, slices }
    }

    /// Copies factors to the device, for work on the caller's stream `stream`.
    pub(crate) fn upload(device: &Arc<Device>, factors: Factors<T>, stream: usize) -> Result<Self> {
        let slices = factors.slices().clone();
        let (u, s, vt, report) = factors.into_parts();
        let u = DevicePanel::from_host(device, u.as_ref())?;
        let v = DevicePanel::from_host(device, vt.as_ref().transpose())?;
        Ok(DeviceFactors::new((u, s, v), report, slices, stream))
    }

    fn device(&self) -> &Arc<Device> {
        self.panels.u.device()
    }

    /// Returns the left singular vectors, `m × k`, with orthonormal columns.
    pub fn u(&self) -> DeviceTensor<'_> {
        let u = &self.panels.u;
        DeviceTensor::of_tile(self.device(), u.tile(0), (u.nrows(), u.ncols()), self.panels.stream)
    }

    /// Returns the k singular values, nonincreasing.
    pub fn s(&self) -> &[T] {
        &self.s
    }

    /// Returns the right singular vectors, `k × n`, with orthonormal rows.
    pub fn vt(&self) -> DeviceTensor<'_> {
        let v = &self.panels.v;
        DeviceTensor::of_tile(self.device(), v.tile(0).t(), (v.ncols(), v.nrows()), self.panels.stream)
    }

    /// Returns the report: what was done and how good it is.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Makes the two layers `(m × k, k × n)` whose product is the approximation, of any element type.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn split<E: Element>(&self, split: Split) -> Result<(DeviceArray<E>, DeviceArray<E>)> {
        let _turn = Turn::new(self.device(), self.panels.stream)?;
        let layer = |panel: &DevicePanel<T>, side: Split| {
            let (rows, k) = (panel.nrows(), panel.ncols());
            let scaled = split.weights(side, &self.s).map(|columns| scaled(panel, &columns)).transpose()?;
            let from = scaled.as_ref().unwrap_or(panel).tile(0);
            let (from, (m, n)) = if side == Split::Right { (from.t(), (k, rows)) } else { (from, (rows, k)) };
            let layer = DeviceArray::<E>::unwritten(self.device(), m, n)?;
            convert(self.device(), from, layer.tile(), (m, n), 1.0)?;
            Ok::<_, Error>(layer)
        };
        Ok((layer(&self.panels.u, Split::Left)?, layer(&self.panels.v, Split::Right)?))
    }

    /// Subtracts the approximation from a matrix of its shape, where that is: `W <- W − U diag(s) Vᵀ`, rounded once.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another shape, [`Error::Device`](crate::Error::Device).
    pub fn subtract_from(&self, w: &mut DeviceTensorMut<'_>) -> Result<()> {
        let (u, v) = (&self.panels.u, &self.panels.v);
        let (w, k) = (w.as_tensor(), u.ncols());
        let (m, n) = (u.nrows(), v.nrows());
        if w.shape() != (m, n) {
            return Err(Error::shape("subtract_from", format_args!("{m}×{n}"), format_args!("{:?}", w.shape())));
        }
        let device = self.device();
        // The caller's streams of the factors and of the matrix may be two.
        let _turns = (Turn::new(device, self.panels.stream)?, w.turn()?);
        let v = scaled(v, &self.s)?;
        let tile = w.tile();
        // Lines of W are columns to cuBLAS: `Wᵀ −= V Uᵀ` where they are rows.
        let (long, width, (a, b)) = match tile.lines {
            Lines::Rows => (m, n, (&v, u)),
            Lines::Columns => (n, m, (u, &v)),
        };
        if tile.dtype == T::DTYPE {
            let c = Operand { at: tile.at, dtype: tile.dtype, ld: tile.ld, transposed: false };
            return gemm(device, (width, long, k), -T::one(), a.operand(0), b.operand(0).t(), T::one(), c);
        }
        let step = (PRODUCT_BYTES / (width * size_of::<T>())).clamp(1, long);
        let product = DevicePanel::<T>::zeros(device, width, step)?;
        for first in (0..long).step_by(step) {
            let count = step.min(long - first);
            let b = b.operand(first).t();
            gemm(device, (width, count, k), T::one(), a.operand(0), b, T::zeroed(), product.operand(0))?;
            let at = if tile.lines == Lines::Rows { tile.address(first, 0) } else { tile.address(0, first) };
            let shape = Launch { grid: (width.div_ceil(256), count.min(GRID_Y)), block: (256, 1), shared: 0 };
            let mut arguments = Arguments::default()
                .pointer(at)
                .pointer(product.address(0))
                .size(count)
                .size(width)
                .size(tile.ld)
                .size(product.ld());
            device.launch(&format!("subtract_{}_{}", T::DTYPE, tile.dtype), shape, &mut arguments)?;
        }
        Ok(())
    }

    /// Copies the factors to the host.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn download(&self) -> Result<Factors<T>> {
        let (u, v) = (&self.panels.u, &self.panels.v);
        let (mut left, mut right) = (Matrix::zeros(u.nrows(), u.ncols()), Matrix::zeros(v.ncols(), v.nrows()));
        u.copy_to_host(left.as_mut())?;
        v.copy_to_host(right.as_mut().transpose_mut())?;
        Ok(Factors::new(left, self.s.clone(), right, self.report.clone(), self.slices.clone()))
    }
}

/// Returns a copy of a panel with its columns multiplied by `factors`.
fn scaled<T: Scalar>(panel: &DevicePanel<T>, factors: &[T]) -> Result<DevicePanel<T>> {
    let mut copy = panel.duplicate()?;
    copy.scale(None, Some(factors))?;
    Ok(copy)
}
