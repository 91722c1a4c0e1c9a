//! Entering the user and mount namespace that a run happens in.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use log::info;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{CapabilitySet, capabilities};

use super::idmap::IdMap;
use crate::error::Context;
use crate::probe::{Cause, look_for_ids, no_namespace};
use crate::sys::subordinate::subordinate;
use crate::sys::{Errno, from_nix, process};
use crate::{Error, Result};

/// What the calling process may do on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The machine's root: mounts without a user namespace, gives every owner.
    Root,
    /// Root of a user namespace: mounts, but most owners of the machine aren't mapped.
    NamespaceRoot,
    /// Anybody else: needs a user namespace first.
    Plain,
}

impl Standing {
    /// That of the calling process.
    pub fn of_self() -> Self {
        let may_mount =
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if !Uid::effective().is_root() || !may_mount {
            return Standing::Plain;
        }
        // The initial user namespace maps every id to itself; nobody else can map them all.
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let fields: Vec<&str> = map.split_whitespace().collect();
        if fields == ["0", "0", "4294967295"] {
            Standing::Root
        } else {
            Standing::NamespaceRoot
        }
    }
}

/// Who a plain user is in the namespace. The subordinate ids, where there are some, are the other
/// users.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Identity {
    /// Root there.
    #[default]
    FakeRoot,
    /// Oneself. Root is another there, and only where the user has subordinate ids: without them
    /// nothing can be written in a directory of root's, not even in /tmp.
    Oneself,
    /// Root there, with exactly these ids. For the machine's root, too: it gets a user namespace
    /// like everybody else.
    Mapped {
        /// The users.
        users: IdMap,
        /// The groups.
        groups: IdMap,
    },
}

/// Moves the calling process into a mount namespace of its own, and into a user namespace first
/// where it may not mount otherwise.
pub(crate) fn enter(standing: Standing, identity: &Identity) -> Result<()> {
    match identity {
        Identity::Mapped { users, groups } => enter_mapped(users, groups)?,
        Identity::FakeRoot if standing == Standing::Plain => {
            enter_user_namespace(IdMap::fake_root)?;
        }
        Identity::Oneself if standing == Standing::Plain => {
            enter_user_namespace(IdMap::keep_id)?;
        }
        Identity::FakeRoot | Identity::Oneself => {}
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| {
        Error::system("making a mount namespace")
            .errno(from_nix(errno))
            .because("the kernel or a security policy refuses it")
    })?;
    // Slave, not private: when the machine unmounts a disk it must go from here too, or it would
    // stay busy as long as the run lasts. Nothing goes the other way.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).map_err(|errno| refused_mount(standing, errno))
}

fn refused_mount(standing: Standing, errno: Errno) -> Error {
    let error = Error::system("detaching from the machine's mounts")
        .at("/")
        .errno(errno);
    match standing {
        Standing::Plain => explained(error, no_namespace(Some(errno))),
        Standing::Root | Standing::NamespaceRoot => error,
    }
}

/// With what the table of advice says of the cause.
fn explained(error: Error, cause: Cause) -> Error {
    error.because(cause.words()).remedy(cause.remedy())
}

fn enter_user_namespace(map: fn(u32, &[(u32, u32)]) -> IdMap) -> Result<()> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let users = map(uid.as_raw(), &subordinate(Path::new("/etc/subuid"), uid));
    let groups = map(gid.as_raw(), &subordinate(Path::new("/etc/subgid"), uid));
    // The helpers must be started by a process that stays outside.
    let helper = MapHelper::start(&users, &groups)?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(no_user_namespace)?;
    let written = helper.write_maps()?;
    if !written.users {
        write_own("uid_map", &users.first_only())?;
    }
    if !written.groups {
        // Without it a user could drop a group that a file denies something to; the kernel
        // insists where the map isn't written by a privileged process.
        match fs::write("/proc/self/setgroups", "deny") {
            // Not there before Linux 3.19.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(map_error("setgroups", &error));
            }
            _ => {}
        }
        write_own("gid_map", &groups.first_only())?;
    }
    Ok(())
}

