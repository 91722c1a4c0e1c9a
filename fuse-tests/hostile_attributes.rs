//! Attributes of the format with values that nobody should have written. Whatever the kernel makes
//! of them, overfall makes of them, too; and lives.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::{Carrier, Limit, Tree, cases, skip, xattr_get, xattr_set};

const COMPARED: Limit = Limit::Fuse("it is the kernel that is compared with");

cases! {
    on_lower_objects: COMPARED,
    on_upper_objects: COMPARED,
    on_lower_objects_that_lead_elsewhere: COMPARED,
    on_upper_objects_that_lead_elsewhere: COMPARED,
    on_the_layers_roots: COMPARED,
    one_that_is_as_long_as_can_be: COMPARED,
}

/// The attributes of the format, by the suffix of their names.
const KINDS: [&str; 11] = [
    "opaque", "origin", "impure", "redirect", "metacopy", "whiteout", "uuid", "upper", "nlink",
    "protattr", "unheard_of",
];

/// Values that are wrong for most of them, each in its own way.
fn values() -> Vec<Vec<u8>> {
    let origin = |head: &[u8], length: usize| {
        let mut value = head.to_vec();
        value.resize(length, 0x5a);
        value
    };
    vec![
        b"".to_vec(),
        b"y".to_vec(),
        b"x".to_vec(),
        b"yy".to_vec(),
        b"\0".to_vec(),
        b"\xff\xfe\n".to_vec(),
        b"/".to_vec(),
        b"..".to_vec(),
        b"../../../../../../etc".to_vec(),
        b"/../outside".to_vec(),
        b"/below".to_vec(),
        b"a/b".to_vec(),
        b"//".to_vec(),
        b"+i".to_vec(),
        b"U+99999999999999999999".to_vec(),
        // A metacopy header: version, length, flags, algorithm.
        vec![0, 4, 0, 0],
        vec![0, 255, 255, 255],
        vec![9, 4, 0, 0],
        // File handles: of no length, longer than they say, with a type that nobody has, foreign.
        origin(&[0, 0xfb, 0, 0, 1], 21),
        origin(&[0, 0xfb, 255, 0, 1], 40),
        origin(&[0, 0xfb, 29, 0, 0xff], 29),
        origin(&[0, 0xfb, 29, 1, 1], 29),
        origin(&[7, 0xfb, 29, 0xff, 1], 29),
        origin(&[0, 0xfb, 149, 0, 1], 149),
        vec![b'z'; 1000],
        vec![b'/'; 3000],
    ]
}

/// Sets it where the file system takes it; user attributes go on files and directories only.
fn mark(t: &Tree, path: &Path, kind: &str, value: &[u8]) -> bool {
    xattr_set(path, &t.private(kind), value).is_ok()
}

fn errno<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "worked".to_owned(),
        Err(error) => format!("{error}"),
    }
}

