//! What is run: the command, its environment, and how a process becomes it.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, execve, setgroups, setresgid, setresuid};

use super::disguise::{Helper, Wearer, disguise};
use crate::sys::{from_nix, loopback, process};
use crate::{Error, Result};

/// A command to run in the merged tree.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments; the program is looked for in `PATH` unless it has a slash.
    words: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    credentials: Option<Credentials>,
    network: Network,
}

/// The network that a command sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The machine's.
    #[default]
    Shared,
    /// One of its own, with nothing in it but the loopback device.
    Isolated,
}

impl Network {
    fn enter(self) -> Result<()> {
        let step = "giving the command a network of its own";
        match self {
            Network::Shared => Ok(()),
            Network::Isolated => unshare(CloneFlags::CLONE_NEWNET)
                .map_err(from_nix)
                .and_then(|()| loopback::switch_on())
                .map_err(|errno| Error::system(step).errno(errno)),
        }
    }
}

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// The other groups.
    pub others: Vec<u32>,
    /// The id that the user has for everybody else, in files and signals, where that isn't `user`.
    pub external: Option<u32>,
}

impl Credentials {
    fn take_on(&self) -> std::result::Result<(), Errno> {
        let others: Vec<Gid> = self.others.iter().copied().map(Gid::from_raw).collect();
        setgroups(&others)?;
        let group = Gid::from_raw(self.group);
        setresgid(group, group, group)?;
        let user = Uid::from_raw(self.user);
        setresuid(user, user, user)
    }
}

/// Where programs are looked for without a `PATH`; execvp(3) of glibc has the same.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

impl Command {
    /// `words` are the program and its arguments; without any, the user's shell. The environment
    /// is that of the calling process.
    pub fn new(words: Vec<OsString>) -> Self {
        let words = if words.is_empty() {
            let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
            vec![shell.unwrap_or_else(|| "/bin/sh".into())]
        } else {
            words
        };
        Self {
            words,
            env: std::env::vars_os().collect(),
            directory: None,
            credentials: None,
            network: Network::default(),
        }
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: OsString, value: OsString) -> Self {
        self.env.retain(|(known, _)| *known != key);
        self.env.push((key, value));
        self
    }

    /// Replaces its whole environment.
    #[must_use]
    pub fn environment(mut self, env: Vec<(OsString, OsString)>) -> Self {
        self.env = env;
        self
    }

    /// The user and groups that it runs as; those of the calling process unless told.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// The network that it sees.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// The directory it starts in, as seen inside. Without it: the current one where that exists
    /// inside, else `/`.
    #[must_use]
    pub fn directory(mut self, directory: PathBuf) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Refuses what can't be handed to a program.
    pub(crate) fn check(&self) -> Result<()> {
        let mut texts = self
            .words
            .iter()
            .chain(self.env.iter().flat_map(|(key, value)| [key, value]));
        if texts.any(|text| text.as_bytes().contains(&0)) {
            return Err(
                Error::usage("reading the command").because("an argument has a NUL byte in it")
            );
        }
        Ok(())
    }

    /// Changes into the directory that it is to start in. `outside` is where the user is.
    pub(super) fn enter_directory(&mut self, outside: Option<PathBuf>) -> Result<()> {
        if let Some(wanted) = &self.directory {
            return rustix::process::chdir(wanted).map_err(|errno| {
                Error::usage("changing into the directory of the command")
                    .at(wanted)
                    .errno(errno)
            });
        }
        let stayed = outside.filter(|path| rustix::process::chdir(path).is_ok());
        if stayed.is_none() {
            // A shell takes PWD's word for where it is.
            self.env.retain(|(key, _)| key != "PWD");
            rustix::process::chdir("/")
                .map_err(|errno| Error::system("changing into the root").errno(errno))?;
        }
        Ok(())
    }

    /// The two sides of what has to be agreed on before it starts, if anything.
    pub(super) fn disguise(&self) -> Result<Option<(Wearer, Helper)>> {
        self.credentials.as_ref().map_or(Ok(None), disguise)
    }

