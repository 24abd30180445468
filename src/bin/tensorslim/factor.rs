//! The command `tensorslim factor`: reads, checks, factors, evaluates, writes, reports. Everything that can fail
//! without the factorization fails before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tensorslim::ErrorKind;
use tensorslim::calibration::NonFinite;
use tensorslim::npy::Array;
use tensorslim::operator::{Cancel, RowSource, Watch};
use tensorslim::quality::Comparison;
use tensorslim::{
    Calibration, CalibrationOptions, DType, Device, Error, Factors, Method, Rank, Scalar, TensorRef, TruncatedSvd,
    rank_saves_memory,
};

use crate::args::{Blend, FactorArgs, Form, Part};
use crate::arrays::{matrix, no_matrix, read};
use crate::failure::{Failure, about, emit};
use crate::gather::{self, Room};
use crate::memory::{self, Gathering, Limit, Space};
use crate::pool::{beside, on_threads};
use crate::process::peak_rss;
use crate::ranks::{Made, Ranks};
use crate::report::{Calibrated, Evaluated, NO_SMALLER, NO_SMALLER_BY_RATIO, Report, Written};
use crate::samples::{FOLDS, Samples, Source};
use crate::state::StateFile;
use crate::{guard, inputs, output, writer};

pub(crate) fn run(args: &FactorArgs) -> Result<(), Failure> {
    let work = || {
        // MPI is called from one thread, the one that starts it.
        let ranks = Ranks::join()?;
        let done = match args.precision {
            DType::F64 => factor::<f64>(args, &ranks),
            _ => factor::<f32>(args, &ranks),
        };
        ranks.say(ranks.agree(done))
    };
    on_threads(args.threads, work)
}

