//! Looking at a tree: through a mount, or as the layers on the disk have it. The latter is the
//! format's rules once more, in as few lines as possible, so that a wrong upper isn't excused by
//! the code that wrote it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::common::{Tree, xattr_get, xattr_names};

use super::model::{Seen, View};

/// A name that a writer uses on its way; what is under it doesn't matter.
pub(crate) const SCRATCH: &str = "scratch";

/// The tree below `dir`, as paths that begin with `dir`'s own name.
pub(crate) fn look(root: &Path, dir: &str) -> View {
    let mut view = View::new();
    if let Some(seen) = seen(&root.join(dir)) {
        view.insert(dir.to_owned(), seen);
        walk(root, dir, &mut view);
    }
    view
}

fn walk(root: &Path, dir: &str, view: &mut View) {
    for name in entries(&root.join(dir)) {
        let path = format!("{dir}/{name}");
        let Some(found) = seen(&root.join(&path)) else {
            panic!("{path} is listed, but not there");
        };
        let is_dir = found == Seen::Dir;
        let twice = view.insert(path.clone(), found).is_some();
        assert!(!twice, "{path} is listed twice");
        if is_dir {
            walk(root, &path, view);
        }
    }
}

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("listing {}: {e}", dir.display()))
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .filter(|name| name != SCRATCH)
        .collect()
}

fn seen(path: &Path) -> Option<Seen> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let kind = meta.file_type();
    Some(if kind.is_dir() {
        Seen::Dir
    } else if kind.is_symlink() {
        let target = fs::read_link(path).expect("a target");
        Seen::Link(target.into_os_string().into_string().unwrap())
    } else if kind.is_file() {
        Seen::File {
            data: fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
            mode: meta.permissions().mode() & 0o7777,
            mark: xattr_get(path, "user.mark"),
        }
    } else {
        // Fifos and devices have nothing that could be half there.
        Seen::Link(format!("<{:o} {}>", meta.mode(), meta.rdev()))
    })
}

/// What the layers of an unmounted tree come to below `dir`.
pub(crate) struct OnDisk {
    pub(crate) view: View,
    /// Whiteouts that hide nothing.
    pub(crate) strays: BTreeSet<String>,
}

/// Merges the upper layer and the only lower one.
pub(crate) fn merge(t: &Tree, dir: &str) -> OnDisk {
    let mut found = OnDisk {
        view: View::new(),
        strays: BTreeSet::new(),
    };
    let below = t.low(dir).symlink_metadata().is_ok();
    merge_name(t, dir, below, &mut found);
    found
}

/// `below`: whether the lower layer's object of this path can be seen, if there is no other.
fn merge_name(t: &Tree, path: &str, below: bool, found: &mut OnDisk) {
    let Ok(meta) = t.upper(path).symlink_metadata() else {
        if below && let Some(lower) = seen(&t.low(path)) {
            let is_dir = lower == Seen::Dir;
            found.view.insert(path.to_owned(), lower);
            if is_dir {
                walk(&t.low(""), path, &mut found.view);
            }
        }
        return;
    };
    check_format(t, path);
    if meta.file_type().is_char_device() && meta.rdev() == 0 {
        if !below {
            found.strays.insert(path.to_owned());
        }
        return;
    }
    let upper = seen(&t.upper(path)).expect("what has a stat");
    let is_dir = upper == Seen::Dir;
    found.view.insert(path.to_owned(), upper);
    if !is_dir {
        return;
    }
    let opaque = xattr_get(t.upper(path), &t.private("opaque")).as_deref() == Some(b"y");
    let lower_dir = below && !opaque && t.low(path).symlink_metadata().is_ok_and(|m| m.is_dir());
    let mut names: BTreeSet<_> = entries(&t.upper(path)).into_iter().collect();
    let mut lower_names = BTreeSet::new();
    if lower_dir {
        lower_names.extend(entries(&t.low(path)));
    }
    names.extend(lower_names.iter().cloned());
    for name in names {
        let below = lower_names.contains(&name);
        merge_name(t, &format!("{path}/{name}"), below, found);
    }
}

/// Nothing but what the kernel would have written.
fn check_format(t: &Tree, path: &str) {
    let name = path.rsplit('/').next().unwrap_or(path);
    assert!(!name.starts_with('#'), "{path}: an unfinished object");
    let known = ["opaque", "origin", "impure"].map(|suffix| t.private(suffix).into_bytes());
    for attr in xattr_names(t.upper(path)) {
        let private = attr.starts_with(b"trusted.overlay.") || attr.starts_with(b"user.overlay.");
        assert!(
            !private || known.contains(&attr),
            "{path}: attribute {}",
            attr.escape_ascii()
        );
    }
}

/// What is in the work directory and isn't a whiteout kept for later.
pub(crate) fn left_in_work(t: &Tree) -> Vec<String> {
    let mut left = crate::common::sketch(&t.work("work"));
    let spare = left.iter().position(|line| line.ends_with('!'));
    if let Some(at) = spare {
        left.remove(at);
    }
    left
}
