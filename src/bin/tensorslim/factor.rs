//! `tensorslim factor`: read, check, factor, evaluate, write, report. Everything that can fail without the
//! factorization fails before it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rayon::ThreadPoolBuilder;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tensorslim::calibration::NonFinite;
use tensorslim::npy::{Array, Stream};
use tensorslim::operator::{Cancel, ReadParams, RowSource, Watch};
use tensorslim::svd::ErrorKind;
use tensorslim::{
    Calibration, CalibrationOptions, DType, Factors, Method, Rank, Scalar, TensorRef, TruncatedSvd, quality,
    rank_saves_memory,
};

use crate::args::{Blend, FactorArgs, Form};
use crate::report::{Calibrated, Evaluated, NO_SMALLER, Report, Written, peak_rss};
use crate::state::StateFile;
use crate::{Failure, about, calibrate, emit, guard, inputs, output};

pub(crate) fn run(args: &FactorArgs) -> Result<(), Failure> {
    let work = || match args.precision {
        DType::F64 => factor::<f64>(args),
        _ => factor::<f32>(args),
    };
    match args.threads {
        None => work(),
        Some(n) => ThreadPoolBuilder::new()
            .num_threads(n.into())
            .build()
            .map_err(|e| Failure(format!("cannot start {n} threads: {e}")))?
            .install(work),
    }
}

