//! The mount itself: by mount(2) where that is allowed, by fusermount3 otherwise.

use std::ffi::{CString, OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::handover::{Device, receive_descriptor};
use crate::options::{Label, MountFlags, Options, escaped};
use crate::probe::ms_flags;
use crate::server::MAX_REQUEST;
use crate::sys::privilege::Privilege;
use crate::sys::{Errno, from_nix};
use crate::{Error, Result};

/// The type that the mount table shows.
pub(crate) const FILE_SYSTEM: &str = "fuse.overfall";
/// The source that the mount table shows.
const SOURCE: &str = "overfall";
const DEVICE: &str = "/dev/fuse";

/// Who else may enter the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guests {
    /// Everybody, as with the kernel's overlay.
    Everybody,
    /// Nobody but the user who mounts.
    Nobody,
}

/// Mounts on `target`; what comes back is the connection to serve. The kernel may send requests
/// at once; they wait for the server.
pub(super) fn mount(options: &Options, target: &Path) -> Result<OwnedFd> {
    if Privilege::current() == Privilege::None {
        return by_helper(options, target);
    }
    match directly(options, target) {
        // CAP_SYS_ADMIN over the user namespace, but not over this mount namespace.
        Err(error) if error.raw_errno() == Some(Errno::PERM) => {
            by_helper(options, target).map_err(|_| error)
        }
        result => result,
    }
}

fn directly(options: &Options, target: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(device_error)?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        data(Guests::Everybody),
    );
    let data = labelled(data, options.labels_here());
    let flags = ms_flags(options.flags);
    CString::new(data)
        .map_err(|_| Errno::INVAL)
        .and_then(|data| {
            rustix::mount::mount(source(options), target, FILE_SYSTEM, flags, data.as_c_str())
        })
        .map_err(|errno| mount_error(errno, target))?;
    Ok(device)
}

fn source(options: &Options) -> &OsStr {
    options.fsname.as_deref().unwrap_or(OsStr::new(SOURCE))
}

fn data(guests: Guests) -> String {
    let guests = match guests {
        Guests::Everybody => ",allow_other",
        Guests::Nobody => "",
    };
    format!("default_permissions,max_read={MAX_REQUEST}{guests}")
}

/// Labels are for SELinux, which takes its own part out of the string.
fn labelled(mut data: String, labels: &[Label]) -> String {
    for Label { name, value } in labels {
        data.push_str(&format!(",{name}=\"{value}\""));
    }
    data
}

/// fusermount3 sets nosuid and nodev by itself. A word that its version doesn't know it refuses.
fn helper_options(options: &Options) -> OsString {
    let guests = if options.allow_other {
        Guests::Everybody
    } else {
        Guests::Nobody
    };
    let mut all = OsString::from("fsname=");
    all.push(escaped(Path::new(source(options))));
    all.push(format!(",subtype=overfall,{}", data(guests)));
    let words = [
        (MountFlags::RO, ",ro"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::NODIRATIME, ",nodiratime"),
        (MountFlags::STRICTATIME, ",strictatime"),
        (MountFlags::SYNC, ",sync"),
        (MountFlags::DIRSYNC, ",dirsync"),
        (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
    ];
    for (flag, word) in words {
        if options.flags.contains(flag) {
            all.push(word);
        }
    }
    all
}

/// fusermount3 is set-user-id root. It gets a socket whose number stands in `_FUSE_COMMFD`, mounts,
/// and sends the connection through it.
fn by_helper(options: &Options, target: &Path) -> Result<OwnedFd> {
    const STEP: &str = "mounting with fusermount3";
    let failed = |errno: Errno| Error::system(STEP).at(target).errno(errno);
    let helper = helper().ok_or_else(|| {
        Error::system("mounting the FUSE file system")
            .at(target)
            .because("only root may mount, and fusermount3 isn't installed")
            .remedy("install fuse3, or use `overfall run`, which needs no privilege")
    })?;
    // Inherited by the helper, hence without CLOEXEC; this process starts nothing else.
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(failed)?;
    let mut child = Command::new(&helper)
        .arg("-o")
        .arg(helper_options(options))
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(crate::sys::from_io(&error)).at(&helper))?;
    drop(theirs);
    let device = receive_descriptor(&ours, &mut [0]);
    drop(ours);
    let said = said(&mut child);
    let status = child.wait();
    match device {
        Ok(Some(device)) if status.is_ok() => Ok(device),
        _ => Err(helper_error(target, &said)),
    }
}

/// What a helper wrote to stderr.
fn said(child: &mut std::process::Child) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.as_mut() {
        // What was read before an error is as much as can be told.
        let _ = stderr.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).trim().replace('\n', "; ")
}

fn helper_error(target: &Path, said: &str) -> Error {
    let error = Error::system("mounting with fusermount3").at(target);
    if said.contains("user_allow_other") {
        return error
            .because("/etc/fuse.conf does not allow `allow_other`")
            .remedy("have root add the line `user_allow_other` there, or leave the option out");
    }
    if let Some((_, option)) = said.split_once("unknown option '") {
        let option = option.split('\'').next().unwrap_or_default();
        return error
            .because(format!("it doesn't know `{option}`"))
            .remedy("leave the option out, or have root mount it");
    }
    if said.is_empty() {
        return error.because("it failed without a word");
    }
    error.because(said)
}

