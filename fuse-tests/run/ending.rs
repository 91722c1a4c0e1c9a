//! How a run ends, and that nothing is left of it.

use std::fs;
use std::io::Read;

use nix::sys::signal::Signal;
use seccompiler::SeccompAction;

use crate::refuse::under_filter;
use crate::ways::{Way, eventually, finish, processes_about, signal, skip};

pub(crate) fn the_exit_code_is_the_command_s(way: &Way) {
    for code in [0, 1, 2, 77, 255] {
        let ran = way.sh(&format!("exit {code}"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""));
    }
}

pub(crate) fn a_signal_is_passed_on(way: &Way) {
    let signals = [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGINT];
    for wanted in signals.into_iter().filter(|signal| !is_ignored(*signal)) {
        let ran = way.sh(&format!("kill -{} $$", wanted as i32));
        assert_eq!(ran.signal, Some(wanted as i32), "{ran:?}");
    }
}

pub(crate) fn what_can_t_be_started(way: &Way) {
    let plain = way.plant("plain", "no program");
    let script = way.plant("script", "echo by the shell\n");
    let status = std::process::Command::new("chmod").args(["755", &script]).status();
    assert!(status.unwrap().success());

    for (words, code, word) in [
        ("no-such-command", 127, "not found"),
        ("/no/such/command", 127, "not found"),
        (plain.as_str(), 126, "can't be executed"),
        ("/etc", 126, "can't be executed"),
    ] {
        let ran = way.run(&[], &[words]);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.err.contains(word) && ran.err.lines().count() == 1, "{ran:?}");
    }
    assert_eq!(way.run(&[], &[&script]).good(), "by the shell\n");
}

pub(crate) fn sigterm_reaches_the_command(way: &Way) {
    let ready = way.plant_dir("ready");
    for (handled, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGHUP, "HUP")] {
        if is_ignored(handled) {
            continue;
        }
        let script = format!("trap 'echo got; exit 5' {name}; rmdir {ready}; while :; do sleep 0.02; done");
        let mut child = way.start(&["--bind", &way.home.to_string_lossy()], &script);
        eventually("the command runs", || !fs::exists(&ready).unwrap());
        signal(&child, handled);
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(5));
        assert_eq!(out, "got\n");
        way.plant_dir("ready");
    }
}

/// Under nohup(1), for one, or in the background of a shell: then no shell can trap it, either.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
    let ignored = mask & 1 << (signal as i32 - 1) != 0;
    if ignored {
        eprintln!("{signal} is ignored here");
    }
    ignored
}

pub(crate) fn what_is_left_running_ends_with_the_command(way: &Way) {
    let mark = format!("98765{}", std::process::id());
    let script = format!("setsid sleep {mark} >/dev/null 2>&1 & sleep 0.1; exit 3");
    assert_eq!(way.sh(&script).code, Some(3));
    assert!(processes_about(&format!("sleep {mark}")).is_empty());
}

pub(crate) fn a_killed_run_leaves_nothing(way: &Way) {
    let ready = way.plant_dir("ready");
    // As nobody else on the machine sleeps.
    let sleep = format!("sleep 1000.{}{}", std::process::id(), way.name.len());
    let script = format!(
        "mkdir -p /made/by/run; echo x > /made/by/run/file; \
         setsid {sleep} & rmdir {ready}; {sleep}"
    );
    let mut child = way.start(&["--bind", &way.home.to_string_lossy()], &script);
    eventually("the command runs", || !fs::exists(&ready).unwrap());
    assert_eq!(fs::read_dir(way.scratch()).unwrap().count(), 1);
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    eventually("its directory is removed", || {
        fs::read_dir(way.scratch()).unwrap().next().is_none()
    });
    eventually("its processes have ended", || {
        processes_about(&way.home.to_string_lossy()).is_empty() && processes_about(&sleep).is_empty()
    });
    assert!(!fs::exists("/made").unwrap());
}

/// Before it has begun to use its directory: it is killed when it looks whether the file system
/// takes attributes.
pub(crate) fn a_run_killed_early_leaves_nothing(way: &Way) {
    if !way.is_root {
        skip("a filter takes newuidmap's privilege");
    }
    let calls = [(libc::SYS_fsetxattr, Vec::new())];
    let ran = under_filter(calls, SeccompAction::KillProcess, || {
        finish(way.command(&[]).args(["--", "true"]))
    });
    assert_eq!(ran.signal, Some(Signal::SIGSYS as i32), "{ran:?}");
    eventually("its directory is removed", || {
        fs::read_dir(way.scratch()).unwrap().next().is_none()
    });
}