/// Runs `factor` in the arithmetic T: checks the outputs, reads the weight, factors it, and writes what was asked for.
fn factor<T: Scalar>(args: &FactorArgs, ranks: &Ranks) -> Result<(), Failure> {
    check_options(args)?;
    if ranks.comm().is_some() {
        check_options_of_ranks(args)?;
    }
    let limit = Limit::new(args.memory_limit, (rayon::current_num_threads(), 0), Space::new(0, 0)?);
    let path = &args.weight;
    // Triplets in the middle of a spectrum are as good as the last of a subspace only where all of them are computed.
    let method = match (args.part, args.method) {
        (Some(Part::Range(..)), Method::Auto) => Method::Full,
        (_, method) => method,
    };
    let mut svd = (TruncatedSvd::new(args.policy()).method(method).seed(args.seed))
        .dynamic_shift(args.dynamic_shift)
        .smallest(args.part == Some(Part::Smallest))
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
    svd = svd.whitening(args.whitening);
    if args.checkpoint.is_some() {
        check_checkpoint(args)?;
    }
    if ranks.writes() {
        check_outputs(args)?;
    }
    // The stamp is taken before the first look at the file.
    let stamp = inputs::stamp(path);
    let checkpoint = |file: &Path| {
        let (bytes, changed) = stamp.clone()?;
        let of = format!("single pass {} {bytes} {changed}", env!("CARGO_PKG_VERSION"));
        StateFile::named(file, &of, args.overwrite)
    };
    let header = inputs::Header::read(path, args.bf16)?;
    if header.dims().len() < 2 {
        return Err(no_matrix(path, header.dims()));
    }
    let header = header.with_row_axes(args.rows_axes)?;
    let (tensor_shape, shape, dtype_in) = (header.dims().to_vec(), <[usize; 2]>::from(header.matrix()), header.dtype);
    if let Some(base) = &args.minus {
        check_base(base, &header, args)?;
    }
    let x = args.evaluate.as_deref().map(|x| Samples::open(x, args.bf16).map(Source::Samples)).transpose()?;
    x.iter().try_for_each(|x| x.check_inputs(path, shape[1]))?;
    let sources = calibration_sources(args, &header)?;
    let outputs = output_sources(args, &header)?;
    // These decisions need headers only, and come before anything is read.
    let measured = x.as_ref().filter(|_| args.rank.is_quality());
    let settled = |held: bool, features: usize| if held { memory::settled(features) } else { 0 };
    let beside = [
        settled(!sources.is_empty(), shape[1]),
        settled(measured.is_some(), shape[1]),
        settled(!outputs.is_empty(), shape[0]),
    ];
    let parts = if args.blend == Some(Blend::Auto) { FOLDS } else { 1 };
    let gathering = [
        Gathering::new(&sources, CalibrationOptions::default(), parts, 0)?,
        Gathering::new(measured.map_or(&[], std::slice::from_ref), CalibrationOptions::default(), 1, beside[0])?,
        Gathering::new(&outputs, CalibrationOptions::default(), 1, beside[0] + beside[1])?,
    ];
    let beside = beside.iter().sum();
    let samples = x.as_ref().and_then(Source::samples);
    let place = match ranks.comm() {
        Some(_) => Place::Tiles(limit.is_given().then(|| limit.data().saturating_sub(beside))),
        None => Place::new::<T>(args, &plain, &limit, &header, (&gathering, beside, samples))?,
    };
    let out = args.out.as_deref().filter(|_| ranks.writes());
    let residual = args.residual.as_deref().filter(|_| ranks.writes());
    let directories = out.map(output::directory_of).into_iter().chain(residual.map(writer::directory_of));
    directories.into_iter().try_for_each(output::prepare)?;

    let room = |i: usize| Room { limit: &limit, beside: gathering[i].work };
    let statistics = Statistics::gather(args, &sources, &room(0))?;
    svd = statistics.given_to(svd, args);
    if let Some(x) = measured {
        let options = CalibrationOptions::default();
        svd = svd.quality_on(&gather::read(std::slice::from_ref(x), options, &room(1))?);
    }
    if !outputs.is_empty() {
        let options = CalibrationOptions { non_finite: non_finite(args), ..Default::default() };
        let statistics = gather::read(&outputs, options, &room(2))?;
        refuse_none(std::slice::from_ref(&statistics), "--output-calibration", &args.output_calibration)?;
        svd = svd.output_calibration(&statistics).output_blend(args.output_blend.unwrap_or(1.0));
    }
    let (mut weight, room) = place.open(args)?;
    let blends = match (statistics, &weight) {
        (Statistics::Folds(folds), Weight::Whole(file, _)) => {
            let w = matrix(path, &file.tensor().map_err(about(path))?, args.rows_axes)?;
            let held = memory::blending::<T>(header.matrix(), dtype_in, 0).0;
            let room = room.map(|room| (room + beside).saturating_sub(held));
            let choice = limited(&svd, room).choose_blend::<T>(&w, &folds).map_err(about(path))?;
            let mut folds = folds.into_iter();
            let mut total = folds.next().expect("there are two parts at least");
            folds.try_for_each(|fold| total.merge(&fold))?;
            svd = svd.calibration(&total).blend(choice.blend);
            Some(choice.candidates)
        }
        _ => None,
    };
    svd = limited(&svd, room);

    let mut plan = None;
    if args.explain {
        let text = match &weight {
            Weight::Whole(..) => svd.plan::<T>((shape[0], shape[1]), dtype_in).map(|plan| plan.to_string()),
            Weight::Tiles(rows) => svd.plan_rows::<T>(&**rows).map(|plan| plan.to_string()),
        };
        let text = text.map_err(limit.restated(beside)).map_err(about(path))?;
        if args.json {
            plan = Some(text.lines().map(str::to_owned).collect());
        } else if ranks.writes() {
            emit(&format!("{}\n\n", text.trim_end()))?;
        }
    }

    let checkpoint = args.checkpoint.as_deref().map(checkpoint).transpose()?;
    let held = match weight {
        Weight::Whole(..) => header.bytes() + beside,
        Weight::Tiles(_) => beside,
    };
    // What is wrong with an element may be wrong with either weight.
    let minus = |base: &PathBuf| PathBuf::from(format!("{} minus {}", path.display(), base.display()));
    let named = &args.minus.as_ref().map_or_else(|| path.clone(), minus);
    ranks.agree(Ok(()))?;
    let mut made = weight.factor::<T>(named, &svd, limit.restated(held), checkpoint.as_ref(), ranks)?;
    let mut elapsed = vec![made.factors.report().elapsed];
    for _ in 1..args.repeat {
        made = weight.factor::<T>(named, &svd, limit.restated(held), None, ranks)?;
        elapsed.push(made.factors.report().elapsed);
    }
    if args.form == Form::Pivot || args.out.as_ref().is_some_and(|out| output::is_archive(out)) {
        match ranks.gather(made)? {
            Some(whole) => made = whole,
            None => return Ok(()),
        }
    }
    let Made { mut factors, own } = made;
    // The statistics are freed with it.
    drop(svd);
    if let Some(Part::Range(start, end)) = args.part {
        factors = factors.range(start..end).map_err(about(path))?;
    }
    let (activation, activation_plain) = match (samples, &weight) {
        (Some(x), Weight::Whole(file, _)) => {
            let w = matrix(path, &file.tensor().map_err(about(path))?, args.rows_axes)?;
            let held = header.bytes() + memory::factors::<T>(header.matrix(), factors.rank());
            let with = evaluate(x, &w, &factors, path, &limit, held)?;
            let without = match args.calibration.is_empty() && args.output_calibration.is_empty() {
                true => None,
                false => {
                    let room = limit.is_given().then(|| limit.data().saturating_sub(held));
                    let plain = limited(&plain.with_rank(Rank::Fixed(factors.rank())), room);
                    let plain = plain.factor::<T>(w.clone()).map_err(limit.restated(held)).map_err(about(path))?;
                    let held = held + memory::factors::<T>(header.matrix(), plain.rank());
                    Some(evaluate(x, &w, &plain, path, &limit, held)?)
                }
            };
            (Some(with), without)
        }
        // An option that needs the whole weight has it whole.
        _ => (None, None),
    };
    let residual = match (residual, &weight) {
        (Some(out), Weight::Whole(file, _)) => {
            let w = matrix(path, &file.tensor().map_err(about(path))?, args.rows_axes)?;
            Some(output::residual(out, dtype_in, &tensor_shape, &factors, &w)?)
        }
        _ => None,
    };
    drop(weight);
    let dtype = args.dtype.unwrap_or(T::DTYPE);
    if !ranks.writes() {
        if let (Some(dir), Some(own)) = (args.out.as_deref(), &own) {
            ranks.write_long(dir, (args.form, dtype), &factors, own)?;
        }
        return Ok(());
    }

    let r = factors.report();
    let mut notes = r.notes.clone();
    if let (Some(sketch), None) = (args.sketch, r.sketch) {
        notes.push(format!("method {} uses no sketch: --sketch {sketch} had no effect", r.method));
    }
    if !rank_saves_memory(shape[0], shape[1], r.rank) {
        let by_ratio = matches!(args.policy(), Rank::Ratio(_));
        notes.push(if by_ratio { NO_SMALLER_BY_RATIO } else { NO_SMALLER }.to_owned());
    }
    if let Some(dir) = out {
        let s = &r.spectrum[..r.rank];
        let loss = output::rounding_loss(s, dtype);
        // Rounding alone loses at most 2^-9 (bf16); above 1 % the values are outside of the range of the type.
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
        notes.push(format!("pivoted form: {} numbers, off by {:.1e} of the factors", p.params(), p.error().abs()));
    }
    let std_dev = match r.error_kind {
        ErrorKind::Estimate { std_dev, .. } => Some(std_dev),
        _ => None,
    };
    let (archive, out) = (out.filter(|out| output::is_archive(out)), out.filter(|out| !output::is_archive(out)));
    let factors_out = out.map(|dir| -> Result<_, Failure> {
        let form = (args.form, dtype);
        let long = own.as_ref().map_or(Ok(None), |own| ranks.write_long(dir, form, &factors, own))?;
        Ok((dir, output::Written::new(dir, form, &factors, pivoted.as_ref(), long)?))
    });
    let factors_out = factors_out.transpose()?;
    let written =
        |dir: &Path, files, sums| Written { dir: dir.display().to_string(), dtype: dtype.to_string(), files, sums };
    let begun = |dir| Ok::<_, Error>(written(dir, output::replaced(dir, args.form)?, BTreeMap::new()));
    let begun = match archive {
        Some(path) => Some(written(path, output::members(args.form), BTreeMap::new())),
        None => args.out.as_deref().map(begun).transpose()?,
    };
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        file: path.display().to_string(),
        minus: args.minus.as_ref().map(|base| base.display().to_string()),
        residual: args.residual.as_ref().map(|left| left.display().to_string()),
        part: args.part.map(|part| match part {
            Part::Smallest => "the smallest".to_owned(),
            Part::Range(start, end) => format!("numbers {start} to {}", end - 1),
        }),
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
            output_files: args.output_calibration.iter().map(|path| path.display().to_string()).collect(),
            output_samples: a.output_samples,
            output_blend: args.output_blend,
            relative_error: a.relative_error,
            cosine: a.cosine(),
        }),
        written: begun,
        notes,
        plan,
    };
    let json = |text: serde_json::Result<String>| {
        text.map(|t| t + "\n").map_err(|e| Failure(format!("the report does not serialize: {e}")))
    };
    if let Some(residual) = residual {
        writer::publish(vec![residual])?;
    }
    if let Some(path) = archive {
        let text = json(serde_json::to_string_pretty(&report))?;
        writer::publish(vec![output::archive(path, (args.form, dtype), &factors, pivoted.as_ref(), &text)?])?;
    }
    if let Some((dir, files)) = factors_out {
        let begun = json(serde_json::to_string_pretty(&report))?;
        report.written = Some(written(dir, output::names(args.form), files.sums()));
        files.publish(dir, &begun, &json(serde_json::to_string_pretty(&report))?)?;
    }
    if let Some(checkpoint) = checkpoint {
        checkpoint.remove();
    }
    emit(&if args.json { json(serde_json::to_string(&report))? } else { report.table() })
}

