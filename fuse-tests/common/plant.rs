//! A tiny language for trees, used both to make them and to show them:
//!
//! `d/` directory, `d/!` opaque directory, `f=text` file, `s->target` symbolic link, `w!` whiteout,
//! `p|` fifo, `u@` socket, `c:1,3` character device, `b;7,0` block device.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use super::calls::{mknod, xattr_get, xattr_set};
use rustix::fs::FileType;

/// Makes `entries` below `root`, parents included; `opaque` is the attribute that marks an opaque
/// directory.
pub(crate) fn plant(root: &Path, opaque: &str, entries: &[&str]) {
    for entry in entries {
        plant_one(root, opaque, entry);
    }
}

fn plant_one(root: &Path, opaque: &str, entry: &str) {
    let place = |name: &str| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("parents");
        path
    };
    if let Some((name, text)) = entry.split_once('=') {
        fs::write(place(name), text).expect(entry);
    } else if let Some((name, target)) = entry.split_once("->") {
        symlink(target, place(name)).expect(entry);
    } else if let Some(name) = entry.strip_suffix("/!") {
        let path = place(name);
        fs::create_dir_all(&path).expect(entry);
        xattr_set(&path, opaque, b"y").expect(entry);
    } else if let Some(name) = entry.strip_suffix('!') {
        mknod(&place(name), FileType::CharacterDevice, 0, (0, 0)).expect(entry);
    } else if let Some(name) = entry.strip_suffix('/') {
        fs::create_dir_all(place(name)).expect(entry);
    } else if let Some(name) = entry.strip_suffix('|') {
        mknod(&place(name), FileType::Fifo, 0o644, (0, 0)).expect(entry);
    } else {
        panic!("not in the language: {entry}");
    }
}

/// Everything below `root` in the same language, sorted. Names and texts that aren't UTF-8 are
/// shown with replacement characters, long texts by their length.
pub(crate) fn sketch(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, &mut Vec::new(), &mut lines);
    lines.sort();
    lines
}

fn walk(dir: &Path, prefix: &mut Vec<u8>, lines: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("listing {}: {e}", dir.display())) {
        let name = entry.expect("an entry").file_name();
        let path = dir.join(&name);
        let length = prefix.len();
        prefix.extend_from_slice(name.as_bytes());
        let shown = String::from_utf8_lossy(prefix).into_owned();
        lines.push(format!("{shown}{}", show(&path)));
        if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            prefix.push(b'/');
            walk(&path, prefix, lines);
        }
        prefix.truncate(length);
    }
}

fn show(path: &Path) -> String {
    let meta = path
        .symlink_metadata()
        .unwrap_or_else(|e| panic!("listed, but {}: {e}", path.display()));
    let kind = meta.file_type();
    let device = || format!("{},{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
    if kind.is_dir() {
        let opaque = ["trusted.overlay.opaque", "user.overlay.opaque"]
            .iter()
            .any(|name| xattr_get(path, name).as_deref() == Some(b"y"));
        if opaque { "/!" } else { "/" }.to_owned()
    } else if kind.is_symlink() {
        format!("->{}", fs::read_link(path).expect("a target").display())
    } else if kind.is_fifo() {
        "|".to_owned()
    } else if kind.is_socket() {
        "@".to_owned()
    } else if kind.is_char_device() && meta.rdev() == 0 {
        "!".to_owned()
    } else if kind.is_char_device() {
        format!(":{}", device())
    } else if kind.is_block_device() {
        format!(";{}", device())
    } else if meta.len() > 64 {
        format!("=<{} bytes>", meta.len())
    } else {
        match fs::read(path) {
            Ok(text) => format!("={}", OsStr::from_bytes(&text).display()),
            Err(error) => format!("=<{error}>"),
        }
    }
}

/// The names in a directory, sorted; bytes, `.` and `..` left out.
pub(crate) fn names(dir: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("listing {}: {e}", dir.display()))
        .map(|entry| entry.expect("an entry").file_name().into_vec())
        .collect();
    names.sort();
    names
}
