//! What a writer's tree should hold, and what its operations do to it.

use std::collections::BTreeMap;

use crate::common::dice::{Dice, bytes};

/// A path below the mount.
pub(crate) type Path = String;

/// What is seen under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// With its mode.
    Dir(u32),
    Link(String),
    File {
        data: Vec<u8>,
        mode: u32,
        owner: u32,
        mark: Option<Vec<u8>>,
    },
}

/// All that is seen, by path.
pub(crate) type View = BTreeMap<Path, Seen>;

/// One operation of a writer: a call that happens or doesn't.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(Path, u32),
    Write {
        path: Path,
        at: usize,
        tag: u64,
        length: usize,
    },
    Append {
        path: Path,
        tag: u64,
        length: usize,
    },
    /// open(2) with `O_TRUNC`.
    Cut(Path),
    Truncate(Path, usize),
    Sync(Path),
    Chmod(Path, u32),
    Chown(Path, u32),
    Mark(Path, u64),
    Unlink(Path),
    Link(Path, Path),
    Symlink(Path, String),
    Mkdir(Path),
    Rmdir(Path),
    Rename(Path, Path),
    Exchange(Path, Path),
    /// A new version, written elsewhere and renamed over a name that all writers replace.
    Publish {
        key: usize,
        version: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    /// Whether a lower layer has no part in it.
    Dir {
        pure: bool,
        mode: u32,
    },
    Link(String),
    File(usize),
}

#[derive(Debug, Clone)]
struct FileState {
    data: Vec<u8>,
    mode: u32,
    owner: u32,
    mark: Option<Vec<u8>>,
}

/// What a mount's options promise.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    /// Directories with a lower part can be renamed (`redirect_dir=on`).
    pub(crate) dirs_move: bool,
    /// Lower hard links stay links (`index=on`).
    pub(crate) links_stay: bool,
    /// There are several owners.
    pub(crate) owners: bool,
}

/// A writer's tree.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    rules: Rules,
    names: BTreeMap<Path, Item>,
    /// The files by a number of ours: several names may be one file.
    files: BTreeMap<usize, FileState>,
    next: usize,
}

impl Model {
    /// A tree that a lower layer shows; `links` are pairs of names that are one file there.
    pub(crate) fn of_lower(view: &View, links: &[(Path, Path)], rules: Rules) -> Self {
        let mut model = Self {
            rules,
            ..Self::default()
        };
        for (path, seen) in view {
            let item = match seen {
                Seen::Dir(mode) => Item::Dir {
                    pure: false,
                    mode: *mode,
                },
                Seen::Link(target) => Item::Link(target.clone()),
                Seen::File {
                    data,
                    mode,
                    owner,
                    mark,
                } => Item::File(model.add(FileState {
                    data: data.clone(),
                    mode: *mode,
                    owner: *owner,
                    mark: mark.clone(),
                })),
            };
            model.names.insert(path.clone(), item);
        }
        if rules.links_stay {
            for (name, other) in links {
                let file = model.names[name].clone();
                model.remove(other);
                model.names.insert(other.clone(), file);
            }
        }
        model
    }

    fn add(&mut self, file: FileState) -> usize {
        self.next += 1;
        self.files.insert(self.next, file);
        self.next
    }

    /// What it looks like.
    pub(crate) fn view(&self) -> View {
        let show = |item: &Item| match item {
            Item::Dir { mode, .. } => Seen::Dir(*mode),
            Item::Link(target) => Seen::Link(target.clone()),
            Item::File(number) => {
                let file = &self.files[number];
                Seen::File {
                    data: file.data.clone(),
                    mode: file.mode,
                    owner: file.owner,
                    mark: file.mark.clone(),
                }
            }
        };
        self.names
            .iter()
            .map(|(path, item)| (path.clone(), show(item)))
            .collect()
    }

    fn file_at(&mut self, path: &str) -> &mut FileState {
        let Some(Item::File(number)) = self.names.get(path) else {
            panic!("{path} is no file");
        };
        self.files.get_mut(number).expect("a file")
    }

