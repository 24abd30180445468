//! The arguments of the command line. Values that make no sense for any file (rank 0, a ratio below zero, no threads)
//! are refused here with exit code 2; values that a particular file cannot satisfy are left for the library to refuse.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tensorslim::{DType, Device, Method, Rank, Sketch, Whitening};

/// Low-rank factors of neural-network weights.
#[derive(Parser)]
#[command(version, after_long_help = include_str!("help/main.txt"))]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Factors one weight: W ≈ U · diag(s) · Vᵀ.
    Factor(Box<FactorArgs>),
    /// Factors every weight in files and directories; can be stopped and resumed, and divided among machines.
    #[command(after_long_help = include_str!("help/batch.txt"))]
    Batch(Box<BatchArgs>),
    /// Checks the shards of a batch and writes one summary: CSV, JSON and an HTML page.
    Merge(MergeArgs),
    /// SRHT against Gaussian against sparse sign on this machine: tables, CSV, JSON and one HTML page.
    Bench(BenchArgs),
    /// Gathers the inputs of a layer into statistics for `factor --calibration`; merges such statistics.
    Calibrate(CalibrateArgs),
    /// Says what this machine offers: instruction sets, threads, memory, GPU, MPI.
    Info(InfoArgs),
}

#[derive(Args)]
pub(crate) struct InfoArgs {
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct FactorArgs {
    /// The weight, out × in; of more than two axes the first becomes rows and the others columns (see --rows-axes). An
    /// array in an archive is W.npz/NAME
    #[arg(value_name = "W.npy")]
    pub(crate) weight: PathBuf,

    /// Make rows of the first N axes, and columns of the others: 3 for the filters of Keras, height × width × in × out
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 1, value_parser = positive_rank)]
    pub(crate) rows_axes: usize,

    /// Factor W − BASE, as for the update of a fine-tuned weight; both are read in tiles, and their difference is never
    /// formed. They have the same shape, and any element types. Not with what needs the weight whole: --evaluate,
    /// --checkpoint, --blend auto, --residual, a GPU
    #[arg(long, value_name = "BASE.npy", conflicts_with_all = ["evaluate", "checkpoint", "residual"])]
    pub(crate) minus: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) rank: RankArgs,

    /// Keep another part of the spectrum: the smallest of as many as --rank or --ratio say, or numbers A to B - 1 from the
    /// largest on, which are counted from 0 and are the rank themselves; not with --calibration or --output-calibration.
    /// Method auto is then full, which resolves every one of them
    #[arg(long, value_name = "smallest|A..B", conflicts_with_all = ["calibration", "output_calibration", "max_rank"], value_parser = part)]
    pub(crate) part: Option<Part>,

    /// Keep at most K, whatever --energy, --tolerance or --above ask for
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = positive_rank, conflicts_with_all = ["rank", "ratio"])]
    pub(crate) max_rank: Option<usize>,

    /// How to factor
    #[arg(long, default_value = "auto", value_parser = one_of::<Method>(&["auto", "full", "gram", "randomized", "krylov", "single-pass", "nystrom"]))]
    pub(crate) method: Method,

    /// Random matrix that the gram and randomized methods start from [default: srht]
    #[arg(long, value_parser = one_of::<Sketch>(&["gaussian", "srht", "sparse-sign"]))]
    pub(crate) sketch: Option<Sketch>,

    /// Columns of the sketch beyond the rank [default: 10]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = clap::value_parser!(u32))]
    pub(crate) oversample: Option<u32>,

    /// Power iterations [default: 2]
    // Beyond a few dozen every singular gap that the arithmetic can see is resolved; more is a typing error.
    #[arg(long, value_name = "Q", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) power_iterations: Option<u32>,

    /// Shift the power iterations of the randomized method: better where the spectrum decays slowly
    #[arg(long)]
    pub(crate) dynamic_shift: bool,

    /// Seed of the sketch; the same seed gives the same bytes for any number of threads
    #[arg(long, value_name = "S", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,

    /// Arithmetic
    #[arg(long, default_value = "f32", value_parser = one_of::<DType>(&["f32", "f64"]))]
    pub(crate) precision: DType,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Where to compute: cuda is the first NVIDIA GPU, cuda:N another
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub(crate) device: Device,

    /// Take two-byte elements without a type (`<V2`, as ml_dtypes saves bfloat16), and integers of two bytes, for
    /// bfloat16
    #[arg(long)]
    pub(crate) bf16: bool,

    /// Use at most so many bytes (suffixes K, M, G are powers of 1024); a weight that does not fit is read in tiles
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = byte_count)]
    pub(crate) memory_limit: Option<usize>,

    /// Keep the state of a single pass here while it runs, and go on from it if it is there (--method single-pass or
    /// nystrom)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calibration", "evaluate"])]
    pub(crate) checkpoint: Option<PathBuf>,

    /// Weigh errors by these inputs of the layer: samples as rows, or statistics from `calibrate`; may be repeated
    #[arg(long, value_name = "X.npy|STATS")]
    pub(crate) calibration: Vec<PathBuf>,

    /// Weigh errors by the outputs of the layer, too: gradients of a loss with respect to its outputs as rows, or their
    /// statistics from `calibrate`; may be repeated
    #[arg(long, value_name = "G.npy|STATS", conflicts_with = "checkpoint")]
    pub(crate) output_calibration: Vec<PathBuf>,

    /// How much the calibration of the inputs is trusted, from 0 (plain) to 1; auto keeps parts of the samples aside to find out
    /// [default: 1]
    #[arg(long, value_name = "B", requires = "calibration", allow_negative_numbers = true, value_parser = blend)]
    pub(crate) blend: Option<Blend>,

    /// How much the output calibration is trusted, from 0 to 1 [default: 1]
    #[arg(long, value_name = "B", requires = "output_calibration", allow_negative_numbers = true, value_parser = share_from_0)]
    pub(crate) output_blend: Option<f64>,

    /// What of the calibration of the inputs is used: all second moments, or the scale of each input alone
    #[arg(long, requires = "calibration", default_value = "full", value_parser = one_of::<Whitening>(&["full", "diagonal"]))]
    pub(crate) whitening: Whitening,

    /// Leave out and count samples of the calibration, and of the output calibration, that are not finite
    #[arg(long)]
    pub(crate) skip_non_finite: bool,

    /// Measure the output error on these inputs of the layer; rows are samples, and error, cosine and score are those of
    /// all samples together
    #[arg(long, value_name = "X.npy")]
    pub(crate) evaluate: Option<PathBuf>,

    /// Factor N times and report the median time
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// Write the factors and report.json here; the directory is created. A name that ends in .npz becomes one archive
    /// with the same arrays and the report
    #[arg(long, value_name = "DIR|FILE.npz")]
    pub(crate) out: Option<PathBuf>,

    /// Write what the factors leave of the weight, W - U diag(s) Vt, in the weight's shape and element type
    #[arg(long, value_name = "OUT.npy")]
    pub(crate) residual: Option<PathBuf>,

    /// Replace files of these names that this program has not written
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// What is written: u.npy, s.npy and vt.npy; the two layers up.npy and down.npy; or rows.npy (rows of the product),
    /// pivots.npy (their numbers) and coefficients.npy (which make the other rows, in their order, out of these)
    #[arg(long, value_enum, requires = "out", default_value = "svd")]
    pub(crate) form: Form,

    /// Element type of the written factors [default: that of --precision]
    #[arg(long, requires = "out", value_parser = one_of::<DType>(&["f16", "bf16", "f32", "f64"]))]
    pub(crate) dtype: Option<DType>,

    /// Print the report as one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the plan first: the methods considered and their estimated costs
    #[arg(long)]
    pub(crate) explain: bool,
}

