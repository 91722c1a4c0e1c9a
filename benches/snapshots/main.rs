//! How long a snapshot, the first step of a build, a writable run and a container on another take
//! to start on a root of 40 000 files and 700 MB, against copying it.
//!
//! ```text
//! cargo bench --bench snapshots -- [--files N] [--megabytes N] [--times N] [--dir DIR]
//! ```
//!
//! As root, or in a user namespace (`unshare -Urm`). DIR is where the root is made; it is removed
//! at the end. What is shown is the median.

mod vagga;

use std::error::Error;
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
    println!(
        "{} files, {} MB; median of {}\n",
        arguments.files,
        bytes >> 20,
        arguments.times
    );
    let few = arguments.times.min(3);
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
        let (root, times) = (&root, arguments.times);
        let times = if means == Means::Copy { few } else { times };
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
        ("cp -a, the disk's", copied, None),
        ("snapshot by copying", snapshot_copied, None),
        (
            "snapshot, chosen (auto)",
            snapshot(Means::Auto)?,
            Some(snapshot_copied),
        ),
        (
            "snapshot, kernel",
            snapshot(Means::Kernel)?,
            Some(snapshot_copied),
        ),
        (
            "snapshot, FUSE",
            snapshot(Means::Fuse)?,
            Some(snapshot_copied),
        ),
    ];
    let cache = dir.path().join("cache");
    for (name, backend) in [
        ("a step on it, chosen (auto)", Backend::Auto),
        ("a step on it, kernel", Backend::Native),
        ("a step on it, FUSE", Backend::Fuse),
    ] {
        let cache = StepCache::open(&cache)?.backend(backend);
        let stack = Stack::on([root.clone()], Digest::of(b"root"));
        let time = median(arguments.times, || {
            let start = Instant::now();
            let Begun::Work(work) = cache.begin(&stack, &Step::new("step", "step"))? else {
                return Err("there is a layer".into());
            };
            let time = start.elapsed();
            work.abandon()?;
            Ok(time)
        })?;
        rows.push((name, time, Some(copied)));
    }
    let cache = StepCache::open(&cache)?;
    let (whole, flat) = whole_layer(&cache, &root, dir.path(), arguments.times)?;
    rows.push(("a layer of it all found sound", whole, Some(copied)));
    rows.push(("all of it flattened", flat, Some(copied)));
    // Last, because it moves the root into its project.
    match vagga::Project::around(&root, &dir.path().join("project"))? {
        None => eprintln!("no static busybox here: no runs of vagga's"),
        Some(project) => {
            let run_copied = project.run("copy", few)?;
            rows.push(("_run -W, copying", run_copied, None));
            for (name, overlay) in [("_run -W, kernel", "kernel"), ("_run -W, FUSE", "fuse")] {
                rows.push((
                    name,
                    project.run(overlay, arguments.times)?,
                    Some(run_copied),
                ));
            }
            let step_copied = project.container_step(&[], few)?;
            rows.push(("Container step, copying", step_copied, None));
            for (name, backend) in [
                ("Container step, kernel", "native"),
                ("Container step, FUSE", "fuse"),
            ] {
                let options = ["--overlay", "--layered", "--backend", backend];
                let time = project.container_step(&options, arguments.times)?;
                rows.push((name, time, Some(step_copied)));
            }
        }
    }
    println!("{:<32} {:>12}  against copying", "", "start");
    for (name, time, against) in rows {
        let ratio = against.map(|copied| {
            format!(
                "{:.0} times faster",
                copied.as_secs_f64() / time.as_secs_f64()
            )
        });
        println!(
            "{name:<32} {:>9.1} ms  {}",
            time.as_secs_f64() * 1000.0,
            ratio.unwrap_or_default()
        );
    }
    Ok(())
}

/// A first step that makes the whole root: how long it takes to find it, and to flatten it.
fn whole_layer(
    cache: &StepCache,
    root: &Path,
    dir: &Path,
    times: usize,
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

fn median(times: usize, mut once: impl FnMut() -> Outcome<Duration>) -> Outcome<Duration> {
    let mut all = (0..times.max(1))
        .map(|_| once())
        .collect::<Outcome<Vec<_>>>()?;
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
        if number % 50 == 49 {
            symlink("/usr/lib", path)?;
            continue;
        }
        let data = &block[..share * SIZES[number % 10]];
        File::create(path)?.write_all(data)?;
        bytes += data.len() as u64;
    }
    Ok(bytes)
}
