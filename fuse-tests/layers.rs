//! Stacks of layers: many, none writable, one inside the other, strange names.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::{Tree, cases, fails, join_bytes, names, open_rw, stat, xattr_set};

cases! {
    three_lowers,
    five_hundred_lowers,
    opaque_directory_in_a_lower,
    whiteout_in_a_lower,
    whiteout_of_a_directory_in_a_lower,
    whiteout_in_the_lowest_layer,
    file_over_directory,
    directory_over_file,
    directory_over_file_over_directory,
    symlink_over_directory,
    missing_in_a_middle_layer,
    opaque_value_that_is_not_y,
    attribute_whiteouts,
    read_only_without_upper,
    read_only_single_operations_all_fail,
    lower_inside_another_lower,
    lower_that_contains_upper_and_mount,
    same_file_in_two_layers,
    names_that_are_not_utf8,
    names_of_255_bytes,
    names_that_begin_with_wh,
    names_with_odd_characters,
    deep_tree,
    names_longer_than_a_path_together,
    lower_mode_is_shown_of_the_topmost,
    an_upper_used_with_other_lowers,
    symlink_as_layer,
    origin_of_another_stack_is_ignored,
    foreign_overlay_attributes_in_lower,
}

fn three_lowers(t: &Tree) {
    t.lower(&["top=0", "all=0", "d/0=x"]);
    t.lower_at(1, &["mid=1", "all=1", "two=1", "d/1=x"]);
    t.lower_at(2, &["low=2", "all=2", "two=2", "d/2=x"]);
    t.mount();
    assert_eq!(
        t.sketch(),
        ["all=0", "d/", "d/0=x", "d/1=x", "d/2=x", "low=2", "mid=1", "top=0", "two=1"]
    );
    fs::remove_file(t.at("all")).unwrap();
    assert!(!t.has("all"));
    assert_eq!(t.upper_sketch(), ["all!"]);
}

fn five_hundred_lowers(t: &Tree) {
    for layer in 0..500 {
        let own = format!("only-{layer}=x");
        let shared = format!("d/{}=from {layer}", layer / 10);
        t.lower_at(layer, &[&own, &shared]);
    }
    // More than a page of options.
    t.mount();
    assert_eq!(names(&t.at("")).len(), 501);
    assert_eq!(names(&t.at("d")).len(), 50);
    assert_eq!(t.read("d/49"), "from 490");
    assert_eq!(t.read("only-499"), "x");
    t.append("only-499", "y");
    fs::remove_dir_all(t.at("d")).unwrap();
    assert_eq!(t.upper_sketch(), ["d!", "only-499=xy"]);
}

fn opaque_directory_in_a_lower(t: &Tree) {
    t.lower(&["d/up=0"]);
    t.lower_at(1, &["d/!", "d/mid=1"]);
    t.lower_at(2, &["d/hidden=2", "other=2"]);
    t.mount();
    assert_eq!(t.sketch(), ["d/", "d/mid=1", "d/up=0", "other=2"]);
    t.write("d/hidden", "new");
    fs::remove_file(t.at("d/hidden")).unwrap();
    assert_eq!(t.upper_sketch(), ["d/"]);
}

fn whiteout_in_a_lower(t: &Tree) {
    t.lower(&["x!", "d/y!"]);
    t.lower_at(1, &["x=1", "d/y=1", "d/z=1"]);
    t.mount();
    assert_eq!(t.sketch(), ["d/", "d/z=1"]);
    fails(fs::read(t.at("x")), libc::ENOENT);
    t.write("x", "new");
    assert_eq!(t.read("x"), "new");
}

fn whiteout_of_a_directory_in_a_lower(t: &Tree) {
    t.lower(&["d/new=0"]);
    t.lower_at(1, &["d!"]);
    t.lower_at(2, &["d/old=2"]);
    t.mount();
    assert_eq!(t.sketch(), ["d/", "d/new=0"]);
}

