//! Layers whose attributes lead elsewhere: redirects, metadata copies, layers that only hold data.
//! Read as the kernel reads them, and written so that it reads them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::RenameFlags;

mod index;
mod metacopy;
mod upper;

use index::{
    index_belongs_to_its_layers, index_changes_hands, index_shows_what_the_kernel_shows,
    lower_links_stay_links, links_are_counted, links_of_other_kinds, stale_entries_are_removed,
};
use metacopy::{attributes_copy_no_data, first_write_completes_a_metadata_copy, truncation_completes_a_metadata_copy, completed_file_keeps_its_capability, descriptors_follow_the_completion, unlinked_metadata_copy};
use upper::{upper_changes_hands, upper_is_what_the_kernel_leaves};

use crate::common::{
    Carrier, Limit, Tree, cases, chmod, fails, rename2, set_times,
    skip, stat, xattr_get, xattr_remove, xattr_set,
};

const TRUSTED: Limit = Limit::Root("the attributes that lead elsewhere need the machine's root");

cases! {
    redirect_to_a_name: TRUSTED,
    redirect_to_a_path: TRUSTED,
    redirects_on_the_way_count: TRUSTED,
    redirect_behind_an_opaque_directory: TRUSTED,
    redirect_from_a_directory_without_a_lower_part: TRUSTED,
    malformed_redirects: TRUSTED,
    redirects_that_are_not_followed: TRUSTED,
    metadata_copy_shows_the_lower_data: TRUSTED,
    metadata_copy_over_several_layers: TRUSTED,
    metadata_copy_without_data: TRUSTED,
    malformed_metadata_copies: TRUSTED,
    data_only_layers: TRUSTED,
    data_only_layers_without_metacopy,
    data_that_is_missing: TRUSTED,
    data_only_layer_is_not_a_lower_one,
    renamed_directory_keeps_its_lower_part: TRUSTED,
    path_that_is_too_long_for_a_redirect: TRUSTED,
    attributes_copy_no_data: TRUSTED,
    first_write_completes_a_metadata_copy: TRUSTED,
    truncation_completes_a_metadata_copy: TRUSTED,
    completed_file_keeps_its_capability: TRUSTED,
    descriptors_follow_the_completion: TRUSTED,
    unlinked_metadata_copy: TRUSTED,
    directory_numbers_agree: TRUSTED,
    upper_is_what_the_kernel_leaves: Limit::Fuse("it is the kernel that is compared with"),
    upper_changes_hands: TRUSTED,
    lower_links_stay_links: TRUSTED,
    links_are_counted: TRUSTED,
    links_of_other_kinds: TRUSTED,
    index_belongs_to_its_layers: TRUSTED,
    stale_entries_are_removed: TRUSTED,
    index_shows_what_the_kernel_shows: Limit::Fuse("it is the kernel that is compared with"),
    index_changes_hands: TRUSTED,
    options_that_need_root_are_refused,
    options_that_are_taken,
}

fn redirect(path: &Path, to: &str) {
    xattr_set(path, "trusted.overlay.redirect", to.as_bytes()).unwrap();
}

fn plant_metacopy(path: &Path, size: u64) {
    File::options().create(true).append(true).open(path).unwrap().set_len(size).unwrap();
    xattr_set(path, "trusted.overlay.metacopy", b"").unwrap();
}

fn list(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("listing {}: {e}", dir.display()));
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn attribute(t: &Tree, path: &str, name: &str) -> Option<String> {
    let value = xattr_get(t.upper(path), &format!("trusted.overlay.{name}"));
    value.map(|value| String::from_utf8(value).unwrap())
}

