//! `StepCache`: steps of builds as layers, on the kernel's overlay and on FUSE.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use overfall::backend::{Backend, Carrier};
use overfall::steps::{Begun, Digest, Outcome, Removal, Stack, Step, StepCache, Work};
use overfall::sys::process;
use overfall::union::Owners;

use crate::bench::{By, Case, Place, mounts_below, skip, until};
use crate::common::{self, xattr_get, xattr_set};
use crate::planted::{look, plant};

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[Case] = &[$((stringify!($name), $name)),*];
    };
}

cases! {
    a_build_begins_where_something_changed,
    layers_hold_what_was_changed,
    flattened_it_is_what_was_mounted,
    a_flattened_tree_is_on_its_own,
    sixty_steps,
    abandoned_work_leaves_no_trace,
    two_builds_make_each_step_once,
    who_waits_builds_when_the_other_gives_up,
    damaged_layers_are_made_again,
    killed_builds_leave_a_sound_cache,
    what_lives_is_not_swept,
    unused_layers_are_removed,
    a_stack_is_found_again,
    owners_that_are_recorded,
    bad_input_is_one_line,
}

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

fn data_of(place: &Place, digest: Digest) -> PathBuf {
    let layers = place.dir.join("cache/layers");
    let wanted = digest.to_string();
    let found = names(&layers).into_iter().find(|name| {
        fs::read_to_string(layers.join(name).join("manifest"))
            .is_ok_and(|text| text.contains(&format!("\"digest\": \"{wanted}\"")))
    });
    layers.join(found.unwrap())
}

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

/// With times of directories, which `look` leaves out.
fn look_closely(top: &Path) -> common::Snapshot {
    look(top).adjust(|path, node| {
        let meta = top.join(path).symlink_metadata().unwrap();
        node.mtime = (meta.mtime(), meta.mtime_nsec());
        true
    })
}

fn flattened_it_is_what_was_mounted(place: &Place) {
    let cache = open(place);
    let base = plant(place, "base");
    let mut stack = Stack::on([base], Digest::of(b"base"));
    let add: [&dyn Fn(&Path); 4] = [
        &|root| {
            fs::write(root.join("dir/one"), "changed\n").unwrap();
            fs::create_dir_all(root.join("new/er/est")).unwrap();
            fs::hard_link(root.join("dir/one"), root.join("new/link")).unwrap();
        },
        &|root| {
            fs::remove_dir_all(root.join("dir/deep")).unwrap();
            fs::write(root.join("dir/deep"), "a file now").unwrap();
            fs::remove_file(root.join("suid")).unwrap();
            fs::create_dir(root.join("suid")).unwrap();
        },
        &|root| {
            fs::remove_file(root.join("dir/deep")).unwrap();
            fs::create_dir(root.join("dir/deep")).unwrap();
            fs::remove_dir_all(root.join("new")).unwrap();
            xattr_set(root.join("dir"), "user.more", b"more").unwrap();
            xattr_set(root.join("dir"), "user.overlay.mine", b"escaped").unwrap();
        },
        &|root| {
            let sparse = File::options()
                .write(true)
                .open(root.join("sparse"))
                .unwrap();
            sparse.set_len(64 << 20).unwrap();
            fs::rename(root.join("fifo"), root.join("dir/deep/fifo")).unwrap();
            if place.has_ids() {
                chown(root.join("closed"), Some(1234), Some(4321)).unwrap();
            }
        },
    ];
    for (number, add) in add.iter().enumerate() {
        let step = work(&cache, &stack, &Step::new("", number.to_string()));
        add(step.root());
        stack = step.commit().unwrap();
    }
    let step = work(&cache, &stack, &Step::new("", "look"));
    let mounted = look_closely(step.root());
    step.abandon().unwrap();
    let dest = flat(place, &cache, &stack, "flat");
    let links = |snapshot: common::Snapshot| {
        snapshot.adjust(|path, node| {
            // Of each the other name was changed or removed. An overlay counts it all the same.
            if [Path::new("dir/one"), Path::new("dir/two")].contains(&path) {
                node.nlink = 1;
            }
            true
        })
    };
    links(look_closely(&dest)).assert_same("flat", &links(mounted), "mounted");
    let sparse = dest.join("sparse").metadata().unwrap();
    assert!(
        sparse.blocks() * 512 < 4 << 20,
        "{} blocks",
        sparse.blocks()
    );
    assert_eq!(
        xattr_get(dest.join("dir"), "user.overlay.mine").unwrap(),
        b"escaped"
    );
}

