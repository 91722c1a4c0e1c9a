//! What steps depend on, with the files that they read.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::action::{Action, Archive, Copy, Times};
use super::archive;
use super::contents::Contents;
use super::filter::Filter;
use super::plan::of_project;
use crate::vagga::project::Project;
use crate::{Error, Result};

/// Adds what `action` depends on. Steps that change no files aren't its business.
pub(super) fn digest(contents: &mut Contents, project: &Project, action: &Action) -> Result<()> {
    match action {
        Action::Container(_) | Action::SubConfig(_) | Action::Env(_) | Action::Depends { .. } => {}
        Action::Sh(script) => contents.field("!Sh", script.as_bytes()),
        Action::Cmd(words) => {
            for word in words {
                contents.field("!Cmd", word.as_bytes());
            }
        }
        Action::RunAs(run) => {
            contents.field("!RunAs", run.script.as_bytes());
            contents.field("who", format!("{:?} {:?}", run.who, run.network).as_bytes());
            contents.path("in", &run.directory);
        }
        Action::Tar(tar) => {
            contents.path("!Tar", &tar.path);
            contents.path("of", &tar.subdir);
            add_archive(contents, project, &tar.archive)?;
        }
        Action::TarInstall(install) => {
            contents.field("!TarInstall", install.script.as_bytes());
            if let Some(subdir) = &install.subdir {
                contents.path("of", subdir);
            }
            add_archive(contents, project, &install.archive)?;
        }
        Action::Copy(copy) => add_copy(contents, project, copy)?,
        Action::Text(texts) => {
            for (path, text) in texts {
                contents.path("!Text", path);
                contents.field("text", text.as_bytes());
            }
        }
        Action::EnsureDir(path) => contents.path("!EnsureDir", path),
        Action::EmptyDir(path) => contents.path("!EmptyDir", path),
        Action::Remove(path) => contents.path("!Remove", path),
        Action::CacheDirs(caches) => {
            for (place, name) in caches {
                contents.path("!CacheDirs", place);
                contents.path("name", name);
            }
        }
    }
    Ok(())
}

/// Adds the files of a `!Depends` step.
pub(super) fn digest_for_dependence(
    contents: &mut Contents,
    dir: &Path,
    filter: &Filter,
) -> Result<()> {
    contents.path("!Depends", Path::new(""));
    each(dir, filter, |name, path, meta| {
        contents.path("file", name);
        let executable = meta.is_file() && meta.mode() & 0o100 != 0;
        contents.field("kind", &[kind(meta), u8::from(executable)]);
        add_content(contents, path, meta)
    })
}

fn add_copy(contents: &mut Contents, project: &Project, copy: &Copy) -> Result<()> {
    contents.path("!Copy", &copy.source);
    contents.path("to", &copy.path);
    let settings = format!(
        "{:?} {:?} {:?} {:?}",
        copy.uid, copy.gid, copy.umask, copy.times
    );
    contents.field("settings", settings.as_bytes());
    let Some(source) = of_project(project, &copy.source) else {
        contents.field("chosen", format!("{:?}", copy.filter).as_bytes());
        return Ok(());
    };
    each(&source, &copy.filter, |name, path, meta| {
        contents.path("file", name);
        contents.field("kind", &[kind(meta)]);
        for number in [meta.mode(), meta.uid(), meta.gid()] {
            contents.field("attribute", &number.to_le_bytes());
        }
        if copy.times == Times::Preserved {
            contents.field("time", &meta.mtime().to_le_bytes());
            contents.field("time", &meta.mtime_nsec().to_le_bytes());
        }
        add_content(contents, path, meta)
    })
}

/// Calls `visit` for `top`, with an empty name, and for what is chosen below it. One that isn't
/// there is nothing: a step before may make it.
fn each(
    top: &Path,
    filter: &Filter,
    mut visit: impl FnMut(&Path, &Path, &fs::Metadata) -> Result<()>,
) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(top) else {
        return Ok(());
    };
    visit(Path::new(""), top, &meta)?;
    if !meta.is_dir() {
        return Ok(());
    }
    for name in filter.walk(top)? {
        let path = top.join(&name);
        let meta = fs::symlink_metadata(&path).map_err(|error| unreadable(&path, &error))?;
        visit(&name, &path, &meta)?;
    }
    Ok(())
}

fn kind(meta: &fs::Metadata) -> u8 {
    if meta.is_dir() {
        b'd'
    } else if meta.is_symlink() {
        b'l'
    } else if meta.is_file() {
        b'f'
    } else {
        b'?'
    }
}

fn add_content(contents: &mut Contents, path: &Path, meta: &fs::Metadata) -> Result<()> {
    if meta.is_symlink() {
        let target = fs::read_link(path).map_err(|error| unreadable(path, &error))?;
        contents.field("target", target.as_os_str().as_bytes());
    } else if meta.is_file() {
        contents.field("content", &sum(path)?);
    }
    Ok(())
}

fn add_archive(contents: &mut Contents, project: &Project, archive: &Archive) -> Result<()> {
    if let Some(sum) = &archive.sha256 {
        contents.field("sha256", sum.as_bytes());
    } else if let Some(path) = archive::local(project, archive)? {
        contents.field("content", &sum(&path)?);
    } else {
        contents.field("url", archive.url.as_bytes());
    }
    Ok(())
}

/// The SHA-256 sum of a file.
pub(super) fn sum(path: &Path) -> Result<[u8; 32]> {
    let mut file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::usage("reading a file that a step depends on")
        .at(path)
        .because(error.to_string())
}
