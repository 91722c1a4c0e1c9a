//! `Overlay` as vagga calls it: as process 1 of fresh namespaces, between two pivot_roots, with an
//! empty environment, by fork without exec. Built with `-C target-feature=+crt-static`, all of it
//! happens in a static binary.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, pivot_root};
use overfall::sys::process;
use overfall::{Backend, Mounted, Overlay};

use crate::bench::{By, Case, Place, mounts_below, skip};

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[Case] = &[$((stringify!($name), $name)),*];
    };
}

cases! {
    between_two_pivot_roots,
    between_two_pivot_roots_without_proc,
    the_callers_pipe_ends_with_the_caller,
    the_server_holds_nothing_foreign,
    a_dropped_guard_unmounts_and_a_forgotten_one_stays,
    an_error_explains,
    read_only,
}

fn backend(place: &Place) -> Backend {
    match place.by {
        By::Kernel => Backend::Native,
        _ => Backend::Fuse,
    }
}

fn layers(place: &Place) -> [PathBuf; 4] {
    let dirs = ["lower", "upper", "work", "merged"].map(|name| place.make(name));
    fs::write(dirs[0].join("hello"), "hello\n").unwrap();
    dirs
}

fn overlay(place: &Place, [lower, upper, work, merged]: &[PathBuf; 4]) -> Overlay {
    let lowers = [lower.as_path()];
    Overlay::writable(lowers.into_iter(), upper, work, merged).backend(backend(place))
}

fn ended(child: Pid) -> Option<i32> {
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, code) => Some(code),
        _ => None,
    }
}

fn bind(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let none: Option<&str> = None;
    mount(
        Some(from),
        to,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .unwrap();
}

fn tmpfs(at: &Path) {
    let none: Option<&str> = None;
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
}

/// Makes `root` the root; the old one is gone afterwards.
fn pivot(root: &Path, old: &str) {
    let put = root.join(old);
    pivot_root(root, &put).unwrap();
    chdir("/").unwrap();
    umount2(&Path::new("/").join(old), MntFlags::MNT_DETACH).unwrap();
}

/// Whether there is a /proc when the overlay is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proc {
    There,
    Missing,
}

/// Runs `inside` as process 1 of fresh user, mount, ipc and pid namespaces.
fn as_pid_1(inside: impl FnOnce()) -> Option<i32> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let outer = process::fork(|| {
        let fresh = CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID;
        unshare(fresh).unwrap();
        fs::write("/proc/self/setgroups", "deny").unwrap();
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
        let first = process::fork(|| {
            assert_eq!(std::process::id(), 1);
            inside();
            0
        });
        u8::try_from(ended(first.unwrap()).unwrap_or(99)).unwrap()
    });
    ended(outer.unwrap())
}

fn vagga(place: &Place, proc: Proc) {
    let dirs = layers(place);
    for name in ["dev", "proc", "tmp", "work"] {
        fs::create_dir(dirs[0].join(name)).unwrap();
    }
    let (mut parent, mut child) = std::io::pipe().unwrap();
    let base = place.make("base");
    let mut foreign = Some(File::open("/etc/passwd").unwrap());
    let code = as_pid_1(|| {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        tmpfs(&base);
        for name in ["old", "vagga/root"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        bind(&place.dir, &base.join("project"));
        bind(Path::new("/dev"), &base.join("dev"));
        if proc == Proc::There {
            bind(Path::new("/proc"), &base.join("proc"));
        }
        pivot(&base, "old");

        let project = Path::new("/project");
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| project.join(name));
        let target = Path::new("/vagga/root");
        let mounted: Mounted =
            Overlay::writable([lower.as_path()].into_iter(), upper, work, target)
                .backend(backend(place))
                .bare_mount()
                .unwrap_or_else(|error| panic!("{error}"));
        mounted.forget();
        bind(project, &target.join("work"));
        pivot(target, "tmp");

        assert_eq!(fs::read_to_string("/hello").unwrap(), "hello\n");
        fs::write("/made", "new\n").unwrap();
        let command = process::fork(|| {
            File::options()
                .append(true)
                .open("/hello")
                .unwrap()
                .write_all(b"y\n")
                .unwrap();
            fs::remove_dir("/proc").unwrap();
            0
        });
        assert_eq!(ended(command.unwrap()), Some(0));
        assert_eq!(fs::read_to_string("/hello").unwrap(), "hello\ny\n");
        child.write_all(b"done").unwrap();
    });
    assert_eq!(code, Some(0));
    drop(child);
    foreign.take();
    let mut said = String::new();
    parent.read_to_string(&mut said).unwrap();
    assert_eq!(said, "done");
    let [lower, upper, ..] = &dirs;
    assert_eq!(fs::read_to_string(lower.join("hello")).unwrap(), "hello\n");
    assert_eq!(
        fs::read_to_string(upper.join("hello")).unwrap(),
        "hello\ny\n"
    );
    assert_eq!(fs::read_to_string(upper.join("made")).unwrap(), "new\n");
}

