//! `vagga.yaml`: the containers of a project. Its commands are none of our business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::yaml::{Fields, Node, Pos, is_plain_relative, load};
use crate::{Error, Result};

/// Files beside `vagga.yaml` that are read after it, without being mentioned in it.
pub(super) const LOCAL_MIXINS: [&str; 3] =
    ["vagga.local.yaml", ".vagga.local.yaml", ".vagga/local.yaml"];

/// The containers of a project, by name.
#[derive(Debug, Default)]
pub struct Config {
    containers: BTreeMap<String, Container>,
    files: Vec<PathBuf>,
}

/// What `vagga.yaml` says of a container. Steps and volumes are looked at when they are needed,
/// so that one that isn't known here is in the way of its own container only.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub(super) name: String,
    pub(super) pos: Pos,
    pub(super) setup: Vec<Node>,
    pub(super) volumes: Vec<(PathBuf, Node)>,
    pub(super) data_dirs: Vec<PathBuf>,
    pub(super) uids: Vec<IdSpan>,
    pub(super) gids: Vec<IdSpan>,
    pub(super) environ: BTreeMap<String, String>,
    /// As seen in the container.
    pub(super) environ_file: Option<PathBuf>,
    pub(super) resolv_conf: Option<PathBuf>,
    pub(super) hosts: Option<PathBuf>,
    /// Whether a `!Container` step takes the other container as a lower layer.
    pub(super) overlay: bool,
}

/// The ids from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IdSpan {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl Config {
    /// Reads `file` and what it mixes in; `dir` is the directory of the project.
    pub(super) fn read(dir: &Path, file: Option<&Path>) -> Result<Self> {
        let mut config = Self::default();
        let pseudo = dir.join("vagga.yaml");
        let mixins = match file {
            Some(file) => config.add(file)?,
            None => Vec::new(),
        };
        for name in LOCAL_MIXINS {
            let local = dir.join(name);
            if local.exists() {
                config.mix_in(&local, 0);
            }
        }
        let beside = file.unwrap_or(&pseudo);
        config.mix_in_all(beside, &mixins, 0);
        Ok(config)
    }

    /// The files that it was read from.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The container of this name.
    pub fn container(&self, name: &str) -> Result<&Container> {
        self.containers.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.containers.keys().map(String::as_str).collect();
            let error = Error::usage("looking for the container").at(name);
            if names.is_empty() {
                error.because("vagga.yaml has no containers")
            } else {
                error.because(format!("vagga.yaml has only {}", names.join(", ")))
            }
        })
    }

    /// Reads one file; what is known already stays. Returns the files that it mixes in.
    fn add(&mut self, file: &Path) -> Result<Vec<PathBuf>> {
        let node = load(file)?;
        self.files.push(file.to_path_buf());
        let mut fields = Fields::of(&node, "the configuration")?;
        fields.take("commands");
        fields.take("minimum-vagga");
        let mixins = match fields.take("mixins") {
            None => Vec::new(),
            Some(list) => list
                .list()?
                .iter()
                .map(|mixin| {
                    let path = PathBuf::from(mixin.text()?);
                    if is_plain_relative(&path) {
                        Ok(path)
                    } else {
                        Err(mixin
                            .pos
                            .error("only files beside this one, or below, can be mixed in"))
                    }
                })
                .collect::<Result<_>>()?,
        };
        if let Some(containers) = fields.take("containers") {
            for (key, value) in containers.map()? {
                let name = container_name(key)?;
                if !self.containers.contains_key(name) {
                    let container = Container::read(name, value)?;
                    self.containers.insert(name.to_owned(), container);
                }
            }
        }
        fields.finish()?;
        Ok(mixins)
    }

    fn mix_in_all(&mut self, beside: &Path, mixins: &[PathBuf], depth: usize) {
        for mixin in mixins.iter().rev() {
            let file = beside.parent().unwrap_or(Path::new("")).join(mixin);
            self.mix_in(&file, depth);
        }
    }

    /// One that can't be read is left out: it may come from a container that isn't built yet.
    fn mix_in(&mut self, file: &Path, depth: usize) {
        const DEEPEST: usize = 16;
        match self.add(file) {
            Ok(further) if depth < DEEPEST => self.mix_in_all(file, &further, depth + 1),
            Ok(_) => log::warn!("{}: too many files mix each other in", file.display()),
            Err(error) => log::warn!("left out: {error}"),
        }
    }
}

/// A name that is a name in `.vagga`, too.
fn container_name(key: &Node) -> Result<&str> {
    let name = key.text()?;
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(key.pos.error(format!("`{name}` can't name a container")));
    }
    Ok(name)
}

