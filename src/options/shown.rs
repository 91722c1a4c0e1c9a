//! Options by which the FUSE server shows a tree that isn't quite what the layers hold: other
//! owners, links that aren't counted, no ACLs, no attributes. fuse-overlayfs has them under the same
//! names. The kernel's overlay has none of them.

use std::ffi::OsStr;

use super::Switch;
use crate::format::Form;

/// How the tree differs from the layers. By default it doesn't.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// `uidmapping=`: users on the disk and users as they are shown.
    pub uids: IdMap,
    /// `gidmapping=`: the same for groups.
    pub gids: IdMap,
    /// `squash_to_root`: everything seems to belong to 0:0.
    pub squash_to_root: bool,
    /// `squash_to_uid=`: everything seems to belong to this user.
    pub squash_to_uid: Option<u32>,
    /// `squash_to_gid=`: everything seems to belong to this group.
    pub squash_to_gid: Option<u32>,
    /// `xattr_permissions=`: whether owners and modes stand in an attribute.
    pub records: Records,
    /// `static_nlink`: every directory has one link.
    pub static_nlink: bool,
    /// `image_layers`: names that begin with `.wh.` in the lower layers hide others, as in layers
    /// of images. containers/storage unpacks them so for a mount program.
    pub image_layers: bool,
    /// `noacl`: there are no POSIX ACLs.
    pub no_acl: bool,
    /// `noxattrs`: there are no extended attributes.
    pub no_xattrs: bool,
}

/// Where owners and modes are recorded, in all layers, for a file system that can't hold them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Records {
    /// `0`: nowhere, or only what a fake root can't give.
    #[default]
    None,
    /// `1`: in `security.fuseoverlayfs.override_stat`, which only a privileged server can write.
    Privileged,
    /// `2`: in `user.containers.override_stat`, as containers/storage with `force_mask` does.
    Containers,
}

/// Pairs of ranges of ids. An empty map leaves ids what they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    disk: u32,
    shown: u32,
    count: u32,
}

impl IdMap {
    /// Reads `DISK:SHOWN:COUNT[:DISK:SHOWN:COUNT…]`; a leading colon is passed over, as
    /// containers/storage writes one. The error says what was expected.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        const WANTED: &str = "triples of numbers, DISK:SHOWN:COUNT, none of them overlapping";
        let text = std::str::from_utf8(text).map_err(|_| WANTED)?;
        let text = text.strip_prefix(':').unwrap_or(text);
        let numbers: Vec<u32> = text
            .split(':')
            .map(|number| super::tuning::number(number.as_bytes()).ok_or(WANTED))
            .collect::<Result<_, _>>()?;
        let (triples, []) = numbers.as_chunks::<3>() else {
            return Err(WANTED.to_owned());
        };
        let ranges: Vec<Range> = triples
            .iter()
            .map(|&[disk, shown, count]| Range { disk, shown, count })
            .collect();
        let ends = |start: u32, count: u32| start.checked_add(count).is_some();
        let sound = ranges.iter().all(|range| {
            range.count > 0 && ends(range.disk, range.count) && ends(range.shown, range.count)
        });
        let apart =
            |one: u32, ones: u32, two: u32, twos: u32| one + ones <= two || two + twos <= one;
        let disjoint = || {
            ranges.iter().enumerate().all(|(at, one)| {
                ranges[at + 1..].iter().all(|two| {
                    apart(one.disk, one.count, two.disk, two.count)
                        && apart(one.shown, one.count, two.shown, two.count)
                })
            })
        };
        if sound && disjoint() {
            Ok(Self(ranges))
        } else {
            Err(WANTED.to_owned())
        }
    }

    /// How an id on the disk is shown; `None` where the map has nothing for it.
    pub fn shown(&self, id: u32) -> Option<u32> {
        self.translate(id, |range| (range.disk, range.shown))
    }

    /// What stands on the disk for an id that is shown.
    pub fn on_disk(&self, id: u32) -> Option<u32> {
        self.translate(id, |range| (range.shown, range.disk))
    }

    fn translate(&self, id: u32, ends: impl Fn(&Range) -> (u32, u32)) -> Option<u32> {
        if self.0.is_empty() {
            return Some(id);
        }
        self.0.iter().find_map(|range| {
            let (from, to) = ends(range);
            let offset = id
                .checked_sub(from)
                .filter(|offset| *offset < range.count)?;
            Some(to + offset)
        })
    }

    fn written(&self) -> String {
        let triples: Vec<String> = self
            .0
            .iter()
            .map(|range| format!("{}:{}:{}", range.disk, range.shown, range.count))
            .collect();
        triples.join(":")
    }
}

