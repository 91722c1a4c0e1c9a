//! From the caller to the server: the forks, and what a process must shed to stay on its own.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use log::LevelFilter;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::handover::{Peer, above_stdio};
use super::mount::{Busy, device};
use super::{Log, Report, mount as fuse_mount, session};
use crate::error::Context;
use crate::sys::privilege::Privilege;
use crate::sys::{Errno, from_nix, mountinfo, process};
use crate::union::Setup;
use crate::{Error, Result, logging};

/// What the server is to do, and how.
#[derive(Debug)]
pub(super) struct Job {
    /// The layers.
    pub(super) setup: Setup,
    /// Where to mount; absolute.
    pub(super) target: PathBuf,
    /// What the caller may do.
    pub(super) privilege: Privilege,
    /// Where the server's log goes.
    pub(super) log: Log,
}

const STEP: &str = "starting the FUSE server";

/// Starts the server of a mount and waits until it serves. What comes back is its process and a
/// descriptor that hangs up when it goes.
pub(super) fn start(job: &Job) -> Result<(u32, OwnedFd)> {
    let (alive, report) = pipe_with(PipeFlags::CLOEXEC).context(STEP, &job.target)?;
    let report = above_stdio(report).context(STEP, &job.target)?;
    let mounter = process::fork(|| mounter(job, report.as_fd())).context(STEP, &job.target)?;
    drop(report);
    let outcome = Report::receive(alive.as_fd());
    // The mounter has done what it was there for; a caller that ignores SIGCHLD has reaped it.
    let _ = nix::sys::wait::waitpid(mounter, None);
    match outcome {
        Ok(Report::Ready(pid)) => Ok((pid, alive)),
        Ok(Report::Failed(error)) => Err(error),
        Err(_) => Err(Error::system(STEP)
            .at(&job.target)
            .because("it died before it could serve")),
    }
}

/// The process between the caller and the server.
fn mounter(job: &Job, report: BorrowedFd<'_>) -> u8 {
    set_log(job);
    match hand_over(job, report) {
        Ok(()) => 0,
        Err(error) => tell(report, error),
    }
}

fn hand_over(job: &Job, report: BorrowedFd<'_>) -> Result<()> {
    detach_from_caller().context(STEP, &job.target)?;
    let (here, there) = Peer::pair().context(STEP, &job.target)?;
    process::fork(move || server(job, report, there)).context(STEP, &job.target)?;
    if !here.wait() {
        // The server has told the caller why.
        return Ok(());
    }
    let connection = fuse_mount::mount(&job.setup.options, &job.target)?;
    let device = device(&job.target);
    let served = here.give(&connection, device).is_ok();
    drop(connection);
    if !(served && here.wait()) {
        fuse_mount::unmount(&job.target, device, Busy::Detach)?;
    }
    Ok(())
}

/// The process that serves.
fn server(job: &Job, report: BorrowedFd<'_>, mounter: Peer) -> u8 {
    match serve(job, report, mounter) {
        Ok(()) => 0,
        Err(error) => tell(report, error),
    }
}

fn serve(job: &Job, report: BorrowedFd<'_>, mounter: Peer) -> Result<()> {
    let mut own = vec![report, mounter.descriptor()];
    if let Log::File(file) = &job.log {
        own.push(file.as_fd());
    }
    process::close_others(&own);
    shed(&job.log).context(STEP, &job.target)?;
    let own_mounts = job.privilege != Privilege::None && leave_mounts(job);
    session::run(job, own_mounts, report, mounter)
}

/// Nobody is left to tell when this fails.
fn tell(report: BorrowedFd<'_>, error: Error) -> u8 {
    log::error!("{error}");
    let _ = Report::Failed(error).send(report);
    1
}

/// How much is logged, and how.
fn set_log(job: &Job) {
    let debug = job.setup.options.serving.debug;
    let wanted = if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    match &job.log {
        Log::Silent => log::set_max_level(LevelFilter::Off),
        Log::Stderr if debug => logging::raise(wanted),
        Log::Stderr => {}
        Log::File(file) => {
            // The server's stderr from here on. Where that fails, the caller's is as good.
            let _ = nix::unistd::dup2_stderr(file);
            logging::with_dates();
            logging::raise(wanted);
        }
    }
}

/// A session of its own and the signals as a fresh program has them.
fn detach_from_caller() -> Result<(), Errno> {
    rustix::process::setsid()?;
    for signal in Signal::iterator() {
        // These two can't be changed; Rust's own handlers of the next two may stay.
        let fixed = [
            Signal::SIGKILL,
            Signal::SIGSTOP,
            Signal::SIGSEGV,
            Signal::SIGBUS,
        ];
        if !fixed.contains(&signal) {
            process::default_action(signal)?;
        }
    }
    // Those that the server waits for in a thread of its own, and a reader that has gone.
    let mut blocked = session::awaited_signals();
    blocked.add(Signal::SIGPIPE);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None).map_err(from_nix)
}

/// Puts away what belongs to the caller.
fn shed(log: &Log) -> Result<(), Errno> {
    let null: OwnedFd = match File::options().read(true).write(true).open("/dev/null") {
        Ok(null) => null.into(),
        // No /dev here: a pipe without another end reads as empty, too.
        Err(_) => pipe_with(PipeFlags::CLOEXEC)?.0,
    };
    nix::unistd::dup2_stdin(&null).map_err(from_nix)?;
    nix::unistd::dup2_stdout(&null).map_err(from_nix)?;
    if matches!(log, Log::Silent) {
        nix::unistd::dup2_stderr(&null).map_err(from_nix)?;
    }
    // The caller's umask comes with each request.
    umask(Mode::empty());
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)
}

/// Gives the server mounts of its own, which don't follow the caller's. Where that isn't possible
/// it goes on among the caller's.
fn leave_mounts(job: &Job) -> bool {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
        log::info!("the server stays in the caller's mount namespace: {errno}");
        return false;
    }
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    if let Err(errno) = mount(none, "/", none, private, none) {
        // "/" is no mount point under chroot. What matters is the file system under the target.
        log::info!("the server's mounts may follow the caller's: {errno}");
        return private_around(job);
    }
    true
}

fn private_around(job: &Job) -> bool {
    let none: Option<&str> = None;
    job.target
        .ancestors()
        .any(|path| mount(none, path, none, MsFlags::MS_PRIVATE, none).is_ok())
}

/// Lets every mount of the server's namespace go. The layers live on in their descriptors, as
/// single mounts: what is mounted below them is out of reach, as in the kernel's overlay, and a
/// disk that the caller unmounts isn't kept busy.
///
/// What a user namespace was given is locked and stays, the root among it. What was mounted in
/// there goes: other servers wait for the last copy of their mounts.
pub(super) fn let_mounts_go() {
    let Err(errno) = umount2("/", MntFlags::MNT_DETACH) else {
        return;
    };
    log::info!("the server keeps the mounts that are locked: {errno}");
    match mountinfo::read() {
        Ok(mounts) => {
            for mount in mounts.iter().rev() {
                let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
                // The locked ones refuse.
                let _ = umount2(&mount.point, flags);
            }
        }
        Err(error) => log::info!("the server keeps its mounts: {error}"),
    }
}
