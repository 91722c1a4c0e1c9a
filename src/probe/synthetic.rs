//! The trial on a small tree of our own: two lower layers, and every kind of change that leaves
//! its own mark in the upper layer.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::mount::{UnmountFlags, unmount};

use super::attempt::attempt;
use super::notes::{Note, Pen, Phase};
use super::verdict::Failure;
use crate::options::{Fsync, Options};
use crate::sys::{Errno, mountinfo};

/// The directories of a trial, all in one private directory on the upper layer's file system.
#[derive(Debug, Clone)]
pub(super) struct Scratch {
    pub(super) top: PathBuf,
}

impl Scratch {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }
}

const OLD: &[u8] = b"old\n";
const NEW: &[u8] = b"new\n";

/// Makes the layers that the trial works on.
pub(super) fn lay_out(scratch: &Scratch, pen: &Pen) -> bool {
    pen.phase(Phase::Layout);
    pen.step("lay out a small tree", || {
        for name in [
            "upper",
            "work",
            "merged",
            "one/both",
            "one/tree/in",
            "two/both",
            "two/tree/in",
        ] {
            io(
                &format!("mkdir {name}"),
                fs::create_dir_all(scratch.path(name)),
            )?;
        }
        for name in ["data", "mode", "gone", "from", "both/two", "tree/in/deep"] {
            let path = scratch.path("two").join(name);
            io(&format!("writing {name}"), fs::write(path, OLD))?;
        }
        io(
            "writing both/one",
            fs::write(scratch.path("one/both/one"), OLD),
        )
    })
}

/// The options of the first mount: the wanted ones on our own layers.
pub(super) fn options(wanted: &Options, scratch: &Scratch) -> Options {
    Options {
        lower: vec![scratch.path("one"), scratch.path("two")],
        data_only: Vec::new(),
        upper: Some(scratch.path("upper")),
        work: Some(scratch.path("work")),
        ..wanted.clone()
    }
}

