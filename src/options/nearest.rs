//! Which of our options somebody may have meant.

/// The options that change what a mount is. Passing over a misspelt one would give another mount
/// than was wanted.
const NAMES: &[&str] = &[
    "lowerdir",
    "upperdir",
    "workdir",
    "redirect_dir",
    "metacopy",
    "index",
    "nfs_export",
    "userxattr",
    "volatile",
    "default_permissions",
    "allow_other",
    "uidmapping",
    "gidmapping",
    "squash_to_root",
    "squash_to_uid",
    "squash_to_gid",
    "xattr_permissions",
    "static_nlink",
    "noxattrs",
    "noacl",
    "nosuid",
    "noexec",
    "nodev",
    "timeout",
    "passthrough",
];

/// One of our options that differs from `name` by one letter, or by two that changed places.
pub(super) fn nearest(name: &[u8]) -> Option<&'static str> {
    let near = |known: &&&str| is_near(name, known.as_bytes());
    NAMES.iter().find(near).copied()
}

/// Whether two words differ by one letter, or by two that changed places.
pub(crate) fn is_near(one: &[u8], two: &[u8]) -> bool {
    let same = |mut pairs: std::iter::Zip<std::slice::Iter<'_, u8>, std::slice::Iter<'_, u8>>| {
        pairs.all(|(a, b)| a == b)
    };
    let start = one.iter().zip(two).take_while(|(a, b)| a == b).count();
    let (one, two) = (&one[start..], &two[start..]);
    let rests = |a: usize, b: usize| {
        one.len() >= a
            && two.len() >= b
            && one.len() - a == two.len() - b
            && same(one[a..].iter().zip(&two[b..]))
    };
    let changed_places = one.len() > 1 && two.len() > 1 && one[0] == two[1] && one[1] == two[0];
    one != two && (rests(1, 1) || rests(1, 0) || rests(0, 1) || changed_places && rests(2, 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    #[test]
    fn one_slip_is_found_and_two_are_not() {
        for (slip, meant) in [
            ("lowerdi", "lowerdir"),
            ("lowerdirs", "lowerdir"),
            ("lowredir", "lowerdir"),
            ("squash_to_rot", "squash_to_root"),
            ("volatyle", "volatile"),
            ("ypperdir", "upperdir"),
        ] {
            assert_eq!(nearest(slip.as_bytes()), Some(meant), "{slip}");
        }
        for other in ["", "x", "lazytime", "lowerdir", "dir", "workspace", "exec"] {
            assert_eq!(nearest(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn all_of_them_are_options() {
        for name in NAMES {
            let string = format!("lowerdir=/a,{name}");
            if let Err(error) = Options::parse(string.as_ref()) {
                assert!(!error.to_string().contains("unknown"), "{error}");
            }
        }
    }
}
