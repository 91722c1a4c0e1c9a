//! rename: within upper, from lower, over everything, and the two flags.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::RenameFlags;

use crate::common::{Tree, cases, fails, rename2, stat, xattr_get};

cases! {
    lower_file,
    upper_file,
    into_another_directory,
    over_an_upper_file,
    over_a_lower_file,
    over_a_whiteout,
    back_to_the_removed_name,
    lower_directory_is_refused,
    merged_directory_is_refused,
    upper_directory,
    upper_directory_into_a_merged_one_becomes_opaque,
    upper_directory_into_a_merged_one_keeps_its_time,
    upper_directory_over_a_whiteout_becomes_opaque,
    directory_over_an_empty_directory,
    directory_over_a_directory_with_only_whiteouts,
    directory_over_a_full_directory,
    kinds_that_do_not_fit,
    into_itself,
    noreplace,
    noreplace_over_a_whiteout,
    exchange_upper_files,
    exchange_with_a_lower_file,
    exchange_two_lower_files,
    exchange_file_and_directory,
    exchange_lower_directories_is_refused,
    exchange_missing,
    whiteout_flag_is_refused,
    symlink,
    to_itself_and_to_its_own_hard_link,
    chain_of_renames,
    moved_file_keeps_its_content_after_remount,
    number_stays,
    open_file_follows,
    parents_times_change,
    deep_directory_moves_with_content,
}

fn mv(t: &Tree, from: &str, to: &str) -> std::io::Result<()> {
    fs::rename(t.at(from), t.at(to))
}

fn lower_file(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    mv(t, "a", "b").unwrap();
    assert_eq!(t.sketch(), ["b=A"]);
    assert_eq!(t.upper_sketch(), ["a!", "b=A"]);
    t.remount();
    assert_eq!(t.sketch(), ["b=A"]);
}

fn upper_file(t: &Tree) {
    t.mount();
    t.write("a", "A");
    mv(t, "a", "b").unwrap();
    assert_eq!(t.upper_sketch(), ["b=A"]);
    fails(fs::read(t.at("a")), libc::ENOENT);
}

fn into_another_directory(t: &Tree) {
    t.lower(&["d/a=A", "e/"]);
    t.mount();
    mv(t, "d/a", "e/b").unwrap();
    assert_eq!(t.sketch(), ["d/", "e/", "e/b=A"]);
    assert_eq!(t.upper_sketch(), ["d/", "d/a!", "e/", "e/b=A"]);
}

fn over_an_upper_file(t: &Tree) {
    t.mount();
    t.write("a", "A");
    t.write("b", "B");
    mv(t, "a", "b").unwrap();
    assert_eq!(t.upper_sketch(), ["b=A"]);
}

fn over_a_lower_file(t: &Tree) {
    t.lower(&["a=A", "b=B"]);
    t.mount();
    mv(t, "a", "b").unwrap();
    assert_eq!(t.sketch(), ["b=A"]);
    assert_eq!(t.upper_sketch(), ["a!", "b=A"]);
}

fn over_a_whiteout(t: &Tree) {
    t.lower(&["a=A", "b=B"]);
    t.upper_has(&["b!"]);
    t.mount();
    mv(t, "a", "b").unwrap();
    assert_eq!(t.upper_sketch(), ["a!", "b=A"]);
    t.write("up", "U");
    fs::remove_file(t.at("b")).unwrap();
    mv(t, "up", "b").unwrap();
    assert_eq!(t.upper_sketch(), ["a!", "b=U"]);
}

fn back_to_the_removed_name(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    mv(t, "a", "b").unwrap();
    mv(t, "b", "a").unwrap();
    assert_eq!(t.sketch(), ["a=A"]);
    assert_eq!(t.upper_sketch(), ["a=A"]);
}

fn lower_directory_is_refused(t: &Tree) {
    t.lower(&["d/f=F", "e/"]);
    t.mount();
    fails(mv(t, "d", "n"), libc::EXDEV);
    fails(mv(t, "d", "e/n"), libc::EXDEV);
    assert_eq!(t.sketch(), ["d/", "d/f=F", "e/"]);
    t.write("d/g", "G");
    fails(mv(t, "d", "n"), libc::EXDEV);
}

