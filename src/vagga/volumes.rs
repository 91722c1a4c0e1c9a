//! The volumes of a container.

use std::path::{Path, PathBuf};

use super::config::Container;
use super::project::{Project, Root};
use super::yaml::{Fields, Node, Pos, Value};
use crate::container::{Access, Content, Memory};
use crate::snapshot::{DEFAULT_SIZE, Means};
use crate::{Error, Result};

/// Something that is mounted in a container.
#[derive(Debug)]
pub(super) struct Volume {
    /// Where, as seen inside.
    pub(super) inside: PathBuf,
    pub(super) kind: Kind,
}

/// What is mounted.
#[derive(Debug)]
pub(super) enum Kind {
    /// A throw-away copy of a directory.
    Snapshot(SnapshotVolume),
    /// The tree of another container, read-only.
    Container(Root),
    /// Whatever the container's root knows how to put there.
    Content(Content),
}

/// `!Snapshot`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SnapshotVolume {
    pub(super) size: u64,
    /// The directory of this name in another container, rather than the one that it covers.
    pub(super) container: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) means: Means,
}

/// Reads the volumes of `container`. What they need in `.vagga` is made.
pub(super) fn read(project: &Project, container: &Container) -> Result<Vec<Volume>> {
    container
        .volumes
        .iter()
        .map(|(inside, node)| {
            Ok(Volume {
                inside: inside.clone(),
                kind: kind(project, node)?,
            })
        })
        .collect()
}

fn kind(project: &Project, node: &Node) -> Result<Kind> {
    let Some(tag) = node.tag.as_deref() else {
        return Err(node
            .pos
            .error("a volume has a tag that says its kind, such as `!Tmpfs`"));
    };
    let bind = |source, access| Content::Bind { source, access };
    Ok(Kind::Content(match tag {
        "Snapshot" => return snapshot(node).map(Kind::Snapshot),
        "Tmpfs" => Content::Memory(memory(node)?),
        "BindRW" => bind(of_project(project, node)?, Access::Writable),
        "BindRO" => bind(of_project(project, node)?, Access::ReadOnly),
        "Empty" => Content::Empty,
        "Persistent" => bind(persistent(project, node)?, Access::Writable),
        "CacheDir" => {
            let below = node.below()?;
            if below.as_os_str().is_empty() {
                return Err(node.pos.error("`!CacheDir` wants a path in the cache"));
            }
            let source = project.cache()?.join(below);
            make(&source)?;
            bind(source, Access::Writable)
        }
        "Container" => return project.built(node.text()?).map(Kind::Container),
        other => {
            return Err(node
                .pos
                .error(format!("a volume of the kind `!{other}` is not known here")));
        }
    }))
}

fn snapshot(node: &Node) -> Result<SnapshotVolume> {
    let mut fields = Fields::of(node, "`!Snapshot`")?;
    let id = |node: &Node| node.small(u32::MAX - 1);
    let volume = SnapshotVolume {
        size: match fields.take("size") {
            Some(size) => size.number()?,
            None => DEFAULT_SIZE,
        },
        container: fields
            .take("container")
            .map(|node| node.text().map(str::to_owned))
            .transpose()?,
        uid: fields.take("owner-uid").map(id).transpose()?,
        gid: fields.take("owner-gid").map(id).transpose()?,
        means: match fields.take("overlay") {
            Some(wish) => means(wish.text()?).ok_or_else(|| not_a_means(&wish.pos))?,
            None => Means::Auto,
        },
    };
    fields.finish()?;
    Ok(volume)
}

fn not_a_means(pos: &Pos) -> Error {
    pos.error("`overlay` is `auto`, `kernel`, `fuse` or `copy`")
}

/// A word for how an overlay is made.
fn means(word: &str) -> Option<Means> {
    Some(match word {
        "auto" => Means::Auto,
        "kernel" => Means::Kernel,
        "fuse" => Means::Fuse,
        "copy" => Means::Copy,
        _ => return None,
    })
}

