//! Layers of plain directories, and what comes out. Attributes of the overlay are `user.` ones.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lgetxattr, setxattr};

use super::*;
use crate::format::dotted;

/// Layers `0`, `1`, … (the topmost first) and a place for the result.
struct Bed {
    scratch: tempfile::TempDir,
    layers: Vec<PathBuf>,
}

impl Bed {
    fn of(layers: &[&dyn Fn(&Path)]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..layers.len())
            .map(|number| scratch.path().join(number.to_string()))
            .collect();
        for (path, make) in paths.iter().zip(layers) {
            fs::create_dir(path).unwrap();
            make(path);
        }
        fs::create_dir(scratch.path().join("dest")).unwrap();
        Self {
            scratch,
            layers: paths,
        }
    }

    fn write(&self) -> Result<Totals> {
        let dest = self.dest();
        Flatten {
            step: "flattening",
            layers: &self.layers,
            namespace: XattrNamespace::User,
            dest: &dest,
            owner: Owner::default(),
        }
        .write(&mut Meter::hidden())
    }

    fn dest(&self) -> PathBuf {
        self.scratch.path().join("dest")
    }

    /// Every path below the result.
    fn paths(&self) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, all: &mut Vec<String>) {
            let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap()).collect();
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                all.push(path.clone());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), &format!("{path}/"), all);
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.dest(), "", &mut all);
        all
    }
}

