//! Where the changes of a run go.

use std::fs;

use crate::ways::{Way, eventually};

pub(crate) fn a_kept_upper_is_continued(way: &Way) {
    let keep = way.path("keep");
    let with = ["--keep", keep.as_str()];
    let first = "echo one > /first; mkdir /dir; echo in > /dir/file; rm /etc/hostname";
    way.run(&with, &["sh", "-c", first]).good();
    assert!(fs::exists(format!("{keep}/upper/first")).unwrap());
    assert!(!fs::exists("/first").unwrap() && fs::exists("/etc/hostname").unwrap());

    let second = "cat /first /dir/file; ls /etc/hostname 2>/dev/null; echo two >> /first; rm -r /dir";
    let ran = way.run(&with, &["sh", "-c", second]);
    assert_eq!(ran.good(), "one\nin\n");
    let third = "cat /first; ls -d /dir 2>/dev/null; echo new > /etc/hostname; cat /etc/hostname";
    assert_eq!(way.run(&with, &["sh", "-c", third]).good(), "one\ntwo\nnew\n");
    way.run(&[], &["sh", "-c", &format!("test ! -e /first && test ! -e {keep}/x")]).good();
}

pub(crate) fn a_kept_upper_is_used_once_at_a_time(way: &Way) {
    let keep = way.path("keep");
    let ready = way.plant_dir("ready");
    let home = way.home.to_string_lossy();
    let options = ["--bind", &home, "--keep", &keep];
    let mut child = way.start(&options, &format!("rmdir {ready}; exec sleep 1000"));
    eventually("the command runs", || !fs::exists(&ready).unwrap());
    let ran = way.run(&["--keep", &keep], &["true"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("another run is using it"), "{ran:?}");
    crate::ways::signal(&child, nix::sys::signal::Signal::SIGTERM);
    child.wait().unwrap();
    way.run(&["--keep", &keep], &["true"]).good();
}

/// Else `rm -rf /var/tmp/*` would meet its own upper, in there again its own upper, and so on.
pub(crate) fn the_state_is_hidden_inside(way: &Way) {
    let tmp = way.path("tmp");
    let ran = way.sh(&format!("ls {tmp}; ls -A {tmp}/*; rm -rf {tmp} 2>/dev/null; ls -A {tmp}/*"));
    let lines: Vec<_> = ran.out.lines().collect();
    assert!(matches!(lines[..], [name] if name.starts_with("overfall-run.")), "{ran:?}");
}

pub(crate) fn the_temporary_directory_can_be_chosen(way: &Way) {
    let other = way.plant_dir("other");
    let mut command = way.command(&["--bind", &way.home.to_string_lossy()]);
    command
        .args(["--", "sh", "-c", &format!("ls {other} | wc -l; echo > {other}/real")])
        .env("TMPDIR", &other);
    assert_eq!(crate::ways::finish(&mut command).good().trim(), "1");
    let left: Vec<_> = fs::read_dir(&other).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
