//! chmod, chown, utimens and truncate, on lower and upper objects.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown, lchown};

use crate::common::{Limit, Tree, as_user, cases, chmod, fails, open_rw, set_times, stat};

const OTHER: Limit = Limit::Root("needs a second uid");

cases! {
    statx_without_and_with_a_sync,
    chmod_lower_file,
    chmod_lower_directory,
    chmod_does_not_touch_data_or_times,
    chmod_setuid_by_owner,
    chmod_by_somebody_else: OTHER,
    chmod_drops_setgid_of_a_foreign_group: OTHER,
    chown_lower_file: OTHER,
    chown_lower_directory_and_symlink: OTHER,
    chown_drops_setuid: OTHER,
    chown_drops_setgid_of_a_foreign_group: OTHER,
    chown_by_a_plain_user: OTHER,
    write_by_somebody_else_drops_setuid: OTHER,
    truncate_by_somebody_else_drops_setuid: OTHER,
    open_with_truncation_by_somebody_else_drops_setuid: OTHER,
    write_by_root_keeps_setuid: Limit::Root("root of a namespace has no CAP_FSETID over the file"),
    write_by_root_of_a_namespace_drops_setuid,
    times_with_nanoseconds,
    times_before_1970,
    times_after_2038,
    times_of_directory_and_symlink,
    times_now,
    times_by_somebody_else: OTHER,
    truncate_lower_file,
    truncate_longer_than_it_was,
    truncate_an_open_file,
    truncate_a_directory,
    truncate_changes_mtime_same_size_too,
    write_changes_mtime_and_ctime,
    attributes_of_lower_objects,
    blocks_of_a_sparse_file,
    read_only_file_as_plain_user: OTHER,
    execute_permission: OTHER,
    directory_time_changes_with_its_names,
    statfs_answers,
    parents_of_a_copy_up_have_one_link,
    fallocate_by_somebody_else_drops_setuid: OTHER,
    write_drops_setgid_of_a_foreign_group: OTHER,
    chown_to_nobody_drops_setuid,
    chown_to_nobody_by_somebody_else_drops_nothing: OTHER,
}

fn mode(t: &Tree, path: &str) -> u32 {
    stat(t.at(path)).mode() & 0o7777
}

fn chmod_lower_file(t: &Tree) {
    t.lower(&["f=F"]);
    chmod(t.low("f"), 0o644);
    t.mount();
    for bits in [0o600, 0o777, 0, 0o444] {
        chmod(t.at("f"), bits);
        assert_eq!(mode(t, "f"), bits);
    }
    assert_eq!(t.read("f"), "F");
    assert_eq!(stat(t.upper("f")).mode() & 0o7777, 0o444);
    t.remount();
    assert_eq!(mode(t, "f"), 0o444);
}

fn chmod_lower_directory(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    chmod(t.at("d"), 0o1750);
    assert_eq!(mode(t, "d"), 0o1750);
    assert_eq!(t.upper_sketch(), ["d/"]);
    assert_eq!(t.read("d/f"), "F");
}

fn chmod_does_not_touch_data_or_times(t: &Tree) {
    t.lower(&["f=F"]);
    set_times(&t.low("f"), (100, 1), (200, 2)).unwrap();
    t.mount();
    chmod(t.at("f"), 0o600);
    let meta = stat(t.at("f"));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (200, 2));
    assert!(meta.ctime() > 200);
    let upper = stat(t.upper("f"));
    assert_eq!((upper.mtime(), upper.mtime_nsec()), (200, 2));
}

fn chmod_setuid_by_owner(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    for bits in [0o4755, 0o2755, 0o6711, 0o1644] {
        chmod(t.at("f"), bits);
        assert_eq!(mode(t, "f"), bits);
    }
}

fn chmod_by_somebody_else(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let path = t.at("f");
    as_user(1234, 1234, || {
        use std::os::unix::fs::PermissionsExt;
        fails(fs::set_permissions(&path, fs::Permissions::from_mode(0o777)), libc::EPERM);
    });
    assert_eq!(t.upper_sketch(), [""; 0], "a refused chmod copies nothing up");
}

