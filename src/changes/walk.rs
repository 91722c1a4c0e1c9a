//! A walk over an upper layer, each name compared with the lower layers.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Stat, fgetxattr};

use super::Change;
use super::layer::Layer;
use crate::error::Context;
use crate::format::dotted::Name;
use crate::format::override_stat::{self, OverrideStat};
use crate::format::{XattrNamespace, is_whiteout};
use crate::sys::Errno;
use crate::union::Owners;
use crate::{Error, Result};

/// Calls `visit` for each change of `upper` over `lowers` (topmost first), with its path relative
/// to the root of the layers; a directory comes before what is in it.
pub fn walk(
    upper: &Path,
    lowers: &[PathBuf],
    namespace: XattrNamespace,
    owners: Owners,
    visit: &mut dyn FnMut(&Path, Change),
) -> Result<()> {
    let root = Layer::open(upper)?;
    let below = lowers
        .iter()
        .map(|lower| Layer::open(lower))
        .collect::<Result<Vec<_>>>()?;
    let mut walker = Walker {
        opaque: namespace.opaque(),
        owners,
        visit,
        path: PathBuf::new(),
    };
    walker.directory(&root, &below, Lowers::Merged)
}

pub(super) const STEP: &str = "reading the changes";

/// Whether the lower directories show through an upper one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lowers {
    Merged,
    Hidden,
}

/// What the lower layers have under a name.
enum Below {
    Nothing,
    /// Not a directory.
    Leaf,
    /// The directories that would be merged, topmost first, and the first one's attributes.
    Directories(Vec<Layer>, Stat),
}

struct Walker<'a> {
    opaque: &'static OsStr,
    owners: Owners,
    visit: &'a mut dyn FnMut(&Path, Change),
    path: PathBuf,
}

