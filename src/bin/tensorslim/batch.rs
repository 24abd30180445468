//! The command `tensorslim batch`: factors many weights, whatever happens to single ones.
//!
//! ```text
//!   inputs ─> shard ─> skip what is done (--resume) ─> [spectra ─> ranks (--budget)]
//!          ─> Batch::factor ─> results, journal ─> manifest
//! ```
//!
//! A budget is shared among the weights of all shards: each measures the spectra of its own into the one output
//! directory and comes, once all are there, to the same division. It takes two rounds, so that no shard waits for one
//! that the queue has not started.
//!
//! A weight that fails is reported with its reason, on one line, and the others go on; then the exit code is 1. SIGINT
//! and SIGTERM stop the batch at the next product or tile; after [`GRACE`] the process ends in any case, which loses
//! nothing: results appear by a rename, and the journal gets whole lines.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tensorslim::ErrorKind;
use tensorslim::batch::config::{Config, Options};
use tensorslim::batch::manifest::{Entry, FORMAT, Header, ResultRecord, Status, directory};
use tensorslim::batch::schedule;
use tensorslim::batch::{Batch, Finished, Fit, Input, Item};
use tensorslim::operator::Cancel;
use tensorslim::rank::{Budget, Layer, Share, allocate, rank_for_ratio};
use tensorslim::{DType, Error, Factors, Rank, Scalar, npy, rank_saves_memory};

use crate::args::{BatchArgs, shard};
use crate::failure::{Failure, complain, emit};
use crate::guard::{self, Identity};
use crate::inputs::{self, Found, Kind, Weight};
use crate::memory::{Limit, Space};
use crate::pool::{beside, on_threads};
use crate::progress::Show;
use crate::report::{NO_SMALLER, bytes, plain, table};
use crate::results::{Places, Results, discard_spectra};
use crate::writer::{self, Staged};

/// The longest time from a signal to the end: under the two seconds that a job manager may give.
const GRACE: Duration = Duration::from_millis(1500);

pub(crate) fn run(args: &BatchArgs) -> Result<(), Failure> {
    let work = || match args.precision {
        DType::F64 => batch::<f64>(args),
        _ => batch::<f32>(args),
    };
    on_threads(args.threads, work)
}

/// A weight to be factored.
#[derive(Clone)]
struct Task<'a> {
    weight: &'a Weight,
    shape: (usize, usize),
    dtype: DType,
    options: Options,
    /// A note for its report on the options.
    note: Option<String>,
}

impl<'a> Task<'a> {
    /// Decides what is to be done with a weight, or how it ends without that, and why. With `shared`, a budget decides
    /// the rank.
    fn new(weight: &'a Weight, config: &Config, given: &Options, shared: bool) -> Result<Self, (Status, String)> {
        let (shape, dtype) = match &weight.kind {
            Kind::Matrix { shape, dtype } => (*shape, *dtype),
            Kind::Kept(why) => return Err((Status::Kept, why.clone())),
            Kind::Bad(e) => return Err((Status::Failed, e.to_string())),
        };
        let mut task = Task { weight, shape, dtype, options: config.options(&weight.name, given), note: None };
        let (m, n) = shape;
        match task.options.rule() {
            _ if shared => {}
            // A rank that is asked for all weights is more than some have.
            Some(Rank::Fixed(k)) if k > m.min(n) => {
                let all = m.min(n);
                task.options.rank = Some(all);
                task.note = Some(format!("rank {k} was asked for, and {m} × {n} has no more than {all}"));
            }
            Some(Rank::Ratio(r)) if r > 0.0 && rank_for_ratio(m, n, r) == 0 => {
                let why = format!("too small: factors of {m} × {n} cannot be {} times smaller than it is", plain(r));
                return Err((Status::Kept, why));
            }
            _ => {}
        }
        Ok(task)
    }
}

