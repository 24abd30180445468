//! What may be typed. Values that are nonsense for every file (rank 0, a ratio below zero, no threads) are refused
//! here with exit code 2; values that a particular file cannot satisfy are the library's to refuse.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use tensorslim::{DType, Method, Rank, Sketch};

/// Low-rank factors of neural-network weights.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Factors one weight: W ≈ U · diag(s) · Vᵀ.
    Factor(FactorArgs),
    /// SRHT against Gaussian against sparse sign on this machine: tables, CSV, JSON and one HTML page.
    Bench(BenchArgs),
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
    /// The weight, out × in; of more than two axes the first becomes rows and the others columns
    #[arg(value_name = "W.npy")]
    pub(crate) weight: PathBuf,

    #[command(flatten)]
    pub(crate) rank: RankArgs,

    /// Keep at most K, whatever --energy or --tolerance ask for
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

    /// Take two-byte elements without a type (`<V2`, as ml_dtypes saves bfloat16) for bfloat16
    #[arg(long)]
    pub(crate) bf16: bool,

    /// Measure the output error on these inputs of the layer; rows are samples
    #[arg(long, value_name = "X.npy")]
    pub(crate) evaluate: Option<PathBuf>,

    /// Factor N times and report the median time
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,

    /// Write u.npy, s.npy, vt.npy and report.json here; the directory is created
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

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

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Weights to measure besides the made matrices; of more than two axes the first becomes rows
    #[arg(value_name = "W.npy")]
    pub(crate) weights: Vec<PathBuf>,

    /// Write index.html, results.csv and results.json here; the directory is created
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

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

    /// Take two-byte elements without a type (`<V2`, as ml_dtypes saves bfloat16) for bfloat16
    #[arg(long)]
    pub(crate) bf16: bool,
}

/// How much to keep.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct RankArgs {
    /// Keep K singular values
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = positive_rank)]
    rank: Option<usize>,

    /// Keep as many as make the factors at least R times smaller than the weight
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = positive)]
    ratio: Option<f64>,

    /// Keep as many as hold this share of the squared Frobenius norm
    #[arg(long, value_name = "E", allow_negative_numbers = true, value_parser = share)]
    energy: Option<f64>,

    /// Keep the fewest whose relative Frobenius error is at most T
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = tolerance)]
    tolerance: Option<f64>,
}

impl RankArgs {
    /// clap has checked that exactly one is given.
    pub(crate) fn policy(&self) -> Rank {
        (self.rank.map(Rank::Fixed))
            .or(self.ratio.map(Rank::Ratio))
            .or(self.energy.map(Rank::Energy))
            .or(self.tolerance.map(Rank::Tolerance))
            .expect("the group is required")
    }
}

/// A parser for a type of the library, with the names in `--help` and in the error.
fn one_of<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = tensorslim::Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

fn positive_rank(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(k) if k > 0 => Ok(k),
        _ => Err("give a whole number of at least 1".into()),
    }
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
