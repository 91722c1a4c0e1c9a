//! The build of one container: which steps share a layer, and one after the other.

use std::collections::BTreeMap;

use nix::unistd::Pid;

use super::action::Action;
use super::janitor::Janitor;
use super::perform::{Fetched, Site};
use super::plan::{Base, Context, Plan, Planned};
use super::{BuildOptions, StepState, archive, cache, commit, forced};
use crate::container::{Standing, enter};
use crate::error::Context as _;
use crate::flatten::{Flatten, Meter, Owner};
use crate::format::XattrNamespace;
use crate::steps::{Begun, Digest, Stack, Step, StepCache, Work};
use crate::sys::process;
use crate::vagga::clean::forget_layers;
use crate::vagga::lowers::Lowers;
use crate::vagga::project::{Project, Root};
use crate::{Error, Result};

/// A build that has everything it needs from outside.
#[derive(Debug)]
pub(super) struct Session<'p> {
    project: &'p Project,
    plan: &'p Plan,
    options: BuildOptions,
    fetched: Fetched,
    /// Locked, so that it isn't removed meanwhile.
    base: Option<Root>,
    /// What the steps depend on after a build by force, see [`forced`].
    salt: Option<String>,
    /// In a build by force: the container's new text, and the salt of the builds before.
    force: Option<Force>,
}

#[derive(Debug)]
struct Force {
    text: String,
    former: Option<String>,
}

/// Steps that make one layer together.
#[derive(Debug)]
struct Group<'p> {
    step: Step,
    title: String,
    begins: bool,
    steps: &'p [Planned],
    ends: bool,
}

impl<'p> Session<'p> {
    /// `fresh` takes nothing from the cache.
    pub(super) fn prepare(
        project: &'p Project,
        plan: &'p Plan,
        options: BuildOptions,
        fresh: bool,
    ) -> Result<Self> {
        let mut fetched = BTreeMap::new();
        for step in &plan.steps {
            let wanted = match &step.written.action {
                Action::Tar(tar) => &tar.archive,
                Action::TarInstall(install) => &install.archive,
                _ => continue,
            };
            fetched.insert(wanted.url.clone(), archive::fetch(project, wanted)?);
        }
        let mut session = Self::prepare_to_look(project, plan, options)?;
        session.fetched = fetched;
        if fresh {
            let text = forced::fresh()?;
            let salt = forced::all(Some(&text), session.base.as_ref());
            let former = std::mem::replace(&mut session.salt, salt);
            session.force = Some(Force { text, former });
        }
        Ok(session)
    }

    /// Without anything that only steps need.
    pub(super) fn prepare_to_look(
        project: &'p Project,
        plan: &'p Plan,
        options: BuildOptions,
    ) -> Result<Self> {
        let base = plan.base.as_ref().map(|base| match base {
            Base::Ours(base) => project.root(&base.root_name()),
            Base::Vaggas { name, .. } => project.built(name),
        });
        let base = base.transpose()?;
        let own = forced::read(project, &plan.name)?;
        Ok(Self {
            project,
            plan,
            options,
            fetched: Fetched::new(),
            salt: forced::all(own.as_deref(), base.as_ref()),
            base,
            force: None,
        })
    }

    fn overlays(&self) -> bool {
        self.plan.overlay || self.options.overlay
    }

    /// Builds it. The process is in the container's namespaces afterwards, and ends with `parent`,
    /// which has forked it: the mounts and processes of a killed build go with it.
    pub(super) fn run(&self, parent: Pid) -> Result<()> {
        enter(Standing::of_self(), &self.plan.maps.identity())?;
        process::end_with(parent).context("building", self.project.dir())?;
        let janitor = Janitor::start(self.project)?;
        let outcome = self.build();
        janitor.dismiss();
        outcome
    }

    fn build(&self) -> Result<()> {
        let cache = cache(self.project)?.backend(self.options.backend);
        if let Some(force) = &self.force {
            forced::write(self.project, &self.plan.name, &force.text)?;
        }
        let salt = self.salt.as_deref();
        let (mut stack, _lowers) = self.bottom(&cache, salt)?;
        for group in self.groups(salt, self.options.cache_each_step) {
            stack = match cache.begin(&stack, &group.step)? {
                Begun::Hit(stack) => {
                    say(&group.title, "from the cache");
                    stack
                }
                Begun::Work(work) => {
                    say(&group.title, "runs");
                    self.carry_out(&group, work)?
                }
            };
        }
        commit::commit(
            self.project,
            self.plan,
            cache,
            &stack,
            self.options,
            self.below(),
            salt,
        )?;
        if let Some(force) = &self.force
            && let Err(error) = self.forget(force.former.as_deref())
        {
            log::warn!("{error}");
        }
        if let Some(base) = &self.base {
            base.touch();
        }
        Ok(())
    }

    /// What each group's layer is.
    pub(super) fn states(&self) -> Result<Vec<StepState>> {
        let cache = cache(self.project)?;
        let salt = self.salt.as_deref();
        let (stack, _lowers) = self.bottom(&cache, salt)?;
        let mut stack = Some(stack);
        let mut states = Vec::new();
        for group in self.groups(salt, self.options.cache_each_step) {
            stack = match &stack {
                Some(below) => cache.find(below, &group.step)?,
                None => None,
            };
            let layer = match &stack {
                Some(stack) => cache.steps(stack)?.pop(),
                None => None,
            };
            states.push(StepState {
                title: group.title,
                layer,
            });
        }
        Ok(states)
    }

