//! Every call that an operation makes on the layers fails once, with every error that a full or
//! failing disk and a process without descriptors have.
//!
//! What must hold after a failed call: the operation has happened and said so, or has not happened
//! and said the error; what the layers show is the old or the new state accordingly; the mount shows
//! the same; nothing unfinished is left; and the same operation works when nothing fails any more.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use crate::common::dice::Dice;
use crate::common::{Carrier, Limit, Tree, cases, fails, getting_on, skip};

use super::layers::{left_in_work, look, merge};
use super::model::{View, difference};
use super::operations::{self, CUT, Operation, append, plant};
use super::tracer::{Call, Injection, Tracer, counts};

const TRACED: Limit = Limit::Fuse("the kernel's overlay has no server to trace");

cases! {
    copy_up_of_a_file: TRACED,
    copy_up_without_data: TRACED,
    copy_up_of_other_kinds: TRACED,
    names_made: TRACED,
    names_removed: TRACED,
    names_moved: TRACED,
    half_made_names_are_not_lost: TRACED,
    leading_elsewhere: Limit::Root("only the machine's root has redirects, metadata copies and indexes"),
    copy_up_is_on_the_disk_before_it_is_published: TRACED,
}

/// The errors, by the names that strace knows.
const ERRORS: [(&str, i32); 5] = [
    ("ENOSPC", libc::ENOSPC),
    ("EIO", libc::EIO),
    ("EDQUOT", libc::EDQUOT),
    ("EROFS", libc::EROFS),
    ("EMFILE", libc::EMFILE),
];

fn copy_up_of_a_file(t: &Tree) {
    inject(t, operations::COPY_UP_OF_A_FILE, Errors::Each);
}

fn copy_up_without_data(t: &Tree) {
    inject(t, operations::COPY_UP_WITHOUT_DATA, Errors::Each);
}

fn copy_up_of_other_kinds(t: &Tree) {
    inject(t, operations::COPY_UP_OF_OTHER_KINDS, Errors::Each);
}

fn names_made(t: &Tree) {
    inject(t, operations::NAMES_MADE, Errors::One);
}

fn names_removed(t: &Tree) {
    inject(t, operations::NAMES_REMOVED, Errors::One);
}

fn names_moved(t: &Tree) {
    inject(t, operations::NAMES_MOVED, Errors::One);
}

/// The name is there, and saying so failed: the directory isn't empty, and says so.
fn half_made_names_are_not_lost(t: &Tree) {
    // As many as there are looks at the layers on the way.
    const CALLS: usize = 8;
    let dirs = ["own", "merged"].map(|kind| (0..CALLS).map(move |n| format!("{kind}{n}")));
    let dirs: Vec<String> = dirs.into_iter().flatten().collect();
    for dir in dirs.iter().filter(|dir| dir.starts_with("merged")) {
        t.lower(&[&format!("{dir}/old=O")]);
    }
    t.option("threads=1");
    t.mount();
    let mut half_made = 0;
    for (number, dir) in dirs.iter().enumerate() {
        let dir = t.at(dir);
        match dir.exists() {
            true => fs::remove_file(dir.join("old")).unwrap(),
            false => fs::create_dir(&dir).unwrap(),
        }
        let list = || {
            fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
        };
        assert_eq!(list().count(), 0);
        let injection = Injection {
            call: "newfstatat",
            when: number % CALLS + 1,
            error: "EIO",
        };
        let tracer = Tracer::attach(t.server(), &t.beside(""), Some(&injection));
        let made = fs::create_dir(dir.join("new"));
        tracer.detach();
        let there = t.upper(
            dir.strip_prefix(t.at(""))
                .unwrap()
                .join("new")
                .to_str()
                .unwrap(),
        );
        assert!(made.is_err() || there.exists());
        if there.exists() {
            half_made += usize::from(made.is_err());
            fails(fs::remove_dir(&dir), libc::ENOTEMPTY);
            assert_eq!(list().collect::<Vec<_>>(), ["new"]);
            fs::write(dir.join("new/data"), "kept").unwrap();
        }
    }
    assert!(half_made > 0);
    t.remount();
}

fn leading_elsewhere(t: &Tree) {
    if t.carrier() == Carrier::Kernel {
        skip("the kernel's overlay has no server to trace");
    }
    for option in ["redirect_dir=on", "metacopy=on", "index=on"] {
        t.option(option);
    }
    inject(t, operations::LEADING_ELSEWHERE, Errors::OneForHalf);
}

/// How many of the errors a call fails with where there is time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errors {
    Each,
    One,
    /// One, for every other call: for a plain user it is the same code as for root.
    OneForHalf,
}

/// What one case did.
#[derive(Default)]
struct Tally {
    tried: usize,
    hit: usize,
    survived: usize,
    findings: Vec<String>,
}

