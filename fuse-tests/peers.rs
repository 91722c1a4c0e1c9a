//! One test or more for each defect that was found in the peers: the rows of the list that
//! docs/SEMANTICS.md refers to. The kernel is right in all of them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use rustix::fs::RenameFlags;

use crate::common::{
    Carrier, Limit, Tree, as_user, cases, chmod, fails, join_bytes, names, open_flags, open_rw,
    rename2, set_times, skip, stat, with_umask, xattr_get, xattr_names, xattr_set,
};

const OURS: Limit = Limit::Fuse("there is no server that could be killed");
const OTHER: Limit = Limit::Root("needs a second uid");

cases! {
    peers_row_1_lower_layer_modified,
    peers_row_2_stale_read_only_descriptor_poisons_the_page_cache,
    peers_row_2_mapping_made_after_the_copy_up_sees_the_new_data: Limit::Fuse("the kernel maps what the descriptor was opened on"),
    peers_row_3_deleted_files_come_back_at_the_root,
    peers_row_3_deleted_files_come_back_after_rm_and_mkdir,
    peers_row_3_deleted_files_come_back_after_a_move_over_an_emptied_directory,
    peers_row_4_temporary_names_of_an_earlier_mount_are_in_the_way,
    peers_row_4_kill_in_a_copy_up_leaves_the_old_or_the_new_file: OURS,
    peers_row_4_no_space_leaves_no_temporaries,
    peers_row_5_unlinked_but_open_file,
    peers_row_5_removed_open_directory,
    peers_row_6_umask_of_the_caller_counts,
    peers_row_6_setuid_does_not_survive_a_strangers_write: OTHER,
    peers_row_6_setuid_does_not_survive_a_strangers_truncate: OTHER,
    peers_row_6_file_dated_before_1970,
    peers_row_6_sigterm_unmounts: OURS,
    peers_row_7_nobody_waits_for_a_copy_up,
    peers_row_7_unlink_and_truncation_copy_no_data,
    peers_row_7_holes_are_not_filled,
    peers_row_8_small_writes_are_cheap,
    peers_row_9_missing_names_are_remembered,
    peers_row_9_large_directory_is_not_loaded_to_stat_a_file,
    peers_row_10_link_of_a_copied_up_file_is_one_inode,
    peers_row_10_exchange_with_a_lower_file,
    peers_row_10_unnamed_temporary_file: Limit::Kernel("the FUSE library has no tmpfile request"),
    peers_row_10_inode_flags_can_be_read,
    peers_row_10_names_of_255_bytes,
    peers_row_10_inode_numbers_hold_over_a_remount,
    peers_row_11_opaque_directories_have_no_sentinel_and_no_private_attribute,
    peers_row_11_no_whiteouts_inside_opaque_directories,
    peers_row_11_no_needless_whiteouts,
    peers_row_11_attribute_whiteouts_are_read,
    peers_row_11_redirects_and_metadata_copies_are_not_misread,
    peers_backend_rs_rename_works,
    peers_backend_rs_copy_up_keeps_attributes_and_times,
    peers_backend_rs_hard_links_are_one_inode,
    peers_backend_rs_names_are_bytes,
}

/// So many milliseconds on a real machine; more on one that is emulated.
fn slowly(milliseconds: u64) -> Duration {
    let slowness = std::env::var("OVERFALL_TEST_SLOWNESS").ok();
    let factor = slowness.and_then(|text| text.parse().ok()).unwrap_or(1);
    Duration::from_millis(milliseconds * factor)
}

