//! `!SubConfig` with a container as its source: the steps that a file in there has.
//!
//! A child enters the container's namespaces and mounts its tree, of layers or not; a child of that
//! reads the file with the tree as its root, so no link leads out of it. The steps come back through a
//! pipe.

use std::ffi::OsString;
use std::io::{PipeWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

use super::action::SubConfig;
use crate::container::{Standing, enter};
use crate::error::Context as _;
use crate::snapshot::Means;
use crate::sys::process;
use crate::vagga::config::Config;
use crate::vagga::project::{Project, Root};
use crate::vagga::run::{Stage, Tree};
use crate::vagga::yaml::Node;
use crate::{Error, Result};

/// What comes through the pipe.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Setup(Vec<Node>),
    Refused {
        step: String,
        path: Vec<u8>,
        why: String,
        remedy: Option<String>,
    },
}

const STEP: &str = "reading a configuration in a container";

/// The steps of the container that `sub` names, from a file in `root`.
pub(super) fn setup_in(project: &Project, root: &Root, sub: &SubConfig) -> Result<Vec<Node>> {
    let failed = |why: String| Error::system(STEP).at(root.dir()).because(why);
    let (mut answer, pipe) = std::io::pipe().map_err(|error| failed(error.to_string()))?;
    let parent = getpid();
    let child = process::fork(|| {
        if let Err(error) = mount_and_read(project, root, sub, parent, &pipe) {
            send(&pipe, &refusal(&error, root));
        }
        0
    })
    .context(STEP, root.dir())?;
    drop(pipe);
    let mut bytes = Vec::new();
    let read = answer.read_to_end(&mut bytes);
    let _ = waitpid(child, None);
    read.map_err(|error| failed(error.to_string()))?;
    match serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))? {
        Answer::Setup(setup) => Ok(setup),
        Answer::Refused {
            step,
            path,
            why,
            remedy,
        } => {
            let error = Error::usage(step).at(OsString::from_vec(path)).because(why);
            Err(match remedy {
                Some(remedy) => error.remedy(remedy),
                None => error,
            })
        }
    }
}

fn mount_and_read(
    project: &Project,
    root: &Root,
    sub: &SubConfig,
    parent: Pid,
    pipe: &PipeWriter,
) -> Result<()> {
    enter(Standing::of_self(), &root.maps().identity())?;
    process::end_with(parent).context(STEP, root.dir())?;
    let stage = Stage::make(project)?;
    let tree = Tree::read_only(project, stage.place("root")?, root, Means::Auto)?;
    let this = getpid();
    let reader = process::fork(|| {
        let bound = process::end_with(this).context(STEP, root.dir());
        let answer = match bound.and_then(|()| read(tree.merged(), root, sub)) {
            Ok(setup) => Answer::Setup(setup),
            Err(error) => refusal(&error, root),
        };
        send(pipe, &answer);
        0
    })
    .context(STEP, root.dir())?;
    let _ = waitpid(reader, None);
    tree.finish()
}

fn read(tree: &Path, root: &Root, sub: &SubConfig) -> Result<Vec<Node>> {
    rustix::process::chroot(tree).context(STEP, tree)?;
    rustix::process::chdir("/").context(STEP, tree)?;
    let file = Path::new("/").join(&sub.path);
    let dir = file.parent().unwrap_or(Path::new("/"));
    let config = Config::read(dir, Some(&file))?;
    let mut setup = config.container(&sub.container)?.setup.clone();
    for node in &mut setup {
        node.move_file(&|file| outside(file, root));
    }
    Ok(setup)
}

/// Where the user finds a file of the container; where it would be, in one of layers.
fn outside(file: &Path, root: &Root) -> PathBuf {
    match file.strip_prefix("/") {
        Ok(below) => root.tree().join(below),
        Err(_) => file.to_path_buf(),
    }
}

fn refusal(error: &Error, root: &Root) -> Answer {
    let path = error.path().unwrap_or(Path::new("/"));
    let why = match (error.why(), error.raw_errno()) {
        (Some(why), Some(errno)) => format!("{why} ({errno})"),
        (Some(why), None) => why.to_owned(),
        (None, Some(errno)) => errno.to_string(),
        (None, None) => "it failed".to_owned(),
    };
    let path = match path.starts_with(root.dir()) {
        true => path.to_path_buf(),
        false => outside(path, root),
    };
    Answer::Refused {
        step: error.step().to_owned(),
        path: path.as_os_str().as_bytes().to_vec(),
        why,
        remedy: error.what_to_do().map(str::to_owned),
    }
}

fn send(mut pipe: &PipeWriter, answer: &Answer) {
    // Whoever reads takes an incomplete answer for a failure.
    let _ = serde_json::to_vec(answer).map(|bytes| pipe.write_all(&bytes));
}