fn redirect_to_a_name(t: &Tree) {
    t.lower(&["new/top=1"]);
    t.lower_at(1, &["old/f=F", "old/top=hidden", "new/not=this"]);
    redirect(&t.low("new"), "old");
    t.option("redirect_dir=follow");
    t.mount();
    assert_eq!(t.sketch(), ["new/", "new/f=F", "new/top=1", "old/", "old/f=F", "old/top=hidden"]);
    assert_eq!(stat(t.at("new")).nlink(), 1);
    t.append("new/f", "+");
    assert_eq!(fs::read_to_string(t.upper("new/f")).unwrap(), "F+");
    if t.carrier() == Carrier::Fuse {
        // A lower file in two places is one inode to the kernel, which gets it wrong (ESTALE).
        assert_eq!(t.read("old/f"), "F");
        t.append("old/f", "-");
        assert_eq!((t.read("old/f"), t.read("new/f")), ("F-".into(), "F+".into()));
    }
}

fn redirect_to_a_path(t: &Tree) {
    t.upper_has(&["d/e/u=U"]);
    t.lower(&["a/"]);
    t.lower_at(1, &["a/b/c/f=F", "d/e/hidden=1"]);
    redirect(&t.upper("d/e"), "/a/b/c");
    t.option("redirect_dir=follow");
    t.mount();
    assert_eq!(list(&t.at("d/e")), ["f", "u"]);
    fs::remove_file(t.at("d/e/f")).unwrap();
    assert_eq!(list(&t.at("d/e")), ["u"]);
    t.remount();
    assert_eq!(list(&t.at("d/e")), ["u"]);
    assert!(t.carrier() == Carrier::Kernel || t.has("a/b/c/f"));
}

fn redirects_on_the_way_count(t: &Tree) {
    // "new" was "mid" below, and its "x" was moved to "y" when it was there.
    t.lower(&["new/y/0="]);
    t.lower_at(1, &["mid/x/1=", "mid/y/not="]);
    t.lower_at(2, &["old/z/2=", "mid/z/not="]);
    redirect(&t.low("new"), "mid");
    redirect(&t.low("new/y"), "/mid/x");
    redirect(&t.layer(1).join("mid"), "/old");
    redirect(&t.layer(1).join("mid/x"), "z");
    t.option("redirect_dir=follow");
    t.mount();
    assert_eq!(list(&t.at("new/y")), ["0", "1", "2"]);
    assert_eq!(list(&t.at("new")), ["x", "y", "z"]);
}

fn redirect_behind_an_opaque_directory(t: &Tree) {
    t.lower(&["top/0="]);
    t.lower_at(1, &["a/!", "a/b/1="]);
    t.lower_at(2, &["c/2=", "a/b/not="]);
    redirect(&t.low("top"), "/a/b");
    redirect(&t.layer(1).join("a/b"), "/c");
    t.option("redirect_dir=follow");
    t.mount();
    assert_eq!(list(&t.at("top")), ["0", "1", "2"]);
    assert_eq!(list(&t.at("a/b")), ["1", "2"]);
}

fn redirect_from_a_directory_without_a_lower_part(t: &Tree) {
    t.upper_has(&["pure/in/u="]);
    t.lower(&["d/f="]);
    redirect(&t.upper("pure/in"), "/d");
    t.option("redirect_dir=on");
    t.mount();
    assert_eq!(list(&t.at("pure/in")), ["f", "u"]);
}

fn malformed_redirects(t: &Tree) {
    let long = "x".repeat(300);
    let slashed = format!("/{long}");
    t.lower_at(1, &["old/f="]);
    let values: &[(&[u8], i32)] = &[
        (b"", libc::EINVAL),
        (b"/", libc::EINVAL),
        (b"//", libc::EINVAL),
        (b"/a//b", libc::EINVAL),
        (b"/a/", libc::EINVAL),
        (b"a/b", libc::EINVAL),
        (b".", libc::EACCES),
        (b"..", libc::EACCES),
        (b"/.", libc::EACCES),
        (b"/../x", libc::EACCES),
        (b"\0", libc::EACCES),
        (b"old\0x", 0),
        (long.as_bytes(), 0),
        (slashed.as_bytes(), 0),
        (b"/none/at/all", 0),
    ];
    for (index, (value, _)) in values.iter().enumerate() {
        let dir = t.low(&index.to_string());
        fs::create_dir(&dir).unwrap();
        xattr_set(dir, "trusted.overlay.redirect", value).unwrap();
    }
    t.option("redirect_dir=follow");
    t.mount();
    for (index, (value, errno)) in values.iter().enumerate() {
        let outcome = fs::metadata(t.at(&index.to_string()));
        let got = outcome.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
        assert_eq!(got, *errno, "{:?}", value.escape_ascii().to_string());
    }
}

