//! Causes beside the layers: a seccomp filter, /dev/fuse, the helpers for ids; and advice for each
//! distribution.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{
    OVERFALL, Scratch, cause, check_inside, check_overlay_inside, may_unshare, path, refuse,
    release, report,
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

/// Begins the words of a command that runs as a plain user; none where the suite does.
fn as_plain_user() -> Vec<String> {
    const NOBODY_S: &str = "54321";
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    [
        "setpriv",
        "--reuid",
        NOBODY_S,
        "--regid",
        NOBODY_S,
        "--clear-groups",
    ]
    .map(String::from)
    .to_vec()
}

/// Runs `words` as a plain user, in a directory of the user's.
fn plainly(words: &[&str]) -> Command {
    let mut all = as_plain_user();
    all.extend(words.iter().map(ToString::to_string));
    let mut command = Command::new(&all[0]);
    command.args(&all[1..]);
    command
}

/// What a plain user does in a namespace of one's own before the check, how the check is called, and
/// where in its report which cause is.
const PLAIN_CAUSES: [(&str, &str, &str, &str); 6] = [
    (
        "echo 0 > /proc/sys/user/max_user_namespaces",
        "setpriv --bounding-set=-sys_admin PROGRAM check --json",
        "/cause",
        "user_namespaces_used_up",
    ),
    (
        "mkdir l u w m; mount -t overlay none -o userxattr,lowerdir=l,upperdir=u,workdir=w m",
        "PROGRAM check --json --upper m",
        "/cause",
        "upper_file_system",
    ),
    (
        "mkdir fl fu fw fm; fuse-overlayfs -o lowerdir=fl,upperdir=fu,workdir=fw fm",
        "PROGRAM check --json --upper fm",
        "/cause",
        "upper_file_system",
    ),
    (
        "mkdir small; mount -t tmpfs none -o size=64k,nr_inodes=20 small",
        "PROGRAM check --json --upper small",
        "/cause",
        "upper_full",
    ),
    (
        "mount -t tmpfs none /dev; : > /dev/null",
        "PROGRAM check --json",
        "/fuse/cause",
        "no_fuse_device",
    ),
    (
        "mount -t tmpfs none /dev; : > /dev/null; : > /dev/fuse; chmod 0 /dev/fuse",
        "setpriv --bounding-set=-all PROGRAM check --json",
        "/fuse/cause",
        "fuse_device_closed",
    ),
];

#[test]
fn a_plain_user_is_told_the_same_causes() {
    const NOT_HERE: i32 = 9;
    let program = plain_copy();
    let own = program.path().join("own");
    fs::create_dir(&own).expect("a directory");
    if let Some(id) = as_plain_user().get(2) {
        let id = id.parse().ok();
        std::os::unix::fs::chown(&own, id, id).expect("its owner");
    }
    if !plainly(&["unshare", "-Urm", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: no user namespaces for a plain user here");
        return;
    }
    for (first, how, place, wanted) in PLAIN_CAUSES {
        let how = how.replace("PROGRAM", path(&program.path().join("overfall")));
        let script = format!("({first}) >why 2>&1 || exit {NOT_HERE}; exec {how}");
        // A server that is started goes with its pid namespace.
        let namespaces = ["unshare", "-Urmpf", "--mount-proc", "sh", "-ec", &script];
        let mut command = plainly(&namespaces);
        let output = command.current_dir(&own).output().expect("unshare runs");
        if output.status.code() == Some(NOT_HERE) {
            let why = fs::read_to_string(own.join("why")).unwrap_or_default();
            eprintln!("skipped: {first}: {}", why.trim());
            continue;
        }
        let (_, report) = report(output);
        let cause = report.pointer(place).and_then(Value::as_str);
        // Before Linux 5.11 that is what is wrong with every overlay.
        if release::running() < (5, 11) && place == "/cause" {
            assert!(
                [Some("not_in_user_namespaces"), Some(wanted)].contains(&cause),
                "{first}: {report}"
            );
        } else {
            assert_eq!(cause, Some(wanted), "{first}: {report}");
        }
    }
}

#[test]
fn a_plain_user_is_told_of_a_seccomp_filter() {
    if !rustix::process::geteuid().is_root() || !may_unshare() {
        eprintln!("skipped: only root takes a filter and another user after it");
        return;
    }
    let program = plain_copy();
    let copy = program.path().join("overfall");
    for refused in [
        &[libc::SYS_unshare][..],
        &[libc::SYS_mount, libc::SYS_fsconfig],
    ] {
        let calls = refused.iter().map(|call| (*call, Vec::new()));
        let output = refuse::refusing(calls, rustix::io::Errno::PERM, || {
            plainly(&[path(&copy), "check", "--json"]).output()
        });
        let (code, report) = report(output.expect("the check runs"));
        assert_eq!((code, &report["cause"]), (1, &"seccomp".into()), "{report}");
    }
}
