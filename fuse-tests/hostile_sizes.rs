//! The longest names and paths, the fullest directories, the largest files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom};

use crate::common::{
    Limit, Snapshot, Tree, cases, chmod, fails, getting_on, join_bytes, mknod, names, skip,
};

cases! {
    names_of_one_byte,
    names_of_any_bytes,
    names_of_256_bytes_are_refused,
    paths_of_4095_bytes,
    paths_far_beyond_path_max,
    levels_without_number,
    links_of_4095_bytes,
    crowded_directory,
    file_of_2_to_the_43_bytes,
    work_directory_full_of_anything: Limit::Fuse("the kernel's overlay mounts read-only over deep ones"),
}

/// Every byte that can be a name.
fn names_of_one_byte(t: &Tree) {
    t.watch(None);
    let bytes: Vec<u8> = (1..=255).filter(|byte| !b"./".contains(byte)).collect();
    for byte in &bytes {
        fs::write(join_bytes(&t.layer(0), &[*byte]), "l").unwrap();
    }
    t.mount();
    let expected: Vec<_> = bytes.iter().map(|byte| vec![*byte]).collect();
    assert_eq!(names(&t.at("")), expected);
    for byte in &bytes {
        let path = join_bytes(&t.at(""), &[*byte]);
        assert_eq!(fs::read(&path).unwrap(), b"l");
        match byte % 3 {
            0 => fs::write(&path, "u").unwrap(),
            1 => fs::remove_file(&path).unwrap(),
            _ => fs::rename(&path, join_bytes(&t.at(""), &[*byte, *byte])).unwrap(),
        }
    }
    t.remount();
    let left = bytes.iter().filter_map(|byte| match byte % 3 {
        0 => Some(vec![*byte]),
        1 => None,
        _ => Some(vec![*byte, *byte]),
    });
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(names(&t.at("")), left);
    t.assert_lives();
}