fn a_flattened_tree_is_on_its_own(place: &Place) {
    let cache = open(place);
    let step = work(&cache, &seed(), &Step::new("", "links"));
    fs::write(step.root().join("one"), "old\n").unwrap();
    fs::hard_link(step.root().join("one"), step.root().join("two")).unwrap();
    let stack = step.commit().unwrap();
    let dest = flat(place, &cache, &stack, "flat");
    let [one, two] = ["one", "two"].map(|name| dest.join(name).metadata().unwrap());
    assert_eq!((one.nlink(), one.ino()), (2, two.ino()));
    File::options()
        .append(true)
        .open(dest.join("one"))
        .unwrap()
        .write_all(b"y\n")
        .unwrap();
    assert_eq!(fs::read_to_string(dest.join("two")).unwrap(), "old\ny\n");
    let data = data_of(place, stack.digest()).join("d");
    assert_eq!(fs::read_to_string(data.join("one")).unwrap(), "old\n");
    assert!(
        cache
            .find(&seed(), &Step::new("", "links"))
            .unwrap()
            .is_some()
    );
    let error = cache.flatten(&stack, &dest).unwrap_err().to_string();
    assert!(error.contains("already"), "{error}");
    // Where it fails, nothing is there.
    let before = names(&place.dir);
    cache
        .flatten(&stack, &place.dir.join("missing/flat"))
        .unwrap_err();
    assert_eq!(names(&place.dir), before);
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

fn two_builds_make_each_step_once(place: &Place) {
    const STEPS: usize = 6;
    drop(open(place));
    let log = place.dir.join("log");
    let builders: Vec<_> = (0..4)
        .map(|_| {
            process::fork(|| {
                let cache = open(place);
                let mut stack = seed();
                for number in 0..STEPS {
                    stack = match cache
                        .begin(&stack, &Step::new("", number.to_string()))
                        .unwrap()
                    {
                        Begun::Hit(stack) => stack,
                        Begun::Work(work) => {
                            let mut log = File::options()
                                .create(true)
                                .append(true)
                                .open(&log)
                                .unwrap();
                            writeln!(log, "{number}").unwrap();
                            assert_eq!(names(work.root()).len(), number);
                            fs::write(work.root().join(number.to_string()), "").unwrap();
                            std::thread::sleep(Duration::from_millis(20));
                            work.commit().unwrap()
                        }
                    };
                }
                0
            })
            .unwrap()
        })
        .collect();
    for builder in builders {
        let ended = waitpid(builder, None).unwrap();
        assert!(
            matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 0)),
            "{ended:?}"
        );
    }
    let mut run: Vec<String> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(String::from)
        .collect();
    run.sort();
    assert_eq!(
        run,
        (0..STEPS)
            .map(|number| number.to_string())
            .collect::<Vec<_>>()
    );
}

