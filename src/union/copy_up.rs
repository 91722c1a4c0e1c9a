//! Copy-up: giving a lower object its place in the upper layer before it is changed.
//!
//! The copy is built in the work directory, completed, written to the disk and published by one
//! rename that replaces nothing. Killed at any moment, the upper shows the old state or the new
//! one. Two copy-ups run side by side; who needs the same node waits for it, nobody else does.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat, XattrFlags};

use super::copy_attributes::Owner;
use super::copy_data::{self, Arrived};
use super::descriptors::{Access, OpenFile};
use super::layer::{LayerIndex, RealDir};
use super::metacopy::DataPlace;
use super::node::{DirPart, Node, Real};
use super::spot::Spot;
use super::table::Key;
use super::types::{Attr, Fault, FileKind};
use super::work::{Durability, Temp, Work};
use super::{Outcome, Union};
use crate::dotted;
use crate::format::index::Links;
use crate::format::{self, IMPURE, metacopy};
use crate::sys::times::times_of;
use crate::sys::{Errno, xattr};

/// How much of a file's data a copy-up takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    All,
    /// None now, where the mount makes metadata copies; all otherwise.
    Later,
    /// The file is about to be cut to this size.
    UpTo(u64),
}

impl Data {
    /// How many bytes of a file of this size that is.
    fn length(self, size: u64) -> u64 {
        match self {
            Data::All | Data::Later => size,
            Data::UpTo(limit) => size.min(limit),
        }
    }
}

/// Where a copy gets its data.
#[derive(Debug)]
enum Content {
    /// From this file, now.
    From(Spot, Data),
    /// Nowhere: it stays a metadata copy.
    Elsewhere(Arc<DataPlace>),
}

impl Content {
    /// How many bytes of a file with this `stat` come along.
    fn length(&self, stat: &Stat) -> u64 {
        match self {
            Content::From(_, data) => data.length(stat.st_size as u64),
            Content::Elsewhere(_) => 0,
        }
    }
}

/// A finished copy in the work directory.
pub(super) struct Copy<'w> {
    pub(super) temp: Temp<'w>,
    /// A descriptor of it that can still be used once it has no name.
    pub(super) file: Arc<OpenFile>,
    /// What it is called in the index, if that is its place.
    entry: Option<OsString>,
}

impl Union {
    /// The upper layer's work directory, or `EROFS` for a mount without one.
    pub(super) fn work(&self) -> Outcome<&Work> {
        self.work
            .as_ref()
            .ok_or_else(|| Fault::merged("changing a read-only mount", Errno::ROFS))
    }

    /// Copies the node up where it isn't yet, with its parents.
    pub(super) fn copy_up(&self, node: &Arc<Node>, data: Data) -> Outcome<()> {
        let before = node.state.read().ino;
        self.copy_up_quietly(node, data)?;
        // Broken off its hard links. The request may yet fail, and the kernel learn nothing of it.
        if node.state.read().ino != before {
            self.watcher.tell(node.id);
        }
        Ok(())
    }

    /// As [`Union::copy_up`] for a request that may be a write-back of a node that the kernel is
    /// about to forget: a word about that very node would wait for the write, which waits for us.
    pub(super) fn copy_up_quietly(&self, node: &Arc<Node>, data: Data) -> Outcome<()> {
        let work = self.work()?;
        let place = self.data_place(node);
        if let Some(place) = &place {
            self.need_data(place)?;
        }
        if node.is_upper() {
            return match place {
                Some(_) if data != Data::Later => self.complete_data(work, node),
                _ => Ok(()),
            };
        }
        // From the highest parent that is missing down, without recursion: paths can be long.
        let mut missing = vec![node.clone()];
        loop {
            let last = &missing[missing.len() - 1];
            let Some(parent) = last
                .state
                .read()
                .link
                .as_ref()
                .map(|link| link.parent.clone())
            else {
                break;
            };
            if parent.is_upper() {
                break;
            }
            missing.push(parent);
        }
        while let Some(next) = missing.pop() {
            self.copy_up_one(work, &next, data)?;
            // It has got an entry; that shows in the time of its last change, and nowhere else.
            let above = {
                let state = next.state.read();
                let link = state.link.as_ref().filter(|_| state.named);
                link.map(|link| link.parent.id)
            };
            for changed in above
                .into_iter()
                .chain(next.dir.is_some().then_some(next.id))
            {
                self.watcher.tell(changed);
            }
        }
        // Somebody else may have copied it up meanwhile, without its data.
        if data != Data::Later && self.data_place(node).is_some() {
            return self.complete_data(work, node);
        }
        Ok(())
    }

