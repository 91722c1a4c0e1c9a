//! The index of hard links (`index=on`): a lower file with several names is copied up into
//! `workdir/index`, where every one of its names finds the copy.
//!
//! The copy also gets the names in the upper layer that were asked for: its aliases. How many
//! names the merged tree has of it stands in an attribute, as a difference that stays true while a
//! name comes or goes.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags, Stat, XattrFlags};

use super::copy_up::{Copy, Data};
use super::layer::{RealDir, RealId};
use super::locks::{OrderedRwLock, Rank};
use super::lookup::{Found, Source};
use super::metacopy::DataPlace;
use super::node::{DirPart, Link, Node, Real};
use super::spot::Spot;
use super::types::{Attr, Fault, FileKind};
use super::{DirNode, Outcome, Union};
use crate::format::index::{Links, entry_name};
use crate::format::is_whiteout;
use crate::sys::Errno;
use crate::sys::times::times_of;

/// The index of a mount.
#[derive(Debug)]
pub(super) struct Index {
    /// `workdir/index`.
    dir: Arc<RealDir>,
    /// Names of the entries that were met, by what they are.
    entries: OrderedRwLock<HashMap<RealId, Arc<OsStr>>>,
}

impl Index {
    pub(super) fn new(dir: Arc<RealDir>) -> Self {
        Self {
            dir,
            entries: OrderedRwLock::new(Rank::Leaf, HashMap::new()),
        }
    }

    fn get(&self, id: RealId) -> Option<Arc<OsStr>> {
        self.entries.read().get(&id).cloned()
    }

    /// Notes what an entry is.
    pub(super) fn insert(&self, id: RealId, name: &OsStr) {
        self.entries.write().insert(id, name.into());
    }

    /// Where the object of an entry is.
    pub(super) fn spot(&self, id: RealId) -> Option<Spot> {
        let name = self.get(id)?;
        Some(Spot::At {
            dir: self.dir.clone(),
            name: (*name).into(),
        })
    }

    pub(super) fn dir(&self) -> &Arc<RealDir> {
        &self.dir
    }
}

/// What is to be done about the entry of a file that loses a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remaining {
    /// It isn't indexed.
    NotIndexed,
    /// It has more names.
    Names,
    /// That was its last one: the entry goes.
    None,
}

impl Union {
    /// What the entry of a lower file is called; `None` where it isn't indexed.
    pub(super) fn entry_of(&self, spot: &Spot, stat: &Stat) -> Option<OsString> {
        let is_dir = FileKind::of_mode(stat.st_mode) == FileKind::Directory;
        if self.index.is_none() || is_dir || stat.st_nlink < 2 {
            return None;
        }
        let origin = self.origins.describe(spot);
        (!origin.is_empty()).then(|| entry_name(&origin))
    }

    /// Replaces a lower file by its copy in the index, if there is one.
    pub(super) fn through_index(
        &self,
        dir: &DirPart,
        name: &OsStr,
        found: Found,
    ) -> Outcome<Found> {
        let (Some(index), Found::Leaf { source, stat, data }) = (&self.index, &found) else {
            return Ok(found);
        };
        match source {
            Source::Upper => {
                if stat.st_nlink > 1
                    && let Some(upper) = dir.upper.get()
                {
                    self.know_alias(index, upper, name, stat)?;
                }
                Ok(found)
            }
            Source::Index => Ok(found),
            Source::Lower(slot) => {
                let lower = &dir.lowers[usize::from(*slot)];
                let spot = Spot::At {
                    dir: lower.clone(),
                    name: name.into(),
                };
                let Some(entry) = self.entry_of(&spot, stat) else {
                    return Ok(found);
                };
                let Some(there) = index.dir.stat(&entry)? else {
                    return Ok(found);
                };
                let other_kind = (there.st_mode ^ stat.st_mode) & libc::S_IFMT != 0;
                if other_kind || is_whiteout(there.st_mode, there.st_rdev) {
                    return Err(index
                        .dir
                        .fault("finding a file by its index", &entry, Errno::IO));
                }
                let lower_id = self.ground.real_id(stat);
                let id = self.ground.real_id(&there);
                index.insert(id, &entry);
                self.origins
                    .insert(id, self.ground.numbers.ino(lower_id.fs, lower_id.ino));
                let data = if self.is_metacopy(&index.dir, &entry, &there)? {
                    let here = || DataPlace::found(lower, name, lower_id);
                    Some(data.clone().unwrap_or_else(here))
                } else {
                    None
                };
                Ok(Found::Leaf {
                    source: Source::Index,
                    stat: there,
                    data,
                })
            }
        }
    }

