//! A process that tidies up after a build that was killed.

use std::fs;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, getpid};
use rustix::fs::{Mode, OFlags, open};

use super::{cache, commit, layers_dir};
use crate::error::Context as _;
use crate::sys::process;
use crate::vagga::project::Project;
use crate::{Error, Result};

/// Waits for the end of a build. The processes of the build hold the other end of its pipe.
#[derive(Debug)]
pub(super) struct Janitor {
    release: PipeWriter,
}

/// How long it tries: servers and commands of the build are on their way out.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

impl Janitor {
    /// Starts it. The calling process is in the container's namespaces, and has mounted nothing
    /// yet.
    pub(super) fn start(project: &Project) -> Result<Self> {
        let step = "starting the build's janitor";
        let failed = |error: std::io::Error| Error::system(step).because(error.to_string());
        let (mut wait, release) = std::io::pipe().map_err(failed)?;
        // Closed by it when it has its namespace.
        let (mut ready, busy) = std::io::pipe().map_err(failed)?;
        let build = getpid();
        process::fork(|| {
            // What the build mounts ends with the build's own namespace.
            if unshare(CloneFlags::CLONE_NEWNS).is_err() {
                return 0;
            }
            let _ = rustix::process::setsid();
            let _ = SigSet::all().thread_block();
            let _ = rustix::process::chdir("/");
            let _ = rustix::thread::set_name(c"overfall-tidy");
            process::close_others(&[wait.as_fd()]);
            silence();
            let mut said = Vec::new();
            if wait.read_to_end(&mut said).is_ok() && said.is_empty() {
                tidy(project, build);
            }
            0
        })
        .context(step, project.dir())?;
        drop(busy);
        ready.read_to_end(&mut Vec::new()).map_err(failed)?;
        Ok(Self { release })
    }

    /// The build has ended by itself, and has left nothing.
    pub(super) fn dismiss(mut self) {
        // Without it the janitor looks, and finds nothing to do.
        let _ = self.release.write_all(b"x");
    }
}

fn tidy(project: &Project, build: Pid) {
    let start = Instant::now();
    loop {
        commit::sweep_after(&project.storage().join(".roots"), build);
        let layers = layers_dir(project);
        // Opening it sweeps it.
        let clean = !layers.is_dir()
            || cache(project).is_ok()
                && fs::read_dir(layers.join("new")).is_ok_and(|mut names| names.next().is_none());
        if clean || start.elapsed() > PATIENCE {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets go of the terminal, and of pipes that somebody reads to their end.
fn silence() {
    let Ok(null) = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
        return;
    };
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);
    let _ = nix::unistd::dup2_stderr(&null);
}
