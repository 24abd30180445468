//! Out of core and batch, end to end through the command line: time against floors measured in the same run, memory, and errors.
//!
//! ```text
//!   cargo bench --features cli --bench batch -- out-of-core    4 GB of f16, 65536 × 32768, within 512 MiB (needs 5 GB of disk; minutes)
//!   cargo bench --features cli --bench batch -- stack          224 weights of a small transformer on two threads
//!   cargo bench --features cli --bench batch -- --test         both, small
//!   cargo bench --features cli --bench batch -- write FILE M N [seed]     a file alone
//!   cargo bench --features cli --bench batch -- out-of-core FILE SAMPLE   the same on files that are there
//! ```
//!
//! Files go to `TENSORSLIM_BENCH_DIR`, or the system's temporary directory, and are removed.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints and may stop")]
#![allow(missing_docs)]

#[expect(dead_code, reason = "a bench uses a part of it")]
mod common;

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{Random, median, seconds};
use half::f16;
use rayon::prelude::*;
use serde_json::Value;
use tensorslim::operator::ReadParams;
use tensorslim::{DType, Matrix, npy};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tensorslim");

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["write", file, m, n, ref seed @ ..] => {
            let seed = seed.first().map_or(1, |s| s.parse().unwrap());
            write(Path::new(file), m.parse().unwrap(), n.parse().unwrap(), seed);
        }
        ["out-of-core"] => {
            let dir = Dir::new("ooc");
            let (big, sample) = (dir.0.join("big.npy"), dir.0.join("sample.npy"));
            write(&big, 65536, 32768, 1);
            write(&sample, 16384, 8192, 2);
            out_of_core(&big, &sample, "512M");
        }
        ["out-of-core", big, sample] => out_of_core(Path::new(big), Path::new(sample), "512M"),
        ["stack"] => stack(32, 512, 1408),
        ["--test"] => {
            let dir = Dir::new("ooc");
            let (big, sample) = (dir.0.join("big.npy"), dir.0.join("sample.npy"));
            write(&big, 4096, 2048, 1);
            write(&sample, 1024, 512, 2);
            out_of_core(&big, &sample, "40M");
            stack(2, 96, 256);
        }
        [] => println!("give out-of-core, stack or write FILE M N; see the head of benches/batch.rs"),
        _ => panic!("unknown arguments {words:?}"),
    }
}

/// A directory that goes with its owner.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let base = std::env::var_os("TENSORSLIM_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = base.join(format!("tensorslim-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Of mean 0 and variance 1, uniform: as noise its singular values are those of normals.
fn unit(random: &mut Random) -> f32 {
    random.centred() * 12f32.sqrt()
}

/// Directions of the low-rank part.
const SIGNAL: usize = 48;
/// Share of the noise in `‖A‖²`.
const NOISE: f32 = 0.2;

/// `A = U diag(s) Vᵀ + noise`, `s_i = 1 / (1 + i/4)`, in f16, written in blocks of rows: memory is one block, whatever the size.
fn write(path: &Path, m: usize, n: usize, seed: u64) {
    const BLOCK: usize = 64;
    let mut random = Random(seed);
    let mut directions = |len: usize| Matrix::<f32>::from_fn(SIGNAL, len, |_, _| unit(&mut random));
    let (u, v) = (directions(m), directions(n));
    let s: Vec<f32> = (0..SIGNAL).map(|i| 1.0 / (1.0 + i as f32 / 4.0)).collect();
    // Entries of U diag(s) Vᵀ have variance Σ s²: scaled to 1 − NOISE.
    let scale = ((1.0 - NOISE) / s.iter().map(|s| s * s).sum::<f32>()).sqrt();
    let mut file = BufWriter::new(File::create(path).unwrap());
    npy::write_to(&mut file, DType::F16, &[1, 1], &[0; 2]).unwrap();
    drop(file);
    let header = {
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(bytes.len() - 2);
        let shape = format!("'shape': ({m}, {n}), }}");
        let at = bytes.windows(8).position(|w| w == b"'shape':").unwrap();
        bytes[at..at + shape.len()].copy_from_slice(shape.as_bytes());
        bytes
    };
    let mut file = File::create(path).unwrap();
    file.write_all(&header).unwrap();
    let mut block = vec![f16::ZERO; BLOCK * n];
    for first in (0..m).step_by(BLOCK) {
        let rows = BLOCK.min(m - first);
        block[..rows * n].par_chunks_mut(n).enumerate().for_each(|(i, row)| {
            let mut random = Random(seed ^ ((first + i) as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03));
            let mut line: Vec<f32> = (0..n).map(|_| NOISE.sqrt() * unit(&mut random)).collect();
            for (r, s) in s.iter().enumerate() {
                let c = scale * s * u.row(r)[first + i];
                line.iter_mut().zip(v.row(r)).for_each(|(x, v)| *x += c * v);
            }
            row.iter_mut().zip(&line).for_each(|(x, &a)| *x = f16::from_f32(a));
        });
        file.write_all(bytemuck::cast_slice(&block[..rows * n])).unwrap();
    }
}

/// Reads a file as the tiled operator does, one buffer after the other; seconds.
fn read(path: &Path) -> f64 {
    seconds(|| {
        let (mut file, mut buffer) = (File::open(path).unwrap(), vec![0; ReadParams::default().product_bytes]);
        while file.read(&mut buffer).unwrap() > 0 {}
    })
}

