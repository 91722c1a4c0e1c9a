//! The lower layers that the cases share: each is built once, and checked by whoever reads it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Outcome, installs, programs};

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Small files in the tree.
    pub(crate) files: usize,
    /// Entries of the one big directory.
    pub(crate) entries: usize,
    /// Bytes of the big file.
    pub(crate) big: u64,
    /// Operations that a case on a warm cache does at least: one takes microseconds.
    pub(crate) operations: usize,
    /// Transactions of the database.
    pub(crate) transactions: usize,
    /// Runs of each case on each carrier, unless told.
    pub(crate) rounds: usize,
    /// Whether the machine's caches are left alone.
    pub(crate) keep_caches: bool,
}

impl Scale {
    pub(crate) fn new(quick: bool, keep_caches: bool) -> Self {
        if quick {
            Self {
                files: 1000,
                entries: 5000,
                big: 32 << 20,
                operations: 20_000,
                transactions: 20,
                rounds: 3,
                keep_caches: true,
            }
        } else {
            Self {
                files: 20_000,
                entries: 100_000,
                big: 1 << 30,
                operations: 200_000,
                transactions: 500,
                rounds: 3,
                keep_caches,
            }
        }
    }
}

/// A set of lower layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ground {
    /// Nothing in it.
    Empty,
    /// Many small files, fifty to a directory.
    Tree,
    /// One directory with many names.
    Flat,
    /// One big file without holes, and a few small ones elsewhere.
    Big,
    /// The tree's files spread over twenty layers.
    Layers,
    /// Twenty directories of programs, as in `PATH`.
    SearchPath,
    /// A git repository with the tree's files, checked out.
    Repository,
    /// A database with one table.
    Database,
    /// Source of a few crates.
    Workspace,
}

/// Layers of [`Ground::Layers`].
const LAYERS: usize = 20;
/// Directories of [`Ground::SearchPath`].
pub(crate) const SEARCHED: usize = 20;
/// Size of the blocks that begin with their number.
pub(crate) const BLOCK: usize = 4096;

/// The grounds that were built.
#[derive(Debug)]
pub(crate) struct Grounds {
    base: PathBuf,
    scale: Scale,
    built: HashMap<Ground, Vec<PathBuf>>,
}

impl Grounds {
    pub(crate) fn new(base: PathBuf, scale: Scale) -> Self {
        Self {
            base,
            scale,
            built: HashMap::new(),
        }
    }

    pub(crate) fn scale(&self) -> Scale {
        self.scale
    }

    /// The lower layers, the topmost first.
    pub(crate) fn get(&mut self, ground: Ground) -> Outcome<Vec<PathBuf>> {
        if let Some(lowers) = self.built.get(&ground) {
            return Ok(lowers.clone());
        }
        let dir = self.base.join(format!("{ground:?}").to_lowercase());
        let count = if ground == Ground::Layers { LAYERS } else { 1 };
        let lowers: Vec<PathBuf> = (0..count)
            .map(|index| dir.join(index.to_string()))
            .collect();
        for lower in &lowers {
            fs::create_dir_all(lower)?;
        }
        build(ground, &lowers, self.scale)?;
        self.built.insert(ground, lowers.clone());
        Ok(lowers)
    }
}

fn build(ground: Ground, lowers: &[PathBuf], scale: Scale) -> Outcome<()> {
    let dir = &lowers[0];
    match ground {
        Ground::Empty => {}
        Ground::Tree | Ground::Layers => {
            for index in 0..scale.files {
                plant(&lowers[index % lowers.len()], index)?;
            }
        }
        Ground::Flat => {
            let flat = dir.join("flat");
            fs::create_dir(&flat)?;
            for index in 0..scale.entries {
                File::create(flat.join(format!("entry-{index}")))?;
            }
        }
        Ground::Big => {
            let mut file = File::create(dir.join(crate::streams::OLD))?;
            let mut data = vec![0; 1 << 20];
            for start in (0..scale.big).step_by(data.len()) {
                number_blocks(&mut data, start);
                file.write_all(&data)?;
            }
            file.sync_all()?;
            let hole = File::create(dir.join(crate::streams::HOLE))?;
            (&hole).write_all(&[1; BLOCK])?;
            hole.set_len(scale.big)?;
            for index in 0..200 {
                plant(dir, index)?;
            }
        }
        Ground::SearchPath => {
            for place in 0..SEARCHED {
                let place_dir = dir.join(format!("bin{place}"));
                fs::create_dir(&place_dir)?;
                for index in 0..50 {
                    fs::write(place_dir.join(format!("program-{place}-{index}")), "x")?;
                }
            }
        }
        Ground::Repository => {
            for index in 0..scale.files {
                plant(dir, index)?;
            }
            programs::make_repository(dir)?;
        }
        Ground::Workspace => installs::make_workspace(dir)?,
        Ground::Database => programs::make_database(&dir.join("db"))?,
    }
    Ok(())
}

/// The path of a small file.
pub(crate) fn small_path(index: usize) -> PathBuf {
    format!("d{}/s{}/file-{index}", index / 200, index / 50 % 4).into()
}

/// What a small file holds: its number, then filling, 8 to 4000 bytes in all.
pub(crate) fn small_content(index: usize) -> Vec<u8> {
    let length = 8 + index * 7919 % 3993;
    let mut content = format!("{index:08}").into_bytes();
    content.resize(length, b'a' + (index % 26) as u8);
    content
}

fn plant(dir: &Path, index: usize) -> io::Result<()> {
    let path = dir.join(small_path(index));
    match fs::write(&path, small_content(index)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, small_content(index))
        }
        result => result,
    }
}

/// Begins each block with its number; `start` is where the data lies in its file.
pub(crate) fn number_blocks(data: &mut [u8], start: u64) {
    for (index, block) in data.chunks_exact_mut(BLOCK).enumerate() {
        let number = start / BLOCK as u64 + index as u64;
        block[..8].copy_from_slice(&number.to_le_bytes());
    }
}

/// Complains about blocks that don't begin with their number.
pub(crate) fn check_blocks(data: &[u8], start: u64) -> Outcome<()> {
    for (index, block) in data.chunks_exact(BLOCK).enumerate() {
        let number = start / BLOCK as u64 + index as u64;
        if block[..8] != number.to_le_bytes() {
            return Err(format!("wrong content in block {number}").into());
        }
    }
    Ok(())
}
