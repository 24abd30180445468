//! What is resident stays within `--memory-limit` whatever the options, or the run is refused before memory is taken, with a limit that does.
//!
//! A cell is a command with its options, files and limit. The named ones come first and the others are drawn; of one number of cells they are the same
//! in every run.
//!
//! ```text
//!   TENSORSLIM_MEMORY=400         cargo test --release --features cli --test cli memory_limits        some minutes
//!   TENSORSLIM_MEMORY=93..94      cargo test --release --features cli --test cli memory_limits        cell 93 alone
//! ```
//!
//! A cell that is refused is run again within the least limit that its error names, which has to do.

use std::collections::HashMap;
use std::io::Write;

use super::*;

/// Cells of a run that is told nothing else: the named ones, and some that are drawn.
const CELLS: usize = 26;
/// What is resident may be over the limit by this part of it: what the system counts late, and in pages.
const OVER: f64 = 1.03;
/// What a run that is refused may have resident, in bytes.
const REFUSED: usize = 32 << 20;
/// A MiB.
const M: usize = 1 << 20;

/// A file of numbers: rows, columns, element type, and whether it lies by columns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Shape(usize, usize, &'static str, bool);

/// The files that cells take, each made when the first cell asks for it.
struct Files {
    dir: Dir,
    made: HashMap<String, String>,
}

impl Files {
    fn once(&mut self, name: String, make: impl FnOnce(&str)) -> String {
        let path = self.dir.path(&name);
        self.made
            .entry(name)
            .or_insert_with(|| {
                make(&path);
                path
            })
            .clone()
    }

    /// One direction and noise, the same for the same seed.
    fn matrix(&mut self, Shape(m, n, descr, by_columns): Shape, seed: usize, shape: &str) -> String {
        let order = if by_columns { "f" } else { "c" };
        let axes = shape.split(", ").count();
        self.once(format!("{m}x{n}-{}-{order}-{axes}-{seed}.npy", &descr[1..]), |path| {
            let mut state = seed as u32 + 1;
            let mut bytes = Vec::with_capacity(8 * m * n);
            for i in 0..m * n {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
                let x = noise + ((i / n * 7 + i % n * 3) % 11) as f32 * 0.2;
                match descr {
                    "<f2" => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
                    "<V2" => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
                    "<f4" => bytes.extend(x.to_le_bytes()),
                    _ => bytes.extend(f64::from(x).to_le_bytes()),
                }
            }
            let order = if by_columns { "True" } else { "False" };
            fs::write(path, npy(descr, order, shape, &bytes)).unwrap();
        })
    }

    fn weight(&mut self, shape: Shape) -> String {
        let axes = match shape {
            // A convolution.
            Shape(96, 576, ..) => "(96, 64, 3, 3)".to_owned(),
            Shape(m, n, ..) => format!("({m}, {n})"),
        };
        self.matrix(shape, 0, &axes)
    }

    /// Samples of n features.
    fn samples(&mut self, rows: usize, n: usize, descr: &'static str, by_columns: bool, axes: usize) -> String {
        let shape = if axes == 3 { format!("(10, {}, {n})", rows / 10) } else { format!("({rows}, {n})") };
        self.matrix(Shape(rows, n, descr, by_columns), 1, &shape)
    }

    /// Statistics of samples of n features.
    fn statistics(&mut self, n: usize, form: &str) -> String {
        let samples = self.samples(300, n, "<f4", false, 2);
        self.once(format!("{n}{form}.stats"), |path| {
            let form: &[&str] = if form.is_empty() { &[] } else { &[form] };
            succeeds(&[&["calibrate", &samples, "--out", path], form].concat());
        })
    }

    /// A folder of weights, each of a shape as often as is said.
    fn folder(&mut self, name: &str, weights: &[(Shape, usize)]) -> String {
        let files: Vec<String> = weights.iter().map(|&(shape, _)| self.weight(shape)).collect();
        self.once(name.to_owned(), |path| {
            fs::create_dir(path).unwrap();
            for ((i, file), (_, count)) in files.iter().enumerate().zip(weights) {
                (0..*count).for_each(|j| fs::hard_link(file, format!("{path}/{i}-{j}.npy")).unwrap());
            }
        })
    }
}

const TALL: Shape = Shape(4000, 400, "<f4", false);
const MIXED: [(Shape, usize); 5] = [
    (TALL, 2),
    (Shape(300, 2000, "<f2", false), 2),
    (Shape(1200, 1200, "<f8", true), 1),
    (Shape(96, 576, "<f4", false), 2),
    (Shape(300, 200, "<f2", false), 4),
];

