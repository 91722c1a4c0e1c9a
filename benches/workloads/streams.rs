//! Cases with few names and much data.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use crate::Outcome;
use crate::bed::Bed;
use crate::cases::timed;
use crate::grounds::{BLOCK, Scale, check_blocks, number_blocks, small_path};
use crate::mmap::Mapping;

/// The big file in the lower layer.
pub(crate) const OLD: &str = "big";
/// The one with a hole.
pub(crate) const HOLE: &str = "hole";
/// The one that a case makes.
pub(crate) const NEW: &str = "new";

const MIB: usize = 1 << 20;

fn read_whole(path: &Path, expected: u64) -> Outcome<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; MIB];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..])? {
                0 => break,
                got => filled += got,
            }
        }
        check_blocks(&buffer[..filled], at)?;
        at += filled as u64;
        if filled < buffer.len() {
            break;
        }
    }
    match at == expected {
        true => Ok(()),
        false => Err(format!("{at} bytes read").into()),
    }
}

pub(crate) fn read_warm(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    read_whole(&path, scale.big)?;
    timed(|| (0..4).try_for_each(|_| read_whole(&path, scale.big)))
}

pub(crate) fn read_cold(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    bed.cold()?;
    // A plain user can't drop all caches, but can let this file go.
    let lower = File::open(bed.lower(OLD))?;
    rustix::fs::fadvise(&lower, 0, None, Advice::DontNeed)?;
    timed(|| read_whole(&path, scale.big))
}

/// Numbers that look random and are the same in each run (a linear congruence, Knuth's factor).
fn scattered(count: u64, below: u64) -> impl Iterator<Item = u64> {
    let mut state = 1u64;
    (0..count).map(move |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    })
}

pub(crate) fn read_random(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    read_whole(&path, scale.big)?;
    let file = File::open(&path)?;
    timed(|| {
        let mut block = [0; BLOCK];
        for number in scattered(scale.operations as u64, scale.big / BLOCK as u64) {
            let at = number * BLOCK as u64;
            file.read_exact_at(&mut block, at)?;
            check_blocks(&block, at)?;
        }
        Ok(())
    })
}

pub(crate) fn read_mapped(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    read_whole(&path, scale.big)?;
    let file = File::open(&path)?;
    let length = usize::try_from(scale.big)?;
    timed(|| {
        let mapping = Mapping::new(&file, length, libc::PROT_READ, libc::MAP_SHARED);
        check_blocks(&mapping.read(), 0)
    })
}

fn write_in(bed: &Bed<'_>, total: u64, size: usize) -> Outcome<Duration> {
    let path = bed.path(NEW);
    let mut data = vec![0; size];
    let time = timed(|| {
        let mut file = File::create(&path)?;
        for start in (0..total).step_by(size) {
            number_blocks(&mut data, start);
            file.write_all(&data)?;
        }
        file.sync_all()?;
        Ok(())
    })?;
    read_whole(&path, total)?;
    Ok(time)
}

pub(crate) fn write_small(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    // One request for each: a quarter is enough to tell.
    write_in(bed, scale.big / 4, BLOCK)
}

pub(crate) fn write_large(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    write_in(bed, scale.big, MIB)
}

pub(crate) fn rewrite_random(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    write_in(bed, scale.big, MIB)?;
    let path = bed.path(NEW);
    let file = OpenOptions::new().write(true).open(&path)?;
    let mut block = [0; BLOCK];
    let time = timed(|| {
        for number in scattered(scale.operations as u64 / 10, scale.big / BLOCK as u64) {
            let at = number * BLOCK as u64;
            number_blocks(&mut block, at);
            file.write_all_at(&block, at)?;
        }
        file.sync_all()?;
        Ok(())
    })?;
    read_whole(&path, scale.big)?;
    Ok(time)
}

/// Makes the layers copy the big file, by a write over its first byte.
fn touch_data(path: &Path) -> Outcome<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all_at(&[0], 0)?;
    Ok(())
}

pub(crate) fn copy_up(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    let time = timed(|| touch_data(&path))?;
    read_whole(&path, scale.big)?;
    Ok(time)
}

/// The big file without its data: all but its first block is a hole.
pub(crate) fn copy_up_hole(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(HOLE);
    let time = timed(|| touch_data(&path))?;
    let meta = fs::metadata(&path)?;
    match (meta.len(), meta.blocks() * 512) {
        (size, data) if size == scale.big && data <= 2 << 20 => Ok(time),
        (size, data) => Err(format!("{size} bytes, {data} of them data").into()),
    }
}

/// The longest that a `stat` of another file takes while the big one is copied up.
pub(crate) fn stat_during_copy_up(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    let others: Vec<_> = (0..200).map(|index| bed.path(small_path(index))).collect();
    let copied = AtomicBool::new(false);
    let worst = thread::scope(|scope| -> Outcome<Duration> {
        let copier = scope.spawn(|| {
            let outcome = touch_data(&path).map_err(|error| error.to_string());
            copied.store(true, Ordering::Release);
            outcome
        });
        let mut worst = Duration::ZERO;
        for other in others.iter().cycle() {
            if copied.load(Ordering::Acquire) {
                break;
            }
            let start = Instant::now();
            fs::symlink_metadata(other)?;
            worst = worst.max(start.elapsed());
            thread::sleep(Duration::from_micros(500));
        }
        copier.join().map_err(|_| "the copier panicked")??;
        Ok(worst)
    })?;
    read_whole(&path, scale.big)?;
    Ok(worst)
}

/// Complains when the upper layer holds the big file's data.
fn check_not_copied(bed: &Bed<'_>, scale: Scale) -> Outcome<()> {
    let Some(upper) = bed.upper(OLD) else {
        return Ok(());
    };
    let blocks = fs::symlink_metadata(upper)?.blocks();
    match blocks * 512 < scale.big / 4 {
        true => Ok(()),
        false => Err(format!("{blocks} blocks were copied").into()),
    }
}

pub(crate) fn unlink_big(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    let time = timed(|| Ok(fs::remove_file(&path)?))?;
    check_not_copied(bed, scale)?;
    match fs::symlink_metadata(&path) {
        Err(_) => Ok(time),
        Ok(_) => Err("the file is still there".into()),
    }
}

pub(crate) fn rename_over_big(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let (path, new) = (bed.path(OLD), bed.path(NEW));
    fs::write(&new, "new")?;
    let time = timed(|| Ok(fs::rename(&new, &path)?))?;
    check_not_copied(bed, scale)?;
    match fs::read(&path)? == b"new" {
        true => Ok(time),
        false => Err("wrong content".into()),
    }
}

pub(crate) fn truncate_big(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let path = bed.path(OLD);
    let time = timed(|| {
        File::create(&path)?;
        Ok(())
    })?;
    check_not_copied(bed, scale)?;
    match fs::read(&path)?.is_empty() {
        true => Ok(time),
        false => Err("wrong content".into()),
    }
}
