//! The fuzz targets' checks on their corpus and on random changes of it: what stands in for
//! `cargo fuzz` with the stable compiler. `OVERFALL_FUZZ_SECONDS` says how long for each target,
//! `OVERFALL_FUZZ_SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[path = "fuzz/checks.rs"]
mod checks;
#[allow(dead_code)] // each test binary uses its part
#[path = "common/dice.rs"]
mod dice;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use dice::Dice;

#[test]
fn options() {
    fuzz("options", checks::options);
}

#[test]
fn formats() {
    fuzz("formats", checks::formats);
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect(variable))
}

fn fuzz(target: &str, check: fn(&[u8])) {
    let corpus = corpus(target);
    for (name, bytes) in &corpus {
        run(check, bytes, || format!("corpus file {name}"));
    }
    let seed = number("OVERFALL_FUZZ_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("a clock").as_nanos() as u64
    });
    let seconds = Duration::from_secs(number("OVERFALL_FUZZ_SECONDS").unwrap_or(2));
    let start = Instant::now();
    let mut dice = Dice(seed | 1);
    let mut count = 0_u64;
    while start.elapsed() < seconds {
        let mut bytes = corpus[dice.roll(corpus.len())].1.clone();
        for _ in 0..=dice.roll(6) {
            let other = &corpus[dice.roll(corpus.len())].1;
            mutate(&mut dice, &mut bytes, other);
        }
        run(check, &bytes, || {
            format!("OVERFALL_FUZZ_SEED={seed}, input {count}")
        });
        count += 1;
    }
    println!(
        "{target}: {} files and {count} changes of them, seed {seed}",
        corpus.len()
    );
}

fn run(check: fn(&[u8]), bytes: &[u8], origin: impl Fn() -> String) {
    if catch_unwind(AssertUnwindSafe(|| check(bytes))).is_err() {
        panic!("{}: \"{}\"", origin(), bytes.escape_ascii());
    }
}

fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8]) {
    /// What the formats treat in a way of its own.
    const SPECIAL: &[u8] = b",:=\\/\"'.-+\0\n\xff\xfb012379xyof ";
    let at = dice.roll(bytes.len() + 1);
    match dice.roll(7) {
        0 => bytes.insert(at, SPECIAL[dice.roll(SPECIAL.len())]),
        1 if at < bytes.len() => bytes[at] = SPECIAL[dice.roll(SPECIAL.len())],
        2 if at < bytes.len() => bytes[at] = dice.roll(256) as u8,
        3 if at < bytes.len() => drop(bytes.remove(at)),
        4 => bytes.truncate(at),
        5 => {
            let from = dice.roll(other.len() + 1);
            bytes.splice(at..at, other[from..].iter().copied());
        }
        _ => {
            let end = at + dice.roll(bytes.len() - at + 1);
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
    }
    bytes.truncate(4096);
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuse-tests/fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no corpus in {}", dir.display());
    files
}
