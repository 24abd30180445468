//! Faults that must cost the user nothing: outputs that are inputs or somebody else's files, runs that are killed, files that change while they
//! are read. `TENSORSLIM_FAULTS=300` tries so many command lines and not 60.

mod memory;

use std::collections::BTreeMap;
use std::io::Write;

use super::*;

// ---------------------------------------------------------------- a user's directory

/// What is at a path: the bytes of a file, where a link leads, or what else there is.
#[derive(Debug, Clone, PartialEq)]
enum There {
    File(Vec<u8>),
    Link(PathBuf),
    Other(&'static str),
}

/// Everything below a directory.
fn everything(root: &Path) -> BTreeMap<PathBuf, There> {
    let walk = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    walk.map(|entry| {
        let (path, kind) = (entry.path().to_path_buf(), entry.file_type());
        let there = match () {
            () if kind.is_symlink() => There::Link(fs::read_link(&path).unwrap()),
            () if kind.is_file() => There::File(fs::read(&path).unwrap()),
            () if kind.is_dir() => There::Other("directory"),
            () => There::Other("device or pipe"),
        };
        (path, there)
    })
    .collect()
}

/// Numbers that are the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn of<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Files that a user may have, with names that commands take and give.
fn fill(root: &Path) {
    let put = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let w = f32_npy(40, 24, |i, j| ((i * i + 3 * j) as f32).sin());
    let x = f32_npy(50, 24, |i, j| ((i + j * j) as f32).cos());
    for name in ["w.npy", "v.npy", "attn.npy", "attn/q.npy", "attn/k.npy", "model/a.npy", "model/s.npy", "u.npy"] {
        put(name, &w);
    }
    for name in ["x.npy", "own/u.npy", "model/journal.jsonl.npy", "model/manifest.json.npy"] {
        put(name, &x);
    }
    for name in ["notes.txt", "w/thesis.txt", "own/report.json", "foreign/manifest.json", "site/index.html", "x.lock"] {
        put(name, b"{\"mine\": true}\n");
    }
    put("foreign/journal.jsonl", b"what I did today");
    put("foreign/summary.csv", b"a,b\n1,2\n");
    put("patterns.toml", b"[default]\nrank = 3\n");
    fs::create_dir_all(root.join("empty")).unwrap();
    fs::hard_link(root.join("w.npy"), root.join("hard.npy")).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("w.npy", root.join("link.npy")).unwrap();
        symlink("notes.txt", root.join("link")).unwrap();
        symlink("far/away", root.join("dangling")).unwrap();
        symlink("model", root.join("linked")).unwrap();
        let made = |program: &str, args: &[&str]| Command::new(program).args(args).current_dir(root).output().is_ok();
        made("mkfifo", &["pipe"]);
        // Only root can.
        made("mknod", &["null", "c", "1", "3"]);
    }
}

const WEIGHTS: [&str; 4] = ["w.npy", "v.npy", "hard.npy", "link.npy"];
const MATRICES: [&str; 9] =
    ["w.npy", "v.npy", "attn.npy", "u.npy", "hard.npy", "link.npy", "own/u.npy", "dangling", "pipe"];
const FREE: [&str; 5] = ["new", "new/deep", "other", "free", "empty"];
#[rustfmt::skip]
const PLACES: [&str; 24] = [
    ".", "w.npy", "v.npy", "x.npy", "hard.npy", "link.npy", "link", "dangling", "linked", "pipe", "null", "notes.txt",
    "own", "attn", "model", "foreign", "site", "w", "empty", "new", "other", "x", "attn/q.npy", "patterns.toml",
];

impl Draw {
    /// A place that is free, or any.
    fn place(&mut self) -> &'static str {
        if self.below(2) == 0 { self.of(&FREE) } else { self.of(&PLACES) }
    }

    /// A weight, or anything.
    fn input(&mut self) -> &'static str {
        if self.below(3) > 0 { self.of(&WEIGHTS) } else { self.of(&MATRICES) }
    }
}

