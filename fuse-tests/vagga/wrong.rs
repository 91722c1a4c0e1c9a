//! What can't be done, and how it is said.

use crate::project::Project;

pub(crate) fn bad_input_is_one_line_and_code_2(project: &Project) {
    let none = project.vagga(&["_run", "app", "true"]).refused();
    assert!(none.contains("no vagga.yaml here or above"), "{none}");
    project.write(
        "vagga.yaml",
        "containers:\n  app:\n    volumes:\n      /etc: !VaggaBin\n  missing: {}\n",
    );
    project.built_by_vagga("app", "");
    for (arguments, part) in [
        (
            &["_run", "app", "true"][..],
            "vagga.yaml:4:13: a volume of the kind `!VaggaBin`",
        ),
        (
            &["_run", "missing", "true"],
            "it isn't built; vagga _build missing",
        ),
        (
            &["_run", "nobody", "true"],
            "vagga.yaml has only app, missing",
        ),
        (
            &["_run", "-e", "A=b", "app", "true"],
            "a variable's name is wanted",
        ),
        (&["_build", "nobody"], "vagga.yaml has only app, missing"),
        (&["_clean"], "nothing is to be cleaned"),
    ] {
        let line = project.vagga(arguments).refused();
        assert!(line.contains(part), "{part}: {line}");
    }
    for (text, part) in [
        (
            "containers:\n  app:\n   setup: []\n   sutep: []\n",
            "vagga.yaml:4:4",
        ),
        ("containers: [\n", "vagga.yaml:"),
        (
            "containers:\n  a: {setup: [!Container a]}\n",
            "based on each other: a -> a",
        ),
        (
            "containers:\n  a: {setup: [!Sh x, !Container b]}\n",
            "vagga.yaml:2:22",
        ),
        (
            "containers:\n  a: {setup: [!Tar {url: ../x.tar}]}\n",
            "vagga.yaml:2:26",
        ),
        (
            "containers:\n  a: {setup: [!Tar {url: gone.tar}]}\n",
            "gone.tar",
        ),
    ] {
        project.write("vagga.yaml", text);
        let line = project.vagga(&["_build", "a"]).refused();
        assert!(line.contains(part), "{part}: {line}");
    }
    project.nothing_is_left();
}

pub(crate) fn an_unknown_step_stops_before_anything(project: &Project) {
    project.write(
        "vagga.yaml",
        "containers:\n  app:\n    setup:\n    - !Sh touch /work/ran\n    - !Ubuntu xenial\n  \
         on: {setup: [!Container app]}\n",
    );
    for name in ["app", "on"] {
        let line = project.build(&[], name).refused();
        assert!(
            line.contains("vagga.yaml:5:7: the step `!Ubuntu` is not known here"),
            "{line}"
        );
    }
    assert!(!project.exists("ran") && !project.exists(".vagga/.roots"));
    // One that vagga has built can be built on all the same.
    project.built_by_vagga("app", "");
    project.build(&[], "on").good();
    assert_eq!(project.read(".vagga/on/etc/file"), "base\n");
}

pub(crate) fn the_kernel_s_support_is_told(project: &Project) {
    let ran = project.vagga(&["_check_overlayfs_support"]);
    let mut lines = ran.out.lines();
    match ran.code {
        Some(0) => assert_eq!((lines.next(), ran.err.as_str()), (Some("supported"), "")),
        Some(1) => {
            assert_eq!(lines.next(), Some("unsupported"));
            assert!(!ran.err.is_empty(), "{ran:?}");
        }
        _ => panic!("{ran:?}"),
    }
    let version = project.sh("uname -rv").good();
    assert_eq!(lines.next(), Some(version.trim_end()));
}

pub(crate) fn support_that_can_t_be_tried_is_code_2(project: &Project) {
    project.write("vagga.yaml", "containers: {}");
    // Nobody can make anything in there, root neither.
    project.sh("ln -s /proc .vagga").good();
    project.vagga(&["_check_overlayfs_support"]).refused();
    project.sh("rm .vagga").good();
}
