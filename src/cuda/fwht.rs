//! Walsh-Hadamard transforms in device memory: [`fwht`](crate::fwht) on rows and columns of a [`DeviceArray`].
//!
//! ```text
//!   rows, n = b·2^k   b = 1, k <= 15 (f64: 14), or what shared memory holds:  a vector in one block, 1 sweep
//!                     longer:  vectors of at most 2^15, then columns of 2^15 elements, then H_b
//!   columns           at most 6 stages (f64: 5) in the registers of a thread:  ⌈k/6⌉ sweeps, one more with b > 1
//! ```
//!
//! `H_b` goes through a table in shared memory, which holds it up to `b = 188`; longer bases are refused.
//!
//! Halves that need more than one sweep are widened to a workspace of f32 by the first sweep, so that they are rounded
//! once, by the last.

use std::sync::Arc;

use super::convert::convert;
use super::device::{Arguments, Device, GRID_Y, Launch, arithmetic_bytes};
use super::sketch::{RowLayout, SHARED_BYTES};
use super::tensor::DeviceArray;
use super::tile::{Lines, Tile};
use crate::error::{Error, Result};
use crate::fwht::Order;
use crate::tensor::{DType, Element};

/// Transforms each row in place: `x_i <- H x_i`, unnormalized.
///
/// # Errors
/// [`Error::Order`] unless the length of a row is that of an [`Order`] with a base up to 188; [`Error::Device`].
pub fn fwht_rows<E: Element>(x: &mut DeviceArray<E>) -> Result<()> {
    transform(x, Along::Rows, 1.0)
}

/// Transforms each column in place: `x_j <- H x_j`, unnormalized.
///
/// # Errors
/// [`Error::Order`] unless the length of a column is that of an [`Order`] with a base up to 188; [`Error::Device`].
pub fn fwht_columns<E: Element>(x: &mut DeviceArray<E>) -> Result<()> {
    transform(x, Along::Columns, 1.0)
}

/// Transforms each row in place by an orthogonal matrix: `x_i <- H x_i / √n`.
///
/// # Errors
/// [`Error::Order`] unless the length of a row is that of an [`Order`] with a base up to 188; [`Error::Device`].
pub fn orthonormal_rows<E: Element>(x: &mut DeviceArray<E>) -> Result<()> {
    let n = x.shape().1;
    transform(x, Along::Rows, 1.0 / (n as f64).sqrt())
}

/// Transforms each column in place by an orthogonal matrix: `x_j <- H x_j / √m`.
///
/// # Errors
/// [`Error::Order`] unless the length of a column is that of an [`Order`] with a base up to 188; [`Error::Device`].
pub fn orthonormal_columns<E: Element>(x: &mut DeviceArray<E>) -> Result<()> {
    let m = x.shape().0;
    transform(x, Along::Columns, 1.0 / (m as f64).sqrt())
}

#[derive(Clone, Copy, PartialEq)]
enum Along {
    Rows,
    Columns,
}

/// One call of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sweep {
    /// `count` vectors of `2^log2` adjacent elements, one after the other.
    Rows { log2: u32, count: usize },
    /// `count` vectors of `b·2^log2` adjacent elements, each held by one block.
    Based { b: usize, log2: u32, count: usize },
    /// `2^log2` elements at a distance of `columns`, `outer` times.
    Columns { log2: u32, outer: usize, columns: usize },
    /// `H_b` on elements at a distance of `width`, `count` times.
    Base { b: usize, width: usize, count: usize },
}

/// Returns the bytes of shared memory of `fwht_based`.
fn based_bytes(b: usize, log2: u32, dtype: DType) -> usize {
    (b << log2) * arithmetic_bytes(dtype) + table_bytes(b)
}

/// Returns the bytes of the table of `H_b` for 256 bytes of columns.
fn table_bytes(b: usize) -> usize {
    512 * b
}

/// Returns whether the table of `H_b` fits shared memory.
fn fits(b: usize) -> bool {
    table_bytes(b) <= SHARED_BYTES
}

/// Returns the sweeps over an `m × n` matrix.
fn sweeps(order: Order, along: Along, (m, n): (usize, usize), dtype: DType) -> Vec<Sweep> {
    let (b, k) = (order.base(), order.log2());
    let (longest, stages) = if dtype == DType::F64 { (14, 5) } else { (15, 6) };
    let pieces = 5..=if dtype == DType::F64 { 9 } else { 10 };
    if along == Along::Rows && b > 1 && pieces.contains(&k) && based_bytes(b, k, dtype) <= SHARED_BYTES {
        return vec![Sweep::Based { b, log2: k, count: m }];
    }
    let mut sweeps = Vec::new();
    // These are the number of bits that are done, and of elements between neighbours of the next bit.
    let (mut done, mut columns, vectors) = match along {
        Along::Rows => {
            let log2 = k.min(longest);
            if log2 > 0 {
                sweeps.push(Sweep::Rows { log2, count: m * (n >> log2) });
            }
            (log2, 1 << log2, m)
        }
        Along::Columns => (0, n, 1),
    };
    while done < k {
        // There are as few sweeps as possible, of nearly equal length.
        let log2 = (k - done).div_ceil((k - done).div_ceil(stages));
        sweeps.push(Sweep::Columns { log2, outer: m * n / (columns << log2), columns });
        done += log2;
        columns <<= log2;
    }
    if b > 1 {
        sweeps.push(Sweep::Base { b, width: columns, count: vectors });
    }
    sweeps
}

