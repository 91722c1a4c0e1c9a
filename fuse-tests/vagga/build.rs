//! `_build`: the steps, the cache of each, and what a build leaves.

use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::project::{Project, eventually};

const STEPS: &str = r#"
containers:
  base:
    setup:
    - !Depends sources
    - !Tar {url: ./base.tar.gz}
    - !Env {FROM_BASE: yes}
    - !CacheDirs {/var/cache/x: shared}
  app:
    uids: [0-100]
    gids: [0-100]
    environ: {HELLO: world}
    setup:
    - !Container base
    - !Env {ANSWER: 42}
    - !Sh |
        echo "$ANSWER $FROM_BASE $HOME ${HELLO:-none}" > /env
        echo cached >> /var/cache/x/file
        echo gone > /tmp/gone
    - !Cmd [cp, /env, /env.copy]
    - !RunAs {user-id: 5, group-id: 6, work-dir: sources, script: "id -u; pwd; touch /tmp/of5; stat -c '%u %g' /tmp/of5 > /tmp/who"}
    - !Sh cat /tmp/who > /who
    - !Copy {source: /work/sources, path: /srv/copied, owner-uid: 3, umask: 0o022, ignore-regex: skipped}
    - !Copy {source: /env, path: /srv/env}
    - !TarInstall {url: ./pkg.tar, script: "sh ./configure"}
    - !Tar {url: ./pkg.tar, path: /opt/pkg, subdir: pkg-1/data}
    - !Text {/etc/text: "some text", /etc/other: x}
    - !EnsureDir /srv/ensured/deep
    - !EmptyDir /var/lib/data
    - !Remove /etc/other
    - !SubConfig {path: sub/vagga.yaml, container: part}
  data:
    setup: [!Container base, !Sh "mkdir /kept; echo k > /kept/file"]
    data-dirs: [/kept]
"#;

fn with_steps(project: &Project) {
    project.write("vagga.yaml", STEPS);
    project.pack_base();
    project
        .sh(
            "mkdir -p sources/d sub pkg-1/data
             echo one > sources/one; echo x > sources/d/x.sh; chmod 755 sources/d/x.sh
             echo s > sources/skipped; ln -s one sources/link
             echo 'echo installed > /installed' > pkg-1/configure; echo p > pkg-1/data/p
             tar -cf pkg.tar pkg-1
             printf 'containers:\\n  part:\\n    setup:\\n    - !Sh echo sub > /sub\\n' > sub/vagga.yaml",
        )
        .good();
}

pub(crate) fn every_kind_of_step(project: &Project) {
    with_steps(project);
    project.build(&["--cache-each-step"], "app").good();
    let root = |name: &str| project.read(&format!(".vagga/app/{name}"));
    assert_eq!(root("env"), "42 yes /tmp none\n");
    assert_eq!(
        (root("env.copy"), root("srv/env")),
        (root("env"), root("env"))
    );
    assert_eq!(root("who"), "5 6\n");
    assert_eq!(
        (root("installed"), root("opt/pkg/p")),
        ("installed\n".into(), "p\n".into())
    );
    assert_eq!(
        (root("etc/text"), root("sub")),
        ("some text".into(), "sub\n".into())
    );
    assert_eq!(project.read(".vagga/.cache/shared/file"), "cached\n");
    for empty in [
        "tmp",
        "var/lib/data",
        "var/cache/x",
        "srv/ensured/deep",
        "work",
        "dev",
    ] {
        let names = project.names(&format!(".vagga/app/{empty}"));
        assert_eq!(names, [""; 0], "{empty}");
    }
    assert!(!project.exists(".vagga/app/etc/other"));
    let copied = project.vagga(&[
        "_run",
        "app",
        "sh",
        "-c",
        "cd /srv/copied; stat -c '%n %a %u %Y' one d/x.sh d; ls; cat link; echo $HELLO",
    ]);
    assert_eq!(
        copied.good(),
        "one 644 3 1\nd/x.sh 755 3 1\nd 755 3 1\nd\nlink\none\none\nworld\n"
    );
    project.build(&[], "data").good();
    assert_eq!(project.names(".vagga/data"), ["kept"]);
    project.nothing_is_left();
}

