//! Bytes for a digest: fields with names, so that no two different sequences give the same bytes.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Fields one after the other.
#[derive(Debug)]
pub(super) struct Contents(Vec<u8>);

impl Contents {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn field(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.extend((part.len() as u64).to_le_bytes());
            self.0.extend(part);
        }
    }

    pub(super) fn path(&mut self, name: &str, path: &Path) {
        self.field(name, path.as_os_str().as_bytes());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_between_fields_count() {
        let mut one = Contents::new();
        one.field("a", b"bc");
        let mut other = Contents::new();
        other.field("ab", b"c");
        assert_ne!(one.bytes(), other.bytes());
    }
}
