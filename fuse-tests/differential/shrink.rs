//! Makes a case that shows something as small as it gets.

use std::path::Path;
use std::time::{Duration, Instant};

use super::case::{Case, Finding, Tally};

/// How long it is worth trying.
const PATIENCE: Duration = Duration::from_secs(60);

/// The smallest case found that shows the same kind of thing, and what it shows.
pub(crate) fn shrink(case: &Case, finding: &Finding, dir: &Path) -> (Case, Finding) {
    let mut search = Search {
        dir,
        end: Instant::now() + PATIENCE,
        best: case.clone(),
        finding: finding.clone(),
    };
    if let Some(step) = finding.step {
        search.attempt(|case| case.steps.truncate(step + 1));
    }
    search.attempt(|case| case.nosy = false);
    loop {
        let before = search.size();
        search.without(|case| &mut case.steps);
        search.without(|case| &mut case.heirs);
        search.without(|case| &mut case.entries);
        search.simplify();
        if search.size() == before || search.is_over() {
            return (search.best, search.finding);
        }
    }
}

struct Search<'a> {
    dir: &'a Path,
    end: Instant,
    best: Case,
    finding: Finding,
}

impl Search<'_> {
    fn size(&self) -> (usize, usize, usize) {
        let xattrs = self
            .best
            .entries
            .iter()
            .map(|entry| entry.xattrs.len())
            .sum();
        (
            self.best.steps.len() + self.best.heirs.len(),
            self.best.entries.len(),
            xattrs,
        )
    }

    fn is_over(&self) -> bool {
        Instant::now() > self.end
    }

    /// Keeps a change if the finding is still there.
    fn attempt(&mut self, change: impl FnOnce(&mut Case)) -> bool {
        let mut case = self.best.clone();
        change(&mut case);
        if self.is_over() {
            return false;
        }
        match case.run(self.dir, &mut Tally::new()) {
            Err(finding) if finding.class == self.finding.class => {
                self.best = case;
                self.finding = finding;
                true
            }
            _ => false,
        }
    }

    /// Leaves out as much of a list as possible, in ever smaller pieces.
    fn without<T>(&mut self, list: fn(&mut Case) -> &mut Vec<T>) {
        let mut piece = list(&mut self.best).len();
        while piece > 0 {
            let mut end = list(&mut self.best).len();
            while end > 0 {
                let start = end.saturating_sub(piece);
                self.attempt(|case| drop(list(case).drain(start..end)));
                end = start.min(list(&mut self.best).len());
            }
            piece /= 2;
        }
    }

    fn simplify(&mut self) {
        for index in 0..self.best.entries.len() {
            self.attempt_if(
                |case| !case.entries[index].xattrs.is_empty(),
                |case| case.entries[index].xattrs.clear(),
            );
            self.attempt_if(
                |case| !case.entries[index].flags.is_empty(),
                |case| case.entries[index].flags = rustix::fs::IFlags::empty(),
            );
            self.attempt_if(
                |case| case.entries[index].mode != 0o777,
                |case| case.entries[index].mode = 0o777,
            );
            self.attempt_if(
                |case| case.entries[index].owner != (0, 0),
                |case| case.entries[index].owner = (0, 0),
            );
        }
        for index in 0..self.best.steps.len() {
            self.attempt_if(
                |case| case.steps[index].uid != 0,
                |case| case.steps[index].uid = 0,
            );
            self.attempt_if(
                |case| case.steps[index].umask != 0o022,
                |case| case.steps[index].umask = 0o022,
            );
        }
    }

    fn attempt_if(&mut self, when: impl Fn(&Case) -> bool, change: impl FnOnce(&mut Case)) {
        if when(&self.best) {
            self.attempt(change);
        }
    }
}
