//! The releases of fuse-overlayfs that are installed: the first of each major one on `PATH`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::bed::Carrier;
use crate::programs;

const NAME: &str = "fuse-overlayfs";

/// One that was found.
#[derive(Debug)]
pub(crate) struct Rival {
    pub(crate) carrier: Carrier,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
}

/// Asks every one on `PATH` what it is.
pub(crate) fn find() -> Vec<Rival> {
    let mut found: Vec<Rival> = Vec::new();
    for program in programs::find_all(NAME) {
        let Some(version) = version(&program) else {
            continue;
        };
        let carrier = match version.split('.').next() {
            Some("2") => Carrier::Fuse2,
            Some("0" | "1") => Carrier::Fuse1,
            _ => continue,
        };
        if !found.iter().any(|other| other.carrier == carrier) {
            found.push(Rival {
                carrier,
                program,
                version,
            });
        }
    }
    found
}

/// From a line like `fuse-overlayfs: version 1.10`; `None` for what doesn't run.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let (_, after) = said
        .lines()
        .find(|line| line.starts_with(NAME))?
        .split_once("version ")?;
    Some(after.split_whitespace().next()?.to_owned())
}

/// Copies them into `dir`, which everybody can reach, and returns a `PATH` that begins with them.
pub(crate) fn copy_for_others(dir: &Path) -> Outcome<OsString> {
    let mut path = Vec::new();
    for rival in find() {
        let place = dir.join(&rival.version);
        fs::create_dir_all(&place)?;
        fs::copy(&rival.program, place.join(NAME))?;
        path.push(place);
    }
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    Ok(std::env::join_paths(path)?)
}