/// Refuses options that lack another one.
fn check_options(args: &FactorArgs) -> Result<(), Failure> {
    let once = matches!(args.method, Method::SinglePass | Method::Nystrom);
    match (args.part, args.rank.is_empty()) {
        (Some(Part::Smallest), true) => {
            return Err(Failure("--part smallest needs to know how many: give --rank or --ratio".into()));
        }
        (Some(Part::Range(start, end)), false) => {
            return Err(Failure(format!("--part {start}..{end} is the rank itself; leave the rule for the rank out")));
        }
        (Some(Part::Smallest), false) if args.rank.by_spectrum().is_some() => {
            return Err(Failure(
                "--part smallest needs to know how many: give --rank or --ratio, and no other rule".into(),
            ));
        }
        _ => {}
    }
    if let Some(path) = args.residual.as_ref().filter(|path| path.extension().is_none_or(|ext| ext != "npy")) {
        return Err(Failure(format!(
            "{}: is written as one .npy file; give such a name to --residual",
            path.display()
        )));
    }
    if args.weight.extension().is_some_and(|ext| ext == "npz") && args.weight.is_file() {
        let path = args.weight.display();
        return Err(Failure(format!("{path}: is an archive; name one of its arrays, as in {path}/NAME, or use batch")));
    }
    if args.residual.is_some() && args.checkpoint.is_some() {
        return Err(Failure(
            "--residual needs the weight whole, and --checkpoint reads it in tiles; leave one out".into(),
        ));
    }
    match args.rank.by_spectrum() {
        Some(rule) if once && args.max_rank.is_none() => Err(Failure(format!(
            "--method {} with {rule} needs --max-rank: one look at the weight has to know how much to keep at most",
            args.method
        ))),
        Some("--quality")
            if args.calibration.is_empty() && args.evaluate.is_none() && args.output_calibration.is_empty() =>
        {
            Err(Failure(
                "--quality needs inputs of the layer to be measured on; give --calibration or --evaluate".into(),
            ))
        }
        Some("--quality") if args.evaluate.is_some() && !args.output_calibration.is_empty() => Err(Failure(
            "--quality is that of the weighted outputs under --output-calibration, and --evaluate has plain ones; \
             leave one of them out"
                .into(),
        )),
        _ if args.blend == Some(Blend::Auto) && !args.output_calibration.is_empty() => Err(Failure(
            "--blend auto compares plain outputs, and --output-calibration weights them; give a number to --blend"
                .into(),
        )),
        _ if args.minus.is_some() && args.blend == Some(Blend::Auto) => Err(Failure(
            "--blend auto needs the weight whole, and --minus reads it in tiles; give a number to --blend".into(),
        )),
        _ if args.minus.is_some() && args.device != Device::Cpu => Err(Failure(
            "--device cuda needs the weight whole, and --minus reads it in tiles; leave one of them out".into(),
        )),
        Some("--quality") if args.blend == Some(Blend::Auto) => Err(Failure(
            "--blend auto compares factors of one size, which --quality does not give; give --rank, --ratio, --energy \
             or --tolerance"
                .into(),
        )),
        _ => Ok(()),
    }
}