/// Directories planted for each operation: one for a trial.
fn directories(errors: Errors) -> usize {
    match (super::thorough(), errors) {
        (false, _) => 60,
        (true, Errors::One | Errors::OneForHalf) => 120,
        (true, Errors::Each) => 400,
    }
}

/// Of the possible trials, one in so many is made where time is short.
const SHARE: usize = 4;

fn inject(t: &Tree, operations: &[Operation], errors: Errors) {
    let errors = if t.is_real_root() {
        errors
    } else {
        Errors::One
    };
    for operation in operations {
        for number in 0..directories(errors) {
            plant(&t.low(&format!("{}{number}", operation.name)));
        }
    }
    t.mount();
    let seed = super::seed();
    for operation in operations {
        let mut trials = Trials {
            t,
            operation,
            errors,
            used: 0,
        };
        let mut tally = Tally::default();
        trials.run(&mut Dice::new(seed), &mut tally);
        let name = operation.name;
        let Tally {
            tried,
            hit,
            survived,
            findings,
        } = tally;
        eprintln!(
            "{name}: {hit} calls of {tried} failed on purpose, {survived} of them without harm"
        );
        assert!(
            findings.is_empty(),
            "seed {seed}, {} findings:\n{}",
            findings.len(),
            findings.join("\n")
        );
        // Which thread is asked isn't ours to choose.
        assert!(
            hit > 0 && hit * 2 >= tried,
            "{name}: {hit} of {tried} calls failed"
        );
    }
}

/// The trials of one operation.
struct Trials<'a> {
    t: &'a Tree,
    operation: &'a Operation,
    errors: Errors,
    used: usize,
}

impl Trials<'_> {
    /// A directory in which nothing has happened yet.
    fn fresh(&mut self) -> String {
        let dir = format!("{}{}", self.operation.name, self.used);
        self.used += 1;
        let there = directories(self.errors);
        assert!(self.used <= there, "more trials than directories");
        (self.operation.before)(&self.t.at(&dir));
        // What the kernel has to look up is looked up: what is traced is the operation alone.
        look(&self.t.at(""), &dir);
        dir
    }

    fn run(&mut self, dice: &mut Dice, tally: &mut Tally) {
        let first = self.fresh();
        let old = relative(look(&self.t.at(""), &first), &first);
        let run = self.operation.run;
        let calls = record(self.t, || run(&self.t.at(&first)).unwrap());
        let new = relative(look(&self.t.at(""), &first), &first);
        // A plain user's namespace has no other owner to give a file to.
        let unseen = self.operation.name == "chown" && !self.t.is_real_root();
        let name = self.operation.name;
        assert!(unseen || old != new, "{name}: nothing is seen of it");
        let redirects =
            (name.contains("rename") || name == LINK) && self.t.has_option("redirect_dir=on");
        let states = States {
            old,
            new,
            redirects,
        };
        for (call, count) in counts(&calls) {
            // A call that this strace has no name for: nor can it make it fail.
            if call.starts_with("syscall_") {
                continue;
            }
            for when in 1..=count {
                let one = [ERRORS[dice.roll(ERRORS.len())]];
                let errors: &[_] = match (super::thorough(), self.errors) {
                    (true, Errors::Each) => &ERRORS,
                    (true, Errors::One) => &one,
                    (true, Errors::OneForHalf) if dice.roll(2) == 0 => &one,
                    (true, Errors::OneForHalf) => &[],
                    (false, _) if dice.roll(SHARE) == 0 => &one,
                    (false, _) => &[],
                };
                for error in errors {
                    tally.tried += 1;
                    self.try_one(&call, when, *error, &states, tally);
                }
            }
        }
    }

    fn try_one(
        &mut self,
        call: &str,
        when: usize,
        (error, errno): (&str, i32),
        states: &States,
        tally: &mut Tally,
    ) {
        getting_on();
        let dir = self.fresh();
        let injection = Injection { call, when, error };
        let tracer = Tracer::attach(self.t.server(), &self.t.beside(""), Some(&injection));
        let result = (self.operation.run)(&self.t.at(&dir));
        let was_hit = tracer
            .detach()
            .iter()
            .any(|call| call.line.contains("(INJECTED)"));
        let name = self.operation.name;
        if !was_hit {
            assert!(result.is_ok(), "{name}: {result:?} without a failing call");
            return;
        }
        tally.hit += 1;
        tally.survived += usize::from(result.is_ok());
        let looks = STATS.contains(&call) || (name == LINK && MORE_STATS.contains(&call));
        let may_have_happened = name == CUT || looks;
        if let Err(why) = self.judge(&dir, errno, result, states, may_have_happened) {
            tally
                .findings
                .push(format!("{name}: {call} #{when} {error}: {why}"));
        }
    }
}

/// What an operation's directory holds without it and with it.
struct States {
    old: View,
    new: View,
    /// The operation writes redirects.
    redirects: bool,
}

