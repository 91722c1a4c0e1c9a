//! Removing names: unlink, rmdir, and the whiteouts that they leave.
//!
//! A whiteout is left exactly where a lower layer has the name, which is asked at that moment.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Stat};

use super::super::descriptors::{Access, OpenFile};
use super::super::index::Remaining;
use super::super::layer::{LayerIndex, RealDir, RealId};
use super::super::lookup::{Found, Source, check_name};
use super::super::node::{DirPart, Node, Real};
use super::super::table::Key;
use super::super::types::{Fault, FileKind, NodeId};
use super::super::{DirNode, Outcome, Union};
use crate::sys::Errno;

impl Union {
    /// Removes a name that isn't a directory.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Outcome<()> {
        check_name(name)?;
        let DirNode { node: parent, dir } = self.dir_node(parent)?;
        self.may_take("unlink", &parent, name)?;
        if !parent.is_upper() {
            // Nothing is copied up for the sake of a name that stays.
            let _names = dir.names.read();
            if let Some(Found::Leaf { source, stat, .. }) = self.find(&dir, name)? {
                self.leaf_may_go("unlink", &dir, name, source, &stat)?;
            }
        }
        let upper = self.upper_dir(&parent, &dir)?;
        let here = DirNode {
            node: parent.clone(),
            dir: dir.clone(),
        };
        self.claim("unlink", &here, name)?;
        let _names = dir.names.write();
        let Some(Found::Leaf { source, stat, .. }) = self.find(&dir, name)? else {
            let errno = if self.find(&dir, name)?.is_some() {
                Errno::ISDIR
            } else {
                Errno::NOENT
            };
            return Err(Fault::merged("unlink", errno).named(name));
        };
        self.leaf_may_go("unlink", &dir, name, source, &stat)?;
        let parting = self.part_from_leaf(&parent, &dir, name, source, &stat)?;
        let in_upper = source == Source::Upper;
        // What was just found in a lower layer needs no second look.
        let lower_has = !in_upper || self.lower_has(&dir, name)?;
        self.clear(upper, name, in_upper, lower_has)?;
        self.complete(parting);
        self.listings.update(parent.id, |names| names.remove(name));
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Outcome<()> {
        check_name(name)?;
        let DirNode { node: parent, dir } = self.dir_node(parent)?;
        self.may_take("rmdir", &parent, name)?;
        if !parent.is_upper() {
            // Nothing is copied up for the sake of a directory that stays.
            let _names = dir.names.write();
            let (child, _) = self.dir_to_remove(&parent, &dir, name)?;
            let empty = {
                let _child_names = child.dir.names.write_more();
                self.may_go("rmdir", &child.node, name)
                    .and_then(|()| self.refuse_full("rmdir", name, &child))
            };
            self.release(child.node.id, 1);
            empty?;
        }
        let upper = self.upper_dir(&parent, &dir)?;
        let _names = dir.names.write();
        let (child, in_upper) = self.dir_to_remove(&parent, &dir, name)?;
        let removed = {
            let _child_names = child.dir.names.write_more();
            self.remove_dir(&dir, upper, name, &child, in_upper)
        };
        if removed.is_ok() {
            self.listings.update(parent.id, |names| names.remove(name));
            self.listings.drop_listing(child.node.id);
        }
        self.release(child.node.id, 1);
        removed
    }

    /// The directory under a name, and whether it is in the upper layer; counts one look-up, which
    /// the caller gives back.
    fn dir_to_remove(
        &self,
        parent: &Arc<Node>,
        dir: &DirPart,
        name: &OsStr,
    ) -> Outcome<(DirNode, bool)> {
        let refused = |errno| Err(Fault::merged("rmdir", errno).named(name));
        let found = match self.find(dir, name)? {
            Some(found @ Found::Dir { .. }) => found,
            Some(Found::Leaf { .. }) => return refused(Errno::NOTDIR),
            None => return refused(Errno::NOENT),
        };
        let in_upper = matches!(found, Found::Dir { upper: Some(_), .. });
        Ok((self.entered_dir(parent, dir, name, found)?, in_upper))
    }

    /// Refuses a directory that shows names. Its own names must be locked.
    pub(super) fn refuse_full(
        &self,
        op: &'static str,
        name: &OsStr,
        child: &DirNode,
    ) -> Outcome<()> {
        if self.is_empty(&child.node, &child.dir)? {
            Ok(())
        } else {
            Err(Fault::merged(op, Errno::NOTEMPTY).named(name))
        }
    }

