//! What has to be done for a container, and the digest of everything that the result depends on.
//!
//! A step's digest covers, beside all digests before it:
//!
//! | step | what |
//! |---|---|
//! | every one | the container's `uids` and `gids` and the ids that they became; the variables that `!Env` has set and the directories that `!CacheDirs` has named so far |
//! | `!Container` | the digest of the other container; of one that vagga built: its version and the number of its directory, so that one that was built anew counts as another |
//! | `!Sh`, `!Cmd`, `!RunAs` | the text and the ids |
//! | `!Text` | paths and texts |
//! | `!Copy` from below `/work` | where to, the settings, and of each file chosen its name, type, permissions, owners, and content or target; times where they are preserved |
//! | `!Copy` from elsewhere | where from and to, and the settings: what is there came from the steps before |
//! | `!Depends` | of each file chosen its name, type, whether it may be executed, and content |
//! | `!Tar`, `!TarInstall` | `sha256`, or else the content of a local archive, or else the address; the other settings |
//! | `!EnsureDir`, `!EmptyDir`, `!Remove`, `!CacheDirs`, `!Env` | what they say |
//! | the end | `data-dirs`, and the directories that are emptied, removed or made then |
//!
//! It doesn't cover what a command fetches from the network or finds in `/work` by itself, nor
//! the content of caches: `!Depends` is for that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::action::{Action, Written};
use super::contents::Contents;
use super::{Built, commit, elsewhere, files};
use crate::Result;
use crate::container::Credentials;
use crate::steps::Digest;
use crate::vagga::config::{Config, Container};
use crate::vagga::idmaps::{self, Maps};
use crate::vagga::project::{Project, Root};
use crate::vagga::yaml::{Node, Pos};

/// A container to be built.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) maps: Maps,
    pub(super) base: Option<Base>,
    /// Whether the base is a lower layer; else it is copied.
    pub(super) overlay: bool,
    pub(super) steps: Vec<Planned>,
    pub(super) finish: Finish,
    /// Of what all steps depend on.
    pub(super) seed: Digest,
    /// Of everything.
    pub(super) digest: Digest,
}

/// The container that another one begins with.
#[derive(Debug)]
pub(super) enum Base {
    /// One that is built here.
    Ours(Box<Plan>),
    /// One that vagga has built.
    Vaggas { name: String, digest: Digest },
}

/// A step that changes files, and what it depends on.
#[derive(Debug)]
pub(super) struct Planned {
    /// As counted in `vagga.yaml`, from 1.
    pub(super) number: usize,
    pub(super) written: Written,
    pub(super) bytes: Vec<u8>,
    pub(super) context: Context,
}

/// What steps leave to those after them, beside files.
#[derive(Debug, Clone, Default)]
pub(super) struct Context {
    pub(super) environ: BTreeMap<String, String>,
    /// Place in the container, name in `.vagga/.cache`.
    pub(super) caches: BTreeMap<PathBuf, PathBuf>,
}

/// What is done at the end.
#[derive(Debug, Clone, Default)]
pub(super) struct Finish {
    pub(super) removed: Vec<PathBuf>,
    pub(super) emptied: Vec<PathBuf>,
    pub(super) ensured: Vec<PathBuf>,
    pub(super) data_dirs: Vec<PathBuf>,
    pub(super) bytes: Vec<u8>,
}

/// Directories of every container.
pub(super) const LAYOUT: [&str; 6] = ["/dev", "/proc", "/run", "/sys", "/tmp", "/work"];

impl Base {
    pub(super) fn digest(&self) -> Digest {
        match self {
            Base::Ours(plan) => plan.digest,
            Base::Vaggas { digest, .. } => *digest,
        }
    }
}

impl Plan {
    /// For the container of this name and those that it begins with. Reads every step, and every
    /// file of the project that one of them copies or depends on.
    ///
    /// A container whose configuration is needed is built by `build`, where it isn't; without
    /// `build` that is an error.
    pub(super) fn of(project: &Project, name: &str, build: Option<Build<'_>>) -> Result<Self> {
        Planner {
            project,
            build,
            trail: Vec::new(),
        }
        .plan(name)
    }

    /// What `.vagga/.roots/NAME.` ends with.
    pub(super) fn version(&self) -> String {
        let mut text = self.digest.to_string();
        text.truncate(8);
        text
    }

    /// `NAME.VERSION`.
    pub(super) fn root_name(&self) -> String {
        format!("{}.{}", self.name, self.version())
    }
}

/// Builds a container that another one needs before it can be planned.
pub(super) type Build<'b> = &'b dyn Fn(&Plan) -> Result<Built>;

struct Planner<'p> {
    project: &'p Project,
    build: Option<Build<'p>>,
    /// The containers that are being planned, to notice a circle.
    trail: Vec<String>,
}

/// A plan on its way.
struct Draft {
    context: Context,
    base: Option<Base>,
    steps: Vec<Planned>,
    finish: Finish,
    /// What steps that change no files have said.
    pending: Contents,
    maps: Maps,
}

