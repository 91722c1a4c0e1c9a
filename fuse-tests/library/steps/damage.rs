//! Work that is given up or killed, and layers that were damaged.

use std::fs::{self, File};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use overfall::steps::{Begun, Step};
use overfall::sys::process;

use super::{build, data_of, flat, names, open, seed, work};
use crate::bench::{Case, Place, Way, mounts_below, skip, until};
use crate::planted::look;

pub(crate) const CASES: &[Case] = &[
    (
        "abandoned_work_leaves_no_trace",
        abandoned_work_leaves_no_trace,
    ),
    (
        "damaged_layers_are_made_again",
        damaged_layers_are_made_again,
    ),
    (
        "killed_builds_leave_a_sound_cache",
        killed_builds_leave_a_sound_cache,
    ),
];

fn abandoned_work_leaves_no_trace(place: &Place) {
    let cache = open(place);
    let (stack, _) = build(&cache, &["a"]);
    let dir = place.dir.join("cache");
    let look = |part: &str| look(&dir.join(part));
    let before = ["layers", "new", "empty", "locks"].map(look);
    let step = Step::new("", "b");
    let first = work(&cache, &stack, &step);
    fs::create_dir_all(first.root().join("some/thing")).unwrap();
    fs::remove_file(first.root().join("0")).unwrap();
    assert_eq!(mounts_below(&dir).len(), 1);
    first.abandon().unwrap();
    assert_eq!(["layers", "new", "empty", "locks"].map(look), before);
    // Dropped while in use.
    let second = work(&cache, &stack, &step);
    let file = File::create(second.root().join("open")).unwrap();
    drop(second);
    assert_eq!(["layers", "new", "empty", "locks"].map(look), before);
    assert!(mounts_below(&dir).is_empty());
    drop(file);
    // One that is in use can't be committed.
    let third = work(&cache, &stack, &step);
    let file = File::create(third.root().join("open")).unwrap();
    let error = third.commit().unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(file);
    assert_eq!(["layers", "new", "empty", "locks"].map(look), before);
    assert!(mounts_below(&dir).is_empty());
    // The step can still be made.
    work(&cache, &stack, &step).commit().unwrap();
}

fn damaged_layers_are_made_again(place: &Place) {
    let steps = ["a", "b"];
    let (stack, _) = build(&open(place), &steps);
    let layer = data_of(place, stack.layers()[0].0);
    let manifest = fs::read(layer.join("manifest")).unwrap();
    let damages: [(&str, &dyn Fn()); 6] = [
        ("manifest truncated", &|| {
            fs::write(layer.join("manifest"), &manifest[..manifest.len() / 2]).unwrap()
        }),
        ("manifest missing", &|| {
            fs::remove_file(layer.join("manifest")).unwrap()
        }),
        ("directory missing", &|| {
            fs::remove_dir_all(layer.join("d")).unwrap()
        }),
        ("file missing", &|| {
            fs::remove_file(layer.join("d/0")).unwrap()
        }),
        ("content changed", &|| {
            fs::write(layer.join("d/0"), "longer").unwrap()
        }),
        ("file added", &|| {
            fs::write(layer.join("d/extra"), "").unwrap()
        }),
    ];
    for (what, damage) in damages {
        damage();
        let cache = open(place);
        assert!(
            cache.find(&seed(), &Step::new("", "a")).unwrap().is_none(),
            "{what}"
        );
        let (_, run) = build(&cache, &steps);
        // The one above is as good as before.
        assert_eq!(run, ["a"], "{what}");
        assert_eq!(
            fs::read_to_string(layer.join("d/0")).unwrap(),
            "a",
            "{what}"
        );
        assert_eq!(names(&layer.join("d")).len(), 1, "{what}");
        assert!(names(&place.dir.join("cache/new")).is_empty());
    }
}

/// Builds until it is killed: many small steps, each with a few files.
fn build_on(place: &Place) -> u8 {
    let cache = open(place);
    let mut stack = seed();
    for number in 0.. {
        stack = match cache
            .begin(&stack, &Step::new("", format!("{}", number % 50)))
            .unwrap()
        {
            Begun::Hit(stack) => stack,
            Begun::Work(work) => {
                for file in 0..20 {
                    fs::write(work.root().join(format!("{number}-{file}")), [7; 500]).unwrap();
                }
                work.commit().unwrap()
            }
        };
    }
    0
}

fn killed_builds_leave_a_sound_cache(place: &Place) {
    if place.way == Way::Bare {
        skip("what a killed build has mounted stays where there is no namespace");
    }
    drop(open(place));
    let (mut most, mut slowness) = (0, 0);
    for turn in 0..12_u64 {
        let builder = process::fork(|| {
            // What it mounts ends with it.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            build_on(place)
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(150 + 37 * (turn * 7 % 12) + slowness));
        kill(builder, Signal::SIGKILL).unwrap();
        waitpid(builder, None).unwrap();
        // A server on its way out may still have what its builder had.
        until("what was left is swept", || {
            drop(open(place));
            names(&place.dir.join("cache/new")).is_empty()
        });
        let cache = open(place);
        let mut stack = seed();
        let mut count = 0;
        while let Some(next) = cache
            .find(&stack, &Step::new("", format!("{}", count % 50)))
            .unwrap()
        {
            stack = next;
            count += 1;
        }
        // What was committed is there and whole, in the order in which it was made.
        let layers = cache.layers().unwrap();
        assert_eq!(layers.len(), count, "turn {turn}");
        assert_eq!(
            names(&place.dir.join("cache/layers")).len(),
            count,
            "turn {turn}"
        );
        assert!(
            layers
                .iter()
                .all(|layer| (layer.files, layer.bytes) == (20, 10_000))
        );
        assert!(count >= most, "turn {turn}");
        // A machine on which nothing gets done in that time gets more of it.
        slowness += if count > most { 0 } else { 150 };
        most = count;
    }
    assert!(most > 0, "no build came so far");
    if most > 0 {
        let cache = open(place);
        let mut stack = seed();
        for number in 0..most {
            stack = cache
                .find(&stack, &Step::new("", format!("{}", number % 50)))
                .unwrap()
                .unwrap();
        }
        assert_eq!(names(&flat(place, &cache, &stack, "flat")).len(), 20 * most);
    }
}
