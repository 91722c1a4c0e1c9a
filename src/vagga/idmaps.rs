//! The ids of a container: those that it was built with, and those to build one with.

use std::fs;
use std::path::Path;

use super::config::IdSpan;
use crate::container::{IdMap, IdRange, Identity};
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
