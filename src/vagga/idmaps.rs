//! The ids of a container: those that it was built with, and those to build one with.

use std::fs;
use std::path::Path;

use nix::unistd::{Gid, Uid};

use super::config::{Container, IdSpan};
use crate::container::{IdMap, IdRange, Identity};
use crate::sys::subordinate::subordinate;
use crate::{Error, Result};

/// The two id maps of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Maps {
    pub(super) users: IdMap,
    pub(super) groups: IdMap,
}

impl Maps {
    pub(super) fn identity(&self) -> Identity {
        Identity::Mapped {
            users: self.users.clone(),
            groups: self.groups.clone(),
        }
    }

    /// Whether there is nobody but root.
    pub(super) fn are_single(&self) -> bool {
        self.users.is_single()
    }
}

/// Reads what vagga has put beside the root.
pub(super) fn read(dir: &Path) -> Result<Maps> {
    let one = |name: &str| {
        let file = dir.join(name);
        let step = "reading the ids that the container was built with";
        let text = fs::read_to_string(&file)
            .map_err(|error| Error::usage(step).at(&file).because(error.to_string()))?;
        IdMap::parse(&text).ok_or_else(|| {
            Error::usage(step)
                .at(&file)
                .because("it isn't an id map")
                .remedy("build the container again")
        })
    };
    Ok(Maps {
        users: one("uid_map")?,
        groups: one("gid_map")?,
    })
}

/// The ids for a container that is to be built: 0 is the user, and the others that the container
/// asks for stand for the user's subordinate ids. A user without those has only 0.
pub(super) fn for_build(container: &Container) -> Result<Maps> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let given = |file: &str| match subordinate(Path::new(file), uid).as_slice() {
        // Root needs nobody's leave; what this namespace has is root's to give.
        [] if uid.is_root() => own_ids(file),
        ranges => ranges.to_vec(),
    };
    let (users, groups) = (given("/etc/subuid"), given("/etc/subgid"));
    if users.is_empty() || groups.is_empty() {
        return Ok(Maps {
            users: IdMap::single(0, uid.as_raw()),
            groups: IdMap::single(0, gid.as_raw()),
        });
    }
    let refused = |setting: &str, file: &str| {
        container
            .pos
            .error(format!(
                "{file} gives this user too few ids for `{setting}`"
            ))
            .remedy(format!("give more there, or ask for less by `{setting}`"))
    };
    Ok(Maps {
        users: assign(uid.as_raw(), &container.uids, &users)
            .ok_or_else(|| refused("uids", "/etc/subuid"))?,
        groups: assign(gid.as_raw(), &container.gids, &groups)
            .ok_or_else(|| refused("gids", "/etc/subgid"))?,
    })
}

/// The ids of this namespace but 0.
fn own_ids(file: &str) -> Vec<(u32, u32)> {
    let map = if file.ends_with("subuid") {
        "uid_map"
    } else {
        "gid_map"
    };
    let text = fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
    let ranges = IdMap::parse(&text);
    ranges
        .iter()
        .flat_map(IdMap::ranges)
        .filter_map(|range| match range.inside {
            0 => (range.count > 1).then_some((1, range.count - 1)),
            first => Some((first, range.count)),
        })
        .collect()
}

/// Hands `given` out to the ids that are asked for, in order; `None` where there are too few.
fn assign(own: u32, asked: &[IdSpan], given: &[(u32, u32)]) -> Option<IdMap> {
    let mut map = vec![IdRange {
        inside: 0,
        outside: own,
        count: 1,
    }];
    let mut given = given.iter().copied();
    let (mut outside, mut left) = (0, 0);
    for span in asked {
        let mut inside = span.first.max(1);
        while inside <= span.last {
            if left == 0 {
                (outside, left) = given.next()?;
                continue;
            }
            let count = left.min(span.last - inside + 1);
            map.push(IdRange {
                inside,
                outside,
                count,
            });
            inside += count;
            outside += count;
            left -= count;
        }
    }
    Some(IdMap::of(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_handed_out_in_order() {
        let span = |first, last| IdSpan { first, last };
        let map = assign(1001, &[span(0, 65535)], &[(100_000, 65536)]).unwrap();
        assert_eq!(map.to_text(), "0 1001 1\n1 100000 65535\n");
        let map = assign(5, &[span(0, 2), span(10, 12)], &[(100, 3), (200, 9)]).unwrap();
        assert_eq!(map.to_text(), "0 5 1\n1 100 2\n10 102 1\n11 200 2\n");
        assert_eq!(assign(5, &[span(0, 9)], &[(100, 3)]), None);
        assert_eq!(assign(5, &[span(0, 0)], &[]), Some(IdMap::single(0, 5)));
    }
}
