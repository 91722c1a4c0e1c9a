//! What is known about the machine beside the trial: it explains a failure, and decides nothing.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// The running kernel, for the report only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// As `uname -v` says.
    pub version: String,
}

impl Kernel {
    /// The running one.
    pub fn current() -> Self {
        let name = rustix::system::uname();
        Self {
            release: name.release().to_string_lossy().into_owned(),
            version: name.version().to_string_lossy().into_owned(),
        }
    }
}

/// The number in a file under /proc/sys; `None` where there is no such switch.
pub(super) fn sysctl(name: &str) -> Option<i64> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether a seccomp filter judges this process's system calls.
pub(super) fn has_seccomp_filter() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|text| {
        text.lines()
            .filter_map(|line| line.strip_prefix("Seccomp:"))
            .any(|mode| mode.trim() == "2")
    })
}

/// Whether SELinux is there and denies.
pub(super) fn selinux_enforces() -> bool {
    fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1")
}

/// Whether the kernel knows user namespaces at all.
pub(super) fn has_user_namespaces() -> bool {
    Path::new("/proc/self/ns/user").exists()
}

/// File systems that matter to an overlay, by the number in `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileSystem {
    Overlay,
    /// One that the kernel doesn't take as an upper layer.
    NoUpper,
    Other,
}

impl FileSystem {
    pub(super) fn of(path: &Path) -> Self {
        // The numbers of linux/magic.h.
        const OVERLAY: u32 = 0x794c_7630;
        const NO_UPPER: &[u32] = &[
            0x6969,      // NFS
            0x6573_5546, // FUSE
            0xf15f,      // eCryptfs
            0x0102_1997, // 9P
            0xff53_4d42, // CIFS
            0xfe53_4d42, // SMB2
            0x517b,      // SMB
            0x00c3_6400, // Ceph
            0x5346_414f, // AFS
            0x4d44,      // FAT
            0x2011_bab0, // exFAT
        ];
        let Ok(stat) = rustix::fs::statfs(path) else {
            return Self::Other;
        };
        // The field is a word of another width on other machines; the numbers have 32 bits.
        match stat.f_type as u32 {
            OVERLAY => Self::Overlay,
            number if NO_UPPER.contains(&number) => Self::NoUpper,
            _ => Self::Other,
        }
    }
}
