//! open with O_CREAT, mkdir, symlink: owner, mode, umask, ACL defaults, and over what.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};

use crate::common::{
    Limit, Tree, as_user, cases, chmod, fails, open_flags, stat, with_umask, xattr_get, xattr_set,
};

const OTHER: Limit = Limit::Root("needs a second uid");

cases! {
    file_in_a_lower_directory,
    file_and_directory_take_the_umask,
    no_umask_at_all,
    mode_bits_of_create,
    read_only_mode_can_be_written_by_its_creator: OTHER,
    default_acl_replaces_the_umask,
    default_acl_goes_on_to_directories,
    setgid_directory_gives_its_group: OTHER,
    setgid_lower_directory_gives_its_group: OTHER,
    setgid_bit_of_a_file_in_a_foreign_group: OTHER,
    owner_is_the_caller: OTHER,
    exclusive,
    exclusive_over_a_whiteout,
    exclusive_over_a_dangling_symlink,
    create_through_a_dangling_symlink,
    over_a_directory,
    in_a_missing_directory,
    in_a_removed_directory,
    directory_that_exists,
    symlink_that_exists,
    symlink_with_a_long_target,
    symlink_over_a_whiteout,
    directory_over_a_whiteout_is_opaque,
    many_files_in_one_directory,
    unnamed_file: Limit::Kernel("the FUSE library has no tmpfile request"),
    by_a_plain_user_without_permission: OTHER,
    concurrent_exclusive_creates_have_one_winner,
    new_objects_are_not_marked,
}

fn mode(t: &Tree, path: &str) -> u32 {
    stat(t.at(path)).mode() & 0o7777
}

fn file_in_a_lower_directory(t: &Tree) {
    t.lower(&["a/b/c/old=O"]);
    chmod(t.low("a"), 0o750);
    chmod(t.low("a/b"), 0o711);
    t.mount();
    t.write("a/b/c/new", "N");
    assert_eq!(t.upper_sketch(), ["a/", "a/b/", "a/b/c/", "a/b/c/new=N"]);
    assert_eq!(stat(t.upper("a")).mode() & 0o7777, 0o750);
    assert_eq!(stat(t.upper("a/b")).mode() & 0o7777, 0o711);
    assert_eq!(t.sketch()[3..], ["a/b/c/new=N", "a/b/c/old=O"]);
}

fn make_both(t: &Tree, umask: u32) -> (u32, u32) {
    let (file, dir) = (t.at("f"), t.at("d"));
    with_umask(umask, || {
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o666).open(&file).unwrap();
        fs::DirBuilder::new().mode(0o777).create(&dir).unwrap();
    });
    (mode(t, "f"), mode(t, "d"))
}

fn file_and_directory_take_the_umask(t: &Tree) {
    t.mount();
    assert_eq!(make_both(t, 0o027), (0o640, 0o750));
    t.flush();
    assert_eq!(stat(t.upper("f")).mode() & 0o7777, 0o640);
}

fn no_umask_at_all(t: &Tree) {
    t.mount();
    assert_eq!(make_both(t, 0), (0o666, 0o777));
}

fn mode_bits_of_create(t: &Tree) {
    t.mount();
    let root = t.at("");
    with_umask(0o022, || {
        for bits in [0o000, 0o400, 0o444, 0o1644, 0o4755, 0o2755, 0o777] {
            let file = root.join(format!("f{bits:o}"));
            let mut options = OpenOptions::new();
            let mut open = options.create_new(true).write(true).mode(bits).open(&file).unwrap();
            if bits & 0o6000 == 0 {
                open.write_all(b"data").unwrap();
            }
            let dir = root.join(format!("d{bits:o}"));
            fs::DirBuilder::new().mode(bits).create(&dir).unwrap();
        }
    });
    for bits in [0o000, 0o400, 0o444, 0o1644, 0o4755, 0o2755, 0o777] {
        assert_eq!(mode(t, &format!("f{bits:o}")), bits & !0o022, "file {bits:o}");
        // mkdir(2) takes the sticky bit and ignores the two others.
        assert_eq!(mode(t, &format!("d{bits:o}")), bits & !0o022 & 0o1777, "dir {bits:o}");
    }
}

fn read_only_mode_can_be_written_by_its_creator(t: &Tree) {
    t.lower(&["d/"]);
    chmod(t.low("d"), 0o777);
    t.mount();
    let path = t.at("d/f");
    as_user(1234, 1234, || {
        let mut options = OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(0o444).open(&path).unwrap();
        file.write_all(b"written").unwrap();
        file.set_len(5).unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"writt");
        fails(OpenOptions::new().write(true).open(&path), libc::EACCES);
    });
}

/// A POSIX ACL as the xattr holds it: entries are (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const NO_ID: u32 = u32::MAX;

