//! Random operations on two stacks at once, the kernel's and ours: every call must end in the same
//! way, and the trees and upper layers must be the same at the end.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::RenameFlags;

use crate::common::dice::Dice;
use crate::common::{
    Carrier, Limit, Node, Snapshot, Tree, cases, rename2, set_times, skip, xattr_remove, xattr_set,
};

const COMPARED: Limit = Limit::Fuse("it is the kernel that is compared with");

cases! {
    sequences_with_few_names: COMPARED,
    sequences_over_remounts: COMPARED,
    long_sequence: COMPARED,
}

impl Dice {
    /// A path that is there, or one of a few that may be.
    fn path(&mut self, there: &[String]) -> String {
        if !there.is_empty() && self.roll(5) < 3 {
            return there[self.roll(there.len())].clone();
        }
        const DIRS: [&str; 6] = ["", "", "d/", "e/", "d/s/", "n/"];
        const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "s", "n"];
        format!("{}{}", DIRS[self.roll(DIRS.len())], NAMES[self.roll(NAMES.len())])
    }
}

/// One operation, with everything that chance decides about it.
#[derive(Debug, Clone)]
enum Op {
    Write(String, usize),
    Append(String),
    Truncate(String, u64),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    RemoveAll(String),
    Rename(String, String),
    RenameFlags(String, String, bool),
    Link(String, String),
    Symlink(String),
    Chmod(String, u32),
    Times(String),
    SetXattr(String),
    RemoveXattr(String),
    Read(String),
    List(String),
}

impl Op {
    fn random(dice: &mut Dice, there: &[String]) -> Self {
        let path = dice.path(there);
        match dice.roll(26) {
            0 | 1 => Op::Write(path, dice.roll(3) * 3000),
            2 | 3 => Op::Append(path),
            4 => Op::Truncate(path, dice.roll(9) as u64),
            5..=7 => Op::Unlink(path),
            8 | 9 => Op::Mkdir(path),
            10 => Op::Rmdir(path),
            11 => Op::RemoveAll(path),
            13..=15 => Op::Rename(path, dice.path(there)),
            16 => Op::RenameFlags(path, dice.path(there), dice.roll(2) == 0),
            17 => Op::Link(path, dice.path(there)),
            18 => Op::Symlink(path),
            19 => Op::Chmod(path, 0o600 | dice.roll(64) as u32),
            20 => Op::Times(path),
            21 => Op::SetXattr(path),
            22 => Op::RemoveXattr(path),
            _ => if dice.roll(2) == 0 { Op::Read(path) } else { Op::List(path) },
        }
    }

    /// What the call gives: a value to compare, or an error number.
    fn run(&self, root: &Path) -> Result<String, i32> {
        let at = |path: &String| root.join(path);
        let done: io::Result<String> = match self {
            Op::Write(path, size) => fs::write(at(path), "w".repeat(*size + 3)).map(none),
            Op::Append(path) => OpenOptions::new()
                .append(true)
                .open(at(path))
                .and_then(|mut file| file.write_all(b"+"))
                .map(none),
            Op::Truncate(path, size) => OpenOptions::new()
                .write(true)
                .open(at(path))
                .and_then(|file| file.set_len(*size))
                .map(none),
            Op::Unlink(path) => fs::remove_file(at(path)).map(none),
            Op::Mkdir(path) => fs::create_dir(at(path)).map(none),
            Op::Rmdir(path) => fs::remove_dir(at(path)).map(none),
            Op::RemoveAll(path) => fs::remove_dir_all(at(path)).map(none),
            Op::Rename(from, to) => fs::rename(at(from), at(to)).map(none),
            Op::RenameFlags(from, to, exchange) => {
                let flags = if *exchange { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
                rename2(&at(from), &at(to), flags).map(none)
            }
            Op::Link(from, to) => fs::hard_link(at(from), at(to)).map(none),
            Op::Symlink(path) => symlink("a", at(path)).map(none),
            Op::Chmod(path, mode) => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)).map(none)
            }
            Op::Times(path) => set_times(&at(path), (77, 7), (88, 8)).map(none),
            Op::SetXattr(path) => xattr_set(at(path), "user.x", b"1").map(none),
            Op::RemoveXattr(path) => xattr_remove(at(path), "user.x").map(none),
            Op::Read(path) => fs::read(at(path)).map(|data| format!("{} bytes", data.len())),
            Op::List(path) => fs::read_dir(at(path)).map(|entries| {
                let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                format!("{names:?}")
            }),
        };
        done.map_err(|error| error.raw_os_error().unwrap_or(-1))
    }
}

