//! Cases that install packages or build something, offline, from [`Supply`].

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Outcome;
use crate::bed::Bed;
use crate::cases::timed;
use crate::grounds::Scale;
use crate::supplies::Supply;

/// Crates of the workspace.
const CRATES: usize = 6;
/// Types in each, for the compiler to have something to do.
const TYPES: usize = 5;

/// Runs a program; returns what it wrote to stdout, and complains with the end of its stderr.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // What went wrong comes first with one program, last with another.
    let complaint = said
        .lines()
        .find(|line| line.to_lowercase().contains("error"))
        .or(said.trim_end().lines().last())
        .unwrap_or_default();
    Err(format!("{name}: {}: {complaint}", output.status).into())
}

/// A program that sees nothing of the caller's settings, and whose home is `home`.
fn bare(program: impl Into<PathBuf>, dir: &Path, home: &Path) -> Command {
    let mut command = Command::new(program.into());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", home)
        .current_dir(dir);
    command
}

/// The source of one crate, which counts the types of its own and of those below it.
fn crate_source(index: usize) -> String {
    let mut text = String::new();
    for number in 0..TYPES {
        let _ = write!(
            text,
            "#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]\n\
             pub struct T{number} {{ a: u32, b: String, c: Option<Vec<u64>>, d: (i8, char) }}\n\
             pub fn f{number}(count: usize) -> usize {{\n\
                 let mut all = vec![T{number}::default(); count];\n\
                 all.sort();\n\
                 all.dedup();\n\
                 format!(\"{{all:?}}\").len().min(1)\n\
             }}\n"
        );
    }
    let below = match index {
        0 => "0".to_owned(),
        _ => format!("part{}::count()", index - 1),
    };
    let _ = writeln!(text, "pub fn count() -> usize {{\n    {below}");
    for number in 0..TYPES {
        let _ = writeln!(text, "        + f{number}({})", number + 1);
    }
    text.push_str("}\n");
    text
}

/// Writes a workspace of crates that need nothing but each other.
pub(crate) fn make_workspace(dir: &Path) -> Outcome<()> {
    let mut members = String::new();
    for index in 0..CRATES {
        let part = dir.join(format!("part{index}"));
        fs::create_dir_all(part.join("src"))?;
        let mut manifest = format!(
            "[package]\nname = \"part{index}\"\nversion = \"1.0.0\"\nedition = \"2021\"\n\
             [dependencies]\n"
        );
        if let Some(below) = index.checked_sub(1) {
            let _ = writeln!(manifest, "part{below} = {{ path = \"../part{below}\" }}");
        }
        fs::write(part.join("Cargo.toml"), manifest)?;
        fs::write(part.join("src/lib.rs"), crate_source(index))?;
        let _ = write!(members, "\"part{index}\", ");
    }
    let top = CRATES - 1;
    fs::write(
        dir.join(format!("part{top}/src/main.rs")),
        format!("fn main() {{ println!(\"{{}}\", part{top}::count()); }}\n"),
    )?;
    let manifest = format!("[workspace]\nresolver = \"2\"\nmembers = [{members}]\n");
    fs::write(dir.join("Cargo.toml"), manifest)?;
    Ok(())
}

/// Builds the workspace in `tree`, in a fresh target directory.
pub(crate) fn cargo(tree: &Path, toolchain: &Path) -> Outcome<Duration> {
    let home = tempfile::tempdir()?;
    let bin = toolchain.join("bin");
    let mut path = OsString::from(&bin);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = bare(bin.join("cargo"), tree, home.path());
    command
        .args(["build", "--quiet", "--offline"])
        .env("PATH", path);
    let time = timed(|| output(&mut command).map(drop))?;
    let built = tree.join(format!("target/debug/part{}", CRATES - 1));
    let said = output(&mut Command::new(built))?;
    match said.trim() == (CRATES * TYPES).to_string() {
        true => Ok(time),
        false => Err(format!("what was built says {said:?}").into()),
    }
}

pub(crate) fn cargo_build(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    cargo(&bed.root(), &bed.supply(Supply::Toolchain))
}

