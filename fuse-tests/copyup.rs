//! Copy-up: everything of the object arrives, nothing else changes, nothing is copied in vain.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};

use crate::common::{
    Carrier, Limit, Tree, cases, chmod, open_rw, set_times, stat, xattr_get, xattr_names, xattr_set,
};

cases! {
    keeps_mode_owner_times_and_attributes,
    keeps_a_foreign_owner: Limit::Root("needs a second uid"),
    keeps_setuid_and_setgid,
    of_parents_keeps_theirs,
    restores_the_parents_times,
    shows_the_parents_last_change,
    marks_origin_and_impure,
    of_a_broken_hard_link_has_no_origin,
    of_a_symlink,
    of_a_directory_takes_no_content,
    truncating_open_copies_no_data,
    removing_copies_nothing,
    replacing_copies_nothing,
    opening_for_reading_copies_nothing,
    opening_for_writing_copies,
    listing_and_stat_copy_nothing,
    lock_copies_nothing,
    of_an_empty_file,
    of_a_large_file,
    of_a_file_without_permissions,
    of_the_root_directory,
    by_rename_link_and_xattr,
    happens_once,
    concurrent_writers_of_one_file,
    concurrent_copy_ups_in_one_directory,
    concurrent_copy_ups_of_parents,
    racing_with_unlink,
    racing_with_rename,
    data_is_complete_while_others_read,
    in_a_directory_that_nobody_may_write,
}

fn keeps_mode_owner_times_and_attributes(t: &Tree) {
    t.lower(&["f=content"]);
    chmod(t.low("f"), 0o641);
    xattr_set(t.low("f"), "user.one", b"1").unwrap();
    xattr_set(t.low("f"), "user.two", &[0, 255, 0]).unwrap();
    set_times(&t.low("f"), (1_000, 1), (2_000, 999_999_999)).unwrap();
    t.mount();
    // A change of the owner to what it is: a copy-up without any other change of our own.
    chown(t.at("f"), Some(0), None).unwrap();
    for meta in [stat(t.at("f")), stat(t.upper("f"))] {
        assert_eq!((meta.mode() & 0o7777, meta.len()), (0o641, 7));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (2_000, 999_999_999));
        assert_eq!((meta.atime(), meta.atime_nsec()), (1_000, 1));
        assert_eq!((meta.uid(), meta.gid()), (stat(t.low("f")).uid(), stat(t.low("f")).gid()));
    }
    assert_eq!(xattr_get(t.upper("f"), "user.one").unwrap(), b"1");
    assert_eq!(xattr_get(t.upper("f"), "user.two").unwrap(), [0, 255, 0]);
    assert_eq!(t.read("f"), "content");
}

fn keeps_a_foreign_owner(t: &Tree) {
    t.lower(&["d/f=F", "d/l->f", "d/p|"]);
    for name in ["d", "d/f", "d/l", "d/p"] {
        std::os::unix::fs::lchown(t.low(name), Some(1111), Some(2222)).unwrap();
    }
    t.mount();
    t.append("d/f", "+");
    set_times(&t.at("d/l"), (1, 1), (1, 1)).unwrap();
    chmod(t.at("d/p"), 0o600);
    for name in ["d", "d/f", "d/l", "d/p"] {
        let meta = stat(t.upper(name));
        assert_eq!((meta.uid(), meta.gid()), (1111, 2222), "{name}");
    }
}

fn keeps_setuid_and_setgid(t: &Tree) {
    t.lower(&["suid=S", "sgid=S", "d/"]);
    chmod(t.low("suid"), 0o4711);
    chmod(t.low("sgid"), 0o2711);
    chmod(t.low("d"), 0o3775);
    t.mount();
    for name in ["suid", "sgid", "d"] {
        set_times(&t.at(name), (1, 0), (1, 0)).unwrap();
        assert_eq!(stat(t.upper(name)).mode(), stat(t.low(name)).mode(), "{name}");
    }
}

fn of_parents_keeps_theirs(t: &Tree) {
    t.lower(&["a/b/c/f=F", "a/other=O"]);
    chmod(t.low("a"), 0o751);
    chmod(t.low("a/b"), 0o2750);
    xattr_set(t.low("a/b"), "user.x", b"X").unwrap();
    set_times(&t.low("a/b"), (50, 5), (60, 6)).unwrap();
    t.mount();
    t.append("a/b/c/f", "+");
    assert_eq!(stat(t.upper("a")).mode() & 0o7777, 0o751);
    let b = stat(t.upper("a/b"));
    assert_eq!((b.mode() & 0o7777, b.mtime(), b.mtime_nsec()), (0o2750, 60, 6));
    assert_eq!(xattr_get(t.upper("a/b"), "user.x").unwrap(), b"X");
    assert_eq!(t.upper_sketch(), ["a/", "a/b/", "a/b/c/", "a/b/c/f=F+"]);
}

