//! Matrices in device memory as kernels and cuBLAS see them: an address, an element type, an order, a distance of lines.

use super::blas::Operand;
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
