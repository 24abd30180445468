//! Renders a report in two ways: a JSON object for programs and an aligned table for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use tensorslim::batch::manifest::Checksum;
use tensorslim::quality::Distribution;

/// The note on factors of too high a rank.
pub(crate) const NO_SMALLER: &str = "the factors are no smaller than the weight; --ratio finds a rank that saves";
/// The note on factors of the rank that a ratio below 1 allows.
pub(crate) const NO_SMALLER_BY_RATIO: &str = "the factors are no smaller than the weight, as --ratio allows";

/// The report of `factor`. The names of the fields are those of the JSON object.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) file: String,
    /// The file that was subtracted from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minus: Option<String>,
    /// The file of what the factors leave of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) residual: Option<String>,
    /// The part of the spectrum, where that is not the largest values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) part: Option<String>,
    /// The shape in the file; `shape` is that of the matrix that was factored.
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
    /// The kind of the error: `exact` or `estimate`.
    pub(crate) error_kind: &'static str,
    /// The standard deviation of an estimate.
    pub(crate) error_std_dev: Option<f64>,
    /// The norm of the weight, `‖W‖_F`.
    pub(crate) norm: f64,
    pub(crate) passes: usize,
    /// The median over `repeat` runs, without reading and writing files.
    pub(crate) elapsed_ms: f64,
    pub(crate) repeat: u32,
    pub(crate) threads: usize,
    pub(crate) peak_bytes: usize,
    /// The most bytes that the process had resident, where the system gives them.
    pub(crate) peak_rss_bytes: Option<usize>,
    pub(crate) params_before: usize,
    pub(crate) params_after: usize,
    pub(crate) ratio: f64,
    pub(crate) activation: Option<Evaluated>,
    /// The error of the plain factors of that rank, where calibration made others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) activation_plain: Option<Evaluated>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) calibration: Option<Calibrated>,
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
    /// Quantiles over samples: the cosine that 1 % stay below, the relative error that half and 99 % stay below.
    pub(crate) cosine_p1: f64,
    pub(crate) relative_error_p50: f64,
    pub(crate) relative_error_p99: f64,
}

/// The effect of calibration.
#[derive(Serialize)]
pub(crate) struct Calibrated {
    pub(crate) files: Vec<String>,
    pub(crate) samples: u64,
    pub(crate) skipped: u64,
    pub(crate) whitening: String,
    pub(crate) blend: f64,
    /// The candidates of `--blend auto`, each with its output error on samples that it had not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blends: Option<Vec<(f64, f64)>>,
    /// The files of output statistics, and their samples.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) output_files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_samples: Option<u64>,
    /// How much the output statistics were trusted, where that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_blend: Option<f64>,
    /// The relative error on the calibration samples, or in the norm of both statistics.
    pub(crate) relative_error: f64,
    pub(crate) cosine: f64,
}

impl Evaluated {
    pub(crate) fn new(file: String, d: &Distribution) -> Self {
        Evaluated {
            file,
            samples: d.samples.len(),
            cosine: d.total.cosine,
            relative_error: d.total.relative_error,
            score: d.total.score(),
            cosine_p1: d.cosine(0.01),
            relative_error_p50: d.relative_error(0.5),
            relative_error_p99: d.relative_error(0.99),
        }
    }
}

/// The place where the factors were written, and their form.
#[derive(Serialize)]
pub(crate) struct Written {
    pub(crate) dir: String,
    pub(crate) dtype: String,
    pub(crate) files: Vec<&'static str>,
    /// The length and CRC-32 of each file: files that do not have them are not those that this report is about. There
    /// are none until all files are there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sums: BTreeMap<String, Checksum>,
}