fn default_acl(t: &Tree) {
    // user::rwx, user:0:rwx, group::r-x, mask::rwx, other::---
    let value = acl(&[(1, 7, NO_ID), (2, 7, 0), (4, 5, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID)]);
    t.lower(&["d/"]);
    if xattr_set(t.low("d"), "system.posix_acl_default", &value).is_err() {
        crate::common::skip("the layers' file system has no POSIX ACLs");
    }
    t.mount();
}

fn default_acl_replaces_the_umask(t: &Tree) {
    default_acl(t);
    let dir = t.at("d");
    with_umask(0o077, || {
        OpenOptions::new().create_new(true).write(true).mode(0o666).open(dir.join("f")).unwrap();
        fs::DirBuilder::new().mode(0o777).create(dir.join("s")).unwrap();
    });
    assert_eq!((mode(t, "d/f"), mode(t, "d/s")), (0o660, 0o770));
    assert!(xattr_get(t.at("d/f"), "system.posix_acl_access").is_some());
}

fn default_acl_goes_on_to_directories(t: &Tree) {
    default_acl(t);
    fs::create_dir(t.at("d/s")).unwrap();
    let of = |path: &str| xattr_get(t.at(path), "system.posix_acl_default");
    assert!(of("d").is_some());
    assert_eq!(of("d/s"), of("d"));
    t.remount();
    assert_eq!(of("d/s"), of("d"));
}

fn setgid_directory_gives_its_group(t: &Tree) {
    t.mount();
    fs::create_dir(t.at("d")).unwrap();
    chown(t.at("d"), None, Some(99)).unwrap();
    chmod(t.at("d"), 0o2777);
    check_group(t, 0o2755);
}

fn setgid_lower_directory_gives_its_group(t: &Tree) {
    t.lower(&["d/"]);
    chown(t.low("d"), None, Some(99)).unwrap();
    chmod(t.low("d"), 0o2777);
    t.mount();
    check_group(t, 0o2755);
}

fn check_group(t: &Tree, directory_mode: u32) {
    let dir = t.at("d");
    as_user(1234, 1234, || {
        fs::write(dir.join("f"), "").unwrap();
        fs::create_dir(dir.join("s")).unwrap();
        std::os::unix::fs::symlink("x", dir.join("l")).unwrap();
    });
    for name in ["d/f", "d/s", "d/l"] {
        let meta = stat(t.at(name));
        assert_eq!((meta.uid(), meta.gid()), (1234, 99), "{name}");
    }
    assert_eq!(mode(t, "d/s"), directory_mode);
    assert_eq!(mode(t, "d/f"), 0o644);
}

fn setgid_bit_of_a_file_in_a_foreign_group(t: &Tree) {
    t.lower(&["d/"]);
    chown(t.low("d"), None, Some(99)).unwrap();
    chmod(t.low("d"), 0o2777);
    t.mount();
    let path = t.at("d/f");
    as_user(1234, 1234, || {
        OpenOptions::new().create_new(true).write(true).mode(0o2775).open(&path).unwrap();
    });
    assert_eq!(mode(t, "d/f"), 0o755, "not a member of the group: no setgid");
}

fn owner_is_the_caller(t: &Tree) {
    t.lower(&["d/"]);
    chmod(t.low("d"), 0o777);
    t.mount();
    let dir = t.at("d");
    as_user(1234, 5678, || {
        fs::write(dir.join("f"), "").unwrap();
        fs::create_dir(dir.join("s")).unwrap();
        std::os::unix::fs::symlink("x", dir.join("l")).unwrap();
        crate::common::mknod(&dir.join("p"), rustix::fs::FileType::Fifo, 0o644, (0, 0)).unwrap();
    });
    for name in ["f", "s", "l", "p"] {
        for path in [t.at("d").join(name), t.upper("d").join(name)] {
            let meta = stat(&path);
            assert_eq!((meta.uid(), meta.gid()), (1234, 5678), "{}", path.display());
        }
    }
}

fn exclusive(t: &Tree) {
    t.lower(&["low=L", "d/"]);
    t.mount();
    t.write("up", "U");
    for name in ["low", "up", "d"] {
        fails(File::create_new(t.at(name)), libc::EEXIST);
    }
    File::create_new(t.at("new")).unwrap();
    assert_eq!(t.upper_sketch(), ["new=", "up=U"]);
}

fn exclusive_over_a_whiteout(t: &Tree) {
    t.lower(&["f=old"]);
    t.mount();
    fs::remove_file(t.at("f")).unwrap();
    File::create_new(t.at("f")).unwrap().write_all(b"new").unwrap();
    fails(File::create_new(t.at("f")), libc::EEXIST);
    assert_eq!(t.read("f"), "new");
}

fn exclusive_over_a_dangling_symlink(t: &Tree) {
    t.lower(&["l->nowhere"]);
    t.mount();
    fails(File::create_new(t.at("l")), libc::EEXIST);
    assert_eq!(t.sketch(), ["l->nowhere"]);
}

