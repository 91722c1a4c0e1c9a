//! The value of `origin`: the file handle of the lower object that an upper one was copied from
//! (`struct ovl_fb` in the kernel's `fs/overlayfs/overlayfs.h`).

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const HEADER_LEN: usize = 21;
const BIG_ENDIAN: u8 = 1;
const ANY_ENDIAN: u8 = 2;
const PATH_UPPER: u8 = 4;
const KNOWN_FLAGS: u8 = 0b111;
const OUR_ENDIAN: u8 = if cfg!(target_endian = "big") {
    BIG_ENDIAN
} else {
    0
};

/// Identity of a file system.
pub type Uuid = [u8; 16];

/// A lower object, wherever it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its file system.
    pub uuid: Uuid,
    /// The handle's type, which its file system chose (name_to_handle_at(2)).
    pub handle_type: u8,
    /// The handle; only its file system knows what it means.
    pub handle: Vec<u8>,
}

impl Origin {
    /// Reads a value; `None` where it doesn't say from where ("origin unknown"), or is malformed,
    /// or was written by a machine of the other byte order.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (header, rest) = value.split_first_chunk::<HEADER_LEN>()?;
        let [version, magic, len, flags, handle_type, uuid @ ..] = header;
        let handle_len = usize::from(*len).checked_sub(HEADER_LEN)?;
        // A later version would say something else.
        let known = *version == VERSION && *magic == MAGIC && flags & !KNOWN_FLAGS == 0;
        let readable = flags & ANY_ENDIAN != 0 || flags & BIG_ENDIAN == OUR_ENDIAN;
        if !known || !readable || handle_len == 0 {
            return None;
        }
        let handle = rest.get(..handle_len)?.to_vec();
        Some(Self {
            uuid: *uuid,
            handle_type: *handle_type,
            handle,
        })
    }

    /// Writes a value; `None` where the handle is too long for it.
    pub fn format(&self) -> Option<Vec<u8>> {
        self.format_with(OUR_ENDIAN)
    }

    /// Writes a value for an object of the upper layer.
    pub fn format_upper(&self) -> Option<Vec<u8>> {
        self.format_with(OUR_ENDIAN | PATH_UPPER)
    }

    fn format_with(&self, flags: u8) -> Option<Vec<u8>> {
        // The kernel pads a handle to whole words.
        let padded = self.handle.len().next_multiple_of(4);
        let len = u8::try_from(HEADER_LEN + padded).ok()?;
        let mut value = vec![VERSION, MAGIC, len, flags, self.handle_type];
        value.extend_from_slice(&self.uuid);
        value.extend_from_slice(&self.handle);
        value.resize(usize::from(len), 0);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_that_the_kernel_wrote() {
        let mut value = vec![0x00, 0xfb, 0x1d, 0x00, 0x01];
        value.extend([7; 16]);
        value.extend([0xe5, 0x88, 0x0c, 0x00, 0x1d, 0x43, 0xc3, 0x53]);
        let origin = Origin::parse(&value).unwrap();
        assert_eq!((origin.handle_type, origin.handle.len()), (1, 8));
        assert_eq!(origin.format().unwrap(), value);
    }

    #[test]
    fn what_says_nothing_is_unknown() {
        let mut bad_magic = vec![0, 0, 29, 0, 1];
        bad_magic.extend([0; 24]);
        let mut later_version = vec![1, 0xfb, 29, 0, 1];
        later_version.extend([0; 24]);
        for value in [&b""[..], &[0, 0xfb, 29, 0, 1], &bad_magic, &later_version] {
            assert_eq!(Origin::parse(value), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(value in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(origin) = Origin::parse(&value) {
                prop_assert!(origin.handle.len() + HEADER_LEN <= value.len());
            }
        }

        #[test]
        fn what_is_written_is_read(handle in prop::collection::vec(any::<u8>(), 1..30), kind: u8) {
            let mut handle = handle;
            handle.resize(handle.len().next_multiple_of(4), 0);
            let origin = Origin { uuid: [3; 16], handle_type: kind, handle };
            prop_assert_eq!(Origin::parse(&origin.format().unwrap()), Some(origin));
        }
    }
}