impl<'p> Planner<'p> {
    fn plan(&mut self, name: &str) -> Result<Plan> {
        let container = self.project.config().container(name)?;
        if self.trail.iter().any(|known| known == name) {
            let way = self.trail.join(" -> ");
            return Err(container.pos.error(format!(
                "containers are based on each other: {way} -> {name}"
            )));
        }
        self.trail.push(name.to_owned());
        let maps = idmaps::for_build(container)?;
        let mut draft = Draft {
            context: Context {
                environ: environ(),
                caches: BTreeMap::new(),
            },
            base: None,
            steps: Vec::new(),
            finish: Finish {
                data_dirs: container.data_dirs.clone(),
                emptied: ["/tmp", "/var/tmp"].map(PathBuf::from).to_vec(),
                ensured: LAYOUT.map(PathBuf::from).to_vec(),
                ..Finish::default()
            },
            pending: Contents::new(),
            maps,
        };
        self.add_all(&mut draft, &container.setup, None)?;
        self.trail.pop();

        let maps = draft.maps.clone();
        let mut contents = Contents::new();
        contents.field("users", maps.users.to_text().as_bytes());
        contents.field("groups", maps.groups.to_text().as_bytes());
        contents.field(
            "ids asked for",
            format!("{:?}", (&container.uids, &container.gids)).as_bytes(),
        );
        let seed = Digest::of(contents.bytes());
        let finish = draft.finish_with_bytes();
        let mut digest = seed;
        if let Some(base) = &draft.base {
            digest = digest.then(format!("container {}", base.digest()).as_bytes());
        }
        for step in &draft.steps {
            digest = digest.then(&step.bytes);
        }
        digest = digest.then(&finish.bytes);
        Ok(Plan {
            name: name.to_owned(),
            maps,
            base: draft.base,
            overlay: container.overlay,
            steps: draft.steps,
            finish,
            seed,
            digest,
        })
    }

    /// `number` is that of the step which these steps stand in for.
    fn add_all(&mut self, draft: &mut Draft, setup: &[Node], number: Option<usize>) -> Result<()> {
        // All of them, before anything is done for one.
        let steps = setup
            .iter()
            .map(Written::read)
            .collect::<Result<Vec<_>>>()?;
        for (at, written) in steps.into_iter().enumerate() {
            self.add(draft, written, number.unwrap_or(at + 1))?;
        }
        Ok(())
    }

    fn add(&mut self, draft: &mut Draft, written: Written, number: usize) -> Result<()> {
        match &written.action {
            Action::Container(base) => self.begin_with(draft, base, &written.pos),
            Action::SubConfig(sub) => {
                const DEEPEST: usize = 16;
                if self.trail.len() > DEEPEST {
                    return Err(written
                        .pos
                        .error("configurations take steps from each other"));
                }
                let setup = match &sub.source {
                    None => {
                        let file = self.project.dir().join(&sub.path);
                        let dir = file.parent().unwrap_or(self.project.dir());
                        let config = Config::read(dir, Some(&file))?;
                        config.container(&sub.container)?.setup.clone()
                    }
                    Some(name) => {
                        let root = self.source(name, &written.pos)?;
                        elsewhere::setup_in(self.project, &root, sub)?
                    }
                };
                self.trail
                    .push(format!("{}:{}", sub.path.display(), sub.container));
                let outcome = self.add_all(draft, &setup, Some(number));
                self.trail.pop();
                outcome
            }
            Action::Env(environ) => {
                for (key, value) in environ {
                    draft.context.environ.insert(key.clone(), value.clone());
                }
                Ok(())
            }
            Action::Depends { path, filter } => {
                let dir = self.project.dir().join(path);
                files::digest_for_dependence(&mut draft.pending, &dir, filter)
            }
            _ => self.add_changing(draft, written, number),
        }
    }

    fn add_changing(&mut self, draft: &mut Draft, written: Written, number: usize) -> Result<()> {
        let mut contents = std::mem::replace(&mut draft.pending, Contents::new());
        for (key, value) in &draft.context.environ {
            contents.field("variable", key.as_bytes());
            contents.field("value", value.as_bytes());
        }
        for (place, name) in &draft.context.caches {
            contents.path("cache at", place);
            contents.path("cache", name);
        }
        files::digest(&mut contents, self.project, &written.action)?;
        let context = draft.context.clone();
        match &written.action {
            Action::RunAs(run) => draft.has_ids_for(&run.who, &written.pos)?,
            Action::CacheDirs(caches) => draft.context.caches.extend(caches.clone()),
            Action::EnsureDir(path) => draft.finish.ensured.push(path.clone()),
            Action::EmptyDir(path) => draft.finish.emptied.push(path.clone()),
            Action::Remove(path) => draft.finish.removed.push(path.clone()),
            _ => {}
        }
        draft.steps.push(Planned {
            number,
            written,
            bytes: contents.into_bytes(),
            context,
        });
        Ok(())
    }

