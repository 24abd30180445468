//! The command `tensorslim merge`: joins the shards of a batch into one manifest and one summary.
//!
//! It checks before a line is written: every shard is there once, all are complete and were asked for the same thing,
//! every weight is in exactly one of them, and the results are what was written. The manifest that comes out is, to the
//! byte, the one that a single run would have left.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;
use tensorslim::batch::manifest::{Entry, Header, Manifest, Status, directory, parse_journal};

use crate::args::MergeArgs;
use crate::bench::escape;
use crate::failure::{Failure, emit};
use crate::report::{bytes, cell, table};
use crate::results::{discard_spectra, shard_file};
use crate::{guard, output};

/// A shard that was found.
struct Shard {
    dir: PathBuf,
    path: PathBuf,
    manifest: Manifest,
    /// The seconds of each weight by name, from the journal.
    seconds: BTreeMap<String, f64>,
}

/// A weight in the summary.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    status: Status,
    rows: Option<usize>,
    columns: Option<usize>,
    dtype: Option<&'a str>,
    rank: Option<usize>,
    method: Option<&'a str>,
    relative_error: Option<f64>,
    params_before: Option<usize>,
    params_after: Option<usize>,
    ratio: Option<f64>,
    passes: Option<usize>,
    seconds: Option<f64>,
    directory: Option<String>,
    why: Option<&'a str>,
}

/// Runs `merge`: checks the shards against each other, gathers their results in one directory, and writes its manifest.
pub(crate) fn run(args: &MergeArgs) -> Result<(), Failure> {
    let mut shards = Vec::new();
    for dir in &args.dirs {
        shards.extend(find(dir)?);
    }
    let first = shards.first().ok_or_else(|| {
        Failure(format!(
            "{}: no manifest of a batch; give the output directories of its shards",
            args.dirs[0].display()
        ))
    })?;
    check(first, &shards)?;
    if !args.no_verify {
        for shard in &shards {
            for entry in shard.manifest.tensors.iter().filter(|e| e.status == Status::Done) {
                let redo = |why| Failure(format!("{why}; run its shard with --resume"));
                entry.verify(&shard.dir).map_err(redo)?;
                check_facts(shard, entry)?;
            }
        }
    }

    let mut entries: Vec<(&Shard, &Entry)> =
        shards.iter().flat_map(|shard| shard.manifest.tensors.iter().map(move |e| (shard, e))).collect();
    entries.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let rows: Vec<Row<'_>> = entries.iter().map(|(shard, entry)| row(shard, entry)).collect();
    let header = Header { shard: [1, 1], ..first.manifest.header.clone() };
    let merged = Manifest::new(header, true, entries.iter().map(|(_, e)| (*e).clone()));

    let out = args.out.as_deref().unwrap_or(&args.dirs[0]);
    check_out(out, &merged.header, args.overwrite)?;
    output::prepare(out)?;
    let failed = |e: &dyn std::fmt::Display| Failure(format!("the summary does not serialize: {e}"));
    let json = serde_json::to_string_pretty(&rows).map_err(|e| failed(&e))? + "\n";
    let texts =
        [("summary.csv", csv(&rows).map_err(|e| failed(&e))?), ("summary.json", json), ("index.html", page(&rows))];
    let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
    output::write_texts(out, &texts, "manifest.json", &merged.text().map_err(Failure)?)?;

    for dir in &args.dirs {
        // All shards have ended, so that the spectra of a budget are not needed any more.
        discard_spectra(dir);
    }

    let mut lines = facts(&rows);
    lines.push(("shards", shards.len().to_string()));
    lines.push(("written", format!("{}: manifest.json, summary.csv, summary.json, index.html", out.display())));
    emit(&table(&lines))?;
    let failures = rows.iter().filter(|row| row.status == Status::Failed).count();
    if failures > 0 {
        return Err(Failure(format!(
            "{failures} of {} weights failed; {} says why",
            rows.len(),
            out.join("summary.csv").display()
        )));
    }
    Ok(())
}

