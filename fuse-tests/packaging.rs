//! What packages are made of: man pages and completions from the command line's own definitions,
//! the layout of `docs/packaging/install.sh`, and the descriptions for package managers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_overfall");

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs it; `false` where there is no such program.
fn passes(program: &str, arguments: &[&str], file: &Path) -> bool {
    match Command::new(program).args(arguments).arg(file).output() {
        Ok(done) => {
            assert!(
                done.status.success(),
                "{program} {}: {done:?}",
                file.display()
            );
            true
        }
        Err(error) => {
            eprintln!("skipped: {program}: {error}");
            false
        }
    }
}

fn help(words: &[&str]) -> String {
    let done = output(Command::new(PROGRAM).args(words).arg("--help"));
    assert!(done.status.success());
    String::from_utf8(done.stdout).unwrap()
}

/// The commands that `--help` lists.
fn commands(words: &[&str]) -> Vec<String> {
    let help = help(words);
    let (_, rest) = help.split_once("\nCommands:\n").unwrap();
    rest.lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect()
}

fn generated() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let done = output(Command::new(PROGRAM).arg("generate").arg(&out));
    assert!(done.status.success(), "{done:?}");
    (scratch, out)
}

/// Every long option in a text of `--help`.
fn options(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix('-').map(|_| line))
        .flat_map(|line| line.split([' ', ',', '=', '.']))
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn each_command_has_a_page_with_all_of_its_options() {
    let (_scratch, out) = generated();
    let mut pages = vec![("overfall".to_owned(), Vec::new())];
    for name in commands(&[]) {
        pages.push((format!("overfall-{name}"), vec![name]));
    }
    for name in commands(&["vagga"]) {
        pages.push((
            format!("overfall-vagga-{name}"),
            vec!["vagga".to_owned(), name],
        ));
    }
    let made = fs::read_dir(out.join("man/man1")).unwrap().count();
    assert_eq!(made, pages.len());
    for (page, words) in pages {
        let text = fs::read_to_string(out.join(format!("man/man1/{page}.1"))).unwrap();
        let plain = text.replace("\\-", "-");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for option in options(&help(&words)) {
            assert!(plain.contains(&option), "{page}: {option}");
        }
    }
    for helper in ["mount.fuse.overfall", "mount.overfall"] {
        let text = fs::read_to_string(out.join(format!("man/man8/{helper}.8"))).unwrap();
        assert_eq!(text, ".so man1/overfall-mount.1\n");
    }
}

#[test]
fn pages_can_be_shown() {
    let (_scratch, out) = generated();
    for page in fs::read_dir(out.join("man/man1")).unwrap() {
        let page = page.unwrap().path();
        if !passes("man", &["--warnings", "-l", "-Tutf8"], &page) {
            return;
        }
    }
}

#[test]
fn completions_are_read_by_their_shells() {
    let (_scratch, out) = generated();
    for (shell, name) in [
        ("bash", "overfall.bash"),
        ("zsh", "_overfall"),
        ("fish", "overfall.fish"),
    ] {
        let file = out.join("completions").join(name);
        let text = fs::read_to_string(&file).unwrap();
        for command in commands(&[]) {
            assert!(text.contains(&command), "{name}: {command}");
        }
        assert!(!text.contains("generate"), "{name} offers what is hidden");
        passes(shell, &["-n"], &file);
    }
}

/// What bash would offer behind `overfall um`.
#[test]
fn bash_completes() {
    let (_scratch, out) = generated();
    let script = "source \"$0\"; COMP_WORDS=(overfall um); COMP_CWORD=1; \
        _overfall overfall um overfall; echo \"${COMPREPLY[*]}\"";
    let file = out.join("completions/overfall.bash");
    let done = match Command::new("bash")
        .arg("-c")
        .arg(script)
        .arg(&file)
        .output()
    {
        Ok(done) => done,
        Err(error) => return eprintln!("skipped: bash: {error}"),
    };
    assert_eq!(
        String::from_utf8_lossy(&done.stdout).trim(),
        "umount",
        "{done:?}"
    );
}

fn install(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let script = top().join("docs/packaging/install.sh");
    let mut command = Command::new(script);
    command.args(arguments).env("BINARY", PROGRAM);
    command.envs(variables.iter().copied());
    output(&mut command)
}