fn restores_the_parents_times(t: &Tree) {
    t.lower(&["a/b/f=F", "a/b/g=G"]);
    for name in ["a/b", "a"] {
        set_times(&t.low(name), (70, 7), (80, 8)).unwrap();
    }
    t.mount();
    t.append("a/b/f", "+");
    t.append("a/b/g", "+");
    for path in [t.at("a/b"), t.at("a"), t.upper("a/b"), t.upper("a")] {
        let meta = stat(&path);
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (80, 8), "{}", path.display());
    }
}

/// tar(1) finds a directory changed while it reads it, where that comes to light late.
fn shows_the_parents_last_change(t: &Tree) {
    t.lower(&["d/e/f=F", "d/g=G"]);
    t.mount();
    t.sketch();
    for file in ["d/g", "d/e/f"] {
        stat(t.at("d/e"));
        t.append(file, "+");
        t.flush();
        for dir in ["", "d", "d/e"].iter().filter(|dir| t.upper(dir).exists()) {
            let change = |path| (stat(&path).ctime(), stat(&path).ctime_nsec());
            assert_eq!(change(t.at(dir)), change(t.upper(dir)), "{dir} after {file}");
        }
    }
}

fn marks_origin_and_impure(t: &Tree) {
    t.lower(&["d/f=F", "e/g=G"]);
    t.mount();
    t.append("d/f", "+");
    t.write("e/new", "N");
    t.flush();
    let has = |path: &str, suffix: &str| xattr_get(t.upper(path), &t.private(suffix)).is_some();
    assert!(has("d/f", "origin") && has("d", "origin") && has("e", "origin"));
    assert!(!has("e/new", "origin"));
    assert_eq!(xattr_get(t.upper("d"), &t.private("impure")).unwrap(), b"y");
    assert_eq!(xattr_get(t.upper(""), &t.private("impure")).unwrap(), b"y");
    assert!(!has("e", "impure"), "nothing was copied up into it");
    // A file that was copied up makes the directory it's moved to impure.
    fs::rename(t.at("d/f"), t.at("e/f")).unwrap();
    assert_eq!(xattr_get(t.upper("e"), &t.private("impure")).unwrap(), b"y");
}

fn of_a_broken_hard_link_has_no_origin(t: &Tree) {
    t.lower(&["a=A"]);
    fs::hard_link(t.low("a"), t.low("b")).unwrap();
    t.mount();
    t.append("a", "+");
    t.flush();
    assert_eq!(xattr_get(t.upper("a"), &t.private("origin")), None);
}

fn of_a_symlink(t: &Tree) {
    t.lower(&["l->some/target"]);
    set_times(&t.low("l"), (5, 0), (6, 0)).unwrap();
    t.mount();
    std::os::unix::fs::lchown(t.at("l"), Some(0), None).unwrap();
    assert_eq!(t.upper_sketch(), ["l->some/target"]);
    assert_eq!(stat(t.upper("l")).mtime(), 6);
}

fn of_a_directory_takes_no_content(t: &Tree) {
    t.lower(&["d/f=F", "d/s/g=G"]);
    t.mount();
    chmod(t.at("d"), 0o700);
    assert_eq!(t.upper_sketch(), ["d/"]);
    assert_eq!(t.sketch(), ["d/", "d/f=F", "d/s/", "d/s/g=G"]);
}

const BIG: u64 = 512 << 20;

/// A file of 512 MiB that takes no room; reading all of it would take its time.
fn big(t: &Tree) {
    File::create(t.low("big")).unwrap().set_len(BIG).unwrap();
    t.lower(&["d/"]);
    t.mount();
}

fn truncating_open_copies_no_data(t: &Tree) {
    big(t);
    let start = std::time::Instant::now();
    t.write("big", "new");
    assert_eq!(t.upper_sketch(), ["big=new"]);
    assert!(start.elapsed().as_millis() < 400, "took {:?}", start.elapsed());
}

fn removing_copies_nothing(t: &Tree) {
    big(t);
    let start = std::time::Instant::now();
    fs::remove_file(t.at("big")).unwrap();
    assert!(start.elapsed().as_millis() < 400, "took {:?}", start.elapsed());
    assert_eq!(t.upper_sketch(), ["big!"]);
}

