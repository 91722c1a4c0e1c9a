//! Names that every writer replaces with versions of its own, which describe themselves.

use crate::common::dice::bytes;

/// How many there are.
pub(crate) const KEYS: usize = 4;
/// The writer of what the lower layer has.
pub(crate) const NOBODY: u32 = u32::MAX;

const HEADER: usize = 24;

/// Who wrote it, and which of his versions it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) writer: u32,
    pub(crate) number: u32,
}

/// The path of a name.
pub(crate) fn path(key: usize) -> String {
    format!("shared/k{key}")
}

impl Version {
    /// Its data: who, which, how long, the checksum of the rest, the rest.
    pub(crate) fn data(self) -> Vec<u8> {
        let tag = u64::from(self.writer) << 32 | u64::from(self.number);
        let body = bytes(tag, 100 + (self.number as usize * 7919) % 120_000);
        let mut data = Vec::with_capacity(HEADER + body.len());
        data.extend_from_slice(&self.writer.to_le_bytes());
        data.extend_from_slice(&self.number.to_le_bytes());
        data.extend_from_slice(&(body.len() as u64).to_le_bytes());
        data.extend_from_slice(&checksum(&body).to_le_bytes());
        data.extend_from_slice(&body);
        data
    }

    /// Which version this is, if it is a whole one.
    pub(crate) fn parse(data: &[u8]) -> Result<Self, String> {
        let (header, body) = data
            .split_at_checked(HEADER)
            .ok_or_else(|| format!("only {} bytes", data.len()))?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        if long(8) != body.len() as u64 {
            return Err(format!("{} bytes of {}", body.len(), long(8)));
        }
        if long(16) != checksum(body) {
            return Err("a wrong checksum".to_owned());
        }
        Ok(Self {
            writer: word(0),
            number: word(4),
        })
    }
}

fn checksum(data: &[u8]) -> u64 {
    data.chunks(8).fold(0, |sum: u64, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum.rotate_left(5) ^ u64::from_le_bytes(word)
    })
}

/// What one writer did to the names since the last check.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    /// The last version that was started.
    pub(crate) tried: [u32; KEYS],
    /// The last version whose rename returned; 0 for none since the last check.
    pub(crate) done: [u32; KEYS],
}

/// Whether `found` may stand under the name `key`, where `base` stood at the last check.
pub(crate) fn judge(
    key: usize,
    found: Version,
    base: Version,
    writers: &[Progress],
) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{}: {found:?}, {why}", path(key)));
    if found == base {
        return if writers.iter().all(|writer| writer.done[key] == 0) {
            Ok(())
        } else {
            wrong("which was replaced")
        };
    }
    match writers.get(found.writer as usize) {
        None => wrong("of nobody that is known"),
        Some(writer) if found.number > writer.tried[key] => wrong("which was never written"),
        Some(writer) if found.number < writer.done[key] => wrong("which its writer replaced"),
        // Each has its number once, so an older round's would be below what was tried since.
        Some(_) => Ok(()),
    }
}
