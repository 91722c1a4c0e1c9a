//! Hard links.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use crate::common::{Carrier, Tree, cases, fails, stat};

cases! {
    of_an_upper_file,
    of_a_lower_file,
    of_a_copied_up_file_is_one_file,
    over_a_whiteout,
    onto_an_existing_name,
    of_a_directory,
    of_a_symlink,
    of_a_missing_file,
    lower_links_are_one_inode,
    writing_to_one_lower_link_breaks_it,
    removing_one_lower_link,
    linked_unlinked_and_linked_again,
    of_the_name_that_is_left,
    of_an_unlinked_open_file,
    many_links,
    upper_links_survive_a_remount,
    through_open_descriptors,
    goes_on_by_another_name,
    links_lost_in_a_request_that_fails,
}

fn link(t: &Tree, from: &str, to: &str) -> std::io::Result<()> {
    fs::hard_link(t.at(from), t.at(to))
}

#[track_caller]
fn same(t: &Tree, names: &[&str], nlink: u64) {
    // Without privilege the kernel can't write a file handle as origin, and the second name of a
    // copied-up file then shows another number.
    let numbers_hold = t.is_real_root() || t.carrier() == Carrier::Fuse;
    let ino = stat(t.at(names[0])).ino();
    for name in names {
        let meta = stat(t.at(name));
        assert_eq!(meta.nlink(), nlink, "{name}");
        assert!(!numbers_hold || meta.ino() == ino, "{name}: {} not {ino}", meta.ino());
    }
}

fn of_an_upper_file(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    t.write("a", "A");
    link(t, "a", "b").unwrap();
    link(t, "a", "d/c").unwrap();
    same(t, &["a", "b", "d/c"], 3);
    t.append("b", "+");
    assert_eq!((t.read("a"), t.read("d/c")), ("A+".into(), "A+".into()));
    assert_eq!(stat(t.upper("a")).ino(), stat(t.upper("d/c")).ino());
}

fn of_a_lower_file(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    link(t, "a", "b").unwrap();
    same(t, &["a", "b"], 2);
    assert_eq!(t.upper_sketch(), ["a=A", "b=A"]);
    t.append("a", "+");
    assert_eq!(t.read("b"), "A+");
    t.remount();
    assert_eq!(t.read("b"), "A+");
    same(t, &["a", "b"], 2);
}

fn of_a_copied_up_file_is_one_file(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    t.append("a", "1");
    link(t, "a", "b").unwrap();
    t.append("a", "22");
    t.append("b", "333");
    same(t, &["a", "b"], 2);
    assert_eq!(stat(t.at("a")).len(), 7);
    assert_eq!(stat(t.at("b")).len(), 7);
    assert_eq!(t.read("a"), "A122333");
}

fn over_a_whiteout(t: &Tree) {
    t.lower(&["a=A", "b=B"]);
    t.mount();
    fs::remove_file(t.at("b")).unwrap();
    link(t, "a", "b").unwrap();
    assert_eq!(t.sketch(), ["a=A", "b=A"]);
    same(t, &["a", "b"], 2);
    t.remount();
    assert_eq!(t.sketch(), ["a=A", "b=A"]);
}

fn onto_an_existing_name(t: &Tree) {
    t.lower(&["a=A", "low=L", "d/"]);
    t.mount();
    t.write("up", "U");
    for name in ["low", "up", "d", "a"] {
        fails(link(t, "a", name), libc::EEXIST);
    }
}

fn of_a_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    fails(link(t, "d", "e"), libc::EPERM);
}

fn of_a_symlink(t: &Tree) {
    t.lower(&["l->target"]);
    t.mount();
    link(t, "l", "m").unwrap();
    assert_eq!(t.sketch(), ["l->target", "m->target"]);
    same(t, &["l", "m"], 2);
}

fn of_a_missing_file(t: &Tree) {
    t.lower(&["gone=G"]);
    t.mount();
    fs::remove_file(t.at("gone")).unwrap();
    fails(link(t, "gone", "b"), libc::ENOENT);
    fails(link(t, "none", "b"), libc::ENOENT);
}

fn lower_links(t: &Tree) {
    t.lower(&["a=A", "d/"]);
    fs::hard_link(t.low("a"), t.low("b")).unwrap();
    fs::hard_link(t.low("a"), t.low("d/c")).unwrap();
    t.mount();
}

fn lower_links_are_one_inode(t: &Tree) {
    lower_links(t);
    same(t, &["a", "b", "d/c"], 3);
}