/// Runs `batch` in the arithmetic T: collects the weights, resumes what the journal has, factors the rest, writes the manifest.
fn batch<T: Scalar>(args: &BatchArgs) -> Result<(), Failure> {
    let start = Instant::now();
    let (config, config_sum) = config(args)?;
    let given = given(args);
    let parts = match args.shard {
        Some(parts) => parts,
        None => slurm(|name| std::env::var(name).ok())?.unwrap_or([1, 1]),
    };
    // These are the threads of the pool, and of the pools of workers with a thread for each.
    let threads = rayon::current_num_threads();
    let workers = args.jobs.map_or(threads, usize::from).min(threads);
    let (space, jobs) = match Space::new(threads, workers) {
        // One worker takes the threads that are there.
        Err(_) if args.jobs.is_none() => (Space::new(0, 0)?, Some(1)),
        space => (space?, args.jobs.map(usize::from)),
    };
    let limit = Limit::new(args.memory_limit, (threads, threads + workers), space);
    limit.check_program(2 * threads + workers)?;

    let Found { mut weights, left_out } =
        inputs::collect(&args.inputs, args.bf16, &args.out, |name| config.factors(name))?;
    if weights.is_empty() {
        return Err(Failure("no .npy files, and no arrays of archives, in what was given".into()));
    }
    if let Some(dir) = &args.minus {
        fs::metadata(dir).map_err(|e| Failure(format!("{}: cannot be read: {e}; check the path", dir.display())))?;
        inputs::subtract(&mut weights, dir, args.bf16);
    }
    let header = header::<T>(args, &given, &weights, (config_sum, parts));
    let shared = args.budget.is_some();
    let every: Vec<_> = weights.iter().map(|weight| Task::new(weight, &config, &given, shared)).collect();
    let costs: Vec<f64> = every.iter().map(|task| task.as_ref().map_or(0.0, cost::<T>)).collect();
    let mine = schedule::shard(&costs, parts[0] - 1, parts[1]);
    let names: Vec<String> = mine.iter().map(|&i| weights[i].name.clone()).collect();

    let bases = weights.iter().filter_map(|weight| weight.base.as_deref());
    let inputs = weights.iter().map(|weight| weight.path.as_path()).chain(bases).chain(args.config.as_deref());
    let inputs: HashSet<Identity> = inputs.filter_map(guard::identity).collect();
    // Only weights that may be factored need a place.
    let placed: Vec<String> = mine.iter().filter(|&&i| every[i].is_ok()).map(|&i| weights[i].name.clone()).collect();
    let results = Results::open(&args.out, header, (args.resume, args.overwrite), (&placed, &inputs))?;
    let places = results.places();
    let results = Arc::new(Mutex::new(results));
    let cancel = Cancel::new();
    stop_on_signals(&cancel, &results, &names)?;

    let mut tasks = Vec::new();
    let mut skipped = 0;
    for i in mine {
        let weight = &weights[i];
        match &every[i] {
            Ok(_) if !shared && lock(&results).has(&weight.name, weight.stamp) => skipped += 1,
            Ok(task) => tasks.push(task.clone()),
            Err((status, why)) => lock(&results).record(entry(weight, *status, Some(why.clone())))?,
        }
    }

    let show = Show::new(args.progress);
    let mut runner = Batch::new().memory_limit(limit.data()).cancel(&cancel).observer(&show);
    if let Some(jobs) = jobs {
        runner = runner.workers(jobs);
    }
    let settled = |task: &Task<'_>| lock(&results).is_settled(&task.weight.name, task.weight.stamp);
    if shared && tasks.iter().all(settled) {
        // The budget was shared before, and what each weight got is on record.
        skipped = tasks.iter().filter(|task| lock(&results).has(&task.weight.name, task.weight.stamp)).count();
        tasks.clear();
    } else if let Some(ratio) = args.budget {
        // All shards come to the same division of the budget, each from the spectra of all.
        let every = every.into_iter().filter_map(Result::ok).collect();
        tasks = allocated::<T>(args, (tasks, every), ratio, (&runner, &limit, &cancel), &results, &places)?;
        let all = tasks.len();
        tasks.retain(|task| !lock(&results).has(&task.weight.name, task.weight.stamp));
        skipped = all - tasks.len();
    }
    let recorded = factor::<T>(args, &tasks, (&runner, &limit), &results, &places, None);
    show.end();

    let manifest = lock(&results).finish(&names)?;
    let stopped = cancel.is_cancelled() && !manifest.complete;
    if manifest.complete && shared && parts[1] == 1 {
        // The spectra of shards are removed by `merge`.
        discard_spectra(&args.out);
    }
    let summary = Summary::new(&manifest.tensors, names.len(), skipped, left_out, start.elapsed());
    emit(&if args.json || matches!(show, Show::Json(_)) { summary.json()? } else { summary.table(args) })?;
    if let Ok(results) = Arc::try_unwrap(results) {
        results.into_inner().unwrap_or_else(PoisonError::into_inner).close();
    }
    let failures: Vec<&Entry> = manifest.tensors.iter().filter(|e| e.status == Status::Failed).collect();
    for failure in &failures {
        complain(&format!("{}: {}", failure.name, failure.why.as_deref().unwrap_or("failed")));
    }
    recorded?;
    if args.measure && !cancel.is_cancelled() {
        return Ok(());
    }
    if stopped {
        let done = summary.done + summary.kept;
        return Err(Failure(format!("stopped: {done} of {} are done; go on with --resume", names.len())));
    }
    if !failures.is_empty() {
        return Err(Failure(format!("{} of {} weights failed; the others are done", failures.len(), names.len())));
    }
    Ok(())
}

