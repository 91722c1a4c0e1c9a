//! The steps of a container as `vagga.yaml` has them. All are read before the first one runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::filter::Filter;
use crate::Result;
use crate::container::{Credentials, Network};
use crate::vagga::yaml::{Fields, Node, Pos, Value};

/// A step with its place in the file.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) pos: Pos,
    /// For people: its kind and the beginning of what it says.
    pub(super) title: String,
    pub(super) action: Action,
}

/// What a step does.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Container(String),
    SubConfig(SubConfig),
    Sh(String),
    Cmd(Vec<String>),
    RunAs(RunAs),
    Tar(Tar),
    TarInstall(TarInstall),
    Copy(Copy),
    Text(BTreeMap<PathBuf, String>),
    EnsureDir(PathBuf),
    EmptyDir(PathBuf),
    Remove(PathBuf),
    CacheDirs(BTreeMap<PathBuf, PathBuf>),
    Env(BTreeMap<String, String>),
    Depends { path: PathBuf, filter: Filter },
}

#[derive(Debug, Clone)]
pub(super) struct SubConfig {
    /// A built container that has the file, or the project.
    pub(super) source: Option<String>,
    pub(super) path: PathBuf,
    pub(super) container: String,
}

#[derive(Debug, Clone)]
pub(super) struct RunAs {
    pub(super) who: Credentials,
    pub(super) network: Network,
    pub(super) directory: PathBuf,
    pub(super) script: String,
}

/// An archive and how to know that it is the right one.
#[derive(Debug, Clone)]
pub(super) struct Archive {
    pub(super) url: String,
    pub(super) sha256: Option<String>,
    pub(super) pos: Pos,
}

#[derive(Debug, Clone)]
pub(super) struct Tar {
    pub(super) archive: Archive,
    pub(super) path: PathBuf,
    /// Only what is below it, and without it.
    pub(super) subdir: PathBuf,
}

#[derive(Debug, Clone)]
pub(super) struct TarInstall {
    pub(super) archive: Archive,
    pub(super) subdir: Option<PathBuf>,
    pub(super) script: String,
}

#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) source: PathBuf,
    pub(super) path: PathBuf,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// Permissions are those of the source, or made of this umask.
    pub(super) umask: Option<u32>,
    pub(super) times: Times,
    pub(super) filter: Filter,
}

/// What becomes of the time of a copied file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Times {
    /// One second past 1970: the same for everybody.
    Fixed,
    Preserved,
}

/// What a step of this kind reads without being told.
const INSTALL: &str = "./configure --prefix=/usr\nmake\nmake install\n";

impl Written {
    pub(super) fn read(node: &Node) -> Result<Self> {
        let Some(tag) = node.tag.as_deref() else {
            return Err(node
                .pos
                .error("a step has a tag that says its kind, such as `!Sh`"));
        };
        let action = action(tag, node)?;
        let said = match &node.value {
            Value::Scalar(text) => text.lines().next().unwrap_or_default(),
            _ => "",
        };
        let title: String = format!("!{tag} {said}").chars().take(60).collect();
        Ok(Self {
            pos: node.pos.clone(),
            title: title.trim_end().to_owned(),
            action,
        })
    }
}

fn action(tag: &str, node: &Node) -> Result<Action> {
    Ok(match tag {
        "Container" => Action::Container(node.text()?.to_owned()),
        "SubConfig" => Action::SubConfig(sub_config(node)?),
        "Sh" => Action::Sh(node.text()?.to_owned()),
        "Cmd" => {
            let words = node.texts()?;
            if words.is_empty() {
                return Err(node.pos.error("`!Cmd` wants a command"));
            }
            Action::Cmd(words)
        }
        "RunAs" => Action::RunAs(run_as(node)?),
        "Tar" => {
            let mut fields = Fields::of(node, "`!Tar`")?;
            let tar = Tar {
                archive: archive(&mut fields)?,
                path: fields.take("path").map_or(Ok("/".into()), Node::inside)?,
                subdir: below(fields.take("subdir"))?.unwrap_or_default(),
            };
            fields.finish()?;
            Action::Tar(tar)
        }
        "TarInstall" => {
            let mut fields = Fields::of(node, "`!TarInstall`")?;
            let install = TarInstall {
                archive: archive(&mut fields)?,
                subdir: below(fields.take("subdir"))?,
                script: fields
                    .take("script")
                    .map_or(Ok(INSTALL), Node::text)?
                    .to_owned(),
            };
            fields.finish()?;
            Action::TarInstall(install)
        }
        "Copy" => Action::Copy(copy(node)?),
        "Text" => Action::Text(
            node.map()?
                .iter()
                .map(|(path, text)| Ok((path.inside()?, text.text()?.to_owned())))
                .collect::<Result<_>>()?,
        ),
        "EnsureDir" => Action::EnsureDir(node.inside()?),
        "EmptyDir" => Action::EmptyDir(node.inside()?),
        "Remove" => Action::Remove(node.inside()?),
        "CacheDirs" => Action::CacheDirs(
            node.map()?
                .iter()
                .map(|(path, name)| Ok((path.inside()?, cache_name(name)?)))
                .collect::<Result<_>>()?,
        ),
        "Env" => Action::Env(node.text_map()?),
        "Depends" => depends(node)?,
        other => {
            return Err(node
                .pos
                .error(format!("the step `!{other}` is not known here"))
                .remedy("build this container by vagga, and base another one on it"));
        }
    })
}