fn none(_: ()) -> String {
    String::new()
}

fn plan(t: &Tree) {
    t.lower(&["a=lower a", "d/a=1", "d/b=2", "d/s/c=3", "l->a", "e/a=4", "s=file", "c!"]);
    t.lower_at(1, &["c=under", "d/n=5", "e/s/a=6", "n/a=7", "n/d/b=8", "b->nowhere"]);
    fs::hard_link(t.low("d/a"), t.low("d/hard")).unwrap();
}

fn level(path: &Path, node: &mut Node) -> bool {
    if node.mtime.0 > 1_000_000 {
        node.mtime = (0, 0);
    }
    if node.is_whiteout() {
        (node.nlink, node.mode) = (1, libc::S_IFCHR);
    }
    node.xattrs.retain(|name, _| !(path.as_os_str().is_empty() && name.ends_with(".overlay.uuid")));
    // The kernel takes the mark away again when a listing finds no reason for it.
    node.xattrs.retain(|name, _| !name.ends_with(".overlay.impure"));
    for (name, value) in &mut node.xattrs {
        if name.ends_with(".overlay.origin") {
            value.clear();
        }
    }
    true
}

/// Runs `length` random operations on both; `remount_every` counts operations.
fn play(t: &Tree, seed: u64, length: usize, remount_every: usize) {
    let pair = [("kernel", Carrier::Kernel), ("ours", Carrier::Fuse)].map(|(name, carrier)| {
        let tree = Tree::new(t.beside(&format!("{name}-{seed}")), carrier, t.is_real_root());
        plan(&tree);
        if let Err(why) = tree.try_mount() {
            assert!(carrier == Carrier::Kernel, "mount: {why}");
            skip(format!("the kernel's overlay: {why}"));
        }
        tree
    });
    let [kernel, ours] = &pair;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (seed << 32) ^ seed);
    let mut history: Vec<String> = Vec::new();
    for step in 1..=length {
        let there: Vec<_> = Snapshot::of(&kernel.at("")).0.into_keys().collect();
        let there = there.iter().skip(1).map(|path| path.display().to_string()).collect::<Vec<_>>();
        let op = Op::random(&mut dice, &there);
        let (expected, got) = (op.run(&kernel.at("")), op.run(&ours.at("")));
        history.push(format!("{op:?} -> {expected:?}"));
        let tail = || history[history.len().saturating_sub(25)..].join("\n");
        assert_eq!(expected, got, "seed {seed}, step {step}: (kernel, ours)\n{}", tail());
        if step % remount_every == 0 {
            kernel.remount();
            ours.remount();
        }
        if step % 10 == 0 || step == length {
            // A directory shows one link once it's merged. Its copy-up doesn't change how many
            // it has, so our side may go on to show the lower directory's number.
            let merged = |t: &Tree| {
                Snapshot::of(&t.at("")).adjust(|path, node| {
                    node.nlink = if node.is_dir() { 0 } else { node.nlink };
                    level(path, node)
                })
            };
            let difference = merged(kernel).difference(&merged(ours));
            assert!(difference.is_empty(), "seed {seed}, step {step}\n{}\n{difference}", tail());
        }
    }
    let upper = |t: &Tree| {
        t.umount();
        let upper = Snapshot::of(&t.upper("")).adjust(level);
        t.mount();
        upper
    };
    let difference = upper(kernel).difference(&upper(ours));
    assert!(difference.is_empty(), "seed {seed}: uppers\n{}\n{difference}", history.join("\n"));
    kernel.finish();
    ours.finish();
}

/// More seeds than usual where OVERFALL_TEST_SEEDS says so.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let wanted = std::env::var("OVERFALL_TEST_SEEDS").ok().and_then(|text| text.parse().ok());
    1..wanted.unwrap_or(usual) + 1
}

fn sequences_with_few_names(t: &Tree) {
    for seed in seeds(12) {
        play(t, seed, 60, usize::MAX);
    }
}

fn sequences_over_remounts(t: &Tree) {
    for seed in seeds(6) {
        play(t, 1000 + seed, 60, 20);
    }
}

fn long_sequence(t: &Tree) {
    play(t, 77, 400, 150);
}