fn redirects_that_are_not_followed(t: &Tree) {
    t.lower(&["new/", "bad/", "lone/", "last/"]);
    t.lower_at(1, &["old/f=", "last/"]);
    redirect(&t.low("new"), "old");
    redirect(&t.low("bad"), "/a//b");
    redirect(&t.low("lone"), "nowhere");
    redirect(&t.layer(1).join("last"), "old");
    t.option("redirect_dir=nofollow");
    t.mount();
    fails(fs::metadata(t.at("new")), libc::EPERM);
    fails(fs::metadata(t.at("bad")), libc::EINVAL);
    fails(fs::metadata(t.at("lone")), libc::EPERM);
    assert!(t.has("last"), "nothing is below the lowest layer");
}

fn metadata_copy_shows_the_lower_data(t: &Tree) {
    t.lower(&["moved/", "by_name=", "by_path=", "short="]);
    t.lower_at(1, &["by_name=0123456789", "d/data=DATA", "short=0123456789"]);
    File::create(t.layer(1).join("holes")).unwrap().set_len(1 << 20).unwrap();
    for (name, size) in [("by_name", 10), ("by_path", 4), ("short", 5), ("holes", 1 << 20)] {
        plant_metacopy(&t.low(name), size);
    }
    chmod(t.low("by_name"), 0o751);
    set_times(&t.low("by_name"), (1, 2), (3, 4)).unwrap();
    xattr_set(t.low("by_name"), "user.x", b"top").unwrap();
    xattr_set(t.layer(1).join("by_name"), "user.y", b"below").unwrap();
    redirect(&t.low("by_path"), "/d/data");
    t.option("metacopy=on");
    t.mount();
    assert_eq!(t.read("by_name"), "0123456789");
    assert_eq!(t.read("by_path"), "DATA");
    assert_eq!(stat(t.at("short")).len(), 5);
    let meta = stat(t.at("by_name"));
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o751, 3, 4));
    assert_eq!(meta.blocks(), stat(t.layer(1).join("by_name")).blocks());
    assert_eq!(xattr_get(t.at("by_name"), "user.x").as_deref(), Some(&b"top"[..]));
    assert_eq!(xattr_get(t.at("by_name"), "user.y"), None);
    let holes = File::open(t.at("holes")).unwrap();
    let data = rustix::fs::seek(&holes, rustix::fs::SeekFrom::Data(0));
    assert_eq!(data.unwrap_err(), rustix::io::Errno::NXIO);
}

fn metadata_copy_over_several_layers(t: &Tree) {
    t.upper_has(&["top=", "low/mid!"]);
    t.lower(&["mid="]);
    t.lower_at(1, &["low/mid="]);
    t.lower_at(2, &["low/deep=DATA", "low/mid=not", "mid=not"]);
    plant_metacopy(&t.upper("top"), 4);
    plant_metacopy(&t.low("mid"), 4);
    plant_metacopy(&t.layer(1).join("low/mid"), 4);
    redirect(&t.upper("top"), "mid");
    redirect(&t.low("mid"), "/low/mid");
    redirect(&t.layer(1).join("low/mid"), "deep");
    t.option("metacopy=on");
    t.mount();
    assert_eq!(t.read("top"), "DATA");
    fs::remove_file(t.at("top")).unwrap();
    t.remount();
    assert_eq!(t.read("mid"), "DATA");
    chmod(t.at("mid"), 0o640);
    assert!(stat(t.upper("mid")).blocks() < 16);
    assert_eq!(t.read("mid"), "DATA");
    t.append("mid", "+");
    t.remount();
    assert_eq!(t.sketch(), ["low/", "low/deep=DATA", "mid=DATA+"]);
}

