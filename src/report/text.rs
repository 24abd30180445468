//! A report as lines of text, which keep every digit: how it is stored beside factors.
//!
//! ```text
//!   shape 3072 768            a key, a blank, the value; numbers as Rust prints them, the shortest that read back
//!   method gram
//!   note ...                  as many as there are
//!   outputs.samples 4096      what calibration adds, or no such line
//! ```

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::str::FromStr;
use std::time::Duration;

use super::{ActivationReport, ErrorKind, Report};
use crate::error::{Error, Result};

/// The value of an option that is not there.
const NONE: &str = "none";

impl Report {
    /// Writes the report as text, a line for each field.
    pub fn to_text(&self) -> String {
        let mut lines = Lines::default();
        lines.add("shape", format_args!("{} {}", self.shape.0, self.shape.1));
        lines.add("dtype", self.dtype);
        lines.add("precision", self.precision);
        lines.add("rank", self.rank);
        lines.add("method", self.method);
        lines.add("reason", one_line(&self.reason));
        lines.add("sketch", option(self.sketch));
        lines.add("seed", self.seed);
        lines.add("oversample", self.oversample);
        lines.add("power_iterations", self.power_iterations);
        lines.add("norm", format_args!("{:?}", self.norm));
        lines.add("spectrum", numbers(&self.spectrum));
        lines.add("relative_error", format_args!("{:?}", self.relative_error));
        match self.error_kind {
            ErrorKind::Exact => lines.add("error", "exact"),
            ErrorKind::Estimate { probes, std_dev } => {
                lines.add("error", format_args!("estimate {probes} {std_dev:?}"));
            }
        }
        lines.add("passes", self.passes);
        lines.add("peak_bytes", self.peak_bytes);
        lines.add("elapsed_ns", self.elapsed.as_nanos());
        self.notes.iter().for_each(|note| lines.add("note", one_line(note)));
        if let Some(outputs) = &self.activation {
            lines.add("outputs.samples", outputs.samples);
            lines.add("outputs.skipped", outputs.skipped);
            lines.add("outputs.whitening", outputs.whitening);
            lines.add("outputs.blend", format_args!("{:?}", outputs.blend));
            lines.add("outputs.output_samples", option(outputs.output_samples));
            lines.add("outputs.relative_error", format_args!("{:?}", outputs.relative_error));
            lines.add("outputs.norm", format_args!("{:?}", outputs.norm));
            lines.add("outputs.spectrum", numbers(&outputs.spectrum));
        }
        lines.0
    }

    /// Reads a report from the text that [`to_text`](Self::to_text) wrote. Lines of other keys are left out.
    ///
    /// # Errors
    /// [`Error::Option`] for a key that is missing, and a value that cannot be read.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut fields = Fields { values: BTreeMap::new() };
        let mut notes = Vec::new();
        for line in text.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("note", note) => notes.push(note.to_owned()),
                (key, value) => _ = fields.values.insert(key, value),
            }
        }
        let shape: Vec<usize> = fields.list("shape")?;
        let &[m, n] = &shape[..] else { return Err(unreadable("shape")) };
        let error_kind = match fields.list::<String>("error")?.as_slice() {
            [kind] if kind == "exact" => ErrorKind::Exact,
            [kind, probes, std_dev] if kind == "estimate" => ErrorKind::Estimate {
                probes: probes.parse().map_err(|_| unreadable("error"))?,
                std_dev: std_dev.parse().map_err(|_| unreadable("error"))?,
            },
            _ => return Err(unreadable("error")),
        };
        let activation = match fields.values.contains_key("outputs.samples") {
            false => None,
            true => Some(ActivationReport {
                samples: fields.one("outputs.samples")?,
                skipped: fields.one("outputs.skipped")?,
                whitening: fields.one("outputs.whitening")?,
                blend: fields.one("outputs.blend")?,
                output_samples: fields.option("outputs.output_samples")?,
                relative_error: fields.one("outputs.relative_error")?,
                norm: fields.one("outputs.norm")?,
                spectrum: fields.list("outputs.spectrum")?,
            }),
        };
        Ok(Report {
            shape: (m, n),
            dtype: fields.one("dtype")?,
            precision: fields.one("precision")?,
            rank: fields.one("rank")?,
            method: fields.one("method")?,
            reason: fields.get("reason")?.to_owned(),
            sketch: fields.option("sketch")?,
            seed: fields.one("seed")?,
            oversample: fields.one("oversample")?,
            power_iterations: fields.one("power_iterations")?,
            norm: fields.one("norm")?,
            spectrum: fields.list("spectrum")?,
            relative_error: fields.one("relative_error")?,
            error_kind,
            passes: fields.one("passes")?,
            peak_bytes: fields.one("peak_bytes")?,
            elapsed: Duration::from_nanos(fields.one("elapsed_ns")?),
            activation,
            notes,
        })
    }
}

/// The lines so far.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, key: &str, value: impl Display) {
        writeln!(self.0, "{key} {value}").expect("a String takes all text");
    }
}

/// The values by their keys.
struct Fields<'a> {
    values: BTreeMap<&'a str, &'a str>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Result<&'a str> {
        self.values.get(key).copied().ok_or_else(|| unreadable(key))
    }

    fn one<V: FromStr>(&self, key: &str) -> Result<V> {
        self.get(key)?.parse().map_err(|_| unreadable(key))
    }

    fn option<V: FromStr>(&self, key: &str) -> Result<Option<V>> {
        if self.get(key)? == NONE { Ok(None) } else { self.one(key).map(Some) }
    }

    fn list<V: FromStr>(&self, key: &str) -> Result<Vec<V>> {
        self.get(key)?.split_whitespace().map(|part| part.parse().map_err(|_| unreadable(key))).collect()
    }
}

fn unreadable(key: &str) -> Error {
    Error::option("report", key, "a text that Report::to_text wrote; this line is missing or cannot be read")
}

fn option(value: Option<impl Display>) -> String {
    value.map_or(NONE.to_owned(), |value| value.to_string())
}

fn numbers(values: &[f64]) -> String {
    values.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>().join(" ")
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).collect::<Vec<_>>().join(" ")
}