fn lock(results: &Mutex<Results>) -> MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the patterns, and the checksum of the file that has them. The file is read once, because it may be a pipe.
fn config(args: &BatchArgs) -> Result<(Config, Option<u32>), Failure> {
    let (config, sum) = match &args.config {
        None => (Config::default(), None),
        Some(path) => {
            let at = |why: &dyn std::fmt::Display| Failure(format!("{}: {why}", path.display()));
            let text = fs::read_to_string(path).map_err(|e| at(&format_args!("cannot be read: {e}")))?;
            let config = Config::parse(&text).map_err(|why| at(&why))?;
            (config, Some(crc32fast::hash(text.as_bytes())))
        }
    };
    Ok((config.with_patterns(&args.only, &args.keep).map_err(Failure)?, sum))
}

/// Returns the options of the command line.
fn given(args: &BatchArgs) -> Options {
    Options {
        rank: args.rank,
        ratio: args.ratio,
        energy: args.energy,
        tolerance: args.tolerance,
        max_rank: args.max_rank,
        method: args.method.map(|m| m.to_string()),
        sketch: args.sketch.map(|s| s.to_string()),
        oversample: args.oversample,
        power_iterations: args.power_iterations,
        seed: args.seed,
    }
}

/// Lists everything that the bytes of the results depend on. Threads and jobs are not among it.
fn header<T: Scalar>(
    args: &BatchArgs,
    given: &Options,
    weights: &[Weight],
    (config_sum, parts): (Option<u32>, [usize; 2]),
) -> Header {
    let text = config_sum.map_or(Value::Null, |sum| json!(format!("{sum:08x}")));
    let mut options: BTreeMap<String, Value> = BTreeMap::from([
        ("config".to_string(), text),
        ("only".to_string(), json!(args.only)),
        ("keep".to_string(), json!(args.keep)),
        ("budget".to_string(), json!(args.budget)),
        ("precision".to_string(), json!(T::DTYPE.name())),
        ("dtype".to_string(), json!(args.dtype.unwrap_or(T::DTYPE).name())),
        ("bf16".to_string(), json!(args.bf16)),
        // A weight that does not fit is read in tiles, which changes the result by rounding.
        ("memory_limit".to_string(), json!(args.memory_limit)),
    ]);
    if let Some(dir) = &args.minus {
        options.insert("minus".to_string(), json!(dir));
    }
    if let Ok(Value::Object(given)) = serde_json::to_value(given) {
        options.extend(given);
    }
    let version = env!("CARGO_PKG_VERSION").to_string();
    Header { format: FORMAT, version, options, inputs: inputs::digest(weights), shard: parts }
}

