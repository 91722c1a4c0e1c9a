//! Mounts in namespaces of their own: what `overfall run` and vagga do.

use std::process::Stdio;

use libtest_mimic::Completion;

use super::place::{Place, until};
use super::{Case, Verdict};

pub(crate) const CASES: &[Case] = &[
    (
        "a_copy_in_another_namespace_is_named",
        a_copy_in_another_namespace_is_named,
    ),
    (
        "a_user_namespace_mounts_by_itself",
        a_user_namespace_mounts_by_itself,
    ),
    (
        "the_server_goes_with_the_namespace",
        the_server_goes_with_the_namespace,
    ),
    ("pid_1_may_mount", pid_1_may_mount),
    (
        "umount_finds_a_server_in_another_pid_namespace",
        umount_finds_a_server_in_another_pid_namespace,
    ),
    ("the_root_may_be_pivoted_away", the_root_may_be_pivoted_away),
    (
        "sigterm_unmounts_in_the_callers_namespace",
        sigterm_unmounts_in_the_callers_namespace,
    ),
    (
        "sigterm_takes_nobody_elses_mount",
        sigterm_takes_nobody_elses_mount,
    ),
    (
        "sigterm_finds_a_mount_outside_of_a_chroot",
        sigterm_finds_a_mount_outside_of_a_chroot,
    ),
    (
        "a_server_that_does_not_answer_is_not_asked_for_long",
        a_server_that_does_not_answer_is_not_asked_for_long,
    ),
];

/// Runs a script in fresh namespaces; `$mount` and `$umount` are commands.
fn in_namespaces(place: &Place, flags: &str, script: &str) -> Result<String, String> {
    let program = place.program().display();
    let options = place.options();
    let prelude = format!(
        "overfall={program}; mount='{program} mount --backend fuse -o {options} merged'; \
         umount='{program} umount merged'; "
    );
    let path = place.dir.join("script.sh");
    std::fs::write(&path, format!("{prelude}\n{script}\n")).unwrap();
    let said = place.shell(&format!("unshare {flags} sh ./script.sh"));
    if said.err.starts_with("unshare:") {
        return Err(format!("no namespaces here: {}", said.err.trim()));
    }
    assert_eq!(said.code, Some(0), "{said:?}");
    Ok(said.out)
}

macro_rules! or_skip {
    ($outcome:expr) => {
        match $outcome {
            Ok(out) => out,
            Err(reason) => return Ok(Completion::ignored_with(reason)),
        }
    };
}

fn a_user_namespace_mounts_by_itself(place: &Place) -> Verdict {
    let script = "$mount && cat merged/hello && echo new > merged/new && $umount && cat upper/new";
    let out = or_skip!(in_namespaces(place, "-Urm", script));
    assert_eq!(out, "hello\nnew\n");
    assert!(place.servers().is_empty());
    Ok(Completion::Completed)
}

/// containers/storage#1654: 898 processes left.
fn the_server_goes_with_the_namespace(place: &Place) -> Verdict {
    let out = or_skip!(in_namespaces(place, "-Urm", "$mount && cat merged/hello"));
    assert_eq!(out, "hello\n");
    place.until_no_server();
    Ok(Completion::Completed)
}

fn pid_1_may_mount(place: &Place) -> Verdict {
    let script = "$mount && cat merged/hello && $umount && echo gone";
    let out = or_skip!(in_namespaces(place, "-Urmpf --mount-proc", script));
    assert_eq!(out, "hello\ngone\n");
    Ok(Completion::Completed)
}

fn umount_finds_a_server_in_another_pid_namespace(place: &Place) -> Verdict {
    let script =
        "unshare -pf --kill-child sh -c \"$mount && echo mounted > upper/flag && sleep 100\" &
        while ! test -e upper/flag; do sleep 0.01; done
        $overfall -v umount merged 2>&1 && echo unmounted
        kill -KILL $!";
    let out = or_skip!(in_namespaces(place, "-Urm --propagation private", script));
    // With a server out of sight it would say so.
    assert_eq!(out, "unmounted\n");
    place.until_no_server();
    Ok(Completion::Completed)
}

/// vagga pivots into the tree after mounting it; the server must not follow, or it waits for
/// itself.
fn the_root_may_be_pivoted_away(place: &Place) -> Verdict {
    let script = "$mount && mkdir merged/old merged/proc && cd merged && pivot_root . old \
        && { read line < /hello; echo $line; echo new > /made && read line < /made && echo $line; \
        umount -l /old 2>/dev/null || /old/bin/umount -l /old; echo /*; }";
    let out = or_skip!(in_namespaces(place, "-Urm", script));
    assert_eq!(out, "hello\nnew\n/hello /made /old /proc\n");
    place.until_no_server();
    Ok(Completion::Completed)
}