fn writing_to_one_lower_link_breaks_it(t: &Tree) {
    lower_links(t);
    t.append("a", "+");
    assert_eq!((t.read("a"), t.read("b"), t.read("d/c")), ("A+".into(), "A".into(), "A".into()));
    assert_ne!(stat(t.at("a")).ino(), stat(t.at("b")).ino());
    assert_eq!(stat(t.at("b")).ino(), stat(t.at("d/c")).ino());
    assert_eq!(stat(t.upper("a")).nlink(), 1);
    t.remount();
    assert_eq!((t.read("a"), t.read("b")), ("A+".into(), "A".into()));
    let origin = t.private("origin");
    assert_eq!(crate::common::xattr_get(t.upper("a"), &origin), None, "a broken link has no origin");
}

fn removing_one_lower_link(t: &Tree) {
    lower_links(t);
    fs::remove_file(t.at("a")).unwrap();
    assert_eq!((t.read("b"), t.read("d/c")), ("A".into(), "A".into()));
    assert_eq!(t.upper_sketch(), ["a!"]);
}

fn linked_unlinked_and_linked_again(t: &Tree) {
    t.mount();
    t.write("a", "A");
    for _ in 0..3 {
        link(t, "a", "b").unwrap();
        same(t, &["a", "b"], 2);
        fs::remove_file(t.at("a")).unwrap();
        same(t, &["b"], 1);
        fs::rename(t.at("b"), t.at("a")).unwrap();
    }
    assert_eq!(t.read("a"), "A");
}

fn of_the_name_that_is_left(t: &Tree) {
    t.mount();
    t.write("a", "A");
    link(t, "a", "b").unwrap();
    link(t, "a", "c").unwrap();
    fs::remove_file(t.at("a")).unwrap();
    link(t, "b", "d").unwrap();
    fs::rename(t.at("c"), t.at("e")).unwrap();
    fs::remove_file(t.at("b")).unwrap();
    link(t, "e", "f").unwrap();
    same(t, &["d", "e", "f"], 3);
    t.append("f", "+");
    assert_eq!(t.read("d"), "A+");
}

fn of_an_unlinked_open_file(t: &Tree) {
    t.mount();
    t.write("a", "A");
    let file = File::open(t.at("a")).unwrap();
    fs::remove_file(t.at("a")).unwrap();
    use std::os::fd::AsRawFd;
    let by_descriptor = std::path::PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    let cwd = rustix::fs::CWD;
    fails(rustix::fs::linkat(cwd, &by_descriptor, cwd, t.at("b"), flags), libc::ENOENT);
}

fn many_links(t: &Tree) {
    t.mount();
    t.write("f", "F");
    for i in 0..50 {
        link(t, "f", &format!("l{i}")).unwrap();
    }
    assert_eq!(stat(t.at("l49")).nlink(), 51);
    for i in 0..50 {
        fs::remove_file(t.at(&format!("l{i}"))).unwrap();
    }
    assert_eq!(stat(t.at("f")).nlink(), 1);
}

fn upper_links_survive_a_remount(t: &Tree) {
    t.mount();
    t.write("a", "A");
    link(t, "a", "b").unwrap();
    t.remount();
    same(t, &["a", "b"], 2);
    t.append("b", "+");
    assert_eq!(t.read("a"), "A+");
    fs::remove_file(t.at("b")).unwrap();
    same(t, &["a"], 1);
}

fn through_open_descriptors(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    let reader = File::open(t.at("a")).unwrap();
    link(t, "a", "b").unwrap();
    t.append("b", "+");
    assert_eq!(std::io::read_to_string(reader).unwrap(), "A+");
}

fn goes_on_by_another_name(t: &Tree) {
    t.lower(&["a=A", "s->there"]);
    t.mount();
    for name in ["a", "s"] {
        let moved = format!("{name}-moved");
        fs::rename(t.at(name), t.at(&moved)).unwrap();
        link(t, &moved, name).unwrap();
        // The name that the server knew the file by.
        fs::remove_file(t.at(&moved)).unwrap();
        assert_eq!(crate::common::xattr_names(t.at(name)), [b""; 0]);
        link(t, name, &moved).unwrap();
        fs::remove_file(t.at(name)).unwrap();
        link(t, &moved, name).unwrap();
        same(t, &[name, &moved], 2);
    }
    assert_eq!(t.read("a-moved"), "A");
}

fn links_lost_in_a_request_that_fails(t: &Tree) {
    t.lower(&["a=A"]);
    fs::hard_link(t.low("a"), t.low("b")).unwrap();
    t.mount();
    same(t, &["a", "b"], 2);
    let replace = rustix::fs::XattrFlags::REPLACE;
    let failed = crate::common::xattr_set_flags(t.at("a"), "user.none", b"1", replace);
    fails(failed, libc::ENODATA);
    assert_eq!(stat(t.at("a")).nlink(), 1);
    assert_eq!(stat(t.at("b")).nlink(), 2);
}
