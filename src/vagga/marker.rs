//! What we put beside the root of a container that we have built.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `overfall.json` in `.vagga/.roots/NAME.VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// Of the topmost layer that it was made of.
    pub(super) digest: String,
    /// Whether the layers are all there is: `root` is an empty directory then.
    pub(super) layered: bool,
    /// The container whose `root` lies below the layers: NAME.VERSION.
    pub(super) base: Option<String>,
    /// Which build of that, where it is a plain tree; see [`Root::made`](super::project::Root).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base_made: Option<String>,
    /// What tells its layers from those before it, or one that it begins with, was built by force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) forced: Option<String>,
}

const NAME: &str = "overfall.json";

pub(super) fn write(dir: &Path, marker: &Marker) -> Result<()> {
    let file = dir.join(NAME);
    let failed = |why: String| {
        Error::system("describing the container")
            .at(&file)
            .because(why)
    };
    let text = serde_json::to_vec_pretty(marker).map_err(|error| failed(error.to_string()))?;
    fs::write(&file, text).map_err(|error| failed(error.to_string()))
}

/// `None` for a container of vagga's.
pub(super) fn read(dir: &Path) -> Result<Option<Marker>> {
    let file = dir.join(NAME);
    let failed = |why: String| {
        Error::usage("reading the description of the container")
            .at(&file)
            .because(why)
            .remedy("build the container again")
    };
    match fs::read(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed(error.to_string())),
    }
}

/// When the container was last known to be what `vagga.yaml` says; the time of the marker.
pub(super) fn stamp(dir: &Path) -> Option<SystemTime> {
    fs::metadata(dir.join(NAME))
        .and_then(|meta| meta.modified())
        .ok()
}

/// What was changed before `time` made no difference.
pub(super) fn set_stamp(dir: &Path, time: SystemTime) {
    let file = dir.join(NAME);
    let set = fs::File::options()
        .write(true)
        .open(&file)
        .and_then(|marker| marker.set_modified(time));
    if let Err(error) = set {
        log::debug!("{}: {error}", file.display());
    }
}
