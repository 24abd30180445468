//! Everything that parses bytes from outside, on bytes that are nearly right: no panic, no allocation beyond the input's own size, no
//! hang; what is accepted is read again from what it writes.
//!
//! Inputs grow from a small corpus (`tests/data/corpus`, and files made here) by the changes that break parsers: bits, lengths, cuts, repeats,
//! tokens of the format, pieces of other inputs, numbers at the ends of their types. The tests take some ten thousand; the long run is
//!
//! ```text
//!   TENSORSLIM_FUZZ=10000000 cargo test --release --features cli --test parsers -- --nocapture
//! ```
//!
//! `tests/fuzz` has the same checks as targets of cargo-fuzz, which follows the branches that an input takes.
//!
//! proptest makes the inputs of `tests/npy.rs`; here its shrinking would cost more than the inputs, and a failing one is printed with its seed.
#![cfg(feature = "cli")]
#![expect(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]

#[path = "parsers/checks.rs"]
mod checks;
#[expect(dead_code, reason = "a part of it is used")]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use checks::empty_state;
use common::Random;
use tensorslim::batch::config::Config;
use tensorslim::batch::manifest::{Manifest, parse_journal};
use tensorslim::calibration::Calibration;
use tensorslim::npy::{self, Array};
use tensorslim::{DType, Matrix};

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// Counts by thread: tests run beside each other.
struct Counting;

fn count(more: usize, less: usize) {
    // While a thread ends its counters are gone, and nobody asks.
    let _ = NOW.try_with(|now| {
        now.set((now.get() + more).saturating_sub(less));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

// SAFETY: every call goes to `System` unchanged; the counters are only written beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's contract is `System`'s.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A parser under test.
struct Target {
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    tokens: &'static [&'static str],
    parse: fn(&[u8]),
    /// What it may allocate beside a multiple of the input.
    fixed: usize,
    /// Bytes allocated for each byte of input.
    factor: usize,
}

fn corpus(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/corpus").join(name)).unwrap()
}

fn npy_files() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for (dtype, shape) in
        [(DType::F16, vec![2, 3]), (DType::F64, vec![1]), (DType::BF16, vec![2, 2]), (DType::F32, vec![2, 1, 2, 2])]
    {
        let mut file = Vec::new();
        let bytes = vec![0x3c; shape.iter().product::<usize>() * dtype.size()];
        npy::write_to(&mut file, dtype, &shape, &bytes).unwrap();
        files.push(file);
    }
    let text = String::from_utf8_lossy(&files[0]).into_owned();
    assert!(text.contains("'fortran_order': False"));
    let mut fortran = files[0].clone();
    let at = fortran.windows(5).position(|w| w == b"False").unwrap();
    fortran.splice(at..at + 5, *b"True ");
    files.push(fortran);
    files
}

fn statistics() -> Vec<Vec<u8>> {
    let mut files = vec![Calibration::new(3).unwrap().to_bytes()];
    let mut random = Random(3);
    let x = Matrix::<f32>::from_fn(5, 4, |_, _| random.normal() as f32);
    let mut c = Calibration::new(4).unwrap();
    c.update(&x.as_tensor().unwrap()).unwrap();
    files.push(c.to_bytes());
    files
}

fn states() -> Vec<Vec<u8>> {
    let mut files = vec![empty_state().to_bytes()];
    let a = Matrix::<f32>::from_fn(5, 4, |i, j| (3 * i + j) as f32);
    let mut some = empty_state();
    some.update(6, &a.as_tensor().unwrap()).unwrap();
    files.push(some.to_bytes());
    files
}

fn targets() -> Vec<Target> {
    const JSON: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\u0000",
        "null",
        "true",
        "-1",
        "1e999",
        "18446744073709551616",
        "0.1",
        "\"name\":",
        "\"files\":",
        "\"../../x\"",
        "\"status\":\"done\"",
        "\"shard\":[0,0]",
        "\n",
        "\"facts\":",
        "\"crc32\":4294967295",
        "\u{fffd}",
    ];
    vec![
        Target {
            name: "npy",
            corpus: npy_files(),
            tokens: &[
                "{",
                "}",
                "(",
                ")",
                "[",
                "'",
                "\"",
                ",",
                ":",
                " ",
                "\n",
                "'descr': ",
                "'fortran_order': ",
                "'shape': ",
                "'<f4'",
                "'>f2'",
                "'<V2'",
                "'|O'",
                "True",
                "False",
                "0",
                "1",
                "65536",
                "4294967296",
                "9223372036854775807",
                "18446744073709551615",
                "-",
            ],
            parse: checks::npy,
            fixed: 1 << 20,
            factor: 64,
        },
        Target {
            name: "statistics",
            corpus: statistics(),
            tokens: &["\0\0\0\0", "\u{7f}\u{7f}\u{7f}\u{7f}", "\x01", "\x02"],
            parse: checks::statistics,
            fixed: 1 << 20,
            factor: 64,
        },
        Target {
            name: "state",
            corpus: states(),
            tokens: &["\0\0\0\0", "\u{7f}\u{7f}\u{7f}\u{7f}", "\x01", "\x02"],
            parse: checks::state,
            fixed: 1 << 20,
            factor: 64,
        },
        Target {
            name: "manifest",
            corpus: vec![corpus("manifest.json")],
            tokens: JSON,
            parse: checks::manifest,
            fixed: 1 << 20,
            factor: 256,
        },
        Target {
            name: "journal",
            corpus: vec![corpus("journal.jsonl")],
            tokens: JSON,
            parse: checks::journal,
            fixed: 1 << 20,
            factor: 256,
        },
        Target {
            name: "toml",
            corpus: vec![corpus("options.toml")],
            tokens: &[
                "[",
                "]",
                "[[",
                "]]",
                "=",
                "'",
                "\"",
                "'''",
                "#",
                "\n",
                "{",
                "}",
                ",",
                "rank",
                "ratio = ",
                "energy = ",
                "[default]",
                "[[pattern]]",
                "match = ",
                "nan",
                "inf",
                "-0.0",
                "1e400",
                "9223372036854775808",
                "*",
                "**",
                "?",
                "[!a-z]",
                "{a,b}",
                "\\",
            ],
            parse: checks::toml,
            // A glob compiles to an automaton that has a limit of its own, 10 MiB.
            fixed: 64 << 20,
            factor: 1024,
        },
        Target {
            name: "names",
            corpus: vec![b"sub/model.layers.0.q.npy".to_vec(), b"../..".to_vec(), "größe\u{202e}.npy".into()],
            tokens: &["/", ".", "..", "%", "%2F", "\0", "\n", ".npy", "~", "\u{10ffff}"],
            parse: checks::names,
            fixed: 1 << 20,
            factor: 64,
        },
    ]
}

