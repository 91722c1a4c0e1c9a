//! The `-o` option string of an overlay mount: parsing, writing, and what it may hold.
//!
//! The syntax is the kernel's (`Documentation/filesystems/overlayfs.rst`): options separated by
//! commas, lower directories by colons, `\` before a character that would separate. Everything is
//! bytes; a path need not be UTF-8.
//!
//! Beside the kernel's options there are those of our FUSE server alone: see [`Tuning`] and
//! [`Serving`].
//!
//! [`Options::parse`] reads a string, [`Options::to_option_string`] writes one that reads back to
//! the same value, [`Options::check`] refuses what the kernel would refuse without looking at a
//! disk, and [`check_layers`] looks at the directories.

mod escape;
mod foreign;
mod layers;
mod nearest;
mod parse;
mod serving;
mod shown;
#[cfg(test)]
mod tests;
mod tuning;
mod words;
mod write;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Error, Result};
pub(crate) use escape::unescape;
pub use foreign::Foreign;
pub use layers::{check_layers, check_layers_for_kernel};
pub(crate) use nearest::is_near;
pub use serving::Serving;
pub use shown::{IdMap, Records, Shown};
pub use tuning::{Readdirplus, Threads, Timeout, Tuning};
pub(crate) use write::escaped;

/// The most lower layers that one mount may have, data-only layers included: the kernel's limit.
pub const MAX_LOWER: usize = 500;

/// A parsed option string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Lower layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// Data-only lower layers (behind `::`), the topmost first.
    pub data_only: Vec<PathBuf>,
    /// The writable layer; absent for a read-only mount.
    pub upper: Option<PathBuf>,
    /// The work directory; present exactly when `upper` is.
    pub work: Option<PathBuf>,
    /// Keep overlay attributes under `user.overlay.` rather than `trusted.overlay.`.
    pub userxattr: bool,
    /// What is synced, and when.
    pub fsync: Fsync,
    /// What a rename of a merged directory does, and whether earlier ones are followed.
    pub redirect_dir: Option<RedirectDir>,
    /// Whether a change of attributes copies only the attributes up.
    pub metacopy: Option<Switch>,
    /// Whether lower hard links are indexed, so that they stay hard links.
    pub index: Option<Switch>,
    /// Whether the mount can be exported over NFS.
    pub nfs_export: Option<Switch>,
    /// Whether inode numbers are composed of the layer and its own number.
    pub xino: Option<Xino>,
    /// Where the file system's id comes from.
    pub uuid: Option<Uuid>,
    /// Whether fs-verity digests are recorded and checked.
    pub verity: Option<Verity>,
    /// Whose credentials the kernel uses on the layers.
    pub credentials: Option<Credentials>,
    /// Shown by the kernel's overlay and without effect there; ours always checks permissions.
    pub default_permissions: bool,
    /// Let users other than the mounting one in (FUSE only; the kernel's overlay always does).
    pub allow_other: bool,
    /// Generic mount flags.
    pub flags: MountFlags,
    /// `fsname=`: what the mount table shows as the source.
    pub fsname: Option<OsString>,
    /// `context=` and its kin: SELinux labels. Where there is no SELinux nobody asks for them.
    pub labels: Vec<Label>,
    /// How the FUSE server's tree differs from the layers; the kernel's overlay can't.
    pub shown: Shown,
    /// How the FUSE server and the kernel share the work; the kernel's overlay passes over it.
    pub tuning: Tuning,
    /// What the FUSE server's process tells and may do; the kernel's overlay passes over it.
    pub serving: Serving,
}

/// A label for SELinux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The name of the option.
    pub name: &'static str,
    /// The label; may have commas in it.
    pub value: String,
}

impl Label {
    /// The options that carry labels.
    pub(crate) const NAMES: [&'static str; 4] =
        ["context", "fscontext", "defcontext", "rootcontext"];
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the two words are the values
pub enum Switch {
    On,
    Off,
}

/// `fsync=` and `volatile`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fsync {
    /// A file's data is on the disk before its copy is published.
    #[default]
    Auto,
    /// As `Auto`, for copies of attributes and directories too.
    Strict,
    /// Nothing is ever synced; an unclean end makes the upper unusable.
    Volatile,
}

/// `redirect_dir=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectDir {
    /// Renaming a merged directory leaves a redirect in the upper layer; redirects are followed.
    On,
    /// No redirect is made; the kernel's module parameter says whether they are followed.
    Off,
    /// No redirect is made; those of earlier mounts are followed.
    Follow,
    /// No redirect is made, none is followed.
    NoFollow,
}

/// `xino=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xino {
    /// Always.
    On,
    /// Never.
    Off,
    /// Where the layers leave room in their inode numbers.
    Auto,
}

/// `uuid=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uuid {
    /// One of its own, kept on the upper layer's root.
    On,
    /// The topmost layer's.
    Off,
    /// As `On` for an upper that has one or is new, else as `Null`.
    Auto,
    /// None; layers are told apart without theirs.
    Null,
}

/// `verity=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verity {
    /// Digests are checked where there are any, and recorded where possible.
    On,
    /// Digests are neither checked nor recorded.
    Off,
    /// As `On`, and a file without one is an error.
    Require,
}

/// `override_creds` and `nooverride_creds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// Those of the process that mounts: the `override_creds` option.
    Mounter,
    /// Those of the process that asks: the `nooverride_creds` option.
    Caller,
}

