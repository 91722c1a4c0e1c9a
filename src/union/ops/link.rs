//! Hard links.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, RenameFlags};

use super::super::copy_up::Data;
use super::super::lookup::check_name;
use super::super::redirect::Reach;
use super::super::spot::Spot;
use super::super::types::{Entry, Fault, NodeId};
use super::super::{DirNode, Outcome, Union};
use super::create::Standing;
use crate::sys::Errno;

impl Union {
    /// Makes a further name for a file. Counts one look-up.
    pub fn link(&self, id: NodeId, parent: NodeId, name: &OsStr) -> Outcome<Entry> {
        let made = self.link_name(id, parent, name);
        self.or_unlist(parent, made)
    }

    fn link_name(&self, id: NodeId, parent: NodeId, name: &OsStr) -> Outcome<Entry> {
        check_name(name)?;
        self.refuse_reserved(name)?;
        let node = self.node(id)?;
        if node.dir.is_some() {
            return Err(Fault::merged("link", Errno::PERM).named(name));
        }
        let DirNode { node: parent, dir } = self.dir_node(parent)?;
        self.may_add("link", &parent, name)?;
        self.may_go("link", &node, name)?;
        let upper = self.upper_dir(&parent, &dir)?;
        self.copy_up(&node, Data::Later)?;
        let _names = dir.names.write();
        if !parent.state.read().named {
            return Err(Fault::merged("link", Errno::NOENT).named(name));
        }
        let standing = self.vacant(&dir, name)?;
        let (spot, stat) = self.spot_and_stat(&node)?;
        let Spot::At {
            dir: from,
            name: old_name,
        } = spot
        else {
            // The last name is gone; the kernel's overlay says the same.
            return Err(Fault::merged("link", Errno::NOENT).named(name));
        };
        if self.data_place(&node).is_some() {
            // Its names may come to be in different directories.
            let link = node.state.read().link.clone();
            let link = link.ok_or_else(|| Fault::merged("link", Errno::NOENT).named(name))?;
            let here = (&link.parent, &*link.name);
            self.set_redirect(here, &from, &old_name, Reach::Anywhere)?;
        }
        if self.origins.get(self.ground.real_id(&stat)).is_some() {
            self.mark_impure(upper)?;
        }
        let from = from.open()?;
        let to = upper.open()?;
        match standing {
            Standing::Whiteout if self.is_dotted() => {
                rustix::fs::linkat(from.as_fd(), &*old_name, to.as_fd(), name, AtFlags::empty())
                    .map_err(|errno| upper.fault("link over a whiteout", name, errno))?;
                self.unhide(upper, name);
            }
            Standing::Nothing => {
                rustix::fs::linkat(from.as_fd(), &*old_name, to.as_fd(), name, AtFlags::empty())
                    .map_err(|errno| upper.fault("link", name, errno))?;
            }
            Standing::Whiteout => {
                let work = self.work()?;
                let temp = work.temp()?;
                let there = temp.name();
                rustix::fs::linkat(
                    from.as_fd(),
                    &*old_name,
                    work.as_fd(),
                    there,
                    AtFlags::empty(),
                )
                .map_err(|errno| work.fault("link", errno))?;
                temp.publish(to.as_fd(), name, RenameFlags::empty())
                    .map_err(|errno| upper.fault("link over a whiteout", name, errno))?;
            }
        }
        let data = self.data_place(&node);
        let (node, attr) = self.enter_new(&parent, &dir, upper, name, data)?;
        self.listings
            .update(parent.id, |names| names.insert(name, attr.kind, attr.ino));
        Ok(node.entry(attr))
    }
}
