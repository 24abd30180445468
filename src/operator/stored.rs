//! The product of a matrix as it is stored with a panel: elements are converted where they are multiplied.
//!
//! ```text
//!              depth d                               a block of rows of Y to one thread, blocks along the depth in order:
//!        ┌──────┬──────┬─────┐
//!   rows │ A_i1 │ A_i2 │ ... │  Y_i  =  Σ_j  convert(A_ij) X_j          the converted block stays in L2, Y_i and X_j near it
//!        ├──────┼──────┼─────┤
//!        │  next thread that │
//! ```
//!
//! `2 m n l` flops, A read once in its own type. Converting a tile first and multiplying it then, as for a Gram matrix, sends every
//! element through memory three times more at twice the width, and leaves A X of a tile of few long rows to one thread: reading included, a
//! factorization of 65536×32768 f16 at l = 74 took 1.35 times as long (two Zen 5 cores, bench `batch`, out-of-core). Blocks of 64 to 256 rows and a depth of 512 to
//! 2048, and the same across, are within 8 % of each other; a third of the time is conversion, which waits for memory.
//!
//! Where the rows of a tile are few and long, they are cut into groups along the depth too, whose sums are added up at the end, in order. Blocks and groups
//! are cut by shape and each is done by one thread: the same bits for any number of them. Threads take blocks from a queue, since one of
//! them may be busy with reading the next tile.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par, unzip, zip};
use rayon::prelude::*;

use super::dense::convert_tile;
use super::host::HostContext;
use super::product::{is_by_rows, product};
use crate::simd::Scalar;
use crate::tensor::{MatView, with_view};

/// Sizes of the blocks.
#[derive(Clone, Copy)]
struct Params {
    /// Rows of a block.
    rows: usize,
    /// Its columns.
    depth: usize,
}

/// Where rows are contiguous.
const ALONG: Params = Params { rows: 128, depth: 1024 };
/// Where columns are.
const ACROSS: Params = Params { rows: 1024, depth: 128 };
/// Depth of a group, at least.
const GROUP: usize = 2048;
/// Rows of all partial sums together, at most: what [`product`] takes for a matrix that is large enough to have groups.
const PARTIAL_ROWS: usize = 1024;

/// Elements of scratch that one thread takes, of a tile of `lines` lines of `width` elements, either way round.
pub(super) fn block_elements(lines: usize, width: usize) -> usize {
    let block =
        |Params { rows, depth }: Params| (rows.min(lines) * depth.min(width)).max(rows.min(width) * depth.min(lines));
    block(ALONG).max(block(ACROSS))
}

/// `y <- [y +] scale · a x`, on as many threads as `scratch` has room for blocks ([`block_elements`]).
pub(super) fn stored_product<T: Scalar>(
    accum: Accum,
    a: MatView<'_>,
    scale: f64,
    x: MatRef<'_, T>,
    mut y: MatMut<'_, T>,
    scratch: &mut [T],
    context: &HostContext,
) {
    if let (Some(a), true) = (a.typed::<T>(), scale == 1.0) {
        return product(accum, a, x, y, context);
    }
    let (m, n, l) = (a.nrows(), a.ncols(), x.ncols());
    let params = if with_view!(a, a => is_by_rows(a)) { ALONG } else { ACROSS };
    assert!(params.rows.min(m) * params.depth.min(n) <= scratch.len(), "no room to convert a block");
    let groups = (PARTIAL_ROWS / m).clamp(1, n.div_ceil(GROUP));
    let span = n.div_ceil(groups).next_multiple_of(params.depth);
    let mut work = Vec::new();
    if groups == 1 {
        bands(y, params.rows, |first, y| work.push(Block { first, depth: 0..n, y, accum }));
        return each(work, a, scale, x, params, scratch, context);
    }
    let mut parts = context.buffer::<T>(groups * m * l);
    let by_rows = y.row_stride() != 1;
    for (g, part) in parts.chunks_exact_mut(m * l).enumerate() {
        let part = if by_rows {
            MatMut::from_row_major_slice_mut(part, m, l)
        } else {
            MatMut::from_column_major_slice_mut(part, m, l)
        };
        let depth = (g * span).min(n)..((g + 1) * span).min(n);
        bands(part, params.rows, |first, y| {
            work.push(Block { first, depth: depth.clone(), y, accum: Accum::Replace });
        });
    }
    each(work, a, scale, x, params, scratch, context);
    if accum == Accum::Replace {
        y.fill(T::zeroed());
    }
    for part in parts.chunks_exact(m * l) {
        let part = if by_rows {
            MatRef::from_row_major_slice(part, m, l)
        } else {
            MatRef::from_column_major_slice(part, m, l)
        };
        zip!(y.rb_mut(), part).for_each(|unzip!(sum, x)| *sum += *x);
    }
}

/// Rows of `y` from the first on, with the columns of A that add to them.
struct Block<'y, T> {
    first: usize,
    depth: Range<usize>,
    y: MatMut<'y, T>,
    accum: Accum,
}

/// Calls `f(first row, block)` for blocks of at most `rows` rows.
fn bands<'y, T>(mut y: MatMut<'y, T>, rows: usize, mut f: impl FnMut(usize, MatMut<'y, T>)) {
    let mut first = 0;
    while y.nrows() > 0 {
        let count = rows.min(y.nrows());
        let (block, rest) = y.split_at_row_mut(count);
        f(first, block);
        first += count;
        y = rest;
    }
}

/// Does all blocks, each on the next thread that is free.
fn each<T: Scalar>(
    blocks: Vec<Block<'_, T>>,
    a: MatView<'_>,
    scale: f64,
    x: MatRef<'_, T>,
    params: Params,
    scratch: &mut [T],
    context: &HostContext,
) {
    let run = |buffer: &mut [T], Block { first, depth, mut y, mut accum }: Block<'_, T>| {
        let band = a.subrows(first, y.nrows()).transpose();
        let end = depth.end;
        for start in depth.step_by(params.depth) {
            let count = params.depth.min(end - start);
            let part = band.subrows(start, count).transpose();
            let part = convert_tile(part, &mut buffer[..y.nrows() * count], scale, Par::Seq);
            matmul(y.rb_mut(), accum, part, x.subrows(start, count), T::one(), Par::Seq);
            accum = Accum::Add;
        }
    };
    let queue = Mutex::new(blocks.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = |buffer: &mut [T]| {
        while let Some(block) = next() {
            run(buffer, block);
        }
    };
    match context.par() {
        Par::Seq => work(scratch),
        Par::Rayon(_) => {
            scratch.par_chunks_exact_mut(params.rows.min(a.nrows()) * params.depth.min(a.ncols())).for_each(work);
        }
    }
}