fn factor<T: Scalar>(args: &FactorArgs) -> Result<(), Failure> {
    check_options(args)?;
    let path = &args.weight;
    let mut svd = (TruncatedSvd::new(args.rank.policy()).method(args.method).seed(args.seed))
        .dynamic_shift(args.dynamic_shift)
        .device(args.device);
    if let Some(p) = args.oversample {
        svd = svd.oversample(p as usize);
    }
    if let Some(q) = args.power_iterations {
        svd = svd.power_iterations(q as usize);
    }
    if let Some(k) = args.max_rank {
        svd = svd.max_rank(k);
    }
    if let Some(sketch) = args.sketch {
        svd = svd.sketch(sketch);
    }
    let plain = svd.clone();
    if args.checkpoint.is_some() {
        check_checkpoint(args)?;
    }
    check_outputs(args)?;
    // From before the first look at the file.
    let stamp = inputs::stamp(path);
    let checkpoint = |file: &Path| {
        let (bytes, changed) = stamp.clone()?;
        let of = format!("single pass {} {bytes} {changed}", env!("CARGO_PKG_VERSION"));
        StateFile::named(file, &of, args.overwrite)
    };
    let (blends, beside) = calibrate(args, &mut svd)?;
    let mut weight = Weight::open::<T>(args, &mut svd, beside)?;
    let (tensor_shape, shape, dtype_in) = weight.shape(path)?;
    let inputs = args.evaluate.as_deref().map(|x| read(x, args.bf16).map(|file| (x, file))).transpose()?;
    let x = inputs.as_ref().map(|(path, file)| samples(path, file, &args.weight, shape[1])).transpose()?;
    if let (Some((path, x)), true) = (&x, args.rank.is_quality()) {
        let mut data = Calibration::new(shape[1]).map_err(about(path))?;
        data.update(x).map_err(about(path))?;
        svd = svd.quality_on(&data);
    }
    if let Some(dir) = &args.out {
        output::prepare(dir)?;
    }
    let blends = match (blends, &weight) {
        (None, _) => None,
        (Some(folds), Weight::Whole(file)) => {
            let w = matrix(path, &file.tensor().map_err(about(path))?, 1)?;
            let choice = svd.choose_blend::<T>(&w, &folds).map_err(about(path))?;
            svd = svd.blend(choice.blend);
            Some(choice.candidates)
        }
        (Some(_), Weight::Tiles(_)) => {
            let why = "does not fit the memory limit, and --blend auto needs it whole";
            return Err(Failure(format!("{}: {why}", path.display())));
        }
    };

    let mut plan = None;
    if args.explain {
        let text = match &weight {
            Weight::Whole(_) => svd.plan::<T>((shape[0], shape[1]), dtype_in).map(|plan| plan.to_string()),
            Weight::Tiles(stream) => svd.plan_rows::<T>(stream).map(|plan| plan.to_string()),
        };
        let text = text.map_err(|e| whole_limit_beside(e, beside)).map_err(about(path))?;
        if args.json {
            plan = Some(text.lines().map(str::to_owned).collect());
        } else {
            emit(&format!("{}\n\n", text.trim_end()))?;
        }
    }

    let checkpoint = args.checkpoint.as_deref().map(checkpoint).transpose()?;
    let mut factors = weight.factor::<T>(path, &svd, beside, checkpoint.as_ref())?;
    let mut elapsed = vec![factors.report().elapsed];
    for _ in 1..args.repeat {
        factors = weight.factor::<T>(path, &svd, beside, None)?;
        elapsed.push(factors.report().elapsed);
    }
    let (activation, activation_plain) = match (&x, &weight) {
        (None, _) => (None, None),
        (Some(_), Weight::Tiles(_)) => {
            let why = "does not fit the memory limit, and --evaluate needs it whole; leave out one of the two";
            return Err(Failure(format!("{}: {why}", path.display())));
        }
        (Some((path, x)), Weight::Whole(file)) => {
            let w = matrix(&args.weight, &file.tensor().map_err(about(&args.weight))?, 1)?;
            let evaluated = |factors: &Factors<T>| {
                let d = quality::distribution(&w, factors, x).map_err(about(path))?;
                Ok::<_, Failure>(Evaluated::new(path.display().to_string(), &d))
            };
            let without = match args.calibration.is_empty() {
                true => None,
                false => {
                    let plain = plain.with_rank(Rank::Fixed(factors.rank()));
                    Some(evaluated(&plain.factor::<T>(w.clone()).map_err(about(&args.weight))?)?)
                }
            };
            (Some(evaluated(&factors)?), without)
        }
    };

    let r = factors.report();
    let mut notes = r.notes.clone();
    if let (Some(sketch), None) = (args.sketch, r.sketch) {
        notes.push(format!("method {} uses no sketch: --sketch {sketch} had no effect", r.method));
    }
    if !rank_saves_memory(shape[0], shape[1], r.rank) {
        notes.push(NO_SMALLER.to_owned());
    }
    let dtype = args.dtype.unwrap_or(T::DTYPE);
    if let Some(dir) = &args.out {
        let s = &r.spectrum[..r.rank];
        let loss = output::rounding_loss(s, dtype);
        // Rounding alone loses at most 2^-9 (bf16); above 1 % the values are outside the type's range.
        if loss.is_nan() || loss > 0.01 {
            let (dir, top) = (dir.display(), s[0]);
            return Err(Failure(format!(
                "{dir}: singular values near {top:e} do not fit {dtype}; give a wider --dtype"
            )));
        }
        if dtype.size() < T::DTYPE.size() {
            notes.push(format!("the files are rounded to {dtype}; the errors above are those before rounding"));
        }
    }
    let pivoted = if args.form == Form::Pivot { Some(factors.pivot().map_err(about(path))?) } else { None };
    if let Some(p) = &pivoted {
        notes.push(format!("pivoted form: {} numbers, off by {:.1e} of the factors", p.params(), p.error()));
    }
    let std_dev = match r.error_kind {
        ErrorKind::Exact => None,
        ErrorKind::Estimate { std_dev, .. } => Some(std_dev),
    };
    let factors_out = args.out.as_deref().map(|dir| {
        output::Written::new(dir, (args.form, dtype), &factors, pivoted.as_ref()).map(|written| (dir, written))
    });
    let factors_out = factors_out.transpose()?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        file: path.display().to_string(),
        tensor_shape,
        shape,
        dtype: r.dtype.to_string(),
        precision: r.precision.to_string(),
        rank: r.rank,
        method: r.method.to_string(),
        reason: r.reason.clone(),
        sketch: r.sketch.map(|s| s.to_string()),
        seed: r.seed,
        oversample: r.oversample,
        power_iterations: r.power_iterations,
        relative_error: r.relative_error,
        error_kind: if std_dev.is_some() { "estimate" } else { "exact" },
        error_std_dev: std_dev,
        norm: r.norm,
        passes: r.passes,
        elapsed_ms: median(elapsed).as_secs_f64() * 1e3,
        repeat: args.repeat,
        threads: rayon::current_num_threads(),
        peak_bytes: r.peak_bytes,
        peak_rss_bytes: peak_rss(),
        params_before: r.params_before(),
        params_after: r.params_after(),
        ratio: r.ratio(),
        activation,
        activation_plain,
        calibration: r.activation.as_ref().map(|a| Calibrated {
            files: args.calibration.iter().map(|path| path.display().to_string()).collect(),
            samples: a.samples,
            skipped: a.skipped,
            whitening: a.whitening.to_string(),
            blend: a.blend,
            blends,
            relative_error: a.relative_error,
            cosine: a.cosine(),
        }),
        written: factors_out.as_ref().map(|(dir, written)| Written {
            dir: dir.display().to_string(),
            dtype: dtype.to_string(),
            files: output::names(args.form),
            sums: written.sums(),
        }),
        notes,
        plan,
    };
    let json = |text: serde_json::Result<String>| {
        text.map(|t| t + "\n").map_err(|e| Failure(format!("the report does not serialize: {e}")))
    };
    if let Some((dir, written)) = factors_out {
        written.publish(dir, &json(serde_json::to_string_pretty(&report))?)?;
    }
    if let Some(checkpoint) = checkpoint {
        checkpoint.remove();
    }
    emit(&if args.json { json(serde_json::to_string(&report))? } else { report.table() })
}

