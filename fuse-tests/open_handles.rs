//! Descriptors that outlive a copy-up or their name.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, RenameFlags, StatxFlags, Timespec, Timestamps, fgetxattr, flistxattr, fsetxattr,
    futimens, readlinkat, statx,
};

use crate::common::{
    Limit, Tree, as_user, cases, chmod, fails, open_flags, open_rw, raw_dir, rename2, set_times,
    skip, stat, xattr_set,
};

cases! {
    read_only_descriptor_follows_the_copy_up,
    read_only_descriptor_sees_truncation,
    read_only_descriptor_sees_attributes,
    unlinked_upper_file,
    unlinked_lower_file,
    unlinked_lower_file_can_be_written,
    unlinked_file_and_a_new_one_of_its_name,
    unlinked_lower_file_and_a_new_one_of_its_name,
    replaced_by_rename,
    attributes_through_an_unlinked_descriptor,
    xattrs_through_an_unlinked_descriptor,
    removed_directory,
    removed_lower_directory,
    path_descriptor,
    directory_descriptor_sees_new_names,
    descriptor_of_a_renamed_directory,
    fchmod_on_a_read_only_descriptor_copies_up,
    opened_for_writing_before_the_unlink_of_a_lower_file,
    many_open_descriptors,
    file_position_is_per_descriptor,
    unlinked_hard_link,
    lower_hard_link_broken_under_a_reader,
    acl_while_names_are_exchanged: Limit::Root("needs a second uid"),
    attributes_while_the_file_moves,
    first_opened_while_the_file_moves,
    link_target_while_names_are_exchanged,
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn read_only_descriptor_follows_the_copy_up(t: &Tree) {
    t.lower(&["f=old data"]);
    t.mount();
    let mut reader = File::open(t.at("f")).unwrap();
    assert_eq!(text(&mut reader), "old data");
    let mut writer = open_rw(t.at("f"));
    writer.write_all(b"NEW").unwrap();
    assert_eq!(text(&mut reader), "NEW data");
    writer.sync_all().unwrap();
    assert_eq!(text(&mut reader), "NEW data");
    assert_eq!(t.read("f"), "NEW data");
    assert_eq!(text(&mut writer), "NEW data");
}

fn read_only_descriptor_sees_truncation(t: &Tree) {
    t.lower(&["f=old data"]);
    t.mount();
    let mut reader = File::open(t.at("f")).unwrap();
    t.write("f", "x");
    assert_eq!(reader.metadata().unwrap().len(), 1);
    assert_eq!(text(&mut reader), "x");
}

fn read_only_descriptor_sees_attributes(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let reader = File::open(t.at("f")).unwrap();
    crate::common::chmod(t.at("f"), 0o640);
    set_times(&t.at("f"), (7, 0), (8, 0)).unwrap();
    let meta = reader.metadata().unwrap();
    assert_eq!((meta.mode() & 0o777, meta.mtime()), (0o640, 8));
}

/// Everything that a descriptor without a name must still answer.
fn exercise(mut file: File, content: &str) {
    let meta = file.metadata().unwrap();
    assert_eq!((meta.nlink(), meta.len()), (0, content.len() as u64));
    assert_eq!(text(&mut file), content);
    file.write_all_at(b"W", 0).unwrap();
    assert_eq!(text(&mut file)[..1], *"W");
    file.set_len(2).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2);
    file.set_permissions(fs::Permissions::from_mode(0o611)).unwrap();
    let time = Timespec { tv_sec: 99, tv_nsec: 5 };
    futimens(&file, &Timestamps { last_access: time, last_modification: time }).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!((meta.mode() & 0o777, meta.mtime(), meta.mtime_nsec()), (0o611, 99, 5));
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

fn unlinked_upper_file(t: &Tree) {
    t.mount();
    t.write("f", "upper");
    let file = open_rw(t.at("f"));
    fs::remove_file(t.at("f")).unwrap();
    exercise(file, "upper");
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn unlinked_lower_file(t: &Tree) {
    t.lower(&["f=lower"]);
    t.mount();
    let mut file = File::open(t.at("f")).unwrap();
    fs::remove_file(t.at("f")).unwrap();
    assert_eq!(text(&mut file), "lower");
    assert_eq!(file.metadata().unwrap().len(), 5);
    assert_eq!(t.upper_sketch(), ["f!"]);
}

fn unlinked_lower_file_can_be_written(t: &Tree) {
    t.lower(&["f=lower"]);
    t.mount();
    let file = open_rw(t.at("f"));
    fs::remove_file(t.at("f")).unwrap();
    exercise(file, "lower");
    assert_eq!(t.upper_sketch(), ["f!"]);
    assert_eq!(fs::read(t.low("f")).unwrap(), b"lower");
}

fn unlinked_file_and_a_new_one_of_its_name(t: &Tree) {
    t.mount();
    t.write("f", "old");
    let mut old = open_rw(t.at("f"));
    fs::remove_file(t.at("f")).unwrap();
    t.write("f", "fresh");
    old.write_all_at(b"OLD!", 0).unwrap();
    assert_eq!((text(&mut old), t.read("f")), ("OLD!".into(), "fresh".into()));
    assert_ne!(old.metadata().unwrap().ino(), stat(t.at("f")).ino());
}

fn unlinked_lower_file_and_a_new_one_of_its_name(t: &Tree) {
    t.lower(&["f=lower"]);
    t.mount();
    let mut old = File::open(t.at("f")).unwrap();
    fs::remove_file(t.at("f")).unwrap();
    t.write("f", "fresh");
    t.append("f", "er");
    assert_eq!((text(&mut old), t.read("f")), ("lower".into(), "fresher".into()));
}

fn replaced_by_rename(t: &Tree) {
    t.lower(&["f=old", "g=new"]);
    t.mount();
    let mut old = File::open(t.at("f")).unwrap();
    let mut new = File::open(t.at("g")).unwrap();
    fs::rename(t.at("g"), t.at("f")).unwrap();
    t.append("f", "+");
    assert_eq!((text(&mut old), text(&mut new)), ("old".into(), "new+".into()));
    assert_eq!(new.metadata().unwrap().ino(), stat(t.at("f")).ino());
}

fn attributes_through_an_unlinked_descriptor(t: &Tree) {
    t.mount();
    t.write("f", "F");
    let file = open_rw(t.at("f"));
    fs::remove_file(t.at("f")).unwrap();
    fchown(&file, Some(0), Some(0)).unwrap();
    assert_eq!(file.metadata().unwrap().uid(), 0);
    fails(fs::symlink_metadata(t.at("f")), libc::ENOENT);
}

fn xattrs_through_an_unlinked_descriptor(t: &Tree) {
    t.mount();
    t.write("f", "F");
    let file = open_rw(t.at("f"));
    fs::remove_file(t.at("f")).unwrap();
    fsetxattr(&file, "user.note", b"n", rustix::fs::XattrFlags::empty()).unwrap();
    let mut value = [0; 8];
    assert_eq!(fgetxattr(&file, "user.note", &mut value[..]).unwrap(), 1);
}

fn removed_directory(t: &Tree) {
    t.mount();
    fs::create_dir(t.at("d")).unwrap();
    check_removed_directory(t);
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn removed_lower_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    check_removed_directory(t);
    assert_eq!(t.upper_sketch(), ["d!"]);
}

fn check_removed_directory(t: &Tree) {
    let dir = File::open(t.at("d")).unwrap();
    fs::remove_dir(t.at("d")).unwrap();
    let meta = dir.metadata().unwrap();
    assert!(meta.is_dir());
    let mut listing = rustix::fs::Dir::read_from(&dir).unwrap();
    let names: Vec<_> = listing.by_ref().map(|entry| entry.unwrap().file_name().to_owned()).collect();
    assert!(names.iter().all(|name| name.to_bytes().starts_with(b".")), "{names:?}");
    dir.sync_all().unwrap();
}

fn path_descriptor(t: &Tree) {
    use std::os::fd::AsRawFd;
    t.lower(&["f=F"]);
    t.mount();
    let path = open_flags(t.at("f"), libc::O_PATH).unwrap();
    t.append("f", "+");
    assert_eq!(path.metadata().unwrap().len(), 2);
    let through = format!("/proc/self/fd/{}", path.as_raw_fd());
    assert_eq!(fs::read(&through).unwrap(), b"F+");
    fs::remove_file(t.at("f")).unwrap();
    assert_eq!(fs::read(&through).unwrap(), b"F+");
}

fn directory_descriptor_sees_new_names(t: &Tree) {
    t.lower(&["d/a=1"]);
    t.mount();
    let dir = File::open(t.at("d")).unwrap();
    t.write("d/b", "2");
    let flags = rustix::fs::OFlags::RDONLY;
    let file = rustix::fs::openat(&dir, "b", flags, rustix::fs::Mode::empty()).unwrap();
    assert_eq!(std::io::read_to_string(File::from(file)).unwrap(), "2");
    assert_eq!(raw_dir(&t.at("d")).len(), 4);
}

fn descriptor_of_a_renamed_directory(t: &Tree) {
    t.mount();
    fs::create_dir(t.at("d")).unwrap();
    let dir = File::open(t.at("d")).unwrap();
    fs::rename(t.at("d"), t.at("e")).unwrap();
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat(&dir, "f", flags, mode).unwrap();
    File::from(file).write_all(b"through").unwrap();
    assert_eq!(t.read("e/f"), "through");
}

fn fchmod_on_a_read_only_descriptor_copies_up(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(stat(t.at("f")).mode() & 0o777, 0o600);
    assert_eq!(stat(t.upper("f")).mode() & 0o777, 0o600);
}

fn opened_for_writing_before_the_unlink_of_a_lower_file(t: &Tree) {
    t.lower(&["d/f=lower"]);
    t.mount();
    let mut file = fs::OpenOptions::new().append(true).read(true).open(t.at("d/f")).unwrap();
    fs::remove_dir_all(t.at("d")).unwrap();
    file.write_all(b"+").unwrap();
    assert_eq!(text(&mut file), "lower+");
    assert_eq!(t.upper_sketch(), ["d!"]);
}

fn many_open_descriptors(t: &Tree) {
    let names: Vec<_> = (0..200).map(|i| format!("f{i}=x")).collect();
    t.lower(&names.iter().map(String::as_str).collect::<Vec<_>>());
    t.mount();
    let mut files: Vec<_> = (0..200).map(|i| open_rw(t.at(&format!("f{i}")))).collect();
    for (i, file) in files.iter_mut().enumerate() {
        file.write_all(i.to_string().as_bytes()).unwrap();
    }
    for (i, file) in files.iter_mut().enumerate() {
        assert_eq!(text(file), i.to_string());
    }
}

fn file_position_is_per_descriptor(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    let (mut a, mut b) = (File::open(t.at("f")).unwrap(), File::open(t.at("f")).unwrap());
    let mut two = [0; 2];
    a.read_exact(&mut two).unwrap();
    t.append("f", "+");
    a.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"23");
    b.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"01");
}

