//! Compares uppers and their indexes (`index=on`), also where each side may have copied up other names of a
//! lower layer's hard links (`known.rs`). The objects themselves, and all other names, have to be the same.

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::compare;
use super::layers::Power;
use super::look::{Node, Tree};

/// One side's upper, and which of its names lead to objects of the index.
struct Half<'a> {
    tree: &'a Tree,
    indexed: HashSet<&'a Path>,
}

impl<'a> Half<'a> {
    fn new(tree: &'a Tree, index: &Tree) -> Self {
        let files = index
            .values()
            .filter(|node| node.kind != FileType::Directory);
        let objects: HashSet<_> = files.map(|node| node.identity).collect();
        let of_index = |(_, node): &(&PathBuf, &Node)| objects.contains(&node.identity);
        let indexed = tree.iter().filter(of_index);
        let indexed = indexed.map(|(path, _)| path.as_path()).collect();
        Self { tree, indexed }
    }

    /// Whether it is a directory on the way to an object of the index.
    fn leads_there(&self, path: &Path) -> bool {
        let mut names = self.indexed.iter();
        names.any(|name| *name != path && name.starts_with(path))
    }

    /// Whether the other side needn't have it: an object of the index, or a directory that is
    /// there for such ones alone.
    fn may_be_alone(&self, path: &Path, node: &Node) -> bool {
        let is_directory = |path: &Path| {
            let node = self.tree.get(path);
            node.is_some_and(|node| node.kind == FileType::Directory)
        };
        let mut below = self.tree.keys().filter(|name| name.starts_with(path));
        match node.kind {
            FileType::Directory if self.leads_there(path) => {
                below.all(|name| is_directory(name) || self.indexed.contains(&**name))
            }
            _ => self.indexed.contains(path),
        }
    }
}

/// Both sides' uppers without what may be different; `indexes` are those of the same sides.
pub(crate) fn comparable(uppers: &[Tree; 2], indexes: &[Tree; 2], power: Power) -> [Tree; 2] {
    let [theirs, ours] = [0, 1].map(|side| Half::new(&uppers[side], &indexes[side]));
    [
        without_what_may_differ(&theirs, &ours, power),
        without_what_may_differ(&ours, &theirs, power),
    ]
}

fn without_what_may_differ(half: &Half<'_>, other: &Half<'_>, power: Power) -> Tree {
    let impure = format!("{}=y", power.private("impure"));
    let mut kept = Tree::new();
    for (path, node) in half.tree {
        if !other.tree.contains_key(path) && half.may_be_alone(path, node) {
            continue;
        }
        let mut node = node.clone();
        if node.kind == FileType::Directory {
            for line in &mut node.lines {
                *line = compare::without_links_of_directories(line);
            }
            // For having such a name in it, one side has marked it.
            if half.leads_there(path) || other.leads_there(path) {
                node.lines.retain(|line| *line != impure);
            }
        } else if half.indexed.contains(&**path) || other.indexed.contains(&**path) {
            node.lines = without_names(&node.lines, power);
        }
        kept.insert(path.clone(), node);
    }
    kept
}

/// What a file is, without how many names it has in its layer, and by which lower one its data is found.
fn without_names(lines: &[String], power: Power) -> Vec<String> {
    let (nlink, redirect) = (power.private("nlink"), power.private("redirect"));
    let is_of_names = |line: &str| line.starts_with(&nlink) || line.starts_with(&redirect);
    let other = lines.iter().filter(|line| !is_of_names(line));
    other.map(|line| compare::without_links(line)).collect()
}

/// An index, but for whiteouts that wait for their use.
pub(crate) fn read(dir: &Path, power: Power) -> io::Result<Tree> {
    let mut tree = compare::upper(dir, power)?;
    tree.retain(|path, _| !path.as_os_str().as_bytes().starts_with(b"#"));
    Ok(tree)
}

/// The objects of an index as text. Their names are file handles, which aren't the same on both sides. What
/// is said of each one's names is left out where they `may_differ`.
pub(crate) fn objects(index: &Tree, power: Power, may_differ: bool) -> Vec<String> {
    let text = |node: &Node| match may_differ {
        true => without_names(&node.lines, power).join("; "),
        false => node.lines.join("; "),
    };
    let mut objects: Vec<_> = index.values().map(text).collect();
    objects.sort();
    objects
}
