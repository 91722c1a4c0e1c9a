//! unlink and rmdir: whiteouts where a lower layer has the name, and nothing where none has.

use std::fs;

use crate::common::{Tree, cases, fails};

cases! {
    lower_file_leaves_a_whiteout,
    upper_file_leaves_nothing,
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
    fs::remove_file(t.at("a")).unwrap();
    assert_eq!(t.upper_sketch(), [""; 0]);
}