fn create_through_a_dangling_symlink(t: &Tree) {
    t.lower(&["l->d/target", "d/"]);
    t.mount();
    t.write("l", "through");
    assert_eq!(t.sketch(), ["d/", "d/target=through", "l->d/target"]);
}

fn over_a_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    fails(OpenOptions::new().create(true).append(true).open(t.at("d")), libc::EISDIR);
}

fn in_a_missing_directory(t: &Tree) {
    t.lower(&["gone/f=F"]);
    t.upper_has(&["gone!"]);
    t.mount();
    fails(fs::write(t.at("gone/f"), ""), libc::ENOENT);
    fails(fs::create_dir(t.at("none/d")), libc::ENOENT);
}

fn in_a_removed_directory(t: &Tree) {
    t.lower(&["low/"]);
    t.mount();
    fs::create_dir(t.at("up")).unwrap();
    for name in ["low", "up"] {
        let dir = File::open(t.at(name)).unwrap();
        fs::remove_dir(t.at(name)).unwrap();
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        fails(rustix::fs::openat(&dir, "f", flags, mode), libc::ENOENT);
        fails(rustix::fs::mkdirat(&dir, "d", mode), libc::ENOENT);
    }
}

fn directory_that_exists(t: &Tree) {
    t.lower(&["d/f=F", "file=F"]);
    t.mount();
    fs::create_dir(t.at("up")).unwrap();
    for name in ["d", "file", "up", ""] {
        fails(fs::create_dir(t.at(name)), libc::EEXIST);
    }
}

fn symlink_that_exists(t: &Tree) {
    use std::os::unix::fs::symlink;
    t.lower(&["f=F"]);
    t.mount();
    fails(symlink("x", t.at("f")), libc::EEXIST);
    symlink("x", t.at("l")).unwrap();
    fails(symlink("y", t.at("l")), libc::EEXIST);
    assert_eq!(t.upper_sketch(), ["l->x"]);
}

fn symlink_with_a_long_target(t: &Tree) {
    use std::os::unix::fs::symlink;
    let target = "t/".repeat(2000);
    symlink(&target, t.low("low")).unwrap();
    t.mount();
    symlink(&target, t.at("up")).unwrap();
    for name in ["low", "up"] {
        assert_eq!(fs::read_link(t.at(name)).unwrap().as_os_str(), &*target);
        assert_eq!(stat(t.at(name)).len(), 4000);
    }
    fails(fs::read_link(t.at("")), libc::EINVAL);
}

fn symlink_over_a_whiteout(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    fs::remove_file(t.at("f")).unwrap();
    std::os::unix::fs::symlink("x", t.at("f")).unwrap();
    assert_eq!(t.upper_sketch(), ["f->x"]);
    t.remount();
    assert_eq!(t.sketch(), ["f->x"]);
}

fn directory_over_a_whiteout_is_opaque(t: &Tree) {
    t.lower(&["x=file", "d/in=1"]);
    t.upper_has(&["x!", "d!"]);
    t.mount();
    fs::create_dir(t.at("x")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    assert_eq!(t.sketch(), ["d/", "x/"]);
    assert_eq!(t.upper_sketch(), ["d/!", "x/!"]);
}

fn many_files_in_one_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    for i in 0..200 {
        t.write(&format!("d/{i}"), &i.to_string());
    }
    assert_eq!(fs::read_dir(t.at("d")).unwrap().count(), 200);
    t.remount();
    assert_eq!(t.read("d/123"), "123");
}

fn unnamed_file(t: &Tree) {
    t.mount();
    let mut options = OpenOptions::new();
    let mut file = options.write(true).custom_flags(libc::O_TMPFILE).open(t.at("")).unwrap();
    file.write_all(b"text").unwrap();
    assert_eq!(t.sketch(), [""; 0]);
}

fn by_a_plain_user_without_permission(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    let dir = t.at("d");
    as_user(1234, 1234, || {
        fails(fs::write(dir.join("new"), ""), libc::EACCES);
        fails(fs::create_dir(dir.join("new")), libc::EACCES);
        fails(fs::remove_file(dir.join("f")), libc::EACCES);
        fails(fs::rename(dir.join("f"), dir.join("g")), libc::EACCES);
    });
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn concurrent_exclusive_creates_have_one_winner(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    for round in 0..20 {
        let path = t.at(&format!("d/{round}"));
        let won = std::thread::scope(|scope| {
            let racers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| File::create_new(&path).is_ok())).collect();
            racers.into_iter().map(|r| r.join().unwrap()).filter(|w| *w).count()
        });
        assert_eq!(won, 1);
    }
}

fn new_objects_are_not_marked(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    t.write("d/f", "F");
    fs::create_dir(t.at("s")).unwrap();
    drop(open_flags(t.at("d/f"), 0).unwrap());
    t.flush();
    for path in ["d/f", "s"] {
        assert_eq!(crate::common::xattr_names(t.upper(path)), [b""; 0], "{path}");
    }
}
