//! Metadata copies that are made: attributes first, the data with the first write.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

use super::attribute;
use crate::common::{Tree, chmod, open_rw, set_times, stat, xattr_get, xattr_set};

pub(super) fn attributes_copy_no_data(t: &Tree) {
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

pub(super) fn first_write_completes_a_metadata_copy(t: &Tree) {
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

pub(super) fn truncation_completes_a_metadata_copy(t: &Tree) {
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

pub(super) fn completed_file_keeps_its_capability(t: &Tree) {
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

pub(super) fn descriptors_follow_the_completion(t: &Tree) {
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

pub(super) fn unlinked_metadata_copy(t: &Tree) {
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
