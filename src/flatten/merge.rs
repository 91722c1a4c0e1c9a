//! What a merged directory shows, from the directories that it is merged of.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::{Layer, look, names};
use crate::format::dotted::{self, Name};
use crate::format::{Form, MAY_HOLD_XATTR_WHITEOUTS, OPAQUE, XattrNamespace, is_whiteout};
use crate::sys::tree::open_below;
use crate::sys::{Errno, xattr};

/// What a name is. Layers are told by their index among those that were given.
#[derive(Debug)]
pub(super) enum Found {
    /// No directory; of this layer.
    Leaf { at: usize, stat: Stat },
    /// A directory, merged of these layers', topmost first.
    Directory { at: Vec<usize> },
}

/// What the layers looked at so far say about a name.
enum Said {
    Hidden,
    Leaf(usize, Stat),
    /// The layers, and whether those further down count too.
    Directory(Vec<usize>, Below),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    Counts,
    IsHidden,
}

/// The names of a merged directory, sorted, so that whoever writes them does so in the same order
/// each time. The calling thread must have a working directory of its own.
pub(super) fn entries(
    layers: &[Layer],
    namespace: XattrNamespace,
) -> Result<Vec<(OsString, Found)>, Errno> {
    let mut all: BTreeMap<OsString, Said> = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let dir = layer.fd.as_fd();
        let last = index + 1 == layers.len();
        let mark = xattr::fget(dir, namespace.opaque()).ok();
        let attribute_whiteouts = mark.as_deref() == Some(MAY_HOLD_XATTR_WHITEOUTS);
        let mut hidden = Vec::new();
        for name in names(dir)? {
            if layer.form == Form::Dotted {
                match dotted::read(&name) {
                    Name::Plain => {}
                    Name::Whiteout(_) | Name::LongWhiteout => {
                        hidden.extend(crate::dotted::hidden_by(dir, &name)?);
                        continue;
                    }
                    Name::Reserved => continue,
                }
            }
            let said = all.get_mut(&name);
            if matches!(
                said,
                Some(Said::Hidden | Said::Leaf(..) | Said::Directory(_, Below::IsHidden))
            ) {
                continue;
            }
            let stat = look(dir, &name)?;
            let hides = is_whiteout(stat.st_mode, stat.st_rdev)
                || attribute_whiteouts && is_attribute_whiteout(dir, &name, &stat, namespace);
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let below = || match last || !is_opaque(layer, &name, namespace) {
                true => Below::Counts,
                false => Below::IsHidden,
            };
            match said {
                Some(Said::Directory(at, open)) => {
                    if directory && !hides {
                        at.push(index);
                        *open = below();
                    } else {
                        *open = Below::IsHidden;
                    }
                }
                _ => {
                    let said = if hides {
                        Said::Hidden
                    } else if directory {
                        Said::Directory(vec![index], below())
                    } else {
                        Said::Leaf(index, stat)
                    };
                    all.insert(name, said);
                }
            }
        }
        // After the layer's own objects, which they don't hide.
        for name in hidden {
            match all.entry(name).or_insert(Said::Hidden) {
                Said::Directory(_, open) => *open = Below::IsHidden,
                Said::Hidden | Said::Leaf(..) => {}
            }
        }
    }
    let shown = all.into_iter().filter_map(|(name, said)| match said {
        Said::Hidden => None,
        Said::Leaf(at, stat) => Some((name, Found::Leaf { at, stat })),
        Said::Directory(at, _) => Some((name, Found::Directory { at })),
    });
    Ok(shown.collect())
}

fn is_opaque(layer: &Layer, name: &OsStr, namespace: XattrNamespace) -> bool {
    let dir = layer.fd.as_fd();
    match layer.form {
        Form::Kernel => {
            xattr::get_optional(dir, name, namespace.opaque()).as_deref() == Some(OPAQUE)
        }
        // What can't be looked into can't be merged either.
        Form::Dotted => {
            open_below(dir, Path::new(name))
                .is_ok_and(|inner| crate::dotted::is_opaque(inner.as_fd()).unwrap_or(false))
                || crate::dotted::hides(dir, name).unwrap_or(false)
        }
    }
}

fn is_attribute_whiteout(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    namespace: XattrNamespace,
) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_size == 0
        && xattr::get_optional(dir, name, namespace.whiteout()).is_some()
}
