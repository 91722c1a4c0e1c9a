//! A file system's uuid. Linux 6.9 tells it for all; before, each kind has a question of its own,
//! and ext4 before 6.0 has none: there it is found by its device.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{Errno, from_nix};

/// `struct fsuuid2` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// `struct btrfs_ioctl_fs_info_args` of `linux/btrfs.h`.
#[repr(C)]
struct BtrfsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

/// `struct xfs_fsop_geom_v1`, as old as XFS.
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    sizes: [u32; 8],
    extents: [u64; 4],
    uuid: [u8; 16],
    rest: [u32; 7],
}

/// `struct fsuuid` of ext4, with room for the uuid.
#[repr(C)]
#[derive(Default)]
struct Ext4Uuid {
    len: u32,
    flags: u32,
    uuid: [u8; 16],
}

#[allow(missing_docs, clippy::undocumented_unsafe_blocks)] // what the macro makes: private here
mod raw {
    nix::ioctl_read!(get_fs_uuid, 0x15, 0, super::FsUuid);
    nix::ioctl_read!(get_btrfs_info, 0x94, 31, super::BtrfsInfo);
    nix::ioctl_read!(get_xfs_geometry, b'X', 100, super::XfsGeometry);
    // The number counts the head alone.
    nix::ioctl_read_bad!(
        get_ext4_uuid,
        nix::request_code_read!(b'f', 44, 8),
        super::Ext4Uuid
    );
}

/// The uuid of the file system of an open object.
pub fn of(object: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut answer = FsUuid::default();
    // SAFETY: the kernel writes one `struct fsuuid2` to `answer`, which outlives the call.
    match unsafe { raw::get_fs_uuid(object.as_raw_fd(), &raw mut answer) } {
        Ok(_) if answer.len == 16 => return Ok(answer.uuid),
        Ok(_) => return Err(Errno::OPNOTSUPP),
        Err(_) => {}
    }
    match rustix::fs::fstatfs(object)?.f_type {
        libc::BTRFS_SUPER_MAGIC => of_btrfs(object),
        libc::XFS_SUPER_MAGIC => of_xfs(object),
        libc::EXT4_SUPER_MAGIC => of_ext4(object),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn of_btrfs(object: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut info = BtrfsInfo {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        rest: [0; 992],
    };
    // SAFETY: the kernel writes one `struct btrfs_ioctl_fs_info_args`, whose 1024 bytes `info` has,
    // and `info` outlives the call.
    unsafe { raw::get_btrfs_info(object.as_raw_fd(), &raw mut info) }.map_err(from_nix)?;
    Ok(info.fsid)
}

fn of_xfs(object: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: the kernel writes one `struct xfs_fsop_geom_v1`, whose 112 bytes `geometry` has, and
    // `geometry` outlives the call.
    unsafe { raw::get_xfs_geometry(object.as_raw_fd(), &raw mut geometry) }.map_err(from_nix)?;
    Ok(geometry.uuid)
}

fn of_ext4(object: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    let mut answer = Ext4Uuid {
        len: 16,
        ..Ext4Uuid::default()
    };
    // SAFETY: `answer` says that there is room for 16 bytes behind its head, which there is, and
    // outlives the call.
    match unsafe { raw::get_ext4_uuid(object.as_raw_fd(), &raw mut answer) } {
        Ok(_) if answer.len == 16 => return Ok(answer.uuid),
        _ => {}
    }
    let device = rustix::fs::fstat(object)?.st_dev;
    named_by_udev(device)
        .or_else(|| on_the_disk(device))
        .ok_or(Errno::OPNOTSUPP)
}

/// What udev(7) calls a block device: that needs no privilege.
fn named_by_udev(device: u64) -> Option<[u8; 16]> {
    let mut names = std::fs::read_dir("/dev/disk/by-uuid").ok()?.flatten();
    let entry = names
        .find(|entry| std::fs::metadata(entry.path()).is_ok_and(|found| found.rdev() == device))?;
    parse(entry.file_name().to_str()?)
}

/// The uuid in the superblock, for who may read the device.
fn on_the_disk(device: u64) -> Option<[u8; 16]> {
    /// Where the superblock has its magic number, and its uuid.
    const MAGIC: (u64, [u8; 2]) = (1024 + 0x38, [0x53, 0xef]);
    const UUID: u64 = 1024 + 0x68;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let about = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = about
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    let disk = File::open(std::path::Path::new("/dev").join(name)).ok()?;
    if disk.metadata().ok()?.rdev() != device {
        return None;
    }
    let mut magic = [0; 2];
    disk.read_exact_at(&mut magic, MAGIC.0).ok()?;
    let mut uuid = [0; 16];
    disk.read_exact_at(&mut uuid, UUID).ok()?;
    (magic == MAGIC.1).then_some(uuid)
}

/// The bytes of `01234567-89ab-…`.
fn parse(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || text.len() != 36 {
        return None;
    }
    u128::from_str_radix(&digits, 16)
        .ok()
        .map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn text_is_parsed() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(parse(text).unwrap()[..4], [0, 0x11, 0x22, 0x33]);
        assert_eq!(parse(text).unwrap()[15], 0xff);
        for wrong in ["", "1234-ABCD", "0011223344556677889-9aabbccddeeff", "é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    /// Where this kernel answers the new question, the old ones say the same.
    #[test]
    fn old_ways_agree_with_the_new_one() {
        let here = File::open(".").unwrap();
        let (Ok(told), Ok(stat)) = (of(here.as_fd()), rustix::fs::fstat(&here)) else {
            return;
        };
        // A disk whose uuid was given to it after it was mounted.
        if told == [0; 16] {
            return;
        }
        for found in [named_by_udev(stat.st_dev), on_the_disk(stat.st_dev)] {
            assert_eq!(found.unwrap_or(told), told);
        }
        if rustix::fs::fstatfs(&here).unwrap().f_type == libc::EXT4_SUPER_MAGIC {
            assert_eq!(of_ext4(here.as_fd()).unwrap_or(told), told);
        }
    }
}
