//! Operations that are tried where calls fail: each changes the layers in another way.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;

use rustix::fs::FileType;

use crate::common::dice::bytes;
use crate::common::{chmod, is_real_root, mknod, set_times, xattr_set};

/// The operation that may fail although it has happened: the copy-up itself was the cut, and what
/// fails is what comes after it.
pub(crate) const CUT: &str = "truncate";

/// An operation in a directory of its own, which the lower layer has as [`plant`] makes it.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Done through the mount before anything fails.
    pub(crate) before: fn(&Path),
    pub(crate) run: fn(&Path) -> io::Result<()>,
}

fn nothing(_: &Path) {}

/// One that isn't the owner of what is planted, where there is another.
fn another_owner() -> u32 {
    if is_real_root() { 7 } else { 0 }
}

fn gone(dir: &Path) {
    fs::remove_file(dir.join("f")).unwrap();
}

/// A file gets its copy.
pub(crate) const COPY_UP_OF_A_FILE: &[Operation] = &[
    Operation {
        name: "append",
        before: nothing,
        run: append,
    },
    Operation {
        name: "chmod",
        before: nothing,
        run: |d| change_mode(&d.join("f")),
    },
    Operation {
        name: "xattr",
        before: nothing,
        run: |d| xattr_set(d.join("f"), "user.mark", b"x"),
    },
];

/// A file gets a copy that needs other calls.
pub(crate) const COPY_UP_WITHOUT_DATA: &[Operation] = &[
    Operation {
        name: CUT,
        before: nothing,
        run: |d| {
            OpenOptions::new()
                .write(true)
                .open(d.join("f"))?
                .set_len(10)
        },
    },
    Operation {
        name: "chown",
        before: nothing,
        run: |d| lchown(d.join("f"), Some(another_owner()), Some(0)),
    },
];

/// What isn't a file gets its copy.
pub(crate) const COPY_UP_OF_OTHER_KINDS: &[Operation] = &[
    Operation {
        name: "link",
        before: nothing,
        run: |d| set_times(&d.join("l"), (5, 0), (6, 0)),
    },
    Operation {
        name: "fifo",
        before: nothing,
        run: |d| change_mode(&d.join("p")),
    },
    Operation {
        name: "dir",
        before: nothing,
        run: |d| change_mode(&d.join("d")),
    },
];

/// New names, over nothing and over whiteouts.
pub(crate) const NAMES_MADE: &[Operation] = &[
    Operation {
        name: "create",
        before: nothing,
        run: |d| create(&d.join("n")),
    },
    Operation {
        name: "create_over",
        before: gone,
        run: |d| create(&d.join("f")),
    },
    Operation {
        name: "mkdir",
        before: nothing,
        run: |d| fs::create_dir(d.join("n")),
    },
    Operation {
        name: "mkdir_over",
        before: gone,
        run: |d| fs::create_dir(d.join("f")),
    },
    Operation {
        name: "symlink_over",
        before: gone,
        run: |d| symlink("there", d.join("f")),
    },
    Operation {
        name: "fifo_over",
        before: gone,
        run: |d| mknod(&d.join("f"), FileType::Fifo, 0o644, (0, 0)),
    },
    Operation {
        name: "hard_link",
        before: nothing,
        run: |d| fs::hard_link(d.join("f"), d.join("n")),
    },
    Operation {
        name: "hard_link_over",
        before: gone,
        run: |d| fs::hard_link(d.join("g"), d.join("f")),
    },
];

/// Names go.
pub(crate) const NAMES_REMOVED: &[Operation] = &[
    Operation {
        name: "unlink",
        before: nothing,
        run: |d| fs::remove_file(d.join("f")),
    },
    Operation {
        name: "unlink_copied",
        before: |d| append(d).unwrap(),
        run: |d| fs::remove_file(d.join("f")),
    },
    Operation {
        name: "unlink_new",
        before: |d| create(&d.join("n")).unwrap(),
        run: |d| fs::remove_file(d.join("n")),
    },
    Operation {
        name: "rmdir",
        before: nothing,
        run: |d| fs::remove_dir(d.join("e")),
    },
    Operation {
        name: "rmdir_with_whiteouts",
        before: |d| fs::remove_file(d.join("d/a")).unwrap(),
        run: |d| fs::remove_dir(d.join("d")),
    },
];

