//! Random layers, as data that can be printed, shrunk and built any number of times.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags};

use super::random::Random;

/// The names of everything. Few, so that layers and operations meet.
pub(crate) const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"\xffx"];
/// The names that are mostly directories.
pub(crate) const DIRS: [&[u8]; 2] = [b"d", b"e"];
/// Permission bits of files and directories.
pub(crate) const MODES: [u32; 14] = [
    0o644, 0o644, 0o755, 0o755, 0o777, 0o666, 0o600, 0o700, 0o4755, 0o2755, 0o2777, 0o1777, 0o6711,
    0o040,
];
/// The users, where there are several; each has a group of its own number.
pub(crate) const USERS: [u32; 3] = [0, 1001, 1002];
/// A user who is in the second one's group, too.
pub(crate) const IN_ANOTHER_GROUP: u32 = 1003;
/// When everything in a layer was last changed; the test's own "now" is told from it by far.
const OLD: i64 = 1_000_000_000;

/// Where a case runs: what only root can plant is left out for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    /// The machine's root: `trusted.overlay.*`, devices, several users.
    Root,
    /// Root of a plain user's namespace: `user.overlay.*`, one user.
    User,
}

impl Power {
    /// The overlay's own attribute with this suffix.
    pub(crate) fn private(self, suffix: &str) -> String {
        match self {
            Power::Root => format!("trusted.overlay.{suffix}"),
            Power::User => format!("user.overlay.{suffix}"),
        }
    }
}

/// Which layer an entry is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Upper,
    /// 0 is the topmost.
    Lower(usize),
}

impl Layer {
    /// The layer's directory.
    pub(crate) fn dir(self, base: &Path) -> PathBuf {
        let dir = match self {
            Layer::Upper => base.join("u"),
            Layer::Lower(index) => base.join(format!("l{index}")),
        };
        // It may be a link to another file system.
        dir.canonicalize().unwrap_or(dir)
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    /// Hides the same directory of the layers below.
    OpaqueDir,
    /// A directory that may hold whiteouts by attribute.
    XDir,
    /// Data of these (offset, length), the rest a hole up to the size.
    File(Vec<(u64, usize)>, u64),
    HardLink(PathBuf),
    Symlink(PathBuf),
    Fifo,
    Socket,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Whiteout,
    /// An empty file with the `whiteout` attribute.
    XWhiteout,
}

/// One object of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) layer: Layer,
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) xattrs: Vec<(&'static str, Vec<u8>)>,
    /// Inode flags of files and directories, where the file system has them.
    pub(crate) flags: IFlags,
}

/// Random layers: `lowers` of them and sometimes something in the upper.
pub(crate) fn generate(random: &mut Random, power: Power, lowers: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    for index in 0..lowers {
        grow(
            random,
            power,
            Layer::Lower(index),
            Path::new(""),
            false,
            &mut entries,
        );
    }
    if random.percent(25) {
        grow(
            random,
            power,
            Layer::Upper,
            Path::new(""),
            false,
            &mut entries,
        );
    }
    entries
}

fn grow(
    random: &mut Random,
    power: Power,
    layer: Layer,
    dir: &Path,
    in_x: bool,
    entries: &mut Vec<Entry>,
) {
    let depth = dir.components().count();
    for name in NAMES {
        let wanted = if name[0] == 0xff {
            10
        } else if depth == 0 {
            60
        } else {
            45
        };
        if !random.percent(wanted) {
            continue;
        }
        let path = dir.join(OsStr::from_bytes(name));
        let usually_dir = DIRS.contains(&name);
        let kind = if depth < 3 && random.percent(if usually_dir { 75 } else { 8 }) {
            dir_kind(random, layer)
        } else {
            leaf_kind(random, power, layer, in_x, entries)
        };
        let is_dir = matches!(kind, Kind::Dir | Kind::OpaqueDir | Kind::XDir);
        let below_x = kind == Kind::XDir;
        let mut mode = random.pick(&MODES);
        if is_dir && random.percent(70) {
            mode |= 0o755;
        }
        let owner = match power {
            Power::Root => (random.pick(&USERS), random.pick(&USERS)),
            Power::User => (0, 0),
        };
        let xattrs = some_xattrs(random, power, is_dir);
        entries.push(Entry {
            layer,
            path: path.clone(),
            kind,
            mode,
            owner,
            xattrs,
            flags: match random.below(60) {
                0 => IFlags::SYNC,
                1 => IFlags::NOATIME,
                2 => IFlags::NODUMP,
                // Which the layer of a mount can't have: it would have to be changed.
                3 if layer != Layer::Upper => IFlags::APPEND,
                4 if layer != Layer::Upper => IFlags::IMMUTABLE,
                _ => IFlags::empty(),
            },
        });
        if is_dir {
            grow(random, power, layer, &path, below_x, entries);
        }
    }
}

/// Whether the kernel's overlay escapes attributes of its own name and reads whiteouts that are
/// attributes, as it has done since Linux 6.7. Sequences have none of both where it doesn't.
pub(crate) fn nests() -> bool {
    super::release::running() >= (6, 7)
}

