//! Ranks: one factorization on several processes, with the same bits for any number of them.
//!
//! ```text
//!   A  m × n   ┌──────────┐ block 0   ┐                    left panels   m × l    each rank has the rows of its blocks
//!              │          │ block 1   ┘ rank 0             right panels  n × l    whole on each rank
//!              ├──────────┤ block 2   ┐                    small         l × l    whole on each rank
//!              │          │ block 3   ┘ rank 1
//!              └──────────┘  ...                           AᵀY = Σ_b A_bᵀ Y_b     by a fixed tree over the blocks
//! ```
//!
//! The folder holds a [`Space`](crate::space::Space) and an operator, and no algorithm: all methods of
//! [`svd`](crate::svd) run on them unchanged.
//!
//! **The same bits.** Rows are cut into blocks by the shape of the matrix alone (`blocks.rs`). Whatever is done with
//! rows is done block by block, each in memory of its own, so that a kernel sees the same shapes whoever owns the
//! block; whatever is summed over rows is summed by one binary tree over the numbers of the blocks (`sums.rs`).
//! `MPI_Allreduce` promises no order. Work on right panels and small matrices is repeated on every rank, which is why
//! the ranks have to run on one kind of CPU; they compare their instruction sets before they start.
//!
//! **Cost.** A sum of s numbers takes 2 (P − 1) messages of s numbers in all where P is a power of two: up the tree,
//! and back by a broadcast. A Gram matrix is one sum of n (n + 1) / 2; the randomized method has q + 1 sums of n l and
//! one of l² for each pass of CholeskyQR.
//!
//! **Failure.** A rank whose own part fails takes part in the sums until the next one ends, with a mark instead of
//! numbers. The mark reaches all ranks with the sum, and all return the same error, which names the rank.
//!
//! MPI itself is in one file (feature `mpi`). The rest runs, and is tested, on threads of one process.

mod blocks;
mod communicator;
mod everywhere;
mod operator;
mod panel;
#[cfg(feature = "mpi")]
mod rsmpi;
mod space;
mod sums;
mod threads;

pub use communicator::{Alone, Communicator, Traffic};
#[cfg(feature = "mpi")]
pub use rsmpi::Mpi;
#[doc(hidden)]
pub use sums::agree;
#[doc(hidden)]
pub use threads::Threads;

pub(crate) use blocks::Blocks;
pub(crate) use communicator::Counted;
pub(crate) use everywhere::Everywhere;
pub(crate) use operator::RowBlocks;
pub(crate) use space::Ranks;