/// Refuses options that lack another one.
fn check_options(args: &FactorArgs) -> Result<(), Failure> {
    let once = matches!(args.method, Method::SinglePass | Method::Nystrom);
    match args.rank.by_spectrum() {
        Some(rule) if once && args.max_rank.is_none() => Err(Failure(format!(
            "--method {} with {rule} needs --max-rank: one look at the weight has to know how much to keep at most",
            args.method
        ))),
        Some("--quality") if args.calibration.is_empty() && args.evaluate.is_none() => Err(Failure(
            "--quality needs inputs of the layer to be measured on; give --calibration or --evaluate".into(),
        )),
        Some("--quality") if args.blend == Some(Blend::Auto) => Err(Failure(
            "--blend auto compares factors of one size, which --quality does not give; give --rank, --ratio, --energy \
             or --tolerance"
                .into(),
        )),
        _ => Ok(()),
    }
}

/// Refuses outputs that would take the place of an input, of each other, or of what this program has not written.
fn check_outputs(args: &FactorArgs) -> Result<(), Failure> {
    let mut outputs: Vec<PathBuf> = args.checkpoint.iter().cloned().collect();
    outputs.extend(args.out.iter().flat_map(|dir| output::taken(dir, args.form)));
    let mut inputs: Vec<&Path> = vec![&args.weight];
    inputs.extend(args.calibration.iter().chain(&args.evaluate).map(PathBuf::as_path));
    guard::apart(&outputs, &inputs)?;
    args.out.as_ref().map_or(Ok(()), |dir| output::check_dir(dir, args.form, args.overwrite))
}

/// A single pass has a state to keep, and a file by columns no rows to feed it.
fn check_checkpoint(args: &FactorArgs) -> Result<(), Failure> {
    if !matches!(args.method, Method::SinglePass | Method::Nystrom) {
        return Err(Failure(format!(
            "--checkpoint keeps the state of a single pass, and method {} looks again; give --method single-pass or nystrom",
            args.method
        )));
    }
    match inputs::Header::read(&args.weight, args.bf16) {
        Ok(header) if header.is_fortran() => Err(Failure(format!(
            "{}: lies by columns, and --checkpoint needs rows; save it in C order",
            args.weight.display()
        ))),
        // The errors of a file are those of reading it.
        _ => Ok(()),
    }
}

