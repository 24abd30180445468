//! Blocks of rows: how the shape cuts a matrix, and which rank owns which blocks.
//!
//! ```text
//!   rows      0 .. h   h .. 2h   2h .. 3h   ...           h from m and n, never from the number of ranks
//!   blocks       0         1         2      ...  B − 1
//!   ranks     └── 0 ──┘ └───────── 1 ──────────┘ ...      consecutive blocks, near B / P of them each
//! ```
//!
//! **Why such heights.** A block costs an addition to each sum, n² numbers for a Gram matrix against `h n²` products,
//! and packs the right panel again for its GEMM, n l numbers against `h n l` products; below a hundred rows that shows,
//! and where n² numbers leave the caches it shows up to half as many rows as columns. Matrices of a million rows have a
//! thousand blocks, enough for as many ranks.
//!
//! **Why such bounds.** A bound inside of a large subtree makes its sums travel in pieces. Bounds are therefore rounded
//! to a power of two of blocks, an eighth of a rank's share at most.

use std::ops::Range;

/// The fewest and the most rows of a block.
const HEIGHTS: (usize, usize) = (128, 1024);

/// How many blocks are aimed at between these heights.
const BLOCKS: usize = 128;

/// The blocks of a matrix of m rows, and their owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    rows: usize,
    height: usize,
    rank: usize,
    size: usize,
}

impl Blocks {
    /// Cuts the rows of a matrix of `rows × columns` for rank `rank` of `size`.
    pub(crate) fn new((rows, columns): (usize, usize), rank: usize, size: usize) -> Self {
        let (least, most) = HEIGHTS;
        let height = rows.div_ceil(BLOCKS).max(columns / 2).next_multiple_of(32).clamp(least, most);
        Blocks { rows, height, rank, size }
    }

    /// Returns the rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the rows of a block that is not the last.
    pub(crate) fn height(&self) -> usize {
        self.height
    }

    /// Returns the number of blocks.
    pub(crate) fn count(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// Returns the rows of a block.
    pub(crate) fn rows_of(&self, block: usize) -> Range<usize> {
        let bound = |block: usize| (block * self.height).min(self.rows);
        bound(block)..bound(block + 1)
    }

    /// Returns the first block of a rank; that of `size` is the number of blocks.
    fn bound(&self, rank: usize) -> usize {
        let count = self.count();
        if rank >= self.size {
            return count;
        }
        let share = count / (8 * self.size);
        let grain = if share == 0 { 1 } else { 1 << share.ilog2() };
        let ideal = rank as u128 * count as u128;
        let unit = (grain * self.size) as u128;
        // To the nearest multiple of the grain; without a grain, down.
        let rounded = if grain == 1 { ideal / unit } else { (ideal + unit / 2) / unit };
        (rounded as usize * grain).min(count)
    }

    /// Returns the blocks of a rank.
    pub(crate) fn of_rank(&self, rank: usize) -> Range<usize> {
        self.bound(rank)..self.bound(rank + 1)
    }

    /// Returns the blocks of this rank.
    pub(crate) fn own(&self) -> Range<usize> {
        self.of_rank(self.rank)
    }

    /// Returns the rows that some blocks have.
    pub(crate) fn rows_within(&self, blocks: &Range<usize>) -> Range<usize> {
        self.rows_of(blocks.start).start..self.rows_of(blocks.end).start
    }

    /// Returns the rows of this rank.
    pub(crate) fn own_rows(&self) -> Range<usize> {
        self.rows_within(&self.own())
    }

    /// Returns the rank that owns a block.
    pub(crate) fn owner(&self, block: usize) -> usize {
        let (mut low, mut high) = (0, self.size);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.bound(middle) <= block { low = middle } else { high = middle }
        }
        low
    }

    /// Returns the number of ranks.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Returns the number of this rank.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }
}

#[cfg(test)]
mod tests {
    use super::Blocks;

    /// All ranks together own each block once, evenly, and the cut does not depend on their number.
    #[test]
    fn every_block_has_one_owner() {
        for rows in [1, 127, 128, 129, 300, 1537, 20_000, 1_000_000, 1_000_000_000] {
            let cut = Blocks::new((rows, 100), 0, 1);
            for size in [1, 2, 3, 4, 7, 8, 64, 1000] {
                let blocks = Blocks::new((rows, 100), 0, size);
                assert_eq!((blocks.count(), blocks.height()), (cut.count(), cut.height()));
                let mut next = 0;
                for rank in 0..size {
                    let own = blocks.of_rank(rank);
                    assert_eq!(own.start, next);
                    next = own.end;
                    let even = blocks.count() as f64 / size as f64;
                    assert!((own.len() as f64 - even).abs() <= 1.0 + even / 8.0, "{rows} {size} {rank}: {own:?}");
                    for block in [own.start, own.end.saturating_sub(1)] {
                        assert!(own.is_empty() || blocks.owner(block) == rank, "{rows} {size} {rank} {block}");
                    }
                }
                assert_eq!(next, blocks.count());
            }
        }
    }
}