fn memory(node: &Node) -> Result<Memory> {
    let mut fields = Fields::of(node, "`!Tmpfs`")?;
    let mode = |node: Option<&Node>, default| node.map_or(Ok(default), |node| node.small(0o1777));
    let mut dirs = match fields.take("subdirs") {
        None => Vec::new(),
        Some(dirs) => dirs
            .map()?
            .iter()
            .map(|(key, value)| {
                let mut settings = Fields::of(value, "a directory of `!Tmpfs`")?;
                let mode = mode(settings.take("mode"), 0o755)?;
                settings.finish()?;
                Ok((key.below()?, mode))
            })
            .collect::<Result<Vec<_>>>()?,
    };
    dirs.sort();
    let files = match fields.take("files") {
        None => Vec::new(),
        Some(files) => files
            .map()?
            .iter()
            .map(|(key, value)| {
                let text = match value.value {
                    Value::Null => "",
                    _ => value.text()?,
                };
                Ok((key.below()?, text.to_owned()))
            })
            .collect::<Result<_>>()?,
    };
    let memory = Memory {
        size: match fields.take("size") {
            Some(size) => size.number()?,
            None => DEFAULT_SIZE,
        },
        mode: mode(fields.take("mode"), 0o1777)?,
        dirs,
        files,
    };
    fields.finish()?;
    Ok(memory)
}

/// A path below `/work` or `/volumes`, on the machine.
fn of_project(project: &Project, node: &Node) -> Result<PathBuf> {
    let inside = node.inside()?;
    if let Ok(below) = inside.strip_prefix("/work") {
        return Ok(project.dir().join(below));
    }
    let external = inside.strip_prefix("/volumes").ok();
    external
        .and_then(|below| project.settings().volume(below))
        .ok_or_else(|| {
            node.pos.error(
                "only what is below /work, the project, and /volumes, the setting \
                 `external-volumes`, can be bound here",
            )
        })
}

fn persistent(project: &Project, node: &Node) -> Result<PathBuf> {
    let volumes = project.storage().join(".volumes");
    let (name, made_by_command) = match &node.value {
        Value::Scalar(name) => (name.as_str(), false),
        _ => {
            let mut fields = Fields::of(node, "`!Persistent`")?;
            let name = fields.need("name")?.text()?;
            let command = fields.take("init-command").is_some();
            // Owners are given when a volume is made; vagga does that for others than root.
            let other = [fields.take("owner-uid"), fields.take("owner-gid")]
                .into_iter()
                .flatten()
                .map(Node::number)
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .any(|id| id != 0);
            fields.finish()?;
            (name, command || other)
        }
    };
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(node.pos.error(format!("`{name}` can't name a volume")));
    }
    let path = volumes.join(name);
    if !path.is_dir() {
        if made_by_command {
            return Err(node
                .pos
                .error("this volume isn't initialised yet")
                .remedy("run a command with it by vagga once"));
        }
        make(&path)?;
    }
    Ok(path)
}

fn make(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| {
        Error::system("making the directory of a volume")
            .at(path)
            .because(error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vagga::yaml::parse_for_test as parse;

    #[test]
    fn a_snapshot_has_vagga_s_settings_and_one_more() {
        let node = parse("!Snapshot {size: 10Mi, owner-uid: 7, overlay: fuse}").unwrap();
        let wanted = SnapshotVolume {
            size: 10 << 20,
            container: None,
            uid: Some(7),
            gid: None,
            means: Means::Fuse,
        };
        assert_eq!(snapshot(&node).unwrap(), wanted);
        assert_eq!(
            snapshot(&parse("!Snapshot").unwrap()).unwrap().size,
            100 << 20
        );
        let error = snapshot(&parse("!Snapshot\noverlay: yes").unwrap()).unwrap_err();
        assert!(error.to_string().contains("vagga.yaml:2:10"), "{error}");
    }

    #[test]
    fn a_directory_in_memory() {
        let text = "!Tmpfs\nsubdirs:\n  b/c: {mode: 0o700}\n  b:\nfiles: {x: y, z: }\n";
        let memory = memory(&parse(text).unwrap()).unwrap();
        assert_eq!(memory.dirs, [("b".into(), 0o755), ("b/c".into(), 0o700)]);
        assert_eq!(memory.files[1], ("z".into(), String::new()));
        assert_eq!((memory.size, memory.mode), (100 << 20, 0o1777));
    }
}
