//! The overlays there are: who carries them, since when, and how much they were asked for.
//!
//! Mount tables say what is mounted and whose it is, servers what they serve. A mount table is looked
//! into for each mount namespace that has a process of ours, so the views of `overfall run` are found,
//! too. A process is believed to be a server only if it is of the user whose mount it tells about.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::fuse::{self, Heard, Identity, Process};
use super::users::Users;
use super::{Carrier, tables};
use crate::options::Options;
use crate::probe::NATIVE_SOURCE;
use crate::sys::mountinfo::{self, Mount};
use crate::sys::privilege::Privilege;
use crate::sys::{Errno, from_io};
use crate::{Error, Result};

/// Where an overlay is, seen from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In our mount namespace.
    Here,
    /// In the mount namespace of this process.
    Elsewhere(u32),
    /// In none that we may look into: it was unmounted while it was in use, or hides.
    Hidden,
    /// In our mount namespace, and nobody serves it any more.
    Dead,
}

/// An overlay. What isn't known is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where it is mounted, as whoever mounted it would say.
    pub target: PathBuf,
    /// Who carries it.
    pub backend: Carrier,
    /// Where it is.
    pub place: Place,
    /// Whose it is, by the mount table. Nobody knows that of the kernel's overlays.
    pub user: Option<u32>,
    /// The server's process.
    pub pid: Option<u32>,
    /// For how long it has been served, in seconds.
    pub age: Option<u64>,
    /// How often which request came.
    pub requests: Option<BTreeMap<String, u64>>,
    /// Memory that the server has in use, in bytes.
    pub memory: Option<u64>,
    /// Lower layers, topmost first.
    pub lower: Vec<String>,
    /// The writable layer.
    pub upper: Option<String>,
    /// The work directory.
    pub work: Option<String>,
}

/// Every overlay of overfall's that this user has mounted, in the order of the mount table; for
/// root those of all users that are visible from here.
pub fn list() -> Result<Vec<Listed>> {
    let own_mounts = mountinfo::read()
        .map_err(|error| Error::system("reading the mount table").errno(from_io(&error)))?;
    let mut servers = fuse::servers();
    let users = Users::known();
    let mut listed = Vec::new();
    let mut seen = HashSet::new();
    let own = tables::own();
    let elsewhere = tables::all()
        .into_iter()
        .filter(|table| Some(table.namespace) != own)
        .map(|table| (Some(table.holder), table.mounts));
    let tables = [(None, own_mounts)].into_iter().chain(elsewhere);
    for (holder, mounts) in tables {
        for mount in mounts.iter().filter(|mount| is_ours(mount)) {
            // One file system may be mounted at several places: in our own namespace each of them
            // counts, of the others the first one.
            if seen.contains(&mount.device) && holder.is_some() {
                continue;
            }
            seen.insert(mount.device);
            let user = users.mounter(holder, mount);
            let server = servers
                .iter()
                .find(|(process, heard)| heard.is_about(mount.device, user, process));
            listed.push(entry(mount, holder, user, server));
        }
    }
    servers.retain(|(_, heard)| {
        heard
            .told
            .device
            .is_none_or(|device| !seen.contains(&device))
    });
    listed.extend(servers.iter().map(hidden));
    listed.retain(is_visible_to_us);
    Ok(listed)
}

fn is_ours(mount: &Mount) -> bool {
    match mount.fstype.as_bytes() {
        b"overlay" => mount.source == NATIVE_SOURCE,
        fstype => fstype == fuse::FILE_SYSTEM.as_bytes(),
    }
}

fn entry(
    mount: &Mount,
    holder: Option<u32>,
    user: Option<u32>,
    server: Option<&(Process, Heard)>,
) -> Listed {
    let here = holder.map_or(Place::Here, Place::Elsewhere);
    if mount.fstype == "overlay" {
        return native(mount, here);
    }
    let mut entry = match server {
        Some(server) => hidden(server),
        None => unknown(Carrier::Fuse),
    };
    entry.user = user;
    entry.place = here;
    entry.target = mount.point.clone();
    // A server that we can't see may be in another pid namespace: the mount tells. A stranger's isn't
    // asked: it may hang.
    if server.is_none() && holder.is_none() && is_visible_to_us(&entry) && is_dead(mount) {
        entry.place = Place::Dead;
    }
    entry
}

fn unknown(backend: Carrier) -> Listed {
    Listed {
        target: PathBuf::new(),
        backend,
        place: Place::Hidden,
        user: None,
        pid: None,
        age: None,
        requests: None,
        memory: None,
        lower: Vec::new(),
        upper: None,
        work: None,
    }
}

/// An overlay as its server tells.
fn hidden((process, heard): &(Process, Heard)) -> Listed {
    let told = &heard.told;
    Listed {
        target: told.target.clone().into(),
        user: Some(process.user),
        pid: Some(process.pid),
        age: process.age.map(|age| age.as_secs()),
        requests: Some(heard.requests.iter().cloned().collect()),
        memory: process.memory,
        lower: told.lower.clone(),
        upper: told.upper.clone(),
        work: told.work.clone(),
        ..unknown(Carrier::Fuse)
    }
}

/// The kernel's overlay: all that there is to know stands in the mount table.
fn native(mount: &Mount, place: Place) -> Listed {
    const LAYERS: [&str; 5] = ["lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"];
    let is_layer = |option: &&Vec<u8>| {
        let name = option.split(|&byte| byte == b'=').next();
        LAYERS.iter().any(|layer| name == Some(layer.as_bytes()))
    };
    let options: Vec<&[u8]> = mount
        .super_options
        .iter()
        .filter(is_layer)
        .map(Vec::as_slice)
        .collect();
    let options = Options::parse(OsStr::from_bytes(&options.join(&b','))).unwrap_or_default();
    let shown = |path: &Path| path.display().to_string();
    let lowers = options.lower.iter().chain(&options.data_only);
    Listed {
        target: mount.point.clone(),
        place,
        lower: lowers.map(|path| shown(path)).collect(),
        upper: options.upper.as_deref().map(shown),
        work: options.work.as_deref().map(shown),
        ..unknown(Carrier::Native)
    }
}

/// Whether nobody answers any more. Who takes too long is alive.
fn is_dead(mount: &Mount) -> bool {
    fuse::device(&mount.point) == Some(mount.device)
        && Identity::asked_of(&mount.point) == Err(Errno::NOTCONN)
}

/// Others' are none of our business, unless we are root. The kernel's overlay in our namespace is
/// somebody's who may mount there.
fn is_visible_to_us(entry: &Listed) -> bool {
    let own = rustix::process::geteuid();
    match (entry.user, entry.place) {
        _ if own.is_root() => true,
        (Some(user), _) => user == own.as_raw(),
        (None, Place::Here) => Privilege::current() != Privilege::None,
        (None, _) => true,
    }
}
