//! Commands of other users.

use std::ffi::OsStr;
use std::process::Command;

/// A command of the user and the group with these numbers, or of whoever runs the tests.
pub(crate) fn command_as(ids: Option<(u32, u32)>, program: impl AsRef<OsStr>) -> Command {
    let Some((uid, gid)) = ids else {
        return Command::new(program);
    };
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &uid, "--regid", &gid, "--clear-groups"])
        .arg(program);
    command
}