/// All files and links below a directory, with what a link leads to.
fn laid_out(top: &Path, below: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(top).unwrap().display().to_string();
        match fs::read_link(&path) {
            Ok(target) => drop(into.insert(format!("{name} -> {}", target.display()))),
            Err(_) if path.is_dir() => laid_out(top, &path, into),
            Err(_) => drop(into.insert(name)),
        }
    }
}

#[test]
fn the_layout_is_what_the_script_says() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().to_str().unwrap();
    let done = install(&["/usr", root], &[]);
    assert!(done.status.success(), "{done:?}");
    let mut names = BTreeSet::new();
    laid_out(scratch.path(), scratch.path(), &mut names);
    for wanted in [
        "usr/bin/overfall",
        "usr/bin/overfall-mount -> overfall",
        "usr/sbin/mount.fuse.overfall -> ../bin/overfall",
        "usr/sbin/mount.overfall -> ../bin/overfall",
        "usr/share/man/man1/overfall.1",
        "usr/share/man/man1/overfall-run.1",
        "usr/share/man/man8/mount.fuse.overfall.8",
        "usr/share/bash-completion/completions/overfall",
        "usr/share/zsh/site-functions/_overfall",
        "usr/share/fish/vendor_completions.d/overfall.fish",
        "usr/share/doc/overfall/README.md",
        "usr/share/doc/overfall/SECURITY.md",
        "usr/share/licenses/overfall/LICENSE-MIT",
    ] {
        assert!(names.contains(wanted), "{wanted}: {names:#?}");
    }
    let program = scratch.path().join("usr/bin/overfall");
    assert_eq!(
        fs::metadata(&program).unwrap().permissions().mode() & 0o7777,
        0o755
    );
    for link in [
        "usr/sbin/mount.fuse.overfall",
        "usr/sbin/mount.overfall",
        "usr/bin/overfall-mount",
    ] {
        let leads_to = fs::canonicalize(scratch.path().join(link)).unwrap();
        assert_eq!(leads_to, fs::canonicalize(&program).unwrap(), "{link}");
    }
    let done = install(&["/usr", root], &[("UNINSTALL", "1")]);
    assert!(done.status.success(), "{done:?}");
    let mut left = BTreeSet::new();
    laid_out(scratch.path(), scratch.path(), &mut left);
    assert_eq!(left, BTreeSet::new());
}

/// Arch has no directory sbin of its own.
#[test]
fn the_helpers_may_be_elsewhere() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().to_str().unwrap();
    let done = install(
        &["/opt/over fall", root],
        &[("SBIN", "/opt/over fall/lib/x")],
    );
    assert!(done.status.success(), "{done:?}");
    let link = scratch
        .path()
        .join("opt/over fall/lib/x/mount.fuse.overfall");
    assert_eq!(
        fs::read_link(&link).unwrap(),
        Path::new("../../bin/overfall")
    );
    assert!(fs::canonicalize(link).is_ok());
}

#[test]
fn bad_arguments_are_one_line_and_nothing_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().to_str().unwrap();
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);
    let cases: [Case<'_>; 5] = [
        (&[], &[]),
        (&["usr", root], &[]),
        (&["/usr", "relative"], &[]),
        (&["/usr", root], &[("SBIN", "/elsewhere")]),
        (&["/usr", root], &[("BINARY", "/nowhere/overfall")]),
    ];
    for (arguments, variables) in cases {
        let done = install(arguments, variables);
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert_eq!(
            String::from_utf8_lossy(&done.stderr).lines().count(),
            1,
            "{done:?}"
        );
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn descriptions_for_package_managers_are_well_formed() {
    let packaging = top().join("docs/packaging");
    passes("bash", &["-n"], &packaging.join("arch/PKGBUILD"));
    for script in ["install.sh", "deb.sh"] {
        passes("sh", &["-n"], &packaging.join(script));
    }
    for file in ["flake.nix", "module.nix", "package.nix"] {
        passes(
            "nix-instantiate",
            &["--parse"],
            &packaging.join("nix").join(file),
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    let recipe = fs::read_to_string(packaging.join("arch/PKGBUILD")).unwrap();
    assert!(
        recipe.contains(&format!("\npkgver={version}\n")),
        "PKGBUILD has another version"
    );
}
