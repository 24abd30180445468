//! Gathers the samples and statistics of files into statistics, whole or in parts, and keeps the state of a run that is
//! resumed.

use std::path::Path;

use tensorslim::svd::READ_PER_STATE;
use tensorslim::{Calibration, CalibrationOptions, Error};

use crate::args::CalibrateArgs;
use crate::failure::{Failure, about};
use crate::inputs;
use crate::memory::{self, Limit};
use crate::samples::{FOLDS, Samples, Source, load};
use crate::state::StateFile;

/// Gathers the statistics of all sources together.
pub(crate) fn read(sources: &[Source], options: CalibrationOptions, room: &Room<'_>) -> Result<Calibration, Failure> {
    gather(sources, options, room, None)
}

/// The progress of a run: the statistics of the files that are finished, and of the first rows of the next one.
#[derive(Default)]
struct State {
    files: usize,
    total: Option<Calibration>,
    rows: usize,
    part: Option<Calibration>,
}

/// The file that keeps the progress of a run.
pub(crate) struct Keep(StateFile);

impl Keep {
    /// Opens the file for the inputs as they are now, and the options.
    pub(crate) fn new(args: &CalibrateArgs, path: &Path, options: CalibrationOptions) -> Result<Self, Failure> {
        let stamps =
            args.inputs.iter().map(|path| Ok((path, inputs::stamp(path)?))).collect::<Result<Vec<_>, Error>>()?;
        let of = format!("statistics {} {options:?} {stamps:?}", env!("CARGO_PKG_VERSION"));
        StateFile::named(path, &of, args.overwrite).map(Keep)
    }

    /// Removes the state, because the work is done.
    pub(crate) fn remove(self) {
        self.0.remove();
    }

    /// Returns what was saved, if it is whole and of these inputs and options.
    fn load(&self) -> Option<State> {
        let bytes = self.0.read()?;
        let mut rest = &bytes[..];
        let mut number = || {
            let (head, tail) = rest.split_first_chunk::<8>()?;
            rest = tail;
            usize::try_from(u64::from_le_bytes(*head)).ok()
        };
        let (files, rows, length) = (number()?, number()?, number()?);
        let (total, part) = rest.split_at_checked(length)?;
        let statistics = |bytes: &[u8]| match bytes {
            [] => Some(None),
            _ => Calibration::from_bytes(bytes).ok().map(Some),
        };
        Some(State { files, total: statistics(total)?, rows, part: statistics(part)? })
    }

    /// Saves a state, and continues with the statistics of the file that is being read as they were written, so that a
    /// run that resumes from there ends in the same bits.
    fn save(&self, state: &mut State) -> tensorslim::Result<()> {
        let bytes = |c: &Option<Calibration>| c.as_ref().map_or(Vec::new(), Calibration::to_bytes);
        let (total, part) = (bytes(&state.total), bytes(&state.part));
        let numbers = [state.files, state.rows, total.len()].map(|x| (x as u64).to_le_bytes()).concat();
        self.0.write(&[&numbers, &total, &part]);
        if !part.is_empty() {
            state.part = Some(Calibration::from_bytes(&part)?);
        }
        Ok(())
    }
}

/// The memory within which files are read.
pub(crate) struct Room<'a> {
    pub(crate) limit: &'a Limit,
    /// The most bytes that are held meanwhile, without read buffers: see [`Gathering`].
    pub(crate) beside: usize,
}

/// Gathers the statistics of all sources together, from the state that was kept on.
pub(crate) fn gather(
    sources: &[Source],
    options: CalibrationOptions,
    room: &Room<'_>,
    keep: Option<&Keep>,
) -> Result<Calibration, Failure> {
    let mut state = keep.and_then(Keep::load).unwrap_or_default();
    for source in sources.iter().skip(state.files) {
        let path = source.path();
        let mut next = match source {
            Source::Statistics { .. } => load(path)?,
            Source::Samples(samples) => {
                samples_of(samples, options, room, &mut state, keep)?;
                state.part.take().expect("what was read is there")
            }
        };
        // Waiting rows would be taken into the matrix on a copy.
        next.settle();
        match &mut state.total {
            None => state.total = Some(next),
            Some(total) => total.merge(&next).map_err(about(path))?,
        }
        (state.files, state.rows) = (state.files + 1, 0);
        if let Some(keep) = keep {
            keep.save(&mut state)?;
        }
    }
    Ok(state.total.expect("the command line asks for a file at least"))
}

/// Makes statistics of no samples yet.
fn none(path: &Path, features: usize, options: CalibrationOptions) -> Result<Calibration, Failure> {
    Calibration::with(features, options).map_err(|e| match e {
        Error::TooLarge { .. } => memory::too_large(path, features),
        e => about(path)(e),
    })
}

/// Adds the rows of a file to `state.part`, from row `state.rows` on.
fn samples_of(
    samples: &Samples,
    options: CalibrationOptions,
    room: &Room<'_>,
    state: &mut State,
    keep: Option<&Keep>,
) -> Result<(), Failure> {
    let features = samples.features();
    if state.part.is_none() {
        state.part = Some(none(samples.path(), features, options)?);
    }
    let line = samples.line();
    // The bytes of a state are nearly those of a triangle.
    let (mut unsaved, every) = (0, READ_PER_STATE * 4 * features * features);
    samples.for_each(state.rows..samples.rows(), room.limit.buffer(room.beside, line), |first, rows| {
        let count = rows.shape()[0];
        state.part.as_mut().expect("made above").update(&rows)?;
        state.rows = first + count;
        unsaved += count * line;
        if let Some(keep) = keep.filter(|_| unsaved >= every) {
            unsaved = 0;
            keep.save(state)?;
        }
        Ok(())
    })
}

/// Reads the samples of all files in [`FOLDS`] parts, each with its share of every file.
pub(crate) fn read_folds(
    sources: &[Source],
    options: CalibrationOptions,
    room: &Room<'_>,
) -> Result<Vec<Calibration>, Failure> {
    let mut total: Vec<Calibration> = Vec::new();
    for source in sources {
        let path = source.path();
        let Source::Samples(samples) = source else {
            let why = "holds statistics, no samples to keep some of aside; --blend auto needs the .npy files";
            return Err(Failure(format!("{}: {why}", path.display())));
        };
        if samples.rows() < 2 {
            let why =
                "holds one sample; --blend auto keeps a part of the samples of each file aside, and needs two at least";
            return Err(Failure(format!("{}: {why}", path.display())));
        }
        // A file of fewer samples than parts gives samples to the first parts only.
        let mut add = |i: usize, next: Calibration| match total.get_mut(i) {
            Some(fold) => fold.merge(&next),
            None => {
                total.push(next);
                Ok(())
            }
        };
        if !samples.is_in_blocks() {
            samples.read(|x| {
                let folds = Calibration::folds(x, FOLDS, options)?;
                folds.into_iter().enumerate().try_for_each(|(i, mut fold)| {
                    fold.settle();
                    add(i, fold)
                })
            })?;
            continue;
        }
        let (rows, count) = (samples.rows(), FOLDS.min(samples.rows()));
        let buffer = room.limit.buffer(room.beside, samples.line());
        for i in 0..count {
            let mut fold = none(path, samples.features(), options)?;
            samples.for_each(i * rows / count..(i + 1) * rows / count, buffer, |_, rows| fold.update(&rows))?;
            fold.settle();
            add(i, fold).map_err(about(path))?;
        }
    }
    Ok(total)
}
