//! What the documents name is there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

/// `family::name` in backticks is a test: a function in the family's file.
#[test]
fn every_test_that_semantics_names_exists() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("docs/SEMANTICS.md")).unwrap();
    let named: Vec<(&str, &str)> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once("::"))
        .filter(|(family, name)| {
            !family.contains(' ') && *family != "family" && !name.contains("::")
        })
        .collect();
    assert!(named.len() > 100, "only {} tests named", named.len());
    for (family, name) in named {
        let file = top.join("fuse-tests").join(family).with_extension("rs");
        let source = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            source.contains(&format!("fn {name}(")),
            "{family}::{name} is not in {file:?}"
        );
    }
}

/// A row of a table of rules ends with its test, or with a dash where nothing can be tested.
#[test]
fn every_rule_of_semantics_has_its_test() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("docs/SEMANTICS.md")).unwrap();
    let rules = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| rule |"));
    for rule in rules {
        let cells: Vec<&str> = rule.trim_matches('|').split(" | ").map(str::trim).collect();
        if cells.len() < 4 {
            continue;
        }
        let test = cells[cells.len() - 1];
        assert!(test.contains('`') || test == "–", "no test: {rule}");
    }
}
