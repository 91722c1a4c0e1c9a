//! What the server gives up before it serves: a bug in it, led by a hostile layer or program, is
//! to find no way to other programs, to the network or into the kernel.
//!
//! It is a belt, not a wall: the threads share their memory, and the one that waits for signals
//! keeps what it needs to end the mount. Calls are refused by name rather than allowed by name,
//! so that another version of the C library can't make file operations fail; what is newer than
//! this list is refused, too. A refused call says `ENOSYS`, as on a kernel that hasn't got it:
//! libraries know what to do then. Calls of another ABI (32 bits on x86-64) end the process.

use std::collections::BTreeMap;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use super::daemon::Job;
use crate::options::Switch;
use crate::sys::privilege::Privilege;
use crate::sys::{Errno, seccomp};

/// Whose server it is, and what its options say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Belt {
    privilege: Privilege,
    calls: Switch,
}

impl Belt {
    pub(super) fn new(job: &Job) -> Self {
        Self {
            privilege: job.privilege,
            calls: job.setup.options.serving.seccomp.unwrap_or(Switch::On),
        }
    }

    /// Gives up capabilities and system calls. For the calling thread and those that it makes from
    /// now on.
    pub(super) fn put_on(self, threads: Threads) {
        drop_capabilities(threads, self.privilege);
        if self.calls == Switch::On {
            refuse_calls(threads, self.privilege);
        }
    }
}

/// Which threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// Those that serve requests.
    Requests,
    /// The one that waits for signals, which looks for the mount in every mount namespace.
    Ending,
}

/// What the requests of a root's mount need, of all that root may do.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    // `security.capability` on a copy.
    .union(CapabilitySet::SETFCAP)
    // The labels that some security modules keep in attributes.
    .union(CapabilitySet::MAC_ADMIN)
    // `trusted.` attributes; files that the kernel reads by itself.
    // Not `SYS_RESOURCE`, as the kernel's overlay: quotas are for everybody.
    .union(CapabilitySet::SYS_ADMIN);

/// To enter other mount namespaces, and to see whose they are.
const TO_END: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// Gives up the capabilities that these threads don't need.
fn drop_capabilities(threads: Threads, privilege: Privilege) {
    if privilege == Privilege::None {
        return;
    }
    let needed = match threads {
        Threads::Requests => NEEDED,
        // It also closes the layers when it is in a hurry.
        Threads::Ending => NEEDED.union(TO_END),
    };
    let dropped = rustix::thread::capabilities(None).and_then(|now| {
        let kept = CapabilitySets {
            effective: now.effective & needed,
            permitted: now.permitted & needed,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, kept)
    });
    if let Err(errno) = dropped {
        log::warn!("the server keeps all of its capabilities: {errno}");
    }
}

/// Gives up the system calls that these threads don't need, and new privileges.
///
/// A server without privilege needs fusermount3, which is set-user-id root, to end its mount: the
/// thread that waits for signals keeps all then.
fn refuse_calls(threads: Threads, privilege: Privilege) {
    if threads == Threads::Ending && privilege == Privilege::None {
        return;
    }
    let on = filter(threads).and_then(|filter| {
        set_no_new_privs(true)?;
        seccomp::install(&filter)
    });
    match on {
        Ok(()) => {}
        // No seccomp in this kernel, or none that we know for this processor.
        Err(errno @ (Errno::NOSYS | Errno::INVAL)) => {
            log::info!("the server has all system calls: {errno}");
        }
        Err(errno) => log::warn!("the server has all system calls: {errno}"),
    }
}

/// The last system call that this list was made with: `file_setattr`, Linux 6.17. The numbers
/// from 424 on are the same for all processors. Behind it are also those of the x32 ABI.
const LAST_KNOWN: u32 = 469;

/// Refused whatever the arguments are.
const REFUSED: &[i64] = &[
    // Other programs, and processes of our own.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Its flags are in memory, where a filter can't see them. Threads are made without it, then.
    libc::SYS_clone3,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // The network, and other processes by way of sockets and queues.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_setsockopt,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Other users.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    // Mounts.
    libc::SYS_mount,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // The kernel and the machine.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// Too young for some versions of the libc crate.
const OPEN_TREE_ATTR: i64 = 467;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: i64 = 320;
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: i64 = 294;

/// The types of libc's constants differ.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Refused to those that serve requests; the other thread ends the mount by them.
const ENDING_ONLY: &[i64] = &[libc::SYS_umount2, libc::SYS_setns];

fn filter(threads: Threads) -> Result<Vec<sock_filter>, Errno> {
    // What it says is that our own list is no good: for this processor.
    let unknown = |_| Errno::NOSYS;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let mut refuse = |call, argument, length, compare, value: u64| {
        let condition = SeccompCondition::new(argument, length, compare, value).map_err(unknown)?;
        let rule = SeccompRule::new(vec![condition]).map_err(unknown)?;
        rules.entry(call).or_default().push(rule);
        Ok::<(), Errno>(())
    };
    let own = u64::from(std::process::id());
    let executable = libc::PROT_EXEC as u64;
    let thread = libc::CLONE_THREAD as u64;
    refuse(libc::SYS_kill, 0, Length::Dword, Compare::Ne, own)?;
    refuse(libc::SYS_tgkill, 0, Length::Dword, Compare::Ne, own)?;
    refuse(
        libc::SYS_clone,
        0,
        Length::Dword,
        Compare::MaskedEq(thread),
        0,
    )?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        let bit = Compare::MaskedEq(executable);
        refuse(call, 2, Length::Dword, bit, executable)?;
    }
    // Typing into the terminal that a server in the foreground writes to.
    for request in [TIOCSTI, TIOCLINUX] {
        refuse(libc::SYS_ioctl, 1, Length::Dword, Compare::Eq, request)?;
    }
    if threads == Threads::Requests {
        // A working directory for each thread, and nothing else.
        let own_place = libc::CLONE_FS as u64;
        refuse(libc::SYS_unshare, 0, Length::Dword, Compare::Ne, own_place)?;
        rules.extend(ENDING_ONLY.iter().map(|&call| (call, Vec::new())));
    }
    let refusal = SeccompAction::Errno(libc::ENOSYS as u32);
    let processor = TargetArch::try_from(std::env::consts::ARCH).map_err(unknown)?;
    let known = SeccompFilter::new(rules, SeccompAction::Allow, refusal.clone(), processor)
        .and_then(Vec::try_from)
        .map_err(unknown)?;
    Ok([&unknown_calls(refusal.into())[..], &known].concat())
}

/// Refuses what is newer than the list. seccomp(2) gives the call's number first.
fn unknown_calls(refusal: u32) -> [sock_filter; 3] {
    let instruction = |code: u32, skip_unless: u8, value: u32| sock_filter {
        code: code as libc::c_ushort,
        jt: 0,
        jf: skip_unless,
        k: value,
    };
    [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, LAST_KNOWN),
        instruction(libc::BPF_RET | libc::BPF_K, 0, refusal),
    ]
}

#[cfg(test)]
mod tests;
