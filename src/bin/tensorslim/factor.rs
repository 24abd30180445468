//! `tensorslim factor`: read, check, factor, evaluate, write, report. Everything that can fail without the
//! factorization fails before it.

use std::path::Path;
use std::time::Duration;

use rayon::ThreadPoolBuilder;
use tensorslim::npy::Array;
use tensorslim::svd::ErrorKind;
use tensorslim::{DType, Scalar, TensorRef, TruncatedSvd, quality, rank_saves_memory};

use crate::args::FactorArgs;
use crate::report::{Evaluated, Report, Written};
use crate::{Failure, about, emit, output};

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
    let path = &args.weight;
    let file = read(path, args.bf16)?;
    let tensor = file.tensor().map_err(about(path))?;
    let w = matrix(path, &tensor, 1)?;
    let shape = [w.shape()[0], w.shape()[1]];
    let inputs = args.evaluate.as_deref().map(|x| read(x, args.bf16).map(|file| (x, file))).transpose()?;
    let x = inputs.as_ref().map(|(path, file)| samples(path, file, &args.weight, shape[1])).transpose()?;
    if let Some(dir) = &args.out {
        output::prepare(dir)?;
    }

    let mut svd =
        TruncatedSvd::new(args.rank.policy()).method(args.method).seed(args.seed).dynamic_shift(args.dynamic_shift);
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
    let mut plan = None;
    if args.explain {
        let text = svd.plan::<T>((shape[0], shape[1]), w.dtype()).map_err(about(path))?.to_string();
        if args.json {
            plan = Some(text.lines().map(str::to_owned).collect());
        } else {
            emit(&format!("{}\n\n", text.trim_end()))?;
        }
    }

    let mut factors = svd.factor::<T>(w.clone()).map_err(about(path))?;
    let mut elapsed = vec![factors.report().elapsed];
    for _ in 1..args.repeat {
        factors = svd.factor::<T>(w.clone()).map_err(about(path))?;
        elapsed.push(factors.report().elapsed);
    }
    let activation = match &x {
        None => None,
        Some((path, x)) => {
            let a = quality::activation(&w, &factors, x).map_err(about(path))?;
            Some(Evaluated::new(path.display().to_string(), x.shape()[0], &a))
        }
    };

    let r = factors.report();
    let mut notes = r.notes.clone();
    if let (Some(sketch), None) = (args.sketch, r.sketch) {
        notes.push(format!("method {} uses no sketch: --sketch {sketch} had no effect", r.method));
    }
    if !rank_saves_memory(shape[0], shape[1], r.rank) {
        notes.push("the factors are no smaller than the weight; --ratio finds a rank that saves".to_owned());
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
    let std_dev = match r.error_kind {
        ErrorKind::Exact => None,
        ErrorKind::Estimate { std_dev, .. } => Some(std_dev),
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        file: path.display().to_string(),
        tensor_shape: tensor.shape().to_vec(),
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
        params_before: r.params_before(),
        params_after: r.params_after(),
        ratio: r.ratio(),
        activation,
        written: args.out.as_deref().map(|dir| Written { dir: dir.display().to_string(), dtype: dtype.to_string() }),
        notes,
        plan,
    };
    let json = |text: serde_json::Result<String>| {
        text.map(|t| t + "\n").map_err(|e| Failure(format!("the report does not serialize: {e}")))
    };
    if let Some(dir) = &args.out {
        output::write(dir, dtype, &factors, &json(serde_json::to_string_pretty(&report))?)?;
    }
    emit(&if args.json { json(serde_json::to_string(&report))? } else { report.table() })
}

/// Reads a file; with `bf16`, two-byte elements without a type are bfloat16.
pub(crate) fn read(path: &Path, bf16: bool) -> Result<Array, Failure> {
    let untyped = || Array::read_as(path, DType::BF16);
    if bf16 && let Ok(file) = untyped() {
        return Ok(file);
    }
    Array::read(path).map_err(|e| match untyped() {
        Ok(_) => Failure(format!(
            "{}: holds two-byte elements that have no floating-point type; if they are bfloat16, add --bf16",
            path.display()
        )),
        Err(_) => e.into(),
    })
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
