//! Advisory locks: flock(2), fcntl(2) ranges and open-file-description locks.

use std::fs::{File, OpenOptions};
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};

use crate::common::{Tree, cases, open_rw, skip, text};

cases! {
    flock_excludes,
    flock_is_shared,
    flock_spans_the_copy_up,
    flock_between_processes,
    ranges_exclude_each_other,
    ranges_between_processes,
    range_lock_spans_the_copy_up,
    lock_goes_with_the_descriptor,
    flock_on_a_directory,
}

const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;

fn flock_excludes(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let (a, b) = (open_rw(t.at("f")), open_rw(t.at("f")));
    flock(&a, EXCLUSIVE).unwrap();
    assert_eq!(flock(&b, EXCLUSIVE), Err(rustix::io::Errno::AGAIN));
    assert_eq!(flock(&b, SHARED), Err(rustix::io::Errno::AGAIN));
    flock(&a, FlockOperation::Unlock).unwrap();
    flock(&b, EXCLUSIVE).unwrap();
}

fn flock_is_shared(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let (a, b) = (File::open(t.at("f")).unwrap(), File::open(t.at("f")).unwrap());
    flock(&a, SHARED).unwrap();
    flock(&b, SHARED).unwrap();
    assert_eq!(flock(&a, EXCLUSIVE), Err(rustix::io::Errno::AGAIN));
}

fn flock_spans_the_copy_up(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let a = File::open(t.at("f")).unwrap();
    flock(&a, EXCLUSIVE).unwrap();
    let b = open_rw(t.at("f"));
    t.append("f", "+");
    assert_eq!(flock(&b, EXCLUSIVE), Err(rustix::io::Errno::AGAIN));
    drop(a);
    flock(&b, EXCLUSIVE).unwrap();
}

fn flock_between_processes(t: &Tree) {
    t.lower(&["f=F"]);
    t.mount();
    let file = File::open(t.at("f")).unwrap();
    let other = || {
        let status = Command::new("flock").arg("--nonblock").arg(t.at("f")).arg("true").status();
        status.unwrap_or_else(|e| skip(format!("flock: {e}"))).success()
    };
    assert!(other());
    flock(&file, EXCLUSIVE).unwrap();
    assert!(!other());
    flock(&file, FlockOperation::Unlock).unwrap();
    assert!(other());
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn lock(file: &File, start: i64, length: i64) -> nix::Result<i32> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, start, length)))
}

fn ranges_exclude_each_other(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    let (a, b) = (open_rw(t.at("f")), open_rw(t.at("f")));
    lock(&a, 0, 5).unwrap();
    lock(&b, 5, 5).unwrap();
    assert_eq!(lock(&b, 4, 2), Err(nix::errno::Errno::EAGAIN));
    fcntl(&a, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, 0, 5))).unwrap();
    lock(&b, 0, 5).unwrap();
}

/// Whether another process gets a POSIX lock on a byte of the file.
fn another_process_locks(t: &Tree, byte: u32) -> bool {
    let script = format!(
        "import fcntl,sys\nf=open({:?},'r+b')\n\
         try: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,1,{byte})\n\
         except OSError: sys.exit(3)\n",
        text(&t.at("f"))
    );
    let status = Command::new("python3").arg("-c").arg(script).status();
    match status.unwrap_or_else(|e| skip(format!("python3: {e}"))).code() {
        Some(0) => true,
        Some(3) => false,
        other => panic!("python3: {other:?}"),
    }
}

fn ranges_between_processes(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    let file = open_rw(t.at("f"));
    fcntl(&file, FcntlArg::F_SETLK(&range(libc::F_WRLCK, 2, 3))).unwrap();
    assert!(another_process_locks(t, 1));
    assert!(!another_process_locks(t, 2));
    assert!(another_process_locks(t, 5));
    fcntl(&file, FcntlArg::F_SETLK(&range(libc::F_UNLCK, 0, 0))).unwrap();
    assert!(another_process_locks(t, 2));
}

fn range_lock_spans_the_copy_up(t: &Tree) {
    t.lower(&["f=0123456789"]);
    t.mount();
    let reader = File::open(t.at("f")).unwrap();
    fcntl(&reader, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, 0, 10))).unwrap();
    let writer = OpenOptions::new().write(true).open(t.at("f")).unwrap();
    t.append("f", "+");
    assert_eq!(lock(&writer, 3, 1), Err(nix::errno::Errno::EAGAIN));
    drop(reader);
    lock(&writer, 3, 1).unwrap();
}

fn lock_goes_with_the_descriptor(t: &Tree) {
    t.mount();
    t.write("f", "F");
    let a = open_rw(t.at("f"));
    flock(&a, EXCLUSIVE).unwrap();
    lock(&a, 0, 1).unwrap();
    drop(a);
    let b = open_rw(t.at("f"));
    flock(&b, EXCLUSIVE).unwrap();
    lock(&b, 0, 1).unwrap();
}

fn flock_on_a_directory(t: &Tree) {
    t.lower(&["d/"]);
    t.mount();
    let (a, b) = (File::open(t.at("d")).unwrap(), File::open(t.at("d")).unwrap());
    flock(&a, EXCLUSIVE).unwrap();
    assert_eq!(flock(&b, EXCLUSIVE), Err(rustix::io::Errno::AGAIN));
}
