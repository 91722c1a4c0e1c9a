//! Look-up: which layers have a name, and the node for it.
//!
//! Upper first, then the lower layers from the top. A whiteout, an opaque directory or anything
//! that isn't a directory ends the search (`overlayfs.rst`, "Upper and Lower").

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::Stat;

use super::descriptors::OpenFile;
use super::layer::{LayerIndex, RealDir, RealId};
use super::metacopy::DataPlace;
use super::node::{DirPart, Link, Node, Real, State};
use super::table::Key;
use super::types::{Attr, Entry, Fault, FileKind, Ino, NodeId};
use super::{DirNode, Outcome, Union};
use crate::format::redirect::Redirect;
use crate::format::{self, MAY_HOLD_XATTR_WHITEOUTS, OPAQUE};
use crate::sys::{Errno, xattr};

/// What a name is, in the layers.
#[derive(Debug)]
pub(super) enum Found {
    /// Not a directory.
    Leaf {
        source: Source,
        stat: Stat,
        /// Where its data is, if that is elsewhere.
        data: Option<Arc<DataPlace>>,
    },
    /// A directory and all the layers that make it up.
    Dir {
        upper: Option<DirLayer>,
        lowers: Vec<(LowerAt, DirLayer)>,
    },
}

/// Where a lower directory is.
#[derive(Debug)]
pub(super) enum LowerAt {
    /// Under its name in the parent's lower directory with this index.
    Slot(u16),
    /// Where a redirect led.
    Elsewhere(Arc<RealDir>),
}

/// The layer that shows a name: the upper, or the parent's lower directory with this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Upper,
    Lower(u16),
}

/// A directory seen in one layer.
#[derive(Debug)]
pub(super) struct DirLayer {
    pub(super) stat: Stat,
    /// Its descriptor, where it had to be opened for a look at its attributes.
    pub(super) opened: Option<Arc<OpenFile>>,
}

/// What a new node starts with.
struct Place<'a> {
    parent: &'a Arc<Node>,
    name: &'a OsStr,
    real: &'a Real,
    data: Option<&'a Arc<DataPlace>>,
}

/// Whether the layers below a directory still count.
enum Merge {
    Goes(Option<Arc<OpenFile>>),
    Stops(Option<Arc<OpenFile>>),
}