    /// The built container `name`, in which a configuration is.
    fn source(&mut self, name: &str, pos: &Pos) -> Result<Root> {
        self.known(name, pos)?;
        let built = self.project.built(name).ok();
        if let Some(root) = built.filter(|root| !root.is_ours()) {
            return Ok(root);
        }
        let plan = self.plan(name)?;
        if !commit::is_there(self.project, &plan, None)? {
            let built = match self.build {
                Some(build) => build(&plan)?,
                None => {
                    return Err(pos
                        .error(format!(
                            "`{name}`, which has the configuration, isn't built"
                        ))
                        .remedy(format!("overfall vagga _build {name}")));
                }
            };
            if built == Built::Failed {
                return Err(pos.error(format!(
                    "`{name}`, which has the configuration, couldn't be built"
                )));
            }
        }
        self.project.root(&plan.root_name())
    }

    /// The container `name` of `vagga.yaml`.
    fn known(&self, name: &str, pos: &Pos) -> Result<&'p Container> {
        let found = self.project.config().container(name);
        found.map_err(|error| pos.error(error.why().unwrap_or("not there").to_owned()))
    }

    fn begin_with(&mut self, draft: &mut Draft, name: &str, pos: &Pos) -> Result<()> {
        if draft.base.is_some() || !draft.steps.is_empty() {
            return Err(pos.error("`!Container` comes before every step that changes files"));
        }
        let container = self.known(name, pos)?;
        let built = self.project.built(name).ok();
        draft.base = Some(match built.filter(|root| !root.is_ours()) {
            Some(root) => {
                self.inherit(draft, container, 0);
                Base::Vaggas {
                    name: name.to_owned(),
                    digest: Digest::of(root.identity()?.as_bytes()),
                }
            }
            None => {
                let plan = self.plan(name)?;
                if let Some(last) = plan.steps.last() {
                    draft.context = last.context.clone();
                }
                self.inherit(draft, container, 0);
                Base::Ours(Box::new(plan))
            }
        });
        Ok(())
    }

    /// What the steps of a base leave to those after them. Steps that aren't known leave nothing.
    fn inherit(&self, draft: &mut Draft, container: &Container, depth: usize) {
        const DEEPEST: usize = 16;
        for written in container
            .setup
            .iter()
            .filter_map(|node| Written::read(node).ok())
        {
            match written.action {
                Action::Container(name) => {
                    if let Ok(base) = self.project.config().container(&name)
                        && depth < DEEPEST
                    {
                        self.inherit(draft, base, depth + 1);
                    }
                }
                Action::Env(environ) => draft.context.environ.extend(environ),
                Action::CacheDirs(caches) => draft.context.caches.extend(caches),
                Action::EnsureDir(path) => draft.finish.ensured.push(path),
                Action::EmptyDir(path) => draft.finish.emptied.push(path),
                Action::Remove(path) => draft.finish.removed.push(path),
                _ => {}
            }
        }
    }
}

impl Draft {
    /// Refuses a user or a group that nobody can become in the container.
    fn has_ids_for(&self, who: &Credentials, pos: &Pos) -> Result<()> {
        let user = match who.external {
            Some(external) => ("external-user-id", external, &self.maps.users),
            None => ("user-id", who.user, &self.maps.users),
        };
        let groups = std::iter::once(("group-id", who.group)).chain(
            who.others
                .iter()
                .map(|group| ("supplementary-gids", *group)),
        );
        let groups = groups.map(|(setting, group)| (setting, group, &self.maps.groups));
        match std::iter::once(user)
            .chain(groups)
            .find(|(_, id, map)| !map.has(*id))
        {
            None => Ok(()),
            Some((setting, id, _)) => Err(pos
                .error(format!("`{setting}: {id}` is none of the container's ids"))
                .remedy(
                    "`uids` and `gids` have to name it, and /etc/subuid and /etc/subgid to give it",
                )),
        }
    }

    /// What is left for the end, with its bytes.
    fn finish_with_bytes(&mut self) -> Finish {
        let mut finish = std::mem::take(&mut self.finish);
        let mut contents = std::mem::replace(&mut self.pending, Contents::new());
        for (key, value) in &self.context.environ {
            contents.field("variable", key.as_bytes());
            contents.field("value", value.as_bytes());
        }
        let caches: Vec<PathBuf> = self.context.caches.keys().cloned().collect();
        finish.emptied.extend(caches);
        let lists = [
            ("emptied", &finish.emptied),
            ("removed", &finish.removed),
            ("ensured", &finish.ensured),
            ("kept", &finish.data_dirs),
        ];
        for (what, paths) in lists {
            for path in paths {
                contents.path(what, path);
            }
        }
        finish.bytes = contents.into_bytes();
        finish
    }
}

/// What every step of a build sees.
fn environ() -> BTreeMap<String, String> {
    [
        ("TERM", "dumb"),
        ("HOME", "/tmp"),
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// `/work/…` on the machine.
pub(super) fn of_project(project: &Project, inside: &Path) -> Option<PathBuf> {
    let below = inside.strip_prefix("/work").ok()?;
    Some(project.dir().join(below))
}