fn content(file: &mut File) -> String {
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

fn peers_row_1_lower_layer_modified(t: &Tree) {
    t.lower(&["f=the lower data"]);
    t.mount();
    let mut reader = File::open(t.at("f")).unwrap();
    assert_eq!(content(&mut reader), "the lower data");
    let mut writer = open_rw(t.at("f"));
    writer.write_all(b"WRITTEN").unwrap();
    writer.sync_all().unwrap();
    assert_eq!(fs::read_to_string(t.low("f")).unwrap(), "the lower data");
    assert_eq!(fs::read_to_string(t.upper("f")).unwrap(), "WRITTENer data");
}

/// Takes a file's clean pages out of the cache.
fn drop_cache(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn peers_row_2_stale_read_only_descriptor_poisons_the_page_cache(t: &Tree) {
    fs::write(t.low("f"), "old ".repeat(5000)).unwrap();
    t.mount();
    let mut reader = File::open(t.at("f")).unwrap();
    assert!(content(&mut reader).starts_with("old"));
    let mut writer = open_rw(t.at("f"));
    let new = "new ".repeat(5000);
    writer.write_all(new.as_bytes()).unwrap();
    writer.sync_all().unwrap();
    for file in [&reader, &writer] {
        drop_cache(file);
    }
    assert!(content(&mut reader) == new, "the old descriptor");
    assert!(t.read("f") == new, "a new descriptor after the old one has read");
    assert!(content(&mut writer) == new);
    t.flush();
    assert!(fs::read_to_string(t.upper("f")).unwrap() == new);
}

fn peers_row_2_mapping_made_after_the_copy_up_sees_the_new_data(t: &Tree) {
    use crate::common::mmap::Mapping;
    t.lower(&["f=old data"]);
    t.mount();
    let reader = File::open(t.at("f")).unwrap();
    t.append("f", "+");
    open_rw(t.at("f")).write_all_at(b"NEW", 0).unwrap();
    let map = Mapping::new(&reader, 9, libc::PROT_READ, libc::MAP_SHARED);
    assert_eq!(map.read(), b"NEW data+");
}

/// The tree must be the same now, after a remount, and after a listing.
#[track_caller]
fn stays(t: &Tree, expected: &[&str]) {
    assert_eq!(t.sketch(), expected, "in this mount");
    t.remount();
    assert_eq!(t.sketch(), expected, "after a remount");
}

fn peers_row_3_deleted_files_come_back_at_the_root(t: &Tree) {
    t.lower(&["a=lower", "b=lower"]);
    t.mount();
    assert_eq!(t.sketch().len(), 2);
    fs::remove_file(t.at("a")).unwrap();
    t.write("a", "new");
    fs::rename(t.at("a"), t.at("b")).unwrap();
    assert_eq!(t.upper_sketch(), ["a!", "b=new"]);
    stays(t, &["b=new"]);
    fs::remove_file(t.at("b")).unwrap();
    stays(t, &[]);
}

fn peers_row_3_deleted_files_come_back_after_rm_and_mkdir(t: &Tree) {
    t.lower(&["d/f=lower", "d/s/g=lower"]);
    t.mount();
    assert_eq!(t.sketch().len(), 4);
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    assert!(!t.has("d/f") && !t.has("d/s"));
    stays(t, &["d/"]);
    fs::create_dir(t.at("d/s")).unwrap();
    stays(t, &["d/", "d/s/"]);
    fs::remove_dir_all(t.at("d")).unwrap();
    stays(t, &[]);
    fs::create_dir(t.at("d")).unwrap();
    stays(t, &["d/"]);
}

fn peers_row_3_deleted_files_come_back_after_a_move_over_an_emptied_directory(t: &Tree) {
    t.lower(&["m/f=lower", "m/g=lower"]);
    t.upper_has(&["m/up=upper"]);
    t.mount();
    for name in ["f", "g", "up"] {
        fs::remove_file(t.at("m").join(name)).unwrap();
    }
    fs::create_dir(t.at("new")).unwrap();
    t.write("new/x", "X");
    fs::rename(t.at("new"), t.at("m")).unwrap();
    assert!(!t.has("m/f") && !t.has("m/g"));
    stays(t, &["m/", "m/x=X"]);
}

fn peers_row_4_temporary_names_of_an_earlier_mount_are_in_the_way(t: &Tree) {
    t.lower(&["a=A", "b=B", "c=C"]);
    fs::create_dir(t.work("work")).unwrap();
    for number in 0..64 {
        fs::write(t.work(&format!("work/#{number:x}")), "left").unwrap();
    }
    t.mount();
    t.append("a", "+");
    t.remount();
    t.append("b", "+");
    fs::remove_file(t.at("c")).unwrap();
    t.write("c", "new");
    assert_eq!(t.sketch(), ["a=A+", "b=B+", "c=new"]);
    t.umount();
    assert!(!crate::common::sketch(&t.work("")).iter().any(|line| line.contains("left")));
    t.mount();
}

fn peers_row_4_kill_in_a_copy_up_leaves_the_old_or_the_new_file(t: &Tree) {
    let old: Vec<u8> = (0..24_000_000u32).map(|i| (i / 3) as u8 | 1).collect();
    fs::write(t.low("big"), &old).unwrap();
    t.mount();
    for delay in [0, 1, 3, 6, 10, 20] {
        let server = t.server();
        let path = t.at("big");
        let writer = std::thread::spawn(move || {
            use std::os::unix::fs::PermissionsExt;
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o640));
        });
        std::thread::sleep(Duration::from_millis(delay));
        rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
        writer.join().unwrap();
        t.drop_dead_mount();
        for line in crate::common::sketch(&t.upper("")) {
            assert_eq!(line, format!("big=<{} bytes>", old.len()), "half a file in upper");
        }
        if t.upper("big").exists() {
            assert!(fs::read(t.upper("big")).unwrap() == old, "wrong data in upper");
            fs::remove_file(t.upper("big")).unwrap();
        }
        t.mount();
        assert!(fs::read(t.at("big")).unwrap() == old);
        // A whiteout for later use may be there already.
        let left = crate::common::sketch(&t.work("work"));
        assert!(left.iter().all(|line| line.ends_with('!')), "not swept: {left:?}");
    }
}

