//! `/proc/self/mountinfo`: what is mounted in this namespace.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
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
    /// Where it is mounted.
    pub(crate) target: PathBuf,
    /// The file system's type, with a FUSE subtype: `ext4`, `fuse.overfall`.
    pub(crate) kind: String,
    /// The options of the file system, as shown, without the octal escapes.
    pub(crate) super_options: Vec<Vec<u8>>,
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
    let target = PathBuf::from(OsString::from_vec(plain(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(&plain(fields.next()?)).into_owned();
    let super_options = fields
        .nth(1)?
        .split(|&byte| byte == b',')
        .map(plain)
        .collect();
    Some(Mount {
        id,
        parent,
        device,
        target,
        kind,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields() {
        let line = br"44 27 0:39 / /tmp/a\040b rw,relatime shared:1 - overlay none rw,lowerdir=e\134:x:l,upperdir=c\134\054y";
        let mount = parse(line).expect("a line of mountinfo");
        assert_eq!((mount.id, mount.parent), (44, 27));
        assert_eq!(mount.device, (0, 39));
        assert_eq!(mount.target, PathBuf::from("/tmp/a b"));
        assert_eq!(mount.kind, "overlay");
        assert_eq!(
            mount.super_options,
            [&b"rw"[..], br"lowerdir=e\:x:l", br"upperdir=c\,y"]
        );
    }

    #[test]
    fn other_lines_are_left_out() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 0:1 / /x rw"), None);
    }
}
