//! Containers on containers, and containers that stay layers.

use crate::project::{Project, skip};

const TWO: &str = "
containers:
  base: {}
  app:
    setup:
    - !Container base
    - !Sh echo y >> /etc/file; rm -r /var; mkdir /new; echo n > /new/n
    - !Sh mkdir /var; echo v > /var/v
";

pub(crate) fn a_container_on_another_copies_nothing(project: &Project) {
    project.write("vagga.yaml", TWO);
    project.built_by_vagga(
        "base",
        "dd if=/dev/zero of=$R/large bs=1M count=20 2>/dev/null",
    );
    let before = project.picture(".vagga/base/");
    project
        .build(&["--layered", "--cache-each-step"], "app")
        .good();
    let used = project.sh("du -sm .vagga/.layers | cut -f1").good();
    let used: u32 = used.trim().parse().unwrap();
    if project.means == "copy" {
        assert!(used >= 20, "{used} MiB");
    } else {
        assert!(used < 10, "{used} MiB");
    }
    let look =
        "cat /etc/file; ls / /var /new | grep -v -e '^[bdeprstw]' -e '^$'; stat -c %s /large";
    let wanted = "base\ny\n/:\nlarge\nnew\nusr\nvar\n/new:\nn\n/var:\nv\n20971520\n";
    assert_eq!(sorted(&project.run(&[], look).good()), sorted(wanted));
    let out = project
        .run(&["-W"], &format!("echo z >> /etc/file; rm /new/n; {look}"))
        .good();
    assert_eq!(out.matches('z').count(), 1, "{out}");
    // As one plain directory it is the same.
    project.build(&[], "app").good();
    assert_eq!(sorted(&project.run(&[], look).good()), sorted(wanted));
    assert_eq!(project.read(".vagga/app/etc/file"), "base\ny\n");
    assert_eq!(project.names(".vagga/app/var"), ["v"]);
    assert_eq!(project.picture(".vagga/base/"), before);
    project.nothing_is_left();
}

/// `overlay: true` of the container does what `--overlay` does.
pub(crate) fn the_setting_overlay_is_followed(project: &Project) {
    let by = match project.means {
        "kernel" => "native",
        "fuse" => "fuse",
        _ => skip("an overlay is asked for"),
    };
    let text = TWO.replace("  app:\n", "  app:\n    overlay: true\n");
    project.write("vagga.yaml", &text);
    project.built_by_vagga(
        "base",
        "dd if=/dev/zero of=$R/large bs=1M count=20 2>/dev/null",
    );
    let words = ["_build", "--layered", "--cache-each-step", "--backend", by];
    project.vagga(&[&words[..], &["app"]].concat()).good();
    let used = project.sh("du -sm .vagga/.layers | cut -f1").good();
    assert!(used.trim().parse::<u32>().unwrap() < 10, "{used} MiB");
    let out = project.run(&[], "stat -c %s /large; cat /var/v").good();
    assert_eq!(out, "20971520\nv\n");
    let steps = project.vagga(&["_steps", "app"]).good();
    assert_eq!(steps.matches(" built ").count(), 3, "{steps}");
    project.nothing_is_left();
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines
}

const THREE: &str = "
containers:
  base: {setup: [!Tar {url: ./base.tar.gz}, !Sh echo OLD > /base]}
  app: {setup: [!Container base, !Sh cat /base > /app]}
";

pub(crate) fn what_lies_below_can_t_be_cleaned(project: &Project) {
    if project.means == "copy" {
        skip("a copy lies on nothing");
    }
    project.write("vagga.yaml", THREE);
    project.pack_base();
    project.build(&["--layered"], "app").good();
    // Another version of the base; that of `app` stays as it is.
    project.build(&[], "base").good();
    project.write("vagga.yaml", &THREE.replace("OLD", "NEW"));
    project.build(&[], "base").good();
    assert_eq!(project.read(".vagga/base/base"), "NEW\n");
    project.vagga(&["_clean", "--unused", "--layers"]).good();
    assert_eq!(project.run(&[], "cat /app /base").good(), "OLD\nOLD\n");
    // A flattened base is kept as a directory, and `_clean` says for whom.
    project.write("vagga.yaml", THREE);
    project.build(&[], "base").good();
    project.build(&["--layered", "--force"], "app").good();
    project.write("vagga.yaml", &THREE.replace("OLD", "NEW"));
    project.build(&[], "base").good();
    let cleaned = project.vagga(&["_clean", "--unused", "--layers"]);
    assert!(cleaned.err.contains("is built on it"), "{cleaned:?}");
    assert_eq!(project.run(&[], "cat /app /base").good(), "OLD\nOLD\n");
    project.nothing_is_left();
}

