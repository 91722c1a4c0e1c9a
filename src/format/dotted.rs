//! The fallback form of a layer, for file systems that can't hold the kernel's: names that begin
//! with `.wh.` say what devices and attributes can't (the form of aufs and of image layers).
//!
//! `.wh.NAME`, an empty file, hides `NAME` of the layers below; an object `NAME` beside it is shown
//! all the same. Where that would be longer than names may be, a symbolic link
//! `.wh..wh.long.DIGEST` to `NAME` hides it. `.wh..wh..opq` in a directory hides all that is below
//! it. All other names with that beginning are nobody's.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::XattrNamespace;

/// In which form a layer says what it hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The kernel's: 0:0 devices and attributes.
    Kernel,
    /// The fallback: names that begin with `.wh.`.
    Dotted,
}

/// Beginning of the names that mean something.
const PREFIX: &[u8] = b".wh.";
/// Beginning of a name that hides a long one, before the digest of that.
const LONG: &[u8] = b".wh..wh.long.";
/// In a directory: it hides the lower ones.
pub const OPAQUE: &str = ".wh..wh..opq";
/// In a layer's root: the layer has this form.
pub const MARK: &str = ".wh..wh.overfall";
/// In a layer's root instead of [`MARK`]: the layer is being brought to the kernel's form, and is
/// in neither.
pub const UPGRADING: &str = ".wh..wh.overfall-upgrade";
/// In a layer's root: what a conversion without a work directory builds.
pub const SCRATCH: &str = ".wh..wh.overfall-work";
/// Name in `work/incompat` that keeps the kernel's overlay from mounting the upper.
pub const FEATURE: &str = "overfall-dotted";

/// What a name in a layer of this form is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// An object's.
    Plain,
    /// It hides this name of the layers below.
    Whiteout(&'a OsStr),
    /// It hides the name that it is a link to.
    LongWhiteout,
    /// Not an object's, and no whiteout.
    Reserved,
}

/// What a name in a layer of this form is.
pub fn read(name: &OsStr) -> Name<'_> {
    match name.as_bytes().strip_prefix(PREFIX) {
        None => Name::Plain,
        Some(b"" | b"." | b"..") => Name::Reserved,
        Some(_) if name.as_bytes().starts_with(LONG) => Name::LongWhiteout,
        Some(hidden) if hidden.starts_with(PREFIX) => Name::Reserved,
        Some(hidden) => Name::Whiteout(OsStr::from_bytes(hidden)),
    }
}

/// What hides a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whiteout {
    /// An empty file of this name.
    File(OsString),
    /// A link of this name, to the name that it hides.
    Link(OsString),
}

impl Whiteout {
    /// What it is called.
    pub fn name(&self) -> &OsStr {
        match self {
            Whiteout::File(name) | Whiteout::Link(name) => name,
        }
    }
}

/// What hides `name`; none for a name that begins as the form's own do, which can't be hidden.
pub fn whiteout_of(name: &OsStr) -> Option<Whiteout> {
    const NAME_MAX: usize = 255;
    let name = name.as_bytes();
    if name.starts_with(PREFIX) {
        return None;
    }
    let bytes = |bytes: &[u8]| OsStr::from_bytes(bytes).to_os_string();
    if PREFIX.len() + name.len() <= NAME_MAX {
        return Some(Whiteout::File(bytes(&[PREFIX, name].concat())));
    }
    let digest = Sha256::digest(name);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Whiteout::Link(bytes(&[LONG, digits.as_bytes()].concat())))
}

/// What [`MARK`] says: where the layer's other attributes are, so that a conversion writes to the
/// same place.
pub fn format_mark(namespace: XattrNamespace) -> &'static [u8] {
    match namespace {
        XattrNamespace::User => b"user\n",
        XattrNamespace::Trusted => b"trusted\n",
    }
}

/// Reads what [`format_mark`] wrote; `None` for anything else.
pub fn parse_mark(value: &[u8]) -> Option<XattrNamespace> {
    [XattrNamespace::User, XattrNamespace::Trusted]
        .into_iter()
        .find(|namespace| format_mark(*namespace) == value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_names_are_neither_objects_nor_whiteouts() {
        for name in [OPAQUE, MARK, UPGRADING, SCRATCH, ".wh.", ".wh..", ".wh..."] {
            assert_eq!(read(OsStr::new(name)), Name::Reserved, "{name}");
            assert_eq!(whiteout_of(OsStr::new(name)), None);
        }
        for name in ["wh.x", ".whx", ".w", "x.wh.x", ".WH.x"] {
            assert_eq!(read(OsStr::new(name)), Name::Plain, "{name}");
        }
    }

    #[test]
    fn a_name_that_leaves_no_room_for_the_prefix_has_a_link() {
        let name = |length| OsString::from("n".repeat(length));
        let hides = |length| whiteout_of(&name(length)).unwrap();
        assert!(matches!(hides(251), Whiteout::File(name) if name.len() == 255));
        assert!(matches!(hides(252), Whiteout::Link(_)));
        assert_eq!(read(hides(252).name()), Name::LongWhiteout);
        assert_ne!(hides(252), hides(253));
    }

    #[test]
    fn a_mark_says_where_the_attributes_are() {
        for namespace in [XattrNamespace::User, XattrNamespace::Trusted] {
            assert_eq!(parse_mark(format_mark(namespace)), Some(namespace));
        }
        assert_eq!(parse_mark(b""), None);
        assert_eq!(parse_mark(b"user"), None);
    }

    proptest! {
        #[test]
        fn what_hides_a_name_says_which(name in prop::collection::vec(1_u8.., 1..255)) {
            let name = OsStr::from_bytes(&name);
            prop_assume!(name != "." && name != "..");
            if let Some(Whiteout::File(hiding)) = whiteout_of(name) {
                prop_assert_eq!(read(&hiding), Name::Whiteout(name));
            }
        }
    }
}