/// Longest input, in bytes.
const LONGEST: usize = 4096;
/// What no input of that length takes.
const SLOW: Duration = Duration::from_secs(2);

fn pick<'a, T: ?Sized + 'a>(random: &mut Random, from: &'a [&'a T]) -> &'a T {
    from[random.bits() as usize % from.len()]
}

/// One change of `input`.
fn change(random: &mut Random, input: &mut Vec<u8>, target: &Target) {
    let len = input.len();
    let at = if len == 0 { 0 } else { random.bits() as usize % len };
    let upto = |random: &mut Random, most: usize| (at + 1 + random.bits() as usize % most).min(len);
    match random.bits() % 11 {
        0 if len > 0 => input[at] ^= 1 << (random.bits() % 8),
        1 if len > 0 => input[at] = random.bits() as u8,
        2 => input.truncate(at),
        3 if len > 0 => drop(input.drain(at..upto(random, 32))),
        4 => drop(input.splice(at..at, pick(random, target.tokens).bytes())),
        5 if len > 0 => {
            let token = pick(random, target.tokens);
            drop(input.splice(at..(at + token.len()).min(len), token.bytes()));
        }
        6 if len > 0 => {
            let times = 1 + random.bits() as usize % 30;
            let part = input[at..upto(random, 16)].repeat(times);
            drop(input.splice(at..at, part));
        }
        7 => {
            // A number at the end of its type, in binary.
            let width = [1, 2, 4, 8][random.bits() as usize % 4];
            let number = [0, 1, u64::MAX, u64::MAX >> 1, 1 << 31, 1 << 62, random.bits()][random.bits() as usize % 7];
            let bytes = &number.to_le_bytes()[..width];
            drop(input.splice(at..(at + width).min(len), bytes.iter().copied()));
        }
        8 => {
            // A piece of another input.
            let other = &target.corpus[random.bits() as usize % target.corpus.len()];
            let from = random.bits() as usize % other.len().max(1);
            let to = (from + 1 + random.bits() as usize % 64).min(other.len());
            drop(input.splice(at..at, other[from..to].iter().copied()));
        }
        9 => {
            // A decimal number, where there is one.
            if let Some(digit) = input[at..].iter().position(u8::is_ascii_digit) {
                let number =
                    ["0", "-1", "4294967296", "18446744073709551615", "1e308", "00"][random.bits() as usize % 6];
                drop(input.splice(at + digit..at + digit + 1, number.bytes()));
            }
        }
        _ => input.push(random.bits() as u8),
    }
    input.truncate(LONGEST);
}