    /// The node of a directory that was found; counts one look-up, which the caller gives back.
    pub(super) fn entered_dir(
        &self,
        parent: &Arc<Node>,
        dir: &DirPart,
        name: &OsStr,
        found: Found,
    ) -> Outcome<DirNode> {
        let (node, _) = self.enter(parent, dir, name, found)?;
        match &node.dir {
            Some(part) => Ok(DirNode {
                dir: part.clone(),
                node,
            }),
            None => Err(Fault::merged("finding a directory", Errno::STALE).named(name)),
        }
    }

    fn remove_dir(
        &self,
        dir: &DirPart,
        upper: &Arc<RealDir>,
        name: &OsStr,
        child: &DirNode,
        in_upper: bool,
    ) -> Outcome<()> {
        self.may_go("rmdir", &child.node, name)?;
        self.refuse_full("rmdir", name, child)?;
        let lower_has = self.lower_has(dir, name)?;
        self.hold_dir(child)?;
        if !in_upper {
            self.clear(upper, name, false, lower_has)?;
        } else {
            self.clear_upper_dir(upper, name, child, lower_has)?;
        }
        child.node.state.write().named = false;
        Ok(())
    }

    /// Keeps descriptors of a directory that is about to lose its name: whoever has it open may
    /// go on asking.
    pub(super) fn hold_dir(&self, child: &DirNode) -> Outcome<()> {
        if let Some(real) = child.dir.upper.get() {
            real.hold(real.open()?);
        }
        Ok(())
    }

    /// Takes an upper directory that shows no names out of its place, with the whiteouts in it.
    fn clear_upper_dir(
        &self,
        upper: &Arc<RealDir>,
        name: &OsStr,
        child: &DirNode,
        lower_has: bool,
    ) -> Outcome<()> {
        let work = self.work()?;
        let file = upper.open()?;
        if lower_has && self.is_dotted() {
            // It shows nothing: hiding what is below it as well changes nothing.
            self.hide(upper, name)?;
        }
        if !lower_has || self.is_dotted() {
            match rustix::fs::unlinkat(file.as_fd(), name, AtFlags::REMOVEDIR) {
                // Whiteouts in it that hide nothing any more.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                result => return result.map_err(|errno| upper.fault("rmdir", name, errno)),
            }
            self.refuse_unlisted("rmdir", name, child)?;
            let temp = work.temp()?;
            let flags = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(file.as_fd(), name, work.as_fd(), temp.name(), flags)
                .map_err(|errno| upper.fault("rmdir: moving away", name, errno))?;
            return Ok(());
        }
        self.refuse_unlisted("rmdir", name, child)?;
        let whiteout = work.whiteout()?;
        // The directory lands in the work directory, where the dropped name takes it along.
        whiteout
            .publish(file.as_fd(), name, RenameFlags::EXCHANGE)
            .map_err(|errno| upper.fault("rmdir: leaving a whiteout", name, errno))
    }

    /// Takes a name that isn't an upper directory out of the upper layer and leaves a whiteout
    /// where a lower layer has it.
    pub(super) fn clear(
        &self,
        upper: &Arc<RealDir>,
        name: &OsStr,
        in_upper: bool,
        lower_has: bool,
    ) -> Outcome<()> {
        let file = upper.open()?;
        if !lower_has {
            return rustix::fs::unlinkat(file.as_fd(), name, AtFlags::empty())
                .map_err(|errno| upper.fault("unlink", name, errno));
        }
        if self.is_dotted() {
            return self.clear_hiding(upper, name, in_upper);
        }
        let work = self.work()?;
        if !in_upper {
            return work.leave_whiteout(file.as_fd(), name);
        }
        work.whiteout()?
            .publish(file.as_fd(), name, RenameFlags::empty())
            .map_err(|errno| upper.fault("leaving a whiteout", name, errno))
    }