fn sigterm_unmounts_in_the_callers_namespace(place: &Place) -> Verdict {
    let script = "$mount || exit 1
        for i in /proc/[0-9]*/cmdline; do
            # Copies of other tests' mounts are here, too, and theirs are not ours to end.
            case $(tr '\\0' ' ' < $i 2>/dev/null) in
                *overfall\\ mount*) pid=${i#/proc/}; pid=${pid%/cmdline}; kill -TERM $pid ;;
            esac
        done
        while grep -q \" $PWD/merged .* fuse.overfall \" /proc/self/mountinfo; do sleep 0.01; done
        ls merged; echo unmounted";
    let out = or_skip!(in_namespaces(place, "-Urmpf --mount-proc", script));
    assert_eq!(out, "unmounted\n");
    place.until_no_server();
    Ok(Completion::Completed)
}

/// Its process can't be seen, so it is asked by way of the mount.
fn a_server_that_does_not_answer_is_not_asked_for_long(place: &Place) -> Verdict {
    let script = "$mount || exit 1
        for i in /proc/[0-9]*/cmdline; do
            case $(tr '\\0' ' ' < $i 2>/dev/null) in
                *$PWD/*) pid=${i#/proc/}; pid=${pid%/cmdline}; kill -STOP $pid ;;
            esac
        done
        while grep -h State: /proc/$pid/task/*/status | grep -qv T; do sleep 0.01; done
        unshare -pf timeout -s KILL 40 sh -c \"mount -t proc proc /proc && $umount 2>&1\"
        echo $?
        umount /proc
        grep -c \" $PWD/merged \" /proc/self/mountinfo
        kill -CONT $pid";
    let out = or_skip!(in_namespaces(place, "-Urm --propagation private", script));
    assert!(out.contains("its server doesn't answer"), "{out}");
    assert!(out.ends_with("\n0\n0\n"), "{out}");
    place.until_no_server();
    Ok(Completion::Completed)
}

/// A namespace whose only process is in a chroot: `$target` is mounted in it, seen from the
/// namespace's root, and something else is mounted at `merged`. Then SIGTERM for the server. What
/// is left is printed, `t` standing for the target and `m` for the other one.
const IN_A_CHROOT: &str = r#"mkdir -p jail; do=mount
    export overfall options target do PWD
    unshare -m --propagation private sh -c '
        mount --rbind / jail && mount -t tmpfs victim merged &&
        $overfall $do --backend fuse -o $options $target && touch ready &&
        exec chroot jail sleep 100' &
    holder=$!
    for try in $(seq 500); do ! test -e ready || break; sleep 0.01; done
    left() {
        nsenter -t $holder -m sed -n -e "s,.* $target .* fuse.overfall .*,t,p" \
            -e "s,.* $PWD/merged .* victim .*,m,p" /proc/self/mountinfo
    }
    echo before $(left)
    for i in /proc/[0-9]*/cmdline; do
        case $(tr '\0' ' ' < $i 2>/dev/null) in
            *overfall\ mount*) pid=${i#/proc/}; kill -TERM ${pid%/cmdline} ;;
        esac
    done
    for try in $(seq 500); do case $(left) in *t*) sleep 0.01 ;; *) break ;; esac; done
    echo after $(left)
    kill -KILL $holder"#;

fn term_in_a_chroot(place: &Place, target: &str) -> Result<String, String> {
    let options = place.options();
    let script = format!("options={options} target={target}\n{IN_A_CHROOT}");
    in_namespaces(place, "-Urmpf --mount-proc", &script)
}

/// The mount is called in the chroot what somebody else's is called outside.
fn sigterm_takes_nobody_elses_mount(place: &Place) -> Verdict {
    let out = or_skip!(term_in_a_chroot(place, "$PWD/jail$PWD/merged"));
    assert_eq!(out, "before m t\nafter m\n");
    place.until_no_server();
    Ok(Completion::Completed)
}

fn sigterm_finds_a_mount_outside_of_a_chroot(place: &Place) -> Verdict {
    std::fs::create_dir(place.dir.join("outside"))?;
    let out = or_skip!(term_in_a_chroot(place, "$PWD/outside"));
    assert_eq!(out, "before m t\nafter m\n");
    place.until_no_server();
    Ok(Completion::Completed)
}

/// Whoever makes a mount namespace copies the mount, and keeps the server.
fn a_copy_in_another_namespace_is_named(place: &Place) -> Verdict {
    place.mount();
    let mut command = place.command("unshare");
    command
        .args(["-Urm", "sh", "-c", "echo here > here; exec sleep 100"])
        .current_dir(&place.dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut holder = command.spawn()?;
    until("the copy is made", || place.dir.join("here").exists());
    let said = place.umount();
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.err.contains(&format!("process {}", holder.id())),
        "{said:?}"
    );
    assert!(!place.is_mounted());
    holder.kill()?;
    holder.wait()?;
    place.until_no_server();
    Ok(Completion::Completed)
}