    /// Carries an operation out.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path, mode) => {
                let number = self.add(FileState {
                    data: Vec::new(),
                    mode: *mode,
                    owner: 0,
                    mark: None,
                });
                self.names.insert(path.clone(), Item::File(number));
            }
            Op::Write {
                path,
                at,
                tag,
                length,
            } => overwrite(&mut self.file_at(path).data, *at, &bytes(*tag, *length)),
            Op::Append { path, tag, length } => {
                let data = bytes(*tag, *length);
                self.file_at(path).data.extend_from_slice(&data);
            }
            Op::Cut(path) => self.file_at(path).data.clear(),
            Op::Truncate(path, size) => self.file_at(path).data.resize(*size, 0),
            Op::Sync(_) | Op::Publish { .. } => {}
            Op::Chmod(path, mode) => match self.names.get_mut(path) {
                Some(Item::Dir { mode: of_dir, .. }) => *of_dir = *mode,
                _ => self.file_at(path).mode = *mode,
            },
            Op::Chown(path, owner) => self.file_at(path).owner = *owner,
            Op::Mark(path, tag) => self.file_at(path).mark = Some(bytes(*tag, 20)),
            Op::Unlink(path) | Op::Rmdir(path) => self.remove(path),
            Op::Link(from, to) => {
                let item = self.names[from].clone();
                self.names.insert(to.clone(), item);
            }
            Op::Symlink(path, target) => {
                self.names.insert(path.clone(), Item::Link(target.clone()));
            }
            Op::Mkdir(path) => {
                let dir = Item::Dir {
                    pure: true,
                    mode: 0o755,
                };
                self.names.insert(path.clone(), dir);
            }
            Op::Rename(from, to) => self.rename(from, to),
            Op::Exchange(a, b) => {
                let (first, second) = (self.names[a].clone(), self.names[b].clone());
                self.names.insert(a.clone(), second);
                self.names.insert(b.clone(), first);
            }
        }
    }

    fn remove(&mut self, path: &str) {
        let item = self.names.remove(path);
        if let Some(Item::File(number)) = item
            && !self
                .names
                .values()
                .any(|other| *other == Item::File(number))
        {
            self.files.remove(&number);
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        if matches!(self.names[from], Item::File(_))
            && self.names.get(to) == Some(&self.names[from])
        {
            // Two names of one file: rename(2) does nothing.
            return;
        }
        self.remove(to);
        let prefix = format!("{from}/");
        let moving: Vec<_> = self
            .names
            .keys()
            .filter(|path| *path == from || path.starts_with(&prefix))
            .cloned()
            .collect();
        for path in moving {
            let item = self.names.remove(&path).expect("the name");
            self.names
                .insert(format!("{to}{}", &path[from.len()..]), item);
        }
    }

    /// Takes over what is seen, if it is what an operation that was cut off may have left; says
    /// what is wrong otherwise.
    pub(crate) fn settle(&mut self, pending: Option<&Op>, seen: &View) -> Result<(), String> {
        let before = self.view();
        if before == *seen {
            return Ok(());
        }
        let Some(op) = pending else {
            return Err(difference(&before, seen));
        };
        let mut after = self.clone();
        after.apply(op);
        if after.view() == *seen {
            *self = after;
            return Ok(());
        }
        if let Some(torn) = self.torn(op, seen)
            && torn.view() == *seen
        {
            *self = torn;
            return Ok(());
        }
        Err(difference(&before, seen))
    }

    /// This tree with the beginning of a write that explains the size or the data seen.
    fn torn(&self, op: &Op, seen: &View) -> Option<Model> {
        let (path, at, tag, length) = match op {
            Op::Write {
                path,
                at,
                tag,
                length,
            } => (path, *at, *tag, *length),
            Op::Append { path, tag, length } => {
                let Some(Item::File(number)) = self.names.get(path) else {
                    return None;
                };
                (path, self.files[number].data.len(), *tag, *length)
            }
            _ => return None,
        };
        let Some(Seen::File { data: there, .. }) = seen.get(path) else {
            return None;
        };
        let written = bytes(tag, length);
        let new = there.get(at..).unwrap_or_default();
        let done = new.iter().zip(&written).take_while(|(a, b)| a == b).count();
        let mut torn = self.clone();
        overwrite(&mut torn.file_at(path).data, at, &written[..done]);
        Some(torn)
    }

    /// An operation that must work now.
    pub(crate) fn choose(&self, root: &str, dice: &mut Dice, tag: u64, versions: &[u32]) -> Op {
        loop {
            if let Some(op) = self.try_choose(root, dice, tag, versions) {
                return op;
            }
        }
    }

    fn try_choose(&self, root: &str, dice: &mut Dice, tag: u64, versions: &[u32]) -> Option<Op> {
        const SIZES: [usize; 8] = [1, 100, 4096, 5000, 20_000, 65_536, 140_000, 300_000];
        let file = |dice: &mut Dice| {
            let files: Vec<_> = self
                .names
                .iter()
                .filter(|(_, item)| matches!(item, Item::File(_)))
                .map(|(path, _)| path.clone())
                .collect();
            dice.pick(&files).cloned()
        };
        let size = |dice: &mut Dice| SIZES[dice.roll(SIZES.len())] + dice.roll(10);
        let length_of = |path: &str| match &self.names[path] {
            Item::File(number) => self.files[number].data.len(),
            _ => 0,
        };
        Some(match dice.roll(24) {
            0 | 1 => Op::Create(self.free(root, dice)?, [0o600, 0o644, 0o755][dice.roll(3)]),
            2..=4 => {
                let path = file(dice)?;
                let at = dice.roll(length_of(&path) + 1);
                let length = size(dice);
                Op::Write {
                    path,
                    at,
                    tag,
                    length,
                }
            }
            5..=7 => {
                let path = file(dice)?;
                // Not without end.
                if length_of(&path) > 2 << 20 {
                    return Some(Op::Cut(path));
                }
                let length = size(dice);
                Op::Append { path, tag, length }
            }
            8 => Op::Cut(file(dice)?),
            9 => {
                let path = file(dice)?;
                let size = dice.roll(length_of(&path) * 3 / 2 + 1);
                Op::Truncate(path, size)
            }
            10 => Op::Sync(file(dice)?),
            11 => Op::Chmod(file(dice)?, [0o600, 0o640, 0o644, 0o711][dice.roll(4)]),
            12 => match dice.roll(3) {
                // A namespace may have no other.
                0 if self.rules.owners => Op::Chown(file(dice)?, dice.roll(3) as u32),
                1 => {
                    let dirs = self.dirs();
                    Op::Chmod(
                        dice.pick(&dirs)?.clone(),
                        [0o700, 0o755, 0o711][dice.roll(3)],
                    )
                }
                _ => Op::Chmod(file(dice)?, [0o600, 0o640, 0o644, 0o711][dice.roll(4)]),
            },
            13 => Op::Mark(file(dice)?, tag),
            14 | 15 => Op::Unlink(self.leaf(dice)?),
            16 => Op::Link(file(dice)?, self.free(root, dice)?),
            17 => Op::Symlink(self.free(root, dice)?, format!("to-{tag:x}")),
            18 => Op::Mkdir(self.free(root, dice)?),
            19 => Op::Rmdir(self.empty_dir(root, dice)?),
            20 => self.file_rename(root, dice)?,
            21 => self.dir_rename(root, dice)?,
            22 => {
                let (a, b) = (file(dice)?, file(dice)?);
                (self.names[&a] != self.names[&b]).then_some(Op::Exchange(a, b))?
            }
            _ => {
                let key = dice.roll(versions.len());
                Op::Publish {
                    key,
                    version: versions[key] + 1,
                }
            }
        })
    }

    fn leaf(&self, dice: &mut Dice) -> Option<Path> {
        let leaves: Vec<_> = self
            .names
            .iter()
            .filter(|(_, item)| !matches!(item, Item::Dir { .. }))
            .map(|(path, _)| path.clone())
            .collect();
        dice.pick(&leaves).cloned()
    }

    fn dirs(&self) -> Vec<Path> {
        self.names
            .iter()
            .filter(|(_, item)| matches!(item, Item::Dir { .. }))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// A name in one of the directories, of few possible ones: they are used again and again.
    fn some_name(&self, dice: &mut Dice) -> Option<Path> {
        const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "s", "n"];
        let dirs: Vec<_> = self.dirs();
        let dir = dice.pick(&dirs)?.clone();
        // Not deeper and deeper.
        (dir.split('/').count() < 4).then(|| format!("{dir}/{}", NAMES[dice.roll(NAMES.len())]))
    }

    fn free(&self, _root: &str, dice: &mut Dice) -> Option<Path> {
        self.some_name(dice)
            .filter(|path| !self.names.contains_key(path))
    }

    fn is_empty(&self, dir: &str) -> bool {
        let prefix = format!("{dir}/");
        !self.names.keys().any(|path| path.starts_with(&prefix))
    }

    fn empty_dir(&self, root: &str, dice: &mut Dice) -> Option<Path> {
        let empty: Vec<_> = self
            .dirs()
            .into_iter()
            .filter(|dir| dir != root && self.is_empty(dir))
            .collect();
        dice.pick(&empty).cloned()
    }

    fn file_rename(&self, _root: &str, dice: &mut Dice) -> Option<Op> {
        let (from, to) = (self.leaf(dice)?, self.some_name(dice)?);
        let fits = from != to && !matches!(self.names.get(&to), Some(Item::Dir { .. }));
        fits.then_some(Op::Rename(from, to))
    }

    fn dir_rename(&self, root: &str, dice: &mut Dice) -> Option<Op> {
        let movable: Vec<_> = self
            .names
            .iter()
            .filter(|(path, item)| match item {
                Item::Dir { pure, .. } => *pure || (self.rules.dirs_move && *path != root),
                _ => false,
            })
            .map(|(path, _)| path.clone())
            .collect();
        let (from, to) = (dice.pick(&movable)?.clone(), self.some_name(dice)?);
        let over = match self.names.get(&to) {
            None => true,
            Some(Item::Dir { .. }) => self.is_empty(&to),
            Some(_) => false,
        };
        let fits = over && from != to && !format!("{to}/").starts_with(&format!("{from}/"));
        fits.then_some(Op::Rename(from, to))
    }
}

fn overwrite(file: &mut Vec<u8>, at: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = at + data.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(data);
}

/// One line for each name that differs.
pub(crate) fn difference(expected: &View, seen: &View) -> String {
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(seen.keys()).collect();
    let mut lines = Vec::new();
    for path in paths {
        let (a, b) = (expected.get(path), seen.get(path));
        if a != b {
            lines.push(format!(
                "{path}: expected {}, there is {}",
                show(a),
                show(b)
            ));
            if let (Some(Seen::File { data: a, .. }), Some(Seen::File { data: b, .. })) = (a, b) {
                let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                lines.push(format!("  the data is the same up to byte {same}"));
            }
        }
    }
    lines.join("\n")
}

fn show(seen: Option<&Seen>) -> String {
    match seen {
        None => "nothing".to_owned(),
        Some(Seen::Dir(mode)) => format!("a directory, mode {mode:o}"),
        Some(Seen::Link(target)) => format!("a link to {target}"),
        Some(Seen::File {
            data,
            mode,
            owner,
            mark,
        }) => {
            let mark = if mark.is_some() { ", marked" } else { "" };
            let size = data.len();
            format!("a file of {size} bytes, mode {mode:o}, of {owner}{mark}")
        }
    }
}
