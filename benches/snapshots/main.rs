//! How long a snapshot, the first step of a build, a writable run and a container on another take
//! to start on a root of 40 000 files and 700 MB, against copying it.
//!
//! ```text
//! cargo bench --bench snapshots -- [--files N] [--megabytes N] [--times N] [--dir DIR]
//! ```
//!
//! As root, or in a user namespace (`unshare -Urm`). DIR is where the root is made; it is removed
//! at the end. What is shown is the median, as a table for docs/benchmarks.md, and whether the target
//! is met: 50 times faster than copying, and under 100 ms.

mod vagga;

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use overfall::snapshot::{Means, Progress};
use overfall::steps::{Begun, Digest, Stack, Step, StepCache};
use overfall::{Backend, Snapshot};

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Arguments {
    files: usize,
    megabytes: usize,
    times: usize,
    dir: PathBuf,
}

impl Arguments {
    fn read() -> Outcome<Self> {
        let mut read = Self {
            files: 40_000,
            megabytes: 700,
            times: 9,
            dir: std::env::temp_dir(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--files" => read.files = value()?.parse()?,
                "--megabytes" => read.megabytes = value()?.parse()?,
                "--times" => read.times = value()?.parse()?,
                "--dir" => read.dir = value()?.into(),
                // What cargo adds.
                "--bench" => {}
                _ => return Err(format!("unknown: {word}").into()),
            }
        }
        Ok(read)
    }
}

/// A line of the table.
struct Row {
    name: &'static str,
    time: Duration,
    against: Option<Duration>,
    has_target: bool,
}

impl Row {
    fn of(name: &'static str, time: Duration) -> Self {
        Self {
            name,
            time,
            against: None,
            has_target: false,
        }
    }

    fn against(mut self, copied: Duration) -> Self {
        self.against = Some(copied);
        self
    }