impl Union {
    /// Looks a name up; `None` says that it isn't there (a caller may remember that).
    /// Counts one look-up.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Outcome<Option<Entry>> {
        check_name(name)?;
        let DirNode { node: parent, dir } = self.dir_node(parent)?;
        let _names = dir.names.read();
        let Some(found) = self.find(&dir, name)? else {
            return Ok(None);
        };
        let (node, attr) = self.enter(&parent, &dir, name, found)?;
        Ok(Some(Entry {
            id: node.id,
            generation: node.generation,
            attr,
        }))
    }

    /// Finds a name in the layers of a directory.
    pub(super) fn find(&self, dir: &DirPart, name: &OsStr) -> Outcome<Option<Found>> {
        if self.follow.is_on() {
            return self.find_following(dir, name);
        }
        let mut upper = None;
        if let Some(real) = dir.upper.get()
            && let Some(stat) = real.stat(name)?
        {
            if format::is_whiteout(stat.st_mode, stat.st_rdev) {
                return Ok(None);
            }
            if !is_dir(&stat) {
                self.refuse_metacopy(real, name, &stat)?;
                return Ok(Some(Found::Leaf {
                    source: Source::Upper,
                    stat,
                    data: None,
                }));
            }
            if dir.lowers.is_empty() {
                let upper = Some(DirLayer { stat, opened: None });
                return Ok(Some(Found::Dir {
                    upper,
                    lowers: Vec::new(),
                }));
            }
            match self.merges(real, name)? {
                Merge::Goes(opened) => upper = Some(DirLayer { stat, opened }),
                Merge::Stops(opened) => {
                    let upper = Some(DirLayer { stat, opened });
                    return Ok(Some(Found::Dir {
                        upper,
                        lowers: Vec::new(),
                    }));
                }
            }
        }
        let mut lowers = Vec::new();
        let mut from = 0;
        while let Some((slot, stat)) = self.first_lower(dir, name, from)? {
            if !is_dir(&stat) {
                if upper.is_none() && lowers.is_empty() {
                    self.refuse_metacopy(&dir.lowers[usize::from(slot)], name, &stat)?;
                    return Ok(Some(Found::Leaf {
                        source: Source::Lower(slot),
                        stat,
                        data: None,
                    }));
                }
                break;
            }
            from = usize::from(slot) + 1;
            // The lowest layer has nothing below it that an opaque mark could hide.
            if from == dir.lowers.len() {
                lowers.push((LowerAt::Slot(slot), DirLayer { stat, opened: None }));
                break;
            }
            match self.merges(&dir.lowers[usize::from(slot)], name)? {
                Merge::Goes(opened) => {
                    lowers.push((LowerAt::Slot(slot), DirLayer { stat, opened }));
                }
                Merge::Stops(opened) => {
                    lowers.push((LowerAt::Slot(slot), DirLayer { stat, opened }));
                    break;
                }
            }
        }
        if upper.is_none() && lowers.is_empty() {
            return Ok(None);
        }
        Ok(Some(Found::Dir { upper, lowers }))
    }

    /// The topmost lower object with this name, from the lower directory `from` downwards; none
    /// where a whiteout comes first.
    pub(super) fn first_lower(
        &self,
        dir: &DirPart,
        name: &OsStr,
        from: usize,
    ) -> Outcome<Option<(u16, Stat)>> {
        for (slot, real) in dir.lowers.iter().enumerate().skip(from) {
            let stat = match real.stat(name) {
                Ok(Some(stat)) => stat,
                Ok(None) => continue,
                // What is in there is nobody's business, but a fake root may put its own beside.
                Err(fault) if fault.errno == Errno::ACCESS && self.owners.records() => continue,
                Err(fault) => return Err(fault),
            };
            if format::is_whiteout(stat.st_mode, stat.st_rdev)
                || self.is_xattr_whiteout(real, name, &stat)?
            {
                return Ok(None);
            }
            return Ok(Some((slot as u16, stat)));
        }
        Ok(None)
    }

    /// Whether a lower layer shows this name, so that removing it needs a whiteout. Asked of the
    /// layers each time: a remembered answer is how deleted files come back.
    pub(super) fn lower_has(&self, dir: &DirPart, name: &OsStr) -> Outcome<bool> {
        Ok(self.first_lower(dir, name, 0)?.is_some())
    }

    /// An empty regular file with the `whiteout` attribute. A look-up finds no such name, whatever
    /// its directory says; only a listing goes by that.
    pub(super) fn is_xattr_whiteout(
        &self,
        real: &RealDir,
        name: &OsStr,
        stat: &Stat,
    ) -> Outcome<bool> {
        if FileKind::of_mode(stat.st_mode) != FileKind::Regular || stat.st_size != 0 {
            return Ok(false);
        }
        Ok(real.xattr(name, self.namespace.whiteout())?.is_some())
    }

    /// A regular file whose data lies elsewhere (`metacopy=on` wrote it) must not be shown with
    /// its own, which is a hole. The kernel refuses it, too, where the option is off.
    fn refuse_metacopy(&self, real: &RealDir, name: &OsStr, stat: &Stat) -> Outcome<()> {
        if self.is_metacopy(real, name, stat)? {
            return Err(real.fault("following a metadata copy", name, Errno::PERM));
        }
        Ok(())
    }

    fn merges(&self, real: &RealDir, name: &OsStr) -> Outcome<Merge> {
        let file = match real.open_child_dir(name) {
            Ok(file) => file,
            Err(fault) if fault.errno == Errno::ACCESS => return Ok(Merge::Goes(None)),
            Err(fault) => return Err(fault),
        };
        let attr = |attr| xattr::fget(file.as_fd(), attr).ok();
        match (attr(self.namespace.opaque()).as_deref(), real.layer) {
            (Some(OPAQUE), _) => return Ok(Merge::Stops(Some(file))),
            (Some(MAY_HOLD_XATTR_WHITEOUTS), LayerIndex::Lower(layer)) => {
                self.xattr_whiteouts[usize::from(layer)].store(true, Ordering::Relaxed);
            }
            _ => {}
        }
        if let Some(value) = attr(self.namespace.redirect()) {
            if Redirect::parse(&value).is_err() {
                return Err(real.fault("reading a redirect", name, Errno::INVAL));
            }
            // Merging by another name was not asked for; the kernel refuses, too.
            return Err(real.fault("following a redirect", name, Errno::PERM));
        }
        Ok(Merge::Goes(Some(file)))
    }

    /// The node for what was found under `name` in `parent`, and its attributes. Counts one
    /// look-up.
    pub(super) fn enter(
        &self,
        parent: &Arc<Node>,
        dir: &DirPart,
        name: &OsStr,
        found: Found,
    ) -> Outcome<(Arc<Node>, Attr)> {
        match found {
            Found::Leaf { source, stat, data } => {
                self.enter_leaf(parent, dir, name, source, &stat, data)
            }
            Found::Dir { upper, lowers } => self.enter_dir(parent, dir, name, upper, &lowers),
        }
    }

    fn enter_leaf(
        &self,
        parent: &Arc<Node>,
        dir: &DirPart,
        name: &OsStr,
        source: Source,
        stat: &Stat,
        data: Option<Arc<DataPlace>>,
    ) -> Outcome<(Arc<Node>, Attr)> {
        let id = self.ground.real_id(stat);
        let (real_dir, ino, key, real) = match source {
            Source::Upper => {
                let Some(upper) = dir.upper.get() else {
                    return Err(gone(name));
                };
                (
                    upper,
                    self.upper_ino(upper, name, id, FileKind::of_mode(stat.st_mode))?,
                    Key::Real(LayerIndex::Upper, id),
                    Real::Upper(id),
                )
            }
            Source::Lower(slot) => {
                let lower = &dir.lowers[usize::from(slot)];
                let key = if stat.st_nlink > 1 && self.work.is_some() {
                    Key::name(parent.id, name)
                } else {
                    Key::Real(lower.layer, id)
                };
                (
                    lower,
                    self.ground.numbers.ino(id.fs, id.ino),
                    key,
                    Real::Lower { slot, id },
                )
            }
        };
        let record = self.record(real_dir, name, stat)?;
        let mut attr = self.owners.show(ino, stat, record);
        let place = Place {
            parent,
            name,
            real: &real,
            data: data.as_ref(),
        };
        let node = self.node_for(&place, key, ino, attr.kind, || None);
        if source == Source::Upper {
            self.adopt(&node, parent, name, id);
        }
        attr.ino = node.state.read().ino;
        if data.is_some() {
            self.recheck(&node, real_dir, name, source)?;
            self.show_data_blocks(&node, &mut attr);
        }
        Ok((node, attr))
    }

    /// A new node of an upper file that was completed after it had been looked at.
    fn recheck(&self, node: &Node, dir: &RealDir, name: &OsStr, source: Source) -> Outcome<()> {
        if source == Source::Upper && dir.xattr(name, self.namespace.metacopy())?.is_none() {
            let old = node.state.write().data.take();
            drop(old);
        }
        Ok(())
    }

    fn enter_dir(
        &self,
        parent: &Arc<Node>,
        dir: &DirPart,
        name: &OsStr,
        upper: Option<DirLayer>,
        lowers: &[(LowerAt, DirLayer)],
    ) -> Outcome<(Arc<Node>, Attr)> {
        // The number is the top lower's: it stays when the directory is copied up.
        let numbered = match (lowers.first(), &upper) {
            (Some((_, layer)), _) | (None, Some(layer)) => self.ground.real_id(&layer.stat),
            (None, None) => return Err(gone(name)),
        };
        let ino = self.ground.numbers.ino(numbered.fs, numbered.ino);
        let (top_dir, stat, layer) = match (&upper, lowers.first()) {
            (Some(layer), _) => match dir.upper.get() {
                Some(real) => (real, &layer.stat, LayerIndex::Upper),
                None => return Err(gone(name)),
            },
            (None, Some((LowerAt::Slot(slot), layer))) => {
                let real = &dir.lowers[usize::from(*slot)];
                (real, &layer.stat, real.layer)
            }
            // Only a directory above leads elsewhere.
            (None, Some((LowerAt::Elsewhere(_), _)) | None) => return Err(gone(name)),
        };
        let key = Key::Real(layer, self.ground.real_id(stat));
        let make = || {
            let real = |parent: &Arc<RealDir>, layer: &DirLayer| {
                let child = parent.child(name, self.ground.real_id(&layer.stat));
                if let Some(file) = &layer.opened {
                    child.remember(file);
                }
                child
            };
            let upper = match (&upper, dir.upper.get()) {
                (Some(layer), Some(parent)) => Some(real(parent, layer)),
                _ => None,
            };
            let lowers = lowers
                .iter()
                .map(|(at, layer)| match at {
                    LowerAt::Slot(slot) => real(&dir.lowers[usize::from(*slot)], layer),
                    LowerAt::Elsewhere(found) => {
                        if let Some(file) = &layer.opened {
                            found.remember(file);
                        }
                        found.clone()
                    }
                })
                .collect();
            Some(DirPart::new(upper, lowers))
        };
        let record = self.record(top_dir, name, stat)?;
        let place = Place {
            parent,
            name,
            real: &Real::Dir,
            data: None,
        };
        let node = self.node_for(&place, key, ino, FileKind::Directory, make);
        let mut attr = self.owners.show(node.state.read().ino, stat, record);
        if node.dir.as_ref().is_some_and(|dir| dir.is_merged()) {
            attr.nlink = 1;
        }
        Ok((node, attr))
    }

    /// Finds or makes the node of `key`.
    fn node_for(
        &self,
        place: &Place<'_>,
        key: Key,
        ino: Ino,
        kind: FileKind,
        dir: impl Fn() -> Option<Arc<DirPart>>,
    ) -> Arc<Node> {
        loop {
            let numbers = &self.ground.numbers;
            let node = self.table.enter(
                key.clone(),
                ino,
                place.parent,
                numbers,
                |id, generation, key| {
                    let link = Link {
                        parent: place.parent.clone(),
                        name: place.name.into(),
                    };
                    let real = place.real.clone();
                    let state = State {
                        ino,
                        link: Some(link),
                        named: true,
                        real,
                        data: place.data.cloned(),
                    };
                    Node::new(
                        id,
                        generation,
                        kind,
                        self.ground.descriptors.slot(),
                        key,
                        state,
                        dir(),
                    )
                },
            );
            if node.kind == kind {
                return node;
            }
            // A layer was changed from outside: another object has the number now.
            self.table.rekey(&node, Key::Gone);
            self.release(node.id, 1);
        }
    }

    /// Notes a name that a node was found under. A node whose own name has gone (another link was
    /// unlinked) is reached by it from now on.
    fn adopt(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &OsStr, id: RealId) {
        let (named, known) = {
            let state = node.state.read();
            (
                state.named,
                state
                    .link
                    .as_ref()
                    .is_some_and(|link| link.is(parent, name)),
            )
        };
        if named && known {
            return;
        }
        if named {
            self.aliases.add(node.id, parent.id, name);
            return;
        }
        self.table.relink(
            node,
            Link {
                parent: parent.clone(),
                name: name.into(),
            },
        );
        let old = std::mem::replace(&mut node.state.write().real, Real::Upper(id));
        drop(old);
    }

    /// Looks for another name of an object that has lost the one it was reached by.
    pub(super) fn find_alias(&self, node: &Arc<Node>, id: RealId) {
        while let Some((parent, name)) = self.aliases.take(node.id) {
            let Some(parent) = self.table.get(parent) else {
                continue;
            };
            let upper = parent.dir.as_ref().and_then(|dir| dir.upper.get());
            let there = upper.and_then(|upper| upper.stat(&name).ok().flatten());
            if there.is_some_and(|stat| self.ground.real_id(&stat) == id) {
                self.adopt(node, &parent, &name, id);
                return;
            }
        }
    }

    /// The number of the object `name` of the upper layer that isn't a merged directory: its
    /// origin's where it was copied up.
    pub(super) fn upper_ino(
        &self,
        dir: &RealDir,
        name: &OsStr,
        id: RealId,
        kind: FileKind,
    ) -> Outcome<Ino> {
        if let Some(ino) = self.origins.get(id) {
            return Ok(ino);
        }
        let own = self.ground.numbers.ino(id.fs, id.ino);
        if kind == FileKind::Directory
            || !self.origins.are_readable()
            || !dir.is_impure(self.namespace.impure())?
        {
            return Ok(own);
        }
        let Some(value) = dir.xattr(name, self.namespace.origin())? else {
            return Ok(own);
        };
        let Some(stat) = dir.stat(name)? else {
            return Ok(own);
        };
        match self.origins.resolve(&self.ground, &value, stat.st_mode) {
            Some(ino) => {
                self.origins.insert(id, ino);
                Ok(ino)
            }
            None => Ok(own),
        }
    }
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileKind::of_mode(stat.st_mode) == FileKind::Directory
}

/// Refuses what isn't one name. The kernel never sends such; a server trusts nobody.
pub(super) fn check_name(name: &OsStr) -> Outcome<()> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(Fault::merged("reading a name", Errno::INVAL).named(name));
    }
    if bytes.len() > 255 {
        return Err(Fault::merged("reading a name", Errno::NAMETOOLONG).named(name));
    }
    Ok(())
}

fn gone(name: &OsStr) -> Fault {
    Fault::merged("look-up", Errno::STALE).named(name)
}

impl Found {
    /// A directory that was just made: no lower one counts.
    pub(super) fn made_dir(stat: Stat) -> Self {
        Found::Dir {
            upper: Some(DirLayer { stat, opened: None }),
            lowers: Vec::new(),
        }
    }
}
