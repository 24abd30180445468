//! Products of a stored matrix with panels, on cuBLAS.

use super::blas::{Operand, gemm};
use super::device::{Arguments, Buffer, Device, Launch};
use super::panel::DevicePanel;
use crate::error::Result;
use crate::simd::Scalar;
use crate::tensor::DType;

/// The order of a matrix in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// The elements of a row are adjacent.
    Rows,
    /// The elements of a column are adjacent.
    Columns,
}

/// A matrix in device memory that something else owns; its lines begin `ld` elements apart. Kernels move 16 bytes at a
/// time where all lines begin at multiples of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) at: u64,
    pub(super) dtype: DType,
    pub(super) ld: usize,
    pub(super) lines: Lines,
}

impl Tile {
    pub(super) fn address(&self, row: usize, column: usize) -> u64 {
        let element = match self.lines {
            Lines::Rows => row * self.ld + column,
            Lines::Columns => column * self.ld + row,
        };
        self.at + (element * self.dtype.size()) as u64
    }

    /// Returns the part from `(row, column)` on.
    pub(super) fn from(self, row: usize, column: usize) -> Self {
        Tile { at: self.address(row, column), ..self }
    }

    /// Returns the transpose, which is the same memory.
    pub(super) fn t(self) -> Self {
        let lines = match self.lines {
            Lines::Rows => Lines::Columns,
            Lines::Columns => Lines::Rows,
        };
        Tile { lines, ..self }
    }

    /// Returns the matrix from `(row, column)` on as an operand of cuBLAS.
    pub(super) fn operand(&self, row: usize, column: usize) -> Operand {
        let transposed = self.lines == Lines::Rows;
        Operand { at: self.address(row, column), dtype: self.dtype, ld: self.ld, transposed }
    }
}

/// A panel as cuBLAS can multiply it with elements of a type: the panel itself, or three panels of halves.
pub(super) enum Factor<'p, T> {
    Same(&'p DevicePanel<T>),
    Split { parts: Buffer<u16>, panel: usize, ld: usize, dtype: DType, alpha: [T; 3] },
}

impl<'p, T: Scalar> Factor<'p, T> {
    pub(super) fn new(panel: &'p DevicePanel<T>, dtype: DType) -> Result<Self> {
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
        let parts = device.alloc::<u16>(3 * count)?;
        let mut arguments =
            Arguments::default().pointer(panel.address(0)).pointer(parts.address(0)).scalar(scale as f32).size(count);
        device.launch(&format!("split_f32_{dtype}"), Launch::elements(count), &mut arguments)?;
        let alpha = [0, 1, 2].map(|p| T::from_f64(2f64.powi(-shift * p) / scale));
        Ok(Factor::Split { parts, panel: count, ld, dtype, alpha })
    }

    /// Returns the products that add up to one with the panel, from row `first` on: operand and factor of each.
    fn terms(&self, first: usize) -> Vec<(Operand, T)> {
        match self {
            Factor::Same(panel) => vec![(panel.operand(first), T::one())],
            Factor::Split { parts, panel, ld, dtype, alpha } => (0..3)
                .map(|p| {
                    let at = parts.address(p * panel + first);
                    (Operand { at, dtype: *dtype, ld: *ld, transposed: false }, alpha[p])
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
    let factor = Factor::new(x, tile.dtype)?;
    let shape = (count, x.ncols(), x.nrows());
    product(x.device(), shape, tile.operand(0, column), &factor, 0, beta, y.operand(first))
}
