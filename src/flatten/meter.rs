//! The progress bar of a long copy.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A copy that is done sooner shows nothing.
const SOON: Duration = Duration::from_secs(1);

/// Shows how far a copy is, on stderr, once it has taken a second.
#[derive(Debug)]
pub(crate) struct Meter {
    started: Instant,
    face: Face,
}

#[derive(Debug)]
enum Face {
    /// Nobody is to see anything.
    Hidden,
    /// It may appear, with these words.
    Waiting(String),
    Shown(ProgressBar),
}

impl Meter {
    /// One that never shows anything.
    pub(crate) fn hidden() -> Self {
        Self {
            started: Instant::now(),
            face: Face::Hidden,
        }
    }

    /// One that shows, if stderr is a terminal, `what` and a bar.
    pub(crate) fn on_terminal(what: impl Into<String>) -> Self {
        Self {
            started: Instant::now(),
            face: match std::io::stderr().is_terminal() {
                true => Face::Waiting(what.into()),
                false => Face::Hidden,
            },
        }
    }

    /// So many bytes are done; `all` counts how many there are to be, which takes a while itself.
    pub(super) fn at(&mut self, done: u64, all: impl FnOnce() -> u64) {
        match &self.face {
            Face::Hidden => {}
            Face::Shown(bar) => bar.set_position(done),
            Face::Waiting(what) => {
                if self.started.elapsed() < SOON {
                    return;
                }
                let bar = ProgressBar::new(all()).with_message(what.clone());
                let look = "{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(look) {
                    bar.set_style(style);
                }
                bar.set_position(done);
                self.face = Face::Shown(bar);
            }
        }
    }

    /// It is done, and the bar goes.
    pub(super) fn done(&mut self) {
        if let Face::Shown(bar) = &self.face {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // After an error, the line is the error's.
        self.done();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(ago: Duration, face: Face) -> Meter {
        Meter {
            started: Instant::now().checked_sub(ago).unwrap(),
            face,
        }
    }

    #[test]
    fn it_shows_after_a_second_and_counts_once() {
        let waiting = || Face::Waiting("copying".to_owned());
        let mut meter = started(Duration::ZERO, waiting());
        meter.at(1, || panic!("counted too early"));
        let mut meter = started(SOON, waiting());
        meter.at(1, || 10);
        meter.at(5, || panic!("counted twice"));
        let Face::Shown(bar) = &meter.face else {
            panic!("{:?}", meter.face);
        };
        assert_eq!((bar.position(), bar.length()), (5, Some(10)));
        let bar = bar.clone();
        drop(meter);
        assert!(bar.is_finished());
        started(SOON, Face::Hidden).at(1, || panic!("counted for nobody"));
    }
}
