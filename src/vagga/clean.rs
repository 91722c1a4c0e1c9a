//! Removing what overfall has made for a project and nobody needs any more.
//!
//! A container goes when no `.vagga/NAME` leads to it, it hasn't been used for some time, nobody
//! works with it, and no container that stays is built on it. Vagga's own containers are left to
//! vagga.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::build::{cache, layers_dir, sweep};
use super::marker::{self, Marker};
use super::project::Project;
use super::transient::Removal;
use crate::error::Context;
use crate::steps::{self, Digest};
use crate::sys::tree;
use crate::{Error, Result};

/// What was removed, or would be, and what can't be.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Containers, as paths.
    pub removed: Vec<PathBuf>,
    /// Containers that would go but for those that are built on them: both names.
    pub needed: Vec<(OsString, OsString)>,
}

/// A container of ours.
struct Candidate {
    name: OsString,
    marker: Marker,
    stays: bool,
}

/// Removes containers that haven't been used for `at_least`.
pub fn clean_unused(project: &Project, at_least: Duration, removal: Removal) -> Result<Cleaned> {
    let step = "cleaning unused containers";
    let dir = project.storage().join(".roots");
    if removal == Removal::Real {
        sweep(&dir);
    }
    let linked = linked(project)?;
    let mut all = Vec::new();
    for name in names(&dir)? {
        let path = dir.join(&name);
        // A build's, or one that was replaced while somebody worked with it.
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if hidden && !name.as_encoded_bytes().ends_with(b".old") {
            continue;
        }
        if let Some(marker) = marker::read(&path)? {
            let stays = linked.contains(&name) || (!hidden && used_for(&path) < at_least);
            all.push(Candidate {
                name,
                marker,
                stays,
            });
        }
    }
    let mut cleaned = Cleaned::default();
    keep_bases(&mut all, &mut cleaned);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for candidate in all.into_iter().filter(|candidate| !candidate.stays) {
        let path = dir.join(&candidate.name);
        let lock = open(&path, flags, Mode::empty()).context(step, &path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if removal == Removal::Real {
            let top = open(&dir, flags, Mode::empty()).context(step, &dir)?;
            tree::remove(top.as_fd(), &candidate.name).context(step, &path)?;
        }
        cleaned.removed.push(path);
    }
    Ok(cleaned)
}

/// Marks what lies below a container that stays, and below that, and so on.
fn keep_bases(all: &mut [Candidate], cleaned: &mut Cleaned) {
    loop {
        let bases: Vec<(OsString, OsString)> = all
            .iter()
            .filter(|candidate| candidate.stays)
            .filter_map(|candidate| {
                let base = candidate.marker.base.as_ref()?;
                Some((OsString::from(base), candidate.name.clone()))
            })
            .collect();
        let mut changed = false;
        for candidate in all.iter_mut().filter(|candidate| !candidate.stays) {
            if let Some((base, above)) = bases.iter().find(|(base, _)| *base == candidate.name) {
                candidate.stays = true;
                changed = true;
                cleaned.needed.push((base.clone(), above.clone()));
            }
        }
        if !changed {
            return;
        }
    }
}

/// Removes layers that no container is made of and no build has used for `at_least`. Gives back
/// the names of their steps.
pub fn clean_layers(
    project: &Project,
    at_least: Duration,
    removal: Removal,
) -> Result<Vec<steps::Layer>> {
    if !layers_dir(project).is_dir() {
        return Ok(Vec::new());
    }
    let removal = match removal {
        Removal::Real => steps::Removal::Real,
        Removal::DryRun => steps::Removal::DryRun,
    };
    cache(project)?.remove_unneeded(&|| layers_of_containers(project), at_least, removal)
}

/// Removes those of `former` that no container is made of and nobody uses, nor what lies on them.
pub(super) fn forget_layers(project: &Project, former: &[Digest]) -> Result<()> {
    let cache = cache(project)?;
    let needed = || {
        let mut roots = layers_of_containers(project)?;
        let all = cache.layers()?.into_iter().map(|layer| layer.digest);
        roots.extend(all.filter(|digest| !former.contains(digest)));
        Ok(roots)
    };
    let removed = cache.remove_unneeded(&needed, Duration::ZERO, steps::Removal::Real)?;
    log::info!("{} layers of former builds have gone", removed.len());
    Ok(())
}

/// The topmost layers of all containers that are made of layers.
pub(super) fn layers_of_containers(project: &Project) -> Result<Vec<Digest>> {
    let dir = project.storage().join(".roots");
    let mut needed: Vec<Digest> = Vec::new();
    for name in names(&dir)? {
        let path = dir.join(&name);
        if let Some(marker) = marker::read(&path)?.filter(|marker| marker.layered) {
            let digest = Digest::parse(&marker.digest).ok_or_else(|| {
                Error::usage("cleaning layers")
                    .at(&path)
                    .because("it doesn't say what it is made of")
            })?;
            needed.push(digest);
        }
    }
    Ok(needed)
}

/// The containers that `.vagga/NAME` lead to.
fn linked(project: &Project) -> Result<BTreeSet<OsString>> {
    let vagga = project.vagga_dir();
    Ok(names(&vagga)?
        .into_iter()
        .filter_map(|name| fs::read_link(vagga.join(name)).ok())
        .filter_map(|target| Some(target.parent()?.file_name()?.to_os_string()))
        .collect())
}

fn names(dir: &Path) -> Result<Vec<OsString>> {
    let step = "listing containers";
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match open(dir, flags, Mode::empty()) {
        Err(crate::sys::Errno::NOENT) => Ok(Vec::new()),
        Err(errno) => Err(Error::system(step).at(dir).errno(errno)),
        Ok(fd) => {
            let mut names = tree::list(fd.as_fd(), OsStr::new("."))
                .context(step, dir)?
                .unwrap_or_default();
            names.sort();
            Ok(names)
        }
    }
}

/// How long ago a container was used.
fn used_for(dir: &Path) -> Duration {
    let used = fs::metadata(dir.join("last_use")).and_then(|meta| meta.modified());
    let age = used
        .ok()
        .and_then(|used| SystemTime::now().duration_since(used).ok());
    age.unwrap_or_default()
}

/// Reads `10days`, `2h`, `30 min`, `90`: seconds without a unit.
pub fn parse_age(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 17] = [
        ("seconds", 1),
        ("second", 1),
        ("sec", 1),
        ("s", 1),
        ("", 1),
        ("minutes", 60),
        ("minute", 60),
        ("min", 60),
        ("m", 60),
        ("hours", 3600),
        ("hour", 3600),
        ("h", 3600),
        ("days", 86400),
        ("day", 86400),
        ("d", 86400),
        ("weeks", 604_800),
        ("week", 604_800),
    ];
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let unit = text[end..].trim();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Some(Duration::from_secs(number.checked_mul(*factor)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (text, seconds) in [
            ("10days", Some(864_000)),
            ("2 h", Some(7200)),
            ("90", Some(90)),
            ("days", None),
            ("1fortnight", None),
        ] {
            assert_eq!(parse_age(text).map(|age| age.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn what_lies_below_stays() {
        let candidate = |name: &str, base: Option<&str>, stays| Candidate {
            name: name.into(),
            marker: Marker {
                digest: String::new(),
                layered: true,
                base: base.map(str::to_owned),
                base_made: None,
                forced: None,
            },
            stays,
        };
        let mut all = [
            candidate("a", None, false),
            candidate("b", Some("a"), false),
            candidate("c", Some("b"), true),
            candidate("d", None, false),
        ];
        let mut cleaned = Cleaned::default();
        keep_bases(&mut all, &mut cleaned);
        let stay: Vec<bool> = all.iter().map(|candidate| candidate.stays).collect();
        assert_eq!(stay, [true, true, true, false]);
        assert_eq!(cleaned.needed.len(), 2);
    }
}
