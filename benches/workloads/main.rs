//! The same work on a plain directory, the kernel's overlay, overfall's FUSE server and
//! fuse-overlayfs, in turn, as ratios to the kernel's overlay.
//!
//! `cargo bench --bench workloads [-- FILTER…] [--quick] [--record] [--place root|user]`;
//! `-- --limits 1000000` for what isn't a time; `-- --dir DIR` on another file system (reflinks);
//! `OVERFALL_TEST_OPTIONS=writeback=on` with other mount options; `OVERFALL_OTHER_OPTIONS` or
//! `OVERFALL_OTHER_BINARY` adds a column for overfall with other options, or another build of it.
//!
//! Nothing but ratios from one run counts. Slowness never fails the run; wrong content, or an
//! operation that fails on overfall, does.

mod bed;
mod cases;
mod grounds;
mod installs;
mod limits;
mod metadata;
#[allow(dead_code)] // the tests use the rest of it
#[path = "../../fuse-tests/common/mmap.rs"]
mod mmap;
mod place;
mod programs;
mod rivals;
mod streams;
mod supplies;
mod table;

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use bed::{Bed, Tools};
use cases::{CASES, Case};
use grounds::{Grounds, Scale};
use place::Place;
use table::{Findings, Row, Sample};

/// What goes wrong, in one line.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// The same work on every carrier of an overlay, as ratios to the kernel's.
#[derive(Debug, Clone, Parser)]
struct Args {
    /// Only the cases whose names contain one of these
    filters: Vec<String>,

    /// Small trees and files: less than a minute
    #[arg(long)]
    quick: bool,

    /// Append the table to docs/benchmarks.md
    #[arg(long)]
    record: bool,

    /// Runs of each case on each carrier, however long they take
    #[arg(long)]
    rounds: Option<usize>,

    /// Only as root, or only as a plain user in a namespace of its own
    #[arg(long, value_enum)]
    place: Option<Place>,

    /// Leave the machine's caches alone: "cold" is then a fresh mount over layers in memory
    #[arg(long)]
    keep_caches: bool,

    /// Instead: memory and descriptors of the server on a tree of so many files, and `overfall run`
    #[arg(long, value_name = "FILES")]
    limits: Option<usize>,

    /// Leave fuse-overlayfs out
    #[arg(long)]
    ours: bool,

    /// Where the layers lie, instead of the directory for temporary files
    #[arg(long)]
    dir: Option<PathBuf>,

    /// Cargo says this
    #[arg(long, hide = true)]
    bench: bool,

    /// Where the parent process put what programs install
    #[arg(long, hide = true)]
    supplies: Option<PathBuf>,

    /// Print the results for the parent process to read
    #[arg(long, hide = true)]
    child: bool,
}

impl Args {
    /// The cases that were asked for.
    fn cases(&self) -> impl Iterator<Item = &'static Case> {
        CASES.iter().filter(|case| {
            self.filters.is_empty() || self.filters.iter().any(|part| case.name.contains(part))
        })
    }
}

/// What a case may take before there is no other round, unless rounds were asked for: all of them
/// together have to end within a good half hour.
const BUDGET: Duration = Duration::from_secs(20);

/// What fuse-overlayfs may take for one run, with all around it, before there is no other.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("workloads: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing was wrong.
fn run(args: &Args) -> Outcome<bool> {
    if args.child {
        let dir = args.dir.clone().ok_or("--child needs --dir")?;
        let supplies = args.supplies.as_deref().ok_or("--child needs --supplies")?;
        let findings = measure(args, Place::User, &dir, supplies)?;
        println!("{}", serde_json::to_string(&findings)?);
        return Ok(true);
    }
    place::isolate()?;
    let base = place::base_dir(args.dir.as_deref())?;
    if let Some(files) = args.limits {
        limits::measure(files, base.path())?;
        return Ok(true);
    }
    let supplies = base.path().join("supplies");
    fs::create_dir(&supplies)?;
    for supply in args.cases().flat_map(Case::supplies) {
        supply.prepare(&supplies)?;
    }
    let mut good = true;
    let mut text = String::new();
    for place in Place::ALL {
        if args.place.is_some_and(|wanted| wanted != place) {
            continue;
        }
        let findings = match place {
            Place::Root if !place::is_real_root() => {
                eprintln!("as root: skipped, this is a plain user");
                continue;
            }
            Place::Root => measure(args, place, base.path(), &supplies)?,
            Place::User => place::measure_as_user(args, base.path(), &supplies)?,
        };
        good &= findings.rows.iter().all(Row::is_good);
        let part = findings.render(place);
        print!("{part}");
        text.push_str(&part);
    }
    if args.record {
        table::record(args.quick, base.path(), &text)?;
    }
    Ok(good)
}

