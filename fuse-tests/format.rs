//! The upper layer as it's left behind: what the kernel would have left, and what it takes up.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{FileType, RenameFlags};

use crate::common::{
    Carrier, Limit, Node, Snapshot, Tree, cases, chmod, mknod, rename2, set_times, sketch, skip,
    stat, xattr_get, xattr_set,
};

cases! {
    upper_is_what_the_kernel_leaves: Limit::Fuse("it is the kernel that is compared with"),
    merged_tree_is_what_the_kernel_shows: Limit::Fuse("it is the kernel that is compared with"),
    upper_changes_hands,
    upper_changes_hands_twice,
    userxattr_as_root: Limit::Root("a plain user has nothing else"),
    origins_on_btrfs: Limit::Root("needs an image"),
    work_directory_is_empty_afterwards,
    unclean_work_directory_is_swept,
    directory_put_there_by_hand_gets_its_origin,
    no_sentinels_and_no_private_names_of_our_own,
    volatile_leaves_its_mark,
    second_mount_of_an_upper_in_use: Limit::Fuse("the kernel only warns"),
}

// Not among the scripts: opening a lower file for writing without writing. The kernel copies it up
// at the open; our server isn't told of opens and copies at the first write.

/// What both sides start from.
fn plan(t: &Tree) {
    t.lower(&[
        "a=A", "b=B", "c=C", "d/a=1", "d/b=2", "d/s/x=3", "d/s/y=4", "e/x=5", "e/deep/er/f=6",
        "l->a", "dangling->nowhere", "p|", "gone!", "empty/", "big/f=7",
    ]);
    t.lower_at(1, &["d/low=1", "gone=old", "z/y/x=8", "b/hidden=1", "o/!", "o/in=9"]);
    t.lower_at(2, &["d/low2=1", "o/hidden=1", "d/s/z=10"]);
    chmod(t.low("a"), 0o640);
    chmod(t.low("d"), 0o2750);
    for name in ["a", "d/a", "e/x", "l"] {
        set_times(&t.low(name), (1000, 1), (2000, 2)).unwrap();
    }
    xattr_set(t.low("a"), "user.color", b"blue").unwrap();
    xattr_set(t.low("d"), "user.color", b"red").unwrap();
    fs::hard_link(t.low("c"), t.low("c2")).unwrap();
}