fn whiteout_in_the_lowest_layer(t: &Tree) {
    t.lower(&["d/a!", "d/b=B"]);
    t.mount();
    // The kernel lists such a name (nothing is merged there, so it doesn't look).
    fails(fs::symlink_metadata(t.at("d/a")), libc::ENOENT);
    t.write("d/a", "A");
    assert_eq!(t.sketch(), ["d/", "d/a=A", "d/b=B"]);
}

fn file_over_directory(t: &Tree) {
    t.lower(&["x=file"]);
    t.lower_at(1, &["x/hidden=1"]);
    t.mount();
    assert_eq!(t.sketch(), ["x=file"]);
    fs::remove_file(t.at("x")).unwrap();
    assert_eq!(t.sketch(), [""; 0]);
    fs::create_dir(t.at("x")).unwrap();
    assert_eq!(t.sketch(), ["x/"]);
    assert_eq!(t.upper_sketch(), ["x/!"]);
}

fn directory_over_file(t: &Tree) {
    t.lower(&["x/in=1"]);
    t.lower_at(1, &["x=file"]);
    t.mount();
    assert_eq!(t.sketch(), ["x/", "x/in=1"]);
    fs::remove_dir_all(t.at("x")).unwrap();
    assert_eq!(t.sketch(), [""; 0]);
    assert_eq!(t.upper_sketch(), ["x!"]);
}

fn directory_over_file_over_directory(t: &Tree) {
    t.lower(&["x/top=1"]);
    t.lower_at(1, &["x=file"]);
    t.lower_at(2, &["x/bottom=1"]);
    t.mount();
    assert_eq!(t.sketch(), ["x/", "x/top=1"]);
}

fn symlink_over_directory(t: &Tree) {
    t.lower(&["x->y"]);
    t.lower_at(1, &["x/in=1", "y/other=1"]);
    t.mount();
    assert_eq!(t.sketch(), ["x->y", "y/", "y/other=1"]);
    assert_eq!(t.read("x/other"), "1");
}

fn missing_in_a_middle_layer(t: &Tree) {
    t.lower(&["a/b/top=0"]);
    t.lower_at(1, &["a/other=1"]);
    t.lower_at(2, &["a/b/bottom=2"]);
    t.mount();
    assert_eq!(t.sketch(), ["a/", "a/b/", "a/b/bottom=2", "a/b/top=0", "a/other=1"]);
}

fn opaque_value_that_is_not_y(t: &Tree) {
    t.lower(&["n/a=0", "yy/a=0", "empty/a=0"]);
    for (name, value) in [("n", &b"n"[..]), ("yy", b"yy"), ("empty", b"")] {
        xattr_set(t.low(name), &t.private("opaque"), value).unwrap();
    }
    t.lower_at(1, &["n/b=1", "yy/b=1", "empty/b=1"]);
    t.mount();
    for name in ["n", "yy", "empty"] {
        assert_eq!(names(&t.at(name)), [b"a", b"b"], "{name}");
    }
}

fn attribute_whiteouts(t: &Tree) {
    t.lower(&["d/gone=", "d/kept="]);
    t.lower_at(1, &["d/gone=1", "d/low=1"]);
    if xattr_set(t.low("d/gone"), &t.private("whiteout"), b"").is_err() {
        crate::common::skip("no such attributes here");
    }
    xattr_set(t.low("d"), &t.private("opaque"), b"x").unwrap();
    t.mount();
    fails(fs::symlink_metadata(t.at("d/gone")), libc::ENOENT);
    assert_eq!(names(&t.at("d")), [&b"kept"[..], b"low"]);
}

fn read_only_without_upper(t: &Tree) {
    t.lower(&["a=A", "d/b=B", "l->a"]);
    t.lower_at(1, &["d/c=C"]);
    t.without_upper();
    t.mount();
    assert_eq!(t.sketch(), ["a=A", "d/", "d/b=B", "d/c=C", "l->a"]);
    fails(fs::write(t.at("a"), "x"), libc::EROFS);
}

