//! What the server gives up: capabilities, system calls, and its hold on a mount that has gone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libtest_mimic::Completion;

use super::place::{Place, STRANGER, Who, command_as, run, until};
use super::{Case, Verdict};

pub(crate) const CASES: &[Case] = &[
    (
        "threads_have_what_they_need_and_no_more",
        threads_have_what_they_need_and_no_more,
    ),
    ("seccomp_can_be_turned_off", seccomp_can_be_turned_off),
    (
        "a_lazy_unmount_ends_the_server",
        a_lazy_unmount_ends_the_server,
    ),
    (
        "an_unmount_by_root_ends_the_server",
        an_unmount_by_root_ends_the_server,
    ),
    (
        "the_work_directory_is_closed_to_others",
        the_work_directory_is_closed_to_others,
    ),
    (
        "what_was_removed_stays_so_where_the_owner_may_not_read",
        what_was_removed_stays_so_where_the_owner_may_not_read,
    ),
    (
        "flags_that_protect_reach_the_kernel",
        flags_that_protect_reach_the_kernel,
    ),
    (
        "a_stranger_is_let_in_only_where_asked_for",
        a_stranger_is_let_in_only_where_asked_for,
    ),
];

/// A field of `/proc/PID/status`.
fn field(status: &str, name: &str) -> String {
    let lines = status.lines();
    let line = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name);
    line.map_or(String::new(), |(_, value)| value.trim().to_owned())
}

/// The status of each of the server's threads, by the thread's name.
fn threads(place: &Place) -> Vec<(String, String)> {
    let server = place.server().as_raw_nonzero();
    let tasks = fs::read_dir(format!("/proc/{server}/task")).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .map(|status| (field(&status, "Name"), status))
        .collect()
}

fn capabilities(status: &str) -> u64 {
    u64::from_str_radix(&field(status, "CapEff"), 16).unwrap()
}

/// Numbers of capability(7).
const CAP_KILL: u64 = 1 << 5;
const CAP_SETUID: u64 = 1 << 7;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_MODULE: u64 = 1 << 16;
const CAP_SYS_RAWIO: u64 = 1 << 17;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_BOOT: u64 = 1 << 22;
const CAP_SYS_TIME: u64 = 1 << 25;
const CAP_CHOWN: u64 = 1;

fn threads_have_what_they_need_and_no_more(place: &Place) -> Verdict {
    place.mount();
    // The mount is usable with the first of them.
    until("all threads are there", || threads(place).len() > 8);
    let threads = threads(place);
    assert_eq!(place.umount().code, Some(0));
    let requests: Vec<_> = threads
        .iter()
        .filter(|(name, _)| name != "signals")
        .collect();
    let useless = CAP_KILL
        | CAP_SETUID
        | CAP_NET_ADMIN
        | CAP_SYS_MODULE
        | CAP_SYS_RAWIO
        | CAP_SYS_BOOT
        | CAP_SYS_TIME;
    for (name, status) in &threads {
        let has = capabilities(status);
        assert_eq!(has & useless, 0, "{name}: {has:x}");
        assert_eq!(has & CAP_CHOWN != 0, place.who == Who::Root, "{name}");
    }
    for (name, status) in requests {
        assert_eq!(field(status, "Seccomp"), "2", "{name}");
        assert_eq!(field(status, "NoNewPrivs"), "1", "{name}");
        assert_eq!(capabilities(status) & CAP_SYS_PTRACE, 0, "{name}");
    }
    // Without privilege the mount is ended by fusermount3, which needs its set-user-id bit.
    let (_, ending) = threads.iter().find(|(name, _)| name == "signals").unwrap();
    let belted = if place.who == Who::Root { "2" } else { "0" };
    assert_eq!(field(ending, "Seccomp"), belted);
    Ok(Completion::Completed)
}