fn chmod_drops_setgid_of_a_foreign_group(t: &Tree) {
    t.lower(&["f=F"]);
    chown(t.low("f"), Some(1234), Some(99)).unwrap();
    t.mount();
    let path = t.at("f");
    as_user(1234, 1234, || chmod(&path, 0o2755));
    assert_eq!(mode(t, "f"), 0o755);
}

fn chown_lower_file(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    chown(t.at("f"), Some(1234), None).unwrap();
    chown(t.at("f"), None, Some(99)).unwrap();
    let meta = stat(t.at("f"));
    assert_eq!((meta.uid(), meta.gid()), (1234, 99));
    let upper = stat(t.upper("f"));
    assert_eq!((upper.uid(), upper.gid()), (1234, 99));
    assert_eq!(t.read("f"), "F");
}

fn chown_lower_directory_and_symlink(t: &Tree) {
    t.lower(&["d/f=F", "l->d"]);
    t.mount();
    lchown(t.at("l"), Some(7), Some(8)).unwrap();
    chown(t.at("d"), Some(9), Some(10)).unwrap();
    let (link, dir) = (stat(t.at("l")), stat(t.at("d")));
    assert_eq!((link.uid(), link.gid(), dir.uid(), dir.gid()), (7, 8, 9, 10));
    assert_eq!(t.upper_sketch(), ["d/", "l->d"]);
}

fn chown_drops_setuid(t: &Tree) {
    t.lower(&["low=F", "noexec=F"]);
    chmod(t.low("low"), 0o6755);
    chmod(t.low("noexec"), 0o2644);
    t.mount();
    t.write("up", "");
    chmod(t.at("up"), 0o6755);
    for name in ["low", "noexec", "up"] {
        chown(t.at(name), Some(1234), Some(1234)).unwrap();
    }
    assert_eq!(mode(t, "low"), 0o755);
    assert_eq!(mode(t, "up"), 0o755);
    assert_eq!(mode(t, "noexec"), 0o2644, "no group execution: a mandatory lock's mark");
}

fn chown_drops_setgid_of_a_foreign_group(t: &Tree) {
    t.lower(&["foreign=F", "own=O"]);
    for (name, group) in [("foreign", 0), ("own", 1234)] {
        chown(t.low(name), Some(1234), Some(group)).unwrap();
        chmod(t.low(name), 0o6644);
    }
    t.mount();
    for (name, left) in [("foreign", 0o644), ("own", 0o2644)] {
        let path = t.at(name);
        let group = stat(&path).gid();
        as_user(1234, 1234, || chown(&path, None, Some(group)).unwrap());
        assert_eq!(mode(t, name), left, "{name}");
    }
}

fn chown_by_a_plain_user(t: &Tree) {
    t.lower(&["f=F"]);
    chown(t.low("f"), Some(1234), Some(1234)).unwrap();
    t.mount();
    let path = t.at("f");
    as_user(1234, 1234, || {
        fails(chown(&path, Some(99), None), libc::EPERM);
        fails(chown(&path, None, Some(99)), libc::EPERM);
        chown(&path, None, Some(1234)).unwrap();
    });
}

fn open_to_all(t: &Tree, bits: u32) {
    t.lower(&["f=content"]);
    chmod(t.low("f"), bits);
    t.mount();
}

fn write_by_somebody_else_drops_setuid(t: &Tree) {
    open_to_all(t, 0o6777);
    let path = t.at("f");
    as_user(1234, 1234, || open_rw(&path).write_all(b"C").unwrap());
    assert_eq!(mode(t, "f"), 0o777);
    t.remount();
    assert_eq!(mode(t, "f"), 0o777);
    assert_eq!(t.read("f"), "Content");
}

fn truncate_by_somebody_else_drops_setuid(t: &Tree) {
    open_to_all(t, 0o6777);
    let path = t.at("f");
    as_user(1234, 1234, || open_rw(&path).set_len(3).unwrap());
    assert_eq!(mode(t, "f"), 0o777);
}

fn open_with_truncation_by_somebody_else_drops_setuid(t: &Tree) {
    open_to_all(t, 0o6777);
    let path = t.at("f");
    as_user(1234, 1234, || drop(File::create(&path).unwrap()));
    assert_eq!(mode(t, "f"), 0o777);
    assert_eq!(t.read("f"), "");
}

