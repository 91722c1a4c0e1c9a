//! Every call that an operation makes on the layers fails once, with every error that a full or
//! failing disk and a process without descriptors have.
//!
//! What must hold after a failed call: the operation has happened and said so, or has not happened
//! and said the error; what the layers show is the old or the new state accordingly; the mount shows
//! the same; nothing unfinished is left; and the same operation works when nothing fails any more.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;

use rustix::fs::FileType;

use crate::common::{Limit, Tree, cases, chmod, getting_on, mknod, set_times, xattr_set};

use super::dice::{Dice, bytes};
use super::layers::{left_in_work, look, merge};
use super::model::{View, difference};
use super::tracer::{Call, Injection, Tracer, counts};

const TRACED: Limit = Limit::Fuse("the kernel's overlay has no server to trace");

cases! {
    copy_up_of_a_file: TRACED,
    copy_up_without_data: TRACED,
    copy_up_of_other_kinds: TRACED,
    names_made: TRACED,
    names_removed: TRACED,
    names_moved: TRACED,
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

/// An operation in a directory of its own, which the lower layer has as [`plant`] makes it.
struct Operation {
    name: &'static str,
    /// Done through the mount before anything fails.
    before: fn(&Path),
    run: fn(&Path) -> io::Result<()>,
}

fn nothing(_: &Path) {}

fn copy_up_of_a_file(t: &Tree) {
    inject(
        t,
        &[
            Operation {
                name: "append",
                before: nothing,
                run: append,
            },
            Operation {
                name: "chmod",
                before: nothing,
                run: |d| change_mode(&d.join("f")),
            },
            Operation {
                name: "xattr",
                before: nothing,
                run: |d| xattr_set(d.join("f"), "user.mark", b"x"),
            },
        ],
    );
}

fn copy_up_without_data(t: &Tree) {
    inject(
        t,
        &[
            Operation {
                name: CUT,
                before: nothing,
                run: |d| {
                    OpenOptions::new()
                        .write(true)
                        .open(d.join("f"))?
                        .set_len(10)
                },
            },
            Operation {
                name: "chown",
                before: nothing,
                run: |d| lchown(d.join("f"), Some(0), Some(0)),
            },
        ],
    );
}

fn copy_up_of_other_kinds(t: &Tree) {
    inject(
        t,
        &[
            Operation {
                name: "link",
                before: nothing,
                run: |d| set_times(&d.join("l"), (5, 0), (6, 0)),
            },
            Operation {
                name: "fifo",
                before: nothing,
                run: |d| change_mode(&d.join("p")),
            },
            Operation {
                name: "dir",
                before: nothing,
                run: |d| change_mode(&d.join("d")),
            },
        ],
    );
}

fn names_made(t: &Tree) {
    let gone = |d: &Path| fs::remove_file(d.join("f")).unwrap();
    inject(
        t,
        &[
            Operation {
                name: "create",
                before: nothing,
                run: |d| create(&d.join("n")),
            },
            Operation {
                name: "create_over",
                before: gone,
                run: |d| create(&d.join("f")),
            },
            Operation {
                name: "mkdir",
                before: nothing,
                run: |d| fs::create_dir(d.join("n")),
            },
            Operation {
                name: "mkdir_over",
                before: gone,
                run: |d| fs::create_dir(d.join("f")),
            },
            Operation {
                name: "symlink_over",
                before: gone,
                run: |d| symlink("there", d.join("f")),
            },
            Operation {
                name: "fifo_over",
                before: gone,
                run: |d| mknod(&d.join("f"), FileType::Fifo, 0o644, (0, 0)),
            },
            Operation {
                name: "hard_link",
                before: nothing,
                run: |d| fs::hard_link(d.join("f"), d.join("n")),
            },
            Operation {
                name: "hard_link_over",
                before: gone,
                run: |d| fs::hard_link(d.join("g"), d.join("f")),
            },
        ],
    );
}

fn names_removed(t: &Tree) {
    inject(
        t,
        &[
            Operation {
                name: "unlink",
                before: nothing,
                run: |d| fs::remove_file(d.join("f")),
            },
            Operation {
                name: "unlink_copied",
                before: |d| append(d).unwrap(),
                run: |d| fs::remove_file(d.join("f")),
            },
            Operation {
                name: "unlink_new",
                before: |d| create(&d.join("n")).unwrap(),
                run: |d| fs::remove_file(d.join("n")),
            },
            Operation {
                name: "rmdir",
                before: nothing,
                run: |d| fs::remove_dir(d.join("e")),
            },
            Operation {
                name: "rmdir_with_whiteouts",
                before: |d| fs::remove_file(d.join("d/a")).unwrap(),
                run: |d| fs::remove_dir(d.join("d")),
            },
        ],
    );
}

fn names_moved(t: &Tree) {
    inject(
        t,
        &[
            Operation {
                name: "rename",
                before: nothing,
                run: |d| fs::rename(d.join("f"), d.join("n")),
            },
            Operation {
                name: "rename_over",
                before: nothing,
                run: |d| fs::rename(d.join("f"), d.join("g")),
            },
            Operation {
                name: "rename_over_whiteout",
                before: |d| fs::remove_file(d.join("g")).unwrap(),
                run: |d| fs::rename(d.join("f"), d.join("g")),
            },
            Operation {
                name: "rename_dir_over_whiteout",
                before: |d| {
                    fs::create_dir(d.join("n")).unwrap();
                    create(&d.join("n/x")).unwrap();
                    fs::remove_file(d.join("g")).unwrap();
                },
                run: |d| fs::rename(d.join("n"), d.join("g")),
            },
            Operation {
                name: "rename_dir_over_emptied",
                before: |d| {
                    fs::create_dir(d.join("n")).unwrap();
                    fs::remove_file(d.join("d/a")).unwrap();
                },
                run: |d| fs::rename(d.join("n"), d.join("d")),
            },
        ],
    );
}

fn append(dir: &Path) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .open(dir.join("f"))?
        .write_all(b"+")
}

