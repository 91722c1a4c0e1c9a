//! What a layer is known by.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// What a layer is known by: 32 bytes (SHA-256).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// How many bytes of a digest are in the name of its directory: enough that two never meet.
const IN_NAME: usize = 15;

impl Digest {
    /// Of some bytes: of what a stack begins with.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_all(&[bytes])
    }

    /// Of this one followed by `bytes`: the digest of the layer that a step makes on this one.
    #[must_use]
    pub fn then(self, bytes: &[u8]) -> Self {
        Self::of_all(&[&self.0, bytes])
    }

    pub(super) fn of_all(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// Reads what `Display` wrote: 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The name of the layer's directory: 24 letters and digits.
    pub(super) fn name(self) -> String {
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let groups = self.0[..IN_NAME].chunks(5);
        groups
            .flat_map(|group| {
                let bits = group
                    .iter()
                    .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
                (0..8)
                    .rev()
                    .map(move |at| char::from(LETTERS[(bits >> (5 * at) & 31) as usize]))
            })
            .collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sha256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::parse(empty), Some(Digest::of(b"")));
        assert_eq!(Digest::parse(&empty[1..]), None);
        assert_eq!(Digest::parse(&"ü".repeat(32)), None);
    }

    #[test]
    fn the_chain_counts() {
        let [a, b] = [b"a", b"b"].map(|bytes| Digest::of(bytes));
        assert_ne!(a.then(b"b"), b.then(b"a"));
        assert_ne!(a.then(b"b"), a.then(b"bb"));
        assert_eq!(a.then(b"b"), Digest::of(b"a").then(b"b"));
    }

    #[test]
    fn names_are_short_and_plain() {
        let name = Digest::of(b"").name();
        assert_eq!(name.len(), 24);
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(name, Digest::of(b"x").name());
        // The first 5 bits of e3: 11100.
        assert!(name.starts_with('4'));
    }
}
