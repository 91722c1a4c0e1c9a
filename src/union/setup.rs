//! Opening a merged tree: every layer's descriptor is taken here, once.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{CWD, Mode, OFlags, XattrFlags};
use rustix::process::Resource;

use super::aliases::Aliases;
use super::crowd::Crowd;
use super::decide;
use super::descriptors::Descriptors;
use super::index_open::Belongings;
use super::layer::{Ground, LayerIndex, RealDir, Target};
use super::lend::Lender;
use super::listing::Listings;
use super::locks::{OrderedMutex, Rank};
use super::node::{DirPart, Node, Real, State};
use super::number::Numbers;
use super::origins::{FsUuids, Origins};
use super::owners::{OwnerPolicy, Owners};
use super::redirect::Follow;
use super::table::{Key, Table};
use super::types::{Fault, FileKind, NodeId};
use super::watch::Watcher;
use super::work::{self, Durability, Work};
use super::{Outcome, Union};
use crate::error::Context;
use crate::format::{Form, INDEX, MAX_LOWERS, MAY_HOLD_XATTR_WHITEOUTS, XattrNamespace};
use crate::options::{Fsync, Options, Switch, Timeout, Uuid};
use crate::sys::privilege::{Privilege, in_first_namespace};
use crate::sys::{Errno, layer, random, tree, xattr};
use crate::{Error, Result};

/// What a merged tree is made of.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Layers and format options; paths are resolved once, when the tree is opened.
    pub options: Options,
    /// The owners' policy.
    pub owners: Owners,
    /// Where the tree is going to be mounted. A layer that contains this directory shows what
    /// lies beneath the mount.
    pub target: Option<PathBuf>,
}

