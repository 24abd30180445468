//! Writes one HTML file that needs nothing else, with style and plots in it.

use std::fmt::Write;

use plotters::style::RGBColor;

use super::results::{SKETCHES, Suite, title};
use super::tables::{Table, escape, label, powers};
use super::{plots, record};
use crate::failure::Failure;

const STYLE: &str = "
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 60px; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 40px 0 6px; padding-top: 14px; border-top: 1px solid #ccc; }
h3 { font-size: 15px; margin: 10px 0 0 76px; }
p { margin: 6px 0 10px; max-width: 60em; }
ul { padding-left: 1.2em; } li { margin: 6px 0; max-width: 60em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; font-size: 14px; margin: 14px 0; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
code { font: 13px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 14px; margin: 8px 0; }
.legend svg { display: inline-block; width: 18px; height: 14px; vertical-align: -2px; margin-right: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 4px 24px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: left; padding: 3px 14px 3px 0; white-space: nowrap; }
th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; white-space: normal; }
tr.first td { border-top: 1px solid #ccc; }
@media print { h2 { break-after: avoid; } svg { break-inside: avoid; } }
";

/// The start of the page.
pub(super) const START: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
     <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
     <title>Random sketches for low-rank factorization: SRHT, Gaussian, sparse sign</title>\n";

/// Writes the page: the tables, each with its chart and legend.
pub(super) fn html(suite: &Suite, tables: &[Table]) -> Result<String, Failure> {
    let mut page = format!(
        "{START}\
         <style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Random sketches for low-rank factorization: SRHT, Gaussian, sparse sign</h1>\n"
    );
    let out = &mut page;
    facts(out, suite);

    section(out, "In short", "");
    let items: String = suite.conclusions.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    *out += &format!("<ul>\n{items}</ul>\n");

    section(
        out,
        "What is compared",
        "A randomized SVD of an m × n matrix A starts from Y = A Ω with a random n × l matrix Ω, l = rank + 10 columns. \
         Three kinds of Ω: independent normals (Gaussian), a subsampled randomized Hadamard transform (SRHT), and eight \
         signs in each row (sparse sign). All three are drawn from a seed where they are needed, and drawing is part of \
         every time. Then follow q power iterations, orthonormalization, and the SVD of a small matrix.",
    );
    let made = "The error is set against the optimum, the error of the best approximation of that rank. Made matrices \
                have known singular values (power law: σ_i = i^(−1/2); noise: those of a matrix of independent normals, \
                which has nothing to compress), files have theirs from a full SVD.";
    let rounds = "Times are medians over interleaved rounds, in several sweeps over all shapes; ratios are medians of the ratios within a round; thin \
                  lines and brackets run from the least to the greatest median of a seed. Two floors are measured in the same rounds: reading \
                  A once, and the bare matrix product with Ω given.";
    let _ = writeln!(out, "<p>{made}</p>\n<p>{rounds}</p>");

    section(out, "Time of the sketch alone", "Y = A Ω, logarithmic scale; the numbers in the bars are milliseconds.");
    let bars = SKETCHES.map(|s| (Mark::Square, plots::colour(s), title(s).to_owned()));
    let floors =
        [(Mark::Line, plots::READ, "reading A once".to_owned()), (Mark::Line, plots::GEMM, "GEMM, Ω given".into())];
    legend(out, bars.iter().chain(&floors));
    *out += &plots::sketch_times(suite)?;

    section(
        out,
        "What the SRHT gains over the Gaussian",
        "Above 1 the SRHT is faster. The whole factorization can gain no more than the Gaussian sketch is of it.",
    );
    let whole = ["q = 0", "q = 1", "q = 2"].map(|q| format!("whole factorization, {q}"));
    let names = std::iter::once("the sketch alone".to_owned()).chain(whole);
    let shades: Vec<_> = names.zip(plots::SHADES).map(|(name, colour)| (Mark::Square, colour, name)).collect();
    legend(out, shades.iter());
    *out += &plots::speedups(suite)?;

    let powers = format!(
        "A curve runs through q = {} power iterations; lower and further left is better. Vertical strokes are the spread \
         over seeds.",
        powers()
    );
    section(out, "Error over the optimum against time", &powers);
    let marks = [Mark::Circle, Mark::Square, Mark::Triangle];
    let curves: Vec<_> = SKETCHES.iter().zip(marks).map(|(&s, m)| (m, plots::colour(s), title(s).to_owned())).collect();
    legend(out, curves.iter());
    *out += "<div class=\"grid\">\n";
    for case in &suite.cases {
        for input in &case.inputs {
            let name = if case.name.ends_with(&input.name) { String::new() } else { format!(", {}", input.name) };
            let _ = writeln!(out, "<div><h3>{}{}</h3>", escape(&label(case)), escape(&name));
            match plots::pareto(case, input)? {
                Some(svg) => *out += &svg,
                None => *out += "<p>The error is at the level of rounding, whatever the sketch.</p>\n",
            }
            *out += "</div>\n";
        }
    }
    *out += "</div>\n";

    section(
        out,
        "All methods and their peers",
        "From the record of benches/peers/compare.py, which runs both on the same matrices by turns: the line is the front of \
         our methods (single pass, randomized and Gram with q = 0, 1, 2, Krylov, full), crosses are PyTorch, scikit-learn and fbpca \
         at q = 2, and PyTorch's full SVD. What lies above and to the right of the line is beaten in both. Not measured by this run.",
    );
    let entries = [(plots::FRONT, "ours"), (plots::PEERS, "peers")].map(|(c, name)| (Mark::Circle, c, name.to_owned()));
    legend(out, entries.iter());
    for panel in record::panels()? {
        let unbeaten: Vec<&str> = panel.unbeaten().iter().map(|p| p.who.as_str()).collect();
        let verdict = match &unbeaten[..] {
            [] => "every peer is above the front".to_owned(),
            some => format!("below the front: {}", some.join(", ")),
        };
        let _ = writeln!(out, "<div><h3>{}: {}</h3>", escape(&panel.title), escape(&verdict));
        *out += &plots::front(&panel)?;
        *out += "</div>\n";
    }

    section(
        out,
        "State of the operator",
        "Bytes that the object in memory holds (the size of the struct and its heap), logarithmic scale, against the n × l \
         Gaussian matrix in f32 that a stored sketch would be.",
    );
    let stored = [(Mark::Square, plots::READ, "stored Gaussian matrix".to_owned())];
    legend(out, stored.iter().chain(&bars));
    *out += &plots::states(suite)?;

    for table in tables {
        section(out, table.title, "");
        let _ = writeln!(out, "<div class=\"scroll\">\n{}</div>", table.html());
    }
    *out += "<p>Medians, and in brackets the least and the greatest median of a seed. All numbers: <a href=\"results.csv\">results.csv</a>, \
             <a href=\"results.json\">results.json</a>.</p>\n</body>\n</html>\n";
    Ok(page)
}

/// Writes where and how the numbers were measured.
fn facts(out: &mut String, suite: &Suite) {
    let m = &suite.machine;
    let threads = if m.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", m.threads) };
    let facts = [
        ("machine", format!("{}, {threads}, {} kernels, {}", m.cpu, m.isa, m.target)),
        ("date", format!("{}, {:.0} s", suite.date, suite.seconds)),
        ("version", format!("tensorslim {}, arithmetic in {}", suite.version, suite.settings.precision)),
        ("seeds", suite.settings.seeds.to_string()),
    ];
    *out += "<dl>\n";
    for (name, value) in facts {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    let _ = writeln!(out, "<dt>command</dt><dd><code>{}</code></dd>\n</dl>", escape(&suite.command));
}

fn section(out: &mut String, title: &str, text: &str) {
    let _ = writeln!(out, "<h2>{}</h2>", escape(title));
    if !text.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", escape(text));
    }
}

#[derive(Clone, Copy)]
enum Mark {
    Square,
    Circle,
    Triangle,
    Line,
}

fn legend<'a>(out: &mut String, entries: impl Iterator<Item = &'a (Mark, RGBColor, String)>) {
    *out += "<div class=\"legend\">";
    for (mark, RGBColor(r, g, b), name) in entries {
        let shape = match mark {
            Mark::Square => "<rect x=\"3\" y=\"1\" width=\"12\" height=\"12\"/>",
            Mark::Circle => "<circle cx=\"9\" cy=\"7\" r=\"6\"/>",
            Mark::Triangle => "<polygon points=\"9,0 16,13 2,13\"/>",
            Mark::Line => "<rect x=\"0\" y=\"6\" width=\"18\" height=\"2\"/>",
        };
        let _ = write!(
            out,
            "<span><svg viewBox=\"0 0 18 14\" fill=\"#{r:02x}{g:02x}{b:02x}\">{shape}</svg>{}</span>",
            escape(name)
        );
    }
    *out += "</div>\n";
}