fn write_by_root_keeps_setuid(t: &Tree) {
    open_to_all(t, 0o4755);
    t.append("f", "+");
    assert_eq!(mode(t, "f"), 0o4755);
}

fn write_by_root_of_a_namespace_drops_setuid(t: &Tree) {
    if t.is_real_root() {
        crate::common::skip("needs root of a user namespace");
    }
    open_to_all(t, 0o4755);
    t.append("f", "+");
    assert_eq!(mode(t, "f"), 0o755);
}

fn times(t: &Tree, path: &str) -> [(i64, i64); 2] {
    let meta = stat(t.at(path));
    [(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())]
}

fn check_times(t: &Tree, atime: (i64, i64), mtime: (i64, i64)) {
    t.lower(&["set=S", "keep=K"]);
    set_times(&t.low("keep"), atime, mtime).unwrap();
    t.mount();
    set_times(&t.at("set"), atime, mtime).unwrap();
    t.write("new", "N");
    set_times(&t.at("new"), atime, mtime).unwrap();
    for name in ["set", "keep", "new"] {
        assert_eq!(times(t, name), [atime, mtime], "{name}");
    }
    chmod(t.at("keep"), 0o600);
    t.remount();
    for name in ["set", "keep", "new"] {
        assert_eq!(times(t, name), [atime, mtime], "{name} after the remount");
    }
}

fn times_with_nanoseconds(t: &Tree) {
    check_times(t, (1_000_000_000, 123_456_789), (1_111_111_111, 999_999_999));
}

fn times_before_1970(t: &Tree) {
    check_times(t, (-1, 500_000_000), (-86_400 * 365, 1));
}

fn times_after_2038(t: &Tree) {
    check_times(t, (1 << 32, 7), ((1 << 33) + 5, 8));
}

fn times_of_directory_and_symlink(t: &Tree) {
    t.lower(&["d/", "l->nowhere"]);
    t.mount();
    for name in ["d", "l"] {
        set_times(&t.at(name), (10, 1), (20, 2)).unwrap();
        assert_eq!(times(t, name)[1], (20, 2), "{name}");
    }
    assert_eq!(t.upper_sketch(), ["d/", "l->nowhere"]);
    assert_eq!(stat(t.upper("l")).mtime(), 20);
}

fn times_now(t: &Tree) {
    t.lower(&["f=F"]);
    set_times(&t.low("f"), (5, 0), (5, 0)).unwrap();
    t.mount();
    let now = (0, libc::UTIME_NOW);
    set_times(&t.at("f"), (0, libc::UTIME_OMIT), now).unwrap();
    let [atime, mtime] = times(t, "f");
    assert_eq!(atime.0, 5);
    assert!(mtime.0 > 1_000_000_000);
}

fn times_by_somebody_else(t: &Tree) {
    t.lower(&["f=F"]);
    chmod(t.low("f"), 0o666);
    t.mount();
    let path = t.at("f");
    as_user(1234, 1234, || {
        fails(set_times(&path, (1, 0), (1, 0)), libc::EPERM);
        set_times(&path, (0, libc::UTIME_NOW), (0, libc::UTIME_NOW)).unwrap();
    });
}

fn truncate_lower_file(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    for (length, text) in [(4, "0123"), (6, "0123\0\0"), (0, ""), (2, "\0\0")] {
        open_rw(t.at("f")).set_len(length).unwrap();
        assert_eq!(t.read("f"), text);
        assert_eq!(stat(t.at("f")).len(), length);
    }
    t.remount();
    assert_eq!(t.read("f"), "\0\0");
}

fn truncate_longer_than_it_was(t: &Tree) {
    t.lower(&["f=abc"]);
    t.mount();
    open_rw(t.at("f")).set_len(10_000_000).unwrap();
    let meta = stat(t.at("f"));
    assert_eq!(meta.len(), 10_000_000);
    let data = fs::read(t.at("f")).unwrap();
    assert_eq!(&data[..3], b"abc");
    assert!(data[3..].iter().all(|byte| *byte == 0));
    t.flush();
    assert!(stat(t.upper("f")).blocks() < 100, "the new part is a hole");
}