    /// Finds out whether an upper file with several names has one in the index.
    fn know_alias(&self, index: &Index, upper: &RealDir, name: &OsStr, stat: &Stat) -> Outcome<()> {
        let id = self.ground.real_id(stat);
        if index.get(id).is_some() {
            return Ok(());
        }
        let Some(origin) = upper.xattr(name, self.namespace.origin())? else {
            return Ok(());
        };
        let entry = entry_name(&origin);
        if !origin.is_empty()
            && entry.len() <= 255
            && let Some(there) = index.dir.stat(&entry)?
            && self.ground.real_id(&there) == id
        {
            index.insert(id, &entry);
        }
        Ok(())
    }

    /// How many names the merged tree has of an indexed file; what `stat` says of the entry is
    /// given.
    pub(super) fn union_links(&self, entry: &Spot, stat: &Stat) -> u32 {
        let nlink = i64::try_from(stat.st_nlink).unwrap_or(i64::MAX);
        let value = entry.get_xattr(self.namespace.nlink()).ok();
        let links = match value.and_then(|value| Links::parse(&value)) {
            Some(Links::Upper(more)) => nlink + i64::from(more),
            Some(Links::Lower(more)) => match self.lower_links(entry) {
                Some(lower) => i64::from(lower) + i64::from(more),
                None => nlink,
            },
            None => nlink,
        };
        u32::try_from(links.max(0)).unwrap_or(u32::MAX)
    }

    /// Shows how many names the merged tree has of an indexed file.
    pub(super) fn show_union_links(&self, node: &Node, stat: &Stat, attr: &mut Attr) {
        let Some(index) = &self.index else { return };
        let Real::Upper(id) = node.state.read().real else {
            return;
        };
        if let Some(entry) = index.spot(id) {
            attr.nlink = self.union_links(&entry, stat);
        }
    }

    fn lower_links(&self, entry: &Spot) -> Option<u32> {
        let origin = entry.get_xattr(self.namespace.origin()).ok()?;
        let stat = self.origins.stat(&origin)?;
        u32::try_from(stat.st_nlink).ok()
    }

    pub(super) fn set_links(&self, entry: &Spot, links: Links) -> Outcome<()> {
        match entry.set_xattr(self.namespace.nlink(), &links.format(), XattrFlags::empty()) {
            // trusted.* can be set on everything but where the file system has none.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(entry.fault("counting links", errno)),
        }
    }

    /// Gives an indexed file a name in the upper layer. The caller holds the directory's names.
    pub(super) fn link_up(&self, upper: &Arc<RealDir>, name: &OsStr, id: RealId) -> Outcome<()> {
        let fault = |op| move |errno| upper.fault(op, name, errno);
        let stale = || upper.fault("copy-up of a link", name, Errno::STALE);
        let index = self.index.as_ref().ok_or_else(stale)?;
        let (entry, entry_name) = (index.spot(id), index.get(id));
        let (Some(entry), Some(entry_name)) = (entry, entry_name) else {
            return Err(stale());
        };
        let stat = entry.stat()?.ok_or_else(stale)?;
        let links = i64::from(self.union_links(&entry, &stat));
        self.mark_impure(upper)?;
        let dir = upper.open()?;
        let before = rustix::fs::fstat(dir.as_fd()).map_err(fault("stat of the parent"))?;
        // While the upper one's names change, the lower one's say how many there are.
        if let Some(lower) = self.lower_links(&entry) {
            let more = i32::try_from(links - i64::from(lower)).map_err(|_| stale())?;
            self.set_links(&entry, Links::Lower(more))?;
        }
        let from = index.dir.open()?;
        rustix::fs::linkat(
            from.as_fd(),
            &*entry_name,
            dir.as_fd(),
            name,
            AtFlags::empty(),
        )
        .map_err(fault("copy-up of a link"))?;
        if let Err(errno) = Spot::itself(upper).set_times(&times_of(&before)) {
            log::warn!("copy-up: giving the parent its times back: {errno}");
        }
        let stat = entry.stat()?.ok_or_else(stale)?;
        let more = links - i64::try_from(stat.st_nlink).unwrap_or(i64::MAX);
        let more = i32::try_from(more).map_err(|_| stale())?;
        self.set_links(&entry, Links::Upper(more))
    }

