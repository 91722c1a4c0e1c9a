//! What the log says of a request: the operation, the path, and what came of it.

use std::ffi::OsStr;
use std::path::PathBuf;

use log::Level;

use super::counters::Op;
use crate::sys::Errno;
use crate::union::{Fault, NodeId, Union};

/// Where requests that went as they should are logged, and those that were refused as usual.
pub(crate) const TARGET: &str = "overfall::requests";

/// What a request is about: a node, or a name in one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'s> {
    pub(super) node: NodeId,
    name: Option<&'s OsStr>,
}

impl From<NodeId> for Subject<'_> {
    fn from(node: NodeId) -> Self {
        Self { node, name: None }
    }
}

impl<'s> From<(NodeId, &'s OsStr)> for Subject<'s> {
    fn from((node, name): (NodeId, &'s OsStr)) -> Self {
        Self {
            node,
            name: Some(name),
        }
    }
}

/// One request.
#[derive(Debug)]
pub(super) struct Story<'s> {
    op: Op,
    subject: &'s Subject<'s>,
    tree: &'s Union,
    /// Found before the request is carried out, which may take the name away; only where
    /// every request is logged.
    path: Option<PathBuf>,
}

impl<'s> Story<'s> {
    pub(super) fn begin(op: Op, subject: &'s Subject<'s>, tree: &'s Union) -> Self {
        let every = log::log_enabled!(target: TARGET, Level::Debug);
        Self {
            op,
            subject,
            tree,
            path: every.then(|| path(tree, subject)),
        }
    }

    pub(super) fn ends_well(&self) {
        if let Some(path) = &self.path {
            log::debug!(target: TARGET, "{} {}: ok", self.op, path.display());
        }
    }

    /// Logs a refusal at the level that its kind deserves. Where every request is logged, the
    /// everyday ones are, too.
    pub(super) fn ends_with(&self, fault: &Fault) {
        let level = match fault.errno {
            Errno::IO | Errno::UCLEAN => Level::Error,
            Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM => Level::Warn,
            _ => Level::Debug,
        };
        if !log::log_enabled!(target: TARGET, level) {
            return;
        }
        let found;
        let path = match &self.path {
            Some(path) => path,
            None => {
                found = path(self.tree, self.subject);
                &found
            }
        };
        log::log!(target: TARGET, level, "{} {}: {fault}", self.op, path.display());
    }
}

fn path(tree: &Union, subject: &Subject<'_>) -> PathBuf {
    let mut path = tree.path_of(subject.node);
    path.extend(subject.name);
    path
}
