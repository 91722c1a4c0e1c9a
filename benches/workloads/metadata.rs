//! Cases with many names and little data.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::Outcome;
use crate::bed::Bed;
use crate::cases::timed;
use crate::grounds::{SEARCHED, Scale, small_content, small_path};

/// Clients at work at the same time.
const CLIENTS: usize = 8;

/// How often `count` names have to be passed over.
fn passes(scale: Scale, count: usize) -> usize {
    scale.operations.div_ceil(count)
}

fn small_paths(bed: &Bed<'_>, scale: Scale) -> Vec<PathBuf> {
    (0..scale.files)
        .map(|index| bed.path(small_path(index)))
        .collect()
}

pub(crate) fn mount(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    let path = bed.path(small_path(0));
    timed(|| {
        bed.mount()?;
        fs::symlink_metadata(&path)?;
        Ok(())
    })
}

fn stat_all(paths: &[PathBuf]) -> Outcome<()> {
    for path in paths {
        let meta = fs::symlink_metadata(path)?;
        if meta.len() < 8 {
            return Err(format!("{}: {} bytes", path.display(), meta.len()).into());
        }
    }
    Ok(())
}

pub(crate) fn stat_warm(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths = small_paths(bed, scale);
    stat_all(&paths)?;
    timed(|| (0..passes(scale, paths.len())).try_for_each(|_| stat_all(&paths)))
}

pub(crate) fn stat_cold(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths = small_paths(bed, scale);
    bed.cold()?;
    timed(|| stat_all(&paths))
}

/// Lists directories and stats what is in them, as `find -ls` does; returns how many files.
fn walk(dir: &Path) -> Outcome<usize> {
    let mut files = 0;
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                dirs.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    Ok(files)
}

pub(crate) fn walk_cold(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    bed.cold()?;
    let root = bed.root();
    timed(|| match walk(&root)? {
        files if files == scale.files => Ok(()),
        files => Err(format!("{files} files seen").into()),
    })
}

fn list(dir: &Path, expected: usize) -> Outcome<()> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        entry?;
        count += 1;
    }
    match count == expected {
        true => Ok(()),
        false => Err(format!("{count} names listed").into()),
    }
}

pub(crate) fn readdir_warm(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let dir = bed.path("flat");
    // The kernel stores a listing that is read for the second time.
    list(&dir, scale.entries)?;
    list(&dir, scale.entries)?;
    timed(|| (0..passes(scale, scale.entries)).try_for_each(|_| list(&dir, scale.entries)))
}

pub(crate) fn readdir_cold(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let dir = bed.path("flat");
    bed.cold()?;
    timed(|| list(&dir, scale.entries))
}

fn read_all<'x>(paths: impl Iterator<Item = (usize, &'x PathBuf)>) -> Outcome<()> {
    let mut content = Vec::new();
    for (index, path) in paths {
        content.clear();
        File::open(path)?.read_to_end(&mut content)?;
        if content != small_content(index) {
            return Err(format!("{}: wrong content", path.display()).into());
        }
    }
    Ok(())
}

pub(crate) fn open_warm(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths = small_paths(bed, scale);
    // Twice: a READ makes the kernel ask once more for the time of access.
    read_all(paths.iter().enumerate())?;
    read_all(paths.iter().enumerate())?;
    timed(|| {
        (0..passes(scale, paths.len() * 4)).try_for_each(|_| read_all(paths.iter().enumerate()))
    })
}

pub(crate) fn open_cold(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths = small_paths(bed, scale);
    bed.cold()?;
    timed(|| read_all(paths.iter().enumerate()))
}

fn expect_absent(path: &Path) -> Outcome<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err(format!("{}: is there", path.display()).into()),
    }
}

pub(crate) fn absent(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths: Vec<_> = (0..100)
        .map(|index| bed.path(format!("d0/absent-{index}")))
        .collect();
    let pass = || paths.iter().try_for_each(|path| expect_absent(path));
    pass()?;
    timed(|| (0..passes(scale, paths.len())).try_for_each(|_| pass()))
}

