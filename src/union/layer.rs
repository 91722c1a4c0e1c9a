//! The real side: layers and the directories in them.
//!
//! Every step into a layer is one name relative to a directory descriptor, symbolic links not
//! followed, so no walk leaves its layer whatever is swapped under it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use super::descriptors::{Access, Descriptors, OpenFile, Slot};
use super::lend::Lender;
use super::locks::{OrderedRwLock, Rank};
use super::number::{FsIndex, Numbers};
use super::types::{Fault, Place};
use crate::dotted;
use crate::format::dotted::{Name, read};
use crate::format::{Form, IMPURE, OPAQUE};
use crate::sys::{Errno, xattr};

/// A layer's position: the upper, or a lower counted from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LayerIndex {
    Upper,
    Lower(u16),
}

impl LayerIndex {
    pub(crate) fn place(self) -> Place {
        match self {
            LayerIndex::Upper => Place::Upper,
            LayerIndex::Lower(index) => Place::Lower(index),
        }
    }
}

/// Identity of an object on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RealId {
    pub(crate) fs: FsIndex,
    pub(crate) ino: u64,
}

/// What all real directories of a mount share.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) descriptors: Descriptors,
    pub(crate) numbers: Numbers,
    /// The mount's own target, taken before anything was mounted on it. A layer that contains it
    /// is served what lies beneath: resolving the name would ask ourselves, and wait.
    pub(crate) target: Option<Target>,
    pub(crate) lender: Lender,
}

/// The directory that the merged tree is mounted on, as it was before.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) parent: RealId,
    pub(crate) name: OsString,
    pub(crate) beneath: OwnedFd,
}

impl Ground {
    pub(crate) fn real_id(&self, stat: &Stat) -> RealId {
        RealId {
            fs: self.numbers.fs(stat.st_dev),
            ino: stat.st_ino,
        }
    }
}

/// What is known about a directory's `impure` mark.
const UNKNOWN: u8 = 0;
const IS_PURE: u8 = 1;
const IS_IMPURE: u8 = 2;

/// One directory of one layer. Its descriptor may be dropped and is then opened again from the
/// parent, so it costs nothing to keep many.
#[derive(Debug)]
pub(crate) struct RealDir {
    ground: Arc<Ground>,
    pub(crate) layer: LayerIndex,
    pub(crate) form: Form,
    pub(crate) id: RealId,
    slot: Slot,
    /// Whether it is marked impure; asked once.
    impure: AtomicU8,
    position: OrderedRwLock<Position>,
}

#[derive(Debug, Clone)]
enum Position {
    /// A descriptor that is never dropped: a layer's root, a removed directory.
    Held(Arc<OpenFile>),
    Below {
        parent: Arc<RealDir>,
        name: Box<OsStr>,
    },
    /// Nowhere any more: it is being dropped.
    Nowhere,
}