const SPECIAL: &str = r#"
containers:
  app:
    setup:
    - !Tar {url: ./base.tar.gz}
    - !Sh "mkdir -m 777 /out; grep -c : /proc/net/dev > /out/devices"
    - !RunAs
      user-id: 1
      external-user-id: 0
      group-id: 4
      supplementary-gids: [7]
      script: "id -u > /out/shown; id -G >> /out/shown; echo mine > /work/mine; stat -c '%u %g' /work >> /out/shown"
    - !RunAs {user-id: 3, external-user-id: 5, script: "echo of5 > /out/of5; ! chown 7 /out/of5"}
    - !RunAs {external-user-id: 5, script: "echo $(id -u) > /out/root"}
    - !RunAs
      isolate-network: true
      script: "grep -c : /proc/net/dev > /out/alone; cat /sys/class/net/lo/flags >> /dev/null; ping -c 1 -W 2 127.0.0.1 >> /out/alone"
    - !Sh "cd /out; stat -c '%n %u %g' shown of5 root /work/mine > owners"
"#;

pub(crate) fn a_step_as_somebody_else_or_without_a_network(project: &Project) {
    project.write("vagga.yaml", SPECIAL);
    project.pack_base();
    project.build(&[], "app").good();
    let out = |name: &str| project.read(&format!(".vagga/app/out/{name}"));
    // The group is the container's, the user's number a fake one; nobody else has a number.
    assert_eq!(out("shown"), "1\n4 7\n1 0\n");
    assert_eq!(out("root"), "0\n");
    assert_eq!(
        out("owners"),
        "shown 0 4\nof5 5 0\nroot 5 0\n/work/mine 0 4\n"
    );
    // Outside it is the user's own file.
    let owners = project.sh("stat -c %u mine .").good();
    let owners: Vec<&str> = owners.lines().collect();
    assert_eq!(owners[0], owners[1]);
    let alone = out("alone");
    assert!(alone.starts_with("1\n"), "{alone}");
    assert!(alone.contains("1 packets received"), "{alone}");
    for (setting, part) in [
        ("external-user-id: 7000000", "external-user-id: 7000000"),
        ("group-id: 7000000", "group-id: 7000000"),
    ] {
        let text = format!(
            "containers:\n  app:\n    setup:\n    - !Sh touch /work/ran\n    - !RunAs {{{setting}, script: x}}\n"
        );
        project.write("vagga.yaml", &text);
        let line = project.build(&[], "app").refused();
        assert!(
            line.contains("vagga.yaml:5:7") && line.contains(part),
            "{line}"
        );
    }
    assert!(!project.exists("ran"));
    project.nothing_is_left();
}

const FAILING: &str = "
containers:
  base: {setup: [!Tar {url: ./base.tar.gz}]}
  app:
    setup:
    - !Container base
    - !Sh echo 1 >> /work/ran; echo 1 > /1
    - !Sh echo 2 >> /work/ran; cat /1 > /2
    - !Sh echo 3 >> /work/ran; test -e /work/ok
    - !Sh echo 4 >> /work/ran; cat /2 > /4
";