    /// The upper directory of a directory node, copied up where needed.
    pub(super) fn upper_dir<'n>(
        &self,
        node: &'n Arc<Node>,
        dir: &'n DirPart,
    ) -> Outcome<&'n Arc<RealDir>> {
        self.copy_up(node, Data::All)?;
        dir.upper
            .get()
            .ok_or_else(|| Fault::merged("copy-up of a directory", Errno::STALE))
    }

    fn copy_up_one(&self, work: &Work, node: &Arc<Node>, data: Data) -> Outcome<()> {
        let _only_one = node.copy_up.lock();
        if node.is_upper() {
            return Ok(());
        }
        if self.is_dotted()
            && let Some(link) = &node.state.read().link
        {
            self.refuse_reserved(&link.name)?;
        }
        let spot = self.spot(node)?;
        let stat = spot.stat()?;
        // Another object under the name: somebody has changed the layer.
        let Some(stat) = stat.filter(|stat| self.is_still(node, stat)) else {
            return Err(spot.fault("copy-up: stat", Errno::STALE));
        };
        let record = self.record_at(&spot, &stat);
        let shown = self.owners.own(node.state.read().ino, &stat, record);
        // What has lost its name has no place where its data could be looked for.
        let later = data == Data::Later
            && self.follow.metacopy
            && node.kind == FileKind::Regular
            && node.state.read().named;
        let place = self.data_place(node);
        let content = match (place, &spot) {
            (Some(place), _) if later => Content::Elsewhere(place),
            (None, Spot::At { dir, name }) if later => {
                let id = self.ground.real_id(&stat);
                Content::Elsewhere(DataPlace::found(dir, name, id))
            }
            (Some(place), _) => Content::From(self.data_spot(&place)?.0, data),
            (None, _) => Content::From(spot.clone(), data),
        };
        let entry = match node.state.read().named {
            true => self.entry_of(&spot, &stat),
            false => None,
        };
        let copy = self.build(work, &spot, &stat, &shown, &content, entry)?;
        let elsewhere = match content {
            Content::From(..) => None,
            Content::Elsewhere(place) => Some(place),
        };
        self.publish_copy(node, copy, &stat, elsewhere)
    }

    /// Whether this is the `stat` of the lower object that a node stands for.
    fn is_still(&self, node: &Node, stat: &Stat) -> bool {
        match &node.state.read().real {
            Real::Lower { id, .. } => *id == self.ground.real_id(stat),
            Real::Dir | Real::Upper(_) | Real::Detached(_) => true,
        }
    }

    /// Builds the finished copy in the work directory.
    fn build<'w>(
        &self,
        work: &'w Work,
        spot: &Spot,
        stat: &Stat,
        shown: &Attr,
        content: &Content,
        entry: Option<OsString>,
    ) -> Outcome<Copy<'w>> {
        let temp = work.temp()?;
        let fault = |op| move |errno| work.fault(op, errno);
        let kind = FileKind::of_mode(stat.st_mode);
        let mut substitute = false;
        let mut arrived = Arrived::Written;
        let fd = match kind {
            FileKind::Regular => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                let to =
                    rustix::fs::openat(work.as_fd(), temp.name(), flags, Mode::RUSR | Mode::WUSR)
                        .map_err(fault("copy-up: creating the file"))?;
                let size = stat.st_size as u64;
                match content {
                    Content::From(from, data) => {
                        arrived = self.copy_file_data(from, to.as_fd(), size, *data)?;
                    }
                    Content::Elsewhere(_) => rustix::fs::ftruncate(&to, size)
                        .map_err(fault("copy-up: giving the size"))?,
                }
                to
            }
            FileKind::Directory => new_dir(work, &temp)?,
            FileKind::Symlink => {
                let target = self.read_link_at(spot)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), work.as_fd(), temp.name())
                    .map_err(fault("copy-up: creating the link"))?;
                open_temp(work, &temp, OFlags::PATH).map_err(fault("copy-up: opening the link"))?
            }
            _ => {
                let file_type = FileType::from_raw_mode(stat.st_mode);
                let mode = Mode::RUSR | Mode::WUSR;
                let made =
                    rustix::fs::mknodat(work.as_fd(), temp.name(), file_type, mode, stat.st_rdev);
                match made {
                    Ok(()) => open_temp(work, &temp, OFlags::PATH)
                        .map_err(fault("copy-up: opening the node"))?,
                    Err(Errno::PERM) if self.owners.records() => {
                        substitute = true;
                        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                        rustix::fs::openat(work.as_fd(), temp.name(), flags, mode)
                            .map_err(fault("copy-up: creating a stand-in"))?
                    }
                    Err(errno) => return Err(work.fault("copy-up: creating the node", errno)),
                }
            }
        };
        let access = match kind {
            FileKind::Regular => Access::Write,
            FileKind::Directory => Access::Read,
            _ if substitute => Access::Write,
            _ => Access::Path,
        };
        let copy = Copy {
            temp,
            file: OpenFile::new(fd, access),
            entry,
        };
        // The attributes come after data and owner, which take security.capability off, and
        // before the mode, which may forbid setting them.
        let mut owner = self.give_owner(work, &copy, shown)?;
        if substitute {
            owner = Owner::ToBeRecorded;
        }
        self.copy_xattrs(work, spot, &copy)?;
        if matches!(kind, FileKind::Regular | FileKind::Directory) {
            self.copy_inode_flags(work, spot, &copy)?;
        }
        if kind == FileKind::Directory || stat.st_nlink == 1 || copy.entry.is_some() {
            self.mark_origin(work, spot, &copy)?;
        }
        if copy.entry.is_some() {
            // As many as the lower one has.
            self.set_links(&copy_spot(&copy), Links::Lower(0))?;
        }
        let elsewhere = matches!(content, Content::Elsewhere(_));
        if elsewhere {
            copy_spot(&copy)
                .set_xattr(
                    self.namespace.metacopy(),
                    metacopy::PLAIN,
                    XattrFlags::empty(),
                )
                .map_err(fault("copy-up: marking a metadata copy"))?;
        }
        self.give_mode(work, &copy, shown, owner)?;
        let times = times_of(stat);
        copy_spot(&copy)
            .set_times(&times)
            .map_err(fault("copy-up: setting the times"))?;
        let synced = match work.durability {
            Durability::Volatile => false,
            // Where no data was written none can be lost; the kernel's overlay doesn't wait then.
            Durability::Synced => {
                let written = arrived == Arrived::Written;
                kind == FileKind::Regular && written && content.length(stat) > 0
            }
            Durability::Strict => matches!(kind, FileKind::Regular | FileKind::Directory),
        };
        if synced {
            rustix::fs::fsync(copy.file.as_fd()).map_err(fault("copy-up: writing to the disk"))?;
        }
        Ok(copy)
    }

    /// Copies the data of a file that shows this size.
    pub(super) fn copy_file_data(
        &self,
        spot: &Spot,
        to: BorrowedFd<'_>,
        size: u64,
        data: Data,
    ) -> Outcome<Arrived> {
        let wanted = data.length(size);
        if wanted == 0 {
            return Ok(Arrived::Written);
        }
        let from = open_for_reading(spot).map_err(|errno| spot.fault("copy-up: opening", errno))?;
        let fault = |errno| spot.fault("copy-up: copying the data", errno);
        let stat = rustix::fs::fstat(&from).map_err(fault)?;
        // Somebody has changed the layer since we looked.
        if FileKind::of_mode(stat.st_mode) != FileKind::Regular {
            return Err(fault(Errno::STALE));
        }
        // A metadata copy's size need not be that of its data.
        let whole = stat.st_size as u64 == wanted;
        copy_data::copy(from.as_fd(), to, wanted, whole).map_err(fault)
    }

    /// Publishes a finished copy under the node's name, or keeps it nameless where the name has
    /// gone meanwhile.
    fn publish_copy(
        &self,
        node: &Arc<Node>,
        copy: Copy<'_>,
        origin: &Stat,
        elsewhere: Option<Arc<DataPlace>>,
    ) -> Outcome<()> {
        let Some(link) = node.state.read().link.clone() else {
            return Err(Fault::merged("copy-up of the root", Errno::ROFS));
        };
        let Some(parent) = &link.parent.dir else {
            return Err(Fault::merged("copy-up", Errno::STALE).named(&link.name));
        };
        let stat = rustix::fs::fstat(copy.file.as_fd())
            .map_err(|errno| self.copy_fault("copy-up: stat of the copy", errno))?;
        let id = self.ground.real_id(&stat);
        let file = copy.file.clone();
        let has_its_data = node.kind == FileKind::Regular && elsewhere.is_none();
        let names = parent.names.write();
        let named = node.state.read().named;
        let indexed = copy.entry.is_some();
        let real = if named {
            let Some(upper) = parent.upper.get() else {
                return Err(Fault::merged("copy-up", Errno::STALE).named(&link.name));
            };
            match copy.entry.clone() {
                None => self.publish_in(upper, &link.name, copy)?,
                Some(entry) => self.publish_entry(&entry, copy, id)?,
            }
            Real::Upper(id)
        } else if node.dir.is_some() {
            return Err(Fault::merged("copy-up", Errno::NOENT).named(&link.name));
        } else {
            // Unlinked but open: the copy lives as long as its descriptor.
            Real::Detached(file.clone())
        };
        if let Some(dir) = &node.dir {
            if let Some(upper) = parent.upper.get() {
                let _ = dir.upper.set(upper.child(&link.name, id));
            }
        } else {
            let keeps_number = origin.st_nlink == 1 || indexed;
            let mut state = node.state.write();
            if keeps_number {
                if named {
                    self.origins.insert(id, state.ino);
                }
            } else {
                state.ino = self.ground.numbers.ino(id.fs, id.ino);
            }
            let old = std::mem::replace(&mut state.real, real);
            let old = (old, std::mem::replace(&mut state.data, elsewhere));
            drop(state);
            drop(old);
            // Whoever comes next gets the copy, and most often wants to write.
            if named && has_its_data {
                self.ground.descriptors.put(node.slot, file);
            } else {
                self.ground.descriptors.remove(node.slot);
            }
        }
        if named {
            self.table.rekey(node, Key::Real(LayerIndex::Upper, id));
        }
        if let (true, true, Some(upper)) = (named, indexed, parent.upper.get()) {
            self.link_up(upper, &link.name, id)?;
        }
        drop(names);
        Ok(())
    }

    fn copy_fault(&self, op: &'static str, errno: Errno) -> Fault {
        Fault {
            errno,
            op,
            place: super::types::Place::Work,
            name: None,
        }
    }

    /// Renames the copy into the upper directory, marks that impure and gives it its times back.
    fn publish_in(&self, upper: &Arc<RealDir>, name: &OsStr, copy: Copy<'_>) -> Outcome<()> {
        let dir = upper.open()?;
        let before = rustix::fs::fstat(dir.as_fd())
            .map_err(|errno| upper.fault("copy-up: stat of the parent", name, errno))?;
        self.mark_impure(upper)?;
        let published = copy.temp.publish(dir.as_fd(), name, RenameFlags::NOREPLACE);
        published.map_err(|errno| upper.fault("copy-up: publishing", name, errno))?;
        // The copy has its place: an error now would say that it hasn't.
        if let Err(errno) = Spot::itself(upper).set_times(&times_of(&before)) {
            log::warn!("copy-up: giving the parent its times back: {errno}");
        }
        Ok(())
    }

    /// Marks an upper directory as one that may hold copied-up entries.
    pub(super) fn mark_impure(&self, upper: &Arc<RealDir>) -> Outcome<()> {
        let dot = OsStr::new(".");
        let attr = self.namespace.impure();
        if upper.is_impure(attr)? {
            return Ok(());
        }
        match Spot::itself(upper).set_xattr(attr, IMPURE, XattrFlags::empty()) {
            Ok(()) => {
                upper.was_marked_impure();
                Ok(())
            }
            Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(upper.fault("marking a directory impure", dot, errno)),
        }
    }

    /// Marks a directory (a name in `dir`) as one that hides the lower ones.
    pub(super) fn mark_opaque(&self, dir: impl AsFd, name: &OsStr) -> Result<(), Errno> {
        if self.is_dotted() {
            return dotted::make_opaque(dir, name);
        }
        let attr = self.namespace.opaque();
        xattr::set(dir.as_fd(), name, attr, format::OPAQUE, XattrFlags::empty())
    }
}