fn unlinked_hard_link(t: &Tree) {
    t.mount();
    t.write("a", "A");
    fs::hard_link(t.at("a"), t.at("b")).unwrap();
    let mut file = open_rw(t.at("a"));
    fs::remove_file(t.at("a")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    file.write_all(b"changed").unwrap();
    assert_eq!(t.read("b"), "changed");
    fs::remove_file(t.at("b")).unwrap();
    assert_eq!(text(&mut file), "changed");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

fn lower_hard_link_broken_under_a_reader(t: &Tree) {
    t.lower(&["a=A"]);
    fs::hard_link(t.low("a"), t.low("b")).unwrap();
    t.mount();
    let mut a = File::open(t.at("a")).unwrap();
    let mut b = File::open(t.at("b")).unwrap();
    t.append("a", "+");
    assert_eq!((text(&mut a), text(&mut b)), ("A+".into(), "A".into()));
}

/// How long a race is run.
const RACE: Duration = Duration::from_millis(400);

/// Runs `work` over and over while another thread repeats `disturb`.
fn race(disturb: impl Fn() + Sync, mut work: impl FnMut()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                disturb();
            }
        });
        let end = Instant::now() + RACE;
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end {
                work();
            }
        }));
        done.store(true, Ordering::Relaxed);
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Read and write for the owner and this user, read for the mask's sake.
fn acl_for(uid: u32) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    let entries = [(1, 6, u32::MAX), (2, 6, uid), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)];
    for (tag, perm, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(u16::to_le_bytes(perm));
        value.extend(u32::to_le_bytes(id));
    }
    value
}

