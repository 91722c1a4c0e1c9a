//! The answers: what the kernel is told, and for how long it may believe it.

use std::time::Duration;

use fuser::{Generation, ReplyAttr, ReplyEntry, ReplyStatfs, ReplyXattr};

use super::{Server, convert};
use crate::union::{Attr, Entry, Flow, Outcome, StatFs};

impl Server {
    /// For how long the attributes in a look-up's answer hold. They carry the node's number where
    /// `st_ino` belongs; where the two differ, a `stat` has to ask GETATTR.
    fn attr_ttl(&self, entry: &Entry) -> Duration {
        if entry.shows_own_number() {
            self.caching.attr
        } else {
            Duration::ZERO
        }
    }

    /// The time for those answers in which fuser has one for the name and the attributes.
    pub(super) fn shorter_ttl(&self, entry: &Entry) -> Duration {
        self.caching.entry.min(self.attr_ttl(entry))
    }

    pub(super) fn answer_entry(&self, reply: ReplyEntry, entry: Entry) {
        let (attr, generation) = convert::entry(&entry);
        let attr_ttl = self.attr_ttl(&entry);
        reply.entry_with_ttls(&attr_ttl, &self.caching.entry, &attr, generation);
    }

    pub(super) fn answer_lookup(&self, reply: ReplyEntry, found: Option<Entry>) {
        match found {
            Some(entry) => self.answer_entry(reply, entry),
            None => reply.entry(&self.caching.absent, &convert::absent(), Generation(0)),
        }
    }

    pub(super) fn answer_attr(&self, reply: ReplyAttr, attr: Attr) {
        reply.attr(&self.caching.attr, &convert::attr(&attr));
    }
}

/// The protocol of GETXATTR and LISTXATTR: the size alone, or the bytes if there is room.
pub(super) fn sized(reply: ReplyXattr, room: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(size) if room == 0 => reply.size(size),
        Ok(size) if size <= room => reply.data(value),
        _ => reply.error(fuser::Errno::ERANGE),
    }
}

pub(super) fn statfs(reply: ReplyStatfs, stat: StatFs) {
    reply.statfs(
        stat.blocks,
        stat.bfree,
        stat.bavail,
        stat.files,
        stat.ffree,
        stat.bsize,
        stat.namelen,
        stat.frsize,
    );
}

/// Counts what a listing took; fuser says whether it was full.
pub(super) fn flow(full: bool, taken: &mut usize) -> Flow {
    if full {
        return Flow::Full;
    }
    *taken += 1;
    Flow::Took
}

/// A listing that fails half way is answered as far as it got: the kernel owns the look-ups of the
/// entries in it, and meets the error when it asks for the rest.
pub(super) fn as_far_as(taken: usize, listed: Outcome<()>) -> Outcome<()> {
    if taken > 0 { Ok(()) } else { listed }
}
