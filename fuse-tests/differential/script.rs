//! Random sequences of operations.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::layers::{DIRS, Entry, MODES, NAMES, Power, USERS, acl, link_target, nests};
use super::ops::{
    APPEND, IMMUTABLE, Lock, MAP_LENGTH, MAPS, Moment, On, Op, SLOTS, Special, Step, Value, Whence,
};
use super::random::Random;

const XATTRS: [&str; 16] = [
    "user.color",
    "user.big",
    "user.new",
    "trusted.note",
    "user.overlay.opaque",
    "user.overlay.origin",
    "user.overlay.overlay.opaque",
    "trusted.overlay.opaque",
    "security.capability",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "user.color",
    "security.other",
    "system.nothing",
    "nothing",
    "user.",
];

const OFFSETS: [u64; 10] = [0, 0, 1, 10, 100, 4095, 4096, 12_288, 65_536, 300_001];
const LENGTHS: [usize; 7] = [0, 1, 10, 512, 4096, 5000, 16_384];

/// Zeroing a range takes Linux 5.14 in FUSE: nobody asks for it on older ones.
fn fallocate_mode(mode: u32) -> u32 {
    let zero = rustix::fs::FallocateFlags::ZERO_RANGE.bits();
    if super::release::running() < (5, 14) {
        mode & !zero
    } else {
        mode
    }
}

fn xattr_name(random: &mut Random, power: Power) -> &'static str {
    let name = random.pick(&XATTRS);
    if !nests() && name.starts_with(&power.private("")) {
        return "user.color";
    }
    name
}

/// Random steps over the names in the layers and those that the steps make.
pub(crate) fn generate(
    random: &mut Random,
    power: Power,
    entries: &[Entry],
    count: usize,
) -> Vec<Step> {
    let mut known: Vec<PathBuf> = entries.iter().map(|entry| entry.path.clone()).collect();
    (0..count)
        .map(|_| {
            let op = one(random, power, &mut known);
            let uid = match power {
                Power::Root if random.percent(35) => random.pick(&USERS),
                _ => 0,
            };
            let umask = random.pick(&[0o022, 0o022, 0, 0o077, 0o027]);
            Step { uid, umask, op }
        })
        .collect()
}

fn path(random: &mut Random, known: &mut Vec<PathBuf>) -> PathBuf {
    if !known.is_empty() && random.percent(60) {
        return random.choose(known).clone();
    }
    let mut path = PathBuf::new();
    for _ in 0..random.weighted(&[(40, 0), (40, 1), (20, 2)]) {
        path.push(OsStr::from_bytes(random.pick(&DIRS)));
    }
    path.push(OsStr::from_bytes(random.pick(&NAMES)));
    if known.len() < 60 {
        known.push(path.clone());
    }
    path
}

fn open_flags(random: &mut Random) -> i32 {
    let mut flags = random.pick(&[
        libc::O_RDONLY,
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDWR,
    ]);
    for (chance, flag) in [
        (40, libc::O_CREAT),
        (12, libc::O_EXCL),
        (18, libc::O_TRUNC),
        (18, libc::O_APPEND),
        (8, libc::O_DIRECT),
        (6, libc::O_DIRECTORY),
        (6, libc::O_NOFOLLOW),
        (3, libc::O_SYNC),
        (3, libc::O_DSYNC),
        (2, libc::O_PATH),
        (2, libc::O_NOATIME),
    ] {
        if random.percent(chance) {
            flags |= flag;
        }
    }
    // Appending starts where the file ends, which is seldom at a whole block.
    if flags & libc::O_APPEND != 0 {
        flags &= !libc::O_DIRECT;
    }
    // Its behaviour without O_CREAT is undefined (open(2)); both together were refused or
    // allowed by different kernels.
    if flags & libc::O_CREAT == 0 {
        flags &= !libc::O_EXCL;
    } else {
        flags &= !libc::O_DIRECTORY;
    }
    flags
}

fn moment(random: &mut Random) -> Moment {
    match random.below(8) {
        0..3 => Moment::Now,
        3 => Moment::Omit,
        4 => Moment::At(-5),
        _ => Moment::At(random.pick(&[0, 1_100_000_000, 1_234_567_890])),
    }
}

fn value(random: &mut Random, power: Power, name: &str) -> Vec<u8> {
    match name {
        "system.posix_acl_access" | "system.posix_acl_default" if random.percent(95) => {
            acl(random, power)
        }
        // A valid VFS_CAP_REVISION_2 with CAP_NET_RAW.
        "security.capability" => {
            let words: [u32; 5] = [0x0200_0001, 0x2000, 0, 0, 0];
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        }
        _ => random
            .choose(&[
                b"y".to_vec(),
                b"".to_vec(),
                b"x".to_vec(),
                vec![b'v'; 300],
                vec![b'w'; 5000],
            ])
            .clone(),
    }
}

