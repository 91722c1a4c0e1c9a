//! What the kernel may remember, and what is agreed with it when the mount starts.

use std::time::Duration;

use fuser::{FopenFlags, InitFlags, KernelConfig};

/// For how long the kernel may answer from memory.
///
/// Nobody but the server changes the tree, and whatever changes it comes through the kernel, which
/// drops what it knows of the changed node by itself. So by default it may remember for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePolicy {
    /// That a name leads to a node.
    pub entry: Duration,
    /// That a name leads nowhere.
    pub absent: Duration,
    /// The attributes of a node.
    pub attr: Duration,
}

impl CachePolicy {
    /// For ever: 136 years. The kernel counts in jiffies and caps what is too long for it.
    pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self {
            entry: Self::FOREVER,
            absent: Self::FOREVER,
            attr: Self::FOREVER,
        }
    }
}

/// The largest read and write request.
pub(crate) const MAX_REQUEST: u32 = 1 << 20;
/// How many requests that nobody waits for (read-ahead, write-back) may be under way.
const MAX_BACKGROUND: u16 = 64;
/// From how many on the kernel holds back.
const CONGESTION: u16 = 48;

/// What is asked of the kernel, each on its own: an old kernel gives what it has.
///
/// Left out on purpose: `ATOMIC_O_TRUNC`, which loses `O_TRUNC` when nothing is opened;
/// `WRITEBACK_CACHE`; `POSIX_LOCKS` and `FLOCK_LOCKS`, without which the kernel keeps advisory
/// locks itself, on the merged inode; `AUTO_INVAL_DATA`, since no data changes behind its back;
/// `EXPORT_SUPPORT`; `SETXATTR_EXT`, which fuser 0.18 can't decode; `CREATE_SUPP_GROUP`.
const WANTED: [InitFlags; 10] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// Which of the requests that can be done without the kernel can do without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Opens {
    files: Open,
    directories: Open,
}

/// How an OPEN or OPENDIR is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Open {
    /// With a handle that nobody looks at, each time: the kernel insists.
    #[default]
    Each,
    /// With `ENOSYS`, once: the kernel then opens by itself, keeping its caches.
    Never,
}

impl Opens {
    /// How to answer an OPEN; `None` stands for `ENOSYS`.
    pub(super) fn file(self) -> Option<FopenFlags> {
        (self.files == Open::Each).then_some(FopenFlags::FOPEN_KEEP_CACHE)
    }

    /// How to answer an OPENDIR; `None` stands for `ENOSYS`.
    pub(super) fn directory(self) -> Option<FopenFlags> {
        (self.directories == Open::Each)
            .then_some(FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR)
    }
}

/// Agrees with the kernel on what it offers and we want.
pub(super) fn negotiate(config: &mut KernelConfig) -> Opens {
    for flag in WANTED {
        if config.add_capabilities(flag).is_err() {
            log::debug!("the kernel does not offer {flag:?}");
        }
    }
    // The kernel offers a size and takes no larger one; fuser's default is that offer.
    let sizes = [
        config.set_max_write(MAX_REQUEST).is_ok(),
        config.set_max_background(MAX_BACKGROUND).is_ok(),
        config.set_congestion_threshold(CONGESTION).is_ok(),
    ];
    if sizes.contains(&false) {
        log::warn!("a request size was not accepted; the defaults are in force");
    }
    let offered = config.capabilities();
    let open = |flag| {
        if offered.contains(flag) {
            Open::Never
        } else {
            Open::Each
        }
    };
    Opens {
        files: open(InitFlags::FUSE_NO_OPEN_SUPPORT),
        directories: open(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
    }
}