fn seccomp_can_be_turned_off(place: &Place) -> Verdict {
    let options = format!("{},seccomp=off", place.options());
    let said = run(place.overfall(&["mount", "--backend", "fuse", "-o", &options, "merged"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    let threads = threads(place);
    assert_eq!(place.umount().code, Some(0));
    for (name, status) in threads {
        assert_eq!(field(&status, "Seccomp"), "0", "{name}");
    }
    Ok(Completion::Completed)
}

fn a_lazy_unmount_ends_the_server(place: &Place) -> Verdict {
    place.mount();
    let lazy = match place.who {
        Who::Root => "umount -l merged",
        Who::Plain => "fusermount3 -uz merged",
    };
    let said = place.shell(lazy);
    assert_eq!(said.code, Some(0), "{said:?}");
    place.until_no_server();
    assert_eq!(
        fs::read_dir(place.dir.join("work/work")).map_or(0, Iterator::count),
        0
    );
    Ok(Completion::Completed)
}

/// umount(8), which knows nothing of servers.
fn an_unmount_by_root_ends_the_server(place: &Place) -> Verdict {
    if !rustix::process::geteuid().is_root() {
        return Ok(Completion::ignored_with("needs root"));
    }
    place.mount();
    assert_eq!(place.shell("echo new > merged/new").code, Some(0));
    let mut umount = std::process::Command::new("umount");
    umount.arg(place.merged());
    let said = run(umount);
    assert_eq!(said.code, Some(0), "{said:?}");
    place.until_no_server();
    assert_eq!(fs::read(place.dir.join("upper/new"))?, b"new\n");
    Ok(Completion::Completed)
}

/// Root's overlay is for everybody whom its permissions let in, as the kernel's is. A plain user's
/// is for him alone, even against root, unless he asks and /etc/fuse.conf agrees.
fn a_stranger_is_let_in_only_where_asked_for(place: &Place) -> Verdict {
    if !rustix::process::geteuid().is_root() {
        return Ok(Completion::ignored_with("there is nobody else to be"));
    }
    place.mount();
    let mut stranger = command_as(Some(STRANGER), "cat");
    stranger.arg(place.merged().join("hello"));
    let said = run(stranger);
    let root = fs::read(place.merged().join("hello"));
    assert_eq!(place.umount().code, Some(0));
    assert_eq!(said.code == Some(0), place.who == Who::Root, "{said:?}");
    assert_eq!(root.is_ok(), place.who == Who::Root, "{root:?}");
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let agreed = conf.lines().any(|line| line.trim() == "user_allow_other");
    if place.who == Who::Plain && !agreed && Path::new("/etc/fuse.conf").exists() {
        let options = format!("{},allow_other", place.options());
        let said = run(place.overfall(&["mount", "--backend", "fuse", "-o", &options, "merged"]));
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains("user_allow_other"), "{said:?}");
    }
    Ok(Completion::Completed)
}

/// A directory that hides a lower one says so in an attribute, or a name in it, that takes a
/// permission to read. Its owner may take that off; who has it not must not be shown what was removed.
fn what_was_removed_stays_so_where_the_owner_may_not_read(place: &Place) -> Verdict {
    let marks: [&[(&str, &str)]; 2] = [
        &[],
        // Goes on with an upper in the fallback form.
        &[("upper/.wh..wh.overfall", "overfall dotted layer 1, user\n")],
    ];
    for marks in marks {
        let filled = place.shell(
            "rm -rf lower/* upper/* upper/.wh*; mkdir lower/d lower/e lower/keep; \
             touch lower/d/f lower/e/f lower/keep/f",
        );
        assert_eq!(filled.code, Some(0), "{filled:?}");
        for (mark, text) in marks {
            let said = place.shell(&format!("printf '{text}' >{mark}"));
            assert_eq!(said.code, Some(0), "{said:?}");
        }
        place.mount();
        let made = place.shell(
            "cd merged; for dir in d e; do rm -r $dir && mkdir $dir || exit; done; \
             chmod 0300 d; chmod 0 e; chmod 0300 keep",
        );
        let before = place.shell("cat merged/d/f");
        let remounted = place.umount();
        place.mount();
        let after = place.shell("cat merged/d/f");
        let modes = place.shell("stat -c %a merged/d merged/e merged/keep upper/d upper/e");
        let given = place.shell("cd merged; chmod 0700 d e keep && ls -A d e keep");
        assert_eq!(place.umount().code, Some(0));
        assert_eq!(
            (made.code, remounted.code),
            (Some(0), Some(0)),
            "{made:?} {remounted:?}"
        );
        for read in [&before, &after] {
            assert!(read.err.contains("No such file"), "{marks:?} {read:?}");
        }
        assert_eq!(modes.out, "300\n0\n300\n300\n0\n", "{modes:?}");
        assert_eq!(given.out, "d:\n\ne:\n\nkeep:\nf\n", "{marks:?} {given:?}");
    }
    Ok(Completion::Completed)
}

/// Copies that aren't finished have the owner and mode of what they are made from last of all.
fn the_work_directory_is_closed_to_others(place: &Place) -> Verdict {
    place.mount();
    let mode = fs::metadata(place.dir.join("work/work")).map(|stat| stat.permissions().mode());
    assert_eq!(place.umount().code, Some(0));
    // Closed even to its owner where the server passes by permissions, as with the kernel's.
    assert_eq!(mode? & 0o077, 0);
    Ok(Completion::Completed)
}

fn flags_that_protect_reach_the_kernel(place: &Place) -> Verdict {
    let options = format!("{},nosuid,nodev,noexec", place.options());
    let said = run(place.overfall(&["mount", "--backend", "fuse", "-o", &options, "merged"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    assert_eq!(place.umount().code, Some(0));
    place.mount();
    let bare = fs::read_to_string("/proc/self/mountinfo")?;
    assert_eq!(place.umount().code, Some(0));
    let flags = |table: &str| -> Vec<String> {
        let target = place.merged();
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(4) == target.to_str());
        let flags = line.and_then(|line| line.split(' ').nth(5)).unwrap();
        flags.split(',').map(str::to_owned).collect()
    };
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(
            flags(&table).iter().any(|set| set == flag),
            "{flag}: {table}"
        );
    }
    // fusermount3 sets the first two whether asked to or not.
    let always = flags(&bare)
        .iter()
        .filter(|set| ["nosuid", "nodev"].contains(&set.as_str()))
        .count();
    assert_eq!(always, if place.who == Who::Plain { 2 } else { 0 });
    Ok(Completion::Completed)
}
