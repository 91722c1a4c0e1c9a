//! How often each kind of request came.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use crate::sys::Errno;
use crate::sys::cells::Cells;

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Symlink,
    Create,
    Link,
    Unlink,
    Rmdir,
    Rename,
    Open,
    Opendir,
    Release,
    Read,
    Write,
    Fsync,
    Fsyncdir,
    Readdir,
    Readdirplus,
    Getxattr,
    Listxattr,
    Setxattr,
    Removexattr,
    Statfs,
    Lseek,
    Fallocate,
    CopyFileRange,
    Ioctl,
}

impl Op {
    const ALL: [Op; 31] = [
        Op::Lookup,
        Op::Forget,
        Op::Getattr,
        Op::Setattr,
        Op::Readlink,
        Op::Mknod,
        Op::Mkdir,
        Op::Symlink,
        Op::Create,
        Op::Link,
        Op::Unlink,
        Op::Rmdir,
        Op::Rename,
        Op::Open,
        Op::Opendir,
        Op::Release,
        Op::Read,
        Op::Write,
        Op::Fsync,
        Op::Fsyncdir,
        Op::Readdir,
        Op::Readdirplus,
        Op::Getxattr,
        Op::Listxattr,
        Op::Setxattr,
        Op::Removexattr,
        Op::Statfs,
        Op::Lseek,
        Op::Fallocate,
        Op::CopyFileRange,
        Op::Ioctl,
    ];
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format!("{self:?}").to_ascii_uppercase())
    }
}

/// One counter for each kind.
#[derive(Debug)]
pub(crate) struct Counters(Cells);

impl Default for Counters {
    fn default() -> Self {
        Self(Cells::own(Op::ALL.len()))
    }
}

impl Counters {
    /// Counts at the head of a file, for others to read: one number for each of [`Counters::names`].
    pub(crate) fn shared(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        Cells::shared(file, Op::ALL.len()).map(Self)
    }

    /// The kinds, in the order of their counters.
    pub(crate) fn names() -> Vec<String> {
        Op::ALL.iter().map(Op::to_string).collect()
    }

    pub(super) fn count(&self, op: Op) {
        if let Some(counter) = self.0.get(op as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `LOOKUP 12, READ 3`: those that came at all.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (op, counter) in Op::ALL.iter().zip(self.0.iter()) {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                write!(f, "{separator}{op} {count}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_op_has_the_counter_of_its_number() {
        for (index, op) in Op::ALL.iter().enumerate() {
            assert_eq!(*op as usize, index, "{op}");
        }
    }

    #[test]
    fn only_what_came_is_shown() {
        let counters = Counters::default();
        counters.count(Op::Read);
        counters.count(Op::Lookup);
        counters.count(Op::Read);
        assert_eq!(counters.to_string(), "LOOKUP 1, READ 2");
    }
}
