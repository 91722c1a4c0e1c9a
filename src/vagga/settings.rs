//! Vagga's settings: the user's own files, a variable, and the project's.
//!
//! What only vagga's other steps and commands need is known and passed over.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::yaml::{Fields, Node, load, load_text};
use crate::{Error, Result};

/// In the user's home, each stronger than the one before.
const OWN_FILES: [&str; 3] = [
    ".config/vagga/settings.yaml",
    ".vagga/settings.yaml",
    ".vagga.yaml",
];
/// In the project, stronger than the user's; a project may not set everything.
const PROJECT_FILES: [&str; 2] = [".vagga.settings.yaml", ".vagga/settings.yaml"];

/// Of no matter for what is done here.
const PASSED_OVER: [&str; 13] = [
    "ubuntu-mirror",
    "ubuntu-skip-locking",
    "alpine-mirror",
    "versioned-build-dir",
    "build-lock-wait",
    "run-symlinks-as-commands",
    "disable-auto-clean",
    "push-image-script",
    "auto-apply-sysctl",
    "index-all-images",
    "hard-link-identical-files",
    "hard-link-between-projects",
    // Vagga takes `cache-dir` for it in the user's own files.
    "shared-cache",
];
/// Those of them that a project may have.
const PASSED_OVER_IN_PROJECTS: &[&str] = PASSED_OVER.split_at(7).0;

/// Variables that say how to reach the network.
const PROXIES: [&str; 5] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
];

/// What is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// A directory with one for each project, in which containers are kept.
    pub(super) storage_dir: Option<PathBuf>,
    /// The directory's name comes from a variable, which only vagga looks at.
    pub(super) storage_from_variable: bool,
    cache_dir: Option<PathBuf>,
    shares_cache: bool,
    /// Directories of the machine, by the path below `/volumes` that containers know them by.
    volumes: BTreeMap<PathBuf, PathBuf>,
    /// Stronger than what the container says.
    pub(super) environ: BTreeMap<String, String>,
    propagated: Vec<String>,
    passes_proxies: bool,
    /// Whether containers are to be compared with what `vagga.yaml` says.
    pub(super) checks_versions: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            storage_dir: None,
            storage_from_variable: false,
            cache_dir: None,
            shares_cache: false,
            volumes: BTreeMap::new(),
            environ: BTreeMap::new(),
            propagated: Vec::new(),
            passes_proxies: true,
            checks_versions: true,
        }
    }
}

impl Settings {
    /// Those of this process's user for a project.
    pub(super) fn of_user(project: &Path) -> Result<Self> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let more = std::env::var_os("VAGGA_SETTINGS");
        Self::read(project, home.as_deref(), more.as_deref())
    }

    fn read(project: &Path, home: Option<&Path>, more: Option<&OsStr>) -> Result<Self> {
        let mut settings = Self::default();
        for file in OWN_FILES.iter().flat_map(|name| Some(home?.join(name))) {
            if file.exists() {
                settings.add_own(&load(&file)?, project, home)?;
            }
        }
        if let Some(text) = more {
            let name = Path::new("VAGGA_SETTINGS");
            let text = text.to_str().ok_or_else(|| {
                Error::usage("reading the settings")
                    .at(name)
                    .because("it is not UTF-8")
            })?;
            settings.add_own(&load_text(name, text)?, project, home)?;
        }
        for file in PROJECT_FILES.map(|name| project.join(name)) {
            if file.exists() {
                settings.add_project_s(&load(&file)?)?;
            }
        }
        Ok(settings)
    }

    /// The directory that caches of containers are in.
    pub(super) fn cache_in(&self, storage: &Path) -> Result<PathBuf> {
        match &self.cache_dir {
            Some(dir) if self.shares_cache && dir.is_dir() => Ok(dir.clone()),
            Some(dir) if self.shares_cache => Err(Error::usage("looking for the cache")
                .at(dir)
                .because("there is no such directory")
                .remedy("make it, or change the setting `cache-dir`")),
            _ => Ok(storage.join(".cache")),
        }
    }

    /// What `/volumes/BELOW` is on the machine.
    pub(super) fn volume(&self, below: &Path) -> Option<PathBuf> {
        self.volumes
            .iter()
            .find_map(|(name, dir)| Some(dir.join(below.strip_prefix(name).ok()?)))
    }

    /// Variables of the outside that say how to reach the network.
    pub(super) fn proxies<'o>(
        &self,
        outside: &'o [(OsString, OsString)],
    ) -> impl Iterator<Item = &'o (OsString, OsString)> {
        let passes = self.passes_proxies;
        outside
            .iter()
            .filter(move |(key, _)| passes && PROXIES.iter().any(|name| key == name))
    }

    /// Whether a variable of the outside is in containers, too.
    pub(super) fn propagates(&self, name: &OsStr) -> bool {
        self.propagated
            .iter()
            .any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
    }

    fn add_own(&mut self, node: &Node, project: &Path, home: Option<&Path>) -> Result<()> {
        let mut fields = Fields::of(node, "the settings")?;
        let site = fields.take("site-settings");
        self.add_fields(fields, home)?;
        for (key, value) in site.map_or(Ok(&[][..]), Node::map)? {
            if Path::new(key.text()?) == project {
                self.add_fields(Fields::of(value, "the settings of a project")?, home)?;
            }
        }
        Ok(())
    }

    fn add_fields(&mut self, mut fields: Fields<'_>, home: Option<&Path>) -> Result<()> {
        if let Some(dir) = fields.take("storage-dir") {
            self.storage_dir = Some(directory(dir, home)?);
        }
        if fields.take("storage-subdir-from-env-var").is_some() {
            self.storage_from_variable = true;
        }
        if let Some(dir) = fields.take("cache-dir") {
            self.cache_dir = Some(directory(dir, home)?);
            self.shares_cache = true;
        }
        for (name, dir) in fields
            .take("external-volumes")
            .map_or(Ok(&[][..]), Node::map)?
        {
            self.volumes.insert(name.below()?, dir.inside()?);
        }
        if let Some(patterns) = fields.take("propagate-environ") {
            self.propagated.extend(patterns.texts()?);
        }
        if let Some(flag) = fields.take("proxy-env-vars") {
            self.passes_proxies = flag.boolean()?;
        }
        self.add_common(&mut fields)?;
        for name in PASSED_OVER {
            fields.take(name);
        }
        fields.finish()
    }

    fn add_project_s(&mut self, node: &Node) -> Result<()> {
        let mut fields = Fields::of(node, "a project's own settings")?;
        if let Some(flag) = fields.take("shared-cache") {
            self.shares_cache = flag.boolean()?;
        }
        self.add_common(&mut fields)?;
        for name in PASSED_OVER_IN_PROJECTS {
            fields.take(name);
        }
        fields.finish()
    }

    fn add_common(&mut self, fields: &mut Fields<'_>) -> Result<()> {
        if let Some(flag) = fields.take("version-check") {
            self.checks_versions = flag.boolean()?;
        }
        if let Some(environ) = fields.take("environ") {
            self.environ.extend(environ.text_map()?);
        }
        Ok(())
    }
}

