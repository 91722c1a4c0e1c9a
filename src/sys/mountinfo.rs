//! `/proc/PID/mountinfo`: what is mounted in a namespace (proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Number of the mount.
    pub(crate) id: u64,
    /// Number of the mount it lies on.
    pub(crate) parent: u64,
    /// Major and minor number of the file system's device (`st_dev`).
    pub(crate) device: (u32, u32),
    /// Which part of the file system it shows.
    pub(crate) root: PathBuf,
    /// Where it is mounted, as seen from the process's root.
    pub(crate) point: PathBuf,
    /// Options of this mount (`ro`, `nosuid`, …), separated by commas.
    pub(crate) options: OsString,
    /// The file system's type, with a FUSE subtype: `ext4`, `fuse.overfall`.
    pub(crate) fstype: OsString,
    /// What was mounted, or whatever its mounter called it.
    pub(crate) source: OsString,
    /// The options of the file system, as shown, without the octal escapes.
    pub(crate) super_options: Vec<Vec<u8>>,
}

impl Mount {
    /// Whether nothing can be written through it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.super_options.iter().any(|option| option == b"ro")
    }

    /// Whether the mount itself has this option.
    pub(crate) fn has_option(&self, name: &str) -> bool {
        self.options
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|option| option == name.as_bytes())
    }
}

/// The mounts that this process sees, in the order of the kernel's list. Lines that don't look
/// like mountinfo are left out.
pub(crate) fn read() -> std::io::Result<Vec<Mount>> {
    Ok(table(&std::fs::read("/proc/self/mountinfo")?))
}

/// As [`read`], from the text of some process's mountinfo.
pub(crate) fn table(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse)
        .collect()
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let number = |field: Option<&[u8]>| std::str::from_utf8(field?).ok()?.parse().ok();
    let id = number(fields.next())?;
    let parent = number(fields.next())?;
    let device = parse_device(fields.next()?)?;
    let root = PathBuf::from(OsString::from_vec(plain(fields.next()?)));
    let point = PathBuf::from(OsString::from_vec(plain(fields.next()?)));
    let options = OsStr::from_bytes(fields.next()?).to_os_string();
    fields.find(|field| *field == b"-")?;
    let fstype = OsString::from_vec(plain(fields.next()?));
    let source = OsString::from_vec(plain(fields.next()?));
    let super_options = fields
        .next()?
        .split(|&byte| byte == b',')
        .map(plain)
        .collect();
    Some(Mount {
        id,
        parent,
        device,
        root,
        point,
        options,
        fstype,
        source,
        super_options,
    })
}

/// `MAJOR:MINOR`.
fn parse_device(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Takes the octal escapes (`\040` for a space) away.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let code = match field.get(at..at + 4) {
            Some([b'\\', digits @ ..]) => std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        match code {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    out
}

/// A table with whatever makes a line hard to read.
#[cfg(test)]
pub(crate) const EXAMPLE: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
28 27 0:25 /a\\134b /mnt/with\\040space\\012 ro,nosuid - fuse.sshfs some\\040where rw,user_id=0
29 28 0:26 / /mnt/with\\040space\\012/in rw - tmpfs \xff rw
30 27 0:26 / /odd\xff rw - tmpfs t ro
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields() {
        let line = br"44 27 0:39 / /tmp/a\040b rw,relatime shared:1 - overlay none rw,lowerdir=e\134:x:l,upperdir=c\134\054y";
        let mount = parse(line).expect("a line of mountinfo");
        assert_eq!((mount.id, mount.parent), (44, 27));
        assert_eq!(mount.device, (0, 39));
        assert_eq!(mount.root, PathBuf::from("/"));
        assert_eq!(mount.point, PathBuf::from("/tmp/a b"));
        assert!(mount.has_option("relatime") && !mount.has_option("rel"));
        assert!(!mount.is_read_only());
        assert_eq!(mount.fstype, "overlay");
        assert_eq!(mount.source, "none");
        assert_eq!(
            mount.super_options,
            [&b"rw"[..], br"lowerdir=e\:x:l", br"upperdir=c\,y"]
        );
    }

    #[test]
    fn every_field_is_taken_as_bytes() {
        let mounts = table(EXAMPLE);
        let odd = mounts.iter().find(|mount| mount.id == 28).unwrap();
        assert_eq!(odd.parent, 27);
        assert_eq!(odd.point, std::path::Path::new("/mnt/with space\n"));
        assert_eq!(odd.root, std::path::Path::new("/a\\b"));
        assert_eq!(odd.fstype, "fuse.sshfs");
        assert!(odd.is_read_only() && odd.has_option("nosuid") && !odd.has_option("no"));
        let root = mounts.iter().find(|mount| mount.id == 27).unwrap();
        assert_eq!(root.fstype, "ext4");
        assert!(!root.is_read_only());
        let last = mounts.last().unwrap();
        assert_eq!(last.point.as_os_str().as_bytes(), b"/odd\xff");
        assert!(last.is_read_only());
    }

    #[test]
    fn other_lines_are_left_out() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 0:1 / /x rw"), None);
    }
}
