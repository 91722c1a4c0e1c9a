//! What the kernel is told without having asked, beyond what fuser can say.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;

use crate::sys::{Errno, from_io};
use crate::union::{FileKind, Known, NodeId, Union};

/// Numbers of notifications, where the header of an answer has its error (`linux/fuse.h`).
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
/// All names, also those of which the kernel knows that they are absent. Since Linux 6.16.
const INC_EPOCH: i32 = 8;
/// The name is to be looked up again; what is open or mounted there stays. Since Linux 6.2.
const EXPIRE_ONLY: u32 = 1;

/// The connection to the kernel, for telling.
#[derive(Debug)]
pub(super) struct Kernel {
    connection: File,
    /// Whether names can be given up without giving up what is mounted on them.
    pub(super) expires: bool,
    /// One at a time.
    turn: Mutex<()>,
}

impl Kernel {
    pub(super) fn new(connection: OwnedFd) -> Self {
        Self {
            connection: connection.into(),
            expires: false,
            turn: Mutex::new(()),
        }
    }

    /// Has the kernel ask again for everything that it knows. Waits for locks that requests may
    /// hold, so no thread that serves requests may do this.
    pub(super) fn forget(&self, tree: &Union) {
        let _turn = self.turn.lock();
        tree.forget_layers();
        tree.each_known(|known| self.forget_one(&known));
    }

    fn forget_one(&self, known: &Known) {
        if let Some((parent, name)) = &known.place
            // Without `EXPIRE_ONLY` the kernel would take away what is mounted there.
            && (self.expires || known.kind != FileKind::Directory)
        {
            note(known.id, self.inval_entry(*parent, name));
        }
        note(known.id, self.inval_inode(known.id));
    }

    /// Has the kernel look up every name again, also the absent ones.
    pub(super) fn forget_names(&self) -> Result<(), Errno> {
        match self.tell(INC_EPOCH, &[]) {
            Err(error) if from_io(&error) == Errno::INVAL => Err(Errno::OPNOTSUPP),
            told => told.map_err(|error| from_io(&error)),
        }
    }

    fn inval_entry(&self, parent: NodeId, name: &OsStr) -> io::Result<()> {
        let length = u32::try_from(name.len()).map_err(io::Error::other)?;
        let flags = if self.expires { EXPIRE_ONLY } else { 0 };
        let mut fixed = [0; 16];
        fixed[..8].copy_from_slice(&parent.0.to_ne_bytes());
        fixed[8..12].copy_from_slice(&length.to_ne_bytes());
        fixed[12..].copy_from_slice(&flags.to_ne_bytes());
        self.tell(INVAL_ENTRY, &[&fixed, name.as_bytes(), &[0]])
    }

    /// Attributes and all that was read.
    fn inval_inode(&self, id: NodeId) -> io::Result<()> {
        let mut fixed = [0; 24];
        fixed[..8].copy_from_slice(&id.0.to_ne_bytes());
        self.tell(INVAL_INODE, &[&fixed])
    }

    fn tell(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        const HEADER: usize = 16;
        let length = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[4..8].copy_from_slice(&code.to_ne_bytes());
        let mut all = vec![IoSlice::new(&header)];
        all.extend(parts.iter().map(|part| IoSlice::new(part)));
        // The kernel takes all of it or nothing.
        (&self.connection).write_vectored(&all).map(drop)
    }
}

/// What the kernel doesn't know it needn't forget.
fn note(id: NodeId, told: io::Result<()>) {
    match told {
        Err(error) if from_io(&error) != Errno::NOENT => {
            log::debug!("the kernel keeps node {}: {error}", id.0);
        }
        _ => {}
    }
}
