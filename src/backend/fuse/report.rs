//! How the server's process tells the one that asked for the mount how it went: one record
//! through a pipe. The pipe's end after that record says that the server has gone.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::Error;
use crate::error::Class;
use crate::sys::Errno;

/// What became of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    /// It is served by the process with this number.
    Ready(u32),
    /// It failed.
    Failed(Error),
}

const READY: u8 = b'R';
const USAGE: u8 = b'U';
const SYSTEM: u8 = b'S';
/// The longest field that is believed: a path and some words.
const MAX_FIELD: u32 = 1 << 16;

impl Report {
    /// Writes the record.
    pub(super) fn send(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        File::from(to.try_clone_to_owned()?).write_all(&self.encode())
    }

    /// Reads the record; an end without one means that the server died.
    pub(super) fn receive(from: BorrowedFd<'_>) -> io::Result<Self> {
        Self::decode(&mut File::from(from.try_clone_to_owned()?))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Report::Ready(pid) => {
                out.push(READY);
                out.extend(pid.to_ne_bytes());
            }
            Report::Failed(error) => {
                out.push(match error.class() {
                    Class::Usage => USAGE,
                    Class::System => SYSTEM,
                });
                let errno = error.raw_errno().map_or(0, Errno::raw_os_error);
                out.extend(errno.to_ne_bytes());
                put(&mut out, Some(error.step().as_bytes()));
                put(
                    &mut out,
                    error.path().map(|path| path.as_os_str().as_bytes()),
                );
                put(&mut out, error.why().map(str::as_bytes));
                put(&mut out, error.what_to_do().map(str::as_bytes));
            }
        }
        out
    }

    fn decode(from: &mut impl Read) -> io::Result<Self> {
        let [tag] = array(from)?;
        let failed = match tag {
            READY => return Ok(Report::Ready(u32::from_ne_bytes(array(from)?))),
            USAGE => Error::usage,
            SYSTEM => Error::system,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let errno = i32::from_ne_bytes(array(from)?);
        let mut error = failed(text(take(from)?.unwrap_or_default()));
        if errno != 0 {
            error = error.errno(Errno::from_raw_os_error(errno));
        }
        if let Some(path) = take(from)? {
            error = error.at(Path::new(OsStr::from_bytes(&path)));
        }
        if let Some(why) = take(from)? {
            error = error.because(text(why));
        }
        if let Some(remedy) = take(from)? {
            error = error.remedy(text(remedy));
        }
        Ok(Report::Failed(error))
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A field: whether it is there, its length, its bytes.
fn put(out: &mut Vec<u8>, field: Option<&[u8]>) {
    out.push(u8::from(field.is_some()));
    if let Some(field) = field {
        let shown = &field[..field.len().min(MAX_FIELD as usize)];
        out.extend((shown.len() as u32).to_ne_bytes());
        out.extend(shown);
    }
}

fn take(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    if array(from)? == [0] {
        return Ok(None);
    }
    let length = u32::from_ne_bytes(array(from)?);
    if length > MAX_FIELD {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut field = vec![0; length as usize];
    from.read_exact(&mut field)?;
    Ok(Some(field))
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_error_arrives() {
        let path = Path::new(OsStr::from_bytes(b"/odd\xff name"));
        let bare = Error::usage("reading");
        let full = Error::system("mounting")
            .at(path)
            .errno(Errno::BUSY)
            .because("it is in use")
            .remedy("wait");
        for report in [
            Report::Ready(77),
            Report::Failed(bare),
            Report::Failed(full),
        ] {
            let bytes = report.encode();
            assert_eq!(Report::decode(&mut &bytes[..]).unwrap(), report);
        }
    }

    #[test]
    fn a_server_that_died_leaves_no_record() {
        assert!(Report::decode(&mut &b""[..]).is_err());
        assert!(Report::decode(&mut &b"R\x01"[..]).is_err());
        assert!(Report::decode(&mut &b"?????"[..]).is_err());
    }
}
