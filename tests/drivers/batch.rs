//! Batches: the library's scheduler with its callbacks, and the command line with its files, killed, stopped, torn, divided and merged.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common;
use tensorslim::batch::{Batch, Fit, Input, Item, Observer, Progress, Stage};
use tensorslim::operator::Cancel;
use tensorslim::{DType, Error, Matrix, Method, Rank, TruncatedSvd};

fn weight(m: usize, n: usize, seed: u64) -> Matrix<f32> {
    let mut random = common::Random(seed);
    Matrix::from_fn(m, n, |i, j| ((i + 1) as f32 / (j + 1) as f32).sin() + 0.1 * random.normal() as f32)
}

fn items(weights: &[Matrix<f32>], svd: &TruncatedSvd) -> Vec<Item> {
    (weights.iter().enumerate())
        .map(|(i, w)| Item::new(format!("w{i}"), (w.nrows(), w.ncols()), DType::F32, svd.clone()))
        .collect()
}

#[test]
fn results_are_those_of_single_runs_whatever_runs_beside() {
    let weights: Vec<Matrix<f32>> = (0..12).map(|i| weight(40 + 17 * i, 30 + 5 * i, i as u64)).collect();
    let svd = TruncatedSvd::new(Rank::Fixed(7));
    let items = items(&weights, &svd);
    for (threads, workers) in [(1, 1), (3, 3), (3, 1), (4, 2)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let got = Mutex::new(vec![None; items.len()]);
        let summary = pool.install(|| {
            Batch::new().workers(workers).factor::<f32>(
                &items,
                |i, fit, with| {
                    assert_eq!(fit, Fit::Whole);
                    with(Input::Tensor(weights[i].as_tensor()?))
                },
                |finished| {
                    got.lock().unwrap()[finished.index] = Some(finished.result?);
                    Ok(())
                },
            )
        });
        assert_eq!((summary.done(), summary.failed(), summary.cancelled()), (12, 0, 0));
        for (w, f) in weights.iter().zip(got.into_inner().unwrap()) {
            let (one, f) = (svd.factor::<f32>(w.as_tensor().unwrap()).unwrap(), f.unwrap());
            assert_eq!(
                (one.u().as_slice(), one.s(), one.vt().as_slice()),
                (f.u().as_slice(), f.s(), f.vt().as_slice())
            );
        }
    }
}

/// A NaN, a rank that is too large, an error and a panic in the loader, an error and a panic in the sink: each ends its own tensor.
#[test]
fn a_failure_is_kept_to_its_tensor() {
    let mut weights: Vec<Matrix<f32>> = (0..10).map(|i| weight(40, 30, i)).collect();
    weights[1].as_mut_slice()[77] = f32::NAN;
    let mut items = items(&weights, &TruncatedSvd::new(Rank::Fixed(7)));
    items[2].svd = TruncatedSvd::new(Rank::Fixed(31));
    let sunk = AtomicUsize::new(0);
    let summary = Batch::new().factor::<f32>(
        &items,
        |i, _, with| match i {
            3 => Err(Error::NoConvergence { op: "a loader" }),
            4 => panic!("a loader that panics"),
            5 => Ok(()), // hands out nothing
            8 => with(Input::Tensor(weight(30, 40, 8).as_tensor()?)),
            _ => with(Input::Tensor(weights[i].as_tensor()?)),
        },
        |finished| {
            sunk.fetch_add(1, Ordering::Relaxed);
            let ok = finished.result.is_ok();
            match finished.index {
                6 => Err(Error::NoConvergence { op: "a sink" }),
                7 => panic!("a sink that panics"),
                i => {
                    assert_eq!(ok, ![1, 2, 3, 4, 5, 8].contains(&i));
                    Ok(())
                }
            }
        },
    );
    assert_eq!(sunk.into_inner(), 10);
    assert_eq!((summary.done(), summary.failed()), (2, 8));
    let why = |i: usize| summary.outcomes[i].clone().unwrap_err();
    assert!(matches!(why(1), Error::NotFinite { row: 2, col: 17, .. }));
    assert_eq!(why(2), Error::Rank { rank: 31, max: 30 });
    assert_eq!(why(3), Error::NoConvergence { op: "a loader" });
    assert_eq!(why(4), Error::Internal { what: "a loader that panics".into() });
    assert!(matches!(why(5), Error::Shape { .. }));
    assert_eq!(why(6), Error::NoConvergence { op: "a sink" });
    assert_eq!(why(7), Error::Internal { what: "a sink that panics".into() });
    assert!(why(8).to_string().contains("the 40 × 30 of item"), "{}", why(8));
}