fn who_waits_builds_when_the_other_gives_up(place: &Place) {
    let cache = open(place);
    let step = Step::new("", "step");
    let (wait, go) = std::io::pipe().unwrap();
    let other = process::fork(|| {
        rustix::io::read(&wait, &mut [0; 1][..]).unwrap();
        let work = work(&open(place), &seed(), &step);
        fs::write(work.root().join("by the other"), "").unwrap();
        work.commit().unwrap();
        0
    })
    .unwrap();
    let first = work(&cache, &seed(), &step);
    rustix::io::write(&go, b"x").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    // What this process forks meanwhile doesn't keep the lock.
    let bystander = process::fork(|| {
        std::thread::sleep(Duration::from_secs(60));
        0
    })
    .unwrap();
    first.abandon().unwrap();
    waitpid(other, None).unwrap();
    kill(bystander, Signal::SIGKILL).unwrap();
    waitpid(bystander, None).unwrap();
    match cache.begin(&seed(), &step).unwrap() {
        Begun::Hit(stack) => {
            let data = data_of(place, stack.digest()).join("d");
            assert_eq!(names(&data), ["by the other".to_owned()].into());
        }
        Begun::Work(_) => panic!("the other one's layer isn't there"),
    }
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

fn what_lives_is_not_swept(place: &Place) {
    let cache = open(place);
    let mine = work(&cache, &seed(), &Step::new("", "mine"));
    fs::write(mine.root().join("file"), "").unwrap();
    let other = process::fork(|| {
        let cache = open(place);
        cache
            .remove_unused(&[], Duration::ZERO, Removal::Real)
            .unwrap();
        0
    });
    waitpid(other.unwrap(), None).unwrap();
    fs::write(mine.root().join("more"), "").unwrap();
    let stack = mine.commit().unwrap();
    assert_eq!(cache.steps(&stack).unwrap()[0].files, 2);
    // A killed one in this very namespace: mounted, and nobody's.
    let (read, write) = std::io::pipe().unwrap();
    let killed = process::fork(|| {
        let cache = open(place);
        let work = work(&cache, &seed(), &Step::new("", "killed"));
        fs::write(work.root().join("file"), "").unwrap();
        rustix::io::write(&write, b"x").unwrap();
        std::thread::sleep(Duration::from_secs(60));
        drop(work);
        0
    })
    .unwrap();
    rustix::io::read(&read, &mut [0; 1][..]).unwrap();
    let dir = place.dir.join("cache");
    assert_eq!(mounts_below(&dir).len(), 1);
    drop(open(place));
    assert_eq!(
        (mounts_below(&dir).len(), names(&dir.join("new")).len()),
        (1, 1)
    );
    kill(killed, Signal::SIGKILL).unwrap();
    waitpid(killed, None).unwrap();
    drop(open(place));
    assert!(mounts_below(&dir).is_empty());
    assert!(names(&dir.join("new")).is_empty());
    assert_eq!(names(&dir.join("locks")).len(), 1);
    assert_eq!(names(&dir.join("locks")).len(), 1);
}

fn unused_layers_are_removed(place: &Place) {
    let (one, _) = build(&open(place), &["a", "b", "c"]);
    let (two, _) = build(&open(place), &["a", "x"]);
    let cache = open(place);
    let digests = |layers: Vec<overfall::steps::Layer>| -> BTreeSet<Digest> {
        layers.into_iter().map(|layer| layer.digest).collect()
    };
    let only_two = digests(cache.steps(&one).unwrap())
        .difference(&digests(cache.steps(&two).unwrap()))
        .copied()
        .collect::<BTreeSet<_>>();
    let remove =
        |roots: &[Digest], age, removal| digests(cache.remove_unused(roots, age, removal).unwrap());
    let (now, day) = (Duration::ZERO, Duration::from_secs(86400));
    assert!(remove(&[one.digest(), two.digest()], now, Removal::Real).is_empty());
    assert!(remove(&[], day, Removal::Real).is_empty());
    assert_eq!(remove(&[two.digest()], now, Removal::DryRun), only_two);
    assert_eq!(cache.layers().unwrap().len(), 4);
    // One that somebody holds stays, with all below it.
    let holder = open(place);
    let held = holder.hold(&one).unwrap();
    assert!(held.lowers().iter().all(|lower| lower.is_dir()));
    assert!(remove(&[two.digest()], now, Removal::Real).is_empty());
    drop((held, holder));
    assert_eq!(remove(&[two.digest()], now, Removal::Real), only_two);
    assert_eq!(
        digests(cache.layers().unwrap()),
        digests(cache.steps(&two).unwrap())
    );
    cache.steps(&one).unwrap_err();
    let error = cache.hold(&one).unwrap_err().to_string();
    assert!(
        error.contains("there any more") && error.lines().count() == 1,
        "{error}"
    );
    let error = cache
        .begin(&one, &Step::new("", "d"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("there any more"), "{error}");
    // Everything, damaged ones too.
    fs::write(data_of(place, two.layers()[0].0).join("manifest"), "{").unwrap();
    let cache = open(place);
    assert_eq!(
        cache.remove_unused(&[], now, Removal::Real).unwrap().len(),
        1
    );
    for part in ["layers", "locks", "new"] {
        assert!(
            names(&place.dir.join("cache").join(part)).is_empty(),
            "{part}"
        );
    }
    let (_, run) = build(&cache, &["a", "x"]);
    assert_eq!(run, ["a", "x"]);
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
    if place.by == By::Kernel {
        skip("on FUSE alone");
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