fn truncate_an_open_file(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    let reader = File::open(t.at("f")).unwrap();
    let writer = open_rw(t.at("f"));
    writer.set_len(3).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 3);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "012");
    fails(File::open(t.at("f")).unwrap().set_len(1), libc::EINVAL);
}

fn truncate_a_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    fails(fs::OpenOptions::new().write(true).open(t.at("d")), libc::EISDIR);
    fails(File::create(t.at("d")), libc::EISDIR);
}

fn truncate_changes_mtime_same_size_too(t: &Tree) {
    t.lower(&["f=abc", "g=abc"]);
    for name in ["f", "g"] {
        set_times(&t.low(name), (5, 0), (5, 0)).unwrap();
    }
    t.mount();
    open_rw(t.at("f")).set_len(1).unwrap();
    assert!(stat(t.at("f")).mtime() > 5);
    open_rw(t.at("g")).set_len(3).unwrap();
    assert!(stat(t.at("g")).mtime() > 5);
}

fn write_changes_mtime_and_ctime(t: &Tree) {
    t.lower(&["f=abc"]);
    set_times(&t.low("f"), (5, 0), (5, 0)).unwrap();
    t.mount();
    t.append("f", "d");
    let now = stat(t.at("f"));
    assert!(now.mtime() > 5 && now.ctime() > 5);
    assert_eq!(now.len(), 4);
    t.remount();
    let later = stat(t.at("f"));
    assert_eq!((later.mtime(), later.mtime_nsec()), (now.mtime(), now.mtime_nsec()));
}

fn attributes_of_lower_objects(t: &Tree) {
    t.lower(&["f=F", "d/", "l->f", "p|"]);
    chmod(t.low("f"), 0o4711);
    chmod(t.low("d"), 0o2775);
    set_times(&t.low("f"), (11, 12), (13, 14)).unwrap();
    t.mount();
    for name in ["f", "d", "l", "p"] {
        let (low, here) = (stat(t.low(name)), stat(t.at(name)));
        assert_eq!(low.mode(), here.mode(), "{name}");
        assert_eq!((low.uid(), low.gid()), (here.uid(), here.gid()), "{name}");
        assert_eq!((low.mtime(), low.mtime_nsec()), (here.mtime(), here.mtime_nsec()), "{name}");
        assert_eq!((low.ctime(), low.ctime_nsec()), (here.ctime(), here.ctime_nsec()), "{name}");
        assert_eq!(low.len(), here.len(), "{name}");
    }
}

fn blocks_of_a_sparse_file(t: &Tree) {
    File::create(t.low("f")).unwrap().set_len(1 << 30).unwrap();
    t.mount();
    let meta = stat(t.at("f"));
    assert_eq!((meta.len(), meta.blocks()), (1 << 30, 0));
}

