//! `index=on`: hard links of the lower layers stay hard links.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::FileType;

use super::upper::hands_over;
use crate::format::level;
use crate::common::{Carrier, Node, Snapshot, Tree, chmod, mknod, open_rw, skip, stat, xattr_get, xattr_set};

fn plan(t: &Tree) {
    t.lower(&["a=A", "d/", "e/single=S", "n=N"]);
    for name in ["b", "d/c"] {
        fs::hard_link(t.low("a"), t.low(name)).unwrap();
    }
    t.option("index=on");
}

/// Names in the index, the kernel's own whiteouts excepted.
fn entries(t: &Tree) -> Vec<String> {
    let names = fs::read_dir(t.work("index")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('#')).collect()
}

pub(super) fn lower_links_stay_links(t: &Tree) {
    plan(t);
    t.mount();
    let number = stat(t.at("a")).ino();
    chmod(t.at("b"), 0o640);
    t.append("a", "+");
    let check = || {
        for name in ["a", "b", "d/c"] {
            let meta = stat(t.at(name));
            assert_eq!((meta.ino(), meta.nlink(), meta.mode() & 0o777), (number, 3, 0o640), "{name}");
            assert_eq!(t.read(name), "A+", "{name}");
        }
        assert_eq!(entries(t).len(), 1);
    };
    check();
    t.remount();
    check();
    t.append("d/c", "-");
    assert_eq!(t.read("b"), "A+-");
    t.append("e/single", "+");
    assert_eq!(entries(t).len(), 1, "only links are indexed");
}

pub(super) fn links_are_counted(t: &Tree) {
    plan(t);
    t.mount();
    let links = |name: &str| stat(t.at(name)).nlink();
    fs::remove_file(t.at("b")).unwrap();
    assert_eq!((links("a"), links("d/c")), (2, 2));
    fs::hard_link(t.at("a"), t.at("e/new")).unwrap();
    fs::rename(t.at("a"), t.at("a2")).unwrap();
    assert_eq!((links("a2"), links("d/c"), links("e/new")), (3, 3, 3));
    t.remount();
    assert_eq!((links("a2"), links("d/c"), links("e/new")), (3, 3, 3));
    fs::rename(t.at("n"), t.at("d/c")).unwrap();
    assert_eq!((links("a2"), links("e/new"), links("d/c")), (2, 2, 1));
    fs::remove_file(t.at("e/new")).unwrap();
    let mut file = open_rw(t.at("a2"));
    fs::remove_file(t.at("a2")).unwrap();
    assert_eq!(entries(t), [""; 0]);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "A");
    drop(file);
    t.remount();
    assert_eq!(t.sketch(), ["d/", "d/c=N", "e/", "e/single=S"]);
}

pub(super) fn links_of_other_kinds(t: &Tree) {
    t.lower(&["d/"]);
    symlink("target", t.low("l")).unwrap();
    fs::hard_link(t.low("l"), t.low("d/l")).unwrap();
    mknod(&t.low("p"), FileType::Fifo, 0o600, (0, 0)).unwrap();
    fs::hard_link(t.low("p"), t.low("d/p")).unwrap();
    t.option("index=on");
    t.mount();
    std::os::unix::fs::lchown(t.at("l"), Some(1), Some(1)).unwrap();
    std::os::unix::fs::lchown(t.at("d/p"), Some(1), Some(1)).unwrap();
    t.remount();
    for name in ["l", "d/l", "p", "d/p"] {
        let meta = stat(t.at(name));
        assert_eq!((meta.uid(), meta.nlink()), (1, 2), "{name}");
    }
    assert_eq!(fs::read_link(t.at("d/l")).unwrap().as_os_str(), "target");
}

pub(super) fn index_belongs_to_its_layers(t: &Tree) {
    plan(t);
    t.mount();
    t.append("a", "+");
    t.umount();
    let other = Tree::new(t.beside("other"), t.carrier(), true);
    other.share_upper_of(t);
    other.option("index=on");
    assert!(other.try_mount().is_err(), "another lower layer");
    let index = xattr_get(t.work("index"), "trusted.overlay.upper").unwrap();
    assert_eq!(index[..2], [0, 0xfb]);
    assert!(xattr_get(t.upper(""), "trusted.overlay.origin").is_some());
    if t.carrier() == Carrier::Fuse {
        let without = Tree::new(t.beside("without"), t.carrier(), true);
        without.share_upper_of(t);
        let why = without.try_mount().unwrap_err();
        assert!(why.contains("index=on") && why.lines().count() == 1, "{why}");
    }
    t.mount();
    assert_eq!(t.read("b"), "A+");
}

