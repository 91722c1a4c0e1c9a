//! Archives: where they are, and what is in them.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::getpid;
use sha2::{Digest as _, Sha256};

use super::action::Archive;
use super::commit::is_gone;
use super::files::sum;
use super::plan::of_project;
use crate::sys::{from_nix, process};
use crate::vagga::project::Project;
use crate::{Error, Result};

/// Where an archive of the project is; `None` for one of the network.
pub(super) fn local(project: &Project, archive: &Archive) -> Result<Option<PathBuf>> {
    let url = archive.url.as_str();
    if url.starts_with("http://") || url.starts_with("https://") || url.starts_with("ftp://") {
        return Ok(None);
    }
    let inside = Path::new("/work").join(url);
    let clean = inside.components().all(|part| part != Component::ParentDir);
    match of_project(project, &inside).filter(|_| clean) {
        Some(path) => Ok(Some(path.components().collect())),
        None => Err(archive.pos.error(format!(
            "`{url}` is neither an address nor a file of the project"
        ))),
    }
}

/// Finds an archive, fetches it where it has to be, and checks its sum.
pub(super) fn fetch(project: &Project, archive: &Archive) -> Result<PathBuf> {
    let path = match local(project, archive)? {
        Some(path) => path,
        None => download(project, archive)?,
    };
    if let Some(wanted) = &archive.sha256 {
        let found = hex(&sum(&path)?);
        if found != *wanted {
            return Err(Error::usage("checking an archive")
                .at(&path)
                .because(format!("its SHA-256 sum is {found}"))
                .remedy(format!("{} says {wanted}", archive.pos)));
        }
    }
    Ok(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Into the place and under the name that vagga looks for it.
fn download(project: &Project, archive: &Archive) -> Result<PathBuf> {
    let step = "fetching an archive";
    let url = &archive.url;
    let sum = archive
        .sha256
        .clone()
        .unwrap_or_else(|| hex(&Sha256::digest(url.as_bytes())));
    let name = url.rsplit('/').find(|part| !part.is_empty());
    let name = format!("{}-{}", &sum[..8], name.unwrap_or("file.bin"));
    let dir = project.cache()?.join("downloads");
    let path = dir.join(&name);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&dir)
        .map_err(|error| Error::system(step).at(&dir).because(error.to_string()))?;
    sweep(&dir);
    let part = dir.join(format!("{name}.{}{PART}", std::process::id()));
    let programs: [(&str, &[&str]); 2] = [("curl", &["-fsSL", "-o"]), ("wget", &["-q", "-O"])];
    let mut refusals = Vec::new();
    for (program, options) in programs {
        let mut command = Command::new(program);
        command
            .args(options)
            .arg(&part)
            .arg(url)
            .stdin(Stdio::null());
        match run(command)? {
            WaitStatus::Exited(_, 0) => {
                return fs::rename(&part, &path)
                    .map(|()| path)
                    .map_err(|error| Error::system(step).at(&part).because(error.to_string()));
            }
            WaitStatus::Exited(_, NOT_STARTED) => {
                refusals.push(format!("{program} can't be started"));
            }
            WaitStatus::Exited(_, code) => refusals.push(format!("{program}: exit code {code}")),
            status => refusals.push(format!("{program}: {status:?}")),
        }
        let _ = fs::remove_file(&part);
    }
    Err(Error::system(step)
        .at(url)
        .because(refusals.join(", "))
        .remedy("curl(1) or wget(1) has to reach it"))
}

/// What the name of a download ends with that isn't complete.
const PART: &str = ".part";

/// Removes what downloads have left that were killed.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_suffix(PART)?.rsplit_once('.'));
        if process.is_some_and(|(_, process)| is_gone(process)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// As env(1) and shells have it.
const NOT_STARTED: i32 = 127;

/// Runs a program, which ends with this process.
fn run(mut command: Command) -> Result<WaitStatus> {
    let step = "fetching an archive";
    let parent = getpid();
    let child = process::fork(|| {
        if process::end_with(parent).is_ok() {
            // Comes back only when it fails.
            let _ = command.exec();
        }
        127
    })
    .map_err(|errno| Error::system(step).errno(errno))?;
    loop {
        match waitpid(child, None) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::system(step).errno(from_nix(errno))),
            Ok(status) => return Ok(status),
        }
    }
}