/// Notes what the upper layer's file system lacks; whether it matters is seen later.
pub(super) fn examine(scratch: &Scratch, options: &Options, pen: &Pen) {
    let name = if options.userxattr {
        "user.overfall.trial"
    } else {
        "trusted.overfall.trial"
    };
    let dir = scratch.path("upper");
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::setxattr(&dir, name, b"y", flags) {
        // It goes with the directory in any case.
        Ok(()) => drop(rustix::fs::removexattr(&dir, name)),
        Err(Errno::NOSPC | Errno::DQUOT) => pen.note(&Note::Full),
        Err(_) => pen.note(&Note::NoAttributes),
    }
    // Where there is no room for the work directory, kernels mount read-only and don't say why.
    // File systems that count nothing say that they have 0 of 0.
    let full = |room: rustix::fs::StatVfs| {
        (room.f_blocks > 0 && room.f_bavail == 0) || (room.f_files > 0 && room.f_ffree == 0)
    };
    if rustix::fs::statvfs(&dir).is_ok_and(full) {
        pen.note(&Note::Full);
    }
    let told = rustix::fs::open(
        &scratch.top,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .and_then(rustix::fs::Dir::new)
    .into_iter()
    .flatten()
    .flatten()
    .any(|entry| {
        entry.file_name().to_bytes() == b"one"
            && entry.file_type() == rustix::fs::FileType::Directory
    });
    if !told {
        pen.note(&Note::NoFileTypes);
    }
}

/// Mounts, changes, reads back, looks into the upper layer, unmounts. Says whether it mounted.
pub(super) fn run(scratch: &Scratch, options: &Options, pen: &Pen) -> bool {
    let merged = scratch.path("merged");
    pen.phase(Phase::Mount);
    if !mounted(pen, "mount", options, &merged) {
        return false;
    }
    pen.phase(Phase::Work);
    change(&merged, pen);
    pen.step("read everything back", || {
        read_back(&merged, &scratch.path("two"))
    });
    leave(&merged, pen);
    look_into(&scratch.path("upper"), options, pen);
    true
}

/// The step of mounting; where it fails, tells whether another file system could be mounted.
pub(super) fn mounted(pen: &Pen, name: &str, options: &Options, merged: &Path) -> bool {
    let mounted = pen.step(name, || {
        let outcome = match attempt(&unsynced(options), merged) {
            // Kernels before 5.10 don't know `volatile`.
            Err(refusal) if refusal.errno == Errno::INVAL => attempt(options, merged),
            outcome => outcome,
        };
        outcome.map_err(|refusal| {
            let said = match refusal.said.as_str() {
                "" => String::new(),
                said => format!(": {said}"),
            };
            Failure::call(format!("{}{said}", refusal.step), refusal.errno)
        })
    });
    if !mounted {
        let flags = rustix::mount::MountFlags::empty();
        let other = rustix::mount::mount("overfall", merged, "tmpfs", flags, None);
        pen.note(match other {
            Ok(()) => &Note::OtherMountsWork,
            Err(_) => &Note::NoMountsWork,
        });
        return false;
    }
    if options.userxattr {
        pen.step("find userxattr in mountinfo", || shows_userxattr(merged));
    }
    true
}

/// Without it, the unmount would write everything that anybody has written to this file system.
fn unsynced(options: &Options) -> Options {
    Options {
        fsync: Fsync::Volatile,
        ..options.clone()
    }
}

fn shows_userxattr(merged: &Path) -> Result<(), Failure> {
    let mounts = io("reading mountinfo", mountinfo::read())?;
    let shown = mounts
        .iter()
        .rev()
        .find(|mount| mount.point == *merged)
        .is_some_and(|mount| {
            mount
                .super_options
                .iter()
                .any(|option| option == b"userxattr")
        });
    if shown {
        Ok(())
    } else {
        Err(Failure::wrong("the mount doesn't show the option"))
    }
}

pub(super) fn leave(merged: &Path, pen: &Pen) {
    pen.step("unmount", || {
        unmount(merged, UnmountFlags::empty()).map_err(|errno| Failure::call("umount2", errno))
    });
}

fn change(merged: &Path, pen: &Pen) {
    let at = |name: &str| merged.join(name);
    pen.step("create a file", || {
        io("writing it", fs::write(at("fresh"), NEW))
    });
    pen.step("overwrite a lower file", || {
        io("writing it", fs::write(at("data"), NEW))
    });
    pen.step("change the mode of a lower file", || {
        io(
            "chmod",
            fs::set_permissions(at("mode"), fs::Permissions::from_mode(0o640)),
        )
    });
    pen.step("remove a lower file", || {
        io("unlink", fs::remove_file(at("gone")))
    });
    pen.step("remove a merged directory with all below it", || {
        io("removing it", fs::remove_dir_all(at("tree")))
    });
    pen.step("make the directory again", || {
        io("mkdir", fs::create_dir(at("tree")))
    });
    pen.step("rename a lower file", || {
        io("rename", fs::rename(at("from"), at("to")))
    });
}

fn read_back(merged: &Path, lower: &Path) -> Result<(), Failure> {
    for (name, wanted) in [("fresh", NEW), ("data", NEW), ("to", OLD), ("mode", OLD)] {
        let found = io(&format!("reading {name}"), fs::read(merged.join(name)))?;
        if found != wanted {
            return Err(Failure::wrong(format!(
                "{name} does not hold what was written"
            )));
        }
    }
    let mode = io("stat mode", fs::metadata(merged.join("mode")))?.mode();
    if mode & 0o7777 != 0o640 {
        return Err(Failure::wrong("a changed mode reads back as another"));
    }
    for (dir, wanted) in [
        ("", &["both", "data", "fresh", "mode", "to", "tree"][..]),
        ("both", &["one", "two"]),
        ("tree", &[]),
    ] {
        let mut names = Vec::new();
        for entry in io("opening a directory", fs::read_dir(merged.join(dir)))? {
            names.push(io("listing", entry)?.file_name());
        }
        names.sort();
        if names != wanted {
            return Err(Failure::wrong(format!(
                "/{dir} lists {names:?}, not {wanted:?}"
            )));
        }
    }
    if io("reading the lower file", fs::read(lower.join("data")))? != OLD {
        return Err(Failure::wrong("a write reached the lower layer"));
    }
    Ok(())
}

/// What the kernel, and whoever mounts this upper layer later, must find in it.
fn look_into(upper: &Path, options: &Options, pen: &Pen) {
    pen.step("find the whiteout in the upper layer", || {
        let found = match fs::symlink_metadata(upper.join("gone")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Failure::wrong("nothing stands for the removed file"));
            }
            found => io("stat", found)?,
        };
        if found.file_type().is_char_device() && found.rdev() == 0 {
            Ok(())
        } else {
            Err(Failure::wrong(
                "what stands for the removed file is not a 0:0 device",
            ))
        }
    });
    pen.step("find the opaque mark in the upper layer", || {
        let name = if options.userxattr {
            "user.overlay.opaque"
        } else {
            "trusted.overlay.opaque"
        };
        let mut value = [0_u8; 8];
        let length = rustix::fs::getxattr(upper.join("tree"), name, &mut value[..])
            .map_err(|errno| Failure::call(format!("getxattr({name})"), errno))?;
        if value[..length] == *b"y" {
            Ok(())
        } else {
            Err(Failure::wrong(format!("{name} is not `y`")))
        }
    });
}

/// Turns an I/O error into a failed step.
pub(super) fn io<T>(what: &str, outcome: io::Result<T>) -> Result<T, Failure> {
    outcome.map_err(|error| match Errno::from_io_error(&error) {
        Some(errno) => Failure::call(what, errno),
        None => Failure::wrong(format!("{what}: {error}")),
    })
}
