//! Writable copies: kept, cleaned, and gone after a crash.

use std::process::Child;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::project::{Project, eventually};

fn built(project: &Project) {
    project.write("vagga.yaml", "containers: {app: {}}");
    project.built_by_vagga("app", "");
}

fn kill_hard(child: &Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
}

pub(crate) fn a_kept_copy_is_continued(project: &Project) {
    built(project);
    let ran = project.run(&["-W", "--keep"], "echo kept > /etc/kept; rm /etc/file");
    let name = project.names(".vagga/.transient").pop().unwrap();
    assert!(name.starts_with("app.0123abcd."), "{name}");
    assert!(ran.err.contains(&format!("--resume {name} app")), "{ran:?}");
    let out = project.run(
        &["--resume", &name],
        "cat /etc/kept; ls /etc; echo more >> /etc/kept",
    );
    assert_eq!(out.good(), "kept\nhosts\nkept\nresolv.conf\n");
    let out = project.run(&["--resume", &name], "cat /etc/kept");
    assert_eq!(out.good(), "kept\nmore\n");
    assert_eq!(project.read(".vagga/app/etc/file"), "base\n");
    for wrong in ["../app", "app.0123abcd.0", "."] {
        project.run(&["--resume", wrong], "true").refused();
    }
    assert!(
        project
            .vagga(&["_clean", "--transient"])
            .good()
            .contains(&name)
    );
    project.nothing_is_left();
}

/// Whoever resumes it says `--overlay` or not: an overlay stays one, and a copy a copy.
pub(crate) fn a_kept_copy_keeps_its_form(project: &Project) {
    built(project);
    project
        .run(&["--keep"], "rm /etc/file; echo kept > /etc/kept")
        .good();
    let name = project.names(".vagga/.transient").pop().unwrap();
    let resume = |means: &str, script: &str| {
        project.vagga(&[
            "_run",
            "--overlay",
            means,
            "--resume",
            &name,
            "app",
            "sh",
            "-ec",
            script,
        ])
    };
    let there = "hosts\nkept\nresolv.conf\n";
    assert_eq!(resume("auto", "ls /etc").good(), there);
    assert_eq!(resume(project.means, "ls /etc").good(), there);
    let others: &[&str] = if project.means == "copy" {
        &["kernel", "fuse"]
    } else {
        &["copy"]
    };
    for other in others {
        let line = resume(other, "ls /etc").refused();
        assert!(
            line.contains("can go on in") && line.contains("--overlay copy"),
            "{line}"
        );
    }
    // One that was emptied isn't filled again.
    if project.means == "copy" {
        project
            .sh(&format!("rm -r .vagga/.transient/{name}/upper/var"))
            .good();
        assert_eq!(resume("auto", "ls -d /var || echo gone").good(), "gone\n");
    }
    assert_eq!(resume("auto", "ls /etc").good(), there);

    // By force it has been built again, as the same version.
    project
        .sh("touch -d '1 hour ago' .vagga/.roots/app.0123abcd/uid_map")
        .good();
    let resumed = resume("auto", "ls /etc");
    if project.means == "copy" {
        assert_eq!(resumed.good(), there);
    } else {
        let line = resumed.refused();
        assert!(line.contains("a former build of app.0123abcd"), "{line}");
    }
    // What the killed run of another copy has left is whole or refused.
    project
        .sh(&format!("rm .vagga/.transient/{name}/overfall.json"))
        .good();
    resume("auto", "true").refused();
    project.vagga(&["_clean", "--transient"]).good();
    project.nothing_is_left();
}

/// After the machine's start, and in containers, numbers come again soon.
pub(crate) fn a_number_that_comes_again_is_another_run(project: &Project) {
    built(project);
    project.run(&["--keep"], "echo precious > /etc/kept").good();
    let rename = "mv .vagga/.transient/app.* .vagga/.transient/app.0123abcd.$$";
    let ran = project.run_after(rename, &["-W"], "echo mine > /etc/mine; ls /etc");
    assert_eq!(ran.good(), "file\nhosts\nmine\nresolv.conf\n");
    let one = project.names(".vagga/.transient");
    assert_eq!(one.len(), 1, "{one:?}");

    let rename = format!(
        "mv .vagga/.transient/{} .vagga/.transient/app.0123abcd.$$",
        one[0]
    );
    let ran = project.run_after(&rename, &["--keep"], "echo other > /etc/kept; ls /etc");
    assert_eq!(ran.out, "file\nhosts\nkept\nresolv.conf\n", "{ran:?}");
    let both = project.names(".vagga/.transient");
    let other = both
        .iter()
        .find(|name| ran.err.contains(&format!("--resume {name} app")));
    let other = other.unwrap_or_else(|| panic!("{ran:?} {both:?}"));
    let one = both.iter().find(|name| *name != other).unwrap();
    let parts: Vec<&str> = other.split('.').collect();
    let is_hash = parts[1].len() == 8 && parts[1].bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(parts.len() == 3 && is_hash, "{other}");
    // The number is that of the run all the same.
    assert_eq!(one.rsplit('.').next(), Some(parts[2]));
    for (name, text) in [(one, "precious\n"), (other, "other\n")] {
        assert_eq!(
            project.run(&["--resume", name], "cat /etc/kept").good(),
            text
        );
    }

    // As long as one of them is in use, the other one alone is cleaned.
    let wait = "touch /work/ready; while ! test -e /work/go; do sleep 0.05; done";
    let live = project.start(&["--resume", other], wait);
    eventually("it runs", || project.exists("ready"));
    let cleaned = project.vagga(&["_clean", "--transient"]).good();
    assert!(
        cleaned.lines().count() == 1 && cleaned.contains(one.as_str()),
        "{cleaned}"
    );
    assert_eq!(project.names(".vagga/.transient"), [other.as_str()]);
    project.write("go", "");
    assert!(live.wait_with_output().unwrap().status.success());
    project.vagga(&["_clean", "--transient"]).good();
    project.nothing_is_left();
}