    /// Gives a finished copy its place in the index.
    pub(super) fn publish_entry(&self, name: &OsStr, copy: Copy<'_>, id: RealId) -> Outcome<()> {
        let stale = || Fault::merged("copy-up of a link", Errno::STALE).named(name);
        let index = self.index.as_ref().ok_or_else(stale)?;
        let dir = index.dir.open()?;
        let published = copy.temp.publish(dir.as_fd(), name, RenameFlags::NOREPLACE);
        published.map_err(|errno| index.dir.fault("copy-up into the index", name, errno))?;
        index.insert(id, name);
        Ok(())
    }

    /// Makes a name that is about to go, or to move, one of the upper layer's where it is one of a
    /// lower file's several: the links are counted there.
    pub(super) fn claim(&self, op: &'static str, parent: &DirNode, name: &OsStr) -> Outcome<()> {
        if self.index.is_none() {
            return Ok(());
        }
        let upper = self.upper_dir(&parent.node, &parent.dir)?;
        for _ in 0..2 {
            let node = {
                let _names = parent.dir.names.write();
                let Some(Found::Leaf { source, stat, data }) = self.find(&parent.dir, name)? else {
                    return Ok(());
                };
                // Nothing is copied up for the sake of a name that stays.
                self.leaf_may_go(op, &parent.dir, name, source, &stat)?;
                match source {
                    Source::Upper => return Ok(()),
                    Source::Index => {
                        return self.link_up(upper, name, self.ground.real_id(&stat));
                    }
                    Source::Lower(_) if stat.st_nlink < 2 => return Ok(()),
                    Source::Lower(slot) => {
                        let found = Found::Leaf { source, stat, data };
                        let node = self.enter(&parent.node, &parent.dir, name, found)?.0;
                        self.reach_by(&node, parent, name, slot);
                        node
                    }
                }
            };
            let copied = self.copy_up(&node, Data::Later);
            self.release(node.id, 1);
            copied?;
        }
        Ok(())
    }

    /// Says by which of its names a lower file is to be copied up.
    fn reach_by(&self, node: &Arc<Node>, parent: &DirNode, name: &OsStr, slot: u16) {
        let link = Link {
            parent: parent.node.clone(),
            name: name.into(),
        };
        {
            let mut state = node.state.write();
            match &mut state.real {
                Real::Lower { slot: now, .. } => *now = slot,
                _ => return,
            }
        }
        self.table.relink(node, link);
    }

    /// What remains of an upper file that is about to lose a name.
    pub(super) fn remaining(&self, id: RealId) -> Outcome<Remaining> {
        let spot = self.index.as_ref().and_then(|index| index.spot(id));
        let Some(entry) = spot else {
            return Ok(Remaining::NotIndexed);
        };
        match entry.stat()? {
            Some(stat) if self.union_links(&entry, &stat) > 1 => Ok(Remaining::Names),
            _ => Ok(Remaining::None),
        }
    }

    /// Removes the entry of a file that has lost its last name.
    pub(super) fn drop_entry(&self, id: RealId) {
        let Some(index) = &self.index else { return };
        let Some(name) = index.entries.write().remove(&id) else {
            return;
        };
        let removed = match index.dir.open() {
            Ok(dir) => rustix::fs::unlinkat(dir.as_fd(), &*name, AtFlags::empty()),
            Err(fault) => Err(fault.errno),
        };
        if let Err(errno) = removed {
            log::warn!("index: {}: left behind: {errno}", name.display());
        }
    }
}