/// fusermount3, or the fusermount of old, wherever it is: a static binary in a container may have
/// no PATH, and NixOS keeps it apart.
fn helper() -> Option<PathBuf> {
    const USUAL: &str = "/run/wrappers/bin:/usr/bin:/bin:/usr/local/bin";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = [path, OsString::from(USUAL)]
        .iter()
        .flat_map(|list| std::env::split_paths(list).collect::<Vec<_>>())
        .filter(|folder| folder.is_absolute())
        .collect();
    ["fusermount3", "fusermount"]
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

fn device_error(errno: Errno) -> Error {
    let error = Error::system("opening the FUSE device")
        .at(DEVICE)
        .errno(errno);
    match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => error
            .because("FUSE isn't there")
            .remedy("load it (`modprobe fuse`), or in a container pass /dev/fuse in"),
        Errno::ACCESS | Errno::PERM => error.remedy("have root run `chmod 666 /dev/fuse`"),
        _ => error,
    }
}

fn mount_error(errno: Errno, target: &Path) -> Error {
    let error = Error::system("mounting the FUSE file system")
        .at(target)
        .errno(errno);
    match errno {
        Errno::NODEV => {
            error.because("this kernel has no FUSE, or not in a user namespace (before Linux 4.18)")
        }
        Errno::PERM => error.because("mounting isn't allowed in this mount namespace"),
        _ => error,
    }
}

/// How to unmount what is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// Not at all.
    Refuse,
    /// Out of sight now, for good when its last user has gone.
    Detach,
}

/// For how long a tree in use is tried again: what has just ended may hold it for a moment more.
const A_MOMENT: Duration = Duration::from_millis(200);

/// Unmounts what is on top at `target`, unless it is known to be another one than `device`.
pub(crate) fn unmount(target: &Path, device: Device, busy: Busy) -> Result<()> {
    let start = Instant::now();
    loop {
        match is_on_top(target, device).and_then(|()| try_unmount(target, busy)) {
            Err(error) if error.raw_errno() == Some(Errno::BUSY) && start.elapsed() < A_MOMENT => {
                std::thread::sleep(A_MOMENT / 10);
            }
            result => return result,
        }
    }
}

/// Refuses where something else is mounted at `target`. What nobody can tell is believed.
pub(crate) fn is_on_top(target: &Path, wanted: Device) -> Result<()> {
    match (wanted, device(target)) {
        (Some(wanted), Some(there)) if wanted != there => Err(Error::system("unmounting")
            .at(target)
            .because("it isn't mounted there any more, or something is mounted over it")),
        _ => Ok(()),
    }
}

fn try_unmount(target: &Path, busy: Busy) -> Result<()> {
    let flags = match busy {
        Busy::Refuse => MntFlags::empty(),
        Busy::Detach => MntFlags::MNT_DETACH,
    };
    match umount2(target, flags | MntFlags::UMOUNT_NOFOLLOW).map_err(from_nix) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_helper(target, busy),
        Err(errno) => Err(unmount_error(target, errno)),
    }
}

fn unmount_by_helper(target: &Path, busy: Busy) -> Result<()> {
    let Some(helper) = helper() else {
        return Err(unmount_error(target, Errno::PERM));
    };
    let mut command = Command::new(&helper);
    command.arg("-u");
    if busy == Busy::Detach {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(target)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| unmount_error(target, crate::sys::from_io(&error)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(unmount_error(target, Errno::BUSY));
    }
    Err(Error::system("unmounting with fusermount3")
        .at(target)
        .because(said.trim().replace('\n', "; ")))
}

fn unmount_error(target: &Path, errno: Errno) -> Error {
    let error = Error::system("unmounting").at(target).errno(errno);
    match errno {
        Errno::BUSY => error
            .because("it is in use")
            .remedy("end what works in it (`fuser -m` lists it) and try again"),
        Errno::INVAL => error
            .because("nothing is mounted there, or it came with another namespace, which locks it"),
        _ => error,
    }
}

/// Number of the device under which the file system on `target` is known. Answered by the kernel
/// alone, also where nobody serves (yet, or any more).
pub(crate) fn device(target: &Path) -> Device {
    device_of(target, AtFlags::SYMLINK_NOFOLLOW)
}

/// The same of what a link leads to.
pub(super) fn device_behind(link: &Path) -> Device {
    device_of(link, AtFlags::empty())
}

fn device_of(target: &Path, flags: AtFlags) -> Device {
    let flags = flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, target, flags, StatxFlags::empty()).ok()?;
    Some((stat.stx_dev_major, stat.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_quoted() {
        let label = Label {
            name: "context",
            value: "u:r:t:s0:c1,c2".into(),
        };
        let data = labelled("fd=3".into(), &[label]);
        assert_eq!(data, r#"fd=3,context="u:r:t:s0:c1,c2""#);
    }
}