/// Transforms an array along its rows or columns, times `scale`.
fn transform<E: Element>(x: &mut DeviceArray<E>, along: Along, scale: f64) -> Result<()> {
    let (m, n) = x.shape();
    if m == 0 || n == 0 {
        return Ok(());
    }
    let length = if along == Along::Rows { n } else { m };
    let order = Order::new(length).filter(|order| fits(order.base())).ok_or(Error::Order { n: length })?;
    let sweeps = sweeps(order, along, (m, n), E::DTYPE);
    let device = x.device().clone();
    let home = (E::DTYPE, x.address());
    let wide = (E::DTYPE.size() == 2 && sweeps.len() > 1).then(|| device.alloc::<f32>(m * n)).transpose()?;
    let between = wide.as_ref().map_or(home, |wide| (DType::F32, wide.address(0)));
    let mut at = home;
    if wide.is_some() && matches!(sweeps[0], Sweep::Rows { .. }) {
        // One row of all elements.
        let row = |(dtype, at)| Tile { at, dtype, ld: m * n, lines: Lines::Rows };
        convert(&device, row(home), row(between), (1, m * n), 1.0)?;
        at = between;
    }
    for (i, &sweep) in sweeps.iter().enumerate() {
        let last = i + 1 == sweeps.len();
        let to = if last { home } else { between };
        run(&device, sweep, at, to, if last { scale } else { 1.0 })?;
        at = to;
    }
    Ok(())
}

/// Runs one sweep from `x` to `y`, which may be one place; rows are transformed where they are.
fn run(device: &Arc<Device>, sweep: Sweep, x: (DType, u64), y: (DType, u64), scale: f64) -> Result<()> {
    let scaled = |arguments: Arguments| match y.0 {
        DType::F64 => arguments.scalar(scale),
        _ => arguments.scalar(scale as f32),
    };
    let types = if x.0 == y.0 { x.0.to_string() } else { format!("{}_{}", x.0, y.0) };
    match sweep {
        Sweep::Rows { log2, count } => {
            let layout = RowLayout::of(log2, y.0);
            let grid = (count.div_ceil(layout.vectors), 1);
            let shape = Launch { grid, block: (layout.threads as u32, 1), shared: layout.shared };
            let arguments = scaled(Arguments::default().pointer(x.1).pointer(y.1));
            let mut arguments = arguments.size(count).scalar(1i32).size(1 << log2).size(1 << log2);
            device.launch(&format!("fwht_rows_{types}_{log2}"), shape, &mut arguments)
        }
        Sweep::Based { b, log2, count } => {
            let codes = device.upload(&codes(b))?;
            let shape = Launch { grid: (count, 1), block: (256, 1), shared: based_bytes(b, log2, y.0) };
            let arguments = Arguments::default().pointer(x.1).pointer(codes.address(0));
            let mut arguments = scaled(arguments).scalar(b as i32);
            device.launch(&format!("fwht_based_{types}_{log2}"), shape, &mut arguments)
        }
        Sweep::Columns { log2, outer, columns } => {
            let shape = Launch { grid: (columns.div_ceil(256), outer.min(GRID_Y)), block: (256, 1), shared: 0 };
            let arguments = scaled(Arguments::default().pointer(x.1).pointer(y.1));
            let mut arguments = arguments.size(outer).size(1).size(columns).size(columns);
            device.launch(&format!("fwht_columns_{types}_{log2}"), shape, &mut arguments)
        }
        Sweep::Base { b, width, count } => {
            let codes = device.upload(&codes(b))?;
            let grid = ((count * width).div_ceil(256 / arithmetic_bytes(y.0)), 1);
            let shape = Launch { grid, block: (256, 1), shared: table_bytes(b) };
            let arguments = Arguments::default().pointer(x.1).pointer(y.1).pointer(codes.address(0));
            let mut arguments = scaled(arguments).scalar(b as i32).size(width).size(count).size(b * width);
            device.launch(&format!("hadamard_{types}"), shape, &mut arguments)
        }
    }
}

/// Encodes `H_b` for `hadamard_tile`. For each row and four columns a code has the number of one of eight sums in bits
/// 0 to 15, and its sign in bit 31.
fn codes(b: usize) -> Vec<u32> {
    let Some(h) = Order::new(b).map(Order::base_matrix) else { return Vec::new() };
    let code = |i: usize, g: usize| {
        let minus = |j: usize| u32::from(h.row(i)[4 * g + j] < 0.0);
        let relative = |j: usize| minus(j) ^ minus(0);
        (8 * g as u32 + (relative(1) | relative(2) << 1 | relative(3) << 2)) | minus(0) << 31
    };
    (0..b).flat_map(|i| (0..b / 4).map(move |g| (i, g))).map(|(i, g)| code(i, g)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_cover_every_bit() {
        let of = |n: usize, along, shape, dtype| sweeps(Order::new(n).unwrap(), along, shape, dtype);
        assert_eq!(of(4096, Along::Rows, (3, 4096), DType::F16), [Sweep::Rows { log2: 12, count: 3 }]);
        assert_eq!(
            of(12 << 16, Along::Rows, (2, 12 << 16), DType::F64),
            [
                Sweep::Rows { log2: 14, count: 2 * 12 * 4 },
                Sweep::Columns { log2: 2, outer: 2 * 12, columns: 1 << 14 },
                Sweep::Base { b: 12, width: 1 << 16, count: 2 },
            ]
        );
        assert_eq!(
            of(1 << 8, Along::Columns, (1 << 8, 5), DType::F32),
            [Sweep::Columns { log2: 4, outer: 16, columns: 5 }, Sweep::Columns { log2: 4, outer: 1, columns: 80 }]
        );
        assert_eq!(of(28 << 9, Along::Rows, (7, 28 << 9), DType::F16), [Sweep::Based { b: 28, log2: 9, count: 7 }]);
        assert_eq!(of(20, Along::Rows, (7, 20), DType::F32), [Sweep::Base { b: 20, width: 1, count: 7 }]);
        assert!(fits(188) && !fits(196));
    }
}