pub(crate) fn a_failed_build_goes_on_where_it_failed(project: &Project) {
    project.write("vagga.yaml", FAILING);
    project.pack_base();
    for ran in ["1\n2\n3\n", "1\n2\n3\n3\n"] {
        let failed = project.build(&["--cache-each-step"], "app");
        assert_eq!(failed.code, Some(2), "{failed:?}");
        let line = failed.err.lines().last().unwrap().to_owned();
        for part in [
            "step 4 of app failed",
            "vagga.yaml:9:7",
            "code 1",
            "begins at step 4",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(project.read("ran"), ran);
        assert!(!project.exists(".vagga/app"));
    }
    project.write("ok", "");
    project.build(&["--cache-each-step"], "app").good();
    assert_eq!(project.read("ran"), "1\n2\n3\n3\n3\n4\n");
    assert_eq!(project.read(".vagga/app/4"), "1\n");
    let out = project.vagga(&["_steps", "app"]).good();
    // The last build took the first two steps from the cache.
    let rows: Vec<&str> = out.lines().collect();
    assert!(
        rows[1].contains(" hit ") && rows[1].contains("2 !Sh echo 1"),
        "{out}"
    );
    assert!(
        rows[3].contains(" built ") && rows[4].contains(" built "),
        "{out}"
    );
    // Nothing has changed: no step runs, the container stays.
    let before = project.picture(".vagga/app/");
    project.build(&["--cache-each-step"], "app").good();
    project
        .sh("rm .vagga/app; rm -rf .vagga/.roots/app.* 2>/dev/null || true")
        .code
        .unwrap();
    project.build(&["--cache-each-step"], "app").good();
    assert_eq!(project.read("ran"), "1\n2\n3\n3\n3\n4\n");
    assert_eq!(project.picture(".vagga/app/"), before);
    project.nothing_is_left();
}

pub(crate) fn a_changed_step_runs_again(project: &Project) {
    project.write("vagga.yaml", FAILING);
    project.write("ok", "");
    project.pack_base();
    project.build(&["--cache-each-step"], "app").good();
    let first = std::fs::read_link(project.dir.join(".vagga/app")).unwrap();
    let changed = FAILING.replace("cat /1 > /2", "(cat /1; echo changed) > /2");
    project.write("vagga.yaml", &changed);
    project.build(&["--cache-each-step"], "app").good();
    assert_eq!(project.read("ran"), "1\n2\n3\n4\n2\n3\n4\n");
    assert_eq!(project.read(".vagga/app/4"), "1\nchanged\n");
    let second = std::fs::read_link(project.dir.join(".vagga/app")).unwrap();
    assert_ne!(first, second);
    // Back again: everything is there still.
    project.write("vagga.yaml", FAILING);
    project.build(&["--cache-each-step"], "app").good();
    assert_eq!(
        std::fs::read_link(project.dir.join(".vagga/app")).unwrap(),
        first
    );
    assert_eq!(project.read("ran").lines().count(), 7);
    // One that isn't linked any more goes when it is to be cleaned; a young one doesn't.
    let cleaned = project
        .vagga(&["_clean", "--unused", "--at-least", "10days"])
        .good();
    assert_eq!(cleaned, "");
    let cleaned = project.vagga(&["_clean", "--unused", "-n"]).good();
    assert_eq!(cleaned.lines().count(), 1, "{cleaned}");
    assert_eq!(
        project.vagga(&["_clean", "--unused", "--layers"]).code,
        Some(0)
    );
    let roots = project.names(".vagga/.roots");
    assert_eq!(
        roots.iter().filter(|name| name.starts_with("app.")).count(),
        1
    );
    assert_eq!(project.names(".vagga/.layers/layers"), [""; 0]);
    assert_eq!(project.read(".vagga/app/4"), "1\n");
}

const STAMPED: &str = "
containers:
  base: {setup: [!Tar {url: ./base.tar.gz}, !Sh cat /work/stamp > /base-stamp]}
  app:
    setup:
    - !Container base
    - !Sh cat /work/stamp > /stamp
    - !Sh cat /stamp > /last
";

/// What the user has forced away doesn't come back with the next change.
pub(crate) fn a_forced_build_is_what_later_ones_go_on_from(project: &Project) {
    let stamps = || {
        project
            .sh("cd .vagga/app; cat base-stamp stamp last")
            .good()
    };
    let layers = || project.names(".vagga/.layers/layers").len();
    let change = |text: &str| {
        project.write("vagga.yaml", &STAMPED.replace("cat /stamp > /last", text));
    };
    let cached = &["--cache-each-step"][..];
    let by_force = &["--cache-each-step", "--force"][..];
    project.write("vagga.yaml", STAMPED);
    project.pack_base();
    project.write("stamp", "A\n");
    project.build(cached, "app").good();
    assert_eq!(stamps(), "A\nA\nA\n");
    let before = layers();

    project.write("stamp", "B\n");
    project.build(by_force, "app").good();
    assert_eq!(stamps(), "A\nB\nB\n");
    assert_eq!(layers(), before, "the former ones have gone");
    change("(cat /stamp; echo 1) > /last");
    let built = project.build(cached, "app");
    assert!(built.err.contains("/stamp: from the cache"), "{built:?}");
    built.good();
    assert_eq!(stamps(), "A\nB\nB\n1\n");

    // One that fails is gone on with where it failed, too.
    project.write("stamp", "C\n");
    change("false");
    project
        .build(by_force, "app")
        .code
        .filter(|code| *code == 2)
        .unwrap();
    change("(cat /stamp; echo 2) > /last");
    project.write("stamp", "D\n");
    project.build(cached, "app").good();
    assert_eq!(stamps(), "A\nC\nC\n2\n");

    // Without layers for each step, the old ones are forced away all the same.
    project.build(&["--force"], "app").good();
    assert_eq!(stamps(), "A\nD\nD\n2\n");
    project.write("stamp", "E\n");
    change("(cat /stamp; echo 3) > /last");
    project.build(cached, "app").good();
    assert_eq!(stamps(), "A\nE\nE\n3\n");

    // And what lies on a base that was forced isn't taken with another one below it.
    project.build(by_force, "base").good();
    change("(cat /stamp; echo 4) > /last");
    project.build(cached, "app").good();
    assert_eq!(stamps(), "E\nE\nE\n4\n");
    project.nothing_is_left();
}

/// Layers that a run or another container is made of stay as they are.
pub(crate) fn a_forced_build_takes_no_layer_from_others(project: &Project) {
    let two = STAMPED.replace("    - !Sh cat /stamp > /last", "")
        + "  other:
    setup:
    - !Container base
    - !Sh cat /work/stamp > /stamp
    - !Sh cat /stamp > /last
";
    project.write("vagga.yaml", &two);
    project.pack_base();
    project.write("stamp", "A\n");
    let options = &["--cache-each-step", "--layered"][..];
    // They have their first steps in common.
    for name in ["app", "other"] {
        project.build(options, name).good();
    }
    let script = "touch /work/ready; while ! test -e /work/go; do sleep 0.05; done; cat /stamp";
    let live = project.start(&["-W"], script);
    eventually("it runs", || project.exists("ready"));
    project.write("stamp", "B\n");
    for name in ["app", "other"] {
        project
            .build(&["--cache-each-step", "--layered", "--force"], name)
            .good();
        if name == "app" {
            let words = [
                "_run",
                "--overlay",
                project.means,
                "other",
                "cat",
                "/stamp",
                "/last",
            ];
            assert_eq!(project.vagga(&words).good(), "A\nA\n");
        }
    }
    project.write("go", "");
    let out = live.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "A\n", "{out:?}");
    assert_eq!(project.run(&["-W"], "cat /stamp").good(), "B\n");
    project.vagga(&["_clean", "--unused", "--layers"]).good();
    assert_eq!(project.run(&["-W"], "cat /stamp").good(), "B\n");
    project.nothing_is_left();
}