/// Whoever watches ends nothing.
#[test]
fn an_observer_that_panics_is_passed_over() {
    struct Clumsy;
    impl Observer for Clumsy {
        fn progress(&self, _: &Progress<'_>) {
            panic!("an observer that panics");
        }
    }
    let weights: Vec<Matrix<f32>> = (0..3).map(|i| weight(40, 30, i)).collect();
    let summary = Batch::new().observer(&Clumsy).factor::<f32>(
        &items(&weights, &TruncatedSvd::new(Rank::Fixed(7))),
        |i, _, with| with(Input::Tensor(weights[i].as_tensor()?)),
        |finished| finished.result.map(drop),
    );
    assert_eq!(summary.done(), 3);
}

/// Bytes of the tensors in flight, as the scheduler counts them, never pass the limit; what does not fit whole comes in tiles, alone.
#[test]
fn memory_in_flight_stays_under_the_limit() {
    let weights: Vec<Matrix<f32>> = (0..20).map(|i| weight(300 + 40 * (i % 5), 200, i as u64)).collect();
    let svd = TruncatedSvd::new(Rank::Fixed(7)).method(Method::Randomized);
    let items = items(&weights, &svd);
    let bytes: Vec<usize> = weights
        .iter()
        .map(|w| svd.workspace::<f32>((w.nrows(), w.ncols()), DType::F32).unwrap() + 4 * w.nrows() * w.ncols())
        .collect();
    let most = *bytes.iter().max().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    for (limit, tiles, together) in
        [(4 * most, false, true), (2 * most + most / 2, false, false), (most - 1, true, false)]
    {
        let (flying, peak, tiled) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let summary = pool.install(|| {
            Batch::new().memory_limit(limit).factor::<f32>(
                &items,
                |i, fit, with| {
                    let mine = bytes[i].min(limit);
                    let now = flying.fetch_add(mine, Ordering::SeqCst) + mine;
                    peak.fetch_max(now, Ordering::SeqCst);
                    // Where each worker has room for the largest, one waits for another, so that the test sees them together.
                    let start = Instant::now();
                    while together && peak.load(Ordering::SeqCst) <= most && start.elapsed() < Duration::from_secs(2) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let mut tensor = weights[i].as_tensor()?;
                    let done = match fit {
                        Fit::Whole => with(Input::Tensor(tensor)),
                        Fit::Tiles => {
                            tiled.fetch_add(1, Ordering::SeqCst);
                            with(Input::Rows(&mut tensor))
                        }
                    };
                    flying.fetch_sub(mine, Ordering::SeqCst);
                    done
                },
                |finished| finished.result.map(drop),
            )
        });
        let peak = peak.into_inner();
        assert!(peak <= limit, "{peak} of {limit}");
        assert!(!together || peak > most, "nothing ran side by side: {peak}");
        assert_eq!(tiled.into_inner() > 0, tiles);
        // In tiles, a limit below what the least buffers take is the tensor's own failure.
        if !tiles {
            assert_eq!(summary.done(), 20);
        }
    }
}

#[test]
fn an_order_to_stop_leaves_the_rest_undone() {
    let weights: Vec<Matrix<f32>> = (0..30).map(|i| weight(60, 50, i)).collect();
    let items = items(&weights, &TruncatedSvd::new(Rank::Fixed(7)));
    let cancel = Cancel::new();
    let sunk = AtomicUsize::new(0);
    let summary = Batch::new().cancel(&cancel).factor::<f32>(
        &items,
        |i, _, with| with(Input::Tensor(weights[i].as_tensor()?)),
        |finished| {
            if sunk.fetch_add(1, Ordering::SeqCst) == 4 {
                cancel.cancel();
            }
            finished.result.map(drop)
        },
    );
    assert!(summary.done() >= 5 && summary.cancelled() > 0 && summary.failed() == 0, "{summary:?}");
    assert_eq!(summary.done(), sunk.into_inner());
}

/// Reports are of this batch, in order, and end at one.
#[test]
fn progress_grows_and_ends() {
    type Line = (String, Stage, f64, usize, u64, Option<Duration>);
    struct Log(Mutex<Vec<Line>>);
    impl Observer for Log {
        fn progress(&self, p: &Progress<'_>) {
            let line = (p.tensor.to_string(), p.stage, p.fraction, p.done, p.bytes, p.eta);
            assert_eq!(p.total, 8);
            self.0.lock().unwrap().push(line);
        }
    }
    let weights: Vec<Matrix<f32>> = (0..8).map(|i| weight(80, 50, i)).collect();
    let svd = TruncatedSvd::new(Rank::Fixed(7)).method(Method::Randomized).power_iterations(2);
    let log = Log(Mutex::new(Vec::new()));
    let summary = Batch::new().observer(&log).factor::<f32>(
        &items(&weights, &svd),
        |i, _, with| with(Input::Tensor(weights[i].as_tensor()?)),
        |finished| finished.result.map(drop),
    );
    assert_eq!(summary.done(), 8);
    let lines = log.0.into_inner().unwrap();
    assert!(lines.windows(2).all(|pair| pair[0].3 <= pair[1].3 && pair[0].4 <= pair[1].4));
    // One start and one end for each; six passes of 80 · 50 f32 for each.
    for stage in [Stage::Started, Stage::Done] {
        assert_eq!(lines.iter().filter(|line| line.1 == stage).count(), 8);
    }
    let last = lines.last().unwrap();
    assert_eq!((last.2, last.3, last.4, last.5), (1.0, 8, 8 * 6 * 80 * 50 * 4, Some(Duration::ZERO)));
}

