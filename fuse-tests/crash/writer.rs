//! One writer: carries out operations until the server is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::RenameFlags;

use crate::common::dice::{Dice, bytes};
use crate::common::{rename2, xattr_set};

use super::layers::SCRATCH;
use super::model::{Model, Op};
use super::shared::{self, KEYS, Progress, Version};

/// A writer with its tree.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub(crate) number: u32,
    pub(crate) root: String,
    pub(crate) model: Model,
    pub(crate) progress: Progress,
    /// How many operations returned in all rounds.
    pub(crate) count: u64,
    /// Whiteouts over nothing that kills have left: they hide nothing, and move with the directory
    /// that they are in.
    pub(crate) strays: usize,
}

/// Why a writer stopped.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The server went away in this operation.
    Cut(Op),
    /// It was told to.
    Told,
    /// An operation failed while the server was there.
    Failed(Op, io::Error),
}

impl Writer {
    pub(crate) fn new(number: u32, model: Model) -> Self {
        Self {
            number,
            root: format!("t{number}"),
            model,
            progress: Progress::default(),
            count: 0,
            strays: 0,
        }
    }

    /// Works below `mount` until something stops it. `killed` is set before the server is killed.
    pub(crate) fn work(
        &mut self,
        mount: &Path,
        dice: &mut Dice,
        killed: &AtomicBool,
        stop: &AtomicBool,
    ) -> Stopped {
        while !stop.load(Ordering::Relaxed) {
            self.count += 1;
            let tag = u64::from(self.number) << 48 | self.count;
            let op = self
                .model
                .choose(&self.root, dice, tag, &self.progress.tried);
            if let Op::Publish { key, version } = op {
                self.progress.tried[key] = version;
            }
            match self.carry_out(mount, &op) {
                Ok(()) => {
                    self.model.apply(&op);
                    if let Op::Publish { key, version } = op {
                        self.progress.done[key] = version;
                    }
                }
                Err(error) if killed.load(Ordering::SeqCst) && says_gone(&error) => {
                    return Stopped::Cut(op);
                }
                Err(error) => return Stopped::Failed(op, error),
            }
        }
        Stopped::Told
    }

    /// To be called when what is there was checked: what counts from now on.
    pub(crate) fn checked(&mut self) {
        self.progress.done = [0; KEYS];
    }

    fn carry_out(&self, mount: &Path, op: &Op) -> io::Result<()> {
        let at = |path: &str| mount.join(path);
        let to_write = |path: &str| OpenOptions::new().write(true).open(mount.join(path));
        match op {
            Op::Create(path, mode) => {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(*mode);
                options.open(at(path)).map(drop)
            }
            Op::Write {
                path,
                at,
                tag,
                length,
            } => to_write(path)?.write_all_at(&bytes(*tag, *length), *at as u64),
            Op::Append { path, tag, length } => {
                let mut file = OpenOptions::new().append(true).open(at(path))?;
                file.write_all(&bytes(*tag, *length))
            }
            Op::Cut(path) => {
                let mut options = OpenOptions::new();
                options.write(true).truncate(true);
                options.open(at(path)).map(drop)
            }
            Op::Truncate(path, size) => to_write(path)?.set_len(*size as u64),
            Op::Sync(path) => File::open(at(path))?.sync_all(),
            Op::Chmod(path, mode) => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))
            }
            Op::Chown(path, owner) => chown(at(path), Some(*owner), Some(*owner)),
            Op::Mark(path, tag) => xattr_set(at(path), "user.mark", &bytes(*tag, 20)),
            Op::Unlink(path) => fs::remove_file(at(path)),
            Op::Link(from, to) => fs::hard_link(at(from), at(to)),
            Op::Symlink(path, target) => symlink(target, at(path)),
            Op::Mkdir(path) => fs::create_dir(at(path)),
            Op::Rmdir(path) => fs::remove_dir(at(path)),
            Op::Rename(from, to) => fs::rename(at(from), at(to)),
            Op::Exchange(a, b) => rename2(&at(a), &at(b), RenameFlags::EXCHANGE),
            Op::Publish { key, version } => {
                let version = Version {
                    writer: self.number,
                    number: *version,
                };
                let scratch = at(&self.root).join(SCRATCH);
                let mut file = File::create(&scratch)?;
                file.write_all(&version.data())?;
                file.sync_all()?;
                fs::rename(scratch, at(&shared::path(*key)))
            }
        }
    }
}

/// The errors of a mount whose server has died. A write of several requests ends with `EIO` where
/// the connection breaks between two of them.
pub(crate) fn says_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO)
    )
}
