//! Owners that a user namespace has no ids for.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Ids without a mapping all look like one id.
pub(crate) struct Unmapped {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Unmapped {
    /// Those of this process's user namespace.
    pub(crate) fn current() -> Self {
        Self {
            uid: overflow("/proc/sys/kernel/overflowuid", "/proc/self/uid_map"),
            gid: overflow("/proc/sys/kernel/overflowgid", "/proc/self/gid_map"),
        }
    }

    /// Whether an object's owner or group has no id here, or looks like that.
    pub(crate) fn owns(&self, found: &fs::Metadata) -> bool {
        self.uid == Some(found.uid()) || self.gid == Some(found.gid())
    }
}

/// The id that stands for unmapped ones. Where it is itself mapped, as it is among a user's subordinate
/// ids, the two can't be told apart; but a namespace that has all ids has no unmapped ones.
fn overflow(number: &str, map: &str) -> Option<u32> {
    let id = fs::read_to_string(number).ok()?.trim().parse().ok()?;
    let map = fs::read_to_string(map).ok()?;
    let has_all = map.split_whitespace().eq(["0", "0", "4294967295"]);
    (!has_all).then_some(id)
}
