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

use super::dice::bytes;
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
                name: "truncate",
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

fn inject(t: &Tree, operations: &[Operation]) {
    // As many directories as there may be trials; those that stay unused cost little.
    const MOST: usize = 400;
    for operation in operations {
        for number in 0..MOST_TRIALS.min(MOST) {
            plant(&t.low(&format!("{}{number}", operation.name)));
        }
    }
    t.mount();
    let mut tally = Tally::default();
    for operation in operations {
        inject_into(t, operation, &mut tally);
    }
    let Tally {
        hit,
        survived,
        findings,
    } = tally;
    eprintln!("{hit} calls failed on purpose, {survived} of them without harm to the operation");
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
    assert!(hit > 0, "no call failed");
}

/// Directories planted for each operation.
const MOST_TRIALS: usize = 120;

fn inject_into(t: &Tree, operation: &Operation, tally: &mut Tally) {
    let mut number = 0;
    let mut fresh = || {
        number += 1;
        assert!(number <= MOST_TRIALS, "more trials than directories");
        let dir = format!("{}{}", operation.name, number - 1);
        (operation.before)(&t.at(&dir));
        // What the kernel has to look up is looked up: the traced part is the operation alone.
        look(&t.at(""), &dir);
        dir
    };
    let first = fresh();
    let old = relative(look(&t.at(""), &first), &first);
    let calls = record(t, || (operation.run)(&t.at(&first)).unwrap());
    let new = relative(look(&t.at(""), &first), &first);
    let mut trials = Vec::new();
    for (call, count) in counts(&calls) {
        for when in 1..=count {
            trials.push((call.clone(), when));
        }
    }
    for (at, (call, when)) in trials.iter().enumerate() {
        let errors: &[(&str, i32)] = if super::thorough() && trials.len() * 2 < MOST_TRIALS {
            &[ERRORS[at % 5], ERRORS[(at + 2) % 5]]
        } else {
            &[ERRORS[at % 5]]
        };
        for (error, errno) in errors {
            getting_on();
            let dir = fresh();
            let injection = Injection {
                call,
                when: *when,
                error,
            };
            let tracer = Tracer::attach(t.server(), &t.beside(""), Some(&injection));
            let result = (operation.run)(&t.at(&dir));
            let was_hit = tracer
                .detach()
                .iter()
                .any(|call| call.line.contains("(INJECTED)"));
            if !was_hit {
                assert!(
                    result.is_ok(),
                    "{}: {result:?} without a failing call",
                    operation.name
                );
                continue;
            }
            tally.hit += 1;
            tally.survived += usize::from(result.is_ok());
            let place = format!("{}: {call} #{when} {error}", operation.name);
            if let Err(why) = judge(t, operation, &dir, *errno, result, &old, &new) {
                tally.findings.push(format!("{place}: {why}"));
            }
        }
    }
}

/// Whether all is as it must be after a call failed with `errno`.
fn judge(
    t: &Tree,
    operation: &Operation,
    dir: &str,
    errno: i32,
    result: io::Result<()>,
    old: &View,
    new: &View,
) -> Result<(), String> {
    let expected = match &result {
        Ok(()) => new,
        Err(error) if error.raw_os_error() == Some(errno) => old,
        Err(error) => return Err(format!("answered with another error: {error}")),
    };
    let said = if result.is_ok() { "worked" } else { "failed" };
    let same = |what: &str, expected: &View, seen: View| {
        let seen = relative(seen, dir);
        if seen == *expected {
            Ok(())
        } else {
            Err(format!("{said}, {what}: {}", difference(expected, &seen)))
        }
    };
    let on_disk = merge(t, dir);
    same("on the disk", expected, on_disk.view)?;
    same("in the mount", expected, look(&t.at(""), dir))?;
    if !on_disk.strays.is_empty() {
        return Err(format!(
            "{said}, whiteouts over nothing: {:?}",
            on_disk.strays
        ));
    }
    let left = left_in_work(t);
    if !left.is_empty() {
        for name in fs::read_dir(t.work("work")).unwrap() {
            let path = name.unwrap().path();
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        return Err(format!("{said}, left in work: {left:?}"));
    }
    if result.is_err() {
        (operation.run)(&t.at(dir)).map_err(|error| format!("the second attempt: {error}"))?;
        same(
            "after the second attempt, on the disk",
            new,
            merge(t, dir).view,
        )?;
        same(
            "after the second attempt, in the mount",
            new,
            look(&t.at(""), dir),
        )?;
    }
    Ok(())
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
