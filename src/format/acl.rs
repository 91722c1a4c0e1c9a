//! POSIX access control lists in the form of their extended attributes
//! (`linux/posix_acl_xattr.h`): a version word, then entries of tag, permissions and id, all
//! little-endian.

use std::ffi::OsStr;

/// Attribute of the list that is checked.
pub const ACCESS: &str = "system.posix_acl_access";
/// Attribute of the list that new objects in a directory inherit.
pub const DEFAULT: &str = "system.posix_acl_default";

/// Whether the attribute holds an ACL.
pub fn is_acl(name: &OsStr) -> bool {
    name == ACCESS || name == DEFAULT
}

const VERSION: u32 = 2;
const ENTRY_LEN: usize = 8;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new object gets from the default list of its directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Its permission bits.
    pub mode: u32,
    /// Its access list, as the value of [`ACCESS`]; `None` where the mode says it all.
    pub access: Option<Vec<u8>>,
}

/// Applies the default list `default` to an object that is made with `mode`, as
/// `posix_acl_create` does in the kernel: each class gets what both the list and the mode allow.
/// `None` when the value is malformed.
pub fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (version, entries) = default.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_LEN != 0 {
        return None;
    }
    let mut access = default.to_vec();
    let mut allowed = mode;
    let mut group_obj = None;
    let mut mask = None;
    let mut extended = false;
    for start in (4..access.len()).step_by(ENTRY_LEN) {
        let tag = u16::from_le_bytes([access[start], access[start + 1]]);
        match tag {
            USER_OBJ => allowed = meet(&mut access, start, allowed, 6),
            OTHER => allowed = meet(&mut access, start, allowed, 0),
            GROUP_OBJ => group_obj = Some(start),
            MASK => mask = Some(start),
            _ => extended = true,
        }
    }
    extended |= mask.is_some();
    // With a mask the group bits of the mode are the mask, without one the owning group's.
    allowed = meet(&mut access, mask.or(group_obj)?, allowed, 3);
    Some(Inherited {
        mode: allowed,
        access: extended.then_some(access),
    })
}

/// Takes from the entry at `start` what `mode` doesn't allow at `shift`, and from the mode what
/// the entry doesn't; returns the mode.
fn meet(acl: &mut [u8], start: usize, mode: u32, shift: u32) -> u32 {
    let at = start + 2;
    let permitted = u16::from_le_bytes([acl[at], acl[at + 1]]) & ((mode >> shift) & 0o7) as u16;
    acl[at..at + 2].copy_from_slice(&permitted.to_le_bytes());
    (mode & !(0o7 << shift)) | (u32::from(permitted) << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_minimal_list_is_only_a_mode() {
        let default = acl(&[(USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 0, !0)]);
        let inherited = inherit(&default, 0o666).unwrap();
        assert_eq!(
            inherited,
            Inherited {
                mode: 0o640,
                access: None
            }
        );
    }

    #[test]
    fn a_mask_takes_the_group_bits() {
        let default = acl(&[
            (USER_OBJ, 7, !0),
            (2, 7, 1000),
            (GROUP_OBJ, 7, !0),
            (MASK, 7, !0),
            (OTHER, 5, !0),
        ]);
        let inherited = inherit(&default, 0o640).unwrap();
        assert_eq!(inherited.mode, 0o640);
        let expected = acl(&[
            (USER_OBJ, 6, !0),
            (2, 7, 1000),
            (GROUP_OBJ, 7, !0),
            (MASK, 4, !0),
            (OTHER, 0, !0),
        ]);
        assert_eq!(inherited.access, Some(expected));
    }

    #[test]
    fn malformed_values_are_refused() {
        for bad in [&b""[..], &[2, 0, 0], &[1, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert_eq!(inherit(bad, 0o666), None);
        }
    }
}
