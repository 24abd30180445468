//! One report, two renderings: a JSON object for programs and an aligned table for people.

use std::fmt::Write;

use serde::Serialize;
use tensorslim::quality::Activation;

/// What `factor` did. The names of the fields are those of the JSON object.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) file: String,
    /// As in the file; `shape` is that of the matrix that was factored.
    pub(crate) tensor_shape: Vec<usize>,
    pub(crate) shape: [usize; 2],
    pub(crate) dtype: String,
    pub(crate) precision: String,
    pub(crate) rank: usize,
    pub(crate) method: String,
    pub(crate) reason: String,
    pub(crate) sketch: Option<String>,
    pub(crate) seed: u64,
    pub(crate) oversample: usize,
    pub(crate) power_iterations: usize,
    pub(crate) relative_error: f64,
    /// `exact` or `estimate`.
    pub(crate) error_kind: &'static str,
    /// Standard deviation of an estimate.
    pub(crate) error_std_dev: Option<f64>,
    /// `‖W‖_F`.
    pub(crate) norm: f64,
    pub(crate) passes: usize,
    /// Median over `repeat` runs, without reading and writing files.
    pub(crate) elapsed_ms: f64,
    pub(crate) repeat: u32,
    pub(crate) threads: usize,
    pub(crate) peak_bytes: usize,
    /// The most that the process had resident, where the system tells.
    pub(crate) peak_rss_bytes: Option<usize>,
    pub(crate) params_before: usize,
    pub(crate) params_after: usize,
    pub(crate) ratio: f64,
    pub(crate) activation: Option<Evaluated>,
    pub(crate) written: Option<Written>,
    pub(crate) notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<Vec<String>>,
}

/// The error of the layer's output on the samples of `--evaluate`.
#[derive(Serialize)]
pub(crate) struct Evaluated {
    pub(crate) file: String,
    pub(crate) samples: usize,
    pub(crate) cosine: f64,
    pub(crate) relative_error: f64,
    pub(crate) score: f64,
}

impl Evaluated {
    pub(crate) fn new(file: String, samples: usize, a: &Activation) -> Self {
        Evaluated { file, samples, cosine: a.cosine, relative_error: a.relative_error, score: a.score() }
    }
}

/// Where the factors were written, and as what.
#[derive(Serialize)]
pub(crate) struct Written {
    pub(crate) dir: String,
    pub(crate) dtype: String,
}

impl Report {
    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<(&str, String)> = vec![("weight", self.file.clone())];
        let mut shape = format!("{}, {}", times(&self.shape), self.dtype);
        if self.tensor_shape != self.shape {
            let _ = write!(shape, " (from {})", times(&self.tensor_shape));
        }
        rows.push(("shape", shape));
        rows.push(("rank", format!("{} of {}", self.rank, self.shape[0].min(self.shape[1]))));
        rows.push(("method", format!("{} ({})", self.method, self.reason)));
        if let Some(sketch) = &self.sketch {
            let (p, q) = (self.oversample, self.power_iterations);
            rows.push(("sketch", format!("{sketch}, seed {}, oversampling {p}, power iterations {q}", self.seed)));
        }
        let spread = self.error_std_dev.map_or(String::new(), |s| format!(" ± {s:.1e}"));
        rows.push(("relative error", format!("{}{spread} ({})", digits(self.relative_error), self.error_kind)));
        rows.push(("parameters", format!("{} -> {}", self.params_before, self.params_after)));
        rows.push(("ratio", format!("{:.2}x", self.ratio)));
        let runs = if self.repeat > 1 { format!(", median of {} runs", self.repeat) } else { String::new() };
        let threads = count(self.threads, "thread");
        rows.push(("time", format!("{}{runs} ({}, {threads})", milliseconds(self.elapsed_ms), self.precision)));
        rows.push(("peak memory", bytes(self.peak_bytes)));
        if let Some(a) = &self.activation {
            rows.push(("evaluated on", format!("{}, {}", a.file, count(a.samples, "sample"))));
            rows.push(("  cosine", format!("{:.5}", a.cosine)));
            rows.push(("  output error", digits(a.relative_error)));
            rows.push(("  score", format!("{:.4}", a.score)));
        }
        if let Some(w) = &self.written {
            rows.push(("written", format!("{}: u.npy, s.npy, vt.npy ({}), report.json", w.dir, w.dtype)));
        }
        rows.extend(self.notes.iter().map(|n| ("note", n.clone())));
        table(&rows)
    }
}

/// Two aligned columns.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<width$}  {value}");
        text
    })
}

/// Five digits; an error that is nearly none keeps its magnitude.
fn digits(x: f64) -> String {
    if x == 0.0 || x >= 1e-3 { format!("{x:.5}") } else { format!("{x:.2e}") }
}

/// `1536 × 384`
fn times(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")
}

/// `1 thread`, `2 threads`
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Three digits or more, in the unit that reads best.
fn milliseconds(ms: f64) -> String {
    match ms {
        _ if ms < 1.0 => format!("{:.0} µs", ms * 1e3),
        _ if ms < 1e3 => format!("{ms:.1} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// The most memory that this process had resident so far, where the system tells.
pub(crate) fn peak_rss() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// `8.2 MiB`
pub(crate) fn bytes(n: usize) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}
