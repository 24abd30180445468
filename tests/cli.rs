//! The command line as a caller sees it: exit codes, stdout, stderr and files. Each run ends within a minute or is
//! killed and counts as a hang; every failure must be exactly one line on stderr and exit code 1 or 2.
#![cfg(feature = "cli")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use faer::Mat;
use serde_json::Value;

#[path = "faults/mod.rs"]
mod faults;

const UP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ffn_up.npy");
const HELDOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ffn_up_heldout.npy");

// ---------------------------------------------------------------- the harness

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensorslim"));
    command.args(args).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs to the end or for a minute. stdout is read if it was piped.
fn finish(mut command: Command) -> Ran {
    fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut bytes).unwrap();
            }
            String::from_utf8(bytes).unwrap()
        })
    }
    let what = format!("{command:?}");
    let mut child = command.spawn().unwrap();
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("still running after 60 s: {what}");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let ran = Ran { code: status.code(), out: out.join().unwrap(), err: err.join().unwrap() };
    assert!(!ran.err.contains("panicked"), "{what}: {}", ran.err);
    ran
}

fn run(args: &[&str]) -> Ran {
    let mut command = command(args);
    command.stdout(Stdio::piped());
    finish(command)
}

/// The stdout of a run that must succeed, silently on stderr.
#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let ran = run(args);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}");
    ran.out
}

/// The report of a run that must succeed.
#[track_caller]
fn report(args: &[&str]) -> Value {
    let out = succeeds(&[args, &["--json"]].concat());
    assert_eq!(out.lines().count(), 1, "{args:?}: {out}");
    serde_json::from_str(&out).unwrap()
}

/// A run that must fail with this code and one line that holds each of `words`.
#[track_caller]
fn refused(code: i32, args: &[&str], words: &[&str]) {
    let ran = run(args);
    assert_eq!(ran.code, Some(code), "{args:?}: {}{}", ran.out, ran.err);
    assert_eq!(ran.out, "", "{args:?}");
    one_line(&ran.err, args);
    for word in words {
        assert!(ran.err.contains(word), "{args:?}: no {word:?} in {}", ran.err);
    }
}

#[track_caller]
fn one_line(err: &str, args: &[&str]) {
    assert!(err.starts_with("tensorslim: ") && err.ends_with('\n'), "{args:?}: {err:?}");
    assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
}

#[track_caller]
fn number(report: &Value, field: &str) -> f64 {
    report.pointer(field).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {field} in {report}"))
}

#[track_caller]
fn near(value: f64, want: f64, within: f64) {
    assert!((value - want).abs() <= within, "{value} is not {want} ± {within}");
}

/// The reported error against the one measured from the files.
///
/// Exact: `‖W‖² − Σσ²` with each σ² good to a few eps of the arithmetic, so the squares agree to 16 eps.
/// Estimated from 16 probes: its square is at worst (residual of rank one) `χ²₁₆/16` times the truth, which is outside
/// 1/4..4 with probability 1e-3 for a random seed; here the seed is fixed. Residuals of rounding size are free.
#[track_caller]
fn agrees(report: &Value, measured: f64) {
    let eps = if report["precision"] == "f32" { f64::from(f32::EPSILON) } else { f64::EPSILON };
    let reported = number(report, "/relative_error");
    let holds = match report["error_kind"].as_str() {
        Some("exact") => (reported.powi(2) - measured.powi(2)).abs() <= 16.0 * eps,
        Some("estimate") => {
            assert!(number(report, "/error_std_dev") > 0.0);
            measured / 2.0 - 8.0 * eps <= reported && reported <= 2.0 * measured + 8.0 * eps
        }
        _ => false,
    };
    assert!(holds, "measured {measured}, reported {report}");
}

/// A directory that is gone when the test is.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The names in a directory, sorted.
fn names(dir: &str) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// ---------------------------------------------------------------- .npy, independently of the library

/// A version 1.0 file with any header text.
fn npy_with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut header = header.to_owned();
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    npy_with_header(&header, data)
}

fn f32_bytes(m: usize, n: usize, f: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    (0..m * n).flat_map(|i| f(i / n, i % n).to_le_bytes()).collect()
}

/// An m × n file of f32.
fn f32_npy(m: usize, n: usize, f: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    npy("<f4", "False", &format!("({m}, {n})"), &f32_bytes(m, n, f))
}

/// Element type, shape and values of a C-ordered little-endian file.
fn read_npy(path: &str) -> (String, Vec<usize>, Vec<f64>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{path}");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(start % 64, 0, "{path}");
    let header = std::str::from_utf8(&bytes[10..start]).unwrap();
    let after = |key: &str| header.split(key).nth(1).unwrap().trim_start();
    assert!(after("'fortran_order':").starts_with("False"));
    let descr = after("'descr':").split('\'').nth(1).unwrap().to_owned();
    let shape = after("'shape':").trim_start_matches('(').split(')').next().unwrap();
    let shape: Vec<usize> = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    let data = &bytes[start..];
    let values: Vec<f64> = match descr.as_str() {
        "<f2" => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        "<f4" => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        "<f8" => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        _ => panic!("{path}: {descr}"),
    };
    assert_eq!(values.len(), shape.iter().product::<usize>(), "{path}");
    (descr, shape, values)
}

fn matrix(path: &str) -> Mat<f64> {
    let (_, shape, values) = read_npy(path);
    let [m, n] = shape[..] else { panic!("{path}: {shape:?}") };
    Mat::from_fn(m, n, |i, j| values[i * n + j])
}

/// U, s, Vᵀ of an `--out` directory.
fn factors(dir: &str) -> (Mat<f64>, Vec<f64>, Mat<f64>) {
    let (_, shape, s) = read_npy(&format!("{dir}/s.npy"));
    assert_eq!(shape, [s.len()]);
    let (u, vt) = (matrix(&format!("{dir}/u.npy")), matrix(&format!("{dir}/vt.npy")));
    assert_eq!((u.ncols(), vt.nrows()), (s.len(), s.len()));
    (u, s, vt)
}

/// ‖W − U diag(s) Vᵀ‖ / ‖W‖ in f64.
fn error_of(w: &Mat<f64>, dir: &str) -> f64 {
    let (u, s, vt) = factors(dir);
    let us = Mat::from_fn(u.nrows(), s.len(), |i, j| u[(i, j)] * s[j]);
    (w - us * vt).norm_l2() / w.norm_l2()
}

/// ‖QᵀQ − I‖ of the columns.
fn departure(q: &Mat<f64>) -> f64 {
    (q.transpose() * q - Mat::<f64>::identity(q.ncols(), q.ncols())).norm_l2()
}

// ---------------------------------------------------------------- the main job

/// What an exact f64 SVD of the file gives (measured once with NumPy): error 0.60695, and on the held-out inputs
/// cosine 0.92440 and output error 0.38143.
#[test]
fn the_real_weight_by_the_full_method() {
    let r = report(&["factor", UP, "--ratio", "3.2", "--method", "full", "--evaluate", HELDOUT]);
    assert_eq!(r["shape"], serde_json::json!([1536, 384]));
    assert_eq!(r["dtype"], "f16");
    assert_eq!(r["precision"], "f32");
    assert_eq!(r["rank"], 95);
    assert_eq!(r["method"], "full");
    assert_eq!(r["sketch"], Value::Null);
    assert_eq!(r["seed"], 0);
    near(number(&r, "/relative_error"), 0.60695, 1e-4);
    assert_eq!((&r["error_kind"], &r["error_std_dev"]), (&Value::from("exact"), &Value::Null));
    assert!(number(&r, "/passes") >= 1.0);
    assert!(number(&r, "/elapsed_ms") > 0.0);
    assert!(number(&r, "/peak_bytes") > 0.0);
    assert_eq!(r["params_before"], 1536 * 384);
    assert_eq!(r["params_after"], 95 * (1536 + 384 + 1));
    near(number(&r, "/ratio"), 589_824.0 / 182_495.0, 1e-12);
    near(number(&r, "/activation/cosine"), 0.92440, 1e-3);
    near(number(&r, "/activation/relative_error"), 0.38143, 2e-3);
    near(number(&r, "/activation/score"), (1.0 + number(&r, "/activation/cosine")) / 2.0, 1e-12);
    assert_eq!(r["activation"]["samples"], 512);
}

/// 2 % above the optimum is what the default method is allowed; no method can be below it.
#[test]
fn the_real_weight_by_the_default_method() {
    let r = report(&["factor", UP, "--ratio", "3.2"]);
    assert_eq!(r["rank"], 95);
    assert_eq!(r["activation"], Value::Null);
    let error = number(&r, "/relative_error");
    assert!((0.60685..=0.6190).contains(&error), "{error}");
}

#[test]
fn rank_and_energy_choose_the_rank() {
    let r = report(&["factor", UP, "--rank", "17"]);
    assert_eq!(r["rank"], 17);
    // The energy kept is 1 − error², at least what was asked for; one singular value less keeps too little.
    let r = report(&["factor", UP, "--energy", "0.6", "--method", "full"]);
    let k = r["rank"].as_u64().unwrap();
    assert!(number(&r, "/relative_error").powi(2) <= 0.4 + 1e-6, "{r}");
    let less = report(&["factor", UP, "--rank", &(k - 1).to_string(), "--method", "full"]);
    assert!(number(&less, "/relative_error").powi(2) > 0.4 - 1e-6, "{less}");
    // A tolerance is the same rule, in the error itself.
    let same = report(&["factor", UP, "--tolerance", "0.632455532", "--method", "full"]);
    assert_eq!(same["rank"], k);
    let r = report(&["factor", UP, "--tolerance", "0.3", "--max-rank", "40"]);
    assert_eq!(r["rank"], 40);
    assert!(r["notes"][0].as_str().unwrap().contains("tolerance 0.3"), "{r}");
}

#[test]
fn one_look_and_a_shift() {
    for method in ["single-pass", "nystrom"] {
        let r = report(&["factor", UP, "--rank", "32", "--method", method]);
        assert_eq!((&r["method"], &r["passes"], &r["error_kind"]), (&method.into(), &1.into(), &"estimate".into()));
        // The spectrum is flat (0.83 is the optimum) and generalized Nyström no projection: up to twice the optimum.
        assert!(number(&r, "/relative_error") < 2.0 * 0.83 && number(&r, "/error_std_dev") > 0.0, "{r}");
        // Without a bound on the rank there is nothing to size the sketches by.
        let args = ["factor", UP, "--tolerance", "0.5", "--method", method];
        refused(1, &args, &[&format!("--method {method} with --tolerance needs --max-rank")]);
    }
    let randomized = ["factor", UP, "--rank", "96", "--method", "randomized", "--power-iterations", "1"];
    let plain = report(&randomized);
    let shifted = report(&[&randomized[..], &["--dynamic-shift"]].concat());
    assert!(number(&shifted, "/relative_error") < number(&plain, "/relative_error"), "{shifted}");
}

#[test]
fn written_factors_reconstruct_the_weight_to_the_reported_error() {
    let dir = Dir::new("reconstruct");
    let w = matrix(UP);
    for (method, precision) in
        [("auto", "f32"), ("full", "f32"), ("gram", "f32"), ("randomized", "f32"), ("auto", "f64")]
    {
        let out = dir.path(&format!("{method}-{precision}"));
        let r = report(&["factor", UP, "--ratio", "3.2", "--method", method, "--precision", precision, "--out", &out]);
        assert_eq!(names(&out), ["report.json", "s.npy", "u.npy", "vt.npy"]);
        let (u, s, vt) = factors(&out);
        assert_eq!((u.nrows(), s.len(), vt.ncols()), (1536, 95, 384));
        assert!(s.windows(2).all(|p| p[0] >= p[1]) && s[94] > 0.0, "{s:?}");
        // 50·eps·sqrt(k), the crate's bound.
        let eps = if precision == "f32" { f64::from(f32::EPSILON) } else { f64::EPSILON };
        let bound = 50.0 * eps * (95f64).sqrt();
        assert!(departure(&u) <= bound, "{method} {precision}: {:e}", departure(&u));
        assert!(departure(&vt.transpose().to_owned()) <= bound, "{method} {precision}");
        agrees(&r, error_of(&w, &out));
        let filed: Value = serde_json::from_str(&fs::read_to_string(format!("{out}/report.json")).unwrap()).unwrap();
        assert_eq!(filed, r);
        assert_eq!(read_npy(&format!("{out}/u.npy")).0, if precision == "f32" { "<f4" } else { "<f8" });
    }
}

