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
    /// The last rule that matches decides; without one a file is left out.
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
    /// Of directories and what is in them.
    directory: bool,
    pattern: Regex,
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
        let mut found = std::collections::BTreeSet::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(below) = todo.pop() {
            let here = dir.join(&below);
            let failed = |error: std::io::Error| {
                Error::usage("listing the files of a step")
                    .at(&here)
                    .because(error.to_string())
            };
            for entry in fs::read_dir(&here).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = below.join(entry.file_name());
                let is_dir = entry.file_type().map_err(failed)?.is_dir();
                if self.means(&path, is_dir) {
                    for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
                        found.insert(part.to_path_buf());
                    }
                }
                if is_dir && self.looks_into(&path) {
                    todo.push(path);
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    fn means(&self, path: &Path, is_dir: bool) -> bool {
        let bytes = path.as_os_str().as_bytes();
        match self {
            Filter::Regexes { ignore, include } => {
                !ignore.has(path) && include.as_ref().is_none_or(|regex| regex.is_match(bytes))
            }
            Filter::Rules(rules) => {
                let last = rules.iter().rev().find(|rule| rule.matches(path, is_dir));
                last.is_some_and(|rule| rule.includes && (!is_dir || rule.directory))
            }
        }
    }

    fn looks_into(&self, path: &Path) -> bool {
        match self {
            Filter::Regexes { ignore, .. } => !ignore.has(path),
            // A later rule may include what is in there.
            Filter::Rules(_) => true,
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
        // A slash in the middle anchors, too, as it does for git.
        let start = if anchored || body.contains('/') {
            "^"
        } else {
            "(^|/)"
        };
        let whole = if body.is_empty() {
            "(?s-u)".to_owned()
        } else {
            format!("(?s-u){start}{}(/|$)", glob(body))
        };
        let pattern = Regex::new(&whole).map_err(|error| pos.error(error.to_string()))?;
        Ok(Self {
            includes,
            directory,
            pattern,
        })
    }

    fn matches(&self, path: &Path, is_dir: bool) -> bool {
        let bytes = path.as_os_str().as_bytes();
        let Some(found) = self.pattern.find(bytes) else {
            return false;
        };
        // A rule for a directory doesn't mean a file of that name.
        !self.directory || is_dir || found.end() < bytes.len() || found.is_empty()
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
    Regex::new(node.text()?).map_err(|error| {
        // The crate's own message draws a picture of several lines.
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        node.pos
            .error(last.trim_start_matches("error: ").to_owned())
    })
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
        assert_eq!(chosen("{rules: [/]}").first().unwrap(), "a.py");
        assert!(chosen("{rules: [/]}").contains(&"empty".to_owned()));
        assert!(!chosen("{rules: [/]}").contains(&"b~".to_owned()));
        assert_eq!(chosen("{rules: ['!dir']}"), [""; 0]);
        assert_eq!(
            chosen("{rules: ['!dir', '/dir/*.py']}"),
            ["dir", "dir/c.py"]
        );
        assert_eq!(
            chosen("{rules: ['/**/*.py']}"),
            ["a.py", "dir", "dir/c.py", "dir/sub", "dir/sub/e.py"]
        );
        assert_eq!(chosen("{rules: ['/empty/']}"), ["empty"]);
        assert_eq!(chosen("{rules: ['/empty']}"), [""; 0]);
    }
}