pub(crate) fn a_built_container_has_vagga_s_layout(project: &Project) {
    project.write("vagga.yaml", FAILING);
    project.write("ok", "");
    project.pack_base();
    project.build(&[], "app").good();
    let target = std::fs::read_link(project.dir.join(".vagga/app")).unwrap();
    let text = target.to_str().unwrap();
    let version = text
        .strip_prefix(".roots/app.")
        .unwrap()
        .strip_suffix("/root")
        .unwrap();
    assert!(
        version.len() == 8 && version.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{text}"
    );
    let root = format!(".vagga/.roots/app.{version}");
    assert_eq!(
        project.names(&root),
        ["gid_map", "last_use", "overfall.json", "root", "uid_map"]
    );
    let map = project.read(&format!("{root}/uid_map"));
    assert_eq!(
        map.lines().next().unwrap().split_whitespace().next(),
        Some("0")
    );
    assert_eq!(
        project.read(&format!("{root}/gid_map")).lines().count(),
        map.lines().count()
    );
    // A build without the cache leaves no layers.
    assert_eq!(project.names(".vagga/.layers/layers"), [""; 0]);
    assert_eq!(project.run(&["-W"], "cat /4; echo x > /4").good(), "1\n");
    assert_eq!(project.read(".vagga/app/4"), "1\n");
    // By force it is built again.
    project.build(&["--force"], "app").good();
    assert_eq!(project.read("ran"), "1\n2\n3\n4\n1\n2\n3\n4\n");
    project.nothing_is_left();
}