impl FactorArgs {
    /// The rule for the rank. clap has checked that there is exactly one.
    pub(crate) fn policy(&self) -> Rank {
        match self.part {
            Some(Part::Range(_, end)) => Rank::Fixed(end),
            _ => self.rank.policy(),
        }
    }
}

/// The part of the spectrum that is kept, where it is not the largest values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Smallest,
    Range(usize, usize),
}

fn part(text: &str) -> Result<Part, String> {
    let range = |text: &str| {
        let (start, end) = text.split_once("..")?;
        Some((start.parse().ok()?, end.parse().ok()?)).filter(|(start, end): &(usize, usize)| start < end)
    };
    match range(text) {
        _ if text == "smallest" => Ok(Part::Smallest),
        Some((start, end)) => Ok(Part::Range(start, end)),
        None => Err("give smallest, or a range such as 16..32".into()),
    }
}

fn share_from_0(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("give a number from 0 to 1".into()),
    }
}

/// The trust in the calibration: a number, or a choice by held-out samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Blend {
    Auto,
    Fixed(f64),
}

fn blend(text: &str) -> Result<Blend, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Blend::Auto),
        Ok(b) if (0.0..=1.0).contains(&b) => Ok(Blend::Fixed(b)),
        _ => Err("give a number from 0 to 1, or auto".into()),
    }
}

