//! A system that takes no whiteouts from us: before Linux 5.8 without privilege, and in containers
//! whose filter or device rules forbid mknod(2).

use rustix::io::Errno;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::refuse::refusing;

/// Runs something, with all the processes that it starts, on such a system. What they start for
/// themselves stays there.
pub(crate) fn without_whiteouts<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    let is = |argument, mask, value| {
        let width = SeccompCmpArgLen::Dword;
        let equal = SeccompCmpOp::MaskedEq(mask);
        SeccompCondition::new(argument, width, equal, value).expect("a condition")
    };
    let all = u64::from(u32::MAX);
    let (kinds, device) = (u64::from(libc::S_IFMT), u64::from(libc::S_IFCHR));
    let whiteout = u64::from(libc::RENAME_WHITEOUT);
    let rule = |conditions| vec![SeccompRule::new(conditions).expect("a rule")];
    let calls = [
        (
            libc::SYS_mknodat,
            rule(vec![is(2, kinds, device), is(3, all, 0)]),
        ),
        #[cfg(target_arch = "x86_64")]
        (
            libc::SYS_mknod,
            rule(vec![is(1, kinds, device), is(2, all, 0)]),
        ),
        (libc::SYS_renameat2, rule(vec![is(4, whiteout, whiteout)])),
    ];
    refusing(calls, Errno::PERM, run)
}
