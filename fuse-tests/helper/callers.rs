//! The callers of fuse-overlayfs, each by its own command line, and programs that work in a mount.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::place::{Place, has, until};
use super::{DONE, Verdict, cases, skip};

cases![
    relative_layers_from_the_working_directory,
    a_hundred_and_twenty_eight_layers,
    read_only_with_lower_layers_alone,
    nothing_of_the_callers_is_held,
    a_failure_is_told_on_stderr,
    unknown_options_are_warned_about,
    what_can_not_be_told_changes_nothing,
    a_full_stdout_is_an_error,
    as_docker_calls,
    as_containerd_calls,
    as_apptainer_calls,
    in_a_user_namespace,
    bubblewrap_chroot_and_unshare,
];

/// podman, buildah and moby: from the storage's directory, with short relative names.
fn relative_layers_from_the_working_directory(place: &Place) -> Verdict {
    place.ok("mkdir -p store/l store/1/diff store/2/diff && cd store && \
              ln -s ../1/diff l/ABC && ln -s ../2/diff l/DEF && echo 1 >1/diff/a && echo 2 >2/diff/a");
    place.ok("cd store && fuse-overlayfs -o \
              lowerdir=l/ABC:l/DEF,upperdir=$PWD/../upper,workdir=$PWD/../work $PWD/../merged");
    place.ok("test $(cat merged/a) = 1 && echo 3 >merged/a && fusermount3 -u merged");
    place.ok("test $(cat upper/a) = 3 && test $(cat store/1/diff/a) = 1");
    place.until_no_server();
    DONE
}

/// The longest that podman makes: 9.7 KB.
fn a_hundred_and_twenty_eight_layers(place: &Place) -> Verdict {
    let mut lowers = Vec::new();
    for number in 0..128 {
        let name = format!("layers/{number:064}/d");
        fs::create_dir_all(place.dir.join(&name))?;
        fs::write(place.dir.join(&name).join(format!("f{number}")), "")?;
        lowers.push(name);
    }
    let options = format!(
        "lowerdir={},upperdir=upper,workdir=work,volatile,nodev",
        lowers.join(":")
    );
    assert!(options.len() > 9_300, "{}", options.len());
    place.ok(&format!("fuse-overlayfs -o {options} merged"));
    assert_eq!(place.ok("ls merged | grep -c ^f"), "128\n");
    place.ok("fusermount3 -u merged");
    place.until_no_server();
    DONE
}

fn read_only_with_lower_layers_alone(place: &Place) -> Verdict {
    place.ok("mkdir top && echo top >top/hello && fuse-overlayfs -o lowerdir=top:lower merged");
    assert_eq!(place.ok("cat merged/hello"), "top\n");
    assert!(place.mounted().unwrap().contains(" ro,"));
    let said = place.shell("touch merged/x");
    assert!(said.err.contains("Read-only"), "{said:?}");
    place.ok("fusermount3 -u merged && fuse-overlayfs -o lowerdir=lower,ro merged");
    place.ok("cat merged/hello && umount -l merged");
    place.until_no_server();
    DONE
}

/// stderr is a pipe that the caller reads to its end; `finish` fails when it doesn't come.
fn nothing_of_the_callers_is_held(place: &Place) -> Verdict {
    place.ok("fuse-overlayfs -o $O merged && cat merged/hello");
    let mut identity = [0; 64];
    let length = rustix::fs::getxattr(place.merged(), "overfall.server", &mut identity[..])?;
    let identity = String::from_utf8_lossy(&identity[..length]).into_owned();
    let pid = identity.split(' ').next().unwrap();
    for number in 0..3 {
        let leads_to = fs::read_link(format!("/proc/{pid}/fd/{number}"))?;
        assert_eq!(leads_to.to_str(), Some("/dev/null"), "{number}");
    }
    place.ok("fusermount3 -u merged");
    // Nobody's descriptor is 0, 1 or 2 here.
    place.ok("fuse-overlayfs -o $O merged <&- >&- 2>&- && test $(cat merged/hello) = hello");
    place.ok("fusermount3 -u merged");
    place.until_no_server();
    DONE
}

fn a_failure_is_told_on_stderr(place: &Place) -> Verdict {
    let said = place.shell("fuse-overlayfs -o lowerdir=lower,upperdir=nowhere,workdir=work merged");
    assert_ne!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("nowhere"), "{said:?}");
    // A typo of ours is an error here, too.
    let said = place.shell("fuse-overlayfs -o $O,redirect_dir=of merged");
    assert_ne!(said.code, Some(0), "{said:?}");
    // What looks like the rest of a directory's name isn't an option.
    let said = place.shell("fuse-overlayfs -o lowerdir=$PWD/lower,b/c merged");
    assert!(said.err.contains("is written"), "{said:?}");
    assert_eq!(place.mounted(), None);
    DONE
}

fn unknown_options_are_warned_about(place: &Place) -> Verdict {
    let said = place.shell("fuse-overlayfs -o $O,nosuch,other=1 merged");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.err.contains("nosuch") && said.err.contains("other=1"),
        "{said:?}"
    );
    place.ok("fusermount3 -u merged");
    let known = "dev,suid,exec,allow_other,default_permissions,max_idle_threads=10,auto_unmount,\
                 fsname=x,subtype=y,big_writes,threaded=1,timeout=1000000000.0,redirect_dir=off,\
                 ino32,volatile,lazytime,relatime,async,nodiratime,\
                 context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
    let said = place.shell(&format!("fuse-overlayfs -o $O,'{known}' merged"));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    assert!(place.mounted().unwrap().starts_with("x "), "fsname");
    place.ok("fusermount3 -u merged");
    place.until_no_server();
    DONE
}

