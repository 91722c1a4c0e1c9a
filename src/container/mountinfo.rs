//! The mount table, `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, unique as long as it is mounted.
    pub id: u32,
    /// The mount that it is mounted on.
    pub parent: u32,
    /// Where it is mounted, as seen from the reading process's root.
    pub point: PathBuf,
    /// Which part of the file system it shows.
    pub root: PathBuf,
    /// Options of this mount (`ro`, `nosuid`, …).
    pub options: OsString,
    /// Type of the file system, with its subtype (`fuse.sshfs`).
    pub fstype: OsString,
    /// Options of the file system.
    pub super_options: OsString,
}

impl Mount {
    /// Whether nothing can be written through it.
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || has(&self.super_options, "ro")
    }

    /// Whether the mount itself has this option.
    pub fn has_option(&self, name: &str) -> bool {
        has(&self.options, name)
    }
}

fn has(options: &OsStr, name: &str) -> bool {
    options
        .as_bytes()
        .split(|byte| *byte == b',')
        .any(|option| option == name.as_bytes())
}

/// The mounts of a mount namespace, in the kernel's order: a later one of two at one place is on
/// top.
#[derive(Debug, Clone, Default)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Those of the calling process.
    pub fn of_self() -> Result<Self> {
        Self::read(Path::new("/proc/self/mountinfo"))
    }

    /// Those in a file of this format.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).map_err(|error| {
            Error::system("reading the mount table")
                .at(file)
                .because(error.to_string())
        })?;
        Self::parse(&text).ok_or_else(|| {
            Error::system("reading the mount table")
                .at(file)
                .because("a line is not as proc_pid_mountinfo(5) describes it")
        })
    }

    fn parse(text: &[u8]) -> Option<Self> {
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(parse_line)
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }

    /// The mount with this number and everything mounted below it, parents first.
    pub fn subtree(&self, id: u32) -> Vec<&Mount> {
        let mut found: Vec<&Mount> = self.0.iter().filter(|mount| mount.id == id).collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|mount| mount.id) {
            let children = self
                .0
                .iter()
                .filter(|mount| mount.parent == parent && mount.id != parent);
            found.extend(children);
            next += 1;
        }
        found
    }

    /// The mounts below `root` (not on it) that a path look-up reaches, parents first. What is
    /// hidden under another mount, or can't be reached by this user, isn't among them.
    pub fn visible_below(&self, root: &Path) -> Vec<&Mount> {
        let mut found: Vec<&Mount> = self
            .0
            .iter()
            .filter(|mount| mount.point != root && mount.point.starts_with(root))
            .filter(|mount| mount_of(&mount.point) == Some(mount.id))
            .collect();
        found.sort_by(|a, b| a.point.cmp(&b.point));
        found
    }
}

/// The number of the mount that a path look-up of `path` ends in.
pub(super) fn mount_of(path: &Path) -> Option<u32> {
    use rustix::fs::{Mode, OFlags, open};
    let fd = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // Not statx: `mnt_id` came in Linux 5.8, this in 3.15.
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER_OPTIONS`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let _device = fields.next()?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let options = unescape(fields.next()?);
    fields.by_ref().find(|field| *field == b"-")?;
    let fstype = unescape(fields.next()?);
    let _source = fields.next()?;
    let super_options = unescape(fields.next()?);
    Some(Mount {
        id,
        parent,
        point: point.into(),
        root: root.into(),
        options,
        fstype,
        super_options,
    })
}

/// Undoes the kernel's `\ooo` (it writes space, tab, newline and backslash so).
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match octal(rest) {
            Some(decoded) => {
                out.push(decoded);
                rest = &rest[4..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = text else {
        return None;
    };
    Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
28 27 0:25 /a\\134b /mnt/with\\040space\\012 ro,nosuid - fuse.sshfs some\\040where rw,user_id=0
29 28 0:26 / /mnt/with\\040space\\012/in rw - tmpfs \xff rw
30 27 0:26 / /odd\xff rw - tmpfs t ro
";

    #[test]
    fn every_field_is_taken_as_bytes() {
        let mounts = Mounts::parse(TABLE).unwrap();
        let odd = mounts.iter().find(|mount| mount.id == 28).unwrap();
        assert_eq!(odd.parent, 27);
        assert_eq!(odd.point, Path::new("/mnt/with space\n"));
        assert_eq!(odd.root, Path::new("/a\\b"));
        assert_eq!(odd.fstype, "fuse.sshfs");
        assert!(odd.is_read_only() && odd.has_option("nosuid") && !odd.has_option("no"));
        let root = mounts.iter().find(|mount| mount.id == 27).unwrap();
        assert_eq!(root.fstype, "ext4");
        assert!(!root.is_read_only());
        let last = mounts.iter().last().unwrap();
        assert_eq!(last.point.as_os_str().as_bytes(), b"/odd\xff");
        assert!(last.is_read_only());
    }

    #[test]
    fn a_subtree_has_parents_first() {
        let mounts = Mounts::parse(TABLE).unwrap();
        let ids: Vec<u32> = mounts.subtree(27).iter().map(|mount| mount.id).collect();
        assert_eq!(ids, [27, 22, 28, 30, 29]);
    }

    #[test]
    fn a_short_line_is_refused() {
        assert!(Mounts::parse(b"22 27 0:21 / /proc rw - proc\n").is_none());
        assert!(Mounts::parse(b"x\n").is_none());
    }

    #[test]
    fn this_machine_has_a_proc() {
        let mounts = Mounts::of_self().unwrap();
        let below = mounts.visible_below(Path::new("/"));
        assert!(below.iter().any(|mount| mount.point == Path::new("/proc")));
        assert!(below.iter().all(|mount| mount.point != Path::new("/")));
    }
}