/// Refuses what several ranks do not do together.
fn check_options_of_ranks(args: &FactorArgs) -> Result<(), Failure> {
    let option = match args {
        _ if args.evaluate.is_some() => "--evaluate",
        _ if args.blend == Some(Blend::Auto) => "--blend auto",
        _ if args.residual.is_some() => "--residual",
        _ if args.checkpoint.is_some() => "--checkpoint",
        _ if args.device != Device::Cpu => "--device cuda",
        _ => return Ok(()),
    };
    Err(Failure(format!("{option} is not for several ranks; leave it out, or start one process without mpirun")))
}

/// Refuses outputs that would replace an input, each other, or a file that this program has not written.
fn check_outputs(args: &FactorArgs) -> Result<(), Failure> {
    let mut outputs: Vec<PathBuf> = args.checkpoint.iter().chain(&args.residual).cloned().collect();
    let archive = args.out.as_ref().filter(|out| output::is_archive(out));
    let dir = args.out.as_ref().filter(|out| !output::is_archive(out));
    outputs.extend(archive.cloned());
    if let Some(dir) = dir {
        output::check_place(dir)?;
        outputs.extend(output::taken(dir, args.form)?);
    }
    let mut inputs: Vec<&Path> = vec![&args.weight];
    let given = args.calibration.iter().chain(&args.output_calibration).chain(&args.evaluate).chain(&args.minus);
    inputs.extend(given.map(PathBuf::as_path));
    guard::apart(&outputs, &inputs)?;
    if let Some(path) = &args.residual {
        guard::replaceable(path, "empty", |_| false, args.overwrite)?;
    }
    if let Some(path) = archive {
        output::check_archive(path, args.overwrite)?;
    }
    dir.map_or(Ok(()), |dir| output::check_dir(dir, args.form, args.overwrite))
}

