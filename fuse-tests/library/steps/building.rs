//! Builds: what is run, what is taken, what a layer holds.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use overfall::backend::Carrier;
use overfall::steps::{Digest, Outcome, Stack, Step, StepCache};
use overfall::union::Owners;

use super::{build, data_of, flat, names, open, seed, work};
use crate::bench::{By, Case, Place, Way, skip};
use crate::common::xattr_get;
use crate::planted::{look, plant};

pub(crate) const CASES: &[Case] = &[
    (
        "a_build_begins_where_something_changed",
        a_build_begins_where_something_changed,
    ),
    ("layers_hold_what_was_changed", layers_hold_what_was_changed),
    ("sixty_steps", sixty_steps),
    ("a_stack_is_found_again", a_stack_is_found_again),
    ("owners_that_are_recorded", owners_that_are_recorded),
    ("bad_input_is_one_line", bad_input_is_one_line),
];

fn a_build_begins_where_something_changed(place: &Place) {
    let (first, run) = build(&open(place), &["a", "b", "c"]);
    assert_eq!(run, ["a", "b", "c"]);
    assert!(first.layers().iter().all(|layer| layer.1 == Outcome::Built));
    // Another process, so to say.
    let cache = open(place);
    let (second, run) = build(&cache, &["a", "b", "c"]);
    assert!(run.is_empty());
    assert_eq!(second.digest(), first.digest());
    assert!(second.layers().iter().all(|layer| layer.1 == Outcome::Hit));
    let (third, run) = build(&cache, &["a", "x", "c"]);
    assert_eq!(run, ["x", "c"]);
    assert_ne!(third.digest(), first.digest());
    let list = cache.steps(&third).unwrap();
    let shown: Vec<_> = list
        .iter()
        .map(|layer| {
            (
                layer.name.as_str(),
                layer.files,
                layer.bytes,
                layer.outcome(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("step 0", 1, 1, Outcome::Hit),
            ("step 1", 1, 1, Outcome::Built),
            ("step 2", 1, 1, Outcome::Built)
        ]
    );
    assert!(
        list.iter()
            .all(|layer| layer.unused_for() < Duration::from_secs(60))
    );
    assert_eq!(list[1].parent, list[0].digest);
    let dest = flat(place, &cache, &third, "flat");
    assert_eq!(names(&dest), ["0", "1", "2"].map(String::from).into());
    assert_eq!(fs::read_to_string(dest.join("1")).unwrap(), "x");
    assert_eq!(cache.layers().unwrap().len(), 5);
    assert!(cache.find(&seed(), &Step::new("", "a")).unwrap().is_some());
    assert!(cache.find(&seed(), &Step::new("", "b")).unwrap().is_none());
    assert!(names(&place.dir.join("cache/new")).is_empty());
}

fn layers_hold_what_was_changed(place: &Place) {
    let base = plant(place, "base");
    let before = look(&base);
    let cache = open(place);
    let stack = Stack::on([base.clone()], Digest::of(b"base"));
    let step = Step::new("change", "change");
    let first = work(&cache, &stack, &step);
    let wanted = match place.by {
        By::Kernel => Carrier::Native,
        _ => Carrier::Fuse,
    };
    assert_eq!(first.carrier(), wanted);
    assert_eq!(first.digest(), cache.digest(&stack, &step));
    let root = first.root().to_path_buf();
    look(&root).assert_same("the tree", &before, "the base");
    fs::remove_file(root.join("file")).unwrap();
    fs::remove_dir_all(root.join("dir")).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/new"), "new\n").unwrap();
    fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(0o700)).unwrap();
    let stack = first.commit().unwrap();
    look(&base).assert_same("the base", &before, "before");

    let data = data_of(place, stack.digest()).join("d");
    assert_eq!(
        names(&data),
        ["dir", "file", "suid"].map(String::from).into()
    );
    let whiteout = data.join("file").symlink_metadata().unwrap();
    assert_eq!(
        (whiteout.mode() & 0o170_000, whiteout.rdev()),
        (0o020_000, 0)
    );
    assert_eq!(
        xattr_get(data.join("dir"), "user.overlay.opaque").unwrap(),
        b"y"
    );
    let layer = &cache.steps(&stack).unwrap()[0];
    // The base counts for nothing.
    assert_eq!((layer.files, layer.bytes), (4, 4 + 3));

    let second = work(&cache, &stack, &Step::new("look", "look"));
    let root = second.root();
    assert!(!root.join("file").exists());
    assert_eq!(names(&root.join("dir")), ["new".to_owned()].into());
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o751);
    fs::write(root.join("file"), "back\n").unwrap();
    let stack = second.commit().unwrap();
    let dest = flat(place, &cache, &stack, "flat");
    assert_eq!(fs::read_to_string(dest.join("file")).unwrap(), "back\n");
    assert_eq!(names(&dest.join("dir")), ["new".to_owned()].into());
    assert_eq!(dest.join("suid").metadata().unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::read(dest.join("closed/in")).unwrap(), b"in\n");
}