/// A command line without its limit.
struct Cell {
    args: Vec<String>,
    limit: usize,
}

fn cell(limit: usize, args: &[&str]) -> Cell {
    Cell { args: args.iter().map(|&arg| arg.to_owned()).collect(), limit }
}

/// Where limits were broken once.
fn named(files: &mut Files) -> Vec<Cell> {
    let w = files.weight(TALL);
    let x = files.samples(6000, 400, "<f4", false, 2);
    let few = files.samples(700, 400, "<f4", false, 2);
    let cube = files.samples(700, 400, "<f4", false, 3);
    let (wide, six) = (files.samples(700, 1200, "<f4", false, 2), files.folder("six", &[(TALL, 6)]));
    let out = files.dir.path("out");
    let factor = |more: &[&str]| cell(25 * M, &[&["factor", &w, "--rank", "8"], more].concat());
    let batch = |more: &[&str]| cell(64 * M, &[&["batch", &six, "--out", &out, "--progress", "none"], more].concat());
    vec![
        factor(&["--calibration", &x]),
        factor(&["--calibration", &cube]),
        factor(&["--calibration", &few, "--calibration", &x]),
        factor(&["--calibration", &x, "--blend", "0.5"]),
        factor(&["--calibration", &few, "--blend", "auto"]),
        factor(&["--calibration", &few, "--method", "single-pass"]),
        factor(&["--evaluate", &x]),
        factor(&["--calibration", &few, "--evaluate", &x]),
        cell(25 * M, &["factor", &w, "--quality", "0.1", "--max-rank", "64", "--evaluate", &x]),
        factor(&["--out", &out, "--dtype", "f16"]),
        factor(&["--out", &out, "--form", "split"]),
        factor(&["--out", &out, "--form", "pivot"]),
        batch(&["--ratio", "1.5"]),
        batch(&["--rank", "40", "--method", "krylov", "--threads", "40"]),
        batch(&["--rank", "4", "--threads", "512"]),
        batch(&["--budget", "4"]),
        cell(25 * M, &["calibrate", &wide, &wide, "--out", &out, "--factor"]),
        cell(25 * M, &["calibrate", &wide, "--out", &out, "--checkpoint", &files.dir.path("state")]),
    ]
}

fn limit(draw: &mut Draw) -> usize {
    draw.one(&[25, 26, 28, 32, 40, 48, 64, 80, 96, 128, 160, 256, 512]) * M + draw.below(M)
}

fn drawn(draw: &mut Draw, files: &mut Files) -> Cell {
    let args = match draw.below(20) {
        0..=12 => factor(draw, files),
        13..=16 => batch(draw, files),
        _ => calibrate(draw, files),
    };
    Cell { args, limit: limit(draw) }
}

impl Draw {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A command line that grows.
struct Line(Vec<String>);

impl Line {
    fn add(&mut self, args: &[&str]) {
        self.0.extend(args.iter().map(|&arg| arg.to_owned()));
    }

