//! The FUSE server: a shell over the merged tree that decodes a request, calls the tree and
//! encodes the answer. What an operation means is decided in [`crate::union`]; what the kernel
//! may remember is decided in `policy.rs`.
//!
//! No request names an open file: unless the options say otherwise, OPEN, OPENDIR and FLUSH are
//! answered with `ENOSYS`, after which the kernel asks no more. Every read and write then names an inode, so a descriptor that was
//! opened before a copy-up follows it by construction.

mod answer;
mod convert;
mod counters;
mod ioctl;
mod kernel;
mod ops;
mod passthrough;
mod policy;
mod reply;
mod story;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::options::Tuning;
use crate::union::{Outcome, Union};
pub(crate) use counters::Counters;
use counters::Op;
use kernel::Kernel;
use passthrough::Passthrough;
use policy::{CachePolicy, Opens};
use reply::Refuse;
use story::{Story, Subject};

pub(crate) use policy::MAX_REQUEST;
pub(crate) use story::TARGET as REQUESTS;

/// The extended attribute of the root that says who serves it. No listing shows it, and as it is
/// in none of the namespaces of names it can be in nobody's way.
pub(crate) const IDENTITY: &str = "overfall.server";

/// A merged tree as a FUSE file system.
#[derive(Debug)]
pub struct Server {
    tree: Arc<Union>,
    tuning: Tuning,
    caching: CachePolicy,
    identity: Vec<u8>,
    opens: Opens,
    counters: Arc<Counters>,
    /// Present where the kernel can be told to forget.
    kernel: Option<Arc<Kernel>>,
    passthrough: Passthrough,
    /// The kernel decides whether a new file may have the setgid bit; before 6.0 it left that to
    /// file systems.
    judges_setgid: bool,
}

impl Server {
    /// Serves `tree`. The caller keeps its own reference, to close the tree when the session is
    /// over. `identity` is what whoever looks for the server is told.
    pub fn new(tree: Arc<Union>, tuning: Tuning, identity: Vec<u8>) -> Self {
        Self {
            tree,
            tuning,
            caching: tuning.timeout.into(),
            identity,
            opens: Opens::default(),
            counters: Arc::default(),
            kernel: None,
            passthrough: Passthrough::default(),
            judges_setgid: true,
        }
    }

    /// Gives it a second way to the kernel, for telling it what it didn't ask for. `connection` is
    /// a copy of the session's descriptor.
    pub fn tell_by(&mut self, connection: OwnedFd) {
        self.kernel = Some(Arc::new(Kernel::new(connection)));
    }

    /// Counts requests there.
    pub(crate) fn count_in(&mut self, counters: Arc<Counters>) {
        self.counters = counters;
    }

    /// What it counts requests by.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Carries out one request: `call` asks the tree, `answer` tells the kernel.
    ///
    /// A panic on the way is answered with `EIO` (by fuser, when the reply is dropped) and logged;
    /// the mount lives on.
    fn serve<'s, R: Refuse, T>(
        &self,
        op: Op,
        subject: impl Into<Subject<'s>>,
        reply: R,
        call: impl FnOnce(&Union) -> Outcome<T>,
        answer: impl FnOnce(R, T),
    ) {
        self.serve_into(op, subject, reply, |tree, _| call(tree), answer);
    }

    /// As [`Server::serve`] where `call` fills the reply, as a listing does.
    fn serve_into<'s, R: Refuse, T>(
        &self,
        op: Op,
        subject: impl Into<Subject<'s>>,
        mut reply: R,
        call: impl FnOnce(&Union, &mut R) -> Outcome<T>,
        answer: impl FnOnce(R, T),
    ) {
        self.counters.count(op);
        let subject = subject.into();
        let story = Story::begin(op, &subject, &self.tree);
        let served = catch_unwind(AssertUnwindSafe(|| match call(&self.tree, &mut reply) {
            Ok(value) => {
                story.ends_well();
                answer(reply, value);
            }
            Err(fault) => {
                story.ends_with(&fault);
                reply.refuse(convert::errno(fault.errno));
            }
        }));
        if served.is_err() {
            let node = subject.node.0;
            log::error!("{op} of node {node}: the server panicked; answered EIO");
        }
    }
}
