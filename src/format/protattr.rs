//! The value of `protattr`: an upper file or directory is append-only or immutable in the merged
//! tree, while the real one is neither (`ovl_check_protattr` in the kernel's `fs/overlayfs/util.c`).

/// What is forbidden at an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protection {
    /// `chattr +a`: nothing but appending.
    pub append_only: bool,
    /// `chattr +i`: nothing at all.
    pub immutable: bool,
}

/// `FS_APPEND_FL` and `FS_IMMUTABLE_FL` of ioctl_iflags(2).
const APPEND_FLAG: u32 = 0x20;
const IMMUTABLE_FLAG: u32 = 0x10;
/// `FS_XFLAG_APPEND` and `FS_XFLAG_IMMUTABLE` of `struct fsxattr`.
const APPEND_XFLAG: u32 = 0x10;
const IMMUTABLE_XFLAG: u32 = 0x8;

impl Protection {
    /// Neither.
    pub const NONE: Self = Self {
        append_only: false,
        immutable: false,
    };

    /// Whether anything is forbidden.
    pub fn is_any(self) -> bool {
        self != Self::NONE
    }

    /// Reads the attribute's value; `None` for one that the kernel takes for no value at all.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut found = Self::NONE;
        for letter in value {
            match letter {
                b'a' => found.append_only = true,
                b'i' => found.immutable = true,
                _ => return None,
            }
        }
        (!value.is_empty()).then_some(found)
    }

    /// The attribute's value; empty where there should be no attribute.
    pub fn value(self) -> &'static [u8] {
        match (self.append_only, self.immutable) {
            (false, false) => b"",
            (true, false) => b"a",
            (false, true) => b"i",
            (true, true) => b"ai",
        }
    }

    /// Takes the two out of inode flags (`FS_*_FL`).
    pub fn take_from_flags(flags: &mut u32) -> Self {
        Self::take(flags, APPEND_FLAG, IMMUTABLE_FLAG)
    }

    /// Takes the two out of `fsx_xflags`.
    pub fn take_from_xflags(flags: &mut u32) -> Self {
        Self::take(flags, APPEND_XFLAG, IMMUTABLE_XFLAG)
    }

    /// Adds the two to inode flags (`FS_*_FL`).
    pub fn add_to_flags(self, flags: &mut u32) {
        self.add(flags, APPEND_FLAG, IMMUTABLE_FLAG);
    }

    /// Adds the two to `fsx_xflags`.
    pub fn add_to_xflags(self, flags: &mut u32) {
        self.add(flags, APPEND_XFLAG, IMMUTABLE_XFLAG);
    }

    fn take(flags: &mut u32, append: u32, immutable: u32) -> Self {
        let found = Self {
            append_only: *flags & append != 0,
            immutable: *flags & immutable != 0,
        };
        *flags &= !(append | immutable);
        found
    }

    fn add(self, flags: &mut u32, append: u32, immutable: u32) {
        if self.append_only {
            *flags |= append;
        }
        if self.immutable {
            *flags |= immutable;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for append_only in [false, true] {
            for immutable in [false, true] {
                let all = Protection {
                    append_only,
                    immutable,
                };
                let read = Protection::parse(all.value());
                assert_eq!(read.unwrap_or_default(), all);
                let mut flags = 0x8_0000;
                all.add_to_flags(&mut flags);
                assert_eq!(Protection::take_from_flags(&mut flags), all);
                assert_eq!(flags, 0x8_0000);
            }
        }
    }

    #[test]
    fn what_the_kernel_does_not_take() {
        for value in [&b""[..], b"x", b"ax", b"a\0"] {
            assert_eq!(Protection::parse(value), None, "{value:?}");
        }
        let both = Protection::parse(b"iia");
        assert_eq!(both.map(Protection::value), Some(&b"ai"[..]));
    }
}
