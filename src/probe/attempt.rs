//! One attempt to mount the kernel's overlay: the new mount API where it takes our layers,
//! mount(2) otherwise.
//!
//! The new API (fsopen, Linux 5.2; `lowerdir+`, 6.8) needs no escapes, has no limit of one page
//! for all names together, and says in words what it doesn't like.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags as MsFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount, move_mount,
};

use crate::options::{MountFlags, Options, escaped};
use crate::sys::Errno;

/// Why the kernel refused a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The system call, with the option it was about.
    pub(crate) step: String,
    /// Its error number.
    pub(crate) errno: Errno,
    /// What the kernel said in words; empty where it said nothing.
    pub(crate) said: String,
}

impl Refusal {
    fn new(step: impl Into<String>, errno: Errno) -> Self {
        Self {
            step: step.into(),
            errno,
            said: String::new(),
        }
    }
}

/// What mountinfo shows as the source of our mounts of the kernel's overlay, unless `fsname=` says
/// otherwise: what `overfall list` knows them by.
pub(crate) const SOURCE: &str = "overfall";

fn source(options: &Options) -> &OsStr {
    options.fsname.as_deref().unwrap_or(OsStr::new(SOURCE))
}

/// The longest value that fsconfig(2) takes as a string.
const LONGEST_STRING: usize = 255;

/// Mounts the kernel's overlay with exactly these options, or says why it can't be.
pub(crate) fn attempt(options: &Options, target: &Path) -> Result<(), Refusal> {
    let options = absolute(options)?;
    let target = absolute_path(target)?;
    let first = match by_fsopen(&options, &target) {
        // Kernels before 6.8 don't know `lowerdir+`, and a seccomp filter may know mount(2) and
        // nothing newer.
        Err(refusal) if matches!(refusal.errno, Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
            refusal
        }
        outcome => return outcome,
    };
    by_mount(&options, &target).map_err(|second| match first.said.as_str() {
        "" => second,
        said if said.contains("'lowerdir+'") => second,
        _ => first,
    })
}

/// Relative names would mean something else to whoever reads mountinfo later.
fn absolute(options: &Options) -> Result<Options, Refusal> {
    let all = |paths: &[PathBuf]| -> Result<Vec<_>, Refusal> {
        paths.iter().map(|path| absolute_path(path)).collect()
    };
    let one = |path: &Option<PathBuf>| path.as_deref().map(absolute_path).transpose();
    Ok(Options {
        lower: all(&options.lower)?,
        data_only: all(&options.data_only)?,
        upper: one(&options.upper)?,
        work: one(&options.work)?,
        ..options.clone()
    })
}

fn absolute_path(path: &Path) -> Result<PathBuf, Refusal> {
    std::path::absolute(path).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
        Refusal::new("getcwd", errno)
    })
}

fn by_fsopen(options: &Options, target: &Path) -> Result<(), Refusal> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Refusal::new("fsopen(\"overlay\")", errno))?;
    let told = |step: String, errno| {
        Err(Refusal {
            step,
            errno,
            said: messages(&context),
        })
    };
    let layers = options.lower.iter().map(|path| ("lowerdir+", path));
    let data = options.data_only.iter().map(|path| ("datadir+", path));
    for (key, path) in layers.chain(data) {
        if let Err(errno) = set_layer(&context, key, path, path.as_os_str()) {
            return told(format!("fsconfig({key}={})", path.display()), errno);
        }
    }
    for (key, path) in [("upperdir", &options.upper), ("workdir", &options.work)] {
        let Some(path) = path else { continue };
        if let Err(errno) = set_layer(&context, key, path, &escaped(path)) {
            return told(format!("fsconfig({key}={})", path.display()), errno);
        }
    }
    for (key, value) in options.settings() {
        let outcome = match value {
            Some(value) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, key),
        };
        if let Err(errno) = outcome {
            let value = value.map(|value| format!("={value}")).unwrap_or_default();
            return told(format!("fsconfig({key}{value})"), errno);
        }
    }
    for label in options.labels_here() {
        if let Err(errno) = fsconfig_set_string(&context, label.name, label.value.as_str()) {
            return told(format!("fsconfig({})", label.name), errno);
        }
    }
    let flags = options.flags;
    for (flag, key) in [
        (MountFlags::RO, "ro"),
        (MountFlags::SYNC, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ] {
        if flags.contains(flag)
            && let Err(errno) = fsconfig_set_flag(&context, key)
        {
            return told(format!("fsconfig({key})"), errno);
        }
    }
    // Without a source mountinfo shows "none"; a kernel that refuses the name does no harm.
    let _shown_only = fsconfig_set_string(&context, "source", source(options));
    if let Err(errno) = fsconfig_create(&context) {
        return told("fsconfig(create)".to_owned(), errno);
    }
    let tree = match fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(flags)) {
        Ok(tree) => tree,
        Err(errno) => return told("fsmount".to_owned(), errno),
    };
    let follow = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS
        | MoveMountFlags::MOVE_MOUNT_T_AUTOMOUNTS;
    match move_mount(&tree, "", CWD, target, follow) {
        Ok(()) => Ok(()),
        Err(errno) => told("move_mount".to_owned(), errno),
    }
}

