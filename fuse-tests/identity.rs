//! What tells objects apart: st_ino, d_ino, st_dev, nlink, over copy-up, rename and remount.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::common::{Carrier, Limit, Tree, cases, chmod, raw_dir, stat};

cases! {
    number_is_kept_over_a_copy_up,
    number_of_a_directory_is_kept,
    number_of_a_symlink_is_kept: Limit::Root("without privilege the kernel forgets where a symbolic link came from"),
    one_device_for_everything,
    numbers_are_unique,
    numbers_are_unique_over_layers,
    merged_directory_has_one_link,
    numbers_of_untouched_objects_hold_over_a_remount,
    numbers_of_copied_up_objects_hold_over_a_remount: Limit::Root("without privilege the kernel can't write where a file came from"),
    directory_entry_numbers_agree_after_copy_up_and_rename,
    parent_entry_is_the_parent,
    number_is_not_used_again_while_open,
    find_and_du_see_each_file_once,
}

fn number_is_kept_over_a_copy_up(t: &Tree) {
    t.lower(&["f=F", "d/g=G"]);
    t.mount();
    for name in ["f", "d/g"] {
        let before = stat(t.at(name)).ino();
        chmod(t.at(name), 0o600);
        assert_eq!(stat(t.at(name)).ino(), before, "{name} after chmod");
        t.append(name, "+");
        assert_eq!(stat(t.at(name)).ino(), before, "{name} after a write");
    }
}

fn number_of_a_directory_is_kept(t: &Tree) {
    t.lower(&["d/e/f=F"]);
    t.mount();
    let before = ["d", "d/e", ""].map(|name| stat(t.at(name)).ino());
    t.append("d/e/f", "+");
    assert_eq!(["d", "d/e", ""].map(|name| stat(t.at(name)).ino()), before);
}

fn number_of_a_symlink_is_kept(t: &Tree) {
    t.lower(&["l->x"]);
    t.mount();
    let before = stat(t.at("l")).ino();
    crate::common::set_times(&t.at("l"), (1, 0), (2, 0)).unwrap();
    assert_eq!(stat(t.at("l")).ino(), before);
}

fn all(t: &Tree) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![t.at("")];
    while let Some(path) = todo.pop() {
        let meta = stat(&path);
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (meta.dev(), meta.ino()));
    }
    found
}

fn mixed(t: &Tree) {
    t.lower(&["a=1", "d/b=2", "d/l->b", "e/", "p|"]);
    t.lower_at(1, &["d/deep=3", "z/y/x=4"]);
    t.upper_has(&["d/up=5", "updir/f=6"]);
}

fn one_device_for_everything(t: &Tree) {
    mixed(t);
    t.mount();
    let devices: std::collections::BTreeSet<_> = all(t).values().map(|(dev, _)| *dev).collect();
    assert_eq!(devices.len(), 1);
    assert_ne!(devices.first(), Some(&stat(t.upper("")).dev()));
}

fn numbers_are_unique(t: &Tree) {
    mixed(t);
    t.mount();
    t.append("a", "+");
    t.write("new", "N");
    let found = all(t);
    let numbers: std::collections::BTreeSet<_> = found.values().collect();
    assert_eq!(numbers.len(), found.len(), "{found:?}");
}

fn numbers_are_unique_over_layers(t: &Tree) {
    for layer in 0..5 {
        for file in 0..5 {
            t.lower_at(layer, &[&format!("l{layer}/f{file}=x")]);
        }
    }
    t.mount();
    let found = all(t);
    assert_eq!(found.values().collect::<std::collections::BTreeSet<_>>().len(), 31);
}

fn merged_directory_has_one_link(t: &Tree) {
    t.lower(&["d/a/", "d/b/"]);
    t.upper_has(&["d/c/"]);
    t.mount();
    assert_eq!(stat(t.at("d")).nlink(), 1);
    assert_eq!(stat(t.at("")).nlink(), 1);
}

fn numbers_of_untouched_objects_hold_over_a_remount(t: &Tree) {
    mixed(t);
    t.mount();
    let numbers = |t: &Tree| all(t).into_iter().map(|(path, id)| (path, id.1)).collect::<BTreeMap<_, _>>();
    let before = numbers(t);
    t.remount();
    assert_eq!(numbers(t), before);
}

fn numbers_of_copied_up_objects_hold_over_a_remount(t: &Tree) {
    t.lower(&["f=F", "d/g=G"]);
    t.mount();
    let before = ["f", "d", "d/g"].map(|name| stat(t.at(name)).ino());
    t.append("f", "+");
    t.append("d/g", "+");
    t.remount();
    assert_eq!(["f", "d", "d/g"].map(|name| stat(t.at(name)).ino()), before);
}

fn directory_entry_numbers_agree_after_copy_up_and_rename(t: &Tree) {
    t.lower(&["d/f=F", "d/g=G", "e/"]);
    t.mount();
    t.append("d/f", "+");
    fs::rename(t.at("d/f"), t.at("e/f")).unwrap();
    fs::rename(t.at("d/g"), t.at("e/g")).unwrap();
    fs::create_dir(t.at("e/s")).unwrap();
    for (name, ino, _) in raw_dir(&t.at("e")) {
        let name = String::from_utf8(name).unwrap();
        if name != ".." || t.carrier() == Carrier::Kernel {
            assert_eq!(ino, stat(t.at("e").join(&name)).ino(), "{name}");
        }
    }
}

fn parent_entry_is_the_parent(t: &Tree) {
    t.lower(&["d/e/f=F"]);
    t.mount();
    assert_eq!(stat(t.at("d/e/..")).ino(), stat(t.at("d")).ino());
    assert_eq!(stat(t.at("d/e/../..")).ino(), stat(t.at("")).ino());
    let dot_dot = |dir: &str| {
        let found = raw_dir(&t.at(dir)).into_iter().find(|(name, ..)| name == b"..");
        found.map(|(_, ino, _)| ino).unwrap()
    };
    assert_eq!(dot_dot("d/e"), stat(t.at("d")).ino());
}

fn number_is_not_used_again_while_open(t: &Tree) {
    t.mount();
    t.write("f", "old");
    let old = fs::File::open(t.at("f")).unwrap();
    fs::remove_file(t.at("f")).unwrap();
    for i in 0..20 {
        let name = format!("new{i}");
        t.write(&name, "");
        assert_ne!(stat(t.at(&name)).ino(), old.metadata().unwrap().ino());
    }
}

fn find_and_du_see_each_file_once(t: &Tree) {
    mixed(t);
    t.mount();
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).arg(t.at("")).output();
        let output = output.unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{program}: {output:?}");
        output.stdout
    };
    let found = run("find", &[]);
    assert_eq!(found.split(|byte| *byte == b'\n').count() - 1, all(t).len());
    run("du", &["-a"]);
}