const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl Union {
    /// Takes every layer's descriptor, locks and sweeps the work directory. After this no path
    /// is resolved again. Errors are the ones a user can mend.
    pub fn open(setup: &Setup) -> Result<Self> {
        let options = &setup.options;
        if options.lower.is_empty() || options.lower.len() > MAX_LOWERS {
            return Err(Error::usage("opening the layers").because(format!(
                "{} lower layers given; 1 to 500 are possible",
                options.lower.len()
            )));
        }
        let lowers = options
            .lower
            .iter()
            .chain(&options.data_only)
            .map(|path| open_lower(path))
            .collect::<Result<Vec<_>>>()?;
        let upper = match (&options.upper, &options.work) {
            (Some(upper), Some(work)) => Some((open_dir(upper)?, open_dir(work)?, work)),
            _ => None,
        };
        let first = upper.as_ref().map_or(&lowers[0], |(upper, ..)| upper);
        let device = rustix::fs::fstat(first)
            .context("stat of a layer", &options.lower[0])?
            .st_dev;
        let numbers = Numbers::new(device);
        let target = match &setup.target {
            Some(path) => Some(take_target(path, &numbers)?),
            None => None,
        };
        let descriptors = Descriptors::new(descriptor_budget());
        let ground = Arc::new(Ground {
            descriptors,
            numbers,
            target,
            lender: Lender::default(),
        });

        let namespace = if options.userxattr || Privilege::current().needs_userxattr() {
            XattrNamespace::User
        } else {
            XattrNamespace::Trusted
        };
        refuse_without_root(options, namespace)?;
        let mut lower_dirs = Vec::new();
        let mut xattr_whiteouts = Vec::new();
        let layers = options.lower.iter().chain(&options.data_only);
        for (index, (fd, path)) in lowers.into_iter().zip(layers).enumerate() {
            let marked = xattr::fget(fd.as_fd(), namespace.opaque()).ok();
            let may = marked.as_deref() == Some(MAY_HOLD_XATTR_WHITEOUTS);
            xattr_whiteouts.push(AtomicBool::new(may));
            let layer = LayerIndex::Lower(index as u16);
            let form = decide::form_of_lower(&fd, path, options.shown.form_of_lowers())?;
            let dir =
                RealDir::root(&ground, layer, form, fd).context("stat of a lower layer", path)?;
            lower_dirs.push(dir);
        }
        let data_dirs = lower_dirs.split_off(options.lower.len());
        let (upper_dir, work, form) = match upper {
            None => (None, None, Form::Kernel),
            Some((upper, base, work_path)) => {
                let upper_path = options.upper.as_deref().unwrap_or(work_path);
                work::lock(&upper, upper_path)?;
                if options.index != Some(Switch::On) {
                    refuse_indexed((&upper, upper_path), (&base, work_path), namespace)?;
                }
                let durability = match options.fsync {
                    Fsync::Auto => Durability::Synced,
                    Fsync::Strict => Durability::Strict,
                    Fsync::Volatile => Durability::Volatile,
                };
                let work = Work::open(&ground, work_path, base, durability)?;
                let form = decide::form_of_upper(
                    (&upper, upper_path),
                    (&work, work_path),
                    namespace,
                    options,
                )?;
                if options.uuid == Some(Uuid::On) {
                    give_uuid(&upper, namespace)
                        .context("giving the upper layer an identity", upper_path)?;
                }
                let dir = RealDir::root(&ground, LayerIndex::Upper, form, upper);
                (
                    Some(dir.context("stat of the upper layer", upper_path)?),
                    Some(work),
                    form,
                )
            }
        };
        let table = Table::new();
        let root_dir = upper_dir.as_ref().unwrap_or(&lower_dirs[0]).clone();
        let state = State {
            ino: ground.numbers.ino(root_dir.id.fs, root_dir.id.ino),
            link: None,
            named: true,
            real: Real::Dir,
            data: None,
        };
        let key = Key::Real(root_dir.layer, root_dir.id);
        let slot = ground.descriptors.slot();
        let uuids = match options.uuid {
            Some(Uuid::Off) => FsUuids::None,
            _ => FsUuids::Their,
        };
        let origins = Origins::new(namespace, &lower_dirs, uuids);
        let index = match (&upper_dir, &work, options.index) {
            (Some(upper), Some(work), Some(Switch::On)) => {
                let belongings = Belongings {
                    namespace,
                    origins: &origins,
                    uuids,
                    options,
                    work: work.base(),
                    upper,
                    lower: &lower_dirs[0],
                };
                Some(belongings.open(&ground)?)
            }
            _ => None,
        };
        let by_default = namespace == XattrNamespace::Trusted && kernel_follows_redirects();
        let follow = Follow::new(options, by_default, lower_dirs.clone(), data_dirs);
        let part = DirPart::new(upper_dir, lower_dirs);
        let root = Node::new(
            NodeId::ROOT,
            0,
            FileKind::Directory,
            slot,
            key,
            state,
            Some(part),
        );
        table.insert_root(root);
        Ok(Self {
            is_machines: in_first_namespace(),
            ground,
            table,
            listings: Listings::new(options.tuning.timeout.duration()),
            work,
            namespace,
            form,
            owners: OwnerPolicy::new(
                setup.owners,
                &options.shown,
                options.upper.is_some().then_some(device),
            ),
            xattr_whiteouts,
            origins,
            aliases: Aliases::new(),
            watcher: Watcher::default(),
            crowd: Crowd::default(),
            moves: OrderedMutex::new(Rank::Moves, ()),
            follow,
            index,
            lower_names: Arc::default(),
            layers_change: AtomicBool::new(options.tuning.timeout != Timeout::Never),
        })
    }

    /// Writes everything to the disk (unless volatile), empties the work directory.
    pub fn close(&self) -> Outcome<()> {
        let Some(work) = &self.work else {
            return Ok(());
        };
        work.sweep()
            .map_err(|errno| work.fault("emptying the work directory", errno))?;
        work.sync().map_err(|errno| Fault {
            errno,
            op: "writing to the disk",
            place: super::types::Place::Upper,
            name: None,
        })
    }
}

