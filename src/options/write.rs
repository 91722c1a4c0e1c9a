//! Writing the option string, for people and for mount(2).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::escape::escape_into;
use super::words::{FLAGS, Word};
use super::{Fsync, Options};

/// A format option of the kernel's: its name and, where it has one, its value.
pub(crate) type Setting = (&'static str, Option<&'static str>);

impl Options {
    /// The whole value as an option string that [`Options::parse`] reads back.
    pub fn to_option_string(&self) -> OsString {
        let mut out = self.to_kernel_data(|path| path).into_vec();
        for flag in FLAGS {
            if !flag.set.is_empty() && self.flags.contains(flag.set) {
                item(&mut out, flag.name.as_bytes());
            }
        }
        if self.allow_other {
            item(&mut out, b"allow_other");
        }
        for label in &self.labels {
            item(&mut out, format!("{}=", label.name).as_bytes());
            escape_into(&mut out, label.value.as_bytes());
        }
        if let Some(source) = &self.fsname {
            item(&mut out, b"fsname=");
            escape_into(&mut out, source.as_bytes());
        }
        for written in self.shown.written().iter().chain(&self.tuning.written()) {
            item(&mut out, written.as_bytes());
        }
        for written in self.serving.written() {
            item(&mut out, written.as_bytes());
        }
        OsString::from_vec(out)
    }

    /// The `data` argument of mount(2): directories and format options, no generic flags. `name`
    /// gives each directory the name by which the kernel shall find it.
    pub(crate) fn to_kernel_data<'a>(&'a self, name: impl Fn(&'a Path) -> &'a Path) -> OsString {
        let mut out = b"lowerdir=".to_vec();
        for (at, lower) in self.lower.iter().enumerate() {
            if at > 0 {
                out.push(b':');
            }
            escape_into(&mut out, name(lower).as_os_str().as_bytes());
        }
        for lower in &self.data_only {
            out.extend_from_slice(b"::");
            escape_into(&mut out, name(lower).as_os_str().as_bytes());
        }
        for (key, path) in [("upperdir=", &self.upper), ("workdir=", &self.work)] {
            if let Some(path) = path {
                item(&mut out, key.as_bytes());
                escape_into(&mut out, name(path).as_os_str().as_bytes());
            }
        }
        for (key, value) in self.settings() {
            item(&mut out, key.as_bytes());
            if let Some(value) = value {
                out.push(b'=');
                out.extend_from_slice(value.as_bytes());
            }
        }
        OsString::from_vec(out)
    }

    /// The format options that were given, in the kernel's words.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let mut out: Vec<Setting> = Vec::new();
        let mut valued = |key, word: Option<&'static str>| {
            if word.is_some() {
                out.push((key, word));
            }
        };
        valued("redirect_dir", self.redirect_dir.map(Word::word));
        valued("metacopy", self.metacopy.map(Word::word));
        valued("index", self.index.map(Word::word));
        valued("nfs_export", self.nfs_export.map(Word::word));
        valued("xino", self.xino.map(Word::word));
        valued("uuid", self.uuid.map(Word::word));
        valued("verity", self.verity.map(Word::word));
        match self.fsync {
            Fsync::Auto => {}
            Fsync::Strict => out.push(("fsync", Some(Fsync::Strict.word()))),
            // Kernels before `fsync=` know it by this name, later ones by both.
            Fsync::Volatile => out.push(("volatile", None)),
        }
        let flags = [
            (self.userxattr, "userxattr"),
            (self.default_permissions, "default_permissions"),
        ];
        out.extend(
            flags
                .iter()
                .filter(|flag| flag.0)
                .map(|flag| (flag.1, None)),
        );
        out.extend(self.credentials.map(|whose| (whose.word(), None)));
        out
    }
}

/// `path` with a backslash before every byte that separates, as `upperdir` and `workdir` want it.
pub(crate) fn escaped(path: &Path) -> OsString {
    let mut out = Vec::new();
    escape_into(&mut out, path.as_os_str().as_bytes());
    OsString::from_vec(out)
}

fn item(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b',');
    out.extend_from_slice(bytes);
}