/// Names that are 255 bytes of anything.
fn names_of_any_bytes(t: &Tree) {
    t.watch(None);
    let name = |start: u8| -> Vec<u8> {
        let byte = |at: u8| start.wrapping_add(at);
        (0..255)
            .map(|at| if matches!(byte(at), 0 | b'/') { b'\xff' } else { byte(at) })
            .collect()
    };
    let all: Vec<_> = (0..=255).step_by(5).map(name).collect();
    for name in &all {
        fs::write(join_bytes(&t.layer(0), name), "l").unwrap();
    }
    t.mount();
    for (number, name) in all.iter().enumerate() {
        let path = join_bytes(&t.at(""), name);
        assert_eq!(fs::read(&path).unwrap(), b"l");
        if number % 2 == 0 {
            fs::write(&path, "u").unwrap();
        } else {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
    }
    t.remount();
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!(names(&t.at("")), sorted);
    t.assert_lives();
}

fn names_of_256_bytes_are_refused(t: &Tree) {
    t.watch(None);
    t.lower(&["f=l", "d/x=l"]);
    t.mount();
    let long = join_bytes(&t.at(""), &[b'n'; 256]);
    let too_long = libc::ENAMETOOLONG;
    fails(fs::symlink_metadata(&long), too_long);
    fails(fs::write(&long, ""), too_long);
    fails(fs::create_dir(&long), too_long);
    fails(symlink("f", &long), too_long);
    fails(fs::hard_link(t.at("f"), &long), too_long);
    fails(fs::rename(t.at("f"), &long), too_long);
    fails(fs::remove_file(&long), too_long);
    t.assert_lives();
}

fn open_dir(at: impl std::os::fd::AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

/// Goes down from `root` by `levels` directories called `name`, making those that aren't there.
fn descend(root: &Path, name: &[u8], levels: usize) -> OwnedFd {
    let name = OsStr::from_bytes(name);
    let mut dir = open_dir(CWD, root.as_os_str()).unwrap();
    for _ in 0..levels {
        let _ = rustix::fs::mkdirat(&dir, name, Mode::RWXU);
        dir = open_dir(&dir, name).unwrap();
    }
    dir
}

fn create_in(dir: &OwnedFd, name: &str, text: &str) {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).unwrap();
    rustix::io::write(&file, text.as_bytes()).unwrap();
}

fn read_in(dir: &OwnedFd, name: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap();
    io::read_to_string(File::from(file)).unwrap()
}

/// The longest path that a call takes, from the mount's root.
fn paths_of_4095_bytes(t: &Tree) {
    t.watch(None);
    t.lowers_may_change();
    let room = 4095 - t.beside("m").as_os_str().len();
    // Levels of 100 bytes with their slash, and a last name that fills what is left.
    let levels = (room - 3) / 100;
    let last = "f".repeat(room - levels * 100 - 1);
    let level = [b'd'; 99];
    let make = |root: &Path| {
        let mut below = PathBuf::new();
        for _ in 0..levels {
            below.push(OsStr::from_bytes(&level));
        }
        (root.join(&below), below.join(&last))
    };
    create_in(&descend(&t.layer(0), &level, levels), &last, "lower");
    t.mount();
    let (dir, path) = make(&t.at(""));
    let path = t.at("").join(path);
    assert_eq!(path.as_os_str().len(), 4095);
    assert_eq!(fs::read(&path).unwrap(), b"lower");
    fs::write(&path, "upper").unwrap();
    fails(fs::write(dir.join("n".repeat(last.len() + 1)), ""), libc::ENAMETOOLONG);
    let other = dir.join("o".repeat(last.len()));
    fs::rename(&path, &other).unwrap();
    fs::hard_link(&other, &path).unwrap();
    fs::remove_file(&other).unwrap();
    t.remount();
    assert_eq!(fs::read(&path).unwrap(), b"upper");
    t.assert_lives();
}

/// 300 levels of 255 bytes: no call takes such a path, but a program may be there.
fn paths_far_beyond_path_max(t: &Tree) {
    const LEVELS: usize = 300;
    t.watch(Some(128));
    t.lowers_may_change();
    let level = [b'd'; 255];
    create_in(&descend(&t.layer(0), &level, LEVELS), "f", "lower");
    t.mount();
    let dir = descend(&t.at(""), &level, LEVELS);
    assert_eq!(read_in(&dir, "f"), "lower");
    // All of it is copied up.
    create_in(&dir, "f", "upper");
    create_in(&dir, "new", "new");
    rustix::fs::renameat(&dir, "new", &dir, "renamed").unwrap();
    rustix::fs::unlinkat(&dir, "f", AtFlags::empty()).unwrap();
    drop(dir);
    t.remount();
    let dir = descend(&t.at(""), &level, LEVELS);
    assert_eq!(read_in(&dir, "renamed"), "new");
    fails(rustix::fs::statat(&dir, "f", AtFlags::empty()), libc::ENOENT);
    drop(dir);
    t.assert_lives();
}

/// A layer of many levels, which goes as it came: the removal that others use has one descriptor for
/// each level.
struct Deep(PathBuf);

impl Drop for Deep {
    fn drop(&mut self) {
        let top = open_dir(CWD, self.0.as_os_str()).unwrap();
        overfall::sys::tree::remove_contents(&top).unwrap();
    }
}

/// More levels than a thread has stack for, if each took some: the way down to one of them is long
/// once nobody has it open.
fn levels_without_number(t: &Tree) {
    const LEVELS: usize = 5000;
    t.watch(Some(128));
    t.lowers_may_change();
    let deep = Deep(t.layer(0));
    create_in(&descend(&deep.0, b"d", LEVELS), "f", "lower");
    let others: Vec<_> = (0..300).map(|number| format!("other{number}/")).collect();
    t.lower(&others.iter().map(String::as_str).collect::<Vec<_>>());
    t.mount();
    let dir = descend(&t.at(""), b"d", LEVELS);
    for other in &others {
        assert_eq!(fs::read_dir(t.at(other)).unwrap().count(), 0);
    }
    getting_on();
    let names: Vec<_> = rustix::fs::Dir::read_from(&dir).unwrap().map(Result::unwrap).collect();
    assert!(names.iter().any(|entry| entry.file_name() == c"f"));
    assert_eq!(read_in(&dir, "f"), "lower");
    drop(dir);
    t.umount();
}

fn links_of_4095_bytes(t: &Tree) {
    t.watch(None);
    let target = |byte: &str| byte.repeat(4095);
    let made = symlink(target("l"), t.layer(0).join("link"));
    if let Err(error) = made {
        skip(format!("a link of 4095 bytes on this file system: {error}"));
    }
    t.mount();
    assert_eq!(fs::read_link(t.at("link")).unwrap(), Path::new(&target("l")));
    fails(fs::read(t.at("link")), libc::ENAMETOOLONG);
    // Copies it up.
    fs::rename(t.at("link"), t.at("moved")).unwrap();
    symlink(target("u"), t.at("link")).unwrap();
    t.remount();
    assert_eq!(fs::read_link(t.at("moved")).unwrap(), Path::new(&target("l")));
    assert_eq!(fs::read_link(t.at("link")).unwrap(), Path::new(&target("u")));
    t.assert_lives();
}

/// As many entries as `OVERFALL_TEST_ENTRIES` says: a million for the full test.
fn crowded_directory(t: &Tree) {
    let entries: usize = match std::env::var("OVERFALL_TEST_ENTRIES") {
        Ok(number) => number.parse().expect("OVERFALL_TEST_ENTRIES"),
        Err(_) => 20_000,
    };
    t.watch(None);
    t.lowers_may_change();
    fs::create_dir(t.layer(0).join("d")).unwrap();
    fs::create_dir(t.upper("d")).unwrap();
    for number in 0..entries {
        // Links of one file: what is tested is the directory.
        let layer = if number % 4 == 0 { t.upper("d") } else { t.low("d") };
        let path = layer.join(format!("entry-{number}"));
        let first = layer.join(format!("entry-{}", number / 40_000 * 40_000 + number % 4));
        if path == first {
            fs::write(&path, "x").unwrap();
        } else {
            fs::hard_link(&first, &path).unwrap();
        }
        if number % 10_000 == 0 {
            getting_on();
        }
    }
    t.mount();
    let start = Instant::now();
    let dir = t.at("d");
    let count = |dir: &Path| fs::read_dir(dir).unwrap().map(Result::unwrap).count();
    for _ in 0..2 {
        assert_eq!(count(&dir), entries);
        getting_on();
    }
    for number in (0..entries).step_by(entries / 50) {
        let path = dir.join(format!("entry-{number}"));
        assert_eq!(fs::metadata(&path).unwrap().len(), 1);
        fs::remove_file(&path).unwrap();
        fs::write(dir.join(format!("new-{number}")), "n").unwrap();
    }
    assert_eq!(count(&dir), entries);
    // Quadratic in the number of entries would be minutes.
    let patience = Duration::from_secs(10 + entries as u64 / 20_000);
    assert!(start.elapsed() < patience, "it took {:?}", start.elapsed());
    t.assert_lives();
}

fn file_of_2_to_the_43_bytes(t: &Tree) {
    const SIZE: u64 = 1 << 43;
    t.watch(None);
    // Reading it through for a comparison would take hours.
    t.lowers_may_change();
    let file = File::create(t.layer(0).join("f")).unwrap();
    if let Err(error) = file.set_len(SIZE) {
        skip(format!("a file of 2^43 bytes on this file system: {error}"));
    }
    rustix::io::pwrite(&file, b"middle", SIZE / 2).unwrap();
    drop(file);
    t.mount();
    let path = t.at("f");
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // Copies up.
    rustix::io::pwrite(&file, b"end", SIZE - 3).unwrap();
    file.sync_all().unwrap();
    let mut buffer = [0; 6];
    rustix::io::pread(&file, &mut buffer, SIZE / 2).unwrap();
    assert_eq!(&buffer, b"middle");
    assert_eq!(rustix::io::pread(&file, &mut buffer, SIZE - 3).unwrap(), 3);
    assert_eq!(&buffer[..3], b"end");
    assert_eq!(rustix::io::pread(&file, &mut buffer, SIZE).unwrap(), 0);
    let data = rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap();
    assert!(data <= SIZE / 2 && data > SIZE / 2 - (1 << 20), "data at {data}");
    file.set_len(SIZE - 1).unwrap();
    drop(file);
    t.umount();
    let copy = fs::metadata(t.upper("f")).unwrap();
    assert_eq!(copy.len(), SIZE - 1);
    assert!(copy.blocks() < 10_000, "{} blocks: its holes are filled", copy.blocks());
    t.mount();
    fs::remove_file(t.at("f")).unwrap();
    t.assert_lives();
}

/// Whatever is in the work directory goes, and nothing outside of it.
fn work_directory_full_of_anything(t: &Tree) {
    const LEVELS: usize = 300;
    t.lower(&["f=l"]);
    let outside = t.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "outside").unwrap();
    let before = Snapshot::of(&outside);
    let work = t.work("work");
    fs::create_dir(&work).unwrap();
    symlink(&outside, work.join("link")).unwrap();
    mknod(&work.join("fifo"), FileType::Fifo, 0o600, (0, 0)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(work.join("socket")).unwrap());
    fs::write(work.join("n".repeat(255)), "").unwrap();
    fs::create_dir_all(work.join("closed/inner")).unwrap();
    symlink(&outside, work.join("closed/inner/link")).unwrap();
    chmod(work.join("closed"), 0);
    drop(descend(&work, &[b'd'; 255], LEVELS));
    t.watch(Some(128));
    t.mount();
    fs::write(t.at("f"), "u").unwrap();
    assert_eq!(t.read("f"), "u");
    t.umount();
    // It is closed even to its owner.
    chmod(&work, 0o700);
    assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
    before.assert_same("outside before", &Snapshot::of(&outside), "outside after");
    t.mount();
    t.assert_lives();
}