pub(crate) fn one_is_cleaned_and_the_other_lives(project: &Project) {
    built(project);
    let live = |name: &str| {
        format!(
            "echo {name} > /etc/own; touch /work/{name}.ready
             while ! test -e /work/{name}.go; do sleep 0.05; done
             echo more >> /etc/own; cat /etc/own /etc/file; rm -r /var; ls /"
        )
    };
    let one = project.start(&["-W"], &live("one"));
    let two = project.start(&["-W"], &live("two"));
    eventually("both run", || {
        project.exists("one.ready") && project.exists("two.ready")
    });
    project.vagga(&["_clean", "--transient"]).good();
    assert_eq!(project.names(".vagga/.transient").len(), 2);
    kill_hard(&one);
    eventually("the killed one's copy has gone", || {
        project.vagga(&["_clean", "--transient"]);
        project.names(".vagga/.transient").len() == 1
    });
    project.write("two.go", "");
    let out = two.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && text.starts_with("two\nmore\nbase\n"),
        "{out:?}"
    );
    let mut one = one;
    one.wait().unwrap();
    project.nothing_is_left();
}

pub(crate) fn only_the_dead_are_cleaned(project: &Project) {
    built(project);
    // The first process lives, and began long ago.
    let alive = [
        "app.0123abcd.1",
        "my.app.7.0123abcd.1",
        "app.0123abcd.x12",
        "no-number",
    ];
    let dead = [
        "app.0123abcd.4194000",
        "my.app.1.0123abcd.4194001",
        "app.1.4194002",
    ];
    for name in alive.into_iter().chain(dead) {
        project
            .sh(&format!("mkdir -p .vagga/.transient/{name}/etc; touch -d '1 minute ago' .vagga/.transient/{name}"))
            .good();
    }
    let told = project.vagga(&["_clean", "--transient", "-n"]).good();
    assert_eq!(told.lines().count(), dead.len(), "{told}");
    assert_eq!(
        project.names(".vagga/.transient").len(),
        alive.len() + dead.len()
    );
    assert_eq!(project.vagga(&["_clean", "--transient"]).good(), told);
    let mut left = alive.to_vec();
    left.sort();
    assert_eq!(project.names(".vagga/.transient"), left);
}

pub(crate) fn a_killed_run_leaves_nothing(project: &Project) {
    project.write(
        "vagga.yaml",
        "containers: {app: {volumes: {/var/lib/data: !Snapshot }}}",
    );
    project.built_by_vagga("app", "");
    for options in [&["-W"][..], &[]] {
        let mut child = project.start(
            options,
            "echo x > /var/lib/data/x; sleep 1000 & touch /work/ready; sleep 1000",
        );
        eventually("it runs", || project.exists("ready"));
        kill_hard(&child);
        child.wait().unwrap();
        eventually("everything has gone", || {
            project.processes().is_empty() && project.names(".vagga/.transient").is_empty()
        });
        project.nothing_is_left();
        project.sh("rm ready").good();
    }
    assert_eq!(project.names(".vagga/app/var/lib/data"), ["d"]);
}

/// Whatever it is at: making its directories, mounting, running, unmounting, removing.
pub(crate) fn runs_killed_at_any_moment_leave_nothing(project: &Project) {
    project.write(
        "vagga.yaml",
        "containers: {app: {volumes: {/var/lib/data: !Snapshot }}}",
    );
    project.built_by_vagga("app", "");
    let before = project.picture(".vagga/app/");
    let script = "echo x > /var/lib/data/x; echo y >> /etc/file; rm -r /usr";
    let start = Instant::now();
    project.run(&["-W"], script).good();
    let whole = start.elapsed();
    for turn in 0..TURNS {
        let mut child = project.start(&["-W"], script);
        // A little longer than it takes, in steps that no other part of it follows.
        std::thread::sleep(whole * (turn * 5 % TURNS) * 11 / (TURNS * 10));
        kill_hard(&child);
        child.wait().unwrap();
        eventually("everything has gone", || {
            project.processes().is_empty() && project.names(".vagga/.transient").is_empty()
        });
        assert_eq!(project.mounts(), [""; 0], "turn {turn}");
        assert_eq!(project.names(".vagga/.mnt"), [""; 0], "turn {turn}");
    }
    assert_eq!(project.picture(".vagga/app/"), before);
    let out = project
        .run(&["-W"], "cat /etc/file; ls /var/lib/data")
        .good();
    assert_eq!(out, "base\nd\n");
}

/// How often something is killed.
const TURNS: u32 = 8;
