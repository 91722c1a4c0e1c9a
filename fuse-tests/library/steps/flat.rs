//! A stack as one plain directory.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use overfall::steps::{Digest, Stack, Step};

use super::{data_of, flat, names, open, seed, work};
use crate::bench::{Case, Place};
use crate::common::{self, xattr_get, xattr_set};
use crate::planted::{look, plant};

pub(crate) const CASES: &[Case] = &[
    (
        "flattened_it_is_what_was_mounted",
        flattened_it_is_what_was_mounted,
    ),
    (
        "a_flattened_tree_is_on_its_own",
        a_flattened_tree_is_on_its_own,
    ),
];

/// With times of directories, which `look` leaves out.
fn look_closely(top: &Path) -> common::Snapshot {
    look(top).adjust(|path, node| {
        let meta = top.join(path).symlink_metadata().unwrap();
        node.mtime = (meta.mtime(), meta.mtime_nsec());
        true
    })
}

fn flattened_it_is_what_was_mounted(place: &Place) {
    let cache = open(place);
    let base = plant(place, "base");
    let mut stack = Stack::on([base], Digest::of(b"base"));
    let add: [&dyn Fn(&Path); 4] = [
        &|root| {
            fs::write(root.join("dir/one"), "changed\n").unwrap();
            fs::create_dir_all(root.join("new/er/est")).unwrap();
            fs::hard_link(root.join("dir/one"), root.join("new/link")).unwrap();
        },
        &|root| {
            fs::remove_dir_all(root.join("dir/deep")).unwrap();
            fs::write(root.join("dir/deep"), "a file now").unwrap();
            fs::remove_file(root.join("suid")).unwrap();
            fs::create_dir(root.join("suid")).unwrap();
        },
        &|root| {
            fs::remove_file(root.join("dir/deep")).unwrap();
            fs::create_dir(root.join("dir/deep")).unwrap();
            fs::remove_dir_all(root.join("new")).unwrap();
            xattr_set(root.join("dir"), "user.more", b"more").unwrap();
            xattr_set(root.join("dir"), "user.overlay.mine", b"escaped").unwrap();
        },
        &|root| {
            let sparse = File::options()
                .write(true)
                .open(root.join("sparse"))
                .unwrap();
            sparse.set_len(64 << 20).unwrap();
            fs::rename(root.join("fifo"), root.join("dir/deep/fifo")).unwrap();
            if place.has_ids() {
                chown(root.join("closed"), Some(1234), Some(4321)).unwrap();
            }
        },
    ];
    for (number, add) in add.iter().enumerate() {
        let step = work(&cache, &stack, &Step::new("", number.to_string()));
        add(step.root());
        stack = step.commit().unwrap();
    }
    let step = work(&cache, &stack, &Step::new("", "look"));
    let mounted = look_closely(step.root());
    step.abandon().unwrap();
    let dest = flat(place, &cache, &stack, "flat");
    let links = |snapshot: common::Snapshot| {
        snapshot.adjust(|path, node| {
            // Of each the other name was changed or removed. An overlay counts it all the same.
            if [Path::new("dir/one"), Path::new("dir/two")].contains(&path) {
                node.nlink = 1;
            }
            true
        })
    };
    links(look_closely(&dest)).assert_same("flat", &links(mounted), "mounted");
    let sparse = dest.join("sparse").metadata().unwrap();
    assert!(
        sparse.blocks() * 512 < 4 << 20,
        "{} blocks",
        sparse.blocks()
    );
    assert_eq!(
        xattr_get(dest.join("dir"), "user.overlay.mine").unwrap(),
        b"escaped"
    );
}

fn a_flattened_tree_is_on_its_own(place: &Place) {
    let cache = open(place);
    let step = work(&cache, &seed(), &Step::new("", "links"));
    fs::write(step.root().join("one"), "old\n").unwrap();
    fs::hard_link(step.root().join("one"), step.root().join("two")).unwrap();
    let stack = step.commit().unwrap();
    let dest = flat(place, &cache, &stack, "flat");
    let [one, two] = ["one", "two"].map(|name| dest.join(name).metadata().unwrap());
    assert_eq!((one.nlink(), one.ino()), (2, two.ino()));
    File::options()
        .append(true)
        .open(dest.join("one"))
        .unwrap()
        .write_all(b"y\n")
        .unwrap();
    assert_eq!(fs::read_to_string(dest.join("two")).unwrap(), "old\ny\n");
    let data = data_of(place, stack.digest()).join("d");
    assert_eq!(fs::read_to_string(data.join("one")).unwrap(), "old\n");
    assert!(
        cache
            .find(&seed(), &Step::new("", "links"))
            .unwrap()
            .is_some()
    );
    let error = cache.flatten(&stack, &dest).unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
    // Where it fails, nothing is there.
    let before = names(&place.dir);
    cache
        .flatten(&stack, &place.dir.join("missing/flat"))
        .unwrap_err();
    assert_eq!(names(&place.dir), before);
    // What a killed writer left goes with the next try; somebody else's stays.
    let [left, other] = [".flat.0123456789abcdef", ".flat.mine"].map(|name| place.make(name));
    fs::write(left.join("half"), "").unwrap();
    fs::remove_dir_all(&dest).unwrap();
    cache.flatten(&stack, &dest).unwrap();
    assert!(other.is_dir() && !left.exists());
}
