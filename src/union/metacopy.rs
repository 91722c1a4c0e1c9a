//! Metadata copies: files whose attributes are in one layer and whose data is in one below.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Stat, XattrFlags};

use super::copy_up::Data;
use super::descriptors::OpenFile;
use super::layer::{RealDir, RealId};
use super::node::Node;
use super::ops::open_for_writing;
use super::spot::Spot;
use super::types::{Attr, Fault, FileKind};
use super::work::Work;
use super::{Outcome, Union};
use crate::format::metacopy;
use crate::sys::Errno;
use crate::sys::times::times_of;

const CAPABILITY: &str = "security.capability";

/// Where the data of a metadata copy is.
#[derive(Debug)]
pub(crate) struct DataPlace {
    /// Looked for here, in the layers that only hold data, when it is first needed.
    path: Vec<OsString>,
    place: OnceLock<Place>,
}

#[derive(Debug)]
struct Place {
    dir: Arc<RealDir>,
    name: Box<OsStr>,
    id: RealId,
}

impl Place {
    fn spot(&self) -> Spot {
        Spot::At {
            dir: self.dir.clone(),
            name: self.name.clone(),
        }
    }
}

impl DataPlace {
    /// Data that was found.
    pub(super) fn found(dir: &Arc<RealDir>, name: &OsStr, id: RealId) -> Arc<Self> {
        let place = Place {
            dir: dir.clone(),
            name: name.into(),
            id,
        };
        Arc::new(Self {
            path: Vec::new(),
            place: OnceLock::from(place),
        })
    }

    /// Data in one of the layers that hold nothing else.
    pub(super) fn in_data_layers(path: Vec<OsString>) -> Arc<Self> {
        Arc::new(Self {
            path,
            place: OnceLock::new(),
        })
    }
}

impl Union {
    /// Whether a file has only its attributes here.
    ///
    /// Where such files aren't followed, only one with less on the disk than its size, or one in a
    /// directory that says it holds copied-up files, is asked.
    pub(super) fn is_metacopy(&self, real: &RealDir, name: &OsStr, stat: &Stat) -> Outcome<bool> {
        if FileKind::of_mode(stat.st_mode) != FileKind::Regular {
            return Ok(false);
        }
        let asks = self.follow.metacopy || !self.follow.data.is_empty();
        let hollow = stat.st_size == 0 || stat.st_blocks * 512 < stat.st_size;
        if !asks && !hollow && !real.is_impure(self.namespace.impure())? {
            return Ok(false);
        }
        match real.sure_xattr(name, self.namespace.metacopy())? {
            None => Ok(false),
            Some(value) => match metacopy::check(&value) {
                Ok(()) => Ok(true),
                Err(_) => Err(real.fault("reading a metadata copy", name, Errno::IO)),
            },
        }
    }

    /// Where the node's data is, if it isn't where its attributes are.
    pub(super) fn data_place(&self, node: &Node) -> Option<Arc<DataPlace>> {
        node.state.read().data.clone()
    }

    fn locate<'p>(&self, data: &'p DataPlace) -> Outcome<&'p Place> {
        if let Some(place) = data.place.get() {
            return Ok(place);
        }
        let place = self.search_data_layers(&data.path)?;
        Ok(data.place.get_or_init(|| place))
    }

    /// Fails where the data can't be found.
    pub(super) fn need_data(&self, data: &DataPlace) -> Outcome<()> {
        self.locate(data).map(drop)
    }

    fn search_data_layers(&self, path: &[OsString]) -> Outcome<Place> {
        let missing = || Fault::merged("finding a file's data", Errno::NOENT);
        let (name, above) = path.split_last().ok_or_else(missing)?;
        'layers: for root in &self.follow.data {
            let mut dir = root.clone();
            for step in above {
                match dir.stat(step)? {
                    Some(stat) if super::lookup::is_dir(&stat) => {
                        dir = dir.child(step, self.ground.real_id(&stat));
                    }
                    _ => continue 'layers,
                }
            }
            match dir.stat(name)? {
                Some(stat) if FileKind::of_mode(stat.st_mode) == FileKind::Regular => {
                    let id = self.ground.real_id(&stat);
                    let name = name.clone().into_boxed_os_str();
                    return Ok(Place { dir, name, id });
                }
                _ => {}
            }
        }
        Err(path
            .last()
            .map_or_else(missing, |name| missing().named(name)))
    }

    /// How to reach the data, and what it is.
    pub(super) fn data_spot(&self, data: &DataPlace) -> Outcome<(Spot, RealId)> {
        let place = self.locate(data)?;
        Ok((place.spot(), place.id))
    }

    /// Shows the blocks of the data in place of the hole's.
    pub(super) fn show_data_blocks(&self, node: &Node, attr: &mut Attr) {
        let Some(data) = self.data_place(node) else {
            return;
        };
        let found = data.place.get().map(|place| place.dir.stat(&place.name));
        attr.blocks = match found {
            Some(Ok(Some(stat))) => stat.st_blocks as u64,
            _ => attr.size.next_multiple_of(u64::from(attr.blksize.max(1))) / 512,
        };
    }

    /// How many names the data has in its layer.
    pub(super) fn data_links(&self, data: &DataPlace) -> Outcome<u64> {
        let stat = self.data_spot(data)?.0.stat()?;
        Ok(stat.map_or(1, |stat| stat.st_nlink))
    }

    /// Gives an upper file the data that it lacks. Killed at any moment, it still lacks it.
    ///
    /// All of it, even if the file is about to be cut: one cut first would show its old data where
    /// the kernel's overlay, which reads a metadata copy's data to its own end, mounts it next.
    pub(super) fn complete_data(&self, work: &Work, node: &Arc<Node>) -> Outcome<()> {
        let _only_one = node.copy_up.lock();
        let Some(place) = self.data_place(node) else {
            return Ok(());
        };
        let (from, _) = self.data_spot(&place)?;
        let (named, file, stat) = self.at_object(node, |spot, stat| {
            let file = match spot {
                Spot::Open(file) => file.clone(),
                Spot::At { .. } => {
                    let (opened, access) = open_for_writing(spot);
                    let fault = |errno| spot.fault("completing a file: opening", errno);
                    OpenFile::new(opened.map_err(fault)?, access)
                }
            };
            Ok((spot.clone(), file, *stat))
        })?;
        // Its name may be another's by the time that the data is there.
        let spot = Spot::Open(file.clone());
        let fault = |op| {
            let named = &named;
            move |errno| named.fault(op, errno)
        };
        // Writing takes it off.
        let capability = spot.get_xattr(OsStr::new(CAPABILITY)).ok();
        self.copy_file_data(&from, file.as_fd(), stat.st_size as u64, Data::All)?;
        if let Some(value) = capability {
            spot.set_xattr(OsStr::new(CAPABILITY), &value, XattrFlags::empty())
                .map_err(fault("completing a file: giving its capability back"))?;
        }
        spot.set_times(&times_of(&stat))
            .map_err(fault("completing a file: giving its times back"))?;
        if work.durability.syncs() {
            rustix::fs::fsync(file.as_fd())
                .map_err(fault("completing a file: writing to the disk"))?;
        }
        match spot.remove_xattr(self.namespace.metacopy()) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(named.fault("completing a file: unmarking it", errno)),
        }
        let old = node.state.write().data.take();
        drop(old);
        // Whoever reads next opens the file itself.
        self.ground.descriptors.remove(node.slot);
        Ok(())
    }
}