fn peers_row_4_no_space_leaves_no_temporaries(t: &Tree) {
    t.upper_on_a_disk_of("2m");
    fs::write(t.low("big"), vec![b'x'; 4 << 20]).unwrap();
    t.lower(&["small=S"]);
    t.mount();
    let full = || {
        let mut file = OpenOptions::new().append(true).open(t.at("big"))?;
        file.write_all(b"+")?;
        file.sync_all()
    };
    fails(full(), libc::ENOSPC);
    assert_eq!(t.upper_sketch(), [""; 0]);
    t.append("small", "+");
    assert_eq!(t.read("small"), "S+");
    assert_eq!(stat(t.at("big")).len(), 4 << 20);
    fs::remove_file(t.at("big")).unwrap();
    t.umount();
    let left = crate::common::sketch(&t.work("work"));
    assert!(left.iter().all(|line| line.ends_with('!')), "{left:?}");
    t.mount();
}

fn peers_row_5_unlinked_but_open_file(t: &Tree) {
    t.lower(&["low=content"]);
    t.mount();
    t.write("up", "content");
    for name in ["low", "up"] {
        let mut file = open_rw(t.at(name));
        // Written to before: the kernel counts no names of a lower file otherwise.
        file.write_all(b"C").unwrap();
        fs::remove_file(t.at(name)).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0, "fstat {name}");
        file.set_len(3).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(77)).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777, meta.mtime()), (3, 0o600, 77), "{name}");
        assert_eq!(content(&mut file), "Con");
    }
}

fn peers_row_5_removed_open_directory(t: &Tree) {
    t.lower(&["low/"]);
    t.mount();
    fs::create_dir(t.at("up")).unwrap();
    for name in ["low", "up"] {
        let dir = File::open(t.at(name)).unwrap();
        fs::remove_dir(t.at(name)).unwrap();
        assert!(dir.metadata().unwrap().is_dir(), "{name}");
        // Of a removed directory of a lower layer there is nothing left to be changed.
        if name == "up" {
            dir.set_permissions(fs::Permissions::from_mode(0o700)).unwrap();
            assert_eq!(dir.metadata().unwrap().mode() & 0o777, 0o700, "{name}");
        }
    }
}

fn peers_row_6_umask_of_the_caller_counts(t: &Tree) {
    t.mount();
    let root = t.at("");
    for mask in [0, 0o022, 0o077, 0o027] {
        with_umask(mask, || {
            File::create(root.join(format!("f{mask:o}"))).unwrap();
            fs::create_dir(root.join(format!("d{mask:o}"))).unwrap();
        });
        assert_eq!(stat(t.at(&format!("f{mask:o}"))).mode() & 0o7777, 0o666 & !mask);
        assert_eq!(stat(t.at(&format!("d{mask:o}"))).mode() & 0o7777, 0o777 & !mask);
    }
}

fn setuid_after(t: &Tree, change: impl Fn(&File) + Sync) {
    t.lower(&["low=content"]);
    chmod(t.low("low"), 0o6777);
    t.mount();
    t.write("up", "content");
    chmod(t.at("up"), 0o6777);
    for name in ["low", "up"] {
        let path = t.at(name);
        as_user(1234, 1234, || change(&open_rw(&path)));
        assert_eq!(stat(t.at(name)).mode() & 0o7777, 0o777, "{name}");
        t.flush();
        assert_eq!(stat(t.upper(name)).mode() & 0o7777, 0o777, "{name} in upper");
    }
}