    /// Turns the calling process into the command, with this signal mask. Returns only when that
    /// fails, with the exit code that shells use: 127 not found, 126 not executable.
    pub(super) fn become_it(self, mask: &SigSet, wearer: Option<Wearer>) -> (Error, u8) {
        // Rust programs start with SIGPIPE ignored; others expect its default.
        let _ = process::default_action(Signal::SIGPIPE);
        let _ = mask.thread_set_mask();
        // The first needs the rights that the second gives up.
        let apart = self.network.enter();
        if let Err(error) = apart.and_then(|()| wearer.map_or(Ok(()), Wearer::put_on)) {
            return (error, 126);
        }
        if let Some(credentials) = &self.credentials
            && let Err(errno) = credentials.take_on()
        {
            let step = format!("becoming user {}", credentials.user);
            return (Error::system(step).errno(from_nix(errno)), 126);
        }
        let name = self.words.first().cloned().unwrap_or_default();
        let errno = match self.execute() {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        let error = Error::system("starting the command")
            .at(&name)
            .errno(from_nix(errno));
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => (error.because("not found"), 127),
            _ => (error.because("can't be executed"), 126),
        }
    }

    fn execute(self) -> std::result::Result<Infallible, Errno> {
        let path = self
            .env
            .iter()
            .find(|(key, _)| key == "PATH")
            .map_or(DEFAULT_PATH.to_vec(), |(_, value)| {
                value.as_bytes().to_vec()
            });
        let env = self
            .env
            .into_iter()
            .map(|(mut entry, value)| {
                entry.push("=");
                entry.push(value);
                text(entry.into_vec())
            })
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let words = self
            .words
            .into_iter()
            .map(|word| text(word.into_vec()))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let program = words.first().ok_or(Errno::ENOENT)?.to_bytes();
        if program.is_empty() {
            return Err(Errno::ENOENT);
        }
        if program.contains(&b'/') {
            return start(program, &words, &env);
        }
        let mut failure = Errno::ENOENT;
        for directory in path.split(|byte| *byte == b':') {
            // An empty entry is the current directory.
            let directory = if directory.is_empty() {
                b"."
            } else {
                directory
            };
            let candidate = [directory, b"/", program].concat();
            match start(&candidate, &words, &env) {
                Ok(never) => match never {},
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                // In a directory that is closed to us: not there for us. Else: go on, but don't
                // call it missing in the end.
                Err(Errno::EACCES) => {
                    if rustix::fs::stat(candidate.as_slice()).is_ok() {
                        failure = Errno::EACCES;
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(failure)
    }
}

/// Executes `program`; a script without `#!` goes to the shell, as execvp(3) does it.
fn start(
    program: &[u8],
    words: &[CString],
    env: &[CString],
) -> std::result::Result<Infallible, Errno> {
    let program = text(program.to_vec())?;
    match execve(&program, words, env) {
        Err(Errno::ENOEXEC) => {
            let shell = text(b"/bin/sh".to_vec())?;
            let arguments = [shell.clone(), program]
                .into_iter()
                .chain(words.iter().skip(1).cloned())
                .collect::<Vec<_>>();
            execve(&shell, &arguments, env)
        }
        other => other,
    }
}

fn text(bytes: Vec<u8>) -> std::result::Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// Splits `KEY=VALUE`.
pub(crate) fn parse_variable(text: &OsStr) -> Result<(OsString, OsString)> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) if at > 0 => Ok((
            OsStr::from_bytes(&bytes[..at]).to_os_string(),
            OsStr::from_bytes(&bytes[at + 1..]).to_os_string(),
        )),
        _ => Err(Error::usage("reading --env")
            .at(text)
            .because("it is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_split_at_the_first_equals_sign() {
        let (key, value) = parse_variable(OsStr::new("A=b=c")).unwrap();
        assert_eq!((key, value), ("A".into(), "b=c".into()));
        assert!(parse_variable(OsStr::new("A")).is_err());
        assert!(parse_variable(OsStr::new("=A")).is_err());
    }

    #[test]
    fn a_nul_byte_is_refused() {
        let command = Command::new(vec!["a\0b".into()]);
        assert!(command.check().is_err());
    }
}