fn dir_kind(random: &mut Random, layer: Layer) -> Kind {
    match random.below(100) {
        0..15 => Kind::OpaqueDir,
        15..20 if layer != Layer::Upper && nests() => Kind::XDir,
        _ => Kind::Dir,
    }
}

fn leaf_kind(
    random: &mut Random,
    power: Power,
    layer: Layer,
    in_x: bool,
    entries: &[Entry],
) -> Kind {
    let files: Vec<_> = entries
        .iter()
        .filter(|e| {
            e.layer == layer && matches!(e.kind, Kind::File(..) | Kind::Symlink(_) | Kind::Fifo)
        })
        .map(|e| &e.path)
        .collect();
    match random.below(100) {
        0..14 if !files.is_empty() => Kind::HardLink(random.choose(&files).to_path_buf()),
        14..26 => Kind::Symlink(link_target(random)),
        26..30 => Kind::Fifo,
        30..32 => Kind::Socket,
        32..35 if power == Power::Root => Kind::CharDevice(1, random.pick(&[3, 5])),
        35..37 if power == Power::Root => Kind::BlockDevice(7, 200),
        37..52 => Kind::Whiteout,
        52..80 if in_x => Kind::XWhiteout,
        _ => file_kind(random),
    }
}

fn file_kind(random: &mut Random) -> Kind {
    let mut parts = Vec::new();
    let mut size = 0;
    for _ in 0..random.below(4) {
        let at = random.pick(&[0, 0, 1, 4096, 5000, 20_000, 65_536, 300_000, 2_500_000]);
        let length = random.pick(&[1, 10, 100, 4096, 5000, 12_288]);
        parts.push((at, length));
        size = size.max(at + length as u64);
    }
    if random.percent(20) {
        size += random.pick(&[1, 4096, 100_000]);
    }
    Kind::File(parts, size)
}

/// Where a symbolic link points.
pub(crate) fn link_target(random: &mut Random) -> PathBuf {
    PathBuf::from(random.pick(&[
        "a",
        "b",
        "d",
        "d/a",
        "../a",
        "e/d",
        "nowhere",
        "/dev/null/nowhere",
    ]))
}

fn some_xattrs(random: &mut Random, power: Power, is_dir: bool) -> Vec<(&'static str, Vec<u8>)> {
    let mut xattrs = Vec::new();
    if random.percent(15) {
        xattrs.push(("user.color", b"red".to_vec()));
    }
    if random.percent(3) {
        xattrs.push(("user.big", vec![b'x'; 600]));
    }
    if power == Power::Root && random.percent(5) {
        xattrs.push(("trusted.note", b"1".to_vec()));
    }
    if random.percent(4) && nests() {
        let escaped = match power {
            Power::Root => "trusted.overlay.overlay.opaque",
            Power::User => "user.overlay.overlay.opaque",
        };
        xattrs.push((escaped, b"y".to_vec()));
    }
    if power == Power::Root && random.percent(3) {
        xattrs.push(("user.overlay.opaque", b"y".to_vec()));
    }
    if random.percent(8) {
        xattrs.push(("system.posix_acl_access", acl(random, power)));
    }
    if is_dir && random.percent(8) {
        xattrs.push(("system.posix_acl_default", acl(random, power)));
    }
    xattrs
}

/// A valid POSIX ACL with a named user, as setxattr(2) takes it.
pub(crate) fn acl(random: &mut Random, power: Power) -> Vec<u8> {
    let named = match power {
        Power::Root => 1001,
        Power::User => 0,
    };
    let undefined = u32::MAX;
    let mut value = 2u32.to_le_bytes().to_vec();
    let mut add = |tag: u16, perm: usize, id: u32| {
        value.extend(tag.to_le_bytes());
        value.extend((perm as u16).to_le_bytes());
        value.extend(id.to_le_bytes());
    };
    add(0x01, 6 | random.below(2), undefined);
    add(0x02, random.below(8), named);
    add(0x04, random.below(8), undefined);
    add(0x10, random.below(8), undefined);
    add(0x20, random.below(8), undefined);
    value
}

/// The bytes of a file or a write: they tell where they were meant to be.
pub(crate) fn fill(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| b'!' + ((seed.wrapping_mul(31) + at + at / 89) % 90) as u8)
        .collect()
}

