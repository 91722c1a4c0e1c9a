//! Compares what the two sides show and what they leave behind.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::layers::Power;
use super::look::{self, Node, Tree, shown};
use super::place::Place;

/// Lines that say where two trees differ; none where they are the same.
pub(crate) fn differences(ours: (&str, &Tree), theirs: (&str, &Tree)) -> Vec<String> {
    let mut lines = Vec::new();
    let paths: BTreeSet<_> = ours.1.keys().chain(theirs.1.keys()).collect();
    for path in paths {
        let (a, b) = (ours.1.get(path), theirs.1.get(path));
        if a.map(|node| &node.lines) == b.map(|node| &node.lines) {
            continue;
        }
        for (label, this, other) in [(ours.0, a, b), (theirs.0, b, a)] {
            let text = this.map_or_else(
                || "isn't there".to_owned(),
                |node| {
                    let same =
                        |line: &&String| other.is_none_or(|other| !other.lines.contains(line));
                    node.lines
                        .iter()
                        .filter(same)
                        .cloned()
                        .collect::<Vec<_>>()
                        .join("; ")
                },
            );
            lines.push(format!("/{}: {label}: {text}", shown(path)));
        }
    }
    lines
}

/// Files with fewer holes in ours than in the kernel's: its copy-up keeps only those that begin at a
/// whole megabyte, ours keeps all. Roughly: file systems allocate ahead as they like.
pub(crate) fn lost_holes(kernel: &Tree, overfall: &Tree, slack: u64) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, ours) in overfall {
        if let Some(theirs) = kernel.get(path)
            && theirs.blocks + slack < ours.blocks
        {
            let (path, theirs, ours) = (shown(path), theirs.blocks, ours.blocks);
            lines.push(format!(
                "/{path}: {ours} blocks, {theirs} in the kernel's overlay"
            ));
        }
    }
    lines
}

/// How many blocks a file system may have allocated ahead on one side alone.
pub(crate) fn slack(place: Place) -> u64 {
    match place {
        Place::Ext4 | Place::Btrfs | Place::Tmpfs => 32,
        // 32 blocks at either end of what was written into a shared extent.
        Place::Xfs | Place::Mixed | Place::Tmp => 72,
    }
}

/// Names that are one object on one side and several on the other.
pub(crate) fn unlike_links(ours: (&str, &Tree), theirs: (&str, &Tree)) -> Vec<String> {
    let (a, b) = (leaders(ours.1), leaders(theirs.1));
    a.iter()
        .filter(|(path, leader)| b.get(*path) != Some(leader))
        .map(|(path, leader)| {
            let other = b.get(path).map_or_else(String::new, |path| shown(path));
            let (path, leader) = (shown(path), shown(leader));
            format!(
                "/{path}: {} shows it as a link to /{leader}, {} to /{other}",
                ours.0, theirs.0
            )
        })
        .collect()
}

fn leaders(tree: &Tree) -> HashMap<&Path, &Path> {
    let mut first = HashMap::new();
    let plain = tree.iter().filter(|(_, node)| !is_whiteout(node));
    plain
        .map(|(path, node)| (&**path, *first.entry(node.identity).or_insert(&**path)))
        .collect()
}

fn is_whiteout(node: &Node) -> bool {
    node.kind == FileType::CharacterDevice && node.rdev == 0
}

/// Reads an upper layer: whiteouts are whiteouts whatever their mode, the overlay's own
/// attributes are brought to what must be the same.
pub(crate) fn upper(dir: &Path, power: Power) -> std::io::Result<Tree> {
    /// Of an origin, what is the same for every object of a layer: version, length, flags, type
    /// of the handle, identity of the file system.
    const HEAD: usize = 21;
    let (origin, uuid) = (power.private("origin"), power.private("uuid"));
    let upper = power.private("upper");
    let show = |name: &str, value: &[u8]| {
        if name == origin || name == upper {
            let head: Vec<_> = value
                .iter()
                .take(HEAD)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            Some(format!("{name}: {} bytes, {}", value.len(), head.concat()))
        } else if name == uuid {
            None
        } else {
            look::plainly(name, value)
        }
    };
    let mut tree = look::tree(dir, &show)?;
    for node in tree.values_mut().filter(|node| is_whiteout(node)) {
        node.lines = vec!["whiteout".to_owned()];
    }
    Ok(tree)
}

/// Whiteouts in an upper that hide nothing: no lower layer has the name.
pub(crate) fn needless_whiteouts(upper: &Tree, lowers: &[Tree]) -> Vec<String> {
    let whiteouts = upper.iter().filter(|(_, node)| is_whiteout(node));
    whiteouts
        .filter(|(path, _)| !lowers.iter().any(|lower| lower.contains_key(*path)))
        .map(|(path, _)| format!("/{}: hides nothing", shown(path)))
        .collect()
}

/// A stat's text without the number of links, if it is a directory's.
pub(crate) fn without_links_of_directories(text: &str) -> String {
    match text.starts_with("Directory ") {
        true => without_links(text),
        false => text.to_owned(),
    }
}

/// A stat's text without the number of links.
pub(crate) fn without_links(text: &str) -> String {
    let Some((before, rest)) = text.split_once(" nlink ") else {
        return text.to_owned();
    };
    let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}{after}")
}