/// Runs every wanted case on every carrier.
fn measure(args: &Args, place: Place, base: &Path, supplies: &Path) -> Outcome<Findings> {
    let scale = Scale::new(args.quick, args.keep_caches);
    let (rounds, budget) = match args.rounds {
        Some(rounds) => (rounds, Duration::MAX),
        None => (scale.rounds, BUDGET),
    };
    let tools = Tools::find(place, args.ours, supplies);
    let mut grounds = Grounds::new(base.join("grounds"), scale);
    let mut findings = Findings::new(tools.versions());
    for case in args.cases() {
        if let Some(why) = case.obstacle(supplies) {
            eprintln!("{}: skipped, {why}", case.name);
            findings.skipped.push((case.name.to_owned(), why));
            continue;
        }
        let start = Instant::now();
        let rounds = 0..rounds;
        let row = measure_case(case, &tools, &mut grounds, base, rounds, budget)?;
        let took = start.elapsed().as_secs_f64();
        eprintln!("{}, {took:.1} s: {}", place.name(), row.brief());
        findings.rows.push(row);
    }
    Ok(findings)
}

fn measure_case(
    case: &Case,
    tools: &Tools,
    grounds: &mut Grounds,
    base: &Path,
    rounds: Range<usize>,
    budget: Duration,
) -> Outcome<Row> {
    let lowers = grounds.get(case.ground)?;
    let scale = grounds.scale();
    let mut row = Row::new(case, rounds.len());
    let begin = Instant::now();
    let mut slow = Vec::new();
    let carriers = tools.carriers();
    let beds = base.join("beds");
    for round in rounds {
        if round > 0 && begin.elapsed() > budget {
            break;
        }
        for turn in 0..carriers.len() {
            // Who comes first in one round comes last in another.
            let carrier = carriers[(turn + round) % carriers.len()];
            if !case.suits(carrier) || row.has_failed(carrier) || slow.contains(&carrier) {
                continue;
            }
            let dir = beds.join(format!("{round}-{turn}"));
            let mut bed = Bed::new(carrier, tools, &lowers, &dir, scale)?;
            let start = Instant::now();
            let outcome = case.perform(&mut bed, scale);
            let requests = bed.finish();
            if carrier.is_rival() && start.elapsed() > PATIENCE {
                slow.push(carrier);
            }
            drop_big_files(&dir)?;
            match outcome {
                Ok(time) => row.add(Sample::new(carrier, round, time), requests),
                Err(error) => {
                    let error = error.to_string();
                    eprintln!("{}: {}: {error}", case.name, carrier.name());
                    row.fail(carrier, error);
                }
            }
        }
    }
    // Not between the runs: ext4 is slow to make files where some were just removed.
    fs::remove_dir_all(&beds).map_err(|error| format!("{}: {error}", beds.display()))?;
    Ok(row)
}

/// The disk has no room for those of all runs.
fn drop_big_files(bed: &Path) -> Outcome<()> {
    for dir in ["upper", "merged"] {
        for name in [streams::OLD, streams::NEW] {
            match fs::remove_file(bed.join(dir).join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", bed.display()).into());
                }
                _ => {}
            }
        }
    }
    Ok(())
}