#[cfg(feature = "cli")]
mod cli {
    //! The command line.

    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use serde_json::Value;
    use tensorslim::batch::manifest::{FILES, Manifest, Status, parse_journal};
    use tensorslim::{DType, npy};

    use super::{common, weight};

    /// A directory of its own for each test, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("tensorslim-batch-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(dir.join("in")).unwrap();
            Dir(dir)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        /// Writes `in/w00.npy` and so on.
        fn fill(&self, count: usize, m: usize, n: usize) {
            for i in 0..count {
                let path = self.path(&format!("in/w{i:03}.npy"));
                npy::write_matrix(path, &weight(m + i % 7, n + i % 3, i as u64), DType::F16).unwrap();
            }
        }

        fn batch(&self, out: &str, more: &[&str]) -> Command {
            self.showing("none", out, more)
        }

        fn showing(&self, progress: &str, out: &str, more: &[&str]) -> Command {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tensorslim"));
            command.arg("batch").arg(self.path("in")).arg("--out").arg(self.path(out)).args(["--threads", "2"]);
            command.args(["--progress", progress, "--json"]).args(more).stdin(Stdio::null());
            for name in ["ID", "COUNT", "MIN", "STEP"] {
                command.env_remove(format!("SLURM_ARRAY_TASK_{name}"));
            }
            command
        }

        fn manifest(&self, file: &str) -> Manifest {
            Manifest::parse(&fs::read(self.path(file)).unwrap()).unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Runs to the end or for a minute.
    fn run(command: &mut Command) -> Output {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = within(child, Duration::from_secs(60));
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!err.contains("panicked"), "{err}");
        output
    }

