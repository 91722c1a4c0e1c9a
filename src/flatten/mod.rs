//! Writing the merged tree of some layers as one plain directory. Nothing has to be mounted.
//!
//! The layers are read as the overlay reads its lower layers: whiteouts and opaque directories
//! hide, the overlay's own attributes don't show. What is written is what a program would find in
//! the merged tree: content, modes, owners, attributes, ACLs, times, hard links, holes, devices.
//!
//! Directories are walked by their paths from the layers' roots, no link followed, so a deep tree
//! of many layers needs few descriptors.

mod like;
mod merge;
mod meter;
mod object;

use std::ffi::{OsStr, OsString};
use std::ops::AddAssign;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, openat};

use crate::dotted::{self, Marked};
use crate::error::Context;
use crate::format::{Form, XattrNamespace};
use crate::sys::Errno;
use crate::sys::tree::open_below;
use crate::{Error, Result};
pub(crate) use like::make_like;
use merge::Found;
pub(crate) use meter::Meter;
use object::Writer;

/// What is to be written where.
#[derive(Debug)]
pub(crate) struct Flatten<'a> {
    /// What is being done, for errors.
    pub(crate) step: &'static str,
    /// The layers, topmost first.
    pub(crate) layers: &'a [PathBuf],
    /// Where the layers keep the overlay's attributes.
    pub(crate) namespace: XattrNamespace,
    /// An empty directory.
    pub(crate) dest: &'a Path,
    /// Who is to own it all.
    pub(crate) owner: Owner,
}

/// Owners that are given instead of the layers' own ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Names, without the root.
    pub(crate) files: u64,
    /// Bytes in regular files.
    pub(crate) bytes: u64,
    /// Files that share their data with a layer's.
    pub(crate) shared: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.shared += other.shared;
    }
}

/// A directory of the merged tree: its path, and the layers that it is merged of, topmost first.
#[derive(Debug, Clone)]
struct Merged {
    path: PathBuf,
    layers: Vec<usize>,
}

impl Flatten<'_> {
    /// Writes the tree. What was written before an error stays.
    pub(crate) fn write(&self, meter: &mut Meter) -> Result<Totals> {
        // The calls for attributes need a working directory of their own.
        thread::scope(|scope| {
            let thread = scope.spawn(|| self.write_here(meter));
            thread.join().unwrap_or_else(|_| {
                Err(Error::system(self.step).because("it ended before it was done"))
            })
        })
    }

    /// How many bytes are in the regular files of the merged tree, without writing anything.
    /// Stops at the first thing that can't be read: writing will say what is wrong.
    fn measure(&self, roots: &[Layer]) -> u64 {
        let mut bytes = 0;
        let mut todo = vec![self.top()];
        while let Some(directory) = todo.pop() {
            let Ok(fds) = self.open_all(roots, &directory) else {
                break;
            };
            let Ok(entries) = merge::entries(&fds, self.namespace) else {
                break;
            };
            for (name, found) in entries {
                match found {
                    Found::Leaf { at, stat } => {
                        let size = u64::try_from(stat.st_size).unwrap_or(0);
                        // One of several names counts for its part.
                        let links = u64::from(stat.st_nlink as u32).max(1);
                        if object::is_regular(&stat) && at < fds.len() {
                            bytes += size / links;
                        }
                    }
                    Found::Directory { at } => todo.push(directory.below(&name, &at)),
                }
            }
        }
        bytes
    }

    fn write_here(&self, meter: &mut Meter) -> Result<Totals> {
        let roots = self
            .layers
            .iter()
            .map(|path| Layer::open(path).context(self.step, path))
            .collect::<Result<Vec<_>>>()?;
        let dest = open_directory(self.dest).context(self.step, self.dest)?;
        let mut writer = Writer::new(self.step, self.namespace, self.owner, &dest);
        // Parents before children; their attributes follow in the reverse order, because writing
        // into a directory changes them.
        let mut directories: Vec<(PathBuf, usize)> = Vec::new();
        let mut todo = vec![self.top()];
        while let Some(directory) = todo.pop() {
            let fds = self
                .open_all(&roots, &directory)
                .context(self.step, self.dest.join(&directory.path))?;
            let here = open_below(&dest, &directory.path)
                .context(self.step, self.dest.join(&directory.path))?;
            let entries = merge::entries(&fds, self.namespace)
                .context(self.step, self.dest.join(&directory.path))?;
            for (name, found) in entries {
                let path = directory.path.join(&name);
                match found {
                    Found::Leaf { at, stat } => {
                        meter.at(writer.totals().bytes, || self.measure(&roots));
                        writer.leaf(fds[at].fd.as_fd(), here.as_fd(), &path, &name, &stat)?;
                    }
                    Found::Directory { at } => {
                        writer.directory(here.as_fd(), &path, &name)?;
                        todo.push(directory.below(&name, &at));
                    }
                }
            }
            let top = directory.layers.first().copied().unwrap_or_default();
            directories.push((directory.path, top));
        }
        for (path, layer) in directories.iter().rev() {
            let to = open_below(&dest, path).context(self.step, self.dest.join(path))?;
            let from =
                open_below(&roots[*layer].fd, path).context(self.step, self.dest.join(path))?;
            writer.finish_directory(from.as_fd(), to.as_fd(), path)?;
        }
        meter.done();
        Ok(writer.totals())
    }

    fn top(&self) -> Merged {
        Merged {
            path: PathBuf::new(),
            layers: (0..self.layers.len()).collect(),
        }
    }

    fn open_all(&self, roots: &[Layer], directory: &Merged) -> Result<Vec<Layer>, Errno> {
        let layers = directory.layers.iter().map(|&layer| &roots[layer]);
        layers
            .map(|layer| {
                Ok(Layer {
                    fd: open_below(&layer.fd, &directory.path)?,
                    form: layer.form,
                })
            })
            .collect()
    }
}

impl Merged {
    /// The directory `name` in this one, merged of those of its layers that `at` counts.
    fn below(&self, name: &OsStr, at: &[usize]) -> Self {
        Self {
            path: self.path.join(name),
            layers: at.iter().map(|&index| self.layers[index]).collect(),
        }
    }
}

/// A directory of a layer.
#[derive(Debug)]
struct Layer {
    fd: OwnedFd,
    form: Form,
}

impl Layer {
    fn open(path: &Path) -> Result<Self, Errno> {
        let fd = open_layer(path)?;
        let form = match dotted::marked(fd.as_fd())? {
            Marked::No => Form::Kernel,
            Marked::Dotted => Form::Dotted,
            // On its way to the other, and in neither.
            Marked::Upgrading => return Err(Errno::BUSY),
        };
        Ok(Self { fd, form })
    }
}

/// A layer's root as a private copy of its mount, where one may be made: what is mounted below
/// isn't part of the layer, and reading leaves no trace in it.
fn open_layer(path: &Path) -> Result<OwnedFd, Errno> {
    let plain = open_directory(path)?;
    Ok(crate::sys::layer::open_privately(&plain).unwrap_or(plain))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

/// What is at a name, links not followed.
fn look(dir: impl AsFd, name: &OsStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// The names in an open directory.
fn names(dir: impl AsFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    crate::sys::tree::for_each(dir.as_fd(), |name, _, _| names.push(name.to_os_string()))?;
    Ok(names)
}

#[cfg(test)]
mod tests;