/// Returns the part of a Slurm array that this process is, `None` outside of one.
fn slurm(var: impl Fn(&str) -> Option<String>) -> Result<Option<[usize; 2]>, Failure> {
    let number = |name: &str| match var(name) {
        None => Ok(None),
        Some(text) => match text.parse::<usize>() {
            Ok(n) => Ok(Some(n)),
            Err(_) => Err(Failure(format!("{name} is {text:?}, not a number; give --shard I/N"))),
        },
    };
    let (Some(id), Some(count)) = (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?) else {
        return Ok(None);
    };
    let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
    let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
    let index = id.checked_sub(first).map_or(0, |past| past / step + 1);
    match shard(&format!("{index}/{count}")) {
        // An array of listed ids (1,5,9) has no step that says which part is which.
        Ok(parts) if id == first + (index - 1) * step => Ok(Some(parts)),
        _ => Err(Failure(format!(
            "SLURM_ARRAY_TASK_ID {id} is no part of {count} from {first} in steps of {step}; give --shard I/N"
        ))),
    }
}

/// Predicts the seconds of a task.
fn cost<T: Scalar>(task: &Task<'_>) -> f64 {
    // Under a budget the spectrum has to be seen first, which costs as much as the largest useful rank.
    let rule = task.options.rule().unwrap_or(Rank::Ratio(1.0));
    let plan = task.options.svd(rule).and_then(|svd| svd.plan::<T>(task.shape, task.dtype));
    plan.ok()
        .and_then(|plan| plan.candidates.iter().find(|c| c.method == plan.method).map(|c| c.seconds))
        .unwrap_or(0.0)
}

fn entry(weight: &Weight, status: Status, why: Option<String>) -> Entry {
    let (name, input) = (weight.name.clone(), Some(weight.stamp));
    Entry { name, status, why, files: BTreeMap::new(), facts: None, input, seconds: None }
}

/// Makes SIGINT and SIGTERM ask to stop. Whatever still runs after the grace ends with the process.
fn stop_on_signals(cancel: &Cancel, results: &Arc<Mutex<Results>>, names: &[String]) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Failure(format!("cannot catch signals: {e}")))?;
    let (cancel, results, names) = (cancel.clone(), Arc::downgrade(results), names.to_vec());
    beside(move || {
        if signals.forever().next().is_none() {
            return;
        }
        cancel.cancel();
        std::thread::sleep(GRACE);
        // The run may have ended by now, and its results be gone.
        if let Some(results) = results.upgrade() {
            let results = lock(&results);
            if let Err(Failure(line)) = results.finish(&names) {
                complain(&line);
            }
            complain("stopped in the middle of a weight, which is not done; go on with --resume");
            std::process::exit(1);
        }
    })
}

