//! Random numbers from getrandom(2) itself.
//!
//! A library that keeps /dev/urandom open where it can't look the call up, as in a static binary,
//! finds the descriptor closed in a server that closed what it inherited.

use rustix::rand::{GetRandomFlags, getrandom};

use super::Errno;

/// Fills a buffer.
pub fn fill(buffer: &mut [u8]) -> Result<(), Errno> {
    let mut at = 0;
    while at < buffer.len() {
        let flags = GetRandomFlags::empty();
        at += rustix::io::retry_on_intr(|| getrandom(&mut buffer[at..], flags))?;
    }
    Ok(())
}

/// A number.
pub fn number() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_differ() {
        assert_ne!(number(), number());
    }
}
