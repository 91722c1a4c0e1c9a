//! The times of a file, as one call gives them to another.

use rustix::fs::{Stat, Timespec, Timestamps};

/// Access and modification time of a `stat`, for `utimensat`.
pub(crate) fn times_of(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}
