//! Several builds on one cache, and what they leave each other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use overfall::steps::{Begun, Digest, Removal, Step};
use overfall::sys::process;

use super::{build, data_of, names, open, seed, work};
use crate::bench::{Case, Place, mounts_below};

pub(crate) const CASES: &[Case] = &[
    (
        "two_builds_make_each_step_once",
        two_builds_make_each_step_once,
    ),
    (
        "who_waits_takes_what_the_other_made",
        who_waits_takes_what_the_other_made,
    ),
    (
        "who_waits_builds_when_the_other_gives_up",
        who_waits_builds_when_the_other_gives_up,
    ),
    ("what_lives_is_not_swept", what_lives_is_not_swept),
    ("unused_layers_are_removed", unused_layers_are_removed),
];

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

/// The other build goes on for long after it has made the step.
fn who_waits_takes_what_the_other_made(place: &Place) {
    drop(open(place));
    let (read, write) = std::io::pipe().unwrap();
    let step = Step::new("", "step");
    let other = process::fork(|| {
        let cache = open(place);
        let work = work(&cache, &seed(), &step);
        rustix::io::write(&write, b"x").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        work.commit().unwrap();
        std::thread::sleep(Duration::from_secs(60));
        0
    })
    .unwrap();
    rustix::io::read(&read, &mut [0; 1][..]).unwrap();
    let start = std::time::Instant::now();
    assert!(matches!(
        open(place).begin(&seed(), &step),
        Ok(Begun::Hit(_))
    ));
    assert!(start.elapsed() < Duration::from_secs(30));
    // Damaged while somebody uses it: nothing may be taken away from him.
    let stack = open(place).find(&seed(), &step).unwrap().unwrap();
    fs::write(data_of(place, stack.digest()).join("d/extra"), "").unwrap();
    let error = open(place).begin(&seed(), &step).unwrap_err().to_string();
    assert!(error.contains("another process uses it"), "{error}");
    kill(other, Signal::SIGKILL).unwrap();
    waitpid(other, None).unwrap();
    work(&open(place), &seed(), &step).commit().unwrap();
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
