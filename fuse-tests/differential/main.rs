//! The differential test: random layers and random operations, once on the kernel's overlay and
//! once on overfall's FUSE server, in lockstep.
//!
//! Compared are every return value, error number and byte read; then the merged trees; then the
//! upper directories; then what each of the two makes of the other's upper directory. `known.rs`
//! lists the differences that may be. A case that shows another one is shrunk and printed with
//! its seed.
//!
//! ```text
//! cargo test --test differential                            a short run, always the same
//! OVERFALL_DIFFERENTIAL=ci cargo test --test differential   500 sequences with fresh seeds
//! cargo test --test differential -- --seed 7 --count 1000   any number of one's own
//!     --ops 100          operations in a sequence
//!     --fs ext4          where the layers are: ext4, xfs, btrfs, tmpfs, mixed (each layer somewhere
//!                        else), or tmp for $TMPDIR as it is
//!     --user | --root    only in a plain user's namespace; only as root
//!     --options LIST     mount options for both sides: redirect_dir=on,metacopy=on,index=on
//!     --server-options LIST   mount options for overfall alone: its own switches
//!     --drop-caches      let the kernel forget what nobody uses, now and then, on the whole machine
//!     --dotted           overfall can't make whiteouts: it writes the fallback form, which is then upgraded
//!     --findings 3       go on until so many were found
//!     --no-shrink        print a case as it was found
//! ```
//!
//! Without `--fs`, `--user`, `--root`, `--options`, `--drop-caches` or `--dotted` the sequences are spread over all of
//! these, always in the same way (`parts.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

mod act;
mod calls;
mod case;
mod compare;
mod dotted;
mod execute;
#[path = "../common/filter.rs"]
mod filter;
mod heirs;
mod indexed;
mod known;
mod layers;
mod look;
mod manner;
mod mapping;
mod ops;
mod parts;
mod place;
mod privileges;
mod random;
#[path = "../common/refuse.rs"]
mod refuse;
#[path = "../common/release.rs"]
mod release;
mod script;
mod shrink;
mod side;
#[path = "../common/users.rs"]
mod users;

use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::Instant;

use case::{Case, Tally};
use layers::Power;
use manner::Manner;
use parts::Part;
use place::{Ground, Place};

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
struct Wish {
    seed: Option<u64>,
    count: Option<usize>,
    ops: usize,
    place: Option<Place>,
    power: Option<Power>,
    options: Option<String>,
    server_options: String,
    drop_caches: bool,
    dotted: bool,
    findings: usize,
    shrink: bool,
    /// Set for a process that does the work itself, in this directory.
    worker: Option<PathBuf>,
    /// Directories on other file systems that a worker may put layers in.
    elsewhere: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some(wish)) => match &wish.worker {
            Some(dir) => work(&wish, dir),
            None => lead(&wish),
        },
        Ok(None) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

/// The wish; none where nothing is to be run.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Wish>, String> {
    let mut wish = Wish {
        ops: 100,
        findings: 3,
        shrink: true,
        ..Wish::default()
    };
    let mut filters = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        match &*argument {
            "--seed" => wish.seed = Some(number(value()?)?),
            "--count" => wish.count = Some(number(value()?)? as usize),
            "--ops" => wish.ops = number(value()?)? as usize,
            "--findings" => wish.findings = number(value()?)? as usize,
            "--fs" => wish.place = Some(Place::named(&value()?)?),
            "--user" => wish.power = Some(Power::User),
            "--root" => wish.power = Some(Power::Root),
            "--options" => wish.options = Some(value()?),
            "--server-options" => wish.server_options = value()?,
            "--drop-caches" => wish.drop_caches = true,
            "--dotted" => wish.dotted = true,
            "--elsewhere" => wish.elsewhere.push(value()?.into()),
            "--no-shrink" => wish.shrink = false,
            "--worker" => wish.worker = Some(value()?.into()),
            // What `cargo test` hands to every test binary.
            "--list" => return Ok(None),
            "--test-threads" | "--skip" | "--color" | "--format" => drop(value()?),
            "-q" | "--quiet" | "--nocapture" | "--no-capture" | "--exact" | "--include-ignored" => {
            }
            other if other.starts_with('-') => return Err(format!("unknown option {other}")),
            _ => filters.push(argument),
        }
    }
    let wanted = filters.is_empty()
        || filters
            .iter()
            .any(|filter| "differential".contains(&**filter));
    Ok(wanted.then_some(wish))
}