fn metadata_copy_without_data(t: &Tree) {
    t.upper_has(&["alone="]);
    t.lower(&["lost=", "dir=", "bottomless="]);
    t.lower_at(1, &["dir/f=", "bottomless=X", "bottom=X"]);
    for path in [t.upper("alone"), t.low("lost"), t.low("dir"), t.low("bottomless")] {
        plant_metacopy(&path, 4);
    }
    plant_metacopy(&t.layer(1).join("bottomless"), 4);
    plant_metacopy(&t.layer(1).join("bottom"), 4);
    t.option("metacopy=on");
    t.mount();
    for name in ["alone", "lost", "dir", "bottomless", "bottom"] {
        fails(fs::metadata(t.at(name)), libc::EIO);
    }
}

fn malformed_metadata_copies(t: &Tree) {
    let values: &[(&[u8], bool)] = &[
        (b"", true),
        (&[0], false),
        (&[0, 4, 0], false),
        (&[0, 4, 0, 0], true),
        // The head is looked at only where digests are.
        (&[1, 4, 0, 0], true),
        (&[0, 5, 0, 0], true),
        (&[0, 4, 0, 0, 0, 0], true),
        (&[0; 100], true),
    ];
    for (index, (value, _)) in values.iter().enumerate() {
        let name = index.to_string();
        t.lower_at(1, &[&format!("{name}=DATA")]);
        fs::write(t.low(&name), "").unwrap();
        xattr_set(t.low(&name), "trusted.overlay.metacopy", value).unwrap();
    }
    t.option("metacopy=on");
    t.mount();
    for (index, (value, taken)) in values.iter().enumerate() {
        let outcome = fs::metadata(t.at(&index.to_string()));
        if *taken {
            assert!(outcome.is_ok(), "{value:?}: {outcome:?}");
        } else {
            fails(outcome, libc::EIO);
        }
    }
}

fn data_only_layers(t: &Tree) {
    t.lower(&["a=", "b=", "by_name="]);
    fs::create_dir_all(t.data_layer(0).join("x")).unwrap();
    fs::create_dir_all(t.data_layer(1).join("x")).unwrap();
    fs::write(t.data_layer(0).join("x/a"), "first").unwrap();
    fs::write(t.data_layer(1).join("x/a"), "not this").unwrap();
    fs::write(t.data_layer(1).join("x/b"), "second").unwrap();
    fs::write(t.data_layer(0).join("by_name"), "not this").unwrap();
    plant_metacopy(&t.low("a"), 5);
    plant_metacopy(&t.low("b"), 6);
    plant_metacopy(&t.low("by_name"), 6);
    redirect(&t.low("a"), "/x/a");
    redirect(&t.low("b"), "/x/b");
    t.option("metacopy=on");
    t.mount();
    assert_eq!(t.read("a"), "first");
    assert_eq!(t.read("b"), "second");
    fails(fs::metadata(t.at("by_name")), libc::EIO);
    chmod(t.at("a"), 0o600);
    assert_eq!(attribute(t, "a", "metacopy").as_deref(), Some(""));
    assert_eq!(t.read("a"), "first");
    t.append("a", "+");
    t.append("b", "+");
    t.remount();
    assert_eq!((t.read("a"), t.read("b")), ("first+".into(), "second+".into()));
    assert_eq!(attribute(t, "a", "metacopy"), None);
}

