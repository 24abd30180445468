//! Communicators: how ranks exchange bytes.
//!
//! A [`Communicator`] has what the sums of `sums.rs` need and nothing else, so that MPI, threads of one process and a
//! single process are told apart in this folder only. All of its data are bytes: MPI has no half precision, and no rank
//! computes what another has not asked for.
//!
//! Every method but `rank`, `size` and `abort` is collective or has a partner: all ranks call them in one order.

use std::cell::Cell;

use crate::error::Result;

/// The ranks of one computation, as one of them sees them.
pub trait Communicator {
    /// Returns the number of this rank, `0..size`.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Sends `message` to a rank, and fills `buffer` with as many bytes from a rank. Either may be left out.
    ///
    /// # Errors
    /// [`Error::Remote`](crate::Error::Remote) if the partner is gone, or calls something else.
    fn exchange(&self, message: Option<(usize, &[u8])>, buffer: Option<(usize, &mut [u8])>) -> Result<()>;

    /// Copies `bytes` of rank `root` to those of all others, which have the same length.
    ///
    /// # Errors
    /// [`Error::Remote`](crate::Error::Remote) if a rank is gone, or calls something else.
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()>;

    /// Puts the bytes of all ranks one after the other into `all` of each of them. Rank r gives `lengths[r]` bytes.
    ///
    /// # Errors
    /// [`Error::Remote`](crate::Error::Remote) if a rank is gone, or calls something else.
    fn gather(&self, mine: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()>;

    /// Waits until all ranks have called it.
    ///
    /// # Errors
    /// [`Error::Remote`](crate::Error::Remote) if a rank is gone, or calls something else.
    fn barrier(&self) -> Result<()>;

    /// Ends the work of all ranks because of what happened on this one. Under MPI the processes end.
    fn abort(&self, why: &str);
}

/// The communicator of a single process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, message: Option<(usize, &[u8])>, buffer: Option<(usize, &mut [u8])>) -> Result<()> {
        if let (Some((_, message)), Some((_, buffer))) = (message, buffer) {
            buffer.copy_from_slice(message);
        }
        Ok(())
    }

    fn broadcast(&self, _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn gather(&self, mine: &[u8], _: &[usize], all: &mut [u8]) -> Result<()> {
        all.copy_from_slice(mine);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn abort(&self, _: &str) {}
}

/// What one rank has sent, where a broadcast and a gathering count as a message to each of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Broadcasts, gatherings and barriers that the rank took part in.
    pub collectives: u64,
    /// Messages from this rank to another one.
    pub messages: u64,
    /// The bytes of these messages.
    pub bytes: u64,
}

/// A communicator that counts.
pub(crate) struct Counted<'c> {
    inner: &'c dyn Communicator,
    traffic: Cell<Traffic>,
}

impl<'c> Counted<'c> {
    pub(crate) fn new(inner: &'c dyn Communicator) -> Self {
        Counted { inner, traffic: Cell::default() }
    }

    /// Returns what this rank has sent so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    fn count(&self, collectives: u64, messages: usize, bytes: usize) {
        let Traffic { collectives: before, messages: sent, bytes: volume } = self.traffic.get();
        self.traffic.set(Traffic {
            collectives: before + collectives,
            messages: sent + messages as u64,
            bytes: volume + (messages * bytes) as u64,
        });
    }
}

impl Communicator for Counted<'_> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn exchange(&self, message: Option<(usize, &[u8])>, buffer: Option<(usize, &mut [u8])>) -> Result<()> {
        if let Some((_, message)) = &message {
            self.count(0, 1, message.len());
        }
        self.inner.exchange(message, buffer)
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        self.count(1, if root == self.rank() { self.size() - 1 } else { 0 }, bytes.len());
        self.inner.broadcast(root, bytes)
    }

    fn gather(&self, mine: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()> {
        self.count(1, self.size() - 1, mine.len());
        self.inner.gather(mine, lengths, all)
    }

    fn barrier(&self) -> Result<()> {
        self.count(1, 0, 0);
        self.inner.barrier()
    }

    fn abort(&self, why: &str) {
        self.inner.abort(why);
    }
}
