//! Rename: replacing, not replacing, exchanging.
//!
//! A directory that a lower layer has can't move: the lower part would stay. The kernel says
//! `EXDEV` without `redirect_dir=on`, and programs then copy. With it, a redirect says where the
//! lower part is; so it does for the data of a metadata copy.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags};

use super::super::copy_up::Data;
use super::super::layer::RealDir;
use super::super::lookup::{Found, check_name};
use super::super::node::{DirPart, Link, Node, Real};
use super::super::redirect::Reach;
use super::super::types::{Fault, FileKind, Ino, NodeId, RenameMode};
use super::super::work::Temp;
use super::super::{DirNode, Outcome, Union};
use super::create::Standing;
use super::remove::Parting;
use crate::dotted::Made;
use crate::sys::{Errno, tree};

/// One side of a rename.
struct Side<'a> {
    parent: &'a DirNode,
    upper: &'a Arc<RealDir>,
    name: &'a OsStr,
}

/// What stands at the target of a rename that replaces.
enum Target {
    Nothing,
    Whiteout,
    Leaf { parting: Parting },
    Dir { child: DirNode, in_upper: bool },
}

impl Union {
    /// Renames.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Outcome<()> {
        check_name(name)?;
        check_name(new_name)?;
        self.refuse_reserved(new_name)?;
        let old_parent = self.dir_node(parent)?;
        let new_parent = self.dir_node(new_parent)?;
        self.may_take("rename", &old_parent.node, name)?;
        self.may_add("rename", &new_parent.node, new_name)?;
        let moving = self.movable(&old_parent, name)?;
        let swapped = match mode {
            RenameMode::Exchange => match self.movable(&new_parent, new_name) {
                Ok(other) => Some(other),
                Err(fault) => {
                    self.release(moving.id, 1);
                    return Err(fault);
                }
            },
            RenameMode::Replace | RenameMode::NoReplace => None,
        };
        let result = (|| {
            if swapped.is_some() {
                self.may_take("rename", &new_parent.node, new_name)?;
            }
            let copies = !(new_parent.node.is_upper() && moving.is_upper());
            if mode == RenameMode::Replace && (copies || self.is_fixed(&moving)) {
                self.refuse_target(&new_parent, new_name, &moving)?;
            }
            for (node, name) in [(Some(&moving), name), (swapped.as_ref(), new_name)] {
                if node.is_some_and(|node| self.is_fixed(node)) {
                    return Err(fixed(name));
                }
            }
            self.claim("rename", &old_parent, name)?;
            if mode != RenameMode::NoReplace {
                self.claim("rename", &new_parent, new_name)?;
            }
            // Only now that neither side refuses, and before the locks: copies can take long.
            for (node, name) in [(Some(&moving), name), (swapped.as_ref(), new_name)] {
                if let Some(node) = node {
                    self.copy_up(node, Data::Later)
                        .map_err(|fault| fault.named(name))?;
                }
            }
            let from = Side {
                upper: self.upper_dir(&old_parent.node, &old_parent.dir)?,
                parent: &old_parent,
                name,
            };
            let to = Side {
                upper: self.upper_dir(&new_parent.node, &new_parent.dir)?,
                parent: &new_parent,
                name: new_name,
            };
            let same = Arc::ptr_eq(&old_parent.node, &new_parent.node);
            let _moves = (!same).then(|| self.moves.lock());
            let (first, second) = in_order(&from, &to);
            let _first = first.parent.dir.names.write();
            let _second = second.map(|side| side.parent.dir.names.write_more());
            match &swapped {
                Some(other) => self.exchange(&from, &moving, &to, other),
                None => self.replace(&from, &moving, &to, mode),
            }
        })();
        for node in [Some(moving), swapped].into_iter().flatten() {
            self.release(node.id, 1);
        }
        result
    }

    /// The node to be moved, which nothing may protect; counts one look-up.
    fn movable(&self, parent: &DirNode, name: &OsStr) -> Outcome<Arc<Node>> {
        let node = {
            let _names = parent.dir.names.read();
            let found = self
                .find(&parent.dir, name)?
                .ok_or_else(|| Fault::merged("rename", Errno::NOENT).named(name))?;
            self.enter(&parent.node, &parent.dir, name, found)?.0
        };
        if let Err(fault) = self.may_go("rename", &node, name) {
            self.release(node.id, 1);
            return Err(fault);
        }
        Ok(node)
    }

    /// Whether it has a lower part that would stay where it is.
    fn is_fixed(&self, node: &Node) -> bool {
        let has_lower = |dir: &DirPart| !dir.lowers.is_empty();
        !self.follow.makes_redirects && node.dir.as_deref().is_some_and(has_lower)
    }

    /// Nothing is copied up for the sake of a target that can't be replaced.
    fn refuse_target(&self, parent: &DirNode, name: &OsStr, moving: &Node) -> Outcome<()> {
        let _names = parent.dir.names.write();
        let found = match (self.find(&parent.dir, name)?, &moving.dir) {
            (Some(Found::Leaf { source, stat, .. }), None) => {
                self.may_take("rename", &parent.node, name)?;
                return self.leaf_may_go("rename", &parent.dir, name, source, &stat);
            }
            (Some(found @ Found::Dir { .. }), Some(_)) => found,
            _ => return Ok(()),
        };
        let child = self.entered_dir(&parent.node, &parent.dir, name, found)?;
        let allowed = self
            .may_take("rename", &parent.node, name)
            .and_then(|()| self.may_go("rename", &child.node, name));
        // One that is the upper layer's alone refuses by itself, when all is copied up.
        let refused = allowed.and_then(|()| match child.dir.lowers.is_empty() {
            _ if self.is_fixed(moving) => Err(fixed(name)),
            true => Ok(()),
            false => {
                let _child_names = child.dir.names.write_more();
                self.refuse_full("rename", name, &child)
            }
        });
        self.release(child.node.id, 1);
        refused
    }

    fn replace(
        &self,
        from: &Side<'_>,
        moving: &Arc<Node>,
        to: &Side<'_>,
        mode: RenameMode,
    ) -> Outcome<()> {
        self.still_there(from, moving)?;
        if !to.parent.node.state.read().named {
            return Err(Fault::merged("rename", Errno::NOENT).named(to.name));
        }
        let is_dir = moving.dir.is_some();
        let target = self.look_at_target(to, moving, mode)?;
        let there = match &target {
            Target::Dir { child, .. } => Some(child.node.id),
            Target::Nothing | Target::Whiteout | Target::Leaf { .. } => None,
        };
        let outcome = match target {
            Target::Leaf { .. } if self.same_object(to, moving)? => {
                // Two names of one file: rename(2) does nothing.
                return Ok(());
            }
            target => self.replace_target(from, moving, to, target, is_dir),
        };
        if let Some(id) = there {
            self.release(id, 1);
        }
        if outcome.is_ok() {
            self.moved(from, moving, to);
            self.listings
                .update(from.parent.node.id, |names| names.remove(from.name));
            self.list_moved(to, moving);
        }
        outcome
    }

    fn replace_target(
        &self,
        from: &Side<'_>,
        moving: &Arc<Node>,
        to: &Side<'_>,
        target: Target,
        is_dir: bool,
    ) -> Outcome<()> {
        let leaves_whiteout = self.lower_has(&from.parent.dir, from.name)?;
        self.prepare_move(from, moving, to)?;
        let (from_file, to_file) = (from.upper.open()?, to.upper.open()?);
        let rename = |flags| {
            rustix::fs::renameat_with(
                from_file.as_fd(),
                from.name,
                to_file.as_fd(),
                to.name,
                flags,
            )
            .map_err(|errno| to.upper.fault("rename", to.name, errno))
        };
        let over_whiteout = matches!(target, Target::Whiteout);
        let emptied = match &target {
            Target::Dir {
                child,
                in_upper: true,
            } => self.empty_upper_dir(to, child)?,
            _ => None,
        };
        let mut hidden = None;
        if self.is_dotted() && leaves_whiteout {
            // Nothing that is shown changes with that: what moves has no lower part.
            hidden = Some(self.hide(from.upper, from.name)?);
        }
        let renamed = match (leaves_whiteout, over_whiteout) {
            _ if self.is_dotted() => rename(RenameFlags::empty()),
            // The whiteout at the target becomes the one at the source.
            (true, true) => rename(RenameFlags::EXCHANGE),
            (true, false) => rename(RenameFlags::WHITEOUT),
            (false, true) if is_dir => rename(RenameFlags::EXCHANGE).map(|()| {
                // The rename is done; a whiteout that stays hides nothing.
                let removed = rustix::fs::unlinkat(from_file.as_fd(), from.name, AtFlags::empty());
                if let Err(errno) = removed {
                    log::warn!("rename: {}: a whiteout stays: {errno}", from.name.display());
                }
            }),
            (false, _) => rename(RenameFlags::empty()),
        };
        if let (Err(_), Some(full)) = (&renamed, &emptied) {
            // Its node knows the directory that stood there, which hides what is below.
            if let Err(errno) = full.exchange(to_file.as_fd(), to.name) {
                log::warn!("rename: {}: stays emptied: {errno}", to.name.display());
            }
        }
        if self.is_dotted() {
            if renamed.is_err() && hidden == Some(Made::New) {
                self.unhide(from.upper, from.name);
            }
            // What moved hides what is below by itself; what stays shows it again.
            if emptied.is_some() || over_whiteout && renamed.is_ok() {
                self.unhide(to.upper, to.name);
            }
        }
        renamed?;
        match target {
            Target::Leaf { parting } => self.complete(parting),
            Target::Dir { child, .. } => {
                child.node.state.write().named = false;
                self.listings.drop_listing(child.node.id);
            }
            Target::Nothing | Target::Whiteout => {}
        }
        Ok(())
    }

    fn exchange(
        &self,
        from: &Side<'_>,
        moving: &Arc<Node>,
        to: &Side<'_>,
        other: &Arc<Node>,
    ) -> Outcome<()> {
        self.still_there(from, moving)?;
        self.still_there(to, other)?;
        self.prepare_move(from, moving, to)?;
        self.prepare_move(to, other, from)?;
        let (from_file, to_file) = (from.upper.open()?, to.upper.open()?);
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(
            from_file.as_fd(),
            from.name,
            to_file.as_fd(),
            to.name,
            flags,
        )
        .map_err(|errno| to.upper.fault("exchange", to.name, errno))?;
        self.moved(from, moving, to);
        self.moved(to, other, from);
        self.list_moved(to, moving);
        self.list_moved(from, other);
        Ok(())
    }

    /// Marks what the move makes necessary: a directory that comes to lie over lower ones hides
    /// them, a directory that gets a copied-up entry is impure.
    fn prepare_move(&self, from: &Side<'_>, moving: &Arc<Node>, to: &Side<'_>) -> Outcome<()> {
        let over_lower = to.parent.dir.is_merged();
        let has_lower = match &moving.dir {
            Some(dir) => !dir.lowers.is_empty(),
            None => moving.state.read().data.is_some(),
        };
        if has_lower {
            let reach = self.reach(from, moving, to)?;
            let here = (&from.parent.node, from.name);
            self.set_redirect(here, from.upper, from.name, reach)?;
        } else if moving.dir.is_some() && over_lower {
            let file = from.upper.open()?;
            self.mark_opaque(file.as_fd(), from.name)
                .map_err(|errno| match errno {
                    Errno::OPNOTSUPP => Errno::XDEV,
                    other => other,
                })
                .map_err(|errno| from.upper.fault("marking opaque", from.name, errno))?;
        }
        let state = moving.state.read();
        let copied_up = match &state.real {
            Real::Upper(id) => self.origins.get(*id).is_some(),
            _ => false,
        };
        drop(state);
        let merged = moving.dir.is_some() && has_lower;
        if copied_up || merged || self.has_origin(from)? {
            self.mark_impure(to.upper)
        } else {
            Ok(())
        }
    }

    /// A file with several names has them in several directories.
    fn reach(&self, from: &Side<'_>, moving: &Arc<Node>, to: &Side<'_>) -> Outcome<Reach> {
        if !Arc::ptr_eq(&from.parent.node, &to.parent.node) {
            return Ok(Reach::Anywhere);
        }
        match self.data_place(moving) {
            Some(data) if self.data_links(&data)? > 1 => Ok(Reach::Anywhere),
            _ => Ok(Reach::SameDirectory),
        }
    }

    fn has_origin(&self, side: &Side<'_>) -> Outcome<bool> {
        Ok(side
            .upper
            .xattr(side.name, self.namespace.origin())?
            .is_some())
    }

    /// Whether the node is still under the name that it was found under before the locks.
    fn still_there(&self, side: &Side<'_>, node: &Arc<Node>) -> Outcome<()> {
        let gone = || Fault::merged("rename", Errno::NOENT).named(side.name);
        let found = self.find(&side.parent.dir, side.name)?.ok_or_else(gone)?;
        let (now, _) = self.enter(&side.parent.node, &side.parent.dir, side.name, found)?;
        let same = Arc::ptr_eq(&now, node);
        self.release(now.id, 1);
        if same { Ok(()) } else { Err(gone()) }
    }

    fn look_at_target(
        &self,
        to: &Side<'_>,
        moving: &Arc<Node>,
        mode: RenameMode,
    ) -> Outcome<Target> {
        let fault = |errno| Fault::merged("rename", errno).named(to.name);
        let dir = &to.parent.dir;
        let Some(found) = self.find(dir, to.name)? else {
            return Ok(match self.vacant(dir, to.name)? {
                Standing::Nothing => Target::Nothing,
                Standing::Whiteout => Target::Whiteout,
            });
        };
        if mode == RenameMode::NoReplace {
            return Err(fault(Errno::EXIST));
        }
        match (found, moving.dir.is_some()) {
            (Found::Leaf { .. }, true) => Err(fault(Errno::NOTDIR)),
            (Found::Dir { .. }, false) => Err(fault(Errno::ISDIR)),
            (Found::Leaf { source, stat, .. }, false) => {
                self.may_take("rename", &to.parent.node, to.name)?;
                self.leaf_may_go("rename", dir, to.name, source, &stat)?;
                let parting = self.part_from_leaf(&to.parent.node, dir, to.name, source, &stat)?;
                Ok(Target::Leaf { parting })
            }
            (found @ Found::Dir { .. }, true) => {
                let in_upper = matches!(found, Found::Dir { upper: Some(_), .. });
                let child = self.entered_dir(&to.parent.node, dir, to.name, found)?;
                let allowed = self
                    .may_take("rename", &to.parent.node, to.name)
                    .and_then(|()| self.may_go("rename", &child.node, to.name));
                let empty = allowed.and_then(|()| {
                    let _names = child.dir.names.write_more();
                    self.is_empty(&child.node, &child.dir)
                });
                match empty {
                    Ok(true) => Ok(Target::Dir { child, in_upper }),
                    Ok(false) => {
                        self.release(child.node.id, 1);
                        Err(fault(Errno::NOTEMPTY))
                    }
                    Err(fault) => {
                        self.release(child.node.id, 1);
                        Err(fault)
                    }
                }
            }
        }
    }

    fn same_object(&self, to: &Side<'_>, moving: &Arc<Node>) -> Outcome<bool> {
        let Some(stat) = to.upper.stat(to.name)? else {
            return Ok(false);
        };
        let there = self.ground.real_id(&stat);
        Ok(matches!(&moving.state.read().real, Real::Upper(id) if *id == there))
    }

    /// Makes an upper directory that only holds whiteouts really empty, so that it can be
    /// replaced: an empty opaque one takes its place, which looks the same to whoever mounts the
    /// layers if this server dies here. The full one comes back; it goes when it is dropped.
    fn empty_upper_dir(&self, side: &Side<'_>, child: &DirNode) -> Outcome<Option<Temp<'_>>> {
        self.hold_dir(child)?;
        let file = side.upper.open()?;
        let names = tree::list(file.as_fd(), side.name)
            .map_err(|errno| side.upper.fault("reading a directory", side.name, errno))?;
        if names.is_none_or(|names| names.is_empty()) {
            return Ok(None);
        }
        self.refuse_unlisted("rename", side.name, child)?;
        let temp = self.empty_twin(&child.node)?;
        if self.is_dotted() {
            self.hide(side.upper, side.name)?;
        }
        temp.exchange(file.as_fd(), side.name)
            .map_err(|errno| side.upper.fault("emptying a directory", side.name, errno))?;
        Ok(Some(temp))
    }

    /// Tells the node where it is now.
    fn moved(&self, from: &Side<'_>, node: &Arc<Node>, to: &Side<'_>) {
        if let Some(dir) = &node.dir {
            if let Some(real) = dir.upper.get() {
                real.moved(to.upper, to.name);
            }
        } else {
            let is_its_name = node
                .state
                .read()
                .link
                .as_ref()
                .is_some_and(|link| link.is(&from.parent.node, from.name));
            if !is_its_name {
                self.aliases.remove(node.id, from.parent.node.id, from.name);
                self.aliases.add(node.id, to.parent.node.id, to.name);
                return;
            }
        }
        let link = Link {
            parent: to.parent.node.clone(),
            name: to.name.into(),
        };
        self.table.relink(node, link);
    }

    fn list_moved(&self, to: &Side<'_>, node: &Arc<Node>) {
        let (kind, ino): (FileKind, Ino) = (node.kind, node.state.read().ino);
        self.listings
            .update(to.parent.node.id, |names| names.insert(to.name, kind, ino));
    }
}

fn fixed(name: &OsStr) -> Fault {
    Fault::merged("rename of a directory with a lower part", Errno::XDEV).named(name)
}

/// The two sides in the order in which their directories are locked, one if they are one. What is
/// above what must stay: no other rename between directories may be under way.
fn in_order<'s, 'a>(from: &'s Side<'a>, to: &'s Side<'a>) -> (&'s Side<'a>, Option<&'s Side<'a>>) {
    if Arc::ptr_eq(&from.parent.node, &to.parent.node) {
        (from, None)
    } else if to.parent.node.is_above(&from.parent.node) {
        (to, Some(from))
    } else {
        (from, Some(to))
    }
}
