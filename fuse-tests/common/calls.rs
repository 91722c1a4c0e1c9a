//! System calls in the form that tests like: plain numbers in, `io::Result` out.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Asserts that a call failed with this error number.
#[track_caller]
pub(crate) fn fails<T, E: Into<io::Error>>(result: Result<T, E>, errno: i32) {
    match result {
        Ok(_) => panic!(
            "it worked, expected: {}",
            io::Error::from_raw_os_error(errno)
        ),
        Err(error) => {
            let error = error.into();
            assert_eq!(
                error.raw_os_error(),
                Some(errno),
                "it failed with: {error}; expected: {}",
                io::Error::from_raw_os_error(errno)
            );
        }
    }
}

/// lstat(2).
#[track_caller]
pub(crate) fn stat(path: impl AsRef<Path>) -> Metadata {
    let path = path.as_ref();
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("stat {}: {e}", path.display()))
}

/// Opens for reading and writing, nothing is created or cut.
#[track_caller]
pub(crate) fn open_rw(path: impl AsRef<Path>) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("open for writing")
}

/// Opens with further `O_*` flags, for reading.
pub(crate) fn open_flags(path: impl AsRef<Path>, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// The value of an extended attribute; `None` where there is none.
pub(crate) fn xattr_get(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    with_buffer(|buffer| rustix::fs::lgetxattr(path.as_ref(), name, buffer)).ok()
}

/// Calls with a small buffer, and with the largest that there is where that doesn't do.
fn with_buffer(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    let length = match call(&mut buffer) {
        Err(rustix::io::Errno::RANGE) => {
            buffer.resize(65536, 0);
            call(&mut buffer)?
        }
        result => result?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

/// Sets an extended attribute.
pub(crate) fn xattr_set(path: impl AsRef<Path>, name: &str, value: &[u8]) -> io::Result<()> {
    xattr_set_flags(path, name, value, XattrFlags::empty())
}

/// Sets an extended attribute with `XATTR_CREATE` or `XATTR_REPLACE`.
pub(crate) fn xattr_set_flags(
    path: impl AsRef<Path>,
    name: &str,
    value: &[u8],
    flags: XattrFlags,
) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(path.as_ref(), name, value, flags)?)
}

/// Removes an extended attribute.
pub(crate) fn xattr_remove(path: impl AsRef<Path>, name: &str) -> io::Result<()> {
    Ok(rustix::fs::lremovexattr(path.as_ref(), name)?)
}

/// The names of the extended attributes, sorted. Security labels of the machine are left out.
pub(crate) fn xattr_names(path: impl AsRef<Path>) -> Vec<Vec<u8>> {
    let list = with_buffer(|buffer| rustix::fs::llistxattr(path.as_ref(), buffer));
    let list = list.expect("listxattr");
    let mut names: Vec<_> = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux")
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    names
}

/// renameat2(2).
pub(crate) fn rename2(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?)
}

/// mknod(2); `device` is (major, minor).
pub(crate) fn mknod(path: &Path, kind: FileType, mode: u32, device: (u32, u32)) -> io::Result<()> {
    let device = rustix::fs::makedev(device.0, device.1);
    Ok(rustix::fs::mknodat(
        CWD,
        path,
        kind,
        Mode::from_raw_mode(mode),
        device,
    )?)
}

/// chmod(2).
#[track_caller]
pub(crate) fn chmod(path: impl AsRef<Path>, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// utimensat(2) on the link itself; times are (seconds, nanoseconds).
pub(crate) fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(atime),
        last_modification: time(mtime),
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Runs `work` in a thread with another uid and gid and no other groups.
pub(crate) fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    in_thread(|| {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        set_thread_groups(&[]).expect("setgroups");
        set_thread_res_gid(gid, gid, gid).expect("setresgid");
        set_thread_res_uid(uid, uid, uid).expect("setresuid");
        work()
    })
}

/// Runs `work` in a thread with its own umask.
pub(crate) fn with_umask<T: Send>(mask: u32, work: impl FnOnce() -> T + Send) -> T {
    in_thread(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).expect("unshare(CLONE_FS)");
        rustix::process::umask(Mode::from_raw_mode(mask));
        work()
    })
}

fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(payload) => std::panic::resume_unwind(payload),
    })
}

/// The names in a directory as the kernel lists them, with `d_ino` and `d_type`, `.` and `..` too.
pub(crate) fn raw_dir(path: &Path) -> Vec<(Vec<u8>, u64, FileType)> {
    let dir = File::open(path).expect("open the directory");
    rustix::fs::Dir::read_from(&dir)
        .expect("a directory")
        .map(|entry| {
            let entry = entry.expect("an entry");
            (
                entry.file_name().to_bytes().to_vec(),
                entry.ino(),
                entry.file_type(),
            )
        })
        .collect()
}

/// A path whose last name is these bytes.
pub(crate) fn join_bytes(dir: &Path, name: &[u8]) -> std::path::PathBuf {
    dir.join(std::ffi::OsStr::from_bytes(name))
}

/// A path as text, for error messages and scripts; the tests' own paths are plain ASCII.
pub(crate) fn text(path: &Path) -> String {
    String::from_utf8(path.as_os_str().to_os_string().into_vec()).expect("an ASCII path")
}