fn merged_directory_is_refused(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.upper_has(&["d/g=G"]);
    t.mount();
    fails(mv(t, "d", "n"), libc::EXDEV);
    assert_eq!(t.sketch(), ["d/", "d/f=F", "d/g=G"]);
}

fn upper_directory(t: &Tree) {
    t.lower(&["x=1"]);
    t.mount();
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/f", "F");
    mv(t, "d", "n").unwrap();
    assert_eq!(t.sketch(), ["n/", "n/f=F", "x=1"]);
    assert!(!t.has("d"));
    t.remount();
    assert_eq!(t.sketch(), ["n/", "n/f=F", "x=1"]);
}

fn upper_directory_into_a_merged_one_becomes_opaque(t: &Tree) {
    t.lower(&["m/f=F"]);
    t.mount();
    fs::create_dir(t.at("d")).unwrap();
    mv(t, "d", "m/d").unwrap();
    assert_eq!(t.upper_sketch(), ["m/", "m/d/!"]);
}

fn upper_directory_into_a_merged_one_keeps_its_time(t: &Tree) {
    t.lower(&["d/f=F"]);
    t.mount();
    fs::create_dir(t.at("new")).unwrap();
    crate::common::set_times(&t.at("new"), (5, 0), (1, 0)).unwrap();
    fs::rename(t.at("new"), t.at("d/new")).unwrap();
    assert_eq!(stat(t.at("d/new")).mtime(), 1);
    t.remount();
    assert_eq!(stat(t.at("d/new")).mtime(), 1);
}

