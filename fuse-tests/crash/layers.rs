//! Looking at a tree: through a mount, or as the layers on the disk have it. The latter is the
//! format's rules once more, in as few lines as possible, so that a wrong upper isn't excused by
//! the code that wrote it.

use std::collections::BTreeSet;
use std::fs;
use std::ops::AddAssign;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::{Tree, xattr_get, xattr_names};

use super::model::{Seen, View};

/// A name that a writer uses on its way; what is under it doesn't matter.
pub(crate) const SCRATCH: &str = "scratch";

/// The tree below `dir`, as paths that begin with `dir`'s own name.
pub(crate) fn look(root: &Path, dir: &str) -> View {
    let mut view = View::new();
    if let Some(seen) = seen(&root.join(dir)) {
        view.insert(dir.to_owned(), seen);
        walk(root, dir, &mut view);
    }
    view
}

fn walk(root: &Path, dir: &str, view: &mut View) {
    for name in entries(&root.join(dir)) {
        let path = format!("{dir}/{name}");
        let Some(found) = seen(&root.join(&path)) else {
            panic!("{path} is listed, but not there");
        };
        let is_dir = matches!(found, Seen::Dir(_));
        let twice = view.insert(path.clone(), found).is_some();
        assert!(!twice, "{path} is listed twice");
        if is_dir {
            walk(root, &path, view);
        }
    }
}

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("listing {}: {e}", dir.display()))
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .filter(|name| name != SCRATCH)
        .collect()
}

fn seen(path: &Path) -> Option<Seen> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let kind = meta.file_type();
    let mode = meta.permissions().mode() & 0o7777;
    Some(if kind.is_dir() {
        Seen::Dir(mode)
    } else if kind.is_symlink() {
        let target = fs::read_link(path).expect("a target");
        let target = target.into_os_string().into_string().unwrap();
        // A link has little else to be changed. Old times are ones that were set.
        let times = match meta.mtime() {
            old @ 0..100 => format!(" of {old}"),
            _ => String::new(),
        };
        Seen::Link(target + &times)
    } else if kind.is_file() {
        Seen::File {
            data: fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
            mode,
            owner: meta.uid(),
            mark: xattr_get(path, "user.mark"),
        }
    } else {
        // Fifos and devices have nothing that could be half there.
        Seen::Link(format!("<{:o} {}>", meta.mode(), meta.rdev()))
    })
}

/// What the layers of an unmounted tree come to below `dir`.
pub(crate) struct OnDisk {
    pub(crate) view: View,
    /// Whiteouts that hide nothing.
    pub(crate) strays: BTreeSet<String>,
    pub(crate) led: Led,
}

/// How often something in the upper layer led elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Led {
    pub(crate) redirects: usize,
    pub(crate) metacopies: usize,
    pub(crate) indexed: usize,
}

impl AddAssign for Led {
    fn add_assign(&mut self, other: Self) {
        self.redirects += other.redirects;
        self.metacopies += other.metacopies;
        self.indexed += other.indexed;
    }
}

/// Merges the upper layer and the only lower one.
pub(crate) fn merge(t: &Tree, dir: &str) -> OnDisk {
    let mut merge = Merge {
        t,
        index: index_of(t),
        found: OnDisk {
            view: View::new(),
            strays: BTreeSet::new(),
            led: Led::default(),
        },
    };
    let below = t.low(dir).symlink_metadata().is_ok();
    merge.name(dir, below.then(|| dir.to_owned()));
    merge.found
}

/// The names in the index.
fn index_of(t: &Tree) -> Vec<String> {
    if t.has_option("index=on") && t.work("index").exists() {
        entries(&t.work("index"))
    } else {
        Vec::new()
    }
}

struct Merge<'a> {
    t: &'a Tree,
    index: Vec<String>,
    found: OnDisk,
}

