//! Which files of a directory a `!Copy` or `!Depends` step means.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use regex::bytes::Regex;

use crate::vagga::yaml::{Fields, Node, Pos};
use crate::{Error, Result};

/// The settings of a step that choose files.
#[derive(Debug, Clone)]
pub(super) enum Filter {
    /// Everything that `include` matches, if it is there, and `ignore` doesn't.
    Regexes {
        ignore: Ignore,
        include: Option<Regex>,
    },
    /// The last rule that names a path decides, else the last one that names a directory above it;
    /// without any it is left out. A directory that is left out isn't looked into.
    Rules(Vec<Rule>),
}

/// What is left out.
#[derive(Debug, Clone)]
pub(super) enum Ignore {
    /// Version control, vagga's own directory, and editors' backups.
    Usual,
    Matching(Regex),
}

/// A line of `rules`.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    includes: bool,
    /// Names directories only.
    directory: bool,
    /// What it names itself; `None` for `/`, which only stands for what is in it.
    exact: Option<Regex>,
    /// Everything in what it names.
    beneath: Regex,
    /// The directories on the way to what it includes.
    way: Vec<Regex>,
}

/// How a rule applies to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    Exactly,
    OnTheWay,
    FromAbove,
}

/// What becomes of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Taken,
    /// A directory that counts only for what is in it.
    Entered,
    Left,
}

/// What `rules` begin with unless told not to.
const USUAL_RULES: [&str; 9] = [
    "!.git/", "!.hg/", "!.svn/", "!.vagga/", "!*.bak", "!*.orig", "!*~", "!#*#", "!.#*",
];

impl Filter {
    /// Takes its settings out of a step's.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self> {
        let ignore = fields.take("ignore-regex");
        let include = fields.take("include-regex");
        let rules = fields.take("rules");
        let no_usual = fields.take("no-default-rules");
        if let Some(rules) = rules.filter(|rules| rules.list().is_ok_and(|list| !list.is_empty())) {
            if let Some(regex) = ignore.or(include) {
                return Err(regex.pos.error("either rules or regular expressions"));
            }
            let usual = !no_usual.map_or(Ok(false), Node::boolean)?;
            let usual: &[&str] = if usual { &USUAL_RULES } else { &[] };
            let mut all = usual
                .iter()
                .map(|rule| Rule::parse(rule, &rules.pos))
                .collect::<Result<Vec<_>>>()?;
            for rule in rules.list()? {
                all.push(Rule::parse(rule.text()?, &rule.pos)?);
            }
            return Ok(Filter::Rules(all));
        }
        Ok(Filter::Regexes {
            ignore: ignore
                .map(regex)
                .transpose()?
                .map_or(Ignore::Usual, Ignore::Matching),
            include: include.map(regex).transpose()?,
        })
    }

    /// What is meant in `dir`, as paths relative to it, sorted; parents of what is meant are
    /// meant, too. Symbolic links aren't followed.
    pub(super) fn walk(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.walk_entering(dir, |_| {})
    }

    /// As [`Filter::walk`]; `enter` is told each directory that is listed.
    pub(super) fn walk_entering(
        &self,
        dir: &Path,
        mut enter: impl FnMut(&Path),
    ) -> Result<Vec<PathBuf>> {
        let mut found = std::collections::BTreeSet::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(below) = todo.pop() {
            let here = dir.join(&below);
            enter(&here);
            let failed = |error: std::io::Error| {
                Error::usage("listing the files of a step")
                    .at(&here)
                    .because(error.to_string())
            };
            for entry in fs::read_dir(&here).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = below.join(entry.file_name());
                let is_dir = entry.file_type().map_err(failed)?.is_dir();
                let fate = self.fate(&path, is_dir);
                if fate == Fate::Taken {
                    for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
                        found.insert(part.to_path_buf());
                    }
                }
                if is_dir && fate != Fate::Left {
                    todo.push(path);
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    fn fate(&self, path: &Path, is_dir: bool) -> Fate {
        let bytes = path.as_os_str().as_bytes();
        match self {
            Filter::Regexes { ignore, .. } if ignore.has(path) => Fate::Left,
            Filter::Regexes { include, .. } => {
                if include.as_ref().is_none_or(|regex| regex.is_match(bytes)) {
                    Fate::Taken
                } else {
                    Fate::Entered
                }
            }
            Filter::Rules(rules) => fate_by(rules, bytes, is_dir),
        }
    }
}

fn fate_by(rules: &[Rule], path: &[u8], is_dir: bool) -> Fate {
    let applying = || {
        rules
            .iter()
            .rev()
            .filter_map(|rule| Some((rule, rule.applies(path, is_dir)?)))
    };
    let by_name = applying().find(|(_, how)| *how != Applies::FromAbove);
    match by_name.or_else(|| applying().next()) {
        None => Fate::Left,
        Some((rule, _)) if !rule.includes => Fate::Left,
        Some((_, Applies::OnTheWay)) => Fate::Entered,
        Some((rule, how)) => {
            // A directory comes with what is in it, unless it was asked for itself.
            if is_dir && !(rule.directory && how == Applies::Exactly) {
                Fate::Entered
            } else {
                Fate::Taken
            }
        }
    }
}

impl Ignore {
    fn has(&self, path: &Path) -> bool {
        let bytes = path.as_os_str().as_bytes();
        match self {
            Ignore::Matching(regex) => regex.is_match(bytes),
            Ignore::Usual => {
                let controlled = path.iter().any(|part| {
                    [".git", ".hg", ".svn", ".vagga"]
                        .iter()
                        .any(|name| part == *name)
                });
                let backup = [&b"~"[..], b".bak", b".orig"]
                    .iter()
                    .any(|end| bytes.ends_with(end));
                controlled
                    || backup
                    || (bytes.len() > 1 && bytes[0] == b'#' && bytes.ends_with(b"#"))
            }
        }
    }
}

impl Rule {
    fn parse(text: &str, pos: &Pos) -> Result<Self> {
        let (includes, rest) = match text.strip_prefix('!') {
            Some(rest) => (false, rest),
            None => (true, text),
        };
        let anchored = rest.starts_with('/');
        if includes && !anchored {
            return Err(pos.error(format!("`{text}`: a rule that includes begins with `/`")));
        }
        let directory = rest.ends_with('/');
        let body = rest.trim_matches('/');
        let start = if anchored { "^" } else { "(^|/)" };
        let regex = |middle: &str, end: &str| {
            Regex::new(&format!("(?s-u){start}{middle}{end}"))
                .map_err(|error| pos.error(last_line(&error)))
        };
        if body.is_empty() {
            return Ok(Self {
                includes,
                directory,
                exact: None,
                beneath: regex("", "")?,
                way: Vec::new(),
            });
        }
        let way = body
            .match_indices('/')
            .filter(|_| includes)
            .map(|(at, _)| regex(&glob(&body[..at]), "$"))
            .collect::<Result<_>>()?;
        Ok(Self {
            includes,
            directory,
            exact: Some(regex(&glob(body), "$")?),
            beneath: regex(&glob(body), "/")?,
            way,
        })
    }

    fn applies(&self, path: &[u8], is_dir: bool) -> Option<Applies> {
        let named = self
            .exact
            .as_ref()
            .is_some_and(|exact| exact.is_match(path));
        if named && (is_dir || !self.directory) {
            Some(Applies::Exactly)
        } else if is_dir && self.way.iter().any(|way| way.is_match(path)) {
            Some(Applies::OnTheWay)
        } else if self.beneath.is_match(path) {
            Some(Applies::FromAbove)
        } else {
            None
        }
    }
}

/// A shell pattern as a regular expression.
fn glob(pattern: &str) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("**/") {
            out += "(.*/)?";
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix("**") {
            out += ".*";
            rest = after;
            continue;
        }
        if first == '['
            && let Some(end) = rest[1..].find(']')
        {
            let set = &rest[1..=end];
            let set = set
                .strip_prefix('!')
                .map_or(set.to_owned(), |set| format!("^{set}"));
            out += &format!("[{}]", set.replace('\\', "\\\\"));
            rest = &rest[end + 2..];
            continue;
        }
        match first {
            '*' => out += "[^/]*",
            '?' => out += "[^/]",
            other => out += &regex::escape(other.encode_utf8(&mut [0; 4])),
        }
        rest = &rest[first.len_utf8()..];
    }
    out
}

