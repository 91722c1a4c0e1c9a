//! Copying a file's data: a reflink where the file system can, otherwise range by range with the
//! holes left out.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::SeekFrom;

use crate::sys::Errno;

/// Most bytes for one call of the kernel's copy; between two, other work gets its turn.
const CHUNK: usize = 64 << 20;
/// Buffer for the copy by hand.
const BUFFER: usize = 1 << 20;

/// How data has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// The copy has the original's blocks, which are on the disk.
    Shared,
    /// It was written, or there is none.
    Written,
}

/// Copies the first `length` bytes of `from` to `to`, which is empty. Leaves `to` with exactly
/// that size.
pub(crate) fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    length: u64,
    whole: bool,
) -> Result<Arrived, Errno> {
    if length == 0 {
        return Ok(Arrived::Written);
    }
    if whole && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Arrived::Shared);
    }
    let mut method = Method::Kernel;
    let mut at = 0;
    while at < length {
        let Some((start, end)) = next_data(from, at, length)? else {
            break;
        };
        copy_range(from, to, start, end, &mut method)?;
        at = end;
    }
    rustix::fs::ftruncate(to, length)?;
    Ok(Arrived::Written)
}

/// The next range with data from `at` on, `None` when only a hole is left.
fn next_data(file: BorrowedFd<'_>, at: u64, length: u64) -> Result<Option<(u64, u64)>, Errno> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // No notion of holes here: all is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, length))),
        Err(errno) => return Err(errno),
    };
    if start >= length {
        return Ok(None);
    }
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        // The file has become shorter under us.
        Err(Errno::NXIO) => return Ok(None),
        end => end?,
    };
    Ok(Some((start, end.min(length))))
}

/// Who copies.
enum Method {
    /// copy_file_range(2).
    Kernel,
    /// We, through this buffer: the two file systems have nothing in common.
    Hand(Vec<u8>),
}

fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
    method: &mut Method,
) -> Result<(), Errno> {
    let mut at = start;
    while at < end {
        let copied = match method {
            Method::Kernel => {
                let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                let (mut off_in, mut off_out) = (at, at);
                let result = rustix::fs::copy_file_range(
                    from,
                    Some(&mut off_in),
                    to,
                    Some(&mut off_out),
                    wanted,
                );
                match result {
                    // Some file systems answer 0 where they mean "not by me".
                    Ok(0) => {
                        *method = Method::Hand(vec![0; BUFFER]);
                        continue;
                    }
                    Ok(copied) => copied,
                    Err(
                        Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM,
                    ) => {
                        *method = Method::Hand(vec![0; BUFFER]);
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(errno),
                }
            }
            Method::Hand(buffer) => match copy_by_hand(from, to, at, end, buffer)? {
                // The file has become shorter under us: what is gone reads as a hole.
                0 => return Ok(()),
                copied => copied,
            },
        };
        at += copied as u64;
    }
    Ok(())
}

fn copy_by_hand(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    at: u64,
    end: u64,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let wanted = usize::try_from(end - at)
        .unwrap_or(buffer.len())
        .min(buffer.len());
    let got = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut buffer[..wanted], at))?;
    write_all(to, &buffer[..got], at)?;
    Ok(got)
}

/// pwrite(2) until all is written.
fn write_all(to: impl AsFd, data: &[u8], at: u64) -> Result<(), Errno> {
    let mut written = 0;
    while written < data.len() {
        written += write_some(&to, &data[written..], at + written as u64)?;
    }
    Ok(())
}

/// Writes as much as can be, and says how much that was: an error only where it was nothing.
pub(super) fn write_some(to: impl AsFd, data: &[u8], at: u64) -> Result<usize, Errno> {
    let mut written = 0;
    while written < data.len() {
        let (rest, at) = (&data[written..], at + written as u64);
        match rustix::io::retry_on_intr(|| rustix::io::pwrite(&to, rest, at)) {
            Ok(0) => return Err(Errno::IO),
            Ok(more) => written += more,
            Err(errno) if written == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom as StdSeek, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn data_and_holes_arrive() {
        let mut from = tempfile::tempfile().unwrap();
        from.seek(StdSeek::Start(8 << 20)).unwrap();
        from.write_all(b"middle").unwrap();
        from.set_len(32 << 20).unwrap();
        let mut to = tempfile::tempfile().unwrap();
        copy(from.as_fd(), to.as_fd(), 32 << 20, false).unwrap();
        let meta = to.metadata().unwrap();
        assert_eq!(meta.len(), 32 << 20);
        assert!(
            meta.blocks() * 512 < 1 << 20,
            "holes were filled: {} blocks",
            meta.blocks()
        );
        to.seek(StdSeek::Start(8 << 20)).unwrap();
        let mut text = [0; 6];
        to.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"middle");
    }

    #[test]
    fn only_what_is_wanted_is_copied() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(&[7; 10_000]).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy(from.as_fd(), to.as_fd(), 5000, false).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 5000);
    }
}