    /// Prepares a node for losing the name `name`: what it needs to live on is taken while the
    /// name is still there.
    pub(super) fn part_from_leaf(
        &self,
        parent: &Arc<Node>,
        dir: &DirPart,
        name: &OsStr,
        source: Source,
        stat: &Stat,
    ) -> Outcome<Parting> {
        let id = self.ground.real_id(stat);
        let kind = FileKind::of_mode(stat.st_mode);
        let (real, node) = match source {
            Source::Upper => {
                let real = dir.upper.get();
                let ino = match real {
                    Some(real) => self.upper_ino(real, name, id, kind)?,
                    None => self.ground.numbers.ino(id.fs, id.ino),
                };
                (
                    real,
                    self.table.find(&Key::Real(LayerIndex::Upper, id), ino),
                )
            }
            // It was claimed before the names were locked.
            Source::Index => {
                return Err(Fault::merged("removing a link", Errno::STALE).named(name));
            }
            Source::Lower(slot) => {
                let real = &dir.lowers[usize::from(slot)];
                let ino = self.ground.numbers.ino(id.fs, id.ino);
                let by_name = self.table.find(&Key::name(parent.id, name), ino);
                let by_id = || self.table.find(&Key::Real(real.layer, id), ino);
                (Some(real), by_name.or_else(by_id))
            }
        };
        let remaining = match source {
            Source::Upper => self.remaining(id)?,
            _ => Remaining::NotIndexed,
        };
        let last = match remaining {
            Remaining::NotIndexed => source == Source::Upper && stat.st_nlink <= 1,
            Remaining::Names => false,
            Remaining::None => true,
        };
        let mut parting = Parting {
            node: None,
            held: None,
            last: last.then_some(id),
            left: (source == Source::Upper && !last).then_some(id),
            entry: (remaining == Remaining::None).then_some(id),
        };
        let Some(node) = node else { return Ok(parting) };
        if remaining == Remaining::Names {
            // It is reached by its entry.
            return Ok(parting);
        }
        let is_its_name = node
            .state
            .read()
            .link
            .as_ref()
            .is_some_and(|link| link.is(parent, name));
        if !is_its_name && remaining == Remaining::NotIndexed {
            self.aliases.remove(node.id, parent.id, name);
            return Ok(parting);
        }
        if let (Source::Upper, Some(real)) = (source, real) {
            parting.held = Some(self.hold_leaf(real, name, &node, stat)?);
        }
        parting.node = Some(node);
        Ok(parting)
    }

    /// A descriptor that keeps a nameless object usable.
    fn hold_leaf(
        &self,
        real: &RealDir,
        name: &OsStr,
        node: &Node,
        stat: &Stat,
    ) -> Outcome<Arc<OpenFile>> {
        if let Some(file) = self.ground.descriptors.get(node.slot)
            && file.access() == Access::Write
        {
            return Ok(file);
        }
        let dir = real.open()?;
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = |more| rustix::fs::openat(dir.as_fd(), name, flags | more, Mode::empty());
        let tries: &[(OFlags, Access)] = match FileKind::of_mode(stat.st_mode) {
            FileKind::Regular => &[
                (OFlags::RDWR, Access::Write),
                (OFlags::RDONLY, Access::Read),
                (OFlags::PATH, Access::Path),
            ],
            _ => &[(OFlags::PATH, Access::Path)],
        };
        let mut last = Errno::STALE;
        for (more, access) in tries {
            match open(*more) {
                Ok(fd) => return Ok(OpenFile::new(fd, *access)),
                Err(errno) => last = errno,
            }
        }
        Err(real.fault("holding an object that loses its name", name, last))
    }

    /// Says that the name is gone.
    pub(super) fn complete(&self, parting: Parting) {
        if let Some(id) = parting.last {
            // The file system may give the number to another file once this one is closed.
            self.origins.remove(id);
        }
        if let Some(node) = &parting.node {
            let mut state = node.state.write();
            state.named = false;
            if let Some(file) = parting.held {
                let old = std::mem::replace(&mut state.real, Real::Detached(file));
                drop(state);
                drop(old);
            }
        }
        // Only now that nobody is sent to it any more.
        if let Some(id) = parting.entry {
            self.drop_entry(id);
        }
        if let (Some(node), Some(id)) = (&parting.node, parting.left) {
            self.find_alias(node, id);
        }
    }
}

/// A node on the way to losing a name.
#[derive(Debug)]
pub(super) struct Parting {
    /// The node, if it is known and this is the name it is reached by.
    node: Option<Arc<Node>>,
    held: Option<Arc<OpenFile>>,
    /// The object, if this is its last name.
    last: Option<RealId>,
    /// The object, if it has more names.
    left: Option<RealId>,
    /// The object whose entry in the index goes, too.
    entry: Option<RealId>,
}
