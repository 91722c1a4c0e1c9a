//! By which name the program was called, and what that name's callers expect.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::CommandFactory;

use super::Cli;
use crate::Backend;
use crate::options::is_near;

/// What the program is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// `overfall`, with its commands.
    Commands,
    /// mount(8)'s helper for one type of file system.
    MountHelper(Backend),
    /// A program that mounts, called as fuse-overlayfs is.
    FuseProgram(FuseProgram),
}

/// Whose place such a program takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FuseProgram {
    /// fuse-overlayfs's own: its callers want FUSE, and unknown options are only warned about.
    FuseOverlayfs,
    /// `overfall mount` in one word, for callers that take one.
    OverfallMount,
}

impl Role {
    /// What the first argument says; `overfall` itself is a helper when mount.fuse3 calls it.
    pub(super) fn of(arguments: &[OsString]) -> Self {
        let called = arguments.first().map(Path::new);
        let name = called.and_then(Path::file_name).and_then(OsStr::to_str);
        match name.unwrap_or_default() {
            "mount.fuse.overfall" | "mount.fuse3.overfall" => Role::MountHelper(Backend::Fuse),
            "mount.overfall" => Role::MountHelper(Backend::Auto),
            "fuse-overlayfs" => Role::FuseProgram(FuseProgram::FuseOverlayfs),
            "overfall-mount" => Role::FuseProgram(FuseProgram::OverfallMount),
            _ if is_from_mount_fuse(arguments) => Role::MountHelper(Backend::Fuse),
            _ => Role::Commands,
        }
    }
}

/// mount.fuse3 runs `PROGRAM SOURCE TARGET -o OPTIONS`, in this order. None of our commands takes
/// that. A command that is one slip away is refused as a command: a mount wasn't asked for.
fn is_from_mount_fuse(arguments: &[OsString]) -> bool {
    let [_, source, target, dash_o, _] = arguments else {
        return false;
    };
    let is_flag = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"-");
    dash_o == "-o"
        && !is_flag(source)
        && !is_flag(target)
        && !Cli::command().get_subcommands().any(|command| {
            let name = command.get_name().as_bytes();
            let source = source.as_encoded_bytes();
            name == source || is_near(source, name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(line: &str) -> Role {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Role::of(&arguments)
    }

    #[test]
    fn the_name_decides() {
        let fuse = Role::MountHelper(Backend::Fuse);
        assert_eq!(role("/sbin/mount.fuse.overfall a b"), fuse);
        assert_eq!(
            role("/sbin/mount.overfall a b"),
            Role::MountHelper(Backend::Auto)
        );
        assert_eq!(
            role("bin/fuse-overlayfs -o x m"),
            Role::FuseProgram(FuseProgram::FuseOverlayfs)
        );
        assert_eq!(role("overfall mount -o x m"), Role::Commands);
        assert_eq!(role("overfall"), Role::Commands);
    }

    #[test]
    fn mount_fuse3_calls_the_program_itself() {
        let fuse = Role::MountHelper(Backend::Fuse);
        assert_eq!(role("overfall overfall /m -o ro"), fuse);
        assert_eq!(role("overfall  /m -o ro"), fuse, "an empty source");
        for commands in [
            "overfall run cc -o out",
            "overfall moutn -o x m",
            "overfall mout /m -o x",
            "overfall umuont /m -o x",
            "overfall lst /m -o x",
            "overfall umount m -o x",
            "overfall -v m -o x",
        ] {
            assert_eq!(role(commands), Role::Commands, "{commands}");
        }
    }
}
