//! The server is killed at a random moment, again and again.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::common::{Carrier, Limit, Tree, cases, getting_on, xattr_set};

use super::dice::{Dice, bytes};
use super::layers::{OnDisk, left_in_work, look, merge};
use super::model::{Model, Op, View, difference};
use super::shared::{self, KEYS, NOBODY, Progress, Version};
use super::writer::{Stopped, Writer, says_gone};

const OURS: Limit = Limit::Fuse("the kernel's overlay has no server to kill");

cases! {
    killed_under_load: OURS,
}

const WRITERS: u32 = 3;
/// Kills until a new upper is begun: a lower file can be copied up only once.
const KILLS_OF_ONE_UPPER: u64 = 5;

fn killed_under_load(t: &Tree) {
    let kills = super::number(super::KILLS).unwrap_or(if super::thorough() { 200 } else { 30 });
    let seed = super::number(super::SEED).unwrap_or_else(|| u64::from(std::process::id()));
    let who = if t.is_real_root() {
        "root"
    } else {
        "a plain user"
    };
    eprintln!("{kills} kills as {who}; again with: --kills {kills} --seed {seed}");
    plant_lower(t);
    let lower: Vec<View> = (0..WRITERS)
        .map(|n| look(&t.low(""), &format!("t{n}")))
        .collect();
    let mut dice = Dice::new(seed);
    let mut done = 0;
    let mut operations = 0;
    while done < kills {
        let mut round = Round::new(&lower);
        t.mount();
        for _ in 0..KILLS_OF_ONE_UPPER.min(kills - done) {
            done += 1;
            round.place = format!("seed {seed}, kill {done}");
            round.kill_once(t, &mut dice);
            getting_on();
        }
        operations += round.writers.iter().map(|w| w.count).sum::<u64>();
        t.umount();
        assert_eq!(
            left_in_work(t),
            [""; 0],
            "{}: left in work at the end",
            round.place
        );
        clear(t);
    }
    eprintln!("{done} kills as {who}, {operations} operations");
    // What every test is checked for at its end.
    t.mount();
}

/// Files of all sizes, in directories that are merged and ones that come to be replaced.
fn plant_lower(t: &Tree) {
    const SIZES: [usize; 9] = [0, 1, 100, 4096, 5000, 65_536, 70_001, 300_000, 2 << 20];
    fs::create_dir(t.low("shared")).unwrap();
    for key in 0..KEYS {
        let version = Version {
            writer: NOBODY,
            number: key as u32,
        };
        fs::write(t.low(&shared::path(key)), version.data()).unwrap();
    }
    for writer in 0..WRITERS {
        for dir in ["", "/d", "/d/s", "/e", "/g"] {
            fs::create_dir(t.low(&format!("t{writer}{dir}"))).unwrap();
        }
        for (number, name) in [
            "a", "b", "c", "f", "h", "d/a", "d/b", "d/c", "d/s/a", "d/s/b", "e/a", "e/b",
        ]
        .iter()
        .enumerate()
        {
            let path = t.low(&format!("t{writer}/{name}"));
            let size = SIZES[(number + writer as usize) % SIZES.len()];
            fs::write(&path, bytes(number as u64, size)).unwrap();
            if number % 3 == 0 {
                xattr_set(&path, "user.mark", b"from the lower").unwrap();
            }
        }
        std::os::unix::fs::symlink("target", t.low(&format!("t{writer}/e/n"))).unwrap();
    }
}

/// Empties the upper layer and the work directory.
fn clear(t: &Tree) {
    for dir in [t.upper(""), t.work("")] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
    }
    for attr in ["impure", "origin"] {
        let _ = crate::common::xattr_remove(t.upper(""), &t.private(attr));
    }
}

struct Round {
    writers: Vec<Writer>,
    /// What stood under the shared names at the last check.
    base: Vec<Version>,
    place: String,
}

impl Round {
    fn new(lower: &[View]) -> Self {
        let writers = lower.iter().enumerate();
        Self {
            writers: writers
                .map(|(n, view)| Writer::new(n as u32, Model::of_lower(view)))
                .collect(),
            base: (0..KEYS)
                .map(|key| Version {
                    writer: NOBODY,
                    number: key as u32,
                })
                .collect(),
            place: String::new(),
        }
    }

    /// Mounted before and after.
    fn kill_once(&mut self, t: &Tree, dice: &mut Dice) {
        let pending = self.load_and_kill(t, dice);
        t.drop_dead_mount();
        self.check_disk(t, &pending);
        if dice.roll(2) == 0 {
            self.mount_by_kernel(t);
        }
        t.mount();
        self.check_mount(t, "mounted again");
        let left = left_in_work(t);
        assert!(left.is_empty(), "{}: not swept: {left:?}", self.place);
        for writer in &mut self.writers {
            writer.checked();
        }
    }