    /// Removes the layers of the builds before, which no build finds any more.
    fn forget(&self, former: Option<&str>) -> Result<()> {
        let mut layers = Vec::new();
        {
            let cache = cache(self.project)?;
            for each_step in [true, false] {
                let (mut stack, _lowers) = self.bottom(&cache, former)?;
                for group in self.groups(former, each_step) {
                    match cache.find(&stack, &group.step)? {
                        Some(above) => stack = above,
                        None => break,
                    }
                    layers.push(stack.digest());
                }
            }
            // Now they aren't held any more.
        }
        forget_layers(self.project, &layers)
    }

    /// The base, where it lies below the layers.
    fn below(&self) -> Option<&Root> {
        self.base.as_ref().filter(|_| self.overlays())
    }

    /// What the first layer lies on.
    fn bottom(&self, cache: &StepCache, salt: Option<&str>) -> Result<(Stack, Option<Lowers>)> {
        let mut seed = self.plan.seed;
        if let Some(salt) = salt {
            seed = seed.then(salt.as_bytes());
        }
        let Some(root) = self.below() else {
            return Ok((Stack::empty(seed), None));
        };
        let lowers = Lowers::of(self.project, root)?;
        let stack = match root.layers() {
            Some(top) => cache.stack(top)?.ok_or_else(|| lowers.gone(root))?,
            None => {
                let base = self.base_digest();
                Stack::on(
                    lowers.dirs().iter().cloned(),
                    seed.then(base.to_string().as_bytes()),
                )
            }
        };
        Ok((stack, Some(lowers)))
    }

    fn base_digest(&self) -> Digest {
        self.plan.base.as_ref().map_or(self.plan.seed, Base::digest)
    }

    fn groups(&self, salt: Option<&str>, each_step: bool) -> Vec<Group<'p>> {
        let steps = self.plan.steps.as_slice();
        let mut groups: Vec<(String, &'p [Planned], bool)> = Vec::new();
        if each_step {
            for step in steps {
                let title = format!("{} {}", step.number, step.written.title);
                groups.push((title, std::slice::from_ref(step), false));
            }
            groups.push(("the end".to_owned(), &[], true));
        } else {
            groups.push(("all steps".to_owned(), steps, true));
        }
        groups
            .into_iter()
            .enumerate()
            .map(|(at, (title, steps, ends))| {
                let begins = at == 0;
                let mut bytes = Vec::new();
                if begins && let Some(base) = &self.plan.base {
                    bytes.extend(format!("begins with {}", base.digest()).into_bytes());
                    bytes.push(u8::from(self.overlays()));
                }
                // Whose ids they are is part of every layer, also on another container's.
                bytes.extend(self.plan.seed.to_string().into_bytes());
                for step in steps {
                    bytes.extend(&step.bytes);
                }
                if ends {
                    bytes.extend(&self.plan.finish.bytes);
                }
                bytes.extend(salt.unwrap_or_default().as_bytes());
                Group {
                    step: Step::new(&title, bytes),
                    title,
                    begins,
                    steps,
                    ends,
                }
            })
            .collect()
    }

    fn carry_out(&self, group: &Group<'_>, work: Work) -> Result<Stack> {
        let tree = work.root().to_path_buf();
        let site = Site {
            project: self.project,
            tree: &tree,
        };
        let mut outcome = Ok(());
        if group.begins {
            outcome = self.begin(site).map_err(|error| (None, error));
        }
        for step in group.steps {
            if outcome.is_err() {
                break;
            }
            outcome = site
                .perform(&step.written.action, &step.context, &self.fetched)
                .map_err(|error| (Some(step), error));
        }
        if outcome.is_ok() && group.ends {
            outcome = site
                .finish(&self.plan.finish)
                .map_err(|error| (None, error));
        }
        match outcome {
            Ok(()) => work.commit(),
            Err((step, error)) => {
                if self.options.shell {
                    crate::say::say(format_args!(
                        "{error}; a shell in the container as it is now"
                    ));
                    let nothing = Context::default();
                    let context = step.map_or(&nothing, |step| &step.context);
                    if let Err(error) = site.shell(context) {
                        crate::say::say(error);
                    }
                }
                if let Err(error) = work.abandon() {
                    log::warn!("{error}");
                }
                Err(match step {
                    Some(step) => self.failed(step, &error),
                    None => error,
                })
            }
        }
    }

    /// What is there before the first step.
    fn begin(&self, site: Site<'_>) -> Result<()> {
        if let Some(base) = self.base.as_ref().filter(|_| !self.overlays()) {
            let lowers = Lowers::of(self.project, base)?;
            let flatten = Flatten {
                step: "copying the container",
                layers: lowers.dirs(),
                namespace: XattrNamespace::User,
                dest: site.tree,
                owner: Owner::default(),
            };
            flatten.write(&mut Meter::on_terminal(format!(
                "copying {}",
                base.name().display()
            )))?;
        }
        site.lay_out()
    }

    fn failed(&self, step: &Planned, error: &Error) -> Error {
        let why = error.why().unwrap_or(error.step()).to_owned();
        let told = Error::system(format!(
            "step {} of {} failed: {}",
            step.number, self.plan.name, step.written.title
        ))
        .at(step.written.pos.to_string())
        .because(why);
        if self.options.cache_each_step && step.number > 1 {
            told.remedy(format!(
                "the steps before it are kept, and the next build begins at step {}",
                step.number
            ))
        } else {
            told
        }
    }
}

fn say(title: &str, what: &str) {
    crate::say::say(format_args!("{title}: {what}"));
}