/// The ACL that is obeyed is the file's own, whatever stands under its name at that moment.
fn acl_while_names_are_exchanged(t: &Tree) {
    t.mount();
    t.write("a", "secret");
    chmod(t.at("a"), 0o640);
    t.write("b", "open");
    chmod(t.at("b"), 0o640);
    if xattr_set(t.at("b"), "system.posix_acl_access", &acl_for(1234)).is_err() {
        skip("the layers' file system has no POSIX ACLs");
    }
    let held = open_flags(t.at("a"), libc::O_PATH).unwrap();
    let again = format!("/proc/self/fd/{}", held.as_raw_fd());
    let (a, b) = (t.at("a"), t.at("b"));
    let (mut tries, mut opened) = (0, 0);
    as_user(1234, 1234, || fails(File::open(&again), libc::EACCES));
    // The exchanging goes on as root.
    race(
        || rename2(&a, &b, RenameFlags::EXCHANGE).unwrap(),
        || {
            opened += as_user(1234, 1234, || (0..100).filter(|_| File::open(&again).is_ok()).count());
            tries += 100;
        },
    );
    let after = as_user(1234, 1234, || File::open(&again).is_ok());
    assert_eq!((opened, after), (0, false), "of {tries}");
}

fn attributes_while_the_file_moves(t: &Tree) {
    t.mount();
    t.write("a", "A");
    xattr_set(t.at("a"), "user.x", b"X").unwrap();
    let file = File::open(t.at("a")).unwrap();
    let (a, b) = (t.at("a"), t.at("b"));
    let number = file.metadata().unwrap().ino();
    race(
        || {
            fs::rename(&a, &b).unwrap();
            fs::rename(&b, &a).unwrap();
        },
        || {
            let mut room = [0; 10];
            assert_eq!(fgetxattr(&file, "user.x", &mut room[..]), Ok(1));
            assert_eq!(flistxattr(&file, &mut room[..]), Ok(7));
            let seen = statx(&file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::ALL);
            assert_eq!(seen.unwrap().stx_ino, number);
        },
    );
}

