//! The ids of containers: whether a plain user gets more than one.

use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use serde::Serialize;

use super::cause::Cause;
use crate::sys::subordinate::subordinate;

/// What there is for the id map of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdsVerdict {
    /// A container can have the ids of several users.
    pub several: bool,
    /// Why not.
    pub cause: Option<Cause>,
    /// What to change then.
    pub remedy: Option<&'static str>,
    /// newuidmap(1), where it is.
    pub newuidmap: Option<PathBuf>,
    /// newgidmap(1), where it is.
    pub newgidmap: Option<PathBuf>,
    /// How many ids /etc/subuid gives to this user.
    pub users: u64,
    /// How many /etc/subgid gives.
    pub groups: u64,
}

/// Looks for what a plain user needs; root needs nothing.
pub fn look_for_ids() -> IdsVerdict {
    let user = Uid::effective();
    let count = |file: &str| -> u64 {
        let ranges = subordinate(Path::new(file), user);
        ranges.iter().map(|range| u64::from(range.1)).sum()
    };
    let (users, groups) = (count("/etc/subuid"), count("/etc/subgid"));
    let (newuidmap, newgidmap) = (program("newuidmap"), program("newgidmap"));
    let cause = if user.is_root() {
        None
    } else if users == 0 || groups == 0 {
        Some(Cause::NoSubordinateIds)
    } else if newuidmap.is_none() || newgidmap.is_none() {
        Some(Cause::NoIdHelpers)
    } else {
        None
    };
    IdsVerdict {
        several: cause.is_none(),
        cause,
        remedy: cause.map(Cause::remedy),
        newuidmap,
        newgidmap,
        users,
        groups,
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}
