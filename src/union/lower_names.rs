//! Which of a directory's many lower parts have a name, so that a look-up needn't ask all of them.
//!
//! Lower layers don't change (where they may, this isn't used). Names are known by a hash: two that
//! share one share their places, and a look-up then asks a layer too many, never one too few.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smallvec::SmallVec;

use super::listing::read_real;
use super::node::DirPart;
use super::{Outcome, Union};

/// With fewer lower parts than this asking all of them is as good.
const FEWEST_LAYERS: usize = 3;
/// Names in all directories together, about.
const MOST_NAMES: usize = 1 << 20;
/// How many questions in vain are as dear as reading this many bytes of a directory.
const BYTES_PER_QUESTION: u64 = 1024;
/// After how many questions in vain that is worked out.
const PATIENCE: usize = 64;

/// The lower parts that have a name, by their index.
pub(super) type Slots = SmallVec<[u16; 4]>;

/// The names of all lower parts of one directory.
#[derive(Debug)]
pub(super) struct LowerNames {
    hasher: RandomState,
    slots: HashMap<u64, Slots>,
    /// The names in all of these.
    total: Arc<AtomicUsize>,
}

impl LowerNames {
    fn new(total: &Arc<AtomicUsize>) -> Self {
        Self {
            hasher: RandomState::new(),
            slots: HashMap::new(),
            total: Arc::clone(total),
        }
    }

    /// Notes that a lower part has a name, as whatever: a whiteout counts, too.
    pub(super) fn add(&mut self, name: &OsStr, slot: u16) {
        let slots = self.slots.entry(self.hasher.hash_one(name)).or_default();
        if slots.last() != Some(&slot) {
            slots.push(slot);
        }
    }

    /// The parts that may have the name, from the top; all others have not.
    pub(super) fn of(&self, name: &OsStr) -> Slots {
        let slots = self.slots.get(&self.hasher.hash_one(name));
        slots.cloned().unwrap_or_default()
    }
}

impl Drop for LowerNames {
    fn drop(&mut self) {
        self.total.fetch_sub(self.slots.len(), Ordering::Relaxed);
    }
}

impl Union {
    /// A place to note the names of a directory's lower parts; `None` where that isn't worth it.
    pub(super) fn notes_lower_names(&self, dir: &DirPart) -> Option<LowerNames> {
        let wanted = dir.lowers.len() >= FEWEST_LAYERS
            && !self.layers_change.load(Ordering::Relaxed)
            && self.lower_names.load(Ordering::Relaxed) < MOST_NAMES
            && dir.lower_names.read().is_none();
        wanted.then(|| LowerNames::new(&self.lower_names))
    }

    /// Keeps the complete names of a directory's lower parts.
    pub(super) fn keep_lower_names(&self, dir: &DirPart, names: LowerNames) {
        self.lower_names
            .fetch_add(names.slots.len(), Ordering::Relaxed);
        let old = dir.lower_names.write().replace(Arc::new(names));
        drop(old);
    }

    /// The lower parts that may have a name; `None` when nothing is known.
    pub(super) fn known_slots(&self, dir: &DirPart, name: &OsStr) -> Option<Slots> {
        if dir.lowers.len() < FEWEST_LAYERS || self.layers_change.load(Ordering::Relaxed) {
            return None;
        }
        dir.lower_names.read().as_ref().map(|names| names.of(name))
    }

    /// Counts the lower parts that were asked in vain, and reads their names when that has become
    /// dearer than reading them.
    pub(super) fn asked_in_vain(&self, dir: &DirPart, count: usize) {
        let before = dir.in_vain.fetch_add(count, Ordering::Relaxed);
        let asked = before + count;
        if before / PATIENCE == asked / PATIENCE {
            return;
        }
        let size = |dir: &super::RealDir| {
            let file = dir.open().ok()?;
            let stat = rustix::fs::fstat(file.as_fd()).ok()?;
            Some(stat.st_size.unsigned_abs())
        };
        let sizes: Option<u64> = dir.lowers.iter().map(|lower| size(lower)).sum();
        let worth_it = sizes.is_some_and(|sizes| asked as u64 * BYTES_PER_QUESTION >= sizes);
        if !worth_it {
            return;
        }
        // Where a layer can't be read there is nothing to know.
        if let Err(fault) = self.read_lower_names(dir) {
            log::debug!("{fault}");
        }
    }

    fn read_lower_names(&self, dir: &DirPart) -> Outcome<()> {
        let Some(mut names) = self.notes_lower_names(dir) else {
            return Ok(());
        };
        for (slot, lower) in dir.lowers.iter().enumerate() {
            let found = read_real(lower)?;
            let objects = found.objects.iter().map(|(name, ..)| name);
            for name in objects.chain(&found.hidden) {
                names.add(name, slot as u16);
            }
        }
        self.keep_lower_names(dir, names);
        Ok(())
    }
}
