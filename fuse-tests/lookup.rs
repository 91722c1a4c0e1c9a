//! Looking names up: which layer answers, and what stays hidden.

use std::fs;

use crate::common::{Tree, cases, fails, stat};

cases! {
    upper_hides_lower,
    directories_merge,
    missing_name_and_name_below_a_file,
    name_too_long,
    made_after_a_failed_lookup,
    removed_after_a_lookup,
    dot_dot_leads_back,
    symlinks_are_not_followed_out_of_the_layer,
    symlink_in_the_middle_of_a_path,
    trailing_slash_on_a_file,
    private_attributes_do_not_show,
    search_needs_execute_permission: crate::common::Limit::Root("needs a second uid"),
}

fn upper_hides_lower(t: &Tree) {
    t.lower(&["a=lower", "b=lower"]);
    t.upper_has(&["a=upper"]);
    t.mount();
    assert_eq!(t.sketch(), ["a=upper", "b=lower"]);
}

fn directories_merge(t: &Tree) {
    t.lower(&["d/x=1", "d/sub/low=1"]);
    t.lower_at(1, &["d/y=2", "d/x=hidden"]);
    t.upper_has(&["d/z=3", "d/sub/up=3"]);
    t.mount();
    assert_eq!(
        t.sketch(),
        ["d/", "d/sub/", "d/sub/low=1", "d/sub/up=3", "d/x=1", "d/y=2", "d/z=3"]
    );
}

fn missing_name_and_name_below_a_file(t: &Tree) {
    t.lower(&["file=x"]);
    t.mount();
    fails(fs::symlink_metadata(t.at("none")), libc::ENOENT);
    fails(fs::symlink_metadata(t.at("none/deeper")), libc::ENOENT);
    fails(fs::symlink_metadata(t.at("file/deeper")), libc::ENOTDIR);
    fails(fs::read_dir(t.at("file")), libc::ENOTDIR);
}

fn name_too_long(t: &Tree) {
    t.mount();
    fails(fs::symlink_metadata(t.at(&"n".repeat(256))), libc::ENAMETOOLONG);
    fails(fs::write(t.at(&"n".repeat(256)), ""), libc::ENAMETOOLONG);
    t.write(&"n".repeat(255), "long");
    assert_eq!(t.read(&"n".repeat(255)), "long");
}

fn made_after_a_failed_lookup(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    for name in ["f", "d/f"] {
        assert!(!t.has(name));
        t.write(name, "there");
        assert_eq!(t.read(name), "there");
    }
    assert!(!t.has("linked"));
    fs::hard_link(t.at("f"), t.at("linked")).unwrap();
    assert!(t.has("linked"));
    assert!(!t.has("moved"));
    fs::rename(t.at("f"), t.at("moved")).unwrap();
    assert!(t.has("moved") && !t.has("f"));
}

fn removed_after_a_lookup(t: &Tree) {
    t.lower(&["a=A", "d/b=B"]);
    t.mount();
    for name in ["a", "d/b"] {
        assert!(t.has(name));
        fs::remove_file(t.at(name)).unwrap();
        assert!(!t.has(name));
    }
    fs::remove_dir(t.at("d")).unwrap();
    assert!(!t.has("d"));
}

fn dot_dot_leads_back(t: &Tree) {
    t.lower(&["a/b/c=C", "top=T"]);
    t.mount();
    assert_eq!(t.read("a/b/../../top"), "T");
    assert_eq!(t.read("a/./b/./c"), "C");
}

fn symlinks_are_not_followed_out_of_the_layer(t: &Tree) {
    fs::write(t.beside("secret"), "outside").unwrap();
    fs::create_dir(t.beside("outside")).unwrap();
    fs::write(t.beside("outside/f"), "outside").unwrap();
    // In one layer `d` is a link that leads out, in the other it's a directory.
    t.lower(&["d->../outside", "e/x=top"]);
    t.lower_at(1, &["d/f=inside", "e->../outside"]);
    t.mount();
    assert_eq!(fs::read_link(t.at("d")).unwrap().to_str(), Some("../outside"));
    assert_eq!(t.sketch(), ["d->../outside", "e/", "e/x=top"]);
    fails(fs::read(t.at("e/f")), libc::ENOENT);
}

fn symlink_in_the_middle_of_a_path(t: &Tree) {
    t.lower(&["real/f=F", "link->real", "up->real/f"]);
    t.mount();
    assert_eq!(t.read("link/f"), "F");
    t.append("link/f", "+");
    assert_eq!(t.read("up"), "F+");
    assert_eq!(t.upper_sketch(), ["real/", "real/f=F+"]);
}

fn trailing_slash_on_a_file(t: &Tree) {
    t.lower(&["f=F", "d/"]);
    t.mount();
    fails(fs::metadata(t.at("f/")), libc::ENOTDIR);
    assert!(stat(t.at("d/")).is_dir());
}

fn private_attributes_do_not_show(t: &Tree) {
    t.lower(&["d/low=1", "f=F"]);
    t.upper_has(&["d/!", "d/up=1"]);
    t.mount();
    t.append("f", "+");
    for name in ["", "d", "f"] {
        let names = crate::common::xattr_names(t.at(name));
        assert_eq!(names, [b""; 0], "on {name:?}");
    }
}

fn search_needs_execute_permission(t: &Tree) {
    t.lower(&["open/f=F", "shut/f=F"]);
    fs::set_permissions(t.low("shut"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    t.mount();
    let (open, shut) = (t.at("open/f"), t.at("shut/f"));
    crate::common::as_user(1234, 1234, || {
        assert!(fs::metadata(&open).is_ok());
        fails(fs::metadata(&shut), libc::EACCES);
    });
}
