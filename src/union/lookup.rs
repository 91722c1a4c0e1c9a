//! Look-up: which layers have a name, and the node for it.
//!
//! Upper first, then the lower layers from the top. A whiteout, an opaque directory or anything
//! that isn't a directory ends the search (`overlayfs.rst`, "Upper and Lower").

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::Stat;

use super::descriptors::OpenFile;
use super::layer::{LayerIndex, RealDir};
use super::lower_names::Slots;
use super::metacopy::DataPlace;
use super::node::DirPart;
use super::types::{Entry, Fault, FileKind, NodeId};
use super::{DirNode, Outcome, Union};
use crate::format::redirect::Redirect;
use crate::format::{self, MAY_HOLD_XATTR_WHITEOUTS, OPAQUE};
use crate::sys::Errno;

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
    /// The index of hard links: the name is a lower file's, which was copied up by another.
    Index,
}

/// A directory seen in one layer.
#[derive(Debug)]
pub(super) struct DirLayer {
    pub(super) stat: Stat,
    /// Its descriptor, where it had to be opened for a look at its attributes.
    pub(super) opened: Option<Arc<OpenFile>>,
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
        Ok(Some(node.entry(attr)))
    }

    /// Finds a name in the layers of a directory.
    pub(super) fn find(&self, dir: &DirPart, name: &OsStr) -> Outcome<Option<Found>> {
        let found = if self.follow.is_on() {
            self.find_following(dir, name)?
        } else {
            self.find_plain(dir, name)?
        };
        match found {
            Some(found) if self.index.is_some() => self.through_index(dir, name, found).map(Some),
            found => Ok(found),
        }
    }

    fn find_plain(&self, dir: &DirPart, name: &OsStr) -> Outcome<Option<Found>> {
        let mut upper = None;
        let stat = match dir.upper.get() {
            Some(real) => real.stat(name)?,
            None => None,
        };
        if let (Some(real), None) = (dir.upper.get(), &stat)
            && real.hides(name)?
        {
            return Ok(None);
        }
        if let (Some(real), Some(stat)) = (dir.upper.get(), stat) {
            if self.is_whiteout(real, name, &stat)? {
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
        let mut in_vain = 0;
        let slots = self.known_slots(dir, name);
        loop {
            let next = self.next_lower(dir, name, from, slots.as_ref())?;
            let reached = next.map_or(dir.lowers.len(), |(slot, _)| usize::from(slot));
            in_vain += reached - from;
            let Some((slot, stat)) = next else { break };
            if !is_dir(&stat) {
                if upper.is_none() && lowers.is_empty() {
                    self.refuse_metacopy(&dir.lowers[usize::from(slot)], name, &stat)?;
                    if slots.is_none() {
                        self.asked_in_vain(dir, in_vain);
                    }
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
        if slots.is_none() {
            self.asked_in_vain(dir, in_vain);
        }
        if upper.is_none() && lowers.is_empty() {
            return Ok(None);
        }
        Ok(Some(Found::Dir { upper, lowers }))
    }

    /// The topmost lower object with this name; none where a whiteout comes first. Asks the layers.
    pub(super) fn first_lower(&self, dir: &DirPart, name: &OsStr) -> Outcome<Option<(u16, Stat)>> {
        self.next_lower(dir, name, 0, None)
    }

    /// As [`Union::first_lower`], from the lower directory `from` downwards. `slots` are those that
    /// may have the name, where that is known.
    fn next_lower(
        &self,
        dir: &DirPart,
        name: &OsStr,
        from: usize,
        slots: Option<&Slots>,
    ) -> Outcome<Option<(u16, Stat)>> {
        for (slot, real) in dir.lowers.iter().enumerate().skip(from) {
            if slots.is_some_and(|slots| !slots.contains(&(slot as u16))) {
                continue;
            }
            let stat = match real.stat(name) {
                Ok(Some(stat)) => stat,
                Ok(None) if real.hides(name)? => return Ok(None),
                Ok(None) => continue,
                // What is in there is nobody's business, but a fake root may put its own beside.
                Err(fault) if fault.errno == Errno::ACCESS && self.owners.records() => continue,
                Err(fault) => return Err(fault),
            };
            if self.is_whiteout(real, name, &stat)? {
                return Ok(None);
            }
            return Ok(Some((slot as u16, stat)));
        }
        Ok(None)
    }

    /// Whether a lower layer shows this name, so that removing it needs a whiteout. Asked of the
    /// layers each time: a remembered answer is how deleted files come back.
    pub(super) fn lower_has(&self, dir: &DirPart, name: &OsStr) -> Outcome<bool> {
        Ok(self.first_lower(dir, name)?.is_some())
    }

    /// Whether this says that the name isn't there: a 0:0 device, or an empty regular file with
    /// the `whiteout` attribute. A look-up takes the latter for one in every layer, whatever its
    /// directory says; only a listing goes by that.
    pub(super) fn is_whiteout(&self, real: &RealDir, name: &OsStr, stat: &Stat) -> Outcome<bool> {
        if format::is_whiteout(stat.st_mode, stat.st_rdev) {
            return Ok(true);
        }
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
            Err(fault) if fault.errno == Errno::ACCESS && real.layer != LayerIndex::Upper => {
                return Ok(Merge::Goes(None));
            }
            Err(fault) => return Err(fault),
        };
        let opaque = real.opaque(name, &file, self.namespace.opaque())?;
        match (opaque.as_deref(), real.layer) {
            (Some(OPAQUE), _) => return Ok(Merge::Stops(Some(file))),
            (Some(MAY_HOLD_XATTR_WHITEOUTS), LayerIndex::Lower(layer)) => {
                self.xattr_whiteouts[usize::from(layer)].store(true, Ordering::Relaxed);
            }
            _ => {}
        }
        if let Some(value) = real.dir_xattr(name, &file, self.namespace.redirect())? {
            if Redirect::parse(&value).is_err() {
                return Err(real.fault("reading a redirect", name, Errno::INVAL));
            }
            // Merging by another name was not asked for; the kernel refuses, too.
            return Err(real.fault("following a redirect", name, Errno::PERM));
        }
        Ok(Merge::Goes(Some(file)))
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

impl Found {
    /// A directory that was just made: no lower one counts.
    pub(super) fn made_dir(stat: Stat) -> Self {
        Found::Dir {
            upper: Some(DirLayer { stat, opened: None }),
            lowers: Vec::new(),
        }
    }
}
