//! What a build by force leaves to later ones: its steps have other digests than those before, so
//! that no layer from before is taken any more, neither now nor later. Replacing the layers
//! themselves won't do: other containers are made of them, and other steps have been built on them.
//!
//! `.vagga/.layers/forced/NAME` has a text that all steps of the container depend on.

use std::fs;
use std::path::PathBuf;

use super::layers_dir;
use crate::sys::random;
use crate::vagga::project::{Project, Root};
use crate::{Error, Result};

fn file(project: &Project, name: &str) -> PathBuf {
    layers_dir(project).join("forced").join(name)
}

/// A new text.
pub(super) fn fresh() -> Result<String> {
    let number = || random::number();
    let both = number().and_then(|one| Ok(format!("{one:016x}{:016x}", number()?)));
    both.map_err(|errno| Error::system("finding random numbers").errno(errno))
}

/// The text of the container; `None` where it has never been built by force.
pub(super) fn read(project: &Project, name: &str) -> Result<Option<String>> {
    let file = file(project, name);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system("looking for the last build by force")
            .at(&file)
            .because(error.to_string())),
    }
}

/// Makes `text` that of the container.
pub(super) fn write(project: &Project, name: &str, text: &str) -> Result<()> {
    let file = file(project, name);
    let dir = file.parent().map_or(Ok(()), fs::create_dir_all);
    dir.and_then(|()| fs::write(&file, text)).map_err(|error| {
        Error::system("writing down that it is built by force")
            .at(&file)
            .because(error.to_string())
    })
}

/// What the steps depend on: the container's own text, and that of the build of its base.
pub(super) fn all(own: Option<&str>, base: Option<&Root>) -> Option<String> {
    match (own, base.and_then(Root::forced)) {
        (None, None) => None,
        (own, base) => Some(format!(
            "{}/{}",
            own.unwrap_or_default(),
            base.unwrap_or_default()
        )),
    }
}
