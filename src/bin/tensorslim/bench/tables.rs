//! Makes the tables of the terminal and of the page, and the CSV.

use std::fmt::Write;

use crate::report::cell;

use super::results::{Case, POWERS, SKETCHES, Stat, Suite, title};

/// A table with two renderings.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// The cells of a row; the first row of a group has a line above it.
pub(super) struct Row {
    pub(super) first: bool,
    pub(super) cells: Vec<String>,
}

pub(super) fn all(suite: &Suite) -> [Table; 3] {
    [sketches(suite), factorizations(suite), state(suite)]
}

/// Makes the table of sketches: time over the GEMM with a dense Ω for each weight.
fn sketches(suite: &Suite) -> Table {
    let mut rows = Vec::new();
    for c in &suite.cases {
        let floor = |name: &str, s: Stat, over_read: String, over_gemm: String| {
            vec![String::new(), String::new(), name.to_owned(), time(s), String::new(), over_read, over_gemm]
        };
        let mut group = vec![
            floor("read A", c.read, "1".into(), String::new()),
            floor("GEMM, Ω given", c.gemm, String::new(), "1".into()),
        ];
        for s in &c.sketches {
            let cells = [time(s.seconds), ratio(s.speedup), ratio(s.over_read), ratio(s.over_gemm)];
            group.push([String::new(), String::new(), title(s.sketch).to_owned()].into_iter().chain(cells).collect());
        }
        (group[0][0], group[0][1]) = (label(c), c.l.to_string());
        rows.extend(group.into_iter().enumerate().map(|(i, cells)| Row { first: i == 0, cells }));
    }
    Table {
        title: "The sketch alone, Y = A Ω",
        header: ["A", "l", "", "time", "Gaussian / this", "this / reading A", "this / GEMM"].map(str::to_owned).into(),
        rows,
    }
}

/// Makes the table of methods: time, error and ratio for each weight.
fn factorizations(suite: &Suite) -> Table {
    let mut rows = Vec::new();
    for c in &suite.cases {
        for (i, f) in c.factorizations.iter().enumerate() {
            let group = i % SKETCHES.len() == 0;
            let over = c.inputs.iter().map(|input| {
                let over = input.errors(f.sketch, f.power_iterations).and_then(|e| e.over_optimum);
                over.map_or_else(|| "below rounding".to_owned(), excess)
            });
            let over: Vec<String> = over.collect();
            let blank = |text: String, show: bool| if show { text } else { String::new() };
            let mut cells = vec![
                blank(label(c), i == 0),
                blank(c.rank.to_string(), i == 0),
                blank(f.power_iterations.to_string(), group),
                title(f.sketch).to_owned(),
                time(f.seconds),
                ratio(f.speedup),
            ];
            cells.extend(over);
            cells.resize(8, String::new());
            rows.push(Row { first: group, cells });
        }
    }
    let over = |i: usize| {
        let mut names: Vec<&str> = suite.cases.iter().filter_map(|c| Some(c.inputs.get(i)?.name.as_str())).collect();
        names.dedup();
        format!("over optimum: {}", names.join(", "))
    };
    let mut header: Vec<String> =
        ["A", "rank", "q", "sketch", "time", "Gaussian / this"].into_iter().map(str::to_owned).collect();
    let inputs = suite.cases.iter().map(|c| c.inputs.len()).max().unwrap_or(0);
    header.extend((0..inputs).map(over));
    rows.iter_mut().for_each(|row: &mut Row| row.cells.truncate(header.len()));
    Table { title: "The whole randomized SVD", header, rows }
}

fn state(suite: &Suite) -> Table {
    let header = ["n", "l", "stored Gaussian (f32)"].into_iter().map(str::to_owned);
    let rows = suite.state.iter().map(|s| {
        let operators = s.operators.iter().map(|o| format!("{} ({:.0}×)", bytes(o.bytes), o.factor));
        let cells = [s.n.to_string(), s.l.to_string(), bytes(s.stored)].into_iter().chain(operators).collect();
        Row { first: false, cells }
    });
    Table {
        title: "State of the operators (and how many times smaller)",
        rows: rows.collect(),
        header: header.chain(SKETCHES.map(|s| title(s).to_owned())).collect(),
    }
}