pub(crate) fn a_killed_build_leaves_nothing(project: &Project) {
    let text = FAILING.replace("test -e /work/ok", "touch /work/here; sleep 1000");
    project.write("vagga.yaml", &text);
    project.pack_base();
    project.build(&[], "base").good();
    let mut child = project
        .build_command(&["--cache-each-step"], "app")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it runs", || project.exists("here"));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    eventually("everything has gone", || project.processes().is_empty());
    project.nothing_is_left();
    project.write("vagga.yaml", &FAILING.replace("test -e /work/ok", "true"));
    project.build(&["--cache-each-step"], "app").good();
    // The first two steps were kept.
    assert_eq!(project.read("ran"), "1\n2\n3\n3\n4\n");
    assert_eq!(project.names(".vagga/.layers/new"), [""; 0]);
    let left: Vec<String> = project
        .names(".vagga/.roots")
        .into_iter()
        .filter(|name| name.starts_with('.'))
        .collect();
    assert_eq!(left, [""; 0]);
}

/// Whatever it is at; what it leaves for the next one is whole.
pub(crate) fn builds_killed_at_any_moment_leave_nothing(project: &Project) {
    const TURNS: u32 = 6;
    let steps = "
containers:
  app:
    setup:
    - !Tar {url: ./base.tar.gz}
    - !Sh echo 1 > /1
    - !Sh cat /1 /1 > /2; rm -r /var
    - !Copy {source: /work/vagga.yaml, path: /copied}
";
    project.write("vagga.yaml", steps);
    project.pack_base();
    let start = Instant::now();
    project.build(&["--cache-each-step"], "app").good();
    let (whole, wanted) = (start.elapsed(), project.picture(".vagga/app/"));
    for turn in 0..TURNS {
        // Half of them take what those before them have made.
        let force: &[&str] = match turn % 2 {
            0 => &["--cache-each-step", "--force"],
            _ => &["--cache-each-step"],
        };
        let gone = "rm -rf .vagga/app; mv .vagga/.roots/app.* .vagga/gone 2>/dev/null || true";
        project.sh(gone).good();
        let mut child = project
            .build_command(force, "app")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * (turn * 5 % TURNS) * 11 / (TURNS * 10));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        eventually("everything has gone", || project.processes().is_empty());
        assert_eq!(project.mounts(), [""; 0], "turn {turn}");
        assert_eq!(project.names(".vagga/.layers/new"), [""; 0], "turn {turn}");
        assert_eq!(project.names(".vagga/.mnt"), [""; 0], "turn {turn}");
        let roots = project.names(".vagga/.roots");
        let partial: Vec<&String> = roots.iter().filter(|name| name.starts_with('.')).collect();
        assert_eq!(partial, [""; 0], "turn {turn}");
        if project.exists(".vagga/app/copied") {
            assert_eq!(project.picture(".vagga/app/"), wanted, "turn {turn}");
        }
        project
            .sh("rm -rf .vagga/gone || unshare -r --map-auto rm -rf .vagga/gone")
            .good();
    }
    project.build(&["--cache-each-step"], "app").good();
    assert_eq!(project.picture(".vagga/app/"), wanted);
    project.nothing_is_left();
}

pub(crate) fn two_builds_at_once(project: &Project) {
    let text = FAILING.replace("test -e /work/ok", "sleep 1");
    project.write("vagga.yaml", &text);
    project.pack_base();
    project.build(&[], "base").good();
    let start = || {
        project
            .build_command(&["--cache-each-step"], "app")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let both = [start(), start()];
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(project.read("ran"), "1\n2\n3\n4\n");
    assert_eq!(project.read(".vagga/app/4"), "1\n");
    project.nothing_is_left();
}

pub(crate) fn a_shell_in_the_failed_state(project: &Project) {
    project.write("vagga.yaml", FAILING);
    project.pack_base();
    let commands = project.dir.join("commands");
    project.write(
        "commands",
        "cat /2 > /work/seen\necho x > /work/by-shell\nexit 5\n",
    );
    let output = project
        .build_command(&["--shell"], "app")
        .stdin(std::fs::File::open(commands).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(
        (project.read("seen"), project.read("by-shell")),
        ("1\n".into(), "x\n".into())
    );
    project.nothing_is_left();
}
