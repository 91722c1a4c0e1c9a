//! YAML as vagga's files use it: values with the place they were found at, and tags.

mod fields;
mod load;
mod portable;
mod scalars;

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

pub(super) use fields::Fields;
pub(super) use load::{is_plain_relative, load, load_text};

use crate::Error;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pos {
    #[serde(with = "portable")]
    file: Rc<Path>,
    line: usize,
    column: usize,
}

impl Pos {
    /// An error about what is found here.
    pub(super) fn error(&self, why: impl Into<String>) -> Error {
        Error::usage("reading the configuration")
            .at(self.as_path())
            .because(why)
    }

    /// `FILE:LINE:COLUMN`; the file's name may be any bytes.
    fn as_path(&self) -> PathBuf {
        let mut text = self.file.as_os_str().to_os_string();
        text.push(format!(":{}:{}", self.line, self.column));
        text.into()
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// A value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) pos: Pos,
    /// Without the exclamation mark.
    pub(super) tag: Option<String>,
    pub(super) value: Value,
}

/// What kind of value it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Value {
    /// Nothing, or `null`.
    Null,
    Scalar(String),
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Says that it is in another file: what `to` makes of its own.
    pub(super) fn move_file(&mut self, to: &dyn Fn(&Path) -> PathBuf) {
        self.pos.file = Rc::from(to(&self.pos.file));
        match &mut self.value {
            Value::Null | Value::Scalar(_) => {}
            Value::List(list) => list.iter_mut().for_each(|node| node.move_file(to)),
            Value::Map(map) => {
                for (key, value) in map {
                    key.move_file(to);
                    value.move_file(to);
                }
            }
        }
    }
}

impl Value {
    /// What it is called in an error.
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

#[cfg(test)]
pub(super) fn parse_for_test(text: &str) -> crate::Result<Node> {
    load::parse(Rc::from(Path::new("vagga.yaml")), text, 0)
}