    fn with_target(mut self, copied: Duration) -> Self {
        self.has_target = true;
        self.against(copied)
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.against?.as_secs_f64() / self.time.as_secs_f64())
    }

    fn misses_the_target(&self) -> bool {
        let slow = self.time > Duration::from_millis(100);
        self.has_target && (slow || self.ratio().is_some_and(|ratio| ratio < 50.0))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.as_secs_f64() * 1000.0;
        let digits = if time < 20.0 { 1 } else { 0 };
        let ratio = self.ratio().map(|ratio| format!("{ratio:.0}x"));
        let ratio = ratio.unwrap_or_default();
        write!(f, "| {} | {time:.digits$} ms | {ratio} |", self.name)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("snapshots: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let arguments = Arguments::read()?;
    let dir = tempfile::Builder::new()
        .prefix("overfall-snapshots-")
        .tempdir_in(&arguments.dir)?;
    let root = dir.path().join("root");
    let bytes = plant(&root, &arguments)?;
    let few = Times {
        most: arguments.times.min(3),
        patience: Duration::from_secs(30),
    };
    let many = Times {
        most: arguments.times,
        patience: Duration::from_secs(30),
    };
    let copied = median(few, || {
        let dest = dir.path().join("copy");
        let time = timed(|| {
            let status = Command::new("cp")
                .arg("-a")
                .arg(&root)
                .arg(&dest)
                .status()?;
            if status.success() {
                Ok(())
            } else {
                Err("cp failed".into())
            }
        })?;
        fs::remove_dir_all(dest)?;
        Ok(time)
    })?;
    let size = 2 * bytes + (256 << 20);
    let snapshot = |means| {
        let root = &root;
        let times = if means == Means::Copy { few } else { many };
        median(times, move || {
            let wanted = Snapshot::of(root)
                .means(means)
                .size(size)
                .progress(Progress::Silent);
            let start = Instant::now();
            let mounted = wanted.mount()?;
            let time = start.elapsed();
            mounted.unmount()?;
            Ok(time)
        })
    };
    let snapshot_copied = snapshot(Means::Copy)?;
    let mut rows = vec![
        Row::of("`cp -a` to the disk", copied),
        Row::of("snapshot by copying, as vagga makes it", snapshot_copied),
    ];
    for (name, means) in [
        ("snapshot, what `auto` chooses", Means::Auto),
        ("snapshot, kernel's overlay", Means::Kernel),
        ("snapshot, FUSE server", Means::Fuse),
    ] {
        rows.push(Row::of(name, snapshot(means)?).with_target(snapshot_copied));
    }
    let cache = dir.path().join("cache");
    for (name, backend) in [
        ("a step's tree on it, what `auto` chooses", Backend::Auto),
        ("a step's tree, kernel's overlay", Backend::Native),
        ("a step's tree, FUSE server", Backend::Fuse),
    ] {
        let cache = StepCache::open(&cache)?.backend(backend);
        let stack = Stack::on([root.clone()], Digest::of(b"root"));
        let time = median(many, || {
            let start = Instant::now();
            let Begun::Work(work) = cache.begin(&stack, &Step::new("step", "step"))? else {
                return Err("there is a layer".into());
            };
            let time = start.elapsed();
            work.abandon()?;
            Ok(time)
        })?;
        rows.push(Row::of(name, time).with_target(copied));
    }
    let cache = StepCache::open(&cache)?;
    let (whole, flat) = whole_layer(&cache, &root, dir.path(), many)?;
    rows.push(Row::of("the whole root as a layer, found sound", whole).against(copied));
    rows.push(Row::of("flattening it, with `syncfs`", flat).against(copied));
    // Last, because it moves the root into its project.
    match vagga::Project::around(&root, &dir.path().join("project"))? {
        None => eprintln!("no static busybox here: no runs of vagga's"),
        Some(project) => {
            let run_copied = project.run("copy", few)?;
            rows.push(Row::of("`_run -W`, start and end, copying", run_copied));
            for (name, overlay) in [
                ("`_run -W`, what `auto` chooses", "auto"),
                ("`_run -W`, kernel's overlay", "kernel"),
                ("`_run -W`, FUSE server", "fuse"),
            ] {
                let time = project.run(overlay, many)?;
                rows.push(Row::of(name, time).with_target(run_copied));
            }
            let step_copied = project.container_step(&["--layered"], few)?;
            rows.push(Row::of(
                "build of one `!Container` step, copying",
                step_copied,
            ));
            for (name, backend) in [
                ("`!Container` step, what `auto` chooses", "auto"),
                ("`!Container` step, kernel's overlay", "native"),
                ("`!Container` step, FUSE server", "fuse"),
            ] {
                let options = ["--overlay", "--layered", "--backend", backend];
                let time = project.container_step(&options, many)?;
                rows.push(Row::of(name, time).with_target(step_copied));
            }
        }
    }
    let what = format!("{} files, {} MB", arguments.files, bytes >> 20);
    println!("| {what} | start | against copying |\n|---|---|---|");
    for row in &rows {
        println!("{row}");
    }
    let missed: Vec<&str> = rows
        .iter()
        .filter(|row| row.misses_the_target())
        .map(|row| row.name)
        .collect();
    match missed.as_slice() {
        [] => println!("\ntarget met: 50 times faster than copying, and under 100 ms"),
        missed => println!("\ntarget missed: {}", missed.join("; ")),
    }
    Ok(())
}

/// A first step that makes the whole root: how long it takes to find it, and to flatten it.
fn whole_layer(
    cache: &StepCache,
    root: &Path,
    dir: &Path,
    times: Times,
) -> Outcome<(Duration, Duration)> {
    let stack = Stack::empty(Digest::of(b"whole"));
    let step = Step::new("whole", "whole");
    let Begun::Work(work) = cache.begin(&stack, &step)? else {
        return Err("there is a layer".into());
    };
    let status = Command::new("cp")
        .arg("-a")
        .arg(root)
        .arg(work.root())
        .status()?;
    if !status.success() {
        return Err("cp failed".into());
    }
    let top = work.commit()?;
    let found = median(times, || {
        timed(|| match cache.begin(&stack, &step)? {
            Begun::Hit(_) => Ok(()),
            Begun::Work(_) => Err("the layer isn't there".into()),
        })
    })?;
    let dest = dir.join("flat");
    let flat = timed(|| Ok(cache.flatten(&top, &dest).map(drop)?))?;
    fs::remove_dir_all(dest)?;
    Ok((found, flat))
}

fn timed(work: impl FnOnce() -> Outcome<()>) -> Outcome<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// How often something is done.
#[derive(Debug, Clone, Copy)]
struct Times {
    most: usize,
    /// Not again when it has taken so long altogether.
    patience: Duration,
}

fn median(times: Times, mut once: impl FnMut() -> Outcome<Duration>) -> Outcome<Duration> {
    let start = Instant::now();
    let mut all = vec![once()?];
    while all.len() < times.most && start.elapsed() < times.patience {
        all.push(once()?);
    }
    all.sort();
    Ok(all[all.len() / 2])
}

/// A tree like that of a small distribution: ten files in a directory, many small and a few large
/// ones, and links. Says how many bytes are in it.
fn plant(root: &Path, arguments: &Arguments) -> Outcome<u64> {
    const SIZES: [usize; 10] = [0, 1, 2, 4, 4, 8, 12, 24, 45, 100];
    let share = (arguments.megabytes << 20) / arguments.files.max(1) / 20;
    let block: Vec<u8> = (0..share * 101)
        .map(|at| (at * 7 + at / 251) as u8)
        .collect();
    let mut bytes = 0;
    for number in 0..arguments.files {
        let dir = root.join(format!(
            "{}/{}/{}",
            number % 7,
            number / 700,
            number / 70 % 10
        ));
        if number % 70 < 7 {
            fs::create_dir_all(&dir)?;
        }
        let path = dir.join(format!("file-{number}"));
        // In place of an empty file.
        if number % 50 == 40 {
            symlink("/usr/lib", path)?;
            continue;
        }
        let data = &block[..share * SIZES[number % 10]];
        File::create(path)?.write_all(data)?;
        bytes += data.len() as u64;
    }
    Ok(bytes)
}