fn read_only_file_as_plain_user(t: &Tree) {
    t.lower(&["ro=R", "secret=S"]);
    chmod(t.low("ro"), 0o444);
    chmod(t.low("secret"), 0o600);
    t.mount();
    let (ro, secret) = (t.at("ro"), t.at("secret"));
    as_user(1234, 1234, || {
        assert_eq!(fs::read(&ro).unwrap(), b"R");
        fails(fs::OpenOptions::new().append(true).open(&ro), libc::EACCES);
        fails(File::open(&secret), libc::EACCES);
        fails(fs::write(ro.with_file_name("new"), ""), libc::EACCES);
        fails(fs::remove_file(&ro), libc::EACCES);
    });
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn execute_permission(t: &Tree) {
    t.lower(&["run=#!/bin/sh\nexit 7\n", "data=#!/bin/sh\nexit 7\n"]);
    chmod(t.low("run"), 0o755);
    chmod(t.low("data"), 0o644);
    t.mount();
    let status = std::process::Command::new(t.at("run")).status().unwrap();
    assert_eq!(status.code(), Some(7));
    fails(std::process::Command::new(t.at("data")).status(), libc::EACCES);
}

fn directory_time_changes_with_its_names(t: &Tree) {
    t.lower(&["d/a=1", "d/b=1"]);
    let past = |path: &std::path::Path| set_times(path, (5, 0), (5, 0)).unwrap();
    past(&t.low("d"));
    t.mount();
    assert_eq!(stat(t.at("d")).mtime(), 5);
    let changes: [(&str, &dyn Fn()); 4] = [
        ("create", &|| t.write("d/n", "")),
        ("unlink lower", &|| fs::remove_file(t.at("d/a")).unwrap()),
        ("unlink upper", &|| fs::remove_file(t.at("d/n")).unwrap()),
        ("mkdir", &|| fs::create_dir(t.at("d/s")).unwrap()),
    ];
    for (what, change) in changes {
        past(&t.at("d"));
        assert_eq!(stat(t.at("d")).mtime(), 5, "before {what}");
        change();
        assert!(stat(t.at("d")).mtime() > 5, "after {what}");
    }
    past(&t.at("d"));
    t.append("d/b", "+");
    assert_eq!(stat(t.at("d")).mtime(), 5, "a copy-up is no change of the directory");
}

fn statfs_answers(t: &Tree) {
    t.mount();
    let merged = rustix::fs::statvfs(t.at("")).unwrap();
    let upper = rustix::fs::statvfs(t.upper("")).unwrap();
    assert_eq!(merged.f_blocks, upper.f_blocks);
    assert_eq!(merged.f_files, upper.f_files);
    assert_eq!((merged.f_bsize, merged.f_namemax), (upper.f_bsize, upper.f_namemax));
}

fn parents_of_a_copy_up_have_one_link(t: &Tree) {
    t.lower(&["d/e/f/", "d/e/a=A"]);
    t.mount();
    let links = |name| stat(t.at(name)).nlink();
    let before = (links("d"), links("d/e"));
    assert!(before.0 == 3 && before.1 == 3 || before == (1, 1), "{before:?}");
    chmod(t.at("d/e/a"), 0o600);
    // They are merged directories now.
    assert_eq!((links("d"), links("d/e")), (1, 1));
}

fn fallocate_by_somebody_else_drops_setuid(t: &Tree) {
    t.lower(&["a=A"]);
    chmod(t.low("a"), 0o6777);
    t.mount();
    let file = open_rw(t.at("a"));
    as_user(1234, 1234, || {
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, 100).unwrap();
    });
    assert_eq!(stat(t.at("a")).mode() & 0o7777, 0o777);
}

fn write_drops_setgid_of_a_foreign_group(t: &Tree) {
    t.lower(&["a=A"]);
    chmod(t.low("a"), 0o2706);
    t.mount();
    let path = t.at("a");
    as_user(1234, 1234, || open_rw(&path).write_all(b"B").unwrap());
    assert_eq!(stat(t.at("a")).mode() & 0o7777, 0o706);
}

fn chown_to_nobody_drops_setuid(t: &Tree) {
    t.lower(&["a=A"]);
    chmod(t.low("a"), 0o4755);
    t.mount();
    chown(t.at("a"), None, None).unwrap();
    assert_eq!(stat(t.at("a")).mode() & 0o7777, 0o755);
}

fn chown_to_nobody_by_somebody_else_drops_nothing(t: &Tree) {
    t.lower(&["a=A"]);
    chmod(t.low("a"), 0o4755);
    t.mount();
    let path = t.at("a");
    // EPERM on the kernel's overlay; FUSE has no word for it.
    let _ = as_user(1234, 1234, || chown(&path, None, None));
    assert_eq!(stat(t.at("a")).mode() & 0o7777, 0o4755);
    assert!(!t.upper("a").exists());
}

/// What FUSE remembers may be older than the last write; whoever asks for the truth gets it.
fn statx_without_and_with_a_sync(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let size = |flags| {
        let wanted = rustix::fs::StatxFlags::SIZE;
        rustix::fs::statx(rustix::fs::CWD, t.at("f"), flags, wanted).unwrap().stx_size
    };
    assert_eq!(size(rustix::fs::AtFlags::STATX_DONT_SYNC), 1);
    t.append("f", "+");
    assert_eq!(size(rustix::fs::AtFlags::STATX_FORCE_SYNC), 2);
    assert_eq!(size(rustix::fs::AtFlags::STATX_DONT_SYNC), 2);
    t.append("f", "+");
    assert!([2, 3].contains(&size(rustix::fs::AtFlags::STATX_DONT_SYNC)));
    assert_eq!(stat(t.at("f")).len(), 3);
}
