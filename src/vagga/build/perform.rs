//! Carrying out a step in a tree.
//!
//! A command gets namespaces and a first process of its own, as in a run. What changes files is
//! done by a child with the tree as its root: no symbolic link in there leads out of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::getpid;
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};

use super::action::{Action, RunAs};
use super::plan::{Context, Finish, LAYOUT};
use super::{archive, copy};
use crate::container::{Access, Command, Content, Ended, Memory, Place, Root, Standing, launch};
use crate::error::Context as _;
use crate::say::say;
use crate::sys::{from_nix, process};
use crate::vagga::project::Project;
use crate::{Error, Result};

/// A tree in which steps are carried out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site<'s> {
    pub(super) project: &'s Project,
    pub(super) tree: &'s Path,
}

/// An archive that was fetched before, for the steps that unpack one.
pub(super) type Fetched = BTreeMap<String, PathBuf>;

impl Site<'_> {
    /// Makes what every container has.
    pub(super) fn lay_out(&self) -> Result<()> {
        self.change(
            "making the container's directories",
            &Context::default(),
            || {
                for dir in LAYOUT.into_iter().chain(["/etc"]) {
                    fs::create_dir_all(dir)?;
                }
                fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))?;
                for file in ["/etc/resolv.conf", "/etc/hosts"] {
                    if fs::symlink_metadata(file).is_err() {
                        fs::File::create(file)?;
                    }
                }
                Ok(())
            },
        )
    }

    /// Carries out a step.
    pub(super) fn perform(
        &self,
        action: &Action,
        context: &Context,
        fetched: &Fetched,
    ) -> Result<()> {
        let script = |text: &str| ["/bin/sh", "-exc", text].map(OsString::from).to_vec();
        match action {
            Action::Container(_)
            | Action::SubConfig(_)
            | Action::Env(_)
            | Action::Depends { .. } => Ok(()),
            Action::Sh(text) => self.run(script(text), "/work".as_ref(), None, context),
            Action::Cmd(words) => {
                let words = words.iter().map(OsString::from).collect();
                self.run(words, "/work".as_ref(), None, context)
            }
            Action::RunAs(step) => {
                self.run(script(&step.script), &step.directory, Some(step), context)
            }
            Action::Tar(tar) => {
                let mut file = open(fetched, &tar.archive.url)?;
                self.change("unpacking", context, || {
                    archive::unpack(&mut file, &tar.path, &tar.subdir)
                })
            }
            Action::TarInstall(install) => {
                let mut file = open(fetched, &install.archive.url)?;
                let place = Path::new("/tmp/overfall-tar-install");
                self.change("unpacking", context, || {
                    archive::unpack(&mut file, place, Path::new(""))
                })?;
                let directory = match &install.subdir {
                    Some(subdir) => place.join(subdir),
                    None => self.only_directory(place)?,
                };
                self.run(script(&install.script), &directory, None, context)
            }
            Action::Copy(step) => self.change("copying", context, || copy::copy(step)),
            Action::Text(texts) => self.change("writing a text", context, || {
                for (path, text) in texts {
                    fs::write(path, text)?;
                    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
                }
                Ok(())
            }),
            Action::EnsureDir(path) => {
                self.change("making a directory", context, || fs::create_dir_all(path))
            }
            Action::EmptyDir(path) => self.change("emptying", context, || empty(path)),
            Action::Remove(path) => self.change("removing", context, || remove(path)),
            Action::CacheDirs(caches) => self.change("making places of caches", context, || {
                for path in caches.keys() {
                    fs::create_dir_all(path)?;
                    empty(path)?;
                }
                Ok(())
            }),
        }
    }

    /// What is done when all steps are through.
    pub(super) fn finish(&self, finish: &Finish) -> Result<()> {
        self.change("finishing", &Context::default(), || {
            for path in &finish.removed {
                remove(path)?;
            }
            for path in &finish.emptied {
                empty(path)?;
            }
            for path in &finish.ensured {
                fs::create_dir_all(path)?;
            }
            // Not before the directories were made: /work isn't among the data.
            if finish.data_dirs.is_empty() {
                return Ok(());
            }
            keep_only(Path::new("/"), &finish.data_dirs)
        })?;
        let work = Path::new("/work");
        let kept = finish.data_dirs.iter().any(|kept| kept.starts_with(work));
        if !finish.data_dirs.is_empty() && !kept {
            // While the project was mounted on it, it couldn't go.
            let place = self.tree.join("work");
            fs::remove_dir(&place).map_err(|error| {
                Error::system("finishing")
                    .at(&place)
                    .because(error.to_string())
            })?;
        }
        Ok(())
    }

    /// A shell in the tree as it is.
    pub(super) fn shell(&self, context: &Context) -> Result<()> {
        let mut context = context.clone();
        if let Ok(term) = std::env::var("TERM") {
            context.environ.insert("TERM".to_owned(), term);
        }
        // How the shell ends says nothing.
        let _ = self.run(vec!["/bin/sh".into()], "/work".as_ref(), None, &context);
        Ok(())
    }

    /// Runs a command, which has to end well.
    fn run(
        &self,
        words: Vec<OsString>,
        directory: &Path,
        special: Option<&RunAs>,
        context: &Context,
    ) -> Result<()> {
        let outside: Vec<_> = std::env::vars_os().collect();
        let mut env: BTreeMap<OsString, OsString> =
            self.project.settings().proxies(&outside).cloned().collect();
        let steps = context.environ.iter();
        env.extend(steps.map(|(key, value)| (key.into(), value.into())));
        let mut command = Command::new(words)
            .environment(env.into_iter().collect())
            .directory(directory.to_path_buf());
        if let Some(step) = special {
            command = command.credentials(step.who.clone()).network(step.network);
        }
        command.check()?;
        let places = self.places(context)?;
        let root = Root {
            merged: self.tree.to_path_buf(),
            shown: Vec::new(),
            places,
            hidden: Vec::new(),
            standing: Standing::NamespaceRoot,
        };
        // A child, because a process can make only one pid namespace for its children.
        let step = "running a command";
        let code = self.in_child(step, || {
            Ok(match launch(root, command, None, &[])? {
                Ended::Exited(code) => code,
                Ended::Killed(signal) => u8::try_from(128 + signal as i32).unwrap_or(u8::MAX),
                Ended::NotStarted => TOLD,
            })
        })?;
        match code {
            0 => Ok(()),
            code => Err(Error::system(step).because(match code {
                TOLD => "it couldn't be started".to_owned(),
                129.. => format!("it was ended by signal {}", code - 128),
                _ => format!("it ended with code {code}"),
            })),
        }
    }

    /// What a command sees beside the tree.
    fn places(&self, context: &Context) -> Result<Vec<Place>> {
        let bind = |inside: &Path, source: PathBuf, access| Place {
            inside: inside.to_path_buf(),
            content: Content::Bind { source, access },
        };
        let mut places = vec![
            bind(
                "/work".as_ref(),
                self.project.dir().into(),
                Access::Writable,
            ),
            Place {
                inside: "/run".into(),
                content: Content::Memory(Memory {
                    size: 100 << 20,
                    mode: 0o755,
                    dirs: vec![("shm".into(), 0o1777)],
                    files: Vec::new(),
                }),
            },
        ];
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            let path = Path::new(file);
            // A link there leads to something that isn't ours to cover.
            let inside = self.tree.join(file.trim_start_matches('/'));
            let plain = fs::symlink_metadata(&inside).is_ok_and(|meta| meta.is_file());
            if path.exists() && plain {
                places.push(bind(path, path.into(), Access::ReadOnly));
            }
        }
        for (place, source) in self.caches(context)? {
            places.push(bind(&place, source, Access::Writable));
        }
        Ok(places)
    }

    /// Places of caches and their directories, which are made.
    fn caches(&self, context: &Context) -> Result<Vec<(PathBuf, PathBuf)>> {
        context
            .caches
            .iter()
            .map(|(place, name)| {
                let source = self.project.cache()?.join(name);
                fs::create_dir_all(&source).map_err(|error| {
                    Error::system("making the directory of a cache")
                        .at(&source)
                        .because(error.to_string())
                })?;
                let source = fs::canonicalize(&source).unwrap_or(source);
                Ok((place.clone(), source))
            })
            .collect()
    }

    /// Runs `work` in a child that has the tree as its root, with `/work` and the caches.
    fn change(
        &self,
        step: &str,
        context: &Context,
        work: impl FnOnce() -> io::Result<()>,
    ) -> Result<()> {
        let caches = self.caches(context)?;
        let code = self.in_child(step, || {
            self.enter(&caches)?;
            work().map_err(|error| Error::system(step).because(error.to_string()))?;
            Ok(0)
        })?;
        match code {
            0 => Ok(()),
            _ => Err(Error::system(step).because("it failed")),
        }
    }

    /// The exit code of a child that does `work` and ends with us; an error of its own it has told
    /// by then.
    fn in_child(&self, step: &str, work: impl FnOnce() -> Result<u8>) -> Result<u8> {
        let parent = getpid();
        let child = process::fork(|| {
            let bound = process::end_with(parent).context(step, self.tree);
            bound.and_then(|()| work()).unwrap_or_else(|error| {
                say(error);
                TOLD
            })
        })
        .context(step, self.tree)?;
        wait(child, step)
    }

    fn enter(&self, caches: &[(PathBuf, PathBuf)]) -> Result<()> {
        let step = "entering the container";
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|errno| Error::system(step).errno(from_nix(errno)))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).context(step, "/")?;
        let work = self.tree.join("work");
        if work.is_dir() {
            mount_bind_recursive(self.project.dir(), &work).context(step, &work)?;
        }
        for (place, source) in caches {
            let place = self.tree.join(place.strip_prefix("/").unwrap_or(place));
            if place.is_dir() {
                mount_bind_recursive(source, &place).context(step, &place)?;
            }
        }
        rustix::process::chroot(self.tree).context(step, self.tree)?;
        rustix::process::chdir("/").context(step, "/")
    }

    /// The one directory in `place`, a directory of the tree.
    fn only_directory(&self, place: &Path) -> Result<PathBuf> {
        let step = "looking for the directory of an archive";
        let outside = self.tree.join(place.strip_prefix("/").unwrap_or(place));
        let failed = |why: String| Error::usage(step).because(why);
        let names: Vec<OsString> = fs::read_dir(&outside)
            .map_err(|error| failed(error.to_string()))?
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| !name.as_encoded_bytes().starts_with(b"."))
            .collect();
        match names.as_slice() {
            [name] => Ok(place.join(name)),
            names => Err(failed(format!("it has {} entries, not one", names.len()))
                .remedy("say which one by `subdir`, `.` for all of it")),
        }
    }
}

/// The exit code of a child that has said what was wrong.
const TOLD: u8 = 128;

fn wait(child: nix::unistd::Pid, step: &str) -> Result<u8> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::system(step).errno(from_nix(errno))),
        }
    }
}

fn open(fetched: &Fetched, url: &str) -> Result<fs::File> {
    let path = fetched
        .get(url)
        .ok_or_else(|| Error::system("opening an archive").at(url))?;
    fs::File::open(path).map_err(|error| {
        Error::system("opening an archive")
            .at(path)
            .because(error.to_string())
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Removes what is in a directory; one that isn't there is empty.
fn empty(path: &Path) -> io::Result<()> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(entries) => {
            for entry in entries {
                remove(&entry?.path())?;
            }
            Ok(())
        }
    }
}

/// Removes what is neither one of `kept`, nor below or above one.
fn keep_only(dir: &Path, kept: &[PathBuf]) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // Mounted here, and not the container's.
        if path == Path::new("/work") {
            continue;
        }
        if kept.contains(&path) {
            continue;
        }
        if kept.iter().any(|kept| kept.starts_with(&path)) {
            keep_only(&path, kept)?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}