impl Report {
    /// Renders the table.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<(&str, String)> = vec![("weight", self.file.clone())];
        rows.extend(self.minus.iter().map(|base| ("minus", base.clone())));
        let mut shape = format!("{}, {}", times(&self.shape), self.dtype);
        if self.tensor_shape != self.shape {
            let _ = write!(shape, " (from {})", times(&self.tensor_shape));
        }
        rows.push(("shape", shape));
        let part = self.part.as_ref().map_or(String::new(), |part| format!(", {part}"));
        rows.push(("rank", format!("{} of {}{part}", self.rank, self.shape[0].min(self.shape[1]))));
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
        if let Some(c) = &self.calibration {
            let (skipped, chosen) = (c.skipped, if c.blends.is_some() { ", chosen" } else { "" });
            let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
            if !c.files.is_empty() {
                let samples = count(c.samples as usize, "sample");
                rows.push(("calibrated on", format!("{}, {samples}{skipped}", c.files.join(", "))));
                rows.push(("  whitening", format!("{}, blend {}{chosen}", c.whitening, c.blend)));
            }
            if let Some(samples) = c.output_samples {
                let samples = count(samples as usize, "sample");
                let blend = c.output_blend.map_or(String::new(), |blend| format!(", blend {blend}"));
                rows.push(("outputs weighted", format!("{}, {samples}{blend}", c.output_files.join(", "))));
            }
            // With statistics of outputs the error is that of another norm than that of --evaluate.
            let error = if c.output_samples.is_some() { "  weighted error" } else { "  output error" };
            rows.push((error, digits(c.relative_error)));
        }
        if let Some(a) = &self.activation {
            rows.push(("evaluated on", format!("{}, {}", a.file, count(a.samples, "sample"))));
            let plain = self.activation_plain.as_ref();
            let beside =
                |of: &dyn Fn(&Evaluated) -> String| plain.map_or(String::new(), |p| format!(" (plain: {})", of(p)));
            let cosine = |a: &Evaluated| format!("{:.5}", a.cosine);
            let error = |a: &Evaluated| digits(a.relative_error);
            rows.push(("  cosine", format!("{}{}", cosine(a), beside(&cosine))));
            rows.push(("  output error", format!("{}{}", error(a), beside(&error))));
            let (half, most) = (digits(a.relative_error_p50), digits(a.relative_error_p99));
            rows.push((
                "  by sample",
                format!("error {half} (median), {most} (99 %); cosine {:.5} (1 %)", a.cosine_p1),
            ));
            rows.push(("  score", format!("{:.4}", a.score)));
        }
        if let Some(w) = &self.written {
            let report = if w.files.contains(&"report") { "" } else { ", report.json" };
            rows.push(("written", format!("{}: {} ({}){report}", w.dir, w.files.join(", "), w.dtype)));
        }
        rows.extend(self.residual.iter().map(|left| ("residual", left.clone())));
        rows.extend(self.notes.iter().map(|n| ("note", n.clone())));
        table(&rows)
    }
}

/// Makes text safe for a terminal: what would move the cursor, change colours or turn the direction of writing is
/// written as `\u{1b}`.
pub(crate) fn printable(text: &str) -> String {
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().fold(String::new(), |mut line, c| {
        if c.is_control() || turns(c) {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
        line
    })
}

/// Makes text safe for a cell that a spreadsheet would run as a formula, by a `'` in front.
pub(crate) fn cell(text: &str) -> String {
    let runs = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    format!("{}{text}", if runs { "'" } else { "" })
}

/// Formats a number in a message, with an exponent where it would have many digits.
pub(crate) fn plain(x: f64) -> String {
    if x == 0.0 || (1e-6..1e15).contains(&x.abs()) { x.to_string() } else { format!("{x:e}") }
}

/// Aligns two columns.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<width$}  {}", printable(value));
        text
    })
}

/// Formats a number with five digits; an error that is nearly zero keeps its magnitude.
fn digits(x: f64) -> String {
    if x == 0.0 || x >= 1e-3 { format!("{x:.5}") } else { format!("{x:.2e}") }
}

/// Formats a shape as `1536 × 384`.
fn times(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")
}

/// Formats a count as `1 thread` or `2 threads`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Formats milliseconds with three digits or more, in the unit that reads best.
fn milliseconds(ms: f64) -> String {
    match ms {
        _ if ms < 1.0 => format!("{:.0} µs", ms * 1e3),
        _ if ms < 1e3 => format!("{ms:.1} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// Formats a number of bytes as `8.2 MiB`.
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