/// Finds the shards whose manifests are in `dir`. An earlier summary of several shards is ignored.
fn find(dir: &Path) -> Result<Vec<Shard>, Failure> {
    let at = |path: &Path, why: &dyn std::fmt::Display| Failure(format!("{}: {why}", path.display()));
    let list = fs::read_dir(dir).map_err(|e| at(dir, &format_args!("cannot be read: {e}")))?;
    let mut names: Vec<String> = list
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("manifest-") && name.ends_with(".json"))
        .collect();
    names.sort();
    if names.is_empty() && dir.join("manifest.json").exists() {
        names.push("manifest.json".into());
    }
    let mut shards = Vec::new();
    for name in names {
        let path = dir.join(&name);
        let bytes = fs::read(&path).map_err(|e| at(&path, &format_args!("cannot be read: {e}")))?;
        let manifest = Manifest::parse(&bytes).map_err(|why| at(&path, &why))?;
        if shard_file("manifest", manifest.header.shard, "json") != name {
            let [i, n] = manifest.header.shard;
            return Err(at(&path, &format_args!("is of shard {i} of {n}, not what its name says")));
        }
        // Times are optional: without the journal they are left out.
        let journal = fs::read(dir.join(shard_file("journal", manifest.header.shard, "jsonl"))).ok();
        let entries =
            journal.and_then(|bytes| parse_journal(&bytes).ok()).map_or(Vec::new(), |(_, entries, _)| entries);
        let seconds = entries.into_iter().filter_map(|e| Some((e.name, e.seconds?))).collect();
        shards.push(Shard { dir: dir.to_path_buf(), path, manifest, seconds });
    }
    Ok(shards)
}

/// Checks that all shards are there once each, complete, and of one batch, with every weight in one of them.
fn check(first: &Shard, shards: &[Shard]) -> Result<(), Failure> {
    let at = |shard: &Shard, why: String| Failure(format!("{}: {why}", shard.path.display()));
    let count = first.manifest.header.shard[1];
    let mut there: BTreeMap<usize, &Shard> = BTreeMap::new();
    let mut weights: BTreeMap<&str, &Shard> = BTreeMap::new();
    for shard in shards {
        let header = &shard.manifest.header;
        if header.shard[1] != count {
            let other = first.path.display();
            return Err(at(
                shard,
                format!("is one of {} shards, {other} one of {count}; merge shards of one batch", header.shard[1]),
            ));
        }
        if let Some((what, a, b)) = first.manifest.header.difference(header) {
            return Err(at(shard, format!("has another {what} than {}: {b} against {a}", first.path.display())));
        }
        if let Some(other) = there.insert(header.shard[0], shard) {
            return Err(at(shard, format!("is shard {} again, after {}", header.shard[0], other.path.display())));
        }
        if !shard.manifest.complete {
            return Err(at(shard, "is not complete; run its shard with --resume".into()));
        }
        for entry in &shard.manifest.tensors {
            if let Some(other) = weights.insert(&entry.name, shard) {
                return Err(at(shard, format!("has {:?}, which is in {} too", entry.name, other.path.display())));
            }
        }
    }
    if let Some(missing) = (1..=count).find(|i| !there.contains_key(i)) {
        return Err(Failure(format!("shard {missing} of {count} is missing; run it with --shard {missing}/{count}")));
    }
    let want = first.manifest.header.inputs.count;
    if weights.len() != want {
        return Err(at(
            first,
            format!("the batch has {want} weights, its shards {}; their inputs differed", weights.len()),
        ));
    }
    Ok(())
}

