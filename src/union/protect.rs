//! Append-only and immutable objects: refusing what the VFS would refuse, which knows nothing of
//! such flags on a FUSE file system.
//!
//! An upper object has them in the attribute `protattr` and not as flags of its own: nothing could be
//! copied up below such a directory. A lower one has them as its file system's flags.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{Stat, StatxAttributes, StatxFlags, XattrFlags};

use super::layer::{LayerIndex, RealDir};
use super::lookup::Source;
use super::node::{DirPart, Node};
use super::spot::Spot;
use super::types::{Fault, FileKind, SetAttr, SetTime};
use super::{Outcome, Union};
use crate::format::protattr::Protection;
use crate::sys::Errno;

/// A node's [`Protection`], once it is known.
#[derive(Debug, Default)]
pub(crate) struct KnownProtection(AtomicU8);

const KNOWN: u8 = 1;
const APPEND_ONLY: u8 = 2;
const IMMUTABLE: u8 = 4;

impl KnownProtection {
    pub(super) fn get(&self) -> Option<Protection> {
        let bits = self.0.load(Ordering::Relaxed);
        (bits & KNOWN != 0).then_some(Protection {
            append_only: bits & APPEND_ONLY != 0,
            immutable: bits & IMMUTABLE != 0,
        })
    }

    pub(super) fn set(&self, found: Protection) {
        let mut bits = KNOWN;
        if found.append_only {
            bits |= APPEND_ONLY;
        }
        if found.immutable {
            bits |= IMMUTABLE;
        }
        self.0.store(bits, Ordering::Relaxed);
    }

    pub(super) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Union {
    /// What is forbidden at a node.
    pub(super) fn protection(&self, node: &Arc<Node>) -> Outcome<Protection> {
        if let Some(known) = node.protection.get() {
            return Ok(known);
        }
        let found = match node.kind {
            FileKind::Regular | FileKind::Directory => {
                self.at_object(node, |spot, _| self.protection_of(spot))?
            }
            _ => Protection::NONE,
        };
        node.protection.set(found);
        Ok(found)
    }

    fn protection_of(&self, spot: &Spot) -> Outcome<Protection> {
        let fault = |errno| spot.fault("looking for protection", errno);
        let in_upper = match spot {
            Spot::At { dir, .. } => dir.layer == LayerIndex::Upper,
            Spot::Open(_) => true,
        };
        if in_upper {
            // Flags of its own, which somebody gave it, have the upper's file system refuse.
            return match spot.get_own_xattr(self.namespace.protattr()) {
                Ok(value) => Ok(Protection::parse(&value).unwrap_or_else(|| {
                    log::warn!("{}: malformed, ignored", fault(Errno::INVAL));
                    Protection::NONE
                })),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(Protection::NONE),
                Err(errno) => Err(fault(errno)),
            };
        }
        match spot.statx(StatxFlags::TYPE) {
            Ok(stat) => Ok(Protection {
                append_only: stat.stx_attributes.contains(StatxAttributes::APPEND),
                immutable: stat.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            }),
            // Before Linux 4.11.
            Err(Errno::NOSYS) => Ok(Protection::NONE),
            Err(errno) => Err(fault(errno)),
        }
    }

    /// Refuses a new name in an immutable directory.
    pub(super) fn may_add(
        &self,
        op: &'static str,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Outcome<()> {
        refuse_name(self.protection(parent)?.immutable, op, name)
    }

    /// Refuses to take a name out of a directory that is append-only or immutable.
    pub(super) fn may_take(
        &self,
        op: &'static str,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Outcome<()> {
        refuse_name(self.protection(parent)?.is_any(), op, name)
    }

    /// Refuses to take its name from a node that is append-only or immutable.
    pub(super) fn may_go(&self, op: &'static str, node: &Arc<Node>, name: &OsStr) -> Outcome<()> {
        refuse_name(self.protection(node)?.is_any(), op, name)
    }

    /// As [`Union::may_go`] for what a look-up has found in `dir`, which need not be a node.
    pub(super) fn leaf_may_go(
        &self,
        op: &'static str,
        dir: &DirPart,
        name: &OsStr,
        source: Source,
        stat: &Stat,
    ) -> Outcome<()> {
        if FileKind::of_mode(stat.st_mode) != FileKind::Regular {
            return Ok(());
        }
        let at = |dir: &Arc<RealDir>| Spot::At {
            dir: dir.clone(),
            name: name.into(),
        };
        let spot = match source {
            Source::Upper => dir.upper.get().map(at),
            Source::Lower(slot) => Some(at(&dir.lowers[usize::from(slot)])),
            Source::Index => {
                let index = self.index.as_ref();
                index.and_then(|index| index.spot(self.ground.real_id(stat)))
            }
        };
        let Some(spot) = spot else { return Ok(()) };
        refuse_name(self.protection_of(&spot)?.is_any(), op, name)
    }

    /// Refuses a change of attributes that protection forbids.
    pub(super) fn may_set(&self, node: &Arc<Node>, change: &SetAttr) -> Outcome<()> {
        let protection = self.protection(node)?;
        // Both times set to the present are a touch, which an append-only file allows.
        let touched = change.atime == Some(SetTime::Now) && change.mtime == Some(SetTime::Now);
        let one_time = !touched && (change.atime.is_some() || change.mtime.is_some());
        let changes = change.size.is_some()
            || change.perm.is_some()
            || change.uid.is_some()
            || change.gid.is_some()
            || one_time;
        let forbidden = changes && protection.is_any() || touched && protection.immutable;
        refuse(forbidden, "changing attributes")
    }

    /// Refuses to change anything about a node that is append-only or immutable.
    pub(super) fn may_change(&self, op: &'static str, node: &Arc<Node>) -> Outcome<()> {
        refuse(self.protection(node)?.is_any(), op)
    }

    /// Gives a copy, or an upper object, what stands in for these flags.
    pub(super) fn write_protection(&self, spot: &Spot, wanted: Protection) -> Result<(), Errno> {
        let name = self.namespace.protattr();
        match wanted.value() {
            b"" => match spot.remove_xattr(name) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                result => result,
            },
            value => spot.set_xattr(name, value, XattrFlags::empty()),
        }
    }
}

fn refuse(forbidden: bool, op: &'static str) -> Outcome<()> {
    match forbidden {
        true => Err(Fault::merged(op, Errno::PERM)),
        false => Ok(()),
    }
}

fn refuse_name(forbidden: bool, op: &'static str, name: &OsStr) -> Outcome<()> {
    refuse(forbidden, op).map_err(|fault| fault.named(name))
}