fn peers_row_6_setuid_does_not_survive_a_strangers_write(t: &Tree) {
    setuid_after(t, |file| file.write_all_at(b"x", 0).unwrap());
}

fn peers_row_6_setuid_does_not_survive_a_strangers_truncate(t: &Tree) {
    setuid_after(t, |file| file.set_len(1).unwrap());
}

fn peers_row_6_file_dated_before_1970(t: &Tree) {
    t.lower(&["f=F", "d/"]);
    for name in ["f", "d"] {
        set_times(&t.low(name), (-3, 999_999_999), (-1_000_000_000, 5)).unwrap();
    }
    t.mount();
    for name in ["f", "d"] {
        let meta = stat(t.at(name));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-1_000_000_000, 5), "{name}");
    }
    assert_eq!(t.sketch(), ["d/", "f=F"], "the server lives");
    chmod(t.at("f"), 0o600);
    assert_eq!(stat(t.upper("f")).mtime(), -1_000_000_000);
}

fn peers_row_6_sigterm_unmounts(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    t.append("f", "+");
    let server = t.server();
    let target = t.at("");
    rustix::process::kill_process(server, rustix::process::Signal::TERM).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while rustix::process::test_kill_process(server).is_ok() {
        assert!(Instant::now() < end, "the server is still there");
        std::thread::sleep(Duration::from_millis(2));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&crate::common::text(&target)), "a dead mount is left");
    t.was_unmounted();
    assert_eq!(fs::read_to_string(t.upper("f")).unwrap(), "F+");
    t.mount();
    assert_eq!(t.read("f"), "F+");
}

fn peers_row_7_nobody_waits_for_a_copy_up(t: &Tree) {
    let data = vec![b'x'; 1 << 20];
    let mut big = File::create(t.low("big")).unwrap();
    for _ in 0..96 {
        big.write_all(&data).unwrap();
    }
    drop(big);
    let entries: Vec<_> = (0..600).map(|i| format!("d/f{i}=x")).collect();
    t.lower(&entries.iter().map(String::as_str).collect::<Vec<_>>());
    t.mount();
    let big = t.at("big");
    let copying = std::thread::spawn(move || {
        let start = Instant::now();
        chmod(&big, 0o640);
        start.elapsed()
    });
    let mut worst = Duration::ZERO;
    let mut done = 0;
    while !copying.is_finished() && done < 600 {
        let start = Instant::now();
        stat(t.at(&format!("d/f{done}")));
        worst = worst.max(start.elapsed());
        done += 1;
    }
    let copy = copying.join().unwrap();
    assert!(done >= 20, "only {done} look-ups while the copy-up took {copy:?}");
    assert!(worst < copy / 2 || worst < slowly(100), "{worst:?} of {copy:?}");
}

fn peers_row_7_unlink_and_truncation_copy_no_data(t: &Tree) {
    t.upper_on_a_disk_of("2m");
    for name in ["removed", "cut", "replaced"] {
        // Data, not holes: a copy of it would not fit on the disk.
        fs::write(t.low(name), vec![b'x'; 8 << 20]).unwrap();
    }
    t.mount();
    fs::remove_file(t.at("removed")).unwrap();
    t.write("cut", "short");
    t.write("new", "new");
    fs::rename(t.at("new"), t.at("replaced")).unwrap();
    assert_eq!(t.upper_sketch(), ["cut=short", "removed!", "replaced=new"]);
}

fn peers_row_7_holes_are_not_filled(t: &Tree) {
    let file = File::create(t.low("f")).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"data", 1 << 29).unwrap();
    t.mount();
    open_rw(t.at("f")).write_all_at(b"+", 0).unwrap();
    t.flush();
    assert_eq!(stat(t.upper("f")).len(), 1 << 30);
    assert!(stat(t.upper("f")).blocks() * 512 < 4 << 20);
    let mut piece = [0; 4];
    File::open(t.at("f")).unwrap().read_exact_at(&mut piece, 1 << 29).unwrap();
    assert_eq!(&piece, b"data");
}

