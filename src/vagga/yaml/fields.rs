//! The fields of a mapping: each is asked for by its name, and what nobody asked for is an error.

use super::{Node, Pos, Value};
use crate::Result;

/// A mapping on its way into a structure.
#[derive(Debug)]
pub(in crate::vagga) struct Fields<'n> {
    what: &'n str,
    pos: Pos,
    fields: Vec<(String, &'n Node, &'n Node)>,
}

impl<'n> Fields<'n> {
    /// `what` names the mapping in errors. Nothing at all is a mapping without fields.
    pub(in crate::vagga) fn of(node: &'n Node, what: &'n str) -> Result<Self> {
        let map: &[(Node, Node)] = match &node.value {
            Value::Map(map) => map,
            Value::Null => &[],
            other => {
                return Err(node
                    .pos
                    .error(format!("{what} is a mapping, not {}", other.kind())));
            }
        };
        let fields = map
            .iter()
            .map(|(key, value)| Ok((key.text()?.replace('_', "-"), key, value)))
            .collect::<Result<_>>()?;
        Ok(Self {
            what,
            pos: node.pos.clone(),
            fields,
        })
    }

    /// The value of a field; words of its name are joined by `-`, and `_` is taken for it.
    pub(in crate::vagga) fn take(&mut self, name: &str) -> Option<&'n Node> {
        let at = self.fields.iter().position(|(known, _, _)| known == name)?;
        Some(self.fields.swap_remove(at).2)
    }

    /// As [`Fields::take`], or an error.
    pub(in crate::vagga) fn need(&mut self, name: &str) -> Result<&'n Node> {
        self.take(name)
            .ok_or_else(|| self.pos.error(format!("{} needs `{name}`", self.what)))
    }

    /// Refuses what is left.
    pub(in crate::vagga) fn finish(self) -> Result<()> {
        let first = self
            .fields
            .iter()
            .min_by_key(|(_, key, _)| (key.pos.line, key.pos.column));
        match first {
            None => Ok(()),
            Some((name, key, _)) => Err(key
                .pos
                .error(format!("{} has no setting `{name}` here", self.what))),
        }
    }
}