    /// Waits so long and no longer.
    fn within(mut child: Child, most: Duration) -> Output {
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > most {
                child.kill().unwrap();
                panic!("still running after {most:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn succeeds(command: &mut Command) -> Value {
        let output = run(command);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && err.is_empty(), "{command:?}: {:?} {err}", output.status);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// The lines on stderr of a run that must fail.
    #[track_caller]
    fn fails(command: &mut Command) -> Vec<String> {
        let output = run(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        String::from_utf8(output.stderr).unwrap().lines().map(str::to_string).collect()
    }

    /// All that a batch leaves, but for journals, which hold times.
    fn contents(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        for entry in walkdir::WalkDir::new(out) {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(out).unwrap().to_path_buf();
            if entry.file_type().is_file() && path.extension().is_none_or(|ext| ext != "jsonl") {
                all.insert(path, fs::read(entry.path()).unwrap());
            }
        }
        all
    }

    /// Whatever is under a final name is a complete result, equal to that of the undisturbed run.
    fn assert_nothing_torn(out: &Path, whole: &BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(out).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            if name.starts_with('.') || !path.is_dir() {
                continue;
            }
            for file in FILES {
                let got = fs::read(path.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
                assert!(got == whole[&Path::new(&name).join(file)], "{name}/{file} is torn");
            }
        }
    }

    /// Killed at 20 random moments, gone on with after each: the same bytes as undisturbed.
    #[test]
    fn killed_and_resumed_ends_in_the_same_bytes() {
        let dir = Dir::new("kill");
        dir.fill(120, 170, 150);
        let options = ["--rank", "40", "--seed", "5"];
        let start = Instant::now();
        succeeds(&mut dir.batch("whole", &options));
        let whole_time = start.elapsed();
        let whole = contents(&dir.path("whole"));
        assert_eq!(whole.len(), 120 * 4 + 1);
        let journal = dir.path("out/journal.jsonl");
        let done = || fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
        let mut random = common::Random(17);
        let mut killed = 0;
        for _ in 0..20 {
            let mut child = dir
                .batch("out", &options)
                .arg("--resume")
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // At most three tensors on, so that the last kill finds work left, and somewhere within the next: progress is counted,
            // not time, which other tests take a part of.
            let target = done() + (4.0 * random.uniform()) as usize;
            while done() < target && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(whole_time.mul_f64(random.uniform() / 120.0));
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            killed += usize::from(output.status.signal() == Some(9));
            if output.status.signal().is_none() {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            assert_nothing_torn(&dir.path("out"), &whole);
        }
        assert!(killed >= 8, "only {killed} of 20 kills met a running process");
        succeeds(dir.batch("out", &options).arg("--resume"));
        assert!(contents(&dir.path("out")) == whole, "resumed and undisturbed differ");
    }

    /// A signal ends the run in time with a valid manifest; going on completes it.
    #[test]
    fn sigterm_ends_within_two_seconds_and_loses_nothing() {
        let dir = Dir::new("term");
        dir.fill(150, 220, 190);
        let options = ["--rank", "60", "--method", "full"];
        let child = dir.batch("out", &options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let journal = dir.path("out/journal.jsonl");
        // Once something is done.
        while fs::read_to_string(&journal).map_or(0, |text| text.lines().count()) < 4 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let output = within(child, Duration::from_secs(2));
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains("--resume"), "{err}");
        let manifest = dir.manifest("out/manifest.json");
        assert!(!manifest.complete && manifest.tensors.len() >= 3 && manifest.tensors.len() < 150);
        for entry in &manifest.tensors {
            assert_eq!(entry.status, Status::Done);
            entry.verify(&dir.path("out")).unwrap();
        }
        let summary = succeeds(dir.batch("out", &options).arg("--resume"));
        assert_eq!((summary["done"].as_u64(), summary["skipped"].as_u64().unwrap() > 0), (Some(150), true));
        succeeds(&mut dir.batch("whole", &options));
        assert!(contents(&dir.path("out")) == contents(&dir.path("whole")));
    }

    /// Among 50: a NaN, a truncated file, an empty one, one that cannot be read.
    fn spoil(dir: &Dir) {
        let mut w = weight(40, 30, 1);
        w.as_mut_slice()[100] = f32::NAN;
        npy::write_matrix(dir.path("in/w007.npy"), &w, DType::F32).unwrap();
        let path = dir.path("in/w011.npy");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        fs::write(dir.path("in/w023.npy"), b"").unwrap();
        // No permission is denied to the superuser; a link to nothing is to anybody.
        fs::remove_file(dir.path("in/w042.npy")).unwrap();
        symlink(dir.path("nowhere"), dir.path("in/w042.npy")).unwrap();
    }

    #[test]
    fn four_bad_files_among_fifty_are_named_and_the_others_done() {
        let dir = Dir::new("bad");
        dir.fill(50, 60, 50);
        spoil(&dir);
        for (out, options) in [("rank", ["--rank", "8"]), ("budget", ["--budget", "2.5"])] {
            let err = fails(&mut dir.batch(out, &options));
            assert_eq!(err.len(), 5, "{err:?}");
            for (name, why) in [
                ("w007", "element (3, 10) is NaN"),
                ("w011", "was cut short"),
                ("w023", "is empty"),
                ("w042", "cannot be read"),
            ] {
                let line = err.iter().find(|line| line.starts_with(&format!("tensorslim: {name}: ")));
                assert!(line.is_some_and(|line| line.contains(why)), "{name} {why}: {err:?}");
            }
            assert!(err[4].contains("4 of 50 weights failed"), "{err:?}");
            let manifest = dir.manifest(&format!("{out}/manifest.json"));
            let done = manifest.tensors.iter().filter(|e| e.status == Status::Done).count();
            let kept = manifest.tensors.iter().filter(|e| e.status == Status::Kept).count();
            assert_eq!(done + kept, 46);
            assert!(manifest.complete && (out == "budget" || kept == 0));
            // Going on tries the failed ones again, and nothing else.
            let again = run(dir.batch(out, &options).arg("--resume"));
            let summary: Value = serde_json::from_slice(&again.stdout).unwrap();
            assert_eq!((again.status.code(), summary["skipped"].as_u64()), (Some(1), Some(done as u64)));
        }
        // The budget is met by the 46.
        let manifest = dir.manifest("budget/manifest.json");
        let size = |name: &str| {
            let i: usize = name[1..].parse().unwrap();
            (60 + i % 7) * (50 + i % 3)
        };
        let good: Vec<_> = manifest.tensors.iter().filter(|e| e.status != Status::Failed).collect();
        let before: usize = good.iter().map(|e| size(&e.name)).sum();
        let after: usize = good.iter().map(|e| e.facts.as_ref().map_or(size(&e.name), |f| f.params[1])).sum();
        let ratio = before as f64 / after as f64;
        assert!((2.5..2.6).contains(&ratio), "{ratio}");
    }

    #[test]
    fn two_shards_and_a_merge_are_one_run() {
        let dir = Dir::new("shards");
        dir.fill(31, 60, 50);
        npy::write(dir.path("in/bias.npy"), DType::F32, &[3], &[0; 12]).unwrap();
        let options = ["--ratio", "2", "--seed", "3"];
        succeeds(&mut dir.batch("one", &options));
        let spawn = |part: &str| {
            let mut command = dir.batch("out", &options);
            command.args(["--shard", part]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let merge = |dirs: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tensorslim"));
            command.arg("merge").args(dirs.iter().map(|d| dir.path(d))).stdin(Stdio::null());
            command
        };
        let first = within(spawn("1/2"), Duration::from_secs(60));
        assert!(first.status.success());
        let err = fails(&mut merge(&["out"]));
        assert!(err[0].contains("shard 2 of 2 is missing"), "{err:?}");
        // Together, and by Slurm's variables.
        let mut second = dir.batch("out", &options);
        second.env("SLURM_ARRAY_TASK_ID", "11").env("SLURM_ARRAY_TASK_COUNT", "2").env("SLURM_ARRAY_TASK_MIN", "10");
        fs::remove_dir_all(dir.path("out")).unwrap();
        let (a, b) = (spawn("1/2"), second.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        for child in [a, b] {
            let output = within(child, Duration::from_secs(60));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let parts = [1, 2].map(|i| dir.manifest(&format!("out/manifest-{i}-of-2.json")).tensors.len());
        assert!(parts[0] + parts[1] == 32 && parts[0].abs_diff(parts[1]) <= 2, "{parts:?}");
        succeeds(&mut merge(&["out"]));
        let (one, mut out) = (contents(&dir.path("one")), contents(&dir.path("out")));
        let csv = String::from_utf8(out.remove(Path::new("summary.csv")).unwrap()).unwrap();
        assert_eq!(csv.lines().count(), 33);
        let json: Value = serde_json::from_slice(&out.remove(Path::new("summary.json")).unwrap()).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 32);
        assert!(json[1]["seconds"].as_f64().unwrap() > 0.0 && json[0]["status"] == "kept");
        let html = String::from_utf8(out.remove(Path::new("index.html")).unwrap()).unwrap();
        assert!(html.contains("w030") && !html.contains("<script"));
        out.retain(|path, _| !path.to_str().unwrap().starts_with("manifest-"));
        assert!(out == one, "merged and single differ");

        // A shard from other options, one that is there twice, one that was changed since.
        succeeds(dir.batch("other", &["--ratio", "3", "--seed", "3"]).args(["--shard", "2/2"]));
        fs::create_dir_all(dir.path("half")).unwrap();
        fs::copy(dir.path("out/manifest-1-of-2.json"), dir.path("half/manifest-1-of-2.json")).unwrap();
        let err = fails(merge(&["half", "other"]).arg("--no-verify"));
        assert!(
            err[0].contains("manifest-2-of-2.json") && err[0].contains("ratio") && err[0].contains("3.0 against 2.0"),
            "{err:?}"
        );
        let err = fails(merge(&["out", "half"]).arg("--no-verify"));
        assert!(err[0].contains("shard 1 again"), "{err:?}");
        fs::write(dir.path("out/w003/s.npy"), b"torn").unwrap();
        let err = fails(&mut merge(&["out"]));
        assert!(err[0].contains("w003") && err[0].contains("s.npy") && err[0].contains("torn"), "{err:?}");
    }

    /// The first round measures, the second shares the budget among the weights of all shards: the same bytes as of one run, one weight that has no
    /// spectrum included.
    #[test]
    fn shards_share_one_budget() {
        let dir = Dir::new("budget-shards");
        dir.fill(13, 60, 50);
        let mut bytes = fs::read(dir.path("in/w005.npy")).unwrap();
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&half::f16::NAN.to_le_bytes());
        fs::write(dir.path("in/w005.npy"), bytes).unwrap();
        let options = ["--budget", "2.5", "--seed", "3"];
        let err = fails(&mut dir.batch("one", &options));
        assert!(err[0].contains("w005") && err[0].contains("NaN"), "{err:?}");
        let part = |part: &str, more: &str| {
            let mut command = dir.batch("out", &options);
            command.args(["--shard", part, more]);
            command
        };
        // Two alone can no more than measure: the third has spectra that are not there.
        assert!(run(&mut part("1/3", "--measure")).status.success());
        let err = fails(dir.batch("out", &options).args(["--shard", "2/3"]));
        assert!(err[0].contains("in other shards are missing") && err[0].contains("--measure"), "{err:?}");
        assert!(run(&mut part("3/3", "--measure")).status.success());
        let codes: Vec<_> = ["1/3", "2/3", "3/3"].map(|i| run(&mut part(i, "--resume")).status.code()).into();
        assert_eq!(codes.iter().filter(|code| **code == Some(1)).count(), 1, "the shard with the NaN fails: {codes:?}");
        let mut merge = Command::new(env!("CARGO_BIN_EXE_tensorslim"));
        let err = fails(merge.arg("merge").arg(dir.path("out")).stdin(Stdio::null()));
        assert!(err[0].contains("1 of 13 weights failed"), "{err:?}");
        let (one, mut out) = (contents(&dir.path("one")), contents(&dir.path("out")));
        out.retain(|path, _| {
            let name = path.to_str().unwrap();
            !name.starts_with("manifest-") && !name.starts_with("summary") && name != "index.html"
        });
        assert!(out == one, "{:?} against {:?}", out.keys(), one.keys());
    }

    #[test]
    fn resume_redoes_what_is_torn_or_changed_and_refuses_other_options() {
        let dir = Dir::new("resume");
        dir.fill(9, 40, 30);
        let options = ["--rank", "6"];
        succeeds(&mut dir.batch("out", &options));
        let whole = contents(&dir.path("out"));
        let err = fails(&mut dir.batch("out", &options));
        assert!(err[0].contains("add --resume"), "{err:?}");
        let err = fails(dir.batch("out", &["--rank", "7"]).arg("--resume"));
        assert!(err[0].contains("rank was 6 and is 7 now"), "{err:?}");
        fs::copy(dir.path("in/w000.npy"), dir.path("in/more.npy")).unwrap();
        let err = fails(dir.batch("out", &options).arg("--resume"));
        assert!(err[0].contains("list of inputs was 9 tensors"), "{err:?}");
        fs::remove_file(dir.path("in/more.npy")).unwrap();

        let skipped = |summary: Value| summary["skipped"].as_u64().unwrap();
        assert_eq!(skipped(succeeds(dir.batch("out", &options).arg("--resume"))), 9);
        // The journal ends in the middle of a line; which tensor that is depends on the threads. Three others lose files.
        let journal = dir.path("out/journal.jsonl");
        let mut text = fs::read(&journal).unwrap();
        let entries = parse_journal(&text).unwrap().1;
        let (lines, last) = (entries.len(), &entries[entries.len() - 1].name);
        text.truncate(text.len() - 5);
        fs::write(&journal, &text).unwrap();
        let others: Vec<_> = ["w001", "w002", "w003", "w004"].into_iter().filter(|name| last != name).take(3).collect();
        fs::write(dir.path(&format!("out/{}/vt.npy", others[0])), b"torn").unwrap();
        fs::remove_file(dir.path(&format!("out/{}/report.json", others[1]))).unwrap();
        fs::remove_dir_all(dir.path(&format!("out/{}", others[2]))).unwrap();
        assert_eq!(skipped(succeeds(dir.batch("out", &options).arg("--resume"))), 5);
        assert!(contents(&dir.path("out")) == whole);
        assert!(parse_journal(&fs::read(&journal).unwrap()).unwrap().1.len() > lines);
        // An input that was written again is another one.
        npy::write_matrix(dir.path("in/w004.npy"), &weight(44, 31, 99), DType::F16).unwrap();
        assert_eq!(skipped(succeeds(dir.batch("out", &options).arg("--resume"))), 8);
        assert!(contents(&dir.path("out")) != whole);
        // Two runs at once would tear the journal.
        let held = fs::OpenOptions::new().append(true).open(&journal).unwrap();
        held.lock().unwrap();
        let err = fails(dir.batch("out", &options).arg("--resume"));
        assert!(err[0].contains("in use"), "{err:?}");
    }

    #[test]
    fn patterns_say_what_is_factored_and_how() {
        let dir = Dir::new("config");
        for name in ["a.attn.q", "a.mlp.up", "a.norm", "b.mlp.up"] {
            npy::write_matrix(dir.path(&format!("in/{name}.npy")), &weight(40, 30, 3), DType::F32).unwrap();
        }
        let toml = dir.path("options.toml");
        fs::write(
            &toml,
            "keep = ['*norm*']\n[default]\nrank = 4\n[[pattern]]\nmatch = '*.mlp.*'\nrank = 9\nmethod = 'full'\n",
        )
        .unwrap();
        let toml = toml.to_str().unwrap();
        let summary = succeeds(&mut dir.batch("out", &["--config", toml, "--only", "a.*"]));
        assert_eq!((summary["done"].as_u64(), summary["kept"].as_u64()), (Some(2), Some(2)));
        let manifest = dir.manifest("out/manifest.json");
        let facts = |name: &str| {
            let entry = manifest.tensors.iter().find(|e| e.name == name).unwrap();
            entry.facts.as_ref().map(|f| (f.rank, f.method.clone()))
        };
        assert_eq!(facts("a.attn.q").unwrap().0, 4);
        assert_eq!(facts("a.mlp.up").unwrap(), (9, "full".to_string()));
        assert_eq!((facts("a.norm"), facts("b.mlp.up")), (None, None));
        // The command line stands between the pattern and the default.
        succeeds(&mut dir.batch("more", &["--config", toml, "--rank", "5"]));
        let ranks: Vec<usize> =
            dir.manifest("more/manifest.json").tensors.iter().filter_map(|e| Some(e.facts.as_ref()?.rank)).collect();
        assert_eq!(ranks, [5, 9, 9]);
        fs::write(toml, "[default]\nrnk = 4\n").unwrap();
        let err = fails(&mut dir.batch("no", &["--config", toml]));
        assert!(err[0].contains("options.toml: line 2: unknown field"), "{err:?}");
        assert!(!dir.path("no").exists());
    }

    /// Names with any bytes, links in a circle, ten thousand files, a directory called like a file: all inside the output directory.
    #[test]
    fn hostile_names_stay_inside() {
        let dir = Dir::new("names");
        let w = weight(8, 6, 1);
        let put = |name: &[u8]| {
            let path = dir.path("in").join(std::ffi::OsStr::from_bytes(name));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            npy::write_matrix(&path, &w, DType::F32).unwrap();
        };
        let names: [&[u8]; 9] = [
            b"..npy.npy",
            b"...npy",
            b"a\nb.npy",
            b"\xff\xfe.npy",
            b"%2F.npy",
            b"sub/dir/w.npy",
            b"sub%2Fdir%2Fw.npy",
            b"<b>&\".npy",
            b" .npy",
        ];
        names.iter().for_each(|name| put(name));
        put(&[&[b'x'; 240][..], b".npy"].concat());
        fs::create_dir_all(dir.path("in/dir.npy")).unwrap();
        symlink(dir.path("in"), dir.path("in/sub/loop")).unwrap();
        for i in 0..9_990 {
            let sub = dir.path(&format!("in/many/{}", i % 10));
            if i < 10 {
                fs::create_dir_all(&sub).unwrap();
            }
            npy::write(sub.join(format!("b{i}.npy")), DType::F16, &[1], &[0; 2]).unwrap();
        }
        let before: Vec<PathBuf> = fs::read_dir(&dir.0).unwrap().map(|e| e.unwrap().path()).collect();
        let err = fails(&mut dir.batch("out/deep", &["--rank", "2"]));
        assert_eq!(err.len(), 2, "{err:?}");
        assert!(
            err[0].starts_with("tensorslim: sub/loop: ") && err[0].contains("link to the directory above"),
            "{err:?}"
        );
        let after: Vec<PathBuf> = fs::read_dir(&dir.0).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(after.len(), before.len() + 1);
        let manifest = dir.manifest("out/deep/manifest.json");
        assert_eq!(manifest.tensors.len(), 10_001);
        let done: Vec<&str> =
            manifest.tensors.iter().filter(|e| e.status == Status::Done).map(|e| e.name.as_str()).collect();
        assert_eq!(done.len(), 10, "{done:?}");
        for name in ["..npy", "..", "a%0Ab", "%FF%FE", "%252F", "sub/dir/w", "sub%252Fdir%252Fw", "<b>&\"", " "] {
            assert!(done.contains(&name), "{name:?}: {done:?}");
        }
        manifest
            .tensors
            .iter()
            .filter(|e| e.status == Status::Done)
            .for_each(|e| e.verify(&dir.path("out/deep")).unwrap());
        let dirs = fs::read_dir(dir.path("out/deep")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
        assert_eq!(dirs, 10);
        // Two files of one name fail alone, and nothing is written in their place.
        let mut command = dir.batch("no", &["--rank", "2"]);
        let err = fails(command.arg(dir.path("in/sub/dir/w.npy")).arg(dir.path("in/sub/dir")));
        assert!(err.iter().any(|line| line.contains("would both be written as \"w\"")), "{err:?}");
        assert!(dir.path("no/..npy").is_dir() || dir.path("no/%2E.npy").is_dir());
        assert!(!dir.path("no/w").exists());
    }

    /// No room: what fits is done, the rest is named, and going on elsewhere completes. The limit on the size of files stands for a
    /// full disk: both end a write in the middle.
    #[test]
    fn a_full_disk_and_a_closed_one_are_told() {
        let dir = Dir::new("full");
        dir.fill(6, 40, 30);
        npy::write_matrix(dir.path("in/large.npy"), &weight(3000, 40, 1), DType::F32).unwrap();
        let batch = dir.batch("out", &["--rank", "6"]);
        let args: Vec<_> = batch.get_args().map(|a| a.to_str().unwrap().to_string()).collect();
        let mut limited = Command::new("sh");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tensorslim")])
            .args(&args);
        let err = fails(&mut limited);
        assert!(
            err.len() == 2 && err[0].starts_with("tensorslim: large: ") && err[0].contains("cannot be written"),
            "{err:?}"
        );
        let summary = succeeds(dir.batch("out", &["--rank", "6"]).arg("--resume"));
        assert_eq!((summary["done"].as_u64(), summary["skipped"].as_u64()), (Some(7), Some(6)));
        // Not even root writes there.
        let mut command = Command::new(env!("CARGO_BIN_EXE_tensorslim"));
        let err = fails(command.args(["batch", "--rank", "6", "--out", "/proc/tensorslim"]).arg(dir.path("in")));
        assert!(err.len() == 1 && err[0].contains("/proc/tensorslim"), "{err:?}");
        let err = fails(&mut dir.batch("in/w000.npy", &["--rank", "6"]));
        assert!(err.len() == 1 && err[0].contains("w000.npy"), "{err:?}");
    }

    /// A file much larger than the limit: refused with the least that would do, or done within it and as in memory.
    #[test]
    fn a_weight_larger_than_the_limit_is_read_in_tiles() {
        let dir = Dir::new("large");
        let path = dir.path("in/w.npy");
        let (m, n) = (16384, 2048);
        {
            // 64 MiB, from a few directions and a little noise, without holding it.
            let (u, v) = (weight(m, 8, 1), weight(n, 8, 2));
            let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
            let mut random = common::Random(5);
            let noise: Vec<f32> = (0..4099).map(|_| 0.3 * random.normal() as f32).collect();
            let mut bytes = Vec::with_capacity(2 * m * n);
            for i in 0..m {
                for j in 0..n {
                    let x: f32 = u.row(i).iter().zip(v.row(j)).map(|(a, b)| a * b).sum();
                    bytes.extend(half::f16::from_f32(x + noise[(i * 31 + j * 17) % 4099]).to_bits().to_ne_bytes());
                }
            }
            npy::write_to(&mut file, DType::F16, &[m, n], &bytes).unwrap();
        }
        let factor = |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tensorslim"));
            command
                .arg("factor")
                .arg(&path)
                .args(["--rank", "8", "--threads", "2", "--json"])
                .args(["--method", "randomized"]);
            command.args(more).stdin(Stdio::null());
            command
        };
        let err = fails(&mut factor(&["--memory-limit", "26M"]));
        let least: usize = err[0].rsplit(' ').next().unwrap().parse().unwrap();
        assert!(err[0].contains("27262976") && least < 48 << 20, "{err:?}");
        let limit = least.max(48 << 20);
        let tiled = succeeds(&mut factor(&["--memory-limit", &limit.to_string()]));
        let memory = succeeds(&mut factor(&[]));
        let number = |r: &Value, name: &str| r[name].as_f64().unwrap();
        assert!(number(&tiled, "peak_rss_bytes") <= 1.05 * limit as f64, "{} of {limit}", tiled["peak_rss_bytes"]);
        assert!(number(&memory, "peak_rss_bytes") > 1.2 * limit as f64);
        let (a, b) = (number(&tiled, "relative_error"), number(&memory, "relative_error"));
        assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
        assert_eq!(number(&tiled, "passes"), 6.0);
        succeeds(&mut factor(&["--memory-limit", &least.to_string()]));
        let err = fails(&mut factor(&["--memory-limit", &(least - 1).to_string()]));
        assert!(err[0].ends_with(&format!("the least that would do is {least}")), "{err:?}");
        // The same in a batch.
        let summary = succeeds(
            &mut dir.batch("out", &["--rank", "8", "--method", "randomized", "--memory-limit", &limit.to_string()]),
        );
        assert_eq!(summary["done"].as_u64(), Some(1));
        assert!(number(&summary, "peak_rss_bytes") <= 1.05 * limit as f64);
    }

    /// Lines for programs: each is an object, the last is the summary.
    #[test]
    fn progress_as_json_lines() {
        let dir = Dir::new("json");
        dir.fill(12, 60, 50);
        let output = run(&mut dir.showing("json", "out", &["--rank", "5"]));
        assert!(output.status.success());
        let lines: Vec<Value> =
            String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.iter().filter(|l| l["stage"] == "done").count(), 12);
        assert_eq!(lines.last().unwrap()["done"].as_u64(), Some(12));
        let plain = run(&mut dir.showing("plain", "plain", &["--rank", "5"]));
        let err = String::from_utf8(plain.stderr).unwrap();
        assert!(err.contains("100 % 12 of 12"), "{err}");
    }
}