#[test]
fn written_element_type_is_chosen_and_its_rounding_is_said() {
    let dir = Dir::new("dtype");
    let w = matrix(UP);
    let out = dir.path("out");
    for (dtype, descr, loss) in [("f16", "<f2", 2f64.powi(-10)), ("f64", "<f8", 1e-5)] {
        let r = report(&["factor", UP, "--ratio", "3.2", "--out", &out, "--dtype", dtype]);
        for file in ["u.npy", "s.npy", "vt.npy"] {
            assert_eq!(read_npy(&format!("{out}/{file}")).0, descr);
        }
        near(error_of(&w, &out), number(&r, "/relative_error"), loss);
        assert_eq!(r["notes"].to_string().contains("rounded to"), dtype == "f16", "{r}");
    }
    succeeds(&["factor", UP, "--rank", "3", "--out", &out, "--dtype", "bf16"]);
    assert_eq!(fs::metadata(format!("{out}/u.npy")).unwrap().len() % 64, (1536 * 3 * 2) % 64);
    // Singular values of this file near 1e30 have no f16; nothing is written then.
    let big = dir.file("big.npy", &f32_npy(8, 5, |i, j| 1e30 * ((i * 5 + j) as f32).sin()));
    let none = dir.path("none");
    refused(1, &["factor", &big, "--rank", "2", "--out", &none, "--dtype", "f16"], &["f16", "wider --dtype"]);
    assert_eq!(names(&none), [] as [&str; 0]);
}

// ---------------------------------------------------------------- determinism

const CONFIGURATIONS: [&[&str]; 6] = [
    &["--method", "auto"],
    &["--method", "full"],
    &["--method", "gram"],
    &["--method", "randomized", "--sketch", "gaussian"],
    &["--method", "randomized", "--sketch", "srht"],
    &["--method", "randomized", "--sketch", "sparse-sign"],
];

#[test]
fn same_seed_same_bytes_for_any_number_of_threads() {
    let dir = Dir::new("threads");
    for configuration in CONFIGURATIONS {
        let bytes = |threads: &str| {
            let out = dir.path("out");
            let args = ["factor", UP, "--ratio", "3.2", "--seed", "7", "--threads", threads, "--out", &out];
            succeeds(&[&args, configuration].concat());
            ["u.npy", "s.npy", "vt.npy"].map(|file| fs::read(format!("{out}/{file}")).unwrap())
        };
        let one = bytes("1");
        for threads in ["2", "2", "3"] {
            assert!(bytes(threads) == one, "{configuration:?} with {threads} threads");
        }
    }
}

