//! The root that the command sees: the merged tree with `/proc`, `/sys`, `/dev` and what was
//! bound, put together and moved into.
//!
//! - `/proc`: a fresh one, of the command's pid namespace. Where the kernel refuses that (in a
//!   container that masks parts of its own) the machine's is bound. For the machine's root the
//!   parts that would change the machine are read-only.
//! - `/sys`: the machine's, read-only.
//! - `/dev`: the machine's, its directories read-only: devices can be used, not removed or
//!   changed. `/dev/pts` as it is, so that the terminal has its name; `/dev/shm` is fresh.
//! - The run's own directory is covered by an empty one. It would show the upper inside of
//!   itself, without an end for something like `rm -rf`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use log::debug;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_move, mount_remount, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::mounts::{Mounts, mount_of};
use super::namespaces::Standing;
use super::overlays::Shown;
use crate::error::Context;
use crate::sys::mountinfo::Mount;
use crate::sys::{Errno, from_nix};
use crate::{Error, Result};

/// Whether something bound can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Changes go to the machine.
    Writable,
    /// It can only be read.
    ReadOnly,
}

/// A file or directory of the machine that is shown inside at the same place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where it is, on the machine and inside.
    pub path: PathBuf,
    /// Whether it can be changed from inside.
    pub access: Access,
}

/// Something that is put over a place of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where, as seen inside.
    pub(crate) inside: PathBuf,
    pub(crate) content: Content,
}

/// What is put there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A file or directory of the machine.
    Bind { source: PathBuf, access: Access },
    /// A fresh directory in memory.
    Memory(Memory),
    /// A directory that is empty and stays so.
    Empty,
}

/// A fresh directory in memory, of a bounded size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) size: u64,
    pub(crate) mode: u32,
    /// Directories in it, with their modes; parents first.
    pub(crate) dirs: Vec<(PathBuf, u32)>,
    /// Files in it, with their text.
    pub(crate) files: Vec<(PathBuf, String)>,
}

impl From<Bind> for Place {
    fn from(bind: Bind) -> Self {
        Self {
            inside: bind.path.clone(),
            content: Content::Bind {
                source: bind.path,
                access: bind.access,
            },
        }
    }
}

/// Directories of the root that this file takes care of.
pub(super) const OWN: [&str; 3] = ["proc", "sys", "dev"];

/// The plan of the root.
#[derive(Debug)]
pub(crate) struct Root {
    /// Where the merged tree is mounted.
    pub(crate) merged: PathBuf,
    /// Mounts of the machine that no overlay covers.
    pub(crate) shown: Vec<Shown>,
    /// What is put over the tree, in this order.
    pub(crate) places: Vec<Place>,
    /// The run's own directories, as seen inside; those that are there at all.
    pub(crate) hidden: Vec<PathBuf>,
    /// Decides what has to be protected.
    pub(crate) standing: Standing,
}

impl Root {
    /// Puts the root together in a mount namespace of its own and moves the process into it. The
    /// process must be the first one of its pid namespace.
    pub(super) fn enter(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| {
            Error::system("making the command's mount namespace").errno(from_nix(errno))
        })?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).context("making the mounts private", "/")?;
        let machine = pivot(&self.merged)?;
        // From here on absolute paths, symbolic links included, are the new root's, and paths
        // relative to the current directory are the machine's.
        self.proc()?;
        self.sys()?;
        self.dev()?;
        for shown in &self.shown {
            bind(&shown.source, &Path::new("/").join(&shown.inside))?;
            read_only_below(&Path::new("/").join(&shown.inside), |_| true)?;
        }
        for place in &self.places {
            place.put()?;
        }
        for hidden in &self.hidden {
            hide(hidden)?;
        }
        let step = "leaving the machine's root";
        fchdir(&machine).context(step, "/")?;
        unmount(".", UnmountFlags::DETACH).context(step, "/")?;
        chdir("/").context(step, "/")
    }

    fn proc(&self) -> Result<()> {
        let place = own_directory("proc")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        if let Err(errno) = mount("proc", &place, "proc", flags, None) {
            debug!("mounting a fresh /proc: {errno}; the machine's is bound");
            bind(Path::new("/proc"), &place)?;
        }
        if self.standing == Standing::Root {
            for name in ["sys", "sysrq-trigger", "irq", "bus"] {
                let path = place.join(name);
                if path.exists() {
                    mount_bind_recursive(&path, &path).context("protecting the machine", &path)?;
                    read_only_below(&path, |_| true)?;
                }
            }
        }
        Ok(())
    }

    fn sys(&self) -> Result<()> {
        let place = own_directory("sys")?;
        bind(Path::new("/sys"), &place)?;
        self.protect(&place, |_| true)
    }

    fn dev(&self) -> Result<()> {
        let place = own_directory("dev")?;
        bind(Path::new("/dev"), &place)?;
        self.protect(&place, |mount| {
            mount.fstype != "devpts" && mount.fstype != "mqueue"
        })?;
        let shm = place.join("shm");
        if !shm.is_dir() {
            return Ok(());
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", &shm, "tmpfs", flags, Some(c"mode=1777"))
            .context("mounting a fresh /dev/shm", &shm)
    }

    /// Only the machine's root could change anything there; for others it is a courtesy that
    /// some kernels refuse.
    fn protect(&self, place: &Path, which: impl Fn(&Mount) -> bool) -> Result<()> {
        match read_only_below(place, which) {
            Err(error) if self.standing != Standing::Root => {
                debug!("{error}");
                Ok(())
            }
            outcome => outcome,
        }
    }
}

