//! How a mount ends.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Completion;
use rustix::process::{Signal, kill_process};

use super::place::{Place, Who, finish, run, until};
use super::{Case, Verdict};

pub(crate) const CASES: &[Case] = &[
    ("umount_waits_for_the_server", umount_waits_for_the_server),
    ("a_tree_in_use_stays_mounted", a_tree_in_use_stays_mounted),
    ("sigterm_unmounts", sigterm_unmounts),
    (
        "sigterm_lets_the_last_user_finish",
        sigterm_lets_the_last_user_finish,
    ),
    (
        "a_killed_servers_mount_can_be_unmounted",
        a_killed_servers_mount_can_be_unmounted,
    ),
    (
        "foreground_stays_until_a_signal",
        foreground_stays_until_a_signal,
    ),
    (
        "foreground_ends_with_the_mount",
        foreground_ends_with_the_mount,
    ),
    (
        "umount_from_within_another_directory",
        umount_from_within_another_directory,
    ),
    ("umount_follows_links", umount_follows_links),
    (
        "foreground_tells_of_a_killed_server",
        foreground_tells_of_a_killed_server,
    ),
    (
        "foreground_takes_its_own_mount_only",
        foreground_takes_its_own_mount_only,
    ),
    (
        "a_stopped_server_does_not_hold_up_an_unmount",
        a_stopped_server_does_not_hold_up_an_unmount,
    ),
];

fn umount_waits_for_the_server(place: &Place) -> Verdict {
    for turn in 0..5 {
        place.mount();
        let said = place.shell(&format!("echo {turn} > merged/new"));
        assert_eq!(said.code, Some(0), "{said:?}");
        let said = place.umount();
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(!place.is_mounted());
        assert!(place.servers().is_empty());
        assert_eq!(
            fs::read_to_string(place.dir.join("upper/new"))?,
            format!("{turn}\n")
        );
    }
    Ok(Completion::Completed)
}

fn a_tree_in_use_stays_mounted(place: &Place) -> Verdict {
    place.mount();
    let mut sleeper = place.command("sh");
    sleeper
        .args(["-c", "cd merged && echo in && exec sleep 100"])
        .current_dir(&place.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut sleeper = sleeper.spawn()?;
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(sleeper.stdout.take().unwrap()),
        &mut line,
    )?;
    let said = place.umount();
    sleeper.kill()?;
    sleeper.wait()?;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("in use"), "{said:?}");
    assert!(place.is_mounted());
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    assert_eq!(place.umount().code, Some(0));
    Ok(Completion::Completed)
}

fn sigterm_unmounts(place: &Place) -> Verdict {
    for signal in [Signal::TERM, Signal::INT] {
        place.mount();
        kill_process(place.server(), signal)?;
        place.until_unmounted();
        place.until_no_server();
        assert_eq!(place.shell("ls merged").out, "");
    }
    Ok(Completion::Completed)
}

fn sigterm_lets_the_last_user_finish(place: &Place) -> Verdict {
    place.mount();
    // Descriptor 3 is what the shell waits at.
    let (ours, theirs) = std::io::pipe()?;
    let script = "exec < merged/hello; echo open > open; read wait <&3; cat";
    let mut shell = place.command("sh");
    shell
        .args(["-c", &format!("exec 3<&0; {script}")])
        .current_dir(&place.dir)
        .stdin(Stdio::from(ours))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let user = shell.spawn()?;
    until("the file is open", || place.dir.join("open").exists());
    kill_process(place.server(), Signal::TERM)?;
    place.until_unmounted();
    drop(theirs);
    let said = finish(user);
    assert_eq!(said.out, "hello\n", "{said:?}");
    place.until_no_server();
    Ok(Completion::Completed)
}

/// fuse-overlayfs#169: ENOTCONN after a crash.
fn a_killed_servers_mount_can_be_unmounted(place: &Place) -> Verdict {
    place.mount();
    kill_process(place.server(), Signal::KILL)?;
    place.until_no_server();
    let said = place.shell("ls merged");
    assert_ne!(said.code, Some(0), "{said:?}");
    let said = place.umount();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!place.is_mounted());
    // What the dead server left in the work directory is no obstacle.
    place.mount();
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    assert_eq!(place.umount().code, Some(0));
    Ok(Completion::Completed)
}

fn foreground_stays_until_a_signal(place: &Place) -> Verdict {
    let options = place.options();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut child = place.mount_and_stay(&["-f", "-o", &options]);
        assert_eq!(place.shell("cat merged/hello").out, "hello\n");
        assert!(child.try_wait()?.is_none(), "it stays");
        kill_process(rustix::process::Pid::from_child(&child), signal)?;
        let said = finish(child);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(!place.is_mounted());
        assert!(place.servers().is_empty());
    }
    Ok(Completion::Completed)
}

