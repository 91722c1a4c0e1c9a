//! The same work on a plain directory, the kernel's overlay, overfall's FUSE server and
//! fuse-overlayfs, in turn, as ratios to the kernel's overlay.
//!
//! `cargo bench --bench workloads [-- FILTER…] [--quick] [--record] [--place root|user]`;
//! `-- --limits 1000000` for what isn't a time; `-- --dir DIR` on another file system (reflinks);
//! `OVERFALL_TEST_OPTIONS=writeback=on` with other mount options.
//!
//! Nothing but ratios from one run counts. Slowness never fails the run; wrong content, or an
//! operation that fails on overfall, does.

mod bed;
mod cases;
mod grounds;
mod limits;
mod metadata;
#[allow(dead_code)] // the tests use the rest of it
#[path = "../../fuse-tests/common/mmap.rs"]
mod mmap;
mod place;
mod programs;
mod streams;
mod table;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use bed::{Bed, Tools};
use cases::{CASES, Case};
use grounds::{Grounds, Scale};
use place::Place;
use table::{Row, Sample};

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

    /// Runs of each case on each carrier
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

    /// Print the results for the parent process to read
    #[arg(long, hide = true)]
    child: bool,
}

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
        let rows = measure(args, Place::User, &dir)?;
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(true);
    }
    place::isolate()?;
    let base = place::base_dir(args.dir.as_deref())?;
    if let Some(files) = args.limits {
        limits::measure(files, base.path())?;
        return Ok(true);
    }
    let mut good = true;
    let mut text = String::new();
    for place in Place::ALL {
        if args.place.is_some_and(|wanted| wanted != place) {
            continue;
        }
        let rows = match place {
            Place::Root if !place::is_real_root() => {
                eprintln!("as root: skipped, this is a plain user");
                continue;
            }
            Place::Root => measure(args, place, base.path())?,
            Place::User => place::measure_as_user(args, base.path())?,
        };
        good &= rows.iter().all(Row::is_good);
        let part = table::render(place, &rows);
        print!("{part}");
        text.push_str(&part);
    }
    if args.record {
        table::record(args.quick, base.path(), &text)?;
    }
    Ok(good)
}

/// Runs every wanted case on every carrier.
fn measure(args: &Args, place: Place, base: &Path) -> Outcome<Vec<Row>> {
    let scale = Scale::new(args.quick, args.keep_caches);
    let rounds = args.rounds.unwrap_or(scale.rounds);
    let tools = Tools::find(place, args.ours)?;
    let mut grounds = Grounds::new(base.join("grounds"), scale);
    let wanted = |case: &&Case| {
        args.filters.is_empty() || args.filters.iter().any(|part| case.name.contains(part))
    };
    let mut rows = Vec::new();
    for case in CASES.iter().filter(wanted) {
        if let Some(missing) = case.needs.iter().find(|name| !programs::installed(name)) {
            eprintln!("{}: skipped, no {missing} here", case.name);
            continue;
        }
        let row = measure_case(case, &tools, &mut grounds, base, rounds)?;
        eprintln!("{}: {}", place.name(), row.brief());
        rows.push(row);
    }
    Ok(rows)
}

fn measure_case(
    case: &Case,
    tools: &Tools,
    grounds: &mut Grounds,
    base: &Path,
    rounds: usize,
) -> Outcome<Row> {
    let lowers = grounds.get(case.ground)?;
    let scale = grounds.scale();
    let mut row = Row::new(case);
    let carriers = tools.carriers();
    let beds = base.join("beds");
    for round in 0..rounds {
        for turn in 0..carriers.len() {
            // Who comes first in one round comes last in another.
            let carrier = carriers[(turn + round) % carriers.len()];
            if !case.suits(carrier) || row.has_failed(carrier) {
                continue;
            }
            let dir = beds.join(format!("{round}-{turn}"));
            let mut bed = Bed::new(carrier, tools, &lowers, &dir, scale)?;
            let outcome = case.perform(&mut bed, scale);
            let requests = bed.finish();
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