fn create(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map(drop)
}

fn change_mode(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o701))
}

/// The objects that the operations work on.
fn plant(dir: &Path) {
    fs::create_dir_all(dir.join("d")).unwrap();
    fs::create_dir(dir.join("e")).unwrap();
    fs::write(dir.join("f"), bytes(1, 20_000)).unwrap();
    xattr_set(dir.join("f"), "user.mark", b"lower").unwrap();
    fs::write(dir.join("g"), "g").unwrap();
    fs::write(dir.join("d/a"), "a").unwrap();
    symlink("target", dir.join("l")).unwrap();
    mknod(&dir.join("p"), FileType::Fifo, 0o644, (0, 0)).unwrap();
    chmod(dir.join("e"), 0o750);
}

/// What one case did.
#[derive(Default)]
struct Tally {
    hit: usize,
    survived: usize,
    findings: Vec<String>,
}

/// Directories planted for each operation: one for a trial.
const DIRECTORIES: usize = 120;
/// Of the possible trials, one in so many is made where time is short.
const SHARE: usize = 4;

fn inject(t: &Tree, operations: &[Operation]) {
    for operation in operations {
        for number in 0..DIRECTORIES {
            plant(&t.low(&format!("{}{number}", operation.name)));
        }
    }
    t.mount();
    let mut tally = Tally::default();
    let seed = super::number(super::SEED).unwrap_or_else(|| u64::from(std::process::id()));
    for operation in operations {
        let mut trials = Trials {
            t,
            operation,
            used: 0,
        };
        trials.run(&mut Dice::new(seed), &mut tally);
    }
    let Tally {
        hit,
        survived,
        findings,
    } = tally;
    eprintln!("{hit} calls failed on purpose, {survived} of them without harm to the operation");
    assert!(
        findings.is_empty(),
        "seed {seed}, {} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
    assert!(hit > 0, "no call failed");
}

/// The trials of one operation.
struct Trials<'a> {
    t: &'a Tree,
    operation: &'a Operation,
    used: usize,
}

impl Trials<'_> {
    /// A directory in which nothing has happened yet.
    fn fresh(&mut self) -> String {
        let dir = format!("{}{}", self.operation.name, self.used);
        self.used += 1;
        assert!(self.used <= DIRECTORIES, "more trials than directories");
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
        let states = States { old, new };
        for (call, count) in counts(&calls) {
            // A call that this strace has no name for: nor can it make it fail.
            if call.starts_with("syscall_") {
                continue;
            }
            for when in 1..=count {
                if super::thorough() || dice.roll(SHARE) == 0 {
                    let error = ERRORS[dice.roll(ERRORS.len())];
                    self.try_one(&call, when, error, &states, tally);
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
        let may_have_happened = name == CUT || STATS.contains(&call);
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

/// The operation that may fail although it has happened: the cut itself was the copy-up, and what
/// fails is what comes after it (the new times).
const CUT: &str = "truncate";

/// Calls that only look. An answer that says what came out needs one after the deed; where that
/// fails, the deed can't be taken back, and the error is all that can be answered; the caller's
/// kernel goes on with what it knew. (Of what was just made no file system reads anything from the
/// disk for that.)
const STATS: [&str; 3] = ["fstat", "newfstatat", "statx"];

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