/// The version is the same, and what is in it isn't.
pub(crate) fn another_base_below_is_noticed(project: &Project) {
    if project.means == "copy" {
        skip("a copy lies on nothing");
    }
    project.write("vagga.yaml", THREE);
    project.pack_base();
    project.build(&[], "base").good();
    project.build(&["--layered"], "app").good();
    project.build(&["--force"], "base").good();
    let refused = project.run(&[], "cat /app /base");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("was built again since"), "{refused:?}");
    project.build(&["--layered"], "app").good();
    assert_eq!(project.run(&[], "cat /app /base").good(), "OLD\nOLD\n");
    project.nothing_is_left();
}

const BESIDE: &str = "
containers:
  base: {}
  db:
    setup:
    - !Container base
    - !Sh mkdir /data; echo d > /data/d; rm /etc/file
  app:
    environ-file: /etc/environment
    volumes:
      /data: !Snapshot {container: db, size: 5Mi}
      /other: !Container db
  on-db:
    setup:
    - !Container db
    - !Sh echo NAME=value > /etc/environment
    environ-file: /etc/environment
    volumes: {/data: !Snapshot}
";

/// A container of layers is as good as a plain one for another's volumes.
pub(crate) fn layers_in_volumes(project: &Project) {
    project.write("vagga.yaml", BESIDE);
    project.built_by_vagga("base", "");
    let more = "mkdir $R/data $R/other; echo A=from-app > $R/etc/environment";
    project.built_by_vagga("app", more);
    project.build(&["--layered"], "db").good();
    let before = project.picture(".vagga/.layers/");
    let script = "cat /data/d; echo more >> /data/d; cat /data/d /other/data/d; \
                  ls /other/etc/file 2>/dev/null || echo none; echo $A; \
                  (echo x > /other/data/x) 2>/dev/null || echo read-only";
    let wanted = "d\nd\nmore\nd\nnone\nfrom-app\nread-only\n";
    for options in [&[][..], &["-W"]] {
        assert_eq!(project.run(options, script).good(), wanted);
    }
    assert_eq!(project.picture(".vagga/.layers/"), before);
    project.build(&["--layered"], "on-db").good();
    let mut words = vec!["_run", "--overlay", project.means, "on-db", "sh", "-ec"];
    words.push("cat /data/d; echo more >> /data/d; cat /data/d; echo $NAME");
    assert_eq!(project.vagga(&words).good(), "d\nd\nmore\nvalue\n");
    project.nothing_is_left();
}

pub(crate) fn layers_are_shown_outside(project: &Project) {
    project.write("vagga.yaml", TWO);
    project.built_by_vagga("base", "");
    project.build(&["--layered"], "app").good();
    assert_eq!(project.names(".vagga/app"), [""; 0]);
    let shown = project.vagga(&["_mount", "app"]);
    if shown.code != Some(0) {
        skip(format!("no FUSE outside of namespaces here: {}", shown.err));
    }
    let target = shown.good().trim_end().to_owned();
    let look = project
        .sh("cat .vagga/app/etc/file .vagga/app/new/n; ls .vagga/app/var")
        .good();
    assert_eq!(look, "base\ny\nn\nv\n");
    assert_ne!(project.sh("echo x > .vagga/app/etc/file").code, Some(0));
    let program = project.dir.parent().unwrap().join("overfall");
    let end = format!("{} umount {target}", program.display());
    project.sh(&end).good();
    // Anywhere else, too.
    project.sh("mkdir here").good();
    project.vagga(&["_mount", "app", "here"]).good();
    assert_eq!(project.sh("cat here/new/n").good(), "n\n");
    project.sh(&end.replace(&target, "here")).good();
    project.nothing_is_left();
}

pub(crate) fn a_plain_container_is_shown_elsewhere(project: &Project) {
    project.write("vagga.yaml", TWO);
    project.built_by_vagga("base", "");
    project.sh("mkdir here").good();
    let in_its_place = project.vagga(&["_mount", "base"]).refused();
    assert!(in_its_place.contains("plain directory"), "{in_its_place}");
    let shown = project.vagga(&["_mount", "base", "here"]);
    if shown.err.contains("FUSE") {
        skip(format!("no FUSE outside of namespaces here: {}", shown.err));
    }
    shown.good();
    assert_eq!(project.sh("cat here/etc/file").good(), "base\n");
    assert_ne!(project.sh("echo x > here/etc/file").code, Some(0));
    let program = project.dir.parent().unwrap().join("overfall");
    project
        .sh(&format!("{} umount here", program.display()))
        .good();
    project.nothing_is_left();
}