/// Leaves out the marks that `known.rs` forgives: an `impure` that the kernel has taken off or
/// set `in_vain`, an `opaque` or `redirect` that it needn't have set. What a mark means shows when each mounts the other's upper.
pub(crate) fn forgive_marks(kernel: &mut Tree, overfall: &mut Tree, power: Power, in_vain: bool) {
    let impure = format!("{}=y", power.private("impure"));
    let opaque = format!("{}=y", power.private("opaque"));
    let redirect = power.private("redirect");
    for (path, ours) in overfall {
        let Some(theirs) = kernel.get_mut(path) else {
            continue;
        };
        if !theirs.lines.contains(&impure) {
            ours.lines.retain(|line| *line != impure);
        }
        if in_vain && !ours.lines.contains(&impure) {
            theirs.lines.retain(|line| *line != impure);
        }
        if !ours.lines.contains(&opaque) {
            theirs.lines.retain(|line| *line != opaque);
        }
        as_absolute(&mut theirs.lines, path, redirect.as_str());
        as_absolute(&mut ours.lines, path, redirect.as_str());
        // It leads to where the directory is anyway.
        let to_itself = format!("{redirect}=/{}", shown(path));
        if !ours.lines.iter().any(|line| line.starts_with(&redirect)) {
            theirs.lines.retain(|line| *line != to_itself);
        }
    }
}

/// Brings a redirect to another name in the same directory to the form of a path.
fn as_absolute(lines: &mut [String], path: &Path, redirect: &str) {
    let parent = path.parent().map(shown).filter(|parent| !parent.is_empty());
    let prefix = parent.map_or_else(|| "/".to_owned(), |parent| format!("/{parent}/"));
    for line in lines {
        if let Some(name) = line.strip_prefix(&format!("{redirect}="))
            && !name.starts_with('/')
        {
            *line = format!("{redirect}={prefix}{name}");
        }
    }
}

/// Everything in the work directory that shouldn't be left there.
pub(crate) fn leftovers(dir: &Path, indexed: bool) -> Vec<String> {
    let Ok(tree) = look::tree(&dir.join("w"), &look::plainly) else {
        return vec!["the work directory can't be read".to_owned()];
    };
    let may_stay = |path: &Path| {
        path.as_os_str().is_empty()
            || path == Path::new("work")
            || indexed && path.starts_with("index")
    };
    tree.keys()
        .filter(|path| !may_stay(path))
        .map(|path| format!("left in the work directory: {}", shown(path)))
        .collect()
}

/// Which object of one side is which of the other: `st_ino` must tell them apart and stay the
/// same through copy-up and rename.
#[derive(Default)]
pub(crate) struct Pairs {
    /// Whether the kernel's numbers can't be relied on any more.
    pub(crate) blind: bool,
    /// Whether the kernel may have prepared a copy-up that then failed.
    pub(crate) in_vain: bool,
    /// Whether the kernel may forget the number of what nobody uses.
    pub(crate) forgetful: bool,
    to_theirs: HashMap<(u64, u64), ((u64, u64), PathBuf)>,
    to_ours: HashMap<(u64, u64), ((u64, u64), PathBuf)>,
}

impl Pairs {
    /// Notes that two objects are one; says so where either was another one before.
    pub(crate) fn meet(
        &mut self,
        path: &Path,
        ours: (u64, u64),
        theirs: (u64, u64),
    ) -> Option<String> {
        if self.blind {
            return None;
        }
        let before = self.to_theirs.insert(ours, (theirs, path.to_path_buf()));
        let back = self.to_ours.insert(theirs, (ours, path.to_path_buf()));
        if self.forgetful
            && let Some((other, seen)) = &back
            && *other != ours
            && seen == path
            && before.is_none()
        {
            self.to_theirs.remove(other);
            return None;
        }
        let path = shown(path);
        if let Some((other, seen)) = before
            && other != theirs
        {
            let seen = shown(&seen);
            return Some(format!(
                "st_ino of /{path}: the kernel shows the number that it showed for /{seen}, overfall another ({} then, {} now)",
                other.1, theirs.1
            ));
        }
        if let Some((other, seen)) = back
            && other != ours
        {
            let seen = shown(&seen);
            return Some(format!(
                "st_ino of /{path}: overfall shows the number that it showed for /{seen}, the kernel another ({} then, {} now)",
                other.1, ours.1
            ));
        }
        None
    }

    /// Forgets objects that may be gone.
    pub(crate) fn part(&mut self, ours: &[(u64, u64)], theirs: &[(u64, u64)]) {
        for identity in ours {
            if let Some((other, _)) = self.to_theirs.remove(identity) {
                self.to_ours.remove(&other);
            }
        }
        for identity in theirs {
            if let Some((other, _)) = self.to_ours.remove(identity) {
                self.to_theirs.remove(&other);
            }
        }
    }

    /// Notes all objects of two equal trees.
    pub(crate) fn meet_all(&mut self, ours: &Tree, theirs: &Tree) -> Vec<String> {
        ours.iter()
            .filter_map(|(path, node)| self.meet(path, node.identity, theirs.get(path)?.identity))
            .collect()
    }
}