fn one(random: &mut Random, power: Power, known: &mut Vec<PathBuf>) -> Op {
    let slot = random.below(SLOTS);
    let map = random.below(MAPS);
    let on = |random: &mut Random, known: &mut Vec<PathBuf>| {
        if random.percent(35) {
            On::Slot(slot)
        } else {
            On::Path(path(random, known))
        }
    };
    let at = random.pick(&OFFSETS);
    let length = random.pick(&LENGTHS);
    let seed = random.below(1000) as u64;
    let maybe_at = if random.percent(60) { Some(at) } else { None };
    match random.below(1095) {
        0..150 => Op::Open {
            slot,
            path: path(random, known),
            flags: open_flags(random),
            mode: random.pick(&MODES),
        },
        150..160 => Op::Close { slot },
        160..220 => Op::Read {
            slot,
            at: maybe_at,
            length,
        },
        220..310 => Op::Write {
            slot,
            at: maybe_at,
            length,
            seed,
        },
        310..340 => Op::Truncate {
            on: on(random, known),
            size: random.pick(&[0, 1, 100, 4096, 5000, 70_000, 400_000]),
        },
        340..390 => Op::Chmod {
            on: on(random, known),
            mode: random.pick(&MODES),
        },
        390..420 => {
            let id = |random: &mut Random| random.percent(70).then(|| random.pick(&USERS));
            Op::Chown {
                on: on(random, known),
                uid: id(random),
                gid: id(random),
            }
        }
        420..440 => Op::Utimens {
            on: on(random, known),
            atime: moment(random),
            mtime: moment(random),
        },
        440..490 => Op::Mkdir {
            path: path(random, known),
            mode: random.pick(&MODES),
        },
        490..525 => Op::Rmdir {
            path: path(random, known),
        },
        525..545 => {
            let kind = random.pick(&[
                Special::Fifo,
                Special::Socket,
                Special::Null,
                Special::Loop,
                Special::Whiteout,
                Special::Regular,
            ]);
            Op::Mknod {
                path: path(random, known),
                kind,
                mode: random.pick(&MODES),
            }
        }
        545..565 => Op::Symlink {
            target: link_target(random),
            path: path(random, known),
        },
        565..575 => Op::Readlink {
            path: path(random, known),
        },
        575..615 => Op::Link {
            from: path(random, known),
            to: path(random, known),
        },
        615..665 => Op::Unlink {
            path: path(random, known),
        },
        665..750 => Op::Rename {
            from: path(random, known),
            to: path(random, known),
            flags: random.weighted(&[(68, 0), (12, 1), (18, 2), (1, 4), (1, 3)]),
        },
        750..765 => Op::Getxattr {
            on: on(random, known),
            name: xattr_name(random, power),
            room: room(random),
        },
        765..775 => Op::Listxattr {
            on: on(random, known),
            room: room(random),
        },
        775..805 => {
            let name = xattr_name(random, power);
            Op::Setxattr {
                on: on(random, known),
                name,
                value: Value(value(random, power, name)),
                flags: random.pick(&[0, 0, 0, 1, 2]),
            }
        }
        805..820 => Op::Removexattr {
            on: on(random, known),
            name: xattr_name(random, power),
        },
        820..850 => Op::Readdir {
            on: if random.percent(10) {
                On::Path(PathBuf::from("."))
            } else {
                on(random, known)
            },
            room: random.pick(&[8192, 8192, 300]),
        },
        850..890 => Op::Stat {
            on: on(random, known),
            follow: random.percent(30),
        },
        890..898 => Op::Access {
            path: path(random, known),
            mode: random.below(8) as u32,
        },
        898..918 => Op::Fallocate {
            slot,
            mode: fallocate_mode(random.weighted(&[
                (6, 0),
                (3, 1),
                (5, 3),
                (4, 16),
                (4, 17),
                (1, 8),
                (1, 32),
                (1, 64),
            ])),
            at,
            length: random.pick(&[1, 4096, 8192, 100_000]),
        },
        918..930 => Op::Seek {
            slot,
            whence: random.pick(&[
                Whence::Data,
                Whence::Data,
                Whence::Hole,
                Whence::Hole,
                Whence::End,
            ]),
            at,
        },
        930..945 => Op::CopyRange {
            from: random.below(SLOTS),
            from_at: random.pick(&OFFSETS),
            to: slot,
            to_at: at,
            length: random.pick(&LENGTHS),
        },
        945..952 => Op::Fsync {
            slot,
            data: random.percent(40),
        },
        952..964 => Op::MapOnce {
            path: path(random, known),
            shared: random.percent(50),
        },
        964..974 => Op::Map { map, slot },
        974..982 => Op::MapRead {
            map,
            at: at as usize % MAP_LENGTH,
        },
        982..994 => Op::MapWrite {
            map,
            at: at as usize % MAP_LENGTH,
            length: 1 + random.below(100),
            seed,
        },
        994..997 => Op::Unmap { map },
        997..1000 => Op::Readdir {
            on: On::Path(PathBuf::from(".")),
            room: 8192,
        },
        1000..1008 => Op::Clone {
            from: random.below(SLOTS),
            to: slot,
        },
        1008..1014 => Op::Send {
            from: random.below(SLOTS),
            at,
            to: slot,
            length,
        },
        1014..1036 => Op::Lock {
            slot,
            lock: lock(random),
        },
        1036..1048 => Op::Flags {
            on: on(random, known),
            // Older kernels' overlays leave them behind at a copy-up.
            set: (random.percent(60) && super::release::running() >= (5, 15))
                .then(|| inode_flags(random, power)),
        },
        1048..1060 => Op::Statx {
            on: on(random, known),
            force: random.percent(30),
        },
        1060..1064 => Op::Statfs {
            path: path(random, known),
        },
        1064..1072 => Op::LinkSlot {
            slot,
            to: path(random, known),
        },
        _ => Op::Within {
            slot,
            op: Box::new(within(random, power, known)),
        },
    }
}