/// Makes `merged` the root and gives back the old one, which is the current directory.
fn pivot(merged: &Path) -> Result<OwnedFd> {
    let step = "moving into the merged tree";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let machine = open("/", flags, Mode::empty()).context(step, "/")?;
    chdir(merged).context(step, merged)?;
    match pivot_root(".", ".") {
        Ok(()) => {}
        // The root is an initramfs, or a chroot that isn't a mount: it can't be swapped, but it
        // can be covered.
        Err(Errno::INVAL) => {
            mount_move(".", "/").context(step, merged)?;
            chroot(".").context(step, merged)?;
        }
        Err(errno) => return Err(Error::system(step).at(merged).errno(errno)),
    }
    fchdir(machine.as_fd()).context(step, "/")?;
    Ok(machine)
}

/// A directory of the new root that something is mounted on; a bare root gets it.
fn own_directory(name: &str) -> Result<PathBuf> {
    let place = Path::new("/").join(name);
    match fs::create_dir(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::system("making a directory of the new root")
                .at(&place)
                .because(error.to_string()))
        }
        _ => Ok(place),
    }
}

/// Shows what the machine has at `source` (absolute) at `target` of the new root, with
/// everything mounted below it: the kernel doesn't let a user namespace look behind a mount.
fn bind(source: &Path, target: &Path) -> Result<()> {
    let from = relative(source);
    mount_bind_recursive(from, target).context("binding a part of the machine", source)
}

/// `path` as seen from the current directory, which is the machine's root.
fn relative(path: &Path) -> &Path {
    match path.strip_prefix("/") {
        Ok(rest) if rest.as_os_str().is_empty() => Path::new("."),
        Ok(rest) => rest,
        Err(_) => path,
    }
}

impl Place {
    fn put(&self) -> Result<()> {
        let at = &self.inside;
        match &self.content {
            Content::Bind { source, access } => {
                make_place(at, relative(source).is_dir())?;
                bind(source, at)?;
                if *access == Access::ReadOnly {
                    read_only_below(at, |_| true)?;
                }
                Ok(())
            }
            Content::Memory(memory) => {
                make_place(at, true)?;
                memory.mount(at)
            }
            Content::Empty => {
                make_place(at, true)?;
                let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
                mount("tmpfs", at, "tmpfs", flags, Some(c"size=4k,mode=555"))
                    .context("mounting an empty directory", at)
            }
        }
    }
}

impl Memory {
    fn mount(&self, at: &Path) -> Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let step = "mounting a directory in memory";
        let options = format!("size={},mode={:o}", self.size, self.mode);
        let options = std::ffi::CString::new(options).map_err(|_| Error::usage(step).at(at))?;
        mount("tmpfs", at, "tmpfs", flags, options.as_c_str()).context(step, at)?;
        let failed = |path: &Path, error: std::io::Error| {
            Error::system("filling a directory in memory")
                .at(path)
                .because(error.to_string())
        };
        for (name, mode) in &self.dirs {
            let path = at.join(name);
            fs::create_dir_all(&path).map_err(|error| failed(&path, error))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode))
                .map_err(|error| failed(&path, error))?;
        }
        for (name, text) in &self.files {
            let path = at.join(name);
            fs::write(&path, text).map_err(|error| failed(&path, error))?;
        }
        Ok(())
    }
}

/// Makes what something is mounted on, where a root has nothing there.
fn make_place(path: &Path, directory: bool) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| {
        Error::system("making a place to mount on")
            .at(path)
            .because(error.to_string())
    };
    if directory {
        fs::create_dir_all(path).map_err(failed)
    } else {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::File::create(path).map(drop).map_err(failed)
    }
}

/// Makes the mount at `place` and those below it read-only, where `which` says so.
fn read_only_below(place: &Path, which: impl Fn(&Mount) -> bool) -> Result<()> {
    let step = "making a mount read-only";
    let id = mount_of(place).ok_or_else(|| Error::system(step).at(place).because("not there"))?;
    for mount in Mounts::of_self()?.subtree(id) {
        if !which(mount) || mount.has_option("ro") {
            continue;
        }
        let flags = MountFlags::BIND | MountFlags::RDONLY | kept_flags(mount);
        match mount_remount(&mount.point, flags, c"") {
            // Hidden under another mount: out of reach from inside as well.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
            Err(errno) => return Err(Error::system(step).at(&mount.point).errno(errno)),
        }
    }
    Ok(())
}

/// The flags that a remount has to repeat: in a user namespace none of them may be dropped.
fn kept_flags(mount: &Mount) -> MountFlags {
    [
        ("nosuid", MountFlags::NOSUID),
        ("nodev", MountFlags::NODEV),
        ("noexec", MountFlags::NOEXEC),
        ("noatime", MountFlags::NOATIME),
        ("nodiratime", MountFlags::NODIRATIME),
        ("relatime", MountFlags::RELATIME),
    ]
    .into_iter()
    .filter(|(name, _)| mount.has_option(name))
    .fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}

fn hide(directory: &Path) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(
        "tmpfs",
        directory,
        "tmpfs",
        flags,
        Some(c"size=4k,mode=755"),
    )
    .context("covering the run's own directory", directory)
}
