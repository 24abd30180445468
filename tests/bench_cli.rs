//! `tensorslim bench` as a caller sees it: three files that are complete and agree with each other, and refusals that come
//! before the work. Nothing here depends on how fast anything is.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tensorslim::DType;

const UP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ffn_up.npy");

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensorslim"));
    command.arg("bench").args(args).stdin(Stdio::null()).output().unwrap()
}

/// A run that must fail with this code and one line that holds each of `words`, and write nothing to stdout.
#[track_caller]
fn refused(code: i32, args: &[&str], words: &[&str]) {
    let ran = run(args);
    let err = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(code), "{args:?}: {err}");
    assert!(ran.stdout.is_empty(), "{args:?}");
    assert!(err.starts_with("tensorslim: ") && err.lines().count() == 1, "{args:?}: {err}");
    for word in words {
        assert!(err.contains(word), "{args:?}: no {word:?} in {err}");
    }
}

/// A directory of its own for one test.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[track_caller]
fn number(value: &Value, field: &str) -> f64 {
    value.pointer(field).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {field} in {value}"))
}

#[track_caller]
fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.pointer(field).and_then(Value::as_array).unwrap_or_else(|| panic!("no list {field} in {value}"))
}

/// A median with its ends.
#[track_caller]
fn is_stat(value: &Value, field: &str) {
    let [median, min, max] = ["median", "min", "max"].map(|end| number(value, &format!("{field}/{end}")));
    assert!(min <= median && median <= max, "{field} of {value}");
    assert!(number(value, &format!("{field}/samples")) >= 2.0, "{field} of {value}");
}

/// One made shape with sides that no transform has, and one file: everything that is written, from one run.
#[test]
fn a_run_writes_page_csv_and_json() {
    let dir = scratch("run");
    let out = path(&dir, "new/results");
    let ran = run(&["--quick", "--shapes", "250x131", "--seeds", "2", "--threads", "2", "--out", &out, UP]);
    let (text, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    assert_eq!(ran.status.code(), Some(0), "{err}");
    // The optimum of the file, eight sweeps over the two matrices, and nothing else on stderr.
    assert_eq!(err.lines().count(), 17, "{err}");
    assert!(err.starts_with("[1/17] full SVD of ") && err.contains("\n[2/17] sweep 1 of 8: 250×131\n"), "{err}");
    let mut files: Vec<_> =
        fs::read_dir(&out).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["index.html", "results.csv", "results.json"]);

    let read = |name: &str| fs::read_to_string(Path::new(&out).join(name)).unwrap();
    let json: Value = serde_json::from_str(&read("results.json")).unwrap();
    json_is_complete(&json);
    csv_holds_the_same(&read("results.csv"), &json);
    let html = read("index.html");
    page_stands_alone(&html);
    for conclusion in list(&json, "/conclusions") {
        let first =
            conclusion.as_str().unwrap().split_once(':').map_or(conclusion.as_str().unwrap(), |(start, _)| start);
        assert!(html.contains(first), "{first}");
    }
    for word in ["The sketch alone", "The whole randomized SVD", "State of the operators", "250×131", "1536×384 f16"]
    {
        assert!(text.contains(word) && html.contains(word), "{word}");
    }
    assert!(text.ends_with(&format!("written: {out}: index.html, results.csv, results.json\n")), "{text}");
}

fn json_is_complete(json: &Value) {
    for field in ["/version", "/command", "/date", "/machine/cpu", "/machine/isa", "/machine/target"] {
        assert!(json.pointer(field).and_then(Value::as_str).is_some_and(|s| !s.is_empty()), "{field}");
    }
    assert_eq!((number(json, "/machine/threads"), number(json, "/settings/seeds")), (2.0, 2.0));
    let cases = list(json, "/cases");
    assert_eq!(cases.len(), 2);
    for (case, [m, n, k, l]) in cases.iter().zip([[250.0, 131.0, 32.0, 42.0], [1536.0, 384.0, 96.0, 106.0]]) {
        assert_eq!(["/m", "/n", "/rank", "/l"].map(|field| number(case, field)), [m, n, k, l]);
        is_stat(case, "/read");
        is_stat(case, "/gemm");
        let sketches = list(case, "/sketches");
        let names: Vec<_> = sketches.iter().map(|s| s["sketch"].as_str().unwrap()).collect();
        assert_eq!(names, ["gaussian", "srht", "sparse-sign"]);
        for sketch in sketches {
            ["/seconds", "/speedup", "/over_read", "/over_gemm"].into_iter().for_each(|field| is_stat(sketch, field));
        }
        assert_eq!(number(&sketches[0], "/speedup/median"), 1.0);
        let factorizations = list(case, "/factorizations");
        assert_eq!(factorizations.len(), 9);
        factorizations.iter().for_each(|f| ["/seconds", "/speedup"].into_iter().for_each(|field| is_stat(f, field)));
        for input in list(case, "/inputs") {
            let errors = list(input, "/errors");
            assert_eq!(errors.len(), 9);
            let over = |i: usize| number(&errors[i], "/over_optimum/median");
            for kind in 0..3 {
                // Never better than the optimum, but for rounding; each power iteration helps; the last is near.
                assert!(over(kind) > over(3 + kind) && over(3 + kind) > over(6 + kind), "{input}");
                assert!((-1e-4..0.1).contains(&over(6 + kind)), "{input}");
            }
        }
    }
    assert_eq!(list(&cases[0], "/inputs").len(), 2);
    assert_eq!(list(&cases[1], "/inputs").len(), 1);
    assert_eq!(cases[1]["inputs"][0]["optimum_from"], "full-svd");

    // The SRHT is its indices and little more.
    for state in list(json, "/state").iter().filter(|state| number(state, "/l") == 64.0) {
        let (n, srht) = (number(state, "/n"), &list(state, "/operators")[1]);
        assert_eq!(number(state, "/stored"), n * 64.0 * 4.0);
        assert!(number(srht, "/factor") >= if n == 512.0 { 400.0 } else { 2000.0 }, "{state}");
    }
}

