//! unlink and rmdir: whiteouts where a lower layer has the name, and nothing where none has.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::{Carrier, Tree, cases, fails, names, stat, xattr_get};

cases! {
    lower_file_leaves_a_whiteout,
    upper_file_leaves_nothing,
    copied_up_file_leaves_a_whiteout,
    lower_directory,
    merged_directory_with_everything_in_it,
    directory_that_is_not_empty,
    directory_with_only_whiteouts,
    directory_of_one_layer_with_whiteouts,
    remove_and_make_directory_again_is_opaque,
    remove_and_make_file_again,
    file_replaced_by_directory,
    directory_replaced_by_file,
    removed_name_below_an_opaque_directory,
    name_that_a_lower_layer_already_removed,
    no_whiteout_in_a_pure_upper_directory,
    whiteouts_share_one_inode,
    wrong_kind,
    missing,
    root_can_not_be_removed,
    symlink_goes_not_its_target,
    removed_twice_over_a_remount,
    one_of_two_hard_links_in_upper,
    sticky_directory: crate::common::Limit::Root("needs a second uid"),
    full_directory_is_not_copied_up,
}

fn lower_file_leaves_a_whiteout(t: &Tree) {
    t.lower(&["a=A", "b=B"]);
    t.mount();
    fs::remove_file(t.at("a")).unwrap();
    assert_eq!(t.sketch(), ["b=B"]);
    assert_eq!(t.upper_sketch(), ["a!"]);
    t.remount();
    assert_eq!(t.sketch(), ["b=B"]);
    fails(fs::read(t.at("a")), libc::ENOENT);
}

fn upper_file_leaves_nothing(t: &Tree) {
    t.lower(&["b=B"]);
    t.mount();
    t.write("a", "A");
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/f", "F");
    fs::remove_file(t.at("a")).unwrap();
    fs::remove_dir_all(t.at("d")).unwrap();
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn copied_up_file_leaves_a_whiteout(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    t.append("a", "+");
    fs::remove_file(t.at("a")).unwrap();
    assert_eq!(t.upper_sketch(), ["a!"]);
}

fn lower_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    fs::remove_dir(t.at("d")).unwrap();
    assert_eq!(t.sketch(), [""; 0]);
    assert_eq!(t.upper_sketch(), ["d!"]);
}

fn merged_directory_with_everything_in_it(t: &Tree) {
    t.lower(&["d/a=1", "d/s/b=2", "d/l->a"]);
    t.upper_has(&["d/up=0", "d/s/up=0"]);
    t.mount();
    fs::remove_dir_all(t.at("d")).unwrap();
    assert_eq!(t.sketch(), [""; 0]);
    assert_eq!(t.upper_sketch(), ["d!"]);
    t.remount();
    assert_eq!(t.sketch(), [""; 0]);
}

fn directory_that_is_not_empty(t: &Tree) {
    t.lower(&["low/a=1", "merged/a=1"]);
    t.upper_has(&["up/a=1", "merged/b=1"]);
    t.mount();
    for name in ["low", "up", "merged"] {
        fails(fs::remove_dir(t.at(name)), libc::ENOTEMPTY);
    }
    fs::remove_file(t.at("merged/b")).unwrap();
    fails(fs::remove_dir(t.at("merged")), libc::ENOTEMPTY);
    fs::remove_file(t.at("merged/a")).unwrap();
    fs::remove_dir(t.at("merged")).unwrap();
}

fn directory_with_only_whiteouts(t: &Tree) {
    t.lower(&["d/a=1", "d/b=2"]);
    t.upper_has(&["d/a!", "d/b!"]);
    t.mount();
    assert_eq!(names(&t.at("d")), [b""; 0]);
    fs::remove_dir(t.at("d")).unwrap();
    assert_eq!(t.upper_sketch(), ["d!"]);
}

fn remove_and_make_directory_again_is_opaque(t: &Tree) {
    t.lower(&["d/a=1", "d/s/b=2"]);
    t.mount();
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    assert_eq!(t.sketch(), ["d/"]);
    assert_eq!(t.upper_sketch(), ["d/!"]);
    assert_eq!(xattr_get(t.upper("d"), &t.private("opaque")).unwrap(), b"y");
    t.write("d/new", "N");
    t.remount();
    assert_eq!(t.sketch(), ["d/", "d/new=N"]);
}

fn remove_and_make_file_again(t: &Tree) {
    t.lower(&["a=old", "d/b=old"]);
    t.mount();
    for name in ["a", "d/b"] {
        fs::remove_file(t.at(name)).unwrap();
        t.write(name, "new");
    }
    assert_eq!(t.upper_sketch(), ["a=new", "d/", "d/b=new"]);
    t.remount();
    assert_eq!(t.sketch(), ["a=new", "d/", "d/b=new"]);
}

fn file_replaced_by_directory(t: &Tree) {
    t.lower(&["x=file"]);
    t.mount();
    fs::remove_file(t.at("x")).unwrap();
    fs::create_dir(t.at("x")).unwrap();
    t.write("x/in", "I");
    assert_eq!(t.sketch()[1..], ["x/in=I"]);
    t.remount();
    assert_eq!(t.read("x/in"), "I");
}

fn directory_replaced_by_file(t: &Tree) {
    t.lower(&["x/in=I"]);
    t.mount();
    fs::remove_dir_all(t.at("x")).unwrap();
    t.write("x", "file");
    assert_eq!(t.upper_sketch(), ["x=file"]);
    t.remount();
    assert_eq!(t.sketch(), ["x=file"]);
}

