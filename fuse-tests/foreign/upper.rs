//! The upper layer with redirects and metadata copies: what the kernel would have left.

use std::fs;

use rustix::fs::RenameFlags;

use crate::common::{Carrier, Snapshot, Tree, chmod, rename2, set_times, skip, xattr_set};
use crate::format::level;

/// What both sides start from.
fn plan(t: &Tree) {
    t.lower(&["a=A", "b=B", "d/a=1", "d/b=2", "d/s/x=3", "e/x=5", "e/deep/er/f=6", "empty/"]);
    t.lower_at(1, &["d/low=1", "d/s/y=4", "z/y/x=8", "empty/", "o/in=9"]);
    fs::hard_link(t.low("b"), t.low("b2")).unwrap();
    for name in ["a", "b", "d/a", "e/x"] {
        set_times(&t.low(name), (1000, 1), (2000, 2)).unwrap();
    }
}

type Script = (&'static str, &'static str, fn(&Tree));

fn rename(t: &Tree, from: &str, to: &str) {
    fs::rename(t.at(from), t.at(to)).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
}

const SCRIPTS: &[Script] = &[
    ("redirect_dir=on", "rename directories", |t| {
        rename(t, "d", "d2");
        rename(t, "e/deep", "z/deep");
        rename(t, "z", "e/z");
        t.append("d2/low", "+");
        t.append("e/z/deep/er/f", "+");
    }),
    ("redirect_dir=on", "rename over and back", |t| {
        rename(t, "e", "empty");
        rename(t, "empty", "e");
        rename(t, "d", "empty");
        rename(t, "empty/s", "s");
    }),
    ("redirect_dir=on", "exchange directories", |t| {
        rename2(&t.at("d"), &t.at("e/deep"), RenameFlags::EXCHANGE).unwrap();
        rename2(&t.at("a"), &t.at("z"), RenameFlags::EXCHANGE).unwrap();
    }),
    ("redirect_dir=on", "remove what was renamed", |t| {
        rename(t, "d", "n");
        fs::remove_file(t.at("n/a")).unwrap();
        fs::remove_dir_all(t.at("n")).unwrap();
        rename(t, "e", "d");
        fs::create_dir(t.at("e")).unwrap();
    }),
    ("redirect_dir=on", "new directories", |t| {
        fs::create_dir(t.at("n")).unwrap();
        fs::create_dir(t.at("n/m")).unwrap();
        fs::create_dir(t.at("d/n")).unwrap();
        rename(t, "d/n", "z/n");
        rename(t, "n", "e/n");
    }),
    ("redirect_dir=on", "over a remount", |t| {
        rename(t, "d", "n");
        t.remount();
        rename(t, "n", "n2");
        rename(t, "n2/s", "e/s");
        t.remount();
        rename(t, "n2", "e/n3");
        rename(t, "e/n3/low", "low");
    }),
    ("redirect_dir=follow", "nothing is made", |t| {
        fs::rename(t.at("d"), t.at("n")).unwrap_err();
        fs::create_dir(t.at("n")).unwrap();
    }),
    ("metacopy=on", "attributes", |t| {
        chmod(t.at("a"), 0o600);
        chmod(t.at("b"), 0o600);
        xattr_set(t.at("d/a"), "user.x", b"X").unwrap();
        set_times(&t.at("e/x"), (5, 6), (7, 8)).unwrap();
        chmod(t.at("d"), 0o700);
    }),
    ("metacopy=on", "rename and link", |t| {
        rename(t, "a", "a2");
        rename(t, "d/a", "e/a");
        rename(t, "b", "b3");
        fs::hard_link(t.at("d/b"), t.at("e/b")).unwrap();
        rename(t, "d", "e/d");
        rename(t, "e/d/low", "e/d/low2");
        chmod(t.at("e/d/s/x"), 0o600);
    }),
    ("metacopy=on", "complete", |t| {
        for name in ["a", "b", "d/a", "d/b"] {
            chmod(t.at(name), 0o640);
        }
        rename(t, "a", "e/a");
        t.append("e/a", "+");
        t.append("b", "+");
        t.write("d/a", "");
        t.remount();
        t.append("d/b", "+");
    }),
    ("metacopy=on", "over a remount", |t| {
        chmod(t.at("a"), 0o600);
        t.remount();
        rename(t, "a", "n");
        rename(t, "n", "e/n");
        t.remount();
        rename(t, "e/n", "e/m");
        fs::hard_link(t.at("e/m"), t.at("m2")).unwrap();
        fs::remove_file(t.at("e/m")).unwrap();
        chmod(t.at("m2"), 0o640);
    }),
    ("metacopy=on,redirect_dir=on", "remove", |t| {
        chmod(t.at("a"), 0o600);
        fs::remove_file(t.at("a")).unwrap();
        chmod(t.at("d/a"), 0o600);
        rename(t, "d", "n");
        fs::remove_dir_all(t.at("n")).unwrap();
    }),
    ("xino=on", "new directories", |t| {
        fs::create_dir(t.at("n")).unwrap();
        fs::create_dir(t.at("d/n")).unwrap();
    }),
];

