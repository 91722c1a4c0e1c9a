//! `user.containers.override_stat`: the owner, mode and type that an object would have if its
//! server could give them. podman's containers/storage reads and writes the same value:
//! `uid:gid:0mode` and, optionally, `:type`.

/// Name of the attribute.
pub const NAME: &str = "user.containers.override_stat";

/// Name of the attribute that fuse-overlayfs's `xattr_permissions=1` uses. The value is the same.
pub const PRIVILEGED_NAME: &str = "security.fuseoverlayfs.override_stat";

/// What the attribute says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub perm: u16,
    /// Type, where the object on the disk is of another.
    pub kind: Option<Kind>,
}

/// A type that the attribute can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names of inode(7)
pub enum Kind {
    File,
    Dir,
    Symlink,
    Pipe,
    Socket,
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

impl OverrideStat {
    /// Reads a value; `None` when it is malformed.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut parts = text.trim_end_matches('\0').split(':');
        let uid = id(parts.next()?)?;
        let gid = id(parts.next()?)?;
        let mode = u32::from_str_radix(parts.next()?, 8).ok()?;
        let kind = match parts.next() {
            None => None,
            Some(name) => Some(Kind::parse(name)?),
        };
        if parts.next().is_some() {
            return None;
        }
        Some(Self {
            uid,
            gid,
            perm: (mode & 0o7777) as u16,
            kind,
        })
    }

    /// Writes a value.
    pub fn format(&self) -> Vec<u8> {
        let mut text = format!("{}:{}:0{:o}", self.uid, self.gid, self.perm);
        if let Some(kind) = self.kind {
            text.push(':');
            text.push_str(&kind.format());
        }
        text.into_bytes()
    }
}

/// An owner or group. The highest number isn't one: chown(2) takes it for "leave it".
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

impl Kind {
    fn parse(name: &str) -> Option<Self> {
        let device = |numbers: &str| {
            let (major, minor) = numbers.split_once('-')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        Some(match name {
            "file" => Kind::File,
            "dir" => Kind::Dir,
            "symlink" => Kind::Symlink,
            "pipe" => Kind::Pipe,
            "socket" => Kind::Socket,
            _ => match name.split_once('-')? {
                ("char", numbers) => {
                    let (major, minor) = device(numbers)?;
                    Kind::Char { major, minor }
                }
                ("block", numbers) => {
                    let (major, minor) = device(numbers)?;
                    Kind::Block { major, minor }
                }
                _ => return None,
            },
        })
    }

    fn format(self) -> String {
        match self {
            Kind::File => "file".into(),
            Kind::Dir => "dir".into(),
            Kind::Symlink => "symlink".into(),
            Kind::Pipe => "pipe".into(),
            Kind::Socket => "socket".into(),
            Kind::Char { major, minor } => format!("char-{major}-{minor}"),
            Kind::Block { major, minor } => format!("block-{major}-{minor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_round_trip() {
        for text in [
            "0:0:0755",
            "33:4:04711:file",
            "0:5:0620:char-4-1",
            "0:6:0660:block-8-0",
        ] {
            let parsed = OverrideStat::parse(text.as_bytes()).unwrap();
            assert_eq!(parsed.format(), text.as_bytes());
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for text in [
            "",
            "0:0",
            "a:0:0755",
            "0:0:0999",
            "0:0:0755:door",
            "0:0:0755:file:x",
            "4294967295:0:0755",
            "0:4294967295:0755",
        ] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), None, "{text}");
        }
    }
}
