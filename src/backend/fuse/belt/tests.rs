//! The belt, put on in forked children: there is no way to take it off.

use std::io;
use std::time::Duration;

use super::*;
use crate::sys::child::{End, in_child};

/// What `work` says in a child that wears the belt.
fn with_belt(threads: Threads, work: fn() -> Vec<String>) -> Vec<String> {
    let legacy = in_child(Duration::from_secs(20), |out| {
        refuse_calls(threads, Privilege::Namespace);
        let _ = rustix::io::write(&out, work().join("\n").as_bytes());
    })
    .unwrap();
    assert_eq!(legacy.end, End::Done);
    let said = String::from_utf8(legacy.output).unwrap();
    said.lines().map(str::to_owned).collect()
}

/// The name of whatever was done, and how it ended.
fn tried(name: &str, result: io::Result<()>) -> String {
    let errno = result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
    format!("{name} {errno}")
}

fn nix(result: nix::Result<()>) -> io::Result<()> {
    result.map_err(io::Error::from)
}

fn attack() -> Vec<String> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};
    let none: Option<&str> = None;
    let exec = nix::unistd::execv(c"/bin/true", &[c"true"]).map(drop);
    let privileges = rustix::thread::set_no_new_privs(false).map_err(io::Error::from);
    let chroot = rustix::process::chroot("/").map_err(io::Error::from);
    let parent = nix::unistd::getppid();
    let kill = nix::sys::signal::kill(parent, None);
    let key = memmap(libc::PROT_READ | libc::PROT_EXEC);
    vec![
        tried("execve", nix(exec)),
        tried(
            "fork",
            std::process::Command::new("/bin/true").spawn().map(drop),
        ),
        tried("tcp", std::net::TcpListener::bind("127.0.0.1:0").map(drop)),
        tried(
            "unix",
            std::os::unix::net::UnixDatagram::unbound().map(drop),
        ),
        tried(
            "mount",
            nix(mount(none, "/", none, MsFlags::MS_PRIVATE, none)),
        ),
        tried("umount", nix(umount2("/nowhere", MntFlags::empty()))),
        tried("namespace", nix(unshare(CloneFlags::CLONE_NEWUSER))),
        tried("privileges", privileges),
        tried("chroot", chroot),
        tried("kill", nix(kill)),
        tried("executable memory", key),
    ]
}

fn memmap(protection: i32) -> io::Result<()> {
    crate::sys::memory::try_mapping(protection).map_err(io::Error::from)
}

#[test]
fn what_a_request_must_not_do_it_can_not() {
    let said = with_belt(Threads::Requests, attack);
    assert_eq!(said.len(), 11, "{said:?}");
    for line in said {
        let refused = match line.split_once(' ') {
            Some(("privileges", _)) => libc::EINVAL,
            _ => libc::ENOSYS,
        };
        assert!(line.ends_with(&format!(" {refused}")), "{line}");
    }
}

#[test]
fn who_ends_the_mount_may_unmount_and_execute_nothing() {
    let said = with_belt(Threads::Ending, attack);
    let of = |name: &str| {
        let line = said.iter().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<i32>().unwrap()
    };
    assert!(![libc::ENOSYS, 0].contains(&of("umount")), "{said:?}");
    assert_ne!(of("namespace"), libc::ENOSYS, "{said:?}");
    for name in ["execve", "fork", "tcp", "mount", "chroot"] {
        assert_eq!(of(name), libc::ENOSYS, "{name}");
    }
}

/// What serving needs: files, memory, threads, working directories of their own.
fn serve() -> Vec<String> {
    let dir = std::env::temp_dir();
    let thread = || {
        let root = std::fs::File::open("/")?;
        crate::sys::cwd::enter(std::os::fd::AsFd::as_fd(&root)).map_err(io::Error::from)
    };
    let threads = std::thread::spawn(thread);
    let file = tempfile::tempfile_in(&dir).and_then(|file| {
        file.set_len(1 << 20)?;
        file.sync_all()
    });
    vec![
        tried("threads", threads.join().unwrap()),
        tried("file", file),
        tried("list", std::fs::read_dir(&dir).map(drop)),
        tried("memory", memmap(libc::PROT_READ | libc::PROT_WRITE)),
        tried(
            "own signal",
            nix(nix::sys::signal::kill(nix::unistd::Pid::this(), None)),
        ),
    ]
}

#[test]
fn what_a_request_needs_it_can() {
    for threads in [Threads::Requests, Threads::Ending] {
        let said = with_belt(threads, serve);
        assert_eq!(said.len(), 5);
        assert!(said.iter().all(|line| line.ends_with(" 0")), "{said:?}");
    }
}

/// `CHOWN` and the like are kept, `NET_ADMIN` and the like are not.
#[test]
fn capabilities_of_no_use_are_dropped() {
    if !rustix::thread::capabilities(None).is_ok_and(|now| now.effective.contains(NEEDED)) {
        eprintln!("skipped: needs root");
        return;
    }
    for (threads, kept) in [
        (Threads::Requests, NEEDED),
        (Threads::Ending, NEEDED | TO_END),
    ] {
        let legacy = in_child(Duration::from_secs(20), |out| {
            drop_capabilities(threads, Privilege::Machine);
            let now = rustix::thread::capabilities(None).map(|now| [now.effective, now.permitted]);
            let same = now.is_ok_and(|now| now == [kept, kept]);
            let _ = rustix::io::write(&out, if same { b"same" } else { b"other" });
        });
        assert_eq!(legacy.unwrap().output, b"same", "{threads:?}");
    }
}