pub(crate) fn the_last_build_s_layers_are_told(project: &Project) {
    project.write("vagga.yaml", TWO);
    project.built_by_vagga("base", "");
    let told = || project.vagga(&["_steps", "app"]).good();
    assert!(!told().contains("built"), "{}", told());
    let build = ["_build", "--cache-each-step", "--backend", "fuse"];
    project
        .vagga(&[&build[..], &["--overlay", "app"]].concat())
        .good();
    let laid = told();
    assert_eq!(laid.matches("built").count(), 3, "{laid}");
    // A copy is in the first layer of the other way to build it.
    project.sh("rm -r .vagga/app .vagga/.roots/app.*").good();
    project.vagga(&[&build[..], &["app"]].concat()).good();
    let copied = told();
    assert_eq!(copied.matches("built").count(), 3, "{copied}");
    assert!(
        copied.contains("KiB") && !laid.contains("KiB"),
        "{laid}{copied}"
    );
    project.nothing_is_left();
}

pub(crate) fn nobody_writes_through_a_flattened_tree(project: &Project) {
    project.write("vagga.yaml", TWO);
    project.built_by_vagga("base", "");
    project.build(&["--cache-each-step"], "app").good();
    let before = project.picture(".vagga/base/");
    // Somebody changes files of the tree in place, as an IDE might.
    project
        .sh("echo broken >> .vagga/app/etc/file; echo broken > .vagga/app/new/n")
        .good();
    assert_eq!(project.picture(".vagga/base/"), before);
    project
        .sh("rm .vagga/app; mv .vagga/.roots/app.* .vagga/moved")
        .good();
    project.build(&["--cache-each-step"], "app").good();
    assert_eq!(project.read(".vagga/app/etc/file"), "base\ny\n");
    assert_eq!(project.read(".vagga/app/new/n"), "n\n");
}

const ELSEWHERE: &str = "
containers:
  conf:
    setup:
    - !Tar {url: ./base.tar.gz}
    - !Sh mkdir /d; ln -s /etc/more.yaml /d/vagga.yaml
    - !Sh echo removed > /etc/more.yaml
    - !Text
        /etc/real.yaml: |
          mixins: [more.yaml]
          containers: {}
        /etc/more.yaml: |
          containers:
            part: {setup: [!Sh echo part > /part, !Sh cat /part > /again]}
            wrong:
              setup:
              - !Nonsense
  app:
    setup:
    - !Tar {url: ./base.tar.gz}
    - !Env {A: b}
    - !SubConfig {source: !Container conf, path: etc/real.yaml, container: part}
    - !Sh cat /again > /last
  by-link: {setup: [!Tar {url: ./base.tar.gz}, !SubConfig {source: !Container conf, path: d/vagga.yaml, container: part}]}
  bad: {setup: [!SubConfig {source: !Container conf, path: etc/real.yaml, container: wrong}]}
  gone: {setup: [!SubConfig {source: !Container conf, path: no.yaml, container: part}]}
";

/// `!SubConfig` of a container, which is built first; of layers or not.
pub(crate) fn a_configuration_in_a_container(project: &Project) {
    project.write("vagga.yaml", ELSEWHERE);
    project.pack_base();
    let refused = project.vagga(&["_steps", "app"]).refused();
    assert!(
        refused.contains("vagga.yaml:22:7") && refused.contains("overfall vagga _build conf"),
        "{refused}"
    );
    project
        .build(&["--layered", "--cache-each-step"], "conf")
        .good();
    assert_eq!(project.names(".vagga/conf"), [""; 0]);
    project.build(&[], "app").good();
    assert_eq!(project.read(".vagga/app/last"), "part\n");
    // An absolute link leads to the container's own file.
    project.build(&[], "by-link").good();
    assert_eq!(project.read(".vagga/by-link/again"), "part\n");
    let line = project.build(&[], "bad").refused();
    assert!(
        line.contains("/root/etc/more.yaml:5:7: the step `!Nonsense`"),
        "{line}"
    );
    let line = project.build(&[], "gone").refused();
    assert!(line.contains("/root/no.yaml: "), "{line}");
    project.nothing_is_left();
    // One that isn't there is built first.
    project
        .sh("rm .vagga/conf; mv .vagga/.roots .vagga/gone")
        .good();
    project.build(&[], "app").good();
    assert_eq!(project.read(".vagga/app/last"), "part\n");
    assert!(project.exists(".vagga/conf/etc/real.yaml"));
}

const TWINS: &str = "
containers:
  app: {setup: [!Tar {url: ./base.tar.gz}, !Sh echo same > /same]}
  twin: {setup: [!Tar {url: ./base.tar.gz}, !Sh echo same > /same]}
";

/// Of the same steps: one that stays layers keeps what the other needs no more.
pub(crate) fn a_build_leaves_another_s_layers_alone(project: &Project) {
    project.write("vagga.yaml", TWINS);
    project.pack_base();
    project.build(&["--layered"], "app").good();
    project.build(&[], "twin").good();
    assert_eq!(project.read(".vagga/twin/same"), "same\n");
    assert_eq!(project.run(&[], "cat /same").good(), "same\n");
    project.vagga(&["_clean", "--layers", "--unused"]).good();
    assert_eq!(project.run(&["-W"], "cat /same").good(), "same\n");
    project.nothing_is_left();
}
