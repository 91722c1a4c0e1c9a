//! Extended attributes and POSIX ACLs. The overlay's own are hidden; a user's under the same
//! prefix are stored escaped.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;

use super::super::copy_up::Data;
use super::super::node::DefaultAcl;
use super::super::spot::Spot;
use super::super::types::{Caller, Fault, NodeId, XattrMode};
use super::super::{Outcome, Union};
use crate::format::{Visible, acl};
use crate::sys::Errno;

impl Union {
    /// The value of an extended attribute.
    pub fn getxattr(&self, id: NodeId, name: &OsStr) -> Outcome<Vec<u8>> {
        let node = self.node(id)?;
        self.not_withheld("getxattr", name)?;
        if self.is_record(name) {
            return Err(Fault::merged("getxattr", Errno::NODATA));
        }
        let stored = self.namespace.store(name).ok_or_else(too_long)?;
        let faulty = |spot: &Spot, errno| {
            let errno = match errno {
                // As it is listed.
                Errno::ACCESS if self.owners.records() => Errno::NODATA,
                // A layer's file system may have no ACLs. The kernel asks before each access by anybody but
                // the owner, and takes any other error for the answer.
                Errno::OPNOTSUPP if acl::is_acl(name) => Errno::NODATA,
                errno => errno,
            };
            spot.fault("getxattr", errno).named(name)
        };
        self.at_object(&node, |spot, _| {
            spot.get_xattr(&stored).map_err(|errno| faulty(spot, errno))
        })
    }

    /// The names of the extended attributes that the caller may see, each ended by a NUL.
    pub fn listxattr(&self, caller: Caller, id: NodeId) -> Outcome<Vec<u8>> {
        let node = self.node(id)?;
        self.not_withheld("listxattr", OsStr::new(""))?;
        let stored = self.at_object(&node, |spot, _| match spot.list_xattrs() {
            // A directory that a fake root may not enter: it can't be asked, and `ls -l` asks.
            Err(Errno::ACCESS) if self.owners.records() => Ok(Vec::new()),
            stored => stored.map_err(|errno| spot.fault("listxattr", errno)),
        })?;
        let mut names = Vec::with_capacity(stored.len());
        for name in stored
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let name = OsStr::from_bytes(name);
            // The kernel shows trusted.* to who has CAP_SYS_ADMIN; FUSE tells us only the uid.
            let withheld = caller.uid != 0 && name.as_bytes().starts_with(b"trusted.");
            if withheld || self.owners.withholds(name) || self.is_record(name) {
                continue;
            }
            if let Visible::As(shown) = self.namespace.show(name) {
                names.extend_from_slice(shown.as_bytes());
                names.push(0);
            }
        }
        Ok(names)
    }

    /// Sets an extended attribute; copies up first.
    pub fn setxattr(
        &self,
        caller: Caller,
        id: NodeId,
        name: &OsStr,
        value: &[u8],
        mode: XattrMode,
    ) -> Outcome<()> {
        let node = self.node(id)?;
        self.not_withheld("setxattr", name)?;
        if self.is_record(name) {
            return Err(Fault::merged("setxattr", Errno::PERM).named(name));
        }
        self.may_change("setxattr", &node)?;
        let stored = self.namespace.store(name).ok_or_else(too_long)?;
        self.copy_up(&node, Data::Later)?;
        let flags = match mode {
            XattrMode::Set => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        self.at_object(&node, |spot, _| {
            spot.set_xattr(&stored, value, flags)
                .map_err(|errno| spot.fault("setxattr", errno).named(name))
        })?;
        if name == acl::ACCESS {
            self.drop_foreign_setgid(caller, &node)?;
        }
        self.acl_changed(&node, name);
        Ok(())
    }

    /// Removes an extended attribute; copies up first.
    pub fn removexattr(&self, caller: Caller, id: NodeId, name: &OsStr) -> Outcome<()> {
        let node = self.node(id)?;
        self.not_withheld("removexattr", name)?;
        self.may_change("removexattr", &node)?;
        if name == acl::ACCESS {
            self.drop_foreign_setgid(caller, &node)?;
        }
        let stored = self.namespace.store(name).ok_or_else(too_long)?;
        let fault = |spot: &Spot, errno| spot.fault("removexattr", errno).named(name);
        // Nothing is copied for an attribute that isn't there.
        if self.is_record(name) {
            return Err(fault(&self.spot(&node)?, Errno::NODATA));
        }
        if !node.is_upper() {
            self.at_object(&node, |spot, _| {
                let there = spot.get_xattr(&stored);
                there.map(drop).map_err(|errno| fault(spot, errno))
            })?;
        }
        self.copy_up(&node, Data::Later)?;
        self.at_object(&node, |spot, _| {
            spot.remove_xattr(&stored)
                .map_err(|errno| fault(spot, errno))
        })?;
        self.acl_changed(&node, name);
        Ok(())
    }

    /// Refuses attributes that the options say aren't there.
    fn not_withheld(&self, op: &'static str, name: &OsStr) -> Outcome<()> {
        match self.owners.withholds(name) {
            true => Err(Fault::merged(op, Errno::OPNOTSUPP).named(name)),
            false => Ok(()),
        }
    }

    fn acl_changed(&self, node: &super::super::node::Node, name: &OsStr) {
        if name == acl::DEFAULT
            && let Some(dir) = &node.dir
        {
            dir.set_default_acl(DefaultAcl::Unknown);
        }
    }
}

fn too_long() -> Fault {
    Fault::merged("escaping an attribute's name", Errno::OPNOTSUPP)
}
