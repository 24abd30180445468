//! Copies on the device that change the type of the elements, their order, or both: `kernels/cast.cu`.
//!
//! ```text
//!   same order     cast         16 bytes at a time                       bytes read + bytes written
//!   other order    transpose    tiles of 32 × 32 in shared memory        the same
//! ```

use super::device::{Arguments, Device, GRID_Y, Launch, arithmetic_bytes};
use super::tile::{Lines, Tile};
use crate::error::Result;
use crate::tensor::DType;

/// Computes `to <- scale · from` for two `m × n` matrices that do not overlap.
pub(super) fn convert(device: &Device, from: Tile, to: Tile, (m, n): (usize, usize), scale: f64) -> Result<()> {
    let (lines, width) = if from.lines == Lines::Rows { (m, n) } else { (n, m) };
    let (kernel, shape) = if from.lines == to.lines {
        ("cast", Launch { grid: (width.div_ceil(1024).min(1 << 20), lines.min(GRID_Y)), block: (256, 1), shared: 0 })
    } else {
        let grid = (width.div_ceil(32) * lines.div_ceil(32), 1);
        ("transpose", Launch { grid, block: (32, 8), shared: 32 * 33 * arithmetic_bytes(to.dtype) })
    };
    let arguments = Arguments::default().pointer(from.at).pointer(to.at);
    let arguments = match to.dtype {
        DType::F64 => arguments.scalar(scale),
        _ => arguments.scalar(scale as f32),
    };
    let mut arguments = arguments.size(lines).size(width).size(from.ld).size(to.ld);
    device.launch(&format!("{kernel}_{}_{}", from.dtype, to.dtype), shape, &mut arguments)
}
