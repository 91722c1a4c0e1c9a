//! What the kernel may remember, and what is agreed with it when the mount starts.

use std::time::Duration;

use fuser::{FopenFlags, InitFlags, KernelConfig};

use crate::options::{Readdirplus, Switch, Timeout, Tuning};

/// For how long the kernel may answer from memory.
///
/// Nobody but the server changes the tree, and whatever changes it comes through the kernel, which
/// drops what it knows of the changed node by itself. So by default it may remember for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CachePolicy {
    /// That a name leads to a node.
    pub(super) entry: Duration,
    /// That a name leads nowhere.
    pub(super) absent: Duration,
    /// The attributes of a node.
    pub(super) attr: Duration,
}

impl CachePolicy {
    /// For ever: 136 years. The kernel counts in jiffies and caps what is too long for it.
    const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
}

impl From<Timeout> for CachePolicy {
    fn from(timeout: Timeout) -> Self {
        let time = timeout.duration().unwrap_or(Self::FOREVER);
        Self {
            entry: time,
            absent: time,
            attr: time,
        }
    }
}

/// The largest read and write request.
pub(crate) const MAX_REQUEST: u32 = 1 << 20;
/// How many requests that nobody waits for (read-ahead, write-back) may be under way.
const MAX_BACKGROUND: u16 = 64;
/// From how many on the kernel holds back.
const CONGESTION: u16 = 48;

/// What is always asked of the kernel, each on its own: an old kernel gives what it has.
///
/// Left out on purpose: `ATOMIC_O_TRUNC`, which loses `O_TRUNC` when nothing is opened;
/// `POSIX_LOCKS` and `FLOCK_LOCKS`, without which the kernel keeps advisory locks itself, on the
/// merged inode; `EXPORT_SUPPORT`; `SETXATTR_EXT`, which fuser 0.18 can't decode;
/// `CREATE_SUPP_GROUP`.
const WANTED: [InitFlags; 5] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_MAX_PAGES,
];

/// What is asked of the kernel because the options say so, or say nothing.
fn wanted(tuning: &Tuning, acls: Switch) -> Vec<InitFlags> {
    let mut flags = WANTED.to_vec();
    let mut on = |wanted: bool, flag| {
        if wanted {
            flags.push(flag);
        }
    };
    on(acls == Switch::On, InitFlags::FUSE_POSIX_ACL);
    let readdirplus = tuning.readdirplus.unwrap_or(Readdirplus::Auto);
    on(
        readdirplus != Readdirplus::Off,
        InitFlags::FUSE_DO_READDIRPLUS,
    );
    on(
        readdirplus == Readdirplus::Auto,
        InitFlags::FUSE_READDIRPLUS_AUTO,
    );
    on(
        is_on(tuning.cache_symlinks, true),
        InitFlags::FUSE_CACHE_SYMLINKS,
    );
    on(
        is_on(tuning.killpriv, true),
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    );
    on(
        is_on(tuning.writeback, false),
        InitFlags::FUSE_WRITEBACK_CACHE,
    );
    // What was read is dropped when a file turns out to have changed. Otherwise nothing changes
    // behind the kernel's back.
    on(
        tuning.timeout != Timeout::Never,
        InitFlags::FUSE_AUTO_INVAL_DATA,
    );
    flags
}

fn is_on(switch: Option<Switch>, default: bool) -> bool {
    switch.map_or(default, |switch| switch == Switch::On)
}

/// Which of the requests that can be done without the kernel can do without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Opens {
    files: Open,
    directories: Open,
    /// Whether the kernel may keep listings; it does without an OPENDIR.
    keeps_listings: bool,
    closes: Close,
    passes_through: bool,
}

/// How a FLUSH is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Close {
    /// With "done", each time.
    Each,
    /// With `ENOSYS`, once.
    #[default]
    Never,
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
        let keep = if self.keeps_listings {
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR
        } else {
            FopenFlags::empty()
        };
        (self.directories == Open::Each).then_some(keep)
    }

    /// Whether real files are given to the kernel.
    pub(super) fn pass_through(self) -> bool {
        self.passes_through
    }

    /// How to answer a FLUSH.
    pub(super) fn close(self) -> Close {
        self.closes
    }
}

/// Asks the kernel to take real files. Their file system must not lie on another one.
fn wants_real_files(config: &mut KernelConfig) -> bool {
    let asked = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
    if !asked {
        log::warn!("passthrough=on: this kernel can't (it needs Linux 6.9)");
    }
    asked && config.set_max_stack_depth(1).is_ok()
}

/// Whether the kernel can give a name up and keep what is mounted there. Linux 6.2 says so.
pub(super) fn expires(config: &KernelConfig) -> bool {
    config
        .capabilities()
        .contains(InitFlags::FUSE_HAS_EXPIRE_ONLY)
}

/// Whether the kernel drops the setgid bit of a new file whose group its maker isn't in. Linux 6.0
/// does, and 6.1 was the next to count the protocol up.
pub(super) fn judges_setgid(config: &KernelConfig) -> bool {
    config.kernel_abi() >= fuser::Version(7, 37)
}

/// Agrees with the kernel on what it offers and we want.
pub(super) fn negotiate(config: &mut KernelConfig, tuning: &Tuning, acls: Switch) -> Opens {
    for flag in wanted(tuning, acls) {
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
    let open = |wanted: bool, flag| {
        if wanted && offered.contains(flag) {
            Open::Never
        } else {
            Open::Each
        }
    };
    // The kernel can't tell when a lower part of a merged directory changes.
    let keeps_listings = is_on(tuning.cache_dirs, tuning.timeout == Timeout::Never);
    let passes_through = is_on(tuning.passthrough, false) && wants_real_files(config);
    let no_open = is_on(tuning.no_open, true) && !passes_through;
    let no_opendir = is_on(tuning.no_opendir, keeps_listings);
    Opens {
        files: open(no_open, InitFlags::FUSE_NO_OPEN_SUPPORT),
        directories: open(no_opendir, InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        keeps_listings,
        passes_through,
        closes: if is_on(tuning.no_flush, true) {
            Close::Never
        } else {
            Close::Each
        },
    }
}
