//! Factors a matrix whose rows are spread over ranks: the same plan and the same methods on the space of `mpi`.
//!
//! The plan is that of one process that holds the whole matrix, so that all ranks, and any number of them, take the
//! same method. Before it starts they compare what they were asked for; when one of them fails, all end with its error.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use faer::Par;

use super::calibrated::{self, Weight};
use super::finish::{finish, run};
use super::methods::single_pass::{self, State};
use super::options::{Device, Options};
use super::plan::Plan;
use super::task::{Residency, Task, looks_once};
use super::weighting::{Side, Weighting};
use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::mpi::{Blocks, Communicator, Counted, Everywhere, Ranks, RowBlocks, Traffic, agree};
use crate::operator::{Facts, LinearOperator, Root, RowSource, Watch};
use crate::rank::Rank;
use crate::report::Method;
use crate::simd::{self, Scalar};
use crate::tensor::Matrix;

/// The factors of a distributed matrix, as one rank has them: its own part of the long one, and all of the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct RankFactors<T> {
    /// The factors. U has the rows `own` alone, or Vᵀ the columns `own` if the matrix is wide; s, the other one and the
    /// report are those of the whole matrix.
    pub factors: Factors<T>,
    /// The rows or columns of the matrix that this rank has read.
    pub own: Range<usize>,
    /// What this rank has sent.
    pub traffic: Traffic,
}

impl<T: Scalar> RankFactors<T> {
    /// Puts the factors together on rank 0, which needs the memory for them; the others return `None`. All ranks call
    /// it.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn gather(self, comm: &dyn Communicator) -> Result<Option<Factors<T>>> {
        let RankFactors { factors, own, .. } = self;
        let (wide, (m, n), k) = (factors.is_wide(), factors.report().shape, factors.rank());
        let mine = if wide { factors.vt() } else { factors.u() };
        if comm.rank() > 0 {
            comm.exchange(Some((0, bytemuck::cast_slice(mine.as_slice()))), None)?;
            return Ok(None);
        }
        let mut long = if wide { Matrix::zeros(k, n) } else { Matrix::zeros(m, k) };
        let mut put = |own: Range<usize>, part: &[T]| match wide {
            true => (0..k).filter(|_| !own.is_empty()).for_each(|i| {
                let line = &part[i * own.len()..(i + 1) * own.len()];
                long.as_mut_slice()[i * n + own.start..i * n + own.end].copy_from_slice(line);
            }),
            false => long.as_mut_slice()[own.start * k..own.end * k].copy_from_slice(part),
        };
        put(own, mine.as_slice());
        for rank in 1..comm.size() {
            let own = Blocks::new((m.max(n), m.min(n)), rank, comm.size()).own_rows();
            let mut part = vec![T::zeroed(); own.len() * k];
            comm.exchange(None, Some((rank, bytemuck::cast_slice_mut(&mut part))))?;
            put(own, &part);
        }
        Ok(Some(factors.with_long(long)))
    }
}

/// A hash of a text that is written to it (FNV-1a).
struct Hash(u64);

impl std::fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 = text.bytes().fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Ok(())
    }
}

/// Factors the matrix of `source` on all ranks of `comm`.
pub(super) fn factor<T: Scalar>(
    options: &Options,
    comm: &dyn Communicator,
    source: &mut dyn RowSource,
    watch: &Watch<'_>,
) -> Result<RankFactors<T>> {
    let start = Instant::now();
    let comm = &Counted::new(comm);
    compare::<T>(options, comm, source)?;
    let (shape, dtype) = (source.shape(), source.dtype());
    if options.device != Device::Cpu {
        return Err(Error::unsuited("device", "takes no distributed matrix but the CPU; leave it out"));
    }
    if options.weighting.is_two_sided() {
        let why = "weighs the outputs of a matrix in one memory, and this one is distributed; leave one of them out";
        return Err(Error::unsuited("output_calibration", why));
    }
    let elements = shape.0.checked_mul(shape.1).filter(|&elements| elements <= isize::MAX as usize / 8);
    if elements.is_none() {
        return Err(Error::TooLarge { shape: vec![shape.0, shape.1] });
    }
    let par = crate::parallel::current_par();
    let everywhere = Options { memory_limit: None, ..options.clone() };
    let plan = Plan::new(Task::new::<T>(&everywhere, shape, dtype, Residency::InMemory)?)?;
    let space = Ranks::new(comm, plan.task.tall(), par);
    let own = space.blocks().own_rows();
    let (least, part) = memory::<T>(&everywhere, &plan, &space)?;
    let hold = match options.memory_limit {
        Some(limit) if least > limit => return Err(Error::Memory { limit, least }),
        limit => limit.is_none_or(|limit| least + part <= limit),
    };
    let mut op = RowBlocks::<T>::new(source, space.clone(), hold, watch.clone())?;
    let factors = if options.is_weighted() {
        let root = |entries| Ok(Everywhere::boxed(Root::boxed(entries, space.host()), &space));
        let weight = Weight::Tiles(shape, dtype);
        calibrated::factor(&everywhere, Residency::InMemory, &mut op, &root, weight, par, start)
    } else if looks_once(plan.method) {
        one_look(&mut op, plan, par, start)
    } else {
        run(&mut op, plan, par, start)
    };
    // A failure since the last sum is known to its rank alone.
    let failure = op.space().failure().map(|e| e.to_string());
    if factors.is_ok() {
        agree(comm, failure.as_deref())?;
    }
    let mut factors = factors?;
    let report = factors.report_mut();
    match comm.size() {
        1 => report.reason.push_str("; on one rank"),
        size => report.reason.push_str(&format!("; on {size} ranks")),
    }
    Ok(RankFactors { factors, own, traffic: comm.traffic() })
}