/// Divides the work among processes, two at a time.
fn lead(wish: &Wish) -> ExitCode {
    let in_ci = std::env::var_os("OVERFALL_DIFFERENTIAL").is_some_and(|value| value == "ci");
    let count = wish.count.unwrap_or(if in_ci { 500 } else { 60 });
    let fresh = || {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        since.as_secs() * 100_000
    };
    let seed = wish.seed.unwrap_or_else(|| if in_ci { fresh() } else { 1 });
    let begin = Instant::now();
    let mut ground = match Ground::prepare() {
        Ok(ground) => ground,
        Err(why) => {
            eprintln!("differential: {why}");
            return ExitCode::FAILURE;
        }
    };
    let parts = parts(wish);
    let mut running: Vec<Child> = Vec::new();
    let mut good = true;
    let mut next = seed;
    for part in &parts {
        let label = part.manner.label();
        let share = (count * part.share).div_ceil(100);
        let command = match ground.command(&part.manner) {
            Ok(command) => command,
            Err(why) => {
                println!("skipped {share} sequences as {label}: {why}");
                continue;
            }
        };
        // Who drops caches drops everybody's.
        let at_once = if part.manner.drop_caches { 1 } else { 2 };
        while running.len() >= at_once {
            good &= finish(&mut running.remove(0));
        }
        match start(command, wish, part, next, share) {
            Ok(child) => running.push(child),
            Err(why) => {
                println!("{label}: {why}");
                good = false;
            }
        }
        // One manner gets the same sequences as another where somebody chose them.
        if !wish.has_manner() {
            next += share as u64;
        }
    }
    for child in &mut running {
        good &= finish(child);
    }
    println!("differential: {:?}", begin.elapsed());
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Wish {
    /// Whether it says in which manner the sequences are run.
    fn has_manner(&self) -> bool {
        self.place.is_some()
            || self.power.is_some()
            || self.options.is_some()
            || self.drop_caches
            || self.dotted
    }

    /// As a worker is told.
    fn manner(&self, power: Power) -> Manner {
        Manner {
            options: self.options.clone().unwrap_or_default(),
            server_options: self.server_options.clone(),
            drop_caches: self.drop_caches,
            dotted: self.dotted,
            ..Manner::new(power, self.place.unwrap_or(Place::Tmp))
        }
    }
}

/// Who does which share.
fn parts(wish: &Wish) -> Vec<Part> {
    if !wish.has_manner() {
        let mut parts = parts::mixture();
        for part in &mut parts {
            part.manner.server_options = wish.server_options.clone();
        }
        return parts;
    }
    let powers: &[Power] = match &wish.power {
        Some(power) => std::slice::from_ref(power),
        // What the options do and who may drop caches is root's.
        None if wish.options.is_some() || wish.drop_caches => &[Power::Root],
        None => &[Power::Root, Power::User],
    };
    let part = |power: &Power| Part {
        manner: wish.manner(*power),
        share: 100 / powers.len(),
    };
    powers.iter().map(part).collect()
}

fn start(
    mut command: Command,
    wish: &Wish,
    part: &Part,
    seed: u64,
    count: usize,
) -> Result<Child, String> {
    let option = |name: &str, number: String| [name.to_owned(), number];
    command
        .args(option("--seed", seed.to_string()))
        .args(option("--count", count.to_string()))
        .args(option("--ops", wish.ops.to_string()))
        .args(option("--findings", wish.findings.to_string()))
        .args(part.manner.arguments());
    if !wish.shrink {
        command.arg("--no-shrink");
    }
    command
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))
}

fn finish(child: &mut Child) -> bool {
    child.wait().is_ok_and(|status| status.success())
}

/// Runs the cases of one part.
fn work(wish: &Wish, dir: &std::path::Path) -> ExitCode {
    let manner = wish.manner(wish.power.unwrap_or(Power::Root));
    let (seed, count) = (wish.seed.unwrap_or(1), wish.count.unwrap_or(1));
    let label = manner.label();
    let mut elsewhere = wish.elsewhere.clone();
    if !elsewhere.is_empty() {
        elsewhere.push(dir.to_path_buf());
    }
    let begin = Instant::now();
    if let Err(why) = place::isolate().and_then(|()| place::usable(&manner, dir)) {
        println!("skipped {count} sequences as {label}: {why}");
        return ExitCode::SUCCESS;
    }
    let (mut found, mut done, mut steps) = (0, 0, 0);
    let mut tally = Tally::new();
    for seed in (seed..).take(count) {
        let case = Case::generate(seed, &manner, wish.ops, &elsewhere);
        let place_of_case = dir.join(format!("{}-{seed}", std::process::id()));
        steps += case.steps.len();
        done += 1;
        let Err(finding) = case.run(&place_of_case, &mut tally) else {
            continue;
        };
        found += 1;
        let (case, finding) = if wish.shrink {
            shrink::shrink(&case, &finding, &place_of_case)
        } else {
            (case, finding)
        };
        let flags: Vec<_> = manner.arguments().iter().map(|word| quoted(word)).collect();
        println!(
            "\nFOUND as {label}: cargo test --test differential -- --seed {seed} --count 1 --ops {} {}\n{}  => {}\n",
            wish.ops,
            flags.join(" "),
            case.script(),
            finding.text
        );
        if found >= wish.findings {
            break;
        }
    }
    for (why, times) in tally {
        println!("{label}: {times} times: {why}");
    }
    println!(
        "{label}: {done} sequences, {steps} operations from seed {seed} in {:.1?}, {found} findings",
        begin.elapsed()
    );
    if found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,.:/+".contains(c);
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
