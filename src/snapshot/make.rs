//! Making the tree: by an overlay whose changes go to a tmpfs, or by a copy into one.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags as Flags, UnmountFlags, mount, mount_remount, unmount};

use super::owners::{all_belong_to, give_all_to};
use super::stage::Stage;
use super::{Made, Means, Progress, STEP};
use crate::backend::{Backend, Carrier, Mounted};
use crate::error::Context;
use crate::flatten::{Flatten, Meter, Owner, make_like};
use crate::format::XattrNamespace;
use crate::options::{Fsync, MountFlags, Switch};
use crate::sys::privilege::Privilege;
use crate::sys::{Errno, from_io};
use crate::union::Owners;
use crate::{Error, Overlay, Result};

/// What is wanted of a snapshot.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) size: u64,
    pub(super) owner: Owner,
    pub(super) means: Means,
    pub(super) progress: Progress,
    /// The target's name, for errors: what lies there is covered on the stage.
    pub(super) target: PathBuf,
    /// The target itself: the root of the tree is to look like it.
    pub(super) like: OwnedFd,
}

/// What was made on the stage.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) made: Made,
    pub(super) mounted: Mounted,
    pub(super) why_not: Vec<String>,
}

/// A trial of the kernel's overlay and the server's first steps need as much, for a moment.
const ROOM_TO_START: u64 = 1 << 20;

impl Wish {
    /// Mounts the wanted tree on the stage's `merged`.
    pub(super) fn make(&self, stage: &Stage) -> Result<Product> {
        let mut why_not = Vec::new();
        let (backend, owners) = match self.means {
            Means::Copy => return self.copy(stage, why_not),
            Means::Kernel => (Backend::Native, Owners::Real),
            Means::Fuse => (Backend::Fuse, self.shown_owners()),
            // The first file with another owner decides, so this is short where it matters.
            Means::Auto if self.owner == Owner::default() => (Backend::Auto, Owners::Real),
            Means::Auto if all_belong_to(&stage.lower(), self.owner) => {
                (Backend::Auto, Owners::Real)
            }
            Means::Auto => {
                why_not.push(
                    "the kernel's overlay would have to copy every file to give it another owner"
                        .to_owned(),
                );
                (Backend::Fuse, self.shown_owners())
            }
        };
        match self.overlay(stage, backend, owners) {
            Ok(mounted) => {
                why_not.extend(mounted.why_not_native().map(str::to_owned));
                Ok(Product {
                    made: match mounted.backend() {
                        Carrier::Native => Made::Kernel,
                        Carrier::Fuse => Made::Fuse,
                    },
                    mounted,
                    why_not,
                })
            }
            Err(error) if self.means == Means::Auto => {
                log::info!("{error}");
                why_not.push(error.to_string());
                self.copy(stage, why_not)
            }
            Err(error) => Err(error),
        }
    }

    fn shown_owners(&self) -> Owners {
        match self.owner {
            Owner {
                uid: None,
                gid: None,
            } => Owners::Real,
            Owner { uid, gid } => Owners::Given { uid, gid },
        }
    }

    fn overlay(&self, stage: &Stage, backend: Backend, owners: Owners) -> Result<Mounted> {
        let changes = stage.changes();
        self.tmpfs(&changes, self.size.max(ROOM_TO_START))?;
        // Lower hard links stay links where that can be had: a copy's would.
        let links: &[Switch] = match Privilege::current() {
            Privilege::Machine => &[Switch::On, Switch::Off],
            Privilege::Namespace | Privilege::None => &[Switch::Off],
        };
        let mut outcome = Err(Error::system(STEP).at(&self.target));
        for index in links {
            outcome = self.overlay_on(stage, backend, owners, *index);
            if outcome.is_ok() {
                break;
            }
        }
        let outcome = outcome.and_then(|mounted| {
            if self.size < ROOM_TO_START {
                let flags = Flags::NOSUID | Flags::NODEV;
                mount_remount(&changes, flags, data(self.size, None).as_c_str())
                    .context("limiting the size of the changes", &self.target)?;
            }
            Ok(mounted)
        });
        if outcome.is_err() {
            // The copy that may follow needs the memory.
            let _ = unmount(&changes, UnmountFlags::DETACH);
        }
        outcome
    }

