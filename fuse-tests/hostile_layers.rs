//! Layers that somebody else changes while they are mounted. What a program then sees is not
//! defined, but bounded: an error, or data of the layers; never a hang, a panic, or an object
//! that lies outside the layers.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};

use crate::common::{
    Limit, Snapshot, Tree, cases, chmod, mknod, rename2, set_times, xattr_get,
};

const OURS: Limit = Limit::Fuse("the kernel promises nothing about layers that change");

cases! {
    lower_files_replaced: OURS,
    upper_files_replaced: OURS,
    lower_directories_replaced: OURS,
    upper_directories_replaced: OURS,
    lower_directories_swapped_in_mid_walk: OURS,
    upper_directories_swapped_in_mid_walk: OURS,
    upper_files_swapped_while_they_are_changed: OURS,
    lower_files_cut_and_grown_while_they_are_copied: OURS,
    names_that_come_and_go_while_they_are_listed,
}

/// Whatever shows this has left the layers.
const SECRET: &str = "SECRET from outside of the layers";

/// Few enough that directories are opened again at every step.
const FEW: Option<u32> = Some(96);

/// What takes an object's place.
#[derive(Debug, Clone, Copy)]
enum Swap {
    Removed,
    Renamed,
    OtherFile,
    Cut,
    Directory,
    Fifo,
    Socket,
    Link,
    DanglingLink,
    LinkToDirectory,
    LinkToItself,
    Device,
}

const SWAPS: [Swap; 12] = [
    Swap::Removed,
    Swap::Renamed,
    Swap::OtherFile,
    Swap::Cut,
    Swap::Directory,
    Swap::Fifo,
    Swap::Socket,
    Swap::Link,
    Swap::DanglingLink,
    Swap::LinkToDirectory,
    Swap::LinkToItself,
    Swap::Device,
];

/// How much of an object the kernel and the server know before it is swapped.
const SEEN: [&str; 4] = ["unseen", "seen", "read", "changed"];

fn swap(path: &Path, outside: &Path, how: Swap) {
    let aside = path.with_extension("aside");
    let new = path.with_extension("new");
    match how {
        Swap::Removed if path.is_dir() => return fs::remove_dir_all(path).unwrap(),
        Swap::Removed => return fs::remove_file(path).unwrap(),
        Swap::Renamed => return fs::rename(path, aside).unwrap(),
        Swap::Cut if path.is_dir() => {
            fs::remove_file(path.join("f")).unwrap();
            return;
        }
        Swap::Cut => return fs::write(path, "").unwrap(),
        Swap::OtherFile => fs::write(&new, "another file of the layer").unwrap(),
        Swap::Directory => {
            fs::create_dir(&new).unwrap();
            fs::write(new.join("f"), "another directory of the layer").unwrap();
        }
        Swap::Fifo => mknod(&new, FileType::Fifo, 0o644, (0, 0)).unwrap(),
        Swap::Socket => drop(UnixListener::bind(&new).unwrap()),
        Swap::Link => symlink(outside.join("f"), &new).unwrap(),
        Swap::DanglingLink => symlink("nowhere", &new).unwrap(),
        Swap::LinkToDirectory => symlink(outside, &new).unwrap(),
        Swap::LinkToItself => symlink(path, &new).unwrap(),
        // /dev/zero: whoever reads it never comes to an end. Only root can make it.
        Swap::Device => {
            if mknod(&new, FileType::CharacterDevice, 0o644, (1, 5)).is_err() {
                return;
            }
        }
    }
    fs::rename(path, aside).unwrap();
    fs::rename(new, path).unwrap();
}

/// A directory beside the layers with the same names as those in them.
fn outside(t: &Tree) -> PathBuf {
    let dir = t.beside("outside");
    fs::create_dir(&dir).unwrap();
    for number in 0..ROUNDS {
        fs::write(dir.join(format!("f{number}")), SECRET).unwrap();
    }
    fs::write(dir.join("f"), SECRET).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/f"), SECRET).unwrap();
    dir
}

#[track_caller]
fn no_secret(what: &Path, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    assert!(!text.contains(SECRET), "{} left its layer", what.display());
}