/// The form in which the factors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Svd,
    Split,
    Pivot,
}

#[derive(Args)]
pub(crate) struct CalibrateArgs {
    /// Inputs of the layer, rows are samples, and statistics from earlier runs
    #[arg(value_name = "X.npy|STATS", required = true)]
    pub(crate) inputs: Vec<PathBuf>,

    /// Write the statistics here
    #[arg(long, value_name = "STATS")]
    pub(crate) out: PathBuf,

    /// Replace a file of this name that holds no statistics
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Keep what is gathered here while it runs, and go on from it if it is there
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,

    /// Multiply in f32: twice as fast, right to 1e-6
    #[arg(long, conflicts_with = "factor")]
    pub(crate) fast: bool,

    /// Keep the triangular factor of the samples and not their Gram matrix: small directions keep twice the digits
    #[arg(long)]
    pub(crate) factor: bool,

    /// Leave out and count samples that are not finite
    #[arg(long)]
    pub(crate) skip_non_finite: bool,

    /// Use at most so many bytes (suffixes K, M, G are powers of 1024)
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = byte_count)]
    pub(crate) memory_limit: Option<usize>,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Take two-byte elements without a type (`<V2`, as ml_dtypes saves bfloat16), and integers of two bytes, for
    /// bfloat16
    #[arg(long)]
    pub(crate) bf16: bool,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct BatchArgs {
    /// Weights, archives (.npz) of them, and directories that are searched for .npy files. Arrays that are no matrices of real numbers are left
    /// as they are; the output directory, and those of other batches, are left out
    #[arg(value_name = "FILE|DIR", required = true)]
    pub(crate) inputs: Vec<PathBuf>,

    /// Factor W − BASE for each weight, with the file of its name below this directory as its base, as `factor --minus`
    /// does: the updates of a fine-tuned model
    #[arg(long, value_name = "DIR")]
    pub(crate) minus: Option<PathBuf>,

    /// Write a directory for each weight, journal.jsonl and manifest.json here
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Patterns and their options, in TOML
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: Option<PathBuf>,

    /// Factor only weights whose name matches, and open no other file; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) only: Vec<String>,

    /// Leave weights whose name matches as they are; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) keep: Vec<String>,

    /// Keep K singular values, or all of a weight that has no more
    #[arg(long, value_name = "K", allow_negative_numbers = true, conflicts_with_all = ["ratio", "energy", "tolerance", "budget"], required_unless_present_any = ["ratio", "energy", "tolerance", "budget", "config"], value_parser = positive_rank)]
    pub(crate) rank: Option<usize>,

    /// Keep as many as make the factors at least R times smaller than each weight; one too small for that is left as it
    /// is
    #[arg(long, value_name = "R", allow_negative_numbers = true, conflicts_with_all = ["energy", "tolerance", "budget"], value_parser = positive)]
    pub(crate) ratio: Option<f64>,

    /// Keep as many as hold this share of each weight's squared Frobenius norm: the fewest that the method can show to
    /// do so
    #[arg(long, value_name = "E", allow_negative_numbers = true, conflicts_with_all = ["tolerance", "budget"], value_parser = share)]
    pub(crate) energy: Option<f64>,

    /// Keep as many as bring each relative error down to T: the fewest that the method can show to do so
    #[arg(long, value_name = "T", allow_negative_numbers = true, conflicts_with = "budget", value_parser = tolerance)]
    pub(crate) tolerance: Option<f64>,

    /// Keep at most K, whatever the energy or the error
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = positive_rank)]
    pub(crate) max_rank: Option<usize>,

    /// Share ranks so that the factors together are at least R times smaller than the weights together, at the least
    /// error
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = positive)]
    pub(crate) budget: Option<f64>,

    /// Measure the spectra that --budget weighs, and stop: the first round of shards, which share one --out; the second
    /// has --resume instead
    #[arg(long, requires = "budget")]
    pub(crate) measure: bool,

    /// How to factor [default: auto]
    #[arg(long, value_parser = one_of::<Method>(&["auto", "full", "gram", "randomized", "krylov", "single-pass", "nystrom"]))]
    pub(crate) method: Option<Method>,

    /// Random matrix that the gram and randomized methods start from [default: srht]
    #[arg(long, value_parser = one_of::<Sketch>(&["gaussian", "srht", "sparse-sign"]))]
    pub(crate) sketch: Option<Sketch>,

    /// Columns of the sketch beyond the rank [default: 10]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = clap::value_parser!(u32))]
    pub(crate) oversample: Option<u32>,

    /// Power iterations [default: 2]
    #[arg(long, value_name = "Q", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) power_iterations: Option<u32>,

    /// Seed of the sketches [default: 0]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,

    /// Arithmetic
    #[arg(long, default_value = "f32", value_parser = one_of::<DType>(&["f32", "f64"]))]
    pub(crate) precision: DType,

    /// Element type of the written factors [default: that of --precision]
    #[arg(long, value_parser = one_of::<DType>(&["f16", "bf16", "f32", "f64"]))]
    pub(crate) dtype: Option<DType>,

    /// Take two-byte elements without a type (`<V2`, as ml_dtypes saves bfloat16), and integers of two bytes, for
    /// bfloat16
    #[arg(long)]
    pub(crate) bf16: bool,

    /// Threads [default: those that affinity and cgroup allow]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Small weights that run side by side [default: one per thread]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,

    /// Use at most so many bytes for all weights in flight (suffixes K, M, G are powers of 1024)
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = byte_count)]
    pub(crate) memory_limit: Option<usize>,

    /// Do part I of N [default: from SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, if set]
    #[arg(long, value_name = "I/N", value_parser = shard)]
    pub(crate) shard: Option<[usize; 2]>,

    /// Go on with the batch in the output directory
    #[arg(long)]
    pub(crate) resume: bool,

    /// Start anew where another batch was, and replace what has the names of results; directories that hold anything
    /// else are refused in any case
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,

    /// How to show how far it is; auto is a bar on a terminal and plain lines elsewhere
    #[arg(long, default_value = "auto", value_name = "HOW")]
    pub(crate) progress: ShowProgress,

    /// Print the summary as one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to show progress: on stderr but for JSON lines, which are for programs and go to stdout.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ShowProgress {
    Auto,
    Bar,
    Plain,
    Json,
    None,
}

