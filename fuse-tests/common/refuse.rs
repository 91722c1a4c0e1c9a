//! A seccomp filter that refuses system calls: what a container's filter does, and what a kernel
//! does that doesn't have them.

use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, apply_filter};

/// Does `run` where these system calls, by number, fail with `errno`; so do the processes that it
/// starts. A call with rules is refused where one of them fits, a call without always.
pub(crate) fn refusing<T: Send>(
    calls: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
    errno: Errno,
    run: impl FnOnce() -> T + Send,
) -> T {
    let errno = u32::try_from(errno.raw_os_error()).expect("a number");
    under_filter(calls, SeccompAction::Errno(errno), run)
}

/// As [`refusing`]: `action` is what becomes of such a call. A filter is a thread's own, so it goes
/// with the thread that this takes.
pub(crate) fn under_filter<T: Send>(
    calls: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
    action: SeccompAction,
    run: impl FnOnce() -> T + Send,
) -> T {
    let rules = calls.into_iter().collect();
    let arch = std::env::consts::ARCH
        .try_into()
        .expect("an architecture with filters");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    std::thread::scope(|scope| {
        let filtered = scope.spawn(|| {
            apply_filter(&program).expect("the filter is taken");
            run()
        });
        filtered.join().expect("the thread ends")
    })
}
