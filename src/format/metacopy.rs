//! The value of `metacopy`: the file's data is in a lower layer (`struct ovl_metacopy` in the
//! kernel's `fs/overlayfs/overlayfs.h`).

/// Bytes of the head, behind which a digest may follow.
const HEAD_LEN: usize = 4;

/// What is written: no digest, so nothing.
pub const PLAIN: &[u8] = b"";

/// A value that means nothing; the kernel answers `EIO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Whether a value can be taken for a metadata copy's. As the kernel, which looks at the head's
/// fields only where it checks digests, this asks for nothing but a whole head, or no byte at all.
pub fn check(value: &[u8]) -> Result<(), Malformed> {
    match value.len() {
        0 | HEAD_LEN.. => Ok(()),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_takes() {
        assert_eq!(check(PLAIN), Ok(()));
        assert_eq!(check(&[0, 4, 0, 0]), Ok(()));
        assert_eq!(check(&[1, 9, 0, 0, 7]), Ok(()));
        for short in [&[0][..], &[0, 4], &[0, 4, 0]] {
            assert_eq!(check(short), Err(Malformed));
        }
    }
}
