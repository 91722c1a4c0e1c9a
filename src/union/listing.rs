//! Directory listings: the names of all layers of a directory, without what is whited out.
//!
//! A name's position is a hash of it. So a listing that was dropped and built anew goes on where
//! the old one stood, and one that is changed between two reads neither skips nor repeats what
//! stayed: `rm -r` needs that.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use rustix::fs::FileType;

use super::layer::{LayerIndex, RealDir, RealId};
use super::locks::{OrderedMutex, Rank};
use super::lookup::Found;
use super::node::{DirPart, Node};
use super::types::{DirEntry, Entry, Fault, FileKind, Flow, Ino, NodeId, Place};
use super::{DirNode, Outcome, Union};
use crate::dotted;
use crate::format::dotted::{Name, read};
use crate::format::{Form, MAY_HOLD_XATTR_WHITEOUTS};
use crate::sys::{Errno, tree};

/// Positions of `.` and `..`; names come behind them.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Names read at a time while the listing isn't locked.
const BATCH: usize = 128;
/// Names in all cached listings together, about.
const CACHED_NAMES: usize = 1 << 18;

/// The names of one directory, by position.
#[derive(Debug)]
pub(super) struct Listing {
    names: BTreeMap<u64, Listed>,
    built: Instant,
}

impl Default for Listing {
    fn default() -> Self {
        Self {
            names: BTreeMap::new(),
            built: Instant::now(),
        }
    }
}

#[derive(Debug, Clone)]
struct Listed {
    name: Box<OsStr>,
    kind: FileKind,
    ino: Ino,
}

impl Listing {
    fn position(&self, name: &OsStr) -> Result<u64, u64> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        // A directory offset is a positive off_t.
        let mut at = (hasher.finish() >> 1).max(DOT_DOT + 1);
        // Two names with one hash stand side by side.
        while let Some(listed) = self.names.get(&at) {
            if *listed.name == *name {
                return Ok(at);
            }
            at = at.wrapping_add(1).max(DOT_DOT + 1) & (u64::MAX >> 1);
        }
        Err(at)
    }

    pub(super) fn insert(&mut self, name: &OsStr, kind: FileKind, ino: Ino) {
        let (Ok(at) | Err(at)) = self.position(name);
        let name = name.into();
        self.names.insert(at, Listed { name, kind, ino });
    }

    pub(super) fn remove(&mut self, name: &OsStr) {
        if let Ok(at) = self.position(name) {
            self.names.remove(&at);
        }
    }

    fn after(&self, offset: u64) -> Vec<(u64, Listed)> {
        let from = offset.max(DOT_DOT) + 1;
        self.names
            .range(from..)
            .take(BATCH)
            .map(|(at, listed)| (*at, listed.clone()))
            .collect()
    }
}

/// The cached listings, the least used dropped first.
#[derive(Debug)]
pub(super) struct Listings {
    cache: OrderedMutex<Cache>,
    /// How old one may get, where somebody else changes the layers.
    timeout: Option<Duration>,
}

#[derive(Debug)]
struct Cache {
    lists: LruCache<NodeId, Arc<OrderedMutex<Listing>>>,
    names: usize,
}

impl Listings {
    pub(super) fn new(timeout: Option<Duration>) -> Self {
        let cache = Cache {
            lists: LruCache::unbounded(),
            names: 0,
        };
        Self {
            cache: OrderedMutex::new(Rank::Listing, cache),
            timeout,
        }
    }

    fn get(&self, id: NodeId) -> Option<Arc<OrderedMutex<Listing>>> {
        self.cache.lock().lists.get(&id).cloned()
    }

    /// As [`Listings::get`] for whoever begins to read the directory: none that is too old.
    fn get_fresh(&self, id: NodeId) -> Option<Arc<OrderedMutex<Listing>>> {
        let listing = self.get(id)?;
        let old = self
            .timeout
            .is_some_and(|timeout| listing.lock().built.elapsed() >= timeout);
        (!old).then_some(listing)
    }

    /// Drops all of them.
    pub(super) fn clear(&self) {
        let mut cache = self.cache.lock();
        cache.names = 0;
        let dropped = std::mem::replace(&mut cache.lists, LruCache::unbounded());
        drop(cache);
        drop(dropped);
    }