fn csv_holds_the_same(csv: &str, json: &Value) {
    let mut lines = csv.lines();
    let header = lines.next().unwrap();
    assert_eq!(header, "name,m,n,dtype,rank,l,input,sketch,power_iterations,measure,unit,median,min,max,samples");
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert!(rows.iter().all(|row| row.len() == 15));
    // Two floors, three sketches in four measures, nine factorizations in two, nine errors in two for each input.
    let per_case = |inputs: usize| 2 + 3 * 4 + 9 * 2 + 9 * 2 * inputs;
    assert_eq!(rows.len(), per_case(2) + per_case(1) + 3 * list(json, "/state").len());
    let srht = |row: &&Vec<&str>| row[0] == "250×131" && row[7] == "srht" && row[9] == "sketch";
    let seconds: f64 = rows.iter().find(srht).unwrap()[11].parse().unwrap();
    assert_eq!(seconds, number(json, "/cases/0/sketches/1/seconds/median"));
}

/// Three bar plots, one plot for each of three inputs and of the six matrices of the record, legends; nothing fetched from anywhere.
fn page_stands_alone(html: &str) {
    assert_eq!(html.matches("role=\"img\"").count(), 12);
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    let without_names = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for outside in ["http://", "https://", "<script", "<link", "@import", "url(", "src="] {
        assert!(!without_names.contains(outside), "{outside}");
    }
    for bad in ["NaN", "inf", "-0.00 %"] {
        assert!(!html.contains(&format!(">{bad}")), "{bad}");
    }
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
}

/// A name that means something to HTML and to CSV; a matrix that its factors hold exactly; one thread.
#[test]
fn odd_names_and_exact_factors() {
    let dir = scratch("odd");
    let file = path(&dir, "a,<b>&.npy");
    // Rank 1: the optimum at rank 8 is rounding, and no ratio to it means anything.
    let rows: Vec<f64> = (0..32 * 40).map(|i| f64::from(i / 40 + 1) * f64::from(i % 40 + 1)).collect();
    tensorslim::npy::write(&file, DType::F64, &[32, 40], bytemuck::cast_slice(&rows)).unwrap();
    let ran =
        run(&["--quick", "--shapes", "16x16", "--seeds", "1", "--threads", "1", "--out", &path(&dir, "out"), &file]);
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let html = fs::read_to_string(dir.join("out/index.html")).unwrap();
    assert!(html.contains("a,&lt;b&gt;&amp;.npy") && !html.contains("<b>"));
    assert!(html.contains("at the level of rounding"));
    assert!(fs::read_to_string(dir.join("out/results.csv")).unwrap().contains("\"32×40 a,<b>&.npy\",32,40,f64"));
    let json: Value = serde_json::from_str(&fs::read_to_string(dir.join("out/results.json")).unwrap()).unwrap();
    assert_eq!(json["cases"][1]["inputs"][0]["errors"][0]["over_optimum"], Value::Null);
}

#[test]
fn bad_usage_is_refused() {
    let dir = scratch("usage");
    let out = path(&dir, "out");
    refused(2, &[], &["--out"]);
    refused(2, &["--quick"], &["--out"]);
    for shape in ["", "300", "300x", "x300", "15x300", "300x-1", "300x300x300", "1e3x300", "65536x65536"] {
        refused(2, &["--out", &out, "--shapes", shape], &["--shapes"]);
    }
    refused(2, &["--out", &out, "--shapes", "64x64,64"], &["--shapes", "3072x768"]);
    for (option, value) in [("--seeds", "0"), ("--seeds", "-1"), ("--threads", "0"), ("--threads", "many")] {
        refused(2, &["--out", &out, option, value], &[option]);
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn files_that_cannot_be_measured_are_refused_before_the_work() {
    let dir = scratch("files");
    let out = path(&dir, "out");
    let write = |name: &str, shape: &[usize], value: f32| {
        let values = vec![value; shape.iter().product()];
        tensorslim::npy::write(dir.join(name), DType::F32, shape, bytemuck::cast_slice(&values)).unwrap();
        path(&dir, name)
    };
    refused(1, &["--out", &out, "absent.npy"], &["absent.npy"]);
    refused(1, &["--out", &out, UP, &write("vector.npy", &[400], 1.0)], &["vector.npy", "no matrix"]);
    refused(1, &["--out", &out, &write("narrow.npy", &[400, 15], 1.0)], &["narrow.npy", "400 × 15", "16"]);
    refused(1, &["--out", &out, &write("nan.npy", &[20, 20], f32::NAN)], &["nan.npy", "(0, 0)"]);
    assert!(!Path::new(&out).exists());
    fs::write(&out, "a file").unwrap();
    refused(1, &["--out", &out], &["cannot make this directory"]);
}
