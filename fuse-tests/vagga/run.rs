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