/// A command line, and what it may replace: what was asked for with `--overwrite`.
fn command_line(draw: &mut Draw) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut args = Vec::new();
    let out = draw.place();
    match draw.below(8) {
        0..=2 => {
            args.extend(["factor", draw.input(), "--rank", "3", "--out", out]);
            args.extend(["--form", draw.of(&["svd", "svd", "split", "pivot"])]);
            if draw.below(2) == 0 {
                args.extend(["--method", "single-pass", "--checkpoint", draw.place()]);
            } else if draw.below(2) == 0 {
                args.extend([draw.of(&["--calibration", "--evaluate"]), "x.npy"]);
            }
        }
        3 | 4 => {
            args.extend(["calibrate", "x.npy", draw.of(&["x.npy", "w.npy", "link.npy"]), "--out", out]);
            if draw.below(2) == 0 {
                args.extend(["--checkpoint", draw.place()]);
            }
        }
        5 | 6 => {
            let first = draw.of(&[".", "model", "linked", "attn", "w.npy", "attn.npy"]);
            args.extend(["batch", first, draw.input(), "--out", out, "--progress", "none"]);
            args.extend(draw.of(&["--rank=3", "--ratio=2", "--config=patterns.toml", "--budget=2"]).split(' '));
            if draw.below(3) == 0 {
                args.push("--resume");
            }
        }
        _ => args.extend(["merge", draw.of(&["new", "other", "free", "foreign"]), "--out", out]),
    }
    if draw.below(6) > 0 || args.contains(&"--resume") {
        return (args, Vec::new());
    }
    let named = args.windows(2).filter(|pair| ["--out", "--checkpoint"].contains(&pair[0])).map(|pair| pair[1]);
    let named = named.collect();
    args.push("--overwrite");
    (args, named)
}

/// Whatever the command line, every file that it was not told to replace is there afterwards, byte for byte; and what it says it has written, is.
#[test]
fn nothing_of_the_users_is_lost() {
    let lines = std::env::var("TENSORSLIM_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let dir = Dir::new("users");
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut done) = (0, 0);
    let (mut root, mut real) = (dir.0.join("fresh"), PathBuf::new());
    let mut before = BTreeMap::new();
    for line in 0..lines {
        let (args, replaced) = command_line(&mut draw);
        // Later runs meet the results of earlier ones.
        if line % 8 == 0 {
            root = dir.0.join(line.to_string());
            fill(&root);
            real = fs::canonicalize(&root).unwrap();
            before = everything(&root);
        }
        // What a link leads to is named with it.
        let replaced: Vec<PathBuf> = replaced
            .iter()
            .flat_map(|name| [Ok(root.join(name)), fs::canonicalize(root.join(name))])
            .flatten()
            .map(|path| path.strip_prefix(&real).map_or(path.clone(), |rest| root.join(rest)))
            .collect();
        let mut command = command(&args);
        command.current_dir(&root).stdout(Stdio::piped());
        let ran = finish(command);
        let said = format!("{args:?}: {:?} {}", ran.code, ran.err);
        assert!(matches!(ran.code, Some(0..=2)), "{said}");
        assert!(ran.err.lines().all(|line| line.starts_with("tensorslim: ")), "{said}");

        let after = everything(&root);
        let may_go = |path: &Path| replaced.iter().any(|named| path.starts_with(named.components().as_path()));
        let inputs = ["w.npy", "v.npy", "x.npy", "attn.npy", "u.npy"].map(|name| root.join(name));
        for (path, was) in &before {
            let mut given = args.windows(2).filter(|pair| !["--out", "--checkpoint"].contains(&pair[0]));
            let is_input = inputs.contains(path) && given.any(|pair| root.join(pair[1]) == *path);
            assert!(!is_input && may_go(path) || after.get(path) == Some(was), "{} is lost: {said}", path.display());
        }
        let left: Vec<_> = after.keys().filter(|path| path.to_string_lossy().contains(".tensorslim-")).collect();
        assert!(left.is_empty(), "{left:?} {said}");
        if ran.code == Some(0) {
            done += 1;
            let out = args.windows(2).find(|pair| pair[0] == "--out").map(|pair| root.join(pair[1])).unwrap();
            match args[0] {
                "factor" => assert_described(&out),
                "calibrate" => {
                    assert_eq!(run(&["calibrate", out.to_str().unwrap(), "--out", &dir.path("again")]).code, Some(0))
                }
                _ => assert!(out.join("manifest.json").is_file(), "{said}"),
            }
            let _ = fs::remove_file(dir.path("again"));
        } else {
            refused += 1;
        }
        // What took the place of a file that was named is a result.
        before.retain(|path, was| !may_go(path) || after.get(path) == Some(was));
    }
    // Past the harness, which keeps what tests print.
    let stderr = &mut std::io::stderr();
    let _ = writeln!(stderr, "faults: {lines} command lines tried, {done} done, {refused} refused, files lost 0");
}