/// Refuses a weight to be subtracted that has another shape.
fn check_base(base: &Path, header: &inputs::Header, args: &FactorArgs) -> Result<(), Failure> {
    let (dims, want) = (inputs::Header::read(base, args.bf16)?.dims().to_vec(), header.dims());
    if dims != want {
        return Err(Failure(format!(
            "{}: has shape {dims:?}, and {} has {want:?}; --minus takes a weight of the same shape",
            base.display(),
            args.weight.display()
        )));
    }
    Ok(())
}

/// Returns the rows of the weight, or of its difference from the one that is subtracted, to be read in tiles.
fn rows_of(args: &FactorArgs) -> Result<Box<dyn RowSource>, Failure> {
    Ok(inputs::rows(&args.weight, args.minus.as_deref(), args.rows_axes, args.bf16)?)
}

/// Refuses a checkpoint without a single pass, which alone has a state to keep, and for a file by columns, which has no
/// rows to feed it.
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

/// The statistics of the inputs of the layer.
enum Statistics {
    None,
    Total(Calibration),
    /// The statistics of consecutive parts of the samples, for `--blend auto`.
    Folds(Vec<Calibration>),
}

impl Statistics {
    /// Gathers the statistics of `--calibration`.
    fn gather(args: &FactorArgs, sources: &[Source], room: &Room<'_>) -> Result<Self, Failure> {
        if sources.is_empty() {
            return Ok(Statistics::None);
        }
        let options = CalibrationOptions { non_finite: non_finite(args), ..Default::default() };
        let statistics = match args.blend {
            Some(Blend::Auto) => Statistics::Folds(gather::read_folds(sources, options, room)?),
            _ => Statistics::Total(gather::read(sources, options, room)?),
        };
        refuse_none(statistics.parts(), "--calibration", &args.calibration)?;
        Ok(statistics)
    }

