//! Cases that are the work of real programs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Outcome;
use crate::bed::Bed;
use crate::cases::timed;
use crate::grounds::{Scale, small_content, small_path};

/// Every program of that name on `PATH`.
pub(crate) fn find_all(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .filter(|path| path.is_file())
        .collect()
}

pub(crate) fn installed(name: &str) -> bool {
    !find_all(name).is_empty()
}

/// Runs a program in `dir`; returns what it wrote to stdout.
fn run(dir: &Path, program: &str, args: &[&str], input: &[u8]) -> Outcome<String> {
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program} {args:?}: {}", output.status).into()),
    }
}

fn git(dir: &Path, args: &[&str]) -> Outcome<String> {
    const SETTINGS: [&str; 8] = [
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@localhost",
        "-c",
        "safe.directory=*",
        "-c",
        "gc.auto=0",
    ];
    run(dir, "git", &[&SETTINGS, args].concat(), b"")
}

/// Commits what is there, and on a second branch a change of every tenth file.
pub(crate) fn make_repository(dir: &Path) -> Outcome<()> {
    if !installed("git") {
        return Ok(());
    }
    git(dir, &["init", "--quiet", "--initial-branch=main"])?;
    git(dir, &["add", "."])?;
    git(dir, &["commit", "--quiet", "--message=all"])?;
    git(dir, &["checkout", "--quiet", "-b", "other"])?;
    for index in (0..).step_by(10) {
        let path = dir.join(small_path(index));
        if !path.exists() {
            break;
        }
        fs::write(path, "changed")?;
    }
    git(dir, &["commit", "--quiet", "--all", "--message=some"])?;
    git(dir, &["checkout", "--quiet", "main"])?;
    Ok(())
}

pub(crate) fn make_database(path: &Path) -> Outcome<()> {
    if !installed("sqlite3") {
        return Ok(());
    }
    let dir = path.parent().ok_or("no directory")?;
    let table = b"CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);";
    run(dir, "sqlite3", &[&path.to_string_lossy()], table)?;
    Ok(())
}

fn status(bed: &Bed<'_>) -> Outcome<()> {
    match git(&bed.root(), &["status", "--porcelain"])?.is_empty() {
        true => Ok(()),
        false => Err("git sees changes".into()),
    }
}

pub(crate) fn git_status_first(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    timed(|| status(bed))
}

pub(crate) fn git_status_again(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    status(bed)?;
    timed(|| (0..5).try_for_each(|_| status(bed)))
}

pub(crate) fn git_checkout(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    let root = bed.root();
    let time = timed(|| {
        git(&root, &["checkout", "--quiet", "other"])?;
        Ok(())
    })?;
    status(bed)?;
    match fs::read(bed.path(small_path(0)))? == b"changed" {
        true => Ok(time),
        false => Err("wrong content".into()),
    }
}

pub(crate) fn tar_extract(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let outside = tempfile::tempdir()?;
    let archive = outside.path().join("all.tar");
    let tree = outside.path().join("tree");
    for index in 0..scale.files {
        let path = tree.join(small_path(index));
        if index % 50 == 0
            && let Some(parent) = path.parent()
        {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, small_content(index))?;
    }
    let archive = archive.to_string_lossy();
    run(&tree, "tar", &["cf", &archive, "."], b"")?;
    let root = bed.root();
    let time = timed(|| {
        run(&root, "tar", &["xf", &archive], b"")?;
        Ok(())
    })?;
    run(&root, "tar", &["df", &archive], b"")?;
    Ok(time)
}

pub(crate) fn rm_recursive(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    let root = bed.root();
    let time = timed(|| {
        run(&root, "sh", &["-c", "rm -rf d*"], b"")?;
        Ok(())
    })?;
    match fs::read_dir(&root)?.next() {
        None => Ok(time),
        Some(_) => Err("something is still there".into()),
    }
}

pub(crate) fn chown_recursive(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    // In a user namespace there is nobody else.
    let owner = if crate::place::is_real_root() {
        "7:7"
    } else {
        "0:0"
    };
    let root = bed.root();
    let time = timed(|| {
        run(&root, "chown", &["-R", owner, "."], b"")?;
        Ok(())
    })?;
    let (user, _) = owner.split_once(':').unwrap_or_default();
    let left = ["!", "-uid", user];
    match run(&root, "find", &[&["."][..], &left].concat(), b"")?.is_empty() {
        true => Ok(time),
        false => Err("some have the old owner".into()),
    }
}

pub(crate) fn copy_tree(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    let root = bed.root();
    let time = timed(|| {
        run(&root, "cp", &["-a", "d0", "copy"], b"")?;
        run(&root, "cp", &["-a", "d1", "copy"], b"")?;
        Ok(())
    })?;
    run(&root, "diff", &["-r", "d1", "copy/d1"], b"")?;
    Ok(time)
}

pub(crate) fn du_first(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    bed.cold()?;
    let root = bed.root();
    timed(|| {
        run(&root, "du", &["-s", "."], b"")?;
        Ok(())
    })
}

pub(crate) fn grep(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    bed.cold()?;
    let root = bed.root();
    // The number that each file begins with.
    let script = "find . -type f -print0 | xargs -0 grep -l '^[0-9]\\{8\\}' | wc -l";
    timed(|| {
        let found = run(&root, "sh", &["-c", script], b"")?;
        match found.trim() == scale.files.to_string() {
            true => Ok(()),
            false => Err(format!("{} files found", found.trim()).into()),
        }
    })
}

pub(crate) fn sqlite(bed: &mut Bed<'_>, scale: Scale) -> Outcome<Duration> {
    let root = bed.root();
    let mut script = String::from("PRAGMA synchronous=FULL;\n");
    for index in 0..scale.transactions {
        script.push_str(&format!("INSERT INTO t (text) VALUES ('row {index}');\n"));
    }
    let time = timed(|| {
        run(&root, "sqlite3", &["db"], script.as_bytes())?;
        Ok(())
    })?;
    let check = b"PRAGMA integrity_check; SELECT count(*) FROM t;";
    let said = run(&root, "sqlite3", &["db"], check)?;
    match said == format!("ok\n{}\n", scale.transactions) {
        true => Ok(time),
        false => Err(format!("the database says {said:?}").into()),
    }
}
