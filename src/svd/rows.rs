//! Factors matrices that are read and not held, within a memory limit.
//!
//! ```text
//!   limit  =  peak of the method (panels, small problems, factors)  +  two read buffers  +  conversion buffer
//!             chosen first, with the least buffers beside it           what is left, up to ReadParams::bytes
//! ```
//!
//! Under calibration the limit is split in the same way for a tall weight: its product with the root of the moments is
//! that of `svd/calibrated.rs`, and takes one pass for the norm and one for the projection besides those of the method.
//! A wide one, whose statistics alone take `8 n²` bytes and more than the weight, and one under statistics of its
//! outputs are read into memory as they are, where the limit allows.
//!
//! The methods are those of a matrix in memory; what changes is what they cost. A method takes the larger of its
//! arithmetic and `passes · bytes / read rate`, and one whose peak is over the limit is not considered.

use std::fmt;
use std::time::Instant;

use super::accumulator::SinglePass;
use super::calibrated::{self, Weight};
use super::finish::run;
use super::in_memory;
use super::options::{Device, Options};
use super::plan::Plan;
use super::task::{Residency, Task, looks_once};
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::operator::{LinearOperator, ReadParams, Root, RowSource, Tiled, Watch, stream};
use crate::simd::Scalar;
use crate::space::Host;
use crate::tensor::TensorRef;

/// The bytes of a matrix that are read for each byte of state that is saved.
pub const READ_PER_STATE: usize = 16;

/// A place that keeps the state of a single pass while it runs.
pub trait Checkpoint {
    /// Returns the state that was saved last, if one was.
    fn load(&self) -> Option<Vec<u8>>;

    /// Saves a state in place of the last one, whole or not at all.
    ///
    /// # Errors
    /// Any error that keeps it from being saved; the factorization ends with it.
    fn save(&self, state: &[u8]) -> Result<()>;
}

/// A plan of a factorization out of core, as plain data; `Display` explains it.
#[derive(Debug, Clone, PartialEq)]
pub struct RowsPlan {
    /// The method and its costs.
    pub plan: Plan,
    /// Lines (rows, or columns of a column-major source) of a tile.
    pub tile_lines: usize,
    /// Bytes of the read and conversion buffers.
    pub tile_bytes: usize,
    /// Peak bytes allocated, the result included.
    pub peak_bytes: usize,
}

impl fmt::Display for RowsPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / 1048576.0;
        write!(f, "{}", self.plan)?;
        writeln!(
            f,
            "  read in tiles of {} lines: {:.1} MiB of buffers, {:.1} MiB in all",
            self.tile_lines,
            mib(self.tile_bytes),
            mib(self.peak_bytes)
        )
    }
}

/// Plans the method and the tiles. Returns the plan, and the options and the residency for the method: its limit
/// without the buffers, and the price of a pass.
pub(super) fn plan<T: Scalar>(options: &Options, source: &dyn RowSource) -> Result<(RowsPlan, Options, Residency)> {
    let (shape, dtype) = (source.shape(), source.dtype());
    if shape.0 == 0 || shape.1 == 0 {
        return Err(Error::Empty { shape: vec![shape.0, shape.1] });
    }
    let bytes = (shape.0.checked_mul(shape.1))
        .and_then(|elements| elements.checked_mul(dtype.size()))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or(Error::TooLarge { shape: vec![shape.0, shape.1] })?;
    if is_read_whole(options, shape) {
        let held = bytes + source.scratch_bytes();
        let within = Options { memory_limit: options.memory_limit.map(|x| x.saturating_sub(held)), ..options.clone() };
        let task = Task::new::<T>(&within, shape, dtype, Residency::InMemory)?;
        let plan = Plan::new(task).map_err(|e| match (e, options.memory_limit) {
            (Error::Memory { least, .. }, Some(limit)) => Error::Memory { limit, least: least + held },
            (e, _) => e,
        })?;
        let tile_lines = if source.is_column_major() { shape.1 } else { shape.0 };
        let peak_bytes = plan.peak_bytes + held;
        return Ok((RowsPlan { plan, tile_lines, tile_bytes: held, peak_bytes }, within, Residency::InMemory));
    }
    let once = looks_once(options.method);
    let params = ReadParams::default();
    let most = if once { params.bytes } else { params.product_bytes };
    let least = Tiled::<T>::lines_for(source, 0, most).unwrap_or_else(|least| least);
    let room = |limit: usize| limit.saturating_sub(least);
    let within = Options { memory_limit: options.memory_limit.map(room), ..options.clone() };
    let residency = Residency::InTiles { pass_seconds: bytes as f64 / options.rates_in_use().read };
    let task = Task::new::<T>(&within, shape, dtype, residency)?;
    let plan = Plan::new(task).map_err(|e| match (e, options.memory_limit) {
        (Error::Memory { least: method, .. }, Some(limit)) => Error::Memory { limit, least: method + least },
        (e, _) => e,
    })?;
    let method = plan.peak_bytes;
    let room = options.memory_limit.map_or(usize::MAX, |limit| limit - method);
    let tile_lines = Tiled::<T>::lines_for(source, room, most)
        .map_err(|least| Error::Memory { limit: options.memory_limit.unwrap_or(usize::MAX), least: method + least })?;
    let tile_bytes = Tiled::<T>::bytes(source, tile_lines);
    Ok((RowsPlan { plan, tile_lines, tile_bytes, peak_bytes: method + tile_bytes }, within, residency))
}