fn file(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn mark(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn layers_merge_as_an_overlay_s_do() {
    let bed = Bed::of(&[
        &|top| {
            file(top, "both/top", "top");
            file(top, "same", "top");
            file(top, "closed/top", "top");
            mark(&top.join("closed"), "user.overlay.opaque", b"y");
            file(top, "odd/top", "top");
            mark(&top.join("odd"), "user.overlay.opaque", b"z");
            file(top, "was a directory", "file");
            file(top, "was a file/top", "top");
        },
        &|middle| {
            file(middle, "both/middle", "middle");
            file(middle, "same", "middle");
            file(middle, "closed/middle", "middle");
            file(middle, "odd/middle", "middle");
            file(middle, "was a directory/in", "in");
            file(middle, "was a file", "file");
            file(middle, "ends here", "file");
        },
        &|bottom| {
            file(bottom, "both/bottom", "bottom");
            file(bottom, "was a file/bottom", "hidden by the file above");
            file(bottom, "ends here/bottom", "bottom");
        },
    ]);
    let totals = bed.write().unwrap();
    assert_eq!(
        bed.paths(),
        [
            "both",
            "both/bottom",
            "both/middle",
            "both/top",
            "closed",
            "closed/top",
            "ends here",
            "odd",
            "odd/middle",
            "odd/top",
            "same",
            "was a directory",
            "was a file",
            "was a file/top",
        ]
    );
    assert_eq!(totals.files, 14);
    assert_eq!(fs::read_to_string(bed.dest().join("same")).unwrap(), "top");
    let attribute = lgetxattr(
        bed.dest().join("closed"),
        "user.overlay.opaque",
        &mut [0; 8],
    );
    assert_eq!(attribute, Err(Errno::NODATA));
}

#[test]
fn whiteouts_as_attributes_hide_where_they_may_be() {
    let bed = Bed::of(&[
        &|top| {
            file(top, "marked/gone", "");
            file(top, "unmarked/stays", "");
            mark(&top.join("marked"), "user.overlay.opaque", b"x");
            for path in ["marked/gone", "unmarked/stays"] {
                mark(&top.join(path), "user.overlay.whiteout", b"");
            }
        },
        &|bottom| {
            file(bottom, "marked/gone", "bottom");
            file(bottom, "marked/there", "bottom");
        },
    ]);
    bed.write().unwrap();
    assert_eq!(
        bed.paths(),
        ["marked", "marked/there", "unmarked", "unmarked/stays"]
    );
}

#[test]
fn a_layer_in_the_fallback_form_hides_by_names() {
    let long = "n".repeat(255);
    let bed = Bed::of(&[
        &|top| {
            let top_fd = File::open(top).unwrap();
            for name in ["gone", "replaced", "closed", &long] {
                crate::dotted::hide(top_fd.as_fd(), OsStr::new(name)).unwrap();
            }
            file(top, dotted::MARK, "user\n");
            file(top, "replaced", "top");
            file(top, "closed/top", "");
            file(top, "opaque/top", "");
            file(top, "merged/top", "");
            crate::dotted::make_opaque(&top_fd, OsStr::new("opaque")).unwrap();
        },
        &|middle| {
            for path in [
                "gone",
                "replaced",
                "closed/middle",
                "opaque/middle",
                "merged/middle",
            ] {
                file(middle, path, "middle");
            }
            // In the kernel's form a name like any other.
            file(middle, ".wh.merged", "");
            file(middle, &long, "");
        },
        &|bottom| {
            for path in ["gone", "closed/bottom", "opaque/bottom", "merged/bottom"] {
                file(bottom, path, "bottom");
            }
        },
    ]);
    bed.write().unwrap();
    assert_eq!(
        bed.paths(),
        [
            ".wh.merged",
            "closed",
            "closed/top",
            "merged",
            "merged/bottom",
            "merged/middle",
            "merged/top",
            "opaque",
            "opaque/top",
            "replaced",
        ]
    );
    assert_eq!(
        fs::read_to_string(bed.dest().join("replaced")).unwrap(),
        "top"
    );
}

#[test]
fn attributes_holes_and_links_arrive() {
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5);
    let bed = Bed::of(&[&|top| {
        file(top, "dir/one", "text");
        fs::hard_link(top.join("dir/one"), top.join("two")).unwrap();
        let sparse = File::create(top.join("sparse")).unwrap();
        sparse.write_all_at(b"x", 32 << 20).unwrap();
        mark(&top.join("two"), "user.mine", b"1");
        mark(&top.join("dir"), "user.overlay.overlay.escaped", b"2");
        mark(&top.join("dir"), "user.overlay.impure", b"y");
        fs::set_permissions(top.join("dir/one"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(top.join("dir"), fs::Permissions::from_mode(0o555)).unwrap();
        fs::set_permissions(top, fs::Permissions::from_mode(0o700)).unwrap();
        for path in ["two", "dir", ""] {
            File::open(top.join(path))
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
    }]);
    let totals = bed.write().unwrap();
    assert_eq!((totals.files, totals.bytes), (4, 4 + (32 << 20) + 1));
    let meta = |name: &str| bed.dest().join(name).metadata().unwrap();
    assert_eq!(meta("two").ino(), meta("dir/one").ino());
    assert_eq!(meta("two").mode() & 0o7777, 0o4751);
    assert_eq!(meta("dir").mode() & 0o7777, 0o555);
    assert_eq!(meta("").mode() & 0o7777, 0o700);
    for path in ["two", "dir", ""] {
        assert_eq!(meta(path).modified().unwrap(), old, "{path}");
    }
    assert!(meta("sparse").blocks() * 512 < 1 << 20);
    let mut value = [0; 8];
    assert_eq!(
        lgetxattr(bed.dest().join("two"), "user.mine", &mut value),
        Ok(1)
    );
    let dir = bed.dest().join("dir");
    assert_eq!(lgetxattr(&dir, "user.overlay.escaped", &mut value), Ok(1));
    assert_eq!(
        lgetxattr(&dir, "user.overlay.impure", &mut value),
        Err(Errno::NODATA)
    );
    fs::set_permissions(bed.layers[0].join("dir"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_file_without_its_data_is_refused() {
    let bed = Bed::of(&[&|top| {
        file(top, "in/file", "");
        mark(&top.join("in/file"), "user.overlay.metacopy", b"");
    }]);
    let error = bed.write().unwrap_err().to_string();
    assert!(error.contains("in/file: its layer"), "{error}");
}

#[test]
fn paths_may_be_longer_than_the_kernel_takes_at_once() {
    let name = "n".repeat(200);
    let directory = OFlags::RDONLY | OFlags::DIRECTORY;
    let bed = Bed::of(&[&|top| {
        let mut here = File::open(top).unwrap();
        for _ in 0..30 {
            rustix::fs::mkdirat(&here, &name, Mode::RWXU).unwrap();
            here = openat(&here, &name, directory, Mode::empty())
                .unwrap()
                .into();
        }
    }]);
    assert_eq!(bed.write().unwrap().files, 30);
    let mut here = File::open(bed.dest()).unwrap();
    for _ in 0..30 {
        here = openat(&here, &name, directory, Mode::empty())
            .unwrap()
            .into();
    }
    // The library that removes the directory can't.
    for layer in [&bed.layers[0], &bed.dest()] {
        let top = File::open(layer).unwrap();
        crate::sys::tree::remove(top.as_fd(), OsStr::new(&name)).unwrap();
    }
}
