//! Layers whose attributes lead elsewhere: redirects, metadata copies, layers that only hold data.
//! Read as the kernel reads them, and written so that it reads them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::RenameFlags;

use crate::common::{
    Carrier, Limit, Node, Snapshot, Tree, cases, chmod, fails, open_rw, rename2, set_times,
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
    options_that_need_root_are_refused,
}

fn redirect(path: &Path, to: &str) {
    xattr_set(path, "trusted.overlay.redirect", to.as_bytes()).unwrap();
}

fn metacopy(path: &Path, size: u64) {
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
        metacopy(&t.low(name), size);
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
    metacopy(&t.upper("top"), 4);
    metacopy(&t.low("mid"), 4);
    metacopy(&t.layer(1).join("low/mid"), 4);
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
        metacopy(&path, 4);
    }
    metacopy(&t.layer(1).join("bottomless"), 4);
    metacopy(&t.layer(1).join("bottom"), 4);
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
    metacopy(&t.low("a"), 5);
    metacopy(&t.low("b"), 6);
    metacopy(&t.low("by_name"), 6);
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
        metacopy(&t.low(name), 4);
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

fn attributes_copy_no_data(t: &Tree) {
    t.lower(&["d/"]);
    for name in ["mode", "times", "xattr", "link", "moved"] {
        fs::write(t.low(name), vec![7; 1 << 20]).unwrap();
    }
    t.option("metacopy=on");
    t.mount();
    chmod(t.at("mode"), 0o600);
    set_times(&t.at("times"), (1, 2), (3, 4)).unwrap();
    xattr_set(t.at("xattr"), "user.x", b"X").unwrap();
    fs::hard_link(t.at("link"), t.at("d/link2")).unwrap();
    fs::rename(t.at("moved"), t.at("d/moved")).unwrap();
    fs::rename(t.at("xattr"), t.at("xattr2")).unwrap();
    let all = [
        ("mode", None),
        ("times", None),
        ("xattr2", Some("xattr")),
        ("link", Some("/link")),
        ("d/link2", Some("/link")),
        ("d/moved", Some("/moved")),
    ];
    for (name, to) in all {
        assert_eq!(attribute(t, name, "metacopy").as_deref(), Some(""), "{name}");
        assert_eq!(attribute(t, name, "redirect").as_deref(), to, "{name}");
        let meta = stat(t.upper(name));
        assert!(meta.len() == 1 << 20 && meta.blocks() < 64, "{name}: {} blocks", meta.blocks());
        assert!(stat(t.at(name)).blocks() >= 2048, "{name}");
    }
    let check = || {
        for (name, _) in all {
            assert!(fs::read(t.at(name)).unwrap().iter().all(|byte| *byte == 7), "{name}");
        }
    };
    check();
    t.remount();
    check();
}

fn first_write_completes_a_metadata_copy(t: &Tree) {
    t.lower(&["f=0123456789", "g=G"]);
    fs::hard_link(t.low("g"), t.low("g2")).unwrap();
    t.option("metacopy=on");
    t.mount();
    chmod(t.at("f"), 0o600);
    set_times(&t.at("f"), (1, 2), (3, 4)).unwrap();
    let mut file = open_rw(t.at("f"));
    file.write_all(b"ABC").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(attribute(t, "f", "metacopy"), None);
    assert_eq!(fs::read_to_string(t.upper("f")).unwrap(), "ABC3456789");
    assert_eq!(stat(t.at("f")).mode() & 0o7777, 0o600);
    // A lower hard link is broken as ever.
    chmod(t.at("g"), 0o600);
    t.append("g", "+");
    t.remount();
    assert_eq!(t.sketch(), ["f=ABC3456789", "g2=G", "g=G+"]);
}