fn peers_row_8_small_writes_are_cheap(t: &Tree) {
    t.mount();
    let mut file = File::create(t.at("f")).unwrap();
    let start = Instant::now();
    for i in 0..4000u32 {
        file.write_all(&[i as u8; 512]).unwrap();
    }
    let took = start.elapsed();
    drop(file);
    let data = fs::read(t.at("f")).unwrap();
    assert_eq!(data.len(), 4000 * 512);
    assert!(data.chunks(512).enumerate().all(|(i, piece)| piece.iter().all(|b| *b == i as u8)));
    assert!(took < slowly(3000), "4000 writes took {took:?}");
}

fn peers_row_9_missing_names_are_remembered(t: &Tree) {
    t.lower(&["d/x=1"]);
    t.mount();
    let start = Instant::now();
    for _ in 0..20_000 {
        assert!(!t.has("d/none"));
    }
    assert!(start.elapsed() < slowly(2000), "took {:?}", start.elapsed());
    t.write("d/none", "there");
    assert!(t.has("d/none"));
}

fn peers_row_9_large_directory_is_not_loaded_to_stat_a_file(t: &Tree) {
    t.lowers_may_change();
    fs::create_dir(t.low("d")).unwrap();
    for i in 0..3000 {
        File::create(t.low(&format!("d/file-{i}"))).unwrap();
    }
    t.mount();
    let start = Instant::now();
    assert_eq!(stat(t.at("d/file-17")).len(), 0);
    let first = start.elapsed();
    let start = Instant::now();
    assert_eq!(names(&t.at("d")).len(), 3000);
    let listing = start.elapsed();
    assert!(first < slowly(100), "the first stat took {first:?}");
    assert!(listing < slowly(1000), "the listing took {listing:?}");
}

fn peers_row_10_link_of_a_copied_up_file_is_one_inode(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    t.append("a", "+");
    fs::hard_link(t.at("a"), t.at("b")).unwrap();
    t.append("b", "more");
    let (a, b) = (stat(t.at("a")), stat(t.at("b")));
    if t.is_real_root() || t.carrier() == Carrier::Fuse {
        assert_eq!(a.ino(), b.ino());
    }
    assert_eq!((a.len(), b.len(), a.nlink(), b.nlink()), (6, 6, 2, 2));
    assert_eq!((t.read("a"), t.read("b")), ("A+more".into(), "A+more".into()));
}

fn peers_row_10_exchange_with_a_lower_file(t: &Tree) {
    t.lower(&["low=L"]);
    t.mount();
    t.write("up", "U");
    rename2(&t.at("up"), &t.at("low"), RenameFlags::EXCHANGE).unwrap();
    stays(t, &["low=U", "up=L"]);
}

fn peers_row_10_unnamed_temporary_file(t: &Tree) {
    use std::os::unix::fs::OpenOptionsExt;
    t.mount();
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(t.at(""));
    file.unwrap().write_all(b"x").unwrap();
}

fn peers_row_10_inode_flags_can_be_read(t: &Tree) {
    t.lower(&["f=F", "d/"]);
    t.mount();
    for name in ["f", "d"] {
        let below = rustix::fs::ioctl_getflags(File::open(t.low(name)).unwrap());
        let Ok(below) = below else { skip("the layers' file system has no inode flags") };
        let merged = rustix::fs::ioctl_getflags(File::open(t.at(name)).unwrap()).unwrap();
        assert_eq!(merged, below, "{name}");
    }
}

fn peers_row_10_names_of_255_bytes(t: &Tree) {
    for length in 250..=255 {
        t.lower(&[&format!("{}=L", "n".repeat(length))]);
    }
    t.mount();
    for length in 250..=255 {
        let (name, moved) = ("n".repeat(length), "m".repeat(length));
        t.append(&name, "+");
        fs::rename(t.at(&name), t.at(&moved)).unwrap();
        assert!(!t.has(&name));
        assert_eq!(t.read(&moved), "L+");
        fs::remove_file(t.at(&moved)).unwrap();
    }
    stays(t, &[]);
}

fn peers_row_10_inode_numbers_hold_over_a_remount(t: &Tree) {
    t.lower(&["a=A", "d/b=B"]);
    t.mount();
    t.write("new", "N");
    let numbers = || ["a", "d", "d/b", "new"].map(|name| stat(t.at(name)).ino());
    let before = numbers();
    t.remount();
    assert_eq!(numbers(), before);
}