fn replacing_copies_nothing(t: &Tree) {
    big(t);
    t.write("small", "S");
    let start = std::time::Instant::now();
    fs::rename(t.at("small"), t.at("big")).unwrap();
    assert!(start.elapsed().as_millis() < 400, "took {:?}", start.elapsed());
    assert_eq!(t.upper_sketch(), ["big=S"]);
}

fn opening_for_reading_copies_nothing(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    file.sync_all().unwrap();
    drop(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(t.at("f")).unwrap());
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn opening_for_writing_copies(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let file = open_rw(t.at("f"));
    // The kernel copies at the open; a server that isn't told of opens does it at the first write.
    if t.carrier() == Carrier::Kernel {
        assert_eq!(t.upper_sketch(), ["f=F"]);
    }
    drop(file);
    assert_eq!(t.read("f"), "F");
}

fn listing_and_stat_copy_nothing(t: &Tree) {
    t.lower(&["d/f=F", "l->d"]);
    t.mount();
    assert_eq!(t.sketch().len(), 3);
    assert_eq!(xattr_names(t.at("d/f")), [b""; 0]);
    rustix::fs::access(t.at("d/f"), rustix::fs::Access::WRITE_OK).unwrap();
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn lock_copies_nothing(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn of_an_empty_file(t: &Tree) {
    t.lower(&["f="]);
    t.mount();
    chmod(t.at("f"), 0o600);
    assert_eq!(t.upper_sketch(), ["f="]);
}

fn of_a_large_file(t: &Tree) {
    let data: Vec<u8> = (0..20_000_000u32).map(|i| (i / 7) as u8).collect();
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    chmod(t.at("f"), 0o600);
    assert!(fs::read(t.upper("f")).unwrap() == data);
    assert!(fs::read(t.at("f")).unwrap() == data);
}

fn of_a_file_without_permissions(t: &Tree) {
    t.lower(&["f=F", "d/g=G"]);
    chmod(t.low("f"), 0);
    chmod(t.low("d/g"), 0o200);
    t.mount();
    t.append("f", "+");
    t.append("d/g", "+");
    assert_eq!(stat(t.upper("f")).mode() & 0o7777, 0);
    chmod(t.at("f"), 0o600);
    assert_eq!(t.read("f"), "F+");
}

fn of_the_root_directory(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    chmod(t.at(""), 0o750);
    xattr_set(t.at(""), "user.x", b"1").unwrap();
    set_times(&t.at(""), (5, 0), (6, 0)).unwrap();
    t.remount();
    assert_eq!((stat(t.at("")).mode() & 0o777, stat(t.at("")).mtime()), (0o750, 6));
    assert_eq!(xattr_get(t.at(""), "user.x").unwrap(), b"1");
}

fn by_rename_link_and_xattr(t: &Tree) {
    t.lower(&["r=R", "l=L", "x=X"]);
    for name in ["r", "l", "x"] {
        set_times(&t.low(name), (5, 0), (6, 0)).unwrap();
        chmod(t.low(name), 0o640);
    }
    t.mount();
    fs::rename(t.at("r"), t.at("r2")).unwrap();
    fs::hard_link(t.at("l"), t.at("l2")).unwrap();
    xattr_set(t.at("x"), "user.x", b"1").unwrap();
    for name in ["r2", "l", "l2", "x"] {
        let meta = stat(t.upper(name));
        assert_eq!((meta.mode() & 0o777, meta.mtime()), (0o640, 6), "{name}");
    }
}

fn happens_once(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    t.append("f", "1");
    t.flush();
    let first = stat(t.upper("f")).ino();
    t.append("f", "2");
    chmod(t.at("f"), 0o600);
    t.flush();
    assert_eq!(stat(t.upper("f")).ino(), first);
}

fn concurrent_writers_of_one_file(t: &Tree) {
    for round in 0..10 {
        fs::write(t.low(&format!("f{round}")), vec![b'.'; 100_000]).unwrap();
    }
    t.mount();
    for round in 0..10 {
        let path = t.at(&format!("f{round}"));
        std::thread::scope(|scope| {
            for k in 0..4u8 {
                let path = &path;
                scope.spawn(move || {
                    use std::os::unix::fs::FileExt;
                    open_rw(path).write_all_at(&[b'0' + k; 10], u64::from(k) * 20_000).unwrap();
                });
            }
        });
        let data = fs::read(&path).unwrap();
        assert_eq!(data.len(), 100_000);
        for k in 0..4u8 {
            let start = usize::from(k) * 20_000;
            assert_eq!(data[start..start + 10], [b'0' + k; 10], "round {round}");
        }
    }
}

fn in_threads(count: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..count).map(|k| scope.spawn({
            let work = &work;
            move || work(k)
        })).collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

fn concurrent_copy_ups_in_one_directory(t: &Tree) {
    let entries: Vec<_> = (0..40).map(|i| format!("d/f{i}=old{i}")).collect();
    t.lower(&entries.iter().map(String::as_str).collect::<Vec<_>>());
    t.mount();
    let dir = t.at("d");
    in_threads(4, |k| {
        for i in (k..40).step_by(4) {
            let path = dir.join(format!("f{i}"));
            OpenOptions::new().append(true).open(path).unwrap().write_all(b"+").unwrap();
        }
    });
    for i in 0..40 {
        assert_eq!(t.read(&format!("d/f{i}")), format!("old{i}+"));
    }
    assert_eq!(t.upper_sketch().len(), 41);
}

fn concurrent_copy_ups_of_parents(t: &Tree) {
    let entries: Vec<_> = (0..4).map(|i| format!("a/b/c/d{i}/f=F")).collect();
    t.lower(&entries.iter().map(String::as_str).collect::<Vec<_>>());
    t.mount();
    let dir = t.at("a/b/c");
    in_threads(4, |k| fs::write(dir.join(format!("d{k}/new")), "N").unwrap());
    assert_eq!(t.upper_sketch().len(), 3 + 8);
    assert_eq!(t.sketch().len(), 3 + 12);
}

fn racing_with_unlink(t: &Tree) {
    let entries: Vec<_> = (0..30).map(|i| format!("f{i}=old")).collect();
    t.lower(&entries.iter().map(String::as_str).collect::<Vec<_>>());
    t.mount();
    let dir = t.at("");
    for i in 0..30 {
        let path = dir.join(format!("f{i}"));
        in_threads(2, |k| {
            if k == 0 {
                if let Ok(mut file) = OpenOptions::new().append(true).open(&path) {
                    // The write may come after the unlink: it then goes to the file without a name.
                    file.write_all(b"+").unwrap();
                }
            } else {
                fs::remove_file(&path).unwrap();
            }
        });
        assert!(fs::symlink_metadata(&path).is_err(), "{i} came back");
    }
    assert!(t.upper_sketch().iter().all(|line| line.ends_with('!')), "{:?}", t.upper_sketch());
    t.remount();
    assert_eq!(t.sketch(), [""; 0]);
}

fn racing_with_rename(t: &Tree) {
    let entries: Vec<_> = (0..30).map(|i| format!("f{i}=old")).collect();
    t.lower(&entries.iter().map(String::as_str).collect::<Vec<_>>());
    t.mount();
    let dir = t.at("");
    for i in 0..30 {
        let (path, moved) = (dir.join(format!("f{i}")), dir.join(format!("g{i}")));
        let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        in_threads(2, |k| {
            if k == 0 {
                (&file).write_all(b"+").unwrap();
            } else {
                fs::rename(&path, &moved).unwrap();
            }
        });
        assert_eq!(fs::read_to_string(&moved).unwrap(), "old+", "{i}");
        assert!(fs::symlink_metadata(&path).is_err());
    }
}

fn data_is_complete_while_others_read(t: &Tree) {
    let data = vec![b'd'; 3_000_000];
    fs::write(t.low("f"), &data).unwrap();
    t.mount();
    let path = t.at("f");
    in_threads(3, |k| {
        if k == 0 {
            chmod(&path, 0o640);
        } else {
            for _ in 0..5 {
                let read = fs::read(&path).unwrap();
                assert!(read.len() == data.len() && read == data);
            }
        }
    });
}

fn in_a_directory_that_nobody_may_write(t: &Tree) {
    t.lower(&["d/e/f=F"]);
    chmod(t.low("d/e"), 0o555);
    chmod(t.low("d"), 0o555);
    t.mount();
    t.append("d/e/f", "+");
    assert_eq!(t.read("d/e/f"), "F+");
    assert_eq!(stat(t.upper("d/e")).mode() & 0o777, 0o555);
    // So that a plain user can remove what it left.
    t.umount();
    for dir in [t.upper("d"), t.upper("d/e")] {
        chmod(dir, 0o755);
    }
    t.lowers_may_change();
}