/// Returns the most bytes that a rank takes if it reads its rows in every pass, and those of its rows. They are those
/// of the rank with most rows, so that all ranks decide alike:
///
/// ```text
///   the method on these rows  +  these rows of U, twice as they come home
///                             +  sums: B blocks have log₂ B + 1 open at most
///                             +  two read buffers and a converted block
/// ```
///
/// One look at the matrix ends with the range whole on every rank, and takes three times that.
fn memory<T: Scalar>(options: &Options, plan: &Plan, space: &Ranks<'_>) -> Result<(usize, usize)> {
    let (m, n) = plan.task.tall();
    let blocks = space.blocks();
    let rows = (0..blocks.size()).map(|rank| blocks.rows_within(&blocks.of_rank(rank)).len()).max().unwrap_or(m);
    let rank = plan.rank.map_or(options.rank, Rank::Fixed);
    let local = Options { method: plan.method, rank, ..options.clone() };
    let task = Task::new::<T>(&local, (rows.max(n), n), plan.dtype, Residency::InMemory)?;
    let method = Plan::new(task)?.peak_bytes;
    let home = if looks_once(plan.method) { 3 * m * plan.width } else { 2 * rows * plan.task.largest_rank() };
    let largest_sum = if plan.method == Method::Gram { n * (n + 1) / 2 } else { n * plan.width };
    let open = blocks.count().next_power_of_two().ilog2() as usize + 2;
    let at_once = RowBlocks::<T>::parts_at_once(largest_sum);
    let sums = (open + 2 * at_once) * largest_sum;
    let block = blocks.height() * n;
    // Moments of the long side, and the weight between them, are whole on each rank.
    let moments = if options.is_weighted() && plan.shape.0 < plan.shape.1 { m * (3 * m + 2 * n) } else { 0 };
    let elements = home + sums + 2 * at_once * block + moments;
    let buffers = 2 * block * plan.dtype.size();
    Ok((method + elements * size_of::<T>() + buffers, rows * n * plan.dtype.size()))
}

/// Factors from one look: the sketches of each block of rows are sums like those of the other methods, but for the
/// range, whose rows every rank gets.
fn one_look<T: Scalar>(op: &mut RowBlocks<'_, '_, T>, plan: Plan, par: Par, start: Instant) -> Result<Factors<T>> {
    let Facts { shape, norm_squared, scale, .. } = op.facts();
    let target = plan.target(norm_squared, scale);
    let mut state = State::new(&plan.task, plan.method, shape)?;
    let sums = op.sum_of_rows(state.length_of_sums(), |first, rows| {
        state.add(first, rows, par)?;
        Ok(state.take_sums())
    })?;
    state.put_sums(&sums);
    drop(sums);
    op.space().share_rows(state.range.as_mut())?;
    state.norm_squared = norm_squared;
    let solution = single_pass::of_state(&plan.task, plan.method, state, &target, par)?;
    finish(op, plan, solution, Some(&target), par, start)
}

/// Compares what the ranks were asked for, and how they compute.
fn compare<T: Scalar>(options: &Options, comm: &dyn Communicator, source: &dyn RowSource) -> Result<()> {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    // A calibration also holds what was computed from it on the way; its statistics are what counts.
    let statistics = |c: &Calibration| (c.features(), c.samples(), c.skipped(), c.exponent(), c.largest().to_vec());
    let Weighting { inputs, quality_on, .. } = &options.weighting;
    let Side { calibration, whitening, blend } = inputs;
    let weighting = (calibration.as_ref().map(statistics), quality_on.as_ref().map(statistics), whitening, blend);
    let same = Options { weighting: Weighting::default(), ..options.clone() };
    let of_source = (source.shape(), source.dtype(), source.is_column_major());
    write!(hash, "{same:?} {weighting:?} {of_source:?} {:?} {:?}", T::DTYPE, simd::isa())
        .expect("a hash takes what is written");
    let mut all = vec![0_u64; comm.size()];
    let lengths = vec![size_of::<u64>(); comm.size()];
    comm.gather(&hash.0.to_ne_bytes(), &lengths, bytemuck::cast_slice_mut(&mut all))?;
    match all.iter().position(|&other| other != all[0]) {
        None => Ok(()),
        Some(rank) => {
            let what =
                "has other options, another matrix, or another instruction set than rank 0; start all ranks alike";
            Err(Error::Remote { rank, what: what.to_owned() })
        }
    }
}
