//! What isn't a time: memory and descriptors of the server on a tree with very many files, and how
//! long a run on such a tree takes to begin.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::bed::overfall_binary;
use crate::{Outcome, place};

/// Files in a directory.
const PER_DIR: usize = 1000;
/// Descriptors that the server may have, soft and hard.
const DESCRIPTORS: u64 = 1024;

/// Prints a table for a tree of `files` files.
pub(crate) fn measure(files: usize, base: &Path) -> Outcome<()> {
    let lower = base.join("many");
    for start in (0..files).step_by(PER_DIR) {
        let dir = lower
            .join(format!("d{}", start / PER_DIR / 100))
            .join(format!("s{start}"));
        fs::create_dir_all(&dir)?;
        for index in start..files.min(start + PER_DIR) {
            fs::write(dir.join(format!("file-{index}")), "")?;
        }
    }
    println!("\n### Limits, {files} files\n\n| what | value | target |\n|---|---|---|");
    row(
        "`overfall run -- true` more than `true`",
        run_true(&lower)?,
        "<= 100 ms",
    );
    let mount = Mount::new(base, &lower)?;
    let start = mount.status()?;
    let begin = Instant::now();
    let seen = walk(&mount.target, &mut || mount.descriptors())?;
    let time = begin.elapsed();
    if seen.files != files {
        return Err(format!("{} files seen", seen.files).into());
    }
    let after = mount.status()?;
    row(
        "the walk with `stat`",
        format!("{:.1} s", time.as_secs_f64()),
        "",
    );
    row("server memory at the start", mib(start), "");
    row("server memory after the walk", mib(after), "<= 250 MiB");
    if place::is_real_root() {
        fs::write("/proc/sys/vm/drop_caches", "2")?;
        let left = mount.settled()?;
        row(
            "after dropping the kernel's caches",
            mib(left),
            "within 20 % of the start",
        );
    }
    row(
        &format!("most descriptors, limit {DESCRIPTORS}"),
        seen.descriptors.to_string(),
        "never EMFILE",
    );
    Ok(())
}

fn row(what: &str, value: String, target: &str) {
    println!("| {what} | {value} | {target} |");
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

/// The best of several, for both.
fn run_true(root: &Path) -> Outcome<String> {
    let best = |command: &mut Command| -> Outcome<Duration> {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let status = command.status()?;
            if !status.success() {
                return Err(format!("{command:?}: {status}").into());
            }
            best = best.min(start.elapsed());
        }
        Ok(best)
    };
    // The root has to have the program: the machine's, below the many files.
    let mut run = Command::new(overfall_binary());
    run.args(["run", "--backend", "fuse", "--lower"])
        .arg(root)
        .args(["--", "/bin/true"]);
    let more = best(&mut run)?.saturating_sub(best(&mut Command::new("/bin/true"))?);
    Ok(format!("{:.0} ms", more.as_secs_f64() * 1e3))
}

/// A mount whose server may have few descriptors.
struct Mount {
    server: Child,
    target: std::path::PathBuf,
}

impl Mount {
    fn new(base: &Path, lower: &Path) -> Outcome<Self> {
        let name = |name: &str| base.join(format!("limits-{name}"));
        for dir in ["u", "w", "m"] {
            fs::create_dir(name(dir))?;
        }
        let (lower, upper, work) = (lower.display(), name("u"), name("w"));
        let (upper, work) = (upper.display(), work.display());
        let target = name("m");
        let server = Command::new("prlimit")
            .arg(format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}"))
            .arg(overfall_binary())
            .args(["mount", "--foreground", "--backend", "fuse", "-o"])
            .arg(format!("lowerdir={lower},upperdir={upper},workdir={work}"))
            .arg(&target)
            .stdin(Stdio::null())
            .spawn()?;
        let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
        let outside = device(base)?;
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if device(&target)? != outside {
                return Ok(Self { server, target });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err("not mounted after 10 s".into())
    }

    /// The process that serves: it says so itself.
    fn pid(&self) -> Outcome<String> {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(&self.target, "overfall.server", &mut value[..])?;
        let text = String::from_utf8_lossy(&value[..length]).into_owned();
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }

    /// Its memory in KiB.
    fn status(&self) -> Outcome<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or("no VmRSS")?.parse()?)
    }

    /// Its memory when it changes no more: FORGETs take their time.
    fn settled(&self) -> Outcome<u64> {
        let mut last = self.status()?;
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(300));
            let now = self.status()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
        Ok(last)
    }

    fn descriptors(&self) -> Outcome<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.count())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.target, nix::mount::MntFlags::MNT_DETACH);
        let _ = self.server.wait();
    }
}

struct Seen {
    files: usize,
    descriptors: usize,
}

fn walk(root: &Path, descriptors: &mut dyn FnMut() -> Outcome<usize>) -> Outcome<Seen> {
    let mut seen = Seen {
        files: 0,
        descriptors: 0,
    };
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                dirs.push(entry.path());
            } else {
                // Small ones are opened, too.
                if seen.files.is_multiple_of(16) {
                    fs::read(entry.path())?;
                }
                seen.files += 1;
            }
        }
        seen.descriptors = seen.descriptors.max(descriptors()?);
    }
    Ok(seen)
}