bitflags::bitflags! {
    /// The generic mount flags that an overlay mount understands.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct MountFlags: u32 {
        /// Read-only.
        const RO = 1 << 0;
        /// set-user-id bits and file capabilities have no effect.
        const NOSUID = 1 << 1;
        /// Device nodes can't be opened.
        const NODEV = 1 << 2;
        /// Nothing can be executed.
        const NOEXEC = 1 << 3;
        /// Access times are never updated.
        const NOATIME = 1 << 4;
        /// Access times of directories are never updated.
        const NODIRATIME = 1 << 5;
        /// Access times are updated once after each change (the kernel's default).
        const RELATIME = 1 << 6;
        /// Access times are always updated.
        const STRICTATIME = 1 << 7;
        /// Every write is synchronous.
        const SYNC = 1 << 8;
        /// Every change of a directory is synchronous.
        const DIRSYNC = 1 << 9;
        /// Symbolic links are not followed.
        const NOSYMFOLLOW = 1 << 10;
    }
}

impl Options {
    /// Whether nothing is ever synced (`volatile`).
    pub fn is_volatile(&self) -> bool {
        self.fsync == Fsync::Volatile
    }

    /// Refuses what no backend can carry out, without looking at a disk: missing directories and
    /// options that contradict each other, as the kernel does.
    pub fn check(&self) -> Result<()> {
        let refused = |why: String| Err(Error::usage("reading the options").because(why));
        if self.lower.is_empty() {
            return refused("no lower directory; give `lowerdir=DIR`".to_owned());
        }
        let layers = self.lower.len() + self.data_only.len();
        if layers > MAX_LOWER {
            return refused(format!(
                "{layers} lower directories; at most {MAX_LOWER} are possible"
            ));
        }
        match (&self.upper, &self.work) {
            (Some(_), None) => return refused("`upperdir` needs a `workdir`".to_owned()),
            (None, Some(_)) => return refused("`workdir` needs an `upperdir`".to_owned()),
            _ => {}
        }
        for (path, name) in self.paths() {
            if path.as_os_str().is_empty() {
                return refused(format!("`{name}` names no directory"));
            }
            if path.as_os_str().as_encoded_bytes().contains(&0) {
                return refused(format!("`{name}` contains a NUL byte"));
            }
        }
        match self.conflict().or_else(|| self.tuning.conflict()) {
            Some((one, other)) => refused(format!("`{one}` and `{other}` exclude each other")),
            None => Ok(()),
        }
    }

    /// The first option that our FUSE server doesn't carry out, as it would be written.
    pub fn unsupported_by_fuse(&self) -> Option<&'static str> {
        match self.verity {
            Some(Verity::On) => return Some("verity=on"),
            Some(Verity::Require) => return Some("verity=require"),
            _ => {}
        }
        if self.credentials == Some(Credentials::Caller) {
            return Some("nooverride_creds");
        }
        let on = Some(Switch::On);
        (self.nfs_export == on).then_some("nfs_export=on")
    }

    /// The labels, where SELinux is there to take them: without it a mount with one is refused.
    pub(crate) fn labels_here(&self) -> &[Label] {
        match Path::new("/sys/fs/selinux/enforce").exists() {
            true => &self.labels,
            false => &[],
        }
    }

    /// The first option that needs the attributes of the machine's root.
    pub(crate) fn needs_root(&self) -> Option<&'static str> {
        match self.redirect_dir {
            Some(RedirectDir::On) => return Some("redirect_dir=on"),
            Some(RedirectDir::Follow) => return Some("redirect_dir=follow"),
            _ => {}
        }
        let on = Some(Switch::On);
        [(self.metacopy, "metacopy=on"), (self.index, "index=on")]
            .into_iter()
            .find_map(|(switch, name)| (switch == on).then_some(name))
    }

    /// Every directory with the name of its option.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&Path, &'static str)> {
        self.lower
            .iter()
            .map(|path| (path.as_path(), "lowerdir"))
            .chain(
                self.data_only
                    .iter()
                    .map(|path| (path.as_path(), "datadir")),
            )
            .chain(self.upper.iter().map(|path| (path.as_path(), "upperdir")))
            .chain(self.work.iter().map(|path| (path.as_path(), "workdir")))
    }

    /// Two options that the kernel refuses together.
    fn conflict(&self) -> Option<(&'static str, &'static str)> {
        let on = Some(Switch::On);
        let off = Some(Switch::Off);
        let redirects = match self.redirect_dir {
            Some(RedirectDir::On) => Some("redirect_dir=on"),
            Some(RedirectDir::Off) => Some("redirect_dir=off"),
            Some(RedirectDir::Follow) => Some("redirect_dir=follow"),
            Some(RedirectDir::NoFollow) => Some("redirect_dir=nofollow"),
            None => None,
        };
        if self.userxattr {
            if let Some(redirects) = redirects
                && self.redirect_dir != Some(RedirectDir::NoFollow)
            {
                return Some(("userxattr", redirects));
            }
            if self.metacopy == on {
                return Some(("userxattr", "metacopy=on"));
            }
        }
        if self.metacopy == on {
            if let Some(redirects) = redirects
                && self.redirect_dir != Some(RedirectDir::On)
            {
                return Some(("metacopy=on", redirects));
            }
            if self.nfs_export == on {
                return Some(("metacopy=on", "nfs_export=on"));
            }
        }
        (self.nfs_export == on && self.index == off).then_some(("nfs_export=on", "index=off"))
    }
}
