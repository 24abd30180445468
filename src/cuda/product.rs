//! Products of a stored matrix with panels, on cuBLAS.

use super::blas::{Operand, gemm};
use super::convert::convert;
use super::device::{Arguments, Buffer, Device, Launch};
use super::panel::DevicePanel;
use super::tile::{Lines, Tile};
use crate::error::Result;
use crate::simd::Scalar;
use crate::tensor::DType;

/// How much of a panel of floats meets a matrix of halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// All of its 24 bits, in three products.
    Full,
    /// The panel rounded to halves, in one product: for a range, which is that of the matrix all the same.
    Coarse,
}

/// A panel as cuBLAS can multiply it with elements of a type: the panel itself, or panels of halves that add up to it.
pub(super) enum Factor<'p, T> {
    Same(&'p DevicePanel<T>),
    Split { parts: Buffer<u16>, panel: usize, ld: usize, dtype: DType, alpha: Vec<T> },
}

impl<'p, T: Scalar> Factor<'p, T> {
    pub(super) fn new(panel: &'p DevicePanel<T>, dtype: DType, precision: Precision) -> Result<Self> {
        if dtype == T::DTYPE {
            return Ok(Factor::Same(panel));
        }
        let (device, ld) = (panel.device(), panel.ld());
        let count = ld * panel.ncols();
        // f16 has five bits of exponent: the scale makes the largest element about 2^14.
        let (scale, shift) = match dtype {
            DType::F16 => {
                let largest = panel.statistics()?.largest;
                let exponent = if largest > 0.0 { largest.log2().floor().clamp(-100.0, 100.0) } else { 0.0 };
                (2f64.powi(14 - exponent as i32), 11)
            }
            _ => (1.0, 0),
        };
        if precision == Precision::Coarse {
            let parts = device.alloc::<u16>(count)?;
            let to = Tile { at: parts.address(0), dtype, ld, lines: Lines::Columns };
            convert(device, panel.tile(0), to, (ld, panel.ncols()), scale)?;
            return Ok(Factor::Split { parts, panel: count, ld, dtype, alpha: vec![T::from_f64(1.0 / scale)] });
        }
        let parts = device.alloc::<u16>(3 * count)?;
        let mut arguments =
            Arguments::default().pointer(panel.address(0)).pointer(parts.address(0)).scalar(scale as f32).size(count);
        device.launch(&format!("split_f32_{dtype}"), Launch::elements(count), &mut arguments)?;
        let alpha = (0..3).map(|p| T::from_f64(2f64.powi(-shift * p) / scale)).collect();
        Ok(Factor::Split { parts, panel: count, ld, dtype, alpha })
    }

    /// Returns the products that add up to one with the panel, from row `first` on: operand and factor of each.
    fn terms(&self, first: usize) -> Vec<(Operand, T)> {
        match self {
            Factor::Same(panel) => vec![(panel.operand(first), T::one())],
            Factor::Split { parts, panel, ld, dtype, alpha } => alpha
                .iter()
                .enumerate()
                .map(|(p, &alpha)| {
                    let at = parts.address(p * panel + first);
                    (Operand { at, dtype: *dtype, ld: *ld, transposed: false }, alpha)
                })
                .collect(),
        }
    }
}

/// Computes `c = a · x + beta · c`, where `x` is panel `factor` from row `first` on, of `shape.2` rows.
pub(super) fn product<T: Scalar>(
    device: &Device,
    shape: (usize, usize, usize),
    a: Operand,
    factor: &Factor<'_, T>,
    first: usize,
    beta: T,
    c: Operand,
) -> Result<()> {
    let mut beta = beta;
    for (x, alpha) in factor.terms(first) {
        gemm(device, shape, alpha, a, x, beta, c)?;
        beta = T::one();
    }
    Ok(())
}

/// Computes `y[first..first + count] = [y +] tile[:, column..column + x.nrows()] · x`.
pub(super) fn multiply_rows<T: Scalar>(
    tile: Tile,
    (first, count): (usize, usize),
    column: usize,
    x: &DevicePanel<T>,
    beta: T,
    y: &mut DevicePanel<T>,
) -> Result<()> {
    let factor = Factor::new(x, tile.dtype, Precision::Full)?;
    let shape = (count, x.ncols(), x.nrows());
    product(x.device(), shape, tile.operand(0, column), &factor, 0, beta, y.operand(first))
}
