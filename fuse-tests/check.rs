//! `overfall check` on real places: the verdict, its cause, and that nothing is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

#[path = "check/needs.rs"]
mod needs;
#[path = "common/refuse.rs"]
mod refuse;
#[path = "common/release.rs"]
mod release;
#[path = "check/room.rs"]
mod room;

const OVERFALL: &str = env!("CARGO_BIN_EXE_overfall");

struct Scratch {
    top: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

impl Scratch {
    fn new() -> Self {
        let top = tempfile::Builder::new()
            .prefix("overfall-check-")
            .tempdir()
            .expect("a temporary directory");
        Self {
            top,
            mounts: Vec::new(),
        }
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.top.path().join(name);
        fs::create_dir_all(&path).expect(name);
        path
    }

    /// Mounts with mount(8); `None`, said aloud, where this user or machine can't.
    fn mount(&mut self, kind: &str, options: &str) -> Option<PathBuf> {
        let target = self.dir(&format!("mounted{}", self.mounts.len()));
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", kind, "overfall-test"]).arg(&target);
        if !options.is_empty() {
            mount.args(["-o", options]);
        }
        let output = mount.output().ok()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("skipped: {kind} can't be mounted here: {}", why.trim());
            return None;
        }
        self.mounts.push(target.clone());
        Some(target)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for target in self.mounts.iter().rev() {
            let unmounted = rustix::mount::unmount(target, rustix::mount::UnmountFlags::empty());
            if unmounted.is_err() {
                // A plain user's FUSE mount goes by the helper that made it.
                let helper = Command::new("fusermount3").arg("-u").arg(target).status();
                assert!(helper.is_ok_and(|status| status.success()), "{unmounted:?}");
            }
        }
    }
}

fn check(args: &[&str]) -> Output {
    Command::new(OVERFALL)
        .arg("check")
        .args(args)
        .output()
        .expect("overfall runs")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The exit code and the report.
fn report(output: Output) -> (i32, Value) {
    let code = output.status.code().expect("an exit code");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {code}: {said}"));
    (code, report)
}

fn cause(upper: &Path, lowers: &[&Path]) -> (i32, Value) {
    let mut args = vec!["--json", "--upper", path(upper)];
    for lower in lowers {
        args.extend(["--lower", path(lower)]);
    }
    let (code, report) = report(check(&args));
    assert_eq!(report["supported"] == Value::Bool(true), code == 0);
    (code, report["cause"].clone())
}

/// Whether this machine lets us make namespaces to try things in.
fn may_unshare() -> bool {
    let output = Command::new("unshare").args(["-Urm", "true"]).output();
    let may = output.is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("skipped: no user namespaces here");
    }
    may
}