    fn parts(&self) -> &[Calibration] {
        match self {
            Statistics::None => &[],
            Statistics::Total(total) => std::slice::from_ref(total),
            Statistics::Folds(folds) => folds,
        }
    }

    /// Returns the factorization with these statistics; parts are not used before their blend is known.
    fn given_to(&self, svd: TruncatedSvd, args: &FactorArgs) -> TruncatedSvd {
        match (self, args.blend) {
            (Statistics::Total(total), Some(Blend::Fixed(b))) => svd.calibration(total).blend(b),
            (Statistics::Total(total), _) => svd.calibration(total),
            _ => svd,
        }
    }
}

/// Returns what is done with samples that are not finite.
fn non_finite(args: &FactorArgs) -> NonFinite {
    if args.skip_non_finite { NonFinite::Skip } else { NonFinite::Refuse }
}

/// Refuses statistics of files none of whose samples is finite.
fn refuse_none(parts: &[Calibration], option: &str, files: &[PathBuf]) -> Result<(), Failure> {
    if parts.iter().any(|part| part.samples() > 0) {
        return Ok(());
    }
    let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    Err(Failure(format!(
        "{}: not one of {} samples is finite; give {option} samples that are",
        files.join(", "),
        parts.iter().map(Calibration::skipped).sum::<u64>()
    )))
}

/// Returns the files of `--output-calibration`, of which the headers have been read.
fn output_sources(args: &FactorArgs, header: &inputs::Header) -> Result<Vec<Source>, Failure> {
    let open = |path: &PathBuf| {
        let source = Source::open(path, args.bf16)?;
        source.check_outputs(&args.weight, header.matrix().0)?;
        Ok(source)
    };
    args.output_calibration.iter().map(open).collect()
}

/// Returns the files of `--calibration`, of which the headers have been read.
fn calibration_sources(args: &FactorArgs, header: &inputs::Header) -> Result<Vec<Source>, Failure> {
    let open = |path: &PathBuf| {
        let source = Source::open(path, args.bf16)?;
        source.check_inputs(&args.weight, header.matrix().1)?;
        Ok(source)
    };
    args.calibration.iter().map(open).collect()
}

/// Returns the factorization with a memory limit, if there is one.
fn limited(svd: &TruncatedSvd, room: Option<usize>) -> TruncatedSvd {
    room.map_or(svd.clone(), |room| svd.clone().memory_limit(room))
}

/// Compares the outputs of the factors on samples with those of the weight; `held` bytes are in use.
fn evaluate<T: Scalar>(
    x: &Samples,
    w: &TensorRef<'_>,
    factors: &Factors<T>,
    path: &Path,
    limit: &Limit,
    held: usize,
) -> Result<Evaluated, Failure> {
    let shape = (w.shape()[0], w.shape()[1]);
    let (work, _) = memory::comparing::<T>(shape, w.dtype(), factors.rank(), x);
    let mut comparison = Comparison::new(w, factors).map_err(about(path))?;
    let buffer = memory::comparing_buffer(limit, held + work, x.line());
    x.for_each(0..x.rows(), buffer, |_, rows| comparison.update(&rows))?;
    Ok(Evaluated::new(x.path().display().to_string(), &comparison.distribution()))
}