fn regex(node: &Node) -> Result<Regex> {
    Regex::new(node.text()?).map_err(|error| node.pos.error(last_line(&error)))
}

/// The crate's own message draws a picture of several lines.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vagga::yaml::parse_for_test;

    fn chosen(settings: &str) -> Vec<String> {
        let top = tempfile::tempdir().unwrap();
        for file in [
            "a.py",
            "a.pyc",
            "b~",
            ".git/x",
            "dir/c.py",
            "dir/d.txt",
            "dir/sub/e.py",
        ] {
            let path = top.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fs::create_dir(top.path().join("empty")).unwrap();
        let node = parse_for_test(settings).unwrap();
        let filter = Filter::take(&mut Fields::of(&node, "it").unwrap()).unwrap();
        let paths = filter.walk(top.path()).unwrap();
        paths
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn regular_expressions() {
        assert_eq!(
            chosen("{}"),
            [
                "a.py",
                "a.pyc",
                "dir",
                "dir/c.py",
                "dir/d.txt",
                "dir/sub",
                "dir/sub/e.py",
                "empty"
            ]
        );
        assert_eq!(
            chosen("{include-regex: '[.]py$'}"),
            ["a.py", "dir", "dir/c.py", "dir/sub", "dir/sub/e.py"]
        );
        assert_eq!(
            chosen("{ignore-regex: '^(dir|[.]git|empty)$'}"),
            ["a.py", "a.pyc", "b~"]
        );
    }

    #[test]
    fn rules() {
        let all = [
            "a.py",
            "a.pyc",
            "dir",
            "dir/c.py",
            "dir/d.txt",
            "dir/sub",
            "dir/sub/e.py",
        ];
        assert_eq!(chosen("{rules: [/]}"), all);
        assert_eq!(chosen("{rules: ['!dir']}"), [""; 0]);
        assert_eq!(chosen("{rules: ['!dir/', /]}"), ["a.py", "a.pyc"]);
        assert_eq!(
            chosen("{rules: ['!dir', '/dir/*.py']}"),
            ["dir", "dir/c.py"]
        );
        assert_eq!(chosen("{rules: [/dir, '!*.py']}"), ["dir", "dir/d.txt"]);
        assert_eq!(
            chosen("{rules: ['/**/*.py']}"),
            ["a.py", "dir", "dir/c.py", "dir/sub", "dir/sub/e.py"]
        );
        assert_eq!(chosen("{rules: ['/empty/']}"), ["empty"]);
        assert_eq!(chosen("{rules: ['/empty']}"), [""; 0]);
        let every = chosen("{rules: [/], no-default-rules: true}");
        assert!(every.contains(&"b~".to_owned()) && every.contains(&".git/x".to_owned()));
    }
}
