//! `StepCache`: steps of builds as layers, on the kernel's overlay and on FUSE.

pub(crate) mod building;
pub(crate) mod damage;
pub(crate) mod flat;
pub(crate) mod sharing;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use overfall::backend::Backend;
use overfall::steps::{Begun, Digest, Stack, Step, StepCache, Work};

use crate::bench::{By, Place};

fn open(place: &Place) -> StepCache {
    let backend = match place.by {
        By::Kernel => Backend::Native,
        _ => Backend::Fuse,
    };
    StepCache::open(place.dir.join("cache"))
        .unwrap()
        .backend(backend)
}

fn seed() -> Stack {
    Stack::empty(Digest::of(b"seed"))
}

/// A step that must be run.
#[track_caller]
fn work(cache: &StepCache, stack: &Stack, step: &Step) -> Work {
    match cache.begin(stack, step).unwrap() {
        Begun::Work(work) => work,
        Begun::Hit(_) => panic!("{step:?} is there already"),
    }
}

/// Builds steps that each write a file with their text; says which were run.
fn build(cache: &StepCache, steps: &[&str]) -> (Stack, Vec<String>) {
    let mut stack = seed();
    let mut run = Vec::new();
    for (number, text) in steps.iter().enumerate() {
        let step = Step::new(format!("step {number}"), *text);
        stack = match cache.begin(&stack, &step).unwrap() {
            Begun::Hit(stack) => stack,
            Begun::Work(work) => {
                run.push((*text).to_owned());
                fs::write(work.root().join(number.to_string()), text).unwrap();
                work.commit().unwrap()
            }
        };
    }
    (stack, run)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A plain directory with what a stack shows.
fn flat(place: &Place, cache: &StepCache, stack: &Stack, name: &str) -> PathBuf {
    let dest = place.dir.join(name);
    cache.flatten(stack, &dest).unwrap();
    dest
}

/// The directory of a layer.
fn data_of(place: &Place, digest: Digest) -> PathBuf {
    let layers = place.dir.join("cache/layers");
    let wanted = digest.to_string();
    let found = names(&layers).into_iter().find(|name| {
        fs::read_to_string(layers.join(name).join("manifest"))
            .is_ok_and(|text| text.contains(&format!("\"digest\": \"{wanted}\"")))
    });
    layers.join(found.unwrap())
}