/// Checks what the manifest says of a result against its report, which the checksums have shown to be what was written.
fn check_facts(shard: &Shard, entry: &Entry) -> Result<(), Failure> {
    let dir = shard.dir.join(directory(&entry.name));
    let report = output::report_in(&dir)?;
    let same = report.zip(entry.facts.as_ref()).is_some_and(|(r, f)| {
        f.relative_error.is_finite()
            && [
                (&r["shape"], json!(f.shape)),
                (&r["dtype"], json!(f.dtype)),
                (&r["rank"], json!(f.rank)),
                (&r["method"], json!(f.method)),
                (&r["relative_error"], json!(f.relative_error)),
                (&r["error_kind"], json!(f.error_kind)),
                (&r["params_before"], json!(f.params[0])),
                (&r["params_after"], json!(f.params[1])),
                (&r["passes"], json!(f.passes)),
            ]
            .iter()
            .all(|(said, fact)| **said == *fact)
    });
    if same {
        return Ok(());
    }
    let (path, dir) = (shard.path.display(), dir.display());
    Err(Failure(format!(
        "{path}: says of {:?} what {dir}/report.json does not; run its shard with --resume",
        entry.name
    )))
}

/// Refuses a directory with the manifest of another batch, or with files of these names that no merge has written.
fn check_out(out: &Path, header: &Header, overwrite: bool) -> Result<(), Failure> {
    let path = out.join("manifest.json");
    guard::replaceable(&path, "the manifest of a batch", |start| start.starts_with(b"{\n  \"header\": {"), overwrite)?;
    let of = |bytes: Vec<u8>| Manifest::parse(&bytes).ok()?.header.difference(header);
    if let Some((what, before, now)) = fs::read(&path).ok().and_then(of).filter(|_| !overwrite) {
        return Err(Failure(format!(
            "{}: is of another batch: {what} was {before} there and is {now} here; give another --out, or --overwrite to \
             replace it",
            path.display()
        )));
    }
    for (name, start) in [
        ("summary.csv", "name,status,rows,columns,dtype,rank,"),
        ("summary.json", "[\n  {\n    \"name\": "),
        ("index.html", PAGE),
    ] {
        let is_ours = |bytes: &[u8]| bytes.starts_with(start.as_bytes());
        guard::replaceable(&out.join(name), "a file of a merge", is_ours, overwrite)?;
    }
    Ok(())
}

/// Makes the line of a result for the comparison of shards.
fn row<'a>(shard: &'a Shard, entry: &'a Entry) -> Row<'a> {
    let facts = entry.facts.as_ref();
    Row {
        name: &entry.name,
        status: entry.status,
        rows: facts.map(|f| f.shape[0]),
        columns: facts.map(|f| f.shape[1]),
        dtype: facts.map(|f| f.dtype.as_str()),
        rank: facts.map(|f| f.rank),
        method: facts.map(|f| f.method.as_str()),
        relative_error: facts.map(|f| f.relative_error),
        params_before: facts.map(|f| f.params[0]),
        params_after: facts.map(|f| f.params[1]),
        ratio: facts.map(|f| f.params[0] as f64 / f.params[1].max(1) as f64),
        passes: facts.map(|f| f.passes),
        seconds: shard.seconds.get(&entry.name).copied(),
        directory: (entry.status == Status::Done).then(|| shard.dir.join(directory(&entry.name)).display().to_string()),
        why: entry.why.as_deref(),
    }
}