fn read_only_single_operations_all_fail(t: &Tree) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    t.lower(&["a=A", "d/"]);
    t.lower_at(1, &["b=B"]);
    t.without_upper();
    t.mount();
    fails(fs::write(t.at("new"), ""), libc::EROFS);
    fails(fs::create_dir(t.at("new")), libc::EROFS);
    fails(symlink("x", t.at("new")), libc::EROFS);
    fails(fs::remove_file(t.at("a")), libc::EROFS);
    fails(fs::remove_dir(t.at("d")), libc::EROFS);
    fails(fs::rename(t.at("a"), t.at("c")), libc::EROFS);
    fails(fs::hard_link(t.at("a"), t.at("c")), libc::EROFS);
    fails(fs::set_permissions(t.at("a"), fs::Permissions::from_mode(0o600)), libc::EROFS);
    fails(crate::common::set_times(&t.at("a"), (1, 1), (1, 1)), libc::EROFS);
    fails(xattr_set(t.at("a"), "user.x", b"1"), libc::EROFS);
    fails(fs::OpenOptions::new().write(true).open(t.at("a")), libc::EROFS);
    assert_eq!(t.read("a"), "A");
}

fn lower_inside_another_lower(t: &Tree) {
    // The kernel refuses layers that overlap only where one of them is written.
    t.lower(&["a=A"]);
    t.lower_at(1, &["b=B"]);
    t.mount();
    assert_eq!(t.sketch(), ["a=A", "b=B"]);
    // A whole stack below one of its own layers' directories.
    let inner = Tree::new(t.beside("inner"), t.carrier(), t.is_real_root());
    inner.lower(&["x=1"]);
    inner.mount();
    inner.write("y", "2");
    assert_eq!(inner.sketch(), ["x=1", "y=2"]);
    inner.finish();
}

fn lower_that_contains_upper_and_mount(t: &Tree) {
    // As `overfall run` does it: the lower layer is a directory that holds upper and workdir.
    t.lowers_may_change();
    let whole = t.beside("l0");
    fs::remove_dir(&whole).unwrap();
    std::os::unix::fs::symlink(".", &whole).unwrap();
    fs::write(t.beside("seen"), "from the parent").unwrap();
    t.mount();
    assert_eq!(t.read("seen"), "from the parent");
    t.append("seen", "!");
    assert_eq!(fs::read_to_string(t.beside("seen")).unwrap(), "from the parent");
    assert_eq!(t.upper_sketch(), ["seen=from the parent!"]);
    fs::remove_file(t.at("seen")).unwrap();
    fs::create_dir(t.at("made")).unwrap();
    assert_eq!(t.upper_sketch(), ["made/", "seen!"]);
}

fn same_file_in_two_layers(t: &Tree) {
    t.lower(&["a=shared"]);
    fs::hard_link(t.low("a"), t.layer(1).join("b")).unwrap();
    t.mount();
    t.append("a", "+");
    assert_eq!((t.read("a"), t.read("b")), ("shared+".into(), "shared".into()));
}

fn names_that_are_not_utf8(t: &Tree) {
    let name = b"caf\xe9 \xff\xfe";
    fs::write(join_bytes(&t.low(""), name), "lower").unwrap();
    fs::create_dir(join_bytes(&t.low(""), b"d\x80")).unwrap();
    t.mount();
    let path = join_bytes(&t.at(""), name);
    assert_eq!(fs::read_to_string(&path).unwrap(), "lower");
    fs::write(&path, "upper").unwrap();
    let inner = join_bytes(&join_bytes(&t.at(""), b"d\x80"), b"\xc3\x28");
    fs::write(&inner, "new").unwrap();
    fs::rename(&inner, join_bytes(&t.at(""), b"\xf0")).unwrap();
    std::os::unix::fs::symlink(Path::new(&path), join_bytes(&t.at(""), b"\xf1")).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(names(&t.at("")), [&b"d\x80"[..], b"\xf0", b"\xf1"]);
    let link = fs::read_link(join_bytes(&t.at(""), b"\xf1")).unwrap();
    assert_eq!(link, path);
}

