//! What a value is taken for: text, a number, a path, lists and mappings of them.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::{Node, Value};
use crate::Result;

impl Node {
    pub(in crate::vagga) fn text(&self) -> Result<&str> {
        match &self.value {
            Value::Scalar(text) => Ok(text),
            other => Err(self
                .pos
                .error(format!("a single value is wanted, not {}", other.kind()))),
        }
    }

    pub(in crate::vagga) fn boolean(&self) -> Result<bool> {
        match self.text()? {
            "true" | "yes" | "on" | "y" => Ok(true),
            "false" | "no" | "off" | "n" => Ok(false),
            other => Err(self
                .pos
                .error(format!("`{other}` is neither `true` nor `false`"))),
        }
    }

    /// A number: decimal, `0o755`, `0x1f`, or with a unit: `100k`, `100Mi`.
    pub(in crate::vagga) fn number(&self) -> Result<u64> {
        let text = self.text()?;
        number(text).ok_or_else(|| self.pos.error(format!("`{text}` is not a number")))
    }

    /// A number of at most `most`.
    pub(in crate::vagga) fn small(&self, most: u32) -> Result<u32> {
        match u32::try_from(self.number()?) {
            Ok(number) if number <= most => Ok(number),
            _ => Err(self.pos.error(format!("it may be {most} at most"))),
        }
    }

    pub(in crate::vagga) fn list(&self) -> Result<&[Node]> {
        match &self.value {
            Value::List(list) => Ok(list),
            Value::Null => Ok(&[]),
            other => Err(self
                .pos
                .error(format!("a list is wanted, not {}", other.kind()))),
        }
    }

    pub(in crate::vagga) fn map(&self) -> Result<&[(Node, Node)]> {
        match &self.value {
            Value::Map(map) => Ok(map),
            Value::Null => Ok(&[]),
            other => Err(self
                .pos
                .error(format!("a mapping is wanted, not {}", other.kind()))),
        }
    }

    pub(in crate::vagga) fn texts(&self) -> Result<Vec<String>> {
        self.list()?
            .iter()
            .map(|node| node.text().map(str::to_owned))
            .collect()
    }

    pub(in crate::vagga) fn text_map(&self) -> Result<BTreeMap<String, String>> {
        self.map()?
            .iter()
            .map(|(key, value)| {
                let value = match value.value {
                    Value::Null => "",
                    _ => value.text()?,
                };
                Ok((key.text()?.to_owned(), value.to_owned()))
            })
            .collect()
    }

    /// A path in a container: absolute, without `..`.
    pub(in crate::vagga) fn inside(&self) -> Result<PathBuf> {
        let path = Path::new(self.text()?);
        let clean = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if path.is_absolute() && clean && !self.text()?.contains('\0') {
            Ok(path.components().collect())
        } else {
            Err(self.pos.error(format!(
                "`{}` is not an absolute path without `..`",
                path.display()
            )))
        }
    }

    /// A path below something: relative, without `..`.
    pub(in crate::vagga) fn below(&self) -> Result<PathBuf> {
        let text = self.text()?;
        let path = Path::new(text);
        let clean = path
            .components()
            .all(|part| matches!(part, Component::CurDir | Component::Normal(_)));
        if clean && !text.contains('\0') {
            Ok(path.to_path_buf())
        } else {
            Err(self
                .pos
                .error(format!("`{text}` is not a relative path without `..`")))
        }
    }
}

fn number(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 12] = [
        ("ki", 1 << 10),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("K", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let text = text.trim();
    for (prefix, radix) in [("0o", 8), ("0x", 16), ("0b", 2)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return u64::from_str_radix(digits, radix).ok();
        }
    }
    UNITS.iter().find_map(|(unit, factor)| {
        let digits = text.strip_suffix(unit)?.replace('_', "");
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        digits.parse::<u64>().ok()?.checked_mul(*factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vagga::yaml::parse_for_test as parse;

    #[test]
    fn numbers_have_units_and_radixes() {
        for (text, wanted) in [
            ("100Mi", Some(100 << 20)),
            ("0o1777", Some(0o1777)),
            ("10k", Some(10_000)),
            ("7", Some(7)),
            ("", None),
            ("-1", None),
            ("99999999999T", None),
            ("x", None),
        ] {
            assert_eq!(number(text), wanted, "{text}");
        }
    }

    #[test]
    fn paths_don_t_climb() {
        assert_eq!(
            parse("/a//b/").unwrap().inside().unwrap(),
            Path::new("/a/b")
        );
        for text in ["a", "/a/../b", "../a"] {
            assert!(parse(text).unwrap().inside().is_err());
        }
        assert!(parse("a/../../b").unwrap().below().is_err());
        assert!(parse("/a").unwrap().below().is_err());
        assert!(parse("a/b").unwrap().below().is_ok());
    }
}
