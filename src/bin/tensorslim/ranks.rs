//! The ranks of a run that was started by `mpirun` or `srun`, and what they tell each other about failures.
//!
//! Every rank reads and checks the command line itself. Before the factorization and at the end of the run they agree
//! on whether all is well. If it is not, the first rank that failed says so, and all end with exit code 1; the others
//! say nothing.

use std::cell::Cell;

use tensorslim::Error;
use tensorslim::mpi::{Alone, Communicator, agree};

use crate::failure::Failure;

/// What launchers tell the processes of an MPI program, one variable each: Open MPI, MPICH and others, PMIx (srun).
#[cfg(feature = "mpi")]
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"];

/// The processes that do one job together.
pub(crate) struct Ranks {
    comm: Option<Box<dyn Communicator>>,
    /// All ranks know of a failure.
    settled: Cell<bool>,
}

impl Ranks {
    /// Joins the other processes, if a launcher of MPI programs has started this one. MPI ends with the value, on the
    /// thread that made it.
    pub(crate) fn join() -> Result<Self, Failure> {
        #[cfg(feature = "mpi")]
        if LAUNCHED.iter().any(|name| std::env::var_os(name).is_some()) {
            let comm: Box<dyn Communicator> = Box::new(tensorslim::mpi::Mpi::start()?);
            return Ok(Ranks { comm: Some(comm), settled: Cell::new(false) });
        }
        Ok(Ranks { comm: None, settled: Cell::new(false) })
    }

    /// Returns the communicator of a distributed run.
    pub(crate) fn comm(&self) -> Option<&dyn Communicator> {
        self.comm.as_deref()
    }

    /// Tells whether this process writes files and reports.
    pub(crate) fn writes(&self) -> bool {
        self.comm().unwrap_or(&Alone).rank() == 0
    }

    /// Agrees with the other ranks on whether all is well. If it is not, the first rank that failed returns why, and
    /// the others return a failure without words.
    pub(crate) fn agree<R>(&self, result: Result<R, Failure>) -> Result<R, Failure> {
        let Some(comm) = self.comm().filter(|_| !self.settled.get()) else { return result };
        let why = result.as_ref().err().map(|Failure(line)| line.as_str());
        match agree(comm, why) {
            Ok(()) => result,
            Err(e) => Err(self.known_to_all(&e)),
        }
    }

    /// Returns the failure that all ranks have met together.
    pub(crate) fn known_to_all(&self, e: &Error) -> Failure {
        self.settled.set(true);
        let me = self.comm().unwrap_or(&Alone).rank();
        let speaks = if let Error::Remote { rank, .. } = e { *rank == me } else { me == 0 };
        Failure(if speaks { e.to_string() } else { String::new() })
    }
}