/// Whether a report's lengths and checksums are those of the files beside it.
fn is_described(out: &Path) -> bool {
    let Ok(bytes) = fs::read(out.join("report.json")) else { return false };
    let report: Value = serde_json::from_slice(&bytes).unwrap();
    let Some(sums) = report["written"]["sums"].as_object() else { return false };
    assert!(sums.len() >= 2);
    sums.iter().all(|(name, sum)| {
        fs::read(out.join(name))
            .is_ok_and(|bytes| sum["bytes"] == bytes.len() && sum["crc32"] == crc32fast::hash(&bytes))
    })
}

#[track_caller]
fn assert_described(out: &Path) {
    assert!(is_described(out), "{}", out.display());
}

// ---------------------------------------------------------------- row by row

/// Weights in a directory, and the arguments of a batch over them.
fn batch_of(dir: &Dir, names: &[&str]) {
    fs::create_dir_all(dir.path("in")).unwrap();
    for (seed, name) in names.iter().enumerate() {
        let w = f32_npy(60 + seed, 40, |i, j| ((i * (seed + 3) + j * j) as f32).sin());
        dir.file(&format!("in/{name}.npy"), &w);
    }
}

fn batch<'a>(input: &'a str, out: &'a str, rank: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["batch", input, "--rank", rank, "--out", out, "--progress", "none"], more].concat()
}

