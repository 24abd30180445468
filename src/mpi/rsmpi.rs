//! Ranks of an MPI program, through the crate `mpi` (rsmpi).
//!
//! MPI is started for one thread that calls it (`Threading::Funneled`): the space calls its communicator only from the
//! thread that was given to it, and never inside of a parallel step. Data travel as bytes. MPI counts in `int`, so that
//! what is longer than [`MOST`] goes in pieces, the same on both sides.
//!
//! An error inside of MPI ends all processes, which is MPI's own default; there is nothing to return to.

use std::io::Write as _;

use ::mpi::collective::{CommunicatorCollectives as _, Root as _};
use ::mpi::datatype::PartitionMut;
use ::mpi::environment::{Threading, Universe, initialize_with_threading};
use ::mpi::point_to_point::{Destination as _, Source as _};
use ::mpi::topology::{self, Communicator as _, SimpleCommunicator};

use super::communicator::Communicator;
use crate::error::{Error, Result};

/// The most bytes of one message.
const MOST: usize = 1 << 30;

/// The ranks of an MPI communicator.
///
/// It has a context of its own: nothing that the program sends meanwhile is taken for one of its messages.
pub struct Mpi {
    /// It is freed before MPI is finalized: fields are dropped in order.
    comm: SimpleCommunicator,
    _universe: Option<Universe>,
}

impl Mpi {
    /// Starts MPI and takes all of its processes. MPI is finalized when this is dropped.
    ///
    /// # Errors
    /// [`Error::Option`] if MPI was started before (use [`over`](Self::over)), or has no support for threads.
    pub fn start() -> Result<Self> {
        let Some((universe, level)) = initialize_with_threading(Threading::Funneled) else {
            return Err(Error::unsuited("mpi", "was started before; hand over a communicator"));
        };
        if level < Threading::Funneled {
            return Err(Error::unsuited("mpi", "has no support for programs with threads; use a library that has"));
        }
        Ok(Mpi { comm: universe.world().duplicate(), _universe: Some(universe) })
    }

    /// Takes the ranks of a communicator of a program that has started MPI itself. All of them call this.
    pub fn over(comm: &impl topology::Communicator) -> Self {
        Mpi { comm: comm.duplicate(), _universe: None }
    }
}

/// Converts a rank to MPI's type, which every rank fits.
fn number(rank: usize) -> i32 {
    i32::try_from(rank).expect("MPI counts ranks in this type")
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.comm.rank() as usize
    }

    fn size(&self) -> usize {
        self.comm.size() as usize
    }

    fn exchange(&self, message: Option<(usize, &[u8])>, buffer: Option<(usize, &mut [u8])>) -> Result<()> {
        let to = message.map(|(to, bytes)| (self.comm.process_at_rank(number(to)), bytes.chunks(MOST)));
        let from = buffer.map(|(from, bytes)| (self.comm.process_at_rank(number(from)), bytes.chunks_mut(MOST)));
        match (to, from) {
            (Some((to, pieces)), None) => pieces.for_each(|piece| to.send(piece)),
            (None, Some((from, pieces))) => pieces.for_each(|piece| {
                from.receive_into(piece);
            }),
            (Some((to, mut sent)), Some((from, mut received))) => loop {
                let (piece, room) = (sent.next(), received.next());
                if piece.is_none() && room.is_none() {
                    break;
                }
                ::mpi::request::scope(|scope| {
                    let request = piece.map(|piece| to.immediate_send(scope, piece));
                    if let Some(room) = room {
                        from.receive_into(room);
                    }
                    if let Some(request) = request {
                        request.wait();
                    }
                });
            },
            (None, None) => {}
        }
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let root = self.comm.process_at_rank(number(root));
        bytes.chunks_mut(MOST).for_each(|piece| root.broadcast_into(piece));
        Ok(())
    }

    fn gather(&self, mine: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()> {
        if all.len() <= MOST {
            let counts: Vec<i32> = lengths.iter().map(|&length| number(length)).collect();
            let mut next = 0;
            let mut places = Vec::with_capacity(counts.len());
            for count in &counts {
                places.push(next);
                next += count;
            }
            self.comm.all_gather_varcount_into(mine, &mut PartitionMut::new(all, counts, places));
            return Ok(());
        }
        let mut rest = all;
        for (rank, &length) in lengths.iter().enumerate() {
            let (part, after) = rest.split_at_mut(length);
            if rank == self.rank() {
                part.copy_from_slice(mine);
            }
            self.broadcast(rank, part)?;
            rest = after;
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.comm.barrier();
        Ok(())
    }

    fn abort(&self, why: &str) {
        // Nobody is left to tell if this fails, too.
        let _ = writeln!(std::io::stderr(), "error: rank {}: {why}", self.rank());
        self.comm.abort(1)
    }
}