/// All of the maps or an error: with other ids the files of the tree would belong to others.
fn enter_mapped(users: &IdMap, groups: &IdMap) -> Result<()> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    // In the new namespace the user can't be told.
    let lacking = look_for_ids().cause;
    let helper = MapHelper::start(users, groups)?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(no_user_namespace)?;
    let written = helper.write_maps()?;
    let refused = |file: &str, map: &IdMap, program: &str| {
        let wanted = map.to_text().trim_end().replace('\n', ", ");
        let error = Error::system("mapping the user").at(format!("/proc/self/{file}"));
        match lacking {
            Some(cause) => explained(error, cause),
            None => error
                .because(format!(
                    "{program} doesn't give this user the ids `{wanted}`"
                ))
                .remedy("a container that another user has built has to be built again"),
        }
    };
    if !written.users {
        if *users != IdMap::single(0, uid.as_raw()) {
            return Err(refused("uid_map", users, "newuidmap"));
        }
        write_own("uid_map", users)?;
    }
    if !written.groups {
        if *groups != IdMap::single(0, gid.as_raw()) {
            return Err(refused("gid_map", groups, "newgidmap"));
        }
        fs::write("/proc/self/setgroups", "deny")
            .map_err(|error| map_error("setgroups", &error))?;
        write_own("gid_map", groups)?;
    }
    become_root(written)
}

/// Makes the process root of the namespace where it isn't yet: the machine's root may have no id
/// in the maps of a plain user.
fn become_root(written: Written) -> Result<()> {
    let step = "becoming root in the user namespace";
    let failed = |errno| Error::system(step).errno(from_nix(errno));
    if written.groups {
        setgroups(&[]).map_err(failed)?;
    }
    let root = Gid::from_raw(0);
    setresgid(root, root, root).map_err(failed)?;
    if Uid::current().is_root() && Uid::effective().is_root() {
        return Ok(());
    }
    let root = Uid::from_raw(0);
    setresuid(root, root, root).map_err(failed)?;
    // A change of the user closes /proc/self to the process.
    let open = rustix::process::DumpableBehavior::Dumpable;
    rustix::process::set_dumpable_behavior(open).context(step, "/proc/self")
}

fn write_own(file: &str, map: &IdMap) -> Result<()> {
    fs::write(format!("/proc/self/{file}"), map.to_text()).map_err(|error| map_error(file, &error))
}

fn map_error(file: &str, error: &std::io::Error) -> Error {
    Error::system("mapping the user")
        .at(format!("/proc/self/{file}"))
        .because(error.to_string())
}

fn no_user_namespace(errno: nix::errno::Errno) -> Error {
    let errno = from_nix(errno);
    let error = Error::system("making a user namespace").errno(errno);
    explained(error, no_namespace(Some(errno)))
}

/// Which maps newuidmap(1) and newgidmap(1) wrote.
#[derive(Debug, Clone, Copy)]
struct Written {
    users: bool,
    groups: bool,
}

/// A child in the outer user namespace that maps the ids of its parent when told.
struct MapHelper {
    child: Option<Pid>,
    go: std::io::PipeWriter,
}

impl MapHelper {
    const USERS: i32 = 1;
    const GROUPS: i32 = 2;

    fn start(users: &IdMap, groups: &IdMap) -> Result<Self> {
        let pipe_error = |error: std::io::Error| {
            Error::system("starting the id map helper").because(error.to_string())
        };
        let (mut wait, go) = std::io::pipe().map_err(pipe_error)?;
        let own = |map: &IdMap, id| *map == IdMap::single(0, id);
        let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
        if own(users, uid) && own(groups, gid) {
            return Ok(Self { child: None, go });
        }
        let target = Pid::this();
        let child = process::fork(move || {
            // Its own copy of `go` too: it must see when the parent ends.
            process::close_others(&[wait.as_fd()]);
            let mut told = [0];
            if !matches!(wait.read(&mut told), Ok(1)) {
                return 0;
            }
            let mut code = 0;
            if write_map("newuidmap", target, users) {
                code |= Self::USERS;
            }
            if write_map("newgidmap", target, groups) {
                code |= Self::GROUPS;
            }
            u8::try_from(code).unwrap_or(0)
        })
        .context("starting the id map helper", "newuidmap")?;
        Ok(Self {
            child: Some(child),
            go,
        })
    }

    fn write_maps(mut self) -> Result<Written> {
        let code = match self.child {
            None => 0,
            Some(child) => {
                // A helper that has gone shows in its exit code.
                let _ = self.go.write_all(b"x");
                match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => code,
                    _ => 0,
                }
            }
        };
        Ok(Written {
            users: code & Self::USERS != 0,
            groups: code & Self::GROUPS != 0,
        })
    }
}

fn write_map(program: &str, target: Pid, map: &IdMap) -> bool {
    // Root needs no helper.
    let file = program.strip_prefix("new").unwrap_or(program);
    let file = format!("/proc/{target}/{}_map", file.trim_end_matches("map"));
    if fs::write(file, map.to_text()).is_ok() {
        return true;
    }
    if map.is_single() {
        return false;
    }
    let done = Command::new(program)
        .arg(target.to_string())
        .args(map.to_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output();
    match done {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            info!(
                "{program}: {}; only one id is mapped",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            false
        }
        Err(error) => {
            info!("{program}: {error}; only one id is mapped");
            false
        }
    }
}