fn csv(rows: &[Row<'_>]) -> Result<String, String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().try_for_each(|row| writer.serialize(row)).map_err(|e| e.to_string())?;
    let plain = writer.into_inner().map_err(|e| e.to_string())?;
    // Names of files and reasons come from outside.
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in csv::ReaderBuilder::new().has_headers(false).from_reader(&plain[..]).records() {
        let record = record.map_err(|e| e.to_string())?;
        writer.write_record(record.iter().map(cell)).map_err(|e| e.to_string())?;
    }
    String::from_utf8(writer.into_inner().map_err(|e| e.to_string())?).map_err(|e| e.to_string())
}

/// Returns the facts that a person wants to see first.
fn facts(rows: &[Row<'_>]) -> Vec<(&'static str, String)> {
    let count = |status| rows.iter().filter(|row| row.status == status).count();
    let sum = |f: fn(&Row<'_>) -> Option<usize>| rows.iter().filter_map(f).fold(0, usize::saturating_add);
    let (before, after) = (sum(|r| r.params_before), sum(|r| r.params_after));
    let ratio = if after > 0 { before as f64 / after as f64 } else { 1.0 };
    let worst = rows.iter().filter_map(|r| Some((r.relative_error?, r.name))).max_by(|a, b| a.0.total_cmp(&b.0));
    let seconds: f64 = rows.iter().filter_map(|row| row.seconds).sum();
    let mut facts = vec![
        (
            "weights",
            format!(
                "{}: {} done, {} kept, {} failed",
                rows.len(),
                count(Status::Done),
                count(Status::Kept),
                count(Status::Failed)
            ),
        ),
        ("parameters", format!("{before} -> {after} ({ratio:.2}x)")),
        ("in f16", format!("{} -> {}", bytes(before.saturating_mul(2)), bytes(after.saturating_mul(2)))),
    ];
    if let Some((error, name)) = worst {
        facts.push(("largest error", format!("{error:.5} ({name})")));
    }
    facts.push(("time of all weights", format!("{seconds:.1} s")));
    facts
}

/// The start of the page.
const PAGE: &str =
    "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>tensorslim batch</title>\n";

const STYLE: &str = "
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 60px; color: #1a1a1a; background: #fff; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; } h2 { font-size: 19px; margin-top: 32px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; } dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 13px; width: 100%; } th { text-align: left; position: sticky; top: 0; background: #fff; }
th, td { padding: 2px 8px; border-bottom: 1px solid #e4e4e4; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 120px; } td.bar div { background: #4a7fb5; height: 9px; } tr.failed { background: #fdecea; } tr.kept { color: #777; }
td.name { overflow-wrap: anywhere; }
";

/// Makes one page without scripts: the sums, what failed, and every weight with bars for its error and its share of the
/// time.
fn page(rows: &[Row<'_>]) -> String {
    let mut out = format!(
        "{PAGE}<style>{STYLE}</style>\n</head>\n<body>\n<h1>Low-rank factors of {} weights</h1>\n<dl>\n",
        rows.len()
    );
    // Writing to a string cannot fail.
    for (name, value) in facts(rows) {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    out += "</dl>\n";
    let failures: Vec<&Row<'_>> = rows.iter().filter(|row| row.status == Status::Failed).collect();
    if !failures.is_empty() {
        out += "<h2>Failed</h2>\n<dl>\n";
        for row in failures {
            let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(row.name), escape(row.why.unwrap_or_default()));
        }
        out += "</dl>\n";
    }
    out += "<h2>Weights</h2>\n<table>\n<tr><th>name</th><th>shape</th><th>rank</th><th>ratio</th><th>error</th><th></th><th>seconds</th><th></th></tr>\n";
    let most = |f: fn(&Row<'_>) -> Option<f64>| rows.iter().filter_map(f).fold(0.0, f64::max);
    let (error, seconds) = (most(|r| r.relative_error), most(|r| r.seconds));
    let bar = |x: Option<f64>, most: f64| {
        let share = x.map_or(0.0, |x| if most > 0.0 { 100.0 * x / most } else { 0.0 });
        format!("<td class=\"bar\"><div style=\"width: {share:.0}%\"></div></td>")
    };
    let number = |x: Option<f64>, digits: usize| x.map_or(String::new(), |x| format!("{x:.digits$}"));
    for row in rows {
        let class = match row.status {
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Kept => "kept",
        };
        let shape = row.rows.zip(row.columns).map_or(String::new(), |(m, n)| format!("{m} × {n}"));
        let rank = row.rank.map_or_else(|| class.to_string(), |k| k.to_string());
        let _ = writeln!(
            out,
            "<tr class=\"{class}\"><td class=\"name\">{}</td><td>{shape}</td><td class=\"n\">{rank}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td>{}<td class=\"n\">{}</td>{}</tr>",
            escape(row.name),
            number(row.ratio, 2),
            number(row.relative_error, 4),
            bar(row.relative_error, error),
            number(row.seconds, 2),
            bar(row.seconds, seconds),
        );
    }
    out + "</table>\n</body>\n</html>\n"
}