    /// Lets the writers work and kills the server under them. What each was doing comes back.
    fn load_and_kill(&mut self, t: &Tree, dice: &mut Dice) -> Vec<Option<Op>> {
        let server = t.server();
        let mount = t.at("");
        let (killed, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        // Up to a quarter of a second, short ones as often as long ones.
        let scale = 1024 << dice.roll(8);
        let delay = Duration::from_micros((scale + dice.roll(scale)) as u64);
        let place = self.place.clone();
        let (stopped, reader) = thread::scope(|scope| {
            let reader = scope.spawn(|| read_shared(&mount, &killed));
            let threads: Vec<_> = self
                .writers
                .iter_mut()
                .map(|writer| {
                    let mut dice = Dice::new(dice.roll(usize::MAX) as u64);
                    let (mount, killed, stop) = (&mount, &killed, &stop);
                    scope.spawn(move || writer.work(mount, &mut dice, killed, stop))
                })
                .collect();
            thread::sleep(delay);
            killed.store(true, Ordering::SeqCst);
            kill_process(server, Signal::KILL).expect("kill");
            let stopped: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            (stopped, reader.join())
        });
        if let Err(why) = reader.expect("the reader") {
            panic!("{place}: {why}");
        }
        let mut pending = Vec::new();
        for stopped in stopped {
            match stopped.expect("a writer") {
                Stopped::Cut(op) => pending.push(Some(op)),
                Stopped::Told => pending.push(None),
                Stopped::Failed(op, error) => panic!("{place}: {op:?}: {error}"),
            }
        }
        pending
    }

    fn check_disk(&mut self, t: &Tree, pending: &[Option<Op>]) {
        for (writer, op) in self.writers.iter_mut().zip(pending) {
            let OnDisk { view, mut strays } = merge(t, &writer.root);
            // A directory that takes a whiteout's place leaves it at its own until the next call.
            if let Some(Op::Rename(from, _)) = op {
                strays.remove(from);
            }
            let place = &self.place;
            assert!(
                strays.is_empty(),
                "{place}: whiteouts over nothing: {strays:?} ({op:?})"
            );
            if let Err(why) = writer.model.settle(op.as_ref(), &view) {
                panic!("{place}: on the disk, after {op:?}:\n{why}");
            }
        }
        let OnDisk { view, strays } = merge(t, "shared");
        assert!(
            strays.is_empty(),
            "{}: whiteouts over nothing: {strays:?}",
            self.place
        );
        self.check_shared(&view);
    }

    fn check_shared(&mut self, view: &View) {
        assert_eq!(
            view.len(),
            KEYS + 1,
            "{}: shared names: {:?}",
            self.place,
            view.keys()
        );
        let progress: Vec<Progress> = self.writers.iter().map(|w| w.progress).collect();
        for key in 0..KEYS {
            let Some(super::model::Seen::File { data, .. }) = view.get(&shared::path(key)) else {
                panic!("{}: {} is lost", self.place, shared::path(key));
            };
            let judged = Version::parse(data).and_then(|found| {
                shared::judge(key, found, self.base[key], &progress).map(|()| found)
            });
            match judged {
                Ok(found) => self.base[key] = found,
                Err(why) => panic!("{}: {}: {why}", self.place, shared::path(key)),
            }
        }
    }

    fn check_mount(&mut self, t: &Tree, how: &str) {
        for writer in &self.writers {
            let (expected, seen) = (writer.model.view(), look(&t.at(""), &writer.root));
            assert!(
                expected == seen,
                "{}: {how}:\n{}",
                self.place,
                difference(&expected, &seen)
            );
        }
        let view = look(&t.at(""), "shared");
        for key in 0..KEYS {
            let Some(super::model::Seen::File { data, .. }) = view.get(&shared::path(key)) else {
                panic!("{}: {how}: {} is lost", self.place, shared::path(key));
            };
            assert_eq!(
                Version::parse(data),
                Ok(self.base[key]),
                "{}: {how}",
                self.place
            );
        }
    }

    fn mount_by_kernel(&mut self, t: &Tree) {
        t.carry_by(Carrier::Kernel);
        if t.try_mount().is_ok() {
            self.check_mount(t, "mounted by the kernel");
            t.umount();
        }
        t.carry_by(Carrier::Fuse);
    }
}

/// Reads the shared names until the server is gone: each is a whole version at every moment.
fn read_shared(mount: &Path, killed: &AtomicBool) -> Result<(), String> {
    for key in (0..KEYS).cycle() {
        let path = shared::path(key);
        match fs::read(mount.join(&path)) {
            Err(error) if killed.load(Ordering::SeqCst) && says_gone(&error) => return Ok(()),
            Err(error) => return Err(format!("reading {path}: {error}")),
            Ok(data) => {
                Version::parse(&data).map_err(|why| format!("reading {path}: {why}"))?;
            }
        }
        if killed.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
    Ok(())
}