impl Shown {
    /// Takes an option: `None` when it isn't one of these, or why its value won't do.
    pub(super) fn take(&mut self, name: &str, value: Option<&[u8]>) -> Option<Result<(), String>> {
        let id = |value: &[u8]| {
            super::tuning::number::<u32>(value)
                .filter(|id| *id != u32::MAX)
                .map(Some)
                .ok_or_else(|| "a number".to_owned())
        };
        let text = value.unwrap_or_default();
        let taken = match (name, value) {
            ("uidmapping", _) => IdMap::parse(text).map(|map| self.uids = map),
            ("gidmapping", _) => IdMap::parse(text).map(|map| self.gids = map),
            ("squash_to_uid", _) => id(text).map(|id| self.squash_to_uid = id),
            ("squash_to_gid", _) => id(text).map(|id| self.squash_to_gid = id),
            ("xattr_permissions", _) => records(text).map(|records| self.records = records),
            ("noxattrs", _) => switch(value).map(|on| self.no_xattrs = on),
            (_, None) => return self.flag(name).map(|flag| *flag = true).map(Ok),
            _ => return None,
        };
        Some(taken)
    }

    /// Those without a value.
    fn flag(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "squash_to_root" => &mut self.squash_to_root,
            "static_nlink" => &mut self.static_nlink,
            "image_layers" => &mut self.image_layers,
            "noacl" => &mut self.no_acl,
            _ => return None,
        })
    }

    /// The options that were given, as they are written.
    pub(super) fn written(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (name, map) in [("uidmapping", &self.uids), ("gidmapping", &self.gids)] {
            if *map != IdMap::default() {
                out.push(format!("{name}={}", map.written()));
            }
        }
        let ids = [
            ("squash_to_uid", self.squash_to_uid),
            ("squash_to_gid", self.squash_to_gid),
        ];
        for (name, id) in ids {
            out.extend(id.map(|id| format!("{name}={id}")));
        }
        match self.records {
            Records::None => {}
            Records::Privileged => out.push("xattr_permissions=1".into()),
            Records::Containers => out.push("xattr_permissions=2".into()),
        }
        let flags = [
            ("squash_to_root", self.squash_to_root),
            ("static_nlink", self.static_nlink),
            ("image_layers", self.image_layers),
            ("noacl", self.no_acl),
            ("noxattrs", self.no_xattrs),
        ];
        out.extend(flags.iter().filter(|flag| flag.1).map(|flag| flag.0.into()));
        out
    }

    /// One of the options that were given, which the kernel's overlay doesn't have.
    pub(crate) fn first(&self) -> Option<String> {
        self.written().into_iter().next()
    }

    /// Whose everything seems to be, where the options say so.
    pub(crate) fn squashed_uid(&self) -> Option<u32> {
        self.squash_to_uid.or(self.squash_to_root.then_some(0))
    }

    /// Whose group everything seems to be of.
    pub(crate) fn squashed_gid(&self) -> Option<u32> {
        self.squash_to_gid.or(self.squash_to_root.then_some(0))
    }

    /// Whether an extended attribute can't be had, or made.
    pub(crate) fn withholds(&self, name: &OsStr) -> bool {
        self.no_xattrs || self.no_acl && name.as_encoded_bytes().starts_with(b"system.posix_acl_")
    }

    /// The form of lower layers that don't say in which one they are.
    pub(crate) fn form_of_lowers(&self) -> Form {
        match self.image_layers {
            true => Form::Dotted,
            false => Form::Kernel,
        }
    }

    /// Whether the kernel is to check ACLs.
    pub(crate) fn acls(&self) -> Switch {
        match self.no_acl || self.no_xattrs {
            true => Switch::Off,
            false => Switch::On,
        }
    }
}

fn records(value: &[u8]) -> Result<Records, String> {
    match value {
        b"0" => Ok(Records::None),
        b"1" => Ok(Records::Privileged),
        b"2" => Ok(Records::Containers),
        _ => Err("0, 1 or 2".to_owned()),
    }
}

fn switch(value: Option<&[u8]>) -> Result<bool, String> {
    match value {
        None | Some(b"1") => Ok(true),
        Some(b"0") => Ok(false),
        Some(_) => Err("0 or 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_translated_both_ways() {
        for text in ["0:1000:1:1:110000:65536", ":0:1000:1:1:110000:65536"] {
            let map = IdMap::parse(text.as_bytes()).unwrap();
            for (disk, shown) in [(0, 1000), (1, 110_000), (65_536, 175_535)] {
                assert_eq!(map.shown(disk), Some(shown));
                assert_eq!(map.on_disk(shown), Some(disk));
            }
            assert_eq!(map.shown(65_537), None);
            assert_eq!(map.on_disk(0), None);
        }
        assert_eq!(IdMap::default().shown(7), Some(7));
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        for text in [
            "",
            ":",
            "0:1",
            "0:1:2:3",
            "a:1:1",
            "0:0:0",
            "-1:0:1",
            "4294967295:0:2",
            "0:4294967295:2",
            "0:0:10:5:100:1",
            "0:0:10:50:5:1",
        ] {
            assert!(IdMap::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_user_of_his_own_comes_before_root() {
        let mut shown = Shown::default();
        shown.take("squash_to_root", None).unwrap().unwrap();
        shown.take("squash_to_uid", Some(b"7")).unwrap().unwrap();
        assert_eq!(
            (shown.squashed_uid(), shown.squashed_gid()),
            (Some(7), Some(0))
        );
    }
}