pub(crate) fn search_path(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let dirs: Vec<_> = (0..SEARCHED)
        .map(|index| bed.path(format!("bin{index}")))
        .collect();
    let last = SEARCHED - 1;
    let pass = || -> Outcome<()> {
        for program in 0..50 {
            let name = format!("program-{last}-{program}");
            for dir in &dirs[..last] {
                expect_absent(&dir.join(&name))?;
            }
            fs::symlink_metadata(dirs[last].join(&name))?;
        }
        Ok(())
    };
    pass()?;
    timed(|| (0..passes(scale, 50 * SEARCHED)).try_for_each(|_| pass()))
}

/// Gives each client every eighth number.
fn share(count: usize, work: impl Fn(usize) -> Outcome<()> + Sync) -> Outcome<()> {
    thread::scope(|scope| {
        let work = &work;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    (client..count)
                        .step_by(CLIENTS)
                        .try_for_each(work)
                        .map_err(|error| error.to_string())
                })
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| "a client panicked")??;
        }
        Ok(())
    })
}

pub(crate) fn clients_stat(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths = small_paths(bed, scale);
    bed.cold()?;
    timed(|| {
        share(paths.len(), |index| {
            stat_all(std::slice::from_ref(&paths[index]))
        })
    })
}

pub(crate) fn clients_read(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths = small_paths(bed, scale);
    bed.cold()?;
    timed(|| {
        share(paths.len(), |index| {
            read_all([(index, &paths[index])].into_iter())
        })
    })
}

/// Writes a new small file in a directory that is there.
fn write_new(bed: &Bed<'_>, index: usize) -> Outcome<()> {
    let path = bed.path(format!("new{}/file-{index}", index % CLIENTS));
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(&small_content(index))?;
    Ok(())
}

fn make_dirs(bed: &Bed<'_>) -> Outcome<()> {
    for index in 0..CLIENTS {
        fs::create_dir(bed.path(format!("new{index}")))?;
    }
    Ok(())
}

fn check_new(bed: &Bed<'_>, scale: Scale) -> Outcome<()> {
    let paths: Vec<_> = (0..scale.files)
        .map(|index| bed.path(format!("new{}/file-{index}", index % CLIENTS)))
        .collect();
    read_all(paths.iter().enumerate())
}

pub(crate) fn clients_create(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    make_dirs(bed)?;
    let time = timed(|| share(scale.files, |index| write_new(bed, index)))?;
    check_new(bed, scale)?;
    Ok(time)
}

pub(crate) fn create(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    make_dirs(bed)?;
    let time = timed(|| (0..scale.files).try_for_each(|index| write_new(bed, index)))?;
    check_new(bed, scale)?;
    Ok(time)
}

pub(crate) fn unlink_new(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    make_dirs(bed)?;
    (0..scale.files).try_for_each(|index| write_new(bed, index))?;
    let time = timed(|| {
        for index in 0..scale.files {
            fs::remove_file(bed.path(format!("new{}/file-{index}", index % CLIENTS)))?;
        }
        Ok(())
    })?;
    list(&bed.path("new0"), 0)?;
    Ok(time)
}

pub(crate) fn unlink_lower(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let paths = small_paths(bed, scale);
    let time = timed(|| Ok(paths.iter().try_for_each(fs::remove_file)?))?;
    match walk(&bed.root())? {
        0 => Ok(time),
        left => Err(format!("{left} files are still there").into()),
    }
}

pub(crate) fn copy_up(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    // Each is synced, which takes long.
    let count = scale.files / 4;
    let paths = small_paths(bed, scale);
    let time = timed(|| {
        for path in &paths[..count] {
            OpenOptions::new()
                .append(true)
                .open(path)?
                .write_all(b"+")?;
        }
        Ok(())
    })?;
    for (index, path) in paths[..count].iter().enumerate() {
        let mut expected = small_content(index);
        expected.push(b'+');
        if fs::read(path)? != expected {
            return Err(format!("{}: wrong content", path.display()).into());
        }
    }
    Ok(time)
}
