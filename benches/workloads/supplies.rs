//! What programs install or build with, fetched before anything is timed: nothing is fetched
//! after that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, installs, programs};

/// What one program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Supply {
    /// Cargo and the compiler, where a plain user reaches them, too.
    Toolchain,
    /// A lock file and npm's cache.
    Modules,
    /// Python packages.
    Wheels,
    /// Debian packages.
    Debs,
}

/// npm's packages: many small files, and many of them.
const PACKAGE_JSON: &str = r#"{"name": "bench", "version": "1.0.0", "private": true,
"dependencies": {"express": "4.19.2", "lodash": "4.17.21"}}"#;

/// Python's packages: those that are Python alone fit any interpreter.
const WHEELS: [&str; 4] = ["babel", "docutils", "pygments", "requests"];

/// Debian's packages, as they are called in one release or another: without scripts that would
/// have to run in the tree.
const DEBS: [&str; 2] = ["perl-modules-*", "libpython3.*-stdlib"];

impl Supply {
    /// What has to be fetched for a program.
    pub(crate) fn of(program: &str) -> Option<Self> {
        match program {
            "cargo" => Some(Supply::Toolchain),
            "npm" => Some(Supply::Modules),
            "python3" => Some(Supply::Wheels),
            "dpkg" => Some(Supply::Debs),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Supply::Toolchain => "toolchain",
            Supply::Modules => "modules",
            Supply::Wheels => "wheels",
            Supply::Debs => "debs",
        }
    }

    /// Where it lies among all supplies.
    pub(crate) fn dir(self, supplies: &Path) -> PathBuf {
        supplies.join(self.name())
    }

    fn complaint(self, supplies: &Path) -> PathBuf {
        supplies.join(format!("{}.missing", self.name()))
    }

    /// Why it can't be had, where it can't.
    pub(crate) fn missing(self, supplies: &Path) -> Option<String> {
        fs::read_to_string(self.complaint(supplies)).ok()
    }

    /// Fetches it, and tries it on a plain directory. A failure is written down: the case is
    /// skipped then.
    pub(crate) fn prepare(self, supplies: &Path) -> Outcome<()> {
        let dir = self.dir(supplies);
        if dir.exists() {
            return Ok(());
        }
        fs::create_dir_all(&dir)?;
        let trial = || -> Outcome<()> {
            let tree = tempfile::tempdir()?;
            match self {
                Supply::Toolchain => {
                    copy_toolchain(&dir)?;
                    installs::make_workspace(tree.path())?;
                    installs::cargo(tree.path(), &dir)?;
                }
                Supply::Modules => {
                    fetch_modules(&dir)?;
                    installs::npm(tree.path(), &dir)?;
                }
                Supply::Wheels => {
                    fetch_wheels(&dir)?;
                    installs::pip(tree.path(), &dir)?;
                }
                Supply::Debs => {
                    fetch_debs(&dir)?;
                    installs::dpkg(tree.path(), &dir)?;
                }
            }
            Ok(())
        };
        if let Err(error) = trial() {
            let error = error.to_string().replace('\n', " ");
            fs::write(self.complaint(supplies), error)?;
        }
        Ok(())
    }
}

/// A copy, since others can't reach root's home.
fn copy_toolchain(dir: &Path) -> Outcome<()> {
    let said = installs::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let sysroot = Path::new(said.trim());
    fs::create_dir(dir.join("bin"))?;
    for program in ["bin/cargo", "bin/rustc"] {
        fs::copy(sysroot.join(program), dir.join(program))?;
    }
    // Everything else that may lie there, such as documentation, is of no use.
    installs::output(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .args([sysroot.join("lib"), dir.join("lib")]),
    )?;
    Ok(())
}

fn fetch_modules(dir: &Path) -> Outcome<()> {
    fs::write(dir.join("package.json"), PACKAGE_JSON)?;
    for args in [&["install", "--package-lock-only"][..], &["ci"]] {
        installs::output(
            Command::new("npm")
                .args(args)
                .args(["--ignore-scripts", "--no-audit", "--no-fund", "--cache"])
                .arg(dir.join("cache"))
                .current_dir(dir),
        )?;
    }
    // It was only to fill the cache.
    Ok(fs::remove_dir_all(dir.join("node_modules"))?)
}

fn fetch_wheels(dir: &Path) -> Outcome<()> {
    installs::output(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--only-binary", ":all:"])
            .args(["--platform", "any", "--dest"])
            .arg(dir)
            .args(WHEELS),
    )?;
    Ok(())
}

fn fetch_debs(dir: &Path) -> Outcome<()> {
    if !programs::installed("apt-get") {
        return Err("no apt-get here".into());
    }
    let known = installs::output(
        Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status} ${Package}\\n"])
            .args(DEBS),
    )?;
    let installed = known
        .lines()
        .filter_map(|line| line.strip_prefix("installed "));
    installs::output(
        Command::new("apt-get")
            .arg("download")
            .args(installed)
            .current_dir(dir),
    )?;
    Ok(())
}