/// A directory of the machine; `~/` is the user's home.
fn directory(node: &Node, home: Option<&Path>) -> Result<PathBuf> {
    let text = node.text()?;
    let path = match (text.strip_prefix("~/"), home) {
        (Some(below), Some(home)) => home.join(below),
        _ => PathBuf::from(text),
    };
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(node.pos.error(format!("`{text}` is not an absolute path")))
    }
}

/// `*` stands for anything.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|at| matches(rest, &name[at..])),
        [first, rest @ ..] => name.first() == Some(first) && matches(rest, &name[1..]),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_stronger_file_wins() {
        let top = tempfile::tempdir().unwrap();
        let (home, project) = (top.path().join("home"), top.path().join("project"));
        fs::create_dir_all(home.join(".config/vagga")).unwrap();
        fs::create_dir_all(&project).unwrap();
        let own = format!(
            "cache_dir: ~/cache\nenviron: {{A: own, B: own}}\nubuntu-mirror: x\n\
             site-settings:\n  {}: {{environ: {{B: site, C: site}}}}\n  /other: {{storage-dir: /x}}\n",
            project.display()
        );
        fs::write(home.join(".config/vagga/settings.yaml"), own).unwrap();
        let local = "environ: {C: local}\nversion-check: no\n";
        fs::write(project.join(".vagga.settings.yaml"), local).unwrap();
        let more = OsStr::new("{propagate-environ: [CI_*], external-volumes: {home: /h}}");
        let settings = Settings::read(&project, Some(&home), Some(more)).unwrap();
        let environ: Vec<_> = settings.environ.values().map(String::as_str).collect();
        assert_eq!(environ, ["own", "site", "local"]);
        assert!(!settings.checks_versions && settings.storage_dir.is_none());
        assert!(settings.propagates(OsStr::new("CI_X")) && !settings.propagates(OsStr::new("CI")));
        let volume = |name: &str| settings.volume(Path::new(name));
        assert_eq!(volume("home/a"), Some("/h/a".into()));
        assert_eq!(volume("homes"), None);
        assert!(settings.cache_in(Path::new("/s")).is_err());
        fs::create_dir(home.join("cache")).unwrap();
        assert_eq!(
            settings.cache_in(Path::new("/s")).unwrap(),
            home.join("cache")
        );
        // What would give a project the user's files is the user's to say.
        fs::write(project.join(".vagga.settings.yaml"), "external-volumes: {}").unwrap();
        let error = Settings::read(&project, Some(&home), None).unwrap_err();
        assert!(error.to_string().contains("settings.yaml:1:1"), "{error}");
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, fits) in [
            ("A", "A", true),
            ("A", "AB", false),
            ("*", "", true),
            ("A*C", "ABBC", true),
            ("A*C", "ABBCD", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                fits,
                "{pattern}"
            );
        }
    }
}
