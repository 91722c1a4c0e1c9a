//! A tree with something of everything, and trees as values.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::bench::Place;
use crate::common::{self, xattr_set};

/// A tree with something of everything.
pub(crate) fn plant(place: &Place, name: &str) -> PathBuf {
    let top = place.make(name);
    let at = |name: &str| top.join(name);
    fs::create_dir_all(at("dir/deep/er")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::write(at("file"), "hello\n").unwrap();
    fs::write(at("dir/deep/er/file"), vec![7; 100_000]).unwrap();
    fs::write(at("closed/in"), "in\n").unwrap();
    fs::write(at("suid"), "#!\n").unwrap();
    fs::write(at("dir/one"), "linked\n").unwrap();
    fs::hard_link(at("dir/one"), at("dir/two")).unwrap();
    symlink("dir/deep", at("link")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    fs::write(top.join(odd_name()), "odd\n").unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"middle", 4 << 20).unwrap();
    sparse.set_len(8 << 20).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o620)).unwrap();
    if place.has_ids() {
        for (name, uid, gid) in [
            ("dir", 11, 12),
            ("file", 33, 0),
            ("suid", 0, 44),
            ("empty", 5, 5),
        ] {
            chown(at(name), Some(uid), Some(gid)).unwrap();
        }
        std::os::unix::fs::lchown(at("link"), Some(77), Some(78)).unwrap();
    }
    for (name, mode) in [
        ("file", 0o640),
        ("suid", 0o4755),
        ("dir", 0o2775),
        ("closed", 0o500),
        ("closed/in", 0o400),
        ("empty", 0o1777),
        ("", 0o751),
    ] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    xattr_set(at("file"), "user.overfall", b"value").unwrap();
    xattr_set(at("dir"), "user.dir", b"d").unwrap();
    xattr_set(at(""), "user.top", b"t").unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    for name in ["file", "dir/one", "dir", "empty", ""] {
        File::open(at(name)).unwrap().set_modified(old).unwrap();
    }
    top
}

pub(crate) fn odd_name() -> &'static std::ffi::OsStr {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(b"odd \xff\n name")
}

/// The tree as a value. A merged directory's link count says nothing.
pub(crate) fn look(top: &Path) -> common::Snapshot {
    common::Snapshot::of(top).adjust(|_, node| {
        if node.mode & 0o170_000 == 0o040_000 {
            node.nlink = 1;
        }
        true
    })
}