/// By its inode, as an `O_PATH` descriptor has it.
fn first_opened_while_the_file_moves(t: &Tree) {
    const FILES: usize = 200;
    for number in 0..FILES {
        t.upper_has(&[&format!("a{number}=data {number}")]);
    }
    t.mount();
    for number in 0..FILES {
        let (a, b) = (t.at(&format!("a{number}")), t.at(&format!("b{number}")));
        let held = open_flags(&a, libc::O_PATH).unwrap();
        let again = format!("/proc/self/fd/{}", held.as_raw_fd());
        let done = AtomicBool::new(false);
        let read = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&a, &b).unwrap();
                    fs::rename(&b, &a).unwrap();
                }
            });
            std::thread::sleep(Duration::from_millis(1));
            let read = fs::read_to_string(&again);
            done.store(true, Ordering::Relaxed);
            read
        });
        assert_eq!(read.unwrap(), format!("data {number}"));
    }
}

fn link_target_while_names_are_exchanged(t: &Tree) {
    t.mount();
    symlink("A", t.at("a")).unwrap();
    symlink("B", t.at("b")).unwrap();
    let held = open_flags(t.at("a"), libc::O_PATH | libc::O_NOFOLLOW).unwrap();
    let (a, b) = (t.at("a"), t.at("b"));
    race(
        || rename2(&a, &b, RenameFlags::EXCHANGE).unwrap(),
        || assert_eq!(readlinkat(&held, "", Vec::new()).unwrap().to_bytes(), b"A"),
    );
}
