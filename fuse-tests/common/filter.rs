//! A system that takes no whiteouts from us: before Linux 5.8 without privilege, and in containers
//! whose filter or device rules forbid mknod(2).

use std::thread;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// Runs something, with all the processes that it starts, on such a system. What they start for
/// themselves stays there.
pub(crate) fn without_whiteouts<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    let program = program();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // A filter is a thread's own, and its children's.
            apply_filter(&program).expect("the filter is taken");
            run()
        });
        thread.join().expect("the filtered thread ends")
    })
}

fn program() -> BpfProgram {
    let is = |argument, mask, value| {
        let width = SeccompCmpArgLen::Dword;
        let equal = SeccompCmpOp::MaskedEq(mask);
        SeccompCondition::new(argument, width, equal, value).expect("a condition")
    };
    let all = u64::from(u32::MAX);
    let (kinds, device) = (u64::from(libc::S_IFMT), u64::from(libc::S_IFCHR));
    let whiteout = u64::from(libc::RENAME_WHITEOUT);
    let rule = |conditions| vec![SeccompRule::new(conditions).expect("a rule")];
    let rules = [
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
    let arch = std::env::consts::ARCH.try_into().expect("a known machine");
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Allow,
        refused,
        arch,
    )
    .expect("a filter")
    .try_into()
    .expect("a program")
}
