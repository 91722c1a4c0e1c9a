//! `_build`: a container of `vagga.yaml`, into vagga's layout.

mod action;
mod archive;
mod commit;
mod contents;
mod copy;
mod elsewhere;
mod files;
mod filter;
mod forced;
mod janitor;
mod outdated;
mod perform;
mod plan;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};

pub(super) use commit::sweep;
pub(super) use outdated::tell_if_outdated;
use plan::{Base, Plan};
use session::Session;

use super::project::Project;
use crate::backend::Backend;
use crate::container::{Standing, enter};
use crate::error::Context as _;
use crate::say::say;
use crate::steps::{Layer, StepCache};
use crate::sys::process;
use crate::{Error, Result};

/// How a container is to be built.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuildOptions {
    /// Build it although it is built already; no layer is taken from the cache, and those that
    /// are there aren't taken later, either.
    pub force: bool,
    /// A layer for each step, kept for the next build.
    pub cache_each_step: bool,
    /// A shell in the state that a step has failed in.
    pub shell: bool,
    /// Keep the layers as they are in place of one plain directory.
    pub layered: bool,
    /// Take the container that another one begins with as a lower layer, whatever `overlay` says.
    pub overlay: bool,
    /// Who carries the overlays that steps work in.
    pub backend: Backend,
}

/// What a build did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Built {
    /// Nothing: it was there.
    Already,
    /// Some of its steps.
    Now,
    /// It failed; a line on stderr has said why.
    Failed,
}

/// Builds a container, and those that it begins with where they aren't built.
///
/// The calling process must have one thread. It stays where it is: each container is built by a
/// child in namespaces of its own.
pub fn build(project: &Project, name: &str, options: BuildOptions) -> Result<Built> {
    let plan = Plan::of(
        project,
        name,
        Some(&|plan| build_base(project, plan, options)),
    )?;
    if plan.maps.are_single() {
        log::warn!(
            "this user has no ids in /etc/subuid and /etc/subgid: everything in the container \
             belongs to root"
        );
    }
    build_plan(project, &plan, options, false)
}

/// Builds what another container needs of it, where it isn't built.
fn build_base(project: &Project, plan: &Plan, options: BuildOptions) -> Result<Built> {
    build_plan(project, plan, options, true)
}

fn build_plan(
    project: &Project,
    plan: &Plan,
    options: BuildOptions,
    is_base: bool,
) -> Result<Built> {
    if let Some(Base::Ours(base)) = &plan.base
        && build_base(project, base, options)? == Built::Failed
    {
        return Ok(Built::Failed);
    }
    let forced = options.force && !is_base;
    // What another one is built on may be either.
    let layered = (!is_base).then_some(options.layered);
    if !forced && commit::is_there(project, plan, layered)? {
        commit::link(project, plan)?;
        return Ok(Built::Already);
    }
    project.make_storage()?;
    // Whatever has to be fetched, and the base's lock, from outside.
    let session = Session::prepare(project, plan, options, forced)?;
    let parent = nix::unistd::getpid();
    let child = process::fork(|| match session.run(parent) {
        Ok(()) => 0,
        Err(error) => {
            say(error);
            TOLD
        }
    })
    .context("starting the build", project.dir())?;
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => break,
            Ok(WaitStatus::Exited(_, _)) => return Ok(Built::Failed),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Err(Error::system("building")
                    .at(&plan.name)
                    .because(format!("the build was ended by {signal}")));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                return Err(Error::system("building")
                    .at(&plan.name)
                    .errno(crate::sys::from_nix(errno)));
            }
        }
    }
    commit::link(project, plan)?;
    Ok(Built::Now)
}

/// The exit code of a child that has said what was wrong.
const TOLD: u8 = 2;

/// A step and its layer.
#[derive(Debug)]
pub struct StepState {
    /// Its number and what it says; the end of a build has a layer, too.
    pub title: String,
    /// What is known of its layer, if it is there.
    pub layer: Option<Layer>,
}

/// The steps of a container, the first one first, each with its layer of `--cache-each-step`: of
/// the last build, whether or not that was one with `overlay`.
///
/// The calling process must have one thread, and is in the container's namespaces afterwards.
pub fn steps(project: &Project, name: &str) -> Result<Vec<StepState>> {
    let plan = Plan::of(project, name, None)?;
    let session = |overlay| {
        let options = BuildOptions {
            cache_each_step: true,
            overlay,
            ..BuildOptions::default()
        };
        Session::prepare_to_look(project, &plan, options)
    };
    let (as_written, laid) = (session(false)?, session(true)?);
    enter(Standing::of_self(), &plan.maps.identity())?;
    let states = as_written.states()?;
    // `--overlay` makes other layers. It needs those of the container below, which may be gone.
    let laid = laid.states().unwrap_or_else(|error| {
        log::debug!("{error}");
        Vec::new()
    });
    Ok(match unused_for(&laid) < unused_for(&states) {
        true => laid,
        false => states,
    })
}

/// How long ago a build last had to do with one of these layers.
fn unused_for(states: &[StepState]) -> Duration {
    let layers = states.iter().filter_map(|state| state.layer.as_ref());
    layers.map(Layer::unused_for).min().unwrap_or(Duration::MAX)
}

/// Where the layers of a project are.
pub(super) fn layers_dir(project: &Project) -> PathBuf {
    project.storage().join(".layers")
}

/// The layers of a project, in the way that containers are built.
pub(super) fn cache(project: &Project) -> Result<StepCache> {
    StepCache::open(layers_dir(project))
}
