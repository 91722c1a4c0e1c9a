//! Reading option strings that were written for other programs: by mount(8) and fstab for its
//! helpers, by whoever calls fuse-overlayfs.
//!
//! All of our own options mean what they mean elsewhere. Added are the words of FUSE's own library,
//! which have no meaning for our server, quotes around a value with commas in it, and the forms in
//! which fuse-overlayfs takes a few options of the same name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::escape::split;
use super::nearest::nearest;
use super::parse::{Reader, Taken, halves, unknown, wrong};
use super::{Fsync, Options, Switch, Threads, Timeout};
use crate::{Error, Result};

/// What a foreign option string holds.
#[derive(Debug, Default)]
pub struct Foreign {
    /// What we know of it.
    pub options: Options,
    /// What we don't know, as it was written.
    pub unknown: Vec<OsString>,
    /// `remount`: a mount that is there gets other flags.
    pub remount: bool,
}

impl Foreign {
    /// Reads option strings as if they were one. Wrong values are errors; unknown options are
    /// collected. Whether there are layers is for the caller to [`check`](Options::check).
    pub fn read<'a>(strings: impl IntoIterator<Item = &'a OsStr>) -> Result<Self> {
        let mut reader = Reader::default();
        let mut unknown = Vec::new();
        let mut remount = false;
        for string in strings {
            for item in items(string.as_bytes()) {
                let after_directory = reader.after_directory;
                if item == b"remount" {
                    remount = true;
                } else if !peer_form(&mut reader.options, &item)?
                    && !is_for_fuse(halves(&item).0)
                    && reader.item(&item)? == Taken::Unknown
                {
                    unknown.push(certainly_an_option(item, after_directory)?);
                }
            }
        }
        Ok(Self {
            options: reader.options,
            unknown,
            remount,
        })
    }

    /// The error for the first unknown option.
    pub fn refuse_unknown(&self) -> Result<()> {
        match self.unknown.first() {
            Some(item) => Err(unknown(item.as_bytes(), false)),
            None => Ok(()),
        }
    }
}

/// What looks like the rest of a directory's name isn't passed over, nor is what looks like one of
/// ours: the mount would be another than was wanted.
fn certainly_an_option(item: Vec<u8>, after_directory: bool) -> Result<OsString, Error> {
    let name = halves(&item).0;
    if after_directory && name.contains(&b'/') || nearest(name).is_some() {
        return Err(unknown(&item, after_directory));
    }
    Ok(OsString::from_vec(item))
}

/// Cuts at commas, except in quotes around a value, which go.
fn items(string: &[u8]) -> Vec<Vec<u8>> {
    let mut items: Vec<Vec<u8>> = Vec::new();
    let mut open: Option<Vec<u8>> = None;
    for piece in split(string, b',') {
        let mut item = match open.take() {
            Some(mut begun) => {
                begun.push(b',');
                begun.extend_from_slice(piece);
                begun
            }
            None => piece.to_vec(),
        };
        let Some(start) = item.windows(2).position(|pair| pair == b"=\"") else {
            items.push(item);
            continue;
        };
        if item.len() > start + 2 && item.ends_with(b"\"") {
            item.pop();
            item.remove(start + 1);
            protect_commas(&mut item, start + 1);
            items.push(item);
        } else {
            open = Some(item);
        }
    }
    // A quote that doesn't end is a part of the value.
    items.extend(open);
    items
}

/// The commas that the quotes protected.
fn protect_commas(item: &mut Vec<u8>, from: usize) {
    let value = item.split_off(from);
    let mut before = 0;
    for byte in value {
        if byte == b',' && before != b'\\' {
            item.push(b'\\');
        }
        item.push(byte);
        before = byte;
    }
}