impl Container {
    fn read(name: &str, node: &Node) -> Result<Self> {
        let what = format!("container `{name}`");
        let mut fields = Fields::of(node, &what)?;
        // For vagga only: how images are fetched, old ones removed, `default-shell` of commands.
        for vagga_s in ["image-cache-url", "auto-clean", "default-shell"] {
            fields.take(vagga_s);
        }
        let container = Self {
            name: name.to_owned(),
            pos: node.pos.clone(),
            setup: match fields.take("setup") {
                Some(setup) => setup.list()?.to_vec(),
                None => Vec::new(),
            },
            volumes: volumes(fields.take("volumes"))?,
            data_dirs: match fields.take("data-dirs") {
                Some(dirs) => dirs
                    .list()?
                    .iter()
                    .map(Node::inside)
                    .collect::<Result<_>>()?,
                None => Vec::new(),
            },
            uids: spans(fields.take("uids"))?,
            gids: spans(fields.take("gids"))?,
            environ: match fields.take("environ") {
                Some(environ) => environ.text_map()?,
                None => BTreeMap::new(),
            },
            environ_file: fields
                .take("environ-file")
                .map(|node| node.text().map(PathBuf::from))
                .transpose()?,
            resolv_conf: place(fields.take("resolv-conf-path"), "/etc/resolv.conf")?,
            hosts: place(fields.take("hosts-file-path"), "/etc/hosts")?,
            overlay: fields
                .take("overlay")
                .map(Node::boolean)
                .transpose()?
                .unwrap_or(false),
        };
        fields.finish()?;
        Ok(container)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn volumes(node: Option<&Node>) -> Result<Vec<(PathBuf, Node)>> {
    let mut volumes = match node {
        None => Vec::new(),
        Some(node) => node
            .map()?
            .iter()
            .map(|(key, value)| Ok((key.inside()?, value.clone())))
            .collect::<Result<Vec<_>>>()?,
    };
    // Parents first, or they would cover what is below them.
    volumes.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = volumes.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(pair[1].1.pos.error("two volumes in one place"));
    }
    Ok(volumes)
}

/// A file that is bound: there unless told, and nowhere if told so.
fn place(node: Option<&Node>, default: &str) -> Result<Option<PathBuf>> {
    match node {
        None => Ok(Some(default.into())),
        Some(node) if matches!(node.value, super::yaml::Value::Null) => Ok(None),
        Some(node) => node.inside().map(Some),
    }
}

/// Vagga's default is the ids that 16 bits hold.
const DEFAULT_SPAN: IdSpan = IdSpan {
    first: 0,
    last: 65535,
};

fn spans(node: Option<&Node>) -> Result<Vec<IdSpan>> {
    let spans: Vec<IdSpan> = match node {
        None => Vec::new(),
        Some(node) => node.list()?.iter().map(span).collect::<Result<_>>()?,
    };
    Ok(if spans.is_empty() {
        vec![DEFAULT_SPAN]
    } else {
        spans
    })
}

fn span(node: &Node) -> Result<IdSpan> {
    let text = node.text()?;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last && last < u32::MAX => Ok(IdSpan { first, last }),
        _ => Err(node.pos.error(format!(
            "`{text}` is neither an id nor a range such as `1-1000`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vagga.yaml");
        std::fs::write(&file, text).unwrap();
        Config::read(dir.path(), Some(&file))
    }

    #[test]
    fn a_container_with_everything() {
        let config = read(
            "commands: {a: !Command {container: b, run: x}}\ncontainers:\n  b:\n    setup:\n    - !Sh x\n    \
             uids: [0-10, 33]\n    environ: {A: b}\n    data_dirs: [/x]\n    overlay: true\n    volumes:\n      \
             /b/c: !Empty\n      /b: !BindRW /work\n",
        )
        .unwrap();
        let b = config.container("b").unwrap();
        assert_eq!(
            b.uids[1],
            IdSpan {
                first: 33,
                last: 33
            }
        );
        assert_eq!(b.gids, [DEFAULT_SPAN]);
        assert!(b.overlay && b.volumes[0].0 == Path::new("/b"));
        let error = config.container("c").unwrap_err().to_string();
        assert!(error.ends_with("vagga.yaml has only b"), "{error}");
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        for (text, wanted) in [
            ("containers:\n  b:\n    setap: []\n", "vagga.yaml:3:5"),
            ("containers:\n  ../b: {}\n", "vagga.yaml:2:3"),
            ("containers:\n  b:\n    uids: [10-1]\n", "vagga.yaml:3:12"),
            ("conteiners: {}\n", "vagga.yaml:1:1"),
            ("mixins: [../../etc]\n", "vagga.yaml:1:10"),
            ("containers: [\n", "vagga.yaml:"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn mixins_add_and_don_t_replace() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vagga.yaml");
        std::fs::write(
            &file,
            "mixins: [m.yaml, gone.yaml]\ncontainers: {a: {environ: {X: main}}}\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("m.yaml"),
            "containers: {a: {}, c: {environ: {X: mixin}}}\n",
        )
        .unwrap();
        let config = Config::read(dir.path(), Some(&file)).unwrap();
        assert_eq!(config.container("a").unwrap().environ["X"], "main");
        assert_eq!(config.container("c").unwrap().environ["X"], "mixin");
    }
}