/// `executions` inputs for one parser.
fn fuzz(target: &Target, executions: u64, seed: u64) -> (Duration, usize) {
    let (mut longest, mut most) = (Duration::ZERO, 0);
    for i in 0..executions {
        let seed = seed.wrapping_add(i);
        let mut random = Random(seed);
        let mut input = target.corpus[random.bits() as usize % target.corpus.len()].clone();
        for _ in 0..random.bits() % 8 {
            change(&mut random, &mut input, target);
        }
        let before = NOW.get();
        PEAK.set(before);
        let start = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| (target.parse)(&input)));
        let (took, held) = (start.elapsed(), PEAK.get() - before);
        let what = || format!("{}, seed {seed}: {:?}", target.name, String::from_utf8_lossy(&input));
        assert!(done.is_ok(), "{}", what());
        assert!(held <= target.fixed + target.factor * input.len(), "{held} bytes: {}", what());
        // Milliseconds when alone. A machine that did something else meanwhile is no hang: that would come back.
        let again = |_| {
            let start = Instant::now();
            (target.parse)(&input);
            start.elapsed()
        };
        if took > SLOW {
            assert!((0..3).map(again).any(|took| took < SLOW), "{took:?}: {}", what());
        }
        (longest, most) = (longest.max(took), most.max(held));
    }
    (longest, most)
}

#[test]
fn no_input_brings_a_parser_down() {
    let all: u64 = std::env::var("TENSORSLIM_FUZZ").map_or(30_000, |n| n.parse().unwrap());
    let targets = targets();
    let each = all / targets.len() as u64;
    for target in targets {
        // What the changes start from is right.
        for input in &target.corpus {
            (target.parse)(input);
        }
        let start = Instant::now();
        // Globs compile slowly; their share is smaller.
        let executions = if target.name == "toml" { each / 4 } else { each + 3 * each / 20 };
        let (longest, most) = fuzz(&target, executions, 1);
        #[expect(clippy::print_stderr, reason = "the record of a long run")]
        {
            eprintln!(
                "{}: {executions} inputs in {:.0?}, longest {longest:.1?}, most {most} bytes",
                target.name,
                start.elapsed()
            );
        }
    }
}

/// The corpus is accepted: otherwise the changes would start from nothing.
#[test]
fn the_corpus_is_right() {
    for file in npy_files() {
        assert!(Array::from_bytes(&file, None).is_ok() || Array::from_bytes(&file, Some(DType::BF16)).is_ok());
    }
    for file in statistics() {
        Calibration::from_bytes(&file).unwrap();
    }
    assert_eq!(Manifest::parse(&corpus("manifest.json")).unwrap().tensors.len(), 3);
    assert_eq!(parse_journal(&corpus("journal.jsonl")).unwrap().1.len(), 3);
    Config::parse(std::str::from_utf8(&corpus("options.toml")).unwrap()).unwrap();
    for file in states() {
        empty_state().restore(&file).unwrap();
    }
}