/// Gives the calibration to `svd`; for `--blend auto` the parts of its samples come back, and in any case the bytes that it takes.
fn calibrate(args: &FactorArgs, svd: &mut TruncatedSvd) -> Result<(Option<Vec<Calibration>>, usize), Failure> {
    if args.calibration.is_empty() {
        return Ok((None, 0));
    }
    let non_finite = if args.skip_non_finite { NonFinite::Skip } else { NonFinite::Refuse };
    let options = CalibrationOptions { non_finite, ..Default::default() };
    let (total, folds) = if args.blend == Some(Blend::Auto) {
        let folds = calibrate::read_folds(&args.calibration, args.bf16, options)?;
        let (first, others) = folds.split_first().expect("there are two parts at least");
        let mut total = first.clone();
        others.iter().try_for_each(|other| total.merge(other))?;
        (total, Some(folds))
    } else {
        let most = ReadParams::default().bytes;
        let buffer = args.memory_limit.map_or(most, |limit| most.min(limit / 16));
        let mut total = calibrate::read(&args.calibration, args.bf16, options, buffer)?;
        if args.memory_limit.is_some() {
            // Without the rows that wait for a block to be full, which every look at the statistics would have to add to a copy.
            total = Calibration::from_bytes(&total.to_bytes())?;
        }
        (total, None)
    };
    if total.samples() == 0 {
        let files: Vec<String> = args.calibration.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure(format!(
            "{}: not one of {} samples is finite; give --calibration samples that are",
            files.join(", "),
            total.skipped()
        )));
    }
    let n = total.features();
    let bytes = (n * n + 3 * n) * size_of::<f64>();
    *svd = svd.clone().calibration(&total).whitening(args.whitening);
    if let Some(Blend::Fixed(b)) = args.blend {
        *svd = svd.clone().blend(b);
    }
    Ok((folds, bytes))
}

/// What the program itself takes beside its data: code, stacks of threads, buffers of the GEMM. A batch of small weights has 10 to 15 MiB
/// resident on two threads.
const PROGRAM: usize = 24 << 20;

/// What a limit on the process leaves for data.
pub(crate) fn limit_for_data(limit: usize) -> Result<usize, Failure> {
    let least = PROGRAM + (1 << 20);
    (limit.checked_sub(PROGRAM).filter(|&left| left >= 1 << 20))
        .ok_or_else(|| tensorslim::Error::Memory { limit, least }.into())
}

/// An error about data as one about the process.
pub(crate) fn whole_limit(e: tensorslim::Error) -> tensorslim::Error {
    match e {
        tensorslim::Error::Memory { limit, least } => {
            tensorslim::Error::Memory { limit: limit + PROGRAM, least: least + PROGRAM }
        }
        e => e,
    }
}

/// The same, where the program holds `beside` more than the factorization knows of.
fn whole_limit_beside(e: tensorslim::Error, beside: usize) -> tensorslim::Error {
    whole_limit(match e {
        tensorslim::Error::Memory { limit, least } => {
            tensorslim::Error::Memory { limit: limit + beside, least: least + beside }
        }
        e => e,
    })
}

/// The weight, in memory if it fits there.
enum Weight {
    Whole(Array),
    Tiles(Stream),
}

impl Weight {
    /// Opens it, and gives the factorization what is left of the memory limit.
    fn open<T: Scalar>(args: &FactorArgs, svd: &mut TruncatedSvd, beside: usize) -> Result<Self, Failure> {
        let path = &args.weight;
        let Some(limit) = args.memory_limit else {
            return match inputs::stream(path, args.bf16) {
                Ok(stream) if args.checkpoint.is_some() => Ok(Weight::Tiles(stream)),
                _ => Ok(Weight::Whole(read(path, args.bf16)?)),
            };
        };
        let limit = limit_for_data(limit)?.saturating_sub(beside);
        let header = inputs::Header::read(path, args.bf16)?;
        let room = limit.checked_sub(header.bytes()).filter(|_| args.checkpoint.is_none());
        let fits = room.filter(|&room| svd.clone().memory_limit(room).plan::<T>(header.matrix(), header.dtype).is_ok());
        match fits {
            Some(room) => {
                *svd = svd.clone().memory_limit(room);
                Ok(Weight::Whole(read(path, args.bf16)?))
            }
            None => {
                *svd = svd.clone().memory_limit(limit);
                Ok(Weight::Tiles(inputs::stream(path, args.bf16)?))
            }
        }
    }