    fn overlay_on(
        &self,
        stage: &Stage,
        backend: Backend,
        owners: Owners,
        index: Switch,
    ) -> Result<Mounted> {
        // An upper directory that was tried with an index isn't taken without.
        let layers = stage.changes().join(match index {
            Switch::On => "indexed",
            Switch::Off => "plain",
        });
        let (upper, work) = (layers.join("upper"), layers.join("work"));
        for dir in [&layers, &upper, &work] {
            fs::create_dir(dir)
                .map_err(|error| from_io(&error))
                .context("making the layer of the changes", dir)?;
        }
        self.dress_root(&upper)?;
        let lower = stage.lower();
        let gives = backend == Backend::Native && self.owner != Owner::default();
        let mounted = Overlay::writable([lower.as_path()].into_iter(), upper, work, stage.merged())
            .backend(backend)
            .owners(owners)
            .configure(|options| {
                options.flags = MountFlags::NOSUID | MountFlags::NODEV;
                options.allow_other = true;
                // Nothing of it outlives the mount.
                options.fsync = Fsync::Volatile;
                options.index = (index == Switch::On).then_some(index);
                if gives && Privilege::current() == Privilege::Machine {
                    // New owners for all, and no data is copied.
                    options.metacopy = Some(Switch::On);
                }
            })
            .mount()?;
        if gives {
            give_all_to(&stage.merged(), self.owner).map_err(|errno| self.not_given(errno))?;
            // Its own times have been changed by nothing but this.
            self.dress_root(&stage.merged())?;
        }
        Ok(mounted)
    }

    fn copy(&self, stage: &Stage, why_not: Vec<String>) -> Result<Product> {
        let merged = stage.merged();
        self.tmpfs(&merged, self.size)?;
        let lower = [stage.lower()];
        let flatten = Flatten {
            step: "copying into a snapshot",
            layers: &lower,
            namespace: namespace(),
            dest: &merged,
            owner: self.owner,
        };
        let mut meter = match self.progress {
            Progress::OnTerminal => {
                Meter::on_terminal(format!("copying {}", self.target.display()))
            }
            Progress::Silent => Meter::hidden(),
        };
        flatten
            .write(&mut meter)
            .map_err(|error| self.not_copied(error))?;
        self.dress_root(&merged)?;
        Ok(Product {
            made: Made::Copy,
            mounted: Mounted::on_tmpfs(merged),
            why_not,
        })
    }

    fn tmpfs(&self, place: &Path, size: u64) -> Result<()> {
        let flags = Flags::NOSUID | Flags::NODEV;
        let data = data(size, Some("mode=755"));
        mount("tmpfs", place, "tmpfs", flags, Some(data.as_c_str()))
            .context("mounting memory for a snapshot", &self.target)
    }

    /// Gives a directory what the root of the tree is to have: all that the target has, but
    /// perhaps another owner.
    fn dress_root(&self, root: &Path) -> Result<()> {
        make_like(self.like.as_fd(), root, self.owner, namespace()).map_err(|errno| match errno {
            Errno::INVAL | Errno::PERM if self.owner != Owner::default() => self.not_given(errno),
            errno => Error::system("giving the snapshot's root the attributes of its target")
                .at(&self.target)
                .errno(errno),
        })
    }

    fn not_given(&self, errno: Errno) -> Error {
        let error = Error::system("giving the snapshot another owner")
            .at(&self.target)
            .errno(errno);
        match errno {
            Errno::INVAL => error.because("that id isn't mapped in this user namespace"),
            Errno::NOSPC => self.too_large(error),
            _ => error,
        }
    }

    fn not_copied(&self, error: Error) -> Error {
        match error.raw_errno() {
            Some(Errno::NOSPC) => self.too_large(error),
            _ => error,
        }
    }

    fn too_large(&self, error: Error) -> Error {
        error
            .because(format!("it doesn't fit into {} bytes", self.size))
            .remedy("give the snapshot a larger size")
    }
}

/// Where this process's overlays keep their attributes.
fn namespace() -> XattrNamespace {
    match Privilege::current().needs_userxattr() {
        true => XattrNamespace::User,
        false => XattrNamespace::Trusted,
    }
}

fn data(size: u64, more: Option<&str>) -> CString {
    let text = match more {
        Some(more) => format!("size={size},{more}"),
        None => format!("size={size}"),
    };
    // Digits and letters.
    CString::new(text).unwrap_or_default()
}
