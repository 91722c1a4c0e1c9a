//! `_run` in a container that vagga has built.

use crate::project::{Project, eventually};

const VOLUMES: &str = "
containers:
  other: {}
  app:
    environ: {HELLO: world, REPLACED: yaml}
    volumes:
      /data: !Snapshot {size: 4Mi}
      /owned: !Snapshot {owner-uid: 7, owner-gid: 8}
      /from: !Snapshot {container: other}
      /memory: !Tmpfs {size: 1Mi, mode: 0o700, subdirs: {d: {mode: 0o711}}, files: {f: text}}
      /nothing: !Empty
      /kept: !Persistent name
      /cached: !CacheDir some/cache
      /real: !BindRW /work/real
      /seen: !BindRO /work/real
      /whole: !Container other
";

const PLACES: &str =
    "mkdir $R/data $R/owned $R/from $R/memory $R/nothing $R/kept $R/cached $R/real $R/seen $R/whole
echo one > $R/data/file; echo own > $R/owned/file; echo mine > $R/from/file; chmod 750 $R/data";

fn with_volumes(project: &Project) {
    project.write("vagga.yaml", VOLUMES);
    project.sh("mkdir real; echo r > real/file").good();
    project.built_by_vagga("other", "mkdir $R/from; echo other > $R/from/file");
    project.built_by_vagga("app", PLACES);
}

pub(crate) fn the_root_is_read_only(project: &Project) {
    project.write("vagga.yaml", "containers: {app: {}}");
    project.built_by_vagga("app", "");
    let before = project.picture(".vagga/app/");
    let out = project
        .run(
            &[],
            "id -u; cat /etc/file; echo x > /tmp/x; echo w > /work/written; test -c /dev/null
             test -d /proc/self; test -d /sys/kernel; test -s /etc/resolv.conf || true
             if (echo x > /etc/file) 2>/dev/null; then echo written; fi; cat /etc/hosts",
        )
        .good();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert_eq!(out, format!("0\nbase\n{hosts}"));
    assert_eq!(project.read("written"), "w\n");
    assert_eq!(project.picture(".vagga/app/"), before);
    project.nothing_is_left();
}

pub(crate) fn volumes_are_there(project: &Project) {
    with_volumes(project);
    let script = "cat /data/file /from/file /memory/f /whole/etc/file /seen/file
        stat -c '%a %u %g' /data /owned/file /memory /memory/d
        echo changed > /data/file; cat /data/file; rm /data/file; ls /data; echo n > /data/new
        echo k >> /kept/file; echo c >> /cached/file; echo b >> /real/file
        for place in /nothing /seen /whole; do
          if (echo x > $place/file) 2>/dev/null; then echo $place can be written; fi
        done";
    let wanted = "one\nother\ntextbase\nr\n750 0 0\n644 7 8\n700 0 0\n711 0 0\nchanged\n";
    assert_eq!(project.run(&[], script).good(), wanted);
    // The same again: nothing of the snapshot was kept, the rest was.
    assert_eq!(
        project
            .run(&["-W"], "cat /data/file /kept/file /cached/file /real/file")
            .good(),
        "one\nk\nc\nr\nb\n"
    );
    assert_eq!(project.read(".vagga/.volumes/name/file"), "k\n");
    assert_eq!(project.read(".vagga/.cache/some/cache/file"), "c\n");
    project.nothing_is_left();
}

pub(crate) fn what_the_environment_is(project: &Project) {
    with_volumes(project);
    project.sh("mkdir -p sub/dir").good();
    let show = "echo $HELLO $REPLACED $PASSED $FROM_VAGGA ${SECRET:-none}; echo $PATH; pwd";
    let mut command = project.vagga_command(&[
        "_run",
        "-E",
        "REPLACED=told",
        "--use-env",
        "PASSED",
        "--work-dir",
        "sub",
        "app",
        "sh",
        "-c",
        show,
    ]);
    command
        .env("PASSED", "passed")
        .env("SECRET", "secret")
        .env("VAGGAENV_FROM_VAGGA", "vagga");
    let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        out,
        format!("world told passed vagga none\n{path}\n/work/sub\n")
    );
    let mut below = project.vagga_command(&["_run", "app", "sh", "-c", "pwd"]);
    let out = below
        .current_dir(project.dir.join("sub/dir"))
        .output()
        .unwrap();
    assert_eq!(out.stdout, b"/work/sub/dir\n");
}