    /// With a probability of one to `n`.
    fn maybe(&mut self, draw: &mut Draw, n: usize, option: &str, values: &[&str]) {
        if draw.below(n) == 0 {
            self.add(&[option]);
            if !values.is_empty() {
                let value = draw.of(values);
                self.add(&[value]);
            }
        }
    }
}

fn factor(draw: &mut Draw, files: &mut Files) -> Vec<String> {
    let (m, n) = draw.one(&[(4000, 400), (4000, 400), (300, 2000), (1200, 1200), (24_000, 512), (96, 576), (300, 200)]);
    let shape = Shape(m, n, draw.of(&["<f2", "<V2", "<f4", "<f8"]), draw.below(5) == 0);
    let mut line = Line(vec!["factor".to_owned(), files.weight(shape), "--bf16".to_owned()]);
    let method = draw.of(&["auto", "auto", "full", "gram", "randomized", "krylov", "single-pass", "nystrom"]);
    line.add(&["--method", method]);
    let once = ["single-pass", "nystrom"].contains(&method);

    let checkpoint = once && !shape.3 && draw.below(3) == 0;
    let (calibrated, evaluated) = (!checkpoint && draw.below(2) == 0, !checkpoint && draw.below(4) == 0);
    let mut blended = false;
    if checkpoint {
        line.add(&["--checkpoint", &files.dir.path("state")]);
    }
    // Statistics of 2000 inputs take 32 MB, and folds of them four times that.
    let rows = draw.one(&[120, 700, 3000]) / if n > 1200 { 4 } else { 1 };
    let samples = |draw: &mut Draw, files: &mut Files| match draw.below(6) {
        0 => files.samples(rows, n, "<f2", false, 2),
        1 => files.samples(rows, n, "<f8", false, 2),
        2 => files.samples(rows, n, "<f4", true, 2),
        3 => files.samples(rows, n, "<f4", false, 3),
        _ => files.samples(rows, n, "<f4", false, 2),
    };
    if calibrated {
        let auto = draw.below(4) == 0;
        for _ in 0..1 + draw.below(2) {
            let form = draw.below(6);
            let file = match form {
                0 if !auto => files.statistics(n, ""),
                _ => samples(draw, files),
            };
            line.add(&["--calibration", &file]);
        }
        if auto {
            line.add(&["--blend", "auto"]);
        } else {
            line.maybe(draw, 3, "--blend", &["0.5"]);
        }
        blended = auto;
        line.maybe(draw, 4, "--whitening", &["diagonal"]);
        line.maybe(draw, 4, "--skip-non-finite", &[]);
    }
    if evaluated {
        line.add(&["--evaluate", &samples(draw, files)]);
    }

    let rule = draw.below(7);
    match rule {
        0 => line.add(&["--energy", draw.of(&["0.5", "0.8"])]),
        1 => line.add(&["--tolerance", draw.of(&["0.7", "0.5"])]),
        2 if (calibrated || evaluated) && !blended => line.add(&["--quality", draw.of(&["0.7", "0.9"])]),
        3 => line.add(&["--ratio", draw.of(&["1.5", "4"])]),
        _ => line.add(&["--rank", draw.of(&["1", "8", "40", "90"])]),
    }
    if line.0.iter().any(|arg| ["--energy", "--tolerance", "--quality"].contains(&arg.as_str()))
        && (once || draw.below(2) == 0)
    {
        line.add(&["--max-rank", draw.of(&["8", "64"])]);
    }
    line.maybe(draw, 5, "--precision", &["f64"]);
    line.maybe(draw, 4, "--sketch", &["gaussian", "srht", "sparse-sign"]);
    line.maybe(draw, 5, "--oversample", &["3", "60"]);
    line.maybe(draw, 5, "--power-iterations", &["0", "1", "4"]);
    line.maybe(draw, 8, "--dynamic-shift", &[]);
    line.maybe(draw, 3, "--threads", &["1", "3", "8", "40", "200"]);
    line.maybe(draw, 8, "--repeat", &["2"]);
    if draw.below(2) == 0 {
        line.add(&["--out", &files.dir.path("out"), "--form", draw.of(&["svd", "split", "pivot"])]);
        line.maybe(draw, 2, "--dtype", &["f16", "bf16", "f32", "f64"]);
    }
    line.0
}

fn batch(draw: &mut Draw, files: &mut Files) -> Vec<String> {
    let folder = match draw.below(4) {
        0 => files.folder("six", &[(TALL, 6)]),
        1 => files.folder("small", &[(Shape(300, 200, "<f2", false), 40)]),
        2 => files.folder("long", &[(Shape(24_000, 512, "<f4", false), 1), (Shape(300, 200, "<f2", false), 4)]),
        _ => files.folder("mixed", &MIXED),
    };
    let mut line = Line(vec!["batch".to_owned(), folder]);
    line.add(&["--out", &files.dir.path("out"), "--progress", "none"]);
    line.add(&[draw.of(&["--rank=8", "--rank=90", "--ratio=1.5", "--ratio=4", "--energy=0.6", "--budget=4"])]);
    line.maybe(draw, 2, "--method", &["full", "gram", "randomized", "krylov"]);
    line.maybe(draw, 3, "--threads", &["1", "2", "8", "40", "200"]);
    line.maybe(draw, 3, "--jobs", &["1", "4", "16"]);
    line.maybe(draw, 5, "--precision", &["f64"]);
    line.maybe(draw, 5, "--sketch", &["gaussian", "sparse-sign"]);
    line.maybe(draw, 3, "--dtype", &["f16", "bf16", "f64"]);
    line.0
}

fn calibrate(draw: &mut Draw, files: &mut Files) -> Vec<String> {
    let n = draw.one(&[400, 512, 1200]);
    let mut line = Line(vec!["calibrate".to_owned()]);
    let factor = draw.below(3) == 0;
    for _ in 0..1 + draw.below(3) {
        let rows = draw.one(&[120, 700, 3000]);
        let file = match draw.below(7) {
            0 => files.statistics(n, if factor { "--factor" } else { "" }),
            1 => files.samples(rows, n, "<f2", false, 2),
            2 => files.samples(rows, n, "<f8", false, 2),
            3 => files.samples(rows, n, "<f4", true, 2),
            4 => files.samples(rows, n, "<f4", false, 3),
            _ => files.samples(rows, n, "<f4", false, 2),
        };
        line.add(&[&file]);
    }
    line.add(&["--out", &files.dir.path("statistics")]);
    if factor {
        line.add(&["--factor"]);
    } else {
        line.maybe(draw, 3, "--fast", &[]);
    }
    if draw.below(3) == 0 {
        line.add(&["--checkpoint", &files.dir.path("state")]);
    }
    line.maybe(draw, 4, "--skip-non-finite", &[]);
    line.maybe(draw, 3, "--threads", &["1", "3", "8", "40"]);
    line.0
}

/// How a run ended, and what it had resident at most.
struct Measured {
    ran: Ran,
    peak: usize,
}

/// Runs a cell within a limit. The peak is that of its report where it has one; a run without is watched from outside, which may miss the last moment.
fn measure(args: &[String], limit: usize) -> Measured {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let limit = limit.to_string();
    let mut command = command(&[&args[..], &["--memory-limit", &limit, "--json"]].concat());
    command.stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |pipe: &mut dyn Read| {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    };
    let (mut peak, deadline) = (0, Instant::now() + Duration::from_secs(300));
    let ran = std::thread::scope(|scope| {
        let (out, err) = (scope.spawn(|| read(&mut out)), scope.spawn(|| read(&mut err)));
        let code = loop {
            let told = fs::read_to_string(&status).unwrap_or_default();
            let line = told.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
            // After the program has started itself anew it has another peak, and the one before was of a program that had done nothing.
            peak = line.and_then(|kib| kib.parse::<usize>().ok()).map_or(peak, |kib| kib << 10);
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if Instant::now() > deadline => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("still running after 300 s: {args:?}");
                }
                None => std::thread::sleep(Duration::from_micros(300)),
            }
        };
        Ran { code, out: out.join().unwrap(), err: err.join().unwrap() }
    });
    assert!(!ran.err.contains("panicked"), "{args:?}: {}", ran.err);
    let told = serde_json::from_str::<Value>(&ran.out).ok().and_then(|r| r["peak_rss_bytes"].as_u64());
    Measured { peak: told.map_or(peak, |told| told as usize), ran }
}

