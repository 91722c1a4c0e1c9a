//! What is written down about a layer, beside it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::summary::Summary;
use super::{Digest, Layer, Stack};

/// The manifest's file, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Text {
    digest: String,
    /// The layer below, or what the stack begins with.
    parent: String,
    /// Present where the layer is a stack's first: the directories below, topmost first.
    base: Option<Vec<String>>,
    name: String,
    files: u64,
    bytes: u64,
    summary: String,
    /// Milliseconds since 1970.
    made: u64,
}

/// What is known about a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    pub(super) parent: Digest,
    pub(super) base: Option<Vec<PathBuf>>,
    pub(super) name: String,
    pub(super) summary: Summary,
    pub(super) made: SystemTime,
}

/// In a layer's directory: what the step's overlay had in its upper one.
pub(super) const DATA: &str = "d";
const MANIFEST: &str = "manifest";
/// Its time is that of the last hit.
const HIT: &str = "hit";

impl Manifest {
    pub(super) fn new(stack: &Stack, digest: Digest, name: &str, summary: Summary) -> Self {
        Self {
            digest,
            parent: stack.digest(),
            base: stack.layers.is_empty().then(|| stack.base.clone()),
            name: name.to_owned(),
            summary,
            made: SystemTime::now(),
        }
    }

    /// Reads that of a layer's directory; `None` where it is missing, truncated or not one.
    pub(super) fn read(layer: &Path) -> Option<Self> {
        let text: Text = serde_json::from_slice(&fs::read(layer.join(MANIFEST)).ok()?).ok()?;
        let base = match text.base {
            None => None,
            Some(paths) => Some(
                paths
                    .iter()
                    .map(|path| plain(path))
                    .collect::<Option<_>>()?,
            ),
        };
        Some(Self {
            digest: Digest::parse(&text.digest)?,
            parent: Digest::parse(&text.parent)?,
            base,
            name: text.name,
            summary: Summary {
                files: text.files,
                bytes: text.bytes,
                digest: Digest::parse(&text.summary)?,
            },
            made: UNIX_EPOCH + Duration::from_millis(text.made),
        })
    }

    /// Writes it into a layer's directory, through to the disk.
    pub(super) fn write(&self, layer: &Path) -> std::io::Result<()> {
        let since = self.made.duration_since(UNIX_EPOCH).unwrap_or_default();
        let base = self.base.as_ref();
        let text = Text {
            digest: self.digest.to_string(),
            parent: self.parent.to_string(),
            base: base.map(|paths| paths.iter().map(|path| escaped(path)).collect()),
            name: self.name.clone(),
            files: self.summary.files,
            bytes: self.summary.bytes,
            summary: self.summary.digest.to_string(),
            made: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        };
        let mut bytes = serde_json::to_vec_pretty(&text)?;
        bytes.push(b'\n');
        let mut file = File::create_new(layer.join(MANIFEST))?;
        file.write_all(&bytes)?;
        file.sync_all()
    }

    /// For a list.
    pub(super) fn layer(self, directory: &Path) -> Layer {
        let hit = fs::metadata(directory.join(HIT)).and_then(|meta| meta.modified());
        Layer {
            digest: self.digest,
            parent: self.parent,
            name: self.name,
            files: self.summary.files,
            bytes: self.summary.bytes,
            made: self.made,
            hit: hit.ok(),
        }
    }
}

/// Writes down that the layer was taken. Nothing depends on it but how old it looks.
pub(super) fn mark_hit(layer: &Path) {
    let marked =
        File::create(layer.join(HIT)).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = marked {
        log::info!("{}: {error}", layer.display());
    }
}

/// A path as text: `%` and what isn't plain ASCII as `%` and two digits.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' | 0..=31 | 127..=255 => text.push_str(&format!("%{byte:02x}")),
            _ => text.push(char::from(byte)),
        }
    }
    text
}

fn plain(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        rest = more;
        if first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = rest.get(2..)?;
        } else {
            bytes.push(first);
        }
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

/// The names of layers' directories.
pub(super) fn is_name(name: &OsStr) -> bool {
    name.len() == 24 && name.as_bytes().iter().all(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::Outcome;

    #[test]
    fn it_is_read_as_it_was_written() {
        let scratch = tempfile::tempdir().unwrap();
        let odd = PathBuf::from(OsStr::from_bytes(b"/odd \xff%\n name"));
        let base = Stack::on([odd, "/plain".into()], Digest::of(b"base"));
        let first = Digest::of(b"first");
        let summary = Summary {
            files: 3,
            bytes: 5,
            digest: Digest::of(b"s"),
        };
        for (stack, name) in [
            (base.clone(), "first\n\u{1b}"),
            (base.with(first, Outcome::Built), "second"),
        ] {
            let layer = scratch.path().join(Digest::of(name.as_bytes()).name());
            fs::create_dir(&layer).unwrap();
            let mut manifest = Manifest::new(&stack, Digest::of(name.as_bytes()), name, summary);
            manifest.write(&layer).unwrap();
            let read = Manifest::read(&layer).unwrap();
            assert!(manifest.made.duration_since(read.made).unwrap() < Duration::from_millis(2));
            manifest.made = read.made;
            assert_eq!(read, manifest);
            let whole = fs::read(layer.join(MANIFEST)).unwrap();
            for length in 0..whole.len() - 2 {
                fs::write(layer.join(MANIFEST), &whole[..length]).unwrap();
                assert_eq!(Manifest::read(&layer), None, "{length} bytes");
            }
        }
    }
}
