//! Computes `Y = A Ω` on the device, with the Ω of [`sketch`](crate::sketch).

use std::sync::Arc;

use super::convert::convert;
use super::device::{Arguments, Buffer, Device, GRID_Y, Launch, arithmetic_bytes};
use super::panel::DevicePanel;
use super::product::multiply_rows;
use super::tile::{Lines, Tile};
use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::sketch::{AnySketch, Gaussian, SketchOperator, SparseSign, Srht};
use crate::tensor::DType;

/// Bytes of the panel of Ω that is generated at a time. At l = 266 its 2^16 rows keep a GEMM busy.
const PANEL_BYTES: usize = 64 << 20;

/// The most bytes of rows that are turned at a time, and never more than an eighth of the matrix: few enough to stay in
/// the 40 MB of an A100's second cache until the sketch reads them, and 2^10 rows of 4096 floats.
const TURNED_BYTES: usize = 16 << 20;

/// The block lengths (log2) that the fused SRHT has instances for.
const FUSED: std::ops::RangeInclusive<u32> = 8..=13;

/// Shared memory that every card from sm_80 on gives to a block.
pub(super) const SHARED_BYTES: usize = 96 << 10;

/// Columns of A that a block of `sparse_sign` holds at a time.
const SPARSE_TILE: usize = 2048;

/// Rows that a block of the fused SRHT draws the signs for: their sums fill a sector of 32 bytes of Y.
const SRHT_ROWS: usize = 8;

/// Blocks for each multiprocessor from which on more rows in each block are better than more blocks.
const ENOUGH_BLOCKS: usize = 4;

/// A sketch with the tables that it needs on the device.
pub(super) struct Prepared<'o> {
    device: Arc<Device>,
    kind: Kind<'o>,
    n: usize,
    l: usize,
}

