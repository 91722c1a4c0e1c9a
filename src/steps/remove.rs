//! Removing layers that nobody needs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::manifest::Manifest;
use super::room::{Hold, Room};
use super::{Digest, Layer, Removal};
use crate::Result;

/// See [`super::StepCache::remove_unused`].
pub(super) fn unused(
    room: &Room,
    layers: &[Layer],
    roots: &[Digest],
    unused_for: Duration,
    removal: Removal,
) -> Result<Vec<Layer>> {
    let parents: HashMap<Digest, Digest> = layers
        .iter()
        .map(|layer| (layer.digest, layer.parent))
        .collect();
    let recent = layers
        .iter()
        .filter(|layer| layer.unused_for() < unused_for)
        .map(|layer| layer.digest);
    let mut needed = HashSet::new();
    for mut digest in roots.iter().copied().chain(recent) {
        // What is below a needed one is needed; below the lowest there is the base.
        while needed.insert(digest) {
            match parents.get(&digest) {
                Some(parent) => digest = *parent,
                None => break,
            }
        }
    }
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
