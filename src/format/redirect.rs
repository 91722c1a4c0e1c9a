//! The value of `redirect`: by what name the lower layers have a directory, or the data of a file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Longest path that is written (`redirect_max` of the kernel's module). Longer ones are read.
pub const PATH_MAX: usize = 256;

/// Another name in the lower layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// In the same directory.
    Name(OsString),
    /// From the layer's root: the names on the way, at least one.
    Path(Vec<OsString>),
}

/// A value that means nothing; the kernel answers `EINVAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl Redirect {
    /// Reads a value. The kernel takes it for a C string: it ends at the first NUL.
    pub fn parse(value: &[u8]) -> Result<Self, Malformed> {
        if value.is_empty() {
            return Err(Malformed);
        }
        let end = value
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(value.len());
        let value = &value[..end];
        let Some(path) = value.strip_prefix(b"/") else {
            return if value.contains(&b'/') {
                Err(Malformed)
            } else {
                Ok(Redirect::Name(OsStr::from_bytes(value).to_os_string()))
            };
        };
        let names = path.split(|byte| *byte == b'/').map(|name| {
            if name.is_empty() {
                Err(Malformed)
            } else {
                Ok(OsStr::from_bytes(name).to_os_string())
            }
        });
        Ok(Redirect::Path(names.collect::<Result<_, _>>()?))
    }

    /// Writes a value; `None` where it would be too long.
    pub fn format(&self) -> Option<Vec<u8>> {
        match self {
            Redirect::Name(name) => Some(name.clone().into_vec()),
            Redirect::Path(names) => {
                let mut value = Vec::new();
                for name in names {
                    value.push(b'/');
                    value.extend_from_slice(name.as_bytes());
                }
                (value.len() <= PATH_MAX).then_some(value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_that_the_kernel_wrote() {
        assert_eq!(Redirect::parse(b"r1"), Ok(Redirect::Name("r1".into())));
        let path = Redirect::Path(vec!["r2".into(), "in".into()]);
        assert_eq!(Redirect::parse(b"/r2/in"), Ok(path));
    }

    #[test]
    fn what_the_kernel_refuses() {
        for value in [&b""[..], b"/", b"/a//b", b"/a/", b"a/b", b"//"] {
            assert_eq!(Redirect::parse(value), Err(Malformed), "{value:?}");
        }
    }

    #[test]
    fn a_value_ends_at_a_nul() {
        assert_eq!(
            Redirect::parse(b"old\0a/b"),
            Ok(Redirect::Name("old".into()))
        );
        assert_eq!(Redirect::parse(b"\0"), Ok(Redirect::Name("".into())));
    }

    #[test]
    fn a_path_of_more_than_256_bytes_is_not_written() {
        let path = |length: usize| Redirect::Path(vec![OsString::from("x".repeat(length - 1))]);
        assert!(path(256).format().is_some());
        assert_eq!(path(257).format(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(redirect) = Redirect::parse(&value) {
                let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                prop_assert_eq!(redirect.format().unwrap(), &value[..end]);
            }
        }
    }
}