#[test]
fn the_first_line_and_the_exit_code_agree() {
    let scratch = Scratch::new();
    let output = check(&["--upper", path(scratch.top.path())]);
    let text = String::from_utf8_lossy(&output.stdout);
    let (first, code) = (text.lines().next(), output.status.code());
    assert!(
        matches!(
            (first, code),
            (Some("supported"), Some(0)) | (Some("unsupported"), Some(1))
        ),
        "{text}"
    );
    for part in [
        "the kernel's overlay:",
        "FUSE:",
        "overfall's FUSE server ",
        "kernel: ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn json_has_the_published_fields() {
    let scratch = Scratch::new();
    let (_, report) = report(check(&["--json", "--upper", path(scratch.top.path())]));
    for field in [
        "supported",
        "cause",
        "steps",
        "userxattr",
        "explanation",
        "remedy",
        "instead",
        "fuse",
        "ids",
        "kernel",
    ] {
        assert!(report.get(field).is_some(), "{field}: {report}");
    }
    assert!(report["kernel"]["release"].is_string());
    assert!(report["fuse"]["usable"].is_boolean());
    let step = &report["steps"][0];
    assert!(
        step["step"].is_string() && step["outcome"].is_string(),
        "{step}"
    );
}

#[test]
fn nothing_is_left_behind() {
    let scratch = Scratch::new();
    let upper = scratch.dir("upper");
    let lower = scratch.dir("lower");
    fs::create_dir(lower.join("dir")).expect("dir");
    fs::write(lower.join("file"), "real\n").expect("file");
    // What a trial that was killed has left goes too.
    let old = upper.join(".overfall-trial.0123");
    fs::create_dir_all(old.join("work/work")).expect("old trial");
    let hours_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    let times = fs::File::open(&old).expect("old trial");
    times.set_modified(hours_ago).expect("old time");
    let before = fs::metadata(&lower)
        .expect("stat")
        .modified()
        .expect("mtime");
    cause(&upper, &[&lower]);
    assert_eq!(fs::read_dir(&upper).expect("upper").count(), 0);
    assert_eq!(fs::read_dir(&lower).expect("lower").count(), 2);
    assert_eq!(fs::read_dir(lower.join("dir")).expect("dir").count(), 0);
    assert_eq!(fs::read(lower.join("file")).expect("file"), b"real\n");
    let after = fs::metadata(&lower)
        .expect("stat")
        .modified()
        .expect("mtime");
    assert_eq!(before, after);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(path(scratch.top.path())), "{mounts}");
}

#[test]
fn real_lower_layers_are_tried() {
    let scratch = Scratch::new();
    let lower = scratch.dir("lower");
    fs::create_dir(lower.join("dir")).expect("dir");
    fs::write(lower.join("file"), "real\n").expect("file");
    let args = [
        "--json",
        "--upper",
        path(scratch.top.path()),
        "--lower",
        path(&lower),
    ];
    let (code, report) = report(check(&args));
    if code != 0 {
        eprintln!(
            "skipped: the kernel's overlay doesn't work here: {}",
            report["cause"]
        );
        return;
    }
    for name in [
        "change a real lower directory",
        "append to a real lower file",
        "remove a real lower file",
    ] {
        let steps = report["steps"].as_array().expect("steps");
        let step = steps.iter().find(|step| step["step"] == name).expect(name);
        assert_eq!(step["outcome"], "ok", "{step}");
    }
}

#[test]
fn bad_directories_are_refused() {
    let scratch = Scratch::new();
    let file = scratch.top.path().join("file");
    fs::write(&file, "").expect("file");
    for args in [
        ["--lower", "/none/at/all"],
        ["--upper", "/none/at/all"],
        ["--upper", path(&file)],
    ] {
        let output = check(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
        assert_eq!(
            String::from_utf8_lossy(&output.stderr).lines().count(),
            1,
            "{args:?}"
        );
    }
    // The trial itself can't be made where nothing can be.
    assert_eq!(check(&["--upper", "/proc"]).status.code(), Some(2));
}

#[test]
fn an_upper_on_an_overlay_is_told() {
    let mut scratch = Scratch::new();
    let layers = ["l", "u", "w"].map(|name| path(&scratch.dir(name)).to_owned());
    let [lower, upper, work] = layers;
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let Some(merged) = scratch.mount("overlay", &options) else {
        return;
    };
    assert_eq!(cause(&merged, &[]), (1, "upper_file_system".into()));
    // As a lower layer it is fine, once; over an overlay of overlays it isn't.
    let top = scratch.dir("top");
    assert_eq!(cause(&top, &[&merged]), (0, Value::Null));
    let empty = scratch.dir("empty");
    let options = format!("lowerdir={}:{}", path(&merged), path(&empty));
    let Some(deeper) = scratch.mount("overlay", &options) else {
        return;
    };
    assert_eq!(cause(&top, &[&deeper]), (1, "nested_too_deep".into()));
}

#[test]
fn an_upper_without_attributes_is_told() {
    let mut scratch = Scratch::new();
    let Some(ram) = scratch.mount("ramfs", "") else {
        return;
    };
    assert_eq!(cause(&ram, &[]), (1, "upper_without_attributes".into()));
}

#[test]
fn a_full_upper_is_told() {
    let mut scratch = Scratch::new();
    let Some(small) = scratch.mount("tmpfs", "size=64k,nr_inodes=20") else {
        return;
    };
    assert_eq!(cause(&small, &[]), (1, "upper_full".into()));
}

#[test]
fn an_upper_on_fuse_is_told() {
    let mut scratch = Scratch::new();
    let layers = ["l", "u", "w", "m"].map(|name| scratch.dir(name));
    let [lower, upper, work, merged] = layers.each_ref().map(|dir| path(dir));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let peer = Command::new("fuse-overlayfs")
        .args(["-o", &options, merged])
        .output();
    if !peer.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no FUSE file system can be mounted here ({peer:?})");
        return;
    }
    scratch.mounts.push(layers[3].clone());
    assert_eq!(cause(&layers[3], &[]), (1, "upper_file_system".into()));
}