impl RealDir {
    /// The root of a layer.
    pub(crate) fn root(
        ground: &Arc<Ground>,
        layer: LayerIndex,
        form: Form,
        fd: OwnedFd,
    ) -> Result<Arc<Self>, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        let id = ground.real_id(&stat);
        Ok(Self::new(
            ground,
            (layer, form),
            id,
            Position::Held(OpenFile::new(fd, Access::Read)),
        ))
    }

    /// The directory `name`, which has just been seen to have the identity `id`.
    pub(crate) fn child(self: &Arc<Self>, name: &OsStr, id: RealId) -> Arc<Self> {
        let position = Position::Below {
            parent: self.clone(),
            name: name.into(),
        };
        Self::new(&self.ground, (self.layer, self.form), id, position)
    }

    fn new(
        ground: &Arc<Ground>,
        (layer, form): (LayerIndex, Form),
        id: RealId,
        position: Position,
    ) -> Arc<Self> {
        let position = OrderedRwLock::new(Rank::Place, position);
        let slot = ground.descriptors.slot();
        Arc::new(Self {
            ground: ground.clone(),
            layer,
            form,
            id,
            slot,
            impure: AtomicU8::new(UNKNOWN),
            position,
        })
    }

    /// An error of `op` on `name` in this directory.
    pub(crate) fn fault(&self, op: &'static str, name: &OsStr, errno: Errno) -> Fault {
        Fault {
            errno,
            op,
            place: self.layer.place(),
            name: Some(name.to_os_string()),
        }
    }

    /// Its descriptor, opened where needed.
    pub(crate) fn open(&self) -> Result<Arc<OpenFile>, Fault> {
        match self.ground.descriptors.get(self.slot) {
            Some(file) => Ok(file),
            None => self.reopen(),
        }
    }

    /// Opens it from its parent, and before that, from the top, whatever is above it and isn't
    /// open. In a loop: a layer may have more levels than a thread has stack.
    fn reopen(&self) -> Result<Arc<OpenFile>, Fault> {
        // What has to be opened first; the nearest comes first, too.
        let mut above: Vec<Arc<RealDir>> = Vec::new();
        // What was opened last: it may have fallen out of the store already.
        let mut opened: Option<(Arc<RealDir>, Arc<OpenFile>)> = None;
        let mut missed: Option<(Arc<RealDir>, Box<OsStr>)> = None;
        loop {
            let dir = above.last().map_or(self, |dir| &**dir);
            let position = dir.position.read().clone();
            let file = match position {
                Position::Held(file) => file,
                Position::Nowhere => return Err(dir.stale(OsStr::new("."))),
                Position::Below { parent, name } => {
                    let known = match &opened {
                        Some((dir, file)) if Arc::ptr_eq(dir, &parent) => Some(file.clone()),
                        _ => parent.ground.descriptors.get(parent.slot),
                    };
                    let Some(known) = known else {
                        above.push(parent);
                        missed = None;
                        continue;
                    };
                    let Some(file) = dir.open_in(&parent, &known, &name)? else {
                        // A rename may have moved the directory between reading where it is and
                        // going there.
                        if missed
                            .as_ref()
                            .is_some_and(|(p, n)| Arc::ptr_eq(p, &parent) && *n == name)
                        {
                            return Err(dir.stale(&name));
                        }
                        missed = Some((parent, name));
                        continue;
                    };
                    file
                }
            };
            missed = None;
            match above.pop() {
                Some(dir) => opened = Some((dir, file)),
                None => return Ok(file),
            }
        }
    }

    /// Opens it as `name` in `parent`, whose descriptor this is; `None` where it isn't there.
    fn open_in(
        &self,
        parent: &RealDir,
        descriptor: &OpenFile,
        name: &OsStr,
    ) -> Result<Option<Arc<OpenFile>>, Fault> {
        let file = match parent.open_child_by(descriptor, name) {
            Ok(file) => file,
            Err(fault) if matches!(fault.errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                return Ok(None);
            }
            Err(fault) => return Err(fault),
        };
        let stat = rustix::fs::fstat(file.as_fd())
            .map_err(|errno| parent.fault("stat of a directory", name, errno))?;
        if self.ground.real_id(&stat) != self.id {
            return Ok(None);
        }
        self.ground.descriptors.put(self.slot, file.clone());
        Ok(Some(file))
    }

    fn stale(&self, name: &OsStr) -> Fault {
        self.fault("reopening a directory", name, Errno::STALE)
    }

    /// Opens the directory `name` in this one.
    pub(crate) fn open_child_dir(&self, name: &OsStr) -> Result<Arc<OpenFile>, Fault> {
        self.open_child_by(&*self.open()?, name)
    }

    fn open_child_by(&self, here: &OpenFile, name: &OsStr) -> Result<Arc<OpenFile>, Fault> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (from, name_there) = match self.beneath_target(name) {
            Some(target) => (target.beneath.as_fd(), OsStr::new(".")),
            None => (here.as_fd(), name),
        };
        let open = |more| rustix::fs::openat(from, name_there, flags | more, Mode::empty());
        match open(OFlags::RDONLY) {
            Ok(fd) => Ok(OpenFile::new(fd, Access::Read)),
            // Searchable but not readable: enough for look-ups.
            Err(Errno::ACCESS) => open(OFlags::PATH)
                .map(|fd| OpenFile::new(fd, Access::Path))
                .map_err(|errno| self.fault("opening a directory", name, errno)),
            Err(errno) => Err(self.fault("opening a directory", name, errno)),
        }
    }

    /// Stats `name`; `None` when it isn't there.
    pub(crate) fn stat(&self, name: &OsStr) -> Result<Option<Stat>, Fault> {
        if self.form == Form::Dotted && read(name) != Name::Plain {
            return Ok(None);
        }
        let result = match self.beneath_target(name) {
            Some(target) => rustix::fs::fstat(&target.beneath),
            None => {
                let dir = self.open()?;
                let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
                rustix::fs::statat(dir.as_fd(), name, flags)
            }
        };
        match result {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.fault("stat", name, errno)),
        }
    }

    /// Whether a name beside `name` hides that of the layers below: in the fallback form, where it
    /// says nothing about an object in this layer.
    pub(crate) fn hides(&self, name: &OsStr) -> Result<bool, Fault> {
        if self.form == Form::Kernel {
            return Ok(false);
        }
        let dir = self.open()?;
        dotted::hides(dir.as_fd(), name).map_err(|errno| self.fault("stat", name, errno))
    }

    /// What the directory `name`, which is open, says of the layers below: the value of `opaque`
    /// (`attr`). Where an upper directory can't be asked that is an error: what was removed must not
    /// come back. A lower one that we may not read says nothing, as to the kernel's overlay.
    pub(crate) fn opaque(
        &self,
        name: &OsStr,
        file: &OpenFile,
        attr: &OsStr,
    ) -> Result<Option<Vec<u8>>, Fault> {
        if self.form == Form::Dotted {
            let opaque = match self.read_own(name, || dotted::is_opaque(file.as_fd())) {
                // What is in there can't be shown either.
                Err(fault) if fault.errno == Errno::ACCESS && !self.is_upper() => false,
                opaque => opaque?,
            };
            if opaque || self.hides(name)? {
                return Ok(Some(OPAQUE.to_vec()));
            }
            // A layer of an image may have come from either form.
        }
        match self.dir_xattr(name, file, attr) {
            Err(_) if !self.is_upper() => Ok(None),
            value => value,
        }
    }

    /// One attribute of the directory `name`, which is open, that data would be lost without: as
    /// [`RealDir::sure_xattr`], but an upper directory is always read.
    pub(crate) fn dir_xattr(
        &self,
        name: &OsStr,
        file: &OpenFile,
        attr: &OsStr,
    ) -> Result<Option<Vec<u8>>, Fault> {
        let dir = self.open()?;
        self.read_own(name, || {
            let value = match file.access() {
                Access::Path => xattr::get(dir.as_fd(), name, attr),
                _ => xattr::fget(file.as_fd(), attr),
            };
            match value {
                Err(Errno::ACCESS) if self.is_upper() => Err(Errno::ACCESS),
                value => sure(value),
            }
        })
    }

    /// Has `read` read something of `name`: with the permission to where this is the upper.
    fn read_own<T>(&self, name: &OsStr, read: impl Fn() -> Result<T, Errno>) -> Result<T, Fault> {
        let value = match self.is_upper() {
            true => self.ground.lender.lend(self.open()?.as_fd(), name, read),
            false => read(),
        };
        value.map_err(|errno| self.fault("looking into a directory", name, errno))
    }

    fn is_upper(&self) -> bool {
        self.layer == LayerIndex::Upper
    }

    /// One attribute of an upper object, or of the directory itself for `.`, which is read even
    /// where its owner may not.
    pub(crate) fn own_xattr(&self, name: &OsStr, attr: &OsStr) -> Result<Vec<u8>, Fault> {
        let dir = self.open()?;
        if name != "." {
            return self.read_own(name, || xattr::get(dir.as_fd(), name, attr));
        }
        match self.above() {
            // By its name: what isn't searchable has no `.`.
            Some((parent, name)) => {
                let above = parent.open()?;
                parent.read_own(&name, || xattr::get(above.as_fd(), &name, attr))
            }
            None => {
                let value = match dir.access() {
                    Access::Path => xattr::get(dir.as_fd(), name, attr),
                    _ => xattr::fget(dir.as_fd(), attr),
                };
                value.map_err(|errno| self.fault("reading an attribute", name, errno))
            }
        }
    }

    /// Its parent, and its name there; none for a layer's root or a removed directory.
    pub(crate) fn above(&self) -> Option<(Arc<RealDir>, Box<OsStr>)> {
        match &*self.position.read() {
            Position::Below { parent, name } => Some((parent.clone(), name.clone())),
            Position::Held(_) | Position::Nowhere => None,
        }
    }

    /// As [`RealDir::opaque`] for a directory that isn't open: whether it hides those below.
    pub(crate) fn is_opaque(&self, name: &OsStr, attr: &OsStr) -> Result<bool, Fault> {
        let value = match self.form {
            Form::Kernel => self.xattr(name, attr)?,
            Form::Dotted => self.opaque(name, &*self.open_child_dir(name)?, attr)?,
        };
        Ok(value.as_deref() == Some(OPAQUE))
    }

    fn beneath_target(&self, name: &OsStr) -> Option<&Target> {
        let target = self.ground.target.as_ref()?;
        (target.parent == self.id && target.name == name).then_some(target)
    }

    /// One attribute of `name`, or of the directory itself for `.`; `None` when it isn't set.
    pub(crate) fn xattr(&self, name: &OsStr, attr: &OsStr) -> Result<Option<Vec<u8>>, Fault> {
        let dir = self.open()?;
        if name == "." && dir.access() == Access::Read {
            return Ok(xattr::fget(dir.as_fd(), attr).ok());
        }
        Ok(xattr::get_optional(dir.as_fd(), name, attr))
    }

    /// As [`RealDir::xattr`], for an attribute that data would be lost without: only where the file
    /// system says so, or the object may not be read, it isn't there. The kernel's overlay makes
    /// the same difference for `metacopy` and `redirect`.
    pub(crate) fn sure_xattr(&self, name: &OsStr, attr: &OsStr) -> Result<Option<Vec<u8>>, Fault> {
        let dir = self.open()?;
        let value = if name == "." && dir.access() == Access::Read {
            xattr::fget(dir.as_fd(), attr)
        } else {
            xattr::get(dir.as_fd(), name, attr)
        };
        sure(value).map_err(|errno| self.fault("reading an attribute", name, errno))
    }

    /// Whether the directory may hold copied-up entries, as its `impure` mark says.
    pub(crate) fn is_impure(&self, attr: &OsStr) -> Result<bool, Fault> {
        match self.impure.load(Ordering::Acquire) {
            UNKNOWN => {}
            known => return Ok(known == IS_IMPURE),
        }
        let marked = self.xattr(OsStr::new("."), attr)?.as_deref() == Some(IMPURE);
        let answer = if marked { IS_IMPURE } else { IS_PURE };
        // Whoever has marked it meanwhile knows better.
        let _ = self
            .impure
            .compare_exchange(UNKNOWN, answer, Ordering::AcqRel, Ordering::Acquire);
        Ok(marked)
    }

    /// Says that it has just been marked impure. Nobody else marks it.
    pub(crate) fn was_marked_impure(&self) {
        self.impure.store(IS_IMPURE, Ordering::Release);
    }

    /// Keeps a descriptor that was opened while looking the directory up.
    pub(crate) fn remember(&self, file: &Arc<OpenFile>) {
        self.ground.descriptors.put(self.slot, file.clone());
    }

    /// Another description of it, to list it by: others may be reading it, too. In a lower layer that
    /// leaves no access time, where we may.
    pub(crate) fn open_to_list(&self) -> Result<OwnedFd, Fault> {
        let fault = |errno| self.fault("reading a directory", OsStr::new("."), errno);
        let dir = self.open()?;
        if dir.access() == Access::Path {
            return Err(fault(Errno::ACCESS));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |more| rustix::fs::openat(dir.as_fd(), ".", flags | more, Mode::empty());
        let opened = match self.is_upper() {
            true => open(OFlags::empty()),
            false => open(OFlags::NOATIME).or_else(|_| open(OFlags::empty())),
        };
        opened.map_err(fault)
    }

    /// Has it opened again when it is next needed, where it was opened without the right to read: that may
    /// be allowed now.
    pub(crate) fn reopen_to_read(&self) {
        let known = self.ground.descriptors.get(self.slot);
        if known.is_some_and(|file| file.access() == Access::Path) {
            self.ground.descriptors.remove(self.slot);
        }
    }

    /// Says that the directory is now `name` in `parent`.
    pub(crate) fn moved(&self, parent: &Arc<RealDir>, name: &OsStr) {
        let position = Position::Below {
            parent: parent.clone(),
            name: name.into(),
        };
        let old = std::mem::replace(&mut *self.position.write(), position);
        drop(old);
    }

    /// Says that the directory is about to lose its name: from now on `file` is all that is left.
    pub(crate) fn hold(&self, file: Arc<OpenFile>) {
        let old = std::mem::replace(&mut *self.position.write(), Position::Held(file));
        drop(old);
    }
}

impl RealDir {
    /// Its parent, which it no longer has.
    fn take_parent(&mut self) -> Option<Arc<RealDir>> {
        match std::mem::replace(self.position.get_mut(), Position::Nowhere) {
            Position::Below { parent, .. } => Some(parent),
            Position::Held(_) | Position::Nowhere => None,
        }
    }
}

impl Drop for RealDir {
    fn drop(&mut self) {
        self.ground.descriptors.remove(self.slot);
        // The parents that nobody else has go here and not in each other: a layer may have more
        // levels than a thread has stack.
        let mut next = self.take_parent();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut parent| parent.take_parent());
        }
    }
}

/// `None` for an attribute that isn't there as far as anyone can know.
fn sure(value: Result<Vec<u8>, Errno>) -> Result<Option<Vec<u8>>, Errno> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