/// fuse-overlayfs's forms of options that we have with other values.
fn peer_form(options: &mut Options, item: &[u8]) -> Result<bool> {
    let (name, value) = halves(item);
    let switch = |value: &[u8]| match value {
        b"0" => Ok(Switch::Off),
        b"1" => Ok(Switch::On),
        _ => Err(wrong(name, Some(value), "0 or 1")),
    };
    match (name, value) {
        (b"fsync", Some(b"0")) => options.fsync = Fsync::Volatile,
        (b"fsync", Some(b"1")) => options.fsync = Fsync::Auto,
        (b"threaded", None) | (b"threaded", Some(b"-1")) => {}
        (b"threaded", Some(value)) => {
            options.tuning.threads = match switch(value)? {
                Switch::On => None,
                Switch::Off => Threads::new(1),
            }
        }
        (b"passthrough", None) => options.tuning.passthrough = Some(Switch::On),
        (b"timeout", Some(value)) if value != b"never" => {
            options.tuning.timeout = seconds(value)
                .ok_or_else(|| wrong(name, Some(value), "a number of seconds, or never"))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Whole seconds, so that nothing is remembered for longer than was asked.
fn seconds(value: &[u8]) -> Option<Timeout> {
    let text = std::str::from_utf8(value).ok()?;
    let number: f64 = text.parse().ok()?;
    if number.is_nan() || number < 0.0 {
        return None;
    }
    // More than a century, fuse-overlayfs's default among it, is never.
    Some(if number >= 1e9 {
        Timeout::Never
    } else {
        Timeout::Seconds(number as u32)
    })
}

/// Whether this is one of the names that only this reader takes.
pub(super) fn is_foreign(name: &[u8]) -> bool {
    name == b"threaded" || is_for_fuse(name)
}

/// The words of libfuse, and of the kernel's FUSE as the mount table shows them: how a server of
/// theirs shares the work with the kernel. Ours has its own ways.
fn is_for_fuse(name: &[u8]) -> bool {
    const WORDS: &[&str] = &[
        "ac_attr_timeout",
        "async_read",
        "atomic_o_trunc",
        "attr_timeout",
        "auto_cache",
        "auto_unmount",
        "big_writes",
        "blksize",
        "blkdev",
        "clone_fd",
        "congestion_threshold",
        "direct_io",
        "entry_timeout",
        "group_id",
        "hard_remove",
        "ino32",
        "ino32_t",
        "intr",
        "intr_signal",
        "iversion",
        "kernel_cache",
        "large_read",
        "lazytime",
        "mand",
        "max_background",
        "max_idle_threads",
        "max_read",
        "max_readahead",
        "max_threads",
        "max_write",
        "negative_timeout",
        "no_splice_move",
        "no_splice_read",
        "no_splice_write",
        "noforget",
        "noiversion",
        "nolazytime",
        "nomand",
        "nonempty",
        "readdir_ino",
        "remember",
        "rootmode",
        "splice_move",
        "splice_read",
        "splice_write",
        "subtype",
        "sync_read",
        "use_ino",
        "user_id",
    ];
    WORDS.iter().any(|word| word.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(string: &str) -> Foreign {
        Foreign::read([OsStr::new(string)]).unwrap()
    }

    #[test]
    fn quotes_keep_a_value_together() {
        let read = read(r#"lowerdir="/a,b:/c",noexec,fsname="x,y""#);
        assert_eq!(read.options.lower, [Path::new("/a,b"), Path::new("/c")]);
        assert_eq!(read.options.fsname.as_deref(), Some(OsStr::new("x,y")));
        assert!(read.unknown.is_empty());
    }

    #[test]
    fn labels_have_commas() {
        let read = read(r#"lowerdir=/a,context="u:r:t:s0:c1,c2",nodev"#);
        let [label] = &read.options.labels[..] else {
            panic!("{:?}", read.options.labels);
        };
        assert_eq!(
            (label.name, label.value.as_str()),
            ("context", "u:r:t:s0:c1,c2")
        );
        assert!(read.unknown.is_empty());
    }

    #[test]
    fn a_quote_that_does_not_end_is_part_of_the_name() {
        let read = read(r#"lowerdir="/a"#);
        assert_eq!(read.options.lower, [Path::new("\"/a")]);
    }

    #[test]
    fn unknown_options_are_collected_and_pieces_of_names_are_not() {
        let found = read("lowerdir=/a,foo,bar=1");
        assert_eq!(found.unknown, ["foo", "bar=1"]);
        assert!(found.refuse_unknown().is_err());
        let error = Foreign::read([OsStr::new("lowerdir=/a,b/c")]).unwrap_err();
        assert!(error.to_string().contains(r"written `\,`"), "{error}");
    }

    #[test]
    fn the_peers_forms() {
        let options = read("lowerdir=/a,timeout=1.9,threaded=0,fsync=0,passthrough").options;
        assert_eq!(options.tuning.timeout, Timeout::Seconds(1));
        assert_eq!(options.tuning.threads, Threads::new(1));
        assert_eq!(options.tuning.passthrough, Some(Switch::On));
        assert_eq!(options.fsync, Fsync::Volatile);
        let options = read("lowerdir=/a,timeout=1000000000,threaded=1,fsync=1").options;
        assert_eq!(options, read("lowerdir=/a").options);
        for wrong in ["timeout=-1", "timeout=x", "threaded=2", "fsync=2"] {
            assert!(Foreign::read([OsStr::new(wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn debug_is_ours() {
        assert!(read("lowerdir=/a,debug,log=/l").options.serving.debug);
    }

    #[test]
    fn words_for_mount_and_for_libfuse_are_passed_over() {
        let strings = "rw,user,users,user=me,_netdev,nofail,noauto,comment=hi,x-systemd.automount,\
                       auto_unmount,max_idle_threads=10,big_writes,subtype=x,attr_timeout=1.0";
        let read = read(strings);
        assert!(read.unknown.is_empty(), "{:?}", read.unknown);
        assert_eq!(read.options, Options::default());
    }
}