impl Walker<'_> {
    fn directory(&mut self, upper: &Layer, lowers: &[Layer], mode: Lowers) -> Result<()> {
        for entry in Dir::read_from(&upper.fd).context(STEP, &self.path)? {
            let entry = entry.context(STEP, &self.path)?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            match upper.read(name) {
                Name::Plain => {
                    self.path.push(OsStr::from_bytes(name.to_bytes()));
                    self.entry(upper, lowers, name, mode)?;
                    self.path.pop();
                }
                // Where all is hidden, this is said below.
                Name::Whiteout(_) | Name::LongWhiteout if mode == Lowers::Merged => {
                    if let Some(hidden) = upper.hidden_by(name).context(STEP, &self.path)? {
                        self.path.push(&hidden);
                        self.whited_out(upper, lowers, &hidden)?;
                        self.path.pop();
                    }
                }
                Name::Whiteout(_) | Name::LongWhiteout | Name::Reserved => {}
            }
        }
        if mode == Lowers::Hidden {
            self.hidden(upper, lowers)?;
        }
        Ok(())
    }

    /// A name that is hidden by the one beside it, in the fallback form.
    fn whited_out(&mut self, upper: &Layer, lowers: &[Layer], name: &OsStr) -> Result<()> {
        let name = CString::new(name.as_bytes())
            .map_err(|_| Error::system(STEP).at(&self.path).errno(Errno::INVAL))?;
        let gone = upper.stat(&name).context(STEP, &self.path)?.is_none();
        if gone && !matches!(self.below(lowers, &name)?, Below::Nothing) {
            self.report(Change::Removed);
        }
        Ok(())
    }

    fn entry(&mut self, upper: &Layer, lowers: &[Layer], name: &CStr, mode: Lowers) -> Result<()> {
        let stat = upper.stat(name).context(STEP, &self.path)?;
        let stat = stat.ok_or_else(|| Error::system(STEP).at(&self.path).errno(Errno::NOENT))?;
        let below = self.below(lowers, name)?;
        if is_whiteout(stat.st_mode, stat.st_rdev) {
            if !matches!(below, Below::Nothing) {
                self.report(Change::Removed);
            }
            return Ok(());
        }
        if !is_directory(&stat) {
            // The kernel copies a file up when it is opened for writing or its attributes are
            // set, so all that is here was changed.
            self.report(match below {
                Below::Nothing => Change::Added,
                Below::Leaf | Below::Directories(..) => Change::Changed,
            });
            return Ok(());
        }
        let directory = upper.below(name).context(STEP, &self.path)?;
        match below {
            Below::Nothing => {
                self.report(Change::Added);
                self.directory(&directory, &[], Lowers::Merged)
            }
            Below::Leaf => {
                self.report(Change::Changed);
                self.directory(&directory, &[], Lowers::Merged)
            }
            Below::Directories(fds, lower) => {
                // Copied up for the sake of what is in it, unless its own attributes differ.
                if self.differs(&directory.fd, &stat, &lower) {
                    self.report(Change::Changed);
                }
                let opaque = upper.is_opaque(name, &directory, self.opaque);
                let opaque = opaque.context(STEP, &self.path)?;
                let mode = if mode == Lowers::Hidden || opaque {
                    Lowers::Hidden
                } else {
                    Lowers::Merged
                };
                self.directory(&directory, &fds, mode)
            }
        }
    }

    /// Reports what lower directories hold and the upper one, which hides them, doesn't.
    fn hidden(&mut self, upper: &Layer, lowers: &[Layer]) -> Result<()> {
        for (index, lower) in lowers.iter().enumerate() {
            for entry in Dir::read_from(&lower.fd).context(STEP, &self.path)? {
                let entry = entry.context(STEP, &self.path)?;
                let name = entry.file_name();
                let above = &lowers[..index];
                if is_dots(name)
                    || lower.read(name) != Name::Plain
                    || upper.stat(name).is_ok_and(|stat| stat.is_some())
                    || above.iter().any(|layer| layer.decides(name))
                    || matches!(self.below(&lowers[index..], name)?, Below::Nothing)
                {
                    continue;
                }
                self.path.push(OsStr::from_bytes(name.to_bytes()));
                self.report(Change::Removed);
                self.path.pop();
            }
        }
        Ok(())
    }

    fn below(&self, lowers: &[Layer], name: &CStr) -> Result<Below> {
        let mut directories: Option<(Vec<Layer>, Stat)> = None;
        for lower in lowers {
            let hides = lower.hides(name).context(STEP, &self.path)?;
            let stat = match lower.stat(name).context(STEP, &self.path)? {
                Some(stat) => stat,
                None if hides => break,
                None => continue,
            };
            if is_whiteout(stat.st_mode, stat.st_rdev) {
                break;
            }
            if !is_directory(&stat) {
                if directories.is_none() {
                    return Ok(Below::Leaf);
                }
                break;
            }
            let (fds, _) = directories.get_or_insert_with(|| (Vec::new(), stat));
            let fd = match lower.below(name) {
                Ok(fd) => fd,
                // Whom it is closed to could change nothing in it either.
                Err(Errno::ACCESS) => continue,
                Err(errno) => return Err(Error::system(STEP).at(&self.path).errno(errno)),
            };
            let last = lower.is_opaque(name, &fd, self.opaque);
            let last = last.context(STEP, &self.path)?;
            fds.push(fd);
            if last {
                break;
            }
        }
        Ok(match directories {
            Some((fds, stat)) => Below::Directories(fds, stat),
            None => Below::Nothing,
        })
    }

    fn differs(&self, directory: &OwnedFd, upper: &Stat, lower: &Stat) -> bool {
        let is = match self.owners {
            Owners::Real | Owners::Given { .. } => Shown::from(upper),
            Owners::FakeRoot => overridden(directory).unwrap_or_else(|| Shown::from(upper)),
        };
        let was = match self.owners {
            Owners::Real | Owners::Given { .. } => Shown::from(lower),
            Owners::FakeRoot => Shown::from(lower).with_root_for_unmapped(),
        };
        is != was
    }

    fn report(&mut self, change: Change) {
        (self.visit)(&self.path, change);
    }
}

/// Owner and permissions as the merged tree shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    uid: u32,
    gid: u32,
    perm: u32,
}

impl From<&Stat> for Shown {
    fn from(stat: &Stat) -> Self {
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            perm: stat.st_mode & 0o7777,
        }
    }
}

impl Shown {
    fn with_root_for_unmapped(self) -> Self {
        /// What the kernel shows for an id without a mapping.
        const OVERFLOW_ID: u32 = 65534;
        let shown = |id| if id == OVERFLOW_ID { 0 } else { id };
        Self {
            uid: shown(self.uid),
            gid: shown(self.gid),
            perm: self.perm,
        }
    }
}

fn overridden(directory: &OwnedFd) -> Option<Shown> {
    let mut value = [0; 128];
    let length = fgetxattr(directory, override_stat::NAME, &mut value).ok()?;
    let stat = OverrideStat::parse(value.get(..length)?)?;
    Some(Shown {
        uid: stat.uid,
        gid: stat.gid,
        perm: u32::from(stat.perm),
    })
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_dots(name: &CStr) -> bool {
    name == c"." || name == c".."
}

#[cfg(test)]
mod tests;
