//! From a file to [`Node`]s.

use std::collections::HashMap;
use std::path::{Component, Path};
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Node, Pos, Value};
use crate::{Error, Result};

/// No configuration is nested like that; an alias in an alias in an alias would be.
const DEEPEST: usize = 100;
/// How many values a file may have after its aliases have been put in.
const MOST_NODES: usize = 200_000;
/// How many files may include each other.
const MOST_INCLUDES: usize = 16;
/// A configuration that is larger than this isn't one.
const LARGEST: u64 = 16 << 20;

/// Reads a file; an empty one is [`Value::Null`].
pub(in crate::vagga) fn load(file: &Path) -> Result<Node> {
    load_included(file, 0)
}

/// Reads a text that isn't in a file; `name` stands for one in errors.
pub(in crate::vagga) fn load_text(name: &Path, text: &str) -> Result<Node> {
    parse(Rc::from(name), text, 0)
}

fn load_included(file: &Path, included: usize) -> Result<Node> {
    let failed = |why: String| {
        Error::usage("reading the configuration")
            .at(file)
            .because(why)
    };
    let size = std::fs::metadata(file)
        .map_err(|error| failed(error.to_string()))?
        .len();
    if size > LARGEST {
        return Err(failed(format!("it has more than {} MiB", LARGEST >> 20)));
    }
    let bytes = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))?;
    parse(Rc::from(file), &text, included)
}

/// Something that isn't complete yet.
enum Open {
    List(Vec<Node>),
    /// With the key whose value comes next.
    Map(Vec<(Node, Node)>, Option<Node>),
}

struct Frame {
    pos: Pos,
    tag: Option<String>,
    anchor: usize,
    open: Open,
}

struct Loader {
    file: Rc<Path>,
    included: usize,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    whole: Option<Node>,
}

pub(super) fn parse(file: Rc<Path>, text: &str, included: usize) -> Result<Node> {
    let mut loader = Loader {
        file: Rc::clone(&file),
        included,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        whole: None,
    };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let pos = Pos {
                file: Rc::clone(&file),
                line: error.marker().line(),
                column: error.marker().col() + 1,
            };
            pos.error(error.info().to_owned())
        })?;
        loader.take(event, span)?;
    }
    Ok(loader.whole.unwrap_or(Node {
        pos: Pos {
            file,
            line: 1,
            column: 1,
        },
        tag: None,
        value: Value::Null,
    }))
}

impl Loader {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<()> {
        let pos = Pos {
            file: Rc::clone(&self.file),
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        match event {
            Event::DocumentStart(_) if self.whole.is_some() => {
                Err(pos.error("a second document in one file"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag_name(tag.as_deref());
                let value = match (&*text, style) {
                    ("" | "~" | "null", ScalarStyle::Plain) => Value::Null,
                    _ => Value::Scalar(text.into_owned()),
                };
                let node = self.include(Node { pos, tag, value })?;
                self.finish(anchor, node)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(pos.error("this alias stands for something that contains it"));
                };
                self.nodes += count(&node);
                self.add(node)
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(pos, tag.as_deref(), anchor, Open::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.open(pos, tag.as_deref(), anchor, Open::Map(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else {
                    return Ok(());
                };
                let value = match frame.open {
                    Open::List(list) => Value::List(list),
                    Open::Map(map, _) => Value::Map(map),
                };
                let node = Node {
                    pos: frame.pos,
                    tag: frame.tag,
                    value,
                };
                self.finish(frame.anchor, node)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, pos: Pos, tag: Option<&Tag>, anchor: usize, open: Open) -> Result<()> {
        if self.stack.len() >= DEEPEST {
            return Err(pos.error("nested too deeply"));
        }
        self.stack.push(Frame {
            pos,
            tag: tag_name(tag),
            anchor,
            open,
        });
        Ok(())
    }

    fn finish(&mut self, anchor: usize, node: Node) -> Result<()> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.nodes += 1;
        self.add(node)
    }

    fn add(&mut self, node: Node) -> Result<()> {
        if self.nodes > MOST_NODES {
            return Err(node.pos.error("its aliases make it too large"));
        }
        let Some(frame) = self.stack.last_mut() else {
            self.whole = Some(node);
            return Ok(());
        };
        match &mut frame.open {
            Open::List(list) => list.push(node),
            Open::Map(map, key) => match key.take() {
                None => *key = Some(node),
                Some(key) => {
                    if let Value::Scalar(name) = &key.value {
                        let twice = map.iter().any(
                            |(known, _)| matches!(&known.value, Value::Scalar(n) if n == name),
                        );
                        if twice {
                            return Err(key.pos.error(format!("`{name}` is there twice")));
                        }
                    }
                    map.push((key, node));
                }
            },
        }
        Ok(())
    }

    /// `!*Include FILE` stands for what is in that file.
    fn include(&self, node: Node) -> Result<Node> {
        let Some(directive) = node.tag.as_deref().and_then(|tag| tag.strip_prefix('*')) else {
            return Ok(node);
        };
        let Value::Scalar(name) = &node.value else {
            return Err(node.pos.error(format!("`!*{directive}` wants one file")));
        };
        if directive != "Include" {
            return Err(node.pos.error(format!(
                "`!*{directive}` isn't known here, only `!*Include`"
            )));
        }
        if self.included >= MOST_INCLUDES {
            return Err(node.pos.error("too many files include each other"));
        }
        let relative = Path::new(name);
        if !is_plain_relative(relative) {
            return Err(node
                .pos
                .error("only files beside this one, or below, can be included"));
        }
        let file = self
            .file
            .parent()
            .map_or_else(|| relative.to_path_buf(), |dir| dir.join(relative));
        load_included(&file, self.included + 1)
    }
}

/// Whether a path stays below the directory that it is relative to.
pub(in crate::vagga) fn is_plain_relative(path: &Path) -> bool {
    let mut parts = path.components();
    path.file_name().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn tag_name(tag: Option<&Tag>) -> Option<String> {
    let tag = tag?;
    (tag.handle == "!").then(|| tag.suffix.clone())
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null | Value::Scalar(_) => 0,
        Value::List(list) => list.iter().map(count).sum(),
        Value::Map(map) => map.iter().map(|(_, value)| 1 + count(value)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Node> {
        super::parse(Rc::from(Path::new("f")), text, 0)
    }

    #[test]
    fn places_and_tags() {
        let node = parse("a:\n  - !Sh echo\n  - !Text\n    /x: y\n").unwrap();
        let Value::Map(map) = &node.value else {
            panic!("{node:?}")
        };
        let Value::List(list) = &map[0].1.value else {
            panic!("{node:?}")
        };
        assert_eq!(list[0].tag.as_deref(), Some("Sh"));
        assert_eq!(
            (list[0].pos.line, list[1].tag.as_deref()),
            (2, Some("Text"))
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, place) in [
            ("a: 1\na: 2\n", "f:2:1"),
            ("a: [1, 2\nb: }\n", "f:"),
            ("a: !*Include /etc/passwd\n", "f:1:4"),
            ("a: !*Include ../x\n", "f:1:4"),
            ("a: 1\n---\nb: 2\n", "f:2:1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
        }
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..9 {
            let refs = vec![format!("*a{}", n - 1); 10].join(", ");
            text += &format!("a{n}: &a{n} [{refs}]\n");
        }
        assert!(parse(&text).unwrap_err().to_string().contains("too large"));
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
    }
}