#[derive(Args)]
pub(crate) struct MergeArgs {
    /// Output directories of the shards; one, if they share it
    #[arg(value_name = "DIR", required = true)]
    pub(crate) dirs: Vec<PathBuf>,

    /// Write manifest.json, summary.csv, summary.json and index.html here [default: the first DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// Do not read the results again to compare their checksums
    #[arg(long)]
    pub(crate) no_verify: bool,

    /// Replace files of these names that are of another batch, or not of this program
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Weights to measure besides the made matrices; of more than two axes the first becomes rows
    #[arg(value_name = "W.npy")]
    pub(crate) weights: Vec<PathBuf>,

    /// Write index.html, results.csv and results.json here; the directory is created
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Replace files of these names that this program has not written
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Fewer shapes, seeds and rounds: a minute or two
    #[arg(long)]
    pub(crate) quick: bool,

    /// Shapes of the made matrices, such as 3072x768,4096x4096 [default: those of real layers]
    #[arg(long, value_name = "MxN,...", value_delimiter = ',', allow_negative_numbers = true, value_parser = shape)]
    pub(crate) shapes: Option<Vec<[usize; 2]>>,

    /// Seeds that times and errors are taken over [default: 5, with --quick 3]
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) seeds: Option<u32>,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Take two-byte elements without a type (`<V2`, as ml_dtypes saves bfloat16), and integers of two bytes, for
    /// bfloat16
    #[arg(long)]
    pub(crate) bf16: bool,
}

/// The options beside `--rank` that say how much to keep.
const OTHER_RULES: [&str; 7] = ["ratio", "energy", "tolerance", "quality", "above", "numerical", "part"];

