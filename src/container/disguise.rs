//! A user namespace for the command alone, in which one of the container's ids goes by another
//! number.
//!
//! Whoever enters such a namespace leaves its rights behind and can't write the map itself. The
//! process that has started it does, and says when it is done.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::command::Credentials;
use super::idmap::{IdMap, IdRange};
use crate::sys::{Errno, from_io, from_nix};
use crate::{Error, Result};

/// The command's side.
#[derive(Debug)]
pub(super) struct Wearer(UnixStream);

/// The side of the process that starts the command.
#[derive(Debug)]
pub(super) struct Helper {
    channel: UnixStream,
    users: String,
}

/// Both sides, where `credentials` ask for another id outside.
pub(super) fn disguise(credentials: &Credentials) -> Result<Option<(Wearer, Helper)>> {
    let Some(outside) = credentials.external else {
        return Ok(None);
    };
    let (wearer, channel) = UnixStream::pair().map_err(|error| failed(from_io(&error)))?;
    let users = format!("{} {outside} 1\n", credentials.user);
    Ok(Some((Wearer(wearer), Helper { channel, users })))
}

fn failed(errno: Errno) -> Error {
    Error::system("giving the command's user another id").errno(errno)
}

impl Wearer {
    /// Moves the calling process into its namespace. It has every right in there, and none
    /// outside.
    pub(super) fn put_on(mut self) -> Result<()> {
        // What is in /proc would be the machine's root's otherwise, and closed to the helper.
        set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(failed)?;
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| failed(from_nix(errno)))?;
        self.0
            .write_all(b"?")
            .and_then(|()| self.0.read_exact(&mut [0]))
            .map_err(|error| failed(from_io(&error)))
    }
}

impl Helper {
    /// Writes the maps of `command` when it asks for them.
    pub(super) fn help(mut self, command: Pid) -> Result<()> {
        if self.channel.read_exact(&mut [0]).is_err() {
            // It has ended, and has told why.
            return Ok(());
        }
        self.write(command)
            .and_then(|()| self.channel.write_all(b"!"))
            .map_err(|error| failed(from_io(&error)))
    }

    fn write(&self, command: Pid) -> std::io::Result<()> {
        let groups = IdMap::parse(&fs::read_to_string("/proc/self/gid_map")?);
        let same = |range: &IdRange| IdRange {
            outside: range.inside,
            ..*range
        };
        let groups = IdMap::of(groups.iter().flat_map(IdMap::ranges).map(same).collect());
        let dir = format!("/proc/{command}");
        fs::write(format!("{dir}/uid_map"), &self.users)?;
        fs::write(format!("{dir}/gid_map"), groups.to_text())
    }
}