/// Gives the kernel one directory: by its name where that is short enough, else by a descriptor
/// (Linux 6.13).
fn set_layer(context: &OwnedFd, key: &str, path: &Path, name: &OsStr) -> Result<(), Errno> {
    if name.len() <= LONGEST_STRING {
        return fsconfig_set_string(context, key, name);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let layer = open(path, flags, Mode::empty())?;
    fsconfig_set_fd(context, key, layer.as_fd())
}

/// What the kernel said about this mount, in one line.
fn messages(context: &OwnedFd) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        if length == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&buffer[..length]);
        // "e overlay: text": the letter is the level.
        let text = text.trim_end();
        let text = text
            .split_once("overlay: ")
            .map_or(text, |(_, words)| words)
            .to_owned();
        if !lines.contains(&text) {
            lines.push(text);
        }
    }
    lines.join("; ")
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    let pairs = [
        (MountFlags::RO, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (
            MountFlags::NODIRATIME,
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        ),
        (
            MountFlags::STRICTATIME,
            MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        ),
        (
            MountFlags::NOSYMFOLLOW,
            MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW,
        ),
    ];
    collect(flags, &pairs, MountAttrFlags::empty(), |all, one| all | one)
}

/// The flags as mount(2) takes them.
pub(crate) fn ms_flags(flags: MountFlags) -> MsFlags {
    let pairs = [
        (MountFlags::RO, MsFlags::RDONLY),
        (MountFlags::NOSUID, MsFlags::NOSUID),
        (MountFlags::NODEV, MsFlags::NODEV),
        (MountFlags::NOEXEC, MsFlags::NOEXEC),
        (MountFlags::NOATIME, MsFlags::NOATIME),
        (MountFlags::NODIRATIME, MsFlags::NODIRATIME),
        (MountFlags::RELATIME, MsFlags::RELATIME),
        (MountFlags::STRICTATIME, MsFlags::STRICTATIME),
        (MountFlags::SYNC, MsFlags::SYNCHRONOUS),
        (MountFlags::DIRSYNC, MsFlags::DIRSYNC),
        (MountFlags::NOSYMFOLLOW, MsFlags::NOSYMFOLLOW),
    ];
    collect(flags, &pairs, MsFlags::empty(), |all, one| all | one)
}

fn collect<T: Copy>(
    flags: MountFlags,
    pairs: &[(MountFlags, T)],
    none: T,
    join: impl Fn(T, T) -> T,
) -> T {
    pairs
        .iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .fold(none, |all, &(_, one)| join(all, one))
}

fn by_mount(options: &Options, target: &Path) -> Result<(), Refusal> {
    let page = rustix::param::page_size();
    let data = options.to_kernel_data(|path| path);
    let outcome = if data.len() < page {
        call_mount(options, target, &data)
    } else {
        // One directory above all layers makes their names shorter.
        let base = common_ancestor(options);
        let shorter = options.to_kernel_data(|path| below(path, &base));
        if shorter.len() >= page {
            return Err(Refusal {
                step: "mount(2)".to_owned(),
                errno: Errno::TOOBIG,
                said: format!(
                    "the names of the layers take {} bytes together, and this kernel takes {} at \
                     most",
                    shorter.len(),
                    page - 1
                ),
            });
        }
        mount_from(&base, options, target, &shorter)
    };
    outcome.map_err(|errno| Refusal::new("mount(2)", errno))
}

fn call_mount(options: &Options, target: &Path, data: &OsStr) -> Result<(), Errno> {
    let flags = ms_flags(options.flags);
    let mut data = data.to_os_string();
    for label in options.labels_here() {
        data.push(format!(",{}=\"{}\"", label.name, label.value));
    }
    let data = std::ffi::CString::new(data.as_bytes()).map_err(|_| Errno::INVAL)?;
    mount(source(options), target, "overlay", flags, data.as_c_str())
}

/// Mounts with `base` as the working directory, of a thread of its own, so that nobody else's
/// working directory moves.
fn mount_from(base: &Path, options: &Options, target: &Path, data: &OsStr) -> Result<(), Errno> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
                .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
            rustix::process::chdir(base)?;
            call_mount(options, target, data)
        });
        thread.join().unwrap_or(Err(Errno::AGAIN))
    })
}

fn common_ancestor(options: &Options) -> PathBuf {
    let mut paths = options.paths().map(|(path, _)| path);
    let mut common = paths.next().unwrap_or(Path::new("/")).to_path_buf();
    for path in paths {
        while !path.starts_with(&common) {
            common.pop();
        }
    }
    common
}

fn below<'a>(path: &'a Path, base: &Path) -> &'a Path {
    match path.strip_prefix(base) {
        Ok(rest) if rest.as_os_str().is_empty() => Path::new("."),
        Ok(rest) => rest,
        Err(_) => path,
    }
}

#[cfg(test)]
mod tests;
