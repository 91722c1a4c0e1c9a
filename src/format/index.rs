//! The index of hard links: what its entries are called, and the link count kept on them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The name of the entry for the lower object with this `origin` value: its bytes in hexadecimal.
pub fn entry_name(origin: &[u8]) -> OsString {
    let digits = origin.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<String>().into()
}

/// The `origin` value that an entry's name stands for; `None` for another name.
pub fn origin_of(name: &OsStr) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = name.as_bytes().as_chunks::<2>();
    if !rest.is_empty() || pairs.is_empty() {
        return None;
    }
    let bytes = pairs.iter().map(|[high, low]| {
        let value = digit(*high)? << 4 | digit(*low)?;
        u8::try_from(value).ok()
    });
    bytes.collect()
}

/// The value of `nlink`: how many names an indexed file has in the merged tree, more or fewer than
/// one of its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Than the upper one, whose names include the entry of the index.
    Upper(i32),
    /// Than the lower one: while the upper one gets a name.
    Lower(i32),
}

impl Links {
    /// Reads a value; `None` when it is malformed.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let number = |text: &str| {
            let signed = text.starts_with(['+', '-']);
            signed.then(|| text.parse().ok()).flatten()
        };
        if let Some(rest) = text.strip_prefix('U') {
            number(rest).map(Links::Upper)
        } else {
            text.strip_prefix('L').and_then(number).map(Links::Lower)
        }
    }

    /// Writes a value.
    pub fn format(self) -> Vec<u8> {
        match self {
            Links::Upper(more) => format!("U{more:+}").into_bytes(),
            Links::Lower(more) => format!("L{more:+}").into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_that_the_kernel_wrote() {
        assert_eq!(Links::parse(b"U+0"), Some(Links::Upper(0)));
        assert_eq!(Links::parse(b"U-1"), Some(Links::Upper(-1)));
        assert_eq!(Links::Lower(3).format(), b"L+3");
        for bad in ["", "U", "U1", "X+1", "U+", "U+x", "U+99999999999"] {
            assert_eq!(Links::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn other_names_stand_for_nothing() {
        for bad in ["", "0", "0g", "#12", "junk"] {
            assert_eq!(origin_of(OsStr::new(bad)), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_stands_for_what_it_was_made_of(value in prop::collection::vec(any::<u8>(), 1..60)) {
            prop_assert_eq!(origin_of(&entry_name(&value)), Some(value));
        }

        #[test]
        fn what_is_written_is_read(more: i32) {
            for links in [Links::Upper(more), Links::Lower(more)] {
                prop_assert_eq!(Links::parse(&links.format()), Some(links));
            }
        }
    }
}
