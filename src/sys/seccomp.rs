//! Installing a seccomp filter.

use seccompiler::sock_filter;

use super::Errno;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    first: *const sock_filter,
}

/// Installs a filter for the calling thread and those that it makes from now on. The thread has
/// given up new privileges before, or has CAP_SYS_ADMIN.
///
/// The filter isn't there to hide memory from the code that runs under it, so the processor's
/// speculation stays as it is: before Linux 5.16 a filter would slow it down.
pub(crate) fn install(filter: &[sock_filter]) -> Result<(), Errno> {
    let program = Program {
        length: libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        first: filter.as_ptr(),
    };
    let install = |flags: libc::c_ulong| {
        // SAFETY: the kernel copies the filter, whose length goes with it, and writes nothing.
        let done = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(super::from_nix(nix::errno::Errno::last())),
        }
    };
    match install(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
        // Before Linux 4.17.
        Err(Errno::INVAL) => install(0),
        installed => installed,
    }
}