/// Everything that can be done to a name; results don't matter, secrets do. No link is followed:
/// where one leads is the caller's business, as on any file system.
fn do_everything(path: &Path) {
    for _ in 0..2 {
        let _ = fs::read_link(path);
        let _ = xattr_get(path, "user.x");
        if let Ok(bytes) = read_at(CWD, path) {
            no_secret(path, &bytes);
        }
        do_everything_in(path);
    }
    if let Ok(file) = open_file(CWD, path, OFlags::WRONLY) {
        let _ = rustix::io::pwrite(&file, b"changed", 0);
        let _ = rustix::fs::ftruncate(&file, 3);
        let _ = rustix::fs::fchmod(&file, Mode::from_raw_mode(0o711));
    }
    let _ = rustix::fs::chownat(CWD, path, None, None, AtFlags::SYMLINK_NOFOLLOW);
    let _ = set_times(path, (1, 0), (2, 0));
    let _ = rustix::fs::lsetxattr(path, "user.x", b"1", XattrFlags::empty());
    let link = path.with_extension("link");
    let _ = fs::hard_link(path, &link);
    let _ = fs::remove_file(&link);
    let _ = fs::rename(path, &link);
    let _ = fs::rename(&link, path);
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir(path);
}

/// As [`do_everything`] in a directory.
fn do_everything_in(path: &Path) {
    let Ok(dir) = open_dir(path) else { return };
    if let Ok(entries) = rustix::fs::Dir::read_from(&dir) {
        let _ = entries.count();
    }
    let sub = rustix::fs::openat(&dir, "sub", DIRECTORY, Mode::empty()).ok();
    for dir in [Some(&dir), sub.as_ref()].into_iter().flatten() {
        if let Ok(bytes) = read_at(dir, Path::new("f")) {
            no_secret(path, &bytes);
        }
        if let Ok(file) = open_file(dir, Path::new("f"), OFlags::WRONLY) {
            let _ = rustix::io::pwrite(&file, b"changed", 0);
        }
        make_in(dir, "new");
        let _ = rustix::fs::mkdirat(dir, "made", Mode::RWXU);
        let _ = rustix::fs::renameat(dir, "f", dir, "moved");
        let _ = rustix::fs::unlinkat(dir, "moved", AtFlags::empty());
        let _ = rustix::fs::fchmod(dir, Mode::from_raw_mode(0o711));
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens the directory itself, not what a link in its place leads to.
fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(dir, DIRECTORY, Mode::empty())?)
}