/// The place where the weight will be, and what the factorization may take there if there is a limit.
enum Place {
    Whole(Option<usize>),
    Tiles(Option<usize>),
}

impl Place {
    /// Decides what a limit leaves beside the weight and `beside` bytes of statistics. It refuses what would exceed the
    /// limit then or later, up to the files of the factors.
    fn new<T: Scalar>(
        args: &FactorArgs,
        plain: &TruncatedSvd,
        limit: &Limit,
        header: &inputs::Header,
        (gathering, beside, x): (&[Gathering], usize, Option<&Samples>),
    ) -> Result<Self, Failure> {
        let path = &args.weight;
        if !limit.is_given() {
            let resumes = args.checkpoint.is_some() && inputs::stream(path, args.bf16).is_ok();
            let streams = resumes || args.minus.is_some();
            return Ok(if streams { Place::Tiles(None) } else { Place::Whole(None) });
        }
        let (shape, dtype) = (header.matrix(), header.dtype);
        let svd = &with_any_statistics(args, plain)?;
        let plan = svd.plan::<T>(shape, dtype).map_err(about(path))?;
        let most = shape.0.min(shape.1).min(args.max_rank.unwrap_or(usize::MAX));
        let k = plan.rank.unwrap_or(most);
        let least = |svd: &TruncatedSvd| match svd.clone().memory_limit(0).plan::<T>(shape, dtype) {
            Err(Error::Memory { least, .. }) => least,
            _ => 0,
        };
        // These are the moments before there is a weight, and when it is gone.
        let gathered = gathering.iter().map(|gathering| gathering.least).max().unwrap_or(0);
        let copied =
            args.out.as_ref().filter(|out| output::is_archive(out)).map_or(0, |_| memory::factors::<T>(shape, k));
        let written = args.out.as_ref().map_or(0, |_| memory::writing::<T>(shape, k, args.form) + copied);
        let around = gathered.max(written);
        let (calibrated, two_sided) = (!args.calibration.is_empty(), !args.output_calibration.is_empty());
        // Of the run before: its factors, and the roots that the statistics keep.
        let root = |held: bool, features: usize| if held { features * features * size_of::<T>() } else { 0 };
        let before = match args.repeat {
            1 => 0,
            _ => memory::factors::<T>(shape, k) + root(calibrated, shape.1) + root(two_sided, shape.0),
        };
        let factored = beside + before + least(svd);
        let blended = match args.blend {
            Some(Blend::Auto) => {
                let (held, work) = memory::blending::<T>(shape, dtype, k);
                held + work.max(least(svd))
            }
            _ => 0,
        };
        let compared = x.map_or(0, |x| {
            let (factors, work) = (memory::factors::<T>(shape, k), memory::comparing::<T>(shape, dtype, k, x).1);
            let plain =
                if calibrated { least(&plain.clone().with_rank(Rank::Fixed(k))).max(factors + work) } else { 0 };
            factors + work.max(plain)
        });
        let left = args.residual.as_ref().map_or(0, |_| header.bytes() + memory::residual::<T>(shape, k));
        let whole = limit.check((header.bytes() + factored.max(blended).max(compared).max(left)).max(around + left));
        let needs = match shape {
            _ if args.blend == Some(Blend::Auto) => Some("--blend auto"),
            _ if x.is_some() => Some("--evaluate"),
            _ if args.residual.is_some() => Some("--residual"),
            _ if args.minus.is_some() => None,
            _ if two_sided => Some("--output-calibration"),
            (m, n) if calibrated && m < n => Some("the calibration of more inputs than outputs"),
            _ => None,
        };
        match (whole, needs) {
            (Ok(()), _) if args.checkpoint.is_none() && args.minus.is_none() => {
                Ok(Place::Whole(Some(limit.data() - header.bytes() - beside - before)))
            }
            (Err(e), Some(option)) => Err(memory::needed_whole(path, option)(e)),
            _ => {
                let (rows, beside) = (rows_of(args)?, beside + before);
                let room = limit.data().saturating_sub(beside);
                let least = match svd.clone().memory_limit(room).plan_rows::<T>(&*rows) {
                    Err(Error::Memory { least, .. }) => least + beside,
                    planned => planned.map(|_| 0).map_err(about(path))?,
                };
                limit.check(least.max(around)).map_err(about(path))?;
                Ok(Place::Tiles(Some(room)))
            }
        }
    }