/// A file as an output in each place where an input, another output or a stranger is.
#[test]
fn outputs_are_nobody_elses() {
    let dir = Dir::new("outputs");
    let w = dir.file("w.npy", &f32_npy(40, 24, |i, j| ((i * i + 3 * j) as f32).sin()));
    let notes = dir.file("notes.txt", b"mine");
    let (s, hard) = (dir.path("s"), dir.path("hard.npy"));
    fs::hard_link(&w, &hard).unwrap();
    let once = ["factor", &w, "--rank", "3", "--method", "single-pass", "--checkpoint"];
    for own in [&w, &hard] {
        refused(1, &[&once[..], &[own]].concat(), &[own.as_str(), "is the input"]);
        refused(1, &["calibrate", &w, "--out", own, "--overwrite"], &[own.as_str(), "is the input"]);
        refused(1, &["calibrate", &w, "--out", &s, "--checkpoint", own], &["is the input"]);
    }
    refused(1, &[&once[..], &[&notes]].concat(), &["notes.txt", "not a checkpoint", "--overwrite"]);
    refused(1, &["calibrate", &w, "--out", &notes], &["notes.txt", "--overwrite"]);
    refused(1, &["calibrate", &w, "--out", &s, "--checkpoint", &s], &["written twice"]);
    refused(1, &["calibrate", &w, "--out", "/dev/null"], &["/dev/null: is a device"]);
    assert_eq!(fs::read(&notes).unwrap(), b"mine");
    succeeds(&["calibrate", &w, "--out", &notes, "--overwrite"]);
    succeeds(&["calibrate", &w, "--out", &notes]);
    fs::create_dir_all(dir.path("site")).unwrap();
    let page = dir.file("site/index.html", b"mine");
    refused(1, &["bench", "--quick", "--out", &dir.path("site")], &["index.html: is there", "--overwrite"]);
    assert_eq!(fs::read(&page).unwrap(), b"mine");
    // Factors that are there without a report are somebody else's; those with one may be replaced, but for an input.
    let out = dir.path("out");
    fs::create_dir_all(&out).unwrap();
    let u = dir.file("out/u.npy", b"mine");
    let factor = ["factor", &w, "--rank", "3", "--out", &out];
    refused(1, &factor, &["u.npy: is there", "--overwrite"]);
    assert_eq!(fs::read(&u).unwrap(), b"mine");
    succeeds(&[&factor[..], &["--overwrite"]].concat());
    succeeds(&[&factor[..], &["--form", "split"]].concat());
    assert_eq!(names(&out), ["down.npy", "report.json", "up.npy"]);
    refused(1, &["factor", &dir.path("out/up.npy"), "--rank", "2", "--out", &out], &["up.npy: is the input"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("real", dir.path("link")).unwrap();
        succeeds(&["calibrate", &w, "--out", &dir.path("link")]);
        assert!(fs::read(dir.path("real")).unwrap() == fs::read(&notes).unwrap());
        assert!(fs::symlink_metadata(dir.path("link")).unwrap().is_symlink());
    }
}

/// A batch keeps to what batches write, and two batches keep apart.
#[test]
fn a_batch_takes_the_place_of_batches_alone() {
    let dir = Dir::new("places");
    batch_of(&dir, &["a", "b", "journal.jsonl", "summary.csv"]);
    let (input, out) = (dir.path("in"), dir.path("out"));
    fs::create_dir_all(dir.path("out/a")).unwrap();
    let thesis = dir.file("out/a/thesis.txt", b"mine");
    for more in [&[][..], &["--overwrite"]] {
        refused(1, &batch(&input, &out, "3", more), &["out/a: holds thesis.txt"]);
    }
    assert_eq!(fs::read(&thesis).unwrap(), b"mine");
    fs::remove_file(thesis).unwrap();
    // The names of the batch itself: those weights fail alone.
    let ran = run(&batch(&input, &out, "3", &[]));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!((ran.code, lines.len()), (Some(1), 3), "{}", ran.err);
    for (line, name) in lines.iter().zip(["journal.jsonl: ", "summary.csv: "]) {
        assert!(line.contains(name) && line.contains("rename it"), "{line}");
    }
    let kept = everything(&dir.0);
    refused(1, &batch(&input, &out, "4", &[]), &["is of an earlier batch"]);
    refused(1, &batch(&input, &out, "4", &["--shard", "1/2"]), &["rank was 3", "--overwrite"]);
    refused(1, &batch(&input, &out, "4", &["--resume"]), &["rank was 3"]);
    // The manifest of another batch is not replaced by a merge.
    let other = dir.path("other");
    succeeds(&batch(&dir.path("in/b.npy"), &other, "3", &[]));
    refused(1, &["merge", &other, "--out", &out], &["manifest.json: is of another batch"]);
    fs::remove_dir_all(&other).unwrap();
    assert!(everything(&dir.0) == kept);
    assert_eq!(run(&batch(&input, &out, "4", &["--overwrite"])).code, Some(1));
    assert_eq!(read_npy(&format!("{out}/a/s.npy")).1, [4]);
    // An input inside of a result.
    succeeds(&batch(&dir.path("in/b.npy"), &dir.path("nest"), "3", &[]));
    fs::copy(dir.path("nest/b/u.npy"), dir.path("nest/b.npy")).unwrap();
    fs::remove_file(dir.path("nest/b/u.npy")).unwrap();
    fs::hard_link(dir.path("nest/b.npy"), dir.path("nest/b/u.npy")).unwrap();
    refused(
        1,
        &batch(&dir.path("nest/b.npy"), &dir.path("nest"), "2", &["--overwrite"]),
        &["holds u.npy, which is an input"],
    );
}

/// What a manifest says of a result is what its report says.
#[test]
fn merge_believes_reports_and_not_manifests() {
    let dir = Dir::new("facts");
    batch_of(&dir, &["a", "=cmd"]);
    let out = dir.path("out");
    succeeds(&batch(&dir.path("in"), &out, "3", &[]));
    let path = format!("{out}/manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    for (was, is) in
        [("\"rank\": 3,\n        \"method\"", "\"rank\": 4,\n        \"method\""), ("2400", "18446744073709551615")]
    {
        assert!(text.contains(was), "{text}");
        fs::write(&path, text.replace(was, is)).unwrap();
        refused(1, &["merge", &out], &["manifest.json", "report.json does not"]);
    }
    fs::write(&path, &text).unwrap();
    succeeds(&["merge", &out]);
    let csv = fs::read_to_string(format!("{out}/summary.csv")).unwrap();
    assert!(csv.lines().any(|line| line.starts_with("'=cmd,done,")), "{csv}");
}

/// Names that a terminal would obey are written out.
#[cfg(unix)]
#[test]
fn names_are_printed_and_not_obeyed() {
    let dir = Dir::new("names");
    let w = dir.file("a\u{1b}[31m\n\u{202e}.npy", &f32_npy(40, 24, |i, j| ((i * i + 3 * j) as f32).sin()));
    for table in [succeeds(&["factor", &w, "--rank", "3"]), succeeds(&["calibrate", &w, "--out", &dir.path("s")])] {
        assert!(table.contains("a\\u{1b}[31m\\n\\u{202e}.npy"), "{table}");
    }
    refused(1, &["factor", UP, "--ratio", "1e300"], &["ratio = 1e300 "]);
}

/// Two weights of one name fail alone; so does a directory that cannot be read beside a file of its name.
#[test]
fn weights_of_one_name_fail_alone() {
    let dir = Dir::new("twice");
    batch_of(&dir, &["a", "b"]);
    fs::create_dir_all(dir.path("more")).unwrap();
    fs::copy(dir.path("in/b.npy"), dir.path("more/a.npy")).unwrap();
    let ran = run(&batch(&dir.path("in"), &dir.path("out"), "3", &[&dir.path("more")]));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!((ran.code, lines.len()), (Some(1), 2), "{}", ran.err);
    assert!(
        lines[0].starts_with("tensorslim: a: ") && lines[0].contains("more/a.npy would both be written"),
        "{}",
        ran.err
    );
    assert!(Path::new(&dir.path("out/b/u.npy")).exists() && !Path::new(&dir.path("out/a")).exists());
}

/// What the walk cannot go into fails alone, beside a file of its name too.
#[cfg(unix)]
#[test]
fn what_cannot_be_walked_fails_alone() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = Dir::new("walk");
    batch_of(&dir, &["attn", "mlp", "norm"]);
    symlink(".", dir.path("in/attn")).unwrap();
    symlink("nowhere", dir.path("in/mlp")).unwrap();
    fs::create_dir(dir.path("in/norm")).unwrap();
    // Of no effect where the tests run as root.
    fs::set_permissions(dir.path("in/norm"), fs::Permissions::from_mode(0o0)).unwrap();
    let is_open = fs::read_dir(dir.path("in/norm")).is_ok();
    let ran = run(&batch(&dir.path("in"), &dir.path("out"), "3", &[]));
    fs::set_permissions(dir.path("in/norm"), fs::Permissions::from_mode(0o700)).unwrap();
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!((ran.code, lines.len()), (Some(1), if is_open { 3 } else { 4 }), "{}", ran.err);
    assert!(lines[0].contains("in/attn: is a link to the directory above it"), "{}", ran.err);
    assert!(lines[1].contains("in/mlp: cannot be read"), "{}", ran.err);
    assert!(is_open || lines[2].contains("in/norm: cannot be read"), "{}", ran.err);
    for name in ["attn", "mlp", "norm"] {
        assert!(Path::new(&dir.path(&format!("out/{name}/u.npy"))).exists(), "{name}");
    }
}

/// Whether the result of a batch is of other contents is seen whatever the time of change says.
#[test]
fn results_are_of_the_contents_that_are_there() {
    use std::time::UNIX_EPOCH;
    let dir = Dir::new("stale");
    batch_of(&dir, &["a", "b"]);
    let (a, input, out) = (dir.path("in/a.npy"), dir.path("in"), dir.path("out"));
    let resume = batch(&input, &out, "3", &["--resume"]);
    let s = || read_npy(&format!("{out}/a/s.npy")).2;
    let before = |seconds| UNIX_EPOCH - Duration::from_secs(seconds);
    let file = || fs::File::options().write(true).open(&a).unwrap();
    // Before 1970 as well, where seconds are negative.
    file().set_modified(before(1000)).unwrap();
    succeeds(&resume);
    let mut first = s();
    for (scale, when) in [(2.0, before(2000)), (4.0, before(2000)), (8.0, UNIX_EPOCH)] {
        fs::write(&a, f32_npy(60, 40, |i, j| scale * ((i * 3 + j * j) as f32).sin())).unwrap();
        file().set_modified(when).unwrap();
        let table = succeeds(&resume);
        assert!(table.contains("2 (1 of an earlier run)"), "{table}");
        let now = s();
        now.iter().zip(&first).for_each(|(now, first)| near(now / first, 2.0, 1e-4));
        first = now;
    }
    assert!(succeeds(&resume).contains("2 (2 of an earlier run)"));
}

/// A file of patterns may be a pipe: it is read once, and what a run goes on with is compared with that.
#[cfg(unix)]
#[test]
fn patterns_from_a_pipe_are_read_once() {
    let dir = Dir::new("pipe-config");
    batch_of(&dir, &["a", "b"]);
    let (input, out) = (dir.path("in"), dir.path("out"));
    let with = |text: &str, more: &[&str]| {
        let args = ["batch", &input, "--out", &out, "--progress", "none", "--config", "/dev/stdin"];
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        drop(writer);
        let mut command = command(&[&args[..], more].concat());
        command.stdin(reader).stdout(Stdio::piped());
        finish(command)
    };
    let (three, four) = ("[default]\nrank = 3\n", "[default]\nrank = 4\n");
    let ran = with(three, &[]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(read_npy(&format!("{out}/a/s.npy")).1, [3]);
    for other in [four, ""] {
        let ran = with(other, &["--resume"]);
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        // Without a default nothing says how much to keep, which may be said first.
        assert!(ran.err.contains("config was") || other.is_empty(), "{}", ran.err);
    }
    let ran = with(three, &["--resume"]);
    assert!(ran.code == Some(0) && ran.out.contains("2 (2 of an earlier run)"), "{}{}", ran.out, ran.err);
}

/// A result that cannot be recorded is not called done: here the journal is as long as a file may be.
#[cfg(unix)]
#[test]
fn a_journal_that_cannot_be_written_is_a_failure() {
    let dir = Dir::new("journal");
    batch_of(&dir, &["a", "b"]);
    let (input, out) = (dir.path("in"), dir.path("out"));
    let resume = batch(&input, &out, "3", &["--resume"]);
    succeeds(&resume);
    let journal = format!("{out}/journal.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    let (header, entries) = text.split_once('\n').unwrap();
    // Later lines of a weight take the place of earlier ones.
    fs::write(&journal, format!("{header}\n{}", entries.repeat(200))).unwrap();
    fs::remove_file(format!("{out}/a/u.npy")).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tensorslim")])
        .args(&resume);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = finish(command);
    one_line(&ran.err, &resume);
    assert!(ran.code == Some(1) && ran.err.contains("journal.jsonl: cannot be written"), "{:?} {}", ran.code, ran.err);
    succeeds(&resume);
    assert_eq!(read_npy(&format!("{out}/a/u.npy")).1, [60, 3]);
}

/// Results cannot be had without the place that they were to be in: a run says so, and what it had done goes on from where it is now.
#[test]
fn an_output_directory_that_goes_while_a_batch_runs() {
    let dir = Dir::new("gone");
    let names: Vec<String> = (0..60).map(|i| i.to_string()).collect();
    batch_of(&dir, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let (input, out, moved) = (dir.path("in"), dir.path("out"), dir.path("moved"));
    let args = batch(&input, &out, "3", &["--threads", "1"]);
    for way in ["moved", "removed", "emptied"] {
        let mut tries = 0..20;
        let err = loop {
            assert!(tries.next().is_some(), "20 runs were through before their directory was {way}");
            [&out, &moved].into_iter().for_each(|dir| drop(fs::remove_dir_all(dir)));
            let mut child = command(&args).stdout(Stdio::null()).spawn().unwrap();
            while !Path::new(&out).join("0/u.npy").exists() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            match way {
                "moved" => fs::rename(&out, &moved).unwrap(),
                // Results that come meanwhile are in the way.
                "removed" => while fs::remove_dir_all(&out).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound) {},
                _ => fs::remove_dir_all(format!("{out}/0")).unwrap(),
            }
            let mut err = String::new();
            child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
            match child.wait().unwrap().code() {
                Some(0) => {}
                code => {
                    assert_eq!(code, Some(1), "{way}: {err}");
                    break err;
                }
            }
        };
        assert!(err.lines().all(|line| line.starts_with("tensorslim: ")), "{way}: {err}");
        let place = if way == "moved" { &moved } else { &out };
        if way == "emptied" {
            assert!(err.contains("0: its files were moved or removed") && err.contains("1 of 60 weights"), "{err}");
        } else {
            // Where the last result was made before the journal was removed, it is results that are gone.
            let gone = ["out: was moved or removed while the batch ran", "its files were moved or removed"];
            assert!(gone.iter().any(|gone| err.contains(gone)), "{way}: {err}");
            assert!(way == "removed" || err.contains(gone[0]), "{way}: {err}");
        }
        // What is there is taken where the journal is there, and done anew where it is not.
        let again = run(&batch(&input, place, "3", &["--resume"]));
        assert_eq!((again.code, again.err.as_str()), (Some(0), ""), "{way}");
        assert!(way == "removed" || again.out.contains("of an earlier run"), "{way}: {}", again.out);
        for name in &names {
            read_npy(&format!("{place}/{name}/u.npy"));
        }
    }
}

// ---------------------------------------------------------------- in the middle of the work

/// Spawns, and kills after a while that is drawn.
fn kill_within(draw: &mut Draw, args: &[&str], most: Duration) {
    let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(most * draw.below(1000) as u32 / 1000);
    let _ = child.kill();
    child.wait().unwrap();
}

/// Killed at any time a run leaves what was there or what is new; where it is both, the report does not fit and says so. The same command then ends right.
#[test]
fn killed_runs_leave_whole_files() {
    let dir = Dir::new("killed");
    batch_of(&dir, &["a", "b", "c"]);
    let (w, out, stats, state) = (dir.path("in/a.npy"), dir.path("out"), dir.path("stats"), dir.path("state"));
    let mut draw = Draw(0x0123_4567_89ab_cdef);
    let factor =
        |seed: &'static str| ["factor", &w, "--rank", "9", "--method", "randomized", "--seed", seed, "--out", &out];
    let time = |args: &[&str]| {
        let start = Instant::now();
        succeeds(args);
        start.elapsed()
    };
    let (mut kills, mut mixed) = (0, 0);
    let most = time(&factor("1"));
    for _ in 0..10 {
        for seed in ["1", "2"] {
            kill_within(&mut draw, &factor(seed), most);
            ["u.npy", "s.npy", "vt.npy"].iter().for_each(|name| drop(read_npy(&format!("{out}/{name}"))));
            mixed += usize::from(!is_described(Path::new(&out)));
            kills += 1;
        }
    }
    succeeds(&factor("1"));
    assert_described(Path::new(&out));

    let calibrate = ["calibrate", &w, &dir.path("in/b.npy"), "--out", &stats, "--checkpoint", &state];
    let most = time(&calibrate);
    let clean = fs::read(&stats).unwrap();
    for _ in 0..15 {
        kill_within(&mut draw, &calibrate, most);
        assert!(fs::read(&stats).unwrap() == clean);
        kills += 1;
    }
    fs::remove_file(&stats).unwrap();
    succeeds(&calibrate);
    assert!(fs::read(&stats).unwrap() == clean);

    let (input, results) = (dir.path("in"), dir.path("results"));
    let again = batch(&input, &results, "9", &["--resume"]);
    let most = time(&again);
    let whole = |path: &str| -> BTreeMap<PathBuf, There> {
        let all = everything(Path::new(path)).into_iter().filter(|(path, _)| !path.ends_with("journal.jsonl"));
        all.map(|(path, there)| (path.strip_prefix(&results).unwrap().to_path_buf(), there)).collect()
    };
    let want = whole(&results);
    for _ in 0..15 {
        fs::remove_dir_all(&results).unwrap();
        kill_within(&mut draw, &again, most);
        succeeds(&again);
        assert!(whole(&results) == want, "{:?}", whole(&results).keys());
        kills += 1;
    }

    let merge = ["merge", &results];
    let most = time(&merge);
    let manifest = fs::read(format!("{results}/manifest.json")).unwrap();
    for _ in 0..15 {
        kill_within(&mut draw, &merge, most);
        assert!(fs::read(format!("{results}/manifest.json")).unwrap() == manifest);
        kills += 1;
    }
    succeeds(&merge);
    let stderr = &mut std::io::stderr();
    let _ = writeln!(stderr, "faults: {kills} kills, all survived; {mixed} between two files, which the report shows");
}

/// Factors that are killed between two of their files can be run again as they were, over nothing and over another form.
#[test]
fn factors_that_are_half_there_are_taken_up() {
    let dir = Dir::new("half");
    let w = dir.file("w.npy", &f32_npy(60, 40, |i, j| ((i * 3 + j * j) as f32).sin()));
    let out = dir.path("out");
    let mut half = 0;
    for (before, form, files) in [
        (None, "svd", ["s.npy", "u.npy", "vt.npy"].as_slice()),
        (Some("svd"), "split", &["down.npy", "up.npy"]),
        (Some("split"), "pivot", &["coefficients.npy", "pivots.npy", "rows.npy"]),
    ] {
        let factor = |form: &'static str| ["factor", &w, "--rank", "9", "--out", &out, "--form", form];
        for _ in 0..20 {
            let _ = fs::remove_dir_all(&out);
            before.into_iter().for_each(|form| drop(succeeds(&factor(form))));
            let mut child = command(&factor(form)).stdout(Stdio::null()).spawn().unwrap();
            let is_there = || files.iter().any(|name| Path::new(&out).join(name).exists());
            while !is_there() && child.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
            let _ = child.kill();
            child.wait().unwrap();
            half += usize::from(!is_described(Path::new(&out)));
            succeeds(&factor(form));
            assert_described(Path::new(&out));
            let there: Vec<_> = names(&out).into_iter().filter(|name| !name.starts_with('.')).collect();
            let mut want = [files, &["report.json"]].concat();
            want.sort_unstable();
            assert_eq!(there, want);
        }
    }
    let _ = writeln!(std::io::stderr(), "faults: 60 kills, {half} between two files, all taken up");
}

/// A file that is written to while it is read is an error in every command.
#[test]
fn files_that_change_while_they_are_read() {
    let dir = Dir::new("changing");
    let w = dir.file("w.npy", &npy("<f2", "False", "(20000, 1024)", &large()));
    let tiles = ["factor", &w, "--rank", "2", "--memory-limit", "48M"];
    let out = dir.path("out");
    for args in [
        &["factor", &w, "--rank", "2"][..],
        &tiles,
        &["calibrate", &w, "--out", &dir.path("s")],
        &["batch", &w, "--rank", "2", "--out", &out, "--progress", "none"],
    ] {
        let mut child = command(args).stdout(Stdio::null()).spawn().unwrap();
        let file = fs::File::options().write(true).open(&w).unwrap();
        let code = loop {
            // As if another program wrote a byte.
            file.set_modified(std::time::SystemTime::now()).unwrap();
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(code, Some(1), "{args:?}: {err}");
        assert!(err.contains("w.npy: was changed while it was read"), "{args:?}: {err}");
    }
}