/// Something that names a path.
fn within(random: &mut Random, power: Power, known: &[PathBuf]) -> Op {
    loop {
        match one(random, power, &mut known.to_vec()) {
            Op::Within { .. } | Op::LinkSlot { .. } | Op::Map { .. } => {}
            Op::Open {
                slot, flags, mode, ..
            } => {
                let path = short_path(random);
                return Op::Open {
                    slot,
                    path,
                    flags,
                    mode,
                };
            }
            Op::Mkdir { mode, .. } => {
                let path = short_path(random);
                return Op::Mkdir { path, mode };
            }
            Op::Mknod { kind, mode, .. } => {
                let path = short_path(random);
                return Op::Mknod { path, kind, mode };
            }
            Op::Symlink { target, .. } => {
                let path = short_path(random);
                return Op::Symlink { target, path };
            }
            Op::Unlink { .. } => {
                return Op::Unlink {
                    path: short_path(random),
                };
            }
            Op::Rmdir { .. } => {
                return Op::Rmdir {
                    path: short_path(random),
                };
            }
            Op::Link { .. } => {
                let (from, to) = (short_path(random), short_path(random));
                return Op::Link { from, to };
            }
            Op::Rename { flags, .. } => {
                let (from, to) = (short_path(random), short_path(random));
                return Op::Rename { from, to, flags };
            }
            Op::Stat { follow, .. } => {
                let on = On::Path(short_path(random));
                return Op::Stat { on, follow };
            }
            Op::Chmod { mode, .. } => {
                let on = On::Path(short_path(random));
                return Op::Chmod { on, mode };
            }
            _ => {}
        }
    }
}

/// A name, or one in a directory.
fn short_path(random: &mut Random) -> PathBuf {
    let mut path = PathBuf::new();
    if random.percent(25) {
        path.push(OsStr::from_bytes(random.pick(&DIRS)));
    }
    path.push(OsStr::from_bytes(random.pick(&NAMES)));
    path
}

/// The length of a buffer for attributes: enough, too little, and 0 to ask how much is needed.
fn room(random: &mut Random) -> usize {
    random.pick(&[70_000, 70_000, 70_000, 70_000, 70_000, 0, 2])
}

fn lock(random: &mut Random) -> Lock {
    let kind = random.pick(&[libc::F_RDLCK, libc::F_WRLCK, libc::F_WRLCK, libc::F_UNLCK]);
    let at = random.pick(&[0, 0, 10, 5000]);
    let length = random.pick(&[0, 1, 100, 10_000]);
    match random.below(3) {
        0 => Lock::Whole(kind),
        1 => Lock::Range { kind, at, length },
        _ => Lock::Ask {
            kind: libc::F_WRLCK,
            at,
            length,
        },
    }
}

fn inode_flags(random: &mut Random, power: Power) -> u32 {
    const SYNC: u32 = 0x8;
    const NODUMP: u32 = 0x40;
    const NOATIME: u32 = 0x80;
    let usual = random.pick(&[0, 0, NODUMP, SYNC, NOATIME, NODUMP | SYNC]);
    match power {
        Power::Root if random.percent(10) => usual | random.pick(&[IMMUTABLE, APPEND]),
        _ => usual,
    }
}