    /// The shape in the file, that of the matrix, and the element type.
    fn shape(&self, path: &Path) -> Result<(Vec<usize>, [usize; 2], DType), Failure> {
        match self {
            Weight::Whole(file) => {
                let tensor = file.tensor().map_err(about(path))?;
                let w = matrix(path, &tensor, 1)?;
                Ok((tensor.shape().to_vec(), [w.shape()[0], w.shape()[1]], w.dtype()))
            }
            Weight::Tiles(stream) => {
                let (m, n) = RowSource::shape(stream);
                if stream.dims().len() < 2 {
                    let shape = stream.dims();
                    return Err(Failure(format!(
                        "{}: shape {shape:?} is no matrix; give two axes or more",
                        path.display()
                    )));
                }
                Ok((stream.dims().to_vec(), [m, n], stream.dtype()))
            }
        }
    }

    fn factor<T: Scalar>(
        &mut self,
        path: &Path,
        svd: &TruncatedSvd,
        beside: usize,
        checkpoint: Option<&StateFile>,
    ) -> Result<Factors<T>, Failure> {
        match self {
            Weight::Whole(file) => {
                let tensor = file.tensor().map_err(about(path))?;
                svd.factor(matrix(path, &tensor, 1)?).map_err(about(path))
            }
            Weight::Tiles(stream) => {
                let limit = |e| whole_limit_beside(e, beside);
                let Some(checkpoint) = checkpoint else {
                    return svd.factor_rows(stream, &Watch::default()).map_err(limit).map_err(about(path));
                };
                let cancel = Cancel::new();
                stop_on_signals(&cancel)?;
                let factors = svd.factor_rows_resumable(stream, &Watch::new(cancel), checkpoint);
                factors.map_err(limit).map_err(about(path)).map_err(|Failure(line)| match checkpoint.read() {
                    Some(_) => Failure(format!("{line}; the same command goes on from --checkpoint")),
                    None => Failure(line),
                })
            }
        }
    }
}

/// SIGINT and SIGTERM ask to stop, which saves the state.
fn stop_on_signals(cancel: &Cancel) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Failure(format!("cannot catch signals: {e}")))?;
    let cancel = cancel.clone();
    std::thread::spawn(move || signals.forever().for_each(|_| cancel.cancel()));
    Ok(())
}

/// Reads a file whole; `bf16` as in [`inputs::Header::read`].
pub(crate) fn read(path: &Path, bf16: bool) -> Result<Array, Failure> {
    Ok(inputs::array(path, bf16)?)
}

/// The tensor as a matrix: the first `row_axes` axes as rows, the others as columns.
pub(crate) fn matrix<'a>(path: &Path, t: &TensorRef<'a>, row_axes: usize) -> Result<TensorRef<'a>, Failure> {
    match t.shape().len() {
        0 | 1 => Err(Failure(format!("{}: shape {:?} is no matrix; give two axes or more", path.display(), t.shape()))),
        2 => Ok(t.clone()),
        _ => t.matricize(row_axes).map_err(about(path)),
    }
}

/// The inputs of the layer, all axes but the last as rows; the last must be as long as the weight is wide.
fn samples<'a>(path: &'a Path, file: &'a Array, weight: &Path, n: usize) -> Result<(&'a Path, TensorRef<'a>), Failure> {
    let tensor = file.tensor().map_err(about(path))?;
    let x = matrix(path, &tensor, tensor.shape().len().saturating_sub(1))?;
    if x.shape()[1] != n {
        return Err(Failure(format!(
            "{}: rows of {} values, but {} takes {n} inputs; give samples × {n}",
            path.display(),
            x.shape()[1],
            weight.display()
        )));
    }
    Ok((path, x))
}

/// The middle one, or the mean of the middle two.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let half = times.len() / 2;
    if times.len() % 2 == 1 { times[half] } else { (times[half - 1] + times[half]) / 2 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn median_of_odd_and_even() {
        let of = |ms: &[u64]| super::median(ms.iter().map(|&t| Duration::from_millis(t)).collect());
        assert_eq!(of(&[7]), Duration::from_millis(7));
        assert_eq!(of(&[9, 1, 4]), Duration::from_millis(4));
        assert_eq!(of(&[9, 1, 4, 6]), Duration::from_millis(5));
    }
}
