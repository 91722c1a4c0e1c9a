//! What the documents name is there.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

use std::fs;
use std::path::Path;

/// `family::name` in backticks is a test: a function in the family's file.
#[test]
fn every_test_that_semantics_names_exists() {
    assert!(tests_named_in("SEMANTICS.md") > 100);
}

#[test]
fn every_test_that_security_names_exists() {
    assert!(tests_named_in("SECURITY.md") > 40);
}

fn tests_named_in(document: &str) -> usize {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("docs").join(document)).unwrap();
    let named: Vec<(&str, &str)> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once("::"))
        .filter(|(family, name)| {
            is_word(family)
                && is_word(name)
                && ![*family, *name]
                    .iter()
                    .any(|part| ["family", "name"].contains(part))
        })
        .collect();
    let count = named.len();
    for (family, name) in named {
        let found = sources(&top.join("fuse-tests"), family)
            .iter()
            .any(|source| source.contains(&format!("fn {name}(")));
        assert!(found, "{document}: {family}::{name} is not there");
    }
    count
}

fn is_word(text: &str) -> bool {
    text.chars()
        .all(|letter| letter == '_' || letter.is_ascii_lowercase() || letter.is_ascii_digit())
}

/// The text of `FAMILY.rs` and of what lies in the directory `FAMILY`.
fn sources(tests: &Path, family: &str) -> Vec<String> {
    let inside = fs::read_dir(tests.join(family)).into_iter().flatten();
    let mut files: Vec<_> = inside.map(|entry| entry.unwrap().path()).collect();
    files.push(tests.join(family).with_extension("rs"));
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect()
}

/// A row of a table of rules ends with its test, or with a dash where nothing can be tested.
#[test]
fn every_rule_of_semantics_has_its_test() {
    each_row_has_its_test("SEMANTICS.md", 4);
}

#[test]
fn every_answer_of_security_has_its_test() {
    each_row_has_its_test("SECURITY.md", 2);
}

fn each_row_has_its_test(document: &str, least: usize) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(top.join("docs").join(document)).unwrap();
    let rules = text
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter(|line| !line.starts_with("| rule |") && !line.starts_with("| what |"));
    for rule in rules {
        let cells: Vec<&str> = rule.trim_matches('|').split(" | ").map(str::trim).collect();
        if cells.len() < least {
            continue;
        }
        let test = cells[cells.len() - 1];
        assert!(test.contains('`') || test == "–", "no test: {rule}");
    }
}
