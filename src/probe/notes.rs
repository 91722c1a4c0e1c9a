//! What the child of a trial tells its parent: one JSON value a line, so that what was said
//! before a crash is kept.

use std::cell::Cell;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::verdict::{Failure, Outcome, Step};

/// What a step belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Making the namespaces.
    Space,
    /// Making the layers of the trial.
    Layout,
    /// Mounting them.
    Mount,
    /// Changing files in the merged tree of our own layers.
    Work,
    /// Mounting the real lower layers.
    RealMount,
    /// Changing files in their merged tree.
    RealWork,
    /// Changing a file whose owner has no id in this user namespace.
    Owners,
}

/// One line from the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Note {
    /// A step was tried.
    Step(Phase, Step),
    /// The trial's directory couldn't be made; an errno.
    NoRoom(i32),
    /// Another file system could be mounted where the overlay could not.
    OtherMountsWork,
    /// Another file system couldn't be mounted there either.
    NoMountsWork,
    /// The upper layer's file system has no attributes of the kind that was wanted.
    NoAttributes,
    /// The upper layer's file system has no room left.
    Full,
    /// The upper layer's file system doesn't tell file types in listings.
    NoFileTypes,
    /// Something is mounted below a lower layer.
    SubmountsBelow(String),
    /// Everything was tried.
    End,
}

/// The child's end of the line.
#[derive(Debug)]
pub(super) struct Pen {
    out: OwnedFd,
    phase: Cell<Phase>,
}

impl Pen {
    pub(super) fn new(out: OwnedFd) -> Self {
        Self {
            out,
            phase: Cell::new(Phase::Space),
        }
    }

    /// What the next steps belong to.
    pub(super) fn phase(&self, phase: Phase) {
        self.phase.set(phase);
    }

    pub(super) fn note(&self, note: &Note) {
        let Ok(mut line) = serde_json::to_vec(note) else {
            return;
        };
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            match rustix::io::write(&self.out, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                // Nobody listens any more; the parent knows that the end is missing.
                Err(_) => return,
            }
        }
    }

    /// Tries one step, and tells how it went.
    pub(super) fn step(&self, name: &str, work: impl FnOnce() -> Result<(), Failure>) -> bool {
        let outcome = match work() {
            Ok(()) => Outcome::Ok,
            Err(failure) => failure.into(),
        };
        let good = outcome == Outcome::Ok;
        self.tell(name, outcome);
        good
    }

    pub(super) fn skip(&self, name: &str, why: &str) {
        let detail = why.to_owned();
        self.tell(name, Outcome::Skipped { detail });
    }

    fn tell(&self, name: &str, outcome: Outcome) {
        let step = Step {
            name: name.to_owned(),
            outcome,
        };
        self.note(&Note::Step(self.phase.get(), step));
    }
}

/// Reads what a child said; a line that was cut off is dropped.
pub(super) fn read(output: &[u8]) -> Vec<Note> {
    output
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}
