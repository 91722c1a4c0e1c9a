//! Where copied-up objects came from. Their numbers are those of their lower originals, in this
//! mount and, where the origin can be written down, in later ones.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::layer::{Ground, RealDir, RealId};
use super::locks::{OrderedRwLock, Rank};
use super::number::FsIndex;
use super::spot::Spot;
use super::types::Ino;
use crate::format::XattrNamespace;
use crate::format::origin::{Origin, Uuid};
use crate::sys::handle::{self, Handle};
use crate::sys::uuid;

/// What is known of origins.
#[derive(Debug)]
pub(super) struct Origins {
    /// Numbers of copied-up objects that are not directories, by what they are in the upper.
    numbers: OrderedRwLock<HashMap<RealId, Ino>>,
    /// The lower file systems whose handles we can write and read: none without privilege.
    file_systems: Vec<LowerFs>,
}

/// By what uuid an origin names a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FsUuids {
    /// Its own.
    Their,
    /// None (`uuid=off`): layers may be copied to another one.
    None,
}

impl FsUuids {
    fn of(self, on: BorrowedFd<'_>) -> Option<Uuid> {
        match self {
            FsUuids::Their => uuid::of(on).ok(),
            FsUuids::None => Some(Uuid::default()),
        }
    }
}

/// A file system that lower layers lie on.
#[derive(Debug)]
struct LowerFs {
    index: FsIndex,
    uuid: Uuid,
    /// Something on it: handles are opened relative to that.
    mount: OwnedFd,
}

impl Origins {
    /// Origins in the lower layers `lowers`. Handles need the machine's root, as `trusted.` does.
    pub(super) fn new(namespace: XattrNamespace, lowers: &[Arc<RealDir>], uuids: FsUuids) -> Self {
        let mut file_systems: Vec<LowerFs> = Vec::new();
        if namespace == XattrNamespace::Trusted {
            for lower in lowers {
                if !file_systems.iter().any(|known| known.index == lower.id.fs) {
                    file_systems.extend(LowerFs::of(lower, uuids));
                }
            }
        }
        let numbers = OrderedRwLock::new(Rank::Leaf, HashMap::new());
        Self {
            numbers,
            file_systems,
        }
    }

    pub(super) fn get(&self, id: RealId) -> Option<Ino> {
        self.numbers.read().get(&id).copied()
    }

    pub(super) fn insert(&self, id: RealId, ino: Ino) {
        self.numbers.write().insert(id, ino);
    }

    /// The file system may give the number to another object now.
    pub(super) fn remove(&self, id: RealId) {
        self.numbers.write().remove(&id);
    }

    /// Whether written origins can be read.
    pub(super) fn are_readable(&self) -> bool {
        !self.file_systems.is_empty()
    }

    /// The value of `origin` for a copy of what is at `spot`; empty where it can't be told.
    pub(super) fn describe(&self, spot: &Spot) -> Vec<u8> {
        self.handle_of(spot)
            .and_then(|origin| origin.format())
            .unwrap_or_default()
    }

    fn handle_of(&self, spot: &Spot) -> Option<Origin> {
        let Spot::At { dir, name } = spot else {
            return None;
        };
        let known = self
            .file_systems
            .iter()
            .find(|known| known.index == dir.id.fs)?;
        let handle = handle::of(dir.open().ok()?.as_fd(), name).ok()?;
        let handle_type = u8::try_from(handle.kind).ok()?;
        Some(Origin {
            uuid: known.uuid,
            handle_type,
            handle: handle.bytes,
        })
    }

    /// What an `origin` names, if it is still there.
    pub(super) fn stat(&self, value: &[u8]) -> Option<rustix::fs::Stat> {
        self.open(value).map(|(_, stat)| stat)
    }

    /// The value of `upper` for a directory of the upper layer.
    pub(super) fn describe_upper(&self, dir: BorrowedFd<'_>, uuids: FsUuids) -> Option<Vec<u8>> {
        let handle = handle::of(dir, OsStr::new(".")).ok()?;
        let origin = Origin {
            uuid: uuids.of(dir)?,
            handle_type: u8::try_from(handle.kind).ok()?,
            handle: handle.bytes,
        };
        origin.format_upper()
    }

    /// The number of the object that the value of an `origin` names, if it is still there and of
    /// the same type.
    pub(super) fn resolve(&self, ground: &Ground, value: &[u8], mode: u32) -> Option<Ino> {
        let (index, stat) = self.open(value)?;
        let same_type = stat.st_mode & libc::S_IFMT == mode & libc::S_IFMT;
        same_type.then(|| ground.numbers.ino(index, stat.st_ino))
    }

    fn open(&self, value: &[u8]) -> Option<(FsIndex, rustix::fs::Stat)> {
        let origin = Origin::parse(value)?;
        let handle = Handle {
            kind: i32::from(origin.handle_type),
            bytes: origin.handle,
        };
        let mut on = self
            .file_systems
            .iter()
            .filter(|known| known.uuid == origin.uuid);
        on.find_map(|known| {
            let object = handle::open(known.mount.as_fd(), &handle).ok()?;
            let stat = rustix::fs::fstat(&object).ok()?;
            Some((known.index, stat))
        })
    }
}

impl LowerFs {
    fn of(lower: &RealDir, uuids: FsUuids) -> Option<Self> {
        let root = lower.open().ok()?;
        let uuid = uuids.of(root.as_fd())?;
        // Only a handle that can be opened again is worth writing: the kernel asks the same.
        let handle = handle::of(root.as_fd(), OsStr::new(".")).ok()?;
        handle::open(root.as_fd(), &handle).ok()?;
        let mount = root.as_fd().try_clone_to_owned().ok()?;
        Some(Self {
            index: lower.id.fs,
            uuid,
            mount,
        })
    }
}