    /// Opens the weight in its place, and returns what the factorization may take.
    fn open(self, args: &FactorArgs) -> Result<(Weight, Option<usize>), Failure> {
        match self {
            Place::Whole(room) => Ok((Weight::Whole(read(&args.weight, args.bf16)?, args.rows_axes), room)),
            Place::Tiles(room) => Ok((Weight::Tiles(rows_of(args)?), room)),
        }
    }
}

/// Returns the factorization with statistics like those it will have, for its plan, which does not depend on their
/// values.
fn with_any_statistics(args: &FactorArgs, plain: &TruncatedSvd) -> Result<TruncatedSvd, Failure> {
    let any = Calibration::new(1)?;
    let mut svd = plain.clone().whitening(args.whitening);
    if !args.calibration.is_empty() {
        svd = svd.calibration(&any);
    }
    if args.rank.is_quality() && args.evaluate.is_some() {
        svd = svd.quality_on(&any);
    }
    if !args.output_calibration.is_empty() {
        svd = svd.output_calibration(&any);
    }
    Ok(match args.blend {
        Some(Blend::Fixed(b)) => svd.blend(b),
        // No blend takes more memory than one that is not 1.
        Some(Blend::Auto) => svd.blend(0.5),
        None => svd,
    })
}

/// The weight: in memory if it fits there, else read in tiles.
enum Weight {
    /// The tensor, and how many of its axes are rows.
    Whole(Array, usize),
    Tiles(Box<dyn RowSource>),
}

impl Weight {
    /// Factors the weight of an input as the options say, whatever holds its elements.
    fn factor<T: Scalar>(
        &mut self,
        path: &Path,
        svd: &TruncatedSvd,
        limit: impl Fn(Error) -> Error,
        checkpoint: Option<&StateFile>,
        ranks: &Ranks,
    ) -> Result<Made<T>, Failure> {
        let factors = match self {
            Weight::Tiles(rows) if let Some(comm) = ranks.comm() => {
                let part = svd.factor_distributed::<T>(comm, &mut **rows, &Watch::default());
                let part = part.map_err(|e| match ranks.known_to_all(&limit(e)) {
                    Failure(line) if line.is_empty() => Failure(line),
                    Failure(line) => Failure(format!("{}: {line}", path.display())),
                })?;
                return Ok(Made { factors: part.factors, own: Some(part.own) });
            }
            Weight::Whole(file, row_axes) => {
                let tensor = file.tensor().map_err(about(path))?;
                svd.factor(matrix(path, &tensor, *row_axes)?).map_err(limit).map_err(about(path))
            }
            Weight::Tiles(rows) => {
                let rows = &mut **rows;
                match checkpoint {
                    None => svd.factor_rows(rows, &Watch::default()).map_err(&limit).map_err(about(path)),
                    Some(checkpoint) => {
                        let cancel = Cancel::new();
                        stop_on_signals(&cancel)?;
                        let factors = svd.factor_rows_resumable(rows, &Watch::new(cancel), checkpoint);
                        factors.map_err(limit).map_err(about(path)).map_err(|Failure(line)| match checkpoint.read() {
                            Some(_) => Failure(format!("{line}; the same command goes on from --checkpoint")),
                            None => Failure(line),
                        })
                    }
                }
            }
        };
        Ok(Made { factors: factors?, own: None })
    }
}

/// Makes SIGINT and SIGTERM ask to stop, which saves the state.
fn stop_on_signals(cancel: &Cancel) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Failure(format!("cannot catch signals: {e}")))?;
    let cancel = cancel.clone();
    beside(move || signals.forever().for_each(|_| cancel.cancel()))
}

/// Returns the middle time, or the mean of the middle two.
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