fn names_of_255_bytes(t: &Tree) {
    let (low, new) = ("l".repeat(255), "n".repeat(255));
    t.lower(&[&format!("{low}=L"), &format!("d/{low}=D")]);
    t.mount();
    assert_eq!(t.read(&low), "L");
    t.append(&low, "+");
    t.write(&new, "N");
    fs::remove_file(t.at(&format!("d/{low}"))).unwrap();
    fs::rename(t.at(&new), t.at(&format!("d/{low}"))).unwrap();
    assert_eq!(t.upper_sketch(), ["d/", &format!("d/{low}=N"), &format!("{low}=L+")]);
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at(&new)).unwrap();
    assert_eq!(t.sketch(), [format!("{low}=L+"), format!("{new}/")]);
}

fn names_that_begin_with_wh(t: &Tree) {
    t.lower(&[".wh.a=marked", "a=A", "d/.wh..wh..opq=", "d/x=X"]);
    t.lower_at(1, &["d/deep=D"]);
    t.mount();
    assert_eq!(
        t.sketch(),
        [".wh.a=marked", "a=A", "d/", "d/.wh..wh..opq=", "d/deep=D", "d/x=X"]
    );
    t.write(".wh.b", "B");
    fs::create_dir(t.at(".wh.dir")).unwrap();
    fs::rename(t.at("a"), t.at(".wh.c")).unwrap();
    fs::remove_file(t.at(".wh.a")).unwrap();
    t.remount();
    assert_eq!(t.sketch()[..3], [".wh.b=B", ".wh.c=A", ".wh.dir/"]);
    assert_eq!(t.upper_sketch(), [".wh.a!", ".wh.b=B", ".wh.c=A", ".wh.dir/", "a!"]);
}

fn names_with_odd_characters(t: &Tree) {
    let odd: &[&[u8]] =
        &[b" ", b"a\nb", b"\x01", b"-rf", b"a,b:c\\d", b"#1", b"...", b"*", b"\"'", b"work", b"index"];
    for name in odd {
        fs::write(join_bytes(&t.low(""), name), "low").unwrap();
    }
    t.mount();
    for name in odd {
        let path = join_bytes(&t.at(""), name);
        assert_eq!(fs::read_to_string(&path).unwrap(), "low");
        fs::write(&path, "up").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "up");
    }
    assert_eq!(names(&t.at("")).len(), odd.len());
    for name in odd {
        fs::remove_file(join_bytes(&t.at(""), name)).unwrap();
    }
    assert_eq!(names(&t.at("")), [b""; 0]);
    assert!(t.upper_sketch().iter().all(|line| line.ends_with('!')));
}

fn deep_tree(t: &Tree) {
    let deep = vec!["d"; 60].join("/");
    t.lower(&[&format!("{deep}/f=F")]);
    t.mount();
    t.append(&format!("{deep}/f"), "+");
    assert_eq!(t.read(&format!("{deep}/f")), "F+");
    assert_eq!(fs::read_to_string(t.upper(&deep).join("f")).unwrap(), "F+");
    fs::remove_dir_all(t.at("d")).unwrap();
    assert_eq!(t.upper_sketch(), ["d!"]);
}

/// Directories whose path together is longer than PATH_MAX, reached step by step.
fn names_longer_than_a_path_together(t: &Tree) {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let name = "x".repeat(250);
    t.mount();
    let mode = Mode::from_raw_mode(0o755);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = std::os::fd::OwnedFd::from(fs::File::open(t.at("")).unwrap());
    for _ in 0..25 {
        mkdirat(&dir, &*name, mode).unwrap();
        dir = openat(&dir, &*name, flags, Mode::empty()).unwrap();
    }
    let file = openat(&dir, "f", OFlags::CREATE | OFlags::WRONLY, mode).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    drop((file, dir));
    let status = std::process::Command::new("rm").arg("-r").arg(t.at(&name)).status().unwrap();
    assert!(status.success());
    assert_eq!(t.upper_sketch(), [""; 0]);
}