/// Opens without following a link or waiting for the other end of a fifo.
fn open_file(dir: impl AsFd, name: &Path, access: OFlags) -> io::Result<OwnedFd> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// The head of a file: a device may have no end.
fn read_at(dir: impl AsFd, name: &Path) -> io::Result<Vec<u8>> {
    let file = open_file(dir, name, OFlags::RDONLY)?;
    let mut buffer = vec![0; 4096];
    let length = rustix::io::pread(&file, &mut buffer, 0)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn make_in(dir: impl AsFd, name: &str) {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::openat(&dir, name, flags, Mode::RUSR) {
        let _ = rustix::io::pwrite(&file, b"made", 0);
        let _ = rustix::fs::renameat(&dir, name, &dir, "renamed");
        let _ = rustix::fs::unlinkat(&dir, "f0", AtFlags::empty());
    }
}

/// Plants one object for each swap and state of knowledge, mounts, swaps, does everything.
fn replace(t: &Tree, layer: &Path, directories: bool) {
    let outside = outside(t);
    let before = Snapshot::of(&outside);
    let names: Vec<_> = SWAPS
        .iter()
        .flat_map(|how| SEEN.map(|seen| (*how, seen, format!("{how:?}-{seen}"))))
        .collect();
    for (_, _, name) in &names {
        let path = layer.join(name);
        if directories {
            fs::create_dir_all(path.join("sub")).unwrap();
            fs::write(path.join("f"), "of the layer").unwrap();
            fs::write(path.join("sub/f"), "of the layer").unwrap();
        } else {
            fs::write(&path, "of the layer").unwrap();
        }
    }
    t.lowers_may_change();
    t.watch(FEW);
    t.mount();
    for (how, seen, name) in &names {
        let merged = t.at(name);
        let file = if directories { merged.join("sub/f") } else { merged.clone() };
        let mut held = None;
        match *seen {
            "unseen" => {}
            "seen" => drop(fs::symlink_metadata(&file).unwrap()),
            "read" => held = Some(fs::File::open(&file).unwrap()),
            _ => {
                held = Some(fs::OpenOptions::new().read(true).append(true).open(&file).unwrap());
                chmod(&file, 0o600);
            }
        }
        if let Some(file) = &held {
            let mut byte = [0];
            let _ = rustix::io::pread(file, &mut byte, 0);
        }
        swap(&layer.join(name), &outside, *how);
        do_everything(&merged);
        if let Some(file) = held {
            let mut buffer = vec![0; 4096];
            if let Ok(length) = rustix::io::pread(&file, &mut buffer, 0) {
                no_secret(&merged, &buffer[..length]);
            }
            let _ = rustix::io::pwrite(&file, b"late", 0);
            let _ = file.sync_all();
        }
        t.assert_lives();
    }
    before.assert_same("outside before", &Snapshot::of(&outside), "outside after");
}

fn lower_files_replaced(t: &Tree) {
    replace(t, &t.layer(0), false);
}

fn upper_files_replaced(t: &Tree) {
    replace(t, &t.upper(""), false);
}

fn lower_directories_replaced(t: &Tree) {
    replace(t, &t.layer(0), true);
}

fn upper_directories_replaced(t: &Tree) {
    replace(t, &t.upper(""), true);
}

const DIRS: usize = 60;
const ROUNDS: usize = 12;

/// Works while another thread disturbs it.
fn while_disturbed<R>(disturb: impl Fn() + Sync, work: impl FnOnce() -> R) -> R {
    struct AtTheEnd<'a>(&'a AtomicBool);
    impl Drop for AtTheEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                disturb();
            }
        });
        // Of a failed test, too: its panic waits for the thread.
        let _end = AtTheEnd(&done);
        work()
    })
}

/// One thread exchanges directories with links to the outside and back; meanwhile everything in
/// them is looked at for the first time.
fn swap_in_mid_walk(t: &Tree, layer: &Path) {
    let outside = outside(t);
    let before = Snapshot::of(&outside);
    for number in 0..DIRS {
        let dir = layer.join(format!("d{number}"));
        fs::create_dir(&dir).unwrap();
        for round in 0..ROUNDS {
            fs::write(dir.join(format!("f{round}")), "of the layer").unwrap();
        }
        symlink(&outside, layer.join(format!("x{number}"))).unwrap();
    }
    t.lowers_may_change();
    t.watch(FEW);
    t.mount();
    let root = t.at("");
    // The kernel must know the directories as such: it would follow a link itself.
    let known = |number: usize| fs::symlink_metadata(root.join(format!("d{number}"))).unwrap().is_dir();
    assert!((0..DIRS).all(known));
    let exchange = || {
        for number in 0..DIRS {
            let [dir, link] = ["d", "x"].map(|kind| layer.join(format!("{kind}{number}")));
            let _ = rename2(&dir, &link, RenameFlags::EXCHANGE);
        }
    };
    let read = while_disturbed(exchange, || {
        let mut read_well = 0;
        for round in 0..ROUNDS {
            for number in 0..DIRS {
                let dir = root.join(format!("d{number}"));
                let Ok(opened) = open_dir(&dir) else { continue };
                if let Ok(bytes) = read_at(&opened, Path::new(&format!("f{round}"))) {
                    no_secret(&dir, &bytes);
                    read_well += 1;
                }
                make_in(&opened, &format!("n{round}"));
            }
        }
        read_well
    });
    t.assert_lives();
    before.assert_same("outside before", &Snapshot::of(&outside), "outside after");
    assert!(read > 0, "no file could be read at all");
}

fn lower_directories_swapped_in_mid_walk(t: &Tree) {
    swap_in_mid_walk(t, &t.layer(0));
}

fn upper_directories_swapped_in_mid_walk(t: &Tree) {
    swap_in_mid_walk(t, &t.upper(""));
}