/// The number behind `least that would do is`, if that is said.
fn least(err: &str) -> Option<usize> {
    let rest = err.split("least that would do is ").nth(1)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What cells came to.
#[derive(Default)]
struct Counts {
    kept: usize,
    refused: usize,
    unsuitable: usize,
    most_refused: usize,
    faults: Vec<String>,
}

impl Counts {
    /// One cell, and what is left in its places.
    fn run(&mut self, number: usize, files: &Files, cell: &Cell) {
        let clear = || {
            for name in ["out", "state", "statistics"] {
                let path = files.dir.path(name);
                let _ = fs::remove_dir_all(&path);
                let _ = fs::remove_file(&path);
            }
        };
        clear();
        let said = |limit: usize, Measured { ran, peak }: &Measured| {
            format!(
                "cell {number}, {} within {limit}: {peak} resident, {:?} {}",
                cell.args.join(" "),
                ran.code,
                ran.err
            )
        };
        let within = |limit: usize, measured: &Measured| measured.peak as f64 <= OVER * limit as f64;
        let first = measure(&cell.args, cell.limit);
        let began = first.ran.out.starts_with('{');
        match (first.ran.code, least(&first.ran.err)) {
            (Some(0), _) if within(cell.limit, &first) => self.kept += 1,
            // Some weights of a batch are refused, and the others are done within the limit.
            (Some(1), Some(_)) if began && within(cell.limit, &first) => self.kept += 1,
            (Some(1), Some(least)) if !began && first.peak < REFUSED => {
                self.refused += 1;
                self.most_refused = self.most_refused.max(first.peak);
                let limit = format!("{} bytes", cell.limit);
                if !first.ran.err.contains(&limit) || first.ran.err.lines().count() != 1 {
                    self.faults.push(said(cell.limit, &first));
                }
                clear();
                let again = measure(&cell.args, least);
                // What a batch needs to begin may be too little for its weights, which are refused one by one then.
                let begins = again.ran.out.starts_with('{') && self::least(&again.ran.err).is_some();
                if !(again.ran.code == Some(0) || begins) || !within(least, &again) {
                    self.faults.push(said(least, &again));
                }
            }
            (Some(1), None) if first.peak < REFUSED || within(cell.limit, &first) => self.unsuitable += 1,
            _ => self.faults.push(said(cell.limit, &first)),
        }
        if std::env::var("TENSORSLIM_MEMORY").is_ok() {
            let _ = writeln!(std::io::stderr(), "{}", said(cell.limit, &first).trim_end());
        }
        clear();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_limits_are_kept_or_refused() {
    let wanted = std::env::var("TENSORSLIM_MEMORY").unwrap_or_else(|_| CELLS.to_string());
    let (first, end) = wanted.split_once("..").unwrap_or(("0", &wanted));
    let number = |text: &str| text.parse::<usize>().expect("TENSORSLIM_MEMORY is a count, or FIRST..END");
    let (first, end) = (number(first), number(end));
    let mut files = Files { dir: Dir::new("memory-limits"), made: HashMap::new() };
    let mut named: Vec<Option<Cell>> = named(&mut files).into_iter().map(Some).collect();
    let mut counts = Counts::default();
    for number in first..end {
        let cell = named.get_mut(number).and_then(Option::take);
        let cell = cell
            .unwrap_or_else(|| drawn(&mut Draw((number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)), &mut files));
        counts.run(number, &files, &cell);
    }
    let Counts { kept, refused, unsuitable, most_refused, faults } = counts;
    let _ = writeln!(
        std::io::stderr(),
        "memory: {} cells, {kept} kept, {refused} refused with {} KiB resident at most, {unsuitable} of options that do not go together, over {}",
        end - first,
        most_refused >> 10,
        faults.len(),
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(10 * unsuitable <= end - first, "{unsuitable} cells that say nothing");
}

/// Samples that lie the other way round ask for terabytes.
#[test]
fn transposed_samples_are_refused() {
    let dir = Dir::new("transposed");
    let w = dir.file("w.npy", &f32_npy(500, 400, |i, j| ((i * 7 + j * j) as f32).sin()));
    let turned = dir.file("turned.npy", &npy("<f2", "False", "(2, 1000000)", &vec![0; 4_000_000]));
    let words = ["turned.npy", "1000000", "transpose"];
    refused(1, &["calibrate", &turned, "--out", &dir.path("stats")], &words);
    for option in ["--calibration", "--evaluate"] {
        let args = ["factor", &w, "--rank", "8", option, &turned];
        refused(1, &args, &["turned.npy", "1000000", "w.npy", "400 inputs"]);
    }
}

/// A limit on the address space ends a run in one line as well, of which the least that would do does, at most for the next thing that is counted.
#[cfg(target_os = "linux")]
#[test]
fn address_space_is_kept_or_refused() {
    let mut files = Files { dir: Dir::new("address-space"), made: HashMap::new() };
    let w = files.weight(TALL);
    let x = files.samples(700, 400, "<f4", false, 2);
    let small = files.folder("small", &[(Shape(300, 200, "<f2", false), 8)]);
    let out = files.dir.path("out");
    let commands = [
        vec!["factor", &w, "--rank", "8", "--calibration", &x],
        vec!["calibrate", &x, "--out", &out],
        vec!["batch", &small, "--rank", "8", "--out", &out, "--progress", "none"],
    ];
    let limited = |args: &[&str], kib: usize| {
        let script = format!("ulimit -v {kib}; exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_tensorslim")]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ran = finish(command);
        let _ = (fs::remove_dir_all(&out), fs::remove_file(&out));
        match ran.code {
            Some(0) => assert_eq!(ran.err, "", "{args:?} within {kib} KiB"),
            Some(1) => one_line(&ran.err, args),
            code => panic!("{args:?} within {kib} KiB: {code:?} {}", ran.err),
        }
        ran
    };
    for args in &commands {
        // What is beyond reach on any machine, the buffers of a few threads, and what is enough for most.
        for threads in ["1", "2", "8"] {
            let args = [&args[..], &["--threads", threads]].concat();
            for mib in [96, 160, 240, 330, 480, 700, 1100] {
                limited(&args, mib << 10);
            }
        }
        let mut kib = 64 << 10;
        let mut lines = Vec::new();
        loop {
            let ran = limited(args, kib);
            let Some(least) = least(&ran.err) else { break assert_eq!(ran.code, Some(0), "{}", ran.err) };
            assert!(ran.err.contains("ulimit -v") && least > kib << 10, "{}", ran.err);
            kib = least.div_ceil(1 << 10);
            lines.push(ran.err);
            assert!(lines.len() < 4, "{}", lines.concat());
        }
        assert!(!lines.is_empty(), "{args:?} within 64 MiB of addresses");
    }
}