fn below(node: Option<&Node>) -> Result<Option<PathBuf>> {
    let path = node.map(Node::below).transpose()?;
    // Without the dots that stand for "here".
    Ok(path.map(|path| {
        path.components()
            .filter(|part| part.as_os_str() != ".")
            .collect()
    }))
}

fn cache_name(node: &Node) -> Result<PathBuf> {
    let path = node.below()?;
    if path.as_os_str().is_empty() {
        return Err(node.pos.error("a cache wants a name"));
    }
    Ok(path)
}

fn archive(fields: &mut Fields<'_>) -> Result<Archive> {
    let url = fields.need("url")?;
    let sha256 = fields.take("sha256");
    if let Some(sum) = sha256 {
        let text = sum.text()?;
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(sum.pos.error("a SHA-256 sum has 64 hexadecimal digits"));
        }
    }
    Ok(Archive {
        url: url.text()?.to_owned(),
        sha256: sha256
            .map(|sum| sum.text().map(str::to_ascii_lowercase))
            .transpose()?,
        pos: url.pos.clone(),
    })
}

fn sub_config(node: &Node) -> Result<SubConfig> {
    let mut fields = Fields::of(node, "`!SubConfig`")?;
    let source = match fields.take("source") {
        None => None,
        Some(source) => match source.tag.as_deref() {
            None | Some("Directory") => None,
            Some("Container") => Some(source.text()?.to_owned()),
            Some(other) => {
                return Err(source
                    .pos
                    .error(format!("a source of the kind `!{other}` is not known here")));
            }
        },
    };
    fields.take("cache");
    let config = SubConfig {
        source,
        path: fields
            .take("path")
            .map_or(Ok("vagga.yaml".into()), Node::below)?,
        container: fields.need("container")?.text()?.to_owned(),
    };
    fields.finish()?;
    Ok(config)
}

fn run_as(node: &Node) -> Result<RunAs> {
    let mut fields = Fields::of(node, "`!RunAs`")?;
    let most = u32::MAX - 1;
    let id = |node: Option<&Node>| node.map_or(Ok(0), |node| node.small(most));
    let run = RunAs {
        who: Credentials {
            user: id(fields.take("user-id"))?,
            group: id(fields.take("group-id"))?,
            others: match fields.take("supplementary-gids") {
                None => Vec::new(),
                Some(ids) => ids
                    .list()?
                    .iter()
                    .map(|node| node.small(most))
                    .collect::<Result<_>>()?,
            },
            external: fields
                .take("external-user-id")
                .map(|node| node.small(most))
                .transpose()?,
        },
        network: match fields.take("isolate-network") {
            Some(node) if node.boolean()? => Network::Isolated,
            _ => Network::Shared,
        },
        directory: match fields.take("work-dir") {
            None => "/work".into(),
            Some(dir) => Path::new("/work").join(dir.text()?),
        },
        script: fields.need("script")?.text()?.to_owned(),
    };
    fields.finish()?;
    Ok(run)
}

fn copy(node: &Node) -> Result<Copy> {
    let mut fields = Fields::of(node, "`!Copy`")?;
    let flag = |node: Option<&Node>| node.map_or(Ok(false), Node::boolean);
    let id = |node: Option<&Node>| node.map(|node| node.small(u32::MAX - 1)).transpose();
    let umask = fields
        .take("umask")
        .map_or(Ok(0o002), |node| node.small(0o777))?;
    let copy = Copy {
        source: fields.need("source")?.inside()?,
        path: fields.need("path")?.inside()?,
        uid: id(fields.take("owner-uid"))?,
        gid: id(fields.take("owner-gid"))?,
        umask: (!flag(fields.take("preserve-permissions"))?).then_some(umask),
        times: if flag(fields.take("preserve-times"))? {
            Times::Preserved
        } else {
            Times::Fixed
        },
        filter: Filter::take(&mut fields)?,
    };
    fields.finish()?;
    Ok(copy)
}

fn depends(node: &Node) -> Result<Action> {
    if let Value::Scalar(_) = &node.value {
        let no_settings = Node {
            value: Value::Null,
            ..node.clone()
        };
        return Ok(Action::Depends {
            path: node.below()?,
            filter: Filter::take(&mut Fields::of(&no_settings, "`!Depends`")?)?,
        });
    }
    let mut fields = Fields::of(node, "`!Depends`")?;
    let action = Action::Depends {
        path: fields.need("path")?.below()?,
        filter: Filter::take(&mut fields)?,
    };
    fields.finish()?;
    Ok(action)
}