/// The one redirect that needs no option: from the lowest layer into the data.
fn data_only_layers_without_metacopy(t: &Tree) {
    t.lower(&["a="]);
    fs::create_dir_all(t.data_layer(0).join("x")).unwrap();
    fs::write(t.data_layer(0).join("x/a"), "DATA").unwrap();
    File::options().write(true).open(t.low("a")).unwrap().set_len(4).unwrap();
    xattr_set(t.low("a"), &t.private("metacopy"), b"").unwrap();
    xattr_set(t.low("a"), &t.private("redirect"), b"/x/a").unwrap();
    if let Err(why) = t.try_mount() {
        skip(format!("kernels before 6.16 want metacopy=on: {why}"));
    }
    assert_eq!(t.read("a"), "DATA");
    chmod(t.at("a"), 0o600);
    assert_eq!(fs::read_to_string(t.upper("a")).unwrap(), "DATA");
    assert_eq!(t.read("a"), "DATA");
}

fn data_that_is_missing(t: &Tree) {
    t.lower(&["a=", "link=", "dir="]);
    let data = t.data_layer(0);
    std::os::unix::fs::symlink("elsewhere", data.join("link")).unwrap();
    fs::write(data.join("elsewhere"), "DATA").unwrap();
    fs::create_dir(data.join("dir")).unwrap();
    for name in ["a", "link", "dir"] {
        plant_metacopy(&t.low(name), 4);
        redirect(&t.low(name), &format!("/{name}"));
    }
    t.option("metacopy=on");
    t.mount();
    for name in ["a", "link", "dir"] {
        assert_eq!(stat(t.at(name)).len(), 4);
        fails(fs::read(t.at(name)), libc::ENOENT);
        let path = std::ffi::CString::new(t.at(name).into_os_string().into_encoded_bytes()).unwrap();
        fails(rustix::fs::chmod(path.as_c_str(), rustix::fs::Mode::RUSR), libc::ENOENT);
        fails(fs::rename(t.at(name), t.at("new")), libc::ENOENT);
    }
    assert_eq!(list(&t.upper("")), [""; 0]);
}

fn data_only_layer_is_not_a_lower_one(t: &Tree) {
    t.lower(&["d/a="]);
    fs::create_dir(t.data_layer(0).join("d")).unwrap();
    fs::write(t.data_layer(0).join("d/b"), "").unwrap();
    if let Err(why) = t.try_mount() {
        skip(format!("kernels before 6.16 want metacopy=on: {why}"));
    }
    assert_eq!(t.sketch(), ["d/", "d/a="]);
    fs::remove_dir_all(t.at("d")).unwrap();
    fs::create_dir(t.at("d")).unwrap();
    assert_eq!(t.sketch(), ["d/"]);
}

fn renamed_directory_keeps_its_lower_part(t: &Tree) {
    t.lower(&["d/f=F", "d/sub/g=G", "e/h=H", "to/", "over/"]);
    t.lower_at(1, &["d/low=L"]);
    t.option("redirect_dir=on");
    t.mount();
    let number = stat(t.at("d/sub")).ino();
    fs::rename(t.at("d"), t.at("d2")).unwrap();
    assert_eq!(attribute(t, "d2", "redirect").as_deref(), Some("d"));
    fs::rename(t.at("d2/sub"), t.at("to/sub2")).unwrap();
    assert_eq!(attribute(t, "to/sub2", "redirect").as_deref(), Some("/d/sub"));
    fs::rename(t.at("d2"), t.at("to/d3")).unwrap();
    assert_eq!(attribute(t, "to/d3", "redirect").as_deref(), Some("/d"));
    fs::rename(t.at("e"), t.at("over")).unwrap();
    rename2(&t.at("over"), &t.at("to/d3"), RenameFlags::EXCHANGE).unwrap();
    t.append("over/f", "+");
    let seen = [
        "over/", "over/f=F+", "over/low=L", "to/", "to/d3/", "to/d3/h=H", "to/sub2/",
        "to/sub2/g=G",
    ];
    assert_eq!(t.sketch(), seen);
    t.remount();
    assert_eq!(t.sketch(), seen);
    assert_eq!(stat(t.at("to/sub2")).ino(), number);
    fs::create_dir(t.at("d")).unwrap();
    fs::remove_dir_all(t.at("over")).unwrap();
    fs::remove_dir_all(t.at("to/sub2")).unwrap();
    t.remount();
    assert_eq!(t.sketch(), ["d/", "to/", "to/d3/", "to/d3/h=H"]);
}