impl Table {
    /// Renders the table for a terminal.
    pub(super) fn text(&self) -> String {
        let all = || std::iter::once(&self.header).chain(self.rows.iter().map(|r| &r.cells));
        let columns = self.header.len();
        let width = |j: usize| all().filter_map(|cells| cells.get(j)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = format!("{}\n", self.title);
        for (i, cells) in all().enumerate() {
            if i > 0 && self.rows[i - 1].first || i == 1 {
                let _ = writeln!(text, "{}", "-".repeat(widths.iter().sum::<usize>() + 2 * (columns - 1)));
            }
            let line: Vec<String> = cells.iter().zip(&widths).map(|(c, &w)| format!("{c:<w$}")).collect();
            let _ = writeln!(text, "{}", line.join("  ").trim_end());
        }
        text + "\n"
    }

    /// Renders the table for the page.
    pub(super) fn html(&self) -> String {
        let row = |cells: &[String], tag: &str| {
            cells.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect::<String>()
        };
        let mut html = format!("<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n", row(&self.header, "th"));
        for r in &self.rows {
            let class = if r.first { " class=\"first\"" } else { "" };
            let _ = writeln!(html, "<tr{class}>{}</tr>", row(&r.cells, "td"));
        }
        html + "</tbody>\n</table>\n"
    }
}

/// Escapes text for HTML and its attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

/// The first line of the CSV.
pub(super) const COLUMNS: &str =
    "name,m,n,dtype,rank,l,input,sketch,power_iterations,measure,unit,median,min,max,samples\n";

/// Writes one line for every number: `shape, …, what, median, min, max, samples`.
pub(super) fn csv(suite: &Suite) -> String {
    let mut out = COLUMNS.to_owned();
    for c in &suite.cases {
        let mut line = |input: &str, sketch: &str, q: Option<usize>, measure: &str, unit: &str, s: Stat| {
            let q = q.map_or(String::new(), |q| q.to_string());
            let _ = writeln!(
                out,
                "{},{},{},{},{},{},{},{sketch},{q},{measure},{unit},{:e},{:e},{:e},{}",
                quoted(&c.name),
                c.m,
                c.n,
                c.dtype,
                c.rank,
                c.l,
                quoted(input),
                s.median,
                s.min,
                s.max,
                s.samples
            );
        };
        line("", "", None, "read", "s", c.read);
        line("", "", None, "gemm", "s", c.gemm);
        for s in &c.sketches {
            let name = s.sketch.name();
            line("", name, None, "sketch", "s", s.seconds);
            line("", name, None, "sketch_speedup_over_gaussian", "1", s.speedup);
            line("", name, None, "sketch_over_read", "1", s.over_read);
            line("", name, None, "sketch_over_gemm", "1", s.over_gemm);
        }
        for f in &c.factorizations {
            let (name, q) = (f.sketch.name(), Some(f.power_iterations));
            line("", name, q, "factorization", "s", f.seconds);
            line("", name, q, "factorization_speedup_over_gaussian", "1", f.speedup);
        }
        for input in &c.inputs {
            for e in &input.errors {
                let (name, q) = (e.sketch.name(), Some(e.power_iterations));
                line(&input.name, name, q, "relative_error", "1", e.relative_error);
                if let Some(over) = e.over_optimum {
                    line(&input.name, name, q, "error_over_optimum", "1", over);
                }
            }
        }
    }
    for s in &suite.state {
        for o in &s.operators {
            let (n, l, name, b) = (s.n, s.l, o.sketch.name(), o.bytes);
            let _ = writeln!(out, ",,{n},,,{l},,{name},,state,B,{b},{b},{b},1");
        }
    }
    out
}

/// Quotes a field of a CSV line.
fn quoted(text: &str) -> String {
    let text = &cell(text);
    if text.contains(|c: char| c == ',' || c == '"' || c.is_control()) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Labels a case as `4096×4096` or `1536×384 f16 ffn_up.npy`.
pub(super) fn label(c: &Case) -> String {
    let (shape, file) = c.name.split_once(' ').unwrap_or((&c.name, ""));
    let dtype = if c.dtype == "f32" { "" } else { c.dtype.as_str() };
    [shape, dtype, file].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Formats a time as `1.23 ms (1.20–1.31)`.
fn time(s: Stat) -> String {
    let (scale, unit) = match s.median {
        t if t < 1e-3 => (1e6, "µs"),
        t if t < 1.0 => (1e3, "ms"),
        _ => (1.0, "s"),
    };
    let digits = |x: f64| three(x * scale);
    format!("{} {unit} ({}–{})", digits(s.median), digits(s.min), digits(s.max))
}

/// Formats a time as `1.23 ms`.
pub(super) fn seconds(t: f64) -> String {
    match t {
        t if t < 1e-3 => format!("{} µs", three(t * 1e6)),
        t if t < 1.0 => format!("{} ms", three(t * 1e3)),
        _ => format!("{} s", three(t)),
    }
}

/// Formats a ratio as `8.31 (8.02–8.65)`.
fn ratio(s: Stat) -> String {
    format!("{} ({}–{})", three(s.median), three(s.min), three(s.max))
}

/// Formats an excess as `4.21 % (4.17–4.30)`.
fn excess(s: Stat) -> String {
    let number = |x: f64| percent(x).trim_end_matches(" %").to_owned();
    format!("{} % ({}–{})", number(s.median), number(s.min), number(s.max))
}

/// Formats a percentage with three digits, or those that are above a millionth.
pub(super) fn percent(x: f64) -> String {
    match 100.0 * x {
        p if p.abs() < 1e-3 => "< 0.001 %".to_owned(),
        p if p.abs() < 0.1 => format!("{p:.3} %"),
        p => format!("{} %", three(p)),
    }
}

/// Formats a number with three significant digits.
pub(super) fn three(x: f64) -> String {
    match x.abs() {
        a if a >= 99.95 => format!("{x:.0}"),
        a if a >= 9.995 => format!("{x:.1}"),
        a if a >= 0.0995 || a == 0.0 => format!("{x:.2}"),
        a if a >= 0.00995 => format!("{x:.3}"),
        _ => format!("{x:.1e}"),
    }
}

/// Formats a number of bytes as `208 B` or `1.0 MiB`.
pub(super) fn bytes(n: usize) -> String {
    crate::report::bytes(n)
}

/// Wraps a paragraph for a terminal.
pub(super) fn wrapped(text: &str) -> String {
    let (mut out, mut width) = (String::from("*"), 1);
    for word in text.split(' ') {
        let length = word.chars().count();
        if width + 1 + length > 100 {
            out.push_str("\n ");
            width = 1;
        }
        out.push(' ');
        out.push_str(word);
        width += 1 + length;
    }
    out + "\n"
}

/// Names the numbers of power iterations that the factorization table and plots show, for their legends.
pub(super) fn powers() -> String {
    POWERS.map(|q| q.to_string()).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_text() {
        let s = Stat { median: 0.001_234, min: 0.0012, max: 0.01, samples: 3 };
        assert_eq!(time(s), "1.23 ms (1.20–10.0)");
        assert_eq!(seconds(42e-6), "42.0 µs");
        assert_eq!(percent(0.0421), "4.21 %");
        assert_eq!(percent(1e-7), "< 0.001 %");
        assert_eq!([99.96, 0.5, 0.0431, 2e-4].map(three), ["100", "0.50", "0.043", "2.0e-4"]);
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
        let lines = wrapped(&"word ".repeat(60));
        assert!(lines.lines().all(|l| l.chars().count() <= 100) && lines.lines().count() > 2, "{lines}");
    }
}