pub(crate) fn a_writable_root_leaves_the_base_alone(project: &Project) {
    project.write("vagga.yaml", "containers: {app: {}}");
    project.built_by_vagga("app", "ln $R/etc/file $R/etc/hard");
    let before = project.picture(".vagga/app/");
    let script = "echo y >> /etc/file; cat /etc/file; chmod 600 /etc/hosts.x 2>/dev/null || true
        rm -r /var; mkdir /var; ls /var; echo new > /new; chown 5:6 /new; stat -c '%u %g' /new
        mv /usr /moved 2>/dev/null || cp -r /usr /moved; ls / | grep moved; ln /new /hard; cat /hard";
    let out = project.run(&["-W"], script).good();
    assert_eq!(out, "base\ny\n5 6\nmoved\nnew\n");
    // The next one begins anew.
    assert_eq!(
        project
            .run(&["--writable"], "cat /etc/file; ls /var/lib")
            .good(),
        "base\ndata\n"
    );
    assert_eq!(project.picture(".vagga/app/"), before);
    project.nothing_is_left();
}

const SETTINGS: &str = "\
environ: {REPLACED: settings}
propagate-environ: [CI_*]
cache-dir: ~/cache
external-volumes: {outside: HOME/outside}
ubuntu-mirror: http://example.org/
";

pub(crate) fn settings_are_followed(project: &Project) {
    project.write(
        "vagga.yaml",
        "containers:\n  app:\n    environ: {HELLO: yaml, REPLACED: yaml}\n    setup:\n    \
         - !Tar {url: ./base.tar.gz}\n    - !Sh mkdir /c /o; echo $http_proxy > /proxy\n    \
         - !CacheDirs {/c: by-step}\n    - !Sh echo s > /c/file\n    \
         volumes: {/c: !CacheDir by-volume, /o: !BindRO /volumes/outside/below}\n",
    );
    project.pack_base();
    let home = project.dir.join("home");
    project
        .sh(
            "mkdir -p home/.config/vagga home/cache home/outside/below storage
             echo o > home/outside/below/file",
        )
        .good();
    let text = SETTINGS.replace("HOME", home.to_str().unwrap());
    let storage = format!("storage-dir: {}\n", project.dir.join("storage").display());
    project.write("home/.config/vagga/settings.yaml", &(text + &storage));
    let mut build = project.build_command(&[], "app");
    build.env("http_proxy", "proxy").env("ftp_proxy", "other");
    assert!(build.output().unwrap().status.success());
    // The place that the setting names, with vagga's links to and fro.
    let name = project.dir.file_name().unwrap().to_str().unwrap();
    let place = project.dir.join("storage").join(name);
    let link = |path: std::path::PathBuf| std::fs::read_link(path).unwrap();
    assert_eq!(link(project.dir.join(".vagga/.lnk")), place);
    assert_eq!(link(place.join(".lnk")), project.dir);
    assert!(link(project.dir.join(".vagga/app")).starts_with(".lnk/.roots"));
    assert_eq!(project.read("home/cache/by-step/file"), "s\n");
    let show = "echo $HELLO $REPLACED $CI_X $http_proxy; cat /proxy /o/file; echo v > /c/file";
    let mut run = project.vagga_command(&["_run", "app", "sh", "-ec", show]);
    run.env("CI_X", "ci").env("http_proxy", "now");
    let out = run.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "yaml settings ci now\nproxy\no\n",
        "{out:?}"
    );
    assert_eq!(project.read("home/cache/by-volume/file"), "v\n");
    project.write(".vagga.settings.yaml", "storage-dir: /\n");
    let line = project.run(&[], "true").refused();
    assert!(line.contains(".vagga.settings.yaml:1:1"), "{line}");
    project.sh("rm .vagga.settings.yaml").good();
    project.nothing_is_left();
    // What belongs to the user's other ids goes with `.vagga`.
    project.sh("mv storage home .vagga/").good();
}

pub(crate) fn an_outdated_container_is_told(project: &Project) {
    let text =
        "containers:\n  ours: {setup: [!Tar {url: ./base.tar.gz}, !Depends dep]}\n  app: {}\n";
    project.write("vagga.yaml", text);
    project.write("dep", "one");
    project.pack_base();
    project.built_by_vagga("app", "");
    project.build(&[], "ours").good();
    let said = |name: &str| {
        let ran = project.vagga(&["_run", name, "echo", "runs"]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), "runs\n"), "{ran:?}");
        ran.err
    };
    assert_eq!((said("ours"), said("app")), (String::new(), String::new()));
    // Vagga's are told once: whether they are outdated only vagga knows.
    project.write(
        "vagga.yaml",
        &text.replace("Depends dep", "Depends vagga.yaml"),
    );
    let line = said("app");
    assert!(
        line.lines().count() == 1 && line.contains("vagga _build app"),
        "{line}"
    );
    assert_eq!(said("app"), "");
    project.write("vagga.yaml", text);
    assert_eq!(said("ours"), "");
    project.write("dep", "two");
    for _ in 0..2 {
        let line = said("ours");
        assert!(
            line.lines().count() == 1 && line.contains("overfall vagga _build ours"),
            "{line}"
        );
    }
    // The same content again, from before.
    project.sh("mkdir d; mv dep d/two; printf one > dep").good();
    assert_eq!(said("ours"), "");
    project.sh("cp -p d/two dep2; mv dep2 dep").good();
    assert!(said("ours").contains("overfall vagga _build ours"));
    project.sh("rm dep").good();
    assert!(said("ours").contains("overfall vagga _build ours"));
    project.write(".vagga.settings.yaml", "version-check: false\n");
    assert_eq!(said("ours"), "");
    project.sh("rm .vagga.settings.yaml").good();
    project.build(&[], "ours").good();
    assert_eq!(said("ours"), "");
    project.nothing_is_left();
}