/// Runs the check as the root of a new user namespace, after `first` was done there as its root.
fn check_inside(first: &str, args: &str) -> Option<(i32, Value)> {
    if !may_unshare() {
        return None;
    }
    let script = format!("{first} exec {OVERFALL} check --json {args}");
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", &script])
        .output()
        .expect("unshare runs");
    Some(report(output))
}

/// As [`check_inside`], where the kernel has overlays for user namespaces: before Linux 5.11 that
/// is the cause whatever else is wrong.
fn check_overlay_inside(first: &str, args: &str) -> Option<(i32, Value)> {
    let (code, report) = check_inside(first, args)?;
    if release::running() < (5, 11) {
        assert_eq!(
            (code, &report["cause"]),
            (1, &"not_in_user_namespaces".into())
        );
        eprintln!(
            "skipped: this kernel has no overlays for user namespaces, and the check says so"
        );
        return None;
    }
    Some((code, report))
}

#[test]
fn attributes_are_the_users_inside_a_user_namespace() {
    let Some((code, report)) = check_inside("", "") else {
        return;
    };
    assert_eq!(report["userxattr"], true);
    assert_eq!(code, i32::from(report["supported"] != true));
}

#[test]
fn no_further_user_namespaces_are_told() {
    if !may_unshare() {
        return;
    }
    // `setpriv` takes the right to mount away, so that the trial needs a namespace of its own.
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces || exit 9; \
         exec setpriv --bounding-set=-sys_admin {OVERFALL} check --json"
    );
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", &script])
        .output()
        .expect("unshare runs");
    if output.status.code() == Some(9) {
        eprintln!("skipped: the limit can't be set here");
        return;
    }
    let (code, report) = report(output);
    assert_eq!(
        (code, &report["cause"]),
        (1, &"user_namespaces_used_up".into())
    );
    let step = &report["steps"][0];
    assert_eq!(
        (&step["outcome"], &step["errno"]),
        (&"failed".into(), &"ENOSPC".into())
    );
    assert!(
        report["remedy"]
            .as_str()
            .expect("a remedy")
            .contains("max_user_namespaces")
    );
}

#[test]
fn locked_submounts_are_told() {
    // In a new user namespace the mounts that came along are locked, and /proc lies below /.
    let Some((code, report)) = check_overlay_inside("", "--lower /") else {
        return;
    };
    assert_eq!((code, &report["cause"]), (1, &"locked_submounts".into()));
}

#[test]
fn owners_without_an_id_are_told() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make files of several owners");
        return;
    }
    let scratch = Scratch::new();
    let lower = scratch.dir("lower/dir");
    std::os::unix::fs::chown(&lower, Some(1234), Some(1234)).expect("chown");
    let args = format!("--upper {0} --lower {0}/lower", path(scratch.top.path()));
    let Some((code, report)) = check_overlay_inside("", &args) else {
        return;
    };
    assert_eq!((code, &report["cause"]), (1, &"unmapped_owners".into()));
}