/// What a directory, a file, an empty file and a hole with these names show, and how they take a
/// change.
fn look(t: &Tree, dir: &str) -> Vec<String> {
    let mut said = Vec::new();
    let root = t.at(dir);
    let list = |path: &Path| {
        let names = fs::read_dir(path).and_then(|entries| {
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<io::Result<Vec<_>>>()
        });
        match names {
            Ok(mut names) => {
                names.sort();
                names.join(" ")
            }
            Err(error) => format!("<{error}>"),
        }
    };
    said.push(format!("{dir}: {}", list(&root)));
    for name in ["d", "f", "e", "h"] {
        let path = root.join(name);
        let kind = fs::symlink_metadata(&path).map(|meta| (meta.file_type(), meta.len()));
        let shown = match kind {
            Err(error) => format!("<{error}>"),
            Ok((kind, _)) if kind.is_dir() => format!("/ {}", list(&path)),
            Ok((_, length)) => match fs::read(&path) {
                Ok(bytes) => format!("={length} {}", String::from_utf8_lossy(&bytes[..bytes.len().min(16)])),
                Err(error) => format!("={length} <{error}>"),
            },
        };
        said.push(format!("{dir}/{name} {shown}"));
        for kind in KINDS {
            let shown = xattr_get(&path, &t.private(kind));
            if shown.is_some() {
                said.push(format!("{dir}/{name} shows {kind}"));
            }
        }
        let changed = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
        said.push(format!("{dir}/{name} chmod: {}", errno(changed)));
        if name == "d" {
            said.push(format!("{dir}/d new: {}", errno(fs::write(path.join("new"), "n"))));
            said.push(format!("{dir}/d rm: {}", errno(fs::remove_file(path.join("below")))));
        }
        let moved = root.join(format!("{name}2"));
        said.push(format!("{dir}/{name} mv: {}", errno(fs::rename(&path, &moved))));
        if name == "d" {
            said.push(format!("{dir}/d rmdir: {}", errno(fs::remove_dir_all(&path))));
        } else {
            said.push(format!("{dir}/{name} rm: {}", errno(fs::remove_file(&moved))));
        }
    }
    said.push(format!("{dir} at the end: {}", list(&root)));
    for name in ["e", "f"] {
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(root.join(name));
        said.push(format!("{dir}/{name} again: {}", errno(made)));
    }
    said
}

/// The four objects in `layer`, marked, in a directory of their own.
fn plant_marked(t: &Tree, layer: &Path, dir: &str, kind: &str, value: &[u8]) {
    let at = layer.join(dir);
    fs::create_dir_all(at.join("d")).unwrap();
    fs::write(at.join("d/own"), "own").unwrap();
    fs::write(at.join("f"), "text").unwrap();
    fs::write(at.join("e"), "").unwrap();
    fs::File::create(at.join("h")).unwrap().set_len(100_000).unwrap();
    for name in ["d", "f", "e", "h"] {
        mark(t, &at.join(name), kind, value);
    }
    // Whoever makes a metadata copy marks its directory, and only there are full files asked.
    if kind == "metacopy" {
        mark(t, &at, "impure", b"y");
    }
}

/// Where we do better: once a directory of the upper holds something copied up, the kernel looks
/// each of its names up while it lists it, and one that it refuses makes the listing fail, one
/// whited out by an attribute goes from it. We list what is there, before and after.
///
/// And where FUSE can't do the same: of a metadata copy that is smaller than its data, the kernel
/// reads more than its size.
fn is_known(kernel: &str, ours: &str) -> bool {
    if kernel.starts_with("metacopy-") && kernel.contains("/e =0 ") {
        return ours.ends_with("/e =0 ");
    }
    let listing = |said: &str| said.split_once(": ").map(|(_, list)| list.to_owned());
    match (listing(kernel), listing(ours)) {
        (Some(kernel_list), Some(list)) if kernel.starts_with("metacopy-") => {
            kernel_list.starts_with('<') && !list.starts_with('<')
        }
        (Some(_), Some(list)) if kernel.starts_with("whiteout-") => {
            kernel.contains(" at the end: ") && list.split(' ').any(|name| name == "e")
        }
        _ => false,
    }
}

fn compare(t: &Tree, plan: impl Fn(&Tree) -> Vec<String>) {
    let said = [("kernel", Carrier::Kernel), ("ours", Carrier::Fuse)].map(|(name, carrier)| {
        let tree = Tree::new(t.beside(name), carrier, t.is_real_root());
        tree.watch(None);
        tree.lowers_may_change();
        let dirs = plan(&tree);
        if let Err(why) = tree.try_mount() {
            assert!(carrier == Carrier::Kernel, "mount: {why}");
            skip(format!("the kernel's overlay: {why}"));
        }
        let said: Vec<String> = dirs.iter().flat_map(|dir| look(&tree, dir)).collect();
        tree.assert_lives();
        tree.finish();
        said
    });
    let [kernel, ours] = said;
    let differences: Vec<String> = kernel
        .iter()
        .zip(&ours)
        .filter(|(kernel, ours)| kernel != ours && !is_known(kernel, ours))
        .map(|(kernel, ours)| format!("kernel {kernel}\n  ours {ours}"))
        .collect();
    assert!(differences.is_empty() && kernel.len() == ours.len(), "{}", differences.join("\n"));
}