fn sixty_steps(place: &Place) {
    let cache = open(place);
    let mut stack = seed();
    for number in 0..60 {
        let step = work(
            &cache,
            &stack,
            &Step::new(format!("{number}"), format!("step {number}")),
        );
        let root = step.root();
        assert_eq!(names(root).len(), number.min(40) + usize::from(number > 0));
        fs::write(root.join("last"), number.to_string()).unwrap();
        fs::write(root.join(number.to_string()), "").unwrap();
        if number >= 40 {
            fs::remove_file(root.join((number - 40).to_string())).unwrap();
        }
        stack = step.commit().unwrap();
    }
    let step = work(&cache, &stack, &Step::new("", "look"));
    let seen = names(step.root());
    assert_eq!(fs::read_to_string(step.root().join("last")).unwrap(), "59");
    step.abandon().unwrap();
    let wanted: BTreeSet<String> = (20..60)
        .map(|number: i32| number.to_string())
        .chain(["last".to_owned()])
        .collect();
    assert_eq!(seen, wanted);
    assert_eq!(names(&flat(place, &cache, &stack, "flat")), wanted);
    assert_eq!(
        open(place)
            .stack(stack.digest())
            .unwrap()
            .unwrap()
            .layers()
            .len(),
        60
    );
}

fn a_stack_is_found_again(place: &Place) {
    let base = plant(place, "ba,se:\\");
    let cache = open(place);
    let mut stack = Stack::on([base.clone()], Digest::of(b"base"));
    let top = stack.digest();
    assert_eq!(cache.stack(top).unwrap(), None);
    for text in ["a", "b"] {
        let step = work(&cache, &stack, &Step::new("", text));
        fs::write(step.root().join(text), "").unwrap();
        stack = step.commit().unwrap();
    }
    let found = open(place).stack(stack.digest()).unwrap().unwrap();
    assert_eq!(found, stack);
    assert_eq!(found.base(), [base]);
    // Others build on it, as on any other.
    let (cache, mine) = (open(place), Step::new("", "mine"));
    let first = work(&cache, &found, &mine);
    assert!(first.root().join("a").exists() && first.root().join("closed").exists());
    first.commit().unwrap();
    // Mounted read-only, for a run.
    let held = cache.hold(&found).unwrap();
    let target = place.make("target");
    let lowers = held.lowers().iter().map(PathBuf::as_path);
    let mounted = overfall::Overlay::readonly(lowers, &target)
        .configure(|options| options.userxattr = true)
        .mount()
        .unwrap();
    assert!(target.join("b").exists());
    mounted.unmount().unwrap();
}

fn owners_that_are_recorded(place: &Place) {
    let plain = StepCache::open(place.dir.join("cache")).unwrap();
    let cache = StepCache::open(place.dir.join("cache"))
        .unwrap()
        .owners(Owners::FakeRoot);
    let step = Step::new("", "step");
    assert_ne!(cache.digest(&seed(), &step), plain.digest(&seed(), &step));
    if place.by == By::Kernel || place.way == Way::Bare {
        skip("on FUSE, for the root of a namespace");
    }
    // Nobody else reads its records.
    let first = work(&cache, &seed(), &step);
    assert_eq!(first.carrier(), Carrier::Fuse);
    fs::write(first.root().join("file"), "x").unwrap();
    let stack = first.commit().unwrap();
    assert_eq!(
        fs::read(flat(place, &cache, &stack, "flat").join("file")).unwrap(),
        b"x"
    );
    assert!(plain.find(&seed(), &step).unwrap().is_none());
}

fn bad_input_is_one_line(place: &Place) {
    let other = place.make("other");
    fs::write(other.join("thesis"), "").unwrap();
    let cache = open(place);
    let missing = Stack::on([place.dir.join("missing")], Digest::of(b"x"));
    let errors = [
        StepCache::open(&other).unwrap_err(),
        StepCache::open(other.join("thesis")).unwrap_err(),
        cache.begin(&missing, &Step::new("", "")).unwrap_err(),
        cache
            .flatten(&missing, &place.dir.join("flat"))
            .unwrap_err(),
        cache
            .begin(
                &Stack::on(vec![other.clone(); 500], Digest::of(b"x")),
                &Step::new("", ""),
            )
            .unwrap_err(),
    ];
    for error in errors {
        let error = error.to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(": /"), "{error}");
    }
    assert_eq!(names(&other).len(), 1);
    assert!(names(&place.dir.join("cache/new")).is_empty());
}
