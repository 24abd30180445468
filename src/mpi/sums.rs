//! Sums over blocks of rows, in an order that depends on the number of blocks alone.
//!
//! ```text
//!   level 2            ┌───────┴───────┐                     the same tree for any number of ranks
//!   level 1        ┌───┴───┐       ┌───┴───┐
//!   blocks         0       1       2       3       4         a block without a neighbour goes up as it is
//!   ranks         └──── 0 ────┘   └──────── 1 ──────┘        rank 1 sends node 2 + 3 and node 4; rank 0 adds
//! ```
//!
//! A rank adds up the largest subtrees within its blocks, at most `2 log₂ B` of them. A node that several ranks share
//! is added by the owner of its first block, which the others send their parts to; the root is broadcast. All ranks end
//! with its bits.
//!
//! **Cost.** With P a power of two that divides the blocks, P − 1 messages up and as many down, `2 log₂ P` of them
//! after one another. Each other bound between two ranks adds a message for each one in its binary digits.
//!
//! **Failure.** One more number goes with each message: 0, or 1 + the rank that could not give its part. All ranks read
//! it off the root, and then get that rank's error.
//!
//! **Why not an all-reduce by halves** (Rabenseifner): it moves fewer bytes for each rank, but the order of its
//! additions follows the ranks.

use super::blocks::Blocks;
use super::communicator::Communicator;
use crate::error::{Error, Result};
use crate::simd::Scalar;
use crate::tensor::Element;

/// How the two parts of a node are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    Add,
    Max,
}

/// A node of the tree: its level, its number on that level.
type Node = (u32, usize);

/// A sum over blocks, of which this rank's parts come in order.
pub(crate) struct Sum<T> {
    blocks: Blocks,
    merge: Merge,
    length: usize,
    /// Subtrees that are complete, in order, each with room for the mark of a failure at its end.
    parts: Vec<(Node, Vec<T>)>,
    next: usize,
}

impl<T: Scalar> Sum<T> {
    /// Begins a sum of vectors of this length.
    pub(crate) fn new(blocks: Blocks, merge: Merge, length: usize) -> Self {
        Sum { blocks, merge, length, parts: Vec::new(), next: blocks.own().start }
    }

    /// Adds the part of the next block of this rank.
    pub(crate) fn push(&mut self, mut part: Vec<T>) {
        part.truncate(self.length);
        part.push(T::zeroed());
        self.parts.push(((0, self.next), part));
        self.next += 1;
        let count = self.blocks.count();
        while let Some(((level, index), _)) = self.parts.last() {
            let (level, index) = (*level, *index);
            let above = (level + 1, index / 2);
            if index % 2 == 1 && self.parts.len() > 1 && self.parts[self.parts.len() - 2].0 == (level, index - 1) {
                let (_, right) = self.parts.pop().expect("two are there");
                let (node, left) = self.parts.last_mut().expect("two are there");
                *node = above;
                merge(self.merge, left, &right);
            } else if index % 2 == 0 && index > 0 && (index + 1) << level >= count {
                // Nothing is on the right of it.
                self.parts.last_mut().expect("it is there").0 = above;
            } else {
                break;
            }
        }
    }

    /// Puts the parts of all ranks together. `failure` says that this rank has not all of its parts.
    ///
    /// # Errors
    /// The failure of a rank, the same one on all of them; those of the communicator.
    pub(crate) fn finish(mut self, comm: &dyn Communicator, failure: Option<&Error>) -> Result<Vec<T>> {
        let levels = self.blocks.count().next_power_of_two().ilog2();
        let root = self.climb(comm, (levels, 0), failure.is_some())?;
        let mut root = root.unwrap_or_else(|| vec![T::zeroed(); self.length + 1]);
        if self.blocks.size() > 1 {
            comm.broadcast(self.blocks.owner(0), bytemuck::cast_slice_mut(&mut root))?;
        }
        match Element::to_f64(root[self.length]) as usize {
            0 => {
                root.truncate(self.length);
                Ok(root)
            }
            mark => Err(told(comm, mark - 1, failure.map(ToString::to_string).as_deref())),
        }
    }

    /// Computes a node, if this rank is the owner of its first block, and does its share for it otherwise.
    fn climb(&mut self, comm: &dyn Communicator, node: Node, failed: bool) -> Result<Option<Vec<T>>> {
        let me = self.blocks.rank();
        let (level, index) = node;
        let (first, end) = (index << level, ((index + 1) << level).min(self.blocks.count()));
        let (holder, last) = (self.blocks.owner(first), self.blocks.owner(end - 1));
        if me < holder || me > last {
            return Ok(None);
        }
        if holder == last {
            return Ok(Some(self.take(first, failed)));
        }
        let middle = (2 * index + 1) << (level - 1);
        let left = self.climb(comm, (level - 1, 2 * index), failed)?;
        if middle >= end {
            return Ok(left);
        }
        let right = self.climb(comm, (level - 1, 2 * index + 1), failed)?;
        let other = self.blocks.owner(middle);
        let Some(mut left) = left else {
            if let Some(right) = right {
                comm.exchange(Some((holder, bytemuck::cast_slice(&right))), None)?;
            }
            return Ok(None);
        };
        let right = match right {
            Some(right) => right,
            None => {
                let mut right = vec![T::zeroed(); self.length + 1];
                comm.exchange(None, Some((other, bytemuck::cast_slice_mut(&mut right))))?;
                right
            }
        };
        merge(self.merge, &mut left, &right);
        Ok(Some(left))
    }

