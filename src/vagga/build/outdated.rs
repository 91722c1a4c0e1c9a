//! Whether a built container is what `vagga.yaml` says now.
//!
//! Vagga builds an outdated one anew before it runs anything in it. Here it is run as it is, and a
//! line says so.
//!
//! What a digest covers is read anew only where something of it was changed since the container was
//! last found to be right: the start of a run takes milliseconds. A version of vagga's own can't be told from the steps, many of which aren't known
//! here; what can be told is that the files were changed since the container was used last, which
//! is said once.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::action::{Action, Archive, Written};
use super::filter::Filter;
use super::plan::{Plan, of_project};
use super::{archive, commit};
use crate::Result;
use crate::vagga::config::{Container, LOCAL_MIXINS};
use crate::vagga::marker;
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
    let container = project.config().container(name)?;
    let since = marker::stamp(built.dir());
    if let Some(since) = since
        && (Look { project, since }).is_untouched(container, 0)
    {
        return Ok(true);
    }
    let plan = Plan::of(project, name, None)?;
    let same = built.name() == plan.root_name().as_str();
    let current = same && commit::is_there(project, &plan, None)?;
    if current {
        marker::set_stamp(built.dir(), project.read_at());
    }
    Ok(current)
}

/// Looks whether anything was changed since some time.
struct Look<'p> {
    project: &'p Project,
    since: SystemTime,
}

/// What is behind a file's time of change: kernels take the time of their last tick.
const TICK: Duration = Duration::from_millis(50);
/// Containers based on containers.
const DEEPEST: usize = 16;

impl Look<'_> {
    /// False where that isn't sure, too.
    fn is_untouched(&self, container: &Container, depth: usize) -> bool {
        let own = self.project.config().files().iter();
        let local = LOCAL_MIXINS.map(|name| self.project.dir().join(name));
        let others = ["/etc/subuid", "/etc/subgid"].map(Path::new);
        own.chain(&local)
            .map(PathBuf::as_path)
            .chain(others)
            .all(|file| self.is_old(file))
            && container
                .setup
                .iter()
                .all(|node| Written::read(node).is_ok_and(|step| self.is_step_old(&step, depth)))
    }

    fn is_step_old(&self, step: &Written, depth: usize) -> bool {
        let project = self.project;
        match &step.action {
            Action::Container(name) => {
                let base = project.config().container(name);
                let link = project.vagga_dir().join(name);
                // One of vagga's has steps that aren't known here; it is told by its link.
                let ours = project.built(name).is_ok_and(|root| root.is_ours());
                self.is_old(&link)
                    && depth < DEEPEST
                    && (!ours || base.is_ok_and(|base| self.is_untouched(base, depth + 1)))
            }
            Action::SubConfig(_) => false,
            Action::Tar(tar) => self.is_archive_old(&tar.archive),
            Action::TarInstall(install) => self.is_archive_old(&install.archive),
            Action::Copy(copy) => match of_project(project, &copy.source) {
                Some(source) => self.is_tree_old(&source, &copy.filter),
                None => true,
            },
            Action::Depends { path, filter } => self.is_tree_old(&project.dir().join(path), filter),
            _ => true,
        }
    }

    fn is_archive_old(&self, archive: &Archive) -> bool {
        match archive::local(self.project, archive) {
            Ok(Some(file)) => self.is_old(&file),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    fn is_tree_old(&self, top: &Path, filter: &Filter) -> bool {
        if !self.is_old(top) || !fs::symlink_metadata(top).is_ok_and(|meta| meta.is_dir()) {
            return self.is_old(top);
        }
        // A file that has gone has changed its directory.
        let mut dirs_are_old = true;
        let chosen = filter.walk_entering(top, |dir| dirs_are_old &= self.is_old(dir));
        let are_old = |names: Vec<PathBuf>| names.iter().all(|name| self.is_old(&top.join(name)));
        chosen.is_ok_and(are_old) && dirs_are_old
    }

    /// Of one that isn't there: whether it wasn't there before, either.
    fn is_old(&self, file: &Path) -> bool {
        match fs::symlink_metadata(file) {
            Ok(meta) if meta.is_symlink() => {
                self.was_before(&meta)
                    && fs::metadata(file).is_ok_and(|meta| self.was_before(&meta))
            }
            Ok(meta) => self.was_before(&meta),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                file.parent().is_some_and(|parent| self.is_old(parent))
            }
            Err(_) => false,
        }
    }

    fn was_before(&self, meta: &Metadata) -> bool {
        let (Ok(seconds), Ok(nanoseconds)) = (
            u64::try_from(meta.ctime()),
            u32::try_from(meta.ctime_nsec()),
        ) else {
            return false;
        };
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds) + TICK < self.since
    }
}
