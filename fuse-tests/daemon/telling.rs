//! What can be learned about a mount and its server: the list, the log, the counters; and that all
//! of them can be unmounted at once.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Completion;
use rustix::process::{Signal, kill_process};

use super::place::{Place, STRANGER, Said, Who, command_as, finish, run, until};
use super::{Case, Verdict};

pub(crate) const CASES: &[Case] = &[
    ("the_list_tells_about_a_mount", the_list_tells_about_a_mount),
    ("the_list_is_for_people_too", the_list_is_for_people_too),
    (
        "a_dead_mount_is_listed_as_dead",
        a_dead_mount_is_listed_as_dead,
    ),
    (
        "a_mount_in_use_is_hidden_when_detached",
        a_mount_in_use_is_hidden_when_detached,
    ),
    (
        "the_kernels_overlay_is_listed",
        the_kernels_overlay_is_listed,
    ),
    (
        "layers_of_any_name_are_listed",
        layers_of_any_name_are_listed,
    ),
    ("strangers_are_not_listed", strangers_are_not_listed),
    (
        "a_stopped_server_does_not_hold_up_a_list",
        a_stopped_server_does_not_hold_up_a_list,
    ),
    ("debug_logs_each_request", debug_logs_each_request),
    (
        "debug_without_a_file_stays_in_the_foreground",
        debug_without_a_file_stays_in_the_foreground,
    ),
    ("sigusr1_tells_the_counters", sigusr1_tells_the_counters),
    (
        "sigusr1_does_no_harm_without_a_log",
        sigusr1_does_no_harm_without_a_log,
    ),
    (
        "a_log_that_cannot_be_opened_is_one_line",
        a_log_that_cannot_be_opened_is_one_line,
    ),
    ("a_name_cannot_break_the_log", a_name_cannot_break_the_log),
];

/// Those that unmount whatever there is, and the one that covers whatever is mounted.
pub(crate) const ALONE: &[Case] = &[
    ("a_run_is_listed_from_outside", a_run_is_listed_from_outside),
    ("umount_all_unmounts_all", umount_all_unmounts_all),
    ("umount_all_tells_what_stays", umount_all_tells_what_stays),
];

/// The rows of `overfall list --json` that have to do with the place, as a user sees them.
fn rows(place: &Place, said: &Said) -> Vec<serde_json::Value> {
    assert_eq!(said.code, Some(0), "{said:?}");
    let all: Vec<serde_json::Value> = serde_json::from_str(&said.out).unwrap();
    let dir = format!("{}/", place.dir.display());
    let ours = |row: &serde_json::Value| row.to_string().contains(&dir);
    all.into_iter().filter(ours).collect()
}

pub(crate) fn list(place: &Place) -> Vec<serde_json::Value> {
    rows(place, &run(place.overfall(&["list", "--json"])))
}

fn the_list_tells_about_a_mount(place: &Place) -> Verdict {
    place.mount();
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    let rows = list(place);
    let [row] = &rows[..] else {
        panic!("{rows:?}");
    };
    let dir = place.dir.display();
    assert_eq!(row["target"], format!("{dir}/merged"));
    assert_eq!(row["backend"], "fuse");
    assert_eq!(row["place"], "here");
    assert_eq!(row["pid"], place.server().as_raw_nonzero().get());
    assert_eq!(row["lower"], serde_json::json!([format!("{dir}/lower")]));
    assert_eq!(row["upper"], format!("{dir}/upper"));
    assert_eq!(row["work"], format!("{dir}/work"));
    assert!(row["age_seconds"].as_u64().unwrap() < 100, "{row}");
    assert!(row["memory_bytes"].as_u64().unwrap() > 100_000, "{row}");
    assert_eq!(row["requests_by_kind"]["READ"], 1, "{row}");
    assert!(row["requests"].as_u64().unwrap() >= 3, "{row}");
    // Who asks for the list asks the server for nothing.
    assert_eq!(list(place)[0]["requests"], row["requests"]);
    assert_eq!(place.umount().code, Some(0));
    assert!(list(place).is_empty());
    Ok(Completion::Completed)
}

