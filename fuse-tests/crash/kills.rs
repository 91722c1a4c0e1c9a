//! The server is killed at a random moment, again and again.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::common::dice::{Dice, bytes};
use crate::common::{Carrier, Limit, Tree, cases, getting_on, skip, xattr_remove, xattr_set};

use super::layers::{Led, OnDisk, left_in_work, look, merge};
use super::model::{Model, Op, Rules, View, difference};
use super::shared::{self, KEYS, NOBODY, Progress, Version};
use super::writer::{Stopped, Writer, says_gone};

const OURS: Limit = Limit::Fuse("the kernel's overlay has no server to kill");
const LEADING: Limit =
    Limit::Root("only the machine's root has redirects, metadata copies and indexes");

cases! {
    killed_under_load: OURS,
    killed_with_redirects_metadata_copies_and_an_index: LEADING,
    killed_with_metadata_copies: LEADING,
    killed_with_strict_syncing: OURS,
    killed_volatile: OURS,
}

const WRITERS: u32 = 3;
/// Kills until a new upper is begun: a lower file can be copied up only once.
const KILLS_OF_ONE_UPPER: u64 = 5;

/// How the tree is mounted that is to die.
struct Manner {
    options: &'static [&'static str],
    /// Those of them that kernels may not know.
    not_for_kernels: &'static [&'static str],
    /// Of the kills that are wanted, one in so many.
    share: u64,
}

impl Manner {
    const PLAIN: Self = Self {
        options: &[],
        not_for_kernels: &[],
        share: 1,
    };

    fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }
}

fn killed_under_load(t: &Tree) {
    kill_again_and_again(t, &Manner::PLAIN);
}

fn killed_with_redirects_metadata_copies_and_an_index(t: &Tree) {
    let options = &["redirect_dir=on", "metacopy=on", "index=on"];
    kill_again_and_again(
        t,
        &Manner {
            options,
            share: 2,
            ..Manner::PLAIN
        },
    );
}

/// Without an index, where lower links break.
fn killed_with_metadata_copies(t: &Tree) {
    let options = &["redirect_dir=on", "metacopy=on"];
    kill_again_and_again(
        t,
        &Manner {
            options,
            share: 4,
            ..Manner::PLAIN
        },
    );
}

fn killed_with_strict_syncing(t: &Tree) {
    let options: &[_] = if t.is_real_root() {
        &["fsync=strict", "redirect_dir=on", "metacopy=on"]
    } else {
        &["fsync=strict"]
    };
    kill_again_and_again(
        t,
        &Manner {
            options,
            not_for_kernels: &["fsync=strict"],
            share: 4,
        },
    );
}

fn kill_again_and_again(t: &Tree, manner: &Manner) {
    if t.carrier() == Carrier::Kernel {
        skip("the kernel's overlay has no server to kill");
    }
    let asked = super::number(super::KILLS);
    let kills = asked.unwrap_or(if super::thorough() { 200 } else { 30 });
    let share = if t.is_real_root() || asked.is_some() {
        manner.share
    } else {
        manner.share * 2
    };
    let kills = kills.div_ceil(share);
    let seed = super::seed();
    let who = match (t.is_real_root(), manner.options) {
        (true, []) => "root".to_owned(),
        (true, options) => format!("root with {}", options.join(",")),
        (false, []) => "a plain user".to_owned(),
        (false, options) => format!("a plain user with {}", options.join(",")),
    };
    eprintln!(
        "{kills} kills as {who}; again with: --kills {} --seed {seed}",
        kills * manner.share
    );
    for option in manner.options {
        t.option(option);
    }
    plant_lower(t);
    let lower: Vec<Model> = (0..WRITERS)
        .map(|writer| lower_model(t, writer, manner))
        .collect();
    let kernel = kernel_can_mount(t, manner);
    if let Err(why) = &kernel {
        eprintln!("as {who}: no mounts by the kernel's overlay: {why}");
    }
    let mut dice = Dice::new(seed);
    let mut done = 0;
    let mut operations = 0;
    let mut led = Led::default();
    let mut by_kernel = 0;
    while done < kills {
        let mut round = Round::new(&lower, manner, kernel.is_ok());
        t.mount();
        for _ in 0..KILLS_OF_ONE_UPPER.min(kills - done) {
            done += 1;
            round.place = format!("seed {seed}, kill {done}");
            round.kill_once(t, &mut dice);
            getting_on();
        }
        operations += round.writers.iter().map(|w| w.count).sum::<u64>();
        led += round.led;
        by_kernel += round.mounts_by_kernel;
        t.umount();
        assert_eq!(
            left_in_work(t),
            [""; 0],
            "{}: left in work at the end",
            round.place
        );
        clear(t);
    }
    eprintln!("{done} kills as {who}, {operations} operations, {by_kernel} mounts by the kernel");
    assert!(operations > done, "only {operations} operations");
    if done >= 10 {
        let seen = |option, count| assert!(!manner.has(option) || count > 0, "{option}: {led:?}");
        seen("redirect_dir=on", led.redirects);
        seen("metacopy=on", led.metacopies);
        seen("index=on", led.indexed);
        assert!(
            kernel.is_err() || by_kernel > 0,
            "never mounted by the kernel"
        );
    }
    // What every test is checked for at its end.
    t.mount();
}

fn lower_model(t: &Tree, writer: u32, manner: &Manner) -> Model {
    let rules = Rules {
        dirs_move: manner.has("redirect_dir=on"),
        links_stay: manner.has("index=on"),
        owners: t.is_real_root(),
    };
    let links =
        LINKS.map(|(name, other)| (format!("t{writer}/{name}"), format!("t{writer}/{other}")));
    Model::of_lower(&look(&t.low(""), &format!("t{writer}")), &links, rules)
}

