//! The words of the option string: one table for each option, read by the parser and the writer.

use super::{Credentials, Fsync, MountFlags, Readdirplus, RedirectDir, Switch, Uuid, Verity, Xino};

/// A value that is written as one of a few words.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// Each word with its value. The first word of a value is the one that is written.
    const WORDS: &'static [(&'static str, Self)];

    /// The value that `word` stands for.
    fn from_word(word: &[u8]) -> Option<Self> {
        Self::WORDS
            .iter()
            .find(|(name, _)| name.as_bytes() == word)
            .map(|&(_, value)| value)
    }

    /// How the value is written.
    fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|&&(_, value)| value == self)
            .map_or("", |&(name, _)| name)
    }
}

impl Word for Switch {
    const WORDS: &'static [(&'static str, Self)] = &[("on", Self::On), ("off", Self::Off)];
}

impl Word for Fsync {
    // `ordered` was `auto`'s name in an interim kernel tree.
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("strict", Self::Strict),
        ("volatile", Self::Volatile),
        ("ordered", Self::Auto),
    ];
}

impl Word for RedirectDir {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("on", Self::On),
        ("off", Self::Off),
        ("follow", Self::Follow),
        ("nofollow", Self::NoFollow),
    ];
}

impl Word for Xino {
    const WORDS: &'static [(&'static str, Self)] =
        &[("on", Self::On), ("off", Self::Off), ("auto", Self::Auto)];
}

impl Word for Uuid {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("on", Self::On),
        ("off", Self::Off),
        ("auto", Self::Auto),
        ("null", Self::Null),
    ];
}

impl Word for Verity {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("on", Self::On),
        ("off", Self::Off),
        ("require", Self::Require),
    ];
}

impl Word for Readdirplus {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("always", Self::Always),
        ("off", Self::Off),
    ];
}

impl Word for Credentials {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("override_creds", Self::Mounter),
        ("nooverride_creds", Self::Caller),
    ];
}

/// What a generic flag does to the flags seen so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    /// As it is written.
    pub(super) name: &'static str,
    /// What it sets.
    pub(super) set: MountFlags,
    /// What it clears, before it sets.
    pub(super) clear: MountFlags,
}

const fn flag(name: &'static str, set: MountFlags, clear: MountFlags) -> Flag {
    Flag { name, set, clear }
}

const NONE: MountFlags = MountFlags::empty();
const ATIME: MountFlags = MountFlags::NOATIME
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME);

/// The generic mount flags and their opposites.
pub(super) const FLAGS: &[Flag] = &[
    flag("ro", MountFlags::RO, NONE),
    flag("rw", NONE, MountFlags::RO),
    flag("nosuid", MountFlags::NOSUID, NONE),
    flag("suid", NONE, MountFlags::NOSUID),
    flag("nodev", MountFlags::NODEV, NONE),
    flag("dev", NONE, MountFlags::NODEV),
    flag("noexec", MountFlags::NOEXEC, NONE),
    flag("exec", NONE, MountFlags::NOEXEC),
    flag("noatime", MountFlags::NOATIME, ATIME),
    flag("atime", NONE, MountFlags::NOATIME),
    flag("nodiratime", MountFlags::NODIRATIME, NONE),
    flag("diratime", NONE, MountFlags::NODIRATIME),
    flag("relatime", MountFlags::RELATIME, ATIME),
    flag("norelatime", NONE, MountFlags::RELATIME),
    flag("strictatime", MountFlags::STRICTATIME, ATIME),
    flag("nostrictatime", NONE, MountFlags::STRICTATIME),
    flag("sync", MountFlags::SYNC, NONE),
    flag("async", NONE, MountFlags::SYNC),
    flag("dirsync", MountFlags::DIRSYNC, NONE),
    flag("nosymfollow", MountFlags::NOSYMFOLLOW, NONE),
    flag("symfollow", NONE, MountFlags::NOSYMFOLLOW),
];

/// Words that speak to mount(8) or fstab and mean nothing to a mount: accepted, and dropped.
pub(super) fn is_for_fstab(name: &[u8]) -> bool {
    const WORDS: &[&[u8]] = &[
        b"defaults",
        b"auto",
        b"noauto",
        b"nofail",
        b"_netdev",
        b"comment",
        b"user",
        b"nouser",
        b"users",
        b"nousers",
        b"owner",
        b"noowner",
        b"group",
        b"nogroup",
        b"helper",
        b"uhelper",
    ];
    WORDS.contains(&name) || name.starts_with(b"x-") || name.starts_with(b"X-")
}
