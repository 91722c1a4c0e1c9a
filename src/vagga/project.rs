//! A project: where its `vagga.yaml` is, and where vagga keeps what it built.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::config::{Config, LOCAL_MIXINS};
use super::idmaps::{self, Maps};
use super::marker::{self, Marker};
use super::settings::Settings;
use crate::error::Context;
use crate::steps::Digest;
use crate::{Error, Result};

/// A project of vagga's.
#[derive(Debug)]
pub struct Project {
    dir: PathBuf,
    config: Config,
    settings: Settings,
    read_at: SystemTime,
}

impl Project {
    /// The project that `start` is in: the first directory from there upwards that has a
    /// `vagga.yaml`, in it or in its `.vagga`, or a local one.
    pub fn find(start: &Path) -> Result<Self> {
        let step = "looking for the project";
        let read_at = SystemTime::now();
        let start = fs::canonicalize(start)
            .map_err(|error| Error::usage(step).at(start).because(error.to_string()))?;
        for dir in start.ancestors() {
            let main = [".vagga/vagga.yaml", "vagga.yaml"]
                .map(|name| dir.join(name))
                .into_iter()
                .find(|file| file.exists());
            let local = LOCAL_MIXINS.iter().any(|name| dir.join(name).exists());
            if main.is_some() || local {
                return Ok(Self {
                    dir: dir.to_path_buf(),
                    config: Config::read(dir, main.as_deref())?,
                    settings: Settings::of_user(dir)?,
                    read_at,
                });
            }
        }
        Err(Error::usage(step)
            .at(start)
            .because("there is no vagga.yaml here or above")
            .remedy("change into a project of vagga's"))
    }

    /// Its directory, `/work` in its containers.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its containers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `.vagga`.
    pub(super) fn vagga_dir(&self) -> PathBuf {
        self.dir.join(".vagga")
    }

    /// Where containers are: `.vagga`, or where vagga's setting `storage-dir` has put it.
    pub(super) fn storage(&self) -> PathBuf {
        let elsewhere = self.vagga_dir().join(".lnk");
        if elsewhere.is_dir() {
            elsewhere
        } else {
            self.vagga_dir()
        }
    }

    /// When its files were read. What was changed later isn't known.
    pub(super) fn read_at(&self) -> SystemTime {
        self.read_at
    }

    /// Vagga's settings for it.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// `.vagga/.cache`, or where vagga's settings `storage-dir` and `cache-dir` have put it.
    pub(super) fn cache(&self) -> Result<PathBuf> {
        self.settings.cache_in(&self.storage())
    }

    /// Makes the place of containers that the setting `storage-dir` asks for, and the link to it,
    /// as vagga does before its first build.
    pub(super) fn make_storage(&self) -> Result<()> {
        const MOST: usize = 100;
        let link = self.vagga_dir().join(".lnk");
        let Some(all) = &self.settings.storage_dir else {
            return Ok(());
        };
        if fs::symlink_metadata(&link).is_ok() {
            return Ok(());
        }
        let step = "making the place of containers";
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error: io::Error| Error::usage(step).at(path).because(error.to_string())
        };
        if self.settings.storage_from_variable {
            return Err(Error::usage(step)
                .at(&link)
                .because("`storage-subdir-from-env-var` is followed only where this link is")
                .remedy("let vagga build a container first"));
        }
        let name = self.dir.file_name().unwrap_or_default();
        let numbered = (1..=MOST).map(|number| {
            let mut name = name.to_os_string();
            name.push(format!("-{number}"));
            name
        });
        let vagga = self.vagga_dir();
        fs::create_dir_all(&vagga).map_err(failed(&vagga))?;
        for name in std::iter::once(name.to_os_string()).chain(numbered) {
            let place = all.join(name);
            match fs::create_dir(&place) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(failed(&place))?,
            }
            symlink(&self.dir, place.join(".lnk")).map_err(failed(&place))?;
            return symlink(&place, &link).map_err(failed(&link));
        }
        Err(Error::usage(step)
            .at(all)
            .because("too many projects of this name are in it"))
    }

    /// `.vagga/.transient`.
    pub(super) fn transient(&self) -> PathBuf {
        self.storage().join(".transient")
    }

    /// `.vagga/.roots/NAME.VERSION`.
    pub(super) fn root(&self, name: &str) -> Result<Root> {
        Root::open(&self.storage().join(".roots").join(name).join("root"))
    }

    /// What is built as `.vagga/NAME`.
    pub fn built(&self, name: &str) -> Result<Root> {
        // Names of the configuration can't lead elsewhere.
        self.config.container(name)?;
        let link = self.vagga_dir().join(name);
        let root = fs::canonicalize(&link).map_err(|_| {
            Error::usage("looking for the container")
                .at(&link)
                .because("it isn't built")
                .remedy(format!("vagga _build {name}"))
        })?;
        Root::open(&root)
    }
}