impl Trials<'_> {
    /// Whether all is as it must be after a call failed with `errno`.
    fn judge(
        &mut self,
        dir: &str,
        errno: i32,
        result: io::Result<()>,
        states: &States,
        may_have_happened: bool,
    ) -> Result<(), String> {
        let t = self.t;
        let mut expected = match &result {
            Ok(()) => &states.new,
            Err(error) if error.raw_os_error() == Some(errno) => &states.old,
            // Where no redirect can be written it says, as the kernel does, that a program has to
            // copy.
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) && states.redirects => {
                &states.old
            }
            Err(error) => return Err(format!("answered with another error: {error}")),
        };
        let said = if result.is_ok() { "worked" } else { "failed" };
        let on_disk = merge(t, dir);
        let happened = relative(on_disk.view.clone(), dir) == states.new;
        if may_have_happened && happened {
            expected = &states.new;
        }
        same(&format!("{said}, on the disk"), expected, on_disk.view, dir)?;
        if result.is_ok() || !happened {
            same(
                &format!("{said}, in the mount"),
                expected,
                look(&t.at(""), dir),
                dir,
            )?;
        }
        if result.is_err() && !happened {
            (self.operation.run)(&t.at(dir))
                .map_err(|error| format!("the second attempt: {error}"))?;
            same(
                "second attempt, on the disk",
                &states.new,
                merge(t, dir).view,
                dir,
            )?;
            same(
                "second attempt, in the mount",
                &states.new,
                look(&t.at(""), dir),
                dir,
            )?;
            if !on_disk.strays.is_empty() {
                return Err(format!("whiteouts over nothing: {:?}", on_disk.strays));
            }
        } else if !left_in_work(t).is_empty() {
            // It was the tidying up that failed: the next operation makes up for it.
            let next = self.fresh();
            (self.operation.run)(&t.at(&next)).map_err(|error| format!("the next: {error}"))?;
        }
        let left = left_in_work(t);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{said}, left in work: {left:?}"))
        }
    }
}

/// Calls that only look. An answer that says what came out needs one after the deed; where that
/// fails, the deed can't be taken back, and the error is all that can be answered; the caller's
/// kernel goes on with what it knew. (Of what was just made no file system reads anything from the
/// disk for that.)
const STATS: [&str; 3] = ["fstat", "newfstatat", "statx"];
/// The same for a new link of an indexed file, where the answer also needs attributes.
const LINK: &str = "linked_link";
const MORE_STATS: [&str; 2] = ["fchdir", "lgetxattr"];

fn same(what: &str, expected: &View, seen: View, dir: &str) -> Result<(), String> {
    let seen = relative(seen, dir);
    if seen == *expected {
        Ok(())
    } else {
        Err(format!("{what}: {}", difference(expected, &seen)))
    }
}

/// The view with the directory's own name taken off.
fn relative(view: View, dir: &str) -> View {
    view.into_iter()
        .map(|(path, seen)| (path[dir.len()..].to_owned(), seen))
        .collect()
}

/// The calls of the server while `work` runs.
fn record(t: &Tree, work: impl FnOnce()) -> Vec<Call> {
    let tracer = Tracer::attach(t.server(), &t.beside(""), None);
    work();
    tracer.detach()
}

fn copy_up_is_on_the_disk_before_it_is_published(t: &Tree) {
    plant(&t.low("x"));
    t.mount();
    look(&t.at(""), "x");
    let calls = record(t, || append(&t.at("x")).unwrap());
    let position = |what: &str, matches: &dyn Fn(&Call) -> bool| {
        let found: BTreeSet<_> = (0..calls.len()).filter(|at| matches(&calls[*at])).collect();
        found.first().copied().unwrap_or_else(|| {
            let lines: Vec<_> = calls.iter().map(|call| call.line.as_str()).collect();
            panic!("no {what} among:\n{}", lines.join("\n"))
        })
    };
    let created = position("creation of the copy", &|call| {
        call.name == "openat" && call.line.contains("\"#") && call.line.contains("O_CREAT")
    });
    let synced = position("fsync", &|call| {
        call.name == "fsync" && call.line.contains("= 0")
    });
    let published = position("publication", &|call| {
        call.name == "renameat2" && call.line.contains("\"#") && call.line.contains("\"f\"")
    });
    let written = position("write", &|call| {
        call.name == "pwrite64" && call.line.contains("\"+\"")
    });
    assert!(
        created < synced && synced < published && published < written,
        "created {created}, fsync {synced}, published {published}, written {written}"
    );
    // The data and everything else that the copy gets comes before the fsync.
    for name in [
        "copy_file_range",
        "ftruncate",
        "fsetxattr",
        "fchownat",
        "fchmod",
    ] {
        let late = calls[synced..published]
            .iter()
            .any(|call| call.name == name);
        assert!(!late, "{name} between fsync and publication");
    }
}
