//! What is written down in a kept copy, so that a run which goes on in it does so in the same way.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the upper directory of a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Form {
    /// What was changed, for an overlay on the container.
    Overlay,
    /// Everything.
    Copy,
}

/// `overfall.json` in `.vagga/.transient/NAME.VERSION.PID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) form: Form,
    /// The container that it is a copy of: NAME.VERSION.
    pub(super) base: String,
    /// Which build of it, see [`Root::made`](crate::vagga::project::Root).
    pub(super) made: String,
}

const NAME: &str = "overfall.json";

pub(super) fn write(dir: &Path, record: &Record) -> Result<()> {
    let file = dir.join(NAME);
    let failed = |why: String| {
        Error::system("describing the kept copy")
            .at(&file)
            .because(why)
    };
    let text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.to_string()))?;
    fs::write(&file, text).map_err(|error| failed(error.to_string()))
}

/// `None` where the run was ended before its command began.
pub(super) fn read(dir: &Path) -> Result<Option<Record>> {
    let file = dir.join(NAME);
    let failed = |why: String| {
        Error::usage("reading what the kept copy is")
            .at(&file)
            .because(why)
    };
    match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed(error.to_string())),
    }
}