    /// Takes the subtree that begins with a block, or what stands for it after a failure.
    fn take(&mut self, first: usize, failed: bool) -> Vec<T> {
        let at = self.parts.iter().position(|((level, index), _)| index << level == first);
        match at {
            Some(at) if !failed => self.parts.swap_remove(at).1,
            _ => {
                let mut part = vec![T::zeroed(); self.length + 1];
                part[self.length] = <T as Element>::from_f64((self.blocks.rank() + 1) as f64);
                part
            }
        }
    }
}

/// Merges two parts. Of two marks of failures the one on the left stays.
fn merge<T: Scalar>(merge: Merge, left: &mut [T], right: &[T]) {
    let (Some((mark, left)), Some((other, right))) = (left.split_last_mut(), right.split_last()) else { return };
    match merge {
        Merge::Add => left.iter_mut().zip(right).for_each(|(x, y)| *x += *y),
        Merge::Max => left.iter_mut().zip(right).for_each(|(x, y)| *x = if *y > *x { *y } else { *x }),
    }
    if *mark == T::zeroed() {
        *mark = *other;
    }
}

/// How many bytes of an error text are told.
const TEXT: usize = 1024;

/// Tells all ranks what happened on rank `from`, and returns it as an error. `mine` is its error on that rank.
pub(crate) fn told(comm: &dyn Communicator, from: usize, mine: Option<&str>) -> Error {
    let mut bytes = [b' '; TEXT];
    if comm.rank() == from {
        let text = mine.unwrap_or_default();
        let length = text.len().min(TEXT);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
    }
    match comm.broadcast(from, &mut bytes) {
        Ok(()) => Error::Remote { rank: from, what: String::from_utf8_lossy(&bytes).trim_end().to_owned() },
        Err(e) => e,
    }
}

/// Returns the failure of the first rank that has one, in words, as an error on all ranks. All of them call this.
///
/// # Errors
/// [`Error::Remote`] with that failure; those of the communicator.
pub fn agree(comm: &dyn Communicator, failure: Option<&str>) -> Result<()> {
    let mut all = vec![0; comm.size()];
    comm.gather(&[u8::from(failure.is_some())], &vec![1; comm.size()], &mut all)?;
    match all.iter().position(|&failed| failed != 0) {
        Some(from) => Err(told(comm, from, failure)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::Threads;
    use super::*;

    fn sum_of(comm: &Threads, rows: usize, failing: &[usize]) -> Result<Vec<f32>> {
        let blocks = Blocks::new((rows, 1), comm.rank(), comm.size());
        let mut sum = Sum::new(blocks, Merge::Add, 3);
        let failure = failing.contains(&comm.rank()).then_some(Error::Cancelled);
        for block in blocks.own() {
            // Numbers of many sizes, whose sum depends on the order.
            let x = ((block * 7919) % 1009) as f32 * 2f32.powi((block % 40) as i32 - 20);
            sum.push(vec![x, -0.3 * x, 1.0]);
        }
        sum.finish(comm, failure.as_ref())
    }

    #[test]
    fn a_sum_has_the_same_bits_on_any_number_of_ranks() {
        for rows in [1, 128, 129, 300, 640, 1537, 4000, 16_384] {
            let want = Threads::run(1, |comm| sum_of(comm, rows, &[]).unwrap()).remove(0);
            assert_eq!(want[2] as usize, rows.div_ceil(128));
            for size in [2, 3, 4, 5, 7, 8, 13, 32] {
                for got in Threads::run(size, |comm| sum_of(comm, rows, &[]).unwrap()) {
                    assert_eq!(got, want, "{rows} rows on {size} ranks");
                }
            }
        }
    }

    #[test]
    fn a_failure_reaches_all_ranks() {
        for (size, failing) in [(1, vec![0]), (2, vec![1]), (5, vec![3, 1]), (7, vec![6])] {
            let first = *failing.iter().min().unwrap();
            for got in Threads::run(size, |comm| sum_of(comm, 4000, &failing)) {
                assert_eq!(got, Err(Error::Remote { rank: first, what: Error::Cancelled.to_string() }));
            }
        }
    }

    #[test]
    fn ranks_that_call_different_things_learn_of_it() {
        let ends = Threads::run(3, |comm| match comm.rank() {
            1 => comm.barrier(),
            _ => comm.broadcast(0, &mut [0; 4]),
        });
        assert!(ends[1].is_err());
        let ends = Threads::run(2, |comm| if comm.rank() == 0 { Ok(()) } else { comm.barrier() });
        assert!(matches!(&ends[1], Err(Error::Remote { rank: 0, .. })), "{:?}", ends[1]);
    }
}