/// The copy while it is in the work directory. By descriptor, as far as that goes.
pub(super) fn copy_spot(copy: &Copy<'_>) -> Spot {
    match copy.file.access() {
        Access::Path => copy.temp.spot(),
        Access::Read | Access::Append | Access::Write => Spot::Open(copy.file.clone()),
    }
}

/// A copy of a directory that has nothing of it yet.
pub(super) fn make_dir(work: &Work) -> Outcome<Copy<'_>> {
    let temp = work.temp()?;
    let file = OpenFile::new(new_dir(work, &temp)?, Access::Read);
    Ok(Copy {
        temp,
        file,
        entry: None,
    })
}

fn new_dir(work: &Work, temp: &Temp<'_>) -> Outcome<OwnedFd> {
    rustix::fs::mkdirat(work.as_fd(), temp.name(), Mode::RWXU)
        .and_then(|()| open_temp(work, temp, OFlags::RDONLY | OFlags::DIRECTORY))
        .map_err(|errno| work.fault("copy-up: creating the directory", errno))
}

fn open_temp(work: &Work, temp: &Temp<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(work.as_fd(), temp.name(), flags, Mode::empty())
}

/// Opens for reading: in a lower layer without leaving an access time, where we may.
pub(super) fn open_for_reading(spot: &Spot) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    if matches!(spot, Spot::At { dir, .. } if dir.layer == LayerIndex::Upper) {
        return spot.open(flags);
    }
    match spot.open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => spot.open(flags),
        result => result,
    }
}