pub(crate) fn the_end_of_the_command_is_passed_on(project: &Project) {
    project.write("vagga.yaml", "containers: {app: {}}");
    project.built_by_vagga("app", "");
    for options in [&[][..], &["-W"]] {
        assert_eq!(project.run(options, "exit 7").code, Some(7));
        let mut command = project.vagga_command(&["_run"]);
        let out = command.args(options).args(["app", "not-there"]).output();
        assert_eq!(out.unwrap().status.code(), Some(127));
        use std::os::unix::process::ExitStatusExt;
        let mut command = project.vagga_command(&["_run"]);
        command
            .args(options)
            .args(["app", "sh", "-c", "kill -9 $$"]);
        let status = command.output().unwrap().status;
        assert_eq!((status.code(), status.signal()), (None, Some(9)));
        // Nor does a line that can't be told change it: that the copy was kept.
        let mut command = project.vagga_command(&["_run", "--keep"]);
        command.args(["app", "sh", "-c", "exit 4"]);
        let full = std::fs::File::options().write(true).open("/dev/full");
        assert_eq!(
            command.stderr(full.unwrap()).status().unwrap().code(),
            Some(4)
        );
        project.vagga(&["_clean", "--transient"]).good();
    }
    project.nothing_is_left();
}

pub(crate) fn snapshots_are_apart(project: &Project) {
    with_volumes(project);
    let wait = |own: &str, other: &str| {
        format!(
            "echo {own} > /data/own; touch /work/{own}.ready
             while ! test -e /work/{other}.ready; do sleep 0.05; done; ls /data; cat /data/own"
        )
    };
    let one = project.start(&[], &wait("one", "two"));
    let two = project.start(&["-W"], &wait("two", "one"));
    for (child, own) in [(one, "one"), (two, "two")] {
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(text, format!("file\nown\n{own}\n"), "{out:?}");
    }
    assert_eq!(project.names(".vagga/app/data"), ["file"]);
    eventually("both have gone", || project.processes().is_empty());
}

/// `overlay` of a volume is stronger than `--overlay`.
pub(crate) fn a_volume_says_who_carries_it(project: &Project) {
    project.write(
        "vagga.yaml",
        &format!(
            "containers: {{app: {{volumes: {{/data: !Snapshot {{overlay: {}}}}}}}}}\n",
            project.means
        ),
    );
    project.built_by_vagga("app", "mkdir $R/data; echo d > $R/data/d");
    let other = match project.means {
        "copy" => "auto",
        _ => "copy",
    };
    let script = "cat /data/d; echo x > /data/x; ls /data";
    let words = ["_run", "--overlay", other, "app", "sh", "-ec", script];
    let mut command = project.vagga_command(&words);
    let out = command.env("OVERFALL_LOG", "info").output().unwrap();
    assert_eq!(out.stdout, b"d\nd\nx\n", "{out:?}");
    let said = String::from_utf8_lossy(&out.stderr);
    let line = said.lines().find(|line| line.contains("/data: snapshot, "));
    assert!(
        line.is_some_and(|line| line.ends_with(project.means)),
        "{said}"
    );
    assert_eq!(project.names(".vagga/app/data"), ["d"]);
    project.nothing_is_left();
}

pub(crate) fn a_snapshot_is_bounded(project: &Project) {
    with_volumes(project);
    // FUSE forgets a removed file moments later, and its space is taken until then.
    let out = project.run(
        &[],
        "if dd if=/dev/zero of=/data/large bs=1M count=8 2>/tmp/said; then echo all of it; fi
         grep -c 'No space' /tmp/said; rm /data/large; tries=0
         until (echo small > /data/small) 2>/dev/null || test $tries = 50; do
           tries=$((tries + 1)); sleep 0.1
         done; cat /data/small",
    );
    assert_eq!(out.good(), "1\nsmall\n");
}
