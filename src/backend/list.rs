//! The overlays there are: who carries them, since when, and how much they were asked for.
//!
//! Mount tables say what is mounted and whose it is, servers what they serve. A mount table is looked
//! into for each mount namespace that has a process of ours, so the views of `overfall run` are found,
//! too. A process is believed to be a server only if it is of the user whose mount it tells about.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid};
use serde::Serialize;

use super::fuse::{self, Heard, Identity, Process};
use super::users::{self, Users};
use super::{Carrier, tables};
use crate::options::{Options, unescape};
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
    listed.retain(|entry| is_visible_to_us(entry.user, entry.place));
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
    // A server that we can't see may be in another pid namespace: the mount tells. A stranger's isn't
    // asked: it may hang.
    let unsure = server.is_none_or(|(_, heard)| !heard.told.is_surely_at(&mount.point));
    let visible = holder.is_none() && is_visible_to_us(user, here);
    let dead = unsure && visible && is_dead(mount, user);
    let entry = match server {
        Some(server) if !dead => hidden(server),
        _ => unknown(Carrier::Fuse),
    };
    Listed {
        target: mount.point.clone(),
        place: if dead { Place::Dead } else { here },
        user,
        ..entry
    }
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
    let layers = Layers::of(&mount.super_options);
    let shown = |path: &Path| path.display().to_string();
    Listed {
        target: mount.point.clone(),
        place,
        lower: layers.lower.iter().map(|path| shown(path)).collect(),
        upper: layers.upper.as_deref().map(shown),
        work: layers.work.as_deref().map(shown),
        ..unknown(Carrier::Native)
    }
}

/// The layers of the kernel's overlay.
#[derive(Debug, Default)]
struct Layers {
    lower: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
}

impl Layers {
    fn of(options: &[Vec<u8>]) -> Self {
        let mut layers = Self::default();
        for option in options {
            let Some(equals) = option.iter().position(|&byte| byte == b'=') else {
                continue;
            };
            let value = &option[equals + 1..];
            let plain = || unescape(value).map(OsString::from_vec).map(PathBuf::from);
            match &option[..equals] {
                // As they are; the others may have escapes.
                b"lowerdir+" | b"datadir+" => layers.lower.push(OsStr::from_bytes(value).into()),
                b"lowerdir" => {
                    let option = one_option(option);
                    let told = Options::parse(OsStr::from_bytes(&option)).unwrap_or_default();
                    layers.lower.extend(told.lower);
                    layers.lower.extend(told.data_only);
                }
                b"upperdir" => layers.upper = plain(),
                b"workdir" => layers.work = plain(),
                _ => {}
            }
        }
        layers
    }
}

/// The option with an escape before each comma: the kernel doesn't always show one.
fn one_option(option: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(option.len());
    let mut bytes = option.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                out.push(byte);
                out.extend(bytes.next());
            }
            b',' => out.extend(*b"\\,"),
            _ => out.push(byte),
        }
    }
    out
}

/// Whether nobody answers any more. Who takes too long is alive.
fn is_dead(mount: &Mount, user: Option<u32>) -> bool {
    if fuse::device(&mount.point) != Some(mount.device) {
        return false;
    }
    let asked = |asker| Identity::asked_of(&mount.point, asker);
    let answer = match (asked(None), user, users::number(mount, b"group_id=")) {
        (Err(Errno::ACCESS), Some(user), Some(group)) => {
            asked(Some((Uid::from_raw(user), Gid::from_raw(group))))
        }
        (answer, _, _) => answer,
    };
    answer == Err(Errno::NOTCONN)
}

/// Others' are none of our business, unless we are root. The kernel's overlay in our namespace is
/// somebody's who may mount there.
fn is_visible_to_us(user: Option<u32>, place: Place) -> bool {
    let own = rustix::process::geteuid();
    match (user, place) {
        _ if own.is_root() => true,
        (Some(user), _) => user == own.as_raw(),
        (None, Place::Here) => Privilege::current() != Privilege::None,
        (None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_any_names() {
        let options = [
            &b"rw"[..],
            b"lowerdir+=/a,b",
            br"lowerdir+=/c\:d",
            b"datadir+=/e:f",
            b"upperdir=/up,per",
            br"workdir=/wo\,rk",
            b"index=on",
        ];
        let layers = Layers::of(&options.map(<[u8]>::to_vec));
        let lower = ["/a,b", r"/c\:d", "/e:f"].map(PathBuf::from);
        assert_eq!(layers.lower, lower);
        assert_eq!(layers.upper.as_deref(), Some(Path::new("/up,per")));
        assert_eq!(layers.work.as_deref(), Some(Path::new("/wo,rk")));
        let old = Layers::of(&[br"lowerdir=/a,b:/c\:d:/e\,f".to_vec()]);
        assert_eq!(old.lower, ["/a,b", "/c:d", "/e,f"].map(PathBuf::from));
    }
}