fn path_that_is_too_long_for_a_redirect(t: &Tree) {
    let part = "x".repeat(100);
    let (fits, too_long) = ("y".repeat(53), "y".repeat(54));
    for last in [&fits, &too_long] {
        fs::create_dir_all(t.low(&format!("{part}/{part}/{last}"))).unwrap();
    }
    t.option("redirect_dir=on");
    t.mount();
    fs::rename(t.at(&format!("{part}/{part}/{fits}")), t.at("short")).unwrap();
    let from = format!("{part}/{part}/{too_long}");
    fails(fs::rename(t.at(&from), t.at("long")), libc::EXDEV);
    fs::rename(t.at(&from), t.at(&format!("{part}/{part}/z"))).unwrap();
}

fn directory_numbers_agree(t: &Tree) {
    t.lower(&["d/f=", "e/sub/g=", "to/"]);
    t.option("redirect_dir=on");
    t.mount();
    fs::rename(t.at("d"), t.at("d2")).unwrap();
    fs::create_dir(t.at("new")).unwrap();
    fs::rename(t.at("e/sub"), t.at("new/sub2")).unwrap();
    t.remount();
    for dir in ["", "new", "e", "to"] {
        for (name, number, _) in crate::common::raw_dir(&t.at(dir)) {
            if name == b"." || name == b".." {
                continue;
            }
            let path = crate::common::join_bytes(&t.at(dir), &name);
            assert_eq!(number, stat(&path).ino(), "{}", path.display());
        }
    }
}

fn options_that_are_taken(t: &Tree) {
    let options = [
        "xino=on", "xino=auto", "xino=off", "fsync=strict", "uuid=on", "uuid=off", "uuid=auto",
        "uuid=null",
    ];
    for option in options {
        let tree = Tree::new(t.beside(option), t.carrier(), t.is_real_root());
        tree.lower(&["d/f=F", "g=G"]);
        tree.option(option);
        if let Err(why) = tree.try_mount() {
            // Older kernels don't know all of them.
            assert!(t.carrier() == Carrier::Kernel, "{option}: {why}");
            continue;
        }
        chmod(tree.at("d"), 0o700);
        tree.append("d/f", "+");
        let number = stat(tree.at("d/f")).ino();
        tree.remount();
        assert_eq!(tree.read("d/f"), "F+", "{option}");
        assert!(!t.is_real_root() || stat(tree.at("d/f")).ino() == number, "{option}");
        let value = |name: &str, path: &str| xattr_get(tree.upper(path), &tree.private(name));
        if option == "uuid=on" {
            assert_eq!(value("uuid", "").map(|uuid| uuid.len()), Some(16));
        }
        if option == "uuid=off" && t.is_real_root() {
            assert_eq!(value("origin", "d/f").unwrap()[5..21], [0; 16]);
        }
        tree.finish();
    }
}

/// The kernel mounts without the index where it can't have one.
const REFUSED: [&str; 4] = ["redirect_dir=on", "redirect_dir=follow", "metacopy=on", "index=on"];

fn options_that_need_root_are_refused(t: &Tree) {
    t.lower(&["f="]);
    t.use_userxattr();
    for option in REFUSED {
        let tree = Tree::new(t.beside(option), t.carrier(), t.is_real_root());
        tree.use_userxattr();
        tree.option(option);
        let mounted = tree.try_mount();
        let falls_back = option == "index=on" && t.carrier() == Carrier::Kernel;
        assert!(mounted.is_err() || falls_back, "{option}");
    }
    t.mount();
    let _ = xattr_remove(t.at("f"), "user.none");
}