fn the_list_is_for_people_too(place: &Place) -> Verdict {
    // Layers that are named relative to where the mounter was.
    let options = "lowerdir=lower,upperdir=upper,workdir=work";
    let said = run(place.overfall(&["mount", "--backend", "fuse", "-o", options, "merged"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = run(place.overfall(&["list"]));
    assert_eq!(place.umount().code, Some(0));
    let dir = place.dir.display();
    let head = said.out.lines().next().unwrap();
    assert!(head.starts_with("TARGET"), "{said:?}");
    let line = said
        .out
        .lines()
        .find(|line| line.starts_with(&format!("{dir}/merged")));
    let line = line.unwrap();
    assert!(
        line.ends_with(&format!("{dir}/upper over {dir}/lower")),
        "{line}"
    );
    Ok(Completion::Completed)
}

fn a_dead_mount_is_listed_as_dead(place: &Place) -> Verdict {
    place.mount();
    kill_process(place.server(), Signal::KILL)?;
    place.until_no_server();
    let rows = rows_when(place, 1);
    assert_eq!(rows[0]["place"], "dead", "{rows:?}");
    assert!(rows[0]["pid"].is_null(), "{rows:?}");
    // Root may not enter a plain user's mount, and sees as much.
    let seen = stranger(place).map(|list| self::rows(place, &run(list)));
    assert_eq!(place.umount().code, Some(0));
    if let (Who::Plain, Some(seen)) = (place.who, seen) {
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0]["place"], "dead", "{seen:?}");
    }
    Ok(Completion::Completed)
}

fn rows_when(place: &Place, count: usize) -> Vec<serde_json::Value> {
    until("the list has as many rows", || list(place).len() == count);
    list(place)
}

fn a_mount_in_use_is_hidden_when_detached(place: &Place) -> Verdict {
    place.mount();
    let open = place.shell("exec 3<merged/hello; (sleep 100 & echo $! > user) >/dev/null 2>&1");
    assert_eq!(open.code, Some(0), "{open:?}");
    let user: i32 = fs::read_to_string(place.dir.join("user"))?.trim().parse()?;
    let lazy = match place.who {
        Who::Root => "umount -l merged",
        Who::Plain => "fusermount3 -uz merged",
    };
    assert_eq!(place.shell(lazy).code, Some(0));
    assert!(!place.is_mounted());
    let rows = rows_when(place, 1);
    kill_process(rustix::process::Pid::from_raw(user).unwrap(), Signal::KILL)?;
    assert_eq!(rows[0]["place"], "hidden", "{rows:?}");
    // The last user has gone, so the mount has, and the server notices.
    place.until_no_server();
    Ok(Completion::Completed)
}

fn a_run_is_listed_from_outside(place: &Place) -> Verdict {
    let keep = place.dir.join("keep");
    let mut command = place.overfall(&["run", "--backend", "fuse", "--keep"]);
    command.arg(&keep);
    command.args(["--", "sh", "-c", "echo in; read line"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut out = child.stdout.take().unwrap();
    let mut first = [0];
    std::io::Read::read_exact(&mut out, &mut first)?;
    // The tree that is the command's root, not what lies over what is mounted in it.
    let shown = list(place)
        .into_iter()
        .find(|row| row["lower"] == serde_json::json!(["/"]));
    drop(child.stdin.take());
    child.stdout = Some(out);
    let said = finish(child);
    let row = shown.unwrap();
    assert_eq!(row["place"], "elsewhere", "{row} {said:?}");
    assert!(row["holder"].as_u64().is_some(), "{row}");
    assert!(
        row["upper"]
            .as_str()
            .unwrap()
            .starts_with(keep.to_str().unwrap()),
        "{row}"
    );
    let _ = place.shell("chmod -R u+rwx keep; rm -rf keep");
    place.until_no_server();
    Ok(Completion::Completed)
}

fn the_kernels_overlay_is_listed(place: &Place) -> Verdict {
    if place.who == Who::Plain {
        return Ok(Completion::ignored_with(
            "a plain user may not mount it here",
        ));
    }
    let options = place.options();
    let said = run(place.overfall(&["mount", "--backend", "native", "-o", &options, "merged"]));
    if said.code != Some(0) {
        return Ok(Completion::ignored_with(said.err));
    }
    let rows = list(place);
    let umount = place.umount();
    let [row] = &rows[..] else {
        panic!("{rows:?}");
    };
    let dir = place.dir.display();
    assert_eq!(row["backend"], "native");
    assert_eq!(row["upper"], format!("{dir}/upper"));
    assert_eq!(row["lower"], serde_json::json!([format!("{dir}/lower")]));
    assert!(row["pid"].is_null() && row["requests"].is_null(), "{row}");
    assert_eq!(umount.code, Some(0));
    Ok(Completion::Completed)
}

fn layers_of_any_name_are_listed(place: &Place) -> Verdict {
    let names = ["a,b", "c:d", r"e\f", "g=h, i"];
    let made = place.shell(&format!("mkdir '{}' up,per wo,rk", names.join("' '")));
    assert_eq!(made.code, Some(0), "{made:?}");
    let backends = match place.who {
        Who::Root => &["native", "fuse"][..],
        Who::Plain => &["fuse"],
    };
    let dir = place.dir.display();
    let lower = format!(r"{dir}/a\,b:{dir}/c\:d:{dir}/e\\f:{dir}/g=h\, i");
    let options = format!(r"lowerdir={lower},upperdir={dir}/up\,per,workdir={dir}/wo\,rk");
    for backend in backends {
        let said = run(place.overfall(&["mount", "--backend", backend, "-o", &options, "merged"]));
        if *backend == "native" && said.code != Some(0) {
            continue;
        }
        assert_eq!(said.code, Some(0), "{said:?}");
        let rows = list(place);
        assert_eq!(place.umount().code, Some(0));
        assert_eq!(rows.len(), 1, "{rows:?}");
        let lower = names.map(|name| format!("{dir}/{name}"));
        assert_eq!(rows[0]["lower"], serde_json::json!(lower), "{backend}");
        assert_eq!(rows[0]["upper"], format!("{dir}/up,per"), "{backend}");
        assert_eq!(rows[0]["work"], format!("{dir}/wo,rk"), "{backend}");
    }
    Ok(Completion::Completed)
}

/// A plain user doesn't see root's, root sees all.
fn strangers_are_not_listed(place: &Place) -> Verdict {
    place.mount();
    let seen = stranger(place).map(|list| rows(place, &run(list)).len());
    assert_eq!(place.umount().code, Some(0));
    let Some(seen) = seen else {
        return Ok(Completion::ignored_with("there is nobody else to be"));
    };
    assert_eq!(seen, usize::from(place.who == Who::Plain));
    Ok(Completion::Completed)
}

/// `overfall list` of somebody else: a plain user's root, root's a number that nobody has.
fn stranger(place: &Place) -> Option<std::process::Command> {
    let stranger = match place.who {
        Who::Root => Some(STRANGER),
        Who::Plain if rustix::process::geteuid().is_root() => None,
        Who::Plain => return None,
    };
    let mut stranger = command_as(stranger, place.program());
    stranger.args(["list", "--json"]).current_dir(&place.dir);
    Some(stranger)
}

fn a_stopped_server_does_not_hold_up_a_list(place: &Place) -> Verdict {
    place.mount();
    let server = place.server();
    kill_process(server, Signal::STOP)?;
    let start = Instant::now();
    let own = run(place.overfall(&["list", "--json"]));
    let theirs = stranger(place).map(run);
    let took = start.elapsed();
    kill_process(server, Signal::CONT)?;
    assert_eq!(place.umount().code, Some(0));
    assert_eq!(rows(place, &own).len(), 1);
    assert!(theirs.is_none_or(|theirs| theirs.code == Some(0)));
    assert!(took < Duration::from_secs(20), "{took:?}");
    Ok(Completion::Completed)
}

fn mount_with(place: &Place, more: &str) -> Said {
    let options = format!("{},{more}", place.options());
    run(place.overfall(&["mount", "--backend", "fuse", "-o", &options, "merged"]))
}

fn debug_logs_each_request(place: &Place) -> Verdict {
    assert_eq!(mount_with(place, "debug,log=its.log").code, Some(0));
    let script = "mkdir -p merged/a/b; cat merged/hello merged/none; mv merged/a merged/c; \
        rmdir merged/c";
    place.shell(script);
    assert_eq!(place.umount().code, Some(0));
    let log = fs::read_to_string(place.dir.join("its.log"))?;
    for wanted in [
        "debug: LOOKUP /none: ok",
        "debug: MKDIR /a: ok",
        "debug: MKDIR /a/b: ok",
        "debug: READ /hello: ok",
        "debug: RENAME /a: ok",
        "debug: RMDIR /c: ",
        "os error 39",
        "info: served: ",
    ] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    // Each with its time and the server's number.
    assert!(
        log.lines()
            .all(|line| line.starts_with("20") && line.contains("Z ")),
        "{log}"
    );
    Ok(Completion::Completed)
}

fn debug_without_a_file_stays_in_the_foreground(place: &Place) -> Verdict {
    let options = format!("{},debug", place.options());
    let child = place.mount_and_stay(&["-o", &options]);
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    assert_eq!(place.umount().code, Some(0));
    let said = finish(child);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.err.contains("overfall: debug: READ /hello: ok\n"),
        "{said:?}"
    );
    Ok(Completion::Completed)
}

fn sigusr1_tells_the_counters(place: &Place) -> Verdict {
    assert_eq!(mount_with(place, "log=its.log").code, Some(0));
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    kill_process(place.server(), Signal::USR1)?;
    let log = place.dir.join("its.log");
    let told = || fs::read_to_string(&log).is_ok_and(|log| log.contains("READ 1"));
    until("the counters are told", told);
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    assert_eq!(place.umount().code, Some(0));
    Ok(Completion::Completed)
}

fn sigusr1_does_no_harm_without_a_log(place: &Place) -> Verdict {
    place.mount();
    for _ in 0..3 {
        kill_process(place.server(), Signal::USR1)?;
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(place.shell("cat merged/hello").out, "hello\n");
    // It still listens to the others.
    kill_process(place.server(), Signal::TERM)?;
    place.until_unmounted();
    place.until_no_server();
    Ok(Completion::Completed)
}

fn a_log_that_cannot_be_opened_is_one_line(place: &Place) -> Verdict {
    for bad in ["log=nowhere/its.log", "log=merged", "log="] {
        let said = mount_with(place, bad);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert_eq!(said.err.lines().count(), 1, "{said:?}");
        assert!(said.err.contains("log"), "{said:?}");
    }
    assert!(!place.is_mounted());
    Ok(Completion::Completed)
}

fn a_name_cannot_break_the_log(place: &Place) -> Verdict {
    assert_eq!(mount_with(place, "debug,log=its.log").code, Some(0));
    let said = place.shell("touch \"merged/$(printf 'a\\noverfall: error: b\\033[1m')\"");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(place.umount().code, Some(0));
    let log = fs::read_to_string(place.dir.join("its.log"))?;
    assert!(
        log.contains(r"CREATE /a\noverfall: error: b\u{1b}[1m: ok"),
        "{log}"
    );
    assert!(!log.contains("\noverfall"), "{log}");
    Ok(Completion::Completed)
}

/// Root's tests have a mount namespace of their own. Elsewhere it is the user's mounts that would go.
pub(crate) fn not_ours_alone() -> Option<&'static str> {
    let alone = rustix::process::geteuid().is_root();
    (!alone).then_some("it would unmount what isn't the test's")
}

/// Three of them; root's third one is in the first one, which fusermount3 doesn't do.
fn mount_three(place: &Place) {
    place.mount();
    let third = match place.who {
        Who::Root => "merged/in",
        Who::Plain => "third",
    };
    let said = place.shell(&format!("mkdir other {third}"));
    assert_eq!(said.code, Some(0), "{said:?}");
    for target in [third, "other"] {
        let mount = ["mount", "--backend", "fuse", "-o", "lowerdir=lower", target];
        let said = run(place.overfall(&mount));
        assert_eq!(said.code, Some(0), "{said:?}");
    }
}

fn umount_all_unmounts_all(place: &Place) -> Verdict {
    if let Some(reason) = not_ours_alone() {
        return Ok(Completion::ignored_with(reason));
    }
    mount_three(place);
    assert_eq!(list(place).len(), 3);
    let said = run(place.overfall(&["umount", "--all"]));
    assert_eq!((said.code, &*said.err), (Some(0), ""), "{said:?}");
    assert!(list(place).is_empty());
    assert!(place.servers().is_empty());
    let said = run(place.overfall(&["umount", "--all", "merged"]));
    assert_eq!(said.code, Some(2), "{said:?}");
    Ok(Completion::Completed)
}

fn umount_all_tells_what_stays(place: &Place) -> Verdict {
    if let Some(reason) = not_ours_alone() {
        return Ok(Completion::ignored_with(reason));
    }
    mount_three(place);
    let mut sleeper = place.command("sh");
    sleeper
        .args(["-c", "cd other && echo in > ../in && exec sleep 100"])
        .current_dir(&place.dir)
        .stdin(Stdio::null());
    let mut sleeper = sleeper.spawn()?;
    until("it is in use", || place.dir.join("in").exists());
    let said = run(place.overfall(&["umount", "--all"]));
    let left = list(place);
    sleeper.kill()?;
    sleeper.wait()?;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
    assert!(said.err.contains("other: it is in use"), "{said:?}");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(run(place.overfall(&["umount", "--all"])).code, Some(0));
    assert!(list(place).is_empty());
    Ok(Completion::Completed)
}