/// A lower layer as the kernel's overlay sees it, without the mounts in it and read-only, where we
/// may take one (a private copy of the mount); as it is otherwise.
fn open_lower(path: &Path) -> Result<OwnedFd> {
    let plain = open_dir(path)?;
    Ok(layer::open_privately(&plain).unwrap_or(plain))
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, DIR_FLAGS, Mode::empty()).map_err(|errno| {
        let error = Error::usage("opening a layer").at(path).errno(errno);
        match errno {
            Errno::NOENT => error.because("there is no such directory"),
            Errno::NOTDIR => error.because("it is not a directory"),
            Errno::ACCESS => error.because("you may not read it"),
            _ => error,
        }
    })
}

/// Takes the target as it is before the mount.
fn take_target(path: &Path, numbers: &Numbers) -> Result<Target> {
    const STEP: &str = "opening the target";
    let absolute = std::fs::canonicalize(path).map_err(|error| {
        Error::usage(STEP)
            .at(path)
            .errno(crate::sys::from_io(&error))
    })?;
    let beneath = open_dir(&absolute)?;
    let (parent, name) = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => (parent, name.to_os_string()),
        // The root has no name that a layer could contain.
        _ => (Path::new("/"), "/".into()),
    };
    let stat = rustix::fs::stat(parent).context(STEP, parent)?;
    let parent = super::layer::RealId {
        fs: numbers.fs(stat.st_dev),
        ino: stat.st_ino,
    };
    Ok(Target {
        parent,
        name,
        beneath,
    })
}

/// Gives the upper an identity that stays, unless it has one. The kernel's overlay shows it in
/// `statfs`; what FUSE shows there isn't ours to say.
fn give_uuid(upper: &OwnedFd, namespace: XattrNamespace) -> std::result::Result<(), Errno> {
    let mut uuid = [0; 16];
    random::fill(&mut uuid)?;
    match rustix::fs::fsetxattr(upper, namespace.uuid(), &uuid, XattrFlags::CREATE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Attributes that lead elsewhere are obeyed only where nobody but the machine's root can have
/// written them.
fn refuse_without_root(options: &Options, namespace: XattrNamespace) -> Result<()> {
    if namespace == XattrNamespace::Trusted {
        return Ok(());
    }
    match options.needs_root() {
        None => Ok(()),
        Some(option) => Err(Error::usage("reading the options")
            .because(format!(
                "`{option}` needs `trusted.` attributes, which only the machine's root has"
            ))
            .remedy("leave the option out")),
    }
}

/// Whether the kernel's overlay follows redirects where the options don't say: what the machine
/// set, or else the kernel's own default.
fn kernel_follows_redirects() -> bool {
    let setting = std::fs::read("/sys/module/overlay/parameters/redirect_always_follow");
    setting.map_or(true, |value| value.first() != Some(&b'N'))
}

/// An upper whose root names its lower was written with `index=on`.
fn refuse_indexed(
    (upper, path): (&OwnedFd, &Path),
    (work, work_path): (&OwnedFd, &Path),
    namespace: XattrNamespace,
) -> Result<()> {
    const WHY: &str = "it was written with index=on, whose hard links need that option";
    const STEP: &str = "opening the upper layer";
    let names = tree::list(work.as_fd(), OsStr::new(INDEX)).context(STEP, work_path.join(INDEX))?;
    if names.is_some_and(|names| !names.is_empty()) {
        return Err(Error::usage(STEP).at(path).because(WHY));
    }
    match xattr::fget(upper.as_fd(), namespace.origin()) {
        Ok(value) if !value.is_empty() => Err(Error::usage(STEP).at(path).because(WHY)),
        _ => Ok(()),
    }
}

/// How many descriptors the layers may use: half of what the process may have.
fn descriptor_budget() -> usize {
    const MOST: u64 = 1 << 15;
    let limit = rustix::process::getrlimit(Resource::Nofile)
        .current
        .unwrap_or(MOST);
    (limit.min(MOST * 2) / 2) as usize
}