pub(super) fn stale_entries_are_removed(t: &Tree) {
    plan(t);
    t.mount();
    t.append("a", "+");
    t.umount();
    let entry = entries(t).remove(0);
    // An unfinished one, and then one whose links have all gone.
    fs::write(t.work("index/#12"), "").unwrap();
    t.mount();
    assert!(!t.work("index/#12").exists());
    t.umount();
    fs::write(t.work("index/junk"), "").unwrap();
    assert!(t.try_mount().is_err(), "it can't be understood");
    fs::remove_file(t.work("index/junk")).unwrap();
    for name in ["a", "b", "d/c"] {
        let _ = fs::remove_file(t.upper(name));
    }
    xattr_set(t.work("index").join(&entry), "trusted.overlay.nlink", b"U-1").unwrap();
    t.mount();
    assert_eq!(entries(t), [""; 0]);
    assert_eq!(t.read("a"), "A");
}

/// As [`level`]. Which directory gets another name of a file that is copied up already is told by
/// who opens it, which a server isn't told: a directory may be merged for the one side alone.
fn level_names(path: &Path, node: &mut Node) -> bool {
    if node.is_dir() {
        node.nlink = 1;
    }
    level(path, node)
}

type Script = (&'static str, fn(&Tree));

const SCRIPTS: &[Script] = &[
    ("write", |t| t.append("a", "+")),
    ("write by all names", |t| {
        for name in ["b", "a", "d/c"] {
            t.append(name, "+");
        }
    }),
    ("remove one", |t| fs::remove_file(t.at("b")).unwrap()),
    ("remove all", |t| {
        t.append("a", "+");
        for name in ["b", "a", "d/c"] {
            fs::remove_file(t.at(name)).unwrap();
        }
    }),
    ("rename and link", |t| {
        fs::rename(t.at("a"), t.at("e/a")).unwrap();
        fs::hard_link(t.at("d/c"), t.at("l")).unwrap();
        fs::rename(t.at("n"), t.at("b")).unwrap();
    }),
    ("over a remount", |t| {
        t.append("a", "+");
        t.remount();
        fs::remove_file(t.at("a")).unwrap();
        t.remount();
        t.append("d/c", "+");
        File::create(t.at("a")).unwrap();
        fs::create_dir(t.at("d/new")).unwrap();
    }),
    ("with metadata copies", |t| {
        chmod(t.at("b"), 0o600);
        fs::rename(t.at("b"), t.at("d/b")).unwrap();
        chmod(t.at("d/c"), 0o640);
    }),
];

fn options(name: &str) -> &'static str {
    if name == "with metadata copies" { "metacopy=on" } else { "redirect_dir=off" }
}

pub(super) fn index_shows_what_the_kernel_shows(t: &Tree) {
    if !t.is_real_root() {
        skip("the index needs the machine's root");
    }
    let mut wrong = String::new();
    for (index, (name, script)) in SCRIPTS.iter().enumerate() {
        let run = |side: &str, carrier| {
            let tree = Tree::new(t.beside(&format!("{side}{index}")), carrier, true);
            plan(&tree);
            tree.option(options(name));
            if let Err(why) = tree.try_mount() {
                skip(format!("index=on: {why}"));
            }
            script(&tree);
            let merged = Snapshot::of(&tree.at("")).adjust(level_names);
            tree.remount();
            let again = Snapshot::of(&tree.at("")).adjust(level_names);
            let count = entries(&tree).len();
            tree.finish();
            (merged, again, count)
        };
        let theirs = run("kernel", Carrier::Kernel);
        let ours = run("ours", Carrier::Fuse);
        assert_eq!(theirs.2, ours.2, "entries after {name:?}");
        let difference = theirs.0.difference(&ours.0) + &theirs.1.difference(&ours.1);
        if !difference.is_empty() {
            wrong += &format!("after {name:?}:\n{difference}");
        }
    }
    assert!(wrong.is_empty(), "(- kernel, + overfall)\n{wrong}");
}

pub(super) fn index_changes_hands(t: &Tree) {
    for (index, (name, script)) in SCRIPTS.iter().enumerate() {
        let tree = Tree::new(t.beside(&format!("case{index}")), t.carrier(), true);
        plan(&tree);
        tree.option(options(name));
        tree.mount();
        script(&tree);
        hands_over(&tree, name, &["a", "b", "d/c", "d/b"]);
    }
}
