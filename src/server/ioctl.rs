//! The ioctls that are served: the inode flags, and having us forget.

use fuser::INodeNo;

use crate::sys::{Errno, forget};
use crate::union::{Caller, Fault, FileFlags, NodeId, Outcome, Union};

/// `FS_IOC_GETFLAGS`. Its number says 8 bytes (a `long`); what is copied is an `int`.
const GET_FLAGS: u32 = 0x8008_6601;
/// `FS_IOC_SETFLAGS`, with the same oddity.
const SET_FLAGS: u32 = 0x4008_6602;
/// The same two where a `long` has 4 bytes.
const GET_FLAGS_32: u32 = 0x8004_6601;
const SET_FLAGS_32: u32 = 0x4004_6602;
/// `FS_IOC_FSGETXATTR`: a `struct fsxattr`, 28 bytes.
const GET_EXTENDED: u32 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`.
const SET_EXTENDED: u32 = 0x401c_5820;

/// What a mount can be told to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forget {
    /// What was read from the layers.
    Layers,
    /// Every name, also the absent ones.
    Names,
}

impl Forget {
    /// Whether this ioctl asks for it: the root's alone does.
    pub(super) fn asked(ino: INodeNo, command: u32) -> Option<Self> {
        match command {
            _ if ino != INodeNo::ROOT => None,
            forget::FORGET_LAYERS => Some(Forget::Layers),
            forget::FORGET_NAMES => Some(Forget::Names),
            _ => None,
        }
    }
}

/// An answer: at most a `struct fsxattr`.
pub(super) type Answer = Vec<u8>;

/// Carries out `command` on a node. Every other ioctl is `ENOTTY`, as on any file system that
/// does not know it.
pub(super) fn serve(
    tree: &Union,
    caller: Caller,
    id: NodeId,
    command: u32,
    data: &[u8],
) -> Outcome<Answer> {
    match command {
        GET_FLAGS | GET_FLAGS_32 => tree.file_flags(id, FileFlags::Flags(0)).map(bytes),
        GET_EXTENDED => tree.file_flags(id, FileFlags::Extended([0; 28])).map(bytes),
        SET_FLAGS | SET_FLAGS_32 => {
            let flags = u32::from_ne_bytes(head(data)?);
            tree.set_file_flags(caller, id, FileFlags::Flags(flags))?;
            Ok(Answer::new())
        }
        SET_EXTENDED => {
            tree.set_file_flags(caller, id, FileFlags::Extended(head(data)?))?;
            Ok(Answer::new())
        }
        _ => Err(Fault::merged("ioctl", Errno::NOTTY)),
    }
}

fn bytes(flags: FileFlags) -> Answer {
    match flags {
        FileFlags::Flags(flags) => flags.to_ne_bytes().to_vec(),
        FileFlags::Extended(all) => all.to_vec(),
    }
}

/// The first `N` bytes of an ioctl's argument.
fn head<const N: usize>(data: &[u8]) -> Outcome<[u8; N]> {
    data.first_chunk()
        .copied()
        .ok_or_else(|| Fault::merged("ioctl", Errno::INVAL))
}