fn peers_row_11_opaque_directories_have_no_sentinel_and_no_private_attribute(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    t.flush();
    assert_eq!(names(&t.upper("d")), [b""; 0]);
    assert_eq!(xattr_names(t.upper("d")), [t.private("opaque").into_bytes()]);
}

fn peers_row_11_no_whiteouts_inside_opaque_directories(t: &Tree) {
    t.lower(&["d/a=1", "d/b=2"]);
    t.mount();
    fs::remove_file(t.at("d/a")).unwrap();
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/b", "new");
    fs::remove_file(t.at("d/b")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/!"]);
}

fn peers_row_11_no_needless_whiteouts(t: &Tree) {
    t.lower(&["d/a=1", "gone!"]);
    t.lower_at(1, &["gone=old"]);
    t.mount();
    for name in ["new", "d/new", "gone"] {
        t.write(name, "N");
        fs::rename(t.at(name), t.at("moved")).unwrap();
        fs::remove_file(t.at("moved")).unwrap();
    }
    fs::create_dir(t.at("dir")).unwrap();
    fs::remove_dir(t.at("dir")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/"]);
}

fn peers_row_11_attribute_whiteouts_are_read(t: &Tree) {
    t.lower(&["d/gone="]);
    t.lower_at(1, &["d/gone=1", "d/low=1"]);
    xattr_set(t.low("d/gone"), &t.private("whiteout"), b"y").unwrap();
    xattr_set(t.low("d"), &t.private("opaque"), b"x").unwrap();
    t.mount();
    fails(fs::read(t.at("d/gone")), libc::ENOENT);
    assert_eq!(t.sketch(), ["d/", "d/low=1"]);
}

fn peers_row_11_redirects_and_metadata_copies_are_not_misread(t: &Tree) {
    t.lower(&["old/f=F", "data=the data"]);
    t.upper_has(&["moved/", "data="]);
    xattr_set(t.upper("moved"), &t.private("redirect"), b"old").unwrap();
    xattr_set(t.upper("data"), &t.private("metacopy"), b"").unwrap();
    t.mount();
    // Neither is followed here, so the answer must be an error and not wrong data.
    fails(fs::read(t.at("data")), libc::EPERM);
    fails(fs::metadata(t.at("moved")), libc::EPERM);
}

fn peers_backend_rs_rename_works(t: &Tree) {
    t.lower(&["a=A", "d/"]);
    t.mount();
    fs::rename(t.at("a"), t.at("d/b")).unwrap();
    fs::create_dir(t.at("new")).unwrap();
    fs::rename(t.at("new"), t.at("d/new")).unwrap();
    stays(t, &["d/", "d/b=A", "d/new/"]);
}

fn peers_backend_rs_copy_up_keeps_attributes_and_times(t: &Tree) {
    t.lower(&["f=F"]);
    xattr_set(t.low("f"), "user.x", b"X").unwrap();
    set_times(&t.low("f"), (10, 1), (20, 2)).unwrap();
    t.mount();
    chmod(t.at("f"), 0o640);
    let meta = stat(t.upper("f"));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (20, 2));
    assert_eq!(xattr_get(t.upper("f"), "user.x").unwrap(), b"X");
}

fn peers_backend_rs_hard_links_are_one_inode(t: &Tree) {
    t.lower(&["a=A"]);
    fs::hard_link(t.low("a"), t.low("b")).unwrap();
    t.mount();
    t.write("c", "C");
    fs::hard_link(t.at("c"), t.at("d")).unwrap();
    assert_eq!(stat(t.at("a")).ino(), stat(t.at("b")).ino());
    assert_eq!(stat(t.at("c")).ino(), stat(t.at("d")).ino());
    drop(open_flags(t.at("d"), 0).unwrap());
}

fn peers_backend_rs_names_are_bytes(t: &Tree) {
    let name = b"\xff\xfe not text \x80";
    fs::write(join_bytes(&t.low(""), name), "L").unwrap();
    t.mount();
    let path = join_bytes(&t.at(""), name);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"+").unwrap();
    fs::rename(&path, join_bytes(&t.at(""), b"\xc3")).unwrap();
    assert_eq!(fs::read(join_bytes(&t.at(""), b"\xc3")).unwrap(), b"L+");
}