/// Whether the kernel's overlay takes such layers at all; asked before anything is in them.
fn kernel_can_mount(t: &Tree, manner: &Manner) -> Result<(), String> {
    let result = as_kernel(t, manner, |t| t.try_mount().map(|()| t.umount()));
    clear(t);
    result
}

fn as_kernel<R>(t: &Tree, manner: &Manner, work: impl FnOnce(&Tree) -> R) -> R {
    t.carry_by(Carrier::Kernel);
    for option in manner.not_for_kernels {
        t.without_option(option);
    }
    let result = work(t);
    for option in manner.not_for_kernels {
        t.option(option);
    }
    t.carry_by(Carrier::Fuse);
    result
}

/// A volatile mount that was killed can't be mounted again by anyone until somebody says that it
/// may. (What the page cache had is there after a kill, whatever was synced.)
fn killed_volatile(t: &Tree) {
    const REFUSED: &str = "incompat/volatile";
    const MANNER: Manner = Manner {
        options: &["volatile"],
        ..Manner::PLAIN
    };
    t.option("volatile");
    plant_lower(t);
    let lower: Vec<Model> = (0..WRITERS)
        .map(|writer| lower_model(t, writer, &MANNER))
        .collect();
    let kernel = kernel_can_mount(t, &MANNER);
    let seed = super::seed();
    let mut dice = Dice::new(seed);
    let mut operations = 0;
    for kill in 0..if super::thorough() { 20 } else { 5 } {
        let mut round = Round::new(&lower, &MANNER, kernel.is_ok());
        round.place = format!("seed {seed}, kill {kill}");
        t.mount();
        let pending = round.load_and_kill(t, &mut dice);
        t.drop_dead_mount();
        for option in [true, false] {
            if !option {
                t.without_option("volatile");
            }
            let refused = t.try_mount().expect_err("it may have lost data");
            assert!(refused.contains(REFUSED), "{refused}");
            if kernel.is_ok() {
                let refused = as_kernel(t, &MANNER, Tree::try_mount);
                assert!(refused.is_err(), "the kernel mounts it");
            }
        }
        let mark = t.work("work").join("incompat/volatile");
        assert!(mark.is_dir(), "a refused mount takes the mark away");
        fs::remove_dir_all(mark).unwrap();
        round.check_disk(t, &pending);
        t.mount();
        round.check_mount(t, "mounted again");
        operations += round.writers.iter().map(|w| w.count).sum::<u64>();
        t.umount();
        assert_eq!(left_in_work(t), [""; 0], "{}", round.place);
        clear(t);
        t.option("volatile");
        getting_on();
    }
    assert!(operations > 0, "nothing was done");
    t.without_option("volatile");
    t.mount();
}

/// Names of one file in each writer's lower tree.
const LINKS: [(&str, &str); 2] = [("a", "d/l"), ("d/b", "g/l")];

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
        for (name, other) in LINKS {
            let path = |name| t.low(&format!("t{writer}/{name}"));
            fs::hard_link(path(name), path(other)).unwrap();
        }
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
    for attr in ["impure", "origin", "uuid"] {
        let _ = xattr_remove(t.upper(""), &t.private(attr));
    }
}

struct Round<'a> {
    writers: Vec<Writer>,
    /// What stood under the shared names at the last check.
    base: Vec<Version>,
    place: String,
    manner: &'a Manner,
    kernel_can: bool,
    mounts_by_kernel: usize,
    led: Led,
}

impl<'a> Round<'a> {
    fn new(lower: &[Model], manner: &'a Manner, kernel_can: bool) -> Self {
        let writers = lower.iter().enumerate();
        Self {
            writers: writers
                .map(|(n, model)| Writer::new(n as u32, model.clone()))
                .collect(),
            base: (0..KEYS)
                .map(|key| Version {
                    writer: NOBODY,
                    number: key as u32,
                })
                .collect(),
            place: String::new(),
            manner,
            kernel_can,
            mounts_by_kernel: 0,
            led: Led::default(),
        }
    }

    /// Mounted before and after.
    fn kill_once(&mut self, t: &Tree, dice: &mut Dice) {
        let pending = self.load_and_kill(t, dice);
        t.drop_dead_mount();
        let by_kernel = self.kernel_can && dice.roll(2) == 0;
        t.as_upgraded(|t| {
            self.check_disk(t, &pending);
            if by_kernel {
                self.mount_by_kernel(t);
            }
        });
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
            let OnDisk { view, strays, led } = merge(t, &writer.root);
            self.led += led;
            // A directory that takes a whiteout's place leaves it at its own until the next call.
            let new = matches!(op, Some(Op::Rename(from, _)) if strays.contains(from));
            let place = &self.place;
            assert!(
                strays.len() <= writer.strays + usize::from(new),
                "{place}: whiteouts over nothing: {strays:?}, {} known ({op:?})",
                writer.strays
            );
            writer.strays = strays.len();
            if let Err(why) = writer.model.settle(op.as_ref(), &view) {
                panic!("{place}: on the disk, after {op:?}:\n{why}");
            }
        }
        let OnDisk { view, strays, .. } = merge(t, "shared");
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
        as_kernel(t, self.manner, |t| {
            if let Err(why) = t.try_mount() {
                panic!("{}: the kernel doesn't mount it: {why}", self.place);
            }
            self.check_mount(t, "mounted by the kernel");
            t.umount();
        });
        self.mounts_by_kernel += 1;
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