fn between_two_pivot_roots(place: &Place) {
    vagga(place, Proc::There);
}

fn between_two_pivot_roots_without_proc(place: &Place) {
    vagga(place, Proc::Missing);
}

/// The parent of vagga's wrapper reads a pipe to its end.
fn the_callers_pipe_ends_with_the_caller(place: &Place) {
    let dirs = layers(place);
    let (mut read, mut write) = std::io::pipe().unwrap();
    let caller = process::fork(|| {
        overlay(place, &dirs).mount().unwrap().forget();
        write.write_all(b"mounted").unwrap();
        0
    });
    drop(write);
    let mut said = String::new();
    // Would wait for the server, if it had the pipe.
    read.read_to_string(&mut said).unwrap();
    assert_eq!(ended(caller.unwrap()), Some(0));
    assert_eq!(said, "mounted");
    let merged = &dirs[3];
    assert_eq!(fs::read_to_string(merged.join("hello")).unwrap(), "hello\n");
    overfall::backend::unmount(merged).unwrap();
}

fn the_server_holds_nothing_foreign(place: &Place) {
    if place.by != By::Fuse {
        skip("there is no server");
    }
    let dirs = layers(place);
    let file = File::open("/etc/passwd").unwrap();
    // Also such that an exec would keep.
    let (read, _write) = nix::unistd::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mounted = overlay(place, &dirs).mount().unwrap();
    let name_of = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let foreign = [file.as_raw_fd(), read.as_raw_fd(), socket.as_raw_fd()].map(name_of);
    let own = std::process::id();
    // As the server is a fork, it has this process's command line.
    let case = place.dir.file_name().unwrap().to_str().unwrap();
    let servers: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let open = fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten();
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&line).contains(case);
            ours && open
                .filter_map(|fd| fs::read_link(fd.path()).ok())
                .any(|at| at == Path::new("/dev/fuse"))
        })
        .collect();
    let mut seen = 0;
    for pid in servers {
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let Ok(at) = fs::read_link(fd.path()) else {
                continue;
            };
            assert!(!foreign.contains(&at), "the server holds {}", at.display());
            seen += 1;
        }
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert!(!cwd.starts_with(&place.dir), "it is in {}", cwd.display());
    }
    assert!(seen > 3, "no server was seen");
    drop((file, socket));
    mounted.unmount().unwrap();
}

fn a_dropped_guard_unmounts_and_a_forgotten_one_stays(place: &Place) {
    let dirs = layers(place);
    let merged = &dirs[3];
    let guard = overlay(place, &dirs).mount().unwrap();
    assert_eq!(guard.target(), merged);
    assert_eq!(mounts_below(merged).len(), 1);
    drop(guard);
    assert!(mounts_below(merged).is_empty());
    // The server of the first one may still be on its way out of the work directory.
    overlay(place, &dirs).mount().unwrap().forget();
    fs::write(merged.join("new"), "").unwrap();
    assert_eq!(mounts_below(merged).len(), 1);
    overfall::backend::unmount(merged).unwrap();
    assert!(mounts_below(merged).is_empty());
}

fn an_error_explains(place: &Place) {
    let dirs = layers(place);
    let missing = place.dir.join("missing");
    let wanted = [
        overlay(
            place,
            &[
                missing.clone(),
                dirs[1].clone(),
                dirs[2].clone(),
                dirs[3].clone(),
            ],
        ),
        overlay(
            place,
            &[
                dirs[0].clone(),
                dirs[1].clone(),
                missing.clone(),
                dirs[3].clone(),
            ],
        ),
        overlay(
            place,
            &[dirs[0].clone(), dirs[1].clone(), dirs[2].clone(), missing],
        ),
    ];
    for overlay in wanted {
        let error = overlay.bare_mount().unwrap_err().to_string();
        assert!(
            error.contains("missing: ") && error.lines().count() == 1,
            "{error}"
        );
    }
    assert!(mounts_below(&place.dir).is_empty());
}

fn read_only(place: &Place) {
    let [one, two, _, merged] = layers(place);
    fs::write(two.join("two"), "two\n").unwrap();
    let lowers = [one.as_path(), two.as_path()];
    let mounted = Overlay::readonly(lowers.into_iter(), &merged)
        .backend(backend(place))
        .mount()
        .unwrap();
    assert_eq!(fs::read_to_string(merged.join("hello")).unwrap(), "hello\n");
    assert_eq!(fs::read_to_string(merged.join("two")).unwrap(), "two\n");
    let error = fs::write(merged.join("new"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(30));
    mounted.unmount().unwrap();
}
