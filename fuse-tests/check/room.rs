//! The directory of a trial: nothing of somebody else's is touched for its sake, and nothing of it stays.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::{OVERFALL, Scratch, path};

const NAME: &str = ".overfall-trial.";

fn make_old(path: &Path) {
    let long_ago = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: long_ago,
        last_modification: long_ago,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time");
}

fn left(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("a directory").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(NAME)).collect()
}

/// Names of that kind, as anybody can make them in a shared directory.
#[test]
fn what_others_plant_is_left_alone() {
    let scratch = Scratch::new();
    let shared = scratch.dir("shared");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("mode");
    let victim = scratch.dir("victim");
    fs::create_dir(victim.join("sub")).expect("dir");
    fs::write(victim.join("sub/secret"), "kept").expect("file");
    make_old(&victim);
    let link = shared.join(format!("{NAME}0000000000000001"));
    symlink(&victim, &link).expect("link");
    make_old(&link);
    let dir = shared.join(format!("{NAME}0000000000000002"));
    fs::create_dir(&dir).expect("dir");
    symlink(&victim, dir.join("inside")).expect("link");
    fs::write(dir.join("file"), "kept").expect("file");
    make_old(&dir);
    let mode = || fs::metadata(&victim).expect("victim").permissions().mode();
    let before = mode();
    let checked = Command::new(OVERFALL)
        .args(["check", "--lower", path(&victim)])
        .env("TMPDIR", &shared)
        .stdout(Stdio::null())
        .status();
    assert!(checked.expect("overfall runs").code().is_some());
    assert_eq!(
        fs::read_to_string(victim.join("sub/secret")).expect("secret"),
        "kept"
    );
    assert_eq!(fs::read_to_string(dir.join("file")).expect("file"), "kept");
    assert_eq!(mode(), before);
    assert_eq!(left(&shared).len(), 2);
}

/// In a directory of our own a link of that name isn't followed, either.
#[test]
fn a_link_is_not_swept() {
    let scratch = Scratch::new();
    let (upper, victim) = (scratch.dir("upper"), scratch.dir("victim"));
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).expect("mode");
    fs::write(victim.join("secret"), "kept").expect("file");
    let link = upper.join(format!("{NAME}0000000000000001"));
    symlink(&victim, &link).expect("link");
    make_old(&link);
    make_old(&victim);
    super::cause(&upper, &[]);
    assert_eq!(
        fs::read_to_string(victim.join("secret")).expect("secret"),
        "kept"
    );
    assert!(fs::symlink_metadata(&link).is_ok());
}

#[test]
fn a_killed_check_leaves_nothing() {
    let scratch = Scratch::new();
    let (upper, lower) = (scratch.dir("upper"), scratch.dir("lower"));
    for turn in 0..20 {
        let mut child = Command::new(OVERFALL)
            .args(["check", "--upper", path(&upper), "--lower", path(&lower)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("overfall runs");
        // From before the trial to its end.
        std::thread::sleep(Duration::from_micros(1500 * turn));
        child.kill().expect("kill");
        child.wait().expect("wait");
        // What it had begun ends by itself, within the trial's own limit.
        let start = Instant::now();
        while !left(&upper).is_empty() {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{:?}",
                left(&upper)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
