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