/// Returns the tasks of this shard that the budget does not leave whole, with a rank for each. It records which weights
/// the budget leaves whole, and which have no spectrum. `every` has the tasks of all shards.
fn allocated<'a, T: Scalar>(
    args: &BatchArgs,
    (tasks, every): (Vec<Task<'a>>, Vec<Task<'a>>),
    ratio: f64,
    (runner, limit, cancel): (&Batch<'_>, &Limit, &Cancel),
    results: &Arc<Mutex<Results>>,
    places: &Places,
) -> Result<Vec<Task<'a>>, Failure> {
    let dir = places.spectra();
    crate::output::prepare(&dir)?;
    // The file is for the input as it is now: one that changed has another name.
    let file = |task: &Task<'_>| {
        let (bytes, changed) = task.weight.stamp;
        format!("{}.{bytes}-{changed}.npy", directory(&task.weight.name))
    };
    let read = |task: &Task<'_>| -> Option<Vec<f64>> {
        let array = npy::Array::read(dir.join(file(task))).ok().filter(|a| a.dtype() == DType::F64)?;
        let numbers: &[f64] = bytemuck::try_cast_slice(array.bytes()).ok()?;
        (numbers.len() > 1).then(|| numbers.to_vec())
    };
    let missing: Vec<Task<'_>> = (tasks.iter()).filter(|task| read(task).is_none()).cloned().collect();
    factor::<T>(args, &missing, (runner, limit), results, places, Some((&dir, &file)))?;
    if cancel.is_cancelled() || args.measure {
        // A budget that is shared among some of the weights only would be another budget.
        return Ok(Vec::new());
    }

    let mine: HashSet<&str> = tasks.iter().map(|task| task.weight.name.as_str()).collect();
    let mut found: Vec<(Task<'a>, Vec<f64>)> = Vec::new();
    let mut unknown = Vec::new();
    for task in every {
        match read(&task) {
            Some(numbers) => found.push((task, numbers)),
            None if mine.contains(task.weight.name.as_str()) || dir.join(failed(&file(&task))).exists() => {}
            None => unknown.push(&task.weight.name),
        }
    }
    if let Some(first) = unknown.first() {
        return Err(Failure(format!(
            "--budget weighs all weights against each other, and the spectra of {} in other shards are missing, {first:?} the first; run all \
             shards with --measure and one --out, then all with --resume",
            unknown.len()
        )));
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let before: usize = found.iter().map(|(task, _)| task.shape.0 * task.shape.1).sum();
    let layers: Vec<Layer<'_>> = (found.iter())
        .map(|(task, numbers)| {
            let (norm_squared, spectrum) = (numbers[0], &numbers[1..]);
            let mut layer = Layer::new(task.shape, task.dtype, spectrum, norm_squared);
            // Errors are relative, so that a weight of small numbers is no less important.
            layer.weight = if norm_squared > 0.0 { 1.0 / norm_squared } else { 0.0 };
            layer
        })
        .collect();
    let limit = (before as f64 / ratio) as u64;
    let shares = allocate(&layers, Budget::parameters(limit)).map_err(|e| match e {
        Error::Option { name: "budget", .. } => Failure(format!(
            "--budget {} leaves {limit} numbers for all weights, and at their least ranks they take more; give less",
            plain(ratio)
        )),
        e => e.into(),
    });
    let shares = shares?.shares;
    drop(layers);
    let mut left = Vec::new();
    for ((mut task, _), share) in found.into_iter().zip(shares) {
        if !mine.contains(task.weight.name.as_str()) {
            continue;
        }
        match share {
            Share::Rank(k) => {
                task.options = Options { rank: Some(k), ..Options::default() }.or(&task.options);
                left.push(task);
            }
            Share::Whole => {
                let why = "whole: the budget does more good elsewhere".to_string();
                lock(results).record(entry(task.weight, Status::Kept, Some(why)))?;
            }
        }
    }
    Ok(left)
}

/// Returns the name of the file that tells other shards that there is no spectrum; it is beside the place of the
/// spectrum.
fn failed(spectrum: &str) -> String {
    format!("{spectrum}.failed")
}

/// The directory of spectra, and the function that names a task's file there.
type Spectra<'a> = (&'a Path, &'a (dyn Fn(&Task<'_>) -> String + Sync));