fn lower_mode_is_shown_of_the_topmost(t: &Tree) {
    t.lower(&["d/"]);
    t.lower_at(1, &["d/"]);
    crate::common::chmod(t.low("d"), 0o750);
    crate::common::chmod(t.layer(1).join("d"), 0o777);
    t.mount();
    assert_eq!(stat(t.at("d")).mode() & 0o7777, 0o750);
    t.write("d/f", "");
    assert_eq!(stat(t.upper("d")).mode() & 0o7777, 0o750);
}

fn an_upper_used_with_other_lowers(t: &Tree) {
    t.lower(&["a=A", "d/b=B", "d/c=C"]);
    t.lower_at(1, &["e/f=F"]);
    t.mount();
    t.append("a", "+");
    fs::remove_file(t.at("d/b")).unwrap();
    t.umount();
    // Another layer on top of the lower ones.
    fs::rename(t.layer(1), t.beside("spare")).unwrap();
    fs::create_dir(t.layer(1)).unwrap();
    t.lowers_may_change();
    fs::write(t.layer(1).join("g"), "G").unwrap();
    t.mount();
    assert_eq!(t.sketch(), ["a=A+", "d/", "d/c=C", "g=G"]);
    t.umount();
    fs::remove_dir_all(t.layer(1)).unwrap();
    fs::rename(t.beside("spare"), t.layer(1)).unwrap();
    t.mount();
}

fn symlink_as_layer(t: &Tree) {
    t.lower(&["a=A"]);
    t.layer(1);
    fs::remove_dir(t.layer(1)).unwrap();
    fs::create_dir(t.beside("elsewhere")).unwrap();
    fs::write(t.beside("elsewhere/b"), "B").unwrap();
    std::os::unix::fs::symlink("elsewhere", t.layer(1)).unwrap();
    t.mount();
    assert_eq!(t.sketch(), ["a=A", "b=B"]);
}

fn origin_of_another_stack_is_ignored(t: &Tree) {
    t.lower(&["f=lower"]);
    t.upper_has(&["f=upper", "g=G", "d/x=X"]);
    let garbage: &[&[u8]] = &[b"", b"\0\xfb\x1d\0\x01garbage of some length that is no handle", b"?"];
    for (name, value) in ["f", "g", "d"].iter().zip(garbage) {
        xattr_set(t.upper(name), &t.private("origin"), value).unwrap();
    }
    xattr_set(t.upper("d"), &t.private("impure"), b"y").unwrap();
    xattr_set(t.upper(""), &t.private("impure"), b"y").unwrap();
    t.mount();
    assert_eq!(t.sketch(), ["d/", "d/x=X", "f=upper", "g=G"]);
    open_rw(t.at("g")).set_len(0).unwrap();
    fs::remove_file(t.at("g")).unwrap();
    assert!(!t.has("g"));
}

fn foreign_overlay_attributes_in_lower(t: &Tree) {
    t.lower(&["f=F", "d/x=X"]);
    for suffix in ["origin", "impure", "nlink", "upper", "uuid", "protattr"] {
        xattr_set(t.low("d"), &t.private(suffix), b"y").unwrap();
    }
    t.mount();
    assert_eq!(crate::common::xattr_names(t.at("d")), [b""; 0]);
    t.append("d/x", "+");
    let copied = crate::common::xattr_names(t.upper("d"));
    for suffix in ["nlink", "upper", "uuid", "protattr"] {
        assert!(!copied.contains(&t.private(suffix).into_bytes()), "{suffix}");
    }
}