/// Unpacks `archive` into `dest`, an absolute path in this process's root: what is below `subdir`
/// of it, without `subdir`. Owners in it are ignored, as vagga does.
pub(super) fn unpack(archive: &mut File, dest: &Path, subdir: &Path) -> io::Result<()> {
    let mut magic = [0; 6];
    let mut read = 0;
    while read < magic.len() {
        match archive.read(&mut magic[read..])? {
            0 => break,
            n => read += n,
        }
    }
    archive.seek(SeekFrom::Start(0))?;
    let file = BufReader::with_capacity(128 * 1024, archive);
    match magic {
        [0x1f, 0x8b, ..] => extract(flate2::bufread::MultiGzDecoder::new(file), dest, subdir),
        [b'B', b'Z', b'h', ..] => extract(bzip2::bufread::MultiBzDecoder::new(file), dest, subdir),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            extract(lzma_rust2::XzReader::new(file, true), dest, subdir)
        }
        _ => extract(file, dest, subdir),
    }
}

fn extract(stream: impl Read, dest: &Path, subdir: &Path) -> io::Result<()> {
    fs::create_dir_all(dest)?;
    let mut archive = tar::Archive::new(stream);
    let mut links = Vec::new();
    // Directories get their permissions last: they may forbid to write into them.
    let mut modes = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(path) = placed(&entry.path()?, dest, subdir) else {
            continue;
        };
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            fs::create_dir_all(&path)?;
            modes.push((path, entry.header().mode()? & 0o7777));
            continue;
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if kind.is_hard_link() {
            let target = entry
                .link_name()?
                .and_then(|name| placed(&name, dest, subdir));
            let target = target.ok_or_else(|| bad("a link to something outside", &path))?;
            links.push((target, path));
        } else if kind.is_symlink() {
            let target = entry
                .link_name()?
                .ok_or_else(|| bad("a link to nothing", &path))?;
            clear(&path)?;
            symlink(target, &path)?;
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let mode = entry.header().mode()? & 0o7777;
            clear(&path)?;
            let mut file = File::create(&path)?;
            io::copy(&mut entry, &mut file)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        // Devices and pipes aren't for containers without root.
    }
    for (target, path) in links {
        clear(&path)?;
        fs::hard_link(target, path)?;
    }
    for (path, mode) in modes.into_iter().rev() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// A file of before makes room; an archive that is unpacked over a tree replaces its links, too.
fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn bad(why: &str, path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: {why}", path.display()),
    )
}

/// Where a name of the archive goes; `None` for what isn't wanted. `..` leads nowhere.
fn placed(name: &Path, dest: &Path, subdir: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => return None,
            _ => {}
        }
    }
    let below = clean.strip_prefix(subdir).ok()?;
    Some(dest.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, text: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o640);
            tar.append_data(&mut header, name, text).unwrap();
        };
        add("top/a", b"A");
        add("top/d/b", b"B");
        add("other/c", b"C");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        tar.append_link(&mut header, "top/hard", "top/a").unwrap();
        tar.into_inner().unwrap()
    }

    fn unpacked(bytes: &[u8], subdir: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("archive");
        fs::write(&file, bytes).unwrap();
        let dest = dir.path().join("dest");
        unpack(&mut File::open(file).unwrap(), &dest, Path::new(subdir)).unwrap();
        dir
    }

    #[test]
    fn every_compression() {
        use std::io::Write;
        let plain = archive();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bz.write_all(&plain).unwrap();
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        xz.write_all(&plain).unwrap();
        for bytes in [
            plain,
            gz.finish().unwrap(),
            bz.finish().unwrap(),
            xz.finish().unwrap(),
        ] {
            let dir = unpacked(&bytes, "");
            for name in ["top/a", "top/hard"] {
                let text = fs::read(dir.path().join("dest").join(name)).unwrap();
                assert_eq!(text, b"A", "{name}");
            }
        }
    }

    #[test]
    fn a_part_of_it() {
        let dir = unpacked(&archive(), "top");
        let dest = dir.path().join("dest");
        assert_eq!(fs::read(dest.join("d/b")).unwrap(), b"B");
        assert!(!dest.join("c").exists() && !dest.join("other").exists());
        let mode = fs::metadata(dest.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn names_don_t_climb() {
        let dest = Path::new("/d");
        assert_eq!(placed(Path::new("../x"), dest, Path::new("")), None);
        let name = Path::new("/./a/./b");
        assert_eq!(placed(name, dest, Path::new("")), Some("/d/a/b".into()));
    }
}
