//! Entering what a look-up found: the node for it, made where there is none yet.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::Stat;

use super::layer::{LayerIndex, RealDir, RealId};
use super::lookup::{DirLayer, Found, LowerAt, Source};
use super::metacopy::DataPlace;
use super::node::{DirPart, Link, Node, Real, State};
use super::spot::Spot;
use super::table::Key;
use super::types::{Attr, Fault, FileKind, Ino};
use super::{Outcome, Union};
use crate::sys::Errno;

/// What a new node starts with.
struct Place<'a> {
    parent: &'a Arc<Node>,
    name: &'a OsStr,
    real: &'a Real,
    data: Option<&'a Arc<DataPlace>>,
}

impl Union {
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
            Source::Index => {
                let index = self.index.as_ref().ok_or_else(|| gone(name))?;
                let ino = self.origins.get(id).ok_or_else(|| gone(name))?;
                let key = Key::Real(LayerIndex::Upper, id);
                (index.dir(), ino, key, Real::Upper(id))
            }
            Source::Lower(slot) => {
                let lower = &dir.lowers[usize::from(slot)];
                let key = if stat.st_nlink > 1 && self.work.is_some() && self.index.is_none() {
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
        // Nothing is recorded where there is an index: both are the machine's root's.
        let record = match source {
            Source::Index => None,
            _ => self.record(real_dir, name, stat)?,
        };
        let mut attr = self.owners.show(ino, stat, record);
        let place = Place {
            parent,
            name,
            real: &real,
            data: data.as_ref(),
        };
        let fits = |node: &Node| self.is_same_file(node, &real);
        let node = self.node_for(&place, key, ino, attr.kind, fits, || None);
        if self.layers_change.load(Ordering::Relaxed) {
            self.settle(&node, parent, name, &real);
        }
        if source == Source::Upper {
            self.adopt(&node, parent, name, id);
        }
        attr.ino = node.state.read().ino;
        self.show_union_links(&node, stat, &mut attr);
        if data.is_some() {
            if let Err(fault) = self.recheck(&node, real_dir, name, source) {
                self.release(node.id, 1);
                return Err(fault);
            }
            self.show_data_blocks(&node, &mut attr);
        }
        Ok((node, attr))
    }

    /// A new node of an upper file that was completed after it had been looked at.
    fn recheck(&self, node: &Node, dir: &RealDir, name: &OsStr, source: Source) -> Outcome<()> {
        if source == Source::Upper && dir.sure_xattr(name, self.namespace.metacopy())?.is_none() {
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
        if let (Some(_), Some(upper), Some((at, _))) = (&upper, dir.upper.get(), lowers.first()) {
            self.complete_origin(upper, name, &lower_spot(dir, name, at));
        }
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
        let fits = |node: &Node| self.has_layers(node, upper.as_ref(), lowers);
        let node = self.node_for(&place, key, ino, FileKind::Directory, fits, make);
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
        fits: impl Fn(&Node) -> bool,
        dir: impl Fn() -> Option<Arc<DirPart>>,
    ) -> Arc<Node> {
        let mut key = self.own_key(place, key, ino);
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
            let changed = self.layers_change.load(Ordering::Relaxed) && !fits(&node);
            if node.kind == kind && !changed {
                if !self.is_elsewhere(place, &key, &node) {
                    return node;
                }
                self.follow.doubled.store(true, Ordering::Relaxed);
                key = Key::name(place.parent.id, place.name);
                self.release(node.id, 1);
                continue;
            }
            // A layer was changed from outside: another object has the number now.
            self.give_up(&node);
            self.release(node.id, 1);
        }
    }

    /// The key of a lower object that redirects show in two places: its name here.
    fn own_key(&self, place: &Place<'_>, key: Key, ino: Ino) -> Key {
        if matches!(key, Key::Real(LayerIndex::Lower(_), _))
            && self.follow.doubled.load(Ordering::Relaxed)
        {
            let named = Key::name(place.parent.id, place.name);
            if self.table.find(&named, ino).is_some() {
                return named;
            }
        }
        key
    }

    /// Whether the node of a lower object was found in another place: a redirect leads there. A
    /// copy-up in one of the two must not be one in the other.
    fn is_elsewhere(&self, place: &Place<'_>, key: &Key, node: &Arc<Node>) -> bool {
        self.follow.redirects
            && matches!(key, Key::Real(LayerIndex::Lower(_), _))
            && node
                .state
                .read()
                .link
                .as_ref()
                .is_some_and(|link| !link.is(place.parent, place.name))
            // With an index, the names of a hard-linked file are to find one node.
            && (self.index.is_none() || node.dir.is_some())
            && (!self.layers_change.load(Ordering::Relaxed) || self.is_where_it_was(node))
    }

    /// Notes a name that a node was found under. A node whose own name has gone (another link was
    /// unlinked) is reached by it from now on.
    fn adopt(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &OsStr, id: RealId) {
        loop {
            let named = {
                let state = node.state.read();
                let link = state.link.as_ref();
                if state.named && link.is_some_and(|link| link.is(parent, name)) {
                    return;
                }
                state.named
            };
            if named {
                self.aliases.add(node.id, parent.id, name);
                // Its name may have gone just before, and no further one been found for it.
                if node.state.read().named {
                    return;
                }
                self.aliases.remove(node.id, parent.id, name);
            }
            let link = Link {
                parent: parent.clone(),
                name: name.into(),
            };
            if self.table.relink_nameless(node, link, Real::Upper(id)) {
                return;
            }
        }
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

/// Where a lower directory can be reached.
fn lower_spot(dir: &DirPart, name: &OsStr, at: &LowerAt) -> Spot {
    match at {
        LowerAt::Slot(slot) => Spot::At {
            dir: dir.lowers[usize::from(*slot)].clone(),
            name: name.into(),
        },
        LowerAt::Elsewhere(found) => Spot::itself(found),
    }
}

fn gone(name: &OsStr) -> Fault {
    Fault::merged("look-up", Errno::STALE).named(name)
}
