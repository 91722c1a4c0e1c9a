//! `_run`: a command in a built container, as vagga would run it.

mod record;
mod stage;
mod tree;
mod upper;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub(super) use stage::Stage;
pub(super) use tree::Tree;
use upper::Upper;

use super::build::tell_if_outdated;
use super::config::Container;
use super::environ::{Wishes, environment};
use super::project::{Project, Root};
use super::transient::sweep;
use super::volumes::{self, Kind, Volume};
use crate::container::{
    Access, Command, Content, End, Ended, Memory, Place, Root as NewRoot, Standing, enter, launch,
};
use crate::snapshot::{Means, Snapshot};
use crate::{Error, Result};

/// Where what the command writes to the root goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Writing {
    /// Nowhere: the root is read-only.
    #[default]
    Refused,
    /// Into a copy that goes away at the end.
    Transient,
    /// Into a copy that stays.
    Kept,
    /// Into this copy that was kept; it stays. A name in `.vagga/.transient`.
    Resumed(OsString),
}

/// A command to be run in a container.
#[derive(Debug)]
pub struct RunPlan<'p> {
    /// The project.
    pub project: &'p Project,
    /// The container's name.
    pub container: &'p str,
    /// What becomes of writes to the root.
    pub writing: Writing,
    /// Who carries the overlays; `!Snapshot` volumes may say otherwise when it is `Auto`.
    pub means: Means,
    /// The command and its arguments.
    pub words: Vec<OsString>,
    /// Variables that were asked for.
    pub wishes: Wishes,
    /// Where it starts, as seen inside; `/work` and where the user is in the project without it.
    pub directory: Option<PathBuf>,
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// How the command ended.
    pub ended: Ended,
    /// The copy that was kept, in `.vagga/.transient`.
    pub kept: Option<OsString>,
}

