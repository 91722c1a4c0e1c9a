//! Reading the option string.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::escape::{split, unescape};
use super::foreign::is_foreign;
use super::nearest::nearest;
use super::words::{FLAGS, Word, is_for_fstab};
use super::{Fsync, Label, Options};
use crate::{Error, Result};

impl Options {
    /// Reads an option string as `-o` takes it. Later options win over earlier ones, as with the
    /// kernel; an unknown option is an error that names it.
    ///
    /// ```
    /// use std::ffi::OsStr;
    /// use overfall::options::Options;
    ///
    /// let options = Options::parse(OsStr::new(r"lowerdir=/a\:b:/c,upperdir=/u,workdir=/w"))?;
    /// assert_eq!(options.lower[0], std::path::Path::new("/a:b"));
    /// # Ok::<(), overfall::Error>(())
    /// ```
    pub fn parse(string: &OsStr) -> Result<Self> {
        Self::parse_all([string])
    }

    /// Reads several option strings as if they were one: `-o A -o B`.
    pub fn parse_all<'a>(strings: impl IntoIterator<Item = &'a OsStr>) -> Result<Self> {
        let mut reader = Reader::default();
        for string in strings {
            for item in split(string.as_bytes(), b',') {
                let after_directory = reader.after_directory;
                if reader.item(item)? == Taken::Unknown {
                    return Err(unknown(item, after_directory));
                }
            }
        }
        reader.options.check()?;
        Ok(reader.options)
    }
}

/// How the lower layers have been given so far.
#[derive(Debug, Default, PartialEq, Eq)]
enum LowerForm {
    #[default]
    None,
    List,
    OneByOne,
}

/// Whether an item is one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Known,
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) options: Options,
    lower_form: LowerForm,
    /// The item before this one was a directory, so this one may be the rest of its name.
    pub(super) after_directory: bool,
}

impl Reader {
    pub(super) fn item(&mut self, item: &[u8]) -> Result<Taken> {
        let (name, value) = halves(item);
        self.after_directory = false;
        let Ok(text) = std::str::from_utf8(name) else {
            return Ok(Taken::Unknown);
        };
        match text {
            "" if value.is_none() => {}
            "lowerdir" => self.lowers(needed(name, value)?)?,
            "lowerdir+" | "datadir+" => self.one_lower(name, needed(name, value)?)?,
            "upperdir" => self.options.upper = Some(directory(name, needed(name, value)?)?),
            "workdir" => self.options.work = Some(directory(name, needed(name, value)?)?),
            "redirect_dir" => self.options.redirect_dir = Some(word(name, value)?),
            "metacopy" => self.options.metacopy = Some(word(name, value)?),
            "index" => self.options.index = Some(word(name, value)?),
            "nfs_export" => self.options.nfs_export = Some(word(name, value)?),
            "xino" => self.options.xino = Some(word(name, value)?),
            "uuid" => self.options.uuid = Some(word(name, value)?),
            "verity" => self.options.verity = Some(word(name, value)?),
            "fsync" => self.options.fsync = word(name, value)?,
            "fsname" => self.options.fsname = Some(name_of_source(needed(name, value)?)),
            _ if is_for_fstab(name) => {}
            _ if Label::NAMES.contains(&text) => self.label(name, value)?,
            _ => {
                let Options {
                    shown,
                    serving,
                    tuning,
                    ..
                } = &mut self.options;
                let given = value.unwrap_or_default();
                let taken = shown.take(text, value);
                let taken = taken.or_else(|| serving.take(text, given));
                match taken.or_else(|| tuning.take(text, given)) {
                    Some(taken) => taken.map_err(|wanted| wrong(name, value, &wanted))?,
                    None => return self.flag(name, value),
                }
            }
        }
        self.after_directory = matches!(
            text,
            "lowerdir" | "lowerdir+" | "datadir+" | "upperdir" | "workdir"
        );
        Ok(Taken::Known)
    }

    /// `context=LABEL`. Later ones win.
    fn label(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        let value = needed(name, value)?;
        if value.starts_with(b"\"") {
            return Err(refused(format!(
                "`{}` begins with a quote; only mount helpers take them, in pairs; a `,` is written `\\,`",
                show(name)
            )));
        }
        let plain = unescape(value).and_then(|plain| String::from_utf8(plain).ok());
        let plain = plain.filter(|plain| !plain.contains(['"', '\0']));
        let value = plain.ok_or_else(|| wrong(name, Some(value), "a label"))?;
        let labels = &mut self.options.labels;
        labels.retain(|label| label.name.as_bytes() != name);
        let names = Label::NAMES.iter().filter(|known| known.as_bytes() == name);
        labels.extend(names.map(|name| Label {
            name,
            value: value.clone(),
        }));
        Ok(())
    }