impl Merge<'_> {
    /// `lower`: the path of the lower layer's object that can be seen here, if there is no other.
    fn name(&mut self, path: &str, lower: Option<String>) {
        let t = self.t;
        let Ok(meta) = t.upper(path).symlink_metadata() else {
            if let Some(lower) = lower {
                self.lower_name(path, &lower);
            }
            return;
        };
        check_format(t, path);
        if meta.file_type().is_char_device() && meta.rdev() == 0 {
            if lower.is_none() {
                self.found.strays.insert(path.to_owned());
            }
            return;
        }
        let lower = self.led(path, lower);
        let mut upper = seen(&t.upper(path)).expect("what has a stat");
        if let Seen::File { data, .. } = &mut upper
            && self.is_metacopy(&t.upper(path))
        {
            *data = match &lower {
                Some(lower) => lower_data(t, lower, data.len()),
                None => b"<its data isn't found>".to_vec(),
            };
        }
        let is_dir = matches!(upper, Seen::Dir(_));
        self.found.view.insert(path.to_owned(), upper);
        if !is_dir {
            return;
        }
        let opaque = xattr_get(t.upper(path), &t.private("opaque")).as_deref() == Some(b"y");
        let lower = lower.filter(|lower| {
            let is_dir = t.low(lower).symlink_metadata().is_ok_and(|m| m.is_dir());
            !opaque && is_dir
        });
        let mut names: BTreeSet<_> = entries(&t.upper(path)).into_iter().collect();
        let mut lower_names = BTreeSet::new();
        if let Some(lower) = &lower {
            lower_names.extend(entries(&t.low(lower)));
        }
        names.extend(lower_names.iter().cloned());
        for name in names {
            let below = lower.as_ref().filter(|_| lower_names.contains(&name));
            let below = below.map(|lower| format!("{lower}/{name}"));
            let path = format!("{path}/{name}");
            match (&below, &lower) {
                // Where a name of the same directory leads to.
                (None, Some(lower)) if self.redirect(&path).is_some_and(|r| !r.contains('/')) => {
                    let redirect = self.redirect(&path).unwrap_or_default();
                    self.name(&path, Some(format!("{lower}/{redirect}")));
                }
                _ => self.name(&path, below),
            }
        }
    }

    fn redirect(&self, path: &str) -> Option<String> {
        let value = xattr_get(self.t.upper(path), &self.t.private("redirect"))?;
        Some(String::from_utf8(value).expect("a redirect to one of our names"))
    }

    /// Where the lower part of an upper object is.
    fn led(&mut self, path: &str, lower: Option<String>) -> Option<String> {
        let Some(redirect) = self.redirect(path) else {
            return lower;
        };
        self.found.led.redirects += 1;
        match redirect.strip_prefix('/') {
            Some(path) => Some(path.to_owned()),
            None => lower.map(|lower| match lower.rsplit_once('/') {
                Some((dir, _)) => format!("{dir}/{redirect}"),
                None => redirect,
            }),
        }
    }

    fn is_metacopy(&mut self, path: &Path) -> bool {
        let is_one = xattr_get(path, &self.t.private("metacopy")).is_some();
        self.found.led.metacopies += usize::from(is_one);
        is_one
    }

    /// An object that only the lower layer has; or the index, instead of it.
    fn lower_name(&mut self, path: &str, lower: &str) {
        let t = self.t;
        let Some(mut shown) = seen(&t.low(lower)) else {
            return;
        };
        if let Some(entry) = self.entry_of(&t.low(lower)) {
            self.found.led.indexed += 1;
            shown = seen(&entry).expect("an entry of the index");
            if let Seen::File { data, .. } = &mut shown
                && self.is_metacopy(&entry)
            {
                *data = lower_data(t, lower, data.len());
            }
        }
        let is_dir = matches!(shown, Seen::Dir(_));
        self.found.view.insert(path.to_owned(), shown);
        if is_dir {
            for name in entries(&t.low(lower)) {
                self.lower_name(&format!("{path}/{name}"), &format!("{lower}/{name}"));
            }
        }
    }

    /// The index's entry for a lower file: its name ends with the file's handle.
    fn entry_of(&self, lower: &Path) -> Option<PathBuf> {
        let links = lower.symlink_metadata().ok()?.nlink();
        if self.index.is_empty() || links < 2 {
            return None;
        }
        let handle: String = handle::of(lower)
            .expect("a file handle")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let entry = self.index.iter().find(|name| name.ends_with(&handle))?;
        Some(self.t.work("index").join(entry))
    }
}

/// The data of a metadata copy; it has a size of its own.
fn lower_data(t: &Tree, lower: &str, size: usize) -> Vec<u8> {
    let mut data = fs::read(t.low(lower)).unwrap_or_else(|e| panic!("{lower}: {e}"));
    data.resize(size, 0);
    data
}

/// Nothing but what the kernel would have written.
fn check_format(t: &Tree, path: &str) {
    let name = path.rsplit('/').next().unwrap_or(path);
    assert!(!name.starts_with('#'), "{path}: an unfinished object");
    let mut known = vec!["opaque", "origin", "impure"];
    for (option, attr) in [
        ("redirect_dir=on", "redirect"),
        ("metacopy=on", "metacopy"),
        ("index=on", "nlink"),
    ] {
        known.extend(t.has_option(option).then_some(attr));
    }
    let known: Vec<_> = known
        .into_iter()
        .map(|suffix| t.private(suffix).into_bytes())
        .collect();
    for attr in xattr_names(t.upper(path)) {
        let private = attr.starts_with(b"trusted.overlay.") || attr.starts_with(b"user.overlay.");
        assert!(
            !private || known.contains(&attr),
            "{path}: attribute {}",
            attr.escape_ascii()
        );
    }
}

mod handle {
    //! File handles, which the index is sorted by.
    #![allow(unsafe_code)] // name_to_handle_at(2) is called

    use std::ffi::CString;
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    const MOST: usize = 128;

    #[repr(C)]
    struct Handle {
        length: u32,
        kind: i32,
        bytes: [u8; MOST],
    }

    /// The handle of a file, a link not followed.
    pub(super) fn of(path: &Path) -> io::Result<Vec<u8>> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut handle = Handle {
            length: MOST as u32,
            kind: 0,
            bytes: [0; MOST],
        };
        let mut mount = 0;
        // SAFETY: the path ends with NUL; the kernel writes at most `length` bytes behind the head
        // of the handle, and one int; all of them outlive the call.
        let result = unsafe {
            libc::name_to_handle_at(
                libc::AT_FDCWD,
                path.as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount,
                0,
            )
        };
        if result == 0 {
            Ok(handle.bytes[..handle.length as usize].to_vec())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// What is in the work directory and isn't a whiteout kept for later.
pub(crate) fn left_in_work(t: &Tree) -> Vec<String> {
    let mut left = crate::common::sketch(&t.work("work"));
    if t.is_dotted() {
        left.retain(|line| !line.starts_with("incompat"));
    }
    let spare = left.iter().position(|line| line.ends_with('!'));
    if let Some(at) = spare {
        left.remove(at);
    }
    left
}
