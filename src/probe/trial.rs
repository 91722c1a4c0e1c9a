//! The trial of the kernel's overlay, on the real location.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

use super::diagnose::Findings;
use super::machine::FileSystem;
use super::notes::{self, Note, Pen};
use super::room::Place;
use super::space::{self, Who};
use super::synthetic::Scratch;
use super::verdict::Verdict;
use super::{real, synthetic};
use crate::error::Context;
use crate::options::Options;
use crate::sys::Errno;
use crate::sys::child::in_child;
use crate::sys::privilege::Privilege;
use crate::{Error, Result};

const STEP: &str = "trying the kernel's overlay";

/// How long a trial may take: it touches a few files, but a network file system may hang.
const LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to remove what it made.
const TO_TIDY_UP: Duration = Duration::from_secs(5);

/// Tries whether the kernel's overlay carries `wanted` here: on a fresh directory in its work
/// directory, in namespaces of the kind that it would be mounted in, and then over its real lower
/// layers, which are only read. Nothing of it is left.
///
/// An error says that the trial itself couldn't be made, and tells nothing about the overlay.
pub fn trial(wanted: &Options) -> Result<Verdict> {
    match &wanted.work {
        Some(work) => trial_in(work, wanted),
        None => trial_in(&std::env::temp_dir(), wanted),
    }
}

/// As [`trial`], on a fresh directory in `near`. Without lower layers only our own are tried.
pub(crate) fn trial_in(near: &Path, wanted: &Options) -> Result<Verdict> {
    let privilege = Privilege::current();
    let mut wanted = wanted.clone();
    wanted.userxattr |= privilege.needs_userxattr();
    if !wanted.lower.is_empty() {
        wanted.check()?;
    }
    let place = Place::new(near)?;
    let start = Instant::now();
    let legacy =
        in_child(LIMIT + TO_TIDY_UP, |out| keep(&place, &wanted, out)).context(STEP, near)?;
    let notes = notes::read(&legacy.output);
    if let Some(Note::NoRoom(errno)) = notes.first() {
        return Err(place.error(Errno::from_raw_os_error(*errno)));
    }
    let finished = notes.iter().any(|note| matches!(note, Note::End));
    if !finished {
        let why = match start.elapsed() >= LIMIT {
            true => "it took too long; a file system below may hang",
            false => "it died before its end",
        };
        return Err(Error::system(STEP).at(near).because(why));
    }
    let findings = Findings {
        notes: &notes,
        wanted: &wanted,
        privilege,
        upper: FileSystem::of(near),
    };
    let cause = findings.cause();
    let steps = notes
        .into_iter()
        .filter_map(|note| match note {
            Note::Step(_, step) => Some(step),
            _ => None,
        })
        .collect();
    Ok(Verdict {
        supported: cause.is_none(),
        cause,
        steps,
        userxattr: wanted.userxattr,
    })
}

/// The child's part: it outlives this process when that is killed, and takes its room away.
fn keep(place: &Place, wanted: &Options, out: OwnedFd) {
    // Nor is it for the terminal to end it.
    let _ = SigSet::all().thread_block();
    let pen = Pen::new(out);
    let room = match place.make() {
        Ok(room) => room,
        Err(errno) => return pen.note(&Note::NoRoom(errno.raw_os_error())),
    };
    let scratch = Scratch {
        top: place.path().to_owned(),
    };
    let who = Who::current();
    let _ended = in_child(LIMIT, |alive| {
        work(wanted, &scratch, who, &pen);
        drop(alive);
    });
    drop(room);
}

/// The grandchild's part.
fn work(wanted: &Options, scratch: &Scratch, who: Who, pen: &Pen) {
    if pen.step("make a namespace", || space::enter(who)) && synthetic::lay_out(scratch, pen) {
        let ours = synthetic::options(wanted, scratch);
        synthetic::examine(scratch, &ours, pen);
        // A mount without an upper layer asks nothing of our own layers.
        let mounts = wanted.upper.is_none() || synthetic::run(scratch, &ours, pen);
        if mounts && !wanted.lower.is_empty() {
            real::run(wanted, scratch, pen);
        }
    }
    pen.note(&Note::End);
}