fn removed_name_below_an_opaque_directory(t: &Tree) {
    t.lower(&["d/a=1"]);
    t.mount();
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/a", "new");
    fs::remove_file(t.at("d/a")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/!"], "no whiteout inside an opaque directory");
    assert_eq!(t.sketch(), ["d/"]);
}

fn name_that_a_lower_layer_already_removed(t: &Tree) {
    t.lower(&["a!", "d/b!", "d/c=C"]);
    t.lower_at(1, &["a=A", "d/b=B"]);
    t.mount();
    assert_eq!(t.sketch(), ["d/", "d/c=C"]);
    for name in ["a", "d/b"] {
        t.write(name, "new");
        fs::remove_file(t.at(name)).unwrap();
    }
    assert_eq!(t.upper_sketch(), ["d/"], "the lower whiteouts do it");
    t.remount();
    assert_eq!(t.sketch(), ["d/", "d/c=C"]);
}

fn no_whiteout_in_a_pure_upper_directory(t: &Tree) {
    t.lower(&["other/f=1"]);
    t.mount();
    fs::create_dir_all(t.at("d/e")).unwrap();
    t.write("d/e/f", "1");
    fs::remove_file(t.at("d/e/f")).unwrap();
    fs::remove_dir(t.at("d/e")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/"]);
}

fn whiteouts_share_one_inode(t: &Tree) {
    t.lower(&["a=1", "b=1", "d/c=1"]);
    t.mount();
    for name in ["a", "b", "d/c"] {
        fs::remove_file(t.at(name)).unwrap();
    }
    let inodes = ["a", "b", "d/c"].map(|name| stat(t.upper(name)).ino());
    assert!(inodes.iter().all(|ino| *ino == inodes[0]), "{inodes:?}");
}

fn wrong_kind(t: &Tree) {
    t.lower(&["f=F", "d/", "l->d"]);
    t.mount();
    fails(fs::remove_dir(t.at("f")), libc::ENOTDIR);
    fails(fs::remove_file(t.at("d")), libc::EISDIR);
    fails(fs::remove_dir(t.at("l")), libc::ENOTDIR);
    assert_eq!(t.sketch(), ["d/", "f=F", "l->d"]);
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn missing(t: &Tree) {
    t.lower(&["gone!"]);
    t.lower_at(1, &["gone=1"]);
    t.mount();
    for name in ["none", "gone"] {
        fails(fs::remove_file(t.at(name)), libc::ENOENT);
        fails(fs::remove_dir(t.at(name)), libc::ENOENT);
    }
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn root_can_not_be_removed(t: &Tree) {
    t.mount();
    fails(fs::remove_dir(t.at("")), libc::EBUSY);
}

fn symlink_goes_not_its_target(t: &Tree) {
    t.lower(&["f=F", "l->f"]);
    t.mount();
    fs::remove_file(t.at("l")).unwrap();
    assert_eq!(t.sketch(), ["f=F"]);
    assert_eq!(t.upper_sketch(), ["l!"]);
}

fn removed_twice_over_a_remount(t: &Tree) {
    t.lower(&["d/a=1"]);
    t.mount();
    fs::remove_file(t.at("d/a")).unwrap();
    t.remount();
    t.write("d/a", "again");
    t.remount();
    fs::remove_file(t.at("d/a")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/", "d/a!"]);
    t.remount();
    assert_eq!(t.sketch(), ["d/"]);
}

fn one_of_two_hard_links_in_upper(t: &Tree) {
    t.mount();
    t.write("a", "A");
    fs::hard_link(t.at("a"), t.at("b")).unwrap();
    fs::remove_file(t.at("a")).unwrap();
    assert_eq!(t.read("b"), "A");
    assert_eq!(stat(t.at("b")).nlink(), 1);
}

fn sticky_directory(t: &Tree) {
    t.lower(&["tmp/mine=1", "tmp/other=1"]);
    crate::common::chmod(t.low("tmp"), 0o1777);
    std::os::unix::fs::chown(t.low("tmp/mine"), Some(1234), Some(1234)).unwrap();
    t.mount();
    let (mine, other) = (t.at("tmp/mine"), t.at("tmp/other"));
    crate::common::as_user(1234, 1234, || {
        fs::remove_file(&mine).unwrap();
        fails(fs::remove_file(&other), libc::EPERM);
    });
}

fn full_directory_is_not_copied_up(t: &Tree) {
    t.lower(&["d/full/a=A"]);
    t.mount();
    fails(fs::remove_dir(t.at("d/full")), libc::ENOTEMPTY);
    fs::create_dir(t.at("new")).unwrap();
    fails(fs::rename(t.at("new"), t.at("d/full")), libc::ENOTEMPTY);
    assert_eq!(t.upper_sketch(), ["new/"]);
}

/// Nothing is seen in it, but the kernel counts them where it has nothing to merge.
fn directory_of_one_layer_with_whiteouts(t: &Tree) {
    t.lower(&["d/gone!"]);
    t.mount();
    fails(fs::metadata(t.at("d/gone")), libc::ENOENT);
    match (t.carrier(), fs::remove_dir(t.at("d"))) {
        (Carrier::Kernel, Err(error)) => {
            let errno = error.raw_os_error();
            assert!(matches!(errno, Some(libc::ENOTEMPTY | libc::EEXIST)), "{error}");
        }
        (_, removed) => {
            removed.unwrap();
            assert_eq!(t.sketch(), [""; 0]);
        }
    }
}
