//! The table of cases: what each is called, what it stands on, and what it may cost.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::bed::{Bed, Carrier};
use crate::grounds::{Ground, Scale};
use crate::supplies::Supply;
use crate::{Outcome, installs, metadata, programs, streams};

/// What a case does to the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: the plain directory may be the layer itself.
    Reads,
    /// It changes the tree, so the plain directory has to be a copy.
    Changes,
    /// It makes the mount itself, which a plain directory doesn't have.
    Mounts,
}

/// One piece of work.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How many times as long as the kernel's overlay overfall may take.
    pub(crate) target: f64,
    /// How many times as long as overfall fuse-overlayfs 2 should take.
    pub(crate) lead: Option<f64>,
    pub(crate) ground: Ground,
    pub(crate) effect: Effect,
    /// Programs without which it can't run.
    pub(crate) needs: &'static [&'static str],
    run: fn(&mut Bed<'_>, Scale) -> Outcome<Duration>,
}

impl Case {
    /// Whether the case means anything on this carrier.
    pub(crate) fn suits(&self, carrier: Carrier) -> bool {
        carrier != Carrier::Plain || self.effect != Effect::Mounts
    }

    /// Whether it is a real program's work rather than one kind of operation.
    pub(crate) fn is_workload(&self) -> bool {
        !self.needs.is_empty()
    }

    /// What has to be fetched for it.
    pub(crate) fn supplies(&self) -> impl Iterator<Item = Supply> {
        self.needs.iter().filter_map(|name| Supply::of(name))
    }

    /// Why it can't run here, if it can't.
    pub(crate) fn obstacle(&self, supplies: &Path) -> Option<String> {
        if let Some(name) = self.needs.iter().find(|name| !programs::installed(name)) {
            // Root's own toolchain is copied for others.
            if Supply::of(name) != Some(Supply::Toolchain) {
                return Some(format!("no {name} here"));
            }
        }
        self.supplies().find_map(|supply| supply.missing(supplies))
    }

    /// Runs it; returns the time of the part that counts.
    pub(crate) fn perform(&self, bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
        if bed.carrier == Carrier::Plain {
            bed.fill_plain(self.effect)?;
        }
        if self.effect != Effect::Mounts {
            bed.mount()?;
        }
        (self.run)(bed, scale)
    }
}

/// The time that some work takes.
pub(crate) fn timed(work: impl FnOnce() -> Outcome<()>) -> Outcome<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

macro_rules! cases {
    ($($name:literal, $target:literal, $lead:expr, $ground:ident, $effect:ident, $needs:expr, $run:path;)*) => {
        /// All of them.
        pub(crate) const CASES: &[Case] = &[$(Case {
            name: $name,
            target: $target,
            lead: $lead,
            ground: Ground::$ground,
            effect: Effect::$effect,
            needs: &$needs,
            run: $run,
        }),*];
    };
}

cases! {
    "mount until usable", 10.0, None, Tree, Mounts, [], metadata::mount;
    "stat, warm", 1.05, None, Tree, Reads, [], metadata::stat_warm;
    "stat by name, cold", 3.0, Some(3.0), Tree, Reads, [], metadata::stat_cold;
    "walk with stat, cold", 1.2, Some(3.0), Tree, Reads, [], metadata::walk_cold;
    "walk of 20 layers, cold", 1.5, Some(2.0), Layers, Reads, [], metadata::walk_cold;
    "readdir, warm", 1.05, None, Flat, Reads, [], metadata::readdir_warm;
    "readdir, cold", 2.0, Some(5.0), Flat, Reads, [], metadata::readdir_cold;
    "open+read+close, warm", 1.1, Some(3.0), Tree, Reads, [], metadata::open_warm;
    "open+read+close, cold", 3.5, Some(1.3), Tree, Reads, [], metadata::open_cold;
    "absent name, repeated", 1.1, None, Tree, Reads, [], metadata::absent;
    "search path of 20", 1.1, None, SearchPath, Reads, [], metadata::search_path;
    "8 clients: stat, cold", 2.0, Some(3.0), Tree, Reads, [], metadata::clients_stat;
    "8 clients: open+read", 2.0, Some(3.0), Tree, Reads, [], metadata::clients_read;
    "8 clients: create", 2.0, Some(3.0), Empty, Changes, [], metadata::clients_create;
    "create+write+close", 3.0, Some(2.0), Empty, Changes, [], metadata::create;
    "unlink of new files", 2.0, Some(2.0), Empty, Changes, [], metadata::unlink_new;
    "unlink of lower files", 2.0, Some(2.0), Tree, Changes, [], metadata::unlink_lower;
    "copy-up of small files", 3.0, Some(2.0), Tree, Changes, [], metadata::copy_up;
    "big read, warm", 1.05, Some(1.0), Big, Reads, [], streams::read_warm;
    "big read, cold", 1.5, Some(1.0), Big, Reads, [], streams::read_cold;
    "4 KiB random reads, warm", 1.05, None, Big, Reads, [], streams::read_random;
    "mmap reads, warm", 1.05, None, Big, Reads, [], streams::read_mapped;
    "4 KiB writes, fsync", 1.5, Some(3.0), Empty, Changes, [], streams::write_small;
    "1 MiB writes, fsync", 1.5, None, Empty, Changes, [], streams::write_large;
    "4 KiB random rewrites", 1.5, None, Empty, Changes, [], streams::rewrite_random;
    "copy-up of a big file", 1.2, None, Big, Changes, [], streams::copy_up;
    "copy-up of a hole", 1.2, None, Big, Changes, [], streams::copy_up_hole;
    "worst stat meanwhile", 2.0, Some(50.0), Big, Changes, [], streams::stat_during_copy_up;
    "big lower file: unlink", 3.0, None, Big, Changes, [], streams::unlink_big;
    "big lower file: rename over", 3.0, None, Big, Changes, [], streams::rename_over_big;
    "big lower file: O_TRUNC", 3.0, None, Big, Changes, [], streams::truncate_big;
    "git status, first", 1.5, Some(1.5), Repository, Changes, ["git"], programs::git_status_first;
    "git status, again", 1.5, Some(1.5), Repository, Changes, ["git"], programs::git_status_again;
    "git checkout", 1.5, Some(1.5), Repository, Changes, ["git"], programs::git_checkout;
    "tar x", 1.5, Some(1.5), Empty, Changes, ["tar"], programs::tar_extract;
    "rm -rf of lower files", 1.5, Some(1.5), Tree, Changes, ["rm"], programs::rm_recursive;
    "chown -R", 1.5, Some(1.5), Tree, Changes, ["chown"], programs::chown_recursive;
    "cp -a in the tree", 1.5, Some(1.5), Tree, Changes, ["cp"], programs::copy_tree;
    "du -s, first", 1.5, Some(1.5), Tree, Reads, ["du"], programs::du_first;
    "find and grep, first", 1.5, Some(1.5), Tree, Reads, ["find", "xargs", "grep"], programs::grep;
    "sqlite transactions", 1.5, Some(1.5), Database, Changes, ["sqlite3"], programs::sqlite;
    "cargo build", 1.5, Some(1.5), Workspace, Changes, ["cargo", "cc"], installs::cargo_build;
    "npm ci", 1.5, Some(1.5), Empty, Changes, ["npm", "node"], installs::npm_ci;
    "pip install", 1.5, Some(1.5), Empty, Changes, ["python3"], installs::pip_install;
    "dpkg -i", 1.5, Some(1.5), Empty, Changes, ["dpkg"], installs::dpkg_install;
}