/// A pool of a million threads would never answer.
#[test]
fn threads_beyond_reason_are_refused() {
    for arguments in [&["factor", UP, "--rank", "4"][..], &["batch", UP, "--rank", "4", "--out", "never-made"]] {
        let mut command = command(arguments);
        command.env("RAYON_NUM_THREADS", "999999").stdout(Stdio::piped());
        let ran = finish(command);
        assert_eq!(ran.code, Some(1), "{arguments:?}");
        assert!(ran.err.contains("RAYON_NUM_THREADS = 999999"), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn another_seed_other_bytes_same_quality() {
    let dir = Dir::new("seeds");
    for configuration in &CONFIGURATIONS[3..] {
        let mut seen: Option<(Vec<u8>, f64)> = None;
        for seed in ["1", "18446744073709551615"] {
            let out = dir.path("out");
            let args = ["factor", UP, "--ratio", "3.2", "--seed", seed, "--out", &out];
            let r = report(&[&args, *configuration].concat());
            assert_eq!(r["sketch"], configuration[3]);
            assert_eq!(r["seed"].to_string(), seed);
            let (u, error) = (fs::read(format!("{out}/u.npy")).unwrap(), number(&r, "/relative_error"));
            if let Some((u1, error1)) = &seen {
                assert!(*u1 != u, "{configuration:?}: the seed changes nothing");
                near(error / error1, 1.0, 0.01);
            }
            seen = Some((u, error));
        }
    }
}

/// Storage types are widened exactly, so the same values in f32 and f64 files give the same factors to rounding.
#[test]
fn wider_files_of_the_same_values_give_the_same_answer() {
    let dir = Dir::new("storage");
    let (_, _, values) = read_npy(UP);
    let shape = "(1536, 384)";
    let f32s: Vec<u8> = values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    let f64s: Vec<u8> = values.iter().flat_map(|&x| x.to_le_bytes()).collect();
    let files = [
        UP.to_owned(),
        dir.file("f32.npy", &npy("<f4", "False", shape, &f32s)),
        dir.file("f64.npy", &npy("<f8", "False", shape, &f64s)),
    ];
    let s: Vec<Vec<f64>> = files
        .iter()
        .map(|file| {
            let out = dir.path("out");
            succeeds(&["factor", file, "--rank", "20", "--out", &out]);
            read_npy(&format!("{out}/s.npy")).2
        })
        .collect();
    for other in &s[1..] {
        for (a, b) in s[0].iter().zip(other) {
            near(b / a, 1.0, 1e-5);
        }
    }
}

// ---------------------------------------------------------------- shapes and orders

#[test]
fn fortran_order_is_the_same_matrix() {
    let dir = Dir::new("fortran");
    let f = |i: usize, j: usize| ((i * 7 + j * 13) as f32).sin() + 2.0 / (1.0 + i as f32 + j as f32);
    let c = dir.file("c.npy", &f32_npy(37, 21, f));
    let columns = f32_bytes(21, 37, |j, i| f(i, j));
    let fortran = dir.file("f.npy", &npy("<f4", "True", "(37, 21)", &columns));
    let w = matrix(&c);
    for file in [&c, &fortran] {
        let out = dir.path("out");
        let r = report(&["factor", file, "--rank", "4", "--method", "full", "--out", &out]);
        agrees(&r, error_of(&w, &out));
    }
}

#[test]
fn a_convolution_is_out_by_everything_else() {
    let dir = Dir::new("conv");
    let f = |i: usize, j: usize| ((i * 5 + j * 3) as f32).cos() + 1.0 / (1.0 + j as f32);
    let flat = dir.file("flat.npy", &f32_npy(16, 8 * 9, f));
    let conv = dir.file("conv.npy", &npy("<f4", "False", "(16, 8, 3, 3)", &f32_bytes(16, 72, f)));
    let (a, b) = (report(&["factor", &flat, "--rank", "3"]), report(&["factor", &conv, "--rank", "3"]));
    assert_eq!(b["tensor_shape"], serde_json::json!([16, 8, 3, 3]));
    assert_eq!(b["shape"], serde_json::json!([16, 72]));
    assert_eq!(a["relative_error"], b["relative_error"]);
    // The same tensor in Fortran order, whose elements change places on the way in: the same bytes come out.
    let order = |at: usize| (at % 16, at / 16 % 8, at / 128 % 3, at / 384);
    let columns: Vec<u8> =
        (0..1152).map(order).flat_map(|(o, i, h, w)| f(o, i * 9 + h * 3 + w).to_le_bytes()).collect();
    let columns = dir.file("f.npy", &npy("<f4", "True", "(16, 8, 3, 3)", &columns));
    let outs = [(&conv, dir.path("c")), (&columns, dir.path("f"))];
    for (file, out) in &outs {
        report(&["factor", file, "--rank", "3", "--memory-limit", "40M", "--out", out]);
    }
    for file in ["u.npy", "s.npy", "vt.npy"] {
        let [c, f] = [&outs[0].1, &outs[1].1].map(|out| fs::read(format!("{out}/{file}")).unwrap());
        assert!(c == f, "{file}");
    }
    // It has no rows to be read one after the other.
    let args = ["factor", &columns, "--rank", "3", "--method", "nystrom", "--checkpoint", &dir.path("state")];
    refused(1, &args, &["f.npy", "C order"]);
}

#[test]
fn wide_is_tall_transposed() {
    let dir = Dir::new("wide");
    let f = |i: usize, j: usize| ((i * i + j * 3) as f32).cos() / (1.0 + (i + j) as f32);
    let tall = dir.file("tall.npy", &f32_npy(90, 33, f));
    let wide = dir.file("wide.npy", &f32_npy(33, 90, |j, i| f(i, j)));
    for method in ["auto", "full", "gram", "randomized"] {
        let error =
            |file: &str| number(&report(&["factor", file, "--rank", "6", "--method", method]), "/relative_error");
        near(error(&wide) / error(&tall), 1.0, 1e-3);
    }
}

/// NumPy has no bfloat16: the two bytes are without a type until the caller gives one.
#[test]
fn bfloat16_is_named_by_the_caller() {
    let dir = Dir::new("bf16");
    let value = |i: usize| half::bf16::from_f32((i as f32 * 0.37).sin());
    let bf16: Vec<u8> = (0..40 * 30).flat_map(|i| value(i).to_le_bytes()).collect();
    let void = dir.file("void.npy", &npy("<V2", "False", "(40, 30)", &bf16));
    let same = dir.file("same.npy", &f32_npy(40, 30, |i, j| value(i * 30 + j).to_f32()));
    refused(1, &["factor", &void, "--rank", "2"], &["void.npy", "--bf16"]);
    let (a, b) = (report(&["factor", &void, "--rank", "1", "--bf16"]), report(&["factor", &same, "--rank", "1"]));
    assert_eq!((&a["dtype"], &b["dtype"]), (&Value::from("bf16"), &Value::from("f32")));
    near(number(&a, "/relative_error"), number(&b, "/relative_error"), 1e-6);
    // Files that say what they are keep their type; what is written as bf16 is read back.
    let out = dir.path("out");
    let args = ["factor", &void, "--rank", "1", "--bf16", "--evaluate", &same, "--out", &out, "--dtype", "bf16"];
    assert_eq!(report(&args)["activation"]["samples"], 40);
    assert_eq!(
        report(&["factor", &format!("{out}/u.npy"), "--rank", "1", "--bf16"])["shape"],
        serde_json::json!([40, 1])
    );
    let bytes = dir.file("i4.npy", &npy("<i4", "False", "(40, 15)", &bf16));
    refused(1, &["factor", &bytes, "--rank", "1", "--bf16"], &["i4.npy", "i4"]);
    // A view as integers is what NumPy and PyTorch offer; the name is what some programs write, and it needs no option.
    for descr in ["<i2", "<u2"] {
        let file = dir.file("view.npy", &npy(descr, "False", "(40, 30)", &bf16));
        refused(1, &["factor", &file, "--rank", "1"], &["view.npy", descr, "add --bf16"]);
        assert_eq!(report(&["factor", &file, "--rank", "1", "--bf16"])["relative_error"], a["relative_error"]);
    }
    let named = dir.file("named.npy", &npy("bfloat16", "False", "(40L, 30L)", &bf16));
    for more in [&[][..], &["--bf16"]] {
        let r = report(&[&["factor", &named, "--rank", "1"], more].concat());
        assert_eq!((&r["relative_error"], &r["dtype"]), (&a["relative_error"], &a["dtype"]));
    }
    // Of what can be read by nobody the type is named, with what to do.
    for descr in ["<f1", "|V1"] {
        let small = dir.file("small.npy", &npy(descr, "False", "(40, 60)", &bf16));
        let ran = run(&["factor", &small, "--rank", "1", "--bf16"]);
        assert!(ran.err.contains("float8") && ran.err.contains("a.astype('f4')"), "{}", ran.err);
        assert!(!ran.err.contains("damaged") && !ran.err.contains("::"), "{}", ran.err);
    }
}

#[test]
fn other_byte_order_and_version() {
    let dir = Dir::new("foreign");
    let f = |i: usize, j: usize| ((i * 7 + j * 13) as f32).sin() + 1.0 / (1.0 + j as f32);
    let native = f32_npy(20, 12, f);
    let want = report(&["factor", &dir.file("native.npy", &native), "--rank", "3"]);
    let swapped: Vec<u8> = (0..240).flat_map(|i| f(i / 12, i % 12).to_be_bytes()).collect();
    // Version 2: two more bytes for the length of the header.
    let version2 = [b"\x93NUMPY\x02\x00", &native[8..10], &[0, 0], &native[10..]].concat();
    for (name, bytes) in [("big.npy", npy(">f4", "False", "(20, 12)", &swapped)), ("v2.npy", version2)] {
        let r = report(&["factor", &dir.file(name, &bytes), "--rank", "3"]);
        assert_eq!((&r["relative_error"], &r["dtype"]), (&want["relative_error"], &want["dtype"]), "{name}");
    }
}

// ---------------------------------------------------------------- hostile matrices

const METHODS: [&str; 4] = ["auto", "full", "gram", "randomized"];

#[test]
fn not_finite() {
    let dir = Dir::new("finite");
    for (name, bad) in [("NaN", f32::NAN), ("inf", f32::INFINITY), ("-inf", f32::NEG_INFINITY)] {
        let file =
            dir.file("w.npy", &f32_npy(40, 30, |i, j| if (i, j) == (39, 29) { bad } else { 1.0 + (i * j) as f32 }));
        for method in METHODS {
            refused(1, &["factor", &file, "--rank", "2", "--method", method], &["w.npy", "(39, 29)", name]);
        }
        let x = dir.file("x.npy", &f32_npy(3, 384, |i, _| if i == 2 { bad } else { 1.0 }));
        refused(1, &["factor", UP, "--rank", "2", "--evaluate", &x], &["x.npy", name]);
    }
}

#[test]
fn empty() {
    let dir = Dir::new("empty");
    for (name, shape) in [("0xn", "(0, 5)"), ("mx0", "(5, 0)"), ("0x0", "(0, 0)"), ("conv", "(4, 0, 3, 3)")] {
        let file = dir.file(name, &npy("<f4", "False", shape, &[]));
        refused(1, &["factor", &file, "--rank", "1"], &[name, shape]);
    }
    let file = dir.file("ok.npy", &f32_npy(4, 3, |i, j| (i + j) as f32));
    let none = dir.file("none.npy", &npy("<f4", "False", "(0, 3)", &[]));
    refused(1, &["factor", &file, "--rank", "1", "--evaluate", &none], &["none.npy", "(0, 3)"]);
}

#[test]
fn one_by_one() {
    let dir = Dir::new("one");
    let file = dir.file("w.npy", &f32_npy(1, 1, |_, _| -3.0));
    for method in METHODS {
        let out = dir.path("out");
        let r = report(&["factor", &file, "--rank", "1", "--method", method, "--out", &out]);
        near(number(&r, "/relative_error"), 0.0, 1e-3);
        let (u, s, vt) = factors(&out);
        near(u[(0, 0)] * s[0] * vt[(0, 0)], -3.0, 1e-5);
        refused(1, &["factor", &file, "--rank", "2", "--method", method], &["w.npy", "rank 2", "1..=1"]);
    }
}

#[test]
fn one_row_and_one_column() {
    let dir = Dir::new("thin");
    for (name, m, n) in [("row", 1, 50), ("column", 50, 1)] {
        let file = dir.file(name, &f32_npy(m, n, |i, j| (i + j) as f32 - 7.5));
        for method in METHODS {
            let out = dir.path("out");
            report(&["factor", &file, "--rank", "1", "--method", method, "--out", &out]);
            near(error_of(&matrix(&file), &out), 0.0, 1e-5);
        }
    }
}

#[test]
fn all_zero() {
    let dir = Dir::new("zero");
    let file = dir.file("w.npy", &f32_npy(30, 20, |_, _| 0.0));
    for method in METHODS {
        let out = dir.path("out");
        let r = report(&["factor", &file, "--rank", "3", "--method", method, "--out", &out]);
        assert_eq!((number(&r, "/relative_error"), &r["rank"]), (0.0, &Value::from(3)), "{method}");
        let (u, s, vt) = factors(&out);
        assert_eq!(s, [0.0; 3]);
        assert!(departure(&u) < 1e-4 && departure(&vt.transpose().to_owned()) < 1e-4, "{method}");
        let r = report(&["factor", &file, "--energy", "0.9", "--method", method]);
        assert_eq!(number(&r, "/relative_error"), 0.0, "{method}");
    }
}

/// Rank one, asked for more: the rest of s is rounding noise and U, V stay orthonormal.
#[test]
fn constant_rows() {
    let dir = Dir::new("constant");
    let file = dir.file("w.npy", &f32_npy(64, 48, |i, _| i as f32 - 3.0));
    let w = matrix(&file);
    for method in METHODS {
        for rank in ["1", "5"] {
            let out = dir.path("out");
            let r = report(&["factor", &file, "--rank", rank, "--method", method, "--out", &out]);
            let (u, s, vt) = factors(&out);
            near(error_of(&w, &out), 0.0, 1e-5);
            // The certificate subtracts squares: what it calls zero is sqrt(eps) of the norm.
            near(number(&r, "/relative_error"), 0.0, 1e-3);
            assert!(s[1..].iter().all(|&x| x <= 1e-5 * s[0]), "{method}: {s:?}");
            let bound = 50.0 * f64::from(f32::EPSILON) * (s.len() as f64).sqrt();
            assert!(departure(&u) <= bound && departure(&vt.transpose().to_owned()) <= bound, "{method} {rank}");
        }
    }
}

#[test]
fn scale_does_not_matter() {
    let dir = Dir::new("scale");
    let f = |i: usize, j: usize| ((i * 7 + j * 13) as f32).sin() + 2.0 / (1.0 + i as f32 + j as f32);
    for method in METHODS {
        let error = |scale: f32| {
            let file = dir.file("w.npy", &f32_npy(80, 60, |i, j| scale * f(i, j)));
            let out = dir.path("out");
            let r = report(&["factor", &file, "--rank", "5", "--method", method, "--out", &out]);
            let measured = error_of(&matrix(&file), &out);
            agrees(&r, measured);
            measured
        };
        let plain = error(1.0);
        near(error(1e30), plain, 1e-5);
        near(error(1e-30), plain, 1e-5);
    }
}

/// f64 values outside f32: an answer in f64, one line in f32, where they are infinite or zero.
#[test]
fn values_beyond_f32() {
    let dir = Dir::new("huge");
    for scale in [1e150, 1e-150] {
        let data: Vec<u8> = (0..40 * 30).flat_map(|i| (scale * f64::from(i).sin()).to_le_bytes()).collect();
        let file = dir.file("w.npy", &npy("<f8", "False", "(40, 30)", &data));
        let w = matrix(&file);
        for method in METHODS {
            let out = dir.path("out");
            let args = ["factor", &file, "--rank", "3", "--method", method];
            let r = report(&[&args[..], &["--precision", "f64", "--out", &out]].concat());
            agrees(&r, error_of(&w, &out));
            refused(1, &args, &["w.npy", "out of the range of f32", "--precision f64"]);
        }
    }
    // Singular values beyond f64: no arithmetic is wider, and none is advised.
    let data: Vec<u8> = (0..40 * 30).flat_map(|_| 1.7e308f64.to_le_bytes()).collect();
    let file = dir.file("w.npy", &npy("<f8", "False", "(40, 30)", &data));
    let args = ["factor", &file, "--rank", "3", "--precision", "f64"];
    refused(1, &args, &["w.npy", "out of the range of f64", "multiply the data by a power of two"]);
    assert!(!run(&args).err.contains("--precision"));
}

/// Weight and inputs are fine in f32, their product is not: powers of two keep it in range.
#[test]
fn outputs_beyond_f32() {
    let dir = Dir::new("outputs");
    let w = dir.file("w.npy", &f32_npy(30, 20, |i, j| 1e30 * ((i * 3 + j * 5) as f32).sin()));
    let x = dir.file("x.npy", &f32_npy(10, 20, |i, j| 1e30 * ((i + j * j) as f32).cos()));
    let args = ["factor", &w, "--rank", "1", "--evaluate", &x];
    let double = report(&[&args[..], &["--precision", "f64"]].concat());
    let single = report(&args);
    for field in ["/activation/cosine", "/activation/relative_error"] {
        let (a, b) = (number(&double, field), number(&single, field));
        assert!((a - b).abs() < 1e-4, "{field}: {a} {b}");
    }
}

#[test]
fn ranks_that_the_file_does_not_have() {
    let dir = Dir::new("rank");
    let file = dir.file("w.npy", &f32_npy(9, 6, |i, j| (i * j) as f32 + 1.0));
    for method in METHODS {
        refused(1, &["factor", &file, "--rank", "7", "--method", method], &["w.npy", "rank 7", "1..=6"]);
        refused(1, &["factor", &file, "--rank", "18446744073709551615", "--method", method], &["w.npy", "1..=6"]);
        // The whole rank is allowed, and exact.
        let out = dir.path("out");
        report(&["factor", &file, "--rank", "6", "--method", method, "--out", &out]);
        near(error_of(&matrix(&file), &out), 0.0, 1e-5);
    }
    // 54 / (1·16) = 3.375 is the most that these 9 × 6 can save.
    refused(1, &["factor", &file, "--ratio", "4"], &["w.npy"]);
    assert_eq!(report(&["factor", &file, "--ratio", "3.3"])["rank"], 1);
    // A ratio so low that it asks for more than the whole rank, and the whole energy.
    for args in [["--ratio", "1e-300"], ["--energy", "1"]] {
        let args = [&["factor", file.as_str()], &args[..]].concat();
        let ran = run(&args);
        match ran.code {
            Some(1) => one_line(&ran.err, &args),
            code => assert_eq!((code, ran.err.as_str()), (Some(0), ""), "{args:?}"),
        }
    }
    // More oversampling than there are columns is an answer.
    let args = ["factor", &file, "--rank", "2", "--method", "randomized", "--oversample", "4294967295"];
    report(&args);
}

// ---------------------------------------------------------------- hostile files

#[test]
fn malformed_files() {
    let dir = Dir::new("malformed");
    let data = f32_bytes(4, 3, |i, j| (i + 2 * j) as f32);
    let good = npy("<f4", "False", "(4, 3)", &data);
    let mut magic = good.clone();
    magic[0] = b'\x94';
    let mut version = good.clone();
    version[6] = 9;
    let mut long_header = good.clone();
    long_header[8..10].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut not_utf8 = good.clone();
    not_utf8[20] = 0xff;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("part-of-magic", good[..4].to_vec()),
        ("only-magic", good[..8].to_vec()),
        ("wrong-magic", magic),
        ("wrong-version", version),
        ("part-of-header", good[..40].to_vec()),
        ("long-header", long_header),
        ("not-utf8", not_utf8),
        ("no-dict", npy_with_header("hello", &data)),
        ("open-dict", npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3", &data)),
        ("no-shape", npy_with_header("{'descr': '<f4', 'fortran_order': False, }", &data)),
        ("no-descr", npy_with_header("{'fortran_order': False, 'shape': (4, 3), }", &data)),
        ("no-order", npy_with_header("{'descr': '<f4', 'shape': (4, 3), }", &data)),
        ("order-is-text", npy("<f4", "'no'", "(4, 3)", &data)),
        ("shape-is-text", npy("<f4", "False", "'4, 3'", &data)),
        ("shape-is-negative", npy("<f4", "False", "(-4, 3)", &data)),
        ("shape-is-nested", npy("<f4", "False", "((4, 3), 1)", &data)),
        ("no-data", npy("<f4", "False", "(4, 3)", &[])),
        ("truncated", good[..good.len() - 1].to_vec()),
        ("half-the-rows", good[..good.len() - 24].to_vec()),
        // 2^32 · 2^32 · 4 bytes is 0 modulo 2^64.
        ("shape-wraps", npy("<f4", "False", "(4294967296, 4294967296)", &data)),
        ("shape-overflows", npy("<f4", "False", "(18446744073709551615, 3)", &data)),
        ("shape-overflows-64-bits", npy("<f4", "False", "(99999999999999999999999, 3)", &data)),
        ("shape-is-a-petabyte", npy("<f4", "False", "(1048576, 268435456)", &data)),
        ("i4", npy("<i4", "False", "(4, 3)", &data)),
        ("bool", npy("|b1", "False", "(4, 3)", &data[..12])),
        ("complex", npy("<c8", "False", "(2, 3)", &data)),
        ("object", npy("|O", "False", "(4, 3)", &data)),
        ("no-dtype", npy("<q9", "False", "(4, 3)", &data)),
        ("record", npy_with_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 3), }", &data)),
        ("nesting", npy_with_header(&"(".repeat(50_000), &data)),
    ];
    for (name, bytes) in cases {
        let file = dir.file(name, &bytes);
        refused(1, &["factor", &file, "--rank", "1"], &[name]);
        refused(1, &["factor", UP, "--rank", "1", "--evaluate", &file], &[name]);
    }
    // The same bytes, untouched, are a matrix.
    let file = dir.file("good", &good);
    report(&["factor", &file, "--rank", "1"]);
}

#[test]
fn files_that_are_no_files() {
    let dir = Dir::new("nofile");
    let missing = dir.path("missing.npy");
    refused(1, &["factor", &missing, "--rank", "1"], &["missing.npy"]);
    refused(1, &["factor", dir.0.to_str().unwrap(), "--rank", "1"], &["nofile"]);
    refused(1, &["factor", UP, "--rank", "1", "--evaluate", &missing], &["missing.npy"]);
    refused(1, &["factor", "two\nlines.npy", "--rank", "1"], &["lines.npy"]);
}

#[test]
fn too_few_axes() {
    let dir = Dir::new("axes");
    let vector = dir.file("vector.npy", &npy("<f4", "False", "(12,)", &f32_bytes(12, 1, |i, _| i as f32)));
    let scalar = dir.file("scalar.npy", &npy("<f4", "False", "()", &1f32.to_le_bytes()));
    refused(1, &["factor", &vector, "--rank", "1"], &["vector.npy", "[12]", "two axes"]);
    refused(1, &["factor", &scalar, "--rank", "1"], &["scalar.npy"]);
    refused(1, &["factor", UP, "--rank", "1", "--evaluate", &vector], &["vector.npy", "[12]"]);
}

#[test]
fn inputs_of_the_wrong_width() {
    let dir = Dir::new("width");
    let x = dir.file("x.npy", &f32_npy(8, 100, |i, j| (i + j) as f32));
    refused(1, &["factor", UP, "--rank", "1", "--evaluate", &x], &["x.npy", "100", "384"]);
    // A batch of sequences is its rows.
    let rows = |i: usize, j: usize| ((i * 31 + j * 17) as f32).sin();
    let flat = dir.file("flat.npy", &f32_npy(6, 384, rows));
    let batch = dir.file("batch.npy", &npy("<f4", "False", "(2, 3, 384)", &f32_bytes(6, 384, rows)));
    let on = |x: &str| report(&["factor", UP, "--rank", "9", "--evaluate", x])["activation"]["cosine"].clone();
    assert_eq!(on(&flat), on(&batch));
}

// ---------------------------------------------------------------- output

#[test]
fn out_that_cannot_be_written() {
    let dir = Dir::new("out");
    let plain = dir.file("plain", b"text");
    refused(1, &["factor", UP, "--rank", "1", "--out", &plain], &["plain"]);
    refused(1, &["factor", UP, "--rank", "1", "--out", &format!("{plain}/below")], &["plain"]);
    // A directory where u.npy should go: one line, and nothing half-written stays.
    let out = dir.path("taken");
    fs::create_dir_all(format!("{out}/u.npy/x")).unwrap();
    refused(1, &["factor", UP, "--rank", "1", "--out", &out], &["u.npy"]);
    assert_eq!(names(&out), ["u.npy"]);
    assert_eq!(fs::read(&plain).unwrap(), b"text");
}

#[test]
fn out_is_created_and_replaced() {
    let dir = Dir::new("replace");
    let out = dir.path("a/b/c");
    for rank in ["2", "3"] {
        report(&["factor", UP, "--rank", rank, "--out", &out]);
        assert_eq!(factors(&out).1.len().to_string(), rank);
        let filed: Value = serde_json::from_str(&fs::read_to_string(format!("{out}/report.json")).unwrap()).unwrap();
        assert_eq!(filed["rank"].to_string(), rank);
        assert_eq!(names(&out), ["report.json", "s.npy", "u.npy", "vt.npy"]);
    }
}

#[test]
fn the_table_is_for_people() {
    let dir = Dir::new("table");
    let out = dir.path("out");
    let args =
        ["factor", UP, "--ratio", "3.2", "--method", "full", "--evaluate", HELDOUT, "--repeat", "3", "--out", &out];
    let table = succeeds(&args);
    // Every value starts in the same column.
    let column = table.lines().next().unwrap().find(UP).unwrap();
    for line in table.lines() {
        let (name, value) = line.split_at(column);
        assert!(name.ends_with("  ") && !value.starts_with(' ') && !value.is_empty(), "{line:?}");
    }
    let row = |name: &str| {
        let line = table.lines().find(|l| l.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{table}"))[column..].to_owned()
    };
    assert_eq!(row("shape"), "1536 × 384, f16");
    assert_eq!(row("rank"), "95 of 384");
    assert!(row("method").starts_with("full ("), "{table}");
    assert!(row("relative error").starts_with("0.6069") && row("relative error").contains("exact"), "{table}");
    assert_eq!(row("parameters"), "589824 -> 182495");
    assert_eq!(row("ratio"), "3.23x");
    assert!(row("time").contains("median of 3 runs"), "{table}");
    assert!(row("peak memory").ends_with('B'), "{table}");
    assert!(row("cosine").starts_with("0.92"), "{table}");
    assert!(row("output error").starts_with("0.38"), "{table}");
    assert!(row("score").starts_with("0.96"), "{table}");
    assert!(row("written").contains(&out), "{table}");
}

#[test]
fn explain_prints_the_plan_first() {
    let args = ["factor", UP, "--ratio", "3.2", "--explain"];
    let text = succeeds(&args);
    let (plan, table) = text.split_once("\n\n").expect("a blank line between plan and table");
    for method in ["full", "gram", "randomized"] {
        assert!(plan.contains(method), "{plan}");
    }
    assert!(table.contains("relative error"), "{text}");
    let r = report(&args);
    assert_eq!(r["plan"].as_array().unwrap().len(), plan.lines().count());
    assert!(report(&args[..4]).get("plan").is_none());
}

#[test]
fn a_sketch_that_is_not_used_is_said() {
    let r = report(&["factor", UP, "--rank", "5", "--method", "full", "--sketch", "srht"]);
    assert!(r["notes"].to_string().contains("--sketch srht had no effect"), "{r}");
    let r = report(&["factor", UP, "--rank", "5", "--method", "randomized", "--sketch", "srht"]);
    assert_eq!((&r["sketch"], &r["method"]), (&Value::from("srht"), &Value::from("randomized")));
    assert!(!r["notes"].to_string().contains("--sketch"), "{r}");
}

#[test]
fn factors_that_save_nothing_are_said() {
    // 1536 · 384 / 1921 = 307.04
    for (rank, said) in [("307", false), ("308", true)] {
        let r = report(&["factor", UP, "--rank", rank, "--method", "full"]);
        assert_eq!(r["notes"].to_string().contains("no smaller than the weight"), said, "{r}");
    }
}

#[test]
fn options_reach_the_work() {
    let args = ["factor", UP, "--rank", "5", "--method", "randomized"];
    let more =
        ["--oversample", "3", "--power-iterations", "1", "--threads", "1", "--repeat", "2", "--precision", "f64"];
    let r = report(&[&args[..], &more[..]].concat());
    assert_eq!((&r["oversample"], &r["power_iterations"]), (&Value::from(3), &Value::from(1)));
    assert_eq!((&r["threads"], &r["repeat"], &r["precision"]), (&Value::from(1), &Value::from(2), &Value::from("f64")));
    assert_eq!(report(&[&args[..], &["--threads", "3"]].concat())["threads"], 3);
}

#[test]
fn info_says_what_there_is() {
    let r: Value = serde_json::from_str(&succeeds(&["info", "--json"])).unwrap();
    assert_eq!(r["version"], env!("CARGO_PKG_VERSION"));
    assert!(number(&r, "/threads") >= 1.0);
    assert!(r["isa_available"].as_array().unwrap().contains(&r["isa"]), "{r}");
    assert!(r["gpu"].as_str().unwrap().starts_with("none"));
    assert_eq!(r["mpi"], "none");
    let table = succeeds(&["info"]);
    for name in ["tensorslim", "instructions", "threads", "memory", "GPU", "MPI"] {
        assert!(table.lines().any(|l| l.starts_with(name)), "{table}");
    }
}

/// Nobody reads stdout: no panic, no error, and the files are there.
#[test]
fn broken_pipe() {
    let dir = Dir::new("pipe");
    let out = dir.path("out");
    for args in [&["factor", UP, "--rank", "3", "--explain", "--out", &out][..], &["info"], &["--help"], &["--version"]]
    {
        let mut command = command(args);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
        let ran = finish(command);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}");
    }
    assert_eq!(names(&out), ["report.json", "s.npy", "u.npy", "vt.npy"]);
}

#[cfg(target_os = "linux")]
#[test]
fn full_disk() {
    for args in [&["factor", UP, "--rank", "3"][..], &["info"], &["--help"]] {
        let mut command = command(args);
        command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
        let ran = finish(command);
        assert_eq!(ran.code, Some(1), "{args:?}");
        one_line(&ran.err, args);
    }
}

// ---------------------------------------------------------------- usage

#[test]
fn bad_usage() {
    for (args, word) in [
        (&["factor"][..], "--rank"),
        (&["factor", UP], "--rank"),
        (&["factor", "--rank", "3"], "W.npy"),
        (&["factor", "", "--rank", "3"], "W.npy"),
        (&["factor", UP, "--rank", "0"], "--rank"),
        (&["factor", UP, "--rank", "-3"], "--rank"),
        (&["factor", UP, "--rank", "2.5"], "--rank"),
        (&["factor", UP, "--rank", "99999999999999999999999"], "--rank"),
        (&["factor", UP, "--rank"], "--rank"),
        (&["factor", UP, "--rank", "3", "--ratio", "2"], "--ratio"),
        (&["factor", UP, "--ratio", "2", "--energy", "0.5"], "--energy"),
        (&["factor", UP, "--ratio", "0"], "--ratio"),
        (&["factor", UP, "--ratio", "-1.5"], "--ratio"),
        (&["factor", UP, "--ratio", "NaN"], "--ratio"),
        (&["factor", UP, "--ratio", "inf"], "--ratio"),
        (&["factor", UP, "--energy", "0"], "--energy"),
        (&["factor", UP, "--energy", "1.5"], "--energy"),
        (&["factor", UP, "--energy", "NaN"], "--energy"),
        (&["factor", UP, "--tolerance", "0"], "--tolerance"),
        (&["factor", UP, "--tolerance", "1"], "--tolerance"),
        (&["factor", UP, "--rank", "2", "--max-rank", "3"], "--max-rank"),
        (&["factor", UP, "--tolerance", "0.5", "--max-rank", "0"], "--max-rank"),
        (&["factor", UP, "--rank", "3", "--threads", "0"], "--threads"),
        (&["factor", UP, "--rank", "3", "--threads", "1000000"], "--threads"),
        (&["factor", UP, "--rank", "3", "--repeat", "0"], "--repeat"),
        (&["factor", UP, "--rank", "3", "--seed", "-1"], "--seed"),
        (&["factor", UP, "--rank", "3", "--oversample", "-1"], "--oversample"),
        (&["factor", UP, "--rank", "3", "--power-iterations", "1000000"], "--power-iterations"),
        (&["factor", UP, "--rank", "3", "--method", "lanczos"], "lanczos"),
        (&["factor", UP, "--rank", "3", "--sketch", "sparse"], "sparse-sign"),
        (&["factor", UP, "--rank", "3", "--precision", "f16"], "f16"),
        (&["factor", UP, "--rank", "3", "--out", "x", "--dtype", "i8"], "i8"),
        (&["factor", UP, "--rank", "3", "--dtype", "f16"], "--out"),
        (&["factor", UP, "--rank", "3", "--device", "tpu"], "--device"),
        (&["factor", UP, UP, "--rank", "3"], "unexpected"),
        (&["factor", UP, "--rank", "3", "--rank", "3"], "--rank"),
        (&["unknown"], "unknown"),
        (&["info", "--rank"], "--rank"),
    ] {
        refused(2, args, &[word]);
    }
}

#[test]
fn a_difference_of_two_weights_is_factored_as_if_it_were_one() {
    let dir = Dir::new("minus");
    // All numbers are multiples of 1/32 below 8, so that sums and differences are exact. The update has rank 2.
    let base = |i: usize, j: usize| ((31 * i + 17 * j) % 23) as f32 / 8.0;
    let first = |i: usize, j: usize| ((i % 5) as f32 - 2.0) * ((j % 3) as f32 - 1.0) / 4.0;
    let update = |i: usize, j: usize| first(i, j) + ((i % 2) * (j % 2)) as f32 / 32.0;
    let tuned = dir.file("tuned.npy", &f32_npy(90, 40, |i, j| base(i, j) + update(i, j)));
    let alone = dir.file("update.npy", &f32_npy(90, 40, update));
    let base = dir.file("base.npy", &f32_npy(90, 40, base));

    let minus = ["factor", &tuned, "--minus", &base];
    let found = report(&[&minus[..], &["--above", "0.01"]].concat());
    assert_eq!((&found["rank"], &found["minus"]), (&Value::from(2), &Value::from(base.as_str())));
    assert!(number(&found, "/relative_error") < 1e-6);
    for options in
        [&["--rank", "1"][..], &["--tolerance", "0.2", "--memory-limit", "64M"], &["--rank", "2", "--method", "full"]]
    {
        let found = report(&[&minus[..], options].concat());
        let same = report(&[&["factor", &alone], options].concat());
        assert_eq!(found["rank"], same["rank"], "{options:?}");
        near(number(&found, "/relative_error"), number(&same, "/relative_error"), 1e-5);
        near(number(&found, "/norm"), number(&same, "/norm"), 1e-5);
    }
    let table = succeeds(&[&minus[..], &["--rank", "1"]].concat());
    assert!(table.contains("minus") && table.contains("base.npy"), "{table}");
    let nothing = report(&["factor", &base, "--minus", &base, "--above", "0.01"]);
    assert_eq!((&nothing["rank"], number(&nothing, "/norm")), (&Value::from(1), 0.0));
    assert!(nothing["notes"].to_string().contains("no singular value"), "{nothing}");

    let out = dir.path("base.npy");
    refused(1, &[&minus[..], &["--rank", "1", "--out", &out]].concat(), &["base.npy", "is a file", "--out"]);
    let other = dir.file("other.npy", &f32_npy(40, 90, |_, _| 1.0));
    refused(
        1,
        &["factor", &tuned, "--minus", &other, "--rank", "1"],
        &["other.npy", "[40, 90]", "[90, 40]", "--minus"],
    );
    refused(1, &["factor", &tuned, "--minus", &dir.path("none.npy"), "--rank", "1"], &["none.npy"]);
    refused(2, &[&minus[..], &["--rank", "1", "--evaluate", &other]].concat(), &["--minus", "--evaluate"]);
    let auto = ["--rank", "1", "--calibration", &other, "--blend", "auto"];
    refused(1, &[&minus[..], &auto].concat(), &["--blend auto", "--minus"]);
    refused(1, &[&minus[..], &["--rank", "1", "--device", "cuda"]].concat(), &["--device cuda", "--minus"]);
    // Under the calibration of more inputs than outputs the difference is read into memory.
    let samples = dir.file("samples.npy", &f32_npy(200, 90, |i, j| ((i * 31 + j * 17) as f32 * 0.7).sin()));
    let waves = dir.file("waves.npy", &f32_npy(40, 90, |i, j| 1.0 + ((i * 90 + j) as f32 * 0.3).sin()));
    let calibrated = ["--rank", "2", "--calibration", &samples, "--method", "full"];
    let of_difference = report(&[&["factor", &waves, "--minus", &other], &calibrated[..]].concat());
    let formed = dir.file("formed.npy", &f32_npy(40, 90, |i, j| (1.0 + ((i * 90 + j) as f32 * 0.3).sin()) - 1.0));
    let of_formed = report(&[&["factor", &formed], &calibrated[..]].concat());
    for field in ["/relative_error", "/calibration/relative_error"] {
        near(number(&of_difference, field), number(&of_formed, field), 1e-6);
    }
    let holes = dir.file("holes.npy", &f32_npy(90, 40, |i, j| if (i, j) == (5, 7) { f32::NAN } else { 1.0 }));
    refused(
        1,
        &["factor", &tuned, "--minus", &holes, "--rank", "1"],
        &["tuned.npy minus", "holes.npy", "(5, 7)", "NaN"],
    );
    refused(2, &["factor", &tuned, "--above", "-1"], &["--above"]);
}

#[test]
fn help_is_no_failure_and_nothing_is() {
    for args in [&["--help"][..], &["help"], &["factor", "--help"], &["info", "-h"], &["help", "factor"]] {
        assert!(succeeds(args).contains("Usage: tensorslim"), "{args:?}");
    }
    assert_eq!(succeeds(&["--version"]), concat!("tensorslim ", env!("CARGO_PKG_VERSION"), "\n"));
    // Nothing asked for: the help, on stderr.
    let ran = run(&[]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("Usage: tensorslim"), "{}", ran.err);
}

const UP_CALIBRATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ffn_up_calibration.npy");

/// Samples, statistics of them, and the blend that they choose: figures as in `tests/data/README.md`.
#[test]
fn calibration() {
    let dir = Dir::new("calibration");
    let (stats, twice) = (dir.path("up.stats"), dir.path("twice.stats"));
    let down = UP.replace("ffn_up", "ffn_down");
    let made: Value =
        serde_json::from_str(&succeeds(&["calibrate", UP_CALIBRATION, "--out", &stats, "--json"])).unwrap();
    assert_eq!(
        (&made["samples"], &made["features"], &made["dead"]),
        (&Value::from(1024), &Value::from(384), &Value::from(0))
    );
    let table = succeeds(&["calibrate", &stats, UP_CALIBRATION, "--out", &twice]);
    assert!(table.contains("2048"), "{table}");

    let base = ["factor", UP, "--ratio", "3.2", "--evaluate", HELDOUT];
    let with = |more: &[&str]| report(&[&base, more].concat());
    let by_samples = with(&["--calibration", UP_CALIBRATION]);
    let by_statistics = with(&["--calibration", &stats]);
    for field in ["/relative_error", "/activation/cosine", "/calibration/relative_error"] {
        assert_eq!(by_samples.pointer(field), by_statistics.pointer(field), "{field}");
    }
    near(number(&by_samples, "/calibration/relative_error"), 0.17475, 0.01 * 0.17475);
    assert!(number(&by_samples, "/activation/relative_error") <= 0.196);
    assert!(number(&by_samples, "/activation/cosine") >= 0.9806);
    // The optimum for the weight is not that for the outputs: 1 % either way.
    near(number(&by_samples, "/activation_plain/relative_error"), 0.38143, 0.01 * 0.38143);
    // Twice the same samples weigh the same.
    let again = with(&["--calibration", &twice]);
    near(number(&again, "/calibration/relative_error"), number(&by_samples, "/calibration/relative_error"), 1e-5);

    let auto = with(&["--calibration", UP_CALIBRATION, "--blend", "auto"]);
    assert_eq!(auto["calibration"]["blends"].as_array().unwrap().len(), 9);
    assert!(number(&auto, "/activation/relative_error") <= 1.02 * number(&by_samples, "/activation/relative_error"));
    let plain = with(&["--calibration", UP_CALIBRATION, "--blend", "0"]);
    near(number(&plain, "/activation/relative_error"), 0.38143, 4e-3);
    let diagonal = with(&["--calibration", UP_CALIBRATION, "--whitening", "diagonal"]);
    assert!(number(&diagonal, "/activation/relative_error") < number(&plain, "/activation/relative_error"));

    let quality = report(&["factor", UP, "--quality", "0.98", "--calibration", &stats, "--evaluate", HELDOUT]);
    assert_eq!(quality["rank"], 92);
    assert!(number(&quality, "/activation/cosine") >= 0.98);

    refused(1, &["factor", UP, "--quality", "0.98"], &["--quality", "--calibration or --evaluate"]);
    let auto = ["factor", UP, "--calibration", UP_CALIBRATION, "--blend", "auto"];
    refused(1, &[&auto[..], &["--quality", "0.9"]].concat(), &["--blend auto", "--quality", "--rank"]);
    let one = dir.file("one.npy", &f32_npy(1, 384, |_, j| j as f32));
    let args = ["factor", UP, "--rank", "9", "--calibration", &one, "--blend", "auto"];
    refused(1, &args, &["one.npy", "one sample", "--blend auto", "two at least"]);
    let nan = dir.file("nan.npy", &f32_npy(5, 384, |_, j| if j == 3 { f32::NAN } else { 1.0 }));
    let args = ["factor", UP, "--rank", "9", "--calibration", &nan, "--skip-non-finite"];
    refused(1, &args, &["nan.npy", "not one of 5 samples is finite"]);
    refused(1, &["factor", UP, "--rank", "9", "--calibration", &stats, "--blend", "auto"], &["up.stats", "samples"]);
    refused(1, &["factor", &down, "--rank", "9", "--calibration", &stats], &["1536", "384"]);
    refused(2, &["factor", UP, "--rank", "9", "--calibration", &stats, "--blend", "2"], &["--blend"]);
    refused(2, &["factor", UP, "--rank", "9", "--blend", "0.5"], &["--calibration"]);
    std::fs::write(&twice, [&b"TSLIMCAL"[..], &[7; 60]].concat()).unwrap();
    refused(1, &["factor", UP, "--rank", "9", "--calibration", &twice], &["twice.stats", "version"]);
}

/// Gradients of outputs as samples and as statistics, the error in their norm, and what they cannot be combined with.
#[test]
fn output_calibration() {
    let dir = Dir::new("output-calibration");
    // Numbers without a pattern, and outputs that matter more than others.
    let noise = |i: usize, j: usize| {
        let bits =
            (i * 1536 + j + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((bits >> 40) as f32 / (1u32 << 23) as f32 - 1.0) / (1.0 + (j % 97) as f32 / 8.0)
    };
    let (gradients, stats) = (dir.file("g.npy", &f32_npy(600, 1536, noise)), dir.path("g.stats"));
    succeeds(&["calibrate", &gradients, "--out", &stats]);
    let base = ["factor", UP, "--ratio", "3.2", "--calibration", UP_CALIBRATION];
    let with = |more: &[&str]| report(&[&base, more].concat());
    let by_samples = with(&["--output-calibration", &gradients, "--evaluate", HELDOUT]);
    let by_statistics = with(&["--output-calibration", &stats]);
    for field in ["/relative_error", "/calibration/relative_error", "/calibration/output_samples"] {
        assert_eq!(by_samples.pointer(field), by_statistics.pointer(field), "{field}");
    }
    assert_eq!(by_samples["calibration"]["output_samples"], 600);
    // The weighted loss is less than that of factors that know the inputs alone, the plain output error is more.
    let one = with(&["--evaluate", HELDOUT]);
    assert!(number(&by_samples, "/activation/relative_error") > number(&one, "/activation/relative_error"));
    let table = succeeds(&[&base[..], &["--output-calibration", &stats]].concat());
    assert!(table.contains("outputs weighted") && table.contains("600 samples"), "{table}");
    let alone = report(&["factor", UP, "--quality", "0.95", "--output-calibration", &stats]);
    assert!(number(&alone, "/calibration/cosine") >= 0.95);
    // A difference is read into memory: of a weight and nothing, that of the weight.
    let zero = dir.file("zero.npy", &f32_npy(1536, 384, |_, _| 0.0));
    let full = with(&["--output-calibration", &stats, "--method", "full"]);
    let minus = with(&["--output-calibration", &stats, "--method", "full", "--minus", &zero]);
    near(number(&minus, "/calibration/relative_error"), number(&full, "/calibration/relative_error"), 1e-5);
    let (default, best) =
        (number(&by_statistics, "/calibration/relative_error"), number(&full, "/calibration/relative_error"));
    assert!(default <= 1.01 * best, "{default} {best}");

    let tall = dir.file("tall.npy", &f32_npy(3, 384, |_, _| 1.0));
    refused(1, &[&base[..], &["--output-calibration", &tall]].concat(), &["tall.npy", "1536 outputs"]);
    let auto = [&base[..], &["--output-calibration", &stats, "--blend", "auto"]].concat();
    refused(1, &auto, &["--blend auto", "--output-calibration"]);
    let small = [&base[..], &["--output-calibration", &stats, "--memory-limit", "60M"]].concat();
    refused(1, &small, &["--output-calibration needs the weight whole"]);
    let nan = dir.file("nan.npy", &f32_npy(5, 1536, |_, _| f32::NAN));
    let args = [&base[..], &["--output-calibration", &nan, "--skip-non-finite"]].concat();
    refused(1, &args, &["nan.npy", "not one of 5 samples is finite", "--output-calibration"]);
}

#[test]
fn forms_of_the_factors() {
    let dir = Dir::new("forms");
    for (form, files) in
        [("split", &["up.npy", "down.npy"][..]), ("pivot", &["rows.npy", "coefficients.npy", "pivots.npy"])]
    {
        let out = dir.path(form);
        let r = report(&["factor", UP, "--rank", "9", "--form", form, "--out", &out]);
        let names: Vec<&str> =
            r["written"]["files"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(names, files);
        let mut found: Vec<String> =
            std::fs::read_dir(&out).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        let mut want: Vec<&str> = files.iter().copied().chain(["report.json"]).collect();
        want.sort_unstable();
        assert_eq!(found, want);
    }
    refused(2, &["factor", UP, "--rank", "9", "--form", "pivot"], &["--out"]);
}

/// What a report lists goes with it when factors of another form take its place; whatever else is in the directory stays.
#[test]
fn another_form_takes_the_place_of_the_one_before() {
    let dir = Dir::new("other-form");
    let out = dir.path("out");
    let write = |form: &str| report(&["factor", UP, "--rank", "9", "--form", form, "--out", &out]);
    write("svd");
    fs::write(format!("{out}/up.npy"), b"somebody's own").unwrap();
    write("pivot");
    assert_eq!(names(&out), ["coefficients.npy", "pivots.npy", "report.json", "rows.npy", "up.npy"]);
    write("svd");
    assert_eq!(names(&out), ["report.json", "s.npy", "u.npy", "up.npy", "vt.npy"]);
    // A report of another program lists nothing of ours.
    for foreign in ["{\"written\": {\"files\": [\"u.npy\", \"../w.npy\"]}}", "[1", "{\"version\": \"1\", \"rank\": 3}"]
    {
        fs::write(format!("{out}/report.json"), foreign).unwrap();
        let args = ["factor", UP, "--rank", "9", "--form", "pivot", "--out", &out];
        refused(1, &args, &["no report of this program", "--overwrite"]);
        succeeds(&[&args[..], &["--overwrite"]].concat());
        assert!(names(&out).contains(&"u.npy".to_string()), "{foreign}");
        fs::remove_file(format!("{out}/report.json")).unwrap();
    }
}

/// The folder of a model as it is saved, one file for each entry: layers and whatever stands beside them.
fn model(dir: &Dir) -> String {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    // A sum of twelve is nearly normal.
    let mut normal =
        move |count: usize| -> Vec<f32> { (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect() };
    let mut put = |name: &str, descr: &str, fortran: &str, shape: &str| {
        let count = shape.split(|c: char| !c.is_ascii_digit()).filter_map(|d| d.parse::<usize>().ok()).product();
        let values = normal(count);
        let bytes: Vec<u8> = match &descr[1..] {
            "f2" => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            "f4" => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            other => vec![1; count * other.trim_start_matches(char::is_alphabetic).parse::<usize>().unwrap()],
        };
        let path = dir.0.join("model").join(format!("{name}.npy"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, npy(descr, fortran, shape, &bytes)).unwrap();
    };
    for (name, shape) in [
        ("attn/q", "(64, 64)"),
        ("attn/k", "(64, 64)"),
        ("mlp/up", "(160, 64)"),
        ("mlp/down", "(64, 160)"),
        ("embed/tokens", "(300, 64)"),
        ("conv/weight", "(16, 8, 3, 3)"),
        ("conv/depthwise", "(512, 1, 3, 3)"),
        ("head/one", "(1, 768)"),
        ("head/two", "(2, 768)"),
        ("norm/weight", "(64,)"),
        ("logit_scale", "()"),
        ("empty", "(0, 64)"),
    ] {
        put(name, if name == "attn/k" { "<f2" } else { "<f4" }, "False", shape);
    }
    put("conv/fortran", "<f4", "True", "(16, 8, 3, 3)");
    put("embed/position_ids", "<i8", "False", "(1, 77)");
    put("attn/mask", "|b1", "False", "(16, 16)");
    put("attn/freqs", "<c8", "False", "(8, 4)");
    put("norm/num_batches_tracked", "<i8", "False", "()");
    put("index", "<i2", "False", "(9,)");
    put("quantized", "|i1", "False", "(64, 64)");
    put("tables", "<u2", "False", "(4, 4)");
    dir.path("model")
}

const LAYERS: [&str; 10] = [
    "attn/k",
    "attn/q",
    "conv/depthwise",
    "conv/fortran",
    "conv/weight",
    "embed/tokens",
    "head/one",
    "head/two",
    "mlp/down",
    "mlp/up",
];

/// What is no matrix of real numbers, and the beginning of why it is left alone.
const LEFT_ALONE: [(&str, &str); 10] = [
    ("attn/freqs", "elements of type c8 are no weights"),
    ("attn/mask", "elements of type b1 are no weights"),
    ("embed/position_ids", "elements of type i8 are no weights"),
    ("empty", "no elements"),
    ("index", "one axis: not a matrix"),
    ("logit_scale", "a scalar: not a matrix"),
    ("norm/num_batches_tracked", "a scalar: not a matrix"),
    ("norm/weight", "one axis: not a matrix"),
    ("quantized", "elements of type i1 are no weights"),
    ("tables", "elements of type u2 are no weights; if they are bits of bfloat16, add --bf16"),
];

/// The reasons of what a manifest has as kept, by name; nothing in it has failed.
#[track_caller]
fn kept(out: &str) -> Vec<(String, String)> {
    let manifest: Value = serde_json::from_slice(&fs::read(format!("{out}/manifest.json")).unwrap()).unwrap();
    let text = |e: &Value, field: &str| e[field].as_str().unwrap_or_default().to_string();
    let tensors = manifest["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), LAYERS.len() + LEFT_ALONE.len());
    assert!(tensors.iter().all(|e| e["status"] != "failed"), "{manifest}");
    tensors.iter().filter(|e| e["status"] == "kept").map(|e| (text(e, "name"), text(e, "why"))).collect()
}

/// Everything that a model's folder holds goes through, with whatever is to be left alone, and results inside of the folder, those of the
/// runs before too.
#[test]
fn the_folder_of_a_model() {
    let dir = Dir::new("model");
    let model = model(&dir);
    let mut runs = 0;
    for rule in [["--ratio", "2"], ["--rank", "64"], ["--budget", "3"]] {
        for filter in [&[][..], &["--keep", "*embed*", "--keep", "conv/*"], &["--only", "attn/*", "--only", "head/*"]] {
            let out = format!("{model}/factors{runs}");
            let args = [&["batch", &model, "--out", &out, "--progress", "none", "--json"], &rule[..], filter].concat();
            let first: Value = serde_json::from_str(&succeeds(&args)).unwrap();
            let again: Value = serde_json::from_str(&succeeds(&[&args[..], &["--resume"]].concat())).unwrap();
            assert_eq!((&again["skipped"], &again["done"]), (&first["done"], &first["done"]), "{args:?}");
            assert_eq!(first["left_out"].as_array().unwrap().len(), runs, "{first}");
            assert_eq!(again["left_out"].as_array().unwrap().len(), runs + 1, "{again}");
            runs += 1;

            let asked = |name: &str| match filter {
                [] => true,
                ["--keep", ..] => !name.contains("embed") && !name.starts_with("conv/"),
                _ => name.starts_with("attn/") || name.starts_with("head/"),
            };
            let kept = kept(&out);
            let why = |name: &str| kept.iter().find(|(of, _)| of == name).map(|(_, why)| why.as_str());
            for (name, reason) in LEFT_ALONE {
                let reason = if asked(name) { reason } else { "not asked for" };
                assert!(why(name).is_some_and(|why| why.starts_with(reason)), "{args:?} {name}: {:?}", why(name));
            }
            for name in LAYERS {
                match (why(name), rule[0]) {
                    (Some(why), _) if !asked(name) => assert_eq!(why, "not asked for", "{name}"),
                    (Some(why), "--ratio") if name.starts_with("head/") => {
                        assert!(why.contains("cannot be 2 times smaller"), "{name}: {why}");
                    }
                    (Some(why), "--budget") => assert!(why.starts_with("whole: "), "{name}: {why}"),
                    (why, _) => assert_eq!(why, None, "{args:?} {name}"),
                }
            }
        }
    }
    // All of a weight that has less than was asked for, which its report says.
    for (name, rank, shape) in [("head%2Fone", 1, "1 × 768"), ("conv%2Fdepthwise", 9, "512 × 9"), ("attn%2Fq", 64, "")]
    {
        let read = fs::read(format!("{model}/factors3/{name}/report.json")).unwrap();
        let r: Value = serde_json::from_slice(&read).unwrap();
        assert_eq!(r["rank"], rank, "{r}");
        let said = r["notes"].to_string();
        let note = format!("rank 64 was asked for, and {shape} has no more than {rank}");
        assert_eq!(said.contains(&note), !shape.is_empty(), "{said}");
    }
    let both = ["conv%2Fweight", "conv%2Ffortran"].map(|name| matrix(&format!("{model}/factors0/{name}/vt.npy")));
    assert_eq!((both[0].nrows(), both[0].ncols()), (both[1].nrows(), both[1].ncols()));
}

/// What is excluded is not even looked at, what is damaged is an error, and what may be a weight is not passed over in silence.
#[test]
fn only_what_is_asked_for_is_judged() {
    let dir = Dir::new("judged");
    let folder = dir.path("m");
    fs::create_dir_all(&folder).unwrap();
    let good = f32_npy(24, 16, |i, j| ((i * i + 3 * j) as f32).sin());
    dir.file("m/good.npy", &good);
    dir.file("m/torn.npy", &good[..good.len() - 1]);
    dir.file("m/counts.npy", &npy("<i8", "False", "(3,)", &[0; 23]));
    dir.file("m/void.npy", &npy("<V2", "False", "(8, 6)", &[0; 96]));
    dir.file("m/small.npy", &npy("<f1", "False", "(8, 12)", &[0; 96]));
    let batch = |out: &str, more: &[&str]| {
        let out = dir.path(out);
        run(&[&["batch", &folder, "--rank", "3", "--out", &out, "--progress", "none"], more].concat())
    };
    let ran = batch("all", &[]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let lines: Vec<&str> = ran.err.lines().collect();
    for (line, words) in lines.iter().zip([
        &["counts: ", "needs 24 bytes", "cut short"][..],
        &["small: ", "float8", "a.astype('f4')"],
        &["torn: ", "cut short"],
        &["void: ", "without a type ('<V2')", "add --bf16"],
        &["4 of 5 weights failed"],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)) && !line.contains("::"), "{line}");
    }
    assert_eq!(lines.len(), 5);
    for (i, more) in
        [&["--only", "good"][..], &["--keep", "[!g]*"], &["--only", "nothing*"], &["--only", "good", "--keep", "*"]]
            .iter()
            .enumerate()
    {
        let ran = batch(&format!("some{i}"), more);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{more:?}");
        let manifest = fs::read_to_string(dir.path(&format!("some{i}/manifest.json"))).unwrap();
        assert_eq!(manifest.matches("not asked for").count(), if i < 2 { 4 } else { 5 }, "{manifest}");
    }
    // With the type given, the bytes are numbers; a name says it without that.
    assert_eq!(batch("bf16", &["--bf16", "--only", "void"]).code, Some(0));
}

/// Factors below an input are no weights: those of `factor` by their report, and what else is in that directory is one.
#[test]
fn factors_below_an_input_are_no_weights() {
    let dir = Dir::new("below");
    let folder = dir.path("m");
    fs::create_dir_all(format!("{folder}/sub")).unwrap();
    let w = f32_npy(24, 16, |i, j| ((i * i + 3 * j) as f32).sin());
    let a = dir.file("m/a.npy", &w);
    dir.file("m/sub/b.npy", &w);
    report(&["factor", &a, "--rank", "3", "--out", &format!("{folder}/sub")]);
    let args = ["batch", &folder, "--rank", "3", "--progress", "none", "--out"];
    let with = |out: &str| succeeds(&[&args[..], &[out]].concat());
    let table = with(&dir.path("out"));
    assert!(table.lines().any(|l| l.starts_with("weights") && l.ends_with(" 2")), "{table}");
    let left: Vec<&str> = table.lines().filter(|l| l.starts_with("left out")).collect();
    assert!(left.len() == 1 && left[0].contains("sub (u.npy, s.npy, vt.npy: what its report lists)"), "{table}");
    // A link to the output directory is that directory.
    #[cfg(unix)]
    {
        fs::create_dir_all(dir.path("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path("elsewhere"), format!("{folder}/link")).unwrap();
        with(&dir.path("elsewhere"));
        let again = succeeds(&[&args[..], &[&dir.path("elsewhere"), "--resume"]].concat());
        assert!(again.contains("2 (2 of an earlier run)") && again.contains("the output directory"), "{again}");
    }
    // Where the weights are, results would take the place of directories of their names.
    refused(1, &[&args[..], &[&folder]].concat(), &["m: is the output directory", "--out", "m/factors"]);
    assert!(Path::new(&format!("{folder}/sub/b.npy")).exists());
}

/// Changes bytes of a file and leaves the time of change as it was.
fn patch(path: &str, at: u64, bytes: &[u8]) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = fs::File::options().write(true).open(path).unwrap();
    let changed = file.metadata().unwrap().modified().unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
    file.set_modified(changed).unwrap();
}

/// 41 MB of f16 from a few directions: elements by rows.
fn large() -> Vec<u8> {
    let direction = |seed: usize| (0..1024).map(|j| ((j * seed) as f32 * 0.37).sin()).collect::<Vec<_>>();
    let directions: Vec<Vec<f32>> = (1..4).map(direction).collect();
    let mut bytes = Vec::with_capacity(2 * 20_000 * 1024);
    for i in 0..20_000 {
        let c: Vec<f32> = (1..4).map(|r| ((i * r) as f32 * 0.11).cos() / r as f32).collect();
        for j in 0..1024 {
            let x: f32 = c.iter().zip(&directions).map(|(c, d)| c * d[j]).sum();
            let noise = ((i * 1024 + j) as u32).wrapping_mul(2_654_435_761) >> 16;
            bytes.extend(half::f16::from_f32(x + noise as f32 * 1e-6).to_le_bytes());
        }
    }
    bytes
}

const NAN: [u8; 2] = half::f16::NAN.to_le_bytes();

/// A run that is killed as soon as there is a state.
fn stopped(args: &[&str], state: &str) {
    for _ in 0..20 {
        let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !Path::new(state).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if Path::new(state).exists() {
            return;
        }
    }
    panic!("no state is left of 20 runs: {args:?}");
}

/// A pass that ends in the middle leaves a state, and one that goes on from it ends in the bytes of a pass that went through. A state of a file that
/// has changed since is passed over, even if its time of change was set back.
#[test]
fn a_single_pass_goes_on_from_its_checkpoint() {
    let dir = Dir::new("checkpoint");
    let w = dir.file("w.npy", &npy("<f2", "False", "(20000, 1024)", &large()));
    let start = fs::metadata(&w).unwrap().len() - 2 * 20_000 * 1024;
    let late = start + 2 * 1024 * 19_000;
    let state = dir.path("state");
    // Small sketches, of which a state is saved before the late row.
    let pass = ["factor", &w, "--rank", "2", "--oversample", "2", "--method", "single-pass"];
    let args = [&pass[..], &["--memory-limit", "48M", "--checkpoint", &state]].concat();
    let (clean, hurt) = (dir.path("clean"), dir.path("hurt"));
    let with = |out: &str, f: &dyn Fn(&[&str])| f(&[&args[..], &["--out", out]].concat());
    with(&clean, &|args| drop(succeeds(args)));
    let gone = || ["state", "state.lock"].iter().all(|name| !Path::new(&dir.path(name)).exists());
    assert!(gone(), "a pass that is through leaves no state");

    with(&hurt, &|args| stopped(args, &state));
    with(&hurt, &|args| drop(succeeds(args)));
    for file in ["u.npy", "s.npy", "vt.npy"] {
        let read = |dir: &str| fs::read(Path::new(dir).join(file)).unwrap();
        assert!(read(&clean) == read(&hurt), "{file}");
    }
    assert!(gone());

    with(&hurt, &|args| stopped(args, &state));
    patch(&w, start, &NAN);
    with(&hurt, &|args| refused(1, args, &["NaN", "(0, 0)"]));
    patch(&w, start, &[0; 2]);
    patch(&w, late, &NAN);
    with(&hurt, &|args| refused(1, args, &["w.npy", "NaN", "19000", "goes on from --checkpoint"]));

    fs::remove_file(&state).unwrap();
    refused(1, &["factor", UP, "--rank", "2", "--checkpoint", &state], &["--checkpoint", "single-pass"]);
    let fortran = dir.file("f.npy", &npy("<f4", "True", "(2, 3)", &[0; 24]));
    refused(
        1,
        &["factor", &fortran, "--rank", "1", "--method", "nystrom", "--checkpoint", &state],
        &["f.npy", "C order"],
    );
}

/// The same of statistics, over two files.
#[test]
fn statistics_go_on_from_their_checkpoint() {
    let dir = Dir::new("statistics");
    let x = dir.file("x.npy", &npy("<f2", "False", "(80000, 256)", &large()));
    let y = dir.file("y.npy", &f32_npy(500, 256, |i, j| ((i * j) as f32).sin()));
    let (state, clean, hurt) = (dir.path("state"), dir.path("clean"), dir.path("hurt"));
    let with = |out: &str, f: &dyn Fn(&[&str])| f(&["calibrate", &y, &x, "--checkpoint", &state, "--out", out]);
    let same = || {
        with(&hurt, &|args| assert!(succeeds(args).contains("80500")));
        assert!(fs::read(&clean).unwrap() == fs::read(&hurt).unwrap());
        assert!(!Path::new(&state).exists());
    };
    with(&clean, &|args| drop(succeeds(args)));
    assert!(!Path::new(&state).exists());
    with(&hurt, &|args| stopped(args, &state));
    let whole = fs::read(&state).unwrap();
    same();
    // Damaged, it is passed over.
    fs::write(&state, &whole[..whole.len() - 9]).unwrap();
    same();
    // What the state says is what is gone on from: here, that both files are through and the second gave nothing.
    let mut told = whole.clone();
    told[16..24].copy_from_slice(&2u64.to_le_bytes());
    let end = told.len() - 4;
    let sum = crc32fast::hash(&told[..end]).to_le_bytes();
    told[end..].copy_from_slice(&sum);
    fs::write(&state, &told).unwrap();
    with(&hurt, &|args| assert!(succeeds(args).contains("  500\n")));
    // A file that has changed, with the time of change set back: nothing of the state is taken.
    with(&hurt, &|args| stopped(args, &state));
    patch(&x, fs::metadata(&x).unwrap().len() - 2 * 80_000 * 256, &NAN);
    with(&hurt, &|args| refused(1, args, &["x.npy", "NaN", "(0, 0)"]));
}

/// A weight of 41 MB under calibration within 64 MiB, statistics and the program itself included, from samples of the same size.
#[test]
fn a_calibrated_weight_larger_than_the_limit() {
    let dir = Dir::new("calibrated-tiles");
    let w = dir.file("w.npy", &npy("<f2", "False", "(80000, 256)", &large()));
    let args = ["factor", &w, "--rank", "3", "--calibration", &w];
    let memory = report(&args);
    for more in [&[][..], &["--whitening", "diagonal"], &["--blend", "0.5"]] {
        let memory = if more.is_empty() { memory.clone() } else { report(&[&args, more].concat()) };
        let tiles = report(&[&args, more, &["--memory-limit", "64M"]].concat());
        assert!(tiles["reason"].as_str().unwrap().ends_with("read in tiles"), "{tiles}");
        for field in ["/relative_error", "/calibration/relative_error"] {
            near(number(&tiles, field), number(&memory, field), 1e-3 * number(&memory, field) + 1e-5);
        }
        assert!(number(&tiles, "/peak_rss_bytes") <= f64::from(64 << 20), "{tiles}");
    }
    refused(
        1,
        &[&args[..], &["--memory-limit", "27M"]].concat(),
        &["w.npy", "memory limit", "the least that would do"],
    );
    refused(1, &[&args[..], &["--memory-limit", "64M", "--blend", "auto"]].concat(), &["w.npy", "--blend auto"]);
}

// ---------------------------------------------------------------- parts, residuals, archives, folders

/// A made matrix of full rank with a spectrum that falls.
fn waves(m: usize, n: usize) -> Vec<u8> {
    f32_npy(m, n, |i, j| ((i * 37 + j * 101 + i * j) as f32 * 0.71).sin() / (1 + i + j) as f32)
}

#[test]
fn parts_of_a_spectrum_are_those_of_all_of_it() {
    let dir = Dir::new("parts");
    let w = dir.file("w.npy", &waves(40, 24));
    let (all, part) = (dir.path("all"), dir.path("part"));
    let out = |rule: &[&str], out: &str| report(&[&["factor", &w, "--precision", "f64", "--out", out], rule].concat());
    out(&["--rank", "24", "--method", "full"], &all);
    let (_, whole, _) = factors(&all);
    for (rule, range) in [
        (&["--part", "3..8"][..], 3..8),
        (&["--part", "smallest", "--rank", "5"][..], 19..24),
        (&["--part", "0..1"][..], 0..1),
    ] {
        let found = out(&[rule, &["--overwrite"]].concat(), &part);
        let (u, s, vt) = factors(&part);
        assert_eq!((&found["rank"], s.len()), (&Value::from(range.len()), range.len()), "{rule:?}");
        for (got, want) in s.iter().zip(&whole[range]) {
            near(*got, *want, 1e-9 * whole[0]);
        }
        assert!(departure(&u) < 1e-12 && departure(&vt.transpose().to_owned()) < 1e-12);
        near(number(&found, "/relative_error"), error_of(&matrix(&w), &part), 1e-6);
    }
    // Beyond the rank there are zeros.
    let ones = dir.file("ones.npy", &f32_npy(40, 24, |_, _| 1.0));
    let found = report(&["factor", &ones, "--part", "smallest", "--rank", "3"]);
    assert!(found["notes"].to_string().contains("are rounding"), "{found}");
    refused(2, &["factor", &w, "--part", "2..4", "--calibration", &w], &["--part", "--calibration"]);
    refused(1, &["factor", &w, "--part", "smallest", "--energy", "0.5"], &["--rank or --ratio"]);
    for rule in [&["--part", "smallest"][..], &["--part", "2..4", "--rank", "3"]] {
        refused(1, &[&["factor", &w], rule].concat(), &["--part"]);
    }
    refused(1, &["factor", &w, "--part", "20..30"], &["30", "24"]);
    for bad in ["4..4", "8..3", "largest", "1..", "-1..3"] {
        refused(2, &["factor", &w, &format!("--part={bad}")], &["--part", "16..32"]);
    }
    refused(1, &["factor", &w, "--part", "smallest", "--rank", "2", "--method", "gram"], &["gram", "full"]);
    refused(2, &["factor", &w], &["--rank"]);
}

#[test]
fn the_numerical_rank_is_found() {
    let dir = Dir::new("numerical");
    let w = dir.file("w.npy", &f32_npy(60, 30, |i, j| (i as f32 * 0.3 + j as f32 * 0.7).sin()));
    let found = report(&["factor", &w, "--numerical"]);
    assert_eq!((&found["rank"], &found["method"]), (&Value::from(2), &Value::from("full")));
    refused(2, &["factor", &w, "--numerical", "--rank", "2"], &["--numerical", "--rank"]);
}

#[test]
fn a_residual_is_what_the_factors_leave() {
    let dir = Dir::new("residual");
    let (w, out, left) = (dir.file("w.npy", &waves(40, 24)), dir.path("out"), dir.path("left.npy"));
    let with = ["factor", &w, "--rank", "4", "--residual", &left];
    let found = report(&[&with[..], &["--out", &out]].concat());
    let (u, s, vt) = factors(&out);
    let scaled = Mat::from_fn(40, 4, |i, j| u[(i, j)] * s[j]);
    let (a, rest) = (matrix(&w), matrix(&left));
    assert!((&a - &scaled * &vt - &rest).norm_max() < 1e-6);
    near(rest.norm_l2() / a.norm_l2(), number(&found, "/relative_error"), 1e-5);
    // A file that is there is somebody's.
    refused(1, &with, &["left.npy", "--overwrite"]);
    succeeds(&[&with[..], &["--overwrite"]].concat());
    refused(1, &["factor", &w, "--rank", "4", "--residual", &w, "--overwrite"], &["w.npy", "is the input"]);
    refused(2, &[&with[..], &["--minus", &w]].concat(), &["--residual", "--minus"]);
    let both = dir.path("both");
    let twice = ["factor", &w, "--rank", "4", "--out", &both, "--residual", &format!("{both}/u.npy")];
    refused(1, &twice, &["u.npy", "written twice"]);
    refused(1, &["factor", &w, "--rank", "4", "--residual", &dir.path("left.npz")], &["left.npz", ".npy"]);
    // The shape and the element type are those of the weight.
    let halves: Vec<u8> =
        (0..3 * 4 * 5 * 7).flat_map(|i| half::f16::from_f32((i as f32).sin()).to_le_bytes()).collect();
    let conv = dir.file("conv.npy", &npy("<f2", "False", "(3, 4, 5, 7)", &halves));
    let left = dir.path("conv_left.npy");
    let found = report(&["factor", &conv, "--rank", "2", "--rows-axes", "3", "--residual", &left]);
    assert_eq!(found["shape"], serde_json::json!([60, 7]));
    let (descr, shape, _) = read_npy(&left);
    assert_eq!((descr.as_str(), shape), ("<f2", vec![3, 4, 5, 7]));
    // In less memory than the weight takes there is no residual.
    let large = dir.file("large.npy", &waves(3000, 1000));
    let limited = ["factor", &large, "--rank", "4", "--memory-limit", "40M"];
    succeeds(&limited);
    refused(1, &[&limited[..], &["--residual", &dir.path("no.npy")]].concat(), &["--residual", "whole"]);
}

#[test]
fn axes_become_rows_as_they_are_told() {
    let dir = Dir::new("axes");
    let data = f32_bytes(6, 35, |i, j| ((i * 35 + j) as f32 * 0.37).sin());
    let flat = dir.file("flat.npy", &npy("<f4", "False", "(30, 7)", &data));
    let tensor = dir.file("tensor.npy", &npy("<f4", "False", "(2, 3, 5, 7)", &data));
    let want = report(&["factor", &flat, "--rank", "2"]);
    for more in [&[][..], &["--method", "single-pass"]] {
        let want = report(&[&["factor", &flat, "--rank", "2"], more].concat());
        let found = report(&[&["factor", &tensor, "--rows-axes", "3", "--rank", "2"], more].concat());
        assert_eq!((&found["shape"], &found["relative_error"]), (&want["shape"], &want["relative_error"]));
    }
    let read = report(&["factor", &tensor, "--rows-axes", "3", "--rank", "2", "--minus", &tensor]);
    assert_eq!(read["shape"], want["shape"]);
    refused(1, &["factor", &tensor, "--rows-axes", "4", "--rank", "2"], &["4 axes", "--rows-axes 4"]);
    refused(2, &["factor", &tensor, "--rows-axes", "0", "--rank", "2"], &["--rows-axes"]);
}

#[test]
fn factors_go_into_one_archive() {
    let dir = Dir::new("archive");
    let (w, out, files) = (dir.file("w.npy", &waves(40, 24)), dir.path("deep/er/f.npz"), dir.path("files"));
    let factor = ["factor", &w, "--rank", "4", "--dtype", "f64"];
    let found = report(&[&factor[..], &["--out", &out]].concat());
    succeeds(&[&factor[..], &["--out", &files]].concat());
    assert_eq!(found["written"]["files"], serde_json::json!(["u", "s", "vt", "report"]));
    let mut archive = tensorslim::npz::Archive::open(&out).unwrap();
    for name in ["u", "s", "vt"] {
        let bytes = fs::read(format!("{files}/{name}.npy")).unwrap();
        let array = archive.read(name, None).unwrap();
        assert!(bytes.ends_with(array.bytes()), "{name}");
    }
    let text: Value = serde_json::from_str(&archive.read_text("report").unwrap()).unwrap();
    assert_eq!((&text["rank"], &text["relative_error"]), (&found["rank"], &found["relative_error"]));
    // Our own is replaced, by every form; what is not ours is not.
    for (form, names) in
        [("split", vec!["up", "down", "report"]), ("pivot", vec!["rows", "coefficients", "pivots", "report"])]
    {
        succeeds(&[&factor[..], &["--out", &out, "--form", form]].concat());
        assert_eq!(tensorslim::npz::Archive::open(&out).unwrap().names().collect::<Vec<_>>(), names);
    }
    let other = dir.file("other.npz", b"something else");
    refused(1, &[&factor[..], &["--out", &other]].concat(), &["other.npz", "--overwrite"]);
    succeeds(&[&factor[..], &["--out", &other, "--overwrite"]].concat());
    refused(1, &[&factor[..], &["--out", &dir.path("w.npy/f.npz")]].concat(), &["w.npy"]);
}

#[test]
fn members_of_an_archive_are_weights() {
    let dir = Dir::new("members");
    let archive = dir.path("model.npz");
    let matrix = |m, n| tensorslim::Matrix::<f32>::from_fn(m, n, |i, j| ((i * 7 + j * i) as f32 * 0.3).sin());
    let mut writer = tensorslim::npz::Writer::create(&archive).unwrap();
    // A name is a name, even where a file of that path is there.
    let secret = dir.file("secret.npy", &waves(9, 8));
    for (name, m, n) in
        [("layer.0/up", 40, 24), ("layer.1/up", 24, 40), ("../escape", 20, 20), (&secret, 30, 20), ("w.npy", 16, 16)]
    {
        writer.matrix(name, &matrix(m, n), tensorslim::DType::F32).unwrap();
    }
    writer.array("bias", &[24], &[0f32; 24], tensorslim::DType::F32).unwrap();
    writer.finish().unwrap();
    let plain = dir.path("up.npy");
    tensorslim::npy::write_matrix(&plain, &matrix(40, 24), tensorslim::DType::F32).unwrap();
    let member = format!("{archive}/layer.0/up");
    for more in [
        &["--rank", "3"][..],
        &["--tolerance", "0.1"],
        &["--rank", "3", "--method", "single-pass", "--memory-limit", "30M"],
    ] {
        let (want, found) =
            (report(&[&["factor", &plain], more].concat()), report(&[&["factor", &member], more].concat()));
        assert_eq!((&found["relative_error"], &found["rank"]), (&want["relative_error"], &want["rank"]), "{more:?}");
    }
    let nothing = report(&["factor", &plain, "--minus", &member, "--numerical"]);
    assert_eq!(number(&nothing, "/norm"), 0.0);
    refused(1, &["factor", &format!("{archive}/layer.7"), "--rank", "2"], &["layer.7", "is not in the archive"]);
    refused(1, &["factor", &archive, "--rank", "2"], &["model.npz"]);
    refused(1, &["factor", &member, "--rank", "2", "--out", &archive, "--overwrite"], &["model.npz", "is the input"]);
    // All of them by a batch, each in a directory of its own inside of the output.
    let out = dir.path("out");
    assert_eq!(run(&["batch", &archive, "--rank", "3", "--out", &out]).code, Some(0));
    let manifest: Value = serde_json::from_slice(&fs::read(format!("{out}/manifest.json")).unwrap()).unwrap();
    let done: Vec<_> = manifest["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["status"].as_str().unwrap()))
        .collect();
    assert_eq!(done.len(), 6, "{done:?}");
    for (name, status) in [("../escape", "done"), ("bias", "kept"), ("layer.0/up", "done"), ("w.npy", "done")] {
        assert!(done.contains(&(format!("model/{name}").as_str(), status)), "{name} in {done:?}");
    }
    let tensors = manifest["tensors"].as_array().unwrap();
    let hidden = tensors.iter().find(|t| t["name"].as_str().unwrap().contains("secret")).unwrap();
    assert!(hidden.to_string().contains("[30,20]"), "{hidden}");
    refused(1, &["factor", &archive, "--rank", "2"], &["model.npz", "model.npz/NAME"]);
    // Bases are the members of another archive, or files of a folder, and a name that leads out of it has none.
    let (base, out) = (dir.path("base/layer.0"), dir.path("out2"));
    fs::create_dir_all(&base).unwrap();
    tensorslim::npy::write_matrix(format!("{base}/up.npy"), &matrix(40, 24), tensorslim::DType::F32).unwrap();
    let ran = run(&["batch", &archive, "--minus", &dir.path("base"), "--rank", "1", "--out", &out]);
    assert!(
        ran.code == Some(1) && ran.err.contains("leads out of") && ran.err.contains("4 of 6 weights"),
        "{}",
        ran.err
    );
    assert!(Path::new(&format!("{out}/model%2Flayer.0%2Fup/u.npy")).is_file());
    let out = dir.path("out3");
    assert_eq!(run(&["batch", &archive, "--minus", &archive, "--rank", "1", "--out", &out]).code, Some(0));
    refused(1, &["batch", &archive, "--minus", &dir.path("none"), "--rank", "1", "--out", &out], &["none"]);
    assert!(Path::new(&format!("{out}/model%2Flayer.0%2Fup/u.npy")).is_file());
}

#[test]
fn a_batch_factors_the_updates_of_a_model() {
    let dir = Dir::new("updates");
    for folder in ["base/block", "tuned/block"] {
        fs::create_dir_all(dir.path(folder)).unwrap();
    }
    for (name, m, n) in [("block/up", 40, 24), ("block/down", 24, 40), ("head", 30, 30), ("new", 16, 16)] {
        let base = |i: usize, j: usize| ((i * 7 + j * 3) as f32).sin();
        let tuned = |i: usize, j: usize| base(i, j) + 0.5 * (i as f32 * 0.2).cos() * (j as f32 * 0.3).sin();
        dir.file(&format!("tuned/{name}.npy"), &f32_npy(m, n, tuned));
        match name {
            "new" => {}
            "head" => _ = dir.file("base/head.npy", &f32_npy(30, 31, base)),
            _ => _ = dir.file(&format!("base/{name}.npy"), &f32_npy(m, n, base)),
        }
    }
    let (tuned, base, out) = (dir.path("tuned"), dir.path("base"), dir.path("out"));
    let batch = ["batch", &tuned, "--minus", &base, "--rank", "1", "--out", &out];
    let ran = run(&batch);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.err.contains("head.npy: is 30 × 31, and head is 30 × 30") && ran.err.contains("base/new.npy"),
        "{}",
        ran.err
    );
    for name in ["block%2Fup", "block%2Fdown"] {
        let report: Value = serde_json::from_slice(&fs::read(format!("{out}/{name}/report.json")).unwrap()).unwrap();
        assert!(number(&report, "/relative_error") < 1e-5, "{report}");
    }
    // The base belongs to the batch: another one is another batch, and one that changed is done again.
    refused(1, &["batch", &tuned, "--rank", "1", "--out", &out, "--resume"], &["minus was", "null"]);
    dir.file("base/head.npy", &f32_npy(30, 30, |i, j| ((i * 7 + j * 3) as f32).sin()));
    let ran = run(&[&batch[..], &["--resume"]].concat());
    let complaints: Vec<_> = ran.err.lines().filter(|line| line.starts_with("tensorslim: ")).collect();
    assert!(complaints.len() == 2 && complaints[0].contains("base/new.npy"), "{}", ran.err);
    // A base that changed makes another update, of which the old factors are none.
    let of_up = || fs::read(format!("{out}/block%2Fup/s.npy")).unwrap();
    let before = of_up();
    dir.file("base/block/up.npy", &f32_npy(40, 24, |i, j| ((i * 5 + j * 3) as f32).sin()));
    run(&[&batch[..], &["--resume"]].concat());
    assert!(of_up() != before, "the factors of the base before");
    // One budget for all updates reads each difference twice.
    let out = dir.path("budget");
    let only = ["batch", &tuned, "--minus", &base, "--only", "block/*", "--budget", "5", "--out", &out];
    let ran = run(&[&only[..], &["--json"]].concat());
    let summary: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &summary["done"]), (Some(0), &Value::from(2)), "{summary}");
    // The base is an input, which is not lost.
    refused(1, &["batch", &tuned, "--minus", &base, "--rank", "1", "--out", &tuned], &["is the output directory"]);
}

#[test]
fn the_output_calibration_is_trusted_as_told() {
    let dir = Dir::new("outputblend");
    let (w, g) = (dir.file("w.npy", &waves(20, 30)), dir.file("g.npy", &waves(50, 20)));
    let factor = ["factor", &w, "--rank", "3", "--precision", "f64", "--output-calibration", &g];
    let error = |more: &[&str]| number(&report(&[&factor[..], more].concat()), "/relative_error");
    let plain = number(&report(&["factor", &w, "--rank", "3", "--precision", "f64"]), "/relative_error");
    near(error(&["--output-blend", "0"]), plain, 1e-9);
    assert!(error(&["--output-blend", "1"]) == error(&[]) && error(&[]) > 1.001 * plain);
    refused(2, &["factor", &w, "--rank", "3", "--output-blend", "0.5"], &["--output-calibration"]);
    refused(2, &[&factor[..], &["--output-blend", "1.5"]].concat(), &["--output-blend", "0 to 1"]);
}
