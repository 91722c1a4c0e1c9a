//! Removing layers that nobody needs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::manifest::Manifest;
use super::room::{Hold, Room};
use super::{Digest, Layer, Removal};
use crate::Result;

/// What says which layers there are and which are needed. Asked again for each layer that is to go,
/// when it is locked: whoever has begun to need it by then has said so.
pub(super) struct Inventory<'a> {
    pub(super) layers: &'a dyn Fn() -> Result<Vec<Layer>>,
    pub(super) roots: &'a dyn Fn() -> Result<Vec<Digest>>,
    pub(super) unused_for: Duration,
}

impl Inventory<'_> {
    /// All layers, and those of them that are needed.
    fn take(&self) -> Result<(Vec<Layer>, HashSet<Digest>)> {
        let roots = (self.roots)()?;
        let layers = (self.layers)()?;
        let parents: HashMap<Digest, Digest> = layers
            .iter()
            .map(|layer| (layer.digest, layer.parent))
            .collect();
        let recent = layers
            .iter()
            .filter(|layer| layer.unused_for() < self.unused_for)
            .map(|layer| layer.digest);
        let mut needed = HashSet::new();
        for mut digest in roots.into_iter().chain(recent) {
            // What is below a needed one is needed; below the lowest there is the base.
            while needed.insert(digest) {
                match parents.get(&digest) {
                    Some(parent) => digest = *parent,
                    None => break,
                }
            }
        }
        Ok((layers, needed))
    }
}

/// See [`super::StepCache::remove_unused`].
pub(super) fn unused(
    room: &Room,
    inventory: &Inventory<'_>,
    removal: Removal,
) -> Result<Vec<Layer>> {
    let (layers, needed) = inventory.take()?;
    let mut removed = Vec::new();
    // The youngest first: should this be interrupted, no layer is left without the one below it.
    for layer in layers.iter().rev() {
        if needed.contains(&layer.digest) {
            continue;
        }
        let name = layer.digest.name();
        let Some(lock) = room.lock(name.as_ref(), Hold::Alone)? else {
            log::info!("{}: in use", layer.digest);
            continue;
        };
        if removal == Removal::Real {
            if inventory.take()?.1.contains(&layer.digest) {
                continue;
            }
            room.discard(&room.layer(layer.digest))?;
            room.forget(name.as_ref(), lock);
        }
        removed.push(layer.clone());
    }
    if removal == Removal::Real {
        damaged(room)?;
    }
    Ok(removed)
}

/// Removes what can't be a layer any more.
fn damaged(room: &Room) -> Result<()> {
    for path in room.names()? {
        let Some(name) = path.file_name() else {
            continue;
        };
        let broken = || Manifest::read(&path).is_none();
        if broken()
            && let Some(lock) = room.lock(name, Hold::Alone)?
            && broken()
        {
            log::info!("{}: damaged", path.display());
            room.discard(&path)?;
            room.forget(name, lock);
        }
    }
    Ok(())
}
