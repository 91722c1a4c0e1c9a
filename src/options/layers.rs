//! Looking at the directories of an overlay before anything is mounted: one clear error for what
//! the kernel would answer with a bare errno.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxFlags, accessat, fstatvfs, openat,
    statx,
};

use super::Options;
use super::escape::unescape;
use crate::sys::{Errno, lock, mountinfo};
use crate::{Error, Result};

const STEP: &str = "checking the layers";

/// Refuses layers that can't be mounted together at `target`, with the reason: what is missing,
/// what lies inside what, what is in use. Both backends call it first.
///
/// Directories are compared by what they are, not by their names; `/` may be a lower layer of an
/// upper directory below it, as with the kernel.
pub fn check_layers(options: &Options, target: &Path) -> Result<()> {
    options.check()?;
    directory(target, "the target")?;

    let mut lowers: Vec<(&Path, Place)> = Vec::new();
    let mut ancestors = Vec::new();
    for (at, path) in options.lower.iter().chain(&options.data_only).enumerate() {
        let fd = directory(path, "the lower directory")
            .map_err(|error| hint_of_colon(error, &options.lower, at))?;
        let place = Place::of(&fd, path)?;
        if let Some((twin, _)) = lowers.iter().find(|(_, other)| *other == place) {
            return Err(usage(path).because(format!(
                "the lower directory is the same as the lower directory {}",
                twin.display()
            )));
        }
        ancestors.push(place.ancestors(fd));
        lowers.push((path, place));
    }

    let (Some(upper), Some(work)) = (&options.upper, &options.work) else {
        return Ok(());
    };
    let upper_fd = directory(upper, "the upper directory")?;
    let work_fd = directory(work, "the work directory")?;
    let upper_place = Place::of(&upper_fd, upper)?;
    let work_place = Place::of(&work_fd, work)?;
    if upper_place == work_place {
        return Err(usage(work).because("upperdir and workdir are the same directory"));
    }
    if !upper_place.same_mount(&work_place) {
        return Err(usage(work)
            .because(format!(
                "workdir is not on the file system (or not on the mount) of upperdir {}",
                upper.display()
            ))
            .remedy("put both on one"));
    }
    writable(&upper_fd, upper, "the upper directory")?;
    writable(&work_fd, work, "the work directory")?;
    unlocked("workdir", work, &work_fd)?;
    unlocked("upperdir", upper, &upper_fd)?;
    if upper_place.ancestors(upper_fd).contains(&work_place) {
        return Err(usage(upper).because(format!("upperdir is inside workdir {}", work.display())));
    }
    if work_place.ancestors(work_fd).contains(&upper_place) {
        return Err(usage(work).because(format!("workdir is inside upperdir {}", upper.display())));
    }
    let writables = [
        ("upperdir", upper, &upper_place),
        ("workdir", work, &work_place),
    ];
    for (name, outer, place) in writables {
        for ((path, lower), above) in lowers.iter().zip(&ancestors) {
            let how = if lower == place {
                "the same directory as"
            } else if above.contains(place) {
                "inside"
            } else {
                continue;
            };
            return Err(usage(path).because(format!(
                "the lower directory is {how} {name} {}",
                outer.display()
            )));
        }
    }
    for (name, path, place) in writables {
        unused(name, path, place)?;
    }
    Ok(())
}

/// Refuses what the kernel's overlay can't carry and the FUSE server can: the kernel walks up from
/// each lower layer, and takes none that is inside another one.
pub fn check_layers_for_kernel(options: &Options) -> Result<()> {
    let mut lowers: Vec<(&Path, Place, Vec<Place>)> = Vec::new();
    for path in options.lower.iter().chain(&options.data_only) {
        let fd = directory(path, "the lower directory")?;
        let place = Place::of(&fd, path)?;
        let above = place.ancestors(fd);
        lowers.push((path, place, above));
    }
    for (path, _, above) in &lowers {
        if let Some((outer, ..)) = lowers.iter().find(|(_, other, _)| above.contains(other)) {
            return Err(usage(path)
                .because(format!(
                    "the lower directory is inside the lower directory {}, \
                     which the kernel's overlay doesn't take",
                    outer.display()
                ))
                .remedy("`--backend fuse` does"));
        }
    }
    Ok(())
}

fn usage(path: &Path) -> Error {
    Error::usage(STEP).at(path)
}

/// Opens a directory, or says in words why it can't be one of the layers.
fn directory(path: &Path, what: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
        let why = match errno {
            Errno::NOENT => "does not exist",
            Errno::NOTDIR => "is not a directory",
            Errno::ACCESS => "can't be reached: a directory above it may not be searched",
            _ => "can't be opened",
        };
        usage(path).because(format!("{what} {why}")).errno(errno)
    })
}

