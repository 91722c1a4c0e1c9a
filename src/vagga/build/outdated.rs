//! Whether a built container is what `vagga.yaml` says now.
//!
//! Vagga builds an outdated one anew before it runs anything in it. Here it is run as it is, and a
//! line says so. A version of vagga's own can't be told from the steps, many of which aren't known
//! here; what can be told is that the files were changed since the container was used last, which
//! is said once.

use std::fs;
use std::path::Path;

use super::commit;
use super::plan::Plan;
use crate::Result;
use crate::vagga::project::{Project, Root};

/// Warns where `built`, which `.vagga/NAME` leads to, is outdated or may be.
pub(in crate::vagga) fn tell_if_outdated(project: &Project, name: &str, built: &Root) {
    if !project.settings().checks_versions {
        return;
    }
    if built.is_ours() {
        match is_current(project, name, built) {
            Ok(true) => {}
            Ok(false) => log::warn!(
                "{name} is outdated: vagga.yaml, or a file that a step reads, was changed since it \
                 was built; overfall vagga _build {name} makes it anew"
            ),
            Err(error) => log::warn!("whether {name} is outdated can't be told: {error}"),
        }
        return;
    }
    let Some(used) = built.last_use() else { return };
    let changed = |file: &Path| fs::metadata(file).and_then(|meta| meta.modified());
    let files = project.config().files();
    if let Some(file) = files
        .iter()
        .find(|file| changed(file).is_ok_and(|changed| changed > used))
    {
        log::warn!(
            "{} was changed since {name} was used last; vagga _build {name} makes it anew if it \
             has to",
            file.display()
        );
    }
}

fn is_current(project: &Project, name: &str, built: &Root) -> Result<bool> {
    let plan = Plan::of(project, name, None)?;
    let same = built.name() == plan.root_name().as_str();
    Ok(same && commit::is_there(project, &plan, None)?)
}