pub(super) fn upper_is_what_the_kernel_leaves(t: &Tree) {
    if !t.is_real_root() {
        skip("the attributes that lead elsewhere need the machine's root");
    }
    let mut wrong = String::new();
    for (index, (option, name, script)) in SCRIPTS.iter().enumerate() {
        let run = |name: &str, carrier| {
            let tree = Tree::new(t.beside(&format!("{name}{index}")), carrier, true);
            plan(&tree);
            tree.option(option);
            if let Err(why) = tree.try_mount() {
                skip(format!("{option}: {why}"));
            }
            script(&tree);
            let merged = Snapshot::of(&tree.at("")).adjust(level);
            tree.remount();
            let again = Snapshot::of(&tree.at("")).adjust(level);
            tree.umount();
            let upper = Snapshot::of(&tree.upper("")).adjust(level);
            tree.mount();
            tree.finish();
            (merged, again, upper)
        };
        let theirs = run("kernel", Carrier::Kernel);
        let ours = run("ours", Carrier::Fuse);
        let difference = theirs.0.difference(&ours.0)
            + &theirs.1.difference(&ours.1)
            + &theirs.2.difference(&ours.2);
        if !difference.is_empty() {
            wrong += &format!("{option}: after {name:?}:\n{difference}");
        }
    }
    assert!(wrong.is_empty(), "(- kernel, + overfall)\n{wrong}");
}

fn other(carrier: Carrier) -> Carrier {
    match carrier {
        Carrier::Kernel => Carrier::Fuse,
        Carrier::Fuse => Carrier::Kernel,
    }
}

pub(super) fn upper_changes_hands(t: &Tree) {
    for (index, (option, name, script)) in SCRIPTS.iter().enumerate() {
        let tree = Tree::new(t.beside(&format!("case{index}")), t.carrier(), true);
        plan(&tree);
        tree.option(option);
        tree.mount();
        script(&tree);
        hands_over(
            &tree,
            &format!("{option}: {name}"),
            &["a", "m2", "e/a", "b3"],
        );
    }
}

/// Mounts by the other side and back again: the tree is the same, and files can be written.
pub(super) fn hands_over(tree: &Tree, label: &str, files: &[&str]) {
    let first = tree.carrier();
    let before = Snapshot::of(&tree.at(""));
    tree.umount();
    tree.carry_by(other(first));
    if let Err(why) = tree.try_mount() {
        skip(format!("the other side can't be mounted here: {why}"));
    }
    let label = format!("before, {label}");
    before.assert_same(&label, &Snapshot::of(&tree.at("")), "the other side");
    // What the one left unfinished, the other finishes.
    for file in files {
        if tree.at(file).is_file() {
            tree.append(file, "!");
        }
    }
    let before = Snapshot::of(&tree.at(""));
    tree.umount();
    tree.carry_by(first);
    tree.mount();
    before.assert_same(&label, &Snapshot::of(&tree.at("")), "back again");
    tree.finish();
}