/// Every attribute with every value in a layer made by `layer`, over a plain lowest one.
fn compare_in(t: &Tree, layer: impl Fn(&Tree) -> PathBuf) {
    compare(t, |tree| {
        let mut dirs = Vec::new();
        let (layer, lowest) = (layer(tree), tree.layer(1));
        for kind in KINDS {
            for (number, value) in values().iter().enumerate() {
                let dir = format!("{kind}-{number}");
                plant_marked(tree, &layer, &dir, kind, value);
                fs::create_dir_all(lowest.join(&dir).join("d")).unwrap();
                fs::write(lowest.join(&dir).join("d/below"), "below").unwrap();
                fs::write(lowest.join(&dir).join("e"), "below").unwrap();
                dirs.push(dir);
            }
        }
        dirs
    });
}

fn on_lower_objects(t: &Tree) {
    compare_in(t, |tree| tree.layer(0));
}

fn on_upper_objects(t: &Tree) {
    compare_in(t, |tree| tree.upper(""));
}

/// Where redirects and metadata copies are followed. Some of the values would lead out of the layer.
fn compare_following(t: &Tree, layer: impl Fn(&Tree) -> PathBuf) {
    if !t.is_real_root() {
        skip("they are followed for the machine's root only");
    }
    compare_in(t, |tree| {
        tree.option("redirect_dir=on");
        tree.option("metacopy=on");
        // What the wrong values would find outside of the layer, beside it.
        fs::create_dir_all(tree.beside("outside/d")).unwrap();
        fs::write(tree.beside("outside/secret"), "secret").unwrap();
        layer(tree)
    });
}

fn on_lower_objects_that_lead_elsewhere(t: &Tree) {
    compare_following(t, |tree| tree.layer(0));
}

fn on_upper_objects_that_lead_elsewhere(t: &Tree) {
    compare_following(t, |tree| tree.upper(""));
}

/// What says something of a whole layer, or should.
fn on_the_layers_roots(t: &Tree) {
    for kind in ["opaque", "origin", "impure", "redirect", "metacopy", "whiteout", "unheard_of"] {
        for (number, value) in values().iter().enumerate().step_by(5) {
            let pair = t.beside(&format!("{kind}-{number}"));
            fs::create_dir(&pair).unwrap();
            let inner = Tree::new(pair.join("t"), Carrier::Fuse, t.is_real_root());
            inner.lower(&["d/below=b", "f=text"]);
            fs::write(inner.upper("e"), "e").unwrap();
            for root in [inner.layer(0), inner.upper("")] {
                mark(&inner, &root, kind, value);
            }
            inner.watch(None);
            inner.lowers_may_change();
            // Refused or mounted: it is said in time.
            if inner.try_mount().is_ok() {
                let _ = inner.sketch();
                let _ = fs::write(inner.at("d/new"), "n");
                inner.assert_lives();
                inner.finish();
            }
        }
    }
}

/// 64 KiB, where the file system has room for them.
fn one_that_is_as_long_as_can_be(t: &Tree) {
    let lengths = [65536, 4000, 3800, 3000];
    compare(t, |tree| {
        let mut dirs = Vec::new();
        for kind in KINDS {
            let dir = format!("long-{kind}");
            plant_marked(tree, &tree.layer(0), &dir, kind, b"y");
            for name in ["d", "f"] {
                let path = tree.low(&dir).join(name);
                let value = |length: &usize| mark(tree, &path, kind, &vec![b'/'; *length]);
                assert!(lengths.iter().any(value), "not even 3000 bytes");
            }
            dirs.push(dir);
        }
        dirs
    });
}