/// Tells whether a matrix is read into memory before it is factored: its statistics are larger than itself, or weigh
/// both of its sides.
fn is_read_whole(options: &Options, (m, n): (usize, usize)) -> bool {
    options.weighting.is_two_sided() || options.is_weighted() && m < n
}

/// Reads the matrix of `source` and factors it in memory.
fn factor_whole<T: Scalar>(within: &Options, source: &mut dyn RowSource, watch: &Watch<'_>) -> Result<Factors<T>> {
    let ((m, n), dtype) = (source.shape(), source.dtype());
    let line = dtype.size() * if source.is_column_major() { m } else { n };
    // Words, so that the bytes are aligned for every element type.
    let mut words = vec![0u64; (m * n * dtype.size()).div_ceil(size_of::<u64>())];
    let bytes = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..m * n * dtype.size()];
    let some = (ReadParams::default().bytes / line).max(1);
    for (i, dst) in bytes.chunks_mut(some * line).enumerate() {
        watch.check()?;
        source.read_rows(i * some, dst)?;
        watch.read(dst.len() as u64);
    }
    let strides = if source.is_column_major() { [1, m as isize] } else { [n as isize, 1] };
    let w = TensorRef::from_bytes(dtype, &[m, n], bytes)?.with_strides(&strides)?;
    let held = bytes.len() + source.scratch_bytes();
    let mut factors = in_memory::factor::<T>(within, &w, watch, Host::new(crate::parallel::current_par()))?;
    let report = factors.report_mut();
    report.peak_bytes += held;
    report.reason.push_str("; read into memory");
    Ok(factors)
}

/// Factors the matrix of `source`. A method of a single pass keeps its state in `checkpoint` and resumes from what is
/// there.
pub(super) fn factor_resumable<T: Scalar>(
    options: &Options,
    source: &mut dyn RowSource,
    watch: &Watch<'_>,
    checkpoint: &dyn Checkpoint,
) -> Result<Factors<T>> {
    if !looks_once(options.method) || source.is_column_major() || options.is_weighted() {
        return factor(options, source, watch);
    }
    let (RowsPlan { tile_lines, peak_bytes, .. }, ..) = plan::<T>(options, source)?;
    let task = Task::new::<T>(options, source.shape(), T::DTYPE, Residency::InMemory)?;
    let mut state = SinglePass::<T>::new(Plan::new(task)?)?;
    if let Some(bytes) = checkpoint.load() {
        // An error says that these bytes are of no use, and leaves the state empty.
        let _ = state.restore(&bytes);
    }
    let line = source.shape().1 * source.dtype().size();
    let (mut unsaved, every) = (0, READ_PER_STATE * state.state_bytes());
    let done = stream(source, state.rows_given(), tile_lines * line, watch, |first, rows| {
        state.update(first, &rows)?;
        unsaved += rows.shape()[0] * line;
        if unsaved >= every {
            unsaved = 0;
            checkpoint.save(&state.to_bytes())?;
        }
        Ok(())
    });
    if done == Err(Error::Cancelled) && unsaved > 0 {
        checkpoint.save(&state.to_bytes())?;
    }
    done?;
    let mut factors = state.finish()?;
    factors.report_mut().peak_bytes = peak_bytes;
    Ok(factors)
}

/// Factors the matrix of `source`, which is read in tiles.
pub(super) fn factor<T: Scalar>(
    options: &Options,
    source: &mut dyn RowSource,
    watch: &Watch<'_>,
) -> Result<Factors<T>> {
    let start = Instant::now();
    if options.device != Device::Cpu {
        return Err(Error::unsuited(
            "device",
            "takes no matrix out of core but the CPU; give a matrix that fits into memory",
        ));
    }
    let (shape, dtype) = (source.shape(), source.dtype());
    let weighted = options.is_weighted();
    let (RowsPlan { plan, tile_lines, peak_bytes, .. }, within, residency) = self::plan::<T>(options, source)?;
    if is_read_whole(options, shape) {
        return factor_whole(&within, source, watch);
    }
    let par = crate::parallel::current_par();
    let mut op = Tiled::<T>::new(source, tile_lines, par, watch.clone())?;
    if weighted {
        let space = op.space().clone();
        let root = |l| Ok(Root::boxed(l, &space));
        let weight = Weight::Tiles(shape, dtype);
        let mut factors = calibrated::factor(&within, residency, &mut op, &root, weight, par, start)?;
        let report = factors.report_mut();
        report.peak_bytes = peak_bytes;
        report.reason.push_str("; read in tiles");
        return Ok(factors);
    }
    // Where the spectrum decides the rank, the norm that it is measured by is needed first.
    if plan.rank.is_none() {
        op.check()?;
    }
    let mut factors = run(&mut op, plan, par, start)?;
    let report = factors.report_mut();
    report.peak_bytes = peak_bytes;
    report.reason.push_str("; read in tiles");
    Ok(factors)
}
