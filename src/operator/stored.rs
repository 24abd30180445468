//! Multiplies a matrix as it is stored with a panel: elements are converted where they are multiplied.
//!
//! ```text
//!              depth d                            by one thread, blocks along the depth in order:
//!        ┌──────┬──────┬─────┐
//!   rows │ A_i1 │ A_i2 │ ... │  Y_i = Σ_j  convert(A_ij) X_j     the converted block stays in L2, Y_i and X_j near it
//!        ├──────┼──────┼─────┤
//!        │        ...        │
//! ```
//!
//! **Cost.** `2 m n l` flops, A read once in its own type. Converting a whole tile first, as for a Gram matrix, would
//! send every element through memory three times more at twice the width, and would leave `A X` of a tile of few long
//! rows to one thread (`benches/NOTES.md`). Tiles are cut by shape ([`Bands`], [`Chunks`]) and each part is done by one
//! thread, so that the bits are the same for any number of them.
//!
//! ```text
//!   Bands: lines are rows of Y,               Chunks: lines are columns of A, all tiles add to Y
//!   each tile writes its own
//!                                                      Y ┌ chunk ┬───────┬────
//!          ┌─ span ─┬────────┬─── groups         tile i  │ group g of lines: a sum for each chunk and group,
//!     band │        │        │   their sums are          ├───────┼───────┼────   which goes on over the tiles,
//!          ├────────┼────────┤   added in order       tile i+1                   in order
//!          │        │        │   when the last is there
//! ```

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};

use super::dense::convert_tile;
use crate::linalg::is_by_rows;
use crate::simd::Scalar;
use crate::tensor::{MatView, with_view};

/// Sizes of the blocks that are converted.
#[derive(Clone, Copy)]
struct Params {
    /// Rows of a block.
    rows: usize,
    /// Columns of a block.
    depth: usize,
}

/// The sizes where rows are contiguous.
const ALONG: Params = Params { rows: 128, depth: 1024 };
/// The sizes where columns are contiguous.
const ACROSS: Params = Params { rows: 1024, depth: 128 };
/// How many parts of a tile are enough for many threads to end at much the same time.
const PARTS: usize = 16;
/// The least rows of a band, and of a chunk.
const BAND: usize = 64;
const CHUNK: usize = 128;
/// The least depth of a group.
const GROUP: usize = 2048;
/// The most rows of all partial sums together.
const PARTIAL_ROWS: usize = 1024;

/// Returns the elements of scratch that one thread takes for a tile of `lines` lines of `width` elements, either way
/// round.
pub(super) fn block_elements(lines: usize, width: usize) -> usize {
    let block =
        |Params { rows, depth }: Params| (rows.min(lines) * depth.min(width)).max(rows.min(width) * depth.min(lines));
    block(ALONG).max(block(ACROSS))
}

/// The cut of `A X` for a tile whose lines are rows.
pub(super) struct Bands {
    /// Rows of a band, and the number of bands.
    rows: usize,
    bands: usize,
    /// Columns of a group, and the number of groups.
    span: usize,
    pub(super) groups: usize,
}

impl Bands {
    /// Cuts a tile of m × n.
    pub(super) fn new(m: usize, n: usize) -> Self {
        let rows = m.div_ceil(PARTS).next_multiple_of(32).max(BAND);
        let bands = m.div_ceil(rows);
        let most = (PARTS / bands).min(PARTIAL_ROWS / m).max(1);
        let span = n.div_ceil(most.min(n.div_ceil(GROUP))).next_multiple_of(ALONG.depth.min(n));
        Bands { rows, bands, span, groups: n.div_ceil(span) }
    }

    pub(super) fn parts(&self) -> usize {
        self.bands * self.groups
    }

    /// Returns the rows and columns of a part of a tile of m × n, the last of which has fewer rows.
    pub(super) fn part(&self, part: usize, m: usize, n: usize) -> (Range<usize>, Range<usize>) {
        let (band, group) = (part / self.groups, part % self.groups);
        (share(band, self.rows, m), share(group, self.span, n))
    }
}

/// The cut of `A X`, m × n, as a sum over tiles whose lines are columns of A.
pub(super) struct Chunks {
    /// Rows of a chunk, and the number of chunks.
    pub(super) rows: usize,
    chunks: usize,
    /// Lines of a group, and the number of groups.
    span: usize,
    pub(super) groups: usize,
}

impl Chunks {
    /// Cuts a result of m rows and tiles of `lines` lines.
    pub(super) fn new(m: usize, lines: usize) -> Self {
        let rows = m.div_ceil(PARTS).next_multiple_of(32).clamp(CHUNK, ACROSS.rows);
        let groups = (PARTIAL_ROWS / m).clamp(1, lines.div_ceil(GROUP));
        let span = lines.div_ceil(groups);
        Chunks { rows, chunks: m.div_ceil(rows), span, groups: lines.div_ceil(span) }
    }

    /// Returns the rows and lines of a part. The chunks of one group come one after another.
    pub(super) fn part(&self, part: usize, m: usize, lines: usize) -> (Range<usize>, Range<usize>) {
        let (group, chunk) = (part / self.chunks, part % self.chunks);
        (share(chunk, self.rows, m), share(group, self.span, lines))
    }
}

/// Returns the `i`-th of the equal chunks of length `each` that `0..n` is cut into.
fn share(i: usize, each: usize, n: usize) -> Range<usize> {
    (i * each).min(n)..((i + 1) * each).min(n)
}

/// Splits `y` into blocks of at most `rows` rows.
pub(super) fn split_rows<T>(mut y: MatMut<'_, T>, rows: usize) -> Vec<MatMut<'_, T>> {
    let mut blocks = Vec::with_capacity(y.nrows().div_ceil(rows));
    while y.nrows() > 0 {
        let count = rows.min(y.nrows());
        let (block, rest) = y.split_at_row_mut(count);
        blocks.push(block);
        y = rest;
    }
    blocks
}

/// Returns a part of a view.
pub(super) fn submatrix<'a>(a: MatView<'a>, rows: Range<usize>, columns: Range<usize>) -> MatView<'a> {
    a.subrows(rows.start, rows.len()).transpose().subrows(columns.start, columns.len()).transpose()
}

/// Computes `y <- [y +] scale · a x`, with room for a block ([`block_elements`]) in `scratch`.
pub(super) fn stored_product<T: Scalar>(
    accum: Accum,
    a: MatView<'_>,
    scale: f64,
    x: MatRef<'_, T>,
    y: MatMut<'_, T>,
    scratch: &mut [T],
) {
    if let (Some(a), true) = (a.typed::<T>(), scale == 1.0) {
        return matmul(y, accum, a, x, T::one(), Par::Seq);
    }
    let Params { rows, depth } = if with_view!(a, a => is_by_rows(a)) { ALONG } else { ACROSS };
    let n = a.ncols();
    for (i, mut y) in split_rows(y, rows).into_iter().enumerate() {
        let mut accum = accum;
        for first in (0..n).step_by(depth) {
            let columns = first..n.min(first + depth);
            let block = submatrix(a, i * rows..i * rows + y.nrows(), columns.clone());
            let block = convert_tile(block, &mut scratch[..y.nrows() * columns.len()], scale, Par::Seq);
            matmul(y.rb_mut(), accum, block, x.subrows(first, columns.len()), T::one(), Par::Seq);
            accum = Accum::Add;
        }
    }
}