impl RunPlan<'_> {
    /// Runs it. The calling process must have one thread, and stays in the run's namespaces.
    pub fn execute(self) -> Result<Outcome> {
        let container = self.project.config().container(self.container)?;
        let built = self.project.built(self.container)?;
        tell_if_outdated(self.project, self.container, &built);
        built.touch();
        let volumes = volumes::read(self.project, container)?;
        let sources = self.snapshot_sources(&volumes)?;
        let outside: Vec<_> = std::env::vars_os().collect();
        let upper = self.upper(&built)?;

        if upper.is_some() {
            sweep(self.project);
        }

        // Everything is known; from here on in the container's own namespaces.
        enter(Standing::of_self(), &built.maps().identity())?;
        let standing = Standing::NamespaceRoot;
        let stage = Stage::make(self.project)?;
        let tree = match &upper {
            None => Tree::read_only(self.project, stage.place("root")?, &built, self.means)?,
            Some(upper) => Tree::writable(self.project, &built, upper, self.means)?,
        };
        let file = environ_file(self.project, container, tree.merged())?;
        let settings = self.project.settings();
        let env = environment(container, settings, file.as_deref(), &self.wishes, &outside)?;
        let command = Command::new(self.words.clone())
            .environment(env)
            .directory(self.start_directory());
        command.check()?;

        let mut snapshots = Vec::new();
        // Nobody may remove them meanwhile.
        let mut others: Vec<(Tree, Root)> = Vec::new();
        let mut mount_other = |root: Root| {
            let place = stage.place(&format!("container{}", others.len()))?;
            let other = Tree::read_only(self.project, place, &root, self.means)?;
            let merged = other.merged().to_path_buf();
            others.push((other, root));
            Ok::<_, Error>(merged)
        };
        let mut places = self.own_places(container, &tree);
        for (at, (volume, source)) in volumes.into_iter().zip(sources).enumerate() {
            places.retain(|place| place.inside != volume.inside);
            let content = match volume.kind {
                Kind::Content(content) => content,
                Kind::Container(root) => Content::Bind {
                    source: mount_other(root)?,
                    access: Access::ReadOnly,
                },
                Kind::Snapshot(wish) => {
                    let source = match source {
                        Some(root) => stage::in_tree(&mount_other(root)?, &volume.inside)?,
                        None => stage::in_tree(tree.merged(), &volume.inside)?,
                    };
                    let like = stage::in_tree(tree.merged(), &volume.inside)?;
                    let target = stage.place_like(&format!("volume{at}"), &like)?;
                    let means = match wish.means {
                        Means::Auto => self.means,
                        told => told,
                    };
                    let mut snapshot = Snapshot::of(&target)
                        .source(source)
                        .size(wish.size)
                        .means(means);
                    if let Some(uid) = wish.uid {
                        snapshot = snapshot.owner_uid(uid);
                    }
                    if let Some(gid) = wish.gid {
                        snapshot = snapshot.owner_gid(gid);
                    }
                    let mounted = snapshot.mount()?;
                    log::info!("{}: snapshot, {}", volume.inside.display(), mounted.means());
                    snapshots.push(mounted);
                    Content::Bind {
                        source: target,
                        access: Access::Writable,
                    }
                }
            };
            places.push(Place {
                inside: volume.inside,
                content,
            });
        }
        places.sort_by(|a, b| a.inside.cmp(&b.inside));
        let root = NewRoot {
            merged: tree.merged().to_path_buf(),
            shown: Vec::new(),
            places,
            hidden: self.own_directories(&stage, &tree),
            standing,
        };
        let ended = launch(root, command, None, &tree.release_fds())?;
        // The last one first; each waits until everything is written.
        let mut outcome = Ok(());
        while let Some(snapshot) = snapshots.pop() {
            outcome = outcome.and(snapshot.unmount());
        }
        for (other, _root) in others {
            outcome = outcome.and(other.finish());
        }
        let kept = tree.kept().map(OsStr::to_os_string);
        outcome.and(tree.finish())?;
        Ok(Outcome { ended, kept })
    }

    /// The other containers that snapshots are taken of.
    fn snapshot_sources(&self, volumes: &[Volume]) -> Result<Vec<Option<Root>>> {
        volumes
            .iter()
            .map(|volume| match &volume.kind {
                Kind::Snapshot(wish) => wish
                    .container
                    .as_deref()
                    .map(|name| self.project.built(name))
                    .transpose(),
                Kind::Content(_) | Kind::Container(_) => Ok(None),
            })
            .collect()
    }

    /// What vagga puts into every container.
    fn own_places(&self, container: &Container, tree: &Tree) -> Vec<Place> {
        let bind = |inside: &Path, source: &Path, access| Place {
            inside: inside.to_path_buf(),
            content: Content::Bind {
                source: source.to_path_buf(),
                access,
            },
        };
        let memory = |inside: &str, mode, dirs| Place {
            inside: inside.into(),
            content: Content::Memory(Memory {
                size: 100 << 20,
                mode,
                dirs,
                files: Vec::new(),
            }),
        };
        let mut places = vec![bind(
            Path::new("/work"),
            self.project.dir(),
            Access::Writable,
        )];
        let has = |path: &str| {
            stage::in_tree(tree.merged(), Path::new(path)).is_ok_and(|place| place.is_dir())
        };
        if has("/tmp") {
            places.push(memory("/tmp", 0o1777, Vec::new()));
        }
        if has("/run") {
            places.push(memory("/run", 0o755, vec![("shm".into(), 0o1777)]));
        }
        let files = [
            (&container.resolv_conf, Path::new("/etc/resolv.conf")),
            (&container.hosts, Path::new("/etc/hosts")),
        ];
        for (wanted, ours) in files {
            let Some(inside) = wanted else { continue };
            let there = stage::in_tree(tree.merged(), inside).is_ok_and(|place| place.is_file());
            if ours.exists() && (there || tree.is_writable()) {
                places.push(bind(inside, ours, Access::ReadOnly));
            }
        }
        places
    }

    /// Where the command starts: as asked for, or where the user is in the project.
    fn start_directory(&self) -> PathBuf {
        let work = Path::new("/work");
        if let Some(wanted) = &self.directory {
            return work.join(wanted);
        }
        let here = std::env::current_dir().ok();
        let below = here
            .as_deref()
            .and_then(|here| here.strip_prefix(self.project.dir()).ok());
        match below {
            Some(below) if !below.as_os_str().is_empty() => work.join(below),
            _ => work.to_path_buf(),
        }
    }

    fn upper(&self, built: &Root) -> Result<Option<Upper>> {
        Ok(match &self.writing {
            Writing::Refused => None,
            Writing::Transient => Some(Upper::fresh(self.container, End::Remove)),
            Writing::Kept => Some(Upper::fresh(self.container, End::Keep)),
            Writing::Resumed(name) => Some(Upper::resumed(self.project, built, name, self.means)?),
        })
    }

    /// The run's own directories as the command would see them in `/work`.
    fn own_directories(&self, stage: &Stage, tree: &Tree) -> Vec<PathBuf> {
        tree.directory()
            .into_iter()
            .chain([stage.directory()])
            .filter_map(|dir| dir.strip_prefix(self.project.dir()).ok())
            .map(|below| Path::new("/work").join(below))
            .collect()
    }
}

/// The text of the container's `environ-file`, which is in the project or in the container's `tree`.
fn environ_file(project: &Project, container: &Container, tree: &Path) -> Result<Option<Vec<u8>>> {
    let Some(name) = &container.environ_file else {
        return Ok(None);
    };
    let path = match Path::new("/work").join(name).strip_prefix("/work") {
        Ok(below) => project.dir().join(below),
        Err(_) => stage::in_tree(tree, name)?,
    };
    std::fs::read(&path).map(Some).map_err(|error| {
        Error::usage("reading the environment's file")
            .at(&path)
            .because(error.to_string())
    })
}