    fn put(&self, id: NodeId, listing: Listing) -> Arc<OrderedMutex<Listing>> {
        let count = listing.names.len();
        let listing = Arc::new(OrderedMutex::new(Rank::Leaf, listing));
        let mut dropped = Vec::new();
        let mut cache = self.cache.lock();
        if let Some(old) = cache.lists.put(id, listing.clone()) {
            cache.names = cache.names.saturating_sub(old.lock().names.len());
            dropped.push(old);
        }
        cache.names += count;
        while cache.names > CACHED_NAMES && cache.lists.len() > 1 {
            if let Some((_, old)) = cache.lists.pop_lru() {
                cache.names = cache.names.saturating_sub(old.lock().names.len());
                dropped.push(old);
            }
        }
        drop(cache);
        listing
    }

    pub(super) fn drop_listing(&self, id: NodeId) {
        let mut cache = self.cache.lock();
        let dropped = cache.lists.pop(&id);
        if let Some(listing) = &dropped {
            cache.names = cache.names.saturating_sub(listing.lock().names.len());
        }
        drop(cache);
    }

    /// Changes a directory's listing if it is cached. The caller holds the directory's names.
    pub(super) fn update(&self, id: NodeId, change: impl FnOnce(&mut Listing)) {
        if let Some(listing) = self.get(id) {
            change(&mut listing.lock());
        }
    }
}

