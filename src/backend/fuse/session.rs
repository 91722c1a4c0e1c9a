//! The server's life: open the layers, serve, close.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use nix::sys::signal::{SigSet, Signal};

use super::belt::{Belt, Threads};
use super::daemon::{Job, let_mounts_go};
use super::handover::Peer;
use super::identity::Identity;
use super::report::Report;
use super::shutdown::Shutdown;
use super::status::{Status, Told};
use crate::error::Context;
use crate::options::{Switch, Tuning};
use crate::server::Server;
use crate::sys::from_io;
use crate::sys::privilege::Privilege;
use crate::union::{Fault, Union};
use crate::{Error, Result};

const STEP: &str = "starting the FUSE session";

/// The signals that a thread waits for: SIGUSR1 has the counters told, the others end the server.
pub(super) fn awaited_signals() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.add(Signal::SIGHUP);
    set.add(Signal::SIGUSR1);
    set
}

/// Serves until the mount is gone. Returns an error only as long as the caller listens; later ones
/// are logged.
pub(super) fn run(
    job: &Job,
    own_mounts: bool,
    report: BorrowedFd<'_>,
    mounter: Peer,
) -> Result<()> {
    let at = &job.target;
    let mut told = Told::about(job);
    let tree = Arc::new(Union::open(&job.setup)?);
    let identity = Identity::of_self();

    let mut shutdown = Shutdown::prepare(&tree);
    let mut tuning = job.setup.options.tuning;
    if tuning.passthrough == Some(Switch::On) && job.privilege != Privilege::Machine {
        log::warn!("passthrough=on: only the machine's root may");
        tuning.passthrough = Some(Switch::Off);
    }
    let threads = event_loops(&tuning);
    if own_mounts {
        let_mounts_go();
    }
    rustix::process::chdir("/").context(STEP, at)?;
    mounter.reached().context(STEP, at)?;
    let Some((connection, device)) = mounter.take().context(STEP, at)? else {
        // The mounter has told the caller why.
        return close(&tree).map_err(|fault| closing(&fault));
    };
    shutdown.device = device;
    told.device = device;
    let status = tell_status(&told);
    let to_tell = connection.try_clone().map_err(|error| from_io(&error));
    let mut server = Server::new(Arc::clone(&tree), tuning, identity.encode());
    server.tell_by(to_tell.context(STEP, at)?);
    if let Some(status) = &status {
        server.count_in(Arc::clone(&status.counters));
    }
    shutdown.counters = server.counters();
    let mut config = Config::default();
    config.n_threads = Some(threads);
    // Whom the kernel lets in is let in.
    let session = Session::from_fd(server, connection, SessionACL::All, config)
        .map_err(|error| Error::system(STEP).at(at).errno(from_io(&error)))?;
    follow_attributes(&tree, session.notifier());
    let awaited = awaited_signals();
    let belt = Belt::new(job);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            belt.put_on(Threads::Ending);
            shutdown.on_signals(&awaited);
        })
        .map_err(|error| Error::system(STEP).at(at).errno(from_io(&error)))?;
    mounter.reached().context(STEP, at)?;
    drop(mounter);
    // The other threads are made by this one.
    belt.put_on(Threads::Requests);
    let ready = Report::Ready(std::process::id()).send(report);
    if let Err(error) = ready {
        log::debug!("the caller has gone: {error}");
    }
    if let Err(error) = session.run() {
        log::error!("serving: {error}");
    }
    if let Err(fault) = close(&tree) {
        log::error!("{}", closing(&fault));
    }
    Ok(())
}

/// Without it the mount is as good, and `overfall list` knows less about it.
fn tell_status(told: &Told) -> Option<Status> {
    let told = Status::new().and_then(|status| {
        status.tell(told)?;
        Ok(status)
    });
    told.inspect_err(|errno| log::info!("the server's status can't be asked for: {errno}"))
        .ok()
}

/// Lets the kernel ask again for attributes that a copy-up changed by the way. Nothing but the attributes is dropped, so this waits for nobody.
fn follow_attributes(tree: &Union, notifier: Notifier) {
    tree.watch_attributes(move |node| {
        if let Err(error) = notifier.inval_inode(INodeNo(node.0), -1, 0) {
            log::debug!("the kernel has forgotten node {}: {error}", node.0);
        }
    });
}

fn close(tree: &Union) -> std::result::Result<(), Fault> {
    tree.close()
}

fn closing(fault: &Fault) -> Error {
    Error::system("closing the layers")
        .errno(fault.errno)
        .because(fault.to_string())
}

/// More than there are processors: a copy-up or an fsync holds its loop until the disk has
/// answered, and nobody else is to wait for it.
fn event_loops(tuning: &Tuning) -> usize {
    const FEWEST: usize = 16;
    const MOST: usize = 32;
    if let Some(threads) = tuning.threads {
        return threads.get();
    }
    thread::available_parallelism().map_or(FEWEST, |cpus| cpus.get().clamp(FEWEST, MOST))
}
