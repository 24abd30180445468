//! The ranks of a run that was started by `mpirun` or `srun`, and what they tell each other about failures.
//!
//! Every rank reads and checks the command line itself. Before the factorization and at the end of the run they agree
//! on whether all is well. If it is not, the first rank that failed says so, and all end with exit code 1; the others
//! say nothing.
//!
//! **One file of all ranks.** The long factor is written by all of them, each its own rows (or a piece of each line, if it
//! is Vᵀ), at their place in one temporary file of rank 0:
//!
//! ```text
//!   rank 0   header, length, name ─┐                   ┌─> checksum of all pieces in order ─> rename
//!   all      ──────────────────────┴─> pieces, sync ───┘
//! ```

use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tensorslim::mpi::{Alone, Communicator, Traffic, agree};
use tensorslim::svd::RankFactors;
use tensorslim::{DType, Error, Factors, Scalar, npy};

use crate::args::Form;
use crate::failure::{Failure, complain};
use crate::output::long_factor;
use crate::writer::{self, Staged, unwritable};

/// The longest name of a file that rank 0 tells.
const NAME: usize = 4096;

/// Factors, of which this process may have its own rows of the long one alone.
pub(crate) struct Made<T> {
    pub(crate) factors: Factors<T>,
    /// These rows, or columns of a wide matrix, if there are several ranks.
    pub(crate) own: Option<Range<usize>>,
}

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

    /// Says why all ranks end, before any of them does: a launcher ends the others when the first has ended with a failure.
    pub(crate) fn say<R>(&self, result: Result<R, Failure>) -> Result<R, Failure> {
        let (Some(comm), Err(Failure(line))) = (self.comm(), &result) else { return result };
        if !line.is_empty() {
            complain(line);
        }
        let _ = comm.barrier();
        Err(Failure(String::new()))
    }

    /// Puts factors together on rank 0. Nothing is left for the others to do.
    pub(crate) fn gather<T: Scalar>(&self, made: Made<T>) -> Result<Option<Made<T>>, Failure> {
        let Made { factors, own: Some(own) } = made else { return Ok(Some(made)) };
        let part = RankFactors { factors, own, traffic: Traffic::default() };
        let whole = part.gather(self.comm().unwrap_or(&Alone)).map_err(|e| self.known_to_all(&e))?;
        Ok(whole.map(|factors| Made { factors, own: None }))
    }

    /// Writes the file of the long factor in `dir`, each rank its own part, which is rounded to `dtype`. Rank 0 returns
    /// the file. All ranks call it, or [`agree`](Self::agree) on a failure.
    pub(crate) fn write_long<T: Scalar>(
        &self,
        dir: &Path,
        (form, dtype): (Form, DType),
        factors: &Factors<T>,
        own: &Range<usize>,
    ) -> Result<Option<Staged>, Failure> {
        let Some(comm) = self.comm() else { return Ok(None) };
        let ((m, n), k) = (factors.report().shape, factors.rank());
        let wide = m < n;
        let (name, elements) = long_factor(form, wide, factors);
        let path = dir.join(name);
        // A piece of this rank in each line of the file; rows of U that follow each other are one piece.
        let (shape, lines, unit) = if wide { ([k, n], k, 1) } else { ([m, k], 1, k) };
        let header = npy::header(dtype, &shape).map_err(|e| Failure(unwritable(&path, &e).to_string()));
        let header = self.agree(header)?;
        let (line, size) = (shape[0] * shape[1] / lines, dtype.size());
        let bytes = (header.len() + lines * line * size) as u64;
        let begun = if self.writes() { Some(Staged::begun(&path, &header, bytes)).transpose() } else { Ok(None) };
        let mut begun = self.agree(begun.map_err(Failure::from).and_then(|begun| {
            begun.as_ref().map_or(Ok(()), |begun| short_enough(begun.temporary()))?;
            Ok(begun)
        }))?;
        let mut told = [0; NAME];
        if let Some(begun) = &begun {
            let text = begun.temporary().as_os_str().as_encoded_bytes();
            told[..text.len()].copy_from_slice(text);
        }
        comm.broadcast(0, &mut told).map_err(|e| self.known_to_all(&e))?;
        let end = told.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        let temporary = PathBuf::from(String::from_utf8_lossy(&told[..end]).into_owned());

        let length = own.len() * unit;
        let piece = |i: usize| {
            let place = header.len() + (i * line + own.start * unit) * size;
            (place as u64, &elements[i * length..(i + 1) * length])
        };
        let written = writer::write_pieces(&temporary, dtype, (0..lines).map(piece));
        let sums = self.agree(written.map_err(|e| Failure(unwritable(&path, &e).to_string())))?;

        // The length of a piece, and the checksums of this rank's.
        let mine: Vec<u64> = std::iter::once((length * size) as u64).chain(sums.into_iter().map(u64::from)).collect();
        let mut all = vec![0_u64; mine.len() * comm.size()];
        let lengths = vec![size_of_val(&mine[..]); comm.size()];
        comm.gather(bytemuck::cast_slice(&mine), &lengths, bytemuck::cast_slice_mut(&mut all))
            .map_err(|e| self.known_to_all(&e))?;
        let ended = begun.as_mut().map_or(Ok(()), |begun| {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&header);
            for i in 0..lines {
                for of_rank in all.chunks_exact(mine.len()) {
                    let crc32 = u32::try_from(of_rank[1 + i]).expect("it was one");
                    hasher.combine(&crc32fast::Hasher::new_with_initial_len(crc32, of_rank[0]));
                }
            }
            begun.complete(hasher.finalize())
        });
        self.agree(ended.map_err(Failure::from))?;
        Ok(begun)
    }

    /// Returns the failure that all ranks have met together.
    pub(crate) fn known_to_all(&self, e: &Error) -> Failure {
        self.settled.set(true);
        let me = self.comm().unwrap_or(&Alone).rank();
        let speaks = if let Error::Remote { rank, .. } = e { *rank == me } else { me == 0 };
        Failure(if speaks { e.to_string() } else { String::new() })
    }
}

/// Refuses a name that is too long to be told.
fn short_enough(path: &Path) -> Result<(), Failure> {
    if path.as_os_str().len() < NAME && path.to_str().is_some() {
        return Ok(());
    }
    Err(Failure(format!("{}: is too long a name, or no UTF-8, for several ranks; give another --out", path.display())))
}