fn foreground_ends_with_the_mount(place: &Place) -> Verdict {
    let options = place.options();
    let child = place.mount_and_stay(&["-f", "-o", &options]);
    // Mounted is a moment before served; the command below waits for that by itself.
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    assert_eq!(place.umount().code, Some(0));
    let said = finish(child);
    assert_eq!(said.code, Some(0), "{said:?}");
    Ok(Completion::Completed)
}

fn foreground(place: &Place, backend: &str) -> std::io::Result<Child> {
    let options = place.options();
    let arguments = [
        "mount",
        "-f",
        "--backend",
        backend,
        "-o",
        &options,
        "merged",
    ];
    place
        .overfall(&arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// The mount isn't left behind, and nobody is told that all is well.
fn foreground_tells_of_a_killed_server(place: &Place) -> Verdict {
    let child = foreground(place, "fuse")?;
    until("it is mounted", || place.is_mounted());
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    let caller = rustix::process::Pid::from_child(&child);
    let servers = place.servers();
    let servers: Vec<_> = servers.iter().filter(|pid| **pid != caller).collect();
    assert_eq!(servers.len(), 1);
    kill_process(*servers[0], Signal::KILL)?;
    let said = finish(child);
    assert_eq!(
        (said.code, place.is_mounted()),
        (Some(2), false),
        "{said:?}"
    );
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    assert!(said.err.contains("the server ended before"), "{said:?}");
    Ok(Completion::Completed)
}

/// Somebody mounted over it: what a signal to the mounter takes must not be that.
fn foreground_takes_its_own_mount_only(place: &Place) -> Verdict {
    if place.who == Who::Plain {
        return Ok(Completion::ignored_with("a plain user can't mount over it"));
    }
    let options = place.options();
    let native = ["mount", "--backend", "native", "-o", &options, "merged"];
    let said = run(place.overfall(&native));
    if said.code != Some(0) {
        return Ok(Completion::ignored_with(said.err));
    }
    assert_eq!(place.umount().code, Some(0));
    for backend in ["native", "fuse"] {
        let mut child = foreground(place, backend)?;
        until("it is mounted", || place.is_mounted());
        assert_eq!(place.shell("cat merged/hello").out, "hello\n");
        let over = place.shell("mount -t tmpfs victim merged && touch merged/victims");
        let ending = kill_process(rustix::process::Pid::from_child(&child), Signal::TERM);
        let ended = ending.map(|()| child.wait());
        // A server that goes on has its stderr.
        let left = place.shell("ls merged; umount merged; cat merged/hello; umount merged");
        let said = finish(child);
        ended??;
        assert_eq!(over.code, Some(0), "{over:?}");
        assert_eq!(left.out, "victims\nhello\n", "{backend}: {left:?} {said:?}");
        assert_eq!(said.code, Some(2), "{backend}: {said:?}");
        assert!(said.err.contains("mounted over it"), "{said:?}");
        place.until_no_server();
    }
    Ok(Completion::Completed)
}

fn umount_from_within_another_directory(place: &Place) -> Verdict {
    place.mount();
    let mut command = place.overfall(&["umount", "../merged/"]);
    command.current_dir(place.dir.join("lower"));
    let said = run(command);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!place.is_mounted());
    Ok(Completion::Completed)
}

/// As mount does; also those that lead to a mount that nobody serves.
fn umount_follows_links(place: &Place) -> Verdict {
    let said = place.shell("mkdir in && ln -s ../merged in/one && ln -s in/one two && ln -s a a");
    assert_eq!(said.code, Some(0), "{said:?}");
    let options = place.options();
    for dead in [false, true] {
        let mount = ["mount", "--backend", "fuse", "-o", &options, "two"];
        let said = run(place.overfall(&mount));
        assert_eq!(said.code, Some(0), "{said:?}");
        if dead {
            kill_process(place.server(), Signal::KILL)?;
            place.until_no_server();
        }
        let said = run(place.overfall(&["umount", "two"]));
        let left = place.is_mounted();
        if left {
            place.umount();
        }
        assert_eq!((said.code, left), (Some(0), false), "{said:?}");
    }
    let said = run(place.overfall(&["umount", "a"]));
    assert_eq!(
        (said.code, said.err.lines().count()),
        (Some(2), 1),
        "{said:?}"
    );
    Ok(Completion::Completed)
}

fn a_stopped_server_does_not_hold_up_an_unmount(place: &Place) -> Verdict {
    place.mount();
    let server = place.server();
    kill_process(server, Signal::STOP)?;
    let start = Instant::now();
    let said = place.umount();
    let (took, left) = (start.elapsed(), place.is_mounted());
    kill_process(server, Signal::CONT)?;
    assert_eq!((said.code, left), (Some(2), false), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    let why = format!("(process {}) is stopped", server.as_raw_nonzero());
    assert!(said.err.contains(&why), "{said:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    place.until_no_server();
    Ok(Completion::Completed)
}