enum Kind<'o> {
    Gaussian(&'o Gaussian),
    Srht { sketch: &'o Srht, seed: u64, stream: u64, sample: Buffer<u32> },
    SparseSign { sketch: &'o SparseSign, start: Buffer<u32>, quads: Buffer<[u32; 4]> },
}

impl<'o> Prepared<'o> {
    pub(super) fn new(device: &Arc<Device>, omega: &'o AnySketch) -> Result<Self> {
        let (n, l) = (omega.nrows(), omega.ncols());
        if i32::try_from(n).is_err() || n * 8 > u32::MAX as usize {
            return Err(Error::TooLarge { shape: vec![n, l] });
        }
        let kind = match omega {
            AnySketch::Gaussian(sketch) => Kind::Gaussian(sketch),
            AnySketch::Srht(sketch) => {
                let (seed, stream, sample) = sketch.parts();
                Kind::Srht { sketch, seed, stream, sample: device.upload(&sample)? }
            }
            AnySketch::SparseSign(sketch) => {
                let (start, quads) = side_by_side(&sketch.table(), (n, l, sketch.zeta()));
                Kind::SparseSign { sketch, start: device.upload(&start)?, quads: device.upload(&quads)? }
            }
        };
        Ok(Prepared { device: device.clone(), kind, n, l })
    }

    /// Computes rows `first..first + count` of `Y = A Ω` from a tile that holds those rows of A. Columns are turned into
    /// rows on the way, some at a time, because the sums of an SRHT or of sparse signs run along rows.
    pub(super) fn apply<T: Scalar>(
        &self,
        tile: Tile,
        (first, count): (usize, usize),
        y: &mut DevicePanel<T>,
    ) -> Result<()> {
        let n = self.n;
        if tile.lines == Lines::Rows || matches!(self.kind, Kind::Gaussian(_)) {
            return self.apply_to_rows(tile, (first, count), y);
        }
        let ld = n.next_multiple_of(16 / tile.dtype.size());
        let step = (TURNED_BYTES / (ld * tile.dtype.size())).clamp(1, count.div_ceil(8));
        let turned = self.device.alloc::<u8>(step * ld * tile.dtype.size())?;
        let turned = Tile { at: turned.address(0), dtype: tile.dtype, ld, lines: Lines::Rows };
        for row in (0..count).step_by(step) {
            let rows = step.min(count - row);
            convert(&self.device, tile.from(row, 0), turned, (rows, n), 1.0)?;
            self.apply_to_rows(turned, (first + row, rows), y)?;
        }
        Ok(())
    }

    fn apply_to_rows<T: Scalar>(
        &self,
        tile: Tile,
        (first, count): (usize, usize),
        y: &mut DevicePanel<T>,
    ) -> Result<()> {
        let (device, n, l) = (&self.device, self.n, self.l);
        match &self.kind {
            Kind::Gaussian(_) => self.by_panels(tile, (first, count), y),
            Kind::Srht { sketch, seed, stream, sample } => {
                let log2_r = sketch.block().ilog2();
                let (arithmetic, vector) = (size_of::<T>(), 16 / tile.dtype.size());
                let layout = RowLayout::new(log2_r, vector, arithmetic);
                let shared = |rows: usize| {
                    let signs = sketch.block() / 8 + 16 * l.div_ceil(128);
                    sketch.block() * arithmetic + signs + rows * l * arithmetic
                };
                if !FUSED.contains(&log2_r) || shared(1) > SHARED_BYTES {
                    return self.by_panels(tile, (first, count), y);
                }
                let few = |rows: usize| {
                    rows > 1 && (count < rows * ENOUGH_BLOCKS * device.multiprocessors() || shared(rows) > SHARED_BYTES)
                };
                let mut rows = SRHT_ROWS;
                while few(rows) {
                    rows /= 2;
                }
                let block = ((layout.threads / layout.vectors) as u32, 1);
                let shape = Launch { grid: (count.div_ceil(rows), 1), block, shared: shared(rows) };
                let mut arguments = Arguments::default()
                    .pointer(tile.at)
                    .pointer(y.address(first))
                    .pointer(sample.address(0))
                    .scalar(T::from_f64(1.0 / (l as f64).sqrt()))
                    .scalar(*seed)
                    .scalar(*stream)
                    .size(count)
                    .size(n)
                    .scalar(l as i32)
                    .scalar(rows as i32)
                    .size(tile.ld)
                    .size(y.ld());
                device.launch(&format!("srht_{}_{log2_r}", tile.dtype), shape, &mut arguments)
            }
            Kind::SparseSign { sketch, start, quads } => {
                let groups = l.div_ceil(384);
                let threads = l.div_ceil(groups).next_multiple_of(32);
                let grid = (count.div_ceil(16 / tile.dtype.size()), l.div_ceil(threads));
                let mut arguments = Arguments::default()
                    .pointer(tile.at)
                    .pointer(y.address(first))
                    .pointer(start.address(0))
                    .pointer(quads.address(0))
                    .scalar(T::from_f64(1.0 / (sketch.zeta() as f64).sqrt()))
                    .size(count)
                    .size(n)
                    .scalar(l as i32)
                    .size(tile.ld)
                    .size(y.ld());
                let shape = Launch { grid, block: (threads as u32, 1), shared: 16 * (SPARSE_TILE + 1) };
                device.launch(&format!("sparse_sign_{}", tile.dtype), shape, &mut arguments)
            }
        }
    }

    /// Computes `Y = Σ A[:, block] · Ω[block, :]`, with blocks of Ω generated one at a time.
    fn by_panels<T: Scalar>(&self, tile: Tile, rows: (usize, usize), y: &mut DevicePanel<T>) -> Result<()> {
        let (device, n, l) = (&self.device, self.n, self.l);
        let step = (PANEL_BYTES / (l * size_of::<T>())).clamp(1, n).next_multiple_of(8);
        for first in (0..n).step_by(step) {
            let depth = step.min(n - first);
            let panel = DevicePanel::<T>::zeros(device, depth, l)?;
            let grid = |columns: usize| Launch {
                grid: (depth.div_ceil(256), columns.min(GRID_Y)),
                block: (256, 1),
                shared: 0,
            };
            match &self.kind {
                Kind::Gaussian(sketch) => {
                    let (rng, normalization) = sketch.parts();
                    let (seed, stream) = rng.key();
                    let mut arguments = Arguments::default()
                        .pointer(panel.address(0))
                        .scalar(normalization)
                        .scalar(T::one())
                        .scalar(seed)
                        .scalar(stream)
                        .size(first)
                        .size(depth)
                        .scalar(l as i32)
                        .size(panel.ld());
                    device.launch(&format!("gaussian_{}", T::DTYPE), grid(l.div_ceil(4)), &mut arguments)?;
                }
                Kind::Srht { sketch, seed, stream, sample } => {
                    let mut arguments = Arguments::default()
                        .pointer(panel.address(0))
                        .pointer(sample.address(0))
                        .scalar(T::from_f64(1.0 / (l as f64).sqrt()))
                        .scalar(*seed)
                        .scalar(*stream)
                        .size(first)
                        .size(depth)
                        .scalar(l as i32)
                        .scalar(sketch.block().ilog2() as i32)
                        .size(panel.ld());
                    device.launch(&format!("srht_panel_{}", T::DTYPE), grid(l), &mut arguments)?;
                }
                Kind::SparseSign { .. } => unreachable!("has a kernel for every shape"),
            }
            let beta = if first == 0 { T::zeroed() } else { T::one() };
            multiply_rows(tile, rows, first, &panel, beta, y)?;
        }
        Ok(())
    }
}

/// Packs nonzeros as `sparse_sign` reads them: quads of each tile and 32 columns, and where those begin. `table` has ζ
/// nonzeros `column << 1 | minus` for each of n rows.
fn side_by_side(table: &[u32], (n, l, zeta): (usize, usize, usize)) -> (Vec<u32>, Vec<[u32; 4]>) {
    const NONE: u32 = (SPARSE_TILE as u32) << 1;
    let groups = l.div_ceil(32);
    let (mut start, mut quads) = (vec![0], Vec::with_capacity(table.len() / 3));
    let mut length = vec![0; 32 * groups];
    for tile in table.chunks(SPARSE_TILE * zeta) {
        length.fill(0);
        tile.iter().for_each(|&nonzero| length[(nonzero >> 1) as usize] += 1);
        let first = start.len() - 1;
        for group in length.chunks(32) {
            let longest: usize = group.iter().copied().max().unwrap_or(0);
            quads.resize(quads.len() + 32 * longest.div_ceil(4), [NONE; 4]);
            start.push((quads.len() / 32) as u32);
        }
        length.fill(0);
        for (j, row) in tile.chunks(zeta).enumerate() {
            for &nonzero in row {
                let c = (nonzero >> 1) as usize;
                let (at, begin) = (length[c], start[first + c / 32] as usize);
                quads[32 * (begin + at / 4) + c % 32][at % 4] = (j as u32) << 1 | (nonzero & 1);
                length[c] += 1;
            }
        }
    }
    debug_assert_eq!(start.len(), n.div_ceil(SPARSE_TILE) * groups + 1);
    (start, quads)
}

/// The layout of a vector in the threads of a block: the host's side of `struct Layout` in kernels/fwht.cuh.
pub(super) struct RowLayout {
    /// Vectors in a block.
    pub(super) vectors: usize,
    /// Threads of a block.
    pub(super) threads: usize,
    /// Bytes of the exchange.
    pub(super) shared: usize,
}

impl RowLayout {
    /// Makes the layout for `2^log2_n` elements, with `vector` elements in 16 bytes and `arithmetic` bytes each once
    /// widened.
    pub(super) fn new(log2_n: u32, vector: usize, arithmetic: usize) -> Self {
        let log2_v = log2_n.min(vector.ilog2());
        let log2_registers = if arithmetic == 8 { 4 } else { 5 };
        let spare = (log2_n - log2_v).saturating_sub(5);
        let log2_t = (log2_n - log2_v - spare.min(log2_registers - log2_v)).min(9);
        let (threads, per_thread) = (1 << log2_t, 1usize << (log2_n - log2_t));
        let vectors = if log2_t > 5 { 1 } else { 128 / threads };
        let units = (per_thread * arithmetic / 16).max(1);
        RowLayout {
            vectors,
            threads: threads * vectors,
            shared: if log2_t > 5 { units.min(4) * threads * 16 } else { 0 },
        }
    }

    /// Makes the layout for rows stored as `dtype`.
    pub(super) fn of(log2_n: u32, dtype: DType) -> Self {
        RowLayout::new(log2_n, 16 / dtype.size(), arithmetic_bytes(dtype))
    }
}

/// Generates the words of Philox blocks `first..first + count` of a stream, four each: the generator of the sketches.
///
/// # Errors
/// [`Error::Device`].
pub fn philox_words(device: &Arc<Device>, seed: u64, stream: u64, first: u64, count: usize) -> Result<Vec<u32>> {
    let words = device.alloc::<u32>(4 * count)?;
    let mut arguments =
        Arguments::default().pointer(words.address(0)).scalar(seed).scalar(stream).scalar(first).size(count);
    device.launch("philox_words", Launch::elements(count), &mut arguments)?;
    let mut host = vec![0; 4 * count];
    device.download(&words, 0, &mut host)?;
    Ok(host)
}