/// Changes of mode, owner, times and attributes go to the file of the upper layer, or fail; never
/// to what a link in its place leads to.
fn upper_files_swapped_while_they_are_changed(t: &Tree) {
    let outside = outside(t);
    let before = Snapshot::of(&outside);
    let layer = t.upper("");
    fs::write(layer.join("f"), "of the layer").unwrap();
    symlink(outside.join("f"), layer.join("x")).unwrap();
    t.watch(None);
    t.mount();
    let merged = t.at("f");
    let held = fs::File::open(&merged).unwrap();
    let exchange = || {
        let _ = rename2(&layer.join("f"), &layer.join("x"), RenameFlags::EXCHANGE);
    };
    while_disturbed(exchange, || {
        for round in 0..400 {
            let mode = Mode::from_raw_mode(0o600 + (round % 8));
            let _ = rustix::fs::fchmod(&held, mode);
            let _ = held.set_modified(std::time::SystemTime::UNIX_EPOCH);
            let _ = rustix::fs::fsetxattr(&held, "user.x", b"1", XattrFlags::empty());
            let _ = held.set_len(u64::from(round));
        }
    });
    t.assert_lives();
    before.assert_same("outside before", &Snapshot::of(&outside), "outside after");
}

/// A copy-up that its original runs away from: an error, or a copy of something that was there.
fn lower_files_cut_and_grown_while_they_are_copied(t: &Tree) {
    const FILES: usize = 40;
    const FULL: usize = 3 << 20;
    let data = vec![b'd'; FULL];
    for number in 0..FILES {
        fs::write(t.low(&format!("f{number}")), &data).unwrap();
    }
    t.lowers_may_change();
    t.watch(None);
    t.mount();
    let (now, layer) = (AtomicUsize::new(0), t.layer(0));
    let cut_and_grow = || {
        let path = layer.join(format!("f{}", now.load(Ordering::Relaxed)));
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        for size in [FULL / 3, 0, 2 * FULL, FULL] {
            file.set_len(size as u64).unwrap();
        }
    };
    let copied = while_disturbed(cut_and_grow, || {
        let mut copied = 0;
        for number in 0..FILES {
            now.store(number, Ordering::Relaxed);
            let opened = fs::OpenOptions::new().append(true).open(t.at(&format!("f{number}")));
            if opened.and_then(|mut file| file.write_all(b"+")).is_err() {
                continue;
            }
            copied += 1;
            let there = fs::read(t.upper(&format!("f{number}"))).unwrap();
            // What was cut off has left a hole.
            assert!(there.iter().all(|byte| b"d+\0".contains(byte)), "f{number}: foreign data");
            assert!(there.contains(&b'+'), "f{number}: a write is lost");
        }
        copied
    });
    assert!(copied > 0, "nothing could be copied up");
    t.assert_lives();
}

/// Whoever lists a directory meanwhile sees each name that stays once, and each other at most once.
fn names_that_come_and_go_while_they_are_listed(t: &Tree) {
    const STAY: usize = 400;
    const COME_AND_GO: usize = 50;
    for (layer, kind) in [(t.layer(0), "low"), (t.upper(""), "up")] {
        fs::create_dir(layer.join("d")).unwrap();
        for number in 0..STAY {
            fs::write(layer.join(format!("d/{kind}-{number}")), "").unwrap();
        }
    }
    t.lowers_may_change();
    t.watch(None);
    t.mount();
    let dir = t.at("d");
    let layers = [t.layer(0).join("d"), t.upper("d")];
    let turn = AtomicUsize::new(0);
    let come_and_go = || {
        let number = turn.fetch_add(1, Ordering::Relaxed) % COME_AND_GO;
        let path = layers[number % 2].join(format!("passing-{number}"));
        if fs::remove_file(&path).is_err() {
            let _ = fs::write(&path, "");
        }
    };
    while_disturbed(come_and_go, || {
        for _ in 0..60 {
            let mut seen = BTreeSet::new();
            for entry in fs::read_dir(&dir).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(seen.insert(name.clone()), "{name} twice");
            }
            for kind in ["low", "up"] {
                for number in 0..STAY {
                    let name = format!("{kind}-{number}");
                    assert!(seen.contains(&name), "{name} is missing");
                }
            }
            // The listing is made anew.
            fs::write(dir.join("own"), "").unwrap();
            fs::remove_file(dir.join("own")).unwrap();
        }
    });
    t.assert_lives();
}