/// stderr on a full disk, and one that nobody reads any more.
fn what_can_not_be_told_changes_nothing(place: &Place) -> Verdict {
    place.ok("mkfifo gone");
    for stderr in ["exec 2>/dev/full", ": <gone & exec 2>gone; wait"] {
        for (code, command) in [
            (0, "fuse-overlayfs -o $O,nosuch merged"),
            (0, "test $(cat merged/hello) = hello"),
            (0, "umount merged"),
            (1, "mount.fuse.overfall x"),
            (2, "overfall umount nowhere"),
            (2, "overfall moutn"),
            (127, "overfall run -- /no/such/command"),
            (4, "overfall -vv run --root / -- sh -c 'exit 4'"),
        ] {
            let said = place.shell(&format!("{stderr}; {command}"));
            assert_eq!(said.code, Some(code), "{stderr}; {command}");
        }
    }
    place.until_no_server();
    DONE
}

fn a_full_stdout_is_an_error(place: &Place) -> Verdict {
    place.ok("fuse-overlayfs -o $O merged");
    let said = place.shell("overfall list >/dev/full");
    assert_eq!(said.code, Some(2), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    // A reader that has seen enough is none.
    let said = place.shell("mkfifo gone; : <gone & exec >gone; wait; overfall list");
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    place.ok("umount merged");
    place.until_no_server();
    DONE
}

/// moby's fuse-overlayfs driver: the binary found in PATH, `-o` and the target.
fn as_docker_calls(place: &Place) -> Verdict {
    place.ok("fuse-overlayfs -o $O $PWD/merged && echo x >merged/x");
    // Its way to unmount; it tries the first, then the second.
    place.ok("fusermount3 -u $PWD/merged || umount -l $PWD/merged");
    place.ok("test $(cat upper/x) = x");
    place.until_no_server();
    DONE
}

/// The snapshotter's check: a read-only mount of several lower layers; then writable ones.
fn as_containerd_calls(place: &Place) -> Verdict {
    if !has("mount.fuse3") {
        return skip("mount.fuse3 isn't installed");
    }
    let mount = "mount.fuse3 overlay $PWD/merged -t fuse-overlayfs -o";
    // As mount.fuse3 is told the type only, the name must be in its PATH.
    place.ok(&format!(
        "mkdir l2 && {mount} lowerdir=$PWD/l2:$PWD/lower,ro && umount merged"
    ));
    place.ok(&format!("{mount} $O,suid,dev && touch merged/x"));
    let line = place.mounted().unwrap();
    assert!(line.contains("fuse.overfall"), "{line}");
    place.ok("umount merged");
    place.until_no_server();
    DONE
}

/// apptainer: in the foreground, in the mount table within 2 s, gone 0.5 s after the unmount.
fn as_apptainer_calls(place: &Place) -> Verdict {
    let program = place.dir.parent().unwrap().join("names/fuse-overlayfs");
    let mut child = std::process::Command::new(program)
        .args(["-f", "-o", &place.options()])
        .arg(place.merged())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let start = Instant::now();
    until("it is mounted", || place.mounted().is_some());
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(place.ok("cat merged/hello"), "hello\n");
    place.ok("fusermount3 -u merged");
    let start = Instant::now();
    until("it has ended", || child.try_wait().unwrap().is_some());
    let took = start.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(child.wait()?.success());
    // `-f` without `-o`'s order, and a signal.
    let script = "fuse-overlayfs -o $O -f merged & until grep -q $PWD/merged /proc/mounts; do \
                  sleep 0.01; done; kill $! && wait $! && ! grep -q $PWD/merged /proc/mounts";
    place.ok(script);
    place.until_no_server();
    DONE
}

/// As rootless podman does it: in its own user and mount namespace, where it is root.
fn in_a_user_namespace(place: &Place) -> Verdict {
    place.give_to_user();
    let script = "unshare -Urm sh -ec 'fuse-overlayfs -o $O merged; touch merged/new; \
                  chmod 600 merged/hello; rm -rf merged/hello; mkdir merged/hello; \
                  fusermount3 -u merged || umount -l merged; ls upper'";
    assert_eq!(place.user_ok(script), "hello\nnew\n");
    place.until_no_server();
    DONE
}

fn bubblewrap_chroot_and_unshare(place: &Place) -> Verdict {
    if !has("busybox") {
        return skip("busybox isn't installed");
    }
    place.ok(
        "mkdir lower/bin lower/proc && cp $(command -v busybox) lower/bin/sh && \
              fuse-overlayfs -o $O merged",
    );
    place.ok("chroot merged /bin/sh -c 'echo chroot >/c'");
    place.ok("unshare -m --root=merged /bin/sh -c 'echo unshare >/u'");
    place.ok("test $(cat merged/c) = chroot && test $(cat merged/u) = unshare");
    if has("bwrap") {
        place.ok("bwrap --bind merged / --proc /proc /bin/sh -c 'echo bwrap >/b'");
        place.ok("test $(cat upper/b) = bwrap");
    }
    place.ok("fusermount3 -u merged");
    place.until_no_server();
    DONE
}
