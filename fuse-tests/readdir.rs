//! Listing directories: every name once, whiteouts never, and the numbers that stat gives.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Dir, FileType};

use crate::common::{Tree, cases, raw_dir, stat};

cases! {
    every_name_once,
    whiteouts_hide_and_are_not_listed,
    opaque_directory_lists_itself_only,
    dot_and_dot_dot_are_listed,
    types_of_entries,
    numbers_agree_with_stat,
    large_directory,
    large_merged_directory,
    rewind_sees_changes,
    removing_while_listing,
    listing_again_after_each_change,
    empty_directory,
    names_only_in_the_lowest_of_three,
}

fn listed(t: &Tree, path: &str) -> Vec<String> {
    let mut names: Vec<_> = raw_dir(&t.at(path))
        .into_iter()
        .map(|(name, ..)| String::from_utf8(name).unwrap())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

fn every_name_once(t: &Tree) {
    t.lower(&["d/both=1", "d/low=1"]);
    t.lower_at(1, &["d/both=2", "d/deep=2"]);
    t.upper_has(&["d/both=0", "d/up=0"]);
    t.mount();
    assert_eq!(listed(t, "d"), ["both", "deep", "low", "up"]);
}

fn whiteouts_hide_and_are_not_listed(t: &Tree) {
    t.lower(&["d/a=1", "d/b=1", "d/mid!"]);
    t.lower_at(1, &["d/mid=2", "d/c=2"]);
    t.upper_has(&["d/a!", "d/c!", "d/never!"]);
    t.mount();
    assert_eq!(listed(t, "d"), ["b"]);
}

fn opaque_directory_lists_itself_only(t: &Tree) {
    t.lower(&["d/!", "d/mid=1"]);
    t.lower_at(1, &["d/deep=2"]);
    t.upper_has(&["d/up=0"]);
    t.mount();
    assert_eq!(listed(t, "d"), ["mid", "up"]);
}

fn dot_and_dot_dot_are_listed(t: &Tree) {
    t.lower(&["d/sub/"]);
    t.mount();
    for path in ["", "d", "d/sub"] {
        let names: BTreeSet<_> = raw_dir(&t.at(path)).into_iter().map(|(name, ..)| name).collect();
        assert!(names.contains(&b"."[..]) && names.contains(&b".."[..]), "in {path:?}");
    }
}

fn types_of_entries(t: &Tree) {
    t.lower(&["d/dir/", "d/file=x", "d/link->x", "d/fifo|"]);
    t.upper_has(&["d/up=x", "d/updir/"]);
    t.mount();
    let mut types: Vec<_> = raw_dir(&t.at("d"))
        .into_iter()
        .map(|(name, _, kind)| (String::from_utf8(name).unwrap(), kind))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect();
    types.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("dir", FileType::Directory),
        ("fifo", FileType::Fifo),
        ("file", FileType::RegularFile),
        ("link", FileType::Symlink),
        ("up", FileType::RegularFile),
        ("updir", FileType::Directory),
    ];
    assert_eq!(types, expected.map(|(name, kind)| (name.to_owned(), kind)));
}

fn numbers_agree_with_stat(t: &Tree) {
    t.lower(&["d/dir/x=1", "d/file=x", "d/link->x", "d/copied=x"]);
    t.lower_at(1, &["d/dir/y=1", "d/deep=x"]);
    t.upper_has(&["d/up=x", "d/updir/"]);
    t.mount();
    t.append("d/copied", "y");
    let check = || {
        for (name, ino, _) in raw_dir(&t.at("d")) {
            let name = String::from_utf8(name).unwrap();
            let real = stat(t.at("d").join(&name)).ino();
            assert_eq!(ino, real, "number of {name}");
        }
    };
    check();
    t.remount();
    check();
}

fn many(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("d/{prefix}{i:05}=x")).collect()
}

fn plant_many(t: &Tree, layer: usize, prefix: &str, count: usize) {
    let entries = many(prefix, count);
    t.lower_at(layer, &entries.iter().map(String::as_str).collect::<Vec<_>>());
}

fn large_directory(t: &Tree) {
    plant_many(t, 0, "name-that-takes-some-room-", 1200);
    t.mount();
    let names = listed(t, "d");
    assert_eq!(names.len(), 1200);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 1200);
}

fn large_merged_directory(t: &Tree) {
    plant_many(t, 0, "a", 300);
    plant_many(t, 1, "a", 500);
    plant_many(t, 2, "b", 300);
    t.mount();
    for i in 0..100 {
        fs::remove_file(t.at(&format!("d/b{i:05}"))).unwrap();
        t.write(&format!("d/c{i:05}"), "x");
        t.append(&format!("d/a{i:05}"), "y");
    }
    let names = listed(t, "d");
    assert_eq!(names.len(), 500 + 200 + 100);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}

fn rewind_sees_changes(t: &Tree) {
    t.lower(&["d/a=1", "d/b=1"]);
    t.mount();
    let mut dir = Dir::read_from(File::open(t.at("d")).unwrap()).unwrap();
    let mut names = || {
        dir.rewind();
        let mut names: Vec<_> = dir
            .by_ref()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["a", "b"]);
    t.write("d/c", "1");
    fs::remove_file(t.at("d/a")).unwrap();
    assert_eq!(names(), ["b", "c"]);
}

fn removing_while_listing(t: &Tree) {
    plant_many(t, 0, "low", 200);
    t.mount();
    for i in 0..200 {
        t.write(&format!("d/up{i:05}"), "x");
    }
    // As `rm -r` does it: names are removed while the directory is being read.
    for entry in fs::read_dir(t.at("d")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(listed(t, "d"), [""; 0]);
    fs::remove_dir(t.at("d")).unwrap();
}

fn listing_again_after_each_change(t: &Tree) {
    t.lower(&["d/a=1", "d/s/"]);
    t.mount();
    assert_eq!(listed(t, "d"), ["a", "s"]);
    t.write("d/n", "");
    assert_eq!(listed(t, "d"), ["a", "n", "s"]);
    fs::rename(t.at("d/a"), t.at("d/z")).unwrap();
    assert_eq!(listed(t, "d"), ["n", "s", "z"]);
    fs::rename(t.at("d/n"), t.at("d/s/n")).unwrap();
    assert_eq!(listed(t, "d"), ["s", "z"]);
    assert_eq!(listed(t, "d/s"), ["n"]);
    fs::hard_link(t.at("d/z"), t.at("d/s/l")).unwrap();
    assert_eq!(listed(t, "d/s"), ["l", "n"]);
    fs::remove_dir_all(t.at("d/s")).unwrap();
    assert_eq!(listed(t, "d"), ["z"]);
    fs::create_dir(t.at("d/s")).unwrap();
    assert_eq!(listed(t, "d/s"), [""; 0]);
}

fn empty_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    assert_eq!(listed(t, "d"), [""; 0]);
    fs::create_dir(t.at("e")).unwrap();
    assert_eq!(listed(t, "e"), [""; 0]);
}

fn names_only_in_the_lowest_of_three(t: &Tree) {
    t.lower(&["x=0"]);
    t.lower_at(1, &["y=1"]);
    t.lower_at(2, &["a/b/c=2"]);
    t.mount();
    assert_eq!(t.sketch(), ["a/", "a/b/", "a/b/c=2", "x=0", "y=1"]);
}