    /// The options without a value.
    fn flag(&mut self, name: &[u8], value: Option<&[u8]>) -> Result<Taken> {
        match name {
            b"userxattr" => self.options.userxattr = true,
            b"volatile" => self.options.fsync = Fsync::Volatile,
            b"default_permissions" => self.options.default_permissions = true,
            b"debug" => self.options.serving.debug = true,
            b"allow_other" => self.options.allow_other = true,
            b"override_creds" | b"nooverride_creds" => {
                self.options.credentials = Word::from_word(name);
            }
            _ => {
                let Some(flag) = FLAGS.iter().find(|flag| flag.name.as_bytes() == name) else {
                    return Ok(Taken::Unknown);
                };
                self.options.flags.remove(flag.clear);
                self.options.flags.insert(flag.set);
            }
        }
        match value {
            None => Ok(Taken::Known),
            Some(_) => Err(refused(format!("`{}` takes no value", show(name)))),
        }
    }

    /// `lowerdir=A:B::D`. Replaces an earlier list.
    fn lowers(&mut self, list: &[u8]) -> Result<()> {
        if self.lower_form == LowerForm::OneByOne {
            return Err(refused("`lowerdir` cannot follow `lowerdir+`"));
        }
        self.lower_form = LowerForm::List;
        self.options.lower.clear();
        self.options.data_only.clear();
        let mut data_only = false;
        let mut pieces = split(list, b':').into_iter();
        let mut first = true;
        while let Some(mut piece) = pieces.next() {
            // An empty piece between two colons is what `::` leaves.
            if piece.is_empty() && !first {
                data_only = true;
                piece = pieces.next().unwrap_or_default();
            } else if data_only {
                return Err(refused(format!(
                    "`lowerdir={}`: `:` cannot follow `::`; data-only layers come last",
                    show(list)
                )));
            }
            if piece.is_empty() {
                return Err(refused(format!(
                    "`lowerdir={}`: a directory is missing before, between or behind the colons; \
                     a `:` in a name is written `\\:`",
                    show(list)
                )));
            }
            let path = directory(b"lowerdir", piece)?;
            if data_only {
                self.options.data_only.push(path);
            } else {
                self.options.lower.push(path);
            }
            first = false;
        }
        Ok(())
    }

    /// `lowerdir+=A` and `datadir+=D`: one layer, taken as it is except that `\,` is a comma.
    fn one_lower(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        if self.lower_form == LowerForm::List {
            return Err(refused(format!(
                "`{}` cannot follow `lowerdir`",
                show(name)
            )));
        }
        self.lower_form = LowerForm::OneByOne;
        let mut plain = Vec::with_capacity(value.len());
        for (at, &byte) in value.iter().enumerate() {
            if byte != b'\\' || value.get(at + 1) != Some(&b',') {
                plain.push(byte);
            }
        }
        let path = PathBuf::from(OsString::from_vec(plain));
        if name == b"datadir+" {
            self.options.data_only.push(path);
        } else if self.options.data_only.is_empty() {
            self.options.lower.push(path);
        } else {
            return Err(refused("`lowerdir+` cannot follow `datadir+`"));
        }
        Ok(())
    }
}

/// What stands before and behind the first `=`.
pub(super) fn halves(item: &[u8]) -> (&[u8], Option<&[u8]>) {
    match item.iter().position(|&byte| byte == b'=') {
        Some(at) => (&item[..at], Some(&item[at + 1..])),
        None => (item, None),
    }
}

/// A `\,` is a comma; all else is as it is written.
fn name_of_source(value: &[u8]) -> OsString {
    OsString::from_vec(unescape(value).unwrap_or_else(|| value.to_vec()))
}

pub(super) fn refused(why: impl Into<String>) -> Error {
    Error::usage("reading the options").because(why)
}

pub(super) fn show(bytes: &[u8]) -> String {
    OsStr::from_bytes(bytes).display().to_string()
}

pub(super) fn unknown(item: &[u8], after_directory: bool) -> Error {
    let error = refused(format!("unknown option `{}`", show(halves(item).0)));
    match nearest(halves(item).0) {
        _ if is_foreign(halves(item).0) => error.remedy(
            "mount helpers take it, by the names `fuse-overlayfs` and `overfall-mount`; here leave \
             it out",
        ),
        Some(name) => error.remedy(format!("perhaps `{name}` is meant")),
        None if after_directory => error.remedy("a `,` in a directory's name is written `\\,`"),
        None => error,
    }
}

fn needed<'a>(name: &[u8], value: Option<&'a [u8]>) -> Result<&'a [u8]> {
    match value {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(refused(format!("`{}` needs a value", show(name)))),
    }
}

fn directory(name: &[u8], escaped: &[u8]) -> Result<PathBuf> {
    match unescape(escaped) {
        Some(plain) => Ok(PathBuf::from(OsString::from_vec(plain))),
        None => Err(refused(format!(
            "`{}={}` ends in a `\\` that escapes nothing; a `\\` in a name is written `\\\\`",
            show(name),
            show(escaped)
        ))),
    }
}

fn word<T: Word>(name: &[u8], value: Option<&[u8]>) -> Result<T> {
    let value = needed(name, value)?;
    T::from_word(value).ok_or_else(|| {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        wrong(name, Some(value), &format!("one of {}", words.join(", ")))
    })
}

/// The error for a value that isn't what is `wanted`.
pub(super) fn wrong(name: &[u8], value: Option<&[u8]>, wanted: &str) -> Error {
    match needed(name, value) {
        Ok(value) => refused(format!(
            "`{}={}`: the value must be {wanted}",
            show(name),
            show(value)
        )),
        Err(missing) => missing,
    }
}
