//! What goes into a run: options, streams, environment.

use std::io::Write;
use std::process::Stdio;

use crate::ways::{Way, finish};

pub(crate) fn bad_input_is_one_line_and_code_2(way: &Way) {
    let file = way.plant("file", "");
    for options in [
        &["--root", "/no/such"] as &[&str],
        &["--root", &file],
        &["--lower", "/no/such"],
        &["--lower", &file],
        &["--bind", "/no/such"],
        &["--bind", "/"],
        &["--bind-ro", "/no/such"],
        &["--chdir", "/no/such"],
        &["--env", "NAME"],
        &["--env", "=value"],
        &["--keep", &format!("{file}/below")],
    ] {
        let ran = way.run(options, &["true"]);
        assert_eq!(ran.code, Some(2), "{options:?}: {ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "{options:?}: {ran:?}");
        assert!(ran.err.starts_with("overfall: "), "{options:?}: {ran:?}");
        assert_eq!(ran.out, "");
    }
    let ran = way.run(&["--no-such-option"], &["true"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("--no-such-option"), "{ran:?}");
}

pub(crate) fn streams_and_descriptors_are_passed_untouched(way: &Way) {
    let mut child = way
        .command(&[])
        .args(["--", "sh", "-c", "cat; echo err >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a\0b\xff").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"a\0b\xff");
    assert_eq!(output.stderr, b"err\n");

    // A shell opens a descriptor for the command.
    let file = way.plant("numbered", "by number");
    let command = way.command(&[]);
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", &format!("exec 7<{file}; \"$@\" -- sh -c 'cat <&7'"), "sh"])
        .args(words)
        .env("TMPDIR", way.scratch());
    assert_eq!(finish(&mut shell).good(), "by number");
}

pub(crate) fn environment_and_directory(way: &Way) {
    let script = "echo $A-$B-$PWD; pwd";
    let run = |options: &[&str], current: &str| {
        let mut command = way.command(options);
        command
            .args(["--", "sh", "-c", script])
            .env("A", "a")
            .env("B", "b")
            .env("PWD", current)
            .current_dir(current);
        finish(&mut command).good()
    };
    assert_eq!(run(&["--env", "B=c=d"], "/usr"), "a-c=d-/usr\n/usr\n");
    assert_eq!(run(&["--chdir", "/etc"], "/usr"), "a-b-/etc\n/etc\n");
    // PATH decides what is run.
    let bin = way.plant_dir("bin");
    let ran = way.run(&["--env", &format!("PATH={bin}")], &["true"]);
    assert_eq!(ran.code, Some(127), "{ran:?}");
}

pub(crate) fn the_default_command_is_the_shell(way: &Way) {
    let mut child = way
        .command(&[])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"echo $((6 * 7)); exit 9\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"42\n");
    assert_eq!(output.status.code(), Some(9));
}