/// Installs what the lock file says.
pub(crate) fn npm(tree: &Path, modules: &Path) -> Outcome<Duration> {
    // It writes to its cache, which another user may own.
    let home = tempfile::tempdir()?;
    let cache = home.path().join("cache");
    output(
        Command::new("cp")
            .args(["-r"])
            .args([&modules.join("cache"), &cache]),
    )?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(modules.join(name), tree.join(name))?;
    }
    let mut command = bare("npm", tree, home.path());
    command
        .args(["ci", "--offline", "--ignore-scripts", "--no-audit"])
        .args(["--no-fund", "--no-update-notifier", "--cache"])
        .arg(&cache);
    let time = timed(|| output(&mut command).map(drop))?;
    let script = "require('express'); console.log(require('lodash').chunk([1, 2, 3], 2).length)";
    let said = output(bare("node", tree, home.path()).args(["-e", script]))?;
    match said.trim() {
        "2" => Ok(time),
        _ => Err(format!("what was installed says {said:?}").into()),
    }
}

pub(crate) fn npm_ci(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    npm(&bed.root(), &bed.supply(Supply::Modules))
}

/// Compares what was installed with the hashes that came along; prints how many there were.
const VERIFY: &str = "
import base64, hashlib, importlib.metadata
count = 0
for package in importlib.metadata.distributions():
    for file in package.files:
        if file.hash:
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            found = base64.urlsafe_b64encode(digest).rstrip(b'=').decode()
            assert found == file.hash.value, file
            count += 1
print(count)
";

/// Installs into a fresh virtual environment.
pub(crate) fn pip(tree: &Path, wheels: &Path) -> Outcome<Duration> {
    let home = tempfile::tempdir()?;
    let create = ["-m", "venv", "--without-pip", "venv"];
    output(bare("python3", tree, home.path()).args(create))?;
    let python = tree.join("venv/bin/python");
    let mut names = Vec::new();
    for entry in fs::read_dir(wheels)? {
        names.push(entry?.path());
    }
    let mut command = bare("python3", tree, home.path());
    command
        .args(["-m", "pip", "--python"])
        .arg(&python)
        .args(["install", "--quiet", "--no-index", "--no-deps"])
        .args(["--no-cache-dir", "--disable-pip-version-check"])
        .args(names);
    let time = timed(|| output(&mut command).map(drop))?;
    let said = output(bare(python, tree, home.path()).args(["-c", VERIFY]))?;
    match said.trim().parse::<usize>()? > 500 {
        true => Ok(time),
        false => Err(format!("only {} files are there", said.trim()).into()),
    }
}

pub(crate) fn pip_install(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    pip(&bed.root(), &bed.supply(Supply::Wheels))
}

/// Installs into an empty root, with the syncs that belong to it.
pub(crate) fn dpkg(tree: &Path, debs: &Path) -> Outcome<Duration> {
    let home = tempfile::tempdir()?;
    for name in ["info", "updates", "triggers"] {
        fs::create_dir_all(tree.join("var/lib/dpkg").join(name))?;
    }
    fs::write(tree.join("var/lib/dpkg/status"), "")?;
    let mut packages = Vec::new();
    for entry in fs::read_dir(debs)? {
        packages.push(entry?.path());
    }
    let run = || {
        let mut command = bare("dpkg", tree, home.path());
        command
            .arg("--root")
            .arg(tree)
            .args(["--log=/dev/null", "--force-depends"])
            .args(["--force-not-root", "--force-bad-path"]);
        command
    };
    let time = timed(|| output(run().arg("--install").args(&packages)).map(drop))?;
    let wrong = output(run().arg("--verify"))?;
    let status = fs::read_to_string(tree.join("var/lib/dpkg/status"))?;
    let installed = status.matches("Status: install ok installed").count();
    match wrong.is_empty() && installed == packages.len() {
        true => Ok(time),
        false => Err(format!("{installed} packages, wrong files: {wrong:?}").into()),
    }
}

pub(crate) fn dpkg_install(bed: &mut Bed<'_>, _: Scale) -> Outcome<Duration> {
    dpkg(&bed.root(), &bed.supply(Supply::Debs))
}