/// Factors the tasks and writes their results, or with `spectra` their singular values alone.
///
/// # Errors
/// The failure says that a task is done or has failed and cannot be recorded; the others are done.
fn factor<T: Scalar>(
    args: &BatchArgs,
    tasks: &[Task<'_>],
    (runner, limit): (&Batch<'_>, &Limit),
    results: &Arc<Mutex<Results>>,
    places: &Places,
    spectra: Option<Spectra<'_>>,
) -> Result<(), Failure> {
    let mut items = Vec::with_capacity(tasks.len());
    for task in tasks {
        let (m, n) = task.shape;
        let rule = match spectra {
            // Beyond the rank at which factors are as large as the weight there is nothing to gain.
            Some(_) => Rank::Fixed(rank_for_ratio(m, n, 1.0).max(1)),
            None => (task.options.rule()).ok_or_else(|| {
                Failure(format!(
                    "{}: nothing says how much to keep; give --rank, --ratio, --energy, --tolerance or --budget, or a [default]",
                    task.weight.name
                ))
            })?,
        };
        items.push(Item::new(task.weight.name.clone(), task.shape, task.dtype, task.options.svd(rule)?));
    }
    let load = |index: usize, fit: Fit, with: &mut dyn FnMut(Input<'_>) -> tensorslim::Result<()>| {
        let path = &tasks[index].weight.path;
        let base = tasks[index].weight.base.as_deref();
        match fit {
            _ if base.is_some() => with(Input::Rows(&mut *inputs::rows(path, base, 1, args.bf16)?)),
            Fit::Whole => {
                let array = inputs::array(path, args.bf16)?;
                let tensor = array.tensor()?;
                with(Input::Tensor(if tensor.shape().len() > 2 { tensor.matricize(1)? } else { tensor }))
            }
            Fit::Tiles => {
                let state = places.checkpoint(&tasks[index].weight.name, tasks[index].weight.stamp);
                with(Input::Resumable(&mut inputs::stream(path, args.bf16)?, &state))?;
                state.remove();
                Ok(())
            }
        }
    };
    let unrecorded: Mutex<Option<Error>> = Mutex::new(None);
    let keep = |recorded: tensorslim::Result<()>| {
        recorded.inspect_err(|e| {
            unrecorded.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e.clone());
        })
    };
    let sink = |finished: Finished<'_, T>| -> tensorslim::Result<()> {
        let task = &tasks[finished.index];
        let written = finished.result.map_err(limit.restated(0)).and_then(|f| match spectra {
            None => write(args, places, task, &f).map(Some),
            Some((dir, file)) => {
                let r = f.report();
                let numbers: Vec<f64> = std::iter::once(r.norm * r.norm).chain(r.spectrum.iter().copied()).collect();
                let shape = [numbers.len()];
                let staged = Staged::through(Some(places.stage()), &dir.join(file(task)), |w| {
                    npy::write_elements_to(w, DType::F64, &shape, &numbers)
                })?;
                writer::publish(vec![staged]).map(|()| None)
            }
        });
        let mut results = lock(results);
        match written {
            Ok(None) => Ok(()),
            Ok(Some(mut entry)) => {
                entry.seconds = Some(finished.elapsed.as_secs_f64());
                keep(results.record(entry))
            }
            Err(e) => {
                keep(results.record(entry(task.weight, Status::Failed, Some(Failure::from(e.clone()).0))))?;
                if let Some((dir, file)) = spectra {
                    let path = dir.join(failed(&file(task)));
                    keep(writer::put_through(Some(places.stage()), &path, &[e.to_string().as_bytes()]))?;
                }
                Err(e)
            }
        }
    };
    runner.factor::<T>(&items, load, sink);
    match unrecorded.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(Failure(format!("{e}; then go on with --resume"))),
        None => Ok(()),
    }
}

/// Writes factors and report, and returns the entry for the journal.
fn write<T: Scalar>(args: &BatchArgs, places: &Places, task: &Task<'_>, f: &Factors<T>) -> tensorslim::Result<Entry> {
    let dtype = args.dtype.unwrap_or(T::DTYPE);
    let r = f.report();
    crate::output::check_range(&r.spectrum[..r.rank], dtype)?;
    let (kind, std_dev) = match r.error_kind {
        ErrorKind::Estimate { std_dev, .. } => ("estimate", Some(std_dev)),
        _ => ("exact", None),
    };
    let mut notes = r.notes.clone();
    notes.extend(task.note.clone());
    if !rank_saves_memory(r.shape.0, r.shape.1, r.rank) {
        notes.push(NO_SMALLER.to_string());
    }
    // The report has no times and no threads, so that equal runs leave equal bytes.
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "name": task.weight.name,
        "shape": [r.shape.0, r.shape.1],
        "dtype": r.dtype.name(),
        "precision": r.precision.name(),
        "written": dtype.name(),
        "rank": r.rank,
        "method": r.method.name(),
        "reason": r.reason,
        "sketch": r.sketch.map(|s| s.name()),
        "seed": r.seed,
        "oversample": r.oversample,
        "power_iterations": r.power_iterations,
        "relative_error": r.relative_error,
        "error_kind": kind,
        "error_std_dev": std_dev,
        "norm": r.norm,
        "passes": r.passes,
        "params_before": r.params_before(),
        "params_after": r.params_after(),
        "ratio": r.ratio(),
        "notes": notes,
    });
    let files = places.write(&task.weight.name, dtype, f, &format!("{report:#}\n"))?;
    let facts = ResultRecord {
        shape: [r.shape.0, r.shape.1],
        dtype: r.dtype.name().into(),
        rank: r.rank,
        method: r.method.name().into(),
        relative_error: r.relative_error,
        error_kind: kind.into(),
        params: [r.params_before(), r.params_after()],
        passes: r.passes,
    };
    Ok(Entry { files, facts: Some(facts), ..entry(task.weight, Status::Done, None) })
}