impl Union {
    /// Lists a directory from `offset` (0, or a `next` of an earlier entry) until `take` is full.
    pub fn readdir(
        &self,
        id: NodeId,
        offset: u64,
        take: &mut dyn FnMut(DirEntry<'_>) -> Flow,
    ) -> Outcome<()> {
        self.list(id, offset, &mut |_, entry| Ok(take(entry)))
    }

    /// As [`Union::readdir`], each name looked up; counts one look-up for each entry that was
    /// taken, `.` and `..` excepted: these come without an [`Entry`].
    pub fn readdir_plus(
        &self,
        id: NodeId,
        offset: u64,
        take: &mut dyn FnMut(DirEntry<'_>, Option<Entry>) -> Flow,
    ) -> Outcome<()> {
        self.list(id, offset, &mut |is_name, listed| {
            if !is_name {
                return Ok(take(listed, None));
            }
            let entry = self.lookup(id, listed.name).ok().flatten();
            let mut listed = listed;
            if entry.is_none() {
                // A name that can't be looked up is listed all the same, as by readdir. The kernel
                // makes an inode of its number, which therefore is nobody's: it would give back
                // a look-up that was never counted.
                listed.ino = Ino(self.ground.numbers.fresh());
            }
            let flow = take(listed, entry);
            if let (Flow::Full, Some(entry)) = (flow, entry) {
                self.forget(entry.id, 1);
            }
            Ok(flow)
        })
    }

    fn list(
        &self,
        id: NodeId,
        offset: u64,
        take: &mut dyn FnMut(bool, DirEntry<'_>) -> Outcome<Flow>,
    ) -> Outcome<()> {
        let DirNode { node, dir } = &self.dir_node(id)?;
        let begins = offset == 0;
        let mut offset = offset;
        if offset < DOT_DOT {
            let own = node.state.read().ino;
            let parent = node
                .state
                .read()
                .link
                .as_ref()
                .map(|link| link.parent.clone());
            let above = parent.map_or(own, |parent| parent.state.read().ino);
            for (at, name, ino) in [(DOT, ".", own), (DOT_DOT, "..", above)] {
                if offset < at {
                    let kind = FileKind::Directory;
                    let entry = DirEntry {
                        ino,
                        next: at,
                        kind,
                        name: OsStr::new(name),
                    };
                    if take(false, entry)? == Flow::Full {
                        return Ok(());
                    }
                    offset = at;
                }
            }
        }
        if !node.state.read().named {
            return Ok(());
        }
        let listing = self.listing(node, dir, begins)?;
        loop {
            let batch = listing.lock().after(offset);
            if batch.is_empty() {
                return Ok(());
            }
            for (at, listed) in batch {
                let entry = DirEntry {
                    ino: listed.ino,
                    next: at,
                    kind: listed.kind,
                    name: &listed.name,
                };
                if take(true, entry)? == Flow::Full {
                    return Ok(());
                }
                offset = at;
            }
        }
    }

    fn listing(
        &self,
        node: &Node,
        dir: &DirPart,
        begins: bool,
    ) -> Outcome<Arc<OrderedMutex<Listing>>> {
        let known = match begins {
            true => self.listings.get_fresh(node.id),
            false => self.listings.get(node.id),
        };
        if let Some(listing) = known {
            return Ok(listing);
        }
        // Whoever changes a name waits, so that the change is in the listing or comes after it.
        let _names = dir.names.read();
        let listing = self.build_listing(dir)?;
        Ok(self.listings.put(node.id, listing))
    }

    /// Whether a directory shows no name at all. The caller holds its names.
    ///
    /// A fake root may remove what it may not read: a lower directory that keeps its names from
    /// us counts as empty for it, or `rm -rf` could do nothing about it.
    pub(super) fn is_empty(&self, node: &Node, dir: &DirPart) -> Outcome<bool> {
        if let Some(listing) = self.listings.get_fresh(node.id) {
            return Ok(listing.lock().names.is_empty());
        }
        match self.build_listing(dir) {
            Ok(listing) => Ok(listing.names.is_empty()),
            Err(fault)
                if fault.errno == Errno::ACCESS
                    && matches!(fault.place, Place::Lower(_))
                    && self.owners.records() =>
            {
                Ok(true)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Refuses to drop what is in an upper directory if that is more than whiteouts, whatever its listing says: an
    /// object whose making failed half-way may not be listed. The caller holds its names.
    pub(super) fn refuse_unlisted(
        &self,
        op: &'static str,
        name: &OsStr,
        child: &DirNode,
    ) -> Outcome<()> {
        let Some(real) = child.dir.upper.get() else {
            return Ok(());
        };
        for (object, file_type, ino) in read_real(real)?.objects {
            if self.judge(real, &object, file_type, ino)?.is_some() {
                self.listings.drop_listing(child.node.id);
                return Err(Fault::merged(op, Errno::NOTEMPTY).named(name));
            }
        }
        Ok(())
    }

    /// Passes on what became of a new name. It may be there though making it failed half-way: then the directory has
    /// to be read anew, by the kernel, too.
    pub(super) fn or_unlist<T>(&self, dir: NodeId, made: Outcome<T>) -> Outcome<T> {
        made.inspect_err(|_| {
            self.listings.drop_listing(dir);
            self.watcher.tell(dir);
        })
    }

    fn build_listing(&self, dir: &DirPart) -> Outcome<Listing> {
        let mut listing = Listing::default();
        let layers: Vec<_> = dir
            .upper
            .get()
            .into_iter()
            .chain(dir.lowers.iter())
            .collect();
        // Names that a higher layer has decided on, whiteouts too.
        let mut decided: HashSet<OsString> = HashSet::new();
        let mut lower_names = self.notes_lower_names(dir);
        for (index, real) in layers.iter().enumerate() {
            let is_last = index + 1 == layers.len();
            let names = match read_real(real) {
                Ok(names) => names,
                // A fake root's own names in a directory that it may not read.
                Err(fault)
                    if fault.errno == Errno::ACCESS
                        && index > 0
                        && dir.upper.get().is_some()
                        && self.owners.records() =>
                {
                    lower_names = None;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let slot = index.checked_sub(usize::from(dir.upper.get().is_some()));
            for (name, file_type, ino) in names.objects {
                if let (Some(lower_names), Some(slot)) = (&mut lower_names, slot) {
                    lower_names.add(&name, slot as u16);
                }
                if !decided.is_empty() && decided.contains(&name) {
                    continue;
                }
                let Err(at) = listing.position(&name) else {
                    continue;
                };
                let Some((kind, id)) = self.judge(real, &name, file_type, ino)? else {
                    if !is_last {
                        decided.insert(name);
                    }
                    continue;
                };
                let below = &layers[index + 1..];
                let ino = if self.follow.is_on() && kind == FileKind::Directory {
                    self.followed_ino(dir, real, &name, id)?
                } else {
                    self.listed_ino(real, &name, kind, id, below)?
                };
                let name = name.into_boxed_os_str();
                listing.names.insert(at, Listed { name, kind, ino });
            }
            // After the objects, which they don't hide in their own layer.
            for name in names.hidden {
                if let (Some(lower_names), Some(slot)) = (&mut lower_names, slot) {
                    lower_names.add(&name, slot as u16);
                }
                decided.insert(name);
            }
        }
        if let Some(lower_names) = lower_names {
            self.keep_lower_names(dir, lower_names);
        }
        Ok(listing)
    }

    /// The type and identity of a name that one layer lists, `None` for a whiteout.
    fn judge(
        &self,
        real: &RealDir,
        name: &OsStr,
        file_type: FileType,
        ino: u64,
    ) -> Outcome<Option<(FileKind, RealId)>> {
        let listed = RealId {
            fs: real.id.fs,
            ino,
        };
        let may_be_xattr_whiteout = self.may_hold_xattr_whiteouts(real.layer);
        let look = match file_type {
            FileType::CharacterDevice | FileType::Unknown => true,
            // The kernel looks only where the directory says that there may be some.
            FileType::RegularFile if may_be_xattr_whiteout => {
                real.xattr(OsStr::new("."), self.namespace.opaque())?
                    .as_deref()
                    == Some(MAY_HOLD_XATTR_WHITEOUTS)
            }
            FileType::RegularFile => {
                let upper = real.layer == LayerIndex::Upper;
                self.owners.records() && upper || self.owners.records_all()
            }
            _ => false,
        };
        if !look {
            return Ok(Some((kind_of_type(file_type), listed)));
        }
        let Some(stat) = real.stat(name)? else {
            return Ok(None);
        };
        if self.is_whiteout(real, name, &stat)? {
            return Ok(None);
        }
        let record = self.record(real, name, &stat)?;
        let kind = self.owners.show(Ino(0), &stat, record).kind;
        Ok(Some((kind, self.ground.real_id(&stat))))
    }

    /// As [`Union::listed_ino`] for a directory that may merge with one of another name.
    fn followed_ino(
        &self,
        dir: &DirPart,
        real: &RealDir,
        name: &OsStr,
        id: RealId,
    ) -> Outcome<Ino> {
        let lower = match real.layer {
            LayerIndex::Upper => match self.find(dir, name) {
                Ok(Some(Found::Dir { lowers, .. })) => {
                    let first = lowers.first();
                    first.map(|(_, lower)| self.ground.real_id(&lower.stat))
                }
                // The look-up says what is wrong; here the name is listed all the same.
                _ => None,
            },
            LayerIndex::Lower(_) => None,
        };
        let id = lower.unwrap_or(id);
        Ok(self.ground.numbers.ino(id.fs, id.ino))
    }

    /// `d_ino`: what `stat` will show as `st_ino`.
    fn listed_ino(
        &self,
        real: &RealDir,
        name: &OsStr,
        kind: FileKind,
        id: RealId,
        below: &[&Arc<RealDir>],
    ) -> Outcome<Ino> {
        if real.layer != LayerIndex::Upper {
            return Ok(self.ground.numbers.ino(id.fs, id.ino));
        }
        if kind != FileKind::Directory || below.is_empty() {
            return self.upper_ino(real, name, id, kind);
        }
        // A merged directory has the number of its top lower one.
        if real.is_opaque(name, self.namespace.opaque())? {
            return self.upper_ino(real, name, id, kind);
        }
        for lower in below {
            let Some(stat) = lower.stat(name)? else {
                continue;
            };
            if !super::lookup::is_dir(&stat) {
                break;
            }
            let id = self.ground.real_id(&stat);
            return Ok(self.ground.numbers.ino(id.fs, id.ino));
        }
        self.upper_ino(real, name, id, kind)
    }
}

/// All names of one real directory.
#[derive(Debug, Default)]
pub(super) struct RealNames {
    /// What is there; in the kernel's form, whiteouts too.
    pub(super) objects: Vec<(OsString, FileType, u64)>,
    /// In the fallback form: names that are hidden of the layers below.
    pub(super) hidden: Vec<OsString>,
}

/// Reads all names of one real directory.
pub(super) fn read_real(real: &RealDir) -> Outcome<RealNames> {
    let fault = |errno| real.fault("reading a directory", OsStr::new("."), errno);
    let own = real.open_to_list()?;
    let mut names = RealNames::default();
    tree::for_each(own.as_fd(), |name, file_type, ino| {
        match real.form {
            Form::Kernel => {}
            Form::Dotted => match read(name) {
                Name::Plain => {}
                Name::Whiteout(hidden) => {
                    if matches!(file_type, FileType::RegularFile | FileType::Unknown) {
                        names.hidden.push(hidden.to_os_string());
                    }
                    return;
                }
                Name::LongWhiteout => {
                    let hidden = dotted::hidden_by(own.as_fd(), name);
                    return names.hidden.extend(hidden.ok().flatten());
                }
                Name::Reserved => return,
            },
        }
        names.objects.push((name.to_os_string(), file_type, ino));
    })
    .map_err(fault)?;
    Ok(names)
}

fn kind_of_type(file_type: FileType) -> FileKind {
    FileKind::of_mode(file_type.as_raw_mode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_goes_on_where_it_stood_whatever_changes() {
        let mut listing = Listing::default();
        for number in 0..1000 {
            listing.insert(
                OsStr::new(&number.to_string()),
                FileKind::Regular,
                Ino(number),
            );
        }
        let mut seen = Vec::new();
        let mut offset = 0;
        loop {
            let batch = listing.after(offset);
            let Some((last, _)) = batch.last() else { break };
            offset = *last;
            for (_, listed) in batch {
                listing.remove(&listed.name);
                seen.push(listed.ino.0);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }
}
