//! A run from the beginning to the end.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use log::warn;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

use super::command::Command;
use super::init::Init;
use super::namespaces::{self, Identity, Standing};
use super::overlays::{Overlays, Policy};
use super::root::{Bind, OWN, Place, Root};
use super::scratch::Scratch;
use super::wait::{Signals, Terminal, until_end};
use crate::backend::{Backend, Carrier};
use crate::changes::{self, Summary};
use crate::format::XattrNamespace;
use crate::sys::{Errno, process};
use crate::union::Owners;
use crate::{Error, Result};

/// Where the changes of a run go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// Into a directory that goes away at the end.
    #[default]
    Temporary,
    /// Into this directory, which stays; another run with it goes on from there.
    Kept(PathBuf),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The command ended with this code.
    Exited(u8),
    /// The command was ended by this signal.
    Killed(Signal),
    /// The command couldn't be started; a line on stderr has said why.
    NotStarted,
}

/// What there is to say about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How the command ended.
    pub ended: Ended,
    /// Who carried the root.
    pub carrier: Option<Carrier>,
    /// What changed, if that was asked for.
    pub changes: Option<Summary>,
}

/// A command to be run in a writable view of a root. Nothing outside changes but what is bound
/// writable.
#[derive(Debug, Clone)]
pub struct Run {
    command: Command,
    root: PathBuf,
    lowers: Vec<PathBuf>,
    binds: Vec<Bind>,
    identity: Identity,
    backend: Backend,
    state: State,
    count: bool,
}

impl Run {
    /// `command`, over `/`.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            root: "/".into(),
            lowers: Vec::new(),
            binds: Vec::new(),
            identity: Identity::default(),
            backend: Backend::default(),
            state: State::default(),
            count: false,
        }
    }

    /// The directory that becomes the root.
    #[must_use]
    pub fn root(mut self, root: PathBuf) -> Self {
        self.root = root;
        self
    }

    /// Layers on top of the root, topmost first.
    #[must_use]
    pub fn lowers(mut self, lowers: Vec<PathBuf>) -> Self {
        self.lowers = lowers;
        self
    }

    /// What is shown as it is.
    #[must_use]
    pub fn binds(mut self, binds: Vec<Bind>) -> Self {
        self.binds = binds;
        self
    }

    /// Who a plain user is inside.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// Who carries the overlays.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Where the changes go.
    #[must_use]
    pub fn state(mut self, state: State) -> Self {
        self.state = state;
        self
    }

    /// Asks for the changes to be counted.
    #[must_use]
    pub fn count_changes(mut self) -> Self {
        self.count = true;
        self
    }

    /// Runs it. The calling process must have one thread; it stays in the namespaces of the run.
    pub fn execute(mut self) -> Result<Report> {
        self.command.check()?;
        self.resolve()?;
        let directory = std::env::current_dir().ok();
        let standing = Standing::of_self();
        let policy = Policy {
            backend: self.backend,
            owners: owners(standing),
        };
        namespaces::enter(standing, &self.identity)?;
        let scratch = match &self.state {
            State::Temporary => Scratch::temporary(standing)?,
            State::Kept(directory) => Scratch::kept(directory, standing)?,
        };
        let overlays = Overlays::mount(&scratch, self.layers(), &self.handled(&scratch), policy)?;

        let root = Root {
            merged: scratch.merged(),
            shown: overlays.shown().to_vec(),
            places: self.binds.into_iter().map(Place::from).collect(),
            hidden: inside(&self.root, scratch.directory())
                .into_iter()
                .collect(),
            standing,
        };
        let ended = launch(root, self.command, directory, &scratch.release_fds())?;

        let carrier = overlays.carrier();
        let layers = overlays.unmount()?;
        let changes = if self.count && ended != Ended::NotStarted {
            count(&layers, standing, policy.owners)
                .inspect_err(|error| warn!("{error}"))
                .ok()
        } else {
            None
        };
        if let Err(error) = scratch.finish() {
            warn!("{error}");
        }
        Ok(Report {
            ended,
            carrier,
            changes,
        })
    }

    /// Makes every path absolute and free of symbolic links, and refuses what isn't there.
    fn resolve(&mut self) -> Result<()> {
        self.root = directory("finding the root", &self.root)?;
        for lower in &mut self.lowers {
            *lower = directory("finding a lower layer", lower)?;
        }
        for bind in &mut self.binds {
            let step = "finding what to bind";
            bind.path = canonical(step, &bind.path)?;
            if bind.path == Path::new("/") {
                return Err(Error::usage(step)
                    .at(&bind.path)
                    .because("that would cover the whole merged tree"));
            }
        }
        // Parents first, or they would cover what is below them.
        self.binds.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(())
    }

    fn layers(&self) -> Vec<PathBuf> {
        let mut layers = self.lowers.clone();
        layers.push(self.root.clone());
        layers
    }

    /// Parts of the root whose mounts need no overlay.
    fn handled(&self, scratch: &Scratch) -> Vec<PathBuf> {
        let own = OWN.iter().map(PathBuf::from);
        let state = scratch.directory().strip_prefix(&self.root);
        let bound = self.binds.iter().map(|bind| bind.path.strip_prefix("/"));
        own.chain(bound.chain([state]).flatten().map(Path::to_path_buf))
            .collect()
    }
}

