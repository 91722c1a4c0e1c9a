//! strace on the running server: what it calls, and calls that fail because we say so.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::skip;

/// The calls that a change of the layers is made of, as far as this strace knows them.
const CALLS: [&str; 40] = [
    "openat",
    "openat2",
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "renameat2",
    "unlinkat",
    "ioctl",
    "copy_file_range",
    "pread64",
    "pwrite64",
    "ftruncate",
    "fallocate",
    "lseek",
    "fsetxattr",
    "lsetxattr",
    "setxattr",
    "fremovexattr",
    "lremovexattr",
    "fgetxattr",
    "lgetxattr",
    "getxattr",
    "flistxattr",
    "llistxattr",
    "fchownat",
    "fchown",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "utimensat",
    "fsync",
    "fdatasync",
    "fstat",
    "newfstatat",
    "statx",
    "readlinkat",
    "getdents64",
    "fchdir",
    "fstatfs",
];

/// strace, attached to every thread of a process.
#[derive(Debug)]
pub(crate) struct Tracer {
    strace: Child,
    log: PathBuf,
}

/// One call that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) thread: u32,
    pub(crate) name: String,
    /// The whole line.
    pub(crate) line: String,
}

/// The `when`th call of this name fails with this error.
#[derive(Debug, Clone)]
pub(crate) struct Injection<'a> {
    pub(crate) call: &'a str,
    pub(crate) when: usize,
    pub(crate) error: &'a str,
}

impl Tracer {
    /// Attaches; skips the test where that can't be done. `scratch` is a directory for its output.
    pub(crate) fn attach(pid: Pid, scratch: &Path, injection: Option<&Injection<'_>>) -> Self {
        let log = scratch.join("strace.log");
        let said = scratch.join("strace.said");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-s", "300", "-e", "signal=none", "-o"])
            .arg(&log);
        match injection {
            None => {
                let calls = CALLS.map(|call| format!("?{call}")).join(",");
                command.arg("-e").arg(format!("trace={calls}"));
            }
            Some(Injection { call, when, error }) => {
                command.arg("-e").arg(format!("trace={call}"));
                command
                    .arg("-e")
                    .arg(format!("inject={call}:error={error}:when={when}"));
            }
        }
        let strace = command
            .arg("-p")
            .arg(pid.as_raw_nonzero().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said).expect("a file for strace"))
            .spawn();
        let mut strace = strace.unwrap_or_else(|e| skip(format!("strace: {e}")));
        let end = Instant::now() + Duration::from_secs(20);
        while !is_traced(pid, strace.id()) {
            if let Ok(Some(_)) = strace.try_wait() {
                let why = fs::read_to_string(&said).unwrap_or_default();
                skip(format!("strace can't attach: {}", why.trim()));
            }
            assert!(Instant::now() < end, "strace takes too long to attach");
            sleep(Duration::from_millis(1));
        }
        Self { strace, log }
    }

    /// Lets the process go; what was seen, in the order in which it was called.
    pub(crate) fn detach(mut self) -> Vec<Call> {
        let pid = Pid::from_child(&self.strace);
        kill_process(pid, Signal::INT).expect("stop strace");
        self.strace.wait().expect("strace ends");
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        parse(&log)
    }
}

fn is_traced(pid: Pid, by: u32) -> bool {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    let wanted = format!("TracerPid:\t{by}\n");
    fs::read_dir(tasks).is_ok_and(|mut tasks| {
        tasks.all(|task| {
            task.is_ok_and(|task| {
                fs::read_to_string(task.path().join("status"))
                    .is_ok_and(|status| status.contains(&wanted))
            })
        })
    })
}

/// Lines are `THREAD CALL(…) = …`; a call that another thread interrupts is shown in two parts, of
/// which the second is joined to the first.
fn parse(log: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: BTreeMap<u32, usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let (Ok(thread), rest) = (thread.parse::<u32>(), rest.trim_start()) else {
            continue;
        };
        if let Some(rest) = rest.strip_prefix("<... ") {
            if let Some(at) = unfinished.remove(&thread) {
                calls[at].line.push_str(rest);
            }
            continue;
        }
        let Some((name, _)) = rest.split_once('(') else {
            continue;
        };
        if rest.contains("<unfinished ...>") {
            unfinished.insert(thread, calls.len());
        }
        calls.push(Call {
            thread,
            name: name.to_owned(),
            line: rest.to_owned(),
        });
    }
    calls
}

/// How often each call was made, by the thread that made it most often.
pub(crate) fn counts(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut by_thread: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    for call in calls {
        *by_thread.entry((&call.name, call.thread)).or_default() += 1;
    }
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for ((name, _), count) in by_thread {
        let entry = most.entry(name.to_owned()).or_default();
        *entry = count.max(*entry);
    }
    most
}