fn report(args: &[&str]) -> Value {
    let out = Command::new(PROGRAM).args(args).stderr(Stdio::inherit()).output().unwrap();
    assert!(out.status.success(), "{args:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

/// `sample` has the spectrum of `big` at a sixteenth of the elements.
fn out_of_core(big: &Path, sample: &Path, limit: &str) {
    let size = fs::metadata(big).unwrap().len();
    let common = ["--rank", "64", "--method", "randomized", "--power-iterations", "1", "--json"];
    let path = |p: &Path| p.to_str().unwrap().to_string();
    let (big_path, small_path) = (path(big), path(sample));

    let refused = Command::new(PROGRAM)
        .args([&["factor", &big_path, "--memory-limit", "26M"][..], &common].concat())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    println!("refused before it starts: {}", String::from_utf8_lossy(&refused.stderr).trim());

    let seconds = read(big).min(read(big));
    println!("reading it once: {seconds:.2} s, {:.2} GB/s", size as f64 / 1e9 / seconds);
    let start = Instant::now();
    let run = report(&[&["factor", &big_path, "--memory-limit", limit, "--explain"][..], &common].concat());
    let wall = start.elapsed().as_secs_f64();
    let sample = report(&[&["factor", &small_path][..], &common].concat());
    for line in run["plan"].as_array().unwrap() {
        println!("  {}", line.as_str().unwrap());
    }
    let passes = run["passes"].as_f64().unwrap();
    // The arithmetic that the plan foresees in memory, where reading is free.
    let plan = report(&[&["factor", &small_path, "--explain"][..], &common].concat())["plan"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|line| {
            let line = line.as_str()?.strip_prefix("* ")?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        })
        .unwrap()
        / 1e3
        * 16.0;
    let floor = 2.5 * passes * seconds + plan;
    println!("wall {wall:.1} s; {passes} passes; 2.5 × reading + plan = {floor:.1} s; ratio {:.2}", wall / floor);
    let error = |r: &Value| r["relative_error"].as_f64().unwrap();
    println!(
        "error {:.5}, of the sample in memory {:.5}: ratio {:.4}",
        error(&run),
        error(&sample),
        error(&run) / error(&sample)
    );
    let peak = run["peak_rss_bytes"].as_f64().unwrap();
    println!("peak resident {:.1} MB ({:.1} MiB), limit {limit}", peak / 1e6, peak / 1048576.0);
}

/// User and system seconds of the children that have ended.
fn children_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[13].parse::<f64>().unwrap() + fields[14].parse::<f64>().unwrap()) / 100.0
}

fn stack(layers: usize, hidden: usize, inner: usize) {
    let dir = Dir::new("stack");
    let input = dir.0.join("model");
    fs::create_dir_all(&input).unwrap();
    let shapes = [
        ("q", hidden, hidden),
        ("k", hidden, hidden),
        ("v", hidden, hidden),
        ("o", hidden, hidden),
        ("gate", inner, hidden),
        ("up", inner, hidden),
        ("down", hidden, inner),
    ];
    for layer in 0..layers {
        for (i, (name, m, n)) in shapes.iter().enumerate() {
            write(&input.join(format!("layers.{layer}.{name}.npy")), *m, *n, (layer * 7 + i) as u64);
        }
    }
    let input = input.to_str().unwrap().to_string();
    let run = |threads: &str, out: &str| -> (f64, f64, Vec<Value>) {
        let out = dir.0.join(out);
        let (cpu, start) = (children_cpu(), Instant::now());
        let output = Command::new(PROGRAM)
            .args(["batch", &input, "--ratio", "3.2", "--threads", threads, "--progress", "json", "--out"])
            .arg(&out)
            .output()
            .unwrap();
        let wall = start.elapsed().as_secs_f64();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        (wall, children_cpu() - cpu, lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect())
    };
    run("1", "warm");
    // Side by side in time: what the machine does beside this, and what new pages cost it, drifts by half in a minute.
    let rounds: Vec<_> = (0..3).map(|i| (run("1", &format!("one-{i}")), run("2", &format!("two-{i}")))).collect();
    for ((one, cpu, _), (two, _, events)) in &rounds {
        println!("{} weights: one thread {one:.2} s wall, {cpu:.2} s CPU; two threads {two:.2} s", 7 * layers);
        println!("  wall against CPU / 2: {:.3}", two / (cpu / 2.0));
        eta(events);
    }
    let mut ratios: Vec<f64> = rounds.iter().map(|((_, cpu, _), (two, _, _))| two / (cpu / 2.0)).collect();
    let ratio = median(&mut ratios);
    println!("wall against CPU / 2, the middle of three: {ratio:.3} (bound 1.15)");
}

/// The estimate of what is left after a third of the run, against the truth.
fn eta(events: &[Value]) {
    let end = events.iter().rev().find_map(|e| e["elapsed_s"].as_f64()).unwrap();
    let third =
        events.iter().find(|e| e["elapsed_s"].as_f64().is_some_and(|t| t >= end / 3.0) && !e["eta_s"].is_null());
    if let Some(third) = third {
        let (at, eta) = (third["elapsed_s"].as_f64().unwrap(), third["eta_s"].as_f64().unwrap());
        println!(
            "  at {at:.2} s: {eta:.2} s left by estimate, {:.2} s in truth: ratio {:.3}",
            end - at,
            eta / (end - at)
        );
    }
}
