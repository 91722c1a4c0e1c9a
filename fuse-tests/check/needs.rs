//! Causes beside the layers: a seccomp filter, /dev/fuse, the helpers for ids; and advice for each
//! distribution.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{
    OVERFALL, Scratch, cause, check_inside, check_overlay_inside, may_unshare, path, refuse, report,
};

#[test]
fn an_upper_in_memory_is_tried() {
    let mut scratch = Scratch::new();
    let Some(memory) = scratch.mount("tmpfs", "") else {
        return;
    };
    assert_eq!(cause(&memory, &[]), (0, Value::Null));
    // A plain user needs user attributes, which tmpfs has since Linux 6.6.
    let args = format!("--upper {}", path(&memory));
    let Some((code, report)) = check_overlay_inside("", &args) else {
        return;
    };
    let wanted = match rustix::fs::setxattr(
        &memory,
        "user.overfall",
        b"",
        rustix::fs::XattrFlags::empty(),
    ) {
        Ok(()) => (0, Value::Null),
        Err(_) => (1, "upper_without_attributes".into()),
    };
    assert_eq!((code, report["cause"].clone()), wanted);
}

/// Runs the check under a seccomp filter that refuses these system calls, as containers' do.
fn check_filtered(refused: &[i64]) -> Option<(i32, Value)> {
    let calls = refused.iter().map(|call| (*call, Vec::new()));
    refuse::refusing(calls, rustix::io::Errno::PERM, || {
        let output = Command::new("setpriv")
            .args(["--bounding-set=-sys_admin", OVERFALL, "check", "--json"])
            .output();
        output.ok().map(report)
    })
}

#[test]
fn a_seccomp_filter_is_told() {
    if !rustix::process::geteuid().is_root() || !may_unshare() {
        eprintln!("skipped: without root the filter changes what setpriv may do");
        return;
    }
    for refused in [
        &[libc::SYS_unshare][..],
        &[libc::SYS_mount, libc::SYS_fsconfig],
    ] {
        let (code, report) = check_filtered(refused).expect("the check runs");
        assert_eq!((code, &report["cause"]), (1, &"seccomp".into()), "{report}");
        assert!(
            report["remedy"]
                .as_str()
                .expect("a remedy")
                .contains("seccomp")
        );
    }
}

#[test]
fn a_missing_fuse_device_is_told() {
    // An empty /dev but for what a shell needs.
    let Some((_, report)) = check_inside(
        "mount -t tmpfs none /dev && : > /dev/null &&",
        "--upper /var/tmp",
    ) else {
        return;
    };
    let fuse = &report["fuse"];
    assert_eq!(
        (&fuse["usable"], &fuse["cause"]),
        (&false.into(), &"no_fuse_device".into())
    );
    assert!(fuse["remedy"].as_str().expect("a remedy").contains("fuse"));
    // A device that exists but belongs to root.
    let closed =
        "mount -t tmpfs none /dev && : > /dev/null && : > /dev/fuse && chmod 0 /dev/fuse &&";
    let script = format!("{closed} exec setpriv --bounding-set=-all {OVERFALL} check --json");
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", &script])
        .output()
        .expect("unshare runs");
    let (_, report) = self::report(output);
    assert_eq!(report["fuse"]["cause"], "fuse_device_closed", "{report}");
}

#[test]
fn missing_helpers_for_ids_are_told() {
    let Some(user) = plain_user_with_ids() else {
        eprintln!("skipped: no plain user with ids in /etc/subuid");
        return;
    };
    let program = plain_copy();
    let check = |path: &str, id: &str| {
        let mut command = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid", id, "--regid", id, "--clear-groups"]);
        }
        command.arg("env").arg(format!("PATH={path}"));
        command.arg(program.path().join("overfall"));
        let command = command.args(["check", "--json"]);
        report(command.output().expect("setpriv runs")).1
    };
    let without = check("/usr/share", &user);
    assert_eq!(without["ids"]["cause"], "no_id_helpers", "{without}");
    let with = check(&std::env::var("PATH").expect("a PATH"), &user);
    assert_eq!(with["ids"]["several"], true, "{}", with["ids"]);
    if rustix::process::geteuid().is_root() {
        let nobody = check(&std::env::var("PATH").expect("a PATH"), "4242");
        assert_eq!(nobody["ids"]["cause"], "no_subordinate_ids");
    }
}

/// Where a plain user can run it from.
fn plain_copy() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    // By another process: a child that another test forks meanwhile would hold the copy open.
    let copied = Command::new("cp").arg(OVERFALL).arg(dir.path()).status();
    assert!(copied.is_ok_and(|status| status.success()));
    dir
}

fn plain_user_with_ids() -> Option<String> {
    let given = fs::read_to_string("/etc/subuid").ok()?;
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let own = rustix::process::geteuid();
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let id = *fields.get(2)?;
        let has = given
            .lines()
            .any(|line| line.split(':').next() == Some(fields[0]));
        let fits = id != "0" && (own.is_root() || own.as_raw().to_string() == id);
        (has && fits).then(|| id.to_owned())
    })
}

#[test]
fn remedies_are_the_distribution_s() {
    let scratch = Scratch::new();
    for (release, part) in [
        ("ID=ubuntu", "/etc/sysctl.d/"),
        ("ID=debian", "/etc/sysctl.d/"),
        ("ID=arch", "/etc/sysctl.d/"),
        ("ID=fedora", "/etc/sysctl.d/"),
        ("ID=void", "/etc/sysctl.d/"),
        ("ID=nixos", "boot.kernel.sysctl"),
    ] {
        let file = scratch.top.path().join("os-release");
        fs::write(&file, release).expect("os-release");
        if !may_unshare() {
            return;
        }
        let script = format!(
            "mount --bind {} /etc/os-release || exit 9; \
             echo 0 > /proc/sys/user/max_user_namespaces || exit 9; \
             exec setpriv --bounding-set=-sys_admin {OVERFALL} check --json",
            path(&file)
        );
        let output = Command::new("unshare")
            .args(["-Urm", "sh", "-c", &script])
            .output()
            .expect("unshare runs");
        if output.status.code() == Some(9) {
            eprintln!("skipped: this can't be put together here");
            return;
        }
        let (code, report) = report(output);
        assert_eq!(
            (code, &report["cause"]),
            (1, &"user_namespaces_used_up".into())
        );
        let remedy = report["remedy"].as_str().expect("a remedy");
        assert!(remedy.contains(part), "{release}: {remedy}");
        assert!(!report["instead"].as_str().expect("what works").is_empty());
    }
}
