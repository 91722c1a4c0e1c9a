//! The trial over the real lower layers. They are only read; what is changed is changed in an
//! upper layer of our own.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::notes::{Note, Pen, Phase};
use super::synthetic::{Scratch, io, leave, mounted};
use super::unmapped::Unmapped;
use super::verdict::Failure;
use crate::options::Options;
use crate::sys::mountinfo;

/// How many names of a lower layer's top are looked at.
const MOST_NAMES: usize = 256;

/// The largest real file that is copied up in a trial.
const LARGEST: u64 = 1 << 20;

/// Mounts the real lower layers under an upper one of the trial's, and changes what is there.
pub(super) fn run(wanted: &Options, scratch: &Scratch, pen: &Pen) {
    pen.phase(Phase::RealMount);
    let merged = scratch.path("merged");
    let writable = wanted.upper.is_some();
    let options = Options {
        upper: writable.then(|| scratch.path("upper2")),
        work: writable.then(|| scratch.path("work2")),
        ..wanted.clone()
    };
    for dir in [&options.upper, &options.work].into_iter().flatten() {
        if let Err(failure) = io("mkdir", fs::create_dir(dir)) {
            pen.step("make an upper layer", || Err(failure));
            return;
        }
    }
    if !mounted(pen, "mount over the real lower layers", &options, &merged) {
        tell_submounts(&options, pen);
        return;
    }
    pen.phase(Phase::RealWork);
    let names = list(&merged, pen);
    if writable {
        change(&merged, &names, pen);
    }
    leave(&merged, pen);
}

/// The first names of the merged root.
fn list(merged: &Path, pen: &Pen) -> Vec<PathBuf> {
    let mut names = Vec::new();
    pen.step("list the real lower layers", || {
        for entry in io("opening the root", fs::read_dir(merged))?.take(MOST_NAMES) {
            names.push(io("listing", entry)?.path());
        }
        Ok(())
    });
    names
}

fn change(merged: &Path, names: &[PathBuf], pen: &Pen) {
    let unmapped = Unmapped::current();
    pen.step("create a file over the real lower layers", || {
        io(
            "writing it",
            fs::write(merged.join(".overfall-trial"), "new\n"),
        )
    });
    let mut dirs = Vec::new();
    let mut files = Vec::new();
    let mut foreign = None;
    for name in names {
        // What can't even be looked at is no worse in the merged tree than in the real one.
        let Ok(found) = fs::symlink_metadata(name) else {
            continue;
        };
        if unmapped.owns(&found) {
            if found.is_dir() || found.is_file() {
                foreign.get_or_insert((name, found.is_dir()));
            }
        } else if found.is_dir() {
            dirs.push(name);
        } else if found.is_file() && found.len() <= LARGEST {
            files.push(name);
        }
    }
    let ours = |name: &&&PathBuf| {
        use rustix::fs::{Access, AtFlags, CWD, accessat};
        let both = Access::READ_OK | Access::WRITE_OK;
        accessat(CWD, name.as_path(), both, AtFlags::EACCESS).is_ok()
    };
    let name = "change a real lower directory";
    match dirs.iter().find(ours) {
        Some(dir) => {
            pen.step(name, || {
                io("mkdir", fs::create_dir(dir.join(".overfall-trial")))
            });
        }
        None => pen.skip(name, "no directory at the top that this user may change"),
    }
    let (append, remove) = ("append to a real lower file", "remove a real lower file");
    match files.iter().find(ours) {
        Some(file) => {
            pen.step(append, || append_to(file));
            pen.step(remove, || io("unlink", fs::remove_file(file)));
        }
        None => {
            let why = "no small file at the top that this user may change";
            pen.skip(append, why);
            pen.skip(remove, why);
        }
    }
    if let Some((path, is_dir)) = foreign {
        pen.phase(Phase::Owners);
        let name = path.strip_prefix(merged).unwrap_or(path).display();
        pen.step(
            &format!("change /{name}, whose owner has no id in this user namespace"),
            || match is_dir {
                true => io(
                    "mkdir below it",
                    fs::create_dir(path.join(".overfall-trial")),
                ),
                false => append_to(path),
            },
        );
        pen.phase(Phase::RealWork);
    }
}

fn append_to(path: &Path) -> Result<(), Failure> {
    let mut file = io("open", fs::OpenOptions::new().append(true).open(path))?;
    io("write", file.write_all(b"new\n"))
}

/// A user namespace may not look beneath mounts that it didn't make, so the kernel refuses to
/// clone a tree that has some.
fn tell_submounts(options: &Options, pen: &Pen) {
    let Ok(mounts) = mountinfo::read() else {
        return;
    };
    for lower in &options.lower {
        let Ok(lower) = fs::canonicalize(lower) else {
            continue;
        };
        let below = mounts
            .iter()
            .find(|mount| mount.point != lower && mount.point.starts_with(&lower));
        if let Some(mount) = below {
            pen.note(&Note::SubmountsBelow(mount.point.display().to_string()));
            return;
        }
    }
}