/// A built container: a directory of `.vagga/.roots`.
#[derive(Debug)]
pub struct Root {
    /// With `root`, `uid_map` and so on in it.
    dir: PathBuf,
    maps: Maps,
    /// Of a container that we have built.
    marker: Option<Marker>,
    /// Shared as long as somebody works with it, so that it isn't removed meanwhile.
    _lock: OwnedFd,
}

impl Root {
    /// `root` is the directory of that name in it.
    fn open(root: &Path) -> Result<Self> {
        let step = "looking at the built container";
        let dir = match root.parent() {
            Some(dir) if root.is_dir() => dir.to_path_buf(),
            _ => return Err(Error::usage(step).at(root).because("not a directory")),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = open(&dir, flags, Mode::empty()).context(step, &dir)?;
        flock(&lock, FlockOperation::NonBlockingLockShared).map_err(|errno| {
            Error::usage(step)
                .at(&dir)
                .errno(errno)
                .because("it is being removed")
        })?;
        Ok(Self {
            maps: idmaps::read(&dir)?,
            marker: marker::read(&dir)?,
            dir,
            _lock: lock,
        })
    }

    /// Whether we have built it.
    pub(super) fn is_ours(&self) -> bool {
        self.marker.is_some()
    }

    /// The topmost of the layers that are all there is of it; `None` where there is a plain tree.
    pub(super) fn layers(&self) -> Option<Digest> {
        let marker = self.marker.as_ref().filter(|marker| marker.layered)?;
        Digest::parse(&marker.digest)
    }

    /// The container below its layers.
    pub(super) fn base(&self) -> Option<&str> {
        self.marker.as_ref()?.base.as_deref()
    }

    /// Whether what lies below its layers is what they were made on: a build by force replaces it.
    pub(super) fn lies_on_its_base(&self, project: &Project) -> bool {
        let marker = self.marker.as_ref();
        let made = marker.and_then(|marker| marker.base_made.as_ref());
        let (Some(base), Some(made)) = (self.base(), made) else {
            return true;
        };
        let now = project.root(base).and_then(|base| base.made());
        now.is_ok_and(|now| now == *made)
    }

    /// See [`Marker::forced`].
    pub(super) fn forced(&self) -> Option<&str> {
        self.marker.as_ref()?.forced.as_deref()
    }

    /// A text that another build of it has not.
    pub(super) fn identity(&self) -> Result<String> {
        let tree = self.tree();
        let meta = fs::metadata(&tree).map_err(|error| {
            Error::system("looking at the built container")
                .at(&tree)
                .because(error.to_string())
        })?;
        Ok(format!("{} {}", self.name().display(), meta.ino()))
    }

    /// When it was built, as a text to compare: it stays with a container that is moved elsewhere
    /// as a whole, and another build of the same version has another one.
    pub(super) fn made(&self) -> Result<String> {
        let file = self.dir.join("uid_map");
        let meta = fs::metadata(&file).map_err(|error| {
            Error::system("looking at the built container")
                .at(&file)
                .because(error.to_string())
        })?;
        Ok(format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()))
    }

    /// The directory with the container's files; of one that is made of layers an empty one.
    pub fn tree(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// `.vagga/.roots/NAME.VERSION`.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The ids that it was built with.
    pub(super) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// `NAME.VERSION`.
    pub(super) fn name(&self) -> &std::ffi::OsStr {
        self.dir.file_name().unwrap_or_default()
    }

    /// When it was used last, where that is known.
    pub(super) fn last_use(&self) -> Option<SystemTime> {
        let used = fs::metadata(self.dir.join("last_use"));
        used.and_then(|used| used.modified()).ok()
    }

    /// Says that it was used now; `vagga _clean --unused` looks at that.
    pub(super) fn touch(&self) {
        let file = self.dir.join("last_use");
        if let Err(error) = fs::File::create(&file) {
            log::debug!("{}: {error}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_found_from_below() {
        let top = tempfile::tempdir().unwrap();
        let below = top.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        assert!(Project::find(&below).is_err());
        fs::create_dir(top.path().join(".vagga")).unwrap();
        fs::write(top.path().join(".vagga/vagga.yaml"), "containers: {x: {}}").unwrap();
        fs::write(top.path().join("vagga.yaml"), "containers: {y: {}}").unwrap();
        let project = Project::find(&below).unwrap();
        assert_eq!(project.dir(), fs::canonicalize(top.path()).unwrap());
        assert!(project.config().container("x").is_ok());
        let error = project.built("x").unwrap_err().to_string();
        assert!(error.ends_with("it isn't built; vagga _build x"), "{error}");
    }
}