fn truncation_completes_a_metadata_copy(t: &Tree) {
    t.lower(&["short=0123456789", "none=0123456789", "long=0123456789"]);
    t.option("metacopy=on");
    t.mount();
    for name in ["short", "none", "long"] {
        chmod(t.at(name), 0o600);
    }
    open_rw(t.at("short")).set_len(3).unwrap();
    File::create(t.at("none")).unwrap();
    open_rw(t.at("long")).set_len(12).unwrap();
    for name in ["short", "none", "long"] {
        assert_eq!(attribute(t, name, "metacopy"), None, "{name}");
    }
    t.remount();
    assert_eq!(t.sketch(), ["long=0123456789\0\0", "none=", "short=012"]);
}

fn completed_file_keeps_its_capability(t: &Tree) {
    t.lower(&["f=0123456789"]);
    // cap_net_raw+ep
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr_set(t.low("f"), "security.capability", &capability).unwrap();
    t.option("metacopy=on");
    t.mount();
    chmod(t.at("f"), 0o700);
    assert_eq!(attribute(t, "f", "metacopy").as_deref(), Some(""));
    let read = || xattr_get(t.at("f"), "security.capability");
    assert_eq!(read().as_deref(), Some(&capability[..]));
    t.append("f", "+");
    assert_eq!(read(), None, "a write takes it off");
}

fn descriptors_follow_the_completion(t: &Tree) {
    t.lower(&["f=old data"]);
    t.option("metacopy=on");
    t.mount();
    let mut before = File::open(t.at("f")).unwrap();
    let mut text = String::new();
    before.read_to_string(&mut text).unwrap();
    chmod(t.at("f"), 0o600);
    let mut between = File::open(t.at("f")).unwrap();
    let mut file = open_rw(t.at("f"));
    file.write_all(b"NEW").unwrap();
    file.sync_all().unwrap();
    for file in [&mut before, &mut between] {
        use std::io::Seek;
        file.rewind().unwrap();
        text.clear();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "NEW data");
    }
}

fn unlinked_metadata_copy(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.option("metacopy=on");
    t.mount();
    chmod(t.at("f"), 0o600);
    let mut file = open_rw(t.at("f"));
    fs::remove_file(t.at("f")).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0123456789");
    file.write_all(b"+").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 11);
    drop(file);
    assert!(!t.has("f"));
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

fn level(path: &Path, node: &mut Node) -> bool {
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

fn upper_is_what_the_kernel_leaves(t: &Tree) {
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

fn upper_changes_hands(t: &Tree) {
    for (index, (option, name, script)) in SCRIPTS.iter().enumerate() {
        let tree = Tree::new(t.beside(&format!("case{index}")), t.carrier(), true);
        plan(&tree);
        tree.option(option);
        tree.mount();
        script(&tree);
        let before = Snapshot::of(&tree.at(""));
        tree.umount();
        tree.carry_by(other(t.carrier()));
        if let Err(why) = tree.try_mount() {
            skip(format!("the other side can't be mounted here: {why}"));
        }
        let label = format!("before, {option}: {name}");
        before.assert_same(&label, &Snapshot::of(&tree.at("")), "the other side");
        // What the one left unfinished, the other finishes.
        for file in ["a", "m2", "e/a", "b3"] {
            if tree.at(file).is_file() {
                tree.append(file, "!");
            }
        }
        let before = Snapshot::of(&tree.at(""));
        tree.umount();
        tree.carry_by(t.carrier());
        tree.mount();
        before.assert_same(&label, &Snapshot::of(&tree.at("")), "back again");
        tree.finish();
    }
}

fn options_that_need_root_are_refused(t: &Tree) {
    t.lower(&["f="]);
    t.use_userxattr();
    for option in ["redirect_dir=on", "redirect_dir=follow", "metacopy=on"] {
        let tree = Tree::new(t.beside(option), t.carrier(), t.is_real_root());
        tree.use_userxattr();
        tree.option(option);
        assert!(tree.try_mount().is_err(), "{option}");
    }
    t.mount();
    let _ = xattr_remove(t.at("f"), "user.none");
}
