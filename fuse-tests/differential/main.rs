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
//!     --fs ext4          where the layers are: ext4, xfs, btrfs, tmpfs, or tmp for $TMPDIR as it is
//!     --user | --root    only in a plain user's namespace; only as root
//!     --findings 3       go on until so many were found
//!     --no-shrink        print a case as it was found
//! ```
//!
//! With `OVERFALL_DROP_CACHES=1`, root's sequences (`--root`) now and then let the kernel forget what
//! nobody uses, on the whole machine: don't run others beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod case;
mod compare;
mod execute;
mod known;
mod layers;
mod look;
mod mapping;
mod ops;
mod place;
mod random;
mod shrink;
mod side;

use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::Instant;

use case::{Case, Tally};
use layers::Power;
use place::{Ground, Place};

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
struct Wish {
    seed: Option<u64>,
    count: Option<usize>,
    ops: usize,
    place: Option<Place>,
    power: Option<Power>,
    findings: usize,
    shrink: bool,
    /// Set for a process that does the work itself, in this directory.
    worker: Option<PathBuf>,
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

/// One process's share.
struct Part {
    power: Power,
    place: Place,
    share: usize,
}

/// The usual mixture, in hundredths.
const PARTS: [Part; 6] = [
    Part {
        power: Power::Root,
        place: Place::Ext4,
        share: 20,
    },
    Part {
        power: Power::User,
        place: Place::Ext4,
        share: 30,
    },
    Part {
        power: Power::Root,
        place: Place::Tmpfs,
        share: 10,
    },
    Part {
        power: Power::User,
        place: Place::Tmpfs,
        share: 20,
    },
    Part {
        power: Power::Root,
        place: Place::Xfs,
        share: 10,
    },
    Part {
        power: Power::Root,
        place: Place::Btrfs,
        share: 10,
    },
];

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
    let ground = match Ground::prepare() {
        Ok(ground) => ground,
        Err(why) => {
            eprintln!("differential: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut parts = Vec::new();
    match (wish.place, wish.power) {
        (None, None) => parts.extend(PARTS),
        (place, power) => {
            let place = place.unwrap_or(Place::Tmp);
            let powers: &[Power] = match &power {
                Some(power) => std::slice::from_ref(power),
                None => &[Power::Root, Power::User],
            };
            parts.extend(powers.iter().map(|power| Part {
                power: *power,
                place,
                share: 100 / powers.len(),
            }));
        }
    }
    let mut running: Vec<Child> = Vec::new();
    let mut good = true;
    let mut next = seed;
    for part in &parts {
        let label = format!("{:?} on {:?}", part.power, part.place).to_lowercase();
        let share = (count * part.share).div_ceil(100);
        let command = match ground.command(part.power, part.place) {
            Ok(command) => command,
            Err(why) => {
                println!("skipped {share} sequences as {label}: {why}");
                continue;
            }
        };
        if running.len() == 2 {
            good &= finish(&mut running.remove(0));
        }
        match start(command, wish, part, next, share) {
            Ok(child) => running.push(child),
            Err(why) => {
                println!("{label}: {why}");
                good = false;
            }
        }
        // With one sequence, the two powers get the same seed.
        if wish.seed.is_none() {
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
        .args(option("--fs", part.place.name().to_owned()))
        .arg(if part.power == Power::User {
            "--user"
        } else {
            "--root"
        });
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
    let power = wish.power.unwrap_or(Power::Root);
    let place = wish.place.unwrap_or(Place::Tmp);
    let (seed, count) = (wish.seed.unwrap_or(1), wish.count.unwrap_or(1));
    let label = format!("{power:?} on {}", place.name()).to_lowercase();
    let begin = Instant::now();
    if let Err(why) = place::isolate().and_then(|()| place::usable(power, dir)) {
        println!("skipped {count} sequences as {label}: {why}");
        return ExitCode::SUCCESS;
    }
    let (mut found, mut done, mut steps) = (0, 0, 0);
    let mut tally = Tally::new();
    for seed in (seed..).take(count) {
        let case = Case::generate(seed, power, wish.ops);
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
        let flag = if power == Power::User {
            "--user"
        } else {
            "--root"
        };
        println!(
            "\nFOUND as {label}: cargo test --test differential -- --seed {seed} --count 1 --ops {} --fs {} {flag}\n{}  => {}\n",
            wish.ops,
            place.name(),
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