fn upper_directory_over_a_whiteout_becomes_opaque(t: &Tree) {
    t.lower(&["old/hidden=1"]);
    t.mount();
    fs::remove_dir_all(t.at("old")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/f", "F");
    mv(t, "d", "old").unwrap();
    assert_eq!(t.sketch(), ["old/", "old/f=F"]);
    assert_eq!(t.upper_sketch(), ["old/!", "old/f=F"]);
    t.remount();
    assert_eq!(t.sketch(), ["old/", "old/f=F"]);
}

fn directory_over_an_empty_directory(t: &Tree) {
    t.lower(&["low/"]);
    t.mount();
    for name in ["a", "b", "c"] {
        fs::create_dir(t.at(name)).unwrap();
    }
    t.write("a/f", "F");
    mv(t, "a", "b").unwrap();
    assert_eq!(t.sketch(), ["b/", "b/f=F", "c/", "low/"]);
    mv(t, "b", "low").unwrap();
    assert_eq!(t.sketch(), ["c/", "low/", "low/f=F"]);
    assert_eq!(t.upper_sketch().last().unwrap(), "low/f=F");
    t.remount();
    assert_eq!(t.sketch(), ["c/", "low/", "low/f=F"]);
}

fn directory_over_a_directory_with_only_whiteouts(t: &Tree) {
    t.lower(&["m/a=1", "m/b=1"]);
    t.mount();
    fs::remove_file(t.at("m/a")).unwrap();
    fs::remove_file(t.at("m/b")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    t.write("d/f", "F");
    mv(t, "d", "m").unwrap();
    assert_eq!(t.sketch(), ["m/", "m/f=F"]);
    assert_eq!(t.upper_sketch(), ["m/!", "m/f=F"]);
    t.remount();
    assert_eq!(t.sketch(), ["m/", "m/f=F"]);
}

fn directory_over_a_full_directory(t: &Tree) {
    t.lower(&["low/f=1"]);
    t.mount();
    fs::create_dir(t.at("d")).unwrap();
    fs::create_dir(t.at("e")).unwrap();
    t.write("e/f", "");
    fails(mv(t, "d", "low"), libc::ENOTEMPTY);
    fails(mv(t, "d", "e"), libc::ENOTEMPTY);
}

fn kinds_that_do_not_fit(t: &Tree) {
    t.lower(&["f=F", "d/"]);
    t.mount();
    fs::create_dir(t.at("up")).unwrap();
    fails(mv(t, "f", "d"), libc::EISDIR);
    fails(mv(t, "up", "f"), libc::ENOTDIR);
    fails(mv(t, "none", "f"), libc::ENOENT);
    assert_eq!(t.upper_sketch(), ["up/"]);
}

fn into_itself(t: &Tree) {
    t.mount();
    fs::create_dir_all(t.at("d/e")).unwrap();
    fails(mv(t, "d", "d/e/f"), libc::EINVAL);
    fails(mv(t, "d/e", "d"), libc::ENOTEMPTY);
}

fn noreplace(t: &Tree) {
    t.lower(&["a=A", "low=L"]);
    t.mount();
    t.write("up", "U");
    let noreplace = |from: &str, to: &str| rename2(&t.at(from), &t.at(to), RenameFlags::NOREPLACE);
    fails(noreplace("a", "low"), libc::EEXIST);
    fails(noreplace("a", "up"), libc::EEXIST);
    noreplace("a", "free").unwrap();
    assert_eq!(t.sketch(), ["free=A", "low=L", "up=U"]);
}

fn noreplace_over_a_whiteout(t: &Tree) {
    t.lower(&["a=A", "gone=G"]);
    t.mount();
    fs::remove_file(t.at("gone")).unwrap();
    t.write("up", "U");
    rename2(&t.at("up"), &t.at("gone"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(t.sketch(), ["a=A", "gone=U"]);
    assert_eq!(t.upper_sketch(), ["gone=U"]);
}

fn swap(t: &Tree, a: &str, b: &str) -> std::io::Result<()> {
    rename2(&t.at(a), &t.at(b), RenameFlags::EXCHANGE)
}

fn exchange_upper_files(t: &Tree) {
    t.mount();
    t.write("a", "A");
    t.write("b", "B");
    swap(t, "a", "b").unwrap();
    assert_eq!(t.sketch(), ["a=B", "b=A"]);
    assert_eq!(t.upper_sketch(), ["a=B", "b=A"]);
}

fn exchange_with_a_lower_file(t: &Tree) {
    t.lower(&["low=L"]);
    t.mount();
    t.write("up", "U");
    swap(t, "up", "low").unwrap();
    assert_eq!(t.sketch(), ["low=U", "up=L"]);
    swap(t, "low", "up").unwrap();
    assert_eq!(t.sketch(), ["low=L", "up=U"]);
    assert_eq!(t.upper_sketch(), ["low=L", "up=U"]);
}

fn exchange_two_lower_files(t: &Tree) {
    t.lower(&["d/a=A", "e/b=B"]);
    t.mount();
    swap(t, "d/a", "e/b").unwrap();
    assert_eq!(t.sketch(), ["d/", "d/a=B", "e/", "e/b=A"]);
    t.remount();
    assert_eq!(t.sketch(), ["d/", "d/a=B", "e/", "e/b=A"]);
}

fn exchange_file_and_directory(t: &Tree) {
    t.lower(&["file=F"]);
    t.mount();
    fs::create_dir(t.at("dir")).unwrap();
    t.write("dir/in", "I");
    swap(t, "file", "dir").unwrap();
    assert_eq!(t.sketch(), ["dir=F", "file/", "file/in=I"]);
    t.remount();
    assert_eq!(t.sketch(), ["dir=F", "file/", "file/in=I"]);
}

fn exchange_lower_directories_is_refused(t: &Tree) {
    t.lower(&["a/x=1", "b/y=1"]);
    t.mount();
    fails(swap(t, "a", "b"), libc::EXDEV);
    fs::create_dir(t.at("up")).unwrap();
    fails(swap(t, "up", "a"), libc::EXDEV);
    fails(swap(t, "a", "up"), libc::EXDEV);
    assert_eq!(t.sketch(), ["a/", "a/x=1", "b/", "b/y=1", "up/"]);
}

fn exchange_missing(t: &Tree) {
    t.lower(&["a=A", "gone=G"]);
    t.mount();
    fs::remove_file(t.at("gone")).unwrap();
    fails(swap(t, "a", "none"), libc::ENOENT);
    fails(swap(t, "a", "gone"), libc::ENOENT);
    assert_eq!(t.sketch(), ["a=A"]);
}

fn whiteout_flag_is_refused(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    fails(rename2(&t.at("a"), &t.at("b"), RenameFlags::WHITEOUT), libc::EINVAL);
    assert_eq!(t.sketch(), ["a=A"]);
}

fn symlink(t: &Tree) {
    t.lower(&["l->target", "d/"]);
    t.mount();
    mv(t, "l", "d/m").unwrap();
    assert_eq!(t.sketch(), ["d/", "d/m->target"]);
    assert_eq!(t.upper_sketch(), ["d/", "d/m->target", "l!"]);
}

fn to_itself_and_to_its_own_hard_link(t: &Tree) {
    t.mount();
    t.write("a", "A");
    fs::hard_link(t.at("a"), t.at("b")).unwrap();
    mv(t, "a", "a").unwrap();
    // POSIX: two names of one file, nothing happens.
    mv(t, "a", "b").unwrap();
    assert_eq!(t.sketch(), ["a=A", "b=A"]);
}

fn chain_of_renames(t: &Tree) {
    t.lower(&["a=A", "b=B"]);
    t.mount();
    mv(t, "a", "t").unwrap();
    mv(t, "b", "a").unwrap();
    mv(t, "t", "b").unwrap();
    assert_eq!(t.sketch(), ["a=B", "b=A"]);
    assert_eq!(t.upper_sketch(), ["a=B", "b=A"]);
    t.remount();
    assert_eq!(t.sketch(), ["a=B", "b=A"]);
}

fn moved_file_keeps_its_content_after_remount(t: &Tree) {
    let big = "x".repeat(300_000);
    fs::write(t.low("big"), &big).unwrap();
    t.lower(&["d/"]);
    t.mount();
    mv(t, "big", "d/big").unwrap();
    assert_eq!(t.read("d/big"), big);
    t.remount();
    assert_eq!(t.read("d/big"), big);
    assert!(!t.has("big"));
}

fn number_stays(t: &Tree) {
    t.lower(&["a=A"]);
    t.mount();
    let before = stat(t.at("a")).ino();
    mv(t, "a", "b").unwrap();
    assert_eq!(stat(t.at("b")).ino(), before);
    t.write("c", "C");
    let before = stat(t.at("c")).ino();
    mv(t, "c", "b").unwrap();
    assert_eq!(stat(t.at("b")).ino(), before);
}

fn open_file_follows(t: &Tree) {
    use std::io::Read;
    t.lower(&["a=A", "b=B"]);
    t.mount();
    let mut a = fs::File::open(t.at("a")).unwrap();
    let mut b = fs::File::open(t.at("b")).unwrap();
    mv(t, "a", "b").unwrap();
    let mut text = String::new();
    a.read_to_string(&mut text).unwrap();
    b.read_to_string(&mut text).unwrap();
    assert_eq!(text, "AB");
    t.append("b", "+");
    assert_eq!(a.metadata().unwrap().len(), 2);
    assert_eq!(b.metadata().unwrap().len(), 1);
}

fn parents_times_change(t: &Tree) {
    t.lower(&["d/a=A", "e/x=X"]);
    for dir in ["d", "e"] {
        crate::common::set_times(&t.low(dir), (1, 0), (1, 0)).unwrap();
    }
    t.mount();
    assert_eq!((stat(t.at("d")).mtime(), stat(t.at("e")).mtime()), (1, 1));
    mv(t, "d/a", "e/a").unwrap();
    assert!(stat(t.at("d")).mtime() > 1);
    assert!(stat(t.at("e")).mtime() > 1);
}

fn deep_directory_moves_with_content(t: &Tree) {
    t.lower(&["low/f=L"]);
    t.mount();
    fs::create_dir_all(t.at("a/b/c")).unwrap();
    fs::rename(t.at("low/f"), t.at("a/b/c/f")).unwrap();
    assert!(t.has("a/b/c/f"));
    mv(t, "a/b", "low/b").unwrap();
    assert_eq!(t.sketch(), ["a/", "low/", "low/b/", "low/b/c/", "low/b/c/f=L"]);
    t.append("low/b/c/f", "+");
    assert_eq!(xattr_get(t.upper("low/b"), &t.private("opaque")).unwrap(), b"y");
    t.remount();
    assert_eq!(t.read("low/b/c/f"), "L+");
}
