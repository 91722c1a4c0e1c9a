//! Mounts and processes that tests have left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Conclusion;
use nix::mount::{MntFlags, umount2};
use rustix::process::{Pid, Signal, getpid, kill_process};

/// The mounts of this process at or below a directory: type and place.
pub(crate) fn mounts_below(dir: &Path) -> Vec<(String, PathBuf)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = table.lines().filter_map(|line| {
        let point = PathBuf::from(line.split(' ').nth(4)?);
        let fstype = line.split(" - ").nth(1)?.split(' ').next()?;
        point.starts_with(dir).then(|| (fstype.to_owned(), point))
    });
    mounts.collect()
}

/// The other processes with `text` in their command line; one that is over has none.
pub(crate) fn processes_about(text: &str) -> Vec<(Pid, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (line.contains(text) && pid != getpid()).then_some((pid, line))
        })
        .collect()
}

/// What only command lines that name something in this directory have in them.
pub(crate) fn within(dir: &Path) -> String {
    format!("{}/", dir.display())
}

/// Waits until there are no such processes, but no longer than this.
pub(crate) fn let_end(text: &str, patience: Duration) {
    let start = Instant::now();
    while !processes_about(text).is_empty() && start.elapsed() < patience {
        thread::sleep(Duration::from_millis(20));
    }
}

/// The mounts and the processes that `text` is about, a line for each.
pub(crate) fn about(text: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains(text));
    let mounts = mounts.map(|line| format!("mount {line}"));
    mounts
        .chain(processes_about(text).iter().map(process_line))
        .collect()
}

/// Unmounts what is mounted at or below a directory, and tells what it was.
pub(crate) fn unmount_below(dir: &Path) -> Vec<String> {
    let mounts = mounts_below(dir).into_iter().map(|(_, point)| {
        let _ = umount2(&point, MntFlags::MNT_DETACH);
        format!("mount {}", point.display())
    });
    mounts.collect()
}

/// Kills such processes, and tells which they were.
pub(crate) fn kill_about(text: &str) -> Vec<String> {
    let processes = processes_about(text);
    for (pid, _) in &processes {
        let _ = kill_process(*pid, Signal::KILL);
    }
    processes.iter().map(process_line).collect()
}

fn process_line((pid, line): &(Pid, String)) -> String {
    format!("process {}: {line}", pid.as_raw_nonzero())
}

/// What a suite comes to that has left this.
pub(crate) fn exit_code(conclusion: &Conclusion, left: &[String]) -> ExitCode {
    if left.is_empty() {
        return conclusion.exit_code();
    }
    eprintln!("left behind by the tests:\n{}", left.join("\n"));
    ExitCode::FAILURE
}