/// The summary at the end of a batch.
#[derive(Serialize)]
struct Summary {
    weights: usize,
    done: usize,
    /// The number of done weights that an earlier run had done.
    skipped: usize,
    failed: usize,
    kept: usize,
    /// Files below an input that are no inputs: factors of this program.
    left_out: Vec<String>,
    params_before: usize,
    params_after: usize,
    ratio: f64,
    worst_error: f64,
    elapsed_ms: f64,
    peak_rss_bytes: Option<usize>,
    failures: HashMap<String, String>,
}

impl Summary {
    fn new(entries: &[Entry], weights: usize, skipped: usize, left_out: Vec<String>, elapsed: Duration) -> Self {
        let count = |status| entries.iter().filter(|e| e.status == status).count();
        let facts: Vec<&ResultRecord> = entries.iter().filter_map(|e| e.facts.as_ref()).collect();
        let sum = |i: usize| facts.iter().map(|f| f.params[i]).fold(0, usize::saturating_add);
        let why = |e: &Entry| (e.name.clone(), e.why.clone().unwrap_or_default());
        Summary {
            weights,
            done: count(Status::Done),
            skipped,
            failed: count(Status::Failed),
            kept: count(Status::Kept),
            left_out,
            params_before: sum(0),
            params_after: sum(1),
            ratio: if sum(1) > 0 { sum(0) as f64 / sum(1) as f64 } else { 1.0 },
            worst_error: facts.iter().map(|f| f.relative_error).fold(0.0, f64::max),
            elapsed_ms: elapsed.as_secs_f64() * 1e3,
            peak_rss_bytes: crate::process::peak_rss(),
            failures: entries.iter().filter(|e| e.status == Status::Failed).map(why).collect(),
        }
    }

    fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string(self);
        text.map(|text| text + "\n").map_err(|e| Failure(format!("the summary does not serialize: {e}")))
    }

    fn table(&self, args: &BatchArgs) -> String {
        let mut rows = vec![("weights", self.weights.to_string())];
        let earlier = if self.skipped > 0 { format!(" ({} of an earlier run)", self.skipped) } else { String::new() };
        rows.push(("done", format!("{}{earlier}", self.done)));
        for (what, n) in [("kept as they are", self.kept), ("failed", self.failed)] {
            if n > 0 {
                rows.push((what, n.to_string()));
            }
        }
        rows.extend(self.left_out.iter().map(|what| ("left out", what.clone())));
        if args.measure {
            rows.push(("spectra", "measured; when those of all shards are, run them with --resume".into()));
        }
        rows.push(("parameters", format!("{} -> {} ({:.2}x)", self.params_before, self.params_after, self.ratio)));
        rows.push(("largest error", format!("{:.5}", self.worst_error)));
        rows.push(("time", crate::progress::clock(Duration::from_secs_f64(self.elapsed_ms / 1e3))));
        if let Some(peak) = self.peak_rss_bytes {
            rows.push(("peak memory", format!("{} resident", bytes(peak))));
        }
        rows.push(("written", format!("{}: a directory each, manifest, journal", args.out.display())));
        table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::slurm;

    #[test]
    fn slurm_arrays_are_shards() {
        let part = |vars: &[(&str, &str)]| {
            slurm(|name| {
                vars.iter().find(|(n, _)| format!("SLURM_ARRAY_TASK_{n}") == name).map(|(_, v)| (*v).to_string())
            })
            .map_err(|f| f.0)
        };
        assert_eq!(part(&[]), Ok(None));
        assert_eq!(part(&[("ID", "3"), ("COUNT", "8"), ("MIN", "1")]), Ok(Some([3, 8])));
        assert_eq!(part(&[("ID", "0"), ("COUNT", "8"), ("MIN", "0")]), Ok(Some([1, 8])));
        assert_eq!(part(&[("ID", "14"), ("COUNT", "3"), ("MIN", "10"), ("STEP", "2")]), Ok(Some([3, 3])));
        assert!(part(&[("ID", "9"), ("COUNT", "3"), ("MIN", "1")]).unwrap_err().contains("--shard I/N"));
        assert!(part(&[("ID", "x"), ("COUNT", "3")]).unwrap_err().contains("not a number"));
    }
}