/// Runs the command in `root` and waits for the end of everything in there. `directory` is where
/// the user is; no process in there may hold `not_theirs`.
///
/// Once in the life of a process: its children are in another pid namespace from here on.
pub(crate) fn launch(
    root: Root,
    command: Command,
    directory: Option<PathBuf>,
    not_theirs: &[BorrowedFd<'_>],
) -> Result<Ended> {
    let signals = Signals::block()?;
    let terminal = Terminal::of_self();
    let init = Init {
        root,
        command,
        directory,
        mask: signals.mask_before(),
        terminal,
    };
    let failed = |why: String| Error::system("starting the command's first process").because(why);
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
    // The next child, and only it, is the first process of a new pid namespace. Whatever else
    // is needed outside of it has been started by now.
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| failed(errno.to_string()))?;
    let not_theirs: Vec<BorrowedFd<'_>> = [ours.as_fd()]
        .into_iter()
        .chain(not_theirs.iter().copied())
        .collect();
    let pid = process::fork(|| {
        process::close_these(&not_theirs);
        init.run(&theirs)
    })
    .map_err(|errno: Errno| failed(errno.to_string()))?;
    drop(not_theirs);
    drop(theirs);
    until_end(pid, &ours, &signals, terminal)
}

/// In a user namespace most owners of the machine aren't mapped, whoever one is in there.
fn owners(standing: Standing) -> Owners {
    match standing {
        Standing::Root => Owners::Real,
        Standing::Plain | Standing::NamespaceRoot => Owners::FakeRoot,
    }
}

fn count(
    layers: &[(PathBuf, Vec<PathBuf>)],
    standing: Standing,
    owners: Owners,
) -> Result<Summary> {
    let namespace = match standing {
        Standing::Root => XattrNamespace::Trusted,
        Standing::NamespaceRoot | Standing::Plain => XattrNamespace::User,
    };
    let mut total = Summary::default();
    for (upper, lowers) in layers {
        total += changes::summary(upper, lowers, namespace, owners)?;
    }
    Ok(total)
}

/// `path` as seen from inside `root`, if it is in there.
fn inside(root: &Path, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(root).ok()?;
    Some(Path::new("/").join(rest))
}

fn canonical(step: &str, path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|error| {
        let error_line = Error::usage(step).at(path);
        match error.raw_os_error() {
            Some(errno) => error_line.errno(Errno::from_raw_os_error(errno)),
            None => error_line.because(error.to_string()),
        }
    })
}

fn directory(step: &str, path: &Path) -> Result<PathBuf> {
    let path = canonical(step, path)?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(Error::usage(step).at(path).because("not a directory"))
    }
}