/// Where a missing lower directory is one half of a name with a colon, says how that is written.
fn hint_of_colon(error: Error, lowers: &[PathBuf], at: usize) -> Error {
    if error.raw_errno() != Some(Errno::NOENT) || at >= lowers.len() || lowers.len() < 2 {
        return error;
    }
    // A name with more colons than this is not worth the look-ups.
    const WIDEST: usize = 4;
    for first in at.saturating_sub(WIDEST - 1)..=at {
        for last in at.max(first + 1)..lowers.len().min(first + WIDEST) {
            let pieces = &lowers[first..=last];
            let whole = pieces
                .iter()
                .map(|piece| piece.as_os_str().as_bytes())
                .collect::<Vec<_>>()
                .join(&b':');
            let whole = PathBuf::from(OsString::from_vec(whole));
            if whole.is_dir() {
                return error.remedy(format!(
                    "a `:` in a name is written `\\:`, and {} exists",
                    whole.display()
                ));
            }
        }
    }
    error.remedy("a `:` in a name is written `\\:`")
}

fn writable(fd: &OwnedFd, path: &Path, what: &str) -> Result<()> {
    let read_only = fstatvfs(fd)
        .map(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
        .unwrap_or(false);
    if read_only {
        return Err(usage(path)
            .because(format!("{what} is on a read-only mount"))
            .errno(Errno::ROFS));
    }
    match accessat(
        CWD,
        path,
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    ) {
        Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => Err(usage(path)
            .because(format!("{what} is not writable for this user"))
            .errno(errno)),
        _ => Ok(()),
    }
}

/// A FUSE server holds a lock on its directories as long as it lives.
fn unlocked(name: &str, path: &Path, fd: &OwnedFd) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // An unreadable directory can't be locked by anyone; the backend says what is wrong.
    let Ok(open) = openat(fd, ".", flags, Mode::empty()) else {
        return Ok(());
    };
    match lock::exclusively(&open) {
        Err(Errno::WOULDBLOCK) => Err(usage(path)
            .because(format!("{name} is in use by another overlay"))
            .errno(Errno::BUSY)
            .remedy("unmount it first, or take another workdir and upperdir")),
        _ => Ok(()),
    }
}

/// Refuses a directory that a mounted overlay writes to. Mounts in other namespaces are not
/// seen here.
fn unused(name: &str, path: &Path, place: &Place) -> Result<()> {
    // Without /proc there is nothing to compare with.
    let Ok(mounts) = mountinfo::read() else {
        return Ok(());
    };
    for mount in mounts.iter().filter(|mount| mount.fstype == "overlay") {
        for key in [&b"upperdir="[..], b"workdir="] {
            let used = mount
                .super_options
                .iter()
                .find_map(|item| item.strip_prefix(key));
            let Some(used) = used else { continue };
            // Old kernels and mount(2) show the name with its escapes, a descriptor's without.
            let plain = unescape(used);
            let names = [Some(used), plain.as_deref()];
            let same = names.into_iter().flatten().any(|used| {
                let used = Path::new(std::ffi::OsStr::from_bytes(used));
                used.is_absolute()
                    && directory(used, "")
                        .and_then(|fd| Place::of(&fd, used))
                        .is_ok_and(|used| used == *place)
            });
            if same {
                return Err(usage(path)
                    .because(format!(
                        "{name} is in use by the overlay mounted on {}",
                        mount.point.display()
                    ))
                    .errno(Errno::BUSY)
                    .remedy("unmount it first, or take another directory"));
            }
        }
    }
    Ok(())
}

/// What a directory is, whatever it is called.
#[derive(Debug, Clone, Copy)]
struct Place {
    device: (u32, u32),
    inode: u64,
    /// Kernels before 5.8 don't tell; the device then stands for the mount.
    mount: Option<u64>,
}

impl PartialEq for Place {
    /// Two mounts of one directory are one place.
    fn eq(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl Place {
    fn of(fd: impl AsFd, path: &Path) -> Result<Self> {
        Self::look(fd).map_err(|errno| {
            Error::system(STEP)
                .at(path)
                .because("can't be examined")
                .errno(errno)
        })
    }

    fn look(fd: impl AsFd) -> std::result::Result<Self, Errno> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = match statx(&fd, "", AtFlags::EMPTY_PATH, wanted) {
            Ok(stat) => stat,
            // No statx before Linux 4.11, nor under some seccomp filters.
            Err(Errno::NOSYS | Errno::PERM) => {
                let stat = rustix::fs::fstat(&fd)?;
                return Ok(Self {
                    device: (
                        rustix::fs::major(stat.st_dev),
                        rustix::fs::minor(stat.st_dev),
                    ),
                    inode: stat.st_ino,
                    mount: None,
                });
            }
            Err(errno) => return Err(errno),
        };
        let told = StatxFlags::from_bits_retain(stat.stx_mask);
        Ok(Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: told.contains(StatxFlags::MNT_ID).then_some(stat.stx_mnt_id),
        })
    }

    fn same_mount(&self, other: &Self) -> bool {
        match (self.mount, other.mount) {
            (Some(one), Some(two)) => one == two,
            _ => self.device == other.device,
        }
    }

    /// The directories above, up to the root of the mount: what is above a mount isn't above its
    /// files for the kernel either.
    fn ancestors(&self, fd: OwnedFd) -> Vec<Place> {
        let mut above = Vec::new();
        let mut here = *self;
        let mut fd = fd;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        while let Ok(parent) = openat(&fd, "..", flags, Mode::empty()) {
            let Ok(place) = Self::look(&parent) else {
                break;
            };
            if place == here || !place.same_mount(&here) {
                break;
            }
            above.push(place);
            here = place;
            fd = parent;
        }
        above
    }
}
