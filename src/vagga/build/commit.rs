//! From a stack of layers to a container in vagga's layout.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};

use super::BuildOptions;
use super::plan::Plan;
use crate::error::Context;
use crate::steps::{Stack, StepCache};
use crate::sys::Errno;
use crate::vagga::clean::forget_layers;
use crate::vagga::marker::{self, Marker};
use crate::vagga::project::{Project, Root};
use crate::{Error, Result};

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| {
        Error::system("putting the container in its place")
            .at(path)
            .because(error.to_string())
    }
}

/// Whether this version of the container is built, with these ids and, where it matters, in layers
/// or not.
pub(super) fn is_there(project: &Project, plan: &Plan, layered: Option<bool>) -> Result<bool> {
    let Ok(root) = project.root(&plan.root_name()) else {
        return Ok(false);
    };
    let same_form = layered.is_none_or(|layered| root.layers().is_some() == layered);
    Ok(root.is_ours() && same_form && *root.maps() == plan.maps && root.lies_on_its_base(project))
}

/// Puts it into `.vagga/.roots`. The process is in the container's namespaces.
pub(super) fn commit(
    project: &Project,
    plan: &Plan,
    cache: StepCache,
    stack: &Stack,
    options: BuildOptions,
    below: Option<&Root>,
    forced: Option<&str>,
) -> Result<()> {
    let roots = project.storage().join(".roots");
    fs::create_dir_all(&roots).map_err(failed(&roots))?;
    // Vagga's own `_clean --tmp` knows such names.
    sweep(&roots);
    let temporary = roots.join(format!(
        ".tmp.{}{OURS}{}",
        plan.root_name(),
        std::process::id()
    ));
    remove(&temporary)?;
    fs::create_dir(&temporary).map_err(failed(&temporary))?;
    let outcome = fill(&temporary, &cache, stack, options.layered, below, forced)
        .map(|()| marker::set_stamp(&temporary, project.read_at()))
        .and_then(|()| swap(&temporary, &roots.join(plan.root_name())));
    if outcome.is_err() {
        // The error that is told is the first one.
        let _ = remove(&temporary);
    }
    outcome?;
    // It holds the layers of its build.
    drop(cache);
    if !options.cache_each_step && !options.layered {
        forget(project, stack)?;
    }
    Ok(())
}

/// Between the name of what is being put together and the process that does it.
const OURS: &str = ".overfall-";

/// Removes what builds have left that were killed while they put a container into its place.
pub(in crate::vagga) fn sweep(roots: &Path) {
    sweep_if(roots, is_gone);
}

/// As [`sweep`], of one build, which is known to have ended.
pub(super) fn sweep_after(roots: &Path, build: Pid) {
    let build = build.to_string();
    sweep_if(roots, |process| process == build);
}

fn sweep_if(roots: &Path, is_wanted: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(roots).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((_, process)) = name.to_str().and_then(|name| name.rsplit_once(OURS)) else {
            continue;
        };
        if is_wanted(process.strip_suffix(".old").unwrap_or(process))
            && let Err(error) = remove_unless_used(&entry.path())
        {
            log::info!("{error}");
        }
    }
}

fn fill(
    dir: &Path,
    cache: &StepCache,
    stack: &Stack,
    layered: bool,
    below: Option<&Root>,
    forced: Option<&str>,
) -> Result<()> {
    let tree = dir.join("root");
    let below = below.filter(|_| layered);
    if layered {
        // Where `_mount` shows the tree.
        fs::create_dir(&tree).map_err(failed(&tree))?;
    } else {
        let written = cache.flatten(stack, &tree)?;
        log::info!(
            "{} files, {} of them share their data",
            written.files,
            written.shared
        );
    }
    for name in ["uid_map", "gid_map"] {
        let file = dir.join(name);
        let map = fs::read(format!("/proc/self/{name}")).map_err(failed(&file))?;
        fs::write(&file, map).map_err(failed(&file))?;
    }
    let file = dir.join("last_use");
    fs::write(&file, b"").map_err(failed(&file))?;
    marker::write(
        dir,
        &Marker {
            digest: stack.digest().to_string(),
            layered,
            base: below.map(|root| root.name().to_string_lossy().into_owned()),
            // Layers are what they are called by.
            base_made: below
                .filter(|root| root.layers().is_none())
                .map(Root::made)
                .transpose()?,
            forced: forced.map(str::to_owned),
        },
    )
}

/// Puts `new` where `place` is; what was there goes. At every moment there is one or the other.
fn swap(new: &Path, place: &Path) -> Result<()> {
    let mut old = new.as_os_str().to_os_string();
    old.push(".old");
    let old = PathBuf::from(old);
    remove(&old)?;
    match renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE) {
        Ok(()) => fs::rename(new, &old).map_err(failed(new))?,
        Err(Errno::NOENT) => return fs::rename(new, place).map_err(failed(place)),
        // A file system that can't exchange.
        Err(_) => {
            fs::rename(place, &old).map_err(failed(place))?;
            fs::rename(new, place).map_err(failed(place))?;
        }
    }
    if let Err(error) = remove_unless_used(&old) {
        log::warn!("what was there before stays until it isn't used any more: {error}");
    }
    Ok(())
}

/// Removes a container that was replaced, unless somebody still works with it.
fn remove_unless_used(dir: &Path) -> Result<()> {
    let step = "removing the former container";
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = match open(dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.context(step, dir)?,
    };
    flock(&lock, FlockOperation::NonBlockingLockExclusive).context(step, dir)?;
    remove(dir)
}

fn remove(path: &Path) -> Result<()> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Ok(());
    };
    let parent = fs::File::open(parent).map_err(failed(parent))?;
    crate::sys::tree::remove(std::os::fd::AsFd::as_fd(&parent), name)
        .map_err(|errno| Error::system("removing a directory").at(path).errno(errno))
}

/// Removes the layer of a build that doesn't cache: everything of it is in the plain directory. One
/// that a container is made of stays, as do those of other builds.
fn forget(project: &Project, stack: &Stack) -> Result<()> {
    let ours: Vec<_> = stack.layers().iter().map(|layer| layer.0).collect();
    forget_layers(project, &ours)
}

/// Makes `.vagga/NAME` lead to this version.
pub(super) fn link(project: &Project, plan: &Plan) -> Result<()> {
    let vagga = project.vagga_dir();
    let link = vagga.join(&plan.name);
    let roots = if vagga.join(".lnk").is_dir() {
        ".lnk/.roots"
    } else {
        ".roots"
    };
    let target = Path::new(roots).join(plan.root_name()).join("root");
    if fs::read_link(&link).is_ok_and(|now| now == target) {
        return Ok(());
    }
    let prefix = format!(".{}.", plan.name);
    sweep_links(&vagga, &prefix);
    let temporary = vagga.join(format!("{prefix}{}{LINK}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    symlink(&target, &temporary).map_err(failed(&temporary))?;
    fs::rename(&temporary, &link).map_err(failed(&link))
}

/// What the name of a link ends with that isn't in its place yet.
const LINK: &str = ".tmp";

/// Removes links of builds that were killed before they had put them into their place.
fn sweep_links(vagga: &Path, prefix: &str) {
    for entry in fs::read_dir(vagga).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(prefix)?.strip_suffix(LINK));
        if process.is_some_and(is_gone) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether `process` is the number of a process that there isn't.
pub(super) fn is_gone(process: &str) -> bool {
    process
        .parse::<u32>()
        .is_ok_and(|process| !Path::new(&format!("/proc/{process}")).exists())
}
