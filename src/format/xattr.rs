//! Names of the overlay's own attributes, and how they are kept apart from the user's.
//!
//! What a user sets under the overlay's own prefix is stored one level deeper
//! (`user.overlay.x` as `user.overlay.overlay.x`), so that overlays can be nested; see "Nesting
//! overlayfs mounts" in the kernel's document.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Longest name of an attribute (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;

/// Under which prefix an overlay keeps its attributes. A mount honours exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XattrNamespace {
    /// `user.overlay.`: without privilege, or with `userxattr`.
    User,
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
}

/// What a name in a listing is to the user of the merged tree.
#[derive(Debug, PartialEq, Eq)]
pub enum Visible<'a> {
    /// An attribute of the user's, under this name.
    As(Cow<'a, OsStr>),
    /// The overlay's own.
    Hidden,
}

/// Whether an attribute protects what it is on, so that a copy without it would be an error:
/// capabilities, labels, access control lists.
pub(crate) fn is_guard(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"security.") || name.starts_with(b"system.posix_acl_")
}

impl XattrNamespace {
    fn prefix(self) -> &'static [u8] {
        match self {
            XattrNamespace::User => b"user.overlay.",
            XattrNamespace::Trusted => b"trusted.overlay.",
        }
    }

    /// `opaque` on a directory.
    pub fn opaque(self) -> &'static OsStr {
        self.pick("user.overlay.opaque", "trusted.overlay.opaque")
    }

    /// `whiteout` on an empty regular file of a lower layer.
    pub fn whiteout(self) -> &'static OsStr {
        self.pick("user.overlay.whiteout", "trusted.overlay.whiteout")
    }

    /// `origin` on a copied-up object.
    pub fn origin(self) -> &'static OsStr {
        self.pick("user.overlay.origin", "trusted.overlay.origin")
    }

    /// `impure` on an upper directory.
    pub fn impure(self) -> &'static OsStr {
        self.pick("user.overlay.impure", "trusted.overlay.impure")
    }

    /// `redirect` on a directory or metacopy file.
    pub fn redirect(self) -> &'static OsStr {
        self.pick("user.overlay.redirect", "trusted.overlay.redirect")
    }

    /// `metacopy` on a regular file without data.
    pub fn metacopy(self) -> &'static OsStr {
        self.pick("user.overlay.metacopy", "trusted.overlay.metacopy")
    }

    /// `protattr` on an upper file or directory.
    pub fn protattr(self) -> &'static OsStr {
        self.pick("user.overlay.protattr", "trusted.overlay.protattr")
    }

    /// `nlink` on an indexed file.
    pub fn nlink(self) -> &'static OsStr {
        self.pick("user.overlay.nlink", "trusted.overlay.nlink")
    }

    /// `upper` on the index directory.
    pub fn upper(self) -> &'static OsStr {
        self.pick("user.overlay.upper", "trusted.overlay.upper")
    }

    /// `uuid` on the upper layer's root.
    pub fn uuid(self) -> &'static OsStr {
        self.pick("user.overlay.uuid", "trusted.overlay.uuid")
    }

    fn pick(self, user: &'static str, trusted: &'static str) -> &'static OsStr {
        OsStr::new(match self {
            XattrNamespace::User => user,
            XattrNamespace::Trusted => trusted,
        })
    }

    /// Whether an attribute as stored is the overlay's own, not a user's escaped one.
    pub fn is_private(self, stored: &OsStr) -> bool {
        matches!(self.show(stored), Visible::Hidden)
    }

    /// The name under which the user's attribute `name` is stored; `None` when the escaped name
    /// would be too long.
    pub fn store(self, name: &OsStr) -> Option<Cow<'_, OsStr>> {
        let Some(rest) = name.as_bytes().strip_prefix(self.prefix()) else {
            return Some(Cow::Borrowed(name));
        };
        let escaped = [self.prefix(), b"overlay.", rest].concat();
        (escaped.len() <= NAME_MAX).then(|| Cow::Owned(OsString::from_vec(escaped)))
    }

    /// What the stored attribute `stored` is to the user.
    pub fn show(self, stored: &OsStr) -> Visible<'_> {
        let Some(rest) = stored.as_bytes().strip_prefix(self.prefix()) else {
            return Visible::As(Cow::Borrowed(stored));
        };
        match rest.strip_prefix(b"overlay.") {
            Some(own) => Visible::As(Cow::Owned(OsString::from_vec(
                [self.prefix(), own].concat(),
            ))),
            None => Visible::Hidden,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_attributes_are_hidden_and_foreign_ones_shown() {
        let user = XattrNamespace::User;
        assert!(user.is_private(OsStr::new("user.overlay.opaque")));
        assert!(!user.is_private(OsStr::new("trusted.overlay.opaque")));
        assert!(!user.is_private(OsStr::new("user.overlay.overlay.opaque")));
        assert!(!user.is_private(OsStr::new("user.mime_type")));
        assert!(XattrNamespace::Trusted.is_private(OsStr::new("trusted.overlay.origin")));
    }

    #[test]
    fn an_escaped_name_that_grows_too_long_is_refused() {
        let name = OsString::from(format!("user.overlay.{}", "x".repeat(240)));
        assert_eq!(XattrNamespace::User.store(&name), None);
    }

    proptest! {
        #[test]
        fn what_is_stored_is_shown_again(name in "(user|trusted)\\.(overlay\\.){0,3}[a-z]{1,9}") {
            for namespace in [XattrNamespace::User, XattrNamespace::Trusted] {
                let name = OsStr::new(&name);
                let stored = namespace.store(name).unwrap();
                prop_assert_eq!(namespace.show(&stored), Visible::As(Cow::Borrowed(name)));
            }
        }
    }
}