/// Makes the layers below `base`. What can't be made (its parent was shrunk away) is left out.
pub(crate) fn build(
    base: &Path,
    power: Power,
    lowers: usize,
    entries: &[Entry],
    homes: &[PathBuf],
) -> std::io::Result<()> {
    for name in ["", "m"] {
        fs::create_dir(base.join(name))?;
    }
    // The first home is that of upper and work directory.
    let upper = ["u", "w"].map(|name| (name.to_owned(), 0));
    let lower = (0..lowers).map(|index| (format!("l{index}"), index + 1));
    for (name, home) in upper.into_iter().chain(lower) {
        let plain = base.join(&name);
        let Some(home) = homes.get(home) else {
            fs::create_dir(plain)?;
            continue;
        };
        let side = base.file_name().unwrap_or_default();
        let far = home.join(side).join(&name);
        fs::create_dir_all(&far)?;
        symlink(far, plain)?;
    }
    let made: Vec<bool> = entries
        .iter()
        .map(|entry| make(base, entry).is_ok())
        .collect();
    for (index, entry) in entries.iter().enumerate().rev() {
        if made[index] {
            dress(base, power, lowers, entry, index as i64);
        }
    }
    for (entry, _) in entries.iter().zip(made).filter(|(_, made)| *made) {
        add_flags(&entry.layer.dir(base).join(&entry.path), entry, PROTECTING);
    }
    for layer in (0..lowers).map(Layer::Lower).chain([Layer::Upper]) {
        let dir = layer.dir(base);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
        set_time(&dir, OLD);
    }
    Ok(())
}

fn make(base: &Path, entry: &Entry) -> std::io::Result<()> {
    let root = entry.layer.dir(base);
    let path = root.join(&entry.path);
    let node = |kind, device: (u32, u32)| {
        let device = rustix::fs::makedev(device.0, device.1);
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device)
    };
    // A link in the way would lead out of the layer.
    for parent in entry.path.ancestors().skip(1) {
        if !root.join(parent).symlink_metadata()?.is_dir() {
            return Err(rustix::io::Errno::NOTDIR.into());
        }
    }
    match &entry.kind {
        Kind::Dir | Kind::OpaqueDir | Kind::XDir => fs::create_dir(&path)?,
        Kind::File(parts, size) => {
            let file = fs::File::create_new(&path)?;
            for (at, length) in parts {
                let seed = at + entry.path.as_os_str().len() as u64;
                file.write_all_at(&fill(seed, *length), *at)?;
            }
            file.set_len(*size)?;
        }
        Kind::HardLink(to) => {
            rustix::fs::linkat(CWD, root.join(to), CWD, &path, AtFlags::empty())?;
        }
        Kind::Symlink(target) => symlink(target, &path)?,
        Kind::Fifo => node(FileType::Fifo, (0, 0))?,
        Kind::Socket => node(FileType::Socket, (0, 0))?,
        Kind::CharDevice(major, minor) => node(FileType::CharacterDevice, (*major, *minor))?,
        Kind::BlockDevice(major, minor) => node(FileType::BlockDevice, (*major, *minor))?,
        Kind::Whiteout => node(FileType::CharacterDevice, (0, 0))?,
        Kind::XWhiteout => drop(fs::File::create_new(&path)?),
    }
    Ok(())
}

/// What forbids changes.
pub(crate) const PROTECTING: IFlags = IFlags::APPEND.union(IFlags::IMMUTABLE);

/// Gives an object those of its inode flags that are in `which`.
fn add_flags(path: &Path, entry: &Entry, which: IFlags) {
    let plain = matches!(
        entry.kind,
        Kind::Dir | Kind::OpaqueDir | Kind::XDir | Kind::File(..)
    );
    let wanted = entry.flags & which;
    if plain
        && !wanted.is_empty()
        && let Ok(file) = fs::File::open(path)
        && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
    {
        // What else there is must stay.
        let all = IFlags::from_bits_retain(flags.bits() | wanted.bits());
        let _ = rustix::fs::ioctl_setflags(&file, all);
    }
}

/// Gives an object its owner, mode, attributes and time. What its kind can't have, it hasn't.
fn dress(base: &Path, power: Power, lowers: usize, entry: &Entry, index: i64) {
    let path = entry.layer.dir(base).join(&entry.path);
    if entry.kind == Kind::Whiteout {
        return;
    }
    let set = |name: &str, value: &[u8]| {
        let _ = rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty());
    };
    let _ = std::os::unix::fs::lchown(&path, Some(entry.owner.0), Some(entry.owner.1));
    if !matches!(entry.kind, Kind::Symlink(_)) && !path.is_symlink() {
        let _ = fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode));
    }
    for (name, value) in &entry.xattrs {
        set(name, value);
    }
    add_flags(&path, entry, IFlags::all() - PROTECTING);
    // A directory that was copied up says so; the kernel adds the mark at the look-up otherwise.
    if entry.layer == Layer::Upper && entry.kind == Kind::Dir && path.is_dir() {
        let has = |lower| Layer::Lower(lower).dir(base).join(&entry.path).is_dir();
        if (0..lowers).any(has) {
            set(&power.private("origin"), b"");
            if let Some(parent) = path.parent() {
                let impure = power.private("impure");
                let _ = rustix::fs::lsetxattr(parent, &*impure, b"y", XattrFlags::empty());
            }
        }
    }
    match entry.kind {
        Kind::OpaqueDir => set(&power.private("opaque"), b"y"),
        Kind::XDir => set(&power.private("opaque"), b"x"),
        Kind::XWhiteout => set(&power.private("whiteout"), b"y"),
        _ => {}
    }
    set_time(&path, OLD + 60 * index);
}

fn set_time(path: &Path, time: i64) {
    let time = Timespec {
        tv_sec: time,
        tv_nsec: 500,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}