type Script = (&'static str, fn(&Tree));

fn rename(t: &Tree, from: &str, to: &str) {
    fs::rename(t.at(from), t.at(to)).unwrap();
}

fn remove(t: &Tree, path: &str) {
    fs::remove_file(t.at(path)).unwrap();
}

fn remove_all(t: &Tree, path: &str) {
    fs::remove_dir_all(t.at(path)).unwrap();
}

fn mkdir(t: &Tree, path: &str) {
    fs::create_dir(t.at(path)).unwrap();
}

fn exchange(t: &Tree, a: &str, b: &str) {
    rename2(&t.at(a), &t.at(b), RenameFlags::EXCHANGE).unwrap();
}

const SCRIPTS: &[Script] = &[
    ("nothing", |_| {}),
    ("create", |t| {
        t.write("new", "N");
        t.write("d/new", "N");
        t.write("d/s/new", "N");
        mkdir(t, "dir");
        mkdir(t, "e/deep/dir");
        symlink("target", t.at("e/link")).unwrap();
        mknod(&t.at("z/fifo"), FileType::Fifo, 0o600, (0, 0)).unwrap();
    }),
    ("append", |t| {
        for name in ["a", "d/a", "e/deep/er/f", "z/y/x", "o/in", "c"] {
            t.append(name, "+");
        }
    }),
    ("truncate", |t| {
        t.write("a", "");
        t.write("d/b", "shorter");
    }),
    ("attributes", |t| {
        chmod(t.at("a"), 0o4711);
        chmod(t.at("d/s"), 0o700);
        set_times(&t.at("e/x"), (5, 6), (7, 8)).unwrap();
        set_times(&t.at("l"), (5, 6), (7, 8)).unwrap();
        xattr_set(t.at("z/y/x"), "user.x", b"1").unwrap();
        xattr_set(t.at("empty"), "user.x", b"1").unwrap();
        chmod(t.at("p"), 0o600);
    }),
    ("escaped attributes", |t| {
        xattr_set(t.at("a"), &t.private("opaque"), b"y").unwrap();
        xattr_set(t.at("d"), &t.private("redirect"), b"/e").unwrap();
    }),
    ("unlink", |t| {
        for name in ["a", "d/a", "d/low", "l", "p", "e/deep/er/f", "c"] {
            remove(t, name);
        }
    }),
    ("unlink of new names", |t| {
        for name in ["new", "d/new", "gone", "o/hidden"] {
            t.write(name, "N");
            remove(t, name);
        }
    }),
    ("rmdir", |t| {
        fs::remove_dir(t.at("empty")).unwrap();
        remove(t, "big/f");
        fs::remove_dir(t.at("big")).unwrap();
    }),
    ("remove a tree", |t| remove_all(t, "d")),
    ("remove a tree that was changed", |t| {
        t.append("d/a", "+");
        t.write("d/s/new", "N");
        remove_all(t, "d");
        remove_all(t, "o");
    }),
    ("remove a tree and make it again", |t| {
        remove_all(t, "d");
        mkdir(t, "d");
        t.write("d/a", "again");
        mkdir(t, "d/s");
    }),
    ("remove and make inside", |t| {
        remove_all(t, "d/s");
        mkdir(t, "d/s");
        remove(t, "d/low");
        mkdir(t, "d/low");
    }),
    ("change of kind", |t| {
        remove(t, "a");
        mkdir(t, "a");
        remove_all(t, "d");
        t.write("d", "file");
        remove(t, "l");
        t.write("l", "file");
        remove(t, "b");
        mkdir(t, "b");
    }),
    ("rename files", |t| {
        rename(t, "a", "n");
        rename(t, "d/a", "e/x");
        rename(t, "z/y/x", "d/s/new");
        rename(t, "l", "d/l");
    }),
    ("rename back and forth", |t| {
        rename(t, "a", "t");
        rename(t, "t", "a");
        rename(t, "b", "c");
    }),
    ("rename over a whiteout", |t| {
        remove(t, "b");
        rename(t, "a", "b");
        remove(t, "d/a");
        t.write("new", "N");
        rename(t, "new", "d/a");
    }),
    ("rename new directories", |t| {
        mkdir(t, "n");
        t.write("n/f", "F");
        rename(t, "n", "m");
        rename(t, "m", "d/m");
        mkdir(t, "k");
        rename(t, "k", "empty");
        remove_all(t, "d/s");
        mkdir(t, "j");
        rename(t, "j", "d/s");
    }),
    ("directory over an emptied merged one", |t| {
        for name in ["e/deep/er/f", "e/x"] {
            remove(t, name);
        }
        fs::remove_dir(t.at("e/deep/er")).unwrap();
        fs::remove_dir(t.at("e/deep")).unwrap();
        mkdir(t, "n");
        t.write("n/f", "F");
        rename(t, "n", "e");
    }),
    ("exchange", |t| {
        exchange(t, "a", "d/a");
        t.write("new", "N");
        exchange(t, "new", "b");
        mkdir(t, "dir");
        exchange(t, "dir", "c");
    }),
    ("links", |t| {
        fs::hard_link(t.at("a"), t.at("d/linked")).unwrap();
        t.write("new", "N");
        fs::hard_link(t.at("new"), t.at("new2")).unwrap();
        remove(t, "b");
        fs::hard_link(t.at("new"), t.at("b")).unwrap();
        fs::hard_link(t.at("l"), t.at("l2")).unwrap();
    }),
    ("lower links", |t| {
        t.append("c", "+");
        rename(t, "c2", "c3");
    }),
    ("new over whiteouts", |t| {
        for name in ["a", "d/a", "l"] {
            remove(t, name);
        }
        t.write("a", "N");
        symlink("x", t.at("d/a")).unwrap();
        mknod(&t.at("l"), FileType::Fifo, 0o644, (0, 0)).unwrap();
    }),
    ("over a remount", |t| {
        remove(t, "a");
        t.append("d/a", "+");
        remove_all(t, "e");
        t.remount();
        t.write("a", "N");
        remove(t, "d/a");
        mkdir(t, "e");
        t.remount();
        remove(t, "a");
        remove_all(t, "e");
    }),
];

/// What two runs can't have in common is levelled: times of the present, file handles, how often
/// a whiteout is linked, the root's identifier.
pub(crate) fn level(path: &Path, node: &mut Node) -> bool {
    if node.mtime.0 > 1_000_000 {
        node.mtime = (0, 0);
    }
    if node.is_whiteout() {
        node.nlink = 1;
        node.mode &= libc::S_IFMT;
    }
    node.xattrs.retain(|name, _| !(path.as_os_str().is_empty() && name.ends_with(".overlay.uuid")));
    for (name, value) in &mut node.xattrs {
        if name.ends_with(".overlay.origin") {
            value.clear();
        }
    }
    true
}

/// The same stack, carried by the kernel.
fn beside_the_kernel(t: &Tree, name: &str) -> Tree {
    let other = Tree::new(t.beside(name), Carrier::Kernel, t.is_real_root());
    plan(&other);
    if let Err(why) = other.try_mount() {
        skip(format!("the kernel's overlay: {why}"));
    }
    other
}

fn each_script(t: &Tree, check: impl Fn(&Tree, &Tree) -> String) {
    let mut wrong = String::new();
    for (index, (name, script)) in SCRIPTS.iter().enumerate() {
        let theirs = beside_the_kernel(t, &format!("kernel{index}"));
        let ours = Tree::new(t.beside(&format!("ours{index}")), Carrier::Fuse, t.is_real_root());
        plan(&ours);
        ours.mount();
        script(&theirs);
        script(&ours);
        let difference = check(&theirs, &ours);
        if !difference.is_empty() {
            wrong += &format!("after {name:?}:\n{difference}");
        }
        theirs.finish();
        ours.finish();
    }
    assert!(wrong.is_empty(), "(- kernel, + overfall)\n{wrong}");
}

fn upper_is_what_the_kernel_leaves(t: &Tree) {
    each_script(t, |theirs, ours| {
        let upper = |t: &Tree| {
            t.umount();
            let upper = Snapshot::of(&t.upper("")).adjust(level);
            t.mount();
            upper
        };
        upper(theirs).difference(&upper(ours))
    });
}

fn merged_tree_is_what_the_kernel_shows(t: &Tree) {
    each_script(t, |theirs, ours| {
        let merged = |t: &Tree| Snapshot::of(&t.at("")).adjust(level);
        let before = merged(theirs).difference(&merged(ours));
        theirs.remount();
        ours.remount();
        before + &merged(theirs).difference(&merged(ours))
    });
}

fn other(carrier: Carrier) -> Carrier {
    match carrier {
        Carrier::Kernel => Carrier::Fuse,
        Carrier::Fuse => Carrier::Kernel,
    }
}

/// Mounts by the other side, or skips where this machine can't.
fn hand_over(t: &Tree) {
    t.umount();
    t.carry_by(other(t.carrier()));
    if let Err(why) = t.try_mount() {
        skip(format!("the other side can't be mounted here: {why}"));
    }
}

/// btrfs doesn't answer the general question for its identity.
fn origins_on_btrfs(t: &Tree) {
    let (image, disk) = (t.beside("image"), t.beside("disk"));
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    fs::create_dir(&disk).unwrap();
    for words in [vec!["mkfs.btrfs", "-q"], vec!["mount", "-o", "loop"]] {
        let mut command = std::process::Command::new(words[0]);
        command.args(&words[1..]).arg(&image);
        if words[0] == "mount" {
            command.arg(&disk);
        }
        match command.output() {
            Ok(output) if output.status.success() => {}
            other => skip(format!("{}: {other:?}", words[0])),
        }
    }
    let tree = Tree::new(disk.join("case"), t.carrier(), t.is_real_root());
    tree.lower(&["f=F"]);
    tree.mount();
    tree.append("f", "+");
    let origin = crate::common::xattr_get(tree.upper("f"), &tree.private("origin"));
    tree.finish();
    nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(origin.is_some_and(|value| value.len() > 21), "a file handle");
}

fn upper_changes_hands(t: &Tree) {
    for (index, (name, script)) in SCRIPTS.iter().enumerate() {
        let tree = Tree::new(t.beside(&format!("case{index}")), t.carrier(), t.is_real_root());
        plan(&tree);
        tree.mount();
        script(&tree);
        let merged = |t: &Tree| Snapshot::of(&t.at(""));
        let before = merged(&tree);
        hand_over(&tree);
        before.assert_same(&format!("before, {name}"), &merged(&tree), "the other side");
        tree.finish();
    }
}

fn upper_changes_hands_twice(t: &Tree) {
    plan(t);
    t.mount();
    t.append("a", "1");
    remove_all(t, "d");
    hand_over(t);
    t.append("a", "2");
    mkdir(t, "d");
    t.write("d/low", "N");
    remove(t, "b");
    rename(t, "e/x", "d/x");
    hand_over(t);
    assert_eq!(t.read("a"), "A12");
    assert_eq!(sketch(&t.at("d")), ["low=N", "x=5"]);
    assert!(!t.has("b") && !t.has("e/x"));
    remove_all(t, "d");
    hand_over(t);
    assert!(!t.has("d"));
}

fn userxattr_as_root(t: &Tree) {
    t.use_userxattr();
    t.lower(&["d/f=F", "g=G"]);
    t.mount();
    remove_all(t, "d");
    mkdir(t, "d");
    t.append("g", "+");
    t.flush();
    let names = |path: &str| {
        let names = crate::common::xattr_names(t.upper(path));
        names.into_iter().map(|name| String::from_utf8(name).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names("d"), ["user.overlay.opaque"]);
    assert_eq!(names("g"), ["user.overlay.origin"]);
    t.remount();
    assert_eq!(t.sketch(), ["d/", "g=G+"]);
}

fn work_directory_is_empty_afterwards(t: &Tree) {
    plan(t);
    t.mount();
    for name in ["a", "d/a", "e/x"] {
        t.append(name, "+");
    }
    remove_all(t, "d");
    remove(t, "b");
    rename(t, "a", "n");
    t.umount();
    let left: Vec<_> = sketch(&t.work("")).into_iter().filter(|line| line != "work/").collect();
    // The kernel keeps its shared whiteout there.
    assert!(left.iter().all(|line| line.starts_with("work/#") && line.ends_with('!')), "{left:?}");
    assert!(t.carrier() == Carrier::Kernel || left.is_empty(), "{left:?}");
}

fn unclean_work_directory_is_swept(t: &Tree) {
    t.lower(&["f=F"]);
    fs::create_dir(t.work("work")).unwrap();
    for number in 1..40 {
        fs::write(t.work(&format!("work/#{number:x}")), "left by a crash").unwrap();
    }
    fs::create_dir(t.work("work/#50")).unwrap();
    fs::write(t.work("work/#50/in"), "left").unwrap();
    t.mount();
    t.append("f", "+");
    for number in 0..40 {
        t.write(&format!("n{number}"), "N");
    }
    remove(t, "f");
    t.umount();
    let left = sketch(&t.work(""));
    assert!(!left.iter().any(|line| line.contains("left")), "{left:?}");
    t.mount();
}

fn directory_put_there_by_hand_gets_its_origin(t: &Tree) {
    t.lower(&["d/e/f=F", "o/f=F"]);
    for path in ["d/e", "o", "alone"] {
        fs::create_dir_all(t.upper(path)).unwrap();
    }
    xattr_set(t.upper("o"), &t.private("opaque"), b"y").unwrap();
    t.mount();
    let value = |path: &str, suffix: &str| xattr_get(t.upper(path), &t.private(suffix));
    assert_eq!(value("d", "origin"), None, "nobody has looked it up");
    let before = [t.at("d"), t.at("d/e"), t.at("o"), t.at("alone")].map(|path| stat(path).ino());
    for (path, parent) in [("d", ""), ("d/e", "d")] {
        assert!(value(path, "origin").is_some(), "{path} has no origin");
        assert_eq!(value(parent, "impure").as_deref(), Some(&b"y"[..]), "{parent}: impure");
    }
    for path in ["o", "alone"] {
        assert_eq!(value(path, "origin"), None, "{path} has no lower part");
    }
    t.remount();
    let after = [t.at("d"), t.at("d/e"), t.at("o"), t.at("alone")].map(|path| stat(path).ino());
    assert_eq!(before, after);
}

fn no_sentinels_and_no_private_names_of_our_own(t: &Tree) {
    plan(t);
    t.mount();
    for (_, script) in SCRIPTS.iter().filter(|(name, _)| *name == "remove a tree and make it again") {
        script(t);
    }
    remove(t, "a");
    t.umount();
    let upper = Snapshot::of(&t.upper(""));
    for (path, node) in &upper.0 {
        assert!(!path.to_string_lossy().contains(".wh."), "{}", path.display());
        for name in node.xattrs.keys() {
            let known = ["opaque", "origin", "impure", "uuid"].map(|suffix| t.private(suffix));
            assert!(known.contains(name) || name == "user.color", "{}: {name}", path.display());
        }
    }
    t.mount();
}

fn volatile_leaves_its_mark(t: &Tree) {
    t.lower(&["f=F"]);
    t.option("volatile");
    t.mount();
    t.append("f", "+");
    let mark = t.work("work/incompat/volatile/dirty");
    assert!(mark.exists());
    t.umount();
    assert_eq!(sketch(&t.upper("")), ["f=F+"]);
    assert!(mark.exists(), "after a clean end too: nothing was synced");
    assert!(t.try_mount().is_err(), "the upper may have lost data");
    fs::remove_dir_all(t.work("work/incompat")).unwrap();
    t.mount();
    assert_eq!(t.read("f"), "F+");
    t.umount();
    fs::remove_dir_all(t.work("work/incompat")).unwrap();
}

fn second_mount_of_an_upper_in_use(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let second = Tree::new(t.beside("second"), t.carrier(), t.is_real_root());
    second.share_upper_of(t);
    let why = second.try_mount().unwrap_err();
    assert!(why.contains("exit status: 2") && why.lines().count() == 1, "{why}");
    t.append("f", "+");
    assert_eq!(t.read("f"), "F+");
}