/// Names move, over nothing, over others and over whiteouts.
pub(crate) const NAMES_MOVED: &[Operation] = &[
    Operation {
        name: "rename",
        before: nothing,
        run: |d| fs::rename(d.join("f"), d.join("n")),
    },
    Operation {
        name: "rename_over",
        before: nothing,
        run: |d| fs::rename(d.join("f"), d.join("g")),
    },
    Operation {
        name: "rename_over_whiteout",
        before: |d| fs::remove_file(d.join("g")).unwrap(),
        run: |d| fs::rename(d.join("f"), d.join("g")),
    },
    Operation {
        name: "rename_dir_over_whiteout",
        before: |d| {
            fs::create_dir(d.join("n")).unwrap();
            create(&d.join("n/x")).unwrap();
            fs::remove_file(d.join("g")).unwrap();
        },
        run: |d| fs::rename(d.join("n"), d.join("g")),
    },
    Operation {
        name: "rename_dir_over_emptied",
        before: |d| {
            fs::create_dir(d.join("n")).unwrap();
            fs::remove_file(d.join("d/a")).unwrap();
        },
        run: |d| fs::rename(d.join("n"), d.join("d")),
    },
];

/// What leads elsewhere: with `redirect_dir=on`, `metacopy=on` and `index=on`.
pub(crate) const LEADING_ELSEWHERE: &[Operation] = &[
    Operation {
        name: "complete",
        before: |d| change_mode(&d.join("f")).unwrap(),
        run: append,
    },
    Operation {
        name: "cut_metacopy",
        before: |d| change_mode(&d.join("f")).unwrap(),
        run: |d| {
            OpenOptions::new()
                .write(true)
                .open(d.join("f"))?
                .set_len(10)
        },
    },
    Operation {
        name: "rename_metacopy",
        before: |d| change_mode(&d.join("f")).unwrap(),
        run: |d| fs::rename(d.join("f"), d.join("d/n")),
    },
    Operation {
        name: "rename_lower_dir",
        before: nothing,
        run: |d| fs::rename(d.join("d"), d.join("n")),
    },
    Operation {
        name: "rename_lower_dir_over",
        before: nothing,
        run: |d| fs::rename(d.join("d"), d.join("e")),
    },
    Operation {
        name: "linked_chmod",
        before: nothing,
        run: |d| change_mode(&d.join("k")),
    },
    Operation {
        name: "linked_append",
        before: nothing,
        run: |d| append_to(&d.join("k")),
    },
    Operation {
        name: "linked_rename",
        before: nothing,
        run: |d| fs::rename(d.join("k"), d.join("n")),
    },
    Operation {
        name: "linked_unlink",
        before: |d| append_to(&d.join("k")).unwrap(),
        run: |d| fs::remove_file(d.join("k")),
    },
    Operation {
        name: "linked_link",
        before: nothing,
        run: |d| fs::hard_link(d.join("k"), d.join("n")),
    },
];

pub(crate) fn append(dir: &Path) -> io::Result<()> {
    append_to(&dir.join("f"))
}

fn append_to(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b"+")
}

fn create(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map(drop)
}

fn change_mode(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o701))
}

/// The objects that the operations work on.
pub(crate) fn plant(dir: &Path) {
    fs::create_dir_all(dir.join("d")).unwrap();
    fs::create_dir(dir.join("e")).unwrap();
    fs::write(dir.join("f"), bytes(1, 20_000)).unwrap();
    xattr_set(dir.join("f"), "user.mark", b"lower").unwrap();
    fs::write(dir.join("g"), "g").unwrap();
    fs::write(dir.join("k"), bytes(2, 5_000)).unwrap();
    fs::hard_link(dir.join("k"), dir.join("k2")).unwrap();
    fs::write(dir.join("d/a"), "a").unwrap();
    symlink("target", dir.join("l")).unwrap();
    mknod(&dir.join("p"), FileType::Fifo, 0o644, (0, 0)).unwrap();
    chmod(dir.join("e"), 0o750);
}