/// How much to keep.
#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct RankArgs {
    /// Keep K singular values
    #[arg(long, value_name = "K", allow_negative_numbers = true, required_unless_present_any = OTHER_RULES, value_parser = positive_rank)]
    rank: Option<usize>,

    /// Keep as many as make the factors at least R times smaller than the weight
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = positive)]
    ratio: Option<f64>,

    /// Keep as many as hold this share of the squared Frobenius norm: the fewest that the method can show to do so
    /// (gram and full find the fewest there are, auto may keep some more)
    #[arg(long, value_name = "E", allow_negative_numbers = true, value_parser = share)]
    energy: Option<f64>,

    /// Keep as many as bring the relative Frobenius error down to T: the fewest that the method can show to do so (gram
    /// and full find the fewest there are, auto may keep some more)
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = tolerance)]
    tolerance: Option<f64>,

    /// Keep as many as give the outputs this cosine with the true ones, on --evaluate or else on --calibration: that of
    /// all samples together
    #[arg(long, value_name = "Q", allow_negative_numbers = true, value_parser = tolerance)]
    quality: Option<f64>,

    /// Keep the singular values above S, or one if there is none; not with --calibration or --output-calibration. Methods
    /// gram and full see every value, and auto takes one of them; randomized is faster where few are above S and the
    /// others well below
    #[arg(long, value_name = "S", allow_negative_numbers = true, conflicts_with_all = ["calibration", "output_calibration", "output_blend"], value_parser = threshold)]
    above: Option<f64>,

    /// Keep the numerical rank: the singular values that are not rounding of --precision, those above 4 √max(m, n) eps of
    /// the largest; not with --calibration or --output-calibration
    #[arg(long, conflicts_with_all = ["calibration", "output_calibration", "output_blend"])]
    numerical: bool,
}

impl RankArgs {
    /// Whether inputs decide the rank.
    pub(crate) fn is_quality(&self) -> bool {
        self.quality.is_some()
    }

    /// The option by which the spectrum decides the rank, if it does.
    pub(crate) fn by_spectrum(&self) -> Option<&'static str> {
        (self.energy.map(|_| "--energy"))
            .or(self.tolerance.map(|_| "--tolerance"))
            .or(self.quality.map(|_| "--quality"))
            .or(self.above.map(|_| "--above"))
            .or(self.numerical.then_some("--numerical"))
    }

    /// Whether no rule is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.rank.is_none() && self.ratio.is_none() && self.by_spectrum().is_none()
    }

    /// The rule, of which there is one.
    fn policy(&self) -> Rank {
        (self.rank.map(Rank::Fixed))
            .or(self.ratio.map(Rank::Ratio))
            .or(self.energy.map(Rank::Energy))
            .or(self.tolerance.map(Rank::Tolerance))
            .or(self.quality.map(Rank::Quality))
            .or(self.above.map(Rank::Above))
            .unwrap_or(Rank::Numerical)
    }
}

/// A parser for a type of the library, with the names in `--help` and in the error.
fn one_of<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = tensorslim::Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

fn device(text: &str) -> Result<Device, String> {
    let number = match text {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    number.map(Device::Cuda).ok_or_else(|| "give cpu, cuda or cuda:N".into())
}

fn positive_rank(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(k) if k > 0 => Ok(k),
        _ => Err("give a whole number of at least 1".into()),
    }
}

/// `2/8`
pub(crate) fn shard(text: &str) -> Result<[usize; 2], String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some([i.parse().ok()?, n.parse().ok()?]));
    match parts {
        Some([i, n]) if (1..=n).contains(&i) && n <= 1_000_000 => Ok([i, n]),
        _ => Err("give part/parts, such as 2/8".into()),
    }
}

/// `512M`, `2GiB`, `1000000`
fn byte_count(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => Some(0),
        "K" | "KB" | "KIB" => Some(10),
        "M" | "MB" | "MIB" => Some(20),
        "G" | "GB" | "GIB" => Some(30),
        "T" | "TB" | "TIB" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| digits.parse::<usize>().ok()?.checked_mul(1 << shift));
    bytes.filter(|&b| b > 0).ok_or_else(|| "give bytes, such as 512M".into())
}

/// The least side that leaves room for a rank, oversampling and something to drop.
pub(crate) const LEAST_SIDE: usize = 16;

/// `3072x768`, of at most 2^30 elements.
fn shape(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| text.parse().ok().filter(|&side: &usize| side >= LEAST_SIDE);
    match text.split_once('x').map(|(m, n)| (side(m), side(n))) {
        Some((Some(m), Some(n))) if m.checked_mul(n).is_some_and(|size| size <= 1 << 30) => Ok([m, n]),
        _ => Err(format!("give rows x columns, such as 3072x768, each at least {LEAST_SIDE}, at most 2^30 elements")),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if x > 0.0 && f64::is_finite(x) => Ok(x),
        _ => Err("give a number above 0".into()),
    }
}

fn threshold(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if f64::is_finite(x) && x >= 0.0 => Ok(x),
        _ => Err("give a number, 0 or more".into()),
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if x > 0.0 && x < 1.0 => Ok(x),
        _ => Err("give a number above 0 and below 1".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("give a share above 0 and at most 1".into()),
    }
}
