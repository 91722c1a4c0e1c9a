//! Where the changes of a run go.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::ways::{Way, eventually, skip};

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

/// What is thrown away and what is kept: a set-user-id program that a command left there would be
/// the user's.
pub(crate) fn the_state_is_closed_to_others(way: &Way) {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let ready = way.plant_dir("ready");
    let home = way.home.to_string_lossy();
    let script = format!("rmdir {ready}; exec sleep 1000");
    let mut child = way.start(&["--bind", &home], &script);
    eventually("the command runs", || !fs::exists(&ready).unwrap());
    let states: Vec<_> = fs::read_dir(way.scratch()).unwrap().flatten().collect();
    let modes: Vec<_> = states.iter().map(|state| mode(&state.path())).collect();
    crate::ways::signal(&child, nix::sys::signal::Signal::SIGTERM);
    child.wait().unwrap();
    assert_eq!(modes, [0o700]);

    let keep = way.path("some/where/keep");
    way.plant_dir("some");
    way.run(&["--keep", &keep], &["true"]).good();
    assert_eq!(mode(Path::new(&keep)), 0o700);
    assert_eq!(mode(Path::new(&way.path("some/where"))), 0o755);
    // One that was there is the user's business.
    let open = way.plant_dir("open");
    way.run(&["--keep", &open], &["true"]).good();
    assert_eq!(mode(Path::new(&open)), 0o755);
}

/// Owners are written down, not given; devices aren't made.
pub(crate) fn a_fake_root_makes_nothing_real(way: &Way) {
    if way.is_root {
        skip("this root is the machine's");
    }
    let keep = way.path("fake");
    let script = "echo x > /made && chown 0:0 /made && chmod 4755 /made && stat -c '%u %a' /made; \
                  mknod /device b 8 0 2>/dev/null && stat -c %F /device; true";
    let ran = way.run(&["--keep", &keep], &["sh", "-c", script]);
    assert_eq!(ran.out.lines().next(), Some("0 4755"), "{ran:?}");
    let made = fs::metadata(format!("{keep}/upper/made")).unwrap();
    let user = way.become_user.unwrap_or(nix::unistd::getuid().as_raw());
    assert_eq!(made.uid(), user);
    if let Ok(device) = fs::symlink_metadata(format!("{keep}/upper/device")) {
        assert!(device.is_file(), "{device:?}");
    }
}
